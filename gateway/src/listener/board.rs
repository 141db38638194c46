//! What listens where, what went wrong, and how much came: read by `/mirrors` and `/metrics`.
//!
//! | family | means |
//! |---|---|
//! | `listener_accepted_total` | client connections accepted |
//! | `listener_refused_total` | of these reset at once, because the limit was reached; not in `accepted` |
//! | `listener_accept_failures_total` | times that `accept` failed, for want of descriptors mostly |
//! | `listener_starving` | sockets that pause after such a failure; above 0 the gateway is degraded |
//! | `listener_connections`, `listener_connections_limit` | open client connections, and how many there may be |
//! | `listener_ports{state}` | mirrored ports by `bound`, `failed` |

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use linkspan_runtime::metrics::Registry;
use linkspan_runtime::metrics::prometheus_client::collector::Collector;
use linkspan_runtime::metrics::prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use linkspan_runtime::metrics::prometheus_client::metrics::MetricType;
use linkspan_runtime::metrics::prometheus_client::metrics::counter::ConstCounter;
use linkspan_runtime::metrics::prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;

use super::Permits;

/// The state of all listening sockets of the process.
#[derive(Debug, Default)]
pub struct Board {
    mirrors: Mutex<BTreeMap<SocketAddr, MirrorState>>,
    accepted: AtomicU64,
    refused: AtomicU64,
    failures: AtomicU64,
    starving: AtomicU64,
}

/// The listening state of one port of a mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorState {
    /// The mirrored name.
    pub mirror: String,
    /// Where clients connect to.
    pub listen: SocketAddr,
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
    /// Shows it on `/metrics`. `permits` are those of all listeners.
    pub fn register(self: &Arc<Self>, permits: &Permits, registry: &Registry) {
        registry.collector(Shown { board: Arc::clone(self), permits: permits.clone() });
    }

    /// All mirrored ports, in order of address.
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

    pub(super) fn replace(&self, mirrors: BTreeMap<SocketAddr, MirrorState>) {
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
        ] {
            let metric = ConstGauge::new(value as f64);
            metric.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let mirrors = board.mirrors.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = mirrors.values().filter(|mirror| mirror.bound).count();
        let all = mirrors.len();
        drop(mirrors);
        let help = "Mirrored ports, by state";
        let mut family = encoder.encode_descriptor("listener_ports", help, None, MetricType::Gauge)?;
        for (state, count) in [("bound", bound), ("failed", all - bound)] {
            ConstGauge::new(count as f64).encode(family.encode_family(&[("state", state)])?)?;
        }
        Ok(())
    }
}
