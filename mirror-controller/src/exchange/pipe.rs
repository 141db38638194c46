//! Connections on `exchange.sock`: who is at the other end, then raw HTTP/2.
//!
//! - **In**: connections of our own gateways; the socket's mode keeps everybody else out.
//! - **Out**: a [`Pipe`] for the peer's follower (role subscriber), or a served connection (role publisher).
//! - **Refuses when**: the preamble does not come within [`PREAMBLE`], is malformed, or names a cluster without a Link; a peer
//!   has [`PIPES_MAX`] of a role.
//! - **Never does**: end a pipe for the sake of another: each gateway of either side has one, and one that was ended comes back.
//! - **Numbers**: [`PREAMBLE`], [`WAITING_MAX`], [`PIPES_MAX`].

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use linkspan_proto::exchange_socket::{MAX_PREAMBLE_LEN, Preamble, Role};
use linkspan_proto::names::ClusterName;
use linkspan_runtime::backoff::Backoff;
use linkspan_runtime::task;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Context, Feed, server};
use crate::door::{Door, Stream};

/// A gateway writes the preamble at once; longer means that it is stuck.
pub const PREAMBLE: Duration = Duration::from_secs(5);
/// Connections whose preamble has not come yet. A gateway opens two for each link.
pub const WAITING_MAX: usize = 256;
/// Pipes of one peer and role: one for each gateway that keeps one, and room for a rolling update of them. One of them is used; the
/// others cost some kilobytes each, and a peer that uses all of them to listen holds up a message of 256 KiB on each, 8 MiB.
/// The same as gateways grant a peer.
pub const PIPES_MAX: usize = 32;

/// One end of a connection whose first bytes were read already.
#[derive(Debug)]
pub struct Pipe {
    prefix: Bytes,
    stream: Stream,
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.has_remaining() {
            let length = self.prefix.remaining().min(buffer.remaining());
            buffer.put_slice(&self.prefix.split_to(length));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Where pipes go, by linked peer.
#[derive(Clone, Debug, Default)]
pub struct Table(Arc<Mutex<BTreeMap<ClusterName, Slot>>>);

#[derive(Debug)]
struct Slot {
    follower: mpsc::Sender<Pipe>,
    /// Ends the connections that serve this peer.
    unlinked: CancellationToken,
    /// Places for them.
    publishing: Arc<Semaphore>,
}

/// What becomes of a publishing pipe.
enum Admission {
    /// It is served until the token is cancelled, and counts until the permit is dropped.
    Served(CancellationToken, OwnedSemaphorePermit),
    /// The peer has too many.
    Full,
    /// There is no such Link.
    Unlinked,
}

impl Table {
    /// A peer is linked; its subscribing pipes go to `follower`.
    pub(super) fn insert(&self, peer: ClusterName, follower: mpsc::Sender<Pipe>) {
        let (unlinked, publishing) = (CancellationToken::new(), Arc::new(Semaphore::new(PIPES_MAX)));
        if let Some(slot) = self.slots().insert(peer, Slot { follower, unlinked, publishing }) {
            slot.unlinked.cancel();
        }
    }

    /// A peer is no longer linked.
    pub(super) fn remove(&self, peer: &ClusterName) {
        if let Some(slot) = self.slots().remove(peer) {
            slot.unlinked.cancel();
        }
    }

    fn follower(&self, peer: &ClusterName) -> Option<mpsc::Sender<Pipe>> {
        self.slots().get(peer).map(|slot| slot.follower.clone())
    }

    /// A new publishing pipe, beside those that there are.
    fn publish(&self, peer: &ClusterName) -> Admission {
        let slots = self.slots();
        let Some(slot) = slots.get(peer) else { return Admission::Unlinked };
        match Arc::clone(&slot.publishing).try_acquire_owned() {
            Ok(place) => Admission::Served(slot.unlinked.clone(), place),
            Err(_) => Admission::Full,
        }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, BTreeMap<ClusterName, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts until the drain.
pub(super) async fn accept(context: Arc<Context>, mut door: Door, table: Table, feed: watch::Receiver<Arc<Feed>>) {
    let waiting = Arc::new(Semaphore::new(WAITING_MAX));
    let mut pause = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
    loop {
        let accepted = tokio::select! {
            accepted = door.accept() => accepted,
            () = context.signal.draining() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "exchange.sock: accept failed");
                tokio::time::sleep(pause.next()).await;
                continue;
            }
        };
        pause.reset();
        let Ok(permit) = Arc::clone(&waiting).try_acquire_owned() else {
            tracing::warn!("exchange.sock: too many connections without a preamble; one is closed");
            continue;
        };
        let (context, table, feed) = (Arc::clone(&context), table.clone(), feed.clone());
        drop(task::spawn("exchange_pipe", async move {
            let read = tokio::time::timeout(PREAMBLE, preamble(stream)).await;
            drop(permit);
            match read {
                Ok(Ok((preamble, pipe))) => route(&context, &table, feed, preamble, pipe).await,
                Ok(Err(error)) => tracing::debug!(%error, "exchange.sock: no preamble"),
                Err(_) => tracing::debug!("exchange.sock: no preamble within 5 s"),
            }
        }));
    }
}

/// Why a pipe is closed.
const UNLINKED: &str = "the cluster is not linked here";

async fn route(
    context: &Arc<Context>,
    table: &Table,
    feed: watch::Receiver<Arc<Feed>>,
    preamble: Preamble,
    pipe: Pipe,
) {
    let peer = preamble.peer;
    let refused = match preamble.role {
        Role::Subscriber => match table.follower(&peer) {
            // The gateway will open another pipe.
            Some(follower) => follower.try_send(pipe).is_err().then_some("its follower is behind"),
            None => Some(UNLINKED),
        },
        Role::Publisher => match table.publish(&peer) {
            Admission::Served(unlinked, place) => {
                server::serve(context, peer.clone(), feed, pipe, unlinked).await;
                drop(place);
                None
            }
            Admission::Full => Some("the peer has too many already"),
            Admission::Unlinked => Some(UNLINKED),
        },
    };
    if let Some(why) = refused {
        tracing::debug!(%peer, why, "exchange.sock: a pipe is closed");
    }
}

async fn preamble(mut stream: Stream) -> io::Result<(Preamble, Pipe)> {
    let mut bytes = BytesMut::with_capacity(MAX_PREAMBLE_LEN);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let decoded = Preamble::decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if let Some((preamble, length)) = decoded {
            bytes.advance(length);
            return Ok((preamble, Pipe { prefix: bytes.freeze(), stream }));
        }
    }
}
