//! What may be typed for an installation on Kubernetes.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::metadata::KeyPattern;
use linkspan_proto::names::{ClusterName, Namespace, ServiceName};
use linkspan_proto::resources::HostPort;

use super::values::{
    annotation, cluster, dialled, everywhere, image, image_tag, namespace, service_address, trust_domain,
};

/// Whose part of the installation is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// Both
    All,
    /// What a cluster administrator grants: namespace, resource definitions, cluster roles, admission policies
    Cluster,
    /// Everything inside the namespace: what its owner may do
    Namespaced,
}

/// How peers reach the gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServiceType {
    /// An address from the cloud's or the cluster's load balancer
    #[value(name = "LoadBalancer")]
    LoadBalancer,
    /// A port of every node
    #[value(name = "NodePort")]
    NodePort,
    /// Nobody dials this cluster, it dials its peers
    #[value(name = "ClusterIP")]
    ClusterIp,
}

/// Where a packet of a peer may go once a node has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TrafficPolicy {
    /// To any gateway, over a second node if need be
    #[value(name = "Cluster")]
    Cluster,
    /// To a gateway on the same node only
    #[value(name = "Local")]
    Local,
}

/// Print everything that makes a Kubernetes cluster a member, for kubectl apply -f -
#[derive(Debug, Args)]
#[command(
    long_about = "Prints plain YAML for `kubectl apply -f -`: namespace, resource definitions, service accounts, the rights of the \
controller (the gateway has none), admission policies that bind the controller to its own objects, gateways, controllers, \
services, network policies. Nothing in the cluster is read or changed by this command itself.\n\n\
One installation per cluster. Its rights and admission policies have one name in the whole cluster and name the controller of one \
namespace: applied for a second namespace, they are taken from the first, whose controller may do nothing from then on. \
`linkspan check` in the first says so.\n\n\
The certificate authority. A cluster has one root, which its peers trust by its certificate. Without --ca-secret and --ca-from a \
new one is made and printed with the rest, as an immutable Secret and ConfigMap: applying a second print does not replace them, \
the API server refuses these two objects, and kubectl shows the unused new key on the terminal while it says so. From then on \
name it: --ca-secret linkspan-ca prints no key, is the same every time, and is what belongs into Git. --ca-from DIR prints the root that lies in DIR (made by `linkspan ca create --out DIR`).\n\n\
By privilege: --stage cluster prints what a cluster administrator has to grant, --stage namespaced all the rest, for the owner \
of the namespace.",
    after_help = "Examples:\n  linkspan install --cluster-name east | kubectl apply -f -\n  linkspan install --cluster-name east --address east.example.com:4143 --ca-secret linkspan-ca > linkspan.yaml\n  linkspan install --stage cluster | kubectl --as=admin apply -f -\n  linkspan install --stage namespaced --cluster-name east | kubectl apply -f -\n  kubectl -n kube-system get configmap coredns -o yaml | linkspan install --coredns - --dns-cluster-ip 10.96.0.53 | kubectl replace -f -\n\nExit codes: 0 printed, 1 failed, 2 wrong arguments."
)]
pub(crate) struct InstallArgs {
    /// The cluster's name: lower-case letters, digits and '-', 63 at most. Peers see it; mirrored names end in it. Needed for
    /// all but --stage cluster and --coredns
    #[arg(long, value_name = "NAME", value_parser = cluster, required_unless_present_any = ["stage", "coredns"])]
    pub(crate) cluster_name: Option<ClusterName>,
    /// The trust domain of the cluster's identities [default: NAME.linkspan.internal]
    #[arg(long, value_name = "DOMAIN", value_parser = trust_domain)]
    pub(crate) trust_domain: Option<TrustDomain>,
    /// The namespace of gateways and controllers; nothing is mirrored into it
    #[arg(long, short = 'n', value_name = "NAMESPACE", default_value = "linkspan", value_parser = namespace)]
    pub(crate) namespace: Namespace,
    /// Which part to print [default: all]
    #[arg(long, value_name = "STAGE")]
    pub(crate) stage: Option<Stage>,
    /// How many gateways
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) replicas: u16,
    /// How many controllers; one leads, all answer DNS
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=2))]
    pub(crate) controller_replicas: u16,
    /// Where the images are: /gateway and /mirror-controller are appended. The default means images that were loaded onto
    /// the nodes; deploy/docker/Dockerfile builds them
    #[arg(long, value_name = "REGISTRY/PATH", default_value = "localhost/linkspan", value_parser = image)]
    pub(crate) image: String,
    /// The tag of the images
    #[arg(long, value_name = "TAG", default_value = env!("CARGO_PKG_VERSION"), value_parser = image_tag)]
    pub(crate) image_tag: String,
    /// An address at which peers dial this cluster (several: repeat it). Without it, what the load balancer got
    #[arg(long, value_name = "HOST:PORT", value_parser = dialled)]
    pub(crate) address: Vec<HostPort>,
    /// How peers reach the gateways
    #[arg(long, value_name = "TYPE", default_value = "LoadBalancer")]
    pub(crate) service_type: ServiceType,
    /// Serve the link over UDP alone: for load balancers that cannot have UDP and TCP on one port. Peers whose network lets no
    /// UDP pass then have to be dialled
    #[arg(long)]
    pub(crate) no_link_tcp: bool,
    /// The port of every node, UDP and TCP, for --service-type NodePort [default: the API server chooses]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) node_port: Option<u16>,
    /// An annotation of the link's Service, for the load balancer (several: repeat it)
    #[arg(long, value_name = "KEY=VALUE", value_parser = annotation)]
    pub(crate) service_annotation: Vec<(String, String)>,
    /// Where a packet of a peer may go once a node has it
    #[arg(long, value_name = "POLICY", default_value = "Cluster")]
    pub(crate) external_traffic_policy: TrafficPolicy,
    /// The address of the DNS service, so that CoreDNS' configuration can name it beforehand; of the cluster's service range
    /// [default: the API server chooses]
    #[arg(long, value_name = "IP", value_parser = service_address)]
    pub(crate) dns_cluster_ip: Option<IpAddr>,
    /// Print CoreDNS' ConfigMap with the lines that let it forward clusterset.local to --dns-cluster-ip, in place of an
    /// installation, for `kubectl replace -f -`. FILE is what `kubectl -n kube-system get configmap coredns -o yaml` printed, -
    /// for standard input
    #[arg(long, value_name = "FILE", requires = "dns_cluster_ip", conflicts_with_all = ["stage", "cluster_name"])]
    pub(crate) coredns: Option<PathBuf>,
    /// The address on which the pods listen: 0.0.0.0, or :: on clusters with IPv6
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", value_parser = everywhere)]
    pub(crate) bind: IpAddr,
    /// Mirror into this namespace only (several: repeat it); it has to exist. Without it, into every namespace that exists,
    /// except those of Kubernetes itself
    #[arg(long, value_name = "NAMESPACE", value_parser = namespace)]
    pub(crate) import_namespace: Vec<Namespace>,
    /// A network that endpoints of mirrors lie in: the pod network, and the service network for headless services (several:
    /// repeat it). The API server then refuses every other address. Without it, all but loopback, link-local and multicast
    #[arg(long, value_name = "CIDR")]
    pub(crate) endpoint_cidr: Vec<IpNet>,
    /// A label that exports of this cluster do not carry and mirrors in it do not get (several: repeat it): a key, or
    /// example.com/* for all keys of a domain, or * for all; beside those of Kubernetes and of tools that act on Services, which never do
    #[arg(long, value_name = "KEY")]
    pub(crate) exclude_label: Vec<KeyPattern>,
    /// The same for an annotation
    #[arg(long, value_name = "KEY")]
    pub(crate) exclude_annotation: Vec<KeyPattern>,
    /// A cluster whose word counts first where clusters disagree about a service (several: repeat it, in their order; this
    /// cluster may be among them) [default: the one whose export was seen here first]
    #[arg(long, value_name = "CLUSTER", value_parser = cluster)]
    pub(crate) precedence: Vec<ClusterName>,
    /// A network that peers dial from (several: repeat it) [default: all]
    #[arg(long, value_name = "CIDR")]
    pub(crate) peer_cidr: Vec<IpNet>,
    /// A network of the API servers (several: repeat it): controllers reach nothing else on ports 443 and 6443, and the API
    /// server's proxy may reach the admin port [default: any address on those ports, no proxy]
    #[arg(long, value_name = "CIDR")]
    pub(crate) api_server_cidr: Vec<IpNet>,
    /// Print no NetworkPolicy
    #[arg(long)]
    pub(crate) no_network_policy: bool,
    /// Leave out ServiceExport and ServiceImport: another implementation of the multi-cluster services API brings them
    #[arg(long)]
    pub(crate) no_multi_cluster_crds: bool,
    /// The Secret with the cluster's root (root.pem, root.key) that is there already; no key is printed
    #[arg(long, value_name = "NAME", conflicts_with = "ca_from")]
    pub(crate) ca_secret: Option<ServiceName>,
    /// Print the root that lies in this folder, in place of a new one
    #[arg(long, value_name = "DIR")]
    pub(crate) ca_from: Option<PathBuf>,
}

