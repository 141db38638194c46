//! What was typed ([`Args`]), and what it means ([`Config`]): resolved once, checked by types.
//!
//! - **In**: arguments and the site's `site.yaml`.
//! - **Out**: addresses, paths and names, with all defaults in them; `/config` on the admin port shows them.
//! - **Refuses when**: `site.yaml` cannot be read or has an unknown or impossible field, named by line and column.
//! - **Never does**: read the environment, or hold a secret.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Parser;
use ipnet::IpNet;
use linkspan_proto::configuration::Workload;
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::manifest::{ManifestError, cluster_from_yaml, site_from_yaml};
use linkspan_proto::metadata::Exclusions;
use linkspan_proto::names::{ClusterName, Namespace, ServiceAccountName, ServiceName};
use linkspan_proto::resources::{Cluster, ClusterMirrorsSpec, Site};
use linkspan_runtime::build_info;
use linkspan_runtime::telemetry::Format;
use serde::Serialize;

use crate::mirror::ports::PortRange;

/// Where a pod finds the certificate authority.
const CA: &str = "/etc/linkspan/ca";

/// The name of a site's configuration inside its directory.
pub const SITE_FILE: &str = "site.yaml";

/// The controller of a standalone site: mirrors the services of peers, and tells the gateway of the same site what to
/// carry.
#[derive(Debug, Parser)]
#[command(
    name = "linkspan-mirror-controller",
    version = build_info::line(),
    after_help = "Examples:\n  linkspan-mirror-controller -d /srv/east\n  linkspan-mirror-controller -d /srv/east --log-format json --log-filter debug\n\nThe other half is linkspan-gateway; `linkspan site run` runs both in one process. SIGTERM and Ctrl-C end it in order, a second one at once.\n\nExit codes: 0 ended in order, 1 failed, 2 wrong arguments, 130 or 143 ended at once by a second Ctrl-C or SIGTERM."
)]
pub struct Args {
    /// The site's directory, with site.yaml in it.
    #[arg(long, short = 'd', value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,

    /// Runs in a Kubernetes cluster: --config names the file of the cluster, and --dir is not used.
    #[arg(long, requires = "config", conflicts_with = "dir")]
    pub kubernetes: bool,

    /// The file of the cluster (kind Cluster), which `linkspan install` writes.
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    pub config: Option<PathBuf>,

    /// The name of this pod: who it is in the lease that says which controller leads. Default: a name made up for this run,
    /// under which a restart does not know its own lease and waits 15 s for it.
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    pub pod_name: Option<String>,

    /// The address of this pod, for its log.
    #[arg(long, value_name = "IP", requires = "kubernetes")]
    pub pod_ip: Option<std::net::IpAddr>,

    /// How log lines look: text for people, json for machines.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,

    /// Which log lines are written: error, warn, info, debug, trace, or per module as in
    /// info,linkspan_mirror_controller=debug.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_filter: String,
}

/// What it means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The cluster's name.
    pub cluster: ClusterName,
    /// The cluster's trust domain.
    pub trust_domain: TrustDomain,
    /// The watched folder of manifests.
    pub manifests: PathBuf,
    /// Keys, sockets, last good state.
    pub state_dir: PathBuf,
    /// UDP and TCP address of the DNS server; port 0 lets the system choose.
    pub dns_listen: SocketAddr,
    /// TCP address of the admin server, where the controller is a process of its own.
    pub admin_listen: Option<SocketAddr>,
    /// Where local addresses of mirrored names come from.
    pub mirror_addresses: IpNet,
    /// Which client addresses belong to which workload.
    pub workloads: Vec<Workload>,
    /// Where the certificate authority's root and key are.
    pub ca: PathBuf,
    /// What is copied between clusters, and whose word counts.
    pub mirrors: ClusterMirrorsSpec,
    /// In a Kubernetes cluster: what is different there. Manifests, mirror addresses and workloads are a site's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
}

/// What a controller in a Kubernetes cluster needs to know beside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kubernetes {
    /// The namespace of gateways and controllers.
    pub namespace: Namespace,
    /// The headless Service whose EndpointSlices name the gateway pods.
    pub gateway_service: ServiceName,
    /// The gateways' ports for mirrors.
    pub ports: PortRange,
    /// TCP address for the gateways: configuration, certificates, pipes.
    pub listen: SocketAddr,
    /// The DNS names in the certificate of that port.
    pub names: Vec<String>,
    /// Who this controller is in the lease: its pod, whose name no other one ever has.
    pub identity: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or cannot be read.
    #[error("cannot read {}: {error}; `linkspan site init` writes one", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file says something that is not a site.
    #[error(transparent)]
    Invalid(#[from] ManifestError),
}

