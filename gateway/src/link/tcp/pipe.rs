//! A TCP connection as quinn sees it: a socket that carries the packets of one connection.
//!
//! Two tasks of one worker use it: the endpoint's driver reads, the connection's driver writes. What TCP does not take at once
//! (less than one packet) is kept and sent by the endpoint's driver, which alone waits for the socket, in both directions; the
//! connection waits for it. So nothing grows: while something is kept, nothing more is taken.
//!
//! When TCP has ended, the endpoint's driver is dropped by [`PipeRuntime`], which ends the connection at once. An error from
//! [`AsyncUdpSocket::poll_recv`] would do the same, with a line of quinn's in the log that calls for the operator.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use linkspan_runtime::task;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Sleep;

use super::frame::{self, Deframer};
use super::{Bytestream, PREFACE, Wire};

/// Packets given out at once. quinn has room for 32 of the largest and touches what it is given: 256 KiB are enough to keep
/// it busy.
const AT_ONCE: usize = 4;

/// From the end of the peer's bytes to the end of the connection: what came last says why, and is to be heard first.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// A TCP connection that carries packets.
pub(in crate::link) struct Pipe {
    local: SocketAddr,
    remote: SocketAddr,
    state: Mutex<State>,
    /// The connection, when it waits for room.
    waiting: AtomicWaker,
    ended: Arc<Notify>,
}

struct State {
    stream: Box<dyn Bytestream>,
    frames: Deframer,
    /// What TCP has not taken yet: the rest of a packet, with its length before it.
    kept: Vec<u8>,
    sent: usize,
    /// The endpoint's driver.
    driver: Waker,
    /// The peer has said everything.
    last_words: Option<Pin<Box<Sleep>>>,
    is_over: bool,
}

impl Pipe {
    /// A connection that we made: our preface goes first, the other side's is awaited.
    pub(in crate::link) fn dialled(wire: Wire) -> Arc<Self> {
        Self::new(wire, Deframer::before_preface(), PREFACE.to_vec())
    }

    /// A connection whose preface has been read.
    pub(in crate::link) fn accepted(wire: Wire) -> Arc<Self> {
        Self::new(wire, Deframer::after_preface(), PREFACE.to_vec())
    }

    fn new(wire: Wire, frames: Deframer, kept: Vec<u8>) -> Arc<Self> {
        let Wire { stream, local, remote } = wire;
        let driver = Waker::noop().clone();
        let state = State { stream, frames, kept, sent: 0, driver, last_words: None, is_over: false };
        let ended = Arc::new(Notify::new());
        Arc::new(Self { local, remote, state: Mutex::new(state), waiting: AtomicWaker::new(), ended })
    }

