//! One candidate for the lease, without I/O and without a clock of its own: moments in, calls out.
//!
//! The rules are those of Kubernetes' own components, so that `kubectl get lease` reads as everywhere:
//! - A lease that was seen unchanged for its duration **by the local monotonic clock** may be taken. The times in it were
//!   written by other machines' clocks and are never compared.
//! - Every write names the version that it replaces; of two that try, one is told of a conflict and looks again.
//! - Who could not renew for [`RENEW_DEADLINE`], counted from when the last successful renewal was **sent**, leads no more.
//!   Nobody has seen that renewal earlier than it was sent, so nobody else can lead before [`LEASE`] after it.
//! - A lease that vanishes is no vacancy: who saw a holder waits for it as long as if the lease were still there.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use linkspan_runtime::backoff::Backoff;

/// How long a lease holds after it was seen renewed. With [`RETRY`] this bounds how long nobody leads after a crash: 17 s.
pub const LEASE: Duration = Duration::from_secs(15);
/// A leader that could not renew for this long stops writing. Below [`LEASE`] by what a write may still take that was sent
/// at the last moment ([`crate::mirror::kubernetes::WRITE`]).
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two renewals, and between two looks at the lease of another: at most. Jittered downwards.
pub const RETRY: Duration = Duration::from_secs(2);
/// The smallest pause: candidates that started together do not ask in step.
const RETRY_MIN: Duration = Duration::from_millis(1500);

/// What a lease says, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who leads; empty when the last leader gave it back.
    pub holder: String,
    /// How long others wait for it.
    pub lease_seconds: u32,
    /// Since when it leads. For people.
    pub acquired: Timestamp,
    /// When it said so last. For people.
    pub renewed: Timestamp,
    /// How often the holder changed.
    pub transitions: u32,
}

/// What is to be asked of the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Read the lease.
    Look,
    /// Make it; fails when it is there.
    Create(Record),
    /// Replace exactly this version of it.
    Replace(Record, String),
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The lease, with its version.
    Found(Record, String),
    /// There is none.
    Missing,
    /// It was written, and this is its version now.
    Written(String),
    /// Somebody else wrote in between.
    Conflict,
    /// Nobody knows whether the call did anything.
    Failed,
}

/// Where a candidate stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Another one leads, or nobody.
    Standby,
    /// It leads until this moment, if nothing happens.
    Leading(Instant),
    /// It led and cannot renew: it may not write. Nobody else was seen to lead.
    Lapsed,
    /// It led, and now somebody else does.
    Superseded,
}

#[derive(Debug)]
struct Observed {
    record: Record,
    version: String,
    /// When this version was first seen, or written.
    at: Instant,
}

#[derive(Debug)]
struct Sent {
    at: Instant,
    /// What was written; `None` for a look.
    record: Option<Record>,
}

/// A candidate.
#[derive(Debug)]
pub struct Candidate {
    identity: String,
    pauses: Backoff,
    observed: Option<Observed>,
    /// The lease is not there (any more).
    missing: bool,
    /// What is known may be out of date: look before the next write.
    stale: bool,
    sent: Option<Sent>,
    /// When the last renewal that succeeded was sent.
    renewed: Option<Instant>,
    superseded: bool,
    conflicts: u32,
    next: Instant,
}

impl Candidate {
    /// A candidate that asks at once. No two that run at the same time have the same identity.
    #[must_use]
    pub fn new(identity: String, seed: u64, now: Instant) -> Self {
        Self {
            identity,
            pauses: Backoff::seeded(RETRY_MIN, RETRY, seed),
            observed: None,
            missing: false,
            stale: true,
            sent: None,
            renewed: None,
            superseded: false,
            conflicts: 0,
            next: now,
        }
    }

    /// The next call, if one is due. `wall` is only written, for people.
    pub fn poll(&mut self, now: Instant, wall: Timestamp) -> Option<Call> {
        if self.sent.is_some() || self.superseded || now < self.next {
            return None;
        }
        let call = self.call(now, wall);
        let record = match &call {
            Call::Look => None,
            Call::Create(record) | Call::Replace(record, _) => Some(record.clone()),
        };
        self.sent = Some(Sent { at: now, record });
        Some(call)
    }

