//! A publisher and a subscriber over a simulated wire: virtual time, loss, reorder, restarts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_proto::exchange::{CatalogueEntry, CataloguePort, MAX_MESSAGE_LEN, Message, Protocol, SubscriberMessage};
use linkspan_proto::names::{ClusterName, ServiceKey};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

mod simulation;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn cluster(name: &str) -> ClusterName {
    ClusterName::parse(name).unwrap()
}

fn key(index: usize) -> ServiceKey {
    ServiceKey::parse(&format!("shop/svc-{index}")).unwrap()
}

fn entry(index: usize, ready: u32) -> Arc<CatalogueEntry> {
    Arc::new(CatalogueEntry {
        service: key(index),
        headless: false,
        ports: vec![CataloguePort {
            port: 80,
            name: None,
            protocol: Protocol::Tcp,
            app_protocol: None,
            ready,
            total: Some(ready + 1),
        }],
        endpoints: Vec::new(),
        labels: BTreeMap::new(),
        details: Default::default(),
    })
}

fn entries(indexes: impl IntoIterator<Item = usize>) -> Entries {
    indexes.into_iter().map(|index| (key(index), entry(index, 1))).collect()
}

/// Both sides, what is on the way between them, and a clock of our own.
struct World {
    now: Instant,
    feed: Arc<Feed>,
    publisher: Option<Publisher>,
    subscriber: Subscriber,
    to_subscriber: Vec<(Instant, Message)>,
    to_publisher: Vec<(Instant, SubscriberMessage)>,
    random: SmallRng,
    loss: f64,
    twice: f64,
    delay: Duration,
    jitter: Duration,
    /// When to connect again after a session ended.
    reconnect_at: Option<Instant>,
    /// Messages of the publisher since the count was last reset.
    sent: usize,
    violations: Vec<Violation>,
    /// Every state that was ever published.
    published: BTreeMap<(u64, u64), Arc<Entries>>,
}

impl World {
    fn new(initial: Entries, seed: u64) -> Self {
        let now = Instant::now();
        let feed = Arc::new(Feed::new(1, Arc::new(initial)));
        let mut world = Self {
            now,
            subscriber: Subscriber::new(cluster("east"), None, Entries::new(), now),
            publisher: None,
            to_subscriber: Vec::new(),
            to_publisher: Vec::new(),
            random: SmallRng::seed_from_u64(seed),
            loss: 0.0,
            twice: 0.0,
            delay: 5 * MS,
            jitter: Duration::ZERO,
            reconnect_at: Some(now),
            sent: 0,
            violations: Vec::new(),
            published: BTreeMap::from([((1, 1), Arc::clone(&feed.current().entries))]),
            feed,
        };
        world.step();
        world
    }

    fn publish(&mut self, entries: Entries) {
        Arc::make_mut(&mut self.feed).publish(Arc::new(entries));
        self.published_now();
    }

    fn restart_publisher(&mut self, epoch: u64) {
        let entries = Arc::clone(&self.feed.current().entries);
        self.feed = Arc::new(Feed::new(epoch, entries));
        self.published_now();
        self.disconnect();
    }

    fn published_now(&mut self) {
        let current = self.feed.current();
        self.published.insert((current.epoch, current.version), Arc::clone(&current.entries));
        if let Some(publisher) = &mut self.publisher {
            publisher.publish(Arc::clone(&self.feed));
        }
    }

    fn disconnect(&mut self) {
        self.publisher = None;
        self.subscriber.disconnected();
        self.to_publisher.clear();
        self.to_subscriber.clear();
        self.reconnect_at = Some(self.now + 200 * MS);
    }

    /// When a message arrives: never, once or twice.
    fn arrivals(&mut self) -> Vec<Instant> {
        let copies = match () {
            () if self.random.random_bool(self.loss) => 0,
            () if self.random.random_bool(self.twice) => 2,
            () => 1,
        };
        (0..copies).map(|_| self.now + self.delay + self.jitter.mul_f64(self.random.random())).collect()
    }

