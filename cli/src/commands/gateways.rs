//! `linkspan gateways`

use crate::args::GatewaysArgs;
use crate::commands::Exit;

/// Runs the command.
pub(crate) async fn run(_args: &GatewaysArgs) -> anyhow::Result<Exit> {
    anyhow::bail!("being written")
}
