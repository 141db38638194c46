//! Two controllers, and gateways that keep a pipe each, in virtual time.

use std::time::Duration;

use linkspan_proto::exchange_socket::{Preamble, Role};
use linkspan_runtime::drain::Drain;
use tokio::io::{AsyncWriteExt, DuplexStream};

use super::*;
use crate::door::{Caller, Stream};
use crate::saving::Saving;
use crate::testkit::{cluster, entries, entry, peer};

/// A controller's half.
struct Side {
    own: &'static str,
    door: mpsc::Sender<(Stream, Caller)>,
    snapshots: watch::Sender<Snapshot>,
    peers: watch::Receiver<Arc<Peers>>,
    _drain: Drain,
    _folder: tempfile::TempDir,
}

impl Side {
    fn start(own: &'static str, linked: &str) -> Self {
        Self::begin(own, linked, None)
    }

    /// In a cluster, where the mirrors of services of `linked` are there before it leads.
    fn lead(own: &'static str, linked: &str, mirrored: Entries) -> Self {
        Self::begin(own, linked, Some([(cluster(linked), mirrored)].into()))
    }

    fn begin(own: &'static str, linked: &str, standing: Option<store::Standing>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (drain, signal) = Drain::new();
        let (door, accepted) = mpsc::channel(16);
        let snapshots = watch::Sender::new(exporting(linked, &["web"]));
        let (sender, peers) = watch::channel(Arc::default());
        let sole = standing.is_none();
        let store = store::Store::new(folder.path().to_owned(), Saving::default());
        let context = Context {
            own: cluster(own),
            store: standing.into_iter().fold(store, store::Store::with_standing),
            sole,
            metrics: Metrics::default(),
            signal,
        };
        drop(task::spawn("test", run(context, Door::Port(accepted), snapshots.subscribe(), sender)));
        Self { own, door, snapshots, peers, _drain: drain, _folder: folder }
    }

    /// Waits until what it knows of `peer` is so.
    async fn until(&mut self, what: &str, peer: &str, holds: impl Fn(&PeerState) -> bool) {
        let known = self.peers.wait_for(|peers| peers.get(&cluster(peer)).is_some_and(|state| holds(state)));
        assert!(tokio::time::timeout(Duration::from_secs(30), known).await.is_ok_and(|known| known.is_ok()), "{what}");
    }

    /// Lets time pass, and says whether it learned anything meanwhile.
    async fn hears_in(&mut self, time: Duration) -> bool {
        self.peers.mark_unchanged();
        tokio::time::sleep(time).await;
        self.peers.has_changed().unwrap()
    }
}

fn exporting(linked: &str, services: &[&str]) -> Snapshot {
    let exported = entries(services.iter().map(|name| entry(&format!("shop/{name}"), &["80"], 1)));
    let peers = [(cluster(linked), peer(linked))].into();
    Snapshot { exported: Arc::new(exported), peers: Arc::new(peers), ..Snapshot::default() }
}

