//! The checks of a stream header, in order. All must pass before anything is dialled.

use std::sync::Arc;

use linkspan_proto::configuration::{DefaultPolicy, ExportRule, PortTransport};
use linkspan_proto::identity::Source;
use linkspan_proto::names::{ClusterName, EndpointName, ServiceKey};
use linkspan_proto::stream_header::{StreamHeader, StreamKind};
use rustls::pki_types::CertificateDer;

use super::{Admitted, MAX_HOPS, Refused};
use crate::link::PeerInfo;
use crate::link::tls::Svid;
use crate::route::{Export, RouteTable};

/// Decides whether `peer` may have what `header` asks for.
///
/// # Errors
/// With the first check that fails. An identity outside of the link's trust domain is logged as a warning: an honest
/// gateway never sends one.
pub fn authorize(table: &RouteTable, peer: &PeerInfo, header: &StreamHeader) -> Result<Admitted, Refused> {
    check_path(table, header)?;
    let source = header.source.clone().ok_or(Refused::Incomplete { what: "caller" })?;
    check_identity(peer, &source)?;
    let service = header.service.as_ref().ok_or(Refused::Incomplete { what: "service" })?;
    let transport = if header.kind == StreamKind::Udp { PortTransport::Udp } else { PortTransport::Tcp };
    let port = (transport, header.port);
    let mut admitted = find_export(table, service, port, header.endpoint.as_ref(), source, peer.cluster.clone())?;
    admitted.default_policy = Some(peer.default_policy);
    check_policy(&admitted, &admitted.export, admitted.default_policy)?;
    Ok(admitted)
}

/// Whether what was admitted still would be.
///
/// An endpoint that has gone is no reason to cut: a pod that ends may be answering what it has.
pub(super) fn review(table: &RouteTable, admitted: &Admitted) -> Result<(), Refused> {
    let unknown = || Refused::UnknownExport { service: admitted.service().clone(), port: admitted.port.port };
    let export = table.export(admitted.service()).ok_or_else(unknown)?;
    export.port(admitted.port.transport, admitted.port.port).ok_or_else(unknown)?;
    let default = admitted.default_policy.map(|then| table.default_policy(&admitted.cluster).unwrap_or(then));
    check_policy(admitted, export, default)
}

/// A call of this cluster's own client to this cluster's own export: what happens when the local cluster is picked. The
/// export's policy is for peers; here only the export itself must stand.
///
/// # Errors
/// When the service, port or endpoint is not exported (any more).
pub fn admit_local(
    table: &RouteTable,
    service: &ServiceKey,
    port: (PortTransport, u16),
    endpoint: Option<&EndpointName>,
    source: Source,
) -> Result<Admitted, Refused> {
    find_export(table, service, port, endpoint, source, table.own().cluster.clone())
}

fn check_path(table: &RouteTable, header: &StreamHeader) -> Result<(), Refused> {
    if header.path.len() > MAX_HOPS || header.path.contains(&table.own().cluster) {
        return Err(Refused::Loop { path: header.path.clone() });
    }
    Ok(())
}

fn check_identity(peer: &PeerInfo, source: &Source) -> Result<(), Refused> {
    if *source.identity.trust_domain() == peer.trust_domain {
        return check_certificate(peer, source);
    }
    tracing::warn!(
        peer = %peer.cluster, remote = %peer.remote, asserted = %source.identity, allowed = %peer.trust_domain,
        "peer asserts a caller of a foreign trust domain; refused"
    );
    Err(Refused::IdentityMismatch { identity: source.identity.clone(), trust_domain: peer.trust_domain.clone() })
}

/// The certificate, where there is one, must be that of the asserted caller. Its chain cannot be verified here, for only the
/// leaf crosses the link, nor that the caller holds its key: those the peer's gateway vouches for, as for the identity alone.
fn check_certificate(peer: &PeerInfo, source: &Source) -> Result<(), Refused> {
    let Some(certificate) = &source.certificate else { return Ok(()) };
    let found = match Svid::read(&CertificateDer::from(certificate.der())) {
        Ok(svid) if svid.id == source.identity => return Ok(()),
        Ok(svid) => svid.id.to_string(),
        Err(error) => format!("no workload: {error}"),
    };
    tracing::warn!(
        peer = %peer.cluster, remote = %peer.remote, asserted = %source.identity, certificate = found,
        "peer asserts a caller by a certificate that is not the caller's; refused"
    );
    Err(Refused::CertificateMismatch { identity: source.identity.clone(), found })
}

fn find_export(
    table: &RouteTable,
    service: &ServiceKey,
    (transport, port): (PortTransport, u16),
    endpoint: Option<&EndpointName>,
    source: Source,
    cluster: ClusterName,
) -> Result<Admitted, Refused> {
    let unknown = || Refused::UnknownExport { service: service.clone(), port };
    let export = table.export(service).ok_or_else(unknown)?;
    let exported = export.port(transport, port).ok_or_else(unknown)?;
    if endpoint.is_some_and(|endpoint| !exported.has(endpoint)) {
        return Err(unknown());
    }
    Ok(Admitted {
        export: Arc::clone(export),
        port: Arc::clone(exported),
        endpoint: endpoint.cloned(),
        source,
        cluster,
        default_policy: None,
    })
}

/// Policies are for peers: our own clients need none.
fn check_policy(admitted: &Admitted, export: &Export, default: Option<DefaultPolicy>) -> Result<(), Refused> {
    let Some(default) = default else { return Ok(()) };
    let Some(rules) = &export.rules else {
        return match default {
            DefaultPolicy::Allow => Ok(()),
            DefaultPolicy::Deny => Err(Refused::DeniedByDefault { service: export.service.clone() }),
        };
    };
    if rules.iter().any(|rule| allows(rule, &admitted.cluster, &admitted.source, admitted.port.port)) {
        return Ok(());
    }
    Err(Refused::Denied {
        identity: admitted.source.identity.clone(),
        assurance: admitted.source.assurance,
        service: export.service.clone(),
        port: admitted.port.port,
    })
}

/// Whether every condition of the rule that is present holds. Identities compare exactly or by whole path segments; no
/// character is a wildcard (S-06).
fn allows(rule: &ExportRule, peer: &ClusterName, source: &Source, port: u16) -> bool {
    let anyone = rule.identities.is_empty() && rule.identity_prefixes.is_empty();
    (rule.peers.is_empty() || rule.peers.contains(peer))
        && (rule.ports.is_empty() || rule.ports.contains(&port))
        && source.assurance >= rule.minimum_assurance
        && (anyone
            || rule.identities.contains(&source.identity)
            || rule.identity_prefixes.iter().any(|prefix| source.identity.has_prefix(prefix)))
}
