//! What lies between two hosts, in one direction: how long packets take, and which are lost, come twice or late.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

/// The conditions of one direction. Probabilities are those of one packet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conditions {
    /// One way, at least.
    pub(crate) delay: Duration,
    /// Up to so much more, as in a queue of somebody else's traffic: packets stay in order.
    pub(crate) jitter: Duration,
    /// Lost one by one.
    pub(crate) loss: f64,
    /// A burst of losses begins.
    pub(crate) burst: f64,
    /// It ends. The mean burst has 1 / `calm` packets.
    pub(crate) calm: f64,
    /// Delivered twice.
    pub(crate) duplicate: f64,
    /// Overtaken by those behind it, and by how much at most.
    pub(crate) reorder: f64,
    pub(crate) late: Duration,
    /// Larger packets vanish without a word.
    pub(crate) largest: usize,
}

impl Conditions {
    /// Nothing but a delay.
    pub(crate) const fn calm(delay: Duration) -> Self {
        Self {
            delay,
            jitter: Duration::ZERO,
            loss: 0.0,
            burst: 0.0,
            calm: 1.0,
            duplicate: 0.0,
            reorder: 0.0,
            late: Duration::ZERO,
            largest: usize::MAX,
        }
    }
}

/// When one copy of a packet comes to the receiver's queue, and how much later than its place there it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) arrives: Instant,
    pub(super) late: Duration,
}

/// One direction. Has a generator of its own, so that what happens to it does not depend on other directions.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) conditions: Conditions,
    random: SmallRng,
    in_burst: bool,
    /// When the last packet arrives that none overtakes.
    last: Option<Instant>,
}

impl Path {
    pub(super) fn new(conditions: Conditions, seed: u64) -> Self {
        Self { conditions, random: SmallRng::seed_from_u64(seed), in_burst: false, last: None }
    }

    /// What becomes of a packet: no copy, one or two.
    pub(super) fn carry(&mut self, size: usize, now: Instant) -> [Option<Delivery>; 2] {
        let Conditions { delay, jitter, loss, burst, calm, duplicate, reorder, late, largest } = self.conditions;
        // Drawn for each packet whatever becomes of it, so that a lost one does not change the fate of the next.
        let [gilbert, lost, twice, overtaken, wait, lag] = std::array::from_fn(|_| self.random.random::<f64>());
        self.in_burst = if self.in_burst { gilbert >= calm } else { gilbert < burst };
        if size > largest || self.in_burst || lost < loss {
            return [None, None];
        }
        let arrives = now + delay + jitter.mul_f64(wait);
        let arrives = self.last.map_or(arrives, |last| arrives.max(last));
        self.last = Some(arrives);
        let late = if overtaken < reorder { late.mul_f64(lag) } else { Duration::ZERO };
        let copy = Some(Delivery { arrives, late });
        [copy, copy.filter(|_| twice < duplicate)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn fates(conditions: Conditions, seed: u64) -> Vec<[Option<Delivery>; 2]> {
        let (mut path, now) = (Path::new(conditions, seed), Instant::now());
        (0..10_000).map(|packet| path.carry(1200, now + packet * MS)).collect()
    }

    fn share(of: impl Iterator<Item = bool>) -> f64 {
        let all: Vec<bool> = of.collect();
        all.iter().filter(|one| **one).count() as f64 / all.len() as f64
    }

    #[tokio::test(start_paused = true)]
    async fn each_condition_does_what_it_says() {
        let calm = Conditions::calm(5 * MS);
        let lossy = fates(Conditions { loss: 0.1, ..calm.clone() }, 1);
        assert!((0.08..0.12).contains(&share(lossy.iter().map(|fate| fate[0].is_none()))));
        let bursts = fates(Conditions { burst: 0.01, calm: 0.2, ..calm.clone() }, 1);
        assert!((0.03..0.07).contains(&share(bursts.iter().map(|fate| fate[0].is_none()))));
        let in_a_row = bursts.windows(2).filter(|pair| pair[0][0].is_none()).map(|pair| pair[1][0].is_none());
        assert!((0.7..0.9).contains(&share(in_a_row)), "losses come together");
        let twice = fates(Conditions { duplicate: 0.1, ..calm.clone() }, 1);
        assert!((0.08..0.12).contains(&share(twice.iter().map(|fate| fate[1].is_some()))));
        let late = fates(Conditions { reorder: 0.25, late: 50 * MS, ..calm.clone() }, 1);
        let lag = late.iter().map(|fate| fate[0].is_some_and(|copy| copy.late > MS));
        assert!((0.2..0.3).contains(&share(lag)));
        let jitter = fates(Conditions { jitter: 100 * MS, ..calm.clone() }, 1);
        let arrivals: Vec<_> = jitter.iter().filter_map(|fate| fate[0]).map(|copy| copy.arrives).collect();
        assert!(arrivals.is_sorted(), "jitter alone reorders nothing");
        assert!(fates(Conditions { largest: 1199, ..calm }, 1).iter().all(|fate| fate[0].is_none()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_gives_the_same_fates() {
        let rough = Conditions {
            loss: 0.1,
            duplicate: 0.1,
            reorder: 0.1,
            late: 9 * MS,
            jitter: 9 * MS,
            ..Conditions::calm(MS)
        };
        assert_eq!(fates(rough.clone(), 7), fates(rough.clone(), 7));
        assert_ne!(fates(rough.clone(), 7), fates(rough, 8));
    }
}
