//! Where our own gateways come in: the site's sockets, or a TLS port for the pods of a cluster.
//!
//! ```text
//! site         controller.sock, exchange.sock   whoever may open them is ours: mode 0600
//! Kubernetes   4192/tcp, TLS, both ends of this cluster's own authority
//!                ALPN h2                          configuration and certificates
//!                ALPN linkspan-exchange/1         a pipe to a peer's controller, for gateways with a certificate only
//! ```
//!
//! - **In**: connections.
//! - **Out**: the same, decrypted, with what is known of the other end ([`Caller`]).
//! - **Refuses when**: there is no TLS 1.3 handshake within [`HANDSHAKE`], a certificate is shown that is not a gateway's of
//!   this cluster, or too many are open: [`HANDSHAKES_MAX`] not yet decided, [`HANDSHAKES_OF_SOURCE_MAX`] of them of one
//!   address, [`STRANGERS_MAX`] without a certificate, [`CONNECTIONS_MAX`] with one. After its handshake, whoever has none takes
//!   no place of those who have. Until then only its address is known: one address holds an eighth of the places at most, and
//!   eight that do nothing but begin handshakes keep gateways waiting that begin one.
//! - **Never does**: ask a caller without a certificate for anything; what it may do is decided where it asks.
//! - **Numbers**: [`HANDSHAKE`], [`HANDSHAKES_MAX`], [`HANDSHAKES_OF_SOURCE_MAX`], [`STRANGER`], [`STRANGERS_MAX`],
//!   [`CONNECTIONS_MAX`], [`WAITING`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use linkspan_runtime::backoff::Backoff;
use linkspan_runtime::drain::Signal;
use linkspan_runtime::task;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

// Places for handshakes.
mod handshakes;
// Who is believed, and what is shown.
pub mod tls;

use handshakes::Handshakes;

/// From the first byte to the end of the handshake (S-27).
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once. All gateways of a cluster may come in one second, and a handshake takes milliseconds.
pub const HANDSHAKES_MAX: usize = 256;
/// Of these, of one source address. A gateway begins a few at once, two for each of its peers when there is a new leader, and
/// tries again where it finds no place.
pub const HANDSHAKES_OF_SOURCE_MAX: usize = 32;
/// How long a connection without a certificate may last: a token is judged in 5 s at most, and a certificate signed.
pub const STRANGER: Duration = Duration::from_secs(10);
/// Connections without a certificate. A gateway needs one for a moment, once in its life.
pub const STRANGERS_MAX: usize = 8;
/// Connections with a certificate: a few for each gateway, two for each of its peers, and room for rolling updates.
pub const CONNECTIONS_MAX: usize = 1024;
/// Accepted connections that wait for their stage; it takes them at once.
const WAITING: usize = 16;

/// Both directions of a connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, whatever it runs over.
pub type Stream = Box<dyn Io>;

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A gateway of this cluster: it could open our socket, or has shown its certificate.
    Gateway,
    /// Anybody. It may ask for a certificate, and must prove itself for it.
    Unknown,
}

/// One way in.
#[derive(Debug)]
pub enum Door {
    /// A socket of the site.
    Socket(UnixListener),
    /// What comes over the TLS port.
    Port(mpsc::Receiver<(Stream, Caller)>),
}

impl From<UnixListener> for Door {
    fn from(listener: UnixListener) -> Self {
        Self::Socket(listener)
    }
}

impl std::fmt::Debug for dyn Io {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Io")
    }
}

impl Door {
    /// The next connection.
    ///
    /// # Errors
    /// When the system has none to give; try again after a pause.
    pub async fn accept(&mut self) -> io::Result<(Stream, Caller)> {
        match self {
            Self::Socket(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Box::new(stream), Caller::Gateway))
            }
            Self::Port(receiver) => match receiver.recv().await {
                Some(accepted) => Ok(accepted),
                // Only while the process ends.
                None => std::future::pending().await,
            },
        }
    }
}

