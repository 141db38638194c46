use std::sync::Arc;

use linkspan_proto::exchange::CatalogueEntry;
use proptest::prelude::*;

use super::*;
use crate::catalog::Snapshot;
use crate::exchange::{Freshness, Peers};
use crate::mirror::ports::{PortRange, Ports};
use crate::mirror::{MirrorSet, State};
use crate::testkit::{cluster, entries, entry, headless, key, peer, peer_state};

fn set(all: impl IntoIterator<Item = Arc<CatalogueEntry>>) -> MirrorSet {
    let mut state = State::new(cluster("east"), Ports::new(PortRange { first: 10_000, last: 10_099 }));
    let snapshot =
        Snapshot { peers: Arc::new(BTreeMap::from([(cluster("west"), peer("west"))])), ..Snapshot::default() };
    state.update(snapshot, Arc::new(Peers::from([(cluster("west"), peer_state(entries(all), Freshness::Fresh))])));
    state.set()
}

fn gateways(addresses: &[&str]) -> Gateways {
    Gateways::new(addresses.iter().map(|address| address.parse().unwrap()))
}

fn of(set: &MirrorSet, import: bool) -> &Wanted {
    set.wanted.values().find(|wanted| matches!(wanted.id, MirrorId::Clusterset { .. }) == import).unwrap()
}

#[test]
fn a_mirror_is_a_service_and_slices_of_ready_gateways() {
    let set = set([entry("shop/web", &["http:80", "https:443", "dns:53/UDP"], 1)]);
    let wanted = of(&set, false);
    let all = objects(wanted, &gateways(&["10.244.0.9", "fd00::9", "10.244.1.7"]), &Given::new());
    let names: Vec<_> = all.iter().map(|object| object.reference.name.as_str()).collect();
    assert_eq!(names, ["web-west", "web-west-linkspan-ipv4", "web-west-linkspan-ipv6"]);
    let service = &all[0].value;
    assert_eq!(service["spec"]["type"], "ClusterIP");
    assert!(service["spec"].get("clusterIP").is_none(), "the API server chooses");
    assert_eq!(service["spec"]["ports"].as_array().unwrap().len(), 3);
    assert_eq!(service["metadata"]["labels"][labels::CLUSTER], "west");
    let slice = &all[1].value;
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "web-west");
    let addresses: Vec<_> =
        slice["endpoints"].as_array().unwrap().iter().map(|it| it["addresses"][0].clone()).collect();
    assert_eq!(addresses, ["10.244.0.9", "10.244.1.7"]);
    let ports = slice["ports"].as_array().unwrap();
    assert_eq!(ports.len(), 3);
    let Shape::Single { front: Front::Ports(given), .. } = &wanted.shape else { panic!() };
    assert_eq!(ports[0]["port"], given[&80]);
    assert_eq!(ports[0]["name"], "http");
    let udp = ports.iter().find(|port| port["protocol"] == "UDP").unwrap();
    assert_eq!((&udp["name"], &udp["port"]), (&json!("dns"), &json!(given[&53])));
    assert_eq!(all[2].value["addressType"], "IPv6");
}

#[test]
fn without_a_gateway_a_service_has_an_empty_slice() {
    let set = set([entry("shop/web", &["80"], 1)]);
    let all = objects(of(&set, false), &Gateways::default(), &Given::new());
    assert_eq!(all.len(), 2);
    assert!(all[1].value["endpoints"].as_array().unwrap().is_empty());
}

fn find<'a>(all: &'a [Rendered], name: &str) -> &'a Value {
    let names: Vec<_> = all.iter().map(|object| object.reference.name.as_str()).collect();
    &all.iter().find(|object| object.reference.name == name).unwrap_or_else(|| panic!("{name} in {names:?}")).value
}

