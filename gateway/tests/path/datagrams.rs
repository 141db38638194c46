//! Datagrams over the whole path: flows.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use linkspan_gateway::outcome::{Direction, Outcome, Protocol};
use linkspan_proto::configuration::PortTransport;
use linkspan_proto::identity::Assurance;
use linkspan_proto::refusal::Refusal;
use tokio::net::UdpSocket;

use super::pair;
use super::world::{Site, patiently, rule};

/// Answers each datagram with its own name and what it got.
async fn echo(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let address = socket.local_addr().expect("address");
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let answer = [name.as_bytes(), &buffer[..length]].concat();
            // A client that has gone is no reason to end.
            drop(socket.send_to(&answer, client).await);
        }
    });
    address
}

/// An address at which nobody is.
async fn nobody() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address")
}

fn export(site: &Site, endpoints: &[SocketAddr]) {
    site.export("echo", endpoints, |export| export.ports[0].transport = PortTransport::Udp);
}

async fn client(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    socket.connect(address).await.expect("connect");
    socket
}

async fn hear(socket: &UdpSocket) -> Result<String, ErrorKind> {
    let mut buffer = vec![0; 65_536];
    match tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await {
        Ok(Ok(length)) => Ok(String::from_utf8_lossy(&buffer[..length]).into_owned()),
        Ok(Err(error)) => Err(error.kind()),
        Err(_) => Err(ErrorKind::TimedOut),
    }
}

async fn ask(address: SocketAddr, question: &str) -> Result<String, ErrorKind> {
    let socket = client(address).await;
    socket.send(question.as_bytes()).await.expect("send");
    hear(&socket).await
}

