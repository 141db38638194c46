//! The control stream: more of it than anybody needs, and what breaks it.

use std::sync::Arc;

use linkspan_proto::control::{self, ControlMessage, Credit, GoAway, Hello};
use quinn::{RecvStream, SendStream};

use super::plan::{Link, Plan};
use crate::peer;
use crate::wire::Message;

/// Messages in one write.
const BATCH: u64 = 256;

/// Lets the gateway send as much as it likes on these streams.
pub(super) async fn grant_everything(control: &mut SendStream, streams: &[(SendStream, RecvStream)]) {
    let mut bytes = Vec::new();
    for (_, recv) in streams {
        let credit = Credit { stream: quinn::VarInt::from(recv.id()).into_inner(), limit: u64::MAX };
        bytes.extend_from_slice(&control::encode(&ControlMessage::Credit(credit)));
    }
    // The connection may end first.
    drop(control.write_all(&bytes).await);
}

/// See [`super::Attack::ControlFlood`].
pub(super) async fn flood(plan: Arc<Plan>, mut link: Link) {
    for round in 0_u64.. {
        let mut bytes = Vec::new();
        for number in 0..BATCH {
            let id = round.wrapping_mul(BATCH) + number;
            let message = match number % 4 {
                0 => ControlMessage::Credit(Credit { stream: u64::MAX - id, limit: u64::MAX }),
                1 => ControlMessage::Credit(Credit { stream: id, limit: id }),
                2 => ControlMessage::GoAway(GoAway { drain_millis: u32::MAX, reason: "x".repeat(256) }),
                _ => ControlMessage::Hello(Hello {
                    worker: u32::MAX,
                    workers: u32::MAX,
                    ..peer::hello(&plan.target.cluster)
                }),
            };
            bytes.extend_from_slice(&control::encode(&message));
        }
        if link.control.write_all(&bytes).await.is_err() {
            return;
        }
        plan.tally.did(bytes.len());
    }
}

/// See [`super::Attack::ControlBreach`].
pub(super) async fn breach(plan: Arc<Plan>, mut link: Link) {
    // Streams of their own first: nobody reads them.
    for bytes in [control::open().to_vec(), vec![0x7f; 1000]] {
        if let Ok(mut stream) = link.connection.open_uni().await
            && stream.write_all(&bytes).await.is_ok()
        {
            plan.tally.did(bytes.len());
        }
    }
    // A length over the cap on every other connection, no protobuf on the others.
    let bytes = match link.connection.stable_id() / 16 % 2 {
        0 => vec![0xff, 0xff, 0x7f],
        _ => Message::new().bytes(1, [0xff; 300]).control(),
    };
    if link.control.write_all(&bytes).await.is_ok() {
        plan.tally.did(bytes.len());
    }
    link.connection.closed().await;
}
