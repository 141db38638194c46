//! Which flows there are, and which give way. No I/O, no clock.
//!
//! - In: clients, and the time.
//! - Out: the flow of a client; the right to have one more; those that give way to it.
//! - Never does: let a flow give way that is in use.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{FLOWS, FLOWS_OF_CLIENT, SPARE_ABOVE, SPARE_BATCH};

/// How many flows there may be, over all sockets and workers. Locked when a flow begins and when it ends.
#[derive(Clone, Debug, Default)]
pub struct FlowPermits(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    by_client: HashMap<IpAddr, usize>,
    all: usize,
}

/// The right to have one flow. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct FlowPermit {
    permits: FlowPermits,
    client: IpAddr,
}

impl FlowPermits {
    /// A place for a flow of `client`, if there is one.
    pub(super) fn acquire(&self, client: IpAddr) -> Option<FlowPermit> {
        let mut counts = self.counts();
        if counts.all >= FLOWS {
            return None;
        }
        let own = counts.by_client.entry(client).or_default();
        if *own >= FLOWS_OF_CLIENT {
            return None;
        }
        *own += 1;
        counts.all += 1;
        Some(FlowPermit { permits: self.clone(), client })
    }

    /// Whether spare flows should give way.
    pub(super) fn is_crowded(&self) -> bool {
        self.counts().all >= SPARE_ABOVE
    }

    /// Flows there are now.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.counts().all
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FlowPermit {
    fn drop(&mut self) {
        let mut counts = self.permits.counts();
        counts.all -= 1;
        if let Some(own) = counts.by_client.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                counts.by_client.remove(&self.client);
            }
        }
    }
}

/// What a table must know of a flow.
pub(super) trait Spare {
    /// How long it has been silent, if it may give way.
    fn spare_for(&self, now: Instant) -> Option<Duration>;
    /// It gives way.
    fn end(&self);
}

/// The flows of one socket, by the client's address and port.
#[derive(Debug)]
pub(super) struct Table<F> {
    flows: HashMap<SocketAddr, Held<F>>,
    number: u64,
}

#[derive(Debug)]
struct Held<F> {
    flow: Arc<F>,
    number: u64,
    #[expect(dead_code, reason = "held for its Drop")]
    permit: FlowPermit,
}

impl<F: Spare> Table<F> {
    pub(super) fn new() -> Self {
        Self { flows: HashMap::new(), number: 0 }
    }

    /// The flow of a client.
    pub(super) fn get(&self, client: SocketAddr) -> Option<&Arc<F>> {
        self.flows.get(&client).map(|held| &held.flow)
    }

    /// A place for one more flow; where there are many, spare ones give way.
    pub(super) fn admit(&mut self, client: IpAddr, permits: &FlowPermits, now: Instant) -> Option<FlowPermit> {
        if permits.is_crowded() {
            self.make_room(None, now);
        }
        permits.acquire(client).or_else(|| {
            self.make_room(Some(client), now);
            permits.acquire(client)
        })
    }

    /// Keeps a flow until [`Self::remove`] is called with the number that it gets.
    pub(super) fn insert(
        &mut self,
        client: SocketAddr,
        permit: FlowPermit,
        flow: impl FnOnce(u64) -> Arc<F>,
    ) -> &Arc<F> {
        self.number += 1;
        let number = self.number;
        let held = Held { flow: flow(number), number, permit };
        &self.flows.entry(client).insert_entry(held).into_mut().flow
    }

