//! All mirrors of this cluster, kept up to date: what changed in the inputs decides what is computed again. Pure.
//!
//! The result is the same as computing everything anew ([`desired`] for each service), which the tests check; the work is
//! in proportion to the change, since ten thousand services of one peer must not be walked for one endpoint of another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use linkspan_proto::configuration::{Mirror, Resource, ResourceKey, ResourceKind};
use linkspan_proto::metadata::Exclusions;
use linkspan_proto::names::{ClusterName, Namespace, ServiceKey, ServiceName};

use super::desired::{self, Conflicts, Ground, Member, MirrorId, Refused, Shape, Taken, Wanted};
use super::faces;
use super::front::Fronts;
use super::seniority::Seniority;
use crate::catalog::Snapshot;
use crate::diff::{Step, walk};
use crate::exchange::{Entries, Freshness, Peers};

/// What the rest of the controller sees.
#[derive(Clone, Debug, Default)]
pub struct MirrorSet {
    /// The mirrors that should exist.
    pub wanted: Arc<BTreeMap<MirrorId, Arc<Wanted>>>,
    /// Those that cannot.
    pub refused: Arc<BTreeMap<MirrorId, Arc<Refused>>>,
    /// What clusters disagree about, for services that this cluster exports.
    pub conflicts: Arc<BTreeMap<ServiceKey, Conflicts>>,
    /// The linked peers; true once a complete catalogue of it is known.
    pub known: Arc<BTreeMap<ClusterName, bool>>,
    /// Peers whose Link is there and not in force: nothing is certain about them either.
    pub unsettled: Arc<BTreeSet<ClusterName>>,
    /// Counts up when what DNS answers may have changed.
    pub dns_version: u64,
}

impl MirrorSet {
    /// Whether both are the same state, by pointer.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.wanted, &other.wanted)
            && Arc::ptr_eq(&self.refused, &other.refused)
            && Arc::ptr_eq(&self.conflicts, &other.conflicts)
            && Arc::ptr_eq(&self.known, &other.known)
            && Arc::ptr_eq(&self.unsettled, &other.unsettled)
            && self.dns_version == other.dns_version
    }
}

/// Changes of the gateway's configuration: new values, or `None` for what is gone.
pub type Changes = BTreeMap<ResourceKey, Option<Resource>>;

/// The state from which mirrors follow, and the mirrors.
#[derive(Debug)]
pub struct State {
    own: ClusterName,
    ground: Ground,
    fronts: Fronts,
    seniority: Seniority,
    snapshot: Snapshot,
    peers: Arc<Peers>,
    set: MirrorSet,
    /// Local objects that cluster mirrors have or would have, to find those that a local Service touches.
    objects: BTreeMap<ServiceKey, MirrorId>,
    /// Which mirror holds a key of the fronts. When links change, a name may pass from one mirror to another.
    holders: BTreeMap<String, MirrorId>,
    /// Mirrors without all the fronts that they want.
    short: BTreeSet<MirrorId>,
    /// Whether new names get no front at the moment.
    closed: bool,
}

impl State {
    /// Nothing mirrored yet.
    #[must_use]
    pub fn new(own: ClusterName, fronts: impl Into<Fronts>) -> Self {
        Self {
            ground: Ground::new(own.clone(), BTreeSet::new()),
            own,
            fronts: fronts.into(),
            seniority: Seniority::default(),
            snapshot: Snapshot::default(),
            peers: Arc::default(),
            set: MirrorSet::default(),
            objects: BTreeMap::new(),
            holders: BTreeMap::new(),
            short: BTreeSet::new(),
            closed: false,
        }
    }

    /// While closed, names keep their fronts and new ones get none: somebody else may be giving them out. What was left out
    /// meanwhile comes with the first update afterwards.
    pub fn set_closed(&mut self, closed: bool) {
        if std::mem::replace(&mut self.closed, closed) && !closed {
            self.short.extend(self.set.wanted.keys().chain(self.set.refused.keys()).cloned());
        }
        self.fronts.set_closed(closed);
    }

