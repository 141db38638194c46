use kube::{CustomResourceExt, Resource as _};

use super::*;

#[test]
fn our_kinds_are_what_the_design_names() {
    assert_eq!(Link::api_version(&()), API_VERSION);
    assert_eq!((Link::kind(&()), Link::plural(&())), ("Link".into(), "links".into()));
    assert_eq!(ClusterTrafficPolicy::plural(&()), "clustertrafficpolicies");
    assert_eq!(ExportPolicy::plural(&()), "exportpolicies");
    assert_eq!(ServiceExport::api_version(&()), "multicluster.x-k8s.io/v1alpha1");
}

/// The API server takes only structural schemas: no `additionalProperties: false` beside properties, types everywhere.
#[test]
fn schemas_are_structural() {
    for crd in [Link::crd(), ClusterTrafficPolicy::crd(), ExportPolicy::crd()] {
        let text = serde_json::to_string(&crd).unwrap();
        assert!(!text.contains("\"additionalProperties\":false"), "{text}");
        assert!(!text.contains("$ref") && !text.contains("patternProperties") && !text.contains("\"const\""), "{text}");
        for field in ["openAPIV3Schema", "\"subresources\":{\"status\":{}}"] {
            assert!(text.contains(field), "{text}");
        }
    }
    let text = serde_json::to_string(&Link::crd()).unwrap();
    assert!(text.contains("\"enum\":[\"Allow\",\"Deny\"]"), "{text}");
}

#[test]
fn an_object_knows_its_key() {
    let spec = ExportPolicySpec { services: Vec::new(), allow: Vec::new() };
    let mut policy = ExportPolicy::new("web", spec);
    policy.metadata.namespace = Some("shop".into());
    let object = Object::ExportPolicy(policy);
    assert_eq!(object.key().to_string(), "ExportPolicy shop/web");
    assert_eq!(object.validate(), Ok(()));
    let mut nameless = object;
    nameless.metadata_mut().name = None;
    assert_eq!(nameless.validate().unwrap_err().field, "metadata.name");
}

#[test]
fn a_service_export_is_written_with_its_kind() {
    let mut export = ServiceExport::default();
    export.metadata.name = Some("web".into());
    let json = serde_json::to_value(&export).unwrap();
    assert_eq!(json["kind"], "ServiceExport");
    assert_eq!(json["apiVersion"], "multicluster.x-k8s.io/v1alpha1");
    assert_eq!(serde_json::from_value::<ServiceExport>(json).unwrap(), export);
}

#[test]
fn unknown_fields_are_errors_in_our_specs() {
    let link = serde_json::json!({"trustDomain": "a", "trustBundle": "", "more": 1});
    assert!(serde_json::from_value::<LinkSpec>(link).is_err());
    let rule = serde_json::json!({"allow": [{"peer": ["west"]}]});
    assert!(serde_json::from_value::<ExportPolicySpec>(rule).is_err());
    let tier = serde_json::json!({"service": "web", "tiers": [{"cluster": {}}]});
    assert!(serde_json::from_value::<ClusterTrafficPolicySpec>(tier).is_err());
}

#[test]
fn wildcards_are_no_identities() {
    for field in ["identities", "identityPrefixes"] {
        let rule = serde_json::json!({"allow": [{ field: ["spiffe://west/ns/*"] }]});
        assert!(serde_json::from_value::<ExportPolicySpec>(rule).is_err());
    }
}
