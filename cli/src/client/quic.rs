//! Whether a QUIC server answers at an address, over UDP and over TCP, and with packets of which size; without any certificate.
//!
//! A packet of a version that is reserved for this purpose (RFC 9000 section 15, `0x?a?a?a?a`) makes every QUIC server
//! list the versions that it speaks (section 6.1), before any handshake. So "UDP is blocked on the way" and "the gateway
//! is not there" can be told from "the certificates do not fit".
//!
//! The answer is small, whatever the size of the question: a larger question that nobody answers was lost for its size. A
//! gateway answers the same packet over TCP, framed as its link is. There the question goes once in one piece and once in
//! small ones, since TCP's handshake alone does not show that larger segments pass.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use linkspan_gateway::link::TCP_PREFACE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout, timeout_at};

use super::dns::connected;

/// The smallest question: servers ignore first packets that are shorter (RFC 9000 section 14.1), and QUIC needs no more.
pub(crate) const SMALL: usize = 1200;

/// The larger question: what an Ethernet carries over IPv6 too (1,500 less 48 bytes of headers).
pub(crate) const LARGE: usize = 1452;

/// How long an answer may take in all: several round trips to the other side of the world.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Datagrams may be lost: the question is sent again after so long. Four in all, so that a loss of size is not taken for a
/// loss by chance.
const AGAIN: Duration = Duration::from_millis(500);

/// A piece of a question over TCP: far below what any path carries.
const PIECE: usize = 256;

/// Between two pieces, so that the kernel has sent one before it sees the next and makes no larger segment of both.
const BETWEEN_PIECES: Duration = Duration::from_millis(10);

/// A version that no server speaks.
const RESERVED_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];

/// What was found at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Echo {
    /// A QUIC server, after this time.
    Answered(Duration),
    /// The host says that nothing listens there.
    NothingListens,
    /// No packet came back: a firewall, a wrong address, or a host that is down.
    Silence,
    /// Over TCP: something answers that is no gateway.
    Stranger,
    /// The packet could not be sent.
    Unsendable(String),
}

impl Echo {
    /// Whether a QUIC server answered.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self, Self::Answered(_))
    }
}

/// What gets through to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reach {
    /// A packet of [`SMALL`] bytes.
    pub(crate) udp: Echo,
    /// One of [`LARGE`] bytes.
    pub(crate) large: Echo,
    /// A packet of [`SMALL`] bytes over TCP, in one piece and in small ones; not known where UDP was answered.
    pub(crate) tcp: Option<OverTcp>,
}

/// What gets through over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OverTcp {
    /// One segment that is as large as the smallest packet of QUIC.
    pub(crate) whole: Echo,
    /// Small segments.
    pub(crate) pieces: Echo,
}

/// Asks in every way, all at the same time.
pub(crate) async fn reach(address: SocketAddr) -> Reach {
    let udp = async { tokio::join!(echo(address), ask(address, LARGE)) };
    let tcp = over_tcp(address);
    tokio::pin!(udp, tcp);
    let ((udp, large), tcp) = tokio::select! {
        found = &mut udp => {
            // Whoever answers over UDP need not be asked over TCP.
            let tcp = if found.0.is_answer() { None } else { Some(tcp.await) };
            (found, tcp)
        }
        tcp = &mut tcp => (udp.await, Some(tcp)),
    };
    Reach { tcp: tcp.filter(|_| !udp.is_answer()), udp, large }
}

/// Asks over TCP alone.
pub(crate) async fn over_tcp(address: SocketAddr) -> OverTcp {
    let ask = |piece| async move {
        match timeout(PATIENCE, ask_over_tcp(address, piece)).await {
            Ok(Ok(echo)) => echo,
            Ok(Err(error)) => of_error(&error),
            Err(_) => Echo::Silence,
        }
    };
    let (whole, pieces) = tokio::join!(ask(usize::MAX), ask(PIECE));
    OverTcp { whole, pieces }
}

/// Asks over UDP with the smallest packet.
pub(crate) async fn echo(address: SocketAddr) -> Echo {
    ask(address, SMALL).await
}

/// Asks over UDP with a packet of so many bytes.
async fn ask(address: SocketAddr, size: usize) -> Echo {
    let socket = match connected(address).await {
        Ok(socket) => socket,
        Err(error) => return Echo::Unsendable(error.to_string()),
    };
    let (ours, theirs): ([u8; 8], [u8; 8]) = (rand::random(), rand::random());
    let request = packet(ours, theirs, size);
    let mut reply = [0; 2048];
    let started = Instant::now();
    let until = tokio::time::Instant::now() + PATIENCE;
    let mut refused = false;
    loop {
        if let Err(error) = socket.send(&request).await {
            return of_error(&error);
        }
        let next = (tokio::time::Instant::now() + AGAIN).min(until);
        loop {
            match timeout_at(next, socket.recv(&mut reply)).await {
                Ok(Ok(length)) if is_answer(reply.get(..length).unwrap_or_default(), ours, theirs) => {
                    return Echo::Answered(started.elapsed());
                }
                Ok(Ok(_)) => {}
                // Where a gateway starts just now, it is there at the second question.
                Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused && !refused => {
                    refused = true;
                    sleep(AGAIN).await;
                    break;
                }
                Ok(Err(error)) => return of_error(&error),
                Err(_) => break,
            }
        }
        if tokio::time::Instant::now() >= until {
            // A kernel says so once a second at most, whoever asks.
            return if refused { Echo::NothingListens } else { Echo::Silence };
        }
    }
}

