//! Two gateways' links in one process, over loopback.

use std::time::{Duration, Instant};

use bytes::Bytes;
use linkspan_proto::identity::{Assurance, Source, SpiffeId};
use linkspan_proto::names::ServiceKey;
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::{StreamHeader, StreamKind};

use std::sync::Arc;

use linkspan_proto::configuration::LinkPhase;

use super::testkit::{Authority, Killable, PATIENCE, Setup, Side, link, pair};
use super::*;

fn header(side: &Side) -> StreamHeader {
    StreamHeader {
        service: Some(ServiceKey::parse("shop/web").unwrap()),
        port: 80,
        source: Some(Source { identity: SpiffeId::node(&side.authority.trust_domain), assurance: Assurance::Gateway }),
        ..StreamHeader::new(StreamKind::Tcp)
    }
}

async fn open(from: &Side, to: &Side, payload: &'static [u8]) -> (SendHalf, RecvHalf) {
    let (mut send, recv) = from.links.open(0, &to.cluster()).await.unwrap();
    let head = header(from).encode().unwrap();
    send.write_all(&mut [head, Bytes::from_static(payload)]).await.unwrap();
    (send, recv)
}

async fn accept(side: &mut Side) -> Incoming {
    tokio::time::timeout(PATIENCE, side.incoming.recv()).await.expect("a stream arrives").expect("the side lives")
}

async fn read_all(recv: &mut RecvHalf) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Some(chunk) = recv.read(64 * 1024).await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

#[tokio::test]
async fn streams_go_both_ways_over_one_link() {
    let (mut east, mut west) = pair().await;
    for (from, to) in [(&mut east, &mut west)] {
        let (mut send, mut recv) = open(from, to, b"hello").await;
        send.finish().unwrap();
        let mut incoming = accept(to).await;
        assert_eq!(incoming.header, header(from));
        assert_eq!(incoming.peer.cluster, from.cluster());
        assert_eq!(incoming.peer.gateway, SpiffeId::gateway(&from.authority.trust_domain));
        assert_eq!(read_all(&mut incoming.recv).await.unwrap(), b"hello");
        incoming.send.write(Bytes::from_static(b"world")).await.unwrap();
        incoming.send.finish().unwrap();
        assert_eq!(read_all(&mut recv).await.unwrap(), b"world");
    }
}

#[tokio::test]
async fn a_dropped_half_is_a_reset_and_never_an_end() {
    let (east, mut west) = pair().await;
    let (send, mut recv) = open(&east, &west, b"torso").await;
    let mut incoming = accept(&mut west).await;
    drop(send);
    let cut = read_all(&mut incoming.recv).await.unwrap_err();
    assert_eq!(cut, StreamError::Reset(Refusal::Cancelled));
    drop(incoming);
    assert_eq!(read_all(&mut recv).await.unwrap_err(), StreamError::Reset(Refusal::Cancelled));
}

#[tokio::test]
async fn refusals_cross_in_both_directions() {
    let (east, mut west) = pair().await;
    let (mut send, mut recv) = open(&east, &west, b"").await;
    let mut incoming = accept(&mut west).await;
    incoming.send.reset(Refusal::Denied);
    incoming.recv.stop(Refusal::Denied);
    assert_eq!(recv.read(1).await.unwrap_err().refusal(), Some(Refusal::Denied));
    assert_eq!(send.stopped().await, Some(Refusal::Denied));
    assert_eq!(send.write(Bytes::from_static(b"x")).await.unwrap_err(), StreamError::Stopped(Refusal::Denied));
}

#[tokio::test]
async fn opening_never_waits_for_a_link() {
    let (east, west) = (Side::start("east"), Side::start("west"));
    let started = Instant::now();
    assert_eq!(east.links.open(0, &west.cluster()).await.unwrap_err(), OpenError::UnknownPeer);
    east.links.configure(&[west.as_hidden_peer()]).await;
    assert_eq!(east.links.open(0, &west.cluster()).await.unwrap_err(), OpenError::NotConnected);
    assert!(started.elapsed() < Duration::from_millis(500));
    assert!(!east.links.alive(&west.cluster()));
}

