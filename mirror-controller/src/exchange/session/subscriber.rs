//! The side that listens: one for each linked peer, for as long as it is linked; sessions come and go.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use linkspan_proto::exchange::{CatalogueEntry, Message, SubscriberMessage, VERSION};
use linkspan_proto::names::{ClusterName, ServiceKey};

use super::{
    Catalogue, DRAIN_AFTER, Entries, Hash, MASS_REMOVAL_DELAY, MASS_REMOVAL_FLOOR, RESYNC_INTERVAL, RESYNCS_MAX,
    SERVICES_MAX, SILENCE, STALE_AFTER, Violation, hash,
};
use crate::diff::{Step, walk};

/// How far a peer's catalogue can be trusted to be current.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Freshness {
    /// There never was one.
    Unknown,
    /// Confirmed a moment ago.
    Fresh,
    /// Not confirmed for [`STALE_AFTER`]: everything stays, and is marked.
    Stale,
    /// Not confirmed for [`DRAIN_AFTER`]: its capacity is given up, its mirrors stay.
    Drained,
}

/// What the rest of the controller sees of a peer's catalogue.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// The effective entries: what the peer says, and what it removed so much of that we wait.
    pub entries: Arc<Entries>,
    /// The newest verified version; `None` when there never was one.
    pub verified: Option<(u64, u64, Hash)>,
    /// How current it is.
    pub freshness: Freshness,
    /// Services that the peer removed and whose entries are kept for [`MASS_REMOVAL_DELAY`].
    pub withheld: Arc<BTreeSet<ServiceKey>>,
    /// Whether a session stands and agrees.
    pub synchronised: bool,
    /// The entries are a copy from an earlier life, since when another controller may have heard more: what is not among them
    /// may exist all the same. Until the peer has confirmed or replaced them.
    pub outdated: bool,
}

/// One peer's catalogue and the session that keeps it. Feed it with events, send what [`Subscriber::poll`] gives, call
/// [`Subscriber::timeout`] at [`Subscriber::deadline`], and read [`Subscriber::view`] after each.
#[derive(Debug)]
pub struct Subscriber {
    own: ClusterName,
    verified: Option<Catalogue>,
    /// Entries that are gone at the peer and still count here.
    withheld: Entries,
    release_at: Option<Instant>,
    /// Removals of the last [`MASS_REMOVAL_DELAY`]: many small ones are as grave as a large one.
    removals: VecDeque<(Instant, usize)>,
    session: Option<Session>,
    /// When the catalogue was last known to be the peer's newest.
    confirmed_at: Instant,
    /// See [`View::outdated`].
    outdated: bool,
    outgoing: VecDeque<SubscriberMessage>,
}

#[derive(Debug)]
struct Session {
    heard_at: Instant,
    synchronised: bool,
    snapshot: Option<Snapshot>,
    resyncs: u32,
    /// A request for a snapshot that waits for its time.
    resync_at: Option<(Instant, &'static str)>,
    last_resync: Option<Instant>,
}

#[derive(Debug)]
struct Snapshot {
    epoch: u64,
    version: u64,
    count: usize,
    entries: Entries,
}

impl Subscriber {
    /// A subscriber of cluster `own` that holds `known` from an earlier life, with what was withheld then.
    #[must_use]
    pub fn new(own: ClusterName, known: Option<Catalogue>, withheld: Entries, now: Instant) -> Self {
        Self {
            own,
            verified: known,
            release_at: (!withheld.is_empty()).then(|| now + MASS_REMOVAL_DELAY),
            withheld,
            removals: VecDeque::new(),
            session: None,
            // A restart is no reason to doubt what was true a moment ago: the time counts from now.
            confirmed_at: now,
            outdated: false,
            outgoing: VecDeque::new(),
        }
    }

    /// What it holds may be older than what was last in force: another one may have followed the peer meanwhile. What is gone
    /// since counts as gone now: whether that one has waited, and for how long, nobody knows (S-41).
    #[must_use]
    pub const fn outdated(mut self) -> Self {
        self.outdated = self.verified.is_some();
        self
    }

    /// A session begins; one that stood before is forgotten.
    pub fn connected(&mut self, now: Instant) {
        let known = self.verified.as_ref().map(|catalogue| (catalogue.epoch, catalogue.version, catalogue.hash));
        self.outgoing.clear();
        self.outgoing.push_back(SubscriberMessage::Hello { cluster: self.own.clone(), version: VERSION, known });
        self.session = Some(Session {
            heard_at: now,
            synchronised: false,
            snapshot: None,
            resyncs: 0,
            resync_at: None,
            last_resync: None,
        });
    }

    /// The session ended. Everything that was verified stays.
    pub fn disconnected(&mut self) {
        self.session = None;
        self.outgoing.clear();
    }

