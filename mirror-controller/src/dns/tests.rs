//! What the server answers, by way of bytes; then the sockets; then `dig`, where it is installed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use linkspan_proto::exchange::Protocol;
use linkspan_proto::names::{ClusterName, EndpointName, Namespace, PortName, ServiceName};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

mod hostile;
mod sockets;

fn port(name: &str, protocol: Protocol, port: u16) -> Port {
    let name = (!name.is_empty()).then(|| PortName::parse(name).expect("port name"));
    Port { name, protocol, port }
}

fn service(zone: ZoneName, namespace: &str, name: &str, addresses: &[&str], ports: &[Port]) -> Service {
    Service {
        name: ServiceName::parse(name).expect("service name"),
        namespace: Namespace::parse(namespace).expect("namespace"),
        zone,
        addresses: addresses.iter().map(|a| a.parse().expect("address")).collect(),
        ports: ports.to_vec(),
        headless: None,
    }
}

fn endpoint(name: &str, cluster: &str, address: &str, ready: bool) -> HeadlessEndpoint {
    HeadlessEndpoint {
        name: EndpointName::parse(name).expect("endpoint name"),
        cluster: ClusterName::parse(cluster).expect("cluster name"),
        address: Some(address.parse().expect("address")),
        ready,
    }
}

/// A zone with one service of every kind.
fn shop() -> Zone {
    let web = [port("http", Protocol::Tcp, 80), port("metrics", Protocol::Tcp, 9090), port("quic", Protocol::Udp, 80)];
    let db = [port("sql", Protocol::Tcp, 5432), port("", Protocol::Tcp, 9187)];
    let hosts = vec![
        endpoint("db-0", "west", "127.80.1.10", true),
        endpoint("db-1", "west", "127.80.1.11", true),
        endpoint("db-2", "west", "127.80.1.12", false),
        endpoint("db-0", "north", "127.80.1.20", true),
    ];
    let west: Vec<_> = hosts.iter().filter(|host| host.cluster.as_str() == "west").cloned().collect();
    let headless = |service: Service, hosts: Vec<HeadlessEndpoint>| Service { headless: Some(hosts), ..service };
    Zone::build(
        vec![
            service(ZoneName::ClusterLocal, "shop", "web-west", &["127.80.0.1"], &web),
            service(ZoneName::Clusterset, "shop", "web", &["127.80.0.2", "fd00::2"], &web),
            headless(service(ZoneName::ClusterLocal, "shop", "db-west", &[], &db), west),
            headless(service(ZoneName::Clusterset, "shop", "db", &[], &db), hosts),
            headless(
                service(ZoneName::Clusterset, "shop", "idle", &[], &db),
                vec![endpoint("idle-0", "west", "127.80.1.30", false)],
            ),
        ],
        7,
    )
}

fn query(name: &str, qtype: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("name"), qtype));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

fn send(zone: &Zone, request: &[u8], transport: Transport) -> Option<Vec<u8>> {
    match respond(zone, request, transport, &mut StdRng::seed_from_u64(1)) {
        Reply::Send { bytes, .. } => Some(bytes),
        Reply::Drop(_) => None,
    }
}

fn exchange(zone: &Zone, request: &Message, transport: Transport) -> Message {
    let bytes = send(zone, &request.to_vec().expect("encodes"), transport).expect("a reply");
    Message::from_vec(&bytes).expect("the reply is a message")
}

fn ask(zone: &Zone, name: &str, qtype: RecordType) -> Message {
    exchange(zone, &with_edns(query(name, qtype), 1232), Transport::Udp)
}

fn rcode(zone: &Zone, name: &str, qtype: RecordType) -> ResponseCode {
    ask(zone, name, qtype).metadata.response_code
}

fn addresses(message: &Message) -> BTreeSet<IpAddr> {
    message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        })
        .collect()
}

