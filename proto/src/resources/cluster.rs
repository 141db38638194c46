//! Kind Cluster: one Kubernetes cluster, in the file that both programs read with `--kubernetes --config FILE`.
//!
//! It is no resource of the API server: an operator's `linkspan install` or chart puts it into a ConfigMap, mounted into the
//! pods of the gateway and of the controller. What differs from pod to pod (name, address) comes as arguments.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{FieldError, HostPort};
use crate::identity::TrustDomain;
use crate::metadata::KeyPattern;
use crate::names::{ClusterName, Namespace, ServiceName};

/// The most workers of one gateway.
const MAX_WORKERS: u16 = 256;

/// The longest drain, in seconds: what a node gives a pod that it evicts is rarely more.
const MAX_DRAIN_SECONDS: u32 = 3600;

/// Fewer ports than this hold no cluster's mirrors.
const MIN_PORTS: u16 = 16;

/// Where Linux begins with ports for outgoing connections: an allocated port above it could be taken by one of them.
const EPHEMERAL: u16 = 32768;

/// Ports below this need a privilege that the pods do not have.
const UNPRIVILEGED: u16 = 1024;

/// A Kubernetes cluster: its name, its trust domain, and how its gateways and controllers listen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// `linkspan.io/v1alpha1`.
    pub api_version: String,
    /// `Cluster`.
    pub kind: String,
    /// The name.
    pub metadata: ClusterMetadata,
    /// Everything else; all of it has defaults.
    #[serde(default)]
    pub spec: ClusterSpec,
}

/// The name of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterMetadata {
    /// The cluster name, by which peers know this cluster. It becomes part of mirror names at the peers.
    pub name: ClusterName,
}

/// How a cluster runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClusterSpec {
    /// The trust domain of the cluster's own certificate authority. Default: `<name>.linkspan.internal`. Peers trust it by
    /// name: changing it later breaks every link until the peers have a new Link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<TrustDomain>,
    /// The namespace of gateway and controller. Default: linkspan. Nothing is mirrored into it.
    pub namespace: Namespace,
    /// The gateways.
    pub gateway: ClusterGatewaySpec,
    /// The controllers.
    pub controller: ClusterControllerSpec,
    /// The DNS server for clusterset names, in each controller.
    pub dns: ClusterDnsSpec,
    /// What is copied between clusters, and whose word counts.
    #[serde(skip_serializing_if = "ClusterMirrorsSpec::is_default")]
    pub mirrors: ClusterMirrorsSpec,
    /// Sockets and last good state; an emptyDir, lost with the pod. Default: /var/lib/linkspan.
    pub state_dir: PathBuf,
}

/// How a gateway listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClusterGatewaySpec {
    /// UDP address of the link. Default: 0.0.0.0:4143.
    #[serde(deserialize_with = "crate::text::socket_address")]
    pub listen: SocketAddr,
    /// Whether the link is served over TCP too, at the same address, for peers whose network lets no UDP pass. Default: true.
    pub tcp: bool,
    /// `host:port` where peers reach the link; `linkspan link export` prints it. Default: none, what the Service in front of
    /// the gateways got from its load balancer; without one peers cannot dial this cluster and it dials them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advertise: Vec<HostPort>,
    /// TCP address for local clients that show their own certificate. Default: 0.0.0.0:4193; null turns it off.
    #[serde(deserialize_with = "crate::text::optional_socket_address")]
    pub mtls_listen: Option<SocketAddr>,
    /// TCP address of the admin server: /live and /ready for the kubelet, /metrics, and read-only views. Default:
    /// 0.0.0.0:4191; who else may reach it is the NetworkPolicy's business.
    #[serde(deserialize_with = "crate::text::socket_address")]
    pub admin_listen: SocketAddr,
    /// From where each mirrored port gets a port of the gateway's own.
    pub ports: PortRange,
    /// The headless Service in the cluster's namespace whose EndpointSlices name the gateway pods. Default:
    /// linkspan-gateway. Endpoints of mirrors are the ready pods in them and nothing else.
    pub service: ServiceName,
    /// The Service in the cluster's namespace that peers dial; its status has the address of the load balancer. Default:
    /// linkspan-link.
    pub link_service: ServiceName,
    /// Worker threads. Default: one for each CPU that the container may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<u16>,
    /// How long running streams may take to finish when a gateway stops, seconds. Default: 10. The pod's
    /// `terminationGracePeriodSeconds` has to be longer.
    pub drain_seconds: u32,
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PortRange {
    /// The lowest. Default: 10000.
    pub first: u16,
    /// The highest. Default: 32767, below the range of outgoing connections.
    pub last: u16,
}

