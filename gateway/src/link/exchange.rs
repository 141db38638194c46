//! Carries the catalogue exchange between the two controllers: raw bytes between a stream of kind `Exchange` and the
//! controller's socket. The gateway does not read them.
//!
//! - In: a connected link, and streams that the peer opens.
//! - Out: one pipe for each direction of catalogue, opened anew with back-off when it ends.
//! - Refuses when: the controller's socket is not there (`NoBackend`), a peer opens more than [`PIPES_PER_PEER`].
//! - Never does: keep a pipe on a connection that is being left: it ends, and comes back on the next.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use linkspan_proto::exchange_socket::{Preamble, Role};
use linkspan_proto::names::ClusterName;
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::{StreamHeader, StreamKind};
use linkspan_runtime::backoff::Backoff;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;

use super::pool::Links;
use super::{RecvHalf, SendHalf, StreamError};
use crate::discovery::{Controller, Io};

/// Pipes that one peer may have open towards our controller: one for each of its gateways, which may all be linked to this one,
/// and room for a rolling update of them. Its controller uses one; the others wait to take over, and cost a stream each.
pub(super) const PIPES_PER_PEER: usize = 32;

/// Pauses between pipes.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// A pipe that stood this long did not fail.
const STABLE: Duration = Duration::from_secs(10);

/// Read at once, in either direction; a catalogue message has at most 1 MiB.
const CHUNK: usize = 64 * 1024;

/// Why a pipe ended before its time.
#[derive(Debug, thiserror::Error)]
enum PipeError {
    #[error("the controller's socket: {0}")]
    Controller(#[from] io::Error),
    #[error("the link: {0}")]
    Link(#[from] StreamError),
    #[error("the link: {0}")]
    Open(#[from] super::OpenError),
    #[error("the stream header: {0}")]
    Header(#[from] linkspan_proto::stream_header::HeaderError),
}

/// Keeps one pipe up for the peer's catalogue, whenever the link is connected. Runs until dropped.
pub(super) async fn subscribe(
    links: Links,
    peer: ClusterName,
    controller: &Controller,
    mut connected: watch::Receiver<bool>,
) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    loop {
        if connected.wait_for(|connected| *connected).await.is_err() {
            return;
        }
        let started = tokio::time::Instant::now();
        let ended = subscribe_once(&links, &peer, controller).await;
        if started.elapsed() >= STABLE {
            backoff.reset();
        }
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "the catalogue pipe ended");
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn subscribe_once(links: &Links, peer: &ClusterName, controller: &Controller) -> Result<(), PipeError> {
    // The controller first: without it there is no reason to bother the peer.
    let mut controller = controller.exchange().await?;
    let (mut send, mut recv) = links.open_anyway(0, peer).await?;
    send.uncount();
    recv.uncount();
    send.write(StreamHeader::new(StreamKind::Exchange).encode()?).await?;
    controller.write_all(&Preamble { peer: peer.clone(), role: Role::Subscriber }.encode()).await?;
    pipe(controller, send, recv).await
}

/// Serves a stream with which the peer asks for our catalogue.
pub(super) async fn publish(
    peer: &ClusterName,
    controller: Option<&Controller>,
    mut send: SendHalf,
    mut recv: RecvHalf,
) {
    send.uncount();
    recv.uncount();
    let controller = match controller {
        Some(controller) => controller.exchange().await.ok(),
        None => None,
    };
    let Some(mut controller) = controller else {
        send.reset(Refusal::NoBackend);
        recv.stop(Refusal::NoBackend);
        return;
    };
    let preamble = Preamble { peer: peer.clone(), role: Role::Publisher }.encode();
    let piped = match controller.write_all(&preamble).await {
        Ok(()) => pipe(controller, send, recv).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = piped {
        tracing::debug!(%peer, %error, "a catalogue pipe of the peer ended");
    }
}

/// Copies both ways until both have ended, or one has failed: then both are cut, by dropping them.
async fn pipe(controller: Box<dyn Io>, send: SendHalf, recv: RecvHalf) -> Result<(), PipeError> {
    let (read, write) = tokio::io::split(controller);
    tokio::try_join!(to_link(read, send), to_controller(recv, write)).map(|_| ())
}

async fn to_link(mut controller: ReadHalf<Box<dyn Io>>, mut link: SendHalf) -> Result<(), PipeError> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        if controller.read_buf(&mut buffer).await? == 0 {
            return Ok(link.finish()?);
        }
        link.write(buffer.split().freeze()).await?;
    }
}

async fn to_controller(mut link: RecvHalf, mut controller: WriteHalf<Box<dyn Io>>) -> Result<(), PipeError> {
    while let Some(chunk) = link.read(CHUNK).await? {
        controller.write_all(&chunk).await?;
    }
    Ok(controller.shutdown().await?)
}
