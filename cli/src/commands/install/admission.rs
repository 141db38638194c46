//! What the API server refuses from the controller, beyond its rights: RBAC knows no labels and no fields.
//!
//! One policy for each kind that the controller writes, bound by the name of its service account, so that even a stolen token of
//! it can change nothing but mirrors, and what is called as one. CEL sees one object and the request, no other object: whether
//! an address is that of a gateway pod, or a Service of such a name a mirror, it cannot know; networks and ports it can. The
//! expressions need Kubernetes 1.31 (`ip` and `cidr` functions).

use linkspan_mirror_controller::labels;
use linkspan_proto::names::CLUSTERSET;
use linkspan_proto::resources::{PortRange, SERVICE_NAME_LABEL};
use serde_json::{Value, json};

use super::options::Options;
use super::{CONTROLLER, Item, cluster_metadata};
use crate::args::RESERVED_NAMESPACES;

/// The kind whose policy knows networks.
const SLICES: &str = "endpointslices";

/// A rule that must hold, and what is said when it does not.
type Rule = (String, String);

/// Owners that a mirror may have: with them it is collected.
const OWNERS: &str = "!has(object.metadata.ownerReferences) || object.metadata.ownerReferences.all(owner, \
     owner.apiVersion.startsWith('linkspan.io/') || owner.apiVersion.startsWith('multicluster.x-k8s.io/') || \
     (owner.apiVersion == 'v1' && owner.kind == 'Service'))";

/// All policies with their bindings.
pub(super) fn policies(options: &Options) -> Vec<Item> {
    [
        ("services", "", &["v1"][..], services()),
        (SLICES, "discovery.k8s.io", &["v1"], slices(options)),
        ("serviceimports", "multicluster.x-k8s.io", &["v1alpha1", "v1beta1"], Vec::new()),
    ]
    .into_iter()
    .flat_map(|(resource, group, versions, own)| {
        let mut rules = common(options);
        rules.extend(own);
        [policy(options, resource, group, versions, &rules), binding(resource)]
    })
    .collect()
}

/// What holds for everything that the controller writes.
fn common(options: &Options) -> Vec<Rule> {
    let (key, value) = (labels::MANAGED_BY, labels::MANAGED_BY_VALUE);
    let own = |object: &str| {
        format!(
            "{object} == null || (has({object}.metadata.labels) && '{key}' in {object}.metadata.labels && \
             {object}.metadata.labels['{key}'] == '{value}')"
        )
    };
    let mut reserved: Vec<_> = RESERVED_NAMESPACES.to_vec();
    reserved.push(options.namespace());
    reserved.sort_unstable();
    let reserved: Vec<_> = reserved.into_iter().map(|name| format!("'{name}'")).collect();
    vec![
        (
            format!("!(request.namespace in [{}])", reserved.join(", ")),
            "nothing is mirrored into a namespace of Kubernetes or of Linkspan itself".to_owned(),
        ),
        (own("object"), format!("the controller writes only what it labels {key}={value}")),
        (own("oldObject"), format!("the controller changes and deletes only what is labelled {key}={value}")),
        (
            format!("object == null || {OWNERS}"),
            "a mirror belongs to a Link, a ServiceImport or a Service, and to nothing else".to_owned(),
        ),
    ]
}

fn services() -> Vec<Rule> {
    let rule = |holds: &str, message: &str| (format!("object == null || ({holds})"), message.to_owned());
    vec![
        rule("!has(object.spec.type) || object.spec.type == 'ClusterIP'", "a mirror is a Service of type ClusterIP"),
        rule(
            "!has(object.spec.selector) || object.spec.selector.size() == 0",
            "a mirror has no selector: its endpoints are the gateways",
        ),
        rule(
            "(!has(object.spec.externalIPs) || object.spec.externalIPs.size() == 0) && !has(object.spec.externalName)",
            "a mirror has neither externalIPs nor externalName",
        ),
        rule(
            "!has(object.spec.loadBalancerIP) && !has(object.spec.loadBalancerClass) && \
             (!has(object.spec.loadBalancerSourceRanges) || object.spec.loadBalancerSourceRanges.size() == 0)",
            "a mirror asks for no load balancer",
        ),
        rule(
            "!has(object.spec.ports) || object.spec.ports.all(port, !has(port.nodePort) || port.nodePort == 0)",
            "a mirror takes no port of the nodes",
        ),
    ]
}

/// Whether a slice is one of a Service that a mirror can have: else it would add endpoints to somebody else's. The three forms
/// of such a name are those of `linkspan_proto::names`: the cluster at its end, `clusterset` at its end, and a long mark where
/// the cluster's name has no room.
fn of_a_mirror() -> String {
    let (service, cluster) = (SERVICE_NAME_LABEL, labels::CLUSTER);
    let name = format!("object.metadata.labels['{service}']");
    format!(
        "!('{service}' in object.metadata.labels) || {name}.endsWith('-{CLUSTERSET}') || \
         ('{cluster}' in object.metadata.labels && \
         ({name}.endsWith('-' + object.metadata.labels['{cluster}']) || {name}.matches('-x[a-z2-7]{{26}}-')))"
    )
}

