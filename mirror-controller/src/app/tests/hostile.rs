//! Peers that break the rules, over real sockets and real gRPC.

use std::convert::Infallible;
use std::sync::Mutex;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use linkspan_proto::exchange::{Message, VERSION, catalogue_hash};
use linkspan_proto::exchange_socket::Role;
use linkspan_proto::generated::exchange as wire;
use linkspan_proto::generated::exchange::exchange_client::ExchangeClient;
use linkspan_proto::generated::exchange::exchange_server::{Exchange, ExchangeServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status, Streaming};

use super::kit::{Gateway, Site, eventually, service};
use super::*;
use crate::testkit::{cluster, entry};

/// A peer's controller that says what it was given, to whoever subscribes.
struct Script(Mutex<Option<Vec<wire::CatalogueMessage>>>);

#[tonic::async_trait]
impl Exchange for Script {
    type SubscribeStream = ReceiverStream<Result<wire::CatalogueMessage, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<wire::SubscriberMessage>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let script = self.0.lock().unwrap().take().unwrap_or_default();
        let (sender, stream) = mpsc::channel(1);
        drop(task::spawn("test", async move {
            let mut heard = request.into_inner();
            for message in script {
                if sender.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            while let Ok(Some(_)) = heard.message().await {}
        }));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Plays a script to a site as its peer `peer`; returns when the site hangs up or after a second.
async fn play(site: &Site, peer: &str, script: Vec<wire::CatalogueMessage>) {
    let pipe = site.pipe(peer, Role::Subscriber).await.unwrap();
    let service = ExchangeServer::new(Script(Mutex::new(Some(script)))).max_encoding_message_size(usize::MAX);
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(pipe), TowerToHyperService::new(service));
    tokio::time::timeout(Duration::from_secs(1), connection).await.ok();
}

fn snapshot(names: &[&str], version: u64) -> Vec<wire::CatalogueMessage> {
    let entries: Vec<_> =
        names.iter().map(|name| entry(&format!("shop/{name}"), &["http:80"], 1).as_ref().clone()).collect();
    let hash = catalogue_hash(&entries);
    let count = u32::try_from(entries.len()).unwrap();
    [
        Message::SnapshotBegin { epoch: 1, version, count },
        Message::Entries(entries),
        Message::SnapshotEnd { version, hash },
    ]
    .map(wire::CatalogueMessage::from)
    .into()
}

fn body(body: wire::catalogue_message::Body) -> wire::CatalogueMessage {
    wire::CatalogueMessage { body: Some(body) }
}

/// S-37 and S-41.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_catalogue_is_refused_and_the_last_good_one_stays() {
    use wire::catalogue_message::Body;

    let mut sites = Site::linked(&["east", "west", "north"]).await;
    let east = sites.remove(0);
    let mut gateway = Gateway::connect(&east, "boot-1").await;
    play(&east, "west", snapshot(&["web", "api"], 5)).await;
    gateway.until("the good catalogue", |all| all.contains_key("capacity west/shop/api")).await;
    gateway.drain_updates().await;
    let before = gateway.resources.clone();

