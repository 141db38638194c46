//! Whether memory runs short: how much of what its control group may have this process and its neighbours in it use.
//!
//! - In: the files of the control group, version 2 or 1, read every [`EVERY`].
//! - Out: a [`Shortage`], which those ask who can take on less.
//! - Never does: guess. Without a limit, or where it cannot be read, there is no shortage.
//! - Numbers: [`SHORT_FROM`], [`SHORT_UNTIL`], [`EVERY`].
//!
//! What counts is what the kernel cannot give up at once: the group's use without the file pages that were not used of late. The
//! kernel kills at 100 %; the rest is room for what is under way already.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::drain::Signal;

/// Short from this share of the limit on, percent.
const SHORT_FROM: u64 = 85;

/// And until it is below this again: so that what was refused at the border is not let in and out in turn.
const SHORT_UNTIL: u64 = 80;

/// Between two looks. In that time two busy cores fill some 10 MiB: less than what is left of 128 MiB at [`SHORT_FROM`].
const EVERY: Duration = Duration::from_millis(100);

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// Whether memory is short now. Cheap to clone and to ask.
#[derive(Clone, Debug, Default)]
pub struct Shortage(Arc<AtomicBool>);

impl Shortage {
    /// Memory that never runs short until somebody says so.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it is.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Says so.
    pub fn set(&self, is_short: bool) {
        self.0.store(is_short, Ordering::Relaxed);
    }
}

/// Keeps `shortage` true to the process's control group until the drain; returns at once where that has no limit.
pub async fn watch(shortage: Shortage, signal: Signal) {
    let Some(group) = Group::of_this_process() else { return };
    tracing::debug!(limit = group.limit, "memory is limited; new streams are refused from {SHORT_FROM} % of it on");
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = signal.draining() => return,
            _ = ticks.tick() => {}
        }
        let Some(used) = group.used() else { continue };
        let before = shortage.is_short();
        let now = is_short(before, used, group.limit);
        if now != before {
            shortage.set(now);
            if now {
                tracing::warn!(used, limit = group.limit, "memory is short: new streams are refused until it is not");
            } else {
                tracing::info!(used, limit = group.limit, "memory is no longer short");
            }
        }
    }
}

/// The verdict on `used` bytes of `limit`, with the one before.
fn is_short(before: bool, used: u64, limit: u64) -> bool {
    let percent = if before { SHORT_UNTIL } else { SHORT_FROM };
    u128::from(used) * 100 >= u128::from(limit) * u128::from(percent)
}

/// A control group with a limit.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    limit: u64,
    /// The file with what is used, and the word of idle file pages in `stat`.
    usage: PathBuf,
    stat: PathBuf,
    idle: &'static str,
}

impl Group {
    fn of_this_process() -> Option<Self> {
        Self::find(&fs::read_to_string("/proc/self/cgroup").ok()?, Path::new(ROOT))
    }

    /// The nearest group with a limit, from that of the process up: of version 2 (`0::/path`), or of the memory controller of
    /// version 1 (`7:memory:/path`). In a container the path may be that outside; then the mounted root is the group.
    fn find(membership: &str, root: &Path) -> Option<Self> {
        let path_of = |controller: &str| {
            membership.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                controllers.split(',').any(|one| one == controller).then_some(path)
            })
        };
        let second = ("memory.max", "memory.current", "inactive_file");
        let first = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file");
        let of = |base: PathBuf, path: &str, (limit, usage, idle): (&str, &str, &'static str)| {
            let own = base.join(path.trim_start_matches('/'));
            let above = own.ancestors().take_while(|dir| dir.starts_with(&base));
            let mut limited = above.filter_map(|dir| Some((dir, limited(&dir.join(limit))?)));
            let (dir, limit) = limited.next()?;
            Some(Self { limit, usage: dir.join(usage), stat: dir.join("memory.stat"), idle })
        };
        let unified = path_of("").and_then(|path| of(root.to_owned(), path, second));
        unified.or_else(|| of(root.join("memory"), path_of("memory")?, first))
    }

    /// What is in use and cannot be given up at once.
    fn used(&self) -> Option<u64> {
        let usage: u64 = fs::read_to_string(&self.usage).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(&self.stat).unwrap_or_default();
        let idle = stat.lines().find_map(|line| line.strip_prefix(self.idle)?.strip_prefix(' ')?.trim().parse().ok());
        Some(usage.saturating_sub(idle.unwrap_or(0)))
    }
}

/// A limit that is one: version 2 says `max` where there is none, version 1 a number near the largest.
fn limited(file: &Path) -> Option<u64> {
    let limit: u64 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (limit < 1 << 60).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).expect("folder");
        files.iter().for_each(|(file, text)| fs::write(dir.join(file), text).expect("written"));
    }

    #[test]
    fn short_begins_at_85_percent_and_ends_below_80() {
        for (before, used, now) in [(false, 84, false), (false, 85, true), (true, 80, true), (true, 79, false)] {
            assert_eq!(is_short(before, used, 100), now, "{used}");
        }
        assert!(is_short(false, u64::MAX, u64::MAX));
    }

    #[test]
    fn the_nearest_limit_of_version_2_counts_without_idle_pages() {
        let root = tempfile::tempdir().expect("folder");
        write(
            &root.path().join("pod"),
            &[
                ("memory.max", "1000\n"),
                ("memory.current", "900\n"),
                ("memory.stat", "anon 500\ninactive_file 300\nfile 400\n"),
            ],
        );
        write(&root.path().join("pod/gateway"), &[("memory.max", "max\n"), ("memory.current", "1\n")]);
        let group = Group::find("0::/pod/gateway\n", root.path()).expect("a limit");
        assert_eq!((group.limit, group.used()), (1000, Some(600)));
        assert_eq!(Group::find("0::/\n", root.path()), None, "no limit");
    }

    #[test]
    fn version_1_is_read_too_and_a_foreign_path_leads_to_the_mounted_root() {
        let root = tempfile::tempdir().expect("folder");
        let files = [("memory.limit_in_bytes", "2000\n"), ("memory.usage_in_bytes", "1500\n")];
        write(&root.path().join("memory"), &files);
        let group = Group::find("9:cpu,cpuacct:/x\n7:memory:/docker/abc\n0::/x\n", root.path()).expect("a limit");
        assert_eq!((group.limit, group.used()), (2000, Some(1500)));
        write(&root.path().join("memory"), &[("memory.limit_in_bytes", "9223372036854771712\n")]);
        assert_eq!(Group::find("7:memory:/docker/abc\n", root.path()), None, "as good as none");
    }
}
