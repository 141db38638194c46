//! Why a stream was refused or cut: a closed set, the same on the wire, in logs, metrics, headers and statuses.
//!
//! A refusal travels as the application error code of `RESET_STREAM` and `STOP_SENDING`. Each is mapped here, once, to
//! an HTTP status, a gRPC status and to whether another cluster or endpoint may be tried.

use std::fmt;

/// Why a stream was refused or cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// The other side lost interest, or ended without saying more.
    Cancelled,
    /// The stream header could not be read.
    BadHeader,
    /// The stream kind is not known here.
    UnsupportedKind,
    /// The service, port or endpoint is not exported.
    UnknownExport,
    /// The peer broke the protocol after the header.
    Protocol,
    /// Policy does not allow this caller.
    Denied,
    /// The export has no ready endpoint.
    NoBackend,
    /// Every endpoint that was tried refused the connection.
    ConnectRefused,
    /// No endpoint answered in time.
    ConnectTimeout,
    /// The caller's deadline passed.
    Deadline,
    /// A limit of the gateway was reached.
    Overloaded,
    /// The request has passed this cluster before.
    Loop,
    /// The gateway is about to stop.
    Draining,
    /// The backend cut the connection.
    BackendReset,
    /// Nothing moved for too long.
    Idle,
    /// Too many flows of one client.
    FlowLimit,
    /// The asserted caller is outside the link's trust domain.
    IdentityMismatch,
}

impl Refusal {
    /// All of them, by code.
    pub const ALL: [Self; 17] = [
        Self::Cancelled,
        Self::BadHeader,
        Self::UnsupportedKind,
        Self::UnknownExport,
        Self::Protocol,
        Self::Denied,
        Self::NoBackend,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::Deadline,
        Self::Overloaded,
        Self::Loop,
        Self::Draining,
        Self::BackendReset,
        Self::Idle,
        Self::FlowLimit,
        Self::IdentityMismatch,
    ];

    /// The application error code on the wire.
    #[must_use]
    pub const fn code(self) -> u64 {
        match self {
            Self::Cancelled => 0x100,
            Self::BadHeader => 0x101,
            Self::UnsupportedKind => 0x102,
            Self::UnknownExport => 0x103,
            Self::Protocol => 0x104,
            Self::Denied => 0x105,
            Self::NoBackend => 0x106,
            Self::ConnectRefused => 0x107,
            Self::ConnectTimeout => 0x108,
            Self::Deadline => 0x109,
            Self::Overloaded => 0x10a,
            Self::Loop => 0x10b,
            Self::Draining => 0x10c,
            Self::BackendReset => 0x10d,
            Self::Idle => 0x10e,
            Self::FlowLimit => 0x10f,
            Self::IdentityMismatch => 0x110,
        }
    }

    /// The refusal behind a code from the wire. A code that nobody knows is a breach of protocol.
    #[must_use]
    pub fn from_code(code: u64) -> Self {
        Self::ALL.into_iter().find(|refusal| refusal.code() == code).unwrap_or(Self::Protocol)
    }

