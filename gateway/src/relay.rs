//! Copies between a socket and a stream of the link, both ways. Used by TCP at both ends and by upgraded HTTP.
//!
//! ```text
//! socket read  -> chunk -> SendSide::write      EOF -> finish (FIN)      error -> reset + stop
//! socket write <- chunk <- RecvSide::read       FIN -> shutdown          reset -> the caller cuts the socket
//! ```
//!
//! - In: any `AsyncRead + AsyncWrite`, the two halves of a stream, what else may end it, the record that counts.
//! - Out: an [`Outcome`]. Anything but [`Outcome::Ok`] was told to the peer already; the caller owes the socket a RST.
//! - Refuses when: nothing moved for the idle limit; bytes move that are no longer allowed.
//! - Never does: end a direction cleanly that was cut (I1); hold a buffer while a direction is silent; read ahead of a
//!   writer that is behind (that is the back-pressure).
//! - Numbers: [`CHUNK`], [`COPY_BELOW`], [`TELL_EVERY`].
//!
//! How the ends of TCP map onto the stream:
//!
//! | socket | stream |
//! |---|---|
//! | FIN read | FIN sent: half-close, the other direction lives on |
//! | RST read | RESET_STREAM and STOP_SENDING with `client` or `backend` reason |
//! | write fails | STOP_SENDING; what the socket still has to say is read to its end, which is a RST if the write met one |
//! | RST written (caller) | RESET_STREAM read, or the link lost |

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use linkspan_proto::refusal::Refusal;
use linkspan_runtime::drain::Signal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::link::{BATCH, RecvHalf, SendHalf, StreamError};
use crate::outcome::{Outcome, Record};
use crate::remote::Review;

mod meter;

mod torn;

use meter::Meter;
pub(crate) use torn::Torn;

/// Bytes read at once. A full UDP batch of the link carries some 14 KiB; four of them amortise the system call, more
/// gains nothing measurable and costs cache.
pub const CHUNK: usize = 64 * 1024;

/// Reads shorter than this are copied out of the shared buffer, so that a few bytes that wait for an acknowledgement do
/// not keep 64 KiB alive; longer ones leave with the buffer, uncopied. At worst a third more than the payload is held.
pub const COPY_BELOW: usize = CHUNK / 4 * 3;

/// How often the counters of a connection that moves bytes are told to the recorders.
pub const TELL_EVERY: Duration = Duration::from_secs(1);

/// How long a client that still talks is listened to after the service has answered in full and stopped reading. Two
/// round trips of a far client.
const LINGER: Duration = Duration::from_secs(1);

thread_local! {
    /// One buffer a worker, not one a connection: only a read that is about to succeed needs one.
    static SCRATCH: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// What ends a relay besides its two ends.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    /// How long nothing may move.
    pub idle: Duration,
    /// The end of the gateway.
    pub drain: &'a Signal,
    /// Whether a peer may still have it; `None` for calls of our own clients. Looked at every [`TELL_EVERY`]
    /// while bytes move: what is silent costs nothing and is cut as soon as it speaks.
    pub review: Option<Review<'a>>,
}

/// The sending half of a stream, as far as the relay needs it.
pub trait SendSide: Send {
    /// Waits until something could be sent, and tells how much of it at most; never 0.
    fn room(&mut self) -> impl Future<Output = Result<usize, StreamError>> + Send {
        async { Ok(CHUNK) }
    }
    /// Sends a chunk; waits while the peer's window is closed.
    fn write(&mut self, chunk: Bytes) -> impl Future<Output = Result<(), StreamError>> + Send;
    /// Ends this direction cleanly.
    fn finish(&mut self) -> Result<(), StreamError>;
    /// Cuts this direction.
    fn reset(&mut self, why: Refusal);
    /// Resolves when the peer reads no more (`Some`), or when all was acknowledged or the link is lost (`None`).
    fn stopped(&mut self) -> impl Future<Output = Option<Refusal>> + Send;
}

