//! How much of a stream may be under way: credit that follows the reader.
//!
//! QUIC's own stream window is one size for all: large enough for one fast reader across an ocean (12 MiB) it lets a handful of
//! readers who do not read hold all that a peer may have here, and then every other stream of the link waits. quinn 0.11
//! cannot change it for a stream. So it is only the outer bound, and both sides keep a smaller one that begins at [`FIRST`]:
//!
//! ```text
//! sender                                          receiver
//!   at most FIRST bytes ----------------------->    reads half of what was granted
//!   may go on <-- control stream: Credit ----------  tells how far the sender may go now
//!                                                    and doubles the window where the reader kept up
//! ```
//!
//! - In: bytes given to QUIC and bytes read from it; the peer's credits.
//! - Out: how much may be written now; what the peer is to be told.
//! - Refuses when: never. A peer that sends more than it may is bounded by QUIC's windows; one that grants too much hurts itself.
//! - Never does: cost a short stream anything: below half of [`FIRST`] nothing is told and nothing is registered.
//! - Numbers: [`FIRST`], [`MOST`], [`HELD`].

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Bytes that may be sent before the first credit: what a reader who does not read costs at most (F-27), and more than is
/// under way within a data centre: 5 Gbit/s at 0.2 ms. Part of the protocol: both sides begin with it.
pub(super) const FIRST: u64 = 128 * 1024;

/// The largest window of a reader who keeps up: 700 Mbit/s at 50 ms, where one packet in a hundred is lost and those behind it
/// wait for two round trips and more.
pub(super) const MOST: u64 = 12 * 1024 * 1024;

/// Bytes that were read from sockets and wait for one connection's send window, at which no more are read: when the
/// connection takes nothing more from anybody, a chunk in each hand would be the larger part of what its peer costs (S-29).
const HELD: usize = 512 * 1024;

/// The credit of all streams of one connection, both ways.
pub(super) struct Flow {
    rtt: Box<dyn Fn() -> Duration + Send + Sync>,
    /// How far our streams may go, by stream id; only those that need to know.
    grants: Mutex<HashMap<u64, Arc<Grant>>>,
    /// What the peer is to be told, by stream id: the newest of each counts.
    owed: Mutex<BTreeMap<u64, u64>>,
    telling: Notify,
    /// Bytes that were read from all streams, and given to QUIC for all of them.
    read: AtomicU64,
    sent: AtomicU64,
    /// Bytes that wait for the connection's window, and who waits until they are fewer than [`HELD`].
    held: AtomicUsize,
    eased: Notify,
}

/// Bytes in the hand of somebody who waits for the connection's window, until dropped.
#[derive(Debug)]
pub(super) struct Held<'a> {
    flow: &'a Flow,
    bytes: usize,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let before = self.flow.held.fetch_sub(self.bytes, Ordering::AcqRel);
        if before >= HELD && before - self.bytes < HELD {
            self.flow.eased.notify_waiters();
        }
    }
}

#[derive(Debug)]
struct Grant {
    /// Bytes since the stream's first.
    limit: AtomicU64,
    waker: AtomicWaker,
}

impl Flow {
    /// `rtt` gives the connection's round trip at any moment; asked once for each credit.
    pub(super) fn new(rtt: impl Fn() -> Duration + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            rtt: Box::new(rtt),
            grants: Mutex::default(),
            owed: Mutex::default(),
            telling: Notify::new(),
            read: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            held: AtomicUsize::new(0),
            eased: Notify::new(),
        })
    }

    fn rtt(&self) -> Duration {
        (self.rtt)()
    }

    /// Bytes that were read from the connection's streams so far, and given to QUIC for them.
    pub(super) fn passed(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.sent.load(Ordering::Relaxed))
    }

    /// So many bytes wait for the connection's window.
    fn hold(&self, bytes: usize) -> Held<'_> {
        self.held.fetch_add(bytes, Ordering::AcqRel);
        Held { flow: self, bytes }
    }

    fn is_eased(&self) -> bool {
        self.held.load(Ordering::Acquire) < HELD
    }

    /// Waits until fewer than [`HELD`] bytes wait for the connection's window. Cancel-safe.
    async fn eased(&self) {
        loop {
            // Registered before the look: what is let go between the two wakes.
            let eased = self.eased.notified();
            if self.is_eased() {
                return;
            }
            eased.await;
        }
    }

    /// Takes in a credit of the peer. One for a stream that is over, or never was, changes nothing.
    pub(super) fn granted(&self, stream: u64, limit: u64) {
        let grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(grant) = grants.get(&stream) {
            // Credits of one stream come in order; a smaller one would be the peer's mistake.
            grant.limit.fetch_max(limit, Ordering::Release);
            grant.waker.wake();
        }
    }

    /// The next credit for the peer. Cancel-safe.
    pub(super) async fn next(&self) -> (u64, u64) {
        loop {
            // Registered before the look, or what comes between the two would wait for the one after it.
            let told = self.telling.notified();
            let first = self.owed.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
            if let Some(credit) = first {
                return credit;
            }
            told.await;
        }
    }

    fn owe(&self, stream: u64, limit: u64) {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).insert(stream, limit);
        self.telling.notify_one();
    }

    fn register(self: &Arc<Self>, stream: u64) -> Registered {
        let grant = Arc::new(Grant { limit: AtomicU64::new(FIRST), waker: AtomicWaker::new() });
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        grants.insert(stream, Arc::clone(&grant));
        drop(grants);
        Registered { flow: Arc::clone(self), stream, grant }
    }

    #[cfg(test)]
    pub(super) fn registered(&self) -> usize {
        self.grants.lock().unwrap().len()
    }
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow").finish_non_exhaustive()
    }
}

