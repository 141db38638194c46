//! The registry of metrics: one a process, shared by its components.
//!
//! - In: each stage's own metric handles, registered once at start-up, in groups by prefix.
//! - Out: the OpenMetrics text of `/metrics`.
//! - Refuses: a second metric of the same name (logged, and a failed assertion in checked builds); two families of one
//!   name would make the whole page unreadable for Prometheus.
//! - Never does: take part in recording. Handles are atomics; the lock here is taken at start-up and on a scrape.
//!
//! Counters get their `_total` from the encoder: register `request`, read `request_total`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Metric;

use crate::build_info;

mod process;

pub use prometheus_client;

/// What `/metrics` says its body is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Default)]
struct Inner {
    registry: prometheus_client::registry::Registry,
    names: BTreeSet<String>,
}

/// The registry. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
}

impl Registry {
    /// A registry that holds what every process of ours says: `build_info`, `process_*`, `task_panics_total`,
    /// `log_lines_dropped_total`.
    #[must_use]
    pub fn new() -> Self {
        let registry = Self { inner: Arc::default() };
        let build = build_info::current();
        let labels = vec![("version", build.version), ("commit", build.commit), ("profile", build.profile)];
        registry.register("build", "Which build this is", Info::new(labels));
        registry.collector(process::Process);
        registry.collector(process::Losses);
        registry
    }

    /// Adds a metric or a family of metrics.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let new = inner.names.insert(name.to_owned());
        debug_assert!(new, "metric {name} is registered twice");
        if new {
            inner.registry.register(name, help, metric);
        } else {
            tracing::error!(metric = name, "metric is registered twice; the second is left out");
        }
    }

    /// Adds metrics that are computed at each scrape. Their names are the collector's own care.
    pub fn collector(&self, collector: impl Collector) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.registry.register_collector(Box::new(collector));
    }

    /// Metrics whose names all begin with `prefix` and an underscore.
    #[must_use]
    pub fn group(&self, prefix: &str) -> Group {
        Group { registry: self.clone(), prefix: prefix.to_owned() }
    }

    /// The page that Prometheus reads.
    ///
    /// # Errors
    /// When a metric's own encoding fails.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut page = String::with_capacity(16 * 1024);
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        text::encode(&mut page, &inner.registry)?;
        Ok(page)
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

/// A part of a registry under one prefix: a stage's own metrics.
#[derive(Clone, Debug)]
pub struct Group {
    registry: Registry,
    prefix: String,
}

impl Group {
    /// Adds a metric named `<prefix>_<name>`.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.registry.register(&format!("{}_{name}", self.prefix), help, metric);
    }

    /// A group inside this group.
    #[must_use]
    pub fn group(&self, prefix: &str) -> Self {
        Self { registry: self.registry.clone(), prefix: format!("{}_{prefix}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::metrics::counter::Counter;

    use super::*;
    use crate::histogram::LatencyHistogram;

    #[test]
    fn the_page_holds_what_was_registered() {
        let registry = Registry::new();
        let requests: Counter = Counter::default();
        registry.group("gateway").group("link").register("dials", "Dials of peers", requests.clone());
        requests.inc();
        let latency = LatencyHistogram::new();
        registry.register("response_latency_ms", "Latency", latency.clone());
        latency.observe(Duration::from_micros(1_500));
        let page = registry.encode().expect("encodes");
        for line in [
            "gateway_link_dials_total 1",
            "response_latency_ms_sum 1.5",
            "response_latency_ms_bucket{le=\"1.0\"} 0",
            "response_latency_ms_bucket{le=\"2.0\"} 1",
            "response_latency_ms_bucket{le=\"+Inf\"} 1",
            "# TYPE task_panics counter",
            "# EOF",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
        assert!(page.contains("build_info{version=\""));
        assert!(page.contains("process_resident_memory_bytes "));
        assert!(page.contains("process_cpu_seconds_total "));
    }

    /// A mistake in the program; only builds with checks look for it.
    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "registered twice")]
    fn one_name_once() {
        let registry = Registry::new();
        registry.register("twice", "Once", Counter::<u64>::default());
        registry.register("twice", "Again", Counter::<u64>::default());
    }
}
