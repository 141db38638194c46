//! Controllers and gateways: whether they run, who leads, what they complain about, their clocks, and whether peers can dial.

use std::collections::BTreeMap;
use std::time::SystemTime;

use futures::future;
use http::StatusCode;
use jiff::Timestamp;
use linkspan_proto::resources::Cluster as Settings;
use serde_json::Value;

use super::super::Checks;
use super::super::report::Group;
use super::super::site::Problem;
use super::super::trust::{gateway_certificates, span};
use crate::client::kubernetes::Cluster;
use crate::client::kubernetes::api::{Answer, labelled};
use crate::client::kubernetes::pods::{Component, OurPod, Unreached};
use crate::client::kubernetes::reach::Reach;
use crate::output::counted;

const GROUP: Group = Group::Programs;

/// A clock that is further off is worth a look: a header says whole seconds, and the answer was under way for some time.
const SKEW_NOTICE: f64 = 5.0;

/// A clock that is further off breaks things. Certificates are valid from fifteen minutes before they are issued: a clock that is
/// a minute behind has used a part of that, and drifts on.
const SKEW_MAX: f64 = 60.0;

/// Runs the checks of this group. Returns the gateways that are ready.
pub(super) async fn check(
    checks: &mut Checks<'_>,
    cluster: &Cluster,
    settings: &Settings,
    server_ahead: Option<f64>,
) -> Vec<OurPod> {
    let mut clocks = Vec::new();
    let mut versions = BTreeMap::new();
    let mut ready = Vec::new();
    checks.progress.say("admin pages");
    let mut pages = pages(cluster).await;
    for component in [Component::Controller, Component::Gateway] {
        checks.progress.say(&format!("{}s", component.word()));
        let pods = run(checks, cluster, component).await;
        let mut told = false;
        for pod in pods.iter().filter(|pod| pod.running) {
            let Some(pages) = pages.remove(&pod.name) else { continue };
            match pages.and_then(|pages| judge(checks, cluster, component, pod, pages)) {
                Ok(seen) => {
                    clocks.extend(seen.ahead.map(|ahead| (pod.name.clone(), ahead)));
                    if !seen.version.is_empty() {
                        versions.insert(pod.name.clone(), seen.version);
                    }
                }
                // The way to all pods is the same: said once for each kind.
                Err(error) if !told => {
                    told = true;
                    unreadable(checks, component, &error);
                }
                Err(_) => {}
            }
        }
        match component {
            Component::Controller => {
                leader(checks, cluster, &pods, server_ahead).await;
                complaints(checks, cluster, &pods).await;
            }
            Component::Gateway => {
                endpoints(checks, cluster, settings, &pods).await;
                ready = pods.into_iter().filter(|pod| pod.ready).collect();
            }
        }
    }
    clock(checks, &clocks, server_ahead);
    agreed(checks, &versions);
    address(checks, cluster, settings).await;
    ready
}

/// `/ready` and `/metrics`, or why there is no answer.
type Pages = anyhow::Result<(Answer, anyhow::Result<Answer>)>;

/// The pages of all pods that run, asked for at once: those that answer by no way keep nobody waiting for longer than one does.
async fn pages(cluster: &Cluster) -> BTreeMap<String, Pages> {
    let listed = future::join(cluster.pods(Component::Controller), cluster.pods(Component::Gateway)).await;
    // Whoever may not list them is told so below.
    let pods: Vec<OurPod> = [listed.0, listed.1].into_iter().flatten().flatten().filter(|pod| pod.running).collect();
    let asked = future::join_all(pods.iter().map(|pod| ask(cluster, pod))).await;
    pods.into_iter().map(|pod| pod.name).zip(asked).collect()
}

