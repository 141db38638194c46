//! Connections to backends that are kept for the next request.
//!
//! ```text
//! upstream --idle / shared--> Lease --recycle--> idle (HTTP/1) or one stream less (HTTP/2)
//! ```
//!
//! - In: connections whose exchange is over, under a [`Key`].
//! - Out: a live connection under the same key, or none.
//! - Refuses when: the worker or the cluster of the caller has too many already: the connection is closed after its use
//!   instead. A peer chooses the identities that it speaks for, and each has connections of its own.
//! - Never does: give a connection of one caller, cluster or export to another (S-16); keep one whose exchange was cut
//!   short or answered early (S-22); lock across an await.
//! - Numbers: [`IDLE`], [`PER_KEY`], [`PER_WORKER`], [`PART`], [`STREAMS`].
//!
//! Each worker has a pool of its own: a connection is driven by the runtime it was made on.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use linkspan_proto::identity::Source;
use linkspan_proto::names::{ClusterName, ServiceKey};
use linkspan_runtime::task;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::body::RequestBody;
use crate::remote::Admitted;

/// How long a connection may be idle. Below the 75 s of nginx and the like, so that most connections are closed by us and
/// not under a request.
pub(crate) const IDLE: Duration = Duration::from_secs(60);

/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(10);

/// Idle HTTP/1 connections of one key.
const PER_KEY: usize = 128;

/// Connections that one worker keeps: idle ones of HTTP/1, all of HTTP/2. One descriptor each. Half of them at most for the
/// callers of one cluster.
const PER_WORKER: usize = 1024;

/// The part of the process's descriptors that they may be, all workers together where there are not more of them than cores.
/// What is in use is counted as a client's or a peer's stream.
const PART: u64 = 16;

/// The least that is kept.
const LEAST: usize = 16;

/// Streams on one HTTP/2 connection to a backend, where the backend allows more. At 100 a lost packet stops 100 requests
/// and no more, and the connections spread over the backend's threads.
const STREAMS: usize = 100;

/// How long a connection may take to become ready for the next request once its response is complete.
const SETTLE: Duration = Duration::from_secs(5);

/// What a connection may be used again for: the same caller, of the same cluster, at the same endpoint of the same export.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    service: ServiceKey,
    port: u16,
    source: Source,
    cluster: ClusterName,
    address: SocketAddr,
}

impl Key {
    pub(crate) fn new(admitted: &Admitted, address: SocketAddr) -> Self {
        Self {
            service: admitted.service().clone(),
            port: admitted.port().port,
            source: admitted.source().clone(),
            cluster: admitted.cluster().clone(),
            address,
        }
    }

    /// Where it connects to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

thread_local! {
    /// A worker is a thread with a runtime of its own; so is a pool.
    static POOL: Arc<Pool> = Arc::new(Pool::default());
}

/// The connections of one worker.
#[derive(Debug)]
pub(crate) struct Pool(Mutex<Connections>);

#[derive(Debug)]
struct Connections {
    http1: HashMap<Key, Vec<Idle>>,
    http2: HashMap<Key, Vec<Shared>>,
    /// How many are in the two, by cluster of the caller, and how many there may be in all.
    kept: HashMap<ClusterName, usize>,
    limit: usize,
    /// Connects under way, for those who would otherwise begin a second one.
    connecting: HashMap<Key, Arc<Semaphore>>,
    sweeper: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    state: Arc<SharedState>,
}

/// What is known of an HTTP/2 connection.
#[derive(Debug)]
pub(crate) struct SharedState {
    /// Requests under way.
    active: AtomicUsize,
    /// What the backend's SETTINGS allow.
    allowed: AtomicUsize,
    began: Instant,
    /// Milliseconds from `began` to the end of the last request.
    last: AtomicU64,
}

impl SharedState {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            active: AtomicUsize::new(0),
            allowed: AtomicUsize::new(STREAMS),
            began: Instant::now(),
            last: AtomicU64::new(0),
        })
    }

    /// The backend allows so many streams.
    pub(crate) fn allow(&self, streams: usize) {
        self.allowed.store(streams, Ordering::Relaxed);
    }

    fn has_room(&self) -> bool {
        let limit = self.allowed.load(Ordering::Relaxed).clamp(1, STREAMS);
        self.active.load(Ordering::Relaxed) < limit
    }

    fn is_idle(&self, now: Instant) -> bool {
        let last = self.began + Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.active.load(Ordering::Relaxed) == 0 && now.saturating_duration_since(last) >= IDLE
    }
}

