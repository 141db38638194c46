//! What a Kubernetes cluster says of its Linkspan: objects of the API server, and admin pages of the pods through it.
//!
//! - **In**: a context of the kubeconfig, and the namespace of gateways and controllers.
//! - **Out**: the same facts as from a site's folder, those of several gateways as one.
//! - **Refuses when**: no gateway runs, or none can be asked; the error says which of the two, and why.
//! - **Never does**: need the other cluster's kubeconfig, or reach for a pod past the API server.

/// Requests to the API server.
pub(crate) mod api;
/// From the kubeconfig to a client.
pub(crate) mod connect;
/// The objects that stand for mirrors.
pub(crate) mod mirrors;
/// Our pods and their admin pages.
pub(crate) mod pods;
/// Where peers reach the gateways.
pub(crate) mod reach;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use futures::future;
use linkspan_gateway::stat::Stat;
use linkspan_proto::manifest;
use linkspan_proto::resources::Cluster as Settings;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::facts::{ConfigPage, Facts, Front};
use super::merge::{self, Said};
use super::source::Of;
use super::status::Status;
use crate::args::Place;
use crate::output;
use api::{Answer, Api, ApiError};
use mirrors::MirrorObjects;
use pods::{Component, OurPod, Unreached};
use reach::Reach;

/// Where Linkspan is installed unless somebody says otherwise.
const NAMESPACE: &str = "linkspan";

/// The ConfigMap with `cluster.yaml`.
const CONFIGURATION: &str = "linkspan-cluster";

/// The ConfigMap with the root's certificate.
const ROOT: &str = "linkspan-root";

/// How long a pod counts as silent that did not answer: longer than one round of checks, and shorter than anybody watches.
const SILENT_FOR: Duration = Duration::from_secs(60);

/// The Lease by which one controller leads.
const LEASE: &str = "linkspan-controller";

/// A Kubernetes cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    api: Api,
    namespace: String,
    /// How a remedy names it.
    flags: String,
    /// How kubectl is told the same.
    kubectl: String,
    /// Pods that answered by no way, and when that was found. Many pages are asked of each; the time is lost once.
    silent: Mutex<BTreeMap<String, (Instant, Unreached)>>,
}

/// Which controller leads, as the Lease says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leader {
    /// Its pod.
    pub(crate) holder: String,
    /// When it last said so.
    pub(crate) renewed: Option<jiff::Timestamp>,
    /// How long that holds, in seconds.
    pub(crate) seconds: i64,
}

impl Cluster {
    /// The cluster that the arguments name.
    pub(crate) async fn open(place: &Place) -> anyhow::Result<Self> {
        let connected = connect::connect(place.context.as_deref(), place.kubeconfig.as_deref()).await?;
        let mut words = Vec::new();
        if let Some(context) = &connected.context {
            words.push(format!("--context {}", output::shell_word(context)));
        }
        if let Some(file) = &place.kubeconfig {
            words.push(format!("--kubeconfig {}", output::shell_word(&file.display().to_string())));
        }
        let kubectl = std::iter::once("kubectl".to_owned()).chain(words.iter().cloned()).collect::<Vec<_>>().join(" ");
        let namespace = place.linkspan_namespace.as_ref().map_or(NAMESPACE, |namespace| namespace.as_str()).to_owned();
        if namespace != NAMESPACE {
            words.push(format!("--linkspan-namespace {namespace}"));
        }
        Ok(Self { api: connected.api, namespace, flags: words.join(" "), kubectl, silent: Mutex::default() })
    }

    /// A cluster behind a client that a test made.
    #[cfg(test)]
    pub(crate) fn for_test(api: Api) -> Self {
        let (flags, kubectl) = ("--context east".to_owned(), "kubectl --context east".to_owned());
        Self { api, namespace: NAMESPACE.to_owned(), flags, kubectl, silent: Mutex::default() }
    }

    /// How a remedy names it: `--context east`.
    pub(crate) fn flags(&self) -> &str {
        &self.flags
    }

    /// How a remedy calls kubectl: `kubectl --context east`.
    pub(crate) fn kubectl(&self) -> &str {
        &self.kubectl
    }

    /// The API server.
    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    /// The namespace of gateways and controllers.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The path of an object, or of all of a kind, in our own namespace.
    pub(crate) fn own(&self, group: &str, resource: &str) -> String {
        let root = if group.contains('/') { "apis" } else { "api" };
        format!("/{root}/{group}/namespaces/{}/{resource}", self.namespace)
    }

