use std::net::IpAddr;
use std::sync::Arc;

use linkspan_proto::configuration::Tier;
use proptest::prelude::*;

use super::*;
use crate::mirror::{Addresses, faces, object};
use crate::testkit::{cluster as name, entry, headless, key};

const RANGE: &str = "127.80.0.0/12";

fn ground(linked: &[&str]) -> Ground {
    Ground::new(name("east"), linked.iter().map(|peer| name(peer)).collect())
}

fn addresses() -> Fronts {
    Addresses::new(RANGE.parse().unwrap()).into()
}

fn mirror(cluster: &str, entry: &CatalogueEntry, local: &[&str]) -> Result<Wanted, Box<Refused>> {
    let locals: Vec<_> = local.iter().map(|text| key(text)).collect();
    let member = Member { cluster: &name(cluster), entry };
    let taken = Taken { locally: &|key| locals.contains(key), by_peer: &|_| false };
    super::cluster(&ground(&["west", "north"]), member, taken, &mut addresses())
}

fn import(members: &[(&str, Arc<CatalogueEntry>)], traffic: Option<&Traffic>) -> (Wanted, Conflicts) {
    let named: Vec<_> = members.iter().map(|(cluster, entry)| (name(cluster), Arc::clone(entry))).collect();
    let members: Vec<_> = named.iter().map(|(cluster, entry)| Member { cluster, entry }).collect();
    clusterset(&ground(&["west", "north"]), &members, traffic, &mut addresses()).unwrap()
}

fn numbers(wanted: &Wanted) -> Vec<String> {
    wanted
        .ports
        .iter()
        .map(|port| match &port.name {
            Some(name) => format!("{name}:{}", port.number),
            None => port.number.to_string(),
        })
        .collect()
}

fn tiers(wanted: &Wanted) -> Vec<String> {
    let Shape::Single { tiers, .. } = &wanted.shape else { panic!("headless") };
    tiers
        .iter()
        .map(|tier| {
            tier.clusters.iter().map(|(cluster, weight)| format!("{cluster}={weight}")).collect::<Vec<_>>().join(",")
        })
        .collect()
}

fn reason(verdicts: &[Verdict], kind: &str) -> String {
    let verdict = verdicts.iter().find(|verdict| verdict.kind == kind).unwrap();
    format!("{}:{}", verdict.status.as_str(), verdict.reason)
}

#[test]
fn a_peers_service_gets_a_name_and_an_address_here() {
    let wanted = mirror("west", &entry("shop/web", &["http:80", "443", "dns:53/UDP"], 2), &[]).unwrap();
    assert_eq!(wanted.object, key("shop/web-west"));
    assert_eq!(wanted.name, "web-west.shop.svc.cluster.local");
    assert_eq!(tiers(&wanted), ["west=1"]);
    assert_eq!(reason(&wanted.verdicts, "Accepted"), "True:Accepted");
    assert_eq!(reason(&wanted.verdicts, "Conflict"), "False:NoConflicts");
    let listeners = faces::listeners(&wanted);
    let Shape::Single { front: Front::Address(address), .. } = wanted.shape else { panic!() };
    let ports: Vec<_> = listeners[0].ports.iter().map(|port| port.listen.to_string()).collect();
    assert_eq!(ports, [format!("{address}:80"), format!("{address}:443"), format!("{address}:53")]);
    let udp: Vec<_> = listeners[0].ports.iter().map(|port| !port.transport.is_tcp()).collect();
    assert_eq!(udp, [false, false, true]);
    assert_eq!(listeners[0].service, key("shop/web"));
    assert_eq!(faces::dns(&wanted).ports.len(), 3);
}

