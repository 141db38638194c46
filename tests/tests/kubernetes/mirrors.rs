//! Mirrors of a peer's services: `web` of cluster b is `web-b` in cluster a.

use std::time::Instant;

use linkspan_tests::bed::api::{JSON_PATCH, path};
use linkspan_tests::bed::linkspan::{Component, NAMESPACE};
use linkspan_tests::bed::{PATIENCE, alone, shared};
use linkspan_tests::process::eventually;
use linkspan_tests::servers;
use serde_json::json;

use super::kit::{REPAIR, Shop, dns_code, header, needs_kubernetes, ready_addresses, service_export, tcp, web_service};

#[test]
fn a_mirror_is_called_by_its_cluster_ip_over_http_and_the_backend_sees_the_callers_service_account() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "http");
    let host = shop.export("web");
    // The address is the ClusterIP of the mirror, which is of a's own range.
    let service = shop.a.get(&shop.mirror("web")).expect("the mirror");
    let address = shop.client.host.sh(&format!("dig +short {host}"));
    assert_eq!(json!(address.trim()), service["spec"]["clusterIP"]);
    let answer = shop.wait_answer(&format!("http://{}/path?query=1", address.trim()));
    assert!(answer.contains("\"/path?query=1\""), "{answer}");
    // Part 2: the source (cluster, namespace, account) is visible at the destination for HTTP.
    let source = header(&answer, "linkspan-source");
    assert_eq!(source.len(), 1, "{answer}");
    assert!(source[0].contains("spiffe://a.linkspan.internal/ns/http/sa/client"), "{source:?}");
    assert!(source[0].contains("assurance=network") && source[0].contains("cluster=\"a\""), "{source:?}");
    // Part 2: forged identity headers are removed.
    let forged = "spiffe://b.linkspan.internal/ns/bank/sa/teller";
    let line = format!("-H 'linkspan-source: \"{forged}\"' -H 'x-forwarded-client-cert: URI={forged}' http://{host}/");
    let (ok, answer) = shop.curl(&line);
    assert!(ok && !answer.contains(forged), "{answer}");
}

#[test]
fn a_mirror_is_called_over_tcp_and_the_backend_sees_who_it_is_by_the_proxy_protocol() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "tcp");
    let host = shop.export("web");
    assert_eq!(tcp(&shop.client, &host, 9000), "tcp-web-0\nping\n");
    // Part 2: the source is visible at the destination for raw TCP.
    let pod = shop.b.starting_pod("tcp", "raw", "app: raw", "default");
    let _server = servers::python(&pod.host, "proxy_protocol_server.py", 7000);
    shop.b.set_ready(&pod, true);
    shop.b.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: raw, namespace: tcp}\nspec: {selector: {app: raw}, ports: [{port: 7000}]}\n\
         ---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: raw, namespace: tcp, \
         annotations: {linkspan.io/proxy-protocol: v2}}\n",
    );
    let host = shop.mirror_name("raw");
    let mut said = String::new();
    eventually("the server behind the PROXY protocol tells who called", PATIENCE, || {
        said = shop.client.host.try_sh(&format!("exec 3<>/dev/tcp/{host}/7000 && timeout 3 head -n 1 <&3")).1;
        said.contains("spiffe://")
    });
    assert!(said.contains("spiffe://a.linkspan.internal/ns/tcp/sa/client"), "{said}");
}

#[test]
fn a_name_server_is_asked_over_udp_and_tcp_at_one_port_of_its_cluster_ip() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::new(&bed, "names");
    let pod = shop.b.starting_pod("names", "names-0", "app: names", "default");
    let _server = servers::unbound(&pod.host, 5300, 10);
    shop.b.set_ready(&pod, true);
    shop.b.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: names, namespace: names}\nspec: {selector: {app: names}, ports: [{name: dns, \
         port: 53, protocol: UDP, targetPort: 5300}, {name: dns-tcp, port: 53, targetPort: 5300}]}\n---\n\
         apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: names, namespace: names}\n",
    );
    let host = shop.mirror_name("names");
    for transport in ["+notcp", "+tcp"] {
        eventually(&format!("the name server answers with {transport}"), PATIENCE, || {
            let ask = format!("dig +short +time=1 +tries=1 {transport} @{host} h1.example. A");
            shop.client.host.try_sh(&ask).1.trim() == "10.9.0.1"
        });
    }
    let slices = shop.a.list(&path::slices("names", "names-b"));
    let ports = slices.iter().flat_map(|slice| slice["ports"].as_array().cloned().unwrap_or_default());
    let ports: Vec<_> = ports.map(|port| (port["protocol"].clone(), port["port"].clone())).collect();
    let of = |protocol: &str| ports.iter().find(|(found, _)| found == protocol).map(|(_, number)| number.clone());
    assert!(of("UDP").is_some() && of("UDP") == of("TCP"), "one port of the gateways for both: {ports:?}");
}

