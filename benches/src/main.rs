//! Measures a pair of gateways against the direct path, in one run on one machine.
//!
//! ```text
//! direct    load ------------------------------------> backend
//! linkspan  load --> site east ==QUIC, mutual TLS==> site west --> backend
//! ```
//!
//! Both sites are processes of the `linkspan` program as users start it; the backend is nginx where it is installed (for
//! HTTP) and a small server of this program (for raw TCP). README.md beside this crate explains what is measured and what
//! a byte costs on its way.

mod backend;
mod cases;
mod http;
mod load;
mod lookup;
mod pair;
mod process;
mod report;
mod tcp;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// Measures a pair of gateways against the direct path.
#[derive(Debug, Parser)]
#[command(
    name = "linkspan-bench",
    after_help = "Examples:\n  benches/run                        build, measure, print the table\n  linkspan-bench --only latency       only the cases whose name holds \"latency\"\n  linkspan-bench --rounds 1 --seconds 2    a first look in under a minute"
)]
struct Args {
    /// Seconds of each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 4.0)]
    seconds: f64,
    /// How often each case is measured, direct and linkspan in turns; the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Only cases whose name holds this text
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Threads of each gateway's data path [default: what `linkspan site init` chooses]
    #[arg(long, value_name = "N")]
    workers: Option<u16>,
    /// What the link is carried by
    #[arg(long, value_name = "TRANSPORT", default_value = "auto")]
    transport: Transport,
    /// The linkspan program [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    linkspan: Option<PathBuf>,
    /// Keep the folder with both sites and their logs, and say where it is
    #[arg(long)]
    keep: bool,
    /// A table for people, or one JSON document
    #[arg(long, short = 'o', value_name = "FORMAT", default_value = "table")]
    output: Output,
    /// Run as the backend; started by the benchmark itself
    #[arg(long, hide = true)]
    serve: bool,
}

/// As a Link spells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Transport {
    #[default]
    Auto,
    Quic,
    Tcp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("linkspan-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    if args.serve {
        return backend::serve();
    }
    anyhow::ensure!(args.seconds > 0.0 && args.seconds.is_finite(), "--seconds must be more than 0");
    anyhow::ensure!(args.rounds > 0, "--rounds must be at least 1");
    let cases = cases::all(args.only.as_deref());
    anyhow::ensure!(!cases.is_empty(), "no case has {:?} in its name", args.only.as_deref().unwrap_or_default());
    load::sharpen_timers();
    let mut pair = pair::Pair::start(&pair::Options {
        linkspan: args.linkspan.clone(),
        workers: args.workers,
        transport: args.transport,
    })?;
    let report = cases::measure(&mut pair, &cases, args.seconds, args.rounds);
    if args.keep || report.is_err() {
        eprintln!("linkspan-bench: sites and logs are in {}", pair.keep().display());
    }
    let report = report?;
    match args.output {
        Output::Table => print!("{}", report.table()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(())
}
