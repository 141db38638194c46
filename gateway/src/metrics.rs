//! Counters and histograms of the data plane.
//!
//! ```text
//! Record --Recorder--> Metrics --lookup by (direction, peer, service, port)--> Series: atomics
//!                                                                               |-> /metrics  (encode)
//!                                                                               `-> /stat     (crate::stat)
//! ```
//!
//! - In: begin, progress and end of every connection and request ([`Recorder`]); states of links.
//! - Out: the families below on the process's registry, and [`Metrics::series`] for the `stat` window.
//! - Refuses: a label value that is not configured. Names that a peer or a client made up are counted, under empty labels
//!   (S-31): whatever they send, the number of time series follows from the configuration alone.
//! - Never does: lock or allocate on the path of a request. The lock here is taken when a service is called for the first
//!   time and when the configuration changes.
//! - Numbers: [`SERIES_MAX`] label combinations.
//!
//! | family | counts |
//! |---|---|
//! | `request_total` | HTTP requests that have ended, whether or not anybody answered |
//! | `response_total` | the same, by `classification`, `status_code` (its class) and `outcome` |
//! | `response_latency_ms` | from the request's head to the end of its response |
//! | `tcp_open_total`, `tcp_close_total` | connections that are not HTTP; closes by `outcome` |
//! | `udp_open_total`, `udp_close_total` | flows: datagrams of one client address and port; closes by `outcome` |
//! | `udp_read_datagrams_total`, `udp_write_datagrams_total` | datagrams from and to the caller that were carried on |
//! | `udp_read_bytes_total`, `udp_write_bytes_total` | their payload |
//! | `udp_lost_total` | datagrams that were not carried on, by `reason`; in none of the two before |
//! | `tcp_read_bytes_total`, `tcp_write_bytes_total` | bytes from and to the caller: TCP payload and HTTP bodies |
//! | `service_probe_total` | probes of `linkspan check` that have ended, by `outcome`; in none of the families above |
//! | `link_*` | see [`link`] |
//!
//! Requests are counted when they end, and not when they begin, because only then the peer is known: a request may be
//! tried on several clusters. A connection is counted at its begin, under the cluster that was chosen first.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use linkspan_proto::configuration::Resource;
use linkspan_proto::names::{ClusterName, ServiceKey};
use linkspan_runtime::metrics::Registry;

use crate::discovery::Snapshot;
use crate::outcome::{Entry, Loss, Outcome, Protocol, Recorder};

mod encode;
mod key;
pub mod link;
mod series;

pub use key::Key;
pub use series::{Series, Totals};

use key::AsKey;
use link::LinkMetrics;

/// Most label combinations that are kept apart. About 3.7 KiB each, so at most 8 MiB; the configuration of a large site has
/// a few hundred in use. What comes above is counted under empty labels.
pub const SERIES_MAX: usize = 2048;

/// The gateway's metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    own: ClusterName,
    /// Replaced as a whole, so that recording reads it without a lock.
    series: ArcSwap<HashMap<Key, Arc<Series>>>,
    known: ArcSwap<Known>,
    /// Held by whoever replaces `series`.
    writing: Mutex<()>,
    links: LinkMetrics,
}

/// The names that may become label values.
#[derive(Debug, Default)]
struct Known {
    peers: HashSet<ClusterName>,
    ports: HashSet<(ServiceKey, u16)>,
}

impl Metrics {
    /// Metrics of a gateway in the cluster `own`, shown by `registry`. Until [`Metrics::configure`] no name is known.
    #[must_use]
    pub fn new(own: ClusterName, registry: &Registry) -> Self {
        let shared = Arc::new(Shared {
            own,
            series: ArcSwap::default(),
            known: ArcSwap::default(),
            writing: Mutex::new(()),
            links: LinkMetrics::default(),
        });
        let metrics = Self { shared };
        registry.collector(encode::Families(metrics.clone()));
        registry.collector(metrics.shared.links.clone());
        metrics
    }

