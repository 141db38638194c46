//! What the files of one folder come to: which objects hold, which are missing, what is wrong. No file system, no clock.
//!
//! - A file in which something does not parse keeps the objects that it had and does not show now: one of the broken
//!   documents may be theirs. Documents of it that do parse take effect.
//! - One object in two files is a conflict: the first file by name holds, the other is reported.
//! - An object that vanishes is deleted only when it is still missing [`GRACE`] later: editors write a new file, move the
//!   old one away and rename, and in between the object exists nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Event, Object, ObjectKey, Problem};

/// How long an object must be missing before it is deleted. Longer than an editor needs between two of its steps, and
/// together with the delay of [`super::directory`] well below the second in which a change must be in force.
pub const GRACE: Duration = Duration::from_millis(150);

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
    /// Objects that broken documents seem to be about.
    broken: Vec<ObjectKey>,
    problems: Vec<Problem>,
}

/// All files of a folder. Tell it what each file holds, then [`Folder::settle`].
#[derive(Debug, Default)]
pub struct Folder {
    files: BTreeMap<String, File>,
    /// What was told as events, so far.
    present: BTreeMap<ObjectKey, Object>,
    missing: BTreeMap<ObjectKey, Instant>,
    /// Broken objects without a last good state, as told.
    unreadable: BTreeSet<ObjectKey>,
    conflicts: Vec<Problem>,
}

impl Folder {
    /// A file was read: its documents, what of it did not parse, and which objects that seems to be about.
    pub fn read(&mut self, name: &str, documents: Vec<Document>, mut problems: Vec<Problem>, broken: Vec<ObjectKey>) {
        let previous = self.files.remove(name).unwrap_or_default();
        // A definition that comes twice is a problem too, but nothing is hidden by it.
        let something_is_hidden = !problems.is_empty();
        let mut objects = BTreeMap::new();
        for document in documents {
            let key = document.object.key();
            if let Some(first) = objects.get::<ObjectKey>(&key).map(|first: &Document| first.line) {
                problems.push(Problem {
                    file: name.to_owned(),
                    line: document.line,
                    column: 0,
                    field: String::new(),
                    message: format!("{key} is defined twice; the one in line {first} holds"),
                });
            } else {
                objects.insert(key, document);
            }
        }
        if something_is_hidden {
            for (key, document) in previous.objects {
                objects.entry(key).or_insert(document);
            }
        }
        self.files.insert(name.to_owned(), File { objects, broken, problems });
    }

    /// A file is there and cannot be read at all: what it held stays.
    pub fn unreadable(&mut self, name: &str, problem: Problem) {
        self.files.entry(name.to_owned()).or_default().problems = vec![problem];
    }

    /// A file is gone.
    pub fn gone(&mut self, name: &str) {
        self.files.remove(name);
    }

    /// The names of the files that hold something.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Everything that is wrong now, in the order of files and lines.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<_> =
            self.files.values().flat_map(|file| &file.problems).chain(&self.conflicts).cloned().collect();
        problems.sort();
        problems
    }

    /// The events that lead from what was told before to what holds now, and when to ask again.
    pub fn settle(&mut self, now: Instant) -> (Vec<Event>, Option<Instant>) {
        let mut events = Vec::new();
        let mut holders: BTreeMap<&ObjectKey, (&str, &Document)> = BTreeMap::new();
        let mut conflicts = Vec::new();
        for (name, file) in &self.files {
            for (key, document) in &file.objects {
                if let Some((holder, first)) = holders.get(key) {
                    conflicts.push(Problem {
                        file: name.clone(),
                        line: document.line,
                        column: 0,
                        field: String::new(),
                        message: format!("{key} is defined in {holder}:{} too; that one holds", first.line),
                    });
                } else {
                    holders.insert(key, (name, document));
                }
            }
        }
        for (key, (_, document)) in &holders {
            if self.present.get(key) != Some(&document.object) {
                events.push(Event::Apply(Box::new(document.object.clone())));
                self.present.insert((*key).clone(), document.object.clone());
            }
        }
        let held: BTreeSet<&ObjectKey> = holders.into_keys().collect();
        self.missing.retain(|key, _| !held.contains(key));
        for key in self.present.keys().filter(|key| !held.contains(key)) {
            self.missing.entry(key.clone()).or_insert(now);
        }
        self.conflicts = conflicts;
        let due: Vec<_> =
            self.missing.iter().filter(|(_, since)| now >= **since + GRACE).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.missing.remove(&key);
            self.present.remove(&key);
            events.push(Event::Delete(key));
        }
        self.settle_unreadable(&mut events);
        let next = self.missing.values().min().map(|since| *since + GRACE);
        (events, next)
    }

    fn settle_unreadable(&mut self, events: &mut Vec<Event>) {
        let now: BTreeSet<_> = self
            .files
            .values()
            .flat_map(|file| &file.broken)
            .filter(|key| !self.present.contains_key(key))
            .cloned()
            .collect();
        for key in self.unreadable.difference(&now) {
            // One that came to be readable was told as such already.
            if !self.present.contains_key(key) {
                events.push(Event::Delete(key.clone()));
            }
        }
        events.extend(now.difference(&self.unreadable).cloned().map(Event::Unreadable));
        self.unreadable = now;
    }
}

#[cfg(test)]
mod tests;
