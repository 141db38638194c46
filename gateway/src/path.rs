//! The whole trip of a byte. Read this first.
//!
//! ```text
//! egress   client -> listener -> detect -> route -> link ==QUIC==> peer
//! ingress  peer ==QUIC==> link -> remote -> backend -> service
//! ```
//!
//! The datagrams of UDP services go the same way, each client's as a flow: [`Path::egress_datagrams`], and the same
//! [`Path::ingress`].
//!
//! [`Path::egress`] takes a connection from `listener` (or, decrypted, from `mtls`) to its end, [`Path::ingress`] a stream
//! from `link`. Each line calls one stage; to see what a line does, open the file of that name.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use linkspan_proto::stream_header::{StreamHeader, StreamKind};

use crate::context::Gateway;
use crate::detect::{Declared, Detected, UNDECIDED, detect};
use crate::error::Failure;
use crate::http;
use crate::link::{Association, Incoming, Ingress, PeerInfo};
use crate::listener::{ClientConnection, DatagramSocket, Place};
use crate::mtls;
use crate::outcome::{Direction, Entry, Loss, Outcome, Protocol, Record};
use crate::remote::{Admitted, Refused, Ticket, authorize};
use crate::route::Routed;
use crate::tcp;
use crate::udp::{self, FlowPermits};

/// Both directions of the path. Cheap to clone; one for the process.
#[derive(Clone, Debug)]
pub struct Path {
    gateway: Arc<Gateway>,
    flows: FlowPermits,
}