    /// A message of the peer.
    ///
    /// # Errors
    /// When the peer broke a rule: close the session.
    pub fn message(&mut self, message: Message, now: Instant) -> Result<(), Violation> {
        let Some(session) = &mut self.session else {
            // A straggler of a session that is over.
            return Ok(());
        };
        session.heard_at = now;
        match message {
            Message::SnapshotBegin { epoch, version, count } => self.begin(epoch, version, count),
            Message::Entries(entries) => self.entries(entries, now),
            Message::SnapshotEnd { version, hash } => self.end(version, hash, now),
            Message::Delta { from, to, upserts, removals, hash } => self.delta(from, to, upserts, removals, hash, now),
        }
    }

    /// Call when [`Subscriber::deadline`] has passed.
    ///
    /// # Errors
    /// When the peer is silent: close the session.
    pub fn timeout(&mut self, now: Instant) -> Result<(), Violation> {
        if self.release_at.is_some_and(|at| now >= at) {
            self.release_at = None;
            self.withheld.clear();
        }
        let Some(session) = &self.session else { return Ok(()) };
        if now >= session.heard_at + SILENCE {
            return Err(Violation::Unresponsive);
        }
        self.send_due_resync(now);
        Ok(())
    }

    /// The next message to send, if there is one.
    pub fn poll(&mut self) -> Option<SubscriberMessage> {
        self.outgoing.pop_front()
    }

    /// When to call [`Subscriber::timeout`] again and look at the view, if nothing happens before.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let turns = [STALE_AFTER, DRAIN_AFTER].map(|after| self.confirmed_at + after);
        let session = self.session.as_ref();
        turns
            .into_iter()
            .filter(|at| *at > now)
            .chain(self.release_at)
            .chain(session.map(|session| session.heard_at + SILENCE))
            .chain(session.and_then(|session| session.resync_at.map(|(at, _)| at)))
            .min()
    }

    /// What holds now.
    #[must_use]
    pub fn view(&self, now: Instant) -> View {
        let verified = self.verified.as_ref();
        let empty = Arc::default;
        let entries = verified.map_or_else(empty, |catalogue| Arc::clone(&catalogue.entries));
        let entries = if self.withheld.is_empty() {
            entries
        } else {
            let mut all = self.withheld.clone();
            all.extend(entries.iter().map(|(key, entry)| (key.clone(), Arc::clone(entry))));
            Arc::new(all)
        };
        View {
            entries,
            verified: verified.map(|catalogue| (catalogue.epoch, catalogue.version, catalogue.hash)),
            freshness: self.freshness(now),
            withheld: Arc::new(self.withheld.keys().cloned().collect()),
            synchronised: self.session.as_ref().is_some_and(|session| session.synchronised),
            outdated: self.outdated,
        }
    }

    /// The newest verified catalogue and what is withheld beside it: what a restart must find again.
    #[must_use]
    pub fn to_keep(&self) -> Option<(&Catalogue, &Entries)> {
        self.verified.as_ref().map(|catalogue| (catalogue, &self.withheld))
    }

    fn freshness(&self, now: Instant) -> Freshness {
        let age = now.saturating_duration_since(self.confirmed_at);
        if self.verified.is_none() {
            Freshness::Unknown
        } else if age >= DRAIN_AFTER {
            Freshness::Drained
        } else if age >= STALE_AFTER {
            Freshness::Stale
        } else {
            Freshness::Fresh
        }
    }