/// Whether there are pods, and whether Kubernetes counts them as ready.
async fn run(checks: &mut Checks<'_>, cluster: &Cluster, component: Component) -> Vec<OurPod> {
    let word = component.word();
    let name = format!("{word}s run");
    let describe = format!(
        "{0} -n {1} describe deployment linkspan-{word}; {0} -n {1} logs deployment/linkspan-{word}",
        cluster.kubectl(),
        cluster.namespace()
    );
    let pods = match cluster.pods(component).await {
        Ok(pods) => pods,
        Err(error) => {
            checks.fail(GROUP, name, error.to_string(), "ask for the right to list pods in this namespace");
            return Vec::new();
        }
    };
    if pods.is_empty() {
        let reason = format!("there is no pod of it in the namespace {}", cluster.namespace());
        checks.fail(GROUP, name, reason, describe);
        return pods;
    }
    let unready: Vec<String> =
        pods.iter().filter(|pod| !pod.ready).map(|pod| format!("{}: {}", pod.name, pod.why)).collect();
    if unready.is_empty() {
        checks.ok(GROUP, name, format!("{} ready", counted(pods.len(), "pod")));
    } else if unready.len() == pods.len() {
        checks.fail(GROUP, name, format!("none is ready; {}", unready.join("; ")), describe);
    } else {
        checks.warn(GROUP, name, format!("not all are ready; {}", unready.join("; ")), describe);
    }
    pods
}

/// What one pod says of itself.
struct Seen {
    ahead: Option<f64>,
    version: String,
}

async fn ask(cluster: &Cluster, pod: &OurPod) -> Pages {
    Ok((cluster.page(pod, "/ready").await?, cluster.page(pod, "/metrics").await))
}

fn judge(
    checks: &mut Checks<'_>,
    cluster: &Cluster,
    component: Component,
    pod: &OurPod,
    (answer, metrics): (Answer, anyhow::Result<Answer>),
) -> anyhow::Result<Seen> {
    if answer.status != StatusCode::OK && !pod.ready {
        checks.fail(
            GROUP,
            format!("{} is ready", pod.name),
            waiting(&answer.body),
            format!(
                "{} -n {} logs {}: it says what the named part waits for",
                cluster.kubectl(),
                cluster.namespace(),
                pod.name
            ),
        );
    }
    let metrics = metrics?;
    let metrics = String::from_utf8_lossy(&metrics.body);
    if component == Component::Gateway {
        gateway_certificates(checks, &pod.name, &metrics, SystemTime::now());
    }
    Ok(Seen { ahead: answer.ahead, version: version(&metrics).unwrap_or_default() })
}

/// What `build_info` says.
fn version(metrics: &str) -> Option<String> {
    let line = metrics.lines().find(|line| line.starts_with("build_info{"))?;
    let (_, rest) = line.split_once("version=\"")?;
    Some(rest.split_once('"')?.0.to_owned())
}

