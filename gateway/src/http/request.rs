//! Requests at the border: from hyper to the link, from the link to hyper.
//!
//! - In: a client's request head as hyper parsed it (egress), or a peer's as the codec did (ingress).
//! - Out: a head that means the same to everybody who reads it: one host, one length, no field of a connection, no claim of
//!   an identity; and towards a backend the gateway's own claim.
//! - Refuses when: CONNECT; the host is missing where it must not be, or there are two; target, scheme, length or coding make
//!   no sense (S-16 to S-20).
//! - Never does: change a byte of the path or of the host (S-18), invent a field but `traceparent`.
//! - Numbers: none.

use std::time::Duration;

use http::header::{self, Entry, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, StatusCode, Version};
use linkspan_proto::frames::{HttpVersion, RequestHead, ResponseHead};

use super::body::RequestBody;
use super::errors::Invalid;
use super::headers::{self, HeaderError, Identity, LINKSPAN_ERROR};
use super::{deadline, trace};

/// A client's request, ready to be passed on.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// What goes over the link or to a backend. Of the fields of a connection it has `upgrade`, where the client offered
    /// one, and `te: trailers`.
    pub(crate) head: RequestHead,
    /// What `content-length` says.
    pub(crate) length: Option<u64>,
    /// The client waits for `100 Continue`.
    pub(crate) expects: bool,
    /// The client offers another protocol.
    pub(crate) upgrade: bool,
    /// The client's deadline.
    pub(crate) timeout: Option<Duration>,
}

impl From<HeaderError> for Invalid {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::Length => Self::Length,
            HeaderError::TransferCoding => Self::TransferCoding,
        }
    }
}

/// Checks and cleans a client's request. `body`: whether it has one, as hyper sees it. `mirror`: the name that the client
/// came by, for HTTP/1.0 clients that name no host.
pub(crate) fn prepare(parts: Parts, body: bool, mirror: &str) -> Result<Prepared, Invalid> {
    let Parts { method, uri, version, mut headers, .. } = parts;
    if method == Method::CONNECT {
        return Err(Invalid::Connect);
    }
    let is_http_10 = version == Version::HTTP_10;
    let version = if version == Version::HTTP_2 { HttpVersion::H2 } else { HttpVersion::H1 };
    let path_and_query = target(&method, &uri)?;
    let authority = authority(&mut headers, &uri, is_http_10, mirror)?;
    let scheme = scheme(&uri)?;
    let length = headers::content_length(&mut headers)?;
    let hop = headers::take_hop_by_hop(&mut headers)?;
    // HTTP/2: the codec has compared length and DATA. HTTP/1: hyper took the one or the other, and both never stay.
    let length = if hop.chunked { None } else { length };
    if hop.chunked {
        headers.remove(header::CONTENT_LENGTH);
    }
    if length.is_some_and(|length| length > 0) && !body {
        return Err(Invalid::Length);
    }
    headers::strip_identity(&mut headers);
    trace::ensure(&mut headers);
    // An offer beside a body would have to wait for the body's end; RFC 9110 section 7.8 lets us ignore it.
    let upgrade = hop.upgrade.filter(|_| !body && !is_http_10 && version == HttpVersion::H1);
    let offers = upgrade.is_some();
    put_hop(&mut headers, upgrade, hop.trailers);
    // Section 10.1.1: not from an HTTP/1.0 client, not without a body.
    let expects = headers::expects_continue(&headers);
    if expects && (is_http_10 || !body) {
        headers.remove(header::EXPECT);
    }
    let timeout = deadline::of(&headers);
    Ok(Prepared {
        length,
        // Over HTTP/2 hyper cannot send the 100; the client sends when it likes, and waits for nothing here.
        expects: expects && body && !is_http_10 && version == HttpVersion::H1,
        upgrade: offers,
        timeout,
        head: RequestHead { method, scheme, authority: Some(authority), path_and_query, version, headers },
    })
}

