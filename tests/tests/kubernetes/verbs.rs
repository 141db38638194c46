//! What the controllers asked the API servers for, by verb, group and resource, is what their roles declare. Tests run in the
//! order of their names, so this one comes last and the audit logs hold what all others made the controllers do.

use std::collections::BTreeSet;

use linkspan_tests::bed::api::path;
use linkspan_tests::bed::audit::Request;
use linkspan_tests::bed::linkspan::NAMESPACE;
use linkspan_tests::bed::{Cluster, PATIENCE, alone};
use serde_json::Value;

use super::faults::CONTROLLER;
use super::kit::{REPAIR, Shop, needs_kubernetes};

/// A right as RBAC counts: verb, group, resource; and the namespace, where it is bound to one.
type Right = (String, String, String, Option<String>);

/// What roles give the controller, as the API server has them.
fn declared(cluster: &Cluster) -> BTreeSet<Right> {
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let mut rights = BTreeSet::new();
    let bindings = cluster.list(&format!("{rbac}/clusterrolebindings")).into_iter();
    let bindings = bindings.chain(cluster.list(&format!("{rbac}/rolebindings")));
    for binding in bindings.filter(names_controller) {
        let namespace = binding["metadata"]["namespace"].as_str().map(str::to_owned);
        let role = binding["roleRef"]["name"].as_str().expect("a role");
        let place = match (binding["roleRef"]["kind"].as_str(), &namespace) {
            (Some("Role"), Some(namespace)) => format!("{rbac}/namespaces/{namespace}/roles/{role}"),
            _ => format!("{rbac}/clusterroles/{role}"),
        };
        let role = cluster.get(&place).unwrap_or_else(|| panic!("no role {place}"));
        for rule in role["rules"].as_array().into_iter().flatten() {
            for ((verb, group), resource) in texts(rule, "verbs")
                .flat_map(|verb| texts(rule, "apiGroups").map(move |group| (verb.clone(), group)))
                .flat_map(|pair| texts(rule, "resources").map(move |resource| (pair.clone(), resource)))
            {
                assert!(![&verb, &group, &resource].contains(&&"*".to_owned()), "no wildcard: {rule}");
                rights.insert((verb, group, resource, namespace.clone()));
            }
        }
    }
    rights
}

fn names_controller(binding: &Value) -> bool {
    let subjects = binding["subjects"].as_array().cloned().unwrap_or_default();
    subjects.iter().any(|subject| subject["name"] == "linkspan-controller" && subject["namespace"] == NAMESPACE)
}

fn texts<'a>(rule: &'a Value, field: &str) -> impl Iterator<Item = String> + 'a + use<'a> {
    rule[field].as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned))
}

/// What the controllers of a cluster have asked for; a test's own requests with their token are by curl.
fn asked(cluster: &Cluster) -> Vec<Request> {
    cluster.audited(CONTROLLER).into_iter().filter(|request| !request.agent.starts_with("curl")).collect()
}

/// The rights that these requests needed, as `declared` counts them: a namespace is named only where a right is bound to one.
fn used(asked: Vec<Request>, declared: &BTreeSet<Right>) -> BTreeSet<Right> {
    let mut used = BTreeSet::new();
    for Request { verb, group, resource, namespace, code, .. } in asked {
        let bound = (verb.clone(), group.clone(), resource.clone(), Some(namespace));
        let namespace = declared.contains(&bound).then_some(bound.3).flatten();
        // A server-side apply of what is not there needs the right to create it.
        if verb == "patch" && code == 201 {
            used.insert(("create".to_owned(), group.clone(), resource.clone(), namespace.clone()));
        }
        used.insert((verb, group, resource, namespace));
    }
    used
}

#[test]
fn the_controllers_asked_for_nothing_in_all_tests_that_their_roles_do_not_declare() {
    needs_kubernetes!();
    let bed = alone();
    let (a, b) = bed.pair();
    for cluster in [a, b] {
        let declared = declared(cluster);
        let asked = asked(cluster);
        assert!(asked.iter().any(|request| request.verb == "watch"), "the audit log tells of the controllers");
        let agents: BTreeSet<_> = asked.iter().map(|request| request.agent.as_str()).collect();
        let ours = agents.iter().all(|agent| agent.starts_with("linkspan-mirror-controller/"));
        assert!(ours, "{}: they say who they are: {agents:?}", cluster.name());
        // What is denied counts too, with one exception that needs none: an API server that has just started denies for a moment
        // what it allows, because its own rules are not read yet.
        let more: Vec<_> = used(asked, &declared).difference(&declared).cloned().collect();
        assert!(more.is_empty(), "{}: asked for and not declared: {more:#?}", cluster.name());
    }
}

#[test]
fn the_roles_of_the_controllers_declare_nothing_that_they_did_not_need_in_all_tests() {
    needs_kubernetes!();
    let bed = alone();
    // Enough for a run of this test alone: mirrors come, are mended, and go.
    let shop = Shop::with_web(&bed, "verbs");
    shop.export("web");
    let import = path::import("verbs", "web");
    for object in [shop.mirror("web"), import] {
        shop.a.wait(&object, PATIENCE, |_| true);
        let (code, answer) = shop.a.request("DELETE", &object, None);
        assert_eq!(code, 200, "{answer}");
        shop.a.wait(&object, REPAIR, |_| true);
    }
    shop.b.kubectl(&["-n", "verbs", "delete", "serviceexport", "web"]);
    shop.a.wait_absent(&shop.mirror("web"), PATIENCE);
    // A right that neither cluster's controllers needed is one too many.
    let [a, b] = [shop.a, shop.b].map(|cluster| {
        let declared = declared(cluster);
        let used = used(asked(cluster), &declared);
        declared.difference(&used).cloned().collect::<BTreeSet<Right>>()
    });
    let nobody: Vec<_> = a.intersection(&b).collect();
    assert!(nobody.is_empty(), "declared and used by nobody: {nobody:#?}");
}
