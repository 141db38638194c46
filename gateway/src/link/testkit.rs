//! Two gateways' links in one process, over loopback, with certificates of their own: for the tests of every stage.
//!
//! ```ignore
//! let (east, mut west) = testkit::pair().await;
//! let (mut send, mut recv) = east.links.open(0, &west.cluster()).await?;
//! let incoming = west.incoming.recv().await?;
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use linkspan_proto::configuration::{DefaultPolicy, LinkReport, Peer};
use linkspan_proto::identity::{SpiffeId, TrustDomain};
use linkspan_proto::names::ClusterName;
use linkspan_runtime::drain::{Drain, Signal};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::tls::{self, OwnCertificate};
use super::{Incoming, Ingress, Keys, Limits, LinkConfig, Links, Observer};

/// How long a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// A certificate authority of one trust domain.
pub(crate) struct Authority {
    pub(crate) trust_domain: TrustDomain,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(trust_domain: &str) -> Self {
        Self::with(trust_domain, |_| {})
    }

    /// With changes to the root.
    pub(crate) fn with(trust_domain: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut root = CertificateParams::default();
        root.distinguished_name.push(DnType::CommonName, format!("{trust_domain} root"));
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        change(&mut root);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(root, key).unwrap();
        Self { trust_domain: TrustDomain::parse(trust_domain).unwrap(), issuer }
    }

    pub(crate) fn bundle(&self) -> String {
        self.issuer.pem()
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// An authority below this one; chains through it carry its certificate.
    pub(crate) fn intermediate(&self, change: impl FnOnce(&mut CertificateParams)) -> (Self, CertificateDer<'static>) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "intermediate");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        let issuer = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.issuer).unwrap();
        let der = issuer.der().clone();
        (Self { trust_domain: self.trust_domain.clone(), issuer }, der)
    }

    /// Signs somebody else's key.
    pub(crate) fn sign(&self, csr: &rcgen::CertificateSigningRequestParams) -> CertificateDer<'static> {
        csr.signed_by(&self.issuer).unwrap().der().clone()
    }

    /// A gateway's certificate of this authority's own trust domain.
    pub(crate) fn gateway(&self) -> Leaf {
        self.leaf(SpiffeId::gateway(&self.trust_domain).as_str(), |_| {})
    }

    /// A certificate with this URI, as the controller makes them, with changes.
    pub(crate) fn leaf(&self, uri: &str, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + Duration::from_secs(3600)).into();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let not_after = params.not_after.into();
        Leaf { chain: vec![certificate.der().clone()], key, not_after }
    }
}

/// A certificate and its key.
pub(crate) struct Leaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
    pub(crate) not_after: SystemTime,
}

impl Leaf {
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let key = tls::provider().key_provider.load_private_key(key).unwrap();
        Arc::new(CertifiedKey::new(self.chain.clone(), key))
    }

    pub(crate) fn install(&self, into: &OwnCertificate) {
        into.replace(self.certified(), self.not_after);
    }
}

/// Counts what a test wants to know.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    pub(crate) answered: AtomicU64,
    pub(crate) failed: AtomicU64,
}

impl Observer for Counter {
    fn probe(&self, _peer: &ClusterName, answered: bool) {
        let counter = if answered { &self.answered } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn packets(&self, _peer: &ClusterName, _sent: u64, _lost: u64) {}
}

/// Passes the streams of peers on to the test.
struct Forward(mpsc::Sender<Incoming>);

impl Ingress for Forward {
    fn stream(&self, incoming: Incoming) -> BoxFuture<'static, ()> {
        let sender = self.0.clone();
        Box::pin(async move {
            // A test that has ended takes no streams.
            drop(sender.send(incoming).await);
        })
    }
}

/// What a side is started with.
pub(crate) struct Setup {
    pub(crate) workers: usize,
    pub(crate) keys: Keys,
    pub(crate) listen: SocketAddr,
    pub(crate) boot_id: String,
    pub(crate) exchange_socket: Option<std::path::PathBuf>,
    pub(crate) ingress: Option<Arc<dyn Ingress>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            workers: 1,
            keys: Keys::ephemeral(),
            listen: ([127, 0, 0, 1], 0).into(),
            boot_id: format!("{:016x}", rand::random::<u64>()),
            exchange_socket: None,
            ingress: None,
        }
    }
}

