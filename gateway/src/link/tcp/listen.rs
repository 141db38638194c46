//! The door for TCP: preface, handshake, and over to the driver of the peer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use linkspan_proto::configuration::Carrier;
use linkspan_runtime::backoff::Backoff;
use linkspan_runtime::task;
use tokio::io::AsyncReadExt;

use super::places::Place;
use super::{Doorway, PREFACE, PREFACE_TIMEOUT, Wire};
use crate::link::accept::{self, Budget, Counted, HANDSHAKE_TIMEOUT, REFUSE_ABOVE};
use crate::link::endpoint::TcpServer;
use crate::link::pool::Shared;

/// Pauses after an `accept` that failed for want of descriptors or memory.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// What every worker's door shares.
pub(in crate::link) struct Door {
    pub(in crate::link) shared: Arc<Shared>,
    pub(in crate::link) server: TcpServer,
    pub(in crate::link) warnings: Budget,
}

/// Serves one worker's listening socket to the end of the process.
pub(in crate::link) async fn listen(door: Arc<Door>, mut doorway: Box<dyn Doorway>, worker: usize) {
    let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
    loop {
        let wire = match doorway.accept().await {
            Ok(wire) => wire,
            Err(error) => {
                tracing::debug!(%error, "no TCP connection could be accepted");
                tokio::time::sleep(backoff.next()).await;
                continue;
            }
        };
        backoff.reset();
        let is_full = door.shared.handshakes.load(Ordering::Relaxed) >= REFUSE_ABOVE;
        if door.shared.is_ending() || is_full {
            continue;
        }
        match door.shared.strangers.enter(wire.remote.ip()) {
            Ok(place) => {
                // Ends by itself: preface and handshake have deadlines.
                drop(task::spawn("link_handshake", greet(Arc::clone(&door), wire, place, worker)));
            }
            Err(full) => tracing::debug!(remote = %wire.remote, why = %full, "TCP connection turned away"),
        }
    }
}

/// From the first byte to the authenticated connection.
async fn greet(door: Arc<Door>, mut wire: Wire, place: Place, worker: usize) {
    let remote = wire.remote;
    if !tokio::time::timeout(PREFACE_TIMEOUT, has_preface(&mut wire)).await.unwrap_or_default() {
        tracing::debug!(%remote, "a TCP connection without the preface of a link");
        return;
    }
    let chain = door.shared.config.certificate.chain_len();
    let counted = Counted::new(&door.shared.handshakes);
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, door.server.accept(wire, chain)).await;
    drop(counted);
    drop(place);
    match shaken {
        Ok(Ok(connection)) => accept::admit(&door.shared, connection, worker, Carrier::Tcp).await,
        Ok(Err(Some(error))) => accept::refused(&error, remote, &door.warnings),
        Ok(Err(None)) => tracing::debug!(%remote, "a TCP connection ended before its handshake"),
        Err(_) => tracing::debug!(%remote, "handshake not finished in time"),
    }
}

/// Reads the preface, and not a byte more.
async fn has_preface(wire: &mut Wire) -> bool {
    let (mut read, mut have) = ([0; PREFACE.len()], 0);
    while have < read.len() {
        match wire.stream.read(&mut read[have..]).await {
            Ok(more) if more > 0 => have += more,
            _ => return false,
        }
        // The first byte that is wrong is enough.
        if read[..have] != PREFACE[..have] {
            return false;
        }
    }
    true
}
