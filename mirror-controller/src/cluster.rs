//! What a controller in a Kubernetes cluster knows of its own cluster beside the objects that it mirrors: its gateways, its
//! pods, its namespaces, and whose a ServiceAccount token is. All by watches and calls of the API server.
//!
//! - **In**: the API server.
//! - **Out**: [`Gateways`], [`workloads`], the names of namespaces; the ports that mirrors had before a restart.
//! - **Refuses when**: a token is not valid for the audience [`AUDIENCE`], or not the gateways' ServiceAccount's.
//! - **Never does**: take an address of a gateway from anywhere but the EndpointSlices of its own Service.
//! - **Numbers**: as [`crate::watch::kubernetes`]; [`PACE`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{Namespace, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DynamicObject, ListParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use linkspan_proto::exchange::Protocol;
use linkspan_proto::names::{ClusterName, EndpointName, Namespace as NamespaceName, PortName, ServiceKey, ServiceName};
use linkspan_proto::resources::SERVICE_NAME_LABEL;
use linkspan_runtime::text::Clean;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::dns::{self, HeadlessEndpoint, ZoneName};
use crate::labels;
use crate::mirror::Seniority;
use crate::mirror::front::port_key;
use crate::mirror::kubernetes::import;
use crate::mirror::kubernetes::objects::Gateways;
use crate::mirror::ports::{PortRange, Ports};
use crate::watch::kubernetes::{PAGE, Pause, WATCH_SECONDS, service_imports, versioned};

mod attestor;
mod standing;
mod workloads;

pub use attestor::{AUDIENCE, TokenAttestor};
pub use standing::standing;
pub use workloads::workloads;

/// Between two tellings of pods: rollouts change many at once.
const PACE: Duration = Duration::from_millis(200);

/// A namespace that every cluster has and that nothing is mirrored into.
const ALWAYS: &str = "kube-system";

/// Watches the EndpointSlices of the gateways' Service: the ready ones take clients. Runs until `gateways` is closed.
pub async fn gateways(client: Client, namespace: String, service: String, gateways: watch::Sender<Option<Gateways>>) {
    let api: Api<EndpointSlice> = Api::namespaced(client, &namespace);
    let config = config().labels(&format!("{SERVICE_NAME_LABEL}={service}"));
    let ready = |slice: &EndpointSlice| -> Option<Vec<IpAddr>> {
        let ready = slice.endpoints.iter().filter(|endpoint| {
            endpoint
                .conditions
                .as_ref()
                .is_some_and(|conditions| conditions.ready == Some(true) && conditions.terminating != Some(true))
        });
        let addresses = ready.flat_map(|endpoint| &endpoint.addresses);
        Some(addresses.filter_map(|address| address.parse().ok()).collect())
    };
    follow(api, config, Duration::ZERO, ready, |slices| {
        changed(&gateways, Some(Gateways::new(slices.values().flatten().copied())))
    })
    .await;
}

/// Watches the namespaces that objects can be made in: of all, or of those named in `only`, the ones that are not going.
/// Runs until `namespaces` is closed.
pub async fn namespaces(
    client: Client,
    only: &[NamespaceName],
    namespaces: watch::Sender<Option<Arc<BTreeSet<String>>>>,
) {
    let usable = |namespace: &Namespace| is_usable(namespace, only).then_some(());
    follow(Api::<Namespace>::all(client), config(), Duration::ZERO, usable, |all| {
        changed(&namespaces, Some(Arc::new(all.keys().map(|(_, name)| name.clone()).collect())))
    })
    .await;
}

fn is_usable(namespace: &Namespace, only: &[NamespaceName]) -> bool {
    let meta = namespace.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    // Kept in every case: a set without any name means that none is known yet.
    let named = only.is_empty() || name == ALWAYS || only.iter().any(|one| one.as_str() == name);
    named && meta.deletion_timestamp.is_none()
}

/// What DNS answers for the imports in the API server; `None` until they are known.
pub type Imports = Option<Arc<Vec<dns::Service>>>;

/// The endpoints of each headless import.
type Hosts = BTreeMap<ServiceKey, BTreeMap<(ClusterName, EndpointName), HeadlessEndpoint>>;

