//! Bodies: frames of the link as `http_body`, and `http_body` as frames of the link.
//!
//! ```text
//! egress   client --ClientBody--> gather --> link       link --LinkBody--> ResponseBody --> client
//! ingress  link --LinkBody--> RequestBody --> backend   backend --> gather --> link
//! local    client --ClientBody--> RequestBody --> backend   backend --> ResponseBody --> client
//! ```
//!
//! - In: body bytes and trailers of one side.
//! - Out: the same for the other side, uncopied; [`BodyError`] where the message was cut, so that no cut ever looks like
//!   an end (I1).
//! - Refuses when: the body is not as long as its message says, the stream is idle for too long.
//! - Never does: hold a whole body. A request body keeps up to [`KEPT`] of what was read, until the first sign of an
//!   answer, so that a request that was never processed can be sent to another cluster.
//! - Numbers: [`READ`] 64 KiB, [`KEPT`] 64 KiB, [`BURST`] 256 KiB.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use linkspan_proto::frames::{self, FrameError};
use linkspan_proto::refusal::Refusal;

use crate::link::StreamError;
use crate::outcome::Outcome;

mod client;
mod link;
mod response;

pub(crate) use client::ClientBody;
pub(crate) use link::{LinkBody, Next, Reader};
pub(crate) use response::{Local, ResponseBody, Source, grpc_status, is_bodiless};

/// Read from the link at once. Four times hyper's h2 frame, and what quinn hands out at most for one stream when its data
/// came in one burst.
pub(crate) const READ: usize = 64 * 1024;

/// What is kept of a request body for another try (S-34). Most requests that have a body at all have a smaller one.
pub(crate) const KEPT: usize = 64 * 1024;

/// Gathered for one write to the link. More would only sit in quinn's send buffer.
pub(crate) const BURST: usize = 256 * 1024;

/// Frames gathered for one write: a bound for bodies of many tiny frames.
const BURST_FRAMES: usize = 64;

/// How a body was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The client went away, or its body was malformed.
    Client,
    /// The stream on the link ended early.
    Stream(StreamError),
    /// The peer's frames made no sense.
    Frames(FrameError),
    /// The body is not as long as announced.
    Length,
    /// The backend broke off.
    Backend,
    /// Nothing moved for too long.
    Idle,
    /// The caller's deadline passed.
    Deadline,
    /// Nobody wants it any more.
    Unwanted,
    /// It was refused here, before anything was sent.
    Refused(Refusal),
}

impl Cut {
    /// What the other side is told.
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            Self::Client | Self::Unwanted => Refusal::Cancelled,
            Self::Stream(error) => error.refusal().unwrap_or(Refusal::BackendReset),
            Self::Frames(error) => error.refusal(),
            Self::Length | Self::Backend => Refusal::BackendReset,
            Self::Idle => Refusal::Idle,
            Self::Deadline => Refusal::Deadline,
            Self::Refused(refusal) => refusal,
        }
    }

    /// How an exchange that ends so counts.
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            Self::Client | Self::Unwanted => Outcome::ClientGone,
            Self::Stream(StreamError::LinkLost | StreamError::Closed) => Outcome::LinkLost,
            Self::Idle => Outcome::Idle,
            _ => Outcome::Refused(self.refusal()),
        }
    }
}

/// A cut, for hyper: its source is what an HTTP/2 peer is reset with.
#[derive(Debug)]
pub(crate) struct BodyError {
    /// How it was cut.
    pub(crate) cut: Cut,
    reset: h2::Error,
}

impl From<Cut> for BodyError {
    fn from(cut: Cut) -> Self {
        let reason = match cut {
            Cut::Client | Cut::Unwanted => h2::Reason::CANCEL,
            _ => h2::Reason::INTERNAL_ERROR,
        };
        Self { cut, reset: reason.into() }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the body was cut: {}", self.cut.refusal().reason())
    }
}

impl Error for BodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.reset)
    }
}

