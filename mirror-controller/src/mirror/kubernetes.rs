//! Keeps the objects that stand for mirrors as they should be, in an API server.
//!
//! ```text
//! mirrors, ready gateways, namespaces --> plan --> writes (server-side apply, several at a time) --> API server
//!                       ^                                                                              |
//!                       +------------------ what is there, and what others do to it <-- watches -------+
//! ```
//!
//! - **In**: the newest [`MirrorSet`], the ready gateway pods, the namespaces; watches of the objects that carry our label.
//! - **Out**: Services, EndpointSlices and ServiceImports; the ClusterIPs of imports, which DNS answers with; what is not
//!   written although it is wanted ([`Held`]).
//! - **Refuses when**: an object of that name is there and not ours; its namespace is not there, or going (it is made when that
//!   is there); the API server refuses it (it is tried less and less often).
//! - **Never does**: write without being the leader, or before the gateways are known; delete without our label or on an
//!   incomplete view; take an edited label for another mirror's object; hold up one mirror for another: each place has a pause of
//!   its own.
//! - **Numbers**: [`AT_ONCE`], [`BATCH`], [`WRITE`], [`RETRY`], [`REFUSED`], [`PATIENCE`], [`CALM`]; see [`crate::pressure`] for an API server that has too much to do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use kube::Client;
use linkspan_proto::names::Namespace;
use linkspan_runtime::drain::Signal;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::desired::{MirrorId, Wanted};
use super::metrics::Applied;
use super::plan::{Item, Place, Present};
use super::state::MirrorSet;
use crate::leader::Leading;
use crate::pressure::Pressure;
use crate::verdict::Verdict;
use api::{Api, Said};
use found::Found;
use objects::{Gateways, Given, Reference, Rendered, Resource};

// What the multi-cluster services API wants to see.
pub mod import;
// Which objects, and whether they are as they should be.
pub mod objects;

mod api;
// Objects of an earlier run.
mod found;
// What the watches say.
mod observe;
mod place;
// What is to be written, and writing it.
mod work;

/// Mirrors that are written at the same time. With eight, an API server on two cores was idle for a tenth of the time while
/// thousands came; many more would only queue there, and beside the writes of everybody else. Each is one request at a time, a
/// headless one up to four (`CARRIERS_AT_ONCE` in `api`). Fewer for a while after the API server had too much to do.
pub const AT_ONCE: usize = 16;
/// Mirrors that are written between two looks at whether something newer is wanted, eight rounds of [`AT_ONCE`]; and, after
/// them, orphans that are deleted.
pub const BATCH: usize = 128;
/// Time for one write. What is sent in the last moment of a leadership is over before another one can begin
/// ([`crate::leader::candidate`]).
pub const WRITE: Duration = Duration::from_secs(5);
/// Pause of one mirror whose write failed: first and longest.
pub const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Longest pause of one that the API server refuses (admission, a quota, a role), which passes only when somebody does something:
/// each try is one of all its objects. Short enough that nobody who did waits long for it.
pub const REFUSED: Duration = Duration::from_secs(180);
/// Repairs of one mirror at once, each within [`CALM`] of the one before. After them they come in the pauses of [`RETRY`]: another
/// program that puts its own back at once would keep both, and the API server, busy for good.
pub const PATIENCE: u32 = 5;
/// A mirror that nobody changed for so long is put back at once again.
pub const CALM: Duration = Duration::from_secs(60);

/// The ClusterIPs of what imports are reached by, by Service: that of the import, or of an endpoint of a headless one.
pub type ClusterIps = Arc<Given>;
/// Mirrors that are wanted and not written, with the finding that says why.
pub type Held = Arc<BTreeMap<MirrorId, Verdict>>;

/// What this stage needs from outside.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// When it wants to be left alone.
    pub pressure: Pressure,
    /// What should be there.
    pub sets: watch::Receiver<MirrorSet>,
    /// The ready gateway pods; `None` until they are known.
    pub gateways: watch::Receiver<Option<Gateways>>,
    /// The namespaces; `None` until they are known.
    pub namespaces: watch::Receiver<Option<Arc<BTreeSet<String>>>>,
    /// Those that are mirrored into at all; empty: all. What is ours in another one is deleted, where the API server allows it.
    pub only: BTreeSet<Namespace>,
    /// Whether this controller is the one that writes.
    pub leading: Leading,
    /// Told when they change.
    pub cluster_ips: watch::Sender<ClusterIps>,
    /// Told when they change.
    pub held: watch::Sender<Held>,
    /// Figures.
    pub metrics: Applied,
    /// The end.
    pub signal: Signal,
}

/// What of a mirror is to be written again although it is written as wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stale {
    /// What names gateways, which changed.
    Slices,
    /// All of it: somebody touched it.
    All,
}

/// Why a mirror is wanted and not written although its namespace is there.
#[derive(Clone, Debug, PartialEq)]
enum Blocked {
    /// This object of somebody else has a name that it needs.
    Foreign(Reference),
    /// The API server refuses this.
    Refused {
        /// What was to be written; `None`: it was to be deleted.
        wanted: Option<Arc<Wanted>>,
        /// What the API server says.
        why: String,
        /// When it was tried last.
        tried: Instant,
    },
}

