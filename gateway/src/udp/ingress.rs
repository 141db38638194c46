//! From a peer to a backend.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::CONNECTED;
use tokio::time::Instant;

use super::INGRESS_MARGIN;
use super::backend::Backend;
use super::moved::Moved;
use super::socket::Socket;
use crate::context::Gateway;
use crate::error::Failure;
use crate::link::{Association, RecvHalf, SendHalf, Sink, StreamError};
use crate::outcome::{Loss, Outcome, Record};
use crate::remote::{Admitted, Review};

/// Takes what the peer sends.
struct ToBackend {
    socket: Arc<Socket>,
    address: SocketAddr,
    moved: Moved,
}

impl Sink for ToBackend {
    fn deliver(&self, payload: &[u8]) {
        self.moved.touch(Instant::now());
        match self.socket.send(payload, self.address, None) {
            Ok(()) => self.moved.forth(payload.len()),
            Err(why) => self.moved.lose(why, 1),
        }
    }
}

/// Carries one admitted association to its end.
pub async fn serve(
    gateway: &Gateway,
    admitted: Admitted,
    association: Association,
    mut send: SendHalf,
    mut recv: RecvHalf,
    mut record: Record,
) {
    let mut backend = match Backend::pick(&admitted) {
        Ok(backend) => backend,
        Err(error) => {
            let failure = Failure::from(error);
            cut(&mut send, &mut recv, error.refusal());
            record.lost(Loss::Refused, association.refuse());
            record.entry().note = Some(failure.to_string());
            record.finish(failure.outcome);
            return;
        }
    };
    record.entry().backend = Some(backend.address());
    let socket = Arc::clone(&backend.socket);
    let sink = Arc::new(ToBackend { socket, address: backend.address(), moved: Moved::new(Instant::now()) });
    association.take(Arc::<ToBackend>::clone(&sink));
    let outcome = match send.write(Bytes::from_static(&[CONNECTED])).await {
        Ok(()) => {
            let review = Review { table: &gateway.table, admitted: &admitted };
            carry(gateway, review, &association, &mut backend, &sink, &mut recv, &mut record).await
        }
        Err(error) => Failure::stream(error, true).outcome,
    };
    match outcome {
        // The other side learns that it is over, and nothing else is wrong.
        Outcome::Ok | Outcome::Idle | Outcome::LinkLost => _ = send.finish(),
        Outcome::Refused(why) => cut(&mut send, &mut recv, why),
        _ => cut(&mut send, &mut recv, Refusal::Draining),
    }
    sink.moved.tell(&mut record);
    record.finish(outcome);
}

/// Until the peer, the backend, the policy, silence or the gateway ends it.
async fn carry(
    gateway: &Gateway,
    review: Review<'_>,
    association: &Association,
    backend: &mut Backend,
    sink: &ToBackend,
    recv: &mut RecvHalf,
    record: &mut Record,
) -> Outcome {
    let (outlet, moved) = (association.outlet(), &sink.moved);
    let answer = |payload: &[u8]| match outlet.send(payload) {
        Ok(()) => moved.back(payload.len(), Instant::now()),
        Err(why) => moved.lose(why, 1),
    };
    tokio::select! {
        why = backend.answers(answer) => Outcome::Refused(why),
        ended = ended(recv) => ended.unwrap_or_else(|| moved.outcome()),
        () = moved.over(INGRESS_MARGIN, &gateway.drain, record) => moved.outcome(),
        why = review.until_revoked() => Outcome::Refused(why),
        () = gateway.drain.closed() => Outcome::Drained,
    }
}

/// The end of the association's stream; `None`: by its opener's will.
pub(super) async fn ended(recv: &mut RecvHalf) -> Option<Outcome> {
    match recv.read(1).await {
        Ok(None) | Err(StreamError::Reset(Refusal::Cancelled | Refusal::Idle)) => None,
        // Nothing is said on it after the header and the answer.
        Ok(Some(_)) => Some(Outcome::Refused(Refusal::Protocol)),
        Err(error) => Some(Failure::stream(error, true).outcome),
    }
}

fn cut(send: &mut SendHalf, recv: &mut RecvHalf, why: Refusal) {
    send.reset(why);
    recv.stop(why);
}
