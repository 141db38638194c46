//! Who may do what. The gateway may do nothing: it has a service account only to prove which pod it is.
//!
//! This is the whole list. A test on a real API server compares it with what the controller does (S-49): a right that is never
//! used goes, one that is missing shows. No wildcard, no secrets, no exec, no roles, no update (server-side apply patches),
//! no deletion of whole collections.

use linkspan_mirror_controller::labels;
use serde_json::{Value, json};

use super::options::Options;
use super::{CONTROLLER, GATEWAY, Item, cluster_metadata, metadata, part_of};

/// One rule: API group, resources, verbs.
type Rule = (&'static str, &'static [&'static str], &'static [&'static str]);

/// Lists and their changes.
const FOLLOW: &[&str] = &["list", "watch"];

/// With single objects: what the controller writes, it looks at right before.
const READ: &[&str] = &["get", "list", "watch"];

const MULTI_CLUSTER: &str = "multicluster.x-k8s.io";
const OURS: &str = "linkspan.io";

/// The cluster roles of the controller: name, reason, rules.
const CLUSTER_ROLES: [(&str, &str, &[Rule]); 5] = [
    (
        "linkspan-reader",
        "What is exported, by whom, and where its endpoints are.",
        &[
            ("", &["services"], READ),
            ("", &["namespaces"], FOLLOW),
            ("discovery.k8s.io", &["endpointslices"], READ),
            (MULTI_CLUSTER, &["serviceimports"], READ),
            (MULTI_CLUSTER, &["serviceexports"], FOLLOW),
            (OURS, &["clustertrafficpolicies", "exportpolicies", "links"], FOLLOW),
        ],
    ),
    (
        "linkspan-identity",
        "Which service account a pod's address belongs to, and whether a gateway's token is genuine. RBAC cannot grant a part of \
         a Pod; the controller keeps its address, phase and service account and drops the rest unread.",
        &[("", &["pods"], FOLLOW), ("authentication.k8s.io", &["tokenreviews"], &["create"])],
    ),
    (
        "linkspan-status",
        "Conditions on what users look at. The status alone: what they asked for stays theirs.",
        &[
            (MULTI_CLUSTER, &["serviceexports/status", "serviceimports/status"], &["patch"]),
            (OURS, &["clustertrafficpolicies/status", "exportpolicies/status", "links/status"], &["patch"]),
        ],
    ),
    (
        "linkspan-events",
        "Events lie in the namespace of what they are about, those of a Link in default.",
        &[("events.k8s.io", &["events"], &["create", "patch"])],
    ),
    (
        WRITER,
        "Mirrors. RBAC knows no labels; the ValidatingAdmissionPolicies keep the controller to objects of its own.",
        &[
            ("", &["services"], WRITE),
            ("discovery.k8s.io", &["endpointslices"], WRITE),
            (MULTI_CLUSTER, &["serviceimports"], WRITE),
        ],
    ),
];

/// The role to write mirrors, and its bindings.
pub(crate) const WRITER: &str = "linkspan-writer";

/// Server-side apply is a patch, and a creation where nothing is there.
const WRITE: &[&str] = &["create", "patch", "delete"];

/// Every right of the controller in the whole cluster: role, group, resource with its subresource, verb.
pub(super) fn all() -> impl Iterator<Item = (&'static str, &'static str, &'static str, &'static str)> {
    CLUSTER_ROLES.iter().flat_map(|(role, _, rules)| {
        rules.iter().flat_map(move |(group, resources, verbs)| {
            resources.iter().flat_map(move |resource| verbs.iter().map(move |verb| (*role, *group, *resource, *verb)))
        })
    })
}

/// What a cluster administrator grants: rights of the whole cluster and of namespaces that are not ours.
pub(super) fn cluster(options: &Options) -> Vec<Item> {
    let mut items = Vec::new();
    for (name, reason, rules) in CLUSTER_ROLES {
        items.push(Item::new(reason, cluster_role(name, part_of(), rules)));
    }
    for (name, ..) in CLUSTER_ROLES {
        let mut binding = binding("ClusterRoleBinding", cluster_metadata(name), name, options);
        let mut note = "";
        if name == WRITER && !options.imports.is_empty() {
            // Printed all the same: `kubectl apply` takes the subject out of one that was there, and deletes nothing.
            binding["subjects"] = json!([]);
            note = "Mirrors in the namespaces named below only: this one binds nobody.";
        }
        items.push(Item::new(note, binding));
    }
    for namespace in &options.imports {
        let mut metadata = metadata(WRITER, namespace.as_str());
        // It lies in a namespace of somebody else, as mirrors do, and goes with them by the same label.
        metadata["labels"][labels::MANAGED_BY] = json!(labels::MANAGED_BY_VALUE);
        items.push(Item::new("Mirrors in this namespace.", binding("RoleBinding", metadata, WRITER, options)));
    }
    items.extend(for_users());
    items
}

/// What the owner of the namespace can grant by the rights of an owner.
pub(super) fn namespaced(options: &Options) -> Vec<Item> {
    let account = |name: &str, automount: bool| {
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata(name, options.namespace()),
            "automountServiceAccountToken": automount,
        })
    };
    let role = "linkspan-leases";
    vec![
        Item::new("The controllers.", account(CONTROLLER, true)),
        Item::new(
            "The gateways. No role is bound to it, and no token for the API server is mounted.",
            account(GATEWAY, false),
        ),
        Item::new(
            "Which controller leads.",
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": metadata(role, options.namespace()),
                "rules": [
                    { "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"] },
                    {
                        "apiGroups": ["coordination.k8s.io"],
                        "resources": ["leases"],
                        "resourceNames": [CONTROLLER],
                        "verbs": ["get", "patch"],
                    },
                ],
            }),
        ),
        Item::new(
            "",
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": metadata(role, options.namespace()),
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role },
                "subjects": [subject(options)],
            }),
        ),
    ]
}

