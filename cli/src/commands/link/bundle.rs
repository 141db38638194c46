//! Root certificates in a Link: PEM in, checked roots out.
//!
//! Refuses when: there is none, or more than 16; anything else stands beside them (a private key above all); one is no
//! CA certificate, may not sign certificates, is not valid now, or names another trust domain.
//! Never does: decide trust. The gateway verifies each handshake by itself; this is for people, before they link.

use linkspan_proto::identity::TrustDomain;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{PemObject, SectionKind};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

/// Two during a rotation, with room; the same as [`linkspan_proto::resources::LinkSpec::validate`] takes. A bundle of
/// hundreds is a mistake (`/etc/ssl/certs`).
const ROOTS_MAX: usize = 16;

/// Why a bundle is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    /// There is no certificate.
    #[error("the trust bundle holds no certificate")]
    Empty,
    /// There are too many.
    #[error(
        "the trust bundle holds more than {ROOTS_MAX} certificates; it must hold the peer's roots and nothing else"
    )]
    TooMany,
    /// It is not PEM.
    #[error("the trust bundle is not PEM: {0}")]
    NotPem(String),
    /// A section of another kind.
    #[error(
        "the trust bundle holds a private key; it must hold certificates only. Throw that key away: it was shown around"
    )]
    PrivateKey,
    /// A section of another kind.
    #[error("the trust bundle holds something that is not a certificate ({0:?})")]
    OtherSection(SectionKind),
    /// One certificate is unfit.
    #[error("certificate {index} of the trust bundle {what}")]
    Certificate {
        /// Which one, counted from 1.
        index: usize,
        /// What is wrong with it.
        what: String,
    },
}

/// One root of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    /// SHA-256 over the certificate, in hexadecimal pairs with colons.
    pub(crate) fingerprint: String,
    /// The end of its validity, seconds since the Unix epoch.
    pub(crate) not_after_unix: i64,
}

/// Reads and checks a bundle for `trust_domain`.
pub(crate) fn check(pem: &str, trust_domain: &TrustDomain) -> Result<Vec<Root>, BundleError> {
    let mut roots = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes()) {
        let (kind, der) = section.map_err(|error| BundleError::NotPem(error.to_string()))?;
        match kind {
            SectionKind::Certificate => {}
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                return Err(BundleError::PrivateKey);
            }
            other => return Err(BundleError::OtherSection(other)),
        }
        if roots.len() == ROOTS_MAX {
            return Err(BundleError::TooMany);
        }
        let index = roots.len() + 1;
        let der = CertificateDer::from(der);
        roots.push(root(&der, trust_domain).map_err(|what| BundleError::Certificate { index, what })?);
    }
    if roots.is_empty() {
        return Err(BundleError::Empty);
    }
    Ok(roots)
}

/// What is wrong with the first certificate of a bundle that names another trust domain than this one.
pub(crate) fn foreign(pem: &str, trust_domain: &TrustDomain) -> Option<String> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok);
    certificates.into_iter().find_map(|der| {
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
        check_domain(&certificate, trust_domain).err()
    })
}

/// Checks one certificate.
fn root(der: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Result<Root, String> {
    let (rest, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|_| "is not an X.509 certificate".to_owned())?;
    if !rest.is_empty() {
        return Err("has something behind its end".to_owned());
    }
    if !certificate.is_ca() {
        return Err("is not the certificate of an authority: it cannot vouch for a gateway".to_owned());
    }
    let may_sign = certificate.key_usage().map_err(|_| "has a malformed key usage".to_owned())?;
    if may_sign.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("may not sign certificates (key usage)".to_owned());
    }
    check_domain(&certificate, trust_domain)?;
    let validity = certificate.validity();
    if !validity.is_valid() {
        return Err(format!("is valid from {} to {}, which is not now", validity.not_before, validity.not_after));
    }
    Ok(Root { fingerprint: fingerprint(der), not_after_unix: validity.not_after.timestamp() })
}

/// A root that names trust domains must name this one and no other. One that names none (an imported PKI) is taken.
fn check_domain(certificate: &X509Certificate<'_>, trust_domain: &TrustDomain) -> Result<(), String> {
    let names = certificate.subject_alternative_name().map_err(|_| "has malformed names".to_owned())?;
    for name in names.iter().flat_map(|extension| &extension.value.general_names) {
        if let GeneralName::URI(uri) = name
            && uri.strip_prefix("spiffe://") != Some(trust_domain.as_str())
        {
            return Err(format!("is a root of {uri}, not of spiffe://{trust_domain}"));
        }
    }
    Ok(())
}

/// SHA-256 over a certificate, as openssl prints it (`openssl x509 -noout -fingerprint -sha256`).
pub(crate) fn fingerprint(der: &CertificateDer<'_>) -> String {
    let pairs: Vec<String> = Sha256::digest(der).iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

#[cfg(test)]
mod tests;
