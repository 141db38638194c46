//! The picture: a group of bars for each row of the table, as SVG.
//!
//! Each group has a scale of its own, from 0 to its longest bar; a tick marks where Linkspan's bar must reach, or must not.

use std::fmt::Write as _;

use super::Report;
use super::rows::{Against, Aspect, Row};
use super::table::{figure, label};
use crate::paths::Name;

const WIDTH: usize = 960;
const LEFT: usize = 330;
const BARS: usize = 460;
const BAR: usize = 13;
const GAP: usize = 12;

/// Colours that remain distinct for people who do not see red and green apart (Okabe and Ito, 2008).
const fn colour(name: Name) -> &'static str {
    match name {
        Name::Direct => "#999999",
        Name::HaproxyH2 => "#56b4e9",
        Name::HaproxyTcp => "#0072b2",
        Name::Nginx => "#009e73",
        Name::Linkspan => "#d55e00",
    }
}

impl Report {
    /// An SVG document.
    pub(crate) fn plot(&self) -> String {
        let mut body = String::new();
        let mut y = 56;
        for case in &self.cases {
            // A bar for both gateways together says enough.
            let rows = case.rows.iter().filter(|row| !matches!(row.aspect, Aspect::CpuEast | Aspect::CpuWest));
            for (number, row) in rows.enumerate() {
                let label = if number == 0 { case.name.clone() } else { format!("    {}", label(row.aspect)) };
                y = group(&mut body, y, &label, row);
            }
        }
        let environment = &self.environment;
        let title = escaped(&format!(
            "{} on {} ({} cores), MTU {}, TCP {}",
            environment.linkspan, environment.cpu, environment.cores, environment.mtu, environment.congestion
        ));
        let mut legend = String::new();
        for (number, name) in Name::ALL.into_iter().enumerate() {
            let x = 10 + number * 120;
            // Writing to a String cannot fail.
            write!(
                legend,
                "<rect x=\"{x}\" y=\"28\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{}\" y=\"37\">{}</text>",
                colour(name),
                x + 15,
                name.label()
            )
            .ok();
        }
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y}\" font-family=\"sans-serif\" \
             font-size=\"11\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/><text x=\"10\" y=\"18\" \
             font-size=\"13\">{title}</text>{legend}\n{body}</svg>\n"
        )
    }
}

/// Draws one row's bars; where the next begins.
fn group(body: &mut String, top: usize, label: &str, row: &Row) -> usize {
    let values: Vec<(Name, f64)> =
        Name::ALL.into_iter().filter_map(|name| Some((name, *row.values.get(name.label())?))).collect();
    let mark = mark(row);
    let longest = values.iter().map(|(_, value)| *value).chain(mark).fold(0.0, f64::max);
    if longest <= 0.0 {
        return top;
    }
    let length = |value: f64| (value / longest * BARS as f64).max(1.0);
    let mut y = top;
    write!(body, "<text x=\"10\" y=\"{}\">{}, {}</text>", y + BAR - 3, escaped(label), row.unit).ok();
    for (name, value) in &values {
        let text = figure(*value);
        write!(
            body,
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"><title>{} {text} {}</title></rect>\
             <text x=\"{:.1}\" y=\"{}\">{text}</text>",
            length(*value),
            BAR - 2,
            colour(*name),
            name.label(),
            row.unit,
            LEFT as f64 + length(*value) + 5.0,
            y + BAR - 3,
        )
        .ok();
        y += BAR;
    }
    if let Some(mark) = mark {
        let x = LEFT as f64 + length(mark);
        let verdict = row.verdicts.iter().all(|verdict| verdict.met);
        let word = if verdict { "met" } else { "not met" };
        write!(
            body,
            "<path d=\"M{x:.1} {}V{}\" stroke=\"black\" stroke-width=\"2\"/><text x=\"{}\" y=\"{}\">{} {word}</text>",
            y - BAR - 1,
            y + 1,
            WIDTH - 130,
            y - 3,
            escaped(&row.verdicts.iter().map(|verdict| verdict.target.as_str()).collect::<Vec<_>>().join("; ")),
        )
        .ok();
    }
    body.push('\n');
    y + GAP
}

/// Where the first target is, in the row's unit.
fn mark(row: &Row) -> Option<f64> {
    let verdict = row.verdicts.first()?;
    let mine = *row.values.get(Name::Linkspan.label())?;
    match verdict.against {
        Against::Bound => Some(verdict.bound),
        // The ratio is Linkspan's figure to the other's.
        _ => Some(verdict.bound * mine / verdict.measured).filter(|mark| mark.is_finite()),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::rows::Target;
    use super::super::{Case, Environment, Figure, Unit};
    use super::*;

    #[test]
    fn draws_every_path_and_the_target() {
        let figure = |value: f64| Figure { value, ..Figure::default() };
        let paths =
            BTreeMap::from([(Name::Direct, figure(4.0)), (Name::Nginx, figure(1.0)), (Name::Linkspan, figure(1.2))]);
        let targets = [Target::at_least(Aspect::Value, Against::BestPair, 1.5)];
        let case = Case::new("bulk <1>".to_owned(), Unit::GigabitsPerSecond, paths, &targets);
        assert!(mark(&case.rows[0]).is_some_and(|mark| (mark - 1.5).abs() < 1e-9), "1.5 times nginx");
        let report =
            Report { environment: Environment::default(), left_out: Vec::new(), relay: Vec::new(), cases: vec![case] };
        let plot = report.plot();
        assert!(plot.starts_with("<svg") && plot.ends_with("</svg>\n"));
        assert_eq!(plot.matches("<title>").count(), 3);
        assert!(plot.contains("bulk &lt;1&gt;") && plot.contains("&gt;= 1.5x not met"), "{plot}");
    }
}
