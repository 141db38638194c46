//! The keeper against an API server that answers as a real one does to these few calls, without its own controllers.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context as Polled, Poll};

use kube::client::Body;
use linkspan_proto::exchange::CatalogueEntry;
use serde_json::json;
use tower::Service;

use super::*;
use crate::catalog::Snapshot;
use crate::exchange::{Freshness, Peers};
use crate::labels;
use crate::mirror::State;
use crate::mirror::ports::{PortRange, Ports};
use crate::testkit::{cluster, entries, entry, headless, peer, peer_state};

/// Objects by path, and what was asked of the server since last looked.
type Held = (BTreeMap<String, Value>, Vec<String>);

/// What it holds; whether it has too much to do; a name that it refuses; whether its ServiceImport is of the API's first version.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Held>>, Arc<AtomicBool>, Arc<Mutex<String>>, Arc<AtomicBool>);

impl Service<http::Request<Body>> for Server {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Polled<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (head, body) = request.into_parts();
        if self.1.load(Ordering::Relaxed) {
            self.0.lock().unwrap().1.push("429".to_owned());
            let answer = http::Response::builder().status(429).header("retry-after", "2");
            return ready(Ok(answer
                .body(Body::from(b"Too many requests, please try again later.\n".to_vec()))
                .unwrap()));
        }
        let path = head.uri.path().to_owned();
        let body = futures::FutureExt::now_or_never(body.collect_bytes()).expect("all of it is here").unwrap();
        let mut state = self.0.lock().unwrap();
        let (objects, calls) = &mut *state;
        if head.method != http::Method::GET {
            let name = path.rsplit('/').find(|part| *part != "status").unwrap_or_default();
            calls.push(format!("{} {name}", head.method));
        }
        let status = |code: u16| {
            (
                code,
                json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "code": code, "message": "denied\n", "reason": "NotFound",
                    "status": "Failure",
                }),
            )
        };
        let fits =
            || !self.3.load(Ordering::Relaxed) || !path.contains("/serviceimports/") || fits_first_version(&body);
        let (code, answer) = match head.method {
            http::Method::PATCH if !fits() => {
                let (_, mut answer) = status(500);
                answer["message"] = json!(
                    "failed to create typed patch object (shop/web; multicluster.x-k8s.io/v1alpha1, \
                    Kind=ServiceImport): .spec.internalTrafficPolicy: field not declared in schema"
                );
                (500, answer)
            }
            http::Method::PATCH | http::Method::DELETE if path.ends_with(&format!("/{}", self.2.lock().unwrap())) => {
                status(422)
            }
            http::Method::PATCH if path.ends_with("/status") => {
                let said: Value = serde_json::from_slice(&body).unwrap();
                let object = objects.get_mut(path.trim_end_matches("/status")).unwrap();
                object["status"] = said["status"].clone();
                (200, object.clone())
            }
            http::Method::PATCH => {
                let old = objects.get(&path);
                let mut object: Value = serde_json::from_slice(&body).unwrap();
                if head.headers[http::header::CONTENT_TYPE] == "application/merge-patch+json" {
                    let mut merged = old.cloned().expect("only what is there is corrected");
                    merge(&mut merged, &object);
                    object = merged;
                }
                if let Some(status) = old.and_then(|old| old.get("status")) {
                    object["status"] = status.clone();
                }
                let next = NEXT.fetch_add(1, Ordering::Relaxed);
                object["metadata"]["uid"] = old.map_or_else(|| json!(next.to_string()), |old| uid(old).clone());
                let next = format!("10.96.{}.{}", next / 256, next % 256);
                if object["kind"] == "Service" && !give_address(&mut object, old, &next) {
                    status(422)
                } else {
                    objects.insert(path, object.clone());
                    (200, object)
                }
            }
            http::Method::DELETE => {
                let said: Value = serde_json::from_slice(&body).unwrap();
                match objects.get(&path).map(uid) {
                    Some(uid) if *uid != said["preconditions"]["uid"] => status(409),
                    Some(_) => (200, objects.remove(&path).unwrap()),
                    None => status(404),
                }
            }
            _ => objects.get(&path).map_or_else(|| status(404), |object| (200, object.clone())),
        };
        ready(Ok(http::Response::builder().status(code).body(Body::from(answer.to_string().into_bytes())).unwrap()))
    }
}

/// For uids and addresses, which are never given twice.
static NEXT: AtomicU64 = AtomicU64::new(1);

fn uid(object: &Value) -> &Value {
    &object["metadata"]["uid"]
}

fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else { return into.clone_from(patch) };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => drop(into.as_object_mut().unwrap().remove(key)),
            value => merge(&mut into[key], value),
        }
    }
}

