use std::collections::BTreeMap;

use linkspan_proto::configuration::{Mirror, MirrorPort, Tier};
use linkspan_proto::names::{ClusterName, ServiceKey};

use super::*;

fn mirror(name: &str, ports: u16) -> Resource {
    let port = |number: u16| MirrorPort {
        listen: ([127, 80, 0, 1], number).into(),
        port: number,
        transport: Default::default(),
        name: None,
        app_protocol: None,
    };
    Resource::Mirror(Mirror {
        name: name.to_owned(),
        service: ServiceKey::parse("shop/web").unwrap(),
        endpoint: None,
        ports: (1..=ports).map(port).collect(),
        tiers: vec![Tier {
            clusters: BTreeMap::from([(ClusterName::parse("west").unwrap(), 1)]),
            min_healthy_percent: 1,
        }],
    })
}

fn snapshot(resources: Vec<Resource>) -> Snapshot {
    let resources = resources.into_iter().map(|resource| (resource.key(), Arc::new(resource))).collect();
    Snapshot { generation: 1, resources }
}

#[test]
fn one_wildcard_serves_a_namespace() {
    let snapshot = snapshot(vec![
        mirror("web-west.shop.svc.cluster.local", 1),
        mirror("api-west.shop.svc.cluster.local", 2),
        mirror("web.shop.svc.clusterset.local", 1),
        mirror("db-0.db-west.data.svc.cluster.local", 1),
    ]);
    let expected = [
        "*.api-west.shop.svc.cluster.local",
        "*.db-west.data.svc.cluster.local",
        "*.shop.svc.cluster.local",
        "*.shop.svc.clusterset.local",
    ];
    assert_eq!(names_of(&snapshot).into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn names_have_a_cap() {
    let many = (0..1000).map(|number| mirror(&format!("web.ns{number}.svc.cluster.local"), 1)).collect();
    assert_eq!(names_of(&snapshot(many)).len(), MAX_NAMES);
    assert!(names_of(&snapshot(Vec::new())).is_empty());
}

#[test]
fn renewals_are_spread_before_half_of_the_life() {
    let life = Duration::from_secs(86_400);
    assert_eq!(renewal(life, 0), life.mul_f64(0.4));
    assert_eq!(renewal(life, u32::MAX), life / 2);
    assert_eq!(renewal(Duration::ZERO, 7), Duration::from_secs(1), "never in a busy loop");
}