    /// What drives the endpoint over this pipe.
    pub(in crate::link) fn runtime(&self) -> Arc<PipeRuntime> {
        Arc::new(PipeRuntime { ended: Arc::clone(&self.ended), has_endpoint: AtomicBool::new(false) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// TCP has failed, or what came over it is no link.
    fn end(&self, state: &mut State, why: &dyn fmt::Display) {
        if !std::mem::replace(&mut state.is_over, true) {
            tracing::debug!(remote = %self.remote, why = %why, "TCP connection of a link ended");
        }
        self.waiting.wake();
        self.ended.notify_one();
    }

    /// Sends what was kept. Says whether all of it is gone.
    fn flush(&self, state: &mut State) -> bool {
        while !state.is_over && state.sent < state.kept.len() {
            let mut cx = Context::from_waker(&state.driver);
            match Pin::new(&mut state.stream).poll_write(&mut cx, &state.kept[state.sent..]) {
                Poll::Pending => return false,
                Poll::Ready(Ok(0)) => self.end(state, &"nothing can be written"),
                Poll::Ready(Ok(bytes)) => state.sent += bytes,
                Poll::Ready(Err(error)) => self.end(state, &error),
            }
        }
        if !state.kept.is_empty() {
            // Whoever sends may be another task than those that wait for room.
            self.waiting.wake();
        }
        state.kept.clear();
        state.sent = 0;
        true
    }

    /// Writes one packet; keeps what TCP does not take.
    fn write(&self, state: &mut State, length: [u8; frame::LENGTH], packet: &[u8]) {
        let mut cx = Context::from_waker(&state.driver);
        let both = [IoSlice::new(&length), IoSlice::new(packet)];
        let written = match Pin::new(&mut state.stream).poll_write_vectored(&mut cx, &both) {
            Poll::Ready(Ok(0)) => return self.end(state, &"nothing can be written"),
            Poll::Ready(Ok(bytes)) => bytes,
            Poll::Ready(Err(error)) => return self.end(state, &error),
            Poll::Pending => 0,
        };
        if written < length.len() + packet.len() {
            state.kept.extend_from_slice(&length[written.min(length.len())..]);
            state.kept.extend_from_slice(&packet[written.saturating_sub(length.len())..]);
            if written > 0 {
                // TCP took a part, so nobody was told yet to wait for room.
                state.driver.wake_by_ref();
            }
        }
    }

    /// Gives out what has been read. `None`: nothing is whole yet.
    fn give(&self, state: &mut State, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Option<usize> {
        let mut given = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta).take(AT_ONCE) {
            match state.frames.next() {
                Ok(Some(packet)) => {
                    // quinn's buffers hold what we told the peer to send at most.
                    let Some(space) = buf.get_mut(..packet.len()) else { break };
                    space.copy_from_slice(packet);
                    let len = packet.len();
                    *meta = RecvMeta { addr: self.remote, len, stride: len, ecn: None, dst_ip: Some(self.local.ip()) };
                    given += 1;
                }
                Ok(None) => break,
                Err(error) => {
                    self.end(state, &error);
                    break;
                }
            }
        }
        (given > 0).then_some(given)
    }

    /// Reads more. `Ready`: there is something to look at.
    fn read(&self, state: &mut State, cx: &mut Context<'_>) -> Poll<()> {
        let mut space = ReadBuf::new(state.frames.space());
        match Pin::new(&mut state.stream).poll_read(cx, &mut space) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(())) => {
                let bytes = space.filled().len();
                state.frames.filled(bytes);
                if bytes == 0 {
                    state.last_words = Some(Box::pin(tokio::time::sleep(LAST_WORDS)));
                }
            }
            Poll::Ready(Err(error)) => self.end(state, &error),
        }
        Poll::Ready(())
    }
}

impl AsyncUdpSocket for Pipe {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut state = self.state();
        if !self.flush(&mut state) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Once it is over, the connection is about to hear of it.
        if !state.is_over
            && let Some(length) = frame::length(transmit.contents.len())
        {
            self.write(&mut state, length, transmit.contents);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        state.driver.clone_from(cx.waker());
        if !state.kept.is_empty() && self.flush(&mut state) {
            self.waiting.wake();
        }
        loop {
            if let Some(given) = self.give(&mut state, bufs, meta) {
                return Poll::Ready(Ok(given));
            }
            if state.is_over {
                return Poll::Pending;
            }
            if let Some(last_words) = &mut state.last_words {
                if Future::poll(last_words.as_mut(), cx).is_pending() {
                    return Poll::Pending;
                }
                self.end(&mut state, &"the other side has closed it");
            } else if self.read(&mut state, cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipe").field("local", &self.local).field("remote", &self.remote).finish_non_exhaustive()
    }
}

/// Waits until a packet can be taken.
#[derive(Debug)]
struct Room(Arc<Pipe>);

impl UdpPoller for Room {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = self.0.state();
        if state.kept.is_empty() || state.is_over {
            return Poll::Ready(Ok(()));
        }
        // Under the lock: the wake comes after it.
        self.0.waiting.register(cx.waker());
        Poll::Pending
    }
}

/// Runs the endpoint over a pipe until the pipe has ended.
#[derive(Debug)]
pub(in crate::link) struct PipeRuntime {
    ended: Arc<Notify>,
    has_endpoint: AtomicBool,
}

impl Runtime for PipeRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        if self.has_endpoint.swap(true, Ordering::Relaxed) {
            return TokioRuntime.spawn(future);
        }
        // The endpoint's driver is the first that is spawned. It ends with its connection, too.
        let ended = Arc::clone(&self.ended);
        drop(task::spawn("link_tcp", async move {
            tokio::select! {
                biased;
                () = future => {}
                () = ended.notified() => {}
            }
        }));
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}