    /// Everything that is due now.
    fn step(&mut self) {
        if self.reconnect_at.is_some_and(|at| self.now >= at) {
            self.reconnect_at = None;
            self.publisher = Some(Publisher::new(cluster("east"), Arc::clone(&self.feed), self.now));
            self.subscriber.connected(self.now);
        }
        let result = self.exchange();
        if let Err(violation) = result {
            self.violations.push(violation);
            self.disconnect();
        }
        self.check();
    }

    fn exchange(&mut self) -> Result<(), Violation> {
        let now = self.now;
        if let Some(publisher) = &mut self.publisher {
            publisher.timeout(now)?;
            let (due, later) = std::mem::take(&mut self.to_publisher).into_iter().partition(|(at, _)| *at <= now);
            self.to_publisher = later;
            for (_, message) in in_order(due) {
                publisher.message(message, now)?;
            }
        }
        self.subscriber.timeout(now)?;
        let (due, later) = std::mem::take(&mut self.to_subscriber).into_iter().partition(|(at, _)| *at <= now);
        self.to_subscriber = later;
        for (_, message) in in_order(due) {
            self.subscriber.message(message, now)?;
        }
        while let Some(message) = self.publisher.as_mut().and_then(|publisher| publisher.poll(now)) {
            self.sent += 1;
            let arrivals = self.arrivals();
            self.to_subscriber.extend(arrivals.into_iter().map(|at| (at, message.clone())));
        }
        while let Some(message) = self.subscriber.poll() {
            let arrivals = self.arrivals();
            self.to_publisher.extend(arrivals.into_iter().map(|at| (at, message.clone())));
        }
        Ok(())
    }

    /// What holds at every moment: the subscriber's copy is a state that the publisher once had, whole.
    fn check(&self) {
        let view = self.subscriber.view(self.now);
        if let Some((epoch, version, _)) = view.verified {
            let (verified, _) = self.subscriber.to_keep().unwrap();
            assert_eq!(Some(&verified.entries), self.published.get(&(epoch, version)));
            assert!(verified.entries.iter().all(|(key, entry)| view.entries.get(key) == Some(entry)));
        }
    }

    fn next_event(&self) -> Instant {
        let publisher = self.publisher.as_ref().map(Publisher::deadline);
        self.to_publisher
            .iter()
            .map(|(at, _)| *at)
            .chain(self.to_subscriber.iter().map(|(at, _)| *at))
            .chain(publisher)
            .chain(self.subscriber.deadline(self.now))
            .chain(self.reconnect_at)
            .min()
            .unwrap()
            .max(self.now + MS)
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let next = self.next_event();
            if next > end {
                break;
            }
            self.now = next;
            self.step();
        }
        self.now = end;
        self.step();
    }

    fn view(&self) -> View {
        self.subscriber.view(self.now)
    }

    fn agrees(&self) -> bool {
        let view = self.view();
        view.synchronised && view.withheld.is_empty() && view.entries == self.feed.current().entries
    }
}

fn in_order<T>(mut due: Vec<(Instant, T)>) -> Vec<(Instant, T)> {
    due.sort_by_key(|(at, _)| *at);
    due
}

#[test]
fn the_first_copy_comes_as_a_snapshot_and_changes_as_deltas() {
    let mut world = World::new(entries(0..100), 1);
    assert_eq!(world.view().freshness, Freshness::Unknown);
    world.run(100 * MS);
    assert!(world.agrees());
    world.sent = 0;
    let mut next = entries(0..100);
    next.insert(key(3), entry(3, 0));
    next.remove(&key(4));
    next.insert(key(200), entry(200, 2));
    world.publish(next);
    world.run(100 * MS);
    assert!(world.agrees());
    assert_eq!(world.sent, 1, "one delta, not a snapshot");
    assert!(world.violations.is_empty());
}

