//! The sockets of the DNS server and what bounds them.
//!
//! UDP is one loop: an answer takes microseconds and waits for nothing, so a task per query would only add memory that a
//! flood could grow. TCP is a task per connection; on one connection requests are answered in order, one at a time.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use linkspan_runtime::drain::Signal;
use linkspan_runtime::task;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use super::message::{REQUEST_MAX, Reply, Transport, respond};
use super::metrics::Metrics;
use super::zone::Zone;

/// Open TCP connections in total. Each holds one request and one reply: 68 KiB at most, so 17 MiB in all.
const CONNECTIONS: usize = 256;

/// Open TCP connections of one address, so that one client cannot take all of them.
const CONNECTIONS_PER_ADDRESS: usize = 64;

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
        let Some(place) = connections.enter(client.ip(), metrics) else {
            metrics.refused_connection();
            continue;
        };
        let (zone, metrics, drain) = (Arc::clone(zone), metrics.clone(), drain.clone());
        // Detached: the connection ends by itself within `IDLE`, or with the drain.
        drop(task::spawn("dns_connection", async move {
            let _place = place;
            tokio::select! {
                () = drain.draining() => {}
                ended = serve_connection(&zone, stream, &metrics) => if let Err(error) = ended {
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

/// Counts open connections, in total and by address.
#[derive(Clone, Default)]
struct Connections(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A place among the connections; given back on drop.
struct Place {
    connections: Connections,
    address: IpAddr,
    metrics: Metrics,
}

impl Connections {
    fn enter(&self, address: IpAddr, metrics: &Metrics) -> Option<Place> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = open.get(&address).copied().unwrap_or(0);
        if mine >= CONNECTIONS_PER_ADDRESS || open.values().sum::<usize>() >= CONNECTIONS {
            return None;
        }
        open.insert(address, mine + 1);
        metrics.connections.inc();
        Some(Place { connections: self.clone(), address, metrics: metrics.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = open.get_mut(&self.address) {
            *mine -= 1;
            if *mine == 0 {
                open.remove(&self.address);
            }
        }
        self.metrics.connections.dec();
    }
}
