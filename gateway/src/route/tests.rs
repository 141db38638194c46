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
        self.next(snapshot, Instant::now())
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
        ports: vec![MirrorPort {
            listen: listen.parse().expect("address"),
            port: 80,
            transport: Default::default(),
            name: None,
            app_protocol: None,
        }],
        tiers,
    }
}

pub(crate) fn capacity(name: &str, short: &str, ready: u32) -> Resource {
    Resource::Capacity(Capacity {
        cluster: cluster(name),
        service: service(short),
        ready: BTreeMap::from([(80, ready)]),
        total: BTreeMap::new(),
        ready_udp: Default::default(),
        total_udp: Default::default(),
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
            transport: Default::default(),
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

/// A service `web` of which the peers have `ready` of `total` endpoints; a total of `None` is not told.
fn route_with_totals(tiers: Vec<Tier>, peers: &[(&str, u32, Option<u32>)], local: &[(&str, bool)]) -> Arc<Route> {
    let mut resources = vec![Resource::Mirror(mirror("web.shop.svc.clusterset.local", LISTEN, tiers))];
    resources.extend(peers.iter().map(|(name, ready, total)| {
        let mut capacity = capacity(name, "web", *ready);
        if let Resource::Capacity(capacity) = &mut capacity {
            capacity.total.extend(total.map(|total| (80, total)));
        }
        capacity
    }));
    if !local.is_empty() {
        resources.push(Resource::Export(export("web", local)));
    }
    let table = RouteTable::build(&snapshot(resources), &own());
    Arc::clone(table.by_listen(LISTEN.parse().expect("address")).expect("route"))
}

#[test]
fn a_tier_is_as_healthy_as_its_ready_endpoints() {
    // Weights of west and north, their endpoints, minHealthyPercent, whether the first tier serves.
    type Case = ((u32, u32), (u32, Option<u32>), (u32, Option<u32>), u8, bool);
    let cases: [Case; 16] = [
        // One cluster. The default, 1, takes any ready endpoint at all.
        ((1, 0), (1, Some(100)), (1, None), 50, false),
        ((1, 0), (1, Some(100)), (1, None), 1, true),
        ((1, 0), (1, Some(101)), (1, None), 1, true),
        ((1, 0), (1, Some(101)), (1, None), 2, false),
        ((1, 0), (0, Some(101)), (1, None), 1, false),
        ((1, 0), (50, Some(100)), (1, None), 50, true),
        ((1, 0), (49, Some(100)), (1, None), 50, false),
        ((1, 0), (7, Some(10)), (1, None), 70, true),
        ((1, 0), (2, Some(3)), (1, None), 67, false),
        ((1, 0), (2, Some(3)), (1, None), 66, true),
        // Not told, or nonsense: all that is ready is all there is.
        ((1, 0), (1, None), (1, None), 100, true),
        ((1, 0), (3, Some(3)), (1, None), 100, true),
        // Two clusters: the shares count by weight. 90 * 1/2 + 10 = 55.
        ((90, 10), (1, Some(2)), (5, Some(5)), 55, true),
        ((90, 10), (1, Some(2)), (5, Some(5)), 56, false),
        // 90 + 10 * 0 = 90.
        ((90, 10), (5, Some(5)), (0, Some(5)), 90, true),
        ((90, 10), (5, Some(5)), (0, Some(5)), 91, false),
    ];
    for (index, ((to_west, to_north), west, north, percent, serves)) in cases.into_iter().enumerate() {
        let tiers = vec![tier(&[("west", to_west), ("north", to_north)], percent), tier(&[("dr", 1)], 1)];
        let peers = [("west", west.0, west.1), ("north", north.0, north.1), ("dr", 1, None)];
        let route = route_with_totals(tiers, &peers, &[]);
        assert_eq!(!picks(&route, &down(&[]), 20).contains_key("dr"), serves, "case {index}");
    }
}

#[test]
fn endpoints_of_our_own_count_as_those_of_a_peer() {
    let tiers = || vec![tier(&[("east", 1)], 50), tier(&[("dr", 1)], 1)];
    let local = |ready: usize| -> Vec<_> {
        ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]
            .into_iter()
            .enumerate()
            .map(|(at, text)| (text, at < ready))
            .collect()
    };
    let route = |ready| route_with_totals(tiers(), &[("dr", 1, None)], &local(ready));
    assert_eq!(picks(&route(2), &down(&[]), 10), BTreeMap::from([("east".to_owned(), 10)]));
    assert_eq!(picks(&route(1), &down(&[]), 10), BTreeMap::from([("dr".to_owned(), 10)]));
}

/// The share decides which tier serves, never how its requests are shared out.
#[test]
fn shares_inside_a_tier_stay_the_weights() {
    let tiers = vec![tier(&[("west", 50), ("north", 50)], 1)];
    let route = route_with_totals(tiers, &[("west", 1, Some(100)), ("north", 9, Some(9))], &[]);
    let picks = picks(&route, &down(&[]), 1_000);
    assert!(picks["west"].abs_diff(500) <= 5, "{picks:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tier_is_left_at_once_and_taken_back_after_its_dwell() {
    let tiers = || vec![tier(&[("west", 1)], 50), tier(&[("dr", 1)], 50)];
    let route = route(tiers(), &[("west", 1), ("dr", 1)], &[]);
    let only = |name: &str| BTreeMap::from([(name.to_owned(), 10)]);
    // A start waits for nothing, however late the link comes.
    assert_eq!(route.settle(&down(&["west"]), Instant::now()), None);
    assert_eq!(picks(&route, &down(&[]), 10), only("west"));
    assert_eq!(route.settle(&down(&[]), Instant::now()), None);
    // At once, before anybody was told.
    assert_eq!(picks(&route, &down(&["west"]), 10), only("dr"));
    route.settle(&down(&["west"]), Instant::now());
    assert_eq!(picks(&route, &down(&[]), 10), only("dr"), "back, and held");
    let due = route.settle(&down(&[]), Instant::now()).expect("a time to ask again");
    assert_eq!(due, Instant::now() + DWELL);
    // Nobody is refused for it.
    assert_eq!(picks(&route, &down(&["dr"]), 10), only("west"));
    tokio::time::advance(DWELL).await;
    assert_eq!(route.settle(&down(&[]), Instant::now()), None);
    assert_eq!(picks(&route, &down(&[]), 10), only("west"));
}

#[tokio::test(start_paused = true)]
async fn a_held_tier_is_held_over_new_tables_but_not_over_a_new_policy() {
    let tiers = |percent| vec![tier(&[("west", 1)], percent), tier(&[("dr", 1)], 50)];
    let resources = |ready, percent| {
        let mirror = Resource::Mirror(mirror("web.shop.svc.clusterset.local", LISTEN, tiers(percent)));
        snapshot([mirror, capacity("west", "web", ready), capacity("dr", "web", 1)])
    };
    let up = down(&[]);
    let serves = |table: &RouteTable| {
        let route = table.by_listen(LISTEN.parse().expect("address")).expect("route");
        route.pick(&up, &[]).expect("target").cluster.to_string()
    };
    let table = RouteTable::build(&resources(1, 50), &own());
    table.settle(&up, Instant::now());
    let table = table.then(&resources(0, 50));
    table.settle(&up, Instant::now());
    let table = table.then(&resources(2, 50));
    assert!(table.settle(&up, Instant::now()).is_some());
    assert_eq!(serves(&table), "dr");
    assert_eq!(serves(&table.then(&resources(3, 50))), "dr", "more capacity is the same policy");
    assert_eq!(serves(&table.then(&resources(2, 60))), "west", "a change of the policy is in force at once");
}

/// One tier only: whoever is back serves.
#[test]
fn clusters_come_back_into_the_serving_tier_at_once() {
    let route = route(vec![tier(&[("west", 1)], 100)], &[("west", 1)], &[]);
    for _ in 0..3 {
        assert_eq!(route.settle(&down(&["west"]), Instant::now()), None);
        assert!(route.pick(&down(&["west"]), &[]).is_err());
        assert_eq!(route.settle(&down(&[]), Instant::now()), None);
        assert!(route.pick(&down(&[]), &[]).is_ok());
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 5] = ["east", "west", "north", "south", "dr"];

    proptest! {
        /// The first tier serves exactly where the documented fraction says so.
        #[test]
        fn the_healthy_percent_is_the_fraction_in_the_docs(
            clusters in proptest::collection::vec((0_u32..200, 0_u32..50, 0_u32..50), 4),
            percent in 1_u8..=100,
        ) {
            let names = ["west", "north", "south", "lab"];
            let weights: Vec<_> = names.iter().zip(&clusters).map(|(name, (weight, ..))| (*name, *weight)).collect();
            let mut peers: Vec<_> = names
                .iter()
                .zip(&clusters)
                .map(|(name, (_, ready, more))| (*name, *ready, Some(ready + more)))
                .collect();
            peers.push(("dr", 1, None));
            let route = route_with_totals(vec![tier(&weights, percent), tier(&[("dr", 1)], 1)], &peers, &[]);
            // Over a common denominator, exactly.
            let whole: u128 = clusters.iter().map(|(_, ready, more)| u128::from((ready + more).max(1))).product();
            let healthy: u128 = clusters
                .iter()
                .map(|(weight, ready, more)| u128::from(weight * ready) * (whole / u128::from((ready + more).max(1))))
                .sum();
            let total: u128 = clusters.iter().map(|(weight, ..)| u128::from(*weight)).sum();
            let enough = healthy > 0 && (percent == 1 || healthy * 100 >= total * u128::from(percent) * whole);
            let picked = route.pick(&down(&[]), &[]).expect("dr at least").cluster;
            prop_assert_eq!(picked != "dr", enough, "{} of {} * {}", healthy, total, whole);
        }

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
