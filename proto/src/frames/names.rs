//! Header names that travel as one byte.
//!
//! The position in the table is the wire: entries are appended, never moved or removed. Position 0 stands for a name
//! written out. At most 127 entries: the top bit of the byte marks a sensitive value.

use std::sync::LazyLock;

use http::HeaderName;
use http::header::{
    ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, ACCEPT_RANGES, ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, AGE, ALLOW, ALT_SVC, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_DISPOSITION,
    CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, COOKIE, DATE, DNT, ETAG, EXPECT, EXPIRES, FORWARDED, FROM, HOST, IF_MATCH, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, LINK, LOCATION, MAX_FORWARDS, ORIGIN, PRAGMA,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RANGE, REFERER, REFERRER_POLICY, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, SERVER, SET_COOKIE,
    STRICT_TRANSPORT_SECURITY, TE, TRAILER, UPGRADE, UPGRADE_INSECURE_REQUESTS, USER_AGENT, VARY, VIA,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS, X_XSS_PROTECTION,
};

const fn name(text: &'static str) -> HeaderName {
    HeaderName::from_static(text)
}

/// The names by position, position 1 first. Shared: cloning one of these copies no text.
static NAMES: [HeaderName; 102] = [
    ACCEPT,
    ACCEPT_CHARSET,
    ACCEPT_ENCODING,
    ACCEPT_LANGUAGE,
    ACCEPT_RANGES,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD,
    AGE,
    ALLOW,
    ALT_SVC,
    AUTHORIZATION,
    CACHE_CONTROL,
    CONNECTION,
    CONTENT_DISPOSITION,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_LENGTH,
    CONTENT_LOCATION,
    CONTENT_RANGE,
    CONTENT_SECURITY_POLICY,
    CONTENT_TYPE,
    COOKIE,
    DATE,
    DNT,
    ETAG,
    EXPECT,
    EXPIRES,
    FORWARDED,
    FROM,
    HOST,
    IF_MATCH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    LAST_MODIFIED,
    LINK,
    LOCATION,
    MAX_FORWARDS,
    ORIGIN,
    PRAGMA,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    RANGE,
    REFERER,
    REFERRER_POLICY,
    RETRY_AFTER,
    SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION,
    SERVER,
    SET_COOKIE,
    STRICT_TRANSPORT_SECURITY,
    TE,
    TRAILER,
    UPGRADE,
    UPGRADE_INSECURE_REQUESTS,
    USER_AGENT,
    VARY,
    VIA,
    WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
    X_XSS_PROTECTION,
    name("grpc-status"),
    name("grpc-message"),
    name("grpc-status-details-bin"),
    name("grpc-timeout"),
    name("grpc-encoding"),
    name("grpc-accept-encoding"),
    name("traceparent"),
    name("tracestate"),
    name("baggage"),
    name("b3"),
    name("x-request-id"),
    name("x-correlation-id"),
    name("x-forwarded-for"),
    name("x-forwarded-proto"),
    name("x-forwarded-host"),
    name("x-forwarded-client-cert"),
    name("x-real-ip"),
    name("x-api-key"),
    name("x-requested-with"),
    name("x-powered-by"),
    name("linkspan-error"),
    name("linkspan-source"),
    name("priority"),
    name("early-data"),
    name("sec-fetch-mode"),
    name("sec-fetch-site"),
    name("sec-fetch-dest"),
    name("idempotency-key"),
    name("keep-alive"),
    name("content-digest"),
];

/// The longest name of the table, in bytes, and some.
const MAX_NAME_LEN: usize = 40;

/// Names and positions by the names' length: a handful each, which is quicker to walk than to hash.
static BY_LENGTH: LazyLock<[Vec<(&'static str, u8)>; MAX_NAME_LEN]> = LazyLock::new(|| {
    let mut lengths = [const { Vec::new() }; MAX_NAME_LEN];
    for (name, position) in NAMES.iter().zip(1..) {
        lengths[name.as_str().len()].push((name.as_str(), position));
    }
    lengths
});

/// The position of `name`, if it has one.
pub(super) fn position(name: &HeaderName) -> Option<u8> {
    let name = name.as_str();
    BY_LENGTH.get(name.len())?.iter().find(|(text, _)| *text == name).map(|(_, position)| *position)
}

/// The name at `position`.
pub(super) fn at(position: u8) -> Option<HeaderName> {
    NAMES.get(usize::from(position).checked_sub(1)?).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_seven_bits_and_has_no_name_twice() {
        assert!(NAMES.len() <= 127);
        let distinct: std::collections::BTreeSet<_> = NAMES.iter().map(HeaderName::as_str).collect();
        assert_eq!(distinct.len(), NAMES.len());
        for (name, position) in NAMES.iter().zip(1..) {
            assert_eq!(super::position(name), Some(position));
            assert_eq!(at(position).as_ref(), Some(name));
        }
        assert_eq!(at(0), None);
        assert_eq!(at(127), None);
    }

    #[test]
    fn positions_are_the_wire_and_do_not_move() {
        for (text, expected) in [("accept", 1), ("content-length", 23), ("grpc-status", 73), ("content-digest", 102)] {
            assert_eq!(position(&name(text)), Some(expected), "{text}");
        }
    }
}
