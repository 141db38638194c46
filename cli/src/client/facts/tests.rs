//! Fixtures for all commands that show facts, and the rules of health.

use linkspan_proto::configuration::{Carrier, DefaultPolicy, Endpoint, ExportPort, LinkPhase, Tier, TransportReason};
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::names::EndpointName;

use super::*;

pub(crate) fn cluster(name: &str) -> ClusterName {
    ClusterName::parse(name).expect("cluster name")
}

pub(crate) fn service(key: &str) -> ServiceKey {
    ServiceKey::parse(key).expect("service key")
}

pub(crate) fn link(peer: &str, alive: bool) -> LinkReport {
    let (state, reason, message) = if alive {
        (LinkPhase::Connected, "Connected", "")
    } else {
        (LinkPhase::Connecting, "Unreachable", "no answer from 10.77.0.2:4143/udp within 3 s")
    };
    LinkReport {
        cluster: cluster(peer),
        alive,
        state,
        message: message.to_owned(),
        reason: reason.to_owned(),
        connections: u32::from(alive) * 2,
        version: alive.then(|| "0.1.0".to_owned()),
        rtt_micros: alive.then_some(1_234),
        probe_micros: alive.then_some(2_500),
        loss: if alive { 0.001 } else { 0.0 },
        since_unix: 1_700_000_000,
        remote: alive.then(|| "10.77.0.2:4143".parse().expect("address")),
        transport: alive.then_some(Carrier::Quic),
        transport_reason: alive.then_some(TransportReason::Preferred),
        clock_ahead_seconds: None,
        mtu: None,
        black_holes: 0,
    }
}

pub(crate) fn peer(name: &str, addresses: &[&str]) -> Resource {
    Resource::Peer(Peer {
        cluster: cluster(name),
        trust_domain: TrustDomain::parse(&format!("{name}.linkspan.internal")).expect("trust domain"),
        trust_bundle: String::new(),
        addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
        default_policy: DefaultPolicy::Allow,
        transport: Default::default(),
        congestion: Default::default(),
    })
}

pub(crate) fn mirror(name: &str, key: &str, address: &str, tiers: &[&[(&str, u32)]]) -> Resource {
    let tier = |clusters: &[(&str, u32)]| Tier {
        clusters: clusters.iter().map(|&(name, weight)| (cluster(name), weight)).collect(),
        min_healthy_percent: 1,
    };
    Resource::Mirror(Mirror {
        name: name.to_owned(),
        service: service(key),
        endpoint: None,
        ports: vec![MirrorPort {
            listen: address.parse().expect("address"),
            port: 80,
            transport: Default::default(),
            name: None,
            app_protocol: Some("http".to_owned()),
        }],
        tiers: tiers.iter().map(|clusters| tier(clusters)).collect(),
    })
}

pub(crate) fn capacity(from: &str, key: &str, ready: u32) -> Resource {
    Resource::Capacity(Capacity {
        cluster: cluster(from),
        service: service(key),
        ready: BTreeMap::from([(80, ready)]),
        total: BTreeMap::new(),
        ready_udp: Default::default(),
        total_udp: Default::default(),
        ready_endpoints: Vec::new(),
    })
}

pub(crate) fn export(key: &str, ready: &[bool]) -> Resource {
    let endpoint = |(index, &ready): (usize, &bool)| Endpoint {
        address: format!("10.0.0.{}:8080", index + 1).parse().expect("address"),
        name: None,
        ready,
    };
    Resource::Export(Export {
        service: service(key),
        ports: vec![ExportPort {
            port: 80,
            transport: Default::default(),
            name: None,
            app_protocol: Some("http".to_owned()),
            endpoints: ready.iter().enumerate().map(endpoint).collect(),
        }],
        rules: None,
        proxy_protocol: false,
    })
}

pub(crate) fn bound(address: &str) -> Listener {
    Listener {
        listen: address.parse().expect("address"),
        transport: PortTransport::Tcp,
        bound: true,
        reason: String::new(),
        message: String::new(),
        occupant: None,
    }
}

/// East, linked with west (alive) and north (down); `web` of both, and of east itself in the clusterset.
pub(crate) fn facts() -> Facts {
    Facts::of(
        Some(cluster("east")),
        vec![link("west", true), link("north", false)],
        vec![bound("127.80.0.1:80"), bound("127.80.0.2:80"), bound("127.80.0.3:80")],
        vec![
            peer("west", &["10.77.0.2:4143"]),
            peer("north", &[]),
            mirror(
                "web.shop.svc.clusterset.local",
                "shop/web",
                "127.80.0.3:80",
                &[&[("east", 90), ("west", 10)], &[("north", 1)]],
            ),
            mirror("web-west.shop.svc.cluster.local", "shop/web", "127.80.0.1:80", &[&[("west", 1)]]),
            mirror("web-north.shop.svc.cluster.local", "shop/web", "127.80.0.2:80", &[&[("north", 1)]]),
            capacity("west", "shop/web", 2),
            capacity("north", "shop/web", 3),
            export("shop/web", &[true, false]),
        ],
    )
}

fn health(facts: &Facts, name: &str) -> PortHealth {
    let mirror = facts.mirrors.iter().find(|mirror| mirror.name == name).expect("mirror");
    facts.health(mirror, &mirror.ports[0])
}

