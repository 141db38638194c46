//! Whose address is it: longest prefix to workload.
//!
//! - In: address ranges with namespace and service account, then a client's address.
//! - Out: the source identity with assurance `network`, or nothing.
//! - Never does: guess. An address outside of every range belongs to nobody.
//! - Numbers: one hash look-up for each distinct prefix length, at most 33 for IPv4 and 129 for IPv6, longest first.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use linkspan_proto::configuration::Workload;
use linkspan_proto::identity::{Assurance, Source, SpiffeId, TrustDomain};

/// All configured ranges.
#[derive(Debug, Default)]
pub struct WorkloadTable {
    /// Prefix lengths in use, longest first, by family.
    lengths_v4: Vec<u8>,
    lengths_v6: Vec<u8>,
    ranges: HashMap<IpNet, Source>,
}

impl WorkloadTable {
    /// Of two ranges that are equal the first one stands.
    #[must_use]
    pub fn build<'a>(workloads: impl IntoIterator<Item = &'a Workload>, trust_domain: &TrustDomain) -> Self {
        let mut table = Self::default();
        let (mut lengths_v4, mut lengths_v6) = (BTreeSet::new(), BTreeSet::new());
        for workload in workloads {
            let identity = SpiffeId::workload(trust_domain, &workload.namespace, &workload.service_account);
            let source = Source::new(identity, Assurance::Network);
            for cidr in workload.ranges.iter().map(IpNet::trunc) {
                table.ranges.entry(cidr).or_insert_with(|| source.clone());
                match cidr {
                    IpNet::V4(net) => lengths_v4.insert(net.prefix_len()),
                    IpNet::V6(net) => lengths_v6.insert(net.prefix_len()),
                };
            }
        }
        table.lengths_v4 = lengths_v4.into_iter().rev().collect();
        table.lengths_v6 = lengths_v6.into_iter().rev().collect();
        table
    }

    /// The workload behind `client`. An IPv4 address that arrived on an IPv6 socket is looked up as IPv4.
    #[must_use]
    pub fn find(&self, client: IpAddr) -> Option<&Source> {
        let client = client.to_canonical();
        let lengths = if client.is_ipv4() { &self.lengths_v4 } else { &self.lengths_v6 };
        lengths.iter().find_map(|length| {
            let range = IpNet::new(client, *length).ok()?.trunc();
            self.ranges.get(&range)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(ranges: &[(&str, &str)]) -> WorkloadTable {
        let workloads: Vec<_> = ranges
            .iter()
            .map(|(cidr, account)| Workload {
                namespace: "shop".parse().expect("namespace"),
                service_account: account.parse().expect("account"),
                ranges: vec![cidr.parse().expect("cidr")],
            })
            .collect();
        WorkloadTable::build(&workloads, &"east.linkspan.internal".parse().expect("domain"))
    }

    fn who(table: &WorkloadTable, address: &str) -> Option<String> {
        table.find(address.parse().expect("address")).map(|source| source.identity.to_string())
    }

    #[test]
    fn the_longest_prefix_wins() {
        let table = table(&[("10.0.0.0/8", "wide"), ("10.1.0.0/16", "middle"), ("10.1.2.3/32", "one")]);
        let of = |account: &str| Some(format!("spiffe://east.linkspan.internal/ns/shop/sa/{account}"));
        assert_eq!(who(&table, "10.1.2.3"), of("one"));
        assert_eq!(who(&table, "10.1.2.4"), of("middle"));
        assert_eq!(who(&table, "10.2.2.4"), of("wide"));
        assert_eq!(who(&table, "11.2.2.4"), None);
        assert_eq!(who(&table, "::ffff:10.1.2.3"), of("one"));
        assert_eq!(who(&table, "2001:db8::1"), None);
    }

    #[test]
    fn host_bits_in_a_range_are_ignored_and_families_are_apart() {
        let table = table(&[("2001:db8::7/64", "six"), ("0.0.0.0/0", "rest")]);
        assert!(who(&table, "2001:db8::ffff").is_some_and(|id| id.ends_with("/six")));
        assert!(who(&table, "192.0.2.1").is_some_and(|id| id.ends_with("/rest")));
        assert_eq!(who(&table, "2001:db8:1::1"), None);
    }

    #[test]
    fn agrees_with_a_linear_search() {
        use proptest::prelude::*;
        let ranges = proptest::collection::vec((any::<u32>(), 0_u8..=32), 0..40);
        proptest!(|(ranges in ranges, probes in proptest::collection::vec(any::<u32>(), 1..40))| {
            let nets: Vec<_> = ranges
                .iter()
                .map(|(bits, length)| ipnet::Ipv4Net::new((*bits).into(), *length).expect("length"))
                .collect();
            let texts: Vec<_> = nets.iter().enumerate().map(|(at, net)| (net.to_string(), format!("w{at}"))).collect();
            let table = table(&texts.iter().map(|(net, name)| (net.as_str(), name.as_str())).collect::<Vec<_>>());
            let probes = probes.iter().map(|bits| std::net::Ipv4Addr::from(*bits)).chain(nets.iter().map(|net| net.addr()));
            for probe in probes {
                // The longest; of equal ones the first, hence the reversed index.
                let expected = nets
                    .iter()
                    .enumerate()
                    .filter(|(_, net)| net.contains(&probe))
                    .max_by_key(|(at, net)| (net.prefix_len(), std::cmp::Reverse(*at)))
                    .map(|(at, _)| at);
                let first_equal = expected.map(|at| {
                    nets.iter().position(|net| net.trunc() == nets[at].trunc()).expect("itself")
                });
                let found = table.find(IpAddr::V4(probe)).map(|source| source.identity.to_string());
                prop_assert_eq!(found, first_equal.map(|at| format!("spiffe://east.linkspan.internal/ns/shop/sa/w{at}")));
            }
        });
    }
}
