//! Recorded answers of an API server, served over HTTP in this process, and what is made of them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use linkspan_proto::configuration::Resource;
use linkspan_runtime::task;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::client::facts::tests::{capacity, export, link, mirror, peer};

/// The proxy of a pod's admin port.
pub(crate) fn proxy(pod: &str, page: &str) -> String {
    format!("GET /api/v1/namespaces/linkspan/pods/{pod}:4191/proxy{page}")
}

/// What an API server answers. Keys are `METHOD /path`, with `?part` where the query has to hold that part.
#[derive(Clone)]
pub(crate) struct Recorded {
    answers: BTreeMap<String, (u16, String)>,
    /// What access reviews say no to: `verb resource`.
    pub(crate) denied: Vec<&'static str>,
    /// The header `Date` of pods, by name, where it is not now.
    pub(crate) dates: BTreeMap<String, String>,
    /// Every request with its body.
    pub(crate) seen: Arc<Mutex<Vec<(String, String)>>>,
}

impl Recorded {
    /// An answer with an object.
    pub(crate) fn set(&mut self, request: &str, object: Value) {
        self.answers.insert(request.to_owned(), (200, object.to_string()));
    }

    /// An answer with a list.
    pub(crate) fn list(&mut self, request: &str, items: Value) {
        self.set(request, json!({ "kind": "List", "metadata": {}, "items": items }));
    }

    /// A refusal in the API server's words.
    pub(crate) fn refuse(&mut self, request: &str, code: u16, message: &str) {
        let status = json!({ "kind": "Status", "apiVersion": "v1", "code": code, "message": message });
        self.answers.insert(request.to_owned(), (code, status.to_string()));
    }

    /// A page of a pod that is no JSON, or no success.
    pub(crate) fn page(&mut self, pod: &str, page: &str, code: u16, text: &str) {
        self.answers.insert(proxy(pod, page), (code, text.to_owned()));
    }

    /// Nothing of that name.
    pub(crate) fn remove(&mut self, request: &str) {
        self.answers.remove(request);
    }

    /// A change to an answer that is an object.
    pub(crate) fn change(&mut self, request: &str, change: impl FnOnce(&mut Value)) {
        let (_, text) = self.answers.get_mut(request).expect("an answer");
        let mut object = serde_json::from_str(text).expect("an object");
        change(&mut object);
        *text = object.to_string();
    }

    /// What the gateways have in force; those that `keep` does not want go, others come.
    pub(crate) fn resources(&mut self, keep: impl Fn(&Resource) -> bool, more: &[Resource]) {
        for name in ["gateway-a", "gateway-b"] {
            self.change(&proxy(name, "/config"), |page| {
                let old = page["gateway"]["resources"].take();
                let mut all: Vec<Resource> = serde_json::from_value(old).expect("resources");
                all.retain(&keep);
                all.extend(more.iter().cloned());
                page["gateway"]["resources"] = json!(all);
            });
        }
    }

    /// The same answer to another request.
    pub(crate) fn rename(&mut self, request: &str, other: &str) {
        let answer = self.answers.remove(request).expect("an answer");
        self.answers.insert(other.to_owned(), answer);
    }

