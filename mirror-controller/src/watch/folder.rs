//! What the files of one folder come to: which objects hold, which are missing, what is wrong. No file system, no clock.
//!
//! - A file in which something does not parse keeps the objects that it had and does not show now: one of the broken
//!   documents may be theirs. Documents of it that do parse take effect.
//! - A broken document that may be an ExportPolicy (see [`Subject::may_be_export_policy`]) and for which no kept object can
//!   stand puts the namespace that it names in doubt, or the whole site where it names none. So does a file that cannot be
//!   read at all and held nothing before.
//! - One object in two files is a conflict: the file that held it first holds, whatever its name, and the other is reported
//!   (F-41). Where nothing tells which was first, the first by name holds; but of two ExportPolicies that differ neither
//!   does, and what they select is closed to everybody until one of them is gone.
//! - An object that vanishes is deleted only when it is still missing [`GRACE`] later: editors write a new file, move the
//!   old one away and rename, and in between the object exists nowhere. While a broken document names it, it stays.
//! - An ExportPolicy must be missing for [`SETTLE`], also over a restart, and since the last change of its file: without it
//!   more is allowed. So must a Link whose file is still there: whoever writes a file anew empties it first. In a file that is
//!   empty, ExportPolicies stay until something is in it or it is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use linkspan_proto::manifest::Subject;

use super::{Doubt, Event, Kind, Object, ObjectKey, Problem};
use held::Held;

// Which file holds each object.
mod held;

/// How long an object must be missing before it is deleted. Longer than an editor needs between two of its steps, and
/// together with the delay of [`super::directory`] well below the second in which a change must be in force.
pub const GRACE: Duration = Duration::from_millis(150);

/// The same where an object's absence allows more or tears a link down: longer than programs need that write a file in
/// pieces, and short enough for whoever deleted it and looks.
pub const SETTLE: Duration = Duration::from_secs(2);

/// The file that holds each object.
pub type Holders = BTreeMap<ObjectKey, String>;

/// One document of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// What it holds.
    pub object: Object,
    /// Line of the file where it starts.
    pub line: usize,
}

#[derive(Debug, Default)]
struct File {
    objects: BTreeMap<ObjectKey, Document>,
    /// Objects that the file had and does not show now.
    hidden: BTreeSet<ObjectKey>,
    /// What the broken documents seem to be about.
    broken: Vec<Subject>,
    problems: Vec<Problem>,
}

#[derive(Debug)]
struct Vanished {
    since: Instant,
    objects: BTreeMap<ObjectKey, Document>,
}

/// One file's version of an object.
#[derive(Clone, Copy, Debug)]
struct Claim<'a> {
    file: &'a str,
    document: &'a Document,
}

/// All files of a folder. Tell it what each file holds, then [`Folder::settle`].
#[derive(Debug, Default)]
pub struct Folder {
    files: BTreeMap<String, File>,
    /// What files held that vanished a moment ago, in case they come back broken.
    vanished: BTreeMap<String, Vanished>,
    /// Policies from before a restart that their files do not show, to be told.
    remembered: Vec<Object>,
    /// Files that did not come back.
    forgotten: Vec<String>,
    /// Files whose policies were waited for, and are deleted.
    released: Vec<String>,
    /// What was told as events, so far.
    present: BTreeMap<ObjectKey, Object>,
    missing: BTreeMap<ObjectKey, Instant>,
    /// As told.
    doubt: Doubt,
    /// The file that holds each object.
    holders: Held,
    /// Problems that come of several files, or of one file and what was before.
    joint: Vec<Problem>,
}

impl Folder {
    /// A folder in which these files held the objects before a restart.
    #[must_use]
    pub fn new(holders: Holders) -> Self {
        Self { holders: Held::new(holders), ..Self::default() }
    }

    /// A file was read: its documents, what of it did not parse, and what that seems to be about.
    pub fn read(&mut self, name: &str, documents: Vec<Document>, mut problems: Vec<Problem>, broken: Vec<Subject>) {
        let previous = self.take_file(name);
        // A definition that comes twice is a problem too, but nothing is hidden by it.
        let something_is_hidden = !problems.is_empty();
        let mut objects = BTreeMap::new();
        for document in documents {
            let key = document.object.key();
            if let Some(first) = objects.get::<ObjectKey>(&key).map(|first: &Document| first.line) {
                let message = format!("{key} is defined twice; the one in line {first} holds");
                problems.push(Problem::at_line(name, document.line, message));
            } else {
                objects.insert(key, document);
            }
        }
        let mut hidden = BTreeSet::new();
        if something_is_hidden {
            for (key, document) in previous.objects {
                objects.entry(key).or_insert_with_key(|key| {
                    hidden.insert(key.clone());
                    document
                });
            }
        }
        self.files.insert(name.to_owned(), File { objects, hidden, broken, problems });
    }

