use std::collections::BTreeMap;
use std::sync::OnceLock;

use linkspan_proto::configuration::DefaultPolicy;
use linkspan_proto::exchange::Protocol;
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::manifest;
use linkspan_proto::names::{ClusterName, EndpointName};
use linkspan_proto::resources::PROXY_PROTOCOL_ANNOTATION;
use proptest::prelude::*;

use super::*;
use crate::watch::{Kind, Object};

fn catalog() -> Catalog {
    restarted(Accepted::default())
}

fn restarted(accepted: Accepted) -> Catalog {
    let own = Own {
        cluster: ClusterName::parse("east").unwrap(),
        trust_domain: TrustDomain::parse("east.linkspan.internal").unwrap(),
    };
    // As over a restart: through the text on disk.
    let accepted = Accepted::parse(&accepted.to_text().unwrap()).unwrap();
    Catalog::new(own, "127.80.0.0/12".parse().unwrap(), accepted)
}

/// The first complete view of a source that has these objects.
fn list(catalog: &mut Catalog, objects: &[Object]) -> Snapshot {
    catalog.handle(Event::Init);
    for object in objects {
        catalog.handle(Event::Apply(Box::new(object.clone())));
    }
    catalog.handle(Event::InitDone);
    catalog.snapshot()
}

fn objects(text: &str) -> Vec<Object> {
    manifest::parse(text, "test").into_iter().map(|parsed| parsed.unwrap().0).collect()
}

fn apply(catalog: &mut Catalog, text: &str) {
    for object in objects(text) {
        catalog.handle(Event::Apply(Box::new(object)));
    }
}

fn delete(catalog: &mut Catalog, kind: Kind, name: &str) {
    let namespace = if kind.is_namespaced() { "shop".to_owned() } else { String::new() };
    catalog.handle(Event::Delete(ObjectKey { kind, namespace, name: name.to_owned() }));
}

fn key(text: &str) -> ServiceKey {
    ServiceKey::parse(text).unwrap()
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {app.kubernetes.io/name: web, team: a}}
spec:
  ports:
    - {name: http, port: 80, targetPort: 8080, appProtocol: http}
    - {name: grpc, port: 90, appProtocol: grpc}
";
const SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
  - {addresses: [10.0.0.1], conditions: {ready: true}}
  - {addresses: [10.0.0.2], conditions: {ready: false}}
  - {addresses: [10.0.0.3]}
ports:
  - {name: http, port: 8080}
";
const EXPORT: &str = "
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceExport
metadata: {name: web, namespace: shop}
";

fn verdicts(snapshot: &Snapshot, name: &str) -> Vec<(String, String)> {
    let Some(report) = snapshot.exports.get(&key(name)) else { return Vec::new() };
    report
        .verdicts
        .iter()
        .map(|verdict| (format!("{}={}", verdict.kind, verdict.status.as_str()), verdict.reason.clone()))
        .collect()
}

fn expected(valid: &str, why_valid: &str, ready: &str, why_ready: &str) -> Vec<(String, String)> {
    vec![(format!("Valid={valid}"), why_valid.to_owned()), (format!("Ready={ready}"), why_ready.to_owned())]
}

/// A port that pods name and none of them has: Kubernetes writes a slice without ports, and the number of the Service is not
/// what the pods offer.
#[test]
fn a_port_that_no_pod_has_is_reached_nowhere() {
    let slice = SLICE.replace("ports:\n  - {name: http, port: 8080}\n", "ports: null\n");
    for (target, reached) in [("targetPort: web, ", None), ("targetPort: 8080, ", Some(8080)), ("", Some(80))] {
        let mut catalog = catalog();
        let service = SERVICE.replace("targetPort: 8080, ", target);
        apply(&mut catalog, &format!("{service}---{slice}---{EXPORT}"));
        let snapshot = catalog.snapshot();
        let endpoints = &snapshot.reachable[&key("shop/web")].ports[0].endpoints;
        assert_eq!(endpoints.first().map(|endpoint| endpoint.address.port()), reached, "{target}");
        assert_eq!(snapshot.exported[&key("shop/web")].ports[0].total, Some(if reached.is_some() { 3 } else { 0 }));
    }
}

