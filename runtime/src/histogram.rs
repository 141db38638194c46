//! A latency distribution that both Prometheus and `stat` read.
//!
//! - In: durations, from any thread.
//! - Out: a Prometheus histogram in milliseconds with the bucket bounds that Linkerd's dashboards know, and percentiles
//!   for our own `stat`, from finer buckets.
//! - Never does: lock or allocate on the recording path: one search in a constant table and two relaxed additions.
//! - Numbers: 113 bounds from 10 us to 100 s, 16 a decade (10 % to 25 % apart), of which 25 are Linkerd's. Percentiles are
//!   interpolated inside a bucket, so they are off by a few per cent at most; 912 bytes a histogram.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Steps of one decade, in tenths: finer where the ratio of neighbours would be larger.
const STEPS: [u64; 16] = [10, 12, 14, 16, 18, 20, 25, 30, 35, 40, 45, 50, 60, 70, 80, 90];

/// Decades of [`STEPS`], the first beginning at 10 us.
const DECADES: usize = 7;

/// Finite bounds: seven decades and their common end at 100 s.
const FINITE: usize = STEPS.len() * DECADES + 1;

/// Buckets: one up to each bound, and one above all.
const BUCKETS: usize = FINITE + 1;

/// Upper bounds (inclusive, as Prometheus's `le`), in microseconds.
const BOUNDS_US: [u64; FINITE] = bounds();

/// Linkerd's bounds of `response_latency_ms`, in milliseconds; each is one of [`BOUNDS_US`].
const LINKERD_MS: [u64; 25] = [
    1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 100, 200, 300, 400, 500, 1_000, 2_000, 3_000, 4_000, 5_000, 10_000, 20_000,
    30_000, 40_000, 50_000,
];

const fn bounds() -> [u64; FINITE] {
    let mut bounds = [0; FINITE];
    let mut unit = 1;
    let mut decade = 0;
    while decade < DECADES {
        let mut step = 0;
        while step < STEPS.len() {
            bounds[decade * STEPS.len() + step] = STEPS[step] * unit;
            step += 1;
        }
        unit *= 10;
        decade += 1;
    }
    bounds[FINITE - 1] = 10 * unit;
    bounds
}

#[derive(Debug)]
struct Shared {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

/// The histogram; clones share their buckets.
#[derive(Clone)]
pub struct LatencyHistogram {
    shared: Arc<Shared>,
}

impl LatencyHistogram {
    /// An empty histogram.
    #[must_use]
    pub fn new() -> Self {
        let shared = Shared { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum_us: AtomicU64::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// Counts one observation.
    pub fn observe(&self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.shared.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.shared.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// What was counted so far. Observations made meanwhile may be in or not.
    #[must_use]
    pub fn snapshot(&self) -> Distribution {
        let counts = std::array::from_fn(|bucket| self.shared.buckets[bucket].load(Ordering::Relaxed));
        Distribution { counts, sum_us: self.shared.sum_us.load(Ordering::Relaxed) }
    }
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for LatencyHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LatencyHistogram").field("count", &self.snapshot().count()).finish_non_exhaustive()
    }
}

impl EncodeMetric for LatencyHistogram {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.snapshot().encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl TypedMetric for LatencyHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

/// The counts of a histogram at one moment, or between two.
#[derive(Clone, PartialEq, Eq)]
pub struct Distribution {
    counts: [u64; BUCKETS],
    sum_us: u64,
}

impl Distribution {
    /// Nothing counted.
    #[must_use]
    pub const fn empty() -> Self {
        Self { counts: [0; BUCKETS], sum_us: 0 }
    }

    /// Adds `other`'s counts to these.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
    }

    /// Adds counts that [`Distribution::sparse`] gave.
    pub fn merge_sparse(&mut self, sparse: &[(u8, u64)]) {
        for (bucket, count) in sparse {
            if let Some(mine) = self.counts.get_mut(usize::from(*bucket)) {
                *mine += count;
            }
        }
    }

    /// What was counted since `earlier`, a snapshot of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = std::array::from_fn(|bucket| self.counts[bucket].saturating_sub(earlier.counts[bucket]));
        Self { counts, sum_us: self.sum_us.wrapping_sub(earlier.sum_us) }
    }

    /// The buckets that are not empty, for keeping many distributions in little memory.
    #[must_use]
    pub fn sparse(&self) -> Vec<(u8, u64)> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.filter_map(|(bucket, count)| Some((u8::try_from(bucket).ok()?, *count))).collect()
    }

    /// How many observations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Mean of all observations; `None` when there are none.
    #[must_use]
    pub fn mean(&self) -> Option<Duration> {
        Some(Duration::from_micros(self.sum_us.checked_div(self.count())?))
    }

