//! Deployments and what they mount.
//!
//! Both run without any privilege, on a read-only file system. No probe looks at a peer, at the link or at the API server: a
//! pod is never restarted because the network outside is down.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::options::Options;
use super::{CONFIGURATION, CONTROLLER, GATEWAY, Item, ROOT, metadata, selector};

/// The user and the group of the images, which is nobody's.
const USER: u32 = 65532;

/// What a pod gets beyond the gateway's own drain before it is killed, in seconds: to leave the Services first, and for
/// connections that are closed by force at the end of the drain to be told so.
const BEYOND_DRAIN: u32 = 20;

/// How long the gateway's token is valid, in seconds; the kubelet renews it at 80 %.
const TOKEN_SECONDS: u32 = 3600;

/// Who the gateway's token is for. The API server itself does not take it.
const TOKEN_AUDIENCE: &str = "linkspan-controller";

/// Configuration, root certificate, authority.
const SETTINGS_PATH: &str = "/etc/linkspan";

/// What differs between the two.
struct Workload<'a> {
    name: &'a str,
    component: &'a str,
    replicas: u16,
    image: &'a str,
    ports: Vec<Value>,
    /// Files below [`SETTINGS_PATH`].
    settings: Vec<Value>,
    /// A volume of its own with where it is mounted.
    token: Option<(Value, &'a str)>,
    api_token: bool,
    resources: Value,
    grace_seconds: u32,
}

/// Both Deployments.
pub(super) fn deployments(options: &Options) -> Vec<Item> {
    vec![
        Item::new(
            "One leads, writes, and answers the gateways; all answer DNS.",
            deployment(options, controller(options)),
        ),
        Item::new(
            "They carry the traffic, and go on without controller and API server.",
            deployment(options, gateway(options)),
        ),
    ]
}

fn gateway(options: &Options) -> Workload<'_> {
    let spec = &options.cluster.spec.gateway;
    let mut ports = vec![port("link", "UDP", &spec.listen)];
    if spec.tcp {
        ports.push(port("link-tcp", "TCP", &spec.listen));
    }
    ports.push(port("admin", "TCP", &spec.admin_listen));
    ports.extend(spec.mtls_listen.as_ref().map(|address| port("mtls", "TCP", address)));
    let token = json!({
        "name": "token",
        "projected": {
            "sources": [{
                "serviceAccountToken": {
                    "audience": TOKEN_AUDIENCE,
                    "expirationSeconds": TOKEN_SECONDS,
                    "path": "token",
                },
            }],
        },
    });
    Workload {
        name: GATEWAY,
        component: "gateway",
        replicas: options.gateways,
        image: "gateway",
        ports,
        settings: vec![file(CONFIGURATION, "cluster.yaml", "cluster.yaml"), file(ROOT, "root.pem", "root/root.pem")],
        token: Some((token, "/var/run/secrets/linkspan")),
        api_token: false,
        // No limit on the processor: throttling is latency of every request. Memory is what must not run away.
        resources: json!({
            "requests": { "cpu": "100m", "memory": "128Mi" },
            "limits": { "memory": "512Mi" },
        }),
        grace_seconds: spec.drain_seconds + BEYOND_DRAIN,
    }
}

fn controller(options: &Options) -> Workload<'_> {
    let spec = &options.cluster.spec;
    let ports = vec![
        port("configuration", "TCP", &spec.controller.listen),
        port("admin", "TCP", &spec.controller.admin_listen),
        port("dns", "UDP", &spec.dns.listen),
        port("dns-tcp", "TCP", &spec.dns.listen),
    ];
    let authority = json!({
        "secret": {
            "name": options.ca_secret,
            "items": [
                { "key": "root.pem", "path": "ca/root.pem", "mode": 0o400 },
                { "key": "root.key", "path": "ca/root.key", "mode": 0o400 },
            ],
        },
    });
    Workload {
        name: CONTROLLER,
        component: "controller",
        replicas: options.controllers,
        image: "mirror-controller",
        ports,
        settings: vec![
            file(CONFIGURATION, "cluster.yaml", "cluster.yaml"),
            file(ROOT, "root.pem", "root/root.pem"),
            authority,
        ],
        token: None,
        api_token: true,
        resources: json!({
            "requests": { "cpu": "50m", "memory": "128Mi" },
            "limits": { "memory": "384Mi" },
        }),
        grace_seconds: BEYOND_DRAIN,
    }
}

