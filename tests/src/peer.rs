//! A peer made by hand: valid certificates, and anything at all inside its streams.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use linkspan_proto::control::{self, ControlMessage, Hello, VERSION};
use linkspan_proto::names::ClusterName;
use linkspan_proto::stream_header::{StreamHeader, StreamKind};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, RecvStream, SendStream, TransportConfig, VarInt};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

/// A cluster's root and what it signs.
pub struct Authority {
    /// The trust domain.
    pub trust_domain: String,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// A fresh root for `trust_domain`.
    ///
    /// # Panics
    /// Never with names that are valid.
    pub fn new(trust_domain: &str) -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))];
        let pem = params.self_signed(&key).expect("root").pem();
        Self { trust_domain: trust_domain.to_owned(), issuer: Issuer::new(params, key), pem }
    }

    /// The root certificate, PEM.
    pub fn bundle(&self) -> &str {
        &self.pem
    }

    /// A leaf with the URI names `uris`, whatever they are.
    ///
    /// # Panics
    /// When a name is not ASCII.
    pub fn leaf(&self, uris: &[&str]) -> Identity {
        self.leaf_of(uris, CertificateParams::default())
    }

    /// The same for the years from `from` up to `until`.
    ///
    /// # Panics
    /// When a name is not ASCII.
    pub fn leaf_between(&self, uris: &[&str], from: i32, until: i32) -> Identity {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        self.leaf_of(uris, params)
    }

    fn leaf_of(&self, uris: &[&str], mut params: CertificateParams) -> Identity {
        let key = KeyPair::generate().expect("key");
        params.subject_alt_names = uris.iter().map(|u| uri(u)).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("leaf");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS #8");
        (vec![certificate.der().clone()], key)
    }

    /// The leaf of the cluster's gateway.
    ///
    /// # Panics
    /// When the trust domain is not ASCII.
    pub fn gateway(&self) -> Identity {
        self.leaf(&[&format!("spiffe://{}/ns/linkspan/sa/gateway", self.trust_domain)])
    }

    /// The Link manifest by which a site trusts this authority as the cluster `cluster`, which dials by itself.
    pub fn link(&self, cluster: &str) -> String {
        self.link_at(cluster, &[])
    }

    /// The same where the site dials these addresses.
    pub fn link_at(&self, cluster: &str, addresses: &[SocketAddr]) -> String {
        let addresses: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
        let addresses = addresses.join(", ");
        let bundle: String = self.pem.lines().map(|line| format!("    {line}\n")).collect();
        format!(
            "apiVersion: linkspan.io/v1alpha1\nkind: Link\nmetadata: {{name: {cluster}}}\nspec:\n  \
             trustDomain: {}\n  addresses: [{addresses}]\n  trustBundle: |\n{bundle}",
            self.trust_domain
        )
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

/// A certificate chain, leaf first, and the leaf's key.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Puts an identity into a folder, for a program that [`load`]s it.
///
/// # Errors
/// When the folder cannot be written.
pub fn save(identity: &Identity, dir: &Path) -> io::Result<()> {
    let leaf = identity.0.first().ok_or(io::ErrorKind::NotFound)?;
    std::fs::write(dir.join("leaf.der"), leaf)?;
    std::fs::write(dir.join("key.der"), identity.1.secret_der())
}

/// What [`save`] has put there.
///
/// # Errors
/// When it is not there.
pub fn load(dir: &Path) -> io::Result<Identity> {
    let leaf = CertificateDer::from(std::fs::read(dir.join("leaf.der"))?);
    let key = PrivateKeyDer::try_from(std::fs::read(dir.join("key.der"))?).map_err(io::Error::other)?;
    Ok((vec![leaf], key))
}

/// Dials `to` with the certificate `identity`, trusting whatever answers.
///
/// # Errors
/// When the handshake fails.
pub async fn dial(to: SocketAddr, identity: Identity) -> Result<Connection, quinn::ConnectionError> {
    dial_with(to, identity, TransportConfig::default()).await
}

/// The same with windows and limits of one's own.
///
/// # Errors
/// When the handshake fails.
///
/// # Panics
/// When there is no socket.
pub async fn dial_with(
    to: SocketAddr,
    identity: Identity,
    transport: TransportConfig,
) -> Result<Connection, quinn::ConnectionError> {
    let own = if to.ip().is_loopback() { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    let endpoint = Endpoint::client(SocketAddr::new(IpAddr::V4(own), 0)).expect("socket");
    let config = client_config(identity, transport);
    endpoint.connect_with(config, to, "peer.linkspan.internal").expect("valid parameters").await
}

/// How a hand-made peer dials: TLS 1.3 with `identity`, trusting whatever answers.
///
/// # Panics
/// When the key does not fit the certificate.
pub fn client_config(identity: Identity, transport: TransportConfig) -> quinn::ClientConfig {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAnything))
        .with_client_auth_cert(identity.0, identity.1)
        .expect("key fits certificate");
    tls.alpn_protocols = vec![b"linkspan/1".to_vec()];
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("TLS 1.3 suites")));
    config.transport_config(Arc::new(transport));
    config
}

