//! `linkspan check`

use crate::args::CheckArgs;
use crate::commands::Exit;

/// Runs the command.
pub(crate) async fn run(_args: &CheckArgs) -> anyhow::Result<Exit> {
    anyhow::bail!("being written")
}
