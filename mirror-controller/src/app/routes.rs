//! What the admin port shows of the controller.

use std::sync::Arc;

use linkspan_runtime::admin::{Admin, RouteError};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::catalog::Snapshot;
use crate::config::Config;
use crate::configuration::{Reports, Store};
use crate::exchange::store::EntryText;
use crate::exchange::{Entries, PeerState, Peers};
use crate::mirror::MirrorSet;
use crate::saving::Saving;
use crate::watch::Problem;

/// What the routes read.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    pub(super) snapshots: watch::Receiver<Snapshot>,
    pub(super) peers: watch::Receiver<Arc<Peers>>,
    pub(super) mirrors: watch::Receiver<MirrorSet>,
    pub(super) reports: watch::Receiver<Reports>,
    pub(super) problems: watch::Receiver<Arc<Vec<Problem>>>,
    pub(super) store: Store,
    pub(super) saving: Saving,
}

/// `/catalogue`: what we export. `/peers`: what peers export, and how current it is; `?cluster=west` with its entries.
/// `/manifests`: what is wrong with them. `/unsaved`: what cannot be saved in the state folder. `/config` gets a part of its own.
pub(super) fn register(admin: &Admin, config: &Config, sources: &Sources) {
    let own = config.cluster.clone();
    let from = sources.clone();
    admin.route("/catalogue", move |_| {
        let snapshot = from.snapshots.borrow().clone();
        let own = own.clone();
        async move { Ok(json!({ "cluster": own, "entries": entries(&snapshot.exported) })) }
    });
    let from = sources.clone();
    admin.route("/peers", move |query| {
        let peers = Arc::clone(&from.peers.borrow());
        let wanted = query.get("cluster").map(ToOwned::to_owned);
        async move {
            match wanted {
                None => Ok(Value::Array(peers.iter().map(|(cluster, peer)| summary(cluster.as_str(), peer)).collect())),
                Some(cluster) => {
                    let peer = peers
                        .get(cluster.as_str())
                        .ok_or_else(|| RouteError::NotFound(format!("{cluster} is not linked")))?;
                    let mut all = summary(&cluster, peer);
                    all["catalogue"] = entries(&peer.view.entries);
                    Ok(all)
                }
            }
        }
    });
    let from = sources.clone();
    admin.route("/manifests", move |_| {
        let problems = Arc::clone(&from.problems.borrow());
        async move { Ok(serde_json::to_value(problems.as_ref())?) }
    });
    let saving = sources.saving.clone();
    admin.route("/unsaved", move |_| {
        let failures = saving.failures();
        async move { Ok(serde_json::to_value(failures)?) }
    });
    let config = config.clone();
    let from = sources.clone();
    admin.config("controller", move |_| {
        let config = serde_json::to_value(&config);
        let links: Vec<_> = from.snapshots.borrow().links.keys().cloned().collect();
        let (mirrors, refused) = {
            let set = from.mirrors.borrow();
            (set.wanted.len(), set.refused.len())
        };
        let gateways: Vec<_> = from
            .reports
            .borrow()
            .iter()
            .map(|(boot_id, gateway)| json!({ "bootId": boot_id, "version": gateway.version, "generation": gateway.acknowledged }))
            .collect();
        let generation = *from.store.subscribe().borrow();
        async move {
            Ok(json!({
                "config": config?,
                "links": links,
                "mirrors": mirrors,
                "refusedMirrors": refused,
                "generation": generation,
                "gateways": gateways,
            }))
        }
    });
}

fn entries(entries: &Entries) -> Value {
    let texts: Vec<_> = entries.values().map(|entry| EntryText::from(entry.as_ref())).collect();
    serde_json::to_value(texts).unwrap_or_default()
}

fn summary(cluster: &str, peer: &PeerState) -> Value {
    let (epoch, version, hash) = match peer.view.verified {
        Some((epoch, version, hash)) => (Some(epoch), Some(version), Some(hex(&hash))),
        None => (None, None, None),
    };
    json!({
        "cluster": cluster,
        "connected": peer.connected,
        "synchronised": peer.view.synchronised,
        "freshness": peer.view.freshness,
        "entries": peer.view.entries.len(),
        "withheld": peer.view.withheld.len(),
        "epoch": epoch,
        "version": version,
        "hash": hash,
        "lastSyncUnix": peer.confirmed_unix,
        "reason": peer.trouble.as_ref().map(|(reason, _)| reason),
        "message": peer.trouble.as_ref().map(|(_, why)| why),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
