//! The sockets of the DNS server and what bounds them.
//!
//! UDP is one loop: an answer takes microseconds and waits for nothing, so a task per query would only add memory that a
//! flood could grow. TCP is a task per connection; on one connection requests are answered in order, one at a time.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use linkspan_runtime::drain::Signal;
use linkspan_runtime::task;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::message::{REQUEST_MAX, Reply, Transport, respond};
use super::metrics::Metrics;
use super::zone::Zone;

/// Open TCP connections in total. Each holds one request and one reply: 68 KiB at most, so 17 MiB in all.
const CONNECTIONS: usize = 256;

/// Open TCP connections of one address, so that one client cannot take all of them.
const CONNECTIONS_PER_ADDRESS: usize = 64;

/// Connections that wait for a place, in all. They hold a socket and no buffer. As many as one address may have open: a
/// client that closes all of its connections and opens as many again is served.
const WAITING: usize = CONNECTIONS_PER_ADDRESS;

/// How long a connection waits for a place. One that its client has closed already holds its place until its task has run,
/// which takes microseconds, milliseconds on a busy machine. Below the second after which resolvers ask elsewhere.
const CLOSING: Duration = Duration::from_millis(500);

/// How long a connection may be silent between requests (RFC 7766 section 6.2.3: "a few seconds").
const IDLE: Duration = Duration::from_secs(10);

/// How long a request may take to arrive once it has begun, and a reply to leave. Below `IDLE`, or a client that sends a
/// byte at a time would do better than a silent one.
const TRANSFER: Duration = Duration::from_secs(5);

/// The pause after an error of the socket itself (no descriptors, no memory): these pass, and asking at once spins.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until the drain begins.
///
/// The zone may be replaced at any time; each request is answered from the one that is there when it arrives.
pub async fn serve(zone: Arc<ArcSwap<Zone>>, udp: UdpSocket, tcp: TcpListener, drain: Signal, metrics: Metrics) {
    tokio::select! {
        () = drain.draining() => {}
        () = serve_udp(&zone, &udp, &metrics) => {}
        () = serve_tcp(&zone, &tcp, &drain, &metrics) => {}
    }
}

async fn serve_udp(zone: &ArcSwap<Zone>, udp: &UdpSocket, metrics: &Metrics) {
    // One byte more than is allowed, so that a longer request is seen to be longer and not cut into a valid one.
    let mut buffer = vec![0; REQUEST_MAX + 1];
    loop {
        let (length, client) = match udp.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "DNS request not received");
                sleep(PAUSE).await;
                continue;
            }
        };
        if !may_be_answered(client) {
            continue;
        }
        let request = buffer.get(..length).unwrap_or_default();
        let Some(reply) = reply(zone, request, Transport::Udp, metrics) else { continue };
        // Waiting here when the socket's buffer is full is right: the requests behind would fare no better.
        if let Err(error) = udp.send_to(&reply, client).await {
            tracing::debug!(%error, %client, "DNS reply not sent");
        }
    }
}

/// Port 0 cannot receive; the unspecified and broadcast addresses are no client.
fn may_be_answered(client: SocketAddr) -> bool {
    let broadcast = matches!(client.ip(), IpAddr::V4(v4) if v4.is_broadcast());
    client.port() != 0 && !client.ip().is_unspecified() && !client.ip().is_multicast() && !broadcast
}

/// Answers and counts.
fn reply(zone: &ArcSwap<Zone>, request: &[u8], transport: Transport, metrics: &Metrics) -> Option<Vec<u8>> {
    match respond(&zone.load(), request, transport, &mut rand::rng()) {
        Reply::Send { bytes, qtype, rcode } => {
            metrics.answered(qtype, rcode);
            Some(bytes)
        }
        Reply::Drop(reason) => {
            metrics.dropped(reason);
            None
        }
    }
}

async fn serve_tcp(zone: &Arc<ArcSwap<Zone>>, tcp: &TcpListener, drain: &Signal, metrics: &Metrics) {
    let connections = Connections::default();
    loop {
        let (stream, client) = match tcp.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "DNS connection not accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Some(entry) = connections.enter(client.ip(), metrics) else {
            metrics.refused_connection();
            continue;
        };
        let (zone, metrics, drain) = (Arc::clone(zone), metrics.clone(), drain.clone());
        // Detached: the connection ends by itself within `IDLE`, or with the drain.
        drop(task::spawn("dns_connection", async move {
            let served = async {
                let Some(_place) = entry.place().await else {
                    metrics.refused_connection();
                    return Ok(());
                };
                serve_connection(&zone, stream, &metrics).await
            };
            tokio::select! {
                () = drain.draining() => {}
                ended = served => if let Err(error) = ended {
                    tracing::debug!(%error, %client, "DNS connection ended");
                }
            }
        }));
    }
}

