//! Events on what users look at: which are worth telling, and how often. Pure.
//!
//! An event follows from a change of conditions that was written: the conditions before and after it. So a new leader
//! repeats nothing that the one before it has told, and forgets nothing that it has not.
//!
//! - One that is told again within [`AGAIN`] becomes a series: one object that counts.
//! - One object gets [`BURST`] at once and one more every [`REFILL`] after that; all objects together [`BURST_ALL`] and one a
//!   second. What is beyond is left out: the conditions say how things are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use linkspan_proto::resources::ConditionStatus;
use linkspan_runtime::text::clean;

use super::findings::Inputs;
use crate::mirror::MirrorId;
use crate::verdict::Verdict;
use crate::watch::{Kind, ObjectKey};

/// The same within this time counts in one series. Longer than a link takes to flap a few times.
pub(super) const AGAIN: Duration = Duration::from_secs(600);
/// Between two updates of a series.
pub(super) const SERIES: Duration = Duration::from_secs(30);
/// Events of one object at once.
pub(super) const BURST: u32 = 8;
/// One more for each object.
pub(super) const REFILL: Duration = Duration::from_secs(60);
/// Events of all objects at once: some for each of many Links when the network comes back.
pub(super) const BURST_ALL: u32 = 64;
/// One more for all objects.
const REFILL_ALL: Duration = Duration::from_secs(1);
/// What the API server takes in a note.
const NOTE_MAX: usize = 1024;
/// Events that may become series. Expired ones go first; beyond, new ones are left out.
const REMEMBERED_MAX: usize = 2048;

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Told {
    pub(super) is_warning: bool,
    pub(super) reason: &'static str,
    /// What the controller was doing.
    pub(super) action: &'static str,
    pub(super) note: String,
}

impl Told {
    fn new(is_warning: bool, action: &'static str, reason: &'static str, verdict: &Verdict) -> Self {
        let note = if verdict.message.is_empty() {
            verdict.reason.clone()
        } else {
            format!("{}: {}", verdict.reason, verdict.message)
        };
        Self { is_warning, reason, action, note: short(&note) }
    }
}

fn short(note: &str) -> String {
    let mut note = clean(note).into_owned();
    // The limit counts bytes.
    while note.len() > NOTE_MAX {
        note.pop();
    }
    note
}

/// What a change of conditions is worth.
pub(super) fn of(kind: Kind, before: &[Condition], after: &[Verdict]) -> Vec<Told> {
    let was = |kind: &str| before.iter().find(|condition| condition.type_ == kind);
    let is = |kind: &str| after.iter().find(|verdict| verdict.kind == kind);
    // Became: another status, or another reason for the same.
    let became = |kind: &str, status: ConditionStatus| {
        is(kind)
            .filter(|verdict| verdict.status == status)
            .filter(|verdict| was(kind).is_none_or(|was| was.status != status.as_str() || was.reason != verdict.reason))
    };
    let was_status = |kind: &str| was(kind).map(|was| was.status.as_str());
    let mut told = Vec::new();
    match kind {
        Kind::Link => {
            told.extend(
                became("Accepted", ConditionStatus::False).map(|it| Told::new(true, "Accept", "NotAccepted", it)),
            );
            if let Some(verdict) = became("Connected", ConditionStatus::True) {
                if was_status("Connected") != Some("True") {
                    told.push(Told::new(false, "Connect", "Connected", verdict));
                }
            } else if let Some(verdict) = became("Connected", ConditionStatus::False) {
                let is_refused = is("TrustValid").is_some_and(|trust| trust.status == ConditionStatus::False);
                let reason = match (is_refused, was_status("Connected")) {
                    (true, _) => "Refused",
                    (false, Some("True")) => "Disconnected",
                    (false, _) => "NotConnected",
                };
                told.push(Told::new(true, "Connect", reason, verdict));
            }
        }
        Kind::ServiceExport => {
            told.extend(
                became("Valid", ConditionStatus::False).map(|it| Told::new(true, "Export", "InvalidExport", it)),
            );
            if was_status("Valid") == Some("False") {
                told.extend(
                    became("Valid", ConditionStatus::True).map(|it| Told::new(false, "Export", "Exported", it)),
                );
            }
            told.extend(
                became("Conflict", ConditionStatus::True).map(|it| Told::new(true, "Export", "ExportConflict", it)),
            );
            if was_status("Conflict") == Some("True") {
                let solved = became("Conflict", ConditionStatus::False);
                told.extend(solved.map(|it| Told::new(false, "Export", "ConflictSolved", it)));
            }
        }
        _ => {
            told.extend(
                became("Accepted", ConditionStatus::False).map(|it| Told::new(true, "Accept", "NotAccepted", it)),
            );
            if was_status("Accepted") == Some("False") {
                told.extend(
                    became("Accepted", ConditionStatus::True).map(|it| Told::new(false, "Accept", "Accepted", it)),
                );
            }
        }
    }
    told
}

/// What of a Link's exports is not made here, without being refused: by Link.
#[derive(Debug, Default)]
pub(super) struct Unmade {
    /// Names that something of somebody else has.
    taken: Said,
    /// Namespaces that are not there, or not to be mirrored into.
    absent: Said,
    /// Mirrors that the API server refuses.
    refused: Said,
}

type Said = BTreeMap<ObjectKey, BTreeSet<String>>;

