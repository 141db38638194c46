//! How much moved and when: the counters of a record, and the idle limit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use linkspan_proto::refusal::Refusal;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Bounds, Socket, TELL_EVERY};
use crate::outcome::Record;

/// Bytes and time of a running relay; both directions write, the watch reads.
pub(super) struct Meter {
    begun: Instant,
    pub(super) from_socket: AtomicU64,
    pub(super) to_socket: AtomicU64,
    /// Milliseconds since `begun` of the last byte.
    last: AtomicU64,
    /// The watch sleeps until the idle limit and wants to be woken by the next byte.
    silent: AtomicBool,
    wake: Notify,
}

impl Meter {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            from_socket: AtomicU64::new(0),
            to_socket: AtomicU64::new(0),
            last: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    pub(super) fn moved(&self, counter: &AtomicU64, bytes: usize) {
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
        if self.silent.swap(false, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    /// Resolves when nothing moved for the idle limit, or what moves is no longer allowed; tells the record what moved.
    pub(super) async fn watch(&self, bounds: Bounds<'_>, socket: Socket, record: &mut Record) -> Refusal {
        let idle = bounds.idle;
        let mut gone = None;
        let mut revoked = || bounds.review.and_then(|review| review.revoked(&mut gone));
        loop {
            let limit = self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed)) + idle;
            let now = Instant::now();
            if now >= limit {
                return Refusal::Idle;
            }
            if self.tell(socket, record) {
                if let Some(why) = revoked() {
                    return why;
                }
                // It moves: look again soon.
                tokio::time::sleep_until(limit.min(now + TELL_EVERY)).await;
            } else {
                // It is silent: one timer, at the limit. A byte that comes between the look above and this line is
                // told a little later, at the next byte or at the end.
                self.silent.store(true, Ordering::Relaxed);
                tokio::select! {
                    () = tokio::time::sleep_until(limit) => {}
                    () = self.wake.notified() => {
                        // It may have been silent for days.
                        if let Some(why) = revoked() {
                            return why;
                        }
                        tokio::time::sleep(TELL_EVERY.min(idle)).await;
                    }
                }
            }
        }
    }

    /// Moves what was counted into the record; says whether there was anything.
    pub(super) fn tell(&self, socket: Socket, record: &mut Record) -> bool {
        let from = usize::try_from(self.from_socket.swap(0, Ordering::Relaxed)).unwrap_or(usize::MAX);
        let to = usize::try_from(self.to_socket.swap(0, Ordering::Relaxed)).unwrap_or(usize::MAX);
        let (received, sent) = match socket {
            Socket::Client => (from, to),
            Socket::Backend => (to, from),
        };
        record.received(received);
        record.sent(sent);
        record.flush();
        from + to > 0
    }
}
