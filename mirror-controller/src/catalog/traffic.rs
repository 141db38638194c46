//! Traffic policies: which one holds for a service. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use linkspan_proto::configuration::Tier;
use linkspan_proto::names::{Namespace, ServiceKey};
use linkspan_proto::resources::ClusterTrafficPolicy;

use super::snapshot::Traffic;
use crate::verdict::Verdict;
use crate::watch::{Kind, ObjectKey};

/// Checks one policy by itself.
pub(super) fn check(key: &ObjectKey, policy: &ClusterTrafficPolicy) -> Result<(ServiceKey, Vec<Tier>), Verdict> {
    let refuse = |reason: &str, message: String| Verdict::new("Accepted", false, reason, message);
    let namespace = Namespace::parse(&key.namespace).map_err(|error| refuse("InvalidName", error.to_string()))?;
    policy.spec.validate().map_err(|error| refuse("Invalid", error.to_string()))?;
    // A policy that sends nothing anywhere is a mistake; who wants that removes the export.
    if policy.spec.tiers.iter().flat_map(|tier| tier.clusters.values()).all(|weight| *weight == 0) {
        return Err(refuse("Invalid", "spec.tiers: every weight is 0, nothing could be reached".to_owned()));
    }
    let tiers = policy
        .spec
        .tiers
        .iter()
        .map(|tier| Tier { clusters: tier.clusters.clone(), min_healthy_percent: tier.min_healthy_percent })
        .collect();
    Ok((ServiceKey::new(namespace, policy.spec.service.clone()), tiers))
}

/// What was in force before a restart, as far as it still can be.
pub(super) fn restore(policies: Vec<ClusterTrafficPolicy>) -> BTreeMap<ObjectKey, ClusterTrafficPolicy> {
    let key = |policy: &ClusterTrafficPolicy| ObjectKey {
        kind: Kind::ClusterTrafficPolicy,
        namespace: policy.metadata.namespace.clone().unwrap_or_default(),
        name: policy.metadata.name.clone().unwrap_or_default(),
    };
    let policies = policies.into_iter().map(|policy| (key(&policy), policy));
    policies.filter(|(key, policy)| check(key, policy).is_ok()).collect()
}

/// Of several policies for one service the first by name holds.
pub(super) fn settle(
    policies: &BTreeMap<ObjectKey, ClusterTrafficPolicy>,
    good: &BTreeMap<ObjectKey, ClusterTrafficPolicy>,
) -> BTreeMap<ServiceKey, Arc<Traffic>> {
    let mut settled: BTreeMap<ServiceKey, Traffic> = BTreeMap::new();
    for (key, policy) in policies {
        let Some(Ok((service, tiers))) = good.get(key).map(|good| check(key, good)) else { continue };
        let name = &key.name;
        if let Some(first) = settled.get_mut(&service) {
            if first.verdict.holds() {
                let message = format!("policy {} is in force; {name} is for the same service and is not", first.policy);
                first.verdict = Verdict::new("Accepted", false, "PolicyConflict", message);
            }
            continue;
        }
        let verdict = match check(key, policy) {
            Ok(_) => Verdict::new("Accepted", true, "Accepted", format!("policy {name} is in force")),
            Err(mut verdict) => {
                verdict.message += "; the version before stays in force";
                verdict
            }
        };
        settled.insert(service, Traffic { policy: name.clone(), tiers, verdict });
    }
    settled.into_iter().map(|(service, traffic)| (service, Arc::new(traffic))).collect()
}
