//! Stage 1: where the objects of this cluster come from.
//!
//! A source tells what is there ([`Event::Init`], then one [`Event::Apply`] for each object, then [`Event::InitDone`]:
//! together one atomic replace) and from then on what changes. The rest of the controller knows no other source: a
//! standalone site has a folder of manifests, a Kubernetes cluster its API server, and both speak these events.
//!
//! - **In**: files (see [`directory`]), or watches of an API server (see [`kubernetes`]).
//! - **Out**: [`Event`]s in order; [`Problem`]s as a whole list.
//! - **Refuses when**: an object cannot be read. It is reported, its last good state stays, everything else goes on. Where
//!   it has none and may be an ExportPolicy, that is told as a [`Doubt`].
//! - **Never does**: judge what an object means; that is the catalog's part.
//! - **Numbers**: [`EVENTS`].

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

pub use linkspan_proto::resources::{Kind, Object, ObjectKey};

// A folder of manifests.
pub mod directory;

// What one folder's files come to, without the file system.
pub mod folder;

// An API server.
pub mod kubernetes;

// What its watches come to, without a client.
pub mod intake;

/// Events that may wait for the catalog. The catalog takes them faster than a parser makes them; a full queue only slows
/// the source down.
pub const EVENTS: usize = 1024;

/// What a source says.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// All objects follow; what was known and does not come is gone.
    Init,
    /// An object is there, or differs from what was known.
    Apply(Box<Object>),
    /// An object is gone.
    Delete(ObjectKey),
    /// All that is in doubt from now on; what was in doubt before and is not named is no more. A source tells it before
    /// the changes that raise it, and after those that settle it.
    Doubt(Doubt),
    /// All objects came.
    InitDone,
}

/// What is there, cannot be read and has no last good state. What such an ExportPolicy would forbid must not happen, and what an
/// earlier version of such a Link made must not be taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    /// In any namespace: nothing tells which.
    pub site: bool,
    /// In these namespaces.
    pub namespaces: BTreeSet<String>,
    /// These Links are there, whatever they say.
    pub links: BTreeSet<String>,
}

impl Doubt {
    /// Whether a policy of this namespace may be missing.
    #[must_use]
    pub fn covers(&self, namespace: &str) -> bool {
        self.site || self.namespaces.contains(namespace)
    }

    /// Both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let namespaces = self.namespaces.union(&other.namespaces).cloned().collect();
        let links = self.links.union(&other.links).cloned().collect();
        Self { site: self.site || other.site, namespaces, links }
    }

    /// One more namespace, or the whole site where nothing tells which.
    pub fn raise(&mut self, namespace: Option<&str>) {
        match namespace {
            Some(namespace) => drop(self.namespaces.insert(namespace.to_owned())),
            None => self.site = true,
        }
    }
}

/// Something in a source that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The file, relative to the manifests folder; on Kubernetes the object.
    pub file: String,
    /// Line of the file, from 1; 0 when the whole file is meant.
    pub line: usize,
    /// Column, from 1; 0 when the whole line is meant.
    #[serde(skip_serializing_if = "is_zero")]
    pub column: usize,
    /// The field, as a path: `spec.tiers[0].clusters`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl Problem {
    /// Of a line, or of the whole file where that is 0.
    pub(crate) fn at_line(file: &str, line: usize, message: String) -> Self {
        Self { file: file.to_owned(), line, column: 0, field: String::new(), message }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.file)?;
        if self.line > 0 {
            write!(formatter, ":{}", self.line)?;
        }
        if self.column > 0 {
            write!(formatter, ":{}", self.column)?;
        }
        if !self.field.is_empty() {
            write!(formatter, ": {}", self.field)?;
        }
        write!(formatter, ": {}", self.message)
    }
}
