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
use crate::leader::Leading;
use crate::saving::Saving;

// Local addresses, on a site.
pub mod addresses;
// Writes objects.
pub mod apply;
// Which objects may be deleted.
pub mod collect;
// What clusters disagree about.
pub mod conflicts;
// What should be mirrored.
pub mod desired;
// Writes objects to an API server.
pub mod kubernetes;
// What gateway and DNS see of a mirror.
pub mod faces;
// Where a name is reached.
pub mod front;
// Objects in the shape of Kubernetes.
pub mod object;
// Wanted against present.
pub mod plan;
// Stable assignments.
pub mod pool;
// Ports of the gateways, on Kubernetes.
pub mod ports;
// Whose word counts.
pub mod seniority;
// All mirrors, kept up to date.
pub mod state;

mod metrics;

pub use addresses::Addresses;
pub use desired::{MirrorId, Refused, Wanted};
pub use front::{Front, Fronts};
pub use metrics::{Applied, Metrics};
pub use seniority::Seniority;
pub use state::{Changes, MirrorSet, State};

/// Between two updates. Changes come in bursts; together with the pace of the exchange this stays well below a second.
pub const PACE: Duration = Duration::from_millis(30);
/// Between two tries to save the addresses.
const SAVE_AGAIN: Duration = Duration::from_secs(5);
/// Updates take at most half of one core, however large the catalogues are.
const SHARE: u32 = 1;

/// Beside the addresses: see [`Seniority`].
const SENIORITY: &str = "seniority.json";

/// What the mirror stage needs from outside.
#[derive(Debug)]
pub struct Context {
    /// Our cluster.
    pub own: ClusterName,
    /// `addresses.json`, on a site.
    pub addresses: PathBuf,
    /// How long the first word to the gateways waits for the catalogues of peers of which nothing certain is known. Gateways that
    /// run keep what they were told before; on a site the catalogues are on disk and this is zero.
    pub hold: Duration,
    /// Whether fronts may be given to new names.
    pub leading: Leading,
    /// Whether addresses can be saved, and who exported what first.
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

/// Loads who exported what first, as far as it is known. Without it everybody begins anew, this cluster first.
#[must_use]
pub fn load_seniority(addresses: &std::path::Path) -> Seniority {
    let path = addresses.with_file_name(SENIORITY);
    let loaded = std::fs::read_to_string(&path)
        .and_then(|text| Seniority::parse(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)));
    loaded.unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::error!(path = %path.display(), %error, "which cluster exported what first is not known any more");
        }
        Seniority::default()
    })
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
    let held = tokio::time::Instant::now() + context.hold;
    let mut waiting = Some(Changes::new());
    let mut leading = context.leading.clone();
    let mut failed = false;
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let known = Arc::clone(&peers.borrow_and_update());
        let started = Instant::now();
        // A peer that was linked a moment ago is looked up on disk first.
        if snapshot.peers.keys().all(|cluster| known.contains_key(cluster)) {
            let path = context.addresses.clone();
            state.set_closed(!leading.holds());
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
            failed = saved.iter().any(|(_, result)| result.is_err());
            saved.into_iter().for_each(|(file, result)| context.saving.note(file, result));
            let set = state.set();
            context.metrics.updated(&set, state.fronts().load());
            if !changes.is_empty() {
                tracing::debug!(changes = changes.len(), mirrors = set.wanted.len(), "mirrors updated");
            }
            let all_known = set.known.values().all(|known| *known);
            match &mut waiting {
                Some(first) if !all_known && tokio::time::Instant::now() < held => first.extend(changes),
                Some(first) => {
                    first.extend(changes);
                    tell(std::mem::take(first));
                    waiting = None;
                }
                None => tell(changes),
            }
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
            () = leading.changed() => false,
            () = tokio::time::sleep(SAVE_AGAIN), if failed => false,
            () = context.signal.draining() => true,
            () = tokio::time::sleep_until(held), if waiting.is_some() => false,
        };
        if ended {
            return;
        }
    }
}

/// How saving a file ended.
type Saved = (&'static str, io::Result<()>);

/// Addresses are on disk before anybody hears of them, so that no crash can give one to two names.
fn save(state: &mut State, path: &std::path::Path) -> [Saved; 2] {
    let mut seniority = Ok(());
    if let Some(text) = state.seniority().take_changed() {
        let path = path.with_file_name(SENIORITY);
        seniority = files::write_atomically(&path, text.as_bytes(), 0o600);
        if let Err(error) = &seniority {
            tracing::error!(path = %path.display(), %error, "which cluster exported what first cannot be saved");
            state.seniority().mark_changed();
        }
    }
    let mut addresses = Ok(());
    if let Some(text) = state.fronts().take_changed() {
        addresses = files::write_atomically(path, text.as_bytes(), 0o600);
        if let Err(error) = &addresses {
            tracing::error!(path = %path.display(), %error, "the addresses of mirrored names cannot be saved");
            state.fronts().mark_changed();
        }
    }
    [(SENIORITY, seniority), ("addresses.json", addresses)]
}
