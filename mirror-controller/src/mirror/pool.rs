//! Stable assignments: the same name has the same item (an address, a port) for as long as it is remembered. Pure.
//!
//! - **In**: names, and which cluster asks for them.
//! - **Out**: one item for each name; a text that a restart reads again.
//! - **Refuses when**: the range is full, or one cluster would take what others still need.
//! - **Never does**: give an item of a name that is in use or still remembered to another name, while any other item is
//!   free: clients and their caches outlive a mirror. Freed items are used again last, the oldest first.
//! - **Numbers**: [`REMEMBERED_MAX`], [`NAMES_PER_CLUSTER`], [`RESERVE`].
//!
//! A new name starts looking at a place made of its hash, so that most names get the same item even when the text is
//! lost, and two sites on one host that share a range rarely meet.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::hash::Hash;

use linkspan_proto::names::ClusterName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Names without a mirror that keep their item. More than a peer can export, so that a whole peer may come back.
pub const REMEMBERED_MAX: usize = 65_536;
/// Names of one cluster: 10,000 services with two names each, and as many endpoints of headless services.
pub const NAMES_PER_CLUSTER: usize = 32_768;
/// Items that each linked cluster finds free, however many another one wants (half of its even share in small ranges).
pub const RESERVE: u64 = 1_024;

/// What a pool gives out.
pub trait Range: Clone + Debug + PartialEq + Serialize + DeserializeOwned {
    /// One of them.
    type Item: Copy + Debug + Eq + Hash + Serialize + DeserializeOwned;

    /// How many there are.
    fn len(&self) -> u64;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The one at `index`, which is below [`Range::len`].
    fn at(&self, index: u64) -> Self::Item;

    /// Whether an item is one of them.
    fn holds(&self, item: Self::Item) -> bool;
}

/// Why a name gets no item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolError {
    /// Nothing free among so many.
    Exhausted(u64),
    /// One cluster has its share.
    ShareExceeded(ClusterName),
    /// Nothing is given to new names at the moment.
    Closed,
}

/// One name's item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Held<T> {
    // The word in files written by earlier versions.
    #[serde(rename = "address")]
    item: T,
    cluster: ClusterName,
    /// Order of release; `None` while in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    freed: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, bound(deserialize = "R: Range"))]
struct File<R: Range> {
    range: R,
    names: BTreeMap<String, Held<R::Item>>,
}

/// Who has which item.
#[derive(Debug)]
pub struct Pool<R: Range> {
    range: R,
    names: BTreeMap<String, Held<R::Item>>,
    taken: HashMap<R::Item, String>,
    /// Remembered names by order of release.
    freed: BTreeMap<u64, String>,
    /// Names in use by cluster.
    used: BTreeMap<ClusterName, u64>,
    sequence: u64,
    changed: bool,
    closed: bool,
}

impl<R: Range> Pool<R> {
    /// Nothing given out yet.
    #[must_use]
    pub fn new(range: R) -> Self {
        Self {
            range,
            names: BTreeMap::new(),
            taken: HashMap::new(),
            freed: BTreeMap::new(),
            used: BTreeMap::new(),
            sequence: 0,
            changed: false,
            closed: false,
        }
    }

    /// What a text says. Nothing is in use yet: every name says again that it wants its item. Names whose item lies
    /// outside the range get a new one.
    ///
    /// # Errors
    /// When the text is not what [`Pool::text`] writes.
    pub fn parse(text: &str, range: R) -> Result<Self, serde_json::Error> {
        let file: File<R> = serde_json::from_str(text)?;
        let mut pool = Self::new(range);
        // Names that were in use when the text was written are remembered longest.
        let mut order: Vec<_> = file.names.into_iter().collect();
        order.sort_by_key(|(name, held)| (held.freed.unwrap_or(u64::MAX), name.clone()));
        for (name, held) in order {
            pool.remember(name, held.item, held.cluster);
        }
        pool.changed = false;
        Ok(pool)
    }

    /// Notes what a name had before, unless that is outside the range or another name's.
    pub fn remember(&mut self, name: String, item: R::Item, cluster: ClusterName) {
        if !self.range.holds(item) || self.taken.contains_key(&item) || self.names.contains_key(&name) {
            return;
        }
        self.sequence += 1;
        self.taken.insert(item, name.clone());
        self.freed.insert(self.sequence, name.clone());
        self.names.insert(name, Held { item, cluster, freed: Some(self.sequence) });
    }

