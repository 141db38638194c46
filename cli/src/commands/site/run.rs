//! being written
pub(super) fn run(_args: &crate::args::SiteRunArgs) -> anyhow::Result<crate::commands::Exit> {
    anyhow::bail!("being written")
}