    fn answer(&self, request: &str, body: &str) -> (u16, String) {
        if request.contains("accessreviews") {
            let review: Value = serde_json::from_str(body).expect("a review");
            let wanted = &review["spec"]["resourceAttributes"];
            let sub = wanted["subresource"].as_str().map(|sub| format!("/{sub}")).unwrap_or_default();
            let text = format!(
                "{} {}{sub}",
                wanted["verb"].as_str().unwrap_or_default(),
                wanted["resource"].as_str().unwrap_or_default()
            );
            let key = request.split('?').next().unwrap_or_default();
            if let Some(answer) = self.answers.get(key) {
                return answer.clone();
            }
            return (201, json!({ "status": { "allowed": !self.denied.contains(&text.as_str()) } }).to_string());
        }
        let (path, query) = request.split_once('?').unwrap_or((request, ""));
        let found = self.answers.iter().filter(|(key, _)| {
            let (wanted, part) = key.split_once('?').unwrap_or((key, ""));
            wanted == path && query.contains(part)
        });
        // The longest key says most.
        match found.max_by_key(|(key, _)| key.len()) {
            Some((_, answer)) => answer.clone(),
            None => (404, json!({ "kind": "Status", "apiVersion": "v1", "message": "not found" }).to_string()),
        }
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<bytes::Bytes>> {
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let line = format!("{} {path}", request.method());
        let body = request.into_body().collect().await.expect("body").to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        let (status, text) = self.answer(&line, &body);
        let date = self.dates.iter().find(|(pod, _)| line.contains(pod.as_str())).map(|(_, date)| date.clone());
        self.seen.lock().expect("lock").push((line, body));
        let mut response = Response::builder().status(StatusCode::from_u16(status).expect("status"));
        if let Some(date) = date {
            response = response.header(header::DATE, date);
        }
        response.body(Full::from(text)).expect("response")
    }

    /// Serves it, for as long as the test's runtime runs.
    pub(crate) async fn serve(self) -> Cluster {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        drop(task::spawn("test_api_server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let recorded = self.clone();
                drop(task::spawn("test_api_connection", async move {
                    let service = service_fn(move |request| {
                        let recorded = recorded.clone();
                        async move { Ok::<_, Infallible>(recorded.respond(request).await) }
                    });
                    let stream = hyper_util::rt::TokioIo::new(stream);
                    drop(hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await);
                }));
            }
        }));
        let config = kube::Config::new(format!("http://{address}").parse().expect("uri"));
        Cluster::for_test(api::client(connect::limited(config)).expect("client"))
    }
}

fn pod(name: &str, address: &str, component: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "linkspan", "labels": { "app.kubernetes.io/component": component } },
        "spec": { "containers": [{ "name": component, "ports": [{ "name": "admin", "containerPort": 4191 }] }] },
        "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{ "ip": address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// One pod that is there and not ready.
pub(crate) fn unready(name: &str, why: &str) -> Value {
    let mut pod = pod(name, "10.244.0.99", "gateway");
    pod["status"]["conditions"] = json!([{ "type": "Ready", "status": "False", "message": why }]);
    pod
}

/// The Service that stands for a mirror; `None` as the address of a headless one.
pub(crate) fn mirrored(name: &str, cluster: Option<&str>, address: &str) -> Value {
    let mut labels = json!({
        "mirror.linkspan.io/managed-by": "mirror-controller",
        "mirror.linkspan.io/service-name": "web",
    });
    if let Some(cluster) = cluster {
        labels["mirror.linkspan.io/cluster-name"] = json!(cluster);
    }
    json!({
        "metadata": { "name": name, "namespace": "shop", "labels": labels },
        "spec": { "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": [{ "port": 80 }] },
        "status": {},
    })
}

fn slice(service: &str, port: u16) -> Value {
    json!({
        "metadata": { "name": format!("{service}-linkspan-ipv4"), "namespace": "shop", "labels": {
            "kubernetes.io/service-name": service, "mirror.linkspan.io/managed-by": "mirror-controller"
        } },
        "endpoints": [
            { "addresses": ["10.244.0.11"], "conditions": { "ready": true } },
            { "addresses": ["10.244.0.12"], "conditions": { "ready": true } }
        ],
        "ports": [{ "port": port }],
    })
}

/// A root certificate of a trust domain.
pub(crate) fn root(domain: &str) -> String {
    let folder = tempfile::tempdir().expect("folder");
    let domain = linkspan_proto::identity::TrustDomain::parse(domain).expect("trust domain");
    let ca = linkspan_mirror_controller::ca::create(folder.path(), &domain).expect("a root");
    ca.trust_bundle_pem().to_owned()
}

