//! The objects that stand for a mirror, in the shape of Kubernetes. Pure.
//!
//! Everything is built from [`Wanted`], field by field: what a peer may say (ports, protocols, labels and annotations that
//! command nobody) and what is ours (names, addresses, our labels). Nothing is copied as a whole, so nothing else can slip in (S-39).

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use linkspan_proto::manifest;
use linkspan_proto::names::ClusterName;
use serde::Serialize;

use super::desired::{Host, MirrorId, Port, Shape, Wanted};
use crate::labels;

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// `v1` Service.
    Service(Box<Service>),
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice(Box<EndpointSlice>),
    /// `multicluster.x-k8s.io` ServiceImport.
    ServiceImport(Box<ServiceImport>),
}

/// A ServiceImport of the multi-cluster services API.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceImport {
    api_version: &'static str,
    kind: &'static str,
    metadata: ObjectMeta,
    spec: ServiceImportSpec,
    status: ServiceImportStatus,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceImportSpec {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ip_families: Vec<&'static str>,
    ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct ServiceImportStatus {
    clusters: Vec<ImportCluster>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct ImportCluster {
    cluster: ClusterName,
}

/// The objects of one mirror.
#[must_use]
pub fn objects(wanted: &Wanted) -> Vec<Object> {
    match &wanted.id {
        MirrorId::Cluster { .. } => {
            let mut objects = vec![Object::Service(Box::new(service(wanted)))];
            match &wanted.shape {
                Shape::Single { front, .. } => {
                    let endpoints = front.address().into_iter().map(|address| endpoint(address, None, true));
                    objects.push(slice(wanted, &wanted.object.name, endpoints.collect(), None));
                }
                Shape::Headless { hosts } => objects.push(slice(
                    wanted,
                    &wanted.object.name,
                    hosts.iter().filter_map(host_endpoint).collect(),
                    None,
                )),
            }
            objects
        }
        MirrorId::Clusterset { .. } => {
            let mut objects = vec![Object::ServiceImport(Box::new(import(wanted)))];
            if let Shape::Headless { hosts } = &wanted.shape {
                // One cluster a slice, as the multi-cluster services API has it.
                let mut by_cluster: BTreeMap<&ClusterName, Vec<Endpoint>> = BTreeMap::new();
                for host in hosts {
                    by_cluster.entry(&host.cluster).or_default().extend(host_endpoint(host));
                }
                for (cluster, endpoints) in by_cluster {
                    let name = format!("{}-{cluster}", wanted.object.name);
                    objects.push(slice(wanted, &name, endpoints, Some(cluster)));
                }
            }
            objects
        }
    }
}

/// The objects as one YAML text.
///
/// # Errors
/// When an object has no form in YAML, which these always have.
pub fn yaml(objects: &[Object]) -> Result<String, manifest::YamlError> {
    let mut text = String::from("# Made by the Linkspan mirror controller. Changes are overwritten.\n");
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            text += "---\n";
        }
        text += &match object {
            Object::Service(object) => manifest::to_yaml(object)?,
            Object::EndpointSlice(object) => manifest::to_yaml(object)?,
            Object::ServiceImport(object) => manifest::to_yaml(object)?,
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

/// Labels and annotations of the service, and our labels, which no peer can override.
fn metadata(wanted: &Wanted, name: &str, more: &[(&str, &str)]) -> ObjectMeta {
    let mut all = wanted.labels.clone();
    let service = wanted.id.service().name.as_str();
    let ours = [(labels::MANAGED_BY, labels::MANAGED_BY_VALUE), (labels::SERVICE, service)];
    let cluster = match &wanted.id {
        MirrorId::Cluster { cluster, .. } => Some((labels::CLUSTER, cluster.as_str())),
        MirrorId::Clusterset { .. } => None,
    };
    for (key, value) in ours.iter().copied().chain(cluster).chain(more.iter().copied()) {
        all.insert(key.to_owned(), value.to_owned());
    }
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(wanted.object.namespace.to_string()),
        labels: Some(all),
        annotations: Some(wanted.annotations.clone()).filter(|all| !all.is_empty()),
        ..ObjectMeta::default()
    }
}

fn service(wanted: &Wanted) -> Service {
    let cluster_ip = match &wanted.shape {
        Shape::Single { front, .. } => front.address().map(|address| address.to_string()),
        Shape::Headless { .. } => Some("None".to_owned()),
    };
    Service {
        metadata: metadata(wanted, wanted.object.name.as_str(), &[]),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip,
            ports: Some(wanted.ports.iter().map(service_port).collect()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn import(wanted: &Wanted) -> ServiceImport {
    let (kind, ips) = match &wanted.shape {
        Shape::Single { front, .. } => ("ClusterSetIP", front.address().into_iter().collect::<Vec<_>>()),
        Shape::Headless { .. } => ("Headless", Vec::new()),
    };
    ServiceImport {
        api_version: "multicluster.x-k8s.io/v1alpha1",
        kind: "ServiceImport",
        metadata: metadata(wanted, wanted.object.name.as_str(), &[]),
        spec: ServiceImportSpec {
            kind,
            ip_families: ips.iter().map(family).collect(),
            ips,
            ports: wanted.ports.iter().map(service_port).collect(),
        },
        status: ServiceImportStatus {
            clusters: wanted.clusters.iter().map(|cluster| ImportCluster { cluster: cluster.clone() }).collect(),
        },
    }
}

fn service_port(port: &Port) -> ServicePort {
    ServicePort {
        port: i32::from(port.number),
        name: port.name.as_ref().map(ToString::to_string),
        protocol: Some(port.protocol.as_str().to_owned()),
        app_protocol: port.app_protocol.clone(),
        ..ServicePort::default()
    }
}

fn slice(wanted: &Wanted, name: impl AsRef<str>, endpoints: Vec<Endpoint>, source: Option<&ClusterName>) -> Object {
    let owner = wanted.object.name.as_str();
    let mut more = vec![(labels::SLICE_MANAGED_BY, labels::SLICE_MANAGED_BY_VALUE)];
    match source {
        Some(cluster) => more.extend([(labels::MCS_SERVICE, owner), (labels::MCS_CLUSTER, cluster.as_str())]),
        None => more.push((linkspan_proto::resources::SERVICE_NAME_LABEL, owner)),
    }
    let family = endpoints
        .first()
        .and_then(|endpoint| endpoint.addresses.first()?.parse().ok())
        .map_or("IPv4", |address| family(&address));
    Object::EndpointSlice(Box::new(EndpointSlice {
        address_type: family.to_owned(),
        endpoints,
        metadata: metadata(wanted, name.as_ref(), &more),
        ports: Some(
            wanted
                .ports
                .iter()
                .map(|port| EndpointPort {
                    port: Some(i32::from(port.number)),
                    name: Some(port.name.as_ref().map_or_else(String::new, ToString::to_string)),
                    protocol: Some(port.protocol.as_str().to_owned()),
                    app_protocol: port.app_protocol.clone(),
                })
                .collect(),
        ),
    }))
}

fn host_endpoint(host: &Host) -> Option<Endpoint> {
    Some(endpoint(host.front.address()?, Some(host.endpoint.to_string()), host.ready))
}

fn endpoint(address: IpAddr, hostname: Option<String>, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname,
        ..Endpoint::default()
    }
}

const fn family(address: &IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}
