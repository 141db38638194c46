//! Messages that come over the link: heads one by one, then the body.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use linkspan_proto::frames::{Event, FrameReader, Side};

use super::{Cut, Frames, READ};
use crate::http::exchange::{Exchange, Wanted};
use crate::http::headers;
use crate::link::RecvHalf;

/// Reads one message from a stream of the link.
#[derive(Debug)]
pub(crate) struct Reader {
    recv: RecvHalf,
    frames: FrameReader,
    /// Read too far.
    ahead: Option<Event>,
    /// The peer's FIN has come.
    fin: bool,
    /// How the stream broke: said once by the stream, here every time it is asked.
    cut: Option<Cut>,
}

/// What comes next on a stream.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "lives for a moment on the stack; a box would cost an allocation for each piece"
)]
pub(crate) enum Next {
    /// A piece of the message.
    Event(Event),
    /// Its clean end.
    End,
}

impl Reader {
    pub(crate) fn new(recv: RecvHalf, side: Side) -> Self {
        Self { recv, frames: FrameReader::new(side), ahead: None, fin: false, cut: None }
    }

    /// The next piece. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Next, Cut> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Whether the message behind its head has a body. The sender follows a head at once by FIN or by a DATA frame,
    /// be it an empty one, so this never waits for the body itself.
    pub(crate) async fn has_body(&mut self) -> Result<bool, Cut> {
        std::future::poll_fn(|cx| self.poll_has_body(cx)).await
    }

    /// Reads no more, and tells the peer why.
    pub(crate) fn stop(&mut self, why: linkspan_proto::refusal::Refusal) {
        self.recv.stop(why);
    }

    /// After UPGRADED: the stream, with the raw bytes that were read already in front.
    pub(crate) fn into_raw(mut self) -> RecvHalf {
        let rest = self.frames.into_rest();
        match rest.len() {
            0 => {}
            1 => rest.into_iter().for_each(|bytes| self.recv.unread(bytes)),
            _ => self.recv.unread(rest.concat().into()),
        }
        self.recv
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Next, Cut>> {
        loop {
            if let Some(event) = self.take_event()? {
                return Poll::Ready(Ok(Next::Event(event)));
            }
            if !ready!(self.poll_fill(cx))? {
                return Poll::Ready(Ok(Next::End));
            }
        }
    }

    fn poll_has_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Cut>> {
        loop {
            if self.ahead.is_none() {
                self.ahead = self.frames.next().map_err(Cut::Frames)?;
            }
            if self.ahead.is_some() || self.frames.body_begun() {
                return Poll::Ready(Ok(true));
            }
            if !ready!(self.poll_fill(cx))? {
                return Poll::Ready(Ok(false));
            }
        }
    }

    fn take_event(&mut self) -> Result<Option<Event>, Cut> {
        match self.ahead.take() {
            Some(event) => Ok(Some(event)),
            None => self.frames.next().map_err(Cut::Frames),
        }
    }

    /// Reads once; `false` at the clean end of the message.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Cut>> {
        if let Some(cut) = self.cut {
            return Poll::Ready(Err(cut));
        }
        if self.fin {
            return Poll::Ready(Ok(false));
        }
        let cut = match ready!(self.recv.poll_read(cx, READ)) {
            Ok(Some(bytes)) => {
                self.frames.push(bytes);
                return Poll::Ready(Ok(true));
            }
            Ok(None) => {
                self.fin = true;
                match self.frames.finish() {
                    Ok(()) => return Poll::Ready(Ok(false)),
                    Err(error) => Cut::Frames(error),
                }
            }
            Err(error) => Cut::Stream(error),
        };
        self.cut = Some(cut);
        Poll::Ready(Err(cut))
    }

    /// Whether the message is at its clean end; looks at what is there, and is woken when more comes.
    fn poll_at_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Cut>> {
        if self.ahead.is_none() {
            self.ahead = self.frames.next().map_err(Cut::Frames)?;
        }
        if self.ahead.is_some() {
            return Poll::Ready(Ok(false));
        }
        self.poll_fill(cx).map_ok(|more| !more)
    }
}

/// A body that comes over the link.
#[derive(Debug)]
pub(crate) struct LinkBody {
    reader: Reader,
    /// Bytes to come, where the head said so.
    left: Option<u64>,
    /// Held until the FIN behind them is there: only then is the message whole.
    trailers: Option<HeaderMap>,
    ended: bool,
    exchange: Arc<Exchange>,
    side: Side,
}

impl LinkBody {
    /// The body behind a head that was read from `reader`. `length`: what the head announces.
    pub(crate) fn new(reader: Reader, length: Option<u64>, exchange: Arc<Exchange>, side: Side) -> Self {
        Self { reader, left: length, trailers: None, ended: false, exchange, side }
    }

    /// Bytes to come, where known.
    pub(crate) fn left(&self) -> Option<u64> {
        self.left
    }

    /// Whether the whole message has been handed out.
    pub(crate) fn is_end(&self) -> bool {
        self.ended
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.side == Side::Request && self.exchange.request.poll_wanted(cx) == Wanted::NoMore {
            return self.fail(Cut::Unwanted);
        }
        if self.trailers.is_some() {
            return self.poll_trailers(cx);
        }
        match ready!(self.reader.poll_next(cx)) {
            Err(cut) => self.fail(cut),
            Ok(Next::End) => match self.left {
                Some(1..) => self.fail(Cut::Length),
                _ => {
                    self.end();
                    Poll::Ready(None)
                }
            },
            Ok(Next::Event(Event::Data(data))) => self.data(data, cx),
            Ok(Next::Event(Event::Trailers(mut trailers))) => {
                headers::strip_trailers(&mut trailers);
                self.trailers = Some(trailers);
                self.poll_trailers(cx)
            }
            Ok(Next::Event(_)) => self.fail(Cut::Frames(linkspan_proto::frames::FrameError::OutOfOrder)),
        }
    }

    fn data(&mut self, data: Bytes, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.side {
            Side::Request => self.exchange.received(data.len()),
            Side::Response => self.exchange.sent(data.len()),
        }
        if let Some(left) = &mut self.left {
            let Some(less) = left.checked_sub(data.len() as u64) else { return self.fail(Cut::Length) };
            *left = less;
        }
        // One look ahead: when the FIN is there already, hyper writes data and end in one go. What the look finds
        // is kept for the next call, an error too.
        if let Poll::Ready(Ok(true)) = self.reader.poll_at_end(cx) {
            match self.left {
                Some(1..) => {}
                _ => self.end(),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match ready!(self.reader.poll_next(cx)) {
            Ok(Next::End) if !matches!(self.left, Some(1..)) => {
                self.end();
                let trailers = self.trailers.take().unwrap_or_default();
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Ok(Next::End) => self.fail(Cut::Length),
            Ok(Next::Event(_)) => self.fail(Cut::Frames(linkspan_proto::frames::FrameError::OutOfOrder)),
            Err(cut) => self.fail(cut),
        }
    }

    fn end(&mut self) {
        self.ended = true;
        if self.side == Side::Request {
            self.exchange.request.done();
        }
    }

    fn fail(&mut self, cut: Cut) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.reader.stop(cut.refusal());
        Poll::Ready(Some(Err(cut)))
    }
}

impl Frames for LinkBody {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.poll_frame(cx)
    }

    fn at_end(&self) -> bool {
        self.is_end()
    }
}
