//! The gRPC service that gateways call. On a site the socket's mode keeps everybody but our own user out; on Kubernetes a
//! gateway proves itself once with its ServiceAccount token, and from then on with the certificate that it got for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use linkspan_proto::configuration::{Report, decode_report, encode_updates};
use linkspan_proto::generated::configuration as wire;
use linkspan_proto::generated::configuration::configuration_server::{Configuration, ConfigurationServer};
use linkspan_proto::names::Namespace;
use linkspan_runtime::backoff::Backoff;
use linkspan_runtime::drain::Signal;
use linkspan_runtime::task;
use linkspan_runtime::text::clean;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{CONNECTIONS_MAX, GatewayState, REPORT_MAX, Reports, Store, UPDATE_PACE};
use crate::ca::{Ca, CaError, Purpose};
use crate::dns::ZoneName;
use crate::door::{Caller, Door, STRANGER, Stream};
use crate::mirror::MirrorSet;

/// Parts of an update that wait for a gateway; the rest waits inside the store as one newer state.
const PARTS: usize = 2;
/// Longest boot id and version that are kept.
const WORD_MAX: usize = 128;

/// What the service needs from outside.
#[derive(Clone)]
pub struct Context {
    /// The resources.
    pub store: Store,
    /// What gateways said last.
    pub reports: Arc<watch::Sender<Reports>>,
    /// Signs.
    pub ca: Arc<Ca>,
    /// Who vouches for callers without a certificate; `None` on a site, where there are none.
    pub attestor: Option<Arc<dyn Attestor>>,
    /// The mirrors, whose namespaces decide which DNS names are signed.
    pub mirrors: watch::Receiver<MirrorSet>,
    /// The end.
    pub signal: Signal,
}

/// Says whether a token is that of one of our gateways.
pub trait Attestor: Send + Sync {
    /// The pod that the token belongs to.
    ///
    /// # Errors
    /// Why it is not believed, or cannot be judged at the moment.
    fn gateway<'a>(&'a self, token: &'a str) -> futures::future::BoxFuture<'a, Result<String, AttestError>>;
}

/// Why a token does not make a gateway.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// It is not valid, not for us, or somebody else's.
    #[error("{0}")]
    Refused(String),
    /// Others are being judged.
    #[error("too many tokens came in the last moment; come again")]
    Busy,
    /// The API server could not be asked.
    #[error("the API server cannot be asked: {0}")]
    Unavailable(String),
}

/// Serves until the drain.
pub async fn serve(context: Context, door: impl Into<Door>) {
    let mut door = door.into();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut pause = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
    loop {
        let accepted = tokio::select! {
            accepted = door.accept() => accepted,
            () = context.signal.draining() => return,
        };
        let (stream, caller) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "configuration: accept failed");
                tokio::time::sleep(pause.next()).await;
                continue;
            }
        };
        pause.reset();
        let permit = match caller {
            // The door has counted them, and they take no place of a gateway.
            Caller::Unknown => None,
            Caller::Gateway => match Arc::clone(&permits).try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => {
                    tracing::warn!("configuration: too many connections; one is closed");
                    continue;
                }
            },
        };
        let context = context.clone();
        drop(task::spawn("configuration_connection", async move {
            connection(context, stream, caller).await;
            drop(permit);
        }));
    }
}

async fn connection(context: Context, stream: Stream, caller: Caller) {
    let signal = context.signal.clone();
    let (streams, limit) = match caller {
        Caller::Gateway => (32, None),
        // One call of Sign, and one more where the first was cut off.
        Caller::Unknown => (2, Some(STRANGER)),
    };
    let end = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let service = ConfigurationServer::new(Service(context, caller)).max_decoding_message_size(REPORT_MAX);
    let connection = hyper::server::conn::http2::Builder::new(task::Executor("configuration_http"))
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::select! {
        result = connection => {
            if let Err(error) = result {
                tracing::debug!(%error, "configuration: a connection ended");
            }
        }
        () = end => tracing::debug!("configuration: a caller without a certificate had its time"),
        () = signal.draining() => {}
    }
}

struct Service(Context, Caller);

type Updates = mpsc::Sender<Result<wire::Update, Status>>;

