//! Figures are true while a load runs, on a path and a backend whose own figures are known.

use std::time::{Duration, Instant};

use linkspan_tests::load::Load;
use linkspan_tests::manifests::Service;
use linkspan_tests::process::{eventually, program};
use linkspan_tests::servers::{self, Nginx};
use linkspan_tests::site::{Options, Site, link_all};
use linkspan_tests::world::World;
use serde_json::Value;

use super::kit::{linked, needs_namespaces};

/// One way; the round trip is twice that.
const DELAY_MILLIS: f64 = 20.0;

/// One packet of so many is dropped, each way.
const DROP_EVERY: f64 = 25.0;

/// What `slow_server.py` takes for an answer.
const BACKEND_MILLIS: f64 = 50.0;

/// Neighbouring buckets of the gateway's histograms differ by up to a fifth.
const BUCKET: f64 = 1.2;

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("no {key} in {row}"))
}

fn row(site: &Site, direction: &str, window: &str) -> Value {
    let stat = site.json(&["stat", "--window", window]);
    let rows = stat["rows"].as_array().expect("rows");
    let found = rows.iter().find(|row| row["service"] == "shop/web" && row["direction"] == direction);
    found.unwrap_or_else(|| panic!("no {direction} row for shop/web on {}: {stat:#}", site.name())).clone()
}

/// East dials west through a relay that adds 40 ms to each round trip and loses 4 % of the packets each way.
#[test]
fn gateways_and_stat_are_true_while_a_load_runs() {
    needs_namespaces!();
    let world = World::new(&["east", "west"]);
    let mut east = Site::init(world.host("east"), &Options { hidden: true, ..Options::default() });
    let relay = Some("10.77.0.2:5143".to_owned());
    let mut west = Site::init(world.host("west"), &Options { advertise: relay, ..Options::default() });
    let _relay = west.host.start(
        "relay",
        program("linkspan-relay"),
        &["--listen", "10.77.0.2:5143", "--to", "10.77.0.2:4143", "--delay-millis", "20", "--drop-every", "25"],
    );
    east.start();
    west.start();
    link_all(&[&east, &west]);
    let _slow = servers::python(&west.host, "slow_server.py", 8080);
    for name in ["web", "api", "mail"] {
        west.apply(&format!("{name}.yaml"), &Service::new("shop", name).port("http", 8080, Some("http")).yaml());
    }
    east.apply("own.yaml", &Service::new("shop", "own").port("http", 8080, Some("http")).yaml());
    let name = "web-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    east.wait_resolves("mail-west.shop.svc.cluster.local");
    let start = Instant::now();
    let load = Load::start(&east.host, &format!("http://{name}:8080/"), 60, 25);
    eventually("the load runs", Duration::from_secs(60), || start.elapsed().as_secs() >= 20);

    let gateway = east.gateway("west").expect("a row");
    let (outbound, inbound) = (row(&east, "outbound", "10s"), row(&west, "inbound", "10s"));
    let table = east.linkspan(&["gateways"]);
    let report = load.finish();
    assert_eq!(report.failures.len(), 0, "{:?}", report.failures.first());

    // The link: its round trip, its loss, who is there.
    let rtt = number(&gateway, "rttMicros") / 1e3;
    assert!((2.0 * DELAY_MILLIS..2.0 * DELAY_MILLIS + 25.0).contains(&rtt), "RTT {rtt} ms: {gateway}");
    // A probe is answered in one round trip; one that was lost takes longer.
    let latency = number(&gateway, "probeMicros") / 1e3;
    assert!((2.0 * DELAY_MILLIS..1000.0).contains(&latency), "LATENCY {latency} ms: {gateway}");
    let loss = number(&gateway, "loss");
    assert!((0.5 / DROP_EVERY..1.5 / DROP_EVERY).contains(&loss), "LOSS {loss}: {gateway}");
    assert_eq!(gateway["numSvc"], 3, "{gateway}");
    assert_eq!(west.gateway("east").expect("a row")["numSvc"], 1);
    assert_eq!(gateway["version"], env!("CARGO_PKG_VERSION"), "{gateway}");
    assert_eq!(gateway["remote"], "10.77.0.2:5143", "{gateway}");
    let line = table.lines().find(|line| line.starts_with("west")).expect("a line");
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!((cells[1], cells[2], cells[6]), ("True", "3", env!("CARGO_PKG_VERSION")), "{table}");

    // The service: outbound sees path and backend, inbound the backend alone.
    for row in [&outbound, &inbound] {
        assert!((number(row, "successRate") - 1.0).abs() < 1e-9, "{row}");
        assert!((54.0..=66.0).contains(&number(row, "rps")), "60 requests a second: {row}");
        let [p50, p95, p99] = ["p50Millis", "p95Millis", "p99Millis"].map(|key| number(row, key));
        assert!(p50 <= p95 && p95 <= p99, "{row}");
    }
    let least = BACKEND_MILLIS + 2.0 * DELAY_MILLIS;
    let seen = report.percentiles;
    for (key, seen) in ["p50Millis", "p95Millis"].into_iter().zip(seen) {
        let said = number(&outbound, key);
        assert!(said >= least / BUCKET, "{key}: said {said}, no answer is faster than {least}");
        assert!(said >= seen * 0.6 && said <= seen * 1.5, "{key}: said {said}, the client saw {seen}");
    }
    let p50 = number(&inbound, "p50Millis");
    assert!((BACKEND_MILLIS / BUCKET..least).contains(&p50), "the backend takes {BACKEND_MILLIS} ms: {inbound}");
}

