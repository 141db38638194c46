//! Probes over the data path, and what follows from their verdict.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use linkspan_proto::stream_header::{StreamHeader, StreamKind};
use linkspan_runtime::task;
use quinn::VarInt;

use super::{Driver, Message};
use crate::link::connection::{Connection, ConnectionId};
use crate::link::health::{LOST_AFTER, Missed, PROBE_TIMEOUT, Probe, Verdict};
use crate::link::serve;
use crate::link::share::Pool;
use crate::link::state::Event;
use crate::link::trouble::{self, CloseCode, trouble};

/// An answer has one byte; a peer that sends more than this does not answer, it floods.
const MOST: usize = 16;

impl Driver {
    /// Sends the probes that are due.
    pub(super) fn send_probes(&mut self, now: Instant) {
        for (id, standing) in &mut self.standing {
            let Some(health) = &mut standing.health else { continue };
            let Some(probe) = health.poll(now) else { continue };
            let (id, connection, inbox) = (*id, Arc::clone(&standing.connection), self.link.inbox.clone());
            // Ends with its timeout.
            drop(task::spawn("link_probe", async move {
                let result = send(&connection).await;
                drop(inbox.send(Message::Probed { id, probe, result }).await);
            }));
        }
    }

    /// Takes the result of a probe in.
    pub(super) fn probed(&mut self, id: ConnectionId, probe: Probe, result: Result<Duration, Missed>, now: Instant) {
        let Some(standing) = self.standing.get_mut(&id) else { return };
        let Some(health) = &mut standing.health else { return };
        let (before, said) = (health.verdict(), health.probes());
        match result {
            Ok(took) => {
                health.answer(probe, now);
                self.figures.probe = Some(took);
            }
            Err(missed) => health.miss(probe, missed, now),
        }
        standing.connection.doubt(health.is_in_doubt());
        if before != health.verdict() {
            let verdict = if health.verdict() == Verdict::Up { "up" } else { "down" };
            tracing::info!(peer = %self.link.cluster, connection = id.0, verdict, "probes changed their verdict");
        }
        let probes = health.probes();
        if health.is_lost(now) {
            let message = format!("the connection carried nothing for {} s", LOST_AFTER.as_secs());
            standing.trouble = Some(trouble(CloseCode::Silent.word(), message));
            trouble::close(&standing.connection.quinn, CloseCode::Silent);
        }
        self.shared.config.observer.probe(&self.link.cluster, result.is_ok());
        if probes != said {
            self.state.handle(Event::Probes { connection: id, probes }, now);
        }
    }

    /// Shows the data path what may be used, and everybody how the link stands.
    pub(super) fn publish(&mut self, now: Instant) {
        let usable: Vec<_> = self.state.usable();
        let verdict = |id: &ConnectionId| {
            self.standing.get(id).and_then(|standing| standing.health.as_ref()).map(|health| health.verdict())
        };
        let up: Vec<ConnectionId> = usable.iter().filter(|id| verdict(id) == Some(Verdict::Up)).copied().collect();
        let all_down = !usable.is_empty() && usable.iter().all(|id| verdict(id) == Some(Verdict::Down));
        let changed = self.health.update(!up.is_empty(), all_down, now);
        if changed {
            self.figures.turn();
            let alive = self.health.verdict() == Verdict::Up;
            tracing::info!(peer = %self.link.cluster, alive, "link changed");
        }
        self.link.healthy.store(self.health.verdict() == Verdict::Up, Ordering::Relaxed);

        let present = self.link.connections.load();
        if !present.iter().map(|connection| connection.id).eq(up.iter().copied()) {
            let connections: Vec<Arc<Connection>> = up
                .iter()
                .filter_map(|id| self.standing.get(id))
                .map(|standing| Arc::clone(&standing.connection))
                .collect();
            let connected = !connections.is_empty();
            self.link.connections.store(Arc::new(connections));
            self.link.connected.send_if_modified(|old| std::mem::replace(old, connected) != connected);
        }
        drop(present);
        self.share_window(usable.len());
        self.report(&usable);
    }

    /// Gives each connection its share of what one peer may make us hold.
    fn share_window(&mut self, usable: usize) {
        let own = &self.shared.config;
        let expected = self.state.target().max(usable);
        let most = self.state.most_connections();
        let receive = Pool::new(u64::from(own.limits.peer_window), most);
        let send = Pool::new(u64::from(own.limits.peer_send_window), most);
        let mut ready: Vec<_> = self.standing.values_mut().filter(|standing| standing.health.is_some()).collect();
        let before: Vec<_> = ready.iter().map(|one| (one.receive.window(), one.send.window())).collect();
        let mut unread: Vec<_> = Vec::with_capacity(ready.len());
        let mut unacknowledged: Vec<_> = Vec::with_capacity(ready.len());
        for one in &mut ready {
            let (read, sent) = one.connection.flow.passed();
            unread.push((&mut one.receive, read));
            unacknowledged.push((&mut one.send, sent));
        }
        receive.divide(expected, &mut unread);
        send.divide(expected, &mut unacknowledged);
        for (one, before) in ready.iter().zip(before) {
            let quinn = &one.connection.quinn;
            if one.receive.window() != before.0 {
                quinn.set_receive_window(VarInt::from_u64(one.receive.window()).unwrap_or(VarInt::MAX));
            }
            if one.send.window() != before.1 {
                quinn.set_send_window(one.send.window());
            }
        }
    }
}

/// One probe; how long its answer took, if it came in time.
async fn send(connection: &Connection) -> Result<Duration, Missed> {
    let started = tokio::time::Instant::now();
    // Acknowledged is what went there, by what came back: the path carried both ways.
    let acknowledgements = || connection.quinn.stats().frame_rx.acks;
    let acknowledged = acknowledgements();
    let Some(opened) = connection.try_open() else {
        // All stream credit is in use, which says that there is much to carry, not that the path is dead. What still
        // comes in is the answer; keep-alives make it one packet a second at least.
        let received = || connection.quinn.stats().udp_rx.datagrams;
        let before = received();
        tokio::time::sleep(PROBE_TIMEOUT).await;
        return if received() > before { Ok(started.elapsed()) } else { Err(Missed { carried: false }) };
    };
    let exchange = async {
        let (mut send, mut recv) = opened.ok()?;
        send.uncount();
        recv.uncount();
        send.prioritise(serve::PROBE_PRIORITY);
        let header = StreamHeader::new(StreamKind::Probe).encode().ok()?;
        connection.make_room();
        send.write(header).await.ok()?;
        send.finish().ok()?;
        let mut seen = 0;
        while let Some(chunk) = recv.read(MOST).await.ok()? {
            seen += chunk.len();
            if seen > MOST {
                return None;
            }
        }
        Some(())
    };
    match tokio::time::timeout(PROBE_TIMEOUT, exchange).await {
        Ok(Some(())) => Ok(started.elapsed()),
        Ok(None) | Err(_) => Err(Missed { carried: acknowledgements() > acknowledged }),
    }
}
