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
    for binding in bindings.filter(|binding| names_controller(binding)) {
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

#[test]
fn what_the_controllers_asked_for_in_all_tests_is_what_their_roles_declare() {
    needs_kubernetes!();
    let bed = alone();
    // Enough for a run of this test alone: mirrors come, are mended, and go.
    let shop = Shop::with_web(&bed, "rights");
    shop.export("web");
    let import = path::import("rights", "web");
    for object in [shop.mirror("web"), import] {
        shop.a.wait(&object, PATIENCE, |_| true);
        let (code, answer) = shop.a.request("DELETE", &object, None);
        assert_eq!(code, 200, "{answer}");
        shop.a.wait(&object, REPAIR, |_| true);
    }
    shop.b.kubectl(&["-n", "rights", "delete", "serviceexport", "web"]);
    shop.a.wait_absent(&shop.mirror("web"), PATIENCE);
    let mut unused = Vec::new();
    for cluster in [shop.a, shop.b] {
        let declared = declared(cluster);
        let bound: BTreeSet<_> = declared.iter().filter_map(|right| right.3.clone()).collect();
        let asked: Vec<_> =
            cluster.audited(CONTROLLER).into_iter().filter(|request| !request.agent.starts_with("curl")).collect();
        // An API server that has just started denies for a moment what it allows: its own rules are not read yet. Admission, too,
        // answers a declared write with 403.
        let declared_somewhere = |request: &Request| {
            declared.iter().any(|(verb, group, resource, _)| {
                (verb, group, resource) == (&request.verb, &request.group, &request.resource)
            })
        };
        let denied: Vec<_> =
            asked.iter().filter(|request| matches!(request.code, 401 | 403) && !declared_somewhere(request)).collect();
        assert!(denied.is_empty(), "{}: the controllers asked for what they may not: {denied:#?}", cluster.name());
        let used: BTreeSet<Right> = asked
            .into_iter()
            .map(|request| {
                let namespace = Some(request.namespace).filter(|namespace| bound.contains(namespace));
                let bound = namespace.filter(|namespace| {
                    let right = (
                        request.verb.clone(),
                        request.group.clone(),
                        request.resource.clone(),
                        Some(namespace.clone()),
                    );
                    declared.contains(&right)
                });
                (request.verb, request.group, request.resource, bound)
            })
            .collect();
        let more: Vec<_> = used.difference(&declared).collect();
        assert!(more.is_empty(), "{}: used and not declared: {more:#?}", cluster.name());
        unused.push(declared.difference(&used).cloned().collect::<BTreeSet<Right>>());
    }
    // A right that neither cluster's controllers needed in the whole suite is one too many.
    let nobody: Vec<_> = unused[0].intersection(&unused[1]).collect();
    assert!(nobody.is_empty(), "declared and used by nobody: {nobody:#?}");
}