/// The links of one gateway.
pub(crate) struct Side {
    pub(crate) authority: Arc<Authority>,
    pub(crate) links: Links,
    pub(crate) address: SocketAddr,
    pub(crate) incoming: mpsc::Receiver<Incoming>,
    pub(crate) certificate: Arc<OwnCertificate>,
    pub(crate) counter: Arc<Counter>,
    cluster: ClusterName,
    _drain: Drain,
}

impl Side {
    pub(crate) fn start(cluster: &str) -> Self {
        Self::start_with(Arc::new(Authority::new(&format!("{cluster}.linkspan.internal"))), cluster, Setup::default())
    }

    pub(crate) fn start_with(authority: Arc<Authority>, cluster: &str, setup: Setup) -> Self {
        let (drain, signal) = Drain::new();
        let certificate = OwnCertificate::new();
        authority.gateway().install(&certificate);
        let counter = Arc::new(Counter::default());
        let cluster = ClusterName::parse(cluster).unwrap();
        let links = Links::new(LinkConfig {
            cluster: cluster.clone(),
            trust_domain: authority.trust_domain.clone(),
            boot_id: setup.boot_id,
            keys: setup.keys,
            certificate: Arc::clone(&certificate),
            workers: vec![Handle::current(); setup.workers],
            exchange_socket: setup.exchange_socket,
            limits: Limits::default(),
            observer: Arc::clone(&counter) as Arc<dyn Observer>,
            signal: Signal::clone(&signal),
        });
        let sockets = super::bind(setup.listen, setup.workers).unwrap();
        let address = sockets[0].local_addr().unwrap();
        let (sender, incoming) = mpsc::channel(1024);
        let ingress = setup.ingress.unwrap_or_else(|| Arc::new(Forward(sender)));
        links.serve(sockets, ingress).unwrap();
        Self { authority, links, address, incoming, certificate, counter, cluster, _drain: drain }
    }

    pub(crate) fn cluster(&self) -> ClusterName {
        self.cluster.clone()
    }

    /// The Link object that others have for this side.
    pub(crate) fn as_peer(&self) -> Peer {
        Peer {
            cluster: self.cluster(),
            trust_domain: self.authority.trust_domain.clone(),
            trust_bundle: self.authority.bundle(),
            addresses: vec![self.address.to_string()],
            default_policy: DefaultPolicy::Allow,
        }
    }

    /// The same behind NAT.
    pub(crate) fn as_hidden_peer(&self) -> Peer {
        Peer { addresses: Vec::new(), ..self.as_peer() }
    }

    pub(crate) fn report(&self, peer: &Self) -> LinkReport {
        self.links.reports().into_iter().find(|report| report.cluster == peer.cluster).unwrap()
    }

    /// Waits until the report on `peer` is as wished.
    pub(crate) async fn until(&self, peer: &Self, wished: impl Fn(&LinkReport) -> bool) -> LinkReport {
        let waiting = async {
            loop {
                let report = self.report(peer);
                if wished(&report) {
                    return report;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(report) => report,
            Err(_) => panic!("{} waits in vain: {:?}", self.cluster, self.report(peer)),
        }
    }

    pub(crate) async fn until_alive(&self, peer: &Self) {
        self.until(peer, |report| report.alive && self.links.alive(&peer.cluster)).await;
    }
}

/// East and west, linked, both ways alive.
pub(crate) async fn pair() -> (Side, Side) {
    let (east, west) = (Side::start("east"), Side::start("west"));
    link(&east, &west).await;
    (east, west)
}

/// Links two sides, each with the address of the other.
pub(crate) async fn link(one: &Side, other: &Side) {
    assert_eq!(one.links.configure(&[other.as_peer()]).await, []);
    assert_eq!(other.links.configure(&[one.as_peer()]).await, []);
    one.until_alive(other).await;
    other.until_alive(one).await;
}

/// A side on a thread and runtime of its own, which can be killed like a process: without a word to its peers.
pub(crate) struct Killable {
    pub(crate) address: SocketAddr,
    pub(crate) cluster: ClusterName,
    commands: mpsc::UnboundedSender<Vec<Peer>>,
    thread: std::thread::JoinHandle<()>,
}

impl Killable {
    pub(crate) fn start(authority: Arc<Authority>, cluster: &str, setup: Setup) -> Self {
        let (commands, mut inbox) = mpsc::unbounded_channel::<Vec<Peer>>();
        let (started, starting) = std::sync::mpsc::channel();
        let name = cluster.to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let serving = async {
                let side = Side::start_with(authority, &name, setup);
                started.send((side.address, side.cluster())).unwrap();
                while let Some(peers) = inbox.recv().await {
                    assert_eq!(side.links.configure(&peers).await, []);
                }
                side
            };
            let side = runtime.block_on(serving);
            // The tasks go first: what is closed after them, nobody tells to the peers.
            drop(runtime);
            drop(side);
        });
        let (address, cluster) = starting.recv().unwrap();
        Self { address, cluster, commands, thread }
    }

