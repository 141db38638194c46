//! `linkspan services`

use crate::args::ServicesArgs;
use crate::commands::Exit;

/// Runs the command.
pub(crate) async fn run(_args: &ServicesArgs) -> anyhow::Result<Exit> {
    anyhow::bail!("being written")
}
