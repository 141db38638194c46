//! What must not outlive a run: processes, network namespaces, folders. Each owner removes its own when it is dropped; this
//! list is for a run that is interrupted, where nothing is dropped.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

/// The shell's code for a program that ended by SIGINT.
const INTERRUPTED: i32 = 130;

static LEFT: Mutex<Left> = Mutex::new(Left::new());

/// What is there to be removed.
#[derive(Debug)]
pub(crate) struct Left {
    /// Children that were not waited for, so that no id is somebody else's by now.
    pub(crate) processes: BTreeSet<u32>,
    /// Names for `ip netns`.
    pub(crate) namespaces: BTreeSet<String>,
    /// Temporary folders.
    pub(crate) folders: BTreeSet<PathBuf>,
}

impl Left {
    const fn new() -> Self {
        Self { processes: BTreeSet::new(), namespaces: BTreeSet::new(), folders: BTreeSet::new() }
    }

    fn remove(&self) {
        self.processes.iter().for_each(|id| kill(*id));
        for namespace in &self.namespaces {
            delete_namespace(namespace);
        }
        for folder in &self.folders {
            remove_folder(folder);
        }
    }
}

/// The list; whoever starts or ends something changes it.
pub(crate) fn left() -> MutexGuard<'static, Left> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on, SIGINT, SIGTERM and SIGHUP remove everything and end the program.
pub(crate) fn on_signals() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let [interrupt, terminate, hangup] = {
        let _entered = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal)
    };
    let (mut interrupt, mut terminate, mut hangup) = (interrupt?, terminate?, hangup?);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        // Held until the end: nothing is started any more.
        let left = left();
        eprintln!("linkspan-bench: interrupted; removing what was started");
        left.remove();
        std::process::exit(INTERRUPTED);
    });
    Ok(())
}

/// Kills a child that was not waited for.
pub(crate) fn kill(id: u32) {
    if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        // Gone already is as good.
        kill_process(pid, Signal::KILL).ok();
    }
}

/// Removes a namespace; devices in it go with it.
pub(crate) fn delete_namespace(name: &str) {
    // What cannot be removed can be seen with `ip netns`; there is nobody to tell during a drop.
    Command::new("ip").args(["netns", "del", name]).output().ok();
}

fn remove_folder(folder: &Path) {
    std::fs::remove_dir_all(folder).ok();
}