#[test]
fn a_peer_that_comes_back_gets_the_difference_only() {
    let mut world = World::new(entries(0..100), 1);
    world.run(SECOND);
    world.disconnect();
    let mut next = entries(0..100);
    next.insert(key(7), entry(7, 9));
    world.publish(next);
    world.sent = 0;
    world.run(SECOND);
    assert!(world.agrees());
    assert_eq!(world.sent, 1);
}

#[test]
fn a_restarted_publisher_withdraws_nothing() {
    let mut world = World::new(entries(0..100), 1);
    world.run(SECOND);
    world.restart_publisher(77);
    for _ in 0..200 {
        world.run(10 * MS);
        assert_eq!(world.view().entries.len(), 100);
    }
    assert!(world.agrees());
    assert_eq!(world.view().verified.unwrap().0, 77);
}

#[test]
fn a_thousand_changes_a_second_are_at_most_twenty_messages_a_second() {
    let mut world = World::new(entries(0..2000), 1);
    world.run(SECOND);
    world.sent = 0;
    let mut state = world.feed.current().entries.as_ref().clone();
    for change in 0..3000_usize {
        state.insert(key(change % 2000), entry(change % 2000, u32::try_from(change).unwrap()));
        world.publish(state.clone());
        world.run(MS);
    }
    assert!(world.sent <= 60, "{} messages in 3 s", world.sent);
    world.run(2 * SECOND);
    assert!(world.agrees());
    assert!(world.violations.is_empty());
}

/// F-44: what was quiet is told at once; in a storm every change still arrives soon, and no second has too many messages.
#[test]
fn a_single_change_goes_out_at_once_and_a_storm_is_told_in_time() {
    let mut world = World::new(entries(0..100), 1);
    world.run(SECOND);
    let mut state = world.feed.current().entries.as_ref().clone();
    state.insert(key(0), entry(0, 1000));
    world.publish(state.clone());
    world.run(world.delay + MS);
    assert!(world.agrees(), "the first change waits for nothing but the wire");

    world.delay = 100 * MS;
    let mut published = Vec::new();
    let mut arrived: Vec<Duration> = Vec::new();
    let mut busiest = 0;
    for second in 0..5_usize {
        world.sent = 0;
        for step in 0..1000_usize {
            let value = u32::try_from(2000 + second * 1000 + step).unwrap();
            state.insert(key(step % 100), entry(step % 100, value));
            world.publish(state.clone());
            published.push((world.now, step % 100, value));
            world.run(MS);
            let view = world.view();
            let now = world.now;
            // A newer value of the same entry counts for the older ones, which nobody needs any more.
            published.retain(|(at, index, value)| {
                let came = view.entries[&key(*index)].ports[0].ready >= *value;
                if came {
                    arrived.push(now - *at);
                }
                !came
            });
        }
        busiest = busiest.max(world.sent);
    }
    world.run(SECOND);
    assert!(world.agrees() && world.violations.is_empty());
    assert!(busiest <= 20, "{busiest} messages in one second");
    arrived.sort();
    assert!(arrived.len() > 4000);
    assert!(arrived[arrived.len() * 99 / 100] <= 2 * SECOND, "p99 {:?}", arrived[arrived.len() * 99 / 100]);
}

#[test]
fn messages_stay_below_the_cap_for_the_largest_catalogue() {
    let feed = Arc::new(Feed::new(1, Arc::new(entries(0..SERVICES_MAX))));
    let now = Instant::now();
    let mut publisher = Publisher::new(cluster("east"), feed, now);
    let hello = SubscriberMessage::Hello { cluster: cluster("east"), version: VERSION, known: None };
    publisher.message(hello, now).unwrap();
    let mut subscriber = Subscriber::new(cluster("east"), None, Entries::new(), now);
    subscriber.connected(now);
    let mut messages = 0;
    while let Some(message) = publisher.poll(now) {
        assert!(message.encoded_len() <= MAX_MESSAGE_LEN / 2);
        messages += 1;
        subscriber.message(message, now).unwrap();
    }
    assert_eq!(subscriber.view(now).entries.len(), SERVICES_MAX);
    assert!(messages < 20, "{messages}");
}

