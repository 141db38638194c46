//! What a cluster administrator granted, and to which installation: bindings and admission policies have one name in the whole
//! cluster, so a second installation takes them from the first.
//!
//! In: bindings and policies as the API server has them. Out: whose they are, and the command that gives them to this
//! installation again, with the arguments that can be read back. Never does: name a command that grants more than was granted;
//! what cannot be read back it says.

use std::collections::{BTreeMap, BTreeSet};

use linkspan_proto::resources::Cluster as Settings;
use serde_json::Value;

use super::super::Checks;
use super::super::report::Group;
use crate::client::kubernetes::Cluster;
use crate::client::kubernetes::api::ApiError;
use crate::commands::install::{CONTROLLER, WRITER, admission, controller_rights};

const GROUP: Group = Group::Cluster;

/// The namespace that every command means without `-n`.
const DEFAULT_NAMESPACE: &str = "linkspan";

/// Whom the roles of the controller are bound to.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    /// Roles that are bound to our controller in the whole cluster.
    everywhere: BTreeSet<&'static str>,
    /// Namespaces in which the role to write is bound to it.
    single: BTreeSet<String>,
    /// Bindings to the controller of another namespace, by that namespace.
    others: BTreeMap<String, Vec<String>>,
}

/// What was granted.
#[derive(Debug)]
pub(super) struct Granted<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    /// The bindings, unless they cannot be read.
    bindings: Result<Bindings, ApiError>,
    /// Policies for the controller of another namespace, by that namespace.
    policies: BTreeMap<String, Vec<String>>,
    /// What `--endpoint-cidr` named. `None` where the policy is gone, or another installation's, or cannot be read.
    networks: Option<Vec<String>>,
}

impl<'a> Granted<'a> {
    /// Reads it. What cannot be read is left open.
    pub(super) async fn read(cluster: &'a Cluster, settings: &'a Settings) -> Self {
        let bindings = bindings(cluster, settings).await;
        let (mut policies, mut networks) = (BTreeMap::<String, Vec<String>>::new(), None);
        for name in admission::names() {
            let path = format!("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{name}");
            let Ok(Some(policy)) = cluster.api().find(&path).await else { continue };
            match admission::installation(&policy) {
                Some(namespace) if namespace != cluster.namespace() => {
                    policies.entry(namespace.to_owned()).or_default().push(format!("ValidatingAdmissionPolicy {name}"));
                }
                Some(_) if admission::holds_networks(&name) => networks = Some(admission::networks(&policy)),
                _ => {}
            }
        }
        Self { cluster, settings, bindings, policies, networks }
    }

    /// How a cluster administrator gives everything to this installation, with the arguments that it has: words, and behind
    /// the first `: ` a command.
    pub(super) fn remedy(&self) -> String {
        // ServiceExport and ServiceImport are no rights, and may be another implementation's.
        let mut command = "linkspan install --stage cluster --no-multi-cluster-crds".to_owned();
        let namespace = self.cluster.namespace();
        if namespace != DEFAULT_NAMESPACE {
            command.push_str(&format!(" -n {namespace}"));
        }
        for namespace in &self.settings.spec.mirrors.namespaces {
            command.push_str(&format!(" --import-namespace {namespace}"));
        }
        for network in self.networks.iter().flatten() {
            command.push_str(&format!(" --endpoint-cidr {network}"));
        }
        let unknown = if self.networks.is_none() {
            ", with the --endpoint-cidr arguments of this installation too if it had any (they cannot be read here)"
        } else {
            ""
        };
        format!(
            "a cluster administrator applies roles, bindings and admission policies again{unknown}: {command} | {} apply -f -",
            self.cluster.kubectl()
        )
    }

