//! The `linkspan` command: runs a standalone site, links sites, and shows what the link does.
//!
//! `args` says what may be typed, `commands` does it (one verb per file), `output` prints it. Everything that a command
//! learns about a running site comes from the site's folder and from its admin listener, about a Kubernetes cluster from its API
//! server; nothing here is on the path of a byte, except `site run` and `demo`, which start the gateway and the controller that are.

mod args;
/// Asks a running site or a Kubernetes cluster.
mod client;
mod commands;
mod output;

use std::process::ExitCode;

use clap::Parser;
use linkspan_runtime::build_info::{self, Commit};

/// Reads the arguments, runs the command, turns the result into the exit code.
///
/// 0: done. 1: failed, or a check did not pass. 2: wrong arguments (clap prints those itself).
fn main() -> ExitCode {
    build_info::built_from(const { Commit::newest(include_str!(env!("LINKSPAN_REFLOG"))) });
    let cli = args::Cli::parse();
    match commands::run(cli.command) {
        Ok(exit) => exit.into(),
        Err(error) => {
            output::error(&error);
            commands::failure(&error)
        }
    }
}
