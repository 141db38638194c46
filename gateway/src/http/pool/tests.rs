use std::sync::atomic::AtomicUsize;

use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use linkspan_proto::identity::{Assurance, SpiffeId};

use super::*;

fn key(identity: &str) -> Key {
    Key {
        service: "shop/web".parse().expect("a service"),
        port: 80,
        source: Source::new(SpiffeId::parse(identity).expect("an identity"), Assurance::Network),
        cluster: ClusterName::parse("east").expect("a name"),
        address: ([127, 0, 0, 1], 80).into(),
    }
}

fn web() -> Key {
    key("spiffe://east/ns/shop/sa/web")
}

/// An HTTP/1 connection to a server that answers everything; the server's end lives as long as the second value.
async fn http1_connection() -> (http1::SendRequest<RequestBody>, JoinHandle<()>) {
    let (near, far) = tokio::io::duplex(4096);
    let answer = service_fn(|_| async { Ok::<_, hyper::Error>(Response::new(Empty::<bytes::Bytes>::new())) });
    let server = tokio::spawn(async move {
        drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), answer).await);
    });
    let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.expect("a handshake");
    tokio::spawn(connection);
    sender.ready().await.expect("ready");
    (sender, server)
}

async fn http2_connection() -> http2::SendRequest<RequestBody> {
    let (near, far) = tokio::io::duplex(4096);
    let answer = service_fn(|_| async { Ok::<_, hyper::Error>(Response::new(Empty::<bytes::Bytes>::new())) });
    tokio::spawn(async move {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(server.serve_connection(TokioIo::new(far), answer).await);
    });
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(near)).await.expect("a handshake");
    tokio::spawn(connection);
    sender
}

fn pool() -> Arc<Pool> {
    Arc::new(Pool::new(PER_WORKER))
}

#[tokio::test]
async fn s_16_a_connection_serves_its_own_key_only() {
    let pool = pool();
    let (sender, _server) = http1_connection().await;
    pool.home(web()).lease(sender).recycle();
    // S-16: another caller, assurance, cluster, port, service or endpoint has no use of it.
    let mut others = vec![key("spiffe://east/ns/shop/sa/other")];
    others.push(Key { port: 81, ..web() });
    others.push(Key { service: "shop/other".parse().expect("a service"), ..web() });
    others.push(Key { cluster: ClusterName::parse("north").expect("a name"), ..web() });
    others.push(Key { address: ([127, 0, 0, 2], 80).into(), ..web() });
    let mut weaker = web();
    weaker.source.assurance = Assurance::Gateway;
    others.push(weaker);
    for other in others {
        assert!(pool.idle_http1(&other).is_none(), "{other:?}");
    }
    assert!(pool.idle_http1(&web()).is_some());
    assert!(pool.idle_http1(&web()).is_none(), "it is in use");
}

#[tokio::test]
async fn s_22_a_connection_that_the_backend_closed_is_not_given_out() {
    let pool = pool();
    let (sender, server) = http1_connection().await;
    let lease = pool.home(web()).lease(sender);
    lease.recycle();
    server.abort();
    // The connection's task sees the end before the next request comes.
    drop(server.await);
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    assert!(pool.idle_http1(&web()).is_none());
}

#[tokio::test]
async fn s_22_a_connection_in_the_middle_of_an_exchange_is_not_idle() {
    let pool = pool();
    let (near, _far) = tokio::io::duplex(4096);
    let (mut sender, connection) = http1::handshake::<_, RequestBody>(TokioIo::new(near)).await.expect("a handshake");
    tokio::spawn(connection);
    sender.ready().await.expect("ready");
    let request = Request::get("/").header("host", "web").body(RequestBody::Empty).expect("a request");
    let waiting = sender.send_request(request);
    pool.home(web()).lease(sender).recycle();
    assert!(pool.idle_http1(&web()).is_none());
    drop(waiting);
}

