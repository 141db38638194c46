//! Conditions, as Kubernetes has them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// What a condition says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Nobody knows yet.
    Unknown,
}

impl ConditionStatus {
    /// As Kubernetes spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// A condition to be set.
#[derive(Clone, Copy, Debug)]
pub struct NewCondition<'a> {
    /// The type, CamelCase.
    pub kind: &'a str,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, CamelCase, from a closed set.
    pub reason: &'a str,
    /// One sentence for people.
    pub message: &'a str,
    /// The `metadata.generation` that was looked at.
    pub generation: Option<i64>,
}

/// Sets one condition, in place or at the end. The transition time moves only with the status, so that it says since when.
/// Returns whether anything changed.
pub fn set_condition(conditions: &mut Vec<Condition>, new: NewCondition<'_>, now: Timestamp) -> bool {
    let present = conditions.iter_mut().find(|condition| condition.type_ == new.kind);
    let since = match &present {
        Some(condition) if condition.status == new.status.as_str() => condition.last_transition_time.clone(),
        _ => Time(now),
    };
    let wanted = Condition {
        last_transition_time: since,
        message: new.message.to_owned(),
        observed_generation: new.generation,
        reason: new.reason.to_owned(),
        status: new.status.as_str().to_owned(),
        type_: new.kind.to_owned(),
    };
    match present {
        Some(condition) if *condition == wanted => return false,
        Some(condition) => *condition = wanted,
        None => conditions.push(wanted),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(status: ConditionStatus, message: &str) -> NewCondition<'_> {
        NewCondition { kind: "Ready", status, reason: "Connected", message, generation: None }
    }

    #[test]
    fn the_transition_time_moves_with_the_status_only() {
        let (first, second) = (Timestamp::from_second(1).unwrap(), Timestamp::from_second(2).unwrap());
        let mut conditions = Vec::new();
        assert!(set_condition(&mut conditions, ready(ConditionStatus::True, "a"), first));
        assert!(!set_condition(&mut conditions, ready(ConditionStatus::True, "a"), second));
        assert!(set_condition(&mut conditions, ready(ConditionStatus::True, "b"), second));
        assert_eq!(conditions[0].last_transition_time, Time(first));
        assert!(set_condition(&mut conditions, ready(ConditionStatus::False, "b"), second));
        assert_eq!((conditions.len(), conditions[0].last_transition_time.clone()), (1, Time(second)));
        let other = NewCondition { kind: "Synced", ..ready(ConditionStatus::Unknown, "") };
        assert!(set_condition(&mut conditions, other, second));
        assert_eq!(conditions.len(), 2);
    }
}