/// Whether the first version of the multi-cluster services API has all fields of an import.
fn fits_first_version(object: &[u8]) -> bool {
    let object: Value = serde_json::from_slice(object).unwrap();
    let has_only = |part: &str, fields: &[&str]| {
        object
            .get(part)
            .and_then(Value::as_object)
            .is_none_or(|all| all.keys().all(|key| fields.contains(&key.as_str())))
    };
    let ips = object.pointer("/spec/ips").and_then(Value::as_array).map_or(0, Vec::len);
    let spec = ["ports", "ips", "type", "sessionAffinity", "sessionAffinityConfig"];
    ips <= 1 && has_only("spec", &spec) && has_only("status", &["clusters"])
}

/// As an API server does: an address is given once, and neither it nor that there is none changes; says whether that is kept to.
fn give_address(service: &mut Value, old: Option<&Value>, next: &str) -> bool {
    let said = service["spec"].get("clusterIP").cloned();
    let before = old.map(|old| old["spec"]["clusterIP"].clone());
    if said.is_some() && before.is_some() && said != before {
        return false;
    }
    let ip = before.or(said).unwrap_or_else(|| json!(next));
    service["spec"]["clusterIP"] = ip.clone();
    service["spec"]["clusterIPs"] = json!([ip]);
    true
}

struct World {
    server: Server,
    keeper: Keeper,
    state: State,
    set: MirrorSet,
}

impl World {
    fn new() -> Self {
        let mut world = Self::without_gateways();
        world.keeper.landscape(Some(&Gateways::new(["10.244.0.9".parse().unwrap()])), None);
        world
    }

    fn without_gateways() -> Self {
        let server = Server::default();
        *server.2.lock().unwrap() = "nobody".to_owned();
        let registry = linkspan_runtime::metrics::Registry::default();
        let metrics = crate::mirror::Metrics::register(&registry).applied;
        let pressure = Pressure::default();
        let client = Client::new(tower::Layer::layer(&pressure, server.clone()), "default");
        let mut keeper = Keeper::new(Api::new(client, Leading::always(), pressure), BTreeSet::new(), metrics);
        let state = State::new(cluster("east"), Ports::new(PortRange { first: 10_000, last: 10_099 }));
        for resource in Resource::ALL {
            keeper.observe(&MirrorSet::default(), resource, Said::Listed);
        }
        Self { server, keeper, state, set: MirrorSet::default() }
    }

    /// Another run at the same API server.
    fn restarted(&self) -> Self {
        let mut again = Self::new();
        again.server.0.lock().unwrap().0.clone_from(&self.server.0.lock().unwrap().0);
        for object in self.objects() {
            again.see(Said::Object(object));
        }
        again.keeper.landscape(None, Some(Arc::clone(&self.keeper.namespaces)));
        again
    }

    fn exports(&mut self, all: impl IntoIterator<Item = Arc<CatalogueEntry>>) {
        let snapshot =
            Snapshot { peers: Arc::new(BTreeMap::from([(cluster("west"), peer("west"))])), ..Snapshot::default() };
        let peers = Peers::from([(cluster("west"), peer_state(entries(all), Freshness::Fresh))]);
        self.state.update(snapshot, Arc::new(peers));
        self.set = self.state.set();
    }

    fn namespaces(&mut self, names: &[&str]) {
        self.keeper.landscape(None, Some(Arc::new(names.iter().map(|name| (*name).to_owned()).collect())));
    }

    /// Works until nothing is due, and says what was written.
    async fn settle(&mut self) -> Vec<String> {
        for _ in 0..4 {
            self.keeper.adopt(&self.set);
            self.keeper.work(&self.set).await;
            for object in self.objects() {
                self.see(Said::Object(object));
            }
        }
        let mut calls = std::mem::take(&mut self.server.0.lock().unwrap().1);
        calls.sort();
        calls
    }

    fn objects(&self) -> Vec<Value> {
        self.server.0.lock().unwrap().0.values().cloned().collect()
    }

    fn see(&mut self, said: Said) {
        let (Said::Object(value) | Said::Gone(value)) = &said else { return };
        let resource = Resource::ALL.into_iter().find(|resource| resource.type_meta().1 == value["kind"]).unwrap();
        self.keeper.observe(&self.set, resource, said);
    }