#[test]
fn an_export_is_its_service_with_its_slices() {
    let mut catalog = catalog();
    apply(&mut catalog, &format!("{SERVICE}---{SLICE}---{EXPORT}"));
    let snapshot = catalog.snapshot();
    assert_eq!(verdicts(&snapshot, "shop/web"), expected("True", "Valid", "True", "Exported"));
    let entry = &snapshot.exported[&key("shop/web")];
    assert!(!entry.headless && entry.endpoints.is_empty());
    let ports: Vec<_> = entry.ports.iter().map(|port| (port.port, port.protocol, port.ready, port.total)).collect();
    assert_eq!(ports, [(80, Protocol::Tcp, 2, Some(3)), (90, Protocol::Tcp, 0, Some(0))]);
    let labels =
        [("app.kubernetes.io/name", "web"), ("team", "a")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(entry.labels, BTreeMap::from(labels));
    let reachable = &snapshot.reachable[&key("shop/web")];
    let endpoints: Vec<_> =
        reachable.ports[0].endpoints.iter().map(|endpoint| (endpoint.address.to_string(), endpoint.ready)).collect();
    assert_eq!(
        endpoints,
        [("10.0.0.1:8080".to_owned(), true), ("10.0.0.2:8080".to_owned(), false), ("10.0.0.3:8080".to_owned(), true)]
    );
    assert!(reachable.ports[1].endpoints.is_empty());
    let message = &snapshot.exports[&key("shop/web")].verdicts[1].message;
    assert!(message.contains("2 of 3 endpoints are ready") && message.contains("port grpc"), "{message}");
    assert!(reachable.rules.is_none() && !reachable.proxy_protocol);

    delete(&mut catalog, Kind::EndpointSlice, "web-1");
    assert_eq!(catalog.snapshot().exported[&key("shop/web")].ports[0].ready, 0);
    delete(&mut catalog, Kind::ServiceExport, "web");
    let snapshot = catalog.snapshot();
    assert!(snapshot.exported.is_empty() && snapshot.reachable.is_empty() && snapshot.exports.is_empty());
}

/// A rolling update: what is shutting down is no capacity that is missing.
#[test]
fn endpoints_that_are_shutting_down_do_not_count() {
    let mut catalog = catalog();
    let slice = SLICE.replace("{ready: false}", "{ready: false, serving: true, terminating: true}");
    apply(&mut catalog, &format!("{SERVICE}---{slice}---{EXPORT}"));
    let snapshot = catalog.snapshot();
    let port = &snapshot.exported[&key("shop/web")].ports[0];
    assert_eq!((port.ready, port.total), (2, Some(2)));
    assert_eq!(snapshot.reachable[&key("shop/web")].ports[0].endpoints.len(), 2);
}

#[test]
fn what_cannot_be_exported_says_why() {
    let export = |text: &str| {
        let mut catalog = catalog();
        apply(&mut catalog, text);
        let snapshot = catalog.snapshot();
        assert!(snapshot.exported.is_empty() && snapshot.reachable.is_empty(), "{text}");
        verdicts(&snapshot, "shop/web")
    };
    let with = |from: &str, to: &str| format!("{}---{SLICE}---{EXPORT}", SERVICE.replace(from, to));
    assert_eq!(export(EXPORT), expected("False", "NoService", "False", "Pending"));
    let external = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {type: ExternalName, externalName: a.b}\n";
    assert_eq!(export(&format!("{external}---{EXPORT}")), expected("False", "InvalidServiceType", "False", "Pending"));
    for label in ["mirror.linkspan.io/cluster-name: west", "mirror.linkerd.io/mirrored-service: \"true\""] {
        assert_eq!(export(&with("team: a", label)), expected("False", "InvalidServiceType", "False", "Pending"));
    }
    let mut catalog = catalog();
    apply(&mut catalog, &format!("{SERVICE}---{SLICE}"));
    let Object::ServiceExport(mut wish) = objects(EXPORT).remove(0) else { unreachable!() };
    wish.metadata.annotations = Some([(PROXY_PROTOCOL_ANNOTATION.to_owned(), "v1".to_owned())].into());
    catalog.handle(Event::Apply(Box::new(Object::ServiceExport(wish))));
    let snapshot = catalog.snapshot();
    assert!(snapshot.exported.is_empty(), "a backend that waits for the header gets nothing without it");
    assert_eq!(verdicts(&snapshot, "shop/web"), expected("True", "Valid", "False", "Failed"));
}

/// An API server or a parser may check less than ours: what peers would refuse must not leave.
#[test]
fn ports_that_peers_would_refuse_are_not_exported() {
    for (number, protocol, name) in [
        (0, "TCP", "a"),
        (70_000, "TCP", "a"),
        (90, "TCP", "a"),
        (1, "ICMP", "a"),
        (1, "TCP", "A_b"),
        (1, "UDP", "grpc"),
    ] {
        let mut catalog = catalog();
        apply(&mut catalog, &format!("{SLICE}---{EXPORT}"));
        let Object::Service(mut service) = objects(SERVICE).remove(0) else { unreachable!() };
        let port = &mut service.spec.as_mut().unwrap().ports.as_mut().unwrap()[0];
        (port.port, port.protocol, port.name) = (number, Some(protocol.to_owned()), Some(name.to_owned()));
        catalog.handle(Event::Apply(Box::new(Object::Service(service))));
        let snapshot = catalog.snapshot();
        assert!(snapshot.exported.is_empty(), "{number} {protocol} {name}");
        assert_eq!(verdicts(&snapshot, "shop/web"), expected("True", "Valid", "False", "Failed"));
    }
}

#[test]
fn reserved_namespaces_are_not_exported() {
    let mut catalog = catalog();
    apply(&mut catalog, &format!("{SERVICE}---{EXPORT}").replace("namespace: shop", "namespace: kube-system"));
    let snapshot = catalog.snapshot();
    assert!(snapshot.exported.is_empty());
    assert_eq!(verdicts(&snapshot, "kube-system/web"), expected("True", "Valid", "False", "Failed"));
}

#[test]
fn linkerds_label_exports_too() {
    let mut catalog = catalog();
    apply(&mut catalog, &format!("{}---{SLICE}", SERVICE.replace("team: a", "mirror.linkerd.io/exported: \"true\"")));
    let snapshot = catalog.snapshot();
    assert!(snapshot.exported.contains_key(&key("shop/web")));
    assert!(snapshot.exports[&key("shop/web")].by_label);
    apply(&mut catalog, SERVICE);
    assert!(catalog.snapshot().exports.is_empty());
}

#[test]
fn a_service_export_counts_more_than_linkerds_label() {
    let mut catalog = catalog();
    let labelled = SERVICE.replace("team: a", "mirror.linkerd.io/exported: \"true\"");
    apply(&mut catalog, &format!("{labelled}---{SLICE}---{EXPORT}"));
    assert!(!catalog.snapshot().exports[&key("shop/web")].by_label);
    apply(&mut catalog, SERVICE);
    assert!(catalog.snapshot().exported.contains_key(&key("shop/web")), "the label's removal ends nothing here");
    apply(&mut catalog, &labelled);
    delete(&mut catalog, Kind::ServiceExport, "web");
    assert!(catalog.snapshot().exports[&key("shop/web")].by_label);
    apply(&mut catalog, &labelled.replace("\"true\"", "\"false\""));
    assert!(catalog.snapshot().exported.is_empty());
}

#[test]
fn ports_that_linkerds_annotation_marks_are_opaque() {
    let mut catalog = catalog();
    let service = SERVICE
        .replace("labels:", "annotations: {config.linkerd.io/opaque-ports: \"80,mysql\", helm.sh/x: y}, labels:");
    apply(&mut catalog, &format!("{service}---{SLICE}---{EXPORT}"));
    let snapshot = catalog.snapshot();
    let entry = &snapshot.exported[&key("shop/web")];
    let declared: Vec<_> = entry.ports.iter().map(|port| port.app_protocol.as_deref()).collect();
    assert_eq!(declared, [Some("tcp"), Some("grpc")]);
    assert_eq!(snapshot.reachable[&key("shop/web")].ports[0].app_protocol.as_deref(), Some("tcp"));
    let ready = &snapshot.exports[&key("shop/web")].verdicts[1];
    assert!(ready.holds() && ready.message.contains("`mysql` is passed over"), "{}", ready.message);
    assert_eq!(entry.details.annotations.keys().collect::<Vec<_>>(), ["config.linkerd.io/opaque-ports"]);
    assert_eq!(entry.labels.keys().collect::<Vec<_>>(), ["app.kubernetes.io/name", "team"]);
}

#[test]
fn endpoints_that_are_mirrors_are_left_out() {
    let mut catalog = catalog();
    apply(&mut catalog, &format!("{SERVICE}---{}---{EXPORT}", SLICE.replace("10.0.0.1", "127.80.3.4")));
    let snapshot = catalog.snapshot();
    assert_eq!(snapshot.exported[&key("shop/web")].ports[0].ready, 1);
    assert!(snapshot.exports[&key("shop/web")].verdicts[1].message.contains("mirrors of other clusters"));
}

#[test]
fn a_headless_service_names_its_endpoints_and_never_their_addresses() {
    let mut catalog = catalog();
    let service = SERVICE.replace("spec:", "spec:\n  clusterIP: None");
    let slice = SLICE
        .replace("{addresses: [10.0.0.1],", "{addresses: [10.0.0.1], hostname: web-0,")
        .replace("{addresses: [10.0.0.2],", "{addresses: [10.0.0.2], targetRef: {kind: Pod, name: web-1},");
    apply(&mut catalog, &format!("{service}---{slice}---{EXPORT}"));
    let snapshot = catalog.snapshot();
    let entry = &snapshot.exported[&key("shop/web")];
    assert!(entry.headless);
    let names: Vec<_> = entry.endpoints.iter().map(|(name, ready)| (name.as_str(), *ready)).collect();
    assert_eq!(names.len(), 3);
    assert_eq!(&names[1..], [("web-0", true), ("web-1", false)]);
    assert!(names[0].0.starts_with("e-") && names[0].1);
    assert!(!format!("{entry:?}").contains("10.0.0"));
    let of = |name: &str| Some(EndpointName::parse(name).unwrap());
    assert!(
        snapshot.reachable[&key("shop/web")].ports[0].endpoints.iter().any(|endpoint| endpoint.name == of("web-0"))
    );
}

#[test]
fn policies_of_the_namespace_become_rules() {
    let policy = |name: &str, services: &str, allow: &str| {
        format!(
            "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{services: {services}, allow: {allow}}}\n"
        )
    };
    let mut catalog = catalog();
    apply(&mut catalog, &format!("{SERVICE}---{SLICE}---{EXPORT}"));
    apply(&mut catalog, &policy("other", "[api]", "[]"));
    let rules = |catalog: &mut Catalog| catalog.snapshot().reachable[&key("shop/web")].rules.clone();
    assert_eq!(rules(&mut catalog), None);
    apply(&mut catalog, &policy("all", "[]", "[{peers: [west], minimumAssurance: mtls}]"));
    apply(&mut catalog, &policy("web", "[web]", "[{ports: [80]}]"));
    let found = rules(&mut catalog).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].peers, [ClusterName::parse("west").unwrap()]);
    assert_eq!(found[1].ports, [80]);
    delete(&mut catalog, Kind::ExportPolicy, "all");
    apply(&mut catalog, &policy("web", "[web]", "[]"));
    assert_eq!(rules(&mut catalog), Some(vec![]), "a policy without rules denies all");
    delete(&mut catalog, Kind::ExportPolicy, "web");
    assert_eq!(rules(&mut catalog), None);
}