/// How often a mirror was put back as it should be.
#[derive(Clone, Copy, Debug)]
struct Repairs {
    count: u32,
    last: Instant,
}

/// An object, and the mirror that has it by its labels.
type Orphan = (Place, Reference);

struct Keeper {
    api: Api,
    only: BTreeSet<Namespace>,
    present: BTreeMap<Place, Present>,
    /// Everything of ours that is there.
    objects: BTreeMap<Place, BTreeSet<Reference>>,
    /// The same the other way round: whose each object is.
    places: BTreeMap<Reference, Place>,
    /// What came so far of lists that are read again.
    listing: BTreeMap<Resource, BTreeSet<Reference>>,
    /// Objects that were there before this run, until they were compared once.
    found: BTreeMap<Place, BTreeMap<Reference, Found>>,
    /// What was wanted when `due` was made.
    planned: MirrorSet,
    /// Something else changed since that `due` depends on.
    unplanned: bool,
    /// What differs from what is wanted, and is not written yet.
    due: BTreeMap<Place, Item>,
    stale: BTreeMap<Place, Stale>,
    /// Objects of mirrors that are written which these do not have (any more), such as the slice of a family that no gateway has.
    /// When to try next to delete each, and how often that failed.
    orphans: BTreeMap<Orphan, (Instant, u32)>,
    /// Mirrors that are written at the same time now.
    at_once: usize,
    /// Places whose last write failed: when to try again, and how often it failed.
    pauses: BTreeMap<Place, (Instant, u32)>,
    /// Of those, the ones that do not pass by themselves.
    blocked: BTreeMap<Place, Blocked>,
    /// Places that somebody else changes.
    repairs: BTreeMap<Place, Repairs>,
    gateways: Gateways,
    /// Before, an empty slice would take the backends of everything that is there.
    gateways_known: bool,
    namespaces: Arc<BTreeSet<String>>,
    /// Of the Services whose addresses stand elsewhere: imports, and endpoints of headless mirrors.
    given: Given,
    /// They changed since they were told.
    given_changed: bool,
    /// Resources whose list was complete once, or which are not served.
    listed: BTreeSet<Resource>,
    metrics: Applied,
}

/// Keeps the objects until the drain.
pub async fn run(context: Context) {
    let Context { client, pressure, sets, gateways, namespaces, only, leading, cluster_ips, held, metrics, signal } =
        context;
    let (mut sets, mut gateways, mut namespaces, mut leading) = (sets, gateways, namespaces, leading);
    let api = Api::new(client, leading.clone(), pressure);
    let mut watches: stream::SelectAll<BoxStream<'static, (Resource, Said)>> =
        stream::select_all(Resource::ALL.map(|resource| api.watch(resource)));
    let mut keeper = Keeper::new(api, only, metrics);
    loop {
        let works = leading.holds() && keeper.is_ready();
        let next = keeper.next_try().filter(|_| works);
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
            }
            changed = sets.changed() => if changed.is_err() { return },
            changed = gateways.changed() => if changed.is_err() { return },
            changed = namespaces.changed() => if changed.is_err() { return },
            () = leading.changed() => {}
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
        let set = sets.borrow_and_update().clone();
        keeper.landscape(gateways.borrow_and_update().as_ref(), namespaces.borrow_and_update().clone());
        if keeper.is_ready() {
            keeper.adopt(&set);
            let mut news = keeper.is_unplanned(&set);
            if leading.holds() {
                // One batch at a time, so that whatever changes meanwhile counts for the next.
                news |= keeper.work(&set).await;
            }
            if news || keeper.is_unplanned(&set) {
                tell(&held, keeper.held(&set));
            }
        }
        keeper.tell(&cluster_ips);
    }
}

impl Keeper {
    fn new(api: Api, only: BTreeSet<Namespace>, metrics: Applied) -> Self {
        Self {
            api,
            only,
            present: BTreeMap::new(),
            objects: BTreeMap::new(),
            places: BTreeMap::new(),
            listing: BTreeMap::new(),
            found: BTreeMap::new(),
            planned: MirrorSet::default(),
            unplanned: true,
            due: BTreeMap::new(),
            stale: BTreeMap::new(),
            orphans: BTreeMap::new(),
            at_once: AT_ONCE,
            pauses: BTreeMap::new(),
            blocked: BTreeMap::new(),
            repairs: BTreeMap::new(),
            gateways: Gateways::default(),
            gateways_known: false,
            namespaces: Arc::default(),
            given: Given::new(),
            given_changed: false,
            listed: BTreeSet::new(),
            metrics,
        }
    }

    fn is_ready(&self) -> bool {
        self.listed.len() == Resource::ALL.len() && !self.namespaces.is_empty() && self.gateways_known
    }

