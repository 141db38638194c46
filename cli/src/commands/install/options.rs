//! What was typed, and what it means.
//!
//! In: arguments. Out: [`Options`], with the cluster's configuration checked as the programs will check it. Refuses when: a
//! value cannot work on any cluster, named by its argument.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use linkspan_proto::manifest;
use linkspan_proto::names::{ClusterName, Namespace};
use linkspan_proto::resources::Cluster;
use sha2::{Digest, Sha256};

use super::authority::Root;
use crate::args::{InstallArgs, ServiceType, Stage, TrafficPolicy};
use crate::commands::WrongArguments;

/// The Secret with the root, unless another one is named.
pub(super) const CA_SECRET: &str = "linkspan-ca";

/// Where the root comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Authority {
    /// It is in the cluster.
    Present,
    /// It lies in a folder.
    Folder(PathBuf),
    /// It has to be made.
    New,
}

/// An installation.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// What to print.
    pub(super) stage: Stage,
    /// What both programs read.
    pub(super) cluster: Cluster,
    /// The same as text.
    pub(super) configuration: String,
    /// How many gateways.
    pub(super) gateways: u16,
    /// How many controllers.
    pub(super) controllers: u16,
    /// Images without their last part and tag.
    pub(super) image: String,
    /// The tag.
    pub(super) image_tag: String,
    /// How peers reach the gateways.
    pub(super) service_type: ServiceType,
    /// The port of every node.
    pub(super) node_port: Option<u16>,
    /// Annotations for the load balancer.
    pub(super) annotations: Vec<(String, String)>,
    /// Where a packet goes once a node has it.
    pub(super) traffic_policy: TrafficPolicy,
    /// The address of the DNS service.
    pub(super) dns_address: Option<IpAddr>,
    /// The only namespaces to mirror into; empty: all.
    pub(super) imports: Vec<Namespace>,
    /// Networks for endpoints of mirrors, as CIDR.
    pub(super) endpoint_networks: Vec<String>,
    /// Networks that peers dial from, as CIDR; empty: all.
    pub(super) peer_networks: Vec<String>,
    /// Networks of the API servers, as CIDR; empty: unknown.
    pub(super) api_servers: Vec<String>,
    /// Whether to print NetworkPolicies.
    pub(super) network_policy: bool,
    /// Whether to print the definitions of the multi-cluster services API.
    pub(super) multi_cluster_crds: bool,
    /// The name of the Secret with the root.
    pub(super) ca_secret: String,
    authority: Authority,
}

impl Options {
    /// Checks and completes what was typed.
    pub(super) fn resolve(args: &InstallArgs) -> anyhow::Result<Self> {
        let stage = args.stage.unwrap_or(Stage::All);
        let name = match (&args.cluster_name, stage) {
            (Some(name), _) => name.clone(),
            // What a cluster administrator grants does not depend on the cluster's name.
            (None, Stage::Cluster) => placeholder(),
            (None, _) => {
                return Err(wrong(
                    "--cluster-name is missing: peers know the cluster by it, as in --cluster-name east",
                ));
            }
        };
        if let Some(own) = args.import_namespace.iter().find(|namespace| **namespace == args.namespace) {
            return Err(wrong(format!(
                "--import-namespace {own}: gateways and controllers run there (--namespace), and nothing is mirrored into it; leave \
                 it out"
            )));
        }
        once("--address", &args.address)?;
        once("--import-namespace", &args.import_namespace)?;
        once("--precedence", &args.precedence)?;
        if let (Some(port), ServiceType::ClusterIp) = (args.node_port, args.service_type) {
            return Err(wrong(format!(
                "--node-port {port} goes with --service-type NodePort or LoadBalancer: a ClusterIP has no port of the nodes"
            )));
        }
        let cluster = configured(args, name)?;
        let networks = |networks: &[ipnet::IpNet]| networks.iter().map(|network| network.trunc().to_string()).collect();
        Ok(Self {
            stage,
            configuration: manifest::to_yaml(&cluster)?,
            cluster,
            gateways: args.replicas,
            controllers: args.controller_replicas,
            image: args.image.clone(),
            image_tag: args.image_tag.clone(),
            service_type: args.service_type,
            node_port: args.node_port,
            annotations: args.service_annotation.clone(),
            traffic_policy: args.external_traffic_policy,
            dns_address: args.dns_cluster_ip,
            imports: args.import_namespace.clone(),
            endpoint_networks: networks(&args.endpoint_cidr),
            peer_networks: networks(&args.peer_cidr),
            api_servers: networks(&args.api_server_cidr),
            network_policy: !args.no_network_policy,
            multi_cluster_crds: !args.no_multi_cluster_crds,
            ca_secret: args.ca_secret.as_ref().map_or(CA_SECRET, |name| name.as_str()).to_owned(),
            authority: match (&args.ca_secret, &args.ca_from) {
                (Some(_), _) => Authority::Present,
                (None, Some(folder)) => Authority::Folder(folder.clone()),
                (None, None) => Authority::New,
            },
        })
    }

