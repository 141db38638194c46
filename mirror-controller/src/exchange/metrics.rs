//! Figures of the exchange. Labels are names of linked clusters and our own enums: bounded.

use linkspan_proto::names::ClusterName;
use linkspan_runtime::metrics::Registry;
use linkspan_runtime::metrics::prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use linkspan_runtime::metrics::prometheus_client::metrics::counter::Counter;
use linkspan_runtime::metrics::prometheus_client::metrics::family::Family;
use linkspan_runtime::metrics::prometheus_client::metrics::gauge::Gauge;

use super::session::{Catalogue, Freshness, View};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Peer {
    peer: String,
}

/// Which way a message went.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub(super) enum Direction {
    /// To the peer.
    Sent,
    /// From the peer.
    Received,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Messages {
    peer: String,
    direction: Direction,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    peer: String,
    reason: &'static str,
}

/// What the exchange counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Services that we export now.
    exported: Gauge,
    /// Version of our catalogue inside this run.
    version: Gauge,
    /// Services in a peer's effective catalogue.
    entries: Family<Peer, Gauge>,
    /// Entries that a peer removed and that wait for their delay; a part of `entries`.
    withheld: Family<Peer, Gauge>,
    /// 1 while a peer's catalogue is neither stale nor drained.
    fresh: Family<Peer, Gauge>,
    /// Messages of the catalogue protocol; acknowledgements and heartbeats too.
    messages: Family<Messages, Counter>,
    /// Sessions that ended for a reason of the protocol; a pipe that merely closed is `Closed`.
    ended: Family<Ended, Counter>,
}

impl Metrics {
    /// Registers all of it.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let metrics = Self::default();
        let group = registry.group("catalogue");
        group.register("exported_services", "Services that this cluster exports", metrics.exported.clone());
        group.register("version", "Version of this cluster's catalogue since the start", metrics.version.clone());
        group.register("peer_services", "Services in the effective catalogue of a peer", metrics.entries.clone());
        group.register("peer_withheld", "Removed services of a peer that are still kept", metrics.withheld.clone());
        group.register("peer_fresh", "Whether a peer's catalogue was confirmed lately", metrics.fresh.clone());
        group.register("messages", "Messages of the catalogue exchange", metrics.messages.clone());
        group.register("sessions_ended", "Ended catalogue sessions", metrics.ended.clone());
        metrics
    }

    pub(super) fn published(&self, catalogue: &Catalogue) {
        self.exported.set(i64::try_from(catalogue.entries.len()).unwrap_or(i64::MAX));
        self.version.set(i64::try_from(catalogue.version).unwrap_or(i64::MAX));
    }

    pub(super) fn viewed(&self, peer: &ClusterName, view: &View) {
        let peer = Peer { peer: peer.to_string() };
        self.entries.get_or_create(&peer).set(i64::try_from(view.entries.len()).unwrap_or(i64::MAX));
        self.withheld.get_or_create(&peer).set(i64::try_from(view.withheld.len()).unwrap_or(i64::MAX));
        self.fresh.get_or_create(&peer).set(i64::from(view.freshness == Freshness::Fresh));
    }

    pub(super) fn forget(&self, peer: &ClusterName) {
        let peer = Peer { peer: peer.to_string() };
        self.entries.remove(&peer);
        self.withheld.remove(&peer);
        self.fresh.remove(&peer);
    }

    pub(super) fn message(&self, peer: &ClusterName, direction: Direction) {
        self.messages.get_or_create(&Messages { peer: peer.to_string(), direction }).inc();
    }

    pub(super) fn ended(&self, peer: &ClusterName, reason: &'static str) {
        self.ended.get_or_create(&Ended { peer: peer.to_string(), reason }).inc();
    }
}
