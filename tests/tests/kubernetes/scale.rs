//! Thousands of services of two peers: how fast they are mirrored, what that takes, and that it is quiet afterwards. The peers
//! are standalone sites, so that both cores are left to Linkspan and the API server.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use linkspan_tests::bed::audit::{Mark, Request};
use linkspan_tests::bed::linkspan::{Component, NAMESPACE};
use linkspan_tests::bed::{Bed, Cluster, Pod, alone};
use linkspan_tests::bulk::{Bulk, FILES, NAMESPACES};
use linkspan_tests::process::eventually;
use linkspan_tests::site::{Options, Site};
use linkspan_tests::world::long;

use super::faults::CONTROLLER;
use super::kit::needs_kubernetes;

/// What a controller may hold at any time, MiB.
const MEMORY: u64 = 256;
/// Messages of one peer's catalogue in a second (F-44).
const MESSAGES: u64 = 20;
/// From a changed file at the peer to the object in the API server, for 99 of 100 changes.
const PROPAGATED: Duration = Duration::from_secs(2);
/// Processor time of a controller with nothing to do, of the time that passes.
const IDLE_PERCENT: u128 = 8;
/// Between two changed files.
const TICK: Duration = Duration::from_millis(100);

/// How much of it.
struct Size {
    /// In one file.
    services: usize,
    /// From the Links to the last object.
    converged: Duration,
    /// In which nothing is written.
    quiet: Duration,
    /// For which endpoints change.
    changing: Duration,
}

impl Size {
    fn new() -> Self {
        let seconds = Duration::from_secs;
        if long() {
            Self { services: 100, converged: seconds(120), quiet: seconds(60), changing: seconds(60) }
        } else {
            Self { services: 10, converged: seconds(30), quiet: seconds(5), changing: seconds(5) }
        }
    }
}

/// A peer that knows the cluster, and runs.
fn peer(bed: &Bed, cluster: &Cluster, name: &str, address: &str, services: usize) -> Bulk {
    let mut peer = Bulk::new(Site::init(bed.site_host(name, address), &Options::default()), services);
    let root = cluster.get(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps/linkspan-root")).expect("root");
    let root = root["data"]["root.pem"].as_str().expect("a certificate").replace('\n', "\n    ");
    peer.site.apply(
        "link.yaml",
        &format!(
            "apiVersion: linkspan.io/v1alpha1\nkind: Link\nmetadata: {{name: {name}}}\nspec:\n  trustDomain: \
             {name}.linkspan.internal\n  addresses: []\n  trustBundle: |\n    {root}\n",
            name = cluster.name()
        ),
    );
    peer.site.start();
    peer
}

/// What is measured in.
struct Scene<'a> {
    cluster: &'a Cluster,
    controller: Pod,
    peers: [Bulk; 2],
}

