//! Conditions in the status of objects in an API server: what is there, what should be there, and what to write when. Pure.
//!
//! What is there comes from watches, so that an object that was deleted and made anew, or a status that somebody overwrote, is
//! seen like any other difference. Only differences are written:
//! - what says something new at once, and then at most every [`CHANGE`] for one object;
//! - what is only worded differently (how many endpoints are ready) at most every [`WORDING`];
//! - what does not stay (somebody else writes it, too) or fails, ever more rarely, up to [`RETRY`]'s end.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use linkspan_proto::manifest;
use linkspan_proto::names::{Namespace, ServiceKey};
use linkspan_proto::resources::{ConditionStatus, NewCondition, Object, set_condition};
use linkspan_runtime::text::clean;
use serde_json::{Map, Value, json};

use super::findings::{self, Inputs};
use crate::mirror::MirrorId;
use crate::verdict::Verdict;
use crate::watch::intake::{Seen, key_of};
use crate::watch::{Kind, ObjectKey};

/// The kinds that have a status of ours.
pub(super) const KINDS: [Kind; 4] = [Kind::Link, Kind::ServiceExport, Kind::ClusterTrafficPolicy, Kind::ExportPolicy];
/// Between two writes of one object that say something new.
pub(super) const CHANGE: Duration = Duration::from_secs(1);
/// Between two writes of one object when only words changed: figures in messages change with every endpoint.
pub(super) const WORDING: Duration = Duration::from_secs(10);
/// After a write that failed, or did not stay: first and longest.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Writes in one pass. With the pace of the passes this is at most some hundred a second, whatever happens.
pub(super) const BATCH: usize = 32;
/// A message is a sentence; what a peer or a certificate says in it may be long.
const MESSAGE_MAX: usize = 1024;

/// Which object: of its kind and name, the one with this uid, in the version that the API server serves of it.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) key: ObjectKey,
    pub(super) uid: String,
    pub(super) api_version: String,
}

/// An object as it is.
#[derive(Clone, Debug)]
struct Observed {
    uid: String,
    api_version: String,
    generation: Option<i64>,
    /// Of the object, for the order of what two sources say of it.
    version: Option<u64>,
    conditions: Vec<Condition>,
    /// The other fields of the status.
    more: Map<String, Value>,
    /// What a traffic policy is about, or why the object cannot be read.
    read: Result<Option<ServiceKey>, String>,
}

/// What a status should say.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) generation: Option<i64>,
    pub(super) verdicts: Vec<Verdict>,
    pub(super) more: Map<String, Value>,
}

/// How pressing a difference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    Change,
    Wording,
}

/// One write.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) object: Subject,
    /// The `status`.
    pub(super) status: Value,
    /// The conditions before it.
    pub(super) before: Vec<Condition>,
    /// What it says.
    pub(super) verdicts: Vec<Verdict>,
    fingerprint: u64,
}

/// What was done for one object.
#[derive(Clone, Debug)]
struct History {
    at: Instant,
    written: Option<u64>,
    /// Writes in a row that failed or did not stay.
    vain: u32,
}

/// All objects with a status of ours.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    observed: BTreeMap<ObjectKey, Observed>,
    listing: BTreeMap<Kind, BTreeSet<ObjectKey>>,
    complete: BTreeSet<Kind>,
    history: BTreeMap<ObjectKey, History>,
}

impl Ledger {
    /// What a watch says.
    pub(super) fn take(&mut self, kind: Kind, seen: Seen) {
        match seen {
            Seen::Start => drop(self.listing.insert(kind, BTreeSet::new())),
            Seen::Object(value) => {
                let key = key_of(kind, &value);
                let listed = self.listing.get_mut(&kind).map(|listing| listing.insert(key.clone())).is_some();
                let new = Observed::of(kind, value);
                let is_older = self.observed.get(&key).is_some_and(|known| {
                    known.uid == new.uid
                        && matches!((known.version, new.version), (Some(known), Some(new)) if new < known)
                });
                // An answer to a write may overtake the watch; a list is the whole truth.
                if listed || !is_older {
                    self.observed.insert(key, new);
                }
            }
            Seen::Gone(key) => self.forget(&key),
            Seen::Complete => {
                let listed = self.listing.remove(&kind).unwrap_or_default();
                let gone: Vec<_> =
                    self.observed.keys().filter(|key| key.kind == kind && !listed.contains(*key)).cloned().collect();
                gone.iter().for_each(|key| self.forget(key));
                self.complete.insert(kind);
            }
            Seen::Watching => {}
        }
    }

    fn forget(&mut self, key: &ObjectKey) {
        self.observed.remove(key);
        self.history.remove(key);
    }

    /// Whether every kind was listed once.
    pub(super) fn is_complete(&self) -> bool {
        self.complete.len() == KINDS.len()
    }

    /// An object that is there.
    pub(super) fn subject(&self, key: &ObjectKey) -> Option<Subject> {
        self.observed.get(key).map(|observed| observed.subject(key))
    }

