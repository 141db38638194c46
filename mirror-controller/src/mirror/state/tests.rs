use std::net::IpAddr;
use std::time::Instant;

use linkspan_proto::configuration::Tier;
use proptest::prelude::*;

use super::*;
use crate::catalog::Traffic;
use crate::mirror::desired::Shape;
use crate::mirror::{Addresses, Front};
use crate::testkit::{cluster, entries, entry, headless, key as service_key, peer, peer_state};
use crate::verdict::Verdict;

fn state() -> State {
    State::new(cluster("east"), Addresses::new("127.80.0.0/12".parse().unwrap()))
}

fn snapshot(linked: &[&str]) -> Snapshot {
    Snapshot { peers: Arc::new(linked.iter().map(|name| (cluster(name), peer(name))).collect()), ..Snapshot::default() }
}

fn peers(all: &[(&str, Entries)]) -> Arc<Peers> {
    Arc::new(all.iter().map(|(name, entries)| (cluster(name), peer_state(entries.clone(), Freshness::Fresh))).collect())
}

fn names(set: &MirrorSet) -> Vec<String> {
    set.wanted.values().map(|wanted| wanted.name.clone()).collect()
}

fn changed_keys(changes: &Changes) -> Vec<String> {
    let sign = |resource: &Option<Resource>| if resource.is_some() { '+' } else { '-' };
    changes.iter().map(|(key, resource)| format!("{}{:?} {}", sign(resource), key.kind, key.name)).collect()
}

fn address(set: &MirrorSet, name: &str) -> IpAddr {
    let wanted = set.wanted.values().find(|wanted| wanted.name == name).unwrap();
    match &wanted.shape {
        Shape::Single { front, .. } => front.address().unwrap(),
        Shape::Headless { .. } => panic!("headless"),
    }
}

#[test]
fn who_does_not_lead_changes_no_port_and_makes_up_for_it_later() {
    use crate::mirror::ports::{PortRange, Ports};
    let mut state = State::new(cluster("east"), Ports::new(PortRange { first: 10_000, last: 10_099 }));
    let tell = |state: &mut State, all: Vec<Arc<linkspan_proto::exchange::CatalogueEntry>>| {
        changed_keys(&state.update(snapshot(&["west"]), peers(&[("west", entries(all))])))
    };
    tell(&mut state, vec![entry("shop/web", &["80"], 1)]);
    let before = state.set();
    state.set_closed(true);
    // A port more, and a service more: the one that is there goes on as it is.
    let more = vec![entry("shop/web", &["80", "tls:443"], 1), entry("shop/db", &["5432"], 1)];
    let told = tell(&mut state, more.clone());
    assert!(
        told.iter()
            .all(|change| !change.starts_with("-Mirror") && !change.contains("db.") && !change.contains("db-west")),
        "{told:?}"
    );
    let front = |set: &MirrorSet, id: &MirrorId| match &set.wanted[id].shape {
        Shape::Single { front, .. } => front.clone(),
        Shape::Headless { .. } => panic!("headless"),
    };
    let web = MirrorId::Cluster { cluster: cluster("west"), service: service_key("shop/web") };
    assert_eq!(front(&state.set(), &web), front(&before, &web));
    state.set_closed(false);
    let told = tell(&mut state, more);
    for name in ["+Mirror db-west.shop.svc.cluster.local", "+Mirror web-west.shop.svc.cluster.local"] {
        assert!(told.iter().any(|change| change == name), "{name} in {told:?}");
    }
    assert_eq!(front(&state.set(), &web).listen(80), front(&before, &web).listen(80));
    assert!(front(&state.set(), &web).listen(443).is_some());
}