fn slices(options: &Options) -> Vec<Rule> {
    let rule = |holds: String, message: String| (format!("object == null || ({holds})"), message);
    let (key, value) = (labels::SLICE_MANAGED_BY, labels::SLICE_MANAGED_BY_VALUE);
    let (service, multi) = (SERVICE_NAME_LABEL, labels::MCS_SERVICE);
    let PortRange { first, last } = options.cluster.spec.gateway.ports;
    let mut rules = vec![
        rule(
            format!("'{key}' in object.metadata.labels && object.metadata.labels['{key}'] == '{value}'"),
            format!("an EndpointSlice of a mirror is labelled {key}={value}"),
        ),
        rule(
            format!("'{service}' in object.metadata.labels || '{multi}' in object.metadata.labels"),
            format!("an EndpointSlice of a mirror names its service by {service} or {multi}"),
        ),
        rule(of_a_mirror(), format!("{service} is that of a mirror: its name ends in that of the cluster behind it")),
        rule("object.addressType in ['IPv4', 'IPv6']".to_owned(), "endpoints are addresses, not names".to_owned()),
        rule(
            "!has(object.endpoints) || object.endpoints.all(endpoint, endpoint.addresses.all(address, \
             isIP(address) && ip(address).isGlobalUnicast()))"
                .to_owned(),
            "endpoints are gateway pods: no loopback, link-local, multicast or unspecified address".to_owned(),
        ),
        // Clients of a headless service use its own ports; whoever has a host name is an endpoint of one.
        rule(
            format!(
                "!has(object.ports) || (has(object.endpoints) && object.endpoints.all(endpoint, has(endpoint.hostname))) || \
                 object.ports.all(port, has(port.port) && port.port >= {first} && port.port <= {last})"
            ),
            format!("ports are those that gateways allocate to mirrors, {first} to {last}"),
        ),
    ];
    if !options.endpoint_networks.is_empty() {
        let inside: Vec<_> =
            options.endpoint_networks.iter().map(|network| format!("cidr('{network}').containsIP(address)")).collect();
        rules.push(rule(
            format!(
                "!has(object.endpoints) || object.endpoints.all(endpoint, endpoint.addresses.all(address, {}))",
                inside.join(" || ")
            ),
            format!("endpoints are gateway pods: addresses in {} only", options.endpoint_networks.join(", ")),
        ));
    }
    rules
}

fn policy(options: &Options, resource: &str, group: &str, versions: &[&str], rules: &[Rule]) -> Item {
    let validations: Vec<Value> = rules
        .iter()
        .map(|(expression, message)| json!({ "expression": expression, "message": message, "reason": "Forbidden" }))
        .collect();
    let user = format!("system:serviceaccount:{}:{CONTROLLER}", options.namespace());
    Item::new(
        format!("Keeps the controller to its own {resource}."),
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": cluster_metadata(&name(resource)),
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {
                    "matchPolicy": "Equivalent",
                    "resourceRules": [{
                        "apiGroups": [group],
                        "apiVersions": versions,
                        "resources": [resource],
                        "operations": ["CREATE", "UPDATE", "DELETE"],
                        "scope": "Namespaced",
                    }],
                },
                "matchConditions": [{
                    "name": "controller",
                    "expression": format!("request.userInfo.username == '{user}'"),
                }],
                "validations": validations,
            },
        }),
    )
}

fn binding(resource: &str) -> Item {
    Item::new(
        "",
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": cluster_metadata(&name(resource)),
            "spec": { "policyName": name(resource), "validationActions": ["Deny"] },
        }),
    )
}

/// The names of all policies, for whoever reads them back from a cluster.
pub(crate) fn names() -> [String; 3] {
    ["services", SLICES, "serviceimports"].map(name)
}

/// Whether the policy of that name holds what `--endpoint-cidr` named.
pub(crate) fn holds_networks(policy: &str) -> bool {
    policy == name(SLICES)
}

/// The namespace of the controller that a policy is for.
pub(crate) fn installation(policy: &Value) -> Option<&str> {
    let mut conditions = policy["spec"]["matchConditions"].as_array()?.iter();
    conditions.find_map(|condition| {
        let (_, user) = condition["expression"].as_str()?.split_once("system:serviceaccount:")?;
        user.split_once(':').filter(|(_, account)| account.starts_with(CONTROLLER)).map(|(namespace, _)| namespace)
    })
}

/// What `--endpoint-cidr` named when a policy was printed.
pub(crate) fn networks(policy: &Value) -> Vec<String> {
    let rules = policy["spec"]["validations"].as_array().into_iter().flatten();
    let expressions = rules.filter_map(|rule| rule["expression"].as_str());
    expressions
        .flat_map(|expression| expression.split("cidr('").skip(1))
        .filter_map(|rest| rest.split_once("').containsIP("))
        .map(|(network, _)| network.to_owned())
        .collect()
}

fn name(resource: &str) -> String {
    format!("linkspan-controller-{resource}")
}
