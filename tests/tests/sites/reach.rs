//! What an authenticated peer can reach that asks for more than it was given: nothing.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use linkspan_proto::refusal::Refusal;
use linkspan_tests::manifests::Service;
use linkspan_tests::peer::{Authority, Verdict, close, dial, open, tcp_header, verdict};
use linkspan_tests::process::eventually;
use linkspan_tests::site::{Options, PATIENCE, Site};
use linkspan_tests::wire::Message;
use linkspan_tests::world::{Host, Network, own_network};
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
async fn s_14_nothing_that_is_not_exported_can_be_reached() {
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

/// Places that a peer must not reach, in every spelling that some resolver takes for an address, and what it is told:
/// what is no name at all makes no header, what could be a name is the name of nothing that is exported.
const PLACES: [(&str, Refusal); 26] = [
    ("127.0.0.1", Refusal::BadHeader),
    ("127.1", Refusal::BadHeader),
    ("0.0.0.0", Refusal::BadHeader),
    ("169.254.169.254", Refusal::BadHeader),
    ("0177.0.0.1", Refusal::BadHeader),
    ("0x7f.0.0.1", Refusal::BadHeader),
    ("::1", Refusal::BadHeader),
    ("[::1]", Refusal::BadHeader),
    ("::", Refusal::BadHeader),
    ("::ffff:127.0.0.1", Refusal::BadHeader),
    ("::ffff:a9fe:a9fe", Refusal::BadHeader),
    ("fe80::1%lo", Refusal::BadHeader),
    ("localhost.", Refusal::BadHeader),
    ("LOCALHOST", Refusal::BadHeader),
    ("localhost:22", Refusal::BadHeader),
    ("web.shop.svc.cluster.local", Refusal::BadHeader),
    ("..", Refusal::BadHeader),
    ("../../etc/passwd", Refusal::BadHeader),
    ("web\0", Refusal::BadHeader),
    ("", Refusal::BadHeader),
    ("0", Refusal::UnknownExport),
    ("2130706433", Refusal::UnknownExport),
    ("017700000001", Refusal::UnknownExport),
    ("0x7f000001", Refusal::UnknownExport),
    ("2852039166", Refusal::UnknownExport),
    ("localhost", Refusal::UnknownExport),
];

/// A header that nothing of ours wrote: this service, port and endpoint, as west's workload, over west's link.
fn raw(namespace: &str, name: &str, port: u64, endpoint: &str) -> Message {
    Message::new()
        .bytes(1, Message::new().bytes(1, namespace).bytes(2, name))
        .number(2, port)
        .bytes(3, endpoint)
        .bytes(4, Message::new().bytes(1, WEST).number(2, 1))
        .bytes(7, "west")
}

/// Connections that were begun in this network namespace so far, in vain or not.
fn begun() -> u64 {
    let text = std::fs::read_to_string("/proc/net/snmp").expect("counters of the kernel");
    let mut rows = text.lines().filter(|line| line.starts_with("Tcp:")).map(|line| line.split_whitespace());
    let (names, values) = (rows.next().expect("names"), rows.next().expect("values"));
    let (_, value) = names.zip(values).find(|(name, _)| *name == "ActiveOpens").expect("counted");
    value.parse().expect("a number")
}

/// What an authenticated peer gets for raw headers: every place, port and spelling is refused with the right code, and the
/// kernel's own counter says that no connection was begun to anywhere.
#[test]
fn s_14_s_15_headers_written_by_hand_reach_no_address() {
    let network = own_network("sites::reach::s_14_s_15_headers_written_by_hand_reach_no_address");
    if network == Network::Done {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    runtime.block_on(no_address(network == Network::Own));
}

async fn no_address(alone: bool) {
    let bed = Bed::new().await;
    let connection = bed.connect().await;
    let admin: SocketAddr = bed.site.bound("gateway", "admin").and_then(|a| a.parse().ok()).expect("admin");
    let (web, hidden, admin) = (port(&bed.exported), port(&bed.hidden), admin.port());
    let before = begun();
    let mut wrong = Vec::new();
    let mut expect = async |what: String, header: Vec<u8>, refusals: &[Refusal]| {
        let (_send, mut recv) = open(&connection, &header, b"GET / HTTP/1.0\r\n\r\n").await.expect("stream");
        let got = verdict(&mut recv).await;
        if !refusals.iter().any(|refusal| got == refused(*refusal)) {
            wrong.push(format!("{what}: {got:?}, not {refusals:?}"));
        }
    };
    for (place, refusal) in PLACES {
        for port in [hidden, admin, web, 22] {
            for kind in [1, 2] {
                expect(
                    format!("kind {kind} service shop/{place:?}:{port}"),
                    raw("shop", place, port.into(), "").header(kind),
                    &[refusal],
                )
                .await;
            }
            expect(format!("namespace {place:?}:{port}"), raw(place, "web", port.into(), "").header(1), &[refusal])
                .await;
            expect(format!("udp {place:?}:{port}"), raw("shop", place, port.into(), "").header(3), &[refusal]).await;
        }
        if !place.is_empty() {
            // As the one endpoint of a service that is exported.
            expect(format!("endpoint {place:?}"), raw("shop", "web", web.into(), place).header(1), &[refusal]).await;
        }
    }
    // A port of TCP is none of UDP.
    expect("udp".to_owned(), raw("shop", "web", web.into(), "").header(3), &[Refusal::UnknownExport]).await;
    // Ports: another one, the admin port, none, and numbers that would come out right if they were cut to 16 bits.
    for (port, refusal) in [
        (u64::from(hidden), Refusal::UnknownExport),
        (u64::from(admin), Refusal::UnknownExport),
        (22, Refusal::UnknownExport),
        (0, Refusal::BadHeader),
        (65_536 + u64::from(web), Refusal::BadHeader),
        ((1 << 32) + u64::from(web), Refusal::BadHeader),
        (u64::MAX, Refusal::BadHeader),
    ] {
        expect(format!("port {port}"), raw("shop", "web", port, "").header(1), &[refusal]).await;
    }
    expect("another service".to_owned(), raw("shop", "api", hidden.into(), "").header(1), &[Refusal::UnknownExport])
        .await;
    // As in protobuf the last of two services counts, so the first one cannot smuggle the second past the check.
    let twice = raw("shop", "web", web.into(), "").bytes(1, Message::new().bytes(1, "shop").bytes(2, "api"));
    expect("two services".to_owned(), twice.number(2, hidden.into()).header(1), &[Refusal::UnknownExport]).await;
    // A target in a field that a later version might have: ignored, and without a service there is none.
    let later = Message::new().bytes(4, Message::new().bytes(1, WEST)).bytes(7, "west").number(2, admin.into());
    let later = later.bytes(20, format!("127.0.0.1:{admin}"));
    expect("an address in an unknown field".to_owned(), later.header(1), &[Refusal::BadHeader]).await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let nobody = tokio::time::timeout(Duration::from_millis(200), bed.hidden.accept()).await;
    assert!(nobody.is_err(), "the hidden backend was dialled");
    if alone {
        assert_eq!(begun() - before, 0, "connections were begun, to whatever address");
    }
    // The client's address is a figure for PROXY headers and logs: the exported backend is what is dialled, and once.
    let client = Message::new().bytes(1, [127, 0, 0, 1]).number(2, admin.into());
    let honest = raw("shop", "web", web.into(), "").bytes(9, client).header(1);
    let (_send, mut recv) = open(&connection, &honest, b"hello").await.expect("stream");
    assert_eq!(verdict(&mut recv).await, Verdict::Bytes(vec![0]));
    tokio::time::timeout(PATIENCE, bed.exported.accept()).await.expect("in time").expect("dialled");
    if alone {
        assert_eq!(begun() - before, 1, "what is exported was dialled once");
    } else {
        eprintln!("SKIPPED in part: without root the kernel's counter holds other programs' connections too");
    }
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
