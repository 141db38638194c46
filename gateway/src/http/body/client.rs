//! The body of a local client's request: held back where the client waits for `100 Continue`, kept where it may have to
//! be sent again.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::{Cut, Frames, KEPT, Whole};
use crate::http::exchange::{CONTINUE_WAIT, Exchange, Wanted};
use crate::http::headers;

/// A local client's request body.
pub(crate) struct ClientBody {
    incoming: Whole,
    /// What the request's `content-length` says.
    length: Option<u64>,
    exchange: Arc<Exchange>,
    hold: Option<Pin<Box<Sleep>>>,
    ended: bool,
    keep: Keep,
}

/// What was read and may have to be read again.
#[derive(Default)]
struct Keep {
    /// Too much was read, or an answer has begun.
    off: bool,
    chunks: Vec<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    /// To be read again before the rest.
    again: VecDeque<Bytes>,
    trailers_again: bool,
}

impl ClientBody {
    pub(crate) fn new(incoming: Incoming, http2: bool, length: Option<u64>, exchange: Arc<Exchange>) -> Self {
        let incoming = Whole::new(incoming, http2, Cut::Client);
        Self { incoming, length, exchange, hold: None, ended: false, keep: Keep::default() }
    }

    /// The announced length, as long as nothing was read.
    pub(crate) fn length(&self) -> Option<u64> {
        self.length
    }

    /// Whether nothing is left to read.
    pub(crate) fn is_end(&self) -> bool {
        let left = !self.keep.again.is_empty() || self.keep.trailers_again;
        !left && (self.ended || self.incoming.is_end_stream())
    }

    /// Whether everything that was read can be read again.
    pub(crate) fn can_rewind(&self) -> bool {
        !self.keep.off
    }

    /// Begins again from the first byte.
    pub(crate) fn rewind(&mut self) {
        self.keep.again = self.keep.chunks.iter().cloned().collect();
        self.keep.trailers_again = self.keep.trailers.is_some();
    }

    /// An answer has begun: nothing will be sent again.
    pub(crate) fn forget(&mut self) {
        self.keep.off = true;
        self.keep.chunks = Vec::new();
        // A second try may still be under way.
        if self.keep.again.is_empty() && !self.keep.trailers_again {
            self.keep.trailers = None;
        }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.exchange.request.poll_wanted(cx) {
            Wanted::NoMore => return Poll::Ready(Some(Err(Cut::Unwanted))),
            Wanted::NotYet => {
                let hold = self.hold.get_or_insert_with(|| Box::pin(tokio::time::sleep(CONTINUE_WAIT)));
                if hold.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.exchange.request.open();
            }
            Wanted::Now | Wanted::Done => self.hold = None,
        }
        if let Some(chunk) = self.keep.again.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if std::mem::take(&mut self.keep.trailers_again)
            && let Some(trailers) = self.keep.trailers.clone()
        {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        self.poll_fresh(cx)
    }

    fn poll_fresh(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.incoming.poll_frame(cx).map(|next| match next {
            None => {
                self.end();
                None
            }
            Some(Ok(mut frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.exchange.received(data.len());
                    self.keep.data(data);
                    if self.incoming.is_end_stream() {
                        self.end();
                    }
                } else if let Some(trailers) = frame.trailers_mut() {
                    headers::strip_trailers(trailers);
                    if !self.keep.off {
                        self.keep.trailers = Some(trailers.clone());
                    }
                    self.end();
                }
                Some(Ok(frame))
            }
            Some(Err(cut)) => Some(Err(cut)),
        })
    }

    fn end(&mut self) {
        self.ended = true;
        self.exchange.request.done();
    }
}

impl Frames for ClientBody {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.poll_frame(cx)
    }

    fn at_end(&self) -> bool {
        self.is_end()
    }
}

impl Keep {
    fn data(&mut self, data: &Bytes) {
        if self.off {
            return;
        }
        self.bytes += data.len();
        if self.bytes > KEPT {
            self.off = true;
            self.chunks = Vec::new();
        } else {
            self.chunks.push(data.clone());
        }
    }
}
