//! Why a certificate was not believed: a closed set, the same on both sides of the link.
//!
//! The verifying side puts the failure's word into the TLS error, quinn carries the error's text in the close frame, and
//! the other side finds the word in it. Only the word is taken from the wire, never the text around it.

use std::fmt;
use std::sync::Arc;

use rustls::{CertificateError, OtherError};

/// Precedes the word in an error text.
const MARK: &str = "linkspan/";

/// Why a certificate was not believed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum TrustFailure {
    /// No Link names the trust domain in the certificate.
    UnknownPeer,
    /// The gateway that was dialled belongs to another trust domain than the Link says.
    TrustDomainMismatch,
    /// The certificate is not signed by a root of the Link's trust bundle.
    TrustBundleMismatch,
    /// The certificate, or one above it, has expired.
    CertificateExpired,
    /// The certificate, or one above it, is not valid yet: a clock is wrong.
    CertificateNotYetValid,
    /// Not exactly one URI SAN, or it is not a SPIFFE ID.
    InvalidIdentity,
    /// A good identity of the trust domain, but not that of a gateway.
    NotAGateway,
    /// A CA certificate used as a leaf, or key usages that do not allow this use.
    CertificateUsage,
    /// A certificate above the leaf carries URI name constraints, which cannot be evaluated and are refused.
    NameConstraints,
    /// The certificate cannot be read, or its signature does not hold.
    InvalidCertificate,
}

impl TrustFailure {
    const ALL: [Self; 10] = [
        Self::UnknownPeer,
        Self::TrustDomainMismatch,
        Self::TrustBundleMismatch,
        Self::CertificateExpired,
        Self::CertificateNotYetValid,
        Self::InvalidIdentity,
        Self::NotAGateway,
        Self::CertificateUsage,
        Self::NameConstraints,
        Self::InvalidCertificate,
    ];

    /// The word for conditions, logs and the close frame.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::UnknownPeer => "UnknownPeer",
            Self::TrustDomainMismatch => "TrustDomainMismatch",
            Self::TrustBundleMismatch => "TrustBundleMismatch",
            Self::CertificateExpired => "CertificateExpired",
            Self::CertificateNotYetValid => "CertificateNotYetValid",
            Self::InvalidIdentity => "InvalidIdentity",
            Self::NotAGateway => "NotAGateway",
            Self::CertificateUsage => "CertificateUsage",
            Self::NameConstraints => "NameConstraints",
            Self::InvalidCertificate => "InvalidCertificate",
        }
    }

    /// Finds the word in the text of a TLS error or of a close frame. `None`: the failure was another one.
    #[must_use]
    pub fn find(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once(MARK)?;
        let word = rest.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
        Self::ALL.into_iter().find(|failure| failure.word() == word)
    }

    /// What is wrong and what to do, when *we* do not believe the peer.
    #[must_use]
    pub const fn of_peer(self) -> &'static str {
        match self {
            Self::UnknownPeer => {
                "no Link here names the trust domain in the peer's certificate; import the peer's Link"
            }
            Self::TrustDomainMismatch => {
                "the gateway at this address belongs to another trust domain than the Link names; \
                 check the Link's addresses and trustDomain"
            }
            Self::TrustBundleMismatch => {
                "the peer's certificate is not signed by the Link's trustBundle; \
                 run `linkspan link export` on the peer and import the result here"
            }
            Self::CertificateExpired => {
                "the peer's certificate has expired; its gateway cannot reach its controller, or a clock is wrong"
            }
            Self::CertificateNotYetValid => "the peer's certificate is not valid yet; compare the clocks of both sides",
            Self::InvalidIdentity => "the peer's certificate does not carry exactly one SPIFFE ID as URI SAN",
            Self::NotAGateway => "the peer's certificate is that of a workload, not of a gateway",
            Self::CertificateUsage => "the peer's certificate may not be used for a link: a CA, or wrong key usages",
            Self::NameConstraints => {
                "a CA of the peer carries URI name constraints, which are not supported; reissue the CA without them"
            }
            Self::InvalidCertificate => "the peer's certificate cannot be read, or its signature does not hold",
        }
    }

    /// What is wrong and what to do, when the peer does not believe *us*.
    #[must_use]
    pub const fn of_us(self) -> &'static str {
        match self {
            Self::UnknownPeer => {
                "the peer has no Link for this cluster's trust domain; \
                 run `linkspan link export` here and import the result on the peer"
            }
            Self::TrustDomainMismatch => {
                "the peer's Link for this cluster names another trust domain; \
                 run `linkspan link export` here and import the result on the peer"
            }
            Self::TrustBundleMismatch => {
                "the peer's Link for this cluster carries another trustBundle; \
                 run `linkspan link export` here and import the result on the peer"
            }
            Self::CertificateExpired => {
                "the peer says that our certificate has expired; is the controller reachable, are the clocks right?"
            }
            Self::CertificateNotYetValid => {
                "the peer says that our certificate is not valid yet; compare the clocks of both sides"
            }
            Self::InvalidIdentity => "the peer found no single SPIFFE ID in our certificate",
            Self::NotAGateway => "the peer says that our certificate is not that of a gateway",
            Self::CertificateUsage => "the peer says that our certificate may not be used for a link",
            Self::NameConstraints => "the peer refuses our CA because it carries URI name constraints",
            Self::InvalidCertificate => "the peer could not read or verify our certificate",
        }
    }
}

// The text goes into the close frame, through `Debug` of rustls' error.
impl fmt::Debug for TrustFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK}{}", self.word())
    }
}

impl fmt::Display for TrustFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.of_peer())
    }
}

impl std::error::Error for TrustFailure {}

impl From<TrustFailure> for rustls::Error {
    fn from(failure: TrustFailure) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(failure))))
    }
}

impl From<&rustls::Error> for TrustFailure {
    /// What webpki found, once the identity is known to be in order.
    fn from(error: &rustls::Error) -> Self {
        let rustls::Error::InvalidCertificate(error) = error else { return Self::InvalidCertificate };
        match error {
            CertificateError::UnknownIssuer => Self::TrustBundleMismatch,
            CertificateError::BadSignature => Self::TrustBundleMismatch,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::CertificateExpired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::CertificateNotYetValid,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Self::CertificateUsage,
            _ => Self::InvalidCertificate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_survives_the_way_through_rustls() {
        for failure in TrustFailure::ALL {
            let text = rustls::Error::from(failure).to_string();
            assert_eq!(TrustFailure::find(&text), Some(failure), "{text}");
            assert!(!failure.of_peer().is_empty() && !failure.of_us().is_empty());
        }
    }

    #[test]
    fn foreign_text_names_nothing() {
        for text in ["", "linkspan/", "linkspan/Nonsense", "UnknownPeer", "linkspan/UnknownPeerX"] {
            assert_eq!(TrustFailure::find(text), None, "{text}");
        }
    }
}
