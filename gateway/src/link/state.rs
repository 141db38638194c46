//! The life of the link to one peer, without I/O and without a clock: events and an [`Instant`] go in, [`Action`]s and
//! the next deadline come out. The driver does what it is told.
//!
//! ```text
//! addresses --> dial slot 0 --hello--> K = min(own workers, peer's workers) --> dial slots 1..K
//!                 ^   | all failed                                                 |
//!                 |   v                                                            v
//!               back-off  <------------------ closed ------------------------ one connection a slot
//! ```
//!
//! - In: resolved addresses, results of dials, accepted connections, hellos, goaways, closes, a new certificate, the end.
//! - Out: whom to dial from which worker, which connections to leave or close, and which take new streams.
//! - Both sides may dial. When connections of both directions stand, those that the lower cluster name dialled are
//!   kept; the other side lets its own run dry. Streams on them finish: nothing is lost (F-40).
//! - A connection is replaced before it is left: after a new certificate, when the peer's addresses have moved, when two
//!   connections of one link share a worker of the peer.
//! - Never does: drop a connection that carries streams because a better one exists; dial faster than the back-off allows.
//! - Numbers: [`DIAL_TIMEOUT`], [`STAGGER`], [`HELLO_TIMEOUT`], [`RESOLVE_EVERY`], [`BACKOFF`].

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use linkspan_proto::names::ClusterName;

use super::connection::ConnectionId;
use slot::{Replace, Slot};

mod slot;

/// One handshake. The first packets go out at 0, 0.3, 0.9 and 2.1 s, so a round trip of up to a second fits; then a new
/// attempt begins with a fresh socket.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// When the next address is tried beside the one that does not answer (RFC 8305 section 5 recommends 250 ms).
pub(super) const STAGGER: Duration = Duration::from_millis(250);

/// From the end of the handshake to the peer's hello. The dialler learns only then that its certificate was accepted.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// How often host names are resolved while connected: two rounds without an address move the link within 30 s (F-31).
pub(super) const RESOLVE_EVERY: Duration = Duration::from_secs(10);

/// Pause between rounds of dialling, smallest and largest; counted from the start of the round.
pub(super) const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A connection that stood this long did not fail: the next back-off starts small again.
const STABLE: Duration = Duration::from_secs(10);

/// Rounds without an address after which a connection to it is replaced: one round may be a partial answer.
const GONE_AFTER: u8 = 2;

/// Extra dials that one link spends on reaching distinct workers of the peer; each finds one with probability 1/2 or more.
const SPREAD_TRIES: u32 = 8;

/// Names a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AttemptId(pub(super) u64);

/// Why there is no connection: a closed set word for conditions, and a sentence with a remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Trouble {
    /// The least that can be said; anything else says more.
    pub(super) const UNREACHABLE: &'static str = "Unreachable";

    pub(super) fn unreachable(address: SocketAddr) -> Self {
        let message = format!(
            "no answer from {address}/udp within {} s; is the peer's gateway running, and does every firewall between \
             let UDP to that port pass?",
            DIAL_TIMEOUT.as_secs()
        );
        Self { reason: Self::UNREACHABLE, message }
    }
}

/// What a hello tells the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HelloFacts {
    pub(super) gateway_id: String,
    pub(super) boot_id: String,
    pub(super) worker: u32,
    pub(super) workers: u32,
}

/// Why a side wants to leave a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// The process ends: no new streams from now on.
    Shutdown,
    /// Its certificate changed: a new connection first, please.
    Rotation,
    /// A newer connection takes its place.
    Replaced,
    /// The other direction is kept.
    Duplicate,
}

impl Leave {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Rotation => "rotation",
            Self::Replaced => "replaced",
            Self::Duplicate => "duplicate",
        }
    }

    /// Words of later versions mean the mildest: somebody takes its place.
    pub(super) fn from_word(word: &str) -> Self {
        [Self::Shutdown, Self::Rotation, Self::Duplicate]
            .into_iter()
            .find(|leave| leave.word() == word)
            .unwrap_or(Self::Replaced)
    }
}

