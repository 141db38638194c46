//! How a connection or request ended: one closed set, recorded exactly once.
//!
//! ```text
//! path/http:  Record::open(recorder, Entry{..}) ... record.received(n) / sent(n) ... record.finish(Outcome)
//!                 |                                       |                               |
//! Recorder:     begin(&Entry)                     progress(&Entry, n, m)         end(&Entry, Outcome, elapsed)
//! ```
//!
//! The metrics, the `stat` window and the access log are [`Recorder`]s, so all three always agree. A [`Record`] that is
//! dropped without an outcome (the task was cancelled, or it panicked) still ends: in [`Outcome::Abandoned`].

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use linkspan_proto::identity::Source;
use linkspan_proto::names::{ClusterName, ServiceKey};
use linkspan_proto::refusal::Refusal;
use tokio::time::Instant;

mod loss;

pub use loss::Loss;

/// Bytes that may be moved before the recorders hear of them. Small enough that a graph of a long transfer moves every
/// scrape, large enough that the counters are not touched for every segment.
const FLUSH_EVERY: u64 = 1024 * 1024;

/// Which way the call goes, seen from this gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From a client of this cluster to another cluster (or to this one, where the local cluster was picked).
    Outbound,
    /// From a peer to a backend of this cluster.
    Inbound,
}

impl Direction {
    /// The metric label and log field.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// What was carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Opaque bytes over TCP.
    Tcp,
    /// TLS that passes through untouched; carried like TCP.
    Tls,
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// gRPC, told by its content type.
    Grpc,
    /// Datagrams of one client: a flow.
    Udp,
}

impl Protocol {
    /// The metric label and log field.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Http1 => "http/1",
            Self::Http2 => "http/2",
            Self::Grpc => "grpc",
            Self::Udp => "udp",
        }
    }

    /// Whether an entry of this protocol is one request, and not one connection or flow.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2 | Self::Grpc)
    }
}

/// Who caused an end that was not wished for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The local client.
    Client,
    /// The link to the peer, or its loss.
    Link,
    /// The peer's gateway.
    Remote,
    /// The backend service.
    Backend,
    /// This gateway: its limits, its configuration, its end.
    Us,
}

impl Origin {
    /// The log field.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Link => "link",
            Self::Remote => "remote",
            Self::Backend => "backend",
            Self::Us => "us",
        }
    }
}

/// How a connection or a request ended. Closed: a new way to end is a new variant, never a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Both ends were served to their end. An HTTP response of any status is `Ok`; its status says the rest.
    Ok,
    /// The client went away or reset before the end.
    ClientGone,
    /// The client broke its protocol: malformed HTTP, oversized head, no TLS where TLS is asked for.
    ClientInvalid,
    /// The client showed a certificate that this gateway does not accept, or none, on the mTLS port.
    ClientUntrusted,
    /// The client asked for a name or address that is not mirrored.
    NoRoute,
    /// Every cluster that could serve is out of service.
    NoTarget,
    /// The link broke while the stream was open.
    LinkLost,
    /// Nothing moved for the idle limit.
    Idle,
    /// The gateway's drain deadline passed.
    Drained,
    /// The task ended without saying how: cancelled, or a panic.
    Abandoned,
    /// Refused or cut with one of the link's reasons: by the remote side (outbound) or by us (inbound).
    Refused(Refusal),
}

