//! Stage 2: what this cluster exports, and to whom it is linked. Pure state: events in, snapshots out.
//!
//! - **In**: [`Event`]s of a source.
//! - **Out**: a [`Snapshot`] whose unchanged parts are the same allocations as before.
//! - **Refuses when**: an object cannot do what it asks; the report of that object says why, in a closed set of reasons.
//! - **Never does**: export a mirror (S-42), or let one object's mistake touch another's. The order of events does not
//!   matter: the same objects give the same snapshot. Three things remember, on purpose:
//!   - a Link or traffic policy that is refused keeps its last good version, on a site also over a restart ([`Accepted`]);
//!   - a trust domain stays with the Link that had it first (F-41), on a site also over a restart;
//!   - while it is in doubt whether a namespace has an ExportPolicy that cannot be read ([`Doubt`]), exports that come are
//!     closed unless another policy selects them, those that were there keep their rules, and no policy is forgotten
//!     (S-51: fail closed for what is new, keep what was). After a restart everything is new.
//! - **Numbers**: [`linkspan_proto::exchange::MAX_SERVICES`] exports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use linkspan_proto::configuration::{Export, ExportRule};
use linkspan_proto::exchange::{CatalogueEntry, MAX_SERVICES};
use linkspan_proto::metadata::Exclusions;
use linkspan_proto::names::{ClusterName, Namespace, ServiceKey, ServiceName};
use linkspan_proto::resources::{
    ClusterTrafficPolicy, ExportPolicy, LINKERD_EXPORT_LABEL, Link, SERVICE_NAME_LABEL, ServiceExport,
};

use crate::labels;
use crate::watch::{Doubt, Event, Kind, Object, ObjectKey};

// What is in force, over a restart.
pub mod accepted;
// What goes with an export beside ports and endpoints.
mod details;
mod export;
mod link;
// What the catalog publishes.
pub mod snapshot;
mod traffic;

pub use accepted::Accepted;
pub use link::Own;
pub use snapshot::{ExportReport, LinkReport, Snapshot, Traffic};

/// All local objects and what follows from them.
#[derive(Debug)]
pub struct Catalog {
    own: Own,
    mirror_addresses: IpNet,
    exclusions: Exclusions,
    namespace: Option<Namespace>,
    services: BTreeMap<ServiceKey, Service>,
    /// By the service they belong to, then by their own name.
    slices: BTreeMap<ServiceKey, BTreeMap<String, EndpointSlice>>,
    /// The service that each slice was filed under, by namespace and own name.
    slice_owners: BTreeMap<(String, String), ServiceKey>,
    wishes: BTreeMap<ServiceKey, ServiceExport>,
    policies: BTreeMap<(Namespace, String), ExportPolicy>,
    links: BTreeMap<String, Link>,
    /// The version of each Link that is in force, or was before the restart.
    good_links: BTreeMap<String, link::InForce>,
    traffic: BTreeMap<ObjectKey, ClusterTrafficPolicy>,
    /// The same for traffic policies.
    good_traffic: BTreeMap<ObjectKey, ClusterTrafficPolicy>,
    /// Whether what is in force may differ from what was told last.
    accepted_changed: bool,
    /// Where policies may exist that cannot be read.
    doubt: Doubt,
    /// Policies that went away while their namespace was in doubt.
    lingering: BTreeSet<(Namespace, String)>,
    /// Exports that came while their namespace was in doubt.
    closed: BTreeSet<ServiceKey>,
    /// Objects between `Init` and `InitDone`.
    replacing: Option<Vec<Event>>,
    /// The source has told everything at least once.
    complete: bool,
    dirty: Dirty,
    snapshot: Snapshot,
}

#[derive(Debug, Default)]
struct Dirty {
    exports: BTreeSet<ServiceKey>,
    links: bool,
    traffic: bool,
    services: bool,
}

impl Catalog {
    /// A catalog of this cluster without objects; endpoints in `mirror_addresses` are mirrors and never exported. What was
    /// accepted before a restart is in force again where its object still exists.
    #[must_use]
    pub fn new(own: Own, mirror_addresses: IpNet, accepted: Accepted) -> Self {
        Self {
            good_links: link::restore(&own, accepted.links),
            good_traffic: traffic::restore(accepted.traffic),
            own,
            mirror_addresses,
            exclusions: Exclusions::default(),
            namespace: None,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slice_owners: BTreeMap::new(),
            wishes: BTreeMap::new(),
            policies: BTreeMap::new(),
            links: BTreeMap::new(),
            traffic: BTreeMap::new(),
            accepted_changed: false,
            doubt: Doubt::default(),
            lingering: BTreeSet::new(),
            closed: BTreeSet::new(),
            replacing: None,
            complete: false,
            dirty: Dirty::default(),
            snapshot: Snapshot::default(),
        }
    }