/// A stream that hears of its credit, until dropped.
#[derive(Debug)]
struct Registered {
    flow: Arc<Flow>,
    stream: u64,
    grant: Arc<Grant>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.flow.grants.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.stream);
    }
}

/// How far a sending half may go.
#[derive(Debug)]
pub(super) struct Allowance {
    flow: Arc<Flow>,
    stream: u64,
    sent: u64,
    registered: Option<Registered>,
}

impl Allowance {
    pub(super) fn new(flow: Arc<Flow>, stream: u64) -> Self {
        Self { flow, stream, sent: 0, registered: None }
    }

    /// How many of `wanted` bytes may be sent now. 0: [`Self::poll_more`] tells when to ask again.
    pub(super) fn room(&mut self, wanted: usize) -> usize {
        let more = wanted as u64;
        // The receiver grants nothing before it has read half: whoever sends less need not listen. Before it is sent, or the
        // credit would come to nobody, and no other would follow.
        if self.registered.is_none() && self.sent + more >= FIRST / 2 {
            self.registered = Some(self.flow.register(self.stream));
        }
        let left = self.limit().saturating_sub(self.sent);
        usize::try_from(left).unwrap_or(usize::MAX).min(wanted)
    }

    /// How many bytes may be sent before the next credit comes.
    pub(super) fn left(&self) -> usize {
        usize::try_from(self.limit().saturating_sub(self.sent)).unwrap_or(usize::MAX)
    }

    /// So many bytes were read for this stream and wait for the connection's window.
    pub(super) fn hold(&self, bytes: usize) -> Held<'_> {
        self.flow.hold(bytes)
    }

    /// Whether what others have read for this connection is less than it may be.
    pub(super) fn is_eased(&self) -> bool {
        self.flow.is_eased()
    }

    /// Waits until what others have read for this connection is less than it may be. Cancel-safe.
    pub(super) async fn eased(&self) {
        self.flow.eased().await;
    }

    /// So many bytes were sent.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.flow.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Ready when more may be sent.
    pub(super) fn poll_more(&self, cx: &Context<'_>) -> Poll<()> {
        if let Some(registered) = &self.registered {
            // Before the look: a credit that comes between the two wakes.
            registered.grant.waker.register(cx.waker());
        }
        if self.limit() > self.sent { Poll::Ready(()) } else { Poll::Pending }
    }

    fn limit(&self) -> u64 {
        self.registered.as_ref().map_or(FIRST, |registered| registered.grant.limit.load(Ordering::Acquire))
    }
}

/// What a receiving half has granted.
#[derive(Debug)]
pub(super) struct Window {
    flow: Arc<Flow>,
    stream: u64,
    read: u64,
    granted: u64,
    size: u64,
    last: Option<Instant>,
}

impl Window {
    pub(super) fn new(flow: Arc<Flow>, stream: u64) -> Self {
        Self { flow, stream, read: 0, granted: FIRST, size: FIRST, last: None }
    }

    /// Takes in that so many bytes were read.
    pub(super) fn read(&mut self, bytes: usize) {
        self.read += bytes as u64;
        self.flow.read.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.granted.saturating_sub(self.read) > self.size / 2 {
            return;
        }
        let now = Instant::now();
        // Half a window within two round trips: the window is what holds the sender up, or will soon.
        if self.last.is_none_or(|last| now - last < self.flow.rtt() * 2) {
            self.size = (self.size * 2).min(MOST);
        }
        self.last = Some(now);
        self.granted = self.read + self.size;
        self.flow.owe(self.stream, self.granted);
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // A credit for a stream that is over is of no use; kept, they would be as many as the streams of a peer that does
        // not listen.
        if self.granted > FIRST {
            self.flow.owed.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.stream);
        }
    }
}

#[cfg(test)]
mod tests;