/// What a gateway says of itself, with the ports on which it listens.
fn gateway_pages(recorded: &mut Recorded, name: &str) {
    let mut west = peer("west", &["192.0.2.2:4143"]);
    if let Resource::Peer(west) = &mut west {
        west.trust_bundle = root("west.linkspan.internal");
    }
    let resources = vec![
        west,
        mirror("web-west.shop.svc.cluster.local", "shop/web", "[::]:10001", &[&[("west", 1)]]),
        mirror("web.shop.svc.clusterset.local", "shop/web", "[::]:10002", &[&[("west", 1)]]),
        capacity("west", "shop/web", 2),
        export("shop/api", &[true]),
    ];
    let listener = |port: u16| json!({ "listen": format!("[::]:{port}"), "bound": true });
    recorded.set(&proxy(name, "/links"), json!([link("west", true)]));
    recorded.set(&proxy(name, "/mirrors"), json!([listener(10_001), listener(10_002)]));
    recorded.set(
        &proxy(name, "/config"),
        json!({ "gateway": { "resolved": { "cluster": "east" }, "generation": 7, "resources": resources } }),
    );
    recorded.set(
        &proxy(name, "/stat"),
        json!({ "windowSeconds": 30.0, "rows": [{
            "direction": "outbound", "peer": "west", "service": "shop/web", "requests": 300, "failures": 3, "rps": 10.0,
            "tcpOpens": 0, "tcpCloses": 0, "tcpFailures": 0, "readBytes": 10, "writeBytes": 20, "latencyBuckets": [[20, 300]],
        }] }),
    );
}

/// East, installed as `linkspan install` does it, linked with west, and well.
pub(crate) fn healthy() -> Recorded {
    let mut recorded =
        Recorded { answers: BTreeMap::new(), denied: Vec::new(), dates: BTreeMap::new(), seen: Arc::default() };
    let own = "GET /api/v1/namespaces/linkspan";
    recorded.set("GET /version", json!({ "gitVersion": "v1.35.4", "major": "1", "minor": "35" }));
    let kinds =
        |names: &[&str]| json!({ "resources": names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>() });
    recorded.set("GET /apis/linkspan.io/v1alpha1", kinds(&["links", "clustertrafficpolicies", "exportpolicies"]));
    for version in ["v1alpha1", "v1beta1"] {
        recorded
            .set(&format!("GET /apis/multicluster.x-k8s.io/{version}"), kinds(&["serviceexports", "serviceimports"]));
    }
    let cluster = "apiVersion: linkspan.io/v1alpha1\nkind: Cluster\nmetadata: {name: east}\n";
    recorded.set(&format!("{own}/configmaps/linkspan-cluster"), json!({ "data": { "cluster.yaml": cluster } }));
    let pem = root("east.linkspan.internal");
    recorded.set(&format!("{own}/configmaps/linkspan-root"), json!({ "data": { "root.pem": pem } }));
    recorded.set(
        &format!("{own}/services/linkspan-link"),
        json!({
            "spec": { "type": "LoadBalancer", "ports": [{ "port": 4143, "nodePort": 30143 }] },
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } },
        }),
    );
    recorded.set(&format!("{own}/services/linkspan-dns"), json!({ "spec": { "clusterIPs": ["10.96.0.20"] } }));
    recorded.list(
        &format!("{own}/pods?component%3Dgateway"),
        json!([pod("gateway-a", "10.244.0.11", "gateway"), pod("gateway-b", "10.244.0.12", "gateway")]),
    );
    recorded
        .list(&format!("{own}/pods?component%3Dcontroller"), json!([pod("controller-a", "10.244.0.13", "controller")]));
    let now = jiff::Timestamp::now().to_string();
    recorded.set(
        "GET /apis/coordination.k8s.io/v1/namespaces/linkspan/leases/linkspan-controller",
        json!({ "spec": { "holderIdentity": "controller-a", "renewTime": now, "leaseDurationSeconds": 15 } }),
    );
    recorded.list(
        "GET /apis/discovery.k8s.io/v1/namespaces/linkspan/endpointslices",
        json!([{ "endpoints": [{ "addresses": ["10.244.0.11"], "conditions": { "ready": true } }] }]),
    );
    recorded.list(
        "GET /apis/discovery.k8s.io/v1/endpointslices",
        json!([slice("web-west", 10_001), slice("web-clusterset", 10_002)]),
    );
    recorded.list(
        "GET /api/v1/services",
        json!([mirrored("web-west", Some("west"), "10.96.0.31"), mirrored("web-clusterset", None, "10.96.0.32")]),
    );
    recorded.list("GET /api/v1/namespaces", json!([{ "metadata": { "name": "shop" } }]));
    recorded.list(
        "GET /apis/multicluster.x-k8s.io/v1beta1/serviceimports",
        json!([{
            "metadata": { "name": "web", "namespace": "shop" }, "spec": { "ips": ["10.96.0.32"] },
        }]),
    );
    recorded.list(
        "GET /apis/multicluster.x-k8s.io/v1beta1/serviceexports",
        json!([{
            "kind": "ServiceExport", "metadata": { "name": "api", "namespace": "shop" },
            "status": { "conditions": [{ "type": "Valid", "status": "True" }] },
        }]),
    );
    recorded.list(
        "GET /apis/linkspan.io/v1alpha1/links",
        json!([{
            "apiVersion": "linkspan.io/v1alpha1", "kind": "Link", "metadata": { "name": "west" },
            "spec": {
                "trustDomain": "west.linkspan.internal",
                "trustBundle": root("west.linkspan.internal"),
                "addresses": ["192.0.2.2:4143"],
            },
            "status": { "conditions": [{ "type": "Accepted", "status": "True" }] },
        }]),
    );
    recorded.list("GET /apis/linkspan.io/v1alpha1/clustertrafficpolicies", json!([]));
    let corefile = ".:53 {\n    forward . /etc/resolv.conf\n}\nclusterset.local:53 {\n    forward . 10.96.0.20\n}\n";
    recorded.set("GET /api/v1/namespaces/kube-system/configmaps/coredns", json!({ "data": { "Corefile": corefile } }));
    let until = std::time::SystemTime::now() + Duration::from_secs(20 * 3600);
    let until = until.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let metrics = format!(
        "build_info{{version=\"{}\"}} 1\ncertificate_expiry_seconds{{purpose=\"link\"}} {until}\n",
        env!("CARGO_PKG_VERSION")
    );
    for name in ["gateway-a", "gateway-b", "controller-a"] {
        recorded.set(&proxy(name, "/ready"), json!({ "ready": true, "parts": {} }));
        recorded.page(name, "/metrics", 200, &metrics);
    }
    gateway_pages(&mut recorded, "gateway-a");
    gateway_pages(&mut recorded, "gateway-b");
    recorded.set(&proxy("controller-a", "/manifests"), json!([]));
    recorded.set(&proxy("controller-a", "/refused"), json!([]));
    recorded.set(
        &proxy("controller-a", "/peers"),
        json!([{ "cluster": "west", "connected": true, "synchronised": true, "entries": 1, "version": 3, "hash": "0123456789abcdef" }]),
    );
    recorded
}

