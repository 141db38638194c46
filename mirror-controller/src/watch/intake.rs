//! What the watches of an API server come to: several streams, one for each kind, told as one. No client, no clock.
//!
//! - **In**: what each watch says, kind by kind: a relist ([`Seen::Start`] .. [`Seen::Complete`]) or single changes.
//! - **Out**: the events of [`super`]. Nothing before every kind came once; then all of it as one atomic replace.
//! - **Refuses when**: an object cannot be read or breaks a rule: it is reported, its last good state stays, all others go on.
//! - **Never does**: delete because a list broke off in the middle; only a complete one says what is gone.

use std::collections::{BTreeMap, BTreeSet};

use linkspan_proto::manifest;
use serde_json::Value;

use super::{Doubt, Event, Kind, ObjectKey, Problem};

/// What the watch of one kind says.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// A list begins.
    Start,
    /// An object, in a list or by itself.
    Object(Value),
    /// An object is gone.
    Gone(ObjectKey),
    /// The list is complete.
    Complete,
    /// The watch stands (again): nothing changed, and what changes is told.
    Watching,
}

/// All kinds.
#[derive(Debug, Default)]
pub struct Intake {
    kinds: BTreeMap<Kind, Watched>,
    /// Events that wait until every kind came once; `None` afterwards.
    initial: Option<Vec<Event>>,
    awaited: BTreeSet<Kind>,
    /// As told.
    doubt: Doubt,
    /// What is wrong, by object.
    problems: BTreeMap<ObjectKey, Problem>,
}

#[derive(Debug, Default)]
struct Watched {
    /// Objects with a good state.
    good: BTreeSet<ObjectKey>,
    /// Objects that cannot be read and never could.
    unreadable: BTreeSet<ObjectKey>,
    /// The keys of a list that is coming in.
    listing: Option<BTreeSet<ObjectKey>>,
}

impl Intake {
    /// Waits for each of `kinds` before it tells anything.
    #[must_use]
    pub fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        Self { initial: Some(vec![Event::Init]), awaited: kinds.into_iter().collect(), ..Self::default() }
    }

    /// Takes what one watch says; returns what that means.
    pub fn take(&mut self, kind: Kind, seen: Seen) -> Vec<Event> {
        let watched = self.kinds.entry(kind).or_default();
        let mut events = Vec::new();
        match seen {
            Seen::Start => watched.listing = Some(BTreeSet::new()),
            Seen::Object(value) => self.object(kind, value, &mut events),
            Seen::Gone(key) => self.gone(&key, &mut events),
            Seen::Complete => {
                let listed = watched.listing.take().unwrap_or_default();
                let missing: Vec<_> =
                    watched.good.union(&watched.unreadable).filter(|key| !listed.contains(*key)).cloned().collect();
                missing.iter().for_each(|key| self.gone(key, &mut events));
                self.awaited.remove(&kind);
            }
            Seen::Watching => {}
        }
        self.settle_doubt(&mut events);
        self.tell(events)
    }

    /// Tells what policies and Links that cannot be read put in doubt: raised before anything else changes, settled after.
    fn settle_doubt(&mut self, events: &mut Vec<Event>) {
        let mut doubt = Doubt::default();
        let policies = self.kinds.get(&Kind::ExportPolicy);
        for key in policies.into_iter().flat_map(|watched| &watched.unreadable) {
            doubt.raise(Some(&key.namespace));
        }
        let links = self.kinds.get(&Kind::Link).into_iter().flat_map(|watched| &watched.unreadable);
        doubt.links.extend(links.map(|key| key.name.clone()));
        if doubt == self.doubt {
            return;
        }
        let both = doubt.and(&self.doubt);
        if both != self.doubt {
            events.insert(0, Event::Doubt(both.clone()));
        }
        if both != doubt {
            events.push(Event::Doubt(doubt.clone()));
        }
        self.doubt = doubt;
    }

    /// Whether every kind came once.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.initial.is_none()
    }

    /// The kinds that did not come yet.
    #[must_use]
    pub const fn awaited(&self) -> &BTreeSet<Kind> {
        &self.awaited
    }

    /// Everything that is wrong now.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.values().cloned().collect()
    }

    fn tell(&mut self, events: Vec<Event>) -> Vec<Event> {
        let Some(mut waiting) = self.initial.take() else { return events };
        waiting.extend(events);
        if self.awaited.is_empty() {
            waiting.push(Event::InitDone);
            return waiting;
        }
        self.initial = Some(waiting);
        Vec::new()
    }

    fn object(&mut self, kind: Kind, value: Value, events: &mut Vec<Event>) {
        let key = key_of(kind, &value);
        let watched = self.kinds.entry(kind).or_default();
        if let Some(listing) = &mut watched.listing {
            listing.insert(key.clone());
        }
        match manifest::from_api_server(kind, value) {
            Ok(object) => {
                self.problems.remove(&key);
                watched.unreadable.remove(&key);
                watched.good.insert(key);
                events.push(Event::Apply(Box::new(object)));
            }
            Err(error) => {
                if !watched.good.contains(&key) {
                    watched.unreadable.insert(key.clone());
                }
                let kept = if watched.good.contains(&key) { "; the version before stays in force" } else { "" };
                let problem = Problem {
                    file: key.to_string(),
                    line: 0,
                    column: 0,
                    field: error.field,
                    message: format!("{}{kept}", error.message),
                };
                self.problems.insert(key, problem);
            }
        }
    }

    fn gone(&mut self, key: &ObjectKey, events: &mut Vec<Event>) {
        let watched = self.kinds.entry(key.kind).or_default();
        self.problems.remove(key);
        watched.unreadable.remove(key);
        if watched.good.remove(key) {
            events.push(Event::Delete(key.clone()));
        }
    }
}

