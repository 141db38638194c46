//! Keeps the objects that stand for mirrors as they should be, in an API server.
//!
//! ```text
//! mirrors, ready gateways, namespaces --> plan --> writes (server-side apply, several at a time) --> API server
//!                       ^                                                                              |
//!                       +------------------ what is there, and what others do to it <-- watches -------+
//! ```
//!
//! - **In**: the newest [`MirrorSet`], the ready gateway pods, the namespaces; watches of the objects that carry our label.
//! - **Out**: Services, EndpointSlices and ServiceImports; the ClusterIPs of imports, which DNS answers with.
//! - **Refuses when**: an object of that name is there and not ours; its namespace is not there (it is made when that is).
//! - **Never does**: write without being the leader; delete without our label or on an incomplete view; hold up one mirror for
//!   another: each place has a pause of its own.
//! - **Numbers**: [`AT_ONCE`], [`BATCH`], [`WRITE`], [`RETRY`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use kube::Client;
use linkspan_proto::names::ServiceKey;
use linkspan_runtime::drain::Signal;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::desired::{MirrorId, Wanted};
use super::metrics::Applied;
use super::plan::{Action, Item, Place, Plan, Present, Reason, plan};
use super::state::MirrorSet;
use crate::leader::Leading;
use api::{Api, Said};
use objects::{Gateways, Reference, Resource};

// Which objects, and whether they are as they should be.
pub mod objects;

mod api;
mod place;

/// Mirrors that are written at the same time. An API server answers a write in some milliseconds; more at once would only
/// queue there, and beside the writes of everybody else.
pub const AT_ONCE: usize = 8;
/// Mirrors that are written between two looks at whether something newer is wanted.
pub const BATCH: usize = 64;
/// Time for one write. What is sent in the last moment of a leadership is over before another one can begin
/// ([`crate::leader::candidate`]).
pub const WRITE: Duration = Duration::from_secs(5);
/// Pause of one mirror whose write failed: first and longest.
pub const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// The ClusterIPs of imports, by the service that is imported.
pub type ClusterIps = Arc<BTreeMap<ServiceKey, Vec<IpAddr>>>;

/// Mirrors that cannot be made because an object of somebody else has the name, by that object.
pub type Foreign = Arc<BTreeMap<ServiceKey, MirrorId>>;

/// What this stage needs from outside.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What should be there.
    pub sets: watch::Receiver<MirrorSet>,
    /// The ready gateway pods; `None` until they are known.
    pub gateways: watch::Receiver<Option<Gateways>>,
    /// The namespaces; `None` until they are known.
    pub namespaces: watch::Receiver<Option<Arc<BTreeSet<String>>>>,
    /// Whether this controller is the one that writes.
    pub leading: Leading,
    /// Told when they change.
    pub cluster_ips: watch::Sender<ClusterIps>,
    /// Told when they change.
    pub foreign: watch::Sender<Foreign>,
    /// Figures.
    pub metrics: Applied,
    /// The end.
    pub signal: Signal,
}

/// What is known of one mirror's objects.
#[derive(Debug, Default)]
struct Known {
    /// The objects themselves, from a list, until they were compared once.
    found: Vec<(Reference, Value)>,
}

struct Keeper {
    api: Api,
    present: BTreeMap<Place, Present>,
    known: BTreeMap<Place, Known>,
    /// Written as wanted, and touched by somebody since; or the gateways changed.
    stale: BTreeSet<Place>,
    /// Objects of mirrors that are written which these do not have (any more), such as the slice of a family that no gateway has.
    orphans: BTreeSet<Reference>,
    /// Places whose last write failed: when to try again, and how often it failed.
    pauses: BTreeMap<Place, (Instant, u32)>,
    gateways: Gateways,
    namespaces: Arc<BTreeSet<String>>,
    cluster_ips: BTreeMap<ServiceKey, Vec<IpAddr>>,
    /// Mirrors whose place somebody else has.
    foreign: BTreeMap<ServiceKey, MirrorId>,
    /// Resources whose list was complete once.
    listed: BTreeSet<Resource>,
    metrics: Applied,
}