/// The parts of `/ready` that are not.
fn waiting(body: &[u8]) -> String {
    let page: Value = serde_json::from_slice(body).unwrap_or_default();
    if page["draining"] == true {
        return "it is draining".to_owned();
    }
    match page["parts"].as_object() {
        Some(parts) => {
            let parts = parts.iter().filter(|(_, part)| part["state"] != "ready");
            let told = |(name, part): (&String, &Value)| {
                let reason = part["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
                format!("{name} is {}{reason}", part["state"].as_str().unwrap_or_default())
            };
            parts.map(told).collect::<Vec<_>>().join(", ")
        }
        None => String::from_utf8_lossy(body).trim().to_owned(),
    }
}

fn unreadable(checks: &mut Checks<'_>, component: Component, error: &anyhow::Error) {
    let remedy = error.downcast_ref::<Unreached>().map_or("look at its log", |unreached| unreached.remedy.as_str());
    // The remedy is the end of its text.
    let text = format!("{error:#}");
    let reason = text.strip_suffix(remedy).map_or(text.as_str(), |reason| reason.trim_end_matches("; "));
    checks.fail(GROUP, format!("the admin pages of {}s can be read", component.word()), reason, remedy);
}

/// Which controller writes.
async fn leader(checks: &mut Checks<'_>, cluster: &Cluster, pods: &[OurPod], server_ahead: Option<f64>) {
    if pods.is_empty() {
        return;
    }
    let name = "one controller leads";
    let logs = format!(
        "{} -n {} logs deployment/linkspan-controller: it says why it does not lead; its role linkspan-leases must be bound",
        cluster.kubectl(),
        cluster.namespace()
    );
    let leader = match cluster.leader().await {
        Ok(Some(leader)) if !leader.holder.is_empty() => leader,
        Ok(_) => {
            let reason = "nobody holds the Lease linkspan-controller: no mirror is written";
            return checks.fail(GROUP, name, reason, logs);
        }
        Err(error) => {
            let remedy = "ask for the right to get leases in this namespace";
            return checks.warn(GROUP, name, error.to_string(), remedy);
        }
    };
    // Renewals carry the leader's clock, which runs with the API server's or is told of below; ours may be anything.
    let now = Timestamp::now().as_second() as f64 + server_ahead.unwrap_or_default();
    let age = leader.renewed.map(|renewed| now - renewed.as_second() as f64);
    match age {
        Some(age) if age > leader.seconds as f64 + SKEW_NOTICE => checks.fail(
            GROUP,
            name,
            format!("{} led, and has not said so for {age:.0} s: no mirror is written", leader.holder),
            logs,
        ),
        _ if !pods.iter().any(|pod| leader.holder.starts_with(&pod.name)) => checks.warn(
            GROUP,
            name,
            format!("{} leads, and is no pod of ours (any more)", leader.holder),
            format!("wait {} s: then another one takes over", leader.seconds),
        ),
        _ => checks.ok(GROUP, name, leader.holder),
    }
}

/// What the controller cannot read: objects that are not valid, kinds that it may not watch.
async fn complaints(checks: &mut Checks<'_>, cluster: &Cluster, pods: &[OurPod]) {
    if !pods.iter().any(|pod| pod.running) {
        return;
    }
    let name = "the controller can use everything that it watches";
    let Ok(problems) = cluster.controller_json::<Vec<Problem>>("/manifests").await else { return };
    if problems.is_empty() {
        return checks.ok(GROUP, name, "");
    }
    // One cause often hits all kinds: said once.
    let mut by_cause: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for problem in problems {
        let told = problem.of_object();
        match told.split_once(": ") {
            Some((object, cause)) => by_cause.entry(cause.to_owned()).or_default().push(object.to_owned()),
            None => drop(by_cause.entry(told).or_default()),
        }
    }
    for (cause, objects) in by_cause {
        let objects = objects.join(", ");
        checks.fail(
            GROUP,
            name,
            if objects.is_empty() { cause } else { format!("{objects}: {cause}") },
            "correct the object, or what the message names; until then the last good state stays in force",
        );
    }
}

/// Whether the gateways are endpoints of their own Service: only then do mirrors lead to them.
async fn endpoints(checks: &mut Checks<'_>, cluster: &Cluster, settings: &Settings, pods: &[OurPod]) {
    let service = settings.spec.gateway.service.as_str();
    let path = cluster.own("discovery.k8s.io/v1", "endpointslices");
    let Ok(slices) = cluster.api().list(&path, &labelled(&[("kubernetes.io/service-name", service)])).await else {
        return;
    };
    let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true).count();
    if ready == 0 && pods.iter().any(|pod| pod.ready) {
        checks.fail(
            GROUP,
            "ready gateways are endpoints of mirrors",
            format!("the Service {service} has no ready endpoint, although gateways are ready: mirrors lead nowhere"),
            format!(
                "see that the Service's selector fits the pods: apply again what `linkspan install` prints with the same arguments ({} -n {} get \
                 endpointslices)",
                cluster.kubectl(),
                cluster.namespace()
            ),
        );
    }
}

