//! One direction of the WAN, without I/O and without a clock: packets and times in, packets and times out.
//!
//! ```text
//! offer --> [ queue: bounded bytes, drained at the rate ] --> lost? --> [ on the wire: delay, jitter ] --> take
//! ```
//!
//! A packet's way is settled when it is offered: the queue is a clock that runs ahead of now by what waits in it. Packets
//! stay in order: jitter never lets one overtake another, as on a real path with one route.

use std::collections::VecDeque;
use std::time::Duration;

/// How a direction behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Settings {
    /// From leaving the queue to arriving.
    pub(crate) delay: Duration,
    /// The delay varies evenly by so much, up and down. At most the delay.
    pub(crate) jitter: Duration,
    /// Share of packets that never arrive.
    pub(crate) loss: f64,
    /// Bits a second, of IP packets; `None`: as fast as they come.
    pub(crate) rate: Option<u64>,
    /// Bytes that may wait; a packet that finds no room is dropped.
    pub(crate) queue: u64,
}

impl Settings {
    /// A wire that is not felt.
    pub(crate) const CLEAR: Self =
        Self { delay: Duration::ZERO, jitter: Duration::ZERO, loss: 0.0, rate: None, queue: u64::MAX };
}

/// What became of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Packets that came.
    pub(crate) offered: u64,
    /// Found no room in the queue.
    pub(crate) overflowed: u64,
    /// Lost as the settings ask.
    pub(crate) lost: u64,
    /// Bytes that left the queue, lost ones too.
    pub(crate) bytes: u64,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Line {
    settings: Settings,
    random: Random,
    /// When the queue will have sent all that it holds, nanoseconds.
    free_at: u64,
    /// When the last packet arrives.
    last_arrival: u64,
    wire: VecDeque<(u64, Vec<u8>)>,
    counts: Counts,
}

impl Line {
    /// The same seed loses the same packets.
    pub(crate) fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            random: Random::new(seed),
            free_at: 0,
            last_arrival: 0,
            wire: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// New settings for packets that come from now on.
    pub(crate) const fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// A packet comes at `now`. Hands it back when it goes nowhere.
    pub(crate) fn offer(&mut self, now: u64, packet: Vec<u8>) -> Option<Vec<u8>> {
        self.counts.offered += 1;
        let bytes = packet.len() as u64;
        let start = self.free_at.max(now);
        if let Some(rate) = self.settings.rate.filter(|rate| *rate > 0) {
            let waiting = u128::from(start - now) * u128::from(rate) / 8 / 1_000_000_000;
            if waiting + u128::from(bytes) > u128::from(self.settings.queue) {
                self.counts.overflowed += 1;
                return Some(packet);
            }
            self.free_at = start + bytes * 8 * 1_000_000_000 / rate;
        } else {
            self.free_at = now;
        }
        self.counts.bytes += bytes;
        // After the queue: a packet that is lost on the wire has taken its time on it.
        if self.settings.loss > 0.0 && self.random.unit() < self.settings.loss {
            self.counts.lost += 1;
            return Some(packet);
        }
        let sent = self.free_at.max(now);
        let arrival = (sent + self.travel()).max(self.last_arrival);
        self.last_arrival = arrival;
        self.wire.push_back((arrival, packet));
        None
    }

    /// The next packet that has arrived by `now`.
    pub(crate) fn take(&mut self, now: u64) -> Option<Vec<u8>> {
        self.wire.front().filter(|(arrival, _)| *arrival <= now)?;
        self.wire.pop_front().map(|(_, packet)| packet)
    }

    /// When [`Self::take`] has something next.
    pub(crate) fn next(&self) -> Option<u64> {
        self.wire.front().map(|(arrival, _)| *arrival)
    }

    /// Packets that have left the queue, or will, and have not arrived.
    pub(crate) fn on_the_wire(&self) -> usize {
        self.wire.len()
    }

    /// What became of all packets so far.
    pub(crate) const fn counts(&self) -> Counts {
        self.counts
    }

    fn travel(&mut self) -> u64 {
        let delay = nanoseconds(self.settings.delay);
        let jitter = nanoseconds(self.settings.jitter.min(self.settings.delay));
        if jitter == 0 {
            return delay;
        }
        delay - jitter + (self.random.unit() * 2.0 * jitter as f64) as u64
    }
}

