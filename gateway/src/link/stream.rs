//! The two halves of a stream on the link: one thin seam over quinn, so that another carrier can take its place.
//!
//! A half that is dropped unfinished tells the peer so, with [`Refusal::Cancelled`]: quinn would end an unfinished send
//! stream with a clean FIN, and a truncated message would look whole (I1).

use std::fmt;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use linkspan_proto::refusal::Refusal;
use quinn::{ReadError, VarInt, WriteError, Written};

use super::connection::StreamCount;
use super::credit::{Allowance, Window};

/// Pieces that [`RecvHalf::read_many`] gives at once: some 45 KiB at the usual packet size, in 1 KiB of stack.
pub const BATCH: usize = 32;

/// Why a stream ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer gave up sending.
    #[error("the peer reset the stream: {}", .0.reason())]
    Reset(Refusal),
    /// The peer reads no more.
    #[error("the peer stopped the stream: {}", .0.reason())]
    Stopped(Refusal),
    /// The connection under the stream is gone.
    #[error("the link was lost")]
    LinkLost,
    /// This side has finished, reset or stopped the half before.
    #[error("the stream is closed on this side")]
    Closed,
}

impl StreamError {
    /// The peer's reason, where it gave one.
    #[must_use]
    pub const fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Reset(refusal) | Self::Stopped(refusal) => Some(refusal),
            Self::LinkLost | Self::Closed => None,
        }
    }
}

/// The sending half.
pub struct SendHalf {
    stream: quinn::SendStream,
    /// A FIN or a reset was given: nothing is left to say when this is dropped.
    ended: bool,
    finished: bool,
    allowance: Allowance,
    count: StreamCount,
}

impl SendHalf {
    pub(super) fn new(stream: quinn::SendStream, allowance: Allowance, count: StreamCount) -> Self {
        Self { stream, ended: false, finished: false, allowance, count }
    }

    /// Sends one chunk, uncopied. Waits for the reader's credit and for the connection's windows: not reading here is the
    /// back-pressure. Not cancel-safe: a part may have been sent.
    ///
    /// # Errors
    /// When the peer stopped the stream or the link is lost.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), StreamError> {
        self.write_all(&mut [chunk]).await
    }

    /// Sends all chunks in order, uncopied, and in as few packets as they fit: a header and the first payload share one.
    /// When it is dropped before its end, what is left in `chunks` was not sent: it may be called again with that.
    ///
    /// # Errors
    /// When the peer stopped the stream or the link is lost.
    pub async fn write_all(&mut self, mut chunks: &mut [Bytes]) -> Result<(), StreamError> {
        loop {
            while chunks.first().is_some_and(Bytes::is_empty) {
                chunks = &mut chunks[1..];
            }
            let Some(first) = chunks.first() else { return Ok(()) };
            let all = chunks.iter().map(Bytes::len).sum();
            let room = self.allowance.room(all);
            let written = if room == 0 {
                self.credited().await?;
                continue;
            } else if room == all {
                held(self.stream.write_chunks(chunks), &self.allowance, all).await?
            } else {
                let part = &mut [first.slice(..first.len().min(room))];
                let written = held(self.stream.write_chunks(part), &self.allowance, all).await?;
                chunks[0].advance(written);
                written
            };
            self.allowance.sent(written);
        }
    }

    /// Waits until bytes that are to be read for this stream could be sent, and tells how many at most: whoever reads
    /// before that holds them for as long as the peer likes (S-29). Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn room(&mut self) -> Result<usize, StreamError> {
        loop {
            match (self.allowance.is_eased(), self.allowance.left()) {
                (true, left @ 1..) => return Ok(left),
                // Boxed: the wait is rare, and its room would be held by each stream in service.
                (true, 0) => Box::pin(self.credited()).await?,
                (false, _) => Box::pin(self.allowance.eased()).await,
            }
        }
    }

    /// Waits until the reader grants more.
    async fn credited(&mut self) -> Result<(), StreamError> {
        let allowance = &self.allowance;
        let mut stopped = pin!(self.stream.stopped());
        std::future::poll_fn(|cx| {
            if allowance.poll_more(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            stopped.as_mut().poll(cx).map(|stopped| {
                Err(match stopped {
                    Ok(Some(why)) => StreamError::Stopped(Refusal::from_code(why.into_inner())),
                    Ok(None) => StreamError::Closed,
                    Err(_) => StreamError::LinkLost,
                })
            })
        })
        .await
    }

    /// Ends this direction cleanly. Synchronous, so that the last data and the FIN share a packet when no await lies
    /// between.
    ///
    /// # Errors
    /// When the half was finished or reset before.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        if self.ended {
            return Err(StreamError::Closed);
        }
        self.ended = true;
        self.finished = true;
        self.stream.finish().map_err(|_| StreamError::Closed)
    }

    /// Ends this direction with a reason; unsent data is dropped. Also after [`Self::finish`], to take back what the
    /// peer has not read yet.
    pub fn reset(&mut self, why: Refusal) {
        self.ended = true;
        self.finished = false;
        // An error says that the stream is over already: then there is nothing to tell.
        drop(self.stream.reset(code(why)));
    }

    /// Resolves with the peer's reason when it stops reading, or with `None` when all data and the FIN are acknowledged
    /// or the link is lost. Cancel-safe.
    pub async fn stopped(&mut self) -> Option<Refusal> {
        match self.stream.stopped().await {
            Ok(Some(why)) => Some(Refusal::from_code(why.into_inner())),
            Ok(None) | Err(_) => None,
        }
    }

    /// The connection need not wait for this stream when it is left.
    pub(super) fn uncount(&mut self) {
        self.count = StreamCount::none();
    }

    /// Sends this stream's data before that of streams with a lower priority; 0 is usual.
    pub(super) fn prioritise(&self, priority: i32) {
        // An error says that the stream is over already.
        drop(self.stream.set_priority(priority));
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if !self.ended {
            drop(self.stream.reset(code(Refusal::Cancelled)));
        } else if self.finished && self.count.is_draining() {
            // Its data may still be on the way; the connection must not be closed under it.
            self.count.linger(self.stream.stopped());
        }
    }
}

