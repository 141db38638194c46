//! Measures a pair of gateways against the direct path and against pairs of haproxy and nginx, in one run on one machine.
//!
//! ```text
//! east: load, gateway 1                     west: gateway 2, backend
//! direct       load ------------------------------------> backend
//! haproxy-h2   load --> haproxy ==HTTP/2, mutual TLS==> haproxy --> backend
//! haproxy-tcp  load --> haproxy ==mutual TLS==========> haproxy --> backend
//! nginx        load --> nginx   ==mutual TLS==========> nginx   --> backend
//! linkspan     load --> site    ==QUIC, mutual TLS====> site    --> backend
//! ```
//!
//! East and west are network namespaces with a veth pair or a WAN relay between them. README.md beside this crate explains
//! what is measured and what a byte costs on its way.

mod backend;
mod bed;
mod cases;
mod certificates;
mod cleanup;
mod haproxy;
mod http;
mod idle;
mod linkspan;
mod load;
mod lookup;
mod network;
mod nginx;
mod paths;
mod process;
mod relay;
mod report;
mod run;
mod targets;
mod tcp;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::network::Congestion;

/// Measures a pair of gateways against the direct path and against pairs of haproxy and nginx.
#[derive(Debug, Parser)]
#[command(
    name = "linkspan-bench",
    after_help = "Examples:\n  benches/run                              build, measure, print the table\n  linkspan-bench --only latency             only the cases whose name holds \"latency\"\n  linkspan-bench --only WAN --tcp bbr       the long path, with BBR in the kernel's TCP\n  linkspan-bench --rounds 1 --seconds 1     a first look"
)]
struct Args {
    /// Seconds of each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    seconds: f64,
    /// How often each case is measured, all paths in turns; the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Only cases whose name holds this text
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only these paths besides linkspan: direct, haproxy-h2, haproxy-tcp, nginx
    #[arg(long, value_name = "PATH", value_delimiter = ',')]
    paths: Vec<String>,
    /// Threads of each gateway's data path; haproxy and nginx always have one
    #[arg(long, value_name = "N", default_value_t = 1)]
    workers: u16,
    /// MTU of the wire between the namespaces, up to 9000
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u16).range(1280..=9000))]
    mtu: u16,
    /// Congestion control of the kernel's TCP
    #[arg(long = "tcp", value_name = "NAME", default_value = "cubic")]
    congestion: Congestion,
    /// Round trip of the WAN, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 50.0)]
    rtt: f64,
    /// Loss of the lossy WAN in each direction, percent
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    loss: f64,
    /// Rate of the WAN, Mbit/s
    #[arg(long, value_name = "MBIT", default_value_t = 1000)]
    rate: u64,
    /// What the link is carried by
    #[arg(long, value_name = "TRANSPORT", default_value = "auto")]
    transport: Transport,
    /// The linkspan program [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    linkspan: Option<PathBuf>,
    /// Everything on loopback, without namespaces and without the WAN; needs no root
    #[arg(long)]
    loopback: bool,
    /// Only check the WAN relay against its own settings
    #[arg(long)]
    check_relay: bool,
    /// Keep the folder with configuration and logs, and say where it is
    #[arg(long)]
    keep: bool,
    /// Write a picture of the result to this file, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// A table for people, or one JSON document
    #[arg(long, short = 'o', value_name = "FORMAT", default_value = "table")]
    output: Output,
    /// Run as the backend on this address; started by the benchmark itself
    #[arg(long, hide = true, value_name = "ADDRESS")]
    serve: Option<Ipv4Addr>,
}

/// As a Link spells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Transport {
    #[default]
    Auto,
    Quic,
    Tcp,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.serve {
        Some(address) => backend::serve(address),
        None => run::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("linkspan-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
