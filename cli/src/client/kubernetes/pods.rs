//! Our pods, and their admin pages through the API server.
//!
//! ```text
//! GET .../pods/POD:4191/proxy/links     the API server dials the pod: needs `get pods/proxy`, and that its network reaches pods
//! port-forward to POD:4191              the kubelet dials the pod:    needs `get` and `create pods/portforward`, and a kubelet
//! ```
//!
//! The first way is tried first, since it needs the least of the cluster; the second where the first is denied or fails. When
//! both fail, the error says what right or network is missing.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::api::Api as PodApi;
use linkspan_runtime::task;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::api::{Answer, Api, ApiError, causes, labelled};

/// How long a port-forward may take in all: API server, kubelet, pod, and the answer.
const FORWARD: Duration = Duration::from_secs(10);

/// How long both ways together may take. What the proxy used of it (10 s at most, see `api`) a port-forward has less.
const BOTH_WAYS: Duration = Duration::from_secs(15);

/// The largest page that is read over a port-forward; see `http`.
const BODY_MAX: usize = 64 * 1024 * 1024;

/// The admin port, where a pod does not name it.
const ADMIN_PORT: u16 = 4191;

/// What a pod of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Component {
    /// The data plane.
    Gateway,
    /// The control plane.
    Controller,
}

impl Component {
    /// The value of the label `app.kubernetes.io/component`, and the word for people.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Controller => "controller",
        }
    }
}

/// One of our pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OurPod {
    /// Its name.
    pub(crate) name: String,
    /// Its addresses, of both families.
    pub(crate) addresses: Vec<std::net::IpAddr>,
    /// Whether it counts as an endpoint.
    pub(crate) ready: bool,
    /// Whether it is running at all, so that it can be asked.
    pub(crate) running: bool,
    /// Why it is not ready, as far as Kubernetes says.
    pub(crate) why: String,
    /// Where its admin pages are.
    admin: u16,
}

impl OurPod {
    /// Reads what matters of a Pod. What is on its way out is none of ours any more.
    fn of(pod: &Pod) -> Option<Self> {
        if pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let name = pod.metadata.name.clone()?;
        let status = pod.status.clone().unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
        let containers = || status.container_statuses.iter().flatten();
        let waiting = containers().find_map(|container| {
            let waiting = container.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.clone().unwrap_or_default();
            Some(format!("{reason} {}", waiting.message.clone().unwrap_or_default()).trim().to_owned())
        });
        let ended = containers().find_map(ended);
        let scheduled = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled");
        let unscheduled = scheduled
            .filter(|condition| condition.status == "False")
            .map(|condition| condition.message.clone().unwrap_or_default());
        let unready = ready.and_then(|condition| condition.message.clone());
        let why = waiting.or(unscheduled).or(unready).unwrap_or_else(|| format!("it is {phase}"));
        let why = std::iter::once(why).chain(ended).collect::<Vec<_>>().join("; ");
        let mut ports =
            pod.spec.iter().flat_map(|spec| &spec.containers).flat_map(|container| {
                container.ports.iter().flatten().map(move |port| (container.name.as_str(), port))
            });
        let admin = ports.find(|(_, port)| port.name.as_deref() == Some("admin"));
        // Between two starts of its container the pod is Running all the same, and nobody answers.
        let ours = containers().find(|container| admin.is_some_and(|(name, _)| container.name == name));
        let down = ours.and_then(|container| container.state.as_ref()).is_some_and(|state| state.running.is_none());
        Some(Self {
            addresses: status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect(),
            ready: ready.is_some_and(|condition| condition.status == "True"),
            running: phase == "Running" && !down,
            why,
            admin: admin.and_then(|(_, port)| u16::try_from(port.container_port).ok()).unwrap_or(ADMIN_PORT),
            name,
        })
    }
}

/// How a container has ended that was started again, and how often.
fn ended(container: &ContainerStatus) -> Option<String> {
    let of = |state: &Option<ContainerState>| state.as_ref()?.terminated.clone();
    let last = of(&container.state).or_else(|| of(&container.last_state))?;
    let reason = last.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    let count = match container.restart_count {
        0 => String::new(),
        1 => ", and was started again once".to_owned(),
        count => format!(", and was started again {count} times"),
    };
    Some(format!("its container {} ended with exit code {}{reason}{count}", container.name, last.exit_code))
}

/// Neither way to a pod is open.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "the admin pages of the pod {pod} cannot be read; by the API server's proxy: {proxy}; by port-forward: {forward}; {remedy}"
)]
pub(crate) struct Unreached {
    pod: String,
    proxy: String,
    forward: String,
    /// Whether it might have answered, and did not; false where we may not ask.
    pub(super) silent: bool,
    /// What right or network is missing.
    pub(crate) remedy: String,
}

