//! What each file held when it was last read, below `state/last-good/`, so that a restart knows what a broken file stands
//! for. A copy is the file itself while all of it parses; else the objects that it holds, those that it does not show among
//! them: what was in force a moment before the restart, and not only what once was in a file without a mistake.
//!
//! A change of manifests does not wait for the disk, and takes effect also when its copy cannot be written: the change may
//! forbid something. So a copy may be older than what was in force last, and must then not count at the next start.
//! - One that cannot be replaced is removed: that works on a full disk, and makes room for the new one. A file without a
//!   copy, and broken at the next start, is in doubt.
//! - Where it cannot even be removed (a file system that became read-only, an error of the disk), nothing can be noted
//!   either. So what is noted is the opposite: each copy begins with the looks of its file when that was last read, broken
//!   or not, and a run that ends in good order leaves a mark ([`SOUND`]), which the next run takes away before it reads
//!   anything. A copy counts if the file still looks as it did then, or if the mark was there: nobody was looking since.
//!   Else, as after a crash during which a file was broken, it is not certain, and the file counts as if it had no copy.
//! - The same mark and looks say whether it is still known which file held an ExportPolicy first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;

use linkspan_proto::manifest;
use linkspan_proto::resources::Object;

use super::super::folder::Holders;
use super::super::{Kind, ObjectKey};
use super::listing::{Stamp, is_manifest};
use crate::files;

/// Which file holds each object. Hidden, so that no manifest has this name.
const HOLDERS: &str = ".holders.json";
/// There while nobody runs, if the last run ended with every copy as it should be.
const SOUND: &str = ".sound";
/// The first line of a copy, before the looks of its file.
const HEAD: &str = "# linkspan: copy of a file that looked like ";

/// The folder of copies.
#[derive(Debug)]
pub(super) struct Copies {
    folder: PathBuf,
    /// The last run ended in good order.
    sound: bool,
    /// As written.
    holders: Holders,
    /// What is not on disk as it should be, and why.
    unsaved: BTreeMap<String, Unsaved>,
}

#[derive(Debug)]
struct Unsaved {
    error: String,
    /// What is wrong now is still there.
    stays: bool,
}

/// What is known of what a file held.
#[derive(Debug, PartialEq)]
pub(super) enum Held {
    /// There is no copy.
    Nothing,
    /// This, when the file was last read.
    Text(String),
    /// This once, and perhaps something else later.
    Once(String),
}

