//! A socket for the datagrams of one flow.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use super::{ATTEMPTS, DialError, EndpointGuard, Endpoints};
use crate::listener::grow_buffers;
use crate::remote::Admitted;

/// A socket that is connected to an endpoint of the export, the better of two. Nothing is sent by that: whether anybody is
/// there shows with the first datagram.
///
/// # Errors
/// When no endpoint is ready, there is no way to those that were tried, or we are out of descriptors.
pub fn associate(admitted: &Admitted) -> Result<(UdpSocket, EndpointGuard), DialError> {
    let endpoints = Endpoints::of(admitted);
    let mut tried = Vec::new();
    let mut last = DialError::NoBackend;
    while tried.len() < ATTEMPTS {
        let Ok(mut endpoint) = endpoints.pick(&tried) else { return Err(last) };
        match connected(endpoint.address()) {
            Ok(socket) => return Ok((socket, endpoint)),
            Err(error) if error.is_endpoints() => {
                endpoint.failed();
                tried.push(endpoint.address());
                last = error;
            }
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Bytes that the kernel keeps for one flow, each way: some 5 ms at 500 Mbit/s. A peer may have thousands of flows.
const BUFFER: usize = 512 * 1024;

fn connected(address: SocketAddr) -> Result<UdpSocket, DialError> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let connect = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        grow_buffers(&socket, BUFFER);
        socket.bind(&any.into())?;
        socket.connect(&address.into())?;
        Ok(UdpSocket::from(socket))
    };
    connect().map_err(|error| DialError::from_io(address, &error))
}
