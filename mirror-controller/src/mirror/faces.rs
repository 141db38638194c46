//! The faces of one wanted mirror: what the gateway, DNS and the capacity table see of it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use linkspan_proto::configuration::{Capacity, Mirror, MirrorPort, Tier};
use linkspan_proto::exchange::{CatalogueEntry, Protocol};
use linkspan_proto::names::ClusterName;

use super::desired::{Host, MirrorId, Port, Shape, Wanted};
use super::front::Front;
use super::kubernetes::objects::{Given, service_of};
use crate::dns;

/// What the gateway listens for: one name, or one for each endpoint of a headless mirror.
#[must_use]
pub fn listeners(wanted: &Wanted) -> Vec<Mirror> {
    let ports = |front: &Front| {
        let port = |port: &Port| {
            Some(MirrorPort {
                transport: port.protocol.transport()?,
                listen: front.listen(port.number)?,
                port: port.number,
                name: port.name.clone(),
                app_protocol: port.app_protocol.clone(),
            })
        };
        wanted.ports.iter().filter_map(port).collect()
    };
    let service = wanted.id.service();
    match &wanted.shape {
        Shape::Single { front, tiers } => vec![Mirror {
            name: wanted.name.clone(),
            service: service.clone(),
            endpoint: None,
            ports: ports(front),
            tiers: tiers.clone(),
        }],
        Shape::Headless { hosts } => hosts
            .iter()
            .map(|host| Mirror {
                name: host.name.clone(),
                service: service.clone(),
                endpoint: Some(host.endpoint.clone()),
                ports: ports(&host.front),
                tiers: vec![Tier { clusters: [(host.cluster.clone(), 1)].into(), min_healthy_percent: 1 }],
            })
            .collect(),
    }
}

/// What DNS answers.
#[must_use]
pub fn dns(wanted: &Wanted) -> dns::Service {
    let (addresses, headless) = match &wanted.shape {
        Shape::Single { front, .. } => (front.address().into_iter().collect(), None),
        Shape::Headless { hosts } => (Vec::new(), Some(hosts.iter().map(dns_host).collect())),
    };
    dns::Service {
        name: wanted.object.name.clone(),
        namespace: wanted.object.namespace.clone(),
        zone: match wanted.id {
            MirrorId::Cluster { .. } => dns::ZoneName::ClusterLocal,
            MirrorId::Clusterset { .. } => dns::ZoneName::Clusterset,
        },
        addresses,
        ports: wanted
            .ports
            .iter()
            .filter(|port| port.protocol.transport().is_some())
            .map(|port| dns::Port { name: port.name.clone(), protocol: port.protocol, port: port.number })
            .collect(),
        headless,
    }
}

/// The names with ports at which no gateway listens.
pub type Silent = BTreeMap<String, Silence>;

/// Ports of one name at which no gateway listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Which, of either transport; empty for all.
    pub ports: BTreeSet<u16>,
    /// Because a cluster has its share of sockets, and not because anybody else is there.
    pub is_share: bool,
}

impl Silence {
    /// Takes in what another gateway does not listen at; says whether anything is left that neither does.
    pub fn both(&mut self, other: &Self) -> bool {
        match (self.ports.is_empty(), other.ports.is_empty()) {
            (_, true) => true,
            (true, false) => {
                self.ports.clone_from(&other.ports);
                true
            }
            (false, false) => {
                self.ports.retain(|port| other.ports.contains(port));
                !self.ports.is_empty()
            }
        }
    }

    /// Whether the name's address is not to be given out.
    ///
    /// At an address of which one port is not ours, another program may answer at that port: the complaint may hide it
    /// (without the right to bind port 80 the kernel does not say that it is taken). So the mirror of one peer is withheld
    /// for any port. An import of several clusters is not, since any of them could so take the name from all others by
    /// exporting one port more; nor is a name of which the gateway itself left ports out.
    fn withholds(&self, wanted: &Wanted) -> bool {
        let mut carried = wanted.ports.iter().filter(|port| port.protocol.transport().is_some());
        let all = self.ports.is_empty() || carried.all(|port| self.ports.contains(&port.number));
        all || (matches!(wanted.id, MirrorId::Cluster { .. }) && !self.is_share)
    }
}

/// What DNS answers while nothing of ours listens for the names in `silent`: those keep their names and lose their
/// addresses. `given` holds the ClusterIPs that an API server gave to Services, which are the only addresses there.
#[must_use]
pub fn dns_with(wanted: &Wanted, silent: &Silent, given: &Given) -> dns::Service {
    let mut service = dns(wanted);
    match (&wanted.shape, &mut service.headless) {
        (Shape::Headless { hosts }, Some(endpoints)) => {
            for (host, endpoint) in hosts.iter().zip(endpoints) {
                let ips = host.object.as_ref().and_then(|object| given.get(object));
                endpoint.address = endpoint.address.or_else(|| ips?.first().copied());
            }
        }
        _ => service.addresses.extend(given.get(&service_of(wanted)).into_iter().flatten()),
    }
    let is_withheld = |name: &str| silent.get(name).is_some_and(|silence| silence.withholds(wanted));
    match (&wanted.shape, &mut service.headless) {
        (Shape::Headless { hosts }, Some(endpoints)) => {
            for (host, endpoint) in hosts.iter().zip(endpoints) {
                endpoint.address = endpoint.address.filter(|_| !is_withheld(&host.name));
            }
        }
        _ if is_withheld(&wanted.name) => service.addresses.clear(),
        _ => {}
    }
    service
}

fn dns_host(host: &Host) -> dns::HeadlessEndpoint {
    dns::HeadlessEndpoint {
        name: host.endpoint.clone(),
        cluster: host.cluster.clone(),
        address: host.front.address(),
        ready: host.ready,
    }
}

/// The names that a mirror is reached by, each with its front.
pub fn fronts(wanted: &Wanted) -> impl Iterator<Item = (&str, &Front)> {
    let (own, hosts) = match &wanted.shape {
        Shape::Single { front, .. } => (Some((wanted.name.as_str(), front)), [].as_slice()),
        Shape::Headless { hosts } => (None, hosts.as_slice()),
    };
    own.into_iter().chain(hosts.iter().map(|host| (host.name.as_str(), &host.front)))
}

/// What a mirror holds in the pool of fronts.
pub fn front_keys(wanted: &Wanted) -> impl Iterator<Item = String> {
    fronts(wanted).flat_map(|(name, front)| front.keys(name))
}

/// How much of a peer's service is ready.
#[must_use]
pub fn capacity(cluster: &ClusterName, entry: &CatalogueEntry) -> Capacity {
    let ready_of = |protocol| {
        let ports = entry.ports.iter().filter(move |port| port.protocol == protocol);
        ports.map(|port| (port.port, port.ready)).collect()
    };
    let total_of = |protocol| {
        let ports = entry.ports.iter().filter(move |port| port.protocol == protocol);
        ports.filter_map(|port| Some((port.port, port.total?))).collect()
    };
    let ready = entry.endpoints.iter().filter(|(_, ready)| *ready);
    Capacity {
        cluster: cluster.clone(),
        service: entry.service.clone(),
        ready: ready_of(Protocol::Tcp),
        total: total_of(Protocol::Tcp),
        ready_udp: ready_of(Protocol::Udp),
        total_udp: total_of(Protocol::Udp),
        ready_endpoints: ready.map(|(name, _)| name.clone()).collect(),
    }
}

#[cfg(test)]
mod tests;
