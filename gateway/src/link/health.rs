//! Whether a connection carries traffic, without I/O and without a clock: results of probes and an [`Instant`] go in,
//! probes to send and a verdict come out.
//!
//! ```text
//! silent death:   probe every 1 s ... | first one unanswered | probes every 200 ms ... | down
//!                 t = 0 .. 1 s          + 1 s (timeout)        until 2.5 s after it was sent
//! ```
//!
//! - In: answers and failures of probes, which travel as streams of kind `Probe` over the data path itself.
//! - Out: [`Verdict::Down`] between 2.5 and 3.7 s after the path died: a blackout of 2 s is survived (F-05), a dead peer is
//!   withdrawn within 4 s (F-02, F-04). [`Verdict::Up`] again after two answers in a row.
//! - A probe that was late before the path died counts against it only from when nothing was carried any more. A peer that
//!   acknowledges packets and answers no probe is down after [`DOWN_AT_LAST`] (F-48).
//! - Never does: change its verdict for want of news: a connection without an answer yet keeps the verdict it was given.
//! - Numbers: [`PROBE_EVERY`], [`PROBE_TIMEOUT`], [`PROBE_FAST`], [`DOWN_MISSES`], [`DOWN_AFTER`], [`DOWN_AT_LAST`],
//!   [`LOST_AFTER`], [`UP_ANSWERS`].

use std::time::{Duration, Instant};

/// Between probes while all is well.
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(1);

/// How long a probe may take. Far above any sane round trip, so a miss means trouble.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Between probes while in doubt: after a miss, and while down. Short, so that the end of a blackout is seen before the
/// verdict falls.
pub(super) const PROBE_FAST: Duration = Duration::from_millis(200);

/// Unanswered probes in a row before the verdict falls.
pub(super) const DOWN_MISSES: u32 = 3;

/// And how long ago the first of them must have been sent, and the last packet been acknowledged. Above 2 s plus a round
/// trip, below 4 s minus [`PROBE_EVERY`].
pub(super) const DOWN_AFTER: Duration = Duration::from_millis(2500);

/// How long ago the first of them must have been sent even though packets were acknowledged since. Above [`DOWN_AFTER`] by
/// what a probe may be late on a full path whose packets get lost.
pub(super) const DOWN_AT_LAST: Duration = Duration::from_millis(3000);

/// A connection that is down and has carried nothing for so long is given up. Well above the 5 s after which QUIC gives it up
/// itself; but QUIC waits for three of its own timeouts at least, and a machine that slept counts the sleep as a round trip:
/// then those are minutes or hours, for which the streams on it would hang (F-38).
pub(super) const LOST_AFTER: Duration = Duration::from_secs(10);

/// Answers in a row before the verdict rises.
pub(super) const UP_ANSWERS: u32 = 2;

/// What the probes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// New streams go here.
    Up,
    /// They do not.
    Down,
}

/// What the probes of a connection say right now, long before there is a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Probes {
    /// Too few were answered to say anything.
    #[default]
    Untold,
    /// [`UP_ANSWERS`] in a row at least.
    Answered,
    /// The last one went unanswered.
    Silent,
}

/// Names a probe: when it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) sent: Instant,
}

/// A probe was not answered within [`PROBE_TIMEOUT`], or the peer refused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Missed {
    /// The peer acknowledged packets in that time.
    pub(super) carried: bool,
}

/// The health of one connection.
#[derive(Debug)]
pub(super) struct Health {
    verdict: Verdict,
    next: Instant,
    /// Unanswered in a row, and when the first of them was sent.
    misses: u32,
    missing_since: Option<Instant>,
    /// When a missed probe said last that the path carried something.
    carried: Option<Instant>,
    /// When the newest answered probe was sent: older ones that fail now say nothing.
    answered: Option<Instant>,
    answers: u32,
}

impl Health {
    /// A new connection: it inherits the link's verdict until it proves its own, and is probed at once.
    pub(super) fn new(verdict: Verdict, now: Instant) -> Self {
        Self { verdict, next: now, misses: 0, missing_since: None, carried: None, answered: None, answers: 0 }
    }

