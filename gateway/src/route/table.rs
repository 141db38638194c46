//! The table of everything that is mirrored and exported: immutable, replaced as a whole, built from the difference.
//!
//! - In: the previous table and a new snapshot of the controller's resources.
//! - Out: a table that shares all unchanged routes and exports with the previous one.
//! - Never does: change under a reader. Readers hold an `Arc` and see one generation.
//! - Numbers: a change of one endpoint among 10,000 services costs a walk over the keys and copies of maps of pointers,
//!   a few milliseconds on the control thread; the data path pays one hash look-up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use linkspan_proto::configuration::{
    DefaultPolicy, ExportPort, Mirror, MirrorPort, Resource, ResourceKey, ResourceKind,
};
use linkspan_proto::identity::{Assurance, Source, SpiffeId};
use linkspan_proto::names::{ClusterName, ServiceKey};
use tokio::time::Instant;

use super::balance::Sequence;
use super::export::Export;
use super::failover::Hold;
use super::workloads::WorkloadTable;
use super::{Candidate, Group, Health, Own, Route, Routed, Share, Unavailable};
use crate::discovery::Snapshot;
use crate::listener::{Bindings, Owners, Place};

/// Everything the data path looks up.
#[derive(Clone, Debug)]
pub struct RouteTable {
    own: Own,
    snapshot: Arc<Snapshot>,
    by_place: HashMap<Place, Arc<Route>>,
    by_name: HashMap<Arc<str>, Arc<[Arc<Route>]>>,
    /// The mirrors that lead to a service, so that a change of its capacity finds them.
    by_service: HashMap<ServiceKey, BTreeSet<Arc<str>>>,
    exports: HashMap<ServiceKey, Arc<Export>>,
    workloads: Arc<WorkloadTable>,
    /// Whom we name when nothing is known of the client.
    node: Source,
    bindings: Arc<Bindings>,
}

impl RouteTable {
    /// What holds for a peer where no policy selects an export; `None` for nobody's peer.
    #[must_use]
    pub fn default_policy(&self, peer: &ClusterName) -> Option<DefaultPolicy> {
        let key = ResourceKey { kind: ResourceKind::Peer, name: peer.to_string() };
        match self.snapshot.resources.get(&key)?.as_ref() {
            Resource::Peer(peer) => Some(peer.default_policy),
            _ => None,
        }
    }

    /// A table that knows nothing yet.
    #[must_use]
    pub fn empty(own: Own) -> Self {
        let node = Source::new(SpiffeId::node(&own.trust_domain), Assurance::Gateway);
        Self {
            own,
            snapshot: Arc::new(Snapshot::default()),
            by_place: HashMap::new(),
            by_name: HashMap::new(),
            by_service: HashMap::new(),
            exports: HashMap::new(),
            workloads: Arc::new(WorkloadTable::default()),
            node,
            bindings: Arc::new(Bindings::default()),
        }
    }

    /// The table after this one, at the time `now`. Unchanged routes and exports are shared; changed routes go on in their sequence of
    /// picks, changed exports keep what is known of their endpoints' load.
    #[must_use]
    pub fn next(&self, snapshot: &Arc<Snapshot>, now: Instant) -> Self {
        // Two mirrors that claim one address make the outcome depend on both; that is rare and a fault of the
        // configuration, so everything is built anew instead of tracking who waits for whom.
        let mut next = if self.bindings.conflicts.is_empty() { self.clone() } else { Self::empty(self.own.clone()) };
        let mut mirrors = BTreeSet::new();
        let mut services = BTreeSet::new();
        let (mut owners_changed, mut workloads_changed) = (false, false);
        let base = Arc::clone(&next.snapshot);
        for (key, old, new) in changes(&base.resources, &snapshot.resources) {
            match (key.kind, new.or(old).map(AsRef::as_ref)) {
                (ResourceKind::Mirror, _) => {
                    mirrors.insert(key.name.clone());
                }
                (ResourceKind::Capacity, Some(Resource::Capacity(capacity))) => {
                    services.insert(capacity.service.clone());
                    owners_changed |= !same_ports(old, new);
                }
                (ResourceKind::Export, Some(Resource::Export(export))) => {
                    services.insert(export.service.clone());
                    owners_changed |= !same_ports(old, new);
                    let built = new
                        .map(|_| Arc::new(Export::build(export, self.export(&export.service).map(AsRef::as_ref), now)));
                    match built {
                        Some(built) => next.exports.insert(export.service.clone(), built),
                        None => next.exports.remove(&export.service),
                    };
                }
                (ResourceKind::Workload, _) => workloads_changed = true,
                // Peers are the link's business. A key that disagrees with its resource cannot come from
                // `Resource::key` and is ignored.
                _ => {}
            }
        }
        if workloads_changed {
            let first = ResourceKey { kind: ResourceKind::Workload, name: String::new() };
            let workloads = snapshot.resources.range(first..).filter_map(|(_, resource)| match resource.as_ref() {
                Resource::Workload(workload) => Some(workload),
                _ => None,
            });
            next.workloads = Arc::new(WorkloadTable::build(workloads, &self.own.trust_domain));
        }
        let listening = owners_changed || !mirrors.is_empty();
        for service in &services {
            mirrors.extend(next.by_service.get(service).into_iter().flatten().map(ToString::to_string));
        }
        next.snapshot = Arc::clone(snapshot);
        next.replace_mirrors(&mirrors, self);
        if listening {
            next.rebuild_bindings();
        }
        next
    }

