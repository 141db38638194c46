//! What a standalone site says of itself: its folder, and the admin listeners of its processes.

use std::net::SocketAddr;

use linkspan_gateway::stat::Stat;
use linkspan_proto::configuration::LinkReport;

use super::facts::{ConfigPage, Facts, Listener};
use super::folder::{Folder, GatewayRun, gone};
use super::{http, occupant};

/// Asks the running gateway.
pub(crate) async fn facts(folder: &Folder) -> anyhow::Result<Facts> {
    let run = folder.gateway()?;
    ask(&run).await.map_err(|error| gone(error, "gateway", run.pid, folder.dir()))
}

/// Asks the gateway that runs as `run` says.
pub(crate) async fn ask(run: &GatewayRun) -> anyhow::Result<Facts> {
    let links: Vec<LinkReport> = http::json(run.admin, "/links").await?;
    let mut listeners: Vec<Listener> = http::json(run.admin, "/mirrors").await?;
    let closed: Vec<SocketAddr> =
        listeners.iter().filter(|one| !one.bound && one.transport.is_tcp()).map(|one| one.listen).collect();
    let mut occupants = occupant::find(run.pid, &closed);
    let connections = listeners.iter_mut().filter(|listener| listener.transport.is_tcp());
    connections.for_each(|listener| listener.occupant = occupants.remove(&listener.listen));
    let config: ConfigPage = http::json(run.admin, "/config").await?;
    let part = config.gateway;
    Ok(Facts::of(Some(part.resolved.cluster), links, listeners, part.resources))
}

/// The figures of the last `window` seconds.
pub(crate) async fn stat(folder: &Folder, window: u64) -> anyhow::Result<Stat> {
    let run = folder.gateway()?;
    http::json(run.admin, &format!("/stat?window={window}"))
        .await
        .map_err(|error| gone(error, "gateway", run.pid, folder.dir()))
}