    /// The file that both programs read; `None` where nothing is installed.
    pub(crate) async fn settings(&self) -> anyhow::Result<Option<Settings>> {
        let path = self.own("v1", &format!("configmaps/{CONFIGURATION}"));
        let Some(map) = self.api.find(&path).await.context("reading the ConfigMap linkspan-cluster")? else {
            return Ok(None);
        };
        let text = map["data"]["cluster.yaml"].as_str().with_context(|| {
            format!("the ConfigMap {CONFIGURATION} in the namespace {} has no cluster.yaml", self.namespace)
        })?;
        let name = format!("ConfigMap {CONFIGURATION}, cluster.yaml");
        Ok(Some(manifest::cluster_from_yaml(text, &name)?))
    }

    /// The same, where it has to be there.
    pub(crate) async fn installed(&self) -> anyhow::Result<Settings> {
        self.settings().await?.ok_or_else(|| self.not_installed())
    }

    /// The cluster's root certificates, PEM; `None` where there is no such ConfigMap.
    pub(crate) async fn root(&self) -> Result<Option<String>, ApiError> {
        let map = self.api.find(&self.own("v1", &format!("configmaps/{ROOT}"))).await?;
        Ok(map.and_then(|map| map["data"]["root.pem"].as_str().map(ToOwned::to_owned)))
    }

    /// At which addresses peers reach the gateways, as the Service for the link says. `None` where there is none.
    pub(crate) async fn reach(&self, settings: &Settings) -> anyhow::Result<Option<Reach>> {
        let name = &settings.spec.gateway.link_service;
        let Some(service) = self.api.find(&self.own("v1", &format!("services/{name}"))).await? else { return Ok(None) };
        let nodes = if service["spec"]["type"] == "NodePort" {
            self.api.list("/api/v1/nodes", "").await.context("reading the addresses of the nodes, for the node port")?
        } else {
            Vec::new()
        };
        Ok(Some(reach::reach(&service, &nodes)))
    }

    /// Which controller leads; `None` while there is no Lease.
    pub(crate) async fn leader(&self) -> Result<Option<Leader>, ApiError> {
        let path = self.own("coordination.k8s.io/v1", &format!("leases/{LEASE}"));
        let Some(lease) = self.api.find(&path).await? else { return Ok(None) };
        let spec = &lease["spec"];
        Ok(Some(Leader {
            holder: spec["holderIdentity"].as_str().unwrap_or_default().to_owned(),
            renewed: spec["renewTime"].as_str().and_then(|time| time.parse().ok()),
            seconds: spec["leaseDurationSeconds"].as_i64().unwrap_or(15),
        }))
    }

    /// Our pods of one kind.
    pub(crate) async fn pods(&self, component: Component) -> Result<Vec<OurPod>, ApiError> {
        pods::list(&self.api, &self.namespace, component).await
    }

    /// `GET path` of a pod's admin listener, whatever the status.
    pub(crate) async fn page(&self, pod: &OurPod, path: &str) -> anyhow::Result<Answer> {
        if let Some((since, error)) = self.silent.lock().await.get(&pod.name)
            && since.elapsed() < SILENT_FOR
        {
            return Err(error.clone().into());
        }
        let answer = pods::fetch(&self.api, &self.namespace, &self.kubectl, pod, path).await;
        let unreached = answer.as_ref().err().and_then(|error| error.downcast_ref::<Unreached>());
        if let Some(error) = unreached.filter(|error| error.silent) {
            self.silent.lock().await.insert(pod.name.clone(), (Instant::now(), error.clone()));
        }
        answer
    }