    fn object(&self, kind: &str, name: &str) -> Value {
        let objects = self.objects().into_iter();
        let mut objects = objects.filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
        objects.next().unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    /// What a watch says that was interrupted for too long.
    fn list_again(&mut self) {
        for resource in Resource::ALL {
            self.keeper.observe(&self.set, resource, Said::Listing);
            let kind = resource.type_meta().1;
            for object in self.objects().into_iter().filter(|object| object["kind"] == kind) {
                self.see(Said::Object(object));
            }
            self.keeper.observe(&self.set, resource, Said::Listed);
        }
    }

    /// What happens when a namespace is deleted: first it is no more to be written to, then its objects go.
    fn delete_namespace(&mut self, left: &[&str]) {
        self.namespaces(left);
        let gone = std::mem::take(&mut self.server.0.lock().unwrap().0);
        for object in gone.into_values() {
            self.see(Said::Gone(object));
        }
    }

    fn finding(&self) -> Vec<String> {
        let mut reasons: Vec<_> =
            self.keeper.held(&self.set).into_values().map(|verdict| verdict.reason.to_string()).collect();
        reasons.dedup();
        reasons
    }
}

/// Linkerd's TestLocalNamespaceCreatedAfterServiceExport, and what comes after it.
#[tokio::test]
async fn a_mirror_comes_and_goes_with_its_namespace() {
    let mut world = World::new();
    world.namespaces(&["default"]);
    world.exports([entry("shop/web", &["80"], 1)]);
    assert_eq!(world.settle().await, [""; 0], "nothing is tried where no namespace is");
    assert_eq!(world.finding(), ["NamespaceAbsent"]);
    for round in 0..2 {
        world.namespaces(&["default", "shop"]);
        let calls = world.settle().await;
        assert!(calls.contains(&"PATCH web-west".to_owned()), "round {round}: {calls:?}");
        assert_eq!(world.finding(), [""; 0]);
        assert_eq!(world.settle().await, [""; 0], "and then no write more");
        world.delete_namespace(&["default"]);
        assert_eq!(world.settle().await, [""; 0], "nothing is tried in a namespace that goes");
        assert_eq!(world.finding(), ["NamespaceAbsent"]);
    }
}

/// `--import-namespace` after an installation without it: nobody would keep these mirrors up.
#[tokio::test]
async fn what_is_outside_of_the_mirrored_namespaces_goes() {
    let mut world = World::new();
    world.namespaces(&["bank", "shop"]);
    let all = || [entry("shop/web", &["80"], 1), entry("bank/web", &["80"], 1)];
    world.exports(all());
    world.settle().await;
    let objects = world.objects().len();
    let mut again = world.restarted();
    again.keeper.only = BTreeSet::from(["bank".parse().unwrap()]);
    again.namespaces(&["bank", "kube-system"]);
    again.exports(all());
    again.settle().await;
    let left = again.objects();
    assert!(
        left.len() == objects / 2 && left.iter().all(|object| object["metadata"]["namespace"] == "bank"),
        "{left:?}"
    );
    assert_eq!(again.finding(), ["NamespaceAbsent"]);
    for object in world.objects().into_iter().filter(|object| object["metadata"]["namespace"] == "shop") {
        again.see(Said::Gone(object));
    }
    assert_eq!(again.settle().await, [""; 0]);
}

#[tokio::test]
async fn pods_that_come_and_go_cost_only_their_own_objects() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    world.exports([headless("shop/cache", &["cache-0"])]);
    let calls = world.settle().await;
    let at = |name: &str| calls.iter().position(|call| call == &format!("PATCH {name}"));
    assert!(at("cache-0-west").is_some() && at("cache-west").is_some(), "{calls:?}");
    let slice = || {
        let object = |server: &Server| server.0.lock().unwrap().0.values().cloned().collect::<Vec<_>>();
        object(&world.server)
            .into_iter()
            .find(|object| object["metadata"]["name"] == "cache-west-linkspan-ipv4")
            .unwrap()
    };
    let pod = |name: &str| {
        let objects = world.objects();
        objects.into_iter().find(|object| object["metadata"]["name"] == name).unwrap()["spec"]["clusterIP"].clone()
    };
    assert_eq!(slice()["endpoints"][0]["addresses"], json!([pod("cache-0-west")]));

    world.exports([headless("shop/cache", &["cache-0", "cache-1"])]);
    let calls = world.settle().await;
    let of_mirror: Vec<_> = calls.iter().filter(|call| call.ends_with("west") || call.contains("-west-")).collect();
    assert_eq!(of_mirror, ["PATCH cache-1-west", "PATCH cache-1-west-linkspan-ipv4", "PATCH cache-west-linkspan-ipv4"]);

    world.exports([headless("shop/cache", &["!cache-1"])]);
    let calls = world.settle().await;
    for gone in ["DELETE cache-0-west", "DELETE cache-0-west-linkspan-ipv4", "PATCH cache-west-linkspan-ipv4"] {
        assert!(calls.contains(&gone.to_owned()), "{gone} in {calls:?}");
    }
    assert!(!calls.contains(&"PATCH cache-1-west".to_owned()), "{calls:?}");
    assert_eq!(world.settle().await, [""; 0]);

    world.exports([]);
    world.settle().await;
    assert!(world.objects().is_empty(), "nothing stays");
}

#[tokio::test]
async fn somebody_elses_object_is_left_alone_and_its_name_is_taken_when_it_is_gone() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    let path = "/api/v1/namespaces/shop/services/cache-0-west".to_owned();
    let foreign =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "cache-0-west", "namespace": "shop"}});
    world.server.0.lock().unwrap().0.insert(path.clone(), foreign.clone());
    world.exports([headless("shop/cache", &["cache-0"])]);
    world.settle().await;
    assert_eq!(world.server.0.lock().unwrap().0[&path], foreign);
    assert_eq!(world.finding(), ["NameInUse"]);
    world.server.0.lock().unwrap().0.remove(&path);
    world.keeper.pauses.values_mut().for_each(|(at, _)| *at = Instant::now());
    assert!(world.settle().await.contains(&"PATCH cache-0-west".to_owned()));
    assert_eq!(world.finding(), [""; 0]);
}