/// In doubt: the namespace `shop`, or the whole site.
fn doubt(site: bool) -> Event {
    let mut doubt = Doubt::default();
    doubt.raise((!site).then_some("shop"));
    Event::Doubt(doubt)
}

const NO_DOUBT: fn() -> Event = || Event::Doubt(Doubt::default());

#[test]
fn an_export_that_comes_in_doubt_is_closed_and_an_old_one_stays() {
    let rules = |catalog: &mut Catalog| catalog.snapshot().reachable[&key("shop/web")].rules.clone();
    let all = format!("{SERVICE}---{SLICE}---{EXPORT}");
    for site in [false, true] {
        let mut fresh = catalog();
        fresh.handle(Event::Init);
        fresh.handle(doubt(site));
        apply(&mut fresh, &all);
        assert!(!fresh.is_complete());
        fresh.handle(Event::InitDone);
        assert!(fresh.is_complete());
        assert_eq!(rules(&mut fresh), Some(vec![]));
        assert!(fresh.snapshot().exports[&key("shop/web")].verdicts[1].message.contains("cannot be read"));
        apply(&mut fresh, &all.replace("namespace: shop", "namespace: bank"));
        let elsewhere = fresh.snapshot().reachable[&key("bank/web")].rules.clone();
        assert_eq!(elsewhere, if site { Some(vec![]) } else { None });
        fresh.handle(NO_DOUBT());
        assert_eq!(rules(&mut fresh), None);

        let mut old = catalog();
        apply(&mut old, &all);
        old.snapshot();
        old.handle(doubt(site));
        assert_eq!(rules(&mut old), None, "what held before still holds");
    }
}

