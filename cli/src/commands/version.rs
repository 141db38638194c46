//! `linkspan version` and `linkspan completions`: what this binary says about itself.

use anyhow::Context;
use clap::CommandFactory;
use linkspan_runtime::build_info::{self, BuildInfo};
use serde::Serialize;

use crate::args::{Cli, CompletionsArgs, Format, VersionArgs};
use crate::commands::Exit;
use crate::output;

/// What `version` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    #[serde(flatten)]
    build: BuildInfo,
    /// The link's protocol, as the TLS handshake names it (ALPN).
    link_protocol: &'static str,
    target: String,
}

/// Prints the version.
pub(crate) fn version(args: &VersionArgs) -> anyhow::Result<Exit> {
    let version = Version {
        build: build_info::current(),
        link_protocol: "linkspan/1",
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
    };
    match args.output.output {
        Format::Json => output::json::print(&version)?,
        Format::Table | Format::Wide => {
            output::print(&format!(
                "linkspan {} ({} build of commit {}, {}, link protocol {})\n",
                version.build.version,
                version.build.profile,
                version.build.commit,
                version.target,
                version.link_protocol
            ))?;
        }
    }
    Ok(Exit::Done)
}

/// Prints a completion script.
pub(crate) fn completions(args: &CompletionsArgs) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "linkspan", &mut script);
    output::print(&String::from_utf8(script).context("the completion script is not text")?)?;
    Ok(Exit::Done)
}
