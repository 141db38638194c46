//! What is compared: one row for each aspect of a case, with the ratio to the best other pair and the targets.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Figure, Unit};
use crate::paths::Name;

/// Which of a case's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Aspect {
    /// The case's own.
    Value,
    /// 99th percentile.
    P99,
    /// Proportional set size.
    Pss,
    /// CPU time of both gateways.
    Cpu,
    /// Of the client's.
    CpuEast,
    /// Of the backend's.
    CpuWest,
    /// The transfer that ran beside.
    Beside,
}

/// What Linkspan is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Against {
    /// The best of the haproxy and nginx pairs.
    BestPair,
    /// The best of those that carry connections one by one.
    BestTcpPair,
    /// Nothing: the bound is a figure of the row's unit.
    Bound,
}

/// A bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Target {
    /// On which row of the case.
    pub(crate) aspect: Aspect,
    /// Ratio to what, or none.
    pub(crate) against: Against,
    /// The bound is a least, or a most.
    pub(crate) least: bool,
    /// The bound.
    pub(crate) bound: f64,
}

impl Target {
    /// A ratio that must be reached.
    pub(crate) const fn at_least(aspect: Aspect, against: Against, bound: f64) -> Self {
        Self { aspect, against, least: true, bound }
    }

    /// A ratio that must not be exceeded.
    pub(crate) const fn at_most(aspect: Aspect, against: Against, bound: f64) -> Self {
        Self { aspect, against, least: false, bound }
    }
}

/// A target and how it was met.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Verdict {
    /// As a person writes it.
    pub(crate) target: String,
    /// The number in it.
    pub(crate) bound: f64,
    /// Ratio to what, or none.
    pub(crate) against: Against,
    /// The ratio, or the figure.
    pub(crate) measured: f64,
    /// Whether it is met.
    pub(crate) met: bool,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    /// Which figures.
    pub(crate) aspect: Aspect,
    /// Theirs.
    pub(crate) unit: &'static str,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
    /// By label of the path.
    pub(crate) values: BTreeMap<&'static str, f64>,
    /// Linkspan's to the direct path's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) of_direct: Option<f64>,
    /// The best other pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) best: Option<&'static str>,
    /// Linkspan's to the best other pair's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) of_best: Option<f64>,
    /// What was asked for.
    pub(crate) verdicts: Vec<Verdict>,
}

/// All rows of a case that have figures.
pub(crate) fn rows(unit: Unit, paths: &BTreeMap<Name, Figure>, targets: &[Target]) -> Vec<Row> {
    use Aspect::{Beside, Cpu, CpuEast, CpuWest, P99, Pss, Value};
    let all = [Value, P99, Pss, Beside, Cpu, CpuEast, CpuWest];
    all.into_iter().filter_map(|aspect| row(aspect, unit, paths, targets)).collect()
}

fn row(aspect: Aspect, unit: Unit, paths: &BTreeMap<Name, Figure>, targets: &[Target]) -> Option<Row> {
    let (short, factor) = match aspect {
        Aspect::Value | Aspect::P99 | Aspect::Pss => (unit.short(), 1.0),
        Aspect::Beside => ("Gbit/s", 1.0),
        Aspect::Cpu | Aspect::CpuEast | Aspect::CpuWest => unit.cpu()?,
    };
    let figure = |figure: &Figure| match aspect {
        Aspect::Value => Some(figure.value),
        Aspect::P99 => figure.p99,
        Aspect::Pss => figure.pss,
        Aspect::Beside => figure.beside,
        Aspect::Cpu if figure.cpu.is_empty() => None,
        Aspect::Cpu => Some(figure.cpu.values().sum::<f64>() * factor),
        Aspect::CpuEast => figure.cpu.get("east").map(|seconds| seconds * factor),
        Aspect::CpuWest => figure.cpu.get("west").map(|seconds| seconds * factor),
    };
    let values: BTreeMap<Name, f64> = paths.iter().filter_map(|(name, path)| Some((*name, figure(path)?))).collect();
    if values.is_empty() {
        return None;
    }
    let more_is_better = aspect == Aspect::Beside || aspect == Aspect::Value && unit.more_is_better();
    let mine = values.get(&Name::Linkspan).copied();
    let ratio = |other: f64| mine.filter(|_| other > 0.0).map(|mine| mine / other);
    let pair = best(&values, more_is_better, Name::is_other_pair);
    let verdict = |target: &Target| {
        let measured = match target.against {
            Against::Bound => mine,
            Against::BestPair => pair.and_then(|(_, value)| ratio(value)),
            Against::BestTcpPair => {
                best(&values, more_is_better, Name::is_tcp_pair).and_then(|(_, value)| ratio(value))
            }
        }?;
        let met = if target.least { measured >= target.bound } else { measured <= target.bound };
        Some(Verdict { target: written(target, short), bound: target.bound, against: target.against, measured, met })
    };
    Some(Row {
        aspect,
        unit: short,
        more_is_better,
        of_direct: values.get(&Name::Direct).and_then(|direct| ratio(*direct)),
        best: pair.map(|(name, _)| name.label()),
        of_best: pair.and_then(|(_, value)| ratio(value)),
        verdicts: targets.iter().filter(|target| target.aspect == aspect).filter_map(verdict).collect(),
        values: values.into_iter().map(|(name, value)| (name.label(), value)).collect(),
    })
}

