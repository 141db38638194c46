//! A failure of any stage, as the path sees it: where, how it ends the call, and whether another target may be tried.
//!
//! Every stage has a small error of its own; here they meet, and nowhere else. There is no arm for "something else": a new
//! failure of a stage does not compile until it says what it means here.

use std::fmt;

use crate::backend::DialError;
use crate::detect::DetectError;
use crate::link::{OpenError, StreamError};
use crate::outcome::Outcome;
use crate::remote::Refused;
use crate::route::NoTarget;

/// The stages of the path, in its order. The same words as modules, log fields and metric prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The client's socket.
    Listener,
    /// What the client speaks.
    Detect,
    /// Where it goes.
    Route,
    /// The stream to the peer.
    Link,
    /// What the peer may reach.
    Remote,
    /// The endpoint.
    Backend,
    /// The copying.
    Relay,
}

impl Stage {
    /// The log field.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::Detect => "detect",
            Self::Route => "route",
            Self::Link => "link",
            Self::Remote => "remote",
            Self::Backend => "backend",
            Self::Relay => "relay",
        }
    }
}

/// Why a call ends, or moves on to another target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Where it happened.
    pub stage: Stage,
    /// How the call ends, if it ends by this.
    pub outcome: Outcome,
    /// Whether no backend has seen anything of the call, so that another target may be tried.
    pub elsewhere: bool,
    /// In words, for the log.
    pub note: String,
}

impl Failure {
    fn new(stage: Stage, outcome: Outcome, elsewhere: bool, note: &impl fmt::Display) -> Self {
        Self { stage, outcome, elsewhere, note: note.to_string() }
    }

    /// The client's socket failed or closed.
    #[must_use]
    pub fn client(note: &impl fmt::Display) -> Self {
        Self::new(Stage::Listener, Outcome::ClientGone, false, note)
    }

    /// A stream ended early. `elsewhere` only if no byte of the reply has come and, unless the peer says that it never
    /// processed the call, nothing of the client's was sent either.
    #[must_use]
    pub fn stream(error: StreamError, sent_anything: bool) -> Self {
        let outcome = error.refusal().map_or(Outcome::LinkLost, Outcome::Refused);
        let elsewhere = error.refusal().map_or(!sent_anything, |refusal| refusal.never_processed());
        Self::new(Stage::Link, outcome, elsewhere, &error)
    }

    /// The same failure, for good.
    #[must_use]
    pub fn for_good(self) -> Self {
        Self { elsewhere: false, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.stage.label(), self.note)
    }
}

impl std::error::Error for Failure {}

impl From<DetectError> for Failure {
    fn from(error: DetectError) -> Self {
        Self::new(Stage::Detect, Outcome::ClientGone, false, &error)
    }
}

impl From<NoTarget> for Failure {
    fn from(error: NoTarget) -> Self {
        Self::new(Stage::Route, Outcome::NoTarget, false, &error)
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::new(Stage::Link, Outcome::Refused(error.refusal()), true, &error)
    }
}

impl From<Refused> for Failure {
    fn from(error: Refused) -> Self {
        let refusal = error.refusal();
        Self::new(Stage::Remote, Outcome::Refused(refusal), refusal.never_processed(), &error)
    }
}

impl From<DialError> for Failure {
    fn from(error: DialError) -> Self {
        Self::new(Stage::Backend, Outcome::Refused(error.refusal()), true, &error)
    }
}

#[cfg(test)]
mod tests {
    use linkspan_proto::refusal::Refusal;

    use super::*;

    #[test]
    fn a_stream_that_was_processed_or_may_have_been_is_not_tried_elsewhere() {
        for (error, sent, elsewhere) in [
            (StreamError::Reset(Refusal::Draining), true, true),
            (StreamError::Reset(Refusal::ConnectRefused), true, true),
            (StreamError::Reset(Refusal::BackendReset), false, false),
            (StreamError::Reset(Refusal::Denied), false, false),
            (StreamError::LinkLost, false, true),
            (StreamError::LinkLost, true, false),
        ] {
            let failure = Failure::stream(error, sent);
            assert_eq!(failure.elsewhere, elsewhere, "{error} {sent}");
            assert!(!failure.for_good().elsewhere);
        }
    }

    #[test]
    fn a_failure_says_where_and_why() {
        let failure = Failure::from(OpenError::NotConnected);
        assert_eq!(failure.to_string(), "link: the link is not connected");
        assert!(failure.elsewhere);
        assert_eq!(failure.outcome, Outcome::Refused(Refusal::NoBackend));
        let failure = Failure::from(DialError::NoBackend);
        assert_eq!((failure.stage, failure.elsewhere), (Stage::Backend, true));
        let failure = Failure::from(Refused::Draining);
        assert_eq!((failure.outcome, failure.elsewhere), (Outcome::Refused(Refusal::Draining), true));
    }
}
