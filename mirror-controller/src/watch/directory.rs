//! A folder of YAML files as the source of objects.
//!
//! - **In**: `*.yaml` and `*.yml` in one folder, several documents a file. Hidden files, editors' backups and everything
//!   else are passed over; a folder in it in which there are such files is reported as what cannot be read.
//! - **Out**: events and problems, as [`super`] says. A change is told in well under a second; that an ExportPolicy is gone,
//!   or a Link out of its file, after [`SETTLE`](super::folder::SETTLE).
//! - **Refuses when**: a file is larger than [`manifest::MAX_FILE_LEN`], is no regular file (a folder, a FIFO, a link that
//!   leads nowhere), or does not parse. All of these keep what they held, and are reported.
//! - **Never does**: delete because it could not look: a folder or file that cannot be read keeps what it held, also over a
//!   restart, and nothing is told before every file that is there at the start was looked into. Wait for a FIFO's writer.
//! - **Numbers**: [`QUIET`], [`POLL`], [`POLL_ALONE`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_proto::manifest::{self, Subject};
use linkspan_runtime::text::Clean;
use tokio::sync::{Notify, mpsc, watch};

use super::folder::{Document, Folder, GRACE};
use super::{Event, Problem};
use crate::saving::Saving;
use announce::announce;
use copies::{Copies, Held};
use listing::{Found, Stamp, list, read_file};

// When to look at the folder.
mod announce;
// What files held when they were last read, over a restart.
mod copies;
// What is in a folder, and how it is read.
mod listing;

/// A file is read when it looked the same twice, this far apart: whoever writes a file in several steps is done by then.
pub const QUIET: Duration = Duration::from_millis(40);
/// Looks at the folder this often even when nothing was announced: some file systems announce nothing.
pub const POLL: Duration = Duration::from_millis(400);
/// The same where the system gives no announcements at all.
pub const POLL_ALONE: Duration = Duration::from_millis(200);
/// Looking takes at most one part in this many of the time, however large the folder is.
const POLL_SHARE: u32 = 20;
/// A file that changes without end is read anyway after this many looks, about a second.
const RESTLESS_LOOKS: u32 = 25;
/// Between two tries to save what could not be saved.
const SAVE_AGAIN: Duration = Duration::from_secs(5);

/// A folder that is watched.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    copies: Copies,
    folder: Folder,
    seen: BTreeMap<String, Seen>,
    start: Start,
    /// Files of which nobody knows what they held before the start, and that do not show it: until they are whole, or gone.
    uncertain: BTreeSet<String>,
    /// When all copies were last as they should be, or tried again.
    saved: Option<Instant>,
}

/// How far the first complete view has come.
#[derive(Debug)]
enum Start {
    /// The folder could not be listed yet.
    Unlisted,
    /// These files were there, or before the restart, and were not looked into yet.
    Waiting { since: Instant, files: BTreeSet<String> },
    /// Everything was told once.
    Told,
}

#[derive(Debug)]
struct Seen {
    found: Found,
    since: Instant,
    looks: u32,
    read: bool,
    /// Reading failed for a reason that may pass by itself.
    again: bool,
}

impl Seen {
    const fn new(found: Found, since: Instant, looks: u32) -> Self {
        Self { found, since, looks, read: false, again: false }
    }
}

/// One look at the folder.
#[derive(Debug)]
pub struct Look {
    /// What changed.
    pub events: Vec<Event>,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
    /// When to look again at the latest, because something is not settled.
    pub again: Option<Instant>,
    /// What cannot be saved for the next start, if so.
    pub unsaved: Option<String>,
    /// Whether everything that was there at the start is known. Before that there are no events.
    pub complete: bool,
}

impl Directory {
    /// Watches `path`; keeps copies of what files held in `last_good`, which nobody else uses.
    ///
    /// # Errors
    /// When `last_good` cannot be changed: what a later start finds there would not be what was in force.
    pub fn open(path: PathBuf, last_good: PathBuf) -> io::Result<Self> {
        Ok(Self {
            path,
            copies: Copies::open(last_good)?,
            folder: Folder::default(),
            seen: BTreeMap::new(),
            start: Start::Unlisted,
            uncertain: BTreeSet::new(),
            saved: None,
        })
    }