/// Cleans a head that came over the link as if a client had sent it: the peer is not trusted to have done so.
pub(crate) fn clean(head: &mut RequestHead) -> Result<Cleaned, Invalid> {
    if head.method == Method::CONNECT {
        return Err(Invalid::Connect);
    }
    // RFC 9112 section 3.2.4. That any other target begins with a slash is checked by the codec.
    if head.path_and_query.as_str() == "*" && head.method != Method::OPTIONS {
        return Err(Invalid::Target);
    }
    // The host travels as the authority. Where a peer leaves it in `Host`, that is the authority (RFC 9113 section 8.3.1,
    // RFC 9110 section 7.2); beside one it would be a second opinion.
    let host = take_host(&mut head.headers);
    head.authority = match head.authority.take() {
        Some(authority) => Some(without_user(authority)?),
        None => host?,
    };
    if head.authority.is_none() && head.version == HttpVersion::H2 {
        return Err(Invalid::Host);
    }
    let length = headers::content_length(&mut head.headers)?;
    let (upgrade, trailers) = take_link_hop(&mut head.headers)?;
    let upgrade = upgrade.filter(|_| head.version == HttpVersion::H1);
    let cleaned = Cleaned { length, upgrade: upgrade.is_some(), expects: headers::expects_continue(&head.headers) };
    put_hop(&mut head.headers, upgrade, trailers);
    Ok(cleaned)
}

/// What [`clean`] learned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cleaned {
    pub(crate) length: Option<u64>,
    pub(crate) upgrade: bool,
    pub(crate) expects: bool,
}

/// A clean head as a request to a backend.
pub(crate) fn to_backend(head: RequestHead, identity: &Identity, body: RequestBody) -> Request<RequestBody> {
    let RequestHead { method, scheme, authority, path_and_query, version, mut headers } = head;
    identity.set(&mut headers);
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path_and_query);
    let has_body = !matches!(body, RequestBody::Empty);
    let version = match version {
        HttpVersion::H1 => {
            let host = authority.and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
            headers.insert(header::HOST, host.unwrap_or_else(|| HeaderValue::from_static("")));
            headers::join_cookies(&mut headers);
            put_connection(&mut headers);
            if has_body && !headers.contains_key(header::CONTENT_LENGTH) {
                // Said outright, because hyper takes a GET of unknown length for one without a body.
                headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            Version::HTTP_11
        }
        HttpVersion::H2 => {
            uri.scheme = Some(scheme);
            uri.authority = authority;
            headers.remove(header::UPGRADE);
            Version::HTTP_2
        }
    };
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.version_mut() = version;
    *request.uri_mut() = Uri::from_parts(uri).expect("HTTP/2 has scheme, authority and path, HTTP/1 the path alone");
    *request.headers_mut() = headers;
    request
}

/// A backend's response head for the link; how long its body is, if it says so.
pub(crate) fn from_backend(status: StatusCode, headers: HeaderMap) -> Result<(ResponseHead, Option<u64>), HeaderError> {
    let mut headers = headers;
    let hop = headers::take_hop_by_hop(&mut headers)?;
    if hop.chunked {
        // RFC 9112 section 6.3: the coding wins.
        headers.remove(header::CONTENT_LENGTH);
    }
    let length = headers::content_length(&mut headers)?;
    clean_response(&mut headers, status, hop.upgrade);
    Ok((ResponseHead { status, headers }, length))
}

/// A response head from the link, for a client.
pub(crate) fn from_link(head: ResponseHead) -> Result<(StatusCode, HeaderMap, Option<u64>), HeaderError> {
    let ResponseHead { status, mut headers } = head;
    let length = headers::content_length(&mut headers)?;
    let (upgrade, _) = take_link_hop(&mut headers)?;
    clean_response(&mut headers, status, upgrade);
    Ok((status, headers, length))
}

/// Completes a response head for an HTTP/1 or HTTP/2 client.
pub(crate) fn to_client(headers: &mut HeaderMap, http2: bool) {
    if http2 {
        headers.remove(header::UPGRADE);
    } else {
        put_connection(headers);
    }
}

/// An interim response's fields, for the other side.
pub(crate) fn clean_interim(headers: &mut HeaderMap) {
    // A coding on a response without a body means nothing; what is nominated goes either way.
    drop(headers::take_hop_by_hop(headers));
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(LINKSPAN_ERROR);
}

fn clean_response(headers: &mut HeaderMap, status: StatusCode, upgrade: Option<HeaderValue>) {
    headers.remove(LINKSPAN_ERROR);
    // RFC 9110 section 7.8: a 101 says what was changed to, a 426 what must be.
    if let Some(upgrade) = upgrade
        && matches!(status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED)
    {
        headers.insert(header::UPGRADE, upgrade);
    }
    // Section 8.6: neither may have it.
    if status == StatusCode::NO_CONTENT || status.is_informational() {
        headers.remove(header::CONTENT_LENGTH);
    }
}

