//! Header fields at the border of the mesh: what is taken away, what is kept, what is set.
//!
//! ```text
//! client's fields -> take_hop_by_hop -> strip_identity -> link -> take_hop_by_hop -> strip_identity -> Identity::set -> backend
//! ```
//!
//! - In: the fields of a request, a response or a trailer section, as any of the two sides may have forged them.
//! - Out: the same fields without those that belong to one connection (RFC 9110 section 7.6.1), without any that claims
//!   who the caller is, and at the ingress side with the one claim that the gateways vouch for.
//! - Refuses when: the lengths of a message contradict each other, or it has a transfer coding other than `chunked`.
//! - Never does: let `Connection` remove what the gateway asserts (identity is written last, S-02), look at values
//!   to decide whether a field is an identity (the name alone decides, S-01).
//! - Numbers: none; sizes are limited where messages are read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use linkspan_proto::identity::{Assurance, Certificate, Source, SpiffeId};
use linkspan_proto::names::ClusterName;
use sha2::{Digest as _, Sha256};

/// The caller, for backends that speak Envoy's dialect.
pub(crate) const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// The caller, cluster and assurance as a structured field (RFC 8941).
pub(crate) const LINKSPAN_SOURCE: HeaderName = HeaderName::from_static("linkspan-source");

/// The certificate that the caller proved itself with, where it has one (RFC 9440 section 2.2).
pub(crate) const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");

/// Why this gateway, and not the service, answered.
pub(crate) const LINKSPAN_ERROR: HeaderName = HeaderName::from_static("linkspan-error");

/// Fields that say who the caller is. No client may set them: a backend could believe it.
const IDENTITY: [&[u8]; 5] = [b"x-forwarded-client-cert", b"forwarded", b"client-cert", b"client-cert-chain", b"proxy"];

/// Beginnings of such fields: ours, Linkerd's and Envoy's.
const IDENTITY_PREFIXES: [&[u8]; 3] = [b"linkspan-", b"l5d-", b"x-envoy-"];

/// Members of `baggage` that some meshes use to say who the caller is. The rest of it is the application's own.
const IDENTITY_BAGGAGE: [&str; 7] = ["k8s.", "service.", "cloud.", "linkspan", "spiffe", "istio", "l5d"];

/// Fields of one connection that are dropped whether or not `Connection` names them. `Upgrade` and `TE` are looked at
/// first. `Proxy` alone stands among the identities: CGI programs would read it as `HTTP_PROXY`.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// What `Connection` must not remove though a client names it: they are meant for the backend in any case, and without
/// them it would read another message than we did.
const NOT_NOMINABLE: [HeaderName; 5] =
    [header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE, header::EXPECT, header::TRAILER];

/// Fields that are meaningless or dangerous in a trailer section (RFC 9110 section 6.5.1).
const NO_TRAILERS: [HeaderName; 12] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::TRAILER,
    header::EXPECT,
    header::AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    header::CACHE_CONTROL,
    header::RANGE,
];

/// What the fields of one connection said, before they were dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hop {
    /// The protocols that the client offers to change to, where it offered it rightly.
    pub(crate) upgrade: Option<HeaderValue>,
    /// The recipient takes trailers.
    pub(crate) trailers: bool,
    /// The body is `chunked`: its length is unknown beforehand.
    pub(crate) chunked: bool,
}

/// Why a message cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    /// Lengths that contradict each other, or no numbers.
    #[error("content-length is not one number")]
    Length,
    /// A coding that would have to be undone here.
    #[error("a transfer coding other than chunked")]
    TransferCoding,
}