impl Copies {
    /// Takes the folder over from the run before.
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        let mark = folder.join(SOUND);
        let sound = mark.try_exists()?;
        // If it stayed, what this run cannot save would count at the next start.
        files::remove(&mark)?;
        Ok(Self { folder, sound, holders: Holders::new(), unsaved: BTreeMap::new() })
    }

    /// Leaves the folder to the next run. `all`: every file was looked into.
    pub(super) fn close(&self, all: bool) {
        if !all && !self.sound || self.unsaved.values().any(|unsaved| unsaved.stays) {
            return;
        }
        if let Err(error) = files::write_quickly(&self.folder.join(SOUND), b"", 0o600) {
            tracing::warn!(%error, "cannot note that all copies of manifests are current; broken ones count as in doubt at the next start");
        }
    }

    /// Whether a copy holds this text.
    pub(super) fn is(&self, name: &str, text: &str) -> bool {
        matches!(self.read(name), Ok(Some((_, old))) if old == text)
    }

    /// Keeps a file all of which parses, and how it looked.
    pub(super) fn keep(&mut self, name: &str, stamp: Stamp, text: &str) {
        self.save(name, format!("{HEAD}{stamp}\n{text}").as_bytes());
    }

    /// Keeps the objects of a file that does not show all of them.
    pub(super) fn keep_objects<'a>(&mut self, name: &str, stamp: Stamp, objects: impl Iterator<Item = &'a Object>) {
        let documents: Result<Vec<_>, _> = objects.map(manifest::to_yaml).collect();
        match documents {
            Ok(documents) if documents.is_empty() => self.forget(name),
            Ok(documents) => self.keep(name, stamp, &documents.join("---\n")),
            Err(error) => {
                tracing::warn!(file = name, %error, "cannot keep a copy of a manifest's objects");
                self.forget(name);
            }
        }
    }

    /// What a file held that looks like this now.
    pub(super) fn recall(&self, name: &str, now: Option<Stamp>) -> Held {
        if self.unsaved.contains_key(name) {
            // What is there is older than what this run knew.
            return Held::Nothing;
        }
        match self.read(name) {
            Ok(None) => Held::Nothing,
            Ok(Some((then, text))) if self.sound || now.is_some_and(|now| now.to_string() == then) => Held::Text(text),
            Ok(Some((_, text))) => Held::Once(text),
            Err(error) => {
                tracing::warn!(file = name, %error, "cannot read the copy of a manifest");
                Held::Once(String::new())
            }
        }
    }

    pub(super) fn forget(&mut self, name: &str) {
        match files::remove(&self.folder.join(name)) {
            Ok(()) => drop(self.unsaved.remove(name)),
            Err(error) => self.failed(name, &error, true),
        }
    }

    /// The files of which there is a copy.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| is_manifest(name)).collect()
    }

    /// Which file held each object, as far as that is certain: an ExportPolicy must not be displaced by one that came later.
    /// `looks` are those of the files now.
    pub(super) fn holders(&mut self, looks: impl Fn(&str) -> Option<Stamp>) -> Holders {
        let path = self.folder.join(HOLDERS);
        match fs::read(&path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other)) {
            Ok(text) => self.holders = from_text(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "not known which file held each object");
            }
        }
        let policies = self.holders.iter().filter(|(key, _)| key.kind == Kind::ExportPolicy);
        let files: BTreeSet<&String> = policies.map(|(_, file)| file).collect();
        let certain = |file: &&String| matches!(self.recall(file, looks(file)), Held::Text(_));
        let certain: BTreeSet<&String> = files.into_iter().filter(certain).collect();
        let mut holders = self.holders.clone();
        holders.retain(|key, file| key.kind != Kind::ExportPolicy || certain.contains(file));
        holders
    }

    pub(super) fn keep_holders(&mut self, holders: &Holders) {
        if self.holders == *holders && !self.unsaved.contains_key(HOLDERS) {
            return;
        }
        match serde_json::to_vec(&to_text(holders)) {
            Ok(bytes) => self.save(HOLDERS, &bytes),
            Err(error) => self.failed(HOLDERS, &error.into(), true),
        }
        self.holders.clone_from(holders);
    }

    /// The files whose copies are not as they should be.
    pub(super) fn unsaved(&self) -> Vec<String> {
        self.unsaved.keys().filter(|name| *name != HOLDERS).cloned().collect()
    }

    /// Why something could not be saved, if so.
    pub(super) fn trouble(&self) -> Option<String> {
        let (name, first) = self.unsaved.first_key_value()?;
        Some(format!("{name}: {}", first.error))
    }

    /// The looks of the file then, and what it held.
    fn read(&self, name: &str) -> io::Result<Option<(String, String)>> {
        let text = match fs::read_to_string(self.folder.join(name)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (head, rest) = text.split_once('\n').unwrap_or((&text, ""));
        // One of an earlier version says nothing of its file.
        Ok(Some(match head.strip_prefix(HEAD) {
            Some(stamp) => (stamp.to_owned(), rest.to_owned()),
            None => (String::new(), text),
        }))
    }

    fn save(&mut self, name: &str, bytes: &[u8]) {
        let path = self.folder.join(name);
        if matches!(fs::read(&path), Ok(old) if old == bytes) {
            self.unsaved.remove(name);
            return;
        }
        let written = files::write_quickly(&path, bytes, 0o600).or_else(|error| {
            // What is there is wrong from now on, and on a full disk the new one needs its room.
            if files::remove(&path).is_ok() { files::write_quickly(&path, bytes, 0o600) } else { Err(error) }
        });
        match written {
            Ok(()) => drop(self.unsaved.remove(name)),
            Err(error) => {
                let is_gone = matches!(fs::symlink_metadata(&path), Err(why) if why.kind() == io::ErrorKind::NotFound);
                self.failed(name, &error, !is_gone);
            }
        }
    }

    fn failed(&mut self, name: &str, error: &io::Error, stays: bool) {
        let unsaved = Unsaved { error: error.to_string(), stays };
        if self.unsaved.insert(name.to_owned(), unsaved).is_none() {
            tracing::warn!(file = name, %error, "cannot keep a copy of a manifest; if it is broken at the next start, it is in doubt");
        }
    }
}

/// The objects of each file, as `Kind/namespace/name`.
type HoldersText = BTreeMap<String, Vec<String>>;

fn to_text(holders: &Holders) -> HoldersText {
    let mut text = HoldersText::new();
    for (key, file) in holders {
        text.entry(file.clone()).or_default().push(format!("{}/{}/{}", key.kind, key.namespace, key.name));
    }
    text
}

fn from_text(text: HoldersText) -> Holders {
    let key = |object: &str| {
        let mut parts = object.splitn(3, '/');
        let kind = parts.next()?;
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
        Some(ObjectKey { kind, namespace: parts.next()?.to_owned(), name: parts.next()?.to_owned() })
    };
    let of_file = |(file, objects): (String, Vec<String>)| {
        objects.into_iter().filter_map(move |object| Some((key(&object)?, file.clone())))
    };
    text.into_iter().flat_map(of_file).collect()
}
