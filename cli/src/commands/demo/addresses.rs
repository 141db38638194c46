//! Addresses of the demo: a random block of loopback addresses, tried before it is used.
//!
//! Out: for each site the addresses of its listeners, all of them free a moment ago. Never does: use a fixed port, or an
//! address outside 127.80.0.0/12.
//!
//! ```text
//! 127.a.b.0/24      hosts: .1 east, .2 west; services: .11 east, .12 west; clients: .21 shop/web, .22 ops/robot
//! 127.a.(b+1).0/24  mirrored addresses of east
//! 127.a.(b+2).0/24  mirrored addresses of west
//! ```
//!
//! Two demos at a time meet in the same block once in 1,024 tries; the test-bind sees that, since ports are bound on
//! every host address of a block.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::bail;
use rand::Rng;

/// Tries before giving up. One try fails only when another demo has the block; twenty in a row mean that this machine
/// has no 127.0.0.0/8 (not Linux).
const TRIES: u32 = 20;

/// The addresses of one site.
#[derive(Clone, Debug)]
pub(super) struct SiteAddresses {
    /// The cluster's name.
    pub(super) name: &'static str,
    /// UDP of the link.
    pub(super) link: SocketAddr,
    /// The mTLS port.
    pub(super) mtls: SocketAddr,
    /// UDP and TCP of the DNS server.
    pub(super) dns: SocketAddr,
    /// The admin listener (of the gateway, where the site runs as two processes).
    pub(super) admin: SocketAddr,
    /// The controller's admin listener, where the site runs as two processes.
    pub(super) controller_admin: SocketAddr,
    /// The range of mirrored addresses.
    pub(super) mirrors: String,
    /// The demo's service.
    pub(super) service: SocketAddr,
}

/// All addresses of a demo.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    /// The site that calls.
    pub(super) east: SiteAddresses,
    /// The site that is called, and whose gateway is killed.
    pub(super) west: SiteAddresses,
    /// The service's port, the same in both sites.
    pub(super) port: u16,
    /// Client addresses of the workload shop/web, as a range.
    pub(super) web_clients: String,
    /// A client of that workload.
    pub(super) web: IpAddr,
    /// Client addresses of the workload ops/robot, as a range.
    pub(super) robot_clients: String,
    /// A client of that workload.
    pub(super) robot: IpAddr,
}

impl Addresses {
    /// Picks a block.
    pub(super) fn pick() -> anyhow::Result<Self> {
        let mut last = None;
        for _ in 0..TRIES {
            let mut random = rand::rng();
            match Self::in_block(random.random_range(80..=95), random.random_range(0..=63) * 4) {
                Ok(addresses) => return Ok(addresses),
                Err(error) => last = Some(error),
            }
        }
        let why = last.map(|error| error.to_string()).unwrap_or_default();
        bail!(
            "found no free loopback addresses inside 127.80.0.0/12 ({why}); the demo needs Linux, where all of 127.0.0.0/8 answers"
        )
    }

    /// Binds every address of the block once, and lets go of them.
    fn in_block(a: u8, b: u8) -> std::io::Result<Self> {
        // Everything stays bound until the last port is chosen, so that no port is chosen twice.
        let mut held = Held::default();
        let host = |c: u8, d: u8| IpAddr::V4(Ipv4Addr::new(127, a, b + c, d));
        let east_service = held.tcp(SocketAddr::new(host(0, 11), 0))?;
        let port = east_service.port();
        let west_service = held.tcp(SocketAddr::new(host(0, 12), port))?;
        // The mirrored address keeps the port number: nothing may listen there on all addresses.
        held.tcp(SocketAddr::new(host(1, 1), port))?;
        held.tcp(SocketAddr::new(host(2, 1), port))?;
        held.tcp(SocketAddr::new(host(0, 21), 0))?;
        held.tcp(SocketAddr::new(host(0, 22), 0))?;
        let mut site = |name, host, mirrors, service| -> std::io::Result<SiteAddresses> {
            Ok(SiteAddresses {
                name,
                link: held.udp(SocketAddr::new(host, 0))?,
                mtls: held.tcp(SocketAddr::new(host, 0))?,
                dns: held.both(host)?,
                admin: held.tcp(SocketAddr::new(host, 0))?,
                controller_admin: held.tcp(SocketAddr::new(host, 0))?,
                mirrors,
                service,
            })
        };
        Ok(Self {
            east: site("east", host(0, 1), format!("{}/24", host(1, 0)), east_service)?,
            west: site("west", host(0, 2), format!("{}/24", host(2, 0)), west_service)?,
            port,
            web_clients: format!("{}/32", host(0, 21)),
            web: host(0, 21),
            robot_clients: format!("{}/32", host(0, 22)),
            robot: host(0, 22),
        })
    }
}

/// Sockets that are bound for a moment.
#[derive(Debug, Default)]
struct Held {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

impl Held {
    /// Binds TCP; returns the address with the port that the kernel gave.
    fn tcp(&mut self, address: SocketAddr) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind(address)?;
        let bound = listener.local_addr()?;
        self.tcp.push(listener);
        Ok(bound)
    }

    /// Binds UDP.
    fn udp(&mut self, address: SocketAddr) -> std::io::Result<SocketAddr> {
        let socket = UdpSocket::bind(address)?;
        let bound = socket.local_addr()?;
        self.udp.push(socket);
        Ok(bound)
    }

    /// Binds UDP and TCP on the same port.
    fn both(&mut self, host: IpAddr) -> std::io::Result<SocketAddr> {
        let mut last = std::io::Error::other("no port is free for both UDP and TCP");
        for _ in 0..TRIES {
            let bound = self.udp(SocketAddr::new(host, 0))?;
            match self.tcp(bound) {
                Ok(bound) => return Ok(bound),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

#[cfg(test)]
mod tests {
    use super::Addresses;

    #[test]
    fn a_block_is_found_and_all_ports_of_a_host_differ() {
        let addresses = Addresses::pick().unwrap();
        for site in [&addresses.east, &addresses.west] {
            let tcp = [site.mtls, site.dns, site.admin, site.controller_admin];
            for (index, address) in tcp.iter().enumerate() {
                assert!(!tcp[..index].contains(address));
                assert!(address.port() >= 1024);
            }
        }
        assert_eq!(addresses.east.service.port(), addresses.west.service.port());
        assert_ne!(addresses.east.service.ip(), addresses.west.service.ip());
        assert_ne!(addresses.east.mirrors, addresses.west.mirrors);
    }
}
