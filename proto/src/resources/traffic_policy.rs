//! Kind ClusterTrafficPolicy: weights, priority and health of one clusterset service.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FieldError;
use crate::names::{ClusterName, ServiceName};

/// The most tiers: preference beyond that is a mistake.
const MAX_TIERS: usize = 16;

/// The highest weight, so that sums stay exact and a share of one in a million can be said.
const MAX_WEIGHT: u32 = 1_000_000;

/// The most clusters of one tier. An API server needs the bound to know what its own rules cost.
const MAX_CLUSTERS: usize = 128;

/// Which clusters serve `<service>.<namespace>.svc.clusterset.local`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "linkspan.io",
    version = "v1alpha1",
    kind = "ClusterTrafficPolicy",
    plural = "clustertrafficpolicies",
    namespaced,
    status = "ClusterTrafficPolicyStatus",
    derive = "PartialEq",
    shortname = "ctp",
    category = "linkspan",
    printcolumn = r#"{"name":"Service","type":"string","jsonPath":".spec.service","description":"The service whose clusterset name is served"}"#,
    printcolumn = r#"{"name":"First-Tier","type":"string","jsonPath":".spec.tiers[0].clusters","description":"Weights of the most preferred tier"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].status","description":"Whether the gateways follow it as it stands"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].message","priority":1,"description":"Why it is accepted or not"}"#,
    doc = "Which clusters serve a clusterset name: weights per cluster, in tiers of falling preference."
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterTrafficPolicySpec {
    /// The service, in the policy's own namespace.
    pub service: ServiceName,
    /// Tiers, the most preferred first.
    #[schemars(length(min = 1, max = MAX_TIERS), extend("x-kubernetes-list-type" = "atomic"))]
    pub tiers: Vec<TierSpec>,
}

/// Clusters of equal preference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TierSpec {
    /// Weight by cluster name, 0 to 1000000; the local cluster by its own name. 0 gets exactly nothing.
    // Kubernetes' schemas know no patterns for keys, and a rule with a pattern would cost too much there.
    #[schemars(
        with = "BTreeMap<String, Weight>",
        extend(
            "minProperties" = 1,
            "maxProperties" = MAX_CLUSTERS,
            "x-kubernetes-validations" = [{
                "rule": "self.all(cluster, cluster.size() > 0 && cluster.size() <= 63)",
                "message": "a cluster name has 1 to 63 characters: lower-case letters, digits and '-'"
            }]
        )
    )]
    pub clusters: BTreeMap<ClusterName, u32>,
    /// The tier serves while this percentage of it is healthy, 1 to 100: the sum over its clusters of weight times ready
    /// endpoints of all endpoints, by the sum of the weights. Default: 1, which any ready endpoint at all is enough for.
    #[serde(default = "default_min_healthy_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub min_healthy_percent: u8,
}

/// A weight, for the schema.
#[derive(JsonSchema)]
#[schemars(inline)]
#[allow(dead_code, reason = "only its schema is used")]
struct Weight(#[schemars(range(max = MAX_WEIGHT))] u32);

/// What the controller reports about a ClusterTrafficPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterTrafficPolicyStatus {
    /// `Accepted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

const fn default_min_healthy_percent() -> u8 {
    1
}

impl ClusterTrafficPolicySpec {
    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// When there is no tier or a tier without clusters, or a number is out of its range.
    pub fn validate(&self) -> Result<(), FieldError> {
        if self.tiers.is_empty() || self.tiers.len() > MAX_TIERS {
            let message = format!("{} tiers: write 1 to {MAX_TIERS}", self.tiers.len());
            return Err(FieldError::new("spec.tiers", message));
        }
        for (index, tier) in self.tiers.iter().enumerate() {
            let field = |name: &str| format!("spec.tiers[{index}].{name}");
            if tier.clusters.is_empty() {
                return Err(FieldError::new(field("clusters"), "empty: name at least one cluster with its weight"));
            }
            if tier.clusters.len() > MAX_CLUSTERS {
                let message = format!("{} of them, at most {MAX_CLUSTERS} are served", tier.clusters.len());
                return Err(FieldError::new(field("clusters"), message));
            }
            for (cluster, weight) in &tier.clusters {
                if *weight > MAX_WEIGHT {
                    let message = format!("{weight} is over {MAX_WEIGHT}: weights are relative, divide them all");
                    return Err(FieldError::new(field(&format!("clusters.{cluster}")), message));
                }
            }
            if !(1..=100).contains(&tier.min_healthy_percent) {
                let message = format!("{} is not a percentage from 1 to 100", tier.min_healthy_percent);
                return Err(FieldError::new(field("minHealthyPercent"), message));
            }
        }
        Ok(())
    }
}
