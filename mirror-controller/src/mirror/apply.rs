//! The only place that writes mirrored objects.
//!
//! - **In**: the newest [`MirrorSet`]. Older ones that were not written yet are skipped: the latest wins, for each place.
//! - **Out**: objects in a [`Sink`]: files on a site.
//! - **Refuses when**: something that is not ours stands in a place.
//! - **Never does**: hold anybody up: a sink that fails is tried again later, and everything else goes on.
//! - **Numbers**: [`RETRY`], [`BATCH`], [`PACE`].

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use linkspan_proto::names::{ClusterName, Namespace, ServiceKey, ServiceName};
use linkspan_runtime::backoff::Backoff;
use serde::Deserialize;
use tokio::sync::watch;

use super::desired::{MirrorId, Wanted};
use super::metrics::Applied;
use super::object;
use super::plan::{Action, Item, Left, Place, Plan, Present, plan};
use super::state::MirrorSet;
use crate::files;
use crate::labels;
use crate::saving::Saving;

/// Pauses after a failed write.
pub const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Writes between two looks at whether something newer is wanted.
pub const BATCH: usize = 1024;
/// Between two comparisons under steady change.
pub const PACE: Duration = Duration::from_millis(200);

/// Where objects are written to.
pub trait Sink: Send + 'static {
    /// What is there.
    fn list(&mut self) -> impl Future<Output = io::Result<BTreeMap<Place, Present>>> + Send;

    /// Does these items in order; says how many were done, and why it stopped when not all were.
    fn write(&mut self, items: Vec<Item>) -> impl Future<Output = (usize, io::Result<()>)> + Send;
}

/// Keeps a sink as wanted until `sets` is closed.
pub async fn run(mut sink: impl Sink, mut sets: watch::Receiver<MirrorSet>, metrics: Applied, saving: Saving) {
    let mut pause = Backoff::new(RETRY.0, RETRY.1);
    let mut present = loop {
        match sink.list().await {
            Ok(present) => break present,
            Err(error) => {
                tracing::error!(%error, "the mirrored objects cannot be listed");
                tokio::time::sleep(pause.next()).await;
            }
        }
    };
    pause.reset();
    let mut told: Vec<Left> = Vec::new();
    loop {
        let set = sets.borrow_and_update().clone();
        let Plan { mut items, left, adopted } = plan(&set, &present, render);
        present.extend(adopted.into_iter().map(|(place, wanted)| (place, Present::Written(wanted))));
        items.truncate(BATCH);
        tell(&mut told, left);
        let idle = items.is_empty();
        let (done, result) = sink.write(items.clone()).await;
        for item in items.into_iter().take(done) {
            metrics.applied(&item.action);
            tracing::debug!(
                object = %item.place.object,
                reason = ?item.reason,
                "mirrored object {}",
                verb(&item.action)
            );
            match item.action {
                Action::Create(wanted) | Action::Patch(wanted) => {
                    drop(present.insert(item.place, Present::Written(wanted)))
                }
                Action::Delete => drop(present.remove(&item.place)),
            }
        }
        saving.note("mirrors", result.as_ref());
        match result {
            Err(error) => {
                metrics.failed();
                tracing::warn!(%error, "a mirrored object cannot be written; trying again");
                tokio::select! {
                    () = tokio::time::sleep(pause.next()) => {}
                    changed = sets.changed() => if changed.is_err() { return },
                }
            }
            Ok(()) => {
                pause.reset();
                if idle {
                    if sets.changed().await.is_err() {
                        return;
                    }
                    // Under steady change a comparison this often costs little, and the latest state wins anyway.
                    tokio::time::sleep(PACE).await;
                }
            }
        }
    }
}

const fn verb(action: &Action) -> &'static str {
    match action {
        Action::Create(_) => "created",
        Action::Patch(_) => "changed",
        Action::Delete => "deleted",
    }
}

