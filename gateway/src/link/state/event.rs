//! The words between the state and its driver: what the state is told, what it asks for, and what both speak about.

use std::net::SocketAddr;

use linkspan_proto::configuration::{Carrier, Transport};

use super::DIAL_TIMEOUT;
use crate::link::connection::ConnectionId;
use crate::link::health::Probes;

/// Names a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::link) struct AttemptId(pub(in crate::link) u64);

/// Why there is no connection: a closed set word for conditions, and a sentence with a remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::link) struct Trouble {
    pub(in crate::link) reason: &'static str,
    pub(in crate::link) message: String,
}

impl Trouble {
    /// The least that can be said; anything else says more.
    pub(in crate::link) const UNREACHABLE: &'static str = "Unreachable";

    pub(in crate::link) fn unreachable(address: SocketAddr, carrier: Carrier) -> Self {
        let (port, protocol) = match carrier {
            Carrier::Quic => ("udp", "UDP"),
            Carrier::Tcp => ("tcp", "TCP"),
        };
        let message = format!(
            "no answer from {address}/{port} within {} s; is the peer's gateway running, and does every firewall between \
             let {protocol} to that port pass?",
            DIAL_TIMEOUT.as_secs()
        );
        Self { reason: Self::UNREACHABLE, message }
    }
}

/// Families of addresses that were not answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::link) struct Silent {
    /// IPv4.
    pub(in crate::link) four: bool,
    /// IPv6.
    pub(in crate::link) six: bool,
}

impl Silent {
    /// Whether this address is of such a family.
    pub(in crate::link) const fn holds(self, address: &SocketAddr) -> bool {
        if address.is_ipv4() { self.four } else { self.six }
    }
}

/// Where the peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::link) struct Answer {
    /// Most preferred first.
    pub(in crate::link) addresses: Vec<SocketAddr>,
    /// Every name was answered. If not, an address that is missing may still be right.
    pub(in crate::link) is_complete: bool,
    /// Families of which a name with addresses of the other may have some too: nobody answered.
    pub(in crate::link) silent: Silent,
}

/// What a hello tells the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::link) struct HelloFacts {
    pub(in crate::link) gateway_id: String,
    pub(in crate::link) boot_id: String,
    pub(in crate::link) worker: u32,
    pub(in crate::link) workers: u32,
}

/// Why a side wants to leave a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::link) enum Leave {
    /// The process ends: no new streams from now on.
    Shutdown,
    /// Its certificate changed, or its gateway will soon end: a new connection first, please.
    Rotation,
    /// A newer connection takes its place.
    Replaced,
    /// The other direction is kept.
    Duplicate,
}

impl Leave {
    pub(in crate::link) const fn word(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Rotation => "rotation",
            Self::Replaced => "replaced",
            Self::Duplicate => "duplicate",
        }
    }

    /// Words of later versions mean the mildest: somebody takes its place.
    pub(in crate::link) fn from_word(word: &str) -> Self {
        [Self::Shutdown, Self::Rotation, Self::Duplicate]
            .into_iter()
            .find(|leave| leave.word() == word)
            .unwrap_or(Self::Replaced)
    }
}

/// Why we close a connection without waiting for its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::link) enum CloseWhy {
    /// It became superfluous before it carried anything.
    Unneeded,
    /// No hello in time.
    NoHello,
    /// The peer's gateway process was started anew since.
    Restarted,
    /// The peer opened more connections than a link needs.
    TooMany,
    /// This gateway is ending.
    Shutdown,
}

/// What happened.
#[derive(Clone, Debug)]
pub(in crate::link) enum Event {
    /// The Link object: whether it has addresses.
    Configured { dialable: bool },
    /// The Link object: what to dial over.
    Transport(Transport),
    /// The addresses behind the Link's host names.
    Resolved(Result<Answer, Trouble>),
    /// A handshake has ended well on our side.
    Dialled { attempt: AttemptId, connection: ConnectionId },
    /// A handshake has failed.
    DialFailed { attempt: AttemptId, trouble: Trouble },
    /// The peer dialled us and is authenticated.
    Accepted { connection: ConnectionId, carrier: Carrier },
    /// What the probes of a connection say has changed.
    Probes { connection: ConnectionId, probes: Probes },
    /// The peer's hello: the connection is good on both sides.
    Hello { connection: ConnectionId, facts: HelloFacts },
    /// The peer wants to leave a connection.
    GoAway { connection: ConnectionId, leave: Leave },
    /// A connection is gone. `None`: as wished.
    Closed { connection: ConnectionId, trouble: Option<Trouble> },
    /// Somebody who claims to be the peer was refused.
    Refused(Trouble),
    /// We have a new certificate.
    Rotated,
    /// This gateway will end in some seconds and serves on until then: peers shall have other connections by then.
    Retire,
    /// This gateway will end: peers shall know before anything is refused.
    Announce,
    /// This gateway ends: leave every connection when its streams have ended.
    Shutdown,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::link) enum Action {
    /// Look the Link's addresses up, then say [`Event::Resolved`].
    Resolve,
    /// Dial from this worker.
    Dial { attempt: AttemptId, worker: usize, address: SocketAddr, carrier: Carrier },
    /// Forget a dial.
    Abandon { attempt: AttemptId },
    /// Tell the peer that we want to leave.
    GoAway { connection: ConnectionId, leave: Leave },
    /// Close when its streams have ended.
    Finish { connection: ConnectionId },
    /// Close now.
    Close { connection: ConnectionId, why: CloseWhy },
}
