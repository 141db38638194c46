//! The cluster's own certificate authority: one root per trust domain, made by `linkspan site init`.
//!
//! - **In**: a trust domain (create), or certificate signing requests of the own gateway (sign), or the name of a
//!   workload (issue).
//! - **Out**: `ca/root.pem` and `ca/root.key`; X.509-SVIDs that live 24 h.
//! - **Refuses when**: the key's mode gives more than [`KEY_MODE_MAX`], key and certificate do not belong together, the root is of
//!   another trust domain or expired, a request is not signed by its own key, or it asks for a name that is not its own.
//! - **Never does**: copy a name, a usage or a flag from a request into a certificate (S-44). Prints or logs a key.
//! - **Numbers**: [`ROOT_LIFE`], [`LEAF_LIFE`], [`BACKDATE`].

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use linkspan_proto::identity::{SpiffeId, TrustDomain};
use linkspan_proto::names::{Namespace, ServiceAccountName};
use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::files;

/// Life of the root: long enough that a site outlives its operator's holidays, short enough to be replaced in time.
/// Trust in it ends when a peer removes its Link, not when it expires.
pub const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Life of a leaf. The gateway renews at half of it, so that a controller that is down for 12 h costs nothing.
pub const LEAF_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Certificates are valid this long before they are made: peers' clocks run behind, by ten minutes at most (F-22). Far below
/// [`LEAF_LIFE`].
pub const BACKDATE: Duration = Duration::from_secs(15 * 60);
/// The longest life that [`Ca::issue_workload`] grants.
pub const WORKLOAD_LIFE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// DNS names in one certificate: a certificate is sent whole in each handshake, this keeps it below 16 KiB.
const DNS_NAMES_MAX: usize = 200;
/// A request with a P-384 key and 200 names is well below this.
const CSR_BYTES_MAX: usize = 64 * 1024;

/// The most that the mode of the key's file may grant. The group may read it: in a pod with `fsGroup` the kubelet mounts a Secret
/// with 0440 for root and that group, whatever mode was asked for. Others may nothing, and nobody but its owner may write it.
pub const KEY_MODE_MAX: u32 = 0o640;

const ROOT_CERTIFICATE: &str = "root.pem";
const ROOT_KEY: &str = "root.key";

