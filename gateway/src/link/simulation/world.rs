//! Gateways with real links over a network in memory, and the streams between them, in virtual time.
//!
//! All time of a run passes in [`World::pass`]: it looks at every link each [`TICK`], begins the streams that are due, and does
//! what faults do again and again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use linkspan_proto::configuration::{DefaultPolicy, Peer, Transport};
use linkspan_proto::identity::SpiffeId;
use linkspan_proto::names::ClusterName;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::book::Book;
use super::fault::{self, Fault};
use super::flow::{self, Course, Plan, Serving};
use super::shape::Shape;
use crate::link::testkit::network::{Conditions, Host, Network};
use crate::link::testkit::{Authority, PORT, Setup, Side};
use crate::link::{Keys, Links};

/// How often links are looked at.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// After everything is healed all links are alive again within so long: the longest back-off and a handshake, two probes, and
/// what a handshake that began in the worst moment loses.
pub(super) const BACK: Duration = Duration::from_secs(5);

/// And everything is as if nothing had happened (I5).
const FIXPOINT: Duration = Duration::from_secs(30);

/// Certificates are valid for so long before they are made, and after.
const BACKDATE: Duration = Duration::from_secs(15 * 60);

pub(super) const LIFE: Duration = Duration::from_secs(24 * 3600);

/// The names; who has the lower one matters.
const NAMES: [&str; 3] = ["east", "north", "west"];

pub(super) fn name(gateway: usize) -> ClusterName {
    ClusterName::parse(NAMES[gateway]).unwrap()
}

/// Gives a gateway a certificate as the controller makes them.
fn certify(side: &Side) {
    let name = SpiffeId::gateway(&side.authority.trust_domain);
    let leaf = side.authority.leaf(name.as_str(), |params| {
        let now = SystemTime::now();
        (params.not_before, params.not_after) = ((now - BACKDATE).into(), (now + LIFE).into());
    });
    leaf.install(&side.certificate);
}

/// One gateway, in all its lives.
struct Gateway {
    authority: Arc<Authority>,
    keys: Keys,
    host: Host,
    side: Option<Side>,
    lives: u32,
    /// Seconds that its clock is ahead.
    ahead: i64,
}

/// Sees the peer's address change every so often.
pub(super) struct Rebinding {
    pub(super) gateway: usize,
    pub(super) every: Duration,
    pub(super) next: Instant,
    /// Not only the port.
    pub(super) moves: bool,
}

/// The world of one run.
pub(super) struct World {
    pub(super) book: Arc<Book>,
    pub(super) shape: Shape,
    pub(super) random: SmallRng,
    pub(super) faults: Vec<Fault>,
    pub(super) rebindings: Vec<Rebinding>,
    network: Network,
    gateways: Vec<Gateway>,
    /// Sides that were killed: their tasks live on without a network, until they notice.
    graves: Vec<Side>,
    /// By who looks and at whom: when the link was seen to change, and to what.
    history: BTreeMap<(usize, usize), Vec<(Duration, bool)>>,
    next_stream: Option<Instant>,
    streams: u64,
    outside: u8,
}

impl World {
    /// All gateways linked and alive.
    pub(super) async fn begin(seed: u64, shape: Shape) -> Self {
        let mut world = Self::quiet(seed, shape);
        for gateway in 0..world.shape.gateways {
            world.start(gateway).await;
        }
        if world.back(BACK).await.is_none() {
            world.book.wrong("the links do not come up");
        }
        world
    }

    /// Nobody has started yet.
    pub(super) fn quiet(seed: u64, shape: Shape) -> Self {
        let network = Network::seeded(seed);
        network.pace(shape.packet);
        let gateways = (0..shape.gateways).map(|gateway| Gateway {
            authority: Arc::new(Authority::of_one_size(&format!("{}.linkspan.internal", NAMES[gateway]))),
            keys: Keys::ephemeral(),
            host: network.host(Self::place(gateway)),
            side: None,
            lives: 0,
            ahead: 0,
        });
        let gateways = gateways.collect();
        let mut world = Self {
            book: Arc::new(Book::new()),
            shape,
            random: SmallRng::seed_from_u64(!seed),
            faults: Vec::new(),
            rebindings: Vec::new(),
            network,
            gateways,
            graves: Vec::new(),
            history: BTreeMap::new(),
            next_stream: None,
            streams: 0,
            outside: 0,
        };
        world.weather();
        world
    }

