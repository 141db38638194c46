//! `linkspan check` names the cause: each test makes one fault, sees it named with its remedy, and mends it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use linkspan_tests::bed::api::{JSON_PATCH, MERGE, path};
use linkspan_tests::bed::cluster::DNS_MAP;
use linkspan_tests::bed::linkspan::{Component, DNS_IP};
use linkspan_tests::bed::{Cluster, PATIENCE, alone, shared};
use linkspan_tests::process::eventually;
use serde_json::{Value, json};

use super::kit::{Shop, dig, needs_kubernetes};

/// Cluster c, which has no Link, for one fault at a time.
fn one_fault() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `linkspan check` fails, and the check of this name for a reason with these words and with a remedy with those;
/// what programs read and what people read say the same. Returns the remedy.
fn named(cluster: &Cluster, check: &str, cause: &str, remedy: &str) -> String {
    let mut last = String::new();
    let mut found = Value::Null;
    eventually(&format!("check says `{check}`: {cause}; {remedy}"), PATIENCE, || {
        last = cluster.sh("linkspan check --context kubernetes -o json || echo \"exit $?\"");
        let Some((json, code)) = last.rsplit_once("exit ") else { return false };
        let report: Value = serde_json::from_str(json).expect("JSON");
        assert_eq!((report["ok"].as_bool(), code.trim()), (Some(false), "1"), "{last}");
        let has = |one: &Value, field: &str, words: &str| one[field].as_str().is_some_and(|text| text.contains(words));
        let checks = report["checks"].as_array().expect("checks");
        let one = checks.iter().find(|one| one["name"] == check && has(one, "reason", cause));
        found =
            one.filter(|one| one["verdict"] == "failure" && has(one, "remedy", remedy)).cloned().unwrap_or_default();
        if found.is_null() {
            let failed: Vec<_> = checks.iter().filter(|one| one["verdict"] != "ok").collect();
            eprintln!("not yet: {failed:#?}");
        }
        !found.is_null()
    });
    let (ok, text) = cluster.try_sh("linkspan check --context kubernetes");
    assert!(!ok && text.contains(&format!("FAILED   {check}\n")), "{text}");
    assert!(text.contains(cause) && text.contains("remedy: ") && text.contains("not all checks passed"), "{text}");
    found["remedy"].as_str().expect("a remedy").to_owned()
}

/// Waits until everything is well again.
fn mended(cluster: &Cluster) {
    let (ok, said) = cluster.try_sh("linkspan check --context kubernetes --wait 60");
    assert!(ok, "{said}");
}

#[test]
fn a_missing_definition() {
    needs_kubernetes!();
    let bed = shared();
    let (_one, c) = (one_fault(), bed.c());
    c.kubectl(&["delete", "crd", "clustertrafficpolicies.linkspan.io"]);
    named(
        c,
        "all definitions are there, in the versions that are used",
        "the API server does not serve clustertrafficpolicies.linkspan.io/v1alpha1",
        "linkspan crds | kubectl --context kubernetes apply -f -",
    );
    c.sh("linkspan crds | kubectl --context kubernetes apply -f -");
    mended(c);
}

#[test]
fn a_missing_right() {
    needs_kubernetes!();
    let bed = shared();
    let (_one, c) = (one_fault(), bed.c());
    c.kubectl(&["delete", "clusterrolebinding", "linkspan-writer"]);
    let remedy = named(
        c,
        "the controller has its rights",
        "its service account may not create, patch, delete services (role linkspan-writer)",
        "linkspan install --stage cluster --no-multi-cluster-crds | kubectl --context kubernetes apply -f -",
    );
    let (_, command) = remedy.split_once(": ").expect("who and what");
    c.sh(command);
    mended(c);
}

#[test]
fn a_coredns_that_does_not_forward() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::with_web(&bed, "forward");
    shop.export("web");
    let name = shop.clusterset_name("web");
    eventually("the name resolves", PATIENCE, || !dig(&shop.client, &name, "A").is_empty());
    let map = shop.a.get(DNS_MAP).expect("the ConfigMap of CoreDNS");
    let text = map["data"]["Corefile"].as_str().expect("a Corefile");
    let (others, _) = text.split_once("clusterset.local:53").expect("the documented lines");
    let set = |text: &str| {
        shop.a.patch(MERGE, DNS_MAP, &json!({ "data": { "Corefile": text } }).to_string());
        shop.a.sync_dns();
    };
    set(others);
    eventually("the name does not resolve", PATIENCE, || dig(&shop.client, &name, "A").is_empty());
    named(
        shop.a,
        "CoreDNS forwards clusterset.local",
        "nothing in its configuration names that zone",
        &format!("clusterset.local:53 {{\n    # linkspan\n    forward . {DNS_IP}\n}}"),
    );
    set(text);
    eventually("the name resolves again", PATIENCE, || !dig(&shop.client, &name, "A").is_empty());
}

