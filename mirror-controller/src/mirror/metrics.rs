//! Figures of the mirror stage.

use linkspan_runtime::metrics::Registry;
use linkspan_runtime::metrics::prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use linkspan_runtime::metrics::prometheus_client::metrics::counter::Counter;
use linkspan_runtime::metrics::prometheus_client::metrics::family::Family;
use linkspan_runtime::metrics::prometheus_client::metrics::gauge::Gauge;

use super::plan::Action;
use super::state::MirrorSet;

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
enum Verb {
    Create,
    Patch,
    Delete,
    Failed,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Write {
    action: Verb,
}

/// What the writer of objects counts.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Written objects by what was done. `Failed` counts tries, which are repeated.
    writes: Family<Write, Counter>,
}

impl Applied {
    pub(super) fn applied(&self, action: &Action) {
        let action = match action {
            Action::Create(_) => Verb::Create,
            Action::Patch(_) => Verb::Patch,
            Action::Delete => Verb::Delete,
        };
        self.writes.get_or_create(&Write { action }).inc();
    }

    pub(super) fn failed(&self) {
        self.writes.get_or_create(&Write { action: Verb::Failed }).inc();
    }
}

/// What the mirror stage counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Mirrors that should exist: cluster mirrors and clusterset imports together.
    wanted: Gauge,
    /// Mirrors that cannot exist; each has a reason in its status.
    refused: Gauge,
    /// Addresses in use, for mirrors and for endpoints of headless ones.
    addresses: Gauge,
    /// Addresses of the range.
    addresses_total: Gauge,
    /// Written objects.
    pub applied: Applied,
}

impl Metrics {
    /// Registers all of it.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let metrics = Self::default();
        let group = registry.group("mirror");
        group.register("wanted", "Mirrored names that should exist", metrics.wanted.clone());
        group.register("refused", "Mirrored names that cannot exist", metrics.refused.clone());
        group.register("addresses_used", "Local addresses in use", metrics.addresses.clone());
        group.register("addresses", "Local addresses that there are", metrics.addresses_total.clone());
        group.register("writes", "Writes of mirrored objects", metrics.applied.writes.clone());
        metrics
    }

    pub(super) fn updated(&self, set: &MirrorSet, (used, total): (u64, u64)) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.wanted.set(number(set.wanted.len()));
        self.refused.set(number(set.refused.len()));
        self.addresses.set(i64::try_from(used).unwrap_or(i64::MAX));
        self.addresses_total.set(i64::try_from(total).unwrap_or(i64::MAX));
    }
}
