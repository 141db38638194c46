//! Who takes the datagrams of which flow, on one connection. No I/O, no clock.
//!
//! - In: bindings and their end; datagrams, and the time at which they come.
//! - Out: who takes a datagram; what was kept for a flow that is bound now.
//! - Never does: keep anything of a flow that only we could have opened, or more than a peer may make us hold.
//! - Numbers: [`EARLY_FOR`], [`EARLY_OF_FLOW`], [`EARLY`], [`EARLY_BYTES`].
//!
//! The first datagrams of an association travel with the header of its stream, in one packet even, and QUIC hands them out
//! before it: they are the rule, not the exception.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// How long datagrams wait for the header of their stream. A lost packet of it is sent again after a round trip or two.
pub(super) const EARLY_FOR: Duration = Duration::from_secs(1);

/// Of one flow: what comes at 500 Mbit/s while a worker is busy for a millisecond.
pub(super) const EARLY_OF_FLOW: usize = 64;

/// Of all flows of a connection.
pub(super) const EARLY: usize = 1024;

/// Their payload in bytes.
pub(super) const EARLY_BYTES: usize = 1024 * 1024;

/// The flows of one connection; `S` takes the datagrams of one.
#[derive(Debug)]
pub(super) struct Flows<S> {
    bound: HashMap<u64, S>,
    early: HashMap<u64, Vec<Bytes>>,
    /// Flows in `early` by age, with when they came; some of them may be bound or gone since.
    order: VecDeque<(Instant, u64)>,
    count: usize,
    bytes: usize,
}

impl<S> Default for Flows<S> {
    fn default() -> Self {
        Self { bound: HashMap::new(), early: HashMap::new(), order: VecDeque::new(), count: 0, bytes: 0 }
    }
}

/// What became of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken<S> {
    /// It is this one's.
    By(S, Bytes),
    /// It waits for the header of its stream.
    Kept,
    /// Too many wait already.
    Full,
    /// Its flow has ended, or never was.
    Unknown,
}

impl<S: Clone> Flows<S> {
    /// Takes a datagram. `is_ours`: the flow is one that this side has opened, so it is bound or it has ended.
    pub(super) fn take(&mut self, flow: u64, payload: Bytes, is_ours: bool, now: Instant) -> Taken<S> {
        if let Some(sink) = self.bound.get(&flow) {
            return Taken::By(sink.clone(), payload);
        }
        if is_ours {
            return Taken::Unknown;
        }
        let waiting = self.early.get(&flow).map_or(0, Vec::len);
        if waiting >= EARLY_OF_FLOW || self.count >= EARLY || self.bytes + payload.len() > EARLY_BYTES {
            return Taken::Full;
        }
        if waiting == 0 {
            self.order.push_back((now, flow));
        }
        self.count += 1;
        self.bytes += payload.len();
        // The packet's whole memory hangs on a slice of it: a small datagram must not hold it for a second.
        self.early.entry(flow).or_default().push(Bytes::copy_from_slice(&payload));
        Taken::Kept
    }

    /// From now on `sink` takes the datagrams of `flow`. Gives what was kept, in order.
    pub(super) fn bind(&mut self, flow: u64, sink: S) -> Vec<Bytes> {
        self.bound.insert(flow, sink);
        self.forget(flow)
    }

    /// Nobody takes the datagrams of `flow` any more. Says how many were kept.
    pub(super) fn unbind(&mut self, flow: u64) -> u64 {
        self.bound.remove(&flow);
        self.forget(flow).len() as u64
    }

    /// When to call [`Self::expire`].
    pub(super) fn due(&self) -> Option<Instant> {
        self.order.front().map(|(since, _)| *since + EARLY_FOR)
    }

    /// Gives up what has waited for too long. Says how many datagrams those were.
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        let mut lost = 0;
        while let Some((_, flow)) = self.order.front().copied().filter(|(since, _)| *since + EARLY_FOR <= now) {
            self.order.pop_front();
            lost += self.drop_early(flow).len() as u64;
        }
        lost
    }

    /// Whether datagrams of `flow` are kept.
    #[cfg(test)]
    pub(super) fn is_waiting(&self, flow: u64) -> bool {
        self.early.contains_key(&flow)
    }

    fn forget(&mut self, flow: u64) -> Vec<Bytes> {
        let early = self.drop_early(flow);
        if !early.is_empty() {
            self.order.retain(|(_, other)| *other != flow);
        }
        early
    }

    fn drop_early(&mut self, flow: u64) -> Vec<Bytes> {
        let early = self.early.remove(&flow).unwrap_or_default();
        self.count -= early.len();
        self.bytes -= early.iter().map(Bytes::len).sum::<usize>();
        early
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn what_comes_before_the_header_is_kept_in_order() {
        let now = Instant::now();
        let mut flows = Flows::default();
        assert_eq!(flows.take(4, payload("a"), false, now), Taken::Kept);
        assert_eq!(flows.take(4, payload("b"), false, now), Taken::Kept);
        assert_eq!(flows.take(8, payload("x"), false, now), Taken::Kept);
        assert_eq!(flows.bind(4, "four"), [payload("a"), payload("b")]);
        assert_eq!(flows.take(4, payload("c"), false, now), Taken::By("four", payload("c")));
        assert_eq!((flows.count, flows.bytes, flows.order.len()), (1, 1, 1));
    }

    #[test]
    fn nothing_waits_for_long() {
        let now = Instant::now();
        let mut flows = Flows::default();
        assert_eq!(flows.due(), None);
        flows.take(4, payload("a"), false, now);
        flows.take(8, payload("b"), false, now + EARLY_FOR / 2);
        assert_eq!(flows.due(), Some(now + EARLY_FOR));
        assert_eq!(flows.expire(now + EARLY_FOR), 1);
        assert_eq!(flows.due(), Some(now + EARLY_FOR / 2 + EARLY_FOR));
        assert_eq!(flows.bind(4, "late"), Vec::<Bytes>::new());
        assert_eq!(flows.unbind(8), 1);
        assert_eq!((flows.count, flows.bytes, flows.due()), (0, 0, None));
    }

    #[test]
    fn of_our_own_flows_nothing_is_kept() {
        let now = Instant::now();
        let mut flows = Flows::default();
        assert_eq!(flows.take(1, payload("a"), true, now), Taken::Unknown);
        flows.bind(1, "one");
        assert_eq!(flows.take(1, payload("a"), true, now), Taken::By("one", payload("a")));
        assert_eq!(flows.unbind(1), 0);
        assert_eq!(flows.take(1, payload("a"), true, now), Taken::Unknown);
    }

    #[test]
    fn s_29_a_peer_cannot_make_us_hold_more_than_the_bounds() {
        let now = Instant::now();
        let mut flows: Flows<()> = Flows::default();
        for _ in 0..EARLY_OF_FLOW {
            assert_eq!(flows.take(0, payload("x"), false, now), Taken::Kept);
        }
        assert_eq!(flows.take(0, payload("x"), false, now), Taken::Full);
        let kept = (1..10_000).filter(|flow| flows.take(flow * 4, Bytes::new(), false, now) == Taken::Kept).count();
        assert_eq!(kept, EARLY - EARLY_OF_FLOW);

        let mut flows: Flows<()> = Flows::default();
        let large = Bytes::from(vec![0; 60_000]);
        let kept = (0..100).filter(|flow| flows.take(flow * 4, large.clone(), false, now) == Taken::Kept).count();
        assert_eq!(kept, EARLY_BYTES / 60_000);
    }
}
