//! What of the mirrors is to be written, and writing it: a plan when something changed, batches of it until nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use serde_json::Value;
use tokio::time::Instant;

use super::super::collect::Gone;
use super::super::desired::{MirrorId, Shape, Wanted};
use super::super::plan::{Action, Item, Place, Plan, Present, Reason, plan};
use super::super::state::MirrorSet;
use super::objects::{self, Given, Reference, Rendered, Resource};
use super::{AT_ONCE, BATCH, Blocked, CALM, Keeper, Orphan, PATIENCE, REFUSED, RETRY, Repairs, Stale, api};

/// What came of a write.
#[derive(Default)]
struct Outcome {
    /// ClusterIPs, by Service.
    given: Given,
    /// The objects that the mirror has now.
    written: BTreeSet<Reference>,
}

/// One thing to do.
enum Task {
    Write(Item, Option<Stale>),
    Remove(Orphan, u32),
}

/// What came of it.
enum Done {
    Written(Item, Option<Stale>, Result<Outcome, api::WriteError>),
    Removed(Orphan, u32, Result<(), api::WriteError>),
}

impl Done {
    const fn error(&self) -> Option<&api::WriteError> {
        match self {
            Self::Written(_, _, Err(error)) | Self::Removed(_, _, Err(error)) => Some(error),
            Self::Written(..) | Self::Removed(..) => None,
        }
    }
}

impl Keeper {
    /// When to work again without any news: at once while there is more to do, later for what failed.
    pub(super) fn next_try(&self) -> Option<Instant> {
        let now = Instant::now();
        let waits = |place: &Place| self.pauses.contains_key(place);
        let mut stale =
            self.stale.iter().filter(|(place, _)| !waits(place)).map(|(place, what)| self.rest(place, *what));
        let orphans = || self.orphans.iter().filter(|((place, _), _)| !self.is_due(place)).map(|(_, (at, _))| *at);
        let is_pressing = self.due.keys().any(|place| !waits(place))
            || stale.any(|rest| rest.is_none_or(|at| at <= now))
            || orphans().any(|at| at <= now);
        let next = if is_pressing {
            Some(now)
        } else {
            let rests = self.stale.iter().filter_map(|(place, what)| self.rest(place, *what));
            self.pauses.values().map(|(at, _)| *at).chain(rests).chain(orphans()).min()
        };
        next.map(|next| self.api.busy_until().map_or(next, |until| next.max(until)))
    }

    /// Whether what is due must be found out anew.
    pub(super) fn is_unplanned(&self, set: &MirrorSet) -> bool {
        self.unplanned || !self.planned.is(set)
    }

    /// Does up to one batch of what is to be done; says whether it found out anew what that is.
    pub(super) async fn work(&mut self, set: &MirrorSet) -> bool {
        let now = Instant::now();
        let ended = |(place, (at, _)): (&Place, &(Instant, u32))| {
            *at <= now && self.present.get(place) == Some(&Present::Foreign)
        };
        let plans = self.is_unplanned(set) || self.pauses.iter().any(ended);
        if plans {
            self.plan(set, now);
        }
        if self.api.busy_until().is_some() {
            return plans;
        }
        let orphans = self.orphans(set, now);
        let batch = self.batch(now);
        let this = &*self;
        let writes = batch.into_iter().map(|(item, stale)| Task::Write(item, stale));
        // Nobody misses them: after whatever is wanted.
        let removals = orphans.into_iter().map(|(orphan, failures)| Task::Remove(orphan, failures));
        let tasks: Vec<_> = writes.chain(removals).collect();
        let tasks = tasks.into_iter().map(|task| async move {
            match task {
                Task::Write(item, stale) => {
                    let result = this.write(&item, stale).await;
                    Done::Written(item, stale, result)
                }
                Task::Remove(orphan, failures) => {
                    let result = this.api.remove(&orphan.0, &orphan.1).await;
                    Done::Removed(orphan, failures, result)
                }
            }
        });
        let results: Vec<_> = stream::iter(tasks).buffer_unordered(self.at_once).collect().await;
        let busy = results.iter().any(|done| matches!(done.error(), Some(api::WriteError::Busy)));
        self.at_once = if busy { (self.at_once / 2).max(1) } else { (self.at_once + 1).min(AT_ONCE) };
        for done in results {
            match done {
                Done::Written(item, stale, result) => self.written(item, stale, result),
                Done::Removed(orphan, failures, result) => self.removed(orphan, failures, result),
            }
        }
        plans
    }

