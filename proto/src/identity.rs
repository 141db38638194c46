//! Who somebody is: trust domains, SPIFFE IDs and how well they are known.
//!
//! The grammar is the strict one of the SPIFFE standard (SPIFFE-ID section 2): lower-case `spiffe`, a trust domain of
//! `a-z0-9._-`, a path of segments of `A-Za-z0-9._-`, no empty, `.` or `..` segment, no escape, port, user, query or fragment.
//! There are no wildcards and no normalisation: two IDs are the same when their bytes are.
//!
//! Refuses when: any of that does not hold; an ID has no path (a trust domain is not a workload); an ID is longer than
//! 2,048 bytes or a trust domain longer than 255; a trust domain has an `xn--` label that decodes to plain ASCII.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::names::{Namespace, ServiceAccountName};

/// The longest SPIFFE ID, in bytes (SPIFFE-ID section 2.3).
pub const MAX_SPIFFE_ID: usize = 2048;

/// The longest trust domain, in bytes (SPIFFE-ID section 2.3).
pub const MAX_TRUST_DOMAIN: usize = 255;

/// The largest certificate of a caller, in bytes. A leaf with an RSA key of 4,096 bits has about 1,800. The other fields of a
/// stream header take 4,500 bytes at their longest, so with this it stays under its cap of 8 KiB.
pub const MAX_CERTIFICATE: usize = 3_500;

/// The scheme, in the only spelling that is accepted.
const SCHEME: &str = "spiffe://";

/// Why a text is not an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text does not begin with `spiffe://`.
    #[error("an identity begins with `spiffe://`, in lower case")]
    Scheme,
    /// No trust domain.
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    /// A character outside `a-z0-9._-`.
    #[error("a trust domain has only lower-case letters, digits, `.`, `-` and `_`: no port, no user, no escapes")]
    TrustDomain,
    /// An `xn--` label that decodes to plain ASCII, thus a second spelling of another name.
    #[error("the trust domain has an `xn--` label that stands for plain ASCII")]
    Punycode,
    /// Over 2,048 bytes, or a trust domain over 255.
    #[error("the identity is too long: at most 2048 bytes, and 255 for the trust domain")]
    TooLong,
    /// Nothing behind the trust domain.
    #[error("the identity has no path: a trust domain alone names no workload")]
    NoPath,
    /// An empty, `.` or `..` segment, or a slash at the end.
    #[error("the path has an empty, `.` or `..` segment, or ends in `/`")]
    Segment,
    /// A character outside `A-Za-z0-9._-` in a segment.
    #[error("a path has only letters, digits, `.`, `-`, `_` and `/`: no escapes, no wildcards, no query, no fragment")]
    Path,
}

