//! The link where UDP is blocked: over TCP, from the start and in mid-life, and back (SECURITY-BAR's F-32).

use std::time::{Duration, Instant};

use linkspan_tests::load::Load;
use linkspan_tests::manifests::Service;
use linkspan_tests::process::eventually;
use linkspan_tests::servers::Nginx;
use linkspan_tests::site::{PATIENCE, Site};
use linkspan_tests::world::Host;

use super::kit::{linked, needs_namespaces, started};

const WEB: &str = "web-west.shop.svc.cluster.local";

/// What a command of ours takes to run and to be run again, on a busy machine.
const COMMANDS: Duration = Duration::from_millis(800);

/// A firewall in front of this host that lets no UDP of links pass, and all TCP.
fn block_udp(host: &Host) {
    host.nft(
        "chain i { type filter hook input priority 0; udp dport 4143 drop; udp sport 4143 drop; }\n chain o { type filter hook output priority 0; udp sport 4143 drop; udp dport 4143 drop; }",
    );
}

/// What carries the link, as the command line says.
fn transport(site: &Site, peer: &str) -> (String, String) {
    let link = site.gateway(peer).expect("a link");
    let text = |key: &str| link[key].as_str().unwrap_or_default().to_owned();
    (text("transport"), text("transportReason"))
}

fn serve_web(east: &Site, west: &Site) -> Nginx {
    let nginx = Nginx::start(&west.host, 8080);
    west.apply("web.yaml", &Service::new("shop", "web").port("http", 8080, Some("http")).yaml());
    east.wait_resolves(WEB);
    eventually("west answers", PATIENCE, || {
        east.host.try_sh(&format!("curl -fsS -m 5 http://{WEB}:8080/")).1 == "west\n"
    });
    nginx
}

#[test]
fn f_32_where_udp_is_blocked_from_the_start_the_link_is_up_over_tcp_in_three_seconds() {
    needs_namespaces!();
    let (_world, sites) = started(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    block_udp(&west.host);
    west.import(east);
    let start = Instant::now();
    east.import(west);
    east.wait_alive("west");
    let took = start.elapsed();
    assert!(took <= Duration::from_secs(3) + COMMANDS, "{took:?}");
    assert_eq!(transport(east, "west"), ("tcp".to_owned(), "UdpBlocked".to_owned()));
    let _nginx = serve_web(east, west);

    let (_, check) = east.try_linkspan(&["check"]);
    assert!(check.contains("UDP blocked, TCP is in use") && check.contains("transport: tcp"), "{check}");
    let page = east.linkspan(&["gateways"]);
    assert!(page.contains("TCP is in use"), "{page}");

    west.host.nft_clear();
    eventually("QUIC is back", Duration::from_secs(30), || transport(east, "west").0 == "quic");
    assert_eq!(transport(east, "west").1, "UdpRestored");
}

#[test]
fn f_32_udp_that_is_blocked_under_load_moves_the_link_to_tcp_in_six_seconds_and_back_in_thirty() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _nginx = serve_web(east, west);
    assert_eq!(transport(east, "west").0, "quic");

    let start = Instant::now();
    let load = Load::start(&east.host, &format!("http://{WEB}:8080/"), 100, 50);
    let wait_until = |at: u64| eventually("the load runs", Duration::from_secs(60), || start.elapsed().as_secs() >= at);
    let millis = || u64::try_from(start.elapsed().as_millis()).expect("small");
    wait_until(4);
    block_udp(&west.host);
    let blocked = millis();
    eventually("TCP carries the link", Duration::from_secs(6) + COMMANDS, || transport(east, "west").0 == "tcp");
    assert_eq!(transport(east, "west").1, "UdpSilent");
    wait_until(15);
    west.host.nft_clear();
    let unblocked = Instant::now();
    eventually("QUIC is back", Duration::from_secs(30), || transport(east, "west").0 == "quic");
    let back = unblocked.elapsed();
    let report = load.finish();

    // What was sent into the dark may be lost, and nothing before or after; the way back costs nothing.
    let lost: Vec<_> =
        report.failures.iter().filter(|f| f.at_millis + 1_000 < blocked || f.at_millis > blocked + 6_000).collect();
    assert!(lost.is_empty(), "{} failures besides, the first {:?}; blocked at {blocked}", lost.len(), lost[0]);
    let first = report.answers.iter().find(|(at, cluster)| *at > blocked + 100 && cluster == "west");
    assert!(first.is_some_and(|(at, _)| at - blocked <= 6_000), "answers again at {first:?}, blocked at {blocked}");
    eprintln!(
        "blocked at {blocked} ms: {} failures, answers from {:?} ms on; QUIC is back after {back:?}",
        report.failures.len(),
        first.map(|(at, _)| at)
    );
}

#[test]
fn a_link_that_names_tcp_uses_it_although_udp_passes() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _nginx = serve_web(east, west);
    for (site, peer) in [(east, "west"), (west, "east")] {
        let file = format!("{}/manifests/link-{peer}.yaml", site.dir().display());
        let yaml = site.host.sh(&format!("cat {file}"));
        let changed = yaml.replace("  defaultPolicy:", "  transport: tcp\n  defaultPolicy:");
        assert_ne!(changed, yaml, "{yaml}");
        site.apply(&format!("link-{peer}.yaml"), &changed);
    }
    eventually("TCP carries the link", PATIENCE, || {
        [(east, "west"), (west, "east")].iter().all(|(site, peer)| transport(site, peer).0 == "tcp")
    });
    assert_eq!(transport(east, "west").1, "Configured");
    assert_eq!(east.host.sh(&format!("curl -fsS -m 5 http://{WEB}:8080/")), "west\n");
}
