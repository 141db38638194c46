//! How many listening sockets there may be, and for whom.
//!
//! - In: the limit of open files; whose services an address stands for.
//! - Out: for each new address the owner that it counts for and how many sockets it may have, or the refusal.
//! - Refuses when: each owner of the address holds its share, or as many sockets as are left for all others together. So a
//!   peer whose catalogue is too large hurts itself only: three of them take three quarters, and every further one finds
//!   half of what is left, never nothing.
//! - Never does: take a socket back that is bound, touch the descriptors of clients, backends and links.
//! - Numbers: [`SOCKETS`], [`PART`], [`SHARES`].

use std::collections::BTreeMap;
use std::sync::Arc;

use linkspan_proto::names::ClusterName;

/// Listening sockets of one process, however many files it may open. A socket costs about 4 KiB of kernel memory: 512 MiB
/// at worst. A peer's share has room for the 10,000 services of the largest catalogue, each with a port and two names
/// (`svc.cluster.local` and `clusterset.local`).
pub const SOCKETS: usize = 131_072;

/// The part of all descriptors that listening sockets may take: an eighth. Clients with their local backends have five
/// (see `Permits`), streams of peers one, links and files the last.
const PART: u64 = 8;

/// One owner may hold this part of the budget: a quarter.
const SHARES: usize = 4;

/// The least that there is, so that a gateway with next to no descriptors still says what is wrong on its own ports.
const LEAST: usize = 16;

/// Whose services an address stands for: the clusters that export the port. Empty where nobody is known.
pub type Owners = Arc<[ClusterName]>;

/// How many sockets there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    total: usize,
    share: usize,
}

impl Budget {
    /// `total` sockets, a quarter of them for each owner.
    #[must_use]
    pub fn new(total: usize) -> Self {
        let total = total.clamp(LEAST, SOCKETS);
        Self { total, share: total / SHARES }
    }

    /// An eighth of the descriptors, and [`SOCKETS`] at most.
    #[must_use]
    pub fn for_descriptors(descriptors: u64) -> Self {
        Self::new(usize::try_from(descriptors / PART).unwrap_or(usize::MAX))
    }

    /// Sockets in all.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Sockets of one owner.
    #[must_use]
    pub fn share(&self) -> usize {
        self.share
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(SOCKETS)
    }
}

/// The sockets that are bound, by owner.
#[derive(Debug)]
pub(super) struct Ledger {
    budget: Budget,
    taken: usize,
    by_owner: BTreeMap<Option<ClusterName>, usize>,
}

/// What an address got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    /// The owner that it counts for.
    pub(super) owner: Option<ClusterName>,
    /// Sockets.
    pub(super) sockets: usize,
}

impl Ledger {
    pub(super) fn new(budget: Budget) -> Self {
        Self { budget, taken: 0, by_owner: BTreeMap::new() }
    }

    pub(super) fn budget(&self) -> Budget {
        self.budget
    }

    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// Sockets by owner.
    pub(super) fn by_owner(&self) -> &BTreeMap<Option<ClusterName>, usize> {
        &self.by_owner
    }

    /// Books up to `wished` sockets on the owner that has most room; `None` where none has any. More than one only from
    /// the first half of a share: the other half is for addresses that are to come.
    pub(super) fn book(&mut self, owners: &[ClusterName], wished: usize) -> Option<Grant> {
        // A cluster that exports what others export too can so take nothing from them but what is theirs anyway.
        let owner = owners.iter().max_by_key(|owner| self.room(Some(owner)));
        let room = self.room(owner);
        let half = self.budget.share / 2;
        let held = self.held(owner);
        if room == 0 {
            return None;
        }
        let sockets = wished.min(half.saturating_sub(held)).min(room).max(1);
        let grant = Grant { owner: owner.cloned(), sockets };
        self.add(&grant);
        Some(grant)
    }

    /// Gives back.
    pub(super) fn release(&mut self, grant: &Grant) {
        self.taken = self.taken.saturating_sub(grant.sockets);
        if let Some(held) = self.by_owner.get_mut(&grant.owner) {
            *held = held.saturating_sub(grant.sockets);
            if *held == 0 {
                self.by_owner.remove(&grant.owner);
            }
        }
    }

    /// Books a bound address on somebody who still owns it, where its owner no longer does. It stays bound even above a
    /// share.
    pub(super) fn follow(&mut self, grant: &mut Grant, owners: &[ClusterName]) {
        let owns = grant.owner.as_ref().map_or(owners.is_empty(), |owner| owners.contains(owner));
        if !owns {
            self.release(grant);
            let owner = owners.iter().max_by_key(|owner| self.room(Some(owner)));
            grant.owner = owner.cloned();
            self.add(grant);
        }
    }

    fn add(&mut self, grant: &Grant) {
        self.taken += grant.sockets;
        *self.by_owner.entry(grant.owner.clone()).or_default() += grant.sockets;
    }

