//! What the mirrors in the API server tell of the catalogues that they were made from. A controller that has just won the lease
//! and cannot hear a peer yet, whose controllers may be down while its gateways serve on, takes this for the peer's last word: or
//! its own gateways would be told to close mirrors that work. It counts as outdated, so nothing is deleted by it; and what the
//! peer has removed when it is heard is what is missing from this, so that a mass removal waits under a new leader too.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use kube::api::{Api, DynamicObject};
use kube::{Client, ResourceExt};
use linkspan_proto::exchange::{CatalogueEntry, CataloguePort, Details, Protocol};
use linkspan_proto::metadata::is_owned;
use linkspan_proto::names::{ClusterName, EndpointName, Namespace, PortName, ServiceKey, ServiceName};
use serde::Deserialize;
use serde_json::Value;

use super::{ours, pages};
use crate::exchange::store::Standing;
use crate::labels;
use crate::watch::kubernetes::service_imports;

/// A service of a peer.
type Id = (ClusterName, ServiceKey);

/// Reads it.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn standing(client: &Client) -> kube::Result<Standing> {
    let mut entries: BTreeMap<Id, CatalogueEntry> = BTreeMap::new();
    let mut endpoints: BTreeMap<Id, Vec<(EndpointName, bool)>> = BTreeMap::new();
    pages(&Api::<Service>::all(client.clone()), &ours(), |service: Service| {
        let label = |name: &str| service.labels().get(name).map(String::as_str);
        let Some(id) = whose(&service) else { return };
        match label(labels::ENDPOINT).map(EndpointName::parse) {
            Some(Ok(endpoint)) => endpoints.entry(id).or_default().push((endpoint, true)),
            Some(Err(_)) => {}
            None => drop(entries.insert(id.clone(), entry(id.1, &service))),
        }
    })
    .await?;
    let imports = imports(client).await?;
    // Where the name of a mirror is somebody else's, the import alone tells of the peer.
    for (service, import) in &imports {
        for cluster in &import.clusters {
            entries.entry((cluster.clone(), service.clone())).or_insert_with(|| import.entry(service));
        }
    }
    let mut standing = Standing::new();
    for ((cluster, service), mut entry) in entries {
        if entry.headless {
            entry.endpoints = endpoints.remove(&(cluster.clone(), service.clone())).unwrap_or_default();
            // The mirror has them, and the import.
            entry.endpoints.sort_unstable();
            entry.endpoints.dedup();
        }
        // Whose word counts said what the import says; what another one said differs only in what is not shown.
        let annotations = std::mem::take(&mut entry.details.annotations);
        let details = imports.get(&service).map(|import| import.details.clone());
        entry.details = Details { annotations, ..details.unwrap_or_default() };
        standing.entry(cluster).or_default().insert(service, Arc::new(entry));
    }
    Ok(standing)
}

/// The peer and its service that a Service is a mirror of, or that has the endpoint that it is for.
fn whose(service: &Service) -> Option<Id> {
    let label = |name: &str| service.labels().get(name);
    let cluster = ClusterName::parse(label(labels::CLUSTER).or_else(|| label(labels::SOURCE))?).ok()?;
    let namespace = Namespace::parse(&service.namespace()?).ok()?;
    let name = ServiceName::parse(label(labels::SERVICE)?).ok()?;
    Some((cluster, ServiceKey::new(namespace, name)))
}

fn entry(key: ServiceKey, service: &Service) -> CatalogueEntry {
    let spec = service.spec.clone().unwrap_or_default();
    CatalogueEntry {
        service: key,
        headless: spec.cluster_ip.as_deref() == Some("None"),
        ports: ports(spec.ports.unwrap_or_default()),
        endpoints: Vec::new(),
        labels: theirs(service.labels()),
        details: Details { annotations: theirs(service.annotations()), ..Details::default() },
    }
}

fn ports(ports: Vec<ServicePort>) -> Vec<CataloguePort> {
    let port = |port: ServicePort| {
        Some(CataloguePort {
            port: u16::try_from(port.port).ok()?,
            name: port.name.and_then(|name| PortName::parse(&name).ok()),
            protocol: Protocol::from_kubernetes(port.protocol.as_deref().unwrap_or("TCP"))?,
            app_protocol: port.app_protocol,
            // It is there; how many there are the peer will say.
            ready: 1,
            total: None,
        })
    };
    ports.into_iter().filter_map(port).collect()
}

