//! S-32: a process that runs out of file descriptors goes on accepting as soon as there are some again.
//!
//! A test binary of its own: the limit holds for the whole process.

#![expect(clippy::disallowed_methods, reason = "tests spawn plainly: who awaits the handle sees the panic")]

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_gateway::discovery::Rejections;
use linkspan_gateway::listener::{Binder, Bindings, Budget, ClientConnection, Permits, Place, bind, serve};
use linkspan_runtime::drain::Drain;
use linkspan_runtime::metrics::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

const PATIENCE: Duration = Duration::from_secs(10);

async fn until(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("in time");
}

/// How often accept has failed, as `/metrics` says.
fn failed_accepts(registry: &Registry) -> u64 {
    let page = registry.encode().expect("encodes");
    let line = page.lines().find_map(|line| line.strip_prefix("listener_accept_failures_total "));
    line.and_then(|count| count.parse().ok()).expect("counted")
}

#[tokio::test]
async fn s_32_accepting_resumes_within_a_second_of_relief() {
    let (_, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).expect("limit");
    rlimit::setrlimit(rlimit::Resource::NOFILE, 256, hard).expect("lower the limit");

    let address = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1).expect("bind")[0].local_addr().expect("address");
    let places = BTreeMap::from([(Place::tcp(address), Arc::from("web.a"))]);
    let (_bindings, wanted) = watch::channel(Arc::new(Bindings { places, ..Bindings::default() }));
    let (_drain, signal) = Drain::new();
    let (binder, mut workers) = Binder::new(1, Budget::for_descriptors(256), Rejections::new());
    let board = binder.board();
    let registry = Registry::new();
    let permits = Permits::new(1000);
    board.register(&permits, &registry);
    tokio::spawn(binder.run(wanted, signal.clone()));
    let (take, mut accepted) = mpsc::unbounded_channel::<ClientConnection>();
    let take = move |conn| take.send(conn).expect("the test waits");
    tokio::spawn(serve(workers.remove(0), permits, signal, take, drop));
    until(|| board.mirrors().iter().any(|mirror| mirror.bound)).await;

    let mut early = TcpStream::connect(address).await.expect("connect");
    let mut conn = accepted.recv().await.expect("accepted");

    // Everything is taken but one descriptor, and the client takes that.
    let mut hogs: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    hogs.pop();
    let late = std::net::TcpStream::connect(address).expect("the kernel accepts");
    until(|| board.is_starving()).await;

    // What stands goes on.
    early.write_all(b"still").await.expect("write");
    let mut text = [0; 5];
    conn.io.read_exact(&mut text).await.expect("read");
    assert_eq!(&text, b"still");

    // The pauses double from 5 ms: after the eighth they are at their largest, 500 ms.
    until(|| failed_accepts(&registry) >= 8).await;
    drop(hogs);
    let relieved = Instant::now();
    let resumed = tokio::time::timeout(PATIENCE, accepted.recv()).await.expect("in time").expect("accepted");
    assert!(relieved.elapsed() <= Duration::from_secs(1), "{:?}", relieved.elapsed());
    assert_eq!(resumed.client, late.local_addr().expect("address"));
    assert!(!board.is_starving());
}
