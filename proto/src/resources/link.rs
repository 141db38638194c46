//! Kind Link: a peer cluster and the trust in it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FieldError, HostPort};
use crate::configuration::{Congestion, DefaultPolicy, Transport};
use crate::identity::TrustDomain;

/// The most root certificates of one peer: two during a rotation, with room.
const MAX_ROOTS: usize = 16;

/// The longest trust bundle, in bytes: [`MAX_ROOTS`] certificates of 4 KiB as PEM, with comments. An API server needs the
/// bound to know what its rules cost.
const MAX_BUNDLE: usize = 128 * 1024;

/// The most addresses of one peer: one for each gateway replica, or one name in front of all.
const MAX_ADDRESSES: usize = 64;

/// Who the peer is, what vouches for it, and where it is dialled. `linkspan link export` on the peer prints this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "linkspan.io",
    version = "v1alpha1",
    kind = "Link",
    status = "LinkStatus",
    derive = "PartialEq",
    shortname = "lsl",
    category = "linkspan",
    printcolumn = r#"{"name":"Trust-Domain","type":"string","jsonPath":".spec.trustDomain","description":"The only trust domain that this peer may speak for"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].status","description":"Whether the Link is in force as it stands"}"#,
    printcolumn = r#"{"name":"Connected","type":"string","jsonPath":".status.conditions[?(@.type==\"Connected\")].status","description":"Whether a gateway of the peer is connected"}"#,
    printcolumn = r#"{"name":"Synced","type":"string","jsonPath":".status.conditions[?(@.type==\"CatalogueSynced\")].status","description":"Whether the peer's catalogue is complete and fresh"}"#,
    printcolumn = r#"{"name":"Services","type":"integer","jsonPath":".status.services","description":"How many services of the peer are mirrored here"}"#,
    printcolumn = r#"{"name":"Version","type":"string","jsonPath":".status.version","description":"Version of the peer's gateway"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Default-Policy","type":"string","jsonPath":".spec.defaultPolicy","priority":1,"description":"What exports without an ExportPolicy allow to this peer"}"#,
    printcolumn = r#"{"name":"Verdict","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].message","priority":1,"description":"Why the Link is accepted or not"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Connected\")].message","priority":1,"description":"Why it is connected or not"}"#,
    doc = "A peer cluster and the trust in it. `metadata.name` is the peer's cluster name."
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LinkSpec {
    /// The only trust domain that this peer may speak for.
    pub trust_domain: TrustDomain,
    /// Root certificates of that trust domain, PEM, one after the other. Nothing else is trusted for this peer.
    #[schemars(
        length(min = 1, max = MAX_BUNDLE),
        extend("x-kubernetes-validations" = [
            {
                "rule": "self.contains('-----BEGIN CERTIFICATE-----')",
                "message": "no `-----BEGIN CERTIFICATE-----` in it: put in the peer's root certificates as PEM, as `linkspan link export` prints them"
            },
            {
                "rule": "!self.contains('PRIVATE KEY-----')",
                "message": "a private key is in it: a bundle holds certificates only; that key is known to everybody who reads this Link, replace it"
            }
        ])
    )]
    pub trust_bundle: String,
    /// `host:port` of the peer's gateways. Empty: wait until the peer dials (it sits behind NAT).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = MAX_ADDRESSES),
        extend(
            "x-kubernetes-list-type" = "set",
            "x-kubernetes-validations" = [{
                "rule": "self.all(address, address.matches('^.+:[1-9][0-9]{0,4}$') && int(address.substring(address.lastIndexOf(':') + 1)) < 65536)",
                "message": "each address is host:port with a port from 1 to 65535, such as east.example.com:4143 or [2001:db8::1]:4143"
            }]
        )
    )]
    pub addresses: Vec<HostPort>,
    /// What exports without an ExportPolicy allow to this peer. Default: Allow.
    #[serde(default)]
    pub default_policy: DefaultPolicy,
    /// What the peer's gateways are dialled over: `quic` (UDP), `tcp` (TCP to the same ports), or `auto`, which is QUIC, and
    /// TCP while QUIC does not get through. Each side's Link speaks of its own dials and streams: set it on both. Default: auto.
    #[serde(default, skip_serializing_if = "Transport::is_default")]
    pub transport: Transport,
    /// What lost packets over QUIC mean: `lan` takes every loss for a full queue and slows down; `wan` keeps its pace while up to
    /// two packets of a hundred are lost and round trips are not longer than usual; `auto` is `wan` from 5 ms of round trip on.
    /// For what this side sends: set it on both. Default: auto.
    #[serde(default, skip_serializing_if = "Congestion::is_default")]
    pub congestion: Congestion,
}

/// What the controller reports about a Link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LinkStatus {
    /// `Accepted`, `Connected`, `TrustValid`, `CatalogueSynced`, `Stale`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
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
    /// When the trust bundle holds no certificate, a broken one or a private key, or an address has port 0.
    pub fn validate(&self) -> Result<(), FieldError> {
        let bundle = |message: &str| FieldError::new("spec.trustBundle", message);
        if self.trust_bundle.len() > MAX_BUNDLE {
            return Err(bundle("more than 128 KiB: keep the peer's present roots only"));
        }
        if self.trust_bundle.contains("PRIVATE KEY-----") {
            return Err(bundle("a private key is in it: put in certificates only, and replace that key"));
        }
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
        if self.addresses.len() > MAX_ADDRESSES {
            let message =
                format!("{} of them, at most {MAX_ADDRESSES} are dialled: use a name for all", self.addresses.len());
            return Err(FieldError::new("spec.addresses", message));
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
