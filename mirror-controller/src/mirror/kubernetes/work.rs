//! What of the mirrors is to be written, and writing it: a plan when something changed, batches of it until nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use serde_json::Value;
use tokio::time::Instant;

use super::super::desired::{MirrorId, Shape, Wanted};
use super::super::plan::{Action, Item, Place, Plan, Present, Reason, plan};
use super::super::state::MirrorSet;
use super::objects::{self, Given, Reference, Rendered, Resource};
use super::{AT_ONCE, BATCH, CALM, Keeper, PATIENCE, RETRY, Repairs, Stale, api};

/// What came of a write.
#[derive(Default)]
struct Outcome {
    /// ClusterIPs, by Service.
    given: Given,
    /// The objects that the mirror has now.
    written: BTreeSet<Reference>,
}

impl Keeper {
    /// When to work again without any news: at once while there is more to do, later for what failed.
    pub(super) fn next_try(&self) -> Option<Instant> {
        let now = Instant::now();
        let waits = |place: &Place| self.pauses.contains_key(place);
        let mut stale =
            self.stale.iter().filter(|(place, _)| !waits(place)).map(|(place, what)| self.rest(place, *what));
        let is_pressing =
            self.due.keys().any(|place| !waits(place)) || stale.any(|rest| rest.is_none_or(|at| at <= now));
        let next = if is_pressing {
            Some(now)
        } else {
            let rests = self.stale.iter().filter_map(|(place, what)| self.rest(place, *what));
            self.pauses.values().map(|(at, _)| *at).chain(rests).min()
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
        for (place, reference) in self.orphans(set) {
            if let Err(error) = self.api.remove(&place, &reference).await {
                // Not pressing: the next list shows it again.
                tracing::debug!(object = reference.name, %error, "an orphan cannot be deleted");
            }
        }
        let batch = self.batch(now);
        let this = &*self;
        let writes = batch.into_iter().map(|(item, stale)| async move {
            let result = this.write(&item, stale).await;
            (item, stale, result)
        });
        let results: Vec<_> = stream::iter(writes).buffer_unordered(self.at_once).collect().await;
        let busy = results.iter().any(|(_, _, result)| matches!(result, Err(api::WriteError::Busy)));
        self.at_once = if busy { (self.at_once / 2).max(1) } else { (self.at_once + 1).min(AT_ONCE) };
        for (item, stale, result) in results {
            self.written(item, stale, result);
        }
        plans
    }

    /// Takes what is to be deleted: objects that no mirror has. One whose labels say the wrong mirror is written again instead.
    fn orphans(&mut self, set: &MirrorSet) -> Vec<(Place, Reference)> {
        let orphans = std::mem::take(&mut self.orphans);
        if orphans.is_empty() {
            return Vec::new();
        }
        let mut owners: BTreeMap<String, &Arc<Wanted>> = BTreeMap::new();
        for wanted in set.wanted.values() {
            let own = matches!(wanted.id, MirrorId::Cluster { .. }).then(|| wanted.object.clone());
            owners.extend(objects::services(wanted).chain(own).map(|service| (service.to_string(), wanted)));
        }
        let mut gone = Vec::new();
        for (place, reference) in orphans {
            // Slices are called after the Service that they belong to.
            let name = reference.name.split_once('.').or_else(|| reference.name.rsplit_once("-linkspan-"));
            let service = format!("{}/{}", reference.namespace, name.map_or(reference.name.as_str(), |(name, _)| name));
            let owner = owners.get(&service).filter(|_| reference.resource != Resource::ServiceImport);
            let owner = owner.filter(|wanted| Place::of(wanted) != place);
            let has = |wanted: &Wanted| objects::one(wanted, &self.gateways, &self.given, &reference).is_some();
            match owner.filter(|wanted| has(wanted)).map(|wanted| Place::of(wanted)) {
                Some(owner) => self.spoil(owner, Stale::All),
                None => gone.push((place, reference)),
            }
        }
        gone
    }

    /// Finds out what is due.
    fn plan(&mut self, set: &MirrorSet, now: Instant) {
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
        let (due, stale, present) = (&self.due, &self.stale, &self.present);
        self.pauses.retain(|place, _| {
            due.contains_key(place) || stale.contains_key(place) || present.get(place) == Some(&Present::Foreign)
        });
        self.blocked.retain(|place| self.pauses.contains_key(place));
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
        Some(repairs.last + pause(over))
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
                self.blocked.remove(&place);
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
            Err(api::WriteError::Foreign) => {
                tracing::warn!(object = %place.object, "an object of this name is there and is not ours; it is left alone");
                // It is looked for again after the longest pause: nobody watches what is not ours.
                self.pauses.insert(place.clone(), (Instant::now() + RETRY.1, 0));
                self.blocked.insert(place.clone());
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
            Err(error) => {
                self.metrics.failed();
                let failures = self.pauses.get(&place).map_or(0, |(_, failures)| *failures);
                tracing::warn!(object = %place.object, %error, "a mirrored object cannot be written; trying again");
                self.pauses.insert(place, (Instant::now() + pause(failures), failures.saturating_add(1)));
                self.put_back(item, stale);
            }
        }
    }
}

/// The pause after so many failures before.
fn pause(failures: u32) -> Duration {
    (RETRY.0 * 2_u32.saturating_pow(failures.min(16))).min(RETRY.1)
}
