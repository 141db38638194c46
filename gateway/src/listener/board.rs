//! What listens where, what went wrong, and how much came: read by `/mirrors` and `/metrics`.
//!
//! | family | means |
//! |---|---|
//! | `listener_accepted_total` | client connections accepted |
//! | `listener_refused_total` | of these reset at once, because the limit was reached; not in `accepted` |
//! | `listener_accept_failures_total` | times that `accept` failed, for want of descriptors mostly |
//! | `listener_starving` | sockets that pause after such a failure; above 0 the gateway is degraded |
//! | `listener_connections`, `listener_connections_limit` | open client connections, and how many there may be |
//! | `listener_ports{state}` | mirrored ports by `bound`, `failed` (the system refuses), `refused` (the budget does) |
//! | `listener_sockets{peer}` | listening sockets of the mirrored ports, by the cluster that they count for |
//! | `listener_sockets_limit`, `listener_sockets_share` | how many there may be, in all and for one cluster |

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use linkspan_proto::configuration::PortTransport;
use linkspan_proto::names::ClusterName;
use linkspan_runtime::metrics::Registry;
use linkspan_runtime::metrics::prometheus_client::collector::Collector;
use linkspan_runtime::metrics::prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use linkspan_runtime::metrics::prometheus_client::metrics::MetricType;
use linkspan_runtime::metrics::prometheus_client::metrics::counter::ConstCounter;
use linkspan_runtime::metrics::prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;

use super::{Budget, Permits, Place};

/// The state of all listening sockets of the process.
#[derive(Debug, Default)]
pub struct Board {
    mirrors: Mutex<BTreeMap<Place, MirrorState>>,
    counts: Mutex<Counts>,
    budget: Budget,
    accepted: AtomicU64,
    refused: AtomicU64,
    failures: AtomicU64,
    starving: AtomicU64,
}

/// How the mirrored ports stand in all. [`Board::mirrors`] may leave out some that are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) bound: usize,
    pub(super) failed: usize,
    pub(super) refused: usize,
    pub(super) sockets: BTreeMap<Option<ClusterName>, usize>,
}

/// The listening state of one port of a mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorState {
    /// The mirrored name.
    pub mirror: String,
    /// Where clients connect to, or send to.
    pub listen: SocketAddr,
    /// For connections or for datagrams.
    #[serde(skip_serializing_if = "PortTransport::is_tcp")]
    pub transport: PortTransport,
    /// Whether it is bound.
    pub bound: bool,
    /// On how many workers.
    pub workers: usize,
    /// Why it is not bound: a closed set, CamelCase. Empty when it is.
    pub reason: String,
    /// The same in words, with the remedy.
    pub message: String,
}

/// Held while a socket pauses after a failed `accept`.
#[derive(Debug)]
pub(super) struct Starving<'a>(&'a Board);

impl Board {
    pub(super) fn new(budget: Budget) -> Self {
        Self { budget, ..Self::default() }
    }

    /// Shows it on `/metrics`. `permits` are those of all listeners.
    pub fn register(self: &Arc<Self>, permits: &Permits, registry: &Registry) {
        registry.collector(Shown { board: Arc::clone(self), permits: permits.clone() });
    }

    /// All mirrored ports, in order of address; of those that the budget refuses some thousand for each cluster.
    #[must_use]
    pub fn mirrors(&self) -> Vec<MirrorState> {
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Connections accepted since the start.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections reset at once because all permits were in use.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether some socket cannot accept for want of descriptors or memory.
    #[must_use]
    pub fn is_starving(&self) -> bool {
        self.starving.load(Ordering::Relaxed) > 0
    }

    pub(super) fn count_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// Says how many there were.
    pub(super) fn count_refused(&self) -> u64 {
        self.refused.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Says how many there were, and counts the socket as starving until the guard is dropped.
    pub(super) fn starve(&self) -> (u64, Starving<'_>) {
        self.starving.fetch_add(1, Ordering::Relaxed);
        (self.failures.fetch_add(1, Ordering::Relaxed) + 1, Starving(self))
    }

    pub(super) fn replace(&self, mirrors: BTreeMap<Place, MirrorState>, counts: Counts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
        *self.mirrors.lock().unwrap_or_else(PoisonError::into_inner) = mirrors;
    }
}

impl Drop for Starving<'_> {
    fn drop(&mut self) {
        self.0.starving.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Shown {
    board: Arc<Board>,
    permits: Permits,
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let board = &self.board;
        for (name, help, counter) in [
            ("listener_accepted", "Client connections accepted", &board.accepted),
            ("listener_refused", "Client connections reset because the limit was reached", &board.refused),
            ("listener_accept_failures", "Times that accept failed, for want of descriptors mostly", &board.failures),
        ] {
            let metric = ConstCounter::new(counter.load(Ordering::Relaxed));
            metric.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        for (name, help, value) in [
            ("listener_starving", "Sockets that pause after a failed accept", board.starving.load(Ordering::Relaxed)),
            ("listener_connections", "Open client connections", self.permits.in_use() as u64),
            ("listener_connections_limit", "Client connections there may be", self.permits.limit() as u64),
            ("listener_sockets_limit", "Listening sockets of mirrors there may be", board.budget.total() as u64),
            ("listener_sockets_share", "Of these, for one cluster's services", board.budget.share() as u64),
        ] {
            let metric = ConstGauge::new(value as f64);
            metric.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let counts = board.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let help = "Mirrored ports, by state";
        let mut family = encoder.encode_descriptor("listener_ports", help, None, MetricType::Gauge)?;
        for (state, count) in [("bound", counts.bound), ("failed", counts.failed), ("refused", counts.refused)] {
            ConstGauge::new(count as f64).encode(family.encode_family(&[("state", state)])?)?;
        }
        let help = "Listening sockets of mirrored ports, by the cluster that they count for";
        let mut family = encoder.encode_descriptor("listener_sockets", help, None, MetricType::Gauge)?;
        for (owner, count) in &counts.sockets {
            let peer = owner.as_ref().map_or("", ClusterName::as_str);
            ConstGauge::new(*count as f64).encode(family.encode_family(&[("peer", peer)])?)?;
        }
        Ok(())
    }
}
