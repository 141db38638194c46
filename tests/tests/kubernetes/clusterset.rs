//! The clusterset, by the multi-cluster services API (KEP-1645): one service of several clusters under one name. Tests are named by
//! the cases of the conformance suite, `mcs_NN`.

use linkspan_tests::bed::api::path;
use linkspan_tests::bed::{PATIENCE, shared};
use linkspan_tests::process::eventually;
use serde_json::{Value, json};

use super::kit::{
    Shop, condition, dig, dns_code, needs_kubernetes, ready_addresses, service_export, tcp, wait_answer,
    wait_condition, wait_dns, web_service,
};

#[test]
fn mcs_01_an_import_exists_as_long_as_one_cluster_exports() {
    needs_kubernetes!();
    let bed = shared();
    let mut shop = Shop::with_web(&bed, "mcs01");
    let (a, b) = (shop.a, shop.b);
    shop.serve(a, "web", "web-0");
    let import = path::import("mcs01", "web");
    let clusters = |import: &Value| {
        let all = import["status"]["clusters"].as_array().cloned().unwrap_or_default();
        all.iter().filter_map(|entry| entry["cluster"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    b.apply(&service_export("mcs01", "web", ""));
    a.apply(&service_export("mcs01", "web", ""));
    for cluster in [a, b] {
        cluster.wait(&import, PATIENCE, |import| {
            let mut found = clusters(import);
            found.sort();
            found == ["a", "b"]
        });
    }
    let ips: Vec<Value> =
        [a, b].iter().map(|cluster| cluster.get(&import).expect("import")["spec"]["ips"].clone()).collect();
    b.kubectl(&["-n", "mcs01", "delete", "serviceexport", "web"]);
    for (cluster, ips) in [a, b].iter().zip(&ips) {
        let left = cluster.wait(&import, PATIENCE, |import| clusters(import) == ["a"]);
        assert_eq!(&left["spec"]["ips"], ips, "the address is stable for the life of the import");
    }
    a.kubectl(&["-n", "mcs01", "delete", "serviceexport", "web"]);
    for cluster in [a, b] {
        cluster.wait_absent(&import, PATIENCE);
    }
}

#[test]
fn mcs_02_an_exported_cluster_ip_service_is_valid_and_imported_in_every_cluster() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "mcs02");
    shop.b.apply(&service_export("mcs02", "web", ""));
    for cluster in [shop.a, shop.b] {
        let import = cluster.wait(&path::import("mcs02", "web"), PATIENCE, |_| true);
        assert_eq!(import["spec"]["type"], "ClusterSetIP");
    }
    shop.b.kubectl(&["-n", "mcs02", "delete", "serviceexport", "web"]);
    for cluster in [shop.a, shop.b] {
        cluster.wait_absent(&path::import("mcs02", "web"), PATIENCE);
    }
}

#[test]
fn mcs_02_the_export_says_that_it_is_valid() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "mcs02s");
    shop.b.apply(&service_export("mcs02s", "web", ""));
    let export = wait_condition(shop.b, &path::export("mcs02s", "web"), "Valid", "True");
    assert_eq!(condition(&export, "Valid").expect("a condition").1, "Valid");
    assert_eq!(condition(&export, "Ready").expect("a condition"), ("True".to_owned(), "Exported".to_owned()));
    let observed = export["status"]["conditions"][0]["observedGeneration"].as_u64();
    assert_eq!(observed, export["metadata"]["generation"].as_u64());
    // Without its Service it is not.
    shop.b.kubectl(&["-n", "mcs02s", "delete", "service", "web"]);
    let export = wait_condition(shop.b, &path::export("mcs02s", "web"), "Valid", "False");
    assert_eq!(condition(&export, "Valid").expect("a condition").1, "NoService");
}

#[test]
fn mcs_03_04_05_session_affinity_traffic_policy_and_distribution_are_copied() {
    needs_kubernetes!();
    let bed = shared();
    let mut shop = Shop::new(&bed, "mcs03");
    let (a, b) = (shop.a, shop.b);
    let more = "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 10}}, internalTrafficPolicy: \
                Cluster, trafficDistribution: PreferClose";
    b.apply(&web_service("mcs03", "web", more));
    shop.serve_pod(b, "web", "web-0");
    b.apply(&service_export("mcs03", "web", ""));
    for cluster in [a, b] {
        let import = cluster
            .wait(&path::import("mcs03", "web"), PATIENCE, |import| import["spec"]["sessionAffinity"] == "ClientIP");
        assert_eq!(import["spec"]["sessionAffinityConfig"], json!({ "clientIP": { "timeoutSeconds": 10 } }));
        assert_eq!(import["spec"]["internalTrafficPolicy"], "Cluster");
        assert_eq!(import["spec"]["trafficDistribution"], "PreferClose");
    }
}

