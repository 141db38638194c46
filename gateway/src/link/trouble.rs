//! Why there is no connection, in words: from quinn's errors and from the close codes of this protocol.

use std::io;
use std::net::SocketAddr;

use linkspan_proto::configuration::Carrier;
use quinn::{ConnectionError, VarInt};
use quinn_proto::TransportErrorCode;

use super::state::{CloseWhy, Trouble};
use super::tls::TrustFailure;

/// Application codes of a connection's close; disjoint from the refusals of streams (0x100 to 0x1ff).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseCode {
    /// The gateway ends.
    Shutdown,
    /// Superfluous before it carried anything.
    Unneeded,
    /// No hello in time.
    NoHello,
    /// The peer's process was started anew.
    Restarted,
    /// More connections than a link needs.
    TooMany,
    /// The control stream broke the protocol.
    Protocol,
    /// The Link object was deleted.
    LinkRemoved,
    /// The trust bundle changed and the certificate does not verify any more.
    TrustChanged,
    /// A certificate of the connection has expired.
    CertificateExpired,
    /// Its streams have ended after a goaway.
    Drained,
    /// The peer calls itself by another name than the Link.
    NameMismatch,
    /// No protocol version in common.
    VersionMismatch,
    /// Probes went unanswered, and nothing else came through either.
    Silent,
}

impl CloseCode {
    const ALL: [Self; 13] = [
        Self::Shutdown,
        Self::Unneeded,
        Self::NoHello,
        Self::Restarted,
        Self::TooMany,
        Self::Protocol,
        Self::LinkRemoved,
        Self::TrustChanged,
        Self::CertificateExpired,
        Self::Drained,
        Self::NameMismatch,
        Self::VersionMismatch,
        Self::Silent,
    ];

    pub(super) const fn code(self) -> VarInt {
        VarInt::from_u32(match self {
            Self::Shutdown => 0x200,
            Self::Unneeded => 0x201,
            Self::NoHello => 0x202,
            Self::Restarted => 0x203,
            Self::TooMany => 0x204,
            Self::Protocol => 0x205,
            Self::LinkRemoved => 0x206,
            Self::TrustChanged => 0x207,
            Self::CertificateExpired => 0x208,
            Self::Drained => 0x209,
            Self::NameMismatch => 0x20a,
            Self::VersionMismatch => 0x20b,
            Self::Silent => 0x20c,
        })
    }

    fn from_code(code: VarInt) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.code() == code)
    }

    /// For logs and conditions.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Shutdown => "PeerShutDown",
            Self::Unneeded => "Unneeded",
            Self::NoHello => "NoHello",
            Self::Restarted => "PeerRestarted",
            Self::TooMany => "TooManyConnections",
            Self::Protocol => "ProtocolError",
            Self::LinkRemoved => "LinkRemoved",
            Self::TrustChanged => "TrustBundleMismatch",
            Self::CertificateExpired => "CertificateExpired",
            Self::Drained => "Drained",
            Self::NameMismatch => "ClusterNameMismatch",
            Self::VersionMismatch => "VersionMismatch",
            Self::Silent => "Silent",
        }
    }

    /// What the side that was closed should know; `None`: nothing is wrong.
    fn trouble(self) -> Option<Trouble> {
        let message = match self {
            Self::Unneeded | Self::Drained | Self::Restarted => return None,
            Self::Shutdown => "the peer's gateway has shut down",
            Self::NoHello => "the peer closed the connection because our hello did not arrive in time",
            Self::TooMany => {
                "the peer says that this cluster has too many connections to it; do several clusters share \
                 one name and trust domain?"
            }
            Self::Protocol => "the peer says that we broke the link protocol; compare the versions of both sides",
            Self::LinkRemoved => "the peer has removed its Link for this cluster",
            Self::TrustChanged => {
                "the peer's trustBundle for this cluster has changed and does not verify our certificate; \
                 run `linkspan link export` here and import the result on the peer"
            }
            Self::CertificateExpired => "a certificate of the connection has expired and was not replaced in time",
            Self::NameMismatch => {
                "the peer's Link calls this cluster by another name than it has; rename the Link on the peer"
            }
            Self::Silent => "the peer heard nothing over the connection for some time",
            Self::VersionMismatch => "the two gateways have no link protocol version in common; upgrade the older one",
        };
        Some(Trouble { reason: self.word(), message: message.to_owned() })
    }
}

