//! What is in a folder, and how a file of it is read: never waiting, never more than the parser takes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirEntry, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use linkspan_proto::manifest;
use rustix::fs::OFlags;

/// The parser's own limit, checked before a byte is read.
const FILE_MAX: u64 = manifest::MAX_FILE_LEN as u64;

/// What stands under a manifest's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) stamp: Stamp,
    /// Why it cannot be a manifest, whatever is in it.
    pub(super) trouble: Option<&'static str>,
}

/// What tells a changed file from an unchanged one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    inode: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }
}

/// Entries that are looked at inside one subfolder: many times what a folder of manifests has, and a millisecond's work.
const ENTRIES_MAX: usize = 1_000;
/// How deep a subfolder is looked into. Symbolic links may lead in circles.
const DEPTH_MAX: usize = 8;

impl fmt::Display for Stamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, modified, changed, inode } = self;
        write!(formatter, "{size} {}.{} {}.{} {inode}", modified.0, modified.1, changed.0, changed.1)
    }
}

/// Everything in a folder that has a manifest's name, and the subfolders in which something has.
pub(super) fn list(path: &Path) -> io::Result<BTreeMap<String, Found>> {
    let mut found = BTreeMap::new();
    for item in fs::read_dir(path)? {
        let item = item?;
        let name = item.file_name();
        let shown = name.to_string_lossy().into_owned();
        if !is_manifest(&shown) {
            if !is_hidden(&shown)
                && let Some(one) = subfolder(&item)
            {
                found.insert(shown, one);
            }
            continue;
        }
        if name.to_str().is_none() {
            let trouble = Some("its name is not UTF-8: rename it");
            found.insert(shown, Found { stamp: Stamp::default(), trouble });
        } else if let Some(one) = look_at(&item.path()) {
            found.insert(shown, one);
        }
    }
    Ok(found)
}

/// A folder that somebody may take for a part of the manifests. `None`: it is no folder, or there is nothing in it for us.
fn subfolder(item: &DirEntry) -> Option<Found> {
    let kind = item.file_type().ok()?;
    if !kind.is_dir() && !kind.is_symlink() {
        return None;
    }
    let metadata = fs::metadata(item.path()).ok().filter(Metadata::is_dir)?;
    let mut left = ENTRIES_MAX;
    let trouble = match holds_manifests(&item.path(), DEPTH_MAX, &mut left) {
        Ok(false) => return None,
        Ok(true) => {
            "holds manifests, and folders in here are not read: move them up into this folder, or the folder out of it"
        }
        Err(_) => {
            "may hold manifests, which are not read in folders in here, and cannot be looked through: move it out of here"
        }
    };
    Some(Found { stamp: Stamp::of(&metadata), trouble: Some(trouble) })
}

/// Whether anything in a folder has a manifest's name.
fn holds_manifests(folder: &Path, depth: usize, left: &mut usize) -> io::Result<bool> {
    for item in fs::read_dir(folder)? {
        let item = item?;
        let name = item.file_name();
        let name = name.to_string_lossy();
        *left = left.checked_sub(1).ok_or(io::ErrorKind::FileTooLarge)?;
        if is_manifest(&name) {
            return Ok(true);
        }
        if !is_hidden(&name) && fs::metadata(item.path()).is_ok_and(|metadata| metadata.is_dir()) {
            let depth = depth.checked_sub(1).ok_or(io::ErrorKind::FileTooLarge)?;
            if holds_manifests(&item.path(), depth, left)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Follows links. `None`: it vanished since.
fn look_at(path: &Path) -> Option<Found> {
    let error = match fs::metadata(path) {
        Ok(metadata) => return Some(Found { stamp: Stamp::of(&metadata), trouble: wrong_type(&metadata) }),
        Err(error) => error,
    };
    // One entry that cannot be followed must not hide the others.
    let itself = fs::symlink_metadata(path).ok();
    if itself.is_none() && error.kind() == io::ErrorKind::NotFound {
        return None;
    }
    let stamp = itself.as_ref().map(Stamp::of).unwrap_or_default();
    let is_link = itself.is_some_and(|metadata| metadata.is_symlink());
    let trouble = match error.kind() {
        io::ErrorKind::NotFound => "is a symbolic link that leads nowhere: correct or remove it",
        io::ErrorKind::PermissionDenied => "cannot be looked at: permission denied",
        _ if is_link => "is a symbolic link that cannot be followed: correct or remove it",
        _ => "cannot be looked at",
    };
    Some(Found { stamp, trouble: Some(trouble) })
}

fn wrong_type(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("is a folder: folders in here are not read; move its files up, or rename it")
    } else if kind.is_fifo() {
        Some("is a FIFO and not a regular file: replace or remove it")
    } else if kind.is_socket() {
        Some("is a socket and not a regular file: remove it")
    } else {
        Some("is a device and not a regular file: replace or remove it")
    }
}

/// Whether a file of this name is a manifest: not hidden (editors' swap files, our own temporary files), not a backup.
pub(super) fn is_manifest(name: &str) -> bool {
    let path = Path::new(name);
    !is_hidden(name) && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn is_hidden(name: &str) -> bool {
    name.starts_with(['.', '#', '~'])
}

/// A file's text, and what it looked like afterwards.
pub(super) fn read_file(path: &Path) -> io::Result<(String, Stamp)> {
    // What was a file a moment ago may be a FIFO now; opening that must not wait for a writer.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.size() > FILE_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 8 MiB; split it"));
    }
    let mut text = String::new();
    file.by_ref().take(FILE_MAX).read_to_string(&mut text)?;
    Ok((text, Stamp::of(&file.metadata()?)))
}
