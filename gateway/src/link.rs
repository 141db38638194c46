//! Stage 4: streams between this gateway and the gateways of peer clusters.
//!
//! ```text
//! egress  --Links::open--> +-----------+ ==> connection of this worker ==QUIC/mTLS==> peer gateway
//!                          |   Links   |
//! ingress <---Ingress----- +-----------+ <== any connection of the peer
//! ```
//!
//! QUIC's packets are carried by UDP, or by TCP where no UDP passes or the Link says so (`tcp`); which of them is up to
//! `state/carrier`.
//!
//! - In: the peers that the controller names ([`Links::configure`]), connections from the listening sockets.
//! - Out: [`Links::open`] gives a fresh stream to a peer, [`Links::associate`] one with datagrams beside it; every stream that a peer opens goes to the [`Ingress`] with its
//!   header read; [`Links::reports`] says how each link stands.
//! - Refuses when: the peer is unknown or not connected (at once), its stream credit stays used up (after
//!   [`OPEN_TIMEOUT`]); from peers: bad or slow headers, unknown kinds, too many streams.
//! - Never does: trust one peer's certificate authority for another, wait for a link to come up, end a truncated stream
//!   with a clean FIN.
//! - Numbers: [`OPEN_TIMEOUT`] 1 s, [`HEADER_TIMEOUT`] 5 s, [`STREAMS_PER_PEER`] 12,288.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use linkspan_proto::configuration::DefaultPolicy;
use linkspan_proto::identity::{SpiffeId, TrustDomain};
use linkspan_proto::names::ClusterName;
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::StreamHeader;

use crate::outcome::{Direction, Loss};

mod accept;
mod congestion;
mod connection;
mod control;
mod credit;
mod datagrams;
mod driver;
mod endpoint;
mod exchange;
mod health;
mod keys;
mod open;
mod pool;
mod resolve;
mod serve;
mod share;
mod socket;
mod state;
mod stream;
mod tcp;
pub mod tls;
mod trouble;

#[cfg(test)]
mod simulation;
#[cfg(test)]
pub(crate) mod testkit;
#[cfg(test)]
mod tests;

pub use datagrams::{Association, Outlet, Sink};
pub use endpoint::Limits;
pub use keys::Keys;
pub use pool::{LinkConfig, Links};
pub use stream::{BATCH, RecvHalf, SendHalf, StreamError};
pub use tcp::PREFACE as TCP_PREFACE;

/// How long [`Links::open`] waits for stream credit of a connected peer. Long enough for a burst to drain over a
/// transatlantic round trip, short enough that a client is told before it gives up.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a peer may take from opening a stream to the last byte of its header (S-27).
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Streams of one peer that are served at the same time, over all its connections. Above it: `Overloaded`. Idle
/// ones cost a few KiB each, so that all of them stay within what a hostile peer may cost.
pub const STREAMS_PER_PEER: usize = 12_288;

/// How many ports the system may choose until one is free for both UDP and TCP, where it is to choose.
const BIND_TRIES: u32 = 16;

/// Who is at the other end of a connection. Everything in it was checked before the first stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// The peer's cluster name, from our own Link object: never from the wire.
    pub cluster: ClusterName,
    /// The only trust domain it may speak for.
    pub trust_domain: TrustDomain,
    /// The identity in its certificate.
    pub gateway: SpiffeId,
    /// Where the connection comes from.
    pub remote: SocketAddr,
    /// What an export without a policy of its own allows to it.
    pub default_policy: DefaultPolicy,
}

/// A stream that a peer opened, its header read and well formed.
#[derive(Debug)]
pub struct Incoming {
    /// Who opened it.
    pub peer: Arc<PeerInfo>,
    /// What it asks for. Its claims (source identity, path) are the peer's: check them against `peer`.
    pub header: StreamHeader,
    /// Towards the peer.
    pub send: SendHalf,
    /// From the peer; starts with the first byte after the header.
    pub recv: RecvHalf,
    /// Of kind `Udp`: its datagrams.
    pub association: Option<Association>,
    /// The worker on whose runtime the connection lives and [`Ingress::stream`] is polled.
    pub worker: usize,
}

/// Takes the streams that peers open. Implemented by `path`.
pub trait Ingress: Send + Sync + 'static {
    /// Serves one stream to its end. Only kinds `Tcp`, `Http` and `Udp` come here; probes and the catalogue exchange are the
    /// link's own. Polled in a task of its own: a panic costs this stream alone.
    fn stream(&self, incoming: Incoming) -> BoxFuture<'static, ()>;
}

/// Hears what links count. Implemented over the metrics.
pub trait Observer: Send + Sync + 'static {
    /// A probe was answered in time, or not.
    fn probe(&self, peer: &ClusterName, answered: bool);

    /// Further packets to this peer were sent, and further ones found lost.
    fn packets(&self, peer: &ClusterName, sent: u64, lost: u64);

    /// So many datagrams of this peer were lost that belong to no flow, or to none that is known.
    fn lost(&self, _peer: &ClusterName, _direction: Direction, _why: Loss, _count: u64) {}
}

/// The gateway's port: one socket of each kind for each worker.
#[derive(Debug)]
pub struct Sockets {
    udp: Vec<UdpSocket>,
    /// Empty: the link is not served over TCP.
    tcp: Vec<TcpListener>,
}

impl Sockets {
    /// Where they listen.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.udp.first().and_then(|socket| socket.local_addr().ok())
    }
}

/// Why the gateway's port is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// For UDP.
    #[error("UDP: {0}")]
    Udp(io::Error),
    /// For TCP.
    #[error("TCP: {0}")]
    Tcp(io::Error),
}

/// Binds the gateway's port, UDP and, where wished, TCP. A port of 0 is resolved once, for all.
///
/// # Errors
/// When the address is not to be had: in use (by another gateway too), not of this machine, or forbidden.
pub fn bind(address: SocketAddr, workers: usize, over_tcp: bool) -> Result<Sockets, BindError> {
    for left in (0..BIND_TRIES).rev() {
        let udp = socket::listen(address, workers).map_err(BindError::Udp)?;
        if !over_tcp {
            return Ok(Sockets { udp, tcp: Vec::new() });
        }
        let sockets = Sockets { udp, tcp: Vec::new() };
        match tcp::bind(sockets.address().unwrap_or(address), workers) {
            Ok(tcp) => return Ok(Sockets { tcp, ..sockets }),
            // The port that UDP was given may be in use for TCP: another one will not be.
            Err(error) if left > 0 && address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(BindError::Tcp(error)),
        }
    }
    Err(BindError::Tcp(io::ErrorKind::AddrInUse.into()))
}

/// Why no stream could be opened. Nothing was sent: trying another cluster is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No Link names this cluster.
    #[error("no link to this cluster")]
    UnknownPeer,
    /// The link has no connection at the moment.
    #[error("the link is not connected")]
    NotConnected,
    /// The peer takes no datagrams: it is of an earlier version.
    #[error("the peer carries no datagrams")]
    NoDatagrams,
    /// All streams that the peer permits are in use.
    #[error("the peer permits no further streams")]
    Overloaded,
    /// The connection was lost while opening.
    #[error("the link was lost")]
    LinkLost,
}

impl OpenError {
    /// What the client is told.
    #[must_use]
    pub const fn refusal(self) -> Refusal {
        match self {
            Self::Overloaded => Refusal::Overloaded,
            Self::NoDatagrams => Refusal::UnsupportedKind,
            Self::UnknownPeer | Self::NotConnected | Self::LinkLost => Refusal::NoBackend,
        }
    }
}
