//! The link under everything that a network and its neighbours can do to it, in virtual time and from a seed.
//!
//! ```text
//! seed -> shape of the world (gateways, who dials, delays), faults and when, streams and how they end
//!      -> World: real Links, real quinn and TLS, over testkit::network
//!      -> Book: trace, streams, violations
//! ```
//!
//! - The same seed gives the same trace: each event of links and streams with its virtual time, and a digest over every packet
//!   that was sent: when, whence, whither, how large, and what became of it. What the packets hold is not compared: keys,
//!   connection ids and certificates are the operating system's. Their sizes are always the same (Ed25519 certificates of one
//!   size), and quinn's own generators are seeded through [`Network::seed`](super::socket::Network::seed).
//! - Checked all the time: no stream ends cleanly before its end (I1), every byte is the one that was written, nothing is
//!   served twice (I2), nothing panics (I4). After each fault: the numbers of the fault matrix. In the end: all links are
//!   back (I5), no stream and no task is left.
//! - What is not simulated: several workers of one gateway (kernels spread packets over sockets), DNS, quinn's address tokens
//!   (they look at the machine's wall clock), a process that is stopped alone and goes on.
//!
//! How to run more seeds, or one again: CONTRIBUTING.md.

use std::cell::Cell;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};

use rand::SeedableRng;
use rand::rngs::SmallRng;

use shape::Shape;
use world::World;

mod book;
mod fault;
mod flow;
mod shape;
mod world;

#[cfg(test)]
mod tests;

/// Lines of a trace that are shown with a violation.
const SHOWN: usize = 60;

thread_local! {
    /// Panics on this thread: a run has one of its own.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// What came out of one run.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    trace: Vec<String>,
    wrong: Vec<String>,
}

/// Plays one seed.
fn play(seed: u64, shape: impl Fn(&mut SmallRng) -> Shape, scenario: &impl AsyncFn(&mut World)) -> Run {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            usual(info);
        }));
    });
    let before = PANICS.get();
    let mut random = SmallRng::seed_from_u64(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (trace, mut wrong) = runtime.block_on(async {
        let mut world = Box::pin(World::begin(seed, shape(&mut random))).await;
        Box::pin(scenario(&mut world)).await;
        Box::pin(world.end()).await;
        world.book.close()
    });
    if PANICS.get() > before {
        wrong.push("a task panicked (I4)".to_owned());
    }
    Run { trace, wrong }
}

/// Plays many seeds, on all processors. A violation fails the test and says how to see it again.
fn play_all(
    seeds: Range<u64>,
    shape: impl Fn(&mut SmallRng) -> Shape + Sync,
    scenario: impl AsyncFn(&mut World) + Sync,
) {
    let (seeds, shown) = match number("LINKSPAN_SEED") {
        Some(seed) => (seed..seed + 1, usize::MAX),
        None => (seeds, SHOWN),
    };
    let next = AtomicU64::new(seeds.start);
    let failed = Mutex::new(Vec::new());
    let player = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || failed.lock().unwrap().len() >= 3 {
                return;
            }
            let run = panic::catch_unwind(AssertUnwindSafe(|| play(seed, &shape, &scenario)));
            let run =
                run.unwrap_or_else(|_| Run { trace: Vec::new(), wrong: vec!["the run itself panicked".to_owned()] });
            if shown == usize::MAX {
                println!("seed {seed}\n{}", run.trace.join("\n"));
            }
            if !run.wrong.is_empty() {
                failed.lock().unwrap().push((seed, run));
            }
        }
    };
    std::thread::scope(|scope| {
        let players = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..players.min((seeds.end - seeds.start) as usize) {
            scope.spawn(player);
        }
    });
    let failed = failed.into_inner().unwrap();
    let told: Vec<String> = failed.iter().map(|(seed, run)| tell(*seed, run, shown)).collect();
    assert!(told.is_empty(), "\n{}", told.join("\n"));
}

/// The end of the trace, up to the first violation, and what is wrong.
fn tell(seed: u64, run: &Run, shown: usize) -> String {
    let at = run.trace.iter().position(|line| line.contains("VIOLATION")).map_or(run.trace.len(), |at| at + 1);
    let lines = run.trace[at.saturating_sub(shown)..at].join("\n");
    let wrong = run.wrong.join("\n  ");
    format!("{lines}\nseed {seed} (LINKSPAN_SEED={seed} plays it alone and prints its trace):\n  {wrong}")
}

/// A number that whoever runs the tests has set.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var_os(variable)?;
    let number = text.to_str().and_then(|text| text.parse().ok());
    Some(number.unwrap_or_else(|| panic!("{variable} is {}, and must be a number", text.display())))
}
