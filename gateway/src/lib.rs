//! The data plane of Linkspan: carries connections of local clients to the gateways of peer clusters, and theirs to the
//! backends of this cluster.
//!
//! ```text
//! egress   client -> listener -> detect -> route -> link ==QUIC==> peer
//! ingress  peer ==QUIC==> link -> remote -> backend -> service
//! ```
//!
//! The modules stand in the order in which a byte passes them; [`path`] shows both trips in one place. `discovery` and
//! `identity` feed them, `app` wires them together. Nothing here imports the controller: the two meet in `proto`.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests spawn as they like: their tasks die with them"))]

// The blank lines keep rustfmt from sorting the modules. What a module says of itself stands in its own file: a doc
// comment here would be joined to it, and its links would be looked up in the wrong place.

// 1 Sockets of the mirrored names: bind, accept, limit.
pub mod listener;

// 2 What protocol the client speaks.
pub mod detect;

// 3 Where the connection or request goes.
pub mod route;

// 4 Streams to and from the gateways of peer clusters.
pub mod link;

// The mTLS port of local clients.
pub mod mtls;

// 5 What a peer may reach here.
pub mod remote;

// 6 Endpoints of exported services.
pub mod backend;

// What the whole path shares.
pub mod context;

// A failure of any stage, as the path sees it.
pub mod error;

// HTTP at both edges.
pub mod http;

// Copying between a socket and a stream, both ways.
pub mod relay;

// Opaque connections at both edges.
pub mod tcp;

// Datagrams at both edges.
pub mod udp;

// The controller's configuration as immutable snapshots.
pub mod discovery;

// Certificates of this gateway.
pub mod identity;

// How a connection or request ended.
pub mod outcome;

// Counters and histograms.
pub mod metrics;

// One line for each connection and request.
pub mod access_log;

// Figures of the last minute for `linkspan stat`.
pub mod stat;

// The whole trip of a byte.
pub mod path;

// Wiring.
pub mod app;

// What was typed, and what it means.
pub mod config;
