//! Child processes, and what the kernel says that they cost.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

/// Clock ticks a second in `/proc`: fixed at 100 on every architecture that Linkspan builds for.
const TICKS: f64 = 100.0;

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
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
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
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good as killed.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The last lines of a log; `None` when there is none, or nothing in it.
pub(crate) fn tail(log: &Path) -> Option<String> {
    let log = fs::read_to_string(log).ok()?;
    let from = log.lines().count().saturating_sub(TAIL);
    let tail: Vec<&str> = log.lines().skip(from).collect();
    (!tail.is_empty()).then(|| tail.join("\n"))
}

/// CPU time in seconds that a process and its descendants have used.
pub(crate) fn cpu_seconds(id: u32) -> f64 {
    let own = fs::read_to_string(format!("/proc/{id}/stat")).ok().and_then(|stat| parse_cpu(&stat)).unwrap_or_default();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    own + children.split_whitespace().filter_map(|child| child.parse().ok()).map(cpu_seconds).sum::<f64>()
}

/// User and system time, of the process and of children that have ended (proc_pid_stat(5), fields 14 to 17).
fn parse_cpu(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse().ok()).collect();
    (ticks.len() == 4).then(|| ticks.iter().sum::<f64>() / TICKS)
}

/// Resident memory in MiB.
pub(crate) fn memory_mib(id: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

/// Runs a command to its end; its standard output.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{command:?} failed ({}):\n{stdout}{stderr}", output.status);
    Ok(stdout)
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
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_proc() {
        let line = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 10 5 20 0 7 0 1000 0 0";
        assert_eq!(parse_cpu(line), Some(2.15));
        assert!(memory_mib(std::process::id()).expect("Linux") > 0.0);
        assert!(cpu_seconds(std::process::id()) >= 0.0);
        assert!(find("sh").is_some());
    }
}
