//! What clusters disagree about when they export the same service, and what holds then. Pure.
//!
//! Members come in the order in which their words count ([`super::seniority`]). Of what cannot be merged, the first one's word
//! holds; ports are the union of all.

use std::collections::{BTreeMap, BTreeSet};

use linkspan_proto::exchange::CatalogueEntry;
use linkspan_proto::metadata::is_key;
use linkspan_proto::names::{ClusterName, PortName};

use super::desired::{Member, Port};
use crate::verdict::Verdict;

/// Clusters and ports that a message names of each kind; more of them say nothing new, and an object's status has its limits.
const NAMED_MAX: usize = 4;

/// Conflicts between what clusters say about one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conflicts {
    /// Reasons of the multi-cluster services API, each with the clusters that say otherwise than the first.
    reasons: BTreeMap<&'static str, BTreeSet<ClusterName>>,
    /// How the ports of clusters differ from the first one's, in words.
    ports: BTreeMap<ClusterName, String>,
    /// The cluster whose word counts.
    first: Option<ClusterName>,
}

impl Conflicts {
    /// No conflict.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One cluster says otherwise than the first.
    pub(super) fn note(&mut self, reason: &'static str, first: &ClusterName, other: &ClusterName) {
        self.first.get_or_insert_with(|| first.clone());
        self.reasons.entry(reason).or_default().insert(other.clone());
    }

    /// Whether all agree.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Whether they disagree for this reason.
    #[must_use]
    pub fn contains(&self, reason: &str) -> bool {
        self.reasons.contains_key(reason)
    }

    /// The reasons, sorted.
    pub fn reasons(&self) -> impl Iterator<Item = &'static str> {
        self.reasons.keys().copied()
    }

    /// About what, and who says otherwise: `ports: west has 81/TCP, lacks 80/TCP; session affinity: north`.
    fn told(&self) -> String {
        let told = self.reasons.iter().map(|(reason, clusters)| {
            let clusters: Vec<String> = clusters
                .iter()
                .map(|cluster| match self.ports.get(cluster).filter(|_| *reason == "PortConflict") {
                    Some(ports) => format!("{cluster} {ports}"),
                    None => cluster.to_string(),
                })
                .collect();
            format!("{}: {}", subject(reason), few(&clusters))
        });
        told.collect::<Vec<_>>().join("; ")
    }
}

/// What a reason is about, as people call it.
fn subject(reason: &str) -> &str {
    match reason {
        "TypeConflict" => "type (headless or not)",
        "PortConflict" => "ports",
        "SessionAffinityConflict" => "session affinity",
        "SessionAffinityConfigConflict" => "time of session affinity",
        "InternalTrafficPolicyConflict" => "internalTrafficPolicy",
        "TrafficDistributionConflict" => "trafficDistribution",
        "LabelsConflict" => "exported labels",
        "AnnotationsConflict" => "exported annotations",
        other => other,
    }
}