impl Unmade {
    /// Takes what is so now; returns what is new, one event of each kind for each Link.
    pub(super) fn update(&mut self, inputs: &Inputs) -> Vec<(ObjectKey, Told)> {
        let (mut taken, mut absent, mut rejected) = (Said::new(), Said::new(), Said::new());
        let add = |said: &mut Said, link: &str, what: String| {
            let key = ObjectKey { kind: Kind::Link, namespace: String::new(), name: link.to_owned() };
            said.entry(key).or_default().insert(what);
        };
        for refused in inputs.mirrors.refused.values() {
            let is_taken = refused.verdicts.iter().any(|verdict| verdict.reason == "NameInUse");
            if let (MirrorId::Cluster { cluster, .. }, true) = (&refused.id, is_taken) {
                add(&mut taken, cluster.as_str(), refused.object.to_string());
            }
        }
        for (id, verdict) in inputs.held.iter() {
            let Some(wanted) = inputs.mirrors.wanted.get(id) else { continue };
            for cluster in wanted.clusters.iter().filter(|cluster| **cluster != inputs.own) {
                match verdict.reason.as_str() {
                    "NameInUse" => add(&mut taken, cluster.as_str(), wanted.object.to_string()),
                    "NamespaceAbsent" => add(&mut absent, cluster.as_str(), wanted.object.namespace.to_string()),
                    "Refused" => add(&mut rejected, cluster.as_str(), wanted.object.to_string()),
                    _ => {}
                }
            }
        }
        let mut all = news(&self.taken, &taken, |first, more| Told {
            is_warning: true,
            reason: "MirrorNotMade",
            action: "Mirror",
            note: short(&format!(
                "{first} cannot be mirrored{more}: something that Linkspan did not make has a name that it needs; linkspan services says what"
            )),
        });
        all.extend(news(&self.absent, &absent, |first, more| Told {
            is_warning: false,
            reason: "NamespaceAbsent",
            action: "Mirror",
            note: short(&format!(
                "nothing is mirrored into {first}{more}: it does not exist here, or is none of the namespaces to mirror into"
            )),
        }));
        all.extend(news(&self.refused, &rejected, |first, more| Told {
            is_warning: true,
            reason: "MirrorNotMade",
            action: "Mirror",
            note: short(&format!(
                "{first} cannot be mirrored{more}: the API server refuses an object of it; linkspan services says why"
            )),
        }));
        *self = Self { taken, absent, refused: rejected };
        all
    }
}

/// What is new, for each Link: its first one, and how many more.
fn news(before: &Said, now: &Said, tell: impl Fn(&str, &str) -> Told) -> Vec<(ObjectKey, Told)> {
    let new = now.iter().filter_map(|(link, all)| {
        let known = before.get(link);
        let mut new = all.iter().filter(|one| known.is_none_or(|known| !known.contains(*one)));
        let first = new.next()?;
        let more = match new.count() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        Some((link.clone(), tell(first, &more)))
    });
    new.collect()
}

/// What to do for an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Make one.
    New,
    /// Say of this one that it happened so often in all.
    Again {
        /// Its name.
        name: String,
        /// Twice or more.
        count: u32,
    },
}

#[derive(Debug)]
struct Known {
    /// Of the object in the API server, once it is there.
    name: Option<String>,
    count: u32,
    last: Instant,
    /// When the API server was told last.
    sent: Instant,
}

#[derive(Debug)]
struct Bucket {
    left: u32,
    filled: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant, most: u32, refill: Duration) -> bool {
        let periods = now.saturating_duration_since(self.filled).as_millis() / refill.as_millis().max(1);
        if let Some(periods) = u32::try_from(periods).ok().filter(|periods| *periods > 0) {
            self.left = self.left.saturating_add(periods).min(most);
            self.filled += refill.saturating_mul(periods);
        }
        let has = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has
    }
}

/// What was told.
#[derive(Debug)]
pub(super) struct Book {
    known: BTreeMap<(ObjectKey, Told), Known>,
    objects: BTreeMap<ObjectKey, Bucket>,
    all: Bucket,
}

impl Book {
    pub(super) const fn new(now: Instant) -> Self {
        Self { known: BTreeMap::new(), objects: BTreeMap::new(), all: Bucket { left: BURST_ALL, filled: now } }
    }

    /// What is to be done for it; `None`: nothing.
    pub(super) fn enter(&mut self, key: &ObjectKey, told: &Told, now: Instant) -> Option<Entry> {
        self.known.retain(|_, known| now.saturating_duration_since(known.last) < AGAIN);
        self.objects.retain(|_, bucket| now.saturating_duration_since(bucket.filled) < REFILL * BURST);
        let id = (key.clone(), told.clone());
        if let Some(known) = self.known.get_mut(&id) {
            known.count = known.count.saturating_add(1);
            known.last = now;
            let name = known.name.clone().filter(|_| now.saturating_duration_since(known.sent) >= SERIES)?;
            let count = known.count;
            let may = self.may(key, now);
            if let (true, Some(known)) = (may, self.known.get_mut(&id)) {
                known.sent = now;
                return Some(Entry::Again { name, count });
            }
            return None;
        }
        if self.known.len() >= REMEMBERED_MAX || !self.may(key, now) {
            return None;
        }
        self.known.insert(id, Known { name: None, count: 1, last: now, sent: now });
        Some(Entry::New)
    }

    fn may(&mut self, key: &ObjectKey, now: Instant) -> bool {
        let bucket = self.objects.entry(key.clone()).or_insert(Bucket { left: BURST, filled: now });
        bucket.take(now, BURST, REFILL) && self.all.take(now, BURST_ALL, REFILL_ALL)
    }

    /// A new one was made under this name, or could not be made.
    pub(super) fn made(&mut self, key: &ObjectKey, told: &Told, name: Option<String>) {
        let id = (key.clone(), told.clone());
        match name {
            None => drop(self.known.remove(&id)),
            Some(name) => {
                if let Some(known) = self.known.get_mut(&id) {
                    known.name = Some(name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
