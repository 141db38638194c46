//! A controller that is killed at every single write: nothing is withdrawn meanwhile, and in the end all is as if it had lived.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use linkspan_tests::bed::api::path;
use linkspan_tests::bed::gate::{Gate, Shut};
use linkspan_tests::bed::linkspan::Component;
use linkspan_tests::bed::{Cluster, PATIENCE, Pod, alone};
use linkspan_tests::process::eventually;
use linkspan_tests::world::long;
use serde_json::{Value, json};

use super::kit::{Shop, needs_kubernetes, service_export, web_service};

/// From the start of a controller to its first write: the lease is its own, and the peers' catalogues are asked for anew.
const FIRST_WRITE: Duration = Duration::from_secs(30);
/// Services that are mirrored and taken away again. Each is seven writes in the making and six in the taking away; together
/// with what stays they are few enough not to be held back as a mass removal.
const SERVICES: usize = 16;
const NAMESPACE: &str = "kills";

/// Kills while mirrors are made, and while they are taken away.
fn kills() -> (usize, usize) {
    if long() { (150, 50) } else { (3, 2) }
}

/// Everything that the controller made in the namespace, without what the API server chose.
fn state(cluster: &Cluster) -> Vec<Value> {
    let label = "labelSelector=mirror.linkspan.io%2Fmanaged-by";
    let mut objects: Vec<Value> = [
        format!("/api/v1/namespaces/{NAMESPACE}/services?{label}"),
        format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices?{label}"),
        format!("/apis/multicluster.x-k8s.io/v1beta1/namespaces/{NAMESPACE}/serviceimports?{label}"),
    ]
    .iter()
    .flat_map(|path| cluster.list(path))
    .collect();
    for object in &mut objects {
        for field in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"] {
            object["metadata"].as_object_mut().expect("metadata").remove(field);
        }
        for pointer in ["/spec/clusterIP", "/spec/clusterIPs", "/spec/ips"] {
            if let Some(value) = object.pointer_mut(pointer).filter(|value| **value != json!("None")) {
                *value = json!("given");
            }
        }
        // The gateways' ports are given, too; those of a Service are its own.
        for port in object["ports"].as_array_mut().into_iter().flatten() {
            port["port"] = json!("given");
        }
        for condition in object["status"]["conditions"].as_array_mut().into_iter().flatten() {
            condition["lastTransitionTime"] = json!("some time");
        }
    }
    objects.sort_by_key(|object| object["metadata"].to_string());
    objects
}

/// No port of the gateways is given to two names.
fn assert_ports_differ(cluster: &Cluster) {
    let label = "labelSelector=mirror.linkspan.io%2Fmanaged-by,kubernetes.io%2Fservice-name";
    let mut seen = BTreeSet::new();
    for slice in cluster.list(&format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices?{label}")) {
        for port in slice["ports"].as_array().into_iter().flatten() {
            let number = port["port"].as_u64().expect("a port");
            assert!(seen.insert(number), "port {number} is given twice, once in {}", slice["metadata"]["name"]);
        }
    }
    assert!(!seen.is_empty());
}

