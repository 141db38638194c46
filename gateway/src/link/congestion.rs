//! Congestion control that lets health probes through a stalled path.
//!
//! After a blackout of two seconds the congestion window is full of packets that are lost but not yet declared so: nothing
//! more may be sent until the next probe timeout of QUIC, whose back-off may then lie seconds ahead. Our health probes
//! would wait behind it, and a link that works again would be judged dead. RFC 9002 section 7.5 exempts probes from the
//! window; quinn exempts its own only. So each health probe in doubt, and each answer to one, raises the window by a little,
//! right before it is written: whatever room there is, bulk data takes. The acknowledgement of a packet that was sent since
//! takes the raise back; it also tells quinn what was lost before it, so everything else recovers at the same moment. An
//! acknowledgement of older packets, late from before the blackout, does not: what was sent since is still in flight.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use linkspan_proto::configuration::Congestion;
use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;
use tolerant::{Tolerance, Tolerant};

mod tolerant;

/// The first congestion window, bytes (RFC 9002 section 7.2).
const FIRST_WINDOW: u64 = 14_720;

/// Packets of the largest size that it holds at least: two that find out the MTU, and some to work with.
const ROOM: u64 = 6;

/// The first raise, in packets: what QUIC's own probes (two packets for each of a handful of timeouts) have put into flight
/// beyond the window, and as many again, since bulk data behind the probe takes its share.
const FIRST: u64 = 24;

/// Each further raise, in packets: two that a probe timeout of QUIC may send in between, and two for the probe and what the
/// answer needs. In packets, not in bytes: quinn sends nothing into a room that is smaller than the largest packet, and
/// that is 1,452 bytes on one path and 8,900 on another.
const FURTHER: u64 = 4;

/// The most that silence may add: ten seconds of probes, more than a connection lives without an answer.
const MOST: u64 = FIRST + 50 * FURTHER;

/// Makes [`Nudged`] controllers over [`Tolerant`] ones over Cubic.
#[derive(Debug, Default)]
pub(super) struct NudgedFactory(Arc<CubicConfig>);

impl NudgedFactory {
    /// For a path on which packets of up to `mtu` bytes are tried. quinn sends nothing, not even a close, while there is no
    /// room for one of the largest, and the packets that find out the MTU take room too: with jumbo packets RFC 9002's
    /// 14,720 bytes (section 7.2) would be full at once.
    pub(super) fn new(mtu: u16) -> Self {
        let mut config = CubicConfig::default();
        config.initial_window(FIRST_WINDOW.max(u64::from(mtu) * ROOM));
        Self(Arc::new(config))
    }
}

impl ControllerFactory for NudgedFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let cubic = Arc::clone(&self.0).build(now, current_mtu);
        let tolerance = Arc::default();
        let inner = Box::new(Tolerant::new(cubic, Arc::clone(&tolerance), now, current_mtu));
        Box::new(Nudged { inner, mtu: current_mtu.into(), raise: Arc::default(), tolerance })
    }
}

/// A controller whose window can be raised from outside.
struct Nudged {
    inner: Box<dyn Controller>,
    mtu: u64,
    raise: Arc<Raise>,
    tolerance: Arc<Tolerance>,
}

/// How far the window is raised, and since when.
#[derive(Default)]
struct Raise {
    packets: AtomicU64,
    since: Mutex<Option<Instant>>,
}

/// The controller of a connection over UDP.
fn nudged(connection: &quinn::Connection) -> Option<Box<Nudged>> {
    connection.congestion_state().into_any().downcast().ok()
}

/// What its Link says about a connection.
pub(super) fn configure(connection: &quinn::Connection, congestion: Congestion) {
    if let Some(controller) = nudged(connection) {
        controller.tolerance.set(congestion);
    }
}

/// Raises the window of a connection that does not hear from its peer.
pub(super) fn nudge(connection: &quinn::Connection) {
    let Some(controller) = nudged(connection) else { return };
    // Through tokio like quinn's own clock.
    controller.raise.more(tokio::time::Instant::now().into_std());
}

impl Raise {
    fn more(&self, now: Instant) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let packets = match self.packets.load(Ordering::Relaxed) {
            0 => {
                *since = Some(now);
                FIRST
            }
            packets => (packets + FURTHER).min(MOST),
        };
        self.packets.store(packets, Ordering::Relaxed);
    }

    /// A packet that was sent at this time has arrived.
    fn acknowledged(&self, sent: Instant) {
        // The usual case, for each packet: no lock.
        if self.packets.load(Ordering::Relaxed) == 0 {
            return;
        }
        let since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_none_or(|since| sent >= since) {
            self.packets.store(0, Ordering::Relaxed);
        }
    }
}

impl Controller for Nudged {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.raise.acknowledged(sent);
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window() + self.raise.packets.load(Ordering::Relaxed) * self.mtu
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        // Both are shared on purpose: a clone is how they are reached, and how a path is continued after a rebind.
        Box::new(Self {
            inner: self.inner.clone_box(),
            mtu: self.mtu,
            raise: Arc::clone(&self.raise),
            tolerance: Arc::clone(&self.tolerance),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// No window: for a carrier that controls congestion itself. What a peer may have unread still bounds what is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unlimited;

/// Beyond what is paced by quinn, and far from overflowing.
const NO_LIMIT: u64 = 1 << 40;

impl ControllerFactory for Unlimited {
    fn build(self: Arc<Self>, _now: Instant, _current_mtu: u16) -> Box<dyn Controller> {
        Box::new(*self)
    }
}

impl Controller for Unlimited {
    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: u64) {}

    fn on_mtu_update(&mut self, _: u16) {}

    fn window(&self) -> u64 {
        NO_LIMIT
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        NO_LIMIT
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_raise_has_room_for_packets_of_any_size_and_silence_bounds_it() {
        for mtu in [1200, 1452, 6500, 8900_u16] {
            let mut controller = Arc::new(NudgedFactory::default()).build(Instant::now(), 1200);
            controller.on_mtu_update(mtu);
            let before = controller.window();
            let clone = || controller.clone_box().into_any().downcast::<Nudged>().expect("what the factory makes");
            clone().raise.more(Instant::now());
            assert_eq!(controller.window(), before + FIRST * u64::from(mtu));
            for _ in 0..50 {
                let before = controller.window();
                clone().raise.more(Instant::now());
                assert!(controller.window() - before >= 4 * u64::from(mtu));
            }
            let most = controller.window();
            clone().raise.more(Instant::now());
            assert_eq!(controller.window(), most);
        }
    }

    #[test]
    fn only_what_was_sent_since_takes_a_raise_back() {
        let (raise, now) = (Raise::default(), Instant::now());
        let later = |millis| now + Duration::from_millis(millis);
        raise.more(later(1000));
        raise.more(later(1200));
        let raised = raise.packets.load(Ordering::Relaxed);
        assert_eq!(raised, FIRST + FURTHER);
        // Sent before the blackout; its acknowledgement comes with the peer's first packet after it.
        raise.acknowledged(later(10));
        assert_eq!(raise.packets.load(Ordering::Relaxed), raised);
        raise.acknowledged(later(1001));
        assert_eq!(raise.packets.load(Ordering::Relaxed), 0);
    }
}