/// A connection in use.
#[derive(Debug)]
pub(crate) enum Lease {
    /// It is ours alone until [`Lease::recycle`].
    Http1 {
        /// To send the request with.
        sender: http1::SendRequest<RequestBody>,
        /// Where it goes back to.
        home: Home,
    },
    /// One stream of a shared connection.
    Http2 {
        /// To send the request with.
        sender: http2::SendRequest<RequestBody>,
        /// Counts the stream, as long as it lives.
        _stream: Stream,
    },
}

/// Where a connection goes back to.
#[derive(Debug)]
pub(crate) struct Home {
    pool: Arc<Pool>,
    key: Key,
}

/// One stream in use.
#[derive(Debug)]
pub(crate) struct Stream {
    state: Arc<SharedState>,
}

impl Stream {
    fn begin(state: &Arc<SharedState>) -> Self {
        state.active.fetch_add(1, Ordering::Relaxed);
        Self { state: Arc::clone(state) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let now = u64::try_from(self.state.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.state.last.store(now, Ordering::Relaxed);
        self.state.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What to do for an HTTP/2 connection.
pub(crate) enum Http2 {
    /// Use this one.
    Ready(Lease),
    /// Make one.
    Connect(Connecting),
    /// Somebody makes one: wait until the semaphore is closed, then ask again.
    Wait(Arc<Semaphore>),
}

/// The right to make the one connection that others wait for. They go on when it is dropped.
#[derive(Debug)]
pub(crate) struct Connecting {
    home: Home,
    gate: Arc<Semaphore>,
}

impl Connecting {
    /// The connection stands.
    pub(crate) fn connected(&self, sender: http2::SendRequest<RequestBody>, state: Arc<SharedState>) -> Lease {
        let stream = Stream::begin(&state);
        let Home { pool, key } = &self.home;
        let mut connections = pool.lock();
        if connections.keep(&key.cluster) {
            connections.http2.entry(key.clone()).or_default().push(Shared { sender: sender.clone(), state });
            connections.start_sweeping(pool);
        }
        Lease::Http2 { sender, _stream: stream }
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        let mut connections = self.home.pool.lock();
        if connections.connecting.get(&self.home.key).is_some_and(|gate| Arc::ptr_eq(gate, &self.gate)) {
            connections.connecting.remove(&self.home.key);
        }
        drop(connections);
        // Wakes all who wait.
        self.gate.close();
    }
}

impl Default for Pool {
    fn default() -> Self {
        // What the start has raised it to.
        let descriptors = rlimit::Resource::NOFILE.get_soft().unwrap_or_default();
        // As many workers as cores, unless site.yaml says otherwise.
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let part = usize::try_from(descriptors / PART).unwrap_or(usize::MAX) / workers;
        Self::new(part.clamp(LEAST, PER_WORKER))
    }
}

impl Pool {
    /// A pool of at most `limit` connections.
    pub(crate) fn new(limit: usize) -> Self {
        Self(Mutex::new(Connections {
            http1: HashMap::new(),
            http2: HashMap::new(),
            kept: HashMap::new(),
            limit,
            connecting: HashMap::new(),
            sweeper: None,
        }))
    }

    /// The pool of the worker that calls.
    pub(crate) fn of_this_worker() -> Arc<Self> {
        POOL.with(Arc::clone)
    }

    /// An idle HTTP/1 connection, the one used last: the others then grow old enough to be closed.
    pub(crate) fn idle_http1(self: &Arc<Self>, key: &Key) -> Option<Lease> {
        let mut connections = self.lock();
        let now = Instant::now();
        let list = connections.http1.get_mut(key)?;
        let mut taken = 0;
        let found = loop {
            let Some(idle) = list.pop() else { break None };
            taken += 1;
            // Ready means: the connection's task waits for a request, and has seen no FIN so far.
            if idle.sender.is_ready() && now.duration_since(idle.since) < IDLE {
                break Some(idle.sender);
            }
        };
        if list.is_empty() {
            connections.http1.remove(key);
        }
        connections.forget(&key.cluster, taken);
        found.map(|sender| self.home(key.clone()).lease(sender))
    }

    /// Where connections under this key go.
    pub(crate) fn home(self: &Arc<Self>, key: Key) -> Home {
        Home { pool: Arc::clone(self), key }
    }

    /// An HTTP/2 connection with room for one more stream, or who makes one. `impatient`: never [`Http2::Wait`].
    pub(crate) fn http2(self: &Arc<Self>, key: &Key, impatient: bool) -> Http2 {
        let mut connections = self.lock();
        if let Some(list) = connections.http2.get_mut(key) {
            let before = list.len();
            list.retain(|shared| !shared.sender.is_closed());
            let gone = before - list.len();
            // The fullest that has room: the others can fall idle and go.
            let best = list
                .iter()
                .filter(|shared| shared.state.has_room())
                .max_by_key(|shared| shared.state.active.load(Ordering::Relaxed));
            if let Some(shared) = best {
                let stream = Stream::begin(&shared.state);
                let lease = Lease::Http2 { sender: shared.sender.clone(), _stream: stream };
                connections.forget(&key.cluster, gone);
                return Http2::Ready(lease);
            }
            connections.forget(&key.cluster, gone);
        }
        if !impatient && let Some(gate) = connections.connecting.get(key) {
            return Http2::Wait(Arc::clone(gate));
        }
        let gate = Arc::new(Semaphore::new(0));
        connections.connecting.insert(key.clone(), Arc::clone(&gate));
        drop(connections);
        Http2::Connect(Connecting { home: self.home(key.clone()), gate })
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        // Only this worker's tasks come here, one at a time: it is never waited for.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(self: &Arc<Self>, key: Key, sender: http1::SendRequest<RequestBody>) {
        let mut connections = self.lock();
        let full = connections.http1.get(&key).is_some_and(|list| list.len() >= PER_KEY);
        if !full && connections.keep(&key.cluster) {
            connections.http1.entry(key).or_default().push(Idle { sender, since: Instant::now() });
            connections.start_sweeping(self);
        }
    }
}

impl Connections {
    /// Counts one more, if there is room for it.
    fn keep(&mut self, cluster: &ClusterName) -> bool {
        let (all, own) = (self.kept.values().sum::<usize>(), self.kept.get(cluster).copied().unwrap_or_default());
        let room = all < self.limit && own < self.limit / 2;
        if room {
            self.kept.insert(cluster.clone(), own + 1);
        }
        room
    }

    /// Counts some less.
    fn forget(&mut self, cluster: &ClusterName, gone: usize) {
        if let Some(kept) = self.kept.get_mut(cluster) {
            *kept = kept.saturating_sub(gone);
        }
    }

    /// Starts the task that closes old connections, if none runs. It ends when nothing is left.
    fn start_sweeping(&mut self, pool: &Arc<Pool>) {
        if self.sweeper.as_ref().is_none_or(JoinHandle::is_finished) {
            self.sweeper = Some(task::spawn("http_pool_sweep", sweep(Arc::downgrade(pool))));
        }
    }

    /// Closes what is too old; whether nothing is left.
    fn sweep(&mut self, now: Instant) -> bool {
        self.http1.retain(|_, list| {
            list.retain(|idle| !idle.sender.is_closed() && now.duration_since(idle.since) < IDLE);
            !list.is_empty()
        });
        self.http2.retain(|_, list| {
            list.retain(|shared| !shared.sender.is_closed() && !shared.state.is_idle(now));
            !list.is_empty()
        });
        self.kept.clear();
        let http1 = self.http1.iter().map(|(key, list)| (&key.cluster, list.len()));
        for (cluster, count) in http1.chain(self.http2.iter().map(|(key, list)| (&key.cluster, list.len()))) {
            *self.kept.entry(cluster.clone()).or_default() += count;
        }
        self.http1.is_empty() && self.http2.is_empty()
    }
}

async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut connections = pool.lock();
        if connections.sweep(Instant::now()) {
            // Told under the lock, so that who comes next starts another one.
            connections.sweeper = None;
            return;
        }
    }
}

impl Lease {
    /// The response is complete: the connection may serve the next request, if it can.
    pub(crate) fn recycle(self) {
        // An HTTP/2 stream is over by dropping it.
        let Self::Http1 { mut sender, home } = self else { return };
        if sender.is_ready() {
            home.put(sender);
        } else if !sender.is_closed() {
            // The end of the message is still to be read, or of the request to be written: a moment, or never.
            drop(task::spawn("http_pool_settle", async move {
                if let Ok(Ok(())) = tokio::time::timeout(SETTLE, sender.ready()).await {
                    home.put(sender);
                }
            }));
        }
    }
}

impl Home {
    /// A fresh HTTP/1 connection in use.
    pub(crate) fn lease(self, sender: http1::SendRequest<RequestBody>) -> Lease {
        Lease::Http1 { sender, home: self }
    }

    fn put(self, sender: http1::SendRequest<RequestBody>) {
        self.pool.put(self.key, sender);
    }
}

#[cfg(test)]
mod tests;
