//! A peer made by hand: valid certificates, and anything at all inside its streams.

use std::net::SocketAddr;
use std::sync::Arc;

use linkspan_proto::stream_header::{StreamHeader, StreamKind};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
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
    pub fn leaf(&self, uris: &[&str]) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        self.leaf_of(uris, CertificateParams::default())
    }

    /// The same for the years from `from` up to `until`.
    ///
    /// # Panics
    /// When a name is not ASCII.
    pub fn leaf_between(
        &self,
        uris: &[&str],
        from: i32,
        until: i32,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        self.leaf_of(uris, params)
    }

    fn leaf_of(
        &self,
        uris: &[&str],
        mut params: CertificateParams,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("key");
        params.subject_alt_names = uris.iter().map(|u| uri(u)).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("leaf");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS #8");
        (vec![certificate.der().clone()], key)
    }

    /// The Link manifest by which a site trusts this authority as the cluster `cluster`, which dials by itself.
    pub fn link(&self, cluster: &str) -> String {
        let bundle: String = self.pem.lines().map(|line| format!("    {line}\n")).collect();
        format!(
            "apiVersion: linkspan.io/v1alpha1\nkind: Link\nmetadata: {{name: {cluster}}}\nspec:\n  \
             trustDomain: {}\n  addresses: []\n  trustBundle: |\n{bundle}",
            self.trust_domain
        )
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

/// Dials `to` with the certificate `identity`, trusting whatever answers.
///
/// # Errors
/// When the handshake fails.
pub async fn dial(
    to: SocketAddr,
    identity: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
) -> Result<Connection, quinn::ConnectionError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAnything))
        .with_client_auth_cert(identity.0, identity.1)
        .expect("key fits certificate");
    tls.alpn_protocols = vec![b"linkspan/1".to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("TLS 1.3 suites")));
    let endpoint = Endpoint::client("127.0.0.1:0".parse().expect("address")).expect("socket");
    endpoint.connect_with(config, to, "peer.linkspan.internal").expect("valid parameters").await
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
    header.path = path.iter().map(|c| linkspan_proto::names::ClusterName::parse(c).expect("name")).collect();
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