/// An endpoint of a headless service has a Service of another name than its own.
#[tokio::test]
async fn an_endpoint_has_the_address_of_its_service() {
    let mut recorded = healthy();
    let mut pod = mirrored("cache-0-west", Some("west"), "10.96.0.41");
    let labels = &mut pod["metadata"]["labels"];
    labels["mirror.linkspan.io/service-name"] = json!("cache");
    labels["mirror.linkspan.io/endpoint"] = json!("cache-0");
    let mut of_all = pod.clone();
    pod["metadata"]["labels"]["mirror.linkspan.io/mirror-name"] = json!("cache-west");
    of_all["metadata"]["labels"]["mirror.linkspan.io/source-cluster"] = json!("west");
    of_all["metadata"]["labels"].as_object_mut().expect("labels").remove("mirror.linkspan.io/cluster-name");
    let mut whole = mirrored("cache-west", Some("west"), "None");
    whole["metadata"]["labels"]["mirror.linkspan.io/service-name"] = json!("cache");
    recorded.list("GET /api/v1/services", json!([whole, pod, of_all]));
    let objects = recorded.serve().await.mirror_objects().await.expect("objects");
    let fronts: Vec<(String, usize)> =
        objects.fronts().into_iter().map(|(name, front)| (name, front.addresses.len())).collect();
    assert_eq!(
        fronts,
        [
            ("cache-0.cache-west.shop.svc.cluster.local".to_owned(), 1),
            ("cache-0.west.cache.shop.svc.clusterset.local".to_owned(), 1),
            ("cache-west.shop.svc.cluster.local".to_owned(), 0),
            ("web.shop.svc.clusterset.local".to_owned(), 1),
        ]
    );
    assert!(objects.services[0].headless && objects.services[0].endpoint.is_none());
    // It has no conditions of its own: those of the service would be hidden by them.
    assert!(objects.statuses().iter().all(|status| !status.hostname().starts_with("cache-0")));
}

