//! The counters of one label combination: atomics, shared by all workers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use linkspan_proto::refusal::Refusal;
use linkspan_runtime::histogram::{Distribution, LatencyHistogram};

use super::Key;
use crate::outcome::{Loss, Outcome};

/// Ends that are no refusal of the link, each with a slot of its own; the refusals follow. `Idle` here also stands for
/// the refusal of that name: one label value, one slot.
const PLAIN: [Outcome; 10] = [
    Outcome::Ok,
    Outcome::ClientGone,
    Outcome::ClientInvalid,
    Outcome::ClientUntrusted,
    Outcome::NoRoute,
    Outcome::NoTarget,
    Outcome::LinkLost,
    Outcome::Idle,
    Outcome::Drained,
    Outcome::Abandoned,
];

/// Slots of outcomes.
pub(super) const OUTCOMES: usize = PLAIN.len() + Refusal::ALL.len();

/// Slots of HTTP status classes: none, then 1xx to 5xx.
pub(super) const CLASSES: [&str; 6] = ["", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Families of what flows have moved.
pub(super) const UDP_MOVED: [&str; 4] =
    ["udp_read_datagrams", "udp_write_datagrams", "udp_read_bytes", "udp_write_bytes"];

/// gRPC statuses that count as failures, as Linkerd has it: unknown, deadline exceeded, internal, unavailable, data loss.
/// The others are answers of a working service.
const GRPC_FAILURES: [u32; 5] = [2, 4, 13, 14, 15];

/// One counter of responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResponseSlot {
    pub(super) success: bool,
    pub(super) outcome: Outcome,
    pub(super) class: &'static str,
}

/// The counters of one label combination. All methods are lock-free.
#[derive(Debug)]
pub struct Series {
    key: Key,
    /// By outcome and status class, successes and failures apart: a gRPC failure is `ok` and `2xx`.
    successes: [[AtomicU64; CLASSES.len()]; OUTCOMES],
    failures: [[AtomicU64; CLASSES.len()]; OUTCOMES],
    latency: LatencyHistogram,
    tcp_opens: AtomicU64,
    tcp_closes: [AtomicU64; OUTCOMES],
    read_bytes: AtomicU64,
    write_bytes: AtomicU64,
    probes: [AtomicU64; OUTCOMES],
    udp: Box<UdpSeries>,
}

/// What is counted of flows. Apart, since few services have any.
#[derive(Debug, Default)]
struct UdpSeries {
    opens: AtomicU64,
    closes: [AtomicU64; OUTCOMES],
    read_bytes: AtomicU64,
    write_bytes: AtomicU64,
    read_datagrams: AtomicU64,
    write_datagrams: AtomicU64,
    lost: [AtomicU64; Loss::ALL.len()],
}

impl Series {
    pub(super) fn new(key: Key) -> Self {
        Self {
            key,
            successes: zeroes(),
            failures: zeroes(),
            latency: LatencyHistogram::new(),
            tcp_opens: AtomicU64::new(0),
            tcp_closes: [const { AtomicU64::new(0) }; OUTCOMES],
            read_bytes: AtomicU64::new(0),
            write_bytes: AtomicU64::new(0),
            probes: [const { AtomicU64::new(0) }; OUTCOMES],
            udp: Box::default(),
        }
    }

    /// The labels.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// A request ended.
    pub fn request(&self, outcome: Outcome, status: Option<u16>, grpc_status: Option<u32>, latency: Duration) {
        let class = status.map_or(0, |status| usize::from(status / 100));
        // Three-digit statuses above 599 are legal to send (RFC 9110 section 15) and mean 5xx to everybody.
        let class = class.min(CLASSES.len() - 1);
        let failed = !outcome.is_success()
            || class == CLASSES.len() - 1
            || grpc_status.is_some_and(|status| GRPC_FAILURES.contains(&status));
        let counters = if failed { &self.failures } else { &self.successes };
        counters[slot(outcome)][class].fetch_add(1, Ordering::Relaxed);
        self.latency.observe(latency);
    }

