//! Sites, pipes between them, and a gateway that only listens.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use hyper_util::rt::TokioIo;
use linkspan_proto::configuration::{
    LinkPhase, LinkReport, Rejection, Report, Resource, ResourceKey, ResourceKind, decode_update, encode_report,
};
use linkspan_proto::exchange_socket::{Preamble, Role};
use linkspan_proto::generated::configuration as wire;
use linkspan_proto::generated::configuration::configuration_client::ConfigurationClient;
use linkspan_runtime::admin::Admin;
use linkspan_runtime::drain::Signal;
use linkspan_runtime::metrics::Registry;
use linkspan_runtime::readiness::Readiness;
use linkspan_runtime::task;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::super::{App, Process, StartError, StateDirError};
use crate::ca;
use crate::config::Config;
use crate::testkit::cluster;

/// How long anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for something to come about.
pub(super) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A service with its slice, and an export if asked for.
pub(super) fn service(name: &str, endpoints: &[(&str, bool)], exported: bool) -> String {
    let endpoints: String = endpoints
        .iter()
        .map(|(address, ready)| format!("  - {{addresses: [{address}], conditions: {{ready: {ready}}}}}\n"))
        .collect();
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, namespace: shop, labels: \
         {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n{endpoints}"
    );
    if exported {
        text += &format!(
            "---\napiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\nmetadata: {{name: {name}, namespace: shop}}\n"
        );
    }
    text
}

/// A site with a controller and no gateway.
pub(super) struct Site {
    name: String,
    dir: tempfile::TempDir,
    app: Option<App>,
    admin: Option<SocketAddr>,
}

impl Site {
    /// `east` and `west`, linked and running.
    pub(super) async fn pair() -> (Self, Self) {
        let mut sites = Self::linked(&["east", "west"]).await;
        let west = sites.pop().unwrap();
        (sites.pop().unwrap(), west)
    }

    /// Sites that are all linked to each other, running.
    pub(super) async fn linked(names: &[&str]) -> Vec<Self> {
        let mut sites: Vec<Self> = names.iter().map(|name| Self::init(name)).collect();
        for site in &sites {
            for other in sites.iter().filter(|other| other.name != site.name) {
                site.write(&format!("link-{}.yaml", other.name), &other.link());
            }
        }
        for site in &mut sites {
            site.start().await;
        }
        sites
    }

    fn init(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let yaml = format!(
            "apiVersion: linkspan.io/v1alpha1\nkind: Site\nmetadata: {{name: {name}}}\nspec:\n  dns: {{listen: \"127.0.0.1:0\"}}\n  \
             workloads: [{{cidr: 10.0.0.0/24, namespace: shop, serviceAccount: web}}]\n"
        );
        fs::write(dir.path().join("site.yaml"), yaml).unwrap();
        fs::create_dir(dir.path().join("manifests")).unwrap();
        let config = Config::load(dir.path()).unwrap();
        ca::create(&config.state("ca"), &config.trust_domain).unwrap();
        Self { name: name.to_owned(), dir, app: None, admin: None }
    }

    fn link(&self) -> String {
        let bundle = self.state("ca/root.pem").unwrap();
        let bundle: String = bundle.lines().map(|line| format!("    {line}\n")).collect();
        format!(
            "apiVersion: linkspan.io/v1alpha1\nkind: Link\nmetadata: {{name: {name}}}\nspec:\n  trustDomain: {name}.linkspan.internal\n  \
             trustBundle: |\n{bundle}",
            name = self.name
        )
    }

