//! The side that tells: one for each peer that listens.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use linkspan_proto::exchange::{CatalogueEntry, Message, SubscriberMessage, VERSION};
use linkspan_proto::names::{ClusterName, ServiceKey};

use super::{
    ANSWER, CHANGE_INTERVAL, Catalogue, Entries, Feed, HEARTBEAT, HELLO, MESSAGE_BYTES, RESYNC_INTERVAL,
    UNANSWERED_MAX, Violation, weight,
};
use crate::diff::{Step, walk};

/// One peer's session, publishing side. Feed it with [`Publisher::message`] and [`Publisher::publish`], then send what
/// [`Publisher::poll`] gives until it gives nothing, and call [`Publisher::timeout`] at [`Publisher::deadline`].
#[derive(Debug)]
pub struct Publisher {
    peer: ClusterName,
    feed: Arc<Feed>,
    /// When the hello must have come; `None` once it has.
    hello_by: Option<Instant>,
    /// What the peer holds when it has processed everything that was sent. `None`: it needs a snapshot.
    sent: Option<Catalogue>,
    /// A snapshot that is being sent.
    snapshot: Option<Snapshot>,
    /// What must be acknowledged, and by when.
    awaiting: Option<(u64, Instant)>,
    /// Nothing new before this time.
    not_before: Instant,
    /// Something at the latest at this time.
    heartbeat_at: Instant,
    /// Snapshots in a row that were not acknowledged.
    unanswered: u32,
}

#[derive(Debug)]
struct Snapshot {
    catalogue: Catalogue,
    /// The last entry that was sent.
    after: Option<ServiceKey>,
}

impl Publisher {
    /// A session that waits for the hello of `peer`, as the link authenticated it.
    #[must_use]
    pub fn new(peer: ClusterName, feed: Arc<Feed>, now: Instant) -> Self {
        Self {
            peer,
            feed,
            hello_by: Some(now + HELLO),
            sent: None,
            snapshot: None,
            awaiting: None,
            not_before: now,
            heartbeat_at: now,
            unanswered: 0,
        }
    }

    /// The newest state of this cluster.
    pub fn publish(&mut self, feed: Arc<Feed>) {
        self.feed = feed;
    }

    /// A message of the peer.
    ///
    /// # Errors
    /// When the peer broke a rule: close the session.
    pub fn message(&mut self, message: SubscriberMessage, now: Instant) -> Result<(), Violation> {
        match (message, self.hello_by) {
            (SubscriberMessage::Hello { cluster, version, known }, Some(_)) => {
                if cluster != self.peer {
                    return Err(Violation::WrongCluster { claimed: cluster, peer: self.peer.clone() });
                }
                if version < VERSION {
                    return Err(Violation::UnsupportedVersion { theirs: version });
                }
                self.hello_by = None;
                self.sent = known.and_then(|(epoch, version, hash)| self.feed.resume(epoch, version, &hash).cloned());
                // Even a peer that is up to date hears so at once: until then it cannot know.
                self.heartbeat_at = now;
                Ok(())
            }
            (_, Some(_)) | (SubscriberMessage::Hello { .. }, None) => Err(Violation::NoHello),
            (SubscriberMessage::Ack { version }, None) => self.acknowledged(version),
            (SubscriberMessage::Resync { .. }, None) => {
                self.start_over(now + RESYNC_INTERVAL);
                Ok(())
            }
        }
    }

    /// Call when [`Publisher::deadline`] has passed.
    ///
    /// # Errors
    /// When the peer is silent: close the session.
    pub fn timeout(&mut self, now: Instant) -> Result<(), Violation> {
        if self.hello_by.is_some_and(|by| now >= by) {
            return Err(Violation::NoHello);
        }
        if self.awaiting.is_some_and(|(_, by)| now >= by) {
            self.unanswered += 1;
            if self.unanswered >= UNANSWERED_MAX {
                return Err(Violation::Unresponsive);
            }
            self.start_over(now);
        }
        Ok(())
    }

    /// The next message to send, if one is due.
    pub fn poll(&mut self, now: Instant) -> Option<Message> {
        if self.hello_by.is_some() {
            return None;
        }
        if self.snapshot.is_some() {
            return self.continue_snapshot(now);
        }
        if self.awaiting.is_some() || now < self.not_before {
            return None;
        }
        let current = self.feed.current().clone();
        let Some(sent) = &self.sent else {
            return Some(self.begin_snapshot(current));
        };
        if sent.version == current.version && now < self.heartbeat_at {
            return None;
        }
        let Some(delta) = delta(sent, &current) else {
            return Some(self.begin_snapshot(current));
        };
        self.sent_all(current, now);
        Some(delta)
    }

