//! Whose word counts where clusters disagree about a service of the clusterset. Pure.
//!
//! The multi-cluster services API says: the oldest export's. What a peer says of its age is worth nothing where the peer
//! is hostile (S-40), so the age that counts is the one that this cluster saw:
//!
//! 1. clusters that the operator named, in that order;
//! 2. whoever's export was seen here first;
//! 3. of exports that were seen together (a new link), this cluster's own, then the peers' in the order of their names.
//!
//! Kept over a restart: a site writes it to its state folder, on Kubernetes the ServiceImports tell it.

use std::collections::BTreeMap;

use linkspan_proto::names::{ClusterName, ServiceKey};

/// Who exported what first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seniority {
    policy: Vec<ClusterName>,
    seen: BTreeMap<ServiceKey, Vec<ClusterName>>,
    changed: bool,
}

impl Seniority {
    /// What [`Self::take_changed`] gave.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        Ok(Self { seen: serde_json::from_str(text)?, ..Self::default() })
    }

    /// With the operator's own order in front.
    #[must_use]
    pub fn with_policy(mut self, policy: Vec<ClusterName>) -> Self {
        self.policy = policy;
        self
    }

    /// Notes an order from before a restart.
    pub fn remember(&mut self, service: ServiceKey, clusters: Vec<ClusterName>) {
        self.seen.insert(service, clusters);
    }

    /// `exporters` export the service now: in the order in which their words count. A cluster that exports it no more loses
    /// its place, unless it is `uncertain` whether it does.
    pub fn settle(
        &mut self,
        service: &ServiceKey,
        own: &ClusterName,
        exporters: &[ClusterName],
        uncertain: impl Fn(&ClusterName) -> bool,
    ) -> Vec<ClusterName> {
        let before = self.seen.get(service).cloned().unwrap_or_default();
        let mut order = before.clone();
        order.retain(|cluster| exporters.contains(cluster) || uncertain(cluster));
        let mut new: Vec<_> = exporters.iter().filter(|cluster| !order.contains(cluster)).cloned().collect();
        new.sort_by(|one, other| (one != own, one).cmp(&(other != own, other)));
        order.extend(new);
        let mut ranked: Vec<_> = order.iter().filter(|cluster| exporters.contains(cluster)).cloned().collect();
        // Stable: whom nobody named stays in the order of age.
        ranked.sort_by_key(|cluster| self.policy.iter().position(|named| named == cluster).unwrap_or(usize::MAX));
        if order != before {
            self.changed = true;
            if order.is_empty() {
                self.seen.remove(service);
            } else {
                self.seen.insert(service.clone(), order);
            }
        }
        ranked
    }

    /// The text to be kept over a restart, if it differs from what was last asked for.
    pub fn take_changed(&mut self) -> Option<String> {
        let text = || serde_json::to_string(&self.seen).expect("names are plain text");
        std::mem::take(&mut self.changed).then(text)
    }

    /// The text could not be written: ask again.
    pub const fn mark_changed(&mut self) {
        self.changed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{cluster, key};

    fn names(names: &[&str]) -> Vec<ClusterName> {
        names.iter().map(|name| cluster(name)).collect()
    }

    fn settle(seniority: &mut Seniority, exporters: &[&str], lost: &[&str]) -> String {
        let order = seniority
            .settle(&key("shop/web"), &cluster("east"), &names(exporters), |cluster| lost.contains(&cluster.as_str()));
        order.iter().map(ClusterName::as_str).collect::<Vec<_>>().join(" ")
    }

    /// S-40: there is no time that a peer could tell; whoever comes later is later.
    #[test]
    fn whoever_was_seen_first_counts_and_of_those_seen_together_this_cluster() {
        let mut seniority = Seniority::default();
        assert_eq!(settle(&mut seniority, &["west"], &[]), "west");
        assert_eq!(settle(&mut seniority, &["east", "north", "west"], &[]), "west east north");
        assert_eq!(settle(&mut seniority, &["east", "north"], &[]), "east north", "west gave it up");
        assert_eq!(settle(&mut seniority, &["east", "north", "west"], &[]), "east north west");
    }

    #[test]
    fn who_is_lost_keeps_its_place_and_a_restart_changes_nothing() {
        let mut seniority = Seniority::default();
        settle(&mut seniority, &["west"], &[]);
        settle(&mut seniority, &["east", "west"], &[]);
        let text = seniority.take_changed().unwrap();
        assert_eq!(seniority.take_changed(), None);
        let mut again = Seniority::parse(&text).unwrap();
        assert_eq!(settle(&mut again, &["east"], &["west"]), "east", "its catalogue has not come yet");
        assert_eq!(settle(&mut again, &["east", "west"], &[]), "west east");
        assert_eq!(settle(&mut again, &[], &[]), "");
        assert_eq!(Seniority::parse(&again.take_changed().unwrap()).unwrap(), Seniority::default());
    }

    #[test]
    fn whom_the_operator_names_comes_first() {
        let mut seniority = Seniority::default().with_policy(names(&["north", "east"]));
        settle(&mut seniority, &["west"], &[]);
        assert_eq!(settle(&mut seniority, &["east", "north", "west"], &[]), "north east west");
    }
}
