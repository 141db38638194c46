//! Stage 2: what this cluster exports, and to whom it is linked. Pure state: events in, snapshots out.
//!
//! - **In**: [`Event`]s of a source.
//! - **Out**: a [`Snapshot`] whose unchanged parts are the same allocations as before.
//! - **Refuses when**: an object cannot do what it asks; the report of that object says why, in a closed set of reasons.
//! - **Never does**: export a mirror (S-42), or let one object's mistake touch another's. The order of events does not
//!   matter: the same objects give the same snapshot. Two things remember, on purpose: a Link or traffic policy that
//!   turns bad keeps its last good version, and an export that comes while a policy for it cannot be read is closed
//!   until it can (S-51: fail closed for what is new, keep what was).
//! - **Numbers**: [`linkspan_proto::exchange::MAX_SERVICES`] exports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use linkspan_proto::configuration::{Export, ExportRule, Peer, Tier};
use linkspan_proto::exchange::{CatalogueEntry, MAX_SERVICES};
use linkspan_proto::names::{ClusterName, Namespace, ServiceKey, ServiceName};
use linkspan_proto::resources::{
    ClusterTrafficPolicy, ExportPolicy, LINKERD_EXPORT_LABEL, Link, SERVICE_NAME_LABEL, ServiceExport,
};

use crate::labels;
use crate::verdict::Verdict;
use crate::watch::{Event, Kind, Object, ObjectKey};

mod export;
mod link;
// What the catalog publishes.
pub mod snapshot;
mod traffic;

pub use link::Own;
pub use snapshot::{ExportReport, LinkReport, Snapshot, Traffic};

/// All local objects and what follows from them.
#[derive(Debug)]
pub struct Catalog {
    own: Own,
    mirror_addresses: IpNet,
    services: BTreeMap<ServiceKey, Service>,
    /// By the service they belong to, then by their own name.
    slices: BTreeMap<ServiceKey, BTreeMap<String, EndpointSlice>>,
    /// The service that each slice was filed under, by namespace and own name.
    slice_owners: BTreeMap<(String, String), ServiceKey>,
    wishes: BTreeMap<ServiceKey, ServiceExport>,
    policies: BTreeMap<(Namespace, String), ExportPolicy>,
    links: BTreeMap<String, Link>,
    /// The last good version of each Link.
    good_links: BTreeMap<String, Peer>,
    traffic: BTreeMap<ObjectKey, ClusterTrafficPolicy>,
    good_traffic: BTreeMap<ObjectKey, (ServiceKey, Vec<Tier>)>,
    /// Policies that exist and cannot be read.
    unreadable: BTreeSet<ObjectKey>,
    /// Exports that came while a policy of their namespace could not be read.
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
    /// An empty catalog of this cluster; endpoints in `mirror_addresses` are mirrors and never exported.
    #[must_use]
    pub fn new(own: Own, mirror_addresses: IpNet) -> Self {
        Self {
            own,
            mirror_addresses,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slice_owners: BTreeMap::new(),
            wishes: BTreeMap::new(),
            policies: BTreeMap::new(),
            links: BTreeMap::new(),
            good_links: BTreeMap::new(),
            traffic: BTreeMap::new(),
            good_traffic: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            closed: BTreeSet::new(),
            replacing: None,
            complete: false,
            dirty: Dirty::default(),
            snapshot: Snapshot::default(),
        }
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
        if dirty.links {
            self.recompute_links();
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

    fn replace(&mut self, events: Vec<Event>) {
        let named: BTreeSet<ObjectKey> = events
            .iter()
            .filter_map(|event| match event {
                Event::Apply(object) => Some(object.key()),
                Event::Unreadable(key) => Some(key.clone()),
                _ => None,
            })
            .collect();
        let gone: Vec<_> = self.keys().into_iter().filter(|key| !named.contains(key)).collect();
        // What cannot be read must count before what it may forbid.
        let (unreadable, others): (Vec<_>, Vec<_>) =
            events.into_iter().partition(|event| matches!(event, Event::Unreadable(_)));
        for event in gone.into_iter().map(Event::Delete).chain(unreadable).chain(others) {
            self.change(event);
        }
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
        keys.extend(self.unreadable.iter().cloned());
        keys
    }

    fn change(&mut self, event: Event) {
        match event {
            Event::Apply(object) => self.apply(*object),
            Event::Delete(key) => self.delete(&key),
            Event::Unreadable(key) => drop(self.unreadable.insert(key)),
            Event::Init | Event::InitDone => {}
        }
    }

    fn apply(&mut self, object: Object) {
        let key = object.key();
        if self.unreadable.remove(&key) {
            self.reopen(&key.namespace);
        }
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
                if let Ok(peer) = link::check(&self.own, &key.name, &link) {
                    self.good_links.insert(key.name.clone(), peer);
                }
                self.links.insert(key.name, link);
                self.dirty.links = true;
            }
            Object::ClusterTrafficPolicy(policy) => {
                if let Ok(good) = traffic::check(&key, &policy) {
                    self.good_traffic.insert(key.clone(), good);
                }
                self.traffic.insert(key, policy);
                self.dirty.traffic = true;
            }
            Object::ExportPolicy(policy) => {
                if let Ok(namespace) = Namespace::parse(&key.namespace) {
                    self.touch_namespace(&namespace);
                    self.policies.insert((namespace, key.name), policy);
                }
            }
        }
    }