#[test]
fn mcs_06_07_an_import_has_an_address_for_each_family_and_the_exported_ports() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "mcs06");
    shop.b.apply(&service_export("mcs06", "web", ""));
    for cluster in [shop.a, shop.b] {
        let import =
            cluster.wait(&path::import("mcs06", "web"), PATIENCE, |import| import["spec"]["ips"][0].is_string());
        let ips = import["spec"]["ips"].as_array().expect("ips");
        assert_eq!(import["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(ips.len(), 1);
        assert!(ips[0].as_str().is_some_and(|ip| ip.starts_with("10.96.")), "{ips:?}");
        let ports = import["spec"]["ports"].clone();
        let expected = json!([
            { "name": "http", "port": 80, "protocol": "TCP", "appProtocol": "http" },
            { "name": "echo", "port": 9000, "protocol": "TCP" }
        ]);
        assert_eq!(ports, expected);
    }
}

#[test]
fn mcs_12_an_external_name_is_not_valid_and_not_imported() {
    needs_kubernetes!();
    let bed = shared();
    let (a, b) = bed.pair();
    for cluster in [a, b] {
        cluster.namespace("mcs12");
    }
    b.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: mcs12}\nspec: {type: ExternalName, externalName: \
         example.com}\n",
    );
    b.apply(&service_export("mcs12", "web", ""));
    // Another one of the same namespace, exported later, is imported.
    b.apply(&web_service("mcs12", "probe", ""));
    b.apply(&service_export("mcs12", "probe", ""));
    for cluster in [a, b] {
        cluster.wait(&path::import("mcs12", "probe"), PATIENCE, |_| true);
        assert!(cluster.absent(&path::import("mcs12", "web")));
    }
    // It has no pods: as long as it is exported, `linkspan check` has something to complain of.
    b.kubectl(&["-n", "mcs12", "delete", "serviceexport", "probe"]);
    for cluster in [a, b] {
        cluster.wait_absent(&path::import("mcs12", "probe"), PATIENCE);
    }
}

#[test]
fn mcs_12_the_export_of_an_external_name_says_why() {
    needs_kubernetes!();
    let bed = shared();
    let b = bed.b();
    b.namespace("mcs12s");
    b.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: mcs12s}\nspec: {type: ExternalName, externalName: \
         example.com}\n",
    );
    b.apply(&service_export("mcs12s", "web", ""));
    let export = wait_condition(b, &path::export("mcs12s", "web"), "Valid", "False");
    assert_eq!(condition(&export, "Valid").expect("a condition").1, "InvalidServiceType");
}

#[test]
fn mcs_15_labels_and_annotations_of_the_import_come_from_the_export_alone() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "mcs15");
    shop.b.kubectl(&["-n", "mcs15", "label", "service", "web", "on-the-service=yes"]);
    let spec = "exportedLabels: {on-the-export: \"yes\"}, exportedAnnotations: {noted: \"yes\"}";
    shop.b.apply(&service_export("mcs15", "web", spec));
    let import = shop
        .a
        .wait(&path::import("mcs15", "web"), PATIENCE, |import| import["metadata"]["labels"]["on-the-export"] == "yes");
    assert_eq!(import["metadata"]["annotations"]["noted"], "yes");
    assert!(import["metadata"]["labels"]["on-the-service"].is_null(), "{import}");
}

