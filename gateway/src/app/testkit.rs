//! A controller in place of the real one: signs what it is asked to, pushes what the test says, keeps what it is told.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::Stream;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use linkspan_proto::configuration::{Report, Resource, ResourceKey, decode_report, encode_updates};
use linkspan_proto::generated::configuration::configuration_server::{Configuration, ConfigurationServer};
use linkspan_proto::generated::configuration::{GatewayReport, Purpose, SignRequest, SignResponse, Update};
use linkspan_proto::identity::SpiffeId;
use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType};
use tokio::net::UnixListener;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tonic::{Request, Response, Status, Streaming};

use crate::link::testkit::Authority;

/// For the streams of one connection.
#[derive(Clone)]
struct TokioExecutor;

impl<F> hyper::rt::Executor<F> for TokioExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}

/// What is in force, and the change that led to it.
#[derive(Clone, Default)]
struct Pushed {
    generation: u64,
    all: Vec<Resource>,
    upserts: Vec<Resource>,
    removals: Vec<ResourceKey>,
}

/// The controller of one cluster.
pub(crate) struct Controller {
    service: Service,
    reports: mpsc::UnboundedReceiver<Report>,
    server: Option<JoinHandle<()>>,
    socket: std::path::PathBuf,
}

/// What a certificate was asked for, and for which names.
type Signed = (Purpose, Vec<String>);

#[derive(Clone)]
struct Service {
    authority: Arc<Authority>,
    pushed: Arc<watch::Sender<Pushed>>,
    reports: mpsc::UnboundedSender<Report>,
    life: Arc<Mutex<Duration>>,
    signed: Arc<watch::Sender<Vec<Signed>>>,
}

impl Controller {
    pub(crate) fn start(socket: &Path, authority: Arc<Authority>) -> Self {
        let (sender, reports) = mpsc::unbounded_channel();
        let service = Service {
            authority,
            pushed: Arc::default(),
            reports: sender,
            life: Arc::new(Mutex::new(Duration::from_secs(3600))),
            signed: Arc::default(),
        };
        let mut controller = Self { service, reports, server: None, socket: socket.to_owned() };
        controller.resume();
        controller
    }

    /// Starts answering, again.
    pub(crate) fn resume(&mut self) {
        std::fs::remove_file(&self.socket).ok();
        let listener = UnixListener::bind(&self.socket).unwrap();
        let service = ConfigurationServer::new(self.service.clone());
        self.server = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = TowerToHyperService::new(service.clone());
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor)
                    .serve_connection(TokioIo::new(stream), service);
                // Dropped with the set: a killed controller answers nobody.
                connections.spawn(async move { drop(serving.await) });
            }
        }));
    }

    /// Ends like a killed process.
    pub(crate) async fn kill(&mut self) {
        let server = self.server.take().unwrap();
        server.abort();
        server.await.ok();
        std::fs::remove_file(&self.socket).ok();
    }

    /// After [`Self::kill`]: waits until the gateway asks in vain, so that it knows.
    pub(crate) async fn missed(&self) {
        let listener = UnixListener::bind(&self.socket).unwrap();
        let asked = tokio::time::timeout(crate::link::testkit::PATIENCE, listener.accept());
        drop(asked.await.expect("the gateway looks for its controller").unwrap());
        std::fs::remove_file(&self.socket).ok();
    }

    /// The whole configuration from now on.
    pub(crate) fn push(&self, resources: Vec<Resource>) {
        self.service.pushed.send_modify(|pushed| {
            let gone = |old: &Resource| resources.iter().all(|new| new.key() != old.key());
            pushed.removals = pushed.all.iter().filter(|old| gone(old)).map(Resource::key).collect();
            pushed.upserts = resources.iter().filter(|new| !pushed.all.contains(new)).cloned().collect();
            pushed.all = resources;
            pushed.generation += 1;
        });
    }

    /// How long certificates live that are signed from now on.
    pub(crate) async fn sign_for(&self, life: Duration) {
        *self.service.life.lock().await = life;
    }

    /// What was signed so far.
    pub(crate) fn signed(&self) -> watch::Receiver<Vec<(Purpose, Vec<String>)>> {
        self.service.signed.subscribe()
    }

    /// Waits for a report.
    pub(crate) async fn report<T>(&mut self, wanted: impl Fn(&Report) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let report = self.reports.recv().await.expect("the service lives");
                if let Some(found) = wanted(&report) {
                    return found;
                }
            }
        };
        tokio::time::timeout(crate::link::testkit::PATIENCE, waiting).await.expect("the report comes")
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
    }
}

#[tonic::async_trait]
impl Configuration for Service {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<Update, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<GatewayReport>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let mut incoming = request.into_inner();
        let reports = self.reports.clone();
        tokio::spawn(async move {
            while let Ok(Some(report)) = incoming.message().await {
                reports.send(decode_report(&report).unwrap()).ok();
            }
        });
        let mut pushed = self.pushed.subscribe();
        let (sender, mut receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            // Like the real one, it keeps silent until it knows anything.
            pushed.wait_for(|pushed| pushed.generation > 0).await.ok();
            let mut reset = true;
            loop {
                let now = pushed.borrow_and_update().clone();
                let upserts = if reset { &now.all } else { &now.upserts };
                let removals: &[ResourceKey] = if reset { &[] } else { &now.removals };
                for update in encode_updates(now.generation, reset, upserts, removals).unwrap() {
                    if sender.send(Ok(update)).await.is_err() {
                        return;
                    }
                }
                reset = false;
                if pushed.changed().await.is_err() {
                    return;
                }
            }
        });
        let updates = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        Ok(Response::new(Box::pin(updates)))
    }

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let request = request.into_inner();
        let purpose = request.purpose();
        let mut csr = CertificateSigningRequestParams::from_der(&request.csr_der.to_vec().into())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let now = SystemTime::now();
        let not_after = now + *self.life.lock().await;
        let domain = &self.authority.trust_domain;
        let mut names = vec![SanType::URI(SpiffeId::gateway(domain).as_str().try_into().unwrap())];
        for name in &request.dns_names {
            names.push(SanType::DnsName(name.as_str().try_into().unwrap()));
        }
        csr.params.subject_alt_names = names;
        csr.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        csr.params.not_before = (now - Duration::from_secs(60)).into();
        csr.params.not_after = not_after.into();
        let certificate = self.authority.sign(&csr);
        self.signed.send_modify(|signed| signed.push((purpose, request.dns_names)));
        let not_after_unix = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        Ok(Response::new(SignResponse {
            chain_der: vec![certificate.to_vec().into()],
            not_after_unix: i64::try_from(not_after_unix).unwrap(),
            trust_bundle_pem: self.authority.bundle(),
        }))
    }
}