    pub(crate) fn configure(&self, peers: Vec<Peer>) {
        self.commands.send(peers).unwrap();
    }

    pub(crate) fn as_peer(&self, authority: &Authority) -> Peer {
        Peer {
            cluster: self.cluster.clone(),
            trust_domain: authority.trust_domain.clone(),
            trust_bundle: authority.bundle(),
            addresses: vec![self.address.to_string()],
            default_policy: DefaultPolicy::Allow,
        }
    }

    /// Ends it at once; its sockets are closed when this returns.
    pub(crate) fn kill(self) {
        drop(self.commands);
        self.thread.join().unwrap();
    }
}

/// A path between a dialler and a gateway: UDP through a relay that can lose everything, in each direction, and change its
/// port like a NAT.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    state: Arc<RelayState>,
}

#[derive(Default)]
struct RelayState {
    /// Towards the gateway, and back.
    cut: [std::sync::atomic::AtomicBool; 2],
    rebinds: AtomicU64,
}

impl Relay {
    pub(crate) async fn to(gateway: SocketAddr) -> Self {
        use tokio::net::UdpSocket;

        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = front.local_addr().unwrap();
        let state = Arc::new(RelayState::default());
        let relay = Self { address, state: Arc::clone(&state) };
        tokio::spawn(async move {
            // By dialler: the socket towards the gateway and the number of its rebind.
            let mut backs: std::collections::HashMap<SocketAddr, (Arc<UdpSocket>, u64)> = Default::default();
            let mut buffer = vec![0; 65_536];
            loop {
                let Ok((length, dialler)) = front.recv_from(&mut buffer).await else { continue };
                let rebinds = state.rebinds.load(Ordering::Relaxed);
                let fresh = backs.get(&dialler).is_none_or(|(_, number)| *number != rebinds);
                if fresh {
                    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                    back.connect(gateway).await.unwrap();
                    backs.insert(dialler, (Arc::clone(&back), rebinds));
                    let (front, state) = (Arc::clone(&front), Arc::clone(&state));
                    tokio::spawn(async move {
                        let mut buffer = vec![0; 65_536];
                        while state.rebinds.load(Ordering::Relaxed) == rebinds {
                            let receiving = tokio::time::timeout(Duration::from_millis(100), back.recv(&mut buffer));
                            if let Ok(Ok(length)) = receiving.await
                                && !state.cut[1].load(Ordering::Relaxed)
                            {
                                front.send_to(&buffer[..length], dialler).await.ok();
                            }
                        }
                    });
                }
                if !state.cut[0].load(Ordering::Relaxed) {
                    backs[&dialler].0.send(&buffer[..length]).await.ok();
                }
            }
        });
        relay
    }

    /// Loses everything towards the gateway, and everything back.
    pub(crate) fn cut(&self, towards: bool, back: bool) {
        self.state.cut[0].store(towards, Ordering::Relaxed);
        self.state.cut[1].store(back, Ordering::Relaxed);
    }

    /// From now on the gateway sees other ports.
    pub(crate) fn rebind(&self) {
        self.state.rebinds.fetch_add(1, Ordering::Relaxed);
    }
}
