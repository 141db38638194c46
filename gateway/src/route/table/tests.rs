use std::time::Instant as Clock;

use linkspan_proto::configuration::{Capacity, Endpoint, MirrorPort, PortTransport, Workload};

use super::*;
use crate::route::tests::{capacity, cluster, down, export, mirror, own, service, snapshot, tier};

fn at(address: &str) -> SocketAddr {
    address.parse().expect("address")
}

fn simple(name: &str, listen: &str) -> Resource {
    Resource::Mirror(mirror(name, listen, vec![tier(&[("west", 1)], 1)]))
}

fn target(table: &RouteTable, listen: &str) -> Option<String> {
    let route = table.by_listen(at(listen))?;
    route.pick(&down(&[]), &[]).ok().map(|target| target.cluster.to_string())
}

#[test]
fn unchanged_routes_and_exports_are_shared() {
    let base = vec![
        simple("web.a", "127.80.0.1:80"),
        simple("db.a", "127.80.0.2:80"),
        capacity("west", "web", 1),
        capacity("west", "db", 1),
        Resource::Export(export("api", &[("10.0.0.1:80", true)])),
    ];
    let first = RouteTable::build(&snapshot(base.clone()), &own());
    let mut changed = base;
    changed[2] = capacity("west", "web", 0);
    let second = first.then(&snapshot(changed));
    let same = |listen: &str| {
        Arc::ptr_eq(first.by_listen(at(listen)).expect("first"), second.by_listen(at(listen)).expect("second"))
    };
    assert!(!same("127.80.0.1:80"));
    assert!(same("127.80.0.2:80"));
    assert!(Arc::ptr_eq(first.export(&service("api")).expect("1"), second.export(&service("api")).expect("2")));
    // Nothing to bind or to close.
    assert!(Arc::ptr_eq(first.bindings(), second.bindings()));
    assert_eq!(target(&first, "127.80.0.1:80").as_deref(), Some("west"));
    assert_eq!(target(&second, "127.80.0.1:80"), None);
}

/// Whose sockets an address takes: nobody can charge another with a port that this one does not export.
#[test]
fn an_address_is_owned_by_the_clusters_that_export_its_port() {
    let mut web = mirror("web.a", "127.80.0.1:80", vec![tier(&[("north", 1), ("west", 1)], 1)]);
    web.ports.push(MirrorPort { listen: at("127.80.0.1:81"), port: 81, ..web.ports[0].clone() });
    let offers = |name: &str, ports: &[u16]| {
        Resource::Capacity(Capacity {
            cluster: cluster(name),
            service: service("web"),
            ready: ports.iter().map(|port| (*port, 1)).collect(),
            total: BTreeMap::new(),
            ready_udp: Default::default(),
            total_udp: Default::default(),
            ready_endpoints: Vec::new(),
        })
    };
    let owners = |table: &RouteTable, listen: &str| -> Vec<String> {
        table.bindings().owners[&Place::tcp(at(listen))].iter().map(ToString::to_string).collect()
    };
    let both = |north: &[u16]| snapshot([Resource::Mirror(web.clone()), offers("west", &[80]), offers("north", north)]);
    let first = RouteTable::build(&both(&[80, 81]), &own());
    assert_eq!(owners(&first, "127.80.0.1:80"), ["north", "west"]);
    assert_eq!(owners(&first, "127.80.0.1:81"), ["north"]);
    let second = first.then(&both(&[81]));
    assert_eq!(owners(&second, "127.80.0.1:80"), ["west"], "without any change of the mirror");
    let third = second.then(&snapshot([Resource::Mirror(web.clone())]));
    assert_eq!(owners(&third, "127.80.0.1:80"), ["north", "west"], "nobody is known to: all that it names");
}

