//! Two link states against each other over a simulated network, in virtual time.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// What happens at a moment of virtual time.
#[derive(Clone, Debug)]
enum Happening {
    /// For the side of this index, if it is still in this life.
    Event(usize, u32, Event),
    /// A handshake of `from` arrives at the other side.
    Knock { from: usize, life: u32, attempt: AttemptId, address: SocketAddr, worker: usize },
    /// A side's silent connection is noticed.
    Idle(usize, u32, ConnectionId),
}

struct Side {
    state: LinkState,
    name: &'static str,
    addresses: Vec<SocketAddr>,
    /// Every name has an answer.
    is_answered: bool,
    workers: u32,
    life: u32,
    up: bool,
    /// By our id: the other side's id, and its life.
    wires: BTreeMap<ConnectionId, (ConnectionId, u32)>,
    /// Streams that keep a connection from being finished.
    busy: BTreeSet<ConnectionId>,
    finishing: BTreeSet<ConnectionId>,
    closes: Vec<CloseWhy>,
    dials: Vec<(Duration, SocketAddr)>,
}

/// Both sides and what lies between them.
struct World {
    sides: [Side; 2],
    start: Instant,
    now: Instant,
    agenda: Vec<(Instant, u64, Happening)>,
    order: u64,
    next_id: u64,
    /// Whether packets from side 0 to side 1, and back, get through.
    open: bool,
    /// What control streams carry once they do again: they lose nothing while their connection lives.
    held: Vec<Happening>,
    /// Which worker of the acceptor the n-th handshake reaches.
    draws: Box<dyn FnMut() -> u32>,
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl World {
    fn new(workers: [u32; 2], addresses: [&[&str]; 2]) -> Self {
        let side = |name: &'static str, peer: &'static str, workers: u32, seed| Side {
            state: LinkState::new(
                ClusterName::parse(name).unwrap(),
                ClusterName::parse(peer).unwrap(),
                workers as usize,
                Transport::Quic,
                seed,
            ),
            name,
            addresses: Vec::new(),
            is_answered: true,
            workers,
            life: 0,
            up: true,
            wires: BTreeMap::new(),
            busy: BTreeSet::new(),
            finishing: BTreeSet::new(),
            closes: Vec::new(),
            dials: Vec::new(),
        };
        let start = Instant::now();
        let mut turn = 0;
        let mut world = Self {
            sides: [side("east", "west", workers[0], 1), side("west", "east", workers[1], 2)],
            start,
            now: start,
            agenda: Vec::new(),
            order: 0,
            next_id: 0,
            open: true,
            held: Vec::new(),
            draws: Box::new(move || {
                turn += 1;
                turn - 1
            }),
        };
        for (index, texts) in addresses.into_iter().enumerate() {
            world.sides[index].addresses = texts.iter().map(|text| address(text)).collect();
            let dialable = !texts.is_empty();
            world.tell(index, Event::Configured { dialable });
        }
        world
    }

    /// Each can dial the other.
    fn both() -> Self {
        Self::new([1, 1], [&["192.0.2.2:4143"], &["192.0.2.1:4143"]])
    }

    fn at(&mut self, after: Duration, happening: Happening) {
        self.order += 1;
        self.agenda.push((self.now + after, self.order, happening));
    }

    fn tell(&mut self, side: usize, event: Event) {
        self.sides[side].state.handle(event, self.now);
        self.act(side);
    }

    fn later(&mut self, after: Duration, side: usize, event: Event) {
        let life = self.sides[side].life;
        self.at(after, Happening::Event(side, life, event));
    }

    fn id(&mut self) -> ConnectionId {
        self.next_id += 1;
        ConnectionId(self.next_id)
    }

    fn act(&mut self, side: usize) {
        while let Some(action) = self.sides[side].state.next_action() {
            match action {
                Action::Resolve => {
                    let (addresses, is_complete) = (self.sides[side].addresses.clone(), self.sides[side].is_answered);
                    self.later(
                        MS,
                        side,
                        Event::Resolved(Ok(Answer { addresses, is_complete, silent: Silent::default() })),
                    );
                }
                Action::Dial { attempt, worker, address, carrier: _ } => {
                    let when = self.now - self.start;
                    self.sides[side].dials.push((when, address));
                    let life = self.sides[side].life;
                    self.at(5 * MS, Happening::Knock { from: side, life, attempt, address, worker });
                }
                Action::Abandon { .. } => {}
                Action::GoAway { connection, leave } => {
                    if let Some(&(theirs, life)) = self.sides[side].wires.get(&connection) {
                        let told = Happening::Event(1 - side, life, Event::GoAway { connection: theirs, leave });
                        if self.open { self.at(5 * MS, told) } else { self.held.push(told) }
                    }
                }
                Action::Finish { connection } => {
                    self.sides[side].finishing.insert(connection);
                    self.finish(side);
                }
                Action::Close { connection, why } => {
                    self.sides[side].closes.push(why);
                    self.close(side, connection);
                }
            }
        }
    }

    /// Closes what shall be closed, unless it carries a stream: which both sides know of.
    fn finish(&mut self, side: usize) {
        let carries = |id: &ConnectionId| {
            let theirs = self.sides[side].wires.get(id).map(|(theirs, _)| theirs);
            self.sides[side].busy.contains(id)
                || theirs.is_some_and(|theirs| self.sides[1 - side].busy.contains(theirs))
        };
        let idle: Vec<_> = self.sides[side].finishing.iter().filter(|id| !carries(id)).copied().collect();
        for connection in idle {
            self.sides[side].finishing.remove(&connection);
            self.close(side, connection);
        }
    }

    fn close(&mut self, side: usize, connection: ConnectionId) {
        if let Some((theirs, life)) = self.sides[side].wires.remove(&connection) {
            if self.open {
                self.at(5 * MS, Happening::Event(1 - side, life, Event::Closed { connection: theirs, trouble: None }));
            } else {
                // Nobody repeats the close; the other side notices the silence.
                self.at(5000 * MS, Happening::Idle(1 - side, life, theirs));
            }
            self.later(MS, side, Event::Closed { connection, trouble: None });
        } else {
            self.later(MS, side, Event::Closed { connection, trouble: None });
        }
    }

    fn knock(&mut self, from: usize, attempt: AttemptId, address: SocketAddr, worker: usize) {
        let to = 1 - from;
        let reachable = self.open && self.sides[to].up && address.ip() != self::address("192.0.2.99:1").ip();
        if !reachable {
            return;
        }
        let (ours, theirs) = (self.id(), self.id());
        if let Some(why) = self.sides[to].state.refusal() {
            self.sides[to].closes.push(why);
            self.later(5 * MS, from, Event::Dialled { attempt, connection: ours });
            self.later(11 * MS, from, Event::Closed { connection: ours, trouble: None });
            return;
        }
        let lives = [self.sides[from].life, self.sides[to].life];
        self.sides[from].wires.insert(ours, (theirs, lives[1]));
        self.sides[to].wires.insert(theirs, (ours, lives[0]));
        let drawn = (self.draws)() % self.sides[to].workers;
        let facts = |side: &Side, worker| HelloFacts {
            gateway_id: side.name.to_owned(),
            boot_id: format!("{} {}", side.name, side.life),
            worker,
            workers: side.workers,
        };
        let (hello_from, hello_to) =
            (facts(&self.sides[from], u32::try_from(worker).unwrap()), facts(&self.sides[to], drawn));
        self.later(5 * MS, from, Event::Dialled { attempt, connection: ours });
        self.later(6 * MS, to, Event::Accepted { connection: theirs, carrier: Carrier::Quic });
        self.later(11 * MS, to, Event::Hello { connection: theirs, facts: hello_from });
        self.later(11 * MS, from, Event::Hello { connection: ours, facts: hello_to });
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        for step in 0.. {
            assert!(step < 100_000, "a busy loop at {:?}", self.now - self.start);
            let deadline = |side: &Side| side.state.deadline().filter(|_| side.up);
            let next = self.sides.iter().filter_map(deadline).chain(self.agenda.iter().map(|(at, ..)| *at)).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = next.max(self.now);
            let now = self.now;
            self.agenda.sort_by_key(|(at, order, _)| (*at, *order));
            if self.agenda.first().is_some_and(|(at, ..)| *at <= now) {
                let (_, _, happening) = self.agenda.remove(0);
                self.happen(happening);
            }
            for side in 0..2 {
                if self.sides[side].up && self.sides[side].state.deadline().is_some_and(|at| at <= now) {
                    self.sides[side].state.advance(now);
                    self.act(side);
                }
            }
        }
        self.now = end;
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Event(side, life, event) => {
                if self.sides[side].life != life || !self.sides[side].up {
                    return;
                }
                if let Event::Closed { connection, .. } = &event {
                    self.sides[side].wires.remove(connection);
                    self.sides[side].busy.remove(connection);
                    self.sides[side].finishing.remove(connection);
                }
                self.tell(side, event);
            }
            Happening::Knock { from, life, attempt, address, worker } => {
                if self.sides[from].life == life && self.sides[from].up {
                    self.knock(from, attempt, address, worker);
                }
            }
            Happening::Idle(side, life, connection) => {
                let silent = self.sides[side].wires.get(&connection).is_some_and(|(theirs, life)| {
                    let other = &self.sides[1 - side];
                    !self.open || other.life != *life || !other.up || !other.wires.contains_key(theirs)
                });
                if self.sides[side].life == life && silent {
                    self.sides[side].wires.remove(&connection);
                    let trouble = Some(Trouble { reason: "TimedOut", message: String::new() });
                    self.tell(side, Event::Closed { connection, trouble });
                }
            }
        }
    }

