//! quinn's endpoints and their limits.
//!
//! - In: bound sockets, TLS configurations, [`Limits`].
//! - Out: one listening endpoint for each worker; one endpoint for each dial.
//! - Never does: keep one of quinn's defaults that a hostile or distant peer could use: unlimited connection windows,
//!   30 s idle, no keep-alive, random reset keys (S-28, S-29).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, AsyncUdpSocket, ClientConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    ServerConfig, TokioRuntime, TransportConfig, VarInt,
};

use super::congestion::NudgedFactory;
use super::datagrams::{RECEIVE_BUFFER, SEND_BUFFER};
use super::keys::Keys;
use super::socket::{LinkSocket, Network, Steering, WorkerIds};

/// A connection that heard nothing for so long is dead. Above the blackout of 2 s that is survived and the 3.7 s after
/// which probes give up; also the most that a handshake may stall (S-27).
const IDLE: Duration = Duration::from_secs(5);

/// Well below [`IDLE`], and often enough for any NAT.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// The first guess of the round trip. quinn's 333 ms means a second before the first Initial is repeated; a peer that
/// comes back would be found late.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Largest packet on a path that is not known to carry more: Ethernet less IPv6, UDP and a tunnel's share.
const MTU: u16 = 1452;

/// Largest packet on loopback, found by discovery: ten segments of it, quinn's batch, stay below 64 KiB.
const LOOPBACK_MTU: u16 = 6500;

/// Handshakes that wait to be looked at, for each worker. The accept loop takes them at once; this bounds a burst.
const MAX_INCOMING: usize = 512;

/// What is kept of one connection before it is accepted: more than a ClientHello with a post-quantum key share.
const INCOMING_BUFFER: u64 = 64 * 1024;

/// And of all of them, for each worker.
const INCOMING_BUFFERS: u64 = 8 * 1024 * 1024;

/// Limits of the transport. The defaults suit links of up to 1 Gbit/s and 8 ms for one stream; long fat links want larger
/// windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streams that a peer may have open on one connection. quinn 0.11 pays for each permitted one at the handshake, so
    /// this stays small; several connections and waiting for credit make up for it.
    pub streams: u32,
    /// Bytes of one stream that may be under way or unread: bandwidth of a stream = this / round trip.
    pub stream_window: u32,
    /// Bytes of one peer that may be unread in all, over its connections: what a hostile peer can make us hold. One
    /// stalled stream takes up to `stream_window` of it, so it must be many times that.
    pub peer_window: u32,
    /// Bytes of one connection that may be sent and not yet acknowledged.
    pub send_window: u32,
    /// Largest packet to a peer that is not on this machine, if the whole path is known to carry it (jumbo frames).
    /// `None`: 1,452.
    pub mtu: Option<u16>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 1024,
            stream_window: 1024 * 1024,
            peer_window: 64 * 1024 * 1024,
            send_window: 16 * 1024 * 1024,
            mtu: None,
        }
    }
}

impl Limits {
    /// The connection window while nothing is known of the peer: what the smallest share of `peer_window` will be.
    fn first_window(&self) -> u32 {
        self.peer_window / 4
    }

    /// Each connection's share, once it is known how many there will be.
    pub(super) fn window(&self, connections: usize) -> VarInt {
        let connections = u32::try_from(connections.clamp(1, 4)).unwrap_or(4);
        VarInt::from_u32(self.peer_window / connections)
    }

    fn mtu(&self, remote: Option<IpAddr>) -> u16 {
        let far = self.mtu.unwrap_or(MTU).max(1200);
        if remote.is_none_or(|ip| ip.to_canonical().is_loopback()) { far.max(LOOPBACK_MTU) } else { far }
    }