#[tokio::test]
async fn datagrams_go_there_and_back_whole_and_each_client_gets_its_own() {
    patiently(async {
        let (east, west) = pair().await;
        export(&west, &[echo("west:").await]);
        let address = east.mirror_datagrams("echo", &[&[("west", 1)]]).await;
        let clients: Vec<_> = (0..50)
            .map(|index| {
                tokio::spawn(async move {
                    let socket = client(address).await;
                    for round in 0..20 {
                        let question = format!("{index}/{round}");
                        socket.send(question.as_bytes()).await.expect("send");
                        assert_eq!(hear(&socket).await, Ok(format!("west:{question}")));
                    }
                    // An empty one is a datagram, too.
                    socket.send(b"").await.expect("send");
                    assert_eq!(hear(&socket).await.as_deref(), Ok("west:"));
                })
            })
            .collect();
        for client in clients {
            client.await.expect("its own answers");
        }
        // Both sides know the same of it once it is over, here by the end of the gateway.
        east.drain.drain(Duration::from_secs(10)).await;
        let (out, outcome) = east.seen.ends(Direction::Outbound, 50).await.remove(0);
        assert_eq!((outcome, out.protocol), (Outcome::Ok, Protocol::Udp));
        assert_eq!((out.datagrams.received, out.datagrams.sent, out.datagrams.lost), (21, 21, 0));
        assert_eq!(out.peer, Some(west.cluster.clone()));
        assert!(out.first_byte.is_some());
        let into = west.seen.ends(Direction::Inbound, 50).await;
        assert!(into.iter().all(|(entry, outcome)| *outcome == Outcome::Ok && entry.datagrams.received == 21));
        assert!(into.iter().any(|(entry, _)| entry.traceparent == out.traceparent && entry.client == out.client));
        assert!(east.seen.is_balanced() && west.seen.is_balanced());
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_policy_denies_is_refused_and_its_datagrams_are_counted() {
    patiently(async {
        let (east, west) = pair().await;
        let address = echo("west:").await;
        west.export("echo", &[address], |export| {
            export.ports[0].transport = PortTransport::Udp;
            export.rules = Some(vec![rule(|rule| rule.minimum_assurance = Assurance::Mtls)]);
        });
        let address = east.mirror_datagrams("echo", &[&[("west", 1)]]).await;
        let socket = client(address).await;
        socket.send(b"hello").await.expect("send");
        let (out, outcome) = east.seen.ends(Direction::Outbound, 1).await.remove(0);
        assert_eq!(outcome, Outcome::Refused(Refusal::Denied));
        assert!(out.note.is_some());
        let (into, outcome) = west.seen.ends(Direction::Inbound, 1).await.remove(0);
        assert_eq!((outcome, into.datagrams.lost), (Outcome::Refused(Refusal::Denied), 1));
        // TCP of the same number is not exported by that.
        assert!(into.backend.is_none());
    })
    .await;
}

#[tokio::test]
async fn a_client_that_is_refused_again_and_again_costs_one_flow_at_a_time() {
    patiently(async {
        let (east, _west) = pair().await;
        let address = east.mirror_datagrams("echo", &[&[("west", 1)]]).await;
        let socket = client(address).await;
        let start = std::time::Instant::now();
        for _ in 0..100 {
            socket.send(b"hello").await.expect("send");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (_, outcome) = east.seen.ends(Direction::Outbound, 1).await.remove(0);
        assert_eq!(outcome, Outcome::Refused(Refusal::UnknownExport));
        socket.send(b"again").await.expect("send");
        // A refusal holds for a quarter of a second.
        let most = usize::try_from(start.elapsed().as_millis() / 250).expect("a number") + 2;
        let ends = east.seen.ends(Direction::Outbound, 1).await.len();
        assert!(ends <= most, "{ends} flows");
    })
    .await;
}

#[tokio::test]
async fn a_backend_that_is_not_there_ends_the_flow() {
    patiently(async {
        let (east, west) = pair().await;
        export(&west, &[nobody().await]);
        let address = east.mirror_datagrams("echo", &[&[("west", 1)]]).await;
        let socket = client(address).await;
        socket.send(b"hello").await.expect("send");
        let (_, outcome) = west.seen.ends(Direction::Inbound, 1).await.remove(0);
        assert_eq!(outcome, Outcome::Refused(Refusal::ConnectRefused));
        let (_, outcome) = east.seen.ends(Direction::Outbound, 1).await.remove(0);
        assert_eq!(outcome, Outcome::Refused(Refusal::ConnectRefused));
        // The same client begins anew a moment later, where the service has come back.
        export(&west, &[echo("west:").await]);
        tokio::time::sleep(Duration::from_millis(500)).await;
        socket.send(b"again").await.expect("send");
        assert_eq!(hear(&socket).await.as_deref(), Ok("west:again"));
    })
    .await;
}

#[tokio::test]
async fn the_first_datagrams_go_to_the_cluster_that_takes_the_flow() {
    patiently(async {
        let (east, west) = pair().await;
        let north = Site::start("north");
        east.link(&north).await;
        // West knows nothing of the service, and says so.
        export(&north, &[echo("north:").await]);
        let address = east.mirror_datagrams("echo", &[&[("west", 1)], &[("north", 1)]]).await;
        assert_eq!(ask(address, "hello").await.as_deref(), Ok("north:hello"));
        let (_, outcome) = west.seen.ends(Direction::Inbound, 1).await.remove(0);
        assert_eq!(outcome, Outcome::Refused(Refusal::UnknownExport));
    })
    .await;
}

#[tokio::test]
async fn weights_hold_for_each_flow_and_the_local_cluster_is_one_of_them() {
    patiently(async {
        let (east, west) = pair().await;
        export(&west, &[echo("west:").await]);
        export(&east, &[echo("east:").await]);
        let address = east.mirror_datagrams("echo", &[&[("west", 3), ("east", 1)]]).await;
        let mut counts = [0, 0];
        for _ in 0..40 {
            match ask(address, "?").await.as_deref() {
                Ok("west:?") => counts[0] += 1,
                Ok("east:?") => counts[1] += 1,
                other => panic!("{other:?}"),
            }
        }
        // Each worker counts its own.
        assert!((28..=32).contains(&counts[0]), "{counts:?}");
        // A flow stays where it began.
        let socket = client(address).await;
        socket.send(b"?").await.expect("send");
        let first = hear(&socket).await;
        for _ in 0..10 {
            socket.send(b"?").await.expect("send");
            assert_eq!(hear(&socket).await, first);
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_asks_from_ever_new_ports_loses_nothing() {
    patiently(async {
        let (east, west) = pair().await;
        export(&west, &[echo("west:").await]);
        let address = east.mirror_datagrams("echo", &[&[("west", 1)]]).await;
        for question in 0..3_000 {
            let question = question.to_string();
            assert_eq!(ask(address, &question).await, Ok(format!("west:{question}")));
        }
    })
    .await;
}
