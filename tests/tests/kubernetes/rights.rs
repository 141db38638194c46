//! Rights: what is not declared is denied, to controllers and gateways.

use linkspan_tests::bed::api::{Body, JSON, MERGE, path};
use linkspan_tests::bed::linkspan::{Component, NAMESPACE};
use linkspan_tests::bed::shared;
use serde_json::{Value, json};

use super::kit::needs_kubernetes;

/// A request: method, path, and body with its type.
type Forbidden = (&'static str, String, Option<(&'static str, String)>);

/// Requests that the controller's own token must not be good for.
fn forbidden() -> Vec<Forbidden> {
    let mut all: Vec<Forbidden> = Vec::new();
    let namespaces = ["default", "kube-system", NAMESPACE, "forbidden"];
    // By RBAC: whatever its roles do not name, in every namespace.
    for namespace in namespaces {
        for (group, plural, kind) in [
            ("api/v1", "secrets", "Secret"),
            ("api/v1", "configmaps", "ConfigMap"),
            ("api/v1", "pods", "Pod"),
            ("api/v1", "serviceaccounts", "ServiceAccount"),
            ("apis/apps/v1", "deployments", "Deployment"),
            ("apis/rbac.authorization.k8s.io/v1", "rolebindings", "RoleBinding"),
            ("apis/multicluster.x-k8s.io/v1beta1", "serviceexports", "ServiceExport"),
            ("apis/linkspan.io/v1alpha1", "exportpolicies", "ExportPolicy"),
        ] {
            let version = group.trim_start_matches("apis/").trim_start_matches("api/");
            let object = json!({ "apiVersion": version, "kind": kind, "metadata": { "name": "taken" } }).to_string();
            let place = format!("/{group}/namespaces/{namespace}/{plural}");
            all.push(("POST", place.clone(), Some((JSON, object.clone()))));
            all.push(("PATCH", format!("{place}/taken"), Some((MERGE, "{}".to_owned()))));
            all.push(("DELETE", format!("{place}/taken"), None));
        }
        all.push(("GET", format!("/api/v1/namespaces/{namespace}/secrets"), None));
        all.push(("DELETE", format!("/api/v1/namespaces/{namespace}/services"), None));
        let token = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} }).to_string();
        all.push((
            "POST",
            format!("/api/v1/namespaces/{namespace}/serviceaccounts/default/token"),
            Some((JSON, token)),
        ));
    }
    for place in [
        "/api/v1/namespaces/forbidden",
        "/api/v1/nodes/node",
        "/apis/linkspan.io/v1alpha1/links/b",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/links.linkspan.io",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/linkspan-writer",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/linkspan-controller-services",
    ] {
        all.push((
            "PATCH",
            place.to_owned(),
            Some((MERGE, "{\"metadata\": {\"labels\": {\"taken\": \"yes\"}}}".to_owned())),
        ));
        all.push(("DELETE", place.to_owned(), None));
    }
    all.extend(by_admission());
    all
}

