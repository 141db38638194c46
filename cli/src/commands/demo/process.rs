//! Child processes of the demo.
//!
//! A child ends when its standard input ends; the demo holds the other end. Whatever ends the demo, a `kill -9` too,
//! closes it. Children have a process group of their own, so that Ctrl-C reaches the demo alone, which then ends them in
//! order.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::{Child, ChildStdin, Command};

/// Time for a child to end after its input has ended, before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// Lines of a child's log that an error shows.
const LOG_LINES: usize = 12;

/// A child process and its log.
#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    child: Child,
    /// Kept apart from the child, since waiting for a child closes the input that it holds.
    input: Option<ChildStdin>,
    pid: u32,
    log: PathBuf,
}

impl Process {
    /// Starts `program args`; both its outputs go to `log`, after what is there already.
    pub(super) fn start(name: &'static str, program: &Path, args: &[String], log: &Path) -> anyhow::Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let Some(pid) = child.id() else { bail!("{name} ended at once") };
        let input = child.stdin.take();
        Ok(Self { name, child, input, pid, log: log.to_owned() })
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// An error if it has ended by itself, with the end of its log.
    pub(super) fn still_runs(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself ({status}); its log ends with:\n{}", self.name, self.log_end()),
        }
    }

    /// Resolves when it ends by itself.
    pub(super) async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// SIGKILL, as a power cut would.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))
    }

    /// Closes its input and waits for its end; kills it if that takes too long.
    pub(super) async fn end(mut self) {
        drop(self.input.take());
        if tokio::time::timeout(END_TIMEOUT, self.child.wait()).await.is_err() {
            tracing::warn!(process = self.name, "did not end in time; killing it");
            drop(self.child.kill().await);
        }
    }

    /// The last lines of its log.
    pub(super) fn log_end(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(LOG_LINES);
        lines.get(from..).unwrap_or_default().iter().map(|line| format!("  {line}\n")).collect()
    }

    /// Its name in messages.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use super::Process;

    fn shell(script: &str, log: &Path) -> Process {
        Process::start("shell", Path::new("/bin/sh"), &["-c".to_owned(), script.to_owned()], log).unwrap()
    }

    #[tokio::test]
    async fn a_child_ends_with_its_input_and_its_log_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut child = shell("echo begun; cat; echo ended >&2", &log);
        child.still_runs().unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(100), child.ended()).await;
        assert!(waited.is_err(), "waiting for its end does not end it");
        let begun = Instant::now();
        child.end().await;
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "begun\nended\n");
    }

    #[tokio::test]
    async fn a_child_that_ended_by_itself_is_reported_with_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = shell("echo no port; exit 3", &folder.path().join("log"));
        child.ended().await.unwrap();
        let error = child.still_runs().unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no port"), "{error}");
    }

    #[tokio::test]
    async fn a_killed_child_is_gone_and_a_dropped_one_too() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = shell("sleep 60", &folder.path().join("log"));
        let proc =
            |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok().filter(|stat| !stat.contains(") Z "));
        assert!(proc(child.pid()).is_some());
        child.kill().await.unwrap();
        assert!(proc(child.pid()).is_none());
        let child = shell("sleep 60", &folder.path().join("log"));
        let pid = child.pid();
        drop(child);
        let begun = Instant::now();
        while proc(pid).is_some() && begun.elapsed() < Duration::from_secs(2) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(proc(pid).is_none());
    }
}
