//! Rounds of checks over recorded answers of an API server: each fault is named with its remedy, and nothing else fails.

use serde_json::json;

use super::super::{Checks, Progress, Scope, report};
use super::check;
use linkspan_proto::configuration::Resource;

use crate::client::facts::tests::{capacity, export, mirror, service};
use crate::client::kubernetes::tests::{Recorded, healthy, mirrored, proxy, root, unready};

const OWN: &str = "GET /api/v1/namespaces/linkspan";

/// Runs all checks. What failed and what is worth a look, as lines; and the whole page.
async fn round(recorded: Recorded) -> (Vec<String>, Vec<String>, String) {
    round_of(recorded, Scope::default()).await
}

/// The same, narrowed.
async fn round_of(recorded: Recorded, scope: Scope) -> (Vec<String>, Vec<String>, String) {
    let cluster = recorded.serve().await;
    let progress = Progress::silent();
    let mut checks = Checks::new(cluster.flags().to_owned(), scope, &progress);
    check(&mut checks, &cluster).await;
    let of = |verdict| {
        let found = checks.report.checks().iter().filter(|check| check.verdict == verdict);
        found
            .map(|check| format!("{}: {} | {}", check.name, check.reason, check.remedy.as_deref().unwrap_or_default()))
            .collect::<Vec<_>>()
    };
    (of(report::Verdict::Failure), of(report::Verdict::Warning), checks.report.render(false))
}

/// The one failure of a round with one fault.
async fn one(recorded: Recorded) -> String {
    let (failures, _, page) = round(recorded).await;
    assert_eq!(failures.len(), 1, "{page}");
    failures.into_iter().next().expect("one")
}

fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[tokio::test]
async fn a_healthy_cluster_passes() {
    let (failures, warnings, page) = round(healthy()).await;
    assert!(failures.is_empty() && warnings.is_empty(), "{page}");
    says(&page, &["controllers run", "one controller leads", "the clocks agree", "CoreDNS forwards", "192.0.2.1:4143"]);
}

#[tokio::test]
async fn before_an_installation_only_what_it_needs_is_checked() {
    let mut recorded = healthy();
    recorded.remove(&format!("{OWN}/configmaps/linkspan-cluster"));
    recorded.remove("GET /apis/linkspan.io/v1alpha1");
    recorded.remove("GET /apis/linkspan.io/v1alpha1/links");
    recorded.list("GET /api/v1/services", json!([]));
    recorded.denied = vec!["create clusterroles"];
    let (failures, warnings, page) = round(recorded.clone()).await;
    assert!(failures.is_empty() && warnings.len() == 2, "{page}");
    says(
        &page,
        &["not yet in the namespace linkspan", "linkspan install --cluster-name", "we may not create clusterroles"],
    );

    recorded.list(
        "GET /apis/apps/v1/deployments",
        json!([{ "metadata": { "name": "linkspan-gateway", "namespace": "mesh" } }]),
    );
    says(&one(recorded).await, &["there is one in mesh", "--linkspan-namespace mesh"]);
}

#[tokio::test]
async fn an_old_kubernetes_is_named() {
    let mut recorded = healthy();
    recorded.set("GET /version", json!({ "gitVersion": "v1.29.1-eks", "major": "1", "minor": "29+" }));
    says(&one(recorded).await, &["v1.29.1-eks", "1.31 or later"]);
}

#[tokio::test]
async fn missing_definitions_are_named() {
    let mut recorded = healthy();
    recorded.remove("GET /apis/multicluster.x-k8s.io/v1alpha1");
    recorded.remove("GET /apis/multicluster.x-k8s.io/v1beta1");
    recorded.remove("GET /apis/multicluster.x-k8s.io/v1beta1/serviceimports");
    says(
        &one(recorded).await,
        &["serviceimports.multicluster.x-k8s.io/v1beta1", "linkspan crds | kubectl --context east apply"],
    );

    let mut recorded = healthy();
    recorded.remove("GET /apis/linkspan.io/v1alpha1");
    recorded.remove("GET /apis/linkspan.io/v1alpha1/links");
    says(&one(recorded).await, &["links.linkspan.io/v1alpha1"]);
}

