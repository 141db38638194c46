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

/// Of several Links with one trust domain the first by name is in force: two peers must never vouch for each other.
pub(super) fn settle_domains(
    peers: &mut BTreeMap<ClusterName, Arc<Peer>>,
    reports: &mut BTreeMap<String, Arc<LinkReport>>,
) {
    let mut holders: BTreeMap<TrustDomain, ClusterName> = BTreeMap::new();
    peers.retain(|cluster, peer| {
        let holder = holders.entry(peer.trust_domain.clone()).or_insert_with(|| cluster.clone());
        if holder == cluster {
            return true;
        }
        let report = LinkReport {
            generation: reports.get(cluster.as_str()).and_then(|report| report.generation),
            verdict: Verdict::new(
                "Accepted",
                false,
                "TrustDomainInUse",
                format!(
                    "{} belongs to the Link {holder} already; each peer needs a trust domain of its own",
                    peer.trust_domain
                ),
            ),
            in_force: false,
        };
        reports.insert(cluster.to_string(), Arc::new(report));
        false
    });
}
