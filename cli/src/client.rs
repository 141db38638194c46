//! Asks a running site: its folder, its admin listeners, its DNS server, its mirrors.
//!
//! - **In**: the site's folder. `state/run/*.json` says where the running processes listen; nothing else is assumed.
//! - **Out**: the processes' own reports, as the types in which they write them.
//! - **Never does**: change anything, believe a name that a peer chose (`output` makes it harmless), wait without end.
//! - **Numbers**: 3 s for an admin answer, 1 s for a DNS answer or an echo of a gateway (both tried twice over UDP).

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
