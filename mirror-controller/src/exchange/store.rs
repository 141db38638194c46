//! Last good catalogues on disk: a restart of this controller must not look like a peer without services.
//!
//! On a site nobody else follows the peers, and what is on disk is the newest. In a cluster others may have led since it was
//! saved: there the mirrors tell of a peer ([`Standing`]), and of the copy counts only what no mirror can tell.
//!
//! - **In**: verified catalogues, and what of them is withheld; in a cluster, what the mirrors tell.
//! - **Out**: what to begin with after a restart.
//! - **Refuses when**: a file does not parse or its hash does not agree: then it counts as absent, and is reported.
//! - **Never does**: wait for the disk on the way of a change; saving is put off up to [`SAVE_INTERVAL`].
//! - **Numbers**: [`SAVE_INTERVAL`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use linkspan_proto::exchange::{CatalogueEntry, CataloguePort, Details, MAX_SERVICES, Protocol};
use linkspan_proto::generated::exchange as wire;
use linkspan_proto::names::{ClusterName, EndpointName, PortName, ServiceKey};
use linkspan_runtime::task;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::session::{Catalogue, Entries, Subscriber};
use crate::files;
use crate::saving::Saving;

/// Between two saves of one peer. An older copy is no loss: the peer sends what changed since.
pub const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// Between two tries to save.
const SAVE_AGAIN: Duration = Duration::from_secs(5);

/// What stands for peers' catalogues in a cluster, where no copy on disk is as new: what was made of them.
pub type Standing = BTreeMap<ClusterName, Entries>;

/// The folder of last good catalogues.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    saving: Saving,
    /// Only in a cluster. Each is used once: later it would be older than what was heard.
    standing: Option<Arc<Mutex<Standing>>>,
}

/// A catalogue in its file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    cluster: ClusterName,
    epoch: u64,
    version: u64,
    entries: Vec<EntryText>,
    #[serde(default)]
    withheld: Vec<EntryText>,
}

/// A catalogue entry as text, for the file and for the admin port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EntryText {
    /// `namespace/name`.
    pub service: ServiceKey,
    /// Whether clients choose among its endpoints by name.
    #[serde(default)]
    pub headless: bool,
    /// Its ports.
    pub ports: Vec<PortText>,
    /// Whether each named endpoint is ready; only for headless services.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<EndpointName, bool>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What goes with it beside that.
    #[serde(default, skip_serializing_if = "is_default")]
    pub details: Details,
}

fn is_default(details: &Details) -> bool {
    *details == Details::default()
}

/// A port of an [`EntryText`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortText {
    /// The number.
    pub port: u16,
    /// The name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<PortName>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Kubernetes' `appProtocol`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// Ready endpoints.
    pub ready: u32,
    /// All endpoints, where the peer says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u32>,
}

impl From<&CatalogueEntry> for EntryText {
    fn from(entry: &CatalogueEntry) -> Self {
        Self {
            service: entry.service.clone(),
            headless: entry.headless,
            ports: entry
                .ports
                .iter()
                .map(|port| PortText {
                    port: port.port,
                    name: port.name.clone(),
                    protocol: port.protocol.as_str().to_owned(),
                    app_protocol: port.app_protocol.clone(),
                    ready: port.ready,
                    total: port.total,
                })
                .collect(),
            endpoints: entry.endpoints.iter().cloned().collect(),
            labels: entry.labels.clone(),
            details: entry.details.clone(),
        }
    }
}

impl EntryText {
    /// Back to an entry, through the same checks that a peer's message passes.
    fn entry(self) -> Result<CatalogueEntry, String> {
        let mut ports = Vec::with_capacity(self.ports.len());
        for port in self.ports {
            let protocol =
                Protocol::from_kubernetes(&port.protocol).ok_or_else(|| format!("protocol {}", port.protocol))?;
            ports.push(CataloguePort {
                port: port.port,
                name: port.name,
                protocol,
                app_protocol: port.app_protocol,
                ready: port.ready,
                total: port.total,
            });
        }
        let entry = CatalogueEntry {
            service: self.service,
            headless: self.headless,
            ports,
            endpoints: self.endpoints.into_iter().collect(),
            labels: self.labels,
            details: self.details,
        };
        CatalogueEntry::try_from(wire::Entry::from(entry)).map_err(|error| error.to_string())
    }
}

