//! The objects that stand for a mirror in an API server. Pure.
//!
//! ```text
//! web of west      Service web-west (ClusterIP of the API server's choice, no selector)
//!                  EndpointSlices web-west-linkspan-{ipv4,ipv6}: ready gateway pods, and the port given to each port
//! cache of west,   the same for each endpoint: Service cache-0-west, ...
//! headless         Service cache-west (clusterIP None), EndpointSlices with the endpoints' host names, each at the ClusterIP of
//!                  its own Service: so the cluster's DNS answers cache-0.cache-west.shop.svc.cluster.local
//! web of all       the first under the name web-clusterset; ServiceImport web with that Service's ClusterIPs; for each cluster
//! clusters         EndpointSlices web-clusterset.west.{ipv4,ipv6}, as the multi-cluster services API wants them ([`super::import`])
//! ```
//!
//! What carries traffic ([`carriers`]) is written first; what holds the addresses that the API server gave to it
//! ([`derived`]) after that.
//!
//! Everything is built from [`Wanted`], field by field; the only addresses are those of this cluster's own ready gateway
//! pods (S-38), and the API server's own ClusterIPs of our Services in front of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use linkspan_proto::names::{ServiceKey, mirror_name};
use serde_json::{Map, Value, json};

use super::super::desired::{Host, MirrorId, Port, Shape, Wanted};
use super::super::front::Front;
use super::import;
use crate::labels;

/// The ClusterIPs that the API server gave, by Service.
pub type Given = BTreeMap<ServiceKey, Vec<IpAddr>>;

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
    /// `multicluster.x-k8s.io` ServiceImport, v1beta1 or where that is not served v1alpha1, which may lack fields
    /// where another implementation defined it ([`import::plain`]).
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

