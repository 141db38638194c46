//! Why something does not work, in one word for programs: the closed set that `check -o json` carries as `cause`.
//!
//! People read the reason and the remedy beside it. A check that did not pass and has no cause is none of these.

use serde::Serialize;

/// What is at the bottom of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Cause {
    /// The Link's address does not resolve, nobody is there, or somebody else is. One who has the right address and is down
    /// looks the same from outside.
    PeerAddress,
    /// UDP does not get through, and TCP does.
    UdpBlocked,
    /// Small packets get through, and larger ones vanish without a word.
    MtuBlackHole,
    /// A certificate is not signed by the root in the Link.
    TrustBundle,
    /// A certificate has ended.
    CertificateExpired,
    /// A certificate has not begun.
    CertificateNotYetValid,
    /// The clocks of two sides differ, or ours has gone back.
    ClockSkew,
    /// One of the two sides has no Link for the other.
    LinkMissing,
    /// Controllers, gateways or clusters do not know the same of what is exported.
    CatalogueDisagreement,
    /// Nobody exports it.
    NotExported,
    /// A policy refuses it.
    PolicyDenied,
    /// It is exported, and nothing behind it is ready.
    NoReadyEndpoint,
    /// An endpoint that is said to be ready refuses connections.
    BackendRefused,
    /// The DNS server gives no answer.
    DnsSilent,
    /// Another program has the port.
    PortTaken,
}

impl Cause {
    /// What a gateway's reason for a link comes down to; both sides of a link use the same words.
    pub(crate) fn of_link(reason: &str) -> Option<Self> {
        Some(match reason {
            "TrustBundleMismatch" => Self::TrustBundle,
            "CertificateExpired" => Self::CertificateExpired,
            "CertificateNotYetValid" => Self::CertificateNotYetValid,
            "UnknownPeer" | "LinkRemoved" => Self::LinkMissing,
            // Whoever answers is a gateway, or speaks QUIC at least, and not the one that the Link means.
            "TrustDomainMismatch" | "NotAGateway" | "ClusterNameMismatch" => Self::PeerAddress,
            _ => return None,
        })
    }

    /// What a refusal of a gateway comes down to.
    pub(crate) fn of_refusal(reason: &str) -> Option<Self> {
        Some(match reason {
            "denied" | "identity_mismatch" => Self::PolicyDenied,
            "no_backend" => Self::NoReadyEndpoint,
            "connect_refused" => Self::BackendRefused,
            "unknown_export" => Self::NotExported,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_read_one_word() {
        let word = |cause| serde_json::to_value(cause).expect("serialises");
        assert_eq!(word(Cause::PeerAddress), "peerAddress");
        assert_eq!(word(Cause::MtuBlackHole), "mtuBlackHole");
        assert_eq!(word(Cause::DnsSilent), "dnsSilent");
    }

    #[test]
    fn the_words_of_links_and_refusals_are_known() {
        assert_eq!(Cause::of_link("UnknownPeer"), Some(Cause::LinkMissing));
        assert_eq!(Cause::of_link("Unreachable"), None, "silence has a cause of its own, which packets find out");
        assert_eq!(Cause::of_refusal("connect_refused"), Some(Cause::BackendRefused));
        assert_eq!(Cause::of_refusal("overloaded"), None);
    }
}
