//! What a world is made of, before anything goes wrong.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

/// What a world is made of.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) gateways: usize,
    /// By pair of gateways: whether the first dials, whether the second does.
    pub(super) dials: Vec<(usize, usize, bool, bool)>,
    pub(super) delay: Duration,
    /// From one packet to the next at a socket.
    pub(super) packet: Duration,
    /// Between two streams, on average.
    pub(super) every: Duration,
}

impl Shape {
    /// Two gateways, of which the first dials.
    pub(super) const PAIR: (usize, usize, bool, bool) = (0, 1, true, false);

    /// Two gateways some way apart.
    pub(super) fn pair(random: &mut SmallRng) -> Self {
        Self { gateways: 2, dials: vec![Self::PAIR], ..Self::drawn(random) }
    }

    pub(super) fn drawn(random: &mut SmallRng) -> Self {
        let gateways = if random.random_ratio(1, 3) { 3 } else { 2 };
        let pairs = (0..gateways).flat_map(|one| (one + 1..gateways).map(move |other| (one, other)));
        let dials = pairs
            .map(|(one, other)| {
                let (first, second) = [(true, false), (false, true), (true, true)][random.random_range(0..3)];
                (one, other, first, second)
            })
            .collect();
        Self {
            gateways,
            dials,
            delay: Duration::from_micros(random.random_range(500..60_000)),
            packet: Duration::from_micros(random.random_range(100..1500)),
            every: Duration::from_millis(random.random_range(100..500)),
        }
    }
}