/// What of the imports is known so far.
#[derive(Default)]
struct Known {
    services: Option<Vec<dns::Service>>,
    hosts: Option<Hosts>,
}

impl Known {
    /// The imports with their endpoints, once both are known: a headless name without them would be a name without addresses.
    fn together(&self) -> Imports {
        let (services, hosts) = (self.services.as_ref()?, self.hosts.as_ref()?);
        let complete = |service: &dns::Service| {
            let mut service = service.clone();
            if let Some(endpoints) = &mut service.headless {
                let key = ServiceKey::new(service.namespace.clone(), service.name.clone());
                *endpoints = hosts.get(&key).map(|hosts| hosts.values().cloned().collect()).unwrap_or_default();
            }
            service
        };
        Some(Arc::new(services.iter().map(complete).collect()))
    }
}

/// Watches the imports that a leader wrote, and the slices of headless ones. Runs until nobody wants them any more.
pub async fn imports(client: Client, imports: watch::Sender<Imports>) {
    let unwanted = imports.clone();
    let ours = config().labels(&format!("{}={}", labels::MANAGED_BY, labels::MANAGED_BY_VALUE));
    let theirs =
        config().labels(&format!("{}={},{}", labels::MANAGED_BY, labels::MANAGED_BY_VALUE, labels::MCS_SERVICE));
    let known = Mutex::new(Known::default());
    let learn = |news: &dyn Fn(&mut Known)| {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        news(&mut known);
        changed(&imports, known.together());
    };
    let slices: Api<EndpointSlice> = Api::all(client.clone());
    let hosts = follow(slices, theirs, PACE, hosts_of, |all| {
        learn(&|known| known.hosts = Some(hosts(all.values())));
        !imports.is_closed()
    });
    let events = versioned(client, ours, service_imports()).map(|(_, event)| event).boxed();
    let services = keep(events, PACE, import, |all| {
        learn(&|known| known.services = Some(all.values().cloned().collect()));
        !imports.is_closed()
    });
    tokio::select! {
        () = services => {}
        () = hosts => {}
        () = unwanted.closed() => {}
    }
}

/// The endpoints in the slices of headless imports. A host that is there in both address families counts once.
fn hosts<'a>(slices: impl Iterator<Item = &'a (ServiceKey, Vec<HeadlessEndpoint>)>) -> Hosts {
    let mut all = Hosts::new();
    for (service, endpoints) in slices {
        let known = all.entry(service.clone()).or_default();
        for endpoint in endpoints {
            known.entry((endpoint.cluster.clone(), endpoint.name.clone())).or_insert_with(|| endpoint.clone());
        }
    }
    all
}

/// The endpoints with host names in one slice of an import, if there are any.
fn hosts_of(slice: &EndpointSlice) -> Option<(ServiceKey, Vec<HeadlessEndpoint>)> {
    let label = |name: &str| slice.labels().get(name);
    let service = ServiceName::parse(label(labels::MCS_SERVICE)?).ok()?;
    let cluster = ClusterName::parse(label(labels::MCS_CLUSTER)?).ok()?;
    let namespace = NamespaceName::parse(&slice.namespace()?).ok()?;
    let endpoints = slice.endpoints.iter().filter_map(|endpoint| {
        Some(HeadlessEndpoint {
            name: EndpointName::parse(endpoint.hostname.as_deref()?).ok()?,
            cluster: cluster.clone(),
            address: endpoint.addresses.first().and_then(|address| address.parse().ok()),
            ready: endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false)),
        })
    });
    let endpoints: Vec<_> = endpoints.collect();
    (!endpoints.is_empty()).then(|| (ServiceKey::new(namespace, service), endpoints))
}

/// One import as DNS shows it. The endpoints of a headless one stand in its slices.
fn import(object: &DynamicObject) -> Option<dns::Service> {
    let spec = object.data.get("spec")?;
    let list = |field: &str| spec.get(field).and_then(serde_json::Value::as_array).into_iter().flatten();
    let port = |port: &serde_json::Value| {
        let text = |field: &str| port.get(field).and_then(serde_json::Value::as_str);
        let protocol = Protocol::from_kubernetes(text("protocol").unwrap_or("TCP"))?;
        protocol.transport()?;
        Some(dns::Port {
            name: text("name").and_then(|name| PortName::parse(name).ok()),
            protocol,
            port: u16::try_from(port.get("port")?.as_u64()?).ok()?,
        })
    };
    let headless = spec.get("type").and_then(serde_json::Value::as_str) == Some("Headless");
    Some(dns::Service {
        name: ServiceName::parse(&object.name_any()).ok()?,
        namespace: NamespaceName::parse(&object.namespace()?).ok()?,
        zone: ZoneName::Clusterset,
        addresses: list("ips").filter_map(|ip| ip.as_str()?.parse().ok()).collect(),
        ports: list("ports").filter_map(port).collect(),
        headless: headless.then(Vec::new),
    })
}

