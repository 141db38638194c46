//! What is measured, and how one measurement goes: CPU time before, load, CPU time after; all paths in turns.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;

use crate::bed::{self, Bed};
use crate::load::Seen;
use crate::paths::{Name, Path, Targets};
use crate::report::{self, Case, Figure, Unit};
use crate::tcp::{self, Way};
use crate::{http, idle, process};

/// Decimal: network people's gigabyte, and CPU seconds a gigabyte.
const GIGABYTE: f64 = 1e9;

/// Connections of the HTTP/1.1 throughput case.
const KEEP_ALIVE_CONNECTIONS: usize = 32;

/// New connections of one round of the first byte, one after the other.
const FIRST_BYTES: usize = 20;

/// Transfers on a long path need so many times the time of the other cases: congestion control takes seconds to settle.
const LONG: u32 = 3;

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Memory of a gateway that nothing goes through.
    IdleMemory,
    /// Memory that so many idle connections take, each.
    ConnectionMemory(usize),
    /// Time to the first byte over a new connection; through gateways that were just started, or that have carried others.
    FirstByte { protocol: Protocol, cold: bool },
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
    /// What is left to a direct TCP transfer beside one through the path.
    Fairness,
}

/// What a new connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Tcp,
}

/// The long path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wan {
    /// Loses nothing but what its queue has no room for.
    Clean,
    /// Loses in each direction.
    Lossy,
}

/// One case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What.
    pub(crate) kind: Kind,
    /// Through the relay, or over the wire.
    pub(crate) wan: Option<Wan>,
}

/// All cases whose name holds `only`.
pub(crate) fn all(only: Option<&str>) -> Vec<Plan> {
    let first_byte = |cold| [Protocol::Http, Protocol::Tcp].map(|protocol| Kind::FirstByte { protocol, cold });
    let mut lan = vec![Kind::IdleMemory, Kind::ConnectionMemory(1_000), Kind::ConnectionMemory(10_000)];
    lan.extend(first_byte(true));
    lan.extend(first_byte(false));
    lan.extend([Kind::Requests, Kind::RequestsH2, Kind::Latency(200), Kind::Latency(2000), Kind::Connections]);
    lan.extend(
        [1, 8]
            .into_iter()
            .flat_map(|connections| [Kind::Bulk(connections, Way::Down), Kind::Bulk(connections, Way::Up)]),
    );
    let mut plans: Vec<Plan> = lan.into_iter().map(|kind| Plan { kind, wan: None }).collect();
    let wan = |wan| move |kind| Plan { kind, wan: Some(wan) };
    plans.extend(first_byte(true).into_iter().chain(first_byte(false)).map(wan(Wan::Clean)));
    plans.extend([Kind::Bulk(1, Way::Down), Kind::Fairness].map(wan(Wan::Clean)));
    plans.extend([Kind::Latency(200), Kind::Bulk(1, Way::Down)].map(wan(Wan::Lossy)));
    plans.retain(|plan| only.is_none_or(|only| plan.name().contains(only)));
    plans
}

impl Plan {
    /// As the table has it.
    pub(crate) fn name(self) -> String {
        let name = self.kind.name();
        match (self.wan, self.kind) {
            (None, _) => name,
            (Some(Wan::Clean), _) => format!("WAN: {name}"),
            // Not to be chosen by the name of the short path's case, which takes seconds.
            (Some(Wan::Lossy), Kind::Latency(rate)) => format!("lossy WAN: HTTP/1.1, {rate} requests/s"),
            (Some(Wan::Lossy), _) => format!("lossy WAN: {name}"),
        }
    }

    fn unit(self) -> Unit {
        match self.kind {
            Kind::IdleMemory => Unit::Mebibytes,
            Kind::ConnectionMemory(_) => Unit::Kibibytes,
            Kind::FirstByte { .. } if self.wan.is_some() => Unit::RoundTrips,
            Kind::FirstByte { .. } => Unit::MillisecondsEach,
            Kind::Requests | Kind::RequestsH2 => Unit::RequestsPerSecond,
            Kind::Latency(_) => Unit::Milliseconds,
            Kind::Connections => Unit::ConnectionsPerSecond,
            Kind::Bulk(..) => Unit::GigabitsPerSecond,
            Kind::Fairness => Unit::FairShares,
        }
    }

