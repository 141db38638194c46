//! One run: the network, the paths, the cases, the report.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;

use crate::bed::{self, Bed};
use crate::cases::{self, Effort, Plan, Wan};
use crate::network::{Network, Wire};
use crate::paths::Name;
use crate::relay::{Settings, check};
use crate::report::{self, Report};
use crate::{Args, Output, cleanup, load, targets};

/// Descriptors that the run asks for: ten thousand connections have two each in some gateways.
const DESCRIPTORS: u64 = 65_536;

/// Runs and prints.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    validate(args)?;
    cleanup::on_signals()?;
    load::sharpen_timers();
    // What cannot be raised limits the idle connections, and the case says so.
    rlimit::increase_nofile_limit(DESCRIPTORS).ok();
    let possible = if args.loopback { Err("--loopback was given") } else { Network::possible() };
    if args.check_relay {
        possible.map_err(|why| anyhow::anyhow!("the relay needs namespaces: {why}"))?;
        return check_relay(args);
    }
    let mut report =
        Report { environment: report::machine(), left_out: Vec::new(), relay: Vec::new(), cases: Vec::new() };
    let names = wanted(args, &mut report.left_out)?;
    let options = bed::Options {
        linkspan: args.linkspan.clone(),
        workers: args.workers,
        transport: args.transport,
        paths: names,
    };
    let linkspan = bed::program(&options)?;
    let plans = cases::all(args.only.as_deref());
    anyhow::ensure!(!plans.is_empty(), "no case has {:?} in its name", args.only.as_deref().unwrap_or_default());
    let (wan, lan): (Vec<Plan>, Vec<Plan>) = plans.into_iter().partition(|plan| plan.wan.is_some());
    let environment = &mut report.environment;
    environment.linkspan = bed::version(&linkspan);
    environment.mtu = args.mtu;
    environment.workers = args.workers;
    environment.transport = args.transport.name().to_owned();
    environment.congestion = args.congestion.name().to_owned();
    environment.rounds = args.rounds;
    environment.seconds = args.seconds;
    environment.wire = if possible.is_ok() { "namespaces, veth" } else { "loopback" }.to_owned();
    if !lan.is_empty() {
        let network = match possible {
            Ok(()) => Network::namespaces(Wire::Veth, args.mtu, args.congestion)?,
            Err(why) => {
                report.left_out.push(format!("namespaces: {why}; everything is on loopback, whose MTU is 65,536"));
                Network::loopback()
            }
        };
        measure(args, network, &options, &lan, &mut report)?;
    }
    if !wan.is_empty() {
        match possible {
            Ok(()) => {
                let network = Network::namespaces(Wire::Relay, args.mtu, args.congestion)?;
                report.relay = check::run(&network)?;
                measure(args, network, &options, &wan, &mut report)?;
            }
            Err(why) => report.left_out.push(format!("WAN: {why}")),
        }
    }
    print(args, &report)
}

fn validate(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(args.seconds > 0.0 && args.seconds.is_finite(), "--seconds must be more than 0");
    anyhow::ensure!(args.rounds > 0, "--rounds must be at least 1");
    anyhow::ensure!((0.0..=10_000.0).contains(&args.rtt), "--rtt must be from 0 to 10000 milliseconds");
    anyhow::ensure!((0.0..=100.0).contains(&args.loss), "--loss must be from 0 to 100 percent");
    anyhow::ensure!(args.rate > 0, "--rate must be more than 0");
    Ok(())
}

/// The paths that the user wants and that this machine has.
fn wanted(args: &Args, left_out: &mut Vec<String>) -> anyhow::Result<Vec<Name>> {
    if let Some(unknown) = args.paths.iter().find(|path| !Name::ALL.iter().any(|name| name.label() == **path)) {
        let known: Vec<&str> = Name::ALL.map(Name::label).to_vec();
        anyhow::bail!("--paths: there is no {unknown:?}; it can be {}", known.join(", "));
    }
    let chosen = |name: Name| {
        args.paths.is_empty() || name == Name::Linkspan || args.paths.iter().any(|path| path == name.label())
    };
    let mut names = Vec::new();
    for name in Name::ALL.into_iter().filter(|name| chosen(*name)) {
        match name.missing() {
            None => names.push(name),
            Some(why) => left_out.push(format!("{}: {why}", name.label())),
        }
    }
    Ok(names)
}

fn measure(
    args: &Args,
    network: Network,
    options: &bed::Options,
    plans: &[Plan],
    report: &mut Report,
) -> anyhow::Result<()> {
    let rtt = Duration::from_secs_f64(args.rtt / 1e3);
    let rate = args.rate * 1_000_000;
    let wan = |wan: Wan| Settings {
        delay: rtt / 2,
        jitter: Duration::ZERO,
        loss: if wan == Wan::Lossy { args.loss / 100.0 } else { 0.0 },
        rate: Some(rate),
        // One bandwidth-delay product, the rule for a router's buffer, and never less than a switch has.
        queue: ((rate as f64 / 8.0 * rtt.as_secs_f64()) as u64).max(150_000),
    };
    // From the start: congestion control remembers the shortest round trip that it saw for longer than a case takes.
    let mut current = Wan::Clean;
    if let Some(relay) = &network.relay {
        relay.set(wan(current));
    }
    let mut bed = Bed::start(network, options)?;
    bed.http_backend.clone_into(&mut report.environment.http_backend);
    let effort = Effort { seconds: args.seconds, rounds: args.rounds, rtt };
    let result = plans.iter().try_for_each(|plan| {
        if let (Some(relay), Some(wanted)) = (&bed.network.relay, plan.wan.filter(|wanted| *wanted != current)) {
            relay.set(wan(wanted));
            current = wanted;
        }
        let figures: Option<BTreeMap<_, _>> = cases::measure(&mut bed, *plan, effort, &mut report.left_out)?;
        let targets = targets::of(*plan, args.transport, args.mtu, args.congestion);
        if let Some(figures) = figures {
            let case = cases::case(*plan, figures, &targets);
            eprintln!("linkspan-bench: {}", case.summary());
            report.cases.push(case);
        }
        anyhow::Ok(())
    });
    if args.keep || result.is_err() {
        eprintln!("linkspan-bench: configuration and logs are in {}", bed.keep().display());
    }
    result
}

fn check_relay(args: &Args) -> anyhow::Result<()> {
    let network = Network::namespaces(Wire::Relay, args.mtu, args.congestion)?;
    let checks = check::run(&network)?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&checks)?),
        Output::Table => checks.iter().for_each(|check| println!("{}", check.line().join("  "))),
    }
    anyhow::ensure!(checks.iter().all(|check| check.passed), "the relay is not as set");
    Ok(())
}

fn print(args: &Args, report: &Report) -> anyhow::Result<()> {
    if let Some(file) = &args.plot {
        std::fs::write(file, report.plot()).with_context(|| format!("cannot write {}", file.display()))?;
    }
    match args.output {
        Output::Table => print!("{}", report.table()),
        Output::Json => println!("{}", serde_json::to_string_pretty(report)?),
    }
    Ok(())
}