fn config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE)
}

fn changed<T: PartialEq>(sender: &watch::Sender<T>, new: T) -> bool {
    sender.send_if_modified(|old| {
        let differs = *old != new;
        if differs {
            *old = new;
        }
        differs
    });
    !sender.is_closed()
}

/// Of all objects of a watch what somebody needs, by namespace and name.
type Needed<T> = BTreeMap<(Option<String>, String), T>;

/// [`keep`] for a kind that every API server serves in the same version.
async fn follow<K, T>(
    api: Api<K>,
    config: watcher::Config,
    pace: Duration,
    needed: impl Fn(&K) -> Option<T>,
    tell: impl FnMut(&Needed<T>) -> bool,
) where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    keep(watcher(api, config).backoff(Pause::default()).boxed(), pace, needed, tell).await;
}

/// Keeps of all objects of a watch what `needed` takes of them, and calls `tell` after each change once a list was complete,
/// until that says false. At most once in `pace`. The objects themselves are not kept: there may be tens of thousands.
async fn keep<K: Resource, T>(
    mut events: BoxStream<'static, watcher::Result<watcher::Event<K>>>,
    pace: Duration,
    needed: impl Fn(&K) -> Option<T>,
    mut tell: impl FnMut(&Needed<T>) -> bool,
) {
    let mut objects = Needed::new();
    let mut listing: Option<Needed<T>> = None;
    let (mut complete, mut told) = (false, false);
    let put = |objects: &mut Needed<T>, object: &K| {
        let key = (object.namespace(), object.name_any());
        match needed(object) {
            Some(needed) => drop(objects.insert(key, needed)),
            None => drop(objects.remove(&key)),
        }
    };
    while let Some(event) = events.next().await {
        let mut event = Some(event);
        // Whatever has come already counts together.
        while let Some(next) = event.take() {
            match next {
                Ok(watcher::Event::Init) => listing = Some(Needed::new()),
                Ok(watcher::Event::InitApply(object)) => put(listing.get_or_insert_default(), &object),
                Ok(watcher::Event::InitDone) => {
                    objects = listing.take().unwrap_or_default();
                    (complete, told) = (true, false);
                }
                Ok(watcher::Event::Apply(object)) => put(&mut objects, &object),
                Ok(watcher::Event::Delete(object)) => drop(objects.remove(&(object.namespace(), object.name_any()))),
                Err(error) => {
                    let kind = std::any::type_name::<K>().rsplit("::").next().unwrap_or_default();
                    let error = Clean(&error.to_string()).to_string();
                    // What is not known yet holds up more than what is a little old.
                    if !complete && !std::mem::replace(&mut told, true) {
                        tracing::warn!(
                            kind,
                            error,
                            "the API server does not list what this controller needs to begin; trying again"
                        );
                    } else {
                        tracing::debug!(kind, error, "a watch of the API server failed; trying again");
                    }
                }
            }
            event = futures::FutureExt::now_or_never(events.next()).flatten();
        }
        if complete && !tell(&objects) {
            return;
        }
        tokio::time::sleep(pace).await;
    }
}

