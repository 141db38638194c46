//! UDP sockets of the link.
//!
//! Every worker has a socket of its own on the one port of the gateway; the kernel spreads peers over them by a hash of
//! addresses and ports (SO_REUSEPORT). That hash changes when a NAT gives the peer another port, and then the packets of a
//! connection come out at a worker that does not know it. So the worker stands in the connection id, and a packet that
//! came out at the wrong one is handed over (F-10). On the straight path this costs one comparison for each buffer.
//!
//! ```text
//! connection id: worker (1 byte) | random (4 bytes) | tag (3 bytes of HMAC over the rest)
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aws_lc_rs::{hmac, rand};
use batch::Batch;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::task::AtomicWaker;
use linkspan_runtime::task;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, Runtime, TokioRuntime, UdpPoller};
use quinn_proto::InvalidCid;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use socket2::{Domain, Protocol, Socket, Type};

use super::tcp::{self, Wire};
mod batch;

/// What the kernel may queue for a socket. Its default of 208 KiB loses packets even on loopback.
const BUFFER: usize = 8 * 1024 * 1024;

/// Buffers that wait for a worker that they were handed to. They only come in bursts after a rebind; what does not fit is
/// lost, and QUIC sends it again.
const HANDED_OVER: usize = 1024;

const NONCE_LEN: usize = 4;
const TAG_LEN: usize = 3;
const CID_LEN: usize = 1 + NONCE_LEN + TAG_LEN;

/// The largest payload of an IPv4 UDP datagram; a batch of segments must stay below it.
const MAX_BATCH: usize = 65_507;

/// The most that the kernel puts into one buffer when it joins datagrams (GRO): one IP packet.
const MAX_JOINED: usize = 65_535;

/// What IP and UDP add to a payload, bytes.
const IPV4_UDP_HEADERS: u32 = 20 + 8;
const IPV6_UDP_HEADERS: u32 = 40 + 8;

/// Binds one socket for each worker to the same address. A port of 0 is resolved once. Fails when anybody else, another
/// gateway of the same user included, has the port.
pub(super) fn listen(address: SocketAddr, workers: usize) -> io::Result<Vec<UdpSocket>> {
    // The first binds alone, so that a port in use is found out: with SO_REUSEPORT set beforehand two gateways would
    // silently share it. The option counts from the moment it is set, also on a bound socket.
    let first = unbound(address)?;
    first.bind(&address.into())?;
    first.set_reuse_port(true)?;
    let first = UdpSocket::from(first);
    let address = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        let socket = unbound(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        sockets.push(socket.into());
    }
    Ok(sockets)
}

/// Where dials start from.
pub(super) trait Network: Send + Sync + 'static {
    /// A socket of its own for dialling `remote`, on the current runtime. A fresh port for each dial: after a failure no
    /// state of a NAT or a conntrack table on the way is inherited, and the peer's kernel draws its worker anew.
    fn dial(&self, remote: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>>;

    /// A TCP connection to `remote`, on the current runtime. Has no deadline of its own.
    fn connect(&self, remote: SocketAddr) -> BoxFuture<'_, io::Result<Wire>>;

    /// What the next random generator of the link starts from, where a run must be the same each time. `None`: from what
    /// the operating system gives.
    fn seed(&self) -> Option<u64> {
        None
    }

    /// The wall clock that certificates are held against.
    fn clock(&self) -> Arc<dyn TimeProvider> {
        Arc::new(DefaultTimeProvider)
    }
}

/// UDP and TCP of this machine.
pub(super) struct Machine;

impl Network for Machine {
    fn dial(&self, remote: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let any: SocketAddr = if remote.is_ipv6() { ([0; 8], 0).into() } else { ([0; 4], 0).into() };
        let socket = unbound(any)?;
        socket.bind(&any.into())?;
        register(socket.into())
    }

    fn connect(&self, remote: SocketAddr) -> BoxFuture<'_, io::Result<Wire>> {
        Box::pin(tcp::connect(SocketAddr::new(remote.ip().to_canonical(), remote.port())))
    }
}

/// The largest UDP payload that the way to `remote` can carry without fragments, as far as this machine knows: the MTU of
/// its route, or of the path where the kernel has learnt that. `None` where it does not say.
pub(super) fn route_payload(remote: IpAddr) -> Option<u16> {
    let any: SocketAddr = if remote.is_ipv6() { ([0; 8], 0).into() } else { ([0; 4], 0).into() };
    let probe = UdpSocket::bind(any).ok()?;
    // Sends nothing: the kernel looks the route up.
    probe.connect(SocketAddr::new(remote, 9)).ok()?;
    let (mtu, headers) = match remote {
        IpAddr::V4(_) => (rustix::net::sockopt::ip_mtu(&probe).ok()?, IPV4_UDP_HEADERS),
        IpAddr::V6(_) => (rustix::net::sockopt::ipv6_mtu(&probe).ok()?, IPV6_UDP_HEADERS),
    };
    Some(u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX))
}

