//! The server on real sockets, asked by hand and by `dig`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use linkspan_runtime::drain::{Drain, Signal};
use linkspan_runtime::metrics::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);
const NAME: &str = "web-west.shop.svc.cluster.local.";

struct Running {
    address: SocketAddr,
    zone: Arc<ArcSwap<Zone>>,
    drain: Drain,
    metrics: Metrics,
    registry: Registry,
    task: tokio::task::JoinHandle<()>,
}

async fn start(zone: Zone) -> Running {
    // The same port for UDP and TCP, as in a site: take a TCP port until its UDP twin is free too.
    let (udp, tcp) = loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("bound")).await {
            break (udp, tcp);
        }
    };
    let address = tcp.local_addr().expect("bound");
    let zone = Arc::new(ArcSwap::from_pointee(zone));
    let (drain, signal): (Drain, Signal) = Drain::new();
    let registry = Registry::new();
    let metrics = Metrics::register(&registry);
    let task = linkspan_runtime::task::spawn("dns", serve(zone.clone(), udp, tcp, signal, metrics.clone()));
    Running { address, zone, drain, metrics, registry, task }
}

impl Running {
    async fn udp(&self, request: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        socket.send_to(request, self.address).await.expect("sent");
        let mut reply = vec![0; 65_535];
        let (length, _) = timeout(PATIENCE, socket.recv_from(&mut reply)).await.expect("in time").expect("received");
        reply.truncate(length);
        reply
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connected")
    }

    fn exposition(&self) -> String {
        self.registry.encode().expect("encodes")
    }
}

fn framed(request: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(request.len()).expect("short").to_be_bytes().to_vec();
    bytes.extend_from_slice(request);
    bytes
}

async fn read_reply(stream: &mut TcpStream) -> Message {
    let length = timeout(PATIENCE, stream.read_u16()).await.expect("in time").expect("length");
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await.expect("reply");
    Message::from_vec(&reply).expect("message")
}

#[tokio::test]
async fn udp_and_tcp_answer_and_a_new_zone_counts_at_once() {
    let server = start(shop()).await;
    let request = query(NAME, RecordType::A).to_vec().expect("encodes");
    let reply = Message::from_vec(&server.udp(&request).await).expect("message");
    assert_eq!(addresses(&reply), ips(&["127.80.0.1"]));

    // Two requests in one segment, as a pipelining client sends them.
    let mut stream = server.connect().await;
    stream.write_all(&[framed(&request), framed(&request)].concat()).await.expect("sent");
    for _ in 0..2 {
        assert_eq!(addresses(&read_reply(&mut stream).await), ips(&["127.80.0.1"]));
    }

    server.zone.store(Arc::new(Zone::default()));
    let reply = Message::from_vec(&server.udp(&request).await).expect("message");
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    stream.write_all(&framed(&request)).await.expect("sent");
    assert_eq!(read_reply(&mut stream).await.metadata.response_code, ResponseCode::NXDomain);

    let text = server.exposition();
    assert!(text.contains("dns_queries_total{type=\"A\",rcode=\"NOERROR\"} 3"), "{text}");
    assert!(text.contains("dns_queries_total{type=\"A\",rcode=\"NXDOMAIN\"} 2"), "{text}");
    assert!(text.contains("dns_tcp_connections 1"), "{text}");
}

