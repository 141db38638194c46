//! When a tier may serve: at once no longer, but not at once again.
//!
//! ```text
//!            healthy                  below its percentage
//!   New ---------------> Serving ---------------------------> Fallen <-----------.
//!                           ^                                   | healthy         | below again
//!                           `------ healthy for DWELL ---- Recovering -----------'
//! ```
//!
//! - In: whether the tier is healthy enough, at each change of a link's health or of the configuration; an `Instant`.
//! - Out: whether it is held back, and until when.
//! - Never does: read a clock; delay a failover to a tier that has been healthy (a pick looks at the tier's health itself; one
//!   that is held still serves where no other is healthy enough, by its place among those with any healthy cluster); hold a tier that never served, so that nothing waits at a start or after a change of the policy; hold
//!   the only tier.
//! - Numbers: [`DWELL`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a tier that was left must be healthy before it serves again. A link that comes and goes is up after two probes,
/// 200 ms apart: ten times that tells a flap from a recovery. A peer that was restarted is linked again within 2.5 s, so it
/// serves within 5 s even where the tier is its own. Clusters within the serving tier come back without it.
pub const DWELL: Duration = Duration::from_secs(2);

/// One tier of one route. Outlives the tables that show it, as long as the policy is the same.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// What the data path reads.
    held: AtomicBool,
    /// Locked where health changes, never by a pick.
    standing: Mutex<Standing>,
}

impl Hold {
    /// Whether the tier is to be left out as long as another one is healthy enough.
    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Takes in the tier's health. Says when to ask again though nothing changes.
    pub(super) fn observe(&self, healthy: bool, now: Instant) -> Option<Instant> {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        *standing = standing.next(healthy, now);
        self.held.store(matches!(*standing, Standing::Fallen | Standing::Recovering { .. }), Ordering::Relaxed);
        match *standing {
            Standing::Recovering { until } => Some(until),
            _ => None,
        }
    }
}

/// Where a tier is in the diagram above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    /// It was never healthy.
    #[default]
    New,
    Serving,
    Fallen,
    Recovering {
        until: Instant,
    },
}

impl Standing {
    fn next(self, healthy: bool, now: Instant) -> Self {
        match (self, healthy) {
            (Self::New, false) => Self::New,
            (_, false) => Self::Fallen,
            (Self::New | Self::Serving, true) => Self::Serving,
            (Self::Fallen, true) => Self::Recovering { until: now + DWELL },
            (Self::Recovering { until }, true) if now >= until => Self::Serving,
            (Self::Recovering { until }, true) => Self::Recovering { until },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_tier_that_was_left_comes_back_after_its_dwell() {
        let (hold, start) = (Hold::default(), Instant::now());
        assert_eq!((hold.observe(true, start), hold.is_held()), (None, false));
        assert_eq!((hold.observe(false, start), hold.is_held()), (None, true));
        let until = start + 500 * MS + DWELL;
        assert_eq!((hold.observe(true, start + 500 * MS), hold.is_held()), (Some(until), true));
        // Being told again does not begin the dwell anew.
        assert_eq!((hold.observe(true, until - MS), hold.is_held()), (Some(until), true));
        assert_eq!((hold.observe(true, until), hold.is_held()), (None, false));
    }

    #[test]
    fn a_flap_begins_the_dwell_anew() {
        let (hold, start) = (Hold::default(), Instant::now());
        for (healthy, at) in [(true, 0), (false, 1), (true, 2), (false, 1900), (true, 2100)] {
            hold.observe(healthy, start + at * MS);
        }
        assert!(hold.is_held());
        assert_eq!(hold.observe(true, start + 2100 * MS + DWELL), None);
        assert!(!hold.is_held());
    }

    #[test]
    fn what_never_served_waits_for_nothing() {
        let (hold, start) = (Hold::default(), Instant::now());
        assert_eq!((hold.observe(false, start), hold.is_held()), (None, false));
        assert_eq!((hold.observe(true, start + MS), hold.is_held()), (None, false));
    }
}
