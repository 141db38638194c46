//! A network in memory, for paused time: what a test sees does not depend on how busy the machine is.
//!
//! Each direction between two hosts has [`Conditions`]; what arrives at a socket has a rate and a queue, beyond which packets
//! are lost, as on a real link. A direction can be cut, a host unplugged like one that is killed, or put behind a NAT that
//! forgets. All that is random follows from the network's seed; [`Network::journal`] says what was carried. TCP connections
//! have a delay, no rate, and lose nothing: while a direction is cut they wait. UDP can be blocked by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use crate::link::socket;
use crate::link::tcp::{Doorway, Wire};
pub(crate) use path::Conditions;
use path::{Delivery, Path};

mod path;

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

struct State {
    seed: u64,
    /// Generators that were seeded from it.
    seeded: u64,
    mailboxes: BTreeMap<SocketAddr, Arc<Mailbox>>,
    /// From, to; as those that follow.
    cut: BTreeSet<(IpAddr, IpAddr)>,
    paths: BTreeMap<(IpAddr, IpAddr), Path>,
    /// By host.
    nats: BTreeMap<IpAddr, Nat>,
    is_udp_blocked: bool,
    doors: BTreeMap<SocketAddr, mpsc::UnboundedSender<Wire>>,
    /// Counts the TCP connections that were made.
    connected: u64,
    ports: u16,
    /// From one packet to the next.
    packet: Duration,
    began: Option<(Instant, UnixTime)>,
    journal: Journal,
}

impl Default for State {
    fn default() -> Self {
        Self {
            seed: 0,
            seeded: 0,
            mailboxes: BTreeMap::new(),
            cut: BTreeSet::new(),
            paths: BTreeMap::new(),
            nats: BTreeMap::new(),
            is_udp_blocked: false,
            doors: BTreeMap::new(),
            connected: 0,
            ports: 0,
            packet: PACKET,
            began: None,
            journal: Journal::default(),
        }
    }
}

/// The outside of a NAT, and what it knows: the public address by the private one.
#[derive(Default)]
struct Nat {
    outside: Option<IpAddr>,
    open: BTreeMap<SocketAddr, SocketAddr>,
}

/// What was carried so far: how many packets and bytes, and a digest over when each was sent, whence, whither, how large it
/// was and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Journal {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) digest: u64,
    began: Option<Instant>,
}

impl Journal {
    fn note(&mut self, from: SocketAddr, to: SocketAddr, size: usize, arrivals: &[Option<Delivery>; 2]) {
        let now = Instant::now();
        let began = *self.began.get_or_insert(now);
        let mut hasher = DefaultHasher::new();
        let since = |at: Instant| at.duration_since(began).as_nanos();
        (self.digest, since(now), from, to, size).hash(&mut hasher);
        for copy in arrivals.iter().flatten() {
            (since(copy.arrives), copy.late).hash(&mut hasher);
        }
        self.packets += 1;
        self.bytes += size as u64;
        self.digest = hasher.finish();
    }
}

impl State {
    fn next_seed(&mut self) -> u64 {
        self.seeded += 1;
        // As SplitMix64 does: neighbouring seeds give unlike generators.
        let mut mixed = self.seed.wrapping_add(self.seeded.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn path(&mut self, from: IpAddr, to: IpAddr) -> &mut Path {
        if !self.paths.contains_key(&(from, to)) {
            let path = Path::new(Conditions::calm(DELAY), self.next_seed());
            self.paths.insert((from, to), path);
        }
        self.paths.get_mut(&(from, to)).expect("it was put there")
    }

    /// Where packets to this address come out, if behind a NAT: nowhere, if it does not know them.
    fn inside(&self, to: SocketAddr) -> Option<SocketAddr> {
        let mut behind = self.nats.values().filter(|nat| nat.outside == Some(to.ip())).peekable();
        if behind.peek().is_none() {
            return Some(to);
        }
        behind.flat_map(|nat| &nat.open).find(|(_, public)| **public == to).map(|(private, _)| *private)
    }

    /// Whose packets these seem to be.
    fn outside(&mut self, from: SocketAddr) -> SocketAddr {
        let Some(nat) = self.nats.get_mut(&from.ip()) else { return from };
        let Some(outside) = nat.outside else { return from };
        let ports = &mut self.ports;
        *nat.open.entry(from).or_insert_with(|| {
            *ports += 1;
            SocketAddr::new(outside, 32_768 + *ports)
        })
    }
}

/// One machine of it.
#[derive(Clone)]
pub(crate) struct Host {
    network: Network,
    ip: IpAddr,
    plugged: Arc<AtomicBool>,
    clock: Arc<Clock>,
}

/// A wall clock that goes as fast as tokio's, and may be set.
#[derive(Debug)]
struct Clock {
    began: (Instant, UnixTime),
    /// Seconds ahead of what is right.
    ahead: AtomicI64,
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let (began, at) = self.began;
        let right = at.as_secs() + began.elapsed().as_secs();
        let shown = right.checked_add_signed(self.ahead.load(Ordering::Relaxed))?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(shown)))
    }
}

