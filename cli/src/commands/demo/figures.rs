//! What a run of answers says: pure functions over answers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::load::Answer;

/// 99.9 % of a normal distribution lie within this many standard deviations.
const BOUND_SIGMAS: f64 = 3.290_5;

/// Who answered how often.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Counts {
    /// All requests.
    pub(super) requests: usize,
    /// Answers by cluster.
    pub(super) by_cluster: BTreeMap<String, usize>,
    /// Requests without a good answer.
    pub(super) failed: usize,
}

impl Counts {
    /// Counts.
    pub(super) fn of(answers: &[Answer]) -> Self {
        let mut counts = Self { requests: answers.len(), ..Self::default() };
        for answer in answers {
            match &answer.from {
                Ok(cluster) => *counts.by_cluster.entry(cluster.clone()).or_default() += 1,
                Err(_) => counts.failed += 1,
            }
        }
        counts
    }

    /// Answers of one cluster.
    pub(super) fn of_cluster(&self, cluster: &str) -> usize {
        self.by_cluster.get(cluster).copied().unwrap_or(0)
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (cluster, count) in &self.by_cluster {
            write!(formatter, "{cluster} {count}, ")?;
        }
        write!(formatter, "errors {}", self.failed)
    }
}

/// Whether `hits` of `tries` fit a share of `percent`, within the 99.9 % bound of independent draws.
pub(super) fn fits(hits: usize, tries: usize, percent: u32) -> bool {
    let (share, bound) = (f64::from(percent) / 100.0, bound(tries, percent));
    (float(hits) - share * float(tries)).abs() <= bound
}

/// How far from the exact share a count of `tries` draws may lie.
pub(super) fn bound(tries: usize, percent: u32) -> f64 {
    let share = f64::from(percent) / 100.0;
    BOUND_SIGMAS * (float(tries) * share * (1.0 - share)).sqrt() + 0.5
}

/// Where a row of draws changes from share `before` to share `after` (both strictly between 0 and 1): the number of
/// draws that still belong to `before`, by maximum likelihood.
pub(super) fn change_point(draws: impl IntoIterator<Item = bool>, before: f64, after: f64) -> usize {
    // Each draw shifts the balance towards the share under which it is likelier; the change lies at the highest point.
    let (hit, miss) = ((before / after).ln(), ((1.0 - before) / (1.0 - after)).ln());
    let (mut balance, mut best, mut at) = (0.0, 0.0, 0);
    for (index, draw) in draws.into_iter().enumerate() {
        balance += if draw { hit } else { miss };
        if balance > best {
            (best, at) = (balance, index + 1);
        }
    }
    at
}

/// The time after `since` at which the last answer that is not good was due.
pub(super) fn last_failure(answers: &[Answer], since: Instant) -> Option<Duration> {
    answers.iter().filter(|answer| answer.from.is_err()).map(|answer| answer.due.saturating_duration_since(since)).max()
}

/// Failures by their words, most frequent first.
pub(super) fn reasons(answers: &[Answer]) -> Vec<(String, usize)> {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for why in answers.iter().filter_map(|answer| answer.from.as_ref().err()) {
        *reasons.entry(why).or_default() += 1;
    }
    let mut reasons: Vec<(String, usize)> = reasons.into_iter().map(|(why, count)| (why.to_owned(), count)).collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    reasons
}

/// The value below which `share` of the times lie. Sorts them.
pub(super) fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    // A count of requests: far below 2^52.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and `last`")]
    let index = (share * float(last)).round() as usize;
    times.get(index.min(last)).copied().unwrap_or_default()
}

/// Counts here are below 2^52.
#[expect(clippy::cast_precision_loss, reason = "counts of requests of one demo")]
fn float(count: usize) -> f64 {
    count as f64
}

/// A time in the unit that reads best.
pub(super) fn show(time: Duration) -> String {
    if time < Duration::from_millis(10) {
        format!("{:.2} ms", time.as_secs_f64() * 1e3)
    } else if time < Duration::from_secs(1) {
        format!("{:.0} ms", time.as_secs_f64() * 1e3)
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(from: &[&str]) -> Vec<Answer> {
        let start = Instant::now();
        from.iter()
            .enumerate()
            .map(|(index, from)| Answer {
                due: start + Duration::from_millis(5) * u32::try_from(index).unwrap(),
                took: Duration::from_millis(1),
                from: if from.starts_with('5') { Err((*from).to_owned()) } else { Ok((*from).to_owned()) },
            })
            .collect()
    }

    #[test]
    fn counts_and_reasons() {
        let all = answers(&["east", "west", "503 a", "east", "503 b", "503 a"]);
        let counts = Counts::of(&all);
        assert_eq!((counts.requests, counts.failed), (6, 3));
        assert_eq!((counts.of_cluster("east"), counts.of_cluster("west"), counts.of_cluster("north")), (2, 1, 0));
        assert_eq!(counts.to_string(), "east 2, west 1, errors 3");
        assert_eq!(reasons(&all), [("503 a".to_owned(), 2), ("503 b".to_owned(), 1)]);
        assert_eq!(last_failure(&all, all[0].due), Some(Duration::from_millis(25)));
        assert_eq!(last_failure(&all[..2], all[0].due), None);
    }

    #[test]
    fn shares_within_and_outside_the_bound() {
        assert!(fits(200, 2000, 10) && fits(240, 2000, 10) && !fits(250, 2000, 10) && !fits(150, 2000, 10));
        assert!(fits(0, 1000, 0) && !fits(1, 1000, 0));
        assert!(fits(1000, 1000, 100) && !fits(999, 1000, 100));
    }

    #[test]
    fn the_change_is_found_where_it_is() {
        let draws = |before: usize, after: usize| {
            (0..before).map(|i| i % 10 == 3).chain((0..after).map(|i| i % 2 == 0)).collect::<Vec<bool>>()
        };
        for (before, after) in [(100, 300), (300, 100), (0, 200), (200, 0)] {
            let at = change_point(draws(before, after), 0.1, 0.5);
            assert!(at.abs_diff(before) <= 8, "{at} for {before}");
        }
        assert_eq!(change_point(std::iter::empty(), 0.1, 0.5), 0);
    }

    #[test]
    fn percentiles_and_units() {
        let mut times: Vec<Duration> = (1..=101).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut times, 0.5), Duration::from_millis(51));
        assert_eq!(percentile(&mut times, 1.0), Duration::from_millis(101));
        assert_eq!(percentile(&mut [], 0.5), Duration::ZERO);
        assert_eq!(show(Duration::from_micros(1234)), "1.23 ms");
        assert_eq!(show(Duration::from_millis(123)), "123 ms");
        assert_eq!(show(Duration::from_millis(2345)), "2.3 s");
    }
}