    /// Whether something of a mirror is to be written.
    fn is_due(&self, place: &Place) -> bool {
        self.due.contains_key(place) || self.stale.contains_key(place)
    }

    /// Takes up to a batch of objects that no mirror has, to be deleted. One whose labels say the wrong mirror is written again
    /// instead. Those of a mirror that is to be written wait for that, which removes what is left over, or may need it.
    fn orphans(&mut self, set: &MirrorSet, now: Instant) -> Vec<(Orphan, u32)> {
        let ready = self.orphans.iter().filter(|((place, _), (at, _))| *at <= now && !self.is_due(place));
        let ready: Vec<Orphan> = ready.take(BATCH).map(|(orphan, _)| orphan.clone()).collect();
        if ready.is_empty() {
            return Vec::new();
        }
        let mut owners: BTreeMap<String, &Arc<Wanted>> = BTreeMap::new();
        for wanted in set.wanted.values() {
            let own = matches!(wanted.id, MirrorId::Cluster { .. }).then(|| wanted.object.clone());
            owners.extend(objects::services(wanted).chain(own).map(|service| (service.to_string(), wanted)));
        }
        let mut gone = Vec::new();
        for orphan in ready {
            let Some((_, failures)) = self.orphans.remove(&orphan) else { continue };
            let (place, reference) = &orphan;
            if self.wants(set, place, reference) {
                continue;
            }
            // Slices are called after the Service that they belong to.
            let name = reference.name.split_once('.').or_else(|| reference.name.rsplit_once("-linkspan-"));
            let service = format!("{}/{}", reference.namespace, name.map_or(reference.name.as_str(), |(name, _)| name));
            let owner = owners.get(&service).filter(|_| reference.resource != Resource::ServiceImport);
            let owner = owner.filter(|wanted| Place::of(wanted) != *place);
            let has = |wanted: &Wanted| objects::one(wanted, &self.gateways, &self.given, reference).is_some();
            match owner.filter(|wanted| has(wanted)).map(|wanted| Place::of(wanted)) {
                Some(owner) => self.spoil(owner, Stale::All),
                None => gone.push((orphan, failures)),
            }
        }
        gone
    }

    /// Puts back what could not be deleted: no watch shows it again unless it breaks off.
    fn removed(&mut self, orphan: Orphan, failures: u32, result: Result<(), api::WriteError>) {
        let (at, failures) = match result {
            Ok(()) => return,
            // Everything waits then.
            Err(api::WriteError::NotLeading | api::WriteError::Busy) => (Instant::now(), failures),
            Err(error) => {
                self.metrics.failed();
                tracing::warn!(object = orphan.1.name, %error, "an orphan cannot be deleted; trying again");
                let longest = if matches!(error, api::WriteError::Refused(_)) { REFUSED } else { RETRY.1 };
                (Instant::now() + pause(failures, longest), failures.saturating_add(1))
            }
        };
        self.orphans.insert(orphan, (at, failures));
    }

    /// Finds out what is due.
    pub(super) fn plan(&mut self, set: &MirrorSet, now: Instant) {
        // Somebody else's object may be gone, and one that is in nobody's way is none of our business.
        let waits = |place: &Place, id: &MirrorId| {
            set.wanted.contains_key(id) && self.pauses.get(place).is_some_and(|(at, _)| *at > now)
        };
        if self.present.values().any(|present| *present == Present::Foreign) {
            let wanted: BTreeMap<Place, &MirrorId> = set.wanted.values().map(|it| (Place::of(it), &it.id)).collect();
            self.present.retain(|place, present| {
                *present != Present::Foreign || wanted.get(place).is_some_and(|id| waits(place, id))
            });
        }
        let Plan { items, .. } = plan(set, &self.present, |_| "never equal".to_owned());
        let may = |item: &Item| {
            item.action == Action::Delete || self.namespaces.contains(item.place.object.namespace.as_str())
        };
        self.due = items.into_iter().filter(may).map(|item| (item.place.clone(), item)).collect();
        // What was made before a namespace was left out would lead to gateways that are gone.
        let outside =
            self.objects.keys().filter(|place| !self.only.is_empty() && !self.only.contains(&place.object.namespace));
        let gone =
            |place: &Place| Item { place: place.clone(), action: Action::Delete, reason: Reason::Gone(Gone::Refused) };
        self.due.extend(outside.map(|place| (place.clone(), gone(place))));
        let (due, stale, present) = (&self.due, &self.stale, &self.present);
        self.pauses.retain(|place, (at, _)| {
            // What is wanted now may be what is not refused; of a service that changes all the time not each change is tried.
            if let Some(Blocked::Refused { wanted, tried, .. }) = self.blocked.get(place)
                && due.get(place).is_some_and(|item| item.action.wanted() != wanted.as_ref())
            {
                *at = (*at).min(now.max(*tried + RETRY.1));
            }
            due.contains_key(place) || stale.contains_key(place) || present.get(place) == Some(&Present::Foreign)
        });
        self.blocked.retain(|place, _| self.pauses.contains_key(place));
        self.repairs.retain(|_, repairs| repairs.last + CALM > now);
        self.planned = set.clone();
        self.unplanned = false;
    }

