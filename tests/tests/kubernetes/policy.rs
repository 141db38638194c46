//! Who may call an export, and which cluster serves a call.

use linkspan_tests::bed::{PATIENCE, alone, shared};
use linkspan_tests::load::Load;
use linkspan_tests::process::eventually;
use linkspan_tests::servers::Nginx;

use super::kit::{Shop, needs_kubernetes, service_export, wait_answer};

#[test]
fn an_export_policy_lets_the_named_service_account_in_and_no_other() {
    needs_kubernetes!();
    let bed = shared();
    let shop = Shop::with_web(&bed, "allowed");
    let host = shop.export("web");
    let stranger = shop.a.pod("allowed", "stranger", "app: stranger", "default");
    wait_answer(&stranger, &format!("http://{host}/"), PATIENCE);
    shop.b.apply(
        "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata: {name: web, namespace: allowed}\nspec:\n  services: \
         [web]\n  allow:\n    - peers: [a]\n      identities: [\"spiffe://a.linkspan.internal/ns/allowed/sa/client\"]\n      \
         minimumAssurance: network\n",
    );
    eventually("the stranger is denied", PATIENCE, || {
        let line = format!("curl -sS --max-time 3 -o /dev/null -w '%{{http_code}}' http://{host}/");
        stranger.host.try_sh(&line).1 == "403"
    });
    shop.wait_answer(&format!("http://{host}/"));
    // For TCP there is no status: the connection ends without a byte.
    assert!(!super::kit::tcp(&stranger, &host, 9000).contains("ping"));
    assert!(super::kit::tcp(&shop.client, &host, 9000).contains("ping"));
    shop.b.kubectl(&["-n", "allowed", "delete", "exportpolicy", "web"]);
    wait_answer(&stranger, &format!("http://{host}/"), PATIENCE);
}

#[test]
fn weights_of_a_traffic_policy_hold_within_statistical_bounds() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::new(&bed, "weights");
    let (a, b) = (shop.a, shop.b);
    let mut web = Vec::new();
    for cluster in [a, b] {
        cluster.apply(
            "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: weights}\nspec: {selector: {app: web}, ports: \
             [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}\n",
        );
        let pod = cluster.pod("weights", "web-0", "app: web", "default");
        web.push(Nginx::start(&pod.host, 8080));
        cluster.apply(&service_export("weights", "web", ""));
    }
    let url = format!("http://{}/", shop.clusterset_name("web"));
    let policy = |own: u32, peer: u32| {
        a.apply(&format!(
            "apiVersion: linkspan.io/v1alpha1\nkind: ClusterTrafficPolicy\nmetadata: {{name: web, namespace: weights}}\nspec: \
             {{service: web, tiers: [{{clusters: {{a: {own}, b: {peer}}}}}]}}\n"
        ));
    };
    // Weight zero is exactly zero.
    policy(0, 100);
    eventually("all calls go to b", PATIENCE, || {
        let line = format!("for n in 1 2 3 4 5 6 7 8; do curl -fsS --max-time 2 {url}; done");
        shop.client.host.try_sh(&line).1 == "b\n".repeat(8)
    });
    let report = Load::start(&shop.client.host, &url, 200, 3).finish();
    assert_eq!(report.failures.len(), 0, "{:?}", report.failures.first());
    assert_eq!(report.by_cluster.get("b"), Some(&report.requests), "{:?}", report.by_cluster);
    policy(50, 50);
    eventually("calls go to a again", PATIENCE, || {
        let line = format!("for n in 1 2 3 4 5 6 7 8; do curl -fsS --max-time 2 {url}; done");
        let said = shop.client.host.try_sh(&line).1;
        said.contains('a') && said.contains('b')
    });
    let report = Load::start(&shop.client.host, &url, 200, 5).finish();
    assert_eq!(report.failures.len(), 0, "{:?}", report.failures.first());
    let own = report.by_cluster.get("a").copied().unwrap_or_default();
    // 1,000 calls at one half: five standard deviations are 79.
    assert!((421..=579).contains(&own), "{:?}", report.by_cluster);
}
