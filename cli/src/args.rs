//! The clap tree: what may be typed, with the help that `--help` prints. No command does its work here.

mod kubernetes;
mod place;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::names::{ClusterName, Namespace, ServiceAccountName, ServiceKey};
use linkspan_proto::resources::HostPort;
use linkspan_runtime::telemetry::Format as LogFormat;

mod values;

pub(crate) use kubernetes::{
    CaCommand, CaCreateArgs, CrdsArgs, InstallArgs, ServiceType, Stage, TrafficPolicy, UninstallArgs,
};
pub(crate) use place::Place;
pub(crate) use values::{RESERVED_NAMESPACES, Workload};
use values::{range, seconds, socket, window, workload};

/// Joins clusters and sites into one mesh: services of one cluster under names of the other.
#[derive(Debug, Parser)]
#[command(
    name = "linkspan",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    after_help = "Start here:\n  linkspan demo                         two linked sites on this machine, step by step\n  linkspan site init east --dir east    a site of your own\n  linkspan install --cluster-name east  a Kubernetes cluster, as YAML for kubectl apply -f -\n\nExit codes: 0 done, 1 failed or a check did not pass, 2 wrong arguments. A reader of the output that has gone away (| head) changes none of them. NO_COLOR=1 turns colours off."
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(DemoArgs),
    /// Make and run a standalone site
    #[command(subcommand)]
    Site(SiteCommand),
    /// Link this site or cluster with another one
    #[command(subcommand)]
    Link(LinkCommand),
    /// Certificates for workloads of this site
    #[command(subcommand)]
    Identity(IdentityCommand),
    Gateways(GatewaysArgs),
    Services(ServicesArgs),
    Exports(ExportsArgs),
    Check(CheckArgs),
    Stat(StatArgs),
    Install(Box<InstallArgs>),
    Uninstall(UninstallArgs),
    Crds(CrdsArgs),
    /// The root of a Kubernetes cluster
    #[command(subcommand)]
    Ca(CaCommand),
    Version(VersionArgs),
    Completions(CompletionsArgs),
}

/// Where the site is.
#[derive(Debug, Args)]
pub(crate) struct SiteDir {
    /// The site's folder: the one that holds site.yaml
    #[arg(long, short = 'd', value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
}

/// How to print.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputArgs {
    /// How to print: a table for people, or one JSON document for programs
    #[arg(long, short = 'o', value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
}

/// Output forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns; colour only on a terminal
    Table,
    /// The table with more columns, where a command has them
    Wide,
    /// One JSON document
    Json,
}

/// How to say what was done.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ActionArgs {
    /// How to say what was done: text for people, or one JSON document for programs
    #[arg(long, short = 'o', value_name = "FORMAT", default_value = "text")]
    pub(crate) output: ActionFormat,
}

/// Output forms of commands that do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ActionFormat {
    /// For people
    Text,
    /// One JSON document
    Json,
}

/// Start two linked sites on this machine and walk through the story
#[derive(Debug, Args)]
#[command(
    long_about = "Starts two sites, east and west, on this machine, with a small HTTP service in each, links them, and \
walks through the story with live figures: a mirrored name resolves, a call crosses, the backend sees who called, \
traffic is shifted by weights, the remote gateway is killed and traffic moves, it returns and traffic comes back.\n\n\
Needs no root and no fixed port: it picks loopback addresses inside 127.80.0.0/12 and ports that are free. Everything \
it makes lies in one temporary folder and goes away at the end, or at the next demo's start if this one is killed. It \
stays up for your own curl and dig until Ctrl-C, or until the program that reads its output ends \
(linkspan demo | less).",
    after_help = "Examples:\n  linkspan demo                    the story, then stays up\n  linkspan demo --check            the story as a test: PASS or FAIL per step, in under 60 s\n  linkspan demo -o json            no story: prints one JSON object with every address, stays up\n\nExit codes: 0 all steps passed (without --check also: ended by Ctrl-C), 1 a step failed or the check was interrupted, 2 wrong arguments."
)]
pub(crate) struct DemoArgs {
    /// Verify every step, print PASS or FAIL for each, end with exit code 0 or 1
    #[arg(long)]
    pub(crate) check: bool,
    /// text: the story. json: one JSON object with all addresses, pids and commands once ready (--check: the results)
    #[arg(long, short = 'o', value_name = "FORMAT", default_value = "text")]
    pub(crate) output: ActionFormat,
    /// Keep the temporary folder with both sites at the end, and say where it is
    #[arg(long)]
    pub(crate) keep: bool,
    /// The service process of the demo; started by the demo itself
    #[arg(long, hide = true, value_name = "CLUSTER", requires = "listen")]
    pub(crate) serve: Option<String>,
    /// Where that service process listens
    #[arg(long, hide = true, value_name = "IP:PORT", requires = "serve")]
    pub(crate) listen: Option<SocketAddr>,
}

