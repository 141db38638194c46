//! Who may do what: we ourselves, and the controller's service account. Access reviews are questions, they change nothing.

use futures::StreamExt;
use futures::stream;
use linkspan_proto::resources::Cluster as Settings;
use serde_json::{Value, json};

use super::super::report::Group;
use super::super::{AT_ONCE, Checks};
use super::granted::Granted;
use crate::client::kubernetes::Cluster;
use crate::client::kubernetes::api::ApiError;
use crate::commands::install::{CONTROLLER, Right, controller_rights};

const GROUP: Group = Group::Cluster;

/// One question: group, resource with its subresource, verb, namespace (empty: all of them).
type Question = (&'static str, &'static str, &'static str, String);

/// What this check asks for, and what it misses without.
pub(super) async fn ours(checks: &mut Checks<'_>, cluster: &Cluster) {
    checks.progress.say("our own rights");
    let own = cluster.namespace().to_owned();
    let questions: Vec<Question> = vec![
        ("", "pods", "list", own.clone()),
        ("", "configmaps", "get", own.clone()),
        ("", "services", "get", own.clone()),
        ("coordination.k8s.io", "leases", "get", own.clone()),
        ("", "services", "list", String::new()),
        ("", "namespaces", "list", String::new()),
        ("discovery.k8s.io", "endpointslices", "list", String::new()),
        ("linkspan.io", "links", "list", String::new()),
        ("multicluster.x-k8s.io", "serviceexports", "list", String::new()),
        ("multicluster.x-k8s.io", "serviceimports", "list", String::new()),
        ("", "configmaps", "get", "kube-system".to_owned()),
    ];
    let name = "we may read what is checked";
    match denied(cluster, questions).await {
        Ok(denied) if denied.is_empty() => checks.ok(GROUP, name, ""),
        Ok(denied) => checks.warn(
            GROUP,
            name,
            format!("we may not {}", denied.join("; ")),
            "ask a cluster administrator for these rights, or check as somebody who has them; without them this check sees less",
        ),
        Err(error) => checks.warn(GROUP, name, error.to_string(), "see what `kubectl auth can-i --list` says"),
    }
    // A port-forward begins with a GET, and newer API servers ask for the right to create as well.
    let proxy: Vec<Question> = vec![("", "pods/proxy", "get", own.clone())];
    let forward: Vec<Question> =
        vec![("", "pods/portforward", "get", own.clone()), ("", "pods/portforward", "create", own)];
    if let (Ok(proxy), Ok(forward)) = (denied(cluster, proxy).await, denied(cluster, forward).await)
        && !proxy.is_empty()
        && !forward.is_empty()
    {
        let reason = format!("we may not {}; nor {}", proxy.join("; "), forward.join("; "));
        let remedy = "ask for one of the two ways; the first is enough, and reaches nothing but these pages";
        checks.fail(GROUP, "we may read the admin pages of our pods", reason, remedy);
    }
}

/// Before an installation: whether we may do both stages of it.
pub(super) async fn to_install(checks: &mut Checks<'_>, cluster: &Cluster) {
    let own = cluster.namespace().to_owned();
    let all = String::new;
    let granted: Vec<Question> = vec![
        ("", "namespaces", "create", all()),
        ("apiextensions.k8s.io", "customresourcedefinitions", "create", all()),
        ("rbac.authorization.k8s.io", "clusterroles", "create", all()),
        ("rbac.authorization.k8s.io", "clusterrolebindings", "create", all()),
        ("admissionregistration.k8s.io", "validatingadmissionpolicies", "create", all()),
    ];
    let run: Vec<Question> = vec![
        ("apps", "deployments", "create", own.clone()),
        ("", "services", "create", own.clone()),
        ("", "serviceaccounts", "create", own.clone()),
        ("", "configmaps", "create", own.clone()),
        ("", "secrets", "create", own.clone()),
        ("rbac.authorization.k8s.io", "roles", "create", own.clone()),
        ("networking.k8s.io", "networkpolicies", "create", own.clone()),
        ("policy", "poddisruptionbudgets", "create", own),
    ];
    for (questions, stage, who) in
        [(granted, "cluster", "a cluster administrator"), (run, "namespaced", "the owner of the namespace")]
    {
        let name = format!("we may install (--stage {stage})");
        match denied(cluster, questions).await {
            Ok(denied) if denied.is_empty() => checks.ok(GROUP, name, ""),
            Ok(denied) => checks.warn(
                GROUP,
                name,
                format!("we may not {}", denied.join("; ")),
                format!("let {who} apply what `linkspan install --stage {stage}` prints"),
            ),
            Err(error) => checks.warn(GROUP, name, error.to_string(), "see what `kubectl auth can-i --list` says"),
        }
    }
}

/// Those that are denied to us, in words.
async fn denied(cluster: &Cluster, questions: Vec<Question>) -> Result<Vec<String>, ApiError> {
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let asked: Vec<Result<Option<String>, ApiError>> = stream::iter(questions.into_iter().map(|question| async move {
        let (group, resource, verb, namespace) = &question;
        let spec = json!({ "resourceAttributes": attributes(group, resource, verb, namespace) });
        let review = review("SelfSubjectAccessReview", &spec);
        let allowed = cluster.api().create(path, &review).await?["status"]["allowed"] == true;
        let place = if namespace.is_empty() { "everywhere".to_owned() } else { format!("in {namespace}") };
        Ok((!allowed).then(|| format!("{verb} {resource} {place}")))
    }))
    .buffered(AT_ONCE)
    .collect()
    .await;
    asked.into_iter().filter_map(Result::transpose).collect()
}

/// Whether the controller's service account has every right that it uses, and none where it was not to have it.
pub(super) async fn controllers(checks: &mut Checks<'_>, cluster: &Cluster, settings: &Settings) {
    checks.progress.say("the controller's rights");
    let granted = Granted::read(cluster, settings).await;
    if !granted.is_ours(checks) {
        return;
    }
    granted.confined(checks);
    let name = "the controller has its rights";
    match missing(cluster, settings).await {
        Ok(missing) if missing.is_empty() => {
            checks.ok(GROUP, name, format!("{} rights", controller_rights().len()));
        }
        Ok(missing) => checks.fail(GROUP, name, told(&missing), granted.remedy()),
        // Who may not ask for others still sees whether the bindings are there.
        Err(ApiError::Forbidden(_)) => match granted.unbound() {
            Ok(unbound) if unbound.is_empty() => checks.ok(GROUP, name, "its roles are bound"),
            Ok(unbound) => {
                checks.fail(GROUP, name, format!("not bound to it: {}", unbound.join(", ")), granted.remedy());
            }
            Err(_) => checks.warn(
                GROUP,
                name,
                "we may neither ask for its rights (create subjectaccessreviews) nor read its bindings",
                "what it may not watch the controller says itself, below; check as a cluster administrator to see the rest",
            ),
        },
        Err(error) => checks.warn(GROUP, name, error.to_string(), "try again"),
    }
}

/// A right, and the namespace in which it is needed; empty: all of them.
type Needed = (Right, String);

/// What the controller may not, by asking for each right.
async fn missing(cluster: &Cluster, settings: &Settings) -> Result<Vec<Needed>, ApiError> {
    let namespace = cluster.namespace();
    let user = format!("system:serviceaccount:{namespace}:{CONTROLLER}");
    let groups =
        json!(["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated"]);
    let (user, groups) = (&user, &groups);
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let asked: Vec<Result<Option<Needed>, ApiError>> =
        stream::iter(needed(settings).into_iter().map(|(right, place)| async move {
            let attributes = attributes(right.group, right.resource, right.verb, &place);
            let spec = json!({ "user": user, "groups": groups, "resourceAttributes": attributes });
            let review = review("SubjectAccessReview", &spec);
            let allowed = cluster.api().create(path, &review).await?["status"]["allowed"] == true;
            Ok((!allowed).then_some((right, place)))
        }))
        .buffered(AT_ONCE)
        .collect()
        .await;
    asked.into_iter().filter_map(Result::transpose).collect()
}

/// Where single namespaces are named, rights to write are needed in each of them, and else everywhere.
fn needed(settings: &Settings) -> Vec<Needed> {
    let mut places: Vec<_> = settings.spec.mirrors.namespaces.iter().map(ToString::to_string).collect();
    if places.is_empty() {
        places.push(String::new());
    }
    let (single, whole): (Vec<_>, Vec<_>) = controller_rights().into_iter().partition(|right| right.by_namespace());
    let whole = whole.into_iter().map(|right| (right, String::new()));
    let single = places.iter().flat_map(|place| single.iter().map(move |right| (*right, place.clone())));
    whole.chain(single).collect()
}

/// `its service account may not list links.linkspan.io (role linkspan-reader); ...`
fn told(missing: &[Needed]) -> String {
    let parts: Vec<String> = missing
        .chunk_by(|(one, here), (next, there)| {
            (one.role, one.group, one.resource, here) == (next.role, next.group, next.resource, there)
        })
        .map(|rights| {
            let verbs: Vec<&str> = rights.iter().map(|(right, _)| right.verb).collect();
            let (first, place) = &rights[0];
            let group = if first.group.is_empty() { String::new() } else { format!(".{}", first.group) };
            let place = if place.is_empty() { String::new() } else { format!(" in {place}") };
            format!("{} {}{group}{place} (role {})", verbs.join(", "), first.resource, first.role)
        })
        .collect();
    format!("its service account may not {}", parts.join("; "))
}

fn attributes(group: &str, resource: &str, verb: &str, namespace: &str) -> Value {
    let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
    let mut attributes = json!({ "group": group, "resource": resource, "verb": verb });
    for (field, value) in [("subresource", sub), ("namespace", namespace)] {
        if !value.is_empty() {
            attributes[field] = json!(value);
        }
    }
    attributes
}

fn review(kind: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": {}, "spec": spec })
}
