//! Figures of the last minute, for `linkspan stat`.
//!
//! ```text
//! Metrics --tick, each second--> ring of 60 differences --report(window)--> Stat (JSON of GET /stat?window=SECONDS)
//! ```
//!
//! - In: the counters of [`Metrics`], once a second.
//! - Out: for each direction, peer and service: requests, success rate, rate, latency percentiles, connections, flows, bytes.
//! - Refuses: a window outside 1 to [`WINDOW_MAX`] seconds.
//! - Never does: touch the path of a request; it reads what the metrics have counted anyway.
//! - Numbers: [`WINDOW_MAX`] 60 s; a series costs about 1 KiB, and at most some 250 bytes more for each second in which it
//!   was used.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use linkspan_proto::names::{ClusterName, ServiceKey};
use linkspan_runtime::admin::{Admin, RouteError};
use linkspan_runtime::drain::Signal;
use linkspan_runtime::histogram::Distribution;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior};

use crate::metrics::{Key, Metrics, Series, Totals};
use crate::outcome::Direction;

/// Longest window, in seconds.
pub const WINDOW_MAX: u64 = 60;

/// Length of one slot of the ring, and how stale the figures can be.
const SLOT: Duration = Duration::from_secs(1);

/// The answer to `GET /stat`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stat {
    /// The seconds that the figures cover; less than asked for right after the start.
    pub window_seconds: f64,
    /// By direction, peer and service; only what was used inside the window.
    pub rows: Vec<Row>,
}

/// The figures of one service in one cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// `outbound` or `inbound`, seen from this gateway.
    pub direction: StatDirection,
    /// The other cluster; our own name where the local cluster served; absent where no cluster could be chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<ClusterName>,
    /// The service; absent for calls of names that are not configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceKey>,
    /// HTTP requests that ended.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Share of requests that did not fail, 0 to 1; absent without requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<f64>,
    /// Requests a second.
    pub rps: f64,
    /// Median latency in milliseconds; absent without requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// 95th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_ms: Option<f64>,
    /// 99th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// Connections that are not HTTP and began.
    pub tcp_opens: u64,
    /// Those that ended.
    pub tcp_closes: u64,
    /// Those that ended and did not end well.
    pub tcp_failures: u64,
    /// Flows of datagrams that began.
    #[serde(default)]
    pub udp_opens: u64,
    /// Those that ended.
    #[serde(default)]
    pub udp_closes: u64,
    /// Those that ended and did not end well.
    #[serde(default)]
    pub udp_failures: u64,
    /// Datagrams that were not carried on.
    #[serde(default)]
    pub udp_lost: u64,
    /// Bytes from callers, over either transport.
    pub read_bytes: u64,
    /// Bytes to callers.
    pub write_bytes: u64,
    /// Requests by latency: bucket and count, as [`Distribution::sparse`] gives them. With them the figures of several
    /// gateways can be added up; percentiles cannot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency_buckets: Vec<(u8, u64)>,
}

/// [`Direction`] as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatDirection {
    /// From clients of this cluster.
    Outbound,
    /// From a peer.
    Inbound,
}

impl From<Direction> for StatDirection {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Outbound => Self::Outbound,
            Direction::Inbound => Self::Inbound,
        }
    }
}

/// The ring. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Window {
    metrics: Metrics,
    ring: Arc<Mutex<Ring>>,
}

#[derive(Debug)]
struct Ring {
    /// Totals at the last tick.
    last: HashMap<Key, Totals>,
    last_tick: Instant,
    /// Oldest first.
    slots: VecDeque<Slot>,
}

#[derive(Debug)]
struct Slot {
    length: Duration,
    used: Vec<Used>,
}

/// What one series did in one slot. Latencies are kept as the buckets that are not empty.
#[derive(Debug)]
struct Used {
    key: Key,
    counts: Counts,
    latency: Vec<(u8, u64)>,
}

/// [`Totals`] without the distribution.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    requests: u64,
    failures: u64,
    tcp_opens: u64,
    tcp_closes: u64,
    tcp_failures: u64,
    udp_opens: u64,
    udp_closes: u64,
    udp_failures: u64,
    udp_lost: u64,
    read_bytes: u64,
    write_bytes: u64,
}

