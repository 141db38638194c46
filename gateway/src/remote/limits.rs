//! How many streams of peers are served at the same time.
//!
//! - In: a peer that opens a stream.
//! - Out: a [`Ticket`], held as long as the stream.
//! - Refuses when: all places are taken, or the peer holds its share: half of them. So one peer can never shut out
//!   another (S-29), and two can use everything.
//! - Never does: wait, lock. A refused stream is `Overloaded`: never processed, the egress side may go elsewhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
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
    in_use: AtomicUsize,
    /// Places in use by peer. Grows with each new peer, of which there are as many as Link objects; never shrinks.
    by_peer: ArcSwap<HashMap<ClusterName, Arc<AtomicUsize>>>,
}

/// A place. Dropping it frees it.
#[derive(Debug)]
pub struct Ticket {
    shared: Arc<Shared>,
    of_peer: Arc<AtomicUsize>,
}

impl Limits {
    /// `total` places. Each stream may cost a descriptor for its backend, so `total` must be below the limit of open
    /// files by what the listeners and clients need.
    #[must_use]
    pub fn new(total: usize) -> Self {
        let share = (total / 2).max(1);
        let shared = Shared { total, share, in_use: AtomicUsize::new(0), by_peer: ArcSwap::default() };
        Self { shared: Arc::new(shared) }
    }

    /// A place for a stream of `peer`.
    ///
    /// # Errors
    /// [`Refused::Overloaded`] when there is none.
    pub fn enter(&self, peer: &ClusterName) -> Result<Ticket, Refused> {
        let of_peer = self.of_peer(peer);
        // Taken first and given back by the ticket's drop if that was too much: two workers never both take the last.
        let before = of_peer.fetch_add(1, Ordering::AcqRel);
        let total = self.shared.in_use.fetch_add(1, Ordering::AcqRel);
        let ticket = Ticket { shared: Arc::clone(&self.shared), of_peer };
        if before >= self.shared.share || total >= self.shared.total {
            return Err(Refused::Overloaded { in_use: before });
        }
        Ok(ticket)
    }

    /// Streams served now.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.shared.in_use.load(Ordering::Acquire)
    }

    fn of_peer(&self, peer: &ClusterName) -> Arc<AtomicUsize> {
        if let Some(known) = self.shared.by_peer.load().get(peer) {
            return Arc::clone(known);
        }
        self.shared.by_peer.rcu(|all| {
            let mut all = HashMap::clone(all);
            all.entry(peer.clone()).or_default();
            all
        });
        // The entry is there now, whoever made it; the default is for the type only.
        self.shared.by_peer.load().get(peer).map(Arc::clone).unwrap_or_default()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.of_peer.fetch_sub(1, Ordering::AcqRel);
        self.shared.in_use.fetch_sub(1, Ordering::AcqRel);
    }
}