#[derive(Default)]
struct Mailbox {
    letters: Mutex<Letters>,
}

#[derive(Default)]
struct Letters {
    /// By arrival, and in the order of sending those that arrive at the same time.
    queue: BTreeMap<(Instant, u64), (SocketAddr, Vec<u8>)>,
    count: u64,
    /// When the last one will have arrived.
    busy_until: Option<Instant>,
    reader: Option<Waker>,
}

impl Network {
    /// One whose accidents follow from a seed.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State { seed, ..State::default() })))
    }

    /// From now on one packet comes out of a socket so long after the other.
    pub(crate) fn pace(&self, packet: Duration) {
        self.0.lock().unwrap().packet = packet;
    }

    /// What is between two hosts, in this direction, from now on.
    pub(crate) fn shape(&self, from: &Host, to: &Host, conditions: Conditions) {
        self.0.lock().unwrap().path(from.ip, to.ip).conditions = conditions;
    }

    pub(crate) fn journal(&self) -> Journal {
        self.0.lock().unwrap().journal
    }

    pub(crate) fn host(&self, last: u8) -> Host {
        let ip = IpAddr::from([192, 0, 2, last]);
        let mut state = self.0.lock().unwrap();
        // All clocks of a network are right, until one is set.
        let began = *state.began.get_or_insert_with(|| (Instant::now(), UnixTime::now()));
        let clock = Arc::new(Clock { began, ahead: AtomicI64::new(0) });
        Host { network: self.clone(), ip, plugged: Arc::new(AtomicBool::new(true)), clock }
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
        let (mailbox, copies, from, pace) = {
            let mut state = self.0.lock().unwrap();
            let (Some(to), seen) = (state.inside(to), state.outside(from)) else { return };
            if state.is_udp_blocked || state.cut.contains(&(from.ip(), to.ip())) {
                return;
            }
            let Some(mailbox) = state.mailboxes.get(&to).map(Arc::clone) else { return };
            let copies = state.path(from.ip(), to.ip()).carry(packet.len(), Instant::now());
            state.journal.note(seen, to, packet.len(), &copies);
            (mailbox, copies, seen, state.packet)
        };
        let mut letters = mailbox.letters.lock().unwrap();
        for copy in copies.into_iter().flatten() {
            let turn = letters.busy_until.map_or(copy.arrives, |busy| busy.max(copy.arrives));
            if turn - copy.arrives > QUEUE {
                continue;
            }
            let done = turn + pace;
            letters.busy_until = Some(done);
            letters.count += 1;
            let place = (done + copy.late, letters.count);
            letters.queue.insert(place, (from, packet.to_vec()));
        }
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

    /// Sets its wall clock so many seconds ahead of what is right, or behind.
    pub(crate) fn set_clock(&self, ahead: i64) {
        self.clock.ahead.store(ahead, Ordering::Relaxed);
    }

    /// Puts it behind a NAT with this outer address; one that it is behind already forgets what it knows. Peers see new
    /// addresses, and what they send to the old ones is lost.
    pub(crate) fn rebind(&self, outside: IpAddr) {
        let nat = Nat { outside: Some(outside), open: BTreeMap::new() };
        self.network.0.lock().unwrap().nats.insert(self.ip, nat);
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

    fn seed(&self) -> Option<u64> {
        Some(self.network.0.lock().unwrap().next_seed())
    }

    fn clock(&self) -> Arc<dyn TimeProvider> {
        Arc::clone(&self.clock) as Arc<dyn TimeProvider>
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
                let Some(first) = letters.queue.first_entry().filter(|first| first.key().0 <= now) else { break };
                let (addr, packet) = first.remove();
                buf[..packet.len()].copy_from_slice(&packet);
                let dst_ip = Some(self.address.ip());
                *meta = RecvMeta { addr, len: packet.len(), stride: packet.len(), ecn: None, dst_ip };
                taken += 1;
            }
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
            let Some(((arrives, _), _)) = letters.queue.first_key_value() else { return Poll::Pending };
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
