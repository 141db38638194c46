//! A WAN of ours: whole IP packets between two TUN devices, TCP and UDP alike, so that TCP really sees delay and loss.
//!
//! One thread serves both directions. Under load it reads and writes in batches and sleeps a moment in between, so that a
//! gigabit a second leaves most of a core to those who are measured; when it is quiet it wakes for each packet.

mod line;

pub(crate) mod check;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tappers::{Interface, Tun};

pub(crate) use line::{Counts, Settings};
use line::{Line, nanoseconds};

/// The largest packet of an MTU that the benchmark sets.
const PACKET: usize = 9_216;

/// Packets read from one side before the other gets its turn.
const BATCH: usize = 512;

/// A batch of at least so many packets is a sign of load.
const BUSY: usize = 4;

/// So many packets on the wire are one too: the next arrival is a moment away, and the one after it too.
const DENSE: usize = 64;

/// How long the thread sleeps under load. At 1 Gbit/s and 1,500 bytes, 8 packets come in the meantime; on a path of 50 ms
/// it shifts a packet by at most 0.2 %.
const NAP: Duration = Duration::from_micros(100);

/// How long the thread sleeps when nothing is on the wire; also how long it takes to see that it shall end.
const IDLE: Duration = Duration::from_millis(50);

/// Buffers kept for reuse.
const POOL: usize = 16 * 1024;

/// The relay. Dropping it ends the thread and removes the devices.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    devices: Option<[Tun; 2]>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// Changes with each change of the settings.
    generation: AtomicU64,
    settings: Mutex<Settings>,
    counts: Mutex<[Counts; 2]>,
    /// The thread's id, for its CPU time.
    thread: AtomicU64,
    /// Packets that the kernel did not take.
    refused: AtomicU64,
}

impl Relay {
    /// Two devices in this thread's namespace, and their names; the caller moves them to where they belong.
    pub(crate) fn open() -> anyhow::Result<(Self, [String; 2])> {
        let names = ["a", "b"].map(|end| format!("lsb{}{end}", std::process::id()));
        let open = |name: &String| -> anyhow::Result<Tun> {
            let interface = Interface::new(name).with_context(|| format!("{name} is no device name"))?;
            let mut device = Tun::new_named(interface)
                .with_context(|| format!("cannot make the TUN device {name} (is /dev/net/tun there?)"))?;
            device.set_nonblocking(true)?;
            Ok(device)
        };
        let devices = [open(&names[0])?, open(&names[1])?];
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            generation: AtomicU64::new(1),
            settings: Mutex::new(Settings::CLEAR),
            counts: Mutex::default(),
            thread: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        Ok((Self { shared, devices: Some(devices), thread: None }, names))
    }

    /// Starts the thread; the devices are where they belong.
    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        let devices = self.devices.take().context("the relay runs already")?;
        let shared = Arc::clone(&self.shared);
        self.thread = Some(std::thread::Builder::new().name("relay".to_owned()).spawn(move || run(&devices, &shared))?);
        Ok(())
    }

    /// New settings, for both directions.
    pub(crate) fn set(&self, settings: Settings) {
        *self.shared.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
        self.shared.generation.fetch_add(1, Ordering::Release);
        // The thread sees them when it wakes; what the caller sends next must meet them.
        std::thread::sleep(IDLE + IDLE / 2);
    }

    /// What became of all packets so far: from east, from west.
    pub(crate) fn counts(&self) -> [Counts; 2] {
        // As old as the thread's last sleep, at most.
        std::thread::sleep(IDLE + IDLE / 2);
        *self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Packets that the kernel did not take; 0, or the machine is out of memory.
    pub(crate) fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// CPU seconds that the thread has used.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let thread = self.shared.thread.load(Ordering::Relaxed);
        crate::process::thread_nanoseconds(&format!("/proc/self/task/{thread}")).unwrap_or_default() as f64 / 1e9
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed when it happened.
            thread.join().ok();
        }
    }
}

/// Relays until told to stop.
fn run(devices: &[Tun; 2], shared: &Shared) {
    shared.thread.store(u64::from(rustix::thread::gettid().as_raw_pid().unsigned_abs()), Ordering::Relaxed);
    let start = Instant::now();
    // Different seeds, or both directions would lose the packets of the same numbers.
    let mut lines = [Line::new(Settings::CLEAR, 1), Line::new(Settings::CLEAR, 2)];
    let mut pool = Pool(Vec::new());
    let mut generation = 0;
    let mut scratch = vec![0; PACKET];
    while !shared.stop.load(Ordering::Relaxed) {
        let current = shared.generation.load(Ordering::Acquire);
        if current != generation {
            generation = current;
            let settings = *shared.settings.lock().unwrap_or_else(PoisonError::into_inner);
            lines.iter_mut().for_each(|line| line.set(settings));
        }
        let mut moved = 0;
        let scratch = scratch.as_mut_slice();
        for (side, line) in lines.iter_mut().enumerate() {
            moved += read(&devices[side], line, &mut pool, scratch, nanoseconds(start.elapsed()));
            let refused = deliver(&devices[1 - side], line, &mut pool, nanoseconds(start.elapsed()));
            shared.refused.fetch_add(refused, Ordering::Relaxed);
        }
        *shared.counts.lock().unwrap_or_else(PoisonError::into_inner) = [lines[0].counts(), lines[1].counts()];
        if moved >= BUSY || lines.iter().map(Line::on_the_wire).sum::<usize>() >= DENSE {
            std::thread::sleep(NAP);
        } else {
            wait(devices, &lines, nanoseconds(start.elapsed()));
        }
    }
}

/// Reads what has come, up to a batch; how many packets that was.
fn read(device: &Tun, line: &mut Line, pool: &mut Pool, scratch: &mut [u8], now: u64) -> usize {
    for number in 0..BATCH {
        match device.recv(scratch) {
            Ok(length) if length > 0 => {
                if let Some(dropped) = line.offer(now, pool.copy(&scratch[..length])) {
                    pool.give(dropped);
                }
            }
            // Nothing there, or a device that is about to go.
            _ => return number,
        }
    }
    BATCH
}

/// Writes what has arrived; how many packets the kernel refused.
fn deliver(device: &Tun, line: &mut Line, pool: &mut Pool, now: u64) -> u64 {
    let mut refused = 0;
    while let Some(packet) = line.take(now) {
        refused += u64::from(device.send(&packet).is_err());
        pool.give(packet);
    }
    refused
}

/// Sleeps until a packet comes or arrives.
fn wait(devices: &[Tun; 2], lines: &[Line; 2], now: u64) {
    let next = lines.iter().filter_map(Line::next).min();
    let idle = nanoseconds(IDLE);
    let nanoseconds = next.map_or(idle, |next| next.saturating_sub(now).min(idle));
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::try_from(nanoseconds).unwrap_or_default() };
    let [one, two] = [devices[0].as_fd(), devices[1].as_fd()];
    let mut fds = [PollFd::from_borrowed_fd(one, PollFlags::IN), PollFd::from_borrowed_fd(two, PollFlags::IN)];
    // Interrupted or not: the loop looks at everything again.
    poll(&mut fds, Some(&timeout)).ok();
}

/// Buffers for reuse.
struct Pool(Vec<Vec<u8>>);

impl Pool {
    fn copy(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut buffer = self.0.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(packet);
        buffer
    }

    fn give(&mut self, buffer: Vec<u8>) {
        if self.0.len() < POOL {
            self.0.push(buffer);
        }
    }
}
