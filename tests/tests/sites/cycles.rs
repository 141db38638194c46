//! Hundreds of thousands of connections and streams that begin and end, through two gateways: afterwards both hold what they
//! held before. One cycle is one stream of the link, opened and closed, by one of
//!
//! - a TCP connection of its own at both sides of the link (a tenth),
//! - a request over an HTTP/1.1 connection that is kept (half of the others),
//! - a request over one of a few HTTP/2 connections (the other half).
//!
//! Counted in both gateways: resident memory, descriptors, tasks, and streams: the connections and requests that have begun and
//! not ended. What they hold is looked at when no client is connected and no backend, after a tenth of all cycles and after all.
//!
//! | variable | what |
//! |---|---|
//! | `LINKSPAN_LONG_TESTS=1` | 1,000,000 cycles instead of 20,000 |

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use linkspan_tests::manifests::Service;
use linkspan_tests::site::Site;
use linkspan_tests::world::{Network, long, own_network};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::kit::linked_here;

/// Cycles at a time, of each kind.
const LANES: u64 = 24;

/// Requests that share an HTTP/2 connection at a time.
const STREAMS: u64 = 8;

/// What a gateway may hold more than before, in parts of a hundred.
const MORE: f64 = 2.0;

/// How long it may take until that is given back. The allocator returns pages within a second or two, idle streams of a
/// connection are forgotten after their last acknowledgement.
const BACK: Duration = Duration::from_secs(30);

/// How long one cycle may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What one gateway holds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Held {
    memory: f64,
    descriptors: f64,
    tasks: f64,
    streams: f64,
}

impl Held {
    fn by(site: &mut Site) -> Self {
        let id = site.process(1).id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).expect("the gateway runs");
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("resident memory");
        let memory = memory.trim().trim_end_matches(" kB").parse().expect("a number");
        let descriptors = fs::read_dir(format!("/proc/{id}/fd")).expect("the gateway runs").count() as f64;
        let of = |family: &str| site.metric("gateway", family, "");
        let streams = of("tcp_open_total") - of("tcp_close_total") + of("listener_connections");
        Self { memory, descriptors, tasks: of("process_tasks"), streams }
    }

    /// Whether there is no more of anything than in `before`, with the allowance.
    fn fits(self, before: Self) -> bool {
        let fits = |now: f64, before: f64| now <= before * (1.0 + MORE / 100.0);
        fits(self.memory, before.memory)
            && fits(self.descriptors, before.descriptors)
            && fits(self.tasks, before.tasks)
            && fits(self.streams, before.streams)
    }
}

/// The backends, and how to make them end all connections that they hold.
struct Backends {
    ports: [u16; 3],
    /// Connections and requests that came, of each kind.
    served: Arc<[AtomicU64; 3]>,
    close: Arc<Notify>,
    _serving: JoinSet<()>,
}

impl Backends {
    async fn start() -> Self {
        let served: Arc<[AtomicU64; 3]> = Arc::default();
        let (close, mut serving, mut ports) = (Arc::new(Notify::new()), JoinSet::new(), [0; 3]);
        for (kind, port) in ports.iter_mut().enumerate() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
            *port = listener.local_addr().expect("bound").port();
            let (served, close) = (Arc::clone(&served), Arc::clone(&close));
            serving.spawn(async move {
                let mut connections = JoinSet::new();
                loop {
                    tokio::select! {
                        Ok((stream, _)) = listener.accept() => {
                            stream.set_nodelay(true).expect("an open socket");
                            let (served, close) = (Arc::clone(&served), Arc::clone(&close));
                            connections.spawn(async move {
                                let count = &served[kind];
                                tokio::select! {
                                    () = close.notified() => {}
                                    () = serve(kind, stream, count) => {}
                                }
                            });
                        }
                        Some(_) = connections.join_next() => {}
                    }
                }
            });
        }
        Self { ports, served, close, _serving: serving }
    }

    fn served(&self) -> [u64; 3] {
        [0, 1, 2].map(|kind| self.served[kind].load(Ordering::Relaxed))
    }
}

async fn serve(kind: usize, stream: TcpStream, count: &AtomicU64) {
    match kind {
        0 => echo(stream, count).await,
        1 => http1(stream, count).await,
        _ => http2(stream, count).await,
    }
}

/// Says what was said to it, up to the end.
async fn echo(mut stream: TcpStream, count: &AtomicU64) {
    let mut said = Vec::new();
    // What became of the rest the client sees.
    if stream.read_to_end(&mut said).await.is_ok() && stream.write_all(&said).await.is_ok() {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Answers each head with the same few bytes.
async fn http1(mut stream: TcpStream, count: &AtomicU64) {
    let mut buffer = Vec::new();
    loop {
        while let Some(end) = buffer.windows(4).position(|four: &[u8]| four == b"\r\n\r\n") {
            buffer.drain(..end + 4);
            count.fetch_add(1, Ordering::Relaxed);
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone").await.is_err() {
                return;
            }
        }
        match stream.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

async fn http2(stream: TcpStream, count: &AtomicU64) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        count.fetch_add(1, Ordering::Relaxed);
        let Ok(mut send) = respond.send_response(http::Response::new(()), false) else { continue };
        // A stream that its client has reset is missed there.
        drop(send.send_data(Bytes::from_static(b"done"), true));
    }
}

/// `count` cycles of each kind: TCP, HTTP/1, HTTP/2.
async fn cycles(at: [SocketAddr; 3], counts: [u64; 3]) {
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let part = counts.map(|count| (count + lane) / LANES);
        lanes.spawn(tcp_lane(at[0], part[0]));
        lanes.spawn(http1_lane(at[1], part[1]));
    }
    for lane in 0..LANES / STREAMS {
        lanes.spawn(http2_lane(at[2], (counts[2] + lane) / (LANES / STREAMS)));
    }
    while let Some(lane) = lanes.join_next().await {
        lane.expect("every cycle ends well");
    }
}

