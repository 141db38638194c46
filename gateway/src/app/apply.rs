//! Puts configurations into force: one snapshot after the other, to every stage.

use std::sync::Arc;
use std::time::Duration;

use linkspan_proto::configuration::{Peer, Resource};
use linkspan_proto::names::ClusterName;
use linkspan_runtime::readiness;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::context::Gateway;
use crate::discovery::{Rejections, Snapshot};
use crate::link::{Links, Observer};
use crate::listener::Bindings;
use crate::metrics::{Key, Metrics};
use crate::mtls;
use crate::outcome::{Direction, Loss};

/// How often the figures of links go into the metrics.
const OBSERVE_EVERY: Duration = Duration::from_secs(1);

/// Follows the controller's snapshots.
pub(super) struct Apply {
    pub(super) gateway: Arc<Gateway>,
    pub(super) metrics: Metrics,
    pub(super) bindings: watch::Sender<Arc<Bindings>>,
    pub(super) rejections: Rejections,
    pub(super) applied: watch::Sender<u64>,
    /// Ready with the first configuration.
    pub(super) configured: readiness::Handle,
}

impl Apply {
    /// Runs until the source of snapshots is gone.
    pub(super) async fn run(self, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        while snapshots.changed().await.is_ok() {
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            self.apply(&snapshot).await;
            self.configured.ready();
        }
    }

    async fn apply(&self, snapshot: &Arc<Snapshot>) {
        // Names first: whatever is carried under the new table is counted under its own name.
        self.metrics.configure(snapshot);
        let table = self.gateway.table.load().next(snapshot, Instant::now());
        let bindings = Arc::clone(table.bindings());
        self.gateway.table.store(Arc::new(table));
        self.bindings.send_replace(bindings);
        let peers: Vec<Peer> = snapshot
            .resources()
            .filter_map(|resource| match resource {
                Resource::Peer(peer) => Some(peer.clone()),
                _ => None,
            })
            .collect();
        let rejected = self.gateway.links.configure(&peers).await;
        for rejection in &rejected {
            tracing::warn!(peer = rejection.resource.name, reason = rejection.reason, "{}", rejection.message);
        }
        self.rejections.set("link", rejected);
        tracing::info!(
            generation = snapshot.generation,
            resources = snapshot.resources.len(),
            peers = peers.len(),
            "configuration in force"
        );
        // Also when the number is the same: a controller that was restarted counts anew and waits for its answer.
        self.applied.send_replace(snapshot.generation);
    }
}

/// Believes local clients of the mTLS port by the cluster's own roots, whenever those change.
pub(super) async fn follow_bundle(server: Arc<mtls::Server>, mut bundle: watch::Receiver<Option<Arc<str>>>) {
    loop {
        let present = bundle.borrow_and_update().clone();
        if let Some(present) = present
            && let Err(error) = server.trust(&present)
        {
            tracing::error!(%error, "the cluster's own trust bundle cannot be used; the last good one stays");
        }
        if bundle.changed().await.is_err() {
            return;
        }
    }
}

/// Tells the routes whenever a link's health or the configuration changes, and when a tier's time is over. Runs until the
/// links or the configurations end.
pub(super) async fn settle_tiers(gateway: Arc<Gateway>, mut in_force: watch::Receiver<u64>) {
    let mut changes = gateway.links.changes();
    loop {
        let due = gateway.table.load().settle(&gateway.links, Instant::now());
        let due = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            changed = in_force.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// Shows the links' figures as metrics. Runs until dropped.
pub(super) async fn observe_links(links: Links, metrics: Metrics) {
    let mut changes = links.changes();
    let mut ticks = tokio::time::interval(OBSERVE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = changes.changed() => if changed.is_err() {
                return;
            },
        }
        metrics.links().observe(&links.reports());
    }
}

/// Counts probes and packets in the metrics.
pub(super) struct CountLinks(pub(super) Metrics);

impl Observer for CountLinks {
    fn probe(&self, peer: &ClusterName, answered: bool) {
        self.0.links().peer(peer).probe(answered);
    }

    fn packets(&self, peer: &ClusterName, sent: u64, lost: u64) {
        self.0.links().peer(peer).packets(sent, lost);
    }

    fn lost(&self, peer: &ClusterName, direction: Direction, why: Loss, count: u64) {
        if count > 0 {
            let key = Key { direction, peer: Some(peer.clone()), service: None, port: 0 };
            self.0.handle(&key).udp_lost(why, count);
        }
    }
}
