//! What crosses a process border in Linkspan: names, identities, refusals, the link's wire, the catalogue, the gateway's
//! configuration and the resource types. No tokio, no I/O: bytes and values in, values and bytes out.
//!
//! ```text
//!        cluster east                                               cluster west
//!  manifests (resources, manifest)
//!       |
//!  controller <---------- exchange: catalogues, never addresses --------> controller
//!       | ^                                                                    |
//!       | | configuration, exchange_socket                                     |
//!       v |                                                                    v
//!  gateway <== control, stream_header, frames, refusal: one QUIC link ==> gateway
//! ```
//!
//! Nothing here trusts its input: every decoder has a cap, refuses what it does not know for certain, and allocates no
//! more than the sender's bytes back.

// Plain comments: an outer doc comment here would make rustdoc look for the links of the module's own documentation in this file.

mod text;

// Names that are parsed once.
pub mod names;

// Labels and annotations that go with a service.
pub mod metadata;

// Trust domains, SPIFFE IDs, assurance.
pub mod identity;

// The closed set of reasons why a stream ends early.
pub mod refusal;

// First bytes of every stream on a link.
pub mod stream_header;

// HTTP on a link.
pub mod frames;

// UDP on a link.
pub mod datagram;

// Control streams of a link.
pub mod control;

// Catalogues between controllers.
pub mod exchange;

// First line of the pipe that carries a catalogue between gateway and controller.
pub mod exchange_socket;

// Controller to gateway and back.
pub mod configuration;

// The mark of `linkspan check`'s own connections.
pub mod probe;

// Resource types.
pub mod resources;

// YAML to resources and back.
pub mod manifest;

// Code generated from `proto/*.proto`.
pub mod generated;