#[test]
fn a_peers_services_appear_change_and_disappear() {
    let mut state = state();
    let web = entry("shop/web", &["80"], 1);
    let changes = state.update(snapshot(&["west"]), peers(&[("west", entries([web.clone()]))]));
    assert_eq!(
        changed_keys(&changes),
        [
            "+Peer west",
            "+Mirror web-west.shop.svc.cluster.local",
            "+Mirror web.shop.svc.clusterset.local",
            "+Capacity west/shop/web",
        ]
    );
    let first = state.set();
    let changes = state.update(snapshot(&["west"]), peers(&[("west", entries([entry("shop/web", &["80"], 0)]))]));
    assert_eq!(changed_keys(&changes), ["+Capacity west/shop/web"], "readiness is one small message");
    assert_eq!(state.set().dns_version, first.dns_version, "and none of DNS' business");
    let changes = state.update(snapshot(&["west"]), peers(&[("west", entries([entry("shop/web", &["81"], 0)]))]));
    assert_eq!(changed_keys(&changes).len(), 3);
    assert_eq!(
        address(&state.set(), "web-west.shop.svc.cluster.local"),
        address(&first, "web-west.shop.svc.cluster.local")
    );
    let changes = state.update(snapshot(&["west"]), peers(&[("west", Entries::new())]));
    assert_eq!(
        changed_keys(&changes),
        ["-Mirror web-west.shop.svc.cluster.local", "-Mirror web.shop.svc.clusterset.local", "-Capacity west/shop/web",]
    );
    assert!(state.set().wanted.is_empty());
    assert_eq!(state.fronts().load().0, 0);
    state.update(snapshot(&["west"]), peers(&[("west", entries([web]))]));
    assert_eq!(
        address(&state.set(), "web-west.shop.svc.cluster.local"),
        address(&first, "web-west.shop.svc.cluster.local")
    );
}

#[test]
fn a_lost_peer_keeps_its_mirrors_and_gives_up_its_capacity_at_last() {
    let mut state = state();
    let all = entries([entry("shop/web", &["80"], 1)]);
    let at = |freshness| Arc::new(Peers::from([(cluster("west"), peer_state(all.clone(), freshness))]));
    state.update(snapshot(&["west"]), at(Freshness::Fresh));
    let changes = state.update(snapshot(&["west"]), at(Freshness::Stale));
    assert!(changes.is_empty(), "stale is a mark and no withdrawal");
    let changes = state.update(snapshot(&["west"]), at(Freshness::Drained));
    assert_eq!(changed_keys(&changes), ["-Capacity west/shop/web"]);
    assert_eq!(names(&state.set()).len(), 2, "the mirrors stay");
    let changes = state.update(snapshot(&["west"]), at(Freshness::Fresh));
    assert_eq!(changed_keys(&changes), ["+Capacity west/shop/web"]);
}

#[test]
fn an_outdated_catalogue_is_served_and_deletes_nothing() {
    let mut state = state();
    let at = |outdated| {
        let mut peer = peer_state(entries([entry("shop/web", &["80"], 1)]), Freshness::Fresh).as_ref().clone();
        peer.view.outdated = outdated;
        Arc::new(Peers::from([(cluster("west"), Arc::new(peer))]))
    };
    state.update(snapshot(&["west"]), at(true));
    assert_eq!(names(&state.set()).len(), 2);
    assert_eq!(state.set().known.get("west"), Some(&false), "there may be more");
    state.update(snapshot(&["west"]), at(false));
    assert_eq!(state.set().known.get("west"), Some(&true));
}

#[test]
fn a_removed_link_removes_everything_it_made() {
    let mut state = state();
    let both = peers(&[
        ("north", entries([entry("shop/web", &["80"], 1)])),
        ("west", entries([entry("shop/web", &["80"], 1), entry("shop/api", &["80"], 1)])),
    ]);
    state.update(snapshot(&["north", "west"]), Arc::clone(&both));
    assert_eq!(names(&state.set()).len(), 5);
    let changes = state.update(snapshot(&["north"]), both);
    assert_eq!(
        changed_keys(&changes),
        [
            "-Peer west",
            "-Mirror api-west.shop.svc.cluster.local",
            "-Mirror api.shop.svc.clusterset.local",
            "-Mirror web-west.shop.svc.cluster.local",
            "+Mirror web.shop.svc.clusterset.local",
            "-Capacity west/shop/api",
            "-Capacity west/shop/web",
        ]
    );
    assert_eq!(names(&state.set()), ["web-north.shop.svc.cluster.local", "web.shop.svc.clusterset.local"]);
    assert_eq!(state.set().known.keys().collect::<Vec<_>>(), [&cluster("north")]);
}