#[tokio::test]
async fn probes_make_a_link_alive_and_go_on() {
    let (east, west) = pair().await;
    let before = east.counter.answered.load(std::sync::atomic::Ordering::Relaxed);
    assert!(before >= 2, "up after two answers");
    tokio::time::sleep(Duration::from_millis(2300)).await;
    let after = east.counter.answered.load(std::sync::atomic::Ordering::Relaxed);
    assert!((2..=4).contains(&(after - before)), "one a second: {before} {after}");
    let report = east.report(&west);
    assert_eq!((report.state, report.reason.as_str(), report.connections), (LinkPhase::Connected, "Connected", 1));
    assert!(report.probe_micros.is_some() && report.rtt_micros.is_some() && report.version.is_some());
    assert!(report.loss < 0.05);
}

#[tokio::test]
async fn simultaneous_dials_leave_one_connection_and_lose_no_stream() {
    let (east, mut west) = (Side::start("east"), Side::start("west"));
    let (as_east, as_west) = ([east.as_peer()], [west.as_peer()]);
    let (one, other) = tokio::join!(east.links.configure(&as_west), west.links.configure(&as_east));
    assert_eq!((one, other), (vec![], vec![]));
    // Streams from the first moment on, each of which must arrive whole.
    let cluster = west.cluster();
    let sending = async {
        let mut sent = 0;
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            if let Ok((mut send, mut recv)) = east.links.open(0, &cluster).await {
                send.write_all(&mut [header(&east).encode().unwrap(), Bytes::from_static(b"ping")]).await.unwrap();
                send.finish().unwrap();
                assert_eq!(read_all(&mut recv).await.expect("no stream is lost"), b"ping");
                sent += 1;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        sent
    };
    let echoing = async {
        loop {
            let mut incoming = west.incoming.recv().await.unwrap();
            tokio::spawn(async move {
                let all = read_all(&mut incoming.recv).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
                incoming.send.write(all.into()).await.unwrap();
                incoming.send.finish().unwrap();
            });
        }
    };
    let sent = tokio::select! {
        sent = sending => sent,
        () = echoing => unreachable!(),
    };
    assert!(sent > 20, "{sent}");
    assert_eq!((east.report(&west).connections, west.report(&east).connections), (1, 1));
}

#[tokio::test]
async fn a_link_that_one_side_dials_carries_streams_of_both() {
    let (mut east, west) = (Side::start("east"), Side::start("west"));
    east.links.configure(&[west.as_hidden_peer()]).await;
    east.until(&west, |report| report.state == LinkPhase::Waiting && report.reason == "WaitingForPeer").await;
    west.links.configure(&[east.as_peer()]).await;
    east.until_alive(&west).await;
    west.until_alive(&east).await;
    let (mut send, _recv) = open(&west, &east, b"from behind NAT").await;
    send.finish().unwrap();
    let mut incoming = accept(&mut east).await;
    assert_eq!(read_all(&mut incoming.recv).await.unwrap(), b"from behind NAT");
}

#[tokio::test]
async fn a_restarted_peer_is_back_within_moments_and_was_never_down() {
    let authority = Arc::new(Authority::new("west.linkspan.internal"));
    let keys = Keys::ephemeral();
    let setup = |listen| Setup { keys: keys.clone(), listen, ..Setup::default() };
    let east = Side::start("east");
    let first = std::thread::spawn({
        let (authority, setup) = (Arc::clone(&authority), setup(([127, 0, 0, 1], 0).into()));
        move || Killable::start(authority, "west", setup)
    });
    let west = first.join().unwrap();
    let (address, cluster) = (west.address, west.cluster.clone());
    west.configure(vec![east.as_hidden_peer()]);
    east.links.configure(&[west.as_peer(&authority)]).await;
    let alive = || async {
        let end = Instant::now() + PATIENCE;
        while !east.links.alive(&cluster) {
            assert!(Instant::now() < end, "{:?}", east.links.reports());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    alive().await;
    let since = east.links.reports()[0].since_unix;

    // kill -9: no goaway, no close frame; the sockets vanish.
    west.kill();
    let again = Killable::start(Arc::clone(&authority), "west", setup(address));
    again.configure(vec![east.as_hidden_peer()]);
    let restarted = Instant::now();
    // A packet of the old connection meets the new process, which answers with a stateless reset.
    let end = restarted + Duration::from_secs(2);
    while east.links.alive(&cluster) && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    alive().await;
    assert!(restarted.elapsed() < Duration::from_millis(2500), "{:?}", restarted.elapsed());
    let report = &east.links.reports()[0];
    assert!(report.alive && report.since_unix == since, "never withdrawn: {report:?}");
}

#[tokio::test]
async fn a_silent_peer_is_withdrawn_within_four_seconds() {
    let authority = Arc::new(Authority::new("west.linkspan.internal"));
    let east = Side::start("east");
    let west = Killable::start(Arc::clone(&authority), "west", Setup::default());
    west.configure(vec![east.as_hidden_peer()]);
    east.links.configure(&[west.as_peer(&authority)]).await;
    let end = Instant::now() + PATIENCE;
    while !east.links.alive(&west.cluster) {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let cluster = west.cluster.clone();
    let killed = Instant::now();
    west.kill();
    while east.links.alive(&cluster) {
        assert!(killed.elapsed() < Duration::from_secs(4), "still alive");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(killed.elapsed() > Duration::from_secs(2), "too hasty for a blackout of two seconds");
    let report = &east.links.reports()[0];
    assert!(!report.alive, "{report:?}");
}

#[tokio::test]
async fn draining_lets_streams_finish_and_tells_the_peer_first() {
    let (east, mut west) = pair().await;
    let (mut send, mut recv) = open(&east, &west, b"begun").await;
    let mut incoming = accept(&mut west).await;
    let links = west.links.clone();
    let draining = tokio::spawn(async move {
        links.announce().await;
        links.drain(Duration::from_secs(10)).await;
    });
    east.until(&west, |report| report.connections == 0).await;
    assert_eq!(east.links.open(0, &west.cluster()).await.unwrap_err(), OpenError::NotConnected);
    // What had begun goes on, in both directions.
    send.write(Bytes::from_static(b" and finished")).await.unwrap();
    send.finish().unwrap();
    assert_eq!(read_all(&mut incoming.recv).await.unwrap(), b"begun and finished");
    let answering = tokio::spawn(async move {
        incoming.send.write(Bytes::from(vec![7; 3_000_000])).await.unwrap();
        incoming.send.finish().unwrap();
        // Dropped at once, while the last of it is still on the way.
        drop(incoming);
    });
    assert_eq!(read_all(&mut recv).await.expect("nothing is cut").len(), 3_000_000);
    drop((send, recv));
    answering.await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), draining).await.expect("ends when idle").unwrap();
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline() {
    let (east, mut west) = pair().await;
    let (_send, mut recv) = open(&east, &west, b"for ever").await;
    let _incoming = accept(&mut west).await;
    let started = Instant::now();
    west.links.announce().await;
    west.links.drain(Duration::from_millis(300)).await;
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(read_all(&mut recv).await.unwrap_err(), StreamError::LinkLost);
}

#[tokio::test]
async fn hostile_headers_are_refused_with_their_code() {
    let (east, west) = pair().await;
    let good = header(&east).encode().unwrap();
    let cases: Vec<(Vec<u8>, Refusal)> = vec![
        (vec![99, 0], Refusal::UnsupportedKind),
        (vec![StreamKind::Udp.code(), 0], Refusal::BadHeader),
        (vec![StreamKind::Tcp.code(), 0], Refusal::BadHeader),
        (vec![StreamKind::Tcp.code(), 0xff, 0xff, 0xff, 0xff], Refusal::BadHeader),
        ([&[StreamKind::Http.code(), 4][..], b"\xff\xff\xff\xff"].concat(), Refusal::BadHeader),
        // Cut inside, with a clean FIN.
        (good[..good.len() - 3].to_vec(), Refusal::BadHeader),
        (Vec::new(), Refusal::BadHeader),
    ];
    for (bytes, expected) in cases {
        let (mut send, mut recv) = east.links.open(0, &west.cluster()).await.unwrap();
        if bytes.is_empty() {
            // QUIC shows a stream only with its first frame.
            send.write(Bytes::copy_from_slice(&[StreamKind::Tcp.code()])).await.unwrap();
        }
        send.write(bytes.clone().into()).await.unwrap();
        send.finish().unwrap();
        assert_eq!(recv.read(1).await.unwrap_err(), StreamError::Reset(expected), "{bytes:?}");
    }
    let mut whole = header(&east);
    whole.kind = StreamKind::Udp;
    let (mut send, mut recv) = east.links.open(0, &west.cluster()).await.unwrap();
    send.write(whole.encode().unwrap()).await.unwrap();
    assert_eq!(recv.read(1).await.unwrap_err(), StreamError::Reset(Refusal::UnsupportedKind));
}

#[tokio::test]
async fn a_header_in_pieces_is_read_and_what_follows_is_kept() {
    let (east, mut west) = pair().await;
    let (mut send, _recv) = east.links.open(0, &west.cluster()).await.unwrap();
    let head = header(&east).encode().unwrap();
    for byte in head.iter() {
        send.write(Bytes::copy_from_slice(&[*byte])).await.unwrap();
        tokio::task::yield_now().await;
    }
    send.write(Bytes::from_static(b"payload")).await.unwrap();
    send.finish().unwrap();
    let mut incoming = accept(&mut west).await;
    assert_eq!(incoming.header, header(&east));
    assert_eq!(read_all(&mut incoming.recv).await.unwrap(), b"payload");
}

#[tokio::test]
async fn a_slow_header_is_refused_in_time() {
    let (east, west) = pair().await;
    let (mut send, mut recv) = east.links.open(0, &west.cluster()).await.unwrap();
    send.write(Bytes::copy_from_slice(&[StreamKind::Tcp.code()])).await.unwrap();
    let started = Instant::now();
    assert_eq!(recv.read(1).await.unwrap_err(), StreamError::Reset(Refusal::Deadline));
    assert!(started.elapsed() >= HEADER_TIMEOUT && started.elapsed() < HEADER_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test]
async fn several_workers_have_connections_of_their_own() {
    let side = |name: &str| {
        let authority = Arc::new(Authority::new(&format!("{name}.linkspan.internal")));
        Side::start_with(authority, name, Setup { workers: 3, ..Setup::default() })
    };
    let (east, west) = (side("east"), side("west"));
    link(&east, &west).await;
    east.until(&west, |report| report.connections == 3).await;
    west.until(&east, |report| report.connections == 3).await;
}

#[tokio::test]
async fn a_new_certificate_moves_the_link_and_cuts_nothing() {
    let (east, mut west) = pair().await;
    let (mut send, _recv) = open(&east, &west, b"old ").await;
    let mut incoming = accept(&mut west).await;
    let before = east.report(&west).remote;
    for side in [&west, &east] {
        let changes = side.links.changes();
        side.authority.gateway().install(&side.certificate);
        drop(changes);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(east.links.alive(&west.cluster()) && west.links.alive(&east.cluster()));
    }
    assert_eq!(east.report(&west).remote, before, "the same listener");
    let (mut fresh, _) = open(&east, &west, b"new").await;
    fresh.finish().unwrap();
    assert_eq!(read_all(&mut accept(&mut west).await.recv).await.unwrap(), b"new");
    send.write(Bytes::from_static(b"and good")).await.unwrap();
    send.finish().unwrap();
    assert_eq!(read_all(&mut incoming.recv).await.unwrap(), b"old and good");
}
