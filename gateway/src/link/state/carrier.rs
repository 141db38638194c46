//! What a link is carried by: QUIC over UDP, TCP where the Link says so, or TCP for as long as QUIC does not get through.
//!
//! ```text
//!              no QUIC connection within 2 s, or the probes of all go unanswered
//!   QUIC only ------------------------------------------------------------------> TCP as well, QUIC now and then
//!             <------------------------------------------------------------------
//!              a QUIC connection stands and its probes pass: TCP connections run dry
//! ```
//!
//! - Both carriers have slots of their own; which of them are dialled for is decided here. A TCP connection is at hand before
//!   the verdict on a silent QUIC connection falls, so new streams move without a gap.
//! - Each side decides for its own dials and its own streams; streams of the peer are served on either carrier.
//! - A QUIC that fails again soon after a return has to stand longer before the next one ([`setbacks`](Carriers)).
//! - Never does: leave the connections of one carrier before the other carries traffic.
//! - Numbers: [`FALLBACK_AFTER`], [`AGAIN`], [`STEADY`], [`HOLD`].

use std::time::{Duration, Instant};

use linkspan_proto::configuration::{Carrier, Transport, TransportReason};

use super::known::Known;
use super::{Leave, LinkState};
use crate::link::connection::ConnectionId;
use crate::link::health::Probes;

/// How long QUIC may be without a connection before TCP is dialled as well. Three of its first packets have gone out by then
/// (at 0, 0.3 and 0.9 s); with the handshake and two probes traffic flows within 3 s.
pub(in crate::link) const FALLBACK_AFTER: Duration = Duration::from_secs(2);

/// Between tries of QUIC while TCP carries the link, smallest and largest. With [`super::DIAL_TIMEOUT`] and two probes a
/// QUIC that works again is in use after 15 s.
pub(super) const AGAIN: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(10));

/// A QUIC that worked so long after a return did not fail: the next return needs no longer than the first.
const STEADY: Duration = Duration::from_secs(60);

/// How long a link stays on TCP after a QUIC that failed soon after a return; doubled each time, up to
/// [`MOST_SETBACKS`] times: 80 s.
const HOLD: Duration = Duration::from_secs(10);

const MOST_SETBACKS: u32 = 4;

/// The carriers of one link.
#[derive(Debug)]
pub(super) struct Carriers {
    transport: Transport,
    fallback: Option<Fallback>,
    /// Since when no QUIC connection carries anything although there is somebody to dial.
    lacking_since: Option<Instant>,
    /// The last return to QUIC.
    returned: Option<Instant>,
    /// Returns in a row that did not last.
    setbacks: u32,
}

/// TCP carries the link for want of QUIC.
#[derive(Clone, Copy, Debug)]
struct Fallback {
    since: Instant,
    why: TransportReason,
    /// A TCP connection has stood. Otherwise there is nothing to return from.
    served: bool,
}

impl Carriers {
    pub(super) fn new(transport: Transport) -> Self {
        Self { transport, fallback: None, lacking_since: None, returned: None, setbacks: 0 }
    }

    /// Whether connections of this carrier are dialled.
    pub(super) fn wants(&self, carrier: Carrier) -> bool {
        match carrier {
            Carrier::Quic => self.transport != Transport::Tcp,
            Carrier::Tcp => self.transport == Transport::Tcp || self.fallback.is_some(),
        }
    }

    fn hold(&self) -> Duration {
        if self.setbacks == 0 { Duration::ZERO } else { HOLD * 2_u32.pow(self.setbacks - 1) }
    }

    fn begin(&mut self, why: TransportReason, now: Instant) {
        let again = self.returned.take().is_some_and(|at| now.duration_since(at) < STEADY);
        self.setbacks = if again { (self.setbacks + 1).min(MOST_SETBACKS) } else { 0 };
        self.fallback = Some(Fallback { since: now, why, served: false });
    }
}

/// What the QUIC connections of a link are good for.
#[derive(Clone, Copy, Debug, Default)]
struct Quic {
    /// One stands that is not in doubt.
    carries: bool,
    /// The probes of one pass.
    is_proven: bool,
    /// One stands that is in doubt.
    is_silent: bool,
}

impl LinkState {
    /// The Link says what to dial over.
    pub(super) fn set_transport(&mut self, transport: Transport, now: Instant) {
        if std::mem::replace(&mut self.carriers.transport, transport) != transport {
            self.carriers.fallback = None;
            self.carriers.lacking_since = None;
            for slot in &mut self.slots {
                slot.hurry(now);
            }
        }
    }

    /// What the probes of a connection say.
    pub(super) fn probed(&mut self, connection: ConnectionId, probes: Probes) {
        if let Some(known) = self.known.get_mut(&connection) {
            known.probes = probes;
        }
    }