    /// Cuts the network, or makes it whole.
    fn set_open(&mut self, open: bool) {
        self.open = open;
        if open {
            for told in std::mem::take(&mut self.held) {
                self.at(5 * MS, told);
            }
        }
    }

    /// Connections of both sides that hear nothing any more end after the idle timeout.
    fn silence(&mut self) {
        for side in 0..2 {
            let (life, ids) = (self.sides[side].life, self.sides[side].wires.keys().copied().collect::<Vec<_>>());
            for id in ids {
                self.at(5000 * MS, Happening::Idle(side, life, id));
            }
        }
    }

    fn kill(&mut self, side: usize) {
        self.sides[side].up = false;
        self.sides[side].wires.clear();
        self.silence();
    }

    fn restart(&mut self, side: usize) {
        let old = &mut self.sides[side];
        old.life += 1;
        old.up = true;
        let (own, peer) = (old.state.own.clone(), old.state.peer.clone());
        old.state = LinkState::new(own, peer, old.workers as usize, Transport::Quic, u64::from(old.life) + 77);
        old.busy.clear();
        old.finishing.clear();
        let dialable = !old.addresses.is_empty();
        self.tell(side, Event::Configured { dialable });
    }

    fn usable(&self, side: usize) -> Vec<ConnectionId> {
        self.sides[side].state.usable()
    }

