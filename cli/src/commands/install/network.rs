//! Who may send what to whom.
//!
//! Probes of the kubelet come from the pod's own node, which network policies do not hold back.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::options::Options;
use super::{CONTROLLER, GATEWAY, Item, metadata, selector};

/// Namespaces whose pods may read the admin port carry this label, with the value `true`.
const METRICS_LABEL: &str = "linkspan.io/metrics";

/// Link-local IPv4, where clouds hand out credentials to whoever asks (169.254.169.254).
const LINK_LOCAL: &str = "169.254.0.0/16";
/// The same on IPv6: link-local, and the address that one large cloud uses.
const LINK_LOCAL_6: [&str; 2] = ["fe80::/10", "fd00:ec2::254/128"];

/// Both policies, if wanted.
pub(super) fn policies(options: &Options) -> Vec<Item> {
    if options.network_policy { vec![gateway(options), controller(options)] } else { Vec::new() }
}

fn gateway(options: &Options) -> Item {
    let spec = &options.cluster.spec;
    let anywhere = || {
        json!([
            { "ipBlock": { "cidr": "0.0.0.0/0", "except": [LINK_LOCAL] } },
            { "ipBlock": { "cidr": "::/0", "except": LINK_LOCAL_6 } },
            { "namespaceSelector": {} },
        ])
    };
    let peers = if options.peer_networks.is_empty() { anywhere() } else { blocks(&options.peer_networks) };
    let mut local = vec![
        json!({ "protocol": "TCP", "port": spec.gateway.ports.first, "endPort": spec.gateway.ports.last }),
        json!({ "protocol": "UDP", "port": spec.gateway.ports.first, "endPort": spec.gateway.ports.last }),
    ];
    local.extend(spec.gateway.mtls_listen.as_ref().map(tcp));
    let mut link = vec![json!({ "protocol": "UDP", "port": spec.gateway.listen.port() })];
    if spec.gateway.tcp {
        link.push(tcp(&spec.gateway.listen));
    }
    let ingress = json!([
        { "from": peers, "ports": link },
        { "from": [{ "namespaceSelector": {} }], "ports": local },
        { "from": admin(options), "ports": [tcp(&spec.gateway.admin_listen)] },
    ]);
    // Peers may listen on any port, and exported backends too: what is dialled at all the gateway's export table decides.
    let egress = json!([{ "to": anywhere() }, resolver()]);
    policy(
        options,
        GATEWAY,
        "gateway",
        "Gateways: peers on the link's port, pods on mirrored ports; out to peers, backends, DNS and the controller.",
        ingress,
        egress,
    )
}

fn controller(options: &Options) -> Item {
    let spec = &options.cluster.spec;
    let gateways = json!([{ "podSelector": { "matchLabels": selector("gateway") } }]);
    let dns = [json!({ "protocol": "UDP", "port": spec.dns.listen.port() }), tcp(&spec.dns.listen)];
    let ingress = json!([
        { "from": gateways, "ports": [tcp(&spec.controller.listen)] },
        // CoreDNS' pods, or nodes where it has their network.
        { "ports": dns },
        { "from": admin(options), "ports": [tcp(&spec.controller.admin_listen)] },
    ]);
    // After the API server's Service is resolved to an address: 6443 where it listens itself, 443 behind a load balancer.
    let mut api_server = json!({ "ports": [{ "protocol": "TCP", "port": 443 }, { "protocol": "TCP", "port": 6443 }] });
    if !options.api_servers.is_empty() {
        api_server["to"] = blocks(&options.api_servers);
    }
    policy(
        options,
        CONTROLLER,
        "controller",
        "Controllers: gateways and DNS queries in; the API server, gateways and the cluster's DNS out.",
        ingress,
        json!([api_server, { "to": gateways }, resolver()]),
    )
}

/// DNS, wherever it is: in `kube-system`, or in a cache of each node, which commonly has the link-local address 169.254.20.10.
fn resolver() -> Value {
    json!({ "ports": [{ "protocol": "UDP", "port": 53 }, { "protocol": "TCP", "port": 53 }] })
}

/// Who may reach an admin port.
fn admin(options: &Options) -> Value {
    let mut from = vec![json!({ "namespaceSelector": { "matchLabels": { METRICS_LABEL: "true" } } })];
    if let Value::Array(blocks) = blocks(&options.api_servers) {
        from.extend(blocks);
    }
    Value::Array(from)
}

fn policy(options: &Options, name: &str, component: &str, note: &str, ingress: Value, egress: Value) -> Item {
    Item::new(
        note,
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata(name, options.namespace()),
            "spec": {
                "podSelector": { "matchLabels": selector(component) },
                "policyTypes": ["Ingress", "Egress"],
                "ingress": ingress,
                "egress": egress,
            },
        }),
    )
}

fn blocks(networks: &[String]) -> Value {
    networks.iter().map(|network| json!({ "ipBlock": { "cidr": network } })).collect()
}

fn tcp(address: &SocketAddr) -> Value {
    json!({ "protocol": "TCP", "port": address.port() })
}
