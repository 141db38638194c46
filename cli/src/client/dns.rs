//! One question to a DNS server, over UDP or TCP, as a stub resolver would ask it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one try may take. The server is on this machine or one hop away.
const PATIENCE: Duration = Duration::from_millis(750);

/// Datagrams may be lost, even on the way to ourselves.
const TRIES: u32 = 2;

/// The longest that a question over UDP takes.
pub(crate) const OVER_UDP: Duration = PATIENCE.saturating_mul(TRIES);

/// And one over TCP.
pub(crate) const OVER_TCP: Duration = PATIENCE;

/// How to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// One datagram.
    Udp,
    /// A connection.
    Tcp,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// How the server answered.
    pub(crate) code: ResponseCode,
    /// The A and AAAA records, sorted.
    pub(crate) addresses: Vec<IpAddr>,
    /// The answer is not whole: ask over TCP.
    pub(crate) truncated: bool,
}

/// Asks for the addresses of `name` of the family of `like`.
pub(crate) async fn addresses(
    server: SocketAddr,
    name: &str,
    like: IpAddr,
    transport: Transport,
) -> anyhow::Result<Answer> {
    let qtype = if like.is_ipv4() { RecordType::A } else { RecordType::AAAA };
    let mut name = Name::from_ascii(name).context("not a DNS name")?;
    name.set_fqdn(true);
    let mut request = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    request.metadata.recursion_desired = true;
    request.add_query(Query::query(name, qtype));
    let bytes = request.to_vec()?;
    let reply = match transport {
        Transport::Udp => udp(server, &bytes).await?,
        Transport::Tcp => timeout(PATIENCE, tcp(server, &bytes))
            .await
            .unwrap_or_else(|_| bail!("no answer within {} ms", PATIENCE.as_millis()))?,
    };
    let reply = Message::from_vec(&reply).context("the answer is malformed")?;
    if reply.metadata.id != request.metadata.id || reply.queries != request.queries {
        bail!("the answer belongs to another question");
    }
    let mut addresses: Vec<IpAddr> = reply
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        })
        .collect();
    addresses.sort_unstable();
    Ok(Answer { code: reply.metadata.response_code, addresses, truncated: reply.metadata.truncation })
}

async fn udp(server: SocketAddr, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let socket = connected(server).await?;
    let mut reply = vec![0; 4096];
    for _ in 0..TRIES {
        socket.send(request).await?;
        if let Ok(received) = timeout(PATIENCE, socket.recv(&mut reply)).await {
            reply.truncate(received?);
            return Ok(reply);
        }
    }
    bail!("no answer to {TRIES} datagrams")
}

/// A UDP socket that takes datagrams of `server` alone, and hears of it when nothing listens there.
pub(crate) async fn connected(server: SocketAddr) -> std::io::Result<UdpSocket> {
    let any = if server.is_ipv4() { IpAddr::from([0, 0, 0, 0]) } else { IpAddr::from([0_u16; 8]) };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    Ok(socket)
}

async fn tcp(server: SocketAddr, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let mut framed = u16::try_from(request.len())?.to_be_bytes().to_vec();
    framed.extend_from_slice(request);
    stream.write_all(&framed).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}
