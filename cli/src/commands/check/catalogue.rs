//! What the peers export against what is mirrored here, and what policies name against what exists.

use std::collections::BTreeSet;

use linkspan_proto::names::{ClusterName, Namespace, ServiceKey};
use linkspan_proto::resources::ClusterTrafficPolicy;

use super::Checks;
use super::cause::Cause;
use super::report::Group;
use crate::client::catalogues::PeerCatalogue;
use crate::client::facts::Facts;
use crate::client::status::{Condition, Status};
use crate::commands::exports::manifest as export_manifest;
use crate::output::counted;

const GROUP: Group = Group::Catalogue;

/// Runs the checks of this group.
pub(super) fn check(checks: &mut Checks<'_>) {
    match checks.peers.take() {
        Some(Ok(mut peers)) => {
            peers.retain(|peer| checks.scope.covers_cluster(&peer.cluster));
            for peer in &peers {
                current(checks, peer);
                handed_over(checks, peer);
            }
        }
        Some(Err(error)) => {
            let name = "the controller says what it knows of the peers";
            checks.fail(GROUP, name, error, "look at the controller's log");
        }
        None => {}
    }
    mirrored(checks);
    wanted_service(checks);
    policies(checks);
}

/// Whether our copy of the peer's catalogue is the one that the peer has now.
fn current(checks: &mut Checks<'_>, peer: &PeerCatalogue) {
    let cluster = &peer.cluster;
    let name = format!("{cluster}: our copy of its catalogue is what it has now");
    let alive = checks.facts.links.get(cluster).is_some_and(|link| link.alive && link.connections > 0);
    let services = peer.entries;
    if peer.withheld > 0 {
        return checks.warn(
            GROUP,
            name,
            format!(
                "{cluster} removed more than half of its services at once; {} of them keep their names for 30 s in case it is a \
                 mistake, and are not probed: calls to them get 404 unknown_export",
                peer.withheld
            ),
            format!("if it is meant, wait; if not, see `linkspan exports` in {cluster}"),
        );
    }
    match (peer.connected && peer.synchronised, alive) {
        (true, _) => {
            let hash = peer.hash.as_deref().map(|hash| hash.get(..12).unwrap_or(hash)).unwrap_or("-");
            let version = peer.version.unwrap_or(0);
            checks.ok(GROUP, name, format!("version {version}, hash {hash}, {}", counted(services, "service")));
        }
        // The link's own check has failed already; what is mirrored stays.
        (false, false) => checks.warn(
            GROUP,
            name,
            format!("the link is down; what was last seen stays: {}", counted(services, "service")),
            "mend the link: the checks of the group `links` say how",
        ),
        (false, true) => {
            let silent = "the link is alive, and the controllers are not in touch";
            checks.fail(
                GROUP,
                name,
                peer.message.clone().unwrap_or_else(|| silent.to_owned()),
                format!(
                    "see that the controller of {cluster} runs (`linkspan check` there), then look at both controllers' logs"
                ),
            );
            checks.because(Cause::CatalogueDisagreement);
        }
    }
}

/// Whether the gateway has been told of what the controller knows.
fn handed_over(checks: &mut Checks<'_>, peer: &PeerCatalogue) {
    if !(peer.connected && peer.synchronised) {
        return;
    }
    let here = checks.facts.services_of(&peer.cluster);
    let name = format!("{}: the gateway knows all its services", peer.cluster);
    if here == peer.entries {
        checks.ok(GROUP, name, format!("{here}"));
    } else {
        checks.fail(
            GROUP,
            name,
            format!("the controller knows {}, the gateway {here}", peer.entries),
            "wait a second; if it stays so, the gateway has lost the controller: its log says why, a restart of the \
             gateway mends it",
        );
        checks.because(Cause::CatalogueDisagreement);
    }
}