    /// A probe to send, if one is due.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Probe> {
        if now < self.next {
            return None;
        }
        self.next = now + self.pace();
        Some(Probe { sent: now })
    }

    /// When [`Self::poll`] has something to give.
    pub(super) fn deadline(&self) -> Instant {
        self.next
    }

    /// The probe was answered.
    pub(super) fn answer(&mut self, probe: Probe, now: Instant) {
        self.misses = 0;
        self.missing_since = None;
        self.answered = self.answered.max(Some(probe.sent));
        self.answers += 1;
        if self.answers >= UP_ANSWERS {
            self.verdict = Verdict::Up;
        }
        // In doubt the next answer is wanted soon; otherwise no faster than usual.
        self.next = self.next.max(now).min(now + self.pace());
    }

    /// The probe failed.
    pub(super) fn miss(&mut self, probe: Probe, missed: Missed, now: Instant) {
        if self.answered.is_some_and(|answered| answered >= probe.sent) {
            return;
        }
        self.answers = 0;
        self.misses += 1;
        if missed.carried {
            self.carried = Some(now);
        }
        let since = *self.missing_since.get_or_insert(probe.sent);
        let is_over = self.silent_for(now) >= DOWN_AFTER || now.duration_since(since) >= DOWN_AT_LAST;
        if self.misses >= DOWN_MISSES && is_over {
            self.verdict = Verdict::Down;
        }
        self.next = self.next.min(now + PROBE_FAST);
    }

    /// What the probes say so far.
    pub(super) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// What they say right now.
    pub(super) fn probes(&self) -> Probes {
        match (self.misses, self.answers) {
            (0, answers) if answers >= UP_ANSWERS => Probes::Answered,
            (0, _) => Probes::Untold,
            _ => Probes::Silent,
        }
    }

    /// Whether a probe went unanswered and none was answered since: the path may be stalled.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.misses > 0
    }

    /// Whether there is nothing left to hope for: see [`LOST_AFTER`].
    pub(super) fn is_lost(&self, now: Instant) -> bool {
        self.verdict == Verdict::Down && self.silent_for(now) >= LOST_AFTER
    }

    /// How long probes have gone unanswered and nothing was carried.
    fn silent_for(&self, now: Instant) -> Duration {
        let silent_since = self.missing_since.map(|since| self.carried.map_or(since, |carried| carried.max(since)));
        silent_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    fn pace(&self) -> Duration {
        if self.misses > 0 || self.verdict == Verdict::Down { PROBE_FAST } else { PROBE_EVERY }
    }
}

/// The health of a link: up while any connection is; down when none has been for [`DOWN_AFTER`]. So a peer that restarts
/// within that time was never down.
#[derive(Debug)]
pub(super) struct LinkHealth {
    verdict: Verdict,
    lacking_since: Option<Instant>,
}

impl LinkHealth {
    /// A link that was never up.
    pub(super) fn new() -> Self {
        Self { verdict: Verdict::Down, lacking_since: None }
    }

    /// Takes in whether any connection is up and whether one was judged down. Says whether the verdict changed.
    pub(super) fn update(&mut self, any_up: bool, all_down: bool, now: Instant) -> bool {
        let before = self.verdict;
        if any_up {
            self.lacking_since = None;
            self.verdict = Verdict::Up;
        } else {
            let since = *self.lacking_since.get_or_insert(now);
            // Connections that were judged have had their time of doubt already.
            if all_down || now.duration_since(since) >= DOWN_AFTER {
                self.verdict = Verdict::Down;
            }
        }
        before != self.verdict
    }

    /// When the verdict falls if nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.verdict {
            Verdict::Up => self.lacking_since.map(|since| since + DOWN_AFTER),
            Verdict::Down => None,
        }
    }

    /// The verdict.
    pub(super) fn verdict(&self) -> Verdict {
        self.verdict
    }
}

#[cfg(test)]
mod tests;
