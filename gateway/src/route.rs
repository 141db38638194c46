//! Stage 3: where a connection or request goes.
//!
//! ```text
//! (listen address | SNI) --RouteTable--> Route --pick(health, tried)--> Target{cluster, local}
//!  client address -------RouteTable--> Source{identity, assurance}
//! ```
//!
//! - In: the address that the client connected to (or the name it gave on the mTLS port), the clusters tried already.
//! - Out: a [`Route`], from it a [`Target`] for each connection or request, and the caller's source identity.
//! - Refuses when: nothing is mirrored there; no cluster that has any weight is healthy. The refusal says, for each
//!   cluster, why not.
//! - Never does: I/O, wait, lock, pick a cluster of weight zero.
//! - Numbers: [`DWELL`]; weights and `minHealthyPercent` are the operator's.
//!
//! Healthy is: the link is alive and the cluster has said that the port (or the one endpoint) has ready capacity. For
//! the local cluster: the service is exported here and the port has ready endpoints.
//!
//! A tier's healthy percent is `sum(weight x ready / total) / sum(weight)` over its clusters: `ready` of `total` endpoints of
//! the port, 0 for a cluster that is not healthy, 1 for one that does not say how many it has. It decides which tier serves,
//! never how a tier's requests are shared out: that the weights alone do, among the clusters that are healthy at all. A tier
//! that falls below `minHealthyPercent` is left at the next pick; it serves again when it was healthy for [`DWELL`].

use std::fmt;
use std::sync::Arc;

use linkspan_proto::configuration::{Mirror, PortTransport};
use linkspan_proto::identity::{Source, TrustDomain};
use linkspan_proto::names::{ClusterName, ServiceKey};

// Weights that are exact.
pub mod balance;

// What this cluster exports.
mod export;

// When a tier may serve again.
mod failover;

// Load of one endpoint.
pub mod load;

// The table of everything that is mirrored and exported.
pub mod table;

// Address ranges to workloads.
pub mod workloads;

pub use export::{Backend, Export, ExportPort};
pub use failover::DWELL;
pub use table::RouteTable;

use crate::listener::Place;
use balance::{Sequence, choose};
use failover::Hold;
use tokio::time::Instant;

/// Who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Our cluster's name.
    pub cluster: ClusterName,
    /// Our trust domain.
    pub trust_domain: TrustDomain,
}

/// Which links work. Asked once for each candidate of each pick, so it must be cheap.
pub trait Health: Send + Sync {
    /// Whether the data path to this peer works.
    fn alive(&self, peer: &ClusterName) -> bool;
}

/// What a client's connection resolved to: one port of one mirrored name, and who the client is.
#[derive(Clone, Debug)]
pub struct Routed {
    /// Where it may go. For HTTP, [`RouteTable::current`] gives the newest version for each request.
    pub route: Arc<Route>,
    /// Who calls, with what assurance.
    pub source: Source,
}

/// One port of one mirrored name.
#[derive(Debug)]
pub struct Route {
    mirror: Arc<Mirror>,
    /// Index into the mirror's ports.
    index: usize,
    name: Arc<str>,
    tiers: Box<[Group]>,
    /// One for each tier.
    holds: Arc<[Hold]>,
    sequence: Sequence,
}

/// Clusters of equal preference.
#[derive(Debug)]
struct Group {
    candidates: Box<[Candidate]>,
    /// Sum of all weights, healthy or not.
    total: u64,
    min_healthy_percent: u64,
}

#[derive(Debug)]
struct Candidate {
    cluster: ClusterName,
    local: bool,
    weight: u64,
    /// What its catalogue (or our own export) says of this port.
    capacity: Result<Share, Unavailable>,
}

/// How much of a cluster's endpoints is ready, in parts of [`Share::WHOLE`]; more than nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share(u64);

impl Share {
    const WHOLE: u64 = 1 << 32;

    /// All that there is, or that we know of.
    const ALL: Self = Self(Self::WHOLE);

    /// `ready` of `total`, rounded up: 7 of 10 are not a hair's breadth less than 70 percent.
    fn of(ready: u64, total: u64) -> Self {
        if ready >= total { Self::ALL } else { Self((ready * Self::WHOLE).div_ceil(total)) }
    }
}

/// Where one connection or request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The cluster that serves it.
    pub cluster: ClusterName,
    /// Whether that is our own.
    pub local: bool,
}

/// Why a cluster cannot take a connection or request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// Its weight is zero.
    WeightZero,
    /// It was tried for this request already.
    Tried,
    /// The link to it is down.
    LinkDown,
    /// Its catalogue does not list the service or the port.
    NotExported,
    /// It exports the port, but no endpoint is ready.
    NothingReady,
    /// The one endpoint that the mirror stands for is not ready there.
    EndpointNotReady,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WeightZero => "weight 0",
            Self::Tried => "tried already",
            Self::LinkDown => "link down",
            Self::NotExported => "does not export this port",
            Self::NothingReady => "no ready endpoint",
            Self::EndpointNotReady => "the endpoint is not ready",
        })
    }
}

/// No cluster can take it. Displays as one sentence that says why for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoTarget {
    /// The service that was asked for.
    pub service: ServiceKey,
    /// Its port.
    pub port: u16,
    /// Every candidate and what is wrong with it, in the order of preference.
    pub reasons: Vec<(ClusterName, Unavailable)>,
}