    /// Both sides use the same connections.
    fn assert_agreed(&self, connections: usize) {
        let ours = self.usable(0);
        assert_eq!(ours.len(), connections, "at {:?}", self.now - self.start);
        let theirs: BTreeSet<_> = ours.iter().map(|id| self.sides[0].wires[id].0).collect();
        assert_eq!(theirs, self.usable(1).into_iter().collect(), "both sides use the same connections");
    }
}

#[test]
fn simultaneous_dials_are_settled_by_name_within_two_seconds() {
    let mut world = World::both();
    world.run(2000 * MS);
    world.assert_agreed(1);
    assert!(
        world.sides[0].state.known[&world.usable(0)[0]].dialled.is_some(),
        "east is the lower name: its dial is kept"
    );
    assert_eq!(world.sides[1].wires.len(), 1, "the other has run dry");
    assert!(world.sides.iter().all(|side| side.closes.is_empty()), "nothing was cut: {:?}", world.sides[1].closes);
    let dials = world.sides[1].dials.len();
    world.run(60_000 * MS);
    assert_eq!(world.sides[1].dials.len(), dials, "west has no reason to dial again");
    world.assert_agreed(1);
}

#[test]
fn streams_on_the_duplicate_finish_however_long_they_take() {
    let mut world = World::new([1, 1], [&[], &["192.0.2.1:4143"]]);
    world.run(500 * MS);
    let duplicate = world.usable(1)[0];
    world.sides[1].busy.insert(duplicate);
    // Now east can dial, too.
    world.sides[0].addresses = vec![address("192.0.2.2:4143")];
    world.tell(0, Event::Configured { dialable: true });
    world.run(3_600_000 * MS);
    assert!(world.sides[1].wires.contains_key(&duplicate), "an hour later it still carries its stream");
    assert!(!world.usable(1).contains(&duplicate));
    world.sides[1].busy.clear();
    world.finish(1);
    world.run(1000 * MS);
    assert_eq!(world.sides[1].wires.len(), 1);
}