/// The best of some paths. A path that moved nothing is no measure.
fn best(values: &BTreeMap<Name, f64>, more: bool, among: impl Fn(Name) -> bool) -> Option<(Name, f64)> {
    let among =
        values.iter().filter(|(name, value)| among(**name) && **value > 0.0).map(|(name, value)| (*name, *value));
    if more {
        among.max_by(|one, two| one.1.total_cmp(&two.1))
    } else {
        among.min_by(|one, two| one.1.total_cmp(&two.1))
    }
}

fn written(target: &Target, unit: &str) -> String {
    let sign = if target.least { ">=" } else { "<=" };
    match target.against {
        Against::Bound => format!("{sign} {} {unit}", target.bound),
        Against::BestPair => format!("{sign} {}x", target.bound),
        Against::BestTcpPair => format!("{sign} {}x TCP", target.bound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(values: &[(Name, f64)]) -> BTreeMap<Name, Figure> {
        let cpu = |name: Name, value: f64| match name {
            Name::Direct => BTreeMap::new(),
            _ => BTreeMap::from([("east".to_owned(), value / 1e6), ("west".to_owned(), value / 1e6)]),
        };
        values
            .iter()
            .map(|(name, value)| (*name, Figure { value: *value, cpu: cpu(*name, *value), ..Figure::default() }))
            .collect()
    }

    #[test]
    fn compares_with_the_best_pair_and_not_with_the_direct_path() {
        let paths = paths(&[
            (Name::Direct, 100.0),
            (Name::HaproxyH2, 20.0),
            (Name::HaproxyTcp, 30.0),
            (Name::Nginx, 0.0),
            (Name::Linkspan, 60.0),
        ]);
        let targets = [
            Target::at_least(Aspect::Value, Against::BestPair, 1.5),
            Target::at_most(Aspect::Cpu, Against::BestPair, 0.65),
        ];
        let rows = rows(Unit::RequestsPerSecond, &paths, &targets);
        assert_eq!(rows.len(), 4);
        assert_eq!((rows[0].best, rows[0].of_best, rows[0].of_direct), (Some("haproxy-tcp"), Some(2.0), Some(0.6)));
        assert!(rows[0].verdicts[0].met && rows[0].verdicts[0].target == ">= 1.5x");
        // Less CPU time is better: 20 of haproxy-h2, and 60.
        assert_eq!((rows[1].best, rows[1].of_best), (Some("haproxy-h2"), Some(3.0)));
        assert!(!rows[1].verdicts[0].met);
    }

    #[test]
    fn a_bound_needs_no_other_pair_and_a_ratio_does() {
        let paths = paths(&[(Name::Direct, 2.0), (Name::Linkspan, 1.02)]);
        let targets = [
            Target::at_most(Aspect::Value, Against::Bound, 1.05),
            Target::at_most(Aspect::Value, Against::BestTcpPair, 0.35),
        ];
        let rows = rows(Unit::RoundTrips, &paths, &targets);
        assert_eq!(rows.len(), 1, "no CPU time of a single connection");
        assert_eq!(rows[0].verdicts.len(), 1);
        assert!(rows[0].verdicts[0].met && rows[0].verdicts[0].target == "<= 1.05 RTT");
    }
}
