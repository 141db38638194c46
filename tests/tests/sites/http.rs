//! HTTP across a link with programs that no one here wrote: nginx, curl, h2load, gRPC, WebSocket.

use std::fs;

use linkspan_tests::manifests::Service;
use linkspan_tests::process::{program, succeed};
use linkspan_tests::servers::{self, Nginx, interpreter, script_path};

use super::kit::{linked, needs_namespaces};

const WEB: &str = "web-west.shop.svc.cluster.local";

#[test]
fn nginx_and_curl_exchange_everything_http_has() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let nginx = Nginx::start(&west.host, 8080);
    let _headers = servers::python(&west.host, "headers_server.py", 8090);
    west.apply(
        "web.yaml",
        &Service::new("shop", "web")
            .port("http", 8080, Some("http"))
            .port("h2c", 8081, None)
            .port("detected", 8090, None)
            .yaml(),
    );
    east.wait_resolves(WEB);
    let host = &east.host;

    // HTTP/1.1, HTTP/2 with prior knowledge, an undeclared port that is detected.
    assert_eq!(host.sh(&format!("curl -fsS --http1.1 http://{WEB}:8080/")), "west\n");
    assert_eq!(host.sh(&format!("curl -fsS --http2-prior-knowledge http://{WEB}:8081/")), "west\n");
    assert_eq!(host.sh(&format!("curl -fsS --http1.0 http://{WEB}:8080/")), "west\n");
    assert!(host.sh(&format!("curl -fsS http://{WEB}:8090/some/path?x=1")).contains("/some/path?x=1"));

    // Methods and statuses without a body.
    let head = host.sh(&format!("curl -fsS -I http://{WEB}:8080/"));
    assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("content-length: 5"), "{head}");
    let empty = host.sh(&format!("curl -fsS -i http://{WEB}:8080/empty"));
    assert!(empty.starts_with("HTTP/1.1 204"), "{empty}");
    assert!(
        host.sh(&format!("curl -sS -o /dev/null -w '%{{http_code}}' http://{WEB}:8080/files/none")).contains("404")
    );

    // 100 MB up and down, over both versions, compared byte by byte.
    host.sh("head -c 100000000 /dev/urandom > big");
    for (flag, port) in [("--http1.1", 8080), ("--http2-prior-knowledge", 8081)] {
        host.sh(&format!("curl -fsS {flag} -T big http://{WEB}:{port}/files/big-{port}"));
        succeed(
            std::process::Command::new("cmp")
                .args([host.dir().join("big"), nginx.dir().join(format!("files/big-{port}"))]),
        );
        host.sh(&format!("curl -fsS {flag} -o back http://{WEB}:{port}/files/big-{port} && cmp big back"));
    }

    // Chunked in both directions, a range, an upload that asks first (Expect: 100-continue).
    host.sh(&format!("curl -fsS -H 'Transfer-Encoding: chunked' -T big http://{WEB}:8080/files/chunked"));
    succeed(std::process::Command::new("cmp").args([host.dir().join("big"), nginx.dir().join("files/chunked")]));
    host.sh(&format!(
        "curl -fsS -r 1000-1999 -o part http://{WEB}:8080/files/chunked && cmp part <(tail -c +1001 big | head -c 1000)"
    ));
    let verbose = host.try_sh(&format!(
        "curl -v -fsS --expect100-timeout 20 -H 'Expect: 100-continue' -T big http://{WEB}:8080/files/asked"
    ));
    assert!(verbose.0 && verbose.1.contains("100 Continue"), "{}", verbose.1);

    // Trailers, an early refusal while the body still flows, a body that is cut short.
    let trailers = host.sh(&format!("curl -fsS -v --raw -H 'TE: trailers' http://{WEB}:8090/trailers 2>&1"));
    assert!(trailers.to_lowercase().contains("x-checksum: 42"), "{trailers}");
    let early =
        host.try_sh(&format!("curl -sS -o /dev/null -w '%{{http_code}}' -H Expect: -T big http://{WEB}:8090/early"));
    assert!(early.1.contains("413"), "{}", early.1);
    let cut = host.try_sh(&format!("curl -fsS -o /dev/null http://{WEB}:8090/cut"));
    assert!(!cut.0, "a truncated body must not end well: {}", cut.1);

    // One connection serves many requests.
    let reuse = host.sh(&format!(
        "curl -fsS -v -o /dev/null -o /dev/null -o /dev/null http://{WEB}:8080/ http://{WEB}:8080/ http://{WEB}:8080/ 2>&1"
    ));
    assert_eq!(reuse.matches("Connected to").count(), 1, "{reuse}");

    // CONNECT is refused clearly.
    let connect = host.try_sh(&format!("curl -sS -p -x http://{WEB}:8080 http://example.org/"));
    assert!(!connect.0 && connect.1.contains("405"), "{}", connect.1);
}

