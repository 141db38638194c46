//! Traffic shares across clusters: within the binomial bounds, zero exactly zero, changed under load without an error.

use linkspan_tests::load::Load;
use linkspan_tests::manifests::{Service, traffic_policy};
use linkspan_tests::process::eventually;
use linkspan_tests::servers::{self, Nginx, interpreter, script_path};
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

/// Many requests on one HTTP/2 connection: each is placed for itself.
#[test]
fn requests_of_one_http2_connection_are_shared_by_weight() {
    needs_namespaces!();
    let (_world, sites, servers) = three();
    for site in &sites {
        let service =
            Service::new("shop", "web").port("http", 8080, Some("http")).port("h2c", 8081, Some("kubernetes.io/h2c"));
        site.apply("web.yaml", &service.yaml());
    }
    let cases: [&[(&str, u32)]; 3] =
        [&[("east", 90), ("west", 10)], &[("east", 33), ("west", 33), ("north", 34)], &[("west", 100), ("east", 0)]];
    for weights in cases {
        set(&sites[0], weights);
        eventually("the HTTP/2 port is served", PATIENCE, || {
            sites[0].host.try_sh(&format!("curl -fsS --http2-prior-knowledge -m 5 http://{WEB}:8081/")).0
        });
        let before: Vec<usize> = servers.iter().map(Nginx::requests).collect();
        let text = sites[0].host.sh(&format!("h2load -n {REQUESTS} -c 1 -m 10 http://{WEB}:8081/"));
        assert!(text.contains(&format!("{REQUESTS} succeeded, 0 failed")), "{text}");
        let sum: u32 = weights.iter().map(|(_, w)| w).sum();
        for ((site, server), before) in sites.iter().zip(&servers).zip(before) {
            let count = server.requests() - before;
            let weight = weights.iter().find(|(c, _)| *c == site.name()).map_or(0, |(_, w)| *w);
            if weight == 0 {
                assert_eq!(count, 0, "{weights:?}: {} has weight 0", site.name());
            } else {
                assert_share(count, REQUESTS, weight, sum, &format!("{weights:?} {} over HTTP/2", site.name()));
            }
        }
    }
}

const ECHO: &str = "echo.shop.svc.clusterset.local";

/// East and west with a gRPC server and a TCP server that say where they are, called by the clusterset name.
fn echo_pair() -> (World, Vec<Site>, Vec<linkspan_tests::process::Process>) {
    let (world, sites) = linked(&["east", "west"]);
    let mut running = Vec::new();
    for site in &sites {
        running.push(servers::python(&site.host, "grpc_server.py", 50051));
        running.push(servers::python(&site.host, "where_server.py", 7000));
        let service = Service::new("shop", "echo").port("grpc", 50051, Some("grpc")).port("tcp", 7000, Some("tcp"));
        site.apply("echo.yaml", &service.yaml());
    }
    sites[0].wait_resolves(ECHO);
    (world, sites, running)
}

/// Where `count` gRPC calls over one channel arrive.
fn calls(site: &Site, count: usize) -> std::collections::BTreeMap<String, usize> {
    let script = format!(
        "import grpc,collections,json; u=grpc.insecure_channel('{ECHO}:50051').unary_unary('/test.Echo/Unary'); \
         print(json.dumps(collections.Counter(u(b'where',timeout=10).decode() for _ in range({count}))))"
    );
    let (_, text) = site.host.try_sh(&format!("{} -c \"{script}\"", interpreter()));
    serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_default()
}

fn echo_weights(site: &Site, east: u32, west: u32) {
    site.apply("policy.yaml", &traffic_policy("shop", "echo", &[(&[("east", east), ("west", west)], 1)]));
    let wanted: Vec<&str> = [("east", east), ("west", west)].iter().filter(|(_, w)| *w > 0).map(|(c, _)| *c).collect();
    eventually("the weights are in force", PATIENCE, || {
        calls(site, 60).keys().map(String::as_str).eq(wanted.iter().copied())
    });
}

#[test]
fn grpc_calls_of_one_channel_are_shared_by_weight() {
    needs_namespaces!();
    let (_world, sites, _running) = echo_pair();
    for (east, west) in [(50, 50), (80, 20)] {
        echo_weights(&sites[0], east, west);
        let seen = calls(&sites[0], 3_000);
        assert_eq!(seen.values().sum::<usize>(), 3_000, "{seen:?}");
        assert_share(seen["east"], 3_000, east, 100, "east over gRPC");
        assert_share(seen["west"], 3_000, west, 100, "west over gRPC");
    }
}

#[test]
fn open_connections_and_streams_survive_a_change_of_weights() {
    needs_namespaces!();
    let (_world, sites, _running) = echo_pair();
    let east = &sites[0];
    // The first connections lead across the link.
    echo_weights(east, 0, 100);
    let gate = east.host.dir().join("gate");
    let client = east.host.start(
        "long",
        interpreter(),
        &[&script_path("long_lived_client.py"), ECHO, "7000", "50051", &gate.display().to_string()],
    );
    eventually("both are open", PATIENCE, || client.output().contains("ready"));
    echo_weights(east, 100, 0);
    std::fs::write(&gate, "").expect("the gate opens");
    eventually("both were used again", PATIENCE, || client.output().contains("fresh"));
    let text = client.output();
    let seen: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or_default()).expect("JSON");
    assert_eq!(seen["before"], serde_json::json!({"tcp": "west", "stream": "west", "unary": "west"}));
    assert_eq!(seen["after"], serde_json::json!({"stream": "west", "unary": "east"}), "streams stay, new calls move");
    assert_eq!(seen["fresh"], serde_json::json!({"tcp": "east", "stream": "east"}));
}
