//! What a hello changes: its connection takes the place that it was dialled for, connections to a former life of the
//! peer's gateway go, and connections that share a worker of the peer part.

use std::time::Instant;

use super::slot::Replace;
use super::{Action, CloseWhy, HelloFacts, Leave, LinkState};
use crate::link::connection::ConnectionId;

impl LinkState {
    pub(super) fn hello(&mut self, connection: ConnectionId, facts: HelloFacts, now: Instant) {
        let Some(known) = self.known.get_mut(&connection) else { return };
        if known.hello.is_some() {
            return;
        }
        known.hello = Some(facts.clone());
        known.since = now;
        let dialled = known.dialled;
        self.peer_workers = facts.workers.clamp(1, 1024) as usize;
        self.trouble = None;
        self.trouble_of_tcp = None;
        self.close_restarted(connection, &facts);
        if self.ending {
            self.farewell();
        } else if let Some((slot, _)) = dialled {
            self.promote(slot, connection);
            self.replace_outdated(connection);
            self.spread(slot);
        } else {
            self.replace_outdated(connection);
        }
    }

    /// A new start of a process is proof that connections to its former self are dead: no waiting for the idle timer.
    pub(super) fn close_restarted(&mut self, newest: ConnectionId, facts: &HelloFacts) {
        for (id, known) in &self.known {
            let Some(old) = &known.hello else { continue };
            if *id < newest && old.gateway_id == facts.gateway_id && old.boot_id != facts.boot_id {
                self.actions.push_back(Action::Close { connection: *id, why: CloseWhy::Restarted });
            }
        }
    }

    /// The connection that this slot waited for is good.
    pub(super) fn promote(&mut self, index: usize, connection: ConnectionId) {
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
    pub(super) fn covers_worker_twice(&self, index: usize, connection: ConnectionId) -> bool {
        let place = |id: ConnectionId| {
            self.known.get(&id).and_then(|known| known.hello.as_ref()).map(|hello| (&hello.boot_id, hello.worker))
        };
        let carrier = self.slots[index].carrier;
        let others = self.slots.iter().enumerate().filter(|(other, slot)| *other != index && slot.carrier == carrier);
        place(connection).is_some()
            && others.filter_map(|(_, slot)| slot.current).any(|other| place(other) == place(connection))
    }

    /// Looks for another worker of the peer where two connections share one: the kernel picks the worker by a hash of
    /// addresses and ports, so another port is another draw.
    pub(super) fn spread(&mut self, index: usize) {
        let Some(current) = self.slots[index].current else { return };
        let shared = self.target() > 1 && self.covers_worker_twice(index, current);
        if shared && self.spread_left > 0 && self.slots[index].replace.is_none() {
            self.spread_left -= 1;
            self.slots[index].replace = Some(Replace::Spread);
        }
    }
}