/// Requests and replies, each behind its length (RFC 1035 section 4.2.2), until the client ends or misbehaves.
async fn serve_connection(zone: &ArcSwap<Zone>, mut stream: TcpStream, metrics: &Metrics) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::new();
    loop {
        let first = match timeout(IDLE, stream.read_u8()).await {
            Ok(Ok(first)) => first,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        timeout(TRANSFER, read_rest(&mut stream, first, &mut request)).await??;
        let Some(reply) = reply(zone, &request, Transport::Tcp, metrics) else {
            // What gets no reply is no DNS client; there is nothing to wait for.
            return Ok(());
        };
        timeout(TRANSFER, write_reply(&mut stream, &reply)).await??;
    }
}

async fn read_rest(stream: &mut TcpStream, first: u8, request: &mut Vec<u8>) -> io::Result<()> {
    let length = usize::from(u16::from_be_bytes([first, stream.read_u8().await?]));
    if length > REQUEST_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "request too long"));
    }
    request.resize(length, 0);
    stream.read_exact(request).await?;
    Ok(())
}

/// Length and message leave in one write, as RFC 7766 section 8 asks: one segment for almost every reply.
async fn write_reply(stream: &mut TcpStream, reply: &[u8]) -> io::Result<()> {
    let length =
        u16::try_from(reply.len()).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "reply too long"))?;
    let mut framed = Vec::with_capacity(reply.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(reply);
    stream.write_all(&framed).await
}

/// Counts open connections, in total and by address, and those that wait to be among them.
#[derive(Clone, Default)]
struct Connections(Arc<Shared>);

#[derive(Default)]
struct Shared {
    counts: Mutex<Counts>,
    /// Told whenever a place is given back.
    freed: Notify,
}

#[derive(Default)]
struct Counts {
    open: HashMap<IpAddr, usize>,
    waiting: usize,
}

/// An accepted connection: it has its place, or waits for one.
enum Entry {
    Placed(Place),
    Waiting(Waiter),
}

/// A place among the connections; given back on drop.
struct Place {
    connections: Connections,
    address: IpAddr,
    metrics: Metrics,
}

/// A place among those that wait; given back on drop.
struct Waiter {
    connections: Connections,
    address: IpAddr,
    metrics: Metrics,
}

impl Connections {
    /// `None`: too many wait already.
    fn enter(&self, address: IpAddr, metrics: &Metrics) -> Option<Entry> {
        if let Some(place) = self.place(address, metrics) {
            return Some(Entry::Placed(place));
        }
        let mut counts = self.counts();
        if counts.waiting >= WAITING {
            return None;
        }
        counts.waiting += 1;
        Some(Entry::Waiting(Waiter { connections: self.clone(), address, metrics: metrics.clone() }))
    }

    fn place(&self, address: IpAddr, metrics: &Metrics) -> Option<Place> {
        let open = &mut self.counts().open;
        let mine = open.get(&address).copied().unwrap_or(0);
        if mine >= CONNECTIONS_PER_ADDRESS || open.values().sum::<usize>() >= CONNECTIONS {
            return None;
        }
        open.insert(address, mine + 1);
        metrics.connections.inc();
        Some(Place { connections: self.clone(), address, metrics: metrics.clone() })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// The place; `None` when none became free in time.
    async fn place(self) -> Option<Place> {
        match self {
            Self::Placed(place) => Some(place),
            Self::Waiting(waiter) => waiter.place().await,
        }
    }
}

impl Waiter {
    async fn place(self) -> Option<Place> {
        let freed = &self.connections.0.freed;
        let found = async {
            loop {
                // Listens before it looks, or a place given back in between would go unnoticed.
                let mut next = std::pin::pin!(freed.notified());
                next.as_mut().enable();
                if let Some(place) = self.connections.place(self.address, &self.metrics) {
                    return place;
                }
                next.await;
            }
        };
        timeout(CLOSING, found).await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.connections.counts();
        if let Some(mine) = counts.open.get_mut(&self.address) {
            *mine -= 1;
            if *mine == 0 {
                counts.open.remove(&self.address);
            }
        }
        drop(counts);
        self.metrics.connections.dec();
        self.connections.0.freed.notify_waiters();
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.connections.counts().waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test(start_paused = true)]
    async fn a_connection_takes_the_place_of_one_that_is_just_closing() {
        let (connections, metrics) = (Connections::default(), Metrics::default());
        let enter = || connections.enter(CLIENT, &metrics);
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS_PER_ADDRESS {
            open.push(enter().expect("below the limit").place().await.expect("at once"));
        }
        // The clients of these have ended; their tasks have not run yet.
        let next: Vec<_> = (0..WAITING).map(|_| enter().expect("waits")).collect();
        assert!(enter().is_none(), "what waits is bounded, too");
        let ends = async {
            sleep(CLOSING / 2).await;
            open.truncate(1);
        };
        let (served, ()) = tokio::join!(futures::future::join_all(next.into_iter().map(Entry::place)), ends);
        assert_eq!(served.iter().flatten().count(), WAITING - 1, "one place was not given back in time");
        assert_eq!(metrics.connections.get(), 64);
        drop((served, open));
        assert!(matches!(enter(), Some(Entry::Placed(_))), "nothing is held any more");
        assert_eq!(metrics.connections.get(), 0);
        assert_eq!(connections.counts().waiting, 0);
    }
}
