//! Thousands of patterns of half-close, reset, abort, slow readers and early answers, over HTTP/1, HTTP/2, gRPC and TCP, with a
//! client and a backend of ours at the two ends of a link. What both saw has to fit: the bytes are the same, what was cut never
//! ends in order, and nothing was asked for twice.
//!
//! | variable | what |
//! |---|---|
//! | `LINKSPAN_LONG_TESTS=1` | 10,000 patterns instead of 600 |
//! | `LINKSPAN_PATTERN_SEED` | the seed of a run that failed, instead of a new one (in the daily form: always the same) |
//! | `LINKSPAN_PATTERN` | this pattern of the seed alone |

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use linkspan_tests::manifests::Service;
use linkspan_tests::site::Site;
use linkspan_tests::world::{Network, long, own_network};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::kit::linked_here;
use script::{Events, Heard, Ledger, Pattern, Protocol, Said, Side};

mod script;

mod tcp;

mod http1;

mod http2;

/// Of the form that runs every day.
const DAILY_SEED: u64 = 7;

/// Patterns at a time.
const AT_ONCE: usize = 32;

/// How long one may take. The slowest wait some 200 ms of their own.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a backend may not know that its client has gone.
const TOLD: Duration = Duration::from_secs(10);

/// What must not be in what happened.
fn violations(pattern: &Pattern, events: &Events) -> Vec<String> {
    let Events { client, backend, runs, open } = events;
    let mut found = Vec::new();
    if *runs > 1 {
        found.push(format!("executed {runs} times"));
    }
    if *open > 0 {
        found.push("the backend still waits".to_owned());
    }
    found.extend(one_way(pattern, "request", client, backend));
    found.extend(one_way(pattern, "answer", backend, client));
    let shape = pattern.shape;
    let answered = client.heard == Heard::Whole;
    if answered && *runs == 0 {
        found.push("answered without having been executed".to_owned());
    }
    if !shape.client_goes() && client.heard == Heard::Open {
        found.push("the client was never told of an end".to_owned());
    }
    let answer_is_due = shape.is_whole() || shape == script::Shape::Early;
    if answer_is_due && !answered {
        found.push("nobody broke off, and the answer is not whole".to_owned());
    }
    // The two directions of TCP know nothing of each other. An answer of HTTP may end its request.
    let request_is_due = shape.is_whole() || (answer_is_due && pattern.protocol == Protocol::Tcp);
    if request_is_due && backend.heard != Heard::Whole {
        found.push("nobody broke off, and the request is not whole".to_owned());
    }
    if *runs == 1 && shape.client_goes() && backend.heard == Heard::Open {
        found.push("the backend was not told that its client has gone".to_owned());
    }
    found
}

/// The same for one direction.
fn one_way(pattern: &Pattern, what: &str, from: &Side, to: &Side) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(to.wrong.as_ref().map(|wrong| format!("{what}: {wrong}")));
    if to.read > from.wrote {
        found.push(format!("{what}: {} bytes came of {}", to.read, from.wrote));
    }
    if to.heard == Heard::Whole {
        // Who closes a TCP connection has ended it in order, if the kernel sees it so: then nothing of it may be missing.
        let ended = from.said == Said::Whole || (from.said == Said::Left && pattern.protocol == Protocol::Tcp);
        if !ended {
            found.push(format!("{what}: an end in order of what was cut"));
        }
        if to.read != from.wrote {
            found.push(format!("{what}: an end in order behind {} of {} bytes", to.read, from.wrote));
        }
    }
    found
}

/// Where east reaches what the backends listen at.
struct Scene {
    ledger: Arc<Ledger>,
    tcp: SocketAddr,
    http1: http1::Clients,
    http1_at: SocketAddr,
    http2: http2::Clients,
    _backends: JoinSet<()>,
}

