//! HTTP at both edges: HTTP/1.0, HTTP/1.1, HTTP/2 and gRPC, by request.
//!
//! ```text
//! egress   client --hyper server--> request --frames--> link        (or straight to a backend of this cluster)
//! ingress  link --frames--> request --hyper client--> backend
//! ```
//!
//! - In: a client's connection whose protocol is HTTP (egress); an admitted stream of kind `Http` (ingress).
//! - Out: each request goes to the cluster that is picked for it, each response comes back as the backend said it; one
//!   record for each.
//! - Refuses when: a message is not well formed or over a cap; no target; the target refuses: with a status, one word in
//!   `linkspan-error` and one sentence, and for gRPC as a gRPC status.
//! - Never does: pass text from one side to the other (a message is structure between the edges, S-19), trust an identity
//!   that a client or a peer wrote into a field, end a torso cleanly, send a request twice that may have been processed.
//! - Numbers: [`MAX_HEAD`], [`MAX_BUFFER`], [`IDLE`]; what belongs to one file stands there.

use std::time::Duration;

// The client's side.
mod egress;

// The backend's side.
mod ingress;

// Requests and responses between hyper and the link.
mod request;

// A request to a backend.
mod upstream;

// Connections to backends.
mod pool;

// Bytes behind heads.
mod body;

// What the parts of one exchange share.
mod exchange;

// Protocols that an HTTP/1.1 connection changes to.
mod upgrade;

// Interim responses on their way from a backend.
mod interim;

// The client's socket under hyper.
mod io;

// What an HTTP/2 client may not do for ever.
mod floods;

// Fields that are stripped and set.
mod headers;

// Answers of the gateway's own.
mod errors;

// W3C trace context.
mod trace;

// gRPC's deadline.
mod deadline;

// Services that a request has passed.
mod via;

pub use egress::serve as egress;
pub use ingress::serve as ingress;

/// The longest head of a request or response (S-24). The same on the link.
const MAX_HEAD: usize = linkspan_proto::frames::MAX_HEAD_LEN;

/// The largest buffer of an HTTP/1 connection: what is read at once from a fast sender. It begins with 8 KiB and grows while
/// reads fill it; must hold a head.
const MAX_BUFFER: usize = 128 * 1024;

/// How long nothing may move in an exchange, in either direction (S-27). Five minutes, as Envoy has it: a server stream
/// that is silent for longer is expected to send keep-alives of its own.
const IDLE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests;