    /// Whether what this installation needs is for it, and not for another one. `false` where that is what is wrong.
    pub(super) fn is_ours(&self, checks: &mut Checks<'_>) -> bool {
        let mut others = self.bindings.as_ref().map(|bindings| bindings.others.clone()).unwrap_or_default();
        for (namespace, names) in &self.policies {
            others.entry(namespace.clone()).or_default().extend(names.iter().cloned());
        }
        let Some((other, objects)) = others.into_iter().next() else { return true };
        let (own, kubectl) = (self.cluster.namespace(), self.cluster.kubectl());
        checks.fail(
            GROUP,
            "the rights of this cluster are for this installation",
            format!(
                "{} for the controller of the namespace {other}, not of {own}: Linkspan was installed a second time, and a \
                 cluster has one installation",
                objects.join(", ")
            ),
            format!(
                "if {own} is to stay, take away what is in {other} alone (linkspan uninstall -n {other} --stage namespaced | \
                 {kubectl} delete --ignore-not-found -f -); then {}",
                self.remedy()
            ),
        );
        false
    }

    /// Whether the controller writes in the namespaces that were named and in no others, where some were.
    pub(super) fn confined(&self, checks: &mut Checks<'_>) {
        let named = &self.settings.spec.mirrors.namespaces;
        // Whoever may not read bindings is told so below.
        let (Ok(bindings), false) = (&self.bindings, named.is_empty()) else { return };
        let name = "the controller may write in the namespaces that were named, and in no others";
        let listed = named.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let more: Vec<_> =
            bindings.single.iter().filter(|one| named.iter().all(|named| named.as_str() != *one)).collect();
        if bindings.everywhere.contains(WRITER) {
            let reason =
                format!("the ClusterRoleBinding {WRITER} lets it write everywhere; --import-namespace named {listed}");
            checks.fail(GROUP, name, reason, self.remedy());
        } else if let Some(first) = more.first() {
            let places = more.iter().map(|place| place.as_str()).collect::<Vec<_>>().join(", ");
            checks.warn(
                GROUP,
                name,
                format!("a RoleBinding {WRITER} lets it write in {places} too; --import-namespace named {listed}"),
                format!("in each of them: {} -n {first} delete rolebinding {WRITER}", self.cluster.kubectl()),
            );
        } else {
            checks.ok(GROUP, name, listed);
        }
    }

    /// Roles of the controller that nothing binds to it.
    pub(super) fn unbound(&self) -> Result<Vec<&'static str>, &ApiError> {
        let bindings = self.bindings.as_ref()?;
        let named = &self.settings.spec.mirrors.namespaces;
        let single = !named.is_empty() && named.iter().all(|one| bindings.single.contains(one.as_str()));
        let bound = |role: &str| bindings.everywhere.contains(role) || (role == WRITER && single);
        Ok(roles().into_iter().filter(|role| !bound(role)).collect())
    }
}

fn roles() -> Vec<&'static str> {
    let mut roles: Vec<_> = controller_rights().iter().map(|right| right.role).collect();
    roles.dedup();
    roles
}

async fn bindings(cluster: &Cluster, settings: &Settings) -> Result<Bindings, ApiError> {
    let mut found = Bindings::default();
    for role in roles() {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{role}");
        let binding = cluster.api().find(&path).await?.unwrap_or_default();
        for namespace in controllers(&binding) {
            if namespace == cluster.namespace() {
                found.everywhere.insert(role);
            } else {
                found.others.entry(namespace.to_owned()).or_default().push(format!("ClusterRoleBinding {role}"));
            }
        }
    }
    if !settings.spec.mirrors.namespaces.is_empty() {
        let path = "/apis/rbac.authorization.k8s.io/v1/rolebindings";
        let query = format!("&fieldSelector=metadata.name%3D{WRITER}");
        for binding in cluster.api().list(path, &query).await? {
            if let Some(namespace) = binding["metadata"]["namespace"].as_str()
                && controllers(&binding).any(|one| one == cluster.namespace())
            {
                found.single.insert(namespace.to_owned());
            }
        }
    }
    Ok(found)
}

/// The namespaces of the controllers that a binding names.
fn controllers(binding: &Value) -> impl Iterator<Item = &str> {
    let subjects = binding["subjects"].as_array().into_iter().flatten();
    subjects.filter(|one| one["name"] == CONTROLLER).filter_map(|one| one["namespace"].as_str())
}
