//! All findings about Links, exports and mirrors at one moment, ready to become conditions. Pure.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use linkspan_proto::configuration::{LinkReport, ResourceKind, TransportReason};
use linkspan_proto::names::{ClusterName, ServiceKey};
use linkspan_proto::resources::{API_VERSION, ConditionStatus};
use serde_json::{Map, Value, json};

use crate::catalog::Snapshot;
use crate::configuration::Reports;
use crate::exchange::{Freshness, PeerState, Peers};
use crate::mirror::desired::{MirrorId, Refused, Shape, Wanted, conflict_verdict};
use crate::mirror::kubernetes::Held;
use crate::mirror::{MirrorSet, faces};
use crate::verdict::Verdict;

/// Reasons of a link report that mean that trust is what is wrong, as the gateway spells them.
const TRUST_REASONS: [&str; 13] = [
    "CertificateExpired",
    "CertificateNotYetValid",
    "CertificateUsage",
    "ClusterNameMismatch",
    "InvalidCertificate",
    "InvalidIdentity",
    "InvalidTrustBundle",
    "NameConstraints",
    "NotAGateway",
    "TrustBundleMismatch",
    "TrustDomainConflict",
    "TrustDomainMismatch",
    "UnknownPeer",
];

/// Everything that findings follow from.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) own: ClusterName,
    pub(super) snapshot: Snapshot,
    pub(super) peers: Arc<Peers>,
    pub(super) mirrors: MirrorSet,
    /// On Kubernetes, what is wanted and not written.
    pub(super) held: Held,
    pub(super) reports: Reports,
}

/// What is known about one object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finding {
    /// Relative to the status folder.
    pub(super) file: String,
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) generation: Option<i64>,
    pub(super) verdicts: Vec<Verdict>,
    /// More fields of the status.
    pub(super) more: Map<String, Value>,
}

impl Finding {
    /// Tells findings apart without keeping them: there are tens of thousands where peers export much.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.generation.hash(&mut hasher);
        for verdict in &self.verdicts {
            (verdict.kind, verdict.status.as_str(), &verdict.reason, &verdict.message).hash(&mut hasher);
        }
        // Equal maps have equal texts: their keys are sorted.
        Value::Object(self.more.clone()).to_string().hash(&mut hasher);
        hasher.finish()
    }
}

/// All findings.
pub(super) fn all(inputs: &Inputs) -> Vec<Finding> {
    let rejections = Rejections::of(&inputs.reports);
    let mut findings = objects(inputs);
    findings.extend(mirrors(inputs, &rejections));
    findings
}

/// The findings about objects that users make. Mirrors are ours.
pub(super) fn objects(inputs: &Inputs) -> Vec<Finding> {
    let rejections = Rejections::of(&inputs.reports);
    let mut findings = links(inputs, &rejections);
    findings.extend(exports(inputs, &rejections));
    findings
}

/// What gateways could not use, by kind and name.
struct Rejections<'a>(BTreeMap<(ResourceKind, &'a str), (&'a str, &'a str)>);

impl<'a> Rejections<'a> {
    fn of(reports: &'a Reports) -> Self {
        let all = reports.values().flat_map(|gateway| &gateway.rejections);
        Self(
            all.map(|rejection| {
                let key = (rejection.resource.kind, rejection.resource.name.as_str());
                (key, (rejection.reason.as_str(), rejection.message.as_str()))
            })
            .collect(),
        )
    }

    fn verdict(&self, condition: &'static str, kind: ResourceKind, name: &str) -> Option<Verdict> {
        self.0.get(&(kind, name)).map(|(reason, message)| Verdict::new(condition, false, word(reason), *message))
    }
}

/// A gateway's reason as a condition's: CamelCase, or nothing of it.
fn word(reason: &str) -> String {
    let is_word = !reason.is_empty()
        && reason.len() <= 64
        && reason.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && reason.starts_with(|first: char| first.is_ascii_uppercase());
    if is_word { reason.to_owned() } else { "Other".to_owned() }
}

