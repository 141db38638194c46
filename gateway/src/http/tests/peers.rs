//! Peers of another make: streams written by hand. What an honest gateway never sends must do no harm.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use linkspan_proto::frames::{
    Event, FrameReader, HttpVersion, RequestHead, Side, data_prefix, encode_request_head, encode_trailers, upgraded,
};
use linkspan_proto::identity::{Assurance, Source, SpiffeId};
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::{StreamHeader, StreamKind};
use tokio::sync::Mutex;

use super::kit::{PORT, World, backend, canned, field, service};
use super::patiently;
use crate::link::{RecvHalf, SendHalf, StreamError};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn header(world: &World) -> StreamHeader {
    let path = "/ns/shop/sa/peer";
    let identity = format!("spiffe://{}{path}", world.east.gateway.own.trust_domain);
    StreamHeader {
        service: Some(service()),
        port: PORT,
        source: Some(Source::new(SpiffeId::parse(&identity).unwrap(), Assurance::Mtls)),
        path: vec![world.east.gateway.own.cluster.clone()],
        ..StreamHeader::new(StreamKind::Http)
    }
}

fn head(fields: &[(&str, &str)]) -> RequestHead {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    RequestHead {
        method: Method::POST,
        scheme: http::uri::Scheme::HTTP,
        authority: Some("web".parse().unwrap()),
        path_and_query: "/".parse().unwrap(),
        version: HttpVersion::H1,
        headers,
    }
}

async fn open(world: &World) -> (SendHalf, RecvHalf) {
    world.east.side.links.open(0, &world.west.gateway.own.cluster).await.unwrap()
}

/// How the response ends: its events, or the reset.
async fn response(mut recv: RecvHalf) -> Result<Vec<Event>, StreamError> {
    let mut reader = FrameReader::new(Side::Response);
    let mut events = Vec::new();
    while let Some(bytes) = recv.read(usize::MAX).await? {
        reader.push(bytes);
        while let Some(event) = reader.next().unwrap() {
            events.push(event);
        }
    }
    reader.finish().unwrap();
    Ok(events)
}

