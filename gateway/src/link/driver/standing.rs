//! Connections that stand: taken in, told and heard at the hello, left, gone.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use linkspan_proto::configuration::Carrier;
use linkspan_proto::control::{ControlMessage, GoAway, Hello, VERSION};
use linkspan_runtime::{build_info, task};
use quinn::ConnectionError;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::mpsc;

use super::{Driver, now};
use crate::link::connection::{Connection, ConnectionId};
use crate::link::health::Health;
use crate::link::share::Share;
use crate::link::state::{Event, HelloFacts, Leave, Trouble};
use crate::link::tls::{PeerTrust, Role, TrustFailure};
use crate::link::trouble::{self, CloseCode, trouble};
use crate::link::{PeerInfo, accept, congestion, serve};

/// Goaways that wait to be sent on a connection: there are three kinds.
const GOAWAYS: usize = 4;

/// A connection and what the driver keeps beside it.
pub(super) struct Standing {
    pub(super) connection: Arc<Connection>,
    pub(super) role: Role,
    pub(super) carrier: Carrier,
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The earlier end of the two certificates.
    pub(super) expires: SystemTime,
    pub(super) goaways: mpsc::Sender<ControlMessage>,
    /// From the hello on.
    pub(super) health: Option<Health>,
    /// Why we closed it, where that is something to tell.
    pub(super) trouble: Option<Trouble>,
    /// Of what the peer may leave unread here.
    pub(super) receive: Share,
    /// Of what it may leave unacknowledged.
    pub(super) send: Share,
}

impl Driver {
    /// Takes a fresh connection in and serves it. One that is not believed (any more) is closed, and comes back as
    /// [`Message::Closed`] like any other.
    pub(super) fn stand(
        &mut self,
        id: ConnectionId,
        quinn: quinn::Connection,
        worker: usize,
        role: Role,
        carrier: Carrier,
    ) {
        let chain = accept::certificates(&quinn);
        let peer = &self.config.peer;
        let info = Arc::new(PeerInfo {
            cluster: peer.cluster.clone(),
            trust_domain: peer.trust_domain.clone(),
            gateway: self.config.trust.gateway().clone(),
            remote: quinn.remote_address(),
            default_policy: peer.default_policy,
        });
        congestion::configure(&quinn, peer.congestion);
        let permitted = self.shared.config.limits.streams;
        let connection = Arc::new(Connection::new(id, quinn, worker, info, permitted));
        let (goaways, sending) = mpsc::channel(GOAWAYS);
        let mut standing = Standing {
            connection: Arc::clone(&connection),
            role,
            carrier,
            chain,
            expires: SystemTime::UNIX_EPOCH,
            goaways,
            health: None,
            trouble: None,
            receive: Share::new(),
            send: Share::new(),
        };
        // The handshake has verified it, but the bundle may have changed since.
        match standing.verify(&self.config.trust, self.shared.wall()) {
            Ok(peer_end) => {
                let own_end = self.shared.config.certificate.not_after().unwrap_or(SystemTime::UNIX_EPOCH);
                standing.expires = own_end.min(peer_end);
            }
            Err(failure) => {
                standing.trouble = Some(trouble(failure.word(), failure.of_peer()));
                trouble::close(&connection.quinn, CloseCode::TrustChanged);
            }
        }
        let serving =
            serve::serve(Arc::clone(&self.shared), Arc::clone(&self.link), connection, self.own_hello(worker), sending);
        // Ends with its connection.
        drop(self.shared.spawn_on(worker, "link_connection", serving));
        self.standing.insert(id, standing);
    }

    pub(super) fn own_hello(&self, worker: usize) -> Hello {
        let own = &self.shared.config;
        Hello {
            version_min: VERSION,
            version_max: VERSION,
            features: 0,
            cluster: own.cluster.clone(),
            gateway_id: own.keys.gateway_id(),
            boot_id: own.boot_id.clone(),
            software_version: build_info::VERSION.to_owned(),
            worker: u32::try_from(worker).unwrap_or(u32::MAX),
            workers: u32::try_from(own.workers.len()).unwrap_or(u32::MAX),
            unix_seconds: self.shared.wall().as_secs(),
        }
    }