#[tokio::test]
async fn a_name_that_passes_from_an_endpoint_to_a_service_is_not_deleted_on_the_way() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    let cache = || headless("shop/cache", &["cache-0"]);
    world.exports([cache()]);
    world.settle().await;
    world.exports([cache(), entry("shop/cache-0", &["80"], 1)]);
    let calls = world.settle().await;
    assert!(!calls.contains(&"DELETE cache-0-west".to_owned()), "{calls:?}");
    let objects = world.objects();
    let service = objects.iter().find(|object| object["metadata"]["name"] == "cache-0-west").unwrap();
    assert_eq!(service["metadata"]["labels"][labels::SERVICE], "cache-0");
}

#[tokio::test]
async fn what_a_run_before_wrote_is_adopted_without_a_write() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    let exports = || [entry("shop/web", &["80"], 1), headless("shop/cache", &["cache-0"])];
    world.exports(exports());
    world.settle().await;
    let objects = world.objects();
    let mut again = World::new();
    again.server.0.lock().unwrap().0.clone_from(&world.server.0.lock().unwrap().0);
    for object in objects {
        again.see(Said::Object(object));
    }
    again.namespaces(&["shop"]);
    again.exports(exports());
    assert_eq!(again.settle().await, [""; 0], "zero churn over a restart");
    // New gateways change the slices of gateways and nothing else.
    again.keeper.landscape(Some(&Gateways::new(["10.244.0.10".parse().unwrap()])), None);
    let calls = again.settle().await;
    assert!(
        calls.iter().all(|call| call.contains("ipv4")) && calls.contains(&"PATCH web-west-linkspan-ipv4".to_owned()),
        "{calls:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_has_too_much_to_do_is_asked_when_it_says_and_by_fewer() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    world.exports((0..20).map(|number| entry(&format!("shop/web-{number}"), &["80"], 1)));
    world.server.1.store(true, Ordering::Relaxed);
    assert_eq!(world.settle().await, vec!["429"; AT_ONCE], "those that were under way, and no more");
    assert_eq!(world.keeper.at_once, AT_ONCE / 2);
    tokio::time::advance(Duration::from_millis(1_900)).await;
    assert_eq!(world.settle().await, [""; 0], "not before its time");
    assert_eq!(world.keeper.next_try().map(|at| at - Instant::now()), Some(Duration::from_millis(100)));
    tokio::time::advance(Duration::from_millis(100)).await;
    assert_eq!(world.settle().await, vec!["429"; AT_ONCE / 2]);
    world.server.1.store(false, Ordering::Relaxed);
    tokio::time::advance(Duration::from_secs(2)).await;
    let calls = world.settle().await;
    assert_eq!(calls.iter().filter(|call| call.ends_with("-west") && call.starts_with("PATCH web-")).count(), 20);
    assert_eq!(world.settle().await, [""; 0], "nothing was forgotten, and nothing is written twice");
}

#[tokio::test]
async fn what_went_while_no_watch_stood_is_made_again() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    world.exports([entry("shop/web", &["80"], 1)]);
    world.settle().await;
    world.list_again();
    assert_eq!(world.settle().await, [""; 0], "a list that says the same is no news");
    let gone = [
        "/api/v1/namespaces/shop/services/web-west",
        "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/web-west-linkspan-ipv4",
    ];
    for path in gone {
        world.server.0.lock().unwrap().0.remove(path).unwrap();
    }
    world.list_again();
    world.settle().await;
    for path in gone {
        assert!(world.server.0.lock().unwrap().0.contains_key(path), "{path}");
    }
}

/// `kubectl label svc web-west linkspan.io/cluster-`: an object whose label was edited is neither another's nor nobody's.
#[tokio::test(start_paused = true)]
async fn labels_of_ours_that_somebody_edits_are_put_back_and_nothing_is_deleted() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    world.exports([entry("shop/web", &["80"], 1), headless("shop/cache", &["cache-0"])]);
    world.settle().await;
    let name_of_service = linkspan_proto::resources::SERVICE_NAME_LABEL;
    for (kind, name, label) in [
        ("Service", "web-west", labels::CLUSTER),
        ("Service", "web-west", labels::SERVICE),
        ("Service", "cache-0-west", labels::MIRROR),
        ("EndpointSlice", "web-west-linkspan-ipv4", name_of_service),
        ("EndpointSlice", "web-west-linkspan-ipv4", labels::CLUSTER),
        ("ServiceImport", "web", labels::SERVICE),
    ] {
        for edit in [None, Some("other")] {
            tokio::time::advance(CALM).await;
            let before = world.object(kind, name);
            let mut edited = before.clone();
            let all = edited["metadata"]["labels"].as_object_mut().unwrap();
            all.remove(label).unwrap();
            all.extend(edit.map(|value| (label.to_owned(), json!(value))));
            let path = {
                let state = world.server.0.lock().unwrap();
                state.0.iter().find(|(_, object)| **object == before).unwrap().0.clone()
            };
            world.server.0.lock().unwrap().0.insert(path, edited.clone());
            world.see(Said::Object(edited));
            let calls = world.settle().await;
            assert!(calls.contains(&format!("PATCH {name}")), "{kind} {name} {label} {edit:?}: {calls:?}");
            assert!(calls.iter().all(|call| !call.starts_with("DELETE")), "{kind} {name} {label} {edit:?}: {calls:?}");
            assert_eq!(world.object(kind, name)["metadata"], before["metadata"], "{kind} {name} {label} {edit:?}");
            assert_eq!(world.settle().await, [""; 0]);
        }
    }
    world.exports([]);
    world.settle().await;
    assert!(world.objects().is_empty(), "nothing stays");
}