#[test]
fn a_local_service_takes_its_name_back() {
    let mut state = state();
    let west = || peers(&[("west", entries([entry("shop/web", &["80"], 1)]))]);
    state.update(snapshot(&["west"]), west());
    let mut local = snapshot(&["west"]);
    local.services = Arc::new([service_key("shop/web-west")].into());
    let changes = state.update(local, west());
    assert_eq!(changed_keys(&changes), ["-Mirror web-west.shop.svc.cluster.local"]);
    assert_eq!(state.set().refused.len(), 1);
    let changes = state.update(snapshot(&["west"]), west());
    assert_eq!(changed_keys(&changes), ["+Mirror web-west.shop.svc.cluster.local"]);
    assert!(state.set().refused.is_empty());
}

#[test]
fn own_exports_take_part_and_learn_of_conflicts() {
    let mut state = state();
    let mut local = snapshot(&["west"]);
    local.exported = Arc::new(entries([entry("shop/web", &["http:80"], 1)]));
    state.update(local.clone(), peers(&[("west", Entries::new())]));
    assert_eq!(names(&state.set()), ["web.shop.svc.clusterset.local"]);
    assert!(state.set().conflicts.is_empty());
    let differs = peers(&[("west", entries([entry("shop/web", &["http:81"], 1)]))]);
    state.update(local.clone(), differs);
    assert!(state.set().conflicts[&service_key("shop/web")].contains("PortConflict"));
    local.traffic = Arc::new(BTreeMap::from([(
        service_key("shop/web"),
        Arc::new(Traffic {
            policy: "p".to_owned(),
            tiers: vec![Tier { clusters: [(cluster("west"), 1)].into(), min_healthy_percent: 1 }],
            verdict: Verdict::new("Accepted", true, "Accepted", ""),
        }),
    )]));
    let changes = state.update(local, peers(&[("west", Entries::new())]));
    assert!(state.set().conflicts.is_empty());
    assert!(changed_keys(&changes).contains(&"+Mirror web.shop.svc.clusterset.local".to_owned()));
}

/// MCS conformance 9 and 13: the older export's word counts in every cluster, also in that of the newer one.
#[test]
fn whoever_exported_first_has_the_word_unless_the_operator_says_otherwise() {
    let web = |port: &str| entry("shop/web", &[port], 1);
    let ports = |state: &mut State, linked: &Snapshot| {
        state.update(linked.clone(), peers(&[("west", entries([web("http:80")]))]));
        let mut local = linked.clone();
        local.exported = Arc::new(entries([web("http:81")]));
        state.update(local, peers(&[("west", entries([web("http:80")]))]));
        let set = state.set();
        assert!(set.conflicts[&service_key("shop/web")].contains("PortConflict"));
        let import = set.wanted.values().find(|wanted| matches!(wanted.id, MirrorId::Clusterset { .. })).unwrap();
        (import.ports.iter().map(|port| port.number).collect::<Vec<_>>(), import.clusters.clone())
    };
    let linked = snapshot(&["west"]);
    assert_eq!(ports(&mut state(), &linked), (vec![80], vec![cluster("west"), cluster("east")]));
    let policy = Seniority::default().with_policy(vec![cluster("east")]);
    let mut ours_first = state().with(policy, Exclusions::default());
    assert_eq!(ports(&mut ours_first, &linked), (vec![81], vec![cluster("east"), cluster("west")]));
}

#[test]
fn a_mirror_without_an_address_gets_one_when_others_go() {
    let mut state = State::new(cluster("east"), Addresses::new("127.80.0.0/28".parse().unwrap()));
    let many = |count: usize| {
        peers(&[(
            "west",
            (0..count)
                .map(|index| entry(&format!("shop/s{index}"), &["80"], 1))
                .map(|entry| (entry.service.clone(), entry))
                .collect(),
        )])
    };
    state.update(snapshot(&["west"]), many(12));
    let refused = state.set().refused.len();
    assert!(refused > 8);
    state.update(snapshot(&["west"]), many(3));
    assert_eq!(state.set().refused.len(), 0);
    assert_eq!(names(&state.set()).len(), 6);
}