/// Another implementation of the multi-cluster services API may have brought its definitions in the older version alone.
#[tokio::test]
async fn the_older_version_of_imports_and_exports_is_as_good() {
    let mut recorded = healthy();
    recorded.remove("GET /apis/multicluster.x-k8s.io/v1beta1");
    for plural in ["serviceimports", "serviceexports"] {
        recorded.rename(
            &format!("GET /apis/multicluster.x-k8s.io/v1beta1/{plural}"),
            &format!("GET /apis/multicluster.x-k8s.io/v1alpha1/{plural}"),
        );
    }
    let (failures, warnings, page) = round(recorded).await;
    assert!(failures.is_empty() && warnings.is_empty(), "{page}");
}

#[tokio::test]
async fn missing_rights_of_the_controller_are_named() {
    let mut recorded = healthy();
    recorded.denied = vec!["patch links/status", "list serviceexports"];
    // Ours are asked for in the same words, and are missed less.
    let failure = one(recorded).await;
    says(&failure, &["patch links/status.linkspan.io", "linkspan-status", "list serviceexports", "--stage cluster"]);

    // Who may not ask still sees the bindings.
    let reviews = "POST /apis/authorization.k8s.io/v1/subjectaccessreviews";
    let mut recorded = healthy();
    recorded.refuse(reviews, 403, "subjectaccessreviews is forbidden");
    for role in ["linkspan-reader", "linkspan-identity", "linkspan-status", "linkspan-writer"] {
        recorded.set(
            &format!("GET /apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{role}"),
            json!({ "subjects": [{ "kind": "ServiceAccount", "name": "linkspan-controller", "namespace": "linkspan" }] }),
        );
    }
    says(&one(recorded).await, &["not bound to it: linkspan-events"]);
}

const ROLES: [&str; 5] =
    ["linkspan-reader", "linkspan-identity", "linkspan-status", "linkspan-events", "linkspan-writer"];

fn bound_to(namespace: &str) -> serde_json::Value {
    json!({ "subjects": [{ "kind": "ServiceAccount", "name": "linkspan-controller", "namespace": namespace }] })
}

/// All bindings in the cluster, and the policy that knows networks, as those of a namespace.
fn granted(recorded: &mut Recorded, namespace: &str, networks: &[&str]) {
    for role in ROLES {
        let path = format!("GET /apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{role}");
        recorded.set(&path, bound_to(namespace));
    }
    let inside: Vec<_> = networks.iter().map(|network| format!("cidr('{network}').containsIP(address)")).collect();
    let user = format!("request.userInfo.username == 'system:serviceaccount:{namespace}:linkspan-controller'");
    recorded.set(
        "GET /apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/linkspan-controller-endpointslices",
        json!({ "spec": {
            "matchConditions": [{ "name": "controller", "expression": user }],
            "validations": [{ "expression": inside.join(" || ") }],
        } }),
    );
}

/// East, confined to one namespace.
fn confined() -> Recorded {
    let mut recorded = healthy();
    let cluster = "apiVersion: linkspan.io/v1alpha1\nkind: Cluster\nmetadata: {name: east}\n\
                   spec: {mirrors: {namespaces: [shop]}}\n";
    recorded.set(&format!("{OWN}/configmaps/linkspan-cluster"), json!({ "data": { "cluster.yaml": cluster } }));
    granted(&mut recorded, "linkspan", &["10.244.0.0/16", "fd00:1::/64"]);
    let empty = json!({ "subjects": [] });
    recorded.set("GET /apis/rbac.authorization.k8s.io/v1/clusterrolebindings/linkspan-writer", empty);
    bind_single(&mut recorded, &["shop"]);
    recorded
}

fn bind_single(recorded: &mut Recorded, namespaces: &[&str]) {
    let bindings = namespaces.iter().map(|namespace| {
        let mut binding = bound_to("linkspan");
        binding["metadata"] = json!({ "name": "linkspan-writer", "namespace": namespace });
        binding
    });
    recorded.list("GET /apis/rbac.authorization.k8s.io/v1/rolebindings", bindings.collect());
}

/// A command that grants more than the installation had would undo the hardening of it.
#[tokio::test]
async fn the_remedy_for_missing_rights_has_the_arguments_of_the_installation() {
    let mut recorded = confined();
    recorded.denied = vec!["patch services"];
    let failure = one(recorded).await;
    let command = "policies again: linkspan install --stage cluster --no-multi-cluster-crds --import-namespace shop \
                   --endpoint-cidr 10.244.0.0/16 --endpoint-cidr fd00:1::/64 | kubectl --context east apply -f -";
    says(&failure, &["patch services in shop (role linkspan-writer)", command]);

    // What cannot be read back is asked for.
    let mut recorded = healthy();
    recorded.denied = vec!["patch services"];
    says(&one(recorded).await, &["with the --endpoint-cidr arguments of this installation too if it had any"]);
}

