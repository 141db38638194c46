//! The result: one JSON document, a table of it, a picture of it.

pub(crate) mod plot;
pub(crate) mod rows;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;

use crate::paths::Name;
use crate::relay::check::Check;

/// Everything that was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// Where and how.
    pub(crate) environment: Environment,
    /// What was left out, with the reason.
    pub(crate) left_out: Vec<String>,
    /// What the relay was asked for and what was measured through it.
    pub(crate) relay: Vec<Check>,
    /// In the order of measurement.
    pub(crate) cases: Vec<Case>,
}

/// Where and how.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Environment {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) linkspan: String,
    pub(crate) haproxy: String,
    pub(crate) nginx: String,
    pub(crate) http_backend: String,
    /// What lies between the gateways outside the WAN cases.
    pub(crate) wire: String,
    pub(crate) mtu: u16,
    pub(crate) workers: u16,
    /// What carries the link: `auto`, `quic` or `tcp`.
    pub(crate) transport: String,
    pub(crate) congestion: String,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
}

/// One case on all paths.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    /// What the CPU seconds are for: [`Unit::work`].
    pub(crate) cpu_per: &'static str,
    /// By [`Name::label`].
    #[serde(flatten)]
    pub(crate) paths: BTreeMap<&'static str, Figure>,
    /// Comparisons and targets.
    pub(crate) rows: Vec<rows::Row>,
}

/// What [`Figure::value`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Unit {
    RequestsPerSecond,
    ConnectionsPerSecond,
    GigabitsPerSecond,
    /// The median; the 99th percentile is beside it.
    Milliseconds,
    /// Milliseconds of a single thing.
    MillisecondsEach,
    /// Of the path's round trip.
    RoundTrips,
    Mebibytes,
    Kibibytes,
    /// What a flow gets of what would be its fair share.
    FairShares,
}

impl Unit {
    /// For the table.
    pub(crate) const fn short(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "req/s",
            Self::ConnectionsPerSecond => "conn/s",
            Self::GigabitsPerSecond => "Gbit/s",
            Self::Milliseconds | Self::MillisecondsEach => "ms",
            Self::RoundTrips => "RTT",
            Self::Mebibytes => "MiB",
            Self::Kibibytes => "KiB",
            Self::FairShares => "shares",
        }
    }

    /// Whether more is better.
    pub(crate) const fn more_is_better(self) -> bool {
        matches!(
            self,
            Self::RequestsPerSecond | Self::ConnectionsPerSecond | Self::GigabitsPerSecond | Self::FairShares
        )
    }

    /// What CPU seconds are divided by.
    pub(crate) const fn work(self) -> &'static str {
        match self {
            Self::RequestsPerSecond | Self::Milliseconds => "1000 requests",
            Self::ConnectionsPerSecond => "1000 connections",
            Self::GigabitsPerSecond => "gigabyte",
            _ => "",
        }
    }

    /// How the table shows that, and the factor from seconds to the shown unit; `None` where it means nothing.
    pub(crate) const fn cpu(self) -> Option<(&'static str, f64)> {
        match self {
            // Seconds per thousand are milliseconds each; microseconds read better.
            Self::RequestsPerSecond | Self::Milliseconds => Some(("us/req", 1e3)),
            Self::ConnectionsPerSecond => Some(("us/conn", 1e3)),
            Self::GigabitsPerSecond => Some(("s/GB", 1.0)),
            _ => None,
        }
    }
}

/// One path's figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Figure {
    /// In the case's unit.
    pub(crate) value: f64,
    /// 99th percentile, where latency is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99: Option<f64>,
    /// Proportional set size, where memory is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pss: Option<f64>,
    /// Gbit/s of the transfer through the path, where its effect on another is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) beside: Option<f64>,
    /// Requests, connections or transfers that failed, over all rounds.
    pub(crate) failed: u64,
    /// CPU seconds by site, for the work that the case names.
    #[serde(rename = "cpuSeconds")]
    pub(crate) cpu: BTreeMap<String, f64>,
}

/// The round whose value is in the middle; failures of all rounds count.
pub(crate) fn median(mut rounds: Vec<Figure>) -> Option<Figure> {
    rounds.sort_by(|one, two| one.value.total_cmp(&two.value));
    let failed = rounds.iter().map(|round| round.failed).sum();
    let middle = rounds.len().checked_sub(1)? / 2;
    Some(Figure { failed, ..rounds.swap_remove(middle) })
}

impl Case {
    /// With the comparisons that follow from the figures.
    pub(crate) fn new(name: String, unit: Unit, paths: BTreeMap<Name, Figure>, targets: &[rows::Target]) -> Self {
        let rows = rows::rows(unit, &paths, targets);
        let paths = paths.into_iter().map(|(name, figure)| (name.label(), figure)).collect();
        Self { name, unit, cpu_per: unit.work(), paths, rows }
    }
}

/// What this machine is.
pub(crate) fn machine() -> Environment {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = |name: &str, option: &str| {
        crate::process::find(name).and_then(|program| crate::process::version(&program, option)).unwrap_or_default()
    };
    Environment {
        cpu: cpu.unwrap_or("unknown").to_owned(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: kernel.trim().to_owned(),
        haproxy: version("haproxy", "-v"),
        nginx: version("nginx", "-v"),
        ..Environment::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64, failed: u64) -> Figure {
        Figure { value, failed, ..Figure::default() }
    }

    #[test]
    fn the_middle_round_counts_and_all_failures() {
        let middle = median(vec![figure(3.0, 1), figure(1.0, 0), figure(2.0, 4)]).expect("rounds");
        assert_eq!((middle.value, middle.failed), (2.0, 5));
        assert_eq!(median(vec![figure(3.0, 0), figure(1.0, 0)]).map(|figure| figure.value), Some(1.0));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn json_has_a_member_for_each_path() {
        let paths = BTreeMap::from([(Name::Direct, figure(2.0, 0)), (Name::Linkspan, figure(1.0, 0))]);
        let json = serde_json::to_value(Case::new("a".to_owned(), Unit::RequestsPerSecond, paths, &[]));
        let json = json.expect("serialises");
        assert_eq!(json["direct"]["value"], 2.0);
        assert_eq!(json["linkspan"]["failed"], 0);
        assert_eq!(json["unit"], "requestsPerSecond");
    }
}