    /// What every object's status should say, as far as there is something to say.
    pub(super) fn wanted(&self, inputs: &Inputs) -> BTreeMap<ObjectKey, Wanted> {
        let mut all = BTreeMap::new();
        for finding in findings::objects(inputs) {
            let kind = if finding.kind == Kind::Link.as_str() { Kind::Link } else { Kind::ServiceExport };
            let key = ObjectKey { kind, namespace: finding.namespace, name: finding.name };
            // What is exported by a label has no ServiceExport to say so at.
            if self.observed.contains_key(&key) {
                let mut more = finding.more;
                more.retain(|field, _| fields(kind).contains(&field.as_str()));
                all.insert(key, Wanted { generation: finding.generation, verdicts: finding.verdicts, more });
            }
        }
        for (key, observed) in &self.observed {
            let accepted = match (&observed.read, key.kind) {
                (Err(_), Kind::ServiceExport) => continue,
                (Err(message), _) => {
                    let kept = if all.contains_key(key) { "; the version before stays in force" } else { "" };
                    Verdict::new("Accepted", false, "Invalid", format!("{message}{kept}"))
                }
                (Ok(Some(service)), Kind::ClusterTrafficPolicy) => traffic(inputs, &key.name, service),
                (Ok(_), Kind::ExportPolicy) => {
                    Verdict::new("Accepted", true, "Accepted", "the gateways of this cluster enforce it")
                }
                (Ok(_), _) => continue,
            };
            let wanted = all.entry(key.clone()).or_insert_with(|| Wanted {
                generation: None,
                verdicts: Vec::new(),
                more: Map::new(),
            });
            wanted.generation = observed.generation;
            wanted.verdicts.retain(|verdict| verdict.kind != accepted.kind);
            wanted.verdicts.push(accepted);
        }
        all
    }

    /// The writes that are due, the most pressing first, and when the next will be.
    pub(super) fn due(
        &self,
        wanted: &BTreeMap<ObjectKey, Wanted>,
        now: Instant,
        wall: Timestamp,
    ) -> (Vec<Write>, Option<Instant>) {
        let mut next: Option<Instant> = None;
        let mut due = Vec::new();
        for (key, wanted) in wanted {
            let Some(observed) = self.observed.get(key) else { continue };
            let conditions = conditions(observed, wanted, wall);
            let Some(difference) = difference(key.kind, observed, wanted, &conditions) else { continue };
            let fingerprint = fingerprint(wanted);
            let from = self.history.get(key).map_or(now, |history| history.again(fingerprint, difference));
            if from > now {
                next = Some(next.map_or(from, |next| next.min(from)));
                continue;
            }
            let mut status = wanted.more.clone();
            status.insert("conditions".to_owned(), json!(conditions));
            due.push((
                key.kind != Kind::Link,
                difference,
                Write {
                    object: observed.subject(key),
                    status: Value::Object(status),
                    before: observed.conditions.clone(),
                    verdicts: wanted.verdicts.clone(),
                    fingerprint,
                },
            ));
        }
        due.sort_by_key(|(is_other, difference, _)| (*is_other, *difference));
        if due.len() > BATCH {
            due.truncate(BATCH);
            next = Some(now);
        }
        (due.into_iter().map(|(_, _, write)| write).collect(), next)
    }

    /// What came of a write: the object as it is now, or nothing.
    pub(super) fn done(&mut self, write: &Write, object: Option<Value>, now: Instant) {
        // Gone meanwhile.
        if !self.observed.contains_key(&write.object.key) {
            return;
        }
        let before = self.history.get(&write.object.key);
        let vain = before.map_or(0, |history| history.vain);
        let again = before.is_some_and(|history| history.written == Some(write.fingerprint));
        let history = match object {
            None => {
                History { at: now, written: before.and_then(|history| history.written), vain: vain.saturating_add(1) }
            }
            Some(object) => {
                self.take(write.object.key.kind, Seen::Object(object));
                History {
                    at: now,
                    written: Some(write.fingerprint),
                    vain: if again { vain.saturating_add(1) } else { 0 },
                }
            }
        };
        self.history.insert(write.object.key.clone(), history);
    }
}

impl History {
    /// When the object may be written next.
    fn again(&self, fingerprint: u64, difference: Difference) -> Instant {
        let in_vain = self.vain + u32::from(self.written == Some(fingerprint));
        let pause = match (in_vain, difference) {
            (0, Difference::Change) => CHANGE,
            (0, Difference::Wording) => WORDING,
            (times, _) => RETRY.0.saturating_mul(2_u32.saturating_pow(times.saturating_sub(1).min(16))).min(RETRY.1),
        };
        self.at + pause
    }
}

