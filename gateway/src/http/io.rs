//! The client's socket under hyper: what hyper's server cannot say by itself.
//!
//! - In: bytes from and to the client.
//! - Out: the same, plus interim responses (1xx) in front of a final response, a close that does not tear the last answer
//!   away, and a reset where the answer was cut short.
//! - Refuses when: a client takes nothing off its socket for [`STALL`], or does not finish a request's head within [`HEAD`];
//!   an HTTP/2 client floods (`floods`).
//! - Never does: write an interim response into the middle of a message. hyper flushes the socket only when it has handed
//!   over all of its bytes; from then until its next write the stream is between two messages or between two pieces of one,
//!   and [`Control::interim`] is called only by a request that has no answer yet.
//! - Numbers: [`STALL`] 300 s, [`HEAD`] 10 s, [`LINGER`] 2 s.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use hyper::rt;
use linkspan_runtime::drain::{Guard, Signal};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::floods::Watch;
use crate::listener::ClientIo;
use crate::outcome::Outcome;

/// How long a client may take nothing off its socket while there is something for it (S-27). As long as an exchange
/// may be idle.
pub(crate) const STALL: Duration = super::IDLE;

/// How long a client may take from the first byte of an HTTP/1 request to the last of its head (S-27). hyper has one limit
/// for this and for idle keep-alive connections, which deserve much longer; so hyper watches those, and this file the head.
const HEAD: Duration = Duration::from_secs(10);

/// How long what a client still sends is read and dropped after its answer was sent. Closing a socket with unread bytes
/// makes the kernel reset it, and the reset can overtake the answer. Two seconds are many round trips of a local client.
const LINGER: Duration = Duration::from_secs(2);

/// The most interim bytes that wait for a client that reads slowly. One early hint is a few hundred; what does not fit
/// is dropped, which RFC 9110 section 15.2 leaves to a client to tolerate.
const MAX_INTERIM: usize = 16 * 1024;

/// What requests say to the socket that they came over.
#[derive(Debug)]
pub(crate) struct Control {
    interim: Mutex<BytesMut>,
    has_interim: AtomicBool,
    /// hyper has no byte under way.
    between: AtomicBool,
    reset: AtomicBool,
    linger: AtomicBool,
    /// A request is being served: what is read is no head.
    busy: AtomicBool,
    /// Heads read so far.
    heads: AtomicUsize,
    /// Woken by the first of them.
    first: Notify,
    /// The client was told that this connection ends.
    parting: AtomicBool,
    /// The connection is one of HTTP no more.
    upgraded: AtomicBool,
    drain: Signal,
    /// What holds the gateway's drain up for this connection.
    unfinished: Mutex<Option<Guard>>,
    /// The gateway drains, and waits for no idle connection.
    draining: AtomicBool,
    /// The gateway's drain has come to its deadline.
    drained: AtomicBool,
}

impl Control {
    /// Of a connection whose end the drain waits for.
    pub(crate) fn new(drain: Signal, unfinished: Guard) -> Self {
        Self {
            interim: Mutex::default(),
            has_interim: AtomicBool::default(),
            between: AtomicBool::default(),
            reset: AtomicBool::default(),
            linger: AtomicBool::default(),
            busy: AtomicBool::default(),
            heads: AtomicUsize::default(),
            first: Notify::new(),
            parting: AtomicBool::default(),
            upgraded: AtomicBool::default(),
            drain,
            unfinished: Mutex::new(Some(unfinished)),
            draining: AtomicBool::default(),
            drained: AtomicBool::default(),
        }
    }

    /// A request's head has been read.
    pub(crate) fn request_begun(&self) {
        self.busy.store(true, Ordering::Release);
        if self.heads.fetch_add(1, Ordering::Release) == 0 {
            self.first.notify_one();
        }
        self.linger.store(false, Ordering::Release);
        if self.draining.load(Ordering::Acquire) {
            self.unfinished().get_or_insert_with(|| self.drain.guard());
        }
    }

    /// Resolves when there was a request.
    pub(crate) async fn first_request(&self) {
        self.first.notified().await;
    }

    /// The client was told that this connection ends: what it still sends must not reset what is on its way to it.
    pub(crate) fn parting(&self) {
        self.parting.store(true, Ordering::Release);
    }

    /// The connection turns into something else.
    pub(crate) fn upgraded(&self) {
        self.upgraded.store(true, Ordering::Release);
    }

    /// The gateway drains: from now on this connection holds it up only while a request is under way.
    pub(crate) fn draining(&self) {
        self.draining.store(true, Ordering::Release);
        self.rest();
    }

