//! What a user types: the commands of deploy/kubernetes.md.

use linkspan_tests::bed::linkspan::{NAMESPACE, documented_dns_lines};
use linkspan_tests::bed::{PATIENCE, alone, shared};
use linkspan_tests::process::eventually;

use super::kit::{Shop, needs_kubernetes};

#[test]
fn installing_again_changes_nothing() {
    needs_kubernetes!();
    let bed = alone();
    let a = bed.a();
    let root = a.kubectl(&["-n", NAMESPACE, "get", "configmap", "linkspan-root", "-o", "jsonpath={.data}"]);
    let link = a.link_address();
    let line = format!(
        "linkspan install --cluster-name a --ca-secret linkspan-ca --service-type NodePort --node-port {port} --address {link} \
         --dns-cluster-ip 10.96.0.53",
        port = a.link_port()
    );
    let said = a.sh(&format!("{line} | kubectl apply -f -"));
    let changed: Vec<&str> = said.lines().filter(|line| !line.ends_with(" unchanged")).collect();
    // kubectl compares what was applied, and an API server fills in fields of some kinds: those it calls configured.
    let surprising: Vec<&&str> = changed.iter().filter(|line| !line.ends_with(" configured")).collect();
    assert!(surprising.is_empty(), "{surprising:?}");
    assert_eq!(root, a.kubectl(&["-n", NAMESPACE, "get", "configmap", "linkspan-root", "-o", "jsonpath={.data}"]));
    assert_eq!(a.sh(&line), a.sh(&line), "the same every time");
    // The definition of a Link names them to refuse them; a key itself has base64 in it.
    assert!(
        !a.sh(&line).contains("BEGIN PRIVATE KEY") && !a.sh(&line).contains("BEGIN EC PRIVATE KEY"),
        "it belongs into Git"
    );
}

#[test]
fn a_second_root_does_not_replace_the_first() {
    needs_kubernetes!();
    let bed = shared();
    let a = bed.a();
    let before =
        a.get(&format!("/api/v1/namespaces/{NAMESPACE}/secrets/linkspan-ca")).expect("the root")["data"].clone();
    let (ok, said) = a.try_sh("linkspan ca create --cluster-name a | kubectl apply -f -");
    assert!(!ok && said.contains("immutable"), "{said}");
    let after =
        a.get(&format!("/api/v1/namespaces/{NAMESPACE}/secrets/linkspan-ca")).expect("the root")["data"].clone();
    assert_eq!(before, after);
}

#[test]
fn what_a_stage_prints_needs_only_the_rights_of_that_stage() {
    needs_kubernetes!();
    let bed = shared();
    let a = bed.a();
    let printed = a.sh("linkspan install --cluster-name a --ca-secret linkspan-ca --stage namespaced");
    for kind in ["ClusterRole", "CustomResourceDefinition", "ValidatingAdmissionPolicy", "Namespace"] {
        assert!(!printed.contains(&format!("\nkind: {kind}\n")), "{kind} is a cluster administrator's");
    }
    let printed = a.sh("linkspan install --cluster-name a --stage cluster");
    for kind in ["Deployment", "Secret", "ConfigMap"] {
        assert!(!printed.contains(&format!("\nkind: {kind}\n")), "{kind} is the namespace owner's");
    }
}

#[test]
fn the_documented_lines_let_coredns_answer_clusterset_names() {
    needs_kubernetes!();
    let bed = shared();
    let lines = documented_dns_lines();
    assert_eq!(lines, "clusterset.local:53 {\n    # linkspan\n    forward . ADDRESS\n}");
    let corefile = std::fs::read_to_string(bed.a().corefile()).expect("Corefile");
    assert!(corefile.contains(&lines.replace("ADDRESS", "10.96.0.53")), "{corefile}");
}

#[test]
fn linkspan_link_export_prints_the_link_of_a_cluster() {
    needs_kubernetes!();
    let bed = alone();
    let (a, b) = bed.pair();
    let exported = b.sh("linkspan link export --context kubernetes");
    assert!(exported.contains("kind: Link") && !exported.contains("PRIVATE KEY"), "{exported}");
    // It says where b is dialled and what vouches for it: a Link made of it is the one that is there.
    a.kubectl(&["delete", "link", "b"]);
    a.apply(&exported);
    let shop = Shop::with_web(&bed, "exported");
    shop.export("web");
    let (ok, said) = a.try_sh("linkspan check --context kubernetes");
    assert!(ok, "{said}");
    eventually("linkspan gateways lists b", PATIENCE, || {
        a.try_sh("linkspan gateways --context kubernetes").1.contains('b')
    });
}