/// Waits until the namespace is as it should be.
fn wait_state(cluster: &Cluster, expected: &[Value]) {
    let start = Instant::now();
    loop {
        let now = state(cluster);
        if now == expected {
            return;
        }
        if start.elapsed() > 2 * PATIENCE {
            let (more, less): (Vec<_>, Vec<_>) = (
                now.iter().filter(|object| !expected.contains(object)).collect(),
                expected.iter().filter(|object| !now.contains(object)).collect(),
            );
            panic!("there are {more:#?} instead of {less:#?}");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// A controller behind a gate. In the end it runs again without one, and not alone.
struct Alone<'a> {
    cluster: &'a Cluster,
    gate: Option<Gate<'a>>,
    pod: Pod,
    runs: bool,
}

impl<'a> Alone<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let mut controllers = cluster.replicas(Component::Controller);
        let pod = controllers.remove(0);
        controllers.iter().for_each(|other| cluster.end_replica(other));
        let gate = cluster.gate(&pod);
        gate.kill();
        gate.start();
        cluster.wait_replicas(Component::Controller);
        Self { cluster, gate: Some(gate), pod, runs: true }
    }

    fn gate(&mut self) -> &mut Gate<'a> {
        self.gate.as_mut().expect("taken away in the end only")
    }

    fn start(&mut self) {
        self.gate().start();
        self.runs = true;
    }

    /// Kills it at its next write, as often as asked for; `begin` is what it has to write about. It is dead then.
    fn kill_at_each(&mut self, count: usize, begin: impl FnOnce()) {
        let mut begin = Some(begin);
        let started = Instant::now();
        for number in 1..=count {
            let when = if number % 2 == 1 { Shut::Before } else { Shut::After };
            self.gate().shut_at_write(when);
            if let Some(begin) = begin.take() {
                begin();
            }
            if !self.runs {
                self.start();
            }
            self.gate().wait_write(FIRST_WRITE);
            self.gate().kill();
            self.runs = false;
            if number % 20 == 0 {
                eprintln!("killed at write {number} after {:?}", started.elapsed());
            }
        }
        eprintln!("{count} kills took {:?}", started.elapsed());
    }

    /// Lets it live.
    fn release(&mut self) {
        self.gate().open();
        if !self.runs {
            self.start();
        }
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        drop(self.gate.take());
        if self.runs {
            self.cluster.crash_replica(&self.pod);
        }
        self.cluster.start_replica(&self.pod);
        self.cluster.add_replica(Component::Controller);
        if !std::thread::panicking() {
            self.cluster.wait_replicas(Component::Controller);
        }
    }
}

#[test]
fn a_controller_that_is_killed_at_every_write_ends_with_the_same_state() {
    needs_kubernetes!();
    let bed = alone();
    let shop = Shop::with_web(&bed, NAMESPACE);
    let (a, b) = (shop.a, shop.b);
    let host = shop.export("web");
    let names: Vec<String> = (0..SERVICES).map(|number| format!("some-{number}")).collect();
    let services: Vec<String> = names.iter().map(|name| web_service(NAMESPACE, name, "")).collect();
    b.apply(&services.join("---\n"));
    let exports: Vec<String> = names.iter().map(|name| service_export(NAMESPACE, name, "")).collect();
    let exports = exports.join("---\n");
    // Somebody else's object among them: it has the name of a mirror.
    a.apply(&web_service(NAMESPACE, "some-3-b", ""));
    let foreign = || {
        let service = a.get(&path::service(NAMESPACE, "some-3-b")).expect("the foreign Service");
        (service["metadata"]["uid"].clone(), service["metadata"]["resourceVersion"].clone())
    };
    let (web, web_versions, untouched) = (state(a), a.versions(NAMESPACE), foreign());
    assert!(!web.is_empty());

    // First with a controller that lives.
    b.apply(&exports);
    // Of the name that is taken there is the import and no mirror.
    let complete = web.len() + 6 * SERVICES - 2;
    eventually("all is mirrored", 2 * PATIENCE, || a.versions(NAMESPACE).len() == complete);
    let expected = state(a);
    let remove = ["-n", NAMESPACE, "delete", "serviceexport", "--field-selector", "metadata.name!=web"];
    b.kubectl(&remove);
    eventually("all is taken away", 2 * PATIENCE, || a.versions(NAMESPACE).len() == web.len());

    let mut controller = Alone::new(a);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let calls = scope.spawn(|| {
            let (mut good, mut failures) = (0_usize, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let (ok, said) = shop.curl(&format!("http://{host}/"));
                if ok {
                    good += 1
                } else {
                    failures.push(said)
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            (good, failures)
        });
        let killing = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let (making, taking) = kills();
            controller.kill_at_each(making, || b.apply(&exports));
            controller.release();
            wait_state(a, &expected);
            assert_ports_differ(a);
            assert_eq!(foreign(), untouched);
            controller.kill_at_each(taking, || drop(b.kubectl(&remove)));
            controller.release();
            wait_state(a, &web);
        }));
        stop.store(true, Ordering::Relaxed);
        let (good, failures) = calls.join().expect("calls are counted");
        if let Err(panic) = killing {
            std::panic::resume_unwind(panic);
        }
        eprintln!("{good} calls meanwhile, {} failed", failures.len());
        assert!(failures.is_empty(), "{failures:?}");
    });
    assert_eq!(foreign(), untouched);
    assert_eq!(a.versions(NAMESPACE), web_versions, "what was as it should be was not written again");
}