/// Removes the fields that belong to the connection and says what they meant.
///
/// # Errors
/// When the message has a transfer coding besides `chunked`: without its name nobody could decode the body.
pub(crate) fn take_hop_by_hop(headers: &mut HeaderMap) -> Result<Hop, HeaderError> {
    let mut hop = Hop { chunked: is_chunked(headers)?, ..Hop::default() };
    hop.trailers = tokens(headers, &header::TE)
        .any(|token| token.split(';').next().is_some_and(|coding| coding.trim_end().eq_ignore_ascii_case("trailers")));
    if tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        hop.upgrade = upgrades(headers);
    }
    if headers.contains_key(header::CONNECTION) {
        let nominated: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            .filter(|name| !NOT_NOMINABLE.contains(name))
            .collect();
        for name in nominated {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    Ok(hop)
}

/// Removes every field that claims an identity, however its name is spelt.
pub(crate) fn strip_identity(headers: &mut HeaderMap) {
    // Nearly no message has one: look before allocating.
    if headers.keys().any(is_identity) {
        let forged: Vec<HeaderName> = headers.keys().filter(|name| is_identity(name)).cloned().collect();
        for name in forged {
            headers.remove(name);
        }
    }
    if headers.contains_key("baggage") {
        strip_baggage(headers);
    }
}

/// Removes what has no place in a trailer section: identities, framing, and what decides before the body is read.
pub(crate) fn strip_trailers(trailers: &mut HeaderMap) {
    strip_identity(trailers);
    for name in HOP_BY_HOP.iter().chain(&NO_TRAILERS) {
        trailers.remove(name);
    }
}

/// The length that the message declares; leaves one field with one number where it came several times.
///
/// # Errors
/// When the numbers differ or one is no number (RFC 9112 section 6.3).
pub(crate) fn content_length(headers: &mut HeaderMap) -> Result<Option<u64>, HeaderError> {
    let mut length = None;
    let mut members = 0usize;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        for member in value.as_bytes().split(|byte| *byte == b',') {
            let number = digits(member.trim_ascii()).ok_or(HeaderError::Length)?;
            if length.is_some_and(|known| known != number) {
                return Err(HeaderError::Length);
            }
            length = Some(number);
            members += 1;
        }
    }
    if let (Some(number), 2..) = (length, members) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(number));
    }
    Ok(length)
}

/// Joins the crumbs that HTTP/2 makes of a cookie (RFC 9113 section 8.2.3); HTTP/1.1 knows one field only.
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let mut joined = BytesMut::new();
    for crumb in headers.get_all(header::COOKIE) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(joined.freeze()) {
        headers.insert(header::COOKIE, value);
    }
}

/// Whether the message is gRPC, told by its content type.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().split_at_checked(GRPC.len()))
        // `application/grpc-web` is another protocol: its status is in the body, and trailers would look like a clean end.
        .is_some_and(|(begin, rest)| {
            begin.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
        })
}

/// Whether the client waits for a `100 Continue` before it sends its body.
pub(crate) fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The fields that tell the backend who calls: written after everything a client could say was removed.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    xfcc: Option<HeaderValue>,
    source: Option<HeaderValue>,
    /// Only callers with a certificate have it.
    certificate: Option<HeaderValue>,
}

impl Identity {
    /// The caller `source` of `cluster`, vouched for by the gateway `by`.
    pub(crate) fn new(by: &SpiffeId, source: &Source, cluster: &ClusterName) -> Self {
        let certificate = source.certificate.as_ref().map(Certificate::der);
        let hash = certificate.map_or_else(String::new, |der| format!("Hash={:x};", Sha256::digest(der)));
        let (by, uri) = (quoted_if_needed(by.as_str()), quoted_if_needed(source.identity.as_str()));
        let xfcc = format!("By={by};{hash}URI={uri}");
        let assurance = match source.assurance {
            Assurance::Gateway => "gateway",
            Assurance::Network => "network",
            Assurance::Mtls => "mtls",
        };
        // RFC 8941: an sf-string with two parameters. Identities and cluster names have neither `"` nor `\`.
        let structured = format!("\"{}\";cluster=\"{cluster}\";assurance={assurance}", source.identity);
        Self {
            xfcc: HeaderValue::try_from(xfcc).ok(),
            source: HeaderValue::try_from(structured).ok(),
            // RFC 8941 section 3.3.5: an sf-binary is base64 between colons, with padding.
            certificate: certificate.and_then(|der| HeaderValue::try_from(format!(":{}:", STANDARD.encode(der))).ok()),
        }
    }

