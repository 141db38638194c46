//! What cannot be saved in the state folder, for whoever asks. A change takes effect whether it can be saved or not, so
//! nothing else shows that the next start will not know it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

/// What cannot be saved now. Cheap to clone: a handle.
#[derive(Clone, Debug, Default)]
pub struct Saving {
    failures: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Saving {
    /// Notes how the last try to save `what` ended; it is a path below the state folder.
    pub fn note<T, E: Display>(&self, what: &str, result: Result<T, E>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(_) => drop(failures.remove(what)),
            Err(error) => drop(failures.insert(what.to_owned(), error.to_string())),
        }
    }

    /// What could not be saved when that was last tried, and why.
    #[must_use]
    pub fn failures(&self) -> BTreeMap<String, String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_again_is_no_failure() {
        let saving = Saving::default();
        let other = saving.clone();
        saving.note("addresses.json", Err::<(), _>("no space"));
        saving.note("status", Ok::<_, String>(()));
        assert_eq!(other.failures(), BTreeMap::from([("addresses.json".to_owned(), "no space".to_owned())]));
        other.note("addresses.json", Ok::<_, String>(()));
        assert!(saving.failures().is_empty());
    }
}
