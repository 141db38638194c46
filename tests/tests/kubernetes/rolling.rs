//! Rolling restarts under load: no failed request.

use std::time::{Duration, Instant};

use linkspan_tests::bed::linkspan::Component;
use linkspan_tests::bed::{PATIENCE, alone};
use linkspan_tests::load::{Load, Report};
use linkspan_tests::process::{Process, eventually};
use linkspan_tests::servers::{self, Nginx};
use linkspan_tests::world::long;
use serde_json::{Value, json};

use super::kit::{Shop, needs_kubernetes, service_export, tcp};

/// Requests a second of HTTP/1.1, of HTTP/2 and of gRPC. The acceptance figure, 500 in all, is for the long form: the machine
/// that runs the daily one has two cores for two clusters.
fn rates() -> [u32; 3] {
    if long() { [200, 200, 100] } else { [60, 60, 20] }
}

/// Connections that last.
fn talkers() -> usize {
    if long() { 20 } else { 4 }
}

fn assert_clean(report: &Report, kind: &str) {
    eprintln!(
        "{kind}: {} requests ({} sent again after GOAWAY), p50/p95/p99 {:?} ms",
        report.requests, report.resent, report.percentiles
    );
    let failures: Vec<_> = report.failures.iter().take(5).collect();
    assert!(failures.is_empty(), "{kind}: {} of {} failed: {failures:?}", report.failures.len(), report.requests);
}

/// `web` in b: nginx on port 80 as HTTP/1.1 and on port 81 as HTTP/2 with prior knowledge, gRPC on port 82, an echo on 9000.
fn web(shop: &Shop<'_>) -> (Nginx, [Process; 2]) {
    let namespace = &shop.namespace;
    shop.b.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {namespace}}}\nspec: {{selector: {{app: web}}, ports: \
         [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}, {{name: h2, port: 81, targetPort: 8081, appProtocol: \
         kubernetes.io/h2c}}, {{name: grpc, port: 82, targetPort: 50051, appProtocol: grpc}}, {{name: echo, port: 9000}}]}}\n"
    ));
    let pod = shop.b.pod(namespace, "web-0", "app: web", "default");
    let nginx = Nginx::start(&pod.host, 8080);
    let others = [("grpc_server.py", 50051), ("where_server.py", 9000)];
    let others = others.map(|(program, port)| servers::python(&pod.host, program, port));
    shop.b.apply(&service_export(namespace, "web", ""));
    (nginx, others)
}

/// Programs that hold a connection to the echo: each says something every 200 ms until it is told that it is over, and prints how
/// many went and came.
fn talk(shop: &Shop<'_>, host: &str) -> Vec<Process> {
    eventually("the echo answers", PATIENCE, || tcp(&shop.client, host, 9000).contains("ping"));
    let talk = "import socket, sys, time\ns = socket.create_connection((sys.argv[1], 9000), timeout=10)\nf = s.makefile('rwb')\n\
                f.readline()\nn = 0\ntry:\n    while True:\n        f.write(b'%d\\n' % n); f.flush()\n        line = f.readline()\n        \
                if line != b'%d\\n' % n: break\n        n += 1\n        time.sleep(0.2)\n    print(n, 'ended')\n\
                except ConnectionError: print(n, 'reset')\nexcept TimeoutError: print(n, 'silent')\n";
    let script = shop.client.host.dir().join("talk.py");
    std::fs::write(&script, talk).expect("script is written");
    let script = script.display().to_string();
    let start = |number| shop.client.host.start(&format!("talk-{number}"), "python3", &["-u", &script, host]);
    (0..talkers()).map(start).collect()
}

/// Every one of them was told, and worked until then.
fn assert_told(talkers: &mut [Process]) {
    for talker in talkers {
        talker.wait(PATIENCE);
        let said = talker.output();
        assert!(said.contains("ended") || said.contains("reset"), "told that it is over: {said}");
        let turns: u32 = said.split(' ').next().and_then(|turns| turns.parse().ok()).unwrap_or_default();
        assert!(turns >= 5, "it worked until then: {said}");
    }
}

#[test]
fn both_sides_gateways_are_replaced_under_load_without_a_failed_request() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::new(&bed, "rolling");
    let _web = web(&shop);
    let host = shop.mirror_name("web");
    for port in [80, 81] {
        let more = if port == 81 { "--http2-prior-knowledge " } else { "" };
        let line = format!("{more}http://{host}:{port}/");
        // By every gateway: after a change of the leader one of them may hear of the export some seconds after the other.
        eventually("the mirror answers", PATIENCE, || (0..20).all(|_| shop.curl(&line).1 == "b\n"));
    }
    // Four pods are replaced; each takes a second to start and five in which it serves on although it was told to stop.
    let seconds = 60_u32;
    let mut talkers = talk(&shop, &host);
    let start = Instant::now();
    let [http1, http2, grpc] = rates();
    let first = Load::start(&shop.client.host, &format!("http://{host}/"), http1, seconds);
    let second = Load::start_http2(&shop.client.host, &format!("http://{host}:81/"), http2, seconds);
    let (address, rate, time) = (format!("{host}:82"), grpc.to_string(), seconds.to_string());
    let script = servers::script_path("grpc_load_client.py");
    let mut third = shop.client.host.start("grpc", servers::interpreter(), &[&script, &address, &rate, &time]);
    shop.a.roll(Component::Gateway);
    shop.b.roll(Component::Gateway);
    let rolled = start.elapsed();
    assert!(rolled < Duration::from_secs(seconds.into()), "it took longer than the load: {rolled:?}");
    let (first, second) = (first.finish(), second.finish());
    assert_clean(&first, "HTTP/1.1");
    assert_clean(&second, "HTTP/2");
    third.wait(PATIENCE);
    let said = third.output();
    let calls: Value = said.lines().last().and_then(|line| serde_json::from_str(line).ok()).expect(&said);
    eprintln!("gRPC: {} calls", calls["calls"]);
    assert_eq!((&calls["calls"], &calls["failures"]), (&json!(grpc * seconds), &json!([])));
    assert_told(&mut talkers);
    assert_eq!(first.by_cluster.get("b"), Some(&first.requests));
}

#[test]
fn both_sides_controllers_are_replaced_under_load_without_a_failed_request() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::new(&bed, "relead");
    let _web = web(&shop);
    let host = shop.mirror_name("web");
    eventually("the mirror answers", PATIENCE, || shop.curl(&format!("http://{host}/")).1 == "b\n");
    let versions = shop.a.versions("relead");
    let load = Load::start(&shop.client.host, &format!("http://{host}/"), rates()[0], 30);
    shop.a.roll(Component::Controller);
    shop.b.roll(Component::Controller);
    assert_clean(&load.finish(), "HTTP/1.1");
    assert_eq!(shop.a.versions("relead"), versions, "a new controller writes nothing that is as it should be");
}

#[test]
fn a_long_connection_lives_until_its_gateway_drains_and_is_told() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::with_web(&bed, "lasting");
    let host = shop.export("web");
    let mut talkers = talk(&shop, &host);
    std::thread::sleep(Duration::from_secs(1));
    shop.a.roll(Component::Gateway);
    assert_told(&mut talkers);
}
