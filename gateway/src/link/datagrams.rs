//! Datagrams of associations: unreliable, unordered, beside the streams of the same connection.
//!
//! ```text
//! association --Outlet::send--> [ gate ] --> quinn's queue ==QUIC DATAGRAM==> demultiplexer --> Sink of the flow
//!                                                                                |-> kept, until its stream has its header
//! ```
//!
//! - In: payloads of flows; datagrams of the connection.
//! - Out: each datagram to the [`Sink`] of its flow, on the connection's own worker, without a queue in between.
//! - Refuses when: a payload does not fit (`oversize`), there is no room or the streams have to be let through
//!   (`queue_full`), nobody knows the flow (`unknown_flow`). All are counted, none is an error of the connection.
//! - Never does: fragment, wait, drop what is queued already in favour of what comes: which were counted would not be known.
//! - Numbers: [`SEND_BUFFER`], [`RECEIVE_BUFFER`], [`BATCH`], [`REPORT_EVERY`]; see [`gate`] and [`flows`].

use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::FutureExt;
use linkspan_proto::datagram::{self, FlowPrefix, PAYLOAD_MAX};
use quinn::SendDatagramError;
use tokio::time::Instant;

use super::connection::Connection;
use super::pool::{PeerLink, Shared};
use crate::outcome::{Direction, Loss};

mod flows;
mod gate;

use flows::{Flows, Taken};
use gate::Gate;

/// Datagrams of one connection that wait to be sent: some 16 ms of 500 Mbit/s. The [`gate`] lets in less where the path is
/// slow, so that this is no second of waiting on any.
pub(super) const SEND_BUFFER: usize = 1024 * 1024;

/// Datagrams of one connection that came and were not looked at yet; what a hostile peer can make us hold beside the streams.
/// The demultiplexer runs between two reads of the socket, which bring some 200 KiB.
pub(super) const RECEIVE_BUFFER: usize = 2 * 1024 * 1024;

/// Datagrams that are given out in one go, before other tasks of the worker have their turn.
const BATCH: usize = 64;

/// Payloads are put behind their prefix in pieces of this memory: one allocation for some twenty full datagrams. The queue
/// counts what is in use of it; what it holds beside that is one piece more for each that is not used up.
const ARENA_LEN: usize = 32 * 1024;

thread_local! {
    static ARENA: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// What the transport has dropped by itself is asked for at most so often.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Takes the datagrams of one flow. Called on the worker of the connection, for every datagram: must not block.
pub trait Sink: Send + Sync + 'static {
    /// One payload, which may be empty.
    fn deliver(&self, payload: &[u8]);
}

/// The datagrams of one connection.
pub(super) struct Datagrams {
    flows: Mutex<Flows<Arc<dyn Sink>>>,
    gate: Mutex<Gate>,
}

impl Datagrams {
    pub(super) fn new() -> Self {
        Self { flows: Mutex::new(Flows::default()), gate: Mutex::new(Gate::default()) }
    }

    fn flows(&self) -> MutexGuard<'_, Flows<Arc<dyn Sink>>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One association's share of its connection's datagrams, as long as it lives.
#[derive(Debug)]
pub struct Association {
    outlet: Outlet,
    /// Opened by this side, so it counts.
    is_ours: bool,
}

/// Sends datagrams of one flow. Cheap to clone.
#[derive(Clone)]
pub struct Outlet {
    connection: Arc<Connection>,
    flow: u64,
    prefix: FlowPrefix,
}

impl Association {
    pub(super) fn new(connection: &Arc<Connection>, stream: quinn::StreamId) -> Self {
        let flow = u64::from(quinn::VarInt::from(stream));
        let outlet = Outlet { connection: Arc::clone(connection), flow, prefix: FlowPrefix::new(flow) };
        Self { outlet, is_ours: false }
    }

    /// Of a stream that this side has opened.
    pub(super) fn outbound(connection: &Arc<Connection>, stream: quinn::StreamId) -> Self {
        connection.associations.fetch_add(1, Ordering::Relaxed);
        let mut association = Self::new(connection, stream);
        association.is_ours = true;
        association
    }

    /// Where to send.
    #[must_use]
    pub fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    /// From now on `sink` gets what comes; what came before the stream's header did, at once.
    pub fn take(&self, sink: Arc<dyn Sink>) {
        let early = self.outlet.connection.datagrams.flows().bind(self.outlet.flow, Arc::clone(&sink));
        early.iter().for_each(|payload| sink.deliver(payload));
    }