async fn tcp_lane(at: SocketAddr, count: u64) {
    for number in 0..count {
        let cycle = async {
            let mut stream = TcpStream::connect(at).await.expect("the gateway listens");
            stream.write_all(&number.to_le_bytes()).await.expect("taken");
            stream.shutdown().await.expect("ended");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.expect("an answer that ends in order");
            assert_eq!(answer, number.to_le_bytes());
        };
        timeout(PATIENCE, cycle).await.expect("a connection in time");
    }
}

async fn http1_lane(at: SocketAddr, count: u64) {
    let mut stream = TcpStream::connect(at).await.expect("the gateway listens");
    stream.set_nodelay(true).expect("an open socket");
    let mut buffer = Vec::new();
    for _ in 0..count {
        let cycle = async {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: cycles\r\n\r\n").await.expect("taken");
            buffer.clear();
            while !buffer.ends_with(b"\r\n\r\ndone") {
                assert!(stream.read_buf(&mut buffer).await.expect("an answer") > 0, "the end of the connection");
            }
            assert!(buffer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&buffer));
        };
        timeout(PATIENCE, cycle).await.expect("an answer in time");
    }
}

async fn http2_lane(at: SocketAddr, count: u64) {
    let stream = TcpStream::connect(at).await.expect("the gateway listens");
    stream.set_nodelay(true).expect("an open socket");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let mut streams = JoinSet::new();
    for stream in 0..STREAMS {
        let mut sender = sender.clone();
        streams.spawn(async move {
            for _ in 0..(count + stream) / STREAMS {
                let cycle = async {
                    sender = sender.clone().ready().await.expect("room for a stream");
                    let request = http::Request::get("http://cycles/").body(()).expect("a request");
                    let (response, _) = sender.send_request(request, true).expect("sent");
                    let response = response.await.expect("an answer");
                    assert_eq!(response.status(), 200);
                    let mut body = response.into_body();
                    let data = body.data().await.expect("a body").expect("whole");
                    assert_eq!(data, "done");
                    assert!(body.data().await.is_none() && body.is_end_stream(), "the end");
                };
                timeout(PATIENCE, cycle).await.expect("an answer in time");
            }
        });
    }
    drop(sender);
    let driving = async {
        while let Some(stream) = streams.join_next().await {
            stream.expect("every cycle ends well");
        }
    };
    // It ends in order when the last of them has no use for it.
    let (ended, ()) = tokio::join!(connection, driving);
    ended.expect("an end in order");
}

/// Waits until nothing changes any more in what both hold but memory, with no connection to any backend.
async fn rest(sites: &mut [Site], backends: &Backends) -> Vec<Held> {
    let start = Instant::now();
    let mut last = Vec::new();
    loop {
        backends.close.notify_waiters();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let now: Vec<Held> = sites.iter_mut().map(Held::by).collect();
        let same = last.iter().zip(&now).all(|(last, now): (&Held, &Held)| {
            (last.descriptors, last.tasks, last.streams) == (now.descriptors, now.tasks, now.streams)
                && (last.memory - now.memory).abs() * 200.0 < now.memory
        });
        if same && !last.is_empty() {
            return now;
        }
        assert!(start.elapsed() < BACK, "what the gateways hold goes on changing: {last:?}, {now:?}");
        last = now;
    }
}

#[test]
fn a_gateway_holds_no_more_after_many_cycles() {
    if own_network("sites::cycles::a_gateway_holds_no_more_after_many_cycles") == Network::Done {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    runtime.block_on(run(if long() { 1_000_000 } else { 20_000 }));
}

async fn run(total: u64) {
    let (_dir, mut sites) = linked_here(["east", "west"]);
    let backends = Backends::start().await;
    let mut service = Service::new("shop", "all");
    for (port, (name, protocol)) in
        backends.ports.iter().zip([("tcp", "tcp"), ("http", "http"), ("h2c", "kubernetes.io/h2c")])
    {
        service = service.port(name, *port, Some(protocol));
    }
    sites[1].apply("all.yaml", &service.yaml());
    let address = sites[0].wait_answers("all-west.shop.svc.cluster.local");
    let at = backends.ports.map(|port| SocketAddr::from((address, port)));
    let start = Instant::now();
    while TcpStream::connect(at[2]).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "nobody listens at {}", at[2]);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let parts = |total: u64| [total / 10, total * 45 / 100, total * 45 / 100];
    cycles(at, parts(total / 10)).await;
    let before = rest(&mut sites, &backends).await;
    let served = backends.served();
    let start = Instant::now();
    cycles(at, parts(total)).await;
    let took = start.elapsed();
    let counted = [0, 1, 2].map(|kind| backends.served()[kind] - served[kind]);
    assert_eq!(counted, parts(total), "each of them reached the backend, once");
    let start = Instant::now();
    let after = loop {
        let after = rest(&mut sites, &backends).await;
        if after.iter().zip(&before).all(|(after, before)| after.fits(*before)) || start.elapsed() > BACK {
            break after;
        }
    };
    eprintln!(
        "{total} cycles {counted:?} in {took:?}, {:.0}/s; back after {:?}\n  before {before:?}\n  after  {after:?}",
        total as f64 / took.as_secs_f64(),
        start.elapsed()
    );
    for (after, before) in after.iter().zip(&before) {
        assert!(after.fits(*before), "{after:?}, before {before:?}");
    }
}
