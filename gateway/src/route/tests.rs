use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use linkspan_proto::configuration::{Capacity, Endpoint, Export, ExportPort, MirrorPort, Resource, Tier};

use super::*;
use crate::discovery::Snapshot;

/// Tables of the present moment.
impl RouteTable {
    /// A table of this snapshot alone.
    pub(crate) fn build(snapshot: &Arc<Snapshot>, own: &Own) -> Self {
        Self::empty(own.clone()).then(snapshot)
    }

    /// The table after this one.
    pub(crate) fn then(&self, snapshot: &Arc<Snapshot>) -> Self {
        self.next(snapshot, tokio::time::Instant::now())
    }
}

pub(crate) fn cluster(name: &str) -> ClusterName {
    name.parse().expect("cluster")
}

pub(crate) fn own() -> Own {
    Own { cluster: cluster("east"), trust_domain: "east.linkspan.internal".parse().expect("domain") }
}

pub(crate) fn service(name: &str) -> ServiceKey {
    format!("shop/{name}").parse().expect("service")
}

/// Links that are up unless named.
#[derive(Default)]
pub(crate) struct Down(pub(crate) BTreeSet<ClusterName>);

impl Health for Down {
    fn alive(&self, peer: &ClusterName) -> bool {
        !self.0.contains(peer)
    }
}

pub(crate) fn down(names: &[&str]) -> Down {
    Down(names.iter().map(|name| cluster(name)).collect())
}

pub(crate) fn tier(weights: &[(&str, u32)], min_healthy_percent: u8) -> Tier {
    let clusters = weights.iter().map(|(name, weight)| (cluster(name), *weight)).collect();
    Tier { clusters, min_healthy_percent }
}

pub(crate) fn mirror(name: &str, listen: &str, tiers: Vec<Tier>) -> Mirror {
    let short = name.split('.').next().expect("label");
    Mirror {
        name: name.to_owned(),
        service: service(short),
        endpoint: None,
        ports: vec![MirrorPort { listen: listen.parse().expect("address"), port: 80, name: None, app_protocol: None }],
        tiers,
    }
}

pub(crate) fn capacity(name: &str, short: &str, ready: u32) -> Resource {
    Resource::Capacity(Capacity {
        cluster: cluster(name),
        service: service(short),
        ready: BTreeMap::from([(80, ready)]),
        ready_endpoints: Vec::new(),
    })
}

pub(crate) fn export(short: &str, endpoints: &[(&str, bool)]) -> Export {
    let endpoint = |(address, ready): &(&str, bool)| Endpoint {
        address: address.parse().expect("address"),
        name: None,
        ready: *ready,
    };
    Export {
        service: service(short),
        ports: vec![ExportPort {
            port: 80,
            name: None,
            app_protocol: None,
            endpoints: endpoints.iter().map(endpoint).collect(),
        }],
        rules: None,
        proxy_protocol: false,
    }
}

pub(crate) fn snapshot(resources: impl IntoIterator<Item = Resource>) -> Arc<Snapshot> {
    let resources = resources.into_iter().map(|resource| (resource.key(), Arc::new(resource))).collect();
    Arc::new(Snapshot { generation: 1, resources })
}

const LISTEN: &str = "127.80.0.1:80";

/// The route of a service `web` that `west`, `north` and the local cluster serve as the closure says.
fn route(tiers: Vec<Tier>, ready: &[(&str, u32)], local: &[(&str, bool)]) -> Arc<Route> {
    let mut resources = vec![Resource::Mirror(mirror("web.shop.svc.clusterset.local", LISTEN, tiers))];
    resources.extend(ready.iter().map(|(name, ready)| capacity(name, "web", *ready)));
    if !local.is_empty() {
        resources.push(Resource::Export(export("web", local)));
    }
    let table = RouteTable::build(&snapshot(resources), &own());
    Arc::clone(table.by_listen(LISTEN.parse().expect("address")).expect("route"))
}

fn picks(route: &Route, health: &dyn Health, count: usize) -> BTreeMap<String, usize> {
    let mut picks = BTreeMap::new();
    for _ in 0..count {
        let picked = route.pick(health, &[]).map_or_else(|_| "nobody".to_owned(), |target| target.cluster.to_string());
        *picks.entry(picked).or_insert(0) += 1;
    }
    picks
}

#[test]
fn weights_hold_over_all_clusters_the_local_one_included() {
    let route = route(
        vec![tier(&[("east", 33), ("west", 33), ("north", 34)], 1)],
        &[("west", 2), ("north", 1)],
        &[("127.0.0.1:1", true)],
    );
    let picks = picks(&route, &down(&[]), 10_000);
    for (name, expected) in [("east", 3_300), ("west", 3_300), ("north", 3_400)] {
        assert!(picks[name].abs_diff(expected) <= 5, "{picks:?}");
    }
    let local = (0..10).map(|_| route.pick(&down(&[]), &[]).expect("target")).find(|target| target.local);
    assert_eq!(local.map(|target| target.cluster), Some(cluster("east")));
}

#[test]
fn weight_zero_gets_nothing_even_when_it_is_the_only_one_left() {
    let route = route(vec![tier(&[("west", 100), ("north", 0)], 1)], &[("west", 1), ("north", 1)], &[]);
    assert_eq!(picks(&route, &down(&[]), 1_000), BTreeMap::from([("west".to_owned(), 1_000)]));
    assert_eq!(picks(&route, &down(&["west"]), 1_000), BTreeMap::from([("nobody".to_owned(), 1_000)]));
}

#[test]
fn a_dead_link_gives_its_share_to_the_others_of_the_tier() {
    let route = route(vec![tier(&[("west", 90), ("north", 10)], 1)], &[("west", 1), ("north", 1)], &[]);
    assert_eq!(picks(&route, &down(&["west"]), 500), BTreeMap::from([("north".to_owned(), 500)]));
}

