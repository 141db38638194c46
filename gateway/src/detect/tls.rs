//! TLS by its first bytes: a ClientHello, and the server name in it.
//!
//! RFC 8446 section 4.1.2 and 5.1. Reads the handshake message across records; never trusts a length further than the
//! bytes reach.

use super::{Detected, MAX_PREFIX, Verdict};

/// Content type of a handshake record.
const HANDSHAKE: u8 = 22;

/// Handshake type of a ClientHello.
const CLIENT_HELLO: u8 = 1;

/// Extension type of `server_name` (RFC 6066 section 3).
const SERVER_NAME: u16 = 0;

/// Longest record payload, RFC 8446 section 5.1.
const MAX_RECORD: usize = 1 << 14;

/// What `prefix` is, as far as TLS is concerned; `Opaque` stands for "not TLS".
#[must_use]
pub fn verdict(prefix: &[u8]) -> Verdict {
    let capped = prefix.get(..MAX_PREFIX).unwrap_or(prefix);
    match hello(capped) {
        Hello::No => Verdict::Is(Detected::Opaque),
        // Nothing more than this is looked at: a hello that long goes without its name.
        Hello::Partial if capped.len() == MAX_PREFIX => Verdict::Is(Detected::Tls { server_name: None }),
        Hello::Partial => Verdict::More,
        Hello::Complete(body) => Verdict::Is(Detected::Tls { server_name: server_name(&body) }),
    }
}

/// Whether the beginning is surely TLS: enough to guess when no more comes.
pub(super) fn has_begun(prefix: &[u8]) -> bool {
    prefix.len() >= 6 && matches!(hello(prefix), Hello::Partial | Hello::Complete(_))
}

enum Hello {
    No,
    Partial,
    /// The body of the handshake message.
    Complete(Vec<u8>),
}

/// Joins the records of the first handshake message.
fn hello(mut bytes: &[u8]) -> Hello {
    let mut message: Vec<u8> = Vec::new();
    loop {
        let (header, rest) = match bytes {
            [] => return Hello::Partial,
            [HANDSHAKE, rest @ ..] => match rest {
                [] | [3] | [3, 0..=4] | [3, 0..=4, _] => return Hello::Partial,
                [3, 0..=4, high, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
                _ => return Hello::No,
            },
            _ => return Hello::No,
        };
        // A record of a handshake is never empty (section 5.1).
        if header == 0 || header > MAX_RECORD {
            return Hello::No;
        }
        let (payload, next) = rest.split_at(rest.len().min(header));
        message.extend_from_slice(payload);
        match message.as_slice() {
            [] => return Hello::Partial,
            [CLIENT_HELLO, ..] => {}
            _ => return Hello::No,
        }
        if let [_, a, b, c, body @ ..] = message.as_slice() {
            let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap_or(usize::MAX);
            if let Some(body) = body.get(..length) {
                return Hello::Complete(body.to_vec());
            }
        }
        if payload.len() < header {
            return Hello::Partial;
        }
        bytes = next;
    }
}

/// The host name in the `server_name` extension, lower case; `None` where there is none or it is no host name.
fn server_name(body: &[u8]) -> Option<String> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    let session = reader.u8()?;
    reader.take(session.into())?;
    let suites = reader.u16()?;
    reader.take(suites.into())?;
    let compressions = reader.u8()?;
    reader.take(compressions.into())?;
    let length = reader.u16()?;
    let mut extensions = Reader(reader.take(length.into())?);
    loop {
        let kind = extensions.u16()?;
        let length = extensions.u16()?;
        let mut extension = Reader(extensions.take(length.into())?);
        if kind != SERVER_NAME {
            continue;
        }
        let length = extension.u16()?;
        let mut names = Reader(extension.take(length.into())?);
        // Name type 0 is host_name, the only one there is.
        if names.u8()? != 0 {
            return None;
        }
        let length = names.u16()?;
        let name = std::str::from_utf8(names.take(length.into())?).ok()?;
        let usable = !name.is_empty()
            && name.len() <= 255
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
        return usable.then(|| name.to_ascii_lowercase());
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).and_then(|bytes| bytes.first().copied())
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}
