//! The result: one JSON document, or a table of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use serde::Serialize;

use crate::pair::Pair;
use crate::process;

/// Everything that was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) environment: Environment,
    pub(crate) cases: Vec<Case>,
    pub(crate) memory: Memory,
}

/// Where and how.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Environment {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) linkspan: String,
    pub(crate) http_backend: String,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
}

/// Resident memory of the sites, MiB.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Memory {
    /// Linked, before any load.
    pub(crate) idle: BTreeMap<String, f64>,
    /// After all cases.
    pub(crate) after: BTreeMap<String, f64>,
}

/// One case on both paths.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    /// What the CPU seconds of both paths are for: [`Unit::work`].
    pub(crate) cpu_per: &'static str,
    pub(crate) direct: Path,
    pub(crate) linkspan: Path,
}

/// What [`Path::value`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Unit {
    RequestsPerSecond,
    ConnectionsPerSecond,
    GigabitsPerSecond,
    /// The median; the 99th percentile is beside it.
    Milliseconds,
}

impl Unit {
    const fn short(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "req/s",
            Self::ConnectionsPerSecond => "conn/s",
            Self::GigabitsPerSecond => "Gbit/s",
            Self::Milliseconds => "ms",
        }
    }

    /// What CPU seconds are divided by.
    pub(crate) const fn work(self) -> &'static str {
        match self {
            Self::RequestsPerSecond | Self::Milliseconds => "1000 requests",
            Self::ConnectionsPerSecond => "1000 connections",
            Self::GigabitsPerSecond => "gigabyte",
        }
    }

    /// How the table shows that, and the factor from seconds to the shown unit.
    const fn cpu(self) -> (&'static str, f64) {
        match self {
            // Seconds per thousand are milliseconds each; microseconds read better.
            Self::RequestsPerSecond | Self::Milliseconds => ("us/req", 1e3),
            Self::ConnectionsPerSecond => ("us/conn", 1e3),
            Self::GigabitsPerSecond => ("s/GB", 1.0),
        }
    }
}

/// One path's figures.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Path {
    /// In the case's unit.
    pub(crate) value: f64,
    /// 99th percentile, where latency is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99: Option<f64>,
    /// Requests, connections or transfers that failed, over all rounds.
    pub(crate) failed: u64,
    /// CPU seconds by process, for the work that the case names.
    #[serde(rename = "cpuSeconds")]
    pub(crate) cpu: BTreeMap<String, f64>,
}

/// The round whose value is in the middle; failures of all rounds count.
pub(crate) fn median(mut rounds: Vec<Path>) -> Path {
    rounds.sort_by(|one, two| one.value.total_cmp(&two.value));
    let failed = rounds.iter().map(|round| round.failed).sum();
    let middle = rounds.swap_remove((rounds.len() - 1) / 2);
    Path { failed, ..middle }
}

/// What this machine is.
pub(crate) fn environment(pair: &Pair) -> Environment {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = process::output(std::process::Command::new(&pair.linkspan).arg("--version")).unwrap_or_default();
    Environment {
        cpu: cpu.unwrap_or("unknown").to_owned(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: kernel.trim().to_owned(),
        linkspan: version.trim().to_owned(),
        http_backend: pair.http_backend.to_owned(),
        ..Environment::default()
    }
}

impl Report {
    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut rows = vec![["case", "", "direct", "linkspan", "ratio", "cpu east", "cpu west", ""].map(str::to_owned)];
        for case in &self.cases {
            rows.push(case.row("", case.unit.short(), case.direct.value, case.linkspan.value, true));
            if let (Some(direct), Some(linkspan)) = (case.direct.p99, case.linkspan.p99) {
                rows.push(case.row("  p99", "ms", direct, linkspan, false));
            }
        }
        let environment = &self.environment;
        let mut text = format!(
            "{} on {} ({} cores), Linux {}; HTTP backend {}; median of {} rounds of {} s\n\n",
            environment.linkspan,
            environment.cpu,
            environment.cores,
            environment.kernel,
            environment.http_backend,
            environment.rounds,
            environment.seconds
        );
        text.push_str(&aligned(&rows));
        text.push('\n');
        for (site, idle) in &self.memory.idle {
            let after = self.memory.after.get(site).copied().unwrap_or_default();
            // Writing to a String cannot fail.
            writeln!(text, "memory of {site}: {idle:.1} MiB idle, {after:.1} MiB after the load").ok();
        }
        for case in &self.cases {
            for (path, failed) in [("direct", case.direct.failed), ("linkspan", case.linkspan.failed)] {
                if failed > 0 {
                    writeln!(text, "FAILED: {} {path}: {failed}", case.name).ok();
                }
            }
        }
        text
    }
}

impl Case {
    fn row(&self, label: &str, unit: &str, direct: f64, linkspan: f64, with_cpu: bool) -> [String; 8] {
        let (per, factor) = self.unit.cpu();
        let cpu = |site: &str| match self.linkspan.cpu.get(site) {
            Some(seconds) if with_cpu => format!("{:.2}", seconds * factor),
            _ => String::new(),
        };
        [
            if label.is_empty() { self.name.clone() } else { label.to_owned() },
            unit.to_owned(),
            figure(direct),
            figure(linkspan),
            if direct > 0.0 { format!("{:.2}", linkspan / direct) } else { String::new() },
            cpu("east"),
            cpu("west"),
            if with_cpu { per.to_owned() } else { String::new() },
        ]
    }
}

/// Three significant digits or whole numbers.
fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// Text to the left, figures to the right.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(
                |(column, (cell, width))| {
                    if (2..N - 1).contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
                },
            )
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(value: f64, failed: u64) -> Path {
        Path { value, p99: None, failed, cpu: BTreeMap::from([("east".to_owned(), 0.012)]) }
    }

    #[test]
    fn the_middle_round_counts_and_all_failures() {
        let middle = median(vec![path(3.0, 1), path(1.0, 0), path(2.0, 4)]);
        assert_eq!((middle.value, middle.failed), (2.0, 5));
        assert_eq!(median(vec![path(3.0, 0), path(1.0, 0)]).value, 1.0);
    }

    #[test]
    fn a_table_lines_up() {
        let report = Report {
            environment: Environment::default(),
            cases: vec![
                Case {
                    name: "HTTP/1.1 throughput".to_owned(),
                    unit: Unit::RequestsPerSecond,
                    cpu_per: Unit::RequestsPerSecond.work(),
                    direct: path(40_000.0, 0),
                    linkspan: path(10_000.0, 2),
                },
                Case {
                    name: "latency".to_owned(),
                    unit: Unit::Milliseconds,
                    cpu_per: Unit::Milliseconds.work(),
                    direct: Path { p99: Some(0.2), ..path(0.1, 0) },
                    linkspan: Path { p99: Some(0.9), ..path(0.4, 0) },
                },
            ],
            memory: Memory { idle: BTreeMap::from([("east".to_owned(), 20.0)]), after: BTreeMap::new() },
        };
        let table = report.table();
        assert!(table.contains("HTTP/1.1 throughput  req/s   40000     10000   0.25     12.00"), "{table}");
        assert!(table.contains("  p99"), "{table}");
        assert!(table.contains("FAILED: HTTP/1.1 throughput linkspan: 2"), "{table}");
        assert!(serde_json::to_string(&report).expect("serialises").contains("\"requestsPerSecond\""));
    }
}
