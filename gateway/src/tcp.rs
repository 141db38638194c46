//! Opaque connections: TCP whose bytes we do not read, TLS that passes through, everything that is not HTTP.
//!
//! ```text
//! egress   pick -> open stream -> header + first bytes ... CONNECTED -> relay
//!            ^---- refused before anything was processed: next target ----|
//! ingress  dial -> [PROXY v2] -> CONNECTED -> relay
//! ```
//!
//! - In: a routed client connection (egress), an admitted stream (ingress).
//! - Out: bytes, each way; one record.
//! - Refuses when: no target, or the target refuses: the client's connection is reset, as if the service itself had
//!   refused it.
//! - Never does: send client bytes to a second target unless the first has said that no backend saw them.
//! - Numbers: [`REPLAY`], [`REPLY`].
//!
//! While the answer `CONNECTED` is under way the client's bytes are sent already, so that a mirrored connection costs no
//! extra round trip. What was sent is kept until then (it is shared memory, not a copy) for the case that another target
//! must be tried.

use std::sync::Arc;
use std::time::Duration;

use crate::context::Gateway;

mod egress;
mod ingress;
mod local;

pub use egress::serve as egress;
pub use ingress::serve as ingress;
pub(crate) use local::halves;

/// Client bytes that are sent ahead of the answer and kept for another target; a client that has more to say waits for the
/// answer, which it would do anyway for its window. One read of the relay, and never more: 10,000 connections that wait for their
/// targets hold 640 MiB at worst, and nothing once they stand. Above what detection reads, which is kept too.
pub const REPLAY: usize = 64 * 1024;

/// How long a peer may take to answer. Above what the ingress side needs at worst: three endpoints of 1 s each.
pub const REPLY: Duration = Duration::from_secs(5);

/// A W3C trace context for a connection that brings none: the PROXY header and both access logs carry its id.
pub(crate) fn new_trace() -> String {
    let (trace, span): (u128, u64) = (rand::random(), rand::random());
    // All zero is not allowed (W3C trace-context section 3.2.2.3).
    format!("00-{:032x}-{:016x}-01", trace.max(1), span.max(1))
}

/// The trace id inside a `traceparent`.
fn trace_id(traceparent: &str) -> Option<&str> {
    traceparent.split('-').nth(1).filter(|id| id.len() == 32)
}

/// The place of the table at this moment.
fn table(gateway: &Gateway) -> Arc<crate::route::RouteTable> {
    gateway.table.load_full()
}