impl<'a> Scene<'a> {
    fn new(bed: &'a Bed, size: &Size) -> Self {
        let cluster = bed.bare();
        let namespaces: Vec<String> = (0..NAMESPACES)
            .map(|number| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: bulk-{number}}}\n"))
            .collect();
        cluster.apply(&namespaces.join("---\n"));
        let controller = cluster.replicas(Component::Controller).swap_remove(0);
        let peers = [("north", "198.18.1.2"), ("south", "198.18.2.2")]
            .map(|(name, address)| peer(bed, cluster, name, address, size.services));
        Self { cluster, controller, peers }
    }

    /// Links both peers, and waits until every object is there; says how long that took.
    fn converge(&self, size: &Size) -> Duration {
        let links: Vec<String> = self.peers.iter().map(|peer| peer.site.linkspan(&["link", "export"])).collect();
        let start = Instant::now();
        self.cluster.apply(&links.join("---\n"));
        // Of both peers the services, their imports, and the headless services of each with theirs.
        let services = FILES * size.services;
        let mirrors = 2 * services + 2 * FILES;
        let imports = services + 2 * FILES;
        let written = || self.cluster.counted(&self.controller, "mirror_writes_total", "action=\"Create\"");
        let mut last = (0, Instant::now());
        eventually("every mirror and import is written", 3 * size.converged, || {
            // Looking costs processes, on the cores that are measured.
            std::thread::sleep(Duration::from_millis(500));
            let now = written();
            if last.1.elapsed() > Duration::from_secs(5) {
                eprintln!("{:?}: {now} of {} mirrors and imports", start.elapsed(), mirrors + imports);
                last = (now, Instant::now());
            }
            now as usize >= mirrors + imports
        });
        let took = start.elapsed();
        let count = |resource: &str| {
            let line = format!("kubectl get {resource} -A -l mirror.linkspan.io/managed-by --no-headers | wc -l");
            self.cluster.sh(&line).trim().parse::<usize>().expect("a number")
        };
        // Each headless service has two endpoints, with a Service and a slice each for the mirror and the import.
        let expected = [
            ("services", mirrors + services + 2 * FILES * 4),
            ("endpointslices", mirrors + 3 * services + 2 * FILES * 5),
            ("serviceimports", imports),
        ];
        for (resource, expected) in expected {
            assert_eq!(count(resource), expected, "{resource}");
        }
        let objects: usize = expected.iter().map(|(_, count)| count).sum();
        eprintln!("{objects} objects of {services} services of each of two peers within {took:?}");
        took
    }

    /// A controller that starts anew among all that takes it over as it is, and holds no more for that.
    fn restart(&self, size: &Size) {
        let mark = self.cluster.audit_mark();
        self.cluster.crash_replica(&self.controller);
        let start = Instant::now();
        self.cluster.restart_replica(&self.controller);
        let all = 3 * FILES * size.services + 4 * FILES;
        eventually("it knows all mirrors again", Duration::from_secs(60), || {
            self.cluster.counted(&self.controller, "mirror_wanted", "") as usize >= all
        });
        eprintln!("after a crash all is known again within {:?}", start.elapsed());
        // What it would write it would write now.
        std::thread::sleep(Duration::from_secs(3));
        let written = self.cluster.audit(CONTROLLER, Some(mark)).into_iter().filter(Request::writes).count();
        assert_eq!(written, 0, "what is as it should be is not written again");
    }

    fn assert_memory(&self, when: &str) {
        let peak = self.cluster.peak(&self.controller.name).expect("the controller runs");
        eprintln!("the controller held at most {peak} MiB {when}");
        assert!(peak <= MEMORY, "{peak} MiB {when}");
    }

    /// Nothing is written any more, and next to nothing done.
    fn quiet(&self, size: &Size) {
        // The last words about the Links are allowed to come.
        let settled = |pause: Duration| {
            let mark = self.cluster.audit_mark();
            std::thread::sleep(pause);
            self.writes(mark)
        };
        eventually("the controller has said all", Duration::from_secs(30), || {
            settled(Duration::from_secs(3)).is_empty()
        });
        let spent = || self.cluster.processor_time(&self.controller.name).expect("the controller runs");
        let before = spent();
        let written = settled(size.quiet);
        let spent = spent().saturating_sub(before);
        assert!(written.is_empty(), "nothing was to be done: {written:?}");
        eprintln!("{spent:?} of processor time in {:?} with nothing to do", size.quiet);
        assert!(spent.as_millis() * 100 <= IDLE_PERCENT * size.quiet.as_millis(), "{spent:?} in {:?}", size.quiet);
    }

    /// All writes of the controller but the lease.
    fn writes(&self, mark: Mark) -> Vec<String> {
        let requests = self.cluster.audit(CONTROLLER, Some(mark)).into_iter();
        requests
            .filter(|request| {
                !matches!(request.verb.as_str(), "get" | "list" | "watch") && request.resource != "leases"
            })
            .map(|request| format!("{} {} {}/{}", request.verb, request.resource, request.namespace, request.name))
            .collect()
    }

    /// Endpoints of one peer change in file after file.
    fn change(&self, size: &Size) {
        let peer = &self.peers[0];
        let received = || {
            let label = format!("peer=\"{}\",direction=\"Received\"", peer.site.name());
            self.cluster.counted(&self.controller, "catalogue_messages_total", &label)
        };
        let (mark, before, start) = (self.cluster.audit_mark(), received(), Instant::now());
        let mut changed = Vec::new();
        for tick in 0.. {
            let due = TICK * tick;
            if due >= size.changing {
                break;
            }
            std::thread::sleep(due.saturating_sub(start.elapsed()));
            let (file, round) = (tick as usize % FILES, tick as usize / FILES);
            changed.push((file, unix_micros()));
            peer.write_slices(file, round % 2 == 1);
        }
        let took = start.elapsed();
        assert!(took < size.changing + size.changing / 5, "the files were not written in time: {took:?}");
        std::thread::sleep(PROPAGATED);
        let messages = received() - before;
        eprintln!("{} changes in {took:?}: {messages} messages", changed.len() * (size.services + 1));
        assert!(messages <= MESSAGES * (took + PROPAGATED).as_secs(), "{messages} messages in {took:?}");

        let audit = self.cluster.timed_audit(CONTROLLER, Some(mark));
        let period = i64::try_from(TICK.as_micros()).expect("small") * FILES as i64;
        let mut delays: Vec<Duration> = changed
            .iter()
            .map(|(file, at)| {
                let object = format!("{}-{}-linkspan-ipv4", peer.marker(*file), peer.site.name());
                let seen =
                    audit.iter().find(|(time, request)| time > at && request.name == object && request.code == 200);
                // Later it is the answer to the next change.
                let seen = seen.filter(|(time, _)| time - at < period);
                seen.map_or(Duration::MAX, |(time, _)| Duration::from_micros((time - at).unsigned_abs()))
            })
            .collect();
        delays.sort();
        let at = |percent: usize| delays[(delays.len() * percent).div_ceil(100) - 1];
        eprintln!("propagated in p50 {:?}, p99 {:?}, at most {:?}", at(50), at(99), at(100));
        assert!(at(99) <= PROPAGATED, "{delays:?}");
    }

    /// An API server that has little room for the controller: what it refuses for now is tried again when it says so.
    fn refused(&self) {
        self.cluster.apply(TIGHT);
        std::thread::sleep(Duration::from_secs(1));
        let peer = &self.peers[0];
        let files = 0..FILES / 5;
        let mark = self.cluster.audit_mark();
        let start = Instant::now();
        files.clone().for_each(|file| peer.write_services(file, "green"));
        let last = files.end - 1;
        let is_green = |object: &serde_json::Value| object["metadata"]["labels"]["color"] == "green";
        for name in [0, self.peers[0].services - 1].map(|number| format!("web-{last}-{number}-{}", peer.site.name())) {
            let path = linkspan_tests::bed::api::path::service(&format!("bulk-{}", last % NAMESPACES), &name);
            self.cluster.wait(&path, Duration::from_secs(60), is_green);
        }
        // Of a headless service the two endpoints have the label as well.
        let wanted = (files.end * (peer.services + 3)) as u64;
        let of_color =
            "kubectl get services -A -l mirror.linkspan.io/cluster-name=north,color=green --no-headers | wc -l";
        eventually("every mirror has its new label", Duration::from_secs(60), || {
            // And the two endpoints of headless ones.
            self.cluster.sh(of_color).trim().parse::<u64>().is_ok_and(|count| count == wanted)
        });
        let took = start.elapsed();
        let mut per_second = std::collections::BTreeMap::<i64, usize>::new();
        for (time, _) in
            self.cluster.timed_audit(CONTROLLER, Some(mark)).iter().filter(|(_, request)| request.code == 429)
        {
            *per_second.entry(time / 1_000_000).or_default() += 1;
        }
        eprintln!(
            "{wanted} mirrors changed in {took:?} by an API server with little room; refused by second: {per_second:?}"
        );
        assert!(!per_second.is_empty(), "the API server refused nothing, so this shows nothing");
        assert!(per_second.values().all(|count| *count <= REFUSED_A_SECOND), "{per_second:?}");
        self.cluster.kubectl(&["delete", "flowschema,prioritylevelconfiguration", "tight"]);
    }
}

