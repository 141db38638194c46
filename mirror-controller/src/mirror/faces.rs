//! The faces of one wanted mirror: what the gateway, DNS and the capacity table see of it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use linkspan_proto::configuration::{Capacity, Mirror, MirrorPort, Tier};
use linkspan_proto::exchange::{CatalogueEntry, Protocol};
use linkspan_proto::names::ClusterName;

use super::desired::{Host, MirrorId, Shape, Wanted};
use crate::dns;

/// What the gateway listens for: one name, or one for each endpoint of a headless mirror.
#[must_use]
pub fn listeners(wanted: &Wanted) -> Vec<Mirror> {
    let ports = |address| {
        let tcp = wanted.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        tcp.map(|port| MirrorPort {
            listen: SocketAddr::new(address, port.number),
            port: port.number,
            name: port.name.clone(),
            app_protocol: port.app_protocol.clone(),
        })
        .collect()
    };
    let service = wanted.id.service();
    match &wanted.shape {
        Shape::Single { address, tiers } => vec![Mirror {
            name: wanted.name.clone(),
            service: service.clone(),
            endpoint: None,
            ports: ports(*address),
            tiers: tiers.clone(),
        }],
        Shape::Headless { hosts } => hosts
            .iter()
            .map(|host| Mirror {
                name: host.name.clone(),
                service: service.clone(),
                endpoint: Some(host.endpoint.clone()),
                ports: ports(host.address),
                tiers: vec![Tier { clusters: [(host.cluster.clone(), 1)].into(), min_healthy_percent: 1 }],
            })
            .collect(),
    }
}

/// What DNS answers.
#[must_use]
pub fn dns(wanted: &Wanted) -> dns::Service {
    let (addresses, headless) = match &wanted.shape {
        Shape::Single { address, .. } => (vec![*address], None),
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
            .filter(|port| port.protocol == Protocol::Tcp)
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
    /// Which; empty for all.
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
        let mut tcp = wanted.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        let all = self.ports.is_empty() || tcp.all(|port| self.ports.contains(&port.number));
        all || (matches!(wanted.id, MirrorId::Cluster { .. }) && !self.is_share)
    }
}

/// What DNS answers while nothing of ours listens for the names in `silent`: those keep their names and lose their
/// addresses.
#[must_use]
pub fn dns_without(wanted: &Wanted, silent: &Silent) -> dns::Service {
    let mut service = dns(wanted);
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
        address: Some(host.address),
        ready: host.ready,
    }
}

/// The names for which a mirror holds addresses.
pub fn address_names(wanted: &Wanted) -> impl Iterator<Item = &str> {
    let (own, hosts) = match &wanted.shape {
        Shape::Single { .. } => (Some(wanted.name.as_str()), [].as_slice()),
        Shape::Headless { hosts } => (None, hosts.as_slice()),
    };
    own.into_iter().chain(hosts.iter().map(|host| host.name.as_str()))
}

/// How much of a peer's service is ready.
#[must_use]
pub fn capacity(cluster: &ClusterName, entry: &CatalogueEntry) -> Capacity {
    let tcp = || entry.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    let ready = entry.endpoints.iter().filter(|(_, ready)| *ready);
    Capacity {
        cluster: cluster.clone(),
        service: entry.service.clone(),
        ready: tcp().map(|port| (port.port, port.ready)).collect(),
        total: tcp().filter_map(|port| Some((port.port, port.total?))).collect(),
        ready_endpoints: ready.map(|(name, _)| name.clone()).collect(),
    }
}

#[cfg(test)]
mod tests;
