//! How connections are left, by either side: first a goaway, then no new streams, closed when the last stream has ended.
//!
//! - `Rotation`: the one who dialled replaces the connection; the other leaves it when the new one stands.
//! - `Replaced`: a newer connection of the same slot stands.
//! - `Duplicate`: connections of both directions stand; those of the higher cluster name's dials go.
//! - `Shutdown`: announced, still used for our own clients, left for good at the drain.

use std::time::Instant;

use super::slot::Replace;
use super::{Action, Leave, LinkState};
use crate::link::connection::ConnectionId;

impl LinkState {
    pub(super) fn goaway(&mut self, connection: ConnectionId, leave: Leave, now: Instant) {
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

    pub(super) fn rotated(&mut self) {
        self.certificate = self.certificate.wrapping_add(1);
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
            self.ask_to_replace(connection);
        }
    }

    /// A connection that was being made when our certificate changed has the old one: it is replaced like those that stood,
    /// or it would be cut at the old one's end.
    pub(super) fn replace_outdated(&mut self, connection: ConnectionId) {
        let Some(known) = self.known.get(&connection) else { return };
        if known.certificate == self.certificate {
            return;
        }
        match known.dialled {
            Some((slot, _)) if self.slots[slot].current == Some(connection) => {
                self.slots[slot].replace = Some(Replace::Needed);
            }
            // Left already.
            Some(_) => {}
            None => self.ask_to_replace(connection),
        }
    }

    /// Of a connection that the peer dialled: only the peer can replace it.
    fn ask_to_replace(&mut self, connection: ConnectionId) {
        let Some(known) = self.known.get_mut(&connection) else { return };
        known.left = Some(Leave::Rotation);
        self.actions.push_back(Action::GoAway { connection, leave: Leave::Rotation });
    }

    pub(super) fn announce(&mut self, now: Instant) {
        self.ending = true;
        self.resolve_at = None;
        self.abandon_dials(now);
        for slot in &mut self.slots {
            slot.current = None;
            slot.pending = None;
        }
        self.farewell();
    }

    pub(super) fn shutdown(&mut self) {
        self.closing = true;
        self.farewell();
    }

    /// Tells the peer on every connection that can tell, and leaves it when it is time. A connection whose hello is still
    /// awaited has its turn then.
    pub(super) fn farewell(&mut self) {
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
    pub(super) fn leave(&mut self, connection: ConnectionId, leave: Leave) {
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

    /// On the side whose dials are not kept: when the other's stand, let our own run dry.
    pub(super) fn settle_direction(&mut self, now: Instant) {
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
    pub(super) fn finish_replaced(&mut self) {
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
}