fn links(inputs: &Inputs, rejections: &Rejections<'_>) -> Vec<Finding> {
    let mut mirrored: BTreeMap<&str, usize> = BTreeMap::new();
    for id in inputs.mirrors.wanted.keys() {
        if let MirrorId::Cluster { cluster, .. } = id {
            *mirrored.entry(cluster.as_str()).or_default() += 1;
        }
    }
    let finding = |name: &String, report: &Arc<crate::catalog::LinkReport>| {
        let mut verdicts = vec![report.verdict.clone()];
        let mut more = Map::new();
        if report.in_force && inputs.snapshot.peers.contains_key(name.as_str()) {
            let states: Vec<&LinkReport> = inputs
                .reports
                .values()
                .filter_map(|gateway| gateway.links.as_ref())
                .flatten()
                .filter(|link| link.cluster.as_str() == name)
                .collect();
            verdicts.extend(connection(inputs, &states));
            if let Some(rejected) = rejections.verdict("TrustValid", ResourceKind::Peer, name) {
                verdicts.retain(|verdict| verdict.kind != "TrustValid");
                verdicts.push(rejected);
            }
            let peer = inputs.peers.get(name.as_str());
            verdicts.extend(catalogue(peer.map(AsRef::as_ref)));
            if let Some(version) = states.iter().find_map(|link| link.version.as_ref()) {
                more.insert("version".to_owned(), json!(linkspan_runtime::text::clean(version)));
            }
            more.insert("services".to_owned(), json!(mirrored.get(name.as_str()).copied().unwrap_or_default()));
        }
        Finding {
            file: format!("links/{name}.yaml"),
            api_version: API_VERSION,
            kind: "Link",
            namespace: String::new(),
            name: name.clone(),
            generation: report.generation,
            verdicts,
            more,
        }
    };
    inputs.snapshot.links.iter().map(|(name, report)| finding(name, report)).collect()
}

/// `Connected` and `TrustValid`, from what the gateways say.
fn connection(inputs: &Inputs, states: &[&LinkReport]) -> [Verdict; 2] {
    if states.is_empty() {
        let (reason, message) = if inputs.reports.is_empty() {
            ("NoGateway", "no gateway of this cluster is connected to the controller")
        } else {
            ("Pending", "the gateway has not reported this link yet")
        };
        return ["Connected", "TrustValid"].map(|kind| Verdict::new(kind, ConditionStatus::Unknown, reason, message));
    }
    if states.iter().any(|link| link.alive) {
        let for_want_of_udp = |link: &&&LinkReport| {
            matches!(link.transport_reason, Some(TransportReason::UdpBlocked | TransportReason::UdpSilent))
                && link.alive
        };
        let mut message = "probes over the link are answered".to_owned();
        if let Some(link) = states.iter().find(for_want_of_udp) {
            message.push_str("; ");
            message.push_str(&link.message);
        }
        return [
            Verdict::new("Connected", true, "Connected", message),
            Verdict::new("TrustValid", true, "Verified", "both sides proved who they are"),
        ];
    }
    // Of several gateways the one with a reason says more than the one without.
    let told = states.iter().find(|link| !link.message.is_empty()).or_else(|| states.first());
    let (reason, message) = told.map_or(("Unreachable", ""), |link| (link.reason.as_str(), link.message.as_str()));
    let trust = if TRUST_REASONS.contains(&reason) {
        Verdict::new("TrustValid", false, word(reason), message)
    } else {
        Verdict::new("TrustValid", ConditionStatus::Unknown, "NotConnected", "it is checked when the link connects")
    };
    [Verdict::new("Connected", false, word(reason), message), trust]
}

/// `CatalogueSynced` and `Stale`.
fn catalogue(peer: Option<&PeerState>) -> [Verdict; 2] {
    let stale = |holds: bool, reason: &str, message: &str| Verdict::new("Stale", holds, reason, message);
    let synced = |status: ConditionStatus, reason: &str, message: String| {
        Verdict::new("CatalogueSynced", status, reason, message)
    };
    let Some(peer) = peer else {
        let waiting = "the peer's catalogue has not come yet".to_owned();
        return [synced(ConditionStatus::Unknown, "Pending", waiting), stale(false, "Fresh", "")];
    };
    let trouble = peer.trouble.as_ref();
    let why = trouble.map_or_else(|| "the peer's controller does not answer".to_owned(), |(_, why)| why.clone());
    let reason = trouble.map_or("Disconnected", |(reason, _)| reason);
    match peer.view.freshness {
        Freshness::Unknown => {
            let status = if trouble.is_some() { ConditionStatus::False } else { ConditionStatus::Unknown };
            let message = if trouble.is_some() { why } else { "the peer's catalogue has not come yet".to_owned() };
            let reason = if trouble.is_some() { reason } else { "Pending" };
            [synced(status, reason, message), stale(false, "NoCatalogue", "there is no catalogue yet")]
        }
        Freshness::Fresh if !peer.view.withheld.is_empty() => {
            let message = format!(
                "the peer removed more than half of its services at once; {} of them stay for 30 s in case it is a mistake",
                peer.view.withheld.len()
            );
            [
                synced(ConditionStatus::False, "MassRemovalDelayed", message),
                stale(false, "Fresh", "the catalogue is current"),
            ]
        }
        Freshness::Fresh if peer.view.synchronised => [
            synced(ConditionStatus::True, "Synced", "both sides agree".to_owned()),
            stale(false, "Fresh", "the catalogue is current"),
        ],
        Freshness::Fresh => [
            synced(ConditionStatus::Unknown, reason, format!("{why}; the last catalogue is in force")),
            stale(false, "Fresh", "the catalogue was confirmed a moment ago"),
        ],
        Freshness::Stale => [
            synced(ConditionStatus::False, reason, why),
            stale(true, "NotConfirmed", "the last good catalogue is in force; its mirrors stay"),
        ],
        Freshness::Drained => [
            synced(ConditionStatus::False, reason, why),
            stale(true, "Drained", "not confirmed for 10 min: no traffic goes there; its mirrors stay"),
        ],
    }
}

