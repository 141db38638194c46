//! What was typed ([`Args`]), and what it means ([`Config`]): resolved once, checked by types.
//!
//! - In: arguments and the site's `site.yaml`.
//! - Out: addresses, paths and numbers, with all defaults in them; `/config` on the admin port shows them.
//! - Refuses when: `site.yaml` cannot be read or has an unknown or impossible field, named by line and column.
//! - Never does: read the environment; look at anything but `site.yaml`: everything else comes from the controller.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Parser;
use linkspan_proto::identity::{SpiffeId, TrustDomain};
use linkspan_proto::manifest::{ManifestError, cluster_from_yaml, site_from_yaml};
use linkspan_proto::names::ClusterName;
use linkspan_proto::resources::{Cluster, Site};
use linkspan_runtime::build_info;
use linkspan_runtime::telemetry::Format;
use serde::Serialize;

use crate::discovery::{Controller, Port};
use crate::link::tls::{OwnCertificate, Svid, WhileValid, provider};

/// The name of a site's configuration inside its directory.
pub const SITE_FILE: &str = "site.yaml";

/// Where a pod finds the cluster's root certificates.
const ROOTS: &str = "/etc/linkspan/root/root.pem";

/// Where a pod finds its ServiceAccount token for the controller.
const TOKEN: &str = "/var/run/secrets/linkspan/token";

/// Connection ids name their worker in one byte.
const MAX_WORKERS: usize = 256;

/// The gateway of a standalone site: carries the traffic; the controller of the same site tells it what to carry.
#[derive(Debug, Parser)]
#[command(
    name = "linkspan-gateway",
    version = build_info::line(),
    after_help = "Examples:\n  linkspan-gateway -d /srv/east\n  linkspan-gateway -d /srv/east --log-format json --log-filter debug\n\nThe other half is linkspan-mirror-controller; `linkspan site run` runs both in one process. SIGTERM and Ctrl-C end it in order, a second one at once.\n\nExit codes: 0 ended in order, 1 failed, 2 wrong arguments, 130 or 143 ended at once by a second Ctrl-C or SIGTERM."
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

    /// The name of this pod, for its log.
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    pub pod_name: Option<String>,

    /// The address of this pod, for its log.
    #[arg(long, value_name = "IP", requires = "kubernetes")]
    pub pod_ip: Option<std::net::IpAddr>,

    /// How log lines look: text for people, json for machines.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,

    /// Which log lines are written: error, warn, info, debug, trace, or per module as in
    /// info,linkspan_gateway=debug; access=off leaves the access log out.
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
    /// The site's directory.
    pub dir: PathBuf,
    /// Keys, sockets, last good state.
    pub state_dir: PathBuf,
    /// UDP address of the link; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Whether the link is served over TCP too, at the same address.
    pub tcp: bool,
    /// TCP address for local clients that show their own certificate; `None`: off.
    pub mtls_listen: Option<SocketAddr>,
    /// TCP address of the admin server.
    pub admin_listen: SocketAddr,
    /// Worker threads, each with its own runtime and sockets.
    pub workers: usize,
    /// How long running streams may take to finish when the gateway stops.
    #[serde(rename = "drainSeconds", serialize_with = "seconds")]
    pub drain: Duration,
    /// Where the controller is.
    pub controller: ControllerAddress,
}

/// Where the controller is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ControllerAddress {
    /// At the sockets in the state folder of the site.
    Sockets,
    /// At a TLS port of the Kubernetes cluster.
    Port {
        /// `host:port`.
        address: String,
        /// The cluster's root certificates, PEM.
        roots: PathBuf,
        /// The pod's ServiceAccount token for the controller.
        token: PathBuf,
    },
}