    /// With what is known of who exported what first, and with what the operator excludes from copying.
    #[must_use]
    pub fn with(mut self, seniority: Seniority, exclusions: Exclusions) -> Self {
        self.seniority = seniority;
        self.ground.exclusions = Arc::new(exclusions);
        self
    }

    /// With the namespace of our gateways and controllers, where nothing is mirrored.
    #[must_use]
    pub fn within(mut self, namespace: Option<Namespace>) -> Self {
        self.ground.namespace = namespace;
        self
    }

    /// Takes new inputs; returns what the gateway must be told.
    pub fn update(&mut self, snapshot: Snapshot, peers: Arc<Peers>) -> Changes {
        let mut changes = Changes::new();
        let mut dirty: BTreeSet<MirrorId> = std::mem::take(&mut self.short);
        let linked: BTreeSet<ClusterName> = snapshot.peers.keys().cloned().collect();
        if linked != self.ground.linked {
            // Names of mirrors depend on who is linked: everything may change, and Links change rarely.
            dirty.extend(self.set.wanted.keys().chain(self.set.refused.keys()).cloned());
            dirty.extend(all_units(&snapshot, &peers, &linked));
            self.objects.clear();
        }
        self.touch_peers(&peers, &linked, &mut dirty, &mut changes);
        self.touch_local(&snapshot, &mut dirty, &mut changes);
        let (exclusions, namespace) = (Arc::clone(&self.ground.exclusions), self.ground.namespace.clone());
        self.ground = Ground { exclusions, namespace, ..Ground::new(self.own.clone(), linked) };
        self.snapshot = snapshot;
        self.peers = peers;
        self.settle_known();
        // What is gone first: it may free fronts.
        let (gone, present): (Vec<_>, Vec<_>) = dirty.into_iter().partition(|id| !self.has_source(id));
        for id in gone.into_iter().chain(present) {
            self.recompute(id, &mut changes);
        }
        changes
    }

    /// The mirrors.
    #[must_use]
    pub fn set(&self) -> MirrorSet {
        self.set.clone()
    }

    /// Who has which front.
    pub const fn fronts(&mut self) -> &mut Fronts {
        &mut self.fronts
    }

    /// Who exported what first.
    pub const fn seniority(&mut self) -> &mut Seniority {
        &mut self.seniority
    }

    /// What changed in the peers' catalogues.
    fn touch_peers(
        &self,
        peers: &Peers,
        linked: &BTreeSet<ClusterName>,
        dirty: &mut BTreeSet<MirrorId>,
        changes: &mut Changes,
    ) {
        let nothing = Entries::new();
        let clusters: BTreeSet<&ClusterName> = self.peers.keys().chain(peers.keys()).collect();
        for cluster in clusters {
            let old = self.peers.get(cluster).filter(|_| self.ground.linked.contains(cluster));
            let new = peers.get(cluster).filter(|_| linked.contains(cluster));
            let drained = |freshness: Freshness| freshness == Freshness::Drained;
            let was_drained = old.is_some_and(|old| drained(old.view.freshness));
            let is_drained = new.is_some_and(|new| drained(new.view.freshness));
            let (old, new) = (old.map(|peer| &peer.view.entries), new.map(|peer| &peer.view.entries));
            if let (Some(old), Some(new)) = (old, new)
                && Arc::ptr_eq(old, new)
                && was_drained == is_drained
            {
                continue;
            }
            for step in walk(old.map_or(&nothing, |old| old), new.map_or(&nothing, |new| new)) {
                let (service, entry, same) = match step {
                    Step::Left(service, _) => (service, None, false),
                    Step::Right(service, entry) => (service, Some(entry), false),
                    Step::Both(service, old, new) => (service, Some(new), Arc::ptr_eq(old, new) || old == new),
                };
                if !same {
                    dirty.insert(MirrorId::Cluster { cluster: cluster.clone(), service: service.clone() });
                    dirty.insert(MirrorId::Clusterset { service: service.clone() });
                    // A service `cache-0` may need the name that an endpoint of `cache` has.
                    let set = service.name.as_str().rsplit_once('-').and_then(|(set, _)| ServiceName::parse(set).ok());
                    if let Some(set) = set.map(|name| ServiceKey::new(service.namespace.clone(), name))
                        && new.is_some_and(|entries| entries.contains_key(&set))
                    {
                        dirty.insert(MirrorId::Cluster { cluster: cluster.clone(), service: set });
                    }
                }
                if !same || was_drained != is_drained {
                    // A drained peer keeps its mirrors and gives up its capacity.
                    let capacity = entry.filter(|_| !is_drained).map(|entry| faces::capacity(cluster, entry));
                    let name = format!("{cluster}/{service}");
                    changes.insert(key(ResourceKind::Capacity, name), capacity.map(Resource::Capacity));
                }
            }
        }
    }

