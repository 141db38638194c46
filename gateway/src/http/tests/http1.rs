//! HTTP/1.0 and HTTP/1.1.

use super::kit::{NAME, Plan, World, backend, canned, field, full, hyper_backend, refusing};
use super::patiently;
use crate::outcome::{Outcome, Protocol};

#[tokio::test]
async fn a_request_crosses_as_it_is() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            let head = wire.head().await;
            wire.write(format!("HTTP/1.1 200 OK\r\nX-Seen: {}\r\ncontent-length: {}\r\n\r\n", head.len(), head.len())).await;
            wire.write(head).await;
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client
            .write(
                "GET /a/../b//c;d?e=%2f%5C&%C3%A9 HTTP/1.1\r\nHost: Shop.Example:8080\r\nX-Custom: a, b\r\nX-Custom: c\r\n\
                 Cookie: a=1; b=2\r\nUser-Agent: test\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\r\n",
            )
            .await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\n"), "{head}");
        let length: usize = field(&head, "content-length").unwrap().parse().unwrap();
        // Neither field is invented.
        assert_eq!(field(&head, "date"), None);
        assert_eq!(field(&head, "server"), None);
        assert_eq!(field(&head, "connection"), None);
        let seen = String::from_utf8(client.exactly(length).await.to_vec()).unwrap();
        assert!(seen.starts_with("GET /a/../b//c;d?e=%2f%5C&%C3%A9 HTTP/1.1\n"), "{seen}");
        assert_eq!(field(&seen, "host").as_deref(), Some("Shop.Example:8080"));
        assert_eq!(field(&seen, "x-custom").as_deref(), Some("a, b|c"));
        assert_eq!(field(&seen, "cookie").as_deref(), Some("a=1; b=2"));
        assert_eq!(field(&seen, "user-agent").as_deref(), Some("test"));
        assert_eq!(field(&seen, "connection"), None);
        assert_eq!(field(&seen, "x-hop"), None);
        assert_eq!(
            field(&seen, "linkspan-source").as_deref(),
            Some("\"spiffe://east.linkspan.internal/ns/shop/sa/client\";cluster=\"east\";assurance=network")
        );
        assert_eq!(
            field(&seen, "x-forwarded-client-cert").as_deref(),
            Some(
                "By=spiffe://west.linkspan.internal/ns/linkspan/sa/gateway;\
                 URI=spiffe://east.linkspan.internal/ns/shop/sa/client"
            )
        );
        assert_eq!(field(&seen, "traceparent").unwrap().len(), 55);
        let (entry, outcome) = world.east.seen.ended(0).await;
        assert_eq!((outcome, entry.status, entry.protocol), (Outcome::Ok, Some(200), Protocol::Http1));
        assert_eq!(entry.sent, length as u64);
        let (entry, outcome) = world.west.seen.ended(0).await;
        assert_eq!((outcome, entry.status, entry.backend), (Outcome::Ok, Some(200), Some(address)));
    })
    .await;
}

