//! Files that are either old or new, never half: written beside the target and renamed over it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Distinguishes temporary files of several threads of this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The end of temporary names.
const TEMPORARY: &str = ".linkspan-tmp";

/// Replaces `path` by `bytes` in one step and waits until they are on disk. For what must survive a power cut.
///
/// # Errors
/// Whatever the system says; the old content is still there then.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace(path, bytes, mode, true)
}

/// As [`write_atomically`], without waiting for the disk. For what is made anew at the next start anyway, and for what
/// must not hold a change up: a crash of this process loses nothing, one of the machine perhaps the newest copy.
///
/// # Errors
/// Whatever the system says; the old content is still there then.
pub(crate) fn write_quickly(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace(path, bytes, mode, false)
}

/// Removes a file; one that is gone already is fine.
///
/// # Errors
/// Whatever the system says, except that the file does not exist.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a file of this name is one of ours that was never renamed.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMPORARY)
}

fn replace(path: &Path, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()> {
    let temporary = temporary_name(path)?;
    let written = write_new(&temporary, bytes, mode, durable).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to report.
        drop(fs::remove_file(&temporary));
    } else if durable && let Some(parent) = path.parent() {
        fs::File::open(parent)?.sync_all()?;
    }
    written
}

fn write_new(path: &Path, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    if durable { file.sync_all() } else { Ok(()) }
}

/// A hidden name in the same folder: a rename within one file system is atomic, and watchers skip hidden files.
fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?
        .to_string_lossy();
    let unique = NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(path.with_file_name(format!(".{name}.{}.{unique}{TEMPORARY}", std::process::id())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        write_atomically(&path, b"one", 0o600).unwrap();
        write_quickly(&path, b"two", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
    }

    #[test]
    fn a_failed_write_keeps_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("kept"), b"").unwrap();
        assert!(write_quickly(&path, b"x", 0o600).is_err());
        assert!(path.join("kept").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
