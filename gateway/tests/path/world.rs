//! Gateways of several clusters in one process, real sockets between them, and what a test says to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use linkspan_gateway::context::{Gateway, TUNNEL_IDLE};
use linkspan_gateway::discovery::{Rejections, Snapshot};
use linkspan_gateway::link::tls::{OwnCertificate, provider};
use linkspan_gateway::link::{self, Keys, LinkConfig, Links, Observer};
use linkspan_gateway::listener::{self, Binder, Bindings, Budget, Permits, Place};
use linkspan_gateway::mtls;
use linkspan_gateway::outcome::{Direction, Entry, Outcome, Recorder};
use linkspan_gateway::path::Path;
use linkspan_gateway::remote::Limits;
use linkspan_gateway::route::{Own, RouteTable};
use linkspan_proto::configuration::{
    Capacity, DefaultPolicy, Endpoint, Export, ExportPort, ExportRule, Mirror, MirrorPort, Peer, Resource, Tier,
    Workload,
};
use linkspan_proto::identity::{SpiffeId, TrustDomain};
use linkspan_proto::names::ClusterName;
use linkspan_runtime::drain::Drain;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// How long a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The port number under which services are known on the link.
pub(crate) const PORT: u16 = 7;

/// One gateway of one cluster.
pub(crate) struct Site {
    pub(crate) cluster: ClusterName,
    pub(crate) links: Links,
    pub(crate) address: SocketAddr,
    pub(crate) mtls: SocketAddr,
    pub(crate) seen: Arc<Seen>,
    pub(crate) drain: Drain,
    pub(crate) root: CertifiedIssuer<'static, KeyPair>,
    trust_domain: TrustDomain,
    table: Arc<ArcSwap<RouteTable>>,
    bindings: watch::Sender<Arc<Bindings>>,
    board: Arc<listener::Board>,
    resources: Mutex<BTreeMap<String, Resource>>,
    peers: Mutex<Vec<Peer>>,
}

/// Every end that was recorded.
#[derive(Default)]
pub(crate) struct Seen {
    ends: Mutex<Vec<(Entry, Outcome)>>,
    begun: Mutex<usize>,
}

impl Recorder for Seen {
    fn begin(&self, _entry: &Entry) {
        *self.begun.lock().expect("lock") += 1;
    }

    fn progress(&self, _entry: &Entry, _received: u64, _sent: u64) {}

    fn end(&self, entry: &Entry, outcome: Outcome, _elapsed: Duration) {
        self.ends.lock().expect("lock").push((entry.clone(), outcome));
    }
}

impl Seen {
    /// Waits for the `count`-th end of this direction and gives all of them.
    pub(crate) async fn ends(&self, direction: Direction, count: usize) -> Vec<(Entry, Outcome)> {
        let found = until(|| {
            let ends = self.ends.lock().expect("lock");
            let of_direction: Vec<_> = ends.iter().filter(|(entry, _)| entry.direction == direction).cloned().collect();
            (of_direction.len() >= count).then_some(of_direction)
        });
        found.await
    }

    /// Each begin has its end: call it when nothing is open.
    pub(crate) fn is_balanced(&self) -> bool {
        *self.begun.lock().expect("lock") == self.ends.lock().expect("lock").len()
    }
}

struct Silent;

impl Observer for Silent {
    fn probe(&self, _peer: &ClusterName, _answered: bool) {}

    fn packets(&self, _peer: &ClusterName, _sent: u64, _lost: u64) {}
}

/// Waits for something that real sockets bring about.
pub(crate) async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("in time")
}

/// A test that hangs fails.
pub(crate) async fn patiently<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE * 2, test).await.expect("the test hangs")
}

impl Site {
    pub(crate) fn start(name: &str) -> Self {
        Self::with_places(name, 1000)
    }

