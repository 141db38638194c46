//! HTTP/2 with prior knowledge, and gRPC.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use linkspan_proto::refusal::Refusal;
use tokio::sync::{Notify, mpsc};

use super::kit::{BoxBody, Plan, World, full, hyper_backend, pattern};
use super::patiently;
use crate::outcome::{Outcome, Protocol};

/// A body that is fed by hand.
fn channel() -> (mpsc::Sender<std::io::Result<Frame<Bytes>>>, BoxBody) {
    let (sender, mut receiver) = mpsc::channel(4);
    let stream = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    (sender, BodyExt::boxed_unsync(StreamBody::new(stream)))
}

fn trailers(fields: &[(&'static str, &'static str)]) -> Frame<Bytes> {
    Frame::trailers(
        fields.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect(),
    )
}

fn grpc(path: &str, body: BoxBody) -> Request<BoxBody> {
    Request::post(format!("http://web.shop:8080{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

#[tokio::test]
async fn requests_of_one_connection_cross_side_by_side() {
    patiently(async {
        let address = hyper_backend(true, |request| async move {
            let (parts, body) = request.into_parts();
            assert_eq!(parts.version, http::Version::HTTP_2);
            assert_eq!(parts.uri.authority().map(|authority| authority.as_str()), Some("Web.Shop:8080"));
            assert!(!parts.headers.contains_key("host"));
            let body = body.collect().await.unwrap().to_bytes();
            let source = parts.headers["linkspan-source"].clone();
            Response::builder().header("x-path", parts.uri.path()).header("x-source", source).body(full(body)).unwrap()
        })
        .await;
        let world = World::of(&[address]).await;
        let client = world.http2().await;
        let requests = (0..50).map(|number| {
            let mut client = client.clone();
            async move {
                let body = pattern(number * 1000);
                let request = Request::post(format!("http://Web.Shop:8080/{number}")).body(full(body.clone())).unwrap();
                let response = client.send_request(request).await.unwrap();
                assert_eq!(response.headers()["x-path"], format!("/{number}").as_str());
                assert!(response.headers()["x-source"].to_str().unwrap().contains("/ns/shop/sa/client"));
                assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
            }
        });
        futures::future::join_all(requests).await;
        let (entry, outcome) = world.east.seen.ended(49).await;
        assert_eq!((outcome, entry.protocol), (Outcome::Ok, Protocol::Http2));
    })
    .await;
}

/// RFC 9113 section 8.3.1: such a request is for its `Host`, and its path stays what it is (S-18).
#[tokio::test]
async fn a_request_without_authority_keeps_its_path_and_host() {
    patiently(async {
        let address = hyper_backend(true, |request| async move {
            let target = request.uri().to_string();
            assert!(!request.headers().contains_key("host"));
            Response::builder().header("x-target", target).body(full(Bytes::new())).unwrap()
        })
        .await;
        let world = World::of(&[address]).await;
        let stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        // h2 leaves `:authority` out of a request that was HTTP/1.1 in origin form.
        let request = || Request::get("/a//b/..%2f;x?y=%20").version(http::Version::HTTP_11);
        let named = request().header("host", "Web.Shop:8080").body(()).unwrap();
        let response = client.send_request(named, true).unwrap().0.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["x-target"], "http://Web.Shop:8080/a//b/..%2f;x?y=%20");
        let nameless = client.send_request(request().body(()).unwrap(), true).unwrap().0.await.unwrap();
        assert_eq!(nameless.status(), StatusCode::BAD_REQUEST);
    })
    .await;
}

#[tokio::test]
async fn grpc_trailers_come_through() {
    patiently(async {
        let address = hyper_backend(true, |request| async move {
            assert_eq!(request.headers()["te"], "trailers");
            let received = request.into_body().collect().await.unwrap();
            assert_eq!(received.trailers().unwrap()["x-client-trailer"], "1");
            assert!(!received.trailers().unwrap().contains_key("linkspan-source"));
            let (sender, body) = channel();
            sender.send(Ok(Frame::data(received.to_bytes()))).await.unwrap();
            sender.send(Ok(trailers(&[("grpc-status", "5"), ("grpc-message", "no%20such")]))).await.unwrap();
            Response::builder().header("content-type", "application/grpc").body(body).unwrap()
        })
        .await;
        let world = World::of(&[address]).await;
        let (sender, body) = channel();
        sender.send(Ok(Frame::data(Bytes::from_static(b"ping")))).await.unwrap();
        sender.send(Ok(trailers(&[("x-client-trailer", "1"), ("linkspan-source", "forged")]))).await.unwrap();
        drop(sender);
        let response = world.http2().await.send_request(grpc("/a.B/C", body)).await.unwrap();
        let received = response.into_body().collect().await.unwrap();
        assert_eq!(received.trailers().unwrap()["grpc-status"], "5");
        assert_eq!(received.trailers().unwrap()["grpc-message"], "no%20such");
        assert_eq!(received.to_bytes(), "ping");
        let (entry, outcome) = world.east.seen.ended(0).await;
        assert_eq!((outcome, entry.protocol, entry.grpc_status), (Outcome::Ok, Protocol::Grpc, Some(5)));
        let (entry, _) = world.west.seen.ended(0).await;
        assert_eq!((entry.protocol, entry.grpc_status), (Protocol::Grpc, Some(5)));
    })
    .await;
}

#[tokio::test]
async fn a_trailers_only_response_stays_one() {
    patiently(async {
        let address = hyper_backend(true, |_| async {
            let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "12");
            head.body(full("")).unwrap()
        })
        .await;
        let world = World::of(&[address]).await;
        let response = world.http2().await.send_request(grpc("/a.B/C", full("x"))).await.unwrap();
        // END_STREAM stands on the head itself, or gRPC clients would miss the status.
        assert!(http_body::Body::is_end_stream(response.body()));
        assert_eq!(response.headers()["grpc-status"], "12");
    })
    .await;
}

#[tokio::test]
async fn a_bidirectional_stream_flows_both_ways() {
    patiently(async {
        let address = hyper_backend(true, |request| async move {
            let (sender, body) = channel();
            tokio::spawn(async move {
                let mut incoming = request.into_body();
                while let Some(frame) = incoming.frame().await {
                    sender.send(frame.map_err(std::io::Error::other)).await.unwrap();
                }
                sender.send(Ok(trailers(&[("grpc-status", "0")]))).await.unwrap();
            });
            Response::builder().header("content-type", "application/grpc").body(body).unwrap()
        })
        .await;
        let world = World::of(&[address]).await;
        let (sender, body) = channel();
        // The head of the response comes before the first byte of the request's body.
        let response = world.http2().await.send_request(grpc("/a.B/Echo", body)).await.unwrap();
        let mut incoming = response.into_body();
        for number in 0..20u8 {
            let message = Bytes::from(vec![number; usize::from(number) * 500 + 1]);
            sender.send(Ok(Frame::data(message.clone()))).await.unwrap();
            let mut echo = Vec::new();
            while echo.len() < message.len() {
                echo.extend_from_slice(&incoming.frame().await.unwrap().unwrap().into_data().unwrap());
            }
            assert_eq!(echo, message);
        }
        drop(sender);
        let end = incoming.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(end["grpc-status"], "0");
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_read_may_go_on_sending() {
    patiently(async {
        let (told, mut count) = mpsc::channel(1);
        let address = hyper_backend(true, move |request| {
            let told = told.clone();
            async move {
                let (sender, body) = channel();
                // Fills the client's window and everything between.
                tokio::spawn(async move { while sender.send(Ok(Frame::data(pattern(64 * 1024)))).await.is_ok() {} });
                tokio::spawn(async move {
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    told.send(body.len()).await.unwrap();
                });
                Response::new(body)
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let (sender, body) = channel();
        let response = world.http2().await.send_request(grpc("/", body)).await.unwrap();
        for _ in 0..40 {
            sender.send(Ok(Frame::data(pattern(64 * 1024)))).await.unwrap();
        }
        drop(sender);
        assert_eq!(count.recv().await, Some(40 * 64 * 1024));
        drop(response);
    })
    .await;
}

#[tokio::test]
async fn a_deadline_is_kept_by_the_gateways() {
    patiently(async {
        let address = hyper_backend(true, |request| async move {
            let left = request.headers()["grpc-timeout"].to_str().unwrap().strip_suffix('n').map(str::parse::<u64>);
            assert!(matches!(left, Some(Ok(1..60_000_000))), "what is left of it: {:?}", request.headers());
            std::future::pending().await
        })
        .await;
        let world = World::of(&[address]).await;
        let mut request = grpc("/a.B/C", full("x"));
        request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("60m"));
        let response = world.http2().await.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "4");
        assert_eq!(response.headers()["linkspan-error"], "deadline");
        assert!(http_body::Body::is_end_stream(response.body()));
        let (_, outcome) = world.west.seen.ended(0).await;
        assert_eq!(outcome, Outcome::Refused(Refusal::Deadline));
        let (entry, outcome) = world.east.seen.ended(0).await;
        assert_eq!((outcome, entry.grpc_status), (Outcome::Refused(Refusal::Deadline), Some(4)));
    })
    .await;
}

#[tokio::test]
async fn a_deadline_cuts_a_stream_in_trailers() {
    patiently(async {
        let address = hyper_backend(true, |_| async {
            let (sender, body) = channel();
            sender.send(Ok(Frame::data(Bytes::from_static(b"first")))).await.unwrap();
            tokio::spawn(async move { sender.closed().await });
            Response::builder().header("content-type", "application/grpc").body(body).unwrap()
        })
        .await;
        let world = World::of(&[address]).await;
        let mut request = grpc("/a.B/C", full("x"));
        request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("100m"));
        let response = world.http2().await.send_request(request).await.unwrap();
        let received = response.into_body().collect().await.unwrap();
        assert_eq!(received.trailers().unwrap()["grpc-status"], "4");
        assert_eq!(received.to_bytes(), "first");
    })
    .await;
}

#[tokio::test]
async fn a_grpc_client_learns_that_the_backend_broke_off() {
    patiently(async {
        let cut = Arc::new(Notify::new());
        let told = Arc::clone(&cut);
        let address = hyper_backend(true, move |_| {
            let told = Arc::clone(&told);
            async move {
                let (sender, body) = channel();
                sender.send(Ok(Frame::data(Bytes::from_static(b"half a mess")))).await.unwrap();
                tokio::spawn(async move {
                    told.notified().await;
                    sender.send(Err(std::io::Error::other("broken"))).await.unwrap();
                });
                Response::builder().header("content-type", "application/grpc").body(body).unwrap()
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let response = world.http2().await.send_request(grpc("/a.B/C", full("x"))).await.unwrap();
        let mut body = response.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half a mess");
        cut.notify_one();
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["linkspan-error"], "backend_reset");
        assert!(body.frame().await.is_none());
    })
    .await;
}

#[tokio::test]
async fn refusals_are_grpc_statuses() {
    patiently(async {
        let world = World::new(Plan::default()).await;
        let response = world.http2().await.send_request(grpc("/a.B/C", full("x"))).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert!(response.headers()["grpc-message"].to_str().unwrap().contains("no cluster can serve"));
    })
    .await;
}

#[tokio::test]
async fn a_client_that_cancels_cancels_the_backends_work() {
    patiently(async {
        let (told, mut cancelled) = mpsc::channel::<()>(1);
        let address = hyper_backend(true, move |_| {
            let told = told.clone();
            async move {
                // Dropped by hyper when the stream is reset.
                let _guard = told;
                std::future::pending().await
            }
        })
        .await;
        let world = World::of(&[address]).await;
        let mut client = world.http2().await;
        let request = client.send_request(grpc("/a.B/C", full("x")));
        let watch = async {
            while *world.west.late.streams.lock().unwrap() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = request => panic!("no response is due"),
            () = watch => {}
        }
        let (_, outcome) = world.west.seen.ended(0).await;
        assert_eq!(outcome, Outcome::ClientGone);
        let (_, outcome) = world.east.seen.ended(0).await;
        assert_eq!(outcome, Outcome::ClientGone);
        drop(world);
        assert_eq!(cancelled.try_recv().ok(), None);
    })
    .await;
}

#[tokio::test]
async fn s_21_connect_is_refused() {
    patiently(async {
        let world = World::of(&[]).await;
        let request = Request::connect("web.shop:8080").body(full("")).unwrap();
        let response = world.http2().await.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert!(response.headers().contains_key("allow"));
    })
    .await;
}

#[tokio::test]
async fn cookie_crumbs_and_repeated_fields_stay() {
    patiently(async {
        let address = hyper_backend(true, |request| async move {
            let cookies: Vec<_> = request.headers().get_all("cookie").iter().cloned().collect();
            let mut response = Response::new(full(""));
            let headers: &mut HeaderMap = response.headers_mut();
            for cookie in cookies {
                headers.append("set-cookie", cookie);
            }
            response
        })
        .await;
        let world = World::of(&[address]).await;
        let request =
            Request::get("http://web/").header("cookie", "a=1").header("cookie", "b=2").body(full("")).unwrap();
        let response = world.http2().await.send_request(request).await.unwrap();
        let cookies: Vec<_> = response.headers().get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1", "b=2"]);
    })
    .await;
}
