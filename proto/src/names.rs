//! Names: parsed once, and from then on never wrong.
//!
//! Every name that crosses a border (YAML, link, catalogue, configuration) enters the program through one of these
//! types, so the code behind them never checks a name again. They are cheap to clone, and ordered and hashed as text.
//!
//! Refuses when: a text is empty, too long, has upper case, a character outside `a-z0-9-` (and `.` for service accounts),
//! or a hyphen at an end. By that last rule no name can be an `xn--` label that decodes to plain ASCII: punycode marks
//! those with a hyphen at the end.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// The longest RFC 1123 label, in bytes. Every name except [`ServiceAccountName`] is one label.
pub const MAX_LABEL: usize = 63;

/// The longest RFC 1123 subdomain as Kubernetes counts it, in bytes.
pub const MAX_SUBDOMAIN: usize = 253;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("{what} is empty")]
    Empty {
        /// Which kind of name.
        what: &'static str,
    },
    /// More bytes than the name may have.
    #[error("{what} has {length} bytes, at most {max} are allowed")]
    TooLong {
        /// Which kind of name.
        what: &'static str,
        /// What it has.
        length: usize,
        /// What it may have.
        max: usize,
    },
    /// A character outside the grammar.
    #[error(
        "{what} `{text}` is not valid: use lower-case letters, digits and `-`, with a letter or digit at both ends"
    )]
    Invalid {
        /// Which kind of name.
        what: &'static str,
        /// The offending text.
        text: String,
    },
    /// A service key without exactly one slash.
    #[error("service `{text}` is not of the form namespace/name")]
    NotAKey {
        /// The offending text.
        text: String,
    },
}

/// Whether `text` is an RFC 1123 label: `[a-z0-9]([-a-z0-9]*[a-z0-9])?`, at most 63 bytes.
fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if inner(first) && inner(last))
        && bytes.len() <= MAX_LABEL
        && bytes.iter().all(|byte| inner(byte) || *byte == b'-')
}

/// Whether `text` is labels joined by dots.
pub(crate) fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn check(what: &'static str, text: &str, max: usize, grammar: fn(&str) -> bool) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    if text.len() > max {
        return Err(NameError::TooLong { what, length: text.len(), max });
    }
    if !grammar(text) {
        return Err(NameError::Invalid { what, text: text.to_owned() });
    }
    Ok(())
}

/// Declares a name type over shared text.
macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:expr, $grammar:expr, $pattern:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks and keeps `text`.
            ///
            /// # Errors
            /// When `text` is not a name of this kind.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                check($what, text, $max, $grammar)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, formatter)
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }

        impl TryFrom<&str> for $type {
            type Error = NameError;
            fn try_from(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $type {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $type {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
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

name!(
    /// The name of a cluster: an RFC 1123 label, since it becomes part of mirror names.
    ClusterName, "cluster name", MAX_LABEL, is_label, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
);
name!(
    /// A Kubernetes namespace.
    Namespace, "namespace", MAX_LABEL, is_label, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
);
name!(
    /// The name of a Service.
    ServiceName, "service name", MAX_LABEL, is_label, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
);
name!(
    /// The host name of one endpoint of a headless service, such as `db-0`.
    EndpointName, "endpoint name", MAX_LABEL, is_label, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
);
name!(
    /// The name of a service port.
    PortName, "port name", MAX_LABEL, is_label, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
);
name!(
    /// The name of a ServiceAccount: a DNS subdomain, so it may hold dots.
    ServiceAccountName, "service account name", MAX_SUBDOMAIN, is_subdomain,
    "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
);

/// The name that stands for all clusters together: `web-clusterset` is made beside `web-west`, so no cluster may have it.
pub const CLUSTERSET: &str = "clusterset";

impl ClusterName {
    /// Why no cluster may have this name, if none may.
    #[must_use]
    pub fn reserved(&self) -> Option<String> {
        (self.as_str() == CLUSTERSET).then(|| {
            format!("`{CLUSTERSET}` stands for all clusters together (<service>-{CLUSTERSET}): give the cluster another name")
        })
    }
}

/// A service inside a cluster. As text `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: ServiceName,
}

impl ServiceKey {
    /// Joins checked parts.
    #[must_use]
    pub const fn new(namespace: Namespace, name: ServiceName) -> Self {
        Self { namespace, name }
    }

    /// Reads `namespace/name`.
    ///
    /// # Errors
    /// When there is not exactly one slash, or a part is not a name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (namespace, name) =
            text.split_once('/').ok_or_else(|| NameError::NotAKey { text: text.chars().take(200).collect() })?;
        Ok(Self { namespace: Namespace::parse(namespace)?, name: ServiceName::parse(name)? })
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{self}\"")
    }
}

impl FromStr for ServiceKey {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl Serialize for ServiceKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(crate::text::ParseVisitor::new("service as namespace/name"))
    }
}

