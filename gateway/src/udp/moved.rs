//! What moved in one flow, and when: counted with every datagram, told now and then.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use linkspan_runtime::drain::Signal;
use tokio::time::Instant;

use super::{EXCHANGE, IDLE, IDLE_DRAINING, IDLE_ONE_WAY, SPARE_AFTER, TICK};
use crate::outcome::{Loss, Outcome, Record};

/// Counters of one flow. Those who count may be on several threads.
#[derive(Debug)]
pub(super) struct Moved {
    born: Instant,
    /// Microseconds since `born`, of the last datagram either way.
    last: AtomicU64,
    /// Of the first datagram back.
    first_back: AtomicU64,
    answered: AtomicBool,
    forth: Count,
    back: Count,
    lost: [AtomicU64; Loss::ALL.len()],
}

#[derive(Debug, Default)]
struct Count {
    datagrams: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    fn add(&self, bytes: usize) {
        self.datagrams.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Moved {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            born: now,
            last: AtomicU64::new(0),
            first_back: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            forth: Count::default(),
            back: Count::default(),
            lost: [const { AtomicU64::new(0) }; Loss::ALL.len()],
        }
    }

    /// The caller is there, whatever becomes of its datagram.
    pub(super) fn touch(&self, now: Instant) {
        self.last.fetch_max(self.micros(now), Ordering::Relaxed);
    }

    /// A datagram went from the caller towards the service.
    pub(super) fn forth(&self, bytes: usize) {
        self.forth.add(bytes);
    }

    /// A datagram went back to the caller.
    pub(super) fn back(&self, bytes: usize, now: Instant) {
        self.back.add(bytes);
        self.touch(now);
        if !self.answered.swap(true, Ordering::Relaxed) {
            self.first_back.store(self.micros(now), Ordering::Relaxed);
        }
    }

    /// Datagrams were not carried on.
    pub(super) fn lose(&self, why: Loss, count: u64) {
        self.lost[why.slot()].fetch_add(count, Ordering::Relaxed);
    }

    /// When it is over, if nothing moves until then.
    pub(super) fn due(&self, draining: bool) -> Instant {
        let limit = match (draining, self.answered.load(Ordering::Relaxed)) {
            (true, _) => IDLE_DRAINING,
            (false, true) => IDLE,
            (false, false) => IDLE_ONE_WAY,
        };
        self.born + Duration::from_micros(self.last.load(Ordering::Relaxed)) + limit
    }

    /// How long nothing has moved, in a flow that may give way to another: an exchange that has its answer.
    pub(super) fn spare_for(&self, now: Instant) -> Option<Duration> {
        let is_exchange = self.forth.datagrams.load(Ordering::Relaxed) <= EXCHANGE;
        let answered = self.answered.load(Ordering::Relaxed);
        let last = self.born + Duration::from_micros(self.last.load(Ordering::Relaxed));
        let silent = now.saturating_duration_since(last);
        (is_exchange && answered && silent >= SPARE_AFTER).then_some(silent)
    }

    /// How a flow ends that nobody has cut: an answer makes it a good one.
    pub(super) fn outcome(&self) -> Outcome {
        if self.answered.load(Ordering::Relaxed) { Outcome::Ok } else { Outcome::Idle }
    }

    /// Tells the record what moved since it was told last.
    pub(super) fn tell(&self, record: &mut Record) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let told = record.entry().datagrams;
        let (received, sent) = (record.entry().received, record.entry().sent);
        record.datagrams(
            of(&self.forth.datagrams).saturating_sub(told.received),
            of(&self.back.datagrams).saturating_sub(told.sent),
        );
        record.received(usize::try_from(of(&self.forth.bytes).saturating_sub(received)).unwrap_or(usize::MAX));
        record.sent(usize::try_from(of(&self.back.bytes).saturating_sub(sent)).unwrap_or(usize::MAX));
        record.flush();
        for why in Loss::ALL {
            record.lost(why, self.lost[why.slot()].swap(0, Ordering::Relaxed));
        }
        if self.answered.load(Ordering::Relaxed) {
            let first = Duration::from_micros(of(&self.first_back));
            record.entry().first_byte.get_or_insert(first);
        }
    }

    /// Resolves when nothing has moved for long enough; `margin` longer than that, unless the gateway ends. Tells the record
    /// meanwhile.
    pub(super) async fn over(&self, margin: Duration, drain: &Signal, record: &mut Record) {
        loop {
            let draining = drain.is_draining();
            let due = self.due(draining) + if draining { Duration::ZERO } else { margin };
            let now = Instant::now();
            if now >= due {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(due.min(now + TICK)) => {}
                () = drain.draining(), if !draining => {}
            }
            self.tell(record);
        }
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_flow_that_nobody_answers_is_over_sooner() {
        let start = Instant::now();
        let moved = Moved::new(start);
        assert_eq!(moved.due(false), start + IDLE_ONE_WAY);
        moved.touch(start + 10 * SECOND);
        assert_eq!((moved.due(false), moved.outcome()), (start + 10 * SECOND + IDLE_ONE_WAY, Outcome::Idle));
        moved.back(1, start + 11 * SECOND);
        assert_eq!((moved.due(false), moved.outcome()), (start + 11 * SECOND + IDLE, Outcome::Ok));
        assert_eq!(moved.due(true), start + 11 * SECOND + IDLE_DRAINING);
    }

    #[test]
    fn only_an_exchange_with_its_answer_is_spare() {
        let start = Instant::now();
        let moved = Moved::new(start);
        moved.forth(30);
        assert_eq!(moved.spare_for(start + 20 * SECOND), None, "it waits for its answer");
        moved.back(90, start + SECOND);
        assert_eq!(moved.spare_for(start + SECOND), None, "more may come");
        assert_eq!(moved.spare_for(start + 2 * SECOND), Some(SECOND));
        moved.forth(30);
        moved.forth(30);
        assert_eq!(moved.spare_for(start + 50 * SECOND), None, "more than an exchange is in use until it is over");
    }

    #[test]
    fn a_clock_that_reads_slightly_back_changes_nothing() {
        let start = Instant::now();
        let moved = Moved::new(start);
        moved.touch(start + SECOND);
        moved.touch(start);
        assert_eq!(moved.due(false), start + SECOND + IDLE_ONE_WAY);
    }
}