/// A gateway of one side, linked to a gateway of the other: it keeps a pipe, as gateways do, until dropped.
struct Gateway {
    task: JoinHandle<()>,
    frozen: watch::Sender<bool>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gateway {
    fn start(listener: &Side, teller: &Side) -> Self {
        let (frozen, is_frozen) = watch::channel(false);
        let ends = [(listener.door.clone(), listener.own), (teller.door.clone(), teller.own)];
        let task = task::spawn("test", async move {
            let [(listener, listens), (teller, tells)] = ends;
            loop {
                let mut subscriber = open(&listener, tells, Role::Subscriber).await;
                let mut publisher = open(&teller, listens, Role::Publisher).await;
                let mut is_frozen = is_frozen.clone();
                let gone = async { drop(is_frozen.wait_for(|frozen| *frozen).await) };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut subscriber, &mut publisher) => {}
                    // Its node is gone: not even an end of the connection comes.
                    () = gone => std::future::pending().await,
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        Self { task, frozen }
    }

    fn freeze(&self) {
        self.frozen.send_replace(true);
    }
}

async fn open(door: &mpsc::Sender<(Stream, Caller)>, peer: &str, role: Role) -> DuplexStream {
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    door.send((Box::new(far), Caller::Gateway)).await.unwrap();
    near.write_all(&Preamble { peer: cluster(peer), role }.encode()).await.unwrap();
    near
}

fn agrees(state: &PeerState) -> bool {
    state.view.synchronised && state.connected && state.trouble.is_none()
}

#[tokio::test(start_paused = true)]
async fn the_pipes_of_several_gateways_let_each_other_stand() {
    let (mut east, west) = (Side::start("east", "west"), Side::start("west", "east"));
    let _gateways: Vec<_> = (0..3).map(|_| Gateway::start(&east, &west)).collect();
    let _others: Vec<_> = (0..2).map(|_| Gateway::start(&west, &east)).collect();
    east.until("both to agree", "west", agrees).await;
    assert!(!east.hears_in(Duration::from_secs(120)).await, "a quiet peer is no news, however many gateways there are");
    west.snapshots.send_replace(exporting("east", &["web", "api"]));
    east.until("the change", "west", |state| agrees(state) && state.view.entries.len() == 2).await;
}

/// The old leader held these mirrors back as a mass removal when it went. The new one knows of it by the mirrors alone.
#[tokio::test(start_paused = true)]
async fn a_new_leader_deletes_not_at_once_what_the_old_one_held_back() {
    let mirrored = entries((0..40).map(|number| entry(&format!("shop/svc-{number}"), &["80"], 1)));
    let (mut east, west) = (Side::lead("east", "west", mirrored), Side::start("west", "east"));
    east.until("the mirrors to be known", "west", |state| state.view.outdated && state.view.entries.len() == 40).await;
    let _gateway = Gateway::start(&east, &west);
    let heard = tokio::time::Instant::now();
    east.until("the peer's word", "west", agrees).await;
    let view = east.peers.borrow()[&cluster("west")].view.clone();
    assert_eq!((view.entries.len(), view.withheld.len(), view.outdated), (41, 40, false));
    let gone = east.peers.wait_for(|peers| peers[&cluster("west")].view.entries.len() == 1);
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("what the peer removed goes").unwrap();
    let waited = heard.elapsed();
    let delay = session::MASS_REMOVAL_DELAY;
    assert!(waited >= delay && waited < delay + Duration::from_secs(2), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pipe_that_waits_takes_over_and_nobody_notices() {
    let (mut east, west) = (Side::start("east", "west"), Side::start("west", "east"));
    let first = Gateway::start(&east, &west);
    east.until("both to agree", "west", agrees).await;
    let second = Gateway::start(&east, &west);
    assert!(!east.hears_in(Duration::from_secs(30)).await);
    drop(first);
    assert!(!east.hears_in(Duration::from_secs(30)).await, "the second took over");
    west.snapshots.send_replace(exporting("east", &["web", "api"]));
    east.until("a change over the second", "west", |state| agrees(state) && state.view.entries.len() == 2).await;

    // A rolling update: another one comes before the last one goes.
    let third = Gateway::start(&east, &west);
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(second);
    assert!(!east.hears_in(Duration::from_secs(30)).await, "the third took over");
    drop(third);
    east.until("the loss of all to show", "west", |state| !state.connected && state.trouble.is_some()).await;
    assert_eq!(east.peers.borrow()[&cluster("west")].view.entries.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_whose_link_moves_is_no_news() {
    let (mut east, west) = (Side::start("east", "west"), Side::start("west", "east"));
    let gateway = Gateway::start(&east, &west);
    east.until("both to agree", "west", agrees).await;
    drop(gateway);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let gateway = Gateway::start(&east, &west);
    assert!(!east.hears_in(Duration::from_secs(30)).await);
    drop(gateway);
    let lost = tokio::time::Instant::now();
    east.until("the loss to show", "west", |state| !state.connected).await;
    assert!(lost.elapsed() >= client::TAKE_OVER && lost.elapsed() < client::TAKE_OVER * 2);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_is_gone_without_a_word_is_replaced_before_the_catalogue_is_stale() {
    let (mut east, west) = (Side::start("east", "west"), Side::start("west", "east"));
    let first = Gateway::start(&east, &west);
    east.until("both to agree", "west", agrees).await;
    let second = Gateway::start(&east, &west);
    tokio::time::sleep(Duration::from_secs(1)).await;
    first.freeze();
    assert!(!east.hears_in(Duration::from_secs(60)).await, "the second took over");
    // What was dead while it waited is not what takes over.
    let third = Gateway::start(&east, &west);
    tokio::time::sleep(Duration::from_secs(1)).await;
    third.freeze();
    tokio::time::sleep(server::KEEP_ALIVE * 3).await;
    let fourth = Gateway::start(&east, &west);
    tokio::time::sleep(Duration::from_secs(1)).await;
    fourth.freeze();
    drop(second);
    east.until("the loss to show", "west", |state| !agrees(state)).await;
    assert_eq!(east.peers.borrow()[&cluster("west")].view.freshness, Freshness::Fresh);
    let _fifth = Gateway::start(&east, &west);
    east.until("another to take over", "west", agrees).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_has_no_more_pipes_than_it_may() {
    let (mut east, west) = (Side::start("east", "west"), Side::start("west", "east"));
    let gateways: Vec<_> = (0..pipe::PIPES_MAX + 4).map(|_| Gateway::start(&east, &west)).collect();
    east.until("both to agree", "west", agrees).await;
    assert!(!east.hears_in(Duration::from_secs(120)).await, "those that found no place disturb nobody");
    drop(gateways);
    east.until("the loss to show", "west", |state| !state.connected).await;
    let _gateway = Gateway::start(&east, &west);
    east.until("the places to be free again", "west", agrees).await;
}
