//! The link over TCP: forced, in place of UDP that is blocked, and what strangers meet there.

use linkspan_proto::configuration::{Carrier, Transport, TransportReason};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::link::tcp::{PREFACE, PREFACE_TIMEOUT};
use crate::link::testkit::Wire;

/// East and west over loopback, east dials over TCP.
async fn pair_over_tcp() -> (Side, Side) {
    let (east, west) = (Side::start("east"), Side::start("west"));
    assert_eq!(west.links.configure(&[east.as_hidden_peer()]).await, []);
    assert_eq!(east.links.configure(&[west.as_peer_over(Transport::Tcp)]).await, []);
    east.until_alive(&west).await;
    west.until_alive(&east).await;
    (east, west)
}

/// East and west in memory, not linked yet.
fn strangers() -> (Side, Side, Wire) {
    let network = Network::default();
    let wire = Wire { east: network.host(1), west: network.host(2), network };
    (side_at("east", &wire.east), side_at("west", &wire.west), wire)
}

/// Links them: east dials.
async fn dial(east: &Side, west: &Side) {
    assert_eq!(west.links.configure(&[east.as_hidden_peer()]).await, []);
    assert_eq!(east.links.configure(&[west.as_peer()]).await, []);
}

/// Asks west to repeat a word; how long that took, if it did so in time.
async fn ask(east: &Side, cluster: &ClusterName) -> Result<Duration, OpenError> {
    let started = Instant::now();
    let (mut send, mut recv) = east.links.open(0, cluster).await?;
    let head = header(east).encode().unwrap();
    send.write_all(&mut [head, Bytes::from_static(b"word")]).await.map_err(|_| OpenError::LinkLost)?;
    send.finish().map_err(|_| OpenError::LinkLost)?;
    match read_all(&mut recv).await {
        Ok(answer) => assert_eq!(answer, b"word"),
        Err(_) => return Err(OpenError::LinkLost),
    }
    Ok(started.elapsed())
}

