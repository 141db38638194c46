//! Whether a Link can be used: what its own fields do not show.

use std::collections::BTreeMap;
use std::sync::Arc;

use linkspan_proto::configuration::Peer;
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::names::ClusterName;
use linkspan_proto::resources::Link;
use linkspan_runtime::text::Clean;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;

use super::snapshot::LinkReport;
use crate::verdict::Verdict;

/// Who we are, against which Links are checked.
#[derive(Clone, Debug)]
pub struct Own {
    /// Our cluster.
    pub cluster: ClusterName,
    /// Our trust domain.
    pub trust_domain: TrustDomain,
}

/// Checks one Link by itself.
pub(super) fn check(own: &Own, name: &str, link: &Link) -> Result<Peer, Verdict> {
    let refuse = |reason: &str, message: String| Verdict::new("Accepted", false, reason, message);
    let cluster = ClusterName::parse(name)
        .map_err(|error| refuse("InvalidName", format!("metadata.name is the peer's cluster name: {error}")))?;
    let spec = &link.spec;
    if let Some(message) = cluster.reserved() {
        return Err(refuse("ReservedName", format!("metadata.name: {message}")));
    }
    if cluster == own.cluster {
        return Err(refuse("SelfLink", format!("{cluster} is this cluster; a Link names a peer")));
    }
    if spec.trust_domain == own.trust_domain {
        return Err(refuse(
            "SelfLink",
            format!("{} is this cluster's own trust domain; each cluster needs one of its own", spec.trust_domain),
        ));
    }
    spec.validate().map_err(|error| refuse("Invalid", error.to_string()))?;
    check_bundle(&spec.trust_bundle, &spec.trust_domain)
        .map_err(|message| refuse("InvalidTrustBundle", format!("spec.trustBundle: {message}")))?;
    Ok(Peer {
        cluster,
        trust_domain: spec.trust_domain.clone(),
        trust_bundle: spec.trust_bundle.clone(),
        addresses: spec.addresses.iter().map(ToString::to_string).collect(),
        default_policy: spec.default_policy,
        transport: spec.transport,
        congestion: spec.congestion,
    })
}

/// Every certificate must be able to vouch for the trust domain, or links would fail later and say less (S-10, S-11).
fn check_bundle(bundle: &str, trust_domain: &TrustDomain) -> Result<(), String> {
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        let certificate = certificate.map_err(|_| "a PEM block is broken".to_owned())?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|_| "a block is not an X.509 certificate".to_owned())?;
        let subject = parsed.subject().to_string();
        let subject = Clean(&subject);
        if !parsed.is_ca() {
            return Err(format!("the certificate of {subject} is not one of an authority"));
        }
        if parsed.key_usage().is_ok_and(|usage| usage.is_some_and(|usage| !usage.value.key_cert_sign())) {
            return Err(format!("the certificate of {subject} may not sign certificates (keyCertSign is missing)"));
        }
        if parsed.name_constraints().is_ok_and(|constraints| constraints.is_some()) {
            return Err(format!(
                "the certificate of {subject} has name constraints, which certificate verification refuses for SPIFFE \
                 names; use a root without them"
            ));
        }
        let names = parsed
            .subject_alternative_name()
            .map_err(|_| format!("the certificate of {subject} has malformed names"))?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            if let GeneralName::URI(uri) = name
                && uri.starts_with("spiffe://")
                && *uri != format!("spiffe://{trust_domain}")
            {
                return Err(format!(
                    "the certificate of {subject} is the root of {}, not of {trust_domain}",
                    Clean(uri)
                ));
            }
        }
    }
    Ok(())
}

/// The version of a Link that is in force.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) link: Link,
    peer: Peer,
    /// Its place in the order in which Links came into force.
    pub(super) since: usize,
}

/// What came of all Links.
pub(super) struct Settled {
    pub(super) peers: BTreeMap<ClusterName, Arc<Peer>>,
    pub(super) reports: BTreeMap<String, Arc<LinkReport>>,
}

/// What was in force before a restart, in the order in which it came into force, as far as it still can be.
pub(super) fn restore(own: &Own, links: Vec<Link>) -> BTreeMap<String, InForce> {
    let mut in_force = BTreeMap::new();
    for (since, link) in links.into_iter().enumerate() {
        let name = link.metadata.name.clone().unwrap_or_default();
        match check(own, &name, &link).and_then(|peer| unclaimed(&name, peer, &in_force)) {
            Ok(peer) => drop(in_force.insert(name, InForce { link, peer, since })),
            Err(verdict) => {
                let reason = verdict.message;
                tracing::warn!(link = %Clean(&name), reason, "a Link that was in force is so no more");
            }
        }
    }
    in_force
}

/// Takes over each declared version that can be used; one that cannot leaves the version before in force. A trust domain
/// belongs to the Link that had it first, since two peers must never vouch for each other (F-41); of Links that come
/// together, to the one that was made first, where an API server says when, and then to the first by name.
pub(super) fn settle(
    own: &Own,
    declared: &BTreeMap<String, Link>,
    in_force: &mut BTreeMap<String, InForce>,
) -> Settled {
    in_force.retain(|name, _| declared.contains_key(name));
    let mut next = in_force.values().map(|link| link.since + 1).max().unwrap_or(0);
    let mut order: Vec<_> = declared.iter().map(|(name, link)| (name, link, check(own, name, link))).collect();
    let made = |link: &Link| link.metadata.creation_timestamp.as_ref().map(|time| time.0);
    order.sort_by_key(|(name, link, _)| (in_force.get(*name).map_or(usize::MAX, |link| link.since), made(link)));
    let mut verdicts = BTreeMap::new();
    loop {
        let mut changed = false;
        for (name, link, checked) in &order {
            let outcome = checked.clone().and_then(|peer| unclaimed(name, peer, in_force));
            let verdict = match outcome {
                Ok(peer) => {
                    let since = in_force.get(*name).map(|old| old.since);
                    changed |= in_force.get(*name).is_none_or(|old| old.peer != peer);
                    let since = since.unwrap_or_else(|| {
                        next += 1;
                        next - 1
                    });
                    in_force.insert((*name).clone(), InForce { link: (*link).clone(), peer, since });
                    Verdict::new("Accepted", true, "Accepted", "the Link is in force")
                }
                Err(verdict) => verdict,
            };
            verdicts.insert((*name).clone(), verdict);
        }
        // What one Link gave up another may have waited for. Each takes over its declared version once at most.
        if !changed {
            break;
        }
    }
    let peers = in_force.values().map(|link| (link.peer.cluster.clone(), Arc::new(link.peer.clone()))).collect();
    let report = |(name, mut verdict): (String, Verdict)| {
        let stands = in_force.contains_key(&name);
        if stands && !verdict.holds() {
            verdict.message += "; the version before stays in force";
        }
        let generation = declared.get(&name).and_then(|link| link.metadata.generation);
        (name, Arc::new(LinkReport { generation, verdict, in_force: stands }))
    };
    Settled { peers, reports: verdicts.into_iter().map(report).collect() }
}

/// Whether no other Link has the peer's trust domain.
fn unclaimed(name: &str, peer: Peer, in_force: &BTreeMap<String, InForce>) -> Result<Peer, Verdict> {
    let holder = in_force.iter().find(|(other, link)| *other != name && link.peer.trust_domain == peer.trust_domain);
    match holder {
        None => Ok(peer),
        Some((holder, _)) => Err(Verdict::new(
            "Accepted",
            false,
            "TrustDomainInUse",
            format!(
                "{} belongs to the Link {holder} already; each peer needs a trust domain of its own",
                peer.trust_domain
            ),
        )),
    }
}