    /// Takes what is written next.
    fn batch(&mut self, now: Instant) -> Vec<(Item, Option<Stale>)> {
        let ready = |place: &&Place| self.pauses.get(*place).is_none_or(|(at, _)| *at <= now);
        let mut places: Vec<Place> = self.due.keys().filter(ready).take(BATCH).cloned().collect();
        let rested = |(place, what): &(&Place, &Stale)| self.rest(place, **what).is_none_or(|at| at <= now);
        let stale = self.stale.iter().filter(rested).map(|(place, _)| place);
        let stale = stale.filter(|place| !self.due.contains_key(*place)).filter(ready);
        places.extend(stale.take(BATCH - places.len()).cloned());
        places.into_iter().filter_map(|place| self.take(place)).collect()
    }

    /// When a mirror that somebody changes again and again is put back next; `None`: at once.
    fn rest(&self, place: &Place, what: Stale) -> Option<Instant> {
        let repairs = self.repairs.get(place).filter(|_| what == Stale::All)?;
        let over = repairs.count.checked_sub(PATIENCE)?;
        Some(repairs.last + pause(over, RETRY.1))
    }

    /// Counts a repair of what somebody changed.
    fn repaired(&mut self, place: &Place) {
        let now = Instant::now();
        let repairs = self.repairs.entry(place.clone()).or_insert(Repairs { count: 0, last: now });
        let count = if repairs.last + CALM > now { repairs.count.saturating_add(1) } else { 1 };
        *repairs = Repairs { count, last: now };
        if count == PATIENCE {
            tracing::warn!(
                object = %place.object,
                "a mirrored object is changed by somebody else again and again; it is put back less often from now on"
            );
        }
    }

    fn take(&mut self, place: Place) -> Option<(Item, Option<Stale>)> {
        let stale = self.stale.remove(&place);
        if let Some(item) = self.due.remove(&place) {
            return Some((item, stale));
        }
        // What is not there as it was written is planned, and not drifted.
        match self.present.get(&place) {
            Some(Present::Written(wanted)) if self.namespaces.contains(place.object.namespace.as_str()) => {
                let action = Action::Patch(wanted.clone());
                Some((Item { place, action, reason: Reason::Drifted }, stale))
            }
            _ => {
                self.pauses.remove(&place);
                None
            }
        }
    }

    /// Puts back what could not be written.
    fn put_back(&mut self, item: Item, stale: Option<Stale>) {
        if let Some(stale) = stale {
            self.spoil(item.place.clone(), stale);
        }
        if item.reason != Reason::Drifted {
            self.due.insert(item.place.clone(), item);
        }
    }

    /// Writes what differs from what was written before; returns what the API server gave.
    async fn write(&self, item: &Item, stale: Option<Stale>) -> Result<Outcome, api::WriteError> {
        let none = BTreeSet::new();
        let ours = self.objects.get(&item.place).unwrap_or(&none);
        let (Action::Create(wanted) | Action::Patch(wanted)) = &item.action else {
            return self.api.delete(&item.place, ours).await.map(|()| Outcome::default());
        };
        let old = match self.present.get(&item.place) {
            Some(Present::Written(old)) => Some(old),
            _ => None,
        };
        let before: BTreeMap<Reference, Value> = old
            .into_iter()
            .flat_map(|old| self.rendered(old))
            .map(|rendered| (rendered.reference, rendered.value))
            .collect();
        let same_clusters = old.is_some_and(|old| old.clusters == wanted.clusters);
        let skip = |rendered: &Rendered| {
            let touched = match stale {
                None => false,
                Some(Stale::Slices) => rendered.reference.resource == Resource::EndpointSlice,
                Some(Stale::All) => true,
            };
            // The clusters behind an import stand in its status, which is no part of what is compared.
            let others = rendered.reference.resource == Resource::ServiceImport && !same_clusters;
            !touched && !others && before.get(&rendered.reference) == Some(&rendered.value)
        };
        let given = self.api.apply(wanted, &self.gateways, &self.given, ours, skip).await?;
        let kept: BTreeSet<Reference> =
            objects::objects(wanted, &self.gateways, &given).into_iter().map(|rendered| rendered.reference).collect();
        for reference in ours.difference(&kept) {
            self.api.remove(&item.place, reference).await?;
        }
        Ok(Outcome { given, written: kept })
    }

