//! What a controller stands on: the folder of a site, or the API server of a Kubernetes cluster. Everything between the
//! source of objects and the places where mirrors are written is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use linkspan_proto::configuration::{Resource, ResourceKey, ResourceKind, Workload};
use linkspan_runtime::backoff::Backoff;
use linkspan_runtime::drain::{Guard, Signal};
use linkspan_runtime::task;
use linkspan_runtime::text::Clean;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::state_dir::{self, StateDirError};
use super::{Channels, StartError, client};
use crate::ca::Ca;
use crate::cluster::{self, TokenAttestor};
use crate::config::{Config, Kubernetes};
use crate::configuration::{Attestor, Store};
use crate::diff::{Step, walk};
use crate::door::tls::Authority;
use crate::door::{Door, Port};
use crate::exchange::store::Standing;
use crate::leader::Leading;
use crate::mirror::kubernetes::objects::Gateways;
use crate::mirror::kubernetes::{self, ClusterIps};
use crate::mirror::{self, Changes, Fronts, Seniority};
use crate::pressure::Pressure;
use crate::watch::directory::{self, Directory};
use crate::watch::{self as source, Event};

/// For the catalogues of peers after a start in a pod without a disk; see [`mirror::Context::hold`]. A peer whose link is up
/// sends its own within a second or two.
const HOLD: Duration = Duration::from_secs(10);
/// Between two tries to read what was given out before; as the watches.
const PAUSE: (Duration, Duration) = source::kubernetes::PAUSE;

/// What differs between the two.
pub(super) struct Home {
    /// Who has which address or port.
    pub(super) fronts: Fronts,
    /// Who exported what first.
    pub(super) seniority: Seniority,
    /// What is known of peers that cannot be heard yet; `None` where the catalogues on disk tell: on a site.
    pub(super) standing: Option<Standing>,
    /// Configuration and certificates.
    pub(super) configuration: Door,
    /// Pipes to peers.
    pub(super) exchange: Door,
    /// Who vouches for gateways without a certificate.
    pub(super) attestor: Option<Arc<dyn Attestor>>,
    /// How long the first word to the gateways may wait.
    pub(super) hold: Duration,
    /// Whether this controller writes.
    pub(super) leading: Leading,
    /// Where objects come from and go to.
    pub(super) ground: Ground,
}

/// What a ground tells.
pub(super) struct Feeds {
    /// What happens to objects.
    pub(super) events: mpsc::Sender<Event>,
    /// Who has which address, once that is known. A site does not tell: it is known from the start.
    pub(super) workloads: watch::Sender<Option<Vec<Workload>>>,
    /// The same as it was told.
    pub(super) pods: watch::Receiver<Option<Vec<Workload>>>,
}

/// Where objects come from and go to.
pub(super) enum Ground {
    /// The folder of a site.
    Folder(Box<Directory>),
    /// A Kubernetes cluster.
    Cluster(Box<InCluster>),
}

/// A Kubernetes cluster.
pub(super) struct InCluster {
    pub(super) client: Client,
    pub(super) settings: Kubernetes,
    pressure: Pressure,
    port: Port,
    authority: Arc<Authority>,
}

/// What a controller in a cluster has before it leads.
pub(super) struct Standby {
    pub(super) client: Client,
    pub(super) settings: Kubernetes,
    pressure: Pressure,
    authority: Arc<Authority>,
}

impl Standby {
    /// Nothing is opened yet: gateways take whoever has the port open for the leader.
    pub(super) async fn open(config: &Config, settings: &Kubernetes, ca: &Arc<Ca>) -> Result<Self, StartError> {
        let pressure = Pressure::default();
        let client = client::new(&pressure).await.map_err(StartError::ApiServer)?;
        let authority = Arc::new(Authority::new(Arc::clone(ca), settings.names.clone())?);
        state_dir::forget_earlier(config)?;
        Ok(Self { client, settings: settings.clone(), pressure, authority })
    }

    /// The lease is won: reads what was given out before, and opens the port for gateways.
    pub(super) async fn lead(self, leading: Leading) -> Result<Home, StartError> {
        let Self { client, settings, pressure, authority } = self;
        // Only now: what an earlier leader gave out until its end counts.
        let given = patiently(|| cluster::ports(&client, settings.ports)).await;
        let seniority = patiently(|| cluster::seniority(&client)).await;
        let standing = patiently(|| cluster::standing(&client)).await;
        let listener = TcpListener::bind(settings.listen)
            .await
            .map_err(|error| StartError::Gateways { address: settings.listen, error })?;
        let (port, configuration, exchange) = Port::new(listener, Arc::clone(&authority)).map_err(StartError::Tls)?;
        let attestor = TokenAttestor::new(client.clone(), settings.namespace.as_str());
        Ok(Home {
            fronts: given.into(),
            seniority,
            standing: Some(standing),
            configuration,
            exchange,
            attestor: Some(Arc::new(attestor)),
            hold: HOLD,
            leading,
            ground: Ground::Cluster(Box::new(InCluster { client, settings, pressure, port, authority })),
        })
    }
}

/// What the mirrored objects in the API server tell of an earlier leader. Without it nobody leads.
async fn patiently<T, F: Future<Output = kube::Result<T>>>(ask: impl Fn() -> F) -> T {
    let mut pause = Backoff::new(PAUSE.0, PAUSE.1);
    loop {
        match ask().await {
            Ok(told) => return told,
            Err(error) => {
                let error = error.to_string();
                tracing::warn!(error = %Clean(&error), "the mirrored objects cannot be listed; trying again");
                tokio::time::sleep(pause.next()).await;
            }
        }
    }
}

