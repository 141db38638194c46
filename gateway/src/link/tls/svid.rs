//! What a certificate says about itself, read strictly. Says nothing about who signed it.
//!
//! webpki ignores the key usage extension and cannot match URI SANs, so both are checked here (SPIFFE X509-SVID,
//! sections 2 and 4).

use std::time::{Duration, SystemTime};

use linkspan_proto::identity::SpiffeId;
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::TrustFailure;

/// The leaf certificate of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Svid {
    /// The only URI SAN.
    pub id: SpiffeId,
    /// The end of its life.
    pub not_after: SystemTime,
}

impl Svid {
    /// Reads a leaf: exactly one URI SAN, which is a SPIFFE ID; no CA; key usage allows signatures and nothing of a CA.
    ///
    /// # Errors
    /// Says which of these does not hold.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, TrustFailure> {
        let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|_| TrustFailure::InvalidCertificate)?;
        if !rest.is_empty() {
            return Err(TrustFailure::InvalidCertificate);
        }
        let id = identity(&parsed)?;
        check_usage(&parsed)?;
        let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self { id, not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(not_after) })
    }
}

fn identity(certificate: &X509Certificate<'_>) -> Result<SpiffeId, TrustFailure> {
    let names = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|extension| &extension.value.general_names)
        .ok_or(TrustFailure::InvalidIdentity)?;
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(TrustFailure::InvalidIdentity);
    }
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => SpiffeId::parse(uri).map_err(|_| TrustFailure::InvalidIdentity),
        _ => Err(TrustFailure::InvalidIdentity),
    }
}

fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), TrustFailure> {
    let is_ca = match certificate.basic_constraints() {
        Ok(constraints) => constraints.is_some_and(|extension| extension.value.ca),
        Err(_) => return Err(TrustFailure::InvalidCertificate),
    };
    // A leaf must allow signatures and nothing of a CA (X509-SVID section 4.3).
    let usage = match certificate.key_usage() {
        Ok(Some(extension)) => extension.value,
        Ok(None) => return Err(TrustFailure::CertificateUsage),
        Err(_) => return Err(TrustFailure::InvalidCertificate),
    };
    if is_ca || usage.key_cert_sign() || usage.crl_sign() || !usage.digital_signature() {
        return Err(TrustFailure::CertificateUsage);
    }
    Ok(())
}

/// Whether a certificate of a CA carries URI name constraints: webpki refuses every chain through it
/// (RUSTSEC-2026-0098), with an error that does not say why.
pub(super) fn has_uri_constraints(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    let Ok(Some(constraints)) = parsed.name_constraints() else { return false };
    [&constraints.value.permitted_subtrees, &constraints.value.excluded_subtrees]
        .into_iter()
        .flatten()
        .flatten()
        .any(|subtree| matches!(subtree.base, GeneralName::URI(_)))
}

/// Whether a certificate may sign others.
pub(super) fn is_ca(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.is_ca())
}
