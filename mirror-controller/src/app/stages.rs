//! The four stages, started in the order of the path, and what waits for the first mirrors.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use linkspan_proto::configuration::{Resource, Workload};
use linkspan_runtime::drain::{Guard, Signal};
use linkspan_runtime::{build_info, task};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::home::{Feeds, Ground, Home};
use super::{ACCEPTED, Addresses, Channels, Process, accepted, state_dir};
use crate::ca::Ca;
use crate::catalog::{Accepted, Catalog, Own, Snapshot};
use crate::config::Config;
use crate::leader::Leading;
use crate::watch::Event;
use crate::{configuration, exchange, files, mirror, status};

/// Between two snapshots of the catalog: a burst of events becomes one.
const CATALOG_PACE: Duration = Duration::from_millis(10);

/// The four stages and what hangs on them.
pub(super) struct Stages {
    pub(super) config: Config,
    pub(super) process: Process,
    pub(super) addresses: Addresses,
    pub(super) channels: Channels,
    pub(super) ca: Arc<Ca>,
    pub(super) in_force: Accepted,
    pub(super) signal: Signal,
}

impl Stages {
    /// Starts the stages in the order of the path. Each later one waits for the first complete state of the earlier.
    pub(super) fn start(self, home: Home) {
        let Self { config, process, addresses, channels, ca, in_force, signal } = self;
        let Home {
            fronts,
            seniority,
            standing,
            configuration: door,
            exchange: exchange_door,
            attestor,
            hold,
            leading,
            ground,
        } = home;
        let registry = process.admin.registry().clone();
        let serving = channels.serving(ca, attestor, &signal);
        drop(task::vital("configuration", &signal, configuration::serve(serving, door)));

        let (events, catalogued) = mpsc::channel(crate::watch::EVENTS);
        let own = Own { cluster: config.cluster.clone(), trust_domain: config.trust_domain.clone() };
        let accepted = watch::Sender::new(in_force.clone());
        if config.kubernetes.is_none() {
            let (path, saving) = (config.state(ACCEPTED), channels.saving.clone());
            drop(task::spawn("accepted", accepted::keep(path, accepted.subscribe(), saving, signal.clone())));
        }
        let namespace = config.kubernetes.as_ref().map(|settings| settings.namespace.clone());
        let catalog = Catalog::new(own, config.mirror_addresses, in_force)
            .with_exclusions(config.exclusions())
            .within(namespace.clone());
        let complete = watch::Sender::new(false);
        let completed = complete.subscribe();
        let outputs = CatalogOutputs { snapshots: channels.snapshots.clone(), accepted, complete };
        drop(task::vital("catalog", &signal, keep_catalog(catalog, catalogued, outputs, signal.clone())));

        let catalogues = exchange::store::Store::new(config.state("catalogues"), channels.saving.clone());
        let exchange = exchange::Context {
            own: config.cluster.clone(),
            store: match standing {
                Some(standing) => catalogues.with_standing(standing),
                None => catalogues,
            },
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
        let state =
            mirror::State::new(config.cluster.clone(), fronts).with(seniority, config.exclusions()).within(namespace);
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
        // On a site they are known from the start.
        let (workloads, clients) = watch::channel(config.kubernetes.is_none().then(|| config.workloads.clone()));
        let pods = clients.clone();
        drop(task::vital("mirror", &signal, keep_mirrors(mirror, state, &channels, completed, clients)));
        let outcome = Outcome::of(&ground, &config, &leading, &process);
        ground.run(&config, &channels, leading, Feeds { events, workloads, pods }, applied, &signal);
        drop(task::spawn("after_mirror", after_mirror(config, addresses, channels, outcome, signal)));
    }
}

/// Keeps the mirrors from when everything of this cluster is known, its clients included: they are part of the first
/// generation, since a gateway that is told of mirrors and of no clients takes everybody for a stranger.
fn keep_mirrors(
    context: mirror::Context,
    state: mirror::State,
    channels: &Channels,
    mut completed: watch::Receiver<bool>,
    mut clients: watch::Receiver<Option<Vec<Workload>>>,
) -> impl Future<Output = ()> + Send + 'static + use<> {
    let (store, sets) = (channels.store.clone(), channels.mirrors.clone());
    let (snapshots, peers) = (channels.snapshots.subscribe(), channels.peers.subscribe());
    async move {
        if !first(&mut completed).await || clients.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let mut told = false;
        mirror::run(context, state, snapshots, peers, sets, |mut changes| {
            let workloads = if std::mem::replace(&mut told, true) { None } else { clients.borrow().clone() };
            let workloads = workloads.into_iter().flatten().map(Resource::Workload);
            changes.extend(workloads.map(|workload| (workload.key(), Some(workload))));
            store.apply(changes);
        })
        .await;
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

#[cfg(test)]
mod tests {
    use linkspan_proto::configuration::ResourceKind;
    use linkspan_runtime::drain::Drain;

    use super::*;

    /// A new leader never tells gateways that nobody has an address, not even for a moment.
    #[tokio::test]
    async fn the_first_generation_waits_for_the_clients_and_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let (_drain, signal) = Drain::new();
        let context = mirror::Context {
            own: crate::testkit::cluster("east"),
            addresses: dir.path().join("addresses.json"),
            hold: Duration::ZERO,
            leading: Leading::always(),
            saving: crate::saving::Saving::default(),
            metrics: mirror::Metrics::register(&linkspan_runtime::metrics::Registry::default()),
            signal,
        };
        let range = mirror::ports::PortRange { first: 10_000, last: 10_099 };
        let state = mirror::State::new(context.own.clone(), mirror::ports::Ports::new(range));
        let channels = Channels::new();
        let (sender, clients) = watch::channel(None);
        let mut generation = channels.store.subscribe();
        let completed = watch::Sender::new(true);
        drop(task::spawn("test", keep_mirrors(context, state, &channels, completed.subscribe(), clients)));
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*generation.borrow(), 0, "gateways keep what they know");
        let client = Workload {
            namespace: "shop".parse().unwrap(),
            service_account: "web".parse().unwrap(),
            ranges: vec!["10.244.0.7/32".parse().unwrap()],
        };
        sender.send_replace(Some(vec![client]));
        generation.wait_for(|generation| *generation > 0).await.unwrap();
        let first = channels.store.since(None);
        assert_eq!(first.upserts.iter().map(|it| it.key().kind).collect::<Vec<_>>(), [ResourceKind::Workload]);
    }
}