#[test]
fn a_peer_without_address_waits_to_be_dialled() {
    let mut world = World::new([2, 2], [&[], &["192.0.2.1:4143"]]);
    world.run(2000 * MS);
    world.assert_agreed(2);
    assert!(world.sides[0].dials.is_empty());
    assert!(!world.sides[0].state.is_dialable());
}

#[test]
fn as_many_connections_as_the_smaller_side_has_workers() {
    for (workers, expected) in [([1, 4], 1), ([4, 2], 2), ([3, 3], 3)] {
        let mut world = World::new(workers, [&["192.0.2.2:4143"], &[]]);
        world.run(3000 * MS);
        world.assert_agreed(expected);
    }
}

#[test]
fn connections_look_for_workers_of_their_own() {
    let mut world = World::new([2, 2], [&["192.0.2.2:4143"], &[]]);
    // The kernel sends the first three handshakes to the same worker.
    let mut draws = [0, 0, 0, 1].into_iter();
    world.draws = Box::new(move || draws.next().unwrap_or(0));
    world.run(3000 * MS);
    world.assert_agreed(2);
    assert_eq!(world.sides[0].dials.len(), 4);
    let workers: BTreeSet<_> =
        world.usable(0).iter().map(|id| world.sides[0].state.known[id].hello.as_ref().unwrap().worker).collect();
    assert_eq!(workers, BTreeSet::from([0, 1]));

    // Without luck it gives up, and keeps what it has.
    let mut world = World::new([2, 2], [&["192.0.2.2:4143"], &[]]);
    world.draws = Box::new(|| 0);
    world.run(60_000 * MS);
    world.assert_agreed(2);
    assert_eq!(world.sides[0].dials.len() as u32, 2 + SPREAD_TRIES);
}

#[test]
fn a_dead_peer_is_dialled_without_pause_and_found_when_it_is_back() {
    let mut world = World::both();
    world.run(2000 * MS);
    world.kill(1);
    world.run(60_000 * MS);
    assert!(world.usable(0).is_empty());
    assert_eq!(world.sides[0].state.trouble().unwrap().reason, Trouble::UNREACHABLE);
    // A dial lasts 3 s, so rounds begin every 3 s at least, and no faster than the smallest back-off.
    let times: Vec<_> = world.sides[0].dials.iter().map(|(at, _)| *at).filter(|at| *at > 8000 * MS).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] <= 3100 * MS && pair[1] - pair[0] >= BACKOFF.0), "{times:?}");
    world.restart(1);
    world.run(500 * MS);
    world.assert_agreed(1);
    assert!(world.sides[0].state.trouble().is_none());
}

#[test]
fn a_restarted_peer_is_known_by_its_hello() {
    // West dials only; east cannot know that its old connection is dead until the new hello.
    let mut world = World::new([1, 1], [&[], &["192.0.2.1:4143"]]);
    world.run(1000 * MS);
    world.kill(1);
    world.run(100 * MS);
    world.restart(1);
    world.run(200 * MS);
    world.assert_agreed(1);
    assert_eq!(world.sides[0].wires.len(), 1);
    assert_eq!(world.sides[0].closes, [CloseWhy::Restarted]);
}

