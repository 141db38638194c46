//! Labels and annotations on the objects that this controller writes and reads.

/// On everything that this controller made: `mirror-controller`. What lacks it is never changed or deleted.
pub const MANAGED_BY: &str = "mirror.linkspan.io/managed-by";
/// The value of [`MANAGED_BY`].
pub const MANAGED_BY_VALUE: &str = "mirror-controller";
/// On mirrors of one peer: the peer's cluster name.
pub const CLUSTER: &str = "mirror.linkspan.io/cluster-name";
/// On mirrors: the name of the service in the clusters that export it.
pub const SERVICE: &str = "mirror.linkspan.io/service-name";
/// On what stands for one endpoint of a headless mirror, in an API server: the endpoint's host name.
pub const ENDPOINT: &str = "mirror.linkspan.io/endpoint";
/// The same, of one peer's mirror: the name of the mirror that the endpoint belongs to.
pub const MIRROR: &str = "mirror.linkspan.io/mirror-name";
/// The same, of a clusterset import: the cluster that the endpoint runs in.
pub const SOURCE: &str = "mirror.linkspan.io/source-cluster";
/// On EndpointSlices of clusterset imports, by the multi-cluster services API.
pub const MCS_SERVICE: &str = "multicluster.kubernetes.io/service-name";
/// The cluster behind an EndpointSlice of an import, by the multi-cluster services API.
pub const MCS_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";
/// Who manages an EndpointSlice, by Kubernetes.
pub const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The value of [`SLICE_MANAGED_BY`].
pub const SLICE_MANAGED_BY_VALUE: &str = "mirror-controller.linkspan.io";

/// Prefix of all labels on our mirrors.
const OUR_PREFIX: &str = "mirror.linkspan.io/";
/// On mirrors that Linkerd made.
const LINKERD_MIRROR: &str = "mirror.linkerd.io/mirrored-service";
/// On Services that stand for a ServiceImport, by several implementations of the multi-cluster services API.
const MCS_DERIVED: &str = "multicluster.kubernetes.io/service-imported";

/// Whether an object with this label is a mirror, ours or another's. Mirrors are never exported: traffic that came from
/// another cluster would leave for a third one, or come back (S-42).
#[must_use]
pub fn marks_a_mirror(label: &str) -> bool {
    label.starts_with(OUR_PREFIX) || label == LINKERD_MIRROR || label == MCS_DERIVED
}