/// Why we close a connection without waiting for its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseWhy {
    /// It became superfluous before it carried anything.
    Unneeded,
    /// No hello in time.
    NoHello,
    /// The peer's gateway process was started anew since.
    Restarted,
    /// The peer opened more connections than a link needs.
    TooMany,
    /// This gateway is ending.
    Shutdown,
}

/// What happened.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// The Link object: whether it has addresses.
    Configured { dialable: bool },
    /// The addresses behind the Link's host names, most preferred first.
    Resolved(Result<Vec<SocketAddr>, Trouble>),
    /// A handshake has ended well on our side.
    Dialled { attempt: AttemptId, connection: ConnectionId },
    /// A handshake has failed.
    DialFailed { attempt: AttemptId, trouble: Trouble },
    /// The peer dialled us and is authenticated.
    Accepted { connection: ConnectionId },
    /// The peer's hello: the connection is good on both sides.
    Hello { connection: ConnectionId, facts: HelloFacts },
    /// The peer wants to leave a connection.
    GoAway { connection: ConnectionId, leave: Leave },
    /// A connection is gone. `None`: as wished.
    Closed { connection: ConnectionId, trouble: Option<Trouble> },
    /// Somebody who claims to be the peer was refused.
    Refused(Trouble),
    /// We have a new certificate.
    Rotated,
    /// This gateway will end: peers shall know before anything is refused.
    Announce,
    /// This gateway ends: leave every connection when its streams have ended.
    Shutdown,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Look the Link's addresses up, then say [`Event::Resolved`].
    Resolve,
    /// Dial from this worker.
    Dial { attempt: AttemptId, worker: usize, address: SocketAddr },
    /// Forget a dial.
    Abandon { attempt: AttemptId },
    /// Tell the peer that we want to leave.
    GoAway { connection: ConnectionId, leave: Leave },
    /// Close when its streams have ended.
    Finish { connection: ConnectionId },
    /// Close now.
    Close { connection: ConnectionId, why: CloseWhy },
}

/// What is known of a connection.
#[derive(Debug)]
struct Known {
    /// The slot and address, for those that we dialled.
    dialled: Option<(usize, SocketAddr)>,
    /// Since when; a connection counts from its hello on.
    since: Instant,
    hello: Option<HelloFacts>,
    /// The peer wants to leave it.
    leaving: Option<Leave>,
    /// We told the peer that we want to leave it.
    left: Option<Leave>,
    finishing: bool,
    /// Rounds of resolution that did not show its address.
    missing: u8,
}

/// The state of one link.
#[derive(Debug)]
pub(super) struct LinkState {
    own: ClusterName,
    peer: ClusterName,
    workers: usize,
    /// From the newest hello; kept over a loss, so that a restarted peer gets all connections at once.
    peer_workers: usize,
    dialable: bool,
    addresses: Vec<SocketAddr>,
    resolve_at: Option<Instant>,
    resolving: bool,
    /// The operator changed the addresses: the next answer counts at once.
    moved: bool,
    slots: Vec<Slot>,
    known: BTreeMap<ConnectionId, Known>,
    attempts: u64,
    spread_left: u32,
    /// Peers were told that this gateway will end.
    ending: bool,
    /// Connections are left for good.
    closing: bool,
    trouble: Option<Trouble>,
    actions: VecDeque<Action>,
}