    pub(super) fn hello(&mut self, id: ConnectionId, hello: &Hello, now: Instant) {
        let own = self.own_hello(0);
        let Some(standing) = self.standing.get_mut(&id) else { return };
        if hello.cluster != self.link.cluster {
            let message = format!(
                "the peer calls itself {}, but our Link calls it {}; rename the Link to {0}",
                hello.cluster, self.link.cluster
            );
            standing.trouble = Some(trouble(CloseCode::NameMismatch.word(), message));
            trouble::close(&standing.connection.quinn, CloseCode::NameMismatch);
            return;
        }
        if own.agree(hello).is_none() {
            let message = format!(
                "the peer speaks link protocol {} to {}, we speak {} to {}; upgrade the older side",
                hello.version_min, hello.version_max, own.version_min, own.version_max
            );
            standing.trouble = Some(trouble(CloseCode::VersionMismatch.word(), message));
            trouble::close(&standing.connection.quinn, CloseCode::VersionMismatch);
            return;
        }
        if standing.health.is_some() {
            return;
        }
        standing.health = Some(Health::new(self.health.verdict(), now));
        self.figures.version = Some(hello.software_version.clone());
        self.figures.clock_ahead = (hello.unix_seconds > 0).then(|| ahead(hello.unix_seconds, own.unix_seconds));
        let remote = standing.connection.quinn.remote_address();
        let transport = standing.carrier.as_str();
        tracing::info!(
            peer = %self.link.cluster, %remote, connection = id.0, transport, version = hello.software_version,
            "link connected"
        );
        let facts = HelloFacts {
            gateway_id: hello.gateway_id.clone(),
            boot_id: hello.boot_id.clone(),
            worker: hello.worker,
            workers: hello.workers,
        };
        self.state.handle(Event::Hello { connection: id, facts }, now);
    }

    pub(super) fn closed(&mut self, id: ConnectionId, error: &ConnectionError, now: Instant) {
        let Some(standing) = self.standing.remove(&id) else { return };
        self.figures.leave(&standing.connection.quinn);
        let remote = standing.connection.quinn.remote_address();
        let trouble = standing.trouble.or_else(|| trouble::of_connection(error, remote, standing.carrier));
        let reason = trouble.as_ref().map_or("Closed", |trouble| trouble.reason);
        if standing.health.is_some() {
            tracing::info!(peer = %self.link.cluster, %remote, connection = id.0, reason, %error, "link connection ended");
        } else {
            tracing::debug!(peer = %self.link.cluster, %remote, connection = id.0, reason, %error, "link connection failed");
        }
        self.state.handle(Event::Closed { connection: id, trouble }, now);
    }

    pub(super) fn send_goaway(&self, id: ConnectionId, leave: Leave) {
        let Some(standing) = self.standing.get(&id) else { return };
        if leave == Leave::Shutdown {
            standing.connection.shut();
        }
        let left = self.deadline.map_or(0, |deadline| deadline.saturating_duration_since(now()).as_millis());
        let drain_millis = u32::try_from(left).unwrap_or(u32::MAX);
        let message = ControlMessage::GoAway(GoAway { drain_millis, reason: leave.word().to_owned() });
        // Full only if the peer takes nothing: then it will notice the close.
        drop(standing.goaways.try_send(message));
    }

    /// Closes a connection when its streams have ended.
    pub(super) fn finish(&self, id: ConnectionId) {
        let Some(standing) = self.standing.get(&id) else { return };
        let connection = Arc::clone(&standing.connection);
        connection.streams.drain();
        // Detached: ends with the connection at the latest.
        drop(task::spawn("link_finish", async move {
            let finished = async {
                loop {
                    connection.streams.idle().await;
                    // Streams that the peer opened before our goaway reached it are still under way.
                    let linger = (connection.quinn.rtt() * 4).clamp(Duration::from_millis(100), Duration::from_secs(1));
                    tokio::time::sleep(linger).await;
                    if connection.streams.is_idle() {
                        return;
                    }
                }
            };
            tokio::select! {
                biased;
                () = finished => trouble::close(&connection.quinn, CloseCode::Drained),
                _ = connection.quinn.closed() => {}
            }
        }));
    }
}

/// How far a clock is ahead of another.
fn ahead(theirs: u64, ours: u64) -> i64 {
    let apart = i64::try_from(theirs.abs_diff(ours)).unwrap_or(i64::MAX);
    if theirs < ours { -apart } else { apart }
}

impl Standing {
    /// The end of the peer's certificate, if the bundle vouches for it.
    pub(super) fn verify(&self, trust: &PeerTrust, now: UnixTime) -> Result<SystemTime, TrustFailure> {
        let (leaf, above) = self.chain.split_first().ok_or(TrustFailure::InvalidCertificate)?;
        trust.verify(self.role, leaf, above, now).map(|svid| svid.not_after)
    }
}