    /// The item of `name`, which `cluster` (one of `clusters`) causes to exist.
    ///
    /// # Errors
    /// When there is none to give.
    pub fn assign(
        &mut self,
        name: &str,
        cluster: &ClusterName,
        clusters: &[ClusterName],
    ) -> Result<R::Item, PoolError> {
        if let Some(held) = self.names.get_mut(name) {
            let item = held.item;
            match held.freed.take() {
                Some(order) => drop(self.freed.remove(&order)),
                None if held.cluster == *cluster => return Ok(item),
                // The name passes from one cluster's mirror to another's.
                None => {
                    if let Some(used) = self.used.get_mut(&held.cluster) {
                        *used = used.saturating_sub(1);
                    }
                }
            }
            held.cluster = cluster.clone();
            *self.used.entry(cluster.clone()).or_default() += 1;
            self.changed = true;
            return Ok(item);
        }
        if self.closed {
            return Err(PoolError::Closed);
        }
        self.check_share(cluster, clusters)?;
        let item = match self.unused(name) {
            Some(item) => item,
            None => self.reuse().ok_or_else(|| PoolError::Exhausted(self.range.len()))?,
        };
        self.taken.insert(item, name.to_owned());
        self.names.insert(name.to_owned(), Held { item, cluster: cluster.clone(), freed: None });
        *self.used.entry(cluster.clone()).or_default() += 1;
        self.changed = true;
        Ok(item)
    }

    /// While closed, names keep what they have and new ones get nothing.
    pub const fn set_closed(&mut self, closed: bool) {
        self.closed = closed;
    }

    /// `name` is mirrored no more; its item stays remembered.
    pub fn release(&mut self, name: &str) {
        let Some(held) = self.names.get_mut(name).filter(|held| held.freed.is_none()) else { return };
        self.sequence += 1;
        held.freed = Some(self.sequence);
        if let Some(used) = self.used.get_mut(&held.cluster) {
            *used = used.saturating_sub(1);
        }
        self.freed.insert(self.sequence, name.to_owned());
        self.changed = true;
        if self.freed.len() > REMEMBERED_MAX {
            // The item is free for whoever looks there next; nobody was promised more.
            let _: Option<R::Item> = self.reuse();
        }
    }

    /// The text could not be written: ask again.
    pub const fn mark_changed(&mut self) {
        self.changed = true;
    }

    /// The text of the file if it differs from what was last asked for.
    pub fn take_changed(&mut self) -> Option<String> {
        std::mem::take(&mut self.changed).then(|| self.text())
    }

    /// The text of the file.
    #[must_use]
    pub fn text(&self) -> String {
        let file = File::<R> { range: self.range.clone(), names: self.names.clone() };
        serde_json::to_string_pretty(&file).expect("names and items are plain text")
    }

    /// Names in use, and items that there are.
    #[must_use]
    pub fn load(&self) -> (u64, u64) {
        (self.used.values().sum(), self.range.len())
    }

    fn check_share(&self, cluster: &ClusterName, clusters: &[ClusterName]) -> Result<(), PoolError> {
        let used = |cluster: &ClusterName| self.used.get(cluster).copied().unwrap_or_default();
        let share = self.range.len() / (2 * (clusters.len() as u64 + 1));
        let reserve = RESERVE.min(share);
        let kept: u64 =
            clusters.iter().filter(|other| *other != cluster).map(|other| reserve.saturating_sub(used(other))).sum();
        let free = self.range.len().saturating_sub(self.used.values().sum());
        if used(cluster) >= NAMES_PER_CLUSTER as u64 || (used(cluster) >= reserve && free <= kept && free > 0) {
            return Err(PoolError::ShareExceeded(cluster.clone()));
        }
        if free == 0 { Err(PoolError::Exhausted(self.range.len())) } else { Ok(()) }
    }

    /// An item that no name has or had, looking from the place of the name's hash on.
    fn unused(&self, name: &str) -> Option<R::Item> {
        let usable = self.range.len();
        if self.taken.len() as u64 >= usable {
            return None;
        }
        let digest = Sha256::digest(name.as_bytes());
        let start = digest.iter().take(8).fold(0_u64, |number, byte| (number << 8) | u64::from(*byte)) % usable;
        (0..usable).map(|step| self.range.at((start + step) % usable)).find(|item| !self.taken.contains_key(item))
    }

    /// Forgets the name that was released first, and gives its item.
    fn reuse(&mut self) -> Option<R::Item> {
        let (_, name) = self.freed.pop_first()?;
        let held = self.names.remove(&name)?;
        self.taken.remove(&held.item);
        self.changed = true;
        Some(held.item)
    }
}

#[cfg(test)]
mod tests;
