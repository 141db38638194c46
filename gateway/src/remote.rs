//! Stage 5: what a peer may reach here.
//!
//! ```text
//! header + PeerInfo --authorize--> Admitted{export, port, source}        (or a Refused, and nothing was dialled)
//! ```
//!
//! - In: the header of a stream that a peer opened, who the peer is, the route table.
//! - Out: an [`Admitted`]: the proof that this caller may have this port of this export. The backend stage dials only
//!   what an `Admitted` holds, and only this file makes one.
//! - Refuses when: the request has passed this cluster before; the caller is outside of the link's trust domain,
//!   or its certificate names another; the service, port or endpoint is not exported; no rule allows the caller; the peer has too many streams here.
//! - Never does: dial, resolve a name, look at an address that came over the link.
//! - Numbers: [`MAX_HOPS`], [`REVIEW_EVERY`], [`EXPORT_GONE`]; see `limits` for shares.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use linkspan_proto::configuration::DefaultPolicy;
use linkspan_proto::identity::{Source, SpiffeId, TrustDomain};
use linkspan_proto::names::{ClusterName, EndpointName, ServiceKey};
use linkspan_proto::refusal::Refusal;
use tokio::time::Instant;

use crate::route::{Export, ExportPort, RouteTable};

mod authorize;
mod limits;

use authorize::review;
pub use authorize::{admit_local, authorize};
pub use limits::{Limits, Ticket};

/// Clusters that a request may have passed. A mirror cannot be exported, so one is what happens; the limit is for peers
/// of another make.
pub const MAX_HOPS: usize = 8;

/// Between two looks at whether a long exchange is still allowed. Ten thousand open streams make two thousand timers a second
/// of it, below a hundredth of a core.
pub const REVIEW_EVERY: Duration = Duration::from_secs(5);

/// How long an export must be gone before what it carries is cut: as long as a policy stands whose file is written anew.
/// New streams are refused at once.
pub const EXPORT_GONE: Duration = Duration::from_secs(2);

/// A caller that may have a port of an export.
#[derive(Clone, Debug)]
pub struct Admitted {
    export: Arc<Export>,
    port: Arc<ExportPort>,
    endpoint: Option<EndpointName>,
    source: Source,
    cluster: ClusterName,
    /// What held for the peer where no policy selects the export; `None` for a local call, which needs no policy.
    default_policy: Option<DefaultPolicy>,
}

impl Admitted {
    /// The export.
    #[must_use]
    pub fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> &ServiceKey {
        &self.export.service
    }

    /// The port of the export.
    #[must_use]
    pub fn port(&self) -> &Arc<ExportPort> {
        &self.port
    }

    /// The one endpoint that is asked for, if one is.
    #[must_use]
    pub fn endpoint(&self) -> Option<&EndpointName> {
        self.endpoint.as_ref()
    }

    /// Who calls, as the backend will be told.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The cluster of the caller; our own for a local call.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }
}

/// Looks again whether a caller may have what it has: connections and streams may outlive what admitted them.
#[derive(Clone, Copy, Debug)]
pub struct Review<'a> {
    /// The table in force.
    pub table: &'a ArcSwap<RouteTable>,
    /// What is carried.
    pub admitted: &'a Admitted,
}

impl Review<'_> {
    /// Why it is to be cut now, if it is. `gone` remembers between two looks since when there is no export.
    #[must_use]
    pub fn revoked(&self, gone: &mut Option<Instant>) -> Option<Refusal> {
        let Err(refused) = review(&self.table.load(), self.admitted) else {
            *gone = None;
            return None;
        };
        if matches!(refused, Refused::UnknownExport { .. }) {
            // A manifest that is written anew shows nothing for a moment.
            let now = Instant::now();
            if now < *gone.get_or_insert(now) + EXPORT_GONE {
                return None;
            }
        }
        tracing::debug!(peer = %self.admitted.cluster, why = %refused, "no longer allowed; cut");
        Some(refused.refusal())
    }

    /// Resolves with the reason once it is to be cut. Looks every [`REVIEW_EVERY`].
    pub async fn until_revoked(&self) -> Refusal {
        let mut gone = None;
        loop {
            tokio::time::sleep(if gone.is_some() { EXPORT_GONE } else { REVIEW_EVERY }).await;
            if let Some(why) = self.revoked(&mut gone) {
                return why;
            }
        }
    }
}

/// Why a stream was refused before anything was dialled. What the peer is told is [`Refused::refusal`]; the text is for
/// our own log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The request has passed this cluster, or too many.
    #[error("the request has passed {path:?} already")]
    Loop {
        /// The clusters it has passed.
        path: Vec<ClusterName>,
    },
    /// The peer asserts a caller that is not its to speak for.
    #[error("{identity} is outside of the link's trust domain {trust_domain}")]
    IdentityMismatch {
        /// Who was asserted.
        identity: SpiffeId,
        /// What the peer may speak for.
        trust_domain: TrustDomain,
    },
    /// The certificate that should prove the caller is no workload's, or another's.
    #[error("the certificate of {identity} names {found}")]
    CertificateMismatch {
        /// Who was asserted.
        identity: SpiffeId,
        /// Whom the certificate names, or what is wrong with it.
        found: String,
    },
    /// The header lacks what its kind needs.
    #[error("the header names no {what}")]
    Incomplete {
        /// What is missing.
        what: &'static str,
    },
    /// The service, the port or the endpoint is not exported.
    #[error("{service} port {port} is not exported")]
    UnknownExport {
        /// What was asked for.
        service: ServiceKey,
        /// Its port.
        port: u16,
    },
    /// No rule of the policies allows the caller.
    #[error("no rule allows {identity} ({assurance}) to call {service} port {port}")]
    Denied {
        /// Who asked.
        identity: SpiffeId,
        /// How well it is known.
        assurance: linkspan_proto::identity::Assurance,
        /// What was asked for.
        service: ServiceKey,
        /// Its port.
        port: u16,
    },
    /// No policy selects the export, and the Link says `defaultPolicy: Deny`.
    #[error("no policy selects {service}, and the link denies by default")]
    DeniedByDefault {
        /// What was asked for.
        service: ServiceKey,
    },
    /// The peer holds its share of streams.
    #[error("the peer has {in_use} streams here, its share")]
    Overloaded {
        /// How many it has.
        in_use: usize,
    },
    /// The gateway drains.
    #[error("the gateway is shutting down")]
    Draining,
}

impl Refused {
    /// What the peer is told.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Loop { .. } => Refusal::Loop,
            Self::IdentityMismatch { .. } | Self::CertificateMismatch { .. } => Refusal::IdentityMismatch,
            Self::Incomplete { .. } => Refusal::BadHeader,
            Self::UnknownExport { .. } => Refusal::UnknownExport,
            Self::Denied { .. } | Self::DeniedByDefault { .. } => Refusal::Denied,
            Self::Overloaded { .. } => Refusal::Overloaded,
            Self::Draining => Refusal::Draining,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
