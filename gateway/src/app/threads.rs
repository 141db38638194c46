//! Threads of the gateway, each with a runtime of its own.
//!
//! | thread | what runs on it |
//! |---|---|
//! | `gateway-N` | worker N: its accept sockets, its QUIC connections, the streams of both |
//! | `gateway-control` | drivers of links and their probes, the controller's stream, certificates, binding of sockets |
//! | the caller's | the admin server |
//!
//! A busy worker delays neither another worker nor the probes.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// Tasks that ignore the end of their runtime have so long before it is dropped under them.
const SHUTDOWN: Duration = Duration::from_millis(200);

/// A thread with a runtime.
#[derive(Debug)]
pub(super) struct Thread {
    pub(super) runtime: Handle,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl Thread {
    /// Starts a thread with a current-thread runtime.
    pub(super) fn start(name: String) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (started, starting) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(name).spawn(move || {
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    // The receiver waits for exactly one message.
                    drop(started.send(Err(error)));
                    return;
                }
            };
            drop(started.send(Ok(runtime.handle().clone())));
            runtime.block_on(stopped.cancelled());
            runtime.shutdown_timeout(SHUTDOWN);
        })?;
        let runtime = starting.recv().map_err(|_| io::Error::other("the thread ended at once"))??;
        Ok(Self { runtime, stop, thread: Some(thread) })
    }

    /// Asks the thread to end; [`Self::join`] waits for it.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits for the thread's end.
    pub(super) fn join(mut self) {
        self.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread of the gateway panicked");
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // An unfinished start or an App that is dropped: the threads end by themselves.
        self.stop.cancel();
    }
}
