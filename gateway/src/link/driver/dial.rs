//! Finding the peer and dialling it: what the state asks for, done by tasks that report back to the driver.

use std::net::SocketAddr;
use std::sync::Arc;

use linkspan_proto::configuration::Carrier;
use linkspan_runtime::task;
use quinn::ConnectionError;
use tokio::task::JoinHandle;

use super::{Driver, Message};
use crate::link::pool::Shared;
use crate::link::state::{AttemptId, Trouble};
use crate::link::tls::{self, PeerTrust};
use crate::link::trouble::{self, trouble};
use crate::link::{endpoint, resolve};

impl Driver {
    pub(super) fn resolve(&mut self) {
        self.resolving.take().inspect(JoinHandle::abort);
        let addresses = self.config.peer.addresses.clone();
        let inbox = self.link.inbox.clone();
        self.resolving = Some(task::spawn("link_resolve", async move {
            let result = resolve::resolve(&addresses).await;
            drop(inbox.send(Message::Resolved(result)).await);
        }));
    }

    pub(super) fn dial(&mut self, attempt: AttemptId, worker: usize, address: SocketAddr, carrier: Carrier) {
        let (shared, trust) = (Arc::clone(&self.shared), Arc::clone(&self.config.trust));
        let inbox = self.link.inbox.clone();
        tracing::debug!(peer = %self.link.cluster, %address, worker, transport = carrier.as_str(), "dialling");
        let dial = async move {
            let message = match dial_once(&shared, trust, address, carrier).await {
                Ok(connection) => Message::Dialled { attempt, connection, worker, carrier },
                Err(trouble) => Message::DialFailed { attempt, trouble },
            };
            drop(inbox.send(message).await);
        };
        self.dials.insert(attempt, self.shared.spawn_on(worker, "link_dial", dial));
    }
}

async fn dial_once(
    shared: &Shared,
    trust: Arc<PeerTrust>,
    address: SocketAddr,
    carrier: Carrier,
) -> Result<quinn::Connection, Trouble> {
    let own = &shared.config;
    let crypto = tls::client_config(&shared.provider, shared.network.clock(), trust, Arc::clone(&own.certificate))
        .map_err(|error| trouble("LocalError", format!("no TLS configuration: {error}")))?;
    let connecting = match carrier {
        Carrier::Quic => endpoint::dial(&*shared.network, address, &own.limits, &own.keys, crypto),
        Carrier::Tcp => {
            let wire = shared.network.connect(address).await.map_err(|error| trouble::of_tcp(&error, address))?;
            endpoint::dial_over_tcp(wire, &own.limits, &own.keys, crypto, own.certificate.chain_len())
        }
    };
    let connecting =
        connecting.map_err(|error| trouble("LocalError", format!("cannot dial {address}/{carrier}: {error}")))?;
    connecting.await.map_err(|error| {
        let unreachable = || Trouble::unreachable(address, carrier);
        match error {
            ConnectionError::TimedOut => unreachable(),
            error => trouble::of_connection(&error, address, carrier).unwrap_or_else(unreachable),
        }
    })
}