/// Another program that puts its own back at once: neither gives in, and the API server must not be what they fight on.
#[tokio::test(start_paused = true)]
async fn what_somebody_changes_again_and_again_is_put_back_less_often() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    world.exports([entry("shop/web", &["80"], 1)]);
    world.settle().await;
    let fight = async |world: &mut World, lasts: Duration| {
        let end = Instant::now() + lasts;
        let mut repairs = 0;
        while Instant::now() < end {
            let mut edited = world.object("Service", "web-west");
            edited["spec"]["ports"] = json!([]);
            world.see(Said::Object(edited));
            repairs += world.settle().await.iter().filter(|call| *call == "PATCH web-west").count();
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        repairs
    };
    let repairs = fight(&mut world, Duration::from_secs(60)).await;
    assert!((8..=16).contains(&repairs), "{repairs} in a minute, of 600 changes");
    // What is wanted now does not wait for that.
    world.exports([entry("shop/web", &["81"], 1)]);
    assert!(world.settle().await.contains(&"PATCH web-west".to_owned()));
    let mut edited = world.object("Service", "web-west");
    edited["spec"]["ports"] = json!([]);
    world.see(Said::Object(edited.clone()));
    assert_eq!(world.settle().await, [""; 0], "it rests");
    let next = world.keeper.next_try().expect("it is put back then") - Instant::now();
    assert!(next <= RETRY.1, "{next:?}");
    tokio::time::advance(next).await;
    assert!(!world.settle().await.is_empty());
    tokio::time::advance(CALM).await;
    world.see(Said::Object(edited));
    assert!(!world.settle().await.is_empty(), "after a time of calm it is put back at once");
}

/// The same before this run: then the label says another mirror, and nothing else is known.
#[tokio::test]
async fn an_object_with_an_edited_label_of_an_earlier_run_is_not_deleted() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    world.exports([entry("shop/web", &["80"], 1)]);
    world.settle().await;
    let mut again = World::new();
    again.server.0.lock().unwrap().0.clone_from(&world.server.0.lock().unwrap().0);
    let path = "/api/v1/namespaces/shop/services/web-west";
    let labels_of = |world: &World| world.server.0.lock().unwrap().0[path]["metadata"]["labels"].clone();
    again.server.0.lock().unwrap().0.get_mut(path).unwrap()["metadata"]["labels"]
        .as_object_mut()
        .unwrap()
        .remove(labels::CLUSTER);
    for object in again.objects() {
        again.see(Said::Object(object));
    }
    again.namespaces(&["shop"]);
    again.exports([entry("shop/web", &["80"], 1)]);
    let calls = again.settle().await;
    assert!(calls.iter().all(|call| !call.starts_with("DELETE")), "{calls:?}");
    assert_eq!(labels_of(&again), labels_of(&world));
}

#[tokio::test]
async fn nothing_is_written_before_the_gateways_are_known() {
    let mut world = World::without_gateways();
    world.namespaces(&["shop"]);
    assert!(!world.keeper.is_ready(), "a slice without endpoints would take the backends of what is there");
    world.keeper.landscape(Some(&Gateways::default()), None);
    assert!(world.keeper.is_ready(), "no gateway is an answer");
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_written_keeps_no_other_from_it() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    "services/cache-0-west".clone_into(&mut world.server.2.lock().unwrap());
    world.exports([headless("shop/cache", &["cache-0", "cache-1"])]);
    world.settle().await;
    let hosts = |world: &World| {
        let slice = world.object("EndpointSlice", "cache-west-linkspan-ipv4");
        slice["endpoints"].as_array().unwrap().iter().map(|it| it["hostname"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(hosts(&world), ["cache-1"]);
    "nobody".clone_into(&mut world.server.2.lock().unwrap());
    world.keeper.pauses.values_mut().for_each(|(at, _)| *at = Instant::now());
    world.settle().await;
    assert_eq!(hosts(&world), ["cache-0", "cache-1"]);
    assert_eq!(world.settle().await, [""; 0]);
}

#[tokio::test]
async fn somebody_elses_slice_is_left_alone() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    let path = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/web-west-linkspan-ipv4".to_owned();
    let foreign = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-west-linkspan-ipv4", "namespace": "shop"},
    });
    world.server.0.lock().unwrap().0.insert(path.clone(), foreign.clone());
    world.exports([entry("shop/web", &["80"], 1)]);
    world.settle().await;
    world.keeper.pauses.values_mut().for_each(|(at, _)| *at = Instant::now());
    world.settle().await;
    assert_eq!(world.server.0.lock().unwrap().0[&path], foreign);
    assert_eq!(world.finding(), ["NameInUse"]);
    world.exports([]);
    world.keeper.pauses.values_mut().for_each(|(at, _)| *at = Instant::now());
    world.settle().await;
    assert_eq!(world.objects(), [foreign], "what was written of the mirror goes with it");
}

