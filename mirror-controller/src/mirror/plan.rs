//! From what is wanted and what is present to what must be done, with the reason in each item. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use linkspan_proto::names::ServiceKey;

use super::collect::{Gone, Stays, may_delete};
use super::desired::{MirrorId, Shape, Wanted};
use super::state::MirrorSet;
use crate::diff::{Step, walk};

/// Which place an object is in: a mirror's objects live together under one of these.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Namespace and name of the main object.
    pub object: ServiceKey,
    /// Whether it is a clusterset import, which may have the same name as a Service.
    pub import: bool,
}

impl Place {
    /// Where a wanted mirror belongs.
    #[must_use]
    pub fn of(wanted: &Wanted) -> Self {
        Self { object: wanted.object.clone(), import: matches!(wanted.id, MirrorId::Clusterset { .. }) }
    }
}

/// What is in a place.
#[derive(Clone, Debug, PartialEq)]
pub enum Present {
    /// This mirror, as we wrote it.
    Written(Arc<Wanted>),
    /// Something with our labels from before this run.
    Found {
        /// Which mirror it is, by its labels.
        id: MirrorId,
        /// Its text.
        text: String,
    },
    /// Something that is not ours.
    Foreign,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make it.
    Create(Arc<Wanted>),
    /// Change it.
    Patch(Arc<Wanted>),
    /// Delete it.
    Delete,
}

impl Action {
    /// What is to be there afterwards.
    #[must_use]
    pub const fn wanted(&self) -> Option<&Arc<Wanted>> {
        match self {
            Self::Create(wanted) | Self::Patch(wanted) => Some(wanted),
            Self::Delete => None,
        }
    }
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A cluster exports it.
    Exported,
    /// Another address, or another port of the gateways.
    Address,
    /// Other ports.
    Ports,
    /// Other endpoints or other readiness of a headless service.
    Endpoints,
    /// Other clusters behind it, or other weights.
    Clusters,
    /// Other labels or annotations.
    Labels,
    /// Another session affinity or traffic policy.
    Traits,
    /// An earlier run wrote something else.
    Adopted,
    /// Somebody else changed it, or what it points to changed.
    Drifted,
    /// See [`Gone`].
    Gone(Gone),
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Where.
    pub place: Place,
    /// What.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

/// What a plan leaves alone although it is not as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Where.
    pub place: Place,
    /// Why.
    pub why: Stays,
}

/// The whole comparison.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// To be done, in the order of places.
    pub items: Vec<Item>,
    /// Left alone.
    pub left: Vec<Left>,
    /// Found at the start, and as wanted already: count as written from now on.
    pub adopted: Vec<(Place, Arc<Wanted>)>,
}

/// Compares. `text` renders a mirror, and is only asked for places that were found at the start.
pub fn plan(set: &MirrorSet, present: &BTreeMap<Place, Present>, text: impl Fn(&Wanted) -> String) -> Plan {
    let wanted: BTreeMap<Place, &Arc<Wanted>> = set.wanted.values().map(|wanted| (Place::of(wanted), wanted)).collect();
    let Plan { mut items, mut left, mut adopted } = Plan::default();
    let settled = BTreeSet::new();
    for step in walk(present, &wanted) {
        match step {
            Step::Right(place, wanted) => items.push(Item {
                place: place.clone(),
                action: Action::Create(Arc::clone(wanted)),
                reason: Reason::Exported,
            }),
            Step::Both(place, Present::Foreign, _) => left.push(Left { place: place.clone(), why: Stays::Foreign }),
            Step::Both(place, Present::Written(old), new) => {
                if let Some(reason) = difference(old, new) {
                    items.push(Item { place: place.clone(), action: Action::Patch(Arc::clone(new)), reason });
                }
            }
            Step::Both(place, Present::Found { text: old, .. }, new) => {
                let (place, new) = (place.clone(), Arc::clone(new));
                if *old == text(&new) {
                    adopted.push((place, new));
                } else {
                    items.push(Item { place, action: Action::Patch(new), reason: Reason::Adopted });
                }
            }
            Step::Left(place, present) => {
                let id = match present {
                    Present::Written(wanted) => Some(&wanted.id),
                    Present::Found { id, .. } => Some(id),
                    Present::Foreign => None,
                };
                let refused = id.is_some_and(|id| set.refused.contains_key(id));
                // What this run wrote of an import has no part of a peer that is not in force.
                let unsettled = match present {
                    Present::Written(wanted) if matches!(wanted.id, MirrorId::Clusterset { .. }) => &settled,
                    _ => set.unsettled.as_ref(),
                };
                match may_delete(id, &set.known, unsettled, refused) {
                    Ok(gone) => {
                        items.push(Item { place: place.clone(), action: Action::Delete, reason: Reason::Gone(gone) })
                    }
                    // Other people's objects are none of our business, not even to mention.
                    Err(Stays::Foreign) => {}
                    Err(why) => left.push(Left { place: place.clone(), why }),
                }
            }
        }
    }
    Plan { items, left, adopted }
}

/// The first thing that shows in the objects and differs.
fn difference(old: &Arc<Wanted>, new: &Arc<Wanted>) -> Option<Reason> {
    if Arc::ptr_eq(old, new) {
        return None;
    }
    if old.ports != new.ports {
        return Some(Reason::Ports);
    }
    match (&old.shape, &new.shape) {
        (Shape::Single { front: old, .. }, Shape::Single { front: new, .. }) => {
            if old != new {
                return Some(Reason::Address);
            }
        }
        (old, new) => {
            if old != new {
                return Some(Reason::Endpoints);
            }
        }
    }
    if old.clusters != new.clusters {
        return Some(Reason::Clusters);
    }
    if old.traits != new.traits {
        return Some(Reason::Traits);
    }
    (old.labels != new.labels || old.annotations != new.annotations || old.id != new.id).then_some(Reason::Labels)
}

#[cfg(test)]
mod tests;
