//! Certificates of this gateway: keys made here, signed by the cluster's own controller, renewed at half of their life.
//!
//! ```text
//! key (memory only) -> CSR -> controller.sock Sign -> chain -> OwnCertificate -> handshakes from now on
//!        ^------------------ at half of its life, or when the names change ---------------/
//! ```
//!
//! - In: the controller's socket; for the mTLS port the names of mirrors.
//! - Out: [`OwnCertificate`]s for the link and for the mTLS port, the cluster's own trust bundle.
//! - Refuses when: what comes back is not for our key, or not the identity of a gateway of this trust domain: the
//!   certificate in use stays.
//! - Never does: write a key to disk, send one anywhere, use one key for two purposes.
//! - Numbers: renewal at half of the life less up to a tenth of it, so that gateways do not renew in step; alarm at a third.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use linkspan_proto::configuration::Resource;
use linkspan_proto::generated::configuration::configuration_client::ConfigurationClient;
use linkspan_proto::generated::configuration::{Purpose, SignRequest, SignResponse};
use linkspan_proto::identity::{SpiffeId, TrustDomain};
use linkspan_runtime::backoff::Backoff;
use linkspan_runtime::metrics::Registry;
use linkspan_runtime::metrics::prometheus_client::collector::Collector;
use linkspan_runtime::metrics::prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use linkspan_runtime::metrics::prometheus_client::metrics::MetricType;
use linkspan_runtime::metrics::prometheus_client::metrics::gauge::ConstGauge;
use linkspan_runtime::task;
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::discovery::{Controller, Snapshot};
use crate::link::tls::{OwnCertificate, Svid, provider};

/// Pauses between attempts while there is no certificate, and while an old one still holds.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// One call of `Sign`.
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);

/// Names in the certificate of the mTLS port, which must stay below what a TLS handshake carries in a few packets. The
/// controller signs no more either.
const MAX_NAMES: usize = 200;

/// Names that change in quick succession are signed once.
const SETTLE: Duration = Duration::from_millis(500);

/// Where the certificates of this gateway come from.
#[derive(Debug)]
pub struct Identity {
    controller: Controller,
    trust_domain: TrustDomain,
    provider: Arc<CryptoProvider>,
    link: Arc<OwnCertificate>,
    local: Arc<OwnCertificate>,
    bundle: watch::Sender<Option<Arc<str>>>,
}

