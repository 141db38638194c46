//! What is refused, what is stripped, and who is tried next.

use linkspan_proto::refusal::Refusal;

use super::kit::{Plan, World, backend, canned, field, pattern};
use super::patiently;
use crate::outcome::Outcome;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn s_19_malformed_requests_reach_no_backend() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            let head = wire.head().await;
            panic!("a backend saw {head}");
        })
        .await;
        let world = World::of(&[address]).await;
        for (request, status) in [
            ("CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n", 405),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: \r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: user@web\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: web/path\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: web web\r\n\r\n", 400),
            ("GET http://other/ HTTP/1.1\r\nHost: web\r\n\r\n", 421),
            ("GET http://user@web/ HTTP/1.1\r\nHost: web\r\n\r\n", 400),
            ("GET ftp://web/ HTTP/1.1\r\nHost: web\r\n\r\n", 400),
            ("GET * HTTP/1.1\r\nHost: web\r\n\r\n", 400),
            ("GET web HTTP/1.1\r\nHost: web\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: web\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
            ("POST / HTTP/1.1\r\nHost: web\r\ncontent-length: +1\r\n\r\na", 400),
            ("POST / HTTP/1.1\r\nHost: web\r\ncontent-length: 1, 2\r\n\r\na", 400),
            ("POST / HTTP/1.1\r\nHost: web\r\ncontent-length:\r\n\r\na", 400),
            ("POST / HTTP/1.1\r\nHost: web\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
            ("POST / HTTP/1.1\r\nHost: web\r\ntransfer-encoding: gzip\r\n\r\n", 400),
            ("POST / HTTP/1.0\r\nHost: web\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: web\r\nX Y: 1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: web\r\n: 1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: web\r\nX: 1\r\n folded\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: web\r\nX: a\0b\r\n\r\n", 400),
            ("GET / HTTP/3.0\r\nHost: web\r\n\r\n", 400),
        ] {
            let mut client = world.client().await;
            client.write(request).await;
            let head = client.head().await;
            assert!(
                head.starts_with(&format!("HTTP/1.{} {status}", u8::from(!head.starts_with("HTTP/1.0")))),
                "{request:?}: {head}"
            );
        }
        assert_eq!(*world.west.late.streams.lock().unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn s_19_both_length_and_coding_become_one_framing() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            let head = wire.head().await;
            assert_eq!(field(&head, "content-length"), None, "{head}");
            assert_eq!(field(&head, "transfer-encoding").as_deref(), Some("chunked"), "{head}");
            assert_eq!(wire.chunked().await.0, "abc");
            wire.write(
                "HTTP/1.1 200 OK\r\ncontent-length: 500\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            )
            .await;
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client
            .write(
                "POST / HTTP/1.1\r\nHost: web\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n\
                 3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n",
            )
            .await;
        let head = client.head().await;
        assert_eq!(field(&head, "content-length"), None, "{head}");
        assert_eq!(client.chunked().await.0, "ok");
        // The connection of such a request is closed: what follows is nobody's.
        drop(client.rest().await);
        assert_eq!(world.west.seen.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn s_19_s_24_too_large_a_head_is_refused() {
    patiently(async {
        let world = World::of(&[]).await;
        let mut client = world.client().await;
        client.write(format!("GET / HTTP/1.1\r\nHost: web\r\nX: {}\r\n\r\n", "x".repeat(70_000))).await;
        assert!(client.head().await.starts_with("HTTP/1.1 431"));
        let mut client = world.client().await;
        client.write(format!("GET / HTTP/1.1\r\nHost: web\r\n{}\r\n", "X: y\r\n".repeat(101))).await;
        assert!(client.head().await.starts_with("HTTP/1.1 431"));
    })
    .await;
}

#[tokio::test]
async fn no_forged_identity_arrives() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            for _ in 0.. {
                let head = wire.head().await;
                let seen: Vec<_> = head.lines().filter(|line| line.contains("evil")).collect();
                assert!(seen.is_empty(), "{seen:?}");
                for name in ["linkspan-source", "x-forwarded-client-cert"] {
                    let value = field(&head, name).unwrap();
                    assert!(value.contains("/ns/shop/sa/client") && !value.contains('|'), "{value}");
                }
                wire.write(OK).await;
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        for forged in [
            "linkspan-source: evil",
            "LINKSPAN-SOURCE: evil\r\nlinkspan-source: evil",
            "Linkspan_Source: evil",
            "x-forwarded-client-cert: evil, evil;URI=evil",
            "X_Forwarded_Client_Cert:   evil   ",
            "forwarded: for=evil;by=evil",
            "client-cert: :ZXZpbA==: evil",
            "client-cert-chain: evil",
            "l5d-client-id: evil",
            "l5d_dst_override: evil",
            "x-envoy-peer-metadata: evil",
            "Connection: linkspan-source, x-forwarded-client-cert\r\nlinkspan-source: evil",
            "Connection: close-not, X-Forwarded-Client-Cert",
            "TE: linkspan-source",
        ] {
            client.write(format!("GET / HTTP/1.1\r\nHost: web\r\n{forged}\r\n\r\n")).await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 200"), "{forged}: {head}");
            client.exactly(2).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_backend_cannot_speak_for_the_gateway() {
    patiently(async {
        let address =
            canned("HTTP/1.1 503 Busy\r\nlinkspan-error: denied\r\nconnection: close, x-hop\r\nx-hop: 1\r\ncontent-length: 0\r\n\r\n").await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        assert_eq!(field(&head, "linkspan-error"), None);
        assert_eq!(field(&head, "x-hop"), None);
        assert_eq!(field(&head, "connection"), None);
    })
    .await;
}

#[tokio::test]
async fn a_request_that_was_never_processed_goes_to_the_next_cluster() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            loop {
                let head = wire.head().await;
                let length = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
                let body = wire.exactly(length).await;
                assert!(body == pattern(length), "the body is not whole");
                wire.write(OK).await;
            }
        })
        .await;
        let world = World::new(Plan { west: vec![address], east: vec![address], tiers: vec!["west", "east"] }).await;
        let mut client = world.client().await;
        for length in [0, 10, 50_000] {
            for refusal in [Refusal::Draining, Refusal::Overloaded, Refusal::NoBackend] {
                world.west.late.refusals.lock().unwrap().push(refusal);
                client.write(format!("POST / HTTP/1.1\r\nHost: web\r\ncontent-length: {length}\r\n\r\n")).await;
                client.write(pattern(length)).await;
                let head = client.head().await;
                assert!(head.starts_with("HTTP/1.1 200"), "{length} {refusal}: {head}");
                client.exactly(2).await;
            }
        }
        let (entry, outcome) = world.east.seen.ended(8).await;
        assert_eq!((outcome, entry.attempts, entry.peer.unwrap().as_str()), (Outcome::Ok, 2, "east"));
        assert_eq!(entry.received, 50_000);
    })
    .await;
}

#[tokio::test]
async fn a_request_that_may_have_been_processed_goes_nowhere_else() {
    patiently(async {
        let address = canned(OK).await;
        for refusal in [Refusal::Denied, Refusal::BackendReset, Refusal::Cancelled, Refusal::Loop] {
            let world =
                World::new(Plan { west: vec![address], east: vec![address], tiers: vec!["west", "east"] }).await;
            world.west.late.refusals.lock().unwrap().push(refusal);
            let mut client = world.client().await;
            client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
            let head = client.head().await;
            assert!(head.starts_with(&format!("HTTP/1.1 {}", refusal.http_status())), "{refusal}: {head}");
            assert_eq!(field(&head, "linkspan-error").as_deref(), Some(refusal.reason()));
            let (entry, outcome) = world.east.seen.ended(0).await;
            assert_eq!((outcome, entry.attempts), (Outcome::Refused(refusal), 1));
        }
    })
    .await;
}

#[tokio::test]
async fn s_34_a_body_that_is_gone_cannot_be_sent_again() {
    patiently(async {
        let address = canned(OK).await;
        let world = World::new(Plan { west: vec![address], east: vec![address], tiers: vec!["west", "east"] }).await;
        let mut client = world.client().await;
        world.west.late.refusals.lock().unwrap().push(Refusal::Draining);
        let length = 3_000_000;
        client.write(format!("POST / HTTP/1.1\r\nHost: web\r\ncontent-length: {length}\r\n\r\n")).await;
        // More than is kept, and more than fits on the way.
        let body = pattern(length);
        tokio::select! {
            () = client.write(&body) => {}
            () = async { world.east.seen.ended(0).await; } => {}
        }
        let (entry, outcome) = world.east.seen.ended(0).await;
        // Either the refusal came before too much was read, or it ended there: never a second, shorter request.
        match (outcome, entry.attempts) {
            (Outcome::Refused(Refusal::Draining), 1) | (_, 2) => {}
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[tokio::test]
async fn no_attempt_is_left() {
    patiently(async {
        let world = World::of(&[canned(OK).await]).await;
        world.west.late.refusals.lock().unwrap().push(Refusal::Draining);
        let mut client = world.client().await;
        client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        // The target's own reason says more than "all tried".
        assert_eq!(field(&head, "linkspan-error").as_deref(), Some("draining"));
    })
    .await;
}

#[tokio::test]
async fn a_link_that_is_down_is_no_target() {
    patiently(async {
        let address = canned(OK).await;
        let world = World::new(Plan { west: vec![address], ..Plan::default() }).await;
        assert_eq!(world.east.side.links.configure(&[]).await, []);
        let mut client = world.client().await;
        client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        let length = field(&head, "content-length").unwrap().parse().unwrap();
        let text = client.exactly(length).await;
        assert_eq!(text, "linkspan: no cluster can serve shop/web port 80: west: link down\n");
    })
    .await;
}

#[tokio::test]
async fn a_link_that_is_lost_under_a_request_is_told() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            wire.head().await;
            std::future::pending::<()>().await;
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        while *world.west.late.streams.lock().unwrap() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.east.side.links.configure(&[]).await, []);
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 502"), "{head}");
        assert_eq!(field(&head, "linkspan-error").as_deref(), Some("link_lost"));
    })
    .await;
}