/// Why the authority cannot be made, loaded or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A root exists already: it is never overwritten, since peers trust it.
    #[error("{0} exists already; a root is never replaced, because peers trust it")]
    Exists(PathBuf),
    /// The key can be read by others, or written by its group.
    #[error(
        "{path} has mode {mode:04o}; its owner may read and write it, its group may read it (as Secrets are mounted in a pod \
         with fsGroup), others nothing: at most {KEY_MODE_MAX:04o} (chmod 600 {path})"
    )]
    KeyIsNotPrivate {
        /// The key file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The root certificate or its key is damaged.
    #[error("{path}: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The root speaks for another trust domain than the site's.
    #[error("{path} is the root of {found}, the site's trust domain is {wanted}")]
    OtherTrustDomain {
        /// The certificate.
        path: PathBuf,
        /// The trust domain in the certificate.
        found: String,
        /// The one that the site names.
        wanted: TrustDomain,
    },
    /// A request was refused; the text says why.
    #[error("refused: {0}")]
    Refused(&'static str),
    /// The cryptographic library failed.
    #[error("certificate: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// The authority: the root certificate and the key that signs.
pub struct Ca {
    trust_domain: TrustDomain,
    root: CertificateDer<'static>,
    root_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate that was just made.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Leaf first; the root is not part of it.
    pub chain: Vec<CertificateDer<'static>>,
    /// End of its life.
    pub not_after: SystemTime,
}

/// A workload's certificate with the key that was made for it. No `Debug`: it holds a private key.
pub struct WorkloadIdentity {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// Its private key, PKCS #8 PEM.
    pub key_pem: String,
    /// The root that vouches for it, PEM.
    pub trust_bundle_pem: String,
    /// The name in the certificate.
    pub identity: SpiffeId,
    /// End of its life.
    pub not_after: SystemTime,
}

/// What a gateway wants a certificate for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The link to peers.
    Link,
    /// The local mTLS port, whose clients check the mirrored DNS name.
    LocalServer {
        /// The names to put in, wildcards of one label allowed.
        dns_names: Vec<String>,
    },
}

/// Makes a new root in `dir` (created with mode 0700), and returns it loaded.
///
/// # Errors
/// When a root exists there already, or a file cannot be written.
pub fn create(dir: &Path, trust_domain: &TrustDomain) -> Result<Ca, CaError> {
    let certificate_path = dir.join(ROOT_CERTIFICATE);
    let key_path = dir.join(ROOT_KEY);
    for path in [&certificate_path, &key_path] {
        if path.exists() {
            return Err(CaError::Exists(path.clone()));
        }
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| CaError::File { path: dir.to_owned(), source })?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = root_params(trust_domain)?.self_signed(&key)?;
    // The key first: a certificate without its key would look like a root that somebody else keeps.
    for (path, text, mode) in [(&key_path, key.serialize_pem(), 0o600), (&certificate_path, certificate.pem(), 0o644)] {
        files::write_atomically(path, text.as_bytes(), mode)
            .map_err(|source| CaError::File { path: path.clone(), source })?;
    }
    Ca::load(dir, trust_domain)
}

impl Ca {
    /// Loads the root from `dir` and checks that it can sign for `trust_domain`. Of the key's file, owner and group may have the
    /// rights in [`KEY_MODE_MAX`], others none.
    ///
    /// # Errors
    /// See [`CaError`]; every case stops the start, because a site without a working root cannot link.
    pub fn load(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let certificate_path = dir.join(ROOT_CERTIFICATE);
        let key_path = dir.join(ROOT_KEY);
        let read =
            |path: &Path| fs::read_to_string(path).map_err(|source| CaError::File { path: path.to_owned(), source });
        let mode =
            fs::metadata(&key_path).map_err(|source| CaError::File { path: key_path.clone(), source })?.mode() & 0o7777;
        if mode & !KEY_MODE_MAX & 0o077 != 0 {
            return Err(CaError::KeyIsNotPrivate { path: key_path, mode });
        }
        let damaged = |path: &Path, what: &str| CaError::Damaged { path: path.to_owned(), what: what.to_owned() };
        let key =
            KeyPair::from_pem(&read(&key_path)?).map_err(|_| damaged(&key_path, "not a private key in PKCS #8 PEM"))?;
        let root_pem = read(&certificate_path)?;
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes())
            .map_err(|_| damaged(&certificate_path, "not a PEM certificate"))?;
        check_root(&certificate_path, &root, &key, trust_domain)?;
        let issuer = Issuer::from_ca_cert_der(&root, key)?;
        Ok(Self { trust_domain: trust_domain.clone(), root: root.clone().into_owned(), root_pem, issuer })
    }

    /// The trust domain that this authority speaks for.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root certificate, PEM: what peers put into their Link.
    #[must_use]
    pub fn trust_bundle_pem(&self) -> &str {
        &self.root_pem
    }

    /// The root certificate.
    #[must_use]
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Signs a gateway's request. `allowed` says which DNS names it may carry; it is asked for each one.
    ///
    /// # Errors
    /// [`CaError::Refused`] for a request that is malformed, not signed by its own key, or asks for other names.
    pub fn sign_gateway(
        &self,
        csr: &[u8],
        purpose: &Purpose,
        allowed: impl Fn(&str) -> bool,
    ) -> Result<Issued, CaError> {
        let dns_names: &[String] = match purpose {
            Purpose::Link => &[],
            Purpose::LocalServer { dns_names } => dns_names,
        };
        if dns_names.len() > DNS_NAMES_MAX {
            return Err(CaError::Refused("more than 200 DNS names in one request"));
        }
        if !dns_names.iter().all(|name| allowed(name)) {
            return Err(CaError::Refused("a DNS name outside the namespaces that this cluster mirrors"));
        }
        let request = checked_request(csr)?;
        let identity = SpiffeId::gateway(&self.trust_domain);
        let granted = names(&identity, dns_names)?;
        // S-44: whoever asks for a name that it will not get is told so, rather than given something else in silence.
        if !request.params.subject_alt_names.iter().all(|name| granted.contains(name)) {
            return Err(CaError::Refused("the request names an identity that is not its own"));
        }
        let (certificate, not_after) = self.leaf(&request.public_key, granted, LEAF_LIFE)?;
        Ok(Issued { chain: vec![certificate.der().clone()], not_after })
    }

    /// Makes a key and a certificate for a workload of this cluster; for `linkspan identity issue`.
    ///
    /// # Errors
    /// When `life` is zero or above [`WORKLOAD_LIFE_MAX`], or the library fails.
    pub fn issue_workload(
        &self,
        namespace: &Namespace,
        service_account: &ServiceAccountName,
        life: Duration,
    ) -> Result<WorkloadIdentity, CaError> {
        if life.is_zero() || life > WORKLOAD_LIFE_MAX {
            return Err(CaError::Refused("the life of a workload certificate is between one second and 30 days"));
        }
        let identity = SpiffeId::workload(&self.trust_domain, namespace, service_account);
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let (certificate, not_after) = self.leaf(&key, names(&identity, &[])?, life)?;
        Ok(WorkloadIdentity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            trust_bundle_pem: self.root_pem.clone(),
            identity,
            not_after,
        })
    }

    /// Makes a key and a certificate for this controller itself, which answers to these DNS names. The key, PKCS #8 DER, never
    /// leaves the process.
    ///
    /// # Errors
    /// When a name is malformed or the library fails.
    pub fn issue_controller(&self, dns_names: &[String]) -> Result<(Issued, Vec<u8>), CaError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let identity = SpiffeId::controller(&self.trust_domain);
        let (certificate, not_after) = self.leaf(&key, names(&identity, dns_names)?, LEAF_LIFE)?;
        Ok((Issued { chain: vec![certificate.der().clone()], not_after }, key.serialize_der()))
    }

    fn leaf(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        life: Duration,
    ) -> Result<(rcgen::Certificate, SystemTime), CaError> {
        let now = whole_seconds(SystemTime::now());
        let not_after = now + life;
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(now - BACKDATE);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(not_after);
        params.serial_number = Some(serial());
        params.distinguished_name = subject(&self.trust_domain);
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok((params.signed_by(key, &self.issuer)?, not_after))
    }
}