#[tokio::test]
async fn a_second_installation_that_took_the_rights_is_named() {
    let mut recorded = healthy();
    granted(&mut recorded, "mesh", &["10.9.0.0/16"]);
    // That nothing is allowed any more has the same cause, and is not said twice.
    recorded.denied = vec!["patch services", "watch links"];
    let failure = one(recorded).await;
    says(
        &failure,
        &[
            "the rights of this cluster are for this installation",
            "ClusterRoleBinding linkspan-reader",
            "ValidatingAdmissionPolicy linkspan-controller-endpointslices",
            "for the controller of the namespace mesh, not of linkspan",
            "linkspan uninstall -n mesh --stage namespaced | kubectl --context east delete --ignore-not-found -f -",
            "with the --endpoint-cidr arguments of this installation too if it had any",
            "linkspan install --stage cluster",
        ],
    );
    assert!(!failure.contains("10.9.0.0"), "the networks are the other one's: {failure}");
}

#[tokio::test]
async fn rights_beyond_the_namespaces_that_were_named_are_seen() {
    let (failures, warnings, page) = round(confined()).await;
    assert!(failures.is_empty() && warnings.is_empty(), "{page}");
    says(&page, &["the controller may write in the namespaces that were named"]);

    let mut recorded = confined();
    granted(&mut recorded, "linkspan", &[]);
    says(
        &one(recorded).await,
        &[
            "the ClusterRoleBinding linkspan-writer lets it write everywhere",
            "named shop",
            "--import-namespace shop | ",
        ],
    );

    let mut recorded = confined();
    bind_single(&mut recorded, &["old", "shop"]);
    let (failures, warnings, page) = round(recorded).await;
    assert!(failures.is_empty() && warnings.len() == 1, "{page}");
    says(
        &warnings[0],
        &["lets it write in old too", "kubectl --context east -n old delete rolebinding linkspan-writer"],
    );
}

/// What the controller itself may not watch it says, whoever asks.
#[tokio::test]
async fn what_the_controller_complains_about_is_shown() {
    let mut recorded = healthy();
    let message = "the API server does not know this controller: its ServiceAccount token is not accepted";
    let problems = json!([{ "file": "Service", "message": message }, { "file": "Link", "message": message }]);
    recorded.set(&proxy("controller-a", "/manifests"), problems);
    says(&one(recorded).await, &["Service, Link: the API server does not know this controller"]);
}

#[tokio::test]
async fn without_rights_of_our_own_the_check_says_what_it_does_not_see() {
    let mut recorded = healthy();
    recorded.refuse("GET /api/v1/namespaces/kube-system/configmaps/coredns", 403, "configmaps is forbidden");
    recorded.refuse("POST /apis/authorization.k8s.io/v1/subjectaccessreviews", 403, "forbidden");
    recorded.refuse("GET /apis/rbac.authorization.k8s.io/v1/clusterrolebindings/linkspan-reader", 403, "forbidden");
    let (failures, warnings, page) = round(recorded).await;
    assert!(failures.is_empty() && warnings.len() == 2, "{page}");
    says(&page, &["configmaps is forbidden", "we may neither ask for its rights"]);
}

/// A port-forward needs two verbs: one of them is not enough.
#[tokio::test]
async fn pods_that_may_not_be_asked_in_any_way_are_named() {
    let mut recorded = healthy();
    recorded.denied = vec!["get pods/proxy"];
    let (failures, _, page) = round(recorded.clone()).await;
    assert!(failures.is_empty(), "{page}");
    recorded.denied.push("create pods/portforward");
    says(&one(recorded).await, &["we may not get pods/proxy in linkspan; nor create pods/portforward in linkspan"]);
}

#[tokio::test]
async fn without_any_right_the_missing_ones_are_listed() {
    let mut recorded = healthy();
    recorded.refuse(&format!("{OWN}/configmaps/linkspan-cluster"), 403, "configmaps is forbidden");
    recorded.denied = vec!["get configmaps", "list pods"];
    let (failures, warnings, page) = round(recorded).await;
    assert!(failures.len() == 1 && warnings.len() == 1, "{page}");
    says(&page, &["configmaps is forbidden", "we may not list pods in linkspan; get configmaps in linkspan"]);
}