    /// Whether no request is under way, and every byte of the last answer is the kernel's.
    pub(crate) fn is_idle(&self) -> bool {
        !self.busy.load(Ordering::Acquire)
            && self.between.load(Ordering::Acquire)
            && !self.upgraded.load(Ordering::Acquire)
    }

    /// The connection has ended, with whatever it turned into.
    pub(crate) fn over(&self) {
        *self.unfinished() = None;
    }

    /// Lets the drain go on, if nothing is under way.
    fn rest(&self) {
        if self.draining.load(Ordering::Acquire) && self.is_idle() {
            *self.unfinished() = None;
        }
    }

    fn unfinished(&self) -> MutexGuard<'_, Option<Guard>> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its response has been handed over.
    pub(crate) fn request_over(&self) {
        self.busy.store(false, Ordering::Release);
    }

    /// Sends an interim response to an HTTP/1.1 client, as soon as the socket takes it. Only for a request whose final
    /// response has not begun.
    pub(crate) fn interim(&self, status: StatusCode, headers: &HeaderMap) {
        let mut interim = self.interim.lock().unwrap_or_else(PoisonError::into_inner);
        let mut head = BytesMut::with_capacity(256);
        head.put_slice(b"HTTP/1.1 ");
        head.put_slice(status.as_str().as_bytes());
        head.put_u8(b' ');
        head.put_slice(status.canonical_reason().unwrap_or("Interim").as_bytes());
        head.put_slice(b"\r\n");
        for (name, value) in headers {
            head.put_slice(name.as_str().as_bytes());
            head.put_slice(b": ");
            head.put_slice(value.as_bytes());
            head.put_slice(b"\r\n");
        }
        head.put_slice(b"\r\n");
        if interim.len() + head.len() <= MAX_INTERIM {
            interim.extend_from_slice(&head);
            self.has_interim.store(true, Ordering::Release);
        }
    }

    /// The final response begins. Interim bytes that hyper could not yet let through would come behind it: they go.
    pub(crate) fn final_response(&self) {
        if self.has_interim.load(Ordering::Acquire) && !self.between.load(Ordering::Acquire) {
            self.interim.lock().unwrap_or_else(PoisonError::into_inner).clear();
            self.has_interim.store(false, Ordering::Release);
        }
    }

    /// The answer was cut: the client must not take the end of the connection for its end (I1).
    pub(crate) fn reset(&self) {
        self.reset.store(true, Ordering::Release);
    }

    /// The gateway closes the connection, whatever is under way.
    pub(crate) fn drained(&self) {
        self.drained.store(true, Ordering::Release);
        self.reset();
    }

    /// How an exchange counts that hyper has dropped half way.
    pub(crate) fn dropped(&self) -> Outcome {
        if self.drained.load(Ordering::Acquire) { Outcome::Drained } else { Outcome::ClientGone }
    }

    /// The answer is whole, but the client may still be sending.
    pub(crate) fn linger(&self) {
        self.linger.store(true, Ordering::Release);
    }

    fn take_interim(&self) -> Bytes {
        if !self.has_interim.swap(false, Ordering::AcqRel) {
            return Bytes::new();
        }
        self.interim.lock().unwrap_or_else(PoisonError::into_inner).split().freeze()
    }
}

/// A client's socket, as hyper wants it.
#[derive(Debug)]
pub(crate) struct Socket {
    /// `None` only while it is dropped.
    io: Option<ClientIo>,
    control: Arc<Control>,
    /// Interim bytes of which the socket may have taken a part.
    sending: Bytes,
    stalled: Option<Pin<Box<Sleep>>>,
    /// HTTP/1: watches for heads that trickle in.
    head: Option<HeadTimer>,
    /// HTTP/2: watches for floods.
    watch: Option<Watch>,
    closing: Closing,
}

/// When the head that is being read must be complete.
#[derive(Debug, Default)]
struct HeadTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Which head it is for.
    number: usize,
}

#[derive(Debug)]
enum Closing {
    Open,
    /// The FIN is sent; what comes is dropped until the client's FIN or the deadline.
    Lingering(Pin<Box<Sleep>>),
    Closed,
}

impl Socket {
    pub(crate) fn new(io: ClientIo, control: Arc<Control>, http2: bool) -> Self {
        // Nothing was written yet.
        control.between.store(true, Ordering::Release);
        let head = (!http2).then(HeadTimer::default);
        let watch = http2.then(|| Watch::new(Instant::now()));
        Self { io: Some(io), control, sending: Bytes::new(), stalled: None, head, watch, closing: Closing::Open }
    }

