use std::collections::BTreeMap;
use std::net::SocketAddr;

use linkspan_proto::configuration::PortTransport;
use linkspan_proto::configuration::{self, DefaultPolicy, Endpoint, ExportRule, Resource};
use linkspan_proto::identity::Assurance;
use linkspan_proto::stream_header::{StreamHeader, StreamKind};
use proptest::prelude::*;

use super::*;
use crate::backend::Endpoints;
use crate::discovery::Snapshot;
use crate::link::PeerInfo;
use crate::route::{Own, RouteTable};

pub(crate) fn own() -> Own {
    Own { cluster: "east".parse().expect("cluster"), trust_domain: "east.linkspan.internal".parse().expect("domain") }
}

fn peer(name: &str, default_policy: DefaultPolicy) -> PeerInfo {
    let trust_domain: TrustDomain = format!("{name}.linkspan.internal").parse().expect("domain");
    PeerInfo {
        cluster: name.parse().expect("cluster"),
        gateway: SpiffeId::gateway(&trust_domain),
        trust_domain,
        remote: "192.0.2.1:4143".parse().expect("address"),
        default_policy,
    }
}

fn source(identity: &str, assurance: Assurance) -> Source {
    Source::new(identity.parse().expect("identity"), assurance)
}

const CART: &str = "spiffe://west.linkspan.internal/ns/shop/sa/cart";

fn header(service: &str, port: u16) -> StreamHeader {
    StreamHeader {
        service: Some(service.parse().expect("service")),
        port,
        source: Some(source(CART, Assurance::Network)),
        path: vec!["west".parse().expect("cluster")],
        ..StreamHeader::new(StreamKind::Tcp)
    }
}

fn export(name: &str, port: u16, endpoints: &[(&str, Option<&str>)], rules: Option<Vec<ExportRule>>) -> Resource {
    let endpoint = |(address, name): &(&str, Option<&str>)| Endpoint {
        address: address.parse().expect("address"),
        name: name.map(|name| name.parse().expect("endpoint")),
        ready: true,
    };
    Resource::Export(configuration::Export {
        service: name.parse().expect("service"),
        ports: vec![configuration::ExportPort {
            port,
            transport: Default::default(),
            name: None,
            app_protocol: None,
            endpoints: endpoints.iter().map(endpoint).collect(),
        }],
        rules,
        proxy_protocol: false,
    })
}

fn table(resources: impl IntoIterator<Item = Resource>) -> RouteTable {
    let resources: BTreeMap<_, _> =
        resources.into_iter().map(|resource| (resource.key(), Arc::new(resource))).collect();
    RouteTable::build(&Arc::new(Snapshot { generation: 1, resources }), &own())
}

fn web(rules: Option<Vec<ExportRule>>) -> RouteTable {
    table([export("shop/web", 80, &[("10.0.0.1:8080", None)], rules)])
}

/// A caller of `shop/web`, for tests of later stages.
pub(crate) fn admitted() -> Admitted {
    admitted_to(&web(None))
}

pub(crate) fn admitted_to(table: &RouteTable) -> Admitted {
    authorize(table, &peer("west", DefaultPolicy::Allow), &header("shop/web", 80)).expect("allowed")
}

/// A table with `shop/web` port 80 at these endpoints.
pub(crate) fn web_at(endpoints: &[SocketAddr]) -> RouteTable {
    let texts: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
    let endpoints: Vec<_> = texts.iter().map(|text| (text.as_str(), None)).collect();
    table([export("shop/web", 80, &endpoints, None)])
}

/// A table with `shop/web` port 80 that nobody may call.
pub(crate) fn denying() -> RouteTable {
    web(Some(Vec::new()))
}

fn refusal(table: &RouteTable, peer: &PeerInfo, header: &StreamHeader) -> Option<Refusal> {
    authorize(table, peer, header).err().map(|refused| refused.refusal())
}

#[test]
fn an_exported_service_is_reachable() {
    let admitted = admitted();
    assert_eq!(admitted.service().to_string(), "shop/web");
    assert_eq!(admitted.cluster(), &"west");
    assert_eq!(admitted.source().identity.as_str(), CART);
}

