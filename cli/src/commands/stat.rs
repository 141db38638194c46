//! `linkspan stat`: success rate, requests a second and latency of the last seconds.

use linkspan_gateway::stat::{Row as GatewayRow, Stat, StatDirection};
use linkspan_proto::names::{ClusterName, Namespace, ServiceKey};
use serde::Serialize;

use crate::args::{Format, StatArgs};
use crate::client::source::Source;
use crate::commands::Exit;
use crate::output;
use crate::output::table::{Cell, Table};

/// The figures of one service in one cluster and direction, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    direction: StatDirection,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<ServiceKey>,
    requests: u64,
    failures: u64,
    /// 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    success_rate: Option<f64>,
    rps: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_millis: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p95_millis: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_millis: Option<f64>,
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

/// The answer for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    /// The seconds that the figures cover; fewer than asked for while the gateway is younger.
    window_seconds: f64,
    rows: Vec<Row>,
}

/// Runs the command.
pub(crate) async fn run(args: &StatArgs) -> anyhow::Result<Exit> {
    let stat = Source::open(&args.place).await?.stat(args.window).await?;
    let page =
        page(stat, args.namespace.as_ref().map(Namespace::as_str), args.cluster.as_ref().map(ClusterName::as_str));
    match args.output.output {
        Format::Json => output::json::print(&page)?,
        Format::Table | Format::Wide if page.rows.is_empty() => {
            output::print(&format!("No traffic in the last {:.0} s.\n", page.window_seconds))?;
        }
        format => table(&page, format == Format::Wide).print()?,
    }
    Ok(Exit::Done)
}

fn page(stat: Stat, namespace: Option<&str>, cluster: Option<&str>) -> Page {
    let wanted = |row: &GatewayRow| {
        namespace.is_none_or(|name| row.service.as_ref().is_some_and(|key| key.namespace.as_str() == name))
            && cluster.is_none_or(|name| row.peer.as_ref().is_some_and(|peer| peer.as_str() == name))
    };
    let rows = stat.rows.into_iter().filter(wanted).map(Row::from).collect();
    Page { window_seconds: stat.window_seconds, rows }
}

