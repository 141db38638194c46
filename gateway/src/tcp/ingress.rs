//! From a peer to a backend.

use std::net::SocketAddr;

use bytes::Bytes;
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::{CONNECTED, StreamHeader};
use tokio::net::TcpStream;

use super::trace_id;
use crate::backend::{self, EndpointGuard};
use crate::context::Gateway;
use crate::error::Failure;
use crate::link::{RecvHalf, SendHalf};
use crate::outcome::{Outcome, Record};
use crate::relay::{Socket, relay};
use crate::remote::Admitted;

/// Carries one admitted stream to its end.
pub async fn serve(
    gateway: &Gateway,
    admitted: Admitted,
    header: StreamHeader,
    mut send: SendHalf,
    mut recv: RecvHalf,
    mut record: Record,
) {
    let dialled = tokio::select! {
        biased;
        dialled = connect(&admitted, header.client, header.traceparent.as_deref(), &mut record) => dialled,
        // The egress side gave up: do not finish a connect that nobody waits for.
        _ = send.stopped() => {
            record.ended(Outcome::ClientGone);
            return;
        }
    };
    let (mut backend, _endpoint) = match dialled {
        Ok(dialled) => dialled,
        Err(failure) => {
            let why = match failure.outcome {
                Outcome::Refused(why) => why,
                _ => Refusal::BackendReset,
            };
            send.reset(why);
            recv.stop(why);
            record.entry().note = Some(failure.to_string());
            record.ended(failure.outcome);
            return;
        }
    };
    record.answered();
    let outcome = match send.write(Bytes::from_static(&[CONNECTED])).await {
        Ok(()) => {
            let bounds = gateway.bounds(Some(&admitted));
            relay(&mut backend, Socket::Backend, &mut send, &mut recv, bounds, &mut record).await
        }
        Err(error) => Failure::stream(error, true).outcome,
    };
    record.finish(outcome);
    if outcome != Outcome::Ok {
        // Fails only on a socket that is no more, which needs no RST.
        drop(backend.set_zero_linger());
    }
}

/// Connects to an endpoint and tells it who calls, if the export asks for that.
pub(super) async fn connect(
    admitted: &Admitted,
    client: Option<SocketAddr>,
    traceparent: Option<&str>,
    record: &mut Record,
) -> Result<(TcpStream, EndpointGuard), Failure> {
    let (mut stream, endpoint) = backend::dial(admitted).await?;
    record.entry().backend = Some(endpoint.address());
    let trace_id = traceparent.and_then(trace_id);
    backend::introduce(&mut stream, admitted, endpoint.address(), client, trace_id).await?;
    Ok((stream, endpoint))
}
