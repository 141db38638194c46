//! A peer that has valid certificates and means harm: what it does is an [`Attack`], to whom and for how long a [`Plan`].
//!
//! ```text
//! linkspan-hostile ATTACK --to ADDR  --identity DIR ...    dials the gateway
//! linkspan-hostile ATTACK --listen ADDR --identity DIR ... waits until the gateway dials
//!   plan  -- connections, with the peer's own hello on each
//!     streams, http, control, datagrams -- what goes over them
//!     strangers -- what comes before a connection: handshakes, the door for TCP
//!     clients -- what comes from the other side: to a mirrored service, without any certificate
//! ```
//!
//! An attack never ends by itself: what it holds, it holds until its time is over, and what the gateway closes is opened
//! again. Its [`Report`] says how far it came, so that a test can tell an attack that was withstood from one that never began.

mod clients;
mod control;
mod datagrams;
mod http;
mod plan;
mod strangers;
mod streams;

use std::sync::Arc;

use clap::ValueEnum;

pub use plan::{Plan, Report, Target};

/// What the hostile peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Attack {
    /// Opens streams and writes no header: all that it may have open.
    Unheaded,
    /// Writes headers byte by byte.
    HeaderDrip,
    /// Writes headers as large as they may be, and larger.
    GiantHeader,
    /// Opens streams that nobody needs, as fast as it can.
    StreamFlood,
    /// Opens streams for a service and resets them at once.
    RapidReset,
    /// Opens streams for a service and stops them at once.
    StopFlood,
    /// Asks for all that a service has, and reads nothing.
    NeverRead,
    /// The same, and acknowledges nothing for most of the time.
    Unacknowledged,
    /// Sends to a service that reads nothing, as far as QUIC lets it.
    Overrun,
    /// The same in pieces of one byte, each in a packet of its own among large ones.
    Fragments,
    /// Hellos, goaways and credits without end, with absurd ids and limits.
    ControlFlood,
    /// A control message that never ends, and second control streams.
    ControlBreach,
    /// Streams of kinds that there are not.
    UnknownKinds,
    /// Datagrams of flows that there are not.
    Datagrams,
    /// Handshakes that are begun and not finished.
    HalfHandshakes,
    /// Connections, as many as it gets.
    Connections,
    /// HTTP streams with frames of unknown types and in the wrong order.
    HttpFrames,
    /// HTTP streams that stop in the middle of a frame.
    HttpHalves,
    /// HTTP heads over every cap.
    HttpHeads,
    /// Trailers that are no trailers.
    HttpTrailers,
    /// The door for TCP: prefaces that trickle in or are wrong.
    TcpPreface,
    /// The door for TCP: packets of impossible lengths.
    TcpLengths,
    /// No peer but clients of a mirrored service, whose heads trickle in.
    SlowClients,
}

impl Attack {
    /// All that a peer can do.
    pub const ALL: [Self; 22] = [
        Self::Unheaded,
        Self::HeaderDrip,
        Self::GiantHeader,
        Self::StreamFlood,
        Self::RapidReset,
        Self::StopFlood,
        Self::NeverRead,
        Self::Unacknowledged,
        Self::Overrun,
        Self::Fragments,
        Self::ControlFlood,
        Self::ControlBreach,
        Self::UnknownKinds,
        Self::Datagrams,
        Self::Connections,
        Self::HttpFrames,
        Self::HttpHalves,
        Self::HttpHeads,
        Self::HttpTrailers,
        Self::TcpPreface,
        Self::TcpLengths,
        Self::HalfHandshakes,
    ];

    /// Whether what it holds, and not what it does, is the harm.
    pub fn holds(self) -> bool {
        matches!(
            self,
            Self::Unheaded
                | Self::NeverRead
                | Self::Unacknowledged
                | Self::Overrun
                | Self::Fragments
                | Self::Connections
                | Self::HalfHandshakes
        )
    }

    /// The name on the command line.
    ///
    /// # Panics
    /// Never: no attack is hidden.
    pub fn name(self) -> String {
        self.to_possible_value().expect("a visible value").get_name().to_owned()
    }

    /// Carries it out to the plan's end.
    pub async fn run(self, plan: Arc<Plan>) -> Report {
        match self {
            Self::Unheaded => plan::on_connections(&plan, streams::unheaded).await,
            Self::HeaderDrip => plan::on_connections(&plan, streams::header_drip).await,
            Self::GiantHeader => plan::on_connections(&plan, streams::giant_header).await,
            Self::StreamFlood => plan::on_connections(&plan, streams::flood).await,
            Self::RapidReset => plan::on_connections(&plan, streams::rapid_reset).await,
            Self::StopFlood => plan::on_connections(&plan, streams::stop_flood).await,
            Self::NeverRead => plan::on_connections(&plan, streams::never_read).await,
            Self::Unacknowledged => plan::on_connections(&plan, streams::unacknowledged).await,
            Self::Overrun => plan::on_connections(&plan, streams::overrun).await,
            Self::Fragments => plan::on_connections(&plan, streams::fragments).await,
            Self::ControlFlood => plan::on_connections(&plan, control::flood).await,
            Self::ControlBreach => plan::on_connections(&plan, control::breach).await,
            Self::UnknownKinds => plan::on_connections(&plan, streams::unknown_kinds).await,
            Self::Datagrams => plan::on_connections(&plan, datagrams::unknown_flows).await,
            Self::Connections => plan::on_connections(&plan, plan::hold).await,
            Self::HttpFrames => plan::on_connections(&plan, http::frames).await,
            Self::HttpHalves => plan::on_connections(&plan, http::halves).await,
            Self::HttpHeads => plan::on_connections(&plan, http::heads).await,
            Self::HttpTrailers => plan::on_connections(&plan, http::trailers).await,
            Self::HalfHandshakes => strangers::half_handshakes(&plan).await,
            Self::TcpPreface => strangers::tcp_preface(&plan).await,
            Self::TcpLengths => strangers::tcp_lengths(&plan).await,
            Self::SlowClients => clients::slow(&plan).await,
        }
        plan.report(self)
    }
}
