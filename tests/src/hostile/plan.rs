//! Whom an attack is for, and the connections on which it runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use linkspan_proto::stream_header::StreamKind;
use quinn::{Connection, Endpoint, IdleTimeout, SendStream, TransportConfig, VarInt};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::Attack;
use crate::peer::{self, Identity};

/// Before a connection that was refused or lost is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// Whom the peer attacks, and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    /// The gateway's port; the address at which to wait for it where `is_listening`.
    pub address: SocketAddr,
    /// The gateway dials us.
    pub is_listening: bool,
    /// The cluster that the peer is.
    pub cluster: String,
    /// A workload of that cluster.
    pub source: String,
    /// A service that the gateway exports to it, `namespace/name`.
    pub service: String,
    /// Its port.
    pub port: u16,
}

/// An attack under way.
pub struct Plan {
    pub(super) target: Target,
    pub(super) tally: Tally,
    pub(super) connections: usize,
    pub(super) streams: usize,
    end: Instant,
    identity: Identity,
    endpoint: Option<AsyncMutex<Endpoint>>,
}

/// A connection to the gateway.
pub(super) struct Link {
    pub(super) connection: Connection,
    /// Our half of the control stream, the hello written.
    pub(super) control: SendStream,
}

/// What was done so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) connected: AtomicU64,
    done: AtomicU64,
    sent: AtomicU64,
    pub(super) received: AtomicU64,
    ends: Mutex<BTreeMap<String, u64>>,
}

/// How far an attack came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its name.
    pub attack: String,
    /// Connections that were made.
    pub connected: u64,
    /// Streams, messages, datagrams or handshakes that were sent.
    pub done: u64,
    /// Bytes of them.
    pub sent: u64,
    /// Bytes that came back, where the attack looks at that.
    pub received: u64,
    /// How connections ended, and how often.
    pub ends: BTreeMap<String, u64>,
}

impl Plan {
    /// To go on for `duration`, on so many connections at a time, with so many streams on each where the attack holds them.
    ///
    /// # Panics
    /// When it is to listen and the address is not to be had.
    pub fn new(
        target: Target,
        identity: Identity,
        connections: usize,
        streams: usize,
        duration: Duration,
    ) -> Arc<Self> {
        let endpoint = target.is_listening.then(|| {
            let endpoint =
                peer::listen(target.address, identity.clone_key(), transport()).expect("the address is free");
            AsyncMutex::new(endpoint)
        });
        let end = Instant::now() + duration;
        Arc::new(Self { target, tally: Tally::default(), connections, streams, end, identity, endpoint })
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    pub(super) async fn over(&self) {
        sleep_until(self.end).await;
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity.clone_key()
    }

    /// A header of `kind` for the exported service, as an honest peer writes it.
    pub(super) fn header(&self, kind: StreamKind) -> Vec<u8> {
        let Target { source, service, port, cluster, .. } = &self.target;
        let mut header = peer::tcp_header(source, service, *port, &[cluster]);
        header.kind = kind;
        header.encode().expect("a valid header").to_vec()
    }

    pub(super) fn report(&self, attack: Attack) -> Report {
        let tally = &self.tally;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Report {
            attack: attack.name(),
            connected: count(&tally.connected),
            done: count(&tally.done),
            sent: count(&tally.sent),
            received: count(&tally.received),
            ends: tally.ends.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// An authenticated connection on which this peer has said who it is.
    async fn connect(&self) -> Result<Link, String> {
        let connection = match &self.endpoint {
            Some(endpoint) => {
                let incoming = endpoint.lock().await.accept().await.ok_or("closed")?;
                incoming.await
            }
            None => peer::dial_with(self.target.address, self.identity(), transport()).await,
        };
        let connection = connection.map_err(|error| error.to_string())?;
        let control = peer::greet(&connection, &self.target.cluster).await.map_err(|error| error.to_string())?;
        Ok(Link { connection, control })
    }
}

impl Tally {
    pub(super) fn did(&self, bytes: usize) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn ended(&self, how: &str) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        // Reasons with addresses or times in them would be many.
        let how: String = how.chars().take(60).collect();
        if ends.len() < 100 || ends.contains_key(&how) {
            *ends.entry(how).or_default() += 1;
        }
    }
}

/// Lets `what` loose on each of the plan's connections, and makes a new one for each that ends.
pub(super) async fn on_connections<F, Fut>(plan: &Arc<Plan>, what: F)
where
    F: Fn(Arc<Plan>, Link) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut all = JoinSet::new();
    for _ in 0..plan.connections {
        let plan = Arc::clone(plan);
        all.spawn(async move {
            while !plan.is_over() {
                tokio::select! {
                    () = plan.over() => return,
                    () = once(&plan, what) => {}
                }
            }
        });
    }
    all.join_all().await;
}

async fn once<F, Fut>(plan: &Arc<Plan>, what: F)
where
    F: Fn(Arc<Plan>, Link) -> Fut,
    Fut: Future<Output = ()>,
{
    match plan.connect().await {
        Ok(link) => {
            let connection = link.connection.clone();
            plan.tally.connected.fetch_add(1, Ordering::Relaxed);
            let end = tokio::select! {
                error = connection.closed() => error.to_string(),
                () = what(Arc::clone(plan), link) => "the attack had enough".to_owned(),
            };
            plan.tally.ended(&end);
        }
        Err(error) => plan.tally.ended(&error),
    }
    sleep(AGAIN).await;
}

/// Holds a connection and does nothing with it.
pub(super) async fn hold(_: Arc<Plan>, link: Link) {
    link.connection.closed().await;
}

/// A peer that permits everything and takes as much as it can get.
fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(u32::MAX))
        .receive_window(VarInt::from_u32(u32::MAX))
        .send_window(u64::from(u32::MAX))
        .max_concurrent_bidi_streams(VarInt::from_u32(5000))
        .max_concurrent_uni_streams(VarInt::from_u32(100))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(30_000))))
        .keep_alive_interval(Some(Duration::from_secs(1)))
        .datagram_receive_buffer_size(Some(1024 * 1024))
        .datagram_send_buffer_size(16 * 1024 * 1024);
    transport
}

/// Keys are not `Clone`, on purpose; a test's may be.
trait CloneKey {
    fn clone_key(&self) -> Self;
}

impl CloneKey for Identity {
    fn clone_key(&self) -> Self {
        (self.0.clone(), self.1.clone_key())
    }
}