    /// A site that serves so many streams of peers at once.
    pub(crate) fn with_places(name: &str, places: usize) -> Self {
        let cluster: ClusterName = name.parse().expect("cluster");
        let trust_domain: TrustDomain = format!("{name}.linkspan.internal").parse().expect("domain");
        let root = authority();
        let own = Own { cluster: cluster.clone(), trust_domain: trust_domain.clone() };
        let (drain, signal) = Drain::new();
        let gateway_id = SpiffeId::gateway(&trust_domain);
        let certificate = certificate(&root, gateway_id.as_str(), &[]);
        let workers = vec![tokio::runtime::Handle::current(); 2];
        let links = Links::new(LinkConfig {
            cluster: cluster.clone(),
            trust_domain: trust_domain.clone(),
            boot_id: format!("{name}-boot"),
            keys: Keys::ephemeral(),
            certificate,
            workers,
            controller: None,
            limits: link::Limits::default(),
            shortage: linkspan_runtime::memory::Shortage::new(),
            observer: Arc::new(Silent),
            signal: signal.clone(),
        });
        let seen = Arc::new(Seen::default());
        let table = Arc::new(ArcSwap::from_pointee(RouteTable::empty(own.clone())));
        let gateway = Arc::new(Gateway {
            own,
            links: links.clone(),
            table: Arc::clone(&table),
            recorder: Arc::clone(&seen) as Arc<dyn Recorder>,
            limits: Limits::new(places),
            tunnel_idle: TUNNEL_IDLE,
            drain: signal.clone(),
        });
        let path = Path::new(gateway);
        let sockets = link::bind(([127, 0, 0, 1], 0).into(), 2, true).expect("bind");
        let address = sockets.address().expect("address");
        links.serve(sockets, Arc::new(path.clone())).expect("serve");

        let (binder, listeners) = Binder::new(2, Budget::default(), Rejections::new());
        let board = binder.board();
        let (bindings, wanted) = watch::channel(Arc::new(Bindings::default()));
        tokio::spawn(binder.run(wanted, signal.clone()));
        let permits = Permits::new(2000);
        for worker in listeners {
            let (path, path_of_datagrams) = (path.clone(), path.clone());
            let take = move |conn| {
                let path = path.clone();
                tokio::spawn(async move { path.egress(conn).await });
            };
            let datagrams = path_of_datagrams.clone();
            let take_datagrams = move |socket| {
                let path = datagrams.clone();
                tokio::spawn(async move { path.egress_datagrams(socket).await });
            };
            tokio::spawn(listener::serve(worker, permits.clone(), signal.clone(), take, take_datagrams));
        }

        let local = self::certificate(&root, gateway_id.as_str(), &[MTLS_NAME]);
        let server = mtls::Server::new(trust_domain.clone(), local, provider()).expect("server");
        server.trust(&root.pem()).expect("bundle");
        let server = Arc::new(server);
        let socket = listener::bind(([127, 0, 0, 1], 0).into(), 1).expect("bind").remove(0);
        let mtls = socket.local_addr().expect("address");
        let take = move |conn| {
            let (path, server) = (path.clone(), Arc::clone(&server));
            tokio::spawn(async move { path.egress_mtls(&server, conn).await });
        };
        tokio::spawn(listener::serve_one(0, socket, Arc::clone(&board), permits, signal, take));

        Self {
            cluster,
            links,
            address,
            mtls,
            seen,
            drain,
            root,
            trust_domain,
            table,
            bindings,
            board,
            resources: Mutex::default(),
            peers: Mutex::default(),
        }
    }

    /// Links two sites, and waits until traffic may go both ways.
    pub(crate) async fn link(&self, other: &Self) {
        self.add_peer(other).await;
        other.add_peer(self).await;
        until(|| (self.links.alive(&other.cluster) && other.links.alive(&self.cluster)).then_some(())).await;
    }

    async fn add_peer(&self, other: &Self) {
        let peers = {
            let mut peers = self.peers.lock().expect("lock");
            peers.push(Peer {
                cluster: other.cluster.clone(),
                trust_domain: other.trust_domain.clone(),
                trust_bundle: other.root.pem(),
                addresses: vec![other.address.to_string()],
                default_policy: DefaultPolicy::Allow,
                transport: Default::default(),
                congestion: Default::default(),
            });
            peers.clone()
        };
        assert_eq!(self.links.configure(&peers).await, []);
    }

    /// Puts resources into force, beside what is there.
    pub(crate) fn apply(&self, resources: impl IntoIterator<Item = Resource>) {
        let snapshot = {
            let mut all = self.resources.lock().expect("lock");
            all.extend(resources.into_iter().map(|resource| (format!("{:?}", resource.key()), resource)));
            let resources = all.values().map(|resource| (resource.key(), Arc::new(resource.clone()))).collect();
            Arc::new(Snapshot { generation: 1, resources })
        };
        let next = self.table.load().next(&snapshot, tokio::time::Instant::now());
        self.bindings.send_replace(Arc::clone(next.bindings()));
        self.table.store(Arc::new(next));
    }

    /// Exports `shop/<name>` with these endpoints, to everybody unless rules are given.
    pub(crate) fn export(&self, name: &str, endpoints: &[SocketAddr], change: impl FnOnce(&mut Export)) {
        let endpoint = |address: &SocketAddr| Endpoint { address: *address, name: None, ready: true };
        let mut export = Export {
            service: format!("shop/{name}").parse().expect("service"),
            ports: vec![ExportPort {
                port: PORT,
                transport: Default::default(),
                name: None,
                app_protocol: None,
                endpoints: endpoints.iter().map(endpoint).collect(),
            }],
            rules: None,
            proxy_protocol: false,
        };
        change(&mut export);
        self.apply([Resource::Export(export)]);
    }

    /// Mirrors `shop/<name>` from these clusters, one tier each line, and waits until it is bound.
    pub(crate) async fn mirror(&self, name: &str, app_protocol: Option<&str>, tiers: &[&[(&str, u32)]]) -> SocketAddr {
        let listen = listener::bind(loopback(), 1).expect("bind")[0].local_addr().expect("address");
        self.mirror_at(name, listen, app_protocol, tiers);
        until(|| self.board.mirrors().iter().find(|mirror| mirror.listen == listen && mirror.bound).map(|_| listen))
            .await
    }