#[test]
fn a_change_of_weights_continues_the_sequence() {
    let build = |east: u32, west: u32| {
        let mirror = mirror("web.a", "127.80.0.1:80", vec![tier(&[("north", east), ("west", west)], 1)]);
        snapshot([Resource::Mirror(mirror), capacity("west", "web", 1), capacity("north", "web", 1)])
    };
    let mut table = RouteTable::build(&build(50, 50), &own());
    let mut west = 0;
    // One pick for each table: a sequence that began anew each time would always pick the same.
    for step in 0..1_000_u32 {
        table = table.then(&build(50 + step % 2, 50 + step % 2));
        west += usize::from(target(&table, "127.80.0.1:80").as_deref() == Some("west"));
    }
    assert!((490..=510).contains(&west), "{west}");
}

#[test]
fn removed_mirrors_are_gone_and_addresses_may_be_handed_on() {
    let first =
        RouteTable::build(&snapshot([simple("web.a", "127.80.0.1:80"), simple("db.a", "127.80.0.2:80")]), &own());
    let route = Arc::clone(first.by_listen(at("127.80.0.1:80")).expect("route"));
    // The two swap addresses in one step.
    let second = first.then(&snapshot([simple("web.a", "127.80.0.2:80"), simple("db.a", "127.80.0.1:80")]));
    assert_eq!(&**second.by_listen(at("127.80.0.1:80")).expect("db").name(), "db.a");
    assert_eq!(&**second.by_listen(at("127.80.0.2:80")).expect("web").name(), "web.a");
    assert_eq!(second.current(&route).expect("web").mirror_port().listen, at("127.80.0.2:80"));
    let third = second.then(&snapshot([simple("db.a", "127.80.0.1:80")]));
    assert!(third.by_listen(at("127.80.0.2:80")).is_none());
    assert!(third.current(&route).is_none());
    assert_eq!(third.bindings().places.len(), 1);
    assert!(third.by_server_name("web.a").is_none());
}

#[test]
fn a_disputed_address_goes_to_the_first_name_and_comes_free_again() {
    let (web, db) = (simple("web.a", "127.80.0.1:80"), simple("db.a", "127.80.0.1:80"));
    let alone = RouteTable::build(&snapshot([web.clone()]), &own());
    let both = alone.then(&snapshot([web.clone(), db.clone()]));
    assert_eq!(&**both.by_listen(at("127.80.0.1:80")).expect("db").name(), "db.a");
    assert_eq!(both.bindings().places[&Place::tcp(at("127.80.0.1:80"))].as_ref(), "db.a");
    assert_eq!(both.bindings().conflicts[&Place::tcp(at("127.80.0.1:80"))].as_ref(), "web.a");
    let again = both.then(&snapshot([web]));
    assert_eq!(&**again.by_listen(at("127.80.0.1:80")).expect("web").name(), "web.a");
    assert!(again.bindings().conflicts.is_empty());
    let only_db = both.then(&snapshot([db]));
    assert_eq!(&**only_db.by_listen(at("127.80.0.1:80")).expect("db").name(), "db.a");
}

#[test]
fn server_names_find_the_port() {
    let mut mirror = mirror("web-west.shop.svc.cluster.local", "127.80.0.1:80", vec![tier(&[("west", 1)], 1)]);
    mirror.ports.push(MirrorPort {
        listen: at("127.80.0.1:9090"),
        port: 9090,
        transport: Default::default(),
        name: Some("metrics".parse().expect("port name")),
        app_protocol: None,
    });
    let table = RouteTable::build(&snapshot([Resource::Mirror(mirror)]), &own());
    let port = |name: &str| table.by_server_name(name).map(|route| route.port());
    assert_eq!(port("web-west.shop.svc.cluster.local"), Some(80));
    assert_eq!(port("Web-West.Shop.svc.cluster.local."), Some(80));
    assert_eq!(port("_9090.web-west.shop.svc.cluster.local"), Some(9090));
    assert_eq!(port("_metrics.web-west.shop.svc.cluster.local"), Some(9090));
    assert_eq!(port("_80.web-west.shop.svc.cluster.local"), Some(80));
    for unknown in ["", ".", "_9090", "_1.web-west.shop.svc.cluster.local", "web.shop.svc.cluster.local", "_metrics."] {
        assert_eq!(port(unknown), None, "{unknown}");
    }
}

