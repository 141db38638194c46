//! The objects that stand for mirrors against what the gateways serve: nothing missing, nothing left over, nothing bent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use linkspan_proto::configuration::Mirror;
use linkspan_proto::names::Namespace;
use linkspan_proto::names::ServiceKey;
use serde_json::Value;

use super::super::Checks;
use super::super::dns::covers;
use super::super::report::Group;
use crate::client::facts::Facts;
use crate::client::kubernetes::Cluster;
use crate::client::kubernetes::api::labelled;
use crate::client::kubernetes::mirrors::{MirrorObjects, MirrorService, OURS};
use crate::client::kubernetes::pods::OurPod;
use crate::output::counted;

const GROUP: Group = Group::Catalogue;

/// Runs the checks. `gateways` are those that are ready.
pub(super) async fn check(checks: &mut Checks<'_>, cluster: &Cluster, only: &[Namespace], gateways: &[OurPod]) {
    checks.progress.say("mirrors");
    let mut objects = match cluster.mirror_objects().await {
        Ok(objects) => objects,
        Err(error) => {
            let remedy = "ask for the right to list services and serviceimports in all namespaces";
            return checks.warn(GROUP, "the mirrors' objects can be read", format!("{error:#}"), remedy);
        }
    };
    let namespaces = cluster.api().list("/api/v1/namespaces", "").await.ok().map(|all| {
        let names = all.iter().filter_map(|one| Some(one["metadata"]["name"].as_str()?.to_owned()));
        names.collect::<BTreeSet<String>>()
    });
    let slices = cluster.api().list("/apis/discovery.k8s.io/v1/endpointslices", &labelled(&OURS)).await;
    let mut bad = stranded(checks, cluster, only, &mut objects);
    let served = served(checks);
    bad += missing(checks, &served, &objects, namespaces.as_ref(), only);
    bad += bent(checks, &served, &objects);
    bad += left_over(checks, &objects);
    if let Ok(slices) = slices {
        bad += misled(checks, &served, &objects, &slices, gateways);
    }
    if bad == 0 && !served.is_empty() {
        checks.ok(GROUP, "mirrors are as the exports say", counted(objects.services.len(), "Service"));
    }
    checks.facts.fronts = Some(objects.fronts());
}

/// Whether nothing is mirrored into a namespace, as the cluster's configuration says.
fn is_outside(only: &[Namespace], namespace: &str) -> bool {
    !only.is_empty() && !only.iter().any(|one| one.as_str() == namespace)
}

/// Takes out the Services in namespaces that nothing is mirrored into: they were made before these were left out.
fn stranded(checks: &mut Checks<'_>, cluster: &Cluster, only: &[Namespace], objects: &mut MirrorObjects) -> usize {
    let mut left: BTreeMap<String, usize> = BTreeMap::new();
    for service in objects.services.extract_if(.., |service| is_outside(only, &service.namespace)) {
        *left.entry(service.namespace).or_default() += 1;
    }
    let label = OURS.map(|(key, value)| format!("{key}={value}")).join(",");
    for (namespace, count) in &left {
        checks.fail(
            GROUP,
            format!("nothing of Linkspan's is in {namespace}, which is not mirrored into"),
            format!("{} of mirrors made earlier is still there, kept up by nobody", counted(*count, "Service")),
            format!("{} -n {namespace} delete services,endpointslices,serviceimports -l {label}", cluster.kubectl()),
        );
    }
    left.len()
}

/// What the gateways serve and has an object of its own, by the name that clients use.
fn served(checks: &Checks<'_>) -> BTreeMap<String, Mirror> {
    let mirrors = checks.facts.mirrors.iter().filter(|mirror| {
        mirror.endpoint.is_none() && checks.scope.covers_service(&mirror.service) && covers(checks, mirror)
    });
    mirrors.map(|mirror| (mirror.name.clone(), mirror.clone())).collect()
}

