//! Rounds of checks over folders and servers that a test makes.

use super::*;
use crate::client::facts::tests::{facts, service};

const SITE: &str = "apiVersion: linkspan.io/v1alpha1\nkind: Site\nmetadata: {name: east}\nspec: {}\n";

pub(super) fn checks(progress: &Progress) -> Checks<'_> {
    Checks { facts: facts(), ..Checks::new("--dir east".to_owned(), Scope::default(), progress) }
}

fn failures(checks: &Checks<'_>) -> Vec<String> {
    let failed = checks.report.checks().iter().filter(|check| check.verdict == report::Verdict::Failure);
    failed
        .map(|check| format!("{}: {} | {}", check.name, check.reason, check.remedy.as_deref().unwrap_or_default()))
        .collect()
}

#[tokio::test]
async fn a_folder_without_a_site_names_the_next_step() {
    let dir = tempfile::tempdir().expect("folder");
    let progress = Progress::silent();
    let mut checks = checks(&progress);
    site::check(&mut checks, &Folder::new(dir.path())).await;
    let found = failures(&checks).join("\n");
    assert!(found.contains("linkspan site init") && !found.contains("linkspan site run"), "{found}");
    assert!(!checks.report.passed());

    std::fs::write(dir.path().join("site.yaml"), SITE).expect("written");
    checks.report = Report::new();
    site::check(&mut checks, &Folder::new(dir.path())).await;
    let found = failures(&checks).join("\n");
    assert!(found.contains("linkspan site run"), "{found}");
}

#[test]
fn a_state_folder_that_takes_nothing_is_a_failure() {
    let progress = Progress::silent();
    let mut checks = checks(&progress);
    let state = std::path::Path::new("east/state");
    site::report_saved(&mut checks, state, &[].into());
    assert!(checks.report.passed());
    let failed = [("addresses.json", "No space left on device"), ("status", "Read-only file system")];
    site::report_saved(&mut checks, state, &failed.map(|(what, why)| (what.to_owned(), why.to_owned())).into());
    let [found] = failures(&checks).try_into().expect("one failure");
    assert!(
        found.contains("the state can be saved") && found.contains("state/addresses.json: No space left"),
        "{found}"
    );
    assert!(found.contains("Read-only file system") && found.contains("df -h"), "{found}");
}

#[tokio::test]
async fn a_broken_manifest_is_named_by_place_and_field() {
    let dir = tempfile::tempdir().expect("folder");
    std::fs::create_dir(dir.path().join("manifests")).expect("folder");
    let text = "apiVersion: linkspan.io/v1alpha1\nkind: ClusterTrafficPolicy\nmetadata: {name: a, namespace: shop}\nspec:\n  \
                service: web\n  tires: []\n";
    std::fs::write(dir.path().join("manifests/split.yaml"), text).expect("written");
    std::fs::write(dir.path().join("site.yaml"), SITE).expect("written");
    let progress = Progress::silent();
    let mut checks = checks(&progress);
    site::check(&mut checks, &Folder::new(dir.path())).await;
    let failures = failures(&checks).join("\n");
    assert!(failures.contains("manifests/split.yaml:") && failures.contains("tires"), "{failures}");
}

#[tokio::test]
async fn a_service_that_nobody_exports_is_told_in_words_with_the_manifest() {
    let progress = Progress::silent();
    let mut checks = checks(&progress);
    checks.scope.service = Some(service("shop/api"));
    catalogue::check(&mut checks);
    let failures = failures(&checks);
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].contains("shop/api is not exported by any linked cluster"), "{failures:?}");
    assert!(failures[0].contains("kind: ServiceExport") && failures[0].contains("name: api"), "{failures:?}");
}

#[tokio::test]
async fn a_policy_for_a_service_that_nobody_exports_fails() {
    let dir = tempfile::tempdir().expect("folder");
    std::fs::create_dir(dir.path().join("manifests")).expect("folder");
    let policy = |name: &str, service: &str, cluster: &str| {
        format!(
            "apiVersion: linkspan.io/v1alpha1\nkind: ClusterTrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             service: {service}\n  tiers: [{{clusters: {{{cluster}: 1}}}}]\n---\n"
        )
    };
    let text =
        policy("good", "web", "west") + &policy("unexported", "api", "west") + &policy("unlinked", "web", "south");
    std::fs::write(dir.path().join("manifests/split.yaml"), text).expect("written");
    let progress = Progress::silent();
    let mut checks = checks(&progress);
    site::gather(&mut checks, &Folder::new(dir.path())).await;
    catalogue::check(&mut checks);
    let failures = failures(&checks);
    assert_eq!(failures.len(), 2, "{failures:?}");
    assert!(failures[0].contains("shop/unexported") && failures[0].contains("ServiceExport"), "{failures:?}");
    assert!(failures[1].contains("shop/unlinked") && failures[1].contains("south"), "{failures:?}");
}

