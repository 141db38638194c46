//! The session in many worlds, each from a seed: losses, doubled and late messages, lost connections, restarts of either side,
//! clocks that jump. The same seed gives the same trace; how to run more or one again: CONTRIBUTING.md.
//!
//! Checked in every step: what the subscriber holds is a whole state of the publisher (`World::check`); nothing is gone but by
//! one, and much at once only after its wait (S-41); a restart changes nothing (F-14, F-16). In the end both sides agree (I5).

use std::collections::BTreeSet;

use super::*;

/// Seeds of the ordinary run; `LINKSPAN_SEEDS` says how many else.
const SEEDS: u64 = 50;

/// Disturbances of one world.
const DISTURBANCES: usize = 40;

/// How often the subscriber's copy is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What happens in one world, drawn from its seed.
#[derive(Debug)]
enum Disturbance {
    Change(usize),
    Empty,
    Disconnect,
    RestartPublisher,
    RestartSubscriber,
    Weather { loss: f64, twice: f64, jitter: Duration },
    Silence,
    ClockJump(Duration),
}

fn drawn(random: &mut SmallRng) -> Disturbance {
    match random.random_range(0..20) {
        0..7 => Disturbance::Change(random.random_range(1..30)),
        7 => Disturbance::Empty,
        8..10 => Disturbance::Disconnect,
        10..12 => Disturbance::RestartPublisher,
        12..14 => Disturbance::RestartSubscriber,
        14..18 => Disturbance::Weather {
            loss: random.random_range(0.0..0.5),
            twice: random.random_range(0.0..0.3),
            jitter: random.random_range(0..500_u32) * MS,
        },
        18 => Disturbance::Silence,
        _ => Disturbance::ClockJump(random.random_range(1..60_u32) * SECOND),
    }
}

impl World {
    fn suffer(&mut self, disturbance: &Disturbance, random: &mut SmallRng) {
        match disturbance {
            Disturbance::Change(count) => {
                let mut state = self.feed.current().entries.as_ref().clone();
                for _ in 0..*count {
                    let index = random.random_range(0..80);
                    if random.random_ratio(2, 3) {
                        state.insert(key(index), entry(index, random.random_range(0..3)));
                    } else {
                        state.remove(&key(index));
                    }
                }
                self.publish(state);
            }
            Disturbance::Empty => self.publish(Entries::new()),
            Disturbance::Disconnect => self.disconnect(),
            Disturbance::RestartPublisher => self.restart_publisher(self.feed.current().epoch + 1),
            Disturbance::RestartSubscriber => self.restart_subscriber(),
            Disturbance::Weather { loss, twice, jitter } => {
                (self.loss, self.twice, self.jitter) = (*loss, *twice, *jitter);
            }
            Disturbance::Silence => self.loss = 1.0,
            Disturbance::ClockJump(by) => {
                self.now += *by;
                self.step();
            }
        }
    }

    /// Ends the subscriber without a word and begins it again with what it kept.
    fn restart_subscriber(&mut self) {
        let (before, known) = (self.view(), self.subscriber.to_keep());
        let (known, withheld) =
            known.map(|(known, withheld)| (Some(known.clone()), withheld.clone())).unwrap_or_default();
        self.subscriber = Subscriber::new(cluster("east"), known, withheld, self.now);
        self.disconnect();
        let after = self.view();
        assert_eq!((before.entries, before.withheld), (after.entries, after.withheld), "a restart changes nothing");
    }

    /// Lets time pass, and looks at what is gone.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let before = self.view();
            self.run(LOOK.min(end - self.now));
            self.check_gone(&before);
        }
    }

    fn check_gone(&self, before: &View) {
        let after = self.view();
        let gone: BTreeSet<_> = before.entries.keys().filter(|key| !after.entries.contains_key(key)).collect();
        let at_once = gone.iter().filter(|key| !before.withheld.contains(**key)).count();
        let is_mass = before.entries.len() >= MASS_REMOVAL_FLOOR && at_once * 2 > before.entries.len();
        assert!(!is_mass, "{at_once} of {} were gone at once", before.entries.len());
    }
}

/// Plays one seed to its end; what happened.
fn play(seed: u64) -> Vec<String> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut world = World::new(entries(0..random.random_range(0..80)), seed);
    let began = world.now;
    let mut trace = Vec::new();
    for _ in 0..DISTURBANCES {
        let disturbance = drawn(&mut random);
        let before = world.view();
        world.suffer(&disturbance, &mut random);
        world.check_gone(&before);
        world.pass(random.random_range(1..8000_u32) * MS);
        let view = world.view();
        trace.push(format!(
            "{:?} {disturbance:?}: {} entries, {} withheld, {:?}, {:?}, {} sent, {:?}",
            world.now - began,
            view.entries.len(),
            view.withheld.len(),
            view.freshness,
            view.verified.map(|(epoch, version, _)| (epoch, version)),
            world.sent,
            world.violations.last(),
        ));
    }
    (world.loss, world.twice, world.jitter) = (0.0, 0.0, Duration::ZERO);
    // A wait that has just begun is over, and a session that had just lost its peer has found it again.
    world.pass(MASS_REMOVAL_DELAY * 2 + SILENCE * 2);
    assert!(world.agrees(), "{:?} {:?}", world.view(), world.violations);
    assert_eq!(world.view().freshness, Freshness::Fresh);
    trace
}

/// A number that whoever runs the tests has set.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var_os(variable)?;
    let number = text.to_str().and_then(|text| text.parse().ok());
    Some(number.unwrap_or_else(|| panic!("{variable} is {}, and must be a number", text.display())))
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..5 {
        assert_eq!(play(seed), play(seed));
    }
    assert_ne!(play(0), play(1));
}

#[test]
fn both_sides_agree_after_whatever_a_seed_says() {
    let seeds = match number("LINKSPAN_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LINKSPAN_SEEDS").unwrap_or(SEEDS),
    };
    let is_one = seeds.end - seeds.start == 1;
    for seed in seeds {
        let played = std::panic::catch_unwind(|| play(seed));
        let Ok(trace) = played else { panic!("seed {seed}: LINKSPAN_SEED={seed} plays it alone") };
        if is_one {
            println!("seed {seed}\n{}", trace.join("\n"));
        }
    }
}
