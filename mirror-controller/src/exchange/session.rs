//! The catalogue session: how one cluster keeps an equal copy of what another exports. No I/O, no clock.
//!
//! The subscriber speaks first. There are two ways to its first copy: a delta from the version it still holds (`known`,
//! after a reconnect), else a snapshot. After that only deltas, one at a time: the publisher sends the next when the last
//! is acknowledged, so a slow peer gets the newest state and never a queue of old ones.
//!
//! ```text
//! subscriber                                    publisher
//!   | -- hello{cluster, known} -------------------> |
//!   | <--------- begin, entries..., end ----------- |   hash and count must agree, else resync
//!   | -- ack{version} ----------------------------> |
//!   | <--------- delta{from, to, ..., hash} ------- |   applies to `from` only; the hash covers the result
//!   | -- ack{version} ----------------------------> |
//!   | <--------- delta{from = to} ----------------- |   every 5 s: I am here and you are right
//! ```
//!
//! What fails, and what then happens: a lost or doubled message shows as a gap in the versions or a wrong hash, and the
//! subscriber asks for a snapshot; a lost answer shows as silence, and the publisher sends a snapshot; a restart of the
//! publisher is a new epoch; a peer that breaks a rule or a cap loses the session and keeps its last good catalogue.
//! Nothing is ever removed but by a complete, newer, verified state, and many removals at once wait 30 s (S-41).
//!
//! - **In**: messages, newer catalogues, connection events, the time.
//! - **Out**: messages, the effective catalogue, the next deadline.
//! - **Refuses when**: see [`Violation`].
//! - **Never does**: allocate for more than [`SERVICES_MAX`] entries of a peer.
//! - **Numbers**: the constants below.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use linkspan_proto::exchange::{CatalogueEntry, Details, MAX_SERVICES, VERSION, catalogue_hash};
use linkspan_proto::names::{ClusterName, ServiceKey};

mod publisher;
mod subscriber;

pub use publisher::Publisher;
pub use subscriber::{Freshness, Subscriber, View};

/// Services that one peer may export (S-37).
pub const SERVICES_MAX: usize = MAX_SERVICES;
/// Between two changes for one peer: 1,000 changes a second become at most 17 messages (F-44: 20), and a change is
/// still out long before a person looks.
pub const CHANGE_INTERVAL: Duration = Duration::from_millis(60);
/// The publisher speaks at least this often. Three of them fit into [`SILENCE`].
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// A subscriber that heard nothing for this long gives the session up. Below [`STALE_AFTER`].
pub const SILENCE: Duration = Duration::from_secs(15);
/// A publisher that got no answer for this long sends a snapshot.
pub const ANSWER: Duration = Duration::from_secs(10);
/// Unanswered snapshots before the publisher gives the session up.
pub const UNANSWERED_MAX: u32 = 3;
/// A subscriber must introduce itself within this time.
pub const HELLO: Duration = Duration::from_secs(10);
/// A catalogue that was not confirmed for this long is marked stale (F-18: at most 30 s).
pub const STALE_AFTER: Duration = Duration::from_secs(20);
/// A catalogue that was not confirmed for this long gives up its capacity; its mirrors stay (F-18: 10 min).
pub const DRAIN_AFTER: Duration = Duration::from_secs(600);
/// Removals of more than half of a catalogue of at least [`MASS_REMOVAL_FLOOR`] entries wait this long (S-41).
pub const MASS_REMOVAL_DELAY: Duration = Duration::from_secs(30);
/// Below this size half a catalogue is an ordinary change.
pub const MASS_REMOVAL_FLOOR: usize = 20;
/// Between two requests for a snapshot, so that two confused sides do not keep each other busy.
pub const RESYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Requests for a snapshot in a row before the subscriber gives the session up.
pub const RESYNCS_MAX: u32 = 5;
/// Bytes of entries in one message, estimated: a quarter of what a message may have.
pub const MESSAGE_BYTES: usize = 256 * 1024;
/// Versions kept for peers that reconnect. A version that differs in one entry shares all others.
const HISTORY: usize = 8;

/// Entries by service.
pub type Entries = BTreeMap<ServiceKey, Arc<CatalogueEntry>>;

/// SHA-256 over a catalogue, independent of the order of its entries.
pub type Hash = [u8; 32];

/// One complete version of a cluster's catalogue.
#[derive(Clone, Debug, PartialEq)]
pub struct Catalogue {
    /// Changes when the publisher lost its history.
    pub epoch: u64,
    /// Counts up inside an epoch.
    pub version: u64,
    /// Over all entries.
    pub hash: Hash,
    /// The entries.
    pub entries: Arc<Entries>,
}

impl Catalogue {
    /// A version of these entries; computes the hash.
    #[must_use]
    pub fn new(epoch: u64, version: u64, entries: Arc<Entries>) -> Self {
        let hash = hash(&entries);
        Self { epoch, version, hash, entries }
    }
}

