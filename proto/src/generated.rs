//! Code generated from `proto/*.proto`, committed so that building needs no generator. `tests/freshness.rs` keeps it true.
//!
//! Other modules of this crate turn these types into domain types; only the tonic clients and servers are used directly.

#![allow(missing_docs, reason = "generated: the documentation stands in the .proto files")]
#![allow(clippy::all, clippy::pedantic, unused_qualifications, unreachable_pub, reason = "generated")]

/// Stream header and control stream.
#[rustfmt::skip]
#[path = "gen/linkspan.stream.v1.rs"]
pub mod stream;

/// Catalogue exchange between controllers.
#[rustfmt::skip]
#[path = "gen/linkspan.exchange.v1.rs"]
pub mod exchange;

/// Gateway and controller of one cluster.
#[rustfmt::skip]
#[path = "gen/linkspan.configuration.v1.rs"]
pub mod configuration;
