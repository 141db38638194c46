//! Wiring: builds the stages, binds the sockets, starts the threads. Decides nothing.
//!
//! ```text
//! Config --start--> threads, sockets, stages --> App{addresses} --drain--> announce, finish, close, join
//! ```
//!
//! A process may hold several components (gateway and controller in `linkspan site run`): the [`Process`] is theirs in
//! common, made and served by whoever composes them.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use linkspan_runtime::admin::Admin;
use linkspan_runtime::drain::{Drain, Signal};
use linkspan_runtime::memory::{self, Shortage};
use linkspan_runtime::{readiness, task};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use crate::access_log::AccessLog;
use crate::config::Config;
use crate::context::{Gateway, TUNNEL_IDLE};
use crate::discovery::{Client, Controller, Rejections, Snapshot};
use crate::identity::Identity;
use crate::link::tls::OwnCertificate;
use crate::link::{self, Keys, LinkConfig, Links};
use crate::listener::{self, Binder, Bindings, Board, Budget, ClientConnection, DatagramSocket, Permits};
use crate::metrics::Metrics;
use crate::mtls;
use crate::outcome::Recorder;
use crate::path::Path;
use crate::remote::Limits;
use crate::route::{Own, RouteTable};
use crate::stat::Window;
use apply::{Apply, CountLinks};
use run_file::RunFile;
use threads::Thread;

mod apply;
mod routes;
mod run_file;
mod threads;

/// Files that may be open where the system does not say.
const DESCRIPTORS: u64 = 1024;

/// After the streams have ended or the deadline has passed: time for the links to close.
const CLOSE: Duration = Duration::from_secs(2);

/// Close frames leave after the connection is closed; so long the workers still run.
const FLUSH: Duration = Duration::from_millis(50);

/// What the components of one process share.
#[derive(Clone, Debug)]
pub struct Process {
    /// The admin server, with registry and readiness. Components add their routes; the composer serves it.
    pub admin: Admin,
    /// Where it listens.
    pub admin_address: SocketAddr,
}

/// Where a running gateway can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// UDP, the link.
    pub link: SocketAddr,
    /// TCP, local clients that show a certificate.
    pub mtls: Option<SocketAddr>,
    /// TCP, the admin server of the process.
    pub admin: SocketAddr,
    /// How many workers there are.
    pub workers: usize,
}