    /// Begins and ends the fallback to TCP.
    pub(super) fn advance_carriers(&mut self, now: Instant) {
        let quic = self.quic();
        let may = self.carriers.transport == Transport::Auto && self.dialable && !self.addresses.is_empty();
        if !may || quic.carries || self.retiring {
            self.carriers.lacking_since = None;
        } else {
            self.carriers.lacking_since.get_or_insert(now);
        }
        if !may {
            self.carriers.fallback = None;
        }
        let due = self.carriers.lacking_since.is_some_and(|since| quic.is_silent || now >= since + FALLBACK_AFTER);
        if self.carriers.fallback.is_none() && due {
            let why = if quic.is_silent { TransportReason::UdpSilent } else { TransportReason::UdpBlocked };
            self.carriers.begin(why, now);
            self.slots.iter_mut().filter(|slot| slot.carrier == Carrier::Tcp).for_each(|slot| slot.hurry(now));
        }
        let has_tcp = self.has_tcp();
        if let Some(fallback) = &mut self.carriers.fallback {
            fallback.served |= has_tcp;
        }
        if quic.is_proven && self.return_at().is_some_and(|at| now >= at) {
            let left = self.carriers.fallback.take();
            self.carriers.returned = left.filter(|fallback| fallback.served).map(|_| now);
        }
        self.leave_unwanted(now);
    }

    /// When the carriers have something to do, if nothing happens before.
    pub(super) fn carriers_deadline(&self) -> Option<Instant> {
        match self.carriers.fallback {
            Some(_) => self.return_at().filter(|_| self.quic().is_proven),
            None => self.carriers.lacking_since.map(|since| since + FALLBACK_AFTER),
        }
    }

    /// What carries a connection.
    pub(in crate::link) fn carrier(&self, connection: ConnectionId) -> Option<Carrier> {
        self.known.get(&connection).map(|known| known.carrier)
    }

    /// Why new streams go over this carrier.
    pub(in crate::link) fn why(&self, carrier: Carrier) -> TransportReason {
        match (carrier, self.carriers.transport, self.carriers.fallback) {
            (Carrier::Quic, Transport::Quic, _) | (Carrier::Tcp, Transport::Tcp, _) => TransportReason::Configured,
            (Carrier::Tcp, Transport::Auto, Some(fallback)) => fallback.why,
            (Carrier::Quic, Transport::Auto, _) if self.carriers.returned.is_some() => TransportReason::UdpRestored,
            (Carrier::Quic, Transport::Auto, _) => TransportReason::Preferred,
            _ => TransportReason::PeerDialled,
        }
    }

    /// Whether this slot is dialled for now and then only: another carrier serves meanwhile.
    pub(super) fn is_served_otherwise(&self, index: usize) -> bool {
        self.slots[index].carrier == Carrier::Quic && self.carriers.fallback.is_some() && self.has_tcp()
    }

    /// Whether a TCP connection takes streams.
    pub(super) fn has_tcp(&self) -> bool {
        self.known.values().any(|known| known.carrier == Carrier::Tcp && known.takes_streams())
    }

    /// Whether new streams had better go over `other`, a connection over the other carrier: one to the same gateway, or any that
    /// is not in doubt.
    pub(super) fn is_worse(&self, known: &Known, other: &Known) -> bool {
        let is_doubted = known.probes == Probes::Silent && other.probes != Probes::Silent;
        other.carrier != known.carrier
            && (is_doubted || other.same_gateway(known))
            && self.rank(other) < self.rank(known)
    }

    /// Of two connections over different carriers the one with the lower rank takes new streams.
    fn rank(&self, known: &Known) -> u8 {
        match (known.carrier, known.probes) {
            (Carrier::Quic, Probes::Silent) => 5,
            (Carrier::Tcp, Probes::Silent) => 4,
            // One that has just come about may not stand: TCP serves until its probes pass.
            (Carrier::Quic, Probes::Untold) => 3,
            (Carrier::Tcp, _) if !self.carriers.wants(Carrier::Tcp) => 2,
            (Carrier::Quic, Probes::Answered) => 1,
            (Carrier::Tcp, _) => 0,
        }
    }

    fn return_at(&self) -> Option<Instant> {
        self.carriers.fallback.map(|fallback| fallback.since + self.carriers.hold())
    }

    fn quic(&self) -> Quic {
        let mut quic = Quic::default();
        for known in self.known.values().filter(|known| known.carrier == Carrier::Quic && known.takes_streams()) {
            quic.carries |= known.probes != Probes::Silent;
            quic.is_proven |= known.probes == Probes::Answered;
            quic.is_silent |= known.probes == Probes::Silent;
        }
        quic
    }

    /// Connections of a carrier that is not wanted (any more) run dry, once the other carries traffic. Those that the peer
    /// dialled are the peer's to leave.
    fn leave_unwanted(&mut self, now: Instant) {
        for carrier in Carrier::ALL.into_iter().filter(|carrier| !self.carriers.wants(*carrier)).collect::<Vec<_>>() {
            self.abandon_dials(now, |slot| slot.carrier == carrier);
            let serves =
                |known: &Known| known.carrier != carrier && known.is_settled() && known.probes == Probes::Answered;
            if !self.known.values().any(serves) {
                continue;
            }
            let slots = self.slots.iter_mut().filter(|slot| slot.carrier == carrier);
            let left: Vec<_> = slots.filter_map(|slot| slot.current.take()).collect();
            for connection in left {
                self.leave(connection, Leave::Replaced);
            }
        }
    }
}

#[cfg(test)]
mod tests;
