//! How connections are left, by either side: first a goaway, then no new streams, closed when the last stream has ended.
//!
//! - `Rotation`: the one who dialled replaces the connection; the other leaves it when the new one stands. Asked for by a
//!   gateway that has a new certificate, and by one that will end: it takes no new connection, so the new one ends at another
//!   gateway, if there is one.
//! - `Replaced`: a newer connection of the same slot stands.
//! - `Duplicate`: connections of both directions stand between two gateways; those of the higher cluster name's dials go.
//! - `Shutdown`: announced, still used for our own clients, left for good at the drain.

use std::time::{Duration, Instant};

use linkspan_proto::configuration::Carrier;

use super::known::Known;
use super::slot::Replace;
use super::{Action, Leave, LinkState};
use crate::link::connection::ConnectionId;

/// A connection that the peer leaves after this time is replaced without a pause. One that it leaves sooner may be left again
/// and again.
const AT_ONCE_AFTER: Duration = Duration::from_secs(1);

impl LinkState {
    pub(super) fn goaway(&mut self, connection: ConnectionId, leave: Leave, now: Instant) {
        let Some(known) = self.known.get_mut(&connection) else { return };
        known.leaving = Some(leave);
        let stood = now.duration_since(known.since) >= AT_ONCE_AFTER;
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
                self.retry(index, now, now);
                if stood && !self.is_served_otherwise(index) {
                    self.slots[index].hurry(now);
                }
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

    /// Of a connection that only the peer can replace.
    fn ask_to_replace(&mut self, connection: ConnectionId) {
        let Some(known) = self.known.get_mut(&connection) else { return };
        known.left = Some(Leave::Rotation);
        self.actions.push_back(Action::GoAway { connection, leave: Leave::Rotation });
    }

    /// Asks the peer to replace every connection, and takes part in no new one. What stands is used on by both sides.
    pub(super) fn retire(&mut self, now: Instant) {
        self.retiring = true;
        self.abandon_dials(now, |_| true);
        let stand: Vec<_> = self.known.iter().filter(|(_, known)| known.is_settled()).map(|(id, _)| *id).collect();
        for connection in stand {
            self.ask_to_replace(connection);
        }
    }

    pub(super) fn announce(&mut self, now: Instant) {
        self.retiring = true;
        self.ending = true;
        self.resolve_at = None;
        self.abandon_dials(now, |_| true);
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

    /// On the side whose dials are not kept: when the other's stand, begin no more, and let those of our own run dry that lead
    /// to a gateway which dialled us.
    pub(super) fn settle_direction(&mut self, now: Instant) {
        for carrier in Carrier::ALL {
            if !self.has_kept_accepted(carrier) {
                continue;
            }
            let is_accepted = |known: &&Known| known.is_accepted_over(carrier) && known.is_settled();
            let accepted = || self.known.values().filter(is_accepted);
            let is_doubled = |id: &mut ConnectionId| {
                self.known.get(id).is_some_and(|known| accepted().any(|other| other.same_gateway(known)))
            };
            let slots = self.slots.iter_mut().filter(|slot| slot.carrier == carrier);
            let doubled: Vec<_> = slots.filter_map(|slot| slot.current.take_if(is_doubled)).collect();
            for connection in doubled {
                self.leave(connection, Leave::Duplicate);
            }
            self.abandon_dials(now, |slot| slot.carrier == carrier && slot.current.is_none());
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
