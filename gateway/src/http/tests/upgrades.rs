//! Protocols that a connection changes to.

use super::kit::{Plan, World, backend, field, pattern};
use super::patiently;
use crate::outcome::Outcome;

const OFFER: &str = "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Accepts the offer, says hello in the same segment, echoes until the end.
async fn echo() -> std::net::SocketAddr {
    backend(|mut wire, _| async move {
        let head = wire.head().await;
        assert_eq!(field(&head, "upgrade").as_deref(), Some("websocket"), "{head}");
        assert_eq!(field(&head, "connection").as_deref(), Some("upgrade"), "{head}");
        assert!(field(&head, "linkspan-source").is_some(), "{head}");
        assert!(field(&head, "sec-websocket-key").is_some(), "{head}");
        wire.write(format!("{ACCEPT}hello")).await;
        let (mut read, mut write) = wire.stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        tokio::io::AsyncWriteExt::shutdown(&mut write).await.unwrap();
    })
    .await
}

async fn talk(world: &World) {
    let mut client = world.client().await;
    client.write(OFFER).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!(field(&head, "upgrade").as_deref(), Some("websocket"));
    assert_eq!(field(&head, "connection").as_deref(), Some("upgrade"));
    assert_eq!(field(&head, "sec-websocket-accept").as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(client.exactly(5).await, "hello");
    for length in [1, 1000, 300_000] {
        let message = pattern(length);
        client.write(&message).await;
        assert!(client.exactly(length).await == message, "the bytes differ");
    }
    // Half-closed by the client, ended by the backend.
    tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.unwrap();
    assert_eq!(client.rest().await.unwrap(), "");
}

#[tokio::test]
async fn bytes_flow_both_ways_after_101() {
    patiently(async {
        let world = World::of(&[echo().await]).await;
        talk(&world).await;
        let (entry, outcome) = world.east.seen.ended(0).await;
        assert_eq!((outcome, entry.status, entry.received, entry.sent), (Outcome::Ok, Some(101), 301_001, 301_006));
        let (entry, outcome) = world.west.seen.ended(0).await;
        assert_eq!((outcome, entry.status, entry.received, entry.sent), (Outcome::Ok, Some(101), 301_001, 301_006));
    })
    .await;
}

#[tokio::test]
async fn bytes_flow_to_a_backend_of_the_same_cluster() {
    patiently(async {
        let address = echo().await;
        let world = World::new(Plan { east: vec![address], tiers: vec!["east"], ..Plan::default() }).await;
        talk(&world).await;
        let (entry, outcome) = world.east.seen.ended(0).await;
        assert_eq!((outcome, entry.status, entry.received, entry.sent), (Outcome::Ok, Some(101), 301_001, 301_006));
        assert_eq!(*world.west.late.streams.lock().unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn s_21_a_declined_offer_is_an_ordinary_response() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            for _ in 0..2 {
                wire.head().await;
                wire.write("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nplain").await;
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        for _ in 0..2 {
            client.write(OFFER).await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            assert_eq!(field(&head, "upgrade"), None);
            assert_eq!(client.exactly(5).await, "plain");
        }
    })
    .await;
}

#[tokio::test]
async fn s_21_no_byte_of_the_client_reaches_the_backend_before_its_101() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            let head = wire.head().await;
            assert!(!head.contains("smuggled"));
            let mut byte = [0];
            let early = tokio::time::timeout(
                std::time::Duration::from_millis(100),
                tokio::io::AsyncReadExt::read(&mut wire.stream, &mut byte),
            );
            early.await.expect_err("a byte before 101");
            wire.write(ACCEPT).await;
            assert_eq!(wire.exactly(8).await, "smuggled");
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client.write(format!("{OFFER}smuggled")).await;
        assert!(client.head().await.starts_with("HTTP/1.1 101"));
        drop(client.rest().await);
    })
    .await;
}

#[tokio::test]
async fn s_21_a_101_that_nobody_asked_for_is_a_failure() {
    patiently(async {
        let address = super::kit::canned(ACCEPT).await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    })
    .await;
}

#[tokio::test]
async fn h2c_is_not_offered_to_backends() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            let head = wire.head().await;
            assert_eq!(field(&head, "upgrade"), None, "{head}");
            assert_eq!(field(&head, "http2-settings"), None, "{head}");
            wire.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client
            .write(
                "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                 HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
            )
            .await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_that_is_cut_ends_in_a_reset() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            wire.head().await;
            wire.write(format!("{ACCEPT}half")).await;
            assert_eq!(wire.exactly(2).await, "go");
            wire.stream.set_zero_linger().unwrap();
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client.write(OFFER).await;
        client.head().await;
        assert_eq!(client.exactly(4).await, "half");
        client.write("go").await;
        assert!(client.rest().await.is_err());
        let (_, outcome) = world.west.seen.ended(0).await;
        assert_ne!(outcome, Outcome::Ok);
    })
    .await;
}
