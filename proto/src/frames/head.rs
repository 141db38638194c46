//! Heads and trailers as bytes.
//!
//! ```text
//! request:  version u8 | method text | scheme u8 | authority text | path text | headers
//! response: status u16 | headers
//! headers:  count varint | (name id u8, [name text], value text)*
//! text:     length varint | bytes
//! ```
//!
//! A name id of 0 says that the name is written out; the top bit marks the value as sensitive.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::TRANSFER_ENCODING;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::{FrameError, HttpVersion, MAX_HEAD_LEN, MAX_HEADERS, RequestHead, ResponseHead, names, varint};

/// The top bit of a name id.
const SENSITIVE: u8 = 0x80;

/// The longest method; the longest registered one has 17 bytes.
const MAX_METHOD_LEN: usize = 64;

const VERSION_H1: u8 = 1;
const VERSION_H2: u8 = 2;
const SCHEME_HTTP: u8 = 0;
const SCHEME_HTTPS: u8 = 1;

pub(super) fn put_request(head: &RequestHead, out: &mut BytesMut) -> Result<(), FrameError> {
    if head.method == Method::CONNECT || head.method.as_str().len() > MAX_METHOD_LEN {
        return Err(FrameError::Malformed("method"));
    }
    out.put_u8(match head.version {
        HttpVersion::H1 => VERSION_H1,
        HttpVersion::H2 => VERSION_H2,
    });
    put_text(head.method.as_str().as_bytes(), out);
    out.put_u8(match head.scheme.as_str() {
        "http" => SCHEME_HTTP,
        "https" => SCHEME_HTTPS,
        _ => return Err(FrameError::Malformed("scheme")),
    });
    put_text(head.authority.as_ref().map_or("", Authority::as_str).as_bytes(), out);
    put_text(head.path_and_query.as_str().as_bytes(), out);
    put_headers(&head.headers, out)
}

pub(super) fn put_response(status: StatusCode, headers: &HeaderMap, out: &mut BytesMut) -> Result<(), FrameError> {
    out.put_u16(status.as_u16());
    put_headers(headers, out)
}

pub(super) fn put_headers(headers: &HeaderMap, out: &mut BytesMut) -> Result<(), FrameError> {
    let travels = |name: &HeaderName| name != TRANSFER_ENCODING;
    let count = headers.keys().filter(|name| travels(name)).map(|name| headers.get_all(name).iter().count()).sum();
    if count > MAX_HEADERS {
        return Err(FrameError::TooManyHeaders);
    }
    put_length(count, out);
    for (name, value) in headers.iter().filter(|(name, _)| travels(name)) {
        let sensitive = if value.is_sensitive() { SENSITIVE } else { 0 };
        if let Some(position) = names::position(name) {
            out.put_u8(position | sensitive);
        } else {
            out.put_u8(sensitive);
            put_text(name.as_str().as_bytes(), out);
        }
        put_text(value.as_bytes(), out);
        // Stops early; the exact limit is checked over the whole frame.
        if out.len() > MAX_HEAD_LEN + 64 {
            return Err(FrameError::TooLong);
        }
    }
    Ok(())
}

fn put_length(length: usize, out: &mut BytesMut) {
    let mut bytes = [0; varint::MAX];
    let taken = varint::write(length as u64, &mut bytes);
    out.put_slice(&bytes[..taken]);
}

fn put_text(text: &[u8], out: &mut BytesMut) {
    put_length(text.len(), out);
    out.put_slice(text);
}

pub(super) fn take_request(mut payload: Bytes) -> Result<RequestHead, FrameError> {
    let version = match take_byte(&mut payload, "version")? {
        VERSION_H1 => HttpVersion::H1,
        VERSION_H2 => HttpVersion::H2,
        _ => return Err(FrameError::Malformed("version")),
    };
    let method = take_text(&mut payload, "method")?;
    let method = Method::from_bytes(&method).map_err(|_| FrameError::Malformed("method"))?;
    if method == Method::CONNECT || method.as_str().len() > MAX_METHOD_LEN {
        return Err(FrameError::Malformed("method"));
    }
    let scheme = match take_byte(&mut payload, "scheme")? {
        SCHEME_HTTP => Scheme::HTTP,
        SCHEME_HTTPS => Scheme::HTTPS,
        _ => return Err(FrameError::Malformed("scheme")),
    };
    let authority = take_text(&mut payload, "authority")?;
    let authority = match authority.is_empty() {
        true => None,
        false => Some(Authority::from_maybe_shared(authority).map_err(|_| FrameError::Malformed("authority"))?),
    };
    let path = take_text(&mut payload, "path")?;
    // `PathAndQuery` accepts an empty text as `/` and a text without a leading slash; a request line has neither.
    if !(path.starts_with(b"/") || *path == *b"*") {
        return Err(FrameError::Malformed("path"));
    }
    let path_and_query = PathAndQuery::from_maybe_shared(path).map_err(|_| FrameError::Malformed("path"))?;
    let headers = take_headers(payload)?;
    Ok(RequestHead { method, scheme, authority, path_and_query, version, headers })
}

pub(super) fn take_response(mut payload: Bytes) -> Result<ResponseHead, FrameError> {
    if payload.len() < 2 {
        return Err(FrameError::Malformed("status"));
    }
    let status = StatusCode::from_u16(payload.get_u16()).map_err(|_| FrameError::Malformed("status"))?;
    Ok(ResponseHead { status, headers: take_headers(payload)? })
}

/// Takes all that is left as headers.
pub(super) fn take_headers(mut payload: Bytes) -> Result<HeaderMap, FrameError> {
    let count = varint::take(&mut payload).ok_or(FrameError::Malformed("header count"))?;
    if count > MAX_HEADERS {
        return Err(FrameError::TooManyHeaders);
    }
    // Every header takes two bytes at least, so the capacity is backed by what arrived.
    let mut headers = HeaderMap::with_capacity(count.min(payload.len() / 2));
    for _ in 0..count {
        let id = take_byte(&mut payload, "header name")?;
        let name = match id & !SENSITIVE {
            0 => take_name(&mut payload)?,
            position => names::at(position).ok_or(FrameError::Malformed("header name"))?,
        };
        if name == TRANSFER_ENCODING {
            return Err(FrameError::Malformed("transfer-encoding"));
        }
        let value = take_text(&mut payload, "header value")?;
        let mut value = HeaderValue::from_maybe_shared(value).map_err(|_| FrameError::Malformed("header value"))?;
        value.set_sensitive(id & SENSITIVE != 0);
        headers.append(name, value);
    }
    match payload.is_empty() {
        true => Ok(headers),
        false => Err(FrameError::Malformed("bytes behind the headers")),
    }
}

/// A name that is written out: lower case only, as HTTP/2 demands (RFC 9113 section 8.2).
fn take_name(payload: &mut Bytes) -> Result<HeaderName, FrameError> {
    let text = take_text(payload, "header name")?;
    HeaderName::from_lowercase(&text).map_err(|_| FrameError::Malformed("header name"))
}

fn take_byte(payload: &mut Bytes, what: &'static str) -> Result<u8, FrameError> {
    payload.try_get_u8().map_err(|_| FrameError::Malformed(what))
}

fn take_text(payload: &mut Bytes, what: &'static str) -> Result<Bytes, FrameError> {
    let length = varint::take(payload).ok_or(FrameError::Malformed(what))?;
    if length > payload.len() {
        return Err(FrameError::Malformed(what));
    }
    Ok(payload.split_to(length))
}