    const fn place(gateway: usize) -> u8 {
        gateway as u8 + 1
    }

    /// Starts a gateway, for the first time or after [`Self::kill`].
    pub(super) async fn start(&mut self, gateway: usize) {
        let lives = self.gateways[gateway].lives + 1;
        let host = self.network.host(Self::place(gateway));
        let one = &self.gateways[gateway];
        host.set_clock(one.ahead);
        let setup = Setup {
            keys: one.keys.clone(),
            boot_id: format!("{gateway}-{lives}"),
            ingress: Some(Arc::new(Serving { book: Arc::clone(&self.book), gateway })),
            host: Some(host.clone()),
            ..Setup::default()
        };
        let side = Side::start_with(Arc::clone(&one.authority), NAMES[gateway], setup);
        certify(&side);
        let peers = self.peers(gateway);
        assert_eq!(side.links.configure(&peers).await, [], "the peers are in order");
        let one = &mut self.gateways[gateway];
        (one.host, one.side, one.lives) = (host, Some(side), lives);
        self.book.note(&format!("{} starts", NAMES[gateway]));
    }

    /// What a gateway knows of the others.
    fn peers(&self, of: usize) -> Vec<Peer> {
        let peer = |other: usize, is_dialled: bool| {
            let one = &self.gateways[other];
            Peer {
                cluster: name(other),
                trust_domain: one.authority.trust_domain.clone(),
                trust_bundle: one.authority.bundle(),
                addresses: if is_dialled { vec![one.host.address(PORT).to_string()] } else { Vec::new() },
                default_policy: DefaultPolicy::Allow,
                transport: Transport::Quic,
                congestion: Default::default(),
            }
        };
        let of_pair = |(one, other, first, second): &(usize, usize, bool, bool)| match of {
            of if of == *one => Some(peer(*other, *first)),
            of if of == *other => Some(peer(*one, *second)),
            _ => None,
        };
        self.shape.dials.iter().filter_map(of_pair).collect()
    }

    /// Ends a gateway without a word.
    pub(super) async fn kill(&mut self, gateway: usize) {
        self.book.note(&format!("{} is killed", NAMES[gateway]));
        self.gateways[gateway].host.unplug();
        self.bury(gateway).await;
    }

    async fn bury(&mut self, gateway: usize) {
        let Some(side) = self.gateways[gateway].side.take() else { return };
        self.gateways[gateway].host.unplug();
        side.links.configure(&[]).await;
        self.graves.push(side);
        self.history.retain(|(from, _), _| *from != gateway);
    }

    /// Ends a gateway as its supervisor does: it tells its peers, and lets its streams end.
    pub(super) async fn stop(&mut self, gateway: usize, deadline: Duration) {
        self.book.note(&format!("{} ends", NAMES[gateway]));
        let links = self.links(gateway).expect("it runs");
        let ending = tokio::spawn(async move {
            links.announce().await;
            links.drain(deadline).await;
        });
        while !ending.is_finished() {
            self.pass(TICK).await;
        }
        self.book.note(&format!("{} has ended", NAMES[gateway]));
        self.bury(gateway).await;
    }

    /// Gives a gateway another certificate.
    pub(super) fn certify(&self, gateway: usize) {
        if let Some(side) = &self.gateways[gateway].side {
            certify(side);
        }
    }

    /// Sets a gateway's wall clock so many seconds ahead of what is right.
    pub(super) fn set_clock(&mut self, gateway: usize, ahead: i64) {
        let one = &mut self.gateways[gateway];
        one.ahead = ahead;
        one.host.set_clock(ahead);
    }

    /// Puts a gateway behind a NAT, or has the one it is behind forget.
    pub(super) fn rebind(&mut self, gateway: usize, moves: bool) {
        self.outside += u8::from(moves);
        let outside = [198, 51, 100, self.outside].into();
        self.book.note(&format!("{} is seen at {outside}", NAMES[gateway]));
        self.gateways[gateway].host.rebind(outside);
    }