fn ips(all: &[(&str, &[&str])]) -> Given {
    let parse = |ips: &&[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect();
    all.iter().map(|(service, ips)| (key(service), parse(ips))).collect()
}

/// MCS conformance 3 to 7 and 17.
#[test]
fn an_import_has_a_service_of_its_own_its_addresses_and_a_slice_for_each_cluster() {
    let mut web = entry("shop/web", &["http:80"], 1).as_ref().clone();
    web.details.affinity_seconds = Some(10);
    web.details.local_traffic = true;
    web.details.traffic_distribution = Some("PreferClose".to_owned());
    web.details.exported_labels = BTreeMap::from([("tier".to_owned(), "gold".to_owned())]);
    web.details.exported_annotations = BTreeMap::from([("owner".to_owned(), "shop".to_owned())]);
    web.labels = BTreeMap::from([("team".to_owned(), "shop".to_owned())]);
    let set = set([Arc::new(web)]);
    let wanted = of(&set, true);
    let given = ips(&[("shop/web-clusterset", &["10.96.0.7", "fd00::7"])]);
    let all = objects(wanted, &gateways(&["10.244.0.9"]), &given);
    assert_eq!(all[0].reference.name, "web-clusterset");
    assert_eq!(all[0].value["spec"]["ipFamilyPolicy"], "PreferDualStack");
    assert_eq!(all.last().unwrap().reference.resource, Resource::ServiceImport, "it comes when all else is there");
    let import = find(&all, "web");
    let spec = json!({
        "type": "ClusterSetIP", "ips": ["10.96.0.7", "fd00::7"], "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10}},
        "internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose",
    });
    assert_eq!(import["spec"], spec);
    assert_eq!(import["metadata"]["labels"]["tier"], "gold");
    assert_eq!(import["metadata"]["annotations"], json!({"owner": "shop"}));
    assert!(import["metadata"]["labels"].get("team").is_none(), "the Service's own labels stay out of the import");
    let at = |second: i64| jiff::Timestamp::from_second(second).unwrap();
    let ips: [IpAddr; 1] = ["10.96.0.7".parse().unwrap()];
    let status =
        |ips: &[IpAddr], before: &Value, second| import::status(wanted, ips, before, at(second)).unwrap().value;
    let pending = status(&[], &json!({"metadata": {"generation": 3}}), 0);
    assert_eq!(pending["status"]["clusters"], json!([{ "cluster": "west" }]));
    let condition = |status: &Value| status["status"]["conditions"][0].clone();
    let said = condition(&pending);
    assert_eq!(
        (&said["status"], &said["reason"], &said["observedGeneration"]),
        (&json!("False"), &json!("Pending"), &json!(3))
    );
    assert_eq!(said["lastTransitionTime"], "1970-01-01T00:00:00Z");
    assert_eq!(
        condition(&status(&[], &pending, 7))["lastTransitionTime"],
        said["lastTransitionTime"],
        "nothing changed"
    );
    let said = condition(&status(&ips, &pending, 7));
    assert_eq!((&said["status"], &said["reason"]), (&json!("True"), &json!("Ready")));
    assert_eq!(said["lastTransitionTime"], "1970-01-01T00:00:07Z");
    let slice = find(&all, "web-clusterset.west.ipv4");
    let labels = &slice["metadata"]["labels"];
    assert_eq!(labels["multicluster.kubernetes.io/service-name"], "web");
    assert_eq!(labels["multicluster.kubernetes.io/source-cluster"], "west");
    assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], "mirror-controller.linkspan.io");
    assert!(labels.get("kubernetes.io/service-name").is_none(), "kube-proxy must not take it for one of its own");
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["10.244.0.9"]));
    let ready = |ips: &[IpAddr]| import::ready(wanted, ips).holds();
    assert_eq!((ready(&[]), ready(&["10.96.0.7".parse().unwrap()])), (false, true));
}

#[test]
fn what_others_add_is_theirs_and_what_they_change_is_not() {
    let set = set([entry("shop/web", &["http:80"], 1)]);
    let service = &objects(of(&set, false), &Gateways::default(), &Given::new())[0].value;
    let mut observed = service.clone();
    observed["metadata"]["labels"]["team"] = json!("shop");
    observed["metadata"]["uid"] = json!("1");
    observed["spec"]["clusterIP"] = json!("10.96.0.7");
    observed["spec"]["ports"][0]["targetPort"] = json!(80);
    assert!(is_as(service, &observed));
    for (pointer, value) in [
        ("/spec/ports/0/port", json!(81)),
        ("/spec/type", json!("NodePort")),
        ("/spec/ports", json!([])),
        ("/metadata/labels", json!({})),
    ] {
        let mut changed = observed.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        assert!(!is_as(service, &changed), "{pointer}");
    }
    let mut taken = observed.clone();
    taken["spec"]["selector"] = json!({"app": "mine"});
    assert!(!is_as(service, &taken), "a selector would send our name elsewhere");
    let mut headless = observed;
    headless["spec"]["clusterIP"] = json!("None");
    assert!(!is_as(service, &headless), "its name would lead to gateways at ports of theirs");
}

