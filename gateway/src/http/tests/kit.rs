//! Two linked gateways, clients and backends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming as Body;
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use linkspan_proto::configuration::{
    Capacity, Endpoint, Export, ExportPort, Mirror, MirrorPort, Resource, Tier, Workload,
};
use linkspan_proto::names::{ClusterName, Namespace, ServiceAccountName, ServiceKey};
use linkspan_proto::refusal::Refusal;
use linkspan_runtime::drain::Drain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::context::{Gateway, TUNNEL_IDLE};
use crate::discovery::Snapshot;
use crate::link::testkit::{Authority, Setup, Side, link};
use crate::link::{Incoming, Ingress};
use crate::listener::{ClientConnection, ClientIo, Permits};
use crate::outcome::{Entry, Outcome, Recorder};
use crate::path::Path;
use crate::remote::Limits;
use crate::route::{Own, RouteTable};

/// The port of the service that all tests call.
pub(super) const PORT: u16 = 80;

/// The name by which it is mirrored.
pub(super) const NAME: &str = "web-west.shop.svc.cluster.local";

pub(super) type BoxBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// Two gateways, east and west, linked; a mirrored service in the east.
pub(super) struct World {
    pub(super) east: Node,
    pub(super) west: Node,
    /// Where clients of the east connect to.
    pub(super) address: SocketAddr,
}

/// One gateway.
pub(super) struct Node {
    pub(super) side: Side,
    pub(super) gateway: Arc<Gateway>,
    pub(super) seen: Arc<Seen>,
    pub(super) late: Arc<Late>,
    pub(super) drain: Arc<Drain>,
}

/// The endpoints of the service, by cluster, and who serves first.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) west: Vec<SocketAddr>,
    pub(super) east: Vec<SocketAddr>,
    /// `["west"]` unless said otherwise; each is a tier.
    pub(super) tiers: Vec<&'static str>,
}

impl World {
    /// A service of the west with these endpoints.
    pub(super) async fn of(west: &[SocketAddr]) -> Self {
        Self::new(Plan { west: west.to_vec(), ..Plan::default() }).await
    }

    pub(super) async fn new(plan: Plan) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (east, west) = (Node::start("east"), Node::start("west"));
        link(&east.side, &west.side).await;
        let tiers = if plan.tiers.is_empty() { vec!["west"] } else { plan.tiers };
        east.configure(vec![
            mirror(address, &tiers),
            capacity("west", plan.west.len()),
            export(&plan.east),
            Resource::Workload(Workload {
                namespace: Namespace::parse("shop").unwrap(),
                service_account: ServiceAccountName::parse("client").unwrap(),
                ranges: vec!["127.0.0.0/8".parse().unwrap()],
            }),
        ]);
        west.configure(vec![export(&plan.west)]);
        let path = Path::new(Arc::clone(&east.gateway));
        let permits = Permits::new(1000);
        tokio::spawn(async move {
            loop {
                let (stream, client) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let permit = permits.acquire().unwrap();
                let io = ClientIo::tcp(stream);
                let conn = ClientConnection { io, client, listen: address, worker: 0, probe: false, permit };
                let path = path.clone();
                tokio::spawn(async move { path.egress(conn).await });
            }
        });
        Self { east, west, address }
    }

    /// A client's socket.
    pub(super) async fn client(&self) -> Wire {
        Wire::connect(self.address).await
    }

    /// An HTTP/2 client.
    pub(super) async fn http2(&self) -> http2::SendRequest<BoxBody> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

impl Node {
    fn start(cluster: &str) -> Self {
        let late = Arc::new(Late::default());
        let ingress: Arc<dyn Ingress> = Arc::clone(&late) as Arc<dyn Ingress>;
        let authority = Arc::new(Authority::new(&format!("{cluster}.linkspan.internal")));
        let own = Own { cluster: ClusterName::parse(cluster).unwrap(), trust_domain: authority.trust_domain.clone() };
        let side = Side::start_with(authority, cluster, Setup { ingress: Some(ingress), ..Setup::default() });
        let (drain, signal) = Drain::new();
        let seen = Arc::new(Seen::default());
        let gateway = Arc::new(Gateway {
            links: side.links.clone(),
            table: Arc::new(ArcSwap::from_pointee(RouteTable::empty(own.clone()))),
            own,
            recorder: Arc::clone(&seen) as Arc<dyn Recorder>,
            limits: Limits::new(1000),
            tunnel_idle: TUNNEL_IDLE,
            drain: signal,
        });
        late.path.set(Path::new(Arc::clone(&gateway))).unwrap();
        Self { side, gateway, seen, late, drain: Arc::new(drain) }
    }