/// Print everything that an installation consists of, for kubectl delete -f -
#[derive(Debug, Args)]
#[command(
    long_about = "Prints what `linkspan install` printed, in the order in which it has to go: first the definition of Link, and with it \
all links, so that the controller withdraws mirrors while it still runs; then the programs; then their rights; last the \
namespace, with the cluster's root in it. No object of ours has a finalizer, so none keeps the others waiting.\n\n\
kubectl deletes them one after the other without waiting, so the controller may end before it has withdrawn every mirror. What \
is left has its label, and so have the controller's rights in namespaces that `linkspan install --import-namespace` named; delete it \
by that (the second example, which the end of the output repeats).\n\n\
A cluster has one installation: definitions, rights and admission policies go whichever namespace they are for. The definitions take \
every Link, policy, ServiceExport and ServiceImport of the cluster along, whoever made it: --keep-crds leaves them, \
--keep-multi-cluster-crds those of the multi-cluster services API, where another implementation uses them. --stage namespaced \
prints what is in the one namespace alone.",
    after_help = "Examples:\n  linkspan uninstall | kubectl delete --ignore-not-found -f -\n  kubectl delete services,endpointslices,rolebindings --all-namespaces -l mirror.linkspan.io/managed-by=mirror-controller\n  linkspan uninstall --keep-ca | kubectl delete --ignore-not-found -f -\n  kubectl -n kube-system get configmap coredns -o yaml | linkspan uninstall --coredns - | kubectl replace -f -\n\nExit codes: 0 printed, 1 failed, 2 wrong arguments."
)]
pub(crate) struct UninstallArgs {
    /// The namespace of gateways and controllers
    #[arg(long, short = 'n', value_name = "NAMESPACE", default_value = "linkspan", value_parser = namespace)]
    pub(crate) namespace: Namespace,
    /// Which part to print
    #[arg(long, value_name = "STAGE", default_value = "all")]
    pub(crate) stage: Stage,
    /// A namespace that was named to `linkspan install` (several: repeat it). Not needed where the second example is typed too
    #[arg(long, value_name = "NAMESPACE", value_parser = namespace)]
    pub(crate) import_namespace: Vec<Namespace>,
    /// The Secret with the cluster's root
    #[arg(long, value_name = "NAME", default_value = "linkspan-ca")]
    pub(crate) ca_secret: ServiceName,
    /// Leave the namespace and the cluster's root in it: peers go on to trust what is installed there later
    #[arg(long)]
    pub(crate) keep_ca: bool,
    /// Leave all resource definitions, and with them all Links, policies, exports and imports
    #[arg(long)]
    pub(crate) keep_crds: bool,
    /// Leave ServiceExport and ServiceImport, and all objects of these kinds
    #[arg(long)]
    pub(crate) keep_multi_cluster_crds: bool,
    /// Print CoreDNS' ConfigMap without the lines that `linkspan install --coredns` added, in place of all else, for `kubectl
    /// replace -f -`. FILE is what `kubectl -n kube-system get configmap coredns -o yaml` printed, - for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) coredns: Option<PathBuf>,
}

