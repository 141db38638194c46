//! Fails when `deploy/crds/` is not what the resource types say. `LINKSPAN_REGENERATE=1` writes it instead.

use std::path::Path;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps};
use linkspan_proto::manifest;
use linkspan_proto::resources::crd;

#[test]
fn definitions_are_fresh() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    for definition in crd::definitions() {
        let name = format!("{}_{}.yaml", definition.spec.group, definition.spec.names.plural);
        let text = format!(
            "# Made from proto/src/resources; see proto/tests/crds.rs.\n{}",
            manifest::to_yaml(&definition).expect("a definition has a form in YAML")
        );
        let path = folder.join(&name);
        if std::env::var_os("LINKSPAN_REGENERATE").is_some() {
            std::fs::write(&path, text).expect("writing a definition");
        } else {
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                committed == text,
                "deploy/crds/{name} is stale: run `LINKSPAN_REGENERATE=1 cargo test -p linkspan-proto --test crds`"
            );
        }
    }
}

/// `kubectl explain` has a sentence for every field, down to the leaves.
#[test]
fn every_field_is_described() {
    fn walk(path: &str, schema: &JSONSchemaProps) {
        for (name, below) in schema.properties.iter().flatten() {
            let path = format!("{path}.{name}");
            assert!(below.description.as_deref().is_some_and(|text| text.len() > 8), "{path} has no description");
            walk(&path, below);
        }
        if let Some(
            k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaPropsOrArray::Schema(items),
        ) = &schema.items
        {
            walk(&format!("{path}[]"), items);
        }
    }
    for definition in crd::definitions() {
        for version in &definition.spec.versions {
            let schema = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref()).unwrap();
            assert!(schema.description.is_some());
            walk(&definition.spec.names.kind, schema);
        }
    }
}

#[test]
fn the_multi_cluster_services_api_is_whole() {
    for (text, plural) in crd::MULTI_CLUSTER_SERVICES.into_iter().zip(["serviceexports", "serviceimports"]) {
        let definition: CustomResourceDefinition = serde_saphyr::from_str(text).unwrap();
        assert_eq!(definition.spec.names.plural, plural);
        let versions: Vec<_> = definition
            .spec
            .versions
            .iter()
            .map(|version| (version.name.as_str(), version.served, version.storage))
            .collect();
        assert_eq!(versions, [("v1beta1", true, true), ("v1alpha1", true, false)]);
        let [newer, older] = &definition.spec.versions[..] else { panic!("two versions") };
        // The specification: the versions are identical, so no conversion is needed.
        assert_eq!(newer.schema, older.schema);
        assert_eq!(newer.additional_printer_columns, older.additional_printer_columns);
        assert!(newer.subresources.as_ref().is_some_and(|subresources| subresources.status.is_some()));
    }
}
