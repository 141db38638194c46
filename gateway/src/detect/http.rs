//! HTTP by its first bytes: the HTTP/2 preface, or a request line of HTTP/1.
//!
//! A method token alone is not enough: Redis, memcached, SIP and RTSP begin in the same way. The request target must
//! look like one of RFC 9112 section 3.2, and the line must end in an HTTP version.

use super::{Detected, MAX_PREFIX, Verdict};

/// RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// RFC 9110 section 9, PATCH (RFC 5789), WebDAV (RFC 4918, 3253, 5323) and PURGE of caches. An unknown method on a port
/// whose protocol is not declared is carried as bytes, which works as well.
const METHODS: [&[u8]; 28] = [
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"CONNECT",
    b"OPTIONS",
    b"TRACE",
    b"PATCH",
    b"QUERY",
    b"PURGE",
    b"PROPFIND",
    b"PROPPATCH",
    b"MKCOL",
    b"COPY",
    b"MOVE",
    b"LOCK",
    b"UNLOCK",
    b"REPORT",
    b"SEARCH",
    b"CHECKOUT",
    b"CHECKIN",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"ACL",
    b"LINK",
    b"UNLINK",
];

/// What `prefix` is, as far as HTTP is concerned; `Opaque` stands for "not HTTP".
#[must_use]
pub fn verdict(prefix: &[u8]) -> Verdict {
    if PREFACE.starts_with(prefix) {
        let complete = prefix.len() == PREFACE.len();
        return if complete { Verdict::Is(Detected::Http2) } else { Verdict::More };
    }
    if prefix.starts_with(PREFACE) {
        return Verdict::Is(Detected::Http2);
    }
    match after_method(prefix) {
        After::No => Verdict::Is(Detected::Opaque),
        After::Undecided => Verdict::More,
        After::Target { connect, rest } => request_line(connect, rest, prefix.len() - rest.len()),
    }
}

/// Whether a method, a space and the beginning of a target are there: enough to guess HTTP/1 when no more comes.
pub(super) fn has_begun(prefix: &[u8]) -> bool {
    matches!(after_method(prefix), After::Target { connect, rest: [first, ..] } if begins_target(connect, *first))
}

enum After<'a> {
    No,
    Undecided,
    Target { connect: bool, rest: &'a [u8] },
}

fn after_method(prefix: &[u8]) -> After<'_> {
    let Some(space) = prefix.iter().position(|byte| *byte == b' ') else {
        let possible = METHODS.iter().any(|method| method.starts_with(prefix));
        return if possible { After::Undecided } else { After::No };
    };
    let (method, rest) = prefix.split_at(space);
    if METHODS.contains(&method) {
        After::Target { connect: method == b"CONNECT", rest: rest.get(1..).unwrap_or_default() }
    } else {
        After::No
    }
}

/// RFC 9112 section 3.2: origin-form begins with a slash, absolute-form with the scheme, asterisk-form is an asterisk;
/// authority-form belongs to CONNECT alone.
fn begins_target(connect: bool, first: u8) -> bool {
    match first {
        b'/' | b'*' | b'h' | b'H' => true,
        _ => connect && (first.is_ascii_alphanumeric() || first == b'['),
    }
}

/// `rest` is the line behind the method and its space; `skipped` is how long those were.
fn request_line(connect: bool, rest: &[u8], skipped: usize) -> Verdict {
    let room = MAX_PREFIX - skipped;
    let line = rest.get(..room).unwrap_or(rest);
    if line.first().is_some_and(|first| !begins_target(connect, *first)) {
        return Verdict::Is(Detected::Opaque);
    }
    match line.iter().position(|byte| *byte < b' ' || *byte == 0x7f) {
        Some(end) if line[end] == b'\n' => version(&line[..end]),
        // CR must be followed by LF; another control character is no HTTP.
        Some(end) if line[end] == b'\r' => match line.get(end + 1) {
            Some(b'\n') => version(&line[..end]),
            None if line.len() < room => Verdict::More,
            _ => Verdict::Is(Detected::Opaque),
        },
        Some(_) => Verdict::Is(Detected::Opaque),
        None if line.len() < room => Verdict::More,
        None => Verdict::Is(Detected::Http1),
    }
}

fn version(line: &[u8]) -> Verdict {
    let http = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
    Verdict::Is(if http { Detected::Http1 } else { Detected::Opaque })
}
