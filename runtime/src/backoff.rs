//! Delays between attempts: exponential, jittered, capped.
//!
//! - In: a range of delays, and whether the last attempt failed ([`Backoff::next`]) or worked ([`Backoff::reset`]).
//! - Out: the next delay, always inside the range.
//! - Never does: sleep or read a clock; the caller adds the delay to its own `Instant`.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A sequence of growing delays.
///
/// The nominal delay doubles from twice the smallest up to the largest; the delay is drawn evenly from its upper half,
/// so that many clients of one broken peer do not come back in step, and none comes back faster than the smallest.
#[derive(Clone, Debug)]
pub struct Backoff {
    smallest: Duration,
    largest: Duration,
    failures: u32,
    random: SmallRng,
}

impl Backoff {
    /// Delays between `smallest` and `largest`, seeded by the operating system.
    #[must_use]
    pub fn new(smallest: Duration, largest: Duration) -> Self {
        Self::with_random(smallest, largest, SmallRng::from_os_rng())
    }

    /// The same delays for the same seed: for tests and simulations.
    #[must_use]
    pub fn seeded(smallest: Duration, largest: Duration, seed: u64) -> Self {
        Self::with_random(smallest, largest, SmallRng::seed_from_u64(seed))
    }

    fn with_random(smallest: Duration, largest: Duration, random: SmallRng) -> Self {
        Self { smallest, largest: largest.max(smallest), failures: 0, random }
    }

    /// The delay before the next attempt.
    #[expect(clippy::should_implement_trait, reason = "an endless sequence; nobody iterates over it")]
    pub fn next(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let nominal = self.smallest.saturating_mul(factor).min(self.largest);
        let floor = (nominal / 2).max(self.smallest);
        floor + nominal.saturating_sub(floor).mul_f64(self.random.random())
    }

    /// The last attempt worked: start from the smallest delay again.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// How many delays were handed out since the last reset.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn stays_in_range_and_grows() {
        let mut backoff = Backoff::seeded(100 * MS, 2000 * MS, 7);
        let delays: Vec<_> = (0..200).map(|_| backoff.next()).collect();
        assert!(delays.iter().all(|d| (100 * MS..=2000 * MS).contains(d)), "{delays:?}");
        assert!(delays[0] <= 200 * MS);
        assert!(delays[10..].iter().all(|d| *d >= 1000 * MS));
        assert!(delays[10..].windows(2).any(|pair| pair[0] != pair[1]), "jitter at the cap too");
    }

    #[test]
    fn reset_starts_over() {
        let mut backoff = Backoff::seeded(100 * MS, 2000 * MS, 7);
        for _ in 0..10 {
            backoff.next();
        }
        backoff.reset();
        assert_eq!(backoff.failures(), 0);
        assert!(backoff.next() <= 200 * MS);
    }

    #[test]
    fn same_seed_same_delays() {
        let mut one = Backoff::seeded(MS, 50 * MS, 3);
        let mut two = one.clone();
        assert!((0..20).all(|_| one.next() == two.next()));
    }

    #[test]
    fn survives_an_inverted_range() {
        let mut backoff = Backoff::seeded(10 * MS, MS, 1);
        assert!((0..40).all(|_| backoff.next() == 10 * MS));
    }
}
