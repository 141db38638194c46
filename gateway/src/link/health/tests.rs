//! The health of a connection against a simulated path, in virtual time.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

const SILENT: Missed = Missed { carried: false };

/// Sends the probes of a [`Health`] over a path that is dead in one interval, and notes changes of the verdict.
struct Path {
    health: Health,
    start: Instant,
    now: Instant,
    rtt: Duration,
    dead: (Duration, Duration),
    /// For so long before that, it loses probes and carries other packets.
    lossy: Duration,
    /// It carries other packets even while it is dead: nobody answers.
    is_deaf: bool,
    flying: Vec<(Instant, Option<Instant>, Probe)>,
    changes: Vec<(Duration, Verdict)>,
}

impl Path {
    fn new(rtt: Duration, dead: (Duration, Duration)) -> Self {
        let start = Instant::now();
        let health = Health::new(Verdict::Up, start);
        Self {
            health,
            start,
            now: start,
            rtt,
            dead,
            lossy: Duration::ZERO,
            is_deaf: false,
            flying: Vec::new(),
            changes: Vec::new(),
        }
    }

    fn is_dead(&self, at: Instant) -> bool {
        let at = at.duration_since(self.start);
        at >= self.dead.0 && at < self.dead.1
    }

    fn run(&mut self, until: Duration) {
        let end = self.start + until;
        while self.now < end {
            let before = self.health.verdict();
            if let Some(probe) = self.health.poll(self.now) {
                let back = self.now + self.rtt;
                // No retransmission here: the worst case. A transport that repeats lost probes is only better.
                let is_lost = self.is_dead(self.now) || self.is_dead(back) || self.is_dead(self.now + self.lossy);
                let answered = !is_lost && self.rtt < PROBE_TIMEOUT;
                self.flying.push((self.now + PROBE_TIMEOUT, answered.then_some(back), probe));
            }
            let now = self.now;
            let mut done = Vec::new();
            self.flying.retain(|(expires, back, probe)| {
                let answer = back.is_some_and(|back| back <= now);
                if answer || *expires <= now {
                    done.push((answer, *probe));
                }
                !(answer || *expires <= now)
            });
            for (answer, probe) in done {
                let (sent, ended) = (probe.sent.duration_since(self.start), now.duration_since(self.start));
                let carried = self.is_deaf || sent < self.dead.0 || ended > self.dead.1.saturating_add(self.rtt);
                if answer { self.health.answer(probe, now) } else { self.health.miss(probe, Missed { carried }, now) }
            }
            if self.health.verdict() != before {
                self.changes.push((self.now.duration_since(self.start), self.health.verdict()));
            }
            self.now += MS;
        }
    }
}

#[test]
fn a_connection_that_is_down_is_given_up_ten_seconds_after_it_carried_something() {
    let forever = (5000 * MS, 3_600_000 * MS);
    let mut path = Path::new(20 * MS, forever);
    path.run(14_000 * MS);
    assert!(path.health.verdict() == Verdict::Down && !path.health.is_lost(path.now));
    path.run(17_000 * MS);
    assert!(path.health.is_lost(path.now));
    let mut deaf = Path { is_deaf: true, ..Path::new(20 * MS, forever) };
    deaf.run(60_000 * MS);
    assert!(deaf.health.verdict() == Verdict::Down && !deaf.health.is_lost(deaf.now), "it may be used for streams");
}

#[test]
fn a_silent_death_is_withdrawn_within_four_seconds_at_any_moment() {
    for offset in (0..1000).step_by(7) {
        let died = 5000 * MS + offset * MS;
        let mut path = Path::new(2 * MS, (died, Duration::MAX));
        path.run(died + 6000 * MS);
        let [(down, Verdict::Down)] = path.changes[..] else { panic!("{:?}", path.changes) };
        let took = down - died;
        assert!(took > 2400 * MS && took < 3700 * MS, "died at {died:?}, down after {took:?}");
    }
}

#[test]
fn a_blackout_of_two_seconds_is_survived_at_any_moment() {
    for rtt in [1, 20, 100, 200] {
        for offset in (0..1000).step_by(7) {
            let died = 5000 * MS + offset * MS;
            let mut path = Path::new(rtt * MS, (died, died + 2000 * MS));
            path.run(died + 8000 * MS);
            assert!(path.changes.is_empty(), "rtt {rtt} ms, died at {died:?}: {:?}", path.changes);
        }
    }
}

#[test]
fn probes_that_were_lost_before_a_blackout_do_not_shorten_it() {
    for lossy in [100, 300, 600] {
        for offset in (0..1000).step_by(7) {
            let died = 5000 * MS + offset * MS;
            let mut path = Path::new(20 * MS, (died, died + 2000 * MS));
            path.lossy = lossy * MS;
            path.run(died + 8000 * MS);
            assert!(path.changes.is_empty(), "lossy for {lossy} ms, died at {died:?}: {:?}", path.changes);
        }
    }
}

