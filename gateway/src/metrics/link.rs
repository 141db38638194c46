//! Metrics of links, one set a peer.
//!
//! | family | means |
//! |---|---|
//! | `link_up{peer}` | 1 while probes over the data path are answered |
//! | `link_connections{peer}` | connections in use |
//! | `link_rtt_seconds{peer}` | smoothed round-trip time of the transport; absent while not connected |
//! | `link_state{peer,state}` | 1 for the state in which the link is, 0 for the others: `waiting`, `connecting`, `connected`, `draining` |
//! | `link_transport{peer,transport}` | 1 for what carries new streams, 0 for the other: `quic`, `tcp`; both 0 while not connected |
//! | `link_sent_packets_total{peer}` | packets sent |
//! | `link_lost_packets_total{peer}` | packets sent and declared lost; divided by those sent: the loss |
//! | `link_probe_total{peer,result}` | probes by `answered`, `failed` |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use linkspan_proto::configuration::{Carrier, LinkPhase, LinkReport};
use linkspan_proto::names::ClusterName;
use linkspan_runtime::metrics::prometheus_client::collector::Collector;
use linkspan_runtime::metrics::prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use linkspan_runtime::metrics::prometheus_client::metrics::MetricType;
use linkspan_runtime::metrics::prometheus_client::metrics::counter::ConstCounter;
use linkspan_runtime::metrics::prometheus_client::metrics::gauge::ConstGauge;

/// The metrics of all links. Cheap to clone. Its lock is taken by those who manage links, never by a stream.
#[derive(Clone, Debug, Default)]
pub struct LinkMetrics {
    peers: Arc<Mutex<BTreeMap<ClusterName, Arc<PeerSeries>>>>,
}

/// The metrics of one link. Keep it beside the link.
#[derive(Debug, Default)]
pub struct PeerSeries {
    up: AtomicU64,
    connections: AtomicU64,
    /// Microseconds; 0 while unknown.
    rtt_us: AtomicU64,
    /// Index into [`LinkPhase::ALL`] plus one; 0 while unknown.
    state: AtomicU64,
    /// Index into [`Carrier::ALL`] plus one; 0 while not connected.
    transport: AtomicU64,
    sent_packets: AtomicU64,
    lost_packets: AtomicU64,
    probes_answered: AtomicU64,
    probes_failed: AtomicU64,
}

impl PeerSeries {
    /// Whether the link carries traffic.
    pub fn up(&self, up: bool) {
        self.up.store(u64::from(up), Ordering::Relaxed);
    }

    /// How many connections are in use.
    pub fn connections(&self, connections: u64) {
        self.connections.store(connections, Ordering::Relaxed);
    }

    /// The transport's round-trip time, where it is connected.
    pub fn rtt(&self, rtt: Option<Duration>) {
        // A round trip below a microsecond still is one.
        let us = rtt.map_or(0, |rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1));
        self.rtt_us.store(us, Ordering::Relaxed);
    }

    /// Where the link is in its life.
    pub fn state(&self, state: LinkPhase) {
        let index = LinkPhase::ALL.iter().position(|phase| *phase == state);
        self.state.store(index.map_or(0, |index| index as u64 + 1), Ordering::Relaxed);
    }

    /// What carries new streams.
    pub fn transport(&self, transport: Option<Carrier>) {
        let index = Carrier::ALL.iter().position(|carrier| Some(*carrier) == transport);
        self.transport.store(index.map_or(0, |index| index as u64 + 1), Ordering::Relaxed);
    }

    /// Further packets were sent, and further ones found lost.
    pub fn packets(&self, sent: u64, lost: u64) {
        self.sent_packets.fetch_add(sent, Ordering::Relaxed);
        self.lost_packets.fetch_add(lost, Ordering::Relaxed);
    }

    /// A probe was answered in time, or not.
    pub fn probe(&self, answered: bool) {
        let counter = if answered { &self.probes_answered } else { &self.probes_failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl LinkMetrics {
    /// The metrics of the link to `peer`, made at the first call. Peers come from Link objects only.
    #[must_use]
    pub fn peer(&self, peer: &ClusterName) -> Arc<PeerSeries> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = peers.get(peer) {
            return Arc::clone(link);
        }
        let link = Arc::new(PeerSeries::default());
        peers.insert(peer.clone(), Arc::clone(&link));
        link
    }

    /// Sets the gauges from what the links report of themselves.
    pub fn observe(&self, reports: &[LinkReport]) {
        for report in reports {
            let link = self.peer(&report.cluster);
            link.up(report.alive);
            link.state(report.state);
            link.transport(report.transport);
            link.connections(u64::from(report.connections));
            link.rtt(report.rtt_micros.map(Duration::from_micros));
        }
    }

    /// Forgets the peers that no Link names any more.
    pub(super) fn retain(&self, configured: &BTreeSet<ClusterName>) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|peer, _| configured.contains(peer));
    }

    fn all(&self) -> Vec<(ClusterName, Arc<PeerSeries>)> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.iter().map(|(peer, link)| (peer.clone(), Arc::clone(link))).collect()
    }
}

