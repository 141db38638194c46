//! The body of a response to a local client, from wherever it comes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use super::{BackendBody, BodyError, Cut, Frames as _, LinkBody};
use crate::http::errors::Reply;
use crate::http::exchange::{Exchange, IdleTimer, Wanted};
use crate::http::io;
use crate::http::pool::Lease;
use crate::outcome::Outcome;

/// Where a response body comes from.
pub(crate) enum Source {
    /// Nowhere: there is none.
    Empty,
    /// The gateway's own words.
    Text(Bytes),
    /// A peer's gateway.
    Link(Box<LinkBody>),
    /// A backend of this cluster.
    Backend(Box<Local>),
}

/// A body from a backend of this cluster, and what has to be given back behind it.
pub(crate) struct Local {
    pub(crate) body: BackendBody,
    /// Announced bytes that are still to come.
    pub(crate) left: Option<u64>,
    pub(crate) lease: Option<Lease>,
    /// Counts the endpoint as busy.
    pub(crate) _endpoint: crate::backend::EndpointGuard,
    pub(crate) deadline: Option<Pin<Box<Sleep>>>,
}

/// What hyper's server sends to a local client. When it is dropped, the exchange is over.
pub(crate) struct ResponseBody {
    source: Source,
    exchange: Arc<Exchange>,
    socket: Arc<io::Control>,
    idle: IdleTimer,
    http2: bool,
    /// A cut is told in trailers, so that the client learns more than "internal error".
    grpc: bool,
    /// An empty body whose head announces a length (304): hyper drops the announcement if it knows.
    announces: bool,
    whole: bool,
}

impl ResponseBody {
    pub(crate) fn new(source: Source, exchange: Arc<Exchange>, socket: Arc<io::Control>, http2: bool) -> Self {
        let whole = matches!(source, Source::Empty | Source::Text(_));
        Self { source, exchange, socket, idle: IdleTimer::default(), http2, grpc: false, announces: false, whole }
    }

    /// The response is gRPC: see [`Self::poll_frame`] for what that changes.
    pub(crate) fn grpc(mut self, grpc: bool) -> Self {
        self.grpc = grpc && self.http2;
        self
    }

    /// The head announces a length that the body does not have, rightly.
    pub(crate) fn announcing(mut self, announces: bool) -> Self {
        self.announces = announces && !self.http2;
        self
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let polled = match &mut self.source {
            Source::Empty => return Poll::Ready(None),
            Source::Text(text) => {
                let text = std::mem::take(text);
                self.source = Source::Empty;
                return Poll::Ready(Some(Ok(Frame::data(text))));
            }
            Source::Link(body) => body.poll_frame(cx),
            Source::Backend(local) => local.poll_frame(cx, &self.exchange),
        };
        if polled.is_pending() && self.idle.poll(cx, &self.exchange).is_ready() {
            return Poll::Ready(Some(Err(Cut::Idle)));
        }
        polled
    }

    fn at_end(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Text(text) => text.is_empty(),
            Source::Link(body) => body.is_end(),
            Source::Backend(local) => local.at_end(),
        }
    }

    /// The whole response has been handed to hyper.
    fn end(&mut self) {
        self.whole = true;
        self.exchange.ended(Outcome::Ok);
        if let Source::Backend(local) = std::mem::replace(&mut self.source, Source::Empty)
            && let Some(lease) = local.lease
        {
            lease.recycle();
        }
    }

    /// The response was cut. A gRPC client is told in trailers: their status is not 0, so nobody takes it for an end. To
    /// everybody else the stream is reset, or the connection.
    fn cut(&mut self, cut: Cut) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.exchange.ended(cut.outcome());
        self.source = Source::Empty;
        if self.grpc {
            let reply = Reply::cut(cut);
            self.whole = true;
            self.exchange.note(|record| record.entry().grpc_status = Some(reply.grpc_status()));
            return Poll::Ready(Some(Ok(Frame::trailers(reply.trailers()))));
        }
        if !self.http2 {
            self.socket.reset();
        }
        Poll::Ready(Some(Err(cut.into())))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.poll_source(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(cut))) => self.cut(cut),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    if let Some(status) = grpc_status(trailers) {
                        self.exchange.note(|record| record.entry().grpc_status = Some(status));
                    }
                    self.end();
                } else if self.at_end() {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        !self.announces && self.at_end()
    }

    fn size_hint(&self) -> SizeHint {
        let length = match &self.source {
            Source::Empty if self.announces => None,
            Source::Empty => Some(0),
            Source::Text(text) => Some(text.len() as u64),
            Source::Link(body) => body.left(),
            Source::Backend(local) => local.left,
        };
        length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // Counts only if nothing was said before: hyper dropped it half way.
        self.exchange.ended(if self.whole { Outcome::Ok } else { self.socket.dropped() });
        if self.exchange.request.wanted() != Wanted::Done && !self.http2 {
            self.socket.linger();
        }
        self.exchange.request.stop();
        self.socket.request_over();
    }
}

impl Local {
    fn poll_frame(&mut self, cx: &mut Context<'_>, exchange: &Exchange) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.body.poll_next(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    exchange.sent(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) if matches!(self.left, Some(1..)) => Poll::Ready(Some(Err(Cut::Length))),
            Poll::Pending if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) => {
                Poll::Ready(Some(Err(Cut::Deadline)))
            }
            other => other,
        }
    }

    fn at_end(&self) -> bool {
        self.body.at_end()
    }
}

/// The gRPC status in a head or in trailers.
pub(crate) fn grpc_status(fields: &HeaderMap) -> Option<u32> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Whether a response to `method` with this status has no body, whatever its head says (RFC 9112 section 6.3).
pub(crate) fn is_bodiless(method: &http::Method, status: StatusCode) -> bool {
    method == http::Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}
