//! What a running gateway knows: links, mirrors, exports, and what follows from them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use linkspan_proto::configuration::{
    Capacity, Export, ExportPort, LinkReport, Mirror, MirrorPort, Peer, PortTransport, Resource,
};
use linkspan_proto::names::{ClusterName, ServiceKey, mirror_name};
use serde::{Deserialize, Serialize};

use super::occupant::Occupant;

/// Everything that the gateway says, read at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// Our own cluster.
    pub(crate) own: Option<ClusterName>,
    /// The links, by peer.
    pub(crate) links: BTreeMap<ClusterName, LinkReport>,
    /// The peers that may be linked.
    pub(crate) peers: BTreeMap<ClusterName, Peer>,
    /// The mirrored names, in order of name.
    pub(crate) mirrors: Vec<Mirror>,
    /// What this cluster exports.
    pub(crate) exports: BTreeMap<ServiceKey, Export>,
    /// What is ready in the peers.
    pub(crate) capacities: BTreeMap<(ClusterName, ServiceKey), Capacity>,
    /// The listening sockets of the mirrors.
    pub(crate) listeners: BTreeMap<(SocketAddr, PortTransport), Listener>,
    /// On Kubernetes, where clients reach each mirrored name: the address of its Service. On a site they reach the listening
    /// sockets themselves.
    pub(crate) fronts: Option<BTreeMap<String, Front>>,
}

/// The Service, or the import, that stands for a mirrored name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Front {
    /// Its addresses; none for a headless one.
    pub(crate) addresses: Vec<IpAddr>,
}

/// One listening socket, as `/mirrors` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listener {
    /// Its address.
    pub(crate) listen: SocketAddr,
    /// For connections or for datagrams.
    #[serde(default)]
    pub(crate) transport: PortTransport,
    /// Whether it is bound.
    pub(crate) bound: bool,
    /// Why not, one word.
    #[serde(default)]
    pub(crate) reason: String,
    /// Why not, in words with the remedy.
    #[serde(default)]
    pub(crate) message: String,
    /// Who is in the way; found here and not by the gateway, which may not look into other processes.
    #[serde(skip)]
    pub(crate) occupant: Option<Occupant>,
}

impl Listener {
    /// What names it among all.
    pub(crate) fn place(&self) -> (SocketAddr, PortTransport) {
        (self.listen, self.transport)
    }
}

/// `/config`, of which the gateway's part alone is of interest.
#[derive(Deserialize)]
pub(crate) struct ConfigPage {
    /// The gateway's part.
    pub(crate) gateway: ConfigPart,
}

/// The gateway's part of `/config`.
#[derive(Deserialize)]
pub(crate) struct ConfigPart {
    /// What its arguments and file came to.
    pub(crate) resolved: Resolved,
    /// Which configuration of the controller is in force.
    #[serde(default)]
    pub(crate) generation: u64,
    /// Every resource in force.
    pub(crate) resources: Vec<Resource>,
}

/// What a gateway's arguments and file came to.
#[derive(Deserialize)]
pub(crate) struct Resolved {
    /// Its cluster.
    pub(crate) cluster: ClusterName,
}

/// One cluster behind a mirrored port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Backing {
    /// The cluster.
    pub(crate) cluster: ClusterName,
    /// Which tier it belongs to, from 1.
    pub(crate) tier: usize,
    /// Its weight inside the tier.
    pub(crate) weight: u32,
    /// Whether a Link to it is in force; true for the local cluster.
    pub(crate) linked: bool,
    /// Whether the link to it is alive; true for the local cluster.
    pub(crate) alive: bool,
    /// Ready endpoints; absent when it does not export this port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready: Option<u32>,
}

impl Backing {
    /// Whether it can serve now.
    pub(crate) fn serves(&self) -> bool {
        self.alive && self.ready.is_some_and(|ready| ready > 0)
    }
}

/// How a mirrored port stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum State {
    /// Every cluster that has a weight can serve.
    Healthy,
    /// Some can, some cannot.
    Degraded,
    /// No cluster behind it is ready, although a link is alive.
    NoReadyEndpoints,
    /// No cluster behind it exports this port any more.
    NotExported,
    /// No link to a cluster behind it is alive.
    LinkDown,
    /// Nothing listens at its address.
    NotListening,
    /// No Service stands for it in this Kubernetes cluster.
    NoService,
    /// The controller has made no mirror of it: its name or address is taken.
    Refused,
}