/// `linkspan site ...`
#[derive(Debug, Subcommand)]
pub(crate) enum SiteCommand {
    Init(Box<SiteInitArgs>),
    Run(SiteRunArgs),
}

/// Make a site: site.yaml with every field explained, a state folder with its own CA, an empty manifests folder
#[derive(Debug, Args)]
#[command(
    long_about = "Makes a site: a site.yaml in which every field stands with its default, unit and consequence, a state \
folder (mode 0700) with a certificate authority of the site's own, and an empty manifests folder. Nothing that is there \
already is overwritten.",
    after_help = "Examples:\n  linkspan site init east --dir /srv/east --advertise east.example.com:4143\n  linkspan site init laptop --dir laptop      nobody dials it: it dials the others (NAT)\n\nExit codes: 0 made, 1 failed (for instance: a site is there already), 2 wrong arguments."
)]
pub(crate) struct SiteInitArgs {
    /// The cluster's name: lower-case letters, digits and '-', 63 at most. Peers see it; mirrored names end in it
    #[arg(value_name = "NAME")]
    pub(crate) name: ClusterName,
    /// The folder to make
    #[arg(long, short = 'd', value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The trust domain of the site's identities [default: NAME.linkspan.internal]
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) trust_domain: Option<TrustDomain>,
    /// UDP address of the link; port 0 lets the kernel choose
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:4143", value_parser = socket)]
    pub(crate) listen: SocketAddr,
    /// An address at which peers can dial this site (several: repeat it). None: this site dials, nobody dials it. Port 0
    /// means the port that the link has bound
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Vec<HostPort>,
    /// TCP address of the port for local clients that show their own certificate
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:4193", value_parser = socket)]
    pub(crate) mtls_listen: SocketAddr,
    /// UDP and TCP address of the DNS server for mirrored names
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:5353", value_parser = socket)]
    pub(crate) dns_listen: SocketAddr,
    /// TCP address of the admin listener: /metrics /ready /live /config (read-only)
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:4191", value_parser = socket)]
    pub(crate) admin_listen: SocketAddr,
    /// The address range from which every mirrored service gets an address of its own
    #[arg(long, value_name = "CIDR", default_value = "127.80.0.0/12", value_parser = range)]
    pub(crate) mirror_addresses: IpNet,
    /// Clients at these addresses are this workload: their identity reaches backends with assurance network (several:
    /// repeat it)
    #[arg(long, value_name = "CIDR=NAMESPACE/ACCOUNT", value_parser = workload)]
    pub(crate) workload: Vec<Workload>,
    /// TCP address of the controller's own admin listener, for linkspan-mirror-controller as a process of its own
    #[arg(long, value_name = "IP:PORT", value_parser = socket)]
    pub(crate) controller_admin_listen: Option<SocketAddr>,
    /// Threads of the data path, 1 to 256 [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: Option<u16>,
    /// How to say what was done.
    #[command(flatten)]
    pub(crate) output: ActionArgs,
}

