//! Requests that the local cluster serves itself.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use linkspan_proto::refusal::Refusal;

use super::kit::{Plan, World, backend, canned, field, full, hyper_backend, pattern, refusing};
use super::patiently;
use crate::outcome::Outcome;

async fn world(east: std::net::SocketAddr) -> World {
    World::new(Plan { east: vec![east], tiers: vec!["east"], ..Plan::default() }).await
}

#[tokio::test]
async fn a_request_needs_no_link() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            for request in 0.. {
                let head = wire.head().await;
                assert!(head.starts_with("POST /a?b HTTP/1.1\n"), "{head}");
                assert_eq!(field(&head, "host").as_deref(), Some("web"));
                assert_eq!(
                    field(&head, "linkspan-source").as_deref(),
                    Some("\"spiffe://east.linkspan.internal/ns/shop/sa/client\";cluster=\"east\";assurance=network")
                );
                let body = wire.exactly(5).await;
                assert_eq!(body, "hello");
                wire.write("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
                wire.write(format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{request}")).await;
            }
        })
        .await;
        let world = world(address).await;
        let mut client = world.client().await;
        for request in ["0", "1", "2"] {
            client
                .write("POST /a?b HTTP/1.1\r\nHost: web\r\nlinkspan-source: forged\r\ncontent-length: 5\r\n\r\nhello")
                .await;
            assert_eq!(client.head().await, "HTTP/1.1 103 Early Hints\nlink: </a>");
            assert!(client.head().await.starts_with("HTTP/1.1 200"));
            // One connection to the backend serves them all.
            assert_eq!(client.exactly(1).await, request);
        }
        let (entry, outcome) = world.east.seen.ended(0).await;
        assert_eq!((outcome, entry.backend, entry.received, entry.sent), (Outcome::Ok, Some(address), 5, 1));
        assert_eq!(*world.west.late.streams.lock().unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn http_2_trailers_and_large_bodies() {
    patiently(async {
        let address = hyper_backend(true, |request| async move {
            Response::new(request.into_body().map_err(std::io::Error::other).boxed_unsync())
        })
        .await;
        let world = world(address).await;
        let body = pattern(10 * 1024 * 1024);
        let trailers =
            async { Some(Ok(http::HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())]))) };
        let sent = http_body_util::Full::new(body.clone()).map_err(|never| match never {}).with_trailers(trailers);
        let request = Request::post("http://web/").body(BodyExt::boxed_unsync(sent)).unwrap();
        let response = world.http2().await.send_request(request).await.unwrap();
        let received = response.into_body().collect().await.unwrap();
        assert_eq!(received.trailers().unwrap()["x-sum"], "1");
        assert!(received.to_bytes() == body, "the bytes differ");
        assert_eq!(world.east.seen.ended(0).await.1, Outcome::Ok);
    })
    .await;
}

#[tokio::test]
async fn continue_comes_from_the_backend() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            wire.head().await;
            wire.write("HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(wire.exactly(5).await, "hello");
            wire.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            wire.head().await;
            wire.write("HTTP/1.1 401 Who\r\ncontent-length: 0\r\n\r\n").await;
            assert_eq!(wire.rest().await.unwrap_or_default(), "");
        })
        .await;
        let world = world(address).await;
        let mut client = world.client().await;
        let request = "PUT / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
        client.write(request).await;
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue");
        client.write("hello").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        client.write(request).await;
        assert!(client.head().await.starts_with("HTTP/1.1 401"));
    })
    .await;
}

#[tokio::test]
async fn a_torso_is_no_end() {
    patiently(async {
        for torso in [
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ] {
            let world = world(canned(torso).await).await;
            let mut client = world.client().await;
            client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
            assert!(client.rest().await.is_err(), "{torso}");
            assert_eq!(world.east.seen.ended(0).await.1, Outcome::Refused(Refusal::BackendReset));
        }
    })
    .await;
}

#[tokio::test]
async fn a_deadline_is_kept() {
    patiently(async {
        let address = hyper_backend(true, |_| std::future::pending()).await;
        let world = world(address).await;
        let request = Request::post("http://web/a.B/C")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", "50000u")
            .body(full(Bytes::from_static(b"x")))
            .unwrap();
        let response = world.http2().await.send_request(request).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "4");
        assert_eq!(world.east.seen.ended(0).await.1, Outcome::Refused(Refusal::Deadline));
    })
    .await;
}

#[tokio::test]
async fn the_next_cluster_takes_over_where_the_local_endpoints_refuse() {
    patiently(async {
        let good = backend(|mut wire, _| async move {
            wire.head().await;
            assert_eq!(wire.exactly(3).await, "abc");
            wire.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        })
        .await;
        let plan = Plan { east: vec![refusing().await], west: vec![good], tiers: vec!["east", "west"] };
        let world = World::new(plan).await;
        let mut client = world.client().await;
        client.write("POST / HTTP/1.1\r\nHost: web\r\ncontent-length: 3\r\n\r\nabc").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        let (entry, _) = world.east.seen.ended(0).await;
        assert_eq!((entry.attempts, entry.peer.unwrap().as_str()), (2, "west"));
    })
    .await;
}

#[tokio::test]
async fn bodiless_responses_and_early_ends_give_the_connection_back() {
    patiently(async {
        let address = backend(|mut wire, number| async move {
            assert_eq!(number, 0, "one connection serves them all");
            loop {
                let head = wire.head().await;
                let response = match head.split(' ').nth(1).unwrap() {
                    "/head" => "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n",
                    "/204" => "HTTP/1.1 204 No\r\n\r\n",
                    "/304" => "HTTP/1.1 304 No\r\ncontent-length: 10\r\n\r\n",
                    "/chunked" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
                    _ => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                };
                wire.write(response).await;
            }
        })
        .await;
        let world = world(address).await;
        let mut client = world.client().await;
        for path in ["/head", "/204", "/304", "/empty", "/chunked", "/empty"] {
            let method = if path == "/head" { "HEAD" } else { "GET" };
            client.write(format!("{method} {path} HTTP/1.1\r\nHost: web\r\n\r\n")).await;
            client.head().await;
            if path == "/chunked" {
                assert_eq!(client.chunked().await.0, "ok");
            }
        }
    })
    .await;
}