#[test]
fn every_address_is_tried_and_the_good_one_found_quickly() {
    let mut world = World::new([1, 1], [&["192.0.2.99:1", "192.0.2.99:2", "192.0.2.2:4143"], &[]]);
    world.run(2 * STAGGER + 100 * MS);
    world.assert_agreed(1);
    assert_eq!(world.sides[0].dials.len(), 3);
}

#[test]
fn a_moved_peer_is_followed_and_the_old_connection_left() {
    let mut world = World::new([1, 1], [&["192.0.2.2:4143"], &[]]);
    world.run(15_000 * MS);
    let old = world.usable(0)[0];
    world.sides[0].addresses = vec![address("192.0.2.3:4143")];
    world.run(30_000 * MS);
    world.assert_agreed(1);
    assert_ne!(world.usable(0)[0], old);
    assert!(!world.sides[0].wires.contains_key(&old));
    assert!(world.sides[0].closes.is_empty(), "left, not cut");
    // Changed by the operator: at once.
    let old = world.usable(0)[0];
    world.sides[0].addresses = vec![address("192.0.2.4:4143")];
    world.tell(0, Event::Configured { dialable: true });
    world.run(100 * MS);
    assert_ne!(world.usable(0)[0], old);
}

#[test]
fn a_partial_answer_of_dns_moves_nothing() {
    let mut world = World::new([1, 1], [&["192.0.2.2:4143", "192.0.2.3:4143"], &[]]);
    world.run(2000 * MS);
    let standing = world.usable(0);
    for round in 0..10 {
        let text = if round % 2 == 0 { "192.0.2.3:4143" } else { "192.0.2.2:4143" };
        world.sides[0].addresses = vec![address(text)];
        world.run(RESOLVE_EVERY);
    }
    assert_eq!(world.usable(0), standing);
}

#[test]
fn a_silent_family_keeps_its_addresses_and_holds_nothing_else_up() {
    let mut state =
        LinkState::new(ClusterName::parse("east").unwrap(), ClusterName::parse("west").unwrap(), 1, Transport::Quic, 1);
    let now = Instant::now();
    state.handle(Event::Configured { dialable: true }, now);
    let (old, new, six) = (address("192.0.2.2:1"), address("192.0.2.3:1"), address("[2001:db8::1]:1"));
    let mut answer = |addresses: &[SocketAddr], silent| {
        let answer = Answer { addresses: addresses.to_vec(), is_complete: true, silent };
        state.handle(Event::Resolved(Ok(answer)), now);
        state.addresses.clone()
    };
    assert_eq!(answer(&[old, six], Silent::default()), [old, six]);
    let silent = Silent { four: false, six: true };
    assert_eq!(answer(&[new], silent), [new, six], "the hosts file moved it; IPv6 was not answered");
    assert_eq!(answer(&[new], Silent::default()), [new]);
}

#[test]
fn a_name_that_cannot_be_looked_up_moves_nothing_and_keeps_its_addresses() {
    let mut world = World::new([1, 1], [&["192.0.2.2:4143", "192.0.2.3:4143"], &[]]);
    world.run(2000 * MS);
    let standing = world.usable(0);
    world.sides[0].addresses = vec![address("192.0.2.3:4143")];
    world.sides[0].is_answered = false;
    world.run(RESOLVE_EVERY * 10);
    assert_eq!(world.usable(0), standing);
    assert!(world.sides[0].state.addresses.contains(&address("192.0.2.2:4143")));
    world.sides[0].is_answered = true;
    world.run(RESOLVE_EVERY * 3);
    assert_ne!(world.usable(0), standing, "now it is known to be gone");
    assert_eq!(world.sides[0].state.addresses, [address("192.0.2.3:4143")]);
}

#[test]
fn a_new_certificate_replaces_connections_before_it_leaves_them() {
    for rotating in [0, 1] {
        let mut world = World::new([2, 2], [&["192.0.2.2:4143"], &[]]);
        world.run(2000 * MS);
        let old: BTreeSet<_> = world.usable(0).into_iter().collect();
        // A stream on each, so that they can only be left, not closed.
        world.sides[0].busy = old.clone();
        world.tell(rotating, Event::Rotated);
        for _ in 0..1000 {
            world.run(MS);
            assert!(!world.usable(0).is_empty() && !world.usable(1).is_empty(), "make before break");
        }
        let new: BTreeSet<_> = world.usable(0).into_iter().collect();
        assert!(new.is_disjoint(&old), "side {rotating}: {old:?} {new:?}");
        world.assert_agreed(2);
        assert!(old.iter().all(|id| world.sides[0].wires.contains_key(id)), "streams go on");
        world.sides[0].busy.clear();
        world.finish(0);
        world.finish(1);
        world.run(100 * MS);
        assert_eq!(world.sides[0].wires.len(), 2);
    }
}

