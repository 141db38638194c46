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
use linkspan_gateway::listener::{Binder, Bindings, Budget, ClientConnection, Permits, bind, serve};
use linkspan_runtime::drain::Drain;
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

#[tokio::test]
async fn accepting_resumes_within_a_second_of_relief() {
    let (_, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).expect("limit");
    rlimit::setrlimit(rlimit::Resource::NOFILE, 256, hard).expect("lower the limit");

    let address = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1).expect("bind")[0].local_addr().expect("address");
    let addresses = BTreeMap::from([(address, Arc::from("web.a"))]);
    let (_bindings, wanted) = watch::channel(Arc::new(Bindings { addresses, ..Bindings::default() }));
    let (_drain, signal) = Drain::new();
    let (binder, mut workers) = Binder::new(1, Budget::for_descriptors(256), Rejections::new());
    let board = binder.board();
    tokio::spawn(binder.run(wanted, signal.clone()));
    let (take, mut accepted) = mpsc::unbounded_channel::<ClientConnection>();
    let take = move |conn| take.send(conn).expect("the test waits");
    tokio::spawn(serve(workers.remove(0), Permits::new(1000), signal, take));
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

    // Long enough for the pauses to have grown to their largest.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    drop(hogs);
    let relieved = Instant::now();
    let resumed = tokio::time::timeout(PATIENCE, accepted.recv()).await.expect("in time").expect("accepted");
    assert!(relieved.elapsed() <= Duration::from_secs(1), "{:?}", relieved.elapsed());
    assert_eq!(resumed.client, late.local_addr().expect("address"));
    assert!(!board.is_starving());
}