fn exports<'a>(inputs: &'a Inputs, rejections: &'a Rejections<'_>) -> impl Iterator<Item = Finding> + 'a {
    inputs.snapshot.exports.iter().map(move |(service, report)| {
        let mut verdicts = report.verdicts.clone();
        if inputs.snapshot.exported.contains_key(service) {
            let none = Default::default();
            verdicts.push(conflict_verdict(inputs.mirrors.conflicts.get(service).unwrap_or(&none)));
        }
        if let Some(rejected) = rejections.verdict("Ready", ResourceKind::Export, &service.to_string()) {
            verdicts.retain(|verdict| verdict.kind != "Ready");
            verdicts.push(rejected);
        }
        let mut more = Map::new();
        if report.by_label {
            more.insert("exportedBy".to_owned(), json!(linkspan_proto::resources::LINKERD_EXPORT_LABEL));
        }
        Finding {
            file: format!("exports/{}.{}.yaml", service.namespace, service.name),
            api_version: "multicluster.x-k8s.io/v1alpha1",
            kind: "ServiceExport",
            namespace: service.namespace.to_string(),
            name: service.name.to_string(),
            generation: report.generation,
            verdicts,
            more,
        }
    })
}

fn mirrors<'a>(inputs: &'a Inputs, rejections: &'a Rejections<'_>) -> impl Iterator<Item = Finding> + 'a {
    let wanted = inputs.mirrors.wanted.values().map(move |wanted| {
        let mut verdicts = wanted.verdicts.clone();
        if let Some(held) = inputs.held.get(&wanted.id) {
            verdicts.retain(|verdict| verdict.kind != held.kind);
            verdicts.push(held.clone());
        }
        verdicts.push(listening(inputs, wanted, rejections));
        verdicts.push(ready(inputs, wanted));
        verdicts.push(stale(inputs, wanted));
        mirror_finding(&wanted.id, &wanted.object, verdicts, mirror_fields(wanted))
    });
    let refused = inputs.mirrors.refused.values().map(|refused: &Arc<Refused>| {
        let fields = Map::from_iter([
            ("hostname".to_owned(), json!(refused.name)),
            ("service".to_owned(), json!(refused.id.service())),
        ]);
        mirror_finding(&refused.id, &refused.object, refused.verdicts.clone(), fields)
    });
    wanted.chain(refused)
}

fn mirror_finding(id: &MirrorId, object: &ServiceKey, verdicts: Vec<Verdict>, more: Map<String, Value>) -> Finding {
    let import = if matches!(id, MirrorId::Clusterset { .. }) { ".clusterset" } else { "" };
    Finding {
        file: format!("mirrors/{}.{}{import}.yaml", object.namespace, object.name),
        api_version: API_VERSION,
        kind: "Mirror",
        namespace: object.namespace.to_string(),
        name: object.name.to_string(),
        generation: None,
        verdicts,
        more,
    }
}