impl Path {
    /// A path through this gateway.
    #[must_use]
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway, flows: FlowPermits::default() }
    }

    /// What the whole path shares.
    #[must_use]
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// A client's connection to a mirrored address.
    pub async fn egress(&self, conn: ClientConnection) {
        // No table outlives its look-up: a connection may last for days, and would keep everything it held alive.
        let routed = self.gateway.table.load().route(Place::tcp(conn.listen), conn.client.ip());
        match routed {
            Some(routed) => self.carry(conn, routed).await,
            None => {
                // The mirror was removed while this connection lay in the kernel's queue.
                self.record(Direction::Outbound, Protocol::Tcp).finish(Outcome::NoRoute);
                conn.io.reset();
            }
        }
    }

    /// The datagrams of all clients of one socket.
    pub async fn egress_datagrams(&self, socket: DatagramSocket) {
        udp::Egress::serve(Arc::clone(&self.gateway), self.flows.clone(), socket).await;
    }

    /// A client's connection to the mTLS port.
    pub async fn egress_mtls(&self, server: &mtls::Server, conn: ClientConnection) {
        let client = conn.client;
        let accepted = server.accept(&self.gateway.table, conn).await;
        match accepted {
            Ok((conn, routed)) => self.carry(conn, routed).await,
            Err(error) => {
                let mut record = self.record(Direction::Outbound, Protocol::Tls);
                record.entry().client = Some(client);
                record.entry().note = Some(error.to_string());
                record.finish(error.outcome());
            }
        }
    }

    /// A client's connection whose destination and caller are known: from [`Self::egress`] by address, from `mtls` by
    /// server name and certificate.
    pub async fn carry(&self, mut conn: ClientConnection, routed: Routed) {
        let unfinished = self.gateway.drain.guard();
        let declared = Declared::of(routed.route.app_protocol(), routed.route.port());
        let detected = tokio::select! {
            biased;
            detected = detect(&mut conn.io, declared) => detected,
            // A connection opened ahead, on which nothing was asked: its client will open another.
            () = self.draining_for(UNDECIDED) => return,
        };
        match detected {
            // A client that connects and leaves again asked for nothing: a probe of its own.
            Err(error) => tracing::debug!(client = %conn.client, %error, "nothing was asked"),
            // Each in a box of its own: a connection that lies idle holds what its own kind needs, not what the largest does.
            Ok(Detected::Http1) => {
                Box::pin(http::egress(Arc::clone(&self.gateway), conn, routed, false, unfinished)).await;
            }
            Ok(Detected::Http2) => {
                Box::pin(http::egress(Arc::clone(&self.gateway), conn, routed, true, unfinished)).await;
            }
            Ok(Detected::Tls { .. }) => Box::pin(tcp::egress(&self.gateway, conn, routed, Protocol::Tls)).await,
            Ok(Detected::Opaque) => Box::pin(tcp::egress(&self.gateway, conn, routed, Protocol::Tcp)).await,
        }
    }

    /// A stream that a peer has opened.
    pub async fn ingress(&self, incoming: Incoming) {
        let Incoming { peer, header, mut send, mut recv, association, .. } = incoming;
        let gateway = &self.gateway;
        let _unfinished = gateway.drain.guard();
        let admitted = self.admit(&peer, &header);
        let http = header.kind == StreamKind::Http;
        let protocol = match header.kind {
            StreamKind::Http => Protocol::Http1,
            StreamKind::Udp => Protocol::Udp,
            _ => Protocol::Tcp,
        };
        let mut entry = Entry::new(Direction::Inbound, protocol);
        entry.peer = Some(peer.cluster.clone());
        entry.service = header.service.clone();
        entry.port = header.port;
        entry.source = header.source.clone();
        entry.client = header.client;
        entry.traceparent = header.traceparent.clone();
        entry.attempts = header.attempt.saturating_add(1);
        match admitted {
            // Each in a box of its own, as on the other side.
            Ok((_ticket, admitted)) if http => {
                Box::pin(http::ingress(Arc::clone(gateway), admitted, header, send, recv, entry)).await;
            }
            Ok((_ticket, admitted)) => match association {
                Some(association) => {
                    let record = gateway.record(entry);
                    Box::pin(udp::ingress(gateway, admitted, association, send, recv, record)).await;
                }
                None => {
                    Box::pin(tcp::ingress(gateway, admitted, header, send, recv, gateway.record(entry))).await;
                }
            },
            Err(refused) => {
                let refusal = refused.refusal();
                send.reset(refusal);
                recv.stop(refusal);
                let failure = Failure::from(refused);
                entry.note = Some(failure.to_string());
                let mut record = gateway.record(entry);
                record.lost(Loss::Refused, association.map_or(0, Association::refuse));
                record.finish(failure.outcome);
            }
        }
    }

    /// Whether this peer may have one more stream, and what it asks for.
    fn admit(&self, peer: &PeerInfo, header: &StreamHeader) -> Result<(Ticket, Admitted), Refused> {
        if self.gateway.drain.is_draining() {
            return Err(Refused::Draining);
        }
        let ticket = self.gateway.limits.enter(&peer.cluster)?;
        Ok((ticket, authorize(&self.gateway.table.load(), peer, header)?))
    }

    async fn draining_for(&self, time: Duration) {
        self.gateway.drain.draining().await;
        tokio::time::sleep(time).await;
    }

    fn record(&self, direction: Direction, protocol: Protocol) -> Record {
        self.gateway.record(Entry::new(direction, protocol))
    }
}

impl Ingress for Path {
    fn stream(&self, incoming: Incoming) -> BoxFuture<'static, ()> {
        let path = self.clone();
        Box::pin(async move { path.ingress(incoming).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<'a, A, F: Future + 'a>(_: impl FnOnce(&'a Path, A) -> F) -> usize {
        size_of::<F>()
    }

    /// What 10,000 idle connections cost at either end is these, and little else.
    #[test]
    fn a_connection_that_lies_idle_holds_little() {
        let egress = size(Path::egress);
        let of_tcp = size(|path: &Path, (conn, routed)| tcp::egress(&path.gateway, conn, routed, Protocol::Tcp));
        assert!(egress + of_tcp <= 5 * 1024, "egress {egress} and {of_tcp} bytes");
        let ingress = size(Path::ingress);
        let of_tcp = size(|path: &Path, (admitted, header, send, recv, record)| {
            tcp::ingress(&path.gateway, admitted, header, send, recv, record)
        });
        assert!(ingress + of_tcp <= 5 * 1024, "ingress {ingress} and {of_tcp} bytes");
    }
}
