//! The TLS of the gateways' port: who is believed, and the controller's own certificate, renewed at half of its life.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use linkspan_proto::identity::SpiffeId;
use linkspan_runtime::backoff::Backoff;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::extensions::GeneralName;

use crate::ca::{Ca, CaError};

/// The application protocol of a pipe to a peer's controller.
pub const EXCHANGE: [u8; 19] = *b"linkspan-exchange/1";
/// The application protocol of configuration and certificates: gRPC.
pub const CONFIGURATION: [u8; 2] = *b"h2";
/// Between two tries to renew.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What both ends of the port stand on: the cluster's own authority.
pub struct Authority {
    ca: Arc<Ca>,
    gateway: SpiffeId,
    names: Vec<String>,
    current: Arc<Current>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug, Default)]
struct Current(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// Why there is no certificate for the port.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The authority did not sign.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The TLS library did not take it.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

impl Authority {
    /// With a first certificate for these DNS names.
    ///
    /// # Errors
    /// When none can be made.
    pub fn new(ca: Arc<Ca>, names: Vec<String>) -> Result<Self, AuthorityError> {
        let gateway = SpiffeId::gateway(ca.trust_domain());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let authority = Self { ca, gateway, names, current: Arc::default(), provider };
        authority.renew()?;
        Ok(authority)
    }

    /// Makes a new certificate; says when it ends.
    fn renew(&self) -> Result<SystemTime, AuthorityError> {
        let (issued, key) = self.ca.issue_controller(&self.names)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        let signing = self.provider.key_provider.load_private_key(private)?;
        self.current.0.store(Some(Arc::new(CertifiedKey::new(issued.chain, signing))));
        Ok(issued.not_after)
    }

    /// Keeps the certificate fresh. Runs until dropped.
    pub async fn run(self: Arc<Self>) {
        let mut pause = Backoff::new(RETRY.0, RETRY.1);
        // The first one was made when this was.
        let mut wait = crate::ca::LEAF_LIFE / 2;
        loop {
            tokio::time::sleep(wait).await;
            wait = match self.renew() {
                Ok(not_after) => {
                    pause.reset();
                    not_after.duration_since(SystemTime::now()).unwrap_or_default() / 2
                }
                Err(error) => {
                    tracing::error!(%error, "the certificate of the gateways' port is not renewed; trying again");
                    pause.next()
                }
            };
        }
    }

    /// Who is believed: this cluster's root and nobody else; a caller may come without a certificate.
    pub(super) fn server_config(&self) -> Result<ServerConfig, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.root().clone())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![CONFIGURATION.to_vec(), EXCHANGE.to_vec()];
        // No ticket may outlive a change of trust (S-09).
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// Whether a certificate, whose chain was verified, is that of a gateway of this cluster: exactly one URI name, the
    /// gateways' (S-05).
    pub(super) fn is_gateway(&self, leaf: &CertificateDer<'_>) -> bool {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(leaf) else { return false };
        let Ok(Some(names)) = parsed.subject_alternative_name() else { return false };
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        uris.next() == Some(self.gateway.as_str()) && uris.next().is_none() && !parsed.is_ca()
    }
}
