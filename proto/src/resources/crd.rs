//! Definitions of our kinds for an API server, and those of the multi-cluster services API.
//!
//! Ours are made from the types in this module's siblings, so that the API server refuses what the programs would refuse, in
//! words that a person understands. `deploy/crds/` holds them as files; `tests/crds.rs` fails when those are stale.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use kube::CustomResourceExt;

use super::{ClusterTrafficPolicy, ExportPolicy, Link};

/// ServiceExport and ServiceImport as the multi-cluster services API publishes them (KEP-1645), versions v1alpha1 and
/// v1beta1. Only for clusters that do not have them from somebody else.
pub const MULTI_CLUSTER_SERVICES: [&str; 2] = [
    include_str!("../../../deploy/crds/multicluster.x-k8s.io_serviceexports.yaml"),
    include_str!("../../../deploy/crds/multicluster.x-k8s.io_serviceimports.yaml"),
];

/// The label on everything that an installation of Linkspan consists of.
pub const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "linkspan");

/// Our kinds' definitions.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut link = Link::crd();
    // RFC 1123 label: it becomes part of mirror names. The API server alone would allow any DNS subdomain.
    name_rule(
        &mut link,
        "self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "a Link is named after the peer: 1 to 63 lower-case letters, digits and '-', no dots",
    );
    name_rule(
        &mut link,
        "self.metadata.name != 'clusterset'",
        "no peer is called `clusterset`: that stands for all clusters together; give the cluster another name",
    );
    [link, ClusterTrafficPolicy::crd(), ExportPolicy::crd()].map(finish).into()
}

fn name_rule(definition: &mut CustomResourceDefinition, rule: &str, message: &str) {
    for schema in schemas(definition) {
        schema.x_kubernetes_validations.get_or_insert_default().push(ValidationRule {
            rule: rule.to_owned(),
            message: Some(message.to_owned()),
            ..ValidationRule::default()
        });
    }
}

fn finish(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let (key, value) = PART_OF;
    definition.metadata.labels.get_or_insert_default().insert(key.to_owned(), value.to_owned());
    schemas(&mut definition).for_each(without_foreign_formats);
    definition
}

fn schemas(definition: &mut CustomResourceDefinition) -> impl Iterator<Item = &mut JSONSchemaProps> {
    let versions = definition.spec.versions.iter_mut();
    versions.filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut())
}

/// An API server knows `int32` and `int64` and warns about every other number format; the bounds say the same.
fn without_foreign_formats(schema: &mut JSONSchemaProps) {
    if schema.format.as_deref().is_some_and(|format| format.starts_with("uint")) {
        schema.format = None;
    }
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(without_foreign_formats);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        without_foreign_formats(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        without_foreign_formats(values);
    }
}
