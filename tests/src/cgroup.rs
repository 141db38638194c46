//! Less of the machine for one process: control groups, of version 2 or of version 1, whichever is mounted.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// In which time a share of a core is given out, microseconds: the kernel's own default.
const PERIOD: u32 = 100_000;

/// Distinguishes the groups of one test process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A control group. Dropping it lets its processes go and removes it.
pub struct Cgroup {
    root: PathBuf,
    dir: PathBuf,
}

impl Cgroup {
    /// A group that gets so many thousandths of a core. `None`, with a loud word: not possible here.
    pub fn cpu(thousandths: u32) -> Option<Self> {
        let quota = PERIOD / 1000 * thousandths;
        Self::new("cpu", &[("cpu.max", format!("{quota} {PERIOD}"))], &[("cpu.cfs_quota_us", quota.to_string())])
    }

    /// A group that may have so many bytes. `None`, with a loud word: not possible here.
    pub fn memory(bytes: u64) -> Option<Self> {
        let bytes = bytes.to_string();
        Self::new("memory", &[("memory.max", bytes.clone())], &[("memory.limit_in_bytes", bytes)])
    }

    fn new(controller: &str, second: &[(&str, String)], first: &[(&str, String)]) -> Option<Self> {
        let unified = Path::new(ROOT).join("cgroup.controllers").exists();
        let (root, settings) = if unified {
            // Fails where it is set already, or where we may not: the settings below show it.
            let _: std::io::Result<()> =
                fs::write(Path::new(ROOT).join("cgroup.subtree_control"), format!("+{controller}"));
            (PathBuf::from(ROOT), second)
        } else {
            (Path::new(ROOT).join(controller), first)
        };
        let dir = root.join(format!("linkspan-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let made = fs::create_dir(&dir).map(|()| Self { root, dir });
        let group = made.and_then(|group| {
            settings.iter().try_for_each(|(file, value)| fs::write(group.dir.join(file), value))?;
            Ok(group)
        });
        match group {
            Ok(group) => Some(group),
            Err(error) => {
                eprintln!("SKIPPED: no control group for {controller}: {error}");
                None
            }
        }
    }

    /// A shell line that enters it and then becomes the program in its arguments. On a host of ours the machine's control
    /// groups are not to be seen: they are mounted there first, for the program reads its limits there.
    pub fn enter(&self) -> String {
        let root = self.root.display();
        let mount = if self.root == Path::new(ROOT) {
            format!("mount -t cgroup2 cgroup2 {root}")
        } else {
            let controller = self.root.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            format!("mount -t tmpfs tmpfs {ROOT} && mkdir {root} && mount -t cgroup -o {controller} cgroup {root}")
        };
        format!("{mount} && echo $$ > {}/cgroup.procs && exec \"$@\"", self.dir.display())
    }

    /// The most that it has used so far, bytes.
    pub fn most(&self) -> u64 {
        let files = ["memory.peak", "memory.max_usage_in_bytes"];
        let text = files.iter().find_map(|file| fs::read_to_string(self.dir.join(file)).ok()).unwrap_or_default();
        text.trim().parse().unwrap_or_default()
    }

    /// Puts a process into it, with all its threads.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn add(&self, pid: u32) {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string()).expect("the process enters the group");
    }

    /// How often the kernel killed one of its processes for want of memory.
    pub fn killed(&self) -> u64 {
        let files = ["memory.events", "memory.oom_control"];
        let text = files.iter().find_map(|file| fs::read_to_string(self.dir.join(file)).ok()).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        count.unwrap_or_default()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Only an empty group can be removed.
        for pid in fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default().lines() {
            let _: std::io::Result<()> = fs::write(self.root.join("cgroup.procs"), pid);
        }
        let _: std::io::Result<()> = fs::remove_dir(&self.dir);
    }
}
