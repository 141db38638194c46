//! The gateway's part of the admin server.

use std::collections::BTreeMap;
use std::sync::Arc;

use linkspan_proto::configuration::{Resource, ResourceKind};
use linkspan_runtime::admin::Admin;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::config::Config;
use crate::discovery::Snapshot;
use crate::link::Links;
use crate::listener::Board;

/// Adds `/links`, `/mirrors` and the gateway's part of `/config`.
pub(super) fn register(
    admin: &Admin,
    config: &Config,
    links: &Links,
    board: &Arc<Board>,
    snapshots: &watch::Receiver<Arc<Snapshot>>,
) {
    let links = links.clone();
    admin.route("/links", move |_query| {
        let reports = links.reports();
        async move { Ok(serde_json::to_value(reports)?) }
    });
    let board = Arc::clone(board);
    admin.route("/mirrors", move |_query| {
        let mirrors = board.mirrors();
        async move { Ok(serde_json::to_value(mirrors)?) }
    });
    let (config, snapshots) = (config.clone(), snapshots.clone());
    admin.config("gateway", move |_query| {
        let shown = show(&config, &snapshots.borrow());
        async move { Ok(shown?) }
    });
}

/// The resolved configuration and every resource. There are no secrets in either: keys never leave the process, and trust
/// bundles are public.
fn show(config: &Config, snapshot: &Snapshot) -> Result<Value, serde_json::Error> {
    let mut by_kind: BTreeMap<ResourceKind, Vec<&Resource>> = BTreeMap::new();
    for (key, resource) in &snapshot.resources {
        by_kind.entry(key.kind).or_default().push(resource);
    }
    Ok(json!({
        "resolved": serde_json::to_value(config)?,
        "generation": snapshot.generation,
        "resources": by_kind.into_values().flatten().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?,
    }))
}