#[test]
fn gateways_without_an_address() {
    needs_kubernetes!();
    let bed = shared();
    let (_one, c) = (one_fault(), bed.c());
    let install = format!("linkspan install --cluster-name c --ca-secret linkspan-ca --dns-cluster-ip {DNS_IP}");
    // A load balancer is asked for, and nobody answers.
    c.sh(&format!("{install} | kubectl apply -f -"));
    named(
        c,
        "peers have an address to dial",
        "the gateways have no address: the load balancer has given the Service linkspan-link none",
        "linkspan install --address HOST:PORT",
    );
    let (port, address) = (c.link_port(), c.link_address());
    c.sh(&format!("{install} --service-type NodePort --node-port {port} --address {address} | kubectl apply -f -"));
    mended(c);
}

/// A Link whose bundle is a new root for the peer's trust domain.
fn link(c: &Cluster, peer: &str, address: &str) {
    c.sh(&format!("rm -rf {peer}-ca; linkspan ca create --cluster-name {peer} --out {peer}-ca"));
    let root = std::fs::read_to_string(c.dir().join(format!("{peer}-ca/root.pem"))).expect("a root");
    let spec = json!({
        "trustDomain": format!("{peer}.linkspan.internal"), "addresses": [address], "trustBundle": root,
    });
    let meta = json!({ "name": peer });
    let object = json!({ "apiVersion": "linkspan.io/v1alpha1", "kind": "Link", "metadata": meta, "spec": spec });
    c.apply(&object.to_string());
}

#[test]
fn a_peer_that_is_not_reached() {
    needs_kubernetes!();
    let bed = shared();
    let (_one, c) = (one_fault(), bed.c());
    // Of b's network, where nothing has this address: packets go and nothing comes back.
    link(c, "nowhere", "198.51.100.77:4143");
    named(
        c,
        "nowhere: the link is alive",
        "tried 198.51.100.77:4143",
        "UDP to 198.51.100.77:4143 passes every firewall between",
    );
    c.unlink("nowhere");
    mended(c);
}

#[test]
fn trust_that_does_not_match() {
    needs_kubernetes!();
    let bed = shared();
    let (_one, b, c) = (one_fault(), bed.b(), bed.c());
    // b's gateways answer, and their certificates are not of this root.
    link(c, "b", &b.link_address());
    named(
        c,
        "b: the link is alive",
        "TrustBundleMismatch",
        "the trust bundle in our Link for b is not that of its root",
    );
    c.unlink("b");
    mended(c);
}

#[test]
fn a_clock_that_is_wrong() {
    needs_kubernetes!();
    let bed = shared();
    let (_one, c) = (one_fault(), bed.c());
    let gateway = c.replicas(Component::Gateway).remove(0);
    c.kill_replica(&gateway);
    c.restart_replica_ahead(&gateway, 600);
    named(
        c,
        "the clocks agree",
        // Whole seconds are compared, and the answer was under way: 9 min 59 s are 9 min.
        &format!("the clock of the node of {} is ", gateway.name),
        "set it (chronyd, systemd-timesyncd)",
    );
    c.kill_replica(&gateway);
    c.restart_replica(&gateway);
    mended(c);
}

#[test]
fn mirrors_that_differ_from_exports() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::with_web(&bed, "differs");
    let host = shop.export("web");
    // One that leads would mend it at once. In good order: the next one need not wait until a lease runs out.
    let controllers = shop.a.replicas(Component::Controller);
    controllers.iter().for_each(|controller| shop.a.end_replica(controller));
    let mirror = path::service("differs", "web-b");
    shop.a.patch(JSON_PATCH, &mirror, r#"[{"op": "remove", "path": "/spec/ports/0"}]"#);
    named(
        shop.a,
        "the Service differs/web-b is as the export says",
        "it lacks port 80, which is exported",
        "the controller cannot write",
    );
    controllers.iter().for_each(|_| drop(shop.a.add_replica(Component::Controller)));
    shop.a.wait_replicas(Component::Controller);
    shop.a.wait(&mirror, 2 * PATIENCE, |service| service["spec"]["ports"][0]["port"] == 80);
    shop.wait_answer(&format!("http://{host}/"));
}
