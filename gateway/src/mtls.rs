//! The mTLS port: local clients that prove who they are with a certificate of their own.
//!
//! ```text
//! ClientConnection --handshake--> SNI -> Route      certificate -> Source{identity, mtls}
//! ```
//!
//! - In: a connection to the mTLS port.
//! - Out: the same connection, decrypted, with its route and the caller's identity at assurance `mtls`, and its certificate.
//! - Refuses when: there is no TLS 1.3 handshake within [`HANDSHAKE`]; the client shows no certificate, or one that is not
//!   signed by this cluster's own root, is no workload's SVID, or names another trust domain; the server name is not a
//!   mirrored one.
//! - Never does: end the TLS of mirrored ports, which passes through untouched; accept a session ticket, which would
//!   outlive a change of trust (S-09); look at a client's name before its certificate was verified, except to offer the
//!   right application protocol.
//! - Numbers: [`HANDSHAKE`].
//!
//! The server name is the mirrored name for the mirror's first port, or `_<port>.<mirrored name>` with the number or the
//! name of another port.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use linkspan_proto::identity::{Assurance, Certificate, MAX_CERTIFICATE, Source, TrustDomain};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{Acceptor, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use tokio_rustls::LazyConfigAcceptor;

use crate::detect::Declared;
use crate::link::tls::{Svid, TrustFailure};
use crate::listener::{ClientConnection, ClientIo};
use crate::outcome::Outcome;
use crate::route::{Route, RouteTable, Routed};

/// From the first byte to the end of the handshake (S-27).
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// Why a client was not let in.
#[derive(Debug, thiserror::Error)]
pub enum MtlsError {
    /// The handshake did not end in time.
    #[error("no TLS handshake within 5 s")]
    Slow,
    /// The socket failed or closed during the handshake.
    #[error("the client left during the handshake: {0}")]
    Closed(std::io::Error),
    /// It is no TLS 1.3, or broken.
    #[error("the handshake failed: {0}")]
    Handshake(rustls::Error),
    /// The certificate is missing or not believed.
    #[error("the client's certificate was refused: {0}")]
    Untrusted(rustls::Error),
    /// No mirror of this name, or no name.
    #[error("{0} is not a mirrored name")]
    UnknownName(String),
}

impl MtlsError {
    /// How the connection ends by it.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Closed(_) => Outcome::ClientGone,
            Self::Slow | Self::Handshake(_) => Outcome::ClientInvalid,
            Self::Untrusted(_) => Outcome::ClientUntrusted,
            Self::UnknownName(_) => Outcome::NoRoute,
        }
    }
}

/// Takes connections of the mTLS port.
pub struct Server {
    clients: Arc<Clients>,
    /// For ports that are declared HTTP/2: prefers it.
    http2_first: Arc<ServerConfig>,
    /// For all others: HTTP/2 only for a client that offers nothing else, since the version goes through to the backend.
    http1_first: Arc<ServerConfig>,
    /// For clients that offer no HTTP at all.
    bare: Arc<ServerConfig>,
}

impl Server {
    /// A server that shows `certificate` and believes nobody until [`Self::trust`].
    ///
    /// # Errors
    /// When the provider has no TLS 1.3.
    pub fn new(
        trust_domain: TrustDomain,
        certificate: Arc<dyn ResolvesServerCert>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, rustls::Error> {
        let algorithms = provider.signature_verification_algorithms;
        let clients = Arc::new(Clients {
            trust_domain,
            provider: Arc::clone(&provider),
            chain: ArcSwapOption::empty(),
            algorithms,
        });
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::clone(&clients) as Arc<dyn ClientCertVerifier>)
            .with_cert_resolver(certificate);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        let with = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        Ok(Self {
            clients,
            http2_first: with(&[b"h2", b"http/1.1"]),
            http1_first: with(&[b"http/1.1", b"h2"]),
            bare: with(&[]),
        })
    }

    /// Believes certificates under these roots, and no others, from the next handshake on.
    ///
    /// # Errors
    /// When the PEM text is not readable or holds no usable root; what was believed before stays.
    pub fn trust(&self, bundle: &str) -> Result<(), TrustFailure> {
        self.clients.replace(bundle)
    }

