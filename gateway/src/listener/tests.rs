use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use linkspan_runtime::drain::{Drain, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::discovery::Rejections;

/// A listener of two workers on this runtime, its connections in a channel.
struct Rig {
    bindings: watch::Sender<Arc<Bindings>>,
    board: Arc<Board>,
    rejections: Rejections,
    permits: Permits,
    accepted: mpsc::UnboundedReceiver<ClientConnection>,
    drain: Drain,
}

fn rig(limit: usize) -> Rig {
    rig_with(limit, Budget::default())
}

fn rig_with(limit: usize, budget: Budget) -> Rig {
    let rejections = Rejections::new();
    let (binder, workers) = Binder::new(2, budget, rejections.clone());
    let (bindings, wanted) = watch::channel(Arc::new(Bindings::default()));
    let (drain, signal) = Drain::new();
    let (take, accepted) = mpsc::unbounded_channel();
    let permits = Permits::new(limit);
    let board = binder.board();
    tokio::spawn(binder.run(wanted, signal.clone()));
    for worker in workers {
        let take = take.clone();
        let take = move |conn| drop(take.send(conn));
        tokio::spawn(serve(worker, permits.clone(), signal.clone(), take, drop));
    }
    Rig { bindings, board, rejections, permits, accepted, drain }
}

impl Rig {
    fn want(&self, addresses: &[(SocketAddr, &str)]) {
        let places = addresses.iter().map(|(address, name)| (Place::tcp(*address), Arc::from(*name))).collect();
        self.bindings.send_replace(Arc::new(Bindings { places, ..Bindings::default() }));
    }

    /// Waits until the board says what is expected. Real sockets, so real time; but nothing sleeps.
    async fn until(&self, what: impl Fn(&[MirrorState]) -> bool) -> Vec<MirrorState> {
        let wait = async {
            loop {
                let mirrors = self.board.mirrors();
                if what(&mirrors) {
                    return mirrors;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time")
    }
}

/// As the route table says it: addresses, with the cluster whose service each is.
fn owned(addresses: &[(SocketAddr, &str)]) -> Bindings {
    let mut bindings = Bindings::default();
    for (address, cluster) in addresses {
        let owner = linkspan_proto::names::ClusterName::parse(cluster).expect("a name");
        bindings.places.insert(Place::tcp(*address), format!("web-{cluster}.shop:{address}").into());
        bindings.owners.insert(Place::tcp(*address), [owner].into());
    }
    bindings
}

/// Addresses of this machine that nobody listens on. A loopback network of its own for each test keeps them apart.
fn free(network: u8, count: usize) -> Vec<SocketAddr> {
    (1..=count)
        .map(|host| {
            let host = u8::try_from(host).expect("small");
            let sockets = bind(SocketAddr::from(([127, 90, network, host], 0)), 1).expect("bind");
            sockets[0].local_addr().expect("address")
        })
        .collect()
}

#[tokio::test]
async fn binds_accepts_and_tells_where_the_client_connected() {
    let mut rig = rig(10);
    let addresses = free(1, 2);
    rig.want(&[(addresses[0], "web.a"), (addresses[1], "db.a")]);
    let mirrors = rig.until(|mirrors| mirrors.len() == 2 && mirrors.iter().all(|mirror| mirror.bound)).await;
    assert_eq!((mirrors[0].mirror.as_str(), mirrors[0].workers), ("web.a", 2));
    for address in addresses {
        let mut client = TcpStream::connect(address).await.expect("connect");
        let mut conn = rig.accepted.recv().await.expect("accepted");
        assert_eq!(conn.listen, address);
        assert_eq!(conn.client, client.local_addr().expect("address"));
        client.write_all(b"hi").await.expect("write");
        let mut hi = [0; 2];
        conn.io.read_exact(&mut hi).await.expect("read");
        assert_eq!(&hi, b"hi");
    }
    assert_eq!(rig.board.accepted(), 2);
}

#[tokio::test]
async fn a_probe_of_check_is_known_and_stands_for_a_local_client() {
    use linkspan_proto::probe;

    let mut rig = rig(10);
    let address = free(12, 1)[0];
    rig.want(&[(address, "web.a")]);
    rig.until(|mirrors| mirrors.iter().any(|mirror| mirror.bound)).await;
    let socket = tokio::net::TcpSocket::new_v4().expect("socket");
    socket.bind(SocketAddr::from((probe::SOURCE, 0))).expect("bind");
    let client = socket.connect(address).await.expect("connect");
    let conn = rig.accepted.recv().await.expect("accepted");
    let port = client.local_addr().expect("address").port();
    assert_eq!((conn.probe, conn.client), (true, SocketAddr::from((probe::CALLER, port))));
    let _client = TcpStream::connect(address).await.expect("connect");
    assert!(!rig.accepted.recv().await.expect("accepted").probe);
}

/// In a cluster a mirror has a port of its own, and clients of both families come through the ClusterIPs.
#[tokio::test]
async fn a_mirror_that_listens_on_any_address_takes_both_families() {
    let mut rig = rig(10);
    let any = |port| SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    let port = bind(any(0), 1).expect("bind")[0].local_addr().expect("address").port();
    rig.want(&[(any(port), "web.a")]);
    rig.until(|mirrors| mirrors.iter().any(|mirror| mirror.bound)).await;
    let client = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
    let conn = rig.accepted.recv().await.expect("accepted");
    assert_eq!((conn.listen, conn.client), (any(port), client.local_addr().expect("address")));
    // A machine without IPv6 has nothing more to show.
    if let Ok(client) = TcpStream::connect(("::1", port)).await {
        assert_eq!(rig.accepted.recv().await.expect("accepted").client, client.local_addr().expect("address"));
    }
}

#[tokio::test]
async fn a_removed_mirror_stops_listening_and_keeps_its_connections() {
    let mut rig = rig(10);
    let addresses = free(2, 2);
    rig.want(&[(addresses[0], "web.a"), (addresses[1], "db.a")]);
    rig.until(|mirrors| mirrors.len() == 2).await;
    let mut client = TcpStream::connect(addresses[0]).await.expect("connect");
    let mut conn = rig.accepted.recv().await.expect("accepted");
    rig.want(&[(addresses[1], "db.a")]);
    rig.until(|mirrors| mirrors.len() == 1).await;
    // The workers close a moment after the board says so.
    let closed = async { while TcpStream::connect(addresses[0]).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), closed).await.expect("closed");
    conn.io.write_all(b"still here").await.expect("write");
    let mut text = [0; 10];
    client.read_exact(&mut text).await.expect("read");
    // It can be bound again, by us and by others.
    rig.want(&[(addresses[0], "new.a"), (addresses[1], "db.a")]);
    let mirrors = rig.until(|mirrors| mirrors.len() == 2).await;
    assert!(mirrors.iter().all(|mirror| mirror.bound));
}

#[tokio::test]
async fn a_taken_address_is_reported_and_tried_again() {
    let rig = rig(10);
    let addresses = free(3, 2);
    let other = std::net::TcpListener::bind(addresses[0]).expect("bind");
    rig.want(&[(addresses[0], "web.a"), (addresses[1], "db.a")]);
    let mirrors = rig.until(|mirrors| mirrors.len() == 2).await;
    assert_eq!((mirrors[0].bound, mirrors[0].reason.as_str()), (false, "AddressInUse"));
    assert!(mirrors[1].bound, "one bad address holds up nobody else");
    let rejections = rig.rejections.all();
    assert_eq!(rejections.len(), 1);
    assert_eq!((rejections[0].resource.name.as_str(), rejections[0].reason.as_str()), ("web.a", "AddressInUse"));
    assert!(rejections[0].message.contains("mirrorAddresses"), "{}", rejections[0].message);
    drop(other);
    rig.until(|mirrors| mirrors.iter().all(|mirror| mirror.bound)).await;
    assert!(rig.rejections.all().is_empty());
}

#[tokio::test]
async fn a_peer_that_wants_more_sockets_than_its_share_hurts_itself_only() {
    // A share of 16: more addresses than that, so each on one worker.
    let rig = rig_with(10, Budget::new(64));
    let (greedy, other) = (free(9, 40), free(10, 2));
    let both: Vec<_> = greedy.iter().map(|at| (*at, "greedy")).chain(other.iter().map(|at| (*at, "west"))).collect();
    rig.bindings.send_replace(Arc::new(owned(&both[..40])));
    let mirrors = rig.until(|mirrors| mirrors.len() == 40).await;
    let (bound, refused): (Vec<_>, Vec<_>) = mirrors.into_iter().partition(|mirror| mirror.bound);
    assert_eq!(bound.iter().map(|mirror| mirror.workers).sum::<usize>(), 16);
    assert!(refused.iter().all(|mirror| mirror.reason == "SocketShareUsedUp"), "{refused:?}");
    let rejections = rig.rejections.all();
    assert_eq!(rejections.len(), refused.len(), "each mirror says why");
    assert!(rejections[0].message.contains("services of greedy") && rejections[0].message.contains("LimitNOFILE"));

    // Another peer, later: as if the first were not there. What was bound stays.
    rig.bindings.send_replace(Arc::new(owned(&both)));
    let mirrors = rig.until(|mirrors| mirrors.len() == 42).await;
    let stands = |at: &SocketAddr| mirrors.iter().any(|mirror| mirror.listen == *at && mirror.bound);
    assert!(other.iter().all(stands) && bound.iter().all(|mirror| stands(&mirror.listen)));
    let registry = linkspan_runtime::metrics::Registry::new();
    rig.board.register(&rig.permits, &registry);
    let page = registry.encode().expect("page");
    for line in [
        &format!("listener_ports{{state=\"refused\"}} {}", refused.len()),
        "listener_sockets{peer=\"greedy\"} 16",
        "listener_sockets{peer=\"west\"} 4",
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }

    // It asks for less: everything is bound, and nobody is blamed.
    rig.bindings.send_replace(Arc::new(owned(&both[30..])));
    rig.until(|mirrors| mirrors.len() == 12 && mirrors.iter().all(|mirror| mirror.bound)).await;
    assert!(rig.rejections.all().is_empty());
}

#[tokio::test]
async fn a_catalogue_of_countless_ports_leaves_status_and_admin_page_readable() {
    let rig = rig_with(10, Budget::new(16));
    // Only the first few are bound; the others are refused before any system call.
    let all: Vec<_> = (10_000..60_000_u16).map(|port| (SocketAddr::from(([127, 90, 11, 1], port)), "greedy")).collect();
    rig.bindings.send_replace(Arc::new(owned(&all)));
    let mirrors = rig.until(|mirrors| !mirrors.is_empty()).await;
    assert!(mirrors.len() <= 2_100, "{}", mirrors.len());
    let rejections = rig.rejections.all();
    assert!(rejections.iter().filter(|rejection| !rejection.message.is_empty()).count() <= 2_100);
    assert!(rejections.len() >= 49_990, "DNS hears of each name: {}", rejections.len());
    let registry = linkspan_runtime::metrics::Registry::new();
    rig.board.register(&rig.permits, &registry);
    assert!(registry.encode().expect("page").contains("listener_ports{state=\"refused\"} 4999"), "all are counted");
}

#[tokio::test]
async fn another_gateway_of_the_same_user_does_not_share_in_silence() {
    let (one, two) = (rig(10), rig(10));
    let addresses = free(4, 1);
    one.want(&[(addresses[0], "web.a")]);
    one.until(|mirrors| mirrors.iter().any(|mirror| mirror.bound)).await;
    two.want(&[(addresses[0], "web.a")]);
    let mirrors = two.until(|mirrors| mirrors.len() == 1).await;
    assert_eq!(mirrors[0].reason, "AddressInUse");
}

#[tokio::test]
async fn an_address_of_another_machine_says_what_to_do() {
    let rig = rig(10);
    rig.want(&[("192.0.2.1:80".parse().expect("address"), "web.a")]);
    let mirrors = rig.until(|mirrors| mirrors.len() == 1).await;
    assert_eq!(mirrors[0].reason, "AddressNotAvailable");
    assert!(mirrors[0].message.contains("127.0.0.0/8"));
}

#[tokio::test]
async fn two_mirrors_of_one_address_are_a_complaint() {
    let rig = rig(10);
    let address = free(5, 1)[0];
    let bindings = Bindings {
        places: BTreeMap::from([(Place::tcp(address), Arc::from("db.a"))]),
        conflicts: BTreeMap::from([(Place::tcp(address), Arc::from("web.a"))]),
        ..Bindings::default()
    };
    rig.bindings.send_replace(Arc::new(bindings));
    rig.until(|mirrors| mirrors.iter().any(|mirror| mirror.bound)).await;
    let rejections = rig.rejections.all();
    assert_eq!(rejections[0].resource.name, "web.a");
    assert!(rejections[0].message.contains("db.a"));
}

#[tokio::test]
async fn above_the_limit_clients_are_reset_at_once() {
    let mut rig = rig(2);
    let address = free(6, 1)[0];
    rig.want(&[(address, "web.a")]);
    rig.until(|mirrors| mirrors.iter().any(|mirror| mirror.bound)).await;
    let mut clients = Vec::new();
    let mut held = Vec::new();
    for _ in 0..2 {
        clients.push(TcpStream::connect(address).await.expect("connect"));
        held.push(rig.accepted.recv().await.expect("accepted"));
    }
    assert_eq!(rig.permits.in_use(), 2);
    let mut third = TcpStream::connect(address).await.expect("the kernel accepts");
    let mut byte = [0];
    let error = third.read(&mut byte).await.expect_err("reset, not closed");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(rig.board.refused(), 1);
    held.pop();
    let _fourth = TcpStream::connect(address).await.expect("connect");
    assert!(rig.accepted.recv().await.is_some());
}

#[tokio::test]
async fn a_drain_stops_accepting() {
    let rig = rig(10);
    let address = free(7, 1)[0];
    rig.want(&[(address, "web.a")]);
    rig.until(|mirrors| mirrors.iter().any(|mirror| mirror.bound)).await;
    assert!(rig.drain.drain(Duration::from_secs(1)).await);
    let closed = async { while TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), closed).await.expect("closed");
}

#[test]
fn copies_share_one_address_and_all_get_connections() {
    let sockets = bind(SocketAddr::from(([127, 90, 8, 1], 0)), 3).expect("bind");
    let address = sockets[0].local_addr().expect("address");
    assert!(sockets.iter().all(|socket| socket.local_addr().expect("address") == address));
    let clients: Vec<_> = (0..120).map(|_| std::net::TcpStream::connect(address).expect("connect")).collect();
    let accepted = |socket: &std::net::TcpListener| std::iter::from_fn(|| socket.accept().ok()).count();
    let counts: Vec<_> = sockets.iter().map(accepted).collect();
    assert_eq!(counts.iter().sum::<usize>(), clients.len());
    assert!(counts.iter().all(|count| *count > 10), "{counts:?}");
}

#[tokio::test]
async fn a_single_socket_is_served_too() {
    let socket = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1).expect("bind").remove(0);
    let address = socket.local_addr().expect("address");
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let (drain, signal) = Drain::new();
    let take = move |conn: ClientConnection| {
        assert_eq!((conn.worker, conn.listen), (3, address));
        counter.fetch_add(1, Ordering::Relaxed);
    };
    let serving = tokio::spawn(serve_one(3, socket, Arc::default(), Permits::new(5), signal, take));
    let _client = TcpStream::connect(address).await.expect("connect");
    drop(drain);
    serving.await.expect("no panic");
    assert_eq!(count.load(Ordering::Relaxed), 1, "what the kernel had accepted was taken");
}

#[test]
fn the_board_shows_itself() {
    let (registry, board, permits) =
        (linkspan_runtime::metrics::Registry::new(), Arc::new(Board::new(Budget::new(64))), Permits::new(7));
    board.register(&permits, &registry);
    let _place = permits.acquire();
    board.count_accepted();
    {
        let (times, _starving) = board.starve();
        assert_eq!(times, 1);
        assert!(board.is_starving());
    }
    assert!(!board.is_starving());
    let page = registry.encode().expect("page");
    for line in [
        "listener_accepted_total 1",
        "listener_refused_total 0",
        "listener_accept_failures_total 1",
        "listener_starving 0",
        "listener_connections 1",
        "listener_connections_limit 7",
        "listener_ports{state=\"bound\"} 0",
        "listener_ports{state=\"refused\"} 0",
        "listener_sockets_limit 64",
        "listener_sockets_share 16",
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
}

/// What the last worker to accept would have seen: the pause between attempts while there are no descriptors.
#[test]
fn starvation_is_told_from_faults_of_clients() {
    let of = |code: i32| binder::is_starved(&std::io::Error::from_raw_os_error(code));
    assert!(of(24) && of(23) && of(105) && of(12));
    assert!(!of(103) && !of(98));
}

#[test]
fn limits_follow_the_descriptors() {
    assert_eq!(Permits::for_descriptors(1024).limit(), 320);
    assert_eq!(Permits::for_descriptors(0).limit(), 16);
    assert!(Permits::for_descriptors(u64::MAX).limit() > 1_000_000);
}

#[tokio::test]
async fn ten_thousand_mirrors_are_bound_on_some_workers_each() {
    // Only the choice of workers; sockets for all of them would need privileges that a test machine may not have.
    let wanted = Mutex::new([0_usize; 8]);
    for index in 0..10_000_u32 {
        let [_, _, high, low] = index.to_be_bytes();
        let chosen = binder::workers_for(Place::tcp(SocketAddr::from(([127, 80, high, low], 80))), 8, 1);
        assert_eq!(chosen.len(), 1);
        wanted.lock().expect("lock")[chosen[0]] += 1;
    }
    assert!(wanted.lock().expect("lock").iter().all(|count| (1_000..1_500).contains(count)));
    let few = binder::workers_for(Place::tcp(SocketAddr::from(([127, 80, 0, 1], 80))), 8, 8);
    assert_eq!(few.iter().collect::<std::collections::BTreeSet<_>>().len(), 8, "all workers, each once");
}

#[tokio::test]
async fn nothing_to_drain_is_no_hang() {
    let (binder, workers) = Binder::new(0, Budget::default(), Rejections::new());
    assert_eq!(workers.len(), 1, "at least one");
    let (_bindings, wanted) = watch::channel(Arc::new(Bindings::default()));
    let (drain, signal) = Drain::new();
    drop(drain);
    binder.run(wanted, signal).await;
    assert!(!Signal::never().is_draining());
}