    /// Ends in good order: what broken files held is known at the next start.
    pub fn close(self) {
        self.copies.close(matches!(self.start, Start::Told));
    }

    /// Looks once. Blocks on the file system.
    pub fn look(&mut self, now: Instant) -> Look {
        let mut again = None;
        let mut trouble = None;
        match list(&self.path) {
            Ok(found) => {
                if matches!(self.start, Start::Unlisted) {
                    self.begin(&found, now);
                }
                self.seen.retain(|name, _| found.contains_key(name));
                let gone: Vec<_> =
                    self.folder.names().filter(|name| !found.contains_key(*name)).map(str::to_owned).collect();
                for name in gone {
                    self.uncertain.remove(&name);
                    self.folder.gone(&name, now);
                }
                for (name, found) in found {
                    again = again.into_iter().chain(self.look_at(&name, found, now)).min();
                }
                again = again.into_iter().chain(self.wait_for_the_first(now)).min();
            }
            Err(error) => trouble = Some(Problem::at_line(".", 0, format!("the folder cannot be read: {error}"))),
        }
        let complete = matches!(self.start, Start::Told);
        let (events, missing) = if complete { self.folder.settle(now) } else { (Vec::new(), None) };
        if complete {
            for name in self.folder.take_forgotten() {
                self.copies.forget(&name);
            }
            for name in self.folder.take_released() {
                self.keep_objects(&name);
            }
            self.copies.keep_holders(self.folder.holders());
            self.save_again(now);
        }
        let mut problems = self.folder.problems();
        problems.extend(trouble);
        let again = again.into_iter().chain(missing).min();
        Look { events, problems, again, unsaved: self.copies.trouble(), complete }
    }

    /// Tries to save what could not be saved.
    fn save_again(&mut self, now: Instant) {
        let unsaved = self.copies.unsaved();
        let last = *self.saved.get_or_insert(now);
        if unsaved.is_empty() || now >= last + SAVE_AGAIN {
            unsaved.iter().for_each(|name| self.keep_objects(name));
            self.saved = Some(now);
        }
    }

    /// Keeps what a file holds that does not show all of it.
    fn keep_objects(&mut self, name: &str) {
        match self.seen.get(name) {
            Some(seen) => self.keep_hidden(name, seen.found.stamp),
            None => self.copies.forget(name),
        }
    }

    /// The first listing: what must be looked into before anything is told. A file that is only known from before may be
    /// between two steps of an editor.
    fn begin(&mut self, found: &BTreeMap<String, Found>, now: Instant) {
        let files = found.keys().cloned().chain(self.copies.names()).collect();
        self.start = Start::Waiting { since: now, files };
        self.folder = Folder::new(self.copies.holders(|name| found.get(name).map(|found| found.stamp)));
    }

    /// Strikes out what is known by now; says when to look again if something is left.
    fn wait_for_the_first(&mut self, now: Instant) -> Option<Instant> {
        let Start::Waiting { since, files } = &mut self.start else { return None };
        let given_up = *since + GRACE;
        let seen = &self.seen;
        let mut again = None;
        let mut gone = Vec::new();
        files.retain(|name| match seen.get(name) {
            Some(seen) => !seen.read,
            None if now < given_up => {
                again = Some(given_up);
                true
            }
            None => {
                gone.push(name.clone());
                false
            }
        });
        if files.is_empty() {
            self.start = Start::Told;
        }
        for name in gone {
            self.remember(&name);
            self.copies.forget(&name);
        }
        again
    }