#[test]
fn a_change_of_everything_is_sent_as_a_snapshot() {
    let mut world = World::new(entries(0..9000), 1);
    world.run(SECOND);
    world.publish((0..9000).map(|index| (key(index), entry(index, 5))).collect());
    world.run(SECOND);
    assert!(world.agrees());
}

#[test]
fn silence_makes_stale_then_drained_and_keeps_every_entry() {
    let mut world = World::new(entries(0..30), 1);
    world.run(60 * SECOND);
    assert_eq!(world.view().freshness, Freshness::Fresh, "heartbeats keep it fresh");
    world.loss = 1.0;
    world.run(10 * SECOND);
    assert_eq!(world.view().freshness, Freshness::Fresh);
    world.run(20 * SECOND);
    assert_eq!(world.view().freshness, Freshness::Stale, "F-18: marked after 30 s at most");
    world.run(DRAIN_AFTER);
    assert_eq!(world.view().freshness, Freshness::Drained);
    assert_eq!(world.view().entries.len(), 30);
    world.loss = 0.0;
    world.run(15 * SECOND);
    assert_eq!(world.view().freshness, Freshness::Fresh);
    assert!(world.agrees());
}

#[test]
fn many_removals_at_once_wait_and_few_do_not() {
    let mut world = World::new(entries(0..40), 1);
    world.run(SECOND);
    world.publish(entries(0..25));
    world.run(SECOND);
    assert_eq!(world.view().entries.len(), 25, "15 of 40 is no mass removal");
    world.publish(entries(0..10));
    world.run(SECOND);
    assert_eq!(world.view().withheld.len(), 15, "but 30 of 40 within 30 s is");
    assert_eq!(world.view().entries.len(), 25);
    world.publish(entries(0..12));
    world.run(SECOND);
    assert_eq!(world.view().withheld.len(), 13, "what comes back is not withheld");
    world.run(30 * SECOND);
    assert!(world.view().withheld.is_empty());
    assert_eq!(world.view().entries.len(), 12);
}

#[test]
fn an_emptied_small_catalogue_is_emptied_at_once() {
    let mut world = World::new(entries(0..3), 1);
    world.run(SECOND);
    world.publish(Entries::new());
    world.run(SECOND);
    assert!(world.view().entries.is_empty());
}

/// A subscriber with a verified catalogue of `count` entries at epoch 1, version 5, in a session.
fn holding(count: usize) -> (Subscriber, Instant, Catalogue) {
    let now = Instant::now();
    let catalogue = Catalogue::new(1, 5, Arc::new(entries(0..count)));
    let mut subscriber = Subscriber::new(cluster("east"), Some(catalogue.clone()), Entries::new(), now);
    subscriber.connected(now);
    while subscriber.poll().is_some() {}
    (subscriber, now, catalogue)
}

fn values(entries: &Entries) -> Vec<CatalogueEntry> {
    entries.values().map(|entry| entry.as_ref().clone()).collect()
}

#[test]
fn an_outdated_copy_is_marked_until_the_peer_has_spoken() {
    let now = Instant::now();
    let old = Catalogue::new(1, 5, Arc::new(entries(0..10)));
    let new = Catalogue::new(1, 9, Arc::new(entries(0..2)));
    let copy = || Subscriber::new(cluster("east"), Some(old.clone()), Entries::new(), now).outdated();
    let mut subscriber = copy();
    let view = subscriber.view(now);
    assert!(view.outdated && view.entries.len() == 10);
    subscriber.connected(now);
    for message in snapshot(&new) {
        assert!(subscriber.view(now).outdated);
        subscriber.message(message, now).unwrap();
    }
    let view = subscriber.view(now);
    assert!(!view.outdated && view.withheld.is_empty() && view.entries.len() == 2, "{view:?}");

    // A peer that has nothing new confirms the copy.
    let mut subscriber = copy();
    subscriber.connected(now);
    subscriber
        .message(Message::Delta { from: 5, to: 5, upserts: vec![], removals: vec![], hash: old.hash }, now)
        .unwrap();
    assert!(!subscriber.view(now).outdated);
    assert!(
        !Subscriber::new(cluster("east"), None, Entries::new(), now).outdated().view(now).outdated,
        "there is none"
    );
}

