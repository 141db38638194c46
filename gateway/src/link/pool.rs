//! The links to all peers, as the data path sees them: snapshots, no lock.
//!
//! ```text
//! Links -> peers (ArcSwap map) -> PeerLink -> usable connections (ArcSwap list)
//!             replaced by configure()            replaced by the driver of that peer
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use linkspan_proto::configuration::{LinkReport, Peer, Rejection, ResourceKey, ResourceKind};
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::names::ClusterName;
use linkspan_runtime::drain::Signal;
use linkspan_runtime::memory::Shortage;
use linkspan_runtime::task;
use quinn::AsyncUdpSocket;
use quinn::crypto::rustls::QuicServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::connection::{Connection, ConnectionId};
use super::driver::{Driver, Message, PeerConfig};
use super::endpoint::{Listener, TcpServer};
use super::keys::Keys;
use super::socket::{self, Machine, Network, Steering};
use super::tcp::{self, Door, Doorway, Strangers};
use super::tls::{self, OwnCertificate, PeerTrust, TrustStore};
use super::{Ingress, Limits, Observer, Sockets, accept};
use crate::discovery::Controller;

/// Messages that wait for the driver of a link. Its tasks wait when it is full; it never is for long, since the driver
/// does nothing but take them.
const INBOX: usize = 256;

/// After an announcement peers have two round trips to act on it, with these bounds for one.
const ANNOUNCED: Duration = Duration::from_millis(25);

const ANNOUNCED_MOST: Duration = Duration::from_millis(500);

/// How long a driver may take beyond the drain's deadline to close what is left.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What all links share.
pub struct LinkConfig {
    /// Our cluster's name.
    pub cluster: ClusterName,
    /// Our trust domain: no peer may have the same.
    pub trust_domain: TrustDomain,
    /// Unique for each start of the process.
    pub boot_id: String,
    /// Secrets of the transport.
    pub keys: Keys,
    /// What we show to peers.
    pub certificate: Arc<OwnCertificate>,
    /// The runtimes on which connections live. At least one.
    pub workers: Vec<Handle>,
    /// The controller's end of the catalogue exchange; `None`: no exchange.
    pub controller: Option<Controller>,
    /// Limits of the transport.
    pub limits: Limits,
    /// Whether there is memory for new streams.
    pub shortage: Shortage,
    /// Who counts probes and losses.
    pub observer: Arc<dyn Observer>,
    /// Reports the end of a listening socket.
    pub signal: Signal,
}

/// The links to all peers. Cheap to clone; shared by all workers.
#[derive(Clone)]
pub struct Links(pub(super) Arc<Shared>);

/// What the drivers and tasks of all links share.
pub(super) struct Shared {
    pub(super) config: LinkConfig,
    pub(super) network: Arc<dyn Network>,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) trust: Arc<TrustStore>,
    pub(super) ingress: OnceLock<Arc<dyn Ingress>>,
    /// Handshakes of diallers that are not done yet, over all workers.
    pub(super) handshakes: AtomicUsize,
    /// Whoever is at the door over TCP.
    pub(super) strangers: Strangers,
    pub(super) ending: AtomicBool,
    /// Counts changes of any link's report.
    pub(super) changed: watch::Sender<u64>,
    peers: ArcSwap<BTreeMap<ClusterName, Arc<PeerLink>>>,
    /// Held while the set of peers is being changed.
    configuring: tokio::sync::Mutex<()>,
    connections: AtomicU64,
    /// The runtime of the drivers: not a worker's, so that probes are sent on time while workers are busy.
    control: Handle,
}

/// What the data path needs to know of one peer.
pub(super) struct PeerLink {
    pub(super) cluster: ClusterName,
    /// Connections that take new streams. Empty: not connected.
    pub(super) connections: ArcSwap<Vec<Arc<Connection>>>,
    /// The verdict of the probes; kept over a loss of all connections until it is proved wrong.
    pub(super) healthy: AtomicBool,
    pub(super) report: ArcSwap<LinkReport>,
    /// Whether there are usable connections, for those who wait for them.
    pub(super) connected: watch::Sender<bool>,
    /// Streams of the peer that are being served.
    pub(super) streams: AtomicUsize,
    /// Those of them whose header did not come with their first bytes.
    pub(super) unheaded: AtomicUsize,
    /// Catalogue pipes of the peer that are being served.
    pub(super) pipes: AtomicUsize,
    pub(super) inbox: mpsc::Sender<Message>,
    /// What is in force.
    config: ArcSwap<PeerConfig>,
    driver: Mutex<Option<JoinHandle<()>>>,
    /// Spreads streams over connections of equal rank.
    next: AtomicUsize,
}

