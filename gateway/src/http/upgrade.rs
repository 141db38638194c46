//! What an HTTP/1.1 connection turns into after 101: bytes both ways, until both ends are done.
//!
//! - In: the two upgraded connections, or one and a stream of the link behind its UPGRADED frames.
//! - Out: bytes; the record of the request that asked for the change, ended.
//! - Refuses when: nothing moves for the idle limit of tunnels.
//! - Never does: let a byte of the client to the backend before the backend has said 101 (S-21): the client's connection is
//!   hyper's until its 101 is written.
//! - Numbers: [`Gateway::tunnel_idle`].

use std::sync::Arc;

use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use linkspan_proto::frames;
use linkspan_proto::refusal::Refusal;
use tokio::net::TcpStream;

use super::io;
use crate::backend::EndpointGuard;
use crate::context::Gateway;
use crate::link::{RecvHalf, SendHalf, StreamError};
use crate::outcome::{Outcome, Record};
use crate::relay::{RecvSide, Socket, relay};
use crate::remote::Admitted;
use crate::tcp::halves;

/// A client's connection that changes to another protocol.
pub(crate) struct Tunnel {
    pub(crate) gateway: Arc<Gateway>,
    /// Resolves when hyper has written the 101.
    pub(crate) on_upgrade: OnUpgrade,
    pub(crate) record: Record,
}

/// A client's tunnel to a peer.
pub(crate) async fn to_link(tunnel: Tunnel, mut send: SendHalf, mut recv: RecvHalf) {
    let Tunnel { gateway, on_upgrade, mut record } = tunnel;
    let Ok(client) = on_upgrade.await else { return record.finish(Outcome::ClientGone) };
    let mut client = TokioIo::new(client);
    let outcome = match send.write(frames::upgraded()).await {
        Ok(()) => relay(&mut client, Socket::Client, &mut send, &mut recv, gateway.bounds(None), &mut record).await,
        Err(error) => error.refusal().map_or(Outcome::LinkLost, Outcome::Refused),
    };
    record.finish(outcome);
    if outcome != Outcome::Ok {
        reset_client(client.into_inner());
    }
}

/// A client's tunnel to a backend of this cluster.
pub(crate) async fn to_backend(tunnel: Tunnel, on_upgrade: OnUpgrade, endpoint: EndpointGuard) {
    let Tunnel { gateway, on_upgrade: client, mut record } = tunnel;
    let Ok(client) = client.await else { return record.finish(Outcome::ClientGone) };
    let mut client = TokioIo::new(client);
    let outcome = match on_upgrade.await.map(Upgraded::downcast::<TokioIo<TcpStream>>) {
        Ok(Ok(backend)) => {
            let (mut send, rest) = halves(backend.io.into_inner());
            let first = Some(backend.read_buf).filter(|bytes| !bytes.is_empty());
            let mut recv = Behind { first, rest };
            relay(&mut client, Socket::Client, &mut send, &mut recv, gateway.bounds(None), &mut record).await
        }
        // The backend went away behind its 101; our connections to backends are all TCP.
        Ok(Err(_)) | Err(_) => Outcome::Refused(Refusal::BackendReset),
    };
    drop(endpoint);
    record.finish(outcome);
    if outcome != Outcome::Ok {
        reset_client(client.into_inner());
    }
}

/// A peer's tunnel to a backend of this cluster.
pub(crate) async fn from_link(
    gateway: &Gateway,
    admitted: &Admitted,
    backend: Upgraded,
    send: &mut SendHalf,
    mut recv: RecvHalf,
    mut record: Record,
) {
    let mut backend = TokioIo::new(backend);
    let bounds = gateway.bounds(Some(admitted));
    let outcome = relay(&mut backend, Socket::Backend, send, &mut recv, bounds, &mut record).await;
    record.finish(outcome);
    if outcome != Outcome::Ok
        && let Ok(parts) = backend.into_inner().downcast::<TokioIo<TcpStream>>()
    {
        // Fails only on a socket that is no more, which needs no RST.
        drop(parts.io.into_inner().set_zero_linger());
    }
}

/// Cuts the client's connection, so that a torso does not look whole.
fn reset_client(client: Upgraded) {
    if let Ok(parts) = client.downcast::<io::Socket>()
        && let Some(io) = parts.io.into_inner()
    {
        io.reset();
    }
}

/// A receiving half with bytes in front that were read before.
struct Behind<R> {
    first: Option<Bytes>,
    rest: R,
}

impl<R: RecvSide> RecvSide for Behind<R> {
    async fn read(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.rest.read(max).await,
        }
    }

    fn stop(&mut self, why: Refusal) {
        self.rest.stop(why);
    }

    async fn read_many(&mut self, into: &mut Vec<Bytes>) -> Result<bool, StreamError> {
        match self.first.take() {
            Some(first) => {
                into.push(first);
                Ok(true)
            }
            None => self.rest.read_many(into).await,
        }
    }
}
