//! What two clusters say of one service may differ: conditions on their exports, precedence, and where each port leads.

use std::time::Duration;

use linkspan_tests::bed::api::path;
use linkspan_tests::bed::{Bed, PATIENCE, shared};
use linkspan_tests::process::eventually;
use serde_json::Value;

use super::kit::{Shop, condition, needs_kubernetes, service_export, tcp, wait_condition};

/// Two exporters of `web` with specs of their own; b's export is older by more than the second that timestamps count.
fn two<'a>(bed: &'a Bed, namespace: &str, older: &str, newer: &str) -> Shop<'a> {
    let mut shop = Shop::new(bed, namespace);
    let (a, b) = (shop.a, shop.b);
    let service = |spec: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {namespace}}}\nspec: {{selector: {{app: web}}, {spec}}}\n"
        )
    };
    b.apply(&service(older));
    shop.serve_pod(b, "web", "web-of-b");
    a.apply(&service(newer));
    shop.serve_pod(a, "web", "web-of-a");
    b.apply(&service_export(namespace, "web", ""));
    std::thread::sleep(Duration::from_millis(1100));
    a.apply(&service_export(namespace, "web", ""));
    shop
}

fn ports(import: &Value) -> Vec<u64> {
    let mut ports: Vec<u64> =
        import["spec"]["ports"].as_array().into_iter().flatten().filter_map(|port| port["port"].as_u64()).collect();
    ports.sort_unstable();
    ports
}

fn both_say(shop: &Shop<'_>, reason: &str) {
    for cluster in [shop.a, shop.b] {
        let export = wait_condition(cluster, &path::export(&shop.namespace, "web"), "Conflict", "True");
        let (_, found) = condition(&export, "Conflict").expect("a condition");
        assert!(found.split(',').any(|found| found == reason), "{found}");
    }
}

#[test]
fn mcs_08_different_ports_are_a_conflict_and_the_import_has_all() {
    needs_kubernetes!();
    let bed = shared();
    let one = "ports: [{name: http, port: 80, targetPort: 8080}]";
    let more = "ports: [{name: http, port: 80, targetPort: 8080}, {name: echo, port: 9000}]";
    let shop = two(&bed, "mcs08", one, more);
    for cluster in [shop.a, shop.b] {
        cluster.wait(&path::import("mcs08", "web"), PATIENCE, |import| ports(import) == [80, 9000]);
    }
}

#[test]
fn mcs_08_both_exports_say_so() {
    needs_kubernetes!();
    let bed = shared();
    let one = "ports: [{name: http, port: 80, targetPort: 8080}]";
    let more = "ports: [{name: http, port: 80, targetPort: 8080}, {name: sctp, port: 142, protocol: SCTP}]";
    let shop = two(&bed, "mcs08s", one, more);
    both_say(&shop, "PortConflict");
}

#[test]
fn mcs_09_of_one_name_with_two_numbers_the_older_holds_and_both_exports_say_so() {
    needs_kubernetes!();
    let bed = shared();
    let shop = two(
        &bed,
        "mcs09",
        "ports: [{name: http, port: 80, targetPort: 8080}]",
        "ports: [{name: http, port: 81, targetPort: 8080}]",
    );
    both_say(&shop, "PortConflict");
    for cluster in [shop.a, shop.b] {
        cluster.wait(&path::import("mcs09", "web"), PATIENCE, |import| ports(import) == [80]);
    }
}

#[test]
fn mcs_10_11_a_headless_export_is_a_headless_import_without_addresses() {
    needs_kubernetes!();
    let bed = shared();
    let mut shop = Shop::new(&bed, "mcs10");
    let (a, b) = (shop.a, shop.b);
    b.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: mcs10}\nspec: {clusterIP: None, selector: {app: web}, \
         ports: [{name: http, port: 8080}]}\n",
    );
    shop.serve_pod(b, "web", "web-0");
    b.apply(&service_export("mcs10", "web", ""));
    for cluster in [a, b] {
        let import =
            cluster.wait(&path::import("mcs10", "web"), PATIENCE, |import| import["spec"]["type"] == "Headless");
        assert!(import["spec"]["ips"].as_array().is_none_or(Vec::is_empty), "{import}");
    }
    b.kubectl(&["-n", "mcs10", "delete", "serviceexport", "web"]);
    for cluster in [a, b] {
        cluster.wait_absent(&path::import("mcs10", "web"), PATIENCE);
    }
}

#[test]
fn mcs_13_of_two_types_the_older_holds_and_both_exports_say_so() {
    needs_kubernetes!();
    let bed = shared();
    let ports = "ports: [{name: http, port: 80, targetPort: 8080}]";
    let shop = two(&bed, "mcs13", ports, &format!("clusterIP: None, {ports}"));
    both_say(&shop, "TypeConflict");
    for cluster in [shop.a, shop.b] {
        cluster.wait(&path::import("mcs13", "web"), PATIENCE, |import| import["spec"]["type"] == "ClusterSetIP");
    }
}

#[test]
fn mcs_16_of_two_label_sets_the_older_holds_and_both_exports_say_so() {
    needs_kubernetes!();
    let bed = shared();
    let mut shop = Shop::with_web(&bed, "mcs16");
    let (a, b) = (shop.a, shop.b);
    shop.serve(a, "web", "web-of-a");
    b.apply(&service_export("mcs16", "web", "exportedLabels: {tier: gold}"));
    std::thread::sleep(Duration::from_millis(1100));
    a.apply(&service_export("mcs16", "web", "exportedLabels: {tier: silver}"));
    both_say(&shop, "LabelsConflict");
    for cluster in [a, b] {
        cluster.wait(&path::import("mcs16", "web"), PATIENCE, |import| import["metadata"]["labels"]["tier"] == "gold");
    }
}

#[test]
fn mcs_26_27_a_port_leads_only_to_clusters_that_export_it() {
    needs_kubernetes!();
    let bed = shared();
    // The same backend port under numbers of their own.
    let shop = two(
        &bed,
        "mcs26",
        "ports: [{name: tcp, port: 42, targetPort: 9000}]",
        "ports: [{name: tcp2, port: 4242, targetPort: 9000}]",
    );
    let neighbour = shop.b.pod("mcs26", "client", "app: client", "default");
    let name = shop.clusterset_name("web");
    for client in [&shop.client, &neighbour] {
        for (port, pod) in [(42, "mcs26-web-of-b"), (4242, "mcs26-web-of-a")] {
            eventually(&format!("port {port} leads to {pod}"), PATIENCE, || {
                tcp(client, &name, port) == format!("{pod}\nping\n")
            });
            for _ in 0..10 {
                assert_eq!(tcp(client, &name, port), format!("{pod}\nping\n"));
            }
        }
    }
}
