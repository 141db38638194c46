//! F-03: a gateway that is told to stop, under load, loses nothing and is gone in time.

use std::time::{Duration, Instant};

use linkspan_tests::load::{Load, Report};
use linkspan_tests::manifests::{Service, traffic_policy};
use linkspan_tests::process::{Process, eventually};
use linkspan_tests::servers::{self, Nginx};
use linkspan_tests::site::{Options, PATIENCE, Site, link_all};
use linkspan_tests::world::World;

use super::kit::needs_namespaces;

const WEB: &str = "web.shop.svc.clusterset.local";

/// `gateway.drainSeconds` is 10; the rest is for the end of the process itself.
const GONE: Duration = Duration::from_secs(12);

/// Both sites with a backend that takes 50 ms for each answer, so that requests are always under way, and one that speaks
/// HTTP/2; `split` as two processes.
fn pair(split: usize) -> (World, Vec<Site>, Vec<(Process, Nginx)>) {
    let world = World::new(&["east", "west"]);
    let mut sites: Vec<Site> =
        ["east", "west"].iter().map(|name| Site::init(world.host(name), &Options::default())).collect();
    for (index, site) in sites.iter_mut().enumerate() {
        if index == split { site.start_split() } else { site.start() }
    }
    link_all(&sites.iter().collect::<Vec<_>>());
    let servers = sites
        .iter()
        .map(|site| (servers::python(&site.host, "slow_server.py", 8080), Nginx::start(&site.host, 8090)))
        .collect();
    for site in &sites {
        let service = Service::new("shop", "web").port("http", 8080, Some("http"));
        site.apply("web.yaml", &service.port("h2c", 8091, Some("kubernetes.io/h2c")).yaml());
    }
    sites[0].apply("policy.yaml", &traffic_policy("shop", "web", &[(&[("east", 50), ("west", 50)], 1)]));
    sites[0].wait_resolves(WEB);
    eventually("east and west both answer", PATIENCE, || {
        let line = format!("for i in $(seq 20); do echo http://{WEB}:8080/; done | xargs curl -sS -m 5");
        let (_, text) = sites[0].host.try_sh(&line);
        text.contains("east") && text.contains("west")
    });
    (world, sites, servers)
}

/// Terminates the gateway of the site at `index` after three seconds of load of both HTTP versions.
fn terminate(sites: &mut [Site], index: usize) -> (Vec<Report>, u64) {
    let start = Instant::now();
    let loads = [
        Load::start(&sites[0].host, &format!("http://{WEB}:8080/"), 100, 12),
        Load::start_http2(&sites[0].host, &format!("http://{WEB}:8091/"), 100, 12),
    ];
    eventually("the load runs", Duration::from_secs(60), || start.elapsed().as_secs() >= 3);
    let gateway = sites[index].process(1);
    gateway.signal("TERM");
    let at = u64::try_from(start.elapsed().as_millis()).expect("small");
    let told = Instant::now();
    let status = gateway.wait(GONE);
    assert!(status.success(), "{status}: {}", gateway.output());
    eprintln!("gone after {:?}", told.elapsed());
    (loads.map(Load::finish).into(), at)
}

#[test]
fn f03_an_ingress_gateway_that_stops_costs_no_request() {
    needs_namespaces!();
    let (_world, mut sites, _servers) = pair(1);
    let (reports, at) = terminate(&mut sites, 1);
    for (version, report) in ["HTTP/1.1", "HTTP/2"].iter().zip(&reports) {
        assert_eq!(report.failures.len(), 0, "{version}: {:?}", report.failures.first());
        assert_eq!(report.good, report.requests);
        let before = report.answers.iter().filter(|(when, who)| *when < at && who == "west").count();
        assert!(before > 80, "{version}: west had its share: {before}");
        let late = report.answers.iter().filter(|(when, who)| *when > at + 1_000 && who == "west").count();
        assert_eq!(late, 0, "{version}: still west a second after it began to stop");
    }
}

#[test]
fn f03_an_egress_gateway_that_stops_answers_all_that_it_took() {
    needs_namespaces!();
    let (_world, mut sites, _servers) = pair(0);
    let (reports, at) = terminate(&mut sites, 0);
    for (version, report) in ["HTTP/1.1", "HTTP/2"].iter().zip(&reports) {
        // Nobody listens there any more: that is all that a client may see, and nothing that it had sent is lost.
        let lost: Vec<_> = report.failures.iter().filter(|failure| !failure.what.starts_with("connect: ")).collect();
        assert!(lost.is_empty(), "{version}: {} lost, the first {:?}", lost.len(), lost[0]);
        assert!(report.failures.iter().all(|failure| failure.at_millis + 500 > at), "{:?}", report.failures[0]);
    }
}
