//! What the link looks like from outside.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use linkspan_proto::configuration::{Carrier, LinkPhase, LinkReport, Peer, TransportReason};

use super::Driver;
use crate::link::connection::ConnectionId;
use crate::link::health::Verdict;

/// Loss is told over the last minute, sampled each second.
const SAMPLES: usize = 60;

/// Figures that move all the time.
#[derive(Debug)]
pub(super) struct Figures {
    /// The peer's software, from its last hello.
    pub(super) version: Option<String>,
    /// How far its clock was ahead of ours then, seconds.
    pub(super) clock_ahead: Option<i64>,
    /// The last answered probe.
    pub(super) probe: Option<Duration>,
    since: SystemTime,
    /// Sent and lost packets, newest last.
    samples: VecDeque<(u64, u64)>,
    /// Totals of each connection at the last sample, by quinn's stable id.
    totals: HashMap<usize, (u64, u64)>,
    /// Of connections that ended since the last sample.
    left: (u64, u64),
    /// What carried new streams last, and why.
    carrier: Option<(Carrier, TransportReason)>,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            version: None,
            clock_ahead: None,
            probe: None,
            since: SystemTime::now(),
            samples: VecDeque::new(),
            totals: HashMap::new(),
            left: (0, 0),
            carrier: None,
        }
    }
}

impl Figures {
    /// `alive` has changed.
    pub(super) fn turn(&mut self) {
        self.since = SystemTime::now();
    }

    /// Another peer: nothing that was seen of the one before counts. What connections have sent so far was sampled.
    pub(super) fn begin_anew(&mut self) {
        self.version = None;
        self.clock_ahead = None;
        self.probe = None;
        self.since = SystemTime::now();
        self.samples.clear();
    }

    /// Takes the last figures of a connection that has ended.
    pub(super) fn leave(&mut self, connection: &quinn::Connection) {
        let (sent, lost) = self.advance(connection);
        self.totals.remove(&connection.stable_id());
        self.left.0 += sent;
        self.left.1 += lost;
    }

    /// Takes one sample; gives the packets that were sent since the one before, and those found lost.
    pub(super) fn sample(&mut self, connections: &[&quinn::Connection]) -> (u64, u64) {
        let (mut sent, mut lost) = std::mem::take(&mut self.left);
        for connection in connections {
            let (more_sent, more_lost) = self.advance(connection);
            sent += more_sent;
            lost += more_lost;
        }
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((sent, lost));
        (sent, lost)
    }

    fn advance(&mut self, connection: &quinn::Connection) -> (u64, u64) {
        let path = connection.stats().path;
        // A new path after a rebind starts from zero.
        let now = (path.sent_packets, path.lost_packets);
        let before = self.totals.insert(connection.stable_id(), now).unwrap_or((0, 0));
        let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        (since(now.0, before.0), since(now.1, before.1))
    }

    fn loss(&self) -> f64 {
        let (sent, lost) = self.samples.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        if sent == 0 { 0.0 } else { (lost as f64 / sent as f64).min(1.0) }
    }
}

/// The report of a link that has just been configured.
pub(in super::super) fn first_report(peer: &Peer) -> LinkReport {
    LinkReport {
        cluster: peer.cluster.clone(),
        alive: false,
        state: LinkPhase::Connecting,
        message: String::new(),
        reason: "Connecting".to_owned(),
        connections: 0,
        version: None,
        rtt_micros: None,
        probe_micros: None,
        loss: 0.0,
        since_unix: unix(SystemTime::now()),
        remote: None,
        transport: None,
        transport_reason: None,
        clock_ahead_seconds: None,
        mtu: None,
        black_holes: 0,
    }
}

/// Why a link is carried by what carries it.
const fn told(why: TransportReason) -> &'static str {
    match why {
        TransportReason::Preferred => "QUIC connections stand",
        TransportReason::Configured => "the Link's transport says so",
        TransportReason::UdpBlocked => {
            "UDP to the peer seems blocked, there is no QUIC connection: TCP is in use, and QUIC is tried again every 10 s"
        }
        TransportReason::UdpSilent => {
            "probes over QUIC go unanswered, UDP to the peer seems blocked: TCP is in use, and QUIC is tried again every 10 s"
        }
        TransportReason::UdpRestored => "QUIC works again",
        TransportReason::PeerDialled => "the peer has dialled like this, and nothing better stands",
    }
}

