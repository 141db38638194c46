//! From a client to the cluster that was picked.

use std::future::poll_fn;
use std::net::SocketAddr;

use bytes::Bytes;
use linkspan_proto::names::ClusterName;
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::{CONNECTED, StreamHeader, StreamKind};
use tokio::time::{Instant, timeout_at};

use super::{REPLAY, REPLY, local, new_trace, table};
use crate::context::Gateway;
use crate::error::Failure;
use crate::link::{RecvHalf, SendHalf, StreamError};
use crate::listener::{ClientConnection, ClientIo};
use crate::outcome::{Direction, Entry, Outcome, Protocol, Record};
use crate::relay::{Socket, poll_chunk_of, relay};
use crate::route::{Routed, Target};

/// A client's bytes that a target may still have to be given again.
#[derive(Debug, Default)]
pub(super) struct Replay {
    chunks: Vec<Bytes>,
    length: usize,
    /// The client has half-closed behind them. The relay will read that again, and pass it on.
    finished: bool,
}

impl Replay {
    fn new(prefix: Bytes) -> Self {
        let length = prefix.len();
        Self { chunks: if prefix.is_empty() { Vec::new() } else { vec![prefix] }, length, finished: false }
    }

    /// How much more may be read ahead; 0 when the client has ended.
    fn room(&self) -> usize {
        if self.finished { 0 } else { REPLAY.saturating_sub(self.length) }
    }

    /// Notes what was read from the client: a chunk, or its FIN.
    fn push(&mut self, chunk: &Bytes) {
        self.finished |= chunk.is_empty();
        self.length += chunk.len();
        if !chunk.is_empty() {
            self.chunks.push(chunk.clone());
        }
    }

    fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// What was read, in one piece, for a target that takes everything from now on. Nothing is kept.
    pub(super) fn take(&mut self) -> Bytes {
        self.length = 0;
        match <[Bytes; 1]>::try_from(std::mem::take(&mut self.chunks)) {
            Ok([chunk]) => chunk,
            Err(chunks) => chunks.concat().into(),
        }
    }
}

/// Carries one client connection to its end.
pub async fn serve(gateway: &Gateway, mut conn: ClientConnection, routed: Routed, protocol: Protocol) {
    let mut entry = Entry::new(Direction::Outbound, protocol);
    entry.service = Some(routed.route.service().clone());
    entry.port = routed.route.port();
    entry.mirror = Some(routed.route.name().clone());
    entry.source = Some(routed.source.clone());
    entry.client = Some(conn.client);
    entry.probe = conn.probe;
    entry.traceparent = Some(new_trace());
    let first = routed.route.pick(&gateway.links, &[]);
    entry.peer = first.as_ref().ok().map(|target| target.cluster.clone());
    let mut record = gateway.record(entry);
    let result = match first {
        Ok(target) => carry(gateway, &mut conn, &routed, target, &mut record).await,
        Err(no_target) => Err(no_target.into()),
    };
    let outcome = result.unwrap_or_else(|failure| {
        record.entry().note = Some(failure.to_string());
        failure.outcome
    });
    record.finish(outcome);
    if outcome != Outcome::Ok {
        conn.io.reset();
    }
}

/// Carries the connection, and counts what the client said also where no target has taken it.
async fn carry(
    gateway: &Gateway,
    conn: &mut ClientConnection,
    routed: &Routed,
    target: Target,
    record: &mut Record,
) -> Result<Outcome, Failure> {
    let mut replay = Replay::new(conn.io.take_prefix());
    let result = try_targets(gateway, conn, routed, target, &mut replay, record).await;
    record.received(replay.len());
    result
}

/// Tries targets until one takes the connection, then copies to its end.
async fn try_targets(
    gateway: &Gateway,
    conn: &mut ClientConnection,
    routed: &Routed,
    mut target: Target,
    replay: &mut Replay,
    record: &mut Record,
) -> Result<Outcome, Failure> {
    let mut tried: Vec<ClusterName> = Vec::new();
    loop {
        record.entry().peer = Some(target.cluster.clone());
        record.entry().attempts += 1;
        let result = if target.local {
            local::carry(gateway, conn, routed, replay, record).await
        } else {
            let attempt = Attempt { gateway, routed, target: &target, client: conn.client, number: tried.len() };
            attempt.carry(conn, replay, record).await
        };
        let failure = match result {
            Err(failure) if failure.elsewhere => failure,
            ended => return ended,
        };
        tracing::debug!(target = %target.cluster, %failure, "target failed; trying the next one");
        tried.push(target.cluster);
        // The newest table: the failure may be the reason for which it has just changed.
        let table = table(gateway);
        let route = table.current(&routed.route).unwrap_or(&routed.route);
        target = match route.pick(&gateway.links, &tried) {
            Ok(target) => target,
            // The last target's own reason says more than "all tried".
            Err(_) => return Err(failure),
        };
    }
}

/// One try on one peer.
struct Attempt<'a> {
    gateway: &'a Gateway,
    routed: &'a Routed,
    target: &'a Target,
    client: SocketAddr,
    number: usize,
}