    /// The route of the connections to a mirrored address.
    #[must_use]
    pub fn by_listen(&self, address: SocketAddr) -> Option<&Arc<Route>> {
        self.by_place.get(&Place::tcp(address))
    }

    /// What a client's connection to a mirrored address, or its datagrams to it, resolve to.
    #[must_use]
    pub fn route(&self, place: Place, client: IpAddr) -> Option<Routed> {
        let route = Arc::clone(self.by_place.get(&place)?);
        Some(Routed { route, source: self.source_of(client) })
    }

    /// The route of a server name on the mTLS port: a mirrored name for its first port, or with a label in front for
    /// another port, by number or by name: `_8080.web-west.shop.svc.cluster.local`, `_metrics.web-west...`.
    #[must_use]
    pub fn by_server_name(&self, server_name: &str) -> Option<&Arc<Route>> {
        let name = server_name.strip_suffix('.').unwrap_or(server_name).to_ascii_lowercase();
        let of = |name: &str| Some(self.by_name.get(name)?.iter().filter(|route| route.transport().is_tcp()));
        if let Some(mut routes) = of(name.as_str()) {
            return routes.next();
        }
        let (port, name) = name.strip_prefix('_')?.split_once('.')?;
        of(name)?.find(|route| {
            route.port().to_string() == port
                || route.mirror_port().name.as_ref().is_some_and(|name| name.as_str() == port)
        })
    }

    /// The newest version of a route: for the next request of a connection that began under an older table. `None`
    /// when the name or the port is no longer mirrored.
    #[must_use]
    pub fn current(&self, route: &Route) -> Option<&Arc<Route>> {
        let same = |other: &&Arc<Route>| (other.transport(), other.port()) == (route.transport(), route.port());
        self.by_name.get(route.name())?.iter().find(same)
    }

    /// The export of a service.
    #[must_use]
    pub fn export(&self, service: &ServiceKey) -> Option<&Arc<Export>> {
        self.exports.get(service)
    }

    /// Who is behind a client's address.
    #[must_use]
    pub fn source_of(&self, client: IpAddr) -> Source {
        self.workloads.find(client).unwrap_or(&self.node).clone()
    }

    /// Where the listener listens. The same `Arc` as long as nothing changed in it.
    #[must_use]
    pub fn bindings(&self) -> &Arc<Bindings> {
        &self.bindings
    }