#[tokio::test]
async fn dns_that_does_not_forward_is_named_with_the_lines() {
    let coredns = "GET /api/v1/namespaces/kube-system/configmaps/coredns";
    let mut recorded = healthy();
    recorded.set(coredns, json!({ "data": { "Corefile": ".:53 {\n  forward . /etc/resolv.conf\n}\n" } }));
    says(
        &one(recorded).await,
        &["names that zone", "clusterset.local:53 {\n    # linkspan\n    forward . 10.96.0.20\n}"],
    );

    let mut recorded = healthy();
    recorded.set(coredns, json!({ "data": { "Corefile": "clusterset.local {\n  forward . 10.96.0.99\n}\n" } }));
    says(&one(recorded).await, &["10.96.0.99", "linkspan-dns is at 10.96.0.20"]);
}

#[tokio::test]
async fn mirrors_in_a_namespace_that_is_left_out_now_are_named_with_the_line_that_takes_them_out() {
    let mut recorded = healthy();
    let cluster = "apiVersion: linkspan.io/v1alpha1\nkind: Cluster\nmetadata: {name: east}\n\
                   spec: {mirrors: {namespaces: [bank]}}\n";
    recorded.set(&format!("{OWN}/configmaps/linkspan-cluster"), json!({ "data": { "cluster.yaml": cluster } }));
    let line = "kubectl --context east -n shop delete services,endpointslices,serviceimports -l mirror.linkspan.io/managed-by=mirror-controller";
    says(&one(recorded).await, &["nothing of Linkspan's is in shop", line]);
}

#[tokio::test]
async fn gateways_without_an_address_are_named() {
    let mut recorded = healthy();
    recorded.set(
        &format!("{OWN}/services/linkspan-link"),
        json!({ "spec": { "type": "LoadBalancer", "ports": [{ "port": 4143 }] }, "status": { "loadBalancer": {} } }),
    );
    says(&one(recorded).await, &["the gateways have no address", "--service-type NodePort", "--address"]);
}

#[tokio::test]
async fn gateways_that_are_not_ready_are_named() {
    let mut recorded = healthy();
    recorded.list(
        &format!("{OWN}/pods?component%3Dgateway"),
        json!([unready("gateway-c", "containers with unready status: [gateway]")]),
    );
    recorded.page("gateway-c", "/ready", 503, r#"{"ready":false,"parts":{"configuration":{"state":"pending"}}}"#);
    let (failures, _, page) = round(recorded).await;
    let failures = failures.join("\n");
    says(&failures, &["none is ready; gateway-c: containers with unready status", "configuration is pending"]);
    assert!(page.contains("describe deployment linkspan-gateway"), "{page}");
}

#[tokio::test]
async fn admin_pages_that_may_not_be_read_are_told_of_once_with_the_right() {
    let mut recorded = healthy();
    for (name, page) in [("gateway-a", "/ready"), ("gateway-b", "/ready")] {
        recorded.refuse(&proxy(name, page), 403, "pods \"x\" is forbidden");
        let forward = format!("GET /api/v1/namespaces/linkspan/pods/{name}/portforward");
        recorded.refuse(&forward, 403, "forbidden");
    }
    let failure = one(recorded).await;
    says(&failure, &["admin pages of gateways", "| ask for the right to `get` pods/proxy"]);
}

#[tokio::test]
async fn a_lost_leader_is_named() {
    let lease = "GET /apis/coordination.k8s.io/v1/namespaces/linkspan/leases/linkspan-controller";
    let mut recorded = healthy();
    recorded.remove(lease);
    says(&one(recorded).await, &["one controller leads", "nobody holds the Lease"]);
    let mut recorded = healthy();
    let spec = json!({ "holderIdentity": "controller-z", "renewTime": "2026-01-01T00:00:00.000000Z", "leaseDurationSeconds": 15 });
    recorded.set(lease, json!({ "spec": spec }));
    says(&one(recorded).await, &["controller-z led, and has not said so"]);
}

#[tokio::test]
async fn a_peer_that_cannot_be_reached_and_one_that_is_not_trusted_are_told_apart() {
    let down = |reason: &str, message: &str| {
        let mut recorded = healthy();
        let mut link = serde_json::to_value(crate::client::facts::tests::link("west", false)).expect("a report");
        link["reason"] = json!(reason);
        link["message"] = json!(message);
        for name in ["gateway-a", "gateway-b"] {
            recorded.set(&proxy(name, "/links"), json!([link.clone()]));
        }
        recorded
    };
    let named = async |recorded| {
        let (failures, _, page) = round(recorded).await;
        failures.into_iter().find(|failure| failure.starts_with("west: the link is alive")).unwrap_or(page)
    };
    let silent = named(down("Unreachable", "no answer from 192.0.2.2:4143/udp within 3 s")).await;
    says(&silent, &["no answer from 192.0.2.2:4143/udp", "UDP to 192.0.2.2:4143 passes every firewall"]);
    let ours =
        named(down("TrustBundleMismatch", "the peer's certificate is not signed by the Link's trustBundle")).await;
    says(&ours, &["trust bundle in our Link for west", "link import west.yaml --replace --context east"]);
    let theirs =
        named(down("TrustBundleMismatch", "the peer's Link for this cluster carries another trustBundle")).await;
    says(&theirs, &["west does not trust us", "link export --context east"]);
}

#[tokio::test]
async fn a_clock_that_is_off_is_named_with_its_node() {
    let mut recorded = healthy();
    let late = jiff::Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(630)).expect("a time");
    let late = late.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    recorded.dates.insert("gateway-b".to_owned(), late);
    says(&one(recorded).await, &["the clock of the node of gateway-b is 10 min behind", "chronyd"]);
}