/// Whether everything that a peer exports has a mirror of its own.
fn mirrored(checks: &mut Checks<'_>) {
    let complaints = checks.mirrors.clone();
    refused(checks, &complaints);
    overruled(checks, &complaints);
    let covered = |(cluster, service): &&(ClusterName, ServiceKey)| {
        checks.scope.covers_cluster(cluster) && checks.scope.covers_service(service)
    };
    let exported: Vec<(ClusterName, ServiceKey)> = checks.facts.capacities.keys().filter(covered).cloned().collect();
    if exported.is_empty() {
        return;
    }
    let mirrors = direct_mirrors(&checks.facts);
    let missing = exported.iter().filter(|&it| !mirrors.contains(it) && carried(&checks.facts, it));
    let (empty, missing): (Vec<_>, Vec<_>) = missing.partition(|(cluster, service)| {
        // What has a status and no complaint was made; the gateways know of it when the first endpoint has a name.
        let name = checks.facts.name_of(cluster, service);
        let mut made = complaints.iter().filter(|status| status.complaint("Accepted").is_none());
        checks.facts.has_none_ready(cluster, service) && made.any(|status| status.hostname() == name)
    });
    let count = exported.len();
    for (cluster, service) in empty {
        checks.warn(
            GROUP,
            format!("{service} of {cluster} has endpoints"),
            "it is mirrored and headless, and has no endpoint: its name has no address, and there is no name of an endpoint",
            format!("in {cluster} start the service; `linkspan exports` there shows the count"),
        );
        checks.because(Cause::NoReadyEndpoint);
    }
    if missing.is_empty() {
        checks.ok(GROUP, "everything that is exported to us is mirrored", counted(count, "service"));
    }
    for (cluster, service) in missing {
        let why = complaint_about(&complaints, service, cluster);
        checks.fail(
            GROUP,
            format!("{service} of {cluster} is mirrored"),
            why.unwrap_or_else(|| "it is in the peer's catalogue, and the gateway has no mirror of it".to_owned()),
            "the controller's log says why; so does state/status/mirrors of a site",
        );
    }
}

/// Mirrors that the controller did not make.
fn refused(checks: &mut Checks<'_>, statuses: &[Status]) {
    for status in statuses {
        let covered = checks.scope.service.as_ref().is_none_or(|wanted| wanted.to_string() == status.service());
        // A namespace that is not there is no fault: the checks of the mirrors name it.
        let absent = status.namespace_is_absent();
        if let Some(complaint) = status.complaint("Accepted").filter(|_| covered && !absent) {
            let name = format!("{} of a linked cluster is mirrored as {}", status.service(), status.hostname());
            if complaint.reason == "UnsupportedProtocol" {
                // Nothing that this cluster could change.
                let remedy = "in the cluster that exports it give the Service a TCP or UDP port, or take the export back; nothing here \
                              is in its way";
                checks.warn(GROUP, name, complaint.sentence(), remedy);
                continue;
            }
            checks.fail(
                GROUP,
                name,
                complaint.sentence(),
                "clear what is in its way: rename the local object of this name, or make room (mirrorAddresses in site.yaml, \
                 spec.gateway.ports on Kubernetes)",
            );
        }
    }
}

/// Traffic policies that do not hold as they are written.
fn overruled(checks: &mut Checks<'_>, statuses: &[Status]) {
    for status in statuses {
        let covered = checks.scope.service.as_ref().is_none_or(|wanted| wanted.to_string() == status.service());
        if let Some(complaint) = status.complaint("PolicyAccepted").filter(|_| covered) {
            checks.warn(
                GROUP,
                format!("the ClusterTrafficPolicy of {} is in force", status.service()),
                complaint.sentence(),
                "correct or remove the policy; one policy for each service, and none for a headless one",
            );
        }
    }
}

/// A service without a TCP port has nothing that could be mirrored.
fn carried(facts: &Facts, (cluster, service): &(ClusterName, ServiceKey)) -> bool {
    let capacity = facts.capacities.get(&(cluster.clone(), service.clone()));
    capacity.is_some_and(|capacity| capacity.ports().next().is_some())
}

/// The services that have a mirror which leads to that one cluster.
fn direct_mirrors(facts: &Facts) -> BTreeSet<(ClusterName, ServiceKey)> {
    facts
        .mirrors
        .iter()
        .flat_map(|mirror| {
            let clusters = mirror.tiers.iter().flat_map(|tier| tier.clusters.keys());
            clusters.map(|cluster| (cluster.clone(), mirror.service.clone()))
        })
        .collect()
}

/// Why the controller made no mirror of it.
fn complaint_about(statuses: &[Status], service: &ServiceKey, cluster: &ClusterName) -> Option<String> {
    let of_service = || statuses.iter().filter(|status| status.service() == service.to_string());
    let suffix = format!("-{cluster}.{}.svc.cluster.local", service.namespace);
    let own = of_service().find(|status| status.hostname().ends_with(&suffix));
    own.into_iter().chain(of_service()).find_map(|status| status.complaint("Accepted")).map(Condition::sentence)
}

