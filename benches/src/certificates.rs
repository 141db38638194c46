//! Certificates for the pairs of others: one authority of the run's own, one leaf for each gateway.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// The files of a run.
#[derive(Clone, Debug)]
pub(crate) struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes them all: ECDSA P-256, as Linkspan's own are.
    pub(crate) fn make(folder: &Path, names: &[&str]) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let authority_key = KeyPair::generate()?;
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "linkspan-bench");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        fs::write(folder.join("ca.pem"), authority.self_signed(&authority_key)?.pem())?;
        let issuer = Issuer::new(authority, authority_key);
        let made = Self { folder: folder.to_owned() };
        for name in names {
            let key = KeyPair::generate()?;
            let mut leaf = CertificateParams::new(vec![Self::host(name)])?;
            leaf.distinguished_name.push(DnType::CommonName, Self::host(name));
            leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let certificate = leaf.signed_by(&key, &issuer)?.pem();
            fs::write(made.certificate(name), &certificate)?;
            fs::write(made.key(name), key.serialize_pem())?;
            // haproxy wants both in one file.
            fs::write(made.both(name), format!("{certificate}{}", key.serialize_pem()))?;
        }
        Ok(made)
    }

    /// The name in a gateway's certificate.
    pub(crate) fn host(name: &str) -> String {
        format!("{name}.bench.internal")
    }

    /// The authority's certificate.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A gateway's certificate.
    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.crt"))
    }

    /// Its key.
    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }

    /// Both in one file.
    pub(crate) fn both(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.pem"))
    }
}