/// Keeps the objects until the drain.
pub async fn run(context: Context) {
    let Context { client, mut sets, mut gateways, mut namespaces, mut leading, cluster_ips, foreign, metrics, signal } =
        context;
    let api = Api::new(client, leading.clone());
    let mut watches: stream::SelectAll<BoxStream<'static, (Resource, Said)>> =
        stream::select_all(Resource::ALL.map(|resource| api.watch(resource)));
    let mut keeper = Keeper::new(api, metrics);
    loop {
        let next = keeper.next_try();
        tokio::select! {
            biased;
            () = signal.draining() => return,
            Some((resource, said)) = watches.next() => {
                let set = sets.borrow().clone();
                keeper.observe(&set, resource, said);
                // A list comes as thousands of single objects: all of them before anything is decided.
                while let Some(Some((resource, said))) = futures::FutureExt::now_or_never(watches.next()) {
                    keeper.observe(&set, resource, said);
                }
                keeper.tell(&cluster_ips);
            }
            changed = sets.changed() => if changed.is_err() { return },
            changed = gateways.changed() => if changed.is_err() { return },
            changed = namespaces.changed() => if changed.is_err() { return },
            () = leading.changed() => {}
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
        let set = sets.borrow_and_update().clone();
        keeper.landscape(gateways.borrow_and_update().as_ref(), namespaces.borrow_and_update().clone());
        if leading.holds() && keeper.is_ready() {
            // One batch at a time, so that whatever changes meanwhile counts for the next.
            keeper.work(&set).await;
            keeper.tell(&cluster_ips);
            keeper.tell_foreign(&foreign);
        }
    }
}

impl Keeper {
    fn new(api: Api, metrics: Applied) -> Self {
        Self {
            api,
            present: BTreeMap::new(),
            known: BTreeMap::new(),
            stale: BTreeSet::new(),
            orphans: BTreeSet::new(),
            pauses: BTreeMap::new(),
            gateways: Gateways::default(),
            namespaces: Arc::default(),
            cluster_ips: BTreeMap::new(),
            foreign: BTreeMap::new(),
            listed: BTreeSet::new(),
            metrics,
        }
    }

    fn is_ready(&self) -> bool {
        self.listed.len() == Resource::ALL.len() && !self.namespaces.is_empty()
    }

    /// When to work again without any news: at once while there is more to do, later for what failed.
    fn next_try(&self) -> Option<Instant> {
        if !self.stale.iter().all(|place| self.pauses.contains_key(place)) {
            return Some(Instant::now());
        }
        self.pauses.values().map(|(at, _)| *at).min()
    }

    fn landscape(&mut self, gateways: Option<&Gateways>, namespaces: Option<Arc<BTreeSet<String>>>) {
        if let Some(gateways) = gateways.filter(|gateways| **gateways != self.gateways) {
            self.gateways = gateways.clone();
            let written = self.present.iter().filter(|(_, present)| matches!(present, Present::Written(_)));
            self.stale.extend(written.map(|(place, _)| place.clone()));
        }
        if let Some(namespaces) = namespaces.filter(|namespaces| *namespaces != self.namespaces) {
            // What waited for a namespace goes at once when that appears.
            let new: BTreeSet<_> = namespaces.difference(&self.namespaces).cloned().collect();
            self.pauses.retain(|place, _| !new.contains(place.object.namespace.as_str()));
            self.namespaces = namespaces;
        }
    }

    /// What a watch says about an object with our label.
    fn observe(&mut self, set: &MirrorSet, resource: Resource, said: Said) {
        match said {
            Said::Object { value, listed } => {
                let Some((id, place)) = place::identify(resource, &value) else { return };
                if let (Resource::Service, MirrorId::Clusterset { service }) = (resource, &id) {
                    self.cluster_ips.insert(service.clone(), place::cluster_ips(&value));
                }
                let reference = place::reference(resource, &value);
                match self.present.get(&place) {
                    Some(Present::Written(wanted)) => {
                        let wanted = Arc::clone(wanted);
                        match self.agrees(&wanted, &reference, &value) {
                            Some(true) => {}
                            Some(false) => drop(self.stale.insert(place)),
                            None => drop(self.orphans.insert(reference)),
                        }
                    }
                    _ => {
                        if listed || !set.wanted.contains_key(&id) {
                            self.known.entry(place.clone()).or_default().found.push((reference, value));
                        }
                        self.present.insert(place, Present::Found { id, text: String::new() });
                    }
                }
            }
            Said::Gone(value) => {
                let Some((id, place)) = place::identify(resource, &value) else { return };
                if let (Resource::Service, MirrorId::Clusterset { service }) = (resource, &id) {
                    self.cluster_ips.remove(service);
                }
                if let Some(Present::Written(_)) = self.present.get(&place) {
                    self.stale.insert(place);
                }
            }
            Said::Listed => drop(self.listed.insert(resource)),
        }
    }

    /// Whether an observed object of a mirror is as it should be; `None` when the mirror has no such object.
    fn agrees(&self, wanted: &Wanted, reference: &Reference, observed: &Value) -> Option<bool> {
        let mut rendered = objects::objects(wanted, &self.gateways);
        if let MirrorId::Clusterset { service } = &wanted.id {
            let ips = self.cluster_ips.get(service).map(Vec::as_slice).unwrap_or_default();
            rendered.extend(objects::import(wanted, ips));
        }
        let rendered = rendered.iter().find(|rendered| rendered.reference == *reference)?;
        Some(objects::is_as(&rendered.value, observed))
    }

    /// Does up to one batch of what is to be done.
    async fn work(&mut self, set: &MirrorSet) {
        self.adopt(set);
        let Plan { items, left, adopted } = plan(set, &self.present, |_| "never equal".to_owned());
        drop((left, adopted));
        let mut due: BTreeMap<Place, Item> = items.into_iter().map(|item| (item.place.clone(), item)).collect();
        for place in std::mem::take(&mut self.stale) {
            let wanted = match self.present.get(&place) {
                Some(Present::Written(wanted)) => Arc::clone(wanted),
                _ => continue,
            };
            due.entry(place.clone()).or_insert(Item { place, action: Action::Patch(wanted), reason: Reason::Drifted });
        }
        let now = Instant::now();
        let mut more = Vec::new();
        let mut batch = Vec::new();
        for (place, item) in due {
            let paused = self.pauses.get(&place).is_some_and(|(at, _)| *at > now);
            let deleting = item.action == Action::Delete;
            if !deleting && !self.namespaces.contains(place.object.namespace.as_str()) {
                continue;
            }
            if paused || batch.len() >= BATCH {
                more.push(item);
            } else {
                batch.push(item);
            }
        }
        for reference in std::mem::take(&mut self.orphans) {
            if let Err(error) = self.api.remove(&reference).await {
                // Not pressing: the next list shows it again.
                tracing::debug!(object = reference.name, %error, "an orphan cannot be deleted");
            }
        }
        let results = stream::iter(batch.into_iter().map(|item| self.write(item))).buffer_unordered(AT_ONCE);
        let results: Vec<_> = results.collect().await;
        for (item, result) in results {
            self.written(item, result);
        }
        for item in more {
            // Still to be done: what drifted must not be forgotten, and the rest is planned again at once.
            if item.reason == Reason::Drifted || !self.pauses.contains_key(&item.place) {
                self.stale.insert(item.place);
            }
        }
    }

    /// Objects of an earlier run, or of an earlier leader, that are as wanted count as written.
    fn adopt(&mut self, set: &MirrorSet) {
        for (place, known) in std::mem::take(&mut self.known) {
            let Some(Present::Found { id, .. }) = self.present.get(&place) else { continue };
            let Some(wanted) = set.wanted.get(id) else {
                // Not wanted (yet): decided by the plan, each time anew.
                if set.wanted.is_empty() {
                    self.known.insert(place, known);
                }
                continue;
            };
            let mut rendered = objects::objects(wanted, &self.gateways);
            if let MirrorId::Clusterset { service } = &wanted.id {
                let ips = self.cluster_ips.get(service).map(Vec::as_slice).unwrap_or_default();
                rendered.extend(objects::import(wanted, ips));
            }
            let all = rendered.iter().all(|rendered| {
                let mut found = known.found.iter();
                found.any(|(reference, value)| {
                    *reference == rendered.reference && objects::is_as(&rendered.value, value)
                })
            });
            if all && known.found.len() == rendered.len() {
                self.present.insert(place, Present::Written(Arc::clone(wanted)));
            }
        }
    }

    async fn write(&self, item: Item) -> (Item, Result<Vec<IpAddr>, api::WriteError>) {
        let result = match &item.action {
            Action::Create(wanted) => self.api.create(wanted, &self.gateways).await,
            Action::Patch(wanted) => self.api.apply(wanted, &self.gateways).await,
            Action::Delete => self.api.delete(&item.place, self.service_of(&item.place)).await.map(|()| Vec::new()),
        };
        (item, result)
    }

    /// The Service that stands for what is in a place.
    fn service_of(&self, place: &Place) -> ServiceKey {
        if place.import { objects::clusterset_service(&place.object) } else { place.object.clone() }
    }

    fn written(&mut self, item: Item, result: Result<Vec<IpAddr>, api::WriteError>) {
        let place = item.place;
        match result {
            Ok(ips) => {
                self.pauses.remove(&place);
                self.foreign.remove(&place.object);
                self.metrics.applied(&item.action);
                tracing::debug!(object = %place.object, reason = ?item.reason, "mirrored object written");
                match item.action {
                    Action::Create(wanted) | Action::Patch(wanted) => {
                        if let MirrorId::Clusterset { service } = &wanted.id {
                            self.cluster_ips.insert(service.clone(), ips);
                        }
                        self.present.insert(place, Present::Written(wanted));
                    }
                    Action::Delete => drop(self.present.remove(&place)),
                }
            }
            Err(api::WriteError::Foreign) => {
                tracing::warn!(object = %place.object, "an object of this name is there and is not ours; it is left alone");
                if let Action::Create(wanted) | Action::Patch(wanted) = &item.action {
                    self.foreign.insert(place.object.clone(), wanted.id.clone());
                }
                self.present.insert(place, Present::Foreign);
            }
            Err(api::WriteError::NotLeading) => {
                if item.reason == Reason::Drifted {
                    self.stale.insert(place);
                }
            }
            Err(error) => {
                self.metrics.failed();
                let failures = self.pauses.get(&place).map_or(0, |(_, failures)| *failures);
                let pause = (RETRY.0 * 2_u32.saturating_pow(failures.min(16))).min(RETRY.1);
                tracing::warn!(object = %place.object, %error, "a mirrored object cannot be written; trying again");
                self.pauses.insert(place.clone(), (Instant::now() + pause, failures.saturating_add(1)));
                if item.reason == Reason::Drifted {
                    self.stale.insert(place);
                }
            }
        }
    }

    fn tell_foreign(&self, sender: &watch::Sender<Foreign>) {
        sender.send_if_modified(|current| {
            let differs = **current != self.foreign;
            if differs {
                *current = Arc::new(self.foreign.clone());
            }
            differs
        });
    }

    fn tell(&self, sender: &watch::Sender<ClusterIps>) {
        sender.send_if_modified(|current| {
            let differs = **current != self.cluster_ips;
            if differs {
                *current = Arc::new(self.cluster_ips.clone());
            }
            differs
        });
    }
}