    /// Makes the network what the present faults say.
    pub(super) fn weather(&mut self) {
        for from in 0..self.shape.gateways {
            for to in (0..self.shape.gateways).filter(|to| *to != from) {
                let (cut, conditions) =
                    fault::of_direction(&self.faults, (from, to), Conditions::calm(self.shape.delay));
                let hosts = (&self.gateways[from].host, &self.gateways[to].host);
                self.network.cut(hosts.0, hosts.1, cut);
                self.network.shape(hosts.0, hosts.1, conditions);
            }
        }
    }

    /// From now on streams are opened now and then, or no longer.
    pub(super) fn load(&mut self, goes: bool) {
        self.next_stream = goes.then(Instant::now);
    }

    /// Lets time pass.
    pub(super) async fn pass(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            self.look();
            self.offer();
            self.rebind_if_due();
            let now = Instant::now();
            if now >= end {
                return;
            }
            tokio::time::sleep_until((now + TICK).min(end)).await;
        }
    }

    fn look(&mut self) {
        let now = self.book.now();
        for (from, to) in self.directions() {
            let alive = self.is_alive(from, to);
            let seen = self.history.entry((from, to)).or_default();
            if seen.last().is_some_and(|(_, last)| *last) != alive {
                seen.push((now, alive));
                let word = if alive { "alive" } else { "withdrawn" };
                self.book.note(&format!("{} sees {} {word}", NAMES[from], NAMES[to]));
            }
        }
    }

    fn offer(&mut self) {
        let now = Instant::now();
        if self.next_stream.is_some_and(|next| next <= now) {
            let gap = -self.random.random_range(f64::EPSILON..1.0_f64).ln();
            self.next_stream = Some(now + self.shape.every.mul_f64(gap.min(10.0)));
            let (one, other, ..) = self.shape.dials[self.random.random_range(0..self.shape.dials.len())];
            let (from, to) = if self.random.random() { (one, other) } else { (other, one) };
            let plan = Plan::drawn(self.number(), from, to, &mut self.random);
            self.open(plan);
        }
    }

    fn rebind_if_due(&mut self) {
        let now = Instant::now();
        let due = self.rebindings.iter_mut().filter(|rebinding| rebinding.next <= now);
        let due: Vec<_> = due
            .map(|rebinding| {
                rebinding.next = now + rebinding.every;
                (rebinding.gateway, rebinding.moves)
            })
            .collect();
        for (gateway, moves) in due {
            self.rebind(gateway, moves);
        }
    }

    fn number(&mut self) -> u64 {
        self.streams += 1;
        self.streams
    }

    /// Begins long streams with little in them, in either direction of every link in turn.
    pub(super) fn tunnels(&mut self, count: usize, lasts: Duration) -> Vec<u64> {
        let directions = self.directions();
        let every = Duration::from_millis(100);
        let tunnel = |index: usize| {
            let (from, to) = directions[index % directions.len()];
            self.stream(from, to, Course::steady(every, lasts), Course::steady(every, lasts))
        };
        (0..count).map(tunnel).collect()
    }

    /// Begins a stream between two gateways that follows these courses; gives its number.
    pub(super) fn stream(&mut self, from: usize, to: usize, question: Course, answer: Course) -> u64 {
        let number = self.number();
        self.open(Plan { number, from, to, question, answer, in_turn: false });
        number
    }

    fn open(&self, plan: Plan) {
        let Some(side) = &self.gateways[plan.from].side else { return };
        let (from, domain, links) = (side.cluster(), side.authority.trust_domain.clone(), side.links.clone());
        let (book, to) = (Arc::clone(&self.book), name(plan.to));
        book.begin(plan.clone());
        drop(tokio::spawn(async move {
            let opened = links.open(0, &to).await;
            book.opened(plan.number, &from, &to, opened.as_ref().err().copied());
            if let Ok(halves) = opened {
                flow::ask(&book, &plan, &domain, halves).await;
            }
        }));
    }

    pub(super) fn links(&self, gateway: usize) -> Option<Links> {
        self.gateways[gateway].side.as_ref().map(|side| side.links.clone())
    }

    /// Connections of a link, as one end of it reports them.
    pub(super) fn connections(&self, from: usize, to: usize) -> u32 {
        let reports = self.links(from).map(|links| links.reports()).unwrap_or_default();
        reports.iter().find(|report| report.cluster == name(to)).map_or(0, |report| report.connections)
    }

    /// Every link from both its ends.
    pub(super) fn directions(&self) -> Vec<(usize, usize)> {
        self.shape.dials.iter().flat_map(|(one, other, ..)| [(*one, *other), (*other, *one)]).collect()
    }

    pub(super) fn is_alive(&self, from: usize, to: usize) -> bool {
        self.gateways[from].side.as_ref().is_some_and(|side| side.links.alive(&name(to)))
    }

    /// When `from` saw its link to `to` change since then, and to what.
    pub(super) fn changes(&self, direction: (usize, usize), since: Duration) -> Vec<(Duration, bool)> {
        let seen = self.history.get(&direction).into_iter().flatten();
        seen.filter(|(at, _)| *at >= since).copied().collect()
    }

    /// Waits until all links of gateways that run are alive at both ends; how long that took.
    pub(super) async fn back(&mut self, patience: Duration) -> Option<Duration> {
        let began = Instant::now();
        while began.elapsed() <= patience {
            let runs = |gateway: usize| self.gateways[gateway].side.is_some();
            let is_back = |(from, to)| !runs(from) || !runs(to) || self.is_alive(from, to);
            if self.directions().into_iter().all(is_back) {
                self.look();
                return Some(began.elapsed());
            }
            self.pass(TICK).await;
        }
        None
    }

    /// Waits until these streams have ended; whether they did.
    pub(super) async fn ended(&mut self, streams: &[u64], patience: Duration) -> bool {
        let began = Instant::now();
        while self.book.open().iter().any(|open| streams.contains(open)) {
            if began.elapsed() > patience {
                return false;
            }
            self.pass(TICK).await;
        }
        true
    }

    /// A short stream over every link, from either end: all must go as planned.
    pub(super) async fn ask_all(&mut self) {
        let mut asked = Vec::new();
        for (from, to) in self.directions() {
            asked.push(self.stream(from, to, Course::whole(20_000), Course::whole(20_000)));
        }
        self.as_planned(&asked, Duration::from_secs(10)).await;
    }

    /// Waits for these streams; one that does not end as planned is a violation. How long it took.
    pub(super) async fn as_planned(&mut self, streams: &[u64], patience: Duration) -> Duration {
        let began = Instant::now();
        self.ended(streams, patience).await;
        for wrong in streams.iter().filter_map(|number| self.book.unlike_plan(*number)) {
            self.book.wrong(&wrong);
        }
        began.elapsed()
    }

    /// The end: everything heals, comes to rest and is taken down. What does not is a violation.
    pub(super) async fn end(&mut self) {
        self.load(false);
        if self.back(FIXPOINT).await.is_none() {
            self.book.wrong("a link is not back 30 s after the end of all faults (I5)");
        }
        self.ask_all().await;
        let all = self.book.streams();
        if !self.ended(&all, FIXPOINT).await {
            self.book.wrong(&format!("streams that never end: {:?}", self.book.open()));
        }
        self.at_rest(|world| world.open_streams() == 0, "streams are still counted").await;
        for side in self.gateways.iter_mut().filter_map(|gateway| gateway.side.take()) {
            side.links.configure(&[]).await;
            self.graves.push(side);
        }
        // Of each life: the endpoint of its listener, who accepts there, who accepts TCP, and, where batches were sent from there,
        // who sends the last of them.
        let left = 4 * self.graves.len();
        let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        self.at_rest(|_| alive() <= left, "tasks are left").await;
        let journal = self.network.journal();
        let (packets, bytes, digest) = (journal.packets, journal.bytes, journal.digest);
        self.book.note(&format!("carried {packets} packets, {bytes} bytes, digest {digest:016x}"));
    }

    fn open_streams(&self) -> usize {
        self.gateways.iter().filter_map(|gateway| gateway.side.as_ref()).map(|side| side.links.open_streams()).sum()
    }

    async fn at_rest(&mut self, holds: impl Fn(&Self) -> bool, what: &str) {
        let began = Instant::now();
        while !holds(self) {
            if began.elapsed() > FIXPOINT {
                return self.book.wrong(what);
            }
            tokio::time::sleep(TICK).await;
        }
    }
}
