//! The incremental reader of one message.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, StatusCode};

use super::{FrameError, MAX_HEAD_LEN, MAX_INFOS, RequestHead, ResponseHead, frame, head, varint};

/// Which message a reader reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A request: the acceptor reads it.
    Request,
    /// A response: the opener reads it.
    Response,
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The request's head.
    RequestHead(RequestHead),
    /// The final response's head.
    ResponseHead(ResponseHead),
    /// An interim response.
    Info(StatusCode, HeaderMap),
    /// Body bytes, never empty: a slice of a pushed chunk.
    Data(Bytes),
    /// Trailers; nothing follows.
    Trailers(HeaderMap),
    /// Raw bytes follow: see [`FrameReader::into_rest`].
    Upgraded,
}

/// Where in the message the reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Before the head.
    Start,
    /// Behind the head.
    Body,
    /// Behind trailers.
    End,
    /// Behind UPGRADED.
    Raw,
}

/// What the reader does with the next byte.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Reads a frame's type.
    Type,
    /// Reads a frame's length.
    Length(u8, varint::Reader),
    /// Hands out a DATA frame's payload; so much is left.
    Data(u64),
    /// Gathers another frame's payload of this length.
    Payload(u8, usize),
}

/// Reads the frames of one message, from chunks as they arrive.
///
/// Push a chunk, take events until there is none, push the next: memory then stays at one chunk, or one head of at most
/// [`MAX_HEAD_LEN`] bytes in pieces. After an error the reader keeps giving that error.
#[derive(Debug)]
pub struct FrameReader {
    side: Side,
    stage: Stage,
    step: Step,
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    held: usize,
    infos: u32,
    /// What `content-length` says, and how much of the body has come.
    expected: Option<u64>,
    received: u64,
    /// A DATA frame has begun, be it an empty one.
    body_begun: bool,
    failed: Option<FrameError>,
}

impl FrameReader {
    /// A reader at the start of a message.
    #[must_use]
    pub const fn new(side: Side) -> Self {
        Self {
            side,
            stage: Stage::Start,
            step: Step::Type,
            chunks: VecDeque::new(),
            held: 0,
            infos: 0,
            expected: None,
            received: 0,
            body_begun: false,
            failed: None,
        }
    }

