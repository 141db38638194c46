//! Who is believed: one set of roots for each peer, chosen by the trust domain before any signature is looked at, so
//! that the authority of one domain can never vouch for another (S-03, S-04).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use linkspan_proto::identity::{SpiffeId, TrustDomain};
use linkspan_proto::names::ClusterName;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

use super::TrustFailure;
use super::svid::{self, Svid};

/// Roots of one trust domain. A rotation needs two; more than this is not a bundle but somebody's system store.
const MAX_ROOTS: usize = 16;

/// Why a trust bundle cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not PEM, or PEM that holds no certificate.
    #[error("the trust bundle holds no certificate in PEM form")]
    Empty,
    /// A block that is no certificate or cannot be read.
    #[error("certificate {0} of the trust bundle cannot be read")]
    Unreadable(usize),
    /// A leaf in place of a root.
    #[error("certificate {0} of the trust bundle is not a CA; export the root, not a leaf")]
    NotACa(usize),
    /// A root with URI name constraints.
    #[error("certificate {0} of the trust bundle carries URI name constraints, which are not supported")]
    NameConstraints(usize),
    /// More than [`MAX_ROOTS`].
    #[error("the trust bundle holds more than 16 certificates")]
    TooMany,
}

/// Which side of the handshake a certificate is verified for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Role {
    /// The peer dialled us.
    Client,
    /// We dialled the peer.
    Server,
}

/// How one peer is verified.
pub struct PeerTrust {
    cluster: ClusterName,
    trust_domain: TrustDomain,
    gateway: SpiffeId,
    roots: Arc<RootCertStore>,
    as_client: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Why somebody who claimed to be this peer was refused last.
    refused: Mutex<Option<TrustFailure>>,
}

impl PeerTrust {
    /// Reads the roots of a peer.
    ///
    /// # Errors
    /// When the bundle is empty or holds anything that is not a usable root: a bundle is taken whole or not at all.
    pub fn new(
        cluster: ClusterName,
        trust_domain: TrustDomain,
        bundle: &str,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, BundleError> {
        let mut roots = RootCertStore::empty();
        for (index, certificate) in CertificateDer::pem_slice_iter(bundle.as_bytes()).enumerate() {
            let number = index + 1;
            let certificate = certificate.map_err(|_| BundleError::Unreadable(number))?;
            if number > MAX_ROOTS {
                return Err(BundleError::TooMany);
            }
            if svid::has_uri_constraints(&certificate) {
                return Err(BundleError::NameConstraints(number));
            }
            let is_ca = svid::is_ca(&certificate);
            roots.add(certificate).map_err(|_| BundleError::Unreadable(number))?;
            if !is_ca {
                return Err(BundleError::NotACa(number));
            }
        }
        let roots = Arc::new(roots);
        let as_client = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
            .clear_root_hint_subjects()
            .build()
            .map_err(|_| BundleError::Empty)?;
        let gateway = SpiffeId::gateway(&trust_domain);
        let algorithms = provider.signature_verification_algorithms;
        Ok(Self { cluster, trust_domain, gateway, roots, as_client, algorithms, refused: Mutex::new(None) })
    }

    /// The peer's name.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The only trust domain it may speak for.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The identity that its gateways must show.
    #[must_use]
    pub fn gateway(&self) -> &SpiffeId {
        &self.gateway
    }

    /// Why somebody who claimed to be this peer was refused since the last call.
    pub(in super::super) fn take_refusal(&self) -> Option<TrustFailure> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether both believe the same of the same peer.
    pub(in super::super) fn same_roots(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain && self.roots.roots == other.roots.roots
    }

    /// Verifies a whole chain, leaf first. Used at the handshake, and again when the bundle has changed.
    pub(in super::super) fn verify(
        &self,
        role: Role,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Svid, TrustFailure> {
        let svid = Svid::read(leaf)?;
        if svid.id.trust_domain() != &self.trust_domain {
            return Err(TrustFailure::TrustDomainMismatch);
        }
        if svid.id != self.gateway {
            return Err(TrustFailure::NotAGateway);
        }
        let signed = match role {
            Role::Client => self.as_client.verify_client_cert(leaf, above, now).map(|_| ()),
            Role::Server => ParsedCertificate::try_from(leaf).and_then(|leaf| {
                verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, above, now, self.algorithms.all)
            }),
        };
        match signed {
            Ok(()) => Ok(svid),
            // webpki names neither the CA nor the constraint (S-10).
            Err(_) if above.iter().any(svid::has_uri_constraints) => Err(TrustFailure::NameConstraints),
            Err(error) => Err(TrustFailure::from(&error)),
        }
    }
}

impl fmt::Debug for PeerTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerTrust")
            .field("cluster", &self.cluster)
            .field("trust_domain", &self.trust_domain)
            .field("roots", &self.roots.len())
            .finish_non_exhaustive()
    }
}

/// All linked peers by trust domain. No two peers share one.
#[derive(Debug, Default)]
pub(in super::super) struct TrustStore {
    peers: ArcSwap<BTreeMap<TrustDomain, Arc<PeerTrust>>>,
}

impl TrustStore {
    /// Replaces all peers; handshakes from now on see the new ones.
    pub(in super::super) fn replace(&self, peers: BTreeMap<TrustDomain, Arc<PeerTrust>>) {
        self.peers.store(Arc::new(peers));
    }

    /// The peer of a trust domain.
    pub(in super::super) fn get(&self, trust_domain: &TrustDomain) -> Option<Arc<PeerTrust>> {
        self.peers.load().get(trust_domain).cloned()
    }
}

/// A dialler's view of the gateway that it dialled.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    trust: Arc<PeerTrust>,
    signatures: Signatures,
}

impl ServerVerifier {
    pub(super) fn new(trust: Arc<PeerTrust>, provider: &CryptoProvider) -> Self {
        Self { trust, signatures: Signatures(provider.signature_verification_algorithms) }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.trust.verify(Role::Server, leaf, above, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signatures.verify(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.0.supported_schemes()
    }
}

/// The listeners' view of whoever dials.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    trust: Arc<TrustStore>,
    signatures: Signatures,
}

impl ClientVerifier {
    pub(super) fn new(trust: Arc<TrustStore>, provider: &CryptoProvider) -> Self {
        Self { trust, signatures: Signatures(provider.signature_verification_algorithms) }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Whom we are linked with is nobody's business before the handshake.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let svid = Svid::read(leaf)?;
        let peer = self.trust.get(svid.id.trust_domain()).ok_or(TrustFailure::UnknownPeer)?;
        match peer.verify(Role::Client, leaf, above, now) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(failure) => {
                *peer.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                Err(failure.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signatures.verify(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.0.supported_schemes()
    }
}

/// Handshake signatures: proof that the other side holds the key of its leaf.
#[derive(Debug)]
struct Signatures(WebPkiSupportedAlgorithms);

impl Signatures {
    fn verify(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }
}

fn no_tls12() -> rustls::Error {
    rustls::Error::General("the link speaks TLS 1.3 only".to_owned())
}