#[test]
fn the_next_tier_takes_over_below_the_minimum() {
    let tiers = || vec![tier(&[("west", 60), ("north", 40)], 50), tier(&[("dr", 1)], 1)];
    let ready = [("west", 1), ("north", 1), ("dr", 1)];
    let route = route(tiers(), &ready, &[]);
    assert!(!picks(&route, &down(&[]), 100).contains_key("dr"));
    // 60 of 100 are enough, 40 are not.
    assert_eq!(picks(&route, &down(&["north"]), 100), BTreeMap::from([("west".to_owned(), 100)]));
    assert_eq!(picks(&route, &down(&["west"]), 100), BTreeMap::from([("dr".to_owned(), 100)]));
}

#[test]
fn when_no_tier_is_healthy_enough_the_first_with_anybody_serves() {
    let tiers = vec![tier(&[("west", 60), ("north", 40)], 50), tier(&[("dr", 1)], 1)];
    let route = route(tiers, &[("west", 1), ("north", 1), ("dr", 1)], &[]);
    assert_eq!(picks(&route, &down(&["west", "dr"]), 100), BTreeMap::from([("north".to_owned(), 100)]));
}

#[test]
fn a_minimum_of_a_hundred_percent_needs_everybody() {
    let tiers = vec![tier(&[("west", 60), ("north", 40)], 100), tier(&[("dr", 1)], 1)];
    let route = route(tiers, &[("west", 1), ("north", 0), ("dr", 1)], &[]);
    assert_eq!(picks(&route, &down(&[]), 100), BTreeMap::from([("dr".to_owned(), 100)]));
}

#[test]
fn tried_clusters_are_not_picked_again_but_keep_their_tier_alive() {
    let tiers = vec![tier(&[("west", 60), ("north", 40)], 50), tier(&[("dr", 1)], 1)];
    let route = route(tiers, &[("west", 1), ("north", 1), ("dr", 1)], &[]);
    let up = down(&[]);
    for _ in 0..100 {
        assert_eq!(route.pick(&up, &[cluster("west")]).expect("target").cluster, "north");
        assert_eq!(route.pick(&up, &[cluster("west"), cluster("north")]).expect("target").cluster, "dr");
    }
    let error = route.pick(&up, &[cluster("west"), cluster("north"), cluster("dr")]).expect_err("all tried");
    assert!(error.reasons.iter().all(|(_, reason)| *reason == Unavailable::Tried));
}

#[test]
fn a_refusal_says_for_each_cluster_why() {
    let tiers = vec![tier(&[("west", 1), ("north", 1), ("south", 0), ("east", 1)], 1), tier(&[("dr", 1)], 1)];
    let route = route(tiers, &[("west", 1), ("north", 0)], &[("127.0.0.1:1", false)]);
    assert!(!route.is_available(&down(&["west"])));
    let error = route.pick(&down(&["west"]), &[]).expect_err("nobody");
    assert_eq!(
        error.to_string(),
        "no cluster can serve shop/web port 80: east: no ready endpoint; north: no ready endpoint; south: weight 0; \
         west: link down; dr: does not export this port"
    );
    assert!(route.is_available(&down(&[])));
}

#[test]
fn a_local_cluster_without_the_export_is_no_target() {
    let route = route(vec![tier(&[("east", 1)], 1)], &[], &[]);
    let error = route.pick(&down(&[]), &[]).expect_err("nobody");
    assert_eq!(error.reasons, [(cluster("east"), Unavailable::NotExported)]);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 5] = ["east", "west", "north", "south", "dr"];

    proptest! {
        /// Whatever is configured and whatever is down: a picked cluster has weight, works, and was not tried; and when
        /// nobody is picked, nobody could have been.
        #[test]
        fn a_pick_is_always_usable(
            weights in proptest::collection::vec((0_usize..5, 0_u32..4, 0_u8..=100), 1..6),
            split in 1_usize..4,
            ready in proptest::collection::vec(0_u32..2, 5),
            dead in proptest::collection::vec(any::<bool>(), 5),
            tried in proptest::collection::vec(any::<bool>(), 5),
        ) {
            let tiers: Vec<_> = weights
                .chunks(split)
                .map(|chunk| {
                    let clusters: Vec<_> = chunk.iter().map(|(at, weight, _)| (NAMES[*at], *weight)).collect();
                    tier(&clusters, chunk[0].2)
                })
                .collect();
            let peers: Vec<_> = (1..5).map(|at| (NAMES[at], ready[at])).collect();
            let route = route(tiers.clone(), &peers, &[("127.0.0.1:1", ready[0] > 0)]);
            let dead_names: Vec<_> = (1..5).filter(|at| dead[*at]).map(|at| NAMES[at]).collect();
            let tried_names: Vec<_> = (0..5).filter(|at| tried[*at]).map(|at| cluster(NAMES[at])).collect();
            let usable = |name: &ClusterName| {
                let at = NAMES.iter().position(|known| name == known).expect("known");
                ready[at] > 0 && (at == 0 || !dead[at]) && !tried[at]
            };
            let candidates: Vec<_> = tiers
                .iter()
                .flat_map(|tier| &tier.clusters)
                .filter(|(name, weight)| **weight > 0 && usable(name))
                .map(|(name, _)| name.clone())
                .collect();
            for _ in 0..20 {
                match route.pick(&down(&dead_names), &tried_names) {
                    Ok(target) => {
                        prop_assert!(candidates.contains(&target.cluster));
                        prop_assert_eq!(target.local, target.cluster == "east");
                    }
                    Err(_) => prop_assert!(candidates.is_empty()),
                }
            }
        }
    }
}