#[tokio::test]
async fn an_import_whose_status_was_never_written_is_not_adopted() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    world.exports([entry("shop/web", &["80"], 1)]);
    world.settle().await;
    let status = world.object("ServiceImport", "web")["status"].clone();
    assert_eq!(status["clusters"], json!([{"cluster": "west"}]));
    assert_eq!(status["conditions"][0]["type"], "Ready");
    assert_eq!(
        (&status["conditions"][0]["status"], &status["conditions"][0]["reason"]),
        (&json!("True"), &json!("Ready"))
    );
    for part in ["clusters", "conditions"] {
        let mut again = World::new();
        again.server.0.lock().unwrap().0.clone_from(&world.server.0.lock().unwrap().0);
        for object in again.server.0.lock().unwrap().0.values_mut().filter(|object| object["kind"] == "ServiceImport") {
            object["status"].as_object_mut().unwrap().remove(part);
        }
        for object in again.objects() {
            again.see(Said::Object(object));
        }
        again.namespaces(&["shop"]);
        again.exports([entry("shop/web", &["80"], 1)]);
        let calls = again.settle().await;
        assert!(calls.contains(&"PATCH web".to_owned()), "{part}: {calls:?}");
        assert!(again.object("ServiceImport", "web")["status"].get(part).is_some(), "{part}");
        assert_eq!(again.settle().await, [""; 0]);
    }
}

/// A service of a peer that becomes headless, or ceases to be: in this run, or between two.
#[tokio::test]
async fn a_mirror_that_changes_between_an_address_and_none_is_made_anew() {
    for restarts in [false, true] {
        let with_address = || entry("shop/cache", &["6379"], 1);
        let without = || headless("shop/cache", &["cache-0"]);
        for (before, after, is_headless) in [(with_address(), without(), true), (without(), with_address(), false)] {
            let mut world = World::new();
            world.namespaces(&["shop"]);
            world.exports([before]);
            world.settle().await;
            let old = world.object("Service", "cache-west");
            assert_eq!(objects::is_headless(&old), !is_headless);
            if restarts {
                world = world.restarted();
            }
            world.exports([after]);
            let calls = world.settle().await;
            let context = format!("restarts {restarts}, headless {is_headless}: {calls:?}");
            let count = |call: &str| calls.iter().filter(|one| *one == call).count();
            assert_eq!(count("DELETE cache-west"), 1, "{context}");
            let new = world.object("Service", "cache-west");
            assert_eq!(objects::is_headless(&new), is_headless, "{context}");
            assert_ne!(uid(&new), uid(&old), "{context}");
            let slice = world.object("EndpointSlice", "cache-west-linkspan-ipv4");
            let hosts = slice["endpoints"].as_array().unwrap().iter().filter(|it| it.get("hostname").is_some());
            assert_eq!(hosts.count(), usize::from(is_headless), "{context}");
            assert_eq!(world.settle().await, [""; 0], "and then no write more: {context}");
        }
    }
}

/// The same mirror, and somebody put a Service of the other kind in place of ours, with our labels.
#[tokio::test]
async fn a_service_of_the_other_kind_with_our_labels_does_not_count_as_written() {
    for (export, name) in [
        (entry("shop/web", &["80"], 1), "web-west"),
        (headless("shop/web", &["web-0"]), "web-west"),
        (headless("shop/web", &["web-0"]), "web-0-west"),
    ] {
        for restarts in [false, true] {
            let mut world = World::new();
            world.namespaces(&["shop"]);
            world.exports([export.clone()]);
            world.settle().await;
            let right = objects::is_headless(&world.object("Service", name));
            let path = format!("/api/v1/namespaces/shop/services/{name}");
            let mut other = world.object("Service", name);
            let ip = if right { "10.97.0.1" } else { "None" };
            (other["spec"]["clusterIP"], other["spec"]["clusterIPs"]) = (json!(ip), json!([ip]));
            other["metadata"]["uid"] = json!("other");
            world.server.0.lock().unwrap().0.insert(path, other.clone());
            if restarts {
                world = world.restarted();
                world.exports([export.clone()]);
            } else {
                world.see(Said::Object(other));
            }
            world.settle().await;
            assert_eq!(objects::is_headless(&world.object("Service", name)), right, "{name}, restarts {restarts}");
            assert_eq!(world.settle().await, [""; 0], "{name}, restarts {restarts}");
        }
    }
}

