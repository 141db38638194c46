//! What the load generator `linkspan-load` prints, and how a test runs it.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::process::program;
use crate::world::Host;

/// One run of `linkspan-load`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Requests sent.
    pub requests: usize,
    /// HTTP/2 requests that were sent again elsewhere, because GOAWAY said that they were never processed.
    #[serde(default)]
    pub resent: usize,
    /// Requests that got an answer below 500.
    pub good: usize,
    /// How many answers came from whom, by the header `x-cluster`.
    pub by_cluster: BTreeMap<String, usize>,
    /// Failures, in order.
    pub failures: Vec<Failure>,
    /// Latency from the intended sending time, milliseconds: p50, p95, p99.
    pub percentiles: [f64; 3],
    /// Every answer: milliseconds after the start when it was due, and its cluster (empty: failed).
    pub answers: Vec<(u64, String)>,
}

/// One request that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// When it was due, milliseconds after the start.
    pub at_millis: u64,
    /// What went wrong.
    pub what: String,
}

/// A load that runs beside the test.
pub struct Load {
    child: std::process::Child,
}

impl Load {
    /// Starts `rate` requests a second for `seconds` against `url` on `host`.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn start(host: &Host, url: &str, rate: u32, seconds: u32) -> Self {
        Self::run(host, url, rate, seconds, &[])
    }

    /// The same over HTTP/2 with prior knowledge.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn start_http2(host: &Host, url: &str, rate: u32, seconds: u32) -> Self {
        Self::run(host, url, rate, seconds, &["--http2"])
    }

    fn run(host: &Host, url: &str, rate: u32, seconds: u32, more: &[&str]) -> Self {
        let mut command: Command = host.command(program("linkspan-load"));
        command.args(["--url", url, "--rate", &rate.to_string(), "--seconds", &seconds.to_string()]).args(more);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("linkspan-load starts");
        Self { child }
    }

    /// Waits for the end of the run.
    ///
    /// # Panics
    /// When the load generator itself fails.
    pub fn finish(self) -> Report {
        let output = self.child.wait_with_output().expect("linkspan-load ends");
        assert!(output.status.success(), "linkspan-load failed");
        serde_json::from_slice(&output.stdout).expect("linkspan-load prints its report")
    }
}
