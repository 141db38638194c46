//! The first bytes of every stream between two gateways.
//!
//! ```text
//! kind: u8 | length: varint <= 8192 | StreamOpen (proto/stream.proto) | payload ...
//! ```
//!
//! In: the bytes that have arrived so far. Out: a header and how many bytes it took, or "not yet".
//! Refuses when: the kind is unknown, the length is over the cap, a field is missing or no valid name, the path is too long.
//! Never does: I/O, allocation that the sender's bytes do not back, panics.
//! Numbers: [`MAX_HEADER_LEN`], [`MAX_PATH_LEN`].
//!
//! The protobuf is read and written by hand, over borrowed bytes: a header stands before every request. The tests hold
//! it against the generated code.

mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use crate::identity::{Assurance, Source};
use crate::names::{ClusterName, EndpointName, ServiceKey};
use crate::refusal::Refusal;

/// The most bytes that `StreamOpen` may have. A header with the longest names stays under 4.5 KiB,
/// and the certificate of an mTLS caller under 3.5.
pub const MAX_HEADER_LEN: usize = 8192;

/// The most clusters that a path may name when it arrives. The gateway refuses loops earlier, at its own limit; this one
/// only bounds what a peer can make us keep.
pub const MAX_PATH_LEN: usize = 32;

/// The acceptor's first byte on a TCP stream, once the backend is connected; raw bytes follow. On the stream of a UDP
/// association too, once it has a socket for the backend; nothing follows. A refusal comes as a reset instead, so that
/// "connection refused" reaches the client as that.
pub const CONNECTED: u8 = 0x00;

/// What a stream carries behind its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamKind {
    /// One TCP connection, raw.
    Tcp = 1,
    /// One HTTP exchange, in frames.
    Http = 2,
    /// One UDP association. It stands as long as its stream; what it carries are datagrams, see [`crate::datagram`].
    Udp = 3,
    /// A health probe: the acceptor answers and finishes.
    Probe = 4,
    /// The catalogue exchange between the controllers: raw HTTP/2.
    Exchange = 5,
}

impl StreamKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Tcp, Self::Http, Self::Udp, Self::Probe, Self::Exchange];

    /// The kind byte.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The kind behind a kind byte.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// For logs and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Udp => "udp",
            Self::Probe => "probe",
            Self::Exchange => "exchange",
        }
    }

    /// Whether a stream of this kind asks for a service, on behalf of a caller.
    #[must_use]
    pub const fn has_target(self) -> bool {
        matches!(self, Self::Tcp | Self::Http | Self::Udp)
    }
}

/// What the opener of a stream wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// What follows the header.
    pub kind: StreamKind,
    /// The exported service; present for kinds with a target.
    pub service: Option<ServiceKey>,
    /// The service's own port number; 0 for kinds without a target, never 0 for the others.
    pub port: u16,
    /// One endpoint of a headless service; `None` for the service as a whole.
    pub endpoint: Option<EndpointName>,
    /// The caller; present for kinds with a target.
    pub source: Option<Source>,
    /// W3C `traceparent`, version 00. When encoding, a text that is none is left out.
    pub traceparent: Option<String>,
    /// Time left for the whole exchange.
    pub deadline: Option<Duration>,
    /// Clusters that the request has passed, the sender last.
    pub path: Vec<ClusterName>,
    /// 0 for the first try.
    pub attempt: u32,
    /// The client as the egress gateway saw it.
    pub client: Option<SocketAddr>,
}

impl StreamHeader {
    /// A header with nothing but its kind.
    #[must_use]
    pub const fn new(kind: StreamKind) -> Self {
        Self {
            kind,
            service: None,
            port: 0,
            endpoint: None,
            source: None,
            traceparent: None,
            deadline: None,
            path: Vec::new(),
            attempt: 0,
            client: None,
        }
    }

    /// The header as it goes on the wire, kind and length included.
    ///
    /// # Errors
    /// When the target or caller is missing, the path has more than [`MAX_PATH_LEN`] clusters, or the whole is over
    /// [`MAX_HEADER_LEN`].
    pub fn encode(&self) -> Result<Bytes, HeaderError> {
        self.check()?;
        wire::encode(self)
    }

    /// Reads a header from the bytes that have arrived so far. Call again with more bytes after [`Decoded::Incomplete`].
    ///
    /// # Errors
    /// When no further byte can make this a valid header; [`HeaderError::refusal`] says what to answer.
    pub fn decode(bytes: &[u8]) -> Result<Decoded, HeaderError> {
        let Some((&code, rest)) = bytes.split_first() else { return Ok(Decoded::Incomplete) };
        let kind = StreamKind::from_code(code).ok_or(HeaderError::UnknownKind(code))?;
        let Some((length, prefix)) = wire::length(rest)? else { return Ok(Decoded::Incomplete) };
        let Some(body) = rest.get(prefix..prefix + length) else { return Ok(Decoded::Incomplete) };
        let header = wire::decode(kind, body)?;
        header.check()?;
        Ok(Decoded::Complete { header, consumed: 1 + prefix + length })
    }

    /// What holds for every header, whichever way it goes.
    fn check(&self) -> Result<(), HeaderError> {
        if self.kind.has_target() {
            if self.service.is_none() || self.port == 0 {
                return Err(HeaderError::NoTarget);
            }
            let source = self.source.as_ref().ok_or(HeaderError::NoSource)?;
            // A certificate that nobody proved says nothing about the caller.
            if source.certificate.is_some() && source.assurance != Assurance::Mtls {
                return Err(HeaderError::Field("certificate"));
            }
        }
        if self.path.len() > MAX_PATH_LEN {
            return Err(HeaderError::LongPath);
        }
        Ok(())
    }
}

/// What the bytes so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "taken apart at once, once a stream; a box would be an allocation for each"
)]
pub enum Decoded {
    /// A header.
    Complete {
        /// The header.
        header: StreamHeader,
        /// How many bytes it took; the payload begins behind them.
        consumed: usize,
    },
    /// The header is not all there yet. It never takes more than [`MAX_HEADER_LEN`] + 3 bytes.
    Incomplete,
}

/// Why bytes are no stream header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A kind that this version does not know.
    #[error("unknown stream kind {0}")]
    UnknownKind(u8),
    /// Over [`MAX_HEADER_LEN`].
    #[error("the stream header is longer than 8192 bytes")]
    TooLong,
    /// No protobuf of `StreamOpen`.
    #[error("the stream header is not well formed")]
    Malformed,
    /// Service or port missing.
    #[error("the stream header names no service and port")]
    NoTarget,
    /// Caller missing.
    #[error("the stream header names no caller")]
    NoSource,
    /// A field that should be a name, port or address is none.
    #[error("the stream header's {0} is not valid")]
    Field(&'static str),
    /// Over [`MAX_PATH_LEN`].
    #[error("the stream header's path has more than 32 clusters")]
    LongPath,
}

impl HeaderError {
    /// What the acceptor answers.
    #[must_use]
    pub const fn refusal(self) -> Refusal {
        match self {
            Self::UnknownKind(_) => Refusal::UnsupportedKind,
            Self::LongPath => Refusal::Loop,
            _ => Refusal::BadHeader,
        }
    }
}

#[cfg(test)]
mod tests;