#[test]
fn a_connection_that_was_being_made_when_the_certificate_changed_is_replaced_too() {
    // East's handshake is under way; its hello is awaited; on west, which was dialled, the same.
    for (rotating, moment) in [(0, 3), (0, 13), (1, 14)] {
        let mut world = World::new([1, 1], [&["192.0.2.2:4143"], &[]]);
        world.run(MS * moment);
        assert!(world.usable(0).is_empty() && !world.sides[0].dials.is_empty(), "side {rotating} at {moment} ms");
        world.tell(rotating, Event::Rotated);
        let mut first = None;
        for _ in 0..2000 {
            world.run(MS);
            first = first.or_else(|| world.usable(0).first().copied());
            assert!(first.is_none() || !world.usable(0).is_empty(), "make before break");
        }
        assert_ne!(world.usable(0).first().copied(), first, "side {rotating} at {moment} ms");
        world.assert_agreed(1);
        assert_eq!(world.sides[0].wires.len(), 1);
    }
}

#[test]
fn an_announced_end_moves_new_streams_of_the_peer_and_not_our_own() {
    let mut world = World::both();
    world.run(2000 * MS);
    let carrying = world.usable(0)[0];
    world.sides[0].busy.insert(carrying);
    world.tell(0, Event::Announce);
    world.run(50 * MS);
    assert!(world.usable(1).is_empty(), "the peer opens nothing more");
    assert_eq!(world.usable(0), [carrying], "our own clients are still served");
    assert!(world.sides[1].state.is_peer_leaving());
    world.tell(0, Event::Shutdown);
    world.run(1000 * MS);
    assert!(world.sides[0].wires.contains_key(&carrying), "its stream goes on");
    world.sides[0].busy.clear();
    world.finish(0);
    world.run(100 * MS);
    assert!(world.sides[0].state.is_empty());
    let refused = |why: &CloseWhy| *why == CloseWhy::Shutdown;
    assert!(world.sides[0].closes.iter().all(refused), "only west's new dials were refused");
}

/// What one gateway of a peer says of itself.
fn facts(gateway: &str) -> HelloFacts {
    HelloFacts { gateway_id: gateway.to_owned(), boot_id: format!("{gateway}-1"), worker: 0, workers: 1 }
}

/// West, who keeps what east dials, with a connection that it dialled itself to east's gateway `one`.
fn west_that_dialled() -> (LinkState, ConnectionId, Instant) {
    let now = Instant::now();
    let mut west =
        LinkState::new(ClusterName::parse("west").unwrap(), ClusterName::parse("east").unwrap(), 1, Transport::Quic, 7);
    west.handle(Event::Configured { dialable: true }, now);
    let answer = Answer { addresses: vec![address("192.0.2.1:4143")], is_complete: true, silent: Silent::default() };
    west.handle(Event::Resolved(Ok(answer)), now);
    let connection = ConnectionId(1);
    let attempt = dialled(&mut west).unwrap();
    west.handle(Event::Dialled { attempt, connection }, now);
    west.handle(Event::Hello { connection, facts: facts("one") }, now);
    assert_eq!(west.usable(), [connection]);
    (west, connection, now)
}

/// The dial that a state asks for, if it does.
fn dialled(state: &mut LinkState) -> Option<AttemptId> {
    std::iter::from_fn(|| state.next_action()).find_map(|action| match action {
        Action::Dial { attempt, .. } => Some(attempt),
        _ => None,
    })
}

