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
use std::sync::Arc;
use std::time::Duration;

use linkspan_runtime::admin::Admin;
use linkspan_runtime::drain::{Drain, Signal};
use linkspan_runtime::task;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

use crate::ca::{Ca, CaError};
use crate::catalog::{Accepted, Snapshot};
use crate::config::Config;
use crate::configuration::{self, Reports, Store};
use crate::door::tls::AuthorityError;
use crate::exchange::Peers;
use crate::leader::lease::Lease;
use crate::leader::{self, Leading, Office};
use crate::mirror::MirrorSet;
use crate::mirror::kubernetes::{ClusterIps, Held};
use crate::saving::Saving;
use crate::watch::Problem;
use crate::{cluster, dns};

mod accepted;
mod client;
mod home;
mod routes;
mod stages;
mod state_dir;
mod zone;

use home::{Home, Standby};
use stages::Stages;
use state_dir::StateDirError;

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
        // In a cluster another controller may have led since this one wrote it, and the version before may be one that was
        // revoked then. Without it a Link that is refused is not in force, and keeps its mirrors as they are.
        let in_force = match &config.kubernetes {
            None => accepted::load(&config.state(ACCEPTED)).map_err(StartError::Accepted)?,
            Some(_) => Accepted::default(),
        };
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