    /// A file is there and cannot be read at all: what it held stays.
    pub fn unreadable(&mut self, name: &str, problem: Problem) {
        let objects = self.take_file(name).objects;
        let hidden = objects.keys().cloned().collect();
        let file = File { objects, hidden, broken: vec![Subject::default()], problems: vec![problem] };
        self.files.insert(name.to_owned(), file);
    }

    /// A file is empty, and perhaps about to be written. Without its policies more would be allowed: they stay, which is the
    /// problem then.
    pub fn emptied(&mut self, name: &str, problem: Problem) {
        let File { mut objects, mut broken, .. } = self.take_file(name);
        objects.retain(|key, _| key.kind == Kind::ExportPolicy);
        // What could not be read before may have been a policy as well.
        broken.retain(Subject::may_be_export_policy);
        let hidden: BTreeSet<_> = objects.keys().cloned().collect();
        let problems = if hidden.is_empty() && broken.is_empty() { Vec::new() } else { vec![problem] };
        self.files.insert(name.to_owned(), File { objects, hidden, broken, problems });
    }

    /// What a file held before a restart and does not show now: its policies count until they are missing for long enough.
    pub fn remember(&mut self, name: &str, held: Vec<Document>) {
        for Document { object, .. } in held {
            let key = object.key();
            let is_shown = self.files.get(name).is_some_and(|file| file.objects.contains_key(&key));
            if key.kind == Kind::ExportPolicy && !is_shown && !self.present.contains_key(&key) {
                self.present.insert(key.clone(), object.clone());
                if self.holders.get(&key).is_none() {
                    self.holders.insert(key, name.to_owned());
                }
                self.remembered.push(object);
            }
        }
    }

    /// A file is gone.
    pub fn gone(&mut self, name: &str, now: Instant) {
        if let Some(file) = self.files.remove(name) {
            self.wait_again(name);
            self.vanished.insert(name.to_owned(), Vanished { since: now, objects: file.objects });
        }
    }

    /// The file changed: whoever changes it may not be done, so its policies are missing since now.
    fn wait_again(&mut self, name: &str) {
        for key in
            self.holders.policies(name).filter(|key| self.missing.contains_key(*key)).cloned().collect::<Vec<_>>()
        {
            // A version in another file waits for this one no longer than once.
            if !self.files.iter().any(|(file, held)| file != name && held.objects.contains_key(&key)) {
                self.missing.remove(&key);
            }
        }
    }

    /// What is known of a file, also when it was gone for a moment.
    fn take_file(&mut self, name: &str) -> File {
        self.wait_again(name);
        let back = self.vanished.remove(name).map(|gone| File { objects: gone.objects, ..File::default() });
        self.files.remove(name).or(back).unwrap_or_default()
    }

    /// The names of the files that hold something.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Whether the file was told of.
    #[must_use]
    pub fn knows(&self, name: &str) -> bool {
        self.files.contains_key(name) || self.vanished.contains_key(name)
    }

    /// The files that are gone for good since this was asked last.
    pub fn take_forgotten(&mut self) -> Vec<String> {
        std::mem::take(&mut self.forgotten)
    }

    /// The objects of a file, also those that it does not show now.
    pub fn objects(&self, name: &str) -> impl Iterator<Item = &Object> {
        let shown = self.files.get(name).into_iter().flat_map(|file| file.objects.values());
        shown.map(|document| &document.object).chain(self.awaited(name))
    }

    /// The policies of a file that it does not show and that stay for a while.
    pub fn awaited(&self, name: &str) -> impl Iterator<Item = &Object> {
        let file = self.files.get(name);
        let policies = self.holders.policies(name);
        let awaited = policies.filter(move |key| !file.is_some_and(|file| file.objects.contains_key(*key)));
        awaited.filter_map(|key| self.present.get(key))
    }

    /// The files that hold less since this was asked last, because nobody waits any more.
    pub fn take_released(&mut self) -> Vec<String> {
        std::mem::take(&mut self.released)
    }

    /// The file that holds each object.
    #[must_use]
    pub const fn holders(&self) -> &Holders {
        self.holders.all()
    }

