//! Child processes, and what the kernel says that they cost.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cleanup;

/// Nanoseconds of a clock tick in `/proc`: 100 ticks a second on every architecture that Linkspan builds for.
const TICK: u64 = 10_000_000;

/// Lines of a log that stand in an error.
const TAIL: usize = 20;

/// A child that is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program; what it prints goes to a log file.
    pub(crate) fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let err = out.try_clone()?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        // While the list is held, an interruption waits: the child is started and on it, or neither.
        let mut left = cleanup::left();
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        left.processes.insert(child.id());
        Ok(Self { child, log: log.to_owned() })
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails with the end of the log when the program has ended.
    pub(crate) fn must_run(&mut self, name: &str) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            anyhow::bail!("{name} ended ({status}):\n{}", tail(&self.log).unwrap_or_default());
        }
        Ok(())
    }

    /// Waits until it listens on a TCP port, without connecting: a gateway that was called once is no cold one any more.
    pub(crate) fn wait_for_port(&mut self, name: &str, port: u16, limit: Duration) -> anyhow::Result<()> {
        wait_for(&format!("{name} listens on {port}"), limit, || {
            self.must_run(name)?;
            let sockets = fs::read_to_string(format!("/proc/{}/net/tcp", self.id())).unwrap_or_default();
            Ok(listens(&sockets, port).then_some(()))
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Held until the id is off the list: it may be another process's from the moment of the wait on.
        let mut left = cleanup::left();
        // Gone already is as good as killed.
        self.child.kill().ok();
        self.child.wait().ok();
        left.processes.remove(&self.child.id());
    }
}

/// Whether a table of `/proc/net/tcp` has a listening socket on `port`.
fn listens(sockets: &str, port: u16) -> bool {
    let local = format!(":{port:04X}");
    sockets.lines().skip(1).any(|line| {
        let mut words = line.split_whitespace().skip(1);
        // TCP_LISTEN is state 10 (include/net/tcp_states.h).
        words.next().is_some_and(|address| address.ends_with(&local)) && words.nth(1) == Some("0A")
    })
}

/// The last lines of a log; `None` when there is none, or nothing in it.
pub(crate) fn tail(log: &Path) -> Option<String> {
    let log = fs::read_to_string(log).ok()?;
    let from = log.lines().count().saturating_sub(TAIL);
    let tail: Vec<&str> = log.lines().skip(from).collect();
    (!tail.is_empty()).then(|| tail.join("\n"))
}

/// CPU time of a process's threads at one moment, nanoseconds by thread id.
#[derive(Clone, Debug, Default)]
pub(crate) struct CpuTime(BTreeMap<String, u64>);

impl CpuTime {
    /// What a process has used so far; nothing when it is gone.
    pub(crate) fn of(id: u32) -> Self {
        let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
        let time = |entry: fs::DirEntry| {
            Some((entry.file_name().into_string().ok()?, thread_nanoseconds(&entry.path().display().to_string())?))
        };
        Self(threads.filter_map(time).collect())
    }

    /// Seconds from `earlier` to here. Threads that ended in between are not counted: their time ended with them.
    pub(crate) fn since(&self, earlier: &Self) -> f64 {
        let spent = self.0.iter().map(|(id, now)| now.saturating_sub(earlier.0.get(id).copied().unwrap_or(0)));
        spent.sum::<u64>() as f64 / 1e9
    }
}

/// CPU time of a thread by its folder in `/proc`: to the nanosecond where the kernel counts so, else in ticks.
pub(crate) fn thread_nanoseconds(folder: &str) -> Option<u64> {
    let precise = fs::read_to_string(format!("{folder}/schedstat")).ok();
    let precise = precise.and_then(|text| text.split_whitespace().next()?.parse().ok());
    precise.filter(|time| *time > 0).or_else(|| parse_ticks(&fs::read_to_string(format!("{folder}/stat")).ok()?))
}

/// User and system time (proc_pid_stat(5), fields 14 and 15), nanoseconds.
fn parse_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: Vec<u64> = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    (ticks.len() == 2).then(|| ticks.iter().sum::<u64>() * TICK)
}

/// Memory of a process, MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    /// Resident.
    pub(crate) rss: f64,
    /// Resident, with what is shared divided among those who share it.
    pub(crate) pss: f64,
}

/// What a process holds now.
pub(crate) fn memory(id: u32) -> Option<Memory> {
    parse_memory(&fs::read_to_string(format!("/proc/{id}/smaps_rollup")).ok()?)
}

fn parse_memory(text: &str) -> Option<Memory> {
    let mib = |name: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
    };
    Some(Memory { rss: mib("Rss:")?, pss: mib("Pss:")? })
}

/// Runs a command to its end; its standard output.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{command:?} failed ({}):\n{stdout}{stderr}", output.status);
    Ok(stdout)
}

/// What a program says to an option that prints its version: the first line, on whichever output it writes it.
pub(crate) fn version(program: &Path, option: &str) -> Option<String> {
    let output = Command::new(program).arg(option).stdin(Stdio::null()).output().ok()?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&text).lines().next().map(|line| line.trim().to_owned())
}

/// Where a program is, or `None` when it is not installed.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where a user's PATH does not look.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Asks again and again until the answer is there.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let until = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        anyhow::ensure!(Instant::now() < until, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_proc() {
        let line = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 10 5 20 0 7 0 1000 0 0";
        assert_eq!(parse_ticks(line), Some(2_000_000_000));
        let text = "00400000-7ffd rollup\nRss:  2048 kB\nPss:  1024 kB\nPss_Dirty: 3 kB\n";
        assert_eq!(parse_memory(text), Some(Memory { rss: 2.0, pss: 1.0 }));
        assert!(memory(std::process::id()).is_some_and(|memory| memory.rss >= memory.pss && memory.pss > 0.0));
        assert!(find("sh").is_some());
    }

    #[test]
    fn cpu_time_is_a_difference_by_thread() {
        let time =
            |threads: &[(&str, u64)]| CpuTime(threads.iter().map(|(id, time)| ((*id).to_owned(), *time)).collect());
        let (earlier, later) = (time(&[("1", 5), ("2", 7)]), time(&[("1", 1_000_000_005), ("3", 500_000_000)]));
        assert_eq!(later.since(&earlier), 1.5);
        assert!(CpuTime::of(std::process::id()).since(&CpuTime::default()) > 0.0);
    }

    #[test]
    fn sees_a_listening_socket() {
        let table = "  sl  local_address rem_address   st\n   0: 0100007F:4E20 00000000:0000 0A 0:0\n   1: 0100007F:4E21 0100007F:0001 01 0:0\n";
        assert!(listens(table, 20_000));
        assert!(!listens(table, 20_001) && !listens(table, 20_002));
    }
}
