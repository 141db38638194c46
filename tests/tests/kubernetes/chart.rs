//! The Helm chart, installed as its users do: with its own values in one cluster, with those for many nodes in the other.

use linkspan_tests::bed::api::path;
use linkspan_tests::bed::linkspan::{Component, NAMESPACE, forward_clusterset};
use linkspan_tests::bed::{Cluster, Fresh, PATIENCE, shared};
use linkspan_tests::process::eventually;
use linkspan_tests::servers;

use super::kit::{header, needs_kubernetes, service_export, wait_answer, web_service};
use super::readme::uninstall;

/// The commands of deploy/kubernetes.md, with the values that are meant.
fn install(fresh: &Fresh, cluster: &Cluster, values: &str) {
    let name = cluster.name();
    fresh.sh(&format!("kubectl --context {name} create namespace {NAMESPACE}"));
    fresh.sh(&format!("linkspan ca create --cluster-name {name} | kubectl --context {name} create -f -"));
    let said = fresh.sh(&format!(
        "helm --kube-context {name} install linkspan deploy/charts/linkspan -n {NAMESPACE} --set cluster.name={name} {values}"
    ));
    assert!(said.contains("STATUS: deployed"), "{said}");
    cluster.balance();
    cluster.start_replicas();
    forward_clusterset(cluster);
}

#[test]
fn the_chart_installs_with_its_own_values_and_with_those_for_many_nodes_and_the_two_link() {
    needs_kubernetes!();
    if !std::process::Command::new("helm").arg("version").output().is_ok_and(|output| output.status.success()) {
        let required = std::env::var_os("LINKSPAN_REQUIRE_KUBERNETES").is_some_and(|value| value == "1");
        assert!(!required, "LINKSPAN_REQUIRE_KUBERNETES=1, and there is no helm: deploy/charts/build-helm builds it");
        eprintln!("SKIPPED: no helm on the path; deploy/charts/build-helm builds it");
        return;
    }
    let bed = shared();
    let fresh = bed.fresh();
    let (east, west) = (&fresh.east, &fresh.west);
    std::thread::scope(|scope| {
        scope.spawn(|| install(&fresh, east, ""));
        install(&fresh, west, "-f deploy/charts/linkspan/values-ha.yaml");
    });
    let count = |cluster: &Cluster| {
        [Component::Controller, Component::Gateway].map(|component| cluster.replicas(component).len())
    };
    assert_eq!((count(east), count(west)), ([2, 2], [2, 3]));
    let service = west.get(&path::service(NAMESPACE, "linkspan-link")).expect("the Service for the link");
    assert_eq!(service["spec"]["externalTrafficPolicy"], "Local");

    for (from, to) in [("west", "east"), ("east", "west")] {
        fresh.sh(&format!("linkspan link export --context {from} | linkspan link import - --context {to}"));
    }
    for cluster in fresh.both() {
        cluster.namespace("shop");
    }
    west.apply(&web_service("shop", "web", ""));
    let pod = west.starting_pod("shop", "web-0", "app: web", "default");
    let _server = servers::python(&pod.host, "headers_server.py", 8080);
    west.set_ready(&pod, true);
    west.apply(&service_export("shop", "web", ""));
    let client = east.pod("shop", "client", "app: client", "default");
    let url = "http://web-west.shop.svc.cluster.local/";
    wait_answer(&client, url, 2 * PATIENCE);
    // Whose a brand-new pod's address is the gateway hears a moment after it is there; until then it speaks for itself.
    eventually("the client is known by its ServiceAccount", PATIENCE, || {
        let source = header(&wait_answer(&client, url, PATIENCE), "linkspan-source");
        source.first().is_some_and(|source| source.contains("spiffe://east.linkspan.internal/ns/shop/sa/default"))
    });
    for name in ["east", "west"] {
        let (ok, said) = fresh.try_sh(&format!("linkspan check --context {name} --wait 30"));
        assert!(ok, "{said}");
    }

    // It takes back what it brought; the namespace and the root in it are not its own.
    uninstall(&fresh, east, &format!("helm --kube-context east uninstall linkspan -n {NAMESPACE} --wait"));
    fresh.sh(
        "kubectl --context east delete services,endpointslices -A -l mirror.linkspan.io/managed-by=mirror-controller",
    );
    let mut left = String::new();
    eventually("nothing of the chart is left", PATIENCE, || {
        left = fresh.sh(
            "kubectl --context east get clusterroles,clusterrolebindings,validatingadmissionpolicies,\
             validatingadmissionpolicybindings,customresourcedefinitions -o name | grep -i linkspan || true; kubectl \
             --context east get all,configmaps,secrets,roles,rolebindings,networkpolicies,poddisruptionbudgets -n linkspan -o name",
        );
        left.lines()
            .all(|line| ["configmap/kube-root-ca.crt", "configmap/linkspan-root", "secret/linkspan-ca"].contains(&line))
    });
    assert!(left.contains("secret/linkspan-ca"), "peers trust it: {left}");
    assert!(east.made_services().is_empty(), "{:?}", east.made_services());
}