/// S-35.
#[test]
fn names_that_are_not_for_peers_are_refused() {
    for (service, local, expected) in [
        ("shop/web", "shop/web-west", "False:NameInUse"),
        ("kube-system/web", "", "False:ReservedName"),
        ("kube-public/web", "", "False:ReservedName"),
        ("kube-node-lease/web", "", "False:ReservedName"),
        ("default/web", "", "False:ReservedName"),
        ("linkspan/web", "", "False:ReservedName"),
        ("shop/kubernetes", "", "False:ReservedName"),
        ("shop/kube-dns", "", "False:ReservedName"),
    ] {
        let local: Vec<_> = Some(local).filter(|local| !local.is_empty()).into_iter().collect();
        let refused = mirror("west", &entry(service, &["80"], 1), &local).unwrap_err();
        assert_eq!(reason(&refused.verdicts, "Accepted"), expected, "{service}");
        assert!(reason(&refused.verdicts, "Conflict").starts_with("True:"), "{service}");
        assert!(!refused.wants_front);
    }
    assert!(mirror("west", &entry("shop/dns", &["53/UDP"], 1), &[]).is_ok());
    let refused = mirror("west", &entry("shop/calls", &["2905/SCTP"], 1), &[]).unwrap_err();
    assert_eq!(reason(&refused.verdicts, "Accepted"), "False:UnsupportedProtocol");
    assert_eq!(reason(&refused.verdicts, "Conflict"), "False:NoConflicts");
    assert!(mirror("west", &entry("shop/web", &["80"], 1), &["shop/web", "bank/web-west"]).is_ok());
}

#[test]
fn a_headless_service_has_one_address_for_each_endpoint() {
    let wanted = mirror("west", &headless("shop/db", &["db-0", "!db-1"]), &[]).unwrap();
    let Shape::Headless { hosts } = &wanted.shape else { panic!() };
    assert_eq!(hosts[0].name, "db-0.db-west.shop.svc.cluster.local");
    assert_ne!(hosts[0].front, hosts[1].front);
    assert_eq!(hosts.iter().map(|host| host.ready).collect::<Vec<_>>(), [true, false]);
    let listeners = faces::listeners(&wanted);
    assert_eq!(listeners.len(), 2);
    assert_eq!(listeners[1].endpoint, Some(EndpointName::parse("db-1").unwrap()));
    assert_eq!(faces::dns(&wanted).headless.unwrap().len(), 2);

    let (wanted, _) =
        import(&[("east", headless("shop/db", &["db-0"])), ("west", headless("shop/db", &["db-0"]))], None);
    let Shape::Headless { hosts } = &wanted.shape else { panic!() };
    let names: Vec<_> = hosts.iter().map(|host| host.name.as_str()).collect();
    assert_eq!(names, ["db-0.east.db.shop.svc.clusterset.local", "db-0.west.db.shop.svc.clusterset.local"]);
}

#[test]
fn names_that_dns_cannot_carry_are_left_out() {
    let long = "a".repeat(63);
    let service = format!("{long}/{long}");
    let endpoint = "e".repeat(63);
    let (wanted, _) = import(&[(&"w".repeat(63), headless(&service, &[&endpoint, "e-1"]))], None);
    let Shape::Headless { hosts } = &wanted.shape else { panic!() };
    assert_eq!(hosts.len(), 1);
    assert_eq!(reason(&wanted.verdicts, "Accepted"), "False:NameTooLong");
}

#[test]
fn an_import_is_the_union_and_the_order_of_clusters_decides() {
    // (ports of each cluster in order of precedence) -> (merged ports, conflict)
    type Case<'a> = (&'a [&'a [&'a str]], &'a [&'a str], &'a str);
    let table: [Case<'_>; 7] = [
        (&[&["http:80"], &["http:80"]], &["http:80"], "False:NoConflicts"),
        (&[&["http:80"], &["http:80", "grpc:90"]], &["http:80", "grpc:90"], "True:PortConflict"),
        (&[&["http:80"], &["http:81"]], &["http:80"], "True:PortConflict"),
        (&[&["http:80"], &["web:80"]], &["http:80"], "True:PortConflict"),
        (&[&["80"], &["81"]], &["80"], "True:PortConflict"),
        (&[&["http:80"], &["http:80", "sctp:142/SCTP"]], &["http:80", "sctp:142"], "True:PortConflict"),
        (&[&["a:1"], &["b:2"], &["a:2", "c:3"]], &["a:1", "b:2", "c:3"], "True:PortConflict"),
    ];
    for (ports, merged, conflict) in table {
        let members: Vec<_> = ["east", "north", "west"]
            .into_iter()
            .zip(ports)
            .map(|(cluster, ports)| (cluster, entry("shop/web", ports, 1)))
            .collect();
        let (wanted, _) = import(&members, None);
        assert_eq!(numbers(&wanted), merged, "{ports:?}");
        assert_eq!(reason(&wanted.verdicts, "Conflict"), conflict, "{ports:?}");
        assert_eq!(wanted.name, "web.shop.svc.clusterset.local");
    }
}