/// Asks until there is an answer within a second; when that was.
async fn until_answered(east: &Side, cluster: &ClusterName) -> Instant {
    loop {
        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(1), ask(east, cluster)).await {
            return Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn streams_of_both_sides_go_over_a_link_that_names_tcp() {
    let (mut east, mut west) = pair_over_tcp().await;
    for report in [east.report(&west), west.report(&east)] {
        assert_eq!(report.transport, Some(Carrier::Tcp), "{report:?}");
        assert!(report.message.is_empty() && report.loss < f64::EPSILON, "{report:?}");
    }
    assert_eq!(east.report(&west).transport_reason, Some(TransportReason::Configured));
    assert_eq!(west.report(&east).transport_reason, Some(TransportReason::PeerDialled));
    for back in [false, true] {
        let (from, to) = if back { (&mut west, &mut east) } else { (&mut east, &mut west) };
        let (mut send, mut recv) = open(from, to, b"hello").await;
        send.finish().unwrap();
        let mut incoming = accept(to).await;
        assert_eq!(incoming.peer.cluster, from.cluster());
        assert_eq!(read_all(&mut incoming.recv).await.unwrap(), b"hello");
        incoming.send.reset(Refusal::Denied);
        assert_eq!(recv.read(1).await.unwrap_err().refusal(), Some(Refusal::Denied));
    }
}

#[tokio::test]
async fn bulk_arrives_whole_while_small_streams_pass_it() {
    let (east, west) = pair_over_tcp().await;
    let cluster = west.cluster();
    let west = echo(west);
    let (mut send, mut recv) = east.links.open(0, &cluster).await.unwrap();
    send.write(header(&east).encode().unwrap()).await.unwrap();
    const CHUNK: usize = 100_000;
    const CHUNKS: usize = 400;
    let sending = async {
        for number in 0..CHUNKS {
            send.write(Bytes::from(vec![number as u8; CHUNK])).await.unwrap();
        }
        send.finish().unwrap();
    };
    let receiving = async {
        let mut seen = 0;
        while let Some(chunk) = recv.read(64 * 1024).await.unwrap() {
            for byte in chunk {
                assert_eq!(byte, (seen / CHUNK) as u8, "at {seen}");
                seen += 1;
            }
        }
        assert_eq!(seen, CHUNKS * CHUNK);
    };
    let asking = async {
        for _ in 0..20 {
            ask(&east, &cluster).await.unwrap();
        }
    };
    tokio::time::timeout(4 * PATIENCE, async { tokio::join!(sending, receiving, asking) }).await.expect("in time");
    west.abort();
}

#[tokio::test(start_paused = true)]
async fn where_udp_is_blocked_from_the_start_traffic_flows_within_three_seconds() {
    let (east, west, wire) = strangers();
    wire.network.block_udp(true);
    let cluster = west.cluster();
    let started = Instant::now();
    dial(&east, &west).await;
    let west = echo(west);
    let answered = until_answered(&east, &cluster).await;
    assert!(answered - started < Duration::from_secs(3), "{:?}", answered - started);
    let report = east.links.reports().remove(0);
    assert_eq!((report.transport, report.transport_reason), (Some(Carrier::Tcp), Some(TransportReason::UdpBlocked)));
    assert!(report.alive && report.message.contains("UDP"), "{report:?}");

    wire.network.block_udp(false);
    let unblocked = Instant::now();
    while east.links.reports()[0].transport != Some(Carrier::Quic) {
        assert!(ask(&east, &cluster).await.is_ok(), "nothing is lost on the way back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(unblocked.elapsed() < Duration::from_secs(30), "{:?}", unblocked.elapsed());
    assert_eq!(east.links.reports()[0].transport_reason, Some(TransportReason::UdpRestored));
    assert!(ask(&east, &cluster).await.is_ok());
    west.abort();
}

#[tokio::test(start_paused = true)]
async fn udp_that_is_blocked_in_mid_life_costs_what_was_under_way_and_nothing_after() {
    let (east, west, wire) = strangers();
    let cluster = west.cluster();
    dial(&east, &west).await;
    east.until_alive(&west).await;
    let west = echo(west);
    assert_eq!(east.links.reports()[0].transport, Some(Carrier::Quic));
    assert_eq!(wire.network.connected(), 0, "TCP is not touched");

    tokio::time::sleep(Duration::from_secs(10)).await;
    wire.network.block_udp(true);
    let blocked = Instant::now();
    // New streams can always be opened: there is no moment without a connection.
    let mut answered = None;
    while blocked.elapsed() < Duration::from_secs(20) {
        let asked = Instant::now();
        match tokio::time::timeout(Duration::from_millis(500), ask(&east, &cluster)).await {
            Ok(Ok(_)) => answered = answered.or(Some(asked)),
            Ok(Err(error)) => assert_eq!(error, OpenError::LinkLost, "a stream can be opened"),
            Err(_) => assert_eq!(answered, None, "once it flows, it flows"),
        }
        assert!(east.links.alive(&cluster), "the cluster is not withdrawn");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let after = answered.expect("traffic flows") - blocked;
    assert!(after < Duration::from_secs(6), "{after:?}");
    assert_eq!(east.links.reports()[0].transport_reason, Some(TransportReason::UdpSilent));

    wire.network.block_udp(false);
    let unblocked = Instant::now();
    while east.links.reports()[0].transport != Some(Carrier::Quic) {
        assert!(ask(&east, &cluster).await.is_ok(), "nothing is lost on the way back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(unblocked.elapsed() < Duration::from_secs(30), "{:?}", unblocked.elapsed());
    west.abort();
}

#[tokio::test(start_paused = true)]
async fn a_dead_path_under_tcp_is_seen_like_any_other() {
    let (east, west, wire) = strangers();
    assert_eq!(west.links.configure(&[east.as_hidden_peer()]).await, []);
    assert_eq!(east.links.configure(&[west.as_peer_over(Transport::Tcp)]).await, []);
    east.until_alive(&west).await;
    wire.cut(true, true);
    let cut = Instant::now();
    east.until(&west, |report| !report.alive).await;
    assert!(cut.elapsed() <= Duration::from_secs(4), "{:?}", cut.elapsed());
    wire.cut(false, false);
    east.until_alive(&west).await;
}

#[tokio::test]
async fn a_tcp_connection_that_is_cut_ends_at_once_and_the_link_comes_back() {
    let (east, west) = (Side::start("east"), Side::start("west"));
    // A path that can be cut.
    let path = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = path.local_addr().unwrap();
    let to = west.address;
    let cut = Arc::new(tokio::sync::Notify::new());
    let path = tokio::spawn({
        let cut = Arc::clone(&cut);
        async move {
            loop {
                let (mut near, _) = path.accept().await.unwrap();
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = cut.notified() => {}
                }
            }
        }
    });
    let peer = Peer { addresses: vec![address.to_string()], ..west.as_peer_over(Transport::Tcp) };
    assert_eq!(west.links.configure(&[east.as_hidden_peer()]).await, []);
    assert_eq!(east.links.configure(&[peer]).await, []);
    east.until_alive(&west).await;
    let (_send, mut recv) = open(&east, &west, b"held").await;
    let started = Instant::now();
    cut.notify_one();
    assert!(recv.read(1).await.is_err());
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    east.until(&west, |report| report.connections == 1 && report.alive).await;
    path.abort();
}

/// Whether the gateway closes this connection within its deadline for a preface, and a little.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let within = PREFACE_TIMEOUT + Duration::from_secs(2);
    matches!(tokio::time::timeout(within, stream.read(&mut [0; 64])).await, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn s_27_strangers_get_nowhere_over_tcp() {
    let west = Side::start("west");
    let mut http = TcpStream::connect(west.address).await.unwrap();
    http.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut silent = TcpStream::connect(west.address).await.unwrap();
    let started = Instant::now();
    assert!(is_closed(&mut http).await);
    assert!(started.elapsed() < Duration::from_secs(1), "at the first byte that is wrong");
    assert!(is_closed(&mut silent).await);

    // Behind a right preface there has to be a link.
    for length in [0_u16, 65_528] {
        let mut liar = TcpStream::connect(west.address).await.unwrap();
        liar.write_all(&[&PREFACE[..], &length.to_be_bytes()].concat()).await.unwrap();
        let mut greeting = [0; PREFACE.len()];
        liar.read_exact(&mut greeting).await.unwrap();
        assert_eq!(greeting, PREFACE);
        let started = Instant::now();
        assert!(is_closed(&mut liar).await && started.elapsed() < Duration::from_secs(1), "{length}");
    }
}

#[tokio::test]
async fn s_27_one_address_cannot_keep_all_others_out() {
    let west = Side::start("west");
    let mut held = Vec::new();
    for _ in 0..32 {
        held.push(TcpStream::connect(west.address).await.unwrap());
    }
    let mut next = TcpStream::connect(west.address).await.unwrap();
    let started = Instant::now();
    assert!(is_closed(&mut next).await && started.elapsed() < Duration::from_secs(1), "one too many of its address");
}
