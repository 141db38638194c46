//! Which mirror an object in the API server belongs to, by our labels on it. Pure.

use std::net::IpAddr;

use linkspan_proto::names::{ClusterName, Namespace, ServiceKey, ServiceName};
use serde_json::Value;

use super::super::desired::MirrorId;
use super::super::plan::Place;
use super::objects::{Reference, Resource};
use crate::labels;

/// The mirror, and the place of its main object. `None`: not ours.
pub(super) fn identify(resource: Resource, value: &Value) -> Option<(MirrorId, Place)> {
    let label = |name: &str| value.get("metadata")?.get("labels")?.get(name)?.as_str();
    if label(labels::MANAGED_BY) != Some(labels::MANAGED_BY_VALUE) {
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
    let main = match resource {
        Resource::Service | Resource::ServiceImport => metadata.get("name")?.as_str()?,
        Resource::EndpointSlice => label(linkspan_proto::resources::SERVICE_NAME_LABEL)?,
    };
    let object = ServiceKey::new(namespace, ServiceName::parse(main).ok()?);
    Some((MirrorId::Cluster { cluster, service }, Place { object, import: false }))
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