impl From<CloseWhy> for CloseCode {
    fn from(why: CloseWhy) -> Self {
        match why {
            CloseWhy::Unneeded => Self::Unneeded,
            CloseWhy::NoHello => Self::NoHello,
            CloseWhy::Restarted => Self::Restarted,
            CloseWhy::TooMany => Self::TooMany,
            CloseWhy::Shutdown => Self::Shutdown,
        }
    }
}

/// Ends a connection with a code that the peer can put into words.
pub(super) fn close(connection: &quinn::Connection, code: CloseCode) {
    connection.close(code.code(), code.word().as_bytes());
}

/// What a lost connection means; `None`: it ended as one of the two sides wished.
pub(super) fn of_connection(error: &ConnectionError, remote: SocketAddr, carrier: Carrier) -> Option<Trouble> {
    Some(match error {
        // The only internal error over TCP: the pipe has ended, and with it the endpoint.
        ConnectionError::TransportError(error)
            if carrier == Carrier::Tcp && error.code == TransportErrorCode::INTERNAL_ERROR =>
        {
            let message = format!(
                "the TCP connection to {remote} was ended by the other side or on the way; is that the peer's gateway, does it \
                 serve the link over TCP, and do its logs say why?"
            );
            trouble("TcpEnded", message)
        }
        ConnectionError::LocallyClosed => return None,
        ConnectionError::ApplicationClosed(close) => match CloseCode::from_code(close.error_code) {
            Some(code) => return code.trouble(),
            None => trouble("ConnectionClosed", "the peer closed the connection with a code of a later version"),
        },
        ConnectionError::TransportError(error) => match TrustFailure::find(&error.reason) {
            Some(failure) => trouble(failure.word(), failure.of_peer()),
            None => trouble("HandshakeFailed", format!("the connection to {remote} failed: {error}")),
        },
        ConnectionError::ConnectionClosed(close) => {
            // Text of the peer, not yet authenticated: only a word of ours is looked for, nothing is repeated.
            match TrustFailure::find(&String::from_utf8_lossy(&close.reason)) {
                Some(failure) => trouble(failure.word(), failure.of_us()),
                None => closed_by_transport(close, remote),
            }
        }
        ConnectionError::Reset => trouble("PeerRestarted", "the peer's gateway was restarted"),
        ConnectionError::TimedOut => trouble("TimedOut", format!("no packet from {remote} for 5 s")),
        ConnectionError::VersionMismatch => {
            trouble("NotAGateway", format!("{remote} speaks another version of QUIC; is that the peer's gateway?"))
        }
        ConnectionError::CidsExhausted => trouble("LocalError", "no connection ids are left"),
    })
}

/// Why there is no TCP connection.
pub(super) fn of_tcp(error: &io::Error, remote: SocketAddr) -> Trouble {
    let message = format!(
        "no TCP connection to {remote}: {error}; does the peer's gateway serve the link over TCP, and does every firewall \
         between let it pass?"
    );
    Trouble { reason: Trouble::UNREACHABLE, message }
}

fn closed_by_transport(close: &quinn::ConnectionClose, remote: SocketAddr) -> Trouble {
    // RFC 9000 section 20.1: CONNECTION_REFUSED; section 20.1 and RFC 8446 section 6: no_application_protocol.
    match u64::from(close.error_code) {
        0x02 => trouble(
            "ConnectionRefused",
            "the peer's gateway takes no new connections: it is shutting down, or overloaded by handshakes",
        ),
        0x178 => trouble("NotAGateway", format!("{remote} speaks QUIC, but not the link protocol of this version")),
        code => trouble("HandshakeFailed", format!("{remote} ended the connection with QUIC error {code:#x}")),
    }
}

/// One sentence for the operator.
pub(super) fn trouble(reason: &'static str, message: impl Into<String>) -> Trouble {
    Trouble { reason, message: message.into() }
}
