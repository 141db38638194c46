//! Sockets of datagrams: many received with one system call, each sent with one.

use std::cell::RefCell;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket as StdSocket};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use crate::outcome::Loss;

/// Buffers for one system call; the kernel fills some with several datagrams of one sender.
const BATCH: usize = 32;

/// The largest that a buffer is filled with.
const BUFFER: usize = 64 * 1024;

/// That nobody is at the other end makes a socket no more readable: the kernel tells it as an error alone.
const HEARD: Interest = Interest::READABLE.add(Interest::ERROR);

/// EMSGSIZE: more than the way to the other end carries in one packet.
pub(super) const TOO_LARGE: i32 = Errno::MSGSIZE.raw_os_error();

/// ENOBUFS: the device's queue is full.
const NO_BUFFERS: i32 = Errno::NOBUFS.raw_os_error();

thread_local! {
    /// One for all sockets of a worker: whoever receives is done with it before it waits. Only what was filled once takes memory.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A socket on this worker's runtime.
#[derive(Debug)]
pub(super) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Told when the other end of a connected socket says that nobody is there, if that is heard while sending.
    refused: Notify,
}

/// One datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received<'a> {
    pub(super) payload: &'a [u8],
    pub(super) from: SocketAddr,
    /// Our address that it was sent to.
    pub(super) to: Option<IpAddr>,
}

impl Socket {
    /// Gives a bound socket to the current runtime.
    pub(super) fn new(socket: StdSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, state, refused: Notify::new() })
    }

    /// Resolves when there may be something to receive.
    ///
    /// # Errors
    /// `ConnectionRefused`, when nobody is at the other end.
    pub(super) async fn readable(&self) -> io::Result<()> {
        tokio::select! {
            ready = self.socket.ready(HEARD) => ready.map(drop),
            () = self.refused.notified() => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    /// Receives what is there, up to a batch; `each` gets one datagram after the other, in order.
    pub(super) fn receive(&self, mut each: impl FnMut(Received<'_>)) -> io::Result<()> {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.is_empty() {
                *scratch = vec![0; BATCH * BUFFER];
            }
            let mut meta = [RecvMeta::default(); BATCH];
            let count = {
                let mut buffers = scratch.chunks_exact_mut(BUFFER);
                let mut slices: [IoSliceMut<'_>; BATCH] =
                    std::array::from_fn(|_| IoSliceMut::new(buffers.next().unwrap_or_default()));
                let mut receive = || self.state.recv((&self.socket).into(), &mut slices, &mut meta);
                // One kind after the other: tokio tries nothing for a sum of kinds. Where nothing is there, neither costs a call.
                let read = self.socket.try_io(Interest::READABLE, &mut receive);
                let would_block = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
                match read.or_else(|error| {
                    if would_block(&error) { self.socket.try_io(Interest::ERROR, &mut receive) } else { Err(error) }
                }) {
                    Ok(count) => count,
                    Err(error) if would_block(&error) => return Ok(()),
                    Err(error) => return Err(error),
                }
            };
            for (meta, buffer) in meta.iter().zip(scratch.chunks_exact(BUFFER)).take(count) {
                let received = |payload| Received { payload, from: meta.addr, to: meta.dst_ip };
                let filled = &buffer[..meta.len.min(BUFFER)];
                if filled.is_empty() {
                    each(received(filled));
                }
                filled.chunks(meta.stride.max(1)).for_each(|payload| each(received(payload)));
            }
            Ok(())
        })
    }

    /// Sends one datagram, from our address `from` where that must be said.
    pub(super) fn send(&self, payload: &[u8], to: SocketAddr, from: Option<IpAddr>) -> Result<(), Loss> {
        let transmit = Transmit { destination: to, ecn: None, contents: payload, segment_size: None, src_ip: from };
        // Not by the runtime's word on readiness: of a new socket it has none yet, and the first datagram would be lost.
        self.state.try_send((&self.socket).into(), &transmit).map_err(|error| {
            if error.kind() == io::ErrorKind::ConnectionRefused {
                self.refused.notify_one();
            }
            match error.raw_os_error() {
                Some(TOO_LARGE) => Loss::Oversize,
                Some(NO_BUFFERS) => Loss::QueueFull,
                _ if error.kind() == io::ErrorKind::WouldBlock => Loss::QueueFull,
                _ => Loss::SendFailed,
            }
        })
    }
}
