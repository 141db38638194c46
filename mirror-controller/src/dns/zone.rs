//! Which names exist and what they hold. Pure: no socket, no clock.
//!
//! A name is read from its right end: the zone, the namespace, the service, then what lies below the service. So the
//! rules of the MCS DNS specification (version 1.0.0) stand here as one `match`:
//!
//! ```text
//! svc.cluster.local      SOA NS      clusterset.local       SOA NS
//!   NS.                  -             dns-version.         TXT "1.0.0"
//!     SVC-CLUSTER.       A AAAA SRV    svc.                 -
//!       _PROTO.          -               NS.                -
//!         _PORT.         SRV               SVC.             A AAAA SRV
//!       HOST.            A AAAA              _PROTO.        -
//!                                              _PORT.       SRV
//!                                            CLUSTER.       does not exist, although names below it do
//!                                              HOST.        A AAAA
//! ```
//!
//! A name whose address is withheld stays, and so do the names below it: each of them holds nothing meanwhile.
//!
//! `-` marks a name that exists only because names below it do: NOERROR without records (RFC 8020). `CLUSTER.SVC...` is
//! the exception that the MCS specification asks for: it must not exist.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;
use linkspan_proto::exchange::Protocol;
use linkspan_proto::names::{ClusterName, EndpointName, Namespace, PortName, ServiceName};

/// The zones we answer for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ZoneName {
    /// `svc.cluster.local`: mirrors of one cluster, `<service>-<cluster>.<namespace>`.
    ClusterLocal,
    /// `clusterset.local`: services of the whole set, `<service>.<namespace>.svc`.
    Clusterset,
}

impl ZoneName {
    /// Both zones.
    pub const ALL: [Self; 2] = [Self::ClusterLocal, Self::Clusterset];

    /// The zone's apex, without a trailing dot.
    #[must_use]
    pub const fn apex(self) -> &'static str {
        match self {
            Self::ClusterLocal => "svc.cluster.local",
            Self::Clusterset => "clusterset.local",
        }
    }

    /// What follows `<service>.<namespace>.` in the names of services, without a trailing dot.
    #[must_use]
    pub const fn service_suffix(self) -> &'static str {
        match self {
            Self::ClusterLocal => "svc.cluster.local",
            Self::Clusterset => "svc.clusterset.local",
        }
    }

    /// The labels of the apex, from left to right.
    const fn apex_labels(self) -> &'static [&'static str] {
        match self {
            Self::ClusterLocal => &["svc", "cluster", "local"],
            Self::Clusterset => &["clusterset", "local"],
        }
    }
}

/// One service as DNS shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The service's label: `web-west` in [`ZoneName::ClusterLocal`], `web` in [`ZoneName::Clusterset`].
    pub name: ServiceName,
    /// Its namespace.
    pub namespace: Namespace,
    /// In which zone.
    pub zone: ZoneName,
    /// The service's own addresses. Empty for a headless service, and while its address is withheld.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// The endpoints of a headless service; `None` for a service with addresses of its own.
    pub headless: Option<Vec<HeadlessEndpoint>>,
}

/// One port of a [`Service`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Only a named port has an SRV name of its own.
    pub name: Option<PortName>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The number that clients connect to.
    pub port: u16,
}

/// One endpoint of a headless [`Service`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadlessEndpoint {
    /// Its host name.
    pub name: EndpointName,
    /// The cluster it runs in.
    pub cluster: ClusterName,
    /// The local address that leads to it; `None` while that is withheld.
    pub address: Option<IpAddr>,
    /// Only ready endpoints have names and are part of answers.
    pub ready: bool,
}

/// All names at one moment. Immutable: a change makes a new one.
#[derive(Debug, Default)]
pub struct Zone {
    serial: u32,
    cluster_local: Namespaces,
    clusterset: Namespaces,
}

/// Services by namespace and name. The keys are lower case, as the name types guarantee.
type Namespaces = HashMap<Box<str>, HashMap<Box<str>, Entry>>;

