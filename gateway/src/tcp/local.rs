//! From a client to a backend of this very cluster, where the local cluster was picked. No link between: the same
//! admission, the same PROXY header, the same relay, with the backend's socket in the place of the stream.

use std::future::{Future, poll_fn};
use std::net::Shutdown;
use std::sync::Arc;

use bytes::Bytes;
use linkspan_proto::configuration::PortTransport;
use linkspan_proto::refusal::Refusal;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::egress::Replay;
use super::{ingress, table};
use crate::context::Gateway;
use crate::error::Failure;
use crate::link::StreamError;
use crate::listener::ClientConnection;
use crate::outcome::{Outcome, Record};
use crate::relay::{RecvSide, SendSide, Socket, Torn, poll_chunk, relay};
use crate::remote::admit_local;
use crate::route::Routed;

/// Carries one client connection to a local backend.
pub(super) async fn carry(
    gateway: &Gateway,
    conn: &mut ClientConnection,
    routed: &Routed,
    replay: &mut Replay,
    record: &mut Record,
) -> Result<Outcome, Failure> {
    let mirror = routed.route.mirror();
    let endpoint = mirror.endpoint.as_ref();
    let port = (PortTransport::Tcp, routed.route.port());
    let admitted = admit_local(&table(gateway), &mirror.service, port, endpoint, routed.source.clone())?;
    let traceparent = record.entry().traceparent.clone();
    let (backend, _endpoint) = ingress::connect(&admitted, Some(conn.client), traceparent.as_deref(), record).await?;
    record.answered();
    let (mut send, mut recv) = halves(backend);
    // Read again by the relay: a backend that takes none of it meets the idle limit and the drain like any other, and none
    // of it is kept once it is written.
    conn.io.unread(replay.take());
    Ok(relay(&mut conn.io, Socket::Client, &mut send, &mut recv, gateway.bounds(None), record).await)
}

/// The backend's socket as the sending half of a stream.
pub(crate) struct ToBackend(OwnedWriteHalf, Arc<Torn>);

/// The backend's socket as the receiving half of a stream.
pub(crate) struct FromBackend(OwnedReadHalf, Arc<Torn>);

/// The backend's socket as the halves of a stream.
pub(crate) fn halves(backend: TcpStream) -> (ToBackend, FromBackend) {
    let (read, write) = backend.into_split();
    let torn = Arc::<Torn>::default();
    (ToBackend(write, Arc::clone(&torn)), FromBackend(read, torn))
}

impl SendSide for ToBackend {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StreamError> {
        // What the backend still has to say comes by the other half.
        self.0.write_all(&chunk).await.map_err(|error| {
            self.1.by_write(&error);
            StreamError::Stopped(Refusal::BackendReset)
        })
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        let socket = SockRef::from(self.0.as_ref());
        socket.shutdown(Shutdown::Write).map_err(|_| StreamError::Stopped(Refusal::BackendReset))
    }

    fn reset(&mut self, _why: Refusal) {
        // Takes effect when both halves are dropped. Fails only on a socket that is no more.
        drop(self.0.as_ref().set_zero_linger());
    }

    fn stopped(&mut self) -> impl Future<Output = Option<Refusal>> + Send {
        // TCP says so by a RST, which the reading half meets.
        std::future::pending()
    }
}

impl RecvSide for FromBackend {
    async fn read(&mut self, _max: usize) -> Result<Option<Bytes>, StreamError> {
        let chunk = poll_fn(|cx| poll_chunk(&mut self.0, cx)).await;
        let chunk = chunk.map_err(|_| StreamError::Reset(Refusal::BackendReset))?;
        if chunk.is_empty() && self.1.is_torn() {
            return Err(StreamError::Reset(Refusal::BackendReset));
        }
        Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
    }

    fn stop(&mut self, _why: Refusal) {
        drop(self.0.as_ref().set_zero_linger());
    }
}