/// Port and target of each SRV record.
fn srv(message: &Message) -> BTreeSet<(u16, String)> {
    let records: Vec<_> = message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some((srv.port, srv.target.to_string())),
            _ => None,
        })
        .collect();
    let unique: BTreeSet<_> = records.iter().cloned().collect();
    assert_eq!(unique.len(), records.len(), "SRV records are de-duplicated");
    unique
}

fn ips(text: &[&str]) -> BTreeSet<IpAddr> {
    text.iter().map(|a| a.parse().expect("address")).collect()
}

/// NOERROR, no answer, the SOA of the zone: the name exists, the type does not.
fn assert_no_data(zone: &Zone, name: &str, qtype: RecordType) {
    let reply = ask(zone, name, qtype);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name}");
    assert!(reply.answers.is_empty(), "{name}: {reply}");
    assert_eq!(reply.authorities.len(), 1, "{name}");
    assert_eq!(reply.authorities[0].record_type(), RecordType::SOA, "{name}");
}

#[test]
fn a_mirror_has_its_address() {
    let reply = ask(&shop(), "web-west.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.metadata.authoritative);
    assert!(!reply.metadata.recursion_available && reply.metadata.recursion_desired);
    assert_eq!(reply.metadata.id, 4711);
    assert_eq!(addresses(&reply), ips(&["127.80.0.1"]));
    assert_eq!(reply.answers[0].ttl, 5);
    assert!(reply.authorities.is_empty());
}

#[test]
fn both_address_families_are_answered_apart() {
    let zone = shop();
    let name = "web.shop.svc.clusterset.local.";
    assert_eq!(addresses(&ask(&zone, name, RecordType::A)), ips(&["127.80.0.2"]));
    assert_eq!(addresses(&ask(&zone, name, RecordType::AAAA)), ips(&["fd00::2"]));
}

#[test]
fn a_type_that_a_name_lacks_is_no_data_and_not_nxdomain() {
    let zone = shop();
    assert_no_data(&zone, "web-west.shop.svc.cluster.local.", RecordType::AAAA);
    assert_no_data(&zone, "web-west.shop.svc.cluster.local.", RecordType::HTTPS);
    assert_no_data(&zone, "web.shop.svc.clusterset.local.", RecordType::TXT);
    assert_no_data(&zone, "_http._tcp.web.shop.svc.clusterset.local.", RecordType::A);
    assert_no_data(&zone, "clusterset.local.", RecordType::A);
}

#[test]
fn names_that_exist_only_above_others_are_no_data() {
    let zone = shop();
    for name in [
        "shop.svc.cluster.local.",
        "svc.clusterset.local.",
        "shop.svc.clusterset.local.",
        "_tcp.web.shop.svc.clusterset.local.",
        "_udp.web.shop.svc.clusterset.local.",
        "_tcp.db-west.shop.svc.cluster.local.",
        "ns.dns.clusterset.local.",
        "dns.svc.cluster.local.",
    ] {
        assert_no_data(&zone, name, RecordType::A);
    }
    assert_eq!(rcode(&zone, "_sctp.web.shop.svc.clusterset.local.", RecordType::A), ResponseCode::NXDomain);
}

#[test]
fn unknown_names_inside_our_zones_do_not_exist() {
    let zone = shop();
    for name in [
        "other.shop.svc.cluster.local.",
        "kubernetes.default.svc.cluster.local.",
        "default.svc.cluster.local.",
        "x.web-west.shop.svc.cluster.local.",
        "_nope._tcp.web.shop.svc.clusterset.local.",
        "_http._udp.web.shop.svc.clusterset.local.",
        "http._tcp.web.shop.svc.clusterset.local.",
        "a.b.c.d.web.shop.svc.clusterset.local.",
        "dns-version.svc.clusterset.local.",
        "x.dns-version.clusterset.local.",
        "shop.clusterset.local.",
        "*.shop.svc.clusterset.local.",
    ] {
        let reply = ask(&zone, name, RecordType::A);
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
        assert!(reply.metadata.authoritative && reply.answers.is_empty(), "{name}");
        let RData::SOA(soa) = &reply.authorities[0].data else { panic!("{name}: no SOA") };
        assert_eq!((soa.serial, soa.minimum, reply.authorities[0].ttl), (7, 5, 5));
    }
}

#[test]
fn foreign_names_are_refused() {
    let zone = shop();
    for name in [
        ".",
        "local.",
        "cluster.local.",
        "pod.cluster.local.",
        "example.com.",
        "svc.cluster.local.example.com.",
        "notclusterset.local.",
        "1.0.80.127.in-addr.arpa.",
    ] {
        let reply = ask(&zone, name, RecordType::A);
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{name}");
        assert!(!reply.metadata.authoritative, "{name}");
        assert!(reply.answers.is_empty() && reply.authorities.is_empty(), "{name}");
    }
}

#[test]
fn the_apex_has_soa_and_ns() {
    let zone = shop();
    for apex in ["svc.cluster.local.", "clusterset.local."] {
        let soa = ask(&zone, apex, RecordType::SOA);
        assert_eq!(soa.answers.len(), 1);
        assert_eq!(soa.answers[0].record_type(), RecordType::SOA);
        assert_eq!(soa.answers[0].name.to_string(), apex);
        let ns = ask(&zone, apex, RecordType::NS);
        let RData::NS(server) = &ns.answers[0].data else { panic!("no NS") };
        assert_eq!(server.0.to_string(), format!("ns.dns.{apex}"));
    }
}

#[test]
fn the_version_of_the_dns_schema_is_told() {
    let zone = shop();
    let reply = ask(&zone, "dns-version.clusterset.local.", RecordType::TXT);
    let RData::TXT(text) = &reply.answers[0].data else { panic!("no TXT") };
    assert_eq!(text.to_string(), "1.0.0");
    assert_no_data(&zone, "dns-version.clusterset.local.", RecordType::A);
}

#[test]
fn named_ports_have_srv_names() {
    let zone = shop();
    let target = "web.shop.svc.clusterset.local.".to_owned();
    let reply = ask(&zone, "_http._tcp.web.shop.svc.clusterset.local.", RecordType::SRV);
    assert_eq!(srv(&reply), BTreeSet::from([(80, target.clone())]));
    assert_eq!(reply.additionals.len(), 2, "both addresses of the target come along");
    assert_eq!(
        srv(&ask(&zone, "_quic._udp.web.shop.svc.clusterset.local.", RecordType::SRV)),
        BTreeSet::from([(80, target)])
    );
    assert_eq!(
        srv(&ask(&zone, "_metrics._tcp.web-west.shop.svc.cluster.local.", RecordType::SRV)),
        BTreeSet::from([(9090, "web-west.shop.svc.cluster.local.".to_owned())])
    );
}

#[test]
fn srv_at_the_service_lists_each_port_number_once() {
    // Port 80 exists as TCP and as UDP.
    let reply = ask(&shop(), "web.shop.svc.clusterset.local.", RecordType::SRV);
    let target = "web.shop.svc.clusterset.local.".to_owned();
    assert_eq!(srv(&reply), BTreeSet::from([(80, target.clone()), (9090, target)]));
    let RData::SRV(first) = &reply.answers[0].data else { panic!("no SRV") };
    assert_eq!((first.priority, first.weight), (0, 50));
}

#[test]
fn a_headless_service_is_its_ready_endpoints() {
    let zone = shop();
    assert_eq!(
        addresses(&ask(&zone, "db.shop.svc.clusterset.local.", RecordType::A)),
        ips(&["127.80.1.10", "127.80.1.11", "127.80.1.20"])
    );
    assert_eq!(
        addresses(&ask(&zone, "db-west.shop.svc.cluster.local.", RecordType::A)),
        ips(&["127.80.1.10", "127.80.1.11"])
    );
    assert_no_data(&zone, "db.shop.svc.clusterset.local.", RecordType::AAAA);
}

/// A listener of another program would answer at an address at which our gateway does not listen.
#[test]
fn a_withheld_address_leaves_the_name_without_records() {
    let web = [port("http", Protocol::Tcp, 80)];
    let away = HeadlessEndpoint { address: None, ..endpoint("db-0", "west", "127.80.1.10", true) };
    let headless = |name: &str, hosts: &[&HeadlessEndpoint]| Service {
        headless: Some(hosts.iter().map(|&host| host.clone()).collect()),
        ..service(ZoneName::Clusterset, "shop", name, &[], &web)
    };
    let zone = Zone::build(
        vec![
            service(ZoneName::Clusterset, "shop", "web", &[], &web),
            headless("db", &[&away, &endpoint("db-1", "west", "127.80.1.11", true)]),
            headless("dark", &[&away]),
        ],
        7,
    );
    for name in [
        "web.shop.svc.clusterset.local.",
        "dark.shop.svc.clusterset.local.",
        "db-0.west.db.shop.svc.clusterset.local.",
        "db-0.west.dark.shop.svc.clusterset.local.",
    ] {
        assert_no_data(&zone, name, RecordType::A);
        assert_eq!(ask(&zone, name, RecordType::A).authorities[0].ttl, 5, "forgotten soon");
    }
    for name in ["web", "_http._tcp.web", "dark", "_http._tcp.dark"] {
        assert_no_data(&zone, &format!("{name}.shop.svc.clusterset.local."), RecordType::SRV);
    }
    let db = "db.shop.svc.clusterset.local.";
    assert_eq!(addresses(&ask(&zone, db, RecordType::A)), ips(&["127.80.1.11"]), "the others serve");
    let srv = srv(&ask(&zone, &format!("_http._tcp.{db}"), RecordType::SRV));
    assert_eq!(srv, BTreeSet::from([(80, format!("db-1.west.{db}"))]));
}

#[test]
fn endpoints_of_a_headless_service_have_names() {
    let zone = shop();
    for (name, address) in [
        ("db-0.west.db.shop.svc.clusterset.local.", "127.80.1.10"),
        ("db-0.north.db.shop.svc.clusterset.local.", "127.80.1.20"),
        ("db-1.db-west.shop.svc.cluster.local.", "127.80.1.11"),
    ] {
        assert_eq!(addresses(&ask(&zone, name, RecordType::A)), ips(&[address]), "{name}");
    }
    for name in [
        "db-2.west.db.shop.svc.clusterset.local.", // not ready
        "db-2.db-west.shop.svc.cluster.local.",
        "db-1.north.db.shop.svc.clusterset.local.", // of another cluster
        "db-0.db.shop.svc.clusterset.local.",       // without its cluster
    ] {
        assert_eq!(rcode(&zone, name, RecordType::A), ResponseCode::NXDomain, "{name}");
    }
}

#[test]
fn headless_srv_has_a_record_per_endpoint_and_port() {
    let zone = shop();
    let hosts = ["db-0.west", "db-1.west", "db-0.north"].map(|host| format!("{host}.db.shop.svc.clusterset.local."));
    let named = ask(&zone, "_sql._tcp.db.shop.svc.clusterset.local.", RecordType::SRV);
    assert_eq!(srv(&named), hosts.iter().map(|host| (5432, host.clone())).collect());
    assert_eq!(named.additionals.len(), 3);
    let all = ask(&zone, "db.shop.svc.clusterset.local.", RecordType::SRV);
    assert_eq!(srv(&all), hosts.iter().flat_map(|host| [(5432, host.clone()), (9187, host.clone())]).collect());
}

#[test]
fn the_name_of_a_cluster_alone_does_not_exist() {
    let zone = shop();
    for name in ["west.db.shop.svc.clusterset.local.", "west.web.shop.svc.clusterset.local."] {
        for qtype in [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::TXT] {
            assert_eq!(rcode(&zone, name, qtype), ResponseCode::NXDomain, "{name}");
        }
    }
}

#[test]
fn a_headless_service_without_ready_endpoints_does_not_exist() {
    let zone = shop();
    for name in [
        "idle.shop.svc.clusterset.local.",
        "_sql._tcp.idle.shop.svc.clusterset.local.",
        "_tcp.idle.shop.svc.clusterset.local.",
        "idle-0.west.idle.shop.svc.clusterset.local.",
    ] {
        assert_eq!(rcode(&zone, name, RecordType::A), ResponseCode::NXDomain, "{name}");
        assert_eq!(rcode(&zone, name, RecordType::SRV), ResponseCode::NXDomain, "{name}");
    }
}

#[test]
fn letter_case_does_not_matter_and_comes_back_as_it_went() {
    let zone = shop();
    let name = Name::from_ascii("wEb-WeST.SHop.sVC.clUSTer.LOcaL.").expect("name");
    let reply = ask(&zone, &name.to_ascii(), RecordType::A);
    assert_eq!(addresses(&reply), ips(&["127.80.0.1"]));
    assert!(reply.queries[0].name().eq_case(&name));
    assert!(reply.answers[0].name.eq_case(&name));
    assert_eq!(srv(&ask(&zone, "_HTTP._Tcp.web.shop.svc.CLUSTERSET.local.", RecordType::SRV)).len(), 1);
}

#[test]
fn headless_answers_come_in_random_order() {
    let zone = shop();
    let request = query("db.shop.svc.clusterset.local.", RecordType::A).to_vec().expect("encodes");
    let mut rng = StdRng::seed_from_u64(5);
    let mut firsts = BTreeSet::new();
    for _ in 0..64 {
        let Reply::Send { bytes, .. } = respond(&zone, &request, Transport::Udp, &mut rng) else { panic!("no reply") };
        let reply = Message::from_vec(&bytes).expect("message");
        firsts.insert(reply.answers[0].data.to_string());
    }
    assert_eq!(firsts.len(), 3, "each endpoint stands first at times");
}

/// `count` ready endpoints of one headless service.
fn crowd(count: usize) -> Zone {
    let hosts = (0..count)
        .map(|i| endpoint(&format!("pod-{i}"), "west", &format!("127.81.{}.{}", i / 250, i % 250 + 1), true))
        .collect();
    let db = service(ZoneName::Clusterset, "shop", "db", &[], &[port("sql", Protocol::Tcp, 5432)]);
    Zone::build(vec![Service { headless: Some(hosts), ..db }], 1)
}

#[test]
fn what_does_not_fit_a_datagram_comes_over_tcp() {
    let name = "db.shop.svc.clusterset.local.";
    let zone = crowd(60);
    let small = query(name, RecordType::A);
    let large = with_edns(query(name, RecordType::A), 4096);

    let reply = exchange(&zone, &small, Transport::Udp);
    assert!(reply.metadata.truncation && reply.answers.is_empty());
    assert_eq!(reply.queries.len(), 1);

    // 60 records of 16 bytes do not fit 512 bytes and do fit 1,232.
    let bytes = send(&zone, &large.to_vec().expect("encodes"), Transport::Udp).expect("reply");
    assert!(bytes.len() > 512 && bytes.len() <= 1232, "{}", bytes.len());
    assert_eq!(addresses(&Message::from_vec(&bytes).expect("message")).len(), 60);

    let zone = crowd(100);
    let bytes = send(&zone, &large.to_vec().expect("encodes"), Transport::Udp).expect("reply");
    let reply = Message::from_vec(&bytes).expect("message");
    assert!(reply.metadata.truncation && reply.answers.is_empty(), "1,232 is the end even if the client takes 4,096");
    assert_eq!(reply.edns.expect("OPT stays").max_payload(), 1232);
    assert_eq!(addresses(&exchange(&zone, &large, Transport::Tcp)).len(), 100);
}

#[test]
fn the_largest_services_fit_a_tcp_reply() {
    let zone = crowd(2_000);
    for (name, qtype, expected) in [
        ("db.shop.svc.clusterset.local.", RecordType::A, 1_000),
        ("db.shop.svc.clusterset.local.", RecordType::SRV, 200),
    ] {
        let reply = exchange(&zone, &query(name, qtype), Transport::Tcp);
        assert!(!reply.metadata.truncation);
        assert_eq!(reply.answers.len(), expected);
    }
}

#[test]
fn additional_records_give_way_before_answers() {
    // 16 SRV records fit 1,232 bytes, with their addresses they do not.
    let zone = crowd(16);
    let request = with_edns(query("_sql._tcp.db.shop.svc.clusterset.local.", RecordType::SRV), 1232);
    let reply = exchange(&zone, &request, Transport::Udp);
    assert!(!reply.metadata.truncation);
    assert_eq!((srv(&reply).len(), reply.additionals.len()), (16, 0));
    assert!(reply.edns.is_some());
}

#[test]
fn edns_is_answered_with_edns() {
    let zone = shop();
    let name = "web-west.shop.svc.cluster.local.";
    assert!(exchange(&zone, &query(name, RecordType::A), Transport::Udp).edns.is_none());
    let mut request = with_edns(query(name, RecordType::A), 512);
    if let Some(edns) = &mut request.edns {
        edns.set_dnssec_ok(true);
    }
    let edns = exchange(&zone, &request, Transport::Udp).edns.expect("OPT");
    assert_eq!((edns.version(), edns.max_payload(), edns.flags().dnssec_ok), (0, 1232, true));

    if let Some(edns) = &mut request.edns {
        edns.set_version(1);
    }
    let reply = exchange(&zone, &request, Transport::Udp);
    // The number 16 is also called BADSIG.
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    assert!(reply.answers.is_empty());
}

#[test]
fn whole_nodes_whole_zones_and_other_classes_are_refused() {
    let zone = shop();
    let name = "db.shop.svc.clusterset.local.";
    for qtype in [RecordType::ANY, RecordType::AXFR, RecordType::IXFR, RecordType::OPT, RecordType::Unknown(253)] {
        let reply = exchange(&zone, &query(name, qtype), Transport::Tcp);
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{qtype}");
        assert!(reply.answers.is_empty() && reply.authorities.is_empty());
    }
    for class in [DNSClass::CH, DNSClass::HS, DNSClass::ANY, DNSClass::NONE] {
        let mut request = query("version.bind.", RecordType::TXT);
        request.queries[0].set_query_class(class);
        assert_eq!(exchange(&zone, &request, Transport::Udp).metadata.response_code, ResponseCode::Refused);
    }
}

#[test]
fn the_first_of_two_services_with_one_name_counts() {
    let zone = Zone::build(
        vec![
            service(ZoneName::Clusterset, "shop", "web", &["127.80.0.1"], &[]),
            service(ZoneName::Clusterset, "shop", "web", &["127.80.0.2"], &[]),
        ],
        1,
    );
    assert_eq!(addresses(&ask(&zone, "web.shop.svc.clusterset.local.", RecordType::A)), ips(&["127.80.0.1"]));
}

#[test]
fn repeated_addresses_are_one_record() {
    let zone = Zone::build(
        vec![service(ZoneName::Clusterset, "shop", "web", &["127.80.0.1", "127.80.0.1", "::1", "::1"], &[])],
        1,
    );
    for qtype in [RecordType::A, RecordType::AAAA] {
        assert_eq!(ask(&zone, "web.shop.svc.clusterset.local.", qtype).answers.len(), 1);
    }
}

#[test]
fn an_empty_zone_still_knows_its_borders() {
    let zone = Zone::default();
    assert_eq!(rcode(&zone, "web.shop.svc.clusterset.local.", RecordType::A), ResponseCode::NXDomain);
    assert_eq!(rcode(&zone, "example.com.", RecordType::A), ResponseCode::Refused);
    assert_eq!(ask(&zone, "clusterset.local.", RecordType::SOA).answers.len(), 1);
}