/// Gives a bound socket to the current runtime.
pub(super) fn register(socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    TokioRuntime.wrap_udp_socket(socket)
}

fn unbound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // `[::]` serves IPv4 too; where the kernel forbids that, IPv6 alone is better than nothing.
        let _dual = socket.set_only_v6(false);
    }
    socket.set_nonblocking(true)?;
    crate::listener::grow_buffers(&socket, BUFFER);
    Ok(socket)
}

/// Hands packets from the worker at which they came out to the one that knows them. One for all sockets of a port.
#[derive(Debug)]
pub(super) struct Steering {
    inboxes: Vec<Inbox>,
}

#[derive(Default)]
struct Inbox {
    buffers: Mutex<VecDeque<(RecvMeta, Bytes)>>,
    waker: AtomicWaker,
}

impl Steering {
    pub(super) fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self { inboxes: (0..workers).map(|_| Inbox::default()).collect() })
    }

    /// Whose packet this is, where that is somebody else's.
    fn other(&self, own: usize, datagram: &[u8]) -> Option<&Inbox> {
        // Short headers only: during the handshake the addresses do not change.
        let (first, rest) = datagram.split_first()?;
        let worker = usize::from(*rest.first()?);
        if first & 0x80 != 0 || rest.len() < CID_LEN || worker == own {
            return None;
        }
        self.inboxes.get(worker)
    }
}

impl Inbox {
    fn put(&self, meta: RecvMeta, buffer: &[u8]) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < HANDED_OVER {
            buffers.push_back((meta, Bytes::copy_from_slice(buffer)));
            drop(buffers);
            self.waker.wake();
        }
    }

    fn take(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some((handed, bytes)) = buffers.pop_front() else { break };
            let Some(space) = buf.get_mut(..bytes.len()) else { continue };
            space.copy_from_slice(&bytes);
            *meta = handed;
            taken += 1;
        }
        taken
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

/// A socket as quinn uses it: the network's, with packets of other workers handed over and batches kept below 64 KiB.
#[derive(Debug)]
pub(super) struct LinkSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    steering: Option<(usize, Arc<Steering>)>,
    /// Largest packet that is received.
    largest: usize,
    packets: Arc<LargestSent>,
    /// Held for moments, by the one thread that uses this socket.
    batch: Mutex<Batch>,
    /// Sends what waits in `batch` when nothing more comes; begun with the first that waits.
    flusher: OnceLock<AtomicWaker>,
    /// For the flusher.
    own: Weak<Self>,
}

/// The largest packet that may be sent on a socket so far: how many of them fit into one batch follows from it.
#[derive(Debug)]
pub(super) struct LargestSent(AtomicUsize);

impl LargestSent {
    pub(super) fn new(mtu: u16) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(usize::from(mtu))))
    }

    /// A connection that may send packets of this size is about to begin. Never shrinks: a listening socket on which one
    /// peer has jumbo packets makes somewhat smaller batches for all.
    pub(super) fn raise(&self, mtu: u16) {
        self.0.fetch_max(usize::from(mtu), Ordering::Relaxed);
    }

    fn segments(&self) -> usize {
        // A batch over 64 KiB fails with EMSGSIZE, which quinn takes for a black hole and falls to the smallest MTU.
        (MAX_BATCH / self.0.load(Ordering::Relaxed).max(1)).max(1)
    }
}

impl LinkSocket {
    /// Wraps a registered socket. `largest` is the largest packet that the endpoint accepts.
    pub(super) fn new(
        inner: Arc<dyn AsyncUdpSocket>,
        steering: Option<(usize, Arc<Steering>)>,
        largest: u16,
        packets: Arc<LargestSent>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            inner,
            steering,
            largest: largest.max(1).into(),
            packets,
            batch: Mutex::default(),
            flusher: OnceLock::new(),
            own: Weak::clone(own),
        })
    }

    /// Sends what waits.
    fn flush(&self, batch: &mut Batch) -> io::Result<()> {
        let result = batch.transmit().map_or(Ok(()), |transmit| self.inner.try_send(&transmit));
        if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            // Sent, or beyond hope: QUIC sends it again.
            batch.clear();
        }
        result
    }

    /// Sees to it that what waits does not wait longer than this turn of the runtime.
    fn flush_soon(&self) {
        let waker = self.flusher.get_or_init(|| {
            let flusher = Flusher { socket: Weak::clone(&self.own), poller: None, seen: 0 };
            // Ends with the socket.
            drop(task::spawn("link_flush", flusher));
            AtomicWaker::new()
        });
        waker.wake();
    }

    /// Takes out of `bufs` what other workers know. Gives the number of buffers that are left.
    fn hand_over(&self, count: usize, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let Some((own, steering)) = &self.steering else { return count };
        let mut kept = 0;
        for index in 0..count {
            let found = meta[index];
            let buffer = &mut bufs[index][..found.len];
            let stride = found.stride.max(1);
            if buffer.chunks(stride).any(|datagram| steering.other(*own, datagram).is_some()) {
                let mut left = 0;
                for start in (0..found.len).step_by(stride) {
                    let end = (start + stride).min(found.len);
                    match steering.other(*own, &buffer[start..end]) {
                        Some(inbox) => inbox.put(RecvMeta { len: end - start, ..found }, &buffer[start..end]),
                        None => {
                            buffer.copy_within(start..end, left);
                            left += end - start;
                        }
                    }
                }
                meta[index].len = left;
                if left == 0 {
                    continue;
                }
            }
            if kept != index {
                let (before, after) = bufs.split_at_mut(index);
                let len = meta[index].len;
                before[kept][..len].copy_from_slice(&after[0][..len]);
                meta[kept] = meta[index];
            }
            kept += 1;
        }
        kept
    }
}

