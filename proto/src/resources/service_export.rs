//! Kind ServiceExport of the multi-cluster services API (KEP-1645).

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

/// Exports the Service of the same name and namespace. Read in versions `v1alpha1` and `v1beta1`, written in the older.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExport {
    /// Name and namespace of the Service.
    pub metadata: ObjectMeta,
    /// Labels and annotations for importing clusters; may be absent.
    #[serde(default)]
    pub spec: Option<ServiceExportSpec>,
    /// What the controller reports.
    #[serde(default)]
    pub status: Option<ServiceExportStatus>,
}

/// Kept as written; Linkspan carries its own list of labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExportSpec {
    /// Labels for the imported service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exported_labels: Option<std::collections::BTreeMap<String, String>>,
    /// Annotations for the imported service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exported_annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// What the controller reports about a ServiceExport.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExportStatus {
    /// `Valid`, `Ready`, `Conflict`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl k8s_openapi::Resource for ServiceExport {
    const API_VERSION: &'static str = "multicluster.x-k8s.io/v1alpha1";
    const GROUP: &'static str = "multicluster.x-k8s.io";
    const KIND: &'static str = "ServiceExport";
    const VERSION: &'static str = "v1alpha1";
    const URL_PATH_SEGMENT: &'static str = "serviceexports";
    type Scope = NamespaceResourceScope;
}

impl k8s_openapi::Metadata for ServiceExport {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Serialize for ServiceExport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = 3 + usize::from(self.spec.is_some()) + usize::from(self.status.is_some());
        let mut object = serializer.serialize_struct("ServiceExport", fields)?;
        object.serialize_field("apiVersion", <Self as k8s_openapi::Resource>::API_VERSION)?;
        object.serialize_field("kind", <Self as k8s_openapi::Resource>::KIND)?;
        object.serialize_field("metadata", &self.metadata)?;
        if let Some(spec) = &self.spec {
            object.serialize_field("spec", spec)?;
        }
        if let Some(status) = &self.status {
            object.serialize_field("status", status)?;
        }
        object.end()
    }
}
