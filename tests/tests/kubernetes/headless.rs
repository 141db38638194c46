//! Headless services and StatefulSets: a name for the whole, and one for each pod.

use linkspan_tests::bed::api::path;
use linkspan_tests::bed::{Cluster, PATIENCE, Pod, shared};
use linkspan_tests::process::{Process, eventually};
use linkspan_tests::servers;

use super::kit::{Shop, dig, needs_kubernetes, service_export, tcp};

/// A StatefulSet's Service with `count` pods in a cluster.
fn cache(cluster: &Cluster, namespace: &str, count: usize) -> Vec<(Pod, Process)> {
    cluster.apply(&cache_service(namespace, "clusterIP: None, "));
    (0..count).map(|number| cache_pod(cluster, namespace, number)).collect()
}

fn cache_service(namespace: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: cache, namespace: {namespace}}}\nspec: {{{address}selector: {{app: \
         cache}}, ports: [{{name: tcp, port: 9000}}]}}\n"
    )
}

fn cache_pod(cluster: &Cluster, namespace: &str, number: usize) -> (Pod, Process) {
    let pod = cluster.stateful_pod(namespace, &format!("cache-{number}"), "app: cache", "cache");
    let server = servers::python(&pod.host, "where_server.py", 9000);
    (pod, server)
}

#[test]
fn each_pod_of_a_stateful_set_is_reached_by_its_own_name_and_no_other_answers() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::new(&bed, "stateful");
    let pods = cache(shop.b, "stateful", 2);
    shop.b.apply(&service_export("stateful", "cache", ""));
    for (pod, _) in &pods {
        let name = format!("{}.cache-b.stateful.svc.cluster.local", pod.name);
        let expected = format!("stateful-{}\nping\n", pod.name);
        eventually(&format!("{name} leads to its pod"), PATIENCE, || tcp(&shop.client, &name, 9000) == expected);
        for _ in 0..10 {
            assert_eq!(tcp(&shop.client, &name, 9000), expected);
        }
    }
}

#[test]
fn a_headless_mirror_has_no_address_and_its_name_answers_for_all_ready_pods() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::new(&bed, "whole");
    let mut pods = cache(shop.b, "whole", 2);
    shop.b.apply(&service_export("whole", "cache", ""));
    let mirror = shop.a.wait(&shop.mirror("cache"), PATIENCE, |_| true);
    assert_eq!(mirror["spec"]["clusterIP"], "None");
    let name = "cache-b.whole.svc.cluster.local";
    let answers = |count: usize| {
        eventually(&format!("{name} answers with {count} addresses"), PATIENCE, || {
            dig(&shop.client, name, "A").lines().count() == count
        });
    };
    answers(2);
    // Linkerd: headless Endpoints gain a host, existing ones are kept.
    pods.push(cache_pod(shop.b, "whole", 2));
    answers(3);
    shop.b.set_ready(&pods[0].0, false);
    answers(2);
}

/// Nobody can change a Service so in place; whoever changes a chart does this.
#[test]
fn a_service_that_is_replaced_by_a_headless_one_and_back_is_reached_each_time() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::new(&bed, "replaced");
    let _pods = cache(shop.b, "replaced", 1);
    shop.b.apply(&service_export("replaced", "cache", ""));
    let whole = "cache-b.replaced.svc.cluster.local";
    let expected = "replaced-cache-0\nping\n";
    shop.a.wait(&shop.mirror("cache"), PATIENCE, |mirror| mirror["spec"]["clusterIP"] == "None");
    for is_headless in [false, true, false] {
        shop.b.kubectl(&["-n", "replaced", "delete", "service", "cache"]);
        shop.b.apply(&cache_service("replaced", if is_headless { "clusterIP: None, " } else { "" }));
        shop.a.wait(&shop.mirror("cache"), PATIENCE, |mirror| (mirror["spec"]["clusterIP"] == "None") == is_headless);
        let one = format!("cache-0.{whole}");
        let names = if is_headless { vec![whole, one.as_str()] } else { vec![whole] };
        for name in names {
            eventually(&format!("{name} leads to the pod"), PATIENCE, || tcp(&shop.client, name, 9000) == expected);
            for _ in 0..5 {
                assert_eq!(tcp(&shop.client, name, 9000), expected, "{name}, headless {is_headless}");
            }
        }
    }
}

#[test]
fn headless_mirrors_go_with_their_export_and_only_in_their_namespace() {
    needs_kubernetes!();
    let bed = shared();
    let (one, two) = (Shop::new(&bed, "gone-one"), Shop::new(&bed, "gone-two"));
    let _pods = [cache(one.b, "gone-one", 1), cache(two.b, "gone-two", 1)];
    for shop in [&one, &two] {
        shop.b.apply(&service_export(&shop.namespace, "cache", ""));
        shop.a.wait(&shop.mirror("cache"), PATIENCE, |_| true);
    }
    one.b.kubectl(&["-n", "gone-one", "delete", "serviceexport", "cache"]);
    eventually("nothing of ours is left in the namespace", PATIENCE, || one.a.versions("gone-one").is_empty());
    let name = "cache-0.cache-b.gone-two.svc.cluster.local";
    eventually("the other namespace's is there", PATIENCE, || tcp(&two.client, name, 9000).contains("ping"));
}

#[test]
fn mcs_22_23_the_names_and_srv_records_of_a_headless_import_agree_with_its_slices() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::new(&bed, "mcs22");
    let pods = cache(shop.b, "mcs22", 2);
    shop.b.apply(&service_export("mcs22", "cache", ""));
    shop.a.wait(&path::import("mcs22", "cache"), PATIENCE, |import| import["spec"]["type"] == "Headless");
    let list = "/apis/discovery.k8s.io/v1/namespaces/mcs22/endpointslices?labelSelector=multicluster.kubernetes.io%2Fservice-name%3Dcache";
    for (pod, _) in &pods {
        let name = format!("{}.b.cache.mcs22.svc.clusterset.local", pod.name);
        eventually(&format!("{name} is the address in the slice"), PATIENCE, || {
            let slices = shop.a.list(list);
            let mut endpoints =
                slices.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
            let address = endpoints.find(|endpoint| endpoint["hostname"] == pod.name.as_str());
            let address = address.and_then(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned));
            address.is_some_and(|address| dig(&shop.client, &name, "A") == address)
        });
        assert_eq!(tcp(&shop.client, &name, 9000), format!("mcs22-{}\nping\n", pod.name));
    }
    let srv = dig(&shop.client, "cache.mcs22.svc.clusterset.local", "SRV");
    assert_eq!(srv.lines().count(), 2, "{srv}");
    assert!(srv.lines().all(|line| line.contains("9000 cache-")), "{srv}");
}