/// All messages of a snapshot.
fn snapshot(catalogue: &Catalogue) -> [Message; 3] {
    let Catalogue { epoch, version, hash, .. } = *catalogue;
    let count = u32::try_from(catalogue.entries.len()).unwrap();
    let begin = Message::SnapshotBegin { epoch, version, count };
    [begin, Message::Entries(values(&catalogue.entries)), Message::SnapshotEnd { version, hash }]
}

/// A leader that changes while a mass removal waits must not end the wait: the next one knows what the mirrors tell.
#[test]
fn what_a_new_leader_finds_gone_at_once_waits_as_for_the_old_one() {
    let lead = |found: usize, told: usize, now: Instant| {
        let standing = Catalogue::new(0, 0, Arc::new(entries(0..found)));
        let mut subscriber = Subscriber::new(cluster("east"), Some(standing), Entries::new(), now).outdated();
        subscriber.connected(now);
        for message in snapshot(&Catalogue::new(1, 9, Arc::new(entries(0..told)))) {
            subscriber.message(message, now).unwrap();
        }
        subscriber
    };
    let now = Instant::now();
    let mut subscriber = lead(40, 0, now);
    let view = subscriber.view(now);
    assert!(!view.outdated && view.synchronised);
    assert_eq!((view.entries.len(), view.withheld.len()), (40, 40));
    assert_eq!(view.verified.map(|(_, version, _)| version), Some(9), "what the peer said is taken over all the same");
    // Every leader waits once: the one after it finds the mirrors still there, and this is the longest that one waits.
    let later = now + 25 * SECOND;
    let mut next = lead(40, 0, later);
    let released = later + MASS_REMOVAL_DELAY;
    assert!(next.deadline(later).unwrap() < released, "there are nearer deadlines");
    next.timeout(released - MS).unwrap_err();
    assert_eq!(next.view(released - MS).entries.len(), 40, "a peer that has become silent ends no wait");
    next.disconnected();
    assert!(next.deadline(released - MS).unwrap() <= released);
    next.timeout(released).unwrap();
    assert!(next.view(released).entries.is_empty());
    // What comes back meanwhile is there and no longer withheld.
    for message in snapshot(&Catalogue::new(1, 10, Arc::new(entries(0..30)))) {
        subscriber.message(message, now + SECOND).unwrap();
    }
    let view = subscriber.view(now + SECOND);
    assert_eq!((view.entries.len(), view.withheld.len()), (40, 10));
    // Few at once, or of few, are an ordinary change, after a restart as before.
    for (found, told) in [(40, 25), (19, 0)] {
        let view = lead(found, told, now).view(now);
        assert_eq!((view.entries.len(), view.withheld.len()), (told, 0), "{told} of {found}");
    }
}