impl Observed {
    fn of(kind: Kind, value: Value) -> Self {
        let text = |field: &str| value.pointer(field).and_then(Value::as_str).map(str::to_owned);
        let mut more = value.get("status").and_then(Value::as_object).cloned().unwrap_or_default();
        let conditions = more.remove("conditions").map(|all| match all {
            // One that somebody made up does not hide the others.
            Value::Array(all) => all.into_iter().filter_map(|one| serde_json::from_value(one).ok()).collect(),
            _ => Vec::new(),
        });
        more.retain(|field, _| fields(kind).contains(&field.as_str()));
        Self {
            uid: text("/metadata/uid").unwrap_or_default(),
            // Not the version that is preferred: an API server may serve an older one alone.
            api_version: text("/apiVersion").unwrap_or_default(),
            generation: value.pointer("/metadata/generation").and_then(Value::as_i64),
            version: text("/metadata/resourceVersion").and_then(|version| version.parse().ok()),
            conditions: conditions.unwrap_or_default(),
            more,
            read: match manifest::from_api_server(kind, value) {
                Ok(Object::ClusterTrafficPolicy(policy)) => {
                    let namespace = policy.metadata.namespace.as_deref().map(Namespace::parse);
                    Ok(namespace.and_then(Result::ok).map(|namespace| ServiceKey::new(namespace, policy.spec.service)))
                }
                Ok(_) => Ok(None),
                Err(error) if error.field.is_empty() => Err(error.message),
                Err(error) => Err(format!("{}: {}", error.field, error.message)),
            },
        }
    }

    fn subject(&self, key: &ObjectKey) -> Subject {
        Subject { key: key.clone(), uid: self.uid.clone(), api_version: self.api_version.clone() }
    }
}

/// Fields of the status beside the conditions that are ours.
const fn fields(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Link => &["services", "version"],
        _ => &[],
    }
}

/// Conditions that are ours. Those of others on the same object are let alone.
const fn types(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Link => &["Accepted", "CatalogueSynced", "Connected", "Stale", "TrustValid"],
        Kind::ServiceExport => &["Conflict", "Ready", "Valid"],
        _ => &["Accepted"],
    }
}

/// Whether a traffic policy is in force, and as it stands.
fn traffic(inputs: &Inputs, name: &str, service: &ServiceKey) -> Verdict {
    let verdict =
        |status: ConditionStatus, reason: &str, message: String| Verdict::new("Accepted", status, reason, message);
    let Some(traffic) = inputs.snapshot.traffic.get(service) else {
        return verdict(ConditionStatus::Unknown, "Pending", "it is not in force yet".to_owned());
    };
    if traffic.policy != name {
        let message =
            format!("policy {} is for the same service and in force: it is the first by name", traffic.policy);
        return verdict(ConditionStatus::False, "PolicyConflict", message);
    }
    let import = inputs.mirrors.wanted.get(&MirrorId::Clusterset { service: service.clone() });
    // That another policy is not in force is that one's fault.
    let unused = import.and_then(|import| {
        let is_unused = |verdict: &&Verdict| verdict.kind == "PolicyAccepted" && !verdict.holds();
        import.verdicts.iter().filter(is_unused).find(|verdict| verdict.reason != "PolicyConflict")
    });
    match unused {
        Some(unused) => verdict(unused.status, &unused.reason, unused.message.clone()),
        // That another one is not is said there.
        None if traffic.verdict.reason == "PolicyConflict" => {
            verdict(ConditionStatus::True, "Accepted", traffic.verdict.message.clone())
        }
        None => traffic.verdict.clone(),
    }
}

/// The conditions as they should be, with the times of those whose status stays.
fn conditions(observed: &Observed, wanted: &Wanted, wall: Timestamp) -> Vec<Condition> {
    let mut all = Vec::new();
    for verdict in &wanted.verdicts {
        all.extend(observed.conditions.iter().find(|condition| condition.type_ == verdict.kind).cloned());
        let new = NewCondition {
            kind: verdict.kind,
            status: verdict.status,
            reason: &clean(&verdict.reason),
            message: &clean(&verdict.message).chars().take(MESSAGE_MAX).collect::<String>(),
            generation: wanted.generation,
        };
        set_condition(&mut all, new, wall);
    }
    all
}

fn difference(kind: Kind, observed: &Observed, wanted: &Wanted, conditions: &[Condition]) -> Option<Difference> {
    let mut differs = None;
    for condition in conditions {
        let Some(present) = observed.conditions.iter().find(|present| present.type_ == condition.type_) else {
            return Some(Difference::Change);
        };
        if (&present.status, &present.reason, present.observed_generation)
            != (&condition.status, &condition.reason, condition.observed_generation)
        {
            return Some(Difference::Change);
        }
        if present.message != condition.message {
            differs = Some(Difference::Wording);
        }
    }
    let is_past = |present: &Condition| {
        types(kind).contains(&present.type_.as_str())
            && !conditions.iter().any(|condition| condition.type_ == present.type_)
    };
    if observed.more != wanted.more || observed.conditions.iter().any(is_past) {
        return Some(Difference::Change);
    }
    differs
}

fn fingerprint(wanted: &Wanted) -> u64 {
    let mut hasher = DefaultHasher::new();
    wanted.generation.hash(&mut hasher);
    for verdict in &wanted.verdicts {
        (verdict.kind, verdict.status.as_str(), &verdict.reason, &verdict.message).hash(&mut hasher);
    }
    Value::Object(wanted.more.clone()).to_string().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