#[test]
fn a_path_that_loses_probes_before_it_dies_is_withdrawn_no_later() {
    for offset in (0..1000).step_by(7) {
        let died = 5000 * MS + offset * MS;
        let mut path = Path::new(20 * MS, (died, Duration::MAX));
        path.lossy = 600 * MS;
        path.run(died + 6000 * MS);
        let [(down, Verdict::Down)] = path.changes[..] else { panic!("{:?}", path.changes) };
        assert!(down - died < 3700 * MS, "died at {died:?}, down after {:?}", down - died);
    }
}

#[test]
fn a_peer_that_acknowledges_and_never_answers_is_withdrawn_too() {
    for offset in (0..1000).step_by(7) {
        let deaf = 5000 * MS + offset * MS;
        let mut path = Path::new(20 * MS, (deaf, Duration::MAX));
        path.is_deaf = true;
        path.run(deaf + 6000 * MS);
        let [(down, Verdict::Down)] = path.changes[..] else { panic!("{:?}", path.changes) };
        assert!(down - deaf < PROBE_EVERY + DOWN_AT_LAST + PROBE_FAST, "{:?}", down - deaf);
    }
}

#[test]
fn a_healed_path_is_up_after_two_answers() {
    let mut path = Path::new(10 * MS, (3000 * MS, 10_000 * MS));
    path.run(12_000 * MS);
    let [(_, Verdict::Down), (up, Verdict::Up)] = path.changes[..] else { panic!("{:?}", path.changes) };
    assert!(up - 10_000 * MS < 500 * MS, "{up:?}");
}

#[test]
fn one_lost_probe_changes_nothing_but_the_pace() {
    let mut path = Path::new(10 * MS, (2990 * MS, 3010 * MS));
    path.run(10_000 * MS);
    assert!(path.changes.is_empty());
    assert!(!path.health.is_in_doubt());
}

#[test]
fn a_new_connection_keeps_the_verdict_until_it_proves_another() {
    let now = Instant::now();
    let mut health = Health::new(Verdict::Down, now);
    let first = health.poll(now).expect("probed at once");
    health.answer(first, now + 10 * MS);
    assert_eq!(health.verdict(), Verdict::Down);
    let second = health.poll(health.deadline()).expect("due");
    assert!(second.sent <= now + 10 * MS + PROBE_FAST);
    health.answer(second, second.sent + 10 * MS);
    assert_eq!(health.verdict(), Verdict::Up);
}

#[test]
fn an_old_probe_that_fails_late_says_nothing() {
    let now = Instant::now();
    let mut health = Health::new(Verdict::Up, now);
    let old = health.poll(now).expect("due");
    let new = health.poll(now + PROBE_EVERY).expect("due");
    health.answer(new, now + PROBE_EVERY + MS);
    health.miss(old, SILENT, now + PROBE_EVERY + 2 * MS);
    assert!(!health.is_in_doubt());
}

#[test]
fn a_link_outlives_its_connections_for_a_moment() {
    let now = Instant::now();
    let mut link = LinkHealth::new();
    assert_eq!(link.verdict(), Verdict::Down);
    assert!(link.update(true, false, now));
    assert!(!link.update(false, false, now + MS), "no connection at all: keep the last verdict for now");
    assert_eq!(link.deadline(), Some(now + MS + DOWN_AFTER));
    assert!(!link.update(true, false, now + 1000 * MS), "back in time: never down");
    assert!(!link.update(false, false, now + 2000 * MS));
    assert!(link.update(false, false, now + 2000 * MS + DOWN_AFTER));
    assert_eq!(link.verdict(), Verdict::Down);
    assert!(link.update(true, false, now + 5000 * MS));
    assert!(link.update(false, true, now + 6000 * MS), "judged by the probes: down at once");
}

proptest! {
    /// Whatever the order of answers and misses: down needs three misses in a row, up two answers in a row.
    #[test]
    fn verdicts_need_their_numbers(results in proptest::collection::vec((any::<bool>(), 1_u64..1500), 1..200)) {
        let mut now = Instant::now();
        let mut health = Health::new(Verdict::Up, now);
        let (mut misses, mut answers) = (0, 0);
        for (good, wait) in results {
            now += MS * u32::try_from(wait).unwrap();
            let before = health.verdict();
            let probe = Probe { sent: now };
            if good {
                health.answer(probe, now);
                (misses, answers) = (0, answers + 1);
            } else {
                health.miss(probe, SILENT, now);
                (misses, answers) = (misses + 1, 0);
            }
            if before != health.verdict() {
                match health.verdict() {
                    Verdict::Down => prop_assert!(misses >= DOWN_MISSES),
                    Verdict::Up => prop_assert!(answers >= UP_ANSWERS),
                }
            }
            prop_assert!(health.deadline() <= now + PROBE_EVERY);
        }
    }
}