/// S-41.
#[test]
fn nothing_is_removed_without_a_complete_newer_snapshot() {
    let half = entries(0..5);
    let hash = Catalogue::new(1, 6, Arc::new(half.clone())).hash;
    let begin = |version, count| Message::SnapshotBegin { epoch: 1, version, count };
    let end = |version| Message::SnapshotEnd { version, hash };
    let scripts: Vec<Vec<Message>> = vec![
        vec![begin(6, 0)],
        vec![begin(6, 5), Message::Entries(values(&half))],
        vec![begin(6, 10), Message::Entries(values(&half)), end(6)],
        vec![begin(6, 5), Message::Entries(values(&entries(0..4))), end(6)],
        vec![begin(6, 5), Message::Entries(values(&half)), end(7)],
        vec![begin(6, 4), Message::Entries(values(&half)), end(6)],
        vec![begin(6, 5), Message::Entries(values(&entries(1..6))), end(6)],
        vec![begin(4, 5), Message::Entries(values(&half)), end(4)],
        vec![Message::Entries(values(&half)), end(6)],
        vec![end(6)],
        vec![Message::Delta { from: 4, to: 6, upserts: vec![], removals: vec![key(9)], hash }],
        vec![Message::Delta { from: 6, to: 7, upserts: vec![], removals: vec![key(9)], hash }],
        vec![Message::Delta { from: 5, to: 6, upserts: vec![], removals: vec![key(9)], hash }],
        vec![Message::Delta { from: 5, to: 4, upserts: vec![], removals: vec![key(9)], hash }],
        vec![begin(6, 5), Message::Delta { from: 5, to: 6, upserts: vec![], removals: vec![key(9)], hash }, end(6)],
    ];
    for script in scripts {
        let (mut subscriber, now, catalogue) = holding(10);
        for message in script.clone() {
            if subscriber.message(message, now).is_err() {
                break;
            }
        }
        assert_eq!(subscriber.view(now).entries, catalogue.entries, "{script:?}");
        subscriber.disconnected();
        assert_eq!(subscriber.view(now).entries, catalogue.entries, "{script:?}");
    }
    let (mut subscriber, now, _) = holding(10);
    for message in [begin(6, 5), Message::Entries(values(&half)), end(6)] {
        subscriber.message(message, now).unwrap();
    }
    assert_eq!(subscriber.view(now).entries.len(), 5);
}

#[test]
fn caps_end_the_session_and_keep_the_last_good_state() {
    let (mut subscriber, now, catalogue) = holding(10);
    let begin = Message::SnapshotBegin { epoch: 2, version: 1, count: 1_000_000 };
    assert_eq!(subscriber.message(begin, now), Err(Violation::TooManyServices(1_000_000)));
    let (mut subscriber, now, _) = holding(SERVICES_MAX);
    let upserts = vec![entry(SERVICES_MAX, 1).as_ref().clone()];
    let grow = Message::Delta { from: 5, to: 6, upserts, removals: vec![], hash: [0; 32] };
    assert_eq!(subscriber.message(grow, now), Err(Violation::TooManyServices(SERVICES_MAX + 1)));
    assert_eq!(subscriber.view(now).entries.len(), SERVICES_MAX);
    let (mut subscriber, now, _) = holding(10);
    subscriber.message(Message::SnapshotBegin { epoch: 2, version: 1, count: 4 }, now).unwrap();
    subscriber.message(Message::Entries(values(&entries(0..2))), now).unwrap();
    assert_eq!(subscriber.message(Message::Entries(values(&entries(1..2))), now), Err(Violation::Duplicate(key(1))));
    assert_eq!(subscriber.view(now).entries, catalogue.entries);
}

#[test]
fn snapshots_that_never_verify_end_the_session() {
    let (mut subscriber, mut now, _) = holding(10);
    let mut tries = 0;
    let violation = loop {
        tries += 1;
        now += 2 * SECOND;
        let script = [
            Message::SnapshotBegin { epoch: 1, version: 6, count: 0 },
            Message::SnapshotEnd { version: 6, hash: [7; 32] },
        ];
        let result = script.into_iter().try_for_each(|message| subscriber.message(message, now));
        if let Err(violation) = result {
            break violation;
        }
        assert!(matches!(subscriber.poll(), Some(SubscriberMessage::Resync { .. })));
    };
    assert_eq!(violation, Violation::CannotVerify);
    assert_eq!(tries, RESYNCS_MAX + 1);
}

