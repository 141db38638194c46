//! The objects that stand for mirrors: Services, EndpointSlices and ServiceImports that carry the controller's label.

use std::collections::BTreeMap;
use std::net::IpAddr;

use linkspan_mirror_controller::labels;
use serde_json::{Value, json};

use super::api::{Api, ApiError, labelled};
use super::read_all;
use crate::client::facts::Front;
use crate::client::status::Status;

/// What there is.
#[derive(Debug, Default)]
pub(crate) struct MirrorObjects {
    /// Mirrored Services, those that carry the address of an import among them.
    pub(crate) services: Vec<MirrorService>,
    imports: Vec<Value>,
}

/// One mirrored Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MirrorService {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// The cluster it is a mirror of; none where it stands for all clusters.
    pub(crate) cluster: Option<String>,
    /// The name of the service in the clusters that export it.
    pub(crate) service: String,
    /// Its ports.
    pub(crate) ports: Vec<u16>,
    /// Whether it selects pods, which no mirror does.
    pub(crate) selects: bool,
    /// Whether it has no address, since clients choose among the endpoints.
    pub(crate) headless: bool,
    /// The name of the one endpoint of a headless service that it stands for, as clients use it.
    pub(crate) endpoint: Option<String>,
    addresses: Vec<IpAddr>,
    conditions: Value,
}

impl MirrorService {
    fn of(object: &Value) -> Option<Self> {
        let metadata = &object["metadata"];
        let label = |name: &str| metadata["labels"][name].as_str().map(ToOwned::to_owned);
        let spec = &object["spec"];
        let (namespace, service) = (metadata["namespace"].as_str()?.to_owned(), label(labels::SERVICE)?);
        let endpoint = label(labels::ENDPOINT).and_then(|endpoint| match label(labels::MIRROR) {
            Some(mirror) => Some(format!("{endpoint}.{}", cluster_local(&mirror, &namespace))),
            None => Some(format!("{endpoint}.{}.{}", label(labels::SOURCE)?, clusterset(&service, &namespace))),
        });
        Some(Self {
            name: metadata["name"].as_str()?.to_owned(),
            cluster: label(labels::CLUSTER),
            headless: spec["clusterIP"] == "None" || spec["clusterIPs"][0] == "None",
            endpoint,
            namespace,
            service,
            ports: spec["ports"].as_array().into_iter().flatten().filter_map(port).collect(),
            selects: spec["selector"].as_object().is_some_and(|selector| !selector.is_empty()),
            addresses: addresses(&spec["clusterIPs"]),
            conditions: object["status"]["conditions"].clone(),
        })
    }

    /// The name by which clients know it.
    pub(crate) fn hostname(&self) -> String {
        match (&self.endpoint, &self.cluster) {
            (Some(name), _) => name.clone(),
            (None, Some(_)) => cluster_local(&self.name, &self.namespace),
            (None, None) => clusterset(&self.service, &self.namespace),
        }
    }
}

fn cluster_local(name: &str, namespace: &str) -> String {
    format!("{name}.{namespace}.svc.cluster.local")
}

fn clusterset(service: &str, namespace: &str) -> String {
    format!("{service}.{namespace}.svc.clusterset.local")
}

fn port(port: &Value) -> Option<u16> {
    u16::try_from(port["port"].as_u64()?).ok()
}

/// Headless Services say `None` here.
fn addresses(list: &Value) -> Vec<IpAddr> {
    list.as_array().into_iter().flatten().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

/// What marks the controller's objects.
pub(crate) const OURS: [(&str, &str); 1] = [(labels::MANAGED_BY, labels::MANAGED_BY_VALUE)];

/// Lists them.
pub(super) async fn read(api: &Api) -> anyhow::Result<MirrorObjects> {
    let ours = labelled(&OURS);
    let services = api.list("/api/v1/services", &ours).await?;
    let imports = imports(api, &ours).await?;
    Ok(MirrorObjects { services: services.iter().filter_map(MirrorService::of).collect(), imports })
}

/// In the version that is served. Where neither is, nothing is imported.
async fn imports(api: &Api, ours: &str) -> Result<Vec<Value>, ApiError> {
    for version in ["v1beta1", "v1alpha1"] {
        match api.list(&format!("/apis/multicluster.x-k8s.io/{version}/serviceimports"), ours).await {
            Err(ApiError::NotFound(_)) => {}
            listed => return listed,
        }
    }
    Ok(Vec::new())
}

impl MirrorObjects {
    /// Where clients reach each mirrored name.
    pub(crate) fn fronts(&self) -> BTreeMap<String, Front> {
        let services =
            self.services.iter().map(|service| (service.hostname(), Front { addresses: service.addresses.clone() }));
        // An import knows its address later than the Service behind it, and says the same then.
        let imports = self.imports.iter().filter_map(|import| {
            let name = clusterset(import["metadata"]["name"].as_str()?, import["metadata"]["namespace"].as_str()?);
            let addresses = addresses(&import["spec"]["ips"]);
            (!addresses.is_empty()).then_some((name, Front { addresses }))
        });
        services.chain(imports).collect()
    }

    /// Their conditions, by the names that clients use.
    pub(crate) fn statuses(&self) -> Vec<Status> {
        let status = |namespace: &str, name: &str, hostname: String, service: &str, conditions: &Value| {
            let conditions = if conditions.is_array() { conditions.clone() } else { json!([]) };
            json!({
                "kind": "Mirror",
                "metadata": { "namespace": namespace, "name": name },
                "status": {
                    "conditions": conditions,
                    "hostname": hostname,
                    "service": format!("{namespace}/{service}"),
                },
            })
        };
        // An endpoint shares the conditions of its service.
        let whole = self.services.iter().filter(|service| service.cluster.is_some() && service.endpoint.is_none());
        let services = whole.map(|service| {
            status(&service.namespace, &service.name, service.hostname(), &service.service, &service.conditions)
        });
        let imports = self.imports.iter().filter_map(|import| {
            let (namespace, name) = (import["metadata"]["namespace"].as_str()?, import["metadata"]["name"].as_str()?);
            Some(status(namespace, name, clusterset(name, namespace), name, &import["status"]["conditions"]))
        });
        read_all(services.chain(imports).collect())
    }
}
