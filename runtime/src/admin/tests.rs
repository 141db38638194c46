use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpStream;

use super::*;
use crate::drain::Drain;

fn admin() -> Admin {
    Admin::new(Registry::new(), Readiness::new())
}

/// A connection served by `admin`; what we hold is the client's end.
fn connect(admin: &Admin, signal: &Signal) -> DuplexStream {
    let (client, server) = duplex(256 * 1024);
    drop(task::spawn("test_admin_connection", admin.clone().connection(server, signal.clone())));
    client
}

async fn exchange(admin: &Admin, request: &str) -> String {
    let (_drain, signal) = Drain::new();
    let mut client = connect(admin, &signal);
    client.write_all(request.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.expect("read");
    String::from_utf8(answer).expect("UTF-8")
}

async fn get(admin: &Admin, path: &str) -> (u16, String) {
    let answer = exchange(admin, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
    let status = answer.split(' ').nth(1).expect("a status").parse().expect("a number");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(!head.to_ascii_lowercase().contains("access-control"), "no CORS header ever");
    (status, body.to_owned())
}

#[tokio::test]
async fn built_in_routes() {
    let admin = admin();
    let dns = admin.readiness().register("dns");
    assert_eq!(get(&admin, "/live").await, (200, "live\n".to_owned()));
    let (status, body) = get(&admin, "/ready").await;
    assert_eq!(status, 503);
    assert!(body.contains("\"pending\""), "{body}");
    dns.ready();
    assert_eq!(get(&admin, "/ready").await.0, 200);
    dns.failed("socket\u{202e} gone");
    let (status, body) = get(&admin, "/ready").await;
    assert_eq!(status, 503);
    assert!(body.contains("socket\\u202e gone"), "{body}");
    let (status, page) = get(&admin, "/metrics").await;
    assert_eq!(status, 200);
    assert!(page.ends_with("# EOF\n"));
    assert_eq!(get(&admin, "/none").await.0, 404);
}

#[tokio::test]
async fn components_share_one_server() {
    let admin = admin();
    admin
        .route("/double", |query: Query| async move {
            let n: u64 = query.parsed("n")?.unwrap_or(1);
            Ok(json!({ "double": n * 2 }))
        })
        .config("gateway", |_| async { Ok(json!({ "workers": 2 })) });
    let second = admin.clone();
    second.config("controller", |_| async { Ok(json!({ "dns": "127.0.0.1:53" })) });
    let (status, body) = get(&admin, "/double?n=21").await;
    assert_eq!((status, body.contains("42")), (200, true), "{body}");
    let (status, body) = get(&admin, "/double?n=%1b[2J").await;
    assert_eq!(status, 400);
    assert!(!body.contains('\u{1b}'), "{body:?}");
    let (_, body) = get(&admin, "/config").await;
    let config: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(config["gateway"]["workers"], 2);
    assert_eq!(config["controller"]["dns"], "127.0.0.1:53");
    assert_eq!(config["build"]["version"], build_info::VERSION);
    assert_eq!(get(&admin, "/").await.1, "/config\n/live\n/metrics\n/ready\n/double\n");
}

#[tokio::test]
async fn read_only_and_without_bodies() {
    let admin = admin();
    let answer = exchange(&admin, "POST /live HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc").await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.contains("allow: GET"));
    let answer = exchange(&admin, "GET /live HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("connection: close"));
    let huge = "x".repeat(HEAD_MAX);
    let answer = exchange(&admin, &format!("GET /live HTTP/1.1\r\nhost: x\r\na: {huge}\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let long = "a".repeat(2000);
    assert_eq!(get(&admin, &format!("/live?{long}")).await.0, 414);
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_cut() {
    let (_drain, signal) = Drain::new();
    let mut client = connect(&admin(), &signal);
    client.write_all(b"GET /live HTT").await.expect("written");
    let started = tokio::time::Instant::now();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.expect("closed");
    assert!(started.elapsed() <= HEAD_TIMEOUT + Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_is_cut() {
    let admin = admin();
    let big = "x".repeat(1 << 20);
    admin.route("/big", move |_| {
        let big = big.clone();
        async move { Ok(json!(big)) }
    });
    let (_drain, signal) = Drain::new();
    let (mut client, server) = duplex(1024);
    let served = task::spawn("test_admin_stuck", admin.connection(server, signal));
    client.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    let started = tokio::time::Instant::now();
    served.await.expect("no panic");
    assert!(started.elapsed() <= LIFETIME + GRACE + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_stuck_handler_is_answered_for() {
    let admin = admin();
    admin.route("/stuck", |_| std::future::pending());
    assert_eq!(get(&admin, "/stuck").await.0, 503);
}

#[tokio::test]
async fn a_panic_costs_one_connection() {
    let admin = admin();
    admin.route("/bad", |_| async { panic!("injected") });
    let answer = exchange(&admin, "GET /bad HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(answer, "");
    assert_eq!(get(&admin, "/live").await.0, 200);
}

#[tokio::test]
async fn serves_while_draining_and_stops_when_closed() {
    let admin = admin();
    admin.readiness().register("all").ready();
    let (drain, signal) = Drain::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let serving = task::spawn("test_admin", admin.serve(listener, signal.clone()));
    let ask = || async move {
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("written");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("read");
        answer
    };
    assert!(ask().await.starts_with("HTTP/1.1 200 "));
    let held = signal.guard();
    let draining = task::spawn("test_drain", async move { drain.drain(Duration::from_secs(60)).await });
    signal.draining().await;
    assert!(ask().await.starts_with("HTTP/1.1 503 "));
    drop(held);
    assert!(draining.await.expect("no panic"));
    serving.await.expect("ended");
}

#[test]
fn caps_on_connections() {
    let connections = Connections::default();
    let client = |host: u8| SocketAddr::from(([10, 0, 0, host], 1));
    let mut held: Vec<_> = (0..PER_ADDRESS).map(|_| connections.admit(client(1)).expect("room")).collect();
    assert!(connections.admit(client(1)).is_none());
    held.push(connections.admit(client(2)).expect("another address has room"));
    held.remove(0);
    held.push(connections.admit(client(1)).expect("room again"));
    for host in 3..=9 {
        held.extend((0..PER_ADDRESS).filter_map(|_| connections.admit(client(host))));
    }
    assert_eq!(held.len(), CONNECTIONS);
    drop(held);
    assert!(connections.by_address.lock().expect("no panic").is_empty());
}