    /// Everything that is wrong now, in the order of files and lines.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<_> =
            self.files.values().flat_map(|file| &file.problems).chain(&self.joint).cloned().collect();
        problems.sort();
        problems
    }

    /// The events that lead from what was told before to what holds now, and when to ask again.
    pub fn settle(&mut self, now: Instant) -> (Vec<Event>, Option<Instant>) {
        self.joint.clear();
        let forgotten = &mut self.forgotten;
        self.vanished.retain(|name, gone| {
            let may_come_back = now < gone.until();
            if now >= gone.since + GRACE {
                // Everything else is deleted by now, and must not come back by a broken file.
                gone.objects.retain(|key, _| key.kind == Kind::ExportPolicy);
            }
            if !may_come_back {
                forgotten.push(name.clone());
            }
            may_come_back
        });
        let remembered = std::mem::take(&mut self.remembered);
        let mut events: Vec<_> = remembered.into_iter().map(|object| Event::Apply(Box::new(object))).collect();
        events.extend(self.settle_objects(now));
        let doubt = self.find_doubt();
        if doubt != self.doubt {
            // Raised before anything else changes, settled after everything has.
            let both = doubt.and(&self.doubt);
            if both != self.doubt {
                events.insert(0, Event::Doubt(both.clone()));
            }
            if both != doubt {
                events.push(Event::Doubt(doubt.clone()));
            }
            self.doubt = doubt;
        }
        let missing = self.missing.iter().map(|(key, since)| *since + self.patience(key));
        let next = missing.chain(self.vanished.values().map(Vanished::until)).min();
        (events, next)
    }

    /// How long an object must be missing.
    fn patience(&self, key: &ObjectKey) -> Duration {
        let file_is_there = self.holders.get(key).is_some_and(|holder| self.files.contains_key(holder));
        match key.kind {
            Kind::ExportPolicy => SETTLE,
            // Removing the file ends the trust at once.
            Kind::Link if file_is_there => SETTLE,
            _ => GRACE,
        }
    }

    /// Finds which file holds each object; tells what differs, and what is missing for long enough.
    fn settle_objects(&mut self, now: Instant) -> Vec<Event> {
        let named: BTreeSet<ObjectKey> =
            self.files.values().flat_map(|file| &file.broken).filter_map(Subject::key).collect();
        let mut claims: BTreeMap<&ObjectKey, Vec<Claim<'_>>> =
            self.present.keys().map(|key| (key, Vec::new())).collect();
        for (file, held) in &self.files {
            for (key, document) in &held.objects {
                claims.entry(key).or_default().push(Claim { file, document });
            }
        }
        let mut changes: Vec<(ObjectKey, Option<Object>)> = Vec::new();
        for (key, claims) in claims {
            let is_present = self.present.contains_key(key);
            let holder = self.holders.get(key);
            let held = claims.iter().find(|claim| holder.is_some_and(|holder| claim.file == holder)).copied();
            let stays = claims.is_empty() && named.contains(key);
            // Whoever held it may be between two steps of an editor; until that is over nobody takes its place.
            let may_come_back = held.is_none() && is_present && !stays && (holder.is_some() || claims.len() < 2);
            if may_come_back {
                let since = *self.missing.entry(key.clone()).or_insert(now);
                if now < since + self.patience(key) {
                    continue;
                }
            }
            self.missing.remove(key);
            if stays {
                continue;
            }
            let object = if let Some(held) = held.or_else(|| first(key, &claims)) {
                let others = claims.iter().filter(|claim| claim.file != held.file);
                self.joint.extend(others.map(|claim| claim.second(key, held)));
                if self.holders.get(key).is_none_or(|holder| holder != held.file) {
                    self.holders.insert(key.clone(), held.file.to_owned());
                }
                Some(&held.document.object)
            } else {
                self.joint.extend(claims.iter().map(|claim| claim.undecided(key, &claims)));
                self.holders.remove(key);
                None
            };
            let closed = if object.is_none() { closed(&claims) } else { None };
            let object = object.or(closed.as_ref());
            if self.present.get(key) != object {
                changes.push((key.clone(), object.cloned()));
            }
        }
        // What is new may forbid what the others allowed: it comes first.
        changes.sort_by_key(|(_, object)| object.is_none());
        self.change(changes)
    }

    /// Takes changes over, as events.
    fn change(&mut self, changes: Vec<(ObjectKey, Option<Object>)>) -> Vec<Event> {
        let mut events = Vec::with_capacity(changes.len());
        for (key, object) in changes {
            events.push(match object {
                Some(object) => {
                    self.present.insert(key, object.clone());
                    Event::Apply(Box::new(object))
                }
                None => {
                    self.present.remove(&key);
                    if key.kind == Kind::ExportPolicy {
                        self.released.extend(self.holders.get(&key).cloned());
                    }
                    Event::Delete(key)
                }
            });
        }
        let present = &self.present;
        self.missing.retain(|key, _| present.contains_key(key));
        self.holders.retain(|key| present.contains_key(key));
        events
    }

    /// What is in doubt now, and says so in [`Self::joint`].
    fn find_doubt(&mut self) -> Doubt {
        let mut doubt = Doubt::default();
        for (name, file) in &self.files {
            let mut of_file = Doubt::default();
            for subject in file.without_stand_in(&self.present) {
                of_file.raise(subject.namespace.as_deref());
            }
            if of_file == Doubt::default() {
                continue;
            }
            let place = if of_file.site {
                "the whole site".to_owned()
            } else {
                let names: Vec<_> = of_file.namespaces.iter().map(String::as_str).collect();
                format!("namespace {}", names.join(", "))
            };
            let message = format!(
                "what cannot be read here may be an ExportPolicy: exports of {place} that are new (after a restart: all) and \
                 that no policy selects are closed to everybody until it is corrected or removed"
            );
            self.joint.push(Problem::at_line(name, 0, message));
            doubt = doubt.and(&of_file);
        }
        doubt
    }
}

