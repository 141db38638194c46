//! The control stream: who the peer's gateway is, and when it wants to leave.
//!
//! Each side opens one unidirectional stream first thing:
//!
//! ```text
//! 0x00 | ( length varint <= 16384 | Control (proto/stream.proto) )*
//! ```
//!
//! In: bytes as they arrive. Out: [`ControlMessage`]s; messages of later versions are skipped.
//! Refuses when: the first byte is another, a message is over the cap, not protobuf, or names no cluster.
//! Never does: I/O, allocation that received bytes do not back, panics.
//! Numbers: [`MAX_MESSAGE_LEN`], [`MAX_TEXT_LEN`].

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::generated::stream as wire;
use crate::names::ClusterName;
use crate::refusal::Refusal;

/// The first byte of a control stream.
pub const CONTROL_KIND: u8 = 0x00;

/// The most bytes of one message. A hello takes under 1 KiB; the rest is room to grow.
pub const MAX_MESSAGE_LEN: usize = 16 * 1024;

/// The most bytes of any free text in a message; longer ones are cut when encoding and refused when decoding.
pub const MAX_TEXT_LEN: usize = 256;

/// The link protocol version that this build speaks.
pub const VERSION: u32 = 1;

/// A message on the control stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlMessage {
    /// The first message.
    Hello(Hello),
    /// No new streams, please.
    GoAway(GoAway),
    /// A stream may go further.
    Credit(Credit),
}

/// Who the sender is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest protocol version the sender speaks.
    pub version_min: u32,
    /// Newest protocol version the sender speaks.
    pub version_max: u32,
    /// Bit set of optional features; unknown bits are ignored.
    pub features: u64,
    /// The sender's cluster.
    pub cluster: ClusterName,
    /// Stable name of the gateway process inside its cluster.
    pub gateway_id: String,
    /// Unique for each start of that process.
    pub boot_id: String,
    /// For people.
    pub software_version: String,
    /// Which of the gateway's workers holds this connection, from 0.
    pub worker: u32,
    /// How many workers it has.
    pub workers: u32,
    /// What its clock says, seconds since the Unix epoch; 0: not told.
    pub unix_seconds: u64,
}

impl Hello {
    /// The newest version that both sides speak, if there is one.
    #[must_use]
    pub fn agree(&self, other: &Self) -> Option<u32> {
        let newest = self.version_max.min(other.version_max);
        (newest >= self.version_min.max(other.version_min)).then_some(newest)
    }
}

/// How far a stream that flows towards the sender of this may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// The QUIC stream id.
    pub stream: u64,
    /// Bytes since the stream's first.
    pub limit: u64,
}

/// The sender will close this connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoAway {
    /// How long running streams may still take, milliseconds.
    pub drain_millis: u32,
    /// For logs.
    pub reason: String,
}

/// Why bytes are no control stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The stream begins with another byte.
    #[error("unknown unidirectional stream kind {0}")]
    UnknownKind(u8),
    /// Over [`MAX_MESSAGE_LEN`].
    #[error("a control message is longer than 16384 bytes")]
    TooLong,
    /// No protobuf of `Control`.
    #[error("a control message is not well formed")]
    Malformed,
    /// A field that should be a name or a short text is none.
    #[error("the control message's {0} is not valid")]
    Field(&'static str),
}

impl ControlError {
    /// What to close the connection with.
    #[must_use]
    pub const fn refusal(self) -> Refusal {
        match self {
            Self::UnknownKind(_) => Refusal::UnsupportedKind,
            _ => Refusal::Protocol,
        }
    }
}

/// The byte that opens a control stream.
#[must_use]
pub const fn open() -> Bytes {
    Bytes::from_static(&[CONTROL_KIND])
}