    fn call(&self, now: Instant, wall: Timestamp) -> Call {
        if self.stale {
            return Call::Look;
        }
        let fresh = |transitions| Record {
            holder: self.identity.clone(),
            lease_seconds: u32::try_from(LEASE.as_secs()).unwrap_or(u32::MAX),
            acquired: wall,
            renewed: wall,
            transitions,
        };
        match &self.observed {
            _ if self.missing => {
                Call::Create(fresh(self.observed.as_ref().map_or(0, |observed| observed.record.transitions + 1)))
            }
            None => Call::Look,
            Some(observed) if observed.record.holder == self.identity => {
                let record = Record { acquired: observed.record.acquired, ..fresh(observed.record.transitions) };
                Call::Replace(record, observed.version.clone())
            }
            Some(observed) if now >= free_from(observed) => {
                Call::Replace(fresh(observed.record.transitions.saturating_add(1)), observed.version.clone())
            }
            Some(_) => Call::Look,
        }
    }

    /// Takes the answer to the last call.
    pub fn answer(&mut self, now: Instant, answer: Answer) {
        let Some(sent) = self.sent.take() else { return };
        let pause = self.pauses.next();
        self.next = now + pause;
        match answer {
            Answer::Found(record, version) => {
                self.stale = false;
                self.missing = false;
                let known = self.observed.as_ref().is_some_and(|observed| observed.version == version);
                if !known {
                    self.observed = Some(Observed { record, version, at: now });
                }
                self.settle(now);
            }
            Answer::Missing => {
                let holder_lives = self
                    .observed
                    .as_ref()
                    .is_some_and(|observed| observed.record.holder != self.identity && now < free_from(observed));
                self.missing = !holder_lives;
                self.stale = holder_lives;
                self.settle(now);
            }
            Answer::Written(version) => {
                if let Some(record) = sent.record {
                    self.observed = Some(Observed { record, version, at: now });
                    self.renewed = Some(sent.at);
                }
                self.missing = false;
                self.conflicts = 0;
            }
            Answer::Conflict => {
                self.stale = true;
                self.conflicts += 1;
                // Once at once; more often only when the lease is fought for, and not in a hot loop.
                if self.conflicts == 1 {
                    self.next = now;
                }
            }
            // It may have been done: a write that is not known to have been refused may have made a new version.
            Answer::Failed => self.stale |= sent.record.is_some(),
        }
    }

    /// When the next call is due, and whether somebody else leads, after the lease was looked at.
    fn settle(&mut self, now: Instant) {
        if self.missing {
            self.next = now;
            return;
        }
        let Some(observed) = &self.observed else { return };
        let holder = &observed.record.holder;
        if *holder == self.identity {
            self.next = now;
        } else {
            self.superseded |= self.renewed.is_some() && !holder.is_empty();
            self.next = self.next.min(free_from(observed).max(now));
        }
    }

    /// When [`Candidate::poll`] has something to say; never while it waits for an answer.
    #[must_use]
    pub const fn due(&self) -> Instant {
        self.next
    }

    /// Where it stands.
    #[must_use]
    pub fn standing(&self, now: Instant) -> Standing {
        match self.renewed {
            None => Standing::Standby,
            Some(_) if self.superseded => Standing::Superseded,
            Some(renewed) if now < renewed + RENEW_DEADLINE => Standing::Leading(renewed + RENEW_DEADLINE),
            Some(_) => Standing::Lapsed,
        }
    }

    /// Who leads, as far as is known.
    #[must_use]
    pub fn holder(&self) -> Option<&str> {
        self.observed.as_ref().map(|observed| observed.record.holder.as_str()).filter(|holder| !holder.is_empty())
    }

    /// Gives the lease back, so that the next leader need not wait for it to run out. Only when nothing is written any more.
    #[must_use]
    pub fn release(&self, wall: Timestamp) -> Option<Call> {
        let observed = self.observed.as_ref()?;
        if self.renewed.is_none() || self.superseded || self.missing || observed.record.holder != self.identity {
            return None;
        }
        let record = Record { holder: String::new(), lease_seconds: 1, renewed: wall, ..observed.record.clone() };
        Some(Call::Replace(record, observed.version.clone()))
    }
}

/// From when on somebody else may take it.
fn free_from(observed: &Observed) -> Instant {
    if observed.record.holder.is_empty() {
        return observed.at;
    }
    // Another version of this program may wait longer or shorter; its holder counts on what it said.
    observed.at + Duration::from_secs(observed.record.lease_seconds.into())
}

#[cfg(test)]
mod tests;