#[test]
fn a_publisher_trusts_no_hello() {
    let feed = Arc::new(Feed::new(1, Arc::new(entries(0..3))));
    let now = Instant::now();
    let publisher = || Publisher::new(cluster("east"), Arc::clone(&feed), now);
    let hello = |name, version| SubscriberMessage::Hello { cluster: cluster(name), version, known: None };
    let wrong = publisher().message(hello("west", VERSION), now);
    assert_eq!(wrong, Err(Violation::WrongCluster { claimed: cluster("west"), peer: cluster("east") }));
    assert_eq!(publisher().message(hello("east", 0), now), Err(Violation::UnsupportedVersion { theirs: 0 }));
    assert_eq!(publisher().message(SubscriberMessage::Ack { version: 1 }, now), Err(Violation::NoHello));
    assert_eq!(publisher().timeout(now + HELLO), Err(Violation::NoHello));
    assert!(publisher().poll(now).is_none(), "nothing is told before the hello");
    let mut twice = publisher();
    twice.message(hello("east", VERSION), now).unwrap();
    assert_eq!(twice.message(hello("east", VERSION), now), Err(Violation::NoHello));
    assert_eq!(twice.message(SubscriberMessage::Ack { version: 9 }, now), Err(Violation::UnknownVersion(9)));
}

#[test]
fn a_claimed_version_that_is_not_ours_gets_a_snapshot() {
    let feed = Arc::new(Feed::new(1, Arc::new(entries(0..3))));
    let now = Instant::now();
    let mut publisher = Publisher::new(cluster("east"), feed, now);
    let known = Some((1, 1, [9; 32]));
    publisher.message(SubscriberMessage::Hello { cluster: cluster("east"), version: VERSION, known }, now).unwrap();
    assert!(matches!(publisher.poll(now), Some(Message::SnapshotBegin { .. })));
}

#[derive(Clone, Debug)]
enum Op {
    Change(Vec<(usize, Option<u32>)>),
    Run(u64),
    Disconnect,
    Restart,
    Loss(u8),
    Jitter(u16),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => prop::collection::vec((0..60_usize, prop::option::of(0..3_u32)), 1..30).prop_map(Op::Change),
        4 => (1..4000_u64).prop_map(Op::Run),
        1 => Just(Op::Disconnect),
        1 => Just(Op::Restart),
        1 => (0..60_u8).prop_map(Op::Loss),
        1 => (0..500_u16).prop_map(Op::Jitter),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever was lost, reordered, cut or restarted: when the wire works again, both sides agree soon, and at no time
    /// did the subscriber hold anything else than a whole state of the publisher (checked in every step).
    #[test]
    fn both_sides_agree_again_after_any_trouble(seed: u64, ops in prop::collection::vec(op(), 1..40)) {
        let mut world = World::new(entries(0..40), seed);
        let mut epoch = 1;
        for op in ops {
            match op {
                Op::Change(changes) => {
                    let mut state = world.feed.current().entries.as_ref().clone();
                    for (index, ready) in changes {
                        match ready {
                            Some(ready) => drop(state.insert(key(index), entry(index, ready))),
                            None => drop(state.remove(&key(index))),
                        }
                    }
                    world.publish(state);
                }
                Op::Run(millis) => world.run(Duration::from_millis(millis)),
                Op::Disconnect => world.disconnect(),
                Op::Restart => { epoch += 1; world.restart_publisher(epoch); }
                Op::Loss(percent) => world.loss = f64::from(percent) / 100.0,
                Op::Jitter(millis) => world.jitter = Duration::from_millis(millis.into()),
            }
        }
        world.loss = 0.0;
        world.jitter = Duration::ZERO;
        world.run(90 * SECOND);
        prop_assert!(world.agrees(), "{:?} {:?}", world.view(), world.violations);
        prop_assert_eq!(world.view().freshness, Freshness::Fresh);
    }
}
