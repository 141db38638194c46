//! Named parts that must be up before the process says that it is ready.
//!
//! - In: each component registers its names at start-up and says `ready` when it is.
//! - Out: [`Readiness::is_ready`], and who is missing and why.
//! - Refuses: to take silence for an answer. A handle dropped without a word means that the part failed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;

/// How one named part stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    /// Registered, nothing said yet.
    Pending,
    /// Up.
    Ready,
    /// Was pending or ready, and is not any more.
    Failed {
        /// Why, in words.
        reason: String,
    },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("pending"),
            Self::Ready => f.write_str("ready"),
            Self::Failed { reason } => write!(f, "failed: {}", crate::text::Clean(reason)),
        }
    }
}

/// The set of all parts of this process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    parts: Arc<watch::Sender<BTreeMap<&'static str, State>>>,
}

/// One part's voice.
#[derive(Debug)]
#[must_use = "dropping the handle means that the part failed"]
pub struct Handle {
    name: &'static str,
    parts: Arc<watch::Sender<BTreeMap<&'static str, State>>>,
}

impl Readiness {
    /// An empty set, which is not ready: a process that registered nothing has not started.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a part; the process is not ready until the handle says so. Registering a name again starts it anew.
    pub fn register(&self, name: &'static str) -> Handle {
        self.parts.send_modify(|parts| {
            parts.insert(name, State::Pending);
        });
        Handle { name, parts: Arc::clone(&self.parts) }
    }

    /// Whether there are parts and all are ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        all_ready(&self.parts.borrow())
    }

    /// Every part and how it stands.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<&'static str, State> {
        self.parts.borrow().clone()
    }

    /// Resolves when all parts are ready; fails as soon as one has failed.
    ///
    /// # Errors
    /// [`NotReady`] names the part that failed.
    pub async fn wait(&self) -> Result<(), NotReady> {
        let mut parts = self.parts.subscribe();
        loop {
            {
                let now = parts.borrow_and_update();
                if let Some((name, State::Failed { reason })) =
                    now.iter().find(|(_, state)| matches!(state, State::Failed { .. }))
                {
                    return Err(NotReady { name, reason: reason.clone() });
                }
                if all_ready(&now) {
                    return Ok(());
                }
            }
            if parts.changed().await.is_err() {
                // Unreachable while `self` holds the sender.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// A part failed before everything was ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} failed: {reason}")]
pub struct NotReady {
    /// The part.
    pub name: &'static str,
    /// Why.
    pub reason: String,
}

impl Handle {
    /// The part is up.
    pub fn ready(&self) {
        self.set(State::Ready);
    }

    /// The part is down for now, and says why; it may become ready again.
    pub fn failed(&self, reason: impl Into<String>) {
        self.set(State::Failed { reason: reason.into() });
    }

    /// The part does not exist any more and counts no longer.
    pub fn remove(self) {
        self.parts.send_modify(|parts| {
            parts.remove(self.name);
        });
    }

    fn set(&self, state: State) {
        self.parts.send_if_modified(|parts| match parts.get_mut(self.name) {
            Some(old) if *old != state => {
                *old = state;
                true
            }
            // Unchanged, or removed: a removed part stays removed.
            _ => false,
        });
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Ready stays ready: a component may say its word and let go. Pending without a word is a failure.
        self.parts.send_if_modified(|parts| match parts.get_mut(self.name) {
            Some(state @ State::Pending) => {
                *state = State::Failed { reason: "ended before it was ready".to_owned() };
                true
            }
            _ => false,
        });
    }
}

fn all_ready(parts: &BTreeMap<&'static str, State>) -> bool {
    !parts.is_empty() && parts.values().all(|state| *state == State::Ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_must_be_said_by_all() {
        let readiness = Readiness::new();
        assert!(!readiness.is_ready(), "nothing registered is not ready");
        let dns = readiness.register("dns");
        let link = readiness.register("link");
        dns.ready();
        assert!(!readiness.is_ready());
        link.ready();
        assert!(readiness.is_ready());
        drop(dns);
        assert!(readiness.is_ready(), "a word said stays said");
        link.failed("socket closed");
        assert!(!readiness.is_ready());
        link.ready();
        assert!(readiness.is_ready());
    }

    #[test]
    fn silence_is_failure() {
        let readiness = Readiness::new();
        drop(readiness.register("dns"));
        assert!(matches!(readiness.snapshot()["dns"], State::Failed { .. }));
    }

    #[test]
    fn a_removed_part_counts_no_longer() {
        let readiness = Readiness::new();
        readiness.register("link").ready();
        let dns = readiness.register("dns");
        assert!(!readiness.is_ready());
        dns.remove();
        assert!(readiness.is_ready());
        assert_eq!(readiness.snapshot().len(), 1);
    }

    #[tokio::test]
    async fn waiting_ends_with_ready_or_failure() {
        let readiness = Readiness::new();
        let link = readiness.register("link");
        let waiter = readiness.clone();
        let waiting = tokio::spawn(async move { waiter.wait().await });
        tokio::task::yield_now().await;
        link.ready();
        assert_eq!(waiting.await.expect("no panic"), Ok(()));
        drop(readiness.register("dns"));
        assert_eq!(readiness.wait().await.expect_err("dns failed").name, "dns");
    }
}