/// What people with the rights to edit or to view a namespace may do with our kinds in it.
fn for_users() -> [Item; 2] {
    let labels = |aggregates: &[&str]| {
        let mut labels = part_of();
        for role in aggregates {
            labels[format!("rbac.authorization.k8s.io/aggregate-to-{role}")] = json!("true");
        }
        labels
    };
    let edit: [Rule; 2] = [
        (
            OURS,
            &["clustertrafficpolicies", "exportpolicies"],
            &["create", "delete", "deletecollection", "patch", "update"],
        ),
        (MULTI_CLUSTER, &["serviceexports"], &["create", "delete", "deletecollection", "patch", "update"]),
    ];
    let view: [Rule; 2] = [
        (OURS, &["clustertrafficpolicies", "exportpolicies"], READ),
        (MULTI_CLUSTER, &["serviceexports", "serviceimports"], READ),
    ];
    [
        Item::new(
            "For people: whoever may edit a namespace may export its services and say who calls them. Bound to nobody by itself.",
            cluster_role("linkspan-edit", labels(&["edit", "admin"]), &edit),
        ),
        Item::new(
            "For people: whoever may view a namespace sees its exports and imports.",
            cluster_role("linkspan-view", labels(&["view"]), &view),
        ),
    ]
}

fn cluster_role(name: &str, labels: Value, rules: &[Rule]) -> Value {
    let rules: Vec<_> = rules
        .iter()
        .map(|(group, resources, verbs)| json!({ "apiGroups": [group], "resources": resources, "verbs": verbs }))
        .collect();
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": { "name": name, "labels": labels },
        "rules": rules,
    })
}

fn binding(kind: &str, metadata: Value, role: &str, options: &Options) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": metadata,
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
        "subjects": [subject(options)],
    })
}

fn subject(options: &Options) -> Value {
    json!({ "kind": "ServiceAccount", "name": CONTROLLER, "namespace": options.namespace() })
}
