//! A network in memory, for paused time: what a test sees does not depend on how busy the machine is.
//!
//! Each direction between two hosts has a delay; what arrives at a socket has a rate and a queue, beyond which packets
//! are lost, as on a real link. A direction can be cut, and a host unplugged like one that is killed. TCP connections have the
//! delay, no rate, and lose nothing: while a direction is cut they wait. UDP can be blocked by itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use crate::link::socket;
use crate::link::tcp::{Doorway, Wire};

/// One way.
const DELAY: Duration = Duration::from_millis(5);

/// From one packet that arrives at a socket to the next: what forwards packets counts them, whatever their size. Slow
/// enough that tens of seconds with a full window are computed in a few.
const PACKET: Duration = Duration::from_micros(1500);

/// How long a packet may wait for its turn before it is lost instead.
const QUEUE: Duration = Duration::from_millis(100);

/// Hosts that reach each other.
#[derive(Clone, Default)]
pub(crate) struct Network(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    mailboxes: BTreeMap<SocketAddr, Arc<Mailbox>>,
    /// From, to.
    cut: BTreeSet<(IpAddr, IpAddr)>,
    is_udp_blocked: bool,
    doors: BTreeMap<SocketAddr, mpsc::UnboundedSender<Wire>>,
    /// Counts the TCP connections that were made.
    connected: u64,
    ports: u16,
}

/// One machine of it.
#[derive(Clone)]
pub(crate) struct Host {
    network: Network,
    ip: IpAddr,
    plugged: Arc<AtomicBool>,
}

#[derive(Default)]
struct Mailbox {
    letters: Mutex<Letters>,
}

#[derive(Default)]
struct Letters {
    queue: VecDeque<(Instant, SocketAddr, Vec<u8>)>,
    /// When the last one will have arrived.
    busy_until: Option<Instant>,
    reader: Option<Waker>,
}

impl Network {
    pub(crate) fn host(&self, last: u8) -> Host {
        let ip = IpAddr::from([192, 0, 2, last]);
        Host { network: self.clone(), ip, plugged: Arc::new(AtomicBool::new(true)) }
    }

    /// Loses everything that one host sends to another, or no longer does.
    pub(crate) fn cut(&self, from: &Host, to: &Host, cut: bool) {
        let mut state = self.0.lock().unwrap();
        if cut {
            state.cut.insert((from.ip, to.ip));
        } else {
            state.cut.remove(&(from.ip, to.ip));
        }
    }

    /// Loses all UDP, or no longer does.
    pub(crate) fn block_udp(&self, block: bool) {
        self.0.lock().unwrap().is_udp_blocked = block;
    }

    /// How many TCP connections were made so far.
    pub(crate) fn connected(&self) -> u64 {
        self.0.lock().unwrap().connected
    }

    /// Carries bytes until either side is gone.
    async fn pump(
        self,
        from: IpAddr,
        to: IpAddr,
        mut reader: ReadHalf<DuplexStream>,
        mut writer: WriteHalf<DuplexStream>,
    ) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(bytes) = reader.read(&mut buffer).await {
            tokio::time::sleep(DELAY).await;
            while self.0.lock().unwrap().cut.contains(&(from, to)) {
                // What TCP sends again, and sooner than it would.
                tokio::time::sleep(DELAY * 20).await;
            }
            if bytes == 0 || writer.write_all(&buffer[..bytes]).await.is_err() {
                break;
            }
        }
        drop(writer.shutdown().await);
    }

    fn carry(&self, from: SocketAddr, to: SocketAddr, packet: &[u8]) {
        let mailbox = {
            let state = self.0.lock().unwrap();
            if state.is_udp_blocked || state.cut.contains(&(from.ip(), to.ip())) {
                return;
            }
            let Some(mailbox) = state.mailboxes.get(&to) else { return };
            Arc::clone(mailbox)
        };
        let mut letters = mailbox.letters.lock().unwrap();
        let arrives = Instant::now() + DELAY;
        let turn = letters.busy_until.map_or(arrives, |busy| busy.max(arrives));
        if turn - arrives > QUEUE {
            return;
        }
        let done = turn + PACKET;
        letters.busy_until = Some(done);
        letters.queue.push_back((done, from, packet.to_vec()));
        if let Some(reader) = letters.reader.take() {
            reader.wake();
        }
    }
}

impl Host {
    /// A listening socket.
    pub(crate) fn listen(&self, port: u16) -> Arc<dyn AsyncUdpSocket> {
        self.socket(port)
    }

