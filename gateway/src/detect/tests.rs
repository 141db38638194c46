use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A ClientHello as rustls writes it, for `web-west.shop.svc.cluster.local`, with post-quantum shares.
fn client_hello() -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = "web-west.shop.svc.cluster.local".try_into().expect("name");
    let mut connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).expect("client");
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).expect("hello");
    hello
}

/// The same handshake message in records of `size` bytes.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let message = &hello[5..];
    let record = |part: &[u8]| {
        let length = u16::try_from(part.len()).expect("record").to_be_bytes();
        [&[22, 3, 1][..], &length, part].concat()
    };
    message.chunks(size).flat_map(record).collect()
}

fn tls(name: &str) -> Verdict {
    Verdict::Is(Detected::Tls { server_name: Some(name.to_owned()) })
}

const OPAQUE: Verdict = Verdict::Is(Detected::Opaque);
const HTTP1: Verdict = Verdict::Is(Detected::Http1);
const HTTP2: Verdict = Verdict::Is(Detected::Http2);

fn samples() -> Vec<(Vec<u8>, Verdict)> {
    let text = |text: &str, verdict: Verdict| (text.as_bytes().to_vec(), verdict);
    let hello = client_hello();
    vec![
        text("GET / HTTP/1.1\r\nhost: web\r\n\r\n", HTTP1),
        text("GET / HTTP/1.0\n\n", HTTP1),
        text("PROPFIND /dav HTTP/1.1\r\n", HTTP1),
        text("POST http://web/ HTTP/1.1\r\n", HTTP1),
        text("OPTIONS * HTTP/1.1\r\n", HTTP1),
        text("CONNECT db:5432 HTTP/1.1\r\n", HTTP1),
        text("CONNECT [::1]:5432 HTTP/1.1\r\n", HTTP1),
        text("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", HTTP2),
        (format!("GET /{} HTTP/1.1\r\n", "a".repeat(MAX_PREFIX)).into_bytes(), HTTP1),
        // Others that begin alike.
        text("PRI * HTTP/2.1\r\n", OPAQUE),
        text("GET key\r\n", OPAQUE),
        text("GET /x\r\n", OPAQUE),
        text("GET / HTTP/0.9\r\n", OPAQUE),
        text("GET  / HTTP/1.1\r\n", OPAQUE),
        text("GET /\rx HTTP/1.1\r\n", OPAQUE),
        text("GET /\0 HTTP/1.1\r\n", OPAQUE),
        text("PING\r\n", OPAQUE),
        text("EHLO client.example\r\n", OPAQUE),
        text("OPTIONS rtsp://camera/ RTSP/1.0\r\n", OPAQUE),
        text("OPTIONS sip:a@b SIP/2.0\r\n", OPAQUE),
        text("*1\r\n$4\r\nPING\r\n", OPAQUE),
        text("SSH-2.0-OpenSSH_9.6\r\n", OPAQUE),
        text("get / HTTP/1.1\r\n", OPAQUE),
        text("\r\nGET / HTTP/1.1\r\n", OPAQUE),
        (b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec(), OPAQUE),
        // TLS, and what only begins like it.
        (hello.clone(), tls("web-west.shop.svc.cluster.local")),
        (in_records(&hello, 100), tls("web-west.shop.svc.cluster.local")),
        (in_records(&hello, 2), tls("web-west.shop.svc.cluster.local")),
        (b"\x16\x03\x01\0\0".to_vec(), OPAQUE),
        (b"\x16\x03\x01\x50\0\x01".to_vec(), OPAQUE),
        (b"\x16\x03\x05\0\x05\x01".to_vec(), OPAQUE),
        (b"\x16\x03\x03\0\x05\x02\0\0\x01\0".to_vec(), OPAQUE),
        (b"\x17\x03\x03\0\x05\x01\0\0\x01\0".to_vec(), OPAQUE),
        // A hello whose lengths do not add up is still TLS: whoever ends it will say so.
        (b"\x16\x03\x01\0\x06\x01\0\0\x02\x03\x03".to_vec(), Verdict::Is(Detected::Tls { server_name: None })),
    ]
}

/// The beginning, for messages.
fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(40)].escape_ascii().to_string()
}

#[test]
fn samples_are_told_apart() {
    for (bytes, expected) in samples() {
        assert_eq!(verdict(&bytes), expected, "{}", shown(&bytes));
    }
}

