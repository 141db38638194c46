//! The links to all peers, as the data path sees them: snapshots, no lock.
//!
//! ```text
//! Links -> peers (ArcSwap map) -> PeerLink -> usable connections (ArcSwap list)
//!             replaced by configure()            replaced by the driver of that peer
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use linkspan_proto::configuration::LinkReport;
use linkspan_proto::names::ClusterName;

use super::connection::Connection;
use super::{OpenError, RecvHalf, SendHalf};

/// The links to all peers. Cheap to clone; shared by all workers.
#[derive(Clone, Debug)]
pub struct Links(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    peers: ArcSwap<BTreeMap<ClusterName, Arc<PeerLink>>>,
}

/// What the data path needs to know of one peer.
#[derive(Debug)]
pub(super) struct PeerLink {
    /// Connections that take new streams. Empty: not connected.
    connections: ArcSwap<Vec<Arc<Connection>>>,
    /// The verdict of the probes; kept over a loss of all connections until it is proved wrong.
    healthy: AtomicBool,
    /// Spreads streams over connections of equal rank.
    next: AtomicUsize,
    report: ArcSwap<LinkReport>,
}

impl Links {
    /// Opens a stream to a peer, on a connection of this worker if there is one. Never waits for a link to come up; waits
    /// for stream credit for at most [`OPEN_TIMEOUT`](super::OPEN_TIMEOUT).
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing was sent: another cluster may be tried.
    pub async fn open(&self, worker: usize, peer: &ClusterName) -> Result<(SendHalf, RecvHalf), OpenError> {
        let link = self.peer(peer).ok_or(OpenError::UnknownPeer)?;
        let connections = link.connections.load_full();
        let first = link.pick(&connections, worker).ok_or(OpenError::NotConnected)?;
        if let Some(Ok(opened)) = first.try_open() {
            return Ok(opened);
        }
        // Out of credit or just lost: any other connection serves before anybody waits.
        for other in connections.iter().filter(|other| other.id != first.id) {
            if let Some(Ok(opened)) = other.try_open() {
                return Ok(opened);
            }
        }
        first.open().await
    }

    /// Whether new streams to this peer may be expected to work: a connection stands and the probes say so.
    #[must_use]
    pub fn alive(&self, peer: &ClusterName) -> bool {
        self.peer(peer).is_some_and(|link| link.healthy.load(Ordering::Relaxed) && !link.connections.load().is_empty())
    }

    /// The smallest smoothed round-trip time of the peer's connections.
    #[must_use]
    pub fn rtt(&self, peer: &ClusterName) -> Option<Duration> {
        self.peer(peer)?.connections.load().iter().map(|connection| connection.quinn.rtt()).min()
    }

    /// How each link stands, by name of the peer.
    #[must_use]
    pub fn reports(&self) -> Vec<LinkReport> {
        self.0.peers.load().values().map(|link| LinkReport::clone(&link.report.load())).collect()
    }

    fn peer(&self, peer: &ClusterName) -> Option<Arc<PeerLink>> {
        self.0.peers.load().get(peer).cloned()
    }
}

impl PeerLink {
    /// A connection of this worker in turn, else any in turn.
    fn pick<'a>(&self, connections: &'a [Arc<Connection>], worker: usize) -> Option<&'a Arc<Connection>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let own = || connections.iter().filter(|connection| connection.worker == worker);
        match (own().count(), connections.len()) {
            (0, 0) => None,
            (0, all) => connections.get(turn % all),
            (some, _) => own().nth(turn % some),
        }
    }
}