#[tokio::test]
async fn rubbish_does_not_stop_the_server() {
    let server = start(shop()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    for length in [0, 1, 11, 13, 500, 5_000] {
        socket.send_to(&vec![0x7f; length], server.address).await.expect("sent");
    }
    let mut stream = server.connect().await;
    stream.write_all(&[0xff, 0xff, 0, 0]).await.expect("sent");
    assert_eq!(timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("in time").unwrap_or(0), 0, "closed");

    let request = query(NAME, RecordType::A).to_vec().expect("encodes");
    let reply = Message::from_vec(&server.udp(&request).await).expect("message");
    assert_eq!(addresses(&reply), ips(&["127.80.0.1"]));
    assert!(server.exposition().contains("dns_dropped_total{reason=\"short\"} 3"), "{}", server.exposition());
}

#[tokio::test]
async fn one_address_cannot_take_all_connections() {
    let server = start(shop()).await;
    let request = framed(&query(NAME, RecordType::A).to_vec().expect("encodes"));
    let mut open = Vec::new();
    for _ in 0..64 {
        let mut stream = server.connect().await;
        stream.write_all(&request).await.expect("sent");
        read_reply(&mut stream).await;
        open.push(stream);
    }
    let mut refused = server.connect().await;
    // The write may still succeed; the end of the stream is what tells.
    drop(refused.write_all(&request).await);
    assert_eq!(timeout(PATIENCE, refused.read(&mut [0; 16])).await.expect("in time").unwrap_or(0), 0, "closed");
    assert_eq!(server.metrics.connections.get(), 64);

    open.clear();
    let again = async {
        loop {
            let mut stream = server.connect().await;
            if stream.write_all(&request).await.is_ok() && stream.read_u16().await.is_ok() {
                break;
            }
        }
    };
    timeout(PATIENCE, again).await.expect("places are given back");
}

#[tokio::test]
async fn a_drain_ends_the_server_and_its_connections() {
    let server = start(shop()).await;
    let request = framed(&query(NAME, RecordType::A).to_vec().expect("encodes"));
    let mut stream = server.connect().await;
    stream.write_all(&request).await.expect("sent");
    read_reply(&mut stream).await;
    assert!(server.drain.drain(PATIENCE).await);
    timeout(PATIENCE, server.task).await.expect("in time").expect("no panic");
    assert_eq!(timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("in time").unwrap_or(0), 0, "closed");
}

/// Runs `dig` against the server; `None` where it is not installed.
async fn dig(server: &Running, arguments: &str) -> Option<String> {
    let (address, port) = (server.address.ip(), server.address.port());
    let line = format!("@{address} -p {port} +time=2 +tries=1 {arguments}");
    let output = tokio::process::Command::new("dig").args(line.split_whitespace()).output().await.ok()?;
    assert!(output.status.success(), "dig {line}: {}", String::from_utf8_lossy(&output.stdout));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn dig_understands_every_answer() {
    let server = start(shop()).await;
    let Some(first) = dig(&server, "web-west.shop.svc.cluster.local A +short").await else {
        eprintln!("SKIPPED: dig is not installed (dnsutils)");
        return;
    };
    assert_eq!(first, "127.80.0.1\n");
    for (arguments, expected) in [
        ("+short +tcp web.shop.svc.clusterset.local AAAA", "fd00::2\n"),
        ("+short dns-version.clusterset.local TXT", "\"1.0.0\"\n"),
        ("+short _http._tcp.web.shop.svc.clusterset.local SRV", "0 100 80 web.shop.svc.clusterset.local.\n"),
        ("+short +notcp +ignore db-1.db-west.shop.svc.cluster.local A", "127.80.1.11\n"),
        ("nope.shop.svc.clusterset.local A", "status: NXDOMAIN"),
        ("west.db.shop.svc.clusterset.local A", "status: NXDOMAIN"),
        ("example.com A", "status: REFUSED"),
        ("+notcp web.shop.svc.clusterset.local ANY", "status: REFUSED"),
        ("+noednsneg +edns=1 web.shop.svc.clusterset.local A", "status: BADVERS"),
        ("+opcode=notify web.shop.svc.clusterset.local A", "status: NOTIMP"),
        ("+cookie +nsid +subnet=10.0.0.0/8 web.shop.svc.clusterset.local A", "127.80.0.2"),
        ("web.shop.svc.clusterset.local AAAA", "flags: qr aa rd;"),
    ] {
        let text = dig(&server, arguments).await.expect("dig is there");
        assert!(text.contains(expected), "dig {arguments}:\n{text}");
        assert!(!text.contains("Warning") && !text.contains("malformed"), "dig {arguments}:\n{text}");
    }
}

#[tokio::test]
async fn dig_follows_the_truncated_bit_to_tcp() {
    let server = start(crowd(400)).await;
    let name = "db.shop.svc.clusterset.local";
    let Some(text) = dig(&server, &format!("+short {name} A")).await else {
        eprintln!("SKIPPED: dig is not installed (dnsutils)");
        return;
    };
    assert_eq!(text.lines().filter(|line| line.starts_with("127.81.")).count(), 400);
    let ignored = dig(&server, &format!("+ignore {name} A")).await.expect("dig is there");
    assert!(ignored.contains(" tc"), "{ignored}");
}