    /// Replaces whatever the message has under these names (SANITIZE_SET).
    pub(crate) fn set(&self, headers: &mut HeaderMap) {
        strip_identity(headers);
        if let Some(xfcc) = &self.xfcc {
            headers.insert(XFCC, xfcc.clone());
        }
        if let Some(source) = &self.source {
            headers.insert(LINKSPAN_SOURCE, source.clone());
        }
        if let Some(certificate) = &self.certificate {
            headers.insert(CLIENT_CERT, certificate.clone());
        }
    }
}

/// A value of XFCC: quoted where it has one of the characters that separate.
fn quoted_if_needed(value: &str) -> std::borrow::Cow<'_, str> {
    if value.contains([',', ';', '=', '"']) {
        format!("\"{}\"", value.replace('"', "\\\"")).into()
    } else {
        value.into()
    }
}

fn is_identity(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    // Most names are told apart by their first letter.
    if !matches!(name.first(), Some(b'c' | b'f' | b'l' | b'p' | b'x')) {
        return false;
    }
    IDENTITY.iter().any(|known| known.len() == name.len() && reads_as(name, known))
        || IDENTITY_PREFIXES.iter().any(|prefix| name.len() > prefix.len() && reads_as(name, prefix))
}

/// Whether the beginning of `name` reads as `known` to the most forgiving backend: CGI and its children (WSGI, Rack, PHP)
/// turn every character that is no letter or digit into `_`.
fn reads_as(name: &[u8], known: &[u8]) -> bool {
    let fold = |byte: u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' };
    name.iter().zip(known).all(|(byte, wanted)| fold(*byte) == *wanted)
}

fn strip_baggage(headers: &mut HeaderMap) {
    let claims = |member: &str| {
        let key = member.split(['=', ';']).next().unwrap_or_default().trim().to_ascii_lowercase();
        IDENTITY_BAGGAGE.iter().any(|prefix| key.starts_with(prefix))
    };
    let clean = |value: &HeaderValue| value.to_str().is_ok_and(|text| !text.split(',').any(claims));
    if headers.get_all("baggage").iter().all(clean) {
        return;
    }
    let kept: Vec<&str> = headers
        .get_all("baggage")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .filter(|member| !member.is_empty() && !claims(member))
        .collect();
    match HeaderValue::try_from(kept.join(",")) {
        Ok(value) if !value.is_empty() => drop(headers.insert("baggage", value)),
        _ => drop(headers.remove("baggage")),
    }
}

/// The protocols that may be changed to. `h2c` is not among them: RFC 9113 took it back, and it would carry requests
/// past everything that is checked here.
fn upgrades(headers: &HeaderMap) -> Option<HeaderValue> {
    let offered = || tokens(headers, &header::UPGRADE);
    let is_h2c = |token: &str| token.eq_ignore_ascii_case("h2c");
    let mut values = headers.get_all(header::UPGRADE).iter();
    let first = values.next()?;
    if values.next().is_none() && !offered().any(is_h2c) {
        return Some(first.clone());
    }
    let kept: Vec<&str> = offered().filter(|token| !is_h2c(token)).collect();
    HeaderValue::try_from(kept.join(", ")).ok().filter(|value| !value.is_empty())
}

fn is_chunked(headers: &HeaderMap) -> Result<bool, HeaderError> {
    if !headers.contains_key(header::TRANSFER_ENCODING) {
        return Ok(false);
    }
    let only_chunked = headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .all(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"));
    if only_chunked { Ok(true) } else { Err(HeaderError::TransferCoding) }
}

/// The comma-separated members of all fields of this name; values that are no text have none.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// A number as RFC 9110 section 8.6 writes it: digits alone, no sign.
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests;
