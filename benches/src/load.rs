//! What all load generators share: threads with blocking sockets, a clock, and latencies.
//!
//! Threads and blocking calls, and no event loop: a thread wakes for one request and for nothing else, so the time
//! between the kernel's answer and ours is as short as the scheduler makes it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What one measurement saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// How long it took.
    pub(crate) elapsed: Duration,
    /// Requests or connections that worked.
    pub(crate) done: u64,
    /// Those that did not.
    pub(crate) failed: u64,
    /// Bytes moved, where bytes are measured.
    pub(crate) bytes: u64,
    /// Latencies in microseconds, sorted, where latency is measured.
    pub(crate) latencies_us: Vec<u32>,
}

impl Seen {
    /// The latency in milliseconds that a share of `quantile` does not exceed.
    pub(crate) fn percentile_ms(&self, quantile: f64) -> Option<f64> {
        let last = self.latencies_us.len().checked_sub(1)?;
        let rank = (quantile * self.latencies_us.len() as f64).ceil() as usize;
        Some(f64::from(self.latencies_us[rank.saturating_sub(1).min(last)]) / 1e3)
    }

    /// Requests or connections a second.
    pub(crate) fn per_second(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64()
    }
}

/// Lets sleeping threads wake to the microsecond, and not 50 us late: the kernel's timer slack, inherited by threads that
/// start after this. Where it cannot be set, both paths are measured equally late.
pub(crate) fn sharpen_timers() {
    std::fs::write("/proc/self/timerslack_ns", "1000").ok();
}

/// Runs `body` on `threads` threads at once for `duration`; each gets the shared counters and stops when they say so.
pub(crate) fn run<S>(
    threads: usize,
    duration: Duration,
    prepare: impl Fn(usize) -> anyhow::Result<S> + Sync,
    body: impl Fn(S, &Counters) + Sync,
) -> anyhow::Result<Seen> {
    let counters = Counters::default();
    let (prepared, ended) = (Barrier::new(threads + 1), Barrier::new(threads + 1));
    let broken = Mutex::new(None);
    let mut elapsed = Duration::ZERO;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (counters, prepare, body, broken) = (&counters, &prepare, &body, &broken);
            let (prepared, ended) = (&prepared, &ended);
            scope.spawn(move || {
                let state = prepare(thread);
                prepared.wait();
                match state {
                    Ok(state) => body(state, counters),
                    Err(error) => *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
                }
                ended.wait();
            });
        }
        prepared.wait();
        let start = Instant::now();
        std::thread::sleep(duration);
        counters.stop();
        elapsed = start.elapsed();
        ended.wait();
    });
    if let Some(error) = broken.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    Ok(Seen {
        elapsed,
        done: counters.done.into_inner(),
        failed: counters.failed.into_inner(),
        bytes: counters.bytes.into_inner(),
        latencies_us: Vec::new(),
    })
}

/// What the threads of one measurement count together.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) bytes: AtomicU64,
    stop: AtomicBool,
}

impl Counters {
    /// Whether the time is over.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The time is over.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Counts one piece of work; what ends after the time is over does not count.
    pub(crate) fn count(&self, worked: bool) {
        if !self.stopped() {
            let counter = if worked { &self.done } else { &self.failed };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let seen = Seen { latencies_us: (1..=1000).collect(), ..Seen::default() };
        assert_eq!(seen.percentile_ms(0.5), Some(0.5));
        assert_eq!(seen.percentile_ms(0.99), Some(0.99));
        assert_eq!(seen.percentile_ms(1.0), Some(1.0));
        assert_eq!(Seen::default().percentile_ms(0.5), None);
    }
}
