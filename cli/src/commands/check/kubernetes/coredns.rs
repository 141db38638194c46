//! Whether the cluster's DNS hands names of the clusterset over to the controllers' DNS.

use serde_json::Value;

use super::super::Checks;
use super::super::report::Group;
use crate::client::kubernetes::Cluster;
use crate::commands::install::DNS;
use crate::commands::install::coredns::{ZONE, block, forwarded};

const GROUP: Group = Group::Dns;

/// Runs the check.
pub(super) async fn check(checks: &mut Checks<'_>, cluster: &Cluster) {
    checks.progress.say("CoreDNS");
    let addresses = match service(cluster).await {
        Ok(addresses) => addresses,
        Err((reason, remedy)) => return checks.fail(GROUP, "the controllers' DNS has an address", reason, remedy),
    };
    let name = "CoreDNS forwards clusterset.local";
    let lines = lines(cluster, addresses.first().map_or("ADDRESS", String::as_str));
    let maps = "/api/v1/namespaces/kube-system/configmaps";
    let mut corefile = match cluster.api().find(&format!("{maps}/coredns")).await {
        Ok(Some(map)) => map["data"]["Corefile"].as_str().unwrap_or_default().to_owned(),
        Ok(None) => {
            let reason = "there is no ConfigMap coredns in kube-system: this cluster's DNS is another one";
            let remedy = format!("let it forward the zone {ZONE} to {}", addresses.join(" "));
            return checks.warn(GROUP, name, reason, remedy);
        }
        Err(error) => {
            return checks.warn(
                GROUP,
                name,
                error.to_string(),
                format!("see yourself that these lines are in it:\n{lines}"),
            );
        }
    };
    // Some vendors keep what users add in a second ConfigMap, which the first one imports.
    if let Ok(Some(more)) = cluster.api().find(&format!("{maps}/coredns-custom")).await {
        for text in more["data"].as_object().into_iter().flat_map(|data| data.values()).filter_map(Value::as_str) {
            corefile.push('\n');
            corefile.push_str(text);
        }
    }
    // What this cluster exports has a name in the clusterset too; nobody is told to use that one here before another cluster
    // stands behind it.
    let own = checks.facts.own.as_ref();
    let promised = checks.facts.mirrors.iter().any(|mirror| {
        let mut clusters = mirror.tiers.iter().flat_map(|tier| tier.clusters.keys());
        mirror.name.ends_with(&format!(".{ZONE}")) && clusters.any(|cluster| Some(cluster) != own)
    });
    let (reason, remedy) = match forwarded(&corefile) {
        Some(targets) if targets.iter().any(|target| addresses.contains(target)) => {
            return checks.ok(GROUP, name, format!("to {}", targets.join(" ")));
        }
        Some(targets) => (
            format!("it forwards to {}, and the Service {DNS} is at {}", targets.join(" "), addresses.join(" ")),
            format!("correct the address; the lines are:\n{lines}"),
        ),
        None => (
            "nothing in its configuration names that zone: names of the clusterset do not resolve in pods".to_owned(),
            format!("add these lines:\n{lines}"),
        ),
    };
    if promised {
        checks.fail(GROUP, name, reason, remedy);
    } else {
        // Mirrors of one cluster resolve without it, and so far nothing of another is imported.
        checks.warn(GROUP, name, reason, format!("where names of the clusterset are used: {remedy}"));
    }
}

/// The addresses of the Service in front of the controllers' DNS.
async fn service(cluster: &Cluster) -> Result<Vec<String>, (String, &'static str)> {
    let apply = "apply again what `linkspan install` prints with the same arguments";
    match cluster.api().find(&cluster.own("v1", &format!("services/{DNS}"))).await {
        Ok(Some(service)) => {
            let ips = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
            let ips: Vec<String> = ips.filter_map(|ip| Some(ip.as_str()?.to_owned())).collect();
            if ips.is_empty() { Err((format!("the Service {DNS} has none"), apply)) } else { Ok(ips) }
        }
        Ok(None) => Err((format!("there is no Service {DNS}"), apply)),
        Err(error) => Err((error.to_string(), "ask for the right to get services in this namespace")),
    }
}

/// What to add, and where.
fn lines(cluster: &Cluster, address: &str) -> String {
    let kubectl = cluster.kubectl();
    format!(
        "{}(by {kubectl} -n kube-system edit configmap coredns, or: {kubectl} -n kube-system get configmap coredns -o yaml | \
         linkspan install --coredns - --dns-cluster-ip {address} | {kubectl} replace -f -)",
        block(address)
    )
}