/// What a backend gets as a request body.
pub(crate) enum RequestBody {
    /// No body.
    Empty,
    /// From a peer's gateway.
    Link(Box<LinkBody>),
    /// From a local client.
    Client(Box<ClientBody>),
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Link(_) => "Link",
            Self::Client(_) => "Client",
        })
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Link(body) => body.poll_frame(cx).map_err(Into::into),
            Self::Client(body) => body.poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Link(body) => body.is_end(),
            Self::Client(body) => body.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let length = match self {
            Self::Empty => Some(0),
            Self::Link(body) => body.left(),
            Self::Client(body) => body.length(),
        };
        length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// What [`gather`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gathered {
    /// More may come; nothing is there now.
    Pending,
    /// More is there, but enough for one write.
    Enough,
    /// The body is at its end: FIN may follow.
    End,
}

/// A body that [`gather`] reads.
pub(crate) trait Frames {
    /// The next frame; `None` only at a clean end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>>;

    /// Whether the end is known already.
    fn at_end(&self) -> bool;
}

/// Appends what the body has now to `chunks`, as frames of the link: prefixes and payloads side by side, uncopied.
/// `moved` hears of every payload.
pub(crate) fn gather<B: Frames>(
    body: &mut B,
    cx: &mut Context<'_>,
    chunks: &mut Vec<Bytes>,
    mut moved: impl FnMut(usize),
) -> Result<Gathered, Cut> {
    let mut bytes = 0;
    for _ in 0..BURST_FRAMES {
        if body.at_end() {
            return Ok(Gathered::End);
        }
        match body.poll_next(cx) {
            Poll::Pending => return Ok(Gathered::Pending),
            Poll::Ready(None) => return Ok(Gathered::End),
            Poll::Ready(Some(Err(cut))) => return Err(cut),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    if !data.is_empty() {
                        moved(data.len());
                        bytes += data.len();
                        chunks.push(frames::data_prefix(data.len()));
                        chunks.push(data);
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        chunks.push(frames::encode_trailers(&trailers).map_err(Cut::Frames)?);
                    }
                    return Ok(Gathered::End);
                }
            },
        }
        if bytes >= BURST {
            return Ok(Gathered::Enough);
        }
    }
    Ok(Gathered::Enough)
}

/// A backend's response body.
pub(crate) struct BackendBody {
    incoming: Whole,
    ended: bool,
    grpc_status: Option<u32>,
}

impl BackendBody {
    pub(crate) fn new(incoming: Incoming, http2: bool) -> Self {
        Self { incoming: Whole::new(incoming, http2, Cut::Backend), ended: false, grpc_status: None }
    }

    /// What the trailers said, once they were there.
    pub(crate) fn grpc_status(&self) -> Option<u32> {
        self.grpc_status
    }
}

impl Frames for BackendBody {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.incoming.poll_frame(cx).map(|next| match next {
            None => {
                self.ended = true;
                None
            }
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    super::headers::strip_trailers(trailers);
                    self.grpc_status = grpc_status(trailers);
                    self.ended = true;
                }
                Some(Ok(frame))
            }
            Some(Err(cut)) => Some(Err(cut)),
        })
    }

    fn at_end(&self) -> bool {
        self.ended || self.incoming.is_end_stream()
    }
}

/// hyper's body, with a cut where hyper sees an end: behind an error (which it tells once only), and where an HTTP/2 stream
/// was reset with `NO_ERROR` before END_STREAM.
struct Whole {
    incoming: Incoming,
    http2: bool,
    /// What a failure of this body is.
    means: Cut,
    failed: bool,
}

impl Whole {
    fn new(incoming: Incoming, http2: bool, means: Cut) -> Self {
        Self { incoming, http2, means, failed: false }
    }

    fn is_end_stream(&self) -> bool {
        !self.failed && self.incoming.is_end_stream()
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.failed {
            return Poll::Ready(Some(Err(self.means)));
        }
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        self.failed = match &polled {
            Poll::Ready(None) => self.http2 && !self.incoming.is_end_stream(),
            Poll::Ready(Some(Err(_))) => true,
            _ => false,
        };
        if self.failed {
            return Poll::Ready(Some(Err(self.means)));
        }
        polled.map(|next| next.map(|frame| frame.map_err(|_| self.means)))
    }
}

#[cfg(test)]
mod tests;