impl Links {
    /// No links yet. Must be called on the runtime on which the drivers shall run.
    #[must_use]
    pub fn new(config: LinkConfig) -> Self {
        Self::over(Arc::new(Machine), config)
    }

    /// The same over any network.
    pub(super) fn over(network: Arc<dyn Network>, config: LinkConfig) -> Self {
        Self(Arc::new(Shared {
            config,
            network,
            provider: tls::provider(),
            trust: Arc::default(),
            ingress: OnceLock::new(),
            handshakes: AtomicUsize::new(0),
            strangers: Strangers::default(),
            ending: AtomicBool::new(false),
            changed: watch::Sender::new(0),
            peers: ArcSwap::default(),
            configuring: tokio::sync::Mutex::new(()),
            connections: AtomicU64::new(0),
            control: Handle::current(),
        }))
    }

    /// Starts listening, with what [`bind`](super::bind) gave; streams of peers go to `ingress`, on connections of either
    /// direction. Once, before the first [`Self::configure`].
    ///
    /// # Errors
    /// When a socket cannot be registered or the TLS configuration is impossible.
    pub fn serve(&self, sockets: Sockets, ingress: Arc<dyn Ingress>) -> io::Result<()> {
        self.serve_on(sockets.udp, socket::register, ingress)?;
        self.serve_tcp_on(sockets.tcp, tcp::register)
    }

