//! The link over TCP, for networks that let no UDP pass, or where bulk on a clean network matters more than anything else.
//!
//! A TCP connection is a pipe for the packets of one QUIC connection. Everything above it is the same code as over UDP:
//! TLS 1.3 with both certificates, streams, refusals, probes, goaways, draining.
//!
//! ```text
//! dialler:  preface | length packet | length packet | ...        length: 2 bytes, big-endian, 1 to 65,527
//! acceptor: preface | length packet | ...
//! ```
//!
//! - In: TCP connections, dialled or accepted.
//! - Out: the socket of a quinn endpoint of its own, see [`Pipe`].
//! - Refuses when: the preface is not ours or late, a length is impossible, too many strangers are at the door at once, in
//!   all or from one address.
//! - Never does: control congestion a second time. TCP delivers in order and repeats what is lost; quinn above it neither
//!   paces nor declares losses, and is held back by TCP alone (`WouldBlock`).
//! - Numbers: [`PREFACE_TIMEOUT`], [`Strangers`](places::Strangers), [`UNSENT`], [`USER_TIMEOUT`].
//!
//! Where to read: `frame` is what the bytes mean; `pipe` is the socket that quinn sees; `places` bounds strangers; `listen`
//! is the door.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

mod frame;
mod listen;
mod pipe;
mod places;

pub(super) use frame::MAX_PACKET;
pub use frame::PREFACE;
pub(super) use listen::{Door, listen};
pub(super) use pipe::Pipe;
pub(super) use places::Strangers;

/// From the connection to the last byte of its preface. A gateway sends it with the first packet.
pub(super) const PREFACE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the kernel may hold that is not sent yet. What is handed to it cannot be overtaken by probes any more: at 100 Mbit/s
/// this is 20 ms. Four of the largest packets, so that TCP never runs dry between two wake-ups.
const UNSENT: u32 = 256 * 1024;

/// How long the kernel tries to deliver what a dead peer does not acknowledge. Above the 5 s after which the connection on it
/// is dead; without it the kernel would go on for a quarter of an hour.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that wait in the kernel for `accept`: as for clients' listeners.
const BACKLOG: i32 = 1024;

/// A connection's bytes, in order.
pub(super) trait Bytestream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Bytestream for T {}

/// A connection and where it leads.
pub(super) struct Wire {
    pub(super) stream: Box<dyn Bytestream>,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

impl Wire {
    fn new(stream: TcpStream, remote: SocketAddr) -> io::Result<Self> {
        // A packet waits for nothing.
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        // Without them it works too, with more in the kernel than is good.
        let tuned = socket.set_tcp_notsent_lowat(UNSENT).and_then(|()| socket.set_tcp_user_timeout(Some(USER_TIMEOUT)));
        if let Err(error) = tuned {
            tracing::debug!(%remote, %error, "socket options of a TCP connection");
        }
        Ok(Self { local: stream.local_addr()?, remote, stream: Box::new(stream) })
    }
}

/// Where TCP connections come in.
pub(super) trait Doorway: Send + 'static {
    /// The next one.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Wire>>;
}

impl Doorway for TcpListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Wire>> {
        Box::pin(async move {
            let (stream, remote) = Self::accept(self).await?;
            Wire::new(stream, remote)
        })
    }
}

/// Dials over TCP of this machine.
pub(super) async fn connect(remote: SocketAddr) -> io::Result<Wire> {
    Wire::new(TcpStream::connect(remote).await?, remote)
}

/// Binds one listening socket for each worker to the same address. Fails when anybody else has the port.
pub(super) fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<std::net::TcpListener>> {
    use socket2::{Domain, Protocol, Socket, Type};

    let unbound = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            // `[::]` serves IPv4 too; where the kernel forbids that, IPv6 alone is better than nothing.
            let _dual = socket.set_only_v6(false);
        }
        // Connections of the process before that are not forgotten yet do not keep the port from it.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    // The first binds and listens alone, so that a port in use is found out, see `socket::listen`.
    let mut sockets = vec![unbound()?];
    sockets[0].bind(&address.into())?;
    sockets[0].set_reuse_port(true)?;
    for _ in 1..workers {
        let socket = unbound()?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        sockets.push(socket);
    }
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok(sockets.into_iter().map(Into::into).collect())
}

/// Gives a listening socket to the current runtime.
pub(super) fn register(listener: std::net::TcpListener) -> io::Result<Box<dyn Doorway>> {
    Ok(Box::new(TcpListener::from_std(listener)?))
}