    /// All routes, in no particular order.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.by_name.values().flat_map(|routes| routes.iter())
    }

    /// [`Route::settle`] of all routes: when to call it again though nothing changes.
    pub fn settle(&self, health: &dyn Health, now: Instant) -> Option<Instant> {
        self.routes().filter_map(|route| route.settle(health, now)).min()
    }

    /// Who we are.
    #[must_use]
    pub fn own(&self) -> &Own {
        &self.own
    }

    /// The generation of the configuration behind this table.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.snapshot.generation
    }

    /// Takes out and builds anew all mirrors of these names; one that the snapshot does not hold is only taken out.
    fn replace_mirrors(&mut self, names: &BTreeSet<String>, previous: &Self) {
        for name in names {
            let Some(routes) = self.by_name.remove(name.as_str()) else { continue };
            for route in routes.iter() {
                let place = route.place();
                // Another mirror may hold the address (a conflict): leave that one alone.
                if self.by_place.get(&place).is_some_and(|held| Arc::ptr_eq(held, route)) {
                    self.by_place.remove(&place);
                }
                if let Some(mirrors) = self.by_service.get_mut(route.service()) {
                    mirrors.remove(name.as_str());
                    if mirrors.is_empty() {
                        self.by_service.remove(route.service());
                    }
                }
            }
        }
        for name in names {
            let key = ResourceKey { kind: ResourceKind::Mirror, name: name.clone() };
            let snapshot = Arc::clone(&self.snapshot);
            let Some(Resource::Mirror(config)) = snapshot.resources.get(&key).map(AsRef::as_ref) else { continue };
            self.insert_mirror(config, previous);
        }
    }

    fn insert_mirror(&mut self, config: &Mirror, previous: &Self) {
        let name: Arc<str> = config.name.as_str().into();
        let old = previous.by_name.get(&name);
        let mirror = old
            .and_then(|routes| routes.first())
            .map(|route| route.mirror())
            .filter(|mirror| ***mirror == *config)
            .map_or_else(|| Arc::new(config.clone()), Arc::clone);
        let routes: Arc<[_]> = (0..mirror.ports.len())
            .map(|index| {
                let port = &mirror.ports[index];
                let same = |route: &&Arc<Route>| (route.transport(), route.port()) == (port.transport, port.port);
                let old = old.and_then(|routes| routes.iter().find(same));
                let phase = old.map_or_else(rand::random, |route| route.sequence.phase());
                // A change of the policy is in force at once, whatever the tiers were before.
                let holds = old.filter(|route| route.mirror().tiers == mirror.tiers);
                let holds = holds.map_or_else(
                    || mirror.tiers.iter().map(|_| Hold::default()).collect(),
                    |route| Arc::clone(&route.holds),
                );
                Arc::new(Route {
                    tiers: self.tiers(&mirror, port),
                    holds,
                    mirror: Arc::clone(&mirror),
                    index,
                    name: Arc::clone(&name),
                    sequence: Sequence::starting_at(phase),
                })
            })
            .collect();
        for route in routes.iter() {
            // The first by name has a disputed address; `names` come in order, and conflicts rebuild everything.
            self.by_place.entry(route.place()).or_insert_with(|| Arc::clone(route));
        }
        self.by_service.entry(mirror.service.clone()).or_default().insert(Arc::clone(&name));
        self.by_name.insert(name, routes);
    }

    fn tiers(&self, mirror: &Mirror, port: &MirrorPort) -> Box<[Group]> {
        mirror
            .tiers
            .iter()
            .map(|tier| {
                let candidates: Box<[_]> = tier
                    .clusters
                    .iter()
                    .map(|(cluster, weight)| Candidate {
                        local: *cluster == self.own.cluster,
                        weight: u64::from(*weight),
                        capacity: self.capacity(cluster, mirror, port),
                        cluster: cluster.clone(),
                    })
                    .collect();
                Group {
                    total: candidates.iter().map(|candidate| candidate.weight).sum(),
                    candidates,
                    min_healthy_percent: u64::from(tier.min_healthy_percent.clamp(1, 100)),
                }
            })
            .collect()
    }

    /// What is known of a cluster's capacity for one port of a mirror.
    fn capacity(&self, cluster: &ClusterName, mirror: &Mirror, port: &MirrorPort) -> Result<Share, Unavailable> {
        let (transport, port) = (port.transport, port.port);
        if *cluster == self.own.cluster {
            let exported = self.export(&mirror.service).and_then(|export| export.port(transport, port));
            let exported = exported.ok_or(Unavailable::NotExported)?;
            let ready = exported.ready(mirror.endpoint.as_ref()).next().is_some();
            return match (ready, &mirror.endpoint) {
                (true, None) => Ok(Share::of(exported.ready as u64, exported.backends.len() as u64)),
                (true, Some(_)) => Ok(Share::ALL),
                (false, None) => Err(Unavailable::NothingReady),
                (false, Some(_)) => Err(Unavailable::EndpointNotReady),
            };
        }
        let key = ResourceKey { kind: ResourceKind::Capacity, name: format!("{cluster}/{}", mirror.service) };
        let Some(Resource::Capacity(capacity)) = self.snapshot.resources.get(&key).map(AsRef::as_ref) else {
            return Err(Unavailable::NotExported);
        };
        let ready = capacity.ready_of(transport, port).ok_or(Unavailable::NotExported)?;
        match &mirror.endpoint {
            Some(endpoint) if !capacity.ready_endpoints.contains(endpoint) => Err(Unavailable::EndpointNotReady),
            Some(_) => Ok(Share::ALL),
            None if ready == 0 => Err(Unavailable::NothingReady),
            // Not told: an older peer.
            None => {
                Ok(capacity.total_of(transport, port).map_or(Share::ALL, |total| Share::of(ready.into(), total.into())))
            }
        }
    }

    fn rebuild_bindings(&mut self) {
        let mut bindings = Bindings::default();
        // Few distinct ones: shared.
        let mut known: HashMap<Vec<&ClusterName>, Owners> = HashMap::new();
        let by_name: BTreeMap<_, _> = self.by_name.iter().collect();
        for (name, routes) in by_name {
            for route in routes.iter() {
                let place = route.place();
                let taken = bindings.places.contains_key(&place);
                let map = if taken { &mut bindings.conflicts } else { &mut bindings.places };
                map.insert(place, Arc::clone(name));
                if !taken {
                    let owners = route.owners();
                    let shared =
                        known.entry(owners).or_insert_with_key(|owners| owners.iter().copied().cloned().collect());
                    bindings.owners.insert(place, Arc::clone(shared));
                }
            }
        }
        if !bindings.conflicts.is_empty() {
            // An incremental step may have left a disputed address with the later name.
            for (place, name) in &bindings.places {
                let owner = self.by_name[name].iter().find(|route| route.place() == *place);
                self.by_place.extend(owner.map(|route| (*place, Arc::clone(route))));
            }
        }
        if *self.bindings != bindings {
            self.bindings = Arc::new(bindings);
        }
    }
}

