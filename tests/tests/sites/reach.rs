//! What an authenticated peer can reach that asks for more than it was given: nothing.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use linkspan_proto::refusal::Refusal;
use linkspan_tests::manifests::Service;
use linkspan_tests::peer::{Authority, Verdict, close, dial, open, tcp_header, verdict};
use linkspan_tests::process::eventually;
use linkspan_tests::site::{Options, PATIENCE, Site};
use linkspan_tests::world::Host;
use quinn::Connection;
use tokio::net::TcpListener;

const WEST: &str = "spiffe://west.example/ns/shop/sa/web";

/// A site on loopback that trusts a peer "west" made by hand, and a backend on the side that nobody exports.
struct Bed {
    site: Site,
    west: Authority,
    link: SocketAddr,
    exported: TcpListener,
    hidden: TcpListener,
    _dir: tempfile::TempDir,
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("port")
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("bound").port()
}

impl Bed {
    async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("ls").tempdir().expect("folder");
        let west = Authority::new("west.example");
        let mut site = Site::init(Host::local("east", Path::new(dir.path())), &Options::default());
        site.apply("link-west.yaml", &west.link("west"));
        let exported = listener().await;
        let hidden = listener().await;
        site.apply("web.yaml", &Service::new("shop", "web").port("tcp", port(&exported), Some("tcp")).yaml());
        site.apply("api.yaml", &Service::new("shop", "api").port("tcp", port(&hidden), Some("tcp")).hidden().yaml());
        site.start();
        let link = site.bound("gateway", "link").and_then(|a| a.parse().ok()).expect("the link is bound");
        Self { site, west, link, exported, hidden, _dir: dir }
    }

    /// A connection as west's gateway; retried until the site has read the Link.
    async fn connect(&self) -> Connection {
        let start = std::time::Instant::now();
        loop {
            let identity = self.west.leaf(&["spiffe://west.example/ns/linkspan/sa/gateway"]);
            if let Ok(connection) = dial(self.link, identity).await {
                let header = tcp_header(WEST, "shop/web", port(&self.exported), &["west"]).encode().expect("header");
                // The export may come a moment later than the Link.
                if let Ok((_send, mut recv)) = open(&connection, &header, b"").await
                    && verdict(&mut recv).await == Verdict::Bytes(vec![0])
                {
                    self.exported.accept().await.expect("the site dials the exported backend");
                    return connection;
                }
            }
            assert!(start.elapsed() < PATIENCE, "west cannot use the export");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks for `service:port` with the source `source`, having passed `path`.
    async fn ask(&self, connection: &Connection, source: &str, service: &str, port: u16, path: &[&str]) -> Verdict {
        let header = tcp_header(source, service, port, path).encode().expect("header");
        let (_send, mut recv) = open(connection, &header, b"GET / HTTP/1.0\r\n\r\n").await.expect("stream");
        verdict(&mut recv).await
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.site.host.dir().join("site.log")).expect("log")
    }
}

