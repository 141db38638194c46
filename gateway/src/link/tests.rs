//! Two gateways' links in one process, over loopback.

use std::time::{Duration, Instant};

use bytes::Bytes;
use linkspan_proto::identity::{Assurance, Source, SpiffeId};
use linkspan_proto::names::ServiceKey;
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::{StreamHeader, StreamKind};

use super::testkit::{PATIENCE, Side, pair};
use super::*;

fn header(side: &Side) -> StreamHeader {
    StreamHeader {
        service: Some(ServiceKey::parse("shop/web").unwrap()),
        port: 80,
        source: Some(Source { identity: SpiffeId::node(&side.authority.trust_domain), assurance: Assurance::Gateway }),
        ..StreamHeader::new(StreamKind::Tcp)
    }
}

async fn open(from: &Side, to: &Side, payload: &'static [u8]) -> (SendHalf, RecvHalf) {
    let (mut send, recv) = from.links.open(0, &to.cluster()).await.unwrap();
    let head = header(from).encode().unwrap();
    send.write_all(&mut [head, Bytes::from_static(payload)]).await.unwrap();
    (send, recv)
}

async fn accept(side: &mut Side) -> Incoming {
    tokio::time::timeout(PATIENCE, side.incoming.recv()).await.expect("a stream arrives").expect("the side lives")
}

async fn read_all(recv: &mut RecvHalf) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Some(chunk) = recv.read(64 * 1024).await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

#[tokio::test]
async fn streams_go_both_ways_over_one_link() {
    let (mut east, mut west) = pair().await;
    for (from, to) in [(&mut east, &mut west)] {
        let (mut send, mut recv) = open(from, to, b"hello").await;
        send.finish().unwrap();
        let mut incoming = accept(to).await;
        assert_eq!(incoming.header, header(from));
        assert_eq!(incoming.peer.cluster, from.cluster());
        assert_eq!(incoming.peer.gateway, SpiffeId::gateway(&from.authority.trust_domain));
        assert_eq!(read_all(&mut incoming.recv).await.unwrap(), b"hello");
        incoming.send.write(Bytes::from_static(b"world")).await.unwrap();
        incoming.send.finish().unwrap();
        assert_eq!(read_all(&mut recv).await.unwrap(), b"world");
    }
}

#[tokio::test]
async fn a_dropped_half_is_a_reset_and_never_an_end() {
    let (east, mut west) = pair().await;
    let (send, mut recv) = open(&east, &west, b"torso").await;
    let mut incoming = accept(&mut west).await;
    drop(send);
    let cut = read_all(&mut incoming.recv).await.unwrap_err();
    assert_eq!(cut, StreamError::Reset(Refusal::Cancelled));
    drop(incoming);
    assert_eq!(read_all(&mut recv).await.unwrap_err(), StreamError::Reset(Refusal::Cancelled));
}

#[tokio::test]
async fn refusals_cross_in_both_directions() {
    let (east, mut west) = pair().await;
    let (mut send, mut recv) = open(&east, &west, b"").await;
    let mut incoming = accept(&mut west).await;
    incoming.send.reset(Refusal::Denied);
    incoming.recv.stop(Refusal::Denied);
    assert_eq!(recv.read(1).await.unwrap_err().refusal(), Some(Refusal::Denied));
    assert_eq!(send.stopped().await, Some(Refusal::Denied));
    assert_eq!(send.write(Bytes::from_static(b"x")).await.unwrap_err(), StreamError::Stopped(Refusal::Denied));
}

#[tokio::test]
async fn opening_never_waits_for_a_link() {
    let (east, west) = (Side::start("east"), Side::start("west"));
    let started = Instant::now();
    assert_eq!(east.links.open(0, &west.cluster()).await.unwrap_err(), OpenError::UnknownPeer);
    east.links.configure(&[west.as_hidden_peer()]).await;
    assert_eq!(east.links.open(0, &west.cluster()).await.unwrap_err(), OpenError::NotConnected);
    assert!(started.elapsed() < Duration::from_millis(500));
    assert!(!east.links.alive(&west.cluster()));
}
