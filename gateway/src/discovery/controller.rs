//! Where the controller is, and how it is reached: by the site's sockets, or over TLS from a pod.
//!
//! - In: paths or an address; on Kubernetes the cluster's root, the pod's ServiceAccount token, and the link's certificate.
//! - Out: a channel for configuration and certificates, pipes for the exchange.
//! - Refuses when: the other end of the TLS connection is not the controller of this cluster.
//! - Never does: keep a token: it is read for each use, because the kubelet renews it; send one without TLS.
//! - Numbers: [`CONNECT`].

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// For a connection and its handshake.
const CONNECT: Duration = Duration::from_secs(5);

/// For one address of a name that has several: in one cluster an answer takes milliseconds, and behind the address of a dead
/// node there may be that of the controller that leads now. Four of them fit into [`CONNECT`].
const ADDRESS: Duration = Duration::from_secs(1);

/// A controller that is stopped (SIGSTOP) is noticed by HTTP/2 pings, so that the call is open anew when it goes on.
const PING_EVERY: Duration = Duration::from_secs(10);

const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The application protocol of a pipe to a peer's controller.
const EXCHANGE: &[u8] = b"linkspan-exchange/1";

/// The application protocol of configuration and certificates: gRPC.
const CONFIGURATION: &[u8] = b"h2";

/// Both directions of a connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Where the controller is. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Controller {
    /// On the same host: the sockets in the site's state folder.
    Sockets {
        /// Configuration and certificates.
        configuration: PathBuf,
        /// The catalogue exchange.
        exchange: PathBuf,
    },
    /// In the same cluster.
    Port(Arc<Port>),
}

/// The controller's TLS port.
pub struct Port {
    /// `host:port`.
    pub address: String,
    /// The cluster's root certificates, PEM. Read for each connection: they may be rotated.
    pub roots: PathBuf,
    /// The pod's ServiceAccount token for the controller.
    pub token: PathBuf,
    /// The link's certificate, once there is one and while it holds: an expired one would end the handshake.
    pub certificate: Arc<dyn ResolvesClientCert>,
    /// Whether a certificate, whose chain was verified, is that of this cluster's controller: a workload has the same root.
    pub is_controller: Arc<dyn Fn(&CertificateDer<'_>) -> bool + Send + Sync>,
    /// Ciphers.
    pub provider: Arc<CryptoProvider>,
}

impl Controller {
    /// A channel for configuration and certificates, connected when first used. The controller need not be there yet.
    #[must_use]
    pub fn channel(&self) -> Channel {
        let controller = self.clone();
        // The URI names nothing: the connector knows where to go.
        Endpoint::from_static("http://controller.invalid")
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(service_fn(move |_: Uri| {
                let controller = controller.clone();
                async move { Ok::<_, io::Error>(TokioIo::new(controller.configuration().await?)) }
            }))
    }

    /// A connection for configuration and certificates.
    async fn configuration(&self) -> io::Result<Box<dyn Io>> {
        match self {
            Self::Sockets { configuration, .. } => Ok(Box::new(UnixStream::connect(configuration).await?)),
            Self::Port(port) => port.connect(CONFIGURATION).await,
        }
    }

    /// A pipe to the peers' controllers.
    ///
    /// # Errors
    /// When the controller cannot be reached, or over TLS before this gateway has its certificate.
    pub async fn exchange(&self) -> io::Result<Box<dyn Io>> {
        match self {
            Self::Sockets { exchange, .. } => Ok(Box::new(UnixStream::connect(exchange).await?)),
            Self::Port(port) => port.connect(EXCHANGE).await,
        }
    }

    /// What proves this gateway to the controller before it has a certificate; `None` where nothing is needed.
    ///
    /// # Errors
    /// When the token cannot be read.
    pub fn token(&self) -> io::Result<Option<String>> {
        match self {
            Self::Sockets { .. } => Ok(None),
            Self::Port(port) => Ok(Some(fs::read_to_string(&port.token)?.trim().to_owned())),
        }
    }
}

impl std::fmt::Debug for Port {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Port").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Port {
    async fn connect(&self, protocol: &[u8]) -> io::Result<Box<dyn Io>> {
        let connecting = async {
            let config = self.config(protocol).map_err(io::Error::other)?;
            let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            let stream = self.reach().await?;
            stream.set_nodelay(true)?;
            let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
            let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            if leaf.is_some_and(|leaf| (self.is_controller)(leaf)) {
                Ok(Box::new(stream) as Box<dyn Io>)
            } else {
                Err(io::Error::other("the other end is not the controller of this cluster"))
            }
        };
        tokio::time::timeout(CONNECT, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// The first of the controllers that has the port open: the one that leads. The others refuse at once.
    async fn reach(&self) -> io::Result<TcpStream> {
        let addresses: Vec<_> = tokio::net::lookup_host(&self.address).await?.collect();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name of the controllers has no address");
        for address in &addresses {
            let only = addresses.len() == 1;
            match tokio::time::timeout(if only { CONNECT } else { ADDRESS }, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    fn config(&self, protocol: &[u8]) -> Result<ClientConfig, ConfigError> {
        let text = fs::read(&self.roots)?;
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(&text) {
            roots.add(root.map_err(|_| ConfigError::Roots)?)?;
        }
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider)).build()?;
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(verifier);
        let mut config = builder.with_client_cert_resolver(Arc::clone(&self.certificate));
        config.alpn_protocols = vec![protocol.to_vec()];
        // No session may outlive a change of trust (S-09).
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// Why no connection can be tried.
#[derive(Debug, thiserror::Error)]
enum ConfigError {
    #[error("the cluster's root certificates cannot be read: {0}")]
    File(#[from] io::Error),
    #[error("the cluster's root certificates are no PEM")]
    Roots,
    #[error("the cluster's root certificates are of no use: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}