#[tonic::async_trait]
impl Configuration for Service {
    type SubscribeStream = ReceiverStream<Result<wire::Update, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<wire::GatewayReport>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        if self.1 != Caller::Gateway {
            return Err(Status::unauthenticated("show the certificate that Sign gives"));
        }
        let (updates, stream) = mpsc::channel(PARTS);
        let context = self.0.clone();
        drop(task::spawn("configuration_gateway", async move {
            let signal = context.signal.clone();
            tokio::select! {
                () = gateway(context, request.into_inner(), updates) => {}
                () = signal.draining() => {}
            }
        }));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn sign(&self, request: Request<wire::SignRequest>) -> Result<Response<wire::SignResponse>, Status> {
        if self.1 == Caller::Unknown {
            attest(&self.0, request.metadata()).await?;
        }
        let request = request.into_inner();
        let purpose = match wire::Purpose::try_from(request.purpose) {
            Ok(wire::Purpose::Link) if request.dns_names.is_empty() => Purpose::Link,
            Ok(wire::Purpose::Link) => {
                return Err(Status::invalid_argument("a link certificate has no DNS names"));
            }
            Ok(wire::Purpose::LocalServer) => Purpose::LocalServer { dns_names: request.dns_names },
            Ok(wire::Purpose::Unspecified) | Err(_) => {
                return Err(Status::invalid_argument("the purpose is neither LINK nor LOCAL_SERVER"));
            }
        };
        let namespaces = match purpose {
            Purpose::Link => BTreeSet::new(),
            Purpose::LocalServer { .. } => mirrored_namespaces(&self.0.mirrors.borrow()),
        };
        let signed = self.0.ca.sign_gateway(&request.csr_der, &purpose, |name| is_mirrored(name, &namespaces));
        match signed {
            Ok(issued) => {
                let not_after = issued.not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                tracing::info!(purpose = purpose_name(&purpose), "certificate signed");
                Ok(Response::new(wire::SignResponse {
                    chain_der: issued.chain.iter().map(|certificate| certificate.to_vec().into()).collect(),
                    not_after_unix: i64::try_from(not_after).unwrap_or(i64::MAX),
                    trust_bundle_pem: self.0.ca.trust_bundle_pem().to_owned(),
                }))
            }
            Err(error @ CaError::Refused(_)) => {
                tracing::warn!(purpose = purpose_name(&purpose), %error, "certificate refused");
                Err(Status::permission_denied(error.to_string()))
            }
            Err(error) => {
                tracing::error!(%error, "a certificate cannot be signed");
                Err(Status::internal("the certificate cannot be signed; the controller's log says why"))
            }
        }
    }
}

/// A caller without a certificate must have a gateway's token (S-43: nothing else makes an identity).
async fn attest(context: &Context, metadata: &tonic::metadata::MetadataMap) -> Result<(), Status> {
    let Some(attestor) = &context.attestor else {
        return Err(Status::unauthenticated("no token is accepted here"));
    };
    let token = metadata.get("authorization").and_then(|value| value.to_str().ok());
    let Some(token) = token.and_then(|value| value.strip_prefix("Bearer ")) else {
        return Err(Status::unauthenticated("a ServiceAccount token is needed: authorization: Bearer"));
    };
    match attestor.gateway(token).await {
        Ok(pod) => {
            tracing::info!(pod = %clean(&pod), "a gateway has proved itself");
            Ok(())
        }
        Err(error @ AttestError::Refused(_)) => {
            tracing::warn!(%error, "a token is refused");
            Err(Status::permission_denied(error.to_string()))
        }
        Err(error @ (AttestError::Busy | AttestError::Unavailable(_))) => Err(Status::unavailable(error.to_string())),
    }
}

const fn purpose_name(purpose: &Purpose) -> &'static str {
    match purpose {
        Purpose::Link => "link",
        Purpose::LocalServer { .. } => "localServer",
    }
}

fn mirrored_namespaces(set: &MirrorSet) -> BTreeSet<Namespace> {
    set.wanted.values().map(|wanted| wanted.object.namespace.clone()).collect()
}