/// Listens as a gateway that asks nobody for a certificate.
///
/// # Errors
/// When the address is not to be had.
///
/// # Panics
/// When the key does not fit the certificate.
pub fn listen(at: SocketAddr, identity: Identity, transport: TransportConfig) -> io::Result<Endpoint> {
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(identity.0, identity.1)
        .expect("key fits certificate");
    tls.alpn_protocols = vec![b"linkspan/1".to_vec()];
    let crypto = QuicServerConfig::try_from(tls).expect("TLS 1.3 suites");
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Endpoint::server(config, at)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// What the gateway of `cluster` says first.
///
/// # Panics
/// When that is no name of a cluster.
pub fn hello(cluster: &str) -> Hello {
    Hello {
        version_min: VERSION,
        version_max: VERSION,
        features: 0,
        cluster: ClusterName::parse(cluster).expect("a cluster name"),
        gateway_id: cluster.to_owned(),
        boot_id: cluster.to_owned(),
        software_version: "0".to_owned(),
        worker: 0,
        workers: 1,
        unix_seconds: 0,
    }
}

/// Says [`hello`] as `cluster`. The control stream must stay open; without it a connection lasts for five seconds.
///
/// # Errors
/// When the connection is gone.
pub async fn greet(connection: &Connection, cluster: &str) -> Result<SendStream, quinn::WriteError> {
    let mut stream = connection.open_uni().await?;
    stream.write_all(&control::open()).await?;
    stream.write_all(&control::encode(&ControlMessage::Hello(hello(cluster)))).await?;
    Ok(stream)
}

/// Opens a stream with `header` and `payload` in it.
///
/// # Errors
/// When the connection is gone.
pub async fn open(
    connection: &Connection,
    header: &[u8],
    payload: &[u8],
) -> Result<(SendStream, RecvStream), quinn::ConnectionError> {
    let (mut send, recv) = connection.open_bi().await?;
    // The peer may stop the stream before all is written; what it says then is read from the other half.
    let _: Result<(), quinn::WriteError> = send.write_all(&[header, payload].concat()).await;
    Ok((send, recv))
}

/// What the peer says to a stream: the code of its reset, or the first bytes it sends.
pub async fn verdict(recv: &mut RecvStream) -> Verdict {
    let mut buffer = [0; 64];
    match recv.read(&mut buffer).await {
        Ok(Some(n)) => Verdict::Bytes(buffer[..n].to_vec()),
        Ok(None) => Verdict::End,
        Err(quinn::ReadError::Reset(code)) => Verdict::Reset(code.into_inner()),
        Err(error) => Verdict::Lost(error.to_string()),
    }
}

/// See [`verdict`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Data.
    Bytes(Vec<u8>),
    /// An orderly end.
    End,
    /// A refusal with its code.
    Reset(u64),
    /// The connection is gone.
    Lost(String),
}

/// Closes a connection as a good peer would.
pub fn close(connection: &Connection) {
    connection.close(VarInt::from_u32(0), b"done");
}

/// A header for a TCP stream, complete but for what the caller changes.
pub fn tcp_header(source: &str, service: &str, port: u16, path: &[&str]) -> StreamHeader {
    let mut header = StreamHeader::new(StreamKind::Tcp);
    header.service = Some(service.parse().expect("namespace/name"));
    header.port = port;
    header.source = Some(linkspan_proto::identity::Source::new(
        linkspan_proto::identity::SpiffeId::parse(source).expect("SPIFFE ID"),
        linkspan_proto::identity::Assurance::Network,
    ));
    header.path = path.iter().map(|c| ClusterName::parse(c).expect("name")).collect();
    header
}

#[derive(Debug)]
struct TrustAnything;

impl ServerCertVerifier for TrustAnything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
