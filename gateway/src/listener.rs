//! Stage 1: the sockets of the mirrored names.
//!
//! ```text
//! Bindings --Binder (one a process)--> std sockets --> serve (one a worker) --> ClientConnection
//!               | bind errors -> Board, Rejections
//! ```
//!
//! - In: the addresses that mirrors want ([`Bindings`]).
//! - Out: a [`ClientConnection`] for each accepted connection, on the worker that accepted it; a [`DatagramSocket`] for
//!   each address whose port carries datagrams.
//! - Refuses when: all connection permits are in use: the client is reset at once, which its load balancer understands,
//!   instead of waiting in a queue that nobody sees. An address is not bound when its owner has used up its share of
//!   sockets, see [`Budget`].
//! - Never does: read a byte, know a protocol, drop an established connection because its mirror was removed.
//! - Numbers: [`BACKLOG`], [`ACCEPT_PAUSE`], [`BIND_PAUSE`]; sockets: [`Budget`].
//!
//! Each address is bound once for every worker with `SO_REUSEPORT`, so that the kernel spreads connections and clients, and
//! none changes threads. `SO_REUSEPORT` would also let a second gateway on the same machine share our addresses
//! in silence; [`bind`] prevents that.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use linkspan_proto::configuration::PortTransport;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

mod accept;
mod binder;
mod board;
mod budget;
mod io;
mod sockets;

pub use accept::{Worker, serve, serve_one};
pub use binder::Binder;
pub use board::{Board, MirrorState};
pub use budget::{Budget, Owners, SOCKETS};
pub use io::ClientIo;
pub use sockets::{bind, bind_datagrams, grow_buffers};

/// Connections that wait in the kernel for `accept`. Above it SYNs are dropped and retried after 1 s. The usual
/// `somaxconn` is 4,096; a worker that is 1,024 connections behind is overloaded in any case.
pub const BACKLOG: i32 = 1024;

/// Pauses after an `accept` that failed for want of descriptors or memory. The upper bound keeps recovery under 1 s
/// after descriptors are free again (S-32).
pub const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// Pauses between attempts to bind an address that is not to be had.
pub const BIND_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// What the kernel may queue for a socket of a mirror's datagrams: some 60 ms of 500 Mbit/s, which is longer than a worker is
/// kept from reading by anything but a stopped machine. The kernel's default of 208 KiB loses datagrams in bursts.
pub const DATAGRAM_BUFFER: usize = 4 * 1024 * 1024;

/// Where a mirror's port is listened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The local address.
    pub address: SocketAddr,
    /// For connections or for datagrams.
    pub transport: PortTransport,
}

impl Place {
    /// For connections.
    #[must_use]
    pub const fn tcp(address: SocketAddr) -> Self {
        Self { address, transport: PortTransport::Tcp }
    }

    /// For datagrams.
    #[must_use]
    pub const fn udp(address: SocketAddr) -> Self {
        Self { address, transport: PortTransport::Udp }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transport {
            PortTransport::Tcp => write!(f, "{}", self.address),
            PortTransport::Udp => write!(f, "{}/udp", self.address),
        }
    }
}

/// The places that mirrors want.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bindings {
    /// Mirror name by place.
    pub places: BTreeMap<Place, Arc<str>>,
    /// Who owns a place: the clusters whose services it stands for.
    pub owners: BTreeMap<Place, Owners>,
    /// Places that a second mirror claims as well, and that mirror; the first by name has them.
    pub conflicts: BTreeMap<Place, Arc<str>>,
}

/// A socket for the datagrams of a mirror's port, fresh from `bind`.
#[derive(Debug)]
pub struct DatagramSocket {
    /// The socket.
    pub socket: UdpSocket,
    /// What it is bound to.
    pub listen: SocketAddr,
    /// The worker that serves it, with all its clients.
    pub worker: usize,
    /// Cancelled when nobody wants the place any more. The end of the gateway is not told here: what flows may finish.
    pub close: CancellationToken,
}

/// A client's connection, fresh from `accept`.
#[derive(Debug)]
pub struct ClientConnection {
    /// Its socket; `TCP_NODELAY` is set.
    pub io: ClientIo,
    /// The client's address.
    pub client: SocketAddr,
    /// The address that the client connected to.
    pub listen: SocketAddr,
    /// The worker that accepted it and whose runtime it stays on.
    pub worker: usize,
    /// `linkspan check` asks (see [`linkspan_proto::probe`]); `client` is then whom it stands for.
    pub probe: bool,
    /// Held as long as the connection counts.
    pub permit: Permit,
}

/// The right to have one client connection. Dropping it frees the place.
#[derive(Debug)]
pub struct Permit(#[expect(dead_code, reason = "held for its Drop")] OwnedSemaphorePermit);

/// How many client connections there may be, over all listeners and workers.
#[derive(Clone, Debug)]
pub struct Permits {
    places: Arc<Semaphore>,
    limit: usize,
}

impl Permits {
    /// At most `limit` connections.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(limit)), limit }
    }

    /// What the process can carry: each client connection may cost a second descriptor (a local backend), and three eighths
    /// of all descriptors are kept: for listeners ([`Budget`]), for backends of peers, for links and files.
    #[must_use]
    pub fn for_descriptors(descriptors: u64) -> Self {
        let usable = descriptors / 8 * 5 / 2;
        Self::new(usize::try_from(usable).unwrap_or(usize::MAX).max(16))
    }

    /// A place, if there is one.
    #[must_use]
    pub fn acquire(&self) -> Option<Permit> {
        Arc::clone(&self.places).try_acquire_owned().ok().map(Permit)
    }

    /// Connections there are now.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.limit - self.places.available_permits()
    }

    /// Connections there may be.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }
}

#[cfg(test)]
mod tests;
