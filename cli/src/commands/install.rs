//! `linkspan install`, `uninstall`, `crds` and `ca`: a Kubernetes installation as plain YAML.
//!
//! In: arguments; with `--ca-from`, a folder; with `--coredns`, a ConfigMap. Out: YAML on standard output. Refuses when: a value cannot work on any cluster.
//! Never does: talk to a cluster; print a key that it was not asked for; replace a root.
//!
//! The objects are built here, once. The chart in `deploy/charts/linkspan` says the same in Helm's words; a test renders it and
//! compares object by object.

/// What the API server refuses from the controller, beyond its rights.
pub(crate) mod admission;
/// The root of the cluster.
mod authority;
/// What the cluster's DNS forwards.
pub(crate) mod coredns;
/// Who may send what to whom.
mod network;
/// What was typed, and what it means.
mod options;
/// Who may do what.
mod rights;
/// Services and disruption budgets.
mod services;
/// Deployments and what they mount.
mod workloads;

use anyhow::{Context, bail};
use linkspan_mirror_controller::labels;
use linkspan_proto::manifest;
use linkspan_proto::resources::crd;
use serde_json::{Value, json};

use crate::args::{CaCommand, CaCreateArgs, CrdsArgs, InstallArgs, Stage, UninstallArgs};
use crate::commands::Exit;
use crate::output;
use authority::Root;
use options::Options;
pub(crate) use rights::WRITER;

/// The ConfigMap with `cluster.yaml`.
const CONFIGURATION: &str = "linkspan-cluster";
/// The ConfigMap with the root's certificate.
const ROOT: &str = "linkspan-root";
/// The service account and the Deployment of the controllers, and their Service.
pub(crate) const CONTROLLER: &str = "linkspan-controller";
/// The service account and the Deployment of the gateways.
const GATEWAY: &str = "linkspan-gateway";
/// The Service in front of the controllers' DNS.
pub(crate) const DNS: &str = "linkspan-dns";

/// One right of the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Right {
    /// The cluster role that grants it.
    pub(crate) role: &'static str,
    /// The API group; empty for the core.
    pub(crate) group: &'static str,
    /// The resource, with its subresource behind a `/`.
    pub(crate) resource: &'static str,
    /// The verb.
    pub(crate) verb: &'static str,
}

impl Right {
    /// Whether `--import-namespace` grants it in single namespaces in place of the whole cluster.
    pub(crate) fn by_namespace(self) -> bool {
        self.role == WRITER
    }
}

/// Every right that the controller has in the whole cluster.
pub(crate) fn controller_rights() -> Vec<Right> {
    rights::all().map(|(role, group, resource, verb)| Right { role, group, resource, verb }).collect()
}

/// One object with a line about it.
struct Item {
    note: String,
    object: Value,
}

impl Item {
    fn new(note: impl Into<String>, object: Value) -> Self {
        Self { note: note.into(), object }
    }
}

/// Prints the installation.
pub(crate) fn run(args: &InstallArgs) -> anyhow::Result<Exit> {
    if let (Some(file), Some(address)) = (&args.coredns, args.dns_cluster_ip) {
        output::print(&coredns::with_lines(file, &address.to_string())?)?;
        return Ok(Exit::Done);
    }
    let options = Options::resolve(args)?;
    let mut items = Vec::new();
    if options.stage != Stage::Namespaced {
        items.extend(cluster_stage(&options)?);
    }
    if options.stage != Stage::Cluster {
        items.extend(namespaced_stage(&options));
        if let Some(root) = options.root()? {
            if root.fresh {
                eprintln!(
                    "linkspan: made a new root for {} (SHA-256 {}); from now on: --ca-secret {}",
                    options.cluster.trust_domain(),
                    root.fingerprint,
                    options.ca_secret
                );
            }
            items.extend(root.items(options.namespace(), &options.ca_secret));
        }
    }
    output::print(&yaml(&items)?)?;
    Ok(Exit::Done)
}

/// Prints what goes.
pub(crate) fn uninstall(args: &UninstallArgs) -> anyhow::Result<Exit> {
    if let Some(file) = &args.coredns {
        output::print(&coredns::without_lines(file)?)?;
        return Ok(Exit::Done);
    }
    let text = format!("{}{}", yaml(&departures(args)?)?, leftovers(args));
    if let Some(warning) = taken_along(args) {
        output::note(&warning);
    }
    output::print(&text)?;
    Ok(Exit::Done)
}

