//! The objects that stand for a mirror in an API server. Pure.
//!
//! ```text
//! web of west            Service web-west (ClusterIP of the API server's choice, no selector)
//!                        EndpointSlices web-west-linkspan-{ipv4,ipv6}: ready gateway pods, and the port given to each port
//! web of the clusterset  the same under the name web-clusterset, and ServiceImport web with that Service's ClusterIPs
//! ```
//!
//! Everything is built from [`Wanted`], field by field; the only addresses are those of this cluster's own ready gateway
//! pods (S-38), and of the API server's own ClusterIPs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use linkspan_proto::exchange::Protocol;
use linkspan_proto::names::{ServiceKey, mirror_name};
use serde_json::{Map, Value, json};

use super::super::desired::{MirrorId, Port, Shape, Wanted};
use super::super::front::Front;
use crate::labels;

/// The ready gateway pods of this cluster, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateways(Vec<IpAddr>);

/// Which resource of the API an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `multicluster.x-k8s.io/v1beta1` ServiceImport.
    ServiceImport,
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Which resource.
    pub resource: Resource,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// An object as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// Where.
    pub reference: Reference,
    /// What.
    pub value: Value,
}

impl Gateways {
    /// Sorted, without repetition.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut addresses: Vec<_> = addresses.into_iter().collect();
        addresses.sort_unstable();
        addresses.dedup();
        Self(addresses)
    }

    /// Those of one family.
    fn of(&self, family: Family) -> impl Iterator<Item = &IpAddr> {
        self.0.iter().filter(move |address| Family::of(address) == family)
    }

    /// How many pods are ready, by address.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no gateway is ready.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const ALL: [Self; 2] = [Self::V4, Self::V6];

    const fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// As a part of a name.
    const fn word(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

impl Resource {
    /// All of them, in the order in which the objects of one mirror are written.
    pub const ALL: [Self; 3] = [Self::Service, Self::EndpointSlice, Self::ServiceImport];

    /// `apiVersion` and `kind`.
    #[must_use]
    pub const fn type_meta(self) -> (&'static str, &'static str) {
        match self {
            Self::Service => ("v1", "Service"),
            Self::EndpointSlice => ("discovery.k8s.io/v1", "EndpointSlice"),
            Self::ServiceImport => ("multicluster.x-k8s.io/v1beta1", "ServiceImport"),
        }
    }
}

/// The Service that stands for a mirror: for a peer's service the mirror itself, for a clusterset import the Service that
/// carries its address.
#[must_use]
pub fn service_of(wanted: &Wanted) -> ServiceKey {
    match &wanted.id {
        MirrorId::Cluster { .. } => wanted.object.clone(),
        MirrorId::Clusterset { service } => clusterset_service(service),
    }
}

/// The Service behind the import of `service`. No cluster may have the name `clusterset`, so it is nobody's mirror.
#[must_use]
pub fn clusterset_service(service: &ServiceKey) -> ServiceKey {
    let name = mirror_name(&service.name, &crate::reserved::clusterset(), &std::collections::BTreeSet::new());
    ServiceKey::new(service.namespace.clone(), name)
}

/// The objects of a mirror, in the order in which they are written; the import is not among them, see [`import`].
#[must_use]
pub fn objects(wanted: &Wanted, gateways: &Gateways) -> Vec<Rendered> {
    match &wanted.shape {
        Shape::Single { front: Front::Ports(ports), .. } => {
            let service = service_of(wanted);
            let mut objects = vec![service_object(wanted, &service, false)];
            objects
                .extend(Family::ALL.into_iter().filter_map(|family| slice(wanted, &service, gateways, family, ports)));
            objects
        }
        // A front with an address of its own is a site's.
        Shape::Single { front: Front::Address(_), .. } => Vec::new(),
        Shape::Headless { .. } => vec![service_object(wanted, &service_of(wanted), true)],
    }
}

/// The ServiceImport of a clusterset mirror, with the addresses that the API server gave its Service.
#[must_use]
pub fn import(wanted: &Wanted, ips: &[IpAddr]) -> Option<Rendered> {
    let MirrorId::Clusterset { service } = &wanted.id else { return None };
    let kind = if matches!(wanted.shape, Shape::Headless { .. }) { "Headless" } else { "ClusterSetIP" };
    let mut spec = json!({ "type": kind, "ports": wanted.ports.iter().map(import_port).collect::<Vec<_>>() });
    if let (Some(spec), "ClusterSetIP") = (spec.as_object_mut(), kind) {
        spec.insert("ips".to_owned(), json!(ips));
        let families: Vec<_> = ips.iter().map(|ip| Family::of(ip).as_str()).collect();
        spec.insert("ipFamilies".to_owned(), json!(families));
    }
    Some(rendered(
        Resource::ServiceImport,
        service,
        service.name.as_str(),
        metadata_labels(wanted),
        json!({ "spec": spec }),
    ))
}

/// The status of a ServiceImport: which clusters are behind it, and that it can be used.
#[must_use]
pub fn import_status(wanted: &Wanted) -> Option<Rendered> {
    let MirrorId::Clusterset { service } = &wanted.id else { return None };
    let clusters: Vec<_> = wanted.clusters.iter().map(|cluster| json!({ "cluster": cluster })).collect();
    let value = json!({ "status": { "clusters": clusters } });
    Some(rendered(Resource::ServiceImport, service, service.name.as_str(), BTreeMap::new(), value))
}

fn service_object(wanted: &Wanted, service: &ServiceKey, headless: bool) -> Rendered {
    let mut spec = json!({ "type": "ClusterIP", "ports": wanted.ports.iter().map(service_port).collect::<Vec<_>>() });
    if let (Some(spec), true) = (spec.as_object_mut(), headless) {
        spec.insert("clusterIP".to_owned(), json!("None"));
    }
    rendered(Resource::Service, service, service.name.as_str(), metadata_labels(wanted), json!({ "spec": spec }))
}

/// `None` where no gateway has an address of that family: a slice without endpoints says nothing.
fn slice(
    wanted: &Wanted,
    service: &ServiceKey,
    gateways: &Gateways,
    family: Family,
    ports: &BTreeMap<u16, u16>,
) -> Option<Rendered> {
    let endpoints: Vec<_> =
        gateways.of(family).map(|address| json!({ "addresses": [address], "conditions": { "ready": true } })).collect();
    // Without any gateway one slice stays, so that the Service is seen to have no endpoints rather than to be forgotten.
    if endpoints.is_empty() && !(gateways.is_empty() && family == Family::V4) {
        return None;
    }
    let mut labels = metadata_labels(wanted);
    labels.insert(labels::SLICE_MANAGED_BY.to_owned(), labels::SLICE_MANAGED_BY_VALUE.to_owned());
    labels.insert(linkspan_proto::resources::SERVICE_NAME_LABEL.to_owned(), service.name.to_string());
    let ports: Vec<_> = wanted
        .ports
        .iter()
        .filter(|port| port.protocol == Protocol::Tcp)
        .filter_map(|port| {
            let mut object = port_base(port);
            object.insert("name".to_owned(), json!(port_name(port)));
            object.insert("port".to_owned(), json!(ports.get(&port.number)?));
            Some(Value::Object(object))
        })
        .collect();
    let name = format!("{}-linkspan-{}", service.name, family.word());
    let value = json!({ "addressType": family.as_str(), "endpoints": endpoints, "ports": ports });
    Some(rendered(Resource::EndpointSlice, service, &name, labels, value))
}

fn port_name(port: &Port) -> &str {
    port.name.as_ref().map_or("", |name| name.as_str())
}

fn port_base(port: &Port) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("protocol".to_owned(), json!(port.protocol.as_str()));
    if let Some(protocol) = &port.app_protocol {
        object.insert("appProtocol".to_owned(), json!(protocol));
    }
    object
}