    fn held(&self, owner: Option<&ClusterName>) -> usize {
        self.by_owner.get(&owner.cloned()).copied().unwrap_or_default()
    }

    /// How many more the owner may have: up to its share, and so that as many stay free as it then holds.
    fn room(&self, owner: Option<&ClusterName>) -> usize {
        let held = self.held(owner);
        let free = self.budget.total.saturating_sub(self.taken);
        self.budget.share.saturating_sub(held).min(free.saturating_sub(held) / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners(names: &[&str]) -> Vec<ClusterName> {
        names.iter().map(|name| ClusterName::parse(name).expect("a name")).collect()
    }

    /// As many addresses of one socket as the owners get.
    fn fill(ledger: &mut Ledger, names: &[&str]) -> usize {
        let owners = owners(names);
        std::iter::from_fn(|| ledger.book(&owners, 1)).count()
    }

    #[test]
    fn one_owner_never_takes_what_others_need() {
        let mut ledger = Ledger::new(Budget::new(512));
        assert_eq!(fill(&mut ledger, &["greedy"]), 128);
        assert_eq!(fill(&mut ledger, &["west"]), 128, "as if nobody else were there");
        assert_eq!(fill(&mut ledger, &["north"]), 128);
        let (fourth, fifth) = (fill(&mut ledger, &["south"]), fill(&mut ledger, &["east"]));
        assert_eq!((fourth, fifth), (64, 32), "less, but never nothing");
        assert!(ledger.taken() < 512);
    }

    #[test]
    fn who_exports_what_another_exports_cannot_use_up_that_ones_share() {
        let mut ledger = Ledger::new(Budget::new(512));
        assert_eq!(fill(&mut ledger, &["greedy"]), 128);
        // An address of both counts for the one that has room.
        let both = ledger.book(&owners(&["greedy", "west"]), 1).expect("room");
        assert_eq!(both.owner, owners(&["west"]).pop());
        assert_eq!(fill(&mut ledger, &["west"]), 127);
        assert_eq!(ledger.book(&owners(&["greedy", "west"]), 1), None);
    }

    #[test]
    fn who_wishes_more_sockets_than_there_is_room_for_gets_the_room() {
        let mut ledger = Ledger::new(Budget::new(64));
        for owner in ["greedy", "west", "north", "south"] {
            fill(&mut ledger, &[owner]);
        }
        let east = owners(&["east"]);
        let room = ledger.room(east.first());
        assert!(room < 8, "{room}");
        assert_eq!(ledger.book(&east, 8).expect("room").sockets, room);
        assert!(ledger.taken() < 64);
    }

    #[test]
    fn what_is_given_back_is_there_again() {
        let mut ledger = Ledger::new(Budget::new(64));
        let grant = ledger.book(&owners(&["west"]), 4).expect("room");
        assert_eq!((grant.sockets, ledger.taken()), (4, 4));
        assert_eq!(fill(&mut ledger, &["west"]), 12);
        ledger.release(&grant);
        assert_eq!(fill(&mut ledger, &["west"]), 4);
        assert_eq!(ledger.by_owner().len(), 1);
    }

    #[test]
    fn several_sockets_an_address_come_from_half_of_a_share() {
        let mut ledger = Ledger::new(Budget::new(512));
        let west = owners(&["west"]);
        let sockets: Vec<_> = std::iter::from_fn(|| ledger.book(&west, 4)).map(|grant| grant.sockets).collect();
        assert_eq!(sockets.iter().filter(|sockets| **sockets == 4).count(), 16);
        assert_eq!(sockets.iter().filter(|sockets| **sockets == 1).count(), 64);
    }

    #[test]
    fn an_address_counts_for_whoever_still_owns_it() {
        let mut ledger = Ledger::new(Budget::new(64));
        let mut grant = ledger.book(&owners(&["west"]), 1).expect("room");
        ledger.follow(&mut grant, &owners(&["west", "north"]));
        assert_eq!(grant.owner, owners(&["west"]).pop());
        ledger.follow(&mut grant, &owners(&["north"]));
        assert_eq!(ledger.by_owner().keys().cloned().collect::<Vec<_>>(), [owners(&["north"]).pop()]);
        ledger.follow(&mut grant, &[]);
        assert_eq!((grant.owner.clone(), ledger.taken()), (None, 1));
        ledger.follow(&mut grant, &[]);
        ledger.release(&grant);
        assert_eq!(ledger.taken(), 0);
    }

    #[test]
    fn the_budget_follows_the_descriptors() {
        assert_eq!(Budget::for_descriptors(4096), Budget { total: 512, share: 128 });
        assert_eq!(Budget::for_descriptors(0).total(), LEAST);
        assert_eq!(Budget::for_descriptors(u64::MAX), Budget { total: SOCKETS, share: SOCKETS / 4 });
        assert!(Budget::for_descriptors(1_048_576).share() >= 20_000, "the largest catalogue, under two names each");
    }
}