/// The value of the one sample of `family` whose labels hold all of `labels`.
fn sample(page: &str, family: &str, labels: &[&str]) -> Option<f64> {
    let mut found = page.lines().filter(|line| {
        line.strip_prefix(family).is_some_and(|rest| rest.starts_with('{')) && labels.iter().all(|l| line.contains(l))
    });
    let first = found.next()?;
    assert_eq!(found.next(), None, "more than one sample of {family} {labels:?}:\n{page}");
    first.rsplit(' ').next()?.parse().ok()
}

#[test]
fn golden_metrics_count_exactly_what_happened() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _nginx = Nginx::start(&west.host, 8080);
    let _echo = servers::python(&west.host, "where_server.py", 7000);
    west.apply(
        "web.yaml",
        &Service::new("shop", "web")
            .port("http", 8080, Some("http"))
            .port("tcp", 7000, Some("tcp"))
            .port("closed", 7001, Some("tcp"))
            .port("dead", 7002, Some("http"))
            .yaml(),
    );
    let name = "web-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    eventually("the way is open", Duration::from_secs(20), || {
        east.host.try_sh(&format!("curl -fsS -m 2 http://{name}:8080/empty")).0
    });
    let pages = || [east, west].map(|site| site.host.sh("curl -fsS http://127.0.0.1:4191/metrics"));
    let before = pages();
    // 30 answers, 7 that are not there, 5 whose backend is dead; 4 TCP connections of 6 bytes each way, 3 refused.
    east.host.sh(&format!("for i in $(seq 30); do echo http://{name}:8080/; done | xargs curl -fsS"));
    east.host.sh(&format!("for i in $(seq 7); do curl -sS -o /dev/null http://{name}:8080/files/none; done"));
    east.host.sh(&format!("for i in $(seq 5); do curl -sS -o /dev/null http://{name}:7002/; done"));
    let tcp = format!(
        "import socket\nfor n in range(4):\n c=socket.create_connection(('{name}',7000)); c.sendall(b'hello\\n'); \
         c.shutdown(socket.SHUT_WR); d=b''\n while b:=c.recv(99): d+=b\n assert d==b'west\\nhello\\n', d\n\
         for n in range(3):\n c=socket.create_connection(('{name}',7001)); c.settimeout(5)\n try:\n  c.recv(1)\n  raise SystemExit('not refused')\n\
         \x20except ConnectionResetError:\n  pass"
    );
    east.host.sh(&format!("python3 -c \"{tcp}\""));

    let expected: [(&str, u16, &[&str], f64); 12] = [
        ("request_total", 8080, &[], 37.0),
        ("response_total", 8080, &["classification=\"success\"", "status_code=\"2xx\"", "outcome=\"ok\""], 30.0),
        ("response_total", 8080, &["classification=\"success\"", "status_code=\"4xx\"", "outcome=\"ok\""], 7.0),
        ("response_latency_ms_count", 8080, &[], 37.0),
        ("request_total", 7002, &[], 5.0),
        ("response_total", 7002, &["classification=\"failure\"", "outcome=\"connect_refused\""], 5.0),
        ("tcp_open_total", 7000, &[], 4.0),
        ("tcp_close_total", 7000, &["classification=\"success\"", "outcome=\"ok\""], 4.0),
        ("tcp_read_bytes_total", 7000, &[], 24.0),
        ("tcp_write_bytes_total", 7000, &[], 44.0),
        ("tcp_open_total", 7001, &[], 3.0),
        ("tcp_close_total", 7001, &["classification=\"failure\"", "outcome=\"connect_refused\""], 3.0),
    ];
    for (index, (site, direction, peer)) in
        [(east, "outbound", "west"), (west, "inbound", "east")].into_iter().enumerate()
    {
        let mut wrong = Vec::new();
        // A close is counted when both ends are done, a moment after the client has seen its end.
        eventually_last(Duration::from_secs(5), || {
            let page = &pages()[index];
            wrong = expected
                .iter()
                .filter_map(|(family, port, more, count)| {
                    let (direction, peer) = (format!("direction=\"{direction}\""), format!("peer=\"{peer}\""));
                    let port = format!("dst_port=\"{port}\"");
                    let mut labels = vec![&*direction, &*peer, &*port, "dst_namespace=\"shop\"", "dst_service=\"web\""];
                    labels.extend(*more);
                    let now = sample(page, family, &labels).unwrap_or_default();
                    let was = sample(&before[index], family, &labels).unwrap_or_default();
                    (now - was - count)
                        .abs()
                        .gt(&0.1)
                        .then(|| format!("{family} {labels:?}: {}, not {count}", now - was))
                })
                .collect();
            wrong.is_empty()
        });
        assert!(wrong.is_empty(), "{}:\n{}\n{}", site.name(), wrong.join("\n"), pages()[index]);
    }
    // No label value that nobody configured, whatever clients call.
    east.host.try_sh(&format!("curl -sS -m 5 -H 'Host: made-up.example' http://{name}:8080/"));
    assert!(pages().iter().all(|page| !page.contains("made-up")));
}

/// Waits until `condition` holds or the time is over; the caller says what was wrong.
fn eventually_last(timeout: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() && start.elapsed() < timeout {
        std::thread::sleep(Duration::from_millis(50));
    }
}
