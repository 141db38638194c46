//! Connections that do nothing, and what they cost; and how long a new one takes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::tcp;

/// Threads that open connections: the paths answer at their own pace, and one at a time would take a minute.
const OPENERS: usize = 16;

/// So many failures in a row of one thread mean that the path takes no more.
const GIVE_UP: u32 = 2;

/// Opens up to `wanted` connections through a path, each with one byte there and one back, so that all of the way is up.
/// Fewer than wanted, where the path takes no more.
pub(crate) fn open(target: SocketAddr, wanted: usize) -> Vec<TcpStream> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..OPENERS)
            .map(|thread| {
                let mine = wanted / OPENERS + usize::from(thread < wanted % OPENERS);
                scope.spawn(move || open_some(target, mine))
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    })
}

fn open_some(target: SocketAddr, wanted: usize) -> Vec<TcpStream> {
    let (mut open, mut failures) = (Vec::with_capacity(wanted), 0);
    while open.len() < wanted && failures < GIVE_UP {
        match one(target) {
            Ok(stream) => {
                open.push(stream);
                failures = 0;
            }
            Err(_) => failures += 1,
        }
    }
    open
}

fn one(target: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = tcp::connect(target)?;
    stream.write_all(b"i")?;
    stream.read_exact(&mut [0; 1])?;
    Ok(stream)
}

/// How long a new connection takes until a byte sent on it is answered.
pub(crate) fn first_byte(target: SocketAddr) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut stream = tcp::connect(target)?;
    stream.write_all(b"p")?;
    stream.read_exact(&mut [0; 1])?;
    Ok(start.elapsed())
}