/// Names without a Service. Where the namespace is not there either, that is how it should be. What the controller itself says of
/// a name that it did not make has been told.
fn missing(
    checks: &mut Checks<'_>,
    served: &BTreeMap<String, Mirror>,
    objects: &MirrorObjects,
    namespaces: Option<&BTreeSet<String>>,
    only: &[Namespace],
) -> usize {
    let fronts = objects.fronts();
    let held: BTreeMap<String, bool> = checks
        .mirrors
        .iter()
        .filter(|status| status.complaint("Accepted").is_some())
        .map(|status| (status.hostname().to_owned(), status.namespace_is_absent()))
        .collect();
    let mut absent: BTreeMap<(String, &str), usize> = BTreeMap::new();
    let mut bad = 0;
    for (name, mirror) in served.iter().filter(|(name, _)| !fronts.contains_key(*name)) {
        let namespace = mirror.service.namespace.to_string();
        if namespaces.is_some_and(|all| !all.contains(&namespace)) {
            *absent.entry((namespace, "does not exist here")).or_default() += 1;
            continue;
        }
        let is_outside = is_outside(only, &namespace);
        match held.get(name) {
            None if !is_outside => {}
            None | Some(true) => {
                *absent.entry((namespace, "is none of those to mirror into, or on its way out")).or_default() += 1;
                continue;
            }
            Some(false) => {
                bad += 1;
                continue;
            }
        }
        bad += 1;
        checks.fail(
            GROUP,
            format!("{name} has its Service"),
            "the gateways serve it, and no Service stands for it: nobody finds it",
            "see that one controller leads and may write to this namespace (the checks above), and that no other object has \
             its name; the controller's log says what it could not write",
        );
    }
    for ((namespace, why), count) in absent {
        let found = format!("{} of it from other clusters would be", counted(count, "name"));
        checks.ok(GROUP, format!("nothing is mirrored into {namespace}, which {why}"), found);
    }
    bad
}

/// Services that say something else than the export.
fn bent(checks: &mut Checks<'_>, served: &BTreeMap<String, Mirror>, objects: &MirrorObjects) -> usize {
    let mut bad = 0;
    for service in &objects.services {
        let Some(mirror) = served.get(&service.hostname()) else { continue };
        let wanted: BTreeSet<u16> = mirror.ports.iter().map(|port| port.port).collect();
        let has: BTreeSet<u16> = service.ports.iter().copied().collect();
        let lacking: Vec<String> = wanted.difference(&has).map(ToString::to_string).collect();
        let reason = match (lacking.is_empty(), service.selects) {
            (true, false) => continue,
            (false, _) => format!("it lacks port {}, which is exported", lacking.join(", ")),
            (true, true) => "it has a selector, so it leads to pods of this cluster and not to the gateways".to_owned(),
        };
        bad += 1;
        checks.fail(
            GROUP,
            format!("the Service {}/{} is as the export says", service.namespace, service.name),
            reason,
            "somebody changed it, or the controller cannot write: it repairs such changes in two seconds while it leads; its log \
             says what it could not write",
        );
    }
    bad
}

/// Mirrors of what is not exported any more.
fn left_over(checks: &mut Checks<'_>, objects: &MirrorObjects) -> usize {
    let known: BTreeSet<&str> = checks.facts.mirrors.iter().map(|mirror| mirror.name.as_str()).collect();
    let extra: Vec<MirrorService> = objects
        .services
        .iter()
        .filter(|service| !known.contains(service.hostname().as_str()))
        // Of a headless service the gateways know the endpoints alone, and none of a service that has none. Its own Service
        // stands for the export all the same; that of an endpoint goes a moment after the endpoint.
        .filter(|service| !((service.headless || service.endpoint.is_some()) && is_exported(&checks.facts, service)))
        .filter(|service| {
            let cluster = checks.scope.cluster.as_deref();
            cluster.is_none_or(|wanted| service.cluster.as_deref() == Some(wanted)) && checks.scope.service.is_none()
        })
        .cloned()
        .collect();
    for service in &extra {
        let from = service.cluster.as_deref().unwrap_or("any cluster");
        let reason = if is_exported(&checks.facts, service) {
            format!("no gateway serves {}, and its mirror is still there", service.hostname())
        } else {
            format!("{} is not exported by {from}, and its mirror is still there", service.service)
        };
        checks.fail(
            GROUP,
            format!("the Service {}/{} stands for an export", service.namespace, service.name),
            reason,
            "wait a moment: the controller removes it once it has the peer's whole catalogue; if it stays, see that one \
             controller leads, and its log",
        );
    }
    extra.len()
}