/// Whether a state leaves a connection as a duplicate.
fn leaves(state: &mut LinkState, connection: ConnectionId) -> bool {
    let goaway = Action::GoAway { connection, leave: Leave::Duplicate };
    std::iter::from_fn(|| state.next_action()).any(|action| action == goaway)
}

#[test]
fn a_connection_to_another_gateway_of_the_peer_is_no_duplicate() {
    let (mut west, own, now) = west_that_dialled();
    let [other, same] = [ConnectionId(2), ConnectionId(3)];
    west.handle(Event::Accepted { connection: other, carrier: Carrier::Quic }, now);
    west.handle(Event::Hello { connection: other, facts: facts("two") }, now);
    assert!(!leaves(&mut west, own), "gateway one has no other link to this one");
    assert_eq!(west.usable(), [own, other]);
    west.handle(Event::Accepted { connection: same, carrier: Carrier::Quic }, now);
    west.handle(Event::Hello { connection: same, facts: facts("one") }, now);
    assert!(leaves(&mut west, own), "gateway one has dialled");
    assert_eq!(west.usable(), [other, same]);
}

#[test]
fn a_connection_that_stays_beside_an_accepted_one_is_still_replaced_when_its_certificate_was() {
    let (mut west, own, now) = west_that_dialled();
    let [other, fresh] = [ConnectionId(2), ConnectionId(3)];
    west.handle(Event::Accepted { connection: other, carrier: Carrier::Quic }, now);
    west.handle(Event::Hello { connection: other, facts: facts("two") }, now);
    west.handle(Event::Rotated, now);
    let attempt = dialled(&mut west).expect("a dial for the new certificate");
    west.handle(Event::Dialled { attempt, connection: fresh }, now);
    west.handle(Event::Hello { connection: fresh, facts: facts("one") }, now);
    assert!(west.usable().contains(&fresh) && !west.usable().contains(&own), "{:?}", west.usable());
}

#[test]
fn a_gateway_that_retires_is_used_until_its_peers_have_another_and_takes_nothing_new() {
    for ends in [0, 1] {
        let mut world = World::both();
        world.run(2000 * MS);
        let [ours, theirs] = [0, 1].map(|side| world.usable(side));
        world.tell(ends, Event::Retire);
        world.run(4000 * MS);
        assert_eq!(
            [0, 1].map(|side| world.usable(side)),
            [ours, theirs],
            "no other gateway is there: this one serves on"
        );
        assert!(world.sides.iter().all(|side| side.closes.iter().all(|why| *why == CloseWhy::Shutdown)));
        let started = world.now;
        world.restart(ends);
        world.run(5000 * MS);
        assert!(world.now > started && !world.usable(1 - ends).is_empty(), "found again");
    }
}

#[test]
fn a_connection_that_the_peer_leaves_at_its_end_is_replaced_at_once() {
    let (mut west, own, now) = west_that_dialled();
    let later = now + Duration::from_secs(5);
    west.handle(Event::GoAway { connection: own, leave: Leave::Shutdown }, later);
    assert!(dialled(&mut west).is_some(), "without a pause");
    // One that was left as soon as it stood has to wait: it may be so again.
    let (mut west, own, now) = west_that_dialled();
    west.handle(Event::GoAway { connection: own, leave: Leave::Shutdown }, now);
    assert!(dialled(&mut west).is_none());
    assert!(west.deadline().is_some_and(|at| at > now && at <= now + BACKOFF.1));
}

#[test]
fn without_a_hello_a_connection_is_none() {
    let mut state =
        LinkState::new(ClusterName::parse("east").unwrap(), ClusterName::parse("west").unwrap(), 1, Transport::Quic, 1);
    let start = Instant::now();
    state.handle(Event::Accepted { connection: ConnectionId(1), carrier: Carrier::Quic }, start);
    assert!(state.usable().is_empty());
    assert_eq!(state.deadline(), Some(start + HELLO_TIMEOUT));
    state.advance(start + HELLO_TIMEOUT);
    let close = Action::Close { connection: ConnectionId(1), why: CloseWhy::NoHello };
    assert_eq!(state.next_action(), Some(close));
    assert_eq!(state.next_action(), None);
}

