use std::collections::BTreeSet;

use proptest::prelude::*;

use std::net::IpAddr;

use ipnet::IpNet;

use super::*;
use crate::mirror::Addresses;

fn cluster(name: &str) -> ClusterName {
    ClusterName::parse(name).unwrap()
}

fn range(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn both() -> [ClusterName; 2] {
    [cluster("east"), cluster("west")]
}

#[test]
fn a_name_keeps_its_address_across_restarts_and_absence() {
    let west = cluster("west");
    let mut addresses = Addresses::new(range("127.80.0.0/12"));
    let first = addresses.assign("web-west.shop.svc.cluster.local", &west, &both()).unwrap();
    assert!(range("127.80.0.0/12").contains(&first));
    let text = addresses.take_changed().unwrap();
    assert_eq!(addresses.take_changed(), None);
    let mut again = Addresses::parse(&text, range("127.80.0.0/12")).unwrap();
    assert_eq!(again.take_changed(), None);
    assert_eq!(again.assign("web-west.shop.svc.cluster.local", &west, &both()), Ok(first));
    again.release("web-west.shop.svc.cluster.local");
    let mut later = Addresses::parse(&again.text(), range("127.80.0.0/12")).unwrap();
    assert_eq!(later.assign("web-west.shop.svc.cluster.local", &west, &both()), Ok(first));
    let mut lost = Addresses::new(range("127.80.0.0/12"));
    assert_eq!(lost.assign("web-west.shop.svc.cluster.local", &west, &both()), Ok(first), "even without the file");
}

#[test]
fn another_range_means_other_addresses() {
    let west = cluster("west");
    let mut addresses = Addresses::new(range("127.80.0.0/12"));
    addresses.assign("a", &west, &both()).unwrap();
    let mut moved = Addresses::parse(&addresses.text(), range("127.200.0.0/16")).unwrap();
    let address = moved.assign("a", &west, &both()).unwrap();
    assert!(range("127.200.0.0/16").contains(&address));
    let mut six = Addresses::parse(&addresses.text(), range("fd00:80::/64")).unwrap();
    assert!(range("fd00:80::/64").contains(&six.assign("a", &west, &both()).unwrap()));
}

#[test]
fn freed_addresses_come_last_and_oldest_first() {
    let west = cluster("west");
    let mut addresses = Addresses::new(range("127.80.0.0/28"));
    let all: Vec<_> = (0..10).map(|index| addresses.assign(&format!("n{index}"), &west, &[]).unwrap()).collect();
    addresses.release("n3");
    addresses.release("n1");
    let mut fresh = BTreeSet::new();
    for index in 10..14 {
        fresh.insert(addresses.assign(&format!("n{index}"), &west, &[]).unwrap());
    }
    assert!(all.iter().all(|old| !fresh.contains(old)), "remembered ones are not touched while others are free");
    assert_eq!(addresses.assign("m1", &west, &[]), Ok(all[3]));
    assert_eq!(addresses.assign("m2", &west, &[]), Ok(all[1]));
    assert_eq!(addresses.assign("m3", &west, &[]), Err(PoolError::Exhausted(14)));
    assert_eq!(addresses.load(), (14, 14));
    addresses.release("m1");
    assert_eq!(addresses.assign("m3", &west, &[]), Ok(all[3]));
}

#[test]
fn one_cluster_leaves_room_for_the_others() {
    let (east, west) = (cluster("east"), cluster("west"));
    let mut addresses = Addresses::new(range("127.80.0.0/24"));
    let mut given = 0;
    while addresses.assign(&format!("w{given}"), &west, &both()).is_ok() {
        given += 1;
    }
    assert!((150..254).contains(&given), "{given}");
    for index in 0..40 {
        addresses.assign(&format!("e{index}"), &east, &both()).unwrap();
    }
    let error = addresses.assign("one-more", &west, &both());
    assert_eq!(error, Err(PoolError::ShareExceeded(west)));
}

#[test]
fn a_cluster_has_a_cap_of_names() {
    let west = cluster("west");
    let mut addresses = Addresses::new(range("127.80.0.0/12"));
    for index in 0..NAMES_PER_CLUSTER {
        addresses.assign(&format!("w{index}"), &west, &both()).unwrap();
    }
    assert!(addresses.assign("more", &west, &both()).is_err());
    assert!(addresses.assign("east", &cluster("east"), &both()).is_ok());
}

#[test]
fn what_is_remembered_is_bounded() {
    let west = cluster("west");
    let mut addresses = Addresses::new(range("127.80.0.0/12"));
    for index in 0..REMEMBERED_MAX + 100 {
        let name = format!("n{index}");
        addresses.assign(&name, &west, &both()).unwrap();
        addresses.release(&name);
    }
    assert_eq!(addresses.names.len(), REMEMBERED_MAX);
    assert_eq!(addresses.taken.len(), REMEMBERED_MAX);
    assert!(!addresses.names.contains_key("n0"));
}

#[test]
fn a_file_that_is_no_such_file_is_refused() {
    for text in [
        "",
        "{}",
        "[]",
        r#"{"range":"x","names":{}}"#,
        r#"{"range":"127.80.0.0/12","names":{"a":{"address":"x","cluster":"w"}}}"#,
    ] {
        assert!(Addresses::parse(text, range("127.80.0.0/12")).is_err(), "{text}");
    }
    let outside = r#"{"range":"127.80.0.0/12","names":{"a":{"address":"10.0.0.1","cluster":"w"},"b":{"address":"127.80.0.0","cluster":"w"}}}"#;
    assert!(Addresses::parse(outside, range("127.80.0.0/12")).unwrap().names.is_empty());
}

proptest! {
    /// No two names in use ever share an address, and a name in use never changes its address, whatever comes and goes.
    #[test]
    fn addresses_are_unique_and_stable(ops in prop::collection::vec((0..40_u8, 0..3_u8), 0..200), restart in 0..200_usize) {
        let west = cluster("west");
        let mut addresses = Addresses::new(range("127.80.0.0/27"));
        let mut held: BTreeMap<String, IpAddr> = BTreeMap::new();
        for (step, (name, op)) in ops.into_iter().enumerate() {
            let name = format!("n{name}");
            if op == 0 {
                addresses.release(&name);
                held.remove(&name);
            } else if let Ok(address) = addresses.assign(&name, &west, &[]) {
                prop_assert!(range("127.80.0.0/27").contains(&address));
                let before = held.insert(name, address);
                prop_assert!(before.is_none() || before == Some(address));
            } else {
                prop_assert_eq!(held.len(), 30);
            }
            prop_assert_eq!(held.values().collect::<BTreeSet<_>>().len(), held.len());
            if step == restart {
                addresses = Addresses::parse(&addresses.text(), range("127.80.0.0/27")).unwrap();
                for (name, address) in &held {
                    prop_assert_eq!(addresses.assign(name, &west, &[]), Ok(*address));
                }
            }
        }
    }
}
