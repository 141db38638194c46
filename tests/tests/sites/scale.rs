//! Thousands of services of each of two peers: how fast a third site has them, what that takes, and how fast changes of their
//! endpoints arrive. What the same takes against a Kubernetes API server is in tests/kubernetes/scale.rs.
//!
//! | variable | what |
//! |---|---|
//! | `LINKSPAN_LONG_TESTS=1` | 10,000 services of each peer instead of 200; 1,000 changes/s for 60 s instead of 100 for 5 s |

use std::fs;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use linkspan_tests::bulk::{Bulk, FILES, MARKED};
use linkspan_tests::dns;
use linkspan_tests::process::eventually;
use linkspan_tests::site::{Site, link_all};
use linkspan_tests::world::{Network, long, own_network};

use super::kit::started_here;

/// From the Links to the last name.
const CONVERGED: Duration = Duration::from_secs(60);

/// What a controller may hold at any time, and a gateway, MiB.
const MEMORY: [(&str, usize, u64); 2] = [("controller", 0, 256), ("gateway", 1, 200)];

/// Messages of one peer's catalogue in a second (F-44).
const MESSAGES: f64 = 20.0;

/// From a changed file at the peer to the answer of the DNS server, for 99 of 100 changes.
const PROPAGATED: Duration = Duration::from_secs(2);

/// When a change counts as lost.
const LOST: Duration = Duration::from_secs(20);

/// How much of it.
struct Size {
    /// In one file, without the one that shows the change.
    services: usize,
    /// Between two changed files.
    tick: Duration,
    /// For which endpoints change.
    changing: Duration,
}

impl Size {
    fn new() -> Self {
        if long() {
            // 50 files of 200 services are 10,000, which is all that a peer may export.
            Self { services: 199, tick: Duration::from_millis(200), changing: Duration::from_secs(60) }
        } else {
            // Of few descriptors (20,000) an eighth has room for all ports.
            Self { services: 3, tick: Duration::from_millis(40), changing: Duration::from_secs(5) }
        }
    }

    fn of_peer(&self) -> usize {
        FILES * (self.services + 1)
    }
}

/// What a process of a site holds, and the most that it has held so far, MiB.
fn memory(site: &mut Site, process: usize) -> (u64, u64) {
    let id = site.process(process).id();
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("the process runs");
    let of = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)).expect("a figure");
        value.trim().trim_end_matches(" kB").parse::<u64>().expect("a number").div_ceil(1024)
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// What is too much, of all sites.
fn too_much(hub: &mut Site, peers: &mut [Bulk], when: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (half, process, most) in MEMORY {
        for site in std::iter::once(&mut *hub).chain(peers.iter_mut().map(|peer| &mut peer.site)) {
            let (now, peak) = memory(site, process);
            let text = format!("{half} of {}: {now} MiB, at most {peak} MiB {when}", site.name());
            eprintln!("{text}");
            if peak >= most {
                found.push(text);
            }
        }
    }
    found
}

/// Links both peers, and waits until everything of them is there.
fn converge(hub: &Site, peers: &[Bulk], size: &Size) {
    let start = Instant::now();
    for peer in peers {
        link_all(&[hub, &peer.site]);
    }
    eventually("both catalogues are here", 3 * CONVERGED, || {
        std::thread::sleep(Duration::from_millis(200));
        hub.metric("controller", "catalogue_peer_services", "") as usize >= 2 * size.of_peer()
    });
    let catalogues = start.elapsed();
    // A port of each mirror and of each import, which both peers share.
    let ports = 3 * FILES * size.services;
    eventually("the gateway has every port", 3 * CONVERGED, || {
        std::thread::sleep(Duration::from_millis(200));
        hub.metric("gateway", "listener_ports", "") as usize >= ports
    });
    let took = start.elapsed();
    let state = |state: &str| hub.metric("gateway", "listener_ports", &format!("state=\"{state}\""));
    let (bound, refused, failed) = (state("bound"), state("refused"), state("failed"));
    eprintln!(
        "{} services of each of two peers within {took:?}, their catalogues within {catalogues:?}; {bound} ports bound, {refused} \
         beyond what this process may open",
        size.of_peer(),
    );
    // An address whose port is not bound is in no answer.
    if refused == 0.0 {
        names_are_there(hub, peers, size);
    }
    assert!(failed == 0.0, "{failed} ports could not be bound");
    assert!(took <= CONVERGED, "not within {CONVERGED:?}: {took:?}");
}