    /// `GET path` of a pod's admin listener, read as JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&self, pod: &OurPod, path: &str) -> anyhow::Result<T> {
        pods::read(pod, path, &self.page(pod, path).await?)
    }

    /// `GET path` of the controller that leads, or of another where that does not answer.
    pub(crate) async fn controller_json<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let mut pods = self.pods(Component::Controller).await?;
        pods.retain(|pod| pod.running);
        let leader = self.leader().await.ok().flatten().map(|leader| leader.holder).unwrap_or_default();
        pods.sort_by_key(|pod| (!leader.starts_with(&pod.name), !pod.ready));
        let mut error = anyhow!("no controller runs in the namespace {}", self.namespace);
        for pod in &pods {
            match self.json(pod, path).await {
                Ok(page) => return Ok(page),
                Err(failed) => error = failed,
            }
        }
        Err(error)
    }

    /// What the gateways know, as one, and why some of them could not be asked.
    pub(crate) async fn facts(&self) -> anyhow::Result<(Facts, Vec<anyhow::Error>)> {
        let pods = self.gateways().await?;
        let (said, silent) = sorted(future::join_all(pods.iter().map(|pod| self.ask(pod))).await)?;
        Ok((merge::merge(said), silent))
    }

    /// The gateways' figures, added up.
    pub(crate) async fn stat(&self, window: u64) -> anyhow::Result<(Stat, Vec<anyhow::Error>)> {
        let path = format!("/stat?window={window}");
        let pods = self.gateways().await?;
        let asked = future::join_all(pods.iter().map(|pod| self.json::<Stat>(pod, &path))).await;
        let (parts, silent) = sorted(asked)?;
        Ok((Stat::combined(parts), silent))
    }

    /// The gateways that run. An error where there is none.
    async fn gateways(&self) -> anyhow::Result<Vec<OurPod>> {
        let mut pods = self.pods(Component::Gateway).await?;
        let first = pods.first().map(|pod| format!("the pod {}: {}", pod.name, pod.why));
        pods.retain(|pod| pod.running);
        if !pods.is_empty() {
            return Ok(pods);
        }
        if first.is_none() && self.settings().await?.is_none() {
            return Err(self.not_installed());
        }
        Err(anyhow!(
            "no gateway runs in the namespace {} ({}); `linkspan check {}` says more",
            self.namespace,
            first.as_deref().unwrap_or("there are no pods"),
            self.flags
        ))
    }

    async fn ask(&self, pod: &OurPod) -> anyhow::Result<Said> {
        let links = self.json(pod, "/links").await?;
        let listeners = self.json(pod, "/mirrors").await?;
        let ConfigPage { gateway, .. } = self.json(pod, "/config").await?;
        Ok(Said {
            gateway: pod.name.clone(),
            own: gateway.resolved.cluster,
            generation: gateway.generation,
            links,
            listeners,
            resources: gateway.resources,
        })
    }

    /// The Services and imports that stand for mirrors.
    pub(crate) async fn mirror_objects(&self) -> anyhow::Result<MirrorObjects> {
        mirrors::read(&self.api).await
    }

    /// Where clients reach each mirrored name.
    pub(crate) async fn fronts(&self) -> anyhow::Result<BTreeMap<String, Front>> {
        Ok(self.mirror_objects().await?.fronts())
    }

    /// Conditions of objects.
    pub(crate) async fn statuses(&self, of: Of) -> anyhow::Result<Vec<Status>> {
        match of {
            Of::Links => {
                let listed = self.api.list("/apis/linkspan.io/v1alpha1/links", "").await;
                Ok(read_all(listed.map_err(|error| uninstalled(error, self))?))
            }
            Of::Exports => Ok(read_all(self.exports().await?)),
            Of::Mirrors => {
                let mut all = self.mirror_objects().await?.statuses();
                // What was not made has no object; only the controller knows of it.
                all.extend(self.controller_json::<Vec<Status>>("/refused").await.unwrap_or_default());
                Ok(all)
            }
        }
    }

    /// All ServiceExports, in the version that is served.
    async fn exports(&self) -> Result<Vec<Value>, ApiError> {
        match self.api.list("/apis/multicluster.x-k8s.io/v1beta1/serviceexports", "").await {
            Err(ApiError::NotFound(_)) => {
                self.api.list("/apis/multicluster.x-k8s.io/v1alpha1/serviceexports", "").await
            }
            listed => listed,
        }
    }

    /// Why there is nothing to ask.
    pub(crate) fn not_installed(&self) -> anyhow::Error {
        anyhow!(
            "Linkspan is not installed in the namespace {} of the cluster behind {}; another namespace: --linkspan-namespace; \
             to install it: linkspan install --cluster-name NAME | {} apply -f -",
            self.namespace,
            self.api.server(),
            self.kubectl
        )
    }
}

/// Answers and failures apart. An error where all failed.
fn sorted<T>(asked: Vec<anyhow::Result<T>>) -> anyhow::Result<(Vec<T>, Vec<anyhow::Error>)> {
    let (mut said, mut silent) = (Vec::new(), Vec::new());
    for answer in asked {
        match answer {
            Ok(answer) => said.push(answer),
            Err(error) => silent.push(error),
        }
    }
    match silent.pop() {
        Some(error) if said.is_empty() => Err(error),
        last => {
            silent.extend(last);
            Ok((said, silent))
        }
    }
}

/// A kind that is not served means that nobody has installed it.
pub(crate) fn uninstalled(error: ApiError, cluster: &Cluster) -> anyhow::Error {
    match error {
        ApiError::NotFound(path) => anyhow!(
            "the API server does not serve {path}; apply the definitions: linkspan crds | {} apply -f -",
            cluster.kubectl
        ),
        error => error.into(),
    }
}

/// Objects with conditions. One that is none is left out: it may be of a later version.
pub(super) fn read_all(objects: Vec<Value>) -> Vec<Status> {
    let read = |mut object: Value| {
        // An object without a status is one that the controller has not seen yet.
        if object["status"].is_null() {
            object["status"] = json!({});
        }
        serde_json::from_value(object).ok()
    };
    objects.into_iter().filter_map(read).collect()
}

#[cfg(test)]
pub(crate) mod tests;
