//! What a controller stands on: the folder of a site, or the API server of a Kubernetes cluster. Everything between the
//! source of objects and the places where mirrors are written is the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use linkspan_proto::configuration::{Resource, Workloads};
use linkspan_runtime::drain::Signal;
use linkspan_runtime::task;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::{Channels, StartError, state_dir};
use crate::ca::Ca;
use crate::cluster::{self, TokenAttestor};
use crate::config::{Config, Kubernetes};
use crate::configuration::{Attestor, Store};
use crate::door::tls::Authority;
use crate::door::{Door, Port};
use crate::mirror::kubernetes::objects::Gateways;
use crate::mirror::kubernetes::{self, ClusterIps};
use crate::mirror::{self, Fronts, Seniority};
use crate::watch::directory::{self, Directory};
use crate::watch::{self as source, Event};

/// For the catalogues of peers after a start in a pod without a disk; see [`mirror::Context::hold`]. A peer whose link is up
/// sends its own within a second or two.
const HOLD: Duration = Duration::from_secs(10);

/// What differs between the two.
pub(super) struct Home {
    /// Who has which address or port, until taken.
    fronts: Option<Fronts>,
    /// Who exported what first, until taken.
    seniority: Seniority,
    /// Configuration and certificates, until taken.
    configuration: Option<Door>,
    /// Pipes to peers, until taken.
    exchange: Option<Door>,
    /// Who vouches for gateways without a certificate.
    pub(super) attestor: Option<Arc<dyn Attestor>>,
    /// How long the first word to the gateways may wait.
    pub(super) hold: Duration,
    cluster: Option<InCluster>,
}

/// A Kubernetes cluster.
struct InCluster {
    client: Client,
    settings: Kubernetes,
    port: Port,
    authority: Arc<Authority>,
}

impl Home {
    /// The door for configuration; there is one.
    pub(super) fn take_configuration(&mut self) -> Door {
        self.configuration.take().expect("taken once, when the server starts")
    }

    /// What the stages start with.
    pub(super) fn take_rest(&mut self) -> (Fronts, Door) {
        let fronts = self.fronts.take().expect("taken once, when the stages start");
        (fronts, self.exchange.take().expect("taken once, when the stages start"))
    }

    /// Who exported what first.
    pub(super) fn take_seniority(&mut self) -> Seniority {
        std::mem::take(&mut self.seniority)
    }

    /// Opens the doors and finds out what was given out before.
    pub(super) async fn open(config: &Config, ca: &Arc<Ca>) -> Result<Self, StartError> {
        match &config.kubernetes {
            None => Self::site(config).await,
            Some(settings) => Self::in_cluster(settings, ca).await,
        }
    }

    async fn site(config: &Config) -> Result<Self, StartError> {
        let given = mirror::load_addresses(&config.state("addresses.json"), config.mirror_addresses)
            .map_err(StartError::Addresses)?;
        Ok(Self {
            fronts: Some(given.into()),
            seniority: mirror::load_seniority(&config.state("addresses.json")),
            configuration: Some(state_dir::socket(&config.state("controller.sock")).await?.into()),
            exchange: Some(state_dir::socket(&config.state("exchange.sock")).await?.into()),
            attestor: None,
            hold: Duration::ZERO,
            cluster: None,
        })
    }

    async fn in_cluster(settings: &Kubernetes, ca: &Arc<Ca>) -> Result<Self, StartError> {
        let client = Client::try_default().await.map_err(StartError::ApiServer)?;
        let listener = TcpListener::bind(settings.listen)
            .await
            .map_err(|error| StartError::Gateways { address: settings.listen, error })?;
        let authority = Arc::new(Authority::new(Arc::clone(ca), settings.names.clone())?);
        let (port, configuration, exchange) = Port::new(listener, Arc::clone(&authority)).map_err(StartError::Tls)?;
        let given = cluster::ports(&client, settings.ports).await.map_err(StartError::ApiServer)?;
        let seniority = cluster::seniority(&client).await;
        let attestor = TokenAttestor::new(client.clone(), settings.namespace.as_str());
        let in_cluster = InCluster { client, settings: settings.clone(), port, authority };
        Ok(Self {
            fronts: Some(given.into()),
            seniority,
            configuration: Some(configuration),
            exchange: Some(exchange),
            attestor: Some(Arc::new(attestor)),
            hold: HOLD,
            cluster: Some(in_cluster),
        })
    }

    /// Starts the source of objects, and what writes the mirrors.
    pub(super) fn run(
        self,
        config: &Config,
        channels: &Channels,
        events: mpsc::Sender<Event>,
        applied: mirror::Applied,
        signal: &Signal,
    ) {
        let Some(InCluster { client, settings, port, authority }) = self.cluster else {
            let source = Directory::new(config.manifests.clone(), config.state("last-good"));
            drop(task::vital("watch", signal, directory::run(source, events, channels.problems.clone())));
            let sink = mirror::apply::DirectorySink::new(config.state("mirrors"));
            let (store, sets) = (channels.store.clone(), channels.mirrors.subscribe());
            drop(task::spawn("apply", async move {
                if known(&store).await {
                    mirror::apply::run(sink, sets, applied).await;
                }
            }));
            return;
        };
        drop(task::vital("door", signal, port.serve(signal.clone())));
        drop(task::vital("authority", signal, authority.run()));
        let problems = channels.problems.clone();
        drop(task::vital("watch", signal, source::kubernetes::run(client.clone(), events, problems)));

        let (gateways, ready) = watch::channel(None::<Gateways>);
        let (namespaces, present) = watch::channel(None::<Arc<BTreeSet<String>>>);
        let (workloads, pods) = watch::channel(None::<Workloads>);
        let (namespace, service) = (settings.namespace.to_string(), settings.gateway_service.to_string());
        drop(task::vital("gateways", signal, cluster::gateways(client.clone(), namespace, service, gateways)));
        drop(task::vital("namespaces", signal, cluster::namespaces(client.clone(), namespaces)));
        drop(task::vital("pods", signal, cluster::workloads(client.clone(), workloads)));
        drop(task::spawn("workloads", tell_workloads(channels.store.clone(), pods)));
        // One controller: the Deployment has one replica.
        let (leader, leading) = watch::channel(true);
        let keeping = kubernetes::Context {
            client,
            sets: channels.mirrors.subscribe(),
            gateways: ready,
            namespaces: present,
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
            drop(leader);
        }));
    }
}

/// Waits for the first complete state.
async fn known(store: &Store) -> bool {
    store.subscribe().wait_for(|generation| *generation > 0).await.is_ok()
}

/// Keeps the gateways' idea of who has which address as it is, once they know mirrors.
async fn tell_workloads(store: Store, mut workloads: watch::Receiver<Option<Workloads>>) {
    if !known(&store).await {
        return;
    }
    loop {
        let newest = workloads.borrow_and_update().clone();
        if let Some(newest) = newest {
            let resource = Resource::Workloads(newest);
            store.apply([(resource.key(), Some(resource))].into());
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
