//! Drives the link to one peer: does what [`LinkState`] and [`Health`] say, with sockets, timers and tasks.
//!
//! - In: messages from `configure`, from dials, from the connection's tasks; the clock.
//! - Out: the peer's list of usable connections, its health, its report.
//! - Never does: decide. What to dial, keep or leave is the state's business; this file only carries it out.
//!
//! Where to read: `message` is what a driver is told; `dial` looks the peer up and dials it; `standing` takes connections
//! in and lets them go; `probe` asks whether they carry traffic; `report` says how the link stands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use linkspan_runtime::task;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::connection::ConnectionId;
use super::health::{Health, LinkHealth};
use super::pool::{Links, PeerLink, Shared};
use super::state::{Action, AttemptId, Event, LinkState};
use super::tls::Role;
use super::trouble::{self, CloseCode, trouble};
use super::{PeerInfo, congestion, exchange};
use crate::discovery::Controller;
use report::Figures;
use standing::Standing;

mod dial;
mod message;
mod probe;
mod report;
mod standing;

pub(super) use message::{Message, PeerConfig};
pub(super) use report::first_report;

/// How often figures are sampled and certificates looked at.
const TICK: Duration = Duration::from_secs(1);

/// The driver of one link.
pub(super) struct Driver {
    shared: Arc<Shared>,
    link: Arc<PeerLink>,
    config: Arc<PeerConfig>,
    inbox: mpsc::Receiver<Message>,
    state: LinkState,
    health: LinkHealth,
    standing: BTreeMap<ConnectionId, Standing>,
    dials: BTreeMap<AttemptId, JoinHandle<()>>,
    resolving: Option<JoinHandle<()>>,
    exchange: Option<JoinHandle<()>>,
    figures: Figures,
    next_tick: Instant,
    /// When what is left is closed, once the gateway ends.
    deadline: Option<Instant>,
    certified: bool,
}

/// Whether the driver goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    End,
}

