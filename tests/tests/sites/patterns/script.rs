//! What a client and a backend do to each other, drawn from a seed; the bytes that they exchange; and what each of them saw.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// SplitMix64: a few lines that give the same numbers everywhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The numbers of one pattern, whatever others there are.
    pub(super) fn of(seed: u64, id: u64) -> Self {
        Self(mix(seed) ^ mix(id.wrapping_add(1)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Sizes around every border: nothing, a few bytes, a packet, a buffer, more than the windows of a stream hold.
    fn size(&mut self) -> u64 {
        match self.below(100) {
            0..10 => 0,
            10..35 => self.below(100),
            35..65 => self.below(4_000),
            65..90 => self.below(100_000),
            90..98 => self.below(600_000),
            _ => 1_000_000 + self.below(1_000_000),
        }
    }
}

const fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// What runs between client and backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Protocol {
    Tcp,
    Http1,
    Http2,
    Grpc,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shape {
    /// The client ends its half, and the backend answers behind that.
    HalfClose,
    /// Both talk at once.
    Duplex,
    /// The client takes the answer slowly.
    SlowClient,
    /// The backend takes the request slowly.
    SlowBackend,
    /// The backend answers in full before it has read the request, and reads that on.
    Early,
    /// The same, and it closes at once.
    EarlyClose,
    /// The client resets in the middle of its request.
    ClientReset,
    /// The client closes its connection in the middle of its request, whatever is unread there.
    ClientLeaves,
    /// The backend resets in the middle of its answer, or before it.
    BackendReset,
    /// The backend ends its connection (HTTP/1) or stream (HTTP/2, with `NO_ERROR`) in order, in the middle of its answer.
    BackendCuts,
}

const SHAPES: [Shape; 10] = [
    Shape::HalfClose,
    Shape::Duplex,
    Shape::SlowClient,
    Shape::SlowBackend,
    Shape::Early,
    Shape::EarlyClose,
    Shape::ClientReset,
    Shape::ClientLeaves,
    Shape::BackendReset,
    Shape::BackendCuts,
];

impl Shape {
    /// Nobody breaks anything off: all bytes arrive, both ways.
    pub(super) fn is_whole(self) -> bool {
        matches!(self, Self::HalfClose | Self::Duplex | Self::SlowClient | Self::SlowBackend)
    }

    /// The client goes before the end.
    pub(super) fn client_goes(self) -> bool {
        matches!(self, Self::ClientReset | Self::ClientLeaves)
    }

    /// The answer is never whole.
    pub(super) fn backend_breaks(self) -> bool {
        matches!(self, Self::BackendReset | Self::BackendCuts)
    }

    /// The backend answers while it reads.
    pub(super) fn is_duplex(self) -> bool {
        matches!(self, Self::Duplex | Self::ClientReset | Self::ClientLeaves)
    }

    /// The backend answers before it has read all.
    pub(super) fn is_early(self) -> bool {
        matches!(self, Self::Early | Self::EarlyClose)
    }
}

/// One pattern.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    pub(super) id: u64,
    pub(super) protocol: Protocol,
    pub(super) shape: Shape,
    /// Bytes of the request, and of the answer.
    pub(super) up: u64,
    pub(super) down: u64,
    /// Bytes of its request after which a client goes.
    pub(super) client_after: u64,
    /// Bytes of the request that a backend reads before it answers early or breaks off.
    pub(super) backend_reads: u64,
    /// Bytes of its answer after which a backend breaks off.
    pub(super) backend_after: u64,
    /// The backend breaks off before any byte of an answer, its head included.
    pub(super) headless: bool,
    /// Lengths are announced, where the protocol can do without.
    pub(super) announced: bool,
    /// Before whoever breaks off does so.
    pub(super) pause: Duration,
    /// Bytes written at once.
    pub(super) piece: u64,
}

impl Pattern {
    pub(super) fn new(seed: u64, id: u64) -> Self {
        let mut random = Random::of(seed, id);
        let protocol = random.pick(&[Protocol::Tcp, Protocol::Http1, Protocol::Http2, Protocol::Grpc]);
        let mut shape = random.pick(&SHAPES);
        if protocol == Protocol::Tcp && shape == Shape::BackendCuts {
            // An orderly end is the end of an answer there.
            shape = Shape::BackendReset;
        }
        let (mut up, mut down) = (random.size(), random.size());
        if shape.client_goes() {
            up += 1;
        }
        if shape.backend_breaks() {
            down += 1;
        }
        if shape.is_duplex() {
            // A byte for each half, see `first_half`.
            down += 2;
        }
        if matches!(shape, Shape::SlowClient) {
            down = down.max(50_000);
        }
        if matches!(shape, Shape::SlowBackend) {
            up = up.max(50_000);
        }
        Self {
            id,
            protocol,
            shape,
            client_after: random.below(up),
            backend_reads: random.below(up + 1),
            backend_after: random.below(down),
            headless: random.chance(30),
            announced: random.chance(50),
            pause: Duration::from_millis(if random.chance(50) { 0 } else { random.below(20) }),
            piece: random.pick(&[1_000, 16_000, 64_000]),
            up,
            down,
        }
    }

    /// What the client says before it ends its half or goes.
    pub(super) fn says(&self) -> u64 {
        if self.shape.client_goes() { self.client_after } else { self.up }
    }

    /// What a duplex backend of HTTP answers while it reads. It says the rest when it has read all: behind the end of an answer
    /// nobody wants the rest of a request, and the gateways stop it.
    pub(super) fn first_half(&self) -> u64 {
        self.down / 2
    }

    /// What the backend says before it ends its answer or breaks off.
    pub(super) fn answers(&self) -> u64 {
        if self.shape.backend_breaks() { self.backend_after } else { self.down }
    }
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
}

/// The bytes of pattern `id` that go one way, from `offset` on.
pub(super) fn fill(id: u64, way: Way, offset: u64, into: &mut [u8]) {
    let salt = mix(id ^ ((way as u64) << 63));
    let mut word = u64::MAX;
    let mut bytes = [0; 8];
    for (at, byte) in (offset..).zip(into) {
        if at / 8 != word {
            word = at / 8;
            bytes = mix(salt ^ word).to_le_bytes();
        }
        *byte = bytes[(at % 8) as usize];
    }
}

/// How one end of a stream ended, for whoever reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Heard {
    /// It has not, or its reader did not wait for that.
    #[default]
    Open,
    /// In order, as the protocol tells an end.
    Whole,
    /// By a reset, or short of what was announced.
    Cut(String),
    /// Instead of an answer came one of the gateway's own.
    Refused(String),
}