#[test]
fn clusters_of_another_type_do_not_take_part() {
    let (wanted, conflicts) =
        import(&[("east", entry("shop/web", &["80"], 1)), ("west", headless("shop/web", &["a"]))], None);
    assert!(matches!(wanted.shape, Shape::Single { .. }));
    assert_eq!(wanted.clusters, [name("east")]);
    assert_eq!(conflicts.reasons().collect::<Vec<_>>(), ["TypeConflict"]);
    assert_eq!(reason(&wanted.verdicts, "Conflict"), "True:TypeConflict");
}

#[test]
fn without_a_policy_local_comes_first_and_peers_are_alike() {
    let web = || entry("shop/web", &["80"], 1);
    let (wanted, _) = import(&[("east", web()), ("north", web()), ("west", web())], None);
    assert_eq!(tiers(&wanted), ["east=1", "north=1,west=1"]);
    let (wanted, _) = import(&[("north", web()), ("west", web())], None);
    assert_eq!(tiers(&wanted), ["north=1,west=1"], "a local service that is not exported is no member");
    let (wanted, _) = import(&[("east", web())], None);
    assert_eq!(tiers(&wanted), ["east=1"]);
}

#[test]
fn a_policy_says_who_serves_whoever_exports() {
    let tier = |text: &[(&str, u32)]| Tier {
        clusters: text.iter().map(|(cluster, weight)| (name(cluster), *weight)).collect(),
        min_healthy_percent: 50,
    };
    let traffic = Traffic {
        policy: "p".to_owned(),
        tiers: vec![tier(&[("west", 90), ("south", 10)]), tier(&[("east", 1)])],
        verdict: Verdict::new("Accepted", true, "Accepted", ""),
    };
    let (wanted, _) = import(&[("west", entry("shop/web", &["80"], 1))], Some(&traffic));
    assert_eq!(tiers(&wanted), ["south=10,west=90", "east=1"], "clusters that do not export keep their share");
    assert_eq!(reason(&wanted.verdicts, "PolicyAccepted"), "True:Accepted");
    let (wanted, _) = import(&[("west", headless("shop/web", &["a"]))], Some(&traffic));
    assert_eq!(reason(&wanted.verdicts, "PolicyAccepted"), "False:Headless", "it is not said to hold where it cannot");
}

#[test]
fn a_full_range_is_told() {
    let mut addresses = Fronts::from(Addresses::new("127.80.0.0/28".parse().unwrap()));
    let ground = ground(&["west"]);
    let mut refused = 0;
    for index in 0..20 {
        let entry = entry(&format!("shop/web-{index}"), &["80"], 1);
        let member = Member { cluster: &name("west"), entry: &entry };
        let taken = Taken { locally: &|_| false, by_peer: &|_| false };
        if let Err(why) = cluster(&ground, member, taken, &mut addresses) {
            assert!(why.wants_front);
            assert!(
                ["False:ShareExceeded", "False:AddressesExhausted"]
                    .contains(&reason(&why.verdicts, "Accepted").as_str())
            );
            refused += 1;
        }
    }
    assert!(refused >= 6, "{refused}");
}

/// Labels that a peer might send: those that command somebody, and those that may come through.
fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let keys = prop::sample::select(vec![
        "app.kubernetes.io/name",
        "app.kubernetes.io/version",
        "app.kubernetes.io/managed-by",
        "kubernetes.io/service-name",
        "mirror.linkspan.io/cluster-name",
        "mirror.linkspan.io/managed-by",
        "endpointslice.kubernetes.io/managed-by",
        "service.beta.kubernetes.io/aws-load-balancer-type",
        "internal.example.com/cost",
        "team",
    ]);
    prop::collection::btree_map(keys.prop_map(str::to_owned), "[a-z]{1,8}", 0..9)
}