/// No quadratic work: ten thousand services of three peers within seconds, and one change among them at once.
#[test]
fn ten_thousand_services_converge_fast() {
    let mut state = state();
    let west: Entries = (0..10_000)
        .map(|index| entry(&format!("shop/svc-{index}"), &["http:80", "grpc:90"], 2))
        .map(|entry| (entry.service.clone(), entry))
        .collect();
    let all = |west: &Entries| peers(&[("west", west.clone()), ("north", west.clone()), ("south", west.clone())]);
    let linked = snapshot(&["west", "north", "south"]);
    let started = Instant::now();
    let changes = state.update(linked.clone(), all(&west));
    assert_eq!(changes.len(), 3 + 30_000 + 30_000 + 10_000);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    let mut changed = west.clone();
    changed.insert(service_key("shop/svc-77"), entry("shop/svc-77", &["http:80", "grpc:90"], 1));
    let next = peers(&[("west", changed), ("north", west.clone()), ("south", west)]);
    // The set's maps are shared with nobody here, as when all readers are done.
    let started = Instant::now();
    let changes = state.update(linked, next);
    assert_eq!(changed_keys(&changes), ["+Capacity west/shop/svc-77"]);
    assert!(started.elapsed().as_millis() < 1000, "{:?}", started.elapsed());
}

#[test]
fn a_name_that_passes_to_another_mirror_keeps_its_address_in_use() {
    let mut state = state();
    let both = peers(&[
        ("a-west", entries([entry("shop/web", &["80"], 1)])),
        ("west", entries([entry("shop/web-a", &["80"], 1)])),
    ]);
    state.update(snapshot(&["west"]), Arc::clone(&both));
    let before = address(&state.set(), "web-a-west.shop.svc.cluster.local");
    state.update(snapshot(&["a-west", "west"]), Arc::clone(&both));
    let held: BTreeSet<IpAddr> =
        state.set().wanted.values().map(|wanted| address(&state.set(), &wanted.name)).collect();
    assert_eq!(held.len(), 4);
    assert_eq!(address(&state.set(), "web-a-west.shop.svc.cluster.local"), before);
    assert_eq!(state.fronts().load().0, 4);
    state.update(snapshot(&["a-west"]), both);
    assert_eq!(state.fronts().load().0, 2);
    state.update(snapshot(&[]), peers(&[]));
    assert_eq!(state.fronts().load().0, 0);
}

#[derive(Clone, Debug)]
enum Op {
    Set(usize, usize, Option<(u16, bool)>),
    Link(usize, bool),
    Local(usize, bool),
    Export(usize, Option<u16>),
    Freshness(usize, bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..3_usize, 0..4_usize, prop::option::of((80..83_u16, any::<bool>()))).prop_map(|(peer, service, port)| Op::Set(peer, service, port)),
        1 => (0..3_usize, any::<bool>()).prop_map(|(peer, linked)| Op::Link(peer, linked)),
        1 => (0..4_usize, any::<bool>()).prop_map(|(service, present)| Op::Local(service, present)),
        2 => (0..4_usize, prop::option::of(80..83_u16)).prop_map(|(service, port)| Op::Export(service, port)),
        1 => (0..3_usize, any::<bool>()).prop_map(|(peer, drained)| Op::Freshness(peer, drained)),
    ]
}

