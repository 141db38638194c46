//! Which objects may be deleted. Pure.
//!
//! Only what carries our label, and only when it is certain that it is not wanted: its Link is gone, or a complete catalogue
//! of its cluster is known and does not hold it. A lost peer is not an empty peer, and a Link that is refused is not gone.

use std::collections::{BTreeMap, BTreeSet};

use linkspan_proto::names::ClusterName;

use super::desired::MirrorId;

/// Why an object goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The Link of its cluster is gone.
    Unlinked,
    /// Its cluster, or every cluster, exports it no more.
    Unexported,
    /// It is still exported, and may not be mirrored any more.
    Refused,
}

/// Why an object stays although it is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stays {
    /// It is not ours.
    Foreign,
    /// No complete catalogue says that it is gone.
    Uncertain,
}

/// Whether an object that is not wanted may be deleted. `id` is what our labels on it say; `None` means that it has none.
/// `known` are the peers in force, `unsettled` those whose Link is there and not in force.
///
/// # Errors
/// Why it must stay.
pub fn may_delete(
    id: Option<&MirrorId>,
    known: &BTreeMap<ClusterName, bool>,
    unsettled: &BTreeSet<ClusterName>,
    is_refused: bool,
) -> Result<Gone, Stays> {
    match id {
        None => Err(Stays::Foreign),
        Some(_) if is_refused => Ok(Gone::Refused),
        Some(MirrorId::Cluster { cluster, .. }) => match known.get(cluster) {
            None if unsettled.contains(cluster) => Err(Stays::Uncertain),
            None => Ok(Gone::Unlinked),
            Some(true) => Ok(Gone::Unexported),
            Some(false) => Err(Stays::Uncertain),
        },
        Some(MirrorId::Clusterset { .. }) => {
            if unsettled.is_empty() && known.values().all(|known| *known) {
                Ok(Gone::Unexported)
            } else {
                Err(Stays::Uncertain)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use linkspan_proto::names::ServiceKey;

    use super::*;

    #[test]
    fn only_what_is_ours_and_certainly_gone_goes() {
        let name = |name: &str| ClusterName::parse(name).unwrap();
        let service = ServiceKey::parse("shop/web").unwrap();
        let of = |cluster: &str| MirrorId::Cluster { cluster: name(cluster), service: service.clone() };
        let set = MirrorId::Clusterset { service: service.clone() };
        let known = BTreeMap::from([(name("west"), true), (name("north"), false)]);
        let all = BTreeMap::from([(name("west"), true)]);
        let (settled, unsettled) = (BTreeSet::new(), BTreeSet::from([name("south")]));
        for (id, known, refused, expected) in [
            (Some(of("south")), &known, false, Err(Stays::Uncertain)),
            (Some(of("away")), &known, false, Ok(Gone::Unlinked)),
            (Some(set.clone()), &all, false, Err(Stays::Uncertain)),
        ] {
            assert_eq!(may_delete(id.as_ref(), known, &unsettled, refused), expected, "{id:?}");
        }
        for (id, known, refused, expected) in [
            (None, &known, false, Err(Stays::Foreign)),
            (None, &known, true, Err(Stays::Foreign)),
            (Some(of("west")), &known, false, Ok(Gone::Unexported)),
            (Some(of("north")), &known, false, Err(Stays::Uncertain)),
            (Some(of("north")), &known, true, Ok(Gone::Refused)),
            (Some(of("south")), &known, false, Ok(Gone::Unlinked)),
            (Some(set.clone()), &known, false, Err(Stays::Uncertain)),
            (Some(set.clone()), &all, false, Ok(Gone::Unexported)),
            (Some(set), &BTreeMap::new(), false, Ok(Gone::Unexported)),
        ] {
            assert_eq!(may_delete(id.as_ref(), known, &settled, refused), expected, "{id:?}");
        }
    }
}