    fn configure(&self, resources: Vec<Resource>) {
        let resources = resources.into_iter().map(|resource| (resource.key(), Arc::new(resource))).collect();
        let snapshot = Arc::new(Snapshot { generation: 1, resources });
        let table = self.gateway.table.load().then(&snapshot);
        self.gateway.table.store(Arc::new(table));
    }
}

pub(super) fn service() -> ServiceKey {
    "shop/web".parse().unwrap()
}

fn mirror(listen: SocketAddr, tiers: &[&str]) -> Resource {
    let tier = |cluster: &&str| Tier {
        clusters: BTreeMap::from([(ClusterName::parse(cluster).unwrap(), 1)]),
        min_healthy_percent: 1,
    };
    Resource::Mirror(Mirror {
        name: NAME.to_owned(),
        service: service(),
        endpoint: None,
        ports: vec![MirrorPort {
            listen,
            port: PORT,
            transport: Default::default(),
            name: None,
            app_protocol: Some("http".to_owned()),
        }],
        tiers: tiers.iter().map(tier).collect(),
    })
}

fn export(endpoints: &[SocketAddr]) -> Resource {
    let endpoints = endpoints.iter().map(|address| Endpoint { address: *address, name: None, ready: true }).collect();
    Resource::Export(Export {
        service: service(),
        ports: vec![ExportPort {
            port: PORT,
            transport: Default::default(),
            name: None,
            app_protocol: None,
            endpoints,
        }],
        rules: None,
        proxy_protocol: false,
    })
}

fn capacity(cluster: &str, ready: usize) -> Resource {
    Resource::Capacity(Capacity {
        cluster: ClusterName::parse(cluster).unwrap(),
        service: service(),
        ready: BTreeMap::from([(PORT, u32::try_from(ready).unwrap())]),
        total: BTreeMap::new(),
        ready_udp: Default::default(),
        total_udp: Default::default(),
        ready_endpoints: Vec::new(),
    })
}

/// Takes streams once the path is there; refuses those that it is told to.
#[derive(Default)]
pub(super) struct Late {
    path: OnceLock<Path>,
    /// For the next streams, in order; nothing of them is read.
    pub(super) refusals: Mutex<Vec<Refusal>>,
    /// Streams taken, the refused ones too.
    pub(super) streams: Mutex<usize>,
}

impl Ingress for Late {
    fn stream(&self, mut incoming: Incoming) -> BoxFuture<'static, ()> {
        *self.streams.lock().unwrap() += 1;
        if let Some(refusal) = self.refusals.lock().unwrap().pop() {
            incoming.send.reset(refusal);
            incoming.recv.stop(refusal);
            return Box::pin(async {});
        }
        self.path.get().unwrap().stream(incoming)
    }
}

/// Keeps the records that have ended.
#[derive(Default)]
pub(super) struct Seen {
    ended: Mutex<Vec<(Entry, Outcome)>>,
    more: Notify,
}

impl Recorder for Seen {
    fn begin(&self, _entry: &Entry) {}

    fn progress(&self, _entry: &Entry, _received: u64, _sent: u64) {}

    fn end(&self, entry: &Entry, outcome: Outcome, _elapsed: Duration) {
        self.ended.lock().unwrap().push((entry.clone(), outcome));
        self.more.notify_waiters();
    }
}

impl Seen {
    /// The record of the request number `index`, once it has ended.
    pub(super) async fn ended(&self, index: usize) -> (Entry, Outcome) {
        loop {
            let more = self.more.notified();
            if let Some(record) = self.ended.lock().unwrap().get(index) {
                return record.clone();
            }
            more.await;
        }
    }

