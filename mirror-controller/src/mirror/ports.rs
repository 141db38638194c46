//! Ports of the gateways for mirrored names on Kubernetes: each port of each name has one of its own, on every gateway pod.

use serde::{Deserialize, Serialize};

use super::pool::{Pool, Range};

/// Who has which port. A name here is `<DNS name>:<the service's port>`, see [`super::front::Fronts`].
pub type Ports = Pool<PortRange>;

/// The ports that gateways listen on for mirrored names, both ends included. Below the ephemeral range (32768 and up), so
/// that no outgoing connection of a gateway takes one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest, not below `first`.
    pub last: u16,
}

impl Range for PortRange {
    type Item = u16;

    fn len(&self) -> u64 {
        (u64::from(self.last) + 1).saturating_sub(u64::from(self.first))
    }

    fn at(&self, index: u64) -> u16 {
        // `index` is below the length, so the sum is at most `last`.
        self.first.saturating_add(u16::try_from(index).unwrap_or_default())
    }

    fn holds(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

#[cfg(test)]
mod tests {
    use linkspan_proto::names::ClusterName;

    use super::super::pool::PoolError;
    use super::*;

    #[test]
    fn every_port_is_given_once_and_kept() {
        let west = ClusterName::parse("west").unwrap();
        let range = PortRange { first: 10_000, last: 10_003 };
        let mut ports = Ports::new(range);
        let mut given: Vec<u16> = (0..4).map(|name| ports.assign(&format!("n{name}"), &west, &[]).unwrap()).collect();
        assert_eq!(ports.assign("more", &west, &[]), Err(PoolError::Exhausted(4)));
        let first = given[0];
        given.sort_unstable();
        assert_eq!(given, [10_000, 10_001, 10_002, 10_003]);
        ports.release("n0");
        assert_eq!(ports.assign("n0", &west, &[]), Ok(first));
    }

    #[test]
    fn what_objects_tell_of_an_earlier_run_is_kept_unless_impossible() {
        let west = ClusterName::parse("west").unwrap();
        let mut ports = Ports::new(PortRange { first: 10_000, last: 10_003 });
        ports.remember("a".to_owned(), 10_002, west.clone());
        ports.remember("b".to_owned(), 10_002, west.clone());
        ports.remember("c".to_owned(), 80, west.clone());
        assert_eq!(ports.assign("a", &west, &[]), Ok(10_002));
        assert_ne!(ports.assign("b", &west, &[]), Ok(10_002));
        assert!(ports.assign("c", &west, &[]).unwrap() >= 10_000);
    }
}