    /// Takes the names of a new configuration. Series of names that are gone are forgotten.
    pub fn configure(&self, snapshot: &Snapshot) {
        let mut known = Known::default();
        known.peers.insert(self.shared.own.clone());
        for resource in snapshot.resources.values() {
            match &**resource {
                Resource::Peer(peer) => {
                    known.peers.insert(peer.cluster.clone());
                }
                Resource::Mirror(mirror) => {
                    known.ports.extend(mirror.ports.iter().map(|port| (mirror.service.clone(), port.port)));
                }
                Resource::Export(export) => {
                    known.ports.extend(export.ports.iter().map(|port| (export.service.clone(), port.port)));
                }
                Resource::Capacity(_) | Resource::Workload(_) => {}
            }
        }
        let peers: BTreeSet<ClusterName> =
            known.peers.iter().filter(|peer| **peer != self.shared.own).cloned().collect();
        self.shared.links.retain(&peers);
        let _writing = self.shared.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let series = self.shared.series.load();
        if series.keys().any(|key| known.bounded(key) != *key) {
            let kept = series.iter().filter(|(key, _)| known.bounded(*key) == **key);
            self.shared.series.store(Arc::new(kept.map(|(key, series)| (key.clone(), Arc::clone(series))).collect()));
        }
        self.shared.known.store(Arc::new(known));
    }

    /// The counters of one label combination. Keep it where one combination is recorded often.
    #[must_use]
    pub fn handle(&self, key: &Key) -> Arc<Series> {
        self.resolve(key)
    }

    /// All label combinations in use.
    #[must_use]
    pub fn series(&self) -> Vec<Arc<Series>> {
        self.shared.series.load().values().cloned().collect()
    }

    /// The metrics of links.
    #[must_use]
    pub fn links(&self) -> &LinkMetrics {
        &self.shared.links
    }

    fn resolve(&self, key: &dyn AsKey) -> Arc<Series> {
        if let Some(series) = self.shared.series.load().get(key) {
            return Arc::clone(series);
        }
        // A first call, or a name from outside. The latter must stay cheap however often it comes.
        let bounded = self.shared.known.load().bounded(key);
        if let Some(series) = self.shared.series.load().get(&bounded as &dyn AsKey) {
            return Arc::clone(series);
        }
        self.insert(key)
    }

    fn insert(&self, key: &dyn AsKey) -> Arc<Series> {
        let _writing = self.shared.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: a configuration that came meanwhile must not find a series that it forgot.
        let key = self.shared.known.load().bounded(key);
        let all = self.shared.series.load();
        // The unnamed combinations (one a direction and peer) stay available at the cap.
        let key = if all.len() >= SERIES_MAX { key.unnamed() } else { key };
        if let Some(series) = all.get(&key as &dyn AsKey) {
            return Arc::clone(series);
        }
        let series = Arc::new(Series::new(key.clone()));
        let mut more = HashMap::clone(&all);
        more.insert(key, Arc::clone(&series));
        self.shared.series.store(Arc::new(more));
        series
    }
}

impl Known {
    /// The key with every part emptied that is not configured.
    fn bounded(&self, key: &dyn AsKey) -> Key {
        let parts = key.parts();
        let peer = parts.peer.filter(|peer| self.peers.contains(*peer)).cloned();
        let service = parts.service.cloned();
        match service.filter(|service| self.ports.contains(&(service.clone(), parts.port))) {
            Some(service) => Key { direction: parts.direction, peer, service: Some(service), port: parts.port },
            None => Key { direction: parts.direction, peer, service: None, port: 0 },
        }
    }
}

impl Recorder for Metrics {
    fn begin(&self, entry: &Entry) {
        match entry.protocol {
            _ if entry.probe => {}
            Protocol::Udp => self.resolve(entry).udp_open(),
            protocol if protocol.is_http() => {}
            _ => self.resolve(entry).tcp_open(),
        }
    }

    fn progress(&self, entry: &Entry, received: u64, sent: u64) {
        match entry.protocol {
            _ if entry.probe => {}
            Protocol::Udp => self.resolve(entry).udp_bytes(received, sent),
            _ => self.resolve(entry).bytes(received, sent),
        }
    }

    fn datagrams(&self, entry: &Entry, received: u64, sent: u64) {
        self.resolve(entry).udp_datagrams(received, sent);
    }

    fn lost(&self, entry: &Entry, why: Loss, count: u64) {
        self.resolve(entry).udp_lost(why, count);
    }

    fn end(&self, entry: &Entry, outcome: Outcome, elapsed: Duration) {
        let series = self.resolve(entry);
        if entry.probe {
            series.probe(outcome);
        } else if entry.protocol.is_http() {
            series.request(outcome, entry.status, entry.grpc_status, elapsed);
        } else if entry.protocol == Protocol::Udp {
            series.udp_close(outcome);
        } else {
            series.tcp_close(outcome);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
