//! quinn's endpoints and their limits.
//!
//! - In: bound sockets, TLS configurations, [`Limits`].
//! - Out: one listening endpoint for each worker; one endpoint for each dial, and for each TCP connection.
//! - Never does: keep one of quinn's defaults that a hostile or distant peer could use: unlimited connection windows,
//!   30 s idle, no keep-alive, random reset keys (S-28, S-29).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, AsyncUdpSocket, ClientConfig, ConnectionError, Endpoint, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};

use super::congestion::{NudgedFactory, Unlimited};
use super::credit;
use super::datagrams::{RECEIVE_BUFFER, SEND_BUFFER};
use super::keys::Keys;
use super::share;
use super::socket::{self, LargestSent, LinkSocket, Network, Steering, WorkerIds};
use super::tcp::{MAX_PACKET, Pipe, Wire};

/// A connection that heard nothing for so long is dead. Above the blackout of 2 s that is survived and the 3.7 s after
/// which probes give up; also the most that a handshake may stall (S-27).
const IDLE: Duration = Duration::from_secs(5);

/// Well below [`IDLE`], and often enough for any NAT.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// The first guess of the round trip. quinn's 333 ms means a second before the first Initial is repeated; a peer that
/// comes back would be found late.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// The largest packet that is tried: jumbo frames of Ethernet (9,000) less IPv4 and UDP. Discovery finds out what of it the
/// path carries; beyond, a batch for the kernel holds too few packets to gain anything.
const MOST_MTU: u16 = 8972;

/// The largest packet that is tried where the route does not tell its MTU: Ethernet less IPv6, UDP and a tunnel's share.
const UNKNOWN_MTU: u16 = 1452;

/// What every path of QUIC carries (RFC 9000 section 14).
const LEAST_MTU: u16 = 1200;

/// Bytes of a stream under way or unread, as QUIC sees it: the outer bound of what `credit` grants.
const STREAM_WINDOW: VarInt = VarInt::from_u32(credit::MOST as u32);

/// Largest packet over TCP: one pass of encryption and one call of the kernel for as much as possible.
const TCP_MTU: u16 = 65_000;

/// The same where our certificates are so many that a handshake packet could become larger than the two bytes of its length
/// can say, which is 16,383 (RFC 9000 section 16); packets of the handshake are never larger than these.
const TCP_MTU_WITH_LONG_CHAIN: u16 = 16_000;

/// What a peer may send over TCP.
const TCP_MOST: u16 = MAX_PACKET as u16;

/// The longest chain that is sent in one packet: beside it there is room for the rest of a handshake's flight.
const SHORT_CHAIN: usize = 8 * 1024;

/// Over TCP nothing is lost: packets in order are acknowledged in order. Losses are declared after so many round trips, and
/// not before so many later packets, that only a broken peer has any.
const TCP_LOSS_AFTER: (f32, u32) = (10_000.0, u32::MAX);

/// Handshakes that wait to be looked at, for each worker. The accept loop takes them at once; this bounds a burst.
const MAX_INCOMING: usize = 512;

/// What is kept of one connection before it is accepted: more than a ClientHello with a post-quantum key share.
const INCOMING_BUFFER: u64 = 64 * 1024;

/// And of all of them, for each worker.
const INCOMING_BUFFERS: u64 = 8 * 1024 * 1024;

/// Limits of the transport. How much of a stream may be under way follows its reader (`credit`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streams that a peer may have open on one connection. quinn 0.11 pays for each permitted one at the handshake, so
    /// this stays small; several connections and waiting for credit make up for it.
    pub streams: u32,
    /// Bytes of one peer that may be unread in all, over its connections: what a hostile peer can make us hold. A
    /// stalled stream takes [`credit::FIRST`] of it, so it must be many times that.
    pub peer_window: u32,
    /// Bytes that may be sent to one peer and not yet acknowledged, over its connections.
    pub peer_send_window: u32,
    /// Largest packet that is tried on any path. `None`: what the route to the peer carries, as far as this machine knows.
    pub mtu: Option<u16>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { streams: 1024, peer_window: 36 * 1024 * 1024, peer_send_window: 20 * 1024 * 1024, mtu: None }
    }
}

