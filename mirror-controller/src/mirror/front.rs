//! Where local clients reach a mirrored name. Pure.
//!
//! ```text
//! site         web-west.shop.svc.cluster.local  ->  127.83.237.204, and there the service's own ports
//! Kubernetes   web-west.shop.svc.cluster.local  ->  its Service's ClusterIP  ->  a port of each gateway pod
//! ```
//!
//! On both, what a name was given stays its own for as long as it is remembered: see [`super::pool`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use linkspan_proto::names::ClusterName;

use super::addresses::Addresses;
use super::pool::PoolError;
use super::ports::Ports;

/// Where one name is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Front {
    /// At a local address, with the service's own port numbers.
    Address(IpAddr),
    /// At ports of the gateways, by the service's port numbers; TCP and UDP of one number have the same.
    Ports(BTreeMap<u16, u16>),
}

/// Who has which front.
#[derive(Debug)]
pub enum Fronts {
    /// On a site.
    Addresses(Addresses),
    /// On Kubernetes.
    Ports(Ports),
}

/// Why a name has no front.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrontError {
    /// No address is free.
    #[error("all {0} addresses of mirrorAddresses are in use; choose a larger range in site.yaml")]
    NoAddress(u64),
    /// No port is free.
    #[error(
        "all {0} gateway ports are in use; choose a larger range in spec.gateway.ports of the Cluster configuration"
    )]
    NoPort(u64),
    /// One cluster has its share.
    #[error("{0} has its share of the mirrored names; choose a larger range of {1} if that is right")]
    ShareExceeded(ClusterName, &'static str),
    /// Another controller may give out the same at this moment.
    #[error("this controller does not lead at the moment; only the leader gives out gateway ports")]
    NotLeading,
}

impl Front {
    /// What the gateway listens on for the service's port `number`. All addresses of a gateway pod, of both families.
    #[must_use]
    pub fn listen(&self, number: u16) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => Some(SocketAddr::new(*address, number)),
            Self::Ports(ports) => Some(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), *ports.get(&number)?)),
        }
    }

    /// The address, if it has one of its own.
    #[must_use]
    pub const fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Ports(_) => None,
        }
    }

    /// What the pool knows the parts of this front by.
    pub fn keys<'a>(&'a self, name: &'a str) -> impl Iterator<Item = String> + 'a {
        let (whole, ports) = match self {
            Self::Address(_) => (Some(name.to_owned()), None),
            Self::Ports(ports) => (None, Some(ports.keys().map(move |number| port_key(name, *number)))),
        };
        whole.into_iter().chain(ports.into_iter().flatten())
    }
}

/// What the pool knows one port of a name by. No DNS name has a colon.
#[must_use]
pub fn port_key(name: &str, number: u16) -> String {
    format!("{name}:{number}")
}

impl Fronts {
    /// The front of `name` with these ports, which `cluster` (one of `clusters`) causes to exist.
    ///
    /// # Errors
    /// When there is none to give. What was given in part is given back.
    pub fn assign(
        &mut self,
        name: &str,
        numbers: &[u16],
        cluster: &ClusterName,
        clusters: &[ClusterName],
    ) -> Result<Front, FrontError> {
        match self {
            Self::Addresses(addresses) => match addresses.assign(name, cluster, clusters) {
                Ok(address) => Ok(Front::Address(address)),
                Err(PoolError::Exhausted(all)) => Err(FrontError::NoAddress(all)),
                Err(PoolError::ShareExceeded(cluster)) => Err(FrontError::ShareExceeded(cluster, "mirrorAddresses")),
                Err(PoolError::Closed) => Err(FrontError::NotLeading),
            },
            Self::Ports(ports) => {
                let mut given = BTreeMap::new();
                for number in numbers {
                    match ports.assign(&port_key(name, *number), cluster, clusters) {
                        Ok(port) => drop(given.insert(*number, port)),
                        // The ports that it has go on.
                        Err(PoolError::Closed) => {}
                        Err(error) => {
                            given.keys().for_each(|number| ports.release(&port_key(name, *number)));
                            return Err(match error {
                                PoolError::Exhausted(all) => FrontError::NoPort(all),
                                PoolError::Closed => FrontError::NotLeading,
                                PoolError::ShareExceeded(cluster) => {
                                    FrontError::ShareExceeded(cluster, "spec.gateway.ports")
                                }
                            });
                        }
                    }
                }
                if given.is_empty() && !numbers.is_empty() {
                    return Err(FrontError::NotLeading);
                }
                Ok(Front::Ports(given))
            }
        }
    }