    /// Does the handshake and finds out who calls what.
    ///
    /// # Errors
    /// When the client is not let in; it has been told by a TLS alert, or its connection was cut.
    pub async fn accept(
        &self,
        table: &ArcSwap<RouteTable>,
        conn: ClientConnection,
    ) -> Result<(ClientConnection, Routed), MtlsError> {
        let ClientConnection { io, client, listen, worker, probe, permit } = conn;
        let tcp = io.into_tcp().map_err(|_| MtlsError::Closed(std::io::ErrorKind::InvalidInput.into()))?;
        let believed = self.clients.chain.load_full();
        let handshake = async {
            let start = LazyConfigAcceptor::new(Acceptor::default(), tcp).await.map_err(failed)?;
            let hello = start.client_hello();
            let name = hello.server_name().unwrap_or_default().to_owned();
            let http =
                hello.alpn().is_some_and(|mut offered| offered.any(|protocol| matches!(protocol, b"h2" | b"http/1.1")));
            let config = self.config(table.load().by_server_name(&name).map(AsRef::as_ref), http);
            let stream = start.into_stream(config).await.map_err(failed)?;
            Ok((stream, name))
        };
        let (stream, name) = tokio::time::timeout(HANDSHAKE, handshake).await.map_err(|_| MtlsError::Slow)??;
        // The verifier has read this certificate already; reading it again is cheaper than carrying it out of rustls.
        let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let source = leaf.ok_or(rustls::Error::NoCertificatesPresented).and_then(|leaf| Ok(source(leaf)?));
        // Roots that were replaced during the handshake may have judged it.
        self.clients
            .judge_again(believed.as_ref(), stream.get_ref().1.peer_certificates())
            .map_err(MtlsError::Untrusted)?;
        let source = source.map_err(MtlsError::Untrusted)?;
        let io = ClientIo::tls(stream);
        let Some(route) = table.load().by_server_name(&name).map(Arc::clone) else {
            io.reset();
            return Err(MtlsError::UnknownName(if name.is_empty() { "no server name".to_owned() } else { name }));
        };
        let routed = Routed { route, source };
        Ok((ClientConnection { io, client, listen, worker, probe, permit }, routed))
    }

    fn config(&self, route: Option<&Route>, http: bool) -> Arc<ServerConfig> {
        let declared = route.map(|route| Declared::of(route.app_protocol(), route.port()));
        Arc::clone(match (http, declared) {
            (false, _) => &self.bare,
            (true, Some(Declared::Http2)) => &self.http2_first,
            (true, _) => &self.http1_first,
        })
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("clients", &self.clients).finish_non_exhaustive()
    }
}

/// Who shows this certificate. It goes along to the backend unless it is too large to be carried; the identity does anyway.
fn source(leaf: &CertificateDer<'_>) -> Result<Source, TrustFailure> {
    let certificate = Certificate::new(leaf);
    if certificate.is_none() {
        tracing::debug!(
            bytes = leaf.len(),
            limit = MAX_CERTIFICATE,
            "a client's certificate is too large to be carried"
        );
    }
    Ok(Source { identity: Svid::read(leaf)?.id, assurance: Assurance::Mtls, certificate })
}

/// tokio-rustls wraps the TLS error into an I/O error.
fn failed(error: std::io::Error) -> MtlsError {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).cloned();
    match tls {
        Some(error @ (rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)) => {
            MtlsError::Untrusted(error)
        }
        Some(error) => MtlsError::Handshake(error),
        None => MtlsError::Closed(error),
    }
}

/// Decides who is a workload of this cluster.
struct Clients {
    trust_domain: TrustDomain,
    provider: Arc<CryptoProvider>,
    /// Verifies the chain; empty until the first bundle is in.
    chain: ArcSwapOption<Chain>,
    algorithms: WebPkiSupportedAlgorithms,
}

struct Chain(Arc<dyn ClientCertVerifier>);

impl Clients {
    /// Verifies the chain of a finished handshake, unless the roots are still those of its beginning.
    fn judge_again(
        &self,
        believed: Option<&Arc<Chain>>,
        shown: Option<&[CertificateDer<'_>]>,
    ) -> Result<(), rustls::Error> {
        let now = self.chain.load();
        if believed.map(Arc::as_ptr) == now.as_ref().map(Arc::as_ptr) {
            return Ok(());
        }
        let (leaf, above) = shown.and_then(<[_]>::split_first).ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verify_client_cert(leaf, above, UnixTime::now()).map(|_| ())
    }

    fn replace(&self, bundle: &str) -> Result<(), TrustFailure> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            let certificate = certificate.map_err(|_| TrustFailure::InvalidCertificate)?;
            roots.add(certificate).map_err(|_| TrustFailure::InvalidCertificate)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .clear_root_hint_subjects()
            .build()
            .map_err(|_| TrustFailure::InvalidCertificate)?;
        self.chain.store(Some(Arc::new(Chain(verifier))));
        Ok(())
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let svid = Svid::read(leaf)?;
        if *svid.id.trust_domain() != self.trust_domain {
            return Err(TrustFailure::TrustDomainMismatch.into());
        }
        let chain = self.chain.load();
        let chain = chain.as_ref().ok_or(TrustFailure::UnknownPeer)?;
        chain.0.verify_client_cert(leaf, above, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("the mTLS port speaks TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
