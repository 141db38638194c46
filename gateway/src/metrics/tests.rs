use std::net::SocketAddr;

use linkspan_proto::configuration::{Export, ExportPort, Mirror, MirrorPort, Peer, Resource};
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::refusal::Refusal;

use super::*;
use crate::outcome::{Direction, Protocol};

const MS: Duration = Duration::from_millis(1);

pub(crate) fn cluster(name: &str) -> ClusterName {
    ClusterName::parse(name).expect("a name")
}

pub(crate) fn service(key: &str) -> ServiceKey {
    ServiceKey::parse(key).expect("a key")
}

/// East, linked to west: `shop/web:80` is mirrored, `shop/db:5432` exported.
pub(crate) fn snapshot() -> Snapshot {
    let listen: SocketAddr = "127.80.0.1:80".parse().expect("an address");
    let resources = [
        Resource::Peer(Peer {
            cluster: cluster("west"),
            trust_domain: TrustDomain::parse("west.linkspan.internal").expect("a domain"),
            trust_bundle: String::new(),
            addresses: Vec::new(),
            default_policy: Default::default(),
            transport: Default::default(),
            congestion: Default::default(),
        }),
        Resource::Mirror(Mirror {
            name: "web-west.shop.svc.cluster.local".to_owned(),
            service: service("shop/web"),
            endpoint: None,
            ports: vec![MirrorPort { listen, port: 80, transport: Default::default(), name: None, app_protocol: None }],
            tiers: Vec::new(),
        }),
        Resource::Export(Export {
            service: service("shop/db"),
            ports: vec![ExportPort {
                port: 5432,
                transport: Default::default(),
                name: None,
                app_protocol: None,
                endpoints: Vec::new(),
            }],
            rules: None,
            proxy_protocol: false,
        }),
    ];
    let resources = resources.into_iter().map(|resource| (resource.key(), Arc::new(resource))).collect();
    Snapshot { generation: 1, resources }
}

pub(crate) fn metrics() -> (Metrics, Registry) {
    let registry = Registry::new();
    let metrics = Metrics::new(cluster("east"), &registry);
    metrics.configure(&snapshot());
    (metrics, registry)
}

pub(crate) fn entry(direction: Direction, protocol: Protocol, peer: &str, key: &str, port: u16) -> Entry {
    let mut entry = Entry::new(direction, protocol);
    entry.peer = Some(cluster(peer));
    entry.service = Some(service(key));
    entry.port = port;
    entry
}

pub(crate) fn request(metrics: &Metrics, entry: &Entry, outcome: Outcome, latency: Duration) {
    metrics.begin(entry);
    metrics.progress(entry, 10, 20);
    metrics.end(entry, outcome, latency);
}

#[track_caller]
fn assert_line(page: &str, line: &str) {
    assert!(page.lines().any(|l| l == line), "{line}\nis not in\n{page}");
}