impl State {
    /// Whether clients are served.
    pub(crate) fn serves(self) -> bool {
        matches!(self, Self::Healthy | Self::Degraded)
    }
}

/// A verdict on one mirrored port, with the reason in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortHealth {
    /// The verdict.
    pub(crate) state: State,
    /// Why, where it is not [`State::Healthy`].
    pub(crate) message: String,
    /// The clusters behind it.
    pub(crate) backings: Vec<Backing>,
    /// Another program that answers at its address.
    pub(crate) occupant: Option<Occupant>,
    /// Why the gateway does not listen there, its one word for it; empty where it does.
    pub(crate) unbound: String,
}

impl Facts {
    /// Sorts what the gateway said.
    pub(crate) fn of(
        own: Option<ClusterName>,
        links: Vec<LinkReport>,
        listeners: Vec<Listener>,
        resources: Vec<Resource>,
    ) -> Self {
        let mut facts = Self {
            own,
            links: links.into_iter().map(|link| (link.cluster.clone(), link)).collect(),
            listeners: listeners.into_iter().map(|listener| (listener.place(), listener)).collect(),
            ..Self::default()
        };
        for resource in resources {
            match resource {
                Resource::Peer(peer) => drop(facts.peers.insert(peer.cluster.clone(), peer)),
                Resource::Mirror(mirror) => facts.mirrors.push(mirror),
                Resource::Export(export) => drop(facts.exports.insert(export.service.clone(), export)),
                Resource::Capacity(capacity) => {
                    let key = (capacity.cluster.clone(), capacity.service.clone());
                    facts.capacities.insert(key, capacity);
                }
                Resource::Workload(_) => {}
            }
        }
        facts.mirrors.sort_by(|a, b| a.name.cmp(&b.name));
        facts
    }

    /// How many services a peer exports to us.
    pub(crate) fn services_of(&self, cluster: &ClusterName) -> usize {
        self.capacities.keys().filter(|(from, _)| from == cluster).count()
    }

    /// The clusters that export a service to us, the local one not among them.
    pub(crate) fn exporters_of<'a>(&'a self, service: &'a ServiceKey) -> impl Iterator<Item = &'a ClusterName> {
        self.capacities.keys().filter(move |(_, exported)| exported == service).map(|(cluster, _)| cluster)
    }

    /// The name by which clients know the mirror of one peer's service.
    pub(crate) fn name_of(&self, cluster: &ClusterName, service: &ServiceKey) -> String {
        let linked = self.peers.keys().cloned().collect();
        let name = mirror_name(&service.name, cluster, &linked);
        format!("{name}.{}.svc.cluster.local", service.namespace)
    }

    /// Whether a peer has no endpoint of a service that is ready. Of a headless one no name is left then.
    pub(crate) fn has_none_ready(&self, cluster: &ClusterName, service: &ServiceKey) -> bool {
        let capacity = self.capacities.get(&(cluster.clone(), service.clone()));
        capacity.is_some_and(|it| it.ready_endpoints.is_empty() && it.ports().all(|(_, _, ready)| ready == 0))
    }

    /// The clusters behind one port of a mirror, by tier.
    pub(crate) fn backings(&self, mirror: &Mirror, port: &MirrorPort) -> Vec<Backing> {
        let tiers = mirror.tiers.iter().enumerate();
        tiers
            .flat_map(|(index, tier)| tier.clusters.iter().map(move |(cluster, weight)| (index + 1, cluster, *weight)))
            .map(|(tier, cluster, weight)| {
                let local = self.own.as_ref() == Some(cluster);
                let linked = local || self.peers.contains_key(cluster);
                let alive = local || self.links.get(cluster).is_some_and(|link| link.alive);
                let ready = if local { self.ready_here(mirror, port) } else { self.ready_there(cluster, mirror, port) };
                Backing { cluster: cluster.clone(), tier, weight, linked, alive, ready }
            })
            .collect()
    }

    fn ready_here(&self, mirror: &Mirror, port: &MirrorPort) -> Option<u32> {
        let is_it = |exported: &&ExportPort| (exported.transport, exported.port) == (port.transport, port.port);
        let port = self.exports.get(&mirror.service)?.ports.iter().find(is_it)?;
        let wanted = |name: &Option<_>| mirror.endpoint.is_none() || *name == mirror.endpoint;
        let ready = port.endpoints.iter().filter(|endpoint| endpoint.ready && wanted(&endpoint.name)).count();
        u32::try_from(ready).ok()
    }

