//! Bodies: large ones, chunked ones, early answers, and every way to be cut.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use linkspan_proto::refusal::Refusal;
use tokio::sync::Notify;

use super::kit::{World, backend, canned, field, full, hyper_backend, pattern};
use super::patiently;
use crate::outcome::Outcome;

const LARGE: usize = 10 * 1024 * 1024;

#[tokio::test]
async fn ten_megabytes_up_and_down() {
    patiently(async {
        let address = hyper_backend(false, |request| async move {
            let length = request.headers().get("content-length").cloned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(length.unwrap(), body.len().to_string().as_str());
            Response::new(full(body))
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        let body = pattern(LARGE);
        client.write(format!("POST / HTTP/1.1\r\nHost: web\r\ncontent-length: {LARGE}\r\n\r\n")).await;
        client.write(&body).await;
        let head = client.head().await;
        assert_eq!(field(&head, "content-length").unwrap(), LARGE.to_string());
        assert!(client.exactly(LARGE).await == body, "the bytes differ");
        let (entry, outcome) = world.east.seen.ended(0).await;
        assert_eq!((outcome, entry.received, entry.sent), (Outcome::Ok, LARGE as u64, LARGE as u64));
        let (entry, outcome) = world.west.seen.ended(0).await;
        assert_eq!((outcome, entry.received, entry.sent), (Outcome::Ok, LARGE as u64, LARGE as u64));
    })
    .await;
}

#[tokio::test]
async fn ten_megabytes_up_and_down_over_http_2() {
    patiently(async {
        let address = hyper_backend(true, |request| async move {
            // Echoes as it comes.
            Response::new(request.into_body().map_err(std::io::Error::other).boxed_unsync())
        })
        .await;
        let world = World::of(&[address]).await;
        let body = pattern(LARGE);
        let request = Request::post("http://web/").body(full(body.clone())).unwrap();
        let response = world.http2().await.send_request(request).await.unwrap();
        assert!(response.into_body().collect().await.unwrap().to_bytes() == body, "the bytes differ");
    })
    .await;
}

#[tokio::test]
async fn chunked_both_ways_with_trailers() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            for _ in 0..2 {
                let head = wire.head().await;
                assert_eq!(field(&head, "transfer-encoding").as_deref(), Some("chunked"), "{head}");
                assert_eq!(field(&head, "content-length"), None, "{head}");
                assert_eq!(field(&head, "te").as_deref(), Some("trailers"), "{head}");
                assert_eq!(field(&head, "connection").as_deref(), Some("te"), "{head}");
                let (body, trailers) = wire.chunked().await;
                assert_eq!(body, "hello, world");
                assert_eq!(trailers, ["x-sum: 12"]);
                wire.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-checked\r\n\r\n").await;
                wire.write("2\r\nok\r\n0\r\nx-checked: yes\r\nlinkspan-error: forged\r\n\r\n").await;
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        // GET with a body, too: nobody forbids it.
        for method in ["POST", "GET"] {
            client
                .write(format!(
                    "{method} / HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\
                     Trailer: x-sum\r\n\r\n6\r\nhello,\r\n"
                ))
                .await;
            client.write("6\r\n world\r\n0\r\nx-sum: 12\r\nlinkspan-source: forged\r\n\r\n").await;
            let head = client.head().await;
            assert_eq!(field(&head, "transfer-encoding").as_deref(), Some("chunked"), "{head}");
            let (body, trailers) = client.chunked().await;
            assert_eq!(body, "ok");
            assert_eq!(trailers, ["x-checked: yes"]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_streams_as_it_comes() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            wire.head().await;
            wire.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            // Each answer waits for the piece before it: nothing is held back.
            for _ in 0..5 {
                let size = wire.line().await;
                let piece = wire.exactly(usize::from_str_radix(&size, 16).unwrap() + 2).await;
                wire.write([format!("{size}\r\n").as_bytes(), &piece].concat()).await;
            }
            wire.write("0\r\n\r\n").await;
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client.write("POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        client.head().await;
        for piece in ["a", "bb", "ccc", "dddd", "eeeee"] {
            client.write(format!("{:x}\r\n{piece}\r\n", piece.len())).await;
            assert_eq!(client.line().await, format!("{:x}", piece.len()).to_uppercase());
            assert_eq!(client.exactly(piece.len()).await, piece);
            assert_eq!(client.line().await, "");
        }
        client.write("0\r\n\r\n").await;
        assert_eq!(client.chunked().await.0, "");
    })
    .await;
}

#[tokio::test]
async fn s_22_an_early_answer_stops_the_upload() {
    patiently(async {
        let address = backend(|mut wire, number| async move {
            let head = wire.head().await;
            if head.starts_with("POST") {
                wire.exactly(1000).await;
                wire.write("HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nenoug").await;
                // Until the gateway stops.
                drop(wire.rest().await);
            } else {
                // The connection of the early answer is not used again.
                assert_ne!(number, 0);
                wire.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client.write(format!("POST / HTTP/1.1\r\nHost: web\r\ncontent-length: {LARGE}\r\n\r\n")).await;
        client.write(pattern(200_000)).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 413"), "{head}");
        assert_eq!(client.exactly(5).await, "enoug");
        // What the client still sends is read and dropped: the answer was not torn away by a reset.
        client.write(pattern(100_000)).await;
        assert_eq!(client.rest().await.unwrap(), "");
        let mut client = world.client().await;
        client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        let (entry, outcome) = world.west.seen.ended(0).await;
        assert_eq!((outcome, entry.status), (Outcome::Ok, Some(413)));
    })
    .await;
}

/// A backend that sends this, and closes when it is told to.
async fn torso(response: &'static str) -> (std::net::SocketAddr, Arc<Notify>) {
    let cut = Arc::new(Notify::new());
    let told = Arc::clone(&cut);
    let address = backend(move |mut wire, _| {
        let told = Arc::clone(&told);
        async move {
            wire.head().await;
            wire.write(response).await;
            told.notified().await;
        }
    })
    .await;
    (address, cut)
}

const TORSOS: [&str; 3] = [
    "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nA\r\nhello",
];

#[tokio::test]
async fn a_truncated_response_is_no_end() {
    patiently(async {
        // Delimited by the end of the connection, HTTP/1.0 has only a reset to tell a cut from an end.
        for (response, version) in TORSOS.into_iter().flat_map(|torso| [(torso, "1.0"), (torso, "1.1")]) {
            let (address, cut) = torso(response).await;
            let world = World::of(&[address]).await;
            let mut client = world.client().await;
            client.write(format!("GET / HTTP/{version}\r\nHost: web\r\n\r\n")).await;
            client.head().await;
            client.exactly(5).await;
            cut.notify_one();
            assert!(client.rest().await.is_err(), "{version}: {response}");
            for node in [&world.east, &world.west] {
                assert_eq!(
                    node.seen.ended(0).await.1,
                    Outcome::Refused(Refusal::BackendReset),
                    "{version}: {response}"
                );
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_response_that_is_cut_at_once_is_a_502() {
    patiently(async {
        for response in TORSOS.into_iter().chain(["", "HTTP/1.1 200", "nonsense\r\n\r\n"]) {
            let world = World::of(&[canned(response).await]).await;
            let mut client = world.client().await;
            client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 502"), "{response}: {head}");
            assert_eq!(field(&head, "linkspan-error").as_deref(), Some("backend_reset"), "{response}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_truncated_response_resets_the_http_2_stream() {
    patiently(async {
        let cut = Arc::new(Notify::new());
        let told = Arc::clone(&cut);
        let address = backend(move |wire, _| {
            let told = Arc::clone(&told);
            async move {
                let mut connection = h2::server::handshake(wire.stream).await.unwrap();
                let (_, mut respond) = connection.accept().await.unwrap().unwrap();
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                send.send_data(Bytes::from_static(b"half"), false).unwrap();
                tokio::select! {
                    closed = std::future::poll_fn(|cx| connection.poll_closed(cx)) => closed.unwrap(),
                    () = told.notified() => {}
                }
                send.send_reset(h2::Reason::NO_ERROR);
                drop(std::future::poll_fn(|cx| connection.poll_closed(cx)).await);
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let request = Request::get("http://web/").body(full("")).unwrap();
        let response = world.http2().await.send_request(request).await.unwrap();
        let mut body = response.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
        cut.notify_one();
        assert!(body.frame().await.unwrap().is_err());
    })
    .await;
}

#[tokio::test]
async fn a_truncated_request_is_no_end() {
    patiently(async {
        let (told, mut events) = tokio::sync::mpsc::channel(2);
        let address = hyper_backend(false, move |request| {
            let told = told.clone();
            async move {
                let mut body = request.into_body();
                let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
                told.send(first == "hello").await.unwrap();
                told.send(body.collect().await.is_err()).await.unwrap();
                Response::new(full(""))
            }
        })
        .await;
        let world = World::of(&[address]).await;
        for (head, body) in [("content-length: 100", "hello"), ("transfer-encoding: chunked", "5\r\nhello\r\n")] {
            for more in ["", "nonsense\r\n"] {
                let mut client = world.client().await;
                client.write(format!("POST / HTTP/1.1\r\nHost: web\r\n{head}\r\n\r\n{body}")).await;
                assert_eq!(events.recv().await, Some(true), "{head}");
                client.write(more).await;
                if head.ends_with("chunked") && !more.is_empty() {
                    let head = client.head().await;
                    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
                }
                drop(client);
                assert_eq!(events.recv().await, Some(true), "{head} {more}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_that_is_cut_at_once_never_looks_whole() {
    patiently(async {
        let (told, mut wholes) = tokio::sync::mpsc::channel(1);
        let address = hyper_backend(false, move |request| {
            let told = told.clone();
            async move {
                let path = request.uri().path().to_owned();
                if request.into_body().collect().await.is_ok() {
                    told.send(path).await.unwrap();
                }
                Response::new(full(""))
            }
        })
        .await;
        let world = World::of(&[address]).await;
        for head in ["content-length: 100", "transfer-encoding: chunked"] {
            for _ in 0..10 {
                let mut client = world.client().await;
                client.write(format!("POST /torso HTTP/1.1\r\nHost: web\r\n{head}\r\n\r\n5\r\nhello\r\n")).await;
            }
        }
        world.east.seen.ended(19).await;
        let mut client = world.client().await;
        client.write("POST /whole HTTP/1.1\r\nHost: web\r\ncontent-length: 1\r\n\r\nx").await;
        assert_eq!(wholes.recv().await.as_deref(), Some("/whole"));
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_backends_work() {
    patiently(async {
        let (told, mut gone) = tokio::sync::mpsc::channel(1);
        let address = backend(move |mut wire, _| {
            let told = told.clone();
            async move {
                wire.head().await;
                // The end of the connection.
                drop(wire.rest().await);
                told.send(()).await.unwrap();
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.client().await;
        client.write("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        while *world.west.late.streams.lock().unwrap() == 0 {
            tokio::task::yield_now().await;
        }
        drop(client);
        gone.recv().await.unwrap();
        assert_eq!(world.east.seen.ended(0).await.1, Outcome::ClientGone);
        assert_eq!(world.west.seen.ended(0).await.1, Outcome::ClientGone);
    })
    .await;
}