/// Neither a rename nor a relist lifts a policy while it may be what cannot be read.
#[test]
fn a_policy_that_goes_away_in_doubt_still_counts() {
    let policy = "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata: {name: closed, namespace: shop}\nspec: {allow: []}\n";
    let rules = |catalog: &mut Catalog| catalog.snapshot().reachable[&key("shop/web")].rules.clone();
    let all = format!("{SERVICE}---{SLICE}---{EXPORT}");
    let mut catalog = catalog();
    apply(&mut catalog, &format!("{all}---\n{policy}"));
    assert_eq!(rules(&mut catalog), Some(vec![]));
    catalog.handle(doubt(true));
    delete(&mut catalog, Kind::ExportPolicy, "closed");
    assert_eq!(rules(&mut catalog), Some(vec![]));
    assert!(catalog.snapshot().exports[&key("shop/web")].verdicts[1].message.contains("still count"));
    catalog.handle(doubt(false));
    catalog.handle(Event::Init);
    apply(&mut catalog, &all);
    catalog.handle(doubt(false));
    catalog.handle(Event::InitDone);
    assert_eq!(rules(&mut catalog), Some(vec![]));
    catalog.handle(NO_DOUBT());
    assert_eq!(rules(&mut catalog), None);
}

/// The root of `west.linkspan.internal`.
fn bundle() -> &'static str {
    static BUNDLE: OnceLock<String> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let domain = TrustDomain::parse("west.linkspan.internal").unwrap();
        crate::ca::create(&dir.path().join("ca"), &domain).unwrap().trust_bundle_pem().to_owned()
    })
}

