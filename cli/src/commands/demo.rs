//! being written
use crate::commands::Exit;
pub(crate) fn run(_args: crate::args::DemoArgs) -> anyhow::Result<Exit> {
    anyhow::bail!("being written")
}