    /// With labels and annotations that the operator does not want to be copied.
    #[must_use]
    pub fn with_exclusions(mut self, exclusions: Exclusions) -> Self {
        self.exclusions = exclusions;
        self
    }

    /// With the namespace of our gateways and controllers, from which nothing is exported.
    #[must_use]
    pub fn within(mut self, namespace: Option<Namespace>) -> Self {
        self.namespace = namespace;
        self
    }

    /// Takes one event. Between `Init` and `InitDone` nothing changes; then everything at once.
    pub fn handle(&mut self, event: Event) {
        match (event, &mut self.replacing) {
            (Event::Init, _) => self.replacing = Some(Vec::new()),
            (Event::InitDone, _) => {
                if let Some(events) = self.replacing.take() {
                    self.replace(events);
                    self.complete = true;
                }
            }
            (event, Some(events)) => events.push(event),
            (event, None) => self.change(event),
        }
    }

    /// Whether the source has told everything at least once. Before that, what is missing means nothing.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// What holds now.
    pub fn snapshot(&mut self) -> Snapshot {
        let dirty = std::mem::take(&mut self.dirty);
        for key in dirty.exports {
            self.recompute_export(&key);
        }
        self.accepted_changed |= dirty.links || dirty.traffic;
        if dirty.links {
            let settled = link::settle(&self.own, &self.links, &mut self.good_links);
            let unsettled = self.unsettled(&settled);
            if *self.snapshot.unsettled != unsettled {
                self.snapshot.unsettled = Arc::new(unsettled);
            }
            replace_changed(&mut self.snapshot.peers, settled.peers);
            replace_changed(&mut self.snapshot.links, settled.reports);
        }
        if dirty.traffic {
            let settled = traffic::settle(&self.traffic, &self.good_traffic);
            replace_changed(&mut self.snapshot.traffic, settled);
        }
        if dirty.services {
            self.snapshot.services = Arc::new(self.services.keys().cloned().collect());
        }
        if self.snapshot.exported.len() > MAX_SERVICES {
            return self.capped();
        }
        self.snapshot.clone()
    }

    /// The peers whose Link is there, refused or unreadable, and of which no version is in force.
    fn unsettled(&self, settled: &link::Settled) -> BTreeSet<ClusterName> {
        let refused = settled.reports.iter().filter(|(_, report)| !report.in_force).map(|(name, _)| name);
        let names = refused.chain(&self.doubt.links).filter_map(|name| ClusterName::parse(name).ok());
        names.filter(|name| *name != self.own.cluster && !settled.peers.contains_key(name)).collect()
    }

    /// What is in force as of the last snapshot, if that may differ from what was taken before: to be kept over a restart.
    pub fn take_accepted(&mut self) -> Option<Accepted> {
        if !std::mem::take(&mut self.accepted_changed) {
            return None;
        }
        let mut links: Vec<_> = self.good_links.values().collect();
        links.sort_by_key(|in_force| in_force.since);
        Some(Accepted {
            links: links.into_iter().map(|in_force| in_force.link.clone()).collect(),
            traffic: self.good_traffic.values().cloned().collect(),
        })
    }

