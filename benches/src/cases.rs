//! What is measured, and how one measurement goes: CPU time before, load, CPU time after; direct and linkspan in turns.

use std::time::Duration;

use anyhow::Context;

use crate::load::Seen;
use crate::pair::{Pair, Targets};
use crate::process;
use crate::report::{Case, Environment, Memory, Path, Report, Unit, environment};
use crate::tcp::{self, Way};
use crate::{http, report};

/// Decimal: network people's gigabyte, and CPU seconds a gigabyte as TRANSPORT figures have them.
const GIGABYTE: f64 = 1e9;

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// HTTP/1.1 requests a second over 32 keep-alive connections.
    Requests,
    /// HTTP/2 requests a second over 8 connections of 16 streams.
    RequestsH2,
    /// Latency at so many requests a second.
    Latency(u32),
    /// New TCP connections a second.
    Connections,
    /// Bytes a second over so many connections.
    Bulk(usize, Way),
}

/// Connections of the HTTP/1.1 throughput case.
const KEEP_ALIVE_CONNECTIONS: usize = 32;

/// All cases whose name holds `only`.
pub(crate) fn all(only: Option<&str>) -> Vec<Kind> {
    let mut kinds = vec![
        Kind::Requests,
        Kind::RequestsH2,
        Kind::Latency(200),
        Kind::Latency(2000),
        Kind::Connections,
        Kind::Bulk(1, Way::Down),
        Kind::Bulk(1, Way::Up),
        Kind::Bulk(8, Way::Down),
        Kind::Bulk(8, Way::Up),
    ];
    kinds.retain(|kind| only.is_none_or(|only| kind.name().contains(only)));
    kinds
}

impl Kind {
    fn name(self) -> String {
        match self {
            Self::Requests => format!("HTTP/1.1 throughput, {KEEP_ALIVE_CONNECTIONS} connections"),
            Self::RequestsH2 => "HTTP/2 throughput, 8 connections of 16 streams".to_owned(),
            Self::Latency(rate) => format!("HTTP/1.1 latency at {rate} requests/s"),
            Self::Connections => "new TCP connections".to_owned(),
            Self::Bulk(connections, way) => {
                let way = if way == Way::Down { "down" } else { "up" };
                let plural = if connections == 1 { "" } else { "s" };
                format!("TCP bulk {way}, {connections} connection{plural}")
            }
        }
    }

    fn unit(self) -> Unit {
        match self {
            Self::Requests | Self::RequestsH2 => Unit::RequestsPerSecond,
            Self::Latency(_) => Unit::Milliseconds,
            Self::Connections => Unit::ConnectionsPerSecond,
            Self::Bulk(..) => Unit::GigabitsPerSecond,
        }
    }

    fn load(self, targets: Targets, duration: Duration) -> anyhow::Result<Seen> {
        match self {
            Self::Requests => http::closed_loop(targets.http, KEEP_ALIVE_CONNECTIONS, duration),
            Self::RequestsH2 => {
                http::closed_loop_h2(targets.h2.context("the backend does not speak HTTP/2")?, duration)
            }
            Self::Latency(rate) => http::open_loop(targets.http, rate, duration),
            Self::Connections => tcp::connections(targets.tcp, duration),
            Self::Bulk(connections, way) => tcp::bulk(targets.tcp, connections, way, duration),
        }
    }

    /// Why it cannot be measured on this machine.
    fn missing(self, pair: &Pair) -> Option<&'static str> {
        match self {
            Self::RequestsH2 if pair.direct.h2.is_none() => Some("nginx is not installed"),
            Self::RequestsH2 if process::find("h2load").is_none() => {
                Some("h2load is not installed (Debian: nghttp2-client)")
            }
            _ => None,
        }
    }
}

