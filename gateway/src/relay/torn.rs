//! The kernel tells of a reset once, to whoever uses the socket next. If that was a write, whoever reads afterwards sees an
//! end in order: of a torso.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a write to a socket has taken the word of its reset away from those who read from it.
#[derive(Debug, Default)]
pub(crate) struct Torn(AtomicBool);

impl Torn {
    /// A write has failed. `EPIPE` says that the other end had sent its FIN before (Linux, `tcp_reset` in `CLOSE_WAIT`), so what
    /// it said is whole; or that another reader knows already.
    pub(crate) fn by_write(&self, error: &io::Error) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Whether an end that is read now is none.
    pub(crate) fn is_torn(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
