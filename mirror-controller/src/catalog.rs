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
use linkspan_proto::names::{ClusterName, Namespace, ServiceKey};
use linkspan_proto::resources::{ClusterTrafficPolicy, ExportPolicy, LINKERD_EXPORT_LABEL, Link, ServiceExport};

use crate::labels;
use crate::watch::{Doubt, Event, ObjectKey};

// What is in force, over a restart.
pub mod accepted;
// What goes with an export beside ports and endpoints.
mod details;
mod export;
// What events do to the objects that are held.
mod intake;
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
