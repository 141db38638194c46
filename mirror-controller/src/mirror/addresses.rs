//! Local addresses of mirrored names: the same name has the same address for as long as it is remembered. Pure.
//!
//! - **In**: names, and which cluster asks for them.
//! - **Out**: one address for each name; the text of `addresses.json`, which a restart reads again.
//! - **Refuses when**: the range is full, or one cluster would take what others still need.
//! - **Never does**: give an address of a name that is in use or still remembered to another name, while any other address
//!   is free: clients and their caches outlive a mirror. Freed addresses are used again last, the oldest first.
//! - **Numbers**: [`REMEMBERED_MAX`], [`NAMES_PER_CLUSTER`], [`RESERVE`].
//!
//! A new name starts looking at a place made of its hash, so that most names get the same address even when the file is
//! lost, and two sites on one host that share a range rarely meet.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use linkspan_proto::names::ClusterName;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Names without a mirror that keep their address. More than a peer can export, so that a whole peer may come back.
pub const REMEMBERED_MAX: usize = 65_536;
/// Names of one cluster: 10,000 services with two names each, and as many endpoints of headless services.
pub const NAMES_PER_CLUSTER: usize = 32_768;
/// Addresses that each linked cluster finds free, however many another one wants (half of its even share in small ranges).
pub const RESERVE: u64 = 1_024;
/// Larger ranges are used up to here; no cluster mirrors that many names.
const RANGE_MAX: u64 = 1 << 24;

/// Why a name gets no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing free.
    #[error("all {0} addresses of mirrorAddresses are in use; choose a larger range in site.yaml")]
    Exhausted(u64),
    /// One cluster has its share.
    #[error("{0} has its share of the mirrored names; choose a larger mirrorAddresses in site.yaml if that is right")]
    ShareExceeded(ClusterName),
}

/// One name's address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Held {
    address: IpAddr,
    cluster: ClusterName,
    /// Order of release; `None` while in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    freed: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    range: IpNet,
    names: BTreeMap<String, Held>,
}

/// Who has which address.
#[derive(Debug)]
pub struct Addresses {
    range: IpNet,
    names: BTreeMap<String, Held>,
    taken: HashMap<IpAddr, String>,
    /// Remembered names by order of release.
    freed: BTreeMap<u64, String>,
    /// Names in use by cluster.
    used: BTreeMap<ClusterName, u64>,
    sequence: u64,
    changed: bool,
}

impl Addresses {
    /// Nothing given out yet.
    #[must_use]
    pub fn new(range: IpNet) -> Self {
        Self {
            range: range.trunc(),
            names: BTreeMap::new(),
            taken: HashMap::new(),
            freed: BTreeMap::new(),
            used: BTreeMap::new(),
            sequence: 0,
            changed: false,
        }
    }

    /// What a file says. Nothing is in use yet: every name says again that it wants its address. Names whose address lies
    /// outside the range get a new one.
    ///
    /// # Errors
    /// When the text is not what [`Addresses::text`] writes.
    pub fn parse(text: &str, range: IpNet) -> Result<Self, serde_json::Error> {
        let file: File = serde_json::from_str(text)?;
        let mut addresses = Self::new(range);
        // Names that were in use when the file was written are remembered longest.
        let mut order: Vec<_> = file.names.into_iter().collect();
        order.sort_by_key(|(name, held)| (held.freed.unwrap_or(u64::MAX), name.clone()));
        for (name, held) in order {
            let usable = addresses.is_usable(held.address);
            if usable && !addresses.taken.contains_key(&held.address) {
                addresses.remember(name, held.address, held.cluster);
            }
        }
        addresses.changed = false;
        Ok(addresses)
    }

    /// The address of `name`, which `cluster` (one of `clusters`) causes to exist.
    ///
    /// # Errors
    /// When there is none to give.
    pub fn assign(
        &mut self,
        name: &str,
        cluster: &ClusterName,
        clusters: &[ClusterName],
    ) -> Result<IpAddr, AddressError> {
        if let Some(held) = self.names.get_mut(name) {
            let address = held.address;
            match held.freed.take() {
                Some(order) => drop(self.freed.remove(&order)),
                None if held.cluster == *cluster => return Ok(address),
                // The name passes from one cluster's mirror to another's.
                None => {
                    if let Some(used) = self.used.get_mut(&held.cluster) {
                        *used = used.saturating_sub(1);
                    }
                }
            }
            held.cluster = cluster.clone();
            *self.used.entry(cluster.clone()).or_default() += 1;
            self.changed = true;
            return Ok(address);
        }
        self.check_share(cluster, clusters)?;
        let address = match self.unused(name) {
            Some(address) => address,
            None => self.reuse().ok_or_else(|| AddressError::Exhausted(self.usable()))?,
        };
        self.taken.insert(address, name.to_owned());
        self.names.insert(name.to_owned(), Held { address, cluster: cluster.clone(), freed: None });
        *self.used.entry(cluster.clone()).or_default() += 1;
        self.changed = true;
        Ok(address)
    }

