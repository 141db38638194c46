//! The end of a process or of a component: send clients elsewhere, stop accepting, wait for what runs, force the rest.
//!
//! ```text
//! Running --leave()--> Leaving --drain()--> Draining --all guards gone, or deadline--> Closed
//!    |---------------drain()----------------^                                            ^
//!    \---------------------------- the last Drain dropped --------------------------------/
//! ```
//!
//! - In: one call of [`Drain::drain`], perhaps one of [`Drain::leave`] before; or the [`Drain`] dropped.
//! - Out: [`Signal::leaving`] wakes those that can tell clients to go, [`Signal::draining`] those that accept,
//!   [`Signal::closed`] those that still work at the deadline.
//! - Never does: end anything by itself. Whoever holds a [`Guard`] is waited for; whoever ignores `closed` outlives it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
struct Shared {
    leaving: CancellationToken,
    draining: CancellationToken,
    closed: CancellationToken,
    guards: AtomicUsize,
    idle: Notify,
    vital_ended: watch::Sender<Option<&'static str>>,
}

/// The right to end a component. One owner; dropping it closes at once.
#[derive(Debug)]
pub struct Drain {
    shared: Arc<Shared>,
}

/// Tells a component that it shall end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Signal {
    shared: Arc<Shared>,
}

/// Something unfinished that [`Drain::drain`] waits for: a connection, a request.
#[derive(Debug)]
pub struct Guard {
    shared: Arc<Shared>,
}

impl Drain {
    /// A running component's two ends.
    #[must_use]
    pub fn new() -> (Self, Signal) {
        let shared = Arc::new(Shared::new());
        (Self { shared: Arc::clone(&shared) }, Signal { shared })
    }

    /// Everything goes on, and clients are told to go elsewhere: whoever sends them here learns late that this ends.
    pub fn leave(&self) {
        self.shared.leaving.cancel();
    }

    /// Stops accepting, waits until every guard is gone or `deadline` has passed, then closes. Says whether all
    /// finished in time.
    pub async fn drain(&self, deadline: Duration) -> bool {
        self.shared.leaving.cancel();
        self.shared.draining.cancel();
        let finished = tokio::time::timeout(deadline, self.shared.idle()).await.is_ok();
        self.shared.closed.cancel();
        finished
    }

    /// Resolves with a task's name when a vital task (see [`crate::task::vital`]) has ended by itself.
    pub async fn vital_ended(&self) -> &'static str {
        let mut ended = self.shared.vital_ended.subscribe();
        loop {
            if let Some(name) = *ended.borrow_and_update() {
                return name;
            }
            if ended.changed().await.is_err() {
                // Unreachable while `self.shared` holds the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    /// How many guards are held now.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.shared.guards.load(Ordering::Acquire)
    }

    /// Another signal of the same component.
    #[must_use]
    pub fn signal(&self) -> Signal {
        Signal { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.shared.leaving.cancel();
        self.shared.draining.cancel();
        self.shared.closed.cancel();
    }
}

impl Signal {
    /// A signal that never fires, for tools and tests that have nothing to drain.
    #[must_use]
    pub fn never() -> Self {
        Self { shared: Arc::new(Shared::new()) }
    }

    /// Resolves when clients shall go elsewhere, while those that come are still served.
    pub async fn leaving(&self) {
        self.shared.leaving.cancelled().await;
    }

    /// Whether clients shall go elsewhere; so too when nothing new is accepted any more.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.shared.leaving.is_cancelled()
    }

    /// Resolves when nothing new shall be accepted.
    pub async fn draining(&self) {
        self.shared.draining.cancelled().await;
    }

    /// Resolves when the deadline is over: what still runs must stop.
    pub async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }

    /// Whether nothing new shall be accepted.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.draining.is_cancelled()
    }

    /// Whether what still runs must stop.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.closed.is_cancelled()
    }

    /// Makes the drain wait until the guard is dropped.
    #[must_use]
    pub fn guard(&self) -> Guard {
        self.shared.guards.fetch_add(1, Ordering::Relaxed);
        Guard { shared: Arc::clone(&self.shared) }
    }

    /// How many guards are held now.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.shared.guards.load(Ordering::Acquire)
    }

    /// Reports that a vital task ended by itself.
    pub(crate) fn report_vital_end(&self, name: &'static str) {
        self.shared.vital_ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(name);
            }
            first
        });
    }
}

impl Clone for Guard {
    fn clone(&self) -> Self {
        self.shared.guards.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.shared.guards.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.idle.notify_waiters();
        }
    }
}

impl Shared {
    fn new() -> Self {
        Self {
            leaving: CancellationToken::new(),
            draining: CancellationToken::new(),
            closed: CancellationToken::new(),
            guards: AtomicUsize::new(0),
            idle: Notify::new(),
            vital_ended: watch::Sender::new(None),
        }
    }

    async fn idle(&self) {
        loop {
            // Registered before the count is read, or the last guard's wake could fall between the two.
            let woken = self.idle.notified();
            if self.guards.load(Ordering::Acquire) == 0 {
                return;
            }
            woken.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn waits_for_guards_then_closes() {
        let (drain, signal) = Drain::new();
        let guard = signal.guard();
        let second = guard.clone();
        assert_eq!(drain.unfinished(), 2);
        let worker = signal.clone();
        let work = tokio::spawn(async move {
            worker.draining().await;
            assert!(!worker.is_closed());
            drop(guard);
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(second);
        });
        let started = tokio::time::Instant::now();
        assert!(drain.drain(LONG).await);
        assert_eq!(started.elapsed(), Duration::from_secs(1));
        assert!(signal.is_draining() && signal.is_closed());
        work.await.expect("no panic");
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_forces() {
        let (drain, signal) = Drain::new();
        let _held = signal.guard();
        let waiter = signal.clone();
        let forced = tokio::spawn(async move { waiter.closed().await });
        let started = tokio::time::Instant::now();
        assert!(!drain.drain(LONG).await);
        assert_eq!(started.elapsed(), LONG);
        forced.await.expect("closed woke it");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_running_is_instant() {
        let (drain, _signal) = Drain::new();
        let started = tokio::time::Instant::now();
        assert!(drain.drain(LONG).await);
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn leaving_comes_before_draining_and_with_it() {
        let (drain, signal) = Drain::new();
        assert!(!signal.is_leaving());
        drain.leave();
        signal.leaving().await;
        assert!(signal.is_leaving() && !signal.is_draining());
        let (drain, signal) = Drain::new();
        assert!(drain.drain(LONG).await);
        assert!(signal.is_leaving());
    }

    #[tokio::test]
    async fn dropping_the_drain_closes() {
        let (drain, signal) = Drain::new();
        assert!(!signal.is_draining());
        drop(drain);
        signal.leaving().await;
        signal.draining().await;
        signal.closed().await;
    }

    #[tokio::test(start_paused = true)]
    async fn never_never_fires() {
        let signal = Signal::never();
        assert!(tokio::time::timeout(LONG, signal.draining()).await.is_err());
    }
}
