//! Stage 6: the endpoints of an export.
//!
//! ```text
//! Admitted --Endpoints::pick(tried)--> EndpointGuard --connect--> TcpStream
//!              two choices, peak EWMA     counts in flight, learns latency and failure
//!                                                  `--associate--> UdpSocket, connected
//! ```
//!
//! - In: an [`Admitted`], the endpoints tried already.
//! - Out: a connected socket and a guard that keeps the endpoint's load true.
//! - Refuses when: no endpoint is ready (`NoBackend`), all that were tried refused (`ConnectRefused`) or stayed silent
//!   (`ConnectTimeout`), or we are out of descriptors (`Overloaded`).
//! - Never does: dial an address that is not in the export; try another endpoint once a byte was sent.
//! - Numbers: [`CONNECT_BUDGET`], [`ATTEMPTS`].

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use linkspan_proto::refusal::Refusal;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::remote::Admitted;

mod associate;
mod connect;
mod endpoints;

// The header that tells a TCP backend who calls.
pub mod proxy_protocol;

pub use associate::associate;
pub use connect::connect;
pub use endpoints::{EndpointGuard, Endpoints};

/// How long one endpoint may take to accept a connection. Endpoints are near: a healthy one takes a millisecond, and the
/// first retransmission of a lost SYN comes after one second. Equal to `route::load::FAILURE`.
pub const CONNECT_BUDGET: Duration = Duration::from_secs(1);

/// Endpoints tried for one connection. With three the chance that an export with a tenth of dead endpoints fails is one
/// in a thousand, and the caller waits 3 s at most.
pub const ATTEMPTS: usize = 3;

/// Why no endpoint took the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// No endpoint is ready, or all were tried.
    #[error("no endpoint is ready")]
    NoBackend,
    /// The endpoint refused.
    #[error("{0} refused the connection")]
    Refused(SocketAddr),
    /// The endpoint did not answer within the budget.
    #[error("{0} did not answer")]
    Timeout(SocketAddr),
    /// There is no way to the endpoint.
    #[error("{0} cannot be reached")]
    Unreachable(SocketAddr),
    /// We are out of descriptors or ports; no endpoint is at fault.
    #[error("out of file descriptors or local ports")]
    Starved,
}

impl DialError {
    /// What the caller is told.
    #[must_use]
    pub const fn refusal(self) -> Refusal {
        match self {
            Self::NoBackend => Refusal::NoBackend,
            Self::Refused(_) => Refusal::ConnectRefused,
            Self::Timeout(_) | Self::Unreachable(_) => Refusal::ConnectTimeout,
            Self::Starved => Refusal::Overloaded,
        }
    }

    /// Whether another endpoint may do better.
    #[must_use]
    pub const fn is_endpoints(self) -> bool {
        matches!(self, Self::Refused(_) | Self::Timeout(_) | Self::Unreachable(_))
    }
}

/// Connects to an endpoint of the export: the better of two, another one if that fails, up to [`ATTEMPTS`].
///
/// # Errors
/// With the last endpoint's failure, or that there is none.
pub async fn dial(admitted: &Admitted) -> Result<(TcpStream, EndpointGuard), DialError> {
    let endpoints = Endpoints::of(admitted);
    let mut tried = Vec::new();
    let mut last = DialError::NoBackend;
    while tried.len() < ATTEMPTS {
        let Ok(mut endpoint) = endpoints.pick(&tried) else { return Err(last) };
        match connect(endpoint.address()).await {
            Ok(stream) => {
                endpoint.answered();
                return Ok((stream, endpoint));
            }
            Err(error) if error.is_endpoints() => {
                endpoint.failed();
                tracing::debug!(service = %admitted.service(), %error, "connect failed; trying another endpoint");
                tried.push(endpoint.address());
                last = error;
            }
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Tells a freshly connected endpoint who calls, if the export asks for that. Must come before any other byte.
///
/// `client` is `None` where the connection serves one caller but several of its addresses (HTTP connections are reused).
///
/// # Errors
/// When the endpoint has cut the connection already.
pub async fn introduce(
    stream: &mut TcpStream,
    admitted: &Admitted,
    address: SocketAddr,
    client: Option<SocketAddr>,
    trace_id: Option<&str>,
) -> Result<(), DialError> {
    if !admitted.export().proxy_protocol {
        return Ok(());
    }
    let header = proxy_protocol::header(admitted, client, address, trace_id);
    // Fits into the empty send buffer of a new socket: one segment, before anything else.
    stream.write_all(&header).await.map_err(|_| DialError::Refused(address))
}

impl DialError {
    fn from_io(address: SocketAddr, error: &io::Error) -> Self {
        use io::ErrorKind::{AddrInUse, AddrNotAvailable, ConnectionRefused, ConnectionReset, TimedOut};
        match error.kind() {
            ConnectionRefused | ConnectionReset => Self::Refused(address),
            TimedOut => Self::Timeout(address),
            // No local port left for this destination.
            AddrNotAvailable | AddrInUse => Self::Starved,
            // EMFILE, ENFILE, ENOBUFS, ENOMEM on Linux.
            _ if matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12)) => Self::Starved,
            _ => Self::Unreachable(address),
        }
    }
}

#[cfg(test)]
mod tests;