/// Run the gateway and the controller of a site in one process
#[derive(Debug, Args)]
#[command(
    long_about = "Runs the gateway and the controller of a site in one process. They speak with each other only through the \
sockets in the state folder, as the two separate programs linkspan-gateway and linkspan-mirror-controller do.\n\n\
Prints the bound addresses when everything listens. Ends on SIGTERM or Ctrl-C after a drain (gateway.drainSeconds in \
site.yaml); a second signal ends it at once.",
    after_help = "Examples:\n  linkspan site run --dir /srv/east\n  linkspan site run --dir /srv/east --log-format json --log-filter info,linkspan_gateway=debug\n\nExit codes: 0 ended by a signal, 1 could not start or a vital part failed, 2 wrong arguments."
)]
pub(crate) struct SiteRunArgs {
    /// Where the site is.
    #[command(flatten)]
    pub(crate) site: SiteDir,
    /// How log lines look (they go to standard error): text for people, json for programs
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Which log lines are written: error, warn, info, debug, trace, or per module as in info,linkspan_gateway=debug;
    /// access=off leaves the access log out
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub(crate) log_filter: String,
    /// Run one half only; for the demo
    #[arg(long, hide = true, value_name = "HALF")]
    pub(crate) only: Option<Half>,
    /// End when standard input ends; the demo's children end with it this way, however it ends
    #[arg(long, hide = true)]
    pub(crate) until_stdin_ends: bool,
}

/// The halves of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Half {
    /// The data plane
    Gateway,
    /// The control plane
    Controller,
}

/// `linkspan link ...`
#[derive(Debug, Subcommand)]
pub(crate) enum LinkCommand {
    Export(LinkExportArgs),
    Import(LinkImportArgs),
    List(LinkListArgs),
    Remove(LinkRemoveArgs),
}

/// Print the Link manifest that the peer applies
#[derive(Debug, Args)]
#[command(
    long_about = "Prints the Link manifest that the peer applies: our name, trust domain, root certificate and \
addresses. It holds no secret, but whoever applies it trusts this root for this trust domain: carry it over a channel in \
which nobody can change it, or compare the fingerprint that `link import` shows.\n\n\
Addresses of a site come from gateway.advertise in site.yaml; port 0 stands for the port that the running gateway has bound. \
Those of a Kubernetes cluster are what `linkspan install --address` was given, otherwise what the load balancer gave the Service \
linkspan-link, or the nodes' addresses with its node port. --address names others. Without any address the peer waits to be \
dialled by us.",
    after_help = "Examples:\n  linkspan link export --dir east > east-link.yaml\n  linkspan link export --dir east --address east.example.com:4143 \\\n    | ssh west linkspan link import - --dir /srv/west\n  linkspan link export --context west > west-link.yaml\n\nExit codes: 0 printed, 1 failed (for instance: the load balancer has no address yet), 2 wrong arguments."
)]
pub(crate) struct LinkExportArgs {
    /// Which site or cluster.
    #[command(flatten)]
    pub(crate) place: Place,
    /// An address at which the peer dials us, in place of those above (several: repeat it)
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "no_address")]
    pub(crate) address: Vec<HostPort>,
    /// Print no address, even if there is one: the peer waits to be dialled
    #[arg(long)]
    pub(crate) no_address: bool,
}

/// Check a peer's Link manifest and put it in force: in manifests/, or in the API server
#[derive(Debug, Args)]
#[command(
    long_about = "Checks the Link manifest of a peer and places it as manifests/link-NAME.yaml of a site, or applies it to the API \
server of a Kubernetes cluster. Checked: the names, the trust domain, that the bundle holds CA certificates and nothing else, \
that it is not our own, that no other link has the same trust domain. Shows the root's SHA-256 fingerprint to compare with the \
peer's people.\n\n\
What runs takes it up in under a second.",
    after_help = "Examples:\n  linkspan link import east-link.yaml --dir west\n  linkspan link export --context east | linkspan link import - --context west\n\nExit codes: 0 placed (or there already, unchanged), 1 refused or failed, 2 wrong arguments."
)]
pub(crate) struct LinkImportArgs {
    /// The manifest that the peer's `link export` printed; - reads standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Which site or cluster.
    #[command(flatten)]
    pub(crate) place: Place,
    /// Replace an existing link of the same name (for a new root or new addresses)
    #[arg(long)]
    pub(crate) replace: bool,
    /// How to say what was done.
    #[command(flatten)]
    pub(crate) output: ActionArgs,
}

