//! Services and disruption budgets.

use serde_json::{Value, json};

use super::options::Options;
use super::{CONTROLLER, DNS, GATEWAY, Item, metadata, selector};
use crate::args::{ServiceType, TrafficPolicy};

/// All Services.
pub(super) fn services(options: &Options) -> Vec<Item> {
    let spec = &options.cluster.spec;
    let mut ports = vec![port("admin", "TCP", spec.gateway.admin_listen.port(), "admin")];
    if let Some(address) = spec.gateway.mtls_listen {
        ports.push(port("mtls", "TCP", address.port(), "mtls"));
    }
    let pods = service(
        options,
        spec.gateway.service.as_str(),
        "gateway",
        json!({ "clusterIP": "None", "ipFamilyPolicy": "PreferDualStack", "ports": ports }),
    );
    let configuration = service(
        options,
        CONTROLLER,
        "controller",
        json!({
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "ports": [
                port("configuration", "TCP", spec.controller.listen.port(), "configuration"),
                port("admin", "TCP", spec.controller.admin_listen.port(), "admin"),
            ],
        }),
    );
    let mut dns = json!({
        "type": "ClusterIP",
        "ports": [port("dns", "UDP", 53, "dns"), port("dns-tcp", "TCP", 53, "dns-tcp")],
    });
    if let Some(address) = options.dns_address {
        dns["clusterIP"] = json!(address);
    }
    vec![
        Item::new("Its EndpointSlices name the gateway pods: the only endpoints that mirrors have.", pods),
        Item::new("What peers dial.", link(options)),
        Item::new(
            "Where gateways get their configuration and certificates. Headless: of the controllers only the one that leads has the \
             port open, and gateways try each. It needs their links before it is ready.",
            configuration,
        ),
        Item::new("clusterset.local; CoreDNS forwards it here.", service(options, DNS, "controller", dns)),
    ]
}

/// Budgets for what has more than one replica; with one, a budget would keep its node from being drained for ever.
pub(super) fn budgets(options: &Options) -> Vec<Item> {
    [(GATEWAY, "gateway", options.gateways), (CONTROLLER, "controller", options.controllers)]
        .into_iter()
        .filter(|(_, _, replicas)| *replicas > 1)
        .map(|(name, component, _)| {
            Item::new(
                "One of them stays while nodes are drained.",
                json!({
                    "apiVersion": "policy/v1",
                    "kind": "PodDisruptionBudget",
                    "metadata": metadata(name, options.namespace()),
                    "spec": { "minAvailable": 1, "selector": { "matchLabels": selector(component) } },
                }),
            )
        })
        .collect()
}

fn link(options: &Options) -> Value {
    let spec = &options.cluster.spec;
    // Peers dial one address: both have the same number, at the nodes too.
    let number = spec.gateway.listen.port();
    let mut ports = vec![port("link", "UDP", number, "link")];
    if spec.gateway.tcp {
        ports.push(port("link-tcp", "TCP", number, "link-tcp"));
    }
    if let Some(number) = options.node_port {
        ports.iter_mut().for_each(|port| port["nodePort"] = json!(number));
    }
    let kind = match options.service_type {
        ServiceType::LoadBalancer => "LoadBalancer",
        ServiceType::NodePort => "NodePort",
        ServiceType::ClusterIp => "ClusterIP",
    };
    let mut about = json!({ "type": kind, "ports": ports });
    if options.service_type != ServiceType::ClusterIp {
        about["externalTrafficPolicy"] = match options.traffic_policy {
            TrafficPolicy::Cluster => json!("Cluster"),
            TrafficPolicy::Local => json!("Local"),
        };
    }
    let mut object = service(options, spec.gateway.link_service.as_str(), "gateway", about);
    if !options.annotations.is_empty() {
        object["metadata"]["annotations"] =
            options.annotations.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    }
    object
}

fn service(options: &Options, name: &str, component: &str, mut spec: Value) -> Value {
    spec["selector"] = selector(component);
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata(name, options.namespace()), "spec": spec })
}

fn port(name: &str, protocol: &str, number: u16, target: &str) -> Value {
    json!({ "name": name, "protocol": protocol, "port": number, "targetPort": target })
}
