//! Which endpoint: the cheaper of two random ready ones.

use std::net::SocketAddr;
use std::sync::Arc;

use linkspan_proto::names::EndpointName;
use rand::Rng;
use tokio::time::Instant;

use super::DialError;
use crate::remote::Admitted;
use crate::route::load::Load;
use crate::route::{Backend, ExportPort};

/// The endpoints that an [`Admitted`] may have.
#[derive(Clone, Debug)]
pub struct Endpoints {
    port: Arc<ExportPort>,
    only: Option<EndpointName>,
}

/// An endpoint in use. As long as it lives the endpoint counts one more in flight.
#[derive(Debug)]
pub struct EndpointGuard {
    address: SocketAddr,
    load: Arc<Load>,
    begun: Instant,
    told: bool,
}

impl Endpoints {
    /// Of an admitted caller: the only way to get at addresses.
    #[must_use]
    pub fn of(admitted: &Admitted) -> Self {
        Self { port: Arc::clone(admitted.port()), only: admitted.endpoint().cloned() }
    }

    /// Two random ready endpoints that were not tried, the cheaper of them.
    ///
    /// # Errors
    /// [`DialError::NoBackend`] when there is none.
    pub fn pick(&self, tried: &[SocketAddr]) -> Result<EndpointGuard, DialError> {
        let now = Instant::now();
        let picked = if tried.is_empty() && self.only.is_none() {
            let ready = self.port.all_ready();
            two_of(ready.len()).map(|(one, two)| cheaper(&ready[one], &ready[two], now))
        } else {
            let ready: Vec<_> = self.port.ready(self.only.as_ref()).filter(|b| !tried.contains(&b.address)).collect();
            two_of(ready.len()).map(|(one, two)| cheaper(ready[one], ready[two], now))
        };
        picked.map(|backend| EndpointGuard::new(backend, now)).ok_or(DialError::NoBackend)
    }

    /// How many endpoints are ready.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.port.ready(self.only.as_ref()).count()
    }
}

impl EndpointGuard {
    fn new(backend: &Backend, now: Instant) -> Self {
        backend.load.begin();
        Self { address: backend.address, load: Arc::clone(&backend.load), begun: now, told: false }
    }

    /// Where to connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// It connected (TCP) or sent its response head (HTTP). The first word counts.
    pub fn answered(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            let now = Instant::now();
            self.load.observe(now.saturating_duration_since(self.begun), now);
        }
    }

    /// It refused, timed out, or reset before it answered. Said nothing (the caller left): the endpoint is not to blame.
    pub fn failed(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            self.load.fail(Instant::now());
        }
    }
}

impl Drop for EndpointGuard {
    fn drop(&mut self) {
        self.load.end();
    }
}

/// Two distinct indices below `count`, the same twice where there is one only.
fn two_of(count: usize) -> Option<(usize, usize)> {
    match count {
        0 => None,
        1 => Some((0, 0)),
        _ => {
            let mut random = rand::rng();
            let one = random.random_range(0..count);
            let two = random.random_range(0..count - 1);
            Some((one, if two >= one { two + 1 } else { two }))
        }
    }
}

fn cheaper<'a>(one: &'a Backend, two: &'a Backend, now: Instant) -> &'a Backend {
    if two.load.cost(now) < one.load.cost(now) { two } else { one }
}
