//! Whole controllers in one process. Between them stand plain pipes instead of gateways and a link; gateways are a client
//! of `controller.sock` that keeps what it is told.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use linkspan_proto::configuration::{Report, Resource};
use linkspan_proto::generated::configuration::{Purpose, SignRequest};
use rcgen::{CertificateParams, KeyPair};

use super::*;
use kit::{Gateway, Pipes, Site, eventually, query, service};

mod hostile;
mod kit;

fn names(resources: &BTreeMap<String, Resource>) -> Vec<String> {
    resources.keys().cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_one_site_becomes_a_name_of_the_other() {
    let (mut east, mut west) = Site::pair().await;
    let mut gateway = Gateway::connect(&east, "boot-1").await;
    let _pipes = Pipes::between(&east, &west);
    west.write("web.yaml", &service("web", &[("10.0.0.1", true), ("10.0.0.2", false)], true));
    gateway.until("the mirror", |all| all.contains_key("capacity west/shop/web")).await;
    let Resource::Mirror(mirror) = gateway.resources["mirror web-west.shop.svc.cluster.local"].clone() else {
        panic!()
    };
    let address = mirror.ports[0].listen;
    assert_eq!(address.port(), 80);
    let Resource::Capacity(capacity) = gateway.resources["capacity west/shop/web"].clone() else { panic!() };
    assert_eq!(capacity.ready, BTreeMap::from([(80, 1)]));
    for expected in ["peer west", "mirror web.shop.svc.clusterset.local", "workload shop/web"] {
        assert!(gateway.resources.contains_key(expected), "{expected} in {:?}", names(&gateway.resources));
    }

    eventually("DNS to answer", async || {
        query(east.app().addresses.dns, "web-west.shop.svc.cluster.local").await == Some(address.ip())
    })
    .await;
    eventually("the object", async || {
        east.state("mirrors/shop.web-west.yaml").is_some_and(|text| text.contains("kind: Service"))
    })
    .await;
    eventually("the status", async || {
        let link = east.state("status/links/west.yaml").unwrap_or_default();
        link.contains("reason: Synced") && link.contains("services: 1") && link.contains("reason: Pending")
    })
    .await;
    assert!(east.state("run/controller.json").unwrap().contains("\"dns\":\"127.0.0.1:"));

    let changed = Instant::now();
    west.write("web.yaml", &service("web", &[("10.0.0.1", true), ("10.0.0.2", true)], true));
    gateway
        .until(
            "the readiness",
            |all| matches!(&all["capacity west/shop/web"], Resource::Capacity(capacity) if capacity.ready[&80] == 2),
        )
        .await;
    assert!(changed.elapsed() < Duration::from_secs(1), "a change takes {:?}", changed.elapsed());

    east.write("broken.yaml", "kind: Service\nmetadata: [");
    eventually("the complaint", async || {
        east.state("status/manifests.yaml").is_some_and(|text| text.contains("broken.yaml"))
    })
    .await;
    west.write("web.yaml", &service("web", &[("10.0.0.1", true)], false));
    gateway.until("the end", |all| !all.contains_key("mirror web-west.shop.svc.cluster.local")).await;
    assert!(!gateway.resources.contains_key("capacity west/shop/web"));
    eventually("the object to go", async || east.state("mirrors/shop.web-west.yaml").is_none()).await;
    assert!(query(east.app().addresses.dns, "web-west.shop.svc.cluster.local").await.is_none());
    east.stop().await;
    west.stop().await;
    assert!(east.state("run/controller.json").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn dns_withholds_an_address_at_which_the_gateway_does_not_listen() {
    const NAME: &str = "web-west.shop.svc.cluster.local";
    let (mut east, mut west) = Site::pair().await;
    let mut gateway = Gateway::connect(&east, "boot-1").await;
    let _pipes = Pipes::between(&east, &west);
    west.write("web.yaml", &service("web", &[("10.0.0.1", true)], true));
    gateway.until("the mirror", |all| all.contains_key(&format!("mirror {NAME}"))).await;
    let dns = east.app().addresses.dns;
    eventually("DNS to answer", async || query(dns, NAME).await.is_some()).await;

    gateway.report(Report::Acknowledged { generation: gateway.generation }).await;
    gateway.report_rejection(NAME, "AddressInUse").await;
    eventually("DNS to withhold it", async || query(dns, NAME).await.is_none()).await;
    assert!(query(dns, "web.shop.svc.clusterset.local").await.is_some(), "only what is not listened at");

    // What is in the way outlives the gateway: a new one must say that it listens.
    drop(gateway);
    eventually("the gateway to be gone", async || {
        east.state("status/mirrors/shop.web-west.yaml").is_some_and(|text| text.contains("NoGateway"))
    })
    .await;
    assert!(query(dns, NAME).await.is_none());
    let mut gateway = Gateway::connect(&east, "boot-2").await;
    gateway.until("the mirror", |all| all.contains_key(&format!("mirror {NAME}"))).await;
    gateway.report(Report::Rejected { reasons: Vec::new() }).await;
    gateway.report(Report::Acknowledged { generation: gateway.generation }).await;
    eventually("DNS to answer again", async || query(dns, NAME).await.is_some()).await;
    east.stop().await;
    west.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_and_lost_peers_withdraw_nothing() {
    let (mut east, mut west) = Site::pair().await;
    west.write("web.yaml", &service("web", &[("10.0.0.1", true)], true));
    let mut gateway = Gateway::connect(&east, "boot-1").await;
    let pipes = Pipes::between(&east, &west);
    gateway.until("the mirror", |all| all.contains_key("capacity west/shop/web")).await;
    let before = gateway.resources.clone();

    west.stop().await;
    west.start().await;
    gateway.watch(Duration::from_secs(3), |all| assert_eq!(*all, before)).await;
    let peer = || east.admin("/peers?cluster=west");
    eventually("both to agree again", async || peer().await["synchronised"] == true).await;

    drop(pipes);
    eventually("the loss to show", async || peer().await["connected"] == false).await;
    gateway.watch(Duration::from_secs(2), |all| assert_eq!(*all, before)).await;
    assert_eq!(peer().await["freshness"], "fresh");

    drop(gateway);
    east.stop().await;
    west.stop().await;
    east.start().await;
    let mut gateway = Gateway::connect(&east, "boot-2").await;
    gateway.until("the first configuration", |all| !all.is_empty()).await;
    assert_eq!(
        gateway.resources, before,
        "the first thing said after a restart is what held before, addresses included"
    );
    east.stop().await;
}

/// A version that is refused costs nothing of what is in force, whether the controller runs, restarts or was not there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_leaves_the_last_good_state_over_restarts() {
    let (mut east, west) = Site::pair().await;
    let refused = fs::read_to_string(east.manifests().join("link-west.yaml")).unwrap().replace("west.", "changed.");
    let policy = "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata: {name: closed, namespace: shop}\nspec: {allow: []}\n";
    east.write("web.yaml", &service("web", &[("10.0.0.1", true)], true));
    east.write("policy.yaml", policy);
    let mut gateway = Gateway::connect(&east, "boot-1").await;
    gateway.until("the export", |all| all.contains_key("export shop/web") && all.contains_key("peer west")).await;
    eventually("the state to be saved", async || {
        east.state("accepted.json").is_some_and(|text| text.contains("west."))
    })
    .await;
    gateway.drain_updates().await;
    let before = gateway.resources.clone();
    let Resource::Export(export) = &before["export shop/web"] else { panic!() };
    assert_eq!(export.rules, Some(vec![]), "closed by its policy");
    drop(gateway);
    east.stop().await;

    east.write("link-west.yaml", &refused);
    east.write("policy.yaml", &policy.replace("kind: ExportPolicy", "kind: ExportPolcy"));
    for ends_well in [true, false] {
        east.start().await;
        let mut gateway = Gateway::connect(&east, "boot-2").await;
        gateway.until("the first configuration", |all| !all.is_empty()).await;
        assert_eq!(gateway.resources, before);
        eventually("the cause", async || {
            east.state("status/links/west.yaml").is_some_and(|text| text.contains("reason: InvalidTrustBundle"))
                && east.state("status/manifests.yaml").is_some_and(|text| text.contains("policy.yaml"))
        })
        .await;
        if ends_well { east.stop().await } else { east.kill() }
    }
    drop(west);
}

/// S-51: on a first start there is no last good state; what cannot be read must not leave the default in force.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_was_never_readable_closes_what_it_may_concern() {
    let (mut east, _west) = Site::pair().await;
    east.stop().await;
    east.write("web.yaml", &service("web", &[("10.0.0.1", true)], true));
    east.write("policy.yaml", "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolcy\nmetadata: {name: a, namespace: shop}\nspec: {allow: []}\n");
    east.start().await;
    let mut gateway = Gateway::connect(&east, "boot-1").await;
    gateway.until("the export", |all| all.contains_key("export shop/web")).await;
    let rules = |all: &BTreeMap<String, Resource>| match &all["export shop/web"] {
        Resource::Export(export) => export.rules.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(rules(&gateway.resources), Some(vec![]));
    eventually("the cause", async || {
        let problems = east.admin("/manifests").await.to_string();
        problems.contains("ExportPolcy") && problems.contains("namespace shop")
    })
    .await;
    eventually("the cause at the export", async || {
        east.state("status/exports/shop.web.yaml").is_some_and(|text| text.contains("closed to everybody"))
    })
    .await;
    fs::remove_file(east.manifests().join("policy.yaml")).unwrap();
    gateway.until("the end of the doubt", |all| rules(all).is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_sites_in_a_ring_mirror_each_other_without_a_loop() {
    let names = ["east", "north", "west"];
    let sites = Site::linked(&names).await;
    let mut pipes = Vec::new();
    for (index, one) in sites.iter().enumerate() {
        for other in &sites[index + 1..] {
            pipes.push(Pipes::between(one, other));
        }
        for name in ["web", "api"] {
            one.write(&format!("{name}.yaml"), &service(name, &[("10.0.0.1", true)], true));
        }
    }
    let mut gateways = Vec::new();
    for site in &sites {
        let mut gateway = Gateway::connect(site, "boot").await;
        gateway.until("all mirrors", |all| all.keys().filter(|key| key.starts_with("capacity")).count() == 4).await;
        gateway.until("both exports", |all| all.keys().filter(|key| key.starts_with("export")).count() == 2).await;
        gateways.push(gateway);
    }
    // Only now, with all mirrors everywhere, each exports a last service. Catalogues keep their order: when the last one
    // has come from both peers, so has whatever they would have made of their own mirrors.
    for site in &sites {
        site.write("last.yaml", &service("last", &[("10.0.0.1", true)], true));
    }
    for (site, mut gateway) in sites.iter().zip(gateways) {
        let last = |key: &&String| key.starts_with("capacity") && key.ends_with("/last");
        gateway.until("the last of both peers", |all| all.keys().filter(last).count() == 2).await;
        let own = |key: &&String| key.starts_with("mirror") && !key.contains(" last");
        let mirrors: Vec<_> = gateway.resources.keys().filter(own).cloned().collect();
        assert_eq!(mirrors.len(), 6, "two services of two peers and two imports: {mirrors:?}");
        let Resource::Mirror(import) = &gateway.resources["mirror web.shop.svc.clusterset.local"] else { panic!() };
        let tiers: Vec<Vec<&str>> =
            import.tiers.iter().map(|tier| tier.clusters.keys().map(|name| name.as_str()).collect()).collect();
        let others: Vec<_> = names.iter().copied().filter(|name| *name != site.name()).collect();
        assert_eq!(tiers, [vec![site.name()], others]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_signed_for_the_gateway_and_nobody_else() {
    let (east, west) = Site::pair().await;
    west.write("web.yaml", &service("web", &[("10.0.0.1", true)], true));
    let mut gateway = Gateway::connect(&east, "boot-1").await;
    let _pipes = Pipes::between(&east, &west);
    gateway.until("the mirror", |all| all.contains_key("capacity west/shop/web")).await;
    let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
    let mut sign = async |purpose: Purpose, dns_names: &[&str]| {
        let request = SignRequest {
            csr_der: csr.clone().into(),
            purpose: purpose.into(),
            dns_names: dns_names.iter().map(|&name| name.to_owned()).collect(),
        };
        gateway.client.sign(request).await
    };
    let signed = sign(Purpose::Link, &[]).await.unwrap().into_inner();
    assert_eq!(signed.chain_der.len(), 1);
    assert_eq!(signed.trust_bundle_pem, east.state("ca/root.pem").unwrap());
    let (_, leaf) = x509_parser::parse_x509_certificate(&signed.chain_der[0]).unwrap();
    assert_eq!(leaf.validity().not_after.timestamp(), signed.not_after_unix);
    assert!(sign(Purpose::LocalServer, &["*.shop.svc.clusterset.local"]).await.is_ok());
    for (purpose, names) in [
        (Purpose::Unspecified, vec![]),
        (Purpose::Link, vec!["web.shop.svc.clusterset.local"]),
        (Purpose::LocalServer, vec!["bank.example.com"]),
        (Purpose::LocalServer, vec!["web.other.svc.clusterset.local"]),
    ] {
        assert!(sign(purpose, &names).await.is_err(), "{purpose:?} {names:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_gateways_report_becomes_status() {
    let (east, west) = Site::pair().await;
    west.write("web.yaml", &service("web", &[("10.0.0.1", true)], true));
    let mut gateway = Gateway::connect(&east, "boot-1").await;
    let pipes = Pipes::between(&east, &west);
    gateway.until("the mirror", |all| all.contains_key("capacity west/shop/web")).await;
    gateway.report(Report::Acknowledged { generation: gateway.generation }).await;
    let mirror = || east.state("status/mirrors/shop.web-west.yaml").unwrap_or_default();
    eventually("listening", async || mirror().contains("reason: Listening")).await;
    gateway.report_rejection("web-west.shop.svc.cluster.local", "AddressInUse").await;
    eventually("the rejection", async || mirror().contains("reason: AddressInUse")).await;
    gateway.report_link("west", false, "TrustBundleMismatch").await;
    let link = || east.state("status/links/west.yaml").unwrap_or_default();
    eventually("the link's trouble", async || link().matches("reason: TrustBundleMismatch").count() == 2).await;
    gateway.report_link("west", true, "Connected").await;
    eventually("the link's recovery", async || link().contains("reason: Verified")).await;
    drop(gateway);
    eventually("the gateway's end", async || {
        link().contains("reason: NoGateway") && mirror().contains("reason: NoGateway")
    })
    .await;
    drop(pipes);
    fs::remove_file(east.manifests().join("link-west.yaml")).unwrap();
    eventually("everything of the link to go", async || {
        east.state("status/links/west.yaml").is_none()
            && east.state("mirrors/shop.web-west.yaml").is_none()
            && east.state("status/mirrors/shop.web-west.yaml").is_none()
            && east.state("catalogues/west.json").is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_directory_is_private_and_used_once() {
    let (mut east, _west) = Site::pair().await;
    let mode = |path: &str| fs::metadata(east.dir().join("state").join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(""), 0o700);
    assert_eq!(mode("controller.sock"), 0o600);
    assert_eq!(mode("exchange.sock"), 0o600);
    eventually("the run file", async || east.state("run/controller.json").is_some()).await;
    let second = east.try_start().await;
    assert!(east.state("run/controller.json").is_some(), "the one that runs is still to be found");
    assert!(matches!(second, Err(StartError::State(StateDirError::InUse { .. }))), "{second:?}");
    east.kill();
    east.start().await;
    fs::remove_file(east.dir().join("state/ca/root.key")).unwrap();
    east.stop().await;
    let keyless = east.try_start().await;
    assert!(matches!(keyless, Err(StartError::Ca(_))), "{keyless:?}");
}

/// F-43: the most that one peer may export, from manifests there to the gateway's configuration here.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_services_arrive() {
    let (east, west) = Site::pair().await;
    let mut gateway = Gateway::connect(&east, "boot-1").await;
    let _pipes = Pipes::between(&east, &west);
    for file in 0..10 {
        let text: Vec<_> = (0..1000)
            .map(|index| service(&format!("svc-{}", file * 1000 + index), &[("10.0.0.1", true)], true))
            .collect();
        west.write(&format!("many-{file}.yaml"), &text.join("---\n"));
    }
    let started = Instant::now();
    gateway.within(Duration::from_secs(60), "all services", |all| all.len() >= 30_000).await;
    println!("10,000 services took {:?}", started.elapsed());
    let changed = Instant::now();
    west.write("one.yaml", &service("svc-9999", &[("10.0.0.1", false)], true));
    west.write("many-9.yaml", "");
    gateway.within(Duration::from_secs(20), "the removal of a thousand", |all| all.len() < 28_000).await;
    println!("a change among them took {:?}", changed.elapsed());
    eventually("all objects", async || fs::read_dir(east.dir().join("state/mirrors")).unwrap().count() >= 18_000).await;
}