/// Show the links that are declared here
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 shown, 1 failed, 2 wrong arguments.")]
pub(crate) struct LinkListArgs {
    /// Which site or cluster.
    #[command(flatten)]
    pub(crate) place: Place,
    /// How to print.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Remove a link: its mirrors go, its peer can no longer connect
#[derive(Debug, Args)]
#[command(
    long_about = "Removes the Link that `link import` placed. What runs then closes the link and removes everything that it \
mirrored from that peer; new connections of the peer are refused.",
    after_help = "Exit codes: 0 removed, 1 failed (for instance: no such link), 2 wrong arguments."
)]
pub(crate) struct LinkRemoveArgs {
    /// The peer's cluster name
    #[arg(value_name = "NAME")]
    pub(crate) name: ClusterName,
    /// Which site or cluster.
    #[command(flatten)]
    pub(crate) place: Place,
    /// How to say what was done.
    #[command(flatten)]
    pub(crate) output: ActionArgs,
}

/// `linkspan identity ...`
#[derive(Debug, Subcommand)]
pub(crate) enum IdentityCommand {
    Issue(IdentityIssueArgs),
}

/// Issue a certificate (X.509-SVID) to a workload of this site, for the gateway's mTLS port
#[derive(Debug, Args)]
#[command(
    long_about = "Makes a key and a certificate for a workload of this site: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT, \
signed by the site's CA. A client that shows it at the gateway's mTLS port (gateway.mtlsListen), with the mirrored name \
as server name, is known to backends in linked clusters under this identity with assurance mtls.\n\n\
Writes tls.crt (the chain), tls.key (mode 0600) and ca.crt (the site's root, to verify the gateway).",
    after_help = "Examples:\n  linkspan identity issue --dir east --namespace shop --service-account web --out web-identity\n  curl --cert web-identity/tls.crt --key web-identity/tls.key --cacert web-identity/ca.crt \\\n    --connect-to ::127.0.0.1:4193 https://api-west.shop.svc.cluster.local:8080/\n\nExit codes: 0 issued, 1 failed, 2 wrong arguments."
)]
pub(crate) struct IdentityIssueArgs {
    /// Where the site is.
    #[command(flatten)]
    pub(crate) site: SiteDir,
    /// The workload's namespace
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    pub(crate) namespace: Namespace,
    /// The workload's service account
    #[arg(long, short = 's', value_name = "ACCOUNT")]
    pub(crate) service_account: ServiceAccountName,
    /// The folder for the files; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// How long it is valid, in hours; 720 at most. Whoever has the key is the workload until then
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=720))]
    pub(crate) hours: u16,
    /// Replace files of an earlier issue
    #[arg(long)]
    pub(crate) replace: bool,
    /// How to say what was done.
    #[command(flatten)]
    pub(crate) output: ActionArgs,
}