fn import_port(port: &Port) -> Value {
    let mut object = port_base(port);
    object.insert("port".to_owned(), json!(port.number));
    if let Some(name) = &port.name {
        object.insert("name".to_owned(), json!(name));
    }
    Value::Object(object)
}

fn service_port(port: &Port) -> Value {
    import_port(port)
}

/// Listed labels of the service, and ours, which no peer can override.
fn metadata_labels(wanted: &Wanted) -> BTreeMap<String, String> {
    let mut all = wanted.labels.clone();
    let service = wanted.id.service().name.to_string();
    all.insert(labels::MANAGED_BY.to_owned(), labels::MANAGED_BY_VALUE.to_owned());
    all.insert(labels::SERVICE.to_owned(), service);
    if let MirrorId::Cluster { cluster, .. } = &wanted.id {
        all.insert(labels::CLUSTER.to_owned(), cluster.to_string());
    }
    all
}

fn rendered(
    resource: Resource,
    key: &ServiceKey,
    name: &str,
    labels: BTreeMap<String, String>,
    mut value: Value,
) -> Rendered {
    let (api_version, kind) = resource.type_meta();
    let mut metadata = json!({ "name": name, "namespace": key.namespace });
    if let (Some(metadata), false) = (metadata.as_object_mut(), labels.is_empty()) {
        metadata.insert("labels".to_owned(), json!(labels));
    }
    if let Some(object) = value.as_object_mut() {
        object.insert("apiVersion".to_owned(), json!(api_version));
        object.insert("kind".to_owned(), json!(kind));
        object.insert("metadata".to_owned(), metadata);
    }
    let reference = Reference { resource, namespace: key.namespace.to_string(), name: name.to_owned() };
    Rendered { reference, value }
}

/// Fields of a Service that a mirror never has: each would lead clients elsewhere.
const NEVER: [&str; 5] = ["selector", "externalIPs", "externalName", "loadBalancerIP", "loadBalancerClass"];

/// What a merge patch has to say so that nothing is left in an object that others put into our fields: lists as a whole, and
/// that what is never there is not there. A server-side apply leaves to others what they added to a list or beside it.
#[must_use]
pub fn overwriting(rendered: &Rendered) -> Value {
    let mut value = rendered.value.clone();
    if let Some(object) = value.as_object_mut() {
        // Whose object it is, is not for a correction to say: the labels decide whether it is ours.
        object.retain(|field, _| !matches!(field.as_str(), "apiVersion" | "kind" | "metadata"));
    }
    if rendered.reference.resource == Resource::Service
        && let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.extend(NEVER.map(|field| (field.to_owned(), Value::Null)));
    }
    value
}

/// Whether an object is as it should be: everything that we say is so, and nothing is said that we never say. What the API
/// server adds by itself, and what other people add beside it, is theirs.
#[must_use]
pub fn is_as(rendered: &Value, observed: &Value) -> bool {
    let is_nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    let clean = NEVER.iter().all(|field| observed.pointer(&format!("/spec/{field}")).is_none_or(is_nothing));
    clean && covers(rendered, observed)
}

fn covers(wanted: &Value, observed: &Value) -> bool {
    match (wanted, observed) {
        (Value::Object(wanted), Value::Object(observed)) => {
            wanted.iter().all(|(key, value)| observed.get(key).is_some_and(|observed| covers(value, observed)))
        }
        (Value::Array(wanted), Value::Array(observed)) => {
            wanted.len() == observed.len()
                && wanted.iter().zip(observed).all(|(wanted, observed)| covers(wanted, observed))
        }
        (wanted, observed) => wanted == observed,
    }
}

#[cfg(test)]
mod tests;