    /// While closed, names keep what they have and new ones get nothing.
    pub const fn set_closed(&mut self, closed: bool) {
        match self {
            Self::Addresses(addresses) => addresses.set_closed(closed),
            Self::Ports(ports) => ports.set_closed(closed),
        }
    }

    /// Whether names get ports of the gateways, as on Kubernetes, and not addresses of their own.
    #[must_use]
    pub const fn are_ports(&self) -> bool {
        matches!(self, Self::Ports(_))
    }

    /// Nobody holds `key`, one of [`Front::keys`], any more.
    pub fn release(&mut self, key: &str) {
        match self {
            Self::Addresses(addresses) => addresses.release(key),
            Self::Ports(ports) => ports.release(key),
        }
    }

    /// The text to be kept over a restart, if it differs from what was last asked for. Ports are kept in the mirrored objects
    /// themselves.
    pub fn take_changed(&mut self) -> Option<String> {
        match self {
            Self::Addresses(addresses) => addresses.take_changed(),
            Self::Ports(_) => None,
        }
    }

    /// The text could not be written: ask again.
    pub const fn mark_changed(&mut self) {
        match self {
            Self::Addresses(addresses) => addresses.mark_changed(),
            Self::Ports(ports) => ports.mark_changed(),
        }
    }

    /// Names in use, and what there is in all.
    #[must_use]
    pub fn load(&self) -> (u64, u64) {
        match self {
            Self::Addresses(addresses) => addresses.load(),
            Self::Ports(ports) => ports.load(),
        }
    }
}

impl From<Addresses> for Fronts {
    fn from(addresses: Addresses) -> Self {
        Self::Addresses(addresses)
    }
}

impl From<Ports> for Fronts {
    fn from(ports: Ports) -> Self {
        Self::Ports(ports)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ports::PortRange;
    use super::*;

    #[test]
    fn what_cannot_be_given_whole_is_given_back() {
        let west = ClusterName::parse("west").unwrap();
        let mut fronts = Fronts::from(Ports::new(PortRange { first: 10_000, last: 10_002 }));
        let error = fronts.assign("a", &[1, 2, 3, 4], &west, &[]).unwrap_err();
        assert_eq!(error, FrontError::NoPort(3));
        assert_eq!(fronts.load(), (0, 3));
        let Front::Ports(given) = fronts.assign("b", &[80, 443], &west, &[]).unwrap() else { panic!() };
        let front = Front::Ports(given.clone());
        assert_eq!(front.listen(80).map(|listen| listen.port()), given.get(&80).copied());
        assert_eq!(front.listen(81), None);
        assert_eq!(front.keys("b").collect::<Vec<_>>(), ["b:80", "b:443"]);
        front.keys("b").for_each(|key| fronts.release(&key));
        assert_eq!(fronts.load(), (0, 3));
    }

    #[test]
    fn who_does_not_lead_gives_nothing_new_and_takes_nothing_away() {
        let west = ClusterName::parse("west").unwrap();
        let mut fronts = Fronts::from(Ports::new(PortRange { first: 10_000, last: 10_009 }));
        let before = fronts.assign("a", &[80], &west, &[]).unwrap();
        fronts.set_closed(true);
        assert_eq!(
            fronts.assign("a", &[80, 443], &west, &[]),
            Ok(before.clone()),
            "a new port waits, the old one stays"
        );
        assert_eq!(fronts.assign("b", &[80], &west, &[]), Err(FrontError::NotLeading));
        before.keys("a").for_each(|key| fronts.release(&key));
        assert_eq!(fronts.assign("a", &[80], &west, &[]), Ok(before), "it comes back as it was");
        fronts.set_closed(false);
        assert!(fronts.assign("b", &[80], &west, &[]).is_ok());
    }
}