    /// The plain socket, when hyper is done with it (an upgrade).
    pub(crate) fn into_inner(mut self) -> Option<ClientIo> {
        self.io.take()
    }

    fn io(&mut self) -> io::Result<Pin<&mut ClientIo>> {
        self.io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Writes interim bytes that are due. hyper has none under way.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.sending.is_empty() {
                self.sending = self.control.take_interim();
                if self.sending.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
            let chunk = self.sending.clone();
            let written = ready!(self.io()?.poll_write(cx, &chunk))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sending.advance(written);
        }
    }

    /// Runs `write` once hyper may write, and watches that the client takes something off the socket.
    fn poll_guarded<F>(&mut self, cx: &mut Context<'_>, write: F) -> Poll<io::Result<usize>>
    where
        F: FnOnce(Pin<&mut ClientIo>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    {
        let polled = if self.control.between.load(Ordering::Acquire) || !self.sending.is_empty() {
            self.poll_interim(cx)
        } else {
            Poll::Ready(Ok(()))
        };
        let polled = match polled {
            Poll::Ready(Ok(())) => {
                self.control.between.store(false, Ordering::Release);
                write(self.io()?, cx)
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        match polled {
            Poll::Ready(result) => {
                self.stalled = None;
                if let (Some(watch), Ok(written)) = (&mut self.watch, &result) {
                    watch.sent(*written);
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL)));
                ready!(stalled.as_mut().poll(cx));
                // What it has not taken is lost: its end must not look clean.
                self.control.reset();
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// Reads and drops what the client still sends.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 8 * 1024];
        loop {
            let Closing::Lingering(deadline) = &mut self.closing else { return Poll::Ready(()) };
            if deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let mut buffer = ReadBuf::new(&mut scratch);
            let Ok(io) = self.io() else { return Poll::Ready(()) };
            match ready!(io.poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}

/// A socket whose reader is watched.
struct Watched<'a> {
    io: &'a mut ClientIo,
    watch: Option<&'a mut Watch>,
}

impl AsyncRead for Watched<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut *self.io).poll_read(cx, buffer))?;
        if let Some(watch) = &mut self.watch
            && let Err(flood) = watch.came(&buffer.filled()[before..])
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, flood)));
        }
        Poll::Ready(Ok(()))
    }
}

impl rt::Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // hyper-util's adapter holds the one piece of unsafe code that maps the two kinds of buffer.
        let this = &mut *self;
        let io = this.io.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let watched = Watched { io, watch: this.watch.as_mut() };
        let polled = Pin::new(&mut hyper_util::rt::TokioIo::new(watched)).poll_read(cx, buffer);
        if matches!(&polled, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidData) {
            this.control.reset();
        }
        let busy = self.control.busy.load(Ordering::Acquire);
        let number = self.control.heads.load(Ordering::Acquire);
        let Some(head) = &mut self.head else { return polled };
        if head.number != number {
            *head = HeadTimer { sleep: None, number };
        }
        match (&polled, busy) {
            (_, true) => head.sleep = None,
            (Poll::Ready(_), false) => {
                head.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(HEAD)));
            }
            (Poll::Pending, false) => {
                if head.sleep.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready()) {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
        polled
    }
}

impl rt::Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_guarded(cx, |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_guarded(cx, |io, cx| io.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.control.between.store(true, Ordering::Release);
        ready!(self.poll_interim(cx))?;
        ready!(self.io()?.poll_flush(cx))?;
        self.control.rest();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.closing {
                Closing::Open if self.control.reset.load(Ordering::Acquire) => self.closing = Closing::Closed,
                Closing::Open => {
                    ready!(self.io()?.poll_shutdown(cx))?;
                    let (linger, parting) = (&self.control.linger, &self.control.parting);
                    self.closing = if linger.load(Ordering::Acquire) || parting.load(Ordering::Acquire) {
                        Closing::Lingering(Box::pin(tokio::time::sleep_until(Instant::now() + LINGER)))
                    } else {
                        Closing::Closed
                    };
                }
                Closing::Lingering(_) => {
                    ready!(self.poll_drain(cx));
                    self.closing = Closing::Closed;
                }
                Closing::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(io) = self.io.take()
            && self.control.reset.load(Ordering::Acquire)
        {
            io.reset();
        }
    }
}

#[cfg(test)]
mod tests;