/// What a peer did wrong. Ends the session; the last good catalogue stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Nothing came, or something else than a hello.
    #[error("the peer did not introduce itself")]
    NoHello,
    /// Another cluster than the one that the link authenticated.
    #[error("the peer calls itself {claimed}, the link says {peer}")]
    WrongCluster {
        /// What it says.
        claimed: ClusterName,
        /// What the link's certificate says.
        peer: ClusterName,
    },
    /// No common version.
    #[error("the peer speaks catalogue version {theirs}, we speak {VERSION}")]
    UnsupportedVersion {
        /// The newest that it speaks.
        theirs: u32,
    },
    /// Acknowledged what was never sent.
    #[error("the peer acknowledged version {0}, which was never sent")]
    UnknownVersion(u64),
    /// No answer, several times.
    #[error("the peer does not answer")]
    Unresponsive,
    /// More entries than a peer may have.
    #[error("the peer exports {0} services, at most {SERVICES_MAX} are accepted")]
    TooManyServices(usize),
    /// One service twice in a snapshot.
    #[error("the peer lists {0} twice")]
    Duplicate(ServiceKey),
    /// A state older than one it sent before.
    #[error("the peer went back from version {have} to {got}")]
    OlderVersion {
        /// What we hold.
        have: u64,
        /// What it offers.
        got: u64,
    },
    /// Several snapshots in a row that did not verify.
    #[error("the peer's snapshots do not verify")]
    CannotVerify,
}

impl Violation {
    /// For conditions and metrics: a closed set, CamelCase.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoHello => "NoHello",
            Self::WrongCluster { .. } => "WrongCluster",
            Self::UnsupportedVersion { .. } => "UnsupportedVersion",
            Self::UnknownVersion(_) => "UnknownVersion",
            Self::Unresponsive => "Unresponsive",
            Self::TooManyServices(_) => "TooManyServices",
            Self::Duplicate(_) => "DuplicateService",
            Self::OlderVersion { .. } => "OlderVersion",
            Self::CannotVerify => "CannotVerify",
        }
    }
}

/// What this cluster publishes: the newest version and a few older ones, for peers that come back.
#[derive(Clone, Debug)]
pub struct Feed {
    current: Catalogue,
    history: VecDeque<Catalogue>,
}

impl Feed {
    /// The first version of an epoch.
    #[must_use]
    pub fn new(epoch: u64, entries: Arc<Entries>) -> Self {
        Self { current: Catalogue::new(epoch, 1, entries), history: VecDeque::new() }
    }

    /// Makes `entries` the newest version. Says whether anything differs from the one before.
    pub fn publish(&mut self, entries: Arc<Entries>) -> bool {
        if same(&entries, &self.current.entries) {
            return false;
        }
        let next = Catalogue::new(self.current.epoch, self.current.version + 1, entries);
        self.history.push_back(std::mem::replace(&mut self.current, next));
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        true
    }

    /// The newest version.
    #[must_use]
    pub const fn current(&self) -> &Catalogue {
        &self.current
    }

    /// The version that a peer says it holds, if it is one of ours.
    fn resume(&self, epoch: u64, version: u64, hash: &Hash) -> Option<&Catalogue> {
        self.history
            .iter()
            .chain([&self.current])
            .find(|old| old.epoch == epoch && old.version == version && old.hash == *hash)
    }
}

/// Hash over all entries.
fn hash(entries: &Entries) -> Hash {
    catalogue_hash(entries.values().map(AsRef::as_ref))
}

/// Equality that looks at contents only where the pointers differ: unchanged entries are shared between versions.
fn same(one: &Entries, other: &Entries) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|((key, entry), (other_key, other_entry))| {
            key == other_key && (Arc::ptr_eq(entry, other_entry) || entry == other_entry)
        })
}

/// An upper estimate of an entry's size in a message.
fn weight(entry: &CatalogueEntry) -> usize {
    let ports: usize = entry
        .ports
        .iter()
        .map(|port| {
            32 + port.name.as_ref().map_or(0, |name| name.as_str().len())
                + port.app_protocol.as_ref().map_or(0, |protocol| protocol.len())
        })
        .sum();
    let endpoints: usize = entry.endpoints.iter().map(|(name, _)| 8 + name.as_str().len()).sum();
    let Details { annotations, exported_labels, exported_annotations, traffic_distribution, .. } = &entry.details;
    let maps = [&entry.labels, annotations, exported_labels, exported_annotations];
    // Keys and values in entries of a map: tags and lengths take at most 12 bytes.
    let labels: usize = maps.into_iter().map(|map| 12 * map.len()).sum::<usize>() + entry.metadata_len();
    let details = 16 + traffic_distribution.as_ref().map_or(0, String::len);
    32 + details
        + entry.service.namespace.as_str().len()
        + entry.service.name.as_str().len()
        + ports
        + endpoints
        + labels
}

#[cfg(test)]
mod tests;
