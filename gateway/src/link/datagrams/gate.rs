//! Lets datagrams through as long as streams are not kept waiting by them. No I/O, no clock.
//!
//! ```text
//! Free --something is queued--> Busy --for BUSY--> Emptying --nothing is queued--> Resting --REST--> Free
//!   ^------nothing is queued-----'
//! ```
//!
//! QUIC puts datagrams into its packets before the data of streams. Clients that send more than the path takes would keep all
//! streams from being sent, the probes of the link among them, for as long as they like. So a queue that did not become
//! empty for [`BUSY`] is let run dry, and the streams have the path to themselves for [`REST`].
//!
//! - In: how much room the queue has, the time, and what the path takes.
//! - Out: whether one more datagram may be queued.
//! - Numbers: [`BUSY`], [`REST`], [`QUEUED_FOR`], [`QUEUED_LEAST`].

use std::time::Duration;

use tokio::time::Instant;

use super::SEND_BUFFER;

/// How long the queue may be in use without a break. A burst that the path takes is over long before.
pub(super) const BUSY: Duration = Duration::from_millis(25);

/// What the streams get then: at least a tenth of the time, together with what [`QUEUED_FOR`] says.
pub(super) const REST: Duration = Duration::from_millis(10);

/// A queue is no longer than the path takes in this time: nobody wants a datagram that is later.
pub(super) const QUEUED_FOR: Duration = Duration::from_millis(40);

/// And no shorter than this: a burst of some forty full packets goes on any path.
pub(super) const QUEUED_LEAST: usize = 64 * 1024;

/// How often it is asked what the path takes.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// The least room of an empty queue. It keeps 32 bytes of it for itself, and a queued datagram takes as many and its length.
const EMPTY: usize = SEND_BUFFER - 63;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Busy {
        since: Instant,
    },
    Emptying,
    Resting {
        until: Instant,
    },
}

/// The gate of one connection.
#[derive(Debug)]
pub(super) struct Gate {
    state: State,
    /// Bytes that may be queued.
    most: usize,
    asked: Option<Instant>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { state: State::Free, most: SEND_BUFFER, asked: None }
    }
}

impl Gate {
    /// Whether `length` more bytes may be queued, where `room` of the buffer is free. `pace` gives the bytes a second that the
    /// path takes.
    pub(super) fn admit(&mut self, room: usize, length: usize, now: Instant, pace: impl FnOnce() -> u64) -> bool {
        let is_empty = room >= EMPTY;
        self.state = match self.state {
            State::Free | State::Busy { .. } if is_empty => State::Free,
            State::Free => State::Busy { since: now },
            State::Busy { since } if now.saturating_duration_since(since) >= BUSY => State::Emptying,
            State::Emptying if is_empty => State::Resting { until: now + REST },
            State::Resting { until } if now >= until => State::Free,
            same => same,
        };
        if matches!(self.state, State::Emptying | State::Resting { .. }) {
            return false;
        }
        if is_empty {
            return length <= room;
        }
        if self.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= ASK_EVERY) {
            self.asked = Some(now);
            let most = u128::from(pace()) * QUEUED_FOR.as_micros() / 1_000_000;
            self.most = usize::try_from(most).unwrap_or(usize::MAX).clamp(QUEUED_LEAST, SEND_BUFFER);
        }
        // Each queued datagram costs the queue some bytes of its own.
        length + size_of::<[usize; 4]>() <= room && SEND_BUFFER - room + length <= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: u64 = 1_000_000_000;

    fn fast() -> u64 {
        FAST
    }

    #[test]
    fn a_queue_that_empties_again_and_again_is_never_stopped() {
        let start = Instant::now();
        let mut gate = Gate::default();
        for tick in 0..10_000 {
            let now = start + Duration::from_millis(tick);
            assert!(gate.admit(SEND_BUFFER - 32, 1400, now, fast));
            assert!((1..32).all(|queued| gate.admit(SEND_BUFFER - 32 - queued * 1432, 1400, now, fast)));
        }
    }

    #[test]
    fn clients_that_send_more_than_the_path_takes_leave_time_to_the_streams() {
        let start = Instant::now();
        let mut gate = Gate::default();
        // A path that takes 1,000 bytes a millisecond, and 5,000 that come in each: virtual time in tenths of one.
        let (mut queued, mut free) = (0_usize, 0);
        for tick in 0..100_000_u64 {
            let now = start + Duration::from_micros(tick * 100);
            if gate.admit(SEND_BUFFER - 32 - queued, 500, now, || 1_000_000) {
                queued += 500;
            }
            free += u32::from(queued == 0);
            queued = queued.saturating_sub(100);
            assert!(queued <= QUEUED_LEAST);
        }
        assert!(free > 8_000, "the streams had {free} of 100,000");
    }

    #[test]
    fn a_slow_path_has_a_short_queue() {
        let start = Instant::now();
        let mut gate = Gate::default();
        assert!(gate.admit(SEND_BUFFER - 32, 1400, start, || 0));
        assert!(gate.admit(SEND_BUFFER - QUEUED_LEAST + 1400, 1400, start, || 0));
        assert!(!gate.admit(SEND_BUFFER - QUEUED_LEAST + 1399, 1400, start, || 0));
        let later = start + ASK_EVERY;
        assert!(gate.admit(SEND_BUFFER / 2, 1400, later, fast));
        assert!(!gate.admit(1400, 1400, later, fast), "no room but for the bytes alone");
    }

    #[test]
    fn a_pause_of_the_clients_is_no_long_use() {
        let start = Instant::now();
        let mut gate = Gate::default();
        assert!(gate.admit(SEND_BUFFER - 32, 1400, start, fast));
        assert!(gate.admit(SEND_BUFFER - 2000, 1400, start, fast));
        let later = start + Duration::from_secs(10);
        assert!(gate.admit(SEND_BUFFER - 32, 1400, later, fast));
        assert!(gate.admit(SEND_BUFFER - 2000, 1400, later, fast));
    }
}
