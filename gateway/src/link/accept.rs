//! Handshakes of those who dial us.
//!
//! - In: knocks on the worker's listening socket.
//! - Out: an authenticated connection to the driver of its peer.
//! - Refuses when: the certificate is not believed (one warning each, within a budget), the handshake is slow, there are
//!   too many of them, the gateway ends.
//! - Never does: keep state for an address that is not validated while there is a flood (S-28).
//! - Numbers: [`RETRY_ABOVE`], [`REFUSE_ABOVE`], [`HANDSHAKE_TIMEOUT`].

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use linkspan_proto::configuration::Carrier;
use linkspan_runtime::task;
use quinn::{Connection, ConnectionError, Incoming};
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use super::driver::Message;
use super::endpoint::Listener;
use super::pool::Shared;
use super::tls::{Svid, TrustFailure};
use super::trouble::{self, CloseCode};

/// Handshakes under way above which an address must first prove that it receives our packets.
const RETRY_ABOVE: usize = 200;

/// Handshakes under way above which newcomers are turned away: each costs about a millisecond of CPU and 100 KiB.
pub(super) const REFUSE_ABOVE: usize = 1000;

/// From the first packet to the end of the handshake (S-27).
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Warnings of refused handshakes: this many at once, then one for each [`WARNING_EVERY`]. A scanner must not fill the disk.
const WARNINGS: u32 = 50;

const WARNING_EVERY: Duration = Duration::from_secs(1);

/// Serves one worker's socket to the end of the process.
pub(super) async fn listen(shared: Arc<Shared>, listener: Listener, worker: usize) {
    let warnings = Arc::new(Budget::new());
    while let Some(incoming) = listener.endpoint.accept().await {
        let under_way = shared.handshakes.load(Ordering::Relaxed);
        if shared.is_ending() || under_way >= REFUSE_ABOVE {
            incoming.refuse();
        } else if under_way >= RETRY_ABOVE && !incoming.remote_address_validated() && incoming.may_retry() {
            // Failing means that the address is validated after all; then the dialler's next packet decides.
            drop(incoming.retry());
        } else {
            let config = listener.config(incoming.remote_address().ip());
            let handshake = handshake(Arc::clone(&shared), incoming, config, worker, Arc::clone(&warnings));
            // Ends by itself: the handshake has a deadline.
            drop(task::spawn("link_handshake", handshake));
        }
    }
}

async fn handshake(
    shared: Arc<Shared>,
    incoming: Incoming,
    config: Arc<quinn::ServerConfig>,
    worker: usize,
    warnings: Arc<Budget>,
) {
    let counted = Counted::new(&shared.handshakes);
    let remote = incoming.remote_address();
    let shaken = match incoming.accept_with(config) {
        Ok(connecting) => tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await,
        Err(error) => Ok(Err(error)),
    };
    drop(counted);
    match shaken {
        Ok(Ok(connection)) => admit(&shared, connection, worker, Carrier::Quic).await,
        Ok(Err(error)) => refused(&error, remote, &warnings),
        Err(_) => tracing::debug!(%remote, "handshake not finished in time"),
    }
}

/// Hands the connection to the peer that its certificate names.
pub(super) async fn admit(shared: &Shared, connection: Connection, worker: usize, carrier: Carrier) {
    let link = certificates(&connection)
        .first()
        .and_then(|leaf| Svid::read(leaf).ok())
        .and_then(|svid| shared.trust.get(svid.id.trust_domain()))
        .and_then(|trust| shared.peer(trust.cluster()));
    let Some(link) = link else {
        // The Link was removed during the handshake.
        trouble::close(&connection, CloseCode::LinkRemoved);
        return;
    };
    // An error says that the driver has ended: dropping the connection closes it.
    drop(link.inbox.send(Message::Accepted { connection, worker, carrier }).await);
}

/// The chain that the other side showed, leaf first.
pub(super) fn certificates(connection: &Connection) -> Vec<CertificateDer<'static>> {
    connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .map(|chain| *chain)
        .unwrap_or_default()
}

pub(super) fn refused(error: &ConnectionError, remote: SocketAddr, warnings: &Budget) {
    let failure = match error {
        ConnectionError::TransportError(error) => TrustFailure::find(&error.reason),
        _ => None,
    };
    match (failure, failure.and_then(|_| warnings.spend(Instant::now()))) {
        (Some(failure), Some(suppressed)) => {
            tracing::warn!(%remote, reason = failure.word(), suppressed, "link refused: {failure}");
        }
        _ => tracing::debug!(%remote, %error, "handshake failed"),
    }
}

/// One more of what is counted, until dropped.
pub(super) struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    pub(super) fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }

    /// One more, unless there are `most` already.
    pub(super) fn below(counter: &'a AtomicUsize, most: usize) -> Option<Self> {
        let more = |count: usize| (count < most).then_some(count + 1);
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(counter))
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many warnings may still be written.
pub(super) struct Budget(Mutex<Allowance>);

struct Allowance {
    left: u32,
    since: Instant,
    suppressed: u64,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Allowance { left: WARNINGS, since: Instant::now(), suppressed: 0 }))
    }

    /// Whether to write; then with how many were not written before.
    fn spend(&self, now: Instant) -> Option<u64> {
        let mut allowance = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let earned = now.duration_since(allowance.since).as_secs() / WARNING_EVERY.as_secs();
        if earned > 0 {
            allowance.since = now;
            allowance.left = allowance.left.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(WARNINGS);
        }
        if allowance.left == 0 {
            allowance.suppressed += 1;
            return None;
        }
        allowance.left -= 1;
        Some(std::mem::take(&mut allowance.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_have_a_budget_and_say_what_was_left_out() {
        let budget = Budget::new();
        let now = Instant::now();
        assert!((0..WARNINGS).all(|_| budget.spend(now) == Some(0)));
        assert!((0..7).all(|_| budget.spend(now).is_none()));
        assert_eq!(budget.spend(now + WARNING_EVERY), Some(7));
        assert_eq!(budget.spend(now + WARNING_EVERY), None);
    }

    #[test]
    fn counts_go_back() {
        let counter = AtomicUsize::new(0);
        let one = Counted::below(&counter, 2);
        let two = Counted::below(&counter, 2);
        assert!(one.is_some() && two.is_some() && Counted::below(&counter, 2).is_none());
        drop(one);
        assert!(Counted::below(&counter, 2).is_some());
    }
}