impl LinkState {
    /// A link that nothing is known of. `seed` decides the jitter.
    pub(super) fn new(own: ClusterName, peer: ClusterName, workers: usize, seed: u64) -> Self {
        let workers = workers.max(1);
        let slots = (0..workers).map(|index| Slot::new(seed.wrapping_add(index as u64))).collect();
        Self {
            own,
            peer,
            workers,
            peer_workers: 1,
            dialable: false,
            addresses: Vec::new(),
            resolve_at: None,
            resolving: false,
            moved: false,
            slots,
            known: BTreeMap::new(),
            attempts: 0,
            spread_left: SPREAD_TRIES,
            ending: false,
            closing: false,
            trouble: None,
            actions: VecDeque::new(),
        }
    }

    /// Takes in what happened.
    pub(super) fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Configured { dialable } => self.configured(dialable, now),
            Event::Resolved(result) => self.resolved(result, now),
            Event::Dialled { attempt, connection } => self.dialled(attempt, connection, now),
            Event::DialFailed { attempt, trouble } => self.dial_failed(attempt, trouble, now),
            Event::Accepted { connection } => self.accepted(connection, now),
            Event::Hello { connection, facts } => self.hello(connection, facts, now),
            Event::GoAway { connection, leave } => self.goaway(connection, leave, now),
            Event::Closed { connection, trouble } => self.closed(connection, trouble, now),
            Event::Refused(trouble) => {
                if self.usable().is_empty() {
                    self.trouble = Some(trouble);
                }
            }
            Event::Rotated => self.rotated(),
            Event::Announce => self.announce(now),
            Event::Shutdown => {
                self.announce(now);
                self.shutdown();
            }
        }
        self.advance(now);
    }

    /// Does what is due. Call when [`Self::deadline`] has passed.
    pub(super) fn advance(&mut self, now: Instant) {
        if self.resolve_at.is_some_and(|at| at <= now) && !self.resolving {
            self.resolve_at = None;
            self.resolving = true;
            self.actions.push_back(Action::Resolve);
        }
        self.expire_hellos(now);
        self.settle_direction(now);
        self.finish_replaced();
        self.advance_slots(now);
    }

    /// When to call [`Self::advance`] next, if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let hellos = self.known.values().filter(|known| known.hello.is_none()).map(|known| known.since + HELLO_TIMEOUT);
        let slots = self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let idle = self.may_dial() && index < self.wanted() && slot.wants_dial();
            slot.deadline(idle && !self.addresses.is_empty())
        });
        hellos.chain(slots).chain(self.resolve_at).min()
    }

    /// The next thing to do.
    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Connections that take new streams: those of the kept direction, else the others, else those that are about to be
    /// replaced.
    pub(super) fn usable(&self) -> Vec<ConnectionId> {
        let all = || self.known.iter().filter(|(_, known)| known.takes_streams());
        let mut usable: Vec<_> = all().filter(|(_, known)| !known.is_leaving()).collect();
        if usable.is_empty() {
            usable = all().collect();
        }
        let kept = |known: &Known| known.dialled.is_some() == self.keeps_dialled();
        if usable.iter().any(|(_, known)| kept(known)) {
            usable.retain(|(_, known)| kept(known));
        }
        usable.into_iter().map(|(id, _)| *id).collect()
    }

    /// Whether there is an address to dial.
    pub(super) fn is_dialable(&self) -> bool {
        self.dialable
    }

    /// Whether a connection is about to end because the peer's gateway is.
    pub(super) fn is_peer_leaving(&self) -> bool {
        self.known.values().any(|known| known.leaving == Some(Leave::Shutdown))
    }

    /// What went wrong last, while nothing stands.
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// How many connections the link shall have.
    pub(super) fn target(&self) -> usize {
        self.workers.min(self.peer_workers).max(1)
    }

    /// Whether no connection is left.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The lower cluster name's dials are kept.
    fn keeps_dialled(&self) -> bool {
        self.own < self.peer
    }

    /// Connections to keep up by dialling: one until one stands.
    fn wanted(&self) -> usize {
        let stands = self.slots.iter().any(|slot| slot.current.is_some());
        if stands { self.target() } else { 1 }
    }

    fn may_dial(&self) -> bool {
        self.dialable && !self.ending && (self.keeps_dialled() || !self.has_kept_accepted())
    }

    /// Whether the other side's dials stand and are the ones to keep.
    fn has_kept_accepted(&self) -> bool {
        !self.keeps_dialled() && self.known.values().any(|known| known.dialled.is_none() && known.is_settled())
    }

    fn configured(&mut self, dialable: bool, now: Instant) {
        self.dialable = dialable;
        if dialable {
            self.resolve_at = Some(now);
            self.resolving = false;
            self.moved = true;
            // New addresses are a new chance: no waiting for the old ones' back-off.
            for slot in &mut self.slots {
                slot.hurry(now);
            }
        } else {
            self.addresses.clear();
            self.resolve_at = None;
            self.abandon_dials(now);
        }
    }

    fn resolved(&mut self, result: Result<Vec<SocketAddr>, Trouble>, now: Instant) {
        self.resolving = false;
        if !self.dialable {
            return;
        }
        self.resolve_at = Some(now + RESOLVE_EVERY);
        match result {
            Ok(addresses) => {
                if self.addresses.is_empty() {
                    self.slots.iter_mut().for_each(|slot| slot.hurry(now));
                }
                self.addresses = addresses;
                let rounds = if std::mem::take(&mut self.moved) { GONE_AFTER } else { 1 };
                self.replace_moved(rounds);
            }
            Err(trouble) => {
                // The addresses of the last good answer stay in use.
                if self.addresses.is_empty() {
                    self.resolve_at = Some(now + BACKOFF.1);
                    self.trouble = Some(trouble);
                }
            }
        }
    }

    fn replace_moved(&mut self, rounds: u8) {
        if self.addresses.is_empty() {
            return;
        }
        for (id, known) in &mut self.known {
            let Some((slot, address)) = known.dialled else { continue };
            known.missing = if self.addresses.contains(&address) { 0 } else { known.missing.saturating_add(rounds) };
            let slot = &mut self.slots[slot];
            if known.missing >= GONE_AFTER && slot.current == Some(*id) {
                slot.replace = Some(Replace::Needed);
            }
        }
    }

    fn accepted(&mut self, connection: ConnectionId, now: Instant) {
        if self.ending {
            self.actions.push_back(Action::Close { connection, why: CloseWhy::Shutdown });
            return;
        }
        // Two replicas of the peer, each with all connections in use and all being replaced, and a few that look for
        // another worker of ours.
        let most = 4 * self.workers + 4;
        let accepted = self.known.values().filter(|known| known.dialled.is_none()).count();
        if accepted >= most {
            self.actions.push_back(Action::Close { connection, why: CloseWhy::TooMany });
            return;
        }
        self.known.insert(connection, Known::new(None, now));
    }

    fn hello(&mut self, connection: ConnectionId, facts: HelloFacts, now: Instant) {
        let Some(known) = self.known.get_mut(&connection) else { return };
        if known.hello.is_some() {
            return;
        }
        known.hello = Some(facts.clone());
        known.since = now;
        let dialled = known.dialled;
        self.peer_workers = facts.workers.clamp(1, 1024) as usize;
        self.trouble = None;
        self.close_restarted(connection, &facts);
        if self.ending {
            self.farewell();
        } else if let Some((slot, _)) = dialled {
            self.promote(slot, connection);
            self.spread(slot);
        }
    }

    /// A new start of a process is proof that connections to its former self are dead: no waiting for the idle timer.
    fn close_restarted(&mut self, newest: ConnectionId, facts: &HelloFacts) {
        for (id, known) in &self.known {
            let Some(old) = &known.hello else { continue };
            if *id < newest && old.gateway_id == facts.gateway_id && old.boot_id != facts.boot_id {
                self.actions.push_back(Action::Close { connection: *id, why: CloseWhy::Restarted });
            }
        }
    }

    /// The connection that this slot waited for is good.
    fn promote(&mut self, index: usize, connection: ConnectionId) {
        let covered = self.covers_worker_twice(index, connection);
        let slot = &mut self.slots[index];
        if slot.pending != Some(connection) {
            return;
        }
        slot.pending = None;
        let replace = slot.replace.take();
        let Some(old) = slot.current else {
            slot.current = Some(connection);
            return;
        };
        if replace == Some(Replace::Spread) && covered {
            // No better than the one it was to replace. The peer may have used it already, so it is left, not cut.
            self.leave(connection, Leave::Replaced);
            return;
        }
        slot.current = Some(connection);
        self.leave(old, Leave::Replaced);
    }

    /// Whether another slot's connection ends at the same worker of the same process.
    fn covers_worker_twice(&self, index: usize, connection: ConnectionId) -> bool {
        let place = |id: ConnectionId| {
            self.known.get(&id).and_then(|known| known.hello.as_ref()).map(|hello| (&hello.boot_id, hello.worker))
        };
        let others = self.slots.iter().enumerate().filter(|(other, _)| *other != index);
        place(connection).is_some()
            && others.filter_map(|(_, slot)| slot.current).any(|other| place(other) == place(connection))
    }

    /// Looks for another worker of the peer where two connections share one: the kernel picks the worker by a hash of
    /// addresses and ports, so another port is another draw.
    fn spread(&mut self, index: usize) {
        let Some(current) = self.slots[index].current else { return };
        let shared = self.target() > 1 && self.covers_worker_twice(index, current);
        if shared && self.spread_left > 0 && self.slots[index].replace.is_none() {
            self.spread_left -= 1;
            self.slots[index].replace = Some(Replace::Spread);
        }
    }

    fn goaway(&mut self, connection: ConnectionId, leave: Leave, now: Instant) {
        let Some(known) = self.known.get_mut(&connection) else { return };
        known.leaving = Some(leave);
        let Some((index, _)) = known.dialled else { return };
        let slot = &mut self.slots[index];
        if slot.current != Some(connection) {
            return;
        }
        match leave {
            Leave::Rotation => slot.replace = Some(Replace::Needed),
            // Its place is free; another replica of the peer may take it.
            Leave::Shutdown | Leave::Replaced | Leave::Duplicate => {
                slot.current = None;
                slot.retry(now, now);
            }
        }
    }

    fn closed(&mut self, connection: ConnectionId, trouble: Option<Trouble>, now: Instant) {
        let Some(known) = self.known.remove(&connection) else { return };
        if let Some(trouble) = trouble {
            self.trouble = Some(trouble);
        }
        let Some((index, _)) = known.dialled else { return };
        let slot = &mut self.slots[index];
        if slot.pending == Some(connection) {
            slot.pending = None;
            // A dial for a better place is not worth a second one now.
            if slot.replace == Some(Replace::Spread) {
                slot.replace = None;
            }
            slot.retry(known.since, now);
        } else if slot.current == Some(connection) {
            slot.current = None;
            slot.replace = None;
            if known.hello.is_some() && now.duration_since(known.since) >= STABLE {
                slot.steady();
            }
            slot.retry(now, now);
        }
        if self.known.is_empty() {
            self.spread_left = SPREAD_TRIES;
        }
    }

    fn rotated(&mut self) {
        for slot in &mut self.slots {
            if slot.current.is_some() {
                slot.replace = Some(Replace::Needed);
            }
        }
        let accepted: Vec<_> = self
            .known
            .iter()
            .filter(|(_, known)| known.dialled.is_none() && known.is_settled())
            .map(|(id, _)| *id)
            .collect();
        for connection in accepted {
            if let Some(known) = self.known.get_mut(&connection) {
                known.left = Some(Leave::Rotation);
                self.actions.push_back(Action::GoAway { connection, leave: Leave::Rotation });
            }
        }
    }

    fn announce(&mut self, now: Instant) {
        self.ending = true;
        self.resolve_at = None;
        self.abandon_dials(now);
        for slot in &mut self.slots {
            slot.current = None;
            slot.pending = None;
        }
        self.farewell();
    }

    fn shutdown(&mut self) {
        self.closing = true;
        self.farewell();
    }

    /// Tells the peer on every connection that can tell, and leaves it when it is time. A connection whose hello is still
    /// awaited has its turn then.
    fn farewell(&mut self) {
        for (id, known) in &mut self.known {
            if known.hello.is_none() {
                continue;
            }
            if known.left != Some(Leave::Shutdown) {
                known.left = Some(Leave::Shutdown);
                self.actions.push_back(Action::GoAway { connection: *id, leave: Leave::Shutdown });
            }
            if self.closing && !known.finishing {
                known.finishing = true;
                self.actions.push_back(Action::Finish { connection: *id });
            }
        }
    }

    /// Tells the peer and closes when the streams have ended.
    fn leave(&mut self, connection: ConnectionId, leave: Leave) {
        let Some(known) = self.known.get_mut(&connection) else { return };
        if known.left != Some(leave) {
            known.left = Some(leave);
            self.actions.push_back(Action::GoAway { connection, leave });
        }
        if !known.finishing {
            known.finishing = true;
            self.actions.push_back(Action::Finish { connection });
        }
    }

    fn expire_hellos(&mut self, now: Instant) {
        for (id, known) in &mut self.known {
            if known.hello.is_none() && now >= known.since + HELLO_TIMEOUT {
                // Asked for once; the close comes back as an event.
                known.since = now;
                self.actions.push_back(Action::Close { connection: *id, why: CloseWhy::NoHello });
            }
        }
    }

    /// On the side whose dials are not kept: when the other's stand, let our own run dry.
    fn settle_direction(&mut self, now: Instant) {
        if !self.has_kept_accepted() {
            return;
        }
        self.abandon_dials(now);
        let currents: Vec<_> = self.slots.iter_mut().filter_map(|slot| slot.current.take()).collect();
        for connection in currents {
            self.leave(connection, Leave::Duplicate);
        }
    }

    /// Accepted connections that we asked the peer to replace: leave them when it has.
    fn finish_replaced(&mut self) {
        let replaced = self.known.values().any(|known| known.dialled.is_none() && known.is_settled());
        if !replaced {
            return;
        }
        for (id, known) in &mut self.known {
            if known.left == Some(Leave::Rotation) && !known.finishing {
                known.finishing = true;
                self.actions.push_back(Action::Finish { connection: *id });
            }
        }
    }

    /// Handshakes that have ended already are not cut: the peer may have put streams on them. They are left when their
    /// hello comes.
    fn abandon_dials(&mut self, now: Instant) {
        for slot in &mut self.slots {
            for attempt in slot.abandon() {
                self.actions.push_back(Action::Abandon { attempt });
            }
            slot.replace = None;
            slot.hurry(now);
        }
    }
}

impl Known {
    fn new(dialled: Option<(usize, SocketAddr)>, now: Instant) -> Self {
        Self { dialled, since: now, hello: None, leaving: None, left: None, finishing: false, missing: 0 }
    }

    /// New streams on it are still welcome on both sides: it is about to be replaced, at most, or we are about to end and
    /// serve the last of our own clients.
    fn takes_streams(&self) -> bool {
        self.hello.is_some()
            && !self.finishing
            && matches!(self.leaving, None | Some(Leave::Rotation))
            && matches!(self.left, None | Some(Leave::Rotation | Leave::Shutdown))
    }

    fn is_leaving(&self) -> bool {
        self.leaving.is_some() || self.left.is_some()
    }

    /// Good on both sides and here to stay.
    fn is_settled(&self) -> bool {
        self.hello.is_some() && !self.is_leaving()
    }
}

#[cfg(test)]
mod tests;