#[tokio::test]
async fn mirrors_that_differ_from_the_exports_are_named() {
    let services = "GET /api/v1/services";
    let whole = |name: &str, cluster: Option<&str>, port: u16| {
        let mut labels = json!({ "mirror.linkspan.io/service-name": "web" });
        if let Some(cluster) = cluster {
            labels["mirror.linkspan.io/cluster-name"] = json!(cluster);
        }
        json!({
            "metadata": { "name": name, "namespace": "shop", "labels": labels },
            "spec": { "clusterIPs": ["10.96.0.31"], "ports": [{ "port": port }] },
        })
    };
    let (west, set) = (whole("web-west", Some("west"), 80), whole("web-clusterset", None, 80));
    let with = |items: serde_json::Value| {
        let mut recorded = healthy();
        recorded.list(services, items);
        recorded
    };
    says(
        &one(with(json!([set]))).await,
        &["web-west.shop.svc.cluster.local has its Service", "no Service stands for it"],
    );
    says(&one(with(json!([whole("web-west", Some("west"), 81), set]))).await, &["shop/web-west", "it lacks port 80"]);
    let mut bent = west.clone();
    bent["spec"]["selector"] = json!({ "app": "web" });
    says(&one(with(json!([bent, set]))).await, &["it has a selector"]);
    let extra = whole("old-west", Some("west"), 80);
    says(&one(with(json!([west, set, extra]))).await, &["shop/old-west", "its mirror is still there"]);

    let mut recorded = healthy();
    recorded.list("GET /apis/discovery.k8s.io/v1/endpointslices", json!([]));
    let (failures, _, page) = round(recorded).await;
    assert!(failures.len() == 2 && failures[0].contains("it has no endpoint"), "{page}");
}

/// A service of a namespace that is not here is no fault.
#[tokio::test]
async fn nothing_is_mirrored_into_a_namespace_that_does_not_exist() {
    let mut recorded = healthy();
    recorded.list("GET /api/v1/services", json!([]));
    recorded.list("GET /api/v1/namespaces", json!([]));
    recorded.list("GET /apis/multicluster.x-k8s.io/v1beta1/serviceimports", json!([]));
    let (failures, _, page) = round(recorded).await;
    assert!(failures.is_empty(), "{page}");
    says(&page, &["nothing is mirrored into shop, which does not exist here", "2 names"]);
}

