//! What should be mirrored: from catalogues and local policy to wanted mirrors. Pure.
//!
//! Two kinds. A **cluster mirror** `<service>-<cluster>` stands for one service of one peer. A **clusterset import**
//! `<service>` stands for that service in all clusters that export it, this one included, by the rules of the
//! multi-cluster services API. What clusters say about one service may differ; then local precedence decides (S-40, see
//! [`super::seniority`]). Nothing that a peer sends decides about another.
//!
//! - **In**: entries of catalogues, which carry no addresses; Links, traffic policies and local names.
//! - **Out**: [`Wanted`] or a refusal with its reason, and what conflicts.
//! - **Refuses when**: the name is reserved, a local Service has it, no port of it can be carried, no address or port is free.
//! - **Never does**: copy anything from a peer but ports, protocols, and labels and annotations that command nobody (S-39),
//!   or use an address that did not come from our own range (S-38).
//! - **Numbers**: [`NAME_MAX`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use linkspan_proto::configuration::Tier;
use linkspan_proto::exchange::{CatalogueEntry, MAX_ANNOTATIONS, MAX_LABELS, Protocol};
use linkspan_proto::metadata::Exclusions;
use linkspan_proto::names::{
    ClusterName, EndpointName, Namespace, PortName, ServiceKey, ServiceName, clusterset_endpoint_name, endpoint_name,
    mirror_name,
};

use super::conflicts::{compare, merge_ports, named, ports};
use super::front::{Front, FrontError, Fronts};
use crate::catalog::Traffic;
use crate::dns::ZoneName;
use crate::reserved;
use crate::verdict::Verdict;

pub use super::conflicts::{Conflicts, conflict_verdict};

/// The longest DNS name as text (RFC 1035 section 2.3.4).
pub const NAME_MAX: usize = 253;

/// Which mirror.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MirrorId {
    /// A service of one peer.
    Cluster {
        /// The peer.
        cluster: ClusterName,
        /// The service there.
        service: ServiceKey,
    },
    /// A service of the whole set.
    Clusterset {
        /// The service, in every cluster.
        service: ServiceKey,
    },
}

impl MirrorId {
    /// The service in the clusters that export it.
    #[must_use]
    pub const fn service(&self) -> &ServiceKey {
        match self {
            Self::Cluster { service, .. } | Self::Clusterset { service } => service,
        }
    }
}

/// What all mirrors depend on.
#[derive(Clone, Debug, Default)]
pub struct Ground {
    /// This cluster; `None` only in an empty ground.
    pub own: Option<ClusterName>,
    /// The linked peers.
    pub linked: BTreeSet<ClusterName>,
    /// This cluster and the linked peers.
    pub clusters: Vec<ClusterName>,
    /// Labels and annotations that no mirror gets.
    pub exclusions: Arc<Exclusions>,
    /// Where gateways and controllers of this cluster are, in a Kubernetes cluster.
    pub namespace: Option<Namespace>,
}

/// Names that a mirror may meet.
#[derive(Clone, Copy)]
pub struct Taken<'a> {
    /// Whether a local Service that is no mirror has the name.
    pub locally: &'a dyn Fn(&ServiceKey) -> bool,
    /// Whether the peer itself exports a service of this name.
    pub by_peer: &'a dyn Fn(&ServiceKey) -> bool,
}

impl Ground {
    /// The ground of `own` with these peers.
    #[must_use]
    pub fn new(own: ClusterName, linked: BTreeSet<ClusterName>) -> Self {
        let clusters = std::iter::once(own.clone()).chain(linked.iter().cloned()).collect();
        Self { own: Some(own), linked, clusters, exclusions: Arc::default(), namespace: None }
    }
}

/// A mirror that should exist.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Which one.
    pub id: MirrorId,
    /// Namespace and name of the local object.
    pub object: ServiceKey,
    /// The DNS name, without a trailing dot.
    pub name: String,
    /// Its ports; those of SCTP cannot be used.
    pub ports: Vec<Port>,
    /// Where it leads.
    pub shape: Shape,
    /// Labels of the service, or what its exports give to the import, without those that are never copied.
    pub labels: BTreeMap<String, String>,
    /// Its annotations, the same.
    pub annotations: BTreeMap<String, String>,
    /// How clients are spread, as the first cluster says.
    pub traits: Traits,
    /// The clusters that export it, in order of precedence.
    pub clusters: Vec<ClusterName>,
    /// Findings: `Accepted`, `Conflict`, `PolicyAccepted`.
    pub verdicts: Vec<Verdict>,
}

