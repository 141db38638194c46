//! At which addresses peers reach the gateways of a cluster: what its Service for the link says. Pure.

use linkspan_proto::resources::HostPort;
use serde_json::Value;

/// Nodes that are named at most. A peer tries one address after the other, and a Link holds 64.
const NODES_MAX: usize = 16;

/// What a Service says of its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It has some.
    At(Vec<HostPort>),
    /// Those of nodes inside their own network; peers elsewhere may not get there.
    Inside(Vec<HostPort>),
    /// It waits for its load balancer.
    Pending,
    /// A node port without any node that has an address.
    NoNode,
    /// It is for this cluster alone: we dial, nobody dials us.
    Nobody,
}

/// Reads a Service, and for a node port the nodes.
pub(crate) fn reach(service: &Value, nodes: &[Value]) -> Reach {
    let spec = &service["spec"];
    let port = |field: &str| spec["ports"][0][field].as_u64().and_then(|port| u16::try_from(port).ok());
    let at = |hosts: Vec<String>, port: Option<u16>| -> Vec<HostPort> {
        let port = port.unwrap_or_default();
        let mut all: Vec<HostPort> = hosts.iter().filter_map(|host| address(host, port)).collect();
        all.dedup();
        all
    };
    let texts = |list: &Value, field: &str| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|item| Some(item[field].as_str()?.to_owned())).collect()
    };
    let external: Vec<String> =
        spec["externalIPs"].as_array().into_iter().flatten().filter_map(|ip| Some(ip.as_str()?.to_owned())).collect();
    if !external.is_empty() {
        return Reach::At(at(external, port("port")));
    }
    match spec["type"].as_str() {
        Some("LoadBalancer") => {
            let ingress = &service["status"]["loadBalancer"]["ingress"];
            let hosts: Vec<String> = texts(ingress, "ip").into_iter().chain(texts(ingress, "hostname")).collect();
            if hosts.is_empty() { Reach::Pending } else { Reach::At(at(hosts, port("port"))) }
        }
        Some("NodePort") => {
            let of_kind = |kind: &str| -> Vec<String> {
                let ready = nodes.iter().filter(|node| is_ready(node)).take(NODES_MAX);
                let addresses = ready.flat_map(|node| node["status"]["addresses"].as_array().into_iter().flatten());
                let wanted = addresses.filter(|address| address["type"] == kind);
                wanted.filter_map(|address| Some(address["address"].as_str()?.to_owned())).collect()
            };
            let (outside, inside) = (of_kind("ExternalIP"), of_kind("InternalIP"));
            match (outside.is_empty(), inside.is_empty()) {
                (false, _) => Reach::At(at(outside, port("nodePort"))),
                (true, false) => Reach::Inside(at(inside, port("nodePort"))),
                (true, true) => Reach::NoNode,
            }
        }
        _ => Reach::Nobody,
    }
}

fn address(host: &str, port: u16) -> Option<HostPort> {
    let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    HostPort::parse(&text).ok().filter(|address| address.port != 0)
}

fn is_ready(node: &Value) -> bool {
    let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    // A node that says nothing of itself is taken.
    conditions.find(|condition| condition["type"] == "Ready").is_none_or(|condition| condition["status"] == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(reach: Reach) -> Vec<String> {
        match reach {
            Reach::At(addresses) | Reach::Inside(addresses) => addresses.iter().map(ToString::to_string).collect(),
            Reach::Pending | Reach::NoNode | Reach::Nobody => Vec::new(),
        }
    }

    #[test]
    fn a_load_balancer_has_addresses_or_is_waited_for() {
        let mut service = json!({ "spec": { "type": "LoadBalancer", "ports": [{ "port": 4143, "nodePort": 30143 }] } });
        assert_eq!(reach(&service, &[]), Reach::Pending);
        service["status"] = json!({ "loadBalancer": { "ingress": [
            { "ip": "192.0.2.7" }, { "ip": "2001:db8::7" }, { "hostname": "lb.example.com" }
        ] } });
        assert_eq!(texts(reach(&service, &[])), ["192.0.2.7:4143", "[2001:db8::7]:4143", "lb.example.com:4143"]);
    }

    #[test]
    fn a_node_port_is_at_the_nodes() {
        let service = json!({ "spec": { "type": "NodePort", "ports": [{ "port": 4143, "nodePort": 30143 }] } });
        assert_eq!(reach(&service, &[]), Reach::NoNode);
        let node = |ready: &str, addresses: Value| json!({ "status": { "conditions": [{ "type": "Ready", "status": ready }], "addresses": addresses } });
        let inside = json!([{ "type": "InternalIP", "address": "10.0.0.1" }, { "type": "Hostname", "address": "a" }]);
        let outside =
            json!([{ "type": "ExternalIP", "address": "192.0.2.1" }, { "type": "InternalIP", "address": "10.0.0.2" }]);
        let found = reach(&service, &[node("True", inside.clone())]);
        assert!(matches!(found, Reach::Inside(_)));
        assert_eq!(texts(found), ["10.0.0.1:30143"]);
        assert_eq!(texts(reach(&service, &[node("True", inside), node("True", outside.clone())])), ["192.0.2.1:30143"]);
        assert_eq!(reach(&service, &[node("False", outside)]), Reach::NoNode);
    }

    #[test]
    fn a_cluster_that_only_dials_has_none() {
        let service = json!({ "spec": { "type": "ClusterIP", "ports": [{ "port": 4143 }] } });
        assert_eq!(reach(&service, &[]), Reach::Nobody);
    }
}