#[tokio::test]
async fn an_export_needs_a_ready_endpoint_that_listens() {
    let progress = Progress::silent();
    let mut checks = checks(&progress);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let export = checks.facts.exports.get_mut(&service("shop/web")).expect("export");
    export.ports[0].endpoints[0].address = listener.local_addr().expect("bound");
    exports::check(&mut checks);
    let tried = exports::ask(&checks).await;
    exports::endpoints(&mut checks, tried);
    assert!(checks.report.passed(), "{:?}", failures(&checks));

    drop(listener);
    exports::check(&mut checks);
    let tried = exports::ask(&checks).await;
    exports::endpoints(&mut checks, tried);
    assert!(failures(&checks).join("\n").contains("ready endpoints accept connections"), "{:?}", failures(&checks));

    checks.report = Report::new();
    let export = checks.facts.exports.get_mut(&service("shop/web")).expect("export");
    export.ports[0].endpoints.iter_mut().for_each(|endpoint| endpoint.ready = false);
    exports::check(&mut checks);
    let tried = exports::ask(&checks).await;
    exports::endpoints(&mut checks, tried);
    assert!(failures(&checks).join("\n").contains("port 80 has none"), "{:?}", failures(&checks));
}

#[tokio::test]
async fn what_a_peer_removed_with_many_others_is_not_probed() {
    let dir = tempfile::tempdir().expect("folder");
    let mirrors = dir.path().join("state/status/mirrors");
    std::fs::create_dir_all(&mirrors).expect("folder");
    let folder = Folder::new(dir.path());
    let progress = Progress::silent();
    let mut checks = checks(&progress);
    checks.facts.mirrors.retain(|mirror| mirror.name.starts_with("web-north"));
    let is_probed = |checks: &Checks<'_>| {
        let names: Vec<_> = checks.report.checks().iter().map(|check| check.name.clone()).collect();
        names.join("\n").contains("web-north.shop")
    };
    site::gather(&mut checks, &folder).await;
    let probed = services::ask(&checks).await;
    services::check(&mut checks, probed);
    assert!(is_probed(&checks), "{}", checks.report.render(false));

    let status = "kind: Mirror\nmetadata: {name: web-north, namespace: shop}\nstatus:\n  hostname: \
                  web-north.shop.svc.cluster.local\n  service: shop/web\n  conditions: [{type: Ready, status: 'False', reason: \
                  RemovalDelayed, message: removed}]\n";
    std::fs::write(mirrors.join("shop.web-north.yaml"), status).expect("written");
    checks.report = Report::new();
    site::gather(&mut checks, &folder).await;
    let probed = services::ask(&checks).await;
    services::check(&mut checks, probed);
    assert!(!is_probed(&checks), "{}", checks.report.render(false));
}

#[test]
fn checks_can_be_narrowed() {
    let scope = Scope { cluster: Some("west".to_owned()), service: Some(service("shop/web")) };
    assert!(scope.covers_service(&service("shop/web")) && !scope.covers_service(&service("shop/api")));
    let west = crate::client::facts::tests::cluster("west");
    assert!(scope.covers_cluster(&west) && Scope::default().covers_cluster(&west));
    assert!(!scope.covers_cluster(&crate::client::facts::tests::cluster("north")));
}

#[tokio::test]
async fn a_wrong_folder_is_one_failure_and_not_five() {
    let dir = tempfile::tempdir().expect("folder");
    let words = ["linkspan", "check", "--dir", dir.path().to_str().expect("text")];
    let crate::args::Command::Check(args) = <crate::args::Cli as clap::Parser>::parse_from(words).command else {
        panic!("check")
    };
    let report = round(&args, &Progress::silent()).await;
    assert_eq!(report.failures(), 1, "{}", report.render(false));
    assert!(report.render(false).contains("there is no site in"), "{}", report.render(false));
}