#[test]
fn a_correction_says_whole_lists_and_what_is_never_there() {
    let set = set([entry("shop/web", &["http:80"], 1)]);
    let all = objects(of(&set, false), &gateways(&["10.244.0.9"]), &Given::new());
    let service = overwriting(&all[0]);
    assert_eq!(service["spec"]["ports"], all[0].value["spec"]["ports"]);
    for field in NEVER {
        assert_eq!(service["spec"].get(field), Some(&Value::Null), "{field} is taken out");
    }
    assert!(service.get("metadata").is_none(), "it makes nothing ours");
    let slice = overwriting(&all[1]);
    assert_eq!(slice["endpoints"], all[1].value["endpoints"]);
    assert!(slice.get("spec").is_none());
}

#[test]
fn a_headless_mirror_leads_to_one_service_for_each_pod() {
    let set = set([headless("shop/cache", &["cache-0", "!cache-1"])]);
    let wanted = of(&set, false);
    let gateways = gateways(&["10.244.0.9"]);
    let before = objects(wanted, &gateways, &Given::new());
    assert!(find(&before, "cache-west-linkspan-ipv4")["endpoints"].as_array().unwrap().is_empty(), "no address yet");
    let given = ips(&[("shop/cache-0-west", &["10.96.0.7", "fd00::7"]), ("shop/cache-1-west", &["10.96.0.8"])]);
    let all = objects(wanted, &gateways, &given);
    let names: Vec<_> = all.iter().map(|object| object.reference.name.as_str()).collect();
    let expected = [
        "cache-0-west",
        "cache-0-west-linkspan-ipv4",
        "cache-1-west",
        "cache-1-west-linkspan-ipv4",
        "cache-west",
        "cache-west-linkspan-ipv4",
        "cache-west-linkspan-ipv6",
    ];
    assert_eq!(names, expected, "what carries comes before what points to it");

    let pod = find(&all, "cache-0-west");
    assert!(pod["spec"].get("clusterIP").is_none(), "the API server chooses");
    assert_eq!(pod["metadata"]["labels"][labels::ENDPOINT], "cache-0");
    assert_eq!(pod["metadata"]["labels"][labels::MIRROR], "cache-west");
    let carrier = find(&all, "cache-0-west-linkspan-ipv4");
    assert_eq!(carrier["metadata"]["labels"]["kubernetes.io/service-name"], "cache-0-west");
    assert_eq!(carrier["endpoints"], json!([{"addresses": ["10.244.0.9"], "conditions": {"ready": true}}]));
    let Shape::Headless { hosts } = &wanted.shape else { panic!() };
    let Front::Ports(ports) = &hosts[0].front else { panic!() };
    assert_eq!(carrier["ports"][0]["port"], ports[&80]);

    assert_eq!(find(&all, "cache-west")["spec"]["clusterIP"], "None");
    let slice = find(&all, "cache-west-linkspan-ipv4");
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "cache-west");
    let endpoints = json!([
        {"addresses": ["10.96.0.7"], "hostname": "cache-0", "conditions": {"ready": true}},
        {"addresses": ["10.96.0.8"], "hostname": "cache-1", "conditions": {"ready": false}},
    ]);
    assert_eq!(slice["endpoints"], endpoints);
    assert_eq!(slice["ports"][0]["port"], 80, "clients of a pod use the port of the service");
    assert_eq!(find(&all, "cache-west-linkspan-ipv6")["endpoints"][0]["addresses"], json!(["fd00::7"]));
}

