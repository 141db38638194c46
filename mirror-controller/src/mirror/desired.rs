//! What should be mirrored: from catalogues and local policy to wanted mirrors. Pure.
//!
//! Two kinds. A **cluster mirror** `<service>-<cluster>` stands for one service of one peer. A **clusterset import**
//! `<service>` stands for that service in all clusters that export it, this one included, by the rules of the
//! multi-cluster services API. What clusters say about one service may differ; then local precedence decides (S-40): this
//! cluster first, then the peers in the order of their names. Nothing that a peer sends decides about another.
//!
//! - **In**: entries of catalogues, which carry no addresses; Links, traffic policies and local names.
//! - **Out**: [`Wanted`] or a refusal with its reason, and what conflicts.
//! - **Refuses when**: the name is reserved, a local Service has it, no port of it can be carried, no address or port is free.
//! - **Never does**: copy anything from a peer but ports, protocols and listed labels (S-39), or use an address that did
//!   not come from our own range (S-38).
//! - **Numbers**: [`NAME_MAX`].

use std::collections::{BTreeMap, BTreeSet};

use linkspan_proto::configuration::Tier;
use linkspan_proto::exchange::{CatalogueEntry, Protocol};
use linkspan_proto::names::{ClusterName, EndpointName, PortName, ServiceKey, mirror_name};

use super::front::{Front, FrontError, Fronts};
use crate::catalog::Traffic;
use crate::dns::ZoneName;
use crate::reserved;
use crate::verdict::Verdict;

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
}

impl Ground {
    /// The ground of `own` with these peers.
    #[must_use]
    pub fn new(own: ClusterName, linked: BTreeSet<ClusterName>) -> Self {
        let clusters = std::iter::once(own.clone()).chain(linked.iter().cloned()).collect();
        Self { own: Some(own), linked, clusters }
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
    /// Its ports; only the TCP ones can be used.
    pub ports: Vec<Port>,
    /// Where it leads.
    pub shape: Shape,
    /// Listed labels of the service.
    pub labels: BTreeMap<String, String>,
    /// The clusters that export it, in order of precedence.
    pub clusters: Vec<ClusterName>,
    /// Findings: `Accepted`, `Conflict`, `PolicyAccepted`.
    pub verdicts: Vec<Verdict>,
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

/// Conflicts between what clusters say about one service: reasons of the multi-cluster services API, sorted.
pub type Conflicts = BTreeSet<&'static str>;

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
    is_local: impl Fn(&ServiceKey) -> bool,
    fronts: &mut Fronts,
) -> Result<Wanted, Box<Refused>> {
    let service = &member.entry.service;
    let object = cluster_object(ground, member.cluster, service);
    let draft = Draft {
        id: MirrorId::Cluster { cluster: member.cluster.clone(), service: service.clone() },
        name: format!("{}.{}.{}", object.name, object.namespace, ZoneName::ClusterLocal.service_suffix()),
        object,
    };
    if let Some(message) = reserved::refusal(service) {
        return Err(draft.refused("ReservedName", message, false));
    }
    if is_local(&draft.object) {
        let message = format!("a local Service {} exists; it is left alone and the mirror is not made", draft.object);
        return Err(draft.refused("NameInUse", message, false));
    }
    let ports = ports(member.entry);
    let tiers = vec![Tier { clusters: BTreeMap::from([(member.cluster.clone(), 1)]), min_healthy_percent: 1 }];
    draft.finish(ground, &[member], ports, tiers, Conflicts::new(), None, fronts)
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
    if let Some(message) = reserved::refusal(&service) {
        return Err(draft.refused("ReservedName", message, false));
    }
    let mut conflicts = Conflicts::new();
    // Clusters that say another type than the first cannot serve what the first promises.
    let (members, others): (Vec<_>, Vec<_>) =
        members.iter().partition(|member| member.entry.headless == first.entry.headless);
    if !others.is_empty() {
        conflicts.insert("TypeConflict");
    }
    let ports = merge_ports(&members, &mut conflicts);
    let tiers = traffic.map_or_else(|| default_tiers(ground, &members), |traffic| traffic.tiers.clone());
    let policy = traffic.map(|traffic| policy_verdict(traffic, first.entry.headless));
    let wanted = draft.finish(ground, &members, ports, tiers, conflicts.clone(), policy, fronts)?;
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

/// The union of ports: merged by name first, then by protocol and number; of two that disagree the earlier one holds.
fn merge_ports(members: &[Member<'_>], conflicts: &mut Conflicts) -> Vec<Port> {
    let mut merged: Vec<Port> = Vec::new();
    let mut first: Option<BTreeSet<Port>> = None;
    for member in members {
        let ports = ports(member.entry);
        let set: BTreeSet<_> = ports.iter().cloned().collect();
        if first.get_or_insert_with(|| set.clone()) != &set {
            conflicts.insert("PortConflict");
        }
        for port in ports {
            let known = merged
                .iter()
                .any(|known| known.name == port.name || (known.protocol, known.number) == (port.protocol, port.number));
            if !known {
                merged.push(port);
            }
        }
    }
    merged.sort();
    merged
}

fn ports(entry: &CatalogueEntry) -> Vec<Port> {
    entry
        .ports
        .iter()
        .map(|port| Port {
            number: port.port,
            protocol: port.protocol,
            name: port.name.clone(),
            app_protocol: port.app_protocol.clone(),
        })
        .collect()
}

/// A mirror that has its names.
struct Draft {
    id: MirrorId,
    object: ServiceKey,
    name: String,
}

impl Draft {
    #[expect(
        clippy::too_many_arguments,
        reason = "each comes from somewhere else, and this is the one place that joins them"
    )]
    fn finish(
        self,
        ground: &Ground,
        members: &[Member<'_>],
        ports: Vec<Port>,
        tiers: Vec<Tier>,
        conflicts: Conflicts,
        policy: Option<Verdict>,
        fronts: &mut Fronts,
    ) -> Result<Wanted, Box<Refused>> {
        let Some(first) = members.first() else {
            return Err(self.refused("NotExported", "no cluster exports it".to_owned(), false));
        };
        if !ports.iter().any(|port| port.protocol == Protocol::Tcp) {
            let message = "it has no TCP port, and no other can be carried".to_owned();
            return Err(self.refused("UnsupportedProtocol", message, false));
        }
        let tcp = ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        let numbers: Vec<u16> = tcp.map(|port| port.number).collect();
        let mut verdicts = Vec::new();
        let shape = if first.entry.headless {
            let (hosts, problem) = self.hosts(ground, members, &numbers, fronts);
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
        Ok(Wanted {
            labels: first.entry.listed_labels().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
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
                match fronts.assign(&name, numbers, member.cluster, &ground.clusters) {
                    Ok(front) => hosts.push(Host {
                        endpoint: endpoint.clone(),
                        cluster: member.cluster.clone(),
                        name,
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

/// `Conflict`, as the multi-cluster services API words it.
#[must_use]
pub fn conflict_verdict(conflicts: &Conflicts) -> Verdict {
    if conflicts.is_empty() {
        return Verdict::new("Conflict", false, "NoConflicts", "all clusters agree");
    }
    let reasons: Vec<_> = conflicts.iter().copied().collect();
    let mut message = "clusters disagree about this service; this cluster's word counts first, then the peers' in the order of their names".to_owned();
    if conflicts.contains("TypeConflict") {
        message += "; clusters of the other type do not take part";
    }
    if conflicts.contains("PortConflict") {
        message += "; a port is served by the clusters that export it";
    }
    Verdict::new("Conflict", true, reasons.join(","), message)
}

#[cfg(test)]
mod tests;
