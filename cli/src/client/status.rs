//! Objects with conditions: on a site as files below `state/status/`, on Kubernetes as the objects themselves.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::folder::Folder;
use super::source::Of;

/// Longest status file that is read. An object with a dozen conditions takes a few KiB.
const FILE_MAX: u64 = 1024 * 1024;

/// What the controller found out about one object.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Status {
    /// Its kind.
    #[serde(default)]
    pub(crate) kind: String,
    /// Its name.
    pub(crate) metadata: Metadata,
    #[serde(default)]
    status: Inner,
}

/// Names of an object.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Metadata {
    /// The name.
    pub(crate) name: String,
    /// Empty where the kind has none.
    #[serde(default)]
    pub(crate) namespace: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Inner {
    #[serde(default)]
    conditions: Vec<Condition>,
    /// Of a mirror: the name that clients use.
    #[serde(default)]
    hostname: String,
    /// Of a mirror: what is mirrored, `namespace/name`.
    #[serde(default)]
    service: String,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Condition {
    /// `Valid`, `Ready`, `Accepted`, ...
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// `True`, `False` or `Unknown`.
    pub(crate) status: String,
    /// One word.
    #[serde(default)]
    pub(crate) reason: String,
    /// A sentence.
    #[serde(default)]
    pub(crate) message: String,
}

impl Status {
    /// Its conditions.
    pub(crate) fn conditions(&self) -> &[Condition] {
        &self.status.conditions
    }

    /// The first condition of this type that says that something is wrong.
    pub(crate) fn complaint(&self, kind: &str) -> Option<&Condition> {
        self.conditions().iter().find(|condition| condition.kind == kind && condition.complains())
    }

    /// Of a mirror: that it is not made because its namespace is not here, or none of those to mirror into.
    pub(crate) fn namespace_is_absent(&self) -> bool {
        self.complaint("Accepted").is_some_and(|condition| condition.reason == "NamespaceAbsent")
    }

    /// Of a mirror: that nobody serves it, and its name stays for a while, because a peer removed it with many others.
    pub(crate) fn removal_delayed(&self) -> Option<&Condition> {
        self.complaint("Ready").filter(|condition| condition.reason == "RemovalDelayed")
    }

    /// Of a mirror: the name that clients use.
    pub(crate) fn hostname(&self) -> &str {
        &self.status.hostname
    }

    /// Of a mirror: what is mirrored, `namespace/name`.
    pub(crate) fn service(&self) -> &str {
        &self.status.service
    }

    /// `namespace/name`, or the name alone.
    pub(crate) fn key(&self) -> String {
        let Metadata { name, namespace } = &self.metadata;
        if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") }
    }
}

impl Condition {
    /// Whether it says that something is wrong: a conflict, or anything else that does not hold.
    pub(crate) fn complains(&self) -> bool {
        match self.kind.as_str() {
            // The only type whose True is bad news.
            "Conflict" | "Stale" => self.status == "True",
            _ => self.status == "False",
        }
    }

    /// `Ready=False (Failed): spec.ports: ...`
    pub(crate) fn sentence(&self) -> String {
        format!("{}={} ({}): {}", self.kind, self.status, self.reason, self.message)
    }
}

/// All objects below `state/status/<of>/`, in order of file name. A file that cannot be read or is no such object is left
/// out: it may be in the middle of being replaced.
pub(crate) fn read(folder: &Folder, of: Of) -> Vec<Status> {
    let of = match of {
        Of::Links => "links",
        Of::Exports => "exports",
        Of::Mirrors => "mirrors",
    };
    read_dir(&folder.state().join("status").join(of))
}

fn read_dir(dir: &Path) -> Vec<Status> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    files
        .iter()
        .filter(|file| fs::metadata(file).is_ok_and(|data| data.len() <= FILE_MAX))
        .filter_map(|file| serde_saphyr::from_str(&fs::read_to_string(file).ok()?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_read_and_rubbish_is_left_out() {
        let dir = tempfile::tempdir().expect("folder");
        let good = "apiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\nmetadata: {name: web, namespace: shop}\n\
                    status:\n  conditions:\n    - {type: Ready, status: 'False', reason: Failed, message: no ports, \
                    lastTransitionTime: '2026-01-01T00:00:00Z'}\n";
        fs::write(dir.path().join("shop.web.yaml"), good).expect("written");
        fs::write(dir.path().join("broken.yaml"), "metadata: [").expect("written");
        fs::write(dir.path().join("note.txt"), good).expect("written");
        let read = read_dir(dir.path());
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].kind.as_str(), read[0].key().as_str()), ("ServiceExport", "shop/web"));
        let condition = &read[0].conditions()[0];
        assert!(condition.complains());
        assert_eq!(condition.sentence(), "Ready=False (Failed): no ports");
        assert!(read_dir(&dir.path().join("absent")).is_empty());
    }

    #[test]
    fn a_conflict_complains_when_it_is_true() {
        let condition = |kind: &str, status: &str| Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            reason: String::new(),
            message: String::new(),
        };
        assert!(condition("Conflict", "True").complains());
        assert!(!condition("Conflict", "False").complains());
        assert!(!condition("Ready", "Unknown").complains());
    }
}