#[tokio::test]
async fn connections_are_used_again_at_both_ends() {
    patiently(async {
        let address = backend(|mut wire, number| async move {
            for request in 0.. {
                wire.head().await;
                let body = format!("{number}.{request}");
                wire.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        for request in 0..5 {
            client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
            client.head().await;
            assert_eq!(client.exactly(3).await, format!("0.{request}"));
        }
        // Pipelined ones are answered in order.
        client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\nGET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        for request in 5..7 {
            client.head().await;
            assert_eq!(client.exactly(3).await, format!("0.{request}"));
        }
    })
    .await;
}

#[tokio::test]
async fn a_stale_connection_costs_no_request() {
    patiently(async {
        // Says keep-alive and closes behind each response.
        let address = canned("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        for _ in 0..20 {
            client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            client.exactly(2).await;
        }
    })
    .await;
}

#[tokio::test]
async fn another_endpoint_takes_over_where_one_refuses() {
    patiently(async {
        let good = canned("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        let world = World::of(&[refusing().await, good, refusing().await]).await;
        for _ in 0..10 {
            let mut client = world.client().await;
            client.write("POST / HTTP/1.1\r\nHost: web\r\ncontent-length: 3\r\n\r\nabc").await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        }
    })
    .await;
}

#[tokio::test]
async fn all_endpoints_refuse() {
    patiently(async {
        let world = World::of(&[refusing().await]).await;
        let mut client = world.client().await;
        client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 502"), "{head}");
        assert_eq!(field(&head, "linkspan-error").as_deref(), Some("connect_refused"));
        let length: usize = field(&head, "content-length").unwrap().parse().unwrap();
        assert_eq!(client.exactly(length).await, "linkspan: the service refused the connection\n");
        // The connection lives on.
        client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 502"));
    })
    .await;
}

#[tokio::test]
async fn responses_without_a_body() {
    patiently(async {
        let address = hyper_backend(false, |request| async move {
            let response = http::Response::builder();
            match (request.method().as_str(), request.uri().path()) {
                ("HEAD", _) => response.header("content-length", "1000").body(full("")).unwrap(),
                (_, "/204") => response.status(204).body(full("")).unwrap(),
                (_, "/304") => response.status(304).header("etag", "\"x\"").body(full("")).unwrap(),
                (_, "/empty") => response.body(full("")).unwrap(),
                _ => response.body(full("body")).unwrap(),
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        for (line, status, length) in [
            ("HEAD /", "200", Some("1000")),
            ("GET /204", "204", None),
            ("GET /304", "304", None),
            ("GET /empty", "200", Some("0")),
            ("GET /", "200", Some("4")),
        ] {
            client.write(format!("{line} HTTP/1.1\r\nHost: web\r\n\r\n")).await;
            let head = client.head().await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {head}");
            assert_eq!(field(&head, "content-length").as_deref(), length, "{line}: {head}");
            assert_eq!(field(&head, "transfer-encoding"), None, "{line}: {head}");
        }
        assert_eq!(client.exactly(4).await, "body");
    })
    .await;
}

#[tokio::test]
async fn a_304_keeps_the_length_that_it_announces() {
    patiently(async {
        let address = canned("HTTP/1.1 304 Not Modified\r\ncontent-length: 5000\r\netag: \"x\"\r\n\r\n").await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        for _ in 0..2 {
            client.write("GET / HTTP/1.1\r\nHost: web\r\nif-none-match: \"x\"\r\n\r\n").await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 304"), "{head}");
            assert_eq!(field(&head, "content-length").as_deref(), Some("5000"));
        }
    })
    .await;
}

#[tokio::test]
async fn http_1_0_clients_are_served() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            let head = wire.head().await;
            assert!(head.contains(&format!("host: {NAME}")), "{head}");
            wire.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").await;
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client.write("GET / HTTP/1.0\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.0 200"), "{head}");
        assert_eq!(field(&head, "transfer-encoding"), None);
        assert_eq!(client.rest().await.unwrap(), "abcde");
    })
    .await;
}

#[tokio::test]
async fn http_1_0_backends_are_understood() {
    patiently(async {
        let world = World::of(&[canned("HTTP/1.0 200 OK\r\n\r\nuntil the end").await]).await;
        let mut client = world.client().await;
        client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let head = client.head().await;
        assert_eq!(field(&head, "transfer-encoding").as_deref(), Some("chunked"), "{head}");
        assert_eq!(client.chunked().await.0, "until the end");
    })
    .await;
}

#[tokio::test]
async fn continue_comes_from_the_backend() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            let head = wire.head().await;
            assert_eq!(field(&head, "expect").as_deref(), Some("100-continue"));
            wire.write("HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(wire.exactly(5).await, "hello");
            wire.write("HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n").await;
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client.write("PUT / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\ncontent-length: 5\r\n\r\n").await;
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue");
        client.write("hello").await;
        assert!(client.head().await.starts_with("HTTP/1.1 201"));
    })
    .await;
}

#[tokio::test]
async fn a_refusal_instead_of_continue_asks_for_no_body() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            wire.head().await;
            wire.write("HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nno!").await;
            // No byte of the body comes, only the end of the connection.
            assert_eq!(wire.rest().await.unwrap_or_default(), "");
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client.write("PUT / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\ncontent-length: 500\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 413"), "{head}");
        assert_eq!(client.rest().await.unwrap(), "no!");
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_ignores_expect_gets_the_body_all_the_same() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            wire.head().await;
            assert_eq!(wire.exactly(5).await, "hello");
            wire.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client.write("PUT / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\ncontent-length: 5\r\n\r\n").await;
        // After the gateway's own wait.
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue");
        client.write("hello").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
    })
    .await;
}

#[tokio::test]
async fn s_21_early_hints_pass() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            for _ in 0..2 {
                wire.head().await;
                wire.write("HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n").await;
                wire.write("HTTP/1.1 103 Early Hints\r\nlink: </b.css>\r\nconnection: x-y\r\nx-y: 1\r\n\r\n").await;
                wire.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        for _ in 0..2 {
            client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
            assert_eq!(client.head().await, "HTTP/1.1 103 Early Hints\nlink: </a.css>; rel=preload");
            assert_eq!(client.head().await, "HTTP/1.1 103 Early Hints\nlink: </b.css>");
            assert!(client.head().await.starts_with("HTTP/1.1 200"));
            client.exactly(2).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_name_that_is_mirrored_no_longer_is_said_to_be() {
    patiently(async {
        let world = World::new(Plan::default()).await;
        let mut client = world.client().await;
        client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        assert_eq!(field(&head, "linkspan-error").as_deref(), Some("no_target"));
        let own = world.east.gateway.own.clone();
        world.east.gateway.table.store(std::sync::Arc::new(crate::route::RouteTable::empty(own)));
        client.exactly(field(&head, "content-length").unwrap().parse().unwrap()).await;
        client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 404"), "{head}");
        assert_eq!(field(&head, "linkspan-error").as_deref(), Some("no_route"));
    })
    .await;
}

#[tokio::test]
async fn a_draining_gateway_finishes_what_it_has() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            wire.head().await;
            wire.write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").await;
            // The second half comes when the test says so: over a second connection.
            wire.head().await;
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        client.head().await;
        assert_eq!(client.exactly(5).await, "hello");
        assert!(!world.east.drain.drain(std::time::Duration::from_millis(50)).await, "one request is unfinished");
        // Cut at the deadline: never a clean end.
        assert!(client.rest().await.is_err());
        let (_, outcome) = world.east.seen.ended(0).await;
        assert_eq!(outcome, Outcome::Drained);
    })
    .await;
}