/// The clocks of all against the API server's, which issues the tokens.
fn clock(checks: &mut Checks<'_>, pods: &[(String, f64)], server_ahead: Option<f64>) {
    let name = "the clocks agree";
    let Some(server) = server_ahead else { return };
    let mut off: Vec<(String, f64, bool)> = pods
        .iter()
        .map(|(pod, ahead)| (format!("the node of {pod}"), ahead - server, true))
        .chain([("this machine".to_owned(), -server, false)])
        .collect();
    off.retain(|(_, apart, _)| apart.abs() > SKEW_NOTICE);
    if off.is_empty() {
        let found = counted(pods.len(), "pod");
        return checks.ok(GROUP, name, format!("the API server, {found} and this machine"));
    }
    for (who, apart, inside) in off {
        let size = span(std::time::Duration::from_secs_f64(apart.abs()));
        let way = if apart > 0.0 { "ahead of" } else { "behind" };
        let reason = format!("the clock of {who} is {size} {way} that of the API server");
        let remedy = "set it (chronyd, systemd-timesyncd): certificates and leases are valid by the clock; if all pods are off, \
                      it is the API server's that is wrong";
        if inside && apart.abs() > SKEW_MAX {
            checks.fail(GROUP, name, reason, remedy);
        } else {
            checks.warn(GROUP, name, reason, remedy);
        }
    }
}

fn agreed(checks: &mut Checks<'_>, versions: &BTreeMap<String, String>) {
    let ours = env!("CARGO_PKG_VERSION");
    let name = "the versions agree";
    let others: Vec<String> = versions
        .iter()
        .filter(|(_, version)| *version != ours)
        .map(|(pod, version)| format!("{pod} is {version}"))
        .collect();
    if versions.is_empty() {
        return;
    }
    if others.is_empty() {
        checks.ok(GROUP, name, ours);
    } else {
        checks.warn(
            GROUP,
            name,
            format!("this command is {ours}, {}", others.join(", ")),
            "finish the upgrade of what is older; use the command of the same release",
        );
    }
}

/// Whether peers have an address to dial.
async fn address(checks: &mut Checks<'_>, cluster: &Cluster, settings: &Settings) {
    let name = "peers have an address to dial";
    let advertised = &settings.spec.gateway.advertise;
    let shown = |addresses: &[linkspan_proto::resources::HostPort]| {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    if !advertised.is_empty() {
        return checks.ok(GROUP, name, format!("{}, as configured", shown(advertised)));
    }
    let service = &settings.spec.gateway.link_service;
    let see = format!("{} -n {} describe service {service}", cluster.kubectl(), cluster.namespace());
    let otherwise = "name an address with `linkspan install --address HOST:PORT`; or let this cluster only dial its peers: \
                     --service-type ClusterIP";
    match cluster.reach(settings).await {
        Ok(Some(Reach::At(addresses))) => checks.ok(GROUP, name, shown(&addresses)),
        Ok(Some(Reach::Inside(addresses))) => checks.warn(
            GROUP,
            name,
            format!("{}: internal addresses of the nodes, which peers elsewhere do not reach", shown(&addresses)),
            otherwise,
        ),
        Ok(Some(Reach::Nobody)) => checks.ok(GROUP, name, "none is meant: this cluster dials its peers"),
        Ok(Some(Reach::Pending)) => checks.fail(
            GROUP,
            name,
            format!("the gateways have no address: the load balancer has given the Service {service} none"),
            format!(
                "see why: {see}; where nothing hands out addresses: --service-type NodePort; where UDP and TCP cannot share a \
                 port: --no-link-tcp; or {otherwise}"
            ),
        ),
        Ok(Some(Reach::NoNode)) => checks.fail(
            GROUP,
            name,
            format!(
                "the gateways have no address: the Service {service} has a node port, and no ready node has an address"
            ),
            otherwise,
        ),
        Ok(None) => checks.fail(
            GROUP,
            name,
            format!("the gateways have no address: there is no Service {service}"),
            "apply again what `linkspan install` prints with the same arguments",
        ),
        Err(error) => checks.warn(
            GROUP,
            name,
            format!("{error:#}"),
            "ask for the right to get services in this namespace, and to list nodes for a node port",
        ),
    }
}
