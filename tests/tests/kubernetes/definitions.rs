//! The resource definitions as people meet them: kubectl explains them, and the API server refuses what is wrong.

use linkspan_tests::bed::linkspan::link_manifest;
use linkspan_tests::bed::{PATIENCE, shared};
use linkspan_tests::process::eventually;

use super::kit::needs_kubernetes;

#[test]
fn kubectl_explains_a_link() {
    needs_kubernetes!();
    let bed = shared();
    let mut text = String::new();
    // The API server publishes a new definition's schema within seconds.
    eventually("kubectl explain knows links", PATIENCE, || {
        let (ok, said) = bed.a().try_kubectl(&["explain", "link.spec"]);
        text = said;
        ok
    });
    for (field, words) in [
        ("addresses", "of the peer's gateways"),
        ("trustBundle", "Root certificates of that trust domain"),
        ("trustDomain", "The only trust domain that this peer may speak for"),
        ("defaultPolicy", "exports without an ExportPolicy"),
        ("transport", "gateways are dialled over"),
        ("congestion", "lost packets over QUIC mean"),
    ] {
        let explained = text
            .split(field)
            .nth(1)
            .is_some_and(|rest| rest.split_whitespace().collect::<Vec<_>>().join(" ").contains(words));
        assert!(explained, "{field}: {words}\n{text}");
    }
}

#[test]
fn kubectl_get_links_reads_like_a_dashboard_line() {
    needs_kubernetes!();
    let bed = shared();
    let (a, _) = bed.pair();
    let table = a.kubectl(&["get", "links"]);
    let head: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(head, ["NAME", "TRUST-DOMAIN", "ACCEPTED", "CONNECTED", "SYNCED", "SERVICES", "VERSION", "AGE"]);
    let short = a.kubectl(&["get", "lsl", "-o", "name"]);
    assert!(short.lines().any(|line| line == "link.linkspan.io/b"), "{short}");
}

#[test]
fn a_link_says_that_it_is_connected_and_synced() {
    needs_kubernetes!();
    let bed = shared();
    let (a, _) = bed.pair();
    let mut row = String::new();
    eventually("kubectl get links shows the state", PATIENCE, || {
        row = a.kubectl(&["get", "links", "b", "--no-headers"]);
        let cells: Vec<&str> = row.split_whitespace().collect();
        cells.get(2..5) == Some(&["True"; 3]) && cells.len() == 8
    });
    assert!(row.contains("b.linkspan.internal"), "{row}");
}

#[test]
fn wrong_fields_are_refused_with_words_that_help() {
    needs_kubernetes!();
    let bed = shared();
    let (a, b) = bed.pair();
    let good = link_manifest(b);
    let wrong = |name: &str, from: &str, to: &str, words: &str| {
        assert!(good.contains(from), "{good}");
        let manifest = good.replace(from, to).replace("\"name\":\"b\"", &format!("\"name\":\"{name}\""));
        let (ok, said) = a.try_apply(&manifest);
        assert!(!ok, "taken: {manifest}");
        assert!(said.contains(words), "{said}");
    };
    let address = b.link_address();
    wrong("port", &address, "198.51.100.2:99999", "each address is host:port with a port from 1 to 65535");
    wrong(
        "bundle",
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN NOTHING-----",
        "put in the peer's root certificates as PEM",
    );
    wrong("domain", "b.linkspan.internal", "B!", "spec.trustDomain");
    wrong("default", "\"spec\":{", "\"spec\":{\"defaultPolicy\":\"Maybe\",", "supported values: \"Allow\", \"Deny\"");
    wrong("typo", "\"trustDomain\"", "\"trustDomian\"", "unknown field \"spec.trustDomian\"");
    let (ok, said) = a.try_apply(
        "apiVersion: linkspan.io/v1alpha1\nkind: ClusterTrafficPolicy\nmetadata: {name: web, namespace: kube-public}\nspec: \
         {service: web, tiers: [{clusters: {a: -1}}]}\n",
    );
    assert!(!ok && said.contains("spec.tiers[0].clusters.a"), "{said}");
    let (ok, said) = a.try_apply(
        "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata: {name: web, namespace: kube-public}\nspec: {services: \
         [web], allow: [{identities: [\"not-spiffe\"]}]}\n",
    );
    assert!(!ok && said.contains("spec.allow[0].identities"), "{said}");
}