/// One message with its length, to be written behind [`open`].
#[must_use]
pub fn encode(message: &ControlMessage) -> Bytes {
    let body = match message.clone() {
        ControlMessage::Hello(hello) => wire::control::Body::Hello(wire::Hello {
            version_min: hello.version_min,
            version_max: hello.version_max,
            features: hello.features,
            cluster: hello.cluster.to_string(),
            gateway_id: cut(hello.gateway_id),
            boot_id: cut(hello.boot_id),
            software_version: cut(hello.software_version),
            worker: hello.worker,
            workers: hello.workers,
            unix_seconds: hello.unix_seconds,
        }),
        ControlMessage::GoAway(away) => {
            wire::control::Body::GoAway(wire::GoAway { drain_millis: away.drain_millis, reason: cut(away.reason) })
        }
        ControlMessage::Credit(Credit { stream, limit }) => wire::control::Body::Credit(wire::Credit { stream, limit }),
    };
    // Five texts of at most 256 bytes: far below the cap.
    Bytes::from(wire::Control { body: Some(body) }.encode_length_delimited_to_vec())
}

/// At most [`MAX_TEXT_LEN`] bytes, on a character's border.
fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT_LEN));
    text
}

/// Reads a control stream from its first byte on.
#[derive(Debug, Default)]
pub struct ControlReader {
    opened: bool,
    held: BytesMut,
    failed: Option<ControlError>,
}

impl ControlReader {
    /// A reader at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes that have arrived. Take all messages with [`Self::next`] before the next push: memory then stays at
    /// one message and one chunk.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.held.put_slice(bytes);
        }
    }

    /// The next message; `None`: more bytes are needed.
    ///
    /// # Errors
    /// When the peer broke the protocol; the connection is then to be closed.
    #[allow(clippy::should_implement_trait, reason = "a reader that waits for bytes is not an iterator")]
    pub fn next(&mut self) -> Result<Option<ControlMessage>, ControlError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let message = self.advance();
        if let Err(error) = message {
            self.failed = Some(error);
            self.held = BytesMut::new();
        }
        message
    }

    fn advance(&mut self) -> Result<Option<ControlMessage>, ControlError> {
        loop {
            if !self.opened {
                match self.held.first() {
                    None => return Ok(None),
                    Some(&CONTROL_KIND) => drop(self.held.split_to(1)),
                    Some(&kind) => return Err(ControlError::UnknownKind(kind)),
                }
                self.opened = true;
            }
            let Some((length, prefix)) = length(&self.held)? else { return Ok(None) };
            if self.held.len() < prefix + length {
                return Ok(None);
            }
            let body = self.held.split_to(prefix + length).split_off(prefix);
            let message = wire::Control::decode(body).map_err(|_| ControlError::Malformed)?;
            if let Some(message) = check(message)? {
                return Ok(Some(message));
            }
        }
    }
}

/// The length prefix: its value and how many bytes it took. `None`: not all there yet.
fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, ControlError> {
    let mut value = 0_usize;
    // Three bytes hold more than the cap.
    for (index, byte) in bytes.iter().take(3).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if *byte < 0x80 {
            return if value > MAX_MESSAGE_LEN { Err(ControlError::TooLong) } else { Ok(Some((value, index + 1))) };
        }
    }
    if bytes.len() >= 3 { Err(ControlError::TooLong) } else { Ok(None) }
}

/// The domain message; `None` for one that this version does not know.
fn check(message: wire::Control) -> Result<Option<ControlMessage>, ControlError> {
    Ok(match message.body {
        None => None,
        Some(wire::control::Body::Hello(hello)) => Some(ControlMessage::Hello(Hello {
            version_min: hello.version_min,
            version_max: hello.version_max,
            features: hello.features,
            cluster: ClusterName::parse(&hello.cluster).map_err(|_| ControlError::Field("cluster"))?,
            gateway_id: text("gateway id", hello.gateway_id)?,
            boot_id: text("boot id", hello.boot_id)?,
            software_version: text("software version", hello.software_version)?,
            worker: hello.worker,
            workers: hello.workers,
            unix_seconds: hello.unix_seconds,
        })),
        Some(wire::control::Body::Credit(credit)) => {
            Some(ControlMessage::Credit(Credit { stream: credit.stream, limit: credit.limit }))
        }
        Some(wire::control::Body::GoAway(away)) => Some(ControlMessage::GoAway(GoAway {
            drain_millis: away.drain_millis,
            reason: text("reason", away.reason)?,
        })),
    })
}

/// Free text of a peer: short, and without control characters, since it ends in logs and on terminals.
fn text(what: &'static str, text: String) -> Result<String, ControlError> {
    if text.len() > MAX_TEXT_LEN || text.chars().any(char::is_control) {
        return Err(ControlError::Field(what));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