/// Whether two versions of a capacity or an export have the same ports: those say who owns an address.
fn same_ports(old: Option<&Arc<Resource>>, new: Option<&Arc<Resource>>) -> bool {
    match (old.map(AsRef::as_ref), new.map(AsRef::as_ref)) {
        (Some(Resource::Capacity(old)), Some(Resource::Capacity(new))) => {
            old.ready.keys().eq(new.ready.keys()) && old.ready_udp.keys().eq(new.ready_udp.keys())
        }
        (Some(Resource::Export(old)), Some(Resource::Export(new))) => {
            let key = |port: &ExportPort| (port.transport, port.port);
            old.ports.iter().map(key).eq(new.ports.iter().map(key))
        }
        _ => false,
    }
}

type Change<'a> = (&'a ResourceKey, Option<&'a Arc<Resource>>, Option<&'a Arc<Resource>>);

/// All keys whose resource differs, by one walk over both maps in order. A resource that was sent again unchanged counts
/// as changed only if its content differs.
fn changes<'a>(
    old: &'a BTreeMap<ResourceKey, Arc<Resource>>,
    new: &'a BTreeMap<ResourceKey, Arc<Resource>>,
) -> Vec<Change<'a>> {
    let mut changes = Vec::new();
    let (mut olds, mut news) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (olds.peek(), news.peek()) {
            (None, None) => return changes,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((one, _)), Some((two, _))) => one.cmp(two),
        };
        let gone = if order.is_le() { olds.next() } else { None };
        let came = if order.is_ge() { news.next() } else { None };
        match (gone, came) {
            (Some((_, one)), Some((_, two))) if Arc::ptr_eq(one, two) || one == two => {}
            (gone, came) => {
                let key = came.or(gone).map(|(key, _)| key);
                changes.extend(key.map(|key| (key, gone.map(|(_, old)| old), came.map(|(_, new)| new))));
            }
        }
    }
}

#[cfg(test)]
mod tests;