impl fmt::Debug for SendHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendHalf").field("id", &self.stream.id()).field("ended", &self.ended).finish()
    }
}

/// The receiving half.
pub struct RecvHalf {
    stream: quinn::RecvStream,
    /// Bytes read too far, given back: read first.
    unread: Option<Bytes>,
    /// FIN, reset or stop: nothing is left to say when this is dropped.
    ended: bool,
    window: Window,
    /// Held for its drop.
    count: StreamCount,
}

impl RecvHalf {
    pub(super) fn new(stream: quinn::RecvStream, window: Window, count: StreamCount) -> Self {
        Self { stream, unread: None, ended: false, window, count }
    }

    /// The next bytes, at most `max`, uncopied; `None` at the peer's FIN. Cancel-safe.
    ///
    /// # Errors
    /// When the peer reset the stream or the link is lost: what came before is a torso.
    pub async fn read(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        std::future::poll_fn(|cx| self.poll_read(cx, max)).await
    }

    /// As [`Self::read`], for those that implement `Body` or `AsyncRead`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn poll_read(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Option<Bytes>, StreamError>> {
        if let Some(mut unread) = self.unread.take() {
            if unread.len() > max {
                self.unread = Some(unread.split_off(max));
            }
            return Poll::Ready(Ok(Some(unread)));
        }
        let read = std::pin::pin!(self.stream.read_chunk(max, true));
        let chunk = ready!(Future::poll(read, cx));
        Poll::Ready(match chunk {
            Ok(Some(chunk)) => {
                self.window.read(chunk.bytes.len());
                Ok(Some(chunk.bytes))
            }
            Ok(None) => {
                self.ended = true;
                Ok(None)
            }
            Err(error) => Err(read_error(error)),
        })
    }

    /// All bytes that are there, in order and uncopied, up to [`BATCH`] pieces: on the wire every packet is a piece, and
    /// whoever writes them on wants one system call for many. `false` at the peer's FIN. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_many(&mut self, into: &mut Vec<Bytes>) -> Result<bool, StreamError> {
        if let Some(unread) = self.unread.take() {
            into.push(unread);
            return Ok(true);
        }
        let read = std::future::poll_fn(|cx| {
            // On the stack of this poll only: a silent stream holds no room for pieces.
            let mut pieces = [const { Bytes::new() }; BATCH];
            let count = {
                let read = std::pin::pin!(self.stream.read_chunks(&mut pieces));
                ready!(Future::poll(read, cx))
            };
            Poll::Ready(count.map(|count| {
                count.map(|count| {
                    self.window.read(pieces.iter().take(count).map(Bytes::len).sum());
                    into.extend(pieces.into_iter().take(count));
                })
            }))
        });
        match read.await {
            Ok(Some(())) => Ok(true),
            Ok(None) => {
                self.ended = true;
                Ok(false)
            }
            Err(error) => Err(read_error(error)),
        }
    }

    /// Names the stream, the same on both sides of the connection.
    pub(super) fn stream_id(&self) -> quinn::StreamId {
        self.stream.id()
    }

    /// Gives back bytes that were read too far; the next read yields them first.
    pub fn unread(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.unread = Some(match self.unread.take() {
            None => bytes,
            Some(later) => [bytes, later].concat().into(),
        });
    }

    /// The connection need not wait for this stream when it is left.
    pub(super) fn uncount(&mut self) {
        self.count = StreamCount::none();
    }

    /// Reads no more, and tells the peer why.
    pub fn stop(&mut self, why: Refusal) {
        self.ended = true;
        self.unread = None;
        // An error says that the stream is over already: then there is nothing to tell.
        drop(self.stream.stop(code(why)));
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        if !self.ended {
            drop(self.stream.stop(code(Refusal::Cancelled)));
        }
    }
}

impl fmt::Debug for RecvHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvHalf").field("id", &self.stream.id()).field("ended", &self.ended).finish()
    }
}

/// Writes; while that waits for the connection's window, `bytes` count as held for it.
async fn held(
    write: impl Future<Output = Result<Written, WriteError>>,
    allowance: &Allowance,
    bytes: usize,
) -> Result<usize, StreamError> {
    let mut write = pin!(write);
    let written = match futures::poll!(write.as_mut()) {
        Poll::Ready(written) => written,
        Poll::Pending => {
            let _held = allowance.hold(bytes);
            write.await
        }
    };
    Ok(written.map_err(write_error)?.bytes)
}

fn code(why: Refusal) -> VarInt {
    VarInt::from_u64(why.code()).expect("refusal codes are below 2^62")
}

fn write_error(error: WriteError) -> StreamError {
    match error {
        WriteError::Stopped(why) => StreamError::Stopped(Refusal::from_code(why.into_inner())),
        WriteError::ClosedStream => StreamError::Closed,
        WriteError::ConnectionLost(_) | WriteError::ZeroRttRejected => StreamError::LinkLost,
    }
}

fn read_error(error: ReadError) -> StreamError {
    match error {
        ReadError::Reset(why) => StreamError::Reset(Refusal::from_code(why.into_inner())),
        ReadError::ClosedStream => StreamError::Closed,
        ReadError::ConnectionLost(_) | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
            StreamError::LinkLost
        }
    }
}
