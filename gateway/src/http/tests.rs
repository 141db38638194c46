//! HTTP from a client's socket to a backend's, over a real link between two gateways in one process.

use std::time::Duration;

mod bodies;
mod floods;
mod framing;
mod http1;
mod http2;
mod kit;
mod leaving;
mod local;
mod peers;
mod refusals;
mod upgrades;

/// Runs a test; a test that hangs fails.
async fn patiently<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test hangs")
}
