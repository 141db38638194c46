//! What the admin port shows of the controller.

use std::sync::Arc;

use linkspan_proto::names::ServiceKey;
use linkspan_runtime::admin::{Admin, RouteError};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::catalog::Snapshot;
use crate::config::Config;
use crate::configuration::{Reports, Store};
use crate::exchange::store::EntryText;
use crate::exchange::{Entries, PeerState, Peers};
use crate::leader::Leading;
use crate::mirror::MirrorSet;
use crate::mirror::kubernetes::Held;
use crate::saving::Saving;
use crate::verdict::Verdict;
use crate::watch::Problem;

/// What the routes read.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    pub(super) leading: Leading,
    pub(super) snapshots: watch::Receiver<Snapshot>,
    pub(super) peers: watch::Receiver<Arc<Peers>>,
    pub(super) mirrors: watch::Receiver<MirrorSet>,
    pub(super) held: watch::Receiver<Held>,
    pub(super) reports: watch::Receiver<Reports>,
    pub(super) problems: watch::Receiver<Arc<Vec<Problem>>>,
    pub(super) store: Store,
    pub(super) saving: Saving,
}

/// `/catalogue`: what we export. `/peers`: what peers export, and how current it is; `?cluster=west` with its entries.
/// `/manifests`: what is wrong with them. `/refused`: mirrors that are not made, and why. `/unsaved`: what cannot be saved in the
/// state folder. `/config` gets a part of its own.
pub(super) fn register(admin: &Admin, config: &Config, sources: &Sources) {
    let own = config.cluster.clone();
    let from = sources.clone();
    admin.route("/catalogue", move |_| {
        let refused = standing_by(&from);
        let snapshot = from.snapshots.borrow().clone();
        let own = own.clone();
        async move {
            refused.map_or(Ok(()), Err)?;
            Ok(json!({ "cluster": own, "entries": entries(&snapshot.exported) }))
        }
    });
    let from = sources.clone();
    admin.route("/peers", move |query| {
        let refused = standing_by(&from);
        let peers = Arc::clone(&from.peers.borrow());
        let wanted = query.get("cluster").map(ToOwned::to_owned);
        async move {
            refused.map_or(Ok(()), Err)?;
            match wanted {
                None => Ok(Value::Array(peers.iter().map(|(cluster, peer)| summary(cluster.as_str(), peer)).collect())),
                Some(cluster) => whole(&peers, &cluster),
            }
        }
    });
    let from = sources.clone();
    admin.route("/manifests", move |_| {
        let refused = standing_by(&from);
        let problems = Arc::clone(&from.problems.borrow());
        async move {
            refused.map_or(Ok(()), Err)?;
            Ok(serde_json::to_value(problems.as_ref())?)
        }
    });
    let from = sources.clone();
    admin.route("/refused", move |_| {
        let absent = standing_by(&from);
        let held = Arc::clone(&from.held.borrow());
        let refused = unmade(&from.mirrors.borrow(), &held);
        async move {
            absent.map_or(Ok(()), Err)?;
            Ok(Value::Array(refused))
        }
    });
    let from = sources.clone();
    admin.route("/unsaved", move |_| {
        let refused = standing_by(&from);
        let failures = from.saving.failures();
        async move {
            refused.map_or(Ok(()), Err)?;
            Ok(serde_json::to_value(failures)?)
        }
    });
    register_config(admin, config.clone(), sources.clone());
}

fn register_config(admin: &Admin, config: Config, from: Sources) {
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
        let (leads, leader) = (from.leading.holds(), from.leading.holder());
        async move {
            Ok(json!({
                "config": config?,
                "links": links,
                "mirrors": mirrors,
                "refusedMirrors": refused,
                "generation": generation,
                "leads": leads,
                "leader": leader,
                "gateways": gateways,
            }))
        }
    });
}

/// Mirrors that are not made: those that cannot exist, and on Kubernetes those whose namespace is not there, whose name
/// somebody else has, or which the API server refuses.
fn unmade(set: &MirrorSet, held: &Held) -> Vec<Value> {
    let refused = set.refused.values();
    let refused = refused.map(|one| mirror(&one.object, &one.name, one.id.service(), one.verdicts.iter()));
    let held = held.iter().filter_map(|(id, verdict)| {
        let wanted = set.wanted.get(id)?;
        let others = wanted.verdicts.iter().filter(|other| other.kind != verdict.kind);
        Some(mirror(&wanted.object, &wanted.name, wanted.id.service(), others.chain([verdict])))
    });
    refused.chain(held).collect()
}