    fn landscape(&mut self, gateways: Option<&Gateways>, namespaces: Option<Arc<BTreeSet<String>>>) {
        self.gateways_known |= gateways.is_some();
        if let Some(gateways) = gateways.filter(|gateways| **gateways != self.gateways) {
            self.gateways = gateways.clone();
            let written = self.present.iter().filter(|(_, present)| matches!(present, Present::Written(_)));
            let written: Vec<_> = written.map(|(place, _)| place.clone()).collect();
            written.into_iter().for_each(|place| self.spoil(place, Stale::Slices));
        }
        if let Some(namespaces) = namespaces.filter(|namespaces| *namespaces != self.namespaces) {
            // What waited for a namespace goes at once when that appears. What was in one that went is not written any more:
            // nothing is there, or soon will be.
            let now = |place: &Place| namespaces.contains(place.object.namespace.as_str());
            let before = |place: &Place| self.namespaces.contains(place.object.namespace.as_str());
            self.pauses.retain(|place, _| before(place) && now(place));
            self.stale.retain(|place, _| now(place));
            self.present.retain(|place, present| now(place) || !matches!(present, Present::Written(_)));
            self.namespaces = namespaces;
            self.unplanned = true;
        }
    }

    fn spoil(&mut self, place: Place, what: Stale) {
        let stale = self.stale.entry(place).or_insert(what);
        *stale = what.max(*stale);
    }

    fn rendered(&self, wanted: &Wanted) -> Vec<Rendered> {
        objects::objects(wanted, &self.gateways, &self.given)
    }

    /// Objects of an earlier run, or of an earlier leader, that are as wanted count as written.
    fn adopt(&mut self, set: &MirrorSet) {
        if set.wanted.is_empty() {
            // Nothing is known yet: the objects are compared when it is.
            return;
        }
        for (place, found) in std::mem::take(&mut self.found) {
            let Some(Present::Found { id, .. }) = self.present.get(&place) else { continue };
            let Some(wanted) = set.wanted.get(id) else { continue };
            let (rendered, plain) = (self.rendered(wanted), self.api.plain_imports());
            let all = rendered.iter().all(|rendered| {
                found
                    .get(&rendered.reference)
                    .is_some_and(|it| is_as(wanted, rendered, &it.value(), Exactly::Status, plain))
            });
            if all {
                let theirs: BTreeSet<_> = rendered.iter().map(|rendered| &rendered.reference).collect();
                for reference in found.keys().filter(|reference| !theirs.contains(reference)) {
                    self.orphaned(place.clone(), reference.clone());
                }
                self.present.insert(place, Present::Written(Arc::clone(wanted)));
                self.unplanned = true;
            }
        }
    }

    /// What is wanted and not there.
    fn held(&self, set: &MirrorSet) -> BTreeMap<MirrorId, Verdict> {
        let blocked = |wanted: &Wanted| {
            // Little is.
            let place = (!self.blocked.is_empty()).then(|| Place::of(wanted))?;
            match self.blocked.get(&place).filter(|_| self.pauses.contains_key(&place))? {
                Blocked::Foreign(what) => Some(place::foreign(wanted, what)),
                Blocked::Refused { why, .. } => Some(place::refused(wanted, why)),
            }
        };
        let why = |wanted: &Wanted| place::held(wanted, &self.namespaces).or_else(|| blocked(wanted));
        set.wanted.iter().filter_map(|(id, wanted)| Some((id.clone(), why(wanted)?))).collect()
    }

    /// Tells the addresses that DNS answers with.
    fn tell(&mut self, sender: &watch::Sender<ClusterIps>) {
        if std::mem::take(&mut self.given_changed) {
            tell(sender, self.given.clone());
        }
    }
}

/// How closely an object is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exactly {
    /// A status that says nothing is right: it is written a moment after the rest.
    Spec,
    /// The status too: of an object that is not being written.
    Status,
}

/// Whether an object is as it should be, with what stands in its status where it is our part. `plain`: imports have the fields
/// that every definition of them has, and no others.
fn is_as(wanted: &Wanted, rendered: &Rendered, observed: &Value, exactly: Exactly, plain: bool) -> bool {
    if rendered.reference.resource != Resource::ServiceImport {
        return objects::is_as(&rendered.value, observed);
    }
    let is_spec = if plain {
        objects::is_as(&import::plain(rendered).value, observed)
    } else {
        objects::is_as(&rendered.value, observed)
    };
    if !is_spec {
        return false;
    }
    // In any order, which the API server may not keep.
    let clusters: BTreeSet<_> = import::clusters(observed).into_iter().collect();
    let is_written = exactly == Exactly::Status || !clusters.is_empty();
    let is_right = || clusters == wanted.clusters.iter().cloned().collect();
    !is_written
        || (is_right() && (plain || exactly == Exactly::Spec || import::is_ready_as(rendered, wanted, observed)))
}

/// Publishes what differs.
fn tell<T: PartialEq>(sender: &watch::Sender<Arc<T>>, new: T) {
    sender.send_if_modified(|current| {
        let differs = **current != new;
        if differs {
            *current = Arc::new(new);
        }
        differs
    });
}

#[cfg(test)]
mod tests;
