//! `linkspan check` names the cause, from one side: each test makes one fault, sees it named by its word, and nothing else
//! beside it, with the remedy for people, in less than ten seconds.

use std::path::Path;
use std::time::{Duration, Instant};

use linkspan_tests::manifests::Service;
use linkspan_tests::peer::{Authority, dial};
use linkspan_tests::process::eventually;
use linkspan_tests::servers::{self, Nginx};
use linkspan_tests::site::{Options, PATIENCE, Site, link_all};
use linkspan_tests::world::{Host, World};
use serde_json::Value;

use super::kit::{linked, needs_namespaces, started};

const WEB: &str = "web-west.shop.svc.cluster.local";

/// What a check may take; its own waits add up to less, which it proves when it is compiled.
const TEN_SECONDS: Duration = Duration::from_secs(10);

/// The checks of one run that did not pass, its exit code, and whether all is said to be well.
fn check(site: &Site, args: &[&str]) -> (Vec<Value>, i32) {
    let start = Instant::now();
    let (code, text) = site.try_linkspan(&[&["check", "-o", "json"], args].concat());
    let took = start.elapsed();
    // What it waits for is said behind it, on standard error.
    let report = serde_json::Deserializer::from_str(&text).into_iter::<Value>().next();
    let report = report.and_then(Result::ok).unwrap_or_else(|| panic!("no JSON: {text}"));
    assert!(took < TEN_SECONDS, "{took:?}: {text}");
    let failed = report["failures"].as_u64().expect("a count") > 0;
    assert_eq!((code, report["ok"].as_bool()), (i32::from(failed), Some(!failed)), "{text}");
    let checks = report["checks"].as_array().expect("checks").iter();
    (checks.filter(|check| check["verdict"] != "ok").cloned().collect(), code)
}

/// Waits until `check` names `cause`, and no other one, in a check of this verdict with these words in its remedy. Returns the
/// reason beside it.
fn named(site: &Site, args: &[&str], cause: &str, verdict: &str, remedy: &str) -> String {
    let (mut reason, mut last) = (String::new(), Vec::new());
    let start = Instant::now();
    loop {
        let (found, code) = check(site, args);
        let it = found.iter().find(|check| {
            let words = check["remedy"].as_str().is_some_and(|text| text.contains(remedy));
            check["cause"] == cause && check["verdict"] == verdict && words
        });
        let others = found.iter().any(|check| check["cause"].is_string() && check["cause"] != cause);
        if let Some(it) = it.filter(|_| !others) {
            assert_eq!(code, i32::from(found.iter().any(|check| check["verdict"] == "failure")));
            it["reason"].as_str().unwrap_or_default().clone_into(&mut reason);
            return reason;
        }
        last.clone_from(&found);
        assert!(start.elapsed() < PATIENCE, "not named: {cause}, {verdict}, {remedy}; instead {last:#?}");
    }
}

/// Tells `east` of a peer at `address` in place of the one that it says it has.
fn import_at(east: &Site, west: &Site, address: &str) {
    let link = west.linkspan(&["link", "export"]);
    let own = format!("{}:4143", west.host.address());
    assert!(link.contains(&own), "{link}");
    east.apply("link-west.yaml", &link.replace(&own, address));
}

/// East, and west with a service that nginx serves and east reaches.
fn serving() -> (World, Vec<Site>, Nginx) {
    let (world, sites) = linked(&["east", "west"]);
    let nginx = Nginx::start(&sites[1].host, 8080);
    sites[1].apply("web.yaml", &Service::new("shop", "web").port("http", 8080, Some("http")).yaml());
    sites[0].wait_resolves(WEB);
    well(&sites[0]);
    (world, sites, nginx)
}