impl std::fmt::Display for Reference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}/{}", self.resource.type_meta().1, self.namespace, self.name)
    }
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
    pub(super) fn of(&self, family: Family) -> impl Iterator<Item = &IpAddr> {
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

/// Of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(super) const fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// As a part of a name.
    pub(super) const fn word(self) -> &'static str {
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

/// The objects of a mirror, in the order in which they are written.
#[must_use]
pub fn objects(wanted: &Wanted, gateways: &Gateways, given: &Given) -> Vec<Rendered> {
    let mut objects: Vec<_> = carriers(wanted, gateways).into_iter().flatten().collect();
    objects.extend(derived(wanted, gateways, given));
    objects
}

/// What carries traffic: each Service with a ClusterIP, and its slices of gateways behind it.
#[must_use]
pub fn carriers(wanted: &Wanted, gateways: &Gateways) -> Vec<Vec<Rendered>> {
    match &wanted.shape {
        Shape::Single { front: Front::Ports(ports), .. } => {
            vec![carrier(wanted, &service_of(wanted), metadata_labels(wanted), gateways, ports)]
        }
        // A front with an address of its own is a site's.
        Shape::Single { front: Front::Address(_), .. } => Vec::new(),
        Shape::Headless { hosts } => hosts
            .iter()
            .filter_map(|host| match (&host.object, &host.front) {
                (Some(service), Front::Ports(ports)) => {
                    Some(carrier(wanted, service, host_labels(wanted, host), gateways, ports))
                }
                _ => None,
            })
            .collect(),
    }
}

/// One object of a mirror, if it has it. Of a headless mirror with a thousand endpoints only what is asked for is made.
#[must_use]
pub fn one(wanted: &Wanted, gateways: &Gateways, given: &Given, reference: &Reference) -> Option<Rendered> {
    let is_it = |rendered: &Rendered| rendered.reference == *reference;
    if let Shape::Headless { hosts } = &wanted.shape {
        // The Service of an endpoint, or a slice called after it.
        let name = reference.name.rsplit_once("-linkspan-").map_or(reference.name.as_str(), |(service, _)| service);
        let host = hosts.iter().find(|host| host.object.as_ref().is_some_and(|object| object.name == *name));
        if let Some(Host { object: Some(service), front: Front::Ports(ports), .. }) = host {
            let labels = host.map(|host| host_labels(wanted, host)).unwrap_or_default();
            return carrier(wanted, service, labels, gateways, ports).into_iter().find(is_it);
        }
        return derived(wanted, gateways, given).into_iter().find(is_it);
    }
    objects(wanted, gateways, given).into_iter().find(is_it)
}

/// What holds the ClusterIPs of the carriers.
#[must_use]
pub fn derived(wanted: &Wanted, gateways: &Gateways, given: &Given) -> Vec<Rendered> {
    match (&wanted.id, &wanted.shape) {
        (MirrorId::Cluster { .. }, Shape::Headless { hosts }) => {
            let service = &wanted.object;
            let labels = metadata_labels(wanted);
            let mut objects = vec![service_object(wanted, service, labels.clone(), true)];
            let mut labels = labels;
            labels.insert(linkspan_proto::resources::SERVICE_NAME_LABEL.to_owned(), service.name.to_string());
            objects.extend(Family::ALL.into_iter().filter_map(|family| {
                let name = slice_name(service.name.as_str(), family);
                host_slice(wanted, hosts.iter(), given, family, name, labels.clone())
            }));
            objects
        }
        (MirrorId::Cluster { .. }, Shape::Single { .. }) => Vec::new(),
        (MirrorId::Clusterset { .. }, _) => import::objects(wanted, gateways, given),
    }
}

/// The Services of a mirror that the API server gives ClusterIPs to.
pub fn services(wanted: &Wanted) -> impl Iterator<Item = ServiceKey> {
    let (own, hosts) = match &wanted.shape {
        Shape::Single { .. } => (Some(service_of(wanted)), [].as_slice()),
        Shape::Headless { hosts } => (None, hosts.as_slice()),
    };
    own.into_iter().chain(hosts.iter().filter_map(|host| host.object.clone()))
}

/// One Service with a ClusterIP, and its slices.
fn carrier(
    wanted: &Wanted,
    service: &ServiceKey,
    labels: BTreeMap<String, String>,
    gateways: &Gateways,
    ports: &BTreeMap<u16, u16>,
) -> Vec<Rendered> {
    let mut objects = vec![service_object(wanted, service, labels.clone(), false)];
    let mut labels = labels;
    labels.insert(linkspan_proto::resources::SERVICE_NAME_LABEL.to_owned(), service.name.to_string());
    objects.extend(Family::ALL.into_iter().filter_map(|family| {
        let name = slice_name(service.name.as_str(), family);
        gateway_slice(wanted, gateways, family, ports, name, labels.clone())
    }));
    objects
}

fn service_object(wanted: &Wanted, service: &ServiceKey, labels: BTreeMap<String, String>, headless: bool) -> Rendered {
    let ports: Vec<_> = wanted.ports.iter().map(service_port).collect();
    let spec = if headless {
        // Both families, whatever the cluster has: the endpoints decide.
        json!({ "type": "ClusterIP", "ports": ports, "clusterIP": "None" })
    } else {
        json!({ "type": "ClusterIP", "ports": ports, "ipFamilyPolicy": "PreferDualStack" })
    };
    let mut object = rendered(Resource::Service, service, service.name.as_str(), labels, json!({ "spec": spec }));
    annotate(&mut object, wanted);
    object
}

/// The ready gateways as endpoints. `None` where no gateway has an address of that family: a slice without endpoints says
/// nothing.
pub(super) fn gateway_slice(
    wanted: &Wanted,
    gateways: &Gateways,
    family: Family,
    ports: &BTreeMap<u16, u16>,
    name: String,
    labels: BTreeMap<String, String>,
) -> Option<Rendered> {
    let endpoints: Vec<_> =
        gateways.of(family).map(|address| json!({ "addresses": [address], "conditions": { "ready": true } })).collect();
    // Without any gateway one slice stays, so that the Service is seen to have no endpoints rather than to be forgotten.
    if endpoints.is_empty() && !(gateways.is_empty() && family == Family::V4) {
        return None;
    }
    let ports = slice_ports(wanted, |port| ports.get(&port.number).copied());
    Some(slice(wanted, family, endpoints, Some(ports), name, labels))
}

/// Endpoints with host names, each at the address of its own Service. One that has none yet comes when it has.
pub(super) fn host_slice<'a>(
    wanted: &Wanted,
    hosts: impl Iterator<Item = &'a Host>,
    given: &Given,
    family: Family,
    name: String,
    labels: BTreeMap<String, String>,
) -> Option<Rendered> {
    let endpoints: Vec<_> = hosts
        .filter_map(|host| {
            let address = given.get(host.object.as_ref()?)?.iter().find(|address| Family::of(address) == family)?;
            Some(json!({
                "addresses": [address],
                "hostname": host.endpoint,
                "conditions": { "ready": host.ready },
            }))
        })
        .collect();
    if endpoints.is_empty() && family != Family::V4 {
        return None;
    }
    // The service's own ports, as clients use them at an endpoint; nobody uses them without one.
    let ports = (!endpoints.is_empty()).then(|| slice_ports(wanted, |port| Some(port.number)));
    Some(slice(wanted, family, endpoints, ports, name, labels))
}

