//! The root of the cluster, as objects.
//!
//! In: a folder, or nothing. Out: an immutable Secret with certificate and key, a ConfigMap with the certificate. Never does:
//! replace a root: files are created and not overwritten, the Secret is immutable, so that applying another one fails.

use std::path::Path;

use anyhow::Context;
use linkspan_mirror_controller::ca::{self, Ca};
use linkspan_proto::identity::TrustDomain;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Item, ROOT, metadata};

/// A root with its key. No `Debug`: it holds a private key.
pub(super) struct Root {
    certificate: String,
    key: String,
    /// Of the certificate, to be compared with what `linkspan link import` shows.
    pub(super) fingerprint: String,
    /// Whether it was made just now, and exists nowhere else.
    pub(super) fresh: bool,
}

impl Root {
    /// Makes one that exists in this process only.
    pub(super) fn fresh(trust_domain: &TrustDomain) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let root = Self::create(&folder.path().join("ca"), trust_domain)?;
        folder.close().context("cannot remove the temporary folder with the key")?;
        Ok(Self { fresh: true, ..root })
    }

    /// Makes one in `folder`.
    pub(super) fn create(folder: &Path, trust_domain: &TrustDomain) -> anyhow::Result<Self> {
        let made = ca::create(folder, trust_domain)?;
        Self::read(folder, &made)
    }

    /// Reads the one in `folder`.
    pub(super) fn load(folder: &Path, trust_domain: &TrustDomain) -> anyhow::Result<Self> {
        let loaded = Ca::load(folder, trust_domain).context("--ca-from")?;
        Self::read(folder, &loaded)
    }

    fn read(folder: &Path, authority: &Ca) -> anyhow::Result<Self> {
        let key = folder.join("root.key");
        Ok(Self {
            certificate: authority.trust_bundle_pem().to_owned(),
            key: std::fs::read_to_string(&key).with_context(|| key.display().to_string())?,
            fingerprint: Sha256::digest(authority.root())
                .iter()
                .map(|byte| format!("{byte:02X}"))
                .collect::<Vec<_>>()
                .join(":"),
            fresh: false,
        })
    }

    /// The Secret and the ConfigMap.
    pub(super) fn items(&self, namespace: &str, secret: &str) -> Vec<Item> {
        vec![
            Item::new(
                format!(
                    "The cluster's root with its PRIVATE KEY: not for Git. Immutable, so that no later print replaces it. SHA-256 {}",
                    self.fingerprint
                ),
                json!({
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": metadata(secret, namespace),
                    "type": "Opaque",
                    "immutable": true,
                    "stringData": { "root.pem": self.certificate, "root.key": self.key },
                }),
            ),
            Item::new(
                "The root's certificate alone, for the gateways.",
                json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": metadata(ROOT, namespace),
                    "immutable": true,
                    "data": { "root.pem": self.certificate },
                }),
            ),
        ]
    }
}
