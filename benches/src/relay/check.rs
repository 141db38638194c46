//! The relay against its own settings: what is set is measured through it, by TCP and by UDP, before it is relied on.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use super::Settings;
use crate::network::Network;
use crate::paths::PATIENCE;
use crate::process::{self, Process};
use crate::tcp::{self, Way};

/// Probes of the round trip, and the time between them: far enough that none waits for another.
const PROBES: usize = 60;
const PROBE_GAP: Duration = Duration::from_millis(12);

/// Datagrams of the loss check, in bursts that no socket buffer is too small for.
const DATAGRAMS: usize = 20_000;
const BURST: usize = 20;
const DATAGRAM: usize = 200;

/// A datagram that fills a packet of 1,500 bytes; IPv4 and UDP headers take 28.
const FULL: usize = 1_472;
const HEADERS: usize = 28;

/// How long an answer may take beyond the path's own time.
const TIMEOUT: Duration = Duration::from_millis(500);

/// One comparison.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Check {
    /// What.
    pub(crate) what: &'static str,
    /// In which unit.
    pub(crate) unit: &'static str,
    /// The least and the most that the settings allow.
    pub(crate) expected: [f64; 2],
    /// What was seen.
    pub(crate) measured: f64,
    /// Whether that fits.
    pub(crate) passed: bool,
}

impl Check {
    fn new(what: &'static str, unit: &'static str, expected: [f64; 2], measured: f64) -> Self {
        Self { what, unit, expected, measured, passed: (expected[0]..=expected[1]).contains(&measured) }
    }

    /// For the table.
    pub(crate) fn line(&self) -> [String; 5] {
        [
            self.what.to_owned(),
            self.unit.to_owned(),
            format!("{:.2} to {:.2}", self.expected[0], self.expected[1]),
            format!("{:.2}", self.measured),
            if self.passed { "as set".to_owned() } else { "NOT AS SET".to_owned() },
        ]
    }
}

/// Measures through the relay of `network`; takes about ten seconds.
pub(crate) fn run(network: &Network) -> anyhow::Result<Vec<Check>> {
    let relay = network.relay.as_ref().context("there is no relay in this network")?;
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("backend.log");
    let mut command = network.west.command(std::env::current_exe()?);
    command.args(["--serve", "0.0.0.0"]);
    let _backend = Process::start(command, &log)?;
    let port: u16 = process::wait_for("backend listens", PATIENCE, || {
        Ok(std::fs::read_to_string(&log)?.strip_suffix('\n').and_then(|line| line.parse().ok()))
    })?;
    let target = SocketAddr::from((network.west.address, port));
    let milliseconds = Duration::from_millis;
    let mut checks = Vec::new();

    relay.set(Settings { delay: milliseconds(25), ..Settings::CLEAR });
    checks.push(Check::new("round trip at 25 ms each way, UDP", "ms", [50.0, 51.0], middle(&mut udp_probes(target)?)));
    let mut connects = Vec::with_capacity(PROBES);
    for _ in 0..PROBES / 4 {
        let start = Instant::now();
        drop(tcp::connect(target)?);
        connects.push(start.elapsed().as_secs_f64() * 1e3);
    }
    checks.push(Check::new("round trip at 25 ms each way, TCP", "ms", [50.0, 51.0], middle(&mut connects)));

    relay.set(Settings { delay: milliseconds(25), jitter: milliseconds(5), ..Settings::CLEAR });
    // Two even spreads of 5 ms up and down add up to 5 * sqrt(2/3). Four standard errors of such an estimate are about 0.3.
    let expected = 5.0 * (2.0_f64 / 3.0).sqrt();
    let spread = deviation(&udp_probes(target)?);
    checks.push(Check::new("spread of the round trip at 5 ms jitter", "ms", [expected * 0.7, expected * 1.3], spread));

    let loss = 0.01;
    relay.set(Settings { loss, ..Settings::CLEAR });
    let before = relay.counts();
    let answered = echoes(target)?;
    let lost = (DATAGRAMS - answered) as f64 / DATAGRAMS as f64;
    let there_and_back = 1.0 - (1.0 - loss) * (1.0 - loss);
    let error = 4.0 * (there_and_back * (1.0 - there_and_back) / DATAGRAMS as f64).sqrt();
    let bounds = [there_and_back - error, there_and_back + error].map(|share| share * 100.0);
    checks.push(Check::new("loss at 1 % each way, there and back", "%", bounds, lost * 100.0));
    let counted: u64 = relay.counts().iter().zip(before).map(|(after, before)| after.lost - before.lost).sum();
    let elsewhere = (DATAGRAMS - answered) as f64 - counted as f64;
    checks.push(Check::new("datagrams lost elsewhere", "", [0.0, 0.0], elsewhere));

    // 1,000 packets of room, as a switch has: half a bandwidth-delay product and more.
    let room = 1_500_000;
    relay.set(Settings { delay: milliseconds(1), rate: Some(100_000_000), queue: 250_000, ..Settings::CLEAR });
    let rate = flood(target, 150_000_000, Duration::from_secs(1))?;
    // What the queue holds when the flood ends still comes: 250,000 bytes are 2 Mbit.
    checks.push(Check::new("UDP at 100 Mbit/s, offered 150", "Mbit/s", [97.0, 104.0], rate / 1e6));
    relay.set(Settings { delay: milliseconds(1), rate: Some(1_000_000_000), queue: room, ..Settings::CLEAR });
    let cpu = relay.cpu_seconds();
    let seen = tcp::bulk(target, 1, Way::Down, Duration::from_secs(3))?;
    let cpu = (relay.cpu_seconds() - cpu) / seen.elapsed.as_secs_f64();
    // Of 1,500 bytes, 52 are headers.
    let rate = seen.bytes as f64 * 8.0 / 1e6 / seen.elapsed.as_secs_f64();
    checks.push(Check::new("TCP at 1 Gbit/s", "Mbit/s", [900.0, 970.0], rate));
    checks.push(Check::new("  cores that the relay takes", "", [0.0, 1.0], cpu));
    let dropped = network.dropped_before_relay()? + relay.refused();
    checks.push(Check::new("packets dropped around the relay", "", [0.0, 0.0], dropped as f64));
    relay.set(Settings::CLEAR);
    Ok(checks)
}

