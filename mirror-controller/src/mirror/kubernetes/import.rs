//! What the multi-cluster services API wants to see of a service of the clusterset: a ServiceImport, and EndpointSlices that
//! say which cluster is behind it. Pure.
//!
//! The slices are for those who read that API; kube-proxy and the cluster's DNS look at them never (they name no Service). In
//! gateway mode every cluster of a service with an address is reached at the same place, the ready gateways with the import's
//! own ports: which cluster serves a connection is the traffic policy's decision there too. An endpoint of a headless service is
//! at the ClusterIP of its own Service.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::{Timestamp, Unit};
use linkspan_proto::names::ClusterName;
use serde_json::{Value, json};

use super::super::desired::{MirrorId, Shape, Wanted};
use super::super::front::Front;
use super::objects::{
    Family, Gateways, Given, Rendered, Resource, annotate, gateway_slice, host_slice, metadata_labels, rendered,
    service_of, service_port,
};
use crate::labels;
use crate::verdict::Verdict;

/// Fields of an import's spec in the first version of the API.
const PLAIN_SPEC: [&str; 5] = ["ports", "ips", "type", "sessionAffinity", "sessionAffinityConfig"];

/// The slices of each cluster, and the ServiceImport. Nothing for the mirror of one peer.
pub(super) fn objects(wanted: &Wanted, gateways: &Gateways, given: &Given) -> Vec<Rendered> {
    let per_cluster = |cluster: &ClusterName| {
        Family::ALL.map(|family| {
            // No Service has a dot in its name, so no other slice has this one.
            let name = format!("{}.{cluster}.{}", service_of(wanted).name, family.word());
            match &wanted.shape {
                Shape::Single { front: Front::Ports(ports), .. } => {
                    gateway_slice(wanted, gateways, family, ports, name, slice_labels(wanted, cluster))
                }
                Shape::Single { front: Front::Address(_), .. } => None,
                Shape::Headless { hosts } => {
                    let hosts = hosts.iter().filter(|host| host.cluster == *cluster);
                    host_slice(wanted, hosts, given, family, name, slice_labels(wanted, cluster))
                }
            }
        })
    };
    let mut objects: Vec<_> = wanted.clusters.iter().flat_map(per_cluster).flatten().collect();
    objects.extend(import(wanted, given.get(&service_of(wanted)).map_or(&[], Vec::as_slice)));
    objects
}

fn slice_labels(wanted: &Wanted, cluster: &ClusterName) -> BTreeMap<String, String> {
    let mut all = metadata_labels(wanted);
    all.insert(labels::MCS_SERVICE.to_owned(), wanted.id.service().name.to_string());
    all.insert(labels::MCS_CLUSTER.to_owned(), cluster.to_string());
    all
}

/// The ServiceImport of a clusterset mirror, with the addresses that the API server gave its Service.
#[must_use]
pub fn import(wanted: &Wanted, ips: &[IpAddr]) -> Option<Rendered> {
    let MirrorId::Clusterset { service } = &wanted.id else { return None };
    let ports: Vec<_> = wanted.ports.iter().map(service_port).collect();
    let traits = &wanted.traits;
    let mut spec = match wanted.shape {
        Shape::Headless { .. } => json!({ "type": "Headless", "ports": ports }),
        Shape::Single { .. } => {
            let families: Vec<_> = ips.iter().map(|ip| Family::of(ip).as_str()).collect();
            json!({ "type": "ClusterSetIP", "ports": ports, "ips": ips, "ipFamilies": families })
        }
    };
    if let Some(spec) = spec.as_object_mut() {
        let affinity = if traits.affinity_seconds.is_some() { "ClientIP" } else { "None" };
        spec.insert("sessionAffinity".to_owned(), json!(affinity));
        if let Some(seconds) = traits.affinity_seconds {
            spec.insert("sessionAffinityConfig".to_owned(), json!({ "clientIP": { "timeoutSeconds": seconds } }));
        }
        let internal = if traits.local_traffic { "Local" } else { "Cluster" };
        spec.insert("internalTrafficPolicy".to_owned(), json!(internal));
        if let Some(distribution) = &traits.traffic_distribution {
            spec.insert("trafficDistribution".to_owned(), json!(distribution));
        }
    }
    let mut object = rendered(
        Resource::ServiceImport,
        service,
        service.name.as_str(),
        metadata_labels(wanted),
        json!({ "spec": spec }),
    );
    annotate(&mut object, wanted);
    Some(object)
}

