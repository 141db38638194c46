//! Two gateways' links in one process: over a network in memory with paused time where time or loss matters, else over
//! loopback.

use std::time::Duration;

use bytes::Bytes;
use linkspan_proto::identity::{Assurance, Source, SpiffeId};
use linkspan_proto::names::ServiceKey;
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::{StreamHeader, StreamKind};

use std::sync::Arc;

use linkspan_proto::configuration::{LinkPhase, Peer};
use linkspan_proto::exchange_socket::{Preamble, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::testkit::network::{Host, Network};
use super::testkit::{Authority, PATIENCE, Relay, Setup, Side, link, pair, pair_in_memory, pair_with, side_at};
use super::*;

mod over_tcp;
mod readers;

fn header(side: &Side) -> StreamHeader {
    StreamHeader {
        service: Some(ServiceKey::parse("shop/web").unwrap()),
        port: 80,
        source: Some(Source::new(SpiffeId::node(&side.authority.trust_domain), Assurance::Gateway)),
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

#[tokio::test(start_paused = true)]
async fn opening_never_waits_for_a_link() {
    let network = Network::default();
    let (east, west) = (side_at("east", &network.host(1)), side_at("west", &network.host(2)));
    let started = Instant::now();
    assert_eq!(east.links.open(0, &west.cluster()).await.unwrap_err(), OpenError::UnknownPeer);
    east.links.configure(&[west.as_hidden_peer()]).await;
    assert_eq!(east.links.open(0, &west.cluster()).await.unwrap_err(), OpenError::NotConnected);
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert!(!east.links.alive(&west.cluster()));
}

#[tokio::test(start_paused = true)]
async fn probes_make_a_link_alive_and_go_on() {
    let (east, west, _wire) = pair_in_memory().await;
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

#[tokio::test(start_paused = true)]
async fn figures_are_those_of_the_peer_with_the_roots_in_force() {
    let (east, west, _wire) = pair_in_memory().await;
    let other = Authority::new(west.authority.trust_domain.as_str()).bundle();
    let with = |trust_bundle| [Peer { trust_bundle, ..west.as_peer() }];
    east.links.configure(&with(west.authority.bundle() + &other)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(east.report(&west).version.is_some(), "one more root, and still the same peer");
    east.links.configure(&with(other)).await;
    east.until(&west, |report| report.version.is_none() && report.probe_micros.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn simultaneous_dials_leave_one_connection_and_lose_no_stream() {
    let network = Network::default();
    let (east, mut west) = (side_at("east", &network.host(1)), side_at("west", &network.host(2)));
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

#[tokio::test(start_paused = true)]
async fn a_restarted_peer_is_back_within_moments_and_was_never_down() {
    let network = Network::default();
    let authority = Arc::new(Authority::new("west.linkspan.internal"));
    let keys = Keys::ephemeral();
    let start = |host: &Host| {
        let setup = Setup { keys: keys.clone(), host: Some(host.clone()), ..Setup::default() };
        Side::start_with(Arc::clone(&authority), "west", setup)
    };
    let east = side_at("east", &network.host(1));
    let killed = network.host(2);
    let west = start(&killed);
    west.links.configure(&[east.as_hidden_peer()]).await;
    east.links.configure(&[west.as_peer()]).await;
    east.until_alive(&west).await;

    // kill -9: no goaway, no close frame.
    killed.unplug();
    let again = start(&network.host(2));
    again.links.configure(&[east.as_hidden_peer()]).await;
    let restarted = Instant::now();
    // A packet of the old connection, a probe at the latest, meets the new process, which answers with a stateless reset:
    // long before the idle timer.
    while again.report(&east).connections == 0 {
        assert!(east.report(&west).alive, "withdrawn after {:?}", restarted.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(restarted.elapsed() < Duration::from_millis(1500), "{:?}", restarted.elapsed());
    assert!(east.report(&again).alive, "never withdrawn");
    east.until_alive(&again).await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_withdrawn_within_four_seconds() {
    // At any moment between two probes.
    for phase in 0..10 {
        let (east, west, wire) = pair_in_memory().await;
        tokio::time::sleep(Duration::from_millis(100) * phase).await;
        let killed = Instant::now();
        wire.west.unplug();
        while east.links.alive(&west.cluster()) {
            assert!(killed.elapsed() < Duration::from_secs(4), "still alive");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(killed.elapsed() > Duration::from_secs(2), "too hasty for a blackout of two seconds");
        assert!(!east.report(&west).alive);
    }
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

#[tokio::test(start_paused = true)]
async fn a_drain_ends_at_its_deadline() {
    let (east, mut west, _wire) = pair_in_memory().await;
    let (_send, mut recv) = open(&east, &west, b"for ever").await;
    let _incoming = accept(&mut west).await;
    let started = Instant::now();
    west.links.announce().await;
    west.links.drain(Duration::from_millis(300)).await;
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    assert_eq!(read_all(&mut recv).await.unwrap_err(), StreamError::LinkLost);
}

#[tokio::test]
async fn s_30_hostile_headers_are_refused_with_their_code() {
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

#[tokio::test(start_paused = true)]
async fn s_27_a_slow_header_is_refused_in_time() {
    let (east, west, _wire) = pair_in_memory().await;
    let (mut send, mut recv) = east.links.open(0, &west.cluster()).await.unwrap();
    send.write(Bytes::copy_from_slice(&[StreamKind::Tcp.code()])).await.unwrap();
    let started = Instant::now();
    assert_eq!(recv.read(1).await.unwrap_err(), StreamError::Reset(Refusal::Deadline));
    assert!(started.elapsed() >= HEADER_TIMEOUT && started.elapsed() < HEADER_TIMEOUT + Duration::from_millis(100));
}

/// Whatever becomes of streams, nothing of them is left: no task, no credit, no place.
#[tokio::test(start_paused = true)]
async fn s_33_streams_that_come_and_go_leave_nothing_behind() {
    let (east, mut west, _wire) = pair_in_memory().await;
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = alive();
    for number in 0..2000 {
        let (mut send, mut recv) = open(&east, &west, b"some bytes").await;
        let mut incoming = accept(&mut west).await;
        match number % 5 {
            0 => drop((send, recv)),
            1 => {
                send.finish().unwrap();
                assert_eq!(read_all(&mut incoming.recv).await.unwrap(), b"some bytes");
                incoming.send.finish().unwrap();
                assert_eq!(read_all(&mut recv).await.unwrap(), b"");
            }
            2 => incoming.send.reset(Refusal::Denied),
            3 => {
                send.finish().unwrap();
                drop(incoming);
            }
            _ => {
                // More than the first credit, and it is never read.
                let half = Bytes::from_static(&[7; 200 * 1024]);
                drop(tokio::time::timeout(Duration::from_millis(10), send.write(half)).await);
                recv.stop(Refusal::Cancelled);
            }
        }
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    // A probe may be under way on either side.
    assert!(alive() <= before + 4, "{before} tasks before, {} now", alive());
    let (more, _recv) = open(&east, &west, b"").await;
    accept(&mut west).await;
    drop(more);
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

#[tokio::test(start_paused = true)]
async fn a_new_certificate_moves_the_link_and_cuts_nothing() {
    let (east, mut west, _wire) = pair_in_memory().await;
    let (mut send, _recv) = open(&east, &west, b"old ").await;
    let mut incoming = accept(&mut west).await;
    let before = east.report(&west).remote;
    for side in [&west, &east] {
        side.authority.gateway().install(&side.certificate);
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

/// Answers each stream with what it brought.
fn echo(mut side: Side) -> tokio::task::JoinHandle<Side> {
    tokio::spawn(async move {
        while let Some(mut incoming) = side.incoming.recv().await {
            tokio::spawn(async move {
                while let Ok(Some(chunk)) = incoming.recv.read(64 * 1024).await {
                    incoming.send.write(chunk).await.ok();
                }
                incoming.send.finish().ok();
            });
        }
        side
    })
}

/// A tunnel that keeps the window full until `end`; every byte must come back.
async fn bulk(links: Links, cluster: ClusterName, head: Bytes, end: Instant) {
    let (mut send, mut recv) = links.open(0, &cluster).await.unwrap();
    send.write(head).await.unwrap();
    let writing = async move {
        let mut sent = 0_usize;
        while Instant::now() < end {
            send.write(Bytes::from(vec![7; 64 * 1024])).await.expect("the tunnel lives");
            sent += 64 * 1024;
        }
        send.finish().unwrap();
        sent
    };
    let reading = async move {
        let mut received = 0;
        while let Some(chunk) = recv.read(1 << 20).await.expect("the tunnel lives") {
            received += chunk.len();
        }
        received
    };
    let (sent, received) = tokio::join!(writing, reading);
    assert_eq!(sent, received);
}

/// Blackouts of two seconds, each at another moment between two probes, while the window is full: probes must get past it.
async fn blackouts(mtu: Option<u16>) {
    let (east, west, wire) = pair_with(Limits { mtu, ..Limits::default() }).await;
    let cluster = west.cluster();
    let west_links = west.links.clone();
    let _echo = echo(west);
    let end = Instant::now() + Duration::from_secs(40);
    let tunnels: Vec<_> = (0..4)
        .map(|_| tokio::spawn(bulk(east.links.clone(), cluster.clone(), header(&east).encode().unwrap(), end)))
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let alive = |cut: Instant| {
        assert!(east.links.alive(&cluster), "{mtu:?}: withdrawn after {:?}", cut.elapsed());
        assert!(west_links.alive(&east.cluster()), "{mtu:?}: withdrawn by west after {:?}", cut.elapsed());
    };
    while Instant::now() < end {
        let cut = Instant::now();
        wire.cut(true, true);
        while cut.elapsed() < Duration::from_secs(2) {
            alive(cut);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        wire.cut(false, false);
        while cut.elapsed() < Duration::from_millis(4110) {
            alive(cut);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for tunnel in tunnels {
        tunnel.await.expect("no tunnel lost a byte");
    }
}

#[tokio::test(start_paused = true)]
async fn a_blackout_of_two_seconds_under_load_withdraws_nothing_and_loses_nothing() {
    blackouts(None).await;
}

#[tokio::test(start_paused = true)]
async fn a_blackout_of_two_seconds_is_survived_with_large_packets_too() {
    blackouts(Some(8900)).await;
}

#[tokio::test(start_paused = true)]
async fn a_partition_of_one_direction_is_seen_by_both_and_heals() {
    for (towards, back) in [(true, false), (false, true), (true, true)] {
        let (east, west, wire) = pair_in_memory().await;
        let cut = Instant::now();
        wire.cut(towards, back);
        let (mut east_down, mut west_down) = (None, None);
        while east_down.is_none() || west_down.is_none() {
            let now = cut.elapsed();
            if !east.links.alive(&west.cluster()) {
                east_down.get_or_insert(now);
            }
            if !west.links.alive(&east.cluster()) {
                west_down.get_or_insert(now);
            }
            assert!(now < Duration::from_secs(5), "cut {towards} {back}: east {east_down:?}, west {west_down:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(east_down.max(west_down).unwrap() < Duration::from_secs(4), "{east_down:?} {west_down:?}");
        // Long enough that the connection is gone, too.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let healed = Instant::now();
        wire.cut(false, false);
        east.until_alive(&west).await;
        west.until_alive(&east).await;
        assert!(healed.elapsed() < Duration::from_secs(3), "{:?}", healed.elapsed());
    }
}

#[tokio::test]
async fn a_nat_that_changes_ports_costs_no_stream() {
    // Three workers: the kernel gives a changed port to another of them, which hands the packets over.
    let side = |name: &str| {
        let authority = Arc::new(Authority::new(&format!("{name}.linkspan.internal")));
        Side::start_with(authority, name, Setup { workers: 3, ..Setup::default() })
    };
    let (east, west) = (side("east"), side("west"));
    let relay = Relay::to(west.address).await;
    west.links.configure(&[east.as_hidden_peer()]).await;
    let through = Peer { addresses: vec![relay.address.to_string()], ..west.as_peer() };
    east.links.configure(&[through]).await;
    east.until_alive(&west).await;
    west.until_alive(&east).await;
    let cluster = west.cluster();
    east.until(&west, |report| report.connections == 3).await;
    let _echo = echo(west);
    let mut tunnels = Vec::new();
    for worker in 0..3 {
        let (mut send, recv) = east.links.open(worker, &cluster).await.unwrap();
        send.write(header(&east).encode().unwrap()).await.unwrap();
        tunnels.push((send, recv));
    }
    for _ in 0..8 {
        relay.rebind();
        for (send, recv) in &mut tunnels {
            send.write(Bytes::from_static(b"ping")).await.unwrap();
            let echoed = tokio::time::timeout(Duration::from_secs(2), recv.read(4)).await.expect("soon");
            assert_eq!(echoed.unwrap().unwrap(), "ping");
        }
    }
    assert!(east.links.alive(&cluster));
}

#[tokio::test]
async fn catalogue_pipes_go_both_ways_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let side = |name: &str| {
        let authority = Arc::new(Authority::new(&format!("{name}.linkspan.internal")));
        Side::start_with(authority, name, Setup { exchange_socket: Some(path(name)), ..Setup::default() })
    };
    let controller = |name: &str| tokio::net::UnixListener::bind(path(name)).unwrap();
    let (east_controller, west_controller) = (controller("east"), controller("west"));
    let (east, west) = (side("east"), side("west"));
    link(&east, &west).await;

    // Each controller gets two pipes: one on which it asks, one on which it is asked.
    let mut pipes = std::collections::BTreeMap::new();
    for (name, controller) in [("east", &east_controller), ("west", &west_controller)] {
        for _ in 0..2 {
            let (mut pipe, _) = tokio::time::timeout(PATIENCE, controller.accept()).await.expect("a pipe").unwrap();
            let mut line = Vec::new();
            while line.last() != Some(&b'\n') {
                line.push(pipe.read_u8().await.unwrap());
            }
            let (preamble, _) = Preamble::decode(&line).unwrap().unwrap();
            assert_eq!(preamble.peer.as_str(), if name == "east" { "west" } else { "east" });
            assert!(pipes.insert((name, preamble.role == Role::Subscriber), pipe).is_none());
        }
    }
    for asker in ["east", "west"] {
        let asked = if asker == "east" { "west" } else { "east" };
        let mut subscriber = pipes.remove(&(asker, true)).unwrap();
        let mut publisher = pipes.remove(&(asked, false)).unwrap();
        subscriber.write_all(b"question").await.unwrap();
        let mut question = [0; 8];
        publisher.read_exact(&mut question).await.unwrap();
        publisher.write_all(&question).await.unwrap();
        publisher.shutdown().await.unwrap();
        let mut answer = Vec::new();
        subscriber.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"question");
        // The controller goes away; the pipe is opened anew.
        drop((subscriber, publisher));
    }
    tokio::time::timeout(PATIENCE, east_controller.accept()).await.expect("a new pipe").unwrap();
    tokio::time::timeout(PATIENCE, west_controller.accept()).await.expect("a new pipe").unwrap();
}
