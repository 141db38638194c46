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

/// The most labels of one service.
pub const MAX_LABELS: usize = 16;

/// The most bytes of an `appProtocol` or of a label's key.
pub const MAX_NAME_LEN: usize = 253;

/// The labels of an exported Service that its catalogue entry carries and its mirrors get. All others stay at home:
/// labels select, and what a peer says must not make an object selected by something of ours.
pub const LISTED_LABELS: [&str; 5] = [
    "app.kubernetes.io/component",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/name",
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/version",
];

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
    /// Its labels, as the exporting cluster sent them: only [`Self::listed_labels`] may reach an object.
    pub labels: BTreeMap<String, String>,
}

impl CatalogueEntry {
    /// The labels that a mirror may carry.
    pub fn listed_labels(&self) -> impl Iterator<Item = (&str, &str)> {
        LISTED_LABELS.iter().filter_map(|key| Some((*key, self.labels.get(*key)?.as_str())))
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
