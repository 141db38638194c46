//! A folder of YAML files as the source of objects.
//!
//! - **In**: `*.yaml` and `*.yml` in one folder, several documents a file. Hidden files, editors' backups and everything
//!   else are passed over.
//! - **Out**: events and problems, as [`super`] says. A change is told in well under a second.
//! - **Refuses when**: a file is larger than [`manifest::MAX_FILE_LEN`], is no regular file, or does not parse.
//! - **Never does**: delete because it could not look: a folder or file that cannot be read keeps what it held.
//! - **Numbers**: [`QUIET`], [`POLL`], [`POLL_ALONE`].

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_proto::manifest;
use linkspan_runtime::text::Clean;
use notify::{RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc, watch};

use super::folder::{Document, Folder};
use super::{Event, Kind, ObjectKey, Problem};
use crate::files;

/// A file is read when it looked the same twice, this far apart: whoever writes a file in several steps is done by then.
pub const QUIET: Duration = Duration::from_millis(40);
/// Looks at the folder this often even when nothing was announced: some file systems announce nothing.
pub const POLL: Duration = Duration::from_millis(400);
/// The same where the system gives no announcements at all.
pub const POLL_ALONE: Duration = Duration::from_millis(200);
/// Looking takes at most one part in this many of the time, however large the folder is.
const POLL_SHARE: u32 = 20;
/// The parser's own limit, checked before a byte is read.
const FILE_MAX: u64 = manifest::MAX_FILE_LEN as u64;
/// A file that changes without end is read anyway after this many looks.
const RESTLESS_LOOKS: u32 = 25;

/// A folder that is watched.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Where copies of files are kept as they were when they last parsed, so that a restart knows their objects.
    last_good: PathBuf,
    folder: Folder,
    seen: BTreeMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    stamp: Stamp,
    since: Instant,
    looks: u32,
    read: bool,
}

/// What tells a changed file from an unchanged one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    inode: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
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
}

impl Directory {
    /// Watches `path`; keeps copies of good files in `last_good`.
    #[must_use]
    pub fn new(path: PathBuf, last_good: PathBuf) -> Self {
        Self { path, last_good, folder: Folder::default(), seen: BTreeMap::new() }
    }

    /// Looks once. Blocks on the file system.
    pub fn look(&mut self, now: Instant) -> Look {
        let mut again = None;
        let mut trouble = None;
        match list(&self.path) {
            Ok(names) => {
                self.seen.retain(|name, _| names.contains_key(name));
                let gone: Vec<_> =
                    self.folder.names().filter(|name| !names.contains_key(*name)).map(str::to_owned).collect();
                for name in gone {
                    self.folder.gone(&name);
                    self.forget(&name);
                }
                for (name, stamp) in names {
                    again = again.into_iter().chain(self.look_at(&name, stamp, now)).min();
                }
            }
            Err(error) => trouble = Some(problem(".", format!("the folder cannot be read: {error}"))),
        }
        let (events, missing) = self.folder.settle(now);
        let mut problems = self.folder.problems();
        problems.extend(trouble);
        Look { events, problems, again: again.into_iter().chain(missing).min() }
    }