    /// A flow has ended. One that has come in its place meanwhile stays.
    pub(super) fn remove(&mut self, client: SocketAddr, number: u64) {
        if self.flows.get(&client).is_some_and(|held| held.number == number) {
            self.flows.remove(&client);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Ends all flows.
    pub(super) fn clear(&mut self) {
        self.flows.drain().for_each(|(_, held)| held.flow.end());
    }

    /// Lets the longest silent of the spare flows go, of one client or of all.
    fn make_room(&mut self, client: Option<IpAddr>, now: Instant) {
        let of_client = |at: &SocketAddr| client.is_none_or(|client| at.ip().to_canonical() == client);
        let mut spare: Vec<(Duration, SocketAddr)> = self
            .flows
            .iter()
            .filter(|(at, _)| of_client(at))
            .filter_map(|(at, held)| Some((held.flow.spare_for(now)?, *at)))
            .collect();
        spare.sort_unstable_by(|one, two| two.cmp(one));
        for (_, at) in spare.into_iter().take(SPARE_BATCH) {
            if let Some(held) = self.flows.remove(&at) {
                held.flow.end();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::moved::Moved;
    use super::*;

    /// A flow as far as a table knows it.
    struct Known {
        moved: Moved,
        ended: AtomicBool,
    }

    impl Spare for Known {
        fn spare_for(&self, now: Instant) -> Option<Duration> {
            self.moved.spare_for(now)
        }

        fn end(&self) {
            self.ended.store(true, Ordering::Relaxed);
        }
    }

    fn at(port: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], u16::try_from(port).expect("a port")))
    }

    fn begin(table: &mut Table<Known>, permits: &FlowPermits, port: usize, now: Instant) -> Option<Arc<Known>> {
        let permit = table.admit(at(port).ip(), permits, now)?;
        let moved = Moved::new(now);
        moved.forth(30);
        let known = || Arc::new(Known { moved, ended: AtomicBool::new(false) });
        Some(Arc::clone(table.insert(at(port), permit, |_| known())))
    }

    #[test]
    fn a_client_that_asks_from_ever_new_ports_is_served_without_end() {
        let (mut table, permits) = (Table::new(), FlowPermits::default());
        let start = Instant::now();
        let mut ended = 0;
        let mut all = Vec::new();
        for question in 0..10_000 {
            // Some 1,000 a second, each answered at once.
            let now = start + Duration::from_millis(question as u64);
            let flow = begin(&mut table, &permits, 10_000 + question, now).expect("room");
            flow.moved.back(90, now);
            all.push(flow);
        }
        for flow in &all {
            ended += usize::from(flow.ended.load(Ordering::Relaxed));
        }
        assert_eq!(permits.in_use(), all.len() - ended);
        assert!(permits.in_use() <= SPARE_ABOVE + 1, "{}", permits.in_use());
        assert!(all[9_900..].iter().all(|flow| !flow.ended.load(Ordering::Relaxed)), "the youngest stay");
    }

    #[test]
    fn flows_in_use_never_give_way_and_a_client_has_a_limit() {
        let (mut table, permits) = (Table::new(), FlowPermits::default());
        let start = Instant::now();
        let flows: Vec<_> =
            (0..FLOWS_OF_CLIENT).map(|port| begin(&mut table, &permits, port, start).expect("room")).collect();
        let later = start + Duration::from_secs(20);
        // Unanswered, or of more than a question or two.
        for flow in flows.iter().step_by(2) {
            (0..EXCHANGE_AND_MORE).for_each(|_| flow.moved.forth(1));
            flow.moved.back(1, start);
        }
        assert!(begin(&mut table, &permits, 5000, later).is_none());
        assert!(flows.iter().all(|flow| !flow.ended.load(Ordering::Relaxed)));
        // Another client has room.
        let other = IpAddr::from([10, 0, 0, 2]);
        assert!(table.admit(other, &permits, later).is_some());
        // One flow gets its answer, and gives way once that is a while ago.
        flows[1].moved.back(1, later);
        assert!(begin(&mut table, &permits, 5000, later).is_none());
        assert!(begin(&mut table, &permits, 5000, later + Duration::from_secs(1)).is_some());
        assert!(flows[1].ended.load(Ordering::Relaxed));
    }

    const EXCHANGE_AND_MORE: u64 = super::super::EXCHANGE + 1;

    #[test]
    fn places_come_back_and_a_late_end_removes_nobody_else() {
        let (mut table, permits) = (Table::new(), FlowPermits::default());
        let now = Instant::now();
        begin(&mut table, &permits, 1, now).expect("room");
        assert_eq!(permits.in_use(), 1);
        table.remove(at(1), 1);
        assert_eq!((permits.in_use(), table.is_empty()), (0, true));
        begin(&mut table, &permits, 1, now).expect("room");
        table.remove(at(1), 1);
        assert!(table.get(at(1)).is_some());
        table.clear();
        assert_eq!(permits.in_use(), 0);
    }
}
