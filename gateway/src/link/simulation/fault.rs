//! What goes wrong, in which order, and the numbers that must hold when it does.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::world::{BACK, LIFE, Rebinding, World};
use crate::link::testkit::network::Conditions;

/// Both ends have withdrawn a link that carries nothing in either direction (F-02, F-04).
const WITHDRAWN: Duration = Duration::from_secs(4);

/// And one that carries in one direction only (F-06).
const AGREED: Duration = Duration::from_secs(5);

/// A link that is whole again is used within (F-04).
const USED: Duration = Duration::from_secs(3);

/// A blackout that withdraws nothing (F-05).
const SURVIVED: Duration = Duration::from_secs(2);

/// How long a gateway that ends lets its streams go on, and how soon it has ended (F-03).
const DRAIN: Duration = Duration::from_secs(10);

const ENDED: Duration = Duration::from_secs(12);

/// Between episodes: what is left of the last one dies away, idle connections included.
const CALM: Duration = Duration::from_secs(8);

/// From one gateway to another.
pub(super) type Direction = (usize, usize);

/// One thing that goes wrong, until it is healed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fault {
    /// Nothing gets through, either way.
    Blackout(Direction),
    /// Nothing gets through, in this direction.
    OneWay(Direction),
    /// These conditions on top of the usual ones, in one direction or both.
    Rough { direction: Direction, both: bool, rough: Conditions },
    /// A NAT forgets this gateway every so often, and may give it another address.
    Rebind { gateway: usize, every: Duration, moves: bool },
    /// This gateway is killed, and started again with the healing.
    Kill(usize),
    /// This gateway is ended as its supervisor does it, and started again with the healing.
    End(usize),
    /// This gateway gets a new certificate.
    Certify(usize),
    /// Its wall clock is so many seconds ahead, or behind.
    Clock { gateway: usize, ahead: i64 },
}

impl Fault {
    /// Whether a link must come through it without losing a stream or its good name.
    fn is_harmless(&self, lasts: Duration) -> bool {
        match self {
            Self::Blackout(_) | Self::OneWay(_) => lasts <= SURVIVED,
            Self::Rough { both, rough, .. } => !both || rough.loss == 0.0,
            Self::Rebind { .. } | Self::Certify(_) => true,
            // Certificates that are in use stay in use until they end.
            Self::Clock { ahead, .. } => *ahead < LIFE.as_secs().cast_signed(),
            Self::Kill(_) | Self::End(_) => false,
        }
    }

    /// The link that it hits, if it hits one alone.
    fn direction(&self) -> Option<Direction> {
        match self {
            Self::Blackout(direction) | Self::OneWay(direction) | Self::Rough { direction, .. } => Some(*direction),
            Self::Rebind { .. } | Self::Kill(_) | Self::End(_) | Self::Certify(_) | Self::Clock { .. } => None,
        }
    }

    fn touches(&self, (from, to): Direction) -> bool {
        match self {
            Self::Blackout((one, other)) => [(from, to), (to, from)].contains(&(*one, *other)),
            Self::OneWay(direction) => *direction == (from, to),
            Self::Rough { direction: (one, other), both, .. } => {
                (*one, *other) == (from, to) || (*both && (*one, *other) == (to, from))
            }
            Self::Rebind { .. } | Self::Kill(_) | Self::End(_) | Self::Certify(_) | Self::Clock { .. } => false,
        }
    }

    /// Something to go wrong in this world.
    fn drawn(world: &mut World) -> Self {
        let directions = world.directions();
        let random = &mut world.random;
        let direction = directions[random.random_range(0..directions.len())];
        let gateway = random.random_range(0..world.shape.gateways);
        match random.random_range(0..14) {
            0..2 => Self::Blackout(direction),
            2..4 => Self::OneWay(direction),
            4..9 => Self::Rough { direction, both: random.random(), rough: rough(random) },
            9 => {
                // Who is dialled by nobody; a listener behind a NAT that forgets is out of reach by nature.
                let dialled = |it: usize| {
                    let is = |(one, other, first, second): &(usize, usize, bool, bool)| {
                        (*other == it && *first) || (*one == it && *second)
                    };
                    world.shape.dials.iter().any(is)
                };
                match (0..world.shape.gateways).find(|gateway| !dialled(*gateway)) {
                    Some(gateway) => Self::Rebind {
                        gateway,
                        every: Duration::from_millis(random.random_range(1000..5000)),
                        moves: random.random(),
                    },
                    None => Self::Certify(gateway),
                }
            }
            10 => Self::Certify(gateway),
            11 => Self::End(gateway),
            12 => Self::Clock { gateway, ahead: random.random_range(-3600..3600) },
            _ => Self::Kill(gateway),
        }
    }
}