/// Logs what is left alone, once.
fn tell(told: &mut Vec<Left>, left: Vec<Left>) {
    for left in left.iter().filter(|left| !told.contains(left)) {
        tracing::warn!(
            object = %left.place.object,
            why = ?left.why,
            "a mirrored object is left as it is"
        );
    }
    *told = left;
}

fn render(wanted: &Wanted) -> String {
    object::yaml(&object::objects(wanted)).unwrap_or_default()
}

/// A folder of YAML files, one for each mirror: `<namespace>.<name>.yaml`, imports `<namespace>.<name>.clusterset.yaml`.
#[derive(Clone, Debug)]
pub struct DirectorySink {
    folder: PathBuf,
}

impl DirectorySink {
    /// Objects in `folder`, which exists.
    #[must_use]
    pub const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }
}

impl Sink for DirectorySink {
    async fn list(&mut self) -> io::Result<BTreeMap<Place, Present>> {
        let folder = self.folder.clone();
        blocking(move || list(&folder)).await
    }

    async fn write(&mut self, items: Vec<Item>) -> (usize, io::Result<()>) {
        let folder = self.folder.clone();
        let written = blocking(move || {
            for (done, item) in items.iter().enumerate() {
                if let Err(error) = write(&folder, item) {
                    return Ok((done, Err(error)));
                }
            }
            Ok((items.len(), Ok(())))
        });
        written.await.unwrap_or_else(|error| (0, Err(error)))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn file_name(place: &Place) -> String {
    let import = if place.import { ".clusterset" } else { "" };
    format!("{}.{}{import}.yaml", place.object.namespace, place.object.name)
}

/// The place that a file name says; names of namespaces and services have no dots.
fn place(file: &str) -> Option<Place> {
    let stem = file.strip_suffix(".yaml")?;
    let (stem, import) = stem.strip_suffix(".clusterset").map_or((stem, false), |stem| (stem, true));
    let (namespace, name) = stem.split_once('.')?;
    let object = ServiceKey::new(Namespace::parse(namespace).ok()?, ServiceName::parse(name).ok()?);
    Some(Place { object, import })
}

fn write(folder: &Path, item: &Item) -> io::Result<()> {
    let path = folder.join(file_name(&item.place));
    match &item.action {
        Action::Create(wanted) | Action::Patch(wanted) => files::write_quickly(&path, render(wanted).as_bytes(), 0o644),
        Action::Delete => files::remove(&path),
    }
}

fn list(folder: &Path) -> io::Result<BTreeMap<Place, Present>> {
    let mut present = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if files::is_temporary(&name) {
            // Left by a run that was killed in the middle of a write.
            files::remove(&entry.path())?;
            continue;
        }
        let Some(place) = place(&name) else { continue };
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let found = match identify(&text) {
            Some(id) => Present::Found { id, text },
            None => Present::Foreign,
        };
        present.insert(place, found);
    }
    Ok(present)
}

#[derive(Deserialize)]
struct Head {
    metadata: HeadMetadata,
}

#[derive(Deserialize)]
struct HeadMetadata {
    namespace: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// Which mirror a text is, by our labels on its first object.
fn identify(text: &str) -> Option<MirrorId> {
    let first = text.split("\n---").next()?;
    let head: Head = serde_saphyr::from_str(first).ok()?;
    let label = |name: &str| head.metadata.labels.get(name).map(String::as_str);
    if label(labels::MANAGED_BY) != Some(labels::MANAGED_BY_VALUE) {
        return None;
    }
    let namespace = Namespace::parse(&head.metadata.namespace).ok()?;
    let service = ServiceKey::new(namespace, ServiceName::parse(label(labels::SERVICE)?).ok()?);
    Some(match label(labels::CLUSTER) {
        Some(cluster) => MirrorId::Cluster { cluster: ClusterName::parse(cluster).ok()?, service },
        None => MirrorId::Clusterset { service },
    })
}

#[cfg(test)]
mod tests;
