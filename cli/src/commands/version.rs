//! `linkspan version` and `linkspan completions`: what this binary says about itself.

use std::io::Write;

use clap::CommandFactory;
use serde::Serialize;

use crate::args::{Cli, CompletionsArgs, Format, VersionArgs};
use crate::commands::Exit;
use crate::output;

/// What `version` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    version: &'static str,
    /// The link's protocol, as the TLS handshake names it (ALPN).
    link_protocol: &'static str,
    /// "release", or "debug" for a build with the slow checks on.
    profile: &'static str,
    target: String,
}

/// Prints the version.
pub(crate) fn version(args: &VersionArgs) -> anyhow::Result<Exit> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        link_protocol: "linkspan/1",
        profile: if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        },
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
    };
    match args.output.output {
        Format::Json => output::json::print(&version)?,
        Format::Table => {
            output::print(&format!(
                "linkspan {} ({} build, {}, link protocol {})\n",
                version.version, version.profile, version.target, version.link_protocol
            ))?;
        }
    }
    Ok(Exit::Done)
}

/// Prints a completion script.
pub(crate) fn completions(args: &CompletionsArgs) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "linkspan", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(Exit::Done)
}
