//! The checks of a Kubernetes cluster. Everything is asked of its API server.
//!
//! Before an installation only the first groups have something to say: whether the API server is new enough, whether we may
//! install, what stands in the way. They say so.

mod coredns;
mod granted;
mod mirrors;
mod programs;
mod rights;

use std::collections::BTreeSet;
use std::time::SystemTime;

use kube::api::ApiResource;
use linkspan_mirror_controller::watch::Kind;
use linkspan_mirror_controller::watch::kubernetes::{resources, service_imports};
use linkspan_proto::manifest;
use linkspan_proto::resources::{Cluster as Settings, Object};
use serde_json::Value;

use super::report::Group;
use super::{Checks, catalogue, exports, links, services, trust};
use crate::client::kubernetes::Cluster;
use crate::client::kubernetes::api::{ApiError, labelled};
use crate::client::kubernetes::mirrors::OURS;
use crate::client::source::Of;
use crate::commands::link::bundle;
use crate::output::counted;

const GROUP: Group = Group::Cluster;

/// The oldest minor version of Kubernetes 1 that has what an installation uses (ValidatingAdmissionPolicy, `matchLabelKeys`).
const MINOR_MIN: u32 = 31;

/// Runs all groups.
pub(super) async fn check(checks: &mut Checks<'_>, cluster: &Cluster) {
    checks.progress.say("asking the API server");
    let Some(ahead) = api_server(checks, cluster).await else { return };
    place(checks, cluster).await;
    let settings = match cluster.settings().await {
        Ok(settings) => settings,
        Err(error) if matches!(error.downcast_ref(), Some(ApiError::Forbidden(_))) => {
            let remedy = "ask for the rights that the next check names, or check as somebody who has them";
            checks.fail(GROUP, "the cluster's configuration can be read", format!("{error:#}"), remedy);
            return rights::ours(checks, cluster).await;
        }
        Err(error) => {
            let remedy = "correct the ConfigMap, or apply again what `linkspan install` prints with the same arguments; with another namespace: \
                          --linkspan-namespace";
            return checks.fail(GROUP, "the cluster's configuration is valid", format!("{error:#}"), remedy);
        }
    };
    let missing = definitions(checks, cluster, settings.is_some()).await;
    let Some(settings) = settings else { return before_installation(checks, cluster, &missing).await };
    checks.ok(
        GROUP,
        "the cluster's configuration is valid",
        format!("{}, trust domain {}", settings.cluster(), settings.trust_domain()),
    );
    rights::ours(checks, cluster).await;
    rights::controllers(checks, cluster, &settings).await;
    let gateways = programs::check(checks, cluster, &settings, ahead).await;
    checks.progress.say("certificates");
    root(checks, cluster, &settings).await;
    gather(checks, cluster, &missing).await;
    trust::bundles(checks, SystemTime::now());
    if checks.facts.own.is_some() {
        links::judge(checks);
        catalogue::check(checks);
        mirrors::check(checks, cluster, &settings.spec.mirrors.namespaces, &gateways).await;
    }
    coredns::check(checks, cluster).await;
    if checks.facts.own.is_some() {
        services::look(checks);
        exports::check(checks);
    }
}

/// Whether it answers and knows us, and how far its clock is ahead of ours. `None` where nothing else can be asked.
async fn api_server(checks: &mut Checks<'_>, cluster: &Cluster) -> Option<Option<f64>> {
    let name = "the API server answers";
    let remedy = "see that `kubectl version` works with this context; choose another one with --context";
    let answer = match cluster.api().fetch("/version").await {
        Ok(answer) => answer,
        Err(error) => {
            checks.fail(GROUP, name, error.to_string(), remedy);
            return None;
        }
    };
    let version: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let Some(shown) = version["gitVersion"].as_str() else {
        let said = answer.status_message().unwrap_or_else(|| "the answer names no version".to_owned());
        checks.fail(GROUP, name, format!("{}: {} {said}", cluster.api().server(), answer.status), remedy);
        return None;
    };
    checks.ok(GROUP, name, format!("{}, Kubernetes {shown}", cluster.api().server()));
    // Vendors write "31+".
    let digits =
        |field: &str| version[field].as_str()?.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    if let (Some(major), Some(minor)) = (digits("major"), digits("minor"))
        && (major, minor) < (1, MINOR_MIN)
    {
        let reason = format!("{shown}; Linkspan needs 1.{MINOR_MIN} or later");
        checks.fail(GROUP, "Kubernetes is new enough", reason, "upgrade the cluster");
    }
    Some(answer.ahead)
}

