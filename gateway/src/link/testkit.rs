//! Two gateways' links in one process, with certificates of their own: for the tests of every stage. Over loopback; or over
//! a [`network`] in memory, where time can be paused and what is measured does not depend on the machine.
//!
//! ```ignore
//! let (east, mut west) = testkit::pair().await;
//! let (mut send, mut recv) = east.links.open(0, &west.cluster()).await?;
//! let incoming = west.incoming.recv().await?;
//! ```

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use linkspan_proto::configuration::{DefaultPolicy, LinkReport, Peer, Transport};
use linkspan_proto::identity::{SpiffeId, TrustDomain};
use linkspan_proto::names::ClusterName;
use linkspan_runtime::drain::{Drain, Signal};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::tls::{self, OwnCertificate};
use super::{Incoming, Ingress, Keys, Limits, LinkConfig, Links, Observer};
use crate::outcome::{Direction, Loss};
use network::{Host, Network};

pub(crate) mod network;

/// How long a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// The link's port in a network in memory.
pub(crate) const PORT: u16 = 4143;

/// A certificate authority of one trust domain.
pub(crate) struct Authority {
    pub(crate) trust_domain: TrustDomain,
    issuer: CertifiedIssuer<'static, KeyPair>,
    algorithm: &'static SignatureAlgorithm,
}

impl Authority {
    pub(crate) fn new(trust_domain: &str) -> Self {
        Self::with(trust_domain, |_| {})
    }

    /// One whose certificates and signatures have the same size each time: those of ECDSA vary by some bytes, and with them
    /// the packets of a handshake.
    pub(crate) fn of_one_size(trust_domain: &str) -> Self {
        Self::of(trust_domain, &PKCS_ED25519, |_| {})
    }

    /// With changes to the root.
    pub(crate) fn with(trust_domain: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        Self::of(trust_domain, &PKCS_ECDSA_P256_SHA256, change)
    }

    fn of(
        trust_domain: &str,
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let mut root = CertificateParams::default();
        root.distinguished_name.push(DnType::CommonName, format!("{trust_domain} root"));
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        change(&mut root);
        let key = KeyPair::generate_for(algorithm).unwrap();
        let issuer = CertifiedIssuer::self_signed(root, key).unwrap();
        Self { trust_domain: TrustDomain::parse(trust_domain).unwrap(), issuer, algorithm }
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
        (Self { trust_domain: self.trust_domain.clone(), issuer, algorithm: self.algorithm }, der)
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
        // One that follows from the key is a byte shorter now and then.
        params.serial_number = Some(SerialNumber::from(vec![0x42; 16]));
        change(&mut params);
        let key = KeyPair::generate_for(self.algorithm).unwrap();
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
    pub(crate) lost: Mutex<Vec<(Direction, Loss, u64)>>,
}

impl Observer for Counter {
    fn probe(&self, _peer: &ClusterName, answered: bool) {
        let counter = if answered { &self.answered } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn packets(&self, _peer: &ClusterName, _sent: u64, _lost: u64) {}

    fn lost(&self, _peer: &ClusterName, direction: Direction, why: Loss, count: u64) {
        if count > 0 {
            self.lost.lock().unwrap().push((direction, why, count));
        }
    }
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
    pub(crate) limits: Limits,
    /// Where it stands in a network in memory, with one worker; `None`: loopback.
    pub(crate) host: Option<Host>,
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
            limits: Limits::default(),
            host: None,
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
        let config = LinkConfig {
            cluster: cluster.clone(),
            trust_domain: authority.trust_domain.clone(),
            boot_id: setup.boot_id,
            keys: setup.keys,
            certificate: Arc::clone(&certificate),
            workers: vec![Handle::current(); setup.workers],
            controller: setup
                .exchange_socket
                .map(|exchange| crate::discovery::Controller::Sockets { configuration: exchange.clone(), exchange }),
            limits: setup.limits,
            shortage: linkspan_runtime::memory::Shortage::new(),
            observer: Arc::clone(&counter) as Arc<dyn Observer>,
            signal: Signal::clone(&signal),
        };
        let (sender, incoming) = mpsc::channel(1024);
        let ingress = setup.ingress.unwrap_or_else(|| Arc::new(Forward(sender)));
        let (links, address) = match setup.host {
            Some(host) => {
                let links = Links::over(Arc::new(host.clone()), config);
                links.serve_on(vec![host.listen(PORT)], Ok, ingress).unwrap();
                links.serve_tcp_on(vec![host.listen_tcp(PORT)], Ok).unwrap();
                (links, host.address(PORT))
            }
            None => {
                let links = Links::new(config);
                let sockets = super::bind(setup.listen, setup.workers, true).unwrap();
                let address = sockets.address().unwrap();
                links.serve(sockets, ingress).unwrap();
                (links, address)
            }
        };
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
            transport: Default::default(),
            congestion: Default::default(),
        }
    }