impl Store {
    /// Catalogues in `folder`, which exists; what cannot be saved there is noted in `saving`.
    #[must_use]
    pub fn new(folder: PathBuf, saving: Saving) -> Self {
        Self { folder, saving, standing: None }
    }

    /// In a cluster: with what the mirrors tell of peers.
    #[must_use]
    pub fn with_standing(mut self, standing: Standing) -> Self {
        self.standing = Some(Arc::new(Mutex::new(standing)));
        self
    }

    /// What is known of a peer, and what of it was withheld.
    pub(super) fn load(&self, peer: &ClusterName) -> (Option<Catalogue>, Entries) {
        let (saved, withheld) = self.saved(peer);
        let Some(standing) = &self.standing else {
            if let Some(saved) = &saved {
                tracing::info!(%peer, services = saved.entries.len(), "the peer's last catalogue is in force again");
            }
            return (saved, withheld);
        };
        let Some(mut entries) = standing.lock().unwrap_or_else(PoisonError::into_inner).remove(peer) else {
            return (None, Entries::new());
        };
        tracing::info!(%peer, services = entries.len(), "services of the peer are known by their mirrors until it is heard");
        if let Some(saved) = saved {
            for (service, entry) in &mut entries {
                if let Some(before) = saved.entries.get(service) {
                    count_as(Arc::make_mut(entry), before);
                }
            }
        }
        // No version of the peer's: it sends all of them. What was withheld has its mirrors still.
        (Some(Catalogue::new(0, 0, Arc::new(entries))), Entries::new())
    }

    fn saved(&self, peer: &ClusterName) -> (Option<Catalogue>, Entries) {
        let path = self.path(peer);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return (None, Entries::new()),
            Err(error) => {
                tracing::error!(%peer, path = %path.display(), %error, "the peer's last catalogue cannot be read");
                return (None, Entries::new());
            }
        };
        match parse(&text, peer) {
            Ok((catalogue, withheld)) => (Some(catalogue), withheld),
            Err(error) => {
                tracing::error!(%peer, path = %path.display(), error, "the peer's last catalogue is damaged and not used");
                (None, Entries::new())
            }
        }
    }

    /// Forgets everything of peers that are not among `linked`.
    pub(super) fn retain<'a>(&self, linked: impl IntoIterator<Item = &'a ClusterName>) {
        let peers: BTreeSet<_> = linked.into_iter().collect();
        if let Some(standing) = &self.standing {
            standing.lock().unwrap_or_else(PoisonError::into_inner).retain(|peer, _| peers.contains(peer));
        }
        let linked: BTreeSet<_> = peers.into_iter().map(|peer| self.path(peer)).collect();
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| !linked.contains(path)) {
            if let Err(error) = files::remove(&path) {
                tracing::warn!(path = %path.display(), %error, "an old catalogue cannot be removed");
            }
        }
    }

    /// Forgets a peer.
    pub(super) fn remove(&self, peer: &ClusterName) {
        let removed = files::remove(&self.path(peer));
        self.saving.note(&noted(peer), removed.as_ref());
        if let Err(error) = removed {
            tracing::warn!(%peer, %error, "the peer's last catalogue cannot be removed");
        }
    }

    /// Saves one peer's catalogue from now on.
    pub(super) fn saver(&self, peer: &ClusterName, subscriber: &Subscriber) -> Saver {
        Saver {
            store: self.clone(),
            peer: peer.clone(),
            saved: Mark::of(subscriber),
            failed: Arc::default(),
            due: None,
            running: None,
        }
    }

    /// Says whether it is saved.
    fn save(&self, peer: &ClusterName, kept: &Kept) -> bool {
        let texts = |entries: &Entries| entries.values().map(|entry| EntryText::from(entry.as_ref())).collect();
        let stored = Stored {
            cluster: peer.clone(),
            epoch: kept.catalogue.epoch,
            version: kept.catalogue.version,
            entries: texts(&kept.catalogue.entries),
            withheld: texts(&kept.withheld),
        };
        let path = self.path(peer);
        let written = serde_json::to_vec(&stored)
            .map_err(io::Error::other)
            .and_then(|bytes| files::write_atomically(&path, &bytes, 0o600));
        if let Err(error) = &written {
            tracing::warn!(%peer, path = %path.display(), %error, "the peer's catalogue cannot be saved");
        }
        self.saving.note(&noted(peer), written.as_ref());
        written.is_ok()
    }

    fn path(&self, peer: &ClusterName) -> PathBuf {
        self.folder.join(format!("{peer}.json"))
    }
}