#[test]
fn what_was_admitted_is_reviewed_by_the_table_in_force() {
    let reviewed = |admitted: &Admitted, table: &RouteTable| review(table, admitted).err().map(|no| no.refusal());
    let admitted = admitted();
    assert_eq!(reviewed(&admitted, &web(None)), None);
    assert_eq!(reviewed(&admitted, &denying()), Some(Refusal::Denied));
    assert_eq!(reviewed(&admitted, &table([])), Some(Refusal::UnknownExport));
    let other_port = table([export("shop/web", 81, &[("10.0.0.1:8080", None)], None)]);
    assert_eq!(reviewed(&admitted, &other_port), Some(Refusal::UnknownExport));
    assert_eq!(reviewed(&admitted, &web_at(&[])), None, "an endpoint that ends may still be answering");
    // What the Link says now where no policy does.
    let open = web(None);
    let link = |default_policy| {
        Resource::Peer(configuration::Peer {
            cluster: "west".parse().expect("cluster"),
            trust_domain: "west.linkspan.internal".parse().expect("domain"),
            trust_bundle: String::new(),
            addresses: Vec::new(),
            default_policy,
            transport: configuration::Transport::Auto,
            congestion: Default::default(),
        })
    };
    let exported = || export("shop/web", 80, &[("10.0.0.1:8080", None)], None);
    let with = |default_policy| table([exported(), link(default_policy)]);
    assert_eq!(reviewed(&admitted, &with(DefaultPolicy::Deny)), Some(Refusal::Denied));
    assert_eq!(reviewed(&admitted, &with(DefaultPolicy::Allow)), None);
    let service = "shop/web".parse().expect("service");
    let local = admit_local(&open, &service, (PortTransport::Tcp, 80), None, source(CART, Assurance::Network))
        .expect("exported");
    assert_eq!(reviewed(&local, &denying()), None, "policies are for peers");
}

#[test]
fn s_14_nothing_else_is() {
    let west = peer("west", DefaultPolicy::Allow);
    let table = web(None);
    for (service, port) in
        [("shop/web", 81), ("shop/web", 8080), ("shop/db", 80), ("default/kubernetes", 443), ("web/shop", 80)]
    {
        assert_eq!(refusal(&table, &west, &header(service, port)), Some(Refusal::UnknownExport), "{service} {port}");
    }
    let mut named = header("shop/web", 80);
    named.endpoint = Some("web-0".parse().expect("endpoint"));
    assert_eq!(refusal(&table, &west, &named), Some(Refusal::UnknownExport));
    let mut nothing = header("shop/web", 80);
    nothing.service = None;
    assert_eq!(refusal(&table, &west, &nothing), Some(Refusal::BadHeader));
}

#[test]
fn a_named_endpoint_is_that_endpoint_alone() {
    let endpoints = [("10.0.0.1:80", Some("db-0")), ("10.0.0.2:80", Some("db-1"))];
    let table = table([export("shop/db", 80, &endpoints, None)]);
    let mut header = header("shop/db", 80);
    header.endpoint = Some("db-1".parse().expect("endpoint"));
    let admitted = authorize(&table, &peer("west", DefaultPolicy::Allow), &header).expect("allowed");
    for _ in 0..50 {
        let picked = Endpoints::of(&admitted).pick(&[]).expect("endpoint");
        assert_eq!(picked.address(), "10.0.0.2:80".parse().expect("address"));
    }
}

#[test]
fn a_loop_is_refused_at_the_first_repeat() {
    let table = web(None);
    let west = peer("west", DefaultPolicy::Allow);
    let path = |names: &[&str]| StreamHeader {
        path: names.iter().map(|name| name.parse().expect("cluster")).collect(),
        ..header("shop/web", 80)
    };
    for looped in [&["east"][..], &["east", "west"], &["north", "east", "west"]] {
        assert_eq!(refusal(&table, &west, &path(looped)), Some(Refusal::Loop), "{looped:?}");
    }
    let long: Vec<String> = (0..9).map(|index| format!("c{index}")).collect();
    let long: Vec<_> = long.iter().map(String::as_str).collect();
    assert_eq!(refusal(&table, &west, &path(&long)), Some(Refusal::Loop));
    assert_eq!(refusal(&table, &west, &path(&long[..8])), None);
}

