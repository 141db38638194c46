//! Who has which address: all pods, by the ServiceAccount that they run as.
//!
//! - In: the API server's pods, of which only metadata and status count.
//! - Out: one [`Workload`] for each ServiceAccount with pods. Each is a resource of its own for the gateways, so that a pod that
//!   comes costs them the addresses of its account and not those of the cluster.
//! - Never does: give an address to two. While two pods have one (one is on its way out), nobody is known by it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::{Client, ResourceExt};
use linkspan_proto::configuration::Workload;
use linkspan_proto::names::{Namespace, ServiceAccountName};
use tokio::sync::watch;

use super::{PACE, changed, config, follow};

/// A ServiceAccount of this cluster.
type Account = (Namespace, ServiceAccountName);

/// Watches all pods. Runs until `workloads` is closed.
pub async fn workloads(client: Client, workloads: watch::Sender<Option<Vec<Workload>>>) {
    // Pods that have ended keep their address in their status, and somebody else may have it.
    let config = config().fields("status.phase!=Succeeded,status.phase!=Failed");
    follow(Api::<Pod>::all(client), config, PACE, identify, |pods| {
        changed(&workloads, Some(by_account(pods.values())))
    })
    .await;
}

/// Whose pod it is and its addresses. Pods on the host's network have the host's.
fn identify(pod: &Pod) -> Option<(Account, Vec<IpAddr>)> {
    let spec = pod.spec.as_ref().filter(|spec| spec.host_network != Some(true))?;
    let account = spec.service_account_name.as_deref().unwrap_or("default");
    let account = (Namespace::parse(&pod.namespace()?).ok()?, ServiceAccountName::parse(account).ok()?);
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    let addresses: Vec<_> = ips.filter_map(|ip| ip.ip.parse().ok()).collect();
    (!addresses.is_empty()).then_some((account, addresses))
}

fn by_account<'a>(pods: impl Iterator<Item = &'a (Account, Vec<IpAddr>)>) -> Vec<Workload> {
    let mut owners: BTreeMap<IpAddr, Option<&Account>> = BTreeMap::new();
    for (account, addresses) in pods {
        for address in addresses {
            owners.entry(*address).and_modify(|owner| *owner = None).or_insert(Some(account));
        }
    }
    let mut ranges: BTreeMap<&Account, Vec<IpNet>> = BTreeMap::new();
    for (address, account) in owners {
        if let Some(account) = account {
            ranges.entry(account).or_default().push(address.into());
        }
    }
    let workload = |((namespace, service_account), ranges): (&Account, Vec<IpNet>)| Workload {
        namespace: namespace.clone(),
        service_account: service_account.clone(),
        ranges,
    };
    ranges.into_iter().map(workload).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(namespace: &str, account: &str, host: bool, ips: &[&str]) -> Option<(Account, Vec<IpAddr>)> {
        let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let pod = json!({
            "metadata": {"namespace": namespace, "name": "web-0"},
            "spec": {"serviceAccountName": account, "hostNetwork": host, "containers": []},
            "status": {"podIPs": ips},
        });
        identify(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_has_its_addresses_unless_they_are_its_hosts() {
        let ((namespace, account), addresses) = pod("shop", "web", false, &["10.244.0.7", "fd00::7"]).unwrap();
        assert_eq!((namespace.as_str(), account.as_str(), addresses.len()), ("shop", "web", 2));
        assert_eq!(pod("shop", "web", true, &["10.244.0.7"]), None);
        assert_eq!(pod("shop", "web", false, &[]), None);
    }

    #[test]
    fn addresses_are_told_by_account_and_one_that_two_pods_have_is_nobodys() {
        let pods = [
            pod("shop", "web", false, &["10.244.0.7", "fd00::7"]),
            pod("shop", "web", false, &["10.244.0.6"]),
            pod("bank", "web", false, &["10.244.0.8"]),
            pod("bank", "old", false, &["10.244.0.9"]),
            pod("bank", "new", false, &["10.244.0.9"]),
        ]
        .map(Option::unwrap);
        let told: Vec<_> = by_account(pods.iter())
            .iter()
            .map(|it| format!("{}/{} {:?}", it.namespace, it.service_account, it.ranges))
            .collect();
        assert_eq!(told, ["bank/web [10.244.0.8/32]", "shop/web [10.244.0.6/32, 10.244.0.7/32, fd00::7/128]"]);
    }
}