    /// What changed in this cluster.
    fn touch_local(&self, snapshot: &Snapshot, dirty: &mut BTreeSet<MirrorId>, changes: &mut Changes) {
        let clusterset = |service: &ServiceKey| MirrorId::Clusterset { service: service.clone() };
        changed(&self.snapshot.exported, &snapshot.exported, |service, _| {
            dirty.insert(clusterset(service));
        });
        changed(&self.snapshot.traffic, &snapshot.traffic, |service, _| {
            dirty.insert(clusterset(service));
        });
        changed(&self.snapshot.reachable, &snapshot.reachable, |service, export| {
            let resource = export.map(|export| Resource::Export(export.as_ref().clone()));
            changes.insert(key(ResourceKind::Export, service.to_string()), resource);
        });
        changed(&self.snapshot.peers, &snapshot.peers, |cluster, peer| {
            let resource = peer.map(|peer| Resource::Peer(peer.as_ref().clone()));
            changes.insert(key(ResourceKind::Peer, cluster.to_string()), resource);
        });
        if !Arc::ptr_eq(&self.snapshot.services, &snapshot.services) {
            let touched = self.snapshot.services.symmetric_difference(&snapshot.services);
            dirty.extend(touched.filter_map(|service| self.objects.get(service)).cloned());
        }
    }

    fn settle_known(&mut self) {
        let known: BTreeMap<_, _> = self
            .ground
            .linked
            .iter()
            .map(|cluster| {
                let view = self.peers.get(cluster).map(|peer| &peer.view);
                (cluster.clone(), view.is_some_and(|view| view.freshness != Freshness::Unknown && !view.outdated))
            })
            .collect();
        if *self.set.known != known {
            self.set.known = Arc::new(known);
        }
        self.set.unsettled = Arc::clone(&self.snapshot.unsettled);
    }

    fn has_source(&self, id: &MirrorId) -> bool {
        match id {
            MirrorId::Cluster { cluster, service } => self.entry(cluster, service).is_some(),
            MirrorId::Clusterset { service } => {
                self.snapshot.exported.contains_key(service)
                    || self.ground.linked.iter().any(|cluster| self.entry(cluster, service).is_some())
            }
        }
    }

    fn entry(
        &self,
        cluster: &ClusterName,
        service: &ServiceKey,
    ) -> Option<&Arc<linkspan_proto::exchange::CatalogueEntry>> {
        if !self.ground.linked.contains(cluster) {
            return None;
        }
        self.peers.get(cluster)?.view.entries.get(service)
    }

