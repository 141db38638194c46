//! `linkspan stat`

use crate::args::StatArgs;
use crate::commands::Exit;

/// Runs the command.
pub(crate) async fn run(_args: &StatArgs) -> anyhow::Result<Exit> {
    anyhow::bail!("being written")
}