    /// A listening socket for TCP.
    pub(in crate::link) fn listen_tcp(&self, port: u16) -> Box<dyn Doorway> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.network.0.lock().unwrap().doors.insert(self.address(port), sender);
        Box::new(Knocks(receiver))
    }

    pub(crate) fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    /// Ends it as its peers see a `kill -9`: without a word. Another host may take its place.
    pub(crate) fn unplug(&self) {
        self.plugged.store(false, Ordering::Relaxed);
        let mut state = self.network.0.lock().unwrap();
        state.mailboxes.retain(|address, _| address.ip() != self.ip);
        state.doors.retain(|address, _| address.ip() != self.ip);
    }

    fn socket(&self, port: u16) -> Arc<Socket> {
        let (address, mailbox) = (self.address(port), Arc::new(Mailbox::default()));
        if self.plugged.load(Ordering::Relaxed) {
            self.network.0.lock().unwrap().mailboxes.insert(address, Arc::clone(&mailbox));
        }
        Arc::new(Socket {
            host: self.clone(),
            address,
            mailbox,
            timer: Mutex::new(Box::pin(tokio::time::sleep(DELAY))),
        })
    }
}

impl socket::Network for Host {
    fn dial(&self, _remote: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let port = {
            let mut state = self.network.0.lock().unwrap();
            state.ports += 1;
            32_768 + state.ports
        };
        Ok(self.socket(port))
    }

    fn connect(&self, remote: SocketAddr) -> BoxFuture<'_, io::Result<Wire>> {
        Box::pin(async move {
            let network = &self.network;
            let cut = |from, to| network.0.lock().unwrap().cut.contains(&(from, to));
            while cut(self.ip, remote.ip()) || cut(remote.ip(), self.ip) {
                tokio::time::sleep(DELAY * 20).await;
            }
            tokio::time::sleep(2 * DELAY).await;
            let (door, local) = {
                let mut state = network.0.lock().unwrap();
                state.ports += 1;
                state.connected += 1;
                (state.doors.get(&remote).cloned(), SocketAddr::new(self.ip, 32_768 + state.ports))
            };
            let (near, of_near) = tokio::io::duplex(64 * 1024);
            let (far, of_far) = tokio::io::duplex(64 * 1024);
            let ((near_reader, near_writer), (far_reader, far_writer)) =
                (tokio::io::split(of_near), tokio::io::split(of_far));
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let wire = Wire { stream: Box::new(far), local: remote, remote: local };
            door.and_then(|door| door.send(wire).ok()).ok_or_else(refused)?;
            tokio::spawn(network.clone().pump(self.ip, remote.ip(), near_reader, far_writer));
            tokio::spawn(network.clone().pump(remote.ip(), self.ip, far_reader, near_writer));
            Ok(Wire { stream: Box::new(near), local, remote })
        })
    }
}

/// TCP connections that knock at a host.
struct Knocks(mpsc::UnboundedReceiver<Wire>);

impl Doorway for Knocks {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Wire>> {
        Box::pin(async {
            match self.0.recv().await {
                Some(wire) => Ok(wire),
                None => std::future::pending().await,
            }
        })
    }
}

struct Socket {
    host: Host,
    address: SocketAddr,
    mailbox: Arc<Mailbox>,
    timer: Mutex<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Socket").field(&self.address).finish()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut state = self.host.network.0.lock().unwrap();
        if state.mailboxes.get(&self.address).is_some_and(|mailbox| Arc::ptr_eq(mailbox, &self.mailbox)) {
            state.mailboxes.remove(&self.address);
        }
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.host.plugged.load(Ordering::Relaxed) {
            for packet in transmit.contents.chunks(transmit.segment_size.unwrap_or(transmit.contents.len()).max(1)) {
                self.host.network.carry(self.address, transmit.destination, packet);
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut timer = self.timer.lock().unwrap();
        loop {
            let mut letters = self.mailbox.letters.lock().unwrap();
            letters.reader = Some(cx.waker().clone());
            let now = Instant::now();
            let mut taken = 0;
            for (buf, meta) in bufs.iter_mut().zip(meta.iter_mut()) {
                if letters.queue.front().is_none_or(|(arrives, ..)| *arrives > now) {
                    break;
                }
                let (_, addr, packet) = letters.queue.pop_front().unwrap();
                buf[..packet.len()].copy_from_slice(&packet);
                let dst_ip = Some(self.address.ip());
                *meta = RecvMeta { addr, len: packet.len(), stride: packet.len(), ecn: None, dst_ip };
                taken += 1;
            }
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
            let Some((arrives, ..)) = letters.queue.front() else { return Poll::Pending };
            timer.as_mut().reset(*arrives);
            drop(letters);
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}