/// Clients come until the whole cluster has heard that the pod is going: the EndpointSlices of its Service, those of the mirrors, and
/// every node's service proxy, which may change its rules once a second only. All begins with the same word that stops
/// the gateway. With the drain after it, less than what a pod has: `linkspan install` and the chart give it 20 s beyond its
/// drain (`terminationGracePeriodSeconds`).
const LINGER: Duration = Duration::from_secs(5);

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
        let gateway = &site.spec.gateway;
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        Self {
            cluster: site.cluster().clone(),
            trust_domain: site.trust_domain(),
            dir: dir.to_owned(),
            state_dir: dir.join(&site.spec.state_dir),
            listen: gateway.listen,
            tcp: gateway.tcp,
            mtls_listen: gateway.mtls_listen,
            admin_listen: site.spec.admin.listen,
            workers: gateway.workers.map_or_else(cores, usize::from).clamp(1, MAX_WORKERS),
            drain: Duration::from_secs(gateway.drain_seconds.into()),
            controller: ControllerAddress::Sockets,
        }
    }

    /// Reads the file of a Kubernetes cluster.
    ///
    /// # Errors
    /// When it cannot be read or is not valid.
    pub fn load_cluster(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        Ok(Self::resolve_cluster(&cluster_from_yaml(&text, &path.display().to_string())?))
    }

    /// What a cluster, which is valid by its type, means.
    #[must_use]
    pub fn resolve_cluster(cluster: &Cluster) -> Self {
        let gateway = &cluster.spec.gateway;
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        Self {
            cluster: cluster.cluster().clone(),
            trust_domain: cluster.trust_domain(),
            dir: cluster.spec.state_dir.clone(),
            state_dir: cluster.spec.state_dir.clone(),
            listen: gateway.listen,
            tcp: gateway.tcp,
            mtls_listen: gateway.mtls_listen,
            admin_listen: gateway.admin_listen,
            workers: gateway.workers.map_or_else(cores, usize::from).clamp(1, MAX_WORKERS),
            drain: Duration::from_secs(gateway.drain_seconds.into()),
            controller: ControllerAddress::Port {
                address: cluster.controller_address().to_string(),
                roots: ROOTS.into(),
                token: TOKEN.into(),
            },
        }
    }

    /// How long the gateway serves on as before when it is told to stop.
    #[must_use]
    pub const fn linger(&self) -> Duration {
        match self.controller {
            // Nobody else serves the site's names.
            ControllerAddress::Sockets => Duration::ZERO,
            ControllerAddress::Port { .. } => LINGER,
        }
    }

    /// How the controller is reached; `certificate` is what it is shown over TLS.
    #[must_use]
    pub fn controller(&self, certificate: &Arc<OwnCertificate>) -> Controller {
        match &self.controller {
            ControllerAddress::Sockets => Controller::Sockets {
                configuration: self.state_dir.join("controller.sock"),
                exchange: self.state_dir.join("exchange.sock"),
            },
            ControllerAddress::Port { address, roots, token } => {
                let controller = SpiffeId::controller(&self.trust_domain);
                Controller::Port(Arc::new(Port {
                    address: address.clone(),
                    roots: roots.clone(),
                    token: token.clone(),
                    certificate: Arc::new(WhileValid(Arc::clone(certificate))),
                    is_controller: Arc::new(move |leaf| Svid::read(leaf).is_ok_and(|svid| svid.id == controller)),
                    provider: provider(),
                }))
            }
        }
    }

    /// Where the bound addresses are written when the gateway is ready.
    #[must_use]
    pub fn run_file(&self) -> PathBuf {
        self.state_dir.join("run").join("gateway.json")
    }

    /// The seed of the transport's keys.
    #[must_use]
    pub fn seed_file(&self) -> PathBuf {
        self.state_dir.join("gateway.seed")
    }
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_paths_are_resolved() {
        let site = Site::new(ClusterName::parse("east").unwrap());
        let config = Config::resolve(&site, Path::new("/srv/east"));
        assert_eq!(config.trust_domain.as_str(), "east.linkspan.internal");
        let Controller::Sockets { configuration, .. } = config.controller(&OwnCertificate::new()) else { panic!() };
        assert_eq!(configuration, Path::new("/srv/east/state/controller.sock"));
        assert_eq!(config.run_file(), Path::new("/srv/east/state/run/gateway.json"));
        assert!(config.workers >= 1);
        assert_eq!(config.drain, Duration::from_secs(10));
    }

    #[test]
    fn a_pod_serves_on_for_a_while_and_a_site_has_nobody_to_wait_for() {
        let site = Site::new(ClusterName::parse("east").unwrap());
        assert_eq!(Config::resolve(&site, Path::new("/srv/east")).linger(), Duration::ZERO);
        let yaml = include_str!("../../deploy/kustomize/base/configuration.yaml");
        let config = Config::resolve_cluster(&cluster_from_yaml(yaml, "configuration.yaml").unwrap());
        assert!(config.linger() > Duration::from_secs(2), "two reactions of controllers and one of the service proxy");
        assert!(config.linger() + config.drain < Duration::from_secs(25), "a pod is killed 30 s after it is told");
    }

    #[test]
    fn an_unknown_field_is_named_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let text = "apiVersion: linkspan.io/v1alpha1\nkind: Site\nmetadata: {name: east}\nspec:\n  gatway: {}\n";
        fs::write(dir.path().join(SITE_FILE), text).unwrap();
        let error = Config::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("site.yaml:5") && error.contains("gatway"), "{error}");
    }

    #[test]
    fn a_missing_file_says_how_to_make_one() {
        let dir = tempfile::tempdir().unwrap();
        let error = Config::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("linkspan site init"), "{error}");
    }

    #[test]
    fn arguments_have_defaults() {
        let args = Args::parse_from(["linkspan-gateway"]);
        assert_eq!((args.dir.to_str(), args.log_format), (Some("."), Format::Text));
        let args = Args::parse_from(["linkspan-gateway", "-d", "/srv/east", "--log-format", "json"]);
        assert_eq!((args.dir.to_str(), args.log_format), (Some("/srv/east"), Format::Json));
    }
}