/// A duration as the line's clock has it.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and the same on every machine.
#[derive(Debug)]
struct Random(u64);

impl Random {
    const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Evenly from 0 up to, and not including, 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // The 53 bits that a double holds.
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: u64 = 1_000_000;

    fn line(settings: Settings) -> Line {
        Line::new(settings, 7)
    }

    /// Arrivals of packets of `length` bytes, offered at the times given.
    fn arrivals(line: &mut Line, length: usize, times: &[u64]) -> Vec<u64> {
        let mut seen = Vec::new();
        for time in times {
            line.offer(*time, vec![0; length]);
        }
        while let Some(next) = line.next() {
            assert!(line.take(next - 1).is_none(), "before its time");
            line.take(next).expect("due");
            seen.push(next);
        }
        seen
    }

    #[test]
    fn a_clear_line_passes_at_once() {
        let mut line = line(Settings::CLEAR);
        assert_eq!(arrivals(&mut line, 1500, &[5, 5, 9]), [5, 5, 9]);
    }

    #[test]
    fn the_rate_spaces_packets_and_the_delay_comes_on_top() {
        let settings = Settings { delay: Duration::from_millis(25), rate: Some(12_000_000), ..Settings::CLEAR };
        // 1,500 bytes at 12 Mbit/s take a millisecond.
        let mut line = line(settings);
        let seen = arrivals(&mut line, 1500, &[0, 0, 10 * MILLISECOND]);
        assert_eq!(seen, [26, 27, 36].map(|millis| millis * MILLISECOND));
    }

    #[test]
    fn the_queue_is_bounded_and_drains() {
        let settings = Settings { rate: Some(12_000_000), queue: 3_000, ..Settings::CLEAR };
        let mut line = line(settings);
        for _ in 0..5 {
            line.offer(0, vec![0; 1500]);
        }
        assert_eq!(line.counts().overflowed, 3);
        // A millisecond later one has left.
        assert!(line.offer(MILLISECOND, vec![0; 1500]).is_none());
        assert!(line.offer(MILLISECOND, vec![0; 1500]).is_some());
        let longest = arrivals(&mut line, 1500, &[]).last().copied();
        assert_eq!(longest, Some(3 * MILLISECOND));
    }

    #[test]
    fn loss_is_the_share_asked_for_and_takes_time_on_the_wire() {
        let settings = Settings { loss: 0.01, rate: Some(1_000_000_000), ..Settings::CLEAR };
        let mut line = line(settings);
        for _ in 0..100_000 {
            line.offer(0, vec![0; 125]);
        }
        // Four standard deviations of a binomial count: 4 * sqrt(100,000 * 0.01 * 0.99).
        assert!(line.counts().lost.abs_diff(1000) < 126, "{:?}", line.counts());
        assert_eq!(line.counts().bytes, 12_500_000);
        assert_eq!(arrivals(&mut line, 125, &[]).last(), Some(&(100 * MILLISECOND)));
    }

    #[test]
    fn jitter_stays_within_bounds_and_in_order() {
        let settings =
            Settings { delay: Duration::from_millis(25), jitter: Duration::from_millis(5), ..Settings::CLEAR };
        let mut line = line(settings);
        let times: Vec<u64> = (0..1000).map(|number| number * 20 * MILLISECOND).collect();
        let travels: Vec<u64> =
            arrivals(&mut line, 100, &times).iter().zip(&times).map(|(arrival, sent)| arrival - sent).collect();
        assert!(travels.iter().all(|travel| (20 * MILLISECOND..=30 * MILLISECOND).contains(travel)));
        let mean = travels.iter().sum::<u64>() / 1000;
        assert!(mean.abs_diff(25 * MILLISECOND) < MILLISECOND / 2, "{mean}");
        let close: Vec<u64> = (0..100).map(|number| 30_000 * MILLISECOND + number).collect();
        assert!(arrivals(&mut line, 100, &close).is_sorted());
    }

    #[test]
    fn new_settings_hold_from_now_on() {
        let mut line = line(Settings::CLEAR);
        line.offer(0, vec![1]);
        line.set(Settings { loss: 1.0, ..Settings::CLEAR });
        assert!(line.offer(0, vec![2]).is_some());
        assert_eq!(line.take(0), Some(vec![1]));
    }
}
