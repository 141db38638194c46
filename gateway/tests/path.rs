//! The whole path: gateways of two and three clusters in one process, real sockets, real links.

#![expect(clippy::disallowed_methods, reason = "tests spawn plainly: who awaits the handle sees the panic")]

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use linkspan_gateway::outcome::{Direction, Entry, Outcome};
use linkspan_proto::identity::{Assurance, Certificate, Source};
use linkspan_proto::probe;
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::{StreamHeader, StreamKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[path = "path/backends.rs"]
mod backends;
#[path = "path/datagrams.rs"]
mod datagrams;
#[path = "path/world.rs"]
mod world;

use backends::{Backend, nobody};
use world::{MTLS_NAME, PORT, Site, connect, patiently, rule, until};

/// East and west, linked.
async fn pair() -> (Site, Site) {
    let (east, west) = (Site::start("east"), Site::start("west"));
    east.link(&west).await;
    (east, west)
}

async fn read_text(stream: &mut TcpStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.expect("read");
    String::from_utf8(bytes).expect("text")
}

/// How a connection ends that nobody serves.
async fn ends_with(address: SocketAddr) -> Result<usize, ErrorKind> {
    let mut stream = connect(address).await;
    // The reset may come before the write.
    drop(stream.write_all(b"hello").await);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.map_err(|error| error.kind())
}

#[tokio::test]
async fn bytes_cross_both_ways_and_each_direction_ends_by_itself() {
    patiently(async {
        let (east, west) = pair().await;
        let backend = Backend::collector().await;
        west.export("echo", &[backend.address], |_| {});
        let address = east.mirror("echo", None, &[&[("west", 1)]]).await;
        let sent: Vec<u8> = (0..5_000_000_u32).map(|index| (index % 253) as u8).collect();
        let mut client = connect(address).await;
        client.write_all(&sent).await.expect("write");
        client.shutdown().await.expect("fin");
        let mut back = Vec::new();
        client.read_to_end(&mut back).await.expect("whole");
        assert!(back == sent);

        let (out, outcome) = east.seen.ends(Direction::Outbound, 1).await.remove(0);
        assert_eq!(outcome, Outcome::Ok);
        assert_eq!((out.received, out.sent, out.attempts), (5_000_000, 5_000_000, 1));
        assert_eq!(out.peer, Some(west.cluster.clone()));
        assert!(out.first_byte.is_some());
        let (into, outcome) = west.seen.ends(Direction::Inbound, 1).await.remove(0);
        assert_eq!(outcome, Outcome::Ok);
        assert_eq!((into.received, into.sent), (5_000_000, 5_000_000));
        assert_eq!(into.backend, Some(backend.address));
        assert_eq!(into.traceparent, out.traceparent);
        assert!(east.seen.is_balanced() && west.seen.is_balanced());
    })
    .await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_before_its_client_speaks() {
    patiently(async {
        let (east, west) = pair().await;
        let backend = Backend::echo("220 ready").await;
        west.export("echo", &[backend.address], |_| {});
        // Declared or not. How long each waits is measured where time is paused, in the tests of `detect`.
        for app_protocol in [Some("smtp"), None] {
            let address = east.mirror("echo", app_protocol, &[&[("west", 1)]]).await;
            let mut client = connect(address).await;
            assert_eq!(read_text(&mut client, 9).await, "220 ready");
            client.write_all(b"EHLO").await.expect("write");
            assert_eq!(read_text(&mut client, 4).await, "EHLO");
        }
    })
    .await;
}

#[tokio::test]
async fn a_hundred_clients_at_once_do_not_mix() {
    patiently(async {
        let (east, west) = pair().await;
        let backends = [Backend::echo("a").await, Backend::echo("b").await];
        west.export("echo", &[backends[0].address, backends[1].address], |_| {});
        let address = east.mirror("echo", Some("tcp"), &[&[("west", 1)]]).await;
        let client = |index: usize| async move {
            let mut stream = connect(address).await;
            read_text(&mut stream, 1).await;
            for round in 0..20 {
                let message = format!("client {index} round {round}");
                stream.write_all(message.as_bytes()).await.expect("write");
                assert_eq!(read_text(&mut stream, message.len()).await, message);
            }
        };
        let clients: Vec<_> = (0..100).map(|index| tokio::spawn(client(index))).collect();
        for client in clients {
            client.await.expect("own bytes only");
        }
        assert!(backends.iter().all(|backend| backend.connections() >= 25));
        east.seen.ends(Direction::Outbound, 100).await;
        west.seen.ends(Direction::Inbound, 100).await;
        assert!(east.seen.is_balanced() && west.seen.is_balanced());
    })
    .await;
}

#[tokio::test]
async fn a_refused_connection_is_a_reset_and_says_why() {
    patiently(async {
        let (east, west) = pair().await;
        west.export("dead", &[nobody().await, nobody().await], |_| {});
        west.export("empty", &[], |_| {});
        let denied = Backend::echo("").await;
        west.export("denied", &[denied.address], |export| export.rules = Some(Vec::new()));
        for (index, (name, why)) in [
            ("dead", Refusal::ConnectRefused),
            ("empty", Refusal::NoBackend),
            ("denied", Refusal::Denied),
            ("unknown", Refusal::UnknownExport),
        ]
        .into_iter()
        .enumerate()
        {
            let address = east.mirror(name, Some("tcp"), &[&[("west", 1)]]).await;
            assert_eq!(ends_with(address).await, Err(ErrorKind::ConnectionReset), "{name}");
            let ends = east.seen.ends(Direction::Outbound, index + 1).await;
            assert_eq!(ends[index].1, Outcome::Refused(why), "{name}");
            let ends = west.seen.ends(Direction::Inbound, index + 1).await;
            assert_eq!(ends[index].1, Outcome::Refused(why), "{name}");
            assert!(ends[index].0.note.is_some());
        }
        assert_eq!(denied.connections(), 0, "nothing is dialled before all checks have passed");
    })
    .await;
}

#[tokio::test]
async fn nothing_left_to_serve_is_said_in_words() {
    patiently(async {
        let (east, _west) = pair().await;
        let address = east.mirror("echo", Some("tcp"), &[&[("west", 0), ("north", 1)]]).await;
        assert_eq!(ends_with(address).await, Err(ErrorKind::ConnectionReset));
        let (entry, outcome) = east.seen.ends(Direction::Outbound, 1).await.remove(0);
        assert_eq!(outcome, Outcome::NoTarget);
        assert_eq!(
            entry.note.as_deref(),
            Some("route: no cluster can serve shop/echo port 7: north: link down; west: weight 0")
        );
    })
    .await;
}

/// What the peer's gateway says to a hand-written header, and what an authenticated but hostile peer may try.
async fn answer(from: &Site, to: &Site, header: StreamHeader) -> Option<Refusal> {
    let (mut send, mut recv) = from.links.open(0, &to.cluster).await.expect("stream");
    send.write(header.encode().expect("header")).await.expect("sent");
    match recv.read(1).await {
        Ok(_) => None,
        Err(error) => Some(error.refusal().expect("a reason")),
    }
}

fn header(service: &str, port: u16) -> StreamHeader {
    StreamHeader {
        service: Some(service.parse().expect("service")),
        port,
        source: Some(Source::new(
            "spiffe://east.linkspan.internal/ns/shop/sa/cart".parse().expect("identity"),
            Assurance::Network,
        )),
        path: vec!["east".parse().expect("cluster")],
        ..StreamHeader::new(StreamKind::Tcp)
    }
}

#[tokio::test]
async fn only_what_is_exported_is_reachable() {
    patiently(async {
        let (east, west) = pair().await;
        let backend = Backend::echo("hi").await;
        let secret = Backend::echo("secret").await;
        west.export("echo", &[backend.address], |_| {});
        assert_eq!(answer(&east, &west, header("shop/echo", PORT)).await, None);
        let admin = secret.address.port();
        for (service, port) in
            [("shop/echo", admin), ("shop/echo", PORT + 1), ("shop/secret", PORT), ("default/kubernetes", 443)]
        {
            let refusal = answer(&east, &west, header(service, port)).await;
            assert_eq!(refusal, Some(Refusal::UnknownExport), "{service} {port}");
        }
        // The client's address is what the peer says it is; nobody dials it.
        let lured = StreamHeader { client: Some(secret.address), ..header("shop/none", PORT) };
        assert_eq!(answer(&east, &west, lured).await, Some(Refusal::UnknownExport));
        let named = StreamHeader { endpoint: Some("echo-0".parse().expect("name")), ..header("shop/echo", PORT) };
        assert_eq!(answer(&east, &west, named).await, Some(Refusal::UnknownExport));
        assert_eq!(secret.connections(), 0);
        assert_eq!(backend.connections(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_peer_speaks_for_its_own_domain_alone() {
    patiently(async {
        let (east, west) = pair().await;
        let backend = Backend::echo("hi").await;
        west.export("echo", &[backend.address], |_| {});
        for identity in
            ["spiffe://west.linkspan.internal/ns/shop/sa/cart", "spiffe://north.linkspan.internal/ns/a/sa/b"]
        {
            let source = Source::new(identity.parse().expect("identity"), Assurance::Mtls);
            let header = StreamHeader { source: Some(source), ..header("shop/echo", PORT) };
            assert_eq!(answer(&east, &west, header).await, Some(Refusal::IdentityMismatch));
        }
        assert_eq!(backend.connections(), 0);
        let (entry, outcome) = west.seen.ends(Direction::Inbound, 2).await.remove(1);
        assert_eq!(outcome, Outcome::Refused(Refusal::IdentityMismatch));
        assert_eq!(entry.peer, Some(east.cluster.clone()));
    })
    .await;
}

#[tokio::test]
async fn a_loop_is_refused_at_the_first_repeat() {
    patiently(async {
        let (east, west) = pair().await;
        let backend = Backend::echo("hi").await;
        west.export("echo", &[backend.address], |_| {});
        let path = vec![west.cluster.clone(), east.cluster.clone()];
        let looped = StreamHeader { path, ..header("shop/echo", PORT) };
        assert_eq!(answer(&east, &west, looped).await, Some(Refusal::Loop));
        assert_eq!(backend.connections(), 0);
    })
    .await;
}

#[tokio::test]
async fn policy_is_decided_by_who_calls() {
    patiently(async {
        let (east, west) = pair().await;
        let backend = Backend::echo("hi").await;
        let cart = "spiffe://east.linkspan.internal/ns/shop/sa/cart";
        west.export("echo", &[backend.address], |export| {
            export.rules = Some(vec![rule(|rule| {
                rule.identities = vec![cart.parse().expect("identity")];
                rule.minimum_assurance = Assurance::Network;
            })]);
        });
        let address = east.mirror("echo", Some("tcp"), &[&[("west", 1)]]).await;
        // Nobody knows whose address it is.
        assert_eq!(ends_with(address).await, Err(ErrorKind::ConnectionReset));
        east.workload("other");
        assert_eq!(ends_with(address).await, Err(ErrorKind::ConnectionReset));
        east.workload("cart");
        let mut client = connect(address).await;
        assert_eq!(read_text(&mut client, 2).await, "hi");
        drop(client);
        let ends = east.seen.ends(Direction::Outbound, 3).await;
        assert_eq!(ends[2].0.source.as_ref().expect("source").identity.as_str(), cart);
        assert_eq!(backend.connections(), 1);
    })
    .await;
}

/// The TLVs of a PROXY header that begins `bytes`, and its length.
fn proxy_header(bytes: &[u8]) -> (BTreeMap<u8, String>, usize) {
    assert_eq!((bytes[12], bytes[13]), (0x21, 0x11));
    proxy_tlvs(bytes, 12)
}

/// The same where the client's address is not said.
fn proxy_header_of_unknown_client(bytes: &[u8]) -> (BTreeMap<u8, String>, usize) {
    assert_eq!((bytes[12], bytes[13]), (0x21, 0x00));
    proxy_tlvs(bytes, 0)
}

fn proxy_tlvs(bytes: &[u8], addresses: usize) -> (BTreeMap<u8, String>, usize) {
    assert_eq!(&bytes[..12], b"\r\n\r\n\0\r\nQUIT\n");
    let end = 16 + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let mut rest = &bytes[16 + addresses..end];
    let mut tlvs = BTreeMap::new();
    while let [kind, high, low, tail @ ..] = rest {
        let (value, next) = tail.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        tlvs.insert(*kind, String::from_utf8_lossy(value).into_owned());
        rest = next;
    }
    (tlvs, end)
}

#[tokio::test]
async fn the_backend_is_told_who_calls_from_near_and_far() {
    patiently(async {
        let (east, west) = pair().await;
        let (far, near) = (Backend::collector().await, Backend::collector().await);
        west.export("echo", &[far.address], |export| export.proxy_protocol = true);
        east.export("echo", &[near.address], |export| export.proxy_protocol = true);
        east.workload("cart");
        for target in ["west", "east"] {
            let address = east.mirror("echo", Some("tcp"), &[&[(target, 1)]]).await;
            let mut client = connect(address).await;
            client.write_all(b"payload").await.expect("write");
            client.shutdown().await.expect("fin");
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.expect("whole");
            let (tlvs, end) = proxy_header(&got);
            assert_eq!(&got[end..], b"payload", "{target}");
            assert_eq!(tlvs[&0x02], "echo.shop.svc.cluster.local");
            assert_eq!(tlvs[&0xE0], "spiffe://east.linkspan.internal/ns/shop/sa/cart");
            assert_eq!(tlvs[&0xE1], "east");
            assert_eq!(tlvs[&0xE2], "network");
            let from = SocketAddr::from(([got[16], got[17], got[18], got[19]], u16::from_be_bytes([got[24], got[25]])));
            assert_eq!(from, client.local_addr().expect("address"));
        }
    })
    .await;
}

#[tokio::test]
async fn http_to_a_backend_that_asks_for_the_header_is_told_as_well() {
    patiently(async {
        let (east, west) = pair().await;
        // Answers each request with what the connection began with.
        let backend = Backend::start(|mut stream| async move {
            let mut got = Vec::new();
            while stream.read_buf(&mut got).await.is_ok_and(|count| count > 0) {
                if !got.ends_with(b"\r\n\r\n") {
                    continue;
                }
                let (tlvs, end) = proxy_header_of_unknown_client(&got);
                assert!(got[end..].starts_with(b"GET "));
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", tlvs[&0xE0].len(), tlvs[&0xE0]);
                stream.write_all(answer.as_bytes()).await.expect("write");
                // The next request on this connection comes without a header.
                got.truncate(end);
            }
        })
        .await;
        west.export("echo", &[backend.address], |export| export.proxy_protocol = true);
        let address = east.mirror("echo", None, &[&[("west", 1)]]).await;
        for account in ["cart", "robot"] {
            east.workload(account);
            let mut client = connect(address).await;
            for _ in 0..2 {
                client.write_all(b"GET / HTTP/1.1\r\nhost: echo\r\n\r\n").await.expect("write");
                let mut answer = Vec::new();
                let identity = format!("spiffe://east.linkspan.internal/ns/shop/sa/{account}");
                while !answer.ends_with(identity.as_bytes()) {
                    assert!(client.read_buf(&mut answer).await.expect("read") > 0, "{}", answer.escape_ascii());
                }
            }
        }
        assert_eq!(backend.connections(), 2, "a connection is one caller's alone, and is used again by it");
    })
    .await;
}

#[tokio::test]
async fn a_client_with_a_certificate_is_known_by_it() {
    patiently(async {
        let (east, west) = pair().await;
        let backend = Backend::collector().await;
        west.export("echo", &[backend.address], |export| {
            export.proxy_protocol = true;
            export.rules = Some(vec![rule(|rule| rule.minimum_assurance = Assurance::Mtls)]);
        });
        let plain = east.mirror("echo", Some("tcp"), &[&[("west", 1)]]).await;
        east.workload("cart");
        assert_eq!(ends_with(plain).await, Err(ErrorKind::ConnectionReset), "an address is not enough");

        let (mut client, shown) = with_certificate(&east, "robot").await;
        client.write_all(b"payload").await.expect("write");
        client.shutdown().await.expect("fin");
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.expect("whole");
        let (tlvs, end) = proxy_header(&got);
        assert_eq!(&got[end..], b"payload");
        assert_eq!(tlvs[&0xE0], "spiffe://east.linkspan.internal/ns/shop/sa/robot");
        assert_eq!(tlvs[&0xE2], "mtls");
        let certificate = got[..end].windows(shown.len()).position(|window| window == shown.as_ref());
        let at = certificate.expect("the certificate, whole");
        // SSL TLV: flags, result 0, TLS version; then CLIENT_CERT and its length.
        let expected =
            [&b"\x07\0\0\0\0\x21\0\x07TLSv1.3\x28"[..], &u16::try_from(shown.len()).expect("small").to_be_bytes()];
        assert!(got[..at].ends_with(&expected.concat()), "{}", got[..at].escape_ascii());
        assert!(tlvs.contains_key(&0x20));
    })
    .await;
}

/// A connection to the mTLS port of `site` for [`MTLS_NAME`], as this workload; and the certificate it shows.
async fn with_certificate(
    site: &Site,
    account: &str,
) -> (tokio_rustls::client::TlsStream<TcpStream>, rustls::pki_types::CertificateDer<'static>) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(site.root.der().clone()).expect("root");
    let (chain, key) = site.workload_certificate(account);
    let shown = chain[0].clone();
    let config = rustls::ClientConfig::builder_with_provider(linkspan_gateway::link::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .expect("certificate");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = MTLS_NAME.try_into().expect("name");
    (connector.connect(name, connect(site.mtls).await).await.expect("handshake"), shown)
}

/// RFC 9440 `client-cert`, Envoy's `Hash`; from the peer's cluster and from the backend's own.
#[tokio::test]
async fn an_http_backend_is_shown_the_certificate() {
    use base64::Engine as _;
    use sha2::Digest as _;

    patiently(async {
        let (east, west) = pair().await;
        // Answers with the request's own head.
        let mirror = || {
            Backend::start(|mut stream| async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    assert!(stream.read_buf(&mut head).await.expect("a request") > 0);
                }
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", head.len());
                stream.write_all(&[answer.as_bytes(), &head].concat()).await.expect("write");
            })
        };
        let (far, near) = (mirror().await, mirror().await);
        west.export("echo", &[far.address], |_| {});
        east.export("echo", &[near.address], |_| {});
        east.workload("cart");
        for target in ["west", "east"] {
            let plain = east.mirror("echo", Some("http"), &[&[(target, 1)]]).await;
            let request = "GET / HTTP/1.1\r\nhost: echo\r\nclient-cert: :Zm9yZ2Vk:\r\nconnection: close\r\n\r\n";
            let (mut client, shown) = with_certificate(&east, "robot").await;
            client.write_all(request.as_bytes()).await.expect("write");
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("whole");
            let whole = base64::engine::general_purpose::STANDARD.encode(&shown);
            assert!(answer.contains(&format!("client-cert: :{whole}:\r\n")), "{target}: {answer}");
            assert_eq!(answer.matches("client-cert: ").count(), 2, "that, and XFCC: {answer}");
            let hash = format!(
                ";Hash={:x};URI=spiffe://east.linkspan.internal/ns/shop/sa/robot",
                sha2::Sha256::digest(&shown)
            );
            assert!(answer.contains(&hash), "{target}: {answer}");
            assert!(answer.contains("assurance=mtls"));

            let mut client = connect(plain).await;
            client.write_all(request.as_bytes()).await.expect("write");
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("whole");
            assert!(answer.contains("assurance=network") && !answer.contains("\r\nclient-cert:"), "{target}: {answer}");
            assert!(!answer.contains("Hash="), "{target}: {answer}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_certificate_of_another_caller_is_refused() {
    patiently(async {
        let (east, west) = pair().await;
        let backend = Backend::echo("hi").await;
        west.export("echo", &[backend.address], |_| {});
        let own = east.workload_certificate("cart").0.remove(0);
        let others = east.workload_certificate("robot").0.remove(0);
        for (der, expected) in [
            (own.as_ref(), None),
            (others.as_ref(), Some(Refusal::IdentityMismatch)),
            (east.root.der().as_ref(), Some(Refusal::IdentityMismatch)),
            (&b"no certificate"[..], Some(Refusal::IdentityMismatch)),
        ] {
            let mut header = header("shop/echo", PORT);
            let source = header.source.as_mut().expect("a caller");
            (source.assurance, source.certificate) = (Assurance::Mtls, Certificate::new(der));
            assert_eq!(answer(&east, &west, header).await, expected);
        }
        assert_eq!(backend.connections(), 1);
        let ends = west.seen.ends(Direction::Inbound, 3).await;
        let notes: Vec<_> = ends.iter().filter_map(|(entry, _)| entry.note.as_deref()).collect();
        assert!(
            notes.iter().any(|note| note.contains("names spiffe://east.linkspan.internal/ns/shop/sa/robot")),
            "{notes:?}"
        );
    })
    .await;
}

/// Backends that forward bytes hide from a gateway that it has seen them before. Such a loop grows until one of the
/// gateways holds the share of streams that a peer may have, and then falls.
#[tokio::test]
async fn a_loop_through_opaque_backends_ends_at_the_share_of_a_peer() {
    patiently(async {
        let (east, west) = (Site::with_places("east", 16), Site::with_places("west", 16));
        east.link(&west).await;
        let there = east.mirror("there", Some("tcp"), &[&[("west", 1)]]).await;
        let back = west.mirror("back", Some("tcp"), &[&[("east", 1)]]).await;
        let (to_back, to_there) = (Backend::forwarder(back).await, Backend::forwarder(there).await);
        west.export("there", &[to_back.address], |_| {});
        east.export("back", &[to_there.address], |_| {});

        assert_eq!(ends_with(there).await, Err(ErrorKind::ConnectionReset));
        // The client's own, and what each round added, up to half of the 16 places.
        let ends = west.seen.ends(Direction::Inbound, 9).await;
        assert_eq!(ends.iter().filter(|(_, outcome)| *outcome == Outcome::Refused(Refusal::Overloaded)).count(), 1);
        assert_eq!((to_back.connections(), to_there.connections()), (8, 8));
        until(|| (east.seen.is_balanced() && west.seen.is_balanced()).then_some(())).await;

        // All of it is over, and its places are free.
        let echo = Backend::echo("hi").await;
        west.export("echo", &[echo.address], |_| {});
        for _ in 0..8 {
            assert_eq!(answer(&east, &west, header("shop/echo", PORT)).await, None);
        }
    })
    .await;
}

/// Calls `count` times and counts which cluster answered.
async fn answers(address: SocketAddr, count: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        let mut client = connect(address).await;
        *answers.entry(read_text(&mut client, 5).await).or_insert(0) += 1;
    }
    answers
}

#[tokio::test]
async fn weights_hold_per_connection_over_three_clusters_and_change_at_once() {
    patiently(async {
        let (east, west, north) = (Site::start("east"), Site::start("west"), Site::start("north"));
        east.link(&west).await;
        east.link(&north).await;
        for (site, name) in [(&east, "east "), (&west, "west "), (&north, "north")] {
            let backend = Backend::echo(name).await;
            site.export("echo", &[backend.address], |_| {});
        }
        let address = east.mirror("echo", Some("tcp"), &[&[("east", 33), ("west", 33), ("north", 34)]]).await;
        let counts = answers(address, 300).await;
        assert!(counts.values().all(|count| (97..=104).contains(count)), "{counts:?}");

        east.mirror_at("echo", address, Some("tcp"), &[&[("east", 0), ("west", 90), ("north", 10)]]);
        let counts = answers(address, 200).await;
        assert!(!counts.contains_key("east "), "zero is zero, from the very next connection on: {counts:?}");
        assert!((178..=182).contains(&counts["west "]), "{counts:?}");
    })
    .await;
}

#[tokio::test]
async fn a_cluster_that_refuses_is_replaced_before_the_first_byte() {
    patiently(async {
        let (east, west, north) = (Site::start("east"), Site::start("west"), Site::start("north"));
        east.link(&west).await;
        east.link(&north).await;
        // West says that it has ready capacity, and all its endpoints are dead; north works.
        west.export("echo", &[nobody().await], |_| {});
        let backend = Backend::collector().await;
        north.export("echo", &[backend.address], |_| {});
        let address = east.mirror("echo", None, &[&[("west", 1)], &[("north", 1)]]).await;
        for round in 0..5 {
            let mut client = connect(address).await;
            client.write_all(b"once and only once").await.expect("write");
            client.shutdown().await.expect("fin");
            let mut got = String::new();
            client.read_to_string(&mut got).await.expect("whole");
            assert_eq!(got, "once and only once");
            let (entry, outcome) = east.seen.ends(Direction::Outbound, round + 1).await.remove(round);
            assert_eq!((outcome, entry.attempts), (Outcome::Ok, 2));
            assert_eq!(entry.peer, Some(north.cluster.clone()));
            assert_eq!(entry.received, 18, "counted once");
        }
        // A denied caller is not offered elsewhere.
        west.export("echo", &[backend.address], |export| export.rules = Some(Vec::new()));
        assert_eq!(ends_with(address).await, Err(ErrorKind::ConnectionReset));
        assert_eq!(backend.connections(), 5);
    })
    .await;
}

/// The local service takes over with what the client had said to a cluster that then refused.
#[tokio::test]
async fn what_was_said_ahead_reaches_a_local_backend_once() {
    patiently(async {
        let (east, west) = pair().await;
        west.export("echo", &[nobody().await], |_| {});
        let backend = Backend::collector().await;
        east.export("echo", &[backend.address], |_| {});
        let address = east.mirror("echo", None, &[&[("west", 1)], &[("east", 1)]]).await;
        // More than is kept for another target: the rest waits in the client's socket.
        let sent: Vec<u8> = (0..1_000_000_u32).map(|index| (index % 251) as u8).collect();
        let client = connect(address).await;
        let (mut read, mut write) = client.into_split();
        let sending = sent.clone();
        let writing = tokio::spawn(async move {
            write.write_all(&sending).await.expect("write");
            write.shutdown().await.expect("fin");
        });
        let mut back = Vec::new();
        read.read_to_end(&mut back).await.expect("whole");
        writing.await.expect("no panic");
        assert!(back == sent, "{} bytes came back", back.len());
        let (entry, outcome) = east.seen.ends(Direction::Outbound, 1).await.remove(0);
        assert_eq!((outcome, entry.attempts, entry.received), (Outcome::Ok, 2, 1_000_000));
        assert_eq!((entry.peer, entry.sent), (Some(east.cluster.clone()), 1_000_000));
    })
    .await;
}

/// `linkspan check` asks: neither this side's figures nor anybody's identity change by it.
#[tokio::test]
async fn a_probe_of_check_is_marked_here_and_nowhere_else() {
    patiently(async {
        let (east, west) = pair().await;
        let backend = Backend::collector().await;
        west.export("echo", &[backend.address], |_| {});
        let address = east.mirror("echo", None, &[&[("west", 1)]]).await;
        let socket = tokio::net::TcpSocket::new_v4().expect("socket");
        socket.bind(SocketAddr::from((probe::SOURCE, 0))).expect("bind");
        let mut client = socket.connect(address).await.expect("connect");
        client.write_all(b"hello").await.expect("write");
        client.shutdown().await.expect("fin");
        let mut back = String::new();
        client.read_to_string(&mut back).await.expect("whole");
        let (here, _) = east.seen.ends(Direction::Outbound, 1).await.remove(0);
        let (there, _) = west.seen.ends(Direction::Inbound, 1).await.remove(0);
        let ip = |entry: &Entry| entry.client.map(|client| client.ip());
        assert_eq!((here.probe, ip(&here)), (true, Some(probe::CALLER.into())));
        assert_eq!((there.probe, ip(&there)), (false, Some(probe::CALLER.into())));
        assert_eq!(here.source, there.source);
    })
    .await;
}

#[tokio::test]
async fn a_cut_on_one_side_is_a_cut_on_the_other() {
    patiently(async {
        let (east, west) = pair().await;
        // Says something, then resets.
        let rude = Backend::start(|mut stream| async move {
            drop(stream.write_all(b"tor").await);
            let mut byte = [0];
            drop(stream.read(&mut byte).await);
            drop(stream.set_zero_linger());
        })
        .await;
        west.export("rude", &[rude.address], |_| {});
        let address = east.mirror("rude", Some("tcp"), &[&[("west", 1)]]).await;
        let mut client = connect(address).await;
        assert_eq!(read_text(&mut client, 3).await, "tor");
        client.write_all(b"x").await.expect("write");
        let error = client.read_to_end(&mut Vec::new()).await.expect_err("no clean end of a torso");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let ends = east.seen.ends(Direction::Outbound, 1).await;
        assert_eq!(ends[0].1, Outcome::Refused(Refusal::BackendReset));

        // And the other way: the client resets, the backend hears of it.
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let watcher = Backend::start(move |mut stream| {
            let told = told.clone();
            async move {
                drop(stream.write_all(b"hi").await);
                let end = stream.read_to_end(&mut Vec::new()).await.map_err(|error| error.kind());
                told.send(end).expect("the test waits");
            }
        })
        .await;
        west.export("watch", &[watcher.address], |_| {});
        let address = east.mirror("watch", Some("tcp"), &[&[("west", 1)]]).await;
        let mut client = connect(address).await;
        assert_eq!(read_text(&mut client, 2).await, "hi");
        client.set_zero_linger().expect("linger");
        drop(client);
        assert_eq!(heard.recv().await.expect("an end"), Err(ErrorKind::ConnectionReset));
        let ends = east.seen.ends(Direction::Outbound, 2).await;
        assert_eq!(ends[1].1, Outcome::ClientGone);
        let ends = west.seen.ends(Direction::Inbound, 2).await;
        assert_eq!(ends[1].1, Outcome::ClientGone);
    })
    .await;
}

#[tokio::test]
async fn a_removed_mirror_keeps_its_connections() {
    patiently(async {
        let (east, west) = pair().await;
        let backend = Backend::echo("hi").await;
        west.export("echo", &[backend.address], |_| {});
        let first = east.mirror("echo", Some("tcp"), &[&[("west", 1)]]).await;
        let mut client = connect(first).await;
        assert_eq!(read_text(&mut client, 2).await, "hi");
        // The mirror moves to another address: the old one closes.
        let second = east.mirror("echo", Some("tcp"), &[&[("west", 1)]]).await;
        assert_ne!(first, second);
        until(|| std::net::TcpStream::connect(first).is_err().then_some(())).await;
        client.write_all(b"still").await.expect("write");
        assert_eq!(read_text(&mut client, 5).await, "still");
    })
    .await;
}

#[tokio::test]
async fn a_drain_lets_connections_finish_and_refuses_new_streams() {
    patiently(async {
        let (east, west) = pair().await;
        let backend = Backend::echo("hi").await;
        west.export("echo", &[backend.address], |_| {});
        let address = east.mirror("echo", Some("tcp"), &[&[("west", 1)]]).await;
        let mut client = connect(address).await;
        assert_eq!(read_text(&mut client, 2).await, "hi");
        let draining = tokio::spawn(async move {
            let finished = west.drain.drain(Duration::from_secs(10)).await;
            (west, finished)
        });
        // From now on west takes no new work ...
        let refused = async {
            loop {
                if answer_by_name(&east, "west", header("shop/echo", PORT)).await == Some(Refusal::Draining) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        refused.await;
        // ... and finishes the old.
        client.write_all(b"last").await.expect("write");
        assert_eq!(read_text(&mut client, 4).await, "last");
        client.shutdown().await.expect("fin");
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.expect("whole");
        let (_west, finished) = draining.await.expect("no panic");
        assert!(finished);
    })
    .await;
}

async fn answer_by_name(from: &Site, to: &str, header: StreamHeader) -> Option<Refusal> {
    let to = to.parse().expect("cluster");
    let (mut send, mut recv) = from.links.open(0, &to).await.expect("stream");
    send.write(header.encode().expect("header")).await.expect("sent");
    match recv.read(1).await {
        Ok(_) => None,
        Err(error) => error.refusal(),
    }
}
