//! Whether the cluster's DNS hands names of the clusterset over to the controllers' DNS.

use serde_json::Value;

use super::super::Checks;
use super::super::report::Group;
use crate::client::kubernetes::Cluster;
use crate::commands::install::DNS;

const GROUP: Group = Group::Dns;

/// The zone of the multi-cluster services API.
const ZONE: &str = "clusterset.local";

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
    let promised = checks.facts.mirrors.iter().any(|mirror| mirror.name.ends_with(&format!(".{ZONE}")));
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
        // Mirrors resolve without it, and so far nothing is imported.
        checks.warn(GROUP, name, reason, remedy);
    }
}

/// The addresses of the Service in front of the controllers' DNS.
async fn service(cluster: &Cluster) -> Result<Vec<String>, (String, &'static str)> {
    let apply = "apply what `linkspan install` prints again";
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
    format!(
        "{ZONE}:53 {{\n    forward . {address}\n}}\n(by {} -n kube-system edit configmap coredns)",
        cluster.kubectl()
    )
}

/// Where a Corefile sends the zone: by a server block of its own, or by a `forward` for it inside another one.
fn forwarded(corefile: &str) -> Option<Vec<String>> {
    let mut depth = 0_usize;
    let mut inside = false;
    for line in corefile.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let words: Vec<&str> = line.split_whitespace().collect();
        let opens = words.last().is_some_and(|word| *word == "{");
        if line == "}" {
            depth = depth.saturating_sub(1);
            continue;
        }
        if depth == 0 && opens {
            inside = words.iter().any(|word| is_zone(word));
        } else if depth == 1
            && let ["forward", from, targets @ ..] = words.as_slice()
            && (is_zone(from) || (inside && *from == "."))
        {
            let targets = targets.iter().filter(|word| **word != "{");
            return Some(targets.map(|target| bare(target).to_owned()).collect());
        }
        if opens {
            depth += 1;
        }
    }
    None
}

/// `clusterset.local`, with or without scheme, port, final dot and comma.
fn is_zone(word: &str) -> bool {
    let word = word.trim_end_matches(',').trim_start_matches("dns://");
    let name = word.split(':').next().unwrap_or_default();
    name.trim_end_matches('.').eq_ignore_ascii_case(ZONE)
}

/// An address without scheme and port.
fn bare(target: &str) -> &str {
    let target = target.trim_start_matches("dns://");
    match target.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        // More than one colon is an IPv6 address without a port.
        None if target.matches(':').count() == 1 => target.split(':').next().unwrap_or(target),
        None => target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBEADM: &str = ".:53 {\n    errors\n    health {\n       lameduck 5s\n    }\n    kubernetes cluster.local in-addr.arpa {\n       \
                           pods insecure\n    }\n    forward . /etc/resolv.conf {\n       max_concurrent 1000\n    }\n    cache 30\n}\n";

    #[test]
    fn a_plain_corefile_forwards_nothing_of_ours() {
        assert_eq!(forwarded(KUBEADM), None);
        assert_eq!(forwarded(""), None);
        let commented = format!("{KUBEADM}# clusterset.local:53 {{\n#  forward . 10.96.0.20\n# }}\n");
        assert_eq!(forwarded(&commented), None);
    }

    #[test]
    fn a_block_or_a_forward_of_its_own_is_found() {
        for (added, address) in [
            ("clusterset.local:53 {\n    forward . 10.96.0.20\n}\n", "10.96.0.20"),
            (
                "dns://clusterset.local. {\n  errors\n  cache {\n    success 5\n  }\n  forward . [fd00::20]:53\n}\n",
                "fd00::20",
            ),
            (
                "example.org, ClusterSet.local {\n  forward . dns://10.96.0.20:53 {\n    prefer_udp\n  }\n}\n",
                "10.96.0.20",
            ),
        ] {
            assert_eq!(forwarded(&format!("{KUBEADM}{added}")), Some(vec![address.to_owned()]), "{added}");
            assert_eq!(forwarded(&format!("{added}{KUBEADM}")), Some(vec![address.to_owned()]), "{added}");
        }
        let inside = KUBEADM.replace("    cache 30", "    forward clusterset.local 10.96.0.20\n    cache 30");
        assert_eq!(forwarded(&inside.replace("forward . /etc", "x . /etc")), Some(vec!["10.96.0.20".to_owned()]));
    }
}
