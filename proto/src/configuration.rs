//! What the controller tells the gateway, and what the gateway reports back.
//!
//! The gateway keeps the last good configuration and serves without the controller (DESIGN.md section 9). The
//! configuration is a set of small resources, each with a key of its own, so that a change of one endpoint costs one
//! small message and not a copy of everything:
//!
//! ```text
//! controller                                       gateway
//!     | <----------- Subscribe(stream Report) ------- |   dials the controller's socket
//!     | -- Update{reset, upserts...} ---------------> |
//!     | -- Update{upserts..., last} ----------------> |   applies all since `reset` as one atomic replace
//!     | <----------- Report{acknowledged: 7} -------- |
//!     | -- Update{upserts, removals, last} ---------> |   a delta, applied as one
//! ```
//!
//! Bodies are JSON: both ends are ours, of one cluster, and `/config` on the admin port shows the same text.

mod transport;
mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::identity::{Assurance, SpiffeId, TrustDomain};
use crate::names::{ClusterName, EndpointName, Namespace, PortName, ServiceAccountName, ServiceKey};

pub use transport::{Carrier, Congestion, Transport, TransportReason};
pub use wire::{ConfigurationError, Update, decode_report, decode_update, encode_report, encode_updates};

/// One resource of the gateway's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Resource {
    /// A peer cluster that may be linked. Key: cluster name.
    Peer(Peer),
    /// A local name that the egress side listens for. Key: [`Mirror::name`].
    Mirror(Mirror),
    /// A service of this cluster that peers may reach. Key: `namespace/name`.
    Export(Export),
    /// Ready capacity of one service in one peer cluster. Key: `cluster/namespace/name`.
    Capacity(Capacity),
    /// The client addresses of one workload. Key: `namespace/serviceAccount`.
    Workload(Workload),
}

/// The key of a [`Resource`]: its kind and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResourceKey {
    /// Which variant of [`Resource`].
    pub kind: ResourceKind,
    /// The name inside that kind.
    pub name: String,
}

/// The kinds of [`Resource`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ResourceKind {
    /// See [`Peer`].
    Peer,
    /// See [`Mirror`].
    Mirror,
    /// See [`Export`].
    Export,
    /// See [`Capacity`].
    Capacity,
    /// See [`Workload`].
    Workload,
}

impl Resource {
    /// The key under which the gateway keeps this resource.
    #[must_use]
    pub fn key(&self) -> ResourceKey {
        let (kind, name) = match self {
            Self::Peer(peer) => (ResourceKind::Peer, peer.cluster.to_string()),
            Self::Mirror(mirror) => (ResourceKind::Mirror, mirror.name.clone()),
            Self::Export(export) => (ResourceKind::Export, export.service.to_string()),
            Self::Capacity(capacity) => (ResourceKind::Capacity, format!("{}/{}", capacity.cluster, capacity.service)),
            Self::Workload(workload) => {
                (ResourceKind::Workload, format!("{}/{}", workload.namespace, workload.service_account))
            }
        };
        ResourceKey { kind, name }
    }
}

/// A peer cluster, from its Link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// The peer's cluster name.
    pub cluster: ClusterName,
    /// The only trust domain that this peer may speak for.
    pub trust_domain: TrustDomain,
    /// Root certificates of that trust domain, PEM.
    pub trust_bundle: String,
    /// `host:port` of the peer's gateways. Empty: the peer dials us (it sits behind NAT).
    #[serde(default)]
    pub addresses: Vec<String>,
    /// What an export without a policy of its own allows to this peer.
    #[serde(default)]
    pub default_policy: DefaultPolicy,
    /// What its gateways are dialled over.
    #[serde(default)]
    pub transport: Transport,
    /// What losses on the way to it mean.
    #[serde(default)]
    pub congestion: Congestion,
}

/// What holds for an export that no `ExportPolicy` selects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum DefaultPolicy {
    /// Every workload of the peer may call it.
    #[default]
    Allow,
    /// Nobody of that peer may call it.
    Deny,
}

/// A local name whose traffic leaves for one or several clusters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// The full DNS name that clients use, without a trailing dot: `web-west.shop.svc.cluster.local`,
    /// `web.shop.svc.clusterset.local`. Also the SNI that names it on the mTLS port.
    pub name: String,
    /// The service in the clusters that export it.
    pub service: ServiceKey,
    /// One endpoint of a headless service; `None` for the whole service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointName>,
    /// Where clients connect to.
    pub ports: Vec<MirrorPort>,
    /// Which clusters serve it, in order of preference. Never empty.
    pub tiers: Vec<Tier>,
}