/// Slices of a mirror that it has not.
fn orphans(world: &mut World, count: usize) {
    let slice = world.object("EndpointSlice", "web-west-linkspan-ipv4");
    for number in 0..count {
        let mut orphan = slice.clone();
        let name = format!("web-west-linkspan-{number}");
        orphan["metadata"]["name"] = json!(name);
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/{name}");
        world.server.0.lock().unwrap().0.insert(path, orphan.clone());
        world.see(Said::Object(orphan));
    }
}

#[tokio::test(start_paused = true)]
async fn an_orphan_that_cannot_be_deleted_is_tried_again_without_a_list() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    world.exports([entry("shop/web", &["80"], 1)]);
    world.settle().await;
    orphans(&mut world, 1);
    "endpointslices/web-west-linkspan-0".clone_into(&mut world.server.2.lock().unwrap());
    world.keeper.work(&world.set).await;
    let next = world.keeper.next_try().expect("it is not forgotten") - Instant::now();
    assert!(!next.is_zero() && next <= RETRY.1, "{next:?}");
    world.keeper.work(&world.set).await;
    let calls = || std::mem::take(&mut world.server.0.lock().unwrap().1);
    assert_eq!(calls(), ["DELETE web-west-linkspan-0"], "not before its time");
    "nobody".clone_into(&mut world.server.2.lock().unwrap());
    tokio::time::advance(next).await;
    world.keeper.work(&world.set).await;
    assert_eq!(calls(), ["DELETE web-west-linkspan-0"]);
    assert_eq!(world.keeper.next_try(), None);
    // Its end is no news about the mirror.
    let mut gone = world.object("EndpointSlice", "web-west-linkspan-ipv4");
    gone["metadata"]["name"] = json!("web-west-linkspan-0");
    world.see(Said::Gone(gone));
    assert_eq!(world.settle().await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn many_orphans_hold_up_no_repair_and_leave_an_api_server_alone_that_has_too_much_to_do() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    let exports = |port| [entry("shop/web", &["80"], 1), entry("shop/api", &[port], 1)];
    world.exports(exports("80"));
    world.settle().await;
    orphans(&mut world, 3 * BATCH);
    world.exports(exports("81"));
    world.server.1.store(true, Ordering::Relaxed);
    world.keeper.work(&world.set).await;
    let calls = || std::mem::take(&mut world.server.0.lock().unwrap().1);
    assert_eq!(calls(), vec!["429"; AT_ONCE], "those that were under way, and no more");
    world.server.1.store(false, Ordering::Relaxed);
    tokio::time::advance(Duration::from_secs(2)).await;
    world.keeper.work(&world.set).await;
    let first = calls();
    assert_eq!(first.iter().filter(|call| call.starts_with("DELETE")).count(), BATCH);
    assert!(first.iter().take(AT_ONCE).any(|call| call == "PATCH api-west"), "what is wanted comes first: {first:?}");
    for _ in 0..2 {
        assert_eq!(world.keeper.next_try(), Some(Instant::now()), "there is more to do");
        world.keeper.work(&world.set).await;
    }
    let objects = world.objects();
    let names = objects.iter().filter_map(|it| it["metadata"]["name"].as_str());
    assert_eq!(
        names.filter(|name| name.starts_with("web-west-linkspan-")).collect::<Vec<_>>(),
        ["web-west-linkspan-ipv4"]
    );
    assert_eq!((world.keeper.next_try(), world.keeper.orphans.len()), (None, 0));
}

/// Admission, a quota, a role that lacks a verb: nothing of it passes by itself.
#[tokio::test(start_paused = true)]
async fn what_the_api_server_refuses_is_told_and_tried_less_and_less_often() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    "services/web-west".clone_into(&mut world.server.2.lock().unwrap());
    world.exports([entry("shop/web", &["80"], 1)]);
    let start = Instant::now();
    let mut tries = 0;
    while start.elapsed() < Duration::from_secs(600) {
        world.keeper.work(&world.set).await;
        assert_eq!(world.finding(), ["Refused"]);
        let next = world.keeper.next_try().expect("it is not forgotten") - Instant::now();
        assert!(!next.is_zero() && next <= REFUSED, "{next:?}");
        tokio::time::advance(next).await;
        tries += 1;
    }
    assert!((10..=18).contains(&tries), "{tries} in ten minutes");
    let held = world.keeper.held(&world.set);
    let message = &held.values().next().unwrap().message;
    assert!(message.contains("denied\\u000a") && message.contains("shop/web-west"), "cleaned: {message}");

    // What is wanted now does not wait for that, but neither does it make a storm of a service that changes all the time.
    world.keeper.work(&world.set).await;
    std::mem::take(&mut world.server.0.lock().unwrap().1);
    for port in 81..181 {
        world.exports([entry("shop/web", &[&port.to_string()], 1)]);
        world.keeper.work(&world.set).await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let calls = std::mem::take(&mut world.server.0.lock().unwrap().1);
    let tries = calls.iter().filter(|call| *call == "PATCH web-west").count();
    // Each try is an apply and a correction.
    assert!((9..=11).contains(&(tries / 2)), "{tries}");
    "nobody".clone_into(&mut world.server.2.lock().unwrap());
    tokio::time::advance(RETRY.1).await;
    world.exports([entry("shop/web", &["80"], 1)]);
    assert!(world.settle().await.contains(&"PATCH web-west".to_owned()));
    assert_eq!(world.finding(), [""; 0]);
    assert_eq!(world.settle().await, [""; 0]);
}

