//! How much each connection of a peer may hold of what the peer may make us hold. No I/O, no clock.
//!
//! - In: a peer's connections, oldest first, and how many bytes have passed on each.
//! - Out: a window for each.
//! - Never does: let the windows of one peer add up to more than its pool, in whatever order connections come and go. A window
//!   that was made smaller counts in full until as many bytes have passed as the larger one had let through.
//! - Numbers: [`FIRST`], [`SHARES`] and the parts of [`Pool::divide`].

/// The window of a connection whose peer has not said hello: more than a first round trip carries. As many connections as a
/// peer may have hold it, each, before anything is divided.
pub(super) const FIRST: u64 = 32 * 1024;

/// Connections among which a pool is divided where there are fewer: those that join find their share free.
const SHARES: usize = 2;

/// What the connections of one peer may hold together, in one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    total: u64,
    /// What a connection has even when the pool is used up.
    floor: u64,
    /// What is kept for those that hold no more than [`FIRST`] or the floor.
    reserve: u64,
}

/// What one connection has of a pool.
#[derive(Debug)]
pub(super) struct Share {
    window: u64,
    /// A larger window that it had before.
    before: u64,
    /// What had passed when that was made smaller.
    since: u64,
}

impl Pool {
    /// `most` connections may there be.
    pub(super) fn new(total: u64, most: usize) -> Self {
        let most = most.max(1) as u64;
        let floor = total / 8 / most;
        Self { total, floor, reserve: most * floor.max(FIRST) }
    }

    /// Gives each its window: a fair part of three quarters, if there is room. What is left is for connections beyond
    /// [`SHARES`] that come while the others still hold larger windows, and for the least that each has.
    pub(super) fn divide(&self, expected: usize, shares: &mut [(&mut Share, u64)]) {
        let parts = expected.max(shares.len()).max(SHARES);
        let room = self.total.saturating_sub(self.reserve);
        let fair = (self.total / 4 * 3).min(room) / (parts as u64);
        let mut held: u64 = shares.iter().map(|(share, passed)| share.held(*passed)).sum();
        for (share, passed) in shares {
            let own = share.held(*passed);
            let window = fair.min(room.saturating_sub(held - own)).max(self.floor);
            share.set(window, *passed);
            held = held - own + share.held(*passed);
        }
    }
}

impl Share {
    /// Of a connection that begins with [`FIRST`].
    pub(super) const fn new() -> Self {
        Self { window: FIRST, before: 0, since: 0 }
    }

    /// Its window.
    pub(super) const fn window(&self) -> u64 {
        self.window
    }

    /// The most that it can hold, after so many bytes have passed in all.
    fn held(&self, passed: u64) -> u64 {
        self.window.max(self.before.saturating_sub(passed.saturating_sub(self.since)))
    }

    fn set(&mut self, window: u64, passed: u64) {
        if window != self.window {
            self.before = self.held(passed);
            self.since = passed;
            self.window = window;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOTAL: u64 = 36 * 1024 * 1024;

    /// Divides among shares on which nothing has passed.
    fn divide(pool: Pool, expected: usize, shares: &mut [Share]) -> Vec<u64> {
        let mut all: Vec<_> = shares.iter_mut().map(|share| (share, 0)).collect();
        pool.divide(expected, &mut all);
        shares.iter().map(Share::window).collect()
    }

    #[test]
    fn s_29_connections_of_one_peer_share_what_it_may_make_us_hold() {
        let pool = Pool::new(TOTAL, 20);
        let mut shares = Vec::new();
        for count in 1..=20 {
            shares.push(Share::new());
            let windows = divide(pool, 2, &mut shares);
            let held: u64 = shares.iter().map(|share| share.held(0)).sum();
            assert!(held <= TOTAL, "{count} hold {held}: {windows:?}");
            assert!(windows.iter().all(|window| *window >= TOTAL / 8 / 20), "{windows:?}");
            if count <= 2 {
                // Readers who keep up, and dozens who do not read at all.
                let enough = super::super::credit::MOST + 12 * super::super::credit::FIRST;
                assert!(windows.iter().all(|window| *window >= enough), "{windows:?}");
            }
        }
    }

    #[test]
    fn a_window_made_smaller_counts_until_it_was_used() {
        let pool = Pool::new(TOTAL, 20);
        let mut old = [Share::new(), Share::new(), Share::new(), Share::new()];
        divide(pool, 1, &mut old);
        let mut late: Vec<Share> = (0..4).map(|_| Share::new()).collect();
        let mut passed = 0;
        for _ in 0..3 {
            let mut all: Vec<_> = old.iter_mut().chain(&mut late).map(|share| (share, passed)).collect();
            pool.divide(1, &mut all);
            passed += TOTAL;
        }
        let fair = TOTAL / 4 * 3 / 8;
        assert!(old.iter().chain(&late).all(|share| share.window() == fair));
    }

    proptest! {
        #[test]
        fn no_order_of_events_gives_a_peer_more_than_it_may_have(
            events in proptest::collection::vec((0_u8..3, 0_usize..20, 0_u64..TOTAL), 0..200),
            expected in 1_usize..9,
        ) {
            let pool = Pool::new(TOTAL, 20);
            let mut shares: Vec<(Share, u64)> = Vec::new();
            for (kind, which, bytes) in events {
                match kind {
                    0 if shares.len() < 20 => shares.push((Share::new(), 0)),
                    1 if which < shares.len() => drop(shares.remove(which)),
                    2 if which < shares.len() => shares[which].1 += bytes,
                    _ => {}
                }
                let mut all: Vec<_> = shares.iter_mut().map(|(share, passed)| (share, *passed)).collect();
                pool.divide(expected, &mut all);
                let held: u64 = shares.iter().map(|(share, passed)| share.held(*passed)).sum();
                prop_assert!(held <= TOTAL, "{held}");
            }
        }
    }
}