    /// The same over any network: `register` gives each socket to its worker's runtime.
    pub(super) fn serve_on<S>(
        &self,
        sockets: Vec<S>,
        register: impl Fn(S) -> io::Result<Arc<dyn AsyncUdpSocket>>,
        ingress: Arc<dyn Ingress>,
    ) -> io::Result<()> {
        let shared = &self.0;
        if shared.ingress.set(ingress).is_err() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the links are being served already"));
        }
        let crypto = self.server_crypto()?;
        let steering = Steering::new(sockets.len());
        for ((worker, socket), runtime) in sockets.into_iter().enumerate().zip(&shared.config.workers) {
            let _entered = runtime.enter();
            let socket = register(socket)?;
            let (limits, keys, crypto) = (&shared.config.limits, &shared.config.keys, Arc::clone(&crypto));
            let seed = shared.network.seed();
            let listener = Listener::start(socket, worker, Arc::clone(&steering), limits, keys, crypto, seed)?;
            let listening = accept::listen(Arc::clone(shared), listener, worker);
            // The handle is not needed: the listener lives as long as the process, and its end is reported.
            drop(task::vital("link_listener", &shared.config.signal, listening));
        }
        Ok(())
    }

    /// The same over TCP.
    pub(super) fn serve_tcp_on<S>(
        &self,
        sockets: Vec<S>,
        register: impl Fn(S) -> io::Result<Box<dyn Doorway>>,
    ) -> io::Result<()> {
        let shared = &self.0;
        let (limits, keys) = (shared.config.limits.clone(), shared.config.keys.clone());
        let server = TcpServer { limits, keys, crypto: self.server_crypto()? };
        let door = Arc::new(Door { shared: Arc::clone(shared), server, warnings: accept::Budget::new() });
        for ((worker, socket), runtime) in sockets.into_iter().enumerate().zip(&shared.config.workers) {
            let _entered = runtime.enter();
            let doorway = register(socket)?;
            let listening = tcp::listen(Arc::clone(&door), doorway, worker);
            drop(task::vital("link_tcp_listener", &shared.config.signal, listening));
        }
        Ok(())
    }

    fn server_crypto(&self) -> io::Result<Arc<QuicServerConfig>> {
        let shared = &self.0;
        let certificate = Arc::clone(&shared.config.certificate);
        let (clock, trust) = (shared.network.clock(), Arc::clone(&shared.trust));
        let crypto = tls::server_config(&shared.provider, clock, trust, certificate);
        Ok(Arc::new(crypto.map_err(io::Error::other)?))
    }

    /// Brings the links in line with `peers`: new ones are opened, those that are gone are closed, changed ones adapt. A
    /// peer whose resource cannot be used is reported; if it was in use before, its last good form stays.
    pub async fn configure(&self, peers: &[Peer]) -> Vec<Rejection> {
        let shared = &self.0;
        let _configuring = shared.configuring.lock().await;
        let present = shared.peers.load_full();
        let mut rejections = Vec::new();
        let mut wanted: BTreeMap<ClusterName, Arc<PeerConfig>> = BTreeMap::new();
        let mut domains: BTreeMap<TrustDomain, Arc<PeerTrust>> = BTreeMap::new();
        for peer in peers {
            let old = present.get(&peer.cluster).map(|link| link.config.load_full());
            let config = match self.check(peer, old.as_deref(), &domains) {
                Ok(config) => Some(Arc::new(config)),
                Err((reason, message)) => {
                    let resource = ResourceKey { kind: ResourceKind::Peer, name: peer.cluster.to_string() };
                    rejections.push(Rejection { resource, reason: reason.to_owned(), message, ports: Vec::new() });
                    old.filter(|old| !domains.contains_key(&old.peer.trust_domain))
                }
            };
            if let Some(config) = config {
                domains.insert(config.peer.trust_domain.clone(), Arc::clone(&config.trust));
                wanted.insert(peer.cluster.clone(), config);
            }
        }
        shared.trust.replace(domains);
        self.replace(&present, wanted).await;
        rejections
    }

    /// Asks all peers to connect to another gateway of this cluster, and takes no new connections: this one will end in some
    /// seconds. What stands is used on by both sides, until the peer has another or [`Self::announce`].
    pub async fn retire(&self) {
        let _configuring = self.0.configuring.lock().await;
        for link in self.0.peers.load_full().values() {
            // An error says that the driver has ended already.
            drop(link.inbox.send(Message::Retire).await);
        }
    }

    /// Tells all peers that this gateway will end, so that they open no new streams, and takes no new connections. Streams
    /// go on, and new ones are still served and may still be opened. Resolves when the peers should have heard.
    pub async fn announce(&self) {
        let shared = &self.0;
        shared.ending.store(true, Ordering::Release);
        let _configuring = shared.configuring.lock().await;
        let peers = shared.peers.load_full();
        let mut longest = Duration::ZERO;
        for link in peers.values().filter(|link| !link.connections.load().is_empty()) {
            longest = longest.max(self.rtt(&link.cluster).unwrap_or_default()).max(ANNOUNCED);
            // An error says that the driver has ended already.
            drop(link.inbox.send(Message::Announce).await);
        }
        tokio::time::sleep((longest * 2).min(ANNOUNCED_MOST)).await;
    }

    /// Leaves all peers: waits for the streams until `deadline`, closes the rest. Call [`Self::announce`] before.
    pub async fn drain(&self, deadline: Duration) {
        let shared = &self.0;
        shared.ending.store(true, Ordering::Release);
        let _configuring = shared.configuring.lock().await;
        let peers = shared.peers.load_full();
        let drains = peers.values().map(|link| async {
            if link.inbox.send(Message::Shutdown { deadline }).await.is_ok() {
                link.ended(deadline + CLOSE_TIMEOUT).await;
            }
        });
        futures::future::join_all(drains).await;
    }

    /// Whether new streams to this peer may be expected to work: a connection stands and the probes say so.
    #[must_use]
    pub fn alive(&self, peer: &ClusterName) -> bool {
        self.peer(peer).is_some_and(|link| link.healthy.load(Ordering::Relaxed) && !link.connections.load().is_empty())
    }

    /// The smallest smoothed round-trip time of the peer's connections.
    #[must_use]
    pub fn rtt(&self, peer: &ClusterName) -> Option<Duration> {
        self.peer(peer)?.connections.load().iter().map(|connection| connection.quinn.rtt()).min()
    }

    /// How each link stands, by name of the peer.
    #[must_use]
    pub fn reports(&self) -> Vec<LinkReport> {
        self.0.peers.load().values().map(|link| LinkReport::clone(&link.report.load())).collect()
    }

    /// Counts the changes of reports that an operator would notice; figures that always move do not count.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// How much is still being served over the links: streams, and connections with open halves.
    #[cfg(test)]
    pub(super) fn open_streams(&self) -> usize {
        let busy = |link: &PeerLink| link.connections.load().iter().filter(|one| !one.streams.is_idle()).count();
        self.0.peers.load().values().map(|link| busy(link) + link.streams.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn from_shared(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    fn peer(&self, peer: &ClusterName) -> Option<Arc<PeerLink>> {
        self.0.peer(peer)
    }

    /// What a Peer resource amounts to, or the reason and the sentence for its rejection.
    fn check(
        &self,
        peer: &Peer,
        old: Option<&PeerConfig>,
        taken: &BTreeMap<TrustDomain, Arc<PeerTrust>>,
    ) -> Result<PeerConfig, (&'static str, String)> {
        let own = &self.0.config;
        if peer.cluster == own.cluster {
            return Err(("OwnClusterName", "this Link has the name of this very cluster; remove it".to_owned()));
        }
        if peer.trust_domain == own.trust_domain {
            let message = "the peer has the trust domain of this cluster; each cluster needs one of its own";
            return Err(("OwnTrustDomain", message.to_owned()));
        }
        if let Some(other) = taken.get(&peer.trust_domain) {
            let message = format!(
                "Link {} has the same trust domain; each cluster needs one of its own, so give one peer another",
                other.cluster()
            );
            return Err(("TrustDomainConflict", message));
        }
        if let Some(old) = old.filter(|old| old.peer.trust_domain == peer.trust_domain)
            && old.peer.trust_bundle == peer.trust_bundle
        {
            return Ok(PeerConfig { peer: peer.clone(), trust: Arc::clone(&old.trust) });
        }
        PeerTrust::new(peer.cluster.clone(), peer.trust_domain.clone(), &peer.trust_bundle, &self.0.provider)
            .map(|trust| PeerConfig { peer: peer.clone(), trust: Arc::new(trust) })
            .map_err(|error| ("InvalidTrustBundle", error.to_string()))
    }

    async fn replace(
        &self,
        present: &BTreeMap<ClusterName, Arc<PeerLink>>,
        wanted: BTreeMap<ClusterName, Arc<PeerConfig>>,
    ) {
        let shared = &self.0;
        for (cluster, link) in present {
            if !wanted.contains_key(cluster) {
                // An error says that the driver has ended already.
                drop(link.inbox.send(Message::Remove).await);
            }
        }
        let mut peers = BTreeMap::new();
        for (cluster, config) in wanted {
            let link = match present.get(&cluster) {
                Some(link) => {
                    if **link.config.load() != *config {
                        link.config.store(Arc::clone(&config));
                        drop(link.inbox.send(Message::Configure(config)).await);
                    }
                    Arc::clone(link)
                }
                None => self.begin(config),
            };
            peers.insert(cluster, link);
        }
        shared.peers.store(Arc::new(peers));
        shared.changed.send_modify(|changes| *changes += 1);
    }

    /// Starts the driver of a new peer.
    fn begin(&self, config: Arc<PeerConfig>) -> Arc<PeerLink> {
        let (sender, inbox) = mpsc::channel(INBOX);
        let link = Arc::new(PeerLink {
            cluster: config.peer.cluster.clone(),
            connections: ArcSwap::default(),
            healthy: AtomicBool::new(false),
            report: ArcSwap::from_pointee(super::driver::first_report(&config.peer)),
            connected: watch::Sender::new(false),
            streams: AtomicUsize::new(0),
            unheaded: AtomicUsize::new(0),
            pipes: AtomicUsize::new(0),
            inbox: sender,
            config: ArcSwap::new(Arc::clone(&config)),
            driver: Mutex::new(None),
            next: AtomicUsize::new(0),
        });
        let driver = Driver::new(Arc::clone(&self.0), Arc::clone(&link), config, inbox);
        let _entered = self.0.control.enter();
        let handle = task::spawn("link_driver", driver.run());
        *link.driver.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        link
    }
}

impl Shared {
    pub(super) fn peer(&self, peer: &ClusterName) -> Option<Arc<PeerLink>> {
        self.peers.load().get(peer).cloned()
    }

    pub(super) fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed))
    }

    /// The wall clock, in whole seconds.
    pub(super) fn wall(&self) -> UnixTime {
        self.network.clock().current_time().unwrap_or_else(UnixTime::now)
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Runs a task on a worker.
    pub(super) fn spawn_on<F>(&self, worker: usize, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let workers = &self.config.workers;
        let _entered = workers[worker % workers.len()].enter();
        task::spawn(name, future)
    }
}

impl PeerLink {
    /// A connection of this worker in turn, else any in turn.
    pub(super) fn pick<'a>(&self, connections: &'a [Arc<Connection>], worker: usize) -> Option<&'a Arc<Connection>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let own = || connections.iter().filter(|connection| connection.worker == worker);
        match (own().count(), connections.len()) {
            (0, 0) => None,
            (0, all) => connections.get(turn % all),
            (some, _) => own().nth(turn % some),
        }
    }

    async fn ended(&self, deadline: Duration) {
        let driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut driver) = driver
            && tokio::time::timeout(deadline, &mut driver).await.is_err()
        {
            tracing::warn!(peer = %self.cluster, "the link did not close in time");
            driver.abort();
        }
    }
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("peers", &self.0.peers.load().keys()).finish_non_exhaustive()
    }
}