impl Window {
    /// An empty ring over these metrics.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        let ring = Ring { last: HashMap::new(), last_tick: Instant::now(), slots: VecDeque::new() };
        Self { metrics, ring: Arc::new(Mutex::new(ring)) }
    }

    /// Ticks each second until the drain is closed. The caller spawns it.
    pub async fn run(self, signal: Signal) {
        let mut ticks = tokio::time::interval_at(Instant::now() + SLOT, SLOT);
        // A late tick makes a longer slot, and the next one comes a whole second later: rates stay right.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                now = ticks.tick() => self.tick(now),
                () = signal.closed() => return,
            }
        }
    }

    /// Answers `GET /stat?window=SECONDS` (default 60) on the admin server.
    pub fn register(&self, admin: &Admin) {
        let window = self.clone();
        admin.route("/stat", move |query| {
            let window = window.clone();
            async move {
                let seconds = query.parsed("window")?.unwrap_or(WINDOW_MAX);
                if !(1..=WINDOW_MAX).contains(&seconds) {
                    return Err(RouteError::BadRequest(format!("window is 1 to {WINDOW_MAX} seconds")));
                }
                Ok(serde_json::to_value(window.report(Duration::from_secs(seconds), Instant::now()))?)
            }
        });
    }

    /// Closes a slot. `now` is the moment at which the counters are read.
    pub fn tick(&self, now: Instant) {
        let series = self.metrics.series();
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let used = ring.since_last(&series);
        // Series that are forgotten leave with the old map.
        ring.last = series.iter().map(|series| (series.key().clone(), series.totals())).collect();
        let length = now.saturating_duration_since(ring.last_tick);
        ring.last_tick = now;
        ring.slots.push_back(Slot { length, used });
        while ring.slots.len() > WINDOW_MAX as usize {
            ring.slots.pop_front();
        }
    }

    /// The figures up to `now` of the newest slots that make up `window`, or of all there are. The slot that is still
    /// open counts: who has just sent a request sees it.
    #[must_use]
    pub fn report(&self, window: Duration, now: Instant) -> Stat {
        let series = self.metrics.series();
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let open = Slot { length: now.saturating_duration_since(ring.last_tick), used: ring.since_last(&series) };
        let mut covered = Duration::ZERO;
        let mut rows: BTreeMap<RowKey, (Counts, Distribution)> = BTreeMap::new();
        for slot in std::iter::once(&open).chain(ring.slots.iter().rev()) {
            // Slots are a second give or take the timer: half a slot over is nearer than half a slot under.
            if covered + slot.length / 2 > window {
                break;
            }
            covered += slot.length;
            for used in &slot.used {
                let (counts, latency) = rows.entry(RowKey::from(&used.key)).or_default();
                counts.add(&used.counts);
                latency.merge_sparse(&used.latency);
            }
        }
        drop(ring);
        let seconds = covered.as_secs_f64();
        let rows = rows.into_iter().map(|(key, (counts, latency))| row(key, &counts, &latency, seconds)).collect();
        Stat { window_seconds: seconds, rows }
    }
}

impl Ring {
    /// What has been counted since the last slot was closed.
    fn since_last(&self, series: &[Arc<Series>]) -> Vec<Used> {
        let fresh = Totals::default();
        let used = series.iter().filter_map(|series| {
            let change = series.totals().since(self.last.get(series.key()).unwrap_or(&fresh));
            let counts = Counts::from(&change);
            (!counts.is_zero()).then(|| Used { key: series.key().clone(), counts, latency: change.latency.sparse() })
        });
        used.collect()
    }
}

/// Ports of one service are shown together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RowKey {
    direction: Direction,
    service: Option<ServiceKey>,
    peer: Option<ClusterName>,
}

impl From<&Key> for RowKey {
    fn from(key: &Key) -> Self {
        Self { direction: key.direction, service: key.service.clone(), peer: key.peer.clone() }
    }
}

