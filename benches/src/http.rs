//! HTTP load: h2load where it is installed for throughput, our own open-loop generator for latency.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::load::{self, Counters, Seen};
use crate::process;

/// Connections of the latency measurement, each with a thread of its own. At 2000 requests a second, requests are sent on
/// time as long as latency stays below 32 ms; beyond that, waiting for a connection counts as latency.
const OPEN_LOOP_CONNECTIONS: usize = 64;

/// How long one answer may take before it counts as a failure.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests as fast as answers come, over `connections` keep-alive connections, HTTP/1.1.
pub(crate) fn closed_loop(target: SocketAddr, connections: usize, duration: Duration) -> anyhow::Result<Seen> {
    if process::find("h2load").is_some() {
        return h2load(target, &["--h1", "-c", &connections.to_string()], duration);
    }
    closed_loop_built_in(target, connections, duration)
}

/// The same by threads of our own: more CPU time for the load, so a lower figure on both paths.
pub(crate) fn closed_loop_built_in(target: SocketAddr, connections: usize, duration: Duration) -> anyhow::Result<Seen> {
    load::run(
        connections,
        duration,
        |_| Connection::open(target),
        |mut connection, counters: &Counters| {
            while !counters.stopped() {
                let worked = connection.exchange().is_ok();
                counters.count(worked);
                if !worked && connection.reopen().is_err() {
                    return;
                }
            }
        },
    )
}

/// Requests as fast as answers come, over HTTP/2 with prior knowledge: 8 connections of 16 streams.
pub(crate) fn closed_loop_h2(target: SocketAddr, duration: Duration) -> anyhow::Result<Seen> {
    h2load(target, &["-c", "8", "-m", "16"], duration)
}

fn h2load(target: SocketAddr, how: &[&str], duration: Duration) -> anyhow::Result<Seen> {
    let program = process::find("h2load").context("h2load is not installed (Debian: nghttp2-client)")?;
    let mut command = Command::new(program);
    command.args(how).args(["-t", "1", "-D", &duration.as_secs_f64().ceil().to_string()]);
    // No warm-up: its requests would cost CPU time and not be counted.
    let text = process::output(command.arg(format!("http://{target}/")))?;
    parse_h2load(&text).with_context(|| format!("h2load says:\n{text}"))
}

/// The lines `finished in 4.00s, 12345.60 req/s, ...` and `requests: 10 total, ..., 9 succeeded, 1 failed, ...`.
fn parse_h2load(text: &str) -> Option<Seen> {
    let rate = text.lines().find_map(|line| line.strip_prefix("finished in "))?;
    let rate: f64 = rate.split(", ").find_map(|part| part.strip_suffix(" req/s"))?.trim().parse().ok()?;
    let counts = text.lines().find_map(|line| line.strip_prefix("requests: "))?;
    let count = |name: &str| -> Option<u64> {
        counts.split(", ").find_map(|part| part.strip_suffix(name))?.trim().parse().ok()
    };
    let (answered, done, failed) = (count(" done")?, count(" succeeded")?, count(" failed")?);
    // Statuses that are no success count as failures too: an error answered quickly is no throughput.
    let statuses = text.lines().find_map(|line| line.strip_prefix("status codes: "))?;
    let good: u64 = statuses.split(", ").find_map(|part| part.strip_suffix(" 2xx"))?.trim().parse().ok()?;
    // The rate is of all answers, good or bad; with none of either, how long it took does not matter.
    let elapsed = if rate > 0.0 { answered as f64 / rate } else { 1.0 };
    let elapsed = Duration::from_secs_f64(elapsed);
    Some(Seen { elapsed, done: good.min(done), failed: failed + done.saturating_sub(good), ..Seen::default() })
}

/// `rate` requests a second at moments fixed beforehand; latency counts from the moment at which a request was due, so
/// that a stall costs every request that it delays (no coordinated omission).
pub(crate) fn open_loop(target: SocketAddr, rate: u32, duration: Duration) -> anyhow::Result<Seen> {
    let gap = Duration::from_secs(1) / rate;
    let total = (duration.as_secs_f64() * f64::from(rate)) as u64;
    let next = AtomicU64::new(0);
    let latencies = Mutex::new(Vec::with_capacity(total as usize));
    let start = Mutex::new(None);
    let body = |mut connection: Connection, counters: &Counters| {
        let start = *start.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
        let mut mine = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= total {
                break;
            }
            let due = start + gap * u32::try_from(number).unwrap_or(u32::MAX);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if connection.exchange().is_ok() {
                mine.push(u32::try_from(due.elapsed().as_micros()).unwrap_or(u32::MAX));
            } else {
                counters.failed.fetch_add(1, Ordering::Relaxed);
                if connection.reopen().is_err() {
                    break;
                }
            }
        }
        latencies.lock().unwrap_or_else(PoisonError::into_inner).extend(mine);
    };
    let mut seen = load::run(OPEN_LOOP_CONNECTIONS, duration, |_| Connection::open(target), body)?;
    let mut latencies = latencies.into_inner().unwrap_or_else(PoisonError::into_inner);
    latencies.sort_unstable();
    seen.done = latencies.len() as u64;
    seen.latencies_us = latencies;
    Ok(seen)
}