#[test]
fn a_mirror_is_as_healthy_as_the_clusters_behind_it() {
    let mut facts = facts();
    assert_eq!(health(&facts, "web-west.shop.svc.cluster.local").state, State::Healthy);
    let north = health(&facts, "web-north.shop.svc.cluster.local");
    assert_eq!((north.state, north.message.as_str()), (State::LinkDown, "the link to north is down"));
    let set = health(&facts, "web.shop.svc.clusterset.local");
    assert_eq!((set.state, set.message.as_str()), (State::Degraded, "the link to north is down"));
    let seen: Vec<_> = set.backings.iter().map(|b| (b.cluster.as_str(), b.tier, b.weight, b.alive, b.ready)).collect();
    assert_eq!(seen, [("east", 1, 90, true, Some(1)), ("west", 1, 10, true, Some(2)), ("north", 2, 1, false, Some(3))]);

    facts.capacities.get_mut(&(cluster("west"), service("shop/web"))).expect("capacity").ready.insert(80, 0);
    let west = health(&facts, "web-west.shop.svc.cluster.local");
    assert_eq!((west.state, west.message.as_str()), (State::NoReadyEndpoints, "no endpoint is ready in west"));

    facts.capacities.remove(&(cluster("west"), service("shop/web")));
    let west = health(&facts, "web-west.shop.svc.cluster.local");
    assert_eq!((west.state, west.message.as_str()), (State::NotExported, "west does not export this port"));
}

#[test]
fn a_listener_that_is_not_bound_comes_first() {
    let mut facts = facts();
    let address: SocketAddr = "127.80.0.1:80".parse().expect("address");
    let listener = facts.listeners.get_mut(&(address, PortTransport::Tcp)).expect("listener");
    listener.bound = false;
    listener.reason = "PermissionDenied".to_owned();
    let west = health(&facts, "web-west.shop.svc.cluster.local");
    assert_eq!((west.state, west.message.as_str()), (State::NotListening, "PermissionDenied"));
    let listener = facts.listeners.get_mut(&(address, PortTransport::Tcp)).expect("listener");
    listener.occupant = Some(Occupant { listen: "0.0.0.0:80".parse().expect("address"), uid: 0, process: None });
    let west = health(&facts, "web-west.shop.svc.cluster.local");
    assert!(west.message.contains("listens on 0.0.0.0:80"), "who is in the way says more: {}", west.message);
    facts.listeners.clear();
    assert_eq!(health(&facts, "web-west.shop.svc.cluster.local").state, State::NotListening);
}

#[test]
fn a_cluster_of_weight_zero_neither_helps_nor_harms() {
    let zero = [&[("west", 0), ("north", 1)][..]];
    let mut facts = facts();
    facts.mirrors.clear();
    let Resource::Mirror(set) = mirror("web.shop.svc.clusterset.local", "shop/web", "127.80.0.3:80", &zero) else {
        unreachable!("a mirror")
    };
    facts.mirrors.push(set);
    assert_eq!(health(&facts, "web.shop.svc.clusterset.local").state, State::LinkDown);
}

#[test]
fn a_cluster_without_a_link_is_told_from_one_whose_link_is_down() {
    let mut facts = facts();
    facts.links.remove(&cluster("north"));
    facts.peers.remove(&cluster("north"));
    let north = health(&facts, "web-north.shop.svc.cluster.local");
    assert_eq!((north.state, north.message.as_str()), (State::LinkDown, "there is no Link to north"));
}

#[test]
fn one_endpoint_of_a_headless_service_is_ready_by_its_name() {
    let mut facts = facts();
    let db = EndpointName::parse("db-0").expect("endpoint name");
    facts.mirrors[0].endpoint = Some(db.clone());
    let mirror = facts.mirrors[0].clone();
    assert_eq!(facts.ready_there(&cluster("west"), &mirror, &mirror.ports[0]), Some(0));
    let capacity = facts.capacities.get_mut(&(cluster("west"), service("shop/web"))).expect("capacity");
    capacity.ready_endpoints.push(db);
    assert_eq!(facts.ready_there(&cluster("west"), &mirror, &mirror.ports[0]), Some(1));
}

#[test]
fn services_are_counted_by_peer() {
    let facts = facts();
    assert_eq!(facts.services_of(&cluster("west")), 1);
    assert_eq!(facts.services_of(&cluster("south")), 0);
    let web = service("shop/web");
    assert_eq!(facts.exporters_of(&web).map(ClusterName::as_str).collect::<Vec<_>>(), ["north", "west"]);
}

#[test]
fn the_admin_page_is_read_as_the_gateway_writes_it() {
    let resources = vec![
        peer("west", &["10.77.0.2:4143"]),
        mirror("web-west.shop.svc.cluster.local", "shop/web", "127.80.0.1:80", &[&[("west", 1)]]),
        capacity("west", "shop/web", 2),
        export("shop/web", &[true, false]),
    ];
    let page = serde_json::json!({
        "controller": {"anything": "else"},
        "gateway": {"resolved": {"cluster": "east", "workers": 2}, "generation": 7, "resources": resources},
    });
    let page: ConfigPage = serde_json::from_str(&page.to_string()).expect("the page is read");
    assert_eq!(page.gateway.resources, resources);
    assert_eq!(page.gateway.resolved.cluster, cluster("east"));
}
