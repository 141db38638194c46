//! Weights that are exact: a low-discrepancy sequence instead of dice.
//!
//! - In: weights, and which of them may be used now.
//! - Out: an index, such that over any run of `n` picks each index comes up `n * weight / total` times, off by a few.
//! - Never does: pick an index of weight zero, or one that may not be used.
//!
//! The sequence is the multiples of the golden ratio modulo one. Of all sequences `n * a mod 1` it is the one whose gaps
//! stay most even (the three-gap theorem), so 99/1 over 1,000 requests gives 990/10 and not 984/16 as dice would, and
//! it has no short period that clients could beat against. One relaxed addition a pick; no state besides.

use std::sync::atomic::{AtomicU64, Ordering};

/// The fractional part of the golden ratio as a 64-bit fraction: 2^64 / phi, made odd so that the period is 2^64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A point that moves evenly over the circle.
#[derive(Debug)]
pub struct Sequence(AtomicU64);

impl Sequence {
    /// Begins at `phase`. Give every sequence another one, or all mirrors send their first request to the same cluster.
    #[must_use]
    pub const fn starting_at(phase: u64) -> Self {
        Self(AtomicU64::new(phase))
    }

    /// The next point, as a fraction of 2^64.
    pub fn advance(&self) -> u64 {
        self.0.fetch_add(GOLDEN, Ordering::Relaxed)
    }

    /// Where it stands, for a successor that goes on from there.
    pub fn phase(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The index whose share of the total holds `point`.
///
/// `weights` yields the weight of each index now; zero excludes it. `total` is their sum as the caller saw it; if some
/// weight has fallen since (a link that died between two looks), the last usable index takes the remainder.
pub fn choose(point: u64, total: u64, weights: impl IntoIterator<Item = u64>) -> Option<usize> {
    // A multiply-high maps the point onto 0..total without division and without bias worth naming (total << 2^64).
    let mut rest = u64::try_from((u128::from(point) * u128::from(total)) >> 64).unwrap_or(u64::MAX);
    let mut last = None;
    for (index, weight) in weights.into_iter().enumerate() {
        if weight == 0 {
            continue;
        }
        if rest < weight {
            return Some(index);
        }
        rest -= weight;
        last = Some(index);
    }
    last
}

#[cfg(test)]
mod tests;