#[tokio::test]
async fn fields_that_a_peer_forged_do_not_arrive() {
    patiently(async {
        let seen = Arc::new(Mutex::new(String::new()));
        let into = Arc::clone(&seen);
        let address = backend(move |mut wire, _| {
            let into = Arc::clone(&into);
            async move {
                *into.lock().await = wire.head().await;
                wire.chunked().await;
                wire.write(OK).await;
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let (mut send, recv) = open(&world).await;
        let head = head(&[
            ("linkspan-source", "forged"),
            ("x-forwarded-client-cert", "forged"),
            ("l5d-client-id", "forged"),
            ("connection", "x-secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("host", "other"),
            ("te", "gzip"),
        ]);
        let chunks = &mut [
            header(&world).encode().unwrap(),
            encode_request_head(&head).unwrap(),
            data_prefix(2),
            Bytes::from_static(b"hi"),
            encode_trailers(&HeaderMap::from_iter([(
                HeaderName::from_static("linkspan-source"),
                HeaderValue::from_static("forged"),
            )]))
            .unwrap(),
        ];
        send.write_all(chunks).await.unwrap();
        send.finish().unwrap();
        let events = response(recv).await.unwrap();
        assert!(matches!(&events[0], Event::ResponseHead(head) if head.status == 200));
        let seen = seen.lock().await.clone();
        assert!(!seen.contains("forged"), "{seen}");
        assert_eq!(field(&seen, "host").as_deref(), Some("web"));
        assert_eq!(field(&seen, "x-secret"), None);
        assert_eq!(field(&seen, "keep-alive"), None);
        assert_eq!(field(&seen, "connection"), None);
        assert!(field(&seen, "linkspan-source").unwrap().contains("/ns/shop/sa/peer"));
    })
    .await;
}

#[tokio::test]
async fn s_20_broken_messages_reach_no_backend() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            // A connection may be made; no request may come.
            assert_eq!(wire.rest().await.unwrap_or_default(), "");
        })
        .await;
        let world = World::of(&[address]).await;
        let good = encode_request_head(&head(&[])).unwrap();
        let cases: Vec<(&str, Vec<Bytes>)> = vec![
            ("no head", vec![]),
            ("data before the head", vec![data_prefix(2), Bytes::from_static(b"hi"), good.clone()]),
            ("garbage", vec![Bytes::from_static(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")]),
            ("half a head", vec![good.slice(..good.len() / 2)]),
            ("length without a body", vec![encode_request_head(&head(&[("content-length", "5")])).unwrap()]),
            (
                "two lengths",
                vec![encode_request_head(&head(&[("content-length", "5"), ("content-length", "6")])).unwrap()],
            ),
        ];
        for (what, mut chunks) in cases {
            let (mut send, recv) = open(&world).await;
            chunks.insert(0, header(&world).encode().unwrap());
            send.write_all(&mut chunks).await.unwrap();
            send.finish().unwrap();
            let end = response(recv).await;
            assert_eq!(end, Err(StreamError::Reset(Refusal::Protocol)), "{what}");
        }
    })
    .await;
}

#[tokio::test]
async fn s_20_a_body_of_another_length_is_cut_off_from_the_backend() {
    patiently(async {
        let (told, mut wholes) = tokio::sync::mpsc::channel(4);
        let address = backend(move |mut wire, _| {
            let told = told.clone();
            async move {
                wire.head().await;
                let body = wire.rest().await.unwrap_or_default();
                told.send(body.len() >= 5).await.unwrap();
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let head = encode_request_head(&head(&[("content-length", "5")])).unwrap();
        for body in [&b"hell"[..], b"hello!"] {
            let (mut send, recv) = open(&world).await;
            let chunks = &mut [
                header(&world).encode().unwrap(),
                head.clone(),
                data_prefix(body.len()),
                Bytes::from_static(body),
            ];
            send.write_all(chunks).await.unwrap();
            send.finish().unwrap();
            let end = response(recv).await;
            assert_eq!(end, Err(StreamError::Reset(Refusal::Protocol)), "{body:?}");
            if let Ok(Some(whole)) = tokio::time::timeout(Duration::from_millis(100), wholes.recv()).await {
                assert!(!whole, "the backend took {body:?} for a whole body");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_stops_reading_its_answer_frees_the_backend() {
    patiently(async {
        let (told, mut gone) = tokio::sync::mpsc::channel(1);
        let address = backend(move |mut wire, _| {
            let told = told.clone();
            async move {
                wire.head().await;
                wire.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n").await;
                drop(wire.rest().await);
                told.send(()).await.unwrap();
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let (mut send, mut recv) = open(&world).await;
        let mut head = head(&[]);
        head.method = Method::GET;
        send.write_all(&mut [header(&world).encode().unwrap(), encode_request_head(&head).unwrap()]).await.unwrap();
        send.finish().unwrap();
        recv.read(usize::MAX).await.unwrap();
        recv.stop(Refusal::Cancelled);
        gone.recv().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_without_an_offer_is_out_of_order() {
    patiently(async {
        let world = World::of(&[canned(OK).await]).await;
        let (mut send, recv) = open(&world).await;
        let chunks = &mut [
            header(&world).encode().unwrap(),
            encode_request_head(&head(&[])).unwrap(),
            upgraded(),
            Bytes::from_static(b"raw"),
        ];
        send.write_all(chunks).await.unwrap();
        let end = response(recv).await;
        assert_eq!(end, Err(StreamError::Reset(Refusal::Protocol)));
    })
    .await;
}

#[tokio::test]
async fn s_14_what_is_not_exported_is_not_reached() {
    patiently(async {
        let address = backend(|_, _| async { panic!("a connection was made") }).await;
        let world = World::of(&[address]).await;
        for (service, port) in [("shop/web", 81), ("shop/other", PORT), ("kube-system/web", PORT)] {
            let (mut send, recv) = open(&world).await;
            let header = StreamHeader { service: Some(service.parse().unwrap()), port, ..header(&world) };
            let chunks = &mut [header.encode().unwrap(), encode_request_head(&head(&[])).unwrap()];
            send.write_all(chunks).await.unwrap();
            assert_eq!(response(recv).await, Err(StreamError::Reset(Refusal::UnknownExport)), "{service} {port}");
        }
    })
    .await;
}
