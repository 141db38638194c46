//! `linkspan site`: makes a standalone site and runs it.

/// `site init`.
pub(crate) mod init;
mod run;
/// The text of site.yaml.
mod template;

use anyhow::Context;
use std::path::Path;

use linkspan_proto::manifest::site_from_yaml;
use linkspan_proto::resources::Site;

use crate::args::SiteCommand;
use crate::commands::Exit;

/// The file that makes a folder a site.
pub(crate) const SITE_FILE: &str = "site.yaml";

/// Runs the command.
pub(crate) fn run(command: SiteCommand) -> anyhow::Result<Exit> {
    match command {
        SiteCommand::Init(args) => init::run(&args),
        SiteCommand::Run(args) => run::run(&args),
    }
}

/// Reads `dir/site.yaml`.
pub(crate) fn load(dir: &Path) -> anyhow::Result<Site> {
    let file = dir.join(SITE_FILE);
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!(
            "{} cannot be read; --dir names the folder of a site, and `linkspan site init NAME --dir DIR` makes one",
            file.display()
        )
    })?;
    Ok(site_from_yaml(&text, &file.display().to_string())?)
}