/// Writes that RBAC allows, and the admission policies do not.
fn by_admission() -> Vec<Forbidden> {
    let ours = json!({ "mirror.linkspan.io/managed-by": "mirror-controller" });
    let service = |labels: &Value, spec: Value| {
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "taken", "labels": labels }, "spec": spec })
            .to_string()
    };
    let good = || json!({ "type": "ClusterIP", "ports": [{ "port": 80 }] });
    let mut all: Vec<Forbidden> = Vec::new();
    let mut post = |place: &str, body: String| all.push(("POST", place.to_owned(), Some((JSON, body))));
    let services = "/api/v1/namespaces/forbidden/services";
    // Without our label; in namespaces that are nobody's to mirror into.
    post(services, service(&json!({}), good()));
    for namespace in ["default", "kube-system", "kube-public", "kube-node-lease", NAMESPACE] {
        post(&format!("/api/v1/namespaces/{namespace}/services"), service(&ours, good()));
    }
    for (field, value) in [
        ("selector", json!({ "app": "thief" })),
        ("type", json!("NodePort")),
        ("type", json!("LoadBalancer")),
        ("externalIPs", json!(["192.0.2.77"])),
    ] {
        let mut spec = good();
        spec[field] = value;
        post(services, service(&ours, spec));
    }
    post(services, service(&ours, json!({ "type": "ExternalName", "externalName": "example.com" })));
    let slice = |labels: &Value, address: &str, port: u16| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "taken", "labels": labels }, "addressType": "IPv4",
            "endpoints": [{ "addresses": [address] }], "ports": [{ "port": port }]
        })
        .to_string()
    };
    let slices = "/apis/discovery.k8s.io/v1/namespaces/forbidden/endpointslices";
    let mut labels = ours.clone();
    labels["endpointslice.kubernetes.io/managed-by"] = json!("mirror-controller.linkspan.io");
    labels["kubernetes.io/service-name"] = json!("taken-west");
    labels["mirror.linkspan.io/cluster-name"] = json!("west");
    // Endpoints for a Service that is no mirror.
    for (service, cluster) in [
        ("own", None),
        ("own", Some("west")),
        ("own", Some("own")),
        ("own", Some("")),
        ("payments-api", None),
        ("payments-api", Some("west")),
        ("own-clusterset-db", Some("west")),
        ("payments-xgq2v5klw3a-api", Some("west")),
    ] {
        let mut labels = labels.clone();
        labels["kubernetes.io/service-name"] = json!(service);
        labels["mirror.linkspan.io/cluster-name"] = json!(cluster);
        if cluster.is_none() {
            labels.as_object_mut().expect("labels").remove("mirror.linkspan.io/cluster-name");
        }
        post(slices, slice(&labels, "10.244.0.1", 20_000));
    }
    post(slices, slice(&ours, "10.244.0.1", 20_000));
    post(slices, slice(&json!({ "kubernetes.io/service-name": "taken" }), "10.244.0.1", 20_000));
    for address in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1"] {
        post(slices, slice(&labels, address, 20_000));
    }
    for port in [22, 443, 6443, 9_999, 32_768] {
        post(slices, slice(&labels, "10.244.0.1", port));
    }
    post("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", slice(&labels, "10.244.0.1", 20_000));
    // Other people's objects.
    for object in ["/api/v1/namespaces/default/services/kubernetes", "/api/v1/namespaces/kube-system/services/kube-dns"]
    {
        all.push((
            "PATCH",
            object.to_owned(),
            Some((MERGE, "{\"metadata\": {\"labels\": {\"taken\": \"yes\"}}}".to_owned())),
        ));
        all.push(("DELETE", object.to_owned(), None));
    }
    let own = "/api/v1/namespaces/forbidden/services/own";
    let adopt = json!({ "metadata": { "labels": ours } }).to_string();
    all.push(("PATCH", own.to_owned(), Some((MERGE, adopt))));
    all.push(("PATCH", own.to_owned(), Some((MERGE, "{\"spec\": {\"selector\": {\"app\": \"thief\"}}}".to_owned()))));
    all.push(("DELETE", own.to_owned(), None));
    all
}

#[test]
fn a_hundred_forbidden_requests_with_the_controllers_own_token_are_all_denied() {
    needs_kubernetes!();
    let bed = shared();
    let a = bed.a();
    a.namespace("forbidden");
    a.apply(&super::kit::web_service("forbidden", "own", ""));
    let token = a.token(NAMESPACE, "linkspan-controller");
    let before = a.get(&path::service("forbidden", "own"));
    let all = forbidden();
    assert!(all.len() >= 100, "{}", all.len());
    for (method, place, body) in &all {
        let body = body.as_ref().map(|(kind, text)| Body { kind, text });
        let (code, answer) = a.request_as(&token, method, place, body);
        // What no object of the kind may be is refused before anybody asks whether it is allowed: 422.
        assert!(matches!(code, 403 | 422), "{method} {place} {body:?}: {code} {answer}");
    }
    assert_eq!(a.get(&path::service("forbidden", "own")), before);
    // The same token is good for what it should be: this is no broken token.
    assert_eq!(a.request_as(&token, "GET", "/api/v1/services?limit=1", None).0, 200);
}

#[test]
fn the_gateways_tokens_can_do_nothing() {
    needs_kubernetes!();
    let bed = shared();
    let a = bed.a();
    let token = a.token(NAMESPACE, "linkspan-gateway");
    for place in
        ["/api/v1/services", "/api/v1/pods", "/api/v1/namespaces", "/apis/linkspan.io/v1alpha1/links", "/api/v1/nodes"]
    {
        assert_eq!(a.request_as(&token, "GET", place, None).0, 403, "{place}");
    }
    for (method, place, body) in &forbidden() {
        let body = body.as_ref().map(|(kind, text)| Body { kind, text });
        assert!(matches!(a.request_as(&token, method, place, body).0, 403 | 422), "{method} {place}");
    }
    // That one is nobody's in the pod: what is mounted there, the API server does not take at all.
    let pod = &a.replicas(Component::Gateway)[0];
    let volume = a.dir().join("volumes").join(&pod.name);
    assert!(!volume.join("kube-api-access").exists(), "no token of the API server is mounted");
    let mounted = std::fs::read_to_string(volume.join("token/token")).expect("the token for the controller");
    assert_eq!(a.request_as(&mounted, "GET", "/api/v1/services", None).0, 401);
}