#[test]
fn a_mirror_has_the_ports_and_labels_of_its_service_and_exactly_the_ready_gateways() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "shape");
    let labels = "{\"metadata\": {\"labels\": {\"app.kubernetes.io/name\": \"web\", \"team\": \"payments\", \
                  \"app.kubernetes.io/instance\": \"web\", \"helm.sh/chart\": \"web-1\"}}}";
    shop.b.kubectl(&["-n", "shape", "patch", "service", "web", "-p", labels]);
    shop.export("web");
    let service = shop.a.wait(&shop.mirror("web"), PATIENCE, |service| {
        service["metadata"]["labels"]["app.kubernetes.io/name"] == "web"
    });
    let ports: Vec<_> =
        service["spec"]["ports"].as_array().expect("ports").iter().map(|port| port["port"].clone()).collect();
    assert_eq!(ports, [json!(80), json!(9000)]);
    assert!(service["spec"]["selector"].is_null(), "no selector: {service}");
    let labels = &service["metadata"]["labels"];
    assert_eq!(labels["team"], "payments");
    for commanding in ["app.kubernetes.io/instance", "helm.sh/chart"] {
        assert!(labels[commanding].is_null(), "a label that some tool acts on stays at home: {labels}");
    }
    assert_eq!(labels["mirror.linkspan.io/cluster-name"], "b");
    assert_eq!(labels["mirror.linkspan.io/service-name"], "web");
    let mut gateways: Vec<String> =
        shop.a.replicas(Component::Gateway).iter().map(|pod| pod.host.address().to_owned()).collect();
    gateways.sort();
    assert_eq!(ready_addresses(shop.a, "shape", "web-b"), gateways);
    // Nothing of b's addresses is in a: they would be somebody else's there.
    let slices = shop.a.list(&path::slices("shape", "web-b"));
    let allocated = slices.iter().flat_map(|slice| slice["ports"].as_array().cloned().unwrap_or_default());
    for port in allocated {
        assert!(port["port"].as_u64().is_some_and(|port| (10_000..=32_767).contains(&port)), "{port}");
    }
}

#[test]
fn a_gateway_that_is_not_ready_leaves_the_slices_and_comes_back() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::with_web(&bed, "unready");
    let host = shop.export("web");
    let gateways = shop.a.replicas(Component::Gateway);
    shop.a.set_ready(&gateways[0], false);
    eventually("only the ready gateway is in the slices", PATIENCE, || {
        ready_addresses(shop.a, "unready", "web-b") == [gateways[1].host.address()]
    });
    shop.wait_answer(&format!("http://{host}/"));
    shop.a.set_ready(&gateways[0], true);
    eventually("both gateways are in the slices", PATIENCE, || ready_addresses(shop.a, "unready", "web-b").len() == 2);
}

#[test]
fn a_namespace_that_is_created_later_gets_its_mirrors() {
    needs_kubernetes!();
    let bed = shared();
    let (a, b) = bed.pair();
    b.namespace("later");
    b.apply(&web_service("later", "web", ""));
    b.apply(&service_export("later", "web", ""));
    // What is in this namespace is mirrored, which tells that the other export was seen too.
    let shop = Shop::with_web(&bed, "sooner");
    shop.export("web");
    assert!(a.absent("/api/v1/namespaces/later"), "no namespace is made for a mirror");
    a.namespace("later");
    a.wait(&path::service("later", "web-b"), PATIENCE, |_| true);
    a.wait(&path::import("later", "web"), PATIENCE, |_| true);
    // Absent again, and present again.
    a.kubectl(&["delete", "namespace", "later"]);
    assert!(a.absent("/api/v1/namespaces/later"));
    a.namespace("later");
    a.wait(&path::service("later", "web-b"), PATIENCE, |_| true);
}