/// How a controller listens, and how the gateways find it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClusterControllerSpec {
    /// `host:port` where gateways reach the controllers. Default: linkspan-controller.linkspan.svc:4192, with the cluster's
    /// namespace in the place of the second `linkspan`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<HostPort>,
    /// TCP address of the gateways' configuration, mTLS. Default: 0.0.0.0:4192.
    #[serde(deserialize_with = "crate::text::socket_address")]
    pub listen: SocketAddr,
    /// TCP address of the admin server, as the gateway's. Default: 0.0.0.0:4191.
    #[serde(deserialize_with = "crate::text::socket_address")]
    pub admin_listen: SocketAddr,
}

/// How the DNS server listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClusterDnsSpec {
    /// UDP and TCP address. Default: 0.0.0.0:5353; the Service in front has port 53.
    #[serde(deserialize_with = "crate::text::socket_address")]
    pub listen: SocketAddr,
}

/// What is copied between clusters, and whose word counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClusterMirrorsSpec {
    /// Labels that exports of this cluster do not carry and mirrors in it do not get: keys, or `example.com/*` for all keys
    /// of a domain. Default: none, beside what is never copied, the keys of Kubernetes and of tools that act on Services.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub excluded_labels: Vec<KeyPattern>,
    /// The same for annotations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub excluded_annotations: Vec<KeyPattern>,
    /// Whose word counts first where clusters disagree about a service of the clusterset, in this order; this cluster's own
    /// name may be among them. Default: nobody's, and that of the cluster counts whose export was seen here first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub precedence: Vec<ClusterName>,
    /// The only namespaces of this cluster that are mirrored into; all others count as if they were not there. Default: every
    /// namespace. The controller needs its rights in these alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Namespace>,
}

impl ClusterMirrorsSpec {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

const fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

/// A name of ours; they are all valid, a test sees to it.
fn service(name: &str) -> ServiceName {
    ServiceName::parse(name).expect("a constant that is a DNS label")
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            trust_domain: None,
            namespace: Namespace::parse("linkspan").expect("a constant that is a DNS label"),
            gateway: ClusterGatewaySpec::default(),
            controller: ClusterControllerSpec::default(),
            dns: ClusterDnsSpec::default(),
            mirrors: ClusterMirrorsSpec::default(),
            state_dir: PathBuf::from("/var/lib/linkspan"),
        }
    }
}

impl Default for ClusterGatewaySpec {
    fn default() -> Self {
        Self {
            listen: everywhere(4143),
            tcp: true,
            advertise: Vec::new(),
            mtls_listen: Some(everywhere(4193)),
            admin_listen: everywhere(4191),
            ports: PortRange::default(),
            service: service("linkspan-gateway"),
            link_service: service("linkspan-link"),
            workers: None,
            drain_seconds: 10,
        }
    }
}

impl Default for PortRange {
    fn default() -> Self {
        Self { first: 10000, last: 32767 }
    }
}

impl Default for ClusterControllerSpec {
    fn default() -> Self {
        Self { address: None, listen: everywhere(4192), admin_listen: everywhere(4191) }
    }
}

impl Default for ClusterDnsSpec {
    fn default() -> Self {
        Self { listen: everywhere(5353) }
    }
}