impl Vanished {
    /// When it will not come back any more.
    fn until(&self) -> Instant {
        let is_policy = |key: &ObjectKey| key.kind == Kind::ExportPolicy;
        self.since + if self.objects.keys().any(is_policy) { SETTLE } else { GRACE }
    }
}

impl Claim<'_> {
    /// That another file holds the object.
    fn second(&self, key: &ObjectKey, held: Self) -> Problem {
        let message = format!(
            "{key} is defined in {}:{} too; that one holds: remove one of the two",
            held.file, held.document.line
        );
        Problem::at_line(self.file, self.document.line, message)
    }

    /// That no file holds the object.
    fn undecided(&self, key: &ObjectKey, all: &[Self]) -> Problem {
        let others = all.iter().filter(|claim| claim.file != self.file);
        let others: Vec<_> = others.map(|claim| format!("{}:{}", claim.file, claim.document.line)).collect();
        let message = format!(
            "{key} is defined in {} too, and differs; nothing tells which of them was first, so what they select is closed to \
             everybody until one is removed",
            others.join(", ")
        );
        Problem::at_line(self.file, self.document.line, message)
    }
}

impl File {
    /// The broken documents that may be an ExportPolicy and for which nothing stands that is in force: neither the object
    /// that they name, nor one that this file had and does not show now.
    fn without_stand_in(&self, present: &BTreeMap<ObjectKey, Object>) -> Vec<&Subject> {
        let mut spare = self.hidden.clone();
        // Those that say what they are take what is theirs, before those that could be anything.
        let mut broken: Vec<&Subject> = self.broken.iter().collect();
        broken.sort_by_key(|subject| (subject.kind.is_none(), subject.name.is_none()));
        broken.retain(|subject| {
            let stand_in = spare.iter().find(|key| subject.may_be(key)).cloned();
            let stands = stand_in.is_some_and(|key| spare.remove(&key))
                || subject.key().is_some_and(|key| present.contains_key(&key));
            // What stands for one of several objects leaves the others without.
            subject.may_be_export_policy() && (subject.several || !stands)
        });
        broken
    }
}

/// Who holds an object that nobody held before.
fn first<'a>(key: &ObjectKey, claims: &[Claim<'a>]) -> Option<Claim<'a>> {
    let (first, others) = claims.split_first()?;
    let differs = |other: &Claim<'_>| other.document.object != first.document.object;
    (key.kind != Kind::ExportPolicy || !others.iter().any(differs)).then_some(*first)
}

/// An ExportPolicy that closes what these select. `None`: there are none.
fn closed(claims: &[Claim<'_>]) -> Option<Object> {
    let mut policies = claims.iter().filter_map(|claim| match &claim.document.object {
        Object::ExportPolicy(policy) => Some(policy.clone()),
        _ => None,
    });
    let mut closed = policies.next()?;
    closed.spec.allow.clear();
    for policy in policies {
        // None named means all.
        if closed.spec.services.is_empty() || policy.spec.services.is_empty() {
            closed.spec.services.clear();
        } else {
            closed.spec.services.extend(policy.spec.services);
        }
    }
    Some(Object::ExportPolicy(closed))
}

#[cfg(test)]
mod tests;