#[test]
fn edits_and_deletions_of_mirrors_are_reverted_in_two_seconds() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::with_web(&bed, "drift");
    let host = shop.export("web");
    let import = path::import("drift", "web");
    shop.a.wait(&import, PATIENCE, |import| import["spec"]["ips"][0].is_string());
    let mirror = shop.mirror("web");

    shop.a.patch(JSON_PATCH, &mirror, r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 81}]"#);
    shop.a.wait(&mirror, REPAIR, |service| service["spec"]["ports"][0]["port"] == 80);
    shop.a.patch(JSON_PATCH, &mirror, r#"[{"op": "add", "path": "/spec/selector", "value": {"app": "thief"}}]"#);
    shop.a.wait(&mirror, REPAIR, |service| service["spec"]["selector"].is_null());
    let slice =
        shop.a.list(&path::slices("drift", "web-b"))[0]["metadata"]["name"].as_str().expect("a name").to_owned();
    let slice = format!("/apis/discovery.k8s.io/v1/namespaces/drift/endpointslices/{slice}");
    shop.a.patch(JSON_PATCH, &slice, r#"[{"op": "replace", "path": "/endpoints", "value": []}]"#);
    shop.a.wait(&slice, REPAIR, |slice| slice["endpoints"].as_array().is_some_and(|all| all.len() == 2));
    for object in [&slice, &mirror, &import] {
        let (code, answer) = shop.a.request("DELETE", object, None);
        assert_eq!(code, 200, "{answer}");
        shop.a.wait(object, REPAIR, |object| object["metadata"]["deletionTimestamp"].is_null());
    }
    // A new ClusterIP is a new answer of DNS; then calls go through as before.
    shop.wait_answer(&format!("http://{host}/"));
}

#[test]
fn a_service_that_is_not_exported_any_more_loses_its_mirror_and_nothing_else_goes() {
    needs_kubernetes!();
    let bed = shared();
    let mut shop = Shop::with_web(&bed, "unexport");
    let (a, b) = (shop.a, shop.b);
    shop.serve(b, "other", "other-0");
    a.apply(&web_service("unexport", "web", ""));
    shop.export("web");
    shop.export("other");
    let before = a.get(&shop.mirror("other")).expect("the other mirror");
    b.kubectl(&["-n", "unexport", "delete", "serviceexport", "web"]);
    a.wait_absent(&shop.mirror("web"), PATIENCE);
    a.wait_absent(&path::import("unexport", "web"), PATIENCE);
    a.wait_absent(&path::service("unexport", "web-clusterset"), PATIENCE);
    eventually("no slice is left behind", PATIENCE, || ready_addresses(a, "unexport", "web-b").is_empty());
    assert!(a.get(&path::service("unexport", "web")).is_some(), "the local Service of that name stays");
    assert!(b.get(&path::service("unexport", "web")).is_some(), "the exported Service stays");
    assert_eq!(a.get(&shop.mirror("other")).expect("the other mirror")["metadata"]["uid"], before["metadata"]["uid"]);
    // The same by the end of the Service instead of the export.
    b.kubectl(&["-n", "unexport", "delete", "service", "other"]);
    a.wait_absent(&shop.mirror("other"), PATIENCE);
}

#[test]
fn ports_that_change_are_followed() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "ports");
    let host = shop.export("web");
    // One removed, one added.
    shop.b.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: ports}\nspec: {selector: {app: web}, ports: [{name: \
         http, port: 80, targetPort: 8080}, {name: admin, port: 8081, targetPort: 8080}]}\n",
    );
    shop.a.wait(&shop.mirror("web"), PATIENCE, |service| {
        let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
        ports.iter().map(|port| port["port"].as_u64().unwrap_or_default()).eq([80, 8081])
    });
    shop.wait_answer(&format!("http://{host}:8081/"));
    assert!(!shop.curl(&format!("http://{host}:9000/")).0, "a port that is gone answers no more");
}

#[test]
fn a_foreign_object_of_a_mirrors_name_is_left_alone() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "foreign");
    // Somebody has the name of the mirror already, and the name of the import's Service.
    shop.a.apply(&web_service("foreign", "web-b", ""));
    shop.a.apply(&web_service("foreign", "web-clusterset", ""));
    let theirs = |name: &str| {
        let service = shop.a.get(&path::service("foreign", name)).expect("their Service");
        (service["metadata"]["uid"].clone(), service["spec"].clone(), service["metadata"]["labels"].clone())
    };
    let before = (theirs("web-b"), theirs("web-clusterset"));
    shop.b.apply(&service_export("foreign", "web", ""));
    // Another service of the same namespace is mirrored after it.
    let b = shop.b;
    b.apply(&web_service("foreign", "probe", ""));
    b.apply(&service_export("foreign", "probe", ""));
    shop.a.wait(&shop.mirror("probe"), PATIENCE, |_| true);
    assert_eq!((theirs("web-b"), theirs("web-clusterset")), before);
    // When they take it away, the mirror takes its place.
    shop.a.kubectl(&["-n", "foreign", "delete", "service", "web-b"]);
    shop.a.wait(&shop.mirror("web"), PATIENCE, |service| {
        service["metadata"]["labels"]["mirror.linkspan.io/managed-by"] == "mirror-controller"
    });
}

