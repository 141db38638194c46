//! TLS of the link: which ciphers, which certificates, who is believed.
//!
//! - In: the peers' trust bundles, this gateway's own certificate.
//! - Out: configurations for quinn: one client configuration for each peer, one server configuration for all.
//! - Refuses when: anything in [`TrustFailure`] holds. The word for it crosses to the other side in the close frame, so
//!   that both ends can say what is wrong.
//! - Never does: verify a peer against the roots of another, accept a session ticket or early data, fall back to TLS 1.2.
//!
//! ```text
//! dialling:  Link object -> PeerTrust -> verifier for this one peer
//! accepting: certificate -> URI SAN -> trust domain -> PeerTrust (or UnknownPeer) -> verify against its roots only
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{CipherSuite, SignatureScheme};
use tokio::sync::watch;

mod failure;
mod svid;
mod trust;

pub use failure::TrustFailure;
pub use svid::Svid;
pub use trust::{BundleError, PeerTrust};
pub(super) use trust::{Role, TrustStore};

/// The link protocol and its major version. Minor features are agreed in the hello.
pub const ALPN: &[u8] = b"linkspan/1";

/// How long after a new certificate a connection with the old one may still come into being: a handshake of 5 s, 5 s until the
/// peer's hello, and one for the ways between.
const LATE: Duration = Duration::from_secs(11);

/// The name that diallers send as SNI. TLS wants some name; identity is the URI SAN, and a constant tells observers
/// nothing.
pub(super) const SERVER_NAME: &str = "gateway.linkspan.internal";

/// The one cryptographic provider of the gateway: key exchange and signatures from aws-lc (X25519MLKEM768 first), the
/// AEADs from ring where the CPU has VAES without AVX-512: aws-lc's fast path needs AVX-512, ring's does not (+25 to 40 %
/// on such machines). AES-128-GCM comes first: it is the cheapest.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    if ring_is_faster() {
        provider.cipher_suites = rustls::crypto::ring::default_provider().cipher_suites;
    }
    let order = [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_AES_256_GCM_SHA384,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider.cipher_suites.retain(|suite| order.contains(&suite.suite()));
    provider.cipher_suites.sort_by_key(|suite| order.iter().position(|wanted| *wanted == suite.suite()));
    provider.kx_groups = vec![
        rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768,
        rustls::crypto::aws_lc_rs::kx_group::X25519,
        rustls::crypto::aws_lc_rs::kx_group::SECP256R1,
    ];
    Arc::new(provider)
}

#[cfg(target_arch = "x86_64")]
fn ring_is_faster() -> bool {
    std::arch::is_x86_feature_detected!("vaes") && !std::arch::is_x86_feature_detected!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
fn ring_is_faster() -> bool {
    false
}

/// This gateway's certificate of one purpose, replaced while connections stand. Existing connections keep the one of
/// their handshake: QUIC has no way to change it. So those who hold connections replace them at each change, and once more
/// when the handshakes that were under way at the change are over ([`Self::remind`]): nothing shows which of the two
/// certificates such a one has used.
#[derive(Default)]
pub struct OwnCertificate {
    current: ArcSwapOption<Current>,
    generation: watch::Sender<u64>,
}

struct Current {
    key: Arc<CertifiedKey>,
    not_after: SystemTime,
}

impl OwnCertificate {
    /// No certificate yet: handshakes fail until [`Self::replace`].
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Uses `key` for all handshakes from now on.
    pub fn replace(&self, key: Arc<CertifiedKey>, not_after: SystemTime) {
        self.current.store(Some(Arc::new(Current { key, not_after })));
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Tells of the last replacement once more, when every connection whose handshake began before it is known to its
    /// holder.
    pub async fn remind(&self) {
        tokio::time::sleep(LATE).await;
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// When the certificate in use ends; `None` while there is none.
    #[must_use]
    pub fn not_after(&self) -> Option<SystemTime> {
        self.current.load().as_ref().map(|current| current.not_after)
    }

    /// The size of the chain in bytes.
    pub(super) fn chain_len(&self) -> usize {
        self.current.load().as_ref().map_or(0, |current| current.key.cert.iter().map(|one| one.len()).sum())
    }

    /// Counts the replacements and the reminders of them; 0 while there is no certificate.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn key(&self) -> Option<Arc<CertifiedKey>> {
        self.current.load().as_ref().map(|current| Arc::clone(&current.key))
    }
}

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key never reaches a log.
        f.debug_struct("OwnCertificate").field("not_after", &self.not_after()).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.key()
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.key()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A certificate for as long as it holds, and none after that. The controller ends a handshake in which it is shown an expired
/// one; without one it asks for the token, so that a gateway whose certificate ended while nobody signed gets another.
#[derive(Debug)]
pub struct WhileValid(pub Arc<OwnCertificate>);

impl ResolvesClientCert for WhileValid {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let current = self.0.current.load();
        let current = current.as_ref().filter(|current| SystemTime::now() < current.not_after)?;
        Some(Arc::clone(&current.key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The crypto half of a dialler's configuration, for one peer.
pub(super) fn client_config(
    provider: &Arc<CryptoProvider>,
    clock: Arc<dyn TimeProvider>,
    trust: Arc<PeerTrust>,
    own: Arc<OwnCertificate>,
) -> Result<QuicClientConfig, rustls::Error> {
    let mut config = rustls::ClientConfig::builder_with_details(Arc::clone(provider), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust::ServerVerifier::new(trust, provider)))
        .with_client_cert_resolver(own);
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the verification against a bundle that may have changed (S-09).
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    QuicClientConfig::try_from(config).map_err(|_| no_initial_suite())
}

/// The crypto half of the listeners' configuration, for all peers.
pub(super) fn server_config(
    provider: &Arc<CryptoProvider>,
    clock: Arc<dyn TimeProvider>,
    trust: Arc<TrustStore>,
    own: Arc<OwnCertificate>,
) -> Result<QuicServerConfig, rustls::Error> {
    let mut config = rustls::ServerConfig::builder_with_details(Arc::clone(provider), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(trust::ClientVerifier::new(trust, provider)))
        .with_cert_resolver(own);
    config.alpn_protocols = vec![ALPN.to_vec()];
    // No tickets, no early data (S-09).
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    QuicServerConfig::try_from(config).map_err(|_| no_initial_suite())
}

fn no_initial_suite() -> rustls::Error {
    rustls::Error::General("the provider lacks TLS_AES_128_GCM_SHA256, which QUIC begins with".to_owned())
}

#[cfg(test)]
mod tests;