/// A mirror without its addresses, which depend on history by design.
fn bare(set: &MirrorSet) -> Vec<String> {
    let nowhere = Front::Address("127.0.0.1".parse().unwrap());
    let wanted = set.wanted.values().map(|wanted| {
        let mut wanted = wanted.as_ref().clone();
        match &mut wanted.shape {
            Shape::Single { front, .. } => *front = nowhere.clone(),
            Shape::Headless { hosts } => hosts.iter_mut().for_each(|host| host.front = nowhere.clone()),
        }
        format!("{wanted:?}")
    });
    wanted.chain(set.refused.values().map(|refused| format!("{refused:?}"))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Step by step or all at once: the same mirrors, and the changes told to the gateway add up to exactly them.
    #[test]
    fn steps_add_up(ops in prop::collection::vec(op(), 1..50)) {
        // `west-west` makes names that could be read in two ways.
        let clusters = ["west", "a-west", "north"];
        let services = ["shop/web", "shop/web-a", "shop/api", "bank/web"];
        let mut state = state();
        let mut snapshot = snapshot(&["west", "a-west"]);
        let mut catalogues: BTreeMap<ClusterName, (Entries, Freshness)> =
            clusters.iter().map(|name| (cluster(name), (Entries::new(), Freshness::Fresh))).collect();
        let mut told: BTreeMap<ResourceKey, Resource> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Set(index, service, port) => {
                    let (entries, _) = catalogues.get_mut(&cluster(clusters[index])).unwrap();
                    let service = services[service];
                    match port {
                        Some((_, true)) => drop(entries.insert(service_key(service), headless(service, &["a", "!b"]))),
                        Some((port, false)) => drop(entries.insert(service_key(service), entry(service, &[&port.to_string()], 1))),
                        None => drop(entries.remove(&service_key(service))),
                    }
                }
                Op::Link(index, linked) => {
                    let map = Arc::make_mut(&mut snapshot.peers);
                    if linked { drop(map.insert(cluster(clusters[index]), peer(clusters[index]))) } else { drop(map.remove(&cluster(clusters[index]))) }
                }
                Op::Local(service, present) => {
                    let mut all = snapshot.services.as_ref().clone();
                    let name = service_key(&format!("{}-west", services[service]));
                    if present { all.insert(name); } else { all.remove(&name); }
                    snapshot.services = Arc::new(all);
                }
                Op::Export(service, port) => {
                    let map = Arc::make_mut(&mut snapshot.exported);
                    let service = services[service];
                    match port {
                        Some(port) => drop(map.insert(service_key(service), entry(service, &[&port.to_string()], 1))),
                        None => drop(map.remove(&service_key(service))),
                    }
                }
                Op::Freshness(index, drained) => {
                    catalogues.get_mut(&cluster(clusters[index])).unwrap().1 = if drained { Freshness::Drained } else { Freshness::Fresh };
                }
            }
            let peers: Arc<Peers> = Arc::new(catalogues.iter().map(|(name, (entries, freshness))| (name.clone(), peer_state(entries.clone(), *freshness))).collect());
            for (key, resource) in state.update(snapshot.clone(), Arc::clone(&peers)) {
                match resource {
                    Some(resource) => drop(told.insert(key, resource)),
                    None => drop(told.remove(&key)),
                }
            }
            // Who exported what first is history, and is remembered.
            let mut fresh = self::state().with(state.seniority().clone(), Exclusions::default());
            let expected = fresh.update(snapshot.clone(), peers);
            prop_assert_eq!(bare(&state.set()), bare(&fresh.set()));
            prop_assert_eq!(&state.set().conflicts, &fresh.set().conflicts);
            let expected: Vec<_> = expected.into_iter().filter(|(_, resource)| resource.is_some()).map(|(key, _)| key).collect();
            prop_assert_eq!(told.keys().cloned().collect::<Vec<_>>(), expected);
            // What the gateway was told is what the set says, addresses included.
            let listeners: BTreeMap<ResourceKey, Resource> = state.set().wanted.values().flat_map(|wanted| faces::listeners(wanted)).map(Resource::Mirror).map(|mirror| (mirror.key(), mirror)).collect();
            let mirrors: BTreeMap<_, _> = told.iter().filter(|(key, _)| key.kind == ResourceKind::Mirror).map(|(key, mirror)| (key.clone(), mirror.clone())).collect();
            prop_assert_eq!(mirrors, listeners);
            // Exactly the names that are mirrored hold addresses, and no two the same.
            let held: Vec<(String, IpAddr)> = state.set().wanted.values().flat_map(|wanted| faces::listeners(wanted)).map(|mirror| (mirror.name, mirror.ports[0].listen.ip())).collect();
            prop_assert_eq!(held.iter().map(|(_, address)| address).collect::<BTreeSet<_>>().len(), held.len());
            prop_assert_eq!(state.fronts().load().0, held.len() as u64);
        }
    }
}