/// The receiving half of a stream, as far as the relay needs it.
pub trait RecvSide: Send {
    /// The next bytes; `None` at the clean end.
    fn read(&mut self, max: usize) -> impl Future<Output = Result<Option<Bytes>, StreamError>> + Send;
    /// Reads no more.
    fn stop(&mut self, why: Refusal);

    /// All bytes that are there, in pieces; `false` at the clean end.
    fn read_many(&mut self, into: &mut Vec<Bytes>) -> impl Future<Output = Result<bool, StreamError>> + Send {
        async {
            let piece = self.read(CHUNK).await?;
            let more = piece.is_some();
            into.extend(piece);
            Ok(more)
        }
    }
}

impl SendSide for SendHalf {
    fn room(&mut self) -> impl Future<Output = Result<usize, StreamError>> + Send {
        Self::room(self)
    }

    fn write(&mut self, chunk: Bytes) -> impl Future<Output = Result<(), StreamError>> + Send {
        Self::write(self, chunk)
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        Self::finish(self)
    }

    fn reset(&mut self, why: Refusal) {
        Self::reset(self, why);
    }

    fn stopped(&mut self) -> impl Future<Output = Option<Refusal>> + Send {
        Self::stopped(self)
    }
}

impl RecvSide for RecvHalf {
    fn read(&mut self, max: usize) -> impl Future<Output = Result<Option<Bytes>, StreamError>> + Send {
        Self::read(self, max)
    }

    fn stop(&mut self, why: Refusal) {
        Self::stop(self, why);
    }

    fn read_many(&mut self, into: &mut Vec<Bytes>) -> impl Future<Output = Result<bool, StreamError>> + Send {
        Self::read_many(self, into)
    }
}

/// Which end of the path the socket is: decides what a cut means, and which way counts as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// The client's (egress): what is read from it is received from the caller.
    Client,
    /// The backend's (ingress): what is read from it is sent to the caller.
    Backend,
}

impl Socket {
    /// The end of a connection whose socket was cut.
    fn cut(self) -> Outcome {
        match self {
            Self::Client => Outcome::ClientGone,
            Self::Backend => Outcome::Refused(Refusal::BackendReset),
        }
    }

    /// What the peer is told of it.
    fn refusal(self) -> Refusal {
        match self {
            Self::Client => Refusal::Cancelled,
            Self::Backend => Refusal::BackendReset,
        }
    }

    /// The end of a connection whose stream was cut by the peer with this reason.
    fn peer_cut(self, why: Refusal) -> Outcome {
        match (self, why) {
            // The peer is nearer to the client: the client left.
            (Self::Backend, Refusal::Cancelled) => Outcome::ClientGone,
            (_, Refusal::Idle) => Outcome::Idle,
            (_, why) => Outcome::Refused(why),
        }
    }

    fn stream_error(self, error: StreamError) -> Outcome {
        match error {
            StreamError::Reset(why) | StreamError::Stopped(why) => self.peer_cut(why),
            StreamError::LinkLost => Outcome::LinkLost,
            // The halves are used by this file alone, in order.
            StreamError::Closed => Outcome::Abandoned,
        }
    }
}

/// How one direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// With a FIN passed on.
    Clean,
    /// The reader of this direction is gone, which says nothing about the other direction.
    Unread(Outcome),
    /// The whole connection is broken.
    Broken(Outcome),
}

/// How far the two directions have come.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    to_stream: Option<Ended>,
    to_socket: Option<Ended>,
}

impl Progress {
    /// The outcome, once nothing more can come.
    fn outcome(self, socket: Socket) -> Option<Outcome> {
        if let (Some(Ended::Broken(outcome)), _) | (_, Some(Ended::Broken(outcome))) = (self.to_stream, self.to_socket)
        {
            return Some(outcome);
        }
        let (to_stream, to_socket) = (self.to_stream?, self.to_socket?);
        let (request, response) = match socket {
            Socket::Client => (to_stream, to_socket),
            Socket::Backend => (to_socket, to_stream),
        };
        Some(match (request, response) {
            // A service may answer in full without having read everything: then it said all it had to say.
            (_, Ended::Clean) => Outcome::Ok,
            (_, Ended::Unread(outcome) | Ended::Broken(outcome)) => outcome,
        })
    }
}