fn deployment(options: &Options, workload: Workload<'_>) -> Value {
    let labels = selector(workload.component);
    let mut pod_labels = labels.clone();
    let part_of = super::part_of();
    for (key, value) in part_of.as_object().into_iter().flatten() {
        pod_labels[key] = value.clone();
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(workload.name, options.namespace()),
        "spec": {
            "replicas": workload.replicas,
            "selector": { "matchLabels": labels },
            // A new pod serves before an old one goes.
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "template": {
                "metadata": {
                    "labels": pod_labels,
                    "annotations": {
                        // The programs read their configuration once.
                        "linkspan.io/configuration": options.configuration_hash(),
                        // Not to be taken into a mesh: the gateway has its own identity and its own ports.
                        "linkerd.io/inject": "disabled",
                        "sidecar.istio.io/inject": "false",
                    },
                },
                "spec": pod(options, workload),
            },
        },
    })
}

fn pod(options: &Options, workload: Workload<'_>) -> Value {
    let labels = selector(workload.component);
    let spread = |key: &str| {
        json!({
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": labels },
            "matchLabelKeys": ["pod-template-hash"],
        })
    };
    let mut volumes = vec![
        json!({ "name": "settings", "projected": { "defaultMode": 0o444, "sources": workload.settings } }),
        // What is in it is small: sockets, last good state.
        json!({ "name": "state", "emptyDir": { "sizeLimit": "64Mi" } }),
    ];
    let mut mounts = vec![
        json!({ "name": "settings", "mountPath": SETTINGS_PATH, "readOnly": true }),
        json!({ "name": "state", "mountPath": options.cluster.spec.state_dir }),
    ];
    if let Some((volume, path)) = workload.token {
        mounts.push(json!({ "name": volume["name"], "mountPath": path, "readOnly": true }));
        volumes.push(volume);
    }
    let probe = |path: &str, period: u8, failures: u8| {
        json!({
            "httpGet": { "path": path, "port": "admin" },
            "periodSeconds": period,
            "timeoutSeconds": 2,
            "failureThreshold": failures,
        })
    };
    let fact = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    json!({
        "serviceAccountName": workload.name,
        "automountServiceAccountToken": workload.api_token,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": workload.grace_seconds,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "topologySpreadConstraints": [spread("kubernetes.io/hostname"), spread("topology.kubernetes.io/zone")],
        "containers": [{
            "name": workload.component,
            "image": format!("{}/{}:{}", options.image, workload.image, options.image_tag),
            "args": [
                "--kubernetes",
                "--config", format!("{SETTINGS_PATH}/cluster.yaml"),
                "--pod-name", "$(POD_NAME)",
                "--pod-ip", "$(POD_IP)",
                "--log-format", "json",
            ],
            "env": [fact("POD_NAME", "metadata.name"), fact("POD_IP", "status.podIP")],
            "ports": workload.ports,
            "readinessProbe": probe("/ready", 2, 2),
            "livenessProbe": probe("/live", 10, 6),
            "resources": workload.resources,
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            },
            "volumeMounts": mounts,
        }],
        "volumes": volumes,
    })
}

fn port(name: &str, protocol: &str, address: &SocketAddr) -> Value {
    json!({ "name": name, "protocol": protocol, "containerPort": address.port() })
}

/// One file of a ConfigMap.
fn file(map: &str, key: &str, path: &str) -> Value {
    json!({ "configMap": { "name": map, "items": [{ "key": key, "path": path }] } })
}
