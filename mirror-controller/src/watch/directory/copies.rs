//! What each file held when it was last read, below `state/last-good/`, so that a restart knows what a broken file stands
//! for. A copy is the file itself while all of it parses; else the objects that it holds, those that it does not show among
//! them: what was in force a moment before the restart, and not only what once was in a file without a mistake.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use linkspan_proto::manifest;
use linkspan_proto::resources::Object;

use super::super::folder::Holders;
use super::super::{Kind, ObjectKey};
use super::listing::{is_manifest, read_file};
use crate::files;

/// Which file holds each object. Hidden, so that no manifest has this name.
const HOLDERS: &str = ".holders.json";

/// The folder of copies.
#[derive(Debug)]
pub(super) struct Copies {
    folder: PathBuf,
    /// As written.
    holders: Holders,
}

impl Copies {
    pub(super) const fn new(folder: PathBuf) -> Self {
        Self { folder, holders: BTreeMap::new() }
    }

    /// Whether a copy holds this text.
    pub(super) fn is(&self, name: &str, text: &str) -> bool {
        matches!(fs::read(self.folder.join(name)), Ok(old) if old == text.as_bytes())
    }

    /// Keeps a file all of which parses.
    pub(super) fn keep(&self, name: &str, text: &str) {
        if !self.is(name, text)
            && let Err(error) = files::write_quickly(&self.folder.join(name), text.as_bytes(), 0o600)
        {
            tracing::warn!(file = name, %error, "cannot keep a copy of a good manifest");
        }
    }

    /// Keeps the objects of a file that does not show all of them.
    pub(super) fn keep_objects<'a>(&self, name: &str, objects: impl Iterator<Item = &'a Object>) {
        let documents: Result<Vec<_>, _> = objects.map(manifest::to_yaml).collect();
        match documents {
            Ok(documents) if documents.is_empty() => self.forget(name),
            Ok(documents) => self.keep(name, &documents.join("---\n")),
            Err(error) => tracing::warn!(file = name, %error, "cannot keep a copy of a manifest's objects"),
        }
    }

    /// What a file held.
    pub(super) fn recall(&self, name: &str) -> Option<String> {
        match read_file(&self.folder.join(name)) {
            Ok((text, _)) => Some(text),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(file = name, %error, "cannot read the copy of a manifest");
                }
                None
            }
        }
    }

    pub(super) fn forget(&self, name: &str) {
        if let Err(error) = files::remove(&self.folder.join(name)) {
            tracing::warn!(file = name, %error, "cannot remove the copy of a manifest");
        }
    }

    /// The files of which there is a copy.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| is_manifest(name)).collect()
    }

    /// Which file held each object.
    pub(super) fn holders(&mut self) -> Holders {
        let path = self.folder.join(HOLDERS);
        match fs::read(&path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other)) {
            Ok(text) => self.holders = from_text(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "not known which file held each object");
            }
        }
        self.holders.clone()
    }

    pub(super) fn keep_holders(&mut self, holders: &Holders) {
        if self.holders == *holders {
            return;
        }
        let written = serde_json::to_vec(&to_text(holders))
            .map_err(io::Error::other)
            .and_then(|bytes| files::write_quickly(&self.folder.join(HOLDERS), &bytes, 0o600));
        match written {
            Ok(()) => self.holders.clone_from(holders),
            Err(error) => tracing::warn!(%error, "cannot keep which file holds each object"),
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