async fn ask_over_tcp(address: SocketAddr, piece: usize) -> std::io::Result<Echo> {
    let started = Instant::now();
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (ours, theirs): ([u8; 8], [u8; 8]) = (rand::random(), rand::random());
    let packet = packet(ours, theirs, SMALL);
    let length = u16::try_from(packet.len()).map_err(std::io::Error::other)?;
    let question = [&TCP_PREFACE[..], &length.to_be_bytes(), &packet].concat();
    let answer = async {
        for piece in question.chunks(piece) {
            stream.write_all(piece).await?;
            if piece.len() < question.len() {
                sleep(BETWEEN_PIECES).await;
            }
        }
        let mut preface = [0; TCP_PREFACE.len()];
        stream.read_exact(&mut preface).await?;
        let mut reply = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut reply).await?;
        Ok::<_, std::io::Error>(preface == TCP_PREFACE && is_answer(&reply, ours, theirs))
    };
    // Whoever ends the connection, or says something else, is no gateway.
    Ok(if answer.await.unwrap_or(false) { Echo::Answered(started.elapsed()) } else { Echo::Stranger })
}

fn of_error(error: &std::io::Error) -> Echo {
    match error.kind() {
        ErrorKind::ConnectionRefused => Echo::NothingListens,
        _ => Echo::Unsendable(error.to_string()),
    }
}

/// A long-header packet: flags, version, destination and source connection ids, padding.
fn packet(ours: [u8; 8], theirs: [u8; 8], size: usize) -> Vec<u8> {
    let mut packet = vec![0xc0];
    packet.extend_from_slice(&RESERVED_VERSION);
    packet.push(8);
    packet.extend_from_slice(&theirs);
    packet.push(8);
    packet.extend_from_slice(&ours);
    packet.resize(size, 0);
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
    use linkspan_runtime::task;
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
        assert!(!is_answer(&packet(ours, theirs, SMALL), ours, theirs), "our own packet come back");
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

    /// A QUIC server that hears UDP up to `most` bytes, and TCP in segments of up to so many.
    async fn server(most: usize) -> SocketAddr {
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = tcp.local_addr().expect("bound");
        let udp = UdpSocket::bind(address).await.expect("bind");
        let reply = |question: &[u8]| {
            let mut reply = vec![0xab, 0, 0, 0, 0, 8];
            reply.extend_from_slice(&question[15..23]);
            reply.push(8);
            reply.extend_from_slice(&question[6..14]);
            reply.extend_from_slice(&[0, 0, 0, 1]);
            reply
        };
        drop(task::spawn("udp", async move {
            let mut question = [0; 2048];
            while let Ok((length, from)) = udp.recv_from(&mut question).await {
                if length <= most {
                    drop(udp.send_to(&reply(&question), from).await);
                }
            }
        }));
        drop(task::spawn("tcp", async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                drop(task::spawn("connection", async move {
                    let (mut question, mut have) = ([0; 2048], 0);
                    while have < TCP_PREFACE.len() + 2 + SMALL {
                        let more = stream.read(&mut question[have..]).await.unwrap_or(0);
                        if more == 0 {
                            return;
                        }
                        if more > most {
                            // What a path without room for it does: nothing comes of it.
                            return std::future::pending().await;
                        }
                        have += more;
                    }
                    let reply = reply(&question[TCP_PREFACE.len() + 2..]);
                    let length = u16::try_from(reply.len()).expect("short").to_be_bytes();
                    drop(stream.write_all(&[&TCP_PREFACE[..], &length, &reply].concat()).await);
                }));
            }
        }));
        address
    }

    #[tokio::test]
    async fn what_is_lost_for_its_size_is_told_from_what_is_blocked() {
        let all = reach(server(LARGE).await).await;
        assert!(all.udp.is_answer() && all.large.is_answer() && all.tcp.is_none(), "{all:?}");
        let narrow = reach(server(SMALL).await).await;
        assert!(narrow.udp.is_answer() && narrow.large == Echo::Silence, "{narrow:?}");
        let hole = reach(server(PIECE * 2).await).await;
        let tcp = hole.tcp.expect("asked");
        assert!(hole.udp == Echo::Silence && tcp.whole == Echo::Silence && tcp.pieces.is_answer(), "{tcp:?}");
    }

    #[tokio::test]
    async fn a_stranger_over_tcp_is_no_gateway() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        drop(task::spawn("stranger", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
            }
        }));
        assert_eq!(over_tcp(address).await, OverTcp { whole: Echo::Stranger, pieces: Echo::Stranger });
    }
}
