//! Datagrams that belong to nobody.

use std::sync::Arc;

use bytes::Bytes;
use linkspan_proto::datagram::FlowPrefix;
use quinn::Connection;

use super::plan::{Link, Plan};

/// Sends one of the flow `flow`, with `length` bytes.
pub(super) fn send(plan: &Plan, connection: &Connection, flow: u64, length: usize) {
    let mut datagram = FlowPrefix::new(flow).as_bytes().to_vec();
    datagram.resize(length.max(datagram.len()), 0x5a);
    // Too large for the path as yet, or the connection has ended: the next one is as good.
    if connection.send_datagram(Bytes::from(datagram)).is_ok() {
        plan.tally.did(length);
    }
}

/// See [`super::Attack::Datagrams`]: flows that are to come, that are over, and that only the gateway could have opened.
pub(super) async fn unknown_flows(plan: Arc<Plan>, link: Link) {
    for number in 0_u64.. {
        send(&plan, &link.connection, number.wrapping_mul(4) % (1 << 40), 1000);
        send(&plan, &link.connection, number % 64, 1000);
        send(&plan, &link.connection, (number | 1) % (1 << 40), 1000);
        if number % 32 == 0 {
            tokio::task::yield_now().await;
        }
    }
}