    /// When to call [`Publisher::timeout`] and [`Publisher::poll`] again, if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        if let Some(by) = self.hello_by {
            return by;
        }
        if let Some((_, by)) = self.awaiting {
            return by;
        }
        let changed = self.sent.as_ref().is_none_or(|sent| sent.version != self.feed.current().version);
        if changed || self.snapshot.is_some() { self.not_before } else { self.heartbeat_at.max(self.not_before) }
    }

    /// Whether the peer has acknowledged the newest version.
    #[must_use]
    pub fn is_up_to_date(&self) -> bool {
        self.awaiting.is_none() && self.sent.as_ref().is_some_and(|sent| sent.version == self.feed.current().version)
    }

    fn acknowledged(&mut self, version: u64) -> Result<(), Violation> {
        match self.awaiting {
            Some((awaited, _)) if awaited == version => {
                self.awaiting = None;
                self.unanswered = 0;
                Ok(())
            }
            // An answer to something that was overtaken by a snapshot.
            _ if version <= self.feed.current().version => Ok(()),
            _ => Err(Violation::UnknownVersion(version)),
        }
    }

    fn start_over(&mut self, not_before: Instant) {
        self.sent = None;
        self.snapshot = None;
        self.awaiting = None;
        self.not_before = self.not_before.max(not_before);
    }

    fn begin_snapshot(&mut self, catalogue: Catalogue) -> Message {
        let count = u32::try_from(catalogue.entries.len()).unwrap_or(u32::MAX);
        let begin = Message::SnapshotBegin { epoch: catalogue.epoch, version: catalogue.version, count };
        self.snapshot = Some(Snapshot { catalogue, after: None });
        begin
    }

    fn continue_snapshot(&mut self, now: Instant) -> Option<Message> {
        let mut snapshot = self.snapshot.take()?;
        let mut batch = Vec::new();
        let mut bytes = 0;
        let from = snapshot.after.take().map_or(Bound::Unbounded, Bound::Excluded);
        for (key, entry) in snapshot.catalogue.entries.range((from, Bound::Unbounded)) {
            bytes += weight(entry);
            batch.push(entry.as_ref().clone());
            snapshot.after = Some(key.clone());
            if bytes >= MESSAGE_BYTES {
                break;
            }
        }
        if batch.is_empty() {
            let end = Message::SnapshotEnd { version: snapshot.catalogue.version, hash: snapshot.catalogue.hash };
            self.sent_all(snapshot.catalogue, now);
            return Some(end);
        }
        self.snapshot = Some(snapshot);
        Some(Message::Entries(batch))
    }

    fn sent_all(&mut self, catalogue: Catalogue, now: Instant) {
        self.awaiting = Some((catalogue.version, now + ANSWER));
        self.sent = Some(catalogue);
        self.not_before = now + CHANGE_INTERVAL;
        self.heartbeat_at = now + HEARTBEAT;
    }
}

/// The change from `from` to `to`, or nothing when it is too large for one message. No change at all is a heartbeat.
fn delta(from: &Catalogue, to: &Catalogue) -> Option<Message> {
    let (upserts, removals) = if Arc::ptr_eq(&from.entries, &to.entries) {
        (Vec::new(), Vec::new())
    } else {
        difference(&from.entries, &to.entries)
    };
    let bytes: usize = upserts.iter().map(|entry| weight(entry)).sum::<usize>()
        + removals.iter().map(|key| 8 + key.namespace.as_str().len() + key.name.as_str().len()).sum::<usize>();
    if bytes > MESSAGE_BYTES {
        return None;
    }
    let upserts = upserts.into_iter().map(|entry| entry.as_ref().clone()).collect();
    Some(Message::Delta { from: from.version, to: to.version, upserts, removals, hash: to.hash })
}

/// Walks both maps in step: one pass, whatever the size of the change.
fn difference<'a>(old: &Entries, new: &'a Entries) -> (Vec<&'a Arc<CatalogueEntry>>, Vec<ServiceKey>) {
    let mut upserts = Vec::new();
    let mut removals = Vec::new();
    for step in walk(old, new) {
        match step {
            Step::Left(key, _) => removals.push(key.clone()),
            Step::Right(_, entry) => upserts.push(entry),
            Step::Both(_, old, new) => {
                if !Arc::ptr_eq(old, new) && old != new {
                    upserts.push(new);
                }
            }
        }
    }
    (upserts, removals)
}
