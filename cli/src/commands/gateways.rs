//! `linkspan gateways`: one line for each link.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use linkspan_proto::configuration::{LinkPhase, LinkReport, TransportReason};
use serde::Serialize;

use crate::args::{Format, GatewaysArgs};
use crate::client::facts::Facts;
use crate::client::source::{Of, Source};
use crate::client::status::{Condition, Status};
use crate::commands::Exit;
use crate::output;
use crate::output::table::{Cell, Table};

/// One link, for programs.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Row {
    /// One that is in force.
    InForce(InForce),
    /// One that is not: no gateway knows of it.
    Refused(Refused),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct InForce {
    /// Services that the peer exports to us.
    num_svc: usize,
    /// What the gateway says of the link.
    #[serde(flatten)]
    link: LinkReport,
    /// Why the Link as it stands now is refused; an earlier version of it is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<Condition>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Refused {
    cluster: String,
    alive: bool,
    /// Why the Link is refused.
    refused: Condition,
}

/// Runs the command.
pub(crate) async fn run(args: &GatewaysArgs) -> anyhow::Result<Exit> {
    let source = Source::open(&args.place).await?;
    let facts = source.facts().await?;
    // Whoever may not list Links still sees those in force.
    let statuses = source.statuses(Of::Links).await.unwrap_or_default();
    let rows = rows(&facts, &statuses);
    match args.output.output {
        Format::Json => output::json::print(&rows)?,
        Format::Table | Format::Wide if rows.is_empty() => output::print(&format!(
            "No links. Import the Link of a peer: on the peer `linkspan link export > peer.yaml`, here `linkspan link import \
             peer.yaml {}`, and the same the other way round.\n",
            source.flags()
        ))?,
        format => {
            table(&rows, format == Format::Wide, SystemTime::now()).print()?;
            for remark in rows.iter().filter_map(Row::remark) {
                output::print(&format!("\n{}\n", output::safe(&remark)))?;
            }
        }
    }
    Ok(Exit::Done)
}

fn rows(facts: &Facts, statuses: &[Status]) -> Vec<Row> {
    let refused = |status: &Status| Some((status.metadata.name.clone(), status.complaint("Accepted")?.clone()));
    let mut refused: BTreeMap<String, Condition> = statuses.iter().filter_map(refused).collect();
    let in_force = facts.links.values().map(|link| InForce {
        num_svc: facts.services_of(&link.cluster),
        link: link.clone(),
        refused: refused.remove(link.cluster.as_str()),
    });
    let mut rows: Vec<Row> = in_force.map(Row::InForce).collect();
    let refused = refused.into_iter().map(|(cluster, refused)| Refused { cluster, alive: false, refused });
    rows.extend(refused.map(Row::Refused));
    rows.sort_by(|one, other| one.cluster().cmp(other.cluster()));
    rows
}

impl Row {
    fn cluster(&self) -> &str {
        match self {
            Self::InForce(InForce { link, .. }) => link.cluster.as_str(),
            Self::Refused(Refused { cluster, .. }) => cluster,
        }
    }

    /// What no column has room for: why a Link is refused, or why TCP carries it.
    fn remark(&self) -> Option<String> {
        if let Self::InForce(InForce { link, refused: None, .. }) = self {
            let for_want_of_udp =
                matches!(link.transport_reason, Some(TransportReason::UdpBlocked | TransportReason::UdpSilent));
            return for_want_of_udp.then(|| format!("{}: {}", link.cluster, link.message));
        }
        let (what, refused) = match self {
            Self::InForce(InForce { refused, .. }) => {
                ("its Link as it stands is refused, and the version before is in force", refused.as_ref()?)
            }
            Self::Refused(Refused { refused, .. }) => ("its Link is refused", refused),
        };
        Some(format!("{}: {what}: {}", self.cluster(), refused.sentence()))
    }
}

fn table(rows: &[Row], wide: bool, now: SystemTime) -> Table {
    let mut table = if wide {
        Table::new([
            "CLUSTER",
            "ALIVE",
            "NUM_SVC",
            "LATENCY",
            "RTT",
            "LOSS",
            "VERSION",
            "SINCE",
            "STATE",
            "TRANSPORT",
            "CONNECTIONS",
            "REMOTE",
            "MESSAGE",
        ])
    } else {
        Table::new(["CLUSTER", "ALIVE", "NUM_SVC", "LATENCY", "RTT", "LOSS", "VERSION", "SINCE"])
    };
    for row in rows {
        let InForce { num_svc, link, .. } = match row {
            Row::InForce(row) => row,
            Row::Refused(row) => {
                table.row(refused(row, wide));
                continue;
            }
        };
        let alive = if link.alive { Cell::text("True").good() } else { Cell::text("False").bad() };
        let mut cells = vec![
            Cell::text(link.cluster.as_str()),
            alive,
            Cell::number(num_svc.to_string()),
            millis(link.probe_micros),
            millis(link.rtt_micros),
            // While there is no connection, nothing can be lost: the share would read as "all is well".
            if link.connections > 0 { Cell::number(format!("{:.1}%", link.loss * 100.0)) } else { Cell::none() },
            link.version.as_deref().map_or_else(Cell::none, Cell::text),
            Cell::text(age(link.since_unix, now)),
        ];
        if wide {
            cells.push(Cell::text(phase(link.state)));
            cells.push(link.transport.map_or_else(Cell::none, |carrier| Cell::text(carrier.as_str())));
            cells.push(Cell::number(link.connections.to_string()));
            cells.push(link.remote.map_or_else(Cell::none, |remote| Cell::text(remote.to_string())));
            cells.push(if link.message.is_empty() { Cell::none() } else { Cell::text(&link.message).faint() });
        }
        table.row(cells);
    }
    table
}