/// What goes besides the installation in that namespace, for whoever reads the terminal: the YAML goes to kubectl unread.
fn taken_along(args: &UninstallArgs) -> Option<String> {
    let UninstallArgs { namespace, stage, keep_crds, keep_multi_cluster_crds, .. } = args;
    if *stage == Stage::Namespaced {
        return None;
    }
    let kinds = match (keep_crds, keep_multi_cluster_crds) {
        (true, _) => String::new(),
        (false, true) => " The definitions take every Link and policy of the cluster along (--keep-crds leaves them).".to_owned(),
        (false, false) => " The definitions take every Link, policy, ServiceExport and ServiceImport of the cluster along, whoever made \
                           it (--keep-crds leaves them; --keep-multi-cluster-crds leaves those of the multi-cluster services API)."
            .to_owned(),
    };
    Some(format!(
        "linkspan: this ends the one installation of the cluster: rights and admission policies too, whichever namespace they are \
         for.{kinds} What is in the namespace {namespace} alone: --stage namespaced."
    ))
}

/// What may be left when all that is printed is gone, with what lies in namespaces that nobody names here. `kubectl delete` asks
/// for one end after the other and waits for all of them together, so the controller may lose its rights and its pod before it
/// has withdrawn every mirror.
fn leftovers(args: &UninstallArgs) -> String {
    let UninstallArgs { stage, keep_crds, keep_multi_cluster_crds, .. } = args;
    // Mirrors are the whole cluster's, and so are the rights to write them.
    if *stage == Stage::Namespaced {
        return String::new();
    }
    let imports = if *keep_crds || *keep_multi_cluster_crds { ",serviceimports" } else { "" };
    let (key, value) = (labels::MANAGED_BY, labels::MANAGED_BY_VALUE);
    format!(
        "# Then what the controller had no time to withdraw, and its rights in namespaces that --import-namespace named:\n\
         #   kubectl delete services,endpointslices,rolebindings{imports} --all-namespaces -l {key}={value}\n"
    )
}

/// Prints the resource definitions.
pub(crate) fn crds(args: &CrdsArgs) -> anyhow::Result<Exit> {
    output::print(&yaml(&definitions(!args.no_multi_cluster_crds)?)?)?;
    Ok(Exit::Done)
}

/// Makes a root.
pub(crate) fn ca(command: &CaCommand) -> anyhow::Result<Exit> {
    let CaCommand::Create(args) = command;
    let CaCreateArgs { cluster_name, trust_domain, namespace, secret, out } = args;
    let mut cluster = linkspan_proto::resources::Cluster::new(cluster_name.clone());
    cluster.spec.trust_domain.clone_from(trust_domain);
    let root = match out {
        Some(folder) => Root::create(folder, &cluster.trust_domain())?,
        None => Root::fresh(&cluster.trust_domain())?,
    };
    eprintln!("linkspan: made a new root for {} (SHA-256 {})", cluster.trust_domain(), root.fingerprint);
    if out.is_none() {
        output::print(&yaml(&root.items(namespace.as_str(), secret.as_str()))?)?;
    }
    Ok(Exit::Done)
}

/// What a cluster administrator grants.
fn cluster_stage(options: &Options) -> anyhow::Result<Vec<Item>> {
    let mut items = vec![namespace(options.namespace())];
    items.extend(definitions(options.multi_cluster_crds)?);
    items.extend(rights::cluster(options));
    items.extend(admission::policies(options));
    Ok(items)
}

/// What the owner of the namespace runs.
fn namespaced_stage(options: &Options) -> Vec<Item> {
    let mut items = rights::namespaced(options);
    items.push(configuration(options));
    items.extend(services::services(options));
    items.extend(network::policies(options));
    items.extend(workloads::deployments(options));
    items.extend(services::budgets(options));
    items
}

/// The namespace. Pods in it have no privileges, and the API server sees to it.
fn namespace(name: &str) -> Item {
    let mut labels = part_of();
    for mode in ["enforce", "audit", "warn"] {
        labels[format!("pod-security.kubernetes.io/{mode}")] = json!("restricted");
    }
    Item::new(
        "Gateways and controllers, and nothing else. No pod in it may have a privilege.",
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } }),
    )
}

fn definitions(multi_cluster: bool) -> anyhow::Result<Vec<Item>> {
    let mut items = Vec::new();
    for definition in crd::definitions() {
        let note = format!("What a {} may say.", definition.spec.names.kind);
        items.push(Item::new(note, serde_json::to_value(definition)?));
    }
    if multi_cluster {
        for text in crd::MULTI_CLUSTER_SERVICES {
            let object: Value = serde_saphyr::from_str(text).context("a definition that is part of this program")?;
            items.push(Item::new("From the multi-cluster services API (KEP-1645), not ours.", object));
        }
    }
    Ok(items)
}