/// Why no certificate could be had.
#[derive(Debug, thiserror::Error)]
enum SignError {
    #[error("the controller does not sign: {}", .0.message())]
    Controller(#[from] tonic::Status),
    #[error("the controller did not answer in time")]
    Slow,
    #[error("the ServiceAccount token cannot be read: {0}")]
    Token(std::io::Error),
    #[error("no key could be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error("the controller's answer is of no use: {0}")]
    Answer(&'static str),
    #[error("the controller's answer is of no use: {0}")]
    Tls(#[from] rustls::Error),
}

/// A signed certificate, and when it ends.
struct Signed {
    key: Arc<CertifiedKey>,
    not_after: SystemTime,
    /// How long it lives from now on. From the clock of this machine alone, once: a clock that is set later changes no
    /// renewal.
    life: Duration,
    bundle: Arc<str>,
}

impl Identity {
    /// No certificates yet. `link` is the one that the controller is shown, too, once it is there.
    #[must_use]
    pub fn new(controller: Controller, link: Arc<OwnCertificate>, trust_domain: TrustDomain) -> Self {
        Self {
            controller,
            trust_domain,
            provider: provider(),
            link,
            local: OwnCertificate::new(),
            bundle: watch::Sender::new(None),
        }
    }

    /// What peers are shown.
    #[must_use]
    pub fn link(&self) -> Arc<OwnCertificate> {
        Arc::clone(&self.link)
    }

    /// What clients of the mTLS port are shown.
    #[must_use]
    pub fn local(&self) -> Arc<OwnCertificate> {
        Arc::clone(&self.local)
    }

    /// Roots of this cluster's own trust domain, PEM: who vouches for local clients.
    #[must_use]
    pub fn bundle(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.bundle.subscribe()
    }

    /// Shows when the certificates end.
    pub fn register(&self, registry: &Registry) {
        registry.collector(Expiry { link: self.link(), local: self.local() });
    }

    /// Keeps the link's certificate fresh. Runs until dropped.
    pub async fn run_link(self: Arc<Self>) {
        let (_names, never) = watch::channel(BTreeSet::new());
        self.keep(Purpose::Link, Arc::clone(&self.link), never).await;
    }

    /// Keeps the mTLS port's certificate fresh, for the names of the mirrors in `snapshots`. Runs until dropped.
    pub async fn run_local(self: Arc<Self>, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        let (names, wanted) = watch::channel(BTreeSet::new());
        let follow = async {
            loop {
                let present = names_of(&snapshots.borrow_and_update());
                names.send_if_modified(|old| {
                    let changed = *old != present;
                    if changed && present.len() == MAX_NAMES {
                        let message = "no place for more names in the mTLS port's certificate; some may be left out";
                        tracing::warn!(limit = MAX_NAMES, message);
                    }
                    *old = present;
                    changed
                });
                if snapshots.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(follow, self.keep(Purpose::LocalServer, Arc::clone(&self.local), wanted));
    }

    async fn keep(
        &self,
        purpose: Purpose,
        certificate: Arc<OwnCertificate>,
        mut names: watch::Receiver<BTreeSet<String>>,
    ) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            let wanted = names.borrow_and_update().clone();
            // Without a name the mTLS port has nothing to serve.
            if purpose == Purpose::LocalServer && wanted.is_empty() {
                if names.changed().await.is_err() {
                    return;
                }
                continue;
            }
            match self.sign(purpose, &wanted).await {
                Ok(signed) => {
                    backoff.reset();
                    let renewed = purpose == Purpose::Link && certificate.not_after().is_some();
                    certificate.replace(signed.key, signed.not_after);
                    if renewed {
                        let certificate = Arc::clone(&certificate);
                        // Detached: ends by itself.
                        drop(task::spawn("certificate_reminder", async move { certificate.remind().await }));
                    }
                    self.bundle.send_if_modified(|old| {
                        let changed = old.as_ref() != Some(&signed.bundle);
                        *old = Some(signed.bundle);
                        changed
                    });
                    tracing::info!(
                        purpose = purpose.as_str_name(),
                        life_seconds = signed.life.as_secs(),
                        "certificate signed"
                    );
                    wait(renewal(signed.life, rand::random()), &mut names).await;
                }
                Err(error) => {
                    self.complain(purpose, &certificate, &error);
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }

    /// Says more loudly what is more urgent.
    fn complain(&self, purpose: Purpose, certificate: &OwnCertificate, error: &SignError) {
        let purpose = purpose.as_str_name();
        let left = certificate.not_after().and_then(|end| end.duration_since(SystemTime::now()).ok());
        match left {
            Some(left) => tracing::warn!(purpose, %error, left_seconds = left.as_secs(), "certificate not renewed"),
            None if certificate.not_after().is_some() => {
                tracing::error!(purpose, %error, "the certificate has expired and cannot be renewed");
            }
            None => tracing::debug!(purpose, %error, "no certificate yet"),
        }
    }

    async fn sign(&self, purpose: Purpose, names: &BTreeSet<String>) -> Result<Signed, SignError> {
        // P-256: rcgen's default, and what every peer verifies fast.
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?;
        let request = SignRequest {
            csr_der: csr.der().to_vec().into(),
            purpose: purpose.into(),
            dns_names: names.iter().cloned().collect(),
        };
        let mut request = tonic::Request::new(request);
        if let Some(token) = self.controller.token().map_err(SignError::Token)? {
            let bearer = format!("Bearer {token}").parse().map_err(|_| SignError::Answer("the token is no text"))?;
            request.metadata_mut().insert("authorization", bearer);
        }
        let mut client: ConfigurationClient<Channel> = ConfigurationClient::new(self.controller.channel());
        let signing = client.sign(request);
        let response = tokio::time::timeout(SIGN_TIMEOUT, signing).await.map_err(|_| SignError::Slow)??.into_inner();
        self.check(purpose, &key, response)
    }

    fn check(&self, purpose: Purpose, key: &KeyPair, response: SignResponse) -> Result<Signed, SignError> {
        let chain: Vec<_> = response.chain_der.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let leaf = chain.first().ok_or(SignError::Answer("it holds no certificate"))?;
        let svid = Svid::read(leaf).map_err(|_| SignError::Answer("the certificate is not that of a workload"))?;
        if purpose == Purpose::Link && svid.id != SpiffeId::gateway(&self.trust_domain) {
            return Err(SignError::Answer("the certificate is not that of a gateway of this cluster"));
        }
        let not_after = svid.not_after;
        let life = not_after
            .duration_since(SystemTime::now())
            .map_err(|_| SignError::Answer("the certificate has expired already; is the clock right?"))?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = self.provider.key_provider.load_private_key(private)?;
        let key = CertifiedKey::new(chain, signing);
        key.keys_match()?;
        Ok(Signed { key: Arc::new(key), not_after, life, bundle: response.trust_bundle_pem.into() })
    }
}

/// Until the renewal is due or the names have changed.
async fn wait(renewal: Duration, names: &mut watch::Receiver<BTreeSet<String>>) {
    let changed = async {
        if names.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(SETTLE).await;
    };
    tokio::select! {
        () = tokio::time::sleep(renewal) => {}
        () = changed => {}
    }
}

/// When to renew: between four and five tenths of the life. `draw` is even over its range.
fn renewal(life: Duration, draw: u32) -> Duration {
    let tenths = 4.0 + f64::from(draw) / f64::from(u32::MAX);
    (life.mul_f64(tenths / 10.0)).max(Duration::from_secs(1))
}

/// A wildcard for each parent of a mirrored name, so that a new service in a known namespace needs no new certificate;
/// and one below each name with several ports, which are called `_<port>.<name>` on the mTLS port.
fn names_of(snapshot: &Snapshot) -> BTreeSet<String> {
    let mirrors = || {
        snapshot.resources().filter_map(|resource| match resource {
            Resource::Mirror(mirror) => Some(mirror),
            _ => None,
        })
    };
    let parents = mirrors().filter_map(|mirror| mirror.name.split_once('.').map(|(_, parent)| parent));
    let several = mirrors().filter(|mirror| mirror.ports.len() > 1).map(|mirror| mirror.name.as_str());
    let mut names = BTreeSet::new();
    for name in parents.chain(several) {
        if names.len() == MAX_NAMES {
            break;
        }
        names.insert(format!("*.{name}"));
    }
    names
}

/// `certificate_expiry_seconds{purpose}`: when each certificate ends, Unix time; absent while there is none.
#[derive(Debug)]
struct Expiry {
    link: Arc<OwnCertificate>,
    local: Arc<OwnCertificate>,
}

impl Collector for Expiry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let help = "When the certificate ends, in seconds since the Unix epoch";
        let mut family = encoder.encode_descriptor("certificate_expiry_seconds", help, None, MetricType::Gauge)?;
        for (purpose, certificate) in [("link", &self.link), ("local_server", &self.local)] {
            let end = certificate.not_after().and_then(|end| end.duration_since(SystemTime::UNIX_EPOCH).ok());
            if let Some(end) = end {
                ConstGauge::new(end.as_secs_f64()).encode(family.encode_family(&[("purpose", purpose)])?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