#[tokio::test]
async fn a_connection_settles_and_comes_back() {
    let pool = pool();
    let (mut sender, _server) = http1_connection().await;
    let request = Request::get("/").header("host", "web").body(RequestBody::Empty).expect("a request");
    let response = sender.send_request(request).await.expect("a response");
    response.into_body().collect().await.expect("a body");
    pool.home(web()).lease(sender).recycle();
    let mut found = None;
    for _ in 0..10 {
        found = found.or_else(|| pool.idle_http1(&web()));
        tokio::task::yield_now().await;
    }
    assert!(found.is_some());
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_in_time() {
    let pool = pool();
    let (sender, server) = http1_connection().await;
    pool.home(web()).lease(sender).recycle();
    tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
    assert!(!server.is_finished());
    tokio::time::sleep(SWEEP + Duration::from_secs(2)).await;
    // The server's end sees it, the pool has forgotten it, and nobody watches an empty pool.
    server.await.expect("no panic");
    assert!(pool.idle_http1(&web()).is_none());
    assert!(pool.lock().sweeper.is_none());
}

#[tokio::test]
async fn idle_connections_are_bounded() {
    let pool = pool();
    let mut servers = Vec::new();
    for _ in 0..PER_KEY + 5 {
        let (sender, server) = http1_connection().await;
        servers.push(server);
        pool.home(web()).lease(sender).recycle();
    }
    assert_eq!(pool.lock().kept.values().sum::<usize>(), PER_KEY);
}

#[tokio::test]
async fn streams_share_a_connection_up_to_its_limit() {
    let pool = pool();
    let Http2::Connect(connecting) = pool.http2(&web(), false) else { panic!("there is none yet") };
    // Others wait for the one that is being made; the impatient do not.
    let Http2::Wait(gate) = pool.http2(&web(), false) else { panic!("one is being made") };
    assert!(matches!(pool.http2(&web(), true), Http2::Connect(_)));
    let state = SharedState::new();
    state.allow(2);
    let first = connecting.connected(http2_connection().await, Arc::clone(&state));
    drop(connecting);
    assert!(gate.acquire().await.is_err(), "told that it is done");
    let Http2::Ready(second) = pool.http2(&web(), false) else { panic!("there is room") };
    assert!(matches!(pool.http2(&web(), false), Http2::Connect(_)), "no room");
    drop(second);
    assert!(matches!(pool.http2(&web(), false), Http2::Ready(_)));
    assert!(matches!(pool.http2(&key("spiffe://east/ns/shop/sa/other"), false), Http2::Connect(_)));
    drop(first);
    assert_eq!(state.active.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn who_waits_goes_on_when_the_connect_failed() {
    let pool = pool();
    let Http2::Connect(connecting) = pool.http2(&web(), false) else { panic!("there is none yet") };
    let waited = Arc::new(AtomicUsize::new(0));
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let Http2::Wait(gate) = pool.http2(&web(), false) else { panic!("one is being made") };
            let waited = Arc::clone(&waited);
            tokio::spawn(async move {
                drop(gate.acquire().await);
                waited.fetch_add(1, Ordering::Relaxed);
            })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(waited.load(Ordering::Relaxed), 0);
    drop(connecting);
    for waiter in waiters {
        waiter.await.expect("no panic");
    }
    assert!(matches!(pool.http2(&web(), false), Http2::Connect(_)));
}

/// A peer speaks for as many identities as it likes, and each has connections of its own.
#[tokio::test(start_paused = true)]
async fn connections_for_the_callers_of_one_cluster_are_bounded() {
    let pool = Arc::new(Pool::new(8));
    let caller = |number: usize| key(&format!("spiffe://east/ns/shop/sa/caller-{number}"));
    let mut servers = Vec::new();
    for number in 0..3 {
        let (sender, server) = http1_connection().await;
        pool.home(caller(number)).lease(sender).recycle();
        servers.push(server);
    }
    for number in 3..6 {
        let Http2::Connect(connecting) = pool.http2(&caller(number), false) else { panic!("nobody else connects") };
        drop(connecting.connected(http2_connection().await, SharedState::new()));
    }
    assert!(matches!(pool.http2(&caller(3), false), Http2::Ready(_)), "the fourth is kept");
    for number in [4, 5] {
        assert!(matches!(pool.http2(&caller(number), false), Http2::Connect(_)), "{number}: no more than half");
    }
    // Another cluster has its own half, and who gives back has room again.
    let other = Key { cluster: ClusterName::parse("north").expect("a name"), ..web() };
    let (sender, _server) = http1_connection().await;
    pool.home(other.clone()).lease(sender).recycle();
    assert!(pool.idle_http1(&other).is_some());
    assert!(pool.idle_http1(&caller(0)).is_some());
    let (sender, _server) = http1_connection().await;
    pool.home(caller(7)).lease(sender).recycle();
    assert!(pool.idle_http1(&caller(7)).is_some());
    tokio::time::sleep(IDLE + SWEEP).await;
    let connections = pool.lock();
    assert_eq!((connections.http1.len(), connections.http2.len(), connections.kept.len()), (0, 0, 0));
}
