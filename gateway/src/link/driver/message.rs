//! What a driver is told, by whoever configures links and by the tasks that it started.

use std::sync::Arc;
use std::time::Duration;

use linkspan_proto::configuration::{Carrier, Peer};
use linkspan_proto::control::Hello;
use quinn::ConnectionError;

use crate::link::connection::ConnectionId;
use crate::link::health::{Missed, Probe};
use crate::link::state::{Answer, AttemptId, Leave, Trouble};
use crate::link::tls::PeerTrust;

/// A Peer resource and what its bundle amounts to.
#[derive(Debug)]
pub(in crate::link) struct PeerConfig {
    pub(in crate::link) peer: Peer,
    pub(in crate::link) trust: Arc<PeerTrust>,
}

impl PartialEq for PeerConfig {
    fn eq(&self, other: &Self) -> bool {
        self.peer == other.peer
    }
}

/// What a driver is told.
#[derive(Debug)]
pub(in crate::link) enum Message {
    /// The Link object changed.
    Configure(Arc<PeerConfig>),
    /// The Link object is gone.
    Remove,
    /// The gateway will end in some seconds.
    Retire,
    /// The gateway will end.
    Announce,
    /// The gateway ends.
    Shutdown { deadline: Duration },
    /// The addresses behind the Link's names.
    Resolved(Result<Answer, Trouble>),
    /// A dial succeeded.
    Dialled { attempt: AttemptId, connection: quinn::Connection, worker: usize, carrier: Carrier },
    /// A dial failed.
    DialFailed { attempt: AttemptId, trouble: Trouble },
    /// The peer dialled us.
    Accepted { connection: quinn::Connection, worker: usize, carrier: Carrier },
    /// First message on a control stream.
    Hello { id: ConnectionId, hello: Hello },
    /// The peer wants to leave a connection.
    GoAway { id: ConnectionId, leave: Leave },
    /// A connection is gone.
    Closed { id: ConnectionId, error: ConnectionError },
    /// A probe was answered after this time, or not.
    Probed { id: ConnectionId, probe: Probe, result: Result<Duration, Missed> },
}
