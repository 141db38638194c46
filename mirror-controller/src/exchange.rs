//! Stage 3: our catalogue to every peer, and every peer's catalogue to us.
//!
//! The gateway carries the bytes: for each link and direction it connects to `exchange.sock`, says who is at the other
//! end, and pipes. Each pipe is one HTTP/2 connection with at most one gRPC call on it.
//!
//! ```text
//! exchange.sock -> pipe -- role publisher --> server --- one session::Publisher for each pipe that is used
//!                     \--- role subscriber -> client --- one session::Subscriber for each peer, whatever pipes come and go
//! ```
//!
//! Every gateway of ours keeps a pipe to each peer. The subscriber uses one of them; the others wait, open and without a call,
//! and the newest takes over when that one ends. A new pipe never ends another: with two gateways they would end each other for
//! ever. One that is dead without a word is found out by silence or by an unanswered ping.
//!
//! - **In**: snapshots of the catalog; pipes.
//! - **Out**: [`Peers`]: the newest effective catalogue of each linked peer, and how current it is.
//! - **Refuses when**: a pipe is for a cluster that is not linked; whatever [`session::Violation`] lists.
//! - **Never does**: take the absence of a peer for the absence of its services.
//! - **Numbers**: [`pipe::PREAMBLE`], [`pipe::WAITING_MAX`], [`pipe::PIPES_MAX`], [`store::SAVE_INTERVAL`], and those of [`session`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use linkspan_proto::names::ClusterName;
use linkspan_runtime::drain::Signal;
use linkspan_runtime::task;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::catalog::Snapshot;
use crate::door::Door;

// The subscribing side.
pub mod client;
// Connections on `exchange.sock`.
pub mod pipe;
// The publishing side.
pub mod server;
// The protocol, without I/O.
pub mod session;
// Last good catalogues on disk.
pub mod store;

mod metrics;

pub use metrics::Metrics;
pub use session::{Catalogue, Entries, Feed, Freshness, View};

/// Pipes on their way to a peer's task, which takes them at once; a gateway whose pipe finds no place opens another.
const PIPES: usize = 4;

/// Now, through tokio, so that tests can pause it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A peer's catalogue and how it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerState {
    /// Its catalogue.
    pub view: View,
    /// Whether a pipe stands.
    pub connected: bool,
    /// When the catalogue was last confirmed, seconds since the Unix epoch.
    pub confirmed_unix: Option<u64>,
    /// Why the last session ended, if it did: a reason for conditions and a sentence.
    pub trouble: Option<(&'static str, String)>,
}

/// All linked peers.
pub type Peers = BTreeMap<ClusterName, Arc<PeerState>>;

/// What the exchange needs from outside.
#[derive(Debug)]
pub struct Context {
    /// Our cluster.
    pub own: ClusterName,
    /// Where last good catalogues are kept.
    pub store: store::Store,
    /// Whether nobody else follows the peers while this controller does not: on a site. On Kubernetes another controller may
    /// have led since a catalogue was saved here.
    pub sole: bool,
    /// Figures.
    pub metrics: Metrics,
    /// The end.
    pub signal: Signal,
}

/// Runs until the drain: publishes `snapshots` to peers, and what peers say to `peers`.
///
/// `snapshots` must hold a complete state already: an empty one would tell every peer that we export nothing.
pub async fn run(
    context: Context,
    door: impl Into<Door>,
    mut snapshots: watch::Receiver<Snapshot>,
    peers: watch::Sender<Arc<Peers>>,
) {
    let context = Arc::new(context);
    let snapshot = snapshots.borrow_and_update().clone();
    let feed = watch::Sender::new(Arc::new(Feed::new(epoch(), snapshot.exported.clone())));
    context.metrics.published(feed.borrow().current());
    let table = pipe::Table::default();
    let mut followers =
        Followers { context: Arc::clone(&context), table: table.clone(), peers, running: BTreeMap::new() };
    context.store.retain(snapshot.peers.keys());
    followers.settle(&snapshot);
    let accepting = task::vital(
        "exchange_accept",
        &context.signal,
        pipe::accept(Arc::clone(&context), door.into(), table, feed.subscribe()),
    );
    loop {
        tokio::select! {
            changed = snapshots.changed() => {
                if changed.is_err() {
                    break;
                }
                let snapshot = snapshots.borrow_and_update().clone();
                feed.send_if_modified(|feed| {
                    let changed = Arc::make_mut(feed).publish(snapshot.exported.clone());
                    if changed {
                        context.metrics.published(feed.current());
                    }
                    changed
                });
                followers.settle(&snapshot);
            }
            () = context.signal.draining() => break,
        }
        // A version costs a hash over all entries, and peers are not told more often anyway (F-44): the first change goes
        // on at once, those that follow within the interval together.
        tokio::select! {
            () = tokio::time::sleep(session::CHANGE_INTERVAL) => {}
            () = context.signal.draining() => break,
        }
    }
    followers.stop().await;
    accepting.abort();
}

/// One task for each linked peer.
struct Followers {
    context: Arc<Context>,
    table: pipe::Table,
    peers: watch::Sender<Arc<Peers>>,
    running: BTreeMap<ClusterName, Follower>,
}

struct Follower {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Followers {
    /// Follows exactly the linked peers. A peer that is no longer linked is forgotten, its catalogue with it.
    fn settle(&mut self, snapshot: &Snapshot) {
        let gone: Vec<_> =
            self.running.keys().filter(|cluster| !snapshot.peers.contains_key(*cluster)).cloned().collect();
        for cluster in gone {
            if let Some(follower) = self.running.remove(&cluster) {
                follower.task.abort();
            }
            self.table.remove(&cluster);
            self.context.store.remove(&cluster);
            self.context.metrics.forget(&cluster);
            self.peers.send_modify(|peers| drop(Arc::make_mut(peers).remove(&cluster)));
            tracing::info!(peer = %cluster, "link removed; its catalogue is forgotten");
        }
        for cluster in snapshot.peers.keys() {
            if !self.running.contains_key(cluster) {
                self.start(cluster.clone());
            }
        }
    }

    fn start(&mut self, cluster: ClusterName) {
        let (known, withheld) = self.context.store.load(&cluster);
        let subscriber = session::Subscriber::new(self.context.own.clone(), known, withheld, now());
        let subscriber = if self.context.sole { subscriber } else { subscriber.outdated() };
        let (pipes, receiver) = mpsc::channel(PIPES);
        let (stop, stopped) = watch::channel(false);
        let output = client::Output::new(cluster.clone(), Arc::clone(&self.context), self.peers.clone());
        // Known at once, before the first pipe: a restart must not look like an empty peer.
        output.publish(&subscriber.view(now()), false, None);
        self.table.insert(cluster.clone(), pipes);
        let task = task::spawn("exchange_follow", client::follow(subscriber, receiver, output, stopped));
        self.running.insert(cluster, Follower { stop, task });
    }

    /// Lets every follower save what it has.
    async fn stop(self) {
        for follower in self.running.values() {
            follower.stop.send_replace(true);
        }
        for (cluster, follower) in self.running {
            if follower.task.await.is_err() {
                tracing::warn!(peer = %cluster, "a catalogue could not be saved");
            }
        }
    }
}

/// A new epoch for each start. Peers that hold an older one get a snapshot.
fn epoch() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