fn mirror_fields(wanted: &Wanted) -> Map<String, Value> {
    let mut fields = Map::from_iter([
        ("hostname".to_owned(), json!(wanted.name)),
        ("service".to_owned(), json!(wanted.id.service())),
        ("clusters".to_owned(), json!(wanted.clusters)),
        (
            "ports".to_owned(),
            json!(
                wanted
                    .ports
                    .iter()
                    .map(|port| json!({
                        "port": port.number,
                        "protocol": port.protocol.as_str(),
                        "name": port.name,
                        "appProtocol": port.app_protocol,
                    }))
                    .collect::<Vec<_>>()
            ),
        ),
    ]);
    match &wanted.shape {
        Shape::Single { front, tiers } => {
            // On Kubernetes the address is the Service's own, and the API server's to give.
            if let Some(address) = front.address() {
                fields.insert("address".to_owned(), json!(address));
            }
            fields.insert("tiers".to_owned(), json!(tiers));
        }
        Shape::Headless { hosts } => {
            let hosts: Vec<_> = hosts
                .iter()
                .map(|host| json!({ "hostname": host.name, "cluster": host.cluster, "address": host.front.address(), "ready": host.ready }))
                .collect();
            fields.insert("endpoints".to_owned(), json!(hosts));
        }
    }
    fields
}

fn listening(inputs: &Inputs, wanted: &Wanted, rejections: &Rejections<'_>) -> Verdict {
    let rejected =
        faces::fronts(wanted).find_map(|(name, _)| rejections.verdict("Listening", ResourceKind::Mirror, name));
    if let Some(rejected) = rejected {
        return rejected;
    }
    if inputs.reports.is_empty() {
        let message = "no gateway of this cluster is connected to the controller";
        return Verdict::new("Listening", ConditionStatus::Unknown, "NoGateway", message);
    }
    if inputs.reports.values().all(|gateway| gateway.acknowledged == 0) {
        let message = "the gateway has not taken over its configuration yet";
        return Verdict::new("Listening", ConditionStatus::Unknown, "Pending", message);
    }
    Verdict::new("Listening", true, "Listening", "the gateway listens at its address")
}

/// Whether anybody serves it.
fn ready(inputs: &Inputs, wanted: &Wanted) -> Verdict {
    let service = wanted.id.service();
    let entry = |cluster: &ClusterName| {
        if *cluster == inputs.own {
            return inputs.snapshot.exported.get(service);
        }
        let peer = inputs.peers.get(cluster)?;
        // What is withheld is kept for its name and address alone: the peer refuses calls to what it no longer exports.
        let serves = peer.view.freshness != Freshness::Drained && !peer.view.withheld.contains(service);
        peer.view.entries.get(service).filter(|_| serves)
    };
    let serves = wanted.clusters.iter().filter_map(entry).any(|entry| {
        if entry.headless {
            entry.endpoints.iter().any(|(_, ready)| *ready)
        } else {
            entry.ports.iter().any(|port| port.ready > 0)
        }
    });
    if serves {
        Verdict::new("Ready", true, "Ready", "at least one cluster has ready endpoints")
    } else if let Some(removed) = removed(inputs, wanted) {
        removed
    } else {
        let clusters: Vec<_> = wanted.clusters.iter().map(ClusterName::as_str).collect();
        Verdict::new("Ready", false, "NoReadyEndpoints", format!("no endpoint is ready in {}", clusters.join(", ")))
    }
}

/// That nobody serves it because a peer has removed it with so many others that its name stays for a while.
fn removed(inputs: &Inputs, wanted: &Wanted) -> Option<Verdict> {
    let service = wanted.id.service();
    let withholds =
        |cluster: &&ClusterName| inputs.peers.get(*cluster).is_some_and(|peer| peer.view.withheld.contains(service));
    let clusters: Vec<_> = wanted.clusters.iter().filter(withholds).map(ClusterName::as_str).collect();
    let message = format!(
        "{} removed it, with more than half of its services at once; name and address stay for 30 s in case it is a mistake",
        clusters.join(" and ")
    );
    (!clusters.is_empty()).then(|| Verdict::new("Ready", false, "RemovalDelayed", message))
}

/// Whether some of what it is made from is not certain any more.
fn stale(inputs: &Inputs, wanted: &Wanted) -> Verdict {
    let lost: Vec<_> = wanted
        .clusters
        .iter()
        .filter(|cluster| inputs.peers.get(*cluster).is_some_and(|peer| peer.view.freshness >= Freshness::Stale))
        .map(ClusterName::as_str)
        .collect();
    if lost.is_empty() {
        return Verdict::new("Stale", false, "Fresh", "the catalogues are current");
    }
    let message = format!("the catalogue of {} was not confirmed lately; the mirror stays", lost.join(", "));
    Verdict::new("Stale", true, "NotConfirmed", message)
}