    /// Reads a file if it is new and at rest; says when to look again if it is not at rest.
    fn look_at(&mut self, name: &str, found: Found, now: Instant) -> Option<Instant> {
        let seen = self.seen.entry(name.to_owned()).or_insert_with(|| Seen::new(found, now, 0));
        if seen.found != found {
            *seen = Seen::new(found, now, if seen.read { 0 } else { seen.looks + 1 });
        }
        if seen.read && !seen.again {
            return None;
        }
        if now < seen.since + QUIET && seen.looks < RESTLESS_LOOKS {
            return Some(seen.since + QUIET);
        }
        let mut restless = now < seen.since + QUIET;
        seen.read = true;
        seen.again = false;
        if let Some(trouble) = found.trouble {
            self.cannot_read(name, found.stamp, trouble);
            return None;
        }
        match read_file(&self.path.join(name)) {
            Ok((text, after)) => {
                if after != found.stamp {
                    // Changed while we read: what we have may be half of it.
                    let now_found = Found { stamp: after, trouble: None };
                    *seen = Seen::new(now_found, now, seen.looks + 1);
                    if seen.looks < RESTLESS_LOOKS {
                        return Some(now + QUIET);
                    }
                    seen.read = true;
                    restless = true;
                }
                self.take(name, after, &text, restless);
                if restless {
                    // The change that was read in the middle may have been the last one.
                    if let Some(seen) = self.seen.get_mut(name) {
                        seen.again = true;
                    }
                    return Some(now + QUIET);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Gone a moment ago; the next listing knows whether for good.
                seen.read = false;
                return Some(now + QUIET);
            }
            Err(error) => {
                // What is wrong with the file itself is looked at again when the file changes.
                seen.again = !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge);
                self.cannot_read(name, found.stamp, &format!("cannot be read: {error}"));
            }
        }
        None
    }

    fn cannot_read(&mut self, name: &str, stamp: Stamp, why: &str) {
        self.recall(name, stamp);
        self.folder.unreadable(name, Problem::at_line(name, 0, why.to_owned()));
        self.keep_hidden(name, stamp);
    }

    /// Keeps what a file holds that does not show it; or that nobody knows what it held, for the starts to come.
    fn keep_hidden(&mut self, name: &str, stamp: Stamp) {
        if self.uncertain.contains(name) {
            self.copies.keep(name, stamp, "");
        } else {
            self.copies.keep_objects(name, stamp, self.folder.objects(name));
        }
    }

    fn take(&mut self, name: &str, stamp: Stamp, text: &str, restless: bool) {
        if text.trim().is_empty() {
            return self.take_empty(name, stamp);
        }
        let is_new = !self.folder.knows(name);
        let mut read = parse(name, text);
        if restless {
            // It may be half of what is meant, and end between two documents: what it does not show is not gone.
            let message = "changes all the time and was read as it is; write a new file beside it and rename that";
            read.problems.push(Problem::at_line(name, 0, message.to_owned()));
            read.broken.push(Subject::default());
        }
        let is_whole = read.problems.is_empty();
        if is_whole {
            self.uncertain.remove(name);
        } else if !self.recall(name, stamp) {
            // What it does not show may have been a policy.
            read.broken.push(Subject::default());
        }
        self.folder.read(name, read.documents, read.problems, read.broken);
        if is_whole && is_new && !self.copies.is(name, text) {
            self.remember(name);
        }
        if is_whole && self.folder.awaited(name).next().is_none() {
            self.copies.keep(name, stamp, text);
        } else {
            self.keep_hidden(name, stamp);
        }
    }

    fn take_empty(&mut self, name: &str, stamp: Stamp) {
        if !self.recall(name, stamp) {
            return self.cannot_read(
                name,
                stamp,
                "is empty, and what it held last could not be saved: write or remove it",
            );
        }
        let message = "is empty, and what it held may be about to be written anew: its ExportPolicies stay in force; remove the \
                       file to end them";
        self.folder.emptied(name, Problem::at_line(name, 0, message.to_owned()));
        self.keep_hidden(name, stamp);
    }

