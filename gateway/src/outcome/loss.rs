//! Why a datagram was not carried on.

/// Why a datagram was not carried on. Closed, as [`super::Outcome`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// It is larger than what the link (or the client's network) takes in one piece; none is ever fragmented.
    Oversize,
    /// There was no room: in the link's queue, among those that wait for an association, or in the socket's buffer.
    QueueFull,
    /// Its client has too many flows, or there are too many in all.
    FlowLimit,
    /// The flow was refused, or nothing could serve it.
    Refused,
    /// Nobody knows the flow that it names: it has ended.
    UnknownFlow,
    /// It is no datagram of a flow at all.
    Malformed,
    /// The link broke under it.
    LinkLost,
    /// The system did not send it on.
    SendFailed,
}

impl Loss {
    /// All of them, in the order of their slots.
    pub const ALL: [Self; 8] = [
        Self::Oversize,
        Self::QueueFull,
        Self::FlowLimit,
        Self::Refused,
        Self::UnknownFlow,
        Self::Malformed,
        Self::LinkLost,
        Self::SendFailed,
    ];

    /// The metric label and log field.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Oversize => "oversize",
            Self::QueueFull => "queue_full",
            Self::FlowLimit => "flow_limit",
            Self::Refused => "refused",
            Self::UnknownFlow => "unknown_flow",
            Self::Malformed => "malformed",
            Self::LinkLost => "link_lost",
            Self::SendFailed => "send_failed",
        }
    }

    /// Its place in [`Self::ALL`].
    #[must_use]
    pub const fn slot(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_has_its_own_slot_and_label() {
        for (index, loss) in Loss::ALL.into_iter().enumerate() {
            assert_eq!(loss.slot(), index);
        }
        let labels: std::collections::BTreeSet<_> = Loss::ALL.into_iter().map(Loss::label).collect();
        assert_eq!(labels.len(), Loss::ALL.len());
    }
}