/// The status of a ServiceImport: the clusters, whose word counts most first, and whether it can be used with the addresses that
/// the API server gave its Service. `before` is the import as it is there, whose time stays where nothing changed.
#[must_use]
pub fn status(wanted: &Wanted, ips: &[IpAddr], before: &Value, now: Timestamp) -> Option<Rendered> {
    let MirrorId::Clusterset { service } = &wanted.id else { return None };
    let clusters: Vec<_> = wanted.clusters.iter().map(|cluster| json!({ "cluster": cluster })).collect();
    let Verdict { kind, status, reason, message } = ready(wanted, ips);
    let old = condition(before).filter(|old| old.get("status").and_then(Value::as_str) == Some(status.as_str()));
    // Whole seconds, as everywhere in the API.
    let fresh = || json!(now.round(Unit::Second).unwrap_or(now).to_string());
    let since = old.and_then(|old| old.get("lastTransitionTime")).filter(|since| !since.is_null());
    let mut condition = json!({
        "type": kind,
        "status": status.as_str(),
        "reason": reason,
        "message": message,
        "lastTransitionTime": since.cloned().unwrap_or_else(fresh),
    });
    if let Some(generation) = before.pointer("/metadata/generation") {
        condition["observedGeneration"] = generation.clone();
    }
    let value = json!({ "status": { "clusters": clusters, "conditions": [condition] } });
    Some(rendered(Resource::ServiceImport, service, service.name.as_str(), BTreeMap::new(), value))
}

/// What of an import, or of its status, any definition of it takes: one of another implementation may be of the first version of
/// the multi-cluster services API, which has one address, and neither address families, nor traffic policies, nor conditions.
#[must_use]
pub fn plain(full: &Rendered) -> Rendered {
    let mut plain = full.clone();
    if let Some(spec) = plain.value.get_mut("spec").and_then(Value::as_object_mut) {
        spec.retain(|field, _| PLAIN_SPEC.contains(&field.as_str()));
        if let Some(ips) = spec.get_mut("ips").and_then(Value::as_array_mut) {
            ips.truncate(1);
        }
    }
    if let Some(status) = plain.value.get_mut("status").and_then(Value::as_object_mut) {
        status.retain(|field, _| field == "clusters");
    }
    plain
}

/// `Ready` as an import has it.
fn condition(import: &Value) -> Option<&Value> {
    let mut all = import.pointer("/status/conditions")?.as_array()?.iter();
    all.find(|condition| condition.get("type").and_then(Value::as_str) == Some("Ready"))
}

/// Whether an observed import has the condition that it should have. `rendered` is the import as it should be.
#[must_use]
pub fn is_ready_as(rendered: &Rendered, wanted: &Wanted, observed: &Value) -> bool {
    let ips = rendered.value.pointer("/spec/ips").and_then(Value::as_array).into_iter().flatten();
    let ips: Vec<IpAddr> = ips.filter_map(|ip| ip.as_str()?.parse().ok()).collect();
    let ready = ready(wanted, &ips);
    let is = |condition: &Value, field: &str, text: &str| condition.get(field).and_then(Value::as_str) == Some(text);
    condition(observed).is_some_and(|it| is(it, "status", ready.status.as_str()) && is(it, "reason", &ready.reason))
}

/// The clusters of a ServiceImport, in the order in which [`status`] wrote them.
#[must_use]
pub fn clusters(import: &Value) -> Vec<ClusterName> {
    let clusters = import.pointer("/status/clusters").and_then(Value::as_array);
    let names = clusters.into_iter().flatten().filter_map(|cluster| cluster.get("cluster")?.as_str());
    names.filter_map(|name| ClusterName::parse(name).ok()).collect()
}

/// `Ready` of a ServiceImport: whether it can be used.
#[must_use]
pub fn ready(wanted: &Wanted, ips: &[IpAddr]) -> Verdict {
    if matches!(wanted.shape, Shape::Single { .. }) && ips.is_empty() {
        return Verdict::new("Ready", false, "Pending", "the API server has given it no address yet");
    }
    let message = if wanted.ports.iter().all(|port| port.protocol.transport().is_some()) {
        "the import can be used"
    } else {
        "the import can be used; only its TCP and UDP ports are carried"
    };
    Verdict::new("Ready", true, "Ready", message)
}
