//! Traffic shares across clusters: within the binomial bounds, zero exactly zero, changed under load without an error.

use linkspan_tests::load::Load;
use linkspan_tests::manifests::{Service, traffic_policy};
use linkspan_tests::process::eventually;
use linkspan_tests::servers::Nginx;
use linkspan_tests::site::{PATIENCE, Site};
use linkspan_tests::world::World;

use super::kit::{linked, needs_namespaces};

const WEB: &str = "web.shop.svc.clusterset.local";
const REQUESTS: usize = 10_000;

fn three() -> (World, Vec<Site>, Vec<Nginx>) {
    let (world, sites) = linked(&["east", "west", "north"]);
    let servers: Vec<Nginx> = sites.iter().map(|site| Nginx::start(&site.host, 8080)).collect();
    for site in &sites {
        site.apply("web.yaml", &Service::new("shop", "web").port("http", 8080, Some("http")).yaml());
    }
    sites[0].wait_resolves(WEB);
    (world, sites, servers)
}

/// Sets the weights on the first site and waits until it uses them and sees all clusters ready.
fn set(site: &Site, weights: &[(&str, u32)]) {
    site.apply("policy.yaml", &traffic_policy("shop", "web", &[(weights, 1)]));
    let wanted: Vec<&str> = weights.iter().filter(|(_, w)| *w > 0).map(|(c, _)| *c).collect();
    eventually("all clusters of the policy answer, and no other", PATIENCE, || {
        let (_, text) = site.host.try_sh(&format!(
            "for i in $(seq 150); do echo http://{WEB}:8080/; done | xargs curl -sS -m 5 -H 'Connection: close'"
        ));
        let mut seen: Vec<&str> = text.lines().collect();
        seen.sort_unstable();
        seen.dedup();
        let mut wanted = wanted.clone();
        wanted.sort_unstable();
        seen == wanted
    });
}

/// 99.9 % bounds of a binomial share, by the normal approximation (z = 3.29) with continuity correction.
fn assert_share(count: usize, total: usize, weight: u32, sum: u32, what: &str) {
    let p = f64::from(weight) / f64::from(sum);
    let (n, got) = (total as f64, count as f64);
    let bound = 3.29 * (n * p * (1.0 - p)).sqrt() + 0.5;
    assert!((got - n * p).abs() <= bound, "{what}: {count} of {total}, expected {} +- {bound:.1}", n * p);
}

#[test]
fn shares_are_within_the_binomial_bounds() {
    needs_namespaces!();
    let (_world, sites, servers) = three();
    let cases: [&[(&str, u32)]; 5] = [
        &[("east", 90), ("west", 10)],
        &[("east", 99), ("west", 1)],
        &[("east", 50), ("west", 50)],
        &[("east", 33), ("west", 33), ("north", 34)],
        &[("west", 100), ("north", 0)],
    ];
    for weights in cases {
        set(&sites[0], weights);
        let before: Vec<usize> = servers.iter().map(Nginx::requests).collect();
        let text = sites[0].host.sh(&format!("h2load --h1 -n {REQUESTS} -c 10 http://{WEB}:8080/"));
        assert!(text.contains(&format!("{REQUESTS} succeeded, 0 failed")), "{text}");
        let sum: u32 = weights.iter().map(|(_, w)| w).sum();
        for ((site, server), before) in sites.iter().zip(&servers).zip(before) {
            let count = server.requests() - before;
            let weight = weights.iter().find(|(c, _)| *c == site.name()).map_or(0, |(_, w)| *w);
            if weight == 0 {
                assert_eq!(count, 0, "{weights:?}: {} has weight 0", site.name());
            } else {
                assert_share(count, REQUESTS, weight, sum, &format!("{weights:?} {}", site.name()));
            }
        }
    }
}

#[test]
fn a_change_under_load_takes_effect_at_once_without_an_error() {
    needs_namespaces!();
    let (_world, sites, _servers) = three();
    set(&sites[0], &[("east", 100), ("west", 0)]);
    let load = Load::start(&sites[0].host, &format!("http://{WEB}:8080/"), 300, 12);
    let start = std::time::Instant::now();
    // Let some requests go by before the change.
    eventually("three seconds of load", PATIENCE, || start.elapsed().as_secs() >= 3);
    sites[0].apply("policy.yaml", &traffic_policy("shop", "web", &[(&[("east", 0), ("west", 100)], 1)]));
    let changed = start.elapsed();
    let report = load.finish();
    assert_eq!(report.failures.len(), 0, "{:?}", report.failures.first());
    let after = u64::try_from(changed.as_millis()).expect("small") + 1_000;
    let late: Vec<_> = report.answers.iter().filter(|(at, cluster)| *at > after && cluster != "west").collect();
    assert!(late.is_empty(), "still east {late:?} a second after the change at {changed:?}");
    assert!(report.by_cluster["east"] > 500 && report.by_cluster["west"] > 500, "{:?}", report.by_cluster);
}

#[test]
fn tcp_connections_are_shared_by_weight_too() {
    needs_namespaces!();
    let (_world, sites, servers) = three();
    // The same nginx port, declared opaque: shares count connections.
    for site in &sites {
        site.apply("web.yaml", &Service::new("shop", "web").port("http", 8080, Some("tcp")).yaml());
    }
    set(&sites[0], &[("east", 50), ("west", 50)]);
    let before: Vec<usize> = servers.iter().map(Nginx::requests).collect();
    sites[0]
        .host
        .sh(&format!("for i in $(seq 400); do echo http://{WEB}:8080/; done | xargs -n 1 -P 8 curl -fsS -o /dev/null"));
    for (index, name) in ["east", "west"].iter().enumerate() {
        assert_share(servers[index].requests() - before[index], 400, 50, 100, name);
    }
}
