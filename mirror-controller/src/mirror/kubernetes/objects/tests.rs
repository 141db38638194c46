use std::sync::Arc;

use linkspan_proto::exchange::CatalogueEntry;
use proptest::prelude::*;

use super::*;
use crate::catalog::Snapshot;
use crate::exchange::{Freshness, Peers};
use crate::mirror::ports::{PortRange, Ports};
use crate::mirror::{MirrorSet, State};
use crate::testkit::{cluster, entries, entry, headless, peer, peer_state};

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
    let all = objects(wanted, &gateways(&["10.244.0.9", "fd00::9", "10.244.1.7"]));
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
    assert_eq!(ports.len(), 2, "UDP is not carried");
    let Shape::Single { front: Front::Ports(given), .. } = &wanted.shape else { panic!() };
    assert_eq!(ports[0]["port"], given[&80]);
    assert_eq!(ports[0]["name"], "http");
    assert_eq!(all[2].value["addressType"], "IPv6");
}

#[test]
fn without_a_gateway_a_service_has_an_empty_slice() {
    let set = set([entry("shop/web", &["80"], 1)]);
    let all = objects(of(&set, false), &Gateways::default());
    assert_eq!(all.len(), 2);
    assert!(all[1].value["endpoints"].as_array().unwrap().is_empty());
}

#[test]
fn an_import_has_a_service_of_its_own_and_its_addresses() {
    let set = set([entry("shop/web", &["http:80"], 1)]);
    let wanted = of(&set, true);
    assert_eq!(objects(wanted, &gateways(&["10.244.0.9"]))[0].reference.name, "web-clusterset");
    let import = import(wanted, &["10.96.0.7".parse().unwrap(), "fd00::7".parse().unwrap()]).unwrap();
    assert_eq!(import.reference.name, "web");
    assert_eq!(import.value["spec"]["ips"], json!(["10.96.0.7", "fd00::7"]));
    assert_eq!(import.value["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(import_status(wanted).unwrap().value["status"]["clusters"], json!([{ "cluster": "west" }]));
}

#[test]
fn what_others_add_is_theirs_and_what_they_change_is_not() {
    let set = set([entry("shop/web", &["http:80"], 1)]);
    let service = &objects(of(&set, false), &Gateways::default())[0].value;
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
    let mut taken = observed;
    taken["spec"]["selector"] = json!({"app": "mine"});
    assert!(!is_as(service, &taken), "a selector would send our name elsewhere");
}

#[test]
fn a_headless_mirror_has_no_address_of_its_own() {
    let set = set([headless("shop/db", &["db-0"])]);
    let all = objects(of(&set, false), &gateways(&["10.244.0.9"]));
    assert_eq!(all[0].value["spec"]["clusterIP"], "None");
    assert!(import(of(&set, true), &[]).unwrap().value["spec"].get("ips").is_none());
}

proptest! {
    /// S-38: whatever a peer says, every address in every slice is one of our ready gateways, and every port one of ours.
    #[test]
    fn slices_hold_gateways_only(ports in prop::collection::btree_set(1..u16::MAX, 1..8), pods in prop::collection::vec(any::<u32>(), 0..4)) {
        let specs: Vec<String> = ports.iter().map(|port| format!("p{port}:{port}")).collect();
        let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
        let set = set([entry("shop/web", &specs, 1)]);
        let pods: Vec<IpAddr> = pods.into_iter().map(|bits| IpAddr::V4(bits.into())).collect();
        let gateways = Gateways::new(pods.iter().copied());
        for wanted in set.wanted.values() {
            for object in objects(wanted, &gateways) {
                for endpoint in object.value["endpoints"].as_array().into_iter().flatten() {
                    let address: IpAddr = endpoint["addresses"][0].as_str().unwrap().parse().unwrap();
                    prop_assert!(pods.contains(&address));
                }
                if object.reference.resource == Resource::EndpointSlice {
                    for port in object.value["ports"].as_array().unwrap() {
                        prop_assert!((10_000..=10_099).contains(&port["port"].as_u64().unwrap()));
                    }
                }
            }
        }
    }
}
