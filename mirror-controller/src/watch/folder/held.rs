//! Which file holds each object, and which policies each file holds.

use std::collections::{BTreeMap, BTreeSet};

use super::{Holders, Kind, ObjectKey};

/// [`Holders`], with the ExportPolicies among them by file: they are asked for file by file, and thousands of files may hold
/// thousands.
#[derive(Debug, Default)]
pub(super) struct Held {
    holders: Holders,
    policies: BTreeMap<String, BTreeSet<ObjectKey>>,
}

impl Held {
    pub(super) fn new(holders: Holders) -> Self {
        let mut held = Self::default();
        for (key, file) in holders {
            held.insert(key, file);
        }
        held
    }

    /// From now on `file` holds it, and no other.
    pub(super) fn insert(&mut self, key: ObjectKey, file: String) {
        self.remove(&key);
        if key.kind == Kind::ExportPolicy {
            self.policies.entry(file.clone()).or_default().insert(key.clone());
        }
        self.holders.insert(key, file);
    }

    pub(super) fn remove(&mut self, key: &ObjectKey) {
        let Some(file) = self.holders.remove(key) else { return };
        if let Some(policies) = self.policies.get_mut(&file) {
            policies.remove(key);
            if policies.is_empty() {
                self.policies.remove(&file);
            }
        }
    }

    /// Forgets objects for which `stays` says no.
    pub(super) fn retain(&mut self, stays: impl Fn(&ObjectKey) -> bool) {
        let gone: Vec<_> = self.holders.keys().filter(|key| !stays(key)).cloned().collect();
        gone.iter().for_each(|key| self.remove(key));
    }

    /// The file that holds it.
    pub(super) fn get(&self, key: &ObjectKey) -> Option<&String> {
        self.holders.get(key)
    }

    /// The policies of one file, in order.
    pub(super) fn policies(&self, file: &str) -> impl Iterator<Item = &ObjectKey> {
        self.policies.get(file).into_iter().flatten()
    }

    pub(super) const fn all(&self) -> &Holders {
        &self.holders
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(kind: Kind, name: u8) -> ObjectKey {
        ObjectKey { kind, namespace: "shop".to_owned(), name: name.to_string() }
    }

    proptest! {
        #[test]
        fn the_policies_of_a_file_are_those_that_it_holds(
            steps in proptest::collection::vec((0_u8..4, any::<bool>(), 0_u8..6, 0_u8..3), 0..60),
        ) {
            let mut held = Held::default();
            for (step, policy, name, file) in steps {
                let key = key(if policy { Kind::ExportPolicy } else { Kind::Service }, name);
                match step {
                    0 | 1 => held.insert(key, file.to_string()),
                    2 => held.remove(&key),
                    _ => held.retain(|held| *held != key),
                }
                for file in 0_u8..3 {
                    let file = file.to_string();
                    let indexed: Vec<_> = held.policies(&file).collect();
                    let all = held.all().iter().filter(|(key, of)| key.kind == Kind::ExportPolicy && **of == file);
                    prop_assert_eq!(indexed, all.map(|(key, _)| key).collect::<Vec<_>>());
                }
            }
            prop_assert!(Held::new(held.all().clone()).policies == held.policies);
        }
    }
}