/// The first of them, and how many more there are.
fn few(all: &[String]) -> String {
    let named = all.get(..NAMED_MAX).unwrap_or(all).join(", ");
    match all.len().saturating_sub(NAMED_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// What one cluster's ports have and lack against the first one's.
fn differences(first: &BTreeSet<Port>, other: &BTreeSet<Port>) -> String {
    let told = |word: &str, ports: Vec<String>| (!ports.is_empty()).then(|| format!("{word} {}", few(&ports)));
    let has = told("has", other.difference(first).map(told_port).collect());
    let lacks = told("lacks", first.difference(other).map(told_port).collect());
    has.into_iter().chain(lacks).collect::<Vec<_>>().join(" and ")
}

/// `http:80/TCP (kubernetes.io/h2c)`.
fn told_port(port: &Port) -> String {
    let name = port.name.as_ref().map(|name| format!("{name}:")).unwrap_or_default();
    let app = port.app_protocol.as_ref().map(|app| format!(" ({app})")).unwrap_or_default();
    format!("{name}{}/{}{app}", port.number, port.protocol.as_str())
}

/// What differs from the first one's beside type and ports.
pub(super) fn compare(members: &[Member<'_>], conflicts: &mut Conflicts) {
    let Some((leader, others)) = members.split_first() else { return };
    let first = &leader.entry.details;
    for member in others {
        let other = &member.entry.details;
        let mut note = |reason| conflicts.note(reason, leader.cluster, member.cluster);
        if first.affinity_seconds.is_some() != other.affinity_seconds.is_some() {
            note("SessionAffinityConflict");
        } else if first.affinity_seconds != other.affinity_seconds {
            note("SessionAffinityConfigConflict");
        }
        let differences = [
            (first.local_traffic != other.local_traffic, "InternalTrafficPolicyConflict"),
            (first.traffic_distribution != other.traffic_distribution, "TrafficDistributionConflict"),
            (first.exported_labels != other.exported_labels, "LabelsConflict"),
            (first.exported_annotations != other.exported_annotations, "AnnotationsConflict"),
        ];
        differences.into_iter().filter(|(differs, _)| *differs).for_each(|(_, reason)| note(reason));
    }
}

/// Ports of one service at most: an EndpointSlice has no room for more, and one that is too long is not written at all.
pub const PORTS_MAX: usize = 100;

/// The union of ports: merged by name first, then by protocol and number; of two that disagree the earlier one holds.
pub(super) fn merge_ports(members: &[Member<'_>], conflicts: &mut Conflicts) -> Vec<Port> {
    let mut merged: Vec<Port> = Vec::new();
    let mut first: Option<(&ClusterName, BTreeSet<Port>)> = None;
    for member in members {
        let ports = ports(member.entry);
        let set: BTreeSet<_> = ports.iter().cloned().collect();
        let (leader, leaders) = first.get_or_insert_with(|| (member.cluster, set.clone()));
        if *leaders != set {
            conflicts.note("PortConflict", leader, member.cluster);
            conflicts.ports.insert(member.cluster.clone(), differences(leaders, &set));
        }
        for port in ports {
            let known = merged
                .iter()
                .any(|known| known.name == port.name || (known.protocol, known.number) == (port.protocol, port.number));
            // Whose word counts more finds room first.
            if !known && merged.len() < PORTS_MAX {
                merged.push(port);
            }
        }
    }
    merged.sort();
    merged
}

/// Gives a name to each port without one where there are several: an API server takes none of them otherwise.
pub(super) fn named(mut ports: Vec<Port>) -> Vec<Port> {
    if ports.len() < 2 {
        return ports;
    }
    let mut taken: BTreeSet<String> = ports.iter().filter_map(|port| Some(port.name.as_ref()?.to_string())).collect();
    for port in ports.iter_mut().filter(|port| port.name.is_none()) {
        let plain = format!("port-{}", port.number);
        let more = (2..=PORTS_MAX + 1).map(|count| format!("{plain}-{count}"));
        // Of this many one is free.
        let free = std::iter::once(plain.clone()).chain(more).find(|name| !taken.contains(name));
        port.name = free.as_deref().and_then(|name| PortName::parse(name).ok());
        taken.extend(free);
    }
    ports
}

/// The ports that one cluster says. An `appProtocol` that no API server takes says nothing to anybody, and would keep the whole
/// object from being written.
pub(super) fn ports(entry: &CatalogueEntry) -> Vec<Port> {
    entry
        .ports
        .iter()
        .map(|port| Port {
            number: port.port,
            protocol: port.protocol,
            name: port.name.clone(),
            app_protocol: port.app_protocol.clone().filter(|protocol| is_key(protocol)),
        })
        .collect()
}

/// `Conflict`, as the multi-cluster services API words it.
#[must_use]
pub fn conflict_verdict(conflicts: &Conflicts) -> Verdict {
    if conflicts.is_empty() {
        return Verdict::new("Conflict", false, "NoConflicts", "all clusters agree");
    }
    let reasons: Vec<_> = conflicts.reasons().collect();
    let first = conflicts.first.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut message = format!(
        "clusters disagree about this service ({}); the word of {first} counts: its export was seen here first, or \
         spec.mirrors.precedence of the Cluster configuration names it before the others",
        conflicts.told()
    );
    if conflicts.contains("TypeConflict") {
        message += "; clusters of the other type do not take part";
    }
    if conflicts.contains("PortConflict") {
        message += "; a port is served by the clusters that export it";
    }
    Verdict::new("Conflict", true, reasons.join(","), message)
}

#[cfg(test)]
mod tests {
    use linkspan_proto::exchange::Details;

    use super::*;
    use crate::testkit::{cluster, entry};

    /// One peer that names nothing, or very much, must not keep the import of all from being written.
    #[test]
    fn a_union_of_ports_is_one_that_an_api_server_takes() {
        let (east, west) = (cluster("east"), cluster("west"));
        let union = |first: &[&str], other: &[&str]| {
            let (first, other) = (entry("shop/web", first, 1), entry("shop/web", other, 1));
            let members = [Member { cluster: &east, entry: &first }, Member { cluster: &west, entry: &other }];
            let merged = named(merge_ports(&members, &mut Conflicts::new()));
            merged.iter().map(|port| port.name.as_ref().map_or("", |name| name.as_str()).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(union(&["80"], &["80"]), [""], "a single port needs no name");
        assert_eq!(union(&["http:80", "grpc:90"], &["8080"]), ["http", "grpc", "port-8080"]);
        assert_eq!(union(&["port-53:80"], &["53/UDP"]), ["port-53-2", "port-53"]);
        let many = |from: u16| (from..from + 64).map(|port| format!("p{port}:{port}")).collect::<Vec<_>>();
        let (first, other) = (many(1000), many(2000));
        let texts = |all: &[String]| all.iter().map(|text| text.clone().leak() as &str).collect::<Vec<&str>>();
        let all = union(&texts(&first), &texts(&other));
        assert_eq!((all.len(), all.contains(&"p1063".to_owned())), (PORTS_MAX, true));
    }

    #[test]
    fn an_app_protocol_that_is_none_is_left_out() {
        let said = |protocol: &str| {
            let mut entry = entry("shop/web", &["80"], 1).as_ref().clone();
            entry.ports[0].app_protocol = Some(protocol.to_owned());
            ports(&entry)[0].app_protocol.clone()
        };
        for kept in ["http", "kubernetes.io/h2c", "example.com/My_Own.1"] {
            assert_eq!(said(kept).as_deref(), Some(kept));
        }
        for (index, dropped) in ["", "-", "a/b/c", "/http", "http/", "UPPER.example/http"].into_iter().enumerate() {
            assert_eq!(said(dropped), None, "{index}: {dropped}");
        }
        assert_eq!(said(&"a".repeat(64)), None);
    }

    #[test]
    fn a_conflict_names_ports_clusters_and_whose_word_counts() {
        let clusters = ["east", "west", "north"].map(cluster);
        let mut entries = [&["http:80"][..], &["http:81", "grpc:90"], &["http:80"]]
            .map(|ports| entry("shop/web", ports, 1).as_ref().clone());
        entries[2].details.affinity_seconds = Some(10);
        let members: Vec<Member<'_>> =
            clusters.iter().zip(&entries).map(|(cluster, entry)| Member { cluster, entry }).collect();
        let mut conflicts = Conflicts::new();
        merge_ports(&members, &mut conflicts);
        compare(&members, &mut conflicts);
        let Verdict { reason, message, .. } = conflict_verdict(&conflicts);
        assert_eq!(reason, "PortConflict,SessionAffinityConflict");
        for part in [
            "(ports: west has http:81/TCP, grpc:90/TCP and lacks http:80/TCP; session affinity: north); the word of east counts",
            "a port is served by the clusters that export it",
        ] {
            assert!(message.contains(part), "{message}");
        }

        // However many ports and clusters there are, the message stays one that people read.
        let many: Vec<String> = (1000..1064).map(|port| format!("p{port}:{port}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let (few, other) = (entry("shop/web", &["80"], 1), entry("shop/web", &many, 1));
        let names: Vec<ClusterName> = (0..50).map(|number| cluster(&format!("c{number}"))).collect();
        let entry_of = |number: usize| if number == 0 { &few } else { &other };
        let members: Vec<Member<'_>> =
            names.iter().enumerate().map(|(number, cluster)| Member { cluster, entry: entry_of(number) }).collect();
        let mut conflicts = Conflicts::new();
        merge_ports(&members, &mut conflicts);
        let message = conflict_verdict(&conflicts).message;
        assert!(message.len() < 1024 && message.contains("and 45 more"), "{message}");
    }

    #[test]
    fn every_difference_has_the_reason_that_the_api_gives_it() {
        type Change = fn(&mut Details);
        let one = |key: &str| [(key.to_owned(), "x".to_owned())].into();
        let changes: [(Change, &str); 4] = [
            (|details| details.affinity_seconds = Some(10), "SessionAffinityConflict"),
            (|details| details.local_traffic = true, "InternalTrafficPolicyConflict"),
            (|details| details.traffic_distribution = Some("PreferClose".to_owned()), "TrafficDistributionConflict"),
            (|_| {}, ""),
        ];
        let found = |first: Details, other: Details| {
            let entries = [first, other]
                .map(|details| CatalogueEntry { details, ..entry("shop/web", &["80"], 1).as_ref().clone() });
            let (east, west) = (cluster("east"), cluster("west"));
            let members =
                [Member { cluster: &east, entry: &entries[0] }, Member { cluster: &west, entry: &entries[1] }];
            let mut conflicts = Conflicts::new();
            compare(&members, &mut conflicts);
            conflicts.reasons().collect::<Vec<_>>().join(",")
        };
        for (change, reason) in changes {
            let mut details = Details::default();
            change(&mut details);
            assert_eq!(found(Details::default(), details), reason);
        }
        let with = |seconds| Details { affinity_seconds: Some(seconds), ..Details::default() };
        assert_eq!(found(with(10), with(20)), "SessionAffinityConfigConflict");
        let labels = Details { exported_labels: one("a"), exported_annotations: one("b"), ..Details::default() };
        assert_eq!(found(labels, Details::default()), "AnnotationsConflict,LabelsConflict");
    }
}