/// `check NAMESPACE/SERVICE`: whether any cluster exports it at all, this one included.
fn wanted_service(checks: &mut Checks<'_>) {
    let Some(service) = checks.scope.service.clone() else { return };
    let name = format!("{service} is exported");
    let exporters: Vec<&str> = checks
        .facts
        .exporters_of(&service)
        .filter(|cluster| checks.scope.covers_cluster(cluster))
        .map(ClusterName::as_str)
        .collect();
    if !exporters.is_empty() {
        return checks.ok(GROUP, name, format!("by {}", exporters.join(", ")));
    }
    // Who asks about one peer wants to know of that one.
    if checks.scope.cluster.is_none() && checks.facts.exports.contains_key(&service) {
        return checks.ok(GROUP, name, "by this cluster, and by no linked one");
    }
    let reason = not_exported(&checks.facts, &service);
    checks.fail(GROUP, name, reason, how_to_export(&service));
    checks.because(not_exported_because(&checks.facts));
}

/// Nobody knows what a cluster exports to which there is no link.
fn not_exported_because(facts: &Facts) -> Option<Cause> {
    facts.links.values().all(|link| link.alive).then_some(Cause::NotExported)
}

fn not_exported(facts: &Facts, service: &ServiceKey) -> String {
    let down: Vec<&str> = facts.links.values().filter(|link| !link.alive).map(|link| link.cluster.as_str()).collect();
    let known = format!("{service} is not exported by any linked cluster");
    let here = if facts.exports.contains_key(service) { "; it is exported here" } else { "" };
    if down.is_empty() {
        format!("{known}{here}")
    } else {
        format!("{known}{here} (the link to {} is down)", down.join(", "))
    }
}

fn how_to_export(service: &ServiceKey) -> String {
    format!(
        "in the cluster that runs it, put this beside its Service:\n{}",
        export_manifest(service.namespace.as_str(), service.name.as_str())
    )
}

/// Whether the services and clusters that ClusterTrafficPolicies name exist.
fn policies(checks: &mut Checks<'_>) {
    for policy in checks.policies.clone() {
        let Some((name, service)) = named(&policy) else { continue };
        if !checks.scope.covers_service(&service) {
            continue;
        }
        let check = format!("ClusterTrafficPolicy {name}: what it names exists");
        let facts = &checks.facts;
        let exported = |cluster: &ClusterName| {
            facts.capacities.contains_key(&(cluster.clone(), service.clone()))
                || (facts.own.as_ref() == Some(cluster) && facts.exports.contains_key(&service))
        };
        let weighted: BTreeSet<&ClusterName> = policy
            .spec
            .tiers
            .iter()
            .flat_map(|tier| tier.clusters.iter())
            .filter(|(_, weight)| **weight > 0)
            .map(|(cluster, _)| cluster)
            .collect();
        let unlinked: Vec<&str> = weighted
            .iter()
            .filter(|cluster| !facts.peers.contains_key(**cluster) && facts.own.as_ref() != Some(**cluster))
            .map(|cluster| cluster.as_str())
            .collect();
        let without: Vec<&str> =
            weighted.iter().filter(|cluster| !exported(cluster)).map(|cluster| cluster.as_str()).collect();
        if !unlinked.is_empty() {
            let reason = format!("it gives weight to {}, and no Link of that name is in force", unlinked.join(", "));
            checks.fail(GROUP, check, reason, "correct the cluster's name in the policy, or link it");
            checks.because(Cause::LinkMissing);
        } else if weighted.is_empty() {
            let reason = format!("all its weights are 0: nobody is served at {}", clusterset_name(&service));
            checks.warn(GROUP, check, reason, "give a cluster a weight above 0, or remove the policy");
        } else if without.len() == weighted.len() {
            let (reason, cause) = (not_exported(facts, &service), not_exported_because(facts));
            checks.fail(GROUP, check, reason, how_to_export(&service));
            checks.because(cause);
        } else if without.is_empty() {
            checks.ok(GROUP, check, service.to_string());
        } else {
            let reason = format!("{service} is not exported by {}: its weight goes to the others", without.join(", "));
            checks.warn(GROUP, check, reason, how_to_export(&service));
        }
    }
}

fn clusterset_name(service: &ServiceKey) -> String {
    format!("{}.{}.svc.clusterset.local", service.name, service.namespace)
}

fn named(policy: &ClusterTrafficPolicy) -> Option<(String, ServiceKey)> {
    let namespace = Namespace::parse(policy.metadata.namespace.as_deref()?).ok()?;
    let name = format!("{namespace}/{}", policy.metadata.name.as_deref()?);
    Some((name, ServiceKey { namespace, name: policy.spec.service.clone() }))
}