/// Whether the cluster that a Service is a mirror of exports the service; any cluster, where it stands for all.
fn is_exported(facts: &Facts, mirror: &MirrorService) -> bool {
    let is_it = |key: &ServiceKey| key.name.as_str() == mirror.service && key.namespace.as_str() == mirror.namespace;
    let mut exporters = facts.capacities.keys().filter(|(_, key)| is_it(key)).map(|(cluster, _)| cluster.as_str());
    match &mirror.cluster {
        Some(cluster) => exporters.any(|exporter| exporter == cluster),
        None => exporters.next().is_some() || facts.exports.keys().any(is_it),
    }
}

/// EndpointSlices that lead elsewhere than to the ready gateways and the ports they listen on.
fn misled(
    checks: &mut Checks<'_>,
    served: &BTreeMap<String, Mirror>,
    objects: &MirrorObjects,
    slices: &[Value],
    gateways: &[OurPod],
) -> usize {
    let ready: BTreeSet<IpAddr> = gateways.iter().flat_map(|pod| pod.addresses.iter().copied()).collect();
    let mut led: BTreeMap<(String, String), Led> = BTreeMap::new();
    for slice in slices {
        let metadata = &slice["metadata"];
        let service = metadata["labels"]["kubernetes.io/service-name"].as_str().unwrap_or_default().to_owned();
        let namespace = metadata["namespace"].as_str().unwrap_or_default().to_owned();
        led.entry((namespace, service)).or_default().add(slice);
    }
    let mut bad = 0;
    for service in &objects.services {
        let Some(mirror) = served.get(&service.hostname()).filter(|_| !gateways.is_empty()) else { continue };
        let led = led.remove(&(service.namespace.clone(), service.name.clone())).unwrap_or_default();
        let listens: BTreeSet<u16> = mirror.ports.iter().map(|port| port.listen.port()).collect();
        let text = |all: &BTreeSet<IpAddr>| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let strangers: BTreeSet<IpAddr> = led.addresses.difference(&ready).copied().collect();
        let reason = if led.addresses.is_empty() {
            "it has no endpoint, although gateways are ready".to_owned()
        } else if !strangers.is_empty() {
            format!("it leads to {}, which is no ready gateway", text(&strangers))
        } else if !listens.is_subset(&led.ports) {
            "its ports are not those on which the gateways listen for it".to_owned()
        } else {
            continue;
        };
        bad += 1;
        checks.fail(
            GROUP,
            format!("the endpoints of {}/{} are the gateways", service.namespace, service.name),
            reason,
            "wait two seconds; if it stays, see that one controller leads and may write endpointslices, and its log",
        );
    }
    bad
}

/// Where the EndpointSlices of one Service lead.
#[derive(Default)]
struct Led {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<u16>,
}

impl Led {
    fn add(&mut self, slice: &Value) {
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] != false);
        let addresses = ready.flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten());
        self.addresses.extend(addresses.filter_map(|address| address.as_str()?.parse::<IpAddr>().ok()));
        let ports = slice["ports"].as_array().into_iter().flatten();
        self.ports.extend(ports.filter_map(|port| u16::try_from(port["port"].as_u64()?).ok()));
    }
}