/// Base32 characters of the short mark in a mirror name: 50 bits. Two services of *one* peer may collide after about
/// 2^25 tries of that peer, which hurts nobody else; names of different clusters cannot, see [`mirror_name`].
const SHORT_MARK: usize = 10;

/// Base32 characters of the long mark: 130 bits, for cluster names that cannot stand in a mirror name unchanged.
const LONG_MARK: usize = 26;

/// The longest piece of a cluster name beside a long mark. With the mark and hyphens it leaves 14 bytes of the service.
const CUT_CLUSTER: usize = 20;

/// The local name of `service` of the peer `cluster`, injective over (service, cluster) for one set of linked clusters.
///
/// Mostly that is `<service>-<cluster>`, as Linkerd users know it. Alone that scheme is not injective: `foo-bar` of `baz`
/// and `foo` of `bar-baz` meet. So there are three forms:
///
/// ```text
/// plain  <service>-<cluster>                          the text belongs to the longest linked cluster that it ends with
/// short  <service, cut>-x<10 of hash>-<cluster>       plain would be longer than 63 bytes, would belong to another
///                                                     cluster, or has a mark in it
/// long   <service, cut>-x<26 of hash>-<cluster, cut>  the cluster's name leaves no room, or has a mark in it
/// ```
///
/// A mark is a part between hyphens that is `x` and 10 or 26 base32 characters; the hash is SHA-256 over both names. Plain
/// names hold no mark. The last mark of a short name is followed by its whole cluster name and nothing else, that of a
/// long name has 26 characters. So the form, and in plain and short names the cluster, can be read from the text: one
/// cluster cannot take another's name by what it exports. What peers export plays no part: a new export never renames an old one.
#[must_use]
pub fn mirror_name(service: &ServiceName, cluster: &ClusterName, linked: &BTreeSet<ClusterName>) -> ServiceName {
    let text = if has_mark(cluster.as_str()) || cluster.as_str().len() > MAX_LABEL - SHORT_MARK - 4 {
        let keep = unmarked(cluster.as_str());
        marked(service.as_str(), &hash_text(&[service.as_str(), cluster.as_str()], LONG_MARK), cut(keep, CUT_CLUSTER))
    } else {
        let plain = format!("{service}-{cluster}");
        if plain.len() <= MAX_LABEL && !has_mark(service.as_str()) && !belongs_to_longer(&plain, cluster, linked) {
            plain
        } else {
            marked(service.as_str(), &hash_text(&[service.as_str(), cluster.as_str()], SHORT_MARK), cluster.as_str())
        }
    };
    debug_assert!(is_label(&text), "a mirror name is a label: {text}");
    ServiceName(text.into())
}

/// Whether `plain` ends with the name of another linked cluster, longer than `cluster`.
fn belongs_to_longer(plain: &str, cluster: &ClusterName, linked: &BTreeSet<ClusterName>) -> bool {
    linked.iter().any(|other| {
        other.as_str().len() > cluster.as_str().len()
            && plain.strip_suffix(other.as_str()).is_some_and(|rest| rest.ends_with('-'))
    })
}

/// The local name of the Service that stands for one endpoint of the headless `service` of the peer `cluster`.
///
/// `cache-0` of `cache` is called `cache-0-west`, as Linkerd users know it: an ordinal behind the service's name, by which
/// the service can be read from the text. Any other endpoint, and one whose plain name `is_taken` by a mirror of another
/// service of the same peer, has a mark: the hash is SHA-256 over all three names. So names of endpoints are injective for the
/// same reasons as those of services ([`mirror_name`]), and neither can be the other's.
#[must_use]
pub fn endpoint_name(
    service: &ServiceName,
    endpoint: &EndpointName,
    cluster: &ClusterName,
    linked: &BTreeSet<ClusterName>,
    is_taken: bool,
) -> ServiceName {
    if ordinal_of(service, endpoint).is_some() && !is_taken {
        return mirror_name(&ServiceName(Arc::clone(&endpoint.0)), cluster, linked);
    }
    let whole = cluster.as_str().len() <= MAX_LABEL - SHORT_MARK - 4 && !has_mark(cluster.as_str());
    let (mark, suffix) =
        if whole { (SHORT_MARK, cluster.as_str()) } else { (LONG_MARK, cut(unmarked(cluster.as_str()), CUT_CLUSTER)) };
    let hash = hash_text(&[service.as_str(), endpoint.as_str(), cluster.as_str()], mark);
    ServiceName(marked(&lettered(endpoint), &hash, suffix).into())
}

