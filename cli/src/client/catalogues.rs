//! What the controller knows of the peers' catalogues.

use linkspan_proto::names::ClusterName;
use serde::Deserialize;

/// One peer's catalogue, as `/peers` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeerCatalogue {
    /// The peer.
    pub(crate) cluster: ClusterName,
    /// Whether the two controllers are connected.
    pub(crate) connected: bool,
    /// Whether the peer has confirmed on this connection that what we hold is what it has.
    pub(crate) synchronised: bool,
    /// How many services are in it.
    pub(crate) entries: usize,
    /// How many of them the peer has removed, and are kept for a while because it removed so many at once.
    #[serde(default)]
    pub(crate) withheld: usize,
    /// The version that we hold; none before the first.
    #[serde(default)]
    pub(crate) version: Option<u64>,
    /// Its hash, in hexadecimal digits.
    #[serde(default)]
    pub(crate) hash: Option<String>,
    /// Why the exchange stands still, if it does.
    #[serde(default)]
    pub(crate) message: Option<String>,
}