impl Scene {
    async fn new(sites: &[Site], patterns: Vec<Pattern>) -> Self {
        let ledger = Ledger::new(patterns);
        let mut listeners = Vec::new();
        for _ in 0..4 {
            listeners.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port"));
        }
        let ports: Vec<u16> = listeners.iter().map(|at| at.local_addr().expect("bound").port()).collect();
        let mut service = Service::new("shop", "all");
        for (port, name) in ports.iter().zip(["tcp", "http", "h2c", "grpc"]) {
            let protocol = if name == "h2c" { "kubernetes.io/h2c" } else { name };
            service = service.port(name, *port, Some(protocol));
        }
        sites[1].apply("all.yaml", &service.yaml());
        let address = sites[0].wait_answers("all-west.shop.svc.cluster.local");
        let at = |number: usize| SocketAddr::from((address, ports[number]));
        let mut backends = JoinSet::new();
        let mut listeners = listeners.into_iter();
        let mut next = || listeners.next().expect("four");
        backends.spawn(tcp::backend(Arc::clone(&ledger), next()));
        backends.spawn(http1::backend(Arc::clone(&ledger), next()));
        backends.spawn(http2::backend(Arc::clone(&ledger), next()));
        backends.spawn(http2::backend(Arc::clone(&ledger), next()));
        // A name is there a moment before its ports are.
        let start = Instant::now();
        while tokio::net::TcpStream::connect(at(3)).await.is_err() {
            assert!(start.elapsed() < PATIENCE, "nobody listens at {}", at(3));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let http2 = http2::Clients::new([at(2), at(3)]).await;
        Self { ledger, tcp: at(0), http1: http1::Clients::default(), http1_at: at(1), http2, _backends: backends }
    }

    async fn play(&self, index: usize) {
        let seat = self.ledger.client(index);
        let played = async {
            match seat.pattern().protocol {
                Protocol::Tcp => tcp::client(&seat, self.tcp).await,
                Protocol::Http1 => self.http1.play(&seat, self.http1_at).await,
                Protocol::Http2 | Protocol::Grpc => self.http2.play(&seat).await,
            }
        };
        if timeout(PATIENCE, played).await.is_err() {
            seat.wrong(format!("not over within {PATIENCE:?}"));
        }
    }

    /// Waits until no backend is at work. Each of them ends by its script, or when it is told that its client has gone.
    async fn settle(&self) {
        let start = Instant::now();
        while !self.ledger.is_over() && start.elapsed() < TOLD {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Plays all, [`AT_ONCE`] at a time.
async fn play_all(scene: Arc<Scene>) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut lanes = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (scene, next) = (Arc::clone(&scene), Arc::clone(&next));
        lanes.spawn(async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= scene.ledger.patterns.len() {
                    return;
                }
                // Boxed: the clients of four protocols are large.
                Box::pin(scene.play(index)).await;
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.expect("a lane");
    }
    scene.settle().await;
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var_os(variable)?.into_string().ok();
    Some(value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{variable} has to be a number")))
}

#[test]
fn bytes_and_ends_fit_at_both_ends_of_every_pattern() {
    if own_network("sites::patterns::bytes_and_ends_fit_at_both_ends_of_every_pattern") == Network::Done {
        return;
    }
    // The daily form is the same each time: what it finds was broken by the change at hand.
    let seed = number("LINKSPAN_PATTERN_SEED").unwrap_or_else(|| {
        if !long() {
            return DAILY_SEED;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        u64::from(now.subsec_nanos())
    });
    let ids = number("LINKSPAN_PATTERN").map_or_else(|| 0..if long() { 10_000 } else { 600 }, |only| only..only + 1);
    let (_dir, sites) = linked_here(["east", "west"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let start = Instant::now();
    let scene = runtime.block_on(async {
        let scene = Arc::new(Scene::new(&sites, ids.map(|id| Pattern::new(seed, id)).collect()).await);
        play_all(Arc::clone(&scene)).await;
        scene
    });
    let took = start.elapsed();
    let (mut failures, mut kinds, mut ends, mut bytes) = (Vec::new(), BTreeMap::new(), BTreeMap::new(), 0);
    for (index, pattern) in scene.ledger.patterns.iter().enumerate() {
        let events = scene.ledger.events(index).clone();
        *kinds.entry((pattern.protocol, pattern.shape)).or_insert(0) += 1;
        let end = match &events.client.heard {
            Heard::Whole => "whole",
            Heard::Cut(_) => "cut",
            Heard::Refused(_) => "refused",
            Heard::Open => "left",
        };
        *ends.entry(end).or_insert(0) += 1;
        bytes += events.client.read + events.backend.read;
        let found = violations(pattern, &events);
        if !found.is_empty() {
            failures.push(format!("{}\n    {pattern:?}\n    {events:?}", found.join("; ")));
        }
    }
    failures.extend(scene.http2.ended());
    let nameless = scene.ledger.nameless.load(Ordering::Relaxed);
    if nameless > 0 {
        failures.push(format!("{nameless} TCP connections ended in order before their first 8 bytes"));
    }
    for site in &sites {
        let panics = site.metric("gateway", "task_panics_total", "");
        if panics > 0.0 {
            failures.push(format!("{panics} tasks of {}'s gateway panicked", site.name()));
        }
    }
    eprintln!("{} patterns, {bytes} bytes in {took:?}, clients saw {ends:?}", scene.ledger.patterns.len());
    assert!(
        failures.is_empty(),
        "LINKSPAN_PATTERN_SEED={seed}: {} failures, of these\n{}\nof {kinds:?}",
        failures.len(),
        failures[..failures.len().min(12)].join("\n")
    );
}

/// What is checked would be found.
#[test]
fn each_violation_is_found() {
    let mut pattern = Pattern::new(1, 1);
    pattern.protocol = Protocol::Http1;
    pattern.shape = script::Shape::HalfClose;
    let side = Side { wrote: 7, said: Said::Whole, read: 7, heard: Heard::Whole, reset: false, wrong: None };
    let good = Events { client: side.clone(), backend: side, runs: 1, open: 0 };
    assert_eq!(violations(&pattern, &good), Vec::<String>::new());
    type Spoil = fn(&mut Events);
    let bad: [(&str, Spoil); 8] = [
        ("executed 2 times", |events| events.runs = 2),
        ("still waits", |events| events.open = 1),
        ("in order of what was cut", |events| events.backend.said = Said::Part),
        ("in order behind 6 of 7", |events| events.client.read = 6),
        ("8 bytes came of 7", |events| events.backend.read = 8),
        ("without having been executed", |events| events.runs = 0),
        ("never told", |events| events.client.heard = Heard::Open),
        ("request is not whole", |events| events.backend.heard = Heard::Cut(String::new())),
    ];
    for (what, change) in bad {
        let mut events = good.clone();
        change(&mut events);
        let found = violations(&pattern, &events).join("; ");
        assert!(found.contains(what), "{what}: {found:?}");
    }
    // Other bytes, too.
    let ledger = Ledger::new(vec![pattern]);
    let seat = ledger.client(0);
    let mut bytes = [0; 100];
    script::fill(1, script::Way::Down, 0, &mut bytes);
    seat.read(&bytes[..50]);
    assert_eq!(ledger.events(0).client.wrong, None);
    seat.read(&bytes[..50]);
    assert!(ledger.events(0).client.wrong.is_some());
}
