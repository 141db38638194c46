//! The DNS server of a site: answers for the names that this cluster mirrors, and for nothing else.
//!
//! ```text
//! stub resolver -- UDP/TCP --> server -> message -> zone
//!                              (sockets, (bytes in,  (which names exist,
//!                               limits)   bytes out)  what they hold)
//! ```
//!
//! - **In**: DNS queries over UDP and TCP; a [`Zone`], replaced as a whole on every change of the mirrors.
//! - **Out**: A, AAAA, SRV, TXT, SOA and NS answers for `svc.cluster.local` and `clusterset.local`.
//! - **Refuses when**: the name lies outside both zones, the class is not IN, the type is ANY or a zone transfer, or a
//!   label holds a byte that no host name may hold (REFUSED); the message is malformed (FORMERR); the opcode is not
//!   QUERY (NOTIMP). A message that is itself a response, or too short for a header, gets no reply: two servers must
//!   never answer each other.
//! - **Withholds when**: the gateway says that it does not listen at a mirror's address. Whoever answers there then is not
//!   our gateway: a wildcard listener (0.0.0.0:8080) of another program takes the port at every mirrored address. (An import
//!   of several clusters is withheld only for all of its ports, or one of them could take it from the others.) The name
//!   still exists, without records (NOERROR and the SOA, RFC 2308). Not SERVFAIL: resolvers take that for an ill server and
//!   turn away from it for the other names, too, while this is a true answer that they forget after 5 s and ask again.
//! - **Never does**: forward, recurse, transfer zones, or answer with an address that came from a peer. Catalogues carry
//!   no addresses; every address in a zone is one that this cluster allocated.
//! - **Numbers**: TTL 5 s, because a mirror that goes away must be forgotten quickly, and a constant address makes longer
//!   caching worthless anyway. UDP replies hold 512 bytes without EDNS and 1,232 with it (no fragment on any path); a
//!   longer answer becomes an empty one with TC, so that a forged source never receives a partial answer either, and the
//!   client asks again over TCP. Limits on TCP stand beside the code in `server`.
//!
//! hickory-server reads the requests and builds the replies. Its accept loops are not used: they put no bound on TCP
//! connections, spin when the process runs out of descriptors, answer malformed *responses*, and log every query.

// Which names exist and what they hold.
pub mod zone;

// Bytes of one request in, bytes of its reply out.
pub mod message;

// Sockets and limits.
mod server;

mod metrics;

pub use message::{Dropped, Reply, Transport, respond};
pub use metrics::Metrics;
pub use server::serve;
pub use zone::{HeadlessEndpoint, Port, Service, Zone, ZoneName};

#[cfg(test)]
mod tests;