/// Copies until both directions have ended or the connection is broken.
///
/// The peer has been told of the end when this returns. When the outcome is not [`Outcome::Ok`] the socket must be cut
/// with a RST by its owner, since a FIN would make a torso look whole.
pub async fn relay<IO, S, R>(
    io: &mut IO,
    socket: Socket,
    send: &mut S,
    recv: &mut R,
    bounds: Bounds<'_>,
    record: &mut Record,
) -> Outcome
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
    S: SendSide,
    R: RecvSide,
{
    let (meter, torn) = (Meter::new(), Torn::default());
    let mut progress = Progress::default();
    let mut cut = None;
    let outcome = {
        let (read, write) = tokio::io::split(&mut *io);
        let mut to_stream = pin!(to_stream(read, send, socket, &meter, &torn));
        let mut to_socket = pin!(to_socket(write, recv, socket, &meter, &torn));
        let both = poll_fn(|cx| {
            if progress.to_stream.is_none() {
                progress.to_stream = ready_or_none(to_stream.as_mut().poll(cx));
            }
            if progress.to_socket.is_none() {
                progress.to_socket = ready_or_none(to_socket.as_mut().poll(cx));
            }
            progress.outcome(socket).map_or(Poll::Pending, Poll::Ready)
        });
        tokio::select! {
            biased;
            outcome = both => outcome,
            why = meter.watch(bounds, socket, record) => {
                cut = Some(why);
                if why == Refusal::Idle { Outcome::Idle } else { Outcome::Refused(why) }
            }
            () = bounds.drain.closed() => Outcome::Drained,
        }
    };
    meter.tell(socket, record);
    let why = cut.unwrap_or_else(|| socket.refusal());
    // What was ended cleanly stays so: it was said in full, and its reader may still be reading it.
    if progress.to_stream != Some(Ended::Clean) {
        send.reset(why);
    }
    if progress.to_socket != Some(Ended::Clean) {
        recv.stop(why);
    }
    if outcome == Outcome::Ok && matches!(progress.to_stream, Some(Ended::Unread(_))) {
        linger(io).await;
    }
    outcome
}

fn ready_or_none<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Reads and discards for a moment. Closing a socket while unread bytes lie in it makes the kernel send a RST and throw
/// away what it had yet to send: the end of an answer to a client that was still talking would be lost.
async fn linger<IO: AsyncRead + Unpin>(io: &mut IO) {
    let discard = async { while poll_fn(|cx| poll_chunk(io, cx)).await.is_ok_and(|chunk| !chunk.is_empty()) {} };
    // Either way it is over: the client has closed, or it had its time.
    drop(tokio::time::timeout(LINGER, discard).await);
}

/// Socket to stream.
async fn to_stream<IO, S>(
    mut io: tokio::io::ReadHalf<&mut IO>,
    send: &mut S,
    socket: Socket,
    meter: &Meter,
    torn: &Torn,
) -> Ended
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: SendSide,
{
    loop {
        let most = match send.room().await {
            Ok(room) => room.min(CHUNK),
            Err(StreamError::Stopped(why)) => return Ended::Unread(socket.peer_cut(why)),
            Err(error) => return Ended::Broken(socket.stream_error(error)),
        };
        let chunk = tokio::select! {
            biased;
            chunk = poll_fn(|cx| poll_chunk_of(&mut io, most, cx)) => chunk,
            why = send.stopped() => return match why {
                Some(why) => Ended::Unread(socket.peer_cut(why)),
                None => Ended::Broken(Outcome::LinkLost),
            },
        };
        let result = match chunk {
            Ok(chunk) if chunk.is_empty() && torn.is_torn() => return Ended::Broken(socket.cut()),
            Ok(chunk) if chunk.is_empty() => {
                return match send.finish() {
                    Ok(()) => Ended::Clean,
                    Err(error) => Ended::Broken(socket.stream_error(error)),
                };
            }
            Ok(chunk) => {
                let length = chunk.len();
                send.write(chunk).await.inspect(|()| meter.moved(&meter.from_socket, length))
            }
            Err(_) => return Ended::Broken(socket.cut()),
        };
        match result {
            Ok(()) => {}
            Err(StreamError::Stopped(why)) => return Ended::Unread(socket.peer_cut(why)),
            Err(error) => return Ended::Broken(socket.stream_error(error)),
        }
    }
}

