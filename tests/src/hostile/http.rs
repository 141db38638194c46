//! HTTP on the link (proto/src/frames.rs), as no gateway writes it.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method};
use linkspan_proto::frames::{HttpVersion, RequestHead, data_prefix, encode_request_head, encode_trailers};
use linkspan_proto::stream_header::StreamKind;
use quinn::Connection;
use tokio::time::timeout;

use super::plan::{Link, Plan};

/// Streams that stay open at the same time.
const AT_ONCE: usize = 64;

/// How long a stream may wait for credit.
const CREDIT: Duration = Duration::from_millis(200);

/// Frame types (proto/src/frames.rs).
const DATA: u8 = 0;
const HEAD: u8 = 1;
const TRAILERS: u8 = 2;

fn head() -> Vec<u8> {
    let head = RequestHead {
        method: Method::POST,
        scheme: http::uri::Scheme::HTTP,
        authority: Some("web".parse().expect("a host")),
        path_and_query: "/".parse().expect("a path"),
        version: HttpVersion::H1,
        headers: HeaderMap::new(),
    };
    encode_request_head(&head).expect("a head").to_vec()
}

/// A frame of whatever type, whose length is said to be `length` in four bytes (the largest varint of that size).
fn frame(kind: u8, length: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    let mut left = length;
    while left >= 0x80 {
        bytes.push(left.to_le_bytes()[0] | 0x80);
        left >>= 7;
    }
    bytes.push(left.to_le_bytes()[0]);
    bytes.extend_from_slice(payload);
    bytes
}

/// Sends each of `messages` on streams of their own, again and again; `finish`es them or leaves them as they are.
async fn send_all(plan: &Plan, connection: &Connection, messages: &[Vec<u8>], finish: bool) {
    let header = plan.header(StreamKind::Http);
    let mut held = std::collections::VecDeque::new();
    loop {
        for message in messages {
            let Ok(Ok((mut send, recv))) = timeout(CREDIT, connection.open_bi()).await else {
                held.clear();
                continue;
            };
            let sent = timeout(CREDIT, send.write_all(&[&header[..], message].concat())).await;
            if sent.is_ok_and(|sent| sent.is_ok()) {
                plan.tally.did(header.len() + message.len());
            }
            if finish {
                drop(send.finish());
            }
            held.push_back((send, recv));
            if held.len() > AT_ONCE {
                held.pop_front();
            }
        }
        tokio::task::yield_now().await;
    }
}

/// See [`super::Attack::HttpFrames`].
pub(super) async fn frames(plan: Arc<Plan>, link: Link) {
    let data = [data_prefix(2).to_vec(), b"hi".to_vec()].concat();
    let messages = [
        frame(9, 3, b"abc"),
        [head(), head()].concat(),
        [data.clone(), head()].concat(),
        [head(), frame(4, 0, b""), frame(4, 0, b"")].concat(),
        [head(), frame(3, 2, b"hi"), data].concat(),
        frame(HEAD, 4, &[0xff; 4]),
        vec![0xff; 2000],
    ];
    send_all(&plan, &link.connection, &messages, true).await;
}

/// See [`super::Attack::HttpHalves`].
pub(super) async fn halves(plan: Arc<Plan>, link: Link) {
    let head = head();
    let messages = [
        vec![HEAD],
        head[..head.len() / 2].to_vec(),
        [head.clone(), frame(DATA, 1_000_000, b"the rest never comes")].concat(),
        [head, frame(TRAILERS, 500, b"\x00")].concat(),
    ];
    send_all(&plan, &link.connection, &messages, false).await;
}

/// See [`super::Attack::HttpHeads`].
pub(super) async fn heads(plan: Arc<Plan>, link: Link) {
    let large = vec![b'a'; 70_000];
    let messages = [
        frame(HEAD, 70_000, &large),
        frame(HEAD, u32::MAX, &large[..1000]),
        // Fields without end in a head that is small enough: empty names and values of the literal form.
        frame(HEAD, 60_000, &vec![0; 60_000]),
    ];
    send_all(&plan, &link.connection, &messages, false).await;
}

/// See [`super::Attack::HttpTrailers`].
pub(super) async fn trailers(plan: Arc<Plan>, link: Link) {
    let mut forged = HeaderMap::new();
    for name in ["linkspan-source", "content-length", "host", "x-forwarded-client-cert"] {
        forged.append(http::HeaderName::from_static(name), HeaderValue::from_static("forged"));
    }
    let forged = encode_trailers(&forged).expect("trailers").to_vec();
    let data = [data_prefix(2).to_vec(), b"hi".to_vec()].concat();
    let messages = [
        [head(), forged.clone(), data.clone()].concat(),
        [head(), forged.clone(), forged.clone()].concat(),
        forged.clone(),
        [head(), data, frame(TRAILERS, 70_000, &vec![b'a'; 70_000])].concat(),
        [head(), forged].concat(),
    ];
    send_all(&plan, &link.connection, &messages, true).await;
}