/// The least that one of several paths carries, and how often one of them stopped carrying what it did before.
fn sizes(paths: impl Iterator<Item = quinn::PathStats>) -> (Option<u16>, u64) {
    paths.fold((None, 0), |(mtu, black_holes), path| {
        let least = mtu.map_or(path.current_mtu, |mtu: u16| mtu.min(path.current_mtu));
        (Some(least), black_holes + path.black_holes_detected)
    })
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Driver {
    /// Stores the report; counts a change where an operator would see one.
    pub(super) fn report(&mut self, usable: &[ConnectionId]) {
        let alive = self.health.verdict() == Verdict::Up;
        let (state, reason, mut message) = self.phase(usable, alive);
        let transport = self.transport(usable);
        if let Some((Carrier::Tcp, why @ (TransportReason::UdpBlocked | TransportReason::UdpSilent))) = transport
            && message.is_empty()
        {
            message = told(why).to_owned();
        }
        let standing = usable.iter().filter_map(|id| self.standing.get(id));
        let quinn = standing.clone().map(|standing| &standing.connection.quinn);
        // TCP finds out by itself what a path carries.
        let over_udp = standing.filter(|standing| standing.carrier == Carrier::Quic);
        let (mtu, black_holes) = sizes(over_udp.map(|standing| standing.connection.quinn.stats().path));
        let connected = !usable.is_empty();
        let report = LinkReport {
            cluster: self.link.cluster.clone(),
            alive,
            state,
            message,
            reason,
            connections: u32::try_from(usable.len()).unwrap_or(u32::MAX),
            version: self.figures.version.clone(),
            rtt_micros: quinn.clone().map(|connection| micros(connection.rtt())).min(),
            probe_micros: self.figures.probe.filter(|_| connected).map(micros),
            loss: self.figures.loss(),
            since_unix: unix(self.figures.since),
            remote: quinn.map(quinn::Connection::remote_address).next(),
            transport: transport.map(|(carrier, _)| carrier),
            transport_reason: transport.map(|(_, why)| why),
            clock_ahead_seconds: self.figures.clock_ahead,
            mtu,
            black_holes,
        };
        let old = self.link.report.load();
        let noticed = old.alive != report.alive
            || old.state != report.state
            || old.reason != report.reason
            || old.message != report.message
            || old.connections != report.connections
            || old.version != report.version
            || old.remote != report.remote
            || (old.transport, old.transport_reason) != (report.transport, report.transport_reason);
        drop(old);
        self.link.report.store(Arc::new(report));
        if noticed {
            self.shared.changed.send_modify(|changes| *changes += 1);
        }
    }

    /// What carries new streams, and why; changes are told.
    fn transport(&mut self, usable: &[ConnectionId]) -> Option<(Carrier, TransportReason)> {
        // Of several gateways of the peer, one may be reached over the better carrier only.
        let carrier = usable.iter().filter_map(|id| self.state.carrier(*id)).min()?;
        let now = (carrier, self.state.why(carrier));
        let before = self.figures.carrier.replace(now);
        if before.map(|(carrier, _)| carrier) != Some(carrier) {
            let (transport, reason) = (carrier.as_str(), now.1.as_str());
            tracing::info!(peer = %self.link.cluster, transport, reason, "link transport changed: {}", told(now.1));
        }
        Some(now)
    }

    fn phase(&self, usable: &[ConnectionId], alive: bool) -> (LinkPhase, String, String) {
        let say = |phase, reason: &str, message: &str| (phase, reason.to_owned(), message.to_owned());
        if !usable.is_empty() {
            return if alive {
                say(LinkPhase::Connected, "Connected", "")
            } else {
                let message = "the connection stands, but probes over it are not answered";
                say(LinkPhase::Connected, "ProbesUnanswered", message)
            };
        }
        if self.state.is_peer_leaving() {
            return say(LinkPhase::Draining, "PeerShutDown", "the peer's gateway is shutting down");
        }
        let waits = self.certified && !self.state.is_dialable();
        let phase = if waits { LinkPhase::Waiting } else { LinkPhase::Connecting };
        match self.state.trouble() {
            Some(trouble) => say(phase, trouble.reason, &trouble.message),
            None if !self.certified => {
                let message = "the controller has not yet signed this gateway's certificate; is it running?";
                say(phase, "NoCertificate", message)
            }
            None if waits => {
                let message = "the Link has no addresses: the peer must dial this cluster";
                say(phase, "WaitingForPeer", message)
            }
            None => say(phase, "Connecting", ""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_peer_begins_with_figures_of_its_own() {
        let mut figures = Figures { since: UNIX_EPOCH, version: Some("0.1.0".to_owned()), ..Figures::default() };
        figures.samples.push_back((100, 50));
        assert!(figures.loss() > 0.0);
        figures.begin_anew();
        assert!(figures.loss().abs() < f64::EPSILON && figures.version.is_none());
        assert!(figures.since > UNIX_EPOCH);
    }
}