impl From<GatewayRow> for Row {
    fn from(row: GatewayRow) -> Self {
        Self {
            direction: row.direction,
            cluster: row.peer,
            service: row.service,
            requests: row.requests,
            failures: row.failures,
            success_rate: row.success_rate,
            rps: row.rps,
            p50_millis: row.p50_ms.map(micros),
            p95_millis: row.p95_ms.map(micros),
            p99_millis: row.p99_ms.map(micros),
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

/// Whole microseconds: what lies behind is the rounding of an interpolation.
fn micros(millis: f64) -> f64 {
    (millis * 1e3).round() / 1e3
}

fn table(page: &Page, wide: bool) -> Table {
    let mut table = if wide {
        Table::new([
            "SERVICE",
            "CLUSTER",
            "DIRECTION",
            "SUCCESS",
            "RPS",
            "P50",
            "P95",
            "P99",
            "TCP_OPEN/s",
            "READ/s",
            "WRITE/s",
            "REQUESTS",
            "FAILURES",
            "TCP_FAILURES",
            "UDP_OPEN/s",
            "UDP_FAILURES",
            "UDP_LOST",
        ])
    } else {
        Table::new([
            "SERVICE",
            "CLUSTER",
            "DIRECTION",
            "SUCCESS",
            "RPS",
            "P50",
            "P95",
            "P99",
            "TCP_OPEN/s",
            "READ/s",
            "WRITE/s",
        ])
    };
    for row in &page.rows {
        #[expect(clippy::cast_precision_loss, reason = "a rate for people: three digits")]
        let per_second = |count: u64| if page.window_seconds > 0.0 { count as f64 / page.window_seconds } else { 0.0 };
        let mut cells = vec![
            row.service.as_ref().map_or_else(Cell::none, |key| Cell::text(key.to_string())),
            row.cluster.as_ref().map_or_else(Cell::none, |cluster| Cell::text(cluster.as_str())),
            Cell::text(match row.direction {
                StatDirection::Outbound => "outbound",
                StatDirection::Inbound => "inbound",
            }),
            success(row.success_rate),
            Cell::number(format!("{:.1}", row.rps)),
            latency(row.p50_millis),
            latency(row.p95_millis),
            latency(row.p99_millis),
            Cell::number(format!("{:.1}", per_second(row.tcp_opens))),
            Cell::number(bytes(per_second(row.read_bytes))),
            Cell::number(bytes(per_second(row.write_bytes))),
        ];
        if wide {
            cells.extend([row.requests, row.failures, row.tcp_failures].map(|count| Cell::number(count.to_string())));
            cells.push(Cell::number(format!("{:.1}", per_second(row.udp_opens))));
            cells.extend([row.udp_failures, row.udp_lost].map(|count| Cell::number(count.to_string())));
        }
        table.row(cells);
    }
    table
}

fn success(rate: Option<f64>) -> Cell {
    let Some(rate) = rate else { return Cell::none() };
    // Rounded down: 100.00% means that nothing failed.
    let cell = Cell::number(format!("{:.2}%", (rate * 10_000.0).floor() / 100.0));
    match rate {
        1.0.. => cell.good(),
        0.99.. => cell.warning(),
        _ => cell.bad(),
    }
}

fn latency(millis: Option<f64>) -> Cell {
    match millis {
        None => Cell::none(),
        Some(millis) if millis < 10.0 => Cell::number(format!("{millis:.1}ms")),
        Some(millis) => Cell::number(format!("{millis:.0}ms")),
    }
}

fn bytes(count: f64) -> String {
    const UNITS: [(f64, &str); 3] = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match UNITS.into_iter().find(|(size, _)| count >= *size) {
        Some((size, unit)) => format!("{:.1}{unit}", count / size),
        None => format!("{count:.0}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(direction: StatDirection, service: &str, peer: &str) -> GatewayRow {
        GatewayRow {
            direction,
            peer: Some(ClusterName::parse(peer).expect("cluster name")),
            service: Some(ServiceKey::parse(service).expect("service key")),
            requests: 3_000,
            failures: 1,
            success_rate: Some(2_999.0 / 3_000.0),
            rps: 100.0,
            p50_ms: Some(1.25),
            p95_ms: Some(12.4),
            p99_ms: Some(249.999_999_999_999_97),
            tcp_opens: 0,
            tcp_closes: 0,
            tcp_failures: 0,
            udp_opens: 0,
            udp_closes: 0,
            udp_failures: 0,
            udp_lost: 0,
            read_bytes: 30_000,
            write_bytes: 60_000_000,
            latency_buckets: Vec::new(),
        }
    }

    fn stat() -> Stat {
        let idle = GatewayRow {
            requests: 0,
            failures: 0,
            success_rate: None,
            rps: 0.0,
            p50_ms: None,
            p95_ms: None,
            p99_ms: None,
            tcp_opens: 15,
            ..row(StatDirection::Inbound, "data/redis", "north")
        };
        Stat { window_seconds: 30.0, rows: vec![row(StatDirection::Outbound, "shop/web", "west"), idle] }
    }

    #[test]
    fn people_read_a_table() {
        assert_eq!(
            table(&page(stat(), None, None), false).render(false),
            "SERVICE     CLUSTER  DIRECTION  SUCCESS    RPS    P50   P95    P99  TCP_OPEN/s  READ/s  WRITE/s\n\
             shop/web    west     outbound    99.96%  100.0  1.2ms  12ms  250ms         0.0   1.0kB    2.0MB\n\
             data/redis  north    inbound    -          0.0  -      -     -             0.5   1.0kB    2.0MB\n"
        );
    }

    #[test]
    fn rows_are_chosen_by_namespace_and_cluster() {
        assert_eq!(page(stat(), Some("shop"), None).rows.len(), 1);
        assert_eq!(page(stat(), Some("shop"), Some("north")).rows.len(), 0);
        assert_eq!(page(stat(), None, Some("north")).rows.len(), 1);
    }

    #[test]
    fn programs_read_json() {
        let json = serde_json::to_value(page(stat(), None, None)).expect("serialises");
        assert_eq!(json["rows"][0]["service"], "shop/web");
        assert_eq!(json["rows"][0]["direction"], "outbound");
        assert_eq!(json["rows"][0]["p99Millis"], 250.0);
        assert!(json["rows"][1].get("successRate").is_none());
    }

    #[test]
    fn a_success_rate_is_never_rounded_up() {
        assert!(format!("{:?}", success(Some(0.999_999))).contains("99.99%"));
        assert!(format!("{:?}", success(Some(1.0))).contains("100.00%"));
    }
}