/// What names an object, as far as it says so.
#[must_use]
pub fn key_of(kind: Kind, value: &Value) -> ObjectKey {
    let text = |field: &str| value.pointer(&format!("/metadata/{field}")).and_then(Value::as_str).unwrap_or_default();
    ObjectKey { kind, namespace: text("namespace").to_owned(), name: text("name").to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn export(name: &str) -> Value {
        json!({"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport", "metadata": {"namespace": "shop", "name": name}})
    }

    fn policy(service: &Value) -> Value {
        json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {"services": service, "allow": []}})
    }

    fn told(events: &[Event]) -> Vec<String> {
        let name = |event: &Event| match event {
            Event::Init => "init".to_owned(),
            Event::InitDone => "done".to_owned(),
            Event::Apply(object) => format!("+{}", object.name()),
            Event::Delete(key) => format!("-{}", key.name),
            Event::Doubt(doubt) => format!("?{}", doubt.namespaces.iter().cloned().collect::<Vec<_>>().join(",")),
        };
        events.iter().map(name).collect()
    }

    const KINDS: [Kind; 2] = [Kind::ServiceExport, Kind::ExportPolicy];

    fn ready() -> Intake {
        let mut intake = Intake::new(KINDS);
        intake.take(Kind::ServiceExport, Seen::Start);
        intake.take(Kind::ServiceExport, Seen::Object(export("web")));
        intake.take(Kind::ServiceExport, Seen::Object(export("db")));
        intake.take(Kind::ServiceExport, Seen::Complete);
        intake.take(Kind::ExportPolicy, Seen::Start);
        assert_eq!(told(&intake.take(Kind::ExportPolicy, Seen::Complete)), ["init", "+web", "+db", "done"]);
        intake
    }

    #[test]
    fn nothing_is_told_before_every_kind_came() {
        let mut intake = Intake::new(KINDS);
        assert!(intake.take(Kind::ServiceExport, Seen::Start).is_empty());
        assert!(intake.take(Kind::ServiceExport, Seen::Object(export("web"))).is_empty());
        assert!(intake.take(Kind::ServiceExport, Seen::Complete).is_empty());
        assert!(!intake.is_complete());
        assert_eq!(intake.awaited().iter().copied().collect::<Vec<_>>(), [Kind::ExportPolicy]);
        intake.take(Kind::ExportPolicy, Seen::Start);
        assert_eq!(told(&intake.take(Kind::ExportPolicy, Seen::Complete)), ["init", "+web", "done"]);
        assert!(intake.is_complete());
    }

    #[test]
    fn a_relist_deletes_what_it_lacks_and_only_when_complete() {
        let mut intake = ready();
        intake.take(Kind::ServiceExport, Seen::Start);
        // Broken off, and begun again.
        intake.take(Kind::ServiceExport, Seen::Start);
        assert_eq!(told(&intake.take(Kind::ServiceExport, Seen::Object(export("web")))), ["+web"]);
        assert_eq!(told(&intake.take(Kind::ServiceExport, Seen::Complete)), ["-db"]);
        assert!(intake.take(Kind::ServiceExport, Seen::Gone(key_of(Kind::ServiceExport, &export("db")))).is_empty());
    }

    /// A Link that nobody can read is not a Link that is gone: what an earlier version of it made stays.
    #[test]
    fn a_link_that_cannot_be_read_is_told_as_there_until_it_is_gone() {
        let mut intake = Intake::new([Kind::Link]);
        let link = json!({"metadata": {"name": "west"}, "spec": {"trustDomain": 7}});
        intake.take(Kind::Link, Seen::Start);
        intake.take(Kind::Link, Seen::Object(link.clone()));
        let links = |events: &[Event]| -> Vec<String> {
            let mut doubts = events.iter().filter_map(|event| match event {
                Event::Doubt(doubt) => Some(doubt.links.iter().cloned()),
                _ => None,
            });
            doubts.next_back().into_iter().flatten().collect()
        };
        assert_eq!(links(&intake.take(Kind::Link, Seen::Complete)), ["west"]);
        let events = intake.take(Kind::Link, Seen::Gone(key_of(Kind::Link, &link)));
        assert_eq!((events.len(), links(&events)), (1, Vec::new()));
    }

    #[test]
    fn a_bad_object_costs_only_itself_and_keeps_its_last_good_state() {
        let mut intake = ready();
        let bad = policy(&json!("web"));
        assert_eq!(told(&intake.take(Kind::ExportPolicy, Seen::Object(bad.clone()))), ["?shop"]);
        assert!(intake.take(Kind::ExportPolicy, Seen::Object(bad.clone())).is_empty(), "told once");
        let problem = &intake.problems()[0];
        assert!(problem.file.contains("shop/web") && !problem.message.is_empty(), "{problem}");
        assert_eq!(told(&intake.take(Kind::ExportPolicy, Seen::Object(policy(&json!(["web"]))))), ["+web", "?"]);
        assert!(intake.problems().is_empty());
        assert!(intake.take(Kind::ExportPolicy, Seen::Object(bad)).is_empty(), "the good one stays");
        assert!(intake.problems()[0].message.contains("stays in force"));
        assert_eq!(
            told(&intake.take(Kind::ServiceExport, Seen::Object(export("new")))),
            ["+new"],
            "everything else goes on"
        );
    }
}
