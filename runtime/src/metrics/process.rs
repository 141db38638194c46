//! What the kernel and the runtime know about this process, read at each scrape. Names and meanings are Prometheus's
//! conventional ones.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::{task, telemetry};

/// Clock ticks a second in `/proc`. The kernel's USER_HZ is fixed at 100 on every architecture that we build for.
const TICKS: f64 = 100.0;

/// `VmRSS` of `/proc/self/status` is in KiB; `rss` of `/proc/self/stat` would need the page size.
const KIB: u64 = 1024;

/// `process_*`.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        if let Some(stat) = Stat::read() {
            counter(&mut encoder, "process_cpu_seconds", "User and system CPU time", stat.cpu_seconds)?;
            gauge(&mut encoder, "process_start_time_seconds", "Start, as Unix time", stat.start_seconds)?;
            gauge(&mut encoder, "process_threads", "Threads", stat.threads)?;
        }
        gauge(
            &mut encoder,
            "process_tasks",
            "Tasks of the runtimes that have begun and not ended",
            task::alive() as f64,
        )?;
        if let Some(bytes) = resident_bytes() {
            gauge(&mut encoder, "process_resident_memory_bytes", "Resident memory", bytes as f64)?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            gauge(&mut encoder, "process_open_fds", "Open file descriptors", open.count() as f64)?;
        }
        if let Some(limit) = descriptor_limit() {
            gauge(&mut encoder, "process_max_fds", "Soft limit of open file descriptors", limit)?;
        }
        Ok(())
    }
}

/// `task_panics_total{task}` and `log_lines_dropped_total`.
#[derive(Debug)]
pub(super) struct Losses;

impl Collector for Losses {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let help = "Log lines lost because stderr was not read fast enough";
        let lines = ConstCounter::new(telemetry::dropped_lines());
        lines.encode(encoder.encode_descriptor("log_lines_dropped", help, None, MetricType::Counter)?)?;
        let help = "Tasks that panicked, by task name; each cost one stream or connection";
        let mut family = encoder.encode_descriptor("task_panics", help, None, MetricType::Counter)?;
        for (task, count) in task::panics() {
            let labels = [("task", task)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> std::fmt::Result {
    ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> std::fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

struct Stat {
    cpu_seconds: f64,
    start_seconds: f64,
    threads: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        let boot: f64 = fs::read_to_string("/proc/stat")
            .ok()?
            .lines()
            .find_map(|line| line.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?, boot)
    }

    /// proc_pid_stat(5): the fields after the command, which stands in parentheses and may itself hold anything.
    fn parse(stat: &str, boot_seconds: f64) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // Field 3 of the manual is index 0 here.
        let number = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu_seconds: (number(14)? + number(15)?) / TICKS,
            threads: number(20)?,
            start_seconds: boot_seconds + number(22)? / TICKS,
        })
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * KIB)
}

fn descriptor_limit() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(f64::INFINITY),
        soft => soft.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_is_no_trouble() {
        let line = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 7 0 1000 0 0";
        let stat = Stat::parse(line, 100.0).expect("parses");
        assert_eq!((stat.cpu_seconds, stat.threads, stat.start_seconds), (2.0, 7.0, 110.0));
    }

    #[test]
    fn this_process_has_figures() {
        assert!(Stat::read().expect("reads").threads >= 1.0);
        assert!(resident_bytes().expect("reads") > 0);
        assert!(descriptor_limit().expect("reads") > 0.0);
    }
}