    fn ready_there(&self, cluster: &ClusterName, mirror: &Mirror, port: &MirrorPort) -> Option<u32> {
        let capacity = self.capacities.get(&(cluster.clone(), mirror.service.clone()))?;
        match &mirror.endpoint {
            Some(endpoint) => Some(u32::from(capacity.ready_endpoints.contains(endpoint))),
            None => capacity.ready_of(port.transport, port.port),
        }
    }

    /// Where clients connect to for one port of a mirror; nowhere where it has no address of its own.
    pub(crate) fn address(&self, mirror: &Mirror, port: &MirrorPort) -> Option<SocketAddr> {
        match &self.fronts {
            None => Some(port.listen),
            Some(fronts) => fronts.get(&mirror.name)?.addresses.first().map(|ip| SocketAddr::new(*ip, port.port)),
        }
    }

    /// Why clients of this cluster cannot find a mirror that the gateways serve. One endpoint of a headless service has no
    /// Service by its own name.
    fn unfronted(&self, mirror: &Mirror) -> Option<String> {
        let fronts = self.fronts.as_ref().filter(|_| mirror.endpoint.is_none())?;
        let namespace = &mirror.service.namespace;
        (!fronts.contains_key(&mirror.name)).then(|| {
            format!("no Service stands for it: is there a namespace {namespace} in this cluster, and may the controller write to it?")
        })
    }

    /// How one port of a headless service stands as a whole, which nobody listens for: its endpoints have names of their own.
    pub(crate) fn health_of_whole(&self, mirror: &Mirror, port: &MirrorPort) -> PortHealth {
        let backings = self.backings(mirror, port);
        let (state, message) = judge(&backings);
        PortHealth { state, message, backings, occupant: None, unbound: String::new() }
    }

    /// How one port of a mirror stands.
    pub(crate) fn health(&self, mirror: &Mirror, port: &MirrorPort) -> PortHealth {
        let backings = self.backings(mirror, port);
        let listener = self.listeners.get(&(port.listen, port.transport));
        let occupant = listener.and_then(|listener| listener.occupant.clone());
        let unbound = listener.filter(|listener| !listener.bound).map(|listener| listener.reason.clone());
        let (state, message) = match listener {
            Some(listener) if !listener.bound => {
                let said = if listener.message.is_empty() { &listener.reason } else { &listener.message };
                (State::NotListening, occupant.as_ref().map_or_else(|| said.clone(), Occupant::sentence))
            }
            None => (State::NotListening, "the gateway has no listener for this address yet".to_owned()),
            Some(_) => match self.unfronted(mirror) {
                Some(why) => (State::NoService, why),
                None => judge(&backings),
            },
        };
        PortHealth { state, message, backings, occupant, unbound: unbound.unwrap_or_default() }
    }
}

fn judge(backings: &[Backing]) -> (State, String) {
    // A weight of zero is exactly zero: such a cluster serves nobody, however healthy.
    let used: Vec<&Backing> = backings.iter().filter(|backing| backing.weight > 0).collect();
    let out: Vec<String> = used.iter().filter(|backing| !backing.serves()).map(|backing| why_out(backing)).collect();
    if used.is_empty() {
        return (State::NoReadyEndpoints, "no cluster has a weight above 0".to_owned());
    }
    let state = match (used.len(), out.len()) {
        (_, 0) => State::Healthy,
        (used, out) if out < used => State::Degraded,
        _ if used.iter().all(|backing| !backing.alive) => State::LinkDown,
        _ if used.iter().all(|backing| backing.ready.is_none()) => State::NotExported,
        _ => State::NoReadyEndpoints,
    };
    (state, out.join("; "))
}

fn why_out(backing: &Backing) -> String {
    let cluster = &backing.cluster;
    match (backing.alive, backing.ready) {
        (false, _) if !backing.linked => format!("there is no Link to {cluster}"),
        (false, _) => format!("the link to {cluster} is down"),
        (true, None) => format!("{cluster} does not export this port"),
        (true, Some(_)) => format!("no endpoint is ready in {cluster}"),
    }
}

#[cfg(test)]
pub(crate) mod tests;