/// Whether a DNS name, perhaps with a wildcard in front, lies below a namespace that we mirror.
fn is_mirrored(name: &str, namespaces: &BTreeSet<Namespace>) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    ZoneName::ALL.into_iter().any(|zone| {
        let Some(rest) = name.strip_suffix(zone.service_suffix()).and_then(|rest| rest.strip_suffix('.')) else {
            return false;
        };
        let Some((below, namespace)) = rest.rsplit_once('.') else { return false };
        let mut labels = below.split('.');
        let first = labels.next().unwrap_or_default();
        // At most `host.cluster.service`.
        (first == "*" || label(first))
            && labels.clone().count() <= 2
            && labels.all(label)
            && namespaces.contains(namespace)
    })
}

/// One gateway, from its hello to its end.
async fn gateway(context: Context, mut reports: Streaming<wire::GatewayReport>, updates: Updates) {
    let hello = tokio::time::timeout(Duration::from_secs(10), reports.message()).await;
    let Ok(Ok(Some(hello))) = hello else { return };
    let (boot_id, version) = match decode_report(&hello) {
        Ok(Report::Hello { boot_id, version }) => (word(&boot_id), word(&version)),
        Ok(_) | Err(_) => {
            drop(updates.send(Err(Status::invalid_argument("the first report is a hello"))).await);
            return;
        }
    };
    tracing::info!(gateway = boot_id, version, "gateway connected");
    let state = GatewayState { version, ..GatewayState::default() };
    context.reports.send_modify(|reports| drop(reports.insert(boot_id.clone(), Arc::new(state))));
    // Its report goes with its connection, whatever ends it.
    let _forget = Forget { boot_id: boot_id.clone(), reports: Arc::clone(&context.reports) };
    tokio::select! {
        () = listen(&context, &boot_id, &mut reports) => {}
        () = tell(&context.store, &updates) => {}
    }
    tracing::info!(gateway = boot_id, "gateway disconnected");
}

/// A word of a gateway, safe to show and to keep.
fn word(text: &str) -> String {
    clean(linkspan_runtime::text::cut(text, WORD_MAX)).into_owned()
}

struct Forget {
    boot_id: String,
    reports: Arc<watch::Sender<Reports>>,
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.reports.send_modify(|reports| drop(reports.remove(&self.boot_id)));
    }
}

/// Takes reports until the gateway goes.
async fn listen(context: &Context, boot_id: &str, reports: &mut Streaming<wire::GatewayReport>) {
    loop {
        let message = match reports.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(gateway = boot_id, error = status.message(), "a gateway's reports ended");
                return;
            }
        };
        let report = match decode_report(&message) {
            Ok(report) => report,
            Err(error) => {
                // One of a newer version, perhaps: the rest still counts.
                tracing::warn!(gateway = boot_id, %error, "a gateway's report cannot be read");
                continue;
            }
        };
        context.reports.send_if_modified(|all| {
            let Some(state) = all.get_mut(boot_id) else { return false };
            let mut next = state.as_ref().clone();
            match report {
                Report::Hello { .. } => return false,
                Report::Acknowledged { generation } => next.acknowledged = next.acknowledged.max(generation),
                Report::Rejected { reasons } => next.rejections = reasons,
                Report::Links { links } => next.links = Some(links),
            }
            if **state == next {
                return false;
            }
            *state = Arc::new(next);
            true
        });
    }
}

/// Sends everything once, then what changed, until the gateway goes.
async fn tell(store: &Store, updates: &Updates) {
    let mut newest = store.subscribe();
    // Nothing before the first complete state.
    if newest.wait_for(|generation| *generation > 0).await.is_err() {
        return;
    }
    let mut known = None;
    loop {
        newest.borrow_and_update();
        let update = store.since(known);
        let encoded = encode_updates(update.generation, update.reset, &update.upserts, &update.removals);
        let parts = match encoded {
            Ok(parts) => parts,
            Err(error) => {
                tracing::error!(%error, "an update cannot be written");
                return;
            }
        };
        for part in parts {
            if updates.send(Ok(part)).await.is_err() {
                return;
            }
        }
        known = Some(update.generation);
        tokio::time::sleep(UPDATE_PACE).await;
        tokio::select! {
            changed = newest.changed() => if changed.is_err() { return },
            () = updates.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests;