#[test]
fn the_load_of_an_endpoint_outlives_changes_of_its_export() {
    let first = RouteTable::build(
        &snapshot([Resource::Export(export("api", &[("10.0.0.1:80", true), ("10.0.0.2:80", true)]))]),
        &own(),
    );
    let load = |table: &RouteTable, address: &str| {
        let export = table.export(&service("api")).expect("export");
        let port = export.port(PortTransport::Tcp, 80).expect("port");
        let backend = port.backends().iter().find(|backend| backend.address == at(address)).expect("backend");
        (Arc::clone(&backend.load), backend.ready)
    };
    let (before, _) = load(&first, "10.0.0.1:80");
    let changed = export("api", &[("10.0.0.3:80", true), ("10.0.0.1:80", false)]);
    let second = first.then(&snapshot([Resource::Export(changed)]));
    let (after, ready) = load(&second, "10.0.0.1:80");
    assert!(Arc::ptr_eq(&before, &after));
    assert!(!ready);
    let export = second.export(&service("api")).expect("export");
    let ready: Vec<_> =
        export.port(PortTransport::Tcp, 80).expect("port").all_ready().iter().map(|backend| backend.address).collect();
    assert_eq!(ready, [at("10.0.0.3:80")]);
    assert!(second.then(&snapshot([])).export(&service("api")).is_none());
}

#[test]
fn an_endpoint_mirror_follows_its_one_endpoint() {
    let mut mirror = mirror("db.a", "127.80.0.1:80", vec![tier(&[("west", 1), ("east", 1)], 1)]);
    mirror.endpoint = Some("db-0".parse().expect("endpoint"));
    let capacity = |ready_endpoints: &[&str]| {
        Resource::Capacity(Capacity {
            cluster: cluster("west"),
            service: service("db"),
            ready: BTreeMap::from([(80, 2)]),
            total: BTreeMap::new(),
            ready_udp: Default::default(),
            total_udp: Default::default(),
            ready_endpoints: ready_endpoints.iter().map(|name| name.parse().expect("endpoint")).collect(),
        })
    };
    let mirror = Resource::Mirror(mirror);
    let table = RouteTable::build(&snapshot([mirror.clone(), capacity(&["db-1"])]), &own());
    assert_eq!(target(&table, "127.80.0.1:80"), None);
    let table = table.then(&snapshot([mirror.clone(), capacity(&["db-1", "db-0"])]));
    assert_eq!(target(&table, "127.80.0.1:80").as_deref(), Some("west"));
    // And the same for our own export.
    let mut local = export("db", &[("10.0.0.1:80", true), ("10.0.0.2:80", false)]);
    local.ports[0].endpoints[1].name = Some("db-0".parse().expect("endpoint"));
    let table = table.then(&snapshot([mirror.clone(), Resource::Export(local.clone())]));
    assert_eq!(target(&table, "127.80.0.1:80"), None);
    local.ports[0].endpoints[1].ready = true;
    let table = table.then(&snapshot([mirror, Resource::Export(local)]));
    assert_eq!(target(&table, "127.80.0.1:80").as_deref(), Some("east"));
}

#[test]
fn clients_without_a_range_are_the_node() {
    let workload = Workload {
        namespace: "shop".parse().expect("namespace"),
        service_account: "web".parse().expect("account"),
        ranges: vec!["10.0.0.0/24".parse().expect("cidr")],
    };
    let table = RouteTable::build(&snapshot([Resource::Workload(workload)]), &own());
    let known = table.source_of("10.0.0.9".parse().expect("ip"));
    assert_eq!(known.identity.as_str(), "spiffe://east.linkspan.internal/ns/shop/sa/web");
    assert_eq!(known.assurance, Assurance::Network);
    let unknown = table.source_of("10.0.1.9".parse().expect("ip"));
    assert_eq!(unknown.identity, SpiffeId::node(&own().trust_domain));
    assert_eq!(unknown.assurance, Assurance::Gateway);
    let emptied = table.then(&snapshot([]));
    assert_eq!(emptied.source_of("10.0.0.9".parse().expect("ip")).assurance, Assurance::Gateway);
}

