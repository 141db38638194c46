//! What the parts of one HTTP exchange share: its record, when it last moved, and whether its request body is wanted.
//!
//! - In: movements and ends, from the task of the request, of its body and of its response.
//! - Out: one record that ends once, an idle clock, a switch for the request body.
//! - Refuses when: nothing moved either way for [`IDLE`](super::IDLE).
//! - Never does: hold its lock across an await.
//! - Numbers: [`CONTINUE_WAIT`] 1 s.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::time::{Instant, Sleep};

use super::IDLE;
use crate::outcome::{Outcome, Record};

/// How long a body whose client asked for `100-continue` is held back when the backend says nothing. RFC 9110 section
/// 10.1.1 lets a client wait for any time; curl waits 1 s and then sends all the same.
pub(crate) const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// Shared by the parts of one exchange.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// `None` once a tunnel has taken it.
    record: Mutex<Option<Record>>,
    began: Instant,
    /// Milliseconds from `began` to the last movement.
    moved: AtomicU64,
    /// The switch of the request body.
    pub(crate) request: Switch,
}

impl Exchange {
    pub(crate) fn new(record: Record, request: Switch) -> Self {
        Self { record: Mutex::new(Some(record)), began: Instant::now(), moved: AtomicU64::new(0), request }
    }

    /// Bytes of the request body moved.
    pub(crate) fn received(&self, bytes: usize) {
        self.moved();
        self.note(|record| record.received(bytes));
    }

    /// Bytes of the response body moved.
    pub(crate) fn sent(&self, bytes: usize) {
        self.moved();
        self.note(|record| record.sent(bytes));
    }

    /// Something moved that is no body byte.
    pub(crate) fn moved(&self) {
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(elapsed, Ordering::Relaxed);
    }

    /// Sets the outcome, if none is set.
    pub(crate) fn ended(&self, outcome: Outcome) {
        self.note(|record| record.ended(outcome));
    }

    /// Fills in the record.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut *self.record.lock().unwrap_or_else(PoisonError::into_inner) {
            change(record);
        }
    }

    /// Takes the record away, for a tunnel that outlives the exchange.
    pub(crate) fn take_record(&self) -> Option<Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// When it is idle for too long, if nothing moves from now on.
    fn due(&self) -> Instant {
        self.began + Duration::from_millis(self.moved.load(Ordering::Relaxed)) + IDLE
    }
}

/// Watches one wait of an exchange. Costs nothing until the first wait.
#[derive(Debug, Default)]
pub(crate) struct IdleTimer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl IdleTimer {
    /// Ready when the exchange is idle for too long.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, exchange: &Exchange) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(exchange.due())));
        loop {
            ready!(sleep.as_mut().poll(cx));
            let due = exchange.due();
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(due);
        }
    }

    /// [`Self::poll`] as a future.
    pub(crate) async fn expired(&mut self, exchange: &Exchange) {
        std::future::poll_fn(|cx| self.poll(cx, exchange)).await;
    }
}

/// Whether the request body may be read.
#[derive(Debug)]
pub(crate) struct Switch {
    state: AtomicU8,
    waker: AtomicWaker,
}

/// What a [`Switch`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Not yet: the client waits for `100 Continue`, and reading would send it one.
    NotYet,
    /// Go on.
    Now,
    /// It has been read to its end.
    Done,
    /// No longer: the exchange is over.
    NoMore,
}

impl Switch {
    /// Closed until [`Self::open`], if `held`.
    pub(crate) fn new(held: bool) -> Self {
        let state = if held { Wanted::NotYet } else { Wanted::Now };
        Self { state: AtomicU8::new(state as u8), waker: AtomicWaker::new() }
    }

    /// The body may be read.
    pub(crate) fn open(&self) {
        self.change(Wanted::NotYet, Wanted::Now);
    }

    /// The body has been read to its end.
    pub(crate) fn done(&self) {
        self.change(Wanted::Now, Wanted::Done);
    }

    /// Nobody wants the rest of the body.
    pub(crate) fn stop(&self) {
        self.change(Wanted::NotYet, Wanted::NoMore);
        self.change(Wanted::Now, Wanted::NoMore);
    }

    pub(crate) fn wanted(&self) -> Wanted {
        match self.state.load(Ordering::Acquire) {
            0 => Wanted::NotYet,
            1 => Wanted::Now,
            2 => Wanted::Done,
            _ => Wanted::NoMore,
        }
    }

    /// [`Self::wanted`]; `cx` is woken when it changes.
    pub(crate) fn poll_wanted(&self, cx: &mut Context<'_>) -> Wanted {
        // Registered before the state is read, or a change between the two would wake nobody.
        self.waker.register(cx.waker());
        self.wanted()
    }

    fn change(&self, from: Wanted, to: Wanted) {
        if self.state.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests;
