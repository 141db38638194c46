//! How `linkspan check` marks its own connections to mirrored services, so that the gateway does not count them as traffic
//! of users: by where they come from.
//!
//! ```text
//! check -- from SOURCE --> gateway: counts them apart, and takes them for connections of CALLER from there on
//! ```
//!
//! A packet with a loopback address never comes from another machine, so only local processes can use the mark; one that
//! does is missing in `stat`, and gains nothing else: whoever it may be taken for, it could be by coming from [`CALLER`].
//! Nothing is written into the connection, nothing reaches the peer or the service.

use std::net::Ipv4Addr;

/// Where the probes of `linkspan check` come from: a loopback address that nobody uses by chance, outside of the addresses
/// of mirrored services (127.80.0.0/12).
pub const SOURCE: Ipv4Addr = Ipv4Addr::new(127, 76, 83, 80);

/// Whom a probe stands for: a client on the gateway's own machine.
pub const CALLER: Ipv4Addr = Ipv4Addr::LOCALHOST;