/// A namespace that is being deleted takes everything with it.
async fn place(checks: &mut Checks<'_>, cluster: &Cluster) {
    let namespace = cluster.namespace();
    // Whoever may not read it is told of what is in it.
    let Ok(Some(object)) = cluster.api().find(&format!("/api/v1/namespaces/{namespace}")).await else { return };
    if object["metadata"]["deletionTimestamp"].is_string() {
        let why = object["status"]["conditions"].as_array().into_iter().flatten();
        let why = why.filter(|condition| condition["status"] == "True").filter_map(|one| one["message"].as_str());
        let why: String = why.map(|message| format!("; {message}")).collect();
        checks.fail(
            GROUP,
            format!("the namespace {namespace} stays"),
            format!("it is being deleted (Terminating), and all of Linkspan with it, the root too{why}"),
            "wait until it is gone, then install again, with the root from a copy; without one every peer has to import the new Link",
        );
    }
}

/// What both halves need of the API server: group, plural, and the versions of which one is used, the preferred one first.
fn needed() -> Vec<(String, String, Vec<String>)> {
    let of = |versions: Vec<ApiResource>| {
        let first = versions.first()?;
        let (group, plural) = (first.group.clone(), first.plural.clone());
        Some((group, plural, versions.into_iter().map(|one| one.version).collect()))
    };
    let kinds = Kind::ALL.into_iter().map(resources).chain([service_imports()]);
    // What Kubernetes itself brings is always there.
    kinds.filter_map(of).filter(|(group, ..)| group == "linkspan.io" || group == "multicluster.x-k8s.io").collect()
}

