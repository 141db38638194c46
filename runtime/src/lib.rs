//! The process shell that every Linkspan binary shares.
//!
//! ```text
//! main: telemetry::init -> Registry, Readiness, Admin, Drain -> components register themselves
//!       -> Admin::serve on a listener of the caller -> signal::shutdown or Drain::vital_ended -> Drain::drain -> exit
//! ```
//!
//! Several components of one process (gateway and controller in `linkspan site run`) register their routes, names of
//! readiness and metrics on the same [`admin::Admin`], [`readiness::Readiness`] and [`metrics::Registry`]; all three
//! are cheap handles to shared state. Nothing here knows what a gateway or a controller is.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests spawn as they like: their tasks die with them"))]

// The order is the order of a process's life, not the alphabet.

// Where memory comes from, and when it is given back.
mod allocator;

// Version, commit and profile of this build.
pub mod build_info;

// Text that came from somebody else, made safe to print.
pub mod text;

// Logging.
pub mod telemetry;

// The one place that spawns.
pub mod task;

// The end of the process, asked for from outside.
pub mod signal;

// Stop accepting, wait, force.
pub mod drain;

// Named parts that must be up before `/ready` says so.
pub mod readiness;

// Whether memory runs short.
pub mod memory;

// Delays between attempts.
pub mod backoff;

// The registry of metrics.
pub mod metrics;

// Latency distribution that both Prometheus and `stat` read.
pub mod histogram;

// `/metrics`, `/ready`, `/live`, `/config` and what components add.
pub mod admin;
