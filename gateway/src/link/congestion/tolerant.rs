//! Cubic that does not take every loss for congestion.
//!
//! On a long path a loss of one packet in a hundred that has nothing to do with queues (radio, a bad optic, a far provider)
//! holds Cubic at a few Mbit/s: it halves what it has before it could grow. A loss of congestion announces itself: the queue
//! before it was full, so round trips were longer. So a loss counts here when round trips are longer than the path's own by a
//! quarter, or when more is lost than [`TOLERATED`]; what a queue drops at its end always counts, and beside another Cubic both
//! get their share. TCP Veno (Fu and Liew, IEEE JSAC 21(2), 2003) tells the two kinds of loss apart in the same way; the bound
//! for the share of losses is that of BBRv3 (draft-ietf-ccwg-bbr, `BBR.LossThresh`).
//!
//! Below [`LONG`] nothing is tolerated: there Cubic is back within milliseconds, and jitter is as large as a queue. A Link may
//! say otherwise ([`Congestion`]).

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use linkspan_proto::configuration::Congestion;
use quinn::congestion::{Controller, ControllerMetrics};
use quinn_proto::RttEstimator;

/// Round trips from which losses are told apart. Below, hosts and switches are what delays.
const LONG: Duration = Duration::from_millis(5);

/// How much longer than the shortest one a round trip may be with next to nothing queued: 1/4 of it.
const QUEUED: u32 = 4;

/// Losses of a hundred packets that may have another reason than congestion.
const TOLERATED: u64 = 2;

/// Losses within a round that say nothing yet, in packets: with a small window one of them is many of a hundred.
const FEW: u64 = 3;

/// Bytes that arrived and that did not, in one round trip.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    acknowledged: u64,
    lost: u64,
}

/// What losses and round trips say about the path. Pure.
#[derive(Clone, Copy, Debug)]
struct Losses {
    /// Bytes of the largest packet.
    mtu: u64,
    /// The shortest smoothed round trip of this path, and the latest.
    shortest: Option<Duration>,
    latest: Duration,
    /// A round ends with the acknowledgement of a packet that was sent after it began.
    begun: Instant,
    round: Round,
    before: Round,
}

impl Losses {
    fn new(now: Instant, mtu: u16) -> Self {
        Self {
            mtu: mtu.into(),
            shortest: None,
            latest: Duration::ZERO,
            begun: now,
            round: Round::default(),
            before: Round::default(),
        }
    }

    fn acknowledged(&mut self, now: Instant, sent: Instant, bytes: u64, rtt: Duration) {
        self.latest = rtt;
        self.shortest = Some(self.shortest.map_or(rtt, |shortest| shortest.min(rtt)));
        if sent > self.begun {
            self.begun = now;
            self.before = std::mem::take(&mut self.round);
        }
        self.round.acknowledged += bytes;
    }

    /// Takes in what was lost; says whether that tells nothing about queues on a path of at least `long`.
    fn is_stray(&mut self, bytes: u64, long: Duration) -> bool {
        self.round.lost += bytes;
        let Some(shortest) = self.shortest.filter(|shortest| *shortest >= long) else { return false };
        if self.latest > shortest + shortest / QUEUED {
            return false;
        }
        let lost = self.round.lost + self.before.lost;
        let all = lost + self.round.acknowledged + self.before.acknowledged;
        lost <= FEW * self.mtu || lost * 100 <= all * TOLERATED
    }
}

/// From which round trip on losses are told apart, as the Link says; may be changed while the connection stands.
#[derive(Debug, Default)]
pub(super) struct Tolerance(AtomicU8);

impl Tolerance {
    pub(super) fn set(&self, congestion: Congestion) {
        self.0.store(congestion as u8, Ordering::Relaxed);
    }

    fn long(&self) -> Duration {
        const LAN: u8 = Congestion::Lan as u8;
        const WAN: u8 = Congestion::Wan as u8;
        match self.0.load(Ordering::Relaxed) {
            LAN => Duration::MAX,
            WAN => Duration::ZERO,
            _ => LONG,
        }
    }
}

/// The controller.
pub(super) struct Tolerant {
    inner: Box<dyn Controller>,
    losses: Losses,
    tolerance: Arc<Tolerance>,
}

impl Tolerant {
    pub(super) fn new(inner: Box<dyn Controller>, tolerance: Arc<Tolerance>, now: Instant, mtu: u16) -> Self {
        Self { inner, losses: Losses::new(now, mtu), tolerance }
    }
}

impl Controller for Tolerant {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.losses.acknowledged(now, sent, bytes, rtt.get());
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        // Without lost bytes it is a router's word (ECN), not a guess.
        let is_stray = lost_bytes > 0 && self.losses.is_stray(lost_bytes, self.tolerance.long());
        if is_persistent_congestion || !is_stray {
            self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.losses.mtu = new_mtu.into();
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), losses: self.losses, tolerance: Arc::clone(&self.tolerance) })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests;
