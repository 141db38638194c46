use std::net::SocketAddr;
use std::time::{Duration, Instant};

use linkspan_runtime::task;
use tokio::net::TcpListener;

use super::super::figures::Counts;
use super::super::service;
use super::{Load, Target};

/// A service of a cluster on a free port.
async fn backend(cluster: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(task::spawn("test_service", service::accept(listener, cluster.into())));
    address
}

fn target(address: SocketAddr) -> Target {
    Target { source: [127, 0, 0, 21].into(), address, host: "web.shop.svc.clusterset.local".to_owned() }
}

#[tokio::test]
async fn the_service_says_what_it_saw() {
    let target = target(backend("west").await);
    let headers = [("linkspan-source", "one"), ("linkspan-source", "two"), ("x-cluster", "forged")];
    let answer: service::Answer = target.json("/a?b=c", &headers).await.unwrap();
    assert_eq!((answer.cluster.as_str(), answer.method.as_str(), answer.path.as_str()), ("west", "GET", "/a?b=c"));
    assert_eq!(answer.headers["host"], "web.shop.svc.clusterset.local");
    assert_eq!(answer.headers["linkspan-source"], "one, two");
    assert_eq!(target.get("/", &[]).await.unwrap().headers["x-cluster"], "west");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_keeps_its_rate_and_counts_everything() {
    let load = Load::start(target(backend("west").await), 500);
    let begun = Instant::now();
    while load.answers(begun).len() < 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    assert!(begun.elapsed() > Duration::from_millis(350), "not faster than its rate");
    let all = load.finish().await.unwrap();
    let counts = Counts::of(&all);
    assert_eq!((counts.failed, counts.of_cluster("west")), (0, all.len()));
    assert!(all.windows(2).all(|pair| pair[0].due <= pair[1].due));
}

#[tokio::test]
async fn a_dead_target_is_counted_not_waited_for() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let load = Load::start(target(gone), 100);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let all = load.finish().await.unwrap();
    assert!(!all.is_empty());
    assert!(all.iter().all(|answer| answer.from.as_ref().is_err_and(|why| why.contains("cannot connect"))), "{all:?}");
    assert!(target(gone).get("/", &[]).await.is_err());
}