    /// Reads a file if it is new and at rest; says when to look again if it is not at rest.
    fn look_at(&mut self, name: &str, stamp: Stamp, now: Instant) -> Option<Instant> {
        let seen = self.seen.entry(name.to_owned()).or_insert(Seen { stamp, since: now, looks: 0, read: false });
        if seen.stamp != stamp {
            *seen = Seen { stamp, since: now, looks: if seen.read { 0 } else { seen.looks + 1 }, read: false };
        }
        if seen.read {
            return None;
        }
        if now < seen.since + QUIET && seen.looks < RESTLESS_LOOKS {
            return Some(seen.since + QUIET);
        }
        seen.read = true;
        let path = self.path.join(name);
        match read_file(&path) {
            Ok((text, after)) => {
                if after != stamp {
                    // Changed while we read: what we have may be half of it.
                    *seen = Seen { stamp: after, since: now, looks: seen.looks + 1, read: false };
                    if seen.looks < RESTLESS_LOOKS {
                        return Some(now + QUIET);
                    }
                    seen.read = true;
                }
                self.take(name, &text);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.folder.unreadable(name, problem(name, format!("cannot be read: {error}"))),
        }
        None
    }

    fn take(&mut self, name: &str, text: &str) {
        let read = parse(name, text);
        let kept = self.last_good.join(name);
        if read.problems.is_empty() {
            if !matches!(fs::read(&kept), Ok(old) if old == text.as_bytes())
                && let Err(error) = files::write_atomically(&kept, text.as_bytes(), 0o600)
            {
                tracing::warn!(file = name, %error, "cannot keep a copy of a good manifest");
            }
        } else if !self.folder.names().any(|known| known == name)
            && let Ok((old, _)) = read_file(&kept)
        {
            // The first look after a start, and the file is broken: what it held before the start still holds.
            self.folder.read(name, parse(name, &old).documents, Vec::new(), Vec::new());
        }
        self.folder.read(name, read.documents, read.problems, read.broken);
    }

    fn forget(&self, name: &str) {
        if let Err(error) = files::remove(&self.last_good.join(name)) {
            tracing::warn!(file = name, %error, "cannot remove the copy of a manifest");
        }
    }
}

/// Watches a folder until `events` is closed: tells everything once between `Init` and `InitDone`, then changes.
pub async fn run(directory: Directory, events: mpsc::Sender<Event>, problems: watch::Sender<Arc<Vec<Problem>>>) {
    let announced = Arc::new(Notify::new());
    let watcher = announce(&directory.path, Arc::clone(&announced));
    let poll = if watcher.is_some() { POLL } else { POLL_ALONE };
    let mut directory = Some(directory);
    let mut initial = Some(Vec::new());
    let began = Instant::now();
    loop {
        let Some(mut taken) = directory.take() else { return };
        let started = Instant::now();
        let looked = tokio::task::spawn_blocking(move || {
            let look = taken.look(Instant::now());
            (taken, look)
        });
        let Ok((taken, look)) = looked.await else {
            // A panic in a parser: the folder's state went with it, and the vital task ends the process.
            tracing::error!("reading the manifests panicked");
            return;
        };
        directory = Some(taken);
        report(&problems, look.problems);
        let settled = look.again.is_none();
        match &mut initial {
            Some(first) => {
                first.extend(look.events);
                // Files that do not come to rest must not hold up all others.
                if settled || began.elapsed() > POLL {
                    let first = initial.take().unwrap_or_default();
                    for event in [Event::Init].into_iter().chain(first).chain([Event::InitDone]) {
                        if events.send(event).await.is_err() {
                            return;
                        }
                    }
                }
            }
            None => {
                for event in look.events {
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
            }
        }
        let pause = poll.max(started.elapsed() * POLL_SHARE);
        let again = look.again.map_or(pause, |at| at.saturating_duration_since(Instant::now()).min(pause));
        tokio::select! {
            () = events.closed() => return,
            () = announced.notified(), if settled => {
                // Announcements come one for each step of a writer: wait until it is quiet once, then look.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            () = tokio::time::sleep(again) => {}
        }
    }
}

/// Asks the system to announce changes. `None`: it cannot, and looking often must do.
fn announce(path: &Path, announced: Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let handler = move |_: notify::Result<notify::Event>| announced.notify_one();
    let watcher = notify::recommended_watcher(handler).and_then(|mut watcher| {
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    match watcher {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, "the system announces no changes of the manifests; looking every 200 ms instead");
            None
        }
    }
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

/// The manifests in a folder.
fn list(path: &Path) -> io::Result<BTreeMap<String, Stamp>> {
    let mut names = BTreeMap::new();
    for item in fs::read_dir(path)? {
        let item = item?;
        // A name that is no UTF-8 cannot be reported either.
        let Ok(name) = item.file_name().into_string() else { continue };
        if !is_manifest(&name) {
            continue;
        }
        // Follows links. What vanished since is not there.
        match fs::metadata(item.path()) {
            Ok(metadata) if metadata.is_file() => drop(names.insert(name, Stamp::of(&metadata))),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(names)
}

/// Whether a file of this name is a manifest: not hidden (editors' swap files, our own temporary files), not a backup.
fn is_manifest(name: &str) -> bool {
    let path = Path::new(name);
    !name.starts_with(['.', '#', '~'])
        && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn read_file(path: &Path) -> io::Result<(String, Stamp)> {
    let mut file = fs::File::open(path)?;
    if file.metadata()?.size() > FILE_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 8 MiB; split it"));
    }
    let mut text = String::new();
    file.by_ref().take(FILE_MAX).read_to_string(&mut text)?;
    Ok((text, Stamp::of(&file.metadata()?)))
}

/// What one file's text comes to.
struct Parsed {
    documents: Vec<Document>,
    problems: Vec<Problem>,
    broken: Vec<ObjectKey>,
}

fn parse(name: &str, text: &str) -> Parsed {
    let mut parsed = Parsed { documents: Vec::new(), problems: Vec::new(), broken: Vec::new() };
    for document in manifest::parse(text, name) {
        match document {
            Ok((object, line)) => parsed.documents.push(Document { object, line }),
            Err(error) => {
                parsed.broken.extend(guess(text, error.line));
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

/// Which object the broken document around `line` seems to be about, by its lines alone: it may be no YAML at all.
fn guess(text: &str, line: usize) -> Option<ObjectKey> {
    let lines: Vec<&str> = text.lines().collect();
    let at = line.saturating_sub(1).min(lines.len());
    let is_border = |line: &&str| line.trim_end() == "---";
    let start = lines.iter().take(at).rposition(is_border).map_or(0, |border| border + 1);
    let end = lines.iter().skip(start).position(is_border).map_or(lines.len(), |length| start + length);
    let document = lines.get(start..end)?;
    let value = |name: &str| {
        // `metadata: {name: a, namespace: b}` on one line, or each on its own.
        document.iter().flat_map(|line| line.split(['{', ',', '}'])).find_map(|piece| {
            let (key, value) = piece.split_once(':')?;
            (key.trim() == name).then(|| value.trim().trim_matches(['"', '\'']).to_owned())
        })
    };
    let kind = value("kind")?;
    let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    Some(ObjectKey { kind, namespace: value("namespace").unwrap_or_default(), name: value("name").unwrap_or_default() })
}

fn problem(file: &str, message: String) -> Problem {
    Problem { file: file.to_owned(), line: 0, column: 0, field: String::new(), message }
}

#[cfg(test)]
mod tests;
