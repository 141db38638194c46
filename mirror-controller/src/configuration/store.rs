//! The resources of the gateway's configuration, and which of them changed when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use linkspan_proto::configuration::{Resource, ResourceKey};
use tokio::sync::watch;

use crate::mirror::Changes;

/// Changed keys that are remembered: half a minute of 1,000 endpoint changes a second, one key each. A gateway that is further
/// behind gets everything anew; so do all when one update has more, such as the coming of a peer of ten thousand services, which
/// is most of everything anyway.
pub const LOG_MAX: usize = 32_768;

/// All resources. Cheap to clone: a handle.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Mutex<Inner>>,
    /// The newest generation; 0 before the first complete state.
    generation: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Inner {
    resources: BTreeMap<ResourceKey, Arc<Resource>>,
    /// Which keys changed with which generation.
    log: BTreeMap<u64, Vec<ResourceKey>>,
    logged: usize,
    /// Changes up to and with this generation are forgotten.
    forgotten: u64,
    newest: u64,
}

/// What a gateway at some generation needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// The generation that this leads to.
    pub generation: u64,
    /// Everything, instead of changes.
    pub reset: bool,
    /// New and changed resources.
    pub upserts: Vec<Resource>,
    /// Resources that are gone.
    pub removals: Vec<ResourceKey>,
}

impl Default for Store {
    fn default() -> Self {
        Self { inner: Arc::default(), generation: Arc::new(watch::Sender::new(0)) }
    }
}

impl Store {
    /// Takes changes as the next generation. The first call is the first complete state, even if it is empty.
    pub fn apply(&self, changes: Changes) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.is_empty() && inner.newest > 0 {
            return;
        }
        inner.newest += 1;
        let generation = inner.newest;
        let keys: Vec<ResourceKey> = changes.keys().cloned().collect();
        for (key, resource) in changes {
            match resource {
                Some(resource) => drop(inner.resources.insert(key, Arc::new(resource))),
                None => drop(inner.resources.remove(&key)),
            }
        }
        inner.logged += keys.len();
        inner.log.insert(generation, keys);
        while inner.logged > LOG_MAX {
            let Some((forgotten, keys)) = inner.log.pop_first() else { break };
            inner.logged -= keys.len();
            inner.forgotten = forgotten;
        }
        drop(inner);
        self.generation.send_replace(generation);
    }

    /// Wakes whenever there is something new.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// What leads from `generation` to the newest; `None` asks for everything.
    #[must_use]
    pub fn since(&self, generation: Option<u64>) -> Update {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let known = generation.filter(|known| *known >= inner.forgotten && *known <= inner.newest);
        let Some(known) = known else {
            let resources: Vec<_> = inner.resources.values().cloned().collect();
            let newest = inner.newest;
            drop(inner);
            return Update { generation: newest, reset: true, upserts: owned(resources), removals: Vec::new() };
        };
        let changed: BTreeSet<&ResourceKey> = inner.log.range(known + 1..).flat_map(|(_, keys)| keys).collect();
        let mut upserts = Vec::new();
        let mut removals = Vec::new();
        for key in changed {
            match inner.resources.get(key) {
                Some(resource) => upserts.push(Arc::clone(resource)),
                None => removals.push(key.clone()),
            }
        }
        let newest = inner.newest;
        drop(inner);
        Update { generation: newest, reset: false, upserts: owned(upserts), removals }
    }

    /// All resources now.
    #[must_use]
    pub fn resources(&self) -> Vec<Arc<Resource>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).resources.values().cloned().collect()
    }
}

/// Copies outside the lock.
fn owned(resources: Vec<Arc<Resource>>) -> Vec<Resource> {
    resources.into_iter().map(Arc::unwrap_or_clone).collect()
}

#[cfg(test)]
mod tests;