/// A pod whose container ends again and again is Running now and then, and answers nobody.
#[test]
fn a_container_that_ends_is_told_of_with_its_exit_code() {
    let mut ended = pod("controller-a", "10.244.0.13", "controller");
    ended["status"]["conditions"] =
        json!([{ "type": "Ready", "status": "False", "message": "containers with unready status" }]);
    ended["status"]["containerStatuses"] = json!([{
        "name": "controller", "image": "x", "imageID": "x", "ready": false, "restartCount": 4,
        "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 1m20s" } },
        "lastState": { "terminated": { "exitCode": 1, "reason": "Error" } },
    }]);
    let of = |pod: &Value| pods::tests::of(pod);
    let found = of(&ended);
    assert!(!found.running);
    assert_eq!(
        found.why,
        "CrashLoopBackOff back-off 1m20s; its container controller ended with exit code 1 (Error), and was started again 4 times"
    );
    ended["status"]["containerStatuses"][0]["state"] = json!({ "running": {} });
    assert!(of(&ended).running);
}

#[tokio::test]
async fn the_gateways_are_one_and_names_have_the_addresses_of_their_services() {
    let cluster = healthy().serve().await;
    let (mut facts, silent) = cluster.facts().await.expect("facts");
    assert!(silent.is_empty());
    assert_eq!(facts.own.as_ref().map(|own| own.as_str()), Some("east"));
    assert_eq!(facts.links["west"].connections, 4, "two of each gateway");
    facts.fronts = Some(cluster.fronts().await.expect("fronts"));
    let addresses: Vec<String> = facts
        .mirrors
        .iter()
        .map(|mirror| facts.address(mirror, &mirror.ports[0]).expect("an address").to_string())
        .collect();
    assert_eq!(addresses, ["10.96.0.31:80", "10.96.0.32:80"]);
    let (stat, _) = cluster.stat(30).await.expect("figures");
    assert_eq!((stat.rows[0].requests, stat.rows[0].rps), (600, 20.0));
    let mirrors = cluster.statuses(Of::Mirrors).await.expect("mirrors");
    let names: Vec<_> = mirrors.iter().map(|status| (status.hostname(), status.service())).collect();
    assert_eq!(names, [("web-west.shop.svc.cluster.local", "shop/web"), ("web.shop.svc.clusterset.local", "shop/web")]);
}

/// A refused mirror has no object; the controller alone knows of it.
#[tokio::test]
async fn what_the_controller_refused_is_a_mirror_too() {
    let mut recorded = healthy();
    recorded.set(
        &proxy("controller-a", "/refused"),
        json!([{
            "kind": "Mirror",
            "metadata": { "namespace": "shop", "name": "db-west" },
            "status": {
                "hostname": "db-west.shop.svc.cluster.local",
                "service": "shop/db",
                "conditions": [{ "type": "Accepted", "status": "False", "reason": "NameTaken", "message": "taken" }],
            },
        }]),
    );
    let mirrors = recorded.serve().await.statuses(Of::Mirrors).await.expect("mirrors");
    let complaint = mirrors[2].complaint("Accepted").expect("a complaint").sentence();
    assert_eq!((mirrors[2].service(), complaint.as_str()), ("shop/db", "Accepted=False (NameTaken): taken"));
}

#[tokio::test]
async fn a_gateway_that_does_not_answer_is_left_out_and_named() {
    let mut recorded = healthy();
    recorded.page("gateway-b", "/links", 500, "oops");
    let (facts, silent) = recorded.serve().await.facts().await.expect("facts of the other");
    assert_eq!(facts.links["west"].connections, 2);
    assert!(silent.len() == 1 && format!("{:#}", silent[0]).contains("gateway-b"), "{silent:?}");
}