    let name =
        |namespace: &str, name: &str| wire::ServiceName { namespace: namespace.to_owned(), name: name.to_owned() };
    let bad = |service: wire::ServiceName, ports: usize| wire::Entry {
        service: Some(service),
        ports: (0..ports)
            .map(|port| wire::Port {
                port: u32::try_from(port + 1).unwrap(),
                protocol: wire::Protocol::Tcp.into(),
                ..wire::Port::default()
            })
            .collect(),
        ..wire::Entry::default()
    };
    let begin = |count: u32| body(Body::Begin(wire::SnapshotBegin { epoch: 9, version: 1, count }));
    let entries = |entries: Vec<wire::Entry>| body(Body::Entries(wire::Entries { entries }));
    let mut older = snapshot(&[], 4);
    older.remove(1);
    for (what, script, reason) in [
        ("a million services", vec![begin(1_000_000)], "InvalidCatalogue"),
        (
            "a giant message",
            vec![begin(1), entries(vec![bad(name("shop", &"x".repeat(4 << 20)), 1)])],
            "MessageTooLarge",
        ),
        ("a giant name", vec![begin(1), entries(vec![bad(name("shop", &"x".repeat(300)), 1)])], "InvalidCatalogue"),
        ("many ports", vec![begin(1), entries(vec![bad(name("shop", "x"), 65)])], "InvalidCatalogue"),
        ("a name with escapes", vec![begin(1), entries(vec![bad(name("shop", "a\u{1b}[2J"), 1)])], "InvalidCatalogue"),
        ("nothing", vec![wire::CatalogueMessage { body: None }], "InvalidCatalogue"),
        ("an older version", older, "OlderVersion"),
    ] {
        play(&east, "west", script).await;
        eventually(what, async || east.admin("/peers?cluster=west").await["reason"] == reason).await;
        gateway.watch(Duration::from_millis(100), |all| assert_eq!(*all, before, "{what}")).await;
        eventually("the status", async || {
            east.state("status/links/west.yaml").is_some_and(|text| text.contains(&format!("reason: {reason}")))
        })
        .await;
        assert!(!east.state("status/links/west.yaml").unwrap().contains('\u{1b}'));
    }
    // All that cost west alone.
    play(&east, "north", snapshot(&["mail"], 1)).await;
    gateway.until("another peer's catalogue", |all| all.contains_key("capacity north/shop/mail")).await;
    assert_eq!(east.admin("/peers?cluster=west").await["reason"], "OlderVersion");
    play(&east, "west", snapshot(&["web"], 6)).await;
    gateway.until("a good catalogue to count again", |all| !all.contains_key("capacity west/shop/api")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_is_told_to_the_right_peer_only() {
    let (east, west) = Site::pair().await;
    east.write("web.yaml", &service("web", &[("10.0.0.1", true)], true));
    eventually("the export", async || {
        east.admin("/catalogue").await["entries"].as_array().is_some_and(|all| all.len() == 1)
    })
    .await;
    let subscribe = async |peer: &str, claimed: &str| {
        let pipe = Mutex::new(Some(east.pipe(peer, Role::Publisher).await.unwrap()));
        let connector = tower::service_fn(move |_: http::Uri| {
            let pipe = pipe.lock().unwrap().take().map(TokioIo::new);
            std::future::ready(pipe.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)))
        });
        let channel = Endpoint::from_static("http://east").connect_with_connector(connector).await.ok()?;
        let (sender, stream) = mpsc::channel(4);
        let hello = linkspan_proto::exchange::SubscriberMessage::Hello {
            cluster: cluster(claimed),
            version: VERSION,
            known: None,
        };
        sender.send(hello.into()).await.unwrap();
        let mut answers = ExchangeClient::new(channel).subscribe(ReceiverStream::new(stream)).await.ok()?.into_inner();
        let first = tokio::time::timeout(Duration::from_secs(5), answers.message()).await.expect("an answer in time");
        first.ok()?
    };
    assert!(subscribe("west", "west").await.is_some());
    assert!(subscribe("west", "north").await.is_none(), "who the link says it is not gets nothing");
    assert!(subscribe("stranger", "stranger").await.is_none());
    drop(west);

    // Without a preamble, and with a wrong one, the connection is closed and nothing else happens.
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![b'x'; 5000], b"{\"peer\":\"west\"}\n".to_vec()] {
        let mut stream = tokio::net::UnixStream::connect(east.dir().join("state/exchange.sock")).await.unwrap();
        stream.write_all(&bytes).await.ok();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(7), stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok() && answer.is_empty());
    }
    let _: Option<Infallible> = None;
    assert!(subscribe("west", "west").await.is_some());
}
