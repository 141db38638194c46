//! Binding: one address for several workers, and for nobody else.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use linkspan_proto::configuration::PortTransport;
use socket2::{Domain, Protocol, Socket, Type};

use super::{BACKLOG, DATAGRAM_BUFFER, Place};

/// A bound socket on its way to its worker.
#[derive(Debug)]
pub(super) enum Opened {
    Connections(TcpListener),
    Datagrams(UdpSocket),
}

/// Binds `place`, `copies` times.
pub(super) fn open(place: Place, copies: usize) -> io::Result<Vec<Opened>> {
    Ok(match place.transport {
        PortTransport::Tcp => bind(place.address, copies)?.into_iter().map(Opened::Connections).collect(),
        PortTransport::Udp => bind_datagrams(place.address, copies)?.into_iter().map(Opened::Datagrams).collect(),
    })
}

/// Binds `address` and listens, `copies` times with `SO_REUSEPORT`.
///
/// The first socket is bound *before* it gets `SO_REUSEPORT`: so the kernel refuses it when anybody else listens there,
/// another gateway of the same user included. The following ones share with the first.
///
/// # Errors
/// When the address is in use by others, not ours, or not permitted.
pub fn bind(address: SocketAddr, copies: usize) -> io::Result<Vec<TcpListener>> {
    let sockets = bound(address, copies, Type::STREAM)?;
    // Only when all are bound: no client is accepted into a socket that is closed again.
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok(sockets.into_iter().map(TcpListener::from).collect())
}

/// As [`bind`], for datagrams. The kernel gives all datagrams of one client address and port to the same socket.
///
/// # Errors
/// When the address is in use by others, not ours, or not permitted.
pub fn bind_datagrams(address: SocketAddr, copies: usize) -> io::Result<Vec<UdpSocket>> {
    let sockets = bound(address, copies, Type::DGRAM)?;
    for socket in &sockets {
        grow_buffers(socket, DATAGRAM_BUFFER);
    }
    Ok(sockets.into_iter().map(UdpSocket::from).collect())
}

fn bound(mut address: SocketAddr, copies: usize, kind: Type) -> io::Result<Vec<Socket>> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let mut sockets = Vec::with_capacity(copies);
    for copy in 0..copies {
        let socket = match Socket::new(Domain::for_address(address), kind.nonblocking(), Some(protocol)) {
            // A kernel without IPv6: "any" is then what IPv4 has of it.
            Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
                address.set_ip(Ipv4Addr::UNSPECIFIED.into());
                Socket::new(Domain::IPV4, kind.nonblocking(), Some(protocol))?
            }
            other => other?,
        };
        if kind == Type::STREAM {
            // Only for connections of an earlier process in TIME_WAIT; a listening socket still conflicts. One of datagrams
            // would not.
            socket.set_reuse_address(true)?;
        }
        if address.is_ipv6() {
            // A mirror's address is one family; the other may be another mirror's. A mirror that has a port of its own
            // (in a cluster) is there for whatever families the pod has.
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        if copy > 0 {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&address.into())?;
        if copy == 0 {
            if copies > 1 {
                socket.set_reuse_port(true)?;
            }
            // With port 0 the kernel has chosen one: the others must use the same.
            address = socket.local_addr()?.as_socket().unwrap_or(address);
        }
        sockets.push(socket);
    }
    Ok(sockets)
}

/// Lets the kernel queue `bytes` for a socket of datagrams, each way, or as much as we may: beyond `net.core.rmem_max` and
/// `wmem_max` only with `CAP_NET_ADMIN`.
pub fn grow_buffers(socket: &Socket, bytes: usize) {
    let forced = rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, bytes)
        .and_then(|()| rustix::net::sockopt::set_socket_send_buffer_size_force(socket, bytes));
    if forced.is_ok() {
        return;
    }
    // Capped by the sysctls without an error, so what was obtained is what counts.
    let grown = socket.set_recv_buffer_size(bytes).and_then(|()| socket.set_send_buffer_size(bytes));
    let got = socket.recv_buffer_size().unwrap_or(0);
    if grown.is_err() || got < bytes {
        tracing::debug!(bytes = got, wanted = bytes, "small UDP buffers; raise net.core.rmem_max and wmem_max");
    }
}