/// Print the resource definitions
#[derive(Debug, Args)]
#[command(
    long_about = "Prints the definitions of Link, ClusterTrafficPolicy and ExportPolicy, and those of ServiceExport and ServiceImport \
of the multi-cluster services API. `linkspan install` prints them too.",
    after_help = "Examples:\n  linkspan crds | kubectl apply -f -\n\nExit codes: 0 printed, 1 failed, 2 wrong arguments."
)]
pub(crate) struct CrdsArgs {
    /// Leave out ServiceExport and ServiceImport: another implementation of the multi-cluster services API brings them
    #[arg(long)]
    pub(crate) no_multi_cluster_crds: bool,
}

/// `linkspan ca ...`
#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    Create(CaCreateArgs),
}

/// Make the root of a cluster: its certificate and its key
#[derive(Debug, Args)]
#[command(
    long_about = "Makes a new root for a cluster and prints it as an immutable Secret and a ConfigMap with the certificate alone, for \
`kubectl create -f -`, which refuses to replace an earlier one. Needed once, before the Helm chart or manifests from Git; \
`linkspan install` makes one by itself.\n\n\
With --out, the root goes into a folder in place of standard output (root.pem and root.key, mode 0600): for a Secret manager, \
or for `linkspan install --ca-from`.",
    after_help = "Examples:\n  linkspan ca create --cluster-name east | kubectl create -f -\n  linkspan ca create --cluster-name east --out east-ca\n\nExit codes: 0 made, 1 failed (for instance: the folder has a root already), 2 wrong arguments."
)]
pub(crate) struct CaCreateArgs {
    /// The cluster's name
    #[arg(long, value_name = "NAME", value_parser = cluster)]
    pub(crate) cluster_name: ClusterName,
    /// The trust domain that the root speaks for [default: NAME.linkspan.internal]
    #[arg(long, value_name = "DOMAIN", value_parser = trust_domain)]
    pub(crate) trust_domain: Option<TrustDomain>,
    /// The namespace of the Secret
    #[arg(long, short = 'n', value_name = "NAMESPACE", default_value = "linkspan")]
    pub(crate) namespace: Namespace,
    /// The name of the Secret
    #[arg(long, value_name = "NAME", default_value = "linkspan-ca")]
    pub(crate) secret: ServiceName,
    /// Write root.pem and root.key into this folder and print nothing
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}
