//! What is exported here: every wish granted, every port with a ready endpoint, every ready endpoint there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use linkspan_proto::configuration::Export;
use linkspan_proto::names::{ClusterName, Namespace, ServiceKey, ServiceName};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::cause::Cause;
use super::report::Group;
use super::{AT_ONCE, Checks};

const GROUP: Group = Group::Exports;

/// How long an endpoint may take to accept; the gateway itself gives it as long.
pub(super) const CONNECT: Duration = Duration::from_secs(1);

/// Endpoints of one export that are tried. A sample is enough to see a wrong port or a stopped service.
const SAMPLE: usize = 16;

/// Runs the checks of this group that need no packet.
pub(super) fn check(checks: &mut Checks<'_>) {
    refused_exports(checks);
    for export in covered(checks) {
        ready(checks, &export);
    }
    policies(checks);
}

/// Whether the peers and services that ExportPolicies name exist: a policy closes a service to everybody whom it does not name,
/// and a name with a mistake in it lets nobody in.
fn policies(checks: &mut Checks<'_>) {
    for policy in checks.export_policies.clone() {
        let (Some(namespace), Some(name)) = (&policy.metadata.namespace, &policy.metadata.name) else { continue };
        let Ok(namespace) = Namespace::parse(namespace) else { continue };
        let key = |name: &ServiceName| ServiceKey { namespace: namespace.clone(), name: name.clone() };
        let services: Vec<ServiceKey> = policy.spec.services.iter().map(key).collect();
        let covered = services.is_empty() || services.iter().any(|service| checks.scope.covers_service(service));
        if !covered {
            continue;
        }
        // What is wished for and not granted has a check of its own.
        let wished = |service: &ServiceKey| checks.exports.iter().any(|wish| wish.key() == service.to_string());
        let absent = services.iter().filter(|service| !checks.facts.exports.contains_key(*service) && !wished(service));
        let absent: Vec<String> = absent.map(ToString::to_string).collect();
        let peers: BTreeSet<&ClusterName> = policy.spec.allow.iter().flat_map(|rule| &rule.peers).collect();
        let strangers = peers.iter().filter(|peer| !checks.facts.peers.contains_key(**peer));
        let strangers: Vec<&str> = strangers.map(|peer| peer.as_str()).collect();
        let check = format!("ExportPolicy {namespace}/{name}: what it names exists");
        let mut reasons = Vec::new();
        if !strangers.is_empty() {
            reasons.push(format!("it allows {}, and no Link of that name is in force", strangers.join(", ")));
        }
        if !absent.is_empty() {
            reasons.push(format!("it is about {}, which is not exported", absent.join(", ")));
        }
        if reasons.is_empty() {
            checks.ok(GROUP, check, "");
        } else {
            let remedy =
                "correct the names in the policy, or link the peer and export the service; who is not named gets 403";
            checks.warn(GROUP, check, reasons.join("; "), remedy);
        }
    }
}

fn covered(checks: &Checks<'_>) -> Vec<Export> {
    checks.facts.exports.values().filter(|export| checks.scope.covers_service(&export.service)).cloned().collect()
}

/// Wishes that the controller did not grant.
fn refused_exports(checks: &mut Checks<'_>) {
    for wish in checks.exports.clone() {
        let key = wish.key();
        let covered = checks.scope.service.as_ref().is_none_or(|wanted| wanted.to_string() == key);
        if !covered {
            continue;
        }
        if let Some(conflict) = wish.complaint("Conflict") {
            checks.warn(
                GROUP,
                format!("{key}: all clusters that export it agree about it"),
                conflict.sentence(),
                "make the Services in all clusters alike in what the message names; meanwhile that cluster decides whose export was \
                 seen here first, or that --precedence (spec.mirrors.precedence) names",
            );
            checks.because(Cause::CatalogueDisagreement);
        }
        if let Some(complaint) = wish.complaint("Valid").or_else(|| wish.complaint("Ready")) {
            let remedy = match complaint.reason.as_str() {
                "NoService" => "create the Service of this name in this namespace, or remove the ServiceExport",
                "InvalidServiceType" => "export a Service with endpoints: not of type ExternalName, and no mirror",
                _ => "correct what the message names, in the Service or the ServiceExport",
            };
            checks.fail(GROUP, format!("{key} can be exported"), complaint.sentence(), remedy);
        }
    }
}

