//! Tiers: the next one takes over when too little of the first is healthy, and gives back when it is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use linkspan_tests::load::Load;
use linkspan_tests::manifests::{Service, traffic_policy};
use linkspan_tests::process::eventually;
use linkspan_tests::servers::Nginx;
use linkspan_tests::site::{PATIENCE, Site};
use linkspan_tests::world::World;

use super::kit::{linked, needs_namespaces};

const WEB: &str = "web.shop.svc.clusterset.local";

fn web(site: &Site, ready: bool) {
    let service = Service::new("shop", "web").port("http", 8080, Some("http"));
    site.apply("web.yaml", &service.endpoints(&[("127.0.0.1", ready)]).yaml());
}

fn three() -> (World, Vec<Site>, Vec<Nginx>) {
    let (world, sites) = linked(&["east", "west", "north"]);
    let servers = sites.iter().map(|site| Nginx::start(&site.host, 8080)).collect();
    for site in &sites {
        web(site, true);
    }
    sites[0].wait_resolves(WEB);
    (world, sites, servers)
}

/// Who answers a hundred requests of the first site.
fn answers(east: &Site) -> BTreeMap<String, usize> {
    let (_, text) =
        east.host.try_sh(&format!("for i in $(seq 100); do echo http://{WEB}:8080/; done | xargs curl -sS -m 5"));
    let mut seen = BTreeMap::new();
    for line in text.lines() {
        *seen.entry(line.to_owned()).or_default() += 1;
    }
    seen
}

fn wait_only(east: &Site, wanted: &[&str]) {
    let mut seen = BTreeMap::new();
    let start = Instant::now();
    while !(seen.keys().map(String::as_str).eq(wanted.iter().copied()) && seen.values().sum::<usize>() == 100) {
        assert!(start.elapsed() < PATIENCE, "{wanted:?} should answer, and nobody else: {seen:?}");
        seen = answers(east);
    }
}

#[test]
fn the_second_tier_takes_over_from_a_killed_one_and_gives_back() {
    needs_namespaces!();
    let (_world, mut sites, _servers) = three();
    sites[0].apply("policy.yaml", &traffic_policy("shop", "web", &[(&[("west", 1)], 50), (&[("north", 1)], 1)]));
    wait_only(&sites[0], &["west"]);
    let start = Instant::now();
    let load = Load::start(&sites[0].host, &format!("http://{WEB}:8080/"), 100, 25);
    let millis = |start: Instant| u64::try_from(start.elapsed().as_millis()).expect("small");
    let wait_until = |at: u64| eventually("the load runs", Duration::from_secs(60), || start.elapsed().as_secs() >= at);
    wait_until(3);
    sites[1].kill();
    let killed = millis(start);
    wait_until(12);
    sites[1].start();
    let back = millis(start);
    let report = load.finish();
    let wrong: Vec<_> =
        report.failures.iter().filter(|f| !(killed - 500..killed + 4_000).contains(&f.at_millis)).collect();
    assert!(wrong.is_empty(), "failures outside of the four seconds after the kill at {killed}: {:?}", wrong[0]);
    let who = |from: u64, to: u64| {
        let mut who: Vec<&str> =
            report.answers.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, cluster)| &**cluster).collect();
        who.sort_unstable();
        who.dedup();
        who
    };
    assert_eq!(who(0, killed - 500), ["west"]);
    assert_eq!(who(killed + 4_000, 12_000), ["north"]);
    assert_eq!(who(back + 5_000, 25_000), ["west"], "west is ready at {back} ms");
}

#[test]
fn a_tier_serves_down_to_its_healthy_percentage_and_not_below() {
    needs_namespaces!();
    let (_world, sites, _servers) = three();
    let east = &sites[0];
    let tiers = |minimum: u8| {
        let first: (&[(&str, u32)], u8) = (&[("north", 30), ("west", 70)], minimum);
        east.apply("policy.yaml", &traffic_policy("shop", "web", &[first, (&[("east", 1)], 1)]));
    };
    tiers(50);
    wait_only(east, &["north", "west"]);
    // Without west 30 of 100 are healthy: below 50, so the next tier has all of it, north none.
    web(&sites[1], false);
    wait_only(east, &["east"]);
    // At 30 it is enough again, and north has all of it.
    tiers(30);
    wait_only(east, &["north"]);
    tiers(31);
    wait_only(east, &["east"]);
    web(&sites[1], true);
    wait_only(east, &["north", "west"]);
}
