//! Names that belong to the cluster itself: nothing that a peer says puts anything there (S-35).

use linkspan_proto::names::{CLUSTERSET, ClusterName, Namespace, ServiceKey};

/// Namespaces of Kubernetes, and where Linkspan is unless somebody chose another. `default` is one of them: it holds the API server's own Service.
const NAMESPACES: [&str; 5] = ["default", "kube-node-lease", "kube-public", "kube-system", "linkspan"];

/// Services that every cluster has.
const SERVICES: [&str; 2] = ["kube-dns", "kubernetes"];

/// Whether nothing of this namespace is mirrored, in any cluster.
#[must_use]
pub fn is_reserved(namespace: &Namespace) -> bool {
    NAMESPACES.contains(&namespace.as_str())
}

/// Why a service of a peer is not mirrored, if its name forbids it. `own` is where Linkspan is in this cluster.
#[must_use]
pub fn refusal(service: &ServiceKey, own: Option<&Namespace>) -> Option<String> {
    if is_reserved(&service.namespace) || own == Some(&service.namespace) {
        return Some(format!(
            "the namespace {} belongs to each cluster itself and is never mirrored; export from a namespace of your own",
            service.namespace
        ));
    }
    SERVICES
        .contains(&service.name.as_str())
        .then(|| format!("{} is a service that every cluster has of its own; it is never mirrored", service.name))
}

/// The part of a Service's name that stands for all clusters, where a mirror has a cluster's. No cluster may have it.
#[must_use]
pub fn clusterset() -> ClusterName {
    ClusterName::parse(CLUSTERSET).expect("a valid label")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_comes_from_or_goes_to_where_linkspan_is() {
        let own = Namespace::parse("mesh").unwrap();
        let refused =
            |service: &str, own: Option<&Namespace>| refusal(&ServiceKey::parse(service).unwrap(), own).is_some();
        for service in ["kube-system/web", "linkspan/web", "mesh/web", "shop/kubernetes"] {
            assert!(refused(service, Some(&own)), "{service}");
        }
        assert!(!refused("shop/web", Some(&own)));
        assert!(!refused("mesh/web", None), "nothing is known of other clusters' namespaces");
    }
}
