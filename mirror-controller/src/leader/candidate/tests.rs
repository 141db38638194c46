//! Candidates against a lease in memory, in simulated time: no runtime and no sleep.

use proptest::prelude::*;

use super::*;

/// The API server: one lease, one version for each write.
#[derive(Default)]
struct Server {
    lease: Option<Record>,
    version: u64,
    down: bool,
}

impl Server {
    fn serve(&mut self, call: &Call) -> Answer {
        if self.down {
            return Answer::Failed;
        }
        match (call, &self.lease) {
            (Call::Look, Some(lease)) => Answer::Found(lease.clone(), self.version.to_string()),
            (Call::Look | Call::Replace(..), None) => Answer::Missing,
            (Call::Create(_), Some(_)) => Answer::Conflict,
            (Call::Replace(_, version), Some(_)) if *version != self.version.to_string() => Answer::Conflict,
            (Call::Create(record) | Call::Replace(record, _), _) => {
                self.lease = Some(record.clone());
                self.version += 1;
                Answer::Written(self.version.to_string())
            }
        }
    }
}

/// A candidate with its own idea of the time of day, and an API server that it may not reach.
struct Node {
    candidate: Candidate,
    wall: Timestamp,
    cut_off: bool,
}

struct World {
    server: Server,
    nodes: Vec<Node>,
    start: Instant,
    now: Instant,
}

const STEP: Duration = Duration::from_millis(50);

impl World {
    fn new(names: &[&str]) -> Self {
        let start = Instant::now();
        let node = |(seed, name): (usize, &&str)| Node {
            candidate: Candidate::new((*name).to_owned(), seed as u64, start),
            // Clocks that agree about nothing.
            wall: Timestamp::from_second(1_000_000_000 * (1 + seed as i64)).unwrap(),
            cut_off: false,
        };
        Self { server: Server::default(), nodes: names.iter().enumerate().map(node).collect(), start, now: start }
    }