/// What carries a port's traffic between client and gateway, and between gateway and backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortTransport {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl PortTransport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// For logs, metric labels and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Whether it is what a port has that does not say; such a port is written without it, as by earlier versions.
    #[must_use]
    pub const fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp)
    }
}

/// One port of a [`Mirror`]. A number may be there twice, once for each [`PortTransport`], as DNS has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorPort {
    /// The local address that the gateway listens on. On a site its port equals `port`; on Kubernetes it is allocated.
    pub listen: SocketAddr,
    /// The service's own port number, which together with `transport` names the port on the link.
    pub port: u16,
    /// What is listened for.
    #[serde(default, skip_serializing_if = "PortTransport::is_tcp")]
    pub transport: PortTransport,
    /// The port's name, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<PortName>,
    /// The declared protocol, as Kubernetes' `appProtocol` (`http`, `kubernetes.io/h2c`, `grpc`, `tcp`, ...).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

/// Clusters of equal preference. The healthy percent of a tier is `sum(weight x ready / total) / sum(weight)`, where `ready` and
/// `total` are a cluster's endpoints and a cluster whose link is down has none ready. A tier serves while that is at least
/// `min_healthy_percent`; otherwise the next tier is asked, and when none is healthy enough, the first that has any healthy
/// cluster. The share of each cluster inside the tier stays its weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tier {
    /// Weight by cluster; the local cluster goes by its own name. Zero is exactly zero.
    pub clusters: BTreeMap<ClusterName, u32>,
    /// 1 to 100, percent of the tier's weight.
    pub min_healthy_percent: u8,
}

/// A service of this cluster that peers may reach, and nothing else may be reached from a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Export {
    /// Namespace and name.
    pub service: ServiceKey,
    /// The exported ports.
    pub ports: Vec<ExportPort>,
    /// Rules of the policies that select this export: any one that matches allows. `None`: no policy selects it, the
    /// peer's [`DefaultPolicy`] holds. `Some` of an empty list denies all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<ExportRule>>,
    /// Write a PROXY protocol v2 header with identity TLVs to TCP backends.
    #[serde(default)]
    pub proxy_protocol: bool,
}

/// One port of an [`Export`]. A number may be there twice, once for each [`PortTransport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportPort {
    /// The service's port number.
    pub port: u16,
    /// What it is reached by.
    #[serde(default, skip_serializing_if = "PortTransport::is_tcp")]
    pub transport: PortTransport,
    /// The port's name, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<PortName>,
    /// The declared protocol, as Kubernetes' `appProtocol`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// Where the service answers on this port.
    pub endpoints: Vec<Endpoint>,
}

/// A backend of an export.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Address and port to dial.
    pub address: SocketAddr,
    /// Host name of the endpoint inside a headless service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<EndpointName>,
    /// Whether it takes new traffic.
    pub ready: bool,
}

/// One way in: all conditions that are present must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportRule {
    /// Peers that may call. Empty: every linked peer.
    #[serde(default)]
    pub peers: Vec<ClusterName>,
    /// Exact identities that may call. Empty together with `identity_prefixes`: every identity.
    #[serde(default)]
    pub identities: Vec<SpiffeId>,
    /// Whole-segment prefixes: `spiffe://east.example/ns/shop` matches `.../ns/shop/sa/web`, never `.../ns/shopping/...`.
    #[serde(default)]
    pub identity_prefixes: Vec<SpiffeId>,
    /// Ports that may be called, by number, whatever their transport. Empty: all exported ports.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// The weakest assurance that suffices.
    #[serde(default)]
    pub minimum_assurance: Assurance,
}

/// How much of a service is ready in a peer cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// The exporting cluster.
    pub cluster: ClusterName,
    /// The exported service.
    pub service: ServiceKey,
    /// Ready endpoints by number of the TCP port. A port that is missing is not exported by that cluster.
    #[serde(deserialize_with = "wire::by_port")]
    pub ready: BTreeMap<u16, u32>,
    /// All endpoints by number of the TCP port, ready or not. A port that is missing here counts as wholly ready while any
    /// endpoint of it is: the peer does not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "wire::by_port")]
    pub total: BTreeMap<u16, u32>,
    /// As `ready`, of the UDP ports.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "wire::by_port")]
    pub ready_udp: BTreeMap<u16, u32>,
    /// As `total`, of the UDP ports.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "wire::by_port")]
    pub total_udp: BTreeMap<u16, u32>,
    /// Names of the ready endpoints of a headless service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ready_endpoints: Vec<EndpointName>,
}

