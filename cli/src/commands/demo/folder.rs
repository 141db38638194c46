//! The demo's temporary folder, and those that demos left behind which could not clean up (`kill -9`).
//!
//! - **In**: the system's temporary folder.
//! - **Out**: a folder of our own, in which a locked file says that its demo lives. The kernel gives the lock up with the
//!   process, however that ends, and a number that another process has got meanwhile does not matter.
//! - **Never does**: remove a folder of another user, one that is kept (`--keep`), or one without such a file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

/// How the names of demo folders begin.
const PREFIX: &str = "linkspan-demo-";

/// The file whose lock says that the demo lives.
const ALIVE: &str = ".alive";

/// A longer path leaves no room for the sites' sockets: the system allows 107 bytes in all.
const PATH_MAX: usize = 60;

/// A demo's folder. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Folder {
    // First: on drop it is still locked while it goes.
    dir: TempDir,
    alive: Option<File>,
}

impl Folder {
    /// Makes one, and removes those that other demos of this user left behind.
    pub(super) fn make() -> anyhow::Result<Self> {
        let builder = || {
            let mut builder = tempfile::Builder::new();
            builder.prefix(PREFIX).permissions(fs::Permissions::from_mode(0o700));
            builder
        };
        let mut dir = builder().tempdir().context("cannot make a temporary folder")?;
        if dir.path().as_os_str().len() > PATH_MAX {
            dir = builder().tempdir_in("/tmp").context("cannot make a temporary folder in /tmp")?;
        }
        // Without a lock (a file system may have none) the folder is like any other, and stays after a kill.
        let alive = mark(dir.path()).ok();
        sweep(dir.path());
        Ok(Self { dir, alive })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Leaves it where it is, for good.
    pub(super) fn keep(self) -> PathBuf {
        // What is not there was never marked.
        drop(fs::remove_file(self.dir.path().join(ALIVE)));
        drop(self.alive);
        self.dir.keep()
    }

    /// Removes it.
    pub(super) fn close(self) -> io::Result<()> {
        self.dir.close()
    }
}

/// Says that the demo of this folder lives. The file gets its name when it is locked: no sweep meets it unlocked.
fn mark(folder: &Path) -> io::Result<File> {
    let nameless = folder.join(".alive-soon");
    let file = File::create_new(&nameless)?;
    file.lock()?;
    fs::rename(nameless, folder.join(ALIVE))?;
    Ok(file)
}

/// Removes the folders beside `own` whose demos are gone.
fn sweep(own: &Path) {
    let (Some(parent), Ok(ours)) = (own.parent(), fs::symlink_metadata(own)) else { return };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_demo = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        // Others can write into this parent: a link, or a folder that is not this user's alone, is none of ours.
        let is_ours = |found: &fs::Metadata| found.is_dir() && found.uid() == ours.uid() && found.mode() & 0o077 == 0;
        if !is_demo || path == own || !fs::symlink_metadata(&path).is_ok_and(|found| is_ours(&found)) {
            continue;
        }
        let Ok(alive) = File::open(path.join(ALIVE)) else { continue };
        if alive.try_lock().is_ok() {
            // Another demo that starts now may be at it, too; what is left is for the next.
            drop(fs::remove_dir_all(&path));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_folders_of_demos_that_are_gone_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = parent.path().join(format!("{PREFIX}{name}"));
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            path
        };
        let (own, gone, alive, kept, open) = (make("own"), make("gone"), make("alive"), make("kept"), make("open"));
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), parent.path().join(format!("{PREFIX}link"))).unwrap();
        let locks = [&own, &alive].map(|path| mark(path).unwrap());
        for path in [&gone, &open, &elsewhere.path().to_owned()] {
            drop(mark(path).unwrap());
        }
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        sweep(&own);
        assert!(!gone.exists());
        assert!([&own, &alive, &kept, &open].iter().all(|path| path.exists()));
        assert!(elsewhere.path().join(ALIVE).exists());
        drop(locks);
    }

    #[test]
    fn what_a_killed_demo_leaves_is_removed_by_the_next() {
        let mut killed = Folder::make().unwrap();
        // As the kernel does it for a process that is gone.
        killed.alive = None;
        let path = killed.path().to_owned();
        let next = Folder::make().unwrap();
        assert!(!path.exists() && next.path().exists());
    }

    #[test]
    fn a_folder_that_is_kept_outlives_its_demo() {
        let folder = Folder::make().unwrap();
        let path = folder.path().to_owned();
        assert!(path.join(ALIVE).exists());
        let kept = folder.keep();
        assert_eq!(kept, path);
        assert!(!path.join(ALIVE).exists());
        fs::remove_dir_all(kept).unwrap();
    }
}
