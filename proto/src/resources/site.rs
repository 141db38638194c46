//! Kind Site: one standalone cluster, in `site.yaml`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use super::{FieldError, HostPort};
use crate::identity::TrustDomain;
use crate::names::{ClusterName, Namespace, ServiceAccountName};

/// The most workers of one gateway.
const MAX_WORKERS: u16 = 256;

/// A standalone site: gateway and controller of one cluster that is no Kubernetes cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Site {
    /// `linkspan.io/v1alpha1`.
    pub api_version: String,
    /// `Site`.
    pub kind: String,
    /// The name.
    pub metadata: SiteMetadata,
    /// Everything else; all of it has defaults.
    #[serde(default)]
    pub spec: SiteSpec,
}

/// The name of a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SiteMetadata {
    /// The cluster name, by which peers know this site. It becomes part of mirror names at the peers.
    pub name: ClusterName,
}

/// How a site runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SiteSpec {
    /// The trust domain of the site's own certificate authority. Default: `<name>.linkspan.internal`. Peers trust it by
    /// name: changing it later breaks every link until the peers have a new Link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<TrustDomain>,
    /// The gateway.
    pub gateway: GatewaySpec,
    /// The DNS server for mirrored names.
    pub dns: DnsSpec,
    /// The read-only admin server.
    pub admin: AdminSpec,
    /// Where mirrored services get their local addresses from. Default: 127.80.0.0/12, loopback. A service keeps its
    /// address across restarts; changing the range moves them all.
    #[serde(deserialize_with = "crate::text::network")]
    pub mirror_addresses: IpNet,
    /// Which client addresses belong to which workload; the longest prefix wins. Default: none, all clients are known
    /// only as clients of this site.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<WorkloadSpec>,
    /// Keys, sockets, last good state. Default: `state`, relative to site.yaml. Created with mode 0700.
    pub state_dir: PathBuf,
    /// The watched folder of manifests. Default: `manifests`, relative to site.yaml.
    pub manifests: PathBuf,
}

/// How the gateway listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GatewaySpec {
    /// UDP address of the link. Default: 0.0.0.0:4143. Port 0 lets the system choose.
    #[serde(deserialize_with = "crate::text::socket_address")]
    pub listen: SocketAddr,
    /// Whether the link is served over TCP too, at the same address, for peers whose network lets no UDP pass. Default: true.
    pub tcp: bool,
    /// `host:port` where peers reach the link; `linkspan link export` prints it. Port 0 stands for the port that `listen` got.
    /// Default: none, peers cannot dial this site and it dials them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advertise: Vec<HostPort>,
    /// TCP address for local clients that show their own certificate. Default: 127.0.0.1:4193; null turns it off.
    #[serde(deserialize_with = "crate::text::optional_socket_address")]
    pub mtls_listen: Option<SocketAddr>,
    /// Worker threads. Default: one for each CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<u16>,
    /// How long running streams may take to finish when the gateway stops, seconds. Default: 10.
    pub drain_seconds: u32,
}

/// How the DNS server listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DnsSpec {
    /// UDP and TCP address. Default: 127.0.0.1:5353.
    #[serde(deserialize_with = "crate::text::socket_address")]
    pub listen: SocketAddr,
}

/// How the admin server listens. It shows configuration and figures to whoever reaches it: keep it on loopback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AdminSpec {
    /// TCP address of the gateway's admin server, or of both halves in `linkspan site run`. Default: 127.0.0.1:4191.
    #[serde(deserialize_with = "crate::text::socket_address")]
    pub listen: SocketAddr,
    /// TCP address of the controller's admin server where it is a process of its own. Default: none.
    #[serde(deserialize_with = "crate::text::optional_socket_address")]
    pub controller_listen: Option<SocketAddr>,
}

/// An address range that belongs to one workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// Client addresses, such as 10.0.0.0/24 or 10.0.0.7/32.
    #[serde(deserialize_with = "crate::text::network")]
    pub cidr: IpNet,
    /// Namespace of the workload.
    pub namespace: Namespace,
    /// Service account of the workload.
    pub service_account: ServiceAccountName,
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

impl Default for SiteSpec {
    fn default() -> Self {
        Self {
            trust_domain: None,
            gateway: GatewaySpec::default(),
            dns: DnsSpec::default(),
            admin: AdminSpec::default(),
            mirror_addresses: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 80, 0, 0), 12)),
            workloads: Vec::new(),
            state_dir: PathBuf::from("state"),
            manifests: PathBuf::from("manifests"),
        }
    }
}

impl Default for GatewaySpec {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 4143),
            tcp: true,
            advertise: Vec::new(),
            mtls_listen: Some(loopback(4193)),
            workers: None,
            drain_seconds: 10,
        }
    }
}

impl Default for DnsSpec {
    fn default() -> Self {
        Self { listen: loopback(5353) }
    }
}

impl Default for AdminSpec {
    fn default() -> Self {
        Self { listen: loopback(4191), controller_listen: None }
    }
}

impl Site {
    /// A site with all defaults.
    #[must_use]
    pub fn new(name: ClusterName) -> Self {
        Self {
            api_version: super::API_VERSION.to_owned(),
            kind: "Site".to_owned(),
            metadata: SiteMetadata { name },
            spec: SiteSpec::default(),
        }
    }

    /// The cluster name.
    #[must_use]
    pub const fn cluster(&self) -> &ClusterName {
        &self.metadata.name
    }

    /// The trust domain, the default resolved.
    #[must_use]
    pub fn trust_domain(&self) -> TrustDomain {
        self.spec.trust_domain.clone().unwrap_or_else(|| {
            TrustDomain::parse(&format!("{}.linkspan.internal", self.metadata.name))
                .expect("a cluster name is a label, and a label with this suffix is a trust domain")
        })
    }

    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// When a number is out of its range, or the mirror range is too small, or two workloads claim the same range.
    pub fn validate(&self) -> Result<(), FieldError> {
        if let Some(message) = self.metadata.name.reserved() {
            return Err(FieldError::new("metadata.name", message));
        }
        let spec = &self.spec;
        if spec.gateway.workers.is_some_and(|workers| workers == 0 || workers > MAX_WORKERS) {
            return Err(FieldError::new("spec.gateway.workers", format!("write 1 to {MAX_WORKERS}, or leave it out")));
        }
        let range = spec.mirror_addresses;
        if range.max_prefix_len() - range.prefix_len() < 4 {
            let message = format!("{range} has fewer than 16 addresses: each mirrored service needs one");
            return Err(FieldError::new("spec.mirrorAddresses", message));
        }
        if range.trunc() != range {
            let message = format!("{range} has bits behind its prefix: write {}", range.trunc());
            return Err(FieldError::new("spec.mirrorAddresses", message));
        }
        for (index, workload) in spec.workloads.iter().enumerate() {
            let claimed = spec.workloads.iter().take(index).any(|other| other.cidr.trunc() == workload.cidr.trunc());
            if claimed {
                let message = format!("{} is claimed by an earlier workload: name each range once", workload.cidr);
                return Err(FieldError::new(format!("spec.workloads[{index}].cidr"), message));
            }
        }
        Ok(())
    }
}
