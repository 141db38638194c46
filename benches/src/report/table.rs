//! The table, for people.

use std::fmt::Write as _;

use super::rows::{Aspect, Row};
use super::{Case, Environment, Report};
use crate::paths::Name;

/// Columns before the paths, and after.
const BEFORE: [&str; 2] = ["case", ""];
const AFTER: [&str; 4] = ["/direct", "/best", "target", ""];

impl Report {
    /// Everything, as text.
    pub(crate) fn table(&self) -> String {
        let mut text = self.environment.lines();
        text.push('\n');
        text.push_str(&aligned(&self.lines()));
        let failures = self.cases.iter().flat_map(|case| {
            case.paths
                .iter()
                .filter(|(_, figure)| figure.failed > 0)
                .map(move |(path, figure)| format!("FAILED: {}, {path}: {}\n", case.name, figure.failed))
        });
        let failures: String = failures.collect();
        if !failures.is_empty() {
            text.push('\n');
            text.push_str(&failures);
        }
        if !self.relay.is_empty() {
            text.push_str("\nThe relay against its own settings:\n");
            let rows: Vec<Vec<String>> = self.relay.iter().map(|check| check.line().to_vec()).collect();
            text.push_str(&aligned(&rows));
        }
        for left_out in &self.left_out {
            // Writing to a String cannot fail.
            writeln!(text, "left out: {left_out}").ok();
        }
        text
    }

    fn lines(&self) -> Vec<Vec<String>> {
        let paths: Vec<&str> = Name::ALL
            .map(Name::label)
            .into_iter()
            .filter(|label| self.cases.iter().any(|case| case.paths.contains_key(label)))
            .collect();
        let heading = BEFORE.iter().chain(&paths).chain(&AFTER).map(|word| (*word).to_owned()).collect();
        let mut lines = vec![heading];
        for case in &self.cases {
            for (number, row) in case.rows.iter().enumerate() {
                let label = if number == 0 { case.name.clone() } else { format!("  {}", label(row.aspect)) };
                lines.push(line(label, row, &paths));
            }
        }
        lines
    }
}

pub(super) const fn label(aspect: Aspect) -> &'static str {
    match aspect {
        Aspect::Value => "value",
        Aspect::P99 => "p99",
        Aspect::Pss => "proportional (PSS)",
        Aspect::Cpu => "CPU of both gateways",
        Aspect::CpuEast => "  east",
        Aspect::CpuWest => "  west",
        Aspect::Beside => "the transfer beside it",
    }
}

fn line(label: String, row: &Row, paths: &[&str]) -> Vec<String> {
    let mut cells = vec![label, row.unit.to_owned()];
    cells.extend(paths.iter().map(|path| row.values.get(path).map_or_else(|| "-".to_owned(), |value| figure(*value))));
    let ratio = |ratio: Option<f64>| ratio.map_or_else(String::new, figure);
    cells.extend([ratio(row.of_direct), ratio(row.of_best)]);
    let verdict = |met: bool| if met { "met" } else { "NOT MET" };
    let targets: Vec<&str> = row.verdicts.iter().map(|verdict| verdict.target.as_str()).collect();
    let met: Vec<&str> = row.verdicts.iter().map(|target| verdict(target.met)).collect();
    cells.extend([targets.join("; "), met.join("; ")]);
    cells
}

impl Case {
    /// One line for who waits: an interrupted run has shown what it saw.
    pub(crate) fn summary(&self) -> String {
        let rows = self.rows.iter().filter(|row| matches!(row.aspect, Aspect::Value | Aspect::P99));
        let parts: Vec<String> = rows
            .flat_map(|row| {
                let name = if row.aspect == Aspect::P99 { "p99 of " } else { "" };
                row.values.iter().map(move |(path, value)| format!("{name}{path} {}", figure(*value)))
            })
            .collect();
        format!("{}, {}: {}", self.name, self.unit.short(), parts.join(", "))
    }
}

impl Environment {
    fn lines(&self) -> String {
        format!(
            "{} on {} ({} cores), Linux {}\n{}; {}; HTTP backend {}\n{}, MTU {}, TCP {}; transport {}, {} worker{} each; median of {} \
             round{} of {} s\n",
            self.linkspan,
            self.cpu,
            self.cores,
            self.kernel,
            if self.haproxy.is_empty() { "no haproxy" } else { &self.haproxy },
            if self.nginx.is_empty() { "no nginx" } else { &self.nginx },
            self.http_backend,
            self.wire,
            self.mtu,
            self.congestion,
            self.transport,
            self.workers,
            if self.workers == 1 { "" } else { "s" },
            self.rounds,
            if self.rounds == 1 { "" } else { "s" },
            self.seconds,
        )
    }
}

/// Three significant digits or whole numbers.
pub(super) fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 0.1 => format!("{value:.2}"),
        value => format!("{value:.4}"),
    }
}

/// Text to the left, figures to the right. The last two columns are text.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if (2..columns.saturating_sub(2)).contains(&column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::rows::{Against, Target};
    use super::super::{Figure, Unit};
    use super::*;

    #[test]
    fn a_table_lines_up_and_says_what_failed() {
        let figure = |value: f64, failed: u64| Figure { value, failed, p99: Some(value * 2.0), ..Figure::default() };
        let paths = BTreeMap::from([
            (Name::Direct, figure(0.1, 0)),
            (Name::Nginx, figure(0.5, 0)),
            (Name::Linkspan, figure(0.4, 2)),
        ]);
        let targets = [Target::at_most(Aspect::P99, Against::BestPair, 0.85)];
        let report = Report {
            environment: Environment::default(),
            left_out: vec!["haproxy: not installed".to_owned()],
            relay: Vec::new(),
            cases: vec![Case::new("latency".to_owned(), Unit::Milliseconds, paths, &targets)],
        };
        assert_eq!(
            report.cases[0].summary(),
            "latency, ms: direct 0.10, linkspan 0.40, nginx 0.50, p99 of direct 0.20, p99 of linkspan 0.80, p99 of nginx 1.00"
        );
        let table = report.table();
        assert!(table.contains("latency  ms    0.10   0.50      0.40     4.00   0.80"), "{table}");
        assert!(table.contains("  p99    ms    0.20   1.00      0.80     4.00   0.80  <= 0.85x  met"), "{table}");
        assert!(table.contains("FAILED: latency, linkspan: 2"), "{table}");
        assert!(table.contains("left out: haproxy"), "{table}");
    }
}