/// As the status of a mirror that exists is written.
fn mirror<'v>(
    object: &ServiceKey,
    hostname: &str,
    service: &ServiceKey,
    verdicts: impl Iterator<Item = &'v Verdict>,
) -> Value {
    let conditions = verdicts.map(|verdict| {
        json!({
            "type": verdict.kind,
            "status": verdict.status.as_str(),
            "reason": verdict.reason,
            "message": verdict.message,
        })
    });
    json!({
        "kind": "Mirror",
        "metadata": { "namespace": object.namespace, "name": object.name },
        "status": {
            "hostname": hostname,
            "service": service,
            "conditions": conditions.collect::<Vec<_>>(),
        },
    })
}

/// Why a controller that was not told anything yet does not answer: an empty answer would look like an empty cluster.
fn standing_by(sources: &Sources) -> Option<RouteError> {
    if sources.leading.holds() || *sources.store.subscribe().borrow() > 0 {
        return None;
    }
    let leader = sources.leading.holder().unwrap_or_else(|| "nobody yet".to_owned());
    Some(RouteError::Unavailable(format!("this controller stands by; the one that leads, and knows, is {leader}")))
}

fn entries(entries: &Entries) -> Value {
    let texts: Vec<_> = entries.values().map(|entry| EntryText::from(entry.as_ref())).collect();
    serde_json::to_value(texts).unwrap_or_default()
}

/// One peer with its catalogue.
fn whole(peers: &Peers, cluster: &str) -> Result<Value, RouteError> {
    let peer = peers.get(cluster).ok_or_else(|| RouteError::NotFound(format!("{cluster} is not linked")))?;
    let mut all = summary(cluster, peer);
    all["catalogue"] = entries(&peer.view.entries);
    Ok(all)
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

#[cfg(test)]
mod tests {
    use linkspan_proto::names::ClusterName;

    use super::*;
    use crate::mirror::desired::{MirrorId, Refused};
    use crate::testkit::{key, wanted};

    #[test]
    fn a_mirror_that_cannot_exist_reads_like_one_that_does() {
        let refused = Refused {
            id: MirrorId::Cluster { cluster: ClusterName::parse("west").unwrap(), service: key("shop/web") },
            object: key("shop/web-west"),
            name: "web-west.shop.svc.cluster.local".to_owned(),
            verdicts: vec![Verdict::new("Accepted", false, "NameTaken", "there is a Service of that name")],
            wants_front: false,
        };
        let refused = Arc::new([(refused.id.clone(), Arc::new(refused))].into());
        let shown = unmade(&MirrorSet { refused, ..MirrorSet::default() }, &Held::default());
        assert_eq!(shown[0]["metadata"], json!({ "namespace": "shop", "name": "web-west" }));
        assert_eq!(shown[0]["status"]["service"], "shop/web");
        assert_eq!(
            shown[0]["status"]["conditions"],
            json!([{
                "type": "Accepted",
                "status": "False",
                "reason": "NameTaken",
                "message": "there is a Service of that name",
            }])
        );
    }

    /// No object of it is there to carry a condition.
    #[test]
    fn a_mirror_whose_namespace_is_not_there_is_shown_with_the_reason() {
        let web = wanted("shop/web");
        let absent = Verdict::new("Accepted", false, "NamespaceAbsent", "no namespace shop");
        let held = Arc::new([(web.id.clone(), absent)].into());
        let mut set = MirrorSet::default();
        assert!(unmade(&set, &held).is_empty());
        let object = web.object.clone();
        set.wanted = Arc::new([(web.id.clone(), Arc::new(web))].into());
        let shown = unmade(&set, &held);
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0]["metadata"], json!({ "namespace": "shop", "name": object.name }));
        let conditions = shown[0]["status"]["conditions"].as_array().unwrap();
        let accepted: Vec<_> = conditions.iter().filter(|condition| condition["type"] == "Accepted").collect();
        assert!(accepted.len() == 1 && accepted[0]["reason"] == "NamespaceAbsent", "{conditions:?}");
    }
}
