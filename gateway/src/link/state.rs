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
//! - Both sides may dial. When connections of both directions stand between the same two gateways, those that the lower
//!   cluster name dialled are kept; the other side lets its own run dry. Streams on them finish: nothing is lost (F-40).
//!   The other gateways of the peer are other ends: a connection to one of them is no duplicate.
//! - A connection is replaced before it is left: after a new certificate, when the peer's addresses have moved, when two
//!   connections of one link share a worker of the peer.
//! - Never does: drop a connection that carries streams because a better one exists; dial faster than the back-off allows.
//! - Numbers: [`DIAL_TIMEOUT`], [`STAGGER`], [`HELLO_TIMEOUT`], [`RESOLVE_EVERY`], [`BACKOFF`].
//!
//! Where to read: `event` is what goes in and out; `addresses` where the peer is; `carrier` what it is dialled over; `slot`
//! how; `hello` what makes a connection count; `leave` how one is left; this file ties them together.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use linkspan_proto::configuration::{Carrier, Transport};
use linkspan_proto::names::ClusterName;

use super::connection::ConnectionId;
use carrier::Carriers;
pub(super) use event::{Action, Answer, AttemptId, CloseWhy, Event, HelloFacts, Leave, Silent, Trouble};
use known::Known;
use slot::{Replace, Slot};

mod addresses;
mod carrier;
mod event;
mod hello;
mod known;
mod leave;
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

/// Addresses of one peer. A name with more records is a misconfiguration or an attack on our sockets.
pub(super) const MAX_ADDRESSES: usize = 16;

/// Pause between rounds of dialling, smallest and largest; counted from the start of the round.
pub(super) const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A connection that stood this long did not fail: the next back-off starts small again.
const STABLE: Duration = Duration::from_secs(10);

/// Rounds without an address after which a connection to it is replaced: one round may be a partial answer.
const GONE_AFTER: u8 = 2;

/// Extra dials that one link spends on reaching distinct workers of the peer; each finds one with probability 1/2 or more.
const SPREAD_TRIES: u32 = 8;

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
    /// Counts our certificates.
    certificate: u32,
    /// One for each worker and carrier, QUIC's first.
    slots: Vec<Slot>,
    carriers: Carriers,
    known: BTreeMap<ConnectionId, Known>,
    attempts: u64,
    spread_left: u32,
    /// Peers were asked to connect elsewhere; nothing new is begun.
    retiring: bool,
    /// Peers were told that this gateway will end.
    ending: bool,
    /// Connections are left for good.
    closing: bool,
    trouble: Option<Trouble>,
    trouble_of_tcp: Option<Trouble>,
    actions: VecDeque<Action>,
}

impl LinkState {
    /// A link that nothing is known of. `seed` decides the jitter.
    pub(super) fn new(own: ClusterName, peer: ClusterName, workers: usize, transport: Transport, seed: u64) -> Self {
        let workers = workers.max(1);
        let carriers = (0..2 * workers).map(|index| if index < workers { Carrier::Quic } else { Carrier::Tcp });
        let slots = (0..).zip(carriers).map(|(index, carrier)| Slot::new(carrier, seed.wrapping_add(index))).collect();
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
            certificate: 0,
            slots,
            carriers: Carriers::new(transport),
            known: BTreeMap::new(),
            attempts: 0,
            spread_left: SPREAD_TRIES,
            retiring: false,
            ending: false,
            closing: false,
            trouble: None,
            trouble_of_tcp: None,
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
            Event::Accepted { connection, carrier } => self.accepted(connection, carrier, now),
            Event::Transport(transport) => self.set_transport(transport, now),
            Event::Probes { connection, probes } => self.probed(connection, probes),
            Event::Hello { connection, facts } => self.hello(connection, facts, now),
            Event::GoAway { connection, leave } => self.goaway(connection, leave, now),
            Event::Closed { connection, trouble } => self.closed(connection, trouble, now),
            Event::Refused(trouble) => {
                if self.usable().is_empty() {
                    self.trouble = Some(trouble);
                }
            }
            Event::Rotated => self.rotated(),
            Event::Retire => self.retire(now),
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
        self.advance_carriers(now);
        self.settle_direction(now);
        self.finish_replaced();
        self.advance_slots(now);
    }