/// What the figures of F-07 to F-09 and F-11 say, at most.
fn rough(random: &mut SmallRng) -> Conditions {
    let calm = Conditions::calm(Duration::ZERO);
    match random.random_range(0..5) {
        0 => Conditions { loss: random.random_range(0.01..0.1), ..calm },
        1 => Conditions { burst: 0.01, calm: 0.2, jitter: Duration::from_millis(100), ..calm },
        2 => Conditions { reorder: 0.25, late: Duration::from_millis(50), ..calm },
        3 => Conditions { duplicate: 0.1, ..calm },
        _ => Conditions { largest: random.random_range(1200..1452), ..calm },
    }
}

/// Whether a direction is cut, and what else these faults make of it.
pub(super) fn of_direction(faults: &[Fault], direction: Direction, usual: Conditions) -> (bool, Conditions) {
    let mut conditions = usual;
    let mut cut = false;
    for fault in faults.iter().filter(|fault| fault.touches(direction)) {
        match fault {
            Fault::Rough { rough, .. } => {
                conditions = Conditions {
                    delay: conditions.delay + rough.delay,
                    jitter: conditions.jitter.max(rough.jitter),
                    loss: conditions.loss.max(rough.loss),
                    burst: conditions.burst.max(rough.burst),
                    calm: conditions.calm.min(rough.calm),
                    duplicate: conditions.duplicate.max(rough.duplicate),
                    reorder: conditions.reorder.max(rough.reorder),
                    late: conditions.late.max(rough.late),
                    largest: conditions.largest.min(rough.largest),
                };
            }
            _ => cut = true,
        }
    }
    (cut, conditions)
}

impl World {
    /// It begins.
    pub(super) async fn strike(&mut self, fault: &Fault) {
        self.book.note(&format!("fault: {fault:?}"));
        match fault {
            Fault::Kill(gateway) => self.kill(*gateway).await,
            Fault::End(gateway) => self.stop(*gateway, DRAIN).await,
            Fault::Clock { gateway, ahead } => self.set_clock(*gateway, *ahead),
            Fault::Certify(gateway) => self.certify(*gateway),
            Fault::Rebind { gateway, every, moves } => {
                self.rebindings.push(Rebinding {
                    gateway: *gateway,
                    every: *every,
                    next: Instant::now(),
                    moves: *moves,
                });
            }
            Fault::Blackout(_) | Fault::OneWay(_) | Fault::Rough { .. } => {}
        }
        self.faults.push(fault.clone());
        self.weather();
    }

    /// It is over.
    pub(super) async fn heal(&mut self, fault: &Fault) {
        self.book.note(&format!("healed: {fault:?}"));
        if let Some(at) = self.faults.iter().position(|one| one == fault) {
            self.faults.remove(at);
        }
        match fault {
            Fault::Kill(gateway) | Fault::End(gateway) => self.start(*gateway).await,
            Fault::Clock { gateway, .. } => self.set_clock(*gateway, 0),
            Fault::Rebind { gateway, .. } => self.rebindings.retain(|one| one.gateway != *gateway),
            _ => {}
        }
        self.weather();
    }

    /// One fault alone, for so long; then the numbers of the fault matrix that are about it.
    pub(super) async fn suffer(&mut self, fault: &Fault, lasts: Duration) {
        let began = self.book.now();
        self.strike(fault).await;
        if matches!(fault, Fault::End(_)) {
            self.check_ended(began);
        }
        self.pass(lasts).await;
        self.check_during(fault, began, lasts);
        self.heal(fault).await;
        let quick = matches!(fault, Fault::Blackout(_) | Fault::OneWay(_));
        let limit = if quick { USED } else { BACK };
        if self.back(limit).await.is_none() {
            self.book.wrong(&format!("not back within {limit:?}, after {fault:?} for {lasts:?}"));
            self.back(BACK).await;
        }
        self.pass(CALM).await;
        if fault.is_harmless(lasts) {
            self.check_harmless(fault, began, lasts);
        }
    }

