//! Serves one connection: its control stream, and the streams that the peer opens.
//!
//! - In: an authenticated connection of either direction.
//! - Out: messages to the driver; streams with their header read to the [`Ingress`](super::Ingress).
//! - Refuses when: a header is malformed (`BadHeader`) or slow (`Deadline`), its kind unknown (`UnsupportedKind`), the
//!   peer has too many streams, or too many that wait for their header, or memory is short (`Overloaded`), this gateway ends and
//!   has said so long enough ago (`Draining`).
//! - Never does: read beyond the header into the payload and keep it; let one stream's panic cost another.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use linkspan_proto::control::{ControlMessage, Hello};
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::{Decoded, MAX_HEADER_LEN, StreamHeader, StreamKind};
use linkspan_runtime::task;
use tokio::sync::mpsc;

use super::accept::Counted;
use super::connection::Connection;
use super::datagrams::{self, Association};
use super::driver::Message;
use super::pool::{PeerLink, Shared};
use super::state::Leave;
use super::{HEADER_TIMEOUT, Incoming, RecvHalf, STREAMS_PER_PEER, SendHalf, StreamError, control, exchange};

/// Read at once while the header is looked for; most come whole, with the first payload behind them.
const CHUNK: usize = 64 * 1024;

/// Streams beyond [`STREAMS_PER_PEER`] whose header is still read: a probe among them is answered, since a peer with much
/// to do must not judge the link dead.
const PROBE_ROOM: usize = 64;

/// Streams of a peer that may wait for the rest of their header. Usually it is all in the first packet; a stream that waits costs as
/// much as one that is served.
const UNHEADED: usize = 512;

/// Goaways of one connection that are listened to: there are three kinds, each is said once.
const GOAWAYS: usize = 8;

/// Probes go before data, behind the control stream.
pub(super) const PROBE_PRIORITY: i32 = 100;

/// What answers a probe.
const PROBE_ANSWER: &[u8] = &[0];

/// Runs on the connection's worker until the connection is gone, and says so.
pub(super) async fn serve(
    shared: Arc<Shared>,
    link: Arc<PeerLink>,
    connection: Arc<Connection>,
    hello: Hello,
    goaways: mpsc::Receiver<ControlMessage>,
) {
    let quinn = &connection.quinn;
    let (greeted, goaways_heard) = (AtomicBool::new(false), AtomicUsize::new(0));
    let deliver = |message| async {
        let id = connection.id;
        let message = match message {
            ControlMessage::Credit(credit) => return connection.flow.granted(credit.stream, credit.limit),
            ControlMessage::Hello(hello) if !greeted.swap(true, Ordering::Relaxed) => Message::Hello { id, hello },
            ControlMessage::GoAway(away) if goaways_heard.fetch_add(1, Ordering::Relaxed) < GOAWAYS => {
                Message::GoAway { id, leave: Leave::from_word(&away.reason) }
            }
            // The driver of a link runs beside those of all others: a peer must not keep it busy by repeating itself.
            ControlMessage::Hello(_) | ControlMessage::GoAway(_) => return,
        };
        // An error says that the driver has ended; the connection follows.
        drop(link.inbox.send(message).await);
    };
    futures::join!(
        control::send(quinn, ControlMessage::Hello(hello), goaways, &connection.flow),
        control::receive(quinn, deliver),
        accept_streams(&shared, &link, &connection),
        datagrams::demultiplex(&shared, &link, &connection),
    );
    let error = quinn.closed().await;
    drop(link.inbox.send(Message::Closed { id: connection.id, error }).await);
}

async fn accept_streams(shared: &Arc<Shared>, link: &Arc<PeerLink>, connection: &Arc<Connection>) {
    while let Ok((send, recv)) = connection.quinn.accept_bi().await {
        let (send, recv) = connection.halves(send, recv);
        connection.permit();
        let stream = serve_stream(Arc::clone(shared), Arc::clone(link), Arc::clone(connection), send, recv);
        // Ends with its stream, which ends with its connection.
        drop(task::spawn("link_stream", stream));
    }
}

