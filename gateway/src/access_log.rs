//! One line for each connection, request and flow of datagrams, when it ends.
//!
//! - In: the end of every record ([`Recorder`]).
//! - Out: an event of the target `access` at level info. Filter it out with `access=off`.
//! - Never does: log what was carried, header values or a request's path; let a value that somebody else chose break the
//!   line (S-46): each passes through [`Clean`].
//! - Numbers: fields of at most 1 KiB each ([`linkspan_runtime::text::FIELD_MAX`]).

use std::time::Duration;

use linkspan_runtime::text::Clean;
use tracing::field::{DisplayValue, display};

use crate::outcome::{Entry, Outcome, Protocol, Recorder};

/// Writes the access log.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccessLog;

impl Recorder for AccessLog {
    fn begin(&self, _entry: &Entry) {}

    fn progress(&self, _entry: &Entry, _received: u64, _sent: u64) {}

    fn end(&self, entry: &Entry, outcome: Outcome, elapsed: Duration) {
        // Before the fields are put together: a disabled access log costs one comparison.
        if tracing::enabled!(target: "access", tracing::Level::INFO) {
            write(entry, outcome, elapsed);
        }
    }
}

fn write(entry: &Entry, outcome: Outcome, elapsed: Duration) {
    let source = entry.source.as_ref();
    let is_flow = entry.protocol == Protocol::Udp;
    tracing::info!(
        target: "access",
        direction = entry.direction.label(),
        protocol = entry.protocol.label(),
        peer = entry.peer.as_ref().map(|peer| peer.as_str()),
        service = entry.service.as_ref().map(display),
        port = entry.port,
        mirror = entry.mirror.as_deref().map(clean),
        source = source.map(|source| clean(source.identity.as_str())),
        assurance = source.map(|source| source.assurance.as_str()),
        client = entry.client.map(display),
        backend = entry.backend.map(display),
        method = entry.method.as_ref().map(|method| clean(method.as_str())),
        status = entry.status,
        grpc_status = entry.grpc_status,
        attempts = entry.attempts,
        probe = entry.probe.then_some(true),
        received = entry.received,
        sent = entry.sent,
        received_datagrams = is_flow.then_some(entry.datagrams.received),
        sent_datagrams = is_flow.then_some(entry.datagrams.sent),
        lost_datagrams = is_flow.then_some(entry.datagrams.lost),
        first_byte_ms = entry.first_byte.map(milliseconds),
        duration_ms = milliseconds(elapsed),
        outcome = outcome.label(),
        origin = outcome.origin(entry.direction).map(|origin| origin.label()),
        note = entry.note.as_deref().map(clean),
        traceparent = entry.traceparent.as_deref().map(clean),
        "{}",
        match entry.protocol {
            Protocol::Udp => "flow",
            protocol if protocol.is_http() => "request",
            _ => "connection",
        },
    );
}

fn clean(text: &str) -> DisplayValue<Clean<'_>> {
    display(Clean(text))
}

/// To the microsecond: more digits are noise in a log.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

#[cfg(test)]
mod tests;
