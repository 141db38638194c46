//! The one place that spawns.
//!
//! - In: a static name and a future.
//! - Out: tokio's handle. The future runs in a span of that name; a panic is counted under that name and logged.
//! - Never does: let a panic leave its task. One bad stream costs that stream.
//!
//! A *vital* task is one whose end means that the process no longer does its work: the listener of the link, the watch.
//! Its end is reported to the [`Drain`](crate::drain::Drain), whose owner ends the process.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::task::JoinHandle;
use tracing::Instrument;

use crate::drain::Signal;

/// Panics by task name. Process-wide, because a panic is the process's business and tasks are spawned in places that
/// know no registry; the names are `&'static str`s of our own sources, so the map is bounded.
static PANICS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// Tasks that have begun and not ended. Process-wide for the same reason.
static ALIVE: AtomicU64 = AtomicU64::new(0);

/// Runs `future` as a task of this name on the current runtime.
///
/// Dropping the handle detaches the task: give it a [`Signal`] or keep the handle.
#[allow(clippy::disallowed_methods, reason = "the one place that may")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(Watched { name, future, _alive: Alive::new() }.instrument(span(name)))
}

/// Runs a task whose end ends the process.
///
/// When `future` returns or panics before the drain has begun, [`Drain::vital_ended`](crate::drain::Drain::vital_ended)
/// resolves with this name.
pub fn vital<F>(name: &'static str, signal: &Signal, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let vital = Vital { name, signal: signal.clone() };
    spawn(name, async move {
        let output = future.await;
        drop(vital);
        output
    })
}

/// How many tasks have panicked since the process began, by name.
#[must_use]
pub fn panics() -> BTreeMap<&'static str, u64> {
    PANICS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// How many tasks there are now.
#[must_use]
pub fn alive() -> u64 {
    ALIVE.load(Ordering::Relaxed)
}

/// Lets hyper spawn through [`spawn`], under one name.
#[derive(Clone, Copy)]
pub struct Executor(pub &'static str);

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Executor").field(&self.0).finish()
    }
}

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        // Detached by hyper's contract: it ends with the connection that it drives.
        drop(spawn(self.0, future));
    }
}

fn span(name: &'static str) -> tracing::Span {
    tracing::debug_span!("task", name)
}

pin_project! {
    /// A task's future. No async fn: that would hold the future twice, once as argument and once pinned, and futures of
    /// the data path are several kilobytes.
    struct Watched<F> {
        name: &'static str,
        #[pin]
        future: F,
        _alive: Alive,
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        // Lives for one poll only: a task that is merely dropped while its thread unwinds has not panicked.
        let _watch = Watch { name: this.name };
        this.future.poll(cx)
    }
}

/// Counts a task for as long as its future is there.
struct Alive;

impl Alive {
    fn new() -> Self {
        ALIVE.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts on the way out of a panic: tokio catches the panic itself, but tells only the holder of the handle.
struct Watch {
    name: &'static str,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *PANICS.lock().unwrap_or_else(PoisonError::into_inner).entry(self.name).or_default() += 1;
            tracing::error!(task = self.name, "task panicked; its work is lost, everything else goes on");
        }
    }
}

struct Vital {
    name: &'static str,
    signal: Signal,
}

impl Drop for Vital {
    fn drop(&mut self) {
        if !self.signal.is_draining() {
            tracing::error!(task = self.name, "vital task ended; the process will end");
            self.signal.report_vital_end(self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::Drain;

    #[tokio::test]
    async fn a_panic_costs_one_task_and_is_counted() {
        let bad = spawn("test_bad_stream", async { panic!("injected") });
        let good = spawn("test_good_stream", async { 7 });
        assert!(bad.await.expect_err("panicked").is_panic());
        assert_eq!(good.await.expect("unharmed"), 7);
        assert_eq!(panics().get("test_bad_stream"), Some(&1));
        assert_eq!(panics().get("test_good_stream"), None);
    }

    #[tokio::test]
    async fn a_panic_after_an_await_is_counted_too() {
        let bad = spawn("test_late_panic", async {
            tokio::task::yield_now().await;
            panic!("injected");
        });
        assert!(bad.await.expect_err("panicked").is_panic());
        assert_eq!(panics().get("test_late_panic"), Some(&1));
    }

    #[test]
    fn a_future_is_held_once() {
        let future = async {
            let large = [0u8; 4096];
            tokio::task::yield_now().await;
            std::hint::black_box(large);
        };
        let alone = size_of_val(&future);
        let watched = size_of_val(&Watched { name: "test", future, _alive: Alive::new() });
        assert!(watched <= alone + 32, "{watched} bytes for {alone}");
    }

    #[tokio::test]
    async fn a_vital_task_reports_its_end() {
        let (drain, signal) = Drain::new();
        let handle = vital("test_vital", &signal, async {});
        assert_eq!(drain.vital_ended().await, "test_vital");
        handle.await.expect("no panic");
    }

    #[tokio::test]
    async fn a_vital_task_reports_its_panic() {
        let (drain, signal) = Drain::new();
        let handle = vital("test_vital_panic", &signal, async { panic!("injected") });
        assert_eq!(drain.vital_ended().await, "test_vital_panic");
        assert!(handle.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_vital_task_may_end_while_draining() {
        let (drain, signal) = Drain::new();
        let stop = signal.clone();
        let handle = vital("test_vital_drain", &signal, async move { stop.draining().await });
        assert!(drain.drain(std::time::Duration::from_secs(1)).await);
        handle.await.expect("no panic");
        let waited = tokio::time::timeout(std::time::Duration::from_secs(1), drain.vital_ended()).await;
        assert!(waited.is_err());
    }
}