/// A service, prepared for answers.
#[derive(Debug)]
pub(super) struct Entry {
    /// The service's full name, the target of its SRV records.
    pub(super) name: Name,
    /// All addresses; those of the ready hosts for a headless service.
    pub(super) addresses: Addresses,
    /// Its ports, without repetition.
    pub(super) ports: Vec<Port>,
    /// The ready hosts of a headless service, by what stands before the service's name: `host` in
    /// [`ZoneName::ClusterLocal`], `host.cluster` in [`ZoneName::Clusterset`]. `None` for a service with addresses.
    pub(super) hosts: Option<BTreeMap<Box<str>, Host>>,
}

/// A ready endpoint of a headless service.
#[derive(Debug)]
pub(super) struct Host {
    /// Its full name.
    pub(super) name: Name,
    /// Its addresses: one, or one per family.
    pub(super) addresses: Addresses,
}

/// Addresses by family, without repetition (RFC 2181 section 5: an RRset has no duplicates).
#[derive(Debug, Default, Clone)]
pub(super) struct Addresses {
    pub(super) v4: Vec<Ipv4Addr>,
    pub(super) v6: Vec<Ipv6Addr>,
}

impl Addresses {
    pub(super) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    fn insert(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) if !self.v4.contains(&v4) => self.v4.push(v4),
            IpAddr::V6(v6) if !self.v6.contains(&v6) => self.v6.push(v6),
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
    }

    fn collect(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let unique: BTreeSet<IpAddr> = addresses.into_iter().collect();
        let mut result = Self::default();
        for address in unique {
            match address {
                IpAddr::V4(v4) => result.v4.push(v4),
                IpAddr::V6(v6) => result.v6.push(v6),
            }
        }
        result
    }
}

/// What a name is.
#[derive(Debug)]
pub(super) enum Node<'z> {
    /// The apex of a zone.
    Apex,
    /// Exists, holds nothing.
    Empty,
    /// `dns-version.clusterset.local`.
    Version,
    /// A service.
    Service(&'z Entry),
    /// A named port of a service: the number to connect to.
    Port(&'z Entry, u16),
    /// An endpoint of a headless service.
    Host(&'z Host),
}

/// Where a name was looked for, and what was found.
#[derive(Debug)]
pub(super) enum Lookup<'z> {
    /// Outside both zones.
    Foreign,
    /// Inside this zone, but there is no such name.
    Missing(ZoneName),
    /// Inside this zone.
    Found(ZoneName, Node<'z>),
}

impl Zone {
    /// Builds the zone. `serial` goes into the SOA records and should grow with each change.
    ///
    /// Of two services with the same name in the same zone the first counts. A name longer than DNS can carry (255
    /// bytes) is left out: nobody could ask for it.
    #[must_use]
    pub fn build(services: Vec<Service>, serial: u32) -> Self {
        let mut zone = Self { serial, ..Self::default() };
        for service in services {
            let namespaces = match service.zone {
                ZoneName::ClusterLocal => &mut zone.cluster_local,
                ZoneName::Clusterset => &mut zone.clusterset,
            };
            let Some(entry) = Entry::build(&service) else { continue };
            namespaces
                .entry(service.namespace.as_str().into())
                .or_default()
                .entry(service.name.as_str().into())
                .or_insert(entry);
        }
        zone
    }

    /// The serial number of the SOA records.
    #[must_use]
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Finds a name by its labels, from left to right, in lower case.
    pub(super) fn lookup(&self, labels: &[&str]) -> Lookup<'_> {
        for zone in ZoneName::ALL {
            if let Some(below) = labels.strip_suffix(zone.apex_labels()) {
                let node = match zone {
                    ZoneName::ClusterLocal => self.lookup_cluster_local(below),
                    ZoneName::Clusterset => self.lookup_clusterset(below),
                };
                return node.map_or(Lookup::Missing(zone), |node| Lookup::Found(zone, node));
            }
        }
        Lookup::Foreign
    }

    fn lookup_cluster_local(&self, below: &[&str]) -> Option<Node<'_>> {
        match below {
            [] => Some(Node::Apex),
            [namespace] => self.cluster_local.contains_key(*namespace).then_some(Node::Empty),
            [prefix @ .., service, namespace] => {
                entry(&self.cluster_local, namespace, service).and_then(|entry| entry.below(prefix))
            }
        }
        .or_else(|| name_server(below))
    }

    fn lookup_clusterset(&self, below: &[&str]) -> Option<Node<'_>> {
        match below {
            [] => Some(Node::Apex),
            ["dns-version"] => Some(Node::Version),
            ["svc"] => Some(Node::Empty),
            [namespace, "svc"] => self.clusterset.contains_key(*namespace).then_some(Node::Empty),
            [prefix @ .., service, namespace, "svc"] => {
                entry(&self.clusterset, namespace, service).and_then(|entry| entry.below(prefix))
            }
            _ => None,
        }
        .or_else(|| name_server(below))
    }
}

