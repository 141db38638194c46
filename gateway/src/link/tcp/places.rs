//! Places for strangers at the door, so many in all and so many of one address: who says nothing holds one until the deadline,
//! and is not known by anything but its address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// TCP connections that are not authenticated yet. One costs a descriptor, and up to 2 MiB of buffers once its preface was
/// right; peers need a handful each, for a fraction of a second.
const MOST: usize = 128;

/// Of one address. A peer behind NAT shows one for all its gateways, each with a connection a worker.
const MOST_OF_SOURCE: usize = 32;

/// All places. Cheap to clone: a handle.
#[derive(Clone, Debug, Default)]
pub(in crate::link) struct Strangers(Arc<Mutex<Places>>);

#[derive(Debug, Default)]
struct Places {
    taken: usize,
    /// Only sources that have one.
    by_source: HashMap<IpAddr, usize>,
}

/// A place. Dropping it gives it back.
#[derive(Debug)]
pub(in crate::link) struct Place {
    strangers: Strangers,
    source: IpAddr,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::link) enum Full {
    /// Every place is taken.
    #[error("{MOST} connections are not authenticated yet")]
    All,
    /// This source has as many as it may.
    #[error("{MOST_OF_SOURCE} connections of its address are not authenticated yet")]
    Source,
}

impl Strangers {
    /// A place for a connection from `address`.
    pub(in crate::link) fn enter(&self, address: IpAddr) -> Result<Place, Full> {
        let source = source(address);
        let mut places = self.places();
        let taken = places.by_source.get(&source).copied().unwrap_or_default();
        if taken >= MOST_OF_SOURCE {
            return Err(Full::Source);
        }
        if places.taken >= MOST {
            return Err(Full::All);
        }
        places.taken += 1;
        places.by_source.insert(source, taken + 1);
        drop(places);
        Ok(Place { strangers: self.clone(), source })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who has an IPv6 address has all of its /64.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & (u128::MAX << 64)).into(),
        four => four,
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.strangers.places();
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
        let strangers = Strangers::default();
        let address = |last: usize| IpAddr::from([192, 0, 2, u8::try_from(last).unwrap()]);
        let mut held = Vec::new();
        for number in 0..MOST / MOST_OF_SOURCE {
            held.extend((0..MOST_OF_SOURCE).map(|_| strangers.enter(address(number)).unwrap()));
            assert_eq!(strangers.enter(address(number)).unwrap_err(), Full::Source);
        }
        assert_eq!(strangers.enter("::ffff:192.0.2.0".parse().unwrap()).unwrap_err(), Full::Source);
        assert_eq!(strangers.enter(address(200)).unwrap_err(), Full::All);
        held.pop();
        drop(strangers.enter(address(200)).unwrap());
        held.clear();
        let places = strangers.places();
        assert_eq!((places.taken, places.by_source.len()), (0, 0));
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one_source() {
        let of = |text: &str| source(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }
}
