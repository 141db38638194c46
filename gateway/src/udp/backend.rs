//! The backend's end of a flow: a socket that is connected to one endpoint.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use linkspan_proto::refusal::Refusal;

use super::socket::{Socket, TOO_LARGE};
use crate::backend::{self, DialError, EndpointGuard};
use crate::remote::Admitted;

/// An endpoint in use by one flow.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) socket: Arc<Socket>,
    endpoint: EndpointGuard,
}

impl Backend {
    /// Picks an endpoint. Nothing is sent yet.
    pub(super) fn pick(admitted: &Admitted) -> Result<Self, DialError> {
        let (socket, endpoint) = backend::associate(admitted)?;
        let socket = Socket::new(socket).map_err(|_| DialError::Starved)?;
        Ok(Self { socket: Arc::new(socket), endpoint })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.endpoint.address()
    }

    /// Hands out what the endpoint sends, until it says that nobody is there.
    pub(super) async fn answers(&mut self, mut each: impl FnMut(&[u8])) -> Refusal {
        loop {
            let received = match self.socket.readable().await {
                Ok(()) => self.socket.receive(|received| {
                    self.endpoint.answered();
                    each(received.payload);
                }),
                Err(error) => Err(error),
            };
            match received {
                // What was received is on its way before more is.
                Ok(()) => tokio::task::yield_now().await,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    self.endpoint.failed();
                    return Refusal::ConnectRefused;
                }
                // Of a datagram sent before, that a hop could not pass on; the next one may be smaller.
                Err(error) if error.raw_os_error() == Some(TOO_LARGE) => {}
                Err(error) => {
                    tracing::debug!(backend = %self.endpoint.address(), %error, "socket of a flow failed");
                    return Refusal::BackendReset;
                }
            }
        }
    }
}
