//! The Links that a site's manifests declare.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use linkspan_proto::manifest;
use linkspan_proto::names::ClusterName;
use linkspan_proto::resources::{Link, Object, Site};

use crate::client::folder::read_manifest;

/// A Link and where it stands.
#[derive(Debug)]
pub(super) struct Declared {
    /// The peer's name.
    pub(super) cluster: ClusterName,
    /// The object.
    pub(super) link: Link,
    /// Where it stands: the file that holds it, or its name in the API server.
    pub(super) stands: String,
}

/// The Links of a site or cluster, and what could not be read.
#[derive(Debug, Default)]
pub(super) struct Manifests {
    /// By file name, then by place in the file.
    pub(super) links: Vec<Declared>,
    /// Documents and files that are broken, in words.
    pub(super) broken: Vec<String>,
}

/// The folder of a site's manifests.
pub(super) fn folder(dir: &Path, site: &Site) -> PathBuf {
    dir.join(&site.spec.manifests)
}

/// The file in which `link import` places the Link to `cluster`.
pub(super) fn file_of(folder: &Path, cluster: &ClusterName) -> PathBuf {
    folder.join(format!("link-{cluster}.yaml"))
}

/// Reads all manifests of a folder, as the controller does: `*.yaml` and `*.yml`, hidden files left out.
pub(super) fn read(folder: &Path) -> anyhow::Result<Manifests> {
    let mut files = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        // The controller makes it at its start.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Manifests::default()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".yml")) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    let mut found = Manifests::default();
    for file in files {
        match read_manifest(&file) {
            Ok(text) => collect(&mut found, &text, &file),
            Err(error) => found.broken.push(format!("{}: {error}", file.display())),
        }
    }
    Ok(found)
}

/// Adds the Links of one file.
fn collect(found: &mut Manifests, text: &str, file: &Path) {
    for document in manifest::parse(text, &file.display().to_string()) {
        match document {
            Ok((Object::Link(link), line)) => {
                match ClusterName::parse(link.metadata.name.as_deref().unwrap_or_default()) {
                    Ok(cluster) => found.links.push(Declared { cluster, link, stands: file.display().to_string() }),
                    Err(error) => found.broken.push(format!("{}:{line}: {error}", file.display())),
                }
            }
            Ok(_) => {}
            Err(error) => found.broken.push(error.to_string()),
        }
    }
}

/// Reads a text that must hold one Link and nothing else.
pub(super) fn one_link(text: &str, file: &str) -> anyhow::Result<(ClusterName, Link)> {
    let mut link = None;
    for document in manifest::parse(text, file) {
        match document? {
            (Object::Link(_), line) if link.is_some() => bail!("{file}:{line}: a second Link; import one at a time"),
            (Object::Link(found), _) => link = Some(found),
            (other, line) => bail!(
                "{file}:{line}: a {} where a Link is expected; nothing else may hide in a file that came from a peer",
                other.kind()
            ),
        }
    }
    let link = link.with_context(|| format!("{file} holds no Link; on the peer: linkspan link export"))?;
    let cluster = ClusterName::parse(link.metadata.name.as_deref().unwrap_or_default())?;
    Ok((cluster, link))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::read;

    #[test]
    fn a_folder_that_is_not_there_yet_holds_no_links() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&dir.path().join("manifests")).unwrap().links.is_empty());
    }

    #[test]
    fn the_examples_that_we_ship_are_valid() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
        let found = read(&examples).unwrap();
        assert!(found.broken.is_empty(), "{:?}", found.broken);
        assert!(std::fs::read_dir(examples).unwrap().count() >= 7);
    }
}