fn root_params(trust_domain: &TrustDomain) -> Result<CertificateParams, CaError> {
    let now = whole_seconds(SystemTime::now());
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(now - BACKDATE);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(now + ROOT_LIFE);
    params.serial_number = Some(serial());
    params.distinguished_name = subject(trust_domain);
    // The trust domain without a path: a signing certificate is nobody's identity. No name constraints: webpki refuses
    // every chain that has them (S-10); the domain is checked by the peers' own code.
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn check_root(
    path: &Path,
    root: &CertificateDer<'_>,
    key: &KeyPair,
    trust_domain: &TrustDomain,
) -> Result<(), CaError> {
    let damaged = |what: &str| CaError::Damaged { path: path.to_owned(), what: what.to_owned() };
    let (_, parsed) = x509_parser::parse_x509_certificate(root).map_err(|_| damaged("not an X.509 certificate"))?;
    if parsed.public_key().raw != key.subject_public_key_info().as_slice() {
        return Err(damaged("the key beside it belongs to another certificate"));
    }
    if !parsed.is_ca() {
        return Err(damaged("not a certificate of an authority"));
    }
    if !parsed.validity().is_valid() {
        return Err(damaged("expired or not yet valid"));
    }
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| damaged("malformed names"))?
        .map(|extension| extension.value.general_names.clone())
        .unwrap_or_default();
    let [x509_parser::extensions::GeneralName::URI(found)] = names.as_slice() else {
        return Err(damaged("it must have exactly one URI name: its trust domain"));
    };
    if *found != format!("spiffe://{trust_domain}") {
        return Err(CaError::OtherTrustDomain {
            path: path.to_owned(),
            found: (*found).to_owned(),
            wanted: trust_domain.clone(),
        });
    }
    Ok(())
}

/// Parses a request and verifies that it is signed with the key that it carries.
fn checked_request(csr: &[u8]) -> Result<CertificateSigningRequestParams, CaError> {
    if csr.len() > CSR_BYTES_MAX {
        return Err(CaError::Refused("the request is larger than 64 KiB"));
    }
    let request = CertificateSigningRequestParams::from_der(&csr.into()).map_err(|error| match error {
        rcgen::Error::InvalidCertificationRequestSignature => {
            CaError::Refused("the request is not signed by its own key")
        }
        rcgen::Error::UnsupportedExtension => CaError::Refused("the request has an extension that is never granted"),
        _ => CaError::Refused("not a certificate signing request in DER"),
    })?;
    let algorithms = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
    if !algorithms.contains(&request.public_key.algorithm()) {
        return Err(CaError::Refused("the key is neither P-256, P-384 nor Ed25519"));
    }
    if !matches!(request.params.is_ca, IsCa::NoCa | IsCa::ExplicitNoCa) {
        return Err(CaError::Refused("the request asks to become an authority"));
    }
    Ok(request)
}

fn names(identity: &SpiffeId, dns_names: &[String]) -> Result<Vec<SanType>, CaError> {
    let mut names = vec![SanType::URI(identity.to_string().try_into()?)];
    for name in dns_names {
        names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    Ok(names)
}

/// A subject that only helps people who read certificates: every decision is made by the URI name.
fn subject(trust_domain: &TrustDomain) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "linkspan");
    // RFC 5280 appendix A: a common name has at most 64 characters, a trust domain up to 255.
    name.push(DnType::CommonName, trust_domain.to_string().chars().take(64).collect::<String>());
    name
}

fn serial() -> SerialNumber {
    let mut bytes = [0_u8; 16];
    rand::rng().fill_bytes(&mut bytes);
    // RFC 5280 section 4.1.2.2: positive and not zero.
    bytes[0] = (bytes[0] & 0x7f) | 0x01;
    SerialNumber::from_slice(&bytes)
}

/// Time since the Unix epoch, which is added to `rcgen`'s date of that day: its date type has no other way in.
fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn whole_seconds(at: SystemTime) -> SystemTime {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[cfg(test)]
mod tests;
