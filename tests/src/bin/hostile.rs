//! A hostile peer: authenticated, and up to anything. `linkspan-hostile --help` lists what it can do.

#![allow(clippy::disallowed_methods, reason = "test code: its tasks and settings are its own")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use linkspan_tests::hostile::{Attack, Plan, Target};
use linkspan_tests::peer;

#[derive(Parser)]
struct Args {
    /// What to do.
    attack: Attack,
    /// The gateway's link port.
    #[arg(long, conflicts_with = "listen", required_unless_present = "listen")]
    to: Option<SocketAddr>,
    /// Where to wait for a gateway that dials.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// The folder with leaf.der and key.der of the peer's gateway; clients have none.
    #[arg(long)]
    identity: Option<PathBuf>,
    /// The cluster that the peer is.
    #[arg(long, default_value = "west")]
    cluster: String,
    /// A workload of it, by its SPIFFE ID.
    #[arg(long, default_value = "spiffe://west.example/ns/shop/sa/web")]
    source: String,
    /// A service that the gateway exports.
    #[arg(long, default_value = "shop/web")]
    service: String,
    /// Its port.
    #[arg(long, default_value_t = 80)]
    port: u16,
    /// Connections at the same time.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Streams on each of them, where the attack is to hold some.
    #[arg(long, default_value_t = 64)]
    streams: usize,
    /// How long, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    millis: u64,
}

// One thread: an attack that stands still does so as a whole, and one attacker has one core.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let identity = match (&args.identity, args.attack) {
        (Some(dir), _) => peer::load(dir).context("the identity cannot be read")?,
        (None, Attack::SlowClients) => peer::Authority::new("nobody.example").gateway(),
        (None, _) => bail!("a peer needs --identity"),
    };
    let target = Target {
        address: args.to.or(args.listen).context("--to or --listen")?,
        is_listening: args.listen.is_some(),
        cluster: args.cluster,
        source: args.source,
        service: args.service,
        port: args.port,
    };
    let duration = Duration::from_millis(args.millis);
    let plan = Plan::new(target, identity, args.connections, args.streams, duration);
    let report = args.attack.run(plan).await;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
