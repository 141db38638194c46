//! How a gateway that ends leaves its clients: none of them loses a request.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::client::conn::http2;
use tokio::sync::Notify;

use super::kit::{BoxBody, Wire, World, backend, field, full, hyper_backend};
use super::patiently;

const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";

async fn ask(client: &mut Wire) -> String {
    client.write(GET).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let length = field(&head, "content-length").unwrap().parse().unwrap();
    client.exactly(length).await;
    head
}

/// Answers `ok`; requests for `/slow` when it is told to.
async fn world(http2: bool, go: Arc<Notify>) -> World {
    let address = hyper_backend(http2, move |request| {
        let go = Arc::clone(&go);
        async move {
            if request.uri().path() == "/slow" {
                go.notified().await;
            }
            Response::new(full("ok"))
        }
    })
    .await;
    World::of(&[address]).await
}

fn request(path: &str) -> Request<BoxBody> {
    Request::get(format!("http://web.shop:8080{path}")).body(full("")).unwrap()
}

/// Asks until the client knows that it has to go. Every request is answered, or was not processed for sure.
async fn ask_until_told(client: &mut http2::SendRequest<BoxBody>) {
    loop {
        match client.send_request(request("/")).await {
            Ok(response) => assert_eq!(response.status(), 200),
            Err(error) => {
                let cause = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
                let told =
                    cause.is_some_and(|cause| cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR));
                assert!(told || error.is_canceled(), "{error:?}");
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_idle_connection_is_answered_once_more_and_told_to_close() {
    patiently(async {
        let world = world(false, Arc::default()).await;
        let mut client = world.client().await;
        assert_eq!(field(&ask(&mut client).await, "connection"), None);
        world.east.drain.leave();
        assert_eq!(field(&ask(&mut client).await, "connection").as_deref(), Some("close"));
        assert_eq!(client.rest().await.unwrap(), "");
        // Who comes now was sent by somebody who does not know yet.
        let mut late = world.client().await;
        assert_eq!(field(&ask(&mut late).await, "connection").as_deref(), Some("close"));
        assert_eq!(late.rest().await.unwrap(), "");
    })
    .await;
}

#[tokio::test]
async fn what_is_pipelined_behind_the_last_answer_does_not_tear_it() {
    patiently(async {
        let world = world(false, Arc::default()).await;
        world.east.drain.leave();
        let mut client = world.client().await;
        client.write(GET.repeat(50)).await;
        let head = client.head().await;
        assert_eq!(field(&head, "connection").as_deref(), Some("close"));
        assert_eq!(client.exactly(2).await, "ok");
        assert_eq!(client.rest().await.unwrap(), "", "a clean end; the others may be sent again elsewhere");
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_holds_no_drain_up_and_outlives_none() {
    patiently(async {
        let world = world(false, Arc::default()).await;
        let mut client = world.client().await;
        ask(&mut client).await;
        assert!(world.east.drain.drain(Duration::from_secs(10)).await, "nothing is under way");
        assert_eq!(client.rest().await.unwrap(), "");
    })
    .await;
}

#[tokio::test]
async fn while_a_request_is_finished_those_on_idle_connections_are_served() {
    patiently(async {
        let go = Arc::new(Notify::new());
        let world = world(false, Arc::clone(&go)).await;
        let mut idle = world.client().await;
        ask(&mut idle).await;
        let mut silent = world.client().await;
        ask(&mut silent).await;
        let mut slow = world.client().await;
        slow.write(GET.replace("GET /", "GET /slow")).await;
        let drain = Arc::clone(&world.east.drain);
        let draining = tokio::spawn(async move { drain.drain(Duration::from_secs(10)).await });
        world.east.gateway.drain.draining().await;
        // On its way when the drain began.
        assert_eq!(field(&ask(&mut idle).await, "connection").as_deref(), Some("close"));
        assert_eq!(idle.rest().await.unwrap(), "");
        assert!(!draining.is_finished());
        go.notify_one();
        let head = slow.head().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(slow.rest().await.unwrap(), "ok");
        assert!(draining.await.unwrap());
        assert_eq!(silent.rest().await.unwrap(), "", "it never came back");
    })
    .await;
}

#[tokio::test]
async fn an_http2_connection_is_told_to_go_and_finishes_what_it_has() {
    patiently(async {
        let go = Arc::new(Notify::new());
        let world = world(true, Arc::clone(&go)).await;
        let mut client = world.http2().await;
        assert_eq!(client.send_request(request("/")).await.unwrap().status(), 200);
        let slow = tokio::spawn(client.send_request(request("/slow")));
        // Asked before it is told.
        while world.west.gateway.drain.unfinished() == 0 {
            tokio::task::yield_now().await;
        }
        world.east.drain.leave();
        ask_until_told(&mut client).await;
        go.notify_one();
        assert_eq!(slow.await.unwrap().unwrap().status(), 200);
        // Who comes now is served, and told a little later.
        let mut late = world.http2().await;
        assert_eq!(late.send_request(request("/")).await.unwrap().status(), 200);
        ask_until_told(&mut late).await;
        drop((client, late));
        assert!(world.east.drain.drain(Duration::from_secs(10)).await);
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_is_not_spoilt_by_a_close() {
    patiently(async {
        let address = backend(|mut wire, _| async move {
            wire.head().await;
            wire.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello").await;
        })
        .await;
        let world = World::of(&[address]).await;
        world.east.drain.leave();
        let mut client = world.client().await;
        client.write("GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert_eq!(field(&head, "connection").as_deref(), Some("upgrade"));
        assert_eq!(client.rest().await.unwrap(), "hello");
    })
    .await;
}
