//! One flow of the egress side: what its client sends goes one way, what comes back goes to the client.
//!
//! While the way is not settled yet (the cluster has not answered) datagrams are sent on it at once all the same, and the first
//! of them are kept for the case that another cluster must be tried.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::moved::Moved;
use super::socket::Socket;
use super::table::Spare;
use super::{KEPT, KEPT_BYTES};
use crate::link::{Outlet, Sink};
use crate::outcome::Loss;

/// Where a client's datagrams go.
#[derive(Debug)]
pub(super) enum Way {
    /// To a peer.
    Link(Outlet),
    /// To a backend of this cluster.
    Backend(Arc<Socket>, SocketAddr),
}

impl Way {
    fn send(&self, payload: &[u8]) -> Result<(), Loss> {
        match self {
            Self::Link(outlet) => outlet.send(payload),
            Self::Backend(socket, address) => socket.send(payload, *address, None),
        }
    }
}

/// One flow.
#[derive(Debug)]
pub(super) struct Flow {
    /// As the socket knows the client, and as it is answered.
    pub(super) client: SocketAddr,
    /// Among the flows of its socket.
    pub(super) number: u64,
    pub(super) moved: Moved,
    /// Cancelled when it must end: it gives way, or its socket is closed.
    pub(super) ended: CancellationToken,
    socket: Arc<Socket>,
    /// Our address that the client knows, where the socket has several.
    from: Option<IpAddr>,
    settled: OnceLock<Way>,
    opening: Mutex<Opening>,
    /// Nothing is carried any more.
    over: AtomicBool,
}

/// Until the way is settled.
#[derive(Debug, Default)]
struct Opening {
    way: Option<Way>,
    kept: Vec<Bytes>,
    bytes: usize,
    /// How many of those that are kept were sent at least once.
    sent: usize,
}

impl Flow {
    pub(super) fn new(
        number: u64,
        client: SocketAddr,
        socket: Arc<Socket>,
        from: Option<IpAddr>,
        now: Instant,
    ) -> Self {
        Self {
            client,
            number,
            moved: Moved::new(now),
            ended: CancellationToken::new(),
            socket,
            from,
            settled: OnceLock::new(),
            opening: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }

    /// The client has sent a datagram.
    pub(super) fn forward(&self, payload: &[u8], now: Instant) {
        self.moved.touch(now);
        match self.settled.get() {
            _ if self.is_over() => self.moved.lose(Loss::Refused, 1),
            Some(way) => self.count(payload.len(), way.send(payload)),
            None => self.forward_early(payload),
        }
    }

    /// A way to try: everything that is kept goes there, and what comes from now on.
    pub(super) fn try_way(&self, way: Way) {
        let mut opening = self.opening();
        for (index, payload) in opening.kept.iter().enumerate() {
            let sent = way.send(payload);
            if index >= opening.sent {
                self.count(payload.len(), sent);
            }
        }
        opening.sent = opening.kept.len();
        opening.way = Some(way);
    }

    /// The way that was tried is the one.
    pub(super) fn settle(&self) {
        let mut opening = self.opening();
        if let Some(way) = std::mem::take(&mut *opening).way {
            // Nobody settles twice: only the flow's own task does.
            drop(self.settled.set(way));
        }
    }

    /// It is over. What was kept and never sent is lost, and so is what still comes where there was no way.
    pub(super) fn give_up(&self) {
        let mut opening = self.opening();
        self.moved.lose(Loss::Refused, (opening.kept.len() - opening.sent) as u64);
        *opening = Opening::default();
        self.over.store(true, Ordering::Release);
    }

    /// Whether nothing is carried any more.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn forward_early(&self, payload: &[u8]) {
        let mut opening = self.opening();
        match self.settled.get() {
            Some(way) => self.count(payload.len(), way.send(payload)),
            None if self.is_over() => self.moved.lose(Loss::Refused, 1),
            None => opening.forward(self, payload),
        }
    }

    fn opening(&self) -> MutexGuard<'_, Opening> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, bytes: usize, sent: Result<(), Loss>) {
        match sent {
            Ok(()) => self.moved.forth(bytes),
            Err(why) => self.moved.lose(why, 1),
        }
    }
}

impl Opening {
    fn forward(&mut self, flow: &Flow, payload: &[u8]) {
        let keeps = self.kept.len() < KEPT && self.bytes + payload.len() <= KEPT_BYTES;
        if keeps {
            self.kept.push(Bytes::copy_from_slice(payload));
            self.bytes += payload.len();
        }
        match &self.way {
            Some(way) => {
                flow.count(payload.len(), way.send(payload));
                self.sent = self.kept.len();
            }
            None if keeps => {}
            None => flow.moved.lose(Loss::QueueFull, 1),
        }
    }
}

impl Sink for Flow {
    /// The service has sent a datagram.
    fn deliver(&self, payload: &[u8]) {
        match self.socket.send(payload, self.client, self.from) {
            Ok(()) => self.moved.back(payload.len(), Instant::now()),
            Err(why) => self.moved.lose(why, 1),
        }
    }
}

impl Spare for Flow {
    fn spare_for(&self, now: Instant) -> Option<Duration> {
        self.moved.spare_for(now)
    }

    fn end(&self) {
        self.ended.cancel();
    }
}