proptest! {
    /// S-38 and S-39: whatever a peer says, every address is of our range, and nothing but ports, protocols, and labels and
    /// annotations that command nobody comes through.
    #[test]
    fn only_what_commands_nobody_comes_through(labels in labels(), is_headless: bool, endpoints in prop::collection::btree_set("[a-z]{1,6}", 0..5)) {
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let mut entry = if is_headless { headless("shop/web", &endpoints) } else { entry("shop/web", &["http:80"], 1) }.as_ref().clone();
        entry.labels = labels.clone();
        entry.details.annotations = labels.clone();
        let exclusions = Exclusions { labels: vec!["internal.example.com/*".parse().unwrap()], annotations: Vec::new() };
        let ground = Ground { exclusions: Arc::new(exclusions), ..ground(&["west", "north"]) };
        let (west, taken) = (name("west"), Taken { locally: &|_| false, by_peer: &|_| false });
        let wanted = cluster(&ground, Member { cluster: &west, entry: &entry }, taken, &mut addresses()).unwrap();
        let range: ipnet::IpNet = RANGE.parse().unwrap();
        for listener in faces::listeners(&wanted) {
            prop_assert!(listener.ports.iter().all(|port| range.contains(&port.listen.ip())));
        }
        let text = object::yaml(&object::objects(&wanted)).unwrap();
        for (key, value) in &labels {
            let copied = ["app.kubernetes.io/name", "app.kubernetes.io/version", "team"].contains(&key.as_str());
            prop_assert_eq!(wanted.labels.get(key) == Some(value), copied, "{}", key);
            let annotated = copied || key == "internal.example.com/cost";
            prop_assert_eq!(wanted.annotations.get(key) == Some(value), annotated, "{}", key);
        }
        for word in ["aws-load-balancer", "externalIPs", "nodePort", "finalizers", "ownerReferences", "selector", "app.kubernetes.io/managed-by"] {
            prop_assert!(!text.contains(word), "{} in\n{}", word, text);
        }
        for object in object::objects(&wanted) {
            let labels = match object {
                object::Object::Service(service) => service.metadata.labels,
                object::Object::EndpointSlice(slice) => {
                    for address in slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses) {
                        prop_assert!(range.contains(&address.parse::<IpAddr>().unwrap()));
                    }
                    slice.metadata.labels
                }
                object::Object::ServiceImport(_) => None,
            };
            let labels = labels.unwrap();
            prop_assert_eq!(labels.get("mirror.linkspan.io/cluster-name").map(String::as_str), Some("west"));
            prop_assert_eq!(labels.get("mirror.linkspan.io/managed-by").map(String::as_str), Some("mirror-controller"));
        }
    }

    /// S-40: of clusters that disagree, the word of the first in our own order counts, whatever the others say.
    #[test]
    fn the_first_word_counts(ports in prop::collection::vec(1..5_u16, 3)) {
        let text: Vec<String> = ports.iter().map(|port| format!("http:{port}")).collect();
        let of = |index: usize| entry("shop/web", &[&text[index]], 1);
        let (wanted, _) = import(&[("west", of(0)), ("north", of(1)), ("east", of(2))], None);
        prop_assert_eq!(numbers(&wanted), [text[0].clone()]);
    }
}

#[test]
fn an_import_has_what_exports_say_and_nothing_of_the_services() {
    let with = |key: &str, seconds| {
        let mut entry = entry("shop/web", &["80"], 1).as_ref().clone();
        entry.labels = BTreeMap::from([("team".to_owned(), "x".to_owned())]);
        entry.details.exported_labels = BTreeMap::from([(key.to_owned(), "x".to_owned())]);
        entry.details.affinity_seconds = seconds;
        Arc::new(entry)
    };
    let (wanted, conflicts) = import(&[("west", with("gold", Some(10))), ("east", with("silver", None))], None);
    assert_eq!(wanted.labels.keys().collect::<Vec<_>>(), ["gold"]);
    assert_eq!(wanted.traits.affinity_seconds, Some(10));
    assert_eq!(conflicts.reasons().collect::<Vec<_>>(), ["LabelsConflict", "SessionAffinityConflict"]);
    assert_eq!(tiers(&wanted), ["east=1", "west=1"], "whose word counts says nothing of who serves");
}