    /// A link that carries nothing is withdrawn by both ends in time, and stays so.
    fn check_during(&self, fault: &Fault, began: Duration, lasts: Duration) {
        let (limit, hit): (_, Vec<Direction>) = match fault {
            Fault::Blackout((one, other)) => (WITHDRAWN, vec![(*one, *other), (*other, *one)]),
            Fault::OneWay((one, other)) => (AGREED, vec![(*one, *other), (*other, *one)]),
            // Who is killed sees nothing.
            Fault::Kill(gateway) => {
                (WITHDRAWN, self.directions().into_iter().filter(|(_, to)| to == gateway).collect())
            }
            _ => return,
        };
        if lasts < limit {
            return;
        }
        for direction in hit {
            let late = self.changes(direction, began + limit);
            if !late.is_empty() || self.is_alive(direction.0, direction.1) {
                let what =
                    format!("{direction:?} was not withdrawn within {limit:?} for good, but changed at {late:?}");
                self.book.wrong(&format!("{what}, under {fault:?}"));
            }
        }
    }

    /// A gateway that has ended did so in time, and no stream was lost.
    fn check_ended(&self, began: Duration) {
        let lost = self.book.lost(began);
        if !lost.is_empty() {
            self.book.wrong(&format!("streams {lost:?} were lost by a gateway that ended (F-03)"));
        }
        let took = self.book.now() - began;
        if took > ENDED {
            self.book.wrong(&format!("it took {took:?} to end (F-03)"));
        }
    }

    /// Nothing was withdrawn, and no stream of the links that were hit was lost.
    fn check_harmless(&self, fault: &Fault, began: Duration, lasts: Duration) {
        let hit = fault.direction();
        let is_hit = |(from, to): &Direction| {
            hit.is_none_or(|(one, other)| [(one, other), (other, one)].contains(&(*from, *to)))
        };
        for direction in self.directions().into_iter().filter(is_hit) {
            let changes = self.changes(direction, began);
            if !changes.is_empty() {
                self.book.wrong(&format!("{direction:?} changed at {changes:?} under {fault:?} for {lasts:?}"));
            }
            let hurt = self.book.hurt(direction, began);
            if !hurt.is_empty() {
                self.book.wrong(&format!("streams {hurt:?} were lost under {fault:?} for {lasts:?}"));
            }
        }
    }

    /// One thing after the other goes wrong, sometimes several at a time, with calm between.
    pub(super) async fn endure(&mut self, episodes: usize) {
        for _ in 0..episodes {
            let several = self.random.random_ratio(1, 3);
            if several {
                self.storm().await;
            } else {
                let fault = Fault::drawn(self);
                let lasts = Duration::from_millis(self.random.random_range(200..8000));
                self.suffer(&fault, lasts).await;
            }
            self.ask_all().await;
        }
    }

    /// Faults that overlap: no number holds while they do, but everything must be well soon after the last (F-46).
    async fn storm(&mut self) {
        let mut agenda = Vec::new();
        let mut killed = Vec::new();
        for _ in 0..self.random.random_range(2..6) {
            let fault = Fault::drawn(self);
            if let Fault::Kill(gateway) | Fault::End(gateway) = fault {
                if killed.contains(&gateway) {
                    continue;
                }
                killed.push(gateway);
            }
            let begins = Duration::from_millis(self.random.random_range(0..4000));
            let ends = begins + Duration::from_millis(self.random.random_range(200..6000));
            agenda.push((begins, agenda.len(), true, fault.clone()));
            agenda.push((ends, agenda.len(), false, fault));
        }
        agenda.sort_by_key(|(at, order, ..)| (*at, *order));
        let mut now = Duration::ZERO;
        for (at, _, begins, fault) in agenda {
            self.pass(at - now).await;
            now = at;
            if begins {
                self.strike(&fault).await;
            } else {
                self.heal(&fault).await;
            }
        }
        if self.back(BACK).await.is_none() {
            self.book.wrong(&format!("not back {BACK:?} after several faults"));
            self.back(BACK).await;
        }
        self.pass(CALM).await;
    }
}