/// Nor is one of a namespace that is here and not among those to mirror into.
#[tokio::test]
async fn nothing_is_mirrored_into_a_namespace_that_is_not_named() {
    let mut recorded = healthy();
    recorded.list("GET /api/v1/services", json!([]));
    recorded.list("GET /apis/multicluster.x-k8s.io/v1beta1/serviceimports", json!([]));
    let held = |name: &str, hostname: &str, reason: &str| {
        json!({
            "kind": "Mirror",
            "metadata": { "namespace": "shop", "name": name },
            "status": {
                "hostname": hostname,
                "service": "shop/web",
                "conditions": [{ "type": "Accepted", "status": "False", "reason": reason, "message": "held" }],
            },
        })
    };
    let (one, all) = ("web-west.shop.svc.cluster.local", "web.shop.svc.clusterset.local");
    let absent = [held("web-west", one, "NamespaceAbsent"), held("web", all, "NamespaceAbsent")];
    recorded.set(&proxy("controller-a", "/refused"), json!(absent));
    let (failures, _, page) = round(recorded.clone()).await;
    assert!(failures.is_empty(), "{page}");
    says(&page, &["nothing is mirrored into shop, which is none of those to mirror into", "2 names"]);

    // What is in the way of a name is told of once.
    recorded.set(&proxy("controller-a", "/refused"), json!([held("web-west", one, "NameInUse"), absent[1]]));
    let (failures, _, page) = round(recorded).await;
    assert!(failures.len() == 1 && failures[0].contains("NameInUse"), "{page}");
}

#[tokio::test]
async fn a_root_that_is_gone_is_named() {
    let mut recorded = healthy();
    recorded.remove(&format!("{OWN}/configmaps/linkspan-root"));
    says(&one(recorded).await, &["no ConfigMap linkspan-root", "linkspan ca create --cluster-name east"]);
    assert!(root("x.example").contains("BEGIN CERTIFICATE"));
}

/// A Service for one mirror of another service than `web`.
fn mirrored_as(name: &str, of: &str, address: &str) -> serde_json::Value {
    let mut object = mirrored(name, Some("west"), address);
    object["metadata"]["labels"]["mirror.linkspan.io/service-name"] = json!(of);
    object
}

fn with_service(recorded: &mut Recorded, object: &serde_json::Value) {
    recorded.change("GET /api/v1/services", |list| {
        list["items"].as_array_mut().expect("items").push(object.clone());
    });
}

/// The gateways know of the endpoints of a headless service alone, so of one that has none they know nothing.
#[tokio::test]
async fn a_headless_service_without_endpoints_is_worth_a_look_and_nothing_is_left_over() {
    let mut recorded = healthy();
    recorded.resources(|_| true, &[capacity("west", "shop/cache", 0)]);
    recorded.change(&proxy("controller-a", "/peers"), |peers| peers[0]["entries"] = json!(2));
    with_service(&mut recorded, &mirrored_as("cache-west", "cache", "None"));
    let (failures, warnings, page) = round(recorded.clone()).await;
    assert!(failures.is_empty() && warnings.len() == 1, "{page}");
    says(
        &warnings[0],
        &["shop/cache of west has endpoints", "headless, and has no endpoint", "in west start the service"],
    );

    // Without its Service it is not mirrored, and that is said.
    recorded.change("GET /api/v1/services", |list| drop(list["items"].as_array_mut().expect("items").pop()));
    says(&one(recorded.clone()).await, &["shop/cache of west is mirrored", "the gateway has no mirror of it"]);

    // What is not exported any more is left over, headless or not.
    recorded.resources(|one| !matches!(one, Resource::Capacity(it) if it.service == service("shop/cache")), &[]);
    recorded.change(&proxy("controller-a", "/peers"), |peers| peers[0]["entries"] = json!(1));
    with_service(&mut recorded, &mirrored_as("cache-west", "cache", "None"));
    says(&one(recorded).await, &["shop/cache-west", "cache is not exported by west"]);
}

#[tokio::test]
async fn weights_of_zero_are_named_as_what_they_are() {
    let zero = mirror("web.shop.svc.clusterset.local", "shop/web", "[::]:10002", &[&[("west", 0)]]);
    let mut recorded = healthy();
    recorded.resources(|one| !matches!(one, Resource::Mirror(it) if it.name.contains("clusterset")), &[zero]);
    recorded.list(
        "GET /apis/linkspan.io/v1alpha1/clustertrafficpolicies",
        json!([{
            "apiVersion": "linkspan.io/v1alpha1", "kind": "ClusterTrafficPolicy",
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "service": "web", "tiers": [{ "clusters": { "west": 0 } }] },
        }]),
    );
    let (failures, warnings, page) = round(recorded).await;
    assert!(failures.len() == 1 && warnings.len() == 1, "{page}");
    says(&warnings[0], &["all its weights are 0: nobody is served at web.shop.svc.clusterset.local"]);
    says(
        &failures[0],
        &["no cluster has a weight above 0", "give a cluster a weight above 0 in the ClusterTrafficPolicy"],
    );
    assert!(!page.contains("is not exported by any linked cluster"), "{page}");
}