/// S-03: of five peers asserting five trust domains only the diagonal passes.
#[test]
fn domain_matrix() {
    let names = ["west", "north", "south", "dr", "lab"];
    let table = web(None);
    for linked in names {
        for asserted in names {
            let identity = format!("spiffe://{asserted}.linkspan.internal/ns/shop/sa/cart");
            let header = StreamHeader { source: Some(source(&identity, Assurance::Mtls)), ..header("shop/web", 80) };
            let expected = (linked != asserted).then_some(Refusal::IdentityMismatch);
            assert_eq!(refusal(&table, &peer(linked, DefaultPolicy::Allow), &header), expected);
        }
    }
    // A domain that merely begins or ends alike is another one.
    for identity in ["spiffe://west.linkspan.internal.evil/ns/a/sa/b", "spiffe://evil.west.linkspan.internal/ns/a/sa/b"]
    {
        let header = StreamHeader { source: Some(source(identity, Assurance::Mtls)), ..header("shop/web", 80) };
        assert_eq!(refusal(&table, &peer("west", DefaultPolicy::Allow), &header), Some(Refusal::IdentityMismatch));
    }
}

#[test]
fn without_a_policy_the_link_decides() {
    let table = web(None);
    assert_eq!(refusal(&table, &peer("west", DefaultPolicy::Allow), &header("shop/web", 80)), None);
    assert_eq!(refusal(&table, &peer("west", DefaultPolicy::Deny), &header("shop/web", 80)), Some(Refusal::Denied));
}

#[test]
fn a_policy_without_rules_denies_all() {
    let table = web(Some(Vec::new()));
    assert_eq!(refusal(&table, &peer("west", DefaultPolicy::Allow), &header("shop/web", 80)), Some(Refusal::Denied));
}

#[test]
fn every_condition_of_a_rule_must_hold_and_one_rule_suffices() {
    let west = peer("west", DefaultPolicy::Deny);
    let allowed = |rules: Vec<ExportRule>| refusal(&web(Some(rules)), &west, &header("shop/web", 80)).is_none();
    let rule = ExportRule::default;
    let id = |text: &str| -> SpiffeId { text.parse().expect("identity") };
    let name = |text: &str| -> ClusterName { text.parse().expect("cluster") };
    assert!(allowed(vec![rule()]));
    assert!(allowed(vec![ExportRule { peers: vec![name("west")], ..rule() }]));
    assert!(!allowed(vec![ExportRule { peers: vec![name("north")], ..rule() }]));
    assert!(allowed(vec![ExportRule { identities: vec![id(CART)], ..rule() }]));
    assert!(!allowed(vec![ExportRule {
        identities: vec![id("spiffe://west.linkspan.internal/ns/shop/sa/car")],
        ..rule()
    }]));
    for (prefix, expected) in [
        ("spiffe://west.linkspan.internal/ns/shop", true),
        (CART, true),
        ("spiffe://west.linkspan.internal/ns/sho", false),
        ("spiffe://west.linkspan.internal/ns/shop/sa/ca", false),
        ("spiffe://westxlinkspan.internal/ns/shop", false),
    ] {
        let rules = vec![ExportRule { identity_prefixes: vec![id(prefix)], ..rule() }];
        assert_eq!(allowed(rules), expected, "{prefix}");
    }
    assert!(allowed(vec![ExportRule { ports: vec![80], ..rule() }]));
    assert!(!allowed(vec![ExportRule { ports: vec![81], ..rule() }]));
    assert!(allowed(vec![ExportRule { minimum_assurance: Assurance::Network, ..rule() }]));
    assert!(!allowed(vec![ExportRule { minimum_assurance: Assurance::Mtls, ..rule() }]));
    let other = ExportRule { peers: vec![name("north")], ..rule() };
    assert!(allowed(vec![other.clone(), ExportRule { identities: vec![id(CART)], ..rule() }]));
    // Two half-right rules do not make a right one.
    assert!(!allowed(vec![other, ExportRule { minimum_assurance: Assurance::Mtls, ..rule() }]));
}

#[test]
fn a_local_call_needs_the_export_but_no_rule() {
    let table = web(Some(Vec::new()));
    let call = |name: &str, port: u16| {
        let caller = source("spiffe://east.linkspan.internal/ns/shop/sa/cart", Assurance::Network);
        admit_local(&table, &name.parse().expect("service"), (PortTransport::Tcp, port), None, caller)
    };
    assert_eq!(call("shop/web", 80).expect("exported").cluster(), &"east");
    assert!(matches!(call("shop/web", 81), Err(Refused::UnknownExport { .. })));
    assert!(matches!(call("shop/db", 80), Err(Refused::UnknownExport { .. })));
}

