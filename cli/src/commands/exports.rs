//! `linkspan exports`

use crate::args::ExportsArgs;
use crate::commands::Exit;

/// Runs the command.
pub(crate) async fn run(_args: &ExportsArgs) -> anyhow::Result<Exit> {
    anyhow::bail!("being written")
}