/// Nothing in this cluster is in its way.
#[tokio::test]
async fn an_export_without_a_tcp_port_is_no_fault_of_the_importer() {
    let mut recorded = healthy();
    let refused = json!([{
        "kind": "Mirror",
        "metadata": { "namespace": "shop", "name": "dns-west" },
        "status": {
            "hostname": "dns-west.shop.svc.cluster.local",
            "service": "shop/dns",
            "conditions": [{
                "type": "Accepted", "status": "False", "reason": "UnsupportedProtocol", "message": "it has no TCP or UDP port",
            }],
        },
    }]);
    recorded.set(&proxy("controller-a", "/refused"), refused);
    let (failures, warnings, page) = round(recorded).await;
    assert!(failures.is_empty() && warnings.len() == 1, "{page}");
    says(
        &warnings[0],
        &["it has no TCP or UDP port", "give the Service a TCP or UDP port", "nothing here is in its way"],
    );
}

#[tokio::test]
async fn one_service_can_be_asked_for_where_it_is_exported() {
    let of = |cluster: Option<&str>| Scope { cluster: cluster.map(str::to_owned), service: Some(service("shop/api")) };
    let (failures, _, page) = round_of(healthy(), of(None)).await;
    assert!(failures.is_empty(), "{page}");
    says(&page, &["shop/api is exported (by this cluster, and by no linked one)"]);
    let (failures, _, page) = round_of(healthy(), of(Some("west"))).await;
    assert!(failures.len() == 1, "{page}");
    says(&failures[0], &["shop/api is not exported by any linked cluster; it is exported here"]);
}

/// What this cluster exports has a name in the clusterset too; README forwards the zone only where names are used.
#[tokio::test]
async fn a_cluster_that_only_exports_needs_no_lines_for_the_clusterset() {
    let mut recorded = healthy();
    let own = [
        mirror("api.shop.svc.clusterset.local", "shop/api", "[::]:10002", &[&[("east", 1)]]),
        export("shop/api", &[true]),
    ];
    recorded.resources(|one| matches!(one, Resource::Peer(_)), &own);
    recorded.change(&proxy("controller-a", "/peers"), |peers| peers[0]["entries"] = json!(0));
    let mut whole = mirrored("api-clusterset", None, "10.96.0.32");
    whole["metadata"]["labels"]["mirror.linkspan.io/service-name"] = json!("api");
    recorded.list("GET /api/v1/services", json!([whole]));
    recorded.list("GET /apis/multicluster.x-k8s.io/v1beta1/serviceimports", json!([]));
    recorded.change("GET /apis/discovery.k8s.io/v1/endpointslices", |list| {
        list["items"][1]["metadata"]["labels"]["kubernetes.io/service-name"] = json!("api-clusterset");
    });
    recorded.set(
        "GET /api/v1/namespaces/kube-system/configmaps/coredns",
        json!({ "data": { "Corefile": ".:53 {\n  forward . /etc/resolv.conf\n}\n" } }),
    );
    let (failures, warnings, page) = round(recorded).await;
    assert!(failures.is_empty() && warnings.len() == 1, "{page}");
    says(
        &warnings[0],
        &["CoreDNS forwards clusterset.local", "where names of the clusterset are used: add these lines"],
    );
}

#[tokio::test]
async fn an_export_policy_that_names_nobody_is_worth_a_look() {
    let policy = |peer: &str, service: &str| {
        let mut recorded = healthy();
        recorded.list(
            "GET /apis/linkspan.io/v1alpha1/exportpolicies",
            json!([{
                "apiVersion": "linkspan.io/v1alpha1", "kind": "ExportPolicy",
                "metadata": { "name": "who", "namespace": "shop" },
                "spec": { "services": [service], "allow": [{ "peers": [peer] }] },
            }]),
        );
        recorded
    };
    let (failures, warnings, page) = round(policy("wets", "db")).await;
    assert!(failures.is_empty() && warnings.len() == 1, "{page}");
    says(
        &warnings[0],
        &["ExportPolicy shop/who", "it allows wets, and no Link", "it is about shop/db, which is not exported"],
    );
    let (failures, warnings, page) = round(policy("west", "api")).await;
    assert!(failures.is_empty() && warnings.is_empty(), "{page}");
}

