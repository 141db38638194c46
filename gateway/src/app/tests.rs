//! Whole gateways in one process, each with a controller in place of the real one: start, traffic, restarts, end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::path::PathBuf;

use linkspan_proto::configuration::{
    Capacity, DefaultPolicy, Endpoint, Export, ExportPort, Mirror, MirrorPort, Peer, Report, Resource, Tier,
};
use linkspan_proto::generated::configuration::Purpose;
use linkspan_proto::names::{ClusterName, ServiceKey};
use linkspan_proto::resources::Site;
use linkspan_runtime::metrics::Registry;
use linkspan_runtime::readiness::Readiness;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::testkit::Controller;
use super::*;
use crate::link::testkit::{Authority, PATIENCE};

/// A cluster: its directory, controller and gateway.
struct Cluster {
    dir: tempfile::TempDir,
    authority: Arc<Authority>,
    controller: Controller,
    process: Process,
    app: Option<App>,
    name: ClusterName,
}

impl Cluster {
    async fn start(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let name = ClusterName::parse(name).unwrap();
        let authority = Arc::new(Authority::new(&format!("{name}.linkspan.internal")));
        fs::create_dir(dir.path().join("state")).unwrap();
        let controller = Controller::start(&dir.path().join("state/controller.sock"), Arc::clone(&authority));
        let process = process();
        let mut cluster = Self { dir, authority, controller, process, app: None, name };
        cluster.run(([127, 0, 0, 1], 0).into()).await;
        cluster
    }

    fn config(&self, listen: SocketAddr) -> Config {
        let mut site = Site::new(self.name.clone());
        site.spec.gateway.listen = listen;
        site.spec.gateway.mtls_listen = Some(([127, 0, 0, 1], 0).into());
        site.spec.gateway.workers = Some(2);
        site.spec.gateway.drain_seconds = 3;
        Config::resolve(&site, self.dir.path())
    }

    async fn run(&mut self, listen: SocketAddr) {
        self.process = process();
        self.app = Some(App::start(self.config(listen), &self.process).await.unwrap());
    }

    fn addresses(&self) -> &Addresses {
        &self.app.as_ref().unwrap().addresses
    }

    fn run_file(&self) -> PathBuf {
        self.config(([0, 0, 0, 0], 0).into()).run_file()
    }

    fn peer(&self) -> Resource {
        Resource::Peer(Peer {
            cluster: self.name.clone(),
            trust_domain: self.authority.trust_domain.clone(),
            trust_bundle: self.authority.bundle(),
            addresses: vec![self.addresses().link.to_string()],
            default_policy: DefaultPolicy::Allow,
            transport: Default::default(),
            congestion: Default::default(),
        })
    }

    async fn ready(&self) {
        tokio::time::timeout(PATIENCE, self.process.admin.readiness().wait()).await.expect("ready in time").unwrap();
    }

    async fn until_linked(&mut self) {
        // A peer that has just left is "alive" a moment longer: probes have not failed yet.
        self.controller
            .report(|report| match report {
                Report::Links { links } => links.first().filter(|link| link.alive && link.connections > 0).map(|_| ()),
                _ => None,
            })
            .await;
    }
}

fn process() -> Process {
    let admin = Admin::new(Registry::new(), Readiness::new());
    Process { admin, admin_address: ([127, 0, 0, 1], 1).into() }
}

fn service() -> ServiceKey {
    ServiceKey::parse("shop/echo").unwrap()
}

/// Answers each connection with what it brought.
async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
                write.shutdown().await.ok();
            });
        }
    });
    address
}

fn export(backend: SocketAddr) -> Resource {
    Resource::Export(Export {
        service: service(),
        ports: vec![ExportPort {
            port: 7,
            transport: Default::default(),
            name: None,
            app_protocol: Some("tcp".to_owned()),
            endpoints: vec![Endpoint { address: backend, name: None, ready: true }],
        }],
        rules: None,
        proxy_protocol: false,
    })
}