    /// When to call [`Self::advance`] next, if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let hellos = self.known.values().filter(|known| known.hello.is_none()).map(|known| known.since + HELLO_TIMEOUT);
        let slots = self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let idle = self.may_dial_for(index) && slot.wants_dial();
            slot.deadline(idle && !self.addresses.is_empty())
        });
        hellos.chain(slots).chain(self.resolve_at).chain(self.carriers_deadline()).min()
    }

    /// The next thing to do.
    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Connections that take new streams: to each gateway of the peer those of the better carrier, and of the kept direction,
    /// else the others; those that are about to be replaced if there are no others.
    pub(super) fn usable(&self) -> Vec<ConnectionId> {
        let all = || self.known.iter().filter(|(_, known)| known.takes_streams());
        let mut usable: Vec<_> = all().filter(|(_, known)| !known.is_leaving()).collect();
        if usable.is_empty() {
            usable = all().collect();
        }
        let all = usable.clone();
        usable.retain(|(_, known)| !all.iter().any(|(_, other)| self.is_worse(known, other)));
        let kept = |known: &Known| known.dialled.is_some() == self.keeps_dialled();
        let doubled = |one: &Known| {
            usable.iter().any(|(_, other)| kept(other) && other.carrier == one.carrier && other.same_gateway(one))
        };
        usable.iter().filter(|(_, known)| kept(known) || !doubled(known)).map(|(id, _)| **id).collect()
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
        // "No answer" is what a firewall for UDP looks like; over TCP there may have been one.
        let says_little = |trouble: &&Trouble| trouble.reason == Trouble::UNREACHABLE;
        match (&self.trouble, &self.trouble_of_tcp) {
            (Some(trouble), Some(of_tcp)) if says_little(&trouble) && !says_little(&of_tcp) => Some(of_tcp),
            (trouble, of_tcp) => trouble.as_ref().or(of_tcp.as_ref()),
        }
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

    /// Connections of a carrier to keep up by dialling: one until one stands.
    fn wanted(&self, carrier: Carrier) -> usize {
        let stands = self.slots.iter().any(|slot| slot.carrier == carrier && slot.current.is_some());
        if stands { self.target() } else { 1 }
    }

    fn may_dial(&self, carrier: Carrier) -> bool {
        let is_ours = self.keeps_dialled() || !self.has_kept_accepted(carrier);
        self.dialable && !self.retiring && self.carriers.wants(carrier) && is_ours
    }

    fn worker_of(&self, index: usize) -> usize {
        index % self.workers
    }

    /// Whether this slot may be dialled for. What stands may be replaced even where nothing more would be begun.
    fn may_dial_for(&self, index: usize) -> bool {
        let slot = &self.slots[index];
        let (carrier, replaces) = (slot.carrier, slot.current.is_some() && slot.replace.is_some());
        (self.may_dial(carrier) && self.worker_of(index) < self.wanted(carrier))
            || (replaces && self.dialable && !self.retiring && self.carriers.wants(carrier))
    }

    /// Whether the other side's dials over this carrier stand and are the ones to keep.
    fn has_kept_accepted(&self, carrier: Carrier) -> bool {
        !self.keeps_dialled() && self.known.values().any(|known| known.is_accepted_over(carrier) && known.is_settled())
    }

    /// Why a connection that the peer dials now is not wanted. Such a one must not be greeted either: a dialler that has a hello
    /// leaves the connection that it was to replace.
    pub(super) fn refusal(&self) -> Option<CloseWhy> {
        if self.retiring {
            return Some(CloseWhy::Shutdown);
        }
        let accepted = self.known.values().filter(|known| known.dialled.is_none()).count();
        (accepted >= self.most_accepted()).then_some(CloseWhy::TooMany)
    }

    /// Two replicas of the peer, each with all connections in use and all being replaced, over both carriers, and a few that
    /// look for another worker of ours.
    fn most_accepted(&self) -> usize {
        8 * self.workers + 4
    }

    /// Connections that there may be at most, our own and all being replaced.
    pub(super) fn most_connections(&self) -> usize {
        self.most_accepted() + 2 * self.slots.len()
    }

    fn accepted(&mut self, connection: ConnectionId, carrier: Carrier, now: Instant) {
        match self.refusal() {
            Some(why) => self.actions.push_back(Action::Close { connection, why }),
            None => {
                self.known.insert(connection, Known::new(None, carrier, self.certificate, now));
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
            self.retry(index, known.since, now);
        } else if slot.current == Some(connection) {
            slot.current = None;
            slot.replace = None;
            if known.hello.is_some() && now.duration_since(known.since) >= STABLE {
                slot.steady();
            }
            // At once, whatever serves meanwhile: another gateway of the peer may be there.
            slot.retry(now, now);
        }
        if known.carrier == Carrier::Tcp && !self.has_tcp() {
            // Nothing serves meanwhile.
            self.slots.iter_mut().filter(|slot| slot.carrier == Carrier::Quic).for_each(|slot| slot.hurry(now));
        }
        if self.known.is_empty() {
            self.spread_left = SPREAD_TRIES;
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

    /// Handshakes that have ended already are not cut: the peer may have put streams on them. They are left when their
    /// hello comes.
    fn abandon_dials(&mut self, now: Instant, of: impl Fn(&Slot) -> bool) {
        for slot in self.slots.iter_mut().filter(|slot| of(slot)) {
            for attempt in slot.abandon() {
                self.actions.push_back(Action::Abandon { attempt });
            }
            slot.replace = None;
            slot.hurry(now);
        }
    }
}

#[cfg(test)]
mod tests;