#[tokio::test]
async fn a_link_to_oneself_is_removed_and_not_imported_again() {
    let refused = |reason: &str| {
        let mut recorded = healthy();
        recorded.change("GET /apis/linkspan.io/v1alpha1/links", |list| {
            let condition = json!({ "type": "Accepted", "status": "False", "reason": reason, "message": "no" });
            let object = json!({
                "kind": "Link", "metadata": { "name": "east" }, "status": { "conditions": [condition] },
            });
            list["items"].as_array_mut().expect("items").push(object);
        });
        recorded
    };
    let failure = one(refused("SelfLink")).await;
    says(&failure, &["east: the Link is accepted", "linkspan link remove east --context east"]);
    assert!(!failure.contains("import"), "{failure}");
    says(&one(refused("TrustDomainInUse")).await, &["linkspan link remove NAME --context east"]);
    says(&one(refused("Invalid")).await, &["correct the Link"]);
}

#[tokio::test]
async fn a_root_of_another_trust_domain_and_a_lost_key_are_named() {
    let mut recorded = healthy();
    recorded.set(
        &format!("{OWN}/configmaps/linkspan-root"),
        json!({ "data": { "root.pem": root("north.linkspan.internal") } }),
    );
    says(
        &one(recorded).await,
        &[
            "root certificate is valid",
            "is a root of spiffe://north.linkspan.internal, not of spiffe://east.linkspan.internal",
        ],
    );

    let mut recorded = healthy();
    recorded.set(
        "GET /apis/apps/v1/namespaces/linkspan/deployments/linkspan-controller",
        json!({ "spec": { "template": { "spec": { "volumes": [
            { "name": "root", "configMap": { "name": "linkspan-root" } },
            { "name": "ca", "secret": { "secretName": "linkspan-ca" } },
        ] } } } }),
    );
    says(&one(recorded.clone()).await, &["the Secret linkspan-ca", "none starts without it", "from a copy"]);
    recorded.set(&format!("{OWN}/secrets/linkspan-ca"), json!({ "kind": "PartialObjectMetadata" }));
    let (failures, _, page) = round(recorded.clone()).await;
    assert!(failures.is_empty(), "{page}");
    // Who may not look is not told anything about it.
    recorded.refuse(&format!("{OWN}/secrets/linkspan-ca"), 403, "secrets is forbidden");
    let (failures, warnings, page) = round(recorded).await;
    assert!(failures.is_empty() && warnings.is_empty() && !page.contains("linkspan-ca"), "{page}");
}

#[tokio::test]
async fn a_namespace_on_its_way_out_and_what_it_leaves_are_named() {
    let mut recorded = healthy();
    let condition = json!({ "type": "NamespaceContentRemaining", "status": "True", "message": "some are remaining" });
    recorded.set(
        OWN,
        json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" }, "status": { "conditions": [condition] } }),
    );
    says(&one(recorded).await, &["the namespace linkspan stays", "Terminating", "some are remaining"]);

    let mut recorded = healthy();
    recorded.remove(&format!("{OWN}/configmaps/linkspan-cluster"));
    says(
        &one(recorded.clone()).await,
        &["2 mirrored Services in shop", "delete services,endpointslices --all-namespaces -l mirror."],
    );
    recorded.list("GET /api/v1/services", json!([]));
    let (failures, warnings, page) = round(recorded).await;
    assert!(failures.is_empty() && warnings.len() == 2, "{page}");
    says(&warnings[0], &["Links are there and nobody follows them: west", "delete links --all"]);
}

/// Not the network is at fault when a pod does not run; and however many pages are asked of it, that is found once.
#[tokio::test]
async fn the_state_of_a_silent_pod_comes_before_the_network() {
    let mut recorded = healthy();
    let silent = unready("gateway-c", "containers with unready status: [gateway]");
    recorded.list(&format!("{OWN}/pods?component%3Dgateway"), json!([silent]));
    recorded.refuse(&proxy("gateway-c", "/ready"), 503, "error trying to reach service: dial tcp: connection refused");
    let seen = std::sync::Arc::clone(&recorded.seen);
    let (failures, _, page) = round(recorded).await;
    let failure = failures.iter().find(|failure| failure.starts_with("the admin pages of gateways")).expect("one");
    says(
        failure,
        &["connection refused", "| the pod is not ready (containers with unready status", "logs gateway-c --previous"],
    );
    assert!(!failure.contains("api-server-cidr"), "{page}");
    let asked = seen.lock().expect("lock").iter().filter(|(line, _)| line.contains("gateway-c:4191/proxy")).count();
    assert_eq!(asked, 1, "{page}");
}
