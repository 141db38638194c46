//! Parts that fail: no wrong deletion, no foreign object touched, nothing withdrawn, and caught up in time.

use std::time::{Duration, Instant};

use linkspan_tests::bed::api::{JSON_PATCH, path};
use linkspan_tests::bed::audit::Request;
use linkspan_tests::bed::linkspan::{Component, NAMESPACE};
use linkspan_tests::bed::{Cluster, PATIENCE, Pod, alone};
use linkspan_tests::process::eventually;
use linkspan_tests::world::long;

use super::kit::{Shop, needs_kubernetes, service_export, wait_answer, web_service};

/// The controller's user.
pub(crate) const CONTROLLER: &str = "system:serviceaccount:linkspan:linkspan-controller";
/// After an outage of the API server everything is as it should be in this time (F-13).
const CAUGHT_UP: Duration = Duration::from_secs(10);
/// After a watch went silent (F-12).
const NOTICED: Duration = Duration::from_secs(35);
/// A dead peer is withdrawn in this time, by probes on the data path.
const WITHDRAWN: Duration = Duration::from_secs(4);

/// After the death of the leading controller another one leads in this time.
const NEW_LEADER: Duration = Duration::from_secs(17);

/// How long a leader stands still: longer than its lease holds, and than the next one waits for it.
const FROZEN: Duration = Duration::from_secs(20);
/// Who has written nothing for this long has nothing under way.
const AT_REST: Duration = Duration::from_secs(3);

/// How long the API server stays away: the acceptance figure in the long form.
fn outage() -> Duration {
    if long() { Duration::from_secs(60) } else { Duration::from_secs(12) }
}

#[test]
fn an_api_server_that_is_away_costs_no_mirror_and_what_changed_meanwhile_is_caught_up() {
    needs_kubernetes!();
    let bed = alone();
    let mut shop = Shop::with_web(&bed, "outage");
    let (a, b) = (shop.a, shop.b);
    shop.serve(b, "leaving", "leaving-0");
    let host = shop.export("web");
    shop.export("leaving");
    let uid = a.get(&shop.mirror("web")).expect("the mirror")["metadata"]["uid"].clone();

    a.kill_api_server();
    let start = Instant::now();
    // Meanwhile the peer changes, and calls go on.
    b.kubectl(&["-n", "outage", "delete", "serviceexport", "leaving"]);
    b.apply(&web_service("outage", "coming", ""));
    b.apply(&service_export("outage", "coming", ""));
    while start.elapsed() < outage() {
        let (ok, answer) = shop.curl(&format!("http://{host}/"));
        assert!(ok, "{answer}");
        std::thread::sleep(Duration::from_millis(200));
    }
    a.restore_api_server();
    let back = Instant::now();
    a.wait(&shop.mirror("coming"), CAUGHT_UP, |_| true);
    a.wait_absent(&shop.mirror("leaving"), CAUGHT_UP.saturating_sub(back.elapsed()));
    assert_eq!(a.get(&shop.mirror("web")).expect("the mirror")["metadata"]["uid"], uid);
    let (ok, answer) = shop.curl(&format!("http://{host}/"));
    assert!(ok, "{answer}");
    a.hurry_components();
}

#[test]
fn an_exporter_whose_api_server_is_away_exports_on() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::with_web(&bed, "exporter");
    let host = shop.export("web");
    let versions = shop.a.versions("exporter");
    shop.b.kill_api_server();
    let start = Instant::now();
    while start.elapsed() < outage() {
        let (ok, answer) = shop.curl(&format!("http://{host}/"));
        assert!(ok, "{answer}");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(shop.a.versions("exporter"), versions, "an API server that does not answer is not an empty cluster");
    shop.b.restore_api_server();
    shop.b.kubectl(&["-n", "exporter", "delete", "serviceexport", "web"]);
    shop.a.wait_absent(&shop.mirror("web"), CAUGHT_UP);
    shop.b.hurry_components();
}