    fn transport(&self, remote: IpAddr) -> TransportConfig {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.mtu(Some(remote)));
        let mut acks = AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(VarInt::from_u32(10)).max_ack_delay(Some(Duration::from_millis(5)));
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(self.streams))
            // The control stream, and room for a later version's.
            .max_concurrent_uni_streams(VarInt::from_u32(4))
            .stream_receive_window(VarInt::from_u32(self.stream_window))
            .receive_window(VarInt::from_u32(self.first_window()))
            .send_window(u64::from(self.send_window))
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(millis(IDLE)))))
            .keep_alive_interval(Some(KEEP_ALIVE))
            .initial_rtt(INITIAL_RTT)
            .mtu_discovery_config(Some(discovery))
            .ack_frequency_config(Some(acks))
            .congestion_controller_factory(Arc::new(NudgedFactory::default()))
            .datagram_receive_buffer_size(Some(RECEIVE_BUFFER))
            .datagram_send_buffer_size(SEND_BUFFER);
        transport
    }

    fn endpoint(&self, keys: &Keys, remote: Option<IpAddr>) -> EndpointConfig {
        let mut config = EndpointConfig::new(keys.reset());
        // Ethernet's 1,472 is the least: a peer whose path carries that may use it.
        let largest = self.mtu(remote).max(1472);
        config.max_udp_payload_size(largest).expect("between 1,200 and 65,527");
        config
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// A listening endpoint with its configurations.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) endpoint: Endpoint,
    near: Arc<ServerConfig>,
    far: Arc<ServerConfig>,
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
    ) -> io::Result<Self> {
        let config = |remote: IpAddr| {
            let mut config = ServerConfig::new(Arc::clone(&crypto) as _, keys.token());
            config
                .transport_config(Arc::new(limits.transport(remote)))
                .max_incoming(MAX_INCOMING)
                .incoming_buffer_size(INCOMING_BUFFER)
                .incoming_buffer_size_total(INCOMING_BUFFERS)
                // A NAT may change the peer's port at any time; the new path is validated first (S-53).
                .migration(true);
            config
        };
        let near = config(IpAddr::from([127, 0, 0, 1]));
        let far = config(IpAddr::from([192, 0, 2, 1]));
        let mut endpoint = limits.endpoint(keys, None);
        let ids = keys.connection_id();
        endpoint.cid_generator(move || Box::new(WorkerIds::new(worker, ids.clone())));
        let socket = LinkSocket::new(socket, Some((worker, steering)), limits.mtu(None));
        let endpoint = Endpoint::new_with_abstract_socket(endpoint, Some(far.clone()), socket, Arc::new(TokioRuntime))?;
        Ok(Self { endpoint, near: Arc::new(near), far: Arc::new(far) })
    }

    /// The configuration for whoever knocks from this address.
    pub(super) fn config(&self, remote: SocketAddr) -> Arc<ServerConfig> {
        Arc::clone(if remote.ip().to_canonical().is_loopback() { &self.near } else { &self.far })
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
    let socket = LinkSocket::new(network.dial(remote)?, None, limits.mtu(Some(remote.ip())));
    let config = limits.endpoint(keys, Some(remote.ip()));
    // The endpoint's driver lives as long as its connection; nobody needs the handle.
    let endpoint = Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(TokioRuntime))?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(limits.transport(remote.ip())));
    endpoint.connect_with(client, remote, super::tls::SERVER_NAME).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_the_peer_window_add_up_to_it() {
        let limits = Limits::default();
        for connections in 1..=4_u32 {
            let share = limits.window(connections as usize).into_inner();
            assert!(share * u64::from(connections) <= u64::from(limits.peer_window));
            assert!(share >= 16 * u64::from(limits.stream_window), "stalled streams must not stop the others");
        }
        assert_eq!(limits.window(100), limits.window(4));
    }

    #[test]
    fn loopback_carries_more_than_ethernet() {
        let limits = Limits::default();
        assert_eq!(limits.mtu(Some([127, 0, 0, 9].into())), LOOPBACK_MTU);
        assert_eq!(limits.mtu(Some("::ffff:127.0.0.1".parse().unwrap())), LOOPBACK_MTU);
        assert_eq!(limits.mtu(Some([10, 0, 0, 1].into())), MTU);
        let jumbo = Limits { mtu: Some(8900), ..Limits::default() };
        assert_eq!(jumbo.mtu(Some([10, 0, 0, 1].into())), 8900);
    }
}
