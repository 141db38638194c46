//! What comes before a connection: handshakes that nobody finishes, and the door for TCP.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quinn::{Endpoint, TransportConfig};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::plan::Plan;
use crate::peer;

/// ClientHellos that are made ahead; each is sent from many addresses.
const HELLOS: usize = 256;

/// Sockets of such handshakes that are kept open until somebody looks what came to them.
const WAITING: usize = 300;

/// How a [`super::Report`] calls an answer that asks for proof of the address.
const RETRY: &str = "retry";

/// TCP connections at the same time.
const DOORS: usize = 200;

/// The first bytes of a link over TCP.
const PREFACE: &[u8] = b"LINKSPAN TCP 1\r\n";

/// First packets of handshakes, each of a connection of its own, as a client makes them. They are taken down where nobody
/// answers.
async fn client_hellos(plan: &Plan) -> Vec<Vec<Vec<u8>>> {
    let own = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut hellos = Vec::new();
    for _ in 0..HELLOS {
        // One for each: what is said at the end of such an attempt is none of the next one.
        let sink = UdpSocket::bind(own).await.expect("a socket");
        let to = sink.local_addr().expect("bound");
        let endpoint = Endpoint::client(own).expect("a socket");
        let config = peer::client_config(plan.identity(), TransportConfig::default());
        let connecting = endpoint.connect_with(config, to, "peer.linkspan.internal");
        let mut packets = Vec::new();
        let mut buffer = vec![0; 2048];
        // A post-quantum key share takes two packets.
        while packets.len() < 2
            && let Ok(Ok((length, _))) = timeout(Duration::from_millis(20), sink.recv_from(&mut buffer)).await
        {
            packets.push(buffer[..length].to_vec());
        }
        drop(connecting);
        drop(endpoint);
        if !packets.is_empty() {
            hellos.push(packets);
        }
    }
    hellos
}

/// See [`super::Attack::HalfHandshakes`].
pub(super) async fn half_handshakes(plan: &Arc<Plan>) {
    let hellos = client_hellos(plan).await;
    let own = if plan.target.address.ip().is_loopback() { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    let mut waiting = VecDeque::new();
    while !plan.is_over() {
        for packets in &hellos {
            let Ok(socket) = UdpSocket::bind((own, 0)).await else { continue };
            for packet in packets {
                if socket.send_to(packet, plan.target.address).await.is_ok() {
                    plan.tally.did(packet.len());
                }
            }
            waiting.push_back(socket);
            if waiting.len() > WAITING
                && let Some(socket) = waiting.pop_front()
            {
                listen_to(plan, &socket);
            }
            if plan.is_over() {
                break;
            }
        }
        sleep(Duration::from_millis(1)).await;
    }
    for socket in waiting {
        listen_to(plan, &socket);
    }
}

/// Counts what was answered to an address that never answers.
fn listen_to(plan: &Plan, socket: &UdpSocket) {
    let mut buffer = vec![0; 2048];
    while let Ok((length, _)) = socket.try_recv_from(&mut buffer) {
        plan.tally.received.fetch_add(length as u64, Ordering::Relaxed);
        // RFC 9000 section 17.2: a long header of type 3 is a Retry.
        if buffer[0] & 0xf0 == 0xf0 {
            plan.tally.ended(RETRY);
        }
    }
}

/// Keeps [`DOORS`] connections to the door for TCP and writes each of `messages` on them by turns, in pieces of `piece` bytes
/// with `pause` between them.
async fn at_the_door(plan: &Arc<Plan>, messages: &[Vec<u8>], piece: usize, pause: Duration) {
    let mut all = JoinSet::new();
    for number in 0..DOORS {
        let plan = Arc::clone(plan);
        let message = messages[number % messages.len()].clone();
        all.spawn(async move {
            while !plan.is_over() {
                match TcpStream::connect(plan.target.address).await {
                    Ok(mut stream) => {
                        for piece in message.chunks(piece) {
                            if stream.write_all(piece).await.is_err() || plan.is_over() {
                                break;
                            }
                            plan.tally.did(piece.len());
                            sleep(pause).await;
                        }
                    }
                    Err(error) => plan.tally.ended(&error.to_string()),
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
    }
    all.join_all().await;
}

/// See [`super::Attack::TcpPreface`].
pub(super) async fn tcp_preface(plan: &Arc<Plan>) {
    let messages = [PREFACE.to_vec(), b"LINKSPAN TCP 2\r\n".to_vec(), b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 64]];
    at_the_door(plan, &messages, 1, Duration::from_millis(100)).await;
}

/// See [`super::Attack::TcpLengths`].
pub(super) async fn tcp_lengths(plan: &Arc<Plan>) {
    let behind = |rest: &[u8]| [PREFACE, rest].concat();
    let messages = [
        behind(&[0, 0]),
        behind(&[0xff, 0xff]),
        behind(&[0xff, 0xf0, 1, 2, 3]),
        behind(&[&[0x40, 0x00][..], &[0x5a; 0x4000]].concat()),
    ];
    at_the_door(plan, &messages, usize::MAX, Duration::from_millis(5)).await;
}