    /// `name` is mirrored no more; its address stays remembered.
    pub fn release(&mut self, name: &str) {
        let Some(held) = self.names.get_mut(name).filter(|held| held.freed.is_none()) else { return };
        self.sequence += 1;
        held.freed = Some(self.sequence);
        if let Some(used) = self.used.get_mut(&held.cluster) {
            *used = used.saturating_sub(1);
        }
        self.freed.insert(self.sequence, name.to_owned());
        self.changed = true;
        if self.freed.len() > REMEMBERED_MAX {
            // The address is free for whoever looks there next; nobody was promised more.
            let _: Option<IpAddr> = self.reuse();
        }
    }

    /// The text could not be written: ask again.
    pub const fn mark_changed(&mut self) {
        self.changed = true;
    }

    /// The text of the file if it differs from what was last asked for.
    pub fn take_changed(&mut self) -> Option<String> {
        std::mem::take(&mut self.changed).then(|| self.text())
    }

    /// The text of the file.
    #[must_use]
    pub fn text(&self) -> String {
        let file = File { range: self.range, names: self.names.clone() };
        serde_json::to_string_pretty(&file).expect("names and addresses are plain text")
    }

    /// Names in use, and addresses that there are.
    #[must_use]
    pub fn load(&self) -> (u64, u64) {
        (self.used.values().sum(), self.usable())
    }

    fn check_share(&self, cluster: &ClusterName, clusters: &[ClusterName]) -> Result<(), AddressError> {
        let used = |cluster: &ClusterName| self.used.get(cluster).copied().unwrap_or_default();
        let share = self.usable() / (2 * (clusters.len() as u64 + 1));
        let reserve = RESERVE.min(share);
        let kept: u64 =
            clusters.iter().filter(|other| *other != cluster).map(|other| reserve.saturating_sub(used(other))).sum();
        let free = self.usable().saturating_sub(self.used.values().sum());
        if used(cluster) >= NAMES_PER_CLUSTER as u64 || (used(cluster) >= reserve && free <= kept && free > 0) {
            return Err(AddressError::ShareExceeded(cluster.clone()));
        }
        if free == 0 { Err(AddressError::Exhausted(self.usable())) } else { Ok(()) }
    }

    /// An address that no name has or had, looking from the place of the name's hash on.
    fn unused(&self, name: &str) -> Option<IpAddr> {
        let usable = self.usable();
        if self.taken.len() as u64 >= usable {
            return None;
        }
        let digest = Sha256::digest(name.as_bytes());
        let start = digest.iter().take(8).fold(0_u64, |number, byte| (number << 8) | u64::from(*byte)) % usable;
        (0..usable).map(|step| self.at((start + step) % usable)).find(|address| !self.taken.contains_key(address))
    }

    /// Forgets the name that was released first, and gives its address.
    fn reuse(&mut self) -> Option<IpAddr> {
        let (_, name) = self.freed.pop_first()?;
        let held = self.names.remove(&name)?;
        self.taken.remove(&held.address);
        self.changed = true;
        Some(held.address)
    }

    fn remember(&mut self, name: String, address: IpAddr, cluster: ClusterName) {
        self.sequence += 1;
        self.taken.insert(address, name.clone());
        self.freed.insert(self.sequence, name.clone());
        self.names.insert(name, Held { address, cluster, freed: Some(self.sequence) });
    }

    /// How many addresses there are, without the first and the last, which mean the network and everybody in it.
    fn usable(&self) -> u64 {
        let bits = self.range.max_prefix_len() - self.range.prefix_len();
        1_u64.checked_shl(u32::from(bits)).unwrap_or(u64::MAX).min(RANGE_MAX).saturating_sub(2)
    }

    fn at(&self, index: u64) -> IpAddr {
        match self.range.network() {
            IpAddr::V4(first) => {
                // `index` is below 2^24 and below the size of the range, so neither conversion nor sum can be wrong.
                let offset = u32::try_from(index + 1).unwrap_or_default();
                IpAddr::V4(Ipv4Addr::from_bits(first.to_bits().wrapping_add(offset)))
            }
            IpAddr::V6(first) => IpAddr::V6(Ipv6Addr::from_bits(first.to_bits().wrapping_add(u128::from(index + 1)))),
        }
    }

    fn is_usable(&self, address: IpAddr) -> bool {
        let offset = match (self.range.network(), address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => u128::from(address.to_bits().wrapping_sub(first.to_bits())),
            (IpAddr::V6(first), IpAddr::V6(address)) => address.to_bits().wrapping_sub(first.to_bits()),
            _ => return false,
        };
        (1..=u128::from(self.usable())).contains(&offset)
    }
}

#[cfg(test)]
mod tests;