    /// Whether a path carries it.
    fn fits(self, path: &Path) -> bool {
        match self.kind {
            Kind::Requests | Kind::Latency(_) | Kind::FirstByte { protocol: Protocol::Http, cold: false } => true,
            Kind::RequestsH2 => path.targets.h2.is_some(),
            Kind::Connections | Kind::Bulk(..) | Kind::FirstByte { protocol: Protocol::Tcp, cold: false } => {
                path.targets.tcp.is_some()
            }
            Kind::FirstByte { protocol: Protocol::Http, cold: true } => path.name != Name::Direct,
            Kind::IdleMemory => path.name != Name::Direct,
            Kind::FirstByte { protocol: Protocol::Tcp, cold: true } | Kind::ConnectionMemory(_) | Kind::Fairness => {
                path.name != Name::Direct && path.targets.tcp.is_some()
            }
        }
    }

    /// Why it cannot be measured on this machine.
    fn missing(self, bed: &Bed) -> Option<&'static str> {
        match self.kind {
            Kind::RequestsH2 if bed.setting.backends.h2.is_none() => Some("nginx is not installed"),
            Kind::RequestsH2 if process::find("h2load").is_none() => {
                Some("h2load is not installed (Debian: nghttp2-client)")
            }
            _ => None,
        }
    }
}

impl Kind {
    fn name(self) -> String {
        match self {
            Self::IdleMemory => "memory, idle".to_owned(),
            Self::ConnectionMemory(connections) => format!("memory of a connection, {connections} idle"),
            Self::FirstByte { protocol, cold } => {
                let protocol = if protocol == Protocol::Http { "HTTP" } else { "TCP" };
                format!("first byte, {protocol}, {}", if cold { "cold" } else { "warm" })
            }
            Self::Requests => format!("HTTP/1.1 throughput, {KEEP_ALIVE_CONNECTIONS} connections"),
            Self::RequestsH2 => "HTTP/2 throughput, 8 connections of 16 streams".to_owned(),
            Self::Latency(rate) => format!("HTTP/1.1 latency at {rate} requests/s"),
            Self::Connections => "new TCP connections".to_owned(),
            Self::Bulk(connections, way) => {
                let way = if way == Way::Down { "down" } else { "up" };
                let plural = if connections == 1 { "" } else { "s" };
                format!("TCP bulk {way}, {connections} connection{plural}")
            }
            Self::Fairness => "a TCP transfer beside".to_owned(),
        }
    }

    fn load(self, targets: Targets, duration: Duration) -> anyhow::Result<Seen> {
        let tcp = || targets.tcp.context("the path carries no raw TCP");
        match self {
            Self::Requests => http::closed_loop(targets.http, KEEP_ALIVE_CONNECTIONS, duration),
            Self::RequestsH2 => http::closed_loop_h2(targets.h2.context("the path carries no HTTP/2")?, duration),
            Self::Latency(rate) => http::open_loop(targets.http, rate, duration),
            Self::Connections => tcp::connections(tcp()?, duration),
            Self::Bulk(connections, way) => tcp::bulk(tcp()?, connections, way, duration),
            _ => anyhow::bail!("{} is no load", self.name()),
        }
    }
}

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Seconds of each measurement.
    pub(crate) seconds: f64,
    /// How often.
    pub(crate) rounds: usize,
    /// The path's round trip, where it has one that matters.
    pub(crate) rtt: Duration,
}

/// Measures one case on all paths, in turns; nothing when it cannot be measured here.
pub(crate) fn measure(
    bed: &mut Bed,
    plan: Plan,
    effort: Effort,
    left_out: &mut Vec<String>,
) -> anyhow::Result<Option<BTreeMap<Name, Figure>>> {
    let name = plan.name();
    if let Some(why) = plan.missing(bed) {
        left_out.push(format!("{name}: {why}"));
        return Ok(None);
    }
    let paths: Vec<Name> = bed.paths.iter().filter(|path| plan.fits(path)).map(|path| path.name).collect();
    if !paths.iter().any(|path| *path != Name::Direct) {
        return Ok(None);
    }
    eprintln!("linkspan-bench: {name} ...");
    // Memory is not a matter of chance, and a gateway does not give it back.
    let rounds = if matches!(plan.kind, Kind::IdleMemory | Kind::ConnectionMemory(_)) { 1 } else { effort.rounds };
    let mut figures: BTreeMap<Name, Vec<Figure>> = BTreeMap::new();
    for _ in 0..rounds {
        for path in &paths {
            let figure = one(bed, *path, plan, effort).with_context(|| format!("{name}, {}", path.label()))?;
            figures.entry(*path).or_default().push(figure);
            bed.must_run()?;
        }
    }
    Ok(Some(figures.into_iter().filter_map(|(name, rounds)| Some((name, report::median(rounds)?))).collect()))
}