impl Cluster {
    /// A cluster with all defaults.
    #[must_use]
    pub fn new(name: ClusterName) -> Self {
        Self {
            api_version: super::API_VERSION.to_owned(),
            kind: "Cluster".to_owned(),
            metadata: ClusterMetadata { name },
            spec: ClusterSpec::default(),
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

    /// Where gateways reach the controllers, the default resolved.
    #[must_use]
    pub fn controller_address(&self) -> HostPort {
        self.spec.controller.address.clone().unwrap_or_else(|| HostPort {
            host: format!("linkspan-controller.{}.svc", self.spec.namespace),
            port: self.spec.controller.listen.port(),
        })
    }

    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// When a number is out of its range, two listeners of one pod have the same port, or an allocated port could be taken
    /// by something else.
    pub fn validate(&self) -> Result<(), FieldError> {
        if let Some(message) = self.metadata.name.reserved() {
            return Err(FieldError::new("metadata.name", message));
        }
        let precedence = &self.spec.mirrors.precedence;
        if let Some((index, twice)) =
            precedence.iter().enumerate().find(|(index, name)| precedence.iter().take(*index).any(|one| one == *name))
        {
            let message = format!("`{twice}` comes twice: name each cluster once");
            return Err(FieldError::new(format!("spec.mirrors.precedence[{index}]"), message));
        }
        let own = &self.spec.namespace;
        if let Some(index) = self.spec.mirrors.namespaces.iter().position(|namespace| namespace == own) {
            let message = format!("`{own}` is that of the gateways, and nothing is mirrored into it: leave it out");
            return Err(FieldError::new(format!("spec.mirrors.namespaces[{index}]"), message));
        }
        let ClusterGatewaySpec { workers, drain_seconds, advertise, .. } = &self.spec.gateway;
        if workers.is_some_and(|workers| workers == 0 || workers > MAX_WORKERS) {
            return Err(FieldError::new("spec.gateway.workers", format!("write 1 to {MAX_WORKERS}, or leave it out")));
        }
        if *drain_seconds > MAX_DRAIN_SECONDS {
            let message = format!("{drain_seconds} s is over {MAX_DRAIN_SECONDS} s: no pod gets that long to end");
            return Err(FieldError::new("spec.gateway.drainSeconds", message));
        }
        for (index, address) in advertise.iter().enumerate() {
            if address.port == 0 || address.ip().is_some_and(|ip| ip.is_unspecified()) {
                let message = format!("`{address}` is nothing that a peer can dial: write its host and port");
                return Err(FieldError::new(format!("spec.gateway.advertise[{index}]"), message));
            }
        }
        if !self.spec.state_dir.is_absolute() {
            let message =
                format!("`{}` is relative: write the path of the mounted volume", self.spec.state_dir.display());
            return Err(FieldError::new("spec.stateDir", message));
        }
        self.validate_listeners()?;
        self.validate_ports()
    }

    /// Each pod has one network: its listeners of one protocol need ports of their own, and the pods no privileges.
    fn validate_listeners(&self) -> Result<(), FieldError> {
        let ClusterSpec { gateway, controller, dns, .. } = &self.spec;
        let listeners = [
            ("spec.gateway.listen", gateway.listen),
            ("spec.gateway.adminListen", gateway.admin_listen),
            ("spec.controller.listen", controller.listen),
            ("spec.controller.adminListen", controller.admin_listen),
            ("spec.dns.listen", dns.listen),
        ];
        let mtls = gateway.mtls_listen.map(|address| ("spec.gateway.mtlsListen", address));
        for (field, address) in listeners.into_iter().chain(mtls) {
            if address.port() < UNPRIVILEGED {
                let message = format!("{address}: the pod has no privileges, use a port from {UNPRIVILEGED} on");
                return Err(FieldError::new(field, message));
            }
        }
        let clash = |field: &str, port: u16, other: &str| {
            Err(FieldError::new(field, format!("port {port} is that of {other} too: give each listener its own")))
        };
        if mtls.is_some_and(|(_, address)| address.port() == gateway.admin_listen.port()) {
            return clash("spec.gateway.mtlsListen", gateway.admin_listen.port(), "spec.gateway.adminListen");
        }
        let port = controller.admin_listen.port();
        if controller.listen.port() == port {
            return clash("spec.controller.listen", port, "spec.controller.adminListen");
        }
        if [port, controller.listen.port()].contains(&dns.listen.port()) {
            return clash("spec.dns.listen", dns.listen.port(), "another listener of the controller");
        }
        Ok(())
    }

    fn validate_ports(&self) -> Result<(), FieldError> {
        let PortRange { first, last } = self.spec.gateway.ports;
        let field = "spec.gateway.ports";
        if first < UNPRIVILEGED || last < first || last - first < MIN_PORTS - 1 {
            let message = format!(
                "{first} to {last}: write at least {MIN_PORTS} ports from {UNPRIVILEGED} on; each mirrored port needs one"
            );
            return Err(FieldError::new(field, message));
        }
        if last >= EPHEMERAL {
            let message = format!("{last} can be taken by outgoing connections: end at {} or below", EPHEMERAL - 1);
            return Err(FieldError::new(format!("{field}.last"), message));
        }
        let gateway = &self.spec.gateway;
        let own = [Some(gateway.listen), Some(gateway.admin_listen), gateway.mtls_listen];
        if let Some(address) = own.into_iter().flatten().find(|own| (first..=last).contains(&own.port())) {
            let message = format!("{first} to {last} holds {}, where the gateway itself listens", address.port());
            return Err(FieldError::new(field, message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(change: impl FnOnce(&mut ClusterSpec)) -> String {
        let mut cluster = Cluster::new(ClusterName::parse("east").unwrap());
        assert_eq!(cluster.validate(), Ok(()));
        change(&mut cluster.spec);
        cluster.validate().unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_resolved() {
        let mut cluster = Cluster::new(ClusterName::parse("east").unwrap());
        assert_eq!(cluster.trust_domain().as_str(), "east.linkspan.internal");
        assert_eq!(cluster.controller_address().to_string(), "linkspan-controller.linkspan.svc:4192");
        cluster.spec.namespace = Namespace::parse("mesh").unwrap();
        cluster.spec.controller.listen.set_port(5192);
        assert_eq!(cluster.controller_address().to_string(), "linkspan-controller.mesh.svc:5192");
    }

    #[test]
    fn no_cluster_is_called_clusterset() {
        let error = Cluster::new(ClusterName::parse("clusterset").unwrap()).validate().unwrap_err();
        assert_eq!(error.field, "metadata.name");
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_field() {
        for (error, field) in [
            (error(|spec| spec.gateway.workers = Some(0)), "spec.gateway.workers"),
            (
                error(|spec| spec.mirrors.precedence = ["east", "east"].map(|it| it.parse().unwrap()).into()),
                "spec.mirrors.precedence[1]",
            ),
            (
                error(|spec| spec.mirrors.namespaces = ["shop", "linkspan"].map(|it| it.parse().unwrap()).into()),
                "spec.mirrors.namespaces[1]",
            ),
            (error(|spec| spec.gateway.drain_seconds = 3601), "spec.gateway.drainSeconds"),
            (error(|spec| spec.gateway.advertise = vec!["0.0.0.0:4143".parse().unwrap()]), "spec.gateway.advertise[0]"),
            (error(|spec| spec.gateway.advertise = vec!["a:0".parse().unwrap()]), "spec.gateway.advertise[0]"),
            (error(|spec| spec.state_dir = PathBuf::from("state")), "spec.stateDir"),
            (error(|spec| spec.dns.listen.set_port(53)), "spec.dns.listen"),
            (error(|spec| spec.dns.listen.set_port(4192)), "spec.dns.listen"),
            (error(|spec| spec.controller.listen.set_port(4191)), "spec.controller.listen"),
            (error(|spec| spec.gateway.mtls_listen = Some(everywhere(4191))), "spec.gateway.mtlsListen"),
            (error(|spec| spec.gateway.ports.first = 80), "spec.gateway.ports"),
            (error(|spec| spec.gateway.ports = PortRange { first: 20000, last: 10000 }), "spec.gateway.ports"),
            (error(|spec| spec.gateway.ports.last = 40000), "spec.gateway.ports.last"),
            (error(|spec| spec.gateway.ports.first = 4100), "spec.gateway.ports"),
        ] {
            assert!(error.starts_with(&format!("{field}: ")), "{error} instead of {field}");
        }
    }
}