/// Where both ways to a pod are closed, the error says which right is missing. The second way was tried.
#[tokio::test]
async fn pages_that_may_not_be_read_name_the_right() {
    let mut recorded = healthy();
    for name in ["gateway-a", "gateway-b"] {
        recorded.refuse(&proxy(name, "/links"), 403, "pods \"x\" is forbidden: cannot get resource pods/proxy");
        let forward = format!("GET /api/v1/namespaces/linkspan/pods/{name}/portforward");
        recorded.refuse(&forward, 403, "pods \"x\" is forbidden: cannot create resource pods/portforward");
    }
    let seen = Arc::clone(&recorded.seen);
    let cluster = recorded.serve().await;
    let error = format!("{:#}", cluster.facts().await.expect_err("no way"));
    assert!(error.contains("`get` pods/proxy") && error.contains("namespace linkspan"), "{error}");
    let lines: Vec<String> = seen.lock().expect("lock").iter().map(|(line, _)| line.clone()).collect();
    assert!(lines.iter().any(|line| line.contains("/portforward?")), "{lines:?}");

    let mut recorded = healthy();
    for name in ["gateway-a", "gateway-b"] {
        recorded.refuse(
            &proxy(name, "/links"),
            503,
            "error trying to reach service: dial tcp 10.244.0.11:4191: i/o timeout",
        );
    }
    let error = format!("{:#}", recorded.serve().await.facts().await.expect_err("no way"));
    assert!(error.contains("--api-server-cidr") && error.contains("i/o timeout"), "{error}");
}

#[tokio::test]
async fn an_empty_cluster_names_the_command_that_installs() {
    let mut recorded = healthy();
    recorded.list("GET /api/v1/namespaces/linkspan/pods?component%3Dgateway", json!([]));
    let error = format!("{:#}", recorded.clone().serve().await.facts().await.expect_err("no gateway"));
    assert!(error.contains("no gateway runs") && error.contains("linkspan check --context east"), "{error}");
    recorded.remove("GET /api/v1/namespaces/linkspan/configmaps/linkspan-cluster");
    let error = format!("{:#}", recorded.serve().await.facts().await.expect_err("not installed"));
    assert!(error.contains("linkspan install --cluster-name"), "{error}");
}

#[tokio::test]
async fn an_api_server_that_is_gone_or_does_not_know_us_is_told_apart() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("bound");
    let config = kube::Config::new(format!("http://{closed}").parse().expect("uri"));
    let gone = Cluster::for_test(api::client(connect::limited(config)).expect("client"));
    let error = format!("{:#}", gone.facts().await.expect_err("nobody there"));
    assert!(error.contains("cannot be reached") && error.contains(&closed.to_string()), "{error}");

    let mut recorded = healthy();
    recorded.refuse("GET /api/v1/namespaces/linkspan/pods?component%3Dgateway", 401, "Unauthorized");
    let error = format!("{:#}", recorded.serve().await.facts().await.expect_err("a stranger"));
    assert!(error.contains("does not accept our credentials"), "{error}");
}

/// A pod that is not ready answers 503, which is what is asked for; kube's own client would ask again for ten seconds.
#[tokio::test]
async fn a_pod_that_is_not_ready_is_heard_at_once() {
    let mut recorded = healthy();
    recorded.page("gateway-a", "/ready", 503, r#"{"ready":false}"#);
    let seen = Arc::clone(&recorded.seen);
    let cluster = recorded.serve().await;
    let pods = cluster.pods(Component::Gateway).await.expect("pods");
    let answer = cluster.page(&pods[0], "/ready").await.expect("an answer");
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(seen.lock().expect("lock").len(), 2, "one list, one page");
}

#[tokio::test]
async fn long_lists_are_read_to_their_end() {
    let mut recorded = healthy();
    recorded.set("GET /api/v1/nodes", json!({ "metadata": { "continue": "a+b" }, "items": [{ "n": 1 }] }));
    recorded.set("GET /api/v1/nodes?continue=a%2Bb", json!({ "metadata": {}, "items": [{ "n": 2 }] }));
    let cluster = recorded.serve().await;
    assert_eq!(cluster.api().list("/api/v1/nodes", "").await.expect("both"), [json!({ "n": 1 }), json!({ "n": 2 })]);
}
