//! What the whole path shares: the gateway as its stages see it.
//!
//! Small on purpose. What only one stage needs is that stage's own, and is handed to it by `app` (the HTTP connection
//! pool, for example, belongs to `http`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use linkspan_proto::names::ClusterName;
use linkspan_runtime::drain::Signal;

use crate::link::Links;
use crate::outcome::{Entry, Record, Recorder};
use crate::relay::Bounds;
use crate::remote::{Admitted, Limits, Review};
use crate::route::{Health, Own, RouteTable};

/// How long a tunnel (TCP, or an upgraded HTTP connection) may be silent. Databases keep pooled connections idle for
/// long; an hour is beyond the usual keep-alive of two hours only where nobody would notice, and bounds what a vanished
/// client can hold.
pub const TUNNEL_IDLE: Duration = Duration::from_secs(3600);

/// Shared by all workers.
pub struct Gateway {
    /// Who we are.
    pub own: Own,
    /// Streams to peers.
    pub links: Links,
    /// Where things go. Load it once for each connection or request.
    pub table: Arc<ArcSwap<RouteTable>>,
    /// Who hears of every connection and request: metrics, `stat`, access log.
    pub recorder: Arc<dyn Recorder>,
    /// Places for the streams of peers.
    pub limits: Limits,
    /// Idle limit of tunnels; [`TUNNEL_IDLE`] unless configured.
    pub tunnel_idle: Duration,
    /// Tells when to stop.
    pub drain: Signal,
}

impl Gateway {
    /// Opens the record of a connection or request.
    #[must_use]
    pub fn record(&self, entry: Entry) -> Record {
        Record::open(Arc::clone(&self.recorder), entry)
    }

    /// What ends a tunnel besides its two ends; with `admitted`, the end of what allows it, too.
    #[must_use]
    pub fn bounds<'a>(&'a self, admitted: Option<&'a Admitted>) -> Bounds<'a> {
        let review = admitted.map(|admitted| Review { table: &self.table, admitted });
        Bounds { idle: self.tunnel_idle, drain: &self.drain, review }
    }
}

impl Health for Links {
    fn alive(&self, peer: &ClusterName) -> bool {
        Self::alive(self, peer)
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("own", &self.own).finish_non_exhaustive()
    }
}
