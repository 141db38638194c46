//! What events do to the objects that the catalog holds, and what is to be found out anew because of that.
//!
//! - In: one [`Event`], or all of a list at once.
//! - Out: the objects of the catalog, and its `dirty`.
//! - Refuses when: a name is none; the object is passed over, with a warning.
//! - Never does: forget a policy while it is in doubt which policies there are.

use std::collections::BTreeSet;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use linkspan_proto::names::{Namespace, ServiceKey, ServiceName};
use linkspan_proto::resources::SERVICE_NAME_LABEL;

use super::{Catalog, traffic};
use crate::watch::{Doubt, Event, Kind, Object, ObjectKey};

impl Catalog {
    /// Takes a whole list: what it does not name is gone.
    pub(super) fn replace(&mut self, events: Vec<Event>) {
        let mut named: BTreeSet<ObjectKey> = BTreeSet::new();
        let mut doubt = Doubt::default();
        for event in &events {
            match event {
                Event::Apply(object) => drop(named.insert(object.key())),
                Event::Doubt(told) => doubt.clone_from(told),
                _ => {}
            }
        }
        // What may forbid something counts before what it may forbid.
        self.doubt(self.doubt.and(&doubt));
        let gone: Vec<_> = self.keys().into_iter().filter(|key| !named.contains(key)).collect();
        let others = events.into_iter().filter(|event| !matches!(event, Event::Doubt(_)));
        for event in gone.into_iter().map(Event::Delete).chain(others) {
            self.change(event);
        }
        self.doubt(doubt);
        // From before a restart, and gone since.
        self.good_traffic.retain(|key, _| self.traffic.contains_key(key));
        self.dirty.links = true;
        self.dirty.traffic = true;
    }