/// Whether every kind is served, in a version that is used. Returns those that are not.
async fn definitions(checks: &mut Checks<'_>, cluster: &Cluster, installed: bool) -> Vec<String> {
    let needed = needed();
    let of_kind = |(group, _, versions): &(String, String, Vec<String>)| {
        versions.iter().map(|version| (group.clone(), version.clone())).collect::<Vec<_>>()
    };
    let versions: BTreeSet<(String, String)> = needed.iter().flat_map(of_kind).collect();
    let (mut served, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    for (group, version) in versions {
        match cluster.api().find(&format!("/apis/{group}/{version}")).await {
            Ok(found) => {
                let found = found.unwrap_or_default();
                let resources = found["resources"].as_array().into_iter().flatten();
                let names = resources.filter_map(|resource| resource["name"].as_str());
                served.extend(names.map(|name| (group.clone(), name.to_owned())));
            }
            Err(error) => {
                let remedy = "every user may ask what is served (the role system:discovery): see that it is bound";
                checks.fail(GROUP, format!("the kinds of {group}/{version} are served"), error.to_string(), remedy);
                unknown.insert(group);
            }
        }
    }
    let known: Vec<_> = needed.into_iter().filter(|(group, ..)| !unknown.contains(group)).collect();
    let count = known.len();
    let absent = known.into_iter().filter(|(group, plural, _)| !served.contains(&(group.clone(), plural.clone())));
    let named = |(group, plural, versions): (String, String, Vec<String>)| {
        format!("{plural}.{group}/{}", versions.first().map_or("", String::as_str))
    };
    let missing: Vec<String> = absent.map(named).collect();
    let name = "all definitions are there, in the versions that are used";
    if missing.is_empty() {
        checks.ok(GROUP, name, format!("{count} kinds"));
    } else if installed {
        let remedy = format!("a cluster administrator applies them: linkspan crds | {} apply -f -", cluster.kubectl());
        checks.fail(GROUP, name, format!("the API server does not serve {}", missing.join(", ")), remedy);
    }
    missing
}

/// Nothing is installed: what stands in the way of it?
async fn before_installation(checks: &mut Checks<'_>, cluster: &Cluster, missing: &[String]) {
    let namespace = cluster.namespace().to_owned();
    let name = "Linkspan is installed";
    let elsewhere = cluster
        .api()
        .list("/apis/apps/v1/deployments", "&labelSelector=app.kubernetes.io%2Fpart-of%3Dlinkspan")
        .await
        .unwrap_or_default();
    let places: BTreeSet<&str> = elsewhere.iter().filter_map(|one| one["metadata"]["namespace"].as_str()).collect();
    if let Some(place) = places.iter().find(|place| **place != namespace) {
        let reason = format!("not in the namespace {namespace}; there is one in {place}");
        return checks.fail(GROUP, name, reason, format!("--linkspan-namespace {place}"));
    }
    if missing.iter().any(|missing| missing.contains("linkspan.io")) {
        rights::to_install(checks, cluster).await;
    } else {
        checks.ok(
            GROUP,
            "what a cluster administrator grants is there (--stage cluster)",
            "the definitions are served",
        );
    }
    left_behind(checks, cluster).await;
    checks.warn(
        GROUP,
        name,
        format!("not yet in the namespace {namespace}: only what an installation needs was checked"),
        format!("linkspan install --cluster-name NAME | {} apply -f - ; then check again", cluster.kubectl()),
    );
}

/// What an earlier installation made and nobody looks after any more: names that lead nowhere.
async fn left_behind(checks: &mut Checks<'_>, cluster: &Cluster) {
    let name = "nothing of an earlier installation is left";
    let ours = labelled(&OURS);
    let mirrors = cluster.api().list("/api/v1/services", &ours).await.unwrap_or_default();
    let links = cluster.api().list("/apis/linkspan.io/v1alpha1/links", "").await.unwrap_or_default();
    if !mirrors.is_empty() {
        let namespaces: BTreeSet<&str> =
            mirrors.iter().filter_map(|service| service["metadata"]["namespace"].as_str()).collect();
        let namespaces = namespaces.into_iter().collect::<Vec<_>>().join(", ");
        checks.fail(
            GROUP,
            name,
            format!("{} in {namespaces}, behind which no gateway runs", counted(mirrors.len(), "mirrored Service")),
            format!(
                "install again, or remove them: {} delete services,endpointslices --all-namespaces -l {}={}",
                cluster.kubectl(),
                OURS[0].0,
                OURS[0].1
            ),
        );
    } else if !links.is_empty() {
        let names: Vec<&str> = links.iter().filter_map(|link| link["metadata"]["name"].as_str()).collect();
        checks.warn(
            GROUP,
            name,
            format!("Links are there and nobody follows them: {}", names.join(", ")),
            format!(
                "they come into force with an installation; to remove them: {} delete links --all",
                cluster.kubectl()
            ),
        );
    }
}

/// The cluster's own root.
async fn root(checks: &mut Checks<'_>, cluster: &Cluster, settings: &Settings) {
    let pem = match cluster.root().await {
        Ok(Some(pem)) => Ok(pem.into_bytes()),
        Ok(None) => Err(anyhow::anyhow!("there is no ConfigMap linkspan-root with root.pem")),
        Err(error) => Err(error.into()),
    };
    let restore = format!(
        "restore the Secret linkspan-ca and the ConfigMap linkspan-root from a copy; a new cluster gets them by `linkspan ca create \
         --cluster-name {} | {} create -f -`",
        settings.cluster(),
        cluster.kubectl()
    );
    let name = "the cluster's root certificate is valid";
    let foreign = pem.as_ref().ok().and_then(|pem| {
        let pem = std::str::from_utf8(pem).ok()?;
        bundle::foreign(pem, &settings.trust_domain())
    });
    if let Some(what) = foreign {
        let remedy = format!(
            "no peer can trust this cluster so: install it with the name and trust domain that the root was made for \
             (--cluster-name, --trust-domain), or {restore}"
        );
        return checks.fail(Group::Trust, name, format!("the certificate {what}"), remedy);
    }
    trust::root(checks, name, pem, &restore, SystemTime::now());
    key(checks, cluster, &restore).await;
}

/// Whether the root's key is where the controllers find it when they start. Those that run have read it.
async fn key(checks: &mut Checks<'_>, cluster: &Cluster, restore: &str) {
    let path = cluster.own("apps/v1", "deployments/linkspan-controller");
    let Ok(Some(deployment)) = cluster.api().find(&path).await else { return };
    let volumes = deployment["spec"]["template"]["spec"]["volumes"].as_array().into_iter().flatten();
    for secret in volumes.filter_map(|volume| volume["secret"]["secretName"].as_str()) {
        let name = format!("the Secret {secret} with the root's key is there");
        // Few may read it, and nobody needs to for this: what is asked for is its name alone.
        match cluster.api().exists(&cluster.own("v1", &format!("secrets/{secret}"))).await {
            Ok(true) => checks.ok(Group::Trust, name, ""),
            Ok(false) => {
                let reason = "it is gone: controllers that run have the key, and none starts without it";
                checks.fail(Group::Trust, name, reason, restore);
            }
            Err(_) => {}
        }
    }
}

/// What the later groups judge, each part as far as it can be had.
async fn gather(checks: &mut Checks<'_>, cluster: &Cluster, missing: &[String]) {
    checks.progress.say("objects and admin pages");
    match cluster.facts().await {
        Ok((facts, _)) => checks.facts = facts,
        Err(error) => checks.fail(
            Group::Programs,
            "a gateway says what it knows",
            format!("{error:#}"),
            "mend what the checks above name; without it nothing is known of links, mirrors and exports",
        ),
    }
    checks.peers = Some(cluster.controller_json("/peers").await.map_err(|error| format!("{error:#}")));
    // Kinds that are not served have been told of.
    let served = |plural: &str| !missing.iter().any(|missing| missing.starts_with(plural));
    for (of, plural, what) in [
        (Of::Links, "links.", "Links"),
        (Of::Exports, "serviceexports.", "exports"),
        (Of::Mirrors, "serviceimports.", "mirrors"),
    ] {
        match cluster.statuses(of).await {
            Ok(found) => match of {
                Of::Links => checks.links = found,
                Of::Exports => checks.exports = found,
                Of::Mirrors => checks.mirrors = found,
            },
            Err(error) if served(plural) => checks.warn(
                GROUP,
                format!("the conditions of {what} can be read"),
                format!("{error:#}"),
                "ask for the right to list them in all namespaces; without it this check sees less",
            ),
            Err(_) => {}
        }
    }
    policies(checks, cluster).await;
}

/// What users wish for traffic, and whom they allow.
async fn policies(checks: &mut Checks<'_>, cluster: &Cluster) {
    for (kind, plural, what) in [
        (Kind::ClusterTrafficPolicy, "clustertrafficpolicies", "traffic policies"),
        (Kind::ExportPolicy, "exportpolicies", "export policies"),
    ] {
        let objects = match cluster.api().list(&format!("/apis/linkspan.io/v1alpha1/{plural}"), "").await {
            Ok(objects) => objects,
            Err(ApiError::NotFound(_)) => continue,
            Err(error) => {
                checks.warn(
                    GROUP,
                    format!("the {what} can be read"),
                    error.to_string(),
                    format!("ask for the right to list {plural} in all namespaces; without it they are not checked"),
                );
                continue;
            }
        };
        for object in objects.into_iter().filter_map(|object| manifest::from_api_server(kind, object).ok()) {
            match object {
                Object::ClusterTrafficPolicy(policy) => checks.policies.push(policy),
                Object::ExportPolicy(policy) => checks.export_policies.push(policy),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