#[test]
fn a_history_that_etcd_has_forgotten_is_read_anew() {
    needs_kubernetes!();
    let bed = alone();
    let mut shop = Shop::with_web(&bed, "compacted");
    let (a, b) = (shop.a, shop.b);
    shop.serve(b, "leaving", "leaving-0");
    let host = shop.export("web");
    shop.export("leaving");
    let uid = a.get(&shop.mirror("web")).expect("the mirror")["metadata"]["uid"].clone();
    let mark = a.audit_mark();
    // The clusters share etcd's revisions: while a's API server is away, b's changes count up, and all before is forgotten.
    // Watches of a that go on where they were are told 410.
    a.kill_api_server();
    b.kubectl(&["-n", "compacted", "delete", "serviceexport", "leaving"]);
    for number in 0..20 {
        b.kubectl(&["-n", "compacted", "create", "configmap", &format!("filler-{number}")]);
    }
    bed.compact();
    a.restore_api_server();
    a.wait_absent(&shop.mirror("leaving"), CAUGHT_UP);
    assert_eq!(a.get(&shop.mirror("web")).expect("the mirror")["metadata"]["uid"], uid);
    let (ok, answer) = shop.curl(&format!("http://{host}/"));
    assert!(ok, "{answer}");
    a.hurry_components();
    let anew = || {
        a.audit(CONTROLLER, Some(mark)).iter().any(|request| request.verb == "list" && request.resource == "services")
    };
    eventually("the controller has listed anew", CAUGHT_UP, anew);
}

#[test]
fn a_watch_that_went_silent_is_noticed() {
    needs_kubernetes!();
    if !long() {
        eprintln!("SKIPPED: takes 35 s; LINKSPAN_LONG_TESTS=1 runs it");
        return;
    }
    let bed = alone();
    let shop = Shop::with_web(&bed, "silent");
    let (a, b) = (shop.a, shop.b);
    shop.export("web");
    // What is exported is told the peer,
    let controllers = deafen(b);
    let start = Instant::now();
    b.apply(&web_service("silent", "coming", ""));
    b.apply(&service_export("silent", "coming", ""));
    a.wait(&shop.mirror("coming"), NOTICED, |_| true);
    eprintln!("the exporter noticed after {:?}", start.elapsed());
    controllers.iter().for_each(|controller| controller.host.nft_clear());
    // and what becomes of mirrors is mended, though no event tells of it.
    let uid = a.get(&shop.mirror("web")).expect("the mirror")["metadata"]["uid"].clone();
    let controllers = deafen(a);
    let start = Instant::now();
    let (code, answer) = a.request("DELETE", &shop.mirror("web"), None);
    assert_eq!(code, 200, "{answer}");
    let edit = r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 81}]"#;
    a.patch(JSON_PATCH, &shop.mirror("coming"), edit);
    a.wait(&shop.mirror("web"), NOTICED, |mirror| mirror["metadata"]["uid"] != uid);
    a.wait(&shop.mirror("coming"), NOTICED.saturating_sub(start.elapsed()), |mirror| {
        mirror["spec"]["ports"][0]["port"] == 80
    });
    eprintln!("the importer noticed after {:?}", start.elapsed());
    controllers.iter().for_each(|controller| controller.host.nft_clear());
}

/// Every connection of a cluster's controllers to their API server goes dead without a word; new ones work.
fn deafen(cluster: &Cluster) -> Vec<Pod> {
    let controllers = cluster.replicas(Component::Controller);
    for controller in &controllers {
        let open = "ss -Htn state established 'dport = :443' | awk '{print $3}' | sed 's/.*://' | paste -sd,";
        let ports = controller.host.sh(open);
        assert!(!ports.trim().is_empty(), "the controller is connected to its API server");
        controller.host.nft(&format!(
            "chain out {{ type filter hook output priority 0; tcp sport {{ {ports} }} drop; }}\nchain in {{ type filter hook \
             input priority 0; tcp dport {{ {ports} }} drop; }}",
            ports = ports.trim()
        ));
    }
    controllers
}