/// The case of the figures.
pub(crate) fn case(plan: Plan, figures: BTreeMap<Name, Figure>, targets: &[report::rows::Target]) -> Case {
    Case::new(plan.name(), plan.unit(), figures, targets)
}

fn one(bed: &mut Bed, name: Name, plan: Plan, effort: Effort) -> anyhow::Result<Figure> {
    if let Kind::FirstByte { cold: true, .. } | Kind::IdleMemory = plan.kind {
        bed.restart(name)?;
    }
    let direct = bed.setting.direct;
    let path = bed.paths.iter().find(|path| path.name == name).context("the path runs")?;
    match plan.kind {
        Kind::IdleMemory => {
            let figure = idle_memory(path);
            warm_up(bed, name)?;
            Ok(figure)
        }
        Kind::ConnectionMemory(connections) => {
            let figure = connection_memory(path, connections, bed.setting.descriptors);
            // What ten thousand connections leave behind is not the next case's.
            bed.restart(name)?;
            warm_up(bed, name)?;
            figure
        }
        Kind::FirstByte { protocol, cold } => {
            let figure = first_byte(path, protocol, cold, plan.wan.is_some().then_some(effort.rtt))?;
            if cold {
                warm_up(bed, name)?;
            }
            Ok(figure)
        }
        Kind::Fairness => bed.network.with_tcp_buffers(LARGE_BUFFERS, || fairness(path, direct, effort)),
        _ => load(path, plan, effort),
    }
}

fn warm_up(bed: &Bed, name: Name) -> anyhow::Result<()> {
    bed.paths.iter().find(|path| path.name == name).map_or(Ok(()), bed::warm_up)
}

/// How long a gateway has before its memory is read: what it does after a start or after connections came is done.
const SETTLE: Duration = Duration::from_secs(2);

fn idle_memory(path: &Path) -> Figure {
    std::thread::sleep(SETTLE);
    let memory = path.memory();
    let most = |what: fn(&process::Memory) -> f64| memory.iter().map(what).fold(0.0, f64::max);
    Figure { value: most(|memory| memory.rss), pss: Some(most(|memory| memory.pss)), ..Figure::default() }
}

/// What each connection adds to the gateway to which it adds more.
fn connection_memory(path: &Path, wanted: usize, descriptors: u64) -> anyhow::Result<Figure> {
    // A gateway has two descriptors for a connection unless it has a link; room for the rest.
    let most = usize::try_from(descriptors.saturating_sub(500) / 2)?;
    let possible = if path.name == Name::Linkspan { wanted } else { wanted.min(most) };
    let target = path.targets.tcp.context("the path carries no raw TCP")?;
    bed::warm_up(path)?;
    std::thread::sleep(SETTLE);
    let before = path.memory();
    let open = idle::open(target, possible);
    anyhow::ensure!(!open.is_empty(), "no connection came up");
    std::thread::sleep(SETTLE);
    let after = path.memory();
    let each = |what: fn(&process::Memory) -> f64| {
        let grown = before.iter().zip(&after).map(|(before, after)| what(after) - what(before));
        grown.fold(0.0, f64::max) * 1024.0 / open.len() as f64
    };
    let failed = (possible - open.len()) as u64;
    if possible < wanted {
        eprintln!("linkspan-bench: {possible} connections through {}: descriptors end there", path.name.label());
    }
    Ok(Figure { value: each(|memory| memory.rss), pss: Some(each(|memory| memory.pss)), failed, ..Figure::default() })
}

