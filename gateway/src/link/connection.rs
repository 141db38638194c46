//! One QUIC connection to a peer, and what is counted on it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::FutureExt;
use linkspan_runtime::task;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::credit::{Allowance, Flow, Window};
use super::datagrams::Datagrams;
use super::{OPEN_TIMEOUT, OpenError, PeerInfo, RecvHalf, SendHalf, congestion};

/// After a goaway for the end of the process, streams that were opened before it arrived are still served for so long.
const SHUT_GRACE: Duration = Duration::from_secs(1);

/// Streams that a peer may have open on one connection at most. Whether they are served is another limit's business
/// ([`super::STREAMS_PER_PEER`]): a peer of one worker has them all on one.
const STREAMS_MOST: u32 = 16_384;

/// Names a connection in the state machine and in logs; unique within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ConnectionId(pub(super) u64);

/// A connection whose peer is authenticated.
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) quinn: quinn::Connection,
    /// The worker on whose runtime it lives. Streams may be opened from any thread, at the price of a hop.
    pub(super) worker: usize,
    /// Replaced when the Link object changes without touching trust.
    pub(super) info: ArcSwap<PeerInfo>,
    pub(super) streams: Arc<Streams>,
    pub(super) flow: Arc<Flow>,
    pub(super) datagrams: Datagrams,
    /// Associations that this side has opened.
    pub(super) associations: AtomicUsize,
    /// Probes go unanswered.
    in_doubt: AtomicBool,
    /// Since when the peer knows that this gateway ends.
    shut: OnceLock<Instant>,
    /// Streams that the peer may have open.
    permitted: AtomicU32,
}

impl Connection {
    /// `permitted`: the streams that the peer may have open, as the handshake said.
    pub(super) fn new(
        id: ConnectionId,
        quinn: quinn::Connection,
        worker: usize,
        info: Arc<PeerInfo>,
        permitted: u32,
    ) -> Self {
        let streams = Arc::new(Streams::default());
        let of_path = quinn.clone();
        let flow = Flow::new(move || of_path.rtt());
        Self {
            id,
            quinn,
            worker,
            info: ArcSwap::new(info),
            streams,
            flow,
            datagrams: Datagrams::new(),
            associations: AtomicUsize::new(0),
            in_doubt: AtomicBool::new(false),
            shut: OnceLock::new(),
            permitted: AtomicU32::new(permitted),
        }
    }

    /// Permits more streams when three quarters of what the peer may have may be in use. quinn 0.11 pays for each that is
    /// permitted, used or not, so a connection begins with few.
    pub(super) fn permit(&self) {
        let permitted = self.permitted.load(Ordering::Relaxed);
        if permitted < STREAMS_MOST && self.streams.halves() / 2 >= permitted as usize / 4 * 3 {
            let more = permitted.saturating_mul(2).min(STREAMS_MOST);
            self.permitted.store(more, Ordering::Relaxed);
            self.quinn.set_max_concurrent_bi_streams(more.into());
        }
    }

    /// Takes in whether probes go unanswered.
    pub(super) fn doubt(&self, in_doubt: bool) {
        self.in_doubt.store(in_doubt, Ordering::Relaxed);
    }

    /// Makes room beyond a full congestion window for a probe or for the answer to one, if the path is in doubt. To be
    /// called right before it is written: bulk data takes whatever room there is.
    pub(super) fn make_room(&self) {
        if self.in_doubt.load(Ordering::Relaxed) {
            congestion::nudge(&self.quinn);
        }
    }

    /// The peer is told that this gateway ends.
    pub(super) fn shut(&self) {
        // A second time changes nothing: the first counts.
        self.shut.get_or_init(Instant::now);
    }

    /// Whether the peer should know by now that no new streams are welcome.
    pub(super) fn is_shut(&self) -> bool {
        self.shut.get().is_some_and(|since| since.elapsed() >= SHUT_GRACE)
    }

    /// A stream, if the peer's credit allows one now.
    pub(super) fn try_open(&self) -> Option<Result<(SendHalf, RecvHalf), OpenError>> {
        let opened = self.quinn.open_bi().now_or_never()?;
        Some(self.opened(opened))
    }

    /// A stream, waiting for credit for [`OPEN_TIMEOUT`].
    pub(super) async fn open(&self) -> Result<(SendHalf, RecvHalf), OpenError> {
        match tokio::time::timeout(OPEN_TIMEOUT, self.quinn.open_bi()).await {
            Ok(opened) => self.opened(opened),
            Err(_) => Err(OpenError::Overloaded),
        }
    }

    fn opened(
        &self,
        opened: Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>,
    ) -> Result<(SendHalf, RecvHalf), OpenError> {
        let (send, recv) = opened.map_err(|_| OpenError::LinkLost)?;
        Ok(self.halves(send, recv))
    }

    /// The two halves of a stream of this connection, whoever opened it.
    pub(super) fn halves(&self, send: quinn::SendStream, recv: quinn::RecvStream) -> (SendHalf, RecvHalf) {
        let id = u64::from(send.id());
        let allowance = Allowance::new(Arc::clone(&self.flow), id);
        let window = Window::new(Arc::clone(&self.flow), id);
        (SendHalf::new(send, allowance, self.streams.count()), RecvHalf::new(recv, window, self.streams.count()))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id.0).field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// The open halves of one connection's streams. A draining connection is closed when there are none left.
#[derive(Debug, Default)]
pub(super) struct Streams {
    halves: AtomicUsize,
    draining: AtomicBool,
    idle: Notify,
}

impl Streams {
    /// Counts one more half.
    pub(super) fn count(self: &Arc<Self>) -> StreamCount {
        self.halves.fetch_add(1, Ordering::Relaxed);
        StreamCount { streams: Arc::clone(self) }
    }

    /// From now on finished streams are waited for until the peer has acknowledged them.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Resolves when no half is left.
    pub(super) async fn idle(&self) {
        loop {
            // Registered before the count is read, or the last half's wake could fall between the two.
            let woken = self.idle.notified();
            if self.halves.load(Ordering::Acquire) == 0 {
                return;
            }
            woken.await;
        }
    }

    /// Halves that are open, of streams of both sides.
    fn halves(&self) -> usize {
        self.halves.load(Ordering::Relaxed)
    }

    /// Whether no half is left.
    pub(super) fn is_idle(&self) -> bool {
        self.halves.load(Ordering::Acquire) == 0
    }
}

/// One counted half.
#[derive(Debug)]
pub(super) struct StreamCount {
    streams: Arc<Streams>,
}

impl StreamCount {
    /// A half that nobody counts.
    pub(super) fn none() -> Self {
        Arc::new(Streams::default()).count()
    }

    /// Whether the connection waits for its streams to end.
    pub(super) fn is_draining(&self) -> bool {
        self.streams.draining.load(Ordering::Acquire)
    }

    /// Keeps counting until `acknowledged` resolves.
    pub(super) fn linger<F>(&self, acknowledged: F)
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        // Outside a runtime (a process that is ending) nobody waits for the count.
        if tokio::runtime::Handle::try_current().is_ok() {
            let count = self.streams.count();
            // Detached: ends with the acknowledgement or with the connection.
            drop(task::spawn("link_linger", async move {
                acknowledged.await;
                drop(count);
            }));
        }
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        if self.streams.halves.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.streams.idle.notify_waiters();
        }
    }
}
