//! What the controller knows of the peers' catalogues.

use std::net::SocketAddr;

use linkspan_proto::names::ClusterName;
use serde::Deserialize;

use super::http;

/// One peer's catalogue, as `/peers` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeerCatalogue {
    /// The peer.
    pub(crate) cluster: ClusterName,
    /// The version that we hold.
    #[serde(default)]
    pub(crate) version: u64,
    /// Its hash, in hexadecimal digits.
    #[serde(default)]
    pub(crate) hash: String,
    /// How many services are in it.
    #[serde(default)]
    pub(crate) services: usize,
    /// Whether the peer has confirmed lately that this is what it has.
    #[serde(default)]
    pub(crate) current: bool,
    /// Why the exchange stands still, if it does.
    #[serde(default)]
    pub(crate) trouble: String,
}

/// Asks the controller.
pub(crate) async fn read(admin: SocketAddr) -> anyhow::Result<Vec<PeerCatalogue>> {
    http::json(admin, "/peers").await
}