    fn keys(&self) -> Vec<ObjectKey> {
        let key = |kind, namespace: &str, name: &str| ObjectKey {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let service = |kind, of: &ServiceKey| key(kind, of.namespace.as_str(), of.name.as_str());
        let mut keys = Vec::new();
        keys.extend(self.services.keys().map(|of| service(Kind::Service, of)));
        keys.extend(self.wishes.keys().map(|of| service(Kind::ServiceExport, of)));
        keys.extend(self.slice_owners.keys().map(|(namespace, name)| key(Kind::EndpointSlice, namespace, name)));
        keys.extend(self.policies.keys().map(|(namespace, name)| key(Kind::ExportPolicy, namespace.as_str(), name)));
        keys.extend(self.links.keys().map(|name| key(Kind::Link, "", name)));
        keys.extend(self.traffic.keys().cloned());
        keys
    }

    /// Takes one change.
    pub(super) fn change(&mut self, event: Event) {
        match event {
            Event::Apply(object) => self.apply(*object),
            Event::Delete(key) => self.delete(&key),
            Event::Doubt(doubt) => self.doubt(doubt),
            Event::Init | Event::InitDone => {}
        }
    }

    fn apply(&mut self, object: Object) {
        let key = object.key();
        match object {
            Object::Service(service) => {
                if let Some(key) = service_key(&key) {
                    self.touch_service(&key);
                    self.services.insert(key, service);
                }
            }
            Object::EndpointSlice(slice) => self.file_slice(&key, Some(slice)),
            Object::ServiceExport(wish) => {
                if let Some(key) = service_key(&key) {
                    self.wishes.insert(key.clone(), wish);
                    self.dirty.exports.insert(key);
                }
            }
            Object::Link(link) => {
                self.links.insert(key.name, link);
                self.dirty.links = true;
            }
            Object::ClusterTrafficPolicy(policy) => {
                if traffic::check(&key, &policy).is_ok() {
                    self.good_traffic.insert(key.clone(), policy.clone());
                }
                self.traffic.insert(key, policy);
                self.dirty.traffic = true;
            }
            Object::ExportPolicy(policy) => {
                if let Ok(namespace) = Namespace::parse(&key.namespace) {
                    self.touch_namespace(&namespace);
                    let id = (namespace, key.name);
                    self.lingering.remove(&id);
                    self.policies.insert(id, policy);
                }
            }
        }
    }

    fn delete(&mut self, key: &ObjectKey) {
        match key.kind {
            Kind::Service => {
                if let Some(key) = service_key(key) {
                    self.touch_service(&key);
                    self.services.remove(&key);
                }
            }
            Kind::EndpointSlice => self.file_slice(key, None),
            Kind::ServiceExport => {
                if let Some(key) = service_key(key) {
                    self.wishes.remove(&key);
                    self.dirty.exports.insert(key);
                }
            }
            Kind::Link => {
                self.links.remove(&key.name);
                self.good_links.remove(&key.name);
                self.dirty.links = true;
            }
            Kind::ClusterTrafficPolicy => {
                self.traffic.remove(key);
                self.good_traffic.remove(key);
                self.dirty.traffic = true;
            }
            Kind::ExportPolicy => {
                if let Ok(namespace) = Namespace::parse(&key.namespace) {
                    self.touch_namespace(&namespace);
                    let id = (namespace, key.name.clone());
                    if self.doubt.covers(&key.namespace) && self.policies.contains_key(&id) {
                        // It may be what cannot be read.
                        self.lingering.insert(id);
                    } else {
                        self.policies.remove(&id);
                    }
                }
            }
        }
    }

    /// Files a slice under the service that its label names, and forgets where it was filed before.
    fn file_slice(&mut self, key: &ObjectKey, slice: Option<EndpointSlice>) {
        let id = (key.namespace.clone(), key.name.clone());
        if let Some(owner) = self.slice_owners.remove(&id) {
            if let Some(slices) = self.slices.get_mut(&owner) {
                slices.remove(&key.name);
                if slices.is_empty() {
                    self.slices.remove(&owner);
                }
            }
            self.dirty.exports.insert(owner);
        }
        let Some(slice) = slice else { return };
        let owner = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME_LABEL));
        let owner = owner.and_then(|name| ServiceName::parse(name).ok());
        if let (Some(name), Ok(namespace)) = (owner, Namespace::parse(&key.namespace)) {
            let owner = ServiceKey::new(namespace, name);
            self.slices.entry(owner.clone()).or_default().insert(key.name.clone(), slice);
            self.slice_owners.insert(id, owner.clone());
            self.dirty.exports.insert(owner);
        }
    }

    fn touch_service(&mut self, key: &ServiceKey) {
        self.dirty.exports.insert(key.clone());
        self.dirty.services = true;
    }

    fn touch_namespace(&mut self, namespace: &Namespace) {
        let exports = self.snapshot.exports.keys().filter(|key| key.namespace == *namespace);
        self.dirty.exports.extend(exports.cloned());
    }

    /// Takes over what is in doubt, and lets go of what was kept because of doubts that are gone.
    fn doubt(&mut self, doubt: Doubt) {
        let closed = std::mem::take(&mut self.closed);
        let (closed, reopened): (BTreeSet<_>, BTreeSet<_>) =
            closed.into_iter().partition(|key| doubt.covers(key.namespace.as_str()));
        self.closed = closed;
        self.dirty.exports.extend(reopened);
        let lingering = std::mem::take(&mut self.lingering);
        for id in lingering {
            if doubt.covers(id.0.as_str()) {
                self.lingering.insert(id);
            } else {
                self.touch_namespace(&id.0);
                self.policies.remove(&id);
            }
        }
        self.dirty.links |= self.doubt.links != doubt.links;
        self.doubt = doubt;
    }
}

fn service_key(key: &ObjectKey) -> Option<ServiceKey> {
    let parsed = Namespace::parse(&key.namespace)
        .and_then(|namespace| Ok(ServiceKey::new(namespace, ServiceName::parse(&key.name)?)));
    match parsed {
        Ok(key) => Some(key),
        Err(error) => {
            tracing::warn!(kind = key.kind.as_str(), %error, "an object is passed over");
            None
        }
    }
}
