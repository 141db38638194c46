//! Raw TCP load against the backend of [`crate::backend`].

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::load::{self, Counters, Seen};

/// Threads that open connections one after the other: enough to keep both cores busy, few enough not to measure the
/// scheduler.
const CONNECTORS: usize = 16;

/// Chunk of bulk transfers, as the backend's.
const CHUNK: usize = 256 * 1024;

/// How long a byte may take before the connection counts as failed; also the longest a transfer outlives its time.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Which way the bytes go, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the backend.
    Down,
    /// To the backend.
    Up,
}

/// New connections as fast as they go: connect, one byte there, one byte back, both ends close.
pub(crate) fn connections(target: SocketAddr, duration: Duration) -> anyhow::Result<Seen> {
    load::run(
        CONNECTORS,
        duration,
        |_| Ok(()),
        |(), counters: &Counters| {
            while !counters.stopped() {
                counters.count(one_connection(target).is_ok());
            }
        },
    )
}

/// The backend closes first, so that neither the client nor a gateway towards the backend is left with TIME_WAIT: a
/// client's ports would be used up within seconds.
fn one_connection(target: SocketAddr) -> std::io::Result<()> {
    let mut stream = connect(target)?;
    stream.write_all(b"p")?;
    let mut answer = Vec::with_capacity(2);
    stream.read_to_end(&mut answer)?;
    if answer == b"p" { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// Bytes as fast as they go, over `connections` connections.
pub(crate) fn bulk(target: SocketAddr, connections: usize, way: Way, duration: Duration) -> anyhow::Result<Seen> {
    let mut seen = load::run(
        connections,
        duration,
        |_| begin(target, way),
        |stream, counters: &Counters| {
            match transfer(stream, way, counters) {
                Ok(()) => counters.done.fetch_add(1, Ordering::Relaxed),
                Err(_) => counters.failed.fetch_add(1, Ordering::Relaxed),
            };
        },
    )?;
    anyhow::ensure!(seen.bytes > 0 || seen.failed > 0, "no byte moved");
    seen.latencies_us = Vec::new();
    Ok(seen)
}

/// A transfer that runs before the clock does.
fn begin(target: SocketAddr, way: Way) -> anyhow::Result<TcpStream> {
    let mut stream = connect(target)?;
    stream.write_all(if way == Way::Down { b"d" } else { b"u" })?;
    if way == Way::Down {
        stream.read_exact(&mut [0; 1])?;
    }
    Ok(stream)
}

/// Bits a second of a transfer from `one`'s backend, at first alone and then beside a transfer through `other`: what the
/// first one gets of the path, and what both get. The first `settle` of either part does not count.
pub(crate) fn beside(
    one: SocketAddr,
    other: SocketAddr,
    settle: Duration,
    duration: Duration,
) -> anyhow::Result<Shares> {
    let (first, second) = (Counters::default(), Counters::default());
    let rate = |counters: &Counters, start: u64| {
        (counters.bytes.load(Ordering::Relaxed) - start) as f64 * 8.0 / duration.as_secs_f64()
    };
    std::thread::scope(|scope| -> anyhow::Result<Shares> {
        let stream = begin(one, Way::Down)?;
        scope.spawn(|| transfer(stream, Way::Down, &first).ok());
        let measured = (|| -> anyhow::Result<Shares> {
            std::thread::sleep(settle);
            let start = first.bytes.load(Ordering::Relaxed);
            std::thread::sleep(duration);
            let alone = rate(&first, start);
            let stream = begin(other, Way::Down)?;
            scope.spawn(|| transfer(stream, Way::Down, &second).ok());
            std::thread::sleep(settle);
            let start = [&first, &second].map(|counters| counters.bytes.load(Ordering::Relaxed));
            std::thread::sleep(duration);
            Ok(Shares { alone, beside: rate(&first, start[0]), other: rate(&second, start[1]) })
        })();
        first.stop();
        second.stop();
        measured
    })
}

/// What [`beside`] saw, bits a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    /// The first transfer before the second began.
    pub(crate) alone: f64,
    /// The first transfer beside the second.
    pub(crate) beside: f64,
    /// The second.
    pub(crate) other: f64,
}

fn transfer(mut stream: TcpStream, way: Way, counters: &Counters) -> std::io::Result<()> {
    let mut chunk = vec![0x5a; CHUNK];
    while !counters.stopped() {
        let moved = match way {
            Way::Down => stream.read(&mut chunk)?,
            Way::Up => stream.write(&chunk)?,
        };
        if moved == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if !counters.stopped() {
            counters.bytes.fetch_add(moved as u64, Ordering::Relaxed);
        }
    }
    // The backend ends with its client; how it ends is not measured.
    stream.shutdown(Shutdown::Both).ok();
    Ok(())
}

pub(crate) fn connect(target: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}