#[test]
fn a_peer_gets_only_so_many_connections() {
    let mut state =
        LinkState::new(ClusterName::parse("east").unwrap(), ClusterName::parse("west").unwrap(), 2, Transport::Quic, 1);
    let now = Instant::now();
    for id in 0..100 {
        state.handle(Event::Accepted { connection: ConnectionId(id), carrier: Carrier::Quic }, now);
    }
    let refused = std::iter::from_fn(|| state.next_action())
        .filter(|action| matches!(action, Action::Close { why: CloseWhy::TooMany, .. }))
        .count();
    assert_eq!(refused, 100 - 20);
}

#[test]
fn the_more_telling_trouble_is_kept() {
    let mut state =
        LinkState::new(ClusterName::parse("east").unwrap(), ClusterName::parse("west").unwrap(), 1, Transport::Quic, 1);
    let now = Instant::now();
    state.handle(Event::Configured { dialable: true }, now);
    let addresses = vec![address("192.0.2.2:1"), address("192.0.2.3:1")];
    state.handle(Event::Resolved(Ok(Answer { addresses, is_complete: true, silent: Silent::default() })), now);
    let trust = Trouble { reason: "TrustBundleMismatch", message: String::new() };
    state.handle(Event::DialFailed { attempt: AttemptId(1), trouble: trust.clone() }, now);
    state.handle(
        Event::DialFailed {
            attempt: AttemptId(2),
            trouble: Trouble::unreachable(address("192.0.2.3:1"), Carrier::Quic),
        },
        now,
    );
    assert_eq!(state.trouble(), Some(&trust));
}

/// Something that an operator, a network or an attacker does.
#[derive(Clone, Debug)]
enum Deed {
    Wait(u32),
    Cut(bool),
    Kill(usize),
    Restart(usize),
    Rotate(usize),
    Move(usize, u8),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let side = 0..2_usize;
    let deed = prop_oneof![
        4 => (1..8000_u32).prop_map(Deed::Wait),
        1 => any::<bool>().prop_map(Deed::Cut),
        1 => side.clone().prop_map(Deed::Kill),
        2 => side.clone().prop_map(Deed::Restart),
        1 => side.clone().prop_map(Deed::Rotate),
        1 => (side, 1..5_u8).prop_map(|(side, last)| Deed::Move(side, last)),
    ];
    proptest::collection::vec(deed, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happened: once the network is whole and both run, both agree on one set of connections.
    #[test]
    fn after_anything_both_sides_agree(
        deeds in deeds(),
        workers in (1..4_u32, 1..4_u32),
        dialable in prop_oneof![Just([true, true]), Just([true, false]), Just([false, true])],
    ) {
        let addresses: [&[&str]; 2] = [
            if dialable[0] { &["192.0.2.2:4143"] } else { &[] },
            if dialable[1] { &["192.0.2.1:4143"] } else { &[] },
        ];
        let mut world = World::new([workers.0, workers.1], addresses);
        for deed in deeds {
            match deed {
                Deed::Wait(time) => world.run(MS * time),
                Deed::Cut(open) => {
                    world.set_open(open);
                    world.silence();
                }
                Deed::Kill(side) => world.kill(side),
                Deed::Restart(side) => {
                    world.kill(side);
                    world.restart(side);
                }
                Deed::Rotate(side) if world.sides[side].up => world.tell(side, Event::Rotated),
                Deed::Move(side, last) if dialable[side] && world.sides[side].up => {
                    world.sides[side].addresses = vec![address(&format!("192.0.2.{last}:4143"))];
                    world.tell(side, Event::Configured { dialable: true });
                }
                Deed::Rotate(_) | Deed::Move(..) => {}
            }
        }
        world.set_open(true);
        for side in 0..2 {
            if !world.sides[side].up {
                world.restart(side);
            }
        }
        world.silence();
        world.run(60_000 * MS);
        world.assert_agreed(workers.0.min(workers.1) as usize);
        prop_assert_eq!(world.sides[0].wires.len(), world.sides[1].wires.len());
        let kept = workers.0.min(workers.1) as usize;
        prop_assert_eq!(world.sides[0].wires.len(), kept, "no connection is left over");
    }
}