/// Measures all cases.
pub(crate) fn measure(pair: &mut Pair, kinds: &[Kind], seconds: f64, rounds: usize) -> anyhow::Result<Report> {
    let duration = Duration::from_secs_f64(seconds);
    let idle = memory(pair);
    let mut cases = Vec::new();
    for kind in kinds {
        let name = kind.name();
        if let Some(why) = kind.missing(pair) {
            eprintln!("linkspan-bench: left out: {name}: {why}");
            continue;
        }
        eprintln!("linkspan-bench: {name}");
        let (mut direct, mut linkspan) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            direct.push(one(pair, *kind, pair.direct, duration)?);
            pair.must_run()?;
            linkspan.push(one(pair, *kind, pair.mirrored, duration)?);
            pair.must_run()?;
        }
        cases.push(Case {
            name,
            unit: kind.unit(),
            cpu_per: kind.unit().work(),
            direct: report::median(direct),
            linkspan: report::median(linkspan),
        });
    }
    let environment = Environment { rounds, seconds, ..environment(pair) };
    Ok(Report { environment, cases, memory: Memory { idle, after: memory(pair) } })
}

fn one(pair: &Pair, kind: Kind, targets: Targets, duration: Duration) -> anyhow::Result<Path> {
    let before: Vec<f64> = pair.processes.iter().map(|(_, id)| process::cpu_seconds(*id)).collect();
    let seen = kind.load(targets, duration)?;
    let spent = pair.processes.iter().zip(before).map(|((name, id), before)| {
        // A process does not use less CPU than before; rounding of ticks aside.
        (*name, (process::cpu_seconds(*id) - before).max(0.0))
    });
    // What the work is that CPU time is divided by: thousands of requests or connections, or gigabytes.
    let work = match kind {
        Kind::Bulk(..) => seen.bytes as f64 / GIGABYTE,
        _ => (seen.done + seen.failed) as f64 / 1e3,
    };
    let cpu = spent.map(|(name, seconds)| (name.to_owned(), if work > 0.0 { seconds / work } else { 0.0 })).collect();
    let value = match kind {
        Kind::Requests | Kind::RequestsH2 | Kind::Connections => seen.per_second(),
        Kind::Latency(_) => seen.percentile_ms(0.5).unwrap_or_default(),
        Kind::Bulk(..) => seen.bytes as f64 * 8.0 / 1e9 / seen.elapsed.as_secs_f64(),
    };
    let p99 = matches!(kind, Kind::Latency(_)).then(|| seen.percentile_ms(0.99).unwrap_or_default());
    Ok(Path { value, p99, failed: seen.failed, cpu })
}

fn memory(pair: &Pair) -> std::collections::BTreeMap<String, f64> {
    let resident = |(name, id): &(&str, u32)| Some(((*name).to_owned(), process::memory_mib(*id)?));
    pair.processes.iter().filter(|(name, _)| matches!(*name, "east" | "west")).filter_map(resident).collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::backend;

    /// The backend in a thread of this test; it ends with the test's process.
    fn start() -> SocketAddr {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = backend::listen().expect("a port");
                tell.send(listener.local_addr().expect("bound")).expect("heard");
                backend::accept(listener).await;
            });
        });
        told.recv().expect("the backend listens")
    }

    #[test]
    fn every_generator_works_on_the_direct_path() {
        let target = start();
        let targets = Targets { http: target, h2: None, tcp: target };
        let short = Duration::from_millis(100);
        for kind in all(None).into_iter().filter(|kind| !matches!(kind, Kind::Requests | Kind::RequestsH2)) {
            let seen = kind.load(targets, short).expect("measures");
            assert_eq!(seen.failed, 0, "{}", kind.name());
            match kind {
                Kind::Bulk(..) => assert!(seen.bytes > 0, "{}", kind.name()),
                Kind::Latency(rate) => assert_eq!(seen.latencies_us.len(), rate as usize / 10),
                _ => assert!(seen.done > 0, "{}", kind.name()),
            }
        }
        let seen = http::closed_loop_built_in(target, 4, short).expect("measures");
        assert!(seen.done > 0 && seen.failed == 0);
    }

    #[test]
    fn cases_are_chosen_by_name() {
        assert_eq!(all(Some("latency")).len(), 2);
        assert!(all(Some("nonsense")).is_empty());
    }
}