    fn recompute(&mut self, id: MirrorId, changes: &mut Changes) {
        let computed = self.compute(&id);
        let (wanted, refused) = match computed {
            None => (None, None),
            Some(Ok(wanted)) => (Some(wanted), None),
            Some(Err(refused)) => (None, Some(*refused)),
        };
        let short = refused.as_ref().is_some_and(|refused| refused.wants_front)
            || wanted.as_ref().is_some_and(|wanted| {
                wanted.verdicts.iter().any(|verdict| verdict.kind == "Accepted" && !verdict.holds())
            });
        if short {
            self.short.insert(id.clone());
        }
        let old = self.set.wanted.get(&id).cloned();
        self.note_objects(&id, wanted.is_some() || refused.is_some(), old.as_deref(), wanted.as_ref());
        if old.as_deref() != wanted.as_ref() {
            self.replace_faces(&id, old.as_deref(), wanted.as_ref(), changes);
            let map = Arc::make_mut(&mut self.set.wanted);
            match wanted {
                Some(wanted) => drop(map.insert(id.clone(), Arc::new(wanted))),
                None => drop(map.remove(&id)),
            }
        }
        let old = self.set.refused.get(&id);
        if old.map(AsRef::as_ref) != refused.as_ref() {
            let map = Arc::make_mut(&mut self.set.refused);
            match refused {
                Some(refused) => drop(map.insert(id, Arc::new(refused))),
                None => drop(map.remove(&id)),
            }
        }
    }

    fn compute(&mut self, id: &MirrorId) -> Option<Result<Wanted, Box<Refused>>> {
        match id {
            MirrorId::Cluster { cluster, service } => {
                let entry = Arc::clone(self.entry(cluster, service)?);
                let services = Arc::clone(&self.snapshot.services);
                let peer = self.peers.get(cluster).map(|peer| Arc::clone(&peer.view.entries))?;
                let taken =
                    Taken { locally: &|name| services.contains(name), by_peer: &|name| peer.contains_key(name) };
                let member = Member { cluster, entry: &entry };
                Some(desired::cluster(&self.ground, member, taken, &mut self.fronts))
            }
            MirrorId::Clusterset { service } => {
                let local = self.snapshot.exported.get(service).map(|entry| (self.own.clone(), Arc::clone(entry)));
                let remote = self.ground.linked.iter().filter_map(|cluster| {
                    self.entry(cluster, service).map(|entry| (cluster.clone(), Arc::clone(entry)))
                });
                let exporters: BTreeMap<_, _> = local.clone().into_iter().chain(remote).collect();
                let names: Vec<_> = exporters.keys().cloned().collect();
                let known = Arc::clone(&self.set.known);
                let unsettled = Arc::clone(&self.set.unsettled);
                let lost = |cluster: &ClusterName| known.get(cluster) == Some(&false) || unsettled.contains(cluster);
                let order = self.seniority.settle(service, &self.own, &names, lost);
                let members: Vec<_> = order
                    .iter()
                    .filter_map(|cluster| exporters.get_key_value(cluster))
                    .map(|(cluster, entry)| Member { cluster, entry })
                    .collect();
                let result = if members.is_empty() {
                    None
                } else {
                    let traffic = self.snapshot.traffic.get(service).cloned();
                    Some(desired::clusterset(&self.ground, &members, traffic.as_deref(), &mut self.fronts))
                };
                let conflicts = match &result {
                    Some(Ok((_, conflicts))) if local.is_some() => conflicts.clone(),
                    _ => Conflicts::new(),
                };
                self.note_conflicts(service, conflicts);
                result.map(|result| result.map(|(wanted, _)| wanted))
            }
        }
    }

    fn note_conflicts(&mut self, service: &ServiceKey, conflicts: Conflicts) {
        let same = self.set.conflicts.get(service).map_or(conflicts.is_empty(), |old| *old == conflicts);
        if same {
            return;
        }
        let map = Arc::make_mut(&mut self.set.conflicts);
        if conflicts.is_empty() {
            map.remove(service);
        } else {
            map.insert(service.clone(), conflicts);
        }
    }

