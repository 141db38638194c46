//! Drives the link to one peer: does what [`LinkState`] and [`Health`] say, with sockets, timers and tasks.
//!
//! - In: messages from `configure`, from dials, from the connection's tasks; the clock.
//! - Out: the peer's list of usable connections, its health, its report.
//! - Never does: decide. What to dial, keep or leave is the state's business; this file only carries it out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use linkspan_proto::configuration::Peer;
use linkspan_proto::control::{ControlMessage, GoAway, Hello, VERSION};
use linkspan_runtime::{build_info, task};
use quinn::ConnectionError;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::connection::{Connection, ConnectionId};
use super::health::{Health, LinkHealth, Probe, Verdict};
use super::pool::{Links, PeerLink, Shared};
use super::state::{Action, AttemptId, Event, HelloFacts, Leave, LinkState, Trouble};
use super::tls::{PeerTrust, Role};
use super::trouble::{self, CloseCode, trouble};
use super::{PeerInfo, accept, congestion, endpoint, exchange, resolve, serve, tls};

mod probe;
mod report;

use report::Figures;
pub(super) use report::first_report;

/// How often figures are sampled and certificates looked at.
const TICK: Duration = Duration::from_secs(1);

/// Goaways that wait to be sent on a connection: there are three kinds.
const GOAWAYS: usize = 4;

/// A Peer resource and what its bundle amounts to.
#[derive(Debug)]
pub(super) struct PeerConfig {
    pub(super) peer: Peer,
    pub(super) trust: Arc<PeerTrust>,
}

impl PartialEq for PeerConfig {
    fn eq(&self, other: &Self) -> bool {
        self.peer == other.peer
    }
}

/// What a driver is told.
#[derive(Debug)]
pub(super) enum Message {
    /// The Link object changed.
    Configure(Arc<PeerConfig>),
    /// The Link object is gone.
    Remove,
    /// The gateway will end.
    Announce,
    /// The gateway ends.
    Shutdown { deadline: Duration },
    /// The addresses behind the Link's names.
    Resolved(Result<Vec<SocketAddr>, Trouble>),
    /// A dial succeeded.
    Dialled { attempt: AttemptId, connection: quinn::Connection, worker: usize },
    /// A dial failed.
    DialFailed { attempt: AttemptId, trouble: Trouble },
    /// The peer dialled us.
    Accepted { connection: quinn::Connection, worker: usize },
    /// First message on a control stream.
    Hello { id: ConnectionId, hello: Hello },
    /// The peer wants to leave a connection.
    GoAway { id: ConnectionId, leave: Leave },
    /// A connection is gone.
    Closed { id: ConnectionId, error: ConnectionError },
    /// A probe was answered after this time, or not.
    Probed { id: ConnectionId, probe: Probe, answered: Option<Duration> },
}

/// A connection and what the driver keeps beside it.
struct Standing {
    connection: Arc<Connection>,
    role: Role,
    chain: Vec<CertificateDer<'static>>,
    /// The earlier end of the two certificates.
    expires: SystemTime,
    goaways: mpsc::Sender<ControlMessage>,
    /// From the hello on.
    health: Option<Health>,
    /// Why we closed it, where that is something to tell.
    trouble: Option<Trouble>,
    window: u64,
}

/// The driver of one link.
pub(super) struct Driver {
    shared: Arc<Shared>,
    link: Arc<PeerLink>,
    config: Arc<PeerConfig>,
    inbox: mpsc::Receiver<Message>,
    state: LinkState,
    health: LinkHealth,
    standing: BTreeMap<ConnectionId, Standing>,
    dials: BTreeMap<AttemptId, JoinHandle<()>>,
    resolving: Option<JoinHandle<()>>,
    exchange: Option<JoinHandle<()>>,
    figures: Figures,
    next_tick: Instant,
    /// When what is left is closed, once the gateway ends.
    deadline: Option<Instant>,
    certified: bool,
}

/// Whether the driver goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    End,
}

