//! Which mirror an object in the API server belongs to, by our labels on it. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use linkspan_proto::names::{ClusterName, Namespace, ServiceKey, ServiceName};
use serde_json::Value;

use super::super::desired::{MirrorId, Wanted};
use super::super::plan::Place;
use super::objects::{Reference, Resource};
use crate::labels;
use crate::verdict::Verdict;

/// The mirror, and the place of its main object. `None`: not ours.
pub(super) fn identify(resource: Resource, value: &Value) -> Option<(MirrorId, Place)> {
    let label = |name: &str| value.get("metadata")?.get("labels")?.get(name)?.as_str();
    if !is_ours(value) {
        return None;
    }
    let metadata = value.get("metadata")?;
    let namespace = Namespace::parse(metadata.get("namespace")?.as_str()?).ok()?;
    let service = ServiceKey::new(namespace.clone(), ServiceName::parse(label(labels::SERVICE)?).ok()?);
    let Some(cluster) = label(labels::CLUSTER) else {
        let place = Place { object: service.clone(), import: true };
        return Some((MirrorId::Clusterset { service }, place));
    };
    let cluster = ClusterName::parse(cluster).ok()?;
    let main = match (label(labels::MIRROR), resource) {
        // Of one endpoint of a headless mirror.
        (Some(mirror), _) => mirror,
        (None, Resource::Service | Resource::ServiceImport) => metadata.get("name")?.as_str()?,
        (None, Resource::EndpointSlice) => label(linkspan_proto::resources::SERVICE_NAME_LABEL)?,
    };
    let object = ServiceKey::new(namespace, ServiceName::parse(main).ok()?);
    Some((MirrorId::Cluster { cluster, service }, Place { object, import: false }))
}

/// Whether an object of that name may be written: it has our label, whatever else was done to it.
pub(super) fn is_ours(value: &Value) -> bool {
    let labels = value.pointer("/metadata/labels");
    labels.and_then(|all| all.get(labels::MANAGED_BY)?.as_str()) == Some(labels::MANAGED_BY_VALUE)
}

/// The Service that is named, if it is one.
pub(super) fn service(reference: &Reference) -> Option<ServiceKey> {
    let is_service = reference.resource == Resource::Service;
    let key = || {
        let namespace = Namespace::parse(&reference.namespace).ok()?;
        Some(ServiceKey::new(namespace, ServiceName::parse(&reference.name).ok()?))
    };
    if is_service { key() } else { None }
}

/// Why a wanted mirror is not there although nothing is wrong with it: its namespace is not.
pub(super) fn held(wanted: &Wanted, namespaces: &BTreeSet<String>) -> Option<Verdict> {
    let namespace = wanted.object.namespace.as_str();
    (!namespaces.contains(namespace)).then(|| {
        let message = format!(
            "the namespace {namespace} does not exist here, is being deleted, or is not among spec.mirrors.namespaces; the \
             mirror is made as soon as it may be"
        );
        Verdict::new("Accepted", false, "NamespaceAbsent", message)
    })
}

/// Why a wanted mirror is not there: something else has its name.
pub(super) fn foreign(wanted: &Wanted, what: &Reference) -> Verdict {
    let message = format!(
        "{what} is not Linkspan's and has a name that the mirror {} needs; it is left alone: rename it, or leave the mirror",
        wanted.object
    );
    Verdict::new("Accepted", false, "NameInUse", message)
}

/// Why a wanted mirror is not as it should be: the API server refuses it, with these words.
pub(super) fn refused(wanted: &Wanted, why: &str) -> Verdict {
    let message = format!(
        "the API server refuses an object of {}, and is asked again every few minutes and when the service changes: {why}",
        wanted.object
    );
    Verdict::new("Accepted", false, "Refused", message)
}

/// What names an object.
pub(super) fn reference(resource: Resource, value: &Value) -> Reference {
    let text = |field: &str| value.pointer(&format!("/metadata/{field}")).and_then(Value::as_str).unwrap_or_default();
    Reference { resource, namespace: text("namespace").to_owned(), name: text("name").to_owned() }
}

/// The ClusterIPs of a Service, in its order; none for a headless one.
pub(super) fn cluster_ips(value: &Value) -> Vec<IpAddr> {
    let ips = value.pointer("/spec/clusterIPs").and_then(Value::as_array);
    ips.into_iter().flatten().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mirror_is_known_by_its_labels_alone() {
        let object =
            |name: &str, labels: Value| json!({"metadata": {"namespace": "shop", "name": name, "labels": labels}});
        let ours =
            json!({labels::MANAGED_BY: labels::MANAGED_BY_VALUE, labels::SERVICE: "web", labels::CLUSTER: "west"});
        let (id, place) = identify(Resource::Service, &object("web-west", ours.clone())).unwrap();
        let service = ServiceKey::parse("shop/web").unwrap();
        assert_eq!(id, MirrorId::Cluster { cluster: ClusterName::parse("west").unwrap(), service: service.clone() });
        assert_eq!(place, Place { object: ServiceKey::parse("shop/web-west").unwrap(), import: false });
        let mut slice = ours.clone();
        slice["kubernetes.io/service-name"] = json!("web-west");
        assert_eq!(identify(Resource::EndpointSlice, &object("web-west-linkspan-ipv4", slice)).unwrap().1, place);
        let mut endpoint = ours.clone();
        endpoint[labels::MIRROR] = json!("cache-west");
        endpoint["kubernetes.io/service-name"] = json!("cache-0-west");
        for (resource, name) in
            [(Resource::Service, "cache-0-west"), (Resource::EndpointSlice, "cache-0-west-linkspan-ipv4")]
        {
            let (_, place) = identify(resource, &object(name, endpoint.clone())).unwrap();
            assert_eq!(place.object.to_string(), "shop/cache-west", "an endpoint's objects belong to its mirror");
        }
        let import = json!({labels::MANAGED_BY: labels::MANAGED_BY_VALUE, labels::SERVICE: "web"});
        let (id, place) = identify(Resource::Service, &object("web-clusterset", import)).unwrap();
        assert_eq!(
            (id, place),
            (MirrorId::Clusterset { service: service.clone() }, Place { object: service, import: true })
        );
        for foreign in [
            json!({}),
            json!({labels::SERVICE: "web"}),
            json!({labels::MANAGED_BY: "somebody", labels::SERVICE: "web"}),
        ] {
            assert_eq!(identify(Resource::Service, &object("web", foreign)), None);
        }
    }

    #[test]
    fn cluster_ips_are_read_in_order() {
        let service = json!({"spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"]}});
        assert_eq!(cluster_ips(&service).len(), 2);
        assert!(cluster_ips(&json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}})).is_empty());
        assert!(cluster_ips(&json!({})).is_empty());
    }
}