    /// Adds bytes that have arrived.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.held += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// The next piece of the message; `None`: more bytes are needed, or the rest is raw.
    ///
    /// # Errors
    /// When the peer broke the protocol. The stream is then to be reset with [`FrameError::refusal`].
    #[allow(clippy::should_implement_trait, reason = "a reader that waits for bytes is not an iterator")]
    pub fn next(&mut self) -> Result<Option<Event>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let event = self.advance();
        if let Err(error) = event {
            self.failed = Some(error);
            self.chunks.clear();
            self.held = 0;
        }
        event
    }

    /// Whether a DATA frame has begun. A sender that follows a head at once by FIN or by a DATA frame, be it an empty
    /// one, so says whether there is a body before the body's first byte is there.
    #[must_use]
    pub const fn body_begun(&self) -> bool {
        self.body_begun
    }

    /// To be called when the stream has ended and [`Self::next`] gives nothing more.
    ///
    /// # Errors
    /// When the stream ended before a head, inside a frame, or before the announced length of a body. After that the
    /// message must not be passed on as complete.
    pub fn finish(&self) -> Result<(), FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        match (self.stage, self.step) {
            (Stage::Raw, _) => Ok(()),
            (Stage::Start, _) => Err(FrameError::Truncated),
            (_, Step::Type) if self.held == 0 => self.check_length(),
            _ => Err(FrameError::Truncated),
        }
    }

    /// The raw bytes that came behind UPGRADED, in order.
    #[must_use]
    pub fn into_rest(self) -> Vec<Bytes> {
        self.chunks.into()
    }

    fn advance(&mut self) -> Result<Option<Event>, FrameError> {
        loop {
            if self.stage == Stage::Raw {
                return Ok(None);
            }
            match self.step {
                Step::Type => {
                    let Some(kind) = self.byte() else { return Ok(None) };
                    self.check_order(kind)?;
                    self.step = Step::Length(kind, varint::Reader::default());
                }
                Step::Length(kind, mut reader) => {
                    let Some(byte) = self.byte() else { return Ok(None) };
                    self.step = match reader.push(byte).map_err(|_| FrameError::TooLong)? {
                        None => Step::Length(kind, reader),
                        Some(length) => self.frame(kind, length)?,
                    };
                }
                Step::Data(0) => self.step = Step::Type,
                Step::Data(left) => {
                    let Some(mut chunk) = self.chunks.pop_front() else { return Ok(None) };
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
                    let data = chunk.split_to(take);
                    if !chunk.is_empty() {
                        self.chunks.push_front(chunk);
                    }
                    self.held -= take;
                    self.step = Step::Data(left - take as u64);
                    return Ok(Some(Event::Data(data)));
                }
                Step::Payload(kind, length) => {
                    let Some(payload) = self.take(length) else { return Ok(None) };
                    self.step = Step::Type;
                    return self.event(kind, payload).map(Some);
                }
            }
        }
    }

    /// Whether a frame of this type may come now. Checked before its payload is waited for.
    fn check_order(&self, kind: u8) -> Result<(), FrameError> {
        let fits = match (kind, self.stage) {
            (frame::HEAD, Stage::Start) => true,
            (frame::INFO, Stage::Start) => self.side == Side::Response,
            (frame::DATA | frame::TRAILERS | frame::UPGRADED, Stage::Body) => true,
            (frame::DATA..=frame::UPGRADED, _) => false,
            (unknown, _) => return Err(FrameError::UnknownType(unknown)),
        };
        if fits { Ok(()) } else { Err(FrameError::OutOfOrder) }
    }

    /// What to do with a frame of this type and length.
    fn frame(&mut self, kind: u8, length: u64) -> Result<Step, FrameError> {
        if kind == frame::DATA {
            self.body_begun = true;
            self.received = self.received.saturating_add(length);
            return match self.expected {
                Some(expected) if self.received > expected => Err(FrameError::LengthMismatch),
                _ => Ok(Step::Data(length)),
            };
        }
        let length = usize::try_from(length).map_err(|_| FrameError::TooLong)?;
        let cap = if kind == frame::UPGRADED { 0 } else { MAX_HEAD_LEN };
        if length > cap { Err(FrameError::TooLong) } else { Ok(Step::Payload(kind, length)) }
    }

    fn event(&mut self, kind: u8, payload: Bytes) -> Result<Event, FrameError> {
        match (kind, self.side) {
            (frame::HEAD, Side::Request) => {
                let head = head::take_request(payload)?;
                self.expected = content_length(&head.headers)?;
                self.stage = Stage::Body;
                Ok(Event::RequestHead(head))
            }
            (frame::HEAD, Side::Response) => {
                let head = head::take_response(payload)?;
                if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
                    return Err(FrameError::Malformed("status"));
                }
                self.expected = content_length(&head.headers)?;
                self.stage = Stage::Body;
                Ok(Event::ResponseHead(head))
            }
            (frame::INFO, _) => {
                let ResponseHead { status, headers } = head::take_response(payload)?;
                if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                    return Err(FrameError::Malformed("status"));
                }
                self.infos += 1;
                if self.infos > MAX_INFOS { Err(FrameError::TooManyInfos) } else { Ok(Event::Info(status, headers)) }
            }
            (frame::TRAILERS, _) => {
                self.check_length()?;
                self.stage = Stage::End;
                head::take_headers(payload).map(Event::Trailers)
            }
            _ => {
                self.stage = Stage::Raw;
                Ok(Event::Upgraded)
            }
        }
    }

    /// Whether the body has the announced length. A response may announce one and have no body at all: an answer to
    /// HEAD, or a 304 (RFC 9110 section 8.6).
    const fn check_length(&self) -> Result<(), FrameError> {
        match (self.expected, self.side) {
            (Some(expected), _) if self.received == expected => Ok(()),
            (None, _) => Ok(()),
            (Some(_), Side::Response) if self.received == 0 => Ok(()),
            _ => Err(FrameError::LengthMismatch),
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let chunk = self.chunks.front_mut()?;
        // No empty chunk is ever kept.
        let byte = chunk.try_get_u8().ok()?;
        if chunk.is_empty() {
            self.chunks.pop_front();
        }
        self.held -= 1;
        Some(byte)
    }

    /// `length` bytes as one piece: a slice where they lie in one chunk, else a copy.
    fn take(&mut self, length: usize) -> Option<Bytes> {
        if self.held < length {
            return None;
        }
        self.held -= length;
        let mut gathered = BytesMut::new();
        let mut left = length;
        while left > 0 {
            let mut chunk = self.chunks.pop_front()?;
            if chunk.len() > left {
                self.chunks.push_front(chunk.split_off(left));
            }
            if chunk.len() == length {
                return Some(chunk);
            }
            left -= chunk.len();
            gathered.extend_from_slice(&chunk);
        }
        Some(gathered.freeze())
    }
}

/// The announced length of the body. Several equal values count as one (RFC 9110 section 8.6); anything else is refused.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, FrameError> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let text = value.to_str().map_err(|_| FrameError::Malformed("content-length"))?;
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(FrameError::Malformed("content-length"));
        }
        let value: u64 = text.parse().map_err(|_| FrameError::Malformed("content-length"))?;
        if length.is_some_and(|length| length != value) {
            return Err(FrameError::Malformed("content-length"));
        }
        length = Some(value);
    }
    Ok(length)
}
