//! Wiring: builds the stages, binds the sockets, starts the tasks. The only place that knows all four stages; decides nothing.
//!
//! ```text
//! Config --start--> sockets, stages, tasks --> App{addresses} --drain--> stop accepting, save catalogues, remove the run file
//! ```
//!
//! What is lost when this process dies: gateways keep serving what they were last told, DNS of this site is silent, and
//! changes wait. What it left on disk (addresses, catalogues, the certificate authority) is what the next start needs.
//!
//! On Kubernetes there are several, of which one leads ([`crate::leader`]). DNS and the admin server are there from the start;
//! the stages start when the lease is won.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use linkspan_proto::configuration::Resource;
use linkspan_runtime::admin::Admin;
use linkspan_runtime::drain::{Drain, Guard, Signal};
use linkspan_runtime::{build_info, task};
use serde_json::json;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, watch};

use crate::ca::{Ca, CaError};
use crate::catalog::{Accepted, Catalog, Own, Snapshot};
use crate::config::Config;
use crate::configuration::{self, Reports, Store};
use crate::door::tls::AuthorityError;
use crate::exchange::{self, Peers};
use crate::leader::lease::Lease;
use crate::leader::{self, Leading, Office};
use crate::mirror::kubernetes::{ClusterIps, Held};
use crate::mirror::{self, MirrorSet};
use crate::saving::Saving;
use crate::watch::{Event, Problem};
use crate::{cluster, dns, files, status};

mod accepted;
mod client;
mod home;
mod routes;
mod state_dir;
mod zone;

use home::{Ground, Home, Standby};
use state_dir::StateDirError;

/// Between two snapshots of the catalog: a burst of events becomes one.
const CATALOG_PACE: Duration = Duration::from_millis(10);
/// In the state directory, see [`accepted`].
const ACCEPTED: &str = "accepted.json";
/// Saving catalogues and closing connections takes far less.
const DRAIN: Duration = Duration::from_secs(5);

/// What the components of one process share.
#[derive(Clone, Debug)]
pub struct Process {
    /// The admin server, with registry and readiness. Components add their routes; the composer serves it.
    pub admin: Admin,
    /// Where it listens, if it does.
    pub admin_address: Option<SocketAddr>,
}

/// Where a running controller can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// UDP and TCP, the DNS server.
    pub dns: SocketAddr,
    /// TCP, the admin server of the process.
    pub admin: Option<SocketAddr>,
}

/// A running controller. Dropping it ends it without a drain.
#[derive(Debug)]
pub struct App {
    /// Where it can be reached.
    pub addresses: Addresses,
    drain: Drain,
    config: Config,
}