/// The first and the last name of each file, of each peer and of both.
fn names_are_there(hub: &Site, peers: &[Bulk], size: &Size) {
    let server = server(hub);
    for peer in peers {
        for file in 0..FILES {
            let namespace = Bulk::namespace(file);
            for name in [0, size.services - 1].map(|number| format!("web-{file}-{number}")) {
                let mirror = format!("{name}-{}.{namespace}.svc.cluster.local", peer.site.name());
                for name in [mirror, format!("{name}.{namespace}.svc.clusterset.local")] {
                    eventually(&name, PROPAGATED, || dns::address(server, &name).is_some());
                }
            }
        }
    }
}

fn server(hub: &Site) -> SocketAddr {
    hub.bound("controller", "dns").and_then(|server| server.parse().ok()).expect("a DNS server")
}

/// A change that has to show: the name, how many addresses it has then, and when the change was made.
struct Change(String, usize, Instant);

/// Looks for changes until there are no more; how long each took.
fn watch(server: SocketAddr, changes: &mpsc::Receiver<Change>) -> Vec<Duration> {
    let (mut pending, mut delays, mut over): (Vec<Change>, Vec<Duration>, bool) = Default::default();
    while !over || !pending.is_empty() {
        loop {
            match changes.try_recv() {
                Ok(change) => pending.push(change),
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => {
                    over = true;
                    break;
                }
            }
        }
        pending.retain(|Change(name, count, since)| {
            let shows = dns::addresses(server, name).is_some_and(|all| all.len() == *count);
            let delay = if shows { since.elapsed() } else { Duration::MAX };
            let ended = shows || since.elapsed() > LOST;
            if ended {
                delays.push(delay);
            }
            !ended
        });
        std::thread::sleep(Duration::from_millis(5));
    }
    delays
}

/// Endpoints of one peer change in file after file.
fn change(hub: &Site, peer: &Bulk, size: &Size) {
    let label = format!("peer=\"{}\",direction=\"Received\"", peer.site.name());
    let received = || hub.metric("controller", "catalogue_messages_total", &label);
    let (sender, receiver) = mpsc::channel();
    let server = server(hub);
    let watching = std::thread::spawn(move || watch(server, &receiver));
    let (before, start) = (received(), Instant::now());
    let mut ticks = 0;
    for tick in 0.. {
        let due = size.tick * tick;
        if due >= size.changing {
            break;
        }
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        let (file, round) = (tick as usize % FILES, tick as usize / FILES);
        let ready = round % 2 == 1;
        let name = format!("{}-{}.{}.svc.cluster.local", peer.marker(file), peer.site.name(), Bulk::namespace(MARKED));
        peer.write_slices(file, ready);
        sender.send(Change(name, if ready { 2 } else { 1 }, Instant::now())).expect("it watches");
        ticks += 1;
    }
    let took = start.elapsed();
    drop(sender);
    let mut delays = watching.join().expect("it watches to the end");
    let messages = received() - before;
    let seconds = start.elapsed().as_secs_f64();
    delays.sort();
    let at = |percent: usize| delays[(delays.len() * percent).div_ceil(100) - 1];
    eprintln!(
        "{} changes in {took:?}: {messages} messages, {:.1}/s; propagated in p50 {:?}, p99 {:?}, at most {:?}",
        ticks * (size.services + 1),
        messages / seconds,
        at(50),
        at(99),
        at(100)
    );
    assert!(took < size.changing + size.changing / 5, "the files were not written in time: {took:?}");
    assert!(messages > 0.0 && messages <= MESSAGES * seconds, "{messages} messages in {seconds} s");
    assert!(at(99) <= PROPAGATED, "{delays:?}");
}

#[test]
fn thousands_of_services_of_two_peers_are_here_in_time_and_follow_their_endpoints() {
    let test = "sites::scale::thousands_of_services_of_two_peers_are_here_in_time_and_follow_their_endpoints";
    if own_network(test) == Network::Done {
        return;
    }
    let size = Size::new();
    let (_dir, mut sites) = started_here(&["hub", "north", "south"]);
    let mut peers: Vec<Bulk> = sites.drain(1..).map(|site| Bulk::new(site, size.services)).collect();
    let mut hub = sites.remove(0);
    for peer in &peers {
        eventually("a peer has read its own files", CONVERGED, || {
            peer.site.metric("controller", "catalogue_exported_services", "") as usize == size.of_peer()
        });
    }
    converge(&hub, &peers, &size);
    let mut found = too_much(&mut hub, &mut peers, "until everything was there");
    change(&hub, &peers[0], &size);
    found.extend(too_much(&mut hub, &mut peers, "until the end"));
    assert!(found.is_empty(), "{found:?}");
}