/// The ports that mirrors have in the API server, so that a restart gives each the same.
///
/// # Errors
/// When the API server cannot be asked: starting without it could give a port of one name to another.
pub async fn ports(client: &Client, range: PortRange) -> kube::Result<Ports> {
    // Of each Service only what is needed: all of them at once would be the most that this program ever holds.
    let mut services = BTreeMap::new();
    pages(&Api::<Service>::all(client.clone()), &ours(), |service: Service| {
        // The slice of a headless mirror has the ports of its service, not those of the gateways.
        if service.spec.as_ref().is_none_or(|spec| spec.cluster_ip.as_deref() != Some("None")) {
            let key = (service.namespace(), service.name_any());
            services.insert(key, (name_of(&service), numbers(&service)));
        }
    })
    .await?;
    let mut ports = Ports::new(range);
    pages(&Api::<EndpointSlice>::all(client.clone()), &ours(), |slice: EndpointSlice| {
        let service = slice.labels().get(SERVICE_NAME_LABEL).cloned();
        let service = service.and_then(|name| services.get(&(slice.namespace(), name)));
        if let Some(((name, cluster), numbers)) = service {
            for (number, port) in given(numbers, &slice) {
                ports.remember(port_key(name, number), port, cluster.clone());
            }
        }
    })
    .await?;
    Ok(ports)
}

/// The DNS name that the Service of a mirror, or of one endpoint of it, stands for, and the cluster that causes it.
fn name_of(service: &Service) -> (String, ClusterName) {
    let label = |name: &str| service.labels().get(name).map(String::as_str);
    let namespace = service.namespace().unwrap_or_default();
    let (zone, name, cluster) = match label(labels::CLUSTER) {
        Some(cluster) => {
            let mirror = label(labels::MIRROR).map_or_else(|| service.name_any(), str::to_owned);
            (ZoneName::ClusterLocal, mirror, Some(cluster))
        }
        None => (ZoneName::Clusterset, label(labels::SERVICE).unwrap_or_default().to_owned(), label(labels::SOURCE)),
    };
    let host = match (label(labels::ENDPOINT), label(labels::SOURCE)) {
        (Some(endpoint), Some(source)) => format!("{endpoint}.{source}."),
        (Some(endpoint), None) => format!("{endpoint}."),
        (None, _) => String::new(),
    };
    // Which cluster's an import counts as is settled when the name is asked for.
    let cluster = cluster.and_then(|name| ClusterName::parse(name).ok()).unwrap_or_else(crate::reserved::clusterset);
    (format!("{host}{name}.{namespace}.{}", zone.service_suffix()), cluster)
}