#[test]
fn mcs_17_every_importing_cluster_has_endpoint_slices_of_the_exporting_one() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "mcs17");
    shop.b.apply(&service_export("mcs17", "web", ""));
    let list = "/apis/discovery.k8s.io/v1/namespaces/mcs17/endpointslices?labelSelector=multicluster.kubernetes.io%2Fservice-name%3Dweb";
    for cluster in [shop.a, shop.b] {
        let mut slices = Vec::new();
        eventually("slices of the import", PATIENCE, || {
            slices = cluster.list(list);
            !slices.is_empty()
        });
        for slice in &slices {
            let labels = &slice["metadata"]["labels"];
            assert_eq!(labels["multicluster.kubernetes.io/source-cluster"], "b");
            assert_ne!(labels["endpointslice.kubernetes.io/managed-by"], "endpointslice-controller.k8s.io");
            assert!(slice["endpoints"].as_array().is_some_and(|all| !all.is_empty()), "{slice}");
        }
    }
    shop.b.kubectl(&["-n", "mcs17", "delete", "serviceexport", "web"]);
    for cluster in [shop.a, shop.b] {
        eventually("no slice of the import", PATIENCE, || cluster.list(list).is_empty());
    }
}

#[test]
fn mcs_18_19_20_24_the_clusterset_name_resolves_by_coredns_and_leads_to_the_service() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "mcs18");
    // In b too, which exports: clients there use the same name.
    let neighbour = shop.b.pod("mcs18", "client", "app: client", "default");
    shop.b.apply(&service_export("mcs18", "web", ""));
    let name = shop.clusterset_name("web");
    for (cluster, client) in [(shop.a, &shop.client), (shop.b, &neighbour)] {
        let import =
            cluster.wait(&path::import("mcs18", "web"), PATIENCE, |import| import["spec"]["ips"][0].is_string());
        let ip = import["spec"]["ips"][0].as_str().expect("an address").to_owned();
        wait_dns(client, &name, "A", &ip);
        assert_eq!(dig(client, &format!("_http._tcp.{name}"), "SRV"), format!("0 100 80 {name}."));
        let answer = wait_answer(client, &format!("http://{name}/"), PATIENCE);
        assert!(answer.contains("\"GET\""), "{answer}");
        assert_eq!(tcp(client, &name, 9000), "mcs18-web-0\nping\n");
    }
    // Case 20: what cluster.local answers does not change.
    let own = shop.b.get(&path::service("mcs18", "web")).expect("the Service");
    assert_eq!(json!(dig(&neighbour, "web.mcs18.svc.cluster.local", "A")), own["spec"]["clusterIP"]);
    // MCS-6, MCS-8.
    assert_eq!(dns_code(&shop.client, &format!("b.{name}")), "NXDOMAIN");
    assert_eq!(dig(&shop.client, "dns-version.clusterset.local", "TXT"), "\"1.0.0\"");
}

#[test]
fn mcs_25_only_the_exporting_clusters_pods_answer() {
    needs_kubernetes!();
    let bed = shared();
    let mut shop = Shop::with_web(&bed, "mcs25");
    let a = shop.a;
    // The same Service in a, not exported.
    shop.serve(a, "web", "web-of-a");
    let neighbour = shop.b.pod("mcs25", "client", "app: client", "default");
    shop.b.apply(&service_export("mcs25", "web", ""));
    let name = shop.clusterset_name("web");
    for client in [&shop.client, &neighbour] {
        wait_answer(client, &format!("http://{name}/"), PATIENCE);
        for _ in 0..10 {
            assert_eq!(tcp(client, &name, 9000), "mcs25-web-0\nping\n");
        }
    }
    // The local name leads to the local pod as ever.
    assert_eq!(tcp(&shop.client, "web.mcs25.svc.cluster.local", 9000), "mcs25-web-of-a\nping\n");
}

#[test]
fn the_import_prefers_local_pods_and_takes_the_peers_when_there_is_none() {
    needs_kubernetes!();
    let bed = shared();
    let mut shop = Shop::with_web(&bed, "prefer");
    let (a, b) = (shop.a, shop.b);
    let local = shop.serve(a, "web", "web-of-a");
    for cluster in [a, b] {
        cluster.apply(&service_export("prefer", "web", ""));
    }
    let name = shop.clusterset_name("web");
    let client = &shop.client;
    let leads_to = |wanted: &str| {
        eventually(&format!("the clusterset name leads to {wanted}"), PATIENCE, || {
            (0..5).all(|_| tcp(client, &name, 9000) == format!("{wanted}\nping\n"))
        });
    };
    leads_to("prefer-web-of-a");
    a.set_ready(&local, false);
    leads_to("prefer-web-0");
    a.set_ready(&local, true);
    leads_to("prefer-web-of-a");
    assert_eq!(ready_addresses(a, "prefer", "web"), [local.host.address()]);
}
