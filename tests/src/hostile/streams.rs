//! Streams: too many, too slow, too large, and never read.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use linkspan_proto::stream_header::{MAX_HEADER_LEN, StreamKind};
use quinn::{Connection, VarInt};
use tokio::time::{sleep, timeout};

use super::plan::{Link, Plan};
use super::{control, datagrams};

/// Streams of one connection that an attack holds at most: more than a gateway may permit.
const ALL: usize = 20_000;

/// How long a stream may wait for credit until the attack takes what it has.
const CREDIT: Duration = Duration::from_millis(200);

/// A piece of what goes to somebody who does not read.
const PIECE: Bytes = Bytes::from_static(&[0x5a; 64 * 1024]);

/// How long the peer of [`unacknowledged`] does nothing at all, acknowledgements included: below the idle limit.
const SILENCE: Duration = Duration::from_secs(2);

/// After which a gateway refuses a stream without a header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two pieces of [`header_drip`].
const DRIP: Duration = Duration::from_millis(500);

type Stream = (quinn::SendStream, quinn::RecvStream);

/// The next stream with these bytes in it; `None` when there is no credit or no connection.
async fn open(plan: &Plan, connection: &Connection, bytes: &[u8]) -> Option<Stream> {
    let (mut send, recv) = timeout(CREDIT, connection.open_bi()).await.ok()?.ok()?;
    timeout(CREDIT, send.write_all(bytes)).await.ok()?.ok()?;
    plan.tally.did(bytes.len());
    Some((send, recv))
}

/// As many streams as there are to be had, each begun with `bytes`.
async fn open_all(plan: &Plan, connection: &Connection, bytes: &[u8], most: usize) -> Vec<Stream> {
    let mut streams = Vec::new();
    while streams.len() < most
        && let Some(stream) = open(plan, connection, bytes).await
    {
        streams.push(stream);
    }
    streams
}

/// See [`super::Attack::Unheaded`]. What is refused is opened again.
pub(super) async fn unheaded(plan: Arc<Plan>, link: Link) {
    loop {
        let held = open_all(&plan, &link.connection, &[StreamKind::Tcp.code()], ALL).await;
        sleep(HEADER_TIMEOUT).await;
        drop(held);
    }
}

/// See [`super::Attack::HeaderDrip`].
pub(super) async fn header_drip(plan: Arc<Plan>, link: Link) {
    let header = plan.header(StreamKind::Tcp);
    loop {
        let mut streams = open_all(&plan, &link.connection, &header[..1], 1000).await;
        for byte in header[1..].chunks(1) {
            sleep(DRIP).await;
            for (send, _) in &mut streams {
                // A stream that was refused stays refused.
                drop(send.write_all(byte).await);
            }
        }
    }
}

/// See [`super::Attack::GiantHeader`].
pub(super) async fn giant_header(plan: Arc<Plan>, link: Link) {
    // The largest length that may be, and one that no machine could hold.
    let mut largest = vec![StreamKind::Tcp.code(), 0x80, 0x40];
    largest.resize(3 + MAX_HEADER_LEN - 1, 0xff);
    let absurd = [&[StreamKind::Http.code()][..], &[0xff; 9], &[0x7f]].concat();
    loop {
        for header in [&largest, &absurd] {
            drop(open_all(&plan, &link.connection, header, 100).await);
        }
        tokio::task::yield_now().await;
    }
}

/// See [`super::Attack::StreamFlood`].
pub(super) async fn flood(plan: Arc<Plan>, link: Link) {
    let probe = [StreamKind::Probe.code(), 0];
    loop {
        let streams = open_all(&plan, &link.connection, &probe, 200).await;
        for (mut send, _) in streams {
            drop(send.finish());
        }
        tokio::task::yield_now().await;
    }
}

/// See [`super::Attack::RapidReset`].
pub(super) async fn rapid_reset(plan: Arc<Plan>, link: Link) {
    let header = plan.header(StreamKind::Tcp);
    loop {
        for _ in 0..50 {
            if let Some((mut send, mut recv)) = open(&plan, &link.connection, &header).await {
                drop(send.reset(VarInt::from_u32(8)));
                drop(recv.stop(VarInt::from_u32(8)));
            }
        }
        tokio::task::yield_now().await;
    }
}

/// See [`super::Attack::StopFlood`].
pub(super) async fn stop_flood(plan: Arc<Plan>, link: Link) {
    let header = plan.header(StreamKind::Tcp);
    loop {
        let mut streams = open_all(&plan, &link.connection, &header, 50).await;
        for (_, recv) in &mut streams {
            drop(recv.stop(VarInt::from_u32(8)));
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// See [`super::Attack::NeverRead`]. Credit for everything is given, so that only the sender's own limits hold it back.
pub(super) async fn never_read(plan: Arc<Plan>, mut link: Link) {
    let header = plan.header(StreamKind::Tcp);
    let streams = open_all(&plan, &link.connection, &header, plan.streams).await;
    control::grant_everything(&mut link.control, &streams).await;
    link.connection.closed().await;
}

/// See [`super::Attack::Unacknowledged`]. To be run on a runtime of one thread, which stands still meanwhile.
pub(super) async fn unacknowledged(plan: Arc<Plan>, mut link: Link) {
    let header = plan.header(StreamKind::Tcp);
    let streams = open_all(&plan, &link.connection, &header, plan.streams).await;
    control::grant_everything(&mut link.control, &streams).await;
    while !plan.is_over() {
        std::thread::sleep(SILENCE);
        sleep(Duration::from_millis(50)).await;
    }
}

/// See [`super::Attack::Overrun`].
pub(super) async fn overrun(plan: Arc<Plan>, link: Link) {
    let header = plan.header(StreamKind::Tcp);
    let mut streams = Vec::new();
    while streams.len() < plan.streams
        && let Some((mut send, recv)) = open(&plan, &link.connection, &header).await
    {
        // To the end of QUIC's credit, whatever the gateway has granted.
        while let Ok(Ok(())) = timeout(CREDIT, send.write_chunk(PIECE.clone())).await {
            plan.tally.did(PIECE.len());
        }
        streams.push((send, recv));
    }
    link.connection.closed().await;
}

/// See [`super::Attack::Fragments`].
pub(super) async fn fragments(plan: Arc<Plan>, link: Link) {
    let header = plan.header(StreamKind::Tcp);
    let mut streams = open_all(&plan, &link.connection, &header, plan.streams).await;
    loop {
        for (send, _) in &mut streams {
            // Of no flow: dropped when it is looked at, but the kernel may have joined it with what is kept.
            for _ in 0..4 {
                datagrams::send(&plan, &link.connection, u64::MAX >> 2, 1100);
            }
            if timeout(CREDIT, send.write_all(&[0])).await.is_ok_and(|sent| sent.is_ok()) {
                plan.tally.did(1);
            }
        }
        tokio::task::yield_now().await;
    }
}

/// See [`super::Attack::UnknownKinds`].
pub(super) async fn unknown_kinds(plan: Arc<Plan>, link: Link) {
    for kind in (6..=u8::MAX).cycle() {
        drop(open(&plan, &link.connection, &[kind, 0]).await);
        if kind % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
}