/// The TLS port, and the doors behind it.
pub struct Port {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    authority: Arc<tls::Authority>,
    configuration: mpsc::Sender<(Stream, Caller)>,
    exchange: mpsc::Sender<(Stream, Caller)>,
    strangers: Arc<Semaphore>,
    gateways: Arc<Semaphore>,
}

impl Port {
    /// The port, its door for configuration, and its door for the exchange.
    ///
    /// # Errors
    /// When the TLS library has no TLS 1.3.
    pub fn new(listener: TcpListener, authority: Arc<tls::Authority>) -> Result<(Self, Door, Door), rustls::Error> {
        let acceptor = TlsAcceptor::from(Arc::new(authority.server_config()?));
        let (configuration, first) = mpsc::channel(WAITING);
        let (exchange, second) = mpsc::channel(WAITING);
        let (strangers, gateways) = (Semaphore::new(STRANGERS_MAX), Semaphore::new(CONNECTIONS_MAX));
        let (strangers, gateways) = (Arc::new(strangers), Arc::new(gateways));
        let port = Self { listener, acceptor, authority, configuration, exchange, strangers, gateways };
        Ok((port, Door::Port(first), Door::Port(second)))
    }

    /// Accepts until the drain.
    pub async fn serve(self, signal: Signal) {
        let handshakes = Handshakes::default();
        let mut pause = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
        let port = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                accepted = port.listener.accept() => accepted,
                () = signal.draining() => return,
            };
            let (stream, source) = match accepted {
                Ok((stream, address)) => (stream, address.ip()),
                Err(error) => {
                    tracing::warn!(%error, "the gateways' port: accept failed");
                    tokio::time::sleep(pause.next()).await;
                    continue;
                }
            };
            pause.reset();
            let shaking = match handshakes.begin(source) {
                Ok(shaking) => shaking,
                Err(full) => {
                    tracing::warn!(%source, %full, "the gateways' port: too many handshakes at once; a connection is closed");
                    continue;
                }
            };
            let port = Arc::clone(&port);
            drop(task::spawn("door", async move {
                let shaken = tokio::time::timeout(HANDSHAKE, port.acceptor.accept(stream)).await;
                drop(shaking);
                match shaken {
                    Ok(Ok(stream)) => port.admit(stream).await,
                    Ok(Err(error)) => tracing::debug!(%error, "the gateways' port: a handshake failed"),
                    Err(_) => tracing::debug!("the gateways' port: no handshake within 5 s"),
                }
            }));
        }
    }

    async fn admit(&self, stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>) {
        let session = stream.get_ref().1;
        let caller = match session.peer_certificates().and_then(|chain| chain.first()) {
            None => Caller::Unknown,
            Some(leaf) if self.authority.is_gateway(leaf) => Caller::Gateway,
            Some(_) => {
                tracing::warn!("the gateways' port: a certificate of this cluster that is not a gateway's; closed");
                return;
            }
        };
        let exchange = session.alpn_protocol() == Some(tls::EXCHANGE.as_slice());
        if exchange && caller != Caller::Gateway {
            tracing::warn!("the gateways' port: a pipe was asked for without a certificate; closed");
            return;
        }
        let places = if caller == Caller::Gateway { &self.gateways } else { &self.strangers };
        let Ok(permit) = Arc::clone(places).try_acquire_owned() else {
            tracing::warn!(?caller, "the gateways' port: too many connections of this kind; one is closed");
            return;
        };
        let door = if exchange { &self.exchange } else { &self.configuration };
        // The permit goes with the connection.
        let stream: Stream = Box::new(Permitted { stream, _permit: permit });
        if door.send((stream, caller)).await.is_err() {
            tracing::debug!("the gateways' port: nobody takes connections any more");
        }
    }
}

/// A connection that counts until it ends.
struct Permitted<S> {
    stream: S,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl<S: AsyncRead + Unpin> AsyncRead for Permitted<S> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Permitted<S> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
