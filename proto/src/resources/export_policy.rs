//! Kind ExportPolicy: who may call the exports of a namespace.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FieldError;
use crate::identity::{Assurance, SpiffeId};
use crate::names::{ClusterName, ServiceName};

/// The most services that one policy names, and the most peers or ports of one rule.
const MAX_NAMES: usize = 256;

/// The most rules of one policy, and the most identities of one rule. An API server needs the bounds to know what its own
/// rules cost.
const MAX_RULES: usize = 64;

/// Who may call exported services of the policy's namespace. Enforced by the exporting gateway. A service that any policy
/// selects is closed to everybody whom no rule allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "linkspan.io",
    version = "v1alpha1",
    kind = "ExportPolicy",
    plural = "exportpolicies",
    namespaced,
    status = "ExportPolicyStatus",
    derive = "PartialEq",
    shortname = "expol",
    category = "linkspan",
    printcolumn = r#"{"name":"Services","type":"string","jsonPath":".spec.services","description":"The exported services that the policy is about; none means all of the namespace"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].status","description":"Whether the gateways enforce it as it stands"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].message","priority":1,"description":"Why it is accepted or not"}"#,
    doc = "Who may call the exported services of this namespace from other clusters."
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExportPolicySpec {
    /// The exported services that this policy is about. Empty: all of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_NAMES), extend("x-kubernetes-list-type" = "set"))]
    pub services: Vec<ServiceName>,
    /// Any rule that matches allows. No rules: nobody may.
    #[schemars(length(max = MAX_RULES), extend("x-kubernetes-list-type" = "atomic"))]
    pub allow: Vec<AllowRule>,
}

/// One way in: all conditions that are present must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowRule {
    /// Peers that may call. Empty: every linked peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_NAMES), extend("x-kubernetes-list-type" = "set"))]
    pub peers: Vec<ClusterName>,
    /// Exact SPIFFE IDs that may call. Empty together with `identityPrefixes`: every identity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = MAX_RULES),
        extend(
            "x-kubernetes-list-type" = "set",
            "x-kubernetes-validations" = [{
                "rule": "self.all(identity, !identity.contains('*'))",
                "message": "there are no wildcards: name the SPIFFE ID, or use identityPrefixes for everything below one"
            }]
        )
    )]
    pub identities: Vec<SpiffeId>,
    /// SPIFFE IDs by whole-segment prefix: `spiffe://east.example/ns/shop` is all of that namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = MAX_RULES),
        extend(
            "x-kubernetes-list-type" = "set",
            "x-kubernetes-validations" = [{
                "rule": "self.all(prefix, !prefix.contains('*'))",
                "message": "there are no wildcards: a prefix stands for everything below it, as in spiffe://east.example/ns/shop"
            }]
        )
    )]
    pub identity_prefixes: Vec<SpiffeId>,
    /// Service ports that may be called. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_NAMES), inner(range(min = 1)), extend("x-kubernetes-list-type" = "set"))]
    pub ports: Vec<u16>,
    /// The weakest assurance that suffices. Default: gateway.
    #[serde(default)]
    pub minimum_assurance: Assurance,
}

/// What the controller reports about an ExportPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExportPolicyStatus {
    /// `Accepted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl ExportPolicySpec {
    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// When a port is 0, or a list is longer than an API server would take.
    pub fn validate(&self) -> Result<(), FieldError> {
        let at_most = |field: String, count: usize, max: usize| {
            if count <= max {
                return Ok(());
            }
            Err(FieldError::new(field, format!("{count} of them, at most {max} are read: use a second policy or rule")))
        };
        at_most("spec.services".to_owned(), self.services.len(), MAX_NAMES)?;
        at_most("spec.allow".to_owned(), self.allow.len(), MAX_RULES)?;
        for (rule, allow) in self.allow.iter().enumerate() {
            for (name, count, max) in [
                ("peers", allow.peers.len(), MAX_NAMES),
                ("identities", allow.identities.len(), MAX_RULES),
                ("identityPrefixes", allow.identity_prefixes.len(), MAX_RULES),
                ("ports", allow.ports.len(), MAX_NAMES),
            ] {
                at_most(format!("spec.allow[{rule}].{name}"), count, max)?;
            }
            if let Some(index) = allow.ports.iter().position(|port| *port == 0) {
                let field = format!("spec.allow[{rule}].ports[{index}]");
                return Err(FieldError::new(field, "0 is not a port: use 1 to 65535"));
            }
        }
        Ok(())
    }
}