/// A DNS server that gives every name the same address; counts the TCP connections that come.
async fn dns_server(address: [u8; 4]) -> (SocketAddr, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    use hickory_proto::op::{Message, MessageType};
    use hickory_proto::rr::{RData, Record, rdata::A};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let answer = move |request: &[u8]| {
        let mut message = Message::from_vec(request).expect("a request");
        message.metadata.message_type = MessageType::Response;
        let name = message.queries[0].name().clone();
        message.add_answer(Record::from_rdata(name, 5, RData::A(A::from(std::net::Ipv4Addr::from(address)))));
        message.to_vec().expect("encodes")
    };
    let (udp, tcp) = loop {
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        if let Ok(udp) = tokio::net::UdpSocket::bind(tcp.local_addr().expect("bound")).await {
            break (udp, tcp);
        }
    };
    let server = tcp.local_addr().expect("bound");
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&count);
    drop(linkspan_runtime::task::spawn("dns_over_udp", async move {
        let mut request = vec![0; 512];
        while let Ok((length, client)) = udp.recv_from(&mut request).await {
            udp.send_to(&answer(&request[..length]), client).await.expect("sent");
        }
    }));
    drop(linkspan_runtime::task::spawn("dns_over_tcp", async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut request = vec![0; usize::from(stream.read_u16().await.expect("length"))];
            stream.read_exact(&mut request).await.expect("request");
            let reply = answer(&request);
            stream.write_u16(u16::try_from(reply.len()).expect("short")).await.expect("sent");
            stream.write_all(&reply).await.expect("sent");
        }
    }));
    (server, count)
}

#[tokio::test]
async fn of_many_names_a_few_are_asked_over_tcp() {
    let progress = Progress::silent();
    let mut checks = checks(&progress);
    let (dns, connections) = dns_server([127, 80, 0, 1]).await;
    let mut mirror = checks.facts.mirrors[0].clone();
    mirror.ports[0].listen = "127.80.0.1:80".parse().expect("address");
    checks.facts.mirrors = (0..300)
        .map(|index| linkspan_proto::configuration::Mirror {
            name: format!("web-{index}.shop.svc.cluster.local"),
            ..mirror.clone()
        })
        .collect();
    checks.controller = Some(ControllerRun { pid: 1, version: String::new(), dns, admin: None });
    let answers = dns::ask(&checks).await;
    dns::check(&mut checks, answers);
    let report = checks.report.render(false);
    assert!(report.contains("300 names, over UDP, 8 of them over TCP too"), "{report}");
    assert_eq!(connections.load(std::sync::atomic::Ordering::Relaxed), 8);
}

/// An admin listener whose gateway has the Link to south from its third answer on.
async fn gateway_that_learns_of_south() -> GatewayRun {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let admin = listener.local_addr().expect("bound");
    drop(linkspan_runtime::task::spawn("admin", async move {
        let mut asked = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.expect("a request");
            let known = asked >= 3;
            let body = match &request[..length] {
                request if request.starts_with(b"GET /links ") => {
                    let links = known.then(|| crate::client::facts::tests::link("south", true));
                    serde_json::json!(Vec::from_iter(links))
                }
                request if request.starts_with(b"GET /mirrors ") => serde_json::json!([]),
                _ => {
                    asked += 1;
                    let peers = known.then(|| crate::client::facts::tests::peer("south", &[]));
                    serde_json::json!({"gateway": {"resolved": {"cluster": "east"}, "resources": Vec::from_iter(peers)}})
                }
            };
            let body = body.to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).await.expect("sent");
        }
    }));
    GatewayRun { pid: 1, version: String::new(), link: admin, admin, mtls: None, workers: 1 }
}

#[tokio::test]
async fn a_link_that_was_just_imported_is_waited_for() {
    let dir = tempfile::tempdir().expect("folder");
    std::fs::create_dir(dir.path().join("manifests")).expect("folder");
    let link = "apiVersion: linkspan.io/v1alpha1\nkind: Link\nmetadata: {name: south}\nspec:\n  trustDomain: south.internal\n  \
                trustBundle: |\n    -----BEGIN CERTIFICATE-----\n    AAAA\n    -----END CERTIFICATE-----\n";
    std::fs::write(dir.path().join("manifests/link-south.yaml"), link).expect("written");
    let progress = Progress::silent();
    let mut checks = checks(&progress);
    let gateway = gateway_that_learns_of_south().await;
    checks.controller = Some(ControllerRun { pid: 1, version: String::new(), dns: gateway.admin, admin: None });
    checks.gateway = Some(gateway);
    site::links_in_force(&mut checks, &Folder::new(dir.path())).await;
    assert!(checks.late.is_empty() && checks.facts.links.values().all(|link| link.alive), "{:?}", checks.facts.links);
    assert!(progress.told.get(), "the user is told");

    // Had it not come into force, the advice would not be to import it.
    checks.gateway = None;
    checks.facts.peers.clear();
    checks.late.insert(crate::client::facts::tests::cluster("south"));
    let reached = reach::ask(&checks).await;
    links::check(&mut checks, &reached);
    let found = failures(&checks).join("\n");
    let report = checks.report.render(false);
    assert!(found.contains("south: its Link is in force") && !report.contains("link import"), "{report}");
}