#[test]
fn ten_thousand_services_change_in_milliseconds() {
    let listen = |index: usize| format!("127.80.{}.{}:80", index / 250, index % 250 + 1);
    let mut resources: Vec<_> = (0..10_000)
        .flat_map(|index| {
            let name = format!("web-{index}");
            [simple(&format!("{name}.a"), &listen(index)), capacity("west", &name, 1)]
        })
        .collect();
    let first = RouteTable::build(&snapshot(resources.clone()), &own());
    assert_eq!(first.bindings().places.len(), 10_000);
    // All other resources are the same `Arc`s, as discovery hands them out.
    resources.truncate(2);
    let mut next = Snapshot { generation: 2, resources: first.snapshot.resources.clone() };
    let changed = capacity("west", "web-77", 0);
    next.resources.insert(changed.key(), Arc::new(changed));
    let next = Arc::new(next);
    let began = Clock::now();
    let second = first.then(&next);
    let took = began.elapsed();
    assert_eq!(target(&second, &listen(77)), None);
    assert_eq!(target(&second, &listen(78)).as_deref(), Some("west"));
    // Some 5 ms on a slow core; the bound only catches a step that became quadratic or rebuilds everything.
    assert!(took.as_millis() < 250, "{took:?}");
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// A small world in which names, addresses and services collide often.
    fn resource() -> impl Strategy<Value = Resource> {
        let names = ["web.a", "db.a", "api.a"];
        prop_oneof![
            (0_usize..3, 1_u8..4, 0_u32..3).prop_map(move |(name, listen, weight)| {
                let tiers = vec![tier(&[("west", weight), ("east", 1)], 1)];
                Resource::Mirror(mirror(names[name], &format!("127.80.0.{listen}:80"), tiers))
            }),
            (0_usize..3, 0_u32..2).prop_map(|(name, ready)| capacity("west", ["web", "db", "api"][name], ready)),
            (0_usize..3, any::<bool>()).prop_map(|(name, ready)| {
                Resource::Export(export(["web", "db", "api"][name], &[("10.0.0.1:80", ready)]))
            }),
        ]
    }

    /// All that a reader can tell of a table, but for the phase of its sequences.
    fn shape(table: &RouteTable) -> String {
        let mut by_listen: Vec<_> =
            table.by_place.iter().map(|(listen, route)| format!("{listen} {} {:?}", route.name, route.tiers)).collect();
        by_listen.sort();
        let mut names: Vec<_> = table.by_name.keys().cloned().collect();
        names.sort();
        let mut services: Vec<_> = table.by_service.iter().map(|entry| format!("{entry:?}")).collect();
        services.sort();
        let mut exports: Vec<_> = table
            .exports
            .values()
            .map(|export| {
                let backends = export.ports[0].backends().iter().map(|backend| (backend.address, backend.ready));
                format!("{} {:?}", export.service, backends.collect::<Vec<_>>())
            })
            .collect();
        exports.sort();
        format!("{by_listen:?}\n{names:?}\n{services:?}\n{exports:?}\n{:?}", table.bindings)
    }

    proptest! {
        /// Step by step gives the same table as from scratch, whatever happened before.
        #[test]
        fn any_history_gives_the_same_table(
            history in proptest::collection::vec(proptest::collection::vec(resource(), 0..7), 1..8),
        ) {
            let mut table = RouteTable::empty(own());
            for resources in history {
                let next = snapshot(resources);
                table = table.then(&next);
                prop_assert_eq!(shape(&table), shape(&RouteTable::build(&next, &own())));
            }
        }
    }
}

#[test]
fn duplicate_endpoints_share_their_load_only_by_address() {
    let mut api = export("api", &[("10.0.0.1:80", true)]);
    api.ports[0].endpoints.push(Endpoint { address: at("10.0.0.1:81"), name: None, ready: true });
    let table = RouteTable::build(&snapshot([Resource::Export(api)]), &own());
    let export = table.export(&service("api")).expect("export");
    let backends = export.port(PortTransport::Tcp, 80).expect("port").backends();
    assert!(!Arc::ptr_eq(&backends[0].load, &backends[1].load));
}