/// Gives ports as many endpoints as they had before, where they are the same still: mirrors do not tell. None at all is not
/// taken over: the mirror is there, and a service without endpoints in an old copy may have had them for days.
fn count_as(entry: &mut CatalogueEntry, before: &CatalogueEntry) {
    for port in &mut entry.ports {
        let is_same = |old: &&CataloguePort| {
            (old.port, &old.name, old.protocol, &old.app_protocol)
                == (port.port, &port.name, port.protocol, &port.app_protocol)
        };
        if let Some(old) = before.ports.iter().find(is_same).filter(|old| old.ready > 0) {
            (port.ready, port.total) = (old.ready, old.total);
        }
    }
}

fn parse(text: &str, peer: &ClusterName) -> Result<(Catalogue, Entries), String> {
    let stored: Stored = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if stored.cluster != *peer {
        return Err(format!("it is the catalogue of {}", stored.cluster));
    }
    let entries = |texts: Vec<EntryText>| -> Result<Entries, String> {
        if texts.len() > MAX_SERVICES {
            return Err(format!("{} services", texts.len()));
        }
        texts.into_iter().map(|text| text.entry().map(|entry| (entry.service.clone(), Arc::new(entry)))).collect()
    };
    let withheld = entries(stored.withheld)?;
    Ok((Catalogue::new(stored.epoch, stored.version, Arc::new(entries(stored.entries)?)), withheld))
}

/// What tells one saved state from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    version: Option<(u64, u64)>,
    withheld: usize,
}

impl Mark {
    /// What no subscriber has.
    const NONE: Self = Self { version: None, withheld: usize::MAX };

    fn of(subscriber: &Subscriber) -> Self {
        subscriber.to_keep().map_or(Self { version: None, withheld: 0 }, |(catalogue, withheld)| Self {
            version: Some((catalogue.epoch, catalogue.version)),
            withheld: withheld.len(),
        })
    }
}

/// Saves one peer's catalogue when it changed, not too often.
#[derive(Debug)]
pub(super) struct Saver {
    store: Store,
    peer: ClusterName,
    saved: Mark,
    /// The last save failed, and is due again.
    failed: Arc<AtomicBool>,
    due: Option<Instant>,
    /// A save on its way: the next waits for it, or an older state could end on top of a newer.
    running: Option<JoinHandle<()>>,
}

impl Saver {
    /// Looks whether there is something to save, and saves it when its time has come.
    pub(super) fn offer(&mut self, subscriber: &Subscriber, now: Instant) {
        if self.failed.swap(false, Ordering::Relaxed) {
            self.saved = Mark::NONE;
            self.due = Some(now + SAVE_AGAIN);
        }
        if Mark::of(subscriber) == self.saved {
            // A time that has passed would wake the session over and over.
            self.due = None;
            return;
        }
        let due = *self.due.get_or_insert(now + SAVE_INTERVAL);
        if now < due {
            return;
        }
        if self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            self.due = Some(now + SAVE_INTERVAL);
            return;
        }
        if let Some(kept) = self.take(subscriber) {
            let (store, peer, failed) = (self.store.clone(), self.peer.clone(), Arc::clone(&self.failed));
            // Serialising ten thousand entries takes milliseconds, the disk longer: neither on this task.
            self.running = Some(task::spawn("exchange_save", async move {
                let saved = tokio::task::spawn_blocking(move || store.save(&peer, &kept)).await;
                failed.store(!saved.unwrap_or(false), Ordering::Relaxed);
            }));
        }
    }

    /// When to be asked again.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Saves what is not saved yet.
    pub(super) async fn finish(mut self, subscriber: &Subscriber) {
        if let Some(running) = self.running.take() {
            drop(running.await);
        }
        if (Mark::of(subscriber) != self.saved || self.failed.load(Ordering::Relaxed))
            && let Some(kept) = self.take(subscriber)
        {
            self.store.save(&self.peer, &kept);
        }
    }

    fn take(&mut self, subscriber: &Subscriber) -> Option<Kept> {
        self.due = None;
        self.saved = Mark::of(subscriber);
        subscriber
            .to_keep()
            .map(|(catalogue, withheld)| Kept { catalogue: catalogue.clone(), withheld: withheld.clone() })
    }
}

struct Kept {
    catalogue: Catalogue,
    withheld: Entries,
}

fn noted(peer: &ClusterName) -> String {
    format!("catalogues/{peer}.json")
}

#[cfg(test)]
mod tests;