/// What a ServiceImport says of how clients are spread. Data for whoever reads it: the gateways choose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// Session affinity by client address, with its time in seconds.
    pub affinity_seconds: Option<u32>,
    /// `internalTrafficPolicy: Local`.
    pub local_traffic: bool,
    /// `trafficDistribution`.
    pub traffic_distribution: Option<String>,
}

/// A port of a mirror.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The number, the same for clients and in the exporting clusters.
    pub number: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The name.
    pub name: Option<PortName>,
    /// Kubernetes' `appProtocol`.
    pub app_protocol: Option<String>,
}

/// How clients choose.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// One front; the gateway chooses.
    Single {
        /// Where it is reached.
        front: Front,
        /// Which clusters serve it.
        tiers: Vec<Tier>,
    },
    /// One front for each endpoint; clients choose.
    Headless {
        /// The endpoints.
        hosts: Vec<Host>,
    },
}

/// One endpoint of a headless mirror.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// Its name in its service.
    pub endpoint: EndpointName,
    /// Where it runs.
    pub cluster: ClusterName,
    /// Its full DNS name.
    pub name: String,
    /// On Kubernetes, the Service of its own whose ClusterIP is its address.
    pub object: Option<ServiceKey>,
    /// Where it is reached.
    pub front: Front,
    /// Whether it takes traffic.
    pub ready: bool,
}

/// A mirror that cannot exist, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// Which one.
    pub id: MirrorId,
    /// Namespace and name that the local object would have.
    pub object: ServiceKey,
    /// The DNS name that it would have.
    pub name: String,
    /// Findings.
    pub verdicts: Vec<Verdict>,
    /// Another try makes sense when addresses or ports become free.
    pub wants_front: bool,
}

/// A member of a clusterset import.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// The exporting cluster.
    pub cluster: &'a ClusterName,
    /// What it exports.
    pub entry: &'a CatalogueEntry,
}

/// Namespace and name of the local object of a peer's service.
#[must_use]
pub fn cluster_object(ground: &Ground, cluster: &ClusterName, service: &ServiceKey) -> ServiceKey {
    ServiceKey::new(service.namespace.clone(), mirror_name(&service.name, cluster, &ground.linked))
}

/// The mirror of one service of one peer.
///
/// # Errors
/// The refusal, with its reason.
pub fn cluster(
    ground: &Ground,
    member: Member<'_>,
    taken: Taken<'_>,
    fronts: &mut Fronts,
) -> Result<Wanted, Box<Refused>> {
    let service = &member.entry.service;
    let object = cluster_object(ground, member.cluster, service);
    let draft = Draft {
        id: MirrorId::Cluster { cluster: member.cluster.clone(), service: service.clone() },
        name: format!("{}.{}.{}", object.name, object.namespace, ZoneName::ClusterLocal.service_suffix()),
        object,
    };
    if let Some(message) = reserved::refusal(service, ground.namespace.as_ref()) {
        return Err(draft.refused("ReservedName", message, false));
    }
    if (taken.locally)(&draft.object) {
        let message = format!("a local Service {} exists; it is left alone and the mirror is not made", draft.object);
        return Err(draft.refused("NameInUse", message, false));
    }
    let ports = ports(member.entry);
    let tiers = vec![Tier { clusters: BTreeMap::from([(member.cluster.clone(), 1)]), min_healthy_percent: 1 }];
    draft.finish(ground, &[member], Merged { ports, tiers, conflicts: Conflicts::new(), policy: None }, taken, fronts)
}