/// A SPIFFE trust domain, such as `east.linkspan.internal`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Checks and keeps `text`.
    ///
    /// # Errors
    /// When `text` is not a trust domain.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        if text.is_empty() {
            return Err(IdentityError::EmptyTrustDomain);
        }
        if text.len() > MAX_TRUST_DOMAIN {
            return Err(IdentityError::TooLong);
        }
        if !text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')) {
            return Err(IdentityError::TrustDomain);
        }
        // RFC 3492 section 3.1: what decodes to basic code points alone ends in the delimiter.
        if text.split('.').any(|label| label.starts_with("xn--") && label.ends_with('-')) {
            return Err(IdentityError::Punycode);
        }
        Ok(Self(text.into()))
    }

    /// The trust domain as text, without scheme.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A SPIFFE ID with a path: the identity of a workload.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// Checks and keeps `text`.
    ///
    /// # Errors
    /// When `text` is outside the grammar in the module's documentation.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        if text.len() > MAX_SPIFFE_ID {
            return Err(IdentityError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(IdentityError::Scheme)?;
        let (domain, path) = rest.split_once('/').map_or((rest, None), |(domain, path)| (domain, Some(path)));
        let trust_domain = TrustDomain::parse(domain)?;
        for segment in path.filter(|path| !path.is_empty()).ok_or(IdentityError::NoPath)?.split('/') {
            if matches!(segment, "" | "." | "..") {
                return Err(IdentityError::Segment);
            }
            if !segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')) {
                return Err(IdentityError::Path);
            }
        }
        Ok(Self { text: text.into(), trust_domain })
    }

    /// The identity of a workload: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    #[must_use]
    pub fn workload(trust_domain: &TrustDomain, namespace: &Namespace, account: &ServiceAccountName) -> Self {
        Self::of(trust_domain, &format!("/ns/{namespace}/sa/{account}"))
    }

    /// The identity of the gateways of a cluster: `/ns/linkspan/sa/gateway`. Only they may stand at the end of a link.
    #[must_use]
    pub fn gateway(trust_domain: &TrustDomain) -> Self {
        Self::of(trust_domain, "/ns/linkspan/sa/gateway")
    }

    /// The identity of the mirror controller of a cluster: `/ns/linkspan/sa/controller`. Gateways take configuration from it.
    #[must_use]
    pub fn controller(trust_domain: &TrustDomain) -> Self {
        Self::of(trust_domain, "/ns/linkspan/sa/controller")
    }

    /// The identity of a client of which nothing is known but its cluster: `/ns/linkspan/sa/node`, assurance `gateway`.
    #[must_use]
    pub fn node(trust_domain: &TrustDomain) -> Self {
        Self::of(trust_domain, "/ns/linkspan/sa/node")
    }

    /// The whole ID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain that vouches for it.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading slash.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text.get(SCHEME.len() + self.trust_domain.0.len()..).unwrap_or_default()
    }

    /// Whether `prefix` is this identity or stands above it in whole segments: `/ns/shop` is a prefix of
    /// `/ns/shop/sa/web`, never of `/ns/shopping/sa/web`.
    #[must_use]
    pub fn has_prefix(&self, prefix: &Self) -> bool {
        self.text.strip_prefix(&*prefix.text).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Joins a checked trust domain and a path that is known to be good.
    fn of(trust_domain: &TrustDomain, path: &str) -> Self {
        let text = format!("{SCHEME}{trust_domain}{path}");
        Self { text: text.into(), trust_domain: trust_domain.clone() }
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// The traits of a text type.
macro_rules! text_type {
    ($type:ident, $what:literal, $max:expr, $pattern:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(self.as_str())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), formatter)
            }
        }

        impl FromStr for $type {
            type Err = IdentityError;
            fn from_str(text: &str) -> Result<Self, IdentityError> {
                Self::parse(text)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(crate::text::ParseVisitor::new($what))
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "minLength": 1, "maxLength": $max, "pattern": $pattern })
            }
        }
    };
}

text_type!(TrustDomain, "trust domain", MAX_TRUST_DOMAIN, "^[a-z0-9._-]+$");
text_type!(SpiffeId, "SPIFFE ID", MAX_SPIFFE_ID, "^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+$");

/// How well a caller is known. Ordered: a stronger assurance satisfies a demand for a weaker one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Assurance {
    /// Only the caller's gateway is known.
    #[default]
    Gateway,
    /// The caller's address belongs to the workload.
    Network,
    /// The caller proved its own certificate.
    Mtls,
}

impl Assurance {
    /// All, weakest first.
    pub const ALL: [Self; 3] = [Self::Gateway, Self::Network, Self::Mtls];

    /// As configuration, headers and logs spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Network => "network",
            Self::Mtls => "mtls",
        }
    }
}

impl fmt::Display for Assurance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// A caller and how well it is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Source {
    /// Who.
    pub identity: SpiffeId,
    /// How we know.
    pub assurance: Assurance,
    /// What it proved itself with; only ever beside [`Assurance::Mtls`]. Not part of the text form.
    #[serde(skip)]
    pub certificate: Option<Certificate>,
}

impl Source {
    /// A caller of whom no certificate is known.
    #[must_use]
    pub const fn new(identity: SpiffeId, assurance: Assurance) -> Self {
        Self { identity, assurance, certificate: None }
    }
}

/// A leaf certificate, DER, of at most [`MAX_CERTIFICATE`] bytes. Says nothing about its content: whoever uses it reads it.
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Certificate(Arc<[u8]>);

impl Certificate {
    /// Keeps `der`; `None` where it is empty or too large.
    #[must_use]
    pub fn new(der: &[u8]) -> Option<Self> {
        (1..=MAX_CERTIFICATE).contains(&der.len()).then(|| Self(der.into()))
    }

    /// The certificate's bytes.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Certificate({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests;