#[test]
fn each_object_can_be_had_by_itself() {
    let set = set([headless("shop/cache", &["cache-0", "!cache-1", "other"]), entry("shop/web", &["80"], 1)]);
    let gateways = gateways(&["10.244.0.9", "fd00::9"]);
    for wanted in set.wanted.values() {
        let given: Given = services(wanted).map(|service| (service, vec!["10.96.0.7".parse().unwrap()])).collect();
        for object in objects(wanted, &gateways, &given) {
            assert_eq!(one(wanted, &gateways, &given, &object.reference), Some(object));
        }
        let reference =
            Reference { resource: Resource::Service, namespace: "shop".to_owned(), name: "none".to_owned() };
        assert_eq!(one(wanted, &gateways, &given, &reference), None);
    }
}

#[test]
fn objects_follow_the_pods() {
    let names = |pods: &[&str]| {
        let set = set([headless("shop/cache", pods)]);
        let all = objects(of(&set, false), &gateways(&["10.244.0.9"]), &Given::new());
        all.into_iter().map(|object| object.reference).collect::<std::collections::BTreeSet<_>>()
    };
    let (one, two) = (names(&["cache-0"]), names(&["cache-0", "cache-1"]));
    assert!(one.is_subset(&two));
    let gone: Vec<_> = two.difference(&one).map(|reference| reference.name.as_str()).collect();
    assert_eq!(gone, ["cache-1-west", "cache-1-west-linkspan-ipv4"]);
}

#[test]
fn an_endpoint_makes_room_for_a_service_of_its_name() {
    let host = |set: &MirrorSet| {
        let id = set
            .wanted
            .keys()
            .find(|id| matches!(id, MirrorId::Cluster { service, .. } if *service == key("shop/cache")));
        let Shape::Headless { hosts } = &set.wanted[id.unwrap()].shape else { panic!() };
        hosts[0].object.clone().unwrap()
    };
    let mut state = State::new(cluster("east"), Ports::new(PortRange { first: 10_000, last: 10_099 }));
    let snapshot =
        Snapshot { peers: Arc::new(BTreeMap::from([(cluster("west"), peer("west"))])), ..Snapshot::default() };
    let mut update = |all: Vec<Arc<CatalogueEntry>>| {
        let peers = Peers::from([(cluster("west"), peer_state(entries(all), Freshness::Fresh))]);
        state.update(snapshot.clone(), Arc::new(peers));
        state.set()
    };
    let cache = || headless("shop/cache", &["cache-0"]);
    assert_eq!(host(&update(vec![cache()])), key("shop/cache-0-west"));
    let set = update(vec![cache(), entry("shop/cache-0", &["80"], 1)]);
    let marked = host(&set);
    assert!(marked.name.as_str().starts_with("cache-0-x") && marked.name.as_str().ends_with("-west"), "{marked}");
    assert!(set.wanted.values().any(|wanted| wanted.object == key("shop/cache-0-west")), "the service has it");
    assert_eq!(host(&update(vec![cache()])), key("shop/cache-0-west"));
}

#[test]
fn a_local_service_keeps_its_name_from_an_endpoint() {
    let mut state = State::new(cluster("east"), Ports::new(PortRange { first: 10_000, last: 10_099 }));
    let peers = || {
        Arc::new(Peers::from([(
            cluster("west"),
            peer_state(entries([headless("shop/cache", &["cache-0"])]), Freshness::Fresh),
        )]))
    };
    let mut hosts = |services: &[&str]| {
        let snapshot = Snapshot {
            peers: Arc::new(BTreeMap::from([(cluster("west"), peer("west"))])),
            services: Arc::new(services.iter().map(|name| key(name)).collect()),
            ..Snapshot::default()
        };
        state.update(snapshot, peers());
        let set = state.set();
        let wanted = of(&set, false);
        let Shape::Headless { hosts } = &wanted.shape else { panic!() };
        (hosts.len(), wanted.verdicts.iter().any(|verdict| verdict.reason == "NameInUse"))
    };
    assert_eq!(hosts(&[]), (1, false));
    assert_eq!(hosts(&["shop/cache-0-west"]), (0, true));
    assert_eq!(hosts(&[]), (1, false));
}

