//! What is known of one endpoint's load: peak-sensitive latency average times requests in flight.
//!
//! - In: begins, answers with their latency, failures; always with the `Instant` at which they happened.
//! - Out: [`Load::cost`], comparable between endpoints.
//! - Never does: read a clock, lock.
//! - Numbers: see the constants.
//!
//! It lives in the route table, not in the backend stage, because it must outlive the snapshots that name the endpoint:
//! a change of another endpoint must not make this one look new.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How fast an old latency is forgotten: after this time its weight is 1/e. Long enough to span a garbage collection
/// pause of the backend, short enough that a recovered endpoint has its share again within half a minute.
const DECAY: Duration = Duration::from_secs(10);

/// What an endpoint without history costs. About the latency of a healthy endpoint of the same cluster: a new endpoint is
/// neither flooded (as zero would do) nor starved.
const INITIAL: Duration = Duration::from_millis(5);

/// What every call costs at least: so that the queue counts even where latencies are next to nothing.
const LEAST: Duration = Duration::from_micros(10);

/// What a failed connect or a reset before the first byte counts as. Must be far above every healthy latency; equal to
/// the connect budget of the backend stage, which is what a black-holed endpoint costs for real.
pub const FAILURE: Duration = Duration::from_secs(1);

/// Load of one endpoint, shared by all workers.
#[derive(Debug)]
pub struct Load {
    /// When the clock of `average` began.
    base: Instant,
    /// Peak EWMA: microseconds as `f32` in the high half, milliseconds since `base` of the last sample in the low half.
    /// One word, so that both change together.
    average: AtomicU64,
    in_flight: AtomicU32,
}

impl Load {
    /// An endpoint nobody has called yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { base: now, average: AtomicU64::new(pack(micros(INITIAL), 0)), in_flight: AtomicU32::new(0) }
    }

    /// Something was sent to it.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// That something is over.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// It answered after `latency`. A peak counts at once, an improvement gradually.
    pub fn observe(&self, latency: Duration, now: Instant) {
        let stamp = self.stamp(now);
        // The closure never returns None, so this never fails; a lost race is retried with the fresher value.
        _ = self.average.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let (average, last) = unpack(packed);
            let weight = decay(stamp.wrapping_sub(last));
            let sample = micros(latency);
            let next = if sample > average { sample } else { sample + (average - sample) * weight };
            Some(pack(next, stamp))
        });
    }

    /// It refused, timed out or reset before the first byte.
    pub fn fail(&self, now: Instant) {
        self.observe(FAILURE, now);
    }

    /// What one more request costs here, in microseconds: expected latency times the queue in front of it.
    #[must_use]
    pub fn cost(&self, now: Instant) -> f32 {
        let (average, last) = unpack(self.average.load(Ordering::Relaxed));
        // Time without a sample makes an endpoint cheaper: one that was slow or failed is tried again some day, and of two
        // equal ones the one that has rested takes the next call.
        let expected = (average * decay(self.stamp(now).wrapping_sub(last))).max(micros(LEAST));
        #[expect(clippy::cast_precision_loss, reason = "in-flight counts are far below 2^24")]
        let queue = self.in_flight() as f32 + 1.0;
        expected * queue
    }

    /// Requests or connections in flight now.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Milliseconds since `base`, modulo 2^32 (49 days); differences are taken modulo as well.
    #[expect(clippy::cast_possible_truncation, reason = "modulo on purpose")]
    fn stamp(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.base).as_millis() as u32
    }
}

fn micros(duration: Duration) -> f32 {
    duration.as_secs_f32() * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds for an exponential; three digits are plenty")]
fn decay(elapsed_millis: u32) -> f32 {
    // A stamp slightly in the future (two workers, two clocks reads) wraps to a huge value: treat it as no time at all.
    if elapsed_millis > u32::MAX / 2 {
        return 1.0;
    }
    (-(elapsed_millis as f32 / 1e3) / DECAY.as_secs_f32()).exp()
}

fn pack(average: f32, stamp: u32) -> u64 {
    (u64::from(average.to_bits()) << 32) | u64::from(stamp)
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves are split on purpose")]
fn unpack(packed: u64) -> (f32, u32) {
    (f32::from_bits((packed >> 32) as u32), packed as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_count_at_once_and_improvements_gradually() {
        let start = Instant::now();
        let load = Load::new(start);
        let fresh = load.cost(start);
        load.observe(Duration::from_millis(500), start);
        assert!(load.cost(start) > 50.0 * fresh);
        load.observe(Duration::from_millis(1), start + Duration::from_secs(1));
        assert!(load.cost(start + Duration::from_secs(1)) > 40.0 * fresh, "one good answer does not forgive");
        for second in 2..60 {
            load.observe(Duration::from_millis(1), start + Duration::from_secs(second));
        }
        assert!(load.cost(start + Duration::from_secs(60)) < fresh);
    }

    #[test]
    fn a_failure_is_forgotten_with_time() {
        let start = Instant::now();
        let load = Load::new(start);
        let fresh = load.cost(start);
        load.fail(start);
        assert!(load.cost(start) > 100.0 * fresh);
        assert!(load.cost(start + Duration::from_secs(120)) < 1.1 * fresh);
    }

    #[test]
    fn the_queue_counts() {
        let start = Instant::now();
        let load = Load::new(start);
        let idle = load.cost(start);
        load.begin();
        load.begin();
        assert!((load.cost(start) / idle - 3.0).abs() < 0.01);
        load.end();
        load.end();
        assert_eq!(load.in_flight(), 0);
    }

    #[test]
    fn a_clock_that_reads_slightly_back_changes_nothing() {
        let start = Instant::now();
        let load = Load::new(start);
        load.observe(Duration::from_millis(100), start + Duration::from_secs(5));
        let then = load.cost(start + Duration::from_secs(5));
        assert!((load.cost(start + Duration::from_millis(4_999)) - then).abs() < 1.0);
    }
}