    /// The latency that a share of `quantile` (0 to 1) of the observations does not exceed, interpolated evenly inside its
    /// bucket; `None` when there are no observations. Beyond the last bound the answer is that bound.
    #[must_use]
    pub fn percentile(&self, quantile: f64) -> Option<Duration> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let rank = quantile.clamp(0.0, 1.0) * total as f64;
        let mut below = 0.0;
        for (bucket, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let inside = *count as f64;
            if below + inside >= rank {
                let lower = bucket.checked_sub(1).map_or(0, |previous| BOUNDS_US[previous]) as f64;
                let upper = BOUNDS_US.get(bucket).copied().unwrap_or(BOUNDS_US[FINITE - 1]) as f64;
                let part = ((rank - below) / inside).clamp(0.0, 1.0);
                return Some(Duration::from_secs_f64((lower + (upper - lower) * part) / 1e6));
            }
            below += inside;
        }
        Some(Duration::from_micros(BOUNDS_US[FINITE - 1]))
    }

    /// Counts by Linkerd's bounds, in milliseconds, with `+Inf` last; not cumulative.
    fn by_linkerd_bounds(&self) -> Vec<(f64, u64)> {
        let mut from = 0;
        let mut buckets: Vec<(f64, u64)> = LINKERD_MS
            .iter()
            .map(|bound_ms| {
                let to = BOUNDS_US.partition_point(|bound| *bound <= bound_ms * 1_000);
                let count = self.counts[from..to].iter().sum();
                from = to;
                (*bound_ms as f64, count)
            })
            .collect();
        buckets.push((f64::INFINITY, self.counts[from..].iter().sum()));
        buckets
    }

    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let buckets = self.by_linkerd_bounds();
        encoder.encode_histogram::<NoLabelSet>(self.sum_us as f64 / 1e3, self.count(), &buckets, None)
    }
}

impl Default for Distribution {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Distribution")
            .field("count", &self.count())
            .field("p50", &self.percentile(0.5))
            .field("p99", &self.percentile(0.99))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(actual: Option<Duration>, expected_ms: f64) {
        let actual = actual.expect("not empty").as_secs_f64() * 1e3;
        assert!((actual - expected_ms).abs() <= expected_ms * 0.05, "{actual} ms is not {expected_ms} ms +-5 %");
    }

    #[test]
    fn bounds_grow_and_hold_linkerds() {
        assert!(BOUNDS_US.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((BOUNDS_US[0], BOUNDS_US[FINITE - 1]), (10, 100_000_000));
        assert!(LINKERD_MS.iter().all(|ms| BOUNDS_US.contains(&(ms * 1_000))));
        assert!(BUCKETS <= usize::from(u8::MAX), "a bucket's number fits the sparse form");
    }

    #[test]
    fn percentiles_of_an_even_spread() {
        let histogram = LatencyHistogram::new();
        for us in 1..=100_000 {
            histogram.observe(Duration::from_micros(us));
        }
        let all = histogram.snapshot();
        assert_eq!(all.count(), 100_000);
        close(all.percentile(0.5), 50.0);
        close(all.percentile(0.95), 95.0);
        close(all.percentile(0.99), 99.0);
        close(all.mean(), 50.0);
    }

    #[test]
    fn edges() {
        assert_eq!(Distribution::empty().percentile(0.5), None);
        assert_eq!(Distribution::empty().mean(), None);
        let histogram = LatencyHistogram::new();
        histogram.observe(Duration::ZERO);
        assert!(histogram.snapshot().percentile(1.0).expect("one") <= Duration::from_micros(10));
        histogram.observe(Duration::from_secs(1_000_000));
        assert_eq!(histogram.snapshot().percentile(1.0), Some(Duration::from_secs(100)));
    }

    #[test]
    fn bounds_are_inclusive() {
        let histogram = LatencyHistogram::new();
        histogram.observe(Duration::from_millis(1));
        histogram.observe(Duration::from_micros(1_001));
        let buckets = histogram.snapshot().by_linkerd_bounds();
        assert_eq!(&buckets[..2], &[(1.0, 1), (2.0, 1)]);
        assert_eq!(buckets.iter().map(|(_, count)| count).sum::<u64>(), 2);
    }

    #[test]
    fn difference_merge_and_sparse_agree() {
        let histogram = LatencyHistogram::new();
        histogram.observe(Duration::from_millis(3));
        let first = histogram.snapshot();
        histogram.observe(Duration::from_millis(7));
        histogram.observe(Duration::from_millis(7));
        let second = histogram.snapshot().since(&first);
        assert_eq!(second.count(), 2);
        let mut merged = first.clone();
        merged.merge(&second);
        assert_eq!(merged, histogram.snapshot());
        let mut rebuilt = Distribution::empty();
        rebuilt.merge_sparse(&second.sparse());
        assert_eq!(rebuilt.count(), 2);
        assert_eq!(second.sparse().len(), 1);
    }
}