#[test]
fn h2load_loses_no_request() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _nginx = Nginx::start(&west.host, 8080);
    west.apply(
        "web.yaml",
        &Service::new("shop", "web").port("http", 8080, Some("http")).port("h2c", 8081, None).yaml(),
    );
    east.wait_resolves(WEB);
    for (flags, port) in [("--h1", 8080), ("", 8081)] {
        let text = east.host.sh(&format!("h2load {flags} -n 20000 -c 20 -m 10 http://{WEB}:{port}/"));
        assert!(text.contains("20000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
        assert!(text.contains("status codes: 20000 2xx"), "{text}");
    }
}

#[test]
fn grpc_in_all_four_kinds_with_deadlines_and_errors_in_trailers() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _server = servers::python(&west.host, "grpc_server.py", 50051);
    west.apply(
        "echo.yaml",
        &Service::new("shop", "echo").port("grpc", 50051, Some("grpc")).port("other", 50052, None).yaml(),
    );
    let name = "echo-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    let who = east.host.sh(&format!("{} {} {name}:50051", interpreter(), script_path("grpc_client.py")));
    assert!(who.contains("spiffe://east.linkspan.internal/"), "{who}");
}

#[test]
fn grpc_deadlines_and_cancellations_reach_the_server() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _server = servers::python(&west.host, "grpc_server.py", 50051);
    west.apply("echo.yaml", &Service::new("shop", "echo").port("grpc", 50051, Some("grpc")).yaml());
    let name = "echo-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    let client = format!("{} {}", interpreter(), script_path("grpc_deadline_client.py"));
    // Directly first: what is seen over the link is what the program sees without it.
    assert_eq!(west.host.sh(&format!("{client} 127.0.0.1:50051")), "ok\n");
    assert_eq!(east.host.sh(&format!("{client} {name}:50051")), "ok\n");
    // A client without a timer of its own: curl sends the field and waits, and the call ends at its deadline.
    let started = std::time::Instant::now();
    let head = east.host.sh(&format!(
        "printf '\\0\\0\\0\\0\\11wait curl' | curl -sS -m 10 -D - -o /dev/null --http2-prior-knowledge -H 'content-type: application/grpc' \
         -H 'te: trailers' -H 'grpc-timeout: 700m' --data-binary @- http://{name}:50051/test.Echo/Unary"
    ));
    assert!(head.contains("grpc-status: 4"), "DEADLINE_EXCEEDED: {head}");
    let took = started.elapsed().as_millis();
    assert!((600..3_000).contains(&took), "700 ms were given, it took {took}");
}

#[test]
fn websocket_messages_of_all_sizes_come_back() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _server = servers::python(&west.host, "websocket_server.py", 9000);
    west.apply("ws.yaml", &Service::new("shop", "ws").port("ws", 9000, Some("kubernetes.io/ws")).yaml());
    let name = "ws-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    let text = east.host.sh(&format!("{} {} ws://{name}:9000/", interpreter(), script_path("websocket_client.py")));
    assert_eq!(text, "ok\n");
}

#[test]
fn a_load_generator_sees_every_answer_and_trace_context_is_passed_on() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _headers = servers::python(&west.host, "headers_server.py", 8090);
    west.apply("web.yaml", &Service::new("shop", "web").port("http", 8090, Some("http")).yaml());
    east.wait_resolves(WEB);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let seen = east.host.sh(&format!("curl -fsS -H 'traceparent: {trace}' -H 'tracestate: a=b' http://{WEB}:8090/"));
    assert!(seen.contains("4bf92f3577b34da6a3ce929d0e0e4736") && seen.contains("a=b"), "{seen}");
    let made = east.host.sh(&format!("curl -fsS http://{WEB}:8090/"));
    assert!(made.to_lowercase().contains("traceparent"), "{made}");
    // The access log of both sides names the request.
    let log = fs::read_to_string(west.host.dir().join("site.log")).expect("log of the site");
    assert!(log.contains("shop/web"), "no access log line on the ingress side");
    assert!(program("linkspan").exists());
}
