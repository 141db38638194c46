use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::time::Instant;

use super::*;
use crate::remote::tests::{admitted_to, web_at};

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    (listener, address)
}

/// An address on which nobody listens.
async fn closed() -> SocketAddr {
    listener().await.1
}

fn at(index: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, index], 80))
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let (_alive, address) = listener().await;
    let admitted = admitted_to(&web_at(&[closed().await, address, closed().await]));
    for _ in 0..20 {
        let (stream, endpoint) = dial(&admitted).await.expect("the one that is alive");
        assert_eq!(stream.peer_addr().expect("peer"), address);
        assert_eq!(endpoint.address(), address);
    }
}

#[tokio::test]
async fn all_dead_says_refused_and_none_says_so() {
    let admitted = admitted_to(&web_at(&[closed().await, closed().await, closed().await, closed().await]));
    let error = dial(&admitted).await.expect_err("nobody listens");
    assert_eq!(error.refusal(), Refusal::ConnectRefused);
    let admitted = admitted_to(&web_at(&[]));
    assert_eq!(dial(&admitted).await.expect_err("no endpoint").refusal(), Refusal::NoBackend);
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_costs_the_budget() {
    // A full accept queue: Linux drops the SYNs, as a black hole would.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
    socket.listen(0).expect("listen");
    let address = socket.local_addr().expect("address").as_socket().expect("IPv4");
    let mut fillers = Vec::new();
    for _ in 0..4 {
        let filler = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
        filler.set_nonblocking(true).expect("nonblocking");
        // In progress is all that is wanted.
        drop(filler.connect(&address.into()));
        fillers.push(filler);
    }
    let began = Instant::now();
    let error = dial(&admitted_to(&web_at(&[address]))).await.expect_err("nobody answers");
    assert_eq!(error, DialError::Timeout(address));
    assert_eq!(began.elapsed(), CONNECT_BUDGET);
}

#[test]
fn load_spreads_evenly_over_equal_endpoints() {
    let endpoints: Vec<_> = (1..=5).map(at).collect();
    let endpoints = Endpoints::of(&admitted_to(&web_at(&endpoints)));
    let mut counts = BTreeMap::new();
    for _ in 0..10_000 {
        // Each answers at once and equally fast; nothing is left in flight.
        *counts.entry(endpoints.pick(&[]).expect("endpoint").address()).or_insert(0_u32) += 1;
    }
    assert!(counts.values().all(|count| (1_600..2_400).contains(count)), "{counts:?}");
}

#[test]
fn what_is_in_flight_counts() {
    let endpoints = Endpoints::of(&admitted_to(&web_at(&[at(1), at(2), at(3), at(4)])));
    let held: Vec<_> = (0..400).map(|_| endpoints.pick(&[]).expect("endpoint")).collect();
    let mut counts = BTreeMap::new();
    for guard in &held {
        *counts.entry(guard.address()).or_insert(0_u32) += 1;
    }
    // Two choices keep the fullest within a few of the emptiest, where random choice alone would be off by 20 and more.
    let (least, most) = (counts.values().min().expect("some"), counts.values().max().expect("some"));
    assert!(most - least <= 6, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_gets_less_and_recovers() {
    let table = web_at(&[at(1), at(2)]);
    let endpoints = Endpoints::of(&admitted_to(&table));
    let share_of_the_slow = async |slow_ms: u64| {
        let mut slow = 0;
        for _ in 0..200 {
            let mut guard = endpoints.pick(&[]).expect("endpoint");
            let is_slow = guard.address() == at(1);
            tokio::time::advance(Duration::from_millis(if is_slow { slow_ms } else { 2 })).await;
            guard.answered();
            slow += u32::from(is_slow);
        }
        slow
    };
    assert!(share_of_the_slow(500).await <= 5);
    tokio::time::advance(Duration::from_secs(120)).await;
    assert!(share_of_the_slow(1).await >= 20, "it has recovered and is used again");
}

#[test]
fn a_failed_endpoint_is_avoided_and_tried_ones_are_not_picked() {
    let endpoints = Endpoints::of(&admitted_to(&web_at(&[at(1), at(2), at(3)])));
    loop {
        let mut guard = endpoints.pick(&[]).expect("endpoint");
        if guard.address() == at(1) {
            guard.failed();
            break;
        }
    }
    assert!((0..200).all(|_| endpoints.pick(&[]).expect("endpoint").address() != at(1)));
    for _ in 0..50 {
        assert_eq!(endpoints.pick(&[at(2), at(3)]).expect("the last").address(), at(1));
    }
    assert_eq!(endpoints.pick(&[at(1), at(2), at(3)]).expect_err("none left"), DialError::NoBackend);
}

#[test]
fn a_guard_gives_back_what_it_took() {
    let table = web_at(&[at(1)]);
    let admitted = admitted_to(&table);
    let load = Arc::clone(&admitted.port().backends()[0].load);
    let guards: Vec<_> = (0..3).map(|_| Endpoints::of(&admitted).pick(&[]).expect("endpoint")).collect();
    assert_eq!(load.in_flight(), 3);
    drop(guards);
    assert_eq!(load.in_flight(), 0);
}

#[test]
fn errors_of_the_system_are_sorted() {
    let address = at(1);
    let of = |code: i32| DialError::from_io(address, &io::Error::from_raw_os_error(code));
    // ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, EMFILE, ENFILE, EADDRNOTAVAIL
    assert_eq!(of(111), DialError::Refused(address));
    assert_eq!(of(110), DialError::Timeout(address));
    assert_eq!(of(113), DialError::Unreachable(address));
    assert_eq!(of(101), DialError::Unreachable(address));
    assert_eq!(of(24), DialError::Starved);
    assert_eq!(of(23), DialError::Starved);
    assert_eq!(of(99), DialError::Starved);
    assert_eq!(DialError::Starved.refusal(), Refusal::Overloaded);
}