/// Why the controller did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory or a socket in it is not to be had.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The certificate authority cannot be used.
    #[error(
        "certificate authority: {0}; restore state/ca from a copy, or make a new site with `linkspan site init` and link its \
         peers anew"
    )]
    Ca(#[from] CaError),
    /// The addresses that were given out cannot be read.
    #[error("addresses of mirrored names: {0}")]
    Addresses(std::io::Error),
    /// What was in force cannot be read.
    #[error("Links and traffic policies in force: {0}")]
    Accepted(std::io::Error),
    /// The API server cannot be asked.
    #[error("the API server: {0}")]
    ApiServer(#[source] kube::Error),
    /// The gateways' port has no certificate.
    #[error("certificate of the gateways' port: {0}")]
    Authority(#[from] AuthorityError),
    /// The TLS configuration is impossible.
    #[error("cannot set TLS up: {0}")]
    Tls(rustls::Error),
    /// The gateways' port is not to be had.
    #[error("cannot listen on {address}/tcp for gateways (spec.controller.listen): {error}")]
    Gateways {
        /// The configured address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The address of the DNS server is not to be had.
    #[error("cannot listen on {address} (udp and tcp) for DNS (dns.listen): {error}")]
    Dns {
        /// The configured address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
}

/// What one stage hands to the next.
struct Channels {
    snapshots: watch::Sender<Snapshot>,
    peers: watch::Sender<Arc<Peers>>,
    mirrors: watch::Sender<MirrorSet>,
    reports: Arc<watch::Sender<Reports>>,
    problems: watch::Sender<Arc<Vec<Problem>>>,
    store: Store,
    /// On Kubernetes, what the API server gave to imports.
    cluster_ips: watch::Sender<ClusterIps>,
    /// On Kubernetes, mirrors that are wanted and not written, and why.
    held: watch::Sender<Held>,
    saving: Saving,
}

impl App {
    /// Starts a controller on the current runtime. It is ready when the first complete state is known; on Kubernetes, when it
    /// can answer DNS.
    ///
    /// # Errors
    /// When an address, the state directory or the certificate authority is not to be had. Nothing runs then.
    pub async fn start(config: Config, process: &Process) -> Result<Self, StartError> {
        state_dir::prepare(&config)?;
        let ca = Arc::new(Ca::load(&config.ca, &config.trust_domain)?);
        let in_force = accepted::load(&config.state(ACCEPTED)).map_err(StartError::Accepted)?;
        let (udp, tcp) =
            bind_dns(config.dns_listen).await.map_err(|error| StartError::Dns { address: config.dns_listen, error })?;
        let dns_address = tcp.local_addr().map_err(|error| StartError::Dns { address: config.dns_listen, error })?;
        let (home, standby) = match &config.kubernetes {
            None => (Some(Home::site(&config).await?), None),
            Some(settings) => (None, Some(Standby::open(&config, settings, &ca).await?)),
        };

        let addresses = Addresses { dns: dns_address, admin: process.admin_address };
        let (drain, signal) = Drain::new();
        let channels = Channels::new();
        let (office, leading) = match &standby {
            None => (None, Leading::always()),
            Some(_) => {
                let (office, leading) = Office::new();
                (Some(office), leading)
            }
        };
        routes::register(&process.admin, &config, &channels.subscribe(leading.clone()));
        let dns_metrics = dns::Metrics::register(process.admin.registry());
        let zone = zone::Feed::new();
        drop(task::vital("dns", &signal, dns::serve(zone.current(), udp, tcp, signal.clone(), dns_metrics)));
        let names = standby.as_ref().map(|standby| restored_names(standby, process, &signal));
        drop(task::vital("zone", &signal, zone.run(channels.names(names), signal.clone())));
        let stages = Stages {
            config: config.clone(),
            process: process.clone(),
            addresses,
            channels,
            ca,
            in_force,
            signal: signal.clone(),
        };
        match (home, standby, office) {
            (Some(home), ..) => stages.start(home),
            (None, Some(standby), Some(office)) => {
                drop(task::vital("leader", &signal, lead(stages, standby, office, leading)));
            }
            (None, ..) => {}
        }
        tracing::info!(dns = %addresses.dns, cluster = %config.cluster, "controller started");
        Ok(Self { addresses, drain, config })
    }

    /// Resolves with the name of a vital part when that has ended by itself: the process should end, too.
    pub async fn failed(&self) -> &'static str {
        self.drain.vital_ended().await
    }

    /// Ends the controller: the catalogues of peers are saved, sockets closed. Says whether everything finished in time.
    pub async fn drain(self) -> bool {
        tracing::info!("controller draining");
        let finished = self.drain.drain(DRAIN).await;
        state_dir::clear(&self.config);
        tracing::info!(finished, "controller ended");
        finished
    }
}

/// UDP and TCP on the same port, also when the system chooses it.
async fn bind_dns(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    let mut tries = 0;
    loop {
        let tcp = TcpListener::bind(address).await?;
        match UdpSocket::bind(tcp.local_addr()?).await {
            Ok(udp) => return Ok((udp, tcp)),
            // A port that the system chose for TCP may be taken for UDP.
            Err(error) if address.port() == 0 && tries < 16 && error.kind() == std::io::ErrorKind::AddrInUse => {
                tries += 1
            }
            Err(error) => return Err(error),
        }
    }
}

/// What DNS can answer before this controller leads: ready once that is known.
fn restored_names(standby: &Standby, process: &Process, signal: &Signal) -> watch::Receiver<cluster::Imports> {
    let (sender, names) = watch::channel(cluster::Imports::default());
    let client = standby.client.clone();
    let mut known = names.clone();
    let ready = process.admin.readiness().register("names");
    drop(task::vital("imports", signal, async move {
        let telling = async {
            if known.wait_for(Option::is_some).await.is_ok() {
                ready.ready();
            }
            drop(known);
        };
        tokio::join!(cluster::imports(client, sender), telling);
        // Nobody needs them any more. What was once known stays ready.
        std::future::pending::<()>().await;
        drop(ready);
    }));
    names
}

/// Stands for the lease, and starts the stages when it is won. Ends with the drain, when another controller leads after this
/// one did, or when what the leader needs is not to be had.
async fn lead(stages: Stages, standby: Standby, office: Office, mut leading: Leading) {
    let signal = stages.signal.clone();
    let settings = standby.settings.clone();
    let lease = Lease::new(standby.client.clone(), settings.namespace.as_str());
    let standing = leader::run(lease, settings.identity, office, signal);
    let working = async {
        leading.won().await;
        match standby.lead(leading).await {
            Ok(home) => {
                stages.start(home);
                std::future::pending::<()>().await;
            }
            Err(error) => tracing::error!(%error, "the lease is won, and this controller cannot lead"),
        }
    };
    tokio::select! {
        () = standing => {}
        () = working => {}
    }
}

/// The four stages and what hangs on them.
struct Stages {
    config: Config,
    process: Process,
    addresses: Addresses,
    channels: Channels,
    ca: Arc<Ca>,
    in_force: Accepted,
    signal: Signal,
}

impl Stages {
    /// Starts the stages in the order of the path. Each later one waits for the first complete state of the earlier.
    fn start(self, home: Home) {
        let Self { config, process, addresses, channels, ca, in_force, signal } = self;
        let Home { fronts, seniority, configuration: door, exchange: exchange_door, attestor, hold, leading, ground } =
            home;
        let registry = process.admin.registry().clone();
        let serving = channels.serving(ca, attestor, &signal);
        drop(task::vital("configuration", &signal, configuration::serve(serving, door)));

        let (events, catalogued) = mpsc::channel(crate::watch::EVENTS);
        let own = Own { cluster: config.cluster.clone(), trust_domain: config.trust_domain.clone() };
        let accepted = watch::Sender::new(in_force.clone());
        let keeping =
            accepted::keep(config.state(ACCEPTED), accepted.subscribe(), channels.saving.clone(), signal.clone());
        drop(task::spawn("accepted", keeping));
        let catalog = Catalog::new(own, config.mirror_addresses, in_force).with_exclusions(config.exclusions());
        let complete = watch::Sender::new(false);
        let completed = complete.subscribe();
        let outputs = CatalogOutputs { snapshots: channels.snapshots.clone(), accepted, complete };
        drop(task::vital("catalog", &signal, keep_catalog(catalog, catalogued, outputs, signal.clone())));

        let exchange = exchange::Context {
            own: config.cluster.clone(),
            store: exchange::store::Store::new(config.state("catalogues"), channels.saving.clone()),
            sole: config.kubernetes.is_none(),
            metrics: exchange::Metrics::register(&registry),
            signal: signal.clone(),
        };
        let mirror = mirror::Context {
            own: config.cluster.clone(),
            addresses: config.state("addresses.json"),
            hold,
            leading: leading.clone(),
            saving: channels.saving.clone(),
            metrics: mirror::Metrics::register(&registry),
            signal: signal.clone(),
        };
        let applied = mirror.metrics.applied.clone();
        let seniority = seniority.with_policy(config.mirrors.precedence.clone());
        let state = mirror::State::new(config.cluster.clone(), fronts).with(seniority, config.exclusions());
        let (snapshots, peers) = (channels.snapshots.subscribe(), channels.peers.clone());
        let guard = signal.guard();
        drop(task::vital("exchange", &signal, {
            let mut completed = completed.clone();
            async move {
                if first(&mut completed).await {
                    exchange::run(exchange, exchange_door, snapshots, peers).await;
                }
                drop::<Guard>(guard);
            }
        }));
        let store = channels.store.clone();
        let workloads = Resource::Workloads(config.workloads.clone());
        let (snapshots, peers) = (channels.snapshots.subscribe(), channels.peers.subscribe());
        let sets = channels.mirrors.clone();
        drop(task::vital("mirror", &signal, {
            let mut completed = completed.clone();
            async move {
                if first(&mut completed).await {
                    // Part of the first generation, so that a gateway never knows mirrors without knowing its clients.
                    let mut more = Some(workloads);
                    mirror::run(mirror, state, snapshots, peers, sets, |mut changes| {
                        if let Some(workloads) = more.take() {
                            changes.insert(workloads.key(), Some(workloads));
                        }
                        store.apply(changes);
                    })
                    .await;
                }
            }
        }));
        let outcome = Outcome::of(&ground, &config, &leading, &process);
        ground.run(&config, &channels, leading, events, applied, &signal);
        drop(task::spawn("after_mirror", after_mirror(config, addresses, channels, outcome, signal)));
    }
}

/// Where what was found out goes to.
enum Outcome {
    /// Files.
    Site {
        /// Ready when there is something to serve.
        ready: linkspan_runtime::readiness::Handle,
        folder: PathBuf,
    },
    /// The API server.
    Cluster { status: status::cluster::Context },
}

impl Outcome {
    fn of(ground: &Ground, config: &Config, leading: &Leading, process: &Process) -> Self {
        match ground {
            Ground::Folder(_) => {
                Self::Site { ready: process.admin.readiness().register("controller"), folder: config.state("status") }
            }
            Ground::Cluster(in_cluster) => Self::Cluster {
                status: status::cluster::Context {
                    client: in_cluster.client.clone(),
                    leading: leading.clone(),
                    identity: in_cluster.settings.identity.clone(),
                },
            },
        }
    }
}

/// True when the first complete state came; false when it never will.
async fn first(completed: &mut watch::Receiver<bool>) -> bool {
    completed.wait_for(|complete| *complete).await.is_ok()
}

/// What comes out of the catalog.
struct CatalogOutputs {
    snapshots: watch::Sender<Snapshot>,
    /// For the next start.
    accepted: watch::Sender<Accepted>,
    complete: watch::Sender<bool>,
}

/// Feeds the catalog and publishes its snapshots.
async fn keep_catalog(
    mut catalog: Catalog,
    mut events: mpsc::Receiver<Event>,
    outputs: CatalogOutputs,
    signal: Signal,
) {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = signal.draining() => return,
        };
        let Some(event) = event else { return };
        catalog.handle(event);
        while let Ok(event) = events.try_recv() {
            catalog.handle(event);
        }
        if catalog.is_complete() {
            outputs.snapshots.send_replace(catalog.snapshot());
            outputs.complete.send_replace(true);
            if let Some(accepted) = catalog.take_accepted() {
                outputs.accepted.send_if_modified(|current| {
                    let differs = *current != accepted;
                    *current = accepted;
                    differs
                });
            }
            tokio::time::sleep(CATALOG_PACE).await;
        }
    }
}

/// What waits for the first mirrors: objects, status, the run file, readiness.
async fn after_mirror(config: Config, addresses: Addresses, channels: Channels, outcome: Outcome, signal: Signal) {
    let mut generation = channels.store.subscribe();
    tokio::select! {
        known = generation.wait_for(|generation| *generation > 0) => if known.is_err() { return },
        () = signal.draining() => return,
    }
    let sources = status::Sources {
        snapshots: channels.snapshots.subscribe(),
        peers: channels.peers.subscribe(),
        mirrors: channels.mirrors.subscribe(),
        held: channels.held.subscribe(),
        reports: channels.reports.subscribe(),
        problems: channels.problems.subscribe(),
    };
    let own = config.cluster.clone();
    let ready = match outcome {
        Outcome::Site { ready, folder } => {
            let saving = channels.saving.clone();
            drop(task::spawn("status", status::run(folder, own, sources, saving, signal.clone())));
            Some(ready)
        }
        Outcome::Cluster { status } => {
            drop(task::vital("status", &signal, status::cluster::run(status, own, sources, signal.clone())));
            None
        }
    };
    let contents = json!({
        "pid": std::process::id(),
        "version": build_info::VERSION,
        "dns": addresses.dns,
        "admin": addresses.admin,
    });
    let path = state_dir::run_file(&config);
    if let Err(error) = files::write_quickly(&path, format!("{contents}\n").as_bytes(), 0o600) {
        tracing::error!(path = %path.display(), %error, "cannot write the run file; the CLI will not find this controller");
    }
    if let Some(ready) = ready {
        ready.ready();
    }
    // The senders live here: the tasks above end when the drain does.
    signal.closed().await;
    drop(channels);
}

impl Channels {
    fn new() -> Self {
        Self {
            snapshots: watch::Sender::new(Snapshot::default()),
            peers: watch::Sender::new(Arc::default()),
            mirrors: watch::Sender::new(MirrorSet::default()),
            reports: Arc::new(watch::Sender::new(Reports::new())),
            problems: watch::Sender::new(Arc::default()),
            store: Store::default(),
            cluster_ips: home::no_cluster_ips(),
            held: watch::Sender::new(Held::default()),
            saving: Saving::default(),
        }
    }

    /// What gateways are served from.
    fn serving(
        &self,
        ca: Arc<Ca>,
        attestor: Option<Arc<dyn configuration::Attestor>>,
        signal: &Signal,
    ) -> configuration::Context {
        configuration::Context {
            store: self.store.clone(),
            reports: Arc::clone(&self.reports),
            ca,
            attestor,
            mirrors: self.mirrors.subscribe(),
            signal: signal.clone(),
        }
    }

    /// What the DNS zone is made of; `restored` is the word of an earlier leader, or of the one that leads now.
    fn names(&self, restored: Option<watch::Receiver<cluster::Imports>>) -> zone::Sources {
        zone::Sources {
            sets: self.mirrors.subscribe(),
            reports: self.reports.subscribe(),
            ips: self.cluster_ips.subscribe(),
            generation: self.store.subscribe(),
            restored,
        }
    }

    fn subscribe(&self, leading: Leading) -> routes::Sources {
        routes::Sources {
            leading,
            snapshots: self.snapshots.subscribe(),
            peers: self.peers.subscribe(),
            mirrors: self.mirrors.subscribe(),
            held: self.held.subscribe(),
            reports: self.reports.subscribe(),
            problems: self.problems.subscribe(),
            store: self.store.clone(),
            saving: self.saving.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