    /// The same, dialled over this.
    pub(crate) fn as_peer_over(&self, transport: Transport) -> Peer {
        Peer { transport, ..self.as_peer() }
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

/// A side in a network in memory.
pub(crate) fn side_at(cluster: &str, host: &Host) -> Side {
    let authority = Arc::new(Authority::new(&format!("{cluster}.linkspan.internal")));
    Side::start_with(authority, cluster, Setup { host: Some(host.clone()), ..Setup::default() })
}

/// East and west in a network in memory: east dials, both are alive.
pub(crate) async fn pair_in_memory() -> (Side, Side, Wire) {
    pair_with(Limits::default()).await
}

/// The same with other limits.
pub(crate) async fn pair_with(limits: Limits) -> (Side, Side, Wire) {
    let network = Network::default();
    let wire = Wire { east: network.host(1), west: network.host(2), network };
    let side = |cluster: &str, host: &Host| {
        let authority = Arc::new(Authority::new(&format!("{cluster}.linkspan.internal")));
        let setup = Setup { host: Some(host.clone()), limits: limits.clone(), ..Setup::default() };
        Side::start_with(authority, cluster, setup)
    };
    let (east, west) = (side("east", &wire.east), side("west", &wire.west));
    assert_eq!(west.links.configure(&[east.as_hidden_peer()]).await, []);
    // TCP would help where these tests look at what QUIC does.
    assert_eq!(east.links.configure(&[west.as_peer_over(Transport::Quic)]).await, []);
    east.until_alive(&west).await;
    west.until_alive(&east).await;
    (east, west, wire)
}

/// What lies between east and west.
pub(crate) struct Wire {
    pub(crate) network: Network,
    pub(crate) east: Host,
    pub(crate) west: Host,
}

impl Wire {
    /// Loses everything from east to west, and everything back.
    pub(crate) fn cut(&self, towards: bool, back: bool) {
        self.network.cut(&self.east, &self.west, towards);
        self.network.cut(&self.west, &self.east, back);
    }
}

/// Links two sides, each with the address of the other.
pub(crate) async fn link(one: &Side, other: &Side) {
    assert_eq!(one.links.configure(&[other.as_peer()]).await, []);
    assert_eq!(other.links.configure(&[one.as_peer()]).await, []);
    one.until_alive(other).await;
    other.until_alive(one).await;
}

/// A path between a dialler and a gateway: UDP through a relay that can change its port like a NAT.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    rebinds: Arc<AtomicU64>,
}

impl Relay {
    pub(crate) async fn to(gateway: SocketAddr) -> Self {
        use tokio::net::UdpSocket;

        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = front.local_addr().unwrap();
        let count = Arc::new(AtomicU64::new(0));
        let relay = Self { address, rebinds: Arc::clone(&count) };
        tokio::spawn(async move {
            // By dialler: the socket towards the gateway and the number of its rebind.
            let mut backs: std::collections::HashMap<SocketAddr, (Arc<UdpSocket>, u64)> = Default::default();
            let mut buffer = vec![0; 65_536];
            loop {
                let Ok((length, dialler)) = front.recv_from(&mut buffer).await else { continue };
                let rebinds = count.load(Ordering::Relaxed);
                let fresh = backs.get(&dialler).is_none_or(|(_, number)| *number != rebinds);
                if fresh {
                    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                    back.connect(gateway).await.unwrap();
                    backs.insert(dialler, (Arc::clone(&back), rebinds));
                    let (front, count) = (Arc::clone(&front), Arc::clone(&count));
                    tokio::spawn(async move {
                        let mut buffer = vec![0; 65_536];
                        while count.load(Ordering::Relaxed) == rebinds {
                            let receiving = tokio::time::timeout(Duration::from_millis(100), back.recv(&mut buffer));
                            if let Ok(Ok(length)) = receiving.await {
                                front.send_to(&buffer[..length], dialler).await.ok();
                            }
                        }
                    });
                }
                backs[&dialler].0.send(&buffer[..length]).await.ok();
            }
        });
        relay
    }

    /// From now on the gateway sees other ports.
    pub(crate) fn rebind(&self) {
        self.rebinds.fetch_add(1, Ordering::Relaxed);
    }
}