    pub(super) fn count(&self) -> usize {
        self.ended.lock().unwrap().len()
    }
}

/// A socket on which a test writes and reads bytes.
pub(super) struct Wire {
    pub(super) stream: TcpStream,
    buffer: BytesMut,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: BytesMut::new() }
    }

    pub(super) async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.unwrap())
    }

    pub(super) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Everything up to an empty line, without it; lines end in `\n`.
    pub(super) async fn head(&mut self) -> String {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.fill().await > 0, "EOF within a head: {:?}", self.buffer);
        };
        let head = self.buffer.split_to(end);
        String::from_utf8(head[..end - 4].to_vec()).unwrap().replace("\r\n", "\n")
    }

    pub(super) async fn line(&mut self) -> String {
        let end = loop {
            if let Some(at) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                break at + 2;
            }
            assert!(self.fill().await > 0, "EOF within a line: {:?}", self.buffer);
        };
        let line = self.buffer.split_to(end);
        String::from_utf8(line[..end - 2].to_vec()).unwrap()
    }

    pub(super) async fn exactly(&mut self, length: usize) -> Bytes {
        while self.buffer.len() < length {
            assert!(self.fill().await > 0, "EOF after {} of {length} bytes", self.buffer.len());
        }
        self.buffer.split_to(length).freeze()
    }

    /// A chunked body and its trailers.
    pub(super) async fn chunked(&mut self) -> (Bytes, Vec<String>) {
        let mut body = BytesMut::new();
        loop {
            let length = usize::from_str_radix(&self.line().await, 16).unwrap();
            if length == 0 {
                break;
            }
            body.extend_from_slice(&self.exactly(length).await);
            assert_eq!(self.line().await, "");
        }
        let mut trailers = Vec::new();
        loop {
            match self.line().await {
                end if end.is_empty() => return (body.freeze(), trailers),
                trailer => trailers.push(trailer),
            }
        }
    }

    /// All until the end; an error is a reset.
    pub(super) async fn rest(&mut self) -> std::io::Result<Bytes> {
        while self.stream.read_buf(&mut self.buffer).await? > 0 {}
        Ok(self.buffer.split().freeze())
    }

    async fn fill(&mut self) -> usize {
        self.stream.read_buf(&mut self.buffer).await.unwrap()
    }
}

/// A backend that a test writes by hand; called for each connection, with its number.
pub(super) async fn backend<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(Wire, usize) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(Wire::new(stream), number));
        }
    });
    address
}

/// A backend that answers every connection's first request with these bytes, and closes.
pub(super) async fn canned(response: &'static str) -> SocketAddr {
    backend(move |mut wire, _| async move {
        wire.head().await;
        wire.write(response).await;
    })
    .await
}

/// A backend over hyper, HTTP/2 if `http2`.
pub(super) async fn hyper_backend<F, Fut>(http2: bool, serve: F) -> SocketAddr
where
    F: Fn(Request<Body>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<BoxBody>> + Send + 'static,
{
    backend(move |wire, _| {
        let serve = serve.clone();
        let service = service_fn(move |request| {
            let response = serve(request);
            async move { Ok::<_, std::convert::Infallible>(response.await) }
        });
        async move {
            let io = TokioIo::new(wire.stream);
            // A connection that a test cuts is meant to fail.
            if http2 {
                drop(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await,
                );
            } else {
                drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
            }
        }
    })
    .await
}

/// An address that refuses connections.
pub(super) async fn refusing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

pub(super) fn full(bytes: impl Into<Bytes>) -> BoxBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The value of a field in a head as [`Wire::head`] gives it; all of them, joined with `|`.
pub(super) fn field(head: &str, name: &str) -> Option<String> {
    let values: Vec<_> = head
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(": "))
        .filter(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
        .collect();
    (!values.is_empty()).then(|| values.join("|"))
}

/// Bytes that are not the same everywhere.
pub(super) fn pattern(length: usize) -> Bytes {
    (0..length).map(|index| (index * 31 + index / 251) as u8).collect()
}