    /// A connection began.
    pub fn tcp_open(&self) {
        self.tcp_opens.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection ended.
    pub fn tcp_close(&self, outcome: Outcome) {
        self.tcp_closes[slot(outcome)].fetch_add(1, Ordering::Relaxed);
    }

    /// A probe of `linkspan check` ended. Counted here and nowhere else.
    pub fn probe(&self, outcome: Outcome) {
        self.probes[slot(outcome)].fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes moved from the caller (`read`) and to it (`written`).
    pub fn bytes(&self, read: u64, written: u64) {
        self.read_bytes.fetch_add(read, Ordering::Relaxed);
        self.write_bytes.fetch_add(written, Ordering::Relaxed);
    }

    /// A flow began.
    pub fn udp_open(&self) {
        self.udp.opens.fetch_add(1, Ordering::Relaxed);
    }

    /// A flow ended.
    pub fn udp_close(&self, outcome: Outcome) {
        self.udp.closes[slot(outcome)].fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of datagrams moved from the caller (`read`) and to it (`written`).
    pub fn udp_bytes(&self, read: u64, written: u64) {
        self.udp.read_bytes.fetch_add(read, Ordering::Relaxed);
        self.udp.write_bytes.fetch_add(written, Ordering::Relaxed);
    }

    /// Datagrams moved from the caller (`read`) and to it (`written`).
    pub fn udp_datagrams(&self, read: u64, written: u64) {
        self.udp.read_datagrams.fetch_add(read, Ordering::Relaxed);
        self.udp.write_datagrams.fetch_add(written, Ordering::Relaxed);
    }

    /// Datagrams were not carried on.
    pub fn udp_lost(&self, why: Loss, count: u64) {
        self.udp.lost[why.slot()].fetch_add(count, Ordering::Relaxed);
    }

    /// All figures at this moment. Those of a request that ends meanwhile may be in or not, each for itself.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            latency: self.latency.snapshot(),
            tcp_opens: self.tcp_opens.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed) + self.udp.read_bytes.load(Ordering::Relaxed),
            write_bytes: self.write_bytes.load(Ordering::Relaxed) + self.udp.write_bytes.load(Ordering::Relaxed),
            udp_opens: self.udp_opens(),
            udp_lost: self.udp_lost_by_reason().map(|(_, count)| count).sum(),
            ..Totals::default()
        };
        for (slot, count) in self.responses() {
            totals.requests += count;
            totals.failures += if slot.success { 0 } else { count };
        }
        for (outcome, count) in self.tcp_closes() {
            totals.tcp_closes += count;
            totals.tcp_failures += if outcome.is_success() { 0 } else { count };
        }
        for (outcome, count) in self.udp_closes() {
            totals.udp_closes += count;
            totals.udp_failures += if outcome.is_success() { 0 } else { count };
        }
        totals
    }

    pub(super) fn tcp_opens(&self) -> u64 {
        self.tcp_opens.load(Ordering::Relaxed)
    }