impl Home {
    /// A site.
    pub(super) async fn site(config: &Config) -> Result<Self, StartError> {
        let given = mirror::load_addresses(&config.state("addresses.json"), config.mirror_addresses)
            .map_err(StartError::Addresses)?;
        let configuration = state_dir::socket(&config.state("controller.sock")).await?.into();
        let exchange = state_dir::socket(&config.state("exchange.sock")).await?.into();
        state_dir::forget_earlier(config)?;
        // Last: what was opened and never closed is not certain at the next start.
        let last_good = config.state("last-good");
        let source = Directory::open(config.manifests.clone(), last_good.clone())
            .map_err(|error| StateDirError::Path { path: last_good, error })?;
        Ok(Self {
            fronts: given.into(),
            seniority: mirror::load_seniority(&config.state("addresses.json")),
            // On a site nobody else follows the peers: the catalogues on disk are the newest.
            standing: None,
            configuration,
            exchange,
            attestor: None,
            hold: Duration::ZERO,
            leading: Leading::always(),
            ground: Ground::Folder(Box::new(source)),
        })
    }
}

impl Ground {
    /// Starts the source of objects, and what writes the mirrors.
    pub(super) fn run(
        self,
        config: &Config,
        channels: &Channels,
        leading: Leading,
        feeds: Feeds,
        applied: mirror::Applied,
        signal: &Signal,
    ) {
        let Feeds { events, workloads, pods } = feeds;
        let InCluster { client, settings, pressure, port, authority } = match self {
            Self::Cluster(in_cluster) => *in_cluster,
            Self::Folder(source) => return in_folder(*source, config, channels, events, applied, signal),
        };
        drop(task::vital("door", signal, port.serve(signal.clone())));
        drop(task::vital("authority", signal, authority.run()));
        let problems = channels.problems.clone();
        drop(task::vital("watch", signal, source::kubernetes::run(client.clone(), events, problems)));

        let (gateways, ready) = watch::channel(None::<Gateways>);
        let (namespaces, present) = watch::channel(None::<Arc<BTreeSet<String>>>);
        let (namespace, service) = (settings.namespace.to_string(), settings.gateway_service.to_string());
        drop(task::vital("gateways", signal, cluster::gateways(client.clone(), namespace, service, gateways)));
        let (api, only) = (client.clone(), config.mirrors.namespaces.clone());
        drop(task::vital("namespaces", signal, async move { cluster::namespaces(api, &only, namespaces).await }));
        drop(task::vital("pods", signal, cluster::workloads(client.clone(), workloads)));
        drop(task::spawn("workloads", tell_workloads(channels.store.clone(), pods)));
        let keeping = kubernetes::Context {
            client,
            pressure,
            sets: channels.mirrors.subscribe(),
            gateways: ready,
            namespaces: present,
            only: config.mirrors.namespaces.iter().cloned().collect(),
            leading,
            cluster_ips: channels.cluster_ips.clone(),
            held: channels.held.clone(),
            metrics: applied,
            signal: signal.clone(),
        };
        let store = channels.store.clone();
        drop(task::vital("apply", signal, async move {
            if known(&store).await {
                kubernetes::run(keeping).await;
            }
        }));
    }
}

/// The source of objects and what writes the mirrors, on a site.
fn in_folder(
    source: Directory,
    config: &Config,
    channels: &Channels,
    events: mpsc::Sender<Event>,
    applied: mirror::Applied,
    signal: &Signal,
) {
    let (problems, saving, guard) = (channels.problems.clone(), channels.saving.clone(), signal.guard());
    drop(task::vital("watch", signal, async move {
        directory::run(source, events, problems, saving).await;
        // What it leaves to the next start is worth waiting for.
        drop::<Guard>(guard);
    }));
    let sink = mirror::apply::DirectorySink::new(config.state("mirrors"));
    let (store, sets, saving) = (channels.store.clone(), channels.mirrors.subscribe(), channels.saving.clone());
    drop(task::spawn("apply", async move {
        if known(&store).await {
            mirror::apply::run(sink, sets, applied, saving).await;
        }
    }));
}

/// Waits for the first complete state.
async fn known(store: &Store) -> bool {
    store.subscribe().wait_for(|generation| *generation > 0).await.is_ok()
}

/// Keeps the gateways' idea of who has which address as it is, once they know mirrors.
async fn tell_workloads(store: Store, mut workloads: watch::Receiver<Option<Vec<Workload>>>) {
    if !known(&store).await {
        return;
    }
    let all = store.resources().into_iter().map(|resource| (resource.key(), Arc::unwrap_or_clone(resource)));
    let mut told: BTreeMap<ResourceKey, Resource> = all.filter(|(key, _)| key.kind == ResourceKind::Workload).collect();
    loop {
        let newest = workloads.borrow_and_update().clone();
        if let Some(newest) = newest {
            let newest =
                newest.into_iter().map(Resource::Workload).map(|resource| (resource.key(), resource)).collect();
            let changes: Changes = walk(&told, &newest)
                .filter_map(|step| match step {
                    Step::Left(key, _) => Some((key.clone(), None)),
                    Step::Both(_, old, new) if old == new => None,
                    Step::Both(key, _, new) | Step::Right(key, new) => Some((key.clone(), Some(new.clone()))),
                })
                .collect();
            if !changes.is_empty() {
                store.apply(changes);
            }
            told = newest;
        }
        if workloads.changed().await.is_err() {
            return;
        }
    }
}

/// Nothing is given to imports before the API server has given it.
pub(super) fn no_cluster_ips() -> watch::Sender<ClusterIps> {
    watch::Sender::new(ClusterIps::default())
}
