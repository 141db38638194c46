//! The catalogue: what one cluster tells another about the services it exports.
//!
//! A catalogue carries names, ports and health, never an address: a peer can say what exists, not where our traffic
//! goes. `proto/exchange.proto` shows the conversation; this file holds the domain types and turns the generated ones
//! into them. Nothing of a message is kept unless all of it is within the caps.
//!
//! Refuses when: a message is over a cap, a name is no name, a port is 0 or comes twice, a hash has another length than 32,
//! a message is empty.
//! Never does: I/O, keep state; versions, acknowledgements and resyncs are the controller's session.
//! Numbers: the constants below.

mod convert;
mod hash;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::configuration::PortTransport;
use crate::names::{ClusterName, EndpointName, PortName, ServiceKey};

pub use convert::batches;
pub use hash::catalogue_hash;

/// The exchange version that this build speaks.
pub const VERSION: u32 = 1;

/// The most services of one peer.
pub const MAX_SERVICES: usize = 10_000;

/// The most bytes of one encoded message. Also to be set as tonic's decoding limit, so that more is never read.
pub const MAX_MESSAGE_LEN: usize = 1024 * 1024;

/// The most ports of one service.
pub const MAX_PORTS: usize = 64;

/// The most endpoints of one headless service.
pub const MAX_ENDPOINTS: usize = 1_000;

/// The most labels of one service, and the most exported ones.
pub const MAX_LABELS: usize = 16;

/// The most bytes of an `appProtocol` or of a `trafficDistribution`.
pub const MAX_NAME_LEN: usize = 253;

/// The most annotations of one service, and the most exported ones.
pub const MAX_ANNOTATIONS: usize = 16;

/// The most bytes of all labels and annotations of one service, keys and values: with [`MAX_SERVICES`] a bound on what a peer
/// can make us keep.
pub const MAX_METADATA_LEN: usize = 4096;

/// The longest session affinity, in seconds, as in Kubernetes: a day.
pub const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// One exported service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// Namespace and name in the exporting cluster.
    pub service: ServiceKey,
    /// Whether clients choose among its endpoints by name.
    pub headless: bool,
    /// Its exported ports, in ascending order, none twice.
    pub ports: Vec<CataloguePort>,
    /// Its named endpoints and whether each is ready, in ascending order; only for headless services.
    pub endpoints: Vec<(EndpointName, bool)>,
    /// Its labels, as the exporting cluster sent them: which may reach an object is the importer's decision
    /// ([`crate::metadata::Exclusions`]).
    pub labels: BTreeMap<String, String>,
    /// What goes with it beside that.
    pub details: Details,
}

/// What goes with an exported service beside its ports; most services say nothing of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Details {
    /// Its annotations, for the mirror; the importer decides, as of labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// `spec.exportedLabels` of its ServiceExport, for the import of all clusters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_labels: BTreeMap<String, String>,
    /// `spec.exportedAnnotations` of its ServiceExport.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_annotations: BTreeMap<String, String>,
    /// `sessionAffinity: ClientIP` with its time, 1 to [`MAX_AFFINITY_SECONDS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u32>,
    /// `internalTrafficPolicy: Local`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub local_traffic: bool,
    /// `trafficDistribution`, a word such as `PreferClose`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
}

impl CatalogueEntry {
    /// Bytes of all labels and annotations, held against [`MAX_METADATA_LEN`].
    #[must_use]
    pub fn metadata_len(&self) -> usize {
        let Details { annotations, exported_labels, exported_annotations, .. } = &self.details;
        let maps = [&self.labels, annotations, exported_labels, exported_annotations];
        maps.into_iter().flatten().map(|(key, value)| key.len() + value.len()).sum()
    }
}

/// One port of an exported service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CataloguePort {
    /// The service's port number, never 0.
    pub port: u16,
    /// Its name, where it has one.
    pub name: Option<PortName>,
    /// What it carries.
    pub protocol: Protocol,
    /// Kubernetes' `appProtocol`, where declared.
    pub app_protocol: Option<String>,
    /// Ready endpoints behind it.
    pub ready: u32,
    /// All endpoints behind it, never fewer than `ready`; `None`: the peer does not say.
    pub total: Option<u32>,
}

/// The transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP: carried by nothing yet, but known, so that it can be told apart.
    Sctp,
}

impl Protocol {
    /// As Kubernetes spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// What carries it between gateways; `None`: nothing does.
    #[must_use]
    pub const fn transport(self) -> Option<PortTransport> {
        match self {
            Self::Tcp => Some(PortTransport::Tcp),
            Self::Udp => Some(PortTransport::Udp),
            Self::Sctp => None,
        }
    }

    /// From Kubernetes' spelling.
    #[must_use]
    pub fn from_kubernetes(text: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| protocol.as_str() == text)
    }
}

/// A message of the publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A whole catalogue follows.
    SnapshotBegin {
        /// Changes when the publisher lost its history.
        epoch: u64,
        /// The version that the snapshot shows.
        version: u64,
        /// How many entries follow, at most [`MAX_SERVICES`].
        count: u32,
    },
    /// Some entries of the snapshot.
    Entries(Vec<CatalogueEntry>),
    /// The snapshot is complete.
    SnapshotEnd {
        /// As at its beginning.
        version: u64,
        /// Over all entries.
        hash: [u8; 32],
    },
    /// A change.
    Delta {
        /// The version it applies to.
        from: u64,
        /// The version it leads to, above `from`; equal to it only in a heartbeat, which changes nothing.
        to: u64,
        /// New or changed entries.
        upserts: Vec<CatalogueEntry>,
        /// Services that are no longer exported.
        removals: Vec<ServiceKey>,
        /// Over all entries after the change.
        hash: [u8; 32],
    },
}

/// A message of the subscriber.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubscriberMessage {
    /// The first message.
    Hello {
        /// Who subscribes.
        cluster: ClusterName,
        /// The newest exchange version it speaks.
        version: u32,
        /// Epoch, version and hash of what it still holds.
        known: Option<(u64, u64, [u8; 32])>,
    },
    /// Everything up to this version is applied.
    Ack {
        /// The version.
        version: u64,
    },
    /// Please send a snapshot.
    Resync {
        /// For logs.
        reason: String,
    },
}

/// Why a message is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// More of something than the cap allows.
    #[error("{count} {what}, at most {max} are allowed")]
    TooMany {
        /// Services, ports, ...
        what: &'static str,
        /// What the message has.
        count: usize,
        /// What it may have.
        max: usize,
    },
    /// A required field is missing, or the message is of an unknown kind.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field that is not what it should be.
    #[error("{0} is not valid")]
    Field(&'static str),
    /// The same service, port or endpoint twice.
    #[error("{0} comes twice")]
    Twice(&'static str),
}

#[cfg(test)]
mod tests;
