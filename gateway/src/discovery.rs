//! What the controller wants: its configuration as immutable snapshots.
//!
//! ```text
//! controller.sock --Update parts--> assembly --whole--> watch<Snapshot> --> app applies --> `applied` --> Acknowledged
//! ```
//!
//! - In: `Update` messages over the controller's socket (see `proto::configuration`).
//! - Out: a [`Snapshot`] behind a `watch` channel, replaced as a whole when the last part of an update is in; reports
//!   back to the controller.
//! - Refuses when: an update cannot be decoded. The last good snapshot stays, and the stream is opened anew.
//! - Never does: apply half of an update, forget the configuration because the controller is gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use linkspan_proto::configuration::{Rejection, Resource, ResourceKey};
use tokio::sync::watch;

mod assembly;
mod client;
mod controller;

pub use client::Client;
pub use controller::{Controller, Io, Port};

/// All resources of one generation. Cheap to clone behind its `Arc`; resources that did not change between two
/// generations are the same `Arc` in both.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows with each update. 0: nothing received yet.
    pub generation: u64,
    /// By key.
    pub resources: BTreeMap<ResourceKey, Arc<Resource>>,
}

impl Snapshot {
    /// The resources themselves.
    pub fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.resources.values().map(AsRef::as_ref)
    }
}

/// Where stages complain about resources that they cannot put into force; the complaints go to the controller.
///
/// Each source says its whole list each time; an empty list withdraws what it said before.
#[derive(Clone, Debug)]
pub struct Rejections {
    by_source: Arc<watch::Sender<BTreeMap<&'static str, Vec<Rejection>>>>,
}

impl Rejections {
    /// No complaints.
    #[must_use]
    pub fn new() -> Self {
        Self { by_source: Arc::new(watch::Sender::new(BTreeMap::new())) }
    }

    /// Replaces what `source` (a stage's name) complains about.
    pub fn set(&self, source: &'static str, rejections: Vec<Rejection>) {
        self.by_source.send_if_modified(|all| {
            let same = all.get(source).map_or(rejections.is_empty(), |old| *old == rejections);
            if !same {
                all.insert(source, rejections);
            }
            !same
        });
    }

    /// All complaints, by source.
    #[must_use]
    pub fn all(&self) -> Vec<Rejection> {
        self.by_source.borrow().values().flatten().cloned().collect()
    }

    /// Resolves at each change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<BTreeMap<&'static str, Vec<Rejection>>> {
        self.by_source.subscribe()
    }
}

impl Default for Rejections {
    fn default() -> Self {
        Self::new()
    }
}