    /// The first look after a start, and the file is no good: what it held before the start still holds. False: that it held
    /// something is all that is known.
    fn recall(&mut self, name: &str, stamp: Stamp) -> bool {
        if self.folder.knows(name) {
            return !self.uncertain.contains(name);
        }
        match self.copies.recall(name, Some(stamp)) {
            Held::Nothing => return true,
            Held::Text(text) => {
                let copy = parse(name, &text);
                // A copy that is cut short, or says only that nobody knows, is none.
                if copy.problems.is_empty() && !text.trim().is_empty() {
                    self.folder.read(name, copy.documents, Vec::new(), Vec::new());
                    return true;
                }
            }
            Held::Once(_) => {}
        }
        tracing::warn!(
            file = %Clean(name),
            "the last run did not end in good order and this manifest changed since it was read; what it held is not certain"
        );
        self.uncertain.insert(name.to_owned());
        false
    }

    /// Policies that a file held before the start, and shows no more: until they are gone for long enough even an older
    /// version of them forbids more than none.
    fn remember(&mut self, name: &str) {
        if let Held::Text(text) | Held::Once(text) = self.copies.recall(name, None) {
            self.folder.remember(name, parse(name, &text).documents);
        }
    }
}

/// Watches a folder until `events` is closed: tells everything once between `Init` and `InitDone`, then changes. Leaves the
/// copies in good order.
pub async fn run(
    directory: Directory,
    events: mpsc::Sender<Event>,
    problems: watch::Sender<Arc<Vec<Problem>>>,
    saving: Saving,
) {
    let announced = Arc::new(Notify::new());
    let watcher = announce(&directory.path, Arc::clone(&announced));
    let poll = if watcher.is_some() { POLL } else { POLL_ALONE };
    let mut directory = directory;
    let mut told = false;
    loop {
        let started = Instant::now();
        let looked = tokio::task::spawn_blocking(move || {
            let look = directory.look(Instant::now());
            (directory, look)
        });
        let Ok((taken, look)) = looked.await else {
            // A panic in a parser: the folder's state went with it, and the vital task ends the process.
            tracing::error!("reading the manifests panicked");
            return;
        };
        directory = taken;
        report(&problems, look.problems);
        saving.note("last-good", look.unsaved.map_or(Ok(()), Err));
        let mut batch = look.events;
        if look.complete && !told {
            told = true;
            batch.insert(0, Event::Init);
            batch.push(Event::InitDone);
        }
        for event in batch {
            if events.send(event).await.is_err() {
                break;
            }
        }
        let pause = poll.max(started.elapsed() * POLL_SHARE);
        let again = look.again.map_or(pause, |at| at.saturating_duration_since(Instant::now()).min(pause));
        // A file that is being written announces each step, and is looked at when it is quiet.
        let listens = again > QUIET;
        tokio::select! {
            () = events.closed() => break,
            () = announced.notified(), if listens => {
                // Announcements come one for each step of a writer: wait until it is quiet once, then look.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            () = tokio::time::sleep(again) => {}
        }
    }
    // A panic here is a copy that does not count.
    drop(tokio::task::spawn_blocking(move || directory.close()).await);
}

/// Publishes the problems if they differ, and logs each new one once.
fn report(sender: &watch::Sender<Arc<Vec<Problem>>>, problems: Vec<Problem>) {
    sender.send_if_modified(|current| {
        if **current == problems {
            return false;
        }
        for problem in problems.iter().filter(|problem| !current.contains(problem)) {
            tracing::warn!(
                file = %Clean(&problem.file),
                line = problem.line,
                field = %Clean(&problem.field),
                "manifest: {}",
                Clean(&problem.message)
            );
        }
        *current = Arc::new(problems);
        true
    });
}

/// What one file's text comes to.
struct Parsed {
    documents: Vec<Document>,
    problems: Vec<Problem>,
    broken: Vec<Subject>,
}

fn parse(name: &str, text: &str) -> Parsed {
    let mut parsed = Parsed { documents: Vec::new(), problems: Vec::new(), broken: Vec::new() };
    for document in manifest::parse(text, name) {
        match document {
            Ok((object, line)) => parsed.documents.push(Document { object, line }),
            Err(error) => {
                parsed.broken.push(*error.subject);
                parsed.problems.push(Problem {
                    file: name.to_owned(),
                    line: error.line,
                    column: error.column,
                    field: error.field,
                    message: error.message,
                });
            }
        }
    }
    parsed
}

#[cfg(test)]
mod tests;