    pub(super) fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn write_bytes(&self) -> u64 {
        self.write_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn latency(&self) -> &LatencyHistogram {
        &self.latency
    }

    /// Counters of responses that are not zero.
    pub(super) fn responses(&self) -> impl Iterator<Item = (ResponseSlot, u64)> {
        let rows = [(true, &self.successes), (false, &self.failures)];
        rows.into_iter().flat_map(|(success, rows)| {
            rows.iter().enumerate().flat_map(move |(number, row)| {
                row.iter().zip(CLASSES).filter_map(move |(counter, class)| {
                    let count = counter.load(Ordering::Relaxed);
                    let slot = ResponseSlot { success, outcome: outcome_of(number), class };
                    (count > 0).then_some((slot, count))
                })
            })
        })
    }

    /// Counters of closed connections that are not zero.
    pub(super) fn tcp_closes(&self) -> impl Iterator<Item = (Outcome, u64)> {
        by_outcome(&self.tcp_closes)
    }

    pub(super) fn udp_opens(&self) -> u64 {
        self.udp.opens.load(Ordering::Relaxed)
    }

    /// Counters of ended flows that are not zero.
    pub(super) fn udp_closes(&self) -> impl Iterator<Item = (Outcome, u64)> {
        by_outcome(&self.udp.closes)
    }

    /// Counters of lost datagrams that are not zero.
    pub(super) fn udp_lost_by_reason(&self) -> impl Iterator<Item = (Loss, u64)> {
        let counts = Loss::ALL.into_iter().zip(&self.udp.lost);
        counts.map(|(why, counter)| (why, counter.load(Ordering::Relaxed))).filter(|(_, count)| *count > 0)
    }

    /// What [`UDP_MOVED`] names.
    pub(super) fn udp_moved(&self) -> [u64; UDP_MOVED.len()] {
        let UdpSeries { read_datagrams, write_datagrams, read_bytes, write_bytes, .. } = &*self.udp;
        [read_datagrams, write_datagrams, read_bytes, write_bytes].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// Counters of probes that are not zero.
    pub(super) fn probes(&self) -> impl Iterator<Item = (Outcome, u64)> {
        by_outcome(&self.probes)
    }
}

fn by_outcome(counters: &[AtomicU64; OUTCOMES]) -> impl Iterator<Item = (Outcome, u64)> {
    counters.iter().enumerate().filter_map(|(number, counter)| {
        let count = counter.load(Ordering::Relaxed);
        (count > 0).then_some((outcome_of(number), count))
    })
}

/// The figures of a series that `stat` shows, since the series began or between two moments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// HTTP requests that ended.
    pub requests: u64,
    /// Those of them that failed: not served to the end, a 5xx, or a gRPC status that is a failure.
    pub failures: u64,
    /// Their latency.
    pub latency: Distribution,
    /// Connections that began.
    pub tcp_opens: u64,
    /// Connections that ended.
    pub tcp_closes: u64,
    /// Those of them that did not end well.
    pub tcp_failures: u64,
    /// Flows of datagrams that began.
    pub udp_opens: u64,
    /// Flows that ended.
    pub udp_closes: u64,
    /// Those of them that did not end well.
    pub udp_failures: u64,
    /// Datagrams that were not carried on.
    pub udp_lost: u64,
    /// Bytes from callers.
    pub read_bytes: u64,
    /// Bytes to callers.
    pub write_bytes: u64,
}

impl Totals {
    /// What was added since `earlier`, an earlier state of the same series.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            failures: self.failures.saturating_sub(earlier.failures),
            latency: self.latency.since(&earlier.latency),
            tcp_opens: self.tcp_opens.saturating_sub(earlier.tcp_opens),
            tcp_closes: self.tcp_closes.saturating_sub(earlier.tcp_closes),
            tcp_failures: self.tcp_failures.saturating_sub(earlier.tcp_failures),
            udp_opens: self.udp_opens.saturating_sub(earlier.udp_opens),
            udp_closes: self.udp_closes.saturating_sub(earlier.udp_closes),
            udp_failures: self.udp_failures.saturating_sub(earlier.udp_failures),
            udp_lost: self.udp_lost.saturating_sub(earlier.udp_lost),
            read_bytes: self.read_bytes.saturating_sub(earlier.read_bytes),
            write_bytes: self.write_bytes.saturating_sub(earlier.write_bytes),
        }
    }
}

fn zeroes() -> [[AtomicU64; CLASSES.len()]; OUTCOMES] {
    [const { [const { AtomicU64::new(0) }; CLASSES.len()] }; OUTCOMES]
}

/// The slot of an outcome: a new variant does not compile until it has one.
fn slot(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Ok => 0,
        Outcome::ClientGone => 1,
        Outcome::ClientInvalid => 2,
        Outcome::ClientUntrusted => 3,
        Outcome::NoRoute => 4,
        Outcome::NoTarget => 5,
        Outcome::LinkLost => 6,
        Outcome::Idle | Outcome::Refused(Refusal::Idle) => 7,
        Outcome::Drained => 8,
        Outcome::Abandoned => 9,
        Outcome::Refused(refusal) => {
            // The position in ALL; it holds every variant, tested there and here.
            PLAIN.len() + Refusal::ALL.iter().position(|known| *known == refusal).unwrap_or_default()
        }
    }
}

fn outcome_of(slot: usize) -> Outcome {
    let refusal = |slot| Refusal::ALL.get(slot).copied().map_or(Outcome::Abandoned, Outcome::Refused);
    PLAIN.get(slot).copied().unwrap_or_else(|| refusal(slot - PLAIN.len()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_outcome_has_a_slot_and_a_label_of_its_own() {
        let all = || PLAIN.into_iter().chain(Refusal::ALL.into_iter().map(Outcome::Refused));
        for outcome in all() {
            assert_eq!(outcome_of(slot(outcome)).label(), outcome.label());
        }
        let slots: BTreeSet<_> = all().map(slot).collect();
        let labels: BTreeSet<_> = all().map(Outcome::label).collect();
        assert_eq!(slots.len(), labels.len(), "two slots of one label would be one time series twice");
    }
}