/// As [`headers::take_hop_by_hop`], for heads of the link: there `upgrade` stands without a `connection` that names it.
fn take_link_hop(headers: &mut HeaderMap) -> Result<(Option<HeaderValue>, bool), HeaderError> {
    if headers.contains_key(header::UPGRADE) {
        headers.append(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    let hop = headers::take_hop_by_hop(headers)?;
    Ok((hop.upgrade, hop.trailers))
}

fn put_hop(headers: &mut HeaderMap, upgrade: Option<HeaderValue>, trailers: bool) {
    if let Some(upgrade) = upgrade {
        headers.insert(header::UPGRADE, upgrade);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// HTTP/1.1: names the fields of this connection (RFC 9110 sections 7.8 and 10.1.4).
fn put_connection(headers: &mut HeaderMap) {
    let connection = match (headers.contains_key(header::UPGRADE), headers.contains_key(header::TE)) {
        (true, true) => "upgrade, te",
        (true, false) => "upgrade",
        (false, true) => "te",
        (false, false) => return,
    };
    headers.insert(header::CONNECTION, HeaderValue::from_static(connection));
}

/// The request's target, every byte as it came. RFC 9112 section 3.2: origin form, absolute form, or `*` for OPTIONS.
fn target(method: &Method, uri: &Uri) -> Result<PathAndQuery, Invalid> {
    let target = match uri.path_and_query() {
        Some(target) => target.clone(),
        // An absolute form without a path. The authority form is CONNECT's alone.
        None if uri.scheme().is_some() => PathAndQuery::from_static("/"),
        None => return Err(Invalid::Target),
    };
    match target.as_str().as_bytes() {
        [b'/', ..] => Ok(target),
        b"*" if *method == Method::OPTIONS => Ok(target),
        // `http://host?query`: section 3.2.1 has a slash in front.
        [b'?', ..] => format!("/{}", target.as_str()).parse().map_err(|_| Invalid::Target),
        _ => Err(Invalid::Target),
    }
}

fn scheme(uri: &Uri) -> Result<Scheme, Invalid> {
    match uri.scheme() {
        None => Ok(Scheme::HTTP),
        Some(scheme) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => Ok(scheme.clone()),
        Some(_) => Err(Invalid::Scheme),
    }
}

/// The host that the client named, once. `Host` is taken out of the fields: it travels as the authority.
fn authority(headers: &mut HeaderMap, uri: &Uri, is_http_10: bool, mirror: &str) -> Result<Authority, Invalid> {
    let host = take_host(headers)?;
    let named = uri.authority().cloned().map(without_user).transpose()?;
    match (named, host) {
        (Some(named), Some(host)) if !same_host(&named, &host, uri.scheme()) => Err(Invalid::Hosts),
        (Some(named), _) => Ok(named),
        (None, Some(host)) => Ok(host),
        (None, None) if is_http_10 => mirror.parse().map_err(|_| Invalid::Host),
        // RFC 9112 section 3.2, RFC 9113 section 8.3.1.
        (None, None) => Err(Invalid::Host),
    }
}

/// Takes `Host` out of the fields; an empty one names nobody.
fn take_host(headers: &mut HeaderMap) -> Result<Option<Authority>, Invalid> {
    let Entry::Occupied(hosts) = headers.entry(header::HOST) else { return Ok(None) };
    let (_, mut hosts) = hosts.remove_entry_mult();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(Invalid::Host),
        (Some(host), None) if !host.is_empty() => {
            Authority::try_from(host.as_bytes()).map_err(|_| Invalid::Host).and_then(without_user).map(Some)
        }
        (_, None) => Ok(None),
    }
}

/// RFC 9110 section 4.2.4: user information in a host is an error or an attack.
fn without_user(authority: Authority) -> Result<Authority, Invalid> {
    if authority.as_str().contains('@') { Err(Invalid::Host) } else { Ok(authority) }
}

/// Whether the two name the same server: letters in any case, the default port said or not (S-17).
fn same_host(one: &Authority, two: &Authority, scheme: Option<&Scheme>) -> bool {
    let default = if scheme == Some(&Scheme::HTTPS) { 443 } else { 80 };
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default);
    let host = |authority: &Authority| authority.host().trim_end_matches('.').to_ascii_lowercase();
    host(one) == host(two) && port(one) == port(two)
}

#[cfg(test)]
mod tests;