impl Collector for LinkMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.all();
        let help = "1 while probes over the link are answered";
        gauges(&mut encoder, "link_up", help, &all, |link| Some(load(&link.up)))?;
        let help = "Connections of the link in use";
        gauges(&mut encoder, "link_connections", help, &all, |link| Some(load(&link.connections)))?;
        let help = "Smoothed round-trip time of the link's transport";
        gauges(&mut encoder, "link_rtt_seconds", help, &all, |link| {
            Some(load(&link.rtt_us)).filter(|us| *us > 0.0).map(|us| us / 1e6)
        })?;
        states(&mut encoder, &all)?;
        transports(&mut encoder, &all)?;
        let help = "Packets that were sent on the link";
        counters(&mut encoder, "link_sent_packets", help, &all, |link| &link.sent_packets)?;
        let help = "Packets that were sent on the link and declared lost";
        counters(&mut encoder, "link_lost_packets", help, &all, |link| &link.lost_packets)?;
        let help = "Probes over the link, by result";
        let mut family = encoder.encode_descriptor("link_probe", help, None, MetricType::Counter)?;
        for (peer, link) in &all {
            for (result, counter) in [("answered", &link.probes_answered), ("failed", &link.probes_failed)] {
                let labels = [("peer", peer.as_str()), ("result", result)];
                ConstCounter::new(counter.load(Ordering::Relaxed)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: &[(ClusterName, Arc<PeerSeries>)],
    value: impl Fn(&PeerSeries) -> Option<f64>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (peer, link) in all {
        if let Some(value) = value(link) {
            ConstGauge::new(value).encode(family.encode_family(&[("peer", peer.as_str())])?)?;
        }
    }
    Ok(())
}

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: &[(ClusterName, Arc<PeerSeries>)],
    counter: impl Fn(&PeerSeries) -> &AtomicU64,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (peer, link) in all {
        let count = counter(link).load(Ordering::Relaxed);
        ConstCounter::new(count).encode(family.encode_family(&[("peer", peer.as_str())])?)?;
    }
    Ok(())
}

fn states(encoder: &mut DescriptorEncoder<'_>, all: &[(ClusterName, Arc<PeerSeries>)]) -> fmt::Result {
    let help = "1 for the state in which the link is, 0 for the others";
    let mut family = encoder.encode_descriptor("link_state", help, None, MetricType::Gauge)?;
    for (peer, link) in all {
        let present = link.state.load(Ordering::Relaxed);
        for (index, phase) in (1..).zip(LinkPhase::ALL) {
            let labels = [("peer", peer.as_str()), ("state", phase.as_str())];
            let value = if present == index { 1.0 } else { 0.0 };
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn transports(encoder: &mut DescriptorEncoder<'_>, all: &[(ClusterName, Arc<PeerSeries>)]) -> fmt::Result {
    let help = "1 for what carries new streams of the link, 0 for the other";
    let mut family = encoder.encode_descriptor("link_transport", help, None, MetricType::Gauge)?;
    for (peer, link) in all {
        let present = link.transport.load(Ordering::Relaxed);
        for (index, carrier) in (1..).zip(Carrier::ALL) {
            let labels = [("peer", peer.as_str()), ("transport", carrier.as_str())];
            let value = if present == index { 1.0 } else { 0.0 };
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn load(counter: &AtomicU64) -> f64 {
    counter.load(Ordering::Relaxed) as f64
}
