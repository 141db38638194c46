//! Datagrams: UDP services.
//!
//! ```text
//! egress   socket of this worker --client--> flow --pick, associate--> stream: header ... CONNECTED, and beside it
//!                                                                      datagrams, the first of them at once
//! ingress  association --socket of its own--> backend
//! ```
//!
//! A **flow** is what one client address and port sends to one mirrored port, and what comes back to it. It goes to the cluster
//! that was picked with its first datagram, and stays there.
//!
//! - In: the sockets of mirrored ports (egress), admitted associations (ingress).
//! - Out: datagrams, each way, unchanged and whole; one record for each flow.
//! - Refuses when: no target, or the target refuses: what was sent is lost, and counted, as datagrams are. A client that has
//!   too many flows gets no more.
//! - Never does: fragment a datagram, reorder those of a flow, wait for anybody with a datagram in the hand. A PROXY header is
//!   not written: where one belongs in datagrams is not settled.
//! - Numbers: [`IDLE`], [`IDLE_ONE_WAY`], [`IDLE_DRAINING`], [`INGRESS_MARGIN`], [`FLOWS_OF_CLIENT`], [`FLOWS`],
//!   [`SPARE_ABOVE`], [`SPARE_AFTER`], [`EXCHANGE`], [`KEPT`], [`KEPT_BYTES`], [`TICK`].
//!
//! UDP has no end, so a flow ends when nothing has moved for a while. A client that asks each question from a port of its own,
//! as resolvers do, would have thousands of flows by then. So where there are many, a **spare** flow gives way to a new one: one
//! that was a question or two and an answer, with nothing after it. A flow in use never gives way.

use std::time::Duration;

mod backend;
mod egress;
mod flow;
mod ingress;
mod moved;
mod socket;
mod table;

pub use egress::Egress;
pub use ingress::serve as ingress;
pub use table::FlowPermits;

/// How long nothing may move in a flow that went both ways. Shorter than what keeps a NAT open, and twice the keep-alive of the
/// protocols that have one (WireGuard 25 s, QUIC 15 to 30 s).
pub const IDLE: Duration = Duration::from_secs(60);

/// And in one that nobody has answered. Above every retry of a resolver.
pub const IDLE_ONE_WAY: Duration = Duration::from_secs(30);

/// While the gateway ends. A question that is being answered is finished, and a stream of datagrams is until its next pause.
pub const IDLE_DRAINING: Duration = Duration::from_secs(2);

/// The ingress side waits so much longer: a flow should end where the next datagram of its client makes a new one.
pub const INGRESS_MARGIN: Duration = Duration::from_secs(5);

/// Flows of one client address, over all mirrored ports and workers.
pub const FLOWS_OF_CLIENT: usize = 1024;

/// Flows of all clients. Some 4 KiB each, so 64 MiB.
pub const FLOWS: usize = 16 * 1024;

/// With so many flows in all a spare one gives way to each new one. Below what one connection to a peer permits
/// (`link::datagrams::ASSOCIATIONS`), by enough for those whose end the peer has not heard yet.
pub const SPARE_ABOVE: usize = 384;

/// How long an answered exchange must be silent before it is spare. Above the pause between the parts of one answer, and short
/// enough that a resolver may ask some ten thousand questions a second from ever new ports.
pub const SPARE_AFTER: Duration = Duration::from_millis(30);

/// Datagrams of the client up to which a flow is an exchange: a question, and the same once more for want of patience.
pub const EXCHANGE: u64 = 2;

/// Spare flows that give way at once, the longest silent first: looking for one costs a walk over all.
pub const SPARE_BATCH: usize = 32;

/// Datagrams of one flow that are sent ahead of the answer and kept for another target.
pub const KEPT: usize = 16;

/// Their payload in bytes; a full one of 64 KiB is sent, and not kept.
pub const KEPT_BYTES: usize = 32 * 1024;

/// How often figures of a flow are told, and how long it may be over before that is seen.
pub const TICK: Duration = Duration::from_secs(5);