    /// As [`Self::mirror`], at an address that is bound already: a change of weights.
    pub(crate) fn mirror_at(
        &self,
        name: &str,
        listen: SocketAddr,
        app_protocol: Option<&str>,
        tiers: &[&[(&str, u32)]],
    ) {
        self.mirror_port(name, Place::tcp(listen), app_protocol, tiers);
    }

    /// As [`Self::mirror`], for datagrams.
    pub(crate) async fn mirror_datagrams(&self, name: &str, tiers: &[&[(&str, u32)]]) -> SocketAddr {
        let listen = listener::bind_datagrams(loopback(), 1).expect("bind")[0].local_addr().expect("address");
        let place = Place::udp(listen);
        self.mirror_port(name, place, None, tiers);
        let bound = |mirror: &&listener::MirrorState| {
            (mirror.listen, mirror.transport) == (place.address, place.transport) && mirror.bound
        };
        until(|| self.board.mirrors().iter().find(bound).map(|_| listen)).await
    }

    fn mirror_port(&self, name: &str, place: Place, app_protocol: Option<&str>, tiers: &[&[(&str, u32)]]) {
        let service: linkspan_proto::names::ServiceKey = format!("shop/{name}").parse().expect("service");
        let cluster = |name: &str| -> ClusterName { name.parse().expect("cluster") };
        let tiers: Vec<_> = tiers
            .iter()
            .map(|tier| Tier {
                clusters: tier.iter().map(|(name, weight)| (cluster(name), *weight)).collect(),
                min_healthy_percent: 1,
            })
            .collect();
        let capacities: Vec<_> = tiers
            .iter()
            .flat_map(|tier| tier.clusters.keys())
            .filter(|name| **name != self.cluster)
            .map(|name| {
                Resource::Capacity(Capacity {
                    cluster: name.clone(),
                    service: service.clone(),
                    ready: BTreeMap::from([(PORT, 1)]),
                    total: BTreeMap::new(),
                    ready_udp: BTreeMap::from([(PORT, 1)]),
                    total_udp: Default::default(),
                    ready_endpoints: Vec::new(),
                })
            })
            .collect();
        let mirror = Mirror {
            name: format!("{name}.shop.svc.clusterset.local"),
            service,
            endpoint: None,
            ports: vec![MirrorPort {
                listen: place.address,
                port: PORT,
                transport: place.transport,
                name: None,
                app_protocol: app_protocol.map(str::to_owned),
            }],
            tiers,
        };
        self.apply(capacities.into_iter().chain([Resource::Mirror(mirror)]));
    }

    /// Clients of this machine are this workload.
    pub(crate) fn workload(&self, account: &str) {
        let workload = Workload {
            namespace: "shop".parse().expect("namespace"),
            service_account: account.parse().expect("account"),
            ranges: vec!["127.0.0.0/8".parse().expect("cidr")],
        };
        self.resources.lock().expect("lock").retain(|_, resource| !matches!(resource, Resource::Workload(_)));
        self.apply([Resource::Workload(workload)]);
    }

    /// A certificate and key of one of this cluster's workloads.
    pub(crate) fn workload_certificate(&self, account: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let uri = format!("spiffe://{}/ns/shop/sa/{account}", self.trust_domain);
        let (chain, key) = leaf(&self.root, &uri, &[]);
        (chain, PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }
}

/// The name on the certificate of every mTLS port.
pub(crate) const MTLS_NAME: &str = "echo.shop.svc.clusterset.local";

/// A rule with one change.
pub(crate) fn rule(change: impl FnOnce(&mut ExportRule)) -> ExportRule {
    let mut rule = ExportRule::default();
    change(&mut rule);
    rule
}

pub(crate) async fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).await.expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    stream
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("root")
}

fn leaf(root: &CertifiedIssuer<'static, KeyPair>, uri: &str, dns: &[&str]) -> (Vec<CertificateDer<'static>>, KeyPair) {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ascii"))];
    params.subject_alt_names.extend(dns.iter().map(|name| SanType::DnsName((*name).try_into().expect("ascii"))));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
    let key = KeyPair::generate().expect("key");
    let certificate = params.signed_by(&key, root).expect("leaf");
    (vec![certificate.der().clone()], key)
}

fn certificate(root: &CertifiedIssuer<'static, KeyPair>, uri: &str, dns: &[&str]) -> Arc<OwnCertificate> {
    let (chain, key) = leaf(root, uri, dns);
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = provider().key_provider.load_private_key(key).expect("key");
    let own = OwnCertificate::new();
    own.replace(Arc::new(CertifiedKey::new(chain, key)), SystemTime::now() + Duration::from_secs(3600));
    own
}
