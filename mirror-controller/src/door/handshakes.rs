//! Places for handshakes under way, so many in all and so many of one source address: who is silent in one holds a place for
//! [`super::HANDSHAKE`], and is not known by anything but its address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{HANDSHAKES_MAX, HANDSHAKES_OF_SOURCE_MAX};

/// All places. Cheap to clone: a handle.
#[derive(Clone, Debug, Default)]
pub(super) struct Handshakes(Arc<Mutex<Places>>);

#[derive(Debug, Default)]
struct Places {
    taken: usize,
    /// Only sources that have one.
    by_source: HashMap<IpAddr, usize>,
}

/// A place. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Handshake {
    handshakes: Handshakes,
    source: IpAddr,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    /// Every place is taken.
    #[error("{HANDSHAKES_MAX} handshakes are under way")]
    All,
    /// This source has as many as it may.
    #[error("{HANDSHAKES_OF_SOURCE_MAX} handshakes of its address are under way")]
    Source,
}

impl Handshakes {
    /// A place for a connection from `source`.
    pub(super) fn begin(&self, source: IpAddr) -> Result<Handshake, Full> {
        // The same pod over a socket of both families.
        let source = source.to_canonical();
        let mut places = self.places();
        let taken = places.by_source.get(&source).copied().unwrap_or_default();
        if taken >= HANDSHAKES_OF_SOURCE_MAX {
            return Err(Full::Source);
        }
        if places.taken >= HANDSHAKES_MAX {
            return Err(Full::All);
        }
        places.taken += 1;
        places.by_source.insert(source, taken + 1);
        drop(places);
        Ok(Handshake { handshakes: self.clone(), source })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut places = self.handshakes.places();
        places.taken = places.taken.saturating_sub(1);
        let left = places.by_source.get(&self.source).map_or(0, |taken| taken.saturating_sub(1));
        if left == 0 {
            places.by_source.remove(&self.source);
        } else {
            places.by_source.insert(self.source, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_source_and_given_back() {
        let handshakes = Handshakes::default();
        let source = |last: usize| IpAddr::from([10, 244, 0, u8::try_from(last).unwrap()]);
        let mut held: Vec<Vec<_>> = Vec::new();
        for number in 0..HANDSHAKES_MAX / HANDSHAKES_OF_SOURCE_MAX {
            held.push((0..HANDSHAKES_OF_SOURCE_MAX).map(|_| handshakes.begin(source(number)).unwrap()).collect());
            assert_eq!(handshakes.begin(source(number)).unwrap_err(), Full::Source);
        }
        let mapped = "::ffff:10.244.0.0".parse().unwrap();
        assert_eq!(handshakes.begin(mapped).unwrap_err(), Full::Source, "the same address in the other family");
        assert_eq!(handshakes.begin(source(200)).unwrap_err(), Full::All);
        held[0].pop();
        drop(handshakes.begin(source(200)).unwrap());
        held[0].push(handshakes.begin(mapped).unwrap());
        assert_eq!(handshakes.begin(source(0)).unwrap_err(), Full::Source);
        held.clear();
        let places = handshakes.places();
        assert_eq!((places.taken, places.by_source.len()), (0, 0));
    }
}
