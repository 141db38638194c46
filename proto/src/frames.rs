//! HTTP on a link: structure, never text.
//!
//! ```text
//! frame: type u8 | length varint | payload
//!   DATA 0      body bytes
//!   HEAD 1      request or final response head
//!   TRAILERS 2  headers behind the body; nothing follows
//!   INFO 3      an interim (1xx) response head
//!   UPGRADED 4  empty; the raw bytes of another protocol follow
//!
//! request:  HEAD DATA* [TRAILERS] FIN          or  HEAD DATA* UPGRADED raw
//! response: INFO* HEAD DATA* [TRAILERS] FIN    or  INFO* HEAD UPGRADED raw
//! ```
//!
//! In: chunks of bytes as they arrive. Out: [`Event`]s; body bytes are slices of what arrived, uncopied.
//! Refuses when: a type is unknown, a frame is out of order, a head is over a cap or has a name or value that HTTP does
//! not know, the body is longer or shorter than `content-length` says, the stream ends inside a frame or before a head.
//! Never does: I/O, allocation that received bytes do not back, panics, keep state between two messages (nothing like
//! header compression: one message cannot block or change another).
//! Numbers: [`MAX_HEAD_LEN`], [`MAX_HEADERS`], [`MAX_INFOS`].
//!
//! `transfer-encoding` belongs to one hop's framing. It is left out when encoding and refused when decoding, so no
//! backend ever sees two opinions about where a message ends.

mod head;
mod names;
mod reader;
pub(crate) mod varint;

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, StatusCode};

use crate::refusal::Refusal;

pub use reader::{Event, FrameReader, Side};

/// The most bytes that a head or trailers may have, encoded. Equal to what the edges accept from clients and backends.
pub const MAX_HEAD_LEN: usize = 64 * 1024;

/// The most headers in one head or trailers. The edges accept 100 from HTTP/1 clients; the rest is for headers that the
/// gateways add and for HTTP/2 clients, whose `cookie` comes in crumbs.
pub const MAX_HEADERS: usize = 256;

/// The most interim responses before the final one.
pub const MAX_INFOS: u32 = 32;

/// Frame types.
mod frame {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEAD: u8 = 1;
    pub(super) const TRAILERS: u8 = 2;
    pub(super) const INFO: u8 = 3;
    pub(super) const UPGRADED: u8 = 4;
}

/// The HTTP version that the client spoke; the backend is spoken to in the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.0 or 1.1.
    H1,
    /// HTTP/2.
    H2,
}

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// The method, never CONNECT.
    pub method: Method,
    /// `http` or `https`, as the client asked; other schemes are not carried.
    pub scheme: Scheme,
    /// The host that the client named; `None` where it named none (HTTP/1.0).
    pub authority: Option<Authority>,
    /// Path and query, or `*`.
    pub path_and_query: PathAndQuery,
    /// What the client spoke.
    pub version: HttpVersion,
    /// All headers, `host` among them only if the caller left it there.
    pub headers: HeaderMap,
}

/// The head of a final response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// 200 to 999, or 101 in front of UPGRADED.
    pub status: StatusCode,
    /// All headers.
    pub headers: HeaderMap,
}

/// Why frames could not be written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame type that this version does not know.
    #[error("unknown frame type {0}")]
    UnknownType(u8),
    /// A head or trailers over [`MAX_HEAD_LEN`], or a length that is no number.
    #[error("a frame is too long")]
    TooLong,
    /// Over [`MAX_HEADERS`].
    #[error("a message has more than 256 headers")]
    TooManyHeaders,
    /// Over [`MAX_INFOS`].
    #[error("a message has more than 32 interim responses")]
    TooManyInfos,
    /// A frame where the message does not allow it.
    #[error("a frame is out of order")]
    OutOfOrder,
    /// A payload that is no head.
    #[error("a head is not well formed: {0}")]
    Malformed(&'static str),
    /// The body does not have the length that `content-length` announces.
    #[error("the body's length differs from content-length")]
    LengthMismatch,
    /// The stream ended inside a message.
    #[error("the message is truncated")]
    Truncated,
}

impl FrameError {
    /// What to reset the stream with.
    #[must_use]
    pub const fn refusal(self) -> Refusal {
        Refusal::Protocol
    }
}

/// A HEAD frame with a request.
///
/// # Errors
/// When the head is over a cap, the method is CONNECT, or the scheme is neither `http` nor `https`.
pub fn encode_request_head(head: &RequestHead) -> Result<Bytes, FrameError> {
    encode_frame(frame::HEAD, |payload| head::put_request(head, payload))
}

/// A HEAD frame with a final response.
///
/// # Errors
/// When the head is over a cap, or its status is an interim one other than 101.
pub fn encode_response_head(head: &ResponseHead) -> Result<Bytes, FrameError> {
    if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
        return Err(FrameError::Malformed("status"));
    }
    encode_frame(frame::HEAD, |payload| head::put_response(head.status, &head.headers, payload))
}

/// An INFO frame: an interim response.
///
/// # Errors
/// When the head is over a cap, or the status is not 1xx, or is 101.
pub fn encode_info(status: StatusCode, headers: &HeaderMap) -> Result<Bytes, FrameError> {
    if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(FrameError::Malformed("status"));
    }
    encode_frame(frame::INFO, |payload| head::put_response(status, headers, payload))
}

/// A TRAILERS frame. FIN must follow.
///
/// # Errors
/// When the trailers are over a cap.
pub fn encode_trailers(trailers: &HeaderMap) -> Result<Bytes, FrameError> {
    encode_frame(frame::TRAILERS, |payload| head::put_headers(trailers, payload))
}

/// What goes in front of `length` bytes of body. The body is written beside it, uncopied, in the same call.
#[must_use]
pub fn data_prefix(length: usize) -> Bytes {
    let mut prefix = [0; 1 + varint::MAX];
    prefix[0] = frame::DATA;
    let taken = varint::write(length as u64, &mut prefix[1..]);
    Bytes::copy_from_slice(&prefix[..=taken])
}

/// An UPGRADED frame: whatever follows on this half of the stream is raw.
#[must_use]
pub fn upgraded() -> Bytes {
    Bytes::from_static(&[frame::UPGRADED, 0])
}

/// Type, length and payload in one buffer, without a second copy: the length stands in room left free in front.
fn encode_frame(kind: u8, put: impl FnOnce(&mut BytesMut) -> Result<(), FrameError>) -> Result<Bytes, FrameError> {
    /// Type and the longest length of a head: 64 KiB takes 3 bytes.
    const ROOM: usize = 1 + 3;
    let mut buffer = BytesMut::with_capacity(1024);
    buffer.put_bytes(0, ROOM);
    put(&mut buffer)?;
    let length = buffer.len() - ROOM;
    if length > MAX_HEAD_LEN {
        return Err(FrameError::TooLong);
    }
    let mut prefix = [0; varint::MAX];
    let taken = varint::write(length as u64, &mut prefix);
    let start = ROOM - 1 - taken;
    buffer[start] = kind;
    buffer[start + 1..ROOM].copy_from_slice(&prefix[..taken]);
    Ok(buffer.freeze().slice(start..))
}

#[cfg(test)]
mod tests;