/// The local name of the Service that stands for one endpoint of the headless `service`, of whichever cluster, among the
/// endpoints of all clusters. All of them share one suffix, so the mark is a long one: no cluster finds another's.
#[must_use]
pub fn clusterset_endpoint_name(service: &ServiceName, endpoint: &EndpointName, cluster: &ClusterName) -> ServiceName {
    let hash = hash_text(&[service.as_str(), endpoint.as_str(), cluster.as_str()], LONG_MARK);
    ServiceName(marked(&lettered(endpoint), &hash, CLUSTERSET).into())
}

/// The number behind the service's name, as a StatefulSet of that name gives its pods.
fn ordinal_of<'a>(service: &ServiceName, endpoint: &'a EndpointName) -> Option<&'a str> {
    let ordinal = endpoint.as_str().strip_prefix(service.as_str())?.strip_prefix('-')?;
    ordinal.bytes().all(|byte| byte.is_ascii_digit()).then_some(ordinal)
}

/// A Service's name begins with a letter (RFC 1035), a pod's may begin with a digit. The mark behind it tells them apart.
fn lettered(endpoint: &EndpointName) -> String {
    let letter = if endpoint.as_str().starts_with(|first: char| first.is_ascii_digit()) { "e" } else { "" };
    format!("{letter}{endpoint}")
}

/// `<label, cut>-x<hash>-<suffix>`, at most 63 bytes.
fn marked(label: &str, hash: &str, suffix: &str) -> String {
    // Two hyphens and the `x`. The suffix is at most 49 bytes beside a short mark and 20 beside a long one, so at least
    // one byte stays for the label.
    let room = MAX_LABEL - hash.len() - 3 - suffix.len();
    format!("{}-x{hash}-{suffix}", cut(label, room))
}

/// At most `max` bytes of a label, not ending in a hyphen. Labels are ASCII and start with no hyphen.
fn cut(label: &str, max: usize) -> &str {
    label.get(..max).unwrap_or(label).trim_end_matches('-')
}

/// The part of a cluster name before its first mark; `c` if nothing stands there.
fn unmarked(cluster: &str) -> &str {
    let mut end = 0;
    for part in cluster.split('-') {
        if is_mark(part) {
            break;
        }
        end += part.len() + 1;
    }
    match cluster.get(..end.saturating_sub(1)).unwrap_or(cluster).trim_end_matches('-') {
        "" => "c",
        text => text,
    }
}

fn has_mark(label: &str) -> bool {
    label.split('-').any(is_mark)
}

/// Whether one part between hyphens looks like a mark.
fn is_mark(part: &str) -> bool {
    part.strip_prefix('x').is_some_and(|rest| {
        matches!(rest.len(), SHORT_MARK | LONG_MARK) && rest.bytes().all(|byte| BASE32.contains(&byte))
    })
}

/// RFC 4648 base32 in lower case.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The first `length` base32 characters of SHA-256 over the names with NULs between them, which no name can hold: names of
/// two services (service, cluster) and of endpoints (service, endpoint, cluster) never hash the same text.
fn hash_text(names: &[&str], length: usize) -> String {
    let mut hash = Sha256::new();
    hash.update(b"linkspan mirror name\0");
    hash.update(names.join("\0"));
    let digest = hash.finalize();
    let (mut bits, mut held, mut text) = (0_u32, 0_u32, String::with_capacity(length));
    let mut bytes = digest.iter();
    while text.len() < length {
        if held < 5 {
            // 26 characters take 130 of 256 bits.
            bits = (bits << 8) | u32::from(*bytes.next().expect("a digest has more bits than a mark"));
            held += 8;
        }
        held -= 5;
        text.push(char::from(BASE32[((bits >> held) & 31) as usize]));
        bits &= (1 << held) - 1;
    }
    text
}

#[cfg(test)]
mod tests;