    fn replace(&mut self, events: Vec<Event>) {
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

    fn change(&mut self, event: Event) {
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

    fn recompute_export(&mut self, key: &ServiceKey) {
        let service = self.services.get(key);
        let wish = self.wishes.get(key);
        let labelled = service.is_some_and(|service| {
            let labels = service.metadata.labels.as_ref();
            labels.and_then(|labels| labels.get(LINKERD_EXPORT_LABEL)).is_some_and(|value| value == "true")
                // A mirror that Linkerd made keeps the label of its original; it is no wish to export it again.
                && !labels.iter().flat_map(|labels| labels.keys()).any(|label| labels::marks_a_mirror(label))
        });
        if wish.is_none() && !labelled {
            self.closed.remove(key);
            remove(&mut self.snapshot.exports, key);
            remove(&mut self.snapshot.exported, key);
            remove(&mut self.snapshot.reachable, key);
            return;
        }
        if !self.snapshot.exports.contains_key(key) && self.doubt.covers(key.namespace.as_str()) {
            self.closed.insert(key.clone());
        }
        let rules = self.rules(key);
        let closed = rules.is_none() && self.closed.contains(key);
        let rules = if closed { Some(Vec::new()) } else { rules };
        let outcome = export::Wish {
            key,
            export: wish,
            service,
            slices: self.slices.get(key).into_iter().flat_map(BTreeMap::values).collect(),
            rules,
            mirror_addresses: self.mirror_addresses,
            exclusions: &self.exclusions,
            namespace: self.namespace.as_ref(),
        }
        .decide();
        let mut report = outcome.report;
        if closed {
            note(&mut report, "closed to everybody, because an ExportPolicy for it may be what cannot be read");
        } else if self.lingering.iter().any(|(namespace, _)| *namespace == key.namespace) {
            note(&mut report, "policies that went away still count, because they may be what cannot be read");
        }
        put(&mut self.snapshot.exports, key, report);
        match outcome.exported {
            Some((entry, reachable)) => {
                put::<CatalogueEntry>(&mut self.snapshot.exported, key, entry);
                put::<Export>(&mut self.snapshot.reachable, key, reachable);
            }
            None => {
                remove(&mut self.snapshot.exported, key);
                remove(&mut self.snapshot.reachable, key);
            }
        }
    }

    /// The rules of all policies that select a service; `None` when none does.
    fn rules(&self, key: &ServiceKey) -> Option<Vec<ExportRule>> {
        let first = (key.namespace.clone(), String::new());
        let mut rules: Option<Vec<ExportRule>> = None;
        for ((namespace, _), policy) in self.policies.range(first..) {
            if *namespace != key.namespace {
                break;
            }
            if policy.spec.services.is_empty() || policy.spec.services.contains(&key.name) {
                rules.get_or_insert_default().extend(policy.spec.allow.iter().map(|allow| ExportRule {
                    peers: allow.peers.clone(),
                    identities: allow.identities.clone(),
                    identity_prefixes: allow.identity_prefixes.clone(),
                    ports: allow.ports.clone(),
                    minimum_assurance: allow.minimum_assurance,
                }));
            }
        }
        rules
    }

    /// The snapshot with the exports beyond the cap taken out and told so.
    fn capped(&self) -> Snapshot {
        let mut snapshot = self.snapshot.clone();
        let surplus: Vec<_> = snapshot.exported.keys().skip(MAX_SERVICES).cloned().collect();
        for key in surplus {
            remove(&mut snapshot.exported, &key);
            remove(&mut snapshot.reachable, &key);
            let old = snapshot.exports.get(&key);
            let message =
                format!("a cluster exports at most {MAX_SERVICES} services; this one is over, in the order of names");
            let (generation, by_label) = old.map_or((None, false), |old| (old.generation, old.by_label));
            put(&mut snapshot.exports, &key, export::waiting(generation, by_label, &message));
        }
        snapshot
    }
}

fn note(report: &mut ExportReport, what: &str) {
    for verdict in &mut report.verdicts {
        if verdict.kind == "Ready" && verdict.holds() {
            verdict.message += &format!("; {what} (see manifests.yaml)");
        }
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

/// Inserts unless an equal value is there: equal values keep their allocation.
fn put<T: PartialEq>(map: &mut Arc<BTreeMap<ServiceKey, Arc<T>>>, key: &ServiceKey, value: T) {
    if map.get(key).is_none_or(|old| **old != value) {
        Arc::make_mut(map).insert(key.clone(), Arc::new(value));
    }
}

fn remove<T>(map: &mut Arc<BTreeMap<ServiceKey, Arc<T>>>, key: &ServiceKey) {
    if map.contains_key(key) {
        Arc::make_mut(map).remove(key);
    }
}

/// Replaces a map; values that did not change keep their allocation.
fn replace_changed<K: Ord, T: PartialEq>(map: &mut Arc<BTreeMap<K, Arc<T>>>, mut new: BTreeMap<K, Arc<T>>) {
    for (key, value) in &mut new {
        if let Some(old) = map.get(key).filter(|old| *old == value) {
            *value = Arc::clone(old);
        }
    }
    if **map != new {
        *map = Arc::new(new);
    }
}

#[cfg(test)]
mod tests;