fn now() -> Instant {
    // Through tokio, so that tests can pause it.
    tokio::time::Instant::now().into_std()
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        link: Arc<PeerLink>,
        config: Arc<PeerConfig>,
        inbox: mpsc::Receiver<Message>,
    ) -> Self {
        let own = &shared.config;
        let seed = shared.network.seed().unwrap_or_else(rand::random::<u64>);
        let (own_name, peer, transport) = (own.cluster.clone(), link.cluster.clone(), config.peer.transport);
        let state = LinkState::new(own_name, peer, own.workers.len(), transport, seed);
        Self {
            shared,
            link,
            config,
            inbox,
            state,
            health: LinkHealth::new(),
            standing: BTreeMap::new(),
            dials: BTreeMap::new(),
            resolving: None,
            exchange: None,
            figures: Figures::default(),
            next_tick: now(),
            deadline: None,
            certified: false,
        }
    }

    /// Runs until the Link is removed or the gateway has ended.
    pub(super) async fn run(mut self) {
        let mut certificate = self.shared.config.certificate.changes();
        certificate.mark_changed();
        self.exchange = self.shared.config.controller.clone().map(|controller| self.begin_exchange(controller));
        loop {
            let deadline = tokio::time::Instant::from_std(self.next_deadline());
            let next = tokio::select! {
                // What is due is done after each of them; in this order, so that the same events have the same effect.
                biased;
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => Next::End,
                },
                changed = certificate.changed() => {
                    if changed.is_ok() {
                        self.certificate_changed();
                    }
                    Next::Go
                }
                () = tokio::time::sleep_until(deadline) => Next::Go,
            };
            if next == Next::End || self.step() == Next::End {
                break;
            }
        }
        self.end();
    }

    fn next_deadline(&self) -> Instant {
        let probes = self.standing.values().filter_map(|standing| standing.health.as_ref()).map(Health::deadline);
        let all = [self.state.deadline(), self.health.deadline(), self.deadline].into_iter().flatten();
        all.chain(probes).chain([self.next_tick]).min().unwrap_or(self.next_tick)
    }

    fn take(&mut self, message: Message) -> Next {
        let now = now();
        match message {
            Message::Configure(config) => self.configure(config, now),
            Message::Remove => {
                self.close_all(CloseCode::LinkRemoved);
                return Next::End;
            }
            Message::Retire => self.state.handle(Event::Retire, now),
            Message::Announce => self.state.handle(Event::Announce, now),
            Message::Shutdown { deadline } => {
                self.deadline = Some(now + deadline);
                self.exchange.take().inspect(JoinHandle::abort);
                self.state.handle(Event::Shutdown, now);
            }
            Message::Resolved(result) => self.state.handle(Event::Resolved(result), now),
            Message::Dialled { attempt, connection, worker, carrier } => {
                self.dials.remove(&attempt);
                let id = self.shared.next_connection();
                self.stand(id, connection, worker, Role::Server, carrier);
                self.state.handle(Event::Dialled { attempt, connection: id }, now);
            }
            Message::DialFailed { attempt, trouble } => {
                self.dials.remove(&attempt);
                self.state.handle(Event::DialFailed { attempt, trouble }, now);
            }
            Message::Accepted { connection, worker, carrier } => {
                if let Some(why) = self.state.refusal() {
                    trouble::close(&connection, why.into());
                    return Next::Go;
                }
                let id = self.shared.next_connection();
                self.stand(id, connection, worker, Role::Client, carrier);
                self.state.handle(Event::Accepted { connection: id, carrier }, now);
            }
            Message::Hello { id, hello } => self.hello(id, &hello, now),
            Message::GoAway { id, leave } => self.state.handle(Event::GoAway { connection: id, leave }, now),
            Message::Closed { id, error } => self.closed(id, &error, now),
            Message::Probed { id, probe, result } => self.probed(id, probe, result, now),
        }
        Next::Go
    }

    /// Does everything that is due.
    fn step(&mut self) -> Next {
        let now = now();
        self.state.advance(now);
        while let Some(action) = self.state.next_action() {
            self.act(action);
        }
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.tick();
        }
        self.send_probes(now);
        self.publish(now);
        match self.deadline {
            Some(_) if self.state.is_empty() => Next::End,
            Some(deadline) if now >= deadline => {
                self.close_all(CloseCode::Shutdown);
                Next::End
            }
            _ => Next::Go,
        }
    }

    fn configure(&mut self, config: Arc<PeerConfig>, now: Instant) {
        let old = std::mem::replace(&mut self.config, config);
        let config = Arc::clone(&self.config);
        let peer = &config.peer;
        if !old.trust.same_roots(&self.config.trust) {
            let mut same_peer = false;
            for standing in self.standing.values_mut() {
                match standing.verify(&self.config.trust, self.shared.wall()) {
                    Ok(_) => same_peer = true,
                    Err(failure) => {
                        standing.trouble = Some(trouble(failure.word(), failure.of_peer()));
                        trouble::close(&standing.connection.quinn, CloseCode::TrustChanged);
                    }
                }
            }
            if !same_peer {
                // Whoever holds the new root, the figures of the one before are not theirs.
                self.sample();
                self.figures.begin_anew();
            }
        }
        for standing in self.standing.values() {
            let info =
                PeerInfo { default_policy: peer.default_policy, ..PeerInfo::clone(&standing.connection.info.load()) };
            standing.connection.info.store(Arc::new(info));
            congestion::configure(&standing.connection.quinn, peer.congestion);
        }
        self.state.handle(Event::Transport(peer.transport), now);
        if old.peer.addresses != peer.addresses || !old.trust.same_roots(&self.config.trust) {
            // Whatever is being dialled is dialled with the old trust.
            let dialable = self.dialable();
            self.state.handle(Event::Configured { dialable }, now);
        }
    }

    fn certificate_changed(&mut self) {
        let now = now();
        let certified = self.shared.config.certificate.not_after().is_some();
        if !certified {
            return;
        }
        if std::mem::replace(&mut self.certified, true) {
            self.state.handle(Event::Rotated, now);
        } else {
            let dialable = self.dialable();
            self.state.handle(Event::Configured { dialable }, now);
        }
    }

    /// There is somebody to dial and something to show to them.
    fn dialable(&self) -> bool {
        self.certified && !self.config.peer.addresses.is_empty()
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Resolve => self.resolve(),
            Action::Dial { attempt, worker, address, carrier } => self.dial(attempt, worker, address, carrier),
            Action::Abandon { attempt } => {
                self.dials.remove(&attempt).inspect(JoinHandle::abort);
            }
            Action::GoAway { connection, leave } => self.send_goaway(connection, leave),
            Action::Finish { connection } => self.finish(connection),
            Action::Close { connection, why } => {
                if let Some(standing) = self.standing.get(&connection) {
                    trouble::close(&standing.connection.quinn, why.into());
                }
            }
        }
    }

    fn close_all(&self, code: CloseCode) {
        for standing in self.standing.values() {
            trouble::close(&standing.connection.quinn, code);
        }
    }

    fn begin_exchange(&self, controller: Controller) -> JoinHandle<()> {
        let links = Links::from_shared(Arc::clone(&self.shared));
        let (peer, connected) = (self.link.cluster.clone(), self.link.connected.subscribe());
        task::spawn("link_exchange", async move { exchange::subscribe(links, peer, &controller, connected).await })
    }

    /// Certificates end at wall-clock times, so they are looked at and not waited for.
    fn tick(&mut self) {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(self.shared.wall().as_secs());
        for standing in self.standing.values_mut() {
            if wall >= standing.expires && standing.trouble.is_none() {
                let message = "a certificate of the connection has expired and was not replaced in time";
                standing.trouble = Some(trouble(CloseCode::CertificateExpired.word(), message));
                trouble::close(&standing.connection.quinn, CloseCode::CertificateExpired);
            }
        }
        if let Some(failure) = self.config.trust.take_refusal() {
            let message = format!("a gateway that claims to be this peer was refused: {}", failure.of_peer());
            self.state.handle(Event::Refused(trouble(failure.word(), message)), now());
        }
        self.sample();
    }

    /// Counts the packets since the last time.
    fn sample(&mut self) {
        let connections: Vec<_> = self.standing.values().map(|standing| &standing.connection.quinn).collect();
        let (sent, lost) = self.figures.sample(&connections);
        self.shared.config.observer.packets(&self.link.cluster, sent, lost);
    }

    fn end(&mut self) {
        for (_, dial) in std::mem::take(&mut self.dials) {
            dial.abort();
        }
        self.resolving.take().inspect(JoinHandle::abort);
        self.exchange.take().inspect(JoinHandle::abort);
        self.link.connections.store(Arc::default());
        self.link.healthy.store(false, Ordering::Relaxed);
        self.link.connected.send_replace(false);
        tracing::debug!(peer = %self.link.cluster, "link ended");
    }
}
