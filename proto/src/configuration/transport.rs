//! What a link is dialled over, what carries it and why, and what its losses mean.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a link is dialled over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// QUIC; TCP while QUIC does not get through.
    #[default]
    Auto,
    /// QUIC over UDP, never TCP.
    Quic,
    /// TCP, never QUIC over UDP: for bulk on a clean network, or where UDP is known to be blocked.
    Tcp,
}

impl Transport {
    /// Whether it is what a Link without the field has.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What lost packets of a link over QUIC mean for how fast is sent. Over TCP the kernel decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// As `lan` while round trips are below 5 ms, as `wan` from there on.
    #[default]
    Auto,
    /// Every loss is a full queue: for networks where others must not be pressed.
    Lan,
    /// Up to two losses of a hundred are the path's own as long as round trips are not longer than usual.
    Wan,
}

impl Congestion {
    /// Whether it is what a Link without the field has.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What carries a connection of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// QUIC over UDP.
    Quic,
    /// TCP.
    Tcp,
}

impl Carrier {
    /// Both, the preferred one first.
    pub const ALL: [Self; 2] = [Self::Quic, Self::Tcp];

    /// As logs, metrics and JSON spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a link is carried by what it is carried by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransportReason {
    /// QUIC is what `auto` begins with.
    Preferred,
    /// The Link says so.
    Configured,
    /// No QUIC connection came about.
    UdpBlocked,
    /// QUIC connections stood, and their probes were not answered any more.
    UdpSilent,
    /// QUIC works again.
    UdpRestored,
    /// The peer dialled like this; we have nothing that we would rather use.
    PeerDialled,
}

impl TransportReason {
    /// As logs and JSON spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Preferred => "Preferred",
            Self::Configured => "Configured",
            Self::UdpBlocked => "UdpBlocked",
            Self::UdpSilent => "UdpSilent",
            Self::UdpRestored => "UdpRestored",
            Self::PeerDialled => "PeerDialled",
        }
    }
}
