//! Whether a QUIC server answers at a UDP address, without any certificate.
//!
//! A packet of a version that is reserved for this purpose (RFC 9000 section 15, `0x?a?a?a?a`) makes every QUIC server
//! list the versions that it speaks (section 6.1), before any handshake. So "UDP is blocked on the way" and "the gateway
//! is not there" can be told from "the certificates do not fit".

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::dns::connected;

/// Servers ignore first packets that are shorter (RFC 9000 section 14.1).
const PACKET: usize = 1200;

/// A version that no server speaks.
const RESERVED_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];

/// How long one try may take: three times the round trip to the other side of the world.
const PATIENCE: Duration = Duration::from_secs(1);

/// Datagrams may be lost.
const TRIES: u32 = 2;

/// What was found at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Echo {
    /// A QUIC server, after this time.
    Answered(Duration),
    /// The host says that nothing listens there.
    NothingListens,
    /// No packet came back: a firewall, a wrong address, or a host that is down.
    Silence,
    /// The packet could not be sent.
    Unsendable(String),
}

/// Sends the packet and waits.
pub(crate) async fn echo(address: SocketAddr) -> Echo {
    let socket = match connected(address).await {
        Ok(socket) => socket,
        Err(error) => return Echo::Unsendable(error.to_string()),
    };
    let (ours, theirs): ([u8; 8], [u8; 8]) = (rand::random(), rand::random());
    let request = packet(ours, theirs);
    let mut reply = [0; 2048];
    for _ in 0..TRIES {
        let started = Instant::now();
        let received = match socket.send(&request).await {
            Ok(_) => timeout(PATIENCE, socket.recv(&mut reply)).await,
            Err(error) => Ok(Err(error)),
        };
        match received {
            Ok(Ok(length)) if is_answer(reply.get(..length).unwrap_or_default(), ours, theirs) => {
                return Echo::Answered(started.elapsed());
            }
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Echo::NothingListens,
            Ok(Err(error)) => return Echo::Unsendable(error.to_string()),
            Ok(Ok(_)) | Err(_) => {}
        }
    }
    Echo::Silence
}

/// A long-header packet: flags, version, destination and source connection ids, padding.
fn packet(ours: [u8; 8], theirs: [u8; 8]) -> Vec<u8> {
    let mut packet = vec![0xc0];
    packet.extend_from_slice(&RESERVED_VERSION);
    packet.push(8);
    packet.extend_from_slice(&theirs);
    packet.push(8);
    packet.extend_from_slice(&ours);
    packet.resize(PACKET, 0);
    packet
}

/// Version Negotiation (RFC 9000 section 17.2.1): version 0 and our connection ids, swapped.
fn is_answer(reply: &[u8], ours: [u8; 8], theirs: [u8; 8]) -> bool {
    let Some((head, versions)) = reply.split_first_chunk::<23>() else { return false };
    let mut expected = vec![0, 0, 0, 0, 8];
    expected.extend_from_slice(&ours);
    expected.push(8);
    expected.extend_from_slice(&theirs);
    matches!(head, [flags, rest @ ..] if flags & 0x80 != 0 && *rest == expected[..]) && versions.len() >= 4
}

#[cfg(test)]
mod tests {
    use tokio::net::UdpSocket;

    use super::*;

    #[test]
    fn only_version_negotiation_for_our_own_packet_counts() {
        let (ours, theirs) = ([1; 8], [2; 8]);
        let mut reply = vec![0xab, 0, 0, 0, 0, 8];
        reply.extend_from_slice(&ours);
        reply.push(8);
        reply.extend_from_slice(&theirs);
        assert!(!is_answer(&reply, ours, theirs), "without a version");
        reply.extend_from_slice(&[0, 0, 0, 1]);
        assert!(is_answer(&reply, ours, theirs));
        assert!(!is_answer(&reply, theirs, ours), "somebody else's");
        reply[0] = 0x40;
        assert!(!is_answer(&reply, ours, theirs), "a short header");
        assert!(!is_answer(&packet(ours, theirs), ours, theirs), "our own packet come back");
        assert!(!is_answer(&[], ours, theirs));
    }

    #[tokio::test]
    async fn a_closed_port_and_a_silent_one_are_told_apart() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let address = silent.local_addr().expect("bound");
        assert_eq!(echo(address).await, Echo::Silence);
        drop(silent);
        assert_eq!(echo(address).await, Echo::NothingListens);
    }
}