fn link_with(name: &str, domain: &str, bundle: &str) -> Object {
    let bundle: String = bundle.lines().map(|line| format!("    {line}\n")).collect();
    let text = format!(
        "apiVersion: linkspan.io/v1alpha1\nkind: Link\nmetadata: {{name: {name}}}\nspec:\n  trustDomain: {domain}\n  \
         addresses: [\"west.example.com:4143\"]\n  trustBundle: |\n{bundle}"
    );
    objects(&text).remove(0)
}

fn link(name: &str, domain: &str) -> Object {
    link_with(name, domain, bundle())
}

/// A root that vouches for no trust domain in particular: any Link may have it.
fn plain_bundle() -> String {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

fn accepted(snapshot: &Snapshot, name: &str) -> (bool, String) {
    let verdict = &snapshot.links[name].verdict;
    (verdict.holds(), verdict.reason.clone())
}

#[test]
fn a_link_is_checked_as_a_whole() {
    let mut catalog = catalog();
    catalog.handle(Event::Apply(Box::new(link("west", "west.linkspan.internal"))));
    let snapshot = catalog.snapshot();
    assert_eq!(accepted(&snapshot, "west"), (true, "Accepted".to_owned()));
    let peer = &snapshot.peers[&ClusterName::parse("west").unwrap()];
    assert_eq!(peer.addresses, ["west.example.com:4143"]);
    assert_eq!(peer.default_policy, DefaultPolicy::Allow);

    for (name, domain, reason) in [
        ("east", "north.linkspan.internal", "SelfLink"),
        ("north", "east.linkspan.internal", "SelfLink"),
        ("clusterset", "set.linkspan.internal", "ReservedName"),
        ("north", "north.linkspan.internal", "InvalidTrustBundle"),
        ("xorth", "west.linkspan.internal", "TrustDomainInUse"),
    ] {
        catalog.handle(Event::Apply(Box::new(link(name, domain))));
        let snapshot = catalog.snapshot();
        assert_eq!(accepted(&snapshot, name), (false, reason.to_owned()));
        assert_eq!(snapshot.peers.len(), 1, "{name}");
        assert!(!snapshot.links[name].in_force);
        let unsettled: Vec<_> = snapshot.unsettled.iter().map(ClusterName::as_str).collect();
        assert_eq!(unsettled, if name == "east" { vec![] } else { vec![name] }, "what it made before stays");
        delete(&mut catalog, Kind::Link, name);
        assert!(catalog.snapshot().unsettled.is_empty());
    }

    catalog.handle(Event::Apply(Box::new(link("west", "changed.linkspan.internal"))));
    let snapshot = catalog.snapshot();
    assert_eq!(accepted(&snapshot, "west"), (false, "InvalidTrustBundle".to_owned()));
    assert_eq!(snapshot.peers.len(), 1, "the version before stays in force");
    assert!(snapshot.links["west"].in_force);
    assert!(snapshot.unsettled.is_empty());
    delete(&mut catalog, Kind::Link, "west");
    assert!(catalog.snapshot().peers.is_empty());

    let unreadable = |names: &[&str]| {
        Event::Doubt(Doubt { links: names.iter().map(|name| (*name).to_owned()).collect(), ..Doubt::default() })
    };
    catalog.handle(unreadable(&["west", "No Cluster"]));
    assert_eq!(catalog.snapshot().unsettled.iter().map(ClusterName::as_str).collect::<Vec<_>>(), ["west"]);
    catalog.handle(unreadable(&[]));
    assert!(catalog.snapshot().unsettled.is_empty());
}

/// F-41 where nothing is known of an earlier start: the API server says whose Link is older.
#[test]
fn of_links_that_come_together_the_older_one_has_the_trust_domain() {
    let made = |name: &str, when: &str| {
        let Object::Link(mut link) = link(name, "west.linkspan.internal") else { panic!("a Link") };
        link.metadata.creation_timestamp = Some(serde_json::from_value(serde_json::json!(when)).unwrap());
        Object::Link(link)
    };
    let all = [made("a-newcomer", "2026-02-01T00:00:00Z"), made("west", "2026-01-01T00:00:00Z")];
    let snapshot = list(&mut catalog(), &all);
    assert_eq!(snapshot.peers.keys().map(ClusterName::as_str).collect::<Vec<_>>(), ["west"]);
    assert_eq!(accepted(&snapshot, "a-newcomer"), (false, "TrustDomainInUse".to_owned()));
}

/// F-41: a trust domain stays with the Link that had it first, whatever sorts first, and over a restart.
#[test]
fn a_trust_domain_stays_with_the_link_that_had_it_first() {
    let domain = "west.linkspan.internal";
    let (west, newcomer) = (link("west", domain), link("a-newcomer", domain));
    let holds = |snapshot: &Snapshot| {
        assert_eq!(accepted(snapshot, "west"), (true, "Accepted".to_owned()));
        assert_eq!(accepted(snapshot, "a-newcomer"), (false, "TrustDomainInUse".to_owned()));
        assert!(snapshot.links["a-newcomer"].verdict.message.contains("Link west"));
        assert_eq!(snapshot.peers.keys().map(ClusterName::as_str).collect::<Vec<_>>(), ["west"]);
    };
    let mut catalog = catalog();
    let before = list(&mut catalog, std::slice::from_ref(&west));
    let known = catalog.take_accepted().unwrap();
    catalog.handle(Event::Apply(Box::new(newcomer.clone())));
    let after = catalog.snapshot();
    holds(&after);
    assert!(Arc::ptr_eq(&before.peers, &after.peers), "the first is not touched");
    holds(&list(&mut restarted(catalog.take_accepted().unwrap()), &[newcomer.clone(), west.clone()]));
    holds(&list(&mut restarted(known), &[newcomer.clone(), west]));
    delete(&mut catalog, Kind::Link, "west");
    assert_eq!(accepted(&catalog.snapshot(), "a-newcomer"), (true, "Accepted".to_owned()), "free again");
}

#[test]
fn a_link_that_wants_anothers_trust_domain_keeps_its_own() {
    let bundle = plain_bundle();
    let link = |name: &str, domain: &str| link_with(name, &format!("{domain}.linkspan.internal"), &bundle);
    let domains = |snapshot: &Snapshot| {
        let peers = snapshot.peers.values();
        peers
            .map(|peer| format!("{}={}", peer.cluster, peer.trust_domain.as_str().split('.').next().unwrap()))
            .collect::<Vec<_>>()
    };
    let mut catalog = catalog();
    list(&mut catalog, &[link("north", "north"), link("west", "west")]);
    catalog.handle(Event::Apply(Box::new(link("west", "north"))));
    let snapshot = catalog.snapshot();
    assert_eq!(domains(&snapshot), ["north=north", "west=west"]);
    assert_eq!(accepted(&snapshot, "west"), (false, "TrustDomainInUse".to_owned()));
    assert!(snapshot.links["west"].in_force);
    catalog.handle(Event::Apply(Box::new(link("north", "south"))));
    assert_eq!(domains(&catalog.snapshot()), ["north=south", "west=north"], "what one gives up the other takes");
}

#[test]
fn the_last_good_versions_outlive_a_restart() {
    let policy = |weight: u32| {
        objects(&format!(
            "apiVersion: linkspan.io/v1alpha1\nkind: ClusterTrafficPolicy\nmetadata: {{name: web, namespace: shop}}\n\
             spec: {{service: web, tiers: [{{clusters: {{east: {weight}}}}}]}}\n"
        ))
        .remove(0)
    };
    let good = [link("west", "west.linkspan.internal"), policy(7)];
    let refused = [link("west", "changed.linkspan.internal"), policy(7)];
    let mut catalog = catalog();
    let before = list(&mut catalog, &good);
    let known = catalog.take_accepted().unwrap();
    assert!(catalog.take_accepted().is_none());
    // Refused while the controller runs, or while it does not: both times the version before is what a restart finds.
    list(&mut catalog, &refused);
    for kept in [known, catalog.take_accepted().unwrap()] {
        let mut catalog = restarted(kept);
        let after = list(&mut catalog, &refused);
        assert_eq!(after.peers, before.peers);
        assert_eq!(accepted(&after, "west"), (false, "InvalidTrustBundle".to_owned()));
        assert!(after.links["west"].in_force);
        let traffic = &after.traffic[&key("shop/web")];
        assert_eq!((traffic.tiers[0].clusters.values().sum::<u32>(), traffic.verdict.holds()), (7, true));

        let kept = catalog.take_accepted().unwrap();
        let gone = list(&mut catalog, &[]);
        assert!(gone.peers.is_empty() && gone.traffic.is_empty());
        assert!(list(&mut restarted(kept), &[]).peers.is_empty(), "what is not declared is not in force");
        assert_eq!(catalog.take_accepted(), Some(Accepted::default()));
    }
}

#[test]
fn the_first_traffic_policy_for_a_service_holds() {
    let policy = |name: &str, tiers: &str| {
        format!(
            "apiVersion: linkspan.io/v1alpha1\nkind: ClusterTrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{service: web, tiers: {tiers}}}\n"
        )
    };
    let mut catalog = catalog();
    apply(&mut catalog, &policy("b", "[{clusters: {east: 1, west: 9}, minHealthyPercent: 50}]"));
    let traffic = |catalog: &mut Catalog| Arc::clone(&catalog.snapshot().traffic[&key("shop/web")]);
    assert_eq!(traffic(&mut catalog).policy, "b");
    assert!(traffic(&mut catalog).verdict.holds());
    apply(&mut catalog, &policy("a", "[{clusters: {east: 1}}]"));
    assert_eq!(traffic(&mut catalog).policy, "a");
    assert_eq!(traffic(&mut catalog).verdict.reason, "PolicyConflict");
    delete(&mut catalog, Kind::ClusterTrafficPolicy, "b");
    apply(&mut catalog, &policy("a", "[{clusters: {east: 0}}]"));
    assert_eq!(traffic(&mut catalog).tiers[0].clusters.values().sum::<u32>(), 0, "zero is exactly zero");
    assert!(traffic(&mut catalog).verdict.message.contains("every weight is 0"));
    delete(&mut catalog, Kind::ClusterTrafficPolicy, "a");
    assert!(catalog.snapshot().traffic.is_empty());
}

#[test]
fn a_relist_is_one_atomic_replace() {
    let mut catalog = catalog();
    apply(&mut catalog, &format!("{SERVICE}---{SLICE}---{EXPORT}"));
    let before = catalog.snapshot();
    catalog.handle(Event::Init);
    apply(&mut catalog, &SERVICE.replace("web", "api"));
    assert_eq!(catalog.snapshot(), before);
    catalog.handle(Event::InitDone);
    let after = catalog.snapshot();
    assert!(after.exported.is_empty());
    assert_eq!(after.services.iter().collect::<Vec<_>>(), [&key("shop/api")]);
}

#[test]
fn unchanged_parts_keep_their_allocation() {
    let mut catalog = catalog();
    apply(&mut catalog, &format!("{SERVICE}---{SLICE}---{EXPORT}"));
    let before = catalog.snapshot();
    apply(&mut catalog, &format!("{SERVICE}---{SLICE}---{EXPORT}"));
    let after = catalog.snapshot();
    assert!(Arc::ptr_eq(&before.exported, &after.exported));
    assert!(Arc::ptr_eq(&before.reachable, &after.reachable));
}

#[test]
fn exports_beyond_the_cap_are_told_so() {
    let mut catalog = catalog();
    for index in 0..=MAX_SERVICES {
        apply(&mut catalog, &format!("{SERVICE}---{EXPORT}").replace("web", &format!("web-{index:05}")));
    }
    let snapshot = catalog.snapshot();
    assert_eq!(snapshot.exported.len(), MAX_SERVICES);
    assert_eq!(snapshot.reachable.len(), MAX_SERVICES);
    assert_eq!(verdicts(&snapshot, &format!("shop/web-{MAX_SERVICES}")), expected("True", "Valid", "False", "Failed"));
}

/// Objects about three services, each in several versions.
fn pool() -> Vec<Object> {
    let mut all = Vec::new();
    for name in ["web", "api", "db"] {
        let rename = |text: &str| text.replace("web", name);
        for text in [
            rename(SERVICE),
            rename(SERVICE).replace("spec:", "spec:\n  clusterIP: None"),
            rename(SERVICE).replace("team: a", "mirror.linkerd.io/exported: \"true\""),
            rename(SLICE),
            rename(SLICE).replace("10.0.0.1", "10.0.9.1"),
            rename(SLICE).replace(&format!("service-name: {name}"), "service-name: db"),
            rename(EXPORT),
            format!(
                "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{services: [{name}], allow: [{{}}]}}\n"
            ),
            format!(
                "apiVersion: linkspan.io/v1alpha1\nkind: ClusterTrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{service: web, tiers: [{{clusters: {{{name}: 1}}}}]}}\n"
            ),
        ] {
            all.extend(objects(&text));
        }
    }
    all.push(link("west", "west.linkspan.internal"));
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The same objects give the same snapshot, whatever happened before and in whatever order they came (but for what the
    /// catalog remembers on purpose).
    #[test]
    fn any_order_gives_the_same_snapshot(ops in prop::collection::vec((0..29_usize, prop::bool::weighted(0.3), prop::bool::ANY), 0..80)) {
        let pool = pool();
        let mut walked = catalog();
        let mut present: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        for (index, remove, look) in ops {
            let object = &pool[index % pool.len()];
            if remove {
                present.remove(&object.key());
                walked.handle(Event::Delete(object.key()));
            } else {
                present.insert(object.key(), object.clone());
                walked.handle(Event::Apply(Box::new(object.clone())));
            }
            if look {
                walked.snapshot();
            }
        }
        let mut forwards = catalog();
        let mut listed = catalog();
        listed.handle(Event::Init);
        for object in present.values() {
            forwards.handle(Event::Apply(Box::new(object.clone())));
        }
        for object in present.values().rev() {
            listed.handle(Event::Apply(Box::new(object.clone())));
        }
        listed.handle(Event::InitDone);
        let expected = forwards.snapshot();
        prop_assert_eq!(&walked.snapshot(), &expected);
        prop_assert_eq!(&listed.snapshot(), &expected);
    }
}