    fn note_objects(&mut self, id: &MirrorId, exists: bool, old: Option<&Wanted>, new: Option<&Wanted>) {
        let MirrorId::Cluster { cluster, service } = id else { return };
        let gone =
            old.into_iter().flat_map(host_objects).chain([desired::cluster_object(&self.ground, cluster, service)]);
        for object in gone {
            if self.objects.get(&object) == Some(id) {
                self.objects.remove(&object);
            }
        }
        let own = exists.then(|| desired::cluster_object(&self.ground, cluster, service));
        for object in new.into_iter().flat_map(host_objects).chain(own) {
            self.objects.insert(object, id.clone());
        }
    }

    /// Tells the gateway, DNS and the fronts about one mirror's change.
    fn replace_faces(&mut self, id: &MirrorId, old: Option<&Wanted>, new: Option<&Wanted>, changes: &mut Changes) {
        let listeners = |wanted: Option<&Wanted>| -> BTreeMap<String, Mirror> {
            let all = wanted.map(faces::listeners).unwrap_or_default();
            all.into_iter().map(|mirror| (mirror.name.clone(), mirror)).collect()
        };
        let (before, after) = (listeners(old), listeners(new));
        for step in walk(&before, &after) {
            match step {
                // Unless another mirror took the name over in this very update.
                Step::Left(name, _) => drop(changes.entry(key(ResourceKind::Mirror, name.clone())).or_insert(None)),
                Step::Right(name, mirror) => {
                    changes.insert(key(ResourceKind::Mirror, name.clone()), Some(Resource::Mirror(mirror.clone())));
                }
                Step::Both(name, before, after) if before != after => {
                    changes.insert(key(ResourceKind::Mirror, name.clone()), Some(Resource::Mirror(after.clone())));
                }
                Step::Both(..) => {}
            }
        }
        if old.map(faces::dns) != new.map(faces::dns) {
            self.set.dns_version += 1;
        }
        let kept: BTreeSet<String> = new.into_iter().flat_map(faces::front_keys).collect();
        for key in &kept {
            if self.holders.get(key) != Some(id) {
                self.holders.insert(key.clone(), id.clone());
            }
        }
        for key in old.into_iter().flat_map(faces::front_keys).filter(|key| !kept.contains(key)) {
            if self.holders.get(&key) == Some(id) {
                self.holders.remove(&key);
                self.fronts.release(&key);
            }
        }
    }
}

/// The Services of a headless mirror's endpoints.
fn host_objects(wanted: &Wanted) -> impl Iterator<Item = ServiceKey> {
    let hosts = match &wanted.shape {
        Shape::Headless { hosts } => hosts.as_slice(),
        Shape::Single { .. } => [].as_slice(),
    };
    hosts.iter().filter_map(|host| host.object.clone())
}

/// Every unit that the inputs give rise to.
fn all_units(snapshot: &Snapshot, peers: &Peers, linked: &BTreeSet<ClusterName>) -> Vec<MirrorId> {
    let exported = snapshot.exported.keys().map(|service| MirrorId::Clusterset { service: service.clone() });
    let mirrored = peers.iter().filter(|(cluster, _)| linked.contains(*cluster)).flat_map(|(cluster, peer)| {
        peer.view.entries.keys().flat_map(|service| {
            [
                MirrorId::Cluster { cluster: cluster.clone(), service: service.clone() },
                MirrorId::Clusterset { service: service.clone() },
            ]
        })
    });
    exported.chain(mirrored).collect()
}

const fn key(kind: ResourceKind, name: String) -> ResourceKey {
    ResourceKey { kind, name }
}

/// Calls `each` for every key whose value is new, changed or gone.
fn changed<K: Ord, V: PartialEq>(
    old: &Arc<BTreeMap<K, Arc<V>>>,
    new: &Arc<BTreeMap<K, Arc<V>>>,
    mut each: impl FnMut(&K, Option<&Arc<V>>),
) {
    if Arc::ptr_eq(old, new) {
        return;
    }
    for step in walk(old, new) {
        match step {
            Step::Left(key, _) => each(key, None),
            Step::Right(key, value) => each(key, Some(value)),
            Step::Both(key, old, new) => {
                if !Arc::ptr_eq(old, new) && old != new {
                    each(key, Some(new));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