/// What failed together must not come back together.
#[tokio::test(start_paused = true)]
async fn mirrors_that_failed_together_are_tried_again_at_different_times() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    world.exports((0..20).map(|number| entry(&format!("shop/web-{number}"), &["80"], 1)));
    world.keeper.plan(&world.set, Instant::now());
    let places: Vec<_> = world.keeper.due.keys().cloned().collect();
    places.iter().for_each(|place| world.keeper.fails(place, RETRY.1));
    let times: BTreeSet<_> = world.keeper.pauses.values().map(|(at, _)| *at - Instant::now()).collect();
    assert!(times.len() > 20, "{times:?}");
    assert!(times.iter().all(|time| (RETRY.0 / 2..=RETRY.0).contains(time)), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn mirrors_do_not_wait_for_a_kind_that_is_not_served_and_imports_are_made_when_it_is() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    world.keeper.listed.remove(&Resource::ServiceImport);
    assert!(!world.keeper.is_ready());
    let client = crate::testkit::api_server(|path, _| match path.ends_with("/serviceimports") {
        true => (404, json!({"message": "the server could not find the requested resource"})),
        false => (200, json!({"metadata": {"resourceVersion": "1"}, "items": []})),
    });
    let api = Api::new(client, Leading::always(), Pressure::default());
    let mut watch = api.watch(Resource::ServiceImport);
    while !matches!(watch.next().await, Some((Resource::ServiceImport, Said::NotServed))) {}
    drop(watch);
    assert!(api.no_imports.load(Ordering::Relaxed));
    world.keeper.api.no_imports.store(true, Ordering::Relaxed);
    world.keeper.observe(&world.set, Resource::ServiceImport, Said::NotServed);
    assert!(world.keeper.is_ready());
    world.exports([entry("shop/web", &["80"], 1)]);
    world.settle().await;
    world.object("Service", "web-west");
    world.object("Service", "web-clusterset");
    assert_eq!(world.finding(), ["Refused"]);
    world.keeper.api.no_imports.store(false, Ordering::Relaxed);
    world.keeper.observe(&world.set, Resource::ServiceImport, Said::Listed);
    assert_eq!(world.keeper.next_try(), Some(Instant::now()));
    world.settle().await;
    world.object("ServiceImport", "web");
    assert_eq!((world.finding(), world.settle().await), (vec![], vec![]));
}

/// Another implementation's definition of ServiceImport, which we do not replace.
#[tokio::test]
async fn beside_another_implementation_an_import_has_the_fields_that_its_definition_has() {
    let mut world = World::new();
    world.namespaces(&["shop"]);
    world.server.3.store(true, Ordering::Relaxed);
    world.exports([entry("shop/web", &["80"], 1), entry("shop/api", &["80"], 1)]);
    world.settle().await;
    assert_eq!(world.finding(), [""; 0]);
    for _ in 0..2 {
        for name in ["web", "api"] {
            let import = world.object("ServiceImport", name);
            assert_eq!(
                (&import["spec"]["type"], &import["spec"]["ports"][0]["port"]),
                (&json!("ClusterSetIP"), &json!(80))
            );
            assert_eq!(import["spec"]["ips"].as_array().map(Vec::len), Some(1));
            assert_eq!(import["status"], json!({"clusters": [{"cluster": "west"}]}));
        }
        assert_eq!(world.settle().await, [""; 0], "and then no write more");
        // The next run finds out anew, and is content as well.
        world = world.restarted();
        world.server.3.store(true, Ordering::Relaxed);
        world.exports([entry("shop/web", &["80"], 1), entry("shop/api", &["80"], 1)]);
        let calls = world.settle().await;
        assert!(calls.iter().all(|call| !call.starts_with("DELETE")), "{calls:?}");
    }
    let mut edited = world.object("ServiceImport", "web");
    edited["spec"]["ips"] = json!(["10.0.0.1"]);
    world.see(Said::Object(edited));
    assert!(world.settle().await.contains(&"PATCH web".to_owned()), "it is kept up");
}
