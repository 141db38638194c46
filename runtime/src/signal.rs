//! The end of the process, asked for from outside: SIGTERM or SIGINT.
//!
//! The first asks for a drain; a second of either kind ends the process at once, for an operator who will not wait.

use std::fmt;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::task;

/// Which signal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// SIGTERM: a service manager.
    Terminate,
    /// SIGINT: Ctrl-C.
    Interrupt,
}

impl Shutdown {
    /// What a process ended by this signal exits with, by the shell's convention (128 + signal number).
    #[must_use]
    pub const fn exit_code(self) -> i32 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

impl fmt::Display for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}

/// Resolves at the first SIGTERM or SIGINT. From then on a second one exits the process at once.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn shutdown() -> io::Result<Shutdown> {
    let mut signals = Signals::install()?;
    let first = signals.next().await;
    tracing::info!(signal = %first, "shutting down; a second signal ends at once");
    // Detached on purpose: it lives until the process ends.
    drop(task::spawn("second_signal", async move {
        let second = signals.next().await;
        tracing::warn!(signal = %second, "second signal; ending at once");
        std::process::exit(second.exit_code());
    }));
    Ok(first)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> Shutdown {
        tokio::select! {
            _ = self.terminate.recv() => Shutdown::Terminate,
            _ = self.interrupt.recv() => Shutdown::Interrupt,
        }
    }
}