    fn delete(&mut self, key: &ObjectKey) {
        if self.unreadable.remove(key) {
            self.reopen(&key.namespace);
        }
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
                    self.policies.remove(&(namespace, key.name.clone()));
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

    /// A policy of this namespace can be read again, or is gone.
    fn reopen(&mut self, namespace: &str) {
        if !self.is_doubtful(namespace) {
            let closed = std::mem::take(&mut self.closed);
            let (reopened, closed): (BTreeSet<_>, BTreeSet<_>) =
                closed.into_iter().partition(|key| key.namespace.as_str() == namespace);
            self.closed = closed;
            self.dirty.exports.extend(reopened);
        }
    }

    fn is_doubtful(&self, namespace: &str) -> bool {
        self.unreadable.iter().any(|key| key.kind == Kind::ExportPolicy && key.namespace == namespace)
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
        if !self.snapshot.exports.contains_key(key) && self.is_doubtful(key.namespace.as_str()) {
            self.closed.insert(key.clone());
        }
        let rules = self.rules(key);
        let rules = if rules.is_none() && self.closed.contains(key) { Some(Vec::new()) } else { rules };
        let outcome = export::Wish {
            key,
            export: wish,
            service,
            slices: self.slices.get(key).into_iter().flat_map(BTreeMap::values).collect(),
            rules,
            mirror_addresses: self.mirror_addresses,
        }
        .decide();
        let mut report = outcome.report;
        if self.closed.contains(key) {
            note_closed(&mut report);
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

    fn recompute_links(&mut self) {
        let mut peers: BTreeMap<ClusterName, Arc<Peer>> = BTreeMap::new();
        let mut reports: BTreeMap<String, Arc<LinkReport>> = BTreeMap::new();
        for (name, link) in &self.links {
            let good = self.good_links.get(name);
            if let Some(peer) = good {
                peers.insert(peer.cluster.clone(), Arc::new(peer.clone()));
            }
            let verdict = match link::check(&self.own, name, link) {
                Ok(_) => Verdict::new("Accepted", true, "Accepted", "the Link is in force"),
                Err(mut verdict) => {
                    if good.is_some() {
                        verdict.message += "; the version before stays in force";
                    }
                    verdict
                }
            };
            let report = LinkReport { generation: link.metadata.generation, verdict, in_force: good.is_some() };
            reports.insert(name.clone(), Arc::new(report));
        }
        link::settle_domains(&mut peers, &mut reports);
        replace_changed(&mut self.snapshot.peers, peers);
        replace_changed(&mut self.snapshot.links, reports);
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

fn note_closed(report: &mut ExportReport) {
    for verdict in &mut report.verdicts {
        if verdict.kind == "Ready" && verdict.holds() {
            verdict.message +=
                "; closed to everybody, because an ExportPolicy of this namespace cannot be read (see manifests.yaml)";
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