/// At most so many requests in a second are told to come later: those that were under way when the first was, and the next one of
/// each of the sixteen mirrors that are written at a time, where its first had been let through.
const REFUSED_A_SECOND: usize = 32;

/// Room for one or two requests of the controller about mirrors at a time, and none to wait in.
const TIGHT: &str = "apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: PriorityLevelConfiguration
metadata: {name: tight}
spec:
  type: Limited
  limited: {nominalConcurrencyShares: 1, lendablePercent: 0, borrowingLimitPercent: 0, limitResponse: {type: Reject}}
---
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: FlowSchema
metadata: {name: tight}
spec:
  priorityLevelConfiguration: {name: tight}
  matchingPrecedence: 500
  rules:
    - subjects: [{kind: ServiceAccount, serviceAccount: {name: linkspan-controller, namespace: linkspan}}]
      resourceRules:
        - verbs: [get, patch, delete]
          apiGroups: [\"\", discovery.k8s.io, multicluster.x-k8s.io]
          resources: [services, endpointslices, serviceimports, serviceimports/status]
          namespaces: [\"*\"]
";

fn unix_micros() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_micros()).expect("before 292277")
}

#[test]
fn thousands_of_services_are_mirrored_in_time_and_then_it_is_quiet() {
    needs_kubernetes!();
    let bed = alone();
    let size = Size::new();
    let scene = Scene::new(&bed, &size);
    let converged = scene.converge(&size);
    scene.assert_memory("until all was mirrored");
    scene.restart(&size);
    scene.assert_memory("after a start among all mirrors");
    scene.quiet(&size);
    scene.change(&size);
    scene.refused();
    scene.assert_memory("since then");
    assert!(converged <= size.converged, "everything was mirrored within {converged:?}");
}