    pub(super) async fn try_start(&self) -> Result<(App, SocketAddr), StartError> {
        let admin = Admin::new(Registry::new(), Readiness::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let process = Process { admin: admin.clone(), admin_address: Some(address) };
        let app = App::start(Config::load(self.dir.path()).unwrap(), &process).await?;
        let readiness = admin.readiness().clone();
        drop(task::spawn("test", admin.serve(listener, Signal::never())));
        eventually("the controller to be ready", async || readiness.is_ready()).await;
        Ok((app, address))
    }

    pub(super) async fn start(&mut self) {
        // The tasks of a site that was killed let go of its sockets a moment later.
        let mut started = None;
        eventually("the site's sockets to be free", async || {
            started = Some(self.try_start().await);
            !matches!(started, Some(Err(StartError::State(StateDirError::InUse { .. }))))
        })
        .await;
        let (app, admin) = started.unwrap().unwrap();
        self.app = Some(app);
        self.admin = Some(admin);
    }

    pub(super) async fn stop(&mut self) {
        let app = self.app.take().unwrap();
        assert!(app.drain().await, "the controller ends in time");
    }

    /// Ends without a drain.
    pub(super) fn kill(&mut self) {
        drop(self.app.take());
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn app(&self) -> &App {
        self.app.as_ref().unwrap()
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn manifests(&self) -> PathBuf {
        self.dir().join("manifests")
    }

    pub(super) fn write(&self, file: &str, text: &str) {
        fs::write(self.manifests().join(file), text).unwrap();
    }

    /// A file of the state directory.
    pub(super) fn state(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.dir().join("state").join(path)).ok()
    }

    /// What the admin port says.
    pub(super) async fn admin(&self, path: &str) -> serde_json::Value {
        let mut stream = TcpStream::connect(self.admin.unwrap()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {answer}"))
    }

    /// A connection of a gateway for one peer.
    pub(super) async fn pipe(&self, peer: &str, role: Role) -> std::io::Result<UnixStream> {
        let mut stream = UnixStream::connect(self.dir().join("state/exchange.sock")).await?;
        stream.write_all(&Preamble { peer: cluster(peer), role }.encode()).await?;
        Ok(stream)
    }
}

/// What two gateways and a link between them do for the catalogues, until dropped.
pub(super) struct Pipes(Vec<tokio::task::JoinHandle<()>>);

impl Pipes {
    pub(super) fn between(one: &Site, other: &Site) -> Self {
        let end = |site: &Site| (site.name.clone(), site.dir().join("state/exchange.sock"));
        let directions = [(end(one), end(other)), (end(other), end(one))];
        Self(directions.into_iter().map(|(listener, teller)| task::spawn("test", splice(listener, teller))).collect())
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Carries one direction of catalogue, again and again.
async fn splice(listener: (String, PathBuf), teller: (String, PathBuf)) {
    loop {
        let open = async |path: &Path, peer: &str, role| {
            let mut stream = UnixStream::connect(path).await?;
            stream.write_all(&Preamble { peer: cluster(peer), role }.encode()).await?;
            std::io::Result::Ok(stream)
        };
        let ends = async {
            Ok::<_, std::io::Error>((
                open(&listener.1, &teller.0, Role::Subscriber).await?,
                open(&teller.1, &listener.0, Role::Publisher).await?,
            ))
        };
        if let Ok((mut subscriber, mut publisher)) = ends.await {
            tokio::io::copy_bidirectional(&mut subscriber, &mut publisher).await.ok();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A gateway that keeps what it is told.
pub(super) struct Gateway {
    pub(super) client: ConfigurationClient<Channel>,
    pub(super) resources: BTreeMap<String, Resource>,
    pub(super) generation: u64,
    reports: mpsc::Sender<wire::GatewayReport>,
    updates: Streaming<wire::Update>,
    /// Between `reset` and `last`.
    building: Option<BTreeMap<String, Resource>>,
}

fn name(key: &ResourceKey) -> String {
    let kind = serde_json::to_value(key.kind).unwrap();
    format!("{} {}", kind.as_str().unwrap(), key.name)
}

impl Gateway {
    pub(super) async fn connect(site: &Site, boot_id: &str) -> Self {
        let path = Arc::new(site.dir().join("state/controller.sock"));
        let connector = tower::service_fn(move |_: http::Uri| {
            let path = Arc::clone(&path);
            async move { UnixStream::connect(path.as_ref()).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://controller").connect_with_connector(connector).await.unwrap();
        let mut client = ConfigurationClient::new(channel);
        let (reports, stream) = mpsc::channel(16);
        let hello = Report::Hello { boot_id: boot_id.to_owned(), version: "test".to_owned() };
        reports.send(encode_report(&hello).unwrap()).await.unwrap();
        let updates = client.subscribe(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Self { client, resources: BTreeMap::new(), generation: 0, reports, updates, building: None }
    }

    pub(super) async fn until(&mut self, what: &str, holds: impl Fn(&BTreeMap<String, Resource>) -> bool) {
        self.within(PATIENCE, what, holds).await;
    }

    pub(super) async fn within(
        &mut self,
        patience: Duration,
        what: &str,
        holds: impl Fn(&BTreeMap<String, Resource>) -> bool,
    ) {
        let end = Instant::now() + patience;
        while !holds(&self.resources) {
            let left = end.saturating_duration_since(Instant::now());
            let update = tokio::time::timeout(left, self.updates.message()).await;
            let Ok(update) = update else { panic!("{what} did not come about: {} resources", self.resources.len()) };
            self.apply(&update.unwrap().expect("the controller lives"));
        }
    }

    /// Checks what holds after each update for a while.
    pub(super) async fn watch(&mut self, duration: Duration, check: impl Fn(&BTreeMap<String, Resource>)) {
        let end = Instant::now() + duration;
        loop {
            check(&self.resources);
            let left = end.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.updates.message()).await {
                Ok(update) => self.apply(&update.unwrap().expect("the controller lives")),
                Err(_) => return,
            }
        }
    }

    pub(super) async fn drain_updates(&mut self) {
        self.watch(Duration::from_millis(200), |_| {}).await;
    }

    fn apply(&mut self, update: &wire::Update) {
        let update = decode_update(update);
        assert!(update.unreadable.is_empty());
        let mut next = match self.building.take() {
            Some(building) if !update.reset => building,
            _ if update.reset => BTreeMap::new(),
            _ => std::mem::take(&mut self.resources),
        };
        next.extend(update.upserts.into_iter().map(|resource| (name(&resource.key()), resource)));
        for key in update.removals {
            next.remove(&name(&key));
        }
        if update.last {
            assert!(update.generation > self.generation);
            self.generation = update.generation;
            self.resources = next;
        } else {
            self.building = Some(next);
        }
    }

    pub(super) async fn report(&self, report: Report) {
        self.reports.send(encode_report(&report).unwrap()).await.unwrap();
    }

    pub(super) async fn report_rejection(&self, mirror: &str, reason: &str) {
        let resource = ResourceKey { kind: ResourceKind::Mirror, name: mirror.to_owned() };
        let rejection =
            Rejection { resource, reason: reason.to_owned(), message: "told by a test".to_owned(), ports: Vec::new() };
        self.report(Report::Rejected { reasons: vec![rejection] }).await;
    }

    pub(super) async fn report_link(&self, peer: &str, alive: bool, reason: &str) {
        let link = LinkReport {
            cluster: cluster(peer),
            alive,
            state: LinkPhase::Connected,
            message: "told by a test".to_owned(),
            reason: reason.to_owned(),
            connections: 1,
            version: None,
            rtt_micros: None,
            probe_micros: None,
            loss: 0.0,
            since_unix: 0,
            remote: None,
            transport: None,
            transport_reason: None,
            clock_ahead_seconds: None,
            mtu: None,
            black_holes: 0,
        };
        self.report(Report::Links { links: vec![link] }).await;
    }
}

/// The first address that DNS answers.
pub(super) async fn query(server: SocketAddr, name: &str) -> Option<IpAddr> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), RecordType::A));
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = [0; 1500];
    let received = tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut buffer)).await;
    let length = received.expect("an answer").unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    answer.answers.iter().find_map(|record| match record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        _ => None,
    })
}