impl Limits {
    /// The largest packet that is tried on the way to `remote`.
    fn mtu(&self, remote: IpAddr) -> u16 {
        let route = || socket::route_payload(remote.to_canonical()).unwrap_or(UNKNOWN_MTU);
        self.mtu.unwrap_or_else(route).clamp(LEAST_MTU, MOST_MTU)
    }

    fn transport(&self, mtu: u16) -> TransportConfig {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(mtu);
        let mut transport = self.transport_of_any();
        transport
            .mtu_discovery_config(Some(discovery))
            .congestion_controller_factory(Arc::new(NudgedFactory::new(mtu)));
        transport
    }

    /// TCP below repeats, orders and controls congestion; the packets are as large as it may have them.
    fn transport_over_tcp(&self, chain: usize) -> TransportConfig {
        let mut transport = self.transport_of_any();
        transport
            .initial_mtu(if chain <= SHORT_CHAIN { TCP_MTU } else { TCP_MTU_WITH_LONG_CHAIN })
            .mtu_discovery_config(None)
            .enable_segmentation_offload(false)
            .time_threshold(TCP_LOSS_AFTER.0)
            .packet_threshold(TCP_LOSS_AFTER.1)
            .congestion_controller_factory(Arc::new(Unlimited));
        transport
    }

    fn transport_of_any(&self) -> TransportConfig {
        let mut acks = AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(VarInt::from_u32(10))
            .max_ack_delay(Some(Duration::from_millis(5)))
            // A gap is told at once: what is lost is sent again that much earlier.
            .reordering_threshold(VarInt::from_u32(1));
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(self.streams))
            // The control stream, and room for a later version's.
            .max_concurrent_uni_streams(VarInt::from_u32(4))
            .stream_receive_window(STREAM_WINDOW)
            .receive_window(VarInt::from_u32(share::FIRST as u32))
            .send_window(share::FIRST)
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(millis(IDLE)))))
            .keep_alive_interval(Some(KEEP_ALIVE))
            .initial_rtt(INITIAL_RTT)
            .ack_frequency_config(Some(acks))
            .datagram_receive_buffer_size(Some(RECEIVE_BUFFER))
            .datagram_send_buffer_size(SEND_BUFFER);
        transport
    }
}

fn endpoint_config(keys: &Keys, largest: u16) -> EndpointConfig {
    let mut config = EndpointConfig::new(keys.reset());
    config.max_udp_payload_size(largest).expect("between 1,200 and 65,527");
    config
}

fn widen(seed: u64) -> [u8; 32] {
    let mut wide = [0; 32];
    wide[..8].copy_from_slice(&seed.to_le_bytes());
    wide
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// A listening endpoint.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) endpoint: Endpoint,
    limits: Limits,
    /// Without a transport of its own yet: that depends on who knocks.
    config: ServerConfig,
    packets: Arc<LargestSent>,
}

impl Listener {
    /// Starts listening on the current runtime. All sockets of the port must be bound before the first call: a packet
    /// that came to a socket too few would be answered by the wrong worker.
    pub(super) fn start(
        socket: Arc<dyn AsyncUdpSocket>,
        worker: usize,
        steering: Arc<Steering>,
        limits: &Limits,
        keys: &Keys,
        crypto: Arc<QuicServerConfig>,
        seed: Option<u64>,
    ) -> io::Result<Self> {
        let mut config = ServerConfig::new(Arc::clone(&crypto) as _, keys.token());
        config
            .transport_config(Arc::new(limits.transport(LEAST_MTU)))
            .max_incoming(MAX_INCOMING)
            .incoming_buffer_size(INCOMING_BUFFER)
            .incoming_buffer_size_total(INCOMING_BUFFERS)
            // A NAT may change the peer's port at any time; the new path is validated first (S-53).
            .migration(true);
        // A peer may send whatever its path carries.
        let mut endpoint = endpoint_config(keys, MOST_MTU);
        let ids = keys.connection_id();
        endpoint.cid_generator(move || Box::new(WorkerIds::new(worker, ids.clone()))).rng_seed(seed.map(widen));
        let packets = LargestSent::new(LEAST_MTU);
        let socket = LinkSocket::new(socket, Some((worker, steering)), MOST_MTU, Arc::clone(&packets));
        let server = Some(config.clone());
        let endpoint = Endpoint::new_with_abstract_socket(endpoint, server, socket, Arc::new(TokioRuntime))?;
        Ok(Self { endpoint, limits: limits.clone(), config, packets })
    }