/// Our pods of one kind, in order of name; those that have ended or are ending are left out.
pub(super) async fn list(api: &Api, namespace: &str, component: Component) -> Result<Vec<OurPod>, ApiError> {
    let labels = [("app.kubernetes.io/name", "linkspan"), ("app.kubernetes.io/component", component.word())];
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let objects = api.list(&path, &labelled(&labels)).await?;
    let mut pods: Vec<OurPod> = objects
        .into_iter()
        .filter(|object| !matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")))
        .filter_map(|object| OurPod::of(&serde_json::from_value(object).ok()?))
        .collect();
    pods.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(pods)
}

/// `GET path` of a pod's admin listener, whatever the status.
pub(super) async fn fetch(
    api: &Api,
    namespace: &str,
    kubectl: &str,
    pod: &OurPod,
    path: &str,
) -> anyhow::Result<Answer> {
    let started = Instant::now();
    let proxy = format!("/api/v1/namespaces/{namespace}/pods/{}:{}/proxy{path}", pod.name, pod.admin);
    let denied = match api.fetch(&proxy).await {
        Ok(answer) => match refused(&answer) {
            None => return Ok(answer),
            Some(why) => why,
        },
        // Who does not reach the API server reaches no pod through it either.
        Err(error @ (ApiError::Unreachable { .. } | ApiError::Unauthorized(_))) => return Err(error.into()),
        Err(error) => error.to_string(),
    };
    let left = BOTH_WAYS.saturating_sub(started.elapsed()).min(FORWARD);
    let failed = match timeout(left, forward(api, namespace, pod, path)).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => format!("no answer within {} s", left.as_secs()),
    };
    Err(Unreached::new(namespace, kubectl, pod, denied, failed).into())
}

/// An admin page, read as JSON; anything but 200 is an error.
pub(super) fn read<T: DeserializeOwned>(pod: &OurPod, path: &str, answer: &Answer) -> anyhow::Result<T> {
    if answer.status != StatusCode::OK {
        let text = String::from_utf8_lossy(&answer.body).trim().to_owned();
        bail!("the pod {} answered {} to {path}: {text}", pod.name, answer.status);
    }
    serde_json::from_slice(&answer.body)
        .with_context(|| format!("the pod {} did not answer {path} as this version does", pod.name))
}

/// Why the API server did not hand the request on. What the pod itself answers, an error included, is no refusal.
fn refused(answer: &Answer) -> Option<String> {
    if answer.status.is_success() {
        return None;
    }
    answer.status_message()
}

impl Unreached {
    fn new(namespace: &str, kubectl: &str, pod: &OurPod, proxy: String, forward: String) -> Self {
        let denied = |text: &str| text.contains("orbidden");
        let remedy = match (denied(&proxy), denied(&forward)) {
            (true, true) => format!(
                "ask for the right to `get` pods/proxy (or to `get` and `create` pods/portforward) in the namespace {namespace}"
            ),
            (true, false) => format!(
                "ask for the right to `get` pods/proxy in the namespace {namespace}; port-forward is allowed, but needs a kubelet \
                 that reaches the pod"
            ),
            // Whoever does not run well answers by no way; no network has to be mended for that.
            (false, _) if !pod.ready => format!(
                "the pod is not ready ({}): mend that first; {kubectl} -n {namespace} logs {} --previous shows how it ended, and \
                 without --previous what it says now",
                pod.why, pod.name
            ),
            (false, _) => format!(
                "let the API server reach port {} of the pods: a NetworkPolicy has to name its networks (linkspan install \
                 --api-server-cidr), a firewall has to let them pass; or ask for `get` and `create` pods/portforward",
                pod.admin
            ),
        };
        let silent = !(denied(&proxy) && denied(&forward));
        Self { pod: pod.name.clone(), proxy, forward, silent, remedy }
    }
}

/// The same over a port-forward.
async fn forward(api: &Api, namespace: &str, pod: &OurPod, path: &str) -> anyhow::Result<Answer> {
    let pods: PodApi<Pod> = PodApi::namespaced(api.client().clone(), namespace);
    let mut forwarder =
        pods.portforward(&pod.name, &[pod.admin]).await.map_err(|error| anyhow!("{}", causes(&error)))?;
    let stream = forwarder.take_stream(pod.admin).context("the API server opened no stream")?;
    let broken = forwarder.take_error(pod.admin);
    let exchange = async {
        let started = Instant::now();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the exchange: the request asks for it, and dropping the sender closes the connection.
        drop(task::spawn("forward_client", async move { drop(connection.await) }));
        let request = Request::get(path)
            .header(header::HOST, "localhost")
            .header(header::CONNECTION, "close")
            .body(Empty::<bytes::Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let ahead = super::api::ahead(response.headers(), started.elapsed());
        let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
        let body = body.map_err(|error| anyhow!("the answer broke off: {error}"))?.to_bytes();
        Ok::<Answer, anyhow::Error>(Answer { status, body, ahead })
    };
    let answer = exchange.await;
    match (answer, broken) {
        (Ok(answer), _) => Ok(answer),
        // The kubelet's word for it says more than a stream that ended.
        (Err(error), Some(broken)) => match timeout(Duration::from_millis(200), broken).await {
            Ok(Some(why)) => bail!("{why}"),
            _ => Err(error),
        },
        (Err(error), None) => Err(error),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What is made of a Pod.
    pub(crate) fn of(pod: &serde_json::Value) -> OurPod {
        OurPod::of(&serde_json::from_value(pod.clone()).expect("a pod")).expect("one of ours")
    }
}
