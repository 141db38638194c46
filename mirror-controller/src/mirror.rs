//! Stage 4: peers' catalogues to local names.
//!
//! ```text
//! catalogues, Links, policies -> state -> desired (one mirror) -> addresses
//!                                  |--> faces  -> gateway's configuration, DNS
//!                                  \--> plan   -> apply (objects; collect says what may go)
//! ```
//!
//! - **In**: the catalog's snapshots and the peers' catalogues.
//! - **Out**: a [`MirrorSet`]; changes of the gateway's configuration; objects.
//! - **Refuses when**: see [`desired`].
//! - **Never does**: act before the catalogues of all linked peers were looked for on disk: a start must not withdraw what
//!   the last run mirrored.
//! - **Numbers**: [`PACE`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use linkspan_proto::names::ClusterName;
use linkspan_runtime::drain::Signal;
use tokio::sync::watch;

use crate::catalog::Snapshot;
use crate::exchange::Peers;
use crate::files;
use crate::saving::Saving;

// Which local address a name has.
pub mod addresses;
// Writes objects.
pub mod apply;
// Which objects may be deleted.
pub mod collect;
// What should be mirrored.
pub mod desired;
// What gateway and DNS see of a mirror.
pub mod faces;
// Objects in the shape of Kubernetes.
pub mod object;
// Wanted against present.
pub mod plan;
// All mirrors, kept up to date.
pub mod state;

mod metrics;

pub use addresses::Addresses;
pub use desired::{MirrorId, Refused, Wanted};
pub use metrics::{Applied, Metrics};
pub use state::{Changes, MirrorSet, State};

/// Between two updates. Changes come in bursts; together with the pace of the exchange this stays well below a second.
pub const PACE: Duration = Duration::from_millis(30);
/// Between two tries to save the addresses.
const SAVE_AGAIN: Duration = Duration::from_secs(5);
/// Updates take at most half of one core, however large the catalogues are.
const SHARE: u32 = 1;

/// What the mirror stage needs from outside.
#[derive(Debug)]
pub struct Context {
    /// Our cluster.
    pub own: ClusterName,
    /// Where addresses come from.
    pub range: IpNet,
    /// `addresses.json`.
    pub addresses: PathBuf,
    /// Whether that can be saved.
    pub saving: Saving,
    /// Figures.
    pub metrics: Metrics,
    /// The end.
    pub signal: Signal,
}

/// Loads the addresses that were given out before.
///
/// # Errors
/// When the file is there and cannot be read or understood: starting without it could move mirrored names to other addresses
/// without a word.
pub fn load_addresses(path: &std::path::Path, range: IpNet) -> io::Result<Addresses> {
    match std::fs::read_to_string(path) {
        Ok(text) => Addresses::parse(&text, range).map_err(|error| {
            let message = format!(
                "{}: {error}; restore it from a copy, or delete it to give mirrored names new addresses",
                path.display()
            );
            io::Error::new(io::ErrorKind::InvalidData, message)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Addresses::new(range)),
        Err(error) => Err(error),
    }
}

/// Keeps all mirrors up to date until the drain. `tell` gets what the gateway must be told.
pub async fn run(
    context: Context,
    mut state: State,
    mut snapshots: watch::Receiver<Snapshot>,
    mut peers: watch::Receiver<Arc<Peers>>,
    sets: watch::Sender<MirrorSet>,
    mut tell: impl FnMut(Changes) + Send,
) {
    let mut failed = false;
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let known = Arc::clone(&peers.borrow_and_update());
        let started = Instant::now();
        // A peer that was linked a moment ago is looked up on disk first.
        if snapshot.peers.keys().all(|cluster| known.contains_key(cluster)) {
            let path = context.addresses.clone();
            let updated = tokio::task::spawn_blocking(move || {
                let changes = state.update(snapshot, known);
                let saved = save(&mut state, &path);
                (state, changes, saved)
            });
            let Ok((kept, changes, saved)) = updated.await else {
                // The state went with the panic, and the vital task ends the process.
                tracing::error!("the update of the mirrors panicked");
                return;
            };
            state = kept;
            failed = saved.is_err();
            context.saving.note("addresses.json", saved);
            let set = state.set();
            context.metrics.updated(&set, state.addresses().load());
            if !changes.is_empty() {
                tracing::debug!(changes = changes.len(), mirrors = set.wanted.len(), "mirrors updated");
            }
            tell(changes);
            // Readiness alone is the gateway's business; whoever writes objects and zones need not look.
            sets.send_if_modified(|current| {
                let differs = !set.is(current);
                *current = set;
                differs
            });
        }
        tokio::time::sleep(PACE.max(started.elapsed() * SHARE)).await;
        let ended = tokio::select! {
            changed = snapshots.changed() => changed.is_err(),
            changed = peers.changed() => changed.is_err(),
            () = tokio::time::sleep(SAVE_AGAIN), if failed => false,
            () = context.signal.draining() => true,
        };
        if ended {
            return;
        }
    }
}

/// Addresses are on disk before anybody hears of them, so that no crash can give one to two names.
fn save(state: &mut State, path: &std::path::Path) -> io::Result<()> {
    let Some(text) = state.addresses().take_changed() else { return Ok(()) };
    let saved = files::write_atomically(path, text.as_bytes(), 0o600);
    if let Err(error) = &saved {
        tracing::error!(path = %path.display(), %error, "the addresses of mirrored names cannot be saved");
        state.addresses().mark_changed();
    }
    saved
}