/// Who exported what first, as ServiceImports from before a restart tell it. Nobody is known where none are served.
///
/// # Errors
/// When the API server cannot be asked: starting without it would make this cluster the first of all, and change every import
/// that clusters disagree about.
pub async fn seniority(client: &Client) -> kube::Result<Seniority> {
    let mut seniority = Seniority::default();
    let all = ours();
    for resource in service_imports() {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let listed = pages(&api, &all, |import: DynamicObject| {
            let parsed =
                ServiceKey::parse(&format!("{}/{}", import.namespace().unwrap_or_default(), import.name_any()));
            if let Ok(service) = parsed {
                seniority.remember(service, import::clusters(&import.data));
            }
        });
        match listed.await {
            Ok(()) => break,
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(seniority)
}

/// Everything with our label.
fn ours() -> ListParams {
    ListParams::default().labels(&format!("{}={}", labels::MANAGED_BY, labels::MANAGED_BY_VALUE)).limit(PAGE)
}

/// The Service's port numbers by name.
fn numbers(service: &Service) -> Vec<(String, u16)> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let number = |port: &ServicePort| Some((port.name.clone().unwrap_or_default(), u16::try_from(port.port).ok()?));
    ports.filter_map(number).collect()
}

/// A Service's port numbers with its slice's, joined by name as kube-proxy does.
fn given(numbers: &[(String, u16)], slice: &EndpointSlice) -> Vec<(u16, u16)> {
    let slice_port = |name: &str| {
        let mut ports = slice.ports.iter().flatten();
        ports.find(|port| port.name.as_deref().unwrap_or_default() == name)?.port
    };
    let given = |(name, number): &(String, u16)| Some((*number, u16::try_from(slice_port(name)?).ok()?));
    numbers.iter().filter_map(given).collect()
}

/// Lists page by page; what `each` does not keep of an object is gone with its page.
async fn pages<K>(api: &Api<K>, params: &ListParams, mut each: impl FnMut(K)) -> kube::Result<()>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut params = params.clone();
    loop {
        let page = api.list(&params).await?;
        let next = page.metadata.continue_.filter(|token| !token.is_empty());
        page.items.into_iter().for_each(&mut each);
        match next {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testkit::api_server;

    #[test]
    fn namespaces_that_are_not_named_count_as_absent() {
        let usable = |name: &str, going: bool, only: &[&str]| {
            let gone = going.then_some("2026-01-01T00:00:00Z");
            let namespace = json!({"metadata": {"name": name, "deletionTimestamp": gone}});
            let only: Vec<_> = only.iter().map(|name| name.parse().unwrap()).collect();
            is_usable(&serde_json::from_value(namespace).unwrap(), &only)
        };
        assert!(usable("shop", false, &[]) && usable("shop", false, &["bank", "shop"]));
        assert!(!usable("shop", false, &["bank"]) && !usable("shop", true, &["shop"]) && !usable("shop", true, &[]));
        assert!(usable("kube-system", false, &["bank"]), "never an empty set, which stands for an unknown one");
    }

    #[test]
    fn an_import_is_answered_as_its_object_says() {
        let object = |spec: serde_json::Value| -> DynamicObject {
            serde_json::from_value(json!({
                "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport",
                "metadata": {"namespace": "shop", "name": "web"}, "spec": spec,
            }))
            .unwrap()
        };
        let single = import(&object(json!({
            "type": "ClusterSetIP", "ips": ["10.96.0.7", "fd00::7"],
            "ports": [{"name": "http", "port": 80}, {"port": 53, "protocol": "UDP"}]
        })))
        .unwrap();
        assert_eq!((single.name.as_str(), single.namespace.as_str()), ("web", "shop"));
        assert_eq!((single.addresses.len(), single.ports.len(), single.headless), (2, 2, None));
        let headless = import(&object(json!({"type": "Headless", "ports": [{"port": 80}]}))).unwrap();
        assert_eq!((headless.addresses.len(), headless.headless), (0, Some(Vec::new())));
    }

    #[test]
    fn a_headless_import_has_the_hosts_in_its_slices() {
        let slice = |name: &str, labels: serde_json::Value, endpoints: serde_json::Value| -> EndpointSlice {
            serde_json::from_value(json!({
                "metadata": {"namespace": "shop", "name": name, "labels": labels}, "addressType": "IPv4", "endpoints": endpoints,
            }))
            .unwrap()
        };
        let of = |cluster: &str| json!({(labels::MCS_SERVICE): "cache", (labels::MCS_CLUSTER): cluster});
        let host = |name: &str, address: &str, ready: bool| json!({"hostname": name, "addresses": [address], "conditions": {"ready": ready}});
        let slices = [
            slice(
                "cache.b.ipv4",
                of("b"),
                json!([host("cache-0", "10.96.0.7", true), host("cache-1", "10.96.0.8", false)]),
            ),
            slice("cache.b.ipv6", of("b"), json!([host("cache-0", "fd00::7", true)])),
            slice("cache.c.ipv4", of("c"), json!([host("cache-0", "10.96.0.9", true)])),
            slice("other", json!({(labels::MCS_SERVICE): "cache"}), json!([host("cache-9", "10.96.0.10", true)])),
            slice("nameless", of("b"), json!([{"addresses": ["10.244.0.7"], "conditions": {}}])),
        ];
        let import = import(
            &serde_json::from_value(json!({
                "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport",
                "metadata": {"namespace": "shop", "name": "cache"}, "spec": {"type": "Headless", "ports": [{"port": 80}]},
            }))
            .unwrap(),
        );
        let mut known = Known { services: Some(vec![import.unwrap()]), hosts: None };
        assert_eq!(known.together(), None, "half of it would be names without addresses");
        known.hosts = Some(hosts(slices.iter().filter_map(hosts_of).collect::<Vec<_>>().iter()));
        let all = known.together().unwrap();
        let told: Vec<_> = all[0].headless.iter().flatten().collect();
        let told: Vec<_> = told
            .iter()
            .map(|host| format!("{}.{} {} {}", host.name, host.cluster, host.address.unwrap(), host.ready))
            .collect();
        assert_eq!(told, ["cache-0.b 10.96.0.7 true", "cache-1.b 10.96.0.8 false", "cache-0.c 10.96.0.9 true"]);
    }

    #[test]
    fn a_service_of_ours_tells_the_name_that_it_stands_for() {
        let name = |name: &str, labels: &[(&str, &str)]| {
            let labels: BTreeMap<_, _> = labels.iter().copied().collect();
            let service: Service =
                serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": name, "labels": labels}}))
                    .unwrap();
            let (name, cluster) = name_of(&service);
            format!("{name} {cluster}")
        };
        let (service, cluster, endpoint) = (labels::SERVICE, labels::CLUSTER, labels::ENDPOINT);
        assert_eq!(name("web-west", &[(service, "web"), (cluster, "west")]), "web-west.shop.svc.cluster.local west");
        assert_eq!(name("web-clusterset", &[(service, "web")]), "web.shop.svc.clusterset.local clusterset");
        assert_eq!(
            name(
                "cache-0-west",
                &[(service, "cache"), (cluster, "west"), (labels::MIRROR, "cache-west"), (endpoint, "cache-0")]
            ),
            "cache-0.cache-west.shop.svc.cluster.local west"
        );
        assert_eq!(
            name("cache-0-x-clusterset", &[(service, "cache"), (labels::SOURCE, "west"), (endpoint, "cache-0")]),
            "cache-0.west.cache.shop.svc.clusterset.local west"
        );
    }

    /// An API server that serves the older version alone knows nothing of the other one.
    #[tokio::test(start_paused = true)]
    async fn imports_are_read_in_the_version_that_is_served() {
        for served in ["v1alpha1", "v1beta1"] {
            let client = api_server(move |path, _| {
                let items = match path {
                    "/apis/discovery.k8s.io/v1/endpointslices" => json!([]),
                    _ if path == format!("/apis/multicluster.x-k8s.io/{served}/serviceimports") => json!([{
                        "apiVersion": format!("multicluster.x-k8s.io/{served}"), "kind": "ServiceImport",
                        "metadata": {"namespace": "shop", "name": "web"},
                        "spec": {"type": "ClusterSetIP", "ips": ["10.96.0.7"], "ports": [{"port": 80}]},
                    }]),
                    _ => return (404, json!({"message": "the server could not find the requested resource"})),
                };
                (200, json!({"metadata": {"resourceVersion": "1"}, "items": items}))
            });
            let (sender, mut known) = watch::channel(Imports::default());
            drop(linkspan_runtime::task::spawn("test", imports(client, sender)));
            let known = tokio::time::timeout(Duration::from_secs(5), known.wait_for(Option::is_some)).await;
            let known = known.expect("an answer").unwrap().clone().unwrap();
            assert_eq!(known.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), ["web"], "{served}");
        }
    }

    #[test]
    fn ports_are_joined_by_name() {
        let service: Service = serde_json::from_value(json!({
            "spec": {"ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "https", "port": 443}]}
        }))
        .unwrap();
        let slice: EndpointSlice = serde_json::from_value(json!({
            "addressType": "IPv4", "endpoints": [],
            "ports": [{"name": "https", "port": 10443}, {"name": "http", "port": 10080}]
        }))
        .unwrap();
        assert_eq!(given(&numbers(&service), &slice), [(80, 10080), (443, 10443)]);
    }

    /// An API server that has too much to do must not make this cluster the oldest of all.
    #[tokio::test]
    async fn who_exported_first_is_not_guessed_when_nobody_answers() {
        let import = json!({
            "metadata": {"namespace": "shop", "name": "web"}, "status": {"clusters": [{"cluster": "west"}, {"cluster": "east"}]},
        });
        let told = |newer: u16, older: u16| {
            let client = api_server(move |path, _| {
                let code = if path.contains("v1beta1") { newer } else { older };
                (code, json!({"metadata": {}, "items": [import.clone()]}))
            });
            async move { seniority(&client).await }
        };
        let mut known = Seniority::default();
        known.remember(ServiceKey::parse("shop/web").unwrap(), ["west", "east"].map(crate::testkit::cluster).into());
        for (newer, older) in [(200, 500), (404, 200)] {
            assert_eq!(told.clone()(newer, older).await.unwrap(), known);
        }
        assert_eq!(told.clone()(404, 404).await.unwrap(), Seniority::default(), "none is served");
        assert!(told.clone()(429, 200).await.is_err());
        assert!(told(404, 500).await.is_err());
    }
}
