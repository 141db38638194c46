//! What clusters disagree about when they export the same service, and what holds then. Pure.
//!
//! Members come in the order in which their words count ([`super::seniority`]). Of what cannot be merged, the first one's word
//! holds; ports are the union of all.

use std::collections::BTreeSet;

use linkspan_proto::exchange::CatalogueEntry;

use super::desired::{Member, Port};
use crate::verdict::Verdict;

/// Conflicts between what clusters say about one service: reasons of the multi-cluster services API, sorted.
pub type Conflicts = BTreeSet<&'static str>;

/// What differs from the first one's beside type and ports.
pub(super) fn compare(members: &[Member<'_>], conflicts: &mut Conflicts) {
    let Some((first, others)) = members.split_first() else { return };
    let first = &first.entry.details;
    for other in others.iter().map(|member| &member.entry.details) {
        if first.affinity_seconds.is_some() != other.affinity_seconds.is_some() {
            conflicts.insert("SessionAffinityConflict");
        } else if first.affinity_seconds != other.affinity_seconds {
            conflicts.insert("SessionAffinityConfigConflict");
        }
        let differences = [
            (first.local_traffic != other.local_traffic, "InternalTrafficPolicyConflict"),
            (first.traffic_distribution != other.traffic_distribution, "TrafficDistributionConflict"),
            (first.exported_labels != other.exported_labels, "LabelsConflict"),
            (first.exported_annotations != other.exported_annotations, "AnnotationsConflict"),
        ];
        conflicts.extend(differences.into_iter().filter(|(differs, _)| *differs).map(|(_, reason)| reason));
    }
}

/// The union of ports: merged by name first, then by protocol and number; of two that disagree the earlier one holds.
pub(super) fn merge_ports(members: &[Member<'_>], conflicts: &mut Conflicts) -> Vec<Port> {
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

/// The ports that one cluster says.
pub(super) fn ports(entry: &CatalogueEntry) -> Vec<Port> {
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

/// `Conflict`, as the multi-cluster services API words it.
#[must_use]
pub fn conflict_verdict(conflicts: &Conflicts) -> Verdict {
    if conflicts.is_empty() {
        return Verdict::new("Conflict", false, "NoConflicts", "all clusters agree");
    }
    let reasons: Vec<_> = conflicts.iter().copied().collect();
    let mut message =
        "clusters disagree about this service; the word of the one counts whose export was seen here first, or \
                       that spec.mirrors.precedence of the Cluster configuration names"
            .to_owned();
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
            conflicts.into_iter().collect::<Vec<_>>().join(",")
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