    /// Ends it before anybody took it. Says how many datagrams have come in vain.
    #[must_use]
    pub fn refuse(self) -> u64 {
        self.outlet.connection.datagrams.flows().unbind(self.outlet.flow)
    }
}

impl Drop for Association {
    fn drop(&mut self) {
        let connection = &self.outlet.connection;
        connection.datagrams.flows().unbind(self.outlet.flow);
        if self.is_ours {
            connection.associations.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Outlet {
    /// Sends one payload.
    ///
    /// # Errors
    /// With the reason for which it is lost.
    pub fn send(&self, payload: &[u8]) -> Result<(), Loss> {
        if payload.len() > PAYLOAD_MAX {
            return Err(Loss::Oversize);
        }
        let quinn = &self.connection.quinn;
        let length = self.prefix.as_bytes().len() + payload.len();
        let room = quinn.datagram_send_buffer_space();
        // Nobody but the flows of this connection holds it, for a comparison or two.
        let mut gate = self.connection.datagrams.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = gate.admit(room, length, Instant::now(), || pace(quinn));
        drop(gate);
        if !admitted {
            // Where both hold, the size says more: it does not pass by itself.
            let too_large = quinn.max_datagram_size().is_some_and(|most| length > most);
            return Err(if too_large { Loss::Oversize } else { Loss::QueueFull });
        }
        quinn.send_datagram(self.frame(payload)).map_err(|error| match error {
            SendDatagramError::TooLarge => Loss::Oversize,
            SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled => Loss::Refused,
            SendDatagramError::ConnectionLost(_) => Loss::LinkLost,
        })
    }

    /// A payload in the form in which it is sent, in memory that many share.
    fn frame(&self, payload: &[u8]) -> Bytes {
        let prefix = self.prefix.as_bytes();
        let length = prefix.len() + payload.len();
        ARENA.with_borrow_mut(|arena| {
            if arena.capacity() < length {
                arena.reserve(length.max(ARENA_LEN));
            }
            arena.put_slice(prefix);
            arena.put_slice(payload);
            arena.split().freeze()
        })
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("flow", &self.flow).finish_non_exhaustive()
    }
}

/// Bytes a second that the congestion controller allows now.
fn pace(quinn: &quinn::Connection) -> u64 {
    let window = quinn.stats().path.cwnd;
    let micros = u64::try_from(quinn.rtt().as_micros()).unwrap_or(u64::MAX).max(1);
    window.saturating_mul(1_000_000) / micros
}

/// Gives out what comes, until the connection is gone.
pub(super) async fn demultiplex(shared: &Shared, link: &PeerLink, connection: &Connection) {
    let quinn = &connection.quinn;
    let ours = u64::from(quinn.side().is_server());
    let mut batch: Vec<Bytes> = Vec::with_capacity(BATCH);
    let mut report = Report { read: 0, dropped: 0, due: Instant::now() + REPORT_EVERY };
    loop {
        let due = connection.datagrams.flows().due();
        let expiry = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            datagram = quinn.read_datagram() => match datagram {
                Ok(datagram) => batch.push(datagram),
                // The associations end with their streams.
                Err(_) => return,
            },
            () = expiry => {
                let lost = connection.datagrams.flows().expire(Instant::now());
                shared.config.observer.lost(&link.cluster, Direction::Inbound, Loss::UnknownFlow, lost);
                continue;
            }
        }
        while batch.len() < BATCH
            && let Some(Ok(datagram)) = quinn.read_datagram().now_or_never()
        {
            batch.push(datagram);
        }
        report.read += batch.len() as u64;
        let is_all = batch.len() < BATCH;
        let losses = give_out(connection, ours, &mut batch);
        for (direction, why, count) in losses {
            shared.config.observer.lost(&link.cluster, direction, why, count);
        }
        if is_all {
            report.look(shared, link, quinn);
        }
        // The connection's own task, which sends what was answered, comes before the next batch.
        tokio::task::yield_now().await;
    }
}

/// What the transport dropped, because nobody took it in time.
struct Report {
    read: u64,
    dropped: u64,
    due: Instant,
}

impl Report {
    /// To be called when all was read that had come: what is missing then was dropped.
    fn look(&mut self, shared: &Shared, link: &PeerLink, quinn: &quinn::Connection) {
        let now = Instant::now();
        if now < self.due {
            return;
        }
        self.due = now + REPORT_EVERY;
        let dropped = quinn.stats().frame_rx.datagram.saturating_sub(self.read);
        let more = dropped.saturating_sub(self.dropped);
        self.dropped = self.dropped.max(dropped);
        shared.config.observer.lost(&link.cluster, Direction::Inbound, Loss::QueueFull, more);
    }
}

/// Gives out a batch, looking a flow up once for all of its datagrams in a row. Says what was lost.
fn give_out(connection: &Connection, ours: u64, batch: &mut Vec<Bytes>) -> [(Direction, Loss, u64); 4] {
    let (mut malformed, mut full) = (0, 0);
    // Of flows that the peer opened, and of our own.
    let mut unknown = [0, 0];
    let mut last: Option<(u64, Arc<dyn Sink>)> = None;
    for datagram in batch.drain(..) {
        let Some((flow, payload)) = datagram::split(datagram) else {
            malformed += 1;
            continue;
        };
        if let Some((_, sink)) = last.as_ref().filter(|(known, _)| *known == flow) {
            sink.deliver(&payload);
            continue;
        }
        // Bit 0 of a stream id says who opened it (RFC 9000 section 2.1).
        let is_ours = flow & 1 == ours;
        let taken = connection.datagrams.flows().take(flow, payload, is_ours, Instant::now());
        match taken {
            Taken::By(sink, payload) => {
                sink.deliver(&payload);
                last = Some((flow, sink));
            }
            Taken::Kept => {}
            Taken::Full => full += 1,
            Taken::Unknown => unknown[usize::from(is_ours)] += 1,
        }
    }
    [
        (Direction::Inbound, Loss::Malformed, malformed),
        (Direction::Inbound, Loss::QueueFull, full),
        (Direction::Inbound, Loss::UnknownFlow, unknown[0]),
        (Direction::Outbound, Loss::UnknownFlow, unknown[1]),
    ]
}

/// Associations that a connection has of our own making. Most of the streams that a peer permits stay for connections and
/// requests.
pub(super) fn is_full(connection: &Connection) -> bool {
    connection.associations.load(Ordering::Relaxed) >= ASSOCIATIONS
}

/// See [`is_full`]; half of what one connection permits.
pub(super) const ASSOCIATIONS: usize = 512;

#[cfg(test)]
mod tests;
