//! `linkspan site`: makes a standalone site and runs it.

/// `site init`.
pub(crate) mod init;
mod run;
/// The text of site.yaml.
mod template;

use std::io::ErrorKind;
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
    let text = std::fs::read_to_string(&file).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => anyhow::anyhow!(
            "there is no site in {} (no {SITE_FILE}); --dir names the folder of a site, and `linkspan site init NAME --dir \
             DIR` makes one",
            dir.display()
        ),
        _ => anyhow::Error::new(error).context(format!("cannot read {}", file.display())),
    })?;
    Ok(site_from_yaml(&text, &file.display().to_string())?)
}