impl Capacity {
    /// Ready endpoints of a port; `None`: that cluster does not export it.
    #[must_use]
    pub fn ready_of(&self, transport: PortTransport, port: u16) -> Option<u32> {
        let ready = if transport.is_tcp() { &self.ready } else { &self.ready_udp };
        ready.get(&port).copied()
    }

    /// All endpoints of a port; `None`: that cluster does not say.
    #[must_use]
    pub fn total_of(&self, transport: PortTransport, port: u16) -> Option<u32> {
        let total = if transport.is_tcp() { &self.total } else { &self.total_udp };
        total.get(&port).copied()
    }

    /// The exported ports, with their ready endpoints.
    pub fn ports(&self) -> impl Iterator<Item = (PortTransport, u16, u32)> + '_ {
        let tcp = self.ready.iter().map(|(port, ready)| (PortTransport::Tcp, *port, *ready));
        tcp.chain(self.ready_udp.iter().map(|(port, ready)| (PortTransport::Udp, *port, *ready)))
    }
}

/// The client addresses that belong to one workload: assurance `network`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its service account.
    pub service_account: ServiceAccountName,
    /// Its addresses, in order. Over all workloads the longest prefix that holds a client's address decides; no match means that
    /// only the gateway is known.
    pub ranges: Vec<ipnet::IpNet>,
}

/// What the gateway tells the controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "camelCase")]
pub enum Report {
    /// The first message.
    Hello {
        /// Unique for each start of a gateway process.
        boot_id: String,
        /// The gateway's version.
        version: String,
    },
    /// All updates up to this generation are in force.
    Acknowledged {
        /// The generation of the newest applied update.
        generation: u64,
    },
    /// These resources could not be used; everything else is in force. An empty list withdraws earlier complaints.
    Rejected {
        /// By resource: why, in words for the operator.
        reasons: Vec<Rejection>,
    },
    /// The present state of all links; sent on each change and every 5 s.
    Links {
        /// By peer.
        links: Vec<LinkReport>,
    },
}

/// Why one resource is not in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// Which one.
    pub resource: ResourceKey,
    /// A closed set, CamelCase, for conditions: `AddressInUse`, `PermissionDenied`, `InvalidTrustBundle`, ...
    pub reason: String,
    /// One sentence with the remedy.
    pub message: String,
    /// Of a mirror: the ports that nothing listens on, for either transport. Empty where the whole resource is meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}

/// The state of the link to one peer, as conditions, the CLI and `/links` on the admin port show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkReport {
    /// The peer.
    pub cluster: ClusterName,
    /// Whether the data path works, by probes over it.
    pub alive: bool,
    /// Where the link is in its life.
    pub state: LinkPhase,
    /// What the operator should know: the last error while not connected; that TCP carries the link for want of QUIC; else
    /// empty.
    #[serde(default)]
    pub message: String,
    /// A closed set, CamelCase, for conditions: `Connected`, `Unreachable`, `CertificateRejected`, ...
    pub reason: String,
    /// Connections in use.
    pub connections: u32,
    /// The peer's gateway version from its hello.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Smoothed round-trip time of the transport, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_micros: Option<u64>,
    /// Round trip of the last successful probe, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_micros: Option<u64>,
    /// Share of packets sent that were lost over the last minute, 0 to 1.
    #[serde(default)]
    pub loss: f64,
    /// When `alive` last changed, seconds since the Unix epoch.
    pub since_unix: u64,
    /// The remote address in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
    /// What carries new streams; absent while not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Carrier>,
    /// Why it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport_reason: Option<TransportReason>,
    /// How far the peer's clock is ahead of ours (behind: negative), seconds, by the hello that came last; absent where it did not
    /// tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_seconds: Option<i64>,
    /// The largest packet of the QUIC connection over UDP that carries the least, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// How often such a connection found that packets vanish for a size that got through before.
    #[serde(default)]
    pub black_holes: u64,
}

/// Where a link is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LinkPhase {
    /// The peer has no address: it must dial us.
    Waiting,
    /// Dialling or between two tries.
    Connecting,
    /// At least one connection stands.
    Connected,
    /// The peer said goodbye and its streams are finishing.
    Draining,
}

impl LinkPhase {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Waiting, Self::Connecting, Self::Connected, Self::Draining];

    /// As reports and metric labels spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Draining => "draining",
        }
    }
}

#[cfg(test)]
mod tests;