/// Without what no peer can have said.
fn theirs(all: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    all.iter().filter(|(key, _)| !is_owned(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// What an import says of its service.
struct Import {
    clusters: Vec<ClusterName>,
    headless: bool,
    ports: Vec<ServicePort>,
    details: Details,
}

impl Import {
    fn new(import: &DynamicObject) -> Self {
        let at = |path: &str| import.data.pointer(path);
        let text = |path: &str| at(path).and_then(Value::as_str);
        let clusters = at("/status/clusters").and_then(Value::as_array).into_iter().flatten();
        let seconds = at("/spec/sessionAffinityConfig/clientIP/timeoutSeconds").and_then(Value::as_u64);
        Self {
            clusters: clusters
                .filter_map(|cluster| ClusterName::parse(cluster.get("cluster")?.as_str()?).ok())
                .collect(),
            headless: text("/spec/type") == Some("Headless"),
            ports: at("/spec/ports").and_then(|ports| Vec::deserialize(ports).ok()).unwrap_or_default(),
            details: Details {
                annotations: BTreeMap::new(),
                exported_labels: theirs(import.labels()),
                exported_annotations: theirs(import.annotations()),
                affinity_seconds: seconds.and_then(|seconds| u32::try_from(seconds).ok()),
                local_traffic: text("/spec/internalTrafficPolicy") == Some("Local"),
                traffic_distribution: text("/spec/trafficDistribution").map(str::to_owned),
            },
        }
    }

    /// What each of its clusters exports, as far as can be told.
    fn entry(&self, service: &ServiceKey) -> CatalogueEntry {
        CatalogueEntry {
            service: service.clone(),
            headless: self.headless,
            ports: ports(self.ports.clone()),
            endpoints: Vec::new(),
            labels: BTreeMap::new(),
            details: Details::default(),
        }
    }
}

/// What the imports say of each service.
async fn imports(client: &Client) -> kube::Result<BTreeMap<ServiceKey, Import>> {
    let mut all = BTreeMap::new();
    let params = ours();
    for resource in service_imports() {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let listed = pages(&api, &params, |import: DynamicObject| {
            let key = ServiceKey::parse(&format!("{}/{}", import.namespace().unwrap_or_default(), import.name_any()));
            if let Ok(service) = key {
                all.insert(service, Import::new(&import));
            }
        });
        match listed.await {
            Ok(()) => break,
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testkit::{api_server, cluster, key};

    #[tokio::test]
    async fn mirrors_tell_what_they_were_made_from() {
        let ours = |more: Value| {
            let mut all = json!({labels::MANAGED_BY: labels::MANAGED_BY_VALUE});
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        let of = |service: &str| json!({labels::CLUSTER: "west", labels::SERVICE: service});
        let mut endpoint = of("cache");
        endpoint[labels::MIRROR] = json!("cache-west");
        endpoint[labels::ENDPOINT] = json!("cache-0");
        let also = json!({labels::SOURCE: "west", labels::SERVICE: "cache", labels::ENDPOINT: "cache-0"});
        let mut web = of("web");
        web["tier"] = json!("gold");
        let source =
            |cluster: &str| json!({labels::SOURCE: cluster, labels::SERVICE: "taken", labels::ENDPOINT: "db-0"});
        let service = |name: &str, labels: Value, ip: &str, ports: Value| {
            json!({
                "metadata": {"namespace": "shop", "name": name, "labels": ours(labels)},
                "spec": {"clusterIP": ip, "ports": ports},
            })
        };
        let port = json!([{"name": "http", "port": 80, "protocol": "TCP", "appProtocol": "http"}]);
        let services = json!([
            service("web-west", web, "10.96.0.1", port.clone()),
            service("cache-west", of("cache"), "None", port.clone()),
            service("cache-0-west", endpoint, "10.96.0.2", port.clone()),
            service("web-clusterset", json!({labels::SERVICE: "web"}), "10.96.0.3", port.clone()),
            service("taken-db-0-east", source("east"), "10.96.0.4", port.clone()),
            service("taken-db-0-west", source("west"), "10.96.0.5", port.clone()),
            service("cache-0-clusterset", also, "10.96.0.6", port),
        ]);
        let import = |name: &str, labels: Value, spec: Value| {
            let clusters = json!([{"cluster": "east"}, {"cluster": "west"}]);
            let metadata = json!({"namespace": "shop", "name": name, "labels": ours(labels)});
            json!({"metadata": metadata, "spec": spec, "status": {"clusters": clusters}})
        };
        let web = json!({"type": "ClusterSetIP", "internalTrafficPolicy": "Local", "ports": [{"port": 81}],
                         "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10}}});
        // The mirrors of this one would have names that others have.
        let taken = json!({"type": "Headless", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]});
        let imports = json!([import("web", json!({"team": "a"}), web), import("taken", json!({}), taken)]);
        let client = api_server(move |path, _| {
            let items = if path.ends_with("/serviceimports") { &imports } else { &services };
            (200, json!({"metadata": {}, "items": items}))
        });
        let standing = standing(&client).await.unwrap();
        let west = &standing[&cluster("west")];
        assert_eq!((standing.len(), west.len()), (2, 3));
        let web = &west[&key("shop/web")];
        assert_eq!((web.headless, web.ports[0].port, web.ports[0].app_protocol.as_deref()), (false, 80, Some("http")));
        assert_eq!(web.labels, [("tier".to_owned(), "gold".to_owned())].into());
        assert_eq!((web.details.affinity_seconds, web.details.local_traffic), (Some(10), true));
        assert_eq!(web.details.exported_labels, [("team".to_owned(), "a".to_owned())].into());
        let cache = &west[&key("shop/cache")];
        assert_eq!((cache.headless, cache.endpoints.len(), cache.endpoints[0].0.as_str()), (true, 1, "cache-0"));
        let taken = &west[&key("shop/taken")];
        assert_eq!((taken.headless, taken.ports[0].port, taken.endpoints[0].0.as_str()), (true, 5432, "db-0"));
    }
}