    /// What was installed there, with the most that can be: what is not there is not missed.
    pub(super) fn for_departure(namespace: &Namespace, imports: &[Namespace]) -> anyhow::Result<Self> {
        let mut cluster = Cluster::new(placeholder());
        cluster.spec.namespace = namespace.clone();
        Ok(Self {
            stage: Stage::All,
            configuration: manifest::to_yaml(&cluster)?,
            cluster,
            // More than one of each, so that their disruption budgets are in it.
            gateways: 2,
            controllers: 2,
            image: String::new(),
            image_tag: String::new(),
            service_type: ServiceType::LoadBalancer,
            node_port: None,
            annotations: Vec::new(),
            traffic_policy: TrafficPolicy::Cluster,
            dns_address: None,
            imports: imports.to_vec(),
            endpoint_networks: Vec::new(),
            peer_networks: Vec::new(),
            api_servers: Vec::new(),
            network_policy: true,
            multi_cluster_crds: true,
            ca_secret: CA_SECRET.to_owned(),
            authority: Authority::Present,
        })
    }

    /// The namespace of gateways and controllers.
    pub(super) fn namespace(&self) -> &str {
        self.cluster.spec.namespace.as_str()
    }

    /// The root to print, if one is to be printed.
    pub(super) fn root(&self) -> anyhow::Result<Option<Root>> {
        Ok(match &self.authority {
            Authority::Present => None,
            Authority::Folder(folder) => Some(Root::load(folder, &self.cluster.trust_domain())?),
            Authority::New => Some(Root::fresh(&self.cluster.trust_domain())?),
        })
    }

    /// Changes with the configuration, and with it the pods: they read it once. Of the values, so that the form of the text does
    /// not count.
    pub(super) fn configuration_hash(&self) -> String {
        let value = serde_json::to_value(&self.cluster).unwrap_or_default();
        Sha256::digest(value.to_string()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Values that are well formed and cannot be used.
fn wrong(message: impl Into<String>) -> anyhow::Error {
    WrongArguments(message.into()).into()
}

/// Refuses what is repeated: each value stands for one object, or for one place in an order.
fn once<T: PartialEq + std::fmt::Display>(argument: &str, values: &[T]) -> anyhow::Result<()> {
    let twice = values.iter().enumerate().find(|(index, value)| values.iter().take(*index).any(|one| one == *value));
    twice.map_or(Ok(()), |(_, value)| Err(wrong(format!("{argument} {value} comes twice: name it once"))))
}

fn placeholder() -> ClusterName {
    ClusterName::parse("cluster").expect("a constant that is a DNS label")
}

/// The configuration that both programs will read, checked as they check it.
fn configured(args: &InstallArgs, name: ClusterName) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::new(name);
    let spec = &mut cluster.spec;
    spec.trust_domain.clone_from(&args.trust_domain);
    spec.namespace.clone_from(&args.namespace);
    spec.gateway.tcp = !args.no_link_tcp;
    spec.gateway.advertise.clone_from(&args.address);
    spec.mirrors.excluded_labels.clone_from(&args.exclude_label);
    spec.mirrors.excluded_annotations.clone_from(&args.exclude_annotation);
    spec.mirrors.precedence.clone_from(&args.precedence);
    spec.mirrors.namespaces.clone_from(&args.import_namespace);
    let bind = |address: &mut SocketAddr| address.set_ip(args.bind);
    for address in [
        &mut spec.gateway.listen,
        &mut spec.gateway.admin_listen,
        &mut spec.controller.listen,
        &mut spec.controller.admin_listen,
        &mut spec.dns.listen,
    ] {
        bind(address);
    }
    spec.gateway.mtls_listen.as_mut().map(bind);
    // Written out: whoever reads the ConfigMap sees where gateways go, and what peers will see.
    cluster.spec.trust_domain = Some(cluster.trust_domain());
    cluster.spec.controller.address = Some(cluster.controller_address());
    cluster.validate().map_err(|error| wrong(format!("these values do not fit together: {error}")))?;
    Ok(cluster)
}