#[test]
fn requests_and_responses_agree() {
    let (metrics, registry) = metrics();
    let mut web = entry(Direction::Outbound, Protocol::Http1, "west", "shop/web", 80);
    web.status = Some(200);
    request(&metrics, &web, Outcome::Ok, MS);
    request(&metrics, &web, Outcome::Ok, MS);
    web.status = Some(500);
    request(&metrics, &web, Outcome::Ok, 3 * MS);
    web.status = None;
    request(&metrics, &web, Outcome::ClientGone, 3 * MS);
    let mut grpc = entry(Direction::Outbound, Protocol::Grpc, "west", "shop/web", 80);
    (grpc.status, grpc.grpc_status) = (Some(200), Some(14));
    request(&metrics, &grpc, Outcome::Ok, 3 * MS);
    (grpc.status, grpc.grpc_status) = (Some(200), Some(5));
    request(&metrics, &grpc, Outcome::Ok, 3 * MS);

    let page = registry.encode().expect("encodes");
    let labels = r#"direction="outbound",peer="west",dst_namespace="shop",dst_service="web",dst_port="80""#;
    for line in [
        format!("request_total{{{labels}}} 6"),
        format!(r#"response_total{{{labels},classification="success",status_code="2xx",outcome="ok"}} 3"#),
        format!(r#"response_total{{{labels},classification="failure",status_code="5xx",outcome="ok"}} 1"#),
        format!(r#"response_total{{{labels},classification="success",status_code="",outcome="client_gone"}} 1"#),
        format!(r#"response_total{{{labels},classification="failure",status_code="2xx",outcome="ok"}} 1"#),
        format!("response_latency_ms_count{{{labels}}} 6"),
        format!(r#"response_latency_ms_bucket{{le="1.0",{labels}}} 2"#),
        format!("tcp_read_bytes_total{{{labels}}} 60"),
        format!("tcp_write_bytes_total{{{labels}}} 120"),
        format!("tcp_open_total{{{labels}}} 0"),
    ] {
        assert_line(&page, &line);
    }
}

#[test]
fn connections_open_and_close() {
    let (metrics, registry) = metrics();
    let db = entry(Direction::Inbound, Protocol::Tcp, "west", "shop/db", 5432);
    request(&metrics, &db, Outcome::Ok, MS);
    request(&metrics, &db, Outcome::Refused(Refusal::Idle), MS);
    request(&metrics, &db, Outcome::Idle, MS);
    request(&metrics, &db, Outcome::Refused(Refusal::ConnectRefused), MS);
    metrics.begin(&db);
    let page = registry.encode().expect("encodes");
    let labels = r#"direction="inbound",peer="west",dst_namespace="shop",dst_service="db",dst_port="5432""#;
    for line in [
        format!("tcp_open_total{{{labels}}} 5"),
        format!(r#"tcp_close_total{{{labels},classification="success",outcome="ok"}} 1"#),
        format!(r#"tcp_close_total{{{labels},classification="success",outcome="idle"}} 2"#),
        format!(r#"tcp_close_total{{{labels},classification="failure",outcome="connect_refused"}} 1"#),
    ] {
        assert_line(&page, &line);
    }
}

#[test]
fn probes_of_check_are_no_traffic() {
    let (metrics, registry) = metrics();
    for protocol in [Protocol::Tcp, Protocol::Http1] {
        let mut probe = entry(Direction::Outbound, protocol, "west", "shop/web", 80);
        probe.probe = true;
        request(&metrics, &probe, Outcome::Refused(Refusal::Denied), MS);
    }
    let totals = metrics.series()[0].totals();
    assert_eq!(totals, Totals { latency: totals.latency.clone(), ..Totals::default() });
    assert_eq!(totals.latency.count(), 0);
    let labels = r#"direction="outbound",peer="west",dst_namespace="shop",dst_service="web",dst_port="80""#;
    let line = format!(r#"service_probe_total{{{labels},classification="failure",outcome="denied"}} 2"#);
    assert_line(&registry.encode().expect("encodes"), &line);
}

/// S-31: a million names that nobody configured.
#[test]
fn s_31_made_up_names_make_no_series() {
    let (metrics, registry) = metrics();
    for n in 0..1_000_000_u32 {
        let mut entry = Entry::new(Direction::Inbound, Protocol::Http1);
        entry.peer = Some(cluster("west"));
        if n % 1000 == 0 {
            entry.service = Some(service(&format!("shop/svc-{n}")));
            entry.peer = Some(cluster(&format!("peer-{n}")));
        } else {
            entry.service = Some(service("shop/web"));
        }
        entry.port = u16::try_from(n % 65_000).expect("fits") + 81;
        metrics.end(&entry, Outcome::Refused(Refusal::UnknownExport), MS);
    }
    assert_eq!(metrics.series().len(), 2, "one for the known peer, one for the unknown");
    let page = registry.encode().expect("encodes");
    assert!(page.lines().count() < 2000);
    assert!(!page.contains("svc-"));
    let labels = r#"direction="inbound",peer="west",dst_namespace="",dst_service="",dst_port="0""#;
    assert_line(&page, &format!("request_total{{{labels}}} 999000"));
}

#[test]
fn s_31_many_configured_names_are_capped() {
    let (metrics, _registry) = metrics();
    let mut big = snapshot();
    for n in 0..3000 {
        let resource = Resource::Export(Export {
            service: service(&format!("shop/svc-{n}")),
            ports: vec![ExportPort {
                port: 80,
                transport: Default::default(),
                name: None,
                app_protocol: None,
                endpoints: Vec::new(),
            }],
            rules: None,
            proxy_protocol: false,
        });
        big.resources.insert(resource.key(), Arc::new(resource));
    }
    metrics.configure(&big);
    for n in 0..3000 {
        let entry = entry(Direction::Inbound, Protocol::Http1, "west", &format!("shop/svc-{n}"), 80);
        metrics.end(&entry, Outcome::Ok, MS);
    }
    assert_eq!(metrics.series().len(), SERIES_MAX + 1);
    let unnamed = Key { direction: Direction::Inbound, peer: None, service: None, port: 0 };
    assert_eq!(metrics.handle(&unnamed).totals().requests, 3000 - SERIES_MAX as u64);
}

#[test]
fn names_that_are_gone_are_forgotten() {
    let (metrics, registry) = metrics();
    metrics.links().peer(&cluster("west")).up(true);
    let web = entry(Direction::Outbound, Protocol::Http1, "west", "shop/web", 80);
    let db = entry(Direction::Inbound, Protocol::Tcp, "west", "shop/db", 5432);
    request(&metrics, &web, Outcome::Ok, MS);
    request(&metrics, &db, Outcome::Ok, MS);
    assert_eq!(metrics.series().len(), 2);
    let mut less = snapshot();
    less.resources.retain(|_, resource| !matches!(**resource, Resource::Mirror(_)));
    metrics.configure(&less);
    assert_eq!(metrics.series().len(), 1);
    assert!(registry.encode().expect("encodes").contains("link_up{peer=\"west\"} 1"));
    metrics.configure(&Snapshot::default());
    assert_eq!(metrics.series().len(), 0);
    assert!(!registry.encode().expect("encodes").contains("west"));
    // A request that outlives its name still counts somewhere.
    metrics.end(&web, Outcome::Ok, MS);
    assert_eq!(metrics.series().len(), 1);
}

#[test]
fn our_own_cluster_may_serve() {
    let (metrics, registry) = metrics();
    request(&metrics, &entry(Direction::Outbound, Protocol::Http2, "east", "shop/web", 80), Outcome::Ok, MS);
    assert!(registry.encode().expect("encodes").contains("peer=\"east\""));
}

#[test]
fn links_have_gauges_and_counters() {
    let (metrics, registry) = metrics();
    let west = metrics.links().peer(&cluster("west"));
    west.connections(2);
    west.rtt(Some(Duration::from_millis(20)));
    west.packets(300, 3);
    west.packets(100, 0);
    west.state(linkspan_proto::configuration::LinkPhase::Connected);
    west.probe(true);
    west.probe(false);
    west.probe(false);
    let page = registry.encode().expect("encodes");
    for line in [
        "link_up{peer=\"west\"} 0.0",
        "link_connections{peer=\"west\"} 2.0",
        "link_rtt_seconds{peer=\"west\"} 0.02",
        "link_state{peer=\"west\",state=\"connected\"} 1.0",
        "link_state{peer=\"west\",state=\"connecting\"} 0.0",
        "link_sent_packets_total{peer=\"west\"} 400",
        "link_lost_packets_total{peer=\"west\"} 3",
        "link_probe_total{peer=\"west\",result=\"answered\"} 1",
        "link_probe_total{peer=\"west\",result=\"failed\"} 2",
    ] {
        assert_line(&page, line);
    }
    west.rtt(None);
    assert!(!registry.encode().expect("encodes").contains("link_rtt_seconds{"));
}

#[test]
fn workers_count_together() {
    let (metrics, _registry) = metrics();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let web = entry(Direction::Outbound, Protocol::Http1, "west", "shop/web", 80);
                for _ in 0..1000 {
                    request(&metrics, &web, Outcome::Ok, MS);
                }
            });
        }
    });
    let totals = metrics.series()[0].totals();
    assert_eq!((totals.requests, totals.failures, totals.read_bytes), (4000, 0, 40_000));
    assert_eq!(totals.latency.count(), 4000);
}