    /// The configuration for whoever knocks from this address.
    pub(super) fn config(&self, remote: IpAddr) -> Arc<ServerConfig> {
        let mtu = self.limits.mtu(remote);
        self.packets.raise(mtu);
        let mut config = self.config.clone();
        config.transport_config(Arc::new(self.limits.transport(mtu)));
        Arc::new(config)
    }
}

/// Begins a handshake on the current runtime, from a socket of its own.
pub(super) fn dial(
    network: &dyn Network,
    remote: SocketAddr,
    limits: &Limits,
    keys: &Keys,
    crypto: QuicClientConfig,
) -> io::Result<quinn::Connecting> {
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    let mtu = limits.mtu(remote.ip());
    let socket = LinkSocket::new(network.dial(remote)?, None, MOST_MTU, LargestSent::new(mtu));
    let mut config = endpoint_config(keys, MOST_MTU);
    config.rng_seed(network.seed().map(widen));
    // The endpoint's driver lives as long as its connection; nobody needs the handle.
    let endpoint = Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(TokioRuntime))?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(limits.transport(mtu)));
    endpoint.connect_with(client, remote, super::tls::SERVER_NAME).map_err(io::Error::other)
}

/// Begins a handshake over a TCP connection, on the current runtime. `chain` is the size of our certificates.
pub(super) fn dial_over_tcp(
    wire: Wire,
    limits: &Limits,
    keys: &Keys,
    crypto: QuicClientConfig,
    chain: usize,
) -> io::Result<quinn::Connecting> {
    let remote = wire.remote;
    let pipe = Pipe::dialled(wire);
    let runtime = pipe.runtime();
    let endpoint = Endpoint::new_with_abstract_socket(endpoint_config(keys, TCP_MOST), None, pipe, runtime)?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(limits.transport_over_tcp(chain)));
    endpoint.connect_with(client, remote, super::tls::SERVER_NAME).map_err(io::Error::other)
}

/// What the handshakes of those who dial us over TCP need.
pub(super) struct TcpServer {
    pub(super) limits: Limits,
    pub(super) keys: Keys,
    pub(super) crypto: Arc<QuicServerConfig>,
}

impl TcpServer {
    /// The handshake of a TCP connection whose preface was right, on the current runtime. `None` for an error: it ended
    /// before there was anything to answer.
    pub(super) async fn accept(&self, wire: Wire, chain: usize) -> Result<quinn::Connection, Option<ConnectionError>> {
        let mut config = ServerConfig::new(Arc::clone(&self.crypto) as _, self.keys.token());
        config
            .transport_config(Arc::new(self.limits.transport_over_tcp(chain)))
            .max_incoming(1)
            .incoming_buffer_size(INCOMING_BUFFER)
            .incoming_buffer_size_total(INCOMING_BUFFER)
            .migration(false);
        let pipe = Pipe::accepted(wire);
        let runtime = pipe.runtime();
        let endpoint = endpoint_config(&self.keys, TCP_MOST);
        let endpoint = match Endpoint::new_with_abstract_socket(endpoint, Some(config.clone()), pipe, runtime) {
            Ok(endpoint) => endpoint,
            Err(error) => {
                tracing::debug!(%error, "no endpoint over a TCP connection");
                return Err(None);
            }
        };
        let Some(incoming) = endpoint.accept().await else { return Err(None) };
        let connecting = incoming.accept_with(Arc::new(config)).map_err(Some)?;
        // One connection each.
        endpoint.set_server_config(None);
        connecting.await.map_err(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_packet_is_that_of_the_route_unless_told_otherwise() {
        let limits = Limits::default();
        // Loopback's MTU is 65,536.
        assert_eq!(limits.mtu([127, 0, 0, 9].into()), MOST_MTU);
        assert_eq!(limits.mtu("::ffff:127.0.0.1".parse().unwrap()), MOST_MTU);
        let told = |mtu| Limits { mtu: Some(mtu), ..Limits::default() }.mtu([127, 0, 0, 1].into());
        assert_eq!([told(1400), told(100), told(60_000)], [1400, LEAST_MTU, MOST_MTU]);
    }
}