/// In round trips where the path has one, else in milliseconds.
fn first_byte(path: &Path, protocol: Protocol, cold: bool, rtt: Option<Duration>) -> anyhow::Result<Figure> {
    let once = || match protocol {
        Protocol::Http => http::first_byte(path.targets.http),
        Protocol::Tcp => idle::first_byte(path.targets.tcp.context("the path carries no raw TCP")?),
    };
    let times = if cold { 1 } else { FIRST_BYTES };
    let mut seen = Vec::with_capacity(times);
    for _ in 0..times {
        let time = once()?.as_secs_f64();
        seen.push(rtt.map_or(time * 1e3, |rtt| time / rtt.as_secs_f64()));
    }
    seen.sort_by(f64::total_cmp);
    Ok(Figure { value: seen[(seen.len() - 1) / 2], ..Figure::default() })
}

/// Ten times what is in flight at 1 Gbit/s and 50 ms.
const LARGE_BUFFERS: u64 = 64 * 1024 * 1024;

/// How long congestion control has to find a balance before shares are measured.
const BALANCE: Duration = Duration::from_secs(5);

fn fairness(path: &Path, direct: Targets, effort: Effort) -> anyhow::Result<Figure> {
    let tcp = |targets: Targets| targets.tcp.context("the path carries no raw TCP");
    let duration = Duration::from_secs_f64(effort.seconds) * LONG;
    let shares = tcp::beside(tcp(direct)?, tcp(path.targets)?, BALANCE, duration)?;
    anyhow::ensure!(shares.alone > 0.0, "the direct transfer stands still");
    // Half of what it gets alone is its fair share of two.
    Ok(Figure { value: shares.beside / (shares.alone / 2.0), beside: Some(shares.other / 1e9), ..Figure::default() })
}

fn load(path: &Path, plan: Plan, effort: Effort) -> anyhow::Result<Figure> {
    let mut duration = Duration::from_secs_f64(effort.seconds);
    if plan.wan.is_some() {
        duration *= LONG;
    }
    let before = path.cpu();
    let seen = plan.kind.load(path.targets, duration)?;
    let spent = path.cpu().into_iter().zip(before).map(|((site, after), (_, before))| (site, after.since(&before)));
    // What the work is that CPU time is divided by: thousands of requests or connections, or gigabytes.
    let work = match plan.kind {
        Kind::Bulk(..) => seen.bytes as f64 / GIGABYTE,
        _ => (seen.done + seen.failed) as f64 / 1e3,
    };
    let cpu = spent.map(|(site, seconds)| (site.to_owned(), if work > 0.0 { seconds / work } else { 0.0 })).collect();
    let value = match plan.kind {
        Kind::Latency(_) => seen.percentile_ms(0.5).unwrap_or_default(),
        Kind::Bulk(..) => seen.bytes as f64 * 8.0 / 1e9 / seen.elapsed.as_secs_f64(),
        _ => seen.per_second(),
    };
    let p99 = matches!(plan.kind, Kind::Latency(_)).then(|| seen.percentile_ms(0.99).unwrap_or_default());
    Ok(Figure { value, p99, failed: seen.failed, cpu, ..Figure::default() })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;
    use crate::backend;

    /// The backend in a thread of this test; it ends with the test's process.
    fn start() -> SocketAddr {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = backend::listen(Ipv4Addr::LOCALHOST).expect("a port");
                tell.send(listener.local_addr().expect("bound")).expect("heard");
                backend::accept(listener).await;
            });
        });
        told.recv().expect("the backend listens")
    }

    #[test]
    fn every_generator_works_on_the_direct_path() {
        let target = start();
        let targets = Targets { http: target, h2: None, tcp: Some(target) };
        let short = Duration::from_millis(100);
        let kinds = [Kind::Latency(200), Kind::Connections, Kind::Bulk(1, Way::Down), Kind::Bulk(8, Way::Up)];
        for kind in kinds {
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
        let path = Path { name: Name::Direct, targets, gateways: Vec::new(), controllers: Vec::new() };
        for protocol in [Protocol::Http, Protocol::Tcp] {
            assert!(first_byte(&path, protocol, false, None).expect("measures").value > 0.0);
        }
        assert_eq!(idle::open(target, 40).len(), 40);
        let shares = tcp::beside(target, target, short, short).expect("measures");
        assert!(shares.alone > 0.0 && shares.beside > 0.0 && shares.other > 0.0);
    }

    #[test]
    fn cases_are_chosen_by_name() {
        assert_eq!(all(Some("latency")).len(), 2);
        assert_eq!(all(Some("WAN")).len(), 8);
        assert!(all(Some("nonsense")).is_empty());
    }
}