fn now() -> Instant {
    // Through tokio, so that tests can pause it.
    tokio::time::Instant::now().into_std()
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        link: Arc<PeerLink>,
        config: Arc<PeerConfig>,
        inbox: mpsc::Receiver<Message>,
    ) -> Self {
        let own = &shared.config;
        let state = LinkState::new(own.cluster.clone(), link.cluster.clone(), own.workers.len(), rand::random::<u64>());
        Self {
            shared,
            link,
            config,
            inbox,
            state,
            health: LinkHealth::new(),
            standing: BTreeMap::new(),
            dials: BTreeMap::new(),
            resolving: None,
            exchange: None,
            figures: Figures::default(),
            next_tick: now(),
            deadline: None,
            certified: false,
        }
    }

    /// Runs until the Link is removed or the gateway has ended.
    pub(super) async fn run(mut self) {
        let mut certificate = self.shared.config.certificate.changes();
        certificate.mark_changed();
        self.exchange = self.shared.config.exchange_socket.clone().map(|socket| self.begin_exchange(socket));
        loop {
            let deadline = tokio::time::Instant::from_std(self.next_deadline());
            let next = tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => Next::End,
                },
                changed = certificate.changed() => {
                    if changed.is_ok() {
                        self.certificate_changed();
                    }
                    Next::Go
                }
                () = tokio::time::sleep_until(deadline) => Next::Go,
            };
            if next == Next::End || self.step() == Next::End {
                break;
            }
        }
        self.end();
    }

    fn next_deadline(&self) -> Instant {
        let probes = self.standing.values().filter_map(|standing| standing.health.as_ref()).map(Health::deadline);
        let all = [self.state.deadline(), self.health.deadline(), self.deadline].into_iter().flatten();
        all.chain(probes).chain([self.next_tick]).min().unwrap_or(self.next_tick)
    }

    fn take(&mut self, message: Message) -> Next {
        let now = now();
        match message {
            Message::Configure(config) => self.configure(config, now),
            Message::Remove => {
                self.close_all(CloseCode::LinkRemoved);
                return Next::End;
            }
            Message::Announce => self.state.handle(Event::Announce, now),
            Message::Shutdown { deadline } => {
                self.deadline = Some(now + deadline);
                self.exchange.take().inspect(JoinHandle::abort);
                self.state.handle(Event::Shutdown, now);
            }
            Message::Resolved(result) => self.state.handle(Event::Resolved(result), now),
            Message::Dialled { attempt, connection, worker } => {
                self.dials.remove(&attempt);
                let id = self.shared.next_connection();
                self.stand(id, connection, worker, Role::Server);
                self.state.handle(Event::Dialled { attempt, connection: id }, now);
            }
            Message::DialFailed { attempt, trouble } => {
                self.dials.remove(&attempt);
                self.state.handle(Event::DialFailed { attempt, trouble }, now);
            }
            Message::Accepted { connection, worker } => {
                let id = self.shared.next_connection();
                self.stand(id, connection, worker, Role::Client);
                self.state.handle(Event::Accepted { connection: id }, now);
            }
            Message::Hello { id, hello } => self.hello(id, &hello, now),
            Message::GoAway { id, leave } => self.state.handle(Event::GoAway { connection: id, leave }, now),
            Message::Closed { id, error } => self.closed(id, &error, now),
            Message::Probed { id, probe, answered } => self.probed(id, probe, answered, now),
        }
        Next::Go
    }

    /// Does everything that is due.
    fn step(&mut self) -> Next {
        let now = now();
        self.state.advance(now);
        while let Some(action) = self.state.next_action() {
            self.act(action);
        }
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.tick();
        }
        self.send_probes(now);
        self.publish(now);
        match self.deadline {
            Some(_) if self.state.is_empty() => Next::End,
            Some(deadline) if now >= deadline => {
                self.close_all(CloseCode::Shutdown);
                Next::End
            }
            _ => Next::Go,
        }
    }

    fn configure(&mut self, config: Arc<PeerConfig>, now: Instant) {
        let old = std::mem::replace(&mut self.config, config);
        let peer = &self.config.peer;
        if !old.trust.same_roots(&self.config.trust) {
            for standing in self.standing.values_mut() {
                let verified = standing.verify(&self.config.trust);
                if let Err(failure) = verified {
                    standing.trouble = Some(trouble(failure.word(), failure.of_peer()));
                    trouble::close(&standing.connection.quinn, CloseCode::TrustChanged);
                }
            }
        }
        for standing in self.standing.values() {
            let info =
                PeerInfo { default_policy: peer.default_policy, ..PeerInfo::clone(&standing.connection.info.load()) };
            standing.connection.info.store(Arc::new(info));
        }
        if old.peer.addresses != peer.addresses || !old.trust.same_roots(&self.config.trust) {
            // Whatever is being dialled is dialled with the old trust.
            let dialable = self.dialable();
            self.state.handle(Event::Configured { dialable }, now);
        }
    }

    fn certificate_changed(&mut self) {
        let now = now();
        let certified = self.shared.config.certificate.not_after().is_some();
        if !certified {
            return;
        }
        if std::mem::replace(&mut self.certified, true) {
            self.state.handle(Event::Rotated, now);
        } else {
            let dialable = self.dialable();
            self.state.handle(Event::Configured { dialable }, now);
        }
    }

    /// There is somebody to dial and something to show to them.
    fn dialable(&self) -> bool {
        self.certified && !self.config.peer.addresses.is_empty()
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Resolve => self.resolve(),
            Action::Dial { attempt, worker, address } => self.dial(attempt, worker, address),
            Action::Abandon { attempt } => {
                self.dials.remove(&attempt).inspect(JoinHandle::abort);
            }
            Action::GoAway { connection, leave } => self.send_goaway(connection, leave),
            Action::Finish { connection } => self.finish(connection),
            Action::Close { connection, why } => {
                if let Some(standing) = self.standing.get(&connection) {
                    trouble::close(&standing.connection.quinn, why.into());
                }
            }
        }
    }

    fn resolve(&mut self) {
        self.resolving.take().inspect(JoinHandle::abort);
        let addresses = self.config.peer.addresses.clone();
        let inbox = self.link.inbox.clone();
        self.resolving = Some(task::spawn("link_resolve", async move {
            let result = resolve::resolve(&addresses).await;
            drop(inbox.send(Message::Resolved(result)).await);
        }));
    }

    fn dial(&mut self, attempt: AttemptId, worker: usize, address: SocketAddr) {
        let (shared, trust) = (Arc::clone(&self.shared), Arc::clone(&self.config.trust));
        let inbox = self.link.inbox.clone();
        tracing::debug!(peer = %self.link.cluster, %address, worker, "dialling");
        let dial = async move {
            let message = match dial_once(&shared, trust, address).await {
                Ok(connection) => Message::Dialled { attempt, connection, worker },
                Err(trouble) => Message::DialFailed { attempt, trouble },
            };
            drop(inbox.send(message).await);
        };
        self.dials.insert(attempt, self.shared.spawn_on(worker, "link_dial", dial));
    }

    /// Takes a fresh connection in and serves it. One that is not believed (any more) is closed, and comes back as
    /// [`Message::Closed`] like any other.
    fn stand(&mut self, id: ConnectionId, quinn: quinn::Connection, worker: usize, role: Role) {
        let chain = accept::certificates(&quinn);
        let peer = &self.config.peer;
        let info = Arc::new(PeerInfo {
            cluster: peer.cluster.clone(),
            trust_domain: peer.trust_domain.clone(),
            gateway: self.config.trust.gateway().clone(),
            remote: quinn.remote_address(),
            default_policy: peer.default_policy,
        });
        let connection = Arc::new(Connection::new(id, quinn, worker, info));
        let (goaways, sending) = mpsc::channel(GOAWAYS);
        let mut standing = Standing {
            connection: Arc::clone(&connection),
            role,
            chain,
            expires: SystemTime::UNIX_EPOCH,
            goaways,
            health: None,
            trouble: None,
            window: 0,
        };
        // The handshake has verified it, but the bundle may have changed since.
        match standing.verify(&self.config.trust) {
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

    fn own_hello(&self, worker: usize) -> Hello {
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
        }
    }

    fn hello(&mut self, id: ConnectionId, hello: &Hello, now: Instant) {
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
        let remote = standing.connection.quinn.remote_address();
        tracing::info!(peer = %self.link.cluster, %remote, connection = id.0, version = hello.software_version, "link connected");
        let facts = HelloFacts {
            gateway_id: hello.gateway_id.clone(),
            boot_id: hello.boot_id.clone(),
            worker: hello.worker,
            workers: hello.workers,
        };
        self.state.handle(Event::Hello { connection: id, facts }, now);
    }

    fn closed(&mut self, id: ConnectionId, error: &ConnectionError, now: Instant) {
        let Some(standing) = self.standing.remove(&id) else { return };
        self.figures.leave(&standing.connection.quinn);
        let remote = standing.connection.quinn.remote_address();
        let trouble = standing.trouble.or_else(|| trouble::of_connection(error, remote));
        let reason = trouble.as_ref().map_or("Closed", |trouble| trouble.reason);
        if standing.health.is_some() {
            tracing::info!(peer = %self.link.cluster, %remote, connection = id.0, reason, %error, "link connection ended");
        } else {
            tracing::debug!(peer = %self.link.cluster, %remote, connection = id.0, reason, %error, "link connection failed");
        }
        self.state.handle(Event::Closed { connection: id, trouble }, now);
    }

    fn send_goaway(&self, id: ConnectionId, leave: Leave) {
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
    fn finish(&self, id: ConnectionId) {
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
                () = finished => trouble::close(&connection.quinn, CloseCode::Drained),
                _ = connection.quinn.closed() => {}
            }
        }));
    }

    fn close_all(&self, code: CloseCode) {
        for standing in self.standing.values() {
            trouble::close(&standing.connection.quinn, code);
        }
    }

    fn begin_exchange(&self, socket: PathBuf) -> JoinHandle<()> {
        let links = Links::from_shared(Arc::clone(&self.shared));
        let (peer, connected) = (self.link.cluster.clone(), self.link.connected.subscribe());
        task::spawn("link_exchange", async move { exchange::subscribe(links, peer, &socket, connected).await })
    }

    /// Certificates end at wall-clock times, so they are looked at and not waited for.
    fn tick(&mut self) {
        let wall = SystemTime::now();
        for standing in self.standing.values_mut() {
            if wall >= standing.expires && standing.trouble.is_none() {
                let message = "a certificate of the connection has expired and was not replaced in time";
                standing.trouble = Some(trouble(CloseCode::CertificateExpired.word(), message));
                trouble::close(&standing.connection.quinn, CloseCode::CertificateExpired);
            }
        }
        if let Some(failure) = self.config.trust.take_refusal() {
            let message = format!("a gateway that claims to be this peer was refused: {}", failure.of_peer());
            self.state.handle(Event::Refused(trouble(failure.word(), message)), now());
        }
        let connections: Vec<_> = self.standing.values().map(|standing| &standing.connection.quinn).collect();
        let (sent, lost) = self.figures.sample(&connections);
        self.shared.config.observer.packets(&self.link.cluster, sent, lost);
    }

    fn end(&mut self) {
        for (_, dial) in std::mem::take(&mut self.dials) {
            dial.abort();
        }
        self.resolving.take().inspect(JoinHandle::abort);
        self.exchange.take().inspect(JoinHandle::abort);
        self.link.connections.store(Arc::default());
        self.link.healthy.store(false, Ordering::Relaxed);
        self.link.connected.send_replace(false);
        tracing::debug!(peer = %self.link.cluster, "link ended");
    }
}

impl Standing {
    /// The end of the peer's certificate, if the bundle vouches for it.
    fn verify(&self, trust: &PeerTrust) -> Result<SystemTime, tls::TrustFailure> {
        let (leaf, above) = self.chain.split_first().ok_or(tls::TrustFailure::InvalidCertificate)?;
        trust.verify(self.role, leaf, above, UnixTime::now()).map(|svid| svid.not_after)
    }
}

async fn dial_once(shared: &Shared, trust: Arc<PeerTrust>, address: SocketAddr) -> Result<quinn::Connection, Trouble> {
    let own = &shared.config;
    let crypto = tls::client_config(&shared.provider, trust, Arc::clone(&own.certificate))
        .map_err(|error| trouble("LocalError", format!("no TLS configuration: {error}")))?;
    let connecting = endpoint::dial(address, &own.limits, &own.keys, crypto)
        .map_err(|error| trouble("LocalError", format!("cannot dial {address}: {error}")))?;
    connecting.await.map_err(|error| {
        let unreachable = || Trouble::unreachable(address);
        match error {
            ConnectionError::TimedOut => unreachable(),
            error => trouble::of_connection(&error, address).unwrap_or_else(unreachable),
        }
    })
}