/// One request over a connection of its own: whether the path works.
pub(crate) fn probe(target: SocketAddr) -> anyhow::Result<()> {
    Connection::open(target).map(drop)
}

/// How long a new connection takes to bring the first byte of an answer.
pub(crate) fn first_byte(target: SocketAddr) -> anyhow::Result<Duration> {
    let request = request(target);
    let start = Instant::now();
    let mut stream = connect(target)?;
    stream.write_all(&request)?;
    stream.read_exact(&mut [0; 1])?;
    Ok(start.elapsed())
}

fn request(target: SocketAddr) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nhost: {target}\r\nuser-agent: linkspan-bench\r\n\r\n").into_bytes()
}

/// One keep-alive connection and the answer's buffer.
#[derive(Debug)]
struct Connection {
    target: SocketAddr,
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects, and makes one request, so that nothing of the set-up falls into the measurement.
    fn open(target: SocketAddr) -> anyhow::Result<Self> {
        let mut connection =
            Self { target, stream: connect(target)?, request: request(target), buffer: vec![0; 16 * 1024] };
        connection.exchange().with_context(|| format!("first request to {target}"))?;
        Ok(connection)
    }

    fn reopen(&mut self) -> std::io::Result<()> {
        self.stream = connect(self.target)?;
        Ok(())
    }

    /// One request and its whole answer.
    fn exchange(&mut self) -> std::io::Result<()> {
        self.stream.write_all(&self.request)?;
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..])?;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            filled += read;
            match answer_length(&self.buffer[..filled]) {
                Some(Ok(length)) if filled >= length => return Ok(()),
                Some(Err(())) => return Err(std::io::ErrorKind::InvalidData.into()),
                _ if filled == self.buffer.len() => return Err(std::io::ErrorKind::InvalidData.into()),
                _ => {}
            }
        }
    }
}

/// The length of the answer once its head is whole; an error when it is no 200 with a content length.
fn answer_length(bytes: &[u8]) -> Option<Result<usize, ()>> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    match length {
        Some(length) if head.starts_with("http/1.1 200") => Some(Ok(end + length)),
        _ => Some(Err(())),
    }
}

fn connect(target: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_h2load() {
        let text = "starting benchmark...\n\nfinished in 2.00s, 5000.00 req/s, 1.00MB/s\nrequests: 10000 total, 10032 \
                    started, 10000 done, 9990 succeeded, 10 failed, 0 errored, 0 timeout\nstatus codes: 9980 2xx, 0 3xx, \
                    0 4xx, 10 5xx\n";
        let seen = parse_h2load(text).expect("parses");
        assert_eq!((seen.done, seen.failed), (9980, 20));
        assert!((seen.elapsed.as_secs_f64() - 2.0).abs() < 0.001);
        assert!(parse_h2load("nothing").is_none());
    }

    #[test]
    fn a_path_whose_answers_are_all_bad_has_a_rate_of_zero() {
        let text = "finished in 1.00s, 5000.00 req/s, 1.00MB/s\nrequests: 5000 total, 5032 started, 5000 done, 0 \
                    succeeded, 5000 failed, 0 errored, 0 timeout\nstatus codes: 0 2xx, 0 3xx, 0 4xx, 0 5xx\n";
        let seen = parse_h2load(text).expect("parses");
        assert_eq!((seen.per_second(), seen.failed), (0.0, 5000));
    }

    #[test]
    fn knows_where_an_answer_ends() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(answer_length(answer), Some(Ok(answer.len())));
        assert_eq!(answer_length(b"HTTP/1.1 200 OK\r\nContent-"), None);
        assert_eq!(answer_length(b"HTTP/1.1 503 No\r\nContent-Length: 3\r\n\r\n"), Some(Err(())));
    }
}
