//! Parts of updates to whole snapshots. No I/O: one part goes in, at most one snapshot comes out.

use std::collections::BTreeMap;
use std::sync::Arc;

use linkspan_proto::configuration::{Resource, ResourceKey, Update};

use super::Snapshot;

/// Resources of one gateway. Far above 10,000 services of a dozen peers; a controller that sends more is broken.
const MAX_RESOURCES: usize = 1_000_000;

/// Why a stream of updates makes no sense. It is opened anew, and the controller sends everything again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AssemblyError {
    /// A change came before anything that it could change.
    #[error("the first update of a stream is not a full configuration")]
    NoBase,
    /// Parts of two generations are mixed.
    #[error("a part of generation {got} came within generation {expected}")]
    Mixed {
        /// The generation of the parts so far.
        expected: u64,
        /// The generation of this part.
        got: u64,
    },
    /// Over [`MAX_RESOURCES`].
    #[error("more than a million resources")]
    TooMany,
}

/// Puts the parts of one stream together.
#[derive(Debug)]
pub(super) struct Assembly {
    /// In force.
    base: Arc<Snapshot>,
    /// A full configuration has come on this stream, so that changes have a base.
    based: bool,
    pending: Option<Snapshot>,
}

impl Assembly {
    /// A new stream while `base` is in force.
    pub(super) fn new(base: Arc<Snapshot>) -> Self {
        Self { base, based: false, pending: None }
    }

    /// Takes one part. Gives the snapshot that the last part completes.
    pub(super) fn take(&mut self, update: Update) -> Result<Option<Arc<Snapshot>>, AssemblyError> {
        let mut pending = match self.pending.take() {
            Some(pending) if pending.generation != update.generation => {
                return Err(AssemblyError::Mixed { expected: pending.generation, got: update.generation });
            }
            // A second `reset` within a generation starts it over.
            Some(pending) if !update.reset => pending,
            _ if update.reset => Snapshot { generation: update.generation, resources: BTreeMap::new() },
            _ if self.based => Snapshot { generation: update.generation, ..Snapshot::clone(&self.base) },
            _ => return Err(AssemblyError::NoBase),
        };
        for resource in update.upserts {
            let key = resource.key();
            let shared = self.share(&key, resource);
            pending.resources.insert(key, shared);
        }
        for key in &update.removals {
            pending.resources.remove(key);
        }
        if pending.resources.len() > MAX_RESOURCES {
            return Err(AssemblyError::TooMany);
        }
        if !update.last {
            self.pending = Some(pending);
            return Ok(None);
        }
        self.based = true;
        self.base = Arc::new(pending);
        Ok(Some(Arc::clone(&self.base)))
    }

    /// What did not change stays the same `Arc`: stages tell by pointer what they need not look at again.
    fn share(&self, key: &ResourceKey, resource: Resource) -> Arc<Resource> {
        match self.base.resources.get(key) {
            Some(old) if **old == resource => Arc::clone(old),
            _ => Arc::new(resource),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkspan_proto::configuration::Capacity;
    use linkspan_proto::names::{ClusterName, ServiceKey};

    fn capacity(service: &str, ready: u32) -> Resource {
        Resource::Capacity(Capacity {
            cluster: ClusterName::parse("west").unwrap(),
            service: ServiceKey::parse(service).unwrap(),
            ready: BTreeMap::from([(80, ready)]),
            total: BTreeMap::new(),
            ready_udp: Default::default(),
            total_udp: Default::default(),
            ready_endpoints: Vec::new(),
        })
    }

    fn part(generation: u64, reset: bool, last: bool, upserts: Vec<Resource>) -> Update {
        Update { generation, reset, last, upserts, removals: Vec::new(), unreadable: Vec::new() }
    }

    fn names(snapshot: &Snapshot) -> Vec<&str> {
        snapshot.resources.keys().map(|key| key.name.as_str()).collect()
    }

    #[test]
    fn parts_become_one_snapshot_and_never_half_of_one() {
        let mut assembly = Assembly::new(Arc::default());
        assert_eq!(assembly.take(part(1, true, false, vec![capacity("a/x", 1)])).unwrap().map(|_| ()), None);
        let first = assembly.take(part(1, false, true, vec![capacity("a/y", 1)])).unwrap().unwrap();
        assert_eq!((first.generation, names(&first)), (1, vec!["west/a/x", "west/a/y"]));

        let mut change = part(2, false, true, vec![capacity("a/x", 0)]);
        change.removals = vec![capacity("a/y", 1).key()];
        let second = assembly.take(change).unwrap().unwrap();
        assert_eq!((second.generation, names(&second)), (2, vec!["west/a/x"]));
        assert_eq!(first.resources.len(), 2, "the old snapshot is untouched");
    }

    #[test]
    fn a_full_configuration_forgets_what_it_does_not_bring_and_shares_what_did_not_change() {
        let mut assembly = Assembly::new(Arc::default());
        let update = part(1, true, true, vec![capacity("a/x", 1), capacity("a/y", 1)]);
        let first = assembly.take(update).unwrap().unwrap();
        // The controller was restarted: a new stream over the same base, counting anew.
        let mut assembly = Assembly::new(Arc::clone(&first));
        let again = assembly.take(part(1, true, true, vec![capacity("a/x", 1)])).unwrap().unwrap();
        assert_eq!(names(&again), ["west/a/x"]);
        let key = capacity("a/x", 1).key();
        assert!(Arc::ptr_eq(&first.resources[&key], &again.resources[&key]));
    }

    #[test]
    fn a_stream_that_makes_no_sense_changes_nothing() {
        let mut assembly = Assembly::new(Arc::default());
        assert_eq!(assembly.take(part(5, false, true, Vec::new())).unwrap_err(), AssemblyError::NoBase);
        assembly.take(part(1, true, false, vec![capacity("a/x", 1)])).unwrap();
        let mixed = assembly.take(part(2, false, true, Vec::new())).unwrap_err();
        assert_eq!(mixed, AssemblyError::Mixed { expected: 1, got: 2 });
    }

    #[test]
    fn of_one_key_the_last_resource_counts() {
        let mut assembly = Assembly::new(Arc::default());
        let snapshot =
            assembly.take(part(1, true, true, vec![capacity("a/x", 1), capacity("a/x", 2)])).unwrap().unwrap();
        assert_eq!(snapshot.resources.values().map(AsRef::as_ref).collect::<Vec<_>>(), [&capacity("a/x", 2)]);
    }
}
