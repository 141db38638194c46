//! Where a message of HTTP/1 ends: whatever a client writes, backends are told one thing only, or nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::kit::{World, backend, field};
use super::patiently;

/// What a backend is to see of a request: its body, or nothing of it at all.
enum Expect {
    Refused,
    Body(&'static str),
    /// Either: what matters is that nothing else is seen.
    Any,
}
use Expect::{Any, Body, Refused};

/// Heads behind `POST /vector HTTP/1.1`, `Host` and `Connection: close`, each with what comes behind them. A second request is hidden where
/// somebody who reads the first one otherwise would find it.
const VECTORS: [(&str, &str, Expect); 64] = [
    ("content-length: 3", "abc", Body("abc")),
    ("content-length: 0", "", Body("")),
    ("content-length: 003", "abc", Any),
    ("content-length: 3\r\ncontent-length: 3", "abc", Any),
    ("content-length: 3, 3", "abc", Any),
    ("content-length: 3\r\ncontent-length: 4", "abcd", Refused),
    ("content-length: 3, 4", "abcd", Refused),
    ("content-length: +3", "abc", Refused),
    ("content-length: -3", "abc", Refused),
    ("content-length: 0x3", "abc", Refused),
    ("content-length: 3 ", "abc", Any),
    ("content-length: 3;q=1", "abc", Refused),
    ("content-length: 1e1", "abc", Refused),
    ("content-length: 3.0", "abc", Refused),
    ("content-length:", "abc", Refused),
    ("content-length: ,", "abc", Refused),
    ("content-length: three", "abc", Refused),
    ("content-length: 18446744073709551616", "abc", Refused),
    ("content-length: 99999999999999999999999999", "abc", Refused),
    ("content-length : 3", "abc", Refused),
    (" content-length: 3", "abc", Refused),
    ("content-length\t: 3", "abc", Refused),
    ("content_length: 3", "GET /hidden HTTP/1.1\r\nHost: web\r\n\r\n", Any),
    ("content-length: 3\0", "abc", Refused),
    ("content-length: 3\r", "abc", Refused),
    ("transfer-encoding: chunked", "3\r\nabc\r\n0\r\n\r\n", Body("abc")),
    ("transfer-encoding: Chunked", "3\r\nabc\r\n0\r\n\r\n", Any),
    ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", "3\r\nabc\r\n0\r\n\r\n", Any),
    ("transfer-encoding: chunked, chunked", "3\r\nabc\r\n0\r\n\r\n", Any),
    ("transfer-encoding: identity", "abc", Refused),
    ("transfer-encoding: chunked, identity", "3\r\nabc\r\n0\r\n\r\n", Refused),
    ("transfer-encoding: identity, chunked", "3\r\nabc\r\n0\r\n\r\n", Refused),
    ("transfer-encoding: gzip, chunked", "3\r\nabc\r\n0\r\n\r\n", Refused),
    ("transfer-encoding: xchunked", "3\r\nabc\r\n0\r\n\r\n", Refused),
    ("transfer-encoding: chunked;a=b", "3\r\nabc\r\n0\r\n\r\n", Refused),
    ("transfer-encoding: \"chunked\"", "3\r\nabc\r\n0\r\n\r\n", Refused),
    ("transfer-encoding:\x0bchunked", "3\r\nabc\r\n0\r\n\r\n", Refused),
    ("transfer-encoding : chunked", "3\r\nabc\r\n0\r\n\r\n", Refused),
    ("transfer-encoding:", "3\r\nabc\r\n0\r\n\r\n", Refused),
    ("transfer-encoding: ,chunked", "3\r\nabc\r\n0\r\n\r\n", Any),
    ("transfer-encoding: chunked\r\ncontent-length: 4", "3\r\nabc\r\n0\r\n\r\n", Body("abc")),
    ("content-length: 4\r\ntransfer-encoding: chunked", "3\r\nabc\r\n0\r\n\r\n", Body("abc")),
    (
        "content-length: 50\r\ntransfer-encoding: chunked",
        "0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: web\r\n\r\n",
        Body(""),
    ),
    ("content-length: 4\r\ntransfer-encoding: xchunked", "abcd", Refused),
    ("transfer-encoding: chunked", "3;a=b\r\nabc\r\n0\r\n\r\n", Any),
    ("transfer-encoding: chunked", "3;a=b\nabc\r\n0\r\n\r\n", Any),
    ("transfer-encoding: chunked", "3\nabc\r\n0\r\n\r\n", Any),
    ("transfer-encoding: chunked", "3\r\nabcX\r\n0\r\n\r\n", Any),
    ("transfer-encoding: chunked", "+3\r\nabc\r\n0\r\n\r\n", Any),
    ("transfer-encoding: chunked", "0x3\r\nabc\r\n0\r\n\r\n", Any),
    ("transfer-encoding: chunked", "10000000000000000\r\nabc\r\n0\r\n\r\n", Any),
    ("transfer-encoding: chunked", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n", Any),
    ("transfer-encoding: chunked", "\r\nabc\r\n0\r\n\r\n", Any),
    ("transfer-encoding: chunked", "0\r\ncontent-length: 5\r\n\r\n", Any),
    ("transfer-encoding: chunked", "0\r\nhost: evil\r\n\r\n", Any),
    ("transfer-encoding: chunked", "0\r\n x: folded\r\n\r\n", Any),
    ("x: 1\r\n folded: 2\r\ncontent-length: 0", "", Refused),
    ("x: 1\r\n\tfolded\r\ncontent-length: 0", "", Refused),
    ("x: a\rcontent-length: 3", "abc", Refused),
    ("x: a\ncontent-length: 3", "abc", Any),
    (": empty\r\ncontent-length: 0", "", Refused),
    ("x y: 1\r\ncontent-length: 0", "", Refused),
    ("no colon\r\ncontent-length: 0", "", Refused),
    ("x\0: 1\r\ncontent-length: 0", "", Refused),
];

/// What backends saw, request by request: the head and the body as a strict reader has them.
type Seen = Arc<Mutex<Vec<(String, Bytes)>>>;

/// Reads strictly: exactly one framing, and nothing behind it.
async fn strict(seen: Seen) -> std::net::SocketAddr {
    backend(move |mut wire, _| {
        let seen = Arc::clone(&seen);
        async move {
            let head = wire.head().await;
            let (length, coding) = (field(&head, "content-length"), field(&head, "transfer-encoding"));
            assert!(length.is_none() || coding.is_none(), "two framings: {head}");
            let at = {
                let mut seen = seen.lock().unwrap();
                seen.push((head.clone(), Bytes::new()));
                seen.len() - 1
            };
            let body = match (length, coding.as_deref()) {
                (Some(length), _) => {
                    assert!(length.bytes().all(|byte| byte.is_ascii_digit()), "{head}");
                    wire.exactly(length.parse().unwrap()).await
                }
                (None, Some("chunked")) => wire.chunked().await.0,
                (None, None) => Bytes::new(),
                (None, other) => panic!("{other:?}"),
            };
            seen.lock().unwrap()[at].1 = body;
            wire.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            let rest = wire.rest().await.unwrap_or_default();
            assert!(rest.is_empty(), "behind the end of {head}: {rest:?}");
        }
    })
    .await
}

#[tokio::test]
async fn s_19_sixty_four_framings_are_refused_or_told_as_one() {
    patiently(async {
        let seen = Seen::default();
        let world = World::of(&[strict(Arc::clone(&seen)).await]).await;
        for (fields, body, expect) in &VECTORS {
            seen.lock().unwrap().clear();
            let mut client = world.client().await;
            let head = "POST /vector HTTP/1.1\r\nHost: web\r\nConnection: close";
            client.write(format!("{head}\r\n{fields}\r\n\r\n{body}")).await;
            // What is broken in a way that looks unfinished may be waited for.
            let answer = tokio::time::timeout(Duration::from_millis(500), client.rest()).await;
            let answer = answer.map(Result::unwrap_or_default).unwrap_or_default();
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let seen = seen.lock().unwrap().clone();
            assert!(seen.len() <= 1 || matches!(expect, Any), "{fields:?} {body:?}: {seen:?}");
            match expect {
                Refused => {
                    assert!(seen.is_empty(), "{fields:?} was passed on: {seen:?}");
                    assert!(
                        answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 501"),
                        "{fields:?}: {answer}"
                    );
                }
                Body(expected) => {
                    assert!(answer.starts_with("HTTP/1.1 200"), "{fields:?}: {answer}");
                    assert_eq!(seen[0].1, expected.as_bytes(), "{fields:?}");
                }
                Any => {}
            }
            for (head, _) in &seen {
                let first = head.lines().next().unwrap();
                // A field whose name only resembles the length says nothing: what follows is a request of its own.
                let named = fields.contains("content_length") && first.starts_with("GET /hidden");
                assert!(first.starts_with("POST /vector") || named, "{fields:?} hid {head}");
            }
        }
    })
    .await;
}

/// Clients whose requests end in every way there is, over one pool of connections: no answer comes to another request.
#[tokio::test]
async fn s_22_no_answer_is_ever_another_requests() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            loop {
                let head = wire.head().await;
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let nonce = field(&head, "x-nonce").unwrap_or_default();
                let answer = format!("HTTP/1.1 200 OK\r\nx-nonce: {nonce}\r\ncontent-length: 4\r\n");
                match path.as_str() {
                    "/early" => {
                        // The body is not read.
                        wire.write(format!("{answer}\r\nwhat")).await;
                        return;
                    }
                    "/cut" => {
                        wire.write(format!("{answer}\r\nwh")).await;
                        return;
                    }
                    "/close" => {
                        wire.exactly(field(&head, "content-length").map_or(0, |length| length.parse().unwrap())).await;
                        wire.write(format!("{answer}connection: close\r\n\r\nwhat")).await;
                        return;
                    }
                    _ => {
                        wire.exactly(field(&head, "content-length").map_or(0, |length| length.parse().unwrap())).await;
                        wire.write(format!("{answer}\r\nwhat")).await;
                    }
                }
            }
        })
        .await;
        let world = Arc::new(World::of(&[address]).await);
        let client = |number: usize| {
            let world = Arc::clone(&world);
            async move {
                let mut client = world.client().await;
                for round in 0..250 {
                    let (path, nonce) = (
                        ["/", "/early", "/", "/cut", "/close", "/gone"][(number + round) % 6],
                        format!("{number}-{round}"),
                    );
                    let length = if path == "/early" { 30_000 } else { 10 };
                    let head = format!(
                        "POST {path} HTTP/1.1\r\nHost: web\r\nx-nonce: {nonce}\r\ncontent-length: {length}\r\n\r\n"
                    );
                    drop(tokio::io::AsyncWriteExt::write_all(&mut client.stream, head.as_bytes()).await);
                    drop(tokio::io::AsyncWriteExt::write_all(&mut client.stream, &vec![b'x'; length]).await);
                    if path == "/gone" {
                        // It does not wait for its answer.
                        client = world.client().await;
                        continue;
                    }
                    if matches!(path, "/" | "/close") {
                        let head = client.head().await;
                        assert_eq!(field(&head, "x-nonce").as_deref(), Some(nonce.as_str()), "{path}: {head}");
                        assert_eq!(client.exactly(4).await, "what");
                        continue;
                    }
                    // The answer may be torn, and is anybody's guess; what is there of it must be this request's.
                    let mut answer = [0; 4096];
                    let read = tokio::io::AsyncReadExt::read(&mut client.stream, &mut answer).await.unwrap_or_default();
                    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
                    if let Some((_, seen)) = answer.split_once("x-nonce: ") {
                        assert!(seen.starts_with(&format!("{nonce}\r\n")), "{path}: {answer}");
                    }
                    client = world.client().await;
                }
            }
        };
        let clients: Vec<_> = (0..8).map(|number| tokio::spawn(client(number))).collect();
        for client in clients {
            client.await.unwrap();
        }
    })
    .await;
}
