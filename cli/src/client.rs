//! Asks a running site or cluster: its folder or its API server, its admin pages, its DNS server, its mirrors.
//!
//! - **In**: a folder, whose `state/run/*.json` says where the running processes listen; or a context of the kubeconfig.
//! - **Out**: the processes' own reports, as the types in which they write them. `client/source.rs` gives commands the same facts from
//!   both.
//! - **Never does**: change anything, believe a name that a peer chose (`output` makes it harmless), wait without end.
//! - **Numbers**: 3 s for an admin answer, 10 s for one through an API server, 1 s for a DNS answer or an echo of a gateway (both
//!   tried twice over UDP).

/// A site or a cluster: where facts come from.
pub(crate) mod source;

/// What a standalone site says.
pub(crate) mod site;

/// What a Kubernetes cluster says.
pub(crate) mod kubernetes;

/// Several gateways as one.
pub(crate) mod merge;

/// What lies in the site's folder.
pub(crate) mod folder;

/// What the controller knows of the peers' catalogues.
pub(crate) mod catalogues;

/// Conditions that the controller wrote.
pub(crate) mod status;

/// What a running gateway knows.
pub(crate) mod facts;

/// Who listens in the way of a mirror.
pub(crate) mod occupant;

/// One GET at an admin listener.
pub(crate) mod http;

/// One question to a DNS server.
pub(crate) mod dns;

/// Whether a QUIC server answers at a UDP address.
pub(crate) mod quic;

/// One connection or request through a mirror.
pub(crate) mod probe;