/// Waits until `check` has nothing to say.
fn well(site: &Site) {
    let start = Instant::now();
    loop {
        let (found, _) = check(site, &[]);
        if found.is_empty() {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{found:#?}");
    }
}

fn block_udp(host: &Host) {
    host.nft(
        "chain i { type filter hook input priority 0; udp dport 4143 drop; udp sport 4143 drop; }\n chain o { type filter hook output priority 0; udp sport 4143 drop; udp dport 4143 drop; }",
    );
}

#[test]
fn the_address_of_a_peer_is_wrong() {
    needs_namespaces!();
    // North is another site, and on south nothing runs.
    let world = World::new(&["east", "west", "north", "south"]);
    let mut sites: Vec<Site> =
        ["east", "west", "north"].iter().map(|name| Site::init(world.host(name), &Options::default())).collect();
    sites.iter_mut().for_each(Site::start);
    let (east, west) = (&sites[0], &sites[1]);
    for (address, remedy) in [
        ("10.77.0.99:4143", "correct the address in the Link if it is not that of west"),
        ("10.77.0.4:4143", "start west, or correct the address in the Link"),
        ("10.77.0.3:4143", "another cluster answers at this address"),
        ("nowhere.invalid:4143", "correct the address in the Link, or the DNS entry"),
    ] {
        import_at(east, west, address);
        named(east, &[], "peerAddress", "failure", remedy);
    }
}

#[test]
fn udp_is_blocked_and_tcp_is_in_use() {
    needs_namespaces!();
    let (_world, sites, _nginx) = serving();
    let (east, west) = (&sites[0], &sites[1]);
    block_udp(&west.host);
    eventually("TCP carries the link", PATIENCE, || east.gateway("west").is_some_and(|row| row["transport"] == "tcp"));
    named(east, &[], "udpBlocked", "warning", "`transport: tcp`");
    let (found, code) = check(east, &[]);
    assert!(
        code == 0 && found.iter().any(|one| one["reason"].as_str().is_some_and(|why| why.contains("TCP is in use")))
    );
}

#[test]
fn udp_is_blocked_and_tcp_is_not_wished_for() {
    needs_namespaces!();
    let (_world, sites) = started(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    block_udp(&west.host);
    let link = west.linkspan(&["link", "export"]);
    east.apply("link-west.yaml", &link.replace("  defaultPolicy:", "  transport: quic\n  defaultPolicy:"));
    let reason = named(east, &[], "udpBlocked", "failure", "its gateway answers over TCP, and UDP to it is blocked");
    assert!(!reason.is_empty());
}

#[test]
fn large_packets_vanish_in_a_black_hole() {
    needs_namespaces!();
    let (world, sites) = started(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    // Less than QUIC needs: there is no link, over TCP neither.
    world.narrow("west", 1000);
    east.import(west);
    west.import(east);
    named(east, &[], "mtuBlackHole", "failure", "smaller MTU");
    // Enough for QUIC's smallest packets: the link works.
    world.narrow("west", 1250);
    east.wait_alive("west");
    named(east, &[], "mtuBlackHole", "warning", "smaller MTU");
    world.narrow("west", 1500);
    // The packets that were lost in it are told of for a minute.
    eventually("the black hole is gone", PATIENCE, || {
        check(east, &[]).0.iter().all(|check| check["cause"] != "mtuBlackHole")
    });
}

#[test]
fn the_trust_bundle_is_wrong() {
    needs_namespaces!();
    let (_world, sites) = started(&["east", "west"]);
    let stranger = Authority::new("west.linkspan.internal").link("west");
    sites[0].apply("link-west.yaml", &stranger.replace("addresses: []", "addresses: [\"10.77.0.2:4143\"]"));
    named(&sites[0], &[], "trustBundle", "failure", "the trust bundle in our Link for west is not that of its root");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_has_ended_or_not_begun() {
    let dir = tempfile::Builder::new().prefix("ls").tempdir().expect("folder");
    let west = Authority::new("west.example");
    let mut east = Site::init(Host::local("east", Path::new(dir.path())), &Options::default());
    east.apply("link-west.yaml", &west.link("west"));
    east.start();
    let link = east.bound("gateway", "link").and_then(|at| at.parse().ok()).expect("the link is bound");
    for ((from, until), cause) in [((2020, 2021), "certificateExpired"), ((2090, 2091), "certificateNotYetValid")] {
        // Until the site has read the Link, west is a stranger.
        let start = Instant::now();
        loop {
            let identity = west.leaf_between(&["spiffe://west.example/ns/linkspan/sa/gateway"], from, until);
            drop(dial(link, identity).await);
            let (found, _) = check(&east, &[]);
            if found.iter().any(|one| one["cause"] == cause) {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "not named: {cause}; instead {found:#?}");
        }
        named(&east, &[], cause, "failure", "compare the clocks of both sides");
    }
}

#[test]
fn a_certificate_of_a_site_with_a_wrong_clock_is_not_yet_valid() {
    needs_namespaces!();
    let world = World::new(&["east", "west"]);
    let mut sites: Vec<Site> =
        ["east", "west"].iter().map(|name| Site::init(world.host(name), &Options::default())).collect();
    sites[0].start();
    sites[1].start_ahead(86_400);
    sites[0].import(&sites[1]);
    sites[1].import(&sites[0]);
    named(&sites[0], &[], "certificateNotYetValid", "failure", "compare the clocks of both sides");
}

#[test]
fn the_clocks_differ() {
    needs_namespaces!();
    let world = World::new(&["east", "west"]);
    let mut sites: Vec<Site> =
        ["east", "west"].iter().map(|name| Site::init(world.host(name), &Options::default())).collect();
    sites[0].start();
    sites[1].start_ahead(600);
    link_all(&[&sites[0], &sites[1]]);
    let reason = named(&sites[0], &[], "clockSkew", "warning", "set the one that is wrong");
    assert!(reason.contains("ahead of ours"), "{reason}");
    // Our own has gone back.
    sites[0].host.sh(&format!("touch -d '1 hour' {}/state/ca/root.pem", sites[0].dir().display()));
    named(&sites[0], &[], "clockSkew", "failure", "set the clock");
}

#[test]
fn the_peer_has_no_link() {
    needs_namespaces!();
    let (_world, sites) = started(&["east", "west"]);
    named(&sites[0], &[], "linkMissing", "warning", "linkspan link import");
    sites[0].import(&sites[1]);
    named(&sites[0], &[], "linkMissing", "failure", "on west `linkspan link import us.yaml");
}

#[test]
fn the_catalogues_disagree() {
    needs_namespaces!();
    let world = World::new(&["east", "west"]);
    let mut sites: Vec<Site> =
        ["east", "west"].iter().map(|name| Site::init(world.host(name), &Options::default())).collect();
    sites[0].start();
    sites[1].start_split();
    link_all(&[&sites[0], &sites[1]]);
    well(&sites[0]);
    sites[1].process(0).kill();
    named(&sites[0], &[], "catalogueDisagreement", "failure", "see that the controller of west runs");
}

#[test]
fn a_service_is_not_exported() {
    needs_namespaces!();
    let (_world, sites, _nginx) = serving();
    named(&sites[0], &["shop/api"], "notExported", "failure", "kind: ServiceExport");
}

#[test]
fn a_policy_denies_it() {
    needs_namespaces!();
    let (_world, sites, _nginx) = serving();
    let policy = "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata: {name: nobody, namespace: shop}\n\
                  spec: {services: [web], allow: []}\n";
    sites[1].apply("policy.yaml", policy);
    let reason = named(&sites[0], &[], "policyDenied", "warning", "add an ExportPolicy there that allows them");
    assert!(reason.contains("refused by policy in west"), "{reason}");
}

#[test]
fn no_endpoint_is_ready() {
    needs_namespaces!();
    let (_world, sites, _nginx) = serving();
    let (east, west) = (&sites[0], &sites[1]);
    let web = Service::new("shop", "web").port("http", 8080, Some("http")).endpoints(&[("127.0.0.1", false)]);
    west.apply("web.yaml", &web.yaml());
    named(east, &[], "noReadyEndpoint", "failure", "in west start the service");
    named(west, &[], "noReadyEndpoint", "failure", "or set `ready`");
}

#[test]
fn a_backend_refuses_connections() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let mut server =
        west.host.start("web", servers::interpreter(), &["-m", "http.server", "8080", "--bind", "127.0.0.1"]);
    servers::wait_listening(&west.host, 8080);
    west.apply("web.yaml", &Service::new("shop", "web").port("http", 8080, Some("http")).yaml());
    // By HTTP the gateway says why; of TCP it is known by what it counted.
    west.apply("raw.yaml", &Service::new("shop", "raw").port("tcp", 8080, Some("tcp")).yaml());
    east.wait_resolves("raw-west.shop.svc.cluster.local");
    well(east);
    server.kill();
    named(east, &["shop/web"], "backendRefused", "failure", "in west nothing listens at an endpoint");
    named(east, &["shop/raw"], "backendRefused", "failure", "in west nothing listens at an endpoint");
    named(west, &[], "backendRefused", "failure", "start the service");
}

#[test]
fn dns_does_not_answer() {
    needs_namespaces!();
    let world = World::new(&["east", "west"]);
    let mut sites: Vec<Site> =
        ["east", "west"].iter().map(|name| Site::init(world.host(name), &Options::default())).collect();
    sites[0].start_split();
    sites[1].start();
    link_all(&[&sites[0], &sites[1]]);
    well(&sites[0]);
    sites[0].host.nft("chain i { type filter hook input priority 0; udp dport 53 drop; tcp dport 53 drop; }");
    named(&sites[0], &[], "dnsSilent", "failure", "look for a local firewall");
    sites[0].host.nft_clear();
    well(&sites[0]);
    // A controller that hangs answers nothing at all.
    sites[0].process(0).signal("STOP");
    named(&sites[0], &[], "dnsSilent", "failure", "see that the controller runs");
    sites[0].process(0).signal("CONT");
}

#[test]
fn a_port_is_taken() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    // At every address of this machine: those of mirrors too.
    let _taken = east.host.start("taken", servers::interpreter(), &["-m", "http.server", "8080", "--bind", "0.0.0.0"]);
    servers::wait_listening(&east.host, 8080);
    let _nginx = Nginx::start(&west.host, 8080);
    west.apply("web.yaml", &Service::new("shop", "web").port("http", 8080, Some("http")).yaml());
    let reason = named(east, &[], "portTaken", "failure", "listen on one address of this machine");
    assert!(reason.contains("python"), "{reason}");
}