    fn step(&mut self) {
        self.now += STEP;
        for node in &mut self.nodes {
            while let Some(call) = node.candidate.poll(self.now, node.wall) {
                let answer = if node.cut_off { Answer::Failed } else { self.server.serve(&call) };
                node.candidate.answer(self.now, answer);
            }
        }
        let leading = self.leaders();
        assert!(leading.len() <= 1, "two lead at {:?}: {leading:?}", self.now - self.start);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// How long until `node` leads.
    fn until_leads(&mut self, node: usize) -> Duration {
        let began = self.now;
        while self.leaders() != [node] {
            self.step();
            assert!(self.now - began < Duration::from_secs(60), "{node} never leads");
        }
        self.now - began
    }

    fn leaders(&self) -> Vec<usize> {
        let leads = |node: &Node| matches!(node.candidate.standing(self.now), Standing::Leading(_));
        (0..self.nodes.len()).filter(|index| leads(&self.nodes[*index])).collect()
    }

    fn standing(&self, node: usize) -> Standing {
        self.nodes[node].candidate.standing(self.now)
    }
}

#[test]
fn the_first_one_makes_the_lease_and_keeps_it() {
    let mut world = World::new(&["a", "b"]);
    world.run(Duration::from_secs(120));
    assert_eq!(world.leaders().len(), 1);
    let lease = world.server.lease.clone().unwrap();
    assert_eq!((lease.lease_seconds, lease.transitions), (15, 0));
    assert!(world.server.version > 50, "renewed every two seconds at most: {}", world.server.version);
    let other = 1 - world.leaders()[0];
    assert_eq!(world.nodes[other].candidate.holder(), Some(lease.holder.as_str()));
}

#[test]
fn after_a_crash_another_one_leads_within_17_seconds_and_not_before_15() {
    for _ in 0..20 {
        let mut world = World::new(&["a", "b", "c"]);
        world.run(Duration::from_secs(31));
        let dead = world.leaders()[0];
        let renewed = world.nodes[dead].candidate.renewed.unwrap();
        world.nodes.remove(dead);
        while world.leaders().is_empty() {
            world.step();
        }
        let took = world.now - renewed;
        assert!(took >= LEASE, "{took:?}");
        assert!(took <= LEASE + RETRY + STEP, "{took:?}");
        assert_eq!(world.server.lease.as_ref().unwrap().transitions, 1);
    }
}

#[test]
fn who_cannot_renew_stops_before_another_may_begin() {
    let mut world = World::new(&["a", "b"]);
    world.run(Duration::from_secs(5));
    let old = world.leaders()[0];
    world.nodes[old].cut_off = true;
    let renewed = world.nodes[old].candidate.renewed.unwrap();
    while !world.leaders().is_empty() {
        world.step();
    }
    assert!(world.now - renewed <= RENEW_DEADLINE + STEP);
    assert_eq!(world.standing(old), Standing::Lapsed);
    world.until_leads(1 - old);
    assert!(world.now - renewed >= LEASE);
    // It comes back, and sees that it is too late.
    world.nodes[old].cut_off = false;
    world.run(Duration::from_secs(5));
    assert_eq!(world.standing(old), Standing::Superseded);
    assert_eq!(world.leaders(), [1 - old]);
}

#[test]
fn without_an_api_server_nobody_leads_and_the_same_one_goes_on() {
    let mut world = World::new(&["a", "b"]);
    world.run(Duration::from_secs(5));
    let leader = world.leaders()[0];
    world.server.down = true;
    world.run(Duration::from_secs(60));
    assert!(world.leaders().is_empty());
    assert_eq!(world.standing(leader), Standing::Lapsed);
    world.server.down = false;
    // Whoever asks first may have it; the old one asks every two seconds, and so do the others.
    world.run(Duration::from_secs(20));
    assert_eq!(world.leaders().len(), 1);
}

#[test]
fn a_lease_that_was_given_back_is_taken_at_once() {
    let mut world = World::new(&["a", "b"]);
    world.run(Duration::from_secs(30));
    let old = world.leaders()[0];
    let wall = world.nodes[old].wall;
    let call = world.nodes[old].candidate.release(wall).unwrap();
    assert!(matches!(world.server.serve(&call), Answer::Written(_)));
    world.nodes.remove(old);
    assert!(world.until_leads(0) <= RETRY + STEP);
    let lease = world.server.lease.clone().unwrap();
    assert_eq!((lease.transitions, lease.lease_seconds), (1, 15));
    assert_eq!(world.nodes[0].candidate.release(wall).map(|call| matches!(call, Call::Replace(..))), Some(true));
}

#[test]
fn a_restart_under_the_same_name_goes_on_at_once() {
    let mut world = World::new(&["a", "b"]);
    world.run(Duration::from_secs(30));
    let leader = world.leaders()[0];
    let name = world.nodes[leader].candidate.identity.clone();
    let acquired = world.server.lease.as_ref().unwrap().acquired;
    world.nodes[leader].candidate = Candidate::new(name, 9, world.now);
    assert!(world.until_leads(leader) <= STEP);
    let lease = world.server.lease.as_ref().unwrap();
    assert_eq!((lease.transitions, lease.acquired), (0, acquired));
}

#[test]
fn somebody_who_edits_the_lease_costs_one_look() {
    let mut world = World::new(&["a"]);
    world.run(Duration::from_secs(5));
    world.server.version += 1;
    world.run(Duration::from_secs(3));
    assert_eq!(world.leaders(), [0]);
    let Standing::Leading(until) = world.standing(0) else { panic!() };
    assert!(until > world.now + RENEW_DEADLINE - RETRY - STEP);
}

#[test]
fn a_lease_that_vanishes_is_no_vacancy() {
    let mut world = World::new(&["a", "b"]);
    world.run(Duration::from_secs(30));
    let leader = world.leaders()[0];
    world.nodes[leader].cut_off = true;
    let renewed = world.nodes[leader].candidate.renewed.unwrap();
    world.server.lease = None;
    world.until_leads(1 - leader);
    assert!(world.now - renewed >= LEASE);
    assert_eq!(world.server.lease.as_ref().unwrap().transitions, 1);
}

#[test]
fn an_answer_that_was_lost_is_looked_up() {
    let start = Instant::now();
    let mut server = Server::default();
    let mut candidate = Candidate::new("a".to_owned(), 1, start);
    let wall = Timestamp::UNIX_EPOCH;
    let mut now = start;
    let look = candidate.poll(now, wall).unwrap();
    candidate.answer(now, server.serve(&look));
    let create = candidate.poll(now, wall).unwrap();
    assert!(matches!(create, Call::Create(_)));
    assert_eq!(candidate.poll(now, wall), None, "one call at a time");
    // Done, and nobody heard of it.
    server.serve(&create);
    now += Duration::from_secs(2);
    candidate.answer(now, Answer::Failed);
    assert_eq!(candidate.standing(now), Standing::Standby);
    now = candidate.due();
    assert_eq!(candidate.poll(now, wall), Some(Call::Look));
    candidate.answer(now, server.serve(&Call::Look));
    let replace = candidate.poll(now, wall).unwrap();
    candidate.answer(now + Duration::from_secs(1), server.serve(&replace));
    // It counts from when it was sent.
    assert_eq!(candidate.standing(now), Standing::Leading(now + RENEW_DEADLINE));
}

#[test]
fn a_lease_that_is_fought_for_is_not_a_hot_loop() {
    let start = Instant::now();
    let mut candidate = Candidate::new("a".to_owned(), 1, start);
    let mut calls = 0;
    let mut now = start;
    while now < start + Duration::from_secs(10) {
        while let Some(call) = candidate.poll(now, Timestamp::UNIX_EPOCH) {
            calls += 1;
            candidate.answer(now, if call == Call::Look { Answer::Missing } else { Answer::Conflict });
        }
        now += STEP;
    }
    assert!(calls < 30, "{calls}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever is cut off, restarted or deleted, in any order: never two at a time ([`World::step`] looks), and one leads soon
    /// after the trouble is over.
    #[test]
    fn never_two_at_a_time(troubles in proptest::collection::vec((0_u8..5, 0_usize..3, 1_u64..400), 1..40)) {
        let mut world = World::new(&["a", "b", "c"]);
        for (restarts, (what, node, steps)) in troubles.into_iter().enumerate() {
            match what {
                0 => world.nodes[node].cut_off = true,
                1 => world.nodes[node].cut_off = false,
                2 => world.server.down = !world.server.down,
                3 => world.server.version += 1,
                // A new pod: another name.
                _ => world.nodes[node].candidate =
                    Candidate::new(format!("new-{restarts}"), restarts as u64, world.now),
            }
            for _ in 0..steps {
                world.step();
            }
        }
        world.server.down = false;
        for (index, node) in world.nodes.iter_mut().enumerate() {
            node.cut_off = false;
            // A process whose leadership went to another one ends, and another comes.
            if node.candidate.standing(world.now) == Standing::Superseded {
                node.candidate = Candidate::new(format!("again-{index}"), index as u64, world.now);
            }
        }
        world.run(Duration::from_secs(20));
        let ended = world.nodes.iter().any(|node| node.candidate.standing(world.now) == Standing::Superseded);
        prop_assert!(world.leaders().len() == 1 || ended);
    }
}