async fn serve_stream(
    shared: Arc<Shared>,
    link: Arc<PeerLink>,
    connection: Arc<Connection>,
    mut send: SendHalf,
    mut recv: RecvHalf,
) {
    let refusal = if connection.is_shut() { Refusal::Draining } else { Refusal::Overloaded };
    let place = Counted::below(&link.streams, STREAMS_PER_PEER + PROBE_ROOM).filter(|_| !connection.is_shut());
    let Some(_place) = place else { return refuse(&mut send, &mut recv, refusal) };
    let is_crowded = link.streams.load(Ordering::Relaxed) > STREAMS_PER_PEER;
    let is_short = shared.config.shortage.is_short();
    let header = match header_in_time(&link, &mut recv).await {
        Ok(header) => header,
        Err(refusal) => return refuse(&mut send, &mut recv, refusal),
    };
    match header.kind {
        kind if is_crowded && kind != StreamKind::Probe => refuse(&mut send, &mut recv, Refusal::Overloaded),
        StreamKind::Probe => answer_probe(&connection, send).await,
        StreamKind::Exchange => {
            let Some(_pipe) = Counted::below(&link.pipes, exchange::PIPES_PER_PEER) else {
                return refuse(&mut send, &mut recv, Refusal::Overloaded);
            };
            exchange::publish(&link.cluster, shared.config.controller.as_ref(), send, recv).await;
        }
        StreamKind::Tcp | StreamKind::Http | StreamKind::Udp if is_short => {
            refuse(&mut send, &mut recv, Refusal::Overloaded);
        }
        StreamKind::Tcp | StreamKind::Http | StreamKind::Udp => match shared.ingress.get() {
            Some(ingress) => {
                let peer = connection.info.load_full();
                let association =
                    (header.kind == StreamKind::Udp).then(|| Association::new(&connection, recv.stream_id()));
                ingress.stream(Incoming { peer, header, send, recv, association, worker: connection.worker }).await;
            }
            None => refuse(&mut send, &mut recv, Refusal::Draining),
        },
    }
}

fn refuse(send: &mut SendHalf, recv: &mut RecvHalf, why: Refusal) {
    send.reset(why);
    recv.stop(why);
}

async fn answer_probe(connection: &Connection, mut send: SendHalf) {
    send.prioritise(PROBE_PRIORITY);
    // After a blackout our window is as full as the peer's.
    connection.make_room();
    let answered = match send.write(Bytes::from_static(PROBE_ANSWER)).await {
        Ok(()) => send.finish(),
        Err(error) => Err(error),
    };
    if let Err(error) = answered {
        tracing::debug!(%error, "probe not answered");
    }
}

/// Reads the header, at once or within [`HEADER_TIMEOUT`].
async fn header_in_time(link: &PeerLink, recv: &mut RecvHalf) -> Result<StreamHeader, Refusal> {
    let mut reading = pin!(read_header(recv));
    if let Some(header) = reading.as_mut().now_or_never() {
        return header;
    }
    let Some(_waiting) = Counted::below(&link.unheaded, UNHEADED) else { return Err(Refusal::Overloaded) };
    tokio::time::timeout(HEADER_TIMEOUT, reading).await.unwrap_or(Err(Refusal::Deadline))
}

/// Reads the header; what came behind it in the same packets stays readable.
async fn read_header(recv: &mut RecvHalf) -> Result<StreamHeader, Refusal> {
    let mut first = next_chunk(recv).await?;
    // The usual case: all there, nothing copied.
    if let Some(header) = decode(&mut first, recv)? {
        return Ok(header);
    }
    let mut so_far = BytesMut::from(first);
    loop {
        let more = next_chunk(recv).await?;
        so_far.extend_from_slice(&more);
        let mut all = so_far.freeze();
        if let Some(header) = decode(&mut all, recv)? {
            return Ok(header);
        }
        debug_assert!(all.len() <= MAX_HEADER_LEN + 3, "an incomplete header is below its cap");
        so_far = BytesMut::from(all);
    }
}

async fn next_chunk(recv: &mut RecvHalf) -> Result<Bytes, Refusal> {
    match recv.read(CHUNK).await {
        Ok(Some(chunk)) => Ok(chunk),
        Ok(None) => Err(Refusal::BadHeader),
        Err(StreamError::Reset(_) | StreamError::Stopped(_)) => Err(Refusal::Cancelled),
        Err(StreamError::LinkLost | StreamError::Closed) => Err(Refusal::Cancelled),
    }
}

fn decode(bytes: &mut Bytes, recv: &mut RecvHalf) -> Result<Option<StreamHeader>, Refusal> {
    match StreamHeader::decode(bytes) {
        Ok(Decoded::Complete { header, consumed }) => {
            recv.unread(bytes.split_off(consumed));
            Ok(Some(header))
        }
        Ok(Decoded::Incomplete) => Ok(None),
        Err(error) => {
            tracing::debug!(%error, "stream header refused");
            Err(error.refusal())
        }
    }
}