fn row(key: RowKey, counts: &Counts, latency: &Distribution, seconds: f64) -> Row {
    let requests = counts.requests as f64;
    let percentile = |quantile| Some(latency.percentile(quantile)?.as_secs_f64() * 1e3);
    Row {
        direction: key.direction.into(),
        peer: key.peer,
        service: key.service,
        requests: counts.requests,
        failures: counts.failures,
        success_rate: (counts.requests > 0).then(|| (requests - counts.failures as f64) / requests),
        rps: if seconds > 0.0 { requests / seconds } else { 0.0 },
        p50_ms: percentile(0.5),
        p95_ms: percentile(0.95),
        p99_ms: percentile(0.99),
        tcp_opens: counts.tcp_opens,
        tcp_closes: counts.tcp_closes,
        tcp_failures: counts.tcp_failures,
        udp_opens: counts.udp_opens,
        udp_closes: counts.udp_closes,
        udp_failures: counts.udp_failures,
        udp_lost: counts.udp_lost,
        read_bytes: counts.read_bytes,
        write_bytes: counts.write_bytes,
        latency_buckets: latency.sparse(),
    }
}

impl Stat {
    /// The figures of several gateways as if they were one: counts are added, rates too (each over its own seconds), and
    /// percentiles are found anew in the sum of the buckets.
    #[must_use]
    pub fn combined(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut seconds: f64 = 0.0;
        let mut rows: BTreeMap<_, (f64, Counts, Distribution)> = BTreeMap::new();
        for part in parts {
            seconds = seconds.max(part.window_seconds);
            for row in part.rows {
                let counts = Counts::from(&row);
                let key = (row.direction, row.service, row.peer);
                let (rps, sum, latency) = rows.entry(key).or_default();
                *rps += row.rps;
                sum.add(&counts);
                latency.merge_sparse(&row.latency_buckets);
            }
        }
        let rows = rows.into_iter().map(|((direction, service, peer), (rps, counts, latency))| {
            let direction = match direction {
                StatDirection::Outbound => Direction::Outbound,
                StatDirection::Inbound => Direction::Inbound,
            };
            Row { rps, ..row(RowKey { direction, service, peer }, &counts, &latency, seconds) }
        });
        Self { window_seconds: seconds, rows: rows.collect() }
    }
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.tcp_opens += other.tcp_opens;
        self.tcp_closes += other.tcp_closes;
        self.tcp_failures += other.tcp_failures;
        self.udp_opens += other.udp_opens;
        self.udp_closes += other.udp_closes;
        self.udp_failures += other.udp_failures;
        self.udp_lost += other.udp_lost;
        self.read_bytes += other.read_bytes;
        self.write_bytes += other.write_bytes;
    }

    const fn is_zero(&self) -> bool {
        self.requests == 0
            && self.tcp_opens == 0
            && self.tcp_closes == 0
            && self.udp_opens == 0
            && self.udp_closes == 0
            && self.udp_lost == 0
            && self.read_bytes == 0
            && self.write_bytes == 0
    }
}

impl From<&Row> for Counts {
    fn from(row: &Row) -> Self {
        Self {
            requests: row.requests,
            failures: row.failures,
            tcp_opens: row.tcp_opens,
            tcp_closes: row.tcp_closes,
            tcp_failures: row.tcp_failures,
            udp_opens: row.udp_opens,
            udp_closes: row.udp_closes,
            udp_failures: row.udp_failures,
            udp_lost: row.udp_lost,
            read_bytes: row.read_bytes,
            write_bytes: row.write_bytes,
        }
    }
}

impl From<&Totals> for Counts {
    fn from(totals: &Totals) -> Self {
        Self {
            requests: totals.requests,
            failures: totals.failures,
            tcp_opens: totals.tcp_opens,
            tcp_closes: totals.tcp_closes,
            tcp_failures: totals.tcp_failures,
            udp_opens: totals.udp_opens,
            udp_closes: totals.udp_closes,
            udp_failures: totals.udp_failures,
            udp_lost: totals.udp_lost,
            read_bytes: totals.read_bytes,
            write_bytes: totals.write_bytes,
        }
    }
}

#[cfg(test)]
mod tests;