    fn begin(&mut self, epoch: u64, version: u64, count: u32) -> Result<(), Violation> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > SERVICES_MAX {
            return Err(Violation::TooManyServices(count));
        }
        if let Some(have) = self.verified.as_ref().filter(|have| have.epoch == epoch && have.version > version) {
            return Err(Violation::OlderVersion { have: have.version, got: version });
        }
        if let Some(session) = &mut self.session {
            // A snapshot that was not finished counts for nothing; one that begins answers whatever we asked for.
            session.resync_at = None;
            session.snapshot = Some(Snapshot { epoch, version, count, entries: Entries::new() });
        }
        Ok(())
    }

    fn entries(&mut self, entries: Vec<CatalogueEntry>, now: Instant) -> Result<(), Violation> {
        let Some(snapshot) = self.session.as_mut().and_then(|session| session.snapshot.as_mut()) else {
            return self.resync("entries outside a snapshot", now);
        };
        if snapshot.entries.len() + entries.len() > snapshot.count {
            return self.resync("more entries than announced", now);
        }
        for entry in entries {
            let key = entry.service.clone();
            if snapshot.entries.insert(key.clone(), Arc::new(entry)).is_some() {
                return Err(Violation::Duplicate(key));
            }
        }
        Ok(())
    }

    fn end(&mut self, version: u64, announced: Hash, now: Instant) -> Result<(), Violation> {
        let Some(snapshot) = self.session.as_mut().and_then(|session| session.snapshot.take()) else {
            return self.resync("the end of a snapshot without its begin", now);
        };
        if snapshot.version != version || snapshot.entries.len() != snapshot.count {
            return self.resync("an incomplete snapshot", now);
        }
        if hash(&snapshot.entries) != announced {
            return self.resync("the hash of the snapshot does not agree", now);
        }
        let entries = self.reuse(snapshot.entries);
        self.accept(Catalogue { epoch: snapshot.epoch, version, hash: announced, entries: Arc::new(entries) }, now);
        Ok(())
    }

    fn delta(
        &mut self,
        from: u64,
        to: u64,
        upserts: Vec<CatalogueEntry>,
        removals: Vec<ServiceKey>,
        announced: Hash,
        now: Instant,
    ) -> Result<(), Violation> {
        let pending = self.session.as_ref().is_some_and(|session| session.snapshot.is_some());
        let Some(verified) = self.verified.as_ref().filter(|have| have.version == from && !pending) else {
            return self.resync("a change of another version than ours", now);
        };
        if to < from {
            return Err(Violation::OlderVersion { have: from, got: to });
        }
        let mut next = verified.clone();
        if !upserts.is_empty() || !removals.is_empty() {
            let entries = Arc::make_mut(&mut next.entries);
            for key in &removals {
                entries.remove(key);
            }
            for entry in upserts {
                entries.insert(entry.service.clone(), Arc::new(entry));
            }
            if entries.len() > SERVICES_MAX {
                return Err(Violation::TooManyServices(entries.len()));
            }
            next.hash = hash(entries);
        }
        if next.hash != announced {
            return self.resync("the hash of the change does not agree", now);
        }
        next.version = to;
        self.accept(next, now);
        Ok(())
    }

    /// Takes a verified state over.
    fn accept(&mut self, next: Catalogue, now: Instant) {
        if let Some(before) = self.verified.take()
            && !Arc::ptr_eq(&before.entries, &next.entries)
        {
            self.withhold(&before.entries, &next.entries, now);
        }
        let version = next.version;
        self.verified = Some(next);
        self.confirmed_at = now;
        self.outdated = false;
        if let Some(session) = &mut self.session {
            session.synchronised = true;
            session.resyncs = 0;
            session.resync_at = None;
        }
        self.outgoing.push_back(SubscriberMessage::Ack { version });
    }

    /// Keeps what is gone for a while, when too much is gone at once.
    fn withhold(&mut self, before: &Entries, next: &Entries, now: Instant) {
        let removed: Vec<_> = walk(before, next)
            .filter_map(|step| match step {
                Step::Left(key, entry) => Some((key.clone(), Arc::clone(entry))),
                _ => None,
            })
            .collect();
        self.withheld.retain(|key, _| !next.contains_key(key));
        let horizon = now.checked_sub(MASS_REMOVAL_DELAY);
        self.removals.retain(|(at, _)| horizon.is_none_or(|horizon| *at > horizon));
        let recent: usize = self.removals.iter().map(|(_, count)| count).sum();
        let present = before.len() + recent;
        let gone = removed.len() + recent;
        if !removed.is_empty() {
            self.removals.push_back((now, removed.len()));
        }
        if !removed.is_empty() && present >= MASS_REMOVAL_FLOOR && gone * 2 > present {
            self.withheld.extend(removed);
            self.release_at.get_or_insert(now + MASS_REMOVAL_DELAY);
        }
        // What a peer may make us hold is bounded like everything else of it.
        while self.withheld.len() > SERVICES_MAX {
            self.withheld.pop_first();
        }
        if self.withheld.is_empty() {
            self.release_at = None;
        }
    }

    /// Shares entries that did not change with the version before, so that later stages see by pointer what is new.
    fn reuse(&self, mut entries: Entries) -> Entries {
        if let Some(verified) = &self.verified {
            for (key, entry) in &mut entries {
                if let Some(old) = verified.entries.get(key).filter(|old| *old == entry) {
                    *entry = Arc::clone(old);
                }
            }
        }
        entries
    }

    /// Asks for a snapshot, not too often. What was verified stays.
    fn resync(&mut self, reason: &'static str, now: Instant) -> Result<(), Violation> {
        let Some(session) = &mut self.session else { return Ok(()) };
        session.synchronised = false;
        session.snapshot = None;
        if session.resync_at.is_some() {
            return Ok(());
        }
        session.resyncs += 1;
        if session.resyncs > RESYNCS_MAX {
            return Err(Violation::CannotVerify);
        }
        let earliest = session.last_resync.map_or(now, |last| last + RESYNC_INTERVAL);
        session.resync_at = Some((earliest.max(now), reason));
        self.send_due_resync(now);
        Ok(())
    }

    fn send_due_resync(&mut self, now: Instant) {
        if let Some(session) = &mut self.session
            && let Some((at, reason)) = session.resync_at
            && now >= at
        {
            session.resync_at = None;
            session.last_resync = Some(now);
            self.outgoing.push_back(SubscriberMessage::Resync { reason: reason.to_owned() });
        }
    }
}
