//! One of the K connections that a dialling side keeps up: who is being dialled, who stands, who is to be replaced.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use linkspan_proto::configuration::Carrier;
use linkspan_runtime::backoff::Backoff;

use super::carrier::AGAIN;
use super::{Action, AttemptId, BACKOFF, CloseWhy, DIAL_TIMEOUT, Known, LinkState, STAGGER, Trouble};
use crate::link::connection::ConnectionId;

/// Why a connection that stands is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replace {
    /// Its certificate or its address has had its day.
    Needed,
    /// It shares a worker of the peer with another; only a connection to a free worker is better.
    Spread,
}

/// One connection to keep up.
#[derive(Debug)]
pub(super) struct Slot {
    /// What it is dialled over.
    pub(super) carrier: Carrier,
    /// Stands: the hello has come.
    pub(super) current: Option<ConnectionId>,
    /// Its handshake is done, its hello is awaited.
    pub(super) pending: Option<ConnectionId>,
    /// `current` is to be replaced.
    pub(super) replace: Option<Replace>,
    round: Option<Round>,
    not_before: Option<Instant>,
    backoff: Backoff,
    /// Pauses while another carrier serves.
    rarely: Backoff,
}

/// One try of all addresses.
#[derive(Debug)]
struct Round {
    started: Instant,
    left: VecDeque<SocketAddr>,
    tries: Vec<Try>,
    /// When the next address is tried beside those that do not answer.
    next_at: Instant,
    /// What says most of what went wrong so far.
    trouble: Option<Trouble>,
}

impl Round {
    /// Of several addresses, the one that says more than "no answer" tells the operator what to do.
    fn note(&mut self, trouble: Trouble) {
        let says_more = self.trouble.as_ref().is_some_and(|old| old.reason != Trouble::UNREACHABLE);
        if trouble.reason != Trouble::UNREACHABLE || !says_more {
            self.trouble = Some(trouble);
        }
    }
}

#[derive(Debug)]
struct Try {
    id: AttemptId,
    address: SocketAddr,
    /// Our certificate when it began.
    certificate: u32,
    expires: Instant,
}

impl Slot {
    pub(super) fn new(carrier: Carrier, seed: u64) -> Self {
        let backoff = Backoff::seeded(BACKOFF.0, BACKOFF.1, seed);
        let rarely = Backoff::seeded(AGAIN.0, AGAIN.1, seed);
        Self { carrier, current: None, pending: None, replace: None, round: None, not_before: None, backoff, rarely }
    }

    /// Whether there is something to dial for.
    pub(super) fn wants_dial(&self) -> bool {
        self.round.is_none() && self.pending.is_none() && (self.current.is_none() || self.replace.is_some())
    }

    /// Dial again after the back-off, counted from the start of the try that failed.
    pub(super) fn retry(&mut self, started: Instant, now: Instant) {
        self.not_before = Some((started + self.backoff.next()).max(now));
    }

    /// Dial again when it is time to see whether this carrier works again.
    pub(super) fn retry_rarely(&mut self, started: Instant, now: Instant) {
        self.not_before = Some((started + self.rarely.next()).max(now));
    }

    /// Dial as soon as there is a reason to.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.backoff.reset();
        self.not_before = self.not_before.map(|at| at.min(now));
    }

    /// The last connection stood long enough to start with the smallest back-off again.
    pub(super) fn steady(&mut self) {
        self.backoff.reset();
    }

    /// Forgets the running dials.
    pub(super) fn abandon(&mut self) -> Vec<AttemptId> {
        self.round.take().map(|round| round.tries.into_iter().map(|one| one.id).collect()).unwrap_or_default()
    }

    /// When something is due. `idle`: a dial would begin if its time had come.
    pub(super) fn deadline(&self, idle: bool) -> Option<Instant> {
        let begin = if idle { self.not_before } else { None };
        let round = self.round.as_ref().and_then(|round| {
            let expires = round.tries.iter().map(|one| one.expires).min();
            let next = if round.left.is_empty() { None } else { Some(round.next_at) };
            [expires, next].into_iter().flatten().min()
        });
        [begin, round].into_iter().flatten().min()
    }
}