impl Args {
    /// Who this controller is among those of its cluster.
    #[must_use]
    pub fn identity(&self) -> String {
        let named = self.pod_name.clone().filter(|name| !name.is_empty());
        named.unwrap_or_else(|| format!("linkspan-controller_{:016x}", rand::random::<u64>()))
    }
}

impl Config {
    /// Reads `site.yaml` in `dir`.
    ///
    /// # Errors
    /// When it cannot be read or is not valid.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join(SITE_FILE);
        let text = fs::read_to_string(&path).map_err(|error| ConfigError::Unreadable { path: path.clone(), error })?;
        Ok(Self::resolve(&site_from_yaml(&text, &path.display().to_string())?, dir))
    }

    /// What a site, which is valid by its type, means in `dir`.
    #[must_use]
    pub fn resolve(site: &Site, dir: &Path) -> Self {
        let mut ranges: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for workload in &site.spec.workloads {
            ranges.entry((&workload.namespace, &workload.service_account)).or_default().push(workload.cidr);
        }
        let workload = |((namespace, service_account), ranges): ((&Namespace, &ServiceAccountName), Vec<IpNet>)| {
            Workload { namespace: namespace.clone(), service_account: service_account.clone(), ranges }
        };
        Self {
            cluster: site.cluster().clone(),
            trust_domain: site.trust_domain(),
            manifests: dir.join(&site.spec.manifests),
            state_dir: dir.join(&site.spec.state_dir),
            dns_listen: site.spec.dns.listen,
            admin_listen: site.spec.admin.controller_listen,
            mirror_addresses: site.spec.mirror_addresses,
            workloads: ranges.into_iter().map(workload).collect(),
            ca: dir.join(&site.spec.state_dir).join("ca"),
            mirrors: ClusterMirrorsSpec::default(),
            kubernetes: None,
        }
    }

    /// Reads the file of a Kubernetes cluster.
    ///
    /// # Errors
    /// When it cannot be read or is not valid.
    pub fn load_cluster(path: &Path, identity: String) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        Ok(Self::resolve_cluster(&cluster_from_yaml(&text, &path.display().to_string())?, identity))
    }

    /// What a cluster, which is valid by its type, means.
    #[must_use]
    pub fn resolve_cluster(cluster: &Cluster, identity: String) -> Self {
        let spec = &cluster.spec;
        Self {
            cluster: cluster.cluster().clone(),
            trust_domain: cluster.trust_domain(),
            manifests: spec.state_dir.join("manifests"),
            state_dir: spec.state_dir.clone(),
            dns_listen: spec.dns.listen,
            admin_listen: Some(spec.controller.admin_listen),
            mirror_addresses: Site::new(cluster.cluster().clone()).spec.mirror_addresses,
            workloads: Vec::new(),
            ca: CA.into(),
            mirrors: spec.mirrors.clone(),
            kubernetes: Some(Kubernetes {
                namespace: spec.namespace.clone(),
                gateway_service: spec.gateway.service.clone(),
                ports: PortRange { first: spec.gateway.ports.first, last: spec.gateway.ports.last },
                listen: spec.controller.listen,
                names: vec![cluster.controller_address().host],
                identity,
            }),
        }
    }

    /// What is not copied between clusters.
    #[must_use]
    pub fn exclusions(&self) -> Exclusions {
        Exclusions {
            labels: self.mirrors.excluded_labels.clone(),
            annotations: self.mirrors.excluded_annotations.clone(),
        }
    }

    /// A path inside the state directory.
    #[must_use]
    pub fn state(&self, path: &str) -> PathBuf {
        self.state_dir.join(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_means_paths_and_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Config::load(dir.path()).unwrap_err().to_string();
        assert!(missing.contains("linkspan site init"), "{missing}");
        let text = "apiVersion: linkspan.io/v1alpha1\nkind: Site\nmetadata: {name: east}\nspec:\n  dns: {listen: \"127.0.0.1:0\"}\n  \
                    stateDir: /var/lib/east\n  workloads:\n    - {cidr: 10.0.0.0/24, namespace: shop, serviceAccount: web}\n";
        fs::write(dir.path().join(SITE_FILE), text).unwrap();
        let config = Config::load(dir.path()).unwrap();
        assert_eq!(config.trust_domain.as_str(), "east.linkspan.internal");
        assert_eq!(config.manifests, dir.path().join("manifests"));
        assert_eq!(config.state("ca"), Path::new("/var/lib/east/ca"));
        assert_eq!(config.workloads.len(), 1);
        assert_eq!(config.admin_listen, None);
        fs::write(dir.path().join(SITE_FILE), text.replace("dns:", "dsn:")).unwrap();
        let broken = Config::load(dir.path()).unwrap_err().to_string();
        assert!(broken.contains("site.yaml:5"), "{broken}");
    }
}
