//! Kind Link: a peer cluster and the trust in it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FieldError, HostPort};
use crate::configuration::DefaultPolicy;
use crate::identity::TrustDomain;

/// The most root certificates of one peer: two during a rotation, with room.
const MAX_ROOTS: usize = 16;

/// A peer cluster. `metadata.name` is the peer's cluster name; `linkspan link export` on the peer prints this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "linkspan.io",
    version = "v1alpha1",
    kind = "Link",
    status = "LinkStatus",
    derive = "PartialEq",
    doc = "A peer cluster and the trust in it. `metadata.name` is the peer's cluster name."
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LinkSpec {
    /// The only trust domain that this peer may speak for.
    pub trust_domain: TrustDomain,
    /// Root certificates of that trust domain, PEM, one after the other. Nothing else is trusted for this peer.
    pub trust_bundle: String,
    /// `host:port` of the peer's gateways. Empty: wait until the peer dials (it sits behind NAT).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<HostPort>,
    /// What exports without an ExportPolicy allow to this peer. Default: Allow.
    #[serde(default)]
    pub default_policy: DefaultPolicy,
}

/// What the controller reports about a Link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LinkStatus {
    /// `Connected`, `CatalogueSynced`, `Accepted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Version of the peer's gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How many services of the peer are mirrored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<u32>,
}

impl LinkSpec {
    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// When the trust bundle holds no certificate or a broken one, or an address has port 0.
    pub fn validate(&self) -> Result<(), FieldError> {
        let bundle = |message: &str| FieldError::new("spec.trustBundle", message);
        let mut roots = 0;
        for certificate in CertificateDer::pem_slice_iter(self.trust_bundle.as_bytes()) {
            certificate
                .map_err(|_| bundle("a PEM block is broken: copy the whole bundle from `linkspan link export`"))?;
            roots += 1;
        }
        if roots == 0 {
            return Err(bundle("no `-----BEGIN CERTIFICATE-----` in it: put in the peer's root certificates as PEM"));
        }
        if roots > MAX_ROOTS {
            return Err(bundle("more than 16 certificates: keep the peer's present roots only"));
        }
        for (index, address) in self.addresses.iter().enumerate() {
            if address.port == 0 {
                let message = format!("`{address}` has port 0: name the port that the peer listens on, such as 4143");
                return Err(FieldError::new(format!("spec.addresses[{index}]"), message));
            }
        }
        Ok(())
    }
}