/// Show the links: peer, alive, round trip, loss, version
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  linkspan gateways --dir east\n  linkspan gateways --context east -o json\n\nExit codes: 0 shown, 1 failed (for instance: no gateway runs), 2 wrong arguments."
)]
pub(crate) struct GatewaysArgs {
    /// Which site or cluster.
    #[command(flatten)]
    pub(crate) place: Place,
    /// How to print.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Show what is mirrored here, from where, at which name and address, and whether it is healthy
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  linkspan services --dir east\n  linkspan services --context east --namespace shop --cluster west\n\nExit codes: 0 shown, 1 failed, 2 wrong arguments."
)]
pub(crate) struct ServicesArgs {
    /// Which site or cluster.
    #[command(flatten)]
    pub(crate) place: Place,
    /// Only this namespace
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    pub(crate) namespace: Option<Namespace>,
    /// Only what this peer exports
    #[arg(long, short = 'c', value_name = "CLUSTER")]
    pub(crate) cluster: Option<ClusterName>,
    /// How to print.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Show what is exported here, to whom, and whether it can be reached
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  linkspan exports --dir west\n  linkspan exports --context west\n\nExit codes: 0 shown, 1 failed, 2 wrong arguments."
)]
pub(crate) struct ExportsArgs {
    /// Which site or cluster.
    #[command(flatten)]
    pub(crate) place: Place,
    /// Only this namespace
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    pub(crate) namespace: Option<Namespace>,
    /// How to print.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Run named checks over the whole path and say how to mend what fails
#[derive(Debug, Args)]
#[command(
    long_about = "Runs named checks over the whole path. Each failure comes with a reason and a remedy. Nothing is changed.\n\n\
On a site: site.yaml and the processes, certificates and clock, UDP to each peer, trust, agreement of the catalogues, DNS answers \
over UDP and TCP, one probe through each mirrored service (one TCP connection, and one HEAD request where the service speaks \
HTTP), exports. Packets of two sizes go to each peer, over TCP where UDP is silent. With -o json a check that did not pass names \
its `cause` in one word (README has them all).\n\n\
On Kubernetes: the API server and our rights, definitions, the controller's rights, controllers and leader, gateways and the \
address that peers dial, clocks, certificates, links, agreement of the catalogues, the mirrors' objects, CoreDNS, exports; all \
through the API server. Before an installation it checks what that needs.\n\n\
With NAMESPACE/SERVICE: only this service, and whether any linked cluster exports it.",
    after_help = "Examples:\n  linkspan check --dir east\n  linkspan check --context east          before and after linkspan install\n  linkspan check --dir east --wait 30    wait up to 30 s until everything passes\n  linkspan check shop/api --dir east     why is there no api of namespace shop?\n\nExit codes: 0 every check passed (warnings do not count), 1 a check failed, 2 wrong arguments."
)]
pub(crate) struct CheckArgs {
    /// Only this service
    #[arg(value_name = "NAMESPACE/SERVICE")]
    pub(crate) service: Option<ServiceKey>,
    /// Which site or cluster.
    #[command(flatten)]
    pub(crate) place: Place,
    /// Only the link with this peer and what comes from it
    #[arg(long, short = 'c', value_name = "CLUSTER")]
    pub(crate) cluster: Option<ClusterName>,
    /// Repeat for up to this many seconds until every check passes
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    pub(crate) wait: u64,
    /// How to print.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Show success rate, requests per second and latency per service and cluster
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  linkspan stat --dir east\n  linkspan stat --context east --window 30 --namespace shop -o json\n\nExit codes: 0 shown, 1 failed, 2 wrong arguments."
)]
pub(crate) struct StatArgs {
    /// Which site or cluster.
    #[command(flatten)]
    pub(crate) place: Place,
    /// The last so many seconds
    #[arg(long, short = 'w', value_name = "SECONDS", default_value = "30", value_parser = window)]
    pub(crate) window: u64,
    /// Only this namespace
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    pub(crate) namespace: Option<Namespace>,
    /// Only this peer
    #[arg(long, short = 'c', value_name = "CLUSTER")]
    pub(crate) cluster: Option<ClusterName>,
    /// How to print.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Print the version
#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 printed, 1 failed, 2 wrong arguments.")]
pub(crate) struct VersionArgs {
    /// How to print.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  linkspan completions bash > /etc/bash_completion.d/linkspan\n  linkspan completions zsh > \"${fpath[1]}/_linkspan\"\n  linkspan completions fish > ~/.config/fish/completions/linkspan.fish\n\nExit codes: 0 printed, 1 failed, 2 wrong arguments."
)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests;