    /// For logs, metric labels and the header `linkspan-error`.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::BadHeader => "bad_header",
            Self::UnsupportedKind => "unsupported_kind",
            Self::UnknownExport => "unknown_export",
            Self::Protocol => "protocol",
            Self::Denied => "denied",
            Self::NoBackend => "no_backend",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Deadline => "deadline",
            Self::Overloaded => "overloaded",
            Self::Loop => "loop",
            Self::Draining => "draining",
            Self::BackendReset => "backend_reset",
            Self::Idle => "idle",
            Self::FlowLimit => "flow_limit",
            Self::IdentityMismatch => "identity_mismatch",
        }
    }

    /// One sentence for the person whose call failed. It tells nothing about the inside of the cluster.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Cancelled => "the other side gave up the request",
            Self::BadHeader => "the peer gateway could not read the request's header",
            Self::UnsupportedKind => "the peer gateway does not carry this kind of traffic",
            Self::UnknownExport => "the peer cluster does not export this service and port",
            Self::Protocol => "the gateways disagree about the protocol",
            Self::Denied => "the export policy does not allow this caller",
            Self::NoBackend => "the service has no ready endpoint",
            Self::ConnectRefused => "the service refused the connection",
            Self::ConnectTimeout => "the service did not answer in time",
            Self::Deadline => "the request's deadline passed",
            Self::Overloaded => "the gateway is overloaded",
            Self::Loop => "the request came back to a cluster that it had passed",
            Self::Draining => "the gateway is shutting down",
            Self::BackendReset => "the service cut the connection",
            Self::Idle => "the connection was idle for too long",
            Self::FlowLimit => "this client has too many flows",
            Self::IdentityMismatch => "the caller's identity is not of the linked trust domain",
        }
    }

    /// The status for an HTTP client whose response head is not yet sent.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Cancelled
            | Self::BadHeader
            | Self::UnsupportedKind
            | Self::Protocol
            | Self::ConnectRefused
            | Self::BackendReset => 502,
            Self::UnknownExport => 404,
            Self::Denied | Self::IdentityMismatch => 403,
            Self::NoBackend | Self::Overloaded | Self::Draining | Self::FlowLimit => 503,
            Self::ConnectTimeout | Self::Deadline | Self::Idle => 504,
            Self::Loop => 508,
        }
    }

    /// The gRPC status code for a gRPC client whose response is not yet sent.
    #[must_use]
    pub const fn grpc_status(self) -> u32 {
        match self {
            Self::Cancelled => 1,
            Self::ConnectTimeout | Self::Deadline | Self::Idle => 4,
            Self::Denied | Self::IdentityMismatch => 7,
            Self::FlowLimit => 8,
            Self::Loop => 9,
            Self::UnsupportedKind => 12,
            Self::BadHeader | Self::Protocol => 13,
            Self::UnknownExport
            | Self::NoBackend
            | Self::ConnectRefused
            | Self::Overloaded
            | Self::Draining
            | Self::BackendReset => 14,
        }
    }

    /// Whether the request certainly reached no backend, so that trying another cluster or endpoint repeats nothing.
    /// Holds only while no byte of the reply has come. Refusals that are about the caller itself are not among them:
    /// a caller that one cluster denies is not offered to the next.
    #[must_use]
    pub const fn never_processed(self) -> bool {
        matches!(
            self,
            Self::Draining
                | Self::Overloaded
                | Self::ConnectRefused
                | Self::ConnectTimeout
                | Self::NoBackend
                | Self::UnknownExport
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.reason())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_consecutive_and_come_back() {
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal.code(), 0x100 + index as u64);
            assert_eq!(Refusal::from_code(refusal.code()), refusal);
        }
        for unknown in [0, 0xff, 0x111, u64::MAX] {
            assert_eq!(Refusal::from_code(unknown), Refusal::Protocol);
        }
    }

    #[test]
    fn reasons_are_distinct_labels() {
        let reasons: std::collections::BTreeSet<_> = Refusal::ALL.iter().map(|refusal| refusal.reason()).collect();
        assert_eq!(reasons.len(), Refusal::ALL.len());
        assert!(reasons.iter().all(|reason| reason.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')));
    }

    #[test]
    fn statuses_are_as_documented() {
        assert_eq!((Refusal::Denied.http_status(), Refusal::Denied.grpc_status()), (403, 7));
        assert_eq!((Refusal::UnknownExport.http_status(), Refusal::UnknownExport.grpc_status()), (404, 14));
        assert_eq!((Refusal::NoBackend.http_status(), Refusal::NoBackend.grpc_status()), (503, 14));
        assert_eq!((Refusal::Overloaded.http_status(), Refusal::Overloaded.grpc_status()), (503, 14));
        assert_eq!((Refusal::ConnectTimeout.http_status(), Refusal::ConnectTimeout.grpc_status()), (504, 4));
        assert_eq!((Refusal::Deadline.http_status(), Refusal::Deadline.grpc_status()), (504, 4));
        assert_eq!(Refusal::Loop.http_status(), 508);
        assert!(Refusal::ALL.iter().all(|refusal| (403..=508).contains(&refusal.http_status())));
    }

    #[test]
    fn a_denied_caller_is_not_offered_elsewhere() {
        for refusal in [Refusal::Denied, Refusal::IdentityMismatch, Refusal::Loop, Refusal::BackendReset] {
            assert!(!refusal.never_processed(), "{refusal}");
        }
    }
}