/// The import of one service from all clusters that export it, in order of precedence. `members` is not empty.
///
/// # Errors
/// The refusal, with its reason.
pub fn clusterset(
    ground: &Ground,
    members: &[Member<'_>],
    traffic: Option<&Traffic>,
    fronts: &mut Fronts,
) -> Result<(Wanted, Conflicts), Box<Refused>> {
    let first = members.first().expect("an import exists because somebody exports it");
    let service = first.entry.service.clone();
    let draft = Draft {
        id: MirrorId::Clusterset { service: service.clone() },
        name: format!("{}.{}.{}", service.name, service.namespace, ZoneName::Clusterset.service_suffix()),
        object: service.clone(),
    };
    if let Some(message) = reserved::refusal(&service, ground.namespace.as_ref()) {
        return Err(draft.refused("ReservedName", message, false));
    }
    let mut conflicts = Conflicts::new();
    // Clusters that say another type than the first cannot serve what the first promises.
    let (members, others): (Vec<Member<'_>>, Vec<Member<'_>>) =
        members.iter().partition(|member| member.entry.headless == first.entry.headless);
    for other in &others {
        conflicts.note("TypeConflict", first.cluster, other.cluster);
    }
    let ports = merge_ports(&members, &mut conflicts);
    let tiers = traffic.map_or_else(|| default_tiers(ground, &members), |traffic| traffic.tiers.clone());
    compare(&members, &mut conflicts);
    let policy = traffic.map(|traffic| policy_verdict(traffic, first.entry.headless));
    let nothing = |_: &ServiceKey| false;
    let taken = Taken { locally: &nothing, by_peer: &nothing };
    let merged = Merged { ports, tiers, conflicts: conflicts.clone(), policy };
    let wanted = draft.finish(ground, &members, merged, taken, fronts)?;
    Ok((wanted, conflicts))
}

/// What is said of the traffic policy on the import that it is for.
fn policy_verdict(traffic: &Traffic, headless: bool) -> Verdict {
    if headless {
        let message = format!(
            "policy {} has no effect: the service is headless, so clients choose among its endpoints by name",
            traffic.policy
        );
        return Verdict::new("PolicyAccepted", false, "Headless", message);
    }
    Verdict { kind: "PolicyAccepted", ..traffic.verdict.clone() }
}

/// Local first, then all peers alike.
fn default_tiers(ground: &Ground, members: &[Member<'_>]) -> Vec<Tier> {
    let (local, remote): (Vec<_>, Vec<_>) =
        members.iter().map(|member| member.cluster.clone()).partition(|cluster| Some(cluster) == ground.own.as_ref());
    [local, remote]
        .into_iter()
        .filter(|clusters| !clusters.is_empty())
        .map(|clusters| Tier {
            clusters: clusters.into_iter().map(|cluster| (cluster, 1)).collect(),
            min_healthy_percent: 1,
        })
        .collect()
}

/// A mirror that has its names.
struct Draft {
    id: MirrorId,
    object: ServiceKey,
    name: String,
}

/// What the members come to together.
struct Merged {
    ports: Vec<Port>,
    tiers: Vec<Tier>,
    conflicts: Conflicts,
    policy: Option<Verdict>,
}

impl Draft {
    fn finish(
        self,
        ground: &Ground,
        members: &[Member<'_>],
        merged: Merged,
        taken: Taken<'_>,
        fronts: &mut Fronts,
    ) -> Result<Wanted, Box<Refused>> {
        let Merged { ports, tiers, conflicts, policy } = merged;
        let ports = named(ports);
        let Some(first) = members.first() else {
            return Err(self.refused("NotExported", "no cluster exports it".to_owned(), false));
        };
        // TCP and UDP of the same number are reached at the same place.
        let carried = ports.iter().filter(|port| port.protocol.transport().is_some());
        let numbers: Vec<u16> = carried.map(|port| port.number).collect::<BTreeSet<_>>().into_iter().collect();
        if numbers.is_empty() {
            let message = "it has no TCP or UDP port, and no other can be carried".to_owned();
            return Err(self.refused("UnsupportedProtocol", message, false));
        }
        let mut verdicts = Vec::new();
        let shape = if first.entry.headless {
            let (hosts, problem) = self.hosts(ground, members, &numbers, taken, fronts);
            verdicts.push(problem.unwrap_or_else(accepted));
            Shape::Headless { hosts }
        } else {
            match fronts.assign(&self.name, &numbers, first.cluster, &ground.clusters) {
                Ok(front) => {
                    verdicts.push(accepted());
                    Shape::Single { front, tiers }
                }
                Err(error) => return Err(self.refused(front_reason(&error), error.to_string(), true)),
            }
        };
        verdicts.push(conflict_verdict(&conflicts));
        verdicts.extend(policy);
        let details = &first.entry.details;
        let (labels, annotations) = match self.id {
            MirrorId::Cluster { .. } => (&first.entry.labels, &details.annotations),
            MirrorId::Clusterset { .. } => (&details.exported_labels, &details.exported_annotations),
        };
        Ok(Wanted {
            labels: ground.exclusions.labels(labels, MAX_LABELS).0,
            annotations: ground.exclusions.annotations(annotations, MAX_ANNOTATIONS).0,
            traits: Traits {
                affinity_seconds: details.affinity_seconds,
                local_traffic: details.local_traffic,
                traffic_distribution: details.traffic_distribution.clone(),
            },
            clusters: members.iter().map(|member| member.cluster.clone()).collect(),
            id: self.id,
            object: self.object,
            name: self.name,
            ports,
            shape,
            verdicts,
        })
    }

    /// The endpoints of all members, and why some are missing.
    fn hosts(
        &self,
        ground: &Ground,
        members: &[Member<'_>],
        numbers: &[u16],
        taken: Taken<'_>,
        fronts: &mut Fronts,
    ) -> (Vec<Host>, Option<Verdict>) {
        let mut hosts = Vec::new();
        let mut problem = None;
        for member in members {
            for (endpoint, ready) in &member.entry.endpoints {
                let name = match self.id {
                    MirrorId::Cluster { .. } => format!("{endpoint}.{}", self.name),
                    MirrorId::Clusterset { .. } => format!("{endpoint}.{}.{}", member.cluster, self.name),
                };
                if name.len() > NAME_MAX {
                    let message = format!(
                        "the name of endpoint {endpoint} of {} is longer than {NAME_MAX} bytes",
                        member.cluster
                    );
                    problem = Some(Verdict::new("Accepted", false, "NameTooLong", message));
                    continue;
                }
                let object = fronts.are_ports().then(|| self.host_object(ground, member.cluster, endpoint, taken));
                if let Some(object) = object.as_ref().filter(|object| (taken.locally)(object)) {
                    let message = format!("endpoint {endpoint}: a local Service {object} exists; it is left alone");
                    problem = Some(Verdict::new("Accepted", false, "NameInUse", message));
                    continue;
                }
                match fronts.assign(&name, numbers, member.cluster, &ground.clusters) {
                    Ok(front) => hosts.push(Host {
                        endpoint: endpoint.clone(),
                        cluster: member.cluster.clone(),
                        name,
                        object,
                        front,
                        ready: *ready,
                    }),
                    Err(error) => {
                        let message = format!("endpoint {endpoint} of {}: {error}", member.cluster);
                        problem = Some(Verdict::new("Accepted", false, front_reason(&error), message));
                    }
                }
            }
        }
        (hosts, problem)
    }

    /// The Service of one endpoint.
    fn host_object(
        &self,
        ground: &Ground,
        cluster: &ClusterName,
        endpoint: &EndpointName,
        taken: Taken<'_>,
    ) -> ServiceKey {
        let service = self.id.service();
        let name = match self.id {
            MirrorId::Clusterset { .. } => clusterset_endpoint_name(&service.name, endpoint, cluster),
            MirrorId::Cluster { .. } => {
                let namesake = ServiceName::parse(endpoint.as_str()).ok();
                let is_taken =
                    namesake.is_some_and(|name| (taken.by_peer)(&ServiceKey::new(service.namespace.clone(), name)));
                endpoint_name(&service.name, endpoint, cluster, &ground.linked, is_taken)
            }
        };
        ServiceKey::new(service.namespace.clone(), name)
    }

    fn refused(self, reason: &'static str, message: String, wants_front: bool) -> Box<Refused> {
        let conflict = matches!(reason, "ReservedName" | "NameInUse");
        let verdicts = vec![
            Verdict::new("Accepted", false, reason, message.clone()),
            Verdict::new(
                "Conflict",
                conflict,
                if conflict { reason } else { "NoConflicts" },
                if conflict { message } else { String::new() },
            ),
        ];
        Box::new(Refused { id: self.id, object: self.object, name: self.name, verdicts, wants_front })
    }
}

fn accepted() -> Verdict {
    Verdict::new("Accepted", true, "Accepted", "the mirror is made")
}

const fn front_reason(error: &FrontError) -> &'static str {
    match error {
        FrontError::NoAddress(_) => "AddressesExhausted",
        FrontError::NoPort(_) => "PortsExhausted",
        FrontError::ShareExceeded(..) => "ShareExceeded",
        FrontError::NotLeading => "NotLeading",
    }
}

#[cfg(test)]
mod tests;