/// The file that both programs read.
fn configuration(options: &Options) -> Item {
    Item::new(
        "How this cluster's gateways and controllers run. After a change: kubectl rollout restart deployment.",
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(CONFIGURATION, options.namespace()),
            "data": { "cluster.yaml": options.configuration },
        }),
    )
}

/// Everything in the order in which it goes.
fn departures(args: &UninstallArgs) -> anyhow::Result<Vec<Item>> {
    let UninstallArgs { namespace, stage, import_namespace, ca_secret, keep_ca, .. } = args;
    let keep_multi_cluster_crds = args.keep_multi_cluster_crds || args.keep_crds;
    let options = Options::for_departure(namespace, import_namespace)?;
    let stub = |note: &str, object: &Value| {
        let mut metadata = json!({ "name": object["metadata"]["name"] });
        if let Some(namespace) = object["metadata"].get("namespace") {
            metadata["namespace"] = namespace.clone();
        }
        Item::new(note, json!({ "apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": metadata }))
    };
    let is = |item: &Item, kind: &str| item.object["kind"] == kind;
    let (granted, run) = (cluster_stage(&options)?, namespaced_stage(&options));
    let mut items = Vec::new();
    if *stage != Stage::Namespaced && !args.keep_crds {
        let ours = |item: &&Item| is(item, "CustomResourceDefinition") && item.object["spec"]["group"] == "linkspan.io";
        let note = "First: with the links the controller withdraws mirrors, as far as it gets while it runs.";
        items.extend(
            granted
                .iter()
                .filter(ours)
                .enumerate()
                .map(|(index, item)| stub(if index == 0 { note } else { "" }, &item.object)),
        );
    }
    if *stage != Stage::Cluster {
        // Deployments first: a gateway that still runs would miss its Service.
        let (first, rest): (Vec<_>, Vec<_>) = run.iter().partition(|item| is(item, "Deployment"));
        for item in first.into_iter().chain(rest) {
            items.push(stub("", &item.object));
        }
        if !keep_ca {
            let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata(ca_secret.as_str(), namespace.as_str()) });
            let root =
                json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(ROOT, namespace.as_str()) });
            items.push(stub("The cluster's root. Peers' links to this cluster are worth nothing without it.", &secret));
            items.push(stub("", &root));
        }
    }
    if *stage != Stage::Namespaced {
        // Policies after the programs that they bind, and bindings before what they bind.
        let order = |item: &&Item| match item.object["kind"].as_str() {
            Some("ClusterRoleBinding" | "RoleBinding" | "ValidatingAdmissionPolicyBinding") => 0,
            Some("Namespace") => 2,
            Some("CustomResourceDefinition") => 3,
            _ => 1,
        };
        let mut rest: Vec<_> = granted
            .iter()
            .filter(|item| item.object["spec"]["group"] != "linkspan.io")
            .filter(|item| !(*keep_ca && is(item, "Namespace")))
            .filter(|item| !(keep_multi_cluster_crds && is(item, "CustomResourceDefinition")))
            .collect();
        rest.sort_by_key(order);
        for item in rest {
            let note = if is(item, "CustomResourceDefinition") {
                "With it every ServiceExport or ServiceImport goes, whoever made it; see --keep-multi-cluster-crds."
            } else {
                ""
            };
            items.push(stub(note, &item.object));
        }
    }
    if items.is_empty() {
        bail!("nothing is left to print");
    }
    Ok(items)
}

/// Labels of everything.
fn part_of() -> Value {
    let (key, value) = crd::PART_OF;
    json!({ key: value })
}

/// Metadata of an object inside a namespace.
fn metadata(name: &str, namespace: &str) -> Value {
    json!({ "name": name, "namespace": namespace, "labels": part_of() })
}

/// Metadata of an object of the whole cluster.
fn cluster_metadata(name: &str) -> Value {
    json!({ "name": name, "labels": part_of() })
}

/// What selects the pods of a part.
fn selector(component: &str) -> Value {
    json!({ "app.kubernetes.io/name": "linkspan", "app.kubernetes.io/component": component })
}

fn yaml(items: &[Item]) -> anyhow::Result<String> {
    let mut text = String::new();
    for item in items {
        text.push_str("---\n");
        if !item.note.is_empty() {
            text.push_str(&format!("# {}\n", item.note));
        }
        text.push_str(&manifest::to_yaml(&item.object)?);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
