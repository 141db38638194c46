//! Where the peer is: the Link's addresses, and what becomes of connections when they change (F-31).

use std::net::SocketAddr;
use std::time::Instant;

use super::slot::Replace;
use super::{Answer, BACKOFF, GONE_AFTER, LinkState, MAX_ADDRESSES, RESOLVE_EVERY, Silent, Trouble};

impl LinkState {
    pub(super) fn configured(&mut self, dialable: bool, now: Instant) {
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
            self.abandon_dials(now, |_| true);
        }
    }

    pub(super) fn resolved(&mut self, result: Result<Answer, Trouble>, now: Instant) {
        self.resolving = false;
        if !self.dialable {
            return;
        }
        self.resolve_at = Some(now + RESOLVE_EVERY);
        match result {
            Ok(answer) => {
                if self.addresses.is_empty() {
                    self.slots.iter_mut().for_each(|slot| slot.hurry(now));
                }
                let moved = std::mem::take(&mut self.moved);
                let mut before = std::mem::replace(&mut self.addresses, answer.addresses);
                if answer.is_complete || moved {
                    // A family that nobody answered for has not moved.
                    let silent = if moved { Silent::default() } else { answer.silent };
                    before.retain(|address| silent.holds(address));
                    self.keep_known(before);
                    self.replace_moved(if moved { GONE_AFTER } else { 1 });
                } else {
                    self.keep_known(before);
                }
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

    /// A name that could not be looked up is no name without addresses: those of before stay, behind the fresh ones.
    fn keep_known(&mut self, before: Vec<SocketAddr>) {
        for address in before {
            if self.addresses.len() < MAX_ADDRESSES && !self.addresses.contains(&address) {
                self.addresses.push(address);
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
}