/// Stream to socket.
async fn to_socket<IO, R>(
    mut io: tokio::io::WriteHalf<&mut IO>,
    recv: &mut R,
    socket: Socket,
    meter: &Meter,
    torn: &Torn,
) -> Ended
where
    IO: AsyncRead + AsyncWrite + Unpin,
    R: RecvSide,
{
    loop {
        let mut pieces = Vec::new();
        match recv.read_many(&mut pieces).await {
            Ok(true) => {
                if let Err(error) = write_metered(&mut io, pieces, meter).await {
                    torn.by_write(&error);
                    // What the socket's other direction still holds is read by `to_stream`, up to its own error.
                    recv.stop(socket.refusal());
                    return Ended::Unread(socket.cut());
                }
            }
            Ok(false) => {
                return match io.shutdown().await {
                    Ok(()) => Ended::Clean,
                    Err(_) => Ended::Unread(socket.cut()),
                };
            }
            Err(error) => return Ended::Broken(socket.stream_error(error)),
        }
    }
}

/// Writes all pieces with as few system calls as the socket allows. Each accepted part counts as progress: a slow reader
/// is not an idle one.
async fn write_metered<W: AsyncWrite + Unpin>(io: &mut W, mut pieces: Vec<Bytes>, meter: &Meter) -> io::Result<()> {
    let mut next = 0;
    loop {
        while pieces.get(next).is_some_and(Bytes::is_empty) {
            next += 1;
        }
        let Some(rest) = pieces.get_mut(next..).filter(|rest| !rest.is_empty()) else { break };
        let mut written = poll_fn(|cx| {
            let mut slices = [IoSlice::new(&[]); BATCH];
            let count = slices.iter_mut().zip(&*rest).map(|(slice, piece)| *slice = IoSlice::new(piece)).count();
            Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count])
        })
        .await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        meter.moved(&meter.to_socket, written);
        for piece in rest {
            let taken = piece.len().min(written);
            piece.advance(taken);
            written -= taken;
        }
    }
    // For TLS sockets and upgraded HTTP; nothing for TCP.
    io.flush().await
}

/// One read into the worker's shared buffer; an empty chunk is the end. Nothing is held while the socket is silent.
pub(crate) fn poll_chunk<IO: AsyncRead + Unpin>(io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    poll_chunk_of(io, CHUNK, cx)
}

/// [`poll_chunk`] of at most `most` bytes, which must not be 0.
pub(crate) fn poll_chunk_of<IO: AsyncRead + Unpin>(
    io: &mut IO,
    most: usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Bytes>> {
    debug_assert!(most > 0, "an empty chunk would look like the end");
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.capacity() < CHUNK {
            *scratch = BytesMut::with_capacity(CHUNK);
        }
        let mut room = (&mut *scratch).limit(most);
        let read = pin!(io.read_buf(&mut room)).poll(cx);
        read.map_ok(|count| {
            if count < COPY_BELOW {
                let chunk = Bytes::copy_from_slice(scratch);
                scratch.clear();
                chunk
            } else {
                std::mem::take(scratch).freeze()
            }
        })
    })
}

#[cfg(test)]
mod tests;
