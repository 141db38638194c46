//! What the watches say of our objects, and whose each object is: by its labels when it is first seen, by what we wrote from then
//! on. Somebody who edits a label of ours must neither turn an object into another mirror's nor into nobody's.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;

use super::super::desired::MirrorId;
use super::super::plan::{Place, Present};
use super::super::state::MirrorSet;
use super::api::Said;
use super::found::Found;
use super::objects::{self, Reference, Resource};
use super::{Exactly, Keeper, Stale, place};
use crate::labels;

impl Keeper {
    /// What a watch says about objects with our label.
    pub(super) fn observe(&mut self, set: &MirrorSet, resource: Resource, said: Said) {
        match said {
            // Nothing is known before the first list.
            Said::Listing if !self.listed.contains(&resource) => {}
            Said::Listing => drop(self.listing.insert(resource, BTreeSet::new())),
            Said::Object(value) => {
                let reference = place::reference(resource, &value);
                if let Some(listing) = self.listing.get_mut(&resource) {
                    listing.insert(reference.clone());
                }
                self.seen(set, reference, &value);
            }
            Said::Gone(value) => self.gone(&place::reference(resource, &value)),
            // Plain mirrors need no imports. Whatever was known stays until a list tells.
            Said::NotServed => drop(self.listed.insert(resource)),
            Said::Listed => {
                self.listed.insert(resource);
                if resource == Resource::ServiceImport {
                    // What was refused for want of them need not wait.
                    self.pauses.retain(|place, _| !(place.import && self.blocked.contains_key(place)));
                    self.unplanned |= !self.blocked.is_empty();
                }
                // What went while no watch stood is told by its absence alone.
                let Some(listed) = self.listing.remove(&resource) else { return };
                let of_it = self.places.keys().filter(|reference| reference.resource == resource);
                let missing: Vec<_> = of_it.filter(|reference| !listed.contains(reference)).cloned().collect();
                missing.iter().for_each(|reference| self.gone(reference));
            }
        }
    }

    fn seen(&mut self, set: &MirrorSet, reference: Reference, value: &Value) {
        let identified = place::identify(reference.resource, value);
        let owner = self.places.get(&reference).cloned();
        if let Some(owner) = owner.filter(|owner| identified.as_ref().is_none_or(|(_, place)| place != owner)) {
            if self.wants(set, &owner, &reference) {
                // Labels of ours were edited: written again at once, with them.
                self.spoil(owner, Stale::All);
                return;
            }
            self.forget(&reference);
        }
        let Some((id, place)) = identified else { return };
        self.claim(reference.clone(), &place);
        let moved = self.observe_address(&id, &reference, value);
        match self.present.get(&place) {
            Some(Present::Written(wanted)) => {
                let wanted = Arc::clone(wanted);
                let rendered = objects::one(&wanted, &self.gateways, &self.given, &reference);
                let plain = self.api.plain_imports();
                match rendered.map(|rendered| super::is_as(&wanted, &rendered, value, Exactly::Spec, plain)) {
                    Some(true) if !moved => {}
                    Some(_) => self.spoil(place, Stale::All),
                    None => self.orphaned(place, reference),
                }
            }
            _ => {
                // Kept for a comparison only where there may be something to compare it with.
                if set.wanted.is_empty() || set.wanted.contains_key(&id) {
                    self.found.entry(place.clone()).or_default().insert(reference, Found::new(value));
                }
                self.present.insert(place, Present::Found { id, text: String::new() });
                self.unplanned = true;
            }
        }
    }

    fn gone(&mut self, reference: &Reference) {
        let Some(place) = self.forget(reference) else { return };
        if let Some(service) = place::service(reference) {
            self.given_changed |= self.given.remove(&service).is_some();
        }
        self.orphans.remove(&(place.clone(), reference.clone()));
        match self.present.get(&place) {
            // What the mirror has not (any more), we deleted ourselves.
            Some(Present::Written(wanted))
                if objects::one(wanted, &self.gateways, &self.given, reference).is_some() =>
            {
                self.spoil(place, Stale::All);
            }
            Some(Present::Found { .. }) if !self.objects.contains_key(&place) => {
                self.present.remove(&place);
                self.unplanned = true;
            }
            _ => {}
        }
    }

    /// Whether a mirror, as it was written or as it is wanted, has this object.
    pub(super) fn wants(&self, set: &MirrorSet, place: &Place, reference: &Reference) -> bool {
        let wanted = match self.present.get(place) {
            Some(Present::Written(wanted)) => Some(wanted),
            Some(Present::Found { id, .. }) => set.wanted.get(id),
            Some(Present::Foreign) | None => None,
        };
        wanted.is_some_and(|wanted| objects::one(wanted, &self.gateways, &self.given, reference).is_some())
    }

    /// An object is to be deleted which its mirror has not.
    pub(super) fn orphaned(&mut self, place: Place, reference: Reference) {
        self.orphans.entry((place, reference)).or_insert_with(|| (Instant::now(), 0));
    }

    /// An object belongs to this place from now on.
    pub(super) fn claim(&mut self, reference: Reference, place: &Place) {
        if self.places.get(&reference) == Some(place) {
            return;
        }
        self.forget(&reference);
        self.objects.entry(place.clone()).or_default().insert(reference.clone());
        self.places.insert(reference, place.clone());
    }

    /// An object belongs to nobody from now on; says whose it was.
    fn forget(&mut self, reference: &Reference) -> Option<Place> {
        let place = self.places.remove(reference)?;
        if let Some(found) = self.found.get_mut(&place) {
            found.remove(reference);
        }
        if let Some(objects) = self.objects.get_mut(&place) {
            objects.remove(reference);
            if objects.is_empty() {
                self.objects.remove(&place);
            }
        }
        Some(place)
    }

    /// Notes the ClusterIPs of a Service whose addresses stand elsewhere; says whether they are others than before.
    fn observe_address(&mut self, id: &MirrorId, reference: &Reference, value: &Value) -> bool {
        let Some(service) = place::service(reference) else { return false };
        let is_endpoint = value.pointer("/metadata/labels").is_some_and(|all| all.get(labels::ENDPOINT).is_some());
        if !is_endpoint && matches!(id, MirrorId::Cluster { .. }) {
            return false;
        }
        let ips = place::cluster_ips(value);
        let moved = self.given.get(&service) != Some(&ips);
        if moved {
            self.given.insert(service, ips);
            self.given_changed = true;
        }
        moved
    }
}