impl Attempt<'_> {
    async fn carry(
        &self,
        conn: &mut ClientConnection,
        replay: &mut Replay,
        record: &mut Record,
    ) -> Result<Outcome, Failure> {
        let (mut send, mut recv) = self.gateway.links.open(conn.worker, &self.target.cluster).await?;
        self.connect(&mut conn.io, &mut send, &mut recv, replay, record).await?;
        record.received(replay.len());
        // Held no longer: the connection may last for days.
        drop(replay.take());
        let bounds = self.gateway.bounds(None);
        Ok(relay(&mut conn.io, Socket::Client, &mut send, &mut recv, bounds, record).await)
    }

    /// Sends the header and what the client says until the peer's answer is in.
    async fn connect(
        &self,
        io: &mut ClientIo,
        send: &mut SendHalf,
        recv: &mut RecvHalf,
        replay: &mut Replay,
        record: &mut Record,
    ) -> Result<(), Failure> {
        let header = self.header(record).encode().map_err(|error| Failure::client(&error))?;
        let deadline = Instant::now() + REPLY;
        let mut chunks: Vec<Bytes> = std::iter::once(header).chain(replay.chunks.iter().cloned()).collect();
        let sent = |replay: &Replay| !replay.is_empty();
        let late = |replay: &Replay| {
            let failure = Failure::stream(StreamError::Reset(Refusal::ConnectTimeout), true);
            // Silence does not say that nothing was processed.
            if sent(replay) { failure.for_good() } else { failure }
        };
        // A peer may also be silent by taking nothing: writes have the same deadline.
        let written = timeout_at(deadline, send.write_all(&mut chunks)).await.map_err(|_| late(replay))?;
        written.map_err(|error| Failure::stream(error, sent(replay)))?;
        loop {
            let room = replay.room();
            tokio::select! {
                biased;
                reply = recv.read(usize::MAX) => {
                    let reply = reply.map_err(|error| Failure::stream(error, sent(replay)))?;
                    break self.connected(reply, recv, record);
                }
                chunk = poll_fn(|cx| poll_chunk_of(io, room, cx)), if room > 0 => {
                    let chunk = chunk.map_err(|error| Failure::client(&error))?;
                    replay.push(&chunk);
                    match timeout_at(deadline, send.write(chunk)).await.map_err(|_| late(replay))? {
                        // The peer's reason comes as a reset too; that one says whether a retry is safe.
                        Ok(()) | Err(StreamError::Stopped(_)) => {}
                        Err(error) => return Err(Failure::stream(error, true)),
                    }
                }
                () = tokio::time::sleep_until(deadline) => return Err(late(replay)),
            }
        }
    }

    /// The first bytes of the reply: one that says "connected", then the backend's own.
    fn connected(&self, reply: Option<Bytes>, recv: &mut RecvHalf, record: &mut Record) -> Result<(), Failure> {
        match reply {
            Some(mut bytes) if bytes.first() == Some(&CONNECTED) => {
                record.answered();
                recv.unread(bytes.split_off(1));
                Ok(())
            }
            Some(_) | None => Err(Failure::stream(StreamError::Reset(Refusal::Protocol), true)),
        }
    }

    fn header(&self, record: &mut Record) -> StreamHeader {
        let route = &self.routed.route;
        StreamHeader {
            service: Some(route.service().clone()),
            port: route.port(),
            endpoint: route.mirror().endpoint.clone(),
            source: Some(self.routed.source.clone()),
            traceparent: record.entry().traceparent.clone(),
            path: vec![self.gateway.own.cluster.clone()],
            attempt: u32::try_from(self.number).unwrap_or(u32::MAX),
            client: Some(self.client),
            ..StreamHeader::new(StreamKind::Tcp)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::task::Poll;

    use super::*;

    /// What a client says that never pauses.
    #[tokio::test]
    async fn s_34_what_is_kept_for_another_target_is_bounded_to_the_byte() {
        let mut client: &[u8] = &[7; 4 * REPLAY];
        let mut replay = Replay::new(Bytes::from_static(b"prefix"));
        while replay.room() > 0 {
            let room = replay.room();
            let chunk = poll_fn(|cx| poll_chunk_of(&mut client, room, cx)).await.expect("read");
            replay.push(&chunk);
        }
        assert_eq!((replay.len(), client.len()), (REPLAY, 3 * REPLAY + 6));
        let whole = replay.take();
        assert!(whole.starts_with(b"prefix\x07") && whole.len() == REPLAY);
        assert_eq!((replay.len(), replay.is_empty()), (0, true), "nothing is kept of what was handed over");
    }

    #[tokio::test]
    async fn nothing_is_read_behind_the_clients_end() {
        let mut replay = Replay::new(Bytes::new());
        let end = poll_fn(|cx| -> Poll<io::Result<Bytes>> { poll_chunk_of(&mut tokio::io::empty(), 10, cx) });
        replay.push(&end.await.expect("read"));
        assert_eq!(replay.room(), 0);
        assert!(replay.take().is_empty());
    }
}