#[test]
fn a_verdict_does_not_depend_on_how_the_bytes_were_split() {
    for (bytes, expected) in samples() {
        for length in 0..=bytes.len() {
            let verdict = verdict(&bytes[..length]);
            assert!(verdict == Verdict::More || verdict == expected, "{length} of {:?}", shown(&bytes));
        }
    }
}

#[test]
fn a_guess_needs_a_beginning() {
    assert_eq!(guess(b""), Detected::Opaque);
    assert_eq!(guess(b"GE"), Detected::Opaque);
    assert_eq!(guess(b"GET "), Detected::Opaque);
    assert_eq!(guess(b"GET /some"), Detected::Http1);
    assert_eq!(guess(b"PRI * HT"), Detected::Opaque);
    assert_eq!(guess(&client_hello()[..100]), Detected::Tls { server_name: None });
}

#[test]
fn an_endless_hello_is_tls_without_a_name() {
    // Says that it is 16 MiB long.
    let mut bytes = b"\x16\x03\x01\x40\0\x01\xff\xff\xff".to_vec();
    bytes.resize(MAX_PREFIX - 1, 0);
    assert_eq!(verdict(&bytes), Verdict::More);
    bytes.resize(MAX_PREFIX + 10, 0);
    assert_eq!(verdict(&bytes), Verdict::Is(Detected::Tls { server_name: None }));
}

#[test]
fn declarations() {
    use Declared::{Http, Http2, Opaque, Unknown};
    for (name, port, expected) in [
        (Some("http"), 80, Http),
        (Some("HTTP"), 5432, Http),
        (Some("kubernetes.io/h2c"), 80, Http2),
        (Some("kubernetes.io/ws"), 80, Http),
        (Some("kubernetes.io/wss"), 80, Opaque),
        (Some("grpc"), 80, Http2),
        (Some("https"), 443, Opaque),
        (Some("tcp"), 80, Opaque),
        (Some("postgresql"), 1, Opaque),
        (Some("example.com/own"), 80, Unknown),
        (Some("example.com/own"), 5432, Unknown),
        (None, 5432, Opaque),
        (None, 25, Opaque),
        (None, 80, Unknown),
        (None, 8443, Unknown),
    ] {
        assert_eq!(Declared::of(name, port), expected, "{name:?} {port}");
    }
}

#[test]
fn opaque_ports_of_the_plan_are_all_there() {
    for port in [
        25, 110, 143, 587, 3306, 4444, 4567, 4568, 5432, 6379, 9300, 11211, 21, 22, 23, 389, 5672, 9092, 27017, 1433,
        3389,
    ] {
        assert!(OPAQUE_PORTS.contains(&port), "{port}");
    }
}

proptest! {
    /// Never panics, and never changes its mind.
    #[test]
    fn once_decided_always_decided(bytes in proptest::collection::vec(any::<u8>(), 0..300), more in proptest::collection::vec(any::<u8>(), 0..50)) {
        check(&bytes, &more)?;
    }

    /// The same near the formats.
    #[test]
    fn once_decided_always_decided_near_http(
        method in "(GET|POST|CONNECT|OPTIONS|PRI|PUT|P|HEAD|FOO)",
        rest in "[ -~\r\n]{0,40}",
        more in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        check(format!("{method} {rest}").as_bytes(), &more)?;
    }

    /// The same near TLS: one byte of a real hello is changed.
    #[test]
    fn once_decided_always_decided_near_tls(at in 0_usize..400, byte: u8, size in 1_usize..300) {
        let mut hello = in_records(&client_hello(), size);
        let at = at.min(hello.len() - 1);
        hello[at] = byte;
        let step = hello.len() / 50 + 1;
        let mut decided = None;
        for length in (0..=hello.len()).step_by(step) {
            let verdict = verdict(&hello[..length]);
            if let Some(decided) = &decided {
                prop_assert_eq!(&verdict, decided);
            } else if verdict != Verdict::More {
                decided = Some(verdict);
            }
        }
    }
}

fn check(bytes: &[u8], more: &[u8]) -> Result<(), TestCaseError> {
    let longer = [bytes, more].concat();
    let mut decided = None;
    for length in 0..=longer.len() {
        let verdict = verdict(&longer[..length]);
        if let Some(decided) = &decided {
            prop_assert_eq!(&verdict, decided);
        } else if verdict != Verdict::More {
            decided = Some(verdict);
        }
    }
    Ok(())
}

async fn pair() -> (TcpStream, ClientIo) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
    let (server, _) = listener.accept().await.expect("accept");
    (client, ClientIo::tcp(server))
}