/// A running gateway. Dropping it ends it without a drain.
#[derive(Debug)]
pub struct App {
    /// Where it can be reached.
    pub addresses: Addresses,
    drain: Drain,
    links: Links,
    linger: Duration,
    deadline: Duration,
    workers: Vec<Thread>,
    control: Thread,
    /// Holds the run file, once it is written, until told.
    running: oneshot::Sender<()>,
}

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be made or written.
    #[error("cannot use the state directory: {0}")]
    State(io::Error),
    /// The link's address is not to be had.
    #[error("cannot listen on {address}/udp for the link: {error}")]
    Link {
        /// The configured address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The same for TCP.
    #[error(
        "cannot listen on {address}/tcp for the link: {error}; free the port, or set gateway.tcp to false: peers then need UDP"
    )]
    LinkTcp {
        /// The configured address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The address of the mTLS port is not to be had.
    #[error("cannot listen on {address}/tcp for mTLS clients (gateway.mtlsListen): {error}")]
    Mtls {
        /// The configured address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// No thread could be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The TLS configuration is impossible.
    #[error("cannot set TLS up: {0}")]
    Tls(#[from] rustls::Error),
}

impl StartError {
    fn bind(address: SocketAddr, error: link::BindError) -> Self {
        match error {
            link::BindError::Udp(error) => Self::Link { address, error },
            link::BindError::Tcp(error) => Self::LinkTcp { address, error },
        }
    }
}

/// Everything that is bound or made before the first task runs.
struct Parts {
    config: Config,
    process: Process,
    signal: Signal,
    boot_id: String,
    gateway: Arc<Gateway>,
    path: Path,
    metrics: Metrics,
    identity: Arc<Identity>,
    controller: Controller,
    rejections: Rejections,
    permits: Permits,
    budget: Budget,
    mtls: Option<(Arc<mtls::Server>, Vec<TcpListener>)>,
    addresses: Addresses,
    shortage: Shortage,
}

impl App {
    /// Starts a gateway. It serves as soon as the controller has signed its certificate and sent a configuration; until
    /// then `/ready` says what is missing.
    ///
    /// # Errors
    /// When an address, the state directory or a thread is not to be had. Nothing runs then.
    pub async fn start(config: Config, process: &Process) -> Result<Self, StartError> {
        prepare_state(&config).map_err(StartError::State)?;
        // The soft limit is raised to the hard one: it is low for the sake of programs that use select(2).
        let descriptors = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(DESCRIPTORS);
        let workers: Vec<Thread> = (0..config.workers)
            .map(|index| Thread::start(format!("gateway-{index}")))
            .collect::<io::Result<_>>()
            .map_err(StartError::Thread)?;
        let control = Thread::start("gateway-control".to_owned()).map_err(StartError::Thread)?;
        let sockets = link::bind(config.listen, config.workers, config.tcp)
            .map_err(|error| StartError::bind(config.listen, error))?;
        // Not before the port is ours: a second start by mistake leaves the file of the first alone.
        RunFile::clear(&config.run_file());

        let (drain, signal) = Drain::new();
        let runtimes: Vec<Handle> = workers.iter().map(|worker| worker.runtime.clone()).collect();
        let (running, stopped) = oneshot::channel();
        let parts = Parts::build(config, process.clone(), signal, &sockets, &runtimes, &control.runtime, descriptors)?;
        let (addresses, links) = (parts.addresses.clone(), parts.gateway.links.clone());
        let (linger, deadline) = (parts.config.linger(), parts.config.drain);
        links
            .serve(sockets, Arc::new(parts.path.clone()))
            .map_err(|error| StartError::Link { address: addresses.link, error })?;
        parts.run(&runtimes, &control.runtime, stopped);
        tracing::info!(
            link = %addresses.link, mtls = addresses.mtls.map(tracing::field::display), workers = addresses.workers,
            "gateway started"
        );
        Ok(Self { addresses, drain, links, linger, deadline, workers, control, running })
    }

    /// Resolves with the name of a vital part when that has ended by itself: the process should end, too.
    pub async fn failed(&self) -> &'static str {
        self.drain.vital_ended().await
    }

    /// Ends the gateway: in a Kubernetes cluster it serves on until nobody is sent here any more, and tells its HTTP clients
    /// to go; then peers are told, nothing new is accepted, what runs may finish until the configured deadline, the rest is
    /// cut. Says whether everything finished.
    pub async fn drain(self) -> bool {
        self.drain.leave();
        if !self.linger.is_zero() {
            tracing::info!(
                seconds = self.linger.as_secs(),
                "gateway stopping; it serves on until clients are sent elsewhere"
            );
            self.links.retire().await;
            tokio::time::sleep(self.linger).await;
        }
        tracing::info!(seconds = self.deadline.as_secs(), "gateway draining");
        self.links.announce().await;
        let finished = self.drain.drain(self.deadline).await;
        self.links.drain(if finished { CLOSE } else { Duration::ZERO }).await;
        tokio::time::sleep(FLUSH).await;
        // The receiver is gone if the run file was never written.
        drop(self.running);
        let (workers, control) = (self.workers, self.control);
        workers.iter().for_each(Thread::stop);
        let joined = tokio::task::spawn_blocking(move || {
            control.join();
            workers.into_iter().for_each(Thread::join);
        });
        if joined.await.is_err() {
            tracing::error!("the gateway's threads could not be joined");
        }
        tracing::info!(finished, "gateway ended");
        finished
    }
}

/// The state directory, private to its owner.
fn prepare_state(config: &Config) -> io::Result<()> {
    let run_file = config.run_file();
    for dir in [Some(config.state_dir.as_path()), run_file.parent()].into_iter().flatten() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    Ok(())
}

impl Parts {
    fn build(
        config: Config,
        process: Process,
        signal: Signal,
        sockets: &link::Sockets,
        runtimes: &[Handle],
        control: &Handle,
        descriptors: u64,
    ) -> Result<Self, StartError> {
        let own = Own { cluster: config.cluster.clone(), trust_domain: config.trust_domain.clone() };
        let metrics = Metrics::new(config.cluster.clone(), process.admin.registry());
        let certificate = OwnCertificate::new();
        let controller = config.controller(&certificate);
        let identity = Arc::new(Identity::new(controller.clone(), certificate, config.trust_domain.clone()));
        identity.register(process.admin.registry());
        let boot_id = format!("{:016x}", rand::random::<u64>());
        let shortage = Shortage::new();
        let links = {
            // The drivers of links run where they are made.
            let _control = control.enter();
            Links::new(LinkConfig {
                cluster: config.cluster.clone(),
                trust_domain: config.trust_domain.clone(),
                boot_id: boot_id.clone(),
                keys: keys(&config),
                certificate: identity.link(),
                workers: runtimes.to_vec(),
                controller: Some(controller.clone()),
                limits: link::Limits::default(),
                shortage: shortage.clone(),
                observer: Arc::new(CountLinks(metrics.clone())),
                signal: signal.clone(),
            })
        };
        let recorders: Vec<Arc<dyn Recorder>> = vec![Arc::new(metrics.clone()), Arc::new(AccessLog)];
        let gateway = Arc::new(Gateway {
            own: own.clone(),
            links,
            table: Arc::new(ArcSwap::from_pointee(RouteTable::empty(own))),
            recorder: Arc::new(recorders),
            // Of the descriptors, clients take up to five eighths (`Permits`), mirrored ports one (`Budget`).
            limits: Limits::new(usize::try_from(descriptors / 8).unwrap_or(usize::MAX).max(64)),
            tunnel_idle: TUNNEL_IDLE,
            drain: signal.clone(),
        });
        let mtls = bind_mtls(&config, &identity)?;
        let addresses = Addresses {
            link: sockets.address().unwrap_or(config.listen),
            mtls: mtls.as_ref().and_then(|(_, sockets)| sockets.first()?.local_addr().ok()),
            admin: process.admin_address,
            workers: config.workers,
        };
        Ok(Self {
            path: Path::new(Arc::clone(&gateway)),
            permits: Permits::for_descriptors(descriptors),
            budget: Budget::for_descriptors(descriptors),
            rejections: Rejections::new(),
            config,
            process,
            signal,
            boot_id,
            gateway,
            metrics,
            identity,
            controller,
            mtls,
            addresses,
            shortage,
        })
    }

    /// Starts all tasks. They end with their runtimes, and those that accept with the drain.
    fn run(mut self, runtimes: &[Handle], control: &Handle, stopped: oneshot::Receiver<()>) {
        let _control = control.enter();
        let signal = self.signal.clone();
        let readiness = self.process.admin.readiness().clone();
        let (snapshots, configurations) = watch::channel(Arc::<Snapshot>::default());
        let (applied, in_force) = watch::channel(0);
        let (bindings, wanted) = watch::channel(Arc::<Bindings>::default());
        let (binder, listeners) = Binder::new(runtimes.len(), self.budget, self.rejections.clone());
        let board = binder.board();
        board.register(&self.permits, self.process.admin.registry());

        routes::register(&self.process.admin, &self.config, &self.gateway.links, &board, &configurations);
        let window = Window::new(self.metrics.clone());
        window.register(&self.process.admin);
        drop(task::spawn("stat", window.run(signal.clone())));
        drop(task::spawn("memory", memory::watch(self.shortage.clone(), signal.clone())));

        self.accept(runtimes, listeners, &board);
        drop(task::vital("binder", &signal, binder.run(wanted, signal.clone())));

        let links = self.gateway.links.clone();
        let report = links.clone();
        let client = Client {
            controller: self.controller.clone(),
            boot_id: self.boot_id.clone(),
            snapshots,
            applied: in_force.clone(),
            rejections: self.rejections.clone(),
            links: Arc::new(move || report.reports()),
            link_changes: links.changes(),
        };
        drop(task::vital("discovery", &signal, client.run()));
        let apply = Apply {
            gateway: Arc::clone(&self.gateway),
            metrics: self.metrics.clone(),
            bindings,
            rejections: self.rejections.clone(),
            applied,
            configured: readiness.register("gateway configuration"),
        };
        drop(task::vital("apply", &signal, apply.run(configurations.clone())));
        let settling = apply::settle_tiers(Arc::clone(&self.gateway), in_force.clone());
        drop(task::vital("settle_tiers", &signal, settling));
        drop(task::spawn("observe_links", apply::observe_links(links, self.metrics.clone())));

        drop(task::vital("identity", &signal, Arc::clone(&self.identity).run_link()));
        if let Some((server, _)) = &self.mtls {
            drop(task::vital("identity_local", &signal, Arc::clone(&self.identity).run_local(configurations.clone())));
            drop(task::spawn("identity_bundle", apply::follow_bundle(Arc::clone(server), self.identity.bundle())));
        }
        let certified = readiness.register("gateway certificate");
        let ready = when_ready(self.config.run_file(), self.addresses, self.identity, in_force, certified, stopped);
        drop(task::spawn("run_file", ready));
    }

    /// Starts accepting clients, on every worker.
    fn accept(&mut self, runtimes: &[Handle], listeners: Vec<listener::Worker>, board: &Arc<Board>) {
        for (runtime, worker) in runtimes.iter().zip(listeners) {
            let _worker = runtime.enter();
            let path = self.path.clone();
            let take = move |conn: ClientConnection| {
                let path = path.clone();
                // Detached: the drain waits for it by its guard.
                drop(task::spawn("egress", async move { path.egress(conn).await }));
            };
            let path = self.path.clone();
            let take_datagrams = move |socket: DatagramSocket| {
                let path = path.clone();
                // Detached: it ends by the socket's token, or when the gateway has drained.
                drop(task::spawn("udp_egress", async move { path.egress_datagrams(socket).await }));
            };
            let serving = listener::serve(worker, self.permits.clone(), self.signal.clone(), take, take_datagrams);
            drop(task::vital("listener", &self.signal, serving));
        }
        let Some((server, sockets)) = &mut self.mtls else { return };
        // Moved, not shared: when the drain begins, nobody else keeps the port open.
        for (index, (runtime, socket)) in runtimes.iter().zip(std::mem::take(sockets)).enumerate() {
            let _worker = runtime.enter();
            let (path, server) = (self.path.clone(), Arc::clone(server));
            let take = move |conn: ClientConnection| {
                let (path, server) = (path.clone(), Arc::clone(&server));
                drop(task::spawn("mtls", async move { path.egress_mtls(&server, conn).await }));
            };
            let (permits, signal) = (self.permits.clone(), self.signal.clone());
            let serving = listener::serve_one(index, socket, Arc::clone(board), permits, signal, take);
            drop(task::vital("mtls_listener", &self.signal, serving));
        }
    }
}

/// The transport's secrets. A gateway needs no disk: without one, peers learn of a restart by silence.
fn keys(config: &Config) -> Keys {
    Keys::load_or_create(&config.seed_file()).unwrap_or_else(|error| {
        let path = config.seed_file();
        tracing::warn!(path = %path.display(), %error, "cannot keep the transport's seed; a restart is noticed later");
        Keys::ephemeral()
    })
}

/// The port for clients with certificates of their own, and its sockets, one a worker.
type MtlsPort = (Arc<mtls::Server>, Vec<TcpListener>);

fn bind_mtls(config: &Config, identity: &Identity) -> Result<Option<MtlsPort>, StartError> {
    let Some(address) = config.mtls_listen else { return Ok(None) };
    let provider = link::tls::provider();
    let server = mtls::Server::new(config.trust_domain.clone(), identity.local(), provider)?;
    let sockets = listener::bind(address, config.workers).map_err(|error| StartError::Mtls { address, error })?;
    Ok(Some((Arc::new(server), sockets)))
}

/// Says that the certificate is there, and writes the run file when the configuration is, too.
async fn when_ready(
    path: std::path::PathBuf,
    addresses: Addresses,
    identity: Arc<Identity>,
    mut in_force: watch::Receiver<u64>,
    certified: readiness::Handle,
    stopped: oneshot::Receiver<()>,
) {
    let mut certificate = identity.link().changes();
    // Errors say that the process ends.
    if certificate.wait_for(|generation| *generation > 0).await.is_err() {
        return;
    }
    certified.ready();
    // The number does not matter: the first change is the first configuration.
    if in_force.changed().await.is_err() {
        return;
    }
    let file = RunFile::write(&path, &addresses);
    match &file {
        Ok(_) => tracing::info!(path = %path.display(), "gateway ready"),
        Err(error) => tracing::warn!(path = %path.display(), %error, "cannot write the run file"),
    }
    // Resolves when the sender is dropped, at the end of the drain.
    drop(stopped.await);
    drop(file);
}

#[cfg(test)]
pub(crate) mod testkit;
#[cfg(test)]
mod tests;