impl fmt::Display for NoTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no cluster can serve {} port {}", self.service, self.port)?;
        for (index, (cluster, reason)) in self.reasons.iter().enumerate() {
            write!(f, "{} {cluster}: {reason}", if index == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

impl std::error::Error for NoTarget {}

impl Route {
    /// Picks the cluster for the next connection or request.
    ///
    /// The first tier serves whose healthy part is large enough and which is not held back after a fall; if there is none,
    /// the first that has any healthy cluster.
    /// `tried` are the clusters that failed this very request without having processed it: they still count as healthy
    /// for their tier, but are not picked again.
    pub fn pick(&self, health: &dyn Health, tried: &[ClusterName]) -> Result<Target, NoTarget> {
        let point = self.sequence.advance();
        let tiers = || self.tiers.iter();
        tiers()
            .zip(&*self.holds)
            .filter(|(tier, hold)| !hold.is_held() && tier.is_healthy_enough(health))
            .map(|(tier, _)| tier)
            .chain(tiers())
            .find_map(|tier| tier.choose(point, health, tried))
            .map(|candidate| Target { cluster: candidate.cluster.clone(), local: candidate.local })
            .ok_or_else(|| self.no_target(health, tried))
    }

    /// Takes in how healthy the tiers are now. To be called when a link's health or the configuration has changed, and at the
    /// time that it names.
    pub fn settle(&self, health: &dyn Health, now: Instant) -> Option<Instant> {
        if self.tiers.len() < 2 {
            return None;
        }
        let tiers = self.tiers.iter().zip(&*self.holds);
        tiers.filter_map(|(tier, hold)| hold.observe(tier.is_healthy_enough(health), now)).min()
    }

    /// Whether a connection that begins now would find a target.
    pub fn is_available(&self, health: &dyn Health) -> bool {
        self.tiers.iter().any(|tier| tier.candidates.iter().any(|candidate| candidate.weight_now(health) > 0))
    }

    /// The clusters that export this port, each once; all that the mirror names, where none is known to. Its listening
    /// sockets count for them.
    #[must_use]
    pub fn owners(&self) -> Vec<&ClusterName> {
        let candidates = || self.tiers.iter().flat_map(|tier| tier.candidates.iter());
        let exports = |candidate: &&Candidate| candidate.capacity != Err(Unavailable::NotExported);
        let mut owners: Vec<_> = candidates().filter(exports).map(|candidate| &candidate.cluster).collect();
        if owners.is_empty() {
            owners.extend(candidates().map(|candidate| &candidate.cluster));
        }
        owners.sort_unstable();
        owners.dedup();
        owners
    }

    /// The mirrored name and all that the controller said of it.
    #[must_use]
    pub fn mirror(&self) -> &Arc<Mirror> {
        &self.mirror
    }

    /// The mirrored name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The service behind the name, as the link calls it.
    #[must_use]
    pub fn service(&self) -> &ServiceKey {
        &self.mirror.service
    }

    /// The service's port, as the link calls it.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.mirror_port().port
    }

    /// What carries it.
    #[must_use]
    pub fn transport(&self) -> PortTransport {
        self.mirror_port().transport
    }

    /// Where it is listened for.
    #[must_use]
    pub fn place(&self) -> Place {
        let port = self.mirror_port();
        Place { address: port.listen, transport: port.transport }
    }

    /// The declared protocol.
    #[must_use]
    pub fn app_protocol(&self) -> Option<&str> {
        self.mirror_port().app_protocol.as_deref()
    }

    /// This port of the mirror.
    #[must_use]
    pub fn mirror_port(&self) -> &linkspan_proto::configuration::MirrorPort {
        &self.mirror.ports[self.index]
    }

    fn no_target(&self, health: &dyn Health, tried: &[ClusterName]) -> NoTarget {
        let reasons = self
            .tiers
            .iter()
            .flat_map(|tier| &tier.candidates)
            .filter_map(|candidate| {
                let reason = if tried.contains(&candidate.cluster) {
                    Some(Unavailable::Tried)
                } else {
                    candidate.unavailable(health)
                };
                reason.map(|reason| (candidate.cluster.clone(), reason))
            })
            .collect();
        NoTarget { service: self.mirror.service.clone(), port: self.port(), reasons }
    }
}

impl Group {
    fn is_healthy_enough(&self, health: &dyn Health) -> bool {
        let healthy: u128 = self.candidates.iter().map(|candidate| candidate.healthy_now(health)).sum();
        let needed = u128::from(self.total) * u128::from(self.min_healthy_percent) * u128::from(Share::WHOLE);
        // 1, the default, asks for any ready endpoint at all, be it one of a thousand.
        healthy > 0 && (self.min_healthy_percent <= 1 || healthy * 100 >= needed)
    }

    fn choose(&self, point: u64, health: &dyn Health, tried: &[ClusterName]) -> Option<&Candidate> {
        let weights = || {
            self.candidates
                .iter()
                .map(|candidate| if tried.contains(&candidate.cluster) { 0 } else { candidate.weight_now(health) })
        };
        // Two passes instead of a list: a link may flip between them, which `choose` tolerates.
        let total = weights().sum();
        choose(point, total, weights()).map(|index| &self.candidates[index])
    }
}

impl Candidate {
    fn weight_now(&self, health: &dyn Health) -> u64 {
        if self.unavailable(health).is_none() { self.weight } else { 0 }
    }

    /// The ready share of its weight, in parts of [`Share::WHOLE`].
    fn healthy_now(&self, health: &dyn Health) -> u128 {
        let share = self.capacity.map_or(0, |Share(parts)| parts);
        u128::from(self.weight_now(health)) * u128::from(share)
    }

    fn unavailable(&self, health: &dyn Health) -> Option<Unavailable> {
        if self.weight == 0 {
            return Some(Unavailable::WeightZero);
        }
        if !self.local && !health.alive(&self.cluster) {
            return Some(Unavailable::LinkDown);
        }
        self.capacity.err()
    }
}

#[cfg(test)]
pub(crate) mod tests;
