//! Where nothing happens, nothing is written.

use std::time::{Duration, Instant};

use linkspan_tests::bed::audit::{Mark, Request};
use linkspan_tests::bed::linkspan::Component;
use linkspan_tests::bed::{Cluster, alone};
use linkspan_tests::world::long;

use super::faults::CONTROLLER;
use super::kit::{Shop, needs_kubernetes, wait_condition};

/// What is only worded differently is written up to 10 s later; who has written nothing for longer has nothing to say.
const SETTLED: Duration = Duration::from_secs(11);
/// How long it may take until then: the tests before have left namespaces that are being deleted.
const SETTLING: Duration = Duration::from_secs(90);

/// The link of each cluster to the other one.
const LINKS: [&str; 2] = ["/apis/linkspan.io/v1alpha1/links/b", "/apis/linkspan.io/v1alpha1/links/a"];

/// What the controllers of a cluster changed since then, without the lease, which is renewed all the time.
fn writes(cluster: &Cluster, since: Mark) -> Vec<Request> {
    let changes = |request: &Request| {
        matches!(request.verb.as_str(), "create" | "patch" | "update" | "delete" | "deletecollection")
    };
    let all = cluster.audit(CONTROLLER, Some(since)).into_iter();
    all.filter(|request| changes(request) && request.resource != "leases").collect()
}

/// Waits until no controller has anything to write any more.
fn settle(clusters: [&Cluster; 2]) {
    let start = Instant::now();
    loop {
        let marks = clusters.map(Cluster::audit_mark);
        std::thread::sleep(SETTLED);
        let last: Vec<_> = clusters.into_iter().zip(marks).flat_map(|(cluster, mark)| writes(cluster, mark)).collect();
        if last.is_empty() {
            return;
        }
        assert!(start.elapsed() < SETTLING, "the controllers do not come to rest: {last:#?}");
    }
}

#[test]
fn a_quiet_minute_has_no_write_but_of_the_lease() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::with_web(&bed, "quiet");
    shop.export("web");
    let clusters = [shop.a, shop.b];
    for (cluster, link) in clusters.into_iter().zip(LINKS) {
        assert!(cluster.replicas(Component::Gateway).len() > 1, "several gateways carry the catalogues");
        wait_condition(cluster, link, "CatalogueSynced", "True");
    }
    settle(clusters);
    let marks = clusters.map(Cluster::audit_mark);
    std::thread::sleep(Duration::from_secs(if long() { 60 } else { 15 }));
    for (cluster, mark) in clusters.into_iter().zip(marks) {
        let renewals =
            cluster.audit(CONTROLLER, Some(mark)).iter().filter(|request| request.resource == "leases").count();
        assert!(renewals > 2, "{}: the audit log tells of the controllers", cluster.name());
        let writes = writes(cluster, mark);
        assert!(writes.is_empty(), "{}: {} writes in a quiet time: {writes:#?}", cluster.name(), writes.len());
        eprintln!("{}: no write, {renewals} requests for the lease", cluster.name());
    }
}

#[test]
fn a_rolling_update_of_gateways_changes_nothing_about_the_links() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::with_web(&bed, "quiet-roll");
    shop.export("web");
    let clusters = [shop.a, shop.b];
    for (cluster, link) in clusters.into_iter().zip(LINKS) {
        wait_condition(cluster, link, "CatalogueSynced", "True");
    }
    settle(clusters);
    let marks = clusters.map(Cluster::audit_mark);
    shop.a.roll(Component::Gateway);
    std::thread::sleep(Duration::from_secs(2));
    for (cluster, mark) in clusters.into_iter().zip(marks) {
        let all = writes(cluster, mark);
        let links: Vec<_> = all.iter().filter(|request| request.resource.starts_with("links")).collect();
        assert!(links.is_empty(), "{}: another gateway's pipe takes over unseen: {links:#?}", cluster.name());
    }
}
