//! What a stage found out about an object, before it becomes a condition in the object's status.

use linkspan_proto::resources::ConditionStatus;

/// One finding. Kept apart from conditions because it has no time: stages compute verdicts again and again, and the
/// status stage knows when one changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The condition's type, CamelCase.
    pub kind: &'static str,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, CamelCase, from a closed set; several are joined with commas.
    pub reason: String,
    /// One sentence for people.
    pub message: String,
}

impl Verdict {
    /// A finding.
    #[must_use]
    pub fn new(
        kind: &'static str,
        status: impl Into<ConditionStatus>,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, status: status.into(), reason: reason.into(), message: message.into() }
    }

    /// Whether the condition holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.status == ConditionStatus::True
    }
}