#[test]
fn a_controller_that_is_killed_at_any_write_ends_with_the_same_state() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::new(&bed, "killed");
    let (a, b) = (shop.a, shop.b);
    let names: Vec<String> = (0..6).map(|number| format!("web-{number}")).collect();
    let manifests: Vec<String> = names
        .iter()
        .map(|name| format!("{}---\n{}", web_service("killed", name, ""), service_export("killed", name, "")))
        .collect();
    // A foreign object among them.
    a.apply(&web_service("killed", "web-3-b", ""));
    let foreign = || {
        let service = a.get(&path::service("killed", "web-3-b")).expect("the foreign Service");
        (service["metadata"]["uid"].clone(), service["metadata"]["resourceVersion"].clone())
    };
    let before = foreign();
    b.apply(&manifests.join("---\n"));
    let kills: &[usize] = if long() { &[1, 2, 3, 5, 7, 9, 11, 13, 17, 19, 23, 29] } else { &[1, 4, 9] };
    for &write in kills {
        kill_at_write(a, write);
    }
    let mirrored = |name: &str| a.get(&path::service("killed", &format!("{name}-b"))).is_some();
    eventually("every service has its mirror and its import", 2 * PATIENCE, || {
        names.iter().all(|name| mirrored(name) && a.get(&path::import("killed", name)).is_some())
    });
    assert_eq!(foreign(), before);
    // And the other way: killed while it takes everything away.
    let mut delete = vec!["-n", "killed", "delete", "serviceexport"];
    delete.extend(names.iter().map(String::as_str));
    b.kubectl(&delete);
    kill_at_write(a, 2);
    eventually("nothing of ours is left in the namespace", 2 * PATIENCE, || a.versions("killed").is_empty());
    assert_eq!(foreign(), before);
}

/// Kills the controllers when they have written `count` times more, or have nothing to write for a while; starts them again.
fn kill_at_write(cluster: &Cluster, count: usize) {
    let mark = cluster.audit_mark();
    let writes = || cluster.audit(CONTROLLER, Some(mark)).iter().filter(|request| request.writes()).count();
    let start = Instant::now();
    while writes() < count && start.elapsed() < NEW_LEADER + Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let controllers = cluster.replicas(Component::Controller);
    for controller in &controllers {
        cluster.kill_replica(controller);
    }
    for controller in &controllers {
        cluster.restart_replica(controller);
    }
}

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/linkspan/leases/linkspan-controller";

/// The controller that leads; with `not`, once it is another one than that.
fn leader(cluster: &Cluster, not: Option<&Pod>) -> Pod {
    let controllers = cluster.replicas(Component::Controller);
    let holder = |lease: &serde_json::Value| {
        let name = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        controllers.iter().find(|pod| pod.name == name).filter(|pod| not.is_none_or(|not| not.name != pod.name))
    };
    let lease = cluster.wait(LEASE, NEW_LEADER, |lease| holder(lease).is_some());
    holder(&lease).expect("the condition above holds").clone()
}

#[test]
fn a_leader_that_dies_is_replaced_in_time() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::with_web(&bed, "leader");
    let (a, b) = (shop.a, shop.b);
    shop.export("web");
    let first = leader(a, None);
    let mark = a.audit_mark();
    a.kill_replica(&first);
    let start = Instant::now();
    b.apply(&web_service("leader", "coming", ""));
    b.apply(&service_export("leader", "coming", ""));
    leader(a, Some(&first));
    eprintln!("a new leader after {:?}", start.elapsed());
    a.wait(&shop.mirror("coming"), NEW_LEADER, |_| true);
    a.restart_replica(&first);
    b.kubectl(&["-n", "leader", "delete", "serviceexport", "coming"]);
    a.wait_absent(&shop.mirror("coming"), PATIENCE);
    // Who wrote, in order: the one that was dead stands by when it is back.
    let mut writers: Vec<String> = a
        .audit(CONTROLLER, Some(mark))
        .into_iter()
        .filter(|request| request.writes())
        .map(|request| request.pod)
        .collect();
    writers.dedup();
    assert_eq!(writers.len(), 1, "{writers:?}");
    assert_ne!(writers[0], first.name);
}