fn ready(checks: &mut Checks<'_>, export: &Export) {
    let service = &export.service;
    let name = format!("{service} has ready endpoints");
    let empty: Vec<String> = export
        .ports
        .iter()
        .filter(|port| !port.endpoints.iter().any(|endpoint| endpoint.ready))
        .map(|port| port.port.to_string())
        .collect();
    if export.ports.is_empty() {
        checks.warn(GROUP, name, "none of its ports is TCP or UDP", "only TCP and UDP ports are carried");
    } else if empty.is_empty() {
        let ready: BTreeSet<SocketAddr> = export
            .ports
            .iter()
            .flat_map(|port| &port.endpoints)
            .filter(|endpoint| endpoint.ready)
            .map(|endpoint| endpoint.address)
            .collect();
        checks.ok(GROUP, name, format!("{} ready", ready.len()));
    } else {
        checks.fail(
            GROUP,
            name,
            format!("port {} has none", empty.join(", ")),
            format!(
                "add an endpoint to an EndpointSlice with the label kubernetes.io/service-name: {} (its port must have the \
                 name that the Service's port has), or set `ready`",
                service.name
            ),
        );
        checks.because(Cause::NoReadyEndpoint);
    }
}

/// The ready endpoints of one export that were tried, with the error of each that did not accept.
pub(super) type Tried = (Export, BTreeMap<SocketAddr, Option<Refusal>>);

/// Why an endpoint did not accept.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    /// Its host said no, where it did not keep silent.
    refused: bool,
    text: String,
}

/// Whether something listens where the EndpointSlices say so. For who is where the gateway is.
pub(super) async fn ask(checks: &Checks<'_>) -> Vec<Tried> {
    let exports = covered(checks);
    let ready = |export: &Export| -> BTreeSet<SocketAddr> {
        // Nothing can be asked of a UDP port: whether it answers depends on what it is told.
        let ports = export.ports.iter().filter(|port| port.transport.is_tcp());
        let endpoints = ports.flat_map(|port| &port.endpoints).filter(|endpoint| endpoint.ready);
        endpoints.map(|endpoint| endpoint.address).take(SAMPLE).collect()
    };
    let all: BTreeSet<SocketAddr> = exports.iter().flat_map(ready).collect();
    let tried: BTreeMap<SocketAddr, Option<Refusal>> =
        stream::iter(all.into_iter().map(|address| async move { (address, connect(address).await) }))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
    let of = |export: Export| {
        let found = ready(&export).into_iter().filter_map(|address| Some((address, tried.get(&address)?.clone())));
        let found = found.collect();
        (export, found)
    };
    exports.into_iter().map(of).collect()
}

async fn connect(address: SocketAddr) -> Option<Refusal> {
    match timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => {
            Some(Refusal { refused: error.kind() == ErrorKind::ConnectionRefused, text: error.to_string() })
        }
        Err(_) => Some(Refusal { refused: false, text: format!("no answer within {} s", CONNECT.as_secs()) }),
    }
}

/// Judges what was tried.
pub(super) fn endpoints(checks: &mut Checks<'_>, tried: Vec<Tried>) {
    for (export, addresses) in tried {
        listening(checks, &export, &addresses);
    }
}

fn listening(checks: &mut Checks<'_>, export: &Export, tried: &BTreeMap<SocketAddr, Option<Refusal>>) {
    if tried.is_empty() {
        return;
    }
    let count = tried.len();
    let refused: Vec<(SocketAddr, &Refusal)> =
        tried.iter().filter_map(|(address, refusal)| Some((*address, refusal.as_ref()?))).collect();
    let name = format!("{}: ready endpoints accept connections", export.service);
    if refused.is_empty() {
        return checks.ok(GROUP, name, format!("{count} tried"));
    }
    let all = refused.len() == count;
    let reason = refused.iter().map(|(address, why)| format!("{address}: {}", why.text)).collect::<Vec<_>>().join("; ");
    let remedy = "start the service, correct the address in the EndpointSlice, or set `ready: false` while it is away";
    if all {
        checks.fail(GROUP, name, reason, remedy);
    } else {
        // The gateway tries another endpoint when one refuses: clients are served.
        checks.warn(GROUP, name, reason, remedy);
    }
    checks.because(refused.iter().any(|(_, why)| why.refused).then_some(Cause::BackendRefused));
}