/// How far one end has come in what it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Said {
    /// Not to an end: it was not let, or it broke off.
    #[default]
    Part,
    /// To an end in order.
    Whole,
    /// Its socket was closed, as a program does that just ends: the kernel makes a FIN or a RST of it.
    Left,
}

/// What one end did and saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Side {
    pub(super) wrote: u64,
    pub(super) said: Said,
    pub(super) read: u64,
    pub(super) heard: Heard,
    /// A write has met a reset.
    pub(super) reset: bool,
    /// What must never be.
    pub(super) wrong: Option<String>,
}

/// What happened in one pattern.
#[derive(Clone, Debug, Default)]
pub(super) struct Events {
    pub(super) client: Side,
    pub(super) backend: Side,
    /// How often the backend was asked.
    pub(super) runs: u32,
    /// Of these still under way.
    pub(super) open: u32,
}

/// All patterns, and what happened in them.
pub(super) struct Ledger {
    pub(super) patterns: Vec<Pattern>,
    events: Vec<Mutex<Events>>,
    /// TCP connections to the backend that ended in order before they said which pattern they belong to.
    pub(super) nameless: AtomicU32,
}

/// One end of one pattern.
#[derive(Clone)]
pub(super) struct Seat {
    ledger: Arc<Ledger>,
    index: usize,
    backend: bool,
}