/// A leader that had no time of its machine for longer than its lease holds wakes with everything at hand that it would write,
/// and does not know yet that another one leads.
#[test]
fn a_leader_that_stood_still_writes_nothing_once_another_one_leads() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::with_web(&bed, "frozen");
    let (a, b) = (shop.a, shop.b);
    shop.export("web");
    let changes = |request: &Request| {
        let kinds = ["create", "patch", "update", "delete", "deletecollection"];
        kinds.contains(&request.verb.as_str()) && request.resource != "leases"
    };
    eventually("the leader has nothing under way", PATIENCE, || {
        let mark = a.audit_mark();
        std::thread::sleep(AT_REST);
        !a.audit(CONTROLLER, Some(mark)).iter().any(changes)
    });
    let first = leader(a, None);
    let superseded = || a.printed(&first).matches("another controller leads now").count();
    let before = superseded();
    let frozen = a.freeze_replica(&first);
    let (start, mark) = (Instant::now(), a.audit_mark());
    // What it hears of when it wakes: a catalogue on its pipe, and a deletion and an edit on its watches.
    let names: Vec<String> = (0..6).map(|number| format!("coming-{number}")).collect();
    let manifest =
        |name: &String| format!("{}---\n{}", web_service("frozen", name, ""), service_export("frozen", name, ""));
    b.apply(&names.iter().map(manifest).collect::<Vec<_>>().join("---\n"));
    let (code, answer) = a.request("DELETE", &path::import("frozen", "web"), None);
    assert_eq!(code, 200, "{answer}");
    let edit = r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 81}]"#;
    a.patch(JSON_PATCH, &shop.mirror("web"), edit);

    let second = leader(a, Some(&first));
    eprintln!("a new leader after {:?}", start.elapsed());
    std::thread::sleep(FROZEN.saturating_sub(start.elapsed()));
    let woken = a.audit_mark();
    drop(frozen);
    eventually("the first one has seen that it leads no more", PATIENCE, || superseded() > before);
    // The next one does all of it.
    for name in &names {
        a.wait(&shop.mirror(name), PATIENCE, |_| true);
    }
    a.wait(&path::import("frozen", "web"), PATIENCE, |_| true);
    a.wait(&shop.mirror("web"), PATIENCE, |mirror| mirror["spec"]["ports"][0]["port"] == 80);

    let all = a.audit(CONTROLLER, Some(mark));
    assert!(all.iter().any(|request| request.writes() && request.pod == second.name), "the second one wrote: {all:#?}");
    let asked = a.audit(CONTROLLER, Some(woken)).into_iter().filter(|request| request.pod == first.name);
    let asked: Vec<_> = asked.collect();
    assert!(!asked.is_empty(), "the first one has woken");
    let written: Vec<_> = asked.iter().filter(|request| changes(request) && request.code < 400).collect();
    assert!(written.is_empty(), "written by who led no more: {written:#?}");
    a.wait_replicas(Component::Controller);
}

#[test]
fn a_peer_without_gateways_is_withdrawn_in_time_and_comes_back() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::with_web(&bed, "withdrawn");
    let host = shop.export("web");
    let versions = shop.a.versions("withdrawn");
    let gateways = shop.b.replicas(Component::Gateway);
    for gateway in &gateways {
        shop.b.kill_replica(gateway);
    }
    let start = Instant::now();
    eventually("no gateway of a counts b as alive", WITHDRAWN + Duration::from_secs(1), || {
        shop.a.replicas(Component::Gateway).iter().all(|gateway| shop.a.sees(gateway, "b") == Some(false))
    });
    eprintln!("withdrawn after {:?}", start.elapsed());
    let line = format!("curl -sS --max-time 3 -o /dev/null -w '%{{http_code}} %{{time_total}}' http://{host}/");
    let said = shop.client.host.try_sh(&line).1;
    assert!(said.starts_with("503 0."), "refused at once: {said}");
    // The mirror stays: a lost peer is not an empty peer.
    assert_eq!(shop.a.versions("withdrawn"), versions);
    for gateway in &gateways {
        shop.b.restart_replica(gateway);
    }
    wait_answer(&shop.client, &format!("http://{host}/"), PATIENCE);
}

#[test]
fn the_namespace_of_linkspan_holds_nothing_that_a_peer_named() {
    needs_kubernetes!();
    let bed = alone();
    let (a, b) = bed.pair();
    b.apply(&web_service(NAMESPACE, "trojan", ""));
    b.apply(&service_export(NAMESPACE, "trojan", ""));
    let shop = Shop::with_web(&bed, "reserved");
    shop.export("web");
    assert!(a.absent(&path::service(NAMESPACE, "trojan-b")));
    b.kubectl(&["-n", NAMESPACE, "delete", "service/trojan", "serviceexport/trojan"]);
}