#[tokio::test(start_paused = true)]
async fn a_declared_opaque_port_waits_for_nothing() {
    let (_client, mut io) = pair().await;
    let began = Instant::now();
    assert_eq!(detect(&mut io, Declared::Opaque).await.expect("decided"), Detected::Opaque);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

/// S-27: hyper waits for a preface for ever, and a silent client would hold its place as long.
#[tokio::test(start_paused = true)]
async fn s_27_a_client_of_declared_http_2_that_sends_no_preface_is_let_go() {
    for sent in [&b""[..], b"PRI * HTTP/2.0\r\n"] {
        let (mut client, mut io) = pair().await;
        client.write_all(sent).await.expect("write");
        if !sent.is_empty() {
            io.fill().await.expect("read");
        }
        let began = Instant::now();
        assert!(matches!(detect(&mut io, Declared::Http2).await, Err(DetectError::NoPreface)));
        assert_eq!(began.elapsed(), DECLARED_HTTP);
    }
}

#[tokio::test]
async fn declared_http_2_is_decided_by_its_preface_and_the_rest_left_to_the_server() {
    for bytes in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x50\0\x01", b"x"]
    {
        let (mut client, mut io) = pair().await;
        client.write_all(bytes).await.expect("write");
        assert_eq!(detect(&mut io, Declared::Http2).await.expect("decided"), Detected::Http2);
        assert_eq!(io.prefix(), bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_opaque_after_a_tenth_of_a_second() {
    let (_client, mut io) = pair().await;
    let began = Instant::now();
    assert_eq!(detect(&mut io, Declared::Unknown).await.expect("decided"), Detected::Opaque);
    assert_eq!(began.elapsed(), FIRST_BYTE);
}

#[tokio::test]
async fn the_bytes_stay_in_front() {
    let (mut client, mut io) = pair().await;
    client.write_all(b"GET / HT").await.expect("write");
    let detecting = async { detect(&mut io, Declared::Unknown).await };
    let writing = async {
        tokio::task::yield_now().await;
        client.write_all(b"TP/1.1\r\n\r\n").await.expect("write");
    };
    let (detected, ()) = tokio::join!(detecting, writing);
    assert_eq!(detected.expect("decided"), Detected::Http1);
    assert_eq!(&io.take_prefix()[..], b"GET / HTTP/1.1\r\n\r\n");
}

#[tokio::test(start_paused = true)]
async fn a_trickling_client_is_guessed_after_a_second() {
    let (mut client, mut io) = pair().await;
    client.write_all(b"GET /slow").await.expect("write");
    // The byte is in the socket; virtual time only runs when nothing else can.
    io.fill().await.expect("read");
    let began = Instant::now();
    assert_eq!(detect(&mut io, Declared::Unknown).await.expect("decided"), Detected::Http1);
    assert!(began.elapsed() <= UNDECIDED);
}

#[tokio::test(start_paused = true)]
async fn a_declared_http_client_may_connect_ahead() {
    let (_client, mut io) = pair().await;
    let began = Instant::now();
    assert_eq!(detect(&mut io, Declared::Http).await.expect("decided"), Detected::Http1);
    assert_eq!(began.elapsed(), DECLARED_HTTP);
}

#[tokio::test]
async fn declared_http_still_tells_the_version_and_leaves_the_rest_to_the_server() {
    for (bytes, expected) in [
        (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], Detected::Http2),
        (b"FROBNICATE / HTTP/1.1\r\n", Detected::Http1),
        (b"\x16\x03\x01\x50\0\x01", Detected::Http1),
    ] {
        let (mut client, mut io) = pair().await;
        client.write_all(bytes).await.expect("write");
        assert_eq!(detect(&mut io, Declared::Http).await.expect("decided"), expected);
    }
}

#[tokio::test]
async fn a_client_that_leaves_at_once_is_no_connection() {
    let (client, mut io) = pair().await;
    drop(client);
    assert!(matches!(detect(&mut io, Declared::Unknown).await, Err(DetectError::Closed)));
}

#[tokio::test]
async fn a_short_message_with_a_fin_is_carried() {
    let (mut client, mut io) = pair().await;
    client.write_all(b"GE").await.expect("write");
    client.shutdown().await.expect("fin");
    assert_eq!(detect(&mut io, Declared::Unknown).await.expect("decided"), Detected::Opaque);
    assert_eq!(io.prefix(), b"GE");
}