impl AsyncUdpSocket for LinkSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        if !batch.is_empty() && !batch.fits(transmit) {
            self.flush(&mut batch)?;
        }
        let waits = Batch::is_worth_waiting(transmit) && self.inner.max_transmit_segments() > 1;
        if batch.is_empty() && !waits {
            return self.inner.try_send(transmit);
        }
        batch.add(transmit);
        if (!waits || batch.is_full()) && self.flush(&mut batch).is_ok() {
            return Ok(());
        }
        // Also where the kernel takes nothing at the moment: it waits here as it would there.
        drop(batch);
        self.flush_soon();
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if let Some((own, steering)) = &self.steering {
            let inbox = &steering.inboxes[*own];
            inbox.waker.register(cx.waker());
            let taken = inbox.take(bufs, meta);
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
        }
        loop {
            let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
            let kept = self.hand_over(count, bufs, meta);
            if kept > 0 || count == 0 {
                return Poll::Ready(Ok(kept));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.packets.segments())
    }

    /// quinn multiplies this with the largest packet, for each buffer of a batch; what the kernel joins is less.
    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments().min(MAX_JOINED.div_ceil(self.largest))
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl Drop for LinkSocket {
    fn drop(&mut self) {
        if let Some(waker) = self.flusher.get() {
            waker.wake();
        }
    }
}

/// Sends what waits in a socket's batch when nothing was added for one turn of the runtime.
struct Flusher {
    socket: Weak<LinkSocket>,
    /// While the kernel takes nothing.
    poller: Option<Pin<Box<dyn UdpPoller>>>,
    /// How much had been added at the last look.
    seen: u64,
}

impl Future for Flusher {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(socket) = self.socket.upgrade() else { return Poll::Ready(()) };
        if let Some(waker) = socket.flusher.get() {
            waker.register(cx.waker());
        }
        loop {
            if let Some(poller) = &mut self.poller {
                // An error shows again when it is sent.
                drop(ready!(poller.as_mut().poll_writable(cx)));
            }
            let mut batch = socket.batch.lock().unwrap_or_else(PoisonError::into_inner);
            if batch.is_empty() {
                self.poller = None;
                return Poll::Pending;
            }
            if std::mem::replace(&mut self.seen, batch.added) != batch.added {
                // Whoever sends is about to be polled again, and then this is.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if socket.flush(&mut batch).is_err() && !batch.is_empty() && self.poller.is_none() {
                self.poller = Some(Arc::clone(&socket.inner).create_io_poller());
            }
        }
    }
}

/// Gives out connection ids that name their worker.
pub(super) struct WorkerIds {
    worker: u8,
    key: hmac::Key,
}

impl WorkerIds {
    pub(super) fn new(worker: usize, key: hmac::Key) -> Self {
        // Workers are at most 256; see `Config`. A wrong byte would only cost a hop.
        Self { worker: u8::try_from(worker).unwrap_or(u8::MAX), key }
    }

    fn tag(&self, marked: &[u8]) -> [u8; TAG_LEN] {
        let full = hmac::sign(&self.key, marked);
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&full.as_ref()[..TAG_LEN]);
        tag
    }
}

impl ConnectionIdGenerator for WorkerIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CID_LEN];
        id[0] = self.worker;
        rand::fill(&mut id[1..=NONCE_LEN]).expect("the operating system gives random bytes");
        let tag = self.tag(&id[..=NONCE_LEN]);
        id[1 + NONCE_LEN..].copy_from_slice(&tag);
        ConnectionId::new(&id)
    }

    /// Also true for ids of an earlier life of this gateway: those are answered with a stateless reset.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.split_at_checked(1 + NONCE_LEN) {
            Some((marked, tag)) if tag == self.tag(marked) => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests;