    fn written(&mut self, item: Item, stale: Option<Stale>, result: Result<Outcome, api::WriteError>) {
        let place = item.place.clone();
        match result {
            Ok(Outcome { given, written }) => {
                self.pauses.remove(&place);
                // Told again.
                self.unplanned |= self.blocked.remove(&place).is_some();
                written.into_iter().for_each(|reference| self.claim(reference, &place));
                self.metrics.applied(&item.action);
                if item.reason == Reason::Drifted && stale == Some(Stale::All) {
                    self.repaired(&place);
                }
                tracing::debug!(object = %place.object, reason = ?item.reason, "mirrored object written");
                match item.action {
                    Action::Create(wanted) | Action::Patch(wanted) => {
                        let lasting = matches!(wanted.id, MirrorId::Clusterset { .. })
                            || matches!(wanted.shape, Shape::Headless { .. });
                        for (service, ips) in given.into_iter().filter(|_| lasting) {
                            let same = self.given.get(&service) == Some(&ips);
                            self.given_changed |= !same;
                            self.given.insert(service, ips);
                        }
                        self.present.insert(place, Present::Written(wanted));
                    }
                    Action::Delete => drop(self.present.remove(&place)),
                }
            }
            Err(api::WriteError::Foreign(what)) => {
                tracing::warn!(mirror = %place.object, object = %what, "an object of this name is there and is not ours; it is left alone");
                // It is looked for again after the longest pause: nobody watches what is not ours.
                self.pauses.insert(place.clone(), (Instant::now() + RETRY.1, 0));
                self.blocked.insert(place.clone(), Blocked::Foreign(what));
                if self.objects.contains_key(&place) {
                    // It has some of what it needs, which must not be forgotten.
                    self.put_back(item, stale);
                } else {
                    self.present.insert(place, Present::Foreign);
                }
                self.unplanned = true;
            }
            // Everything waits then.
            Err(api::WriteError::NotLeading | api::WriteError::Busy) => self.put_back(item, stale),
            Err(api::WriteError::Refused(why)) => {
                self.metrics.failed();
                self.fails(&place, REFUSED);
                self.refused(&place, item.action.wanted().cloned(), why);
                self.put_back(item, stale);
            }
            Err(error) => {
                self.metrics.failed();
                tracing::warn!(object = %place.object, %error, "a mirrored object cannot be written; trying again");
                self.fails(&place, RETRY.1);
                self.put_back(item, stale);
            }
        }
    }

    /// Notes when a place is tried again that failed.
    pub(super) fn fails(&mut self, place: &Place, longest: Duration) {
        let failures = self.pauses.get(place).map_or(0, |(_, failures)| *failures);
        let next = Instant::now() + spread(place, failures, pause(failures, longest));
        self.pauses.insert(place.clone(), (next, failures.saturating_add(1)));
    }

    /// Notes what the API server says of a place; told once.
    fn refused(&mut self, place: &Place, wanted: Option<Arc<Wanted>>, why: String) {
        let known = matches!(self.blocked.get(place), Some(Blocked::Refused { why: before, .. }) if *before == why);
        if !known {
            tracing::warn!(
                object = %place.object,
                error = why,
                "the API server refuses a mirrored object; trying again, less and less often"
            );
            self.unplanned = true;
        }
        self.blocked.insert(place.clone(), Blocked::Refused { wanted, why, tried: Instant::now() });
    }
}

/// The pause after so many failures before.
fn pause(failures: u32, longest: Duration) -> Duration {
    (RETRY.0 * 2_u32.saturating_pow(failures.min(16))).min(longest)
}

/// Between half of a pause and all of it, of one length for one place: what failed together does not come back together.
fn spread(place: &Place, failures: u32, pause: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    (place, failures).hash(&mut hasher);
    // A thousand steps are finer than a call takes.
    let step = u32::try_from(hasher.finish() % 1000).unwrap_or_default();
    pause / 2 + pause / 2 * step / 1000
}