/// The slices that [`objects`] may have for a Service.
pub(super) fn slices_of(service: &Reference) -> impl Iterator<Item = Reference> {
    Family::ALL.into_iter().map(|family| Reference {
        resource: Resource::EndpointSlice,
        namespace: service.namespace.clone(),
        name: slice_name(&service.name, family),
    })
}

fn slice_name(service: &str, family: Family) -> String {
    format!("{service}-linkspan-{}", family.word())
}

fn slice(
    wanted: &Wanted,
    family: Family,
    endpoints: Vec<Value>,
    ports: Option<Vec<Value>>,
    name: String,
    mut labels: BTreeMap<String, String>,
) -> Rendered {
    labels.insert(labels::SLICE_MANAGED_BY.to_owned(), labels::SLICE_MANAGED_BY_VALUE.to_owned());
    let mut value = json!({ "addressType": family.as_str(), "endpoints": endpoints });
    if let (Some(value), Some(ports)) = (value.as_object_mut(), ports) {
        value.insert("ports".to_owned(), json!(ports));
    }
    rendered(Resource::EndpointSlice, &wanted.object, &name, labels, value)
}

/// SCTP is not carried.
fn slice_ports(wanted: &Wanted, number: impl Fn(&Port) -> Option<u16>) -> Vec<Value> {
    let carried = wanted.ports.iter().filter(|port| port.protocol.transport().is_some());
    carried
        .filter_map(|port| {
            let mut object = port_base(port);
            object.insert("name".to_owned(), json!(port_name(port)));
            object.insert("port".to_owned(), json!(number(port)?));
            Some(Value::Object(object))
        })
        .collect()
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

/// A port of a Service or of a ServiceImport.
pub(super) fn service_port(port: &Port) -> Value {
    let mut object = port_base(port);
    object.insert("port".to_owned(), json!(port.number));
    if let Some(name) = &port.name {
        object.insert("name".to_owned(), json!(name));
    }
    Value::Object(object)
}

/// Labels of the service that command nobody, and ours, which no peer can override.
pub(super) fn metadata_labels(wanted: &Wanted) -> BTreeMap<String, String> {
    let mut all = wanted.labels.clone();
    let service = wanted.id.service().name.to_string();
    all.insert(labels::MANAGED_BY.to_owned(), labels::MANAGED_BY_VALUE.to_owned());
    all.insert(labels::SERVICE.to_owned(), service);
    if let MirrorId::Cluster { cluster, .. } = &wanted.id {
        all.insert(labels::CLUSTER.to_owned(), cluster.to_string());
    }
    all
}

fn host_labels(wanted: &Wanted, host: &Host) -> BTreeMap<String, String> {
    let mut all = metadata_labels(wanted);
    all.insert(labels::ENDPOINT.to_owned(), host.endpoint.to_string());
    let (key, value) = match &wanted.id {
        MirrorId::Cluster { .. } => (labels::MIRROR, wanted.object.name.to_string()),
        MirrorId::Clusterset { .. } => (labels::SOURCE, host.cluster.to_string()),
    };
    all.insert(key.to_owned(), value);
    all
}

/// The service's annotations that command nobody.
pub(super) fn annotate(object: &mut Rendered, wanted: &Wanted) {
    if let (Some(metadata), false) =
        (object.value.get_mut("metadata").and_then(Value::as_object_mut), wanted.annotations.is_empty())
    {
        metadata.insert("annotations".to_owned(), json!(wanted.annotations));
    }
}

pub(super) fn rendered(
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

/// Whether this is a Service without an address. It has one, or none, for its life: the API server changes that in no update.
#[must_use]
pub fn is_headless(object: &Value) -> bool {
    object.pointer("/spec/clusterIP").and_then(Value::as_str) == Some("None")
}

/// Whether an object is as it should be: everything that we say is so, and nothing is said that we never say. What the API
/// server adds by itself, and what other people add beside it, is theirs. A Service whose address is the API server's choice says
/// nothing of it, which must not count as being headless.
#[must_use]
pub fn is_as(rendered: &Value, observed: &Value) -> bool {
    let is_nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    // A list names version and kind once, for all its items.
    let meant = |(key, _): &(&String, &Value)| !matches!(key.as_str(), "apiVersion" | "kind");
    let clean = NEVER.iter().all(|field| observed.pointer(&format!("/spec/{field}")).is_none_or(is_nothing));
    let mut fields = rendered.as_object().into_iter().flatten().filter(meant);
    clean
        && is_headless(rendered) == is_headless(observed)
        && fields.all(|(key, value)| observed.get(key).is_some_and(|observed| covers(value, observed)))
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