/// The cells of a Link that is not in force.
fn refused(row: &Refused, wide: bool) -> Vec<Cell> {
    let mut cells = vec![Cell::text(&row.cluster), Cell::text("Refused").bad()];
    cells.extend(std::iter::repeat_with(Cell::none).take(6));
    if wide {
        cells.extend(std::iter::repeat_with(Cell::none).take(4));
        cells.push(Cell::text(row.refused.sentence()).faint());
    }
    cells
}

/// As conditions and JSON spell it.
pub(crate) const fn phase(phase: LinkPhase) -> &'static str {
    match phase {
        LinkPhase::Waiting => "waiting",
        LinkPhase::Connecting => "connecting",
        LinkPhase::Connected => "connected",
        LinkPhase::Draining => "draining",
    }
}

/// Microseconds as people read them: three digits that mean something.
fn millis(micros: Option<u64>) -> Cell {
    let Some(micros) = micros else { return Cell::none() };
    let text = match micros {
        0..1_000 => format!("{micros}us"),
        1_000..100_000 => format!("{}.{}ms", micros / 1_000, micros % 1_000 / 100),
        _ => format!("{}ms", micros / 1_000),
    };
    Cell::number(text)
}

/// How long ago a moment was, in its largest unit and the next.
fn age(since_unix: u64, now: SystemTime) -> String {
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs(since_unix);
    let seconds = now.duration_since(since).unwrap_or_default().as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::facts::tests::facts;

    fn at(seconds_after: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds_after)
    }

    #[test]
    fn people_read_a_table() {
        let rows = rows(&facts(), &[]);
        assert_eq!(
            table(&rows, false, at(75)).render(false),
            "CLUSTER  ALIVE  NUM_SVC  LATENCY    RTT  LOSS  VERSION  SINCE\n\
             north    False        1  -        -      -     -        1m15s\n\
             west     True         1    2.5ms  1.2ms  0.1%  0.1.0    1m15s\n"
        );
        let wide = table(&rows, true, at(0)).render(false);
        assert!(wide.contains("connecting") && wide.contains("no answer from 10.77.0.2:4143/udp"), "{wide}");
    }

    #[test]
    fn why_tcp_carries_a_link_is_said_below_the_table() {
        let mut facts = facts();
        let west = facts.links.values_mut().find(|link| link.alive).expect("west");
        west.transport = Some(linkspan_proto::configuration::Carrier::Tcp);
        west.transport_reason = Some(TransportReason::UdpSilent);
        west.message = "TCP is in use".to_owned();
        let rows = rows(&facts, &[]);
        assert!(table(&rows, true, at(0)).render(false).contains("tcp"));
        assert_eq!(rows.iter().filter_map(Row::remark).collect::<Vec<_>>(), ["west: TCP is in use"]);
        let json = serde_json::to_value(&rows).expect("serialises");
        assert_eq!((&json[1]["transport"], &json[1]["transportReason"]), (&"tcp".into(), &"UdpSilent".into()));
    }

    #[test]
    fn programs_read_json() {
        let json = serde_json::to_value(rows(&facts(), &[])).expect("serialises");
        assert_eq!(json[1]["cluster"], "west");
        assert_eq!(json[1]["alive"], true);
        assert_eq!(json[1]["numSvc"], 1);
        assert_eq!(json[0]["reason"], "Unreachable");
    }

    #[test]
    fn a_refused_link_is_there_with_the_reason() {
        let status = |name: &str, reason: &str| -> Status {
            serde_saphyr::from_str(&format!(
                "kind: Link\nmetadata: {{name: {name}}}\nstatus:\n  conditions:\n    - {{type: Accepted, status: 'False', \
                 reason: {reason}, message: no}}\n"
            ))
            .expect("a status")
        };
        let rows = rows(&facts(), &[status("east", "SelfLink"), status("west", "Invalid")]);
        let page = table(&rows, false, at(75)).render(false);
        assert_eq!(page.lines().nth(1), Some("east     Refused  -        -        -      -     -        -"), "{page}");
        let wide = table(&rows, true, at(75)).render(false);
        assert!(wide.contains("Accepted=False (SelfLink): no"), "{wide}");
        let remarks: Vec<String> = rows.iter().filter_map(Row::remark).collect();
        assert_eq!(remarks[0], "east: its Link is refused: Accepted=False (SelfLink): no");
        assert!(remarks[1].starts_with("west: its Link as it stands is refused"), "{remarks:?}");
        let json = serde_json::to_value(&rows).expect("serialises");
        assert_eq!((&json[0]["alive"], &json[0]["refused"]["reason"]), (&false.into(), &"SelfLink".into()));
        assert_eq!((&json[2]["alive"], &json[2]["refused"]["reason"]), (&true.into(), &"Invalid".into()));
    }

    #[test]
    fn times_have_two_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (3_599, "59m59s"), (7_260, "2h1m"), (180_000, "2d2h")] {
            assert_eq!(age(1_700_000_000, at(seconds)), text);
        }
        assert_eq!(age(1_700_000_100, at(0)), "0s", "a clock that went back");
    }
}
