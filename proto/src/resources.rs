//! Resource types: what an operator writes and what the programs report back.
//!
//! A site and a Kubernetes cluster use the same kinds. Ours are of group `linkspan.io`, version `v1alpha1`; unknown fields
//! in them are errors. Services and EndpointSlices are Kubernetes' own types, ServiceExport is that of the multi-cluster
//! services API.
//!
//! Never does: I/O. Rules that need more than one field are in each type's `validate`, which names the field.

mod address;
mod cluster;
mod condition;
// What an API server is told about our kinds.
pub mod crd;
mod export_policy;
mod kubernetes;
mod link;
mod object;
mod service_export;
mod site;
mod traffic_policy;

pub use address::{AddressError, HostPort};
pub use cluster::{
    Cluster, ClusterControllerSpec, ClusterDnsSpec, ClusterGatewaySpec, ClusterMetadata, ClusterMirrorsSpec,
    ClusterSpec, PortRange,
};
pub use condition::{ConditionStatus, NewCondition, set_condition};
pub use export_policy::{AllowRule, ExportPolicy, ExportPolicySpec, ExportPolicyStatus};
pub use link::{Link, LinkSpec, LinkStatus};
pub use object::{Kind, Object, ObjectKey};
pub use service_export::{ServiceExport, ServiceExportSpec, ServiceExportStatus};
pub use site::{AdminSpec, DnsSpec, GatewaySpec, Site, SiteMetadata, SiteSpec, WorkloadSpec};
pub use traffic_policy::{ClusterTrafficPolicy, ClusterTrafficPolicySpec, ClusterTrafficPolicyStatus, TierSpec};

pub use k8s_openapi::api::core::v1::Service;
pub use k8s_openapi::api::discovery::v1::EndpointSlice;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// `apiVersion` of our own kinds.
pub const API_VERSION: &str = "linkspan.io/v1alpha1";

/// On a ServiceExport: `v2` asks for a PROXY protocol header with the caller's identity in front of TCP connections.
pub const PROXY_PROTOCOL_ANNOTATION: &str = "linkspan.io/proxy-protocol";

/// On a Service, as Linkerd has it: `true` exports the service without a ServiceExport.
pub const LINKERD_EXPORT_LABEL: &str = "mirror.linkerd.io/exported";

/// On an EndpointSlice: the service it belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A rule that a resource breaks, with the field that breaks it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// The path of the field, such as `spec.tiers[0].clusters`.
    pub field: String,
    /// What is wrong, with the value, and what would be right.
    pub message: String,
}

impl FieldError {
    /// Joins a path and a message.
    #[must_use]
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

#[cfg(test)]
mod tests;