fn socket(target: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

/// Round trips in milliseconds.
fn udp_probes(target: SocketAddr) -> anyhow::Result<Vec<f64>> {
    let socket = socket(target)?;
    let mut seen = Vec::with_capacity(PROBES);
    for _ in 0..PROBES {
        let start = Instant::now();
        socket.send(b"e")?;
        socket.recv(&mut [0; 8]).context("a probe of the relay is not answered")?;
        seen.push(start.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(PROBE_GAP);
    }
    Ok(seen)
}

/// How many of [`DATAGRAMS`] come back.
fn echoes(target: SocketAddr) -> anyhow::Result<usize> {
    let socket = socket(target)?;
    let receiver = socket.try_clone()?;
    std::thread::scope(|scope| -> anyhow::Result<usize> {
        let answered = scope.spawn(move || {
            let mut buffer = [0; DATAGRAM];
            let mut answered = 0;
            while answered < DATAGRAMS && receiver.recv(&mut buffer).is_ok() {
                answered += 1;
            }
            answered
        });
        for _ in 0..DATAGRAMS / BURST {
            for _ in 0..BURST {
                socket.send(&[b'e'; DATAGRAM])?;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        answered.join().map_err(|_| anyhow::anyhow!("the receiver of the loss check panicked"))
    })
}

/// Bits a second of IP packets that arrive when `offered` are sent.
fn flood(target: SocketAddr, offered: u64, duration: Duration) -> anyhow::Result<f64> {
    let socket = socket(target)?;
    let packet = [b'c'; FULL];
    let gap = Duration::from_secs_f64((FULL + HEADERS) as f64 * 8.0 / offered as f64);
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < duration {
        // Sent when due, in small bursts after each sleep.
        while gap * sent < start.elapsed() {
            socket.send(&packet)?;
            sent += 1;
        }
        std::thread::sleep(gap);
    }
    let took = start.elapsed();
    std::thread::sleep(TIMEOUT);
    socket.send(b"?")?;
    let mut answer = [0; 8];
    socket.recv(&mut answer).context("the backend does not say what it counted")?;
    let packets = u64::from_be_bytes(answer) as f64 / FULL as f64;
    Ok(packets * (FULL + HEADERS) as f64 * 8.0 / took.as_secs_f64())
}

fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn deviation(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics() {
        assert_eq!(middle(&mut [3.0, 1.0, 2.0]), 2.0);
        assert!((deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) - 2.138).abs() < 0.001);
    }

    #[test]
    fn a_check_passes_within_its_bounds() {
        assert!(Check::new("rate", "Mbit/s", [1.0, 2.0], 2.0).passed);
        assert!(!Check::new("rate", "Mbit/s", [1.0, 2.0], 2.1).passed);
    }
}