impl LinkState {
    /// Begins, continues and ends rounds of dialling.
    pub(super) fn advance_slots(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            self.expire_tries(index, now);
            let (may_dial, worker) = (self.may_dial_for(index), self.worker_of(index));
            let slot = &mut self.slots[index];
            let due = slot.not_before.is_none_or(|at| at <= now);
            if may_dial && due && slot.wants_dial() && !self.addresses.is_empty() {
                // Each slot begins with another address: several replicas of a peer are all used.
                let mut left: VecDeque<_> = self.addresses.iter().copied().collect();
                left.rotate_left(worker % self.addresses.len());
                slot.round = Some(Round { started: now, left, tries: Vec::new(), next_at: now, trouble: None });
            }
            self.begin_tries(index, now);
        }
    }

    /// Tries the next address when none is being tried or those that are do not answer.
    fn begin_tries(&mut self, index: usize, now: Instant) {
        let Some(round) = &mut self.slots[index].round else { return };
        if !round.tries.is_empty() && round.next_at > now {
            return;
        }
        let Some(address) = round.left.pop_front() else { return };
        self.attempts += 1;
        let attempt = AttemptId(self.attempts);
        let (certificate, expires) = (self.certificate, now + DIAL_TIMEOUT);
        round.tries.push(Try { id: attempt, address, certificate, expires });
        round.next_at = now + STAGGER;
        let (worker, carrier) = (self.worker_of(index), self.slots[index].carrier);
        self.actions.push_back(Action::Dial { attempt, worker, address, carrier });
    }

    fn expire_tries(&mut self, index: usize, now: Instant) {
        while let Some(round) = &mut self.slots[index].round {
            let Some(late) = round.tries.iter().find(|one| one.expires <= now) else { return };
            let (id, address) = (late.id, late.address);
            self.actions.push_back(Action::Abandon { attempt: id });
            let trouble = Trouble::unreachable(address, self.slots[index].carrier);
            self.try_failed(index, id, trouble, now);
        }
    }

    /// See [`Event::DialFailed`].
    pub(super) fn dial_failed(&mut self, attempt: AttemptId, trouble: Trouble, now: Instant) {
        if let Some(index) = self.slot_of(attempt) {
            self.try_failed(index, attempt, trouble, now);
        }
    }

    fn try_failed(&mut self, index: usize, attempt: AttemptId, trouble: Trouble, now: Instant) {
        let slot = &mut self.slots[index];
        let Some(round) = &mut slot.round else { return };
        round.tries.retain(|one| one.id != attempt);
        round.note(trouble);
        if !round.tries.is_empty() {
            return;
        }
        // The next address need not wait for its turn.
        round.next_at = now;
        if round.left.is_empty() {
            let started = round.started;
            let trouble = round.trouble.take();
            slot.round = None;
            if slot.replace == Some(Replace::Spread) {
                slot.replace = None;
            }
            match slot.carrier {
                Carrier::Quic => self.trouble = trouble,
                Carrier::Tcp => self.trouble_of_tcp = trouble,
            }
            self.retry(index, started, now);
        }
    }

    /// Lets a slot dial again after its pause, counted from the start of what failed.
    pub(super) fn retry(&mut self, index: usize, started: Instant, now: Instant) {
        if self.is_served_otherwise(index) {
            self.slots[index].retry_rarely(started, now);
        } else {
            self.slots[index].retry(started, now);
        }
    }

    /// See [`Event::Dialled`].
    pub(super) fn dialled(&mut self, attempt: AttemptId, connection: ConnectionId, now: Instant) {
        let Some(index) = self.slot_of(attempt) else {
            self.actions.push_back(Action::Close { connection, why: CloseWhy::Unneeded });
            return;
        };
        let slot = &mut self.slots[index];
        let found = slot.round.iter().flat_map(|round| &round.tries).find(|one| one.id == attempt);
        let (address, certificate) =
            found.map(|one| (one.address, one.certificate)).expect("slot_of found the attempt in this slot's round");
        for other in slot.abandon() {
            if other != attempt {
                self.actions.push_back(Action::Abandon { attempt: other });
            }
        }
        slot.pending = Some(connection);
        let known = Known::new(Some((index, address)), slot.carrier, certificate, now);
        self.known.insert(connection, known);
    }

    fn slot_of(&self, attempt: AttemptId) -> Option<usize> {
        self.slots.iter().position(|slot| slot.round.iter().flat_map(|round| &round.tries).any(|one| one.id == attempt))
    }
}