impl Ledger {
    pub(super) fn new(patterns: Vec<Pattern>) -> Arc<Self> {
        let events = patterns.iter().map(|_| Mutex::default()).collect();
        Arc::new(Self { patterns, events, nameless: AtomicU32::new(0) })
    }

    pub(super) fn client(self: &Arc<Self>, index: usize) -> Seat {
        Seat { ledger: Arc::clone(self), index, backend: false }
    }

    /// The backend was asked for pattern `id`.
    pub(super) fn asked(self: &Arc<Self>, id: u64) -> Option<Asked> {
        let index = self.patterns.iter().position(|pattern| pattern.id == id)?;
        let mut events = self.events(index);
        events.runs += 1;
        events.open += 1;
        drop(events);
        Some(Asked(Seat { ledger: Arc::clone(self), index, backend: true }))
    }

    pub(super) fn events(&self, index: usize) -> MutexGuard<'_, Events> {
        self.events[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no backend is at work any more.
    pub(super) fn is_over(&self) -> bool {
        (0..self.patterns.len()).all(|index| self.events(index).open == 0)
    }

    pub(super) fn came_nameless(&self) {
        self.nameless.fetch_add(1, Ordering::Relaxed);
    }
}

/// A backend at work.
pub(super) struct Asked(pub(super) Seat);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.ledger.events(self.0.index).open -= 1;
    }
}

impl Seat {
    pub(super) fn pattern(&self) -> &Pattern {
        &self.ledger.patterns[self.index]
    }

    fn note(&self, change: impl FnOnce(&mut Side)) {
        let mut events = self.ledger.events(self.index);
        change(if self.backend { &mut events.backend } else { &mut events.client });
    }

    /// The next piece of what this end says, up to `end`; `None` when that is said.
    pub(super) fn piece(&self, offset: u64, end: u64) -> Option<Vec<u8>> {
        let length = self.pattern().piece.min(end.saturating_sub(offset));
        let mut piece = vec![0; usize::try_from(length).expect("small")];
        let way = if self.backend { Way::Down } else { Way::Up };
        fill(self.pattern().id, way, offset, &mut piece);
        (length > 0).then_some(piece)
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.note(|side| side.wrote += bytes as u64);
    }

    pub(super) fn said(&self, said: Said) {
        self.note(|side| side.said = said);
    }

    /// Bytes came; they are compared with those that the other end says at this place.
    pub(super) fn read(&self, bytes: &[u8]) {
        let way = if self.backend { Way::Up } else { Way::Down };
        let mut expected = vec![0; bytes.len()];
        self.note(|side| {
            fill(self.pattern().id, way, side.read, &mut expected);
            if expected != bytes {
                side.wrong.get_or_insert_with(|| format!("other bytes than were sent, from {} on", side.read));
            }
            side.read += bytes.len() as u64;
        });
    }

    pub(super) fn was_reset(&self) {
        self.note(|side| side.reset = true);
    }

    pub(super) fn is_reset(&self) -> bool {
        let mut reset = false;
        self.note(|side| reset = side.reset);
        reset
    }

    /// How much has come.
    pub(super) fn has_read(&self) -> u64 {
        let mut read = 0;
        self.note(|side| read = side.read);
        read
    }

    pub(super) fn heard(&self, heard: Heard) {
        self.note(|side| side.heard = heard);
    }

    pub(super) fn wrong(&self, what: impl Into<String>) {
        self.note(|side| side.wrong = Some(what.into()));
    }

    /// How much this end reads at once, and how long it waits before that.
    pub(super) fn slowly(&self) -> Option<(usize, Duration)> {
        let pattern = self.pattern();
        let (slow, total) = match pattern.shape {
            Shape::SlowClient => (!self.backend, pattern.down),
            Shape::SlowBackend => (self.backend, pattern.up),
            _ => (false, 0),
        };
        // At most some forty waits.
        slow.then(|| (usize::try_from(total / 40).expect("small").max(4_096), Duration::from_millis(4)))
    }
}