/// A mirror of the echo service of `cluster`, on a port of its own.
fn mirror(cluster: &ClusterName) -> (Resource, Resource, SocketAddr) {
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mirror = Mirror {
        name: format!("echo-{cluster}.shop.svc.cluster.local"),
        service: service(),
        endpoint: None,
        ports: vec![MirrorPort {
            listen,
            port: 7,
            transport: Default::default(),
            name: None,
            app_protocol: Some("tcp".to_owned()),
        }],
        tiers: vec![Tier { clusters: BTreeMap::from([(cluster.clone(), 1)]), min_healthy_percent: 1 }],
    };
    let capacity = Capacity {
        cluster: cluster.clone(),
        service: service(),
        ready: BTreeMap::from([(7, 1)]),
        total: BTreeMap::new(),
        ready_udp: Default::default(),
        total_udp: Default::default(),
        ready_endpoints: Vec::new(),
    };
    (Resource::Mirror(mirror), Resource::Capacity(capacity), listen)
}

async fn connect(address: SocketAddr) -> TcpStream {
    let connecting = async {
        loop {
            match TcpStream::connect(address).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, connecting).await.expect("the mirror listens")
}

async fn echo(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut back = vec![0; text.len()];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.expect("an answer").unwrap();
    assert_eq!(back, text);
}

/// East mirrors what west exports.
async fn two_clusters() -> (Cluster, Cluster, SocketAddr) {
    let (mut east, mut west) = (Cluster::start("east").await, Cluster::start("west").await);
    let (mirror, capacity, listen) = mirror(&west.name);
    east.controller.push(vec![west.peer(), mirror, capacity]);
    west.controller.push(vec![east.peer(), export(echo_server().await)]);
    east.ready().await;
    west.ready().await;
    east.until_linked().await;
    west.until_linked().await;
    (east, west, listen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_crosses_from_a_mirror_to_its_backend() {
    let (east, west, listen) = two_clusters().await;
    let mut client = connect(listen).await;
    echo(&mut client, b"hello over there").await;
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"", "half-close went there and back");

    let run: serde_json::Value = serde_json::from_slice(&fs::read(east.run_file()).unwrap()).unwrap();
    assert_eq!(run["link"], east.addresses().link.to_string());
    assert_eq!(run["mtls"], east.addresses().mtls.unwrap().to_string());
    assert_eq!(run["workers"], 2);
    let metrics = east.process.admin.registry().encode().unwrap();
    assert!(metrics.contains("link_up{peer=\"west\"} 1"), "{metrics}");
    assert!(metrics.contains("certificate_expiry_seconds{purpose=\"link\"}"), "{metrics}");
    for cluster in [east, west] {
        let run_file = cluster.run_file();
        assert!(cluster.app.unwrap().drain().await, "nothing was cut");
        assert!(!run_file.exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_serves_without_its_controller_and_takes_it_back() {
    let (mut east, west, listen) = two_clusters().await;
    let mut old = connect(listen).await;
    echo(&mut old, b"before").await;
    east.controller.kill().await;
    east.controller.missed().await;
    echo(&mut old, b"tunnels go on").await;
    echo(&mut connect(listen).await, b"so do new ones").await;
    east.controller.resume();
    // A controller that comes back sends everything anew: nothing is withdrawn by it.
    east.controller.report(|report| matches!(report, Report::Hello { .. }).then_some(())).await;
    east.controller.report(|report| matches!(report, Report::Acknowledged { .. }).then_some(())).await;
    echo(&mut old, b"after").await;
    let (second, more, elsewhere) = {
        let (mirror, capacity, listen) = mirror(&west.name);
        let Resource::Mirror(mirror) = mirror else { unreachable!() };
        let renamed = Mirror { name: "second.shop.svc.cluster.local".to_owned(), ..mirror };
        (Resource::Mirror(renamed), capacity, listen)
    };
    let present = vec![west.peer(), second, more];
    east.controller.push(present);
    echo(&mut connect(elsewhere).await, b"and changes are taken").await;
    drop(west);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_without_cutting_anything() {
    let (mut east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    // The first was signed for an hour; those that follow live four seconds, so they change twice in the test.
    east.app.take().unwrap().drain().await;
    east.controller.sign_for(Duration::from_secs(4)).await;
    east.run(([127, 0, 0, 1], 0).into()).await;
    let (mirror, capacity, listen) = mirror(&west.name);
    east.controller.push(vec![west.peer(), mirror, capacity]);
    west.controller.push(vec![east.peer(), export(echo_server().await)]);
    east.until_linked().await;
    let mut signed = east.controller.signed();
    let before = signed.borrow().len();
    let mut tunnel = connect(listen).await;
    // At half of their life: two renewals take about four seconds.
    let renewed = async {
        loop {
            let done =
                signed.borrow_and_update()[before..].iter().filter(|(purpose, _)| *purpose == Purpose::Link).count();
            echo(&mut tunnel, b"through every change").await;
            echo(&mut connect(listen).await, b"so do new ones").await;
            if done >= 2 {
                break;
            }
            signed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.expect("renewed at half of their life");
    let signed = signed.borrow().clone();
    let names: Vec<_> = signed.iter().filter(|(purpose, _)| *purpose == Purpose::LocalServer).collect();
    assert!(names.iter().all(|(_, names)| *names == ["*.shop.svc.cluster.local"]), "{names:?}");
    assert!(!names.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_load_loses_only_what_cannot_be_kept() {
    let (mut east, mut west, listen) = two_clusters().await;
    let mut tunnel = connect(listen).await;
    echo(&mut tunnel, b"a tunnel").await;
    let address = west.addresses().link;
    // West stops while the tunnel is open: it may finish.
    let draining = tokio::spawn(west.app.take().unwrap().drain());
    // East says so at once, without waiting for probes.
    let left = east.controller.report(|report| match report {
        Report::Links { links } => links.first().filter(|link| link.connections == 0).map(|link| link.reason.clone()),
        _ => None,
    });
    assert_eq!(left.await, "PeerShutDown");
    echo(&mut tunnel, b"still served").await;
    tunnel.shutdown().await.unwrap();
    let mut rest = Vec::new();
    tunnel.read_to_end(&mut rest).await.unwrap();
    assert!(draining.await.unwrap(), "everything finished before the deadline");

    west.run(address).await;
    let started = std::time::Instant::now();
    east.until_linked().await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    echo(&mut connect(listen).await, b"back").await;
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut site = Site::new(ClusterName::parse("east").unwrap());
    site.spec.gateway.listen = taken.local_addr().unwrap();
    site.spec.gateway.mtls_listen = None;
    let error = App::start(Config::resolve(&site, dir.path()), &process()).await.unwrap_err();
    assert!(error.to_string().contains(&taken.local_addr().unwrap().to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_peers_are_reported_and_cost_nobody_else() {
    let (mut east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    let Resource::Peer(good) = west.peer() else { unreachable!() };
    let bad = Peer {
        cluster: ClusterName::parse("south").unwrap(),
        trust_domain: "south.linkspan.internal".parse().unwrap(),
        trust_bundle: "nonsense".to_owned(),
        ..good.clone()
    };
    east.controller.push(vec![Resource::Peer(bad), Resource::Peer(good)]);
    west.controller.push(vec![east.peer()]);
    let reasons = east
        .controller
        .report(|report| match report {
            Report::Rejected { reasons } if !reasons.is_empty() => Some(reasons.clone()),
            _ => None,
        })
        .await;
    assert_eq!((reasons.len(), reasons[0].reason.as_str()), (1, "InvalidTrustBundle"));
    assert_eq!(reasons[0].resource.name, "south");
    east.until_linked().await;
}
