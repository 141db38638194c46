//! Local addresses of mirrored names on a site: each name has one of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::pool::{Pool, Range};

/// Larger ranges are used up to here; no cluster mirrors that many names.
const RANGE_MAX: u64 = 1 << 24;

/// Who has which address.
pub type Addresses = Pool<IpNet>;

impl Range for IpNet {
    type Item = IpAddr;

    /// Without the first and the last, which mean the network and everybody in it.
    fn len(&self) -> u64 {
        let bits = self.max_prefix_len() - self.prefix_len();
        1_u64.checked_shl(u32::from(bits)).unwrap_or(u64::MAX).min(RANGE_MAX).saturating_sub(2)
    }

    fn at(&self, index: u64) -> IpAddr {
        match self.network() {
            IpAddr::V4(first) => {
                // `index` is below 2^24 and below the size of the range, so neither conversion nor sum can be wrong.
                let offset = u32::try_from(index + 1).unwrap_or_default();
                IpAddr::V4(Ipv4Addr::from_bits(first.to_bits().wrapping_add(offset)))
            }
            IpAddr::V6(first) => IpAddr::V6(Ipv6Addr::from_bits(first.to_bits().wrapping_add(u128::from(index + 1)))),
        }
    }

    fn holds(&self, address: IpAddr) -> bool {
        let offset = match (self.network(), address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => u128::from(address.to_bits().wrapping_sub(first.to_bits())),
            (IpAddr::V6(first), IpAddr::V6(address)) => address.to_bits().wrapping_sub(first.to_bits()),
            _ => return false,
        };
        (1..=u128::from(Range::len(self))).contains(&offset)
    }
}