/// MCS conformance 10, 11 and 22.
#[test]
fn a_headless_import_has_endpoints_and_no_address() {
    let set = set([headless("shop/cache", &["cache-0"])]);
    let wanted = of(&set, true);
    let Shape::Headless { hosts } = &wanted.shape else { panic!() };
    let host = hosts[0].object.clone().unwrap();
    let given = Given::from([(host.clone(), vec!["10.96.0.9".parse().unwrap()])]);
    let all = objects(wanted, &gateways(&["10.244.0.9"]), &given);
    assert_eq!(find(&all, host.name.as_str())["metadata"]["labels"][labels::SOURCE], "west");
    let import = find(&all, "cache");
    assert_eq!(import["spec"]["type"], "Headless");
    assert!(import["spec"].get("ips").is_none());
    let slice = find(&all, "cache-clusterset.west.ipv4");
    assert_eq!(slice["endpoints"][0]["hostname"], "cache-0");
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["10.96.0.9"]));
    assert_eq!(slice["ports"][0]["port"], 80);
    let dns = crate::mirror::faces::dns_with(wanted, &Default::default(), &given);
    assert_eq!(dns.headless.unwrap()[0].address, Some("10.96.0.9".parse().unwrap()), "DNS and slice agree");
}

#[test]
fn labels_and_annotations_of_the_service_are_copied_unless_they_command_somebody() {
    let mut web = entry("shop/web", &["80"], 1).as_ref().clone();
    for map in [&mut web.labels, &mut web.details.annotations] {
        map.insert("team".to_owned(), "shop".to_owned());
        map.insert("service.kubernetes.io/topology-mode".to_owned(), "Auto".to_owned());
        map.insert("mirror.linkspan.io/service-name".to_owned(), "other".to_owned());
    }
    let set = set([Arc::new(web)]);
    let all = objects(of(&set, false), &Gateways::default(), &Given::new());
    let metadata = &find(&all, "web-west")["metadata"];
    assert_eq!(metadata["annotations"], json!({"team": "shop"}));
    assert_eq!(metadata["labels"]["team"], "shop");
    assert_eq!(metadata["labels"]["mirror.linkspan.io/service-name"], "web");
    assert!(metadata["labels"].get("service.kubernetes.io/topology-mode").is_none());
}

proptest! {
    /// S-38: whatever a peer says, every address in every slice is one of our ready gateways, and every port one of ours; but
    /// where an endpoint has a host name its address is the ClusterIP of our own Service for it.
    #[test]
    fn slices_hold_gateways_only(ports in prop::collection::btree_set(1..u16::MAX, 1..8), is_headless: bool, pods in prop::collection::vec(any::<u32>(), 0..4)) {
        let specs: Vec<String> = ports.iter().map(|port| format!("p{port}:{port}")).collect();
        let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
        let mut entry = entry("shop/web", &specs, 1).as_ref().clone();
        if is_headless {
            let pods = headless("shop/web", &["web-0", "!web-1"]);
            (entry.headless, entry.endpoints) = (true, pods.endpoints.clone());
        }
        let set = set([Arc::new(entry)]);
        let pods: Vec<IpAddr> = pods.into_iter().map(|bits| IpAddr::V4(bits.into())).collect();
        let gateways = Gateways::new(pods.iter().copied());
        for wanted in set.wanted.values() {
            let ours: IpAddr = "10.96.0.7".parse().unwrap();
            let given: Given = services(wanted).map(|service| (service, vec![ours])).collect();
            for object in objects(wanted, &gateways, &given) {
                let mut of_hosts = false;
                for endpoint in object.value["endpoints"].as_array().into_iter().flatten() {
                    let address: IpAddr = endpoint["addresses"][0].as_str().unwrap().parse().unwrap();
                    of_hosts = endpoint.get("hostname").is_some();
                    let expected = if of_hosts { address == ours } else { pods.contains(&address) };
                    prop_assert!(expected, "{}", address);
                }
                if object.reference.resource == Resource::EndpointSlice && !of_hosts {
                    for port in object.value["ports"].as_array().unwrap() {
                        prop_assert!((10_000..=10_099).contains(&port["port"].as_u64().unwrap()));
                    }
                }
            }
        }
    }
}