#[test]
fn linkerds_export_label_exports_too() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "linkerd");
    shop.b.kubectl(&["-n", "linkerd", "label", "service", "web", "mirror.linkerd.io/exported=true"]);
    shop.wait_answer(&format!("http://{}/", shop.mirror_name("web")));
    shop.b.kubectl(&["-n", "linkerd", "label", "service", "web", "mirror.linkerd.io/exported-"]);
    shop.a.wait_absent(&shop.mirror("web"), PATIENCE);
}

#[test]
fn a_mirror_is_never_exported_again() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "again");
    shop.export("web");
    shop.a.kubectl(&["-n", "again", "label", "service", "web-b", "mirror.linkerd.io/exported=true"]);
    shop.a.apply(&service_export("again", "web-b", ""));
    // What a exports after that arrives in b; the mirror does not.
    shop.a.apply(&web_service("again", "own", ""));
    shop.a.apply(&service_export("again", "own", ""));
    shop.b.wait(&path::service("again", "own-a"), PATIENCE, |_| true);
    assert!(shop.b.absent(&path::service("again", "web-b-a")));
    assert!(shop.b.absent(&path::import("again", "web-b")));
}

#[test]
fn names_near_the_limit_get_mirrors_whose_names_are_labels() {
    needs_kubernetes!();
    let bed = shared();
    let mut shop = Shop::new(&bed, "long");
    let name = format!("w{}", "x".repeat(62));
    let b = shop.b;
    b.apply(&web_service("long", &name, ""));
    shop.serve_pod(b, &name, "web-0");
    b.apply(&service_export("long", &name, ""));
    let label = "labelSelector=mirror.linkspan.io%2Fcluster-name%3Db";
    let mut mirror = String::new();
    eventually("a service of 63 letters has a mirror", PATIENCE, || {
        let found = shop.a.list(&format!("/api/v1/namespaces/long/services?{label}"));
        mirror = found.first().and_then(|found| found["metadata"]["name"].as_str()).unwrap_or_default().to_owned();
        !mirror.is_empty()
    });
    assert!(mirror.len() <= 63 && mirror.ends_with("-b"), "{mirror}");
    shop.wait_answer(&format!("http://{mirror}.long.svc.cluster.local/"));
}

#[test]
fn a_service_that_is_not_exported_has_no_name_and_cannot_be_reached() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "secret");
    // MCS case 14.
    for _ in 0..5 {
        assert_eq!(dns_code(&shop.client, &shop.clusterset_name("web")), "NXDOMAIN");
        assert_eq!(dns_code(&shop.client, &shop.mirror_name("web")), "NXDOMAIN");
    }
    // Part 2: a peer that names it all the same is refused by the exporting gateway: the client's side has no such mirror, and
    // what the exporting side holds is its own export table (tests/tests/sites/reach.rs sends such streams by hand).
    let exported = shop.b.replicas(Component::Gateway);
    let table = shop.b.admin(&exported[0], "/config").expect("the gateway's configuration");
    assert!(!table.to_string().contains("secret/web"), "{table}");
}

#[test]
fn the_gateways_serve_on_without_controllers() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::with_web(&bed, "headless-plane");
    let host = shop.export("web");
    let versions = shop.a.versions("headless-plane");
    for controller in shop.a.replicas(Component::Controller) {
        shop.a.kill_replica(&controller);
    }
    for _ in 0..20 {
        let (ok, answer) = shop.curl(&format!("http://{host}/"));
        assert!(ok, "{answer}");
    }
    for controller in shop.a.replicas(Component::Controller) {
        shop.a.restart_replica(&controller);
    }
    // A restart writes nothing and withdraws nothing. The controller knows its peers again when it mirrors something new.
    let b = shop.b;
    b.apply(&web_service("headless-plane", "probe", ""));
    b.apply(&service_export("headless-plane", "probe", ""));
    let start = Instant::now();
    shop.a.wait(&path::import("headless-plane", "probe"), 2 * PATIENCE, |import| import["spec"]["ips"][0].is_string());
    let now: Vec<_> =
        shop.a.versions("headless-plane").into_iter().filter(|(name, _)| name.starts_with("web")).collect();
    assert_eq!(now, versions, "after {:?}", start.elapsed());
    let (ok, answer) = shop.curl(&format!("http://{host}/"));
    assert!(ok, "{answer}");
    assert!(shop.a.get(&format!("/api/v1/namespaces/{NAMESPACE}")).is_some());
}
