//! Links come and go: what they made goes with them, and nothing else does.

use linkspan_tests::bed::api::path;
use linkspan_tests::bed::{PATIENCE, alone, linkspan};
use linkspan_tests::process::eventually;

use super::kit::{Shop, needs_kubernetes, service_export, wait_answer, web_service};

#[test]
fn a_third_cluster_is_linked_mirrored_and_unlinked_without_a_trace() {
    needs_kubernetes!();
    let bed = alone();
    let mut shop = Shop::with_web(&bed, "third");
    let (a, c) = (shop.a, bed.c());
    let host = shop.export("web");
    let before = a.made();
    let kept = a.versions("third");

    linkspan::link(a, c);
    c.namespace("third");
    shop.serve(c, "web", "web-of-c");
    c.apply(&service_export("third", "web", ""));
    a.wait(&path::service("third", "web-c"), PATIENCE, |_| true);
    wait_answer(&shop.client, "http://web-c.third.svc.cluster.local/", PATIENCE);
    // Somebody's own Service in the namespace, and one that carries a label like ours but not ours.
    a.apply(&web_service("third", "own", ""));
    a.kubectl(&["-n", "third", "label", "service", "own", "mirror.linkerd.io/mirrored-service=true"]);
    // No transit: what a has from b is not c's.
    assert!(c.absent(&path::service("third", "web-b-a")));
    assert!(c.list("/api/v1/namespaces/third/services").iter().all(|service| service["metadata"]["name"] != "web-b"));

    a.unlink("c");
    a.wait_absent(&path::service("third", "web-c"), PATIENCE);
    eventually("a has what it had before", PATIENCE, || {
        let mut now = a.made();
        let mut then = before.clone();
        now.sort();
        then.sort();
        now == then
    });
    assert!(a.get(&path::service("third", "own")).is_some(), "a foreign object stays");
    let same: Vec<String> = kept.iter().map(|(name, _)| name.clone()).collect();
    let now: Vec<String> = a.versions("third").into_iter().map(|(name, _)| name).collect();
    assert_eq!(now, same, "the mirrors of b stay");
    shop.wait_answer(&format!("http://{host}/"));

    // The other side, whose Link is still there, keeps its mirrors; it loses them with its own Link.
    c.unlink("a");
    eventually("nothing that the Link made is left in c", PATIENCE, || {
        c.made().iter().all(|object| !object.ends_with(" a"))
    });
    let left = a.list("/apis/linkspan.io/v1alpha1/links");
    assert!(left.iter().all(|link| link["metadata"]["name"] != "c"), "{left:?}");
}
