//! The DNS zone, made anew from the mirrors whenever what DNS answers changes.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use linkspan_runtime::drain::Signal;
use tokio::sync::watch;

use crate::dns::Zone;
use crate::mirror::{MirrorSet, faces};

/// Making zones takes at most half of one core, however many names there are.
const PACE: Duration = Duration::from_millis(20);

/// Keeps a zone up to date.
pub(super) struct Feed {
    zone: Arc<ArcSwap<Zone>>,
    serial: u32,
}

impl Feed {
    pub(super) fn new() -> Self {
        // Seconds since 1970 grow across restarts, as serial numbers should; they fit until 2106.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let serial = u32::try_from(now).unwrap_or(u32::MAX / 2);
        Self { zone: Arc::new(ArcSwap::from_pointee(Zone::build(Vec::new(), serial))), serial }
    }

    pub(super) fn current(&self) -> Arc<ArcSwap<Zone>> {
        Arc::clone(&self.zone)
    }

    pub(super) async fn run(mut self, mut sets: watch::Receiver<MirrorSet>, signal: Signal) {
        let mut served = 0;
        loop {
            let set = sets.borrow_and_update().clone();
            let started = Instant::now();
            if set.dns_version != served {
                served = set.dns_version;
                self.serial = self.serial.wrapping_add(1);
                let serial = self.serial;
                let built = tokio::task::spawn_blocking(move || {
                    Zone::build(set.wanted.values().map(|wanted| faces::dns(wanted)).collect(), serial)
                });
                let Ok(zone) = built.await else {
                    tracing::error!("making the DNS zone panicked");
                    return;
                };
                self.zone.store(Arc::new(zone));
            }
            tokio::time::sleep(PACE.max(started.elapsed())).await;
            tokio::select! {
                changed = sets.changed() => if changed.is_err() { return },
                () = signal.draining() => return,
            }
        }
    }
}