impl Outcome {
    /// The metric label, log field and refusal reason: one word.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientGone => "client_gone",
            Self::ClientInvalid => "client_invalid",
            Self::ClientUntrusted => "client_untrusted",
            Self::NoRoute => "no_route",
            Self::NoTarget => "no_target",
            Self::LinkLost => "link_lost",
            Self::Idle => "idle",
            Self::Drained => "drained",
            Self::Abandoned => "abandoned",
            Self::Refused(refusal) => refusal.reason(),
        }
    }

    /// Whether the service was rendered. A client that leaves is no failure of the service.
    #[must_use]
    pub fn is_success(self) -> bool {
        matches!(
            self,
            Self::Ok
                | Self::ClientGone
                | Self::Idle
                | Self::Drained
                | Self::Refused(Refusal::Cancelled | Refusal::Idle)
        )
    }

    /// Who caused it, `None` where nothing went wrong.
    #[must_use]
    pub fn origin(self, direction: Direction) -> Option<Origin> {
        match self {
            Self::Ok | Self::Idle => None,
            Self::ClientGone | Self::ClientInvalid | Self::ClientUntrusted => Some(Origin::Client),
            Self::NoRoute | Self::NoTarget | Self::Drained | Self::Abandoned => Some(Origin::Us),
            Self::LinkLost => Some(Origin::Link),
            Self::Refused(refusal) => Some(refused_by(refusal, direction)),
        }
    }

    /// The HTTP status that tells a client of this end; `None` where a response was sent already.
    #[must_use]
    pub fn http_status(self) -> Option<u16> {
        match self {
            Self::Ok | Self::ClientGone | Self::Abandoned => None,
            Self::ClientInvalid => Some(400),
            Self::ClientUntrusted => Some(403),
            Self::NoRoute => Some(404),
            Self::NoTarget | Self::Drained => Some(503),
            Self::LinkLost => Some(502),
            Self::Idle => Some(504),
            Self::Refused(refusal) => Some(refusal.http_status()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

fn refused_by(refusal: Refusal, direction: Direction) -> Origin {
    match (refusal, direction) {
        (Refusal::NoBackend | Refusal::ConnectRefused | Refusal::ConnectTimeout | Refusal::BackendReset, _) => {
            Origin::Backend
        }
        (Refusal::Cancelled, Direction::Outbound) => Origin::Client,
        (Refusal::Draining | Refusal::Overloaded, Direction::Inbound) => Origin::Us,
        (_, Direction::Outbound | Direction::Inbound) => Origin::Remote,
    }
}

/// What is known of one connection or request. Filled in as the path learns it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Seen from this gateway.
    pub direction: Direction,
    /// What is carried; may turn from `Http2` to `Grpc` once the head is known.
    pub protocol: Protocol,
    /// The other cluster: where it went (outbound), whence it came (inbound). Our own name where the local cluster served.
    pub peer: Option<ClusterName>,
    /// The service called.
    pub service: Option<ServiceKey>,
    /// The service's port number; 0 while unknown.
    pub port: u16,
    /// The mirrored name that the client used (outbound).
    pub mirror: Option<Arc<str>>,
    /// Who calls.
    pub source: Option<Source>,
    /// The client's address, where known.
    pub client: Option<SocketAddr>,
    /// The endpoint that served it, where this gateway dialled it.
    pub backend: Option<SocketAddr>,
    /// HTTP method, where it is HTTP. Goes to the access log, never into a label.
    pub method: Option<http::Method>,
    /// HTTP status sent to the caller.
    pub status: Option<u16>,
    /// gRPC status sent to the caller.
    pub grpc_status: Option<u32>,
    /// The W3C trace context of the call.
    pub traceparent: Option<String>,
    /// How many targets were tried; 1 where the first one took it.
    pub attempts: u32,
    /// `linkspan check` asks, and no user: the access log says so, metrics and `stat` leave it out.
    pub probe: bool,
    /// Why it failed, in words. Goes to the access log, never into a label or to a peer.
    pub note: Option<String>,
    /// When it began.
    pub started: Instant,
    /// From the beginning to the first byte or head of the answer.
    pub first_byte: Option<Duration>,
    /// Bytes from the caller towards the service so far.
    pub received: u64,
    /// Bytes from the service towards the caller so far.
    pub sent: u64,
    /// Of a flow: datagrams from the caller, to it, and those that were not carried on.
    pub datagrams: Datagrams,
}

/// Datagrams of a flow so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Datagrams {
    /// From the caller towards the service.
    pub received: u64,
    /// From the service towards the caller.
    pub sent: u64,
    /// Not carried on, for whatever reason; in neither of the two.
    pub lost: u64,
}

impl Entry {
    /// An entry that begins now.
    #[must_use]
    pub fn new(direction: Direction, protocol: Protocol) -> Self {
        Self {
            direction,
            protocol,
            peer: None,
            service: None,
            port: 0,
            mirror: None,
            source: None,
            client: None,
            backend: None,
            method: None,
            status: None,
            grpc_status: None,
            traceparent: None,
            attempts: 0,
            probe: false,
            note: None,
            started: Instant::now(),
            first_byte: None,
            received: 0,
            sent: 0,
            datagrams: Datagrams::default(),
        }
    }
}

/// Hears of every connection and request. Called on the data path: must not block and must not allocate much.
pub trait Recorder: Send + Sync + 'static {
    /// It begins; the labels of `entry` that matter for opening are set.
    fn begin(&self, entry: &Entry);
    /// Bytes moved since the last call.
    fn progress(&self, entry: &Entry, received: u64, sent: u64);
    /// Datagrams moved since the last call, from the caller and to it.
    fn datagrams(&self, _entry: &Entry, _received: u64, _sent: u64) {}
    /// So many datagrams were not carried on. Of a flow that never came to be, `entry` has what was known of it.
    fn lost(&self, _entry: &Entry, _why: Loss, _count: u64) {}
    /// It ended; all bytes have been told through `progress`.
    fn end(&self, entry: &Entry, outcome: Outcome, elapsed: Duration);
}