/// The same answer for a service that is not exported, for one that is not there and for a port that is not, so that nobody
/// learns by asking what there is.
#[test]
fn s_14_of_ten_thousand_made_up_services_none_is_known() {
    let table = web(None);
    let west = peer("west", DefaultPolicy::Allow);
    for number in 0..10_000_u16 {
        for name in [format!("shop/web-{number}"), format!("ns-{number}/web"), "shop/web".to_owned()] {
            // 80 is the one that is exported.
            let port = if name == "shop/web" { number + 81 } else { 80 };
            assert_eq!(refusal(&table, &west, &header(&name, port)), Some(Refusal::UnknownExport), "{name}:{port}");
        }
    }
}

#[test]
fn s_29_one_peer_cannot_take_all_places() {
    let limits = Limits::new(10);
    let (west, north) = ("west".parse().expect("cluster"), "north".parse().expect("cluster"));
    let mut tickets: Vec<_> = (0..5).map(|_| limits.enter(&west).expect("place")).collect();
    assert_eq!(limits.enter(&west).err().map(|refused| refused.refusal()), Some(Refusal::Overloaded));
    tickets.extend((0..5).map(|_| limits.enter(&north).expect("place")));
    assert_eq!(limits.in_use(), 10);
    let third = "south".parse().expect("cluster");
    assert!(limits.enter(&third).is_err());
    tickets.pop();
    assert!(limits.enter(&third).is_ok());
    drop(tickets);
    assert_eq!(limits.in_use(), 0);
}

/// Names that exist and names that do not, so that both happen often.
fn any_service() -> impl Strategy<Value = String> {
    prop_oneof![Just("shop/web".to_owned()), Just("shop/db".to_owned()), "[a-z]{1,5}/[a-z0-9]{1,5}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// S-15: whatever a header asks for, an address that can be dialled is one of the export that it names, and only
    /// when every check passed.
    #[test]
    fn s_15_what_is_dialled_is_in_the_export_table(
        service in any_service(),
        port in prop_oneof![Just(80_u16), Just(5432), any::<u16>()],
        endpoint in prop_oneof![Just(None), Just(Some("db-0")), Just(Some("db-9"))],
        domain in prop_oneof![Just("west"), Just("north")],
        assurance in prop_oneof![Just(Assurance::Gateway), Just(Assurance::Network), Just(Assurance::Mtls)],
        path in proptest::collection::vec(prop_oneof![Just("west"), Just("north"), Just("east")], 0..10),
        deny in any::<bool>(),
        client in prop_oneof![Just(None), Just(Some("169.254.169.254:80")), Just(Some("[::1]:4191"))],
    ) {
        let rules = vec![ExportRule { minimum_assurance: Assurance::Network, ..ExportRule::default() }];
        let db = [("10.0.0.2:5432", Some("db-0")), ("10.0.0.3:5432", Some("db-1"))];
        let table = table([
            export("shop/web", 80, &[("10.0.0.1:8080", None)], Some(rules)),
            export("shop/db", 5432, &db, None),
        ]);
        let peer = peer("west", if deny { DefaultPolicy::Deny } else { DefaultPolicy::Allow });
        let header = StreamHeader {
            service: Some(service.parse().expect("service")),
            port,
            endpoint: endpoint.map(|name| name.parse().expect("endpoint")),
            source: Some(source(&format!("spiffe://{domain}.linkspan.internal/ns/a/sa/b"), assurance)),
            path: path.iter().map(|name| name.parse().expect("cluster")).collect(),
            client: client.map(|address| address.parse().expect("address")),
            ..StreamHeader::new(StreamKind::Tcp)
        };
        let allowed = match (service.as_str(), port, endpoint) {
            ("shop/web", 80, None) if assurance >= Assurance::Network => vec!["10.0.0.1:8080"],
            ("shop/db", 5432, None) if !deny => vec!["10.0.0.2:5432", "10.0.0.3:5432"],
            ("shop/db", 5432, Some("db-0")) if !deny => vec!["10.0.0.2:5432"],
            _ => Vec::new(),
        };
        let honest = domain == "west" && !path.contains(&"east") && path.len() <= MAX_HOPS;
        match authorize(&table, &peer, &header) {
            Err(_) => prop_assert!(allowed.is_empty() || !honest),
            Ok(admitted) => {
                prop_assert!(honest);
                let mut tried = Vec::new();
                while let Ok(picked) = Endpoints::of(&admitted).pick(&tried) {
                    prop_assert!(allowed.contains(&picked.address().to_string().as_str()));
                    tried.push(picked.address());
                }
                prop_assert_eq!(tried.len(), allowed.len());
            }
        }
    }
}