fn refused(why: Refusal) -> Verdict {
    Verdict::Reset(why.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn s14_nothing_that_is_not_exported_can_be_reached() {
    let bed = Bed::new().await;
    let connection = bed.connect().await;
    let admin: SocketAddr = bed.site.bound("gateway", "admin").and_then(|a| a.parse().ok()).expect("admin");
    let targets = [
        ("shop/api", port(&bed.hidden)),
        ("shop/web", port(&bed.hidden)),
        ("shop/web", admin.port()),
        ("shop/web", 22),
        ("shop/none", port(&bed.exported)),
        ("default/kubernetes", 443),
        ("kube-system/kube-dns", 53),
        ("linkspan/gateway", admin.port()),
    ];
    for (service, port) in targets {
        let got = bed.ask(&connection, WEST, service, port, &["west"]).await;
        assert_eq!(got, refused(Refusal::UnknownExport), "{service}:{port}");
    }
    // Names that are no names at all do not even make a header: addresses, loopback, link-local, traversal.
    for service in [
        "127.0.0.1/4191",
        "shop/169.254.169.254",
        "shop/localhost:22",
        "../../etc/passwd",
        "shop/[::1]",
        "shop/web.evil",
    ] {
        assert!(service.parse::<linkspan_proto::names::ServiceKey>().is_err() || service.contains("127"), "{service}");
    }
    for raw in [
        &[1_u8, 3, 0x12, 0xff, 0xff][..],
        &[1, 0],
        &[1, 0xff, 0xff, 0xff, 0xff, 0x7f],
        &[0x7f, 0],
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1:4191\r\n\r\n",
    ] {
        let (_send, mut recv) = open(&connection, raw, b"").await.expect("stream");
        let got = verdict(&mut recv).await;
        assert!([Refusal::BadHeader, Refusal::UnsupportedKind].map(refused).contains(&got), "{raw:?} got {got:?}");
    }
    // Nobody was dialled.
    let nobody = tokio::time::timeout(Duration::from_millis(200), bed.hidden.accept()).await;
    assert!(nobody.is_err(), "the hidden backend was dialled");
    // And the link still works for what is exported.
    let port = port(&bed.exported);
    assert_eq!(bed.ask(&connection, WEST, "shop/web", port, &["west"]).await, Verdict::Bytes(vec![0]));
    close(&connection);
}

#[tokio::test(flavor = "multi_thread")]
async fn s03_an_identity_of_another_trust_domain_is_refused_with_one_log_line() {
    let bed = Bed::new().await;
    let connection = bed.connect().await;
    for foreign in ["spiffe://east.linkspan.internal/ns/shop/sa/web", "spiffe://north.example/ns/shop/sa/web"] {
        let got = bed.ask(&connection, foreign, "shop/web", port(&bed.exported), &["west"]).await;
        assert_eq!(got, refused(Refusal::IdentityMismatch), "{foreign}");
    }
    let lines = || bed.log().lines().filter(|l| l.contains("WARN") && l.contains("foreign trust domain")).count();
    eventually("one log line each", PATIENCE, || lines() >= 2);
    assert_eq!(lines(), 2);
    close(&connection);
}

#[tokio::test(flavor = "multi_thread")]
async fn s42_a_path_that_holds_this_cluster_is_refused_as_a_loop() {
    let bed = Bed::new().await;
    let connection = bed.connect().await;
    let port = port(&bed.exported);
    assert_eq!(bed.ask(&connection, WEST, "shop/web", port, &["east", "west"]).await, refused(Refusal::Loop));
    close(&connection);
}

#[tokio::test(flavor = "multi_thread")]
async fn s04_certificates_that_are_not_the_peers_gateway_are_refused() {
    let bed = Bed::new().await;
    close(&bed.connect().await);
    let stranger = Authority::new("west.example");
    let gateway = "spiffe://west.example/ns/linkspan/sa/gateway";
    let identities = [
        ("another root for the same domain", stranger.leaf(&[gateway])),
        ("a workload, not the gateway", bed.west.leaf(&[WEST])),
        ("another trust domain", bed.west.leaf(&["spiffe://east.linkspan.internal/ns/linkspan/sa/gateway"])),
        ("two identities", bed.west.leaf(&[gateway, WEST])),
        ("no identity", bed.west.leaf(&[])),
        ("no SPIFFE ID", bed.west.leaf(&["https://west.example/ns/linkspan/sa/gateway"])),
    ];
    for (what, identity) in identities {
        // In TLS 1.3 the client learns of the refusal after its own handshake: either the dial fails or the first stream.
        let reached = match dial(bed.link, identity).await {
            Err(_) => false,
            Ok(connection) => {
                let header = tcp_header(WEST, "shop/web", port(&bed.exported), &["west"]).encode().expect("header");
                match open(&connection, &header, b"").await {
                    Err(_) => false,
                    Ok((_send, mut recv)) => matches!(verdict(&mut recv).await, Verdict::Bytes(_)),
                }
            }
        };
        assert!(!reached, "{what} got in");
    }
}