/// Tells several recorders.
impl<R: Recorder + ?Sized> Recorder for Vec<Arc<R>> {
    fn begin(&self, entry: &Entry) {
        self.iter().for_each(|recorder| recorder.begin(entry));
    }

    fn progress(&self, entry: &Entry, received: u64, sent: u64) {
        self.iter().for_each(|recorder| recorder.progress(entry, received, sent));
    }

    fn datagrams(&self, entry: &Entry, received: u64, sent: u64) {
        self.iter().for_each(|recorder| recorder.datagrams(entry, received, sent));
    }

    fn lost(&self, entry: &Entry, why: Loss, count: u64) {
        self.iter().for_each(|recorder| recorder.lost(entry, why, count));
    }

    fn end(&self, entry: &Entry, outcome: Outcome, elapsed: Duration) {
        self.iter().for_each(|recorder| recorder.end(entry, outcome, elapsed));
    }
}

/// Guards the life of one connection or request: whatever happens, it ends in exactly one [`Outcome`].
pub struct Record {
    entry: Entry,
    recorder: Arc<dyn Recorder>,
    told_received: u64,
    told_sent: u64,
    outcome: Option<Outcome>,
}

impl Record {
    /// Begins it.
    #[must_use]
    pub fn open(recorder: Arc<dyn Recorder>, entry: Entry) -> Self {
        recorder.begin(&entry);
        Self { told_received: entry.received, told_sent: entry.sent, entry, recorder, outcome: None }
    }

    /// To fill in what became known. `direction`, `service` and `port` must not change once it is open.
    pub fn entry(&mut self) -> &mut Entry {
        &mut self.entry
    }

    /// Notes the time of the first byte (or head) of the answer; only the first call counts.
    pub fn answered(&mut self) {
        let elapsed = self.entry.started.elapsed();
        self.entry.first_byte.get_or_insert(elapsed);
    }

    /// Counts bytes from the caller towards the service.
    pub fn received(&mut self, bytes: usize) {
        self.entry.received += bytes as u64;
        self.maybe_flush();
    }

    /// Counts bytes from the service towards the caller.
    pub fn sent(&mut self, bytes: usize) {
        self.entry.sent += bytes as u64;
        self.maybe_flush();
    }

    /// Counts datagrams from the caller, to it, and tells of them at once: whoever calls this has added many up.
    pub fn datagrams(&mut self, received: u64, sent: u64) {
        if received + sent > 0 {
            self.entry.datagrams.received += received;
            self.entry.datagrams.sent += sent;
            self.recorder.datagrams(&self.entry, received, sent);
        }
    }

    /// Counts datagrams that were not carried on.
    pub fn lost(&mut self, why: Loss, count: u64) {
        if count > 0 {
            self.entry.datagrams.lost += count;
            self.recorder.lost(&self.entry, why, count);
        }
    }

    /// Tells the recorders of all bytes counted so far. Long-lived connections call it now and then.
    pub fn flush(&mut self) {
        let (received, sent) = (self.entry.received - self.told_received, self.entry.sent - self.told_sent);
        if received + sent > 0 {
            self.recorder.progress(&self.entry, received, sent);
            self.told_received = self.entry.received;
            self.told_sent = self.entry.sent;
        }
    }

    /// Sets the outcome that counts when the record is dropped. The first one set stays: it is the cause, what follows
    /// is its consequence.
    pub fn ended(&mut self, outcome: Outcome) {
        self.outcome.get_or_insert(outcome);
    }

    /// Ends it.
    pub fn finish(mut self, outcome: Outcome) {
        self.ended(outcome);
    }

    fn maybe_flush(&mut self) {
        let untold = (self.entry.received - self.told_received) + (self.entry.sent - self.told_sent);
        if untold >= FLUSH_EVERY {
            self.flush();
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.flush();
        let outcome = self.outcome.unwrap_or(Outcome::Abandoned);
        self.recorder.end(&self.entry, outcome, self.entry.started.elapsed());
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("entry", &self.entry).field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