fn entry<'z>(namespaces: &'z Namespaces, namespace: &str, service: &str) -> Option<&'z Entry> {
    namespaces.get(namespace)?.get(service)
}

/// `ns.dns.<apex>`, the name server that SOA and NS records name, exists without an address: the server does not know
/// by which address it is reached. No mirror can be called `ns` (a mirror's name holds a hyphen), so nothing is hidden.
fn name_server(below: &[&str]) -> Option<Node<'static>> {
    matches!(below, ["dns"] | ["ns", "dns"]).then_some(Node::Empty)
}

impl Entry {
    fn build(service: &Service) -> Option<Self> {
        let full = format!("{}.{}.{}.", service.name, service.namespace, service.zone.service_suffix());
        let name = Name::from_ascii(&full).ok()?;
        let mut ports: Vec<Port> = Vec::with_capacity(service.ports.len());
        for port in &service.ports {
            if !ports.contains(port) {
                ports.push(port.clone());
            }
        }
        let Some(endpoints) = &service.headless else {
            let addresses = Addresses::collect(service.addresses.iter().copied());
            return Some(Self { name, addresses, ports, hosts: None });
        };
        let mut hosts: BTreeMap<Box<str>, Host> = BTreeMap::new();
        let mut all = Vec::new();
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.ready) {
            let prefix = match service.zone {
                ZoneName::ClusterLocal => endpoint.name.to_string(),
                ZoneName::Clusterset => format!("{}.{}", endpoint.name, endpoint.cluster),
            };
            let Ok(name) = Name::from_ascii(format!("{prefix}.{full}")) else { continue };
            let host = hosts.entry(prefix.into()).or_insert_with(|| Host { name, addresses: Addresses::default() });
            if let Some(address) = endpoint.address {
                host.addresses.insert(address);
                all.push(address);
            }
        }
        Some(Self { name, addresses: Addresses::collect(all), ports, hosts: Some(hosts) })
    }

    /// The node whose name is `prefix` before the service's name.
    fn below(&self, prefix: &[&str]) -> Option<Node<'_>> {
        // MCS DNS 1.0.0: a headless service without a ready endpoint does not exist.
        if self.hosts.as_ref().is_some_and(BTreeMap::is_empty) {
            return None;
        }
        match prefix {
            [] => Some(Node::Service(self)),
            [protocol] if protocol.starts_with('_') => {
                self.named_ports(protocol).next().is_some().then_some(Node::Empty)
            }
            [port, protocol] if protocol.starts_with('_') => {
                let port = port.strip_prefix('_')?;
                self.named_ports(protocol).find(|(name, _)| *name == port).map(|(_, number)| Node::Port(self, number))
            }
            // For the clusterset `CLUSTER` alone is no key here, hence NXDOMAIN, as MCS DNS 1.0.0 wants it.
            [host] => self.host(host),
            [host, cluster] => self.host(&format!("{host}.{cluster}")),
            _ => None,
        }
    }

    fn host(&self, prefix: &str) -> Option<Node<'_>> {
        self.hosts.as_ref()?.get(prefix).map(Node::Host)
    }

    /// Names and numbers of the ports that have a name, of the protocol in the label `_tcp`, `_udp` or `_sctp`.
    fn named_ports<'e>(&'e self, label: &'e str) -> impl Iterator<Item = (&'e str, u16)> {
        self.ports
            .iter()
            .filter(move |port| protocol_label(port.protocol) == label)
            .filter_map(|port| Some((port.name.as_ref()?.as_str(), port.port)))
    }
}

const fn protocol_label(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "_tcp",
        Protocol::Udp => "_udp",
        Protocol::Sctp => "_sctp",
    }
}
