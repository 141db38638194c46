//! How many streams of peers are served at the same time.
//!
//! - In: a peer that opens a stream.
//! - Out: a [`Ticket`], held as long as the stream.
//! - Refuses when: all places are taken, or the peer holds its share: half of them. So one peer can never shut out
//!   another (S-29), and two can use everything.
//! - Never does: wait. A refused stream is `Overloaded`: never processed, the egress side may go elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use linkspan_proto::names::ClusterName;

use super::Refused;

/// Places for the streams of peers.
#[derive(Clone, Debug)]
pub struct Limits {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    total: usize,
    share: usize,
    /// Locked for a few instructions once a stream, never across an await.
    in_use: Mutex<InUse>,
}

#[derive(Debug, Default)]
struct InUse {
    total: usize,
    by_peer: HashMap<ClusterName, usize>,
}

/// A place. Dropping it frees it.
#[derive(Debug)]
pub struct Ticket {
    shared: Arc<Shared>,
    peer: ClusterName,
}

impl Limits {
    /// `total` places. Each stream may cost a descriptor for its backend, so `total` must be below the limit of open
    /// files by what the listeners and clients need.
    #[must_use]
    pub fn new(total: usize) -> Self {
        let share = (total / 2).max(1);
        Self { shared: Arc::new(Shared { total, share, in_use: Mutex::default() }) }
    }

    /// A place for a stream of `peer`.
    ///
    /// # Errors
    /// [`Refused::Overloaded`] when there is none.
    pub fn enter(&self, peer: &ClusterName) -> Result<Ticket, Refused> {
        let mut in_use = self.shared.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = in_use.by_peer.get(peer).copied().unwrap_or(0);
        if in_use.total >= self.shared.total || of_peer >= self.shared.share {
            return Err(Refused::Overloaded { in_use: of_peer });
        }
        in_use.total += 1;
        in_use.by_peer.insert(peer.clone(), of_peer + 1);
        Ok(Ticket { shared: Arc::clone(&self.shared), peer: peer.clone() })
    }

    /// Streams served now.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.shared.in_use.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut in_use = self.shared.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        in_use.total -= 1;
        if let Some(of_peer) = in_use.by_peer.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                in_use.by_peer.remove(&self.peer);
            }
        }
    }
}
