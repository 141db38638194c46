//! Associations between two gateways in one process, over loopback.

use linkspan_proto::identity::{Assurance, Source, SpiffeId};
use linkspan_proto::names::ServiceKey;
use linkspan_proto::stream_header::{StreamHeader, StreamKind};
use tokio::sync::mpsc;

use super::super::testkit::{PATIENCE, Side, pair};
use super::super::{Incoming, RecvHalf, SendHalf};
use super::*;

fn header(side: &Side) -> Bytes {
    let header = StreamHeader {
        service: Some(ServiceKey::parse("shop/dns").unwrap()),
        port: 53,
        source: Some(Source::new(SpiffeId::node(&side.authority.trust_domain), Assurance::Gateway)),
        ..StreamHeader::new(StreamKind::Udp)
    };
    header.encode().unwrap()
}

async fn associate(from: &Side, to: &Side) -> (SendHalf, RecvHalf, Association) {
    from.links.associate(0, &to.cluster()).await.unwrap()
}

async fn accept(side: &mut Side) -> Incoming {
    tokio::time::timeout(PATIENCE, side.incoming.recv()).await.expect("a stream arrives").expect("the side lives")
}

/// Puts what it is given into a channel.
struct Heard(mpsc::UnboundedSender<Vec<u8>>);

impl Sink for Heard {
    fn deliver(&self, payload: &[u8]) {
        drop(self.0.send(payload.to_vec()));
    }
}

fn heard(association: &Association) -> mpsc::UnboundedReceiver<Vec<u8>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    association.take(Arc::new(Heard(sender)));
    receiver
}

async fn next(heard: &mut mpsc::UnboundedReceiver<Vec<u8>>) -> Vec<u8> {
    tokio::time::timeout(PATIENCE, heard.recv()).await.expect("a datagram arrives").expect("the sink lives")
}

async fn until(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("in time");
}

#[tokio::test]
async fn datagrams_that_overtake_the_header_arrive_in_order_and_answers_come_back() {
    let (east, mut west) = pair().await;
    let (mut send, _recv, association) = associate(&east, &west).await;
    let mut answers = heard(&association);
    for payload in [&b"one"[..], b"", b"three"] {
        association.outlet().send(payload).unwrap();
    }
    // The other side has them before it knows of the stream.
    tokio::time::sleep(Duration::from_millis(50)).await;
    send.write(header(&east)).await.unwrap();
    let incoming = accept(&mut west).await;
    assert_eq!(incoming.header.kind, StreamKind::Udp);
    let there = incoming.association.expect("datagrams");
    let mut questions = heard(&there);
    for payload in [&b"one"[..], b"", b"three"] {
        assert_eq!(next(&mut questions).await, payload);
    }
    association.outlet().send(b"four").unwrap();
    assert_eq!(next(&mut questions).await, b"four");
    there.outlet().send(&[7; 1100]).unwrap();
    assert_eq!(next(&mut answers).await, [7; 1100]);
    assert!(east.counter.lost.lock().unwrap().is_empty() && west.counter.lost.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_does_not_fit_is_lost_whole() {
    let (east, mut west) = pair().await;
    let (mut send, _recv, association) = associate(&east, &west).await;
    send.write(header(&east)).await.unwrap();
    let there = accept(&mut west).await.association.expect("datagrams");
    let mut questions = heard(&there);
    for length in [60_000, PAYLOAD_MAX, PAYLOAD_MAX + 1] {
        assert_eq!(association.outlet().send(&vec![1; length]), Err(Loss::Oversize));
    }
    association.outlet().send(b"small").unwrap();
    assert_eq!(next(&mut questions).await, b"small");
}

#[tokio::test]
async fn datagrams_of_a_flow_that_has_ended_are_counted_on_either_side() {
    let (east, mut west) = pair().await;
    let (mut send, _recv, association) = associate(&east, &west).await;
    send.write(header(&east)).await.unwrap();
    let there = accept(&mut west).await.association.expect("datagrams");
    let back = there.outlet().clone();
    // Refused before anybody took it.
    association.outlet().send(b"in vain").unwrap();
    let flow = there.outlet.flow;
    until(|| there.outlet.connection.datagrams.flows().is_waiting(flow)).await;
    assert_eq!(there.refuse(), 1);
    // Ended at its opener: what still comes there is of no flow.
    drop(association);
    back.send(b"late").unwrap();
    until(|| *east.counter.lost.lock().unwrap() == [(Direction::Outbound, Loss::UnknownFlow, 1)]).await;
}

#[tokio::test]
async fn associations_leave_streams_to_everything_else() {
    let (east, west) = pair().await;
    let mut all = Vec::new();
    let refused = loop {
        match east.links.associate(0, &west.cluster()).await {
            Ok(opened) => all.push(opened),
            Err(error) => break error,
        }
        assert!(all.len() <= 4 * ASSOCIATIONS, "no bound");
    };
    assert_eq!(refused, crate::link::OpenError::Overloaded);
    assert_eq!(all.len() % ASSOCIATIONS, 0);
    assert!(east.links.open(0, &west.cluster()).await.is_ok(), "a connection or a request");
    all.pop();
    assert!(east.links.associate(0, &west.cluster()).await.is_ok());
}

#[tokio::test]
async fn more_than_the_path_takes_neither_stops_the_probes_nor_is_lost_unseen() {
    let (east, mut west) = pair().await;
    let (mut send, _recv, association) = associate(&east, &west).await;
    send.write(header(&east)).await.unwrap();
    let there = accept(&mut west).await.association.expect("datagrams");
    let mut questions = heard(&there);
    let (mut sent, mut lost) = (0_u64, 0_u64);
    let start = std::time::Instant::now();
    let answered = || west.counter.answered.load(Ordering::Relaxed) + east.counter.answered.load(Ordering::Relaxed);
    let before = answered();
    while start.elapsed() < Duration::from_millis(2500) {
        for _ in 0..64 {
            match association.outlet().send(&[0; 1100]) {
                Ok(()) => sent += 1,
                Err(why) => {
                    assert_eq!(why, Loss::QueueFull);
                    lost += 1;
                }
            }
        }
        tokio::task::yield_now().await;
    }
    assert!(answered() > before, "probes pass");
    assert!(east.links.alive(&west.cluster()) && west.links.alive(&east.cluster()));
    let mut came = 0;
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(300), questions.recv()).await {
        came += 1;
    }
    // The kernel's sockets are large enough for what QUIC has under way, on a path like this; a few may still be lost there.
    assert!(came <= sent && came * 100 >= sent * 99, "{came} of {sent} came, {lost} were refused");
}
