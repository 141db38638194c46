//! Kind ExportPolicy: who may call the exports of a namespace.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FieldError;
use crate::identity::{Assurance, SpiffeId};
use crate::names::{ClusterName, ServiceName};

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
    doc = "Who may call the exported services of this namespace from other clusters."
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExportPolicySpec {
    /// The exported services that this policy is about. Empty: all of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceName>,
    /// Any rule that matches allows. No rules: nobody may.
    pub allow: Vec<AllowRule>,
}

/// One way in: all conditions that are present must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowRule {
    /// Peers that may call. Empty: every linked peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<ClusterName>,
    /// Exact SPIFFE IDs that may call. Empty together with `identityPrefixes`: every identity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<SpiffeId>,
    /// SPIFFE IDs by whole-segment prefix: `spiffe://east.example/ns/shop` is all of that namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identity_prefixes: Vec<SpiffeId>,
    /// Service ports that may be called. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
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
    pub conditions: Vec<Condition>,
}

impl ExportPolicySpec {
    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// When a port is 0.
    pub fn validate(&self) -> Result<(), FieldError> {
        for (rule, allow) in self.allow.iter().enumerate() {
            if let Some(index) = allow.ports.iter().position(|port| *port == 0) {
                let field = format!("spec.allow[{rule}].ports[{index}]");
                return Err(FieldError::new(field, "0 is not a port: use 1 to 65535"));
            }
        }
        Ok(())
    }
}
