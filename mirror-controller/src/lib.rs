//! The control plane of one cluster: turns what peers export into local names. A Service's path, in reading order:
//!
//! ```text
//!        objects                exported services             peers' catalogues           mirrors
//! watch ---------> catalog -----------------------> exchange --------------------> mirror --------> gateway, DNS, files
//!                     |                          peers | ^ peers                      |
//!                     +----------- links, traffic policies, local names --------------+
//! ```
//!
//! Each stage hands an immutable snapshot to the next; [`app`] is the only place that knows all four. What decides is
//! pure (`catalog`, `exchange::session`, `mirror::{desired, state, plan, collect, addresses}`, `leader::candidate`,
//! `status::{findings, objects, events}`) and tested without a clock or a socket; what talks (`watch::directory`,
//! `exchange::{pipe, server, client}`, `mirror::apply`, `configuration`, `leader`, `status`) is thin. Nothing here is on the path of a request: gateways keep serving what they were last told.

// The order is the order of the path, not the alphabet.

// What the operator typed, and what it means.
pub mod config;

// 1. Where objects come from.
pub mod watch;

// 2. What this cluster exports.
pub mod catalog;

// 3. Catalogues to peers and from peers.
pub mod exchange;

// Which of several controllers writes.
pub mod leader;

// 4. Peers' catalogues to local objects.
pub mod mirror;

// What the gateway is told, and what it reports.
pub mod configuration;

// The cluster's certificate authority.
pub mod ca;

// Where gateways come in.
pub mod door;

// Our own cluster, on Kubernetes.
pub mod cluster;

// Answers DNS queries for the mirrored names.
pub mod dns;

// Conditions on links, exports and mirrors.
pub mod status;

// Wires the stages together.
pub mod app;

// Labels on objects.
pub mod labels;

// Findings about objects.
pub mod verdict;

// Names that no peer may take.
pub mod reserved;

// What cannot be saved.
pub mod saving;

// When the API server wants to be left alone.
pub mod pressure;

mod diff;
mod files;

#[cfg(test)]
mod testkit;
