//! `linkspan link export`: the manifest that the peer applies.
//!
//! In: site.yaml, the root certificate, the running gateway's bound address where an address says port 0; of a Kubernetes cluster
//! its configuration, its root certificate, and the Service that peers dial. Out: YAML on standard output. Refuses when: an
//! address is one that nobody can dial, or has yet to be given. Never does: read or print a key.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use linkspan_proto::configuration::{Congestion, DefaultPolicy, Transport};
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::names::ClusterName;
use linkspan_proto::resources::{Cluster as Settings, HostPort, Site};

use super::bundle;
use super::home::Home;
use crate::args::LinkExportArgs;
use crate::client::folder::Folder;
use crate::client::kubernetes::Cluster;
use crate::client::kubernetes::reach::Reach;
use crate::commands::{Exit, WrongArguments};
use crate::output;

/// What a Link manifest says.
#[derive(Debug)]
pub(super) struct Manifest<'a> {
    /// The cluster that the Link leads to.
    pub(super) cluster: &'a ClusterName,
    /// Its trust domain.
    pub(super) trust_domain: &'a TrustDomain,
    /// Its roots.
    pub(super) trust_bundle: &'a str,
    /// Where it is dialled.
    pub(super) addresses: &'a [HostPort],
    /// What exports without a policy allow to it.
    pub(super) default_policy: DefaultPolicy,
    /// What it is dialled over; said where it is not the default.
    pub(super) transport: Transport,
    pub(super) congestion: Congestion,
}

/// What a site or cluster says of itself.
pub(super) struct Ours {
    /// The name.
    pub(super) cluster: ClusterName,
    /// The trust domain.
    pub(super) trust_domain: TrustDomain,
    /// The roots, PEM, and where they were read.
    pub(super) roots: (String, String),
    /// Where peers dial.
    pub(super) addresses: Vec<HostPort>,
}

/// Prints the manifest.
pub(super) async fn run(args: &LinkExportArgs) -> anyhow::Result<Exit> {
    let ours = match Home::open(&args.place).await? {
        Home::Site { dir, site } => of_site(args, &dir, &site)?,
        Home::Cluster { cluster, settings } => of_cluster(args, &cluster, &settings).await?,
    };
    let Ours { cluster, trust_domain, roots: (pem, place), addresses } = ours;
    let addresses = each_once(addresses);
    let roots = bundle::check(&pem, &trust_domain).with_context(|| place)?;
    let mut text = format!("# The link to {cluster}. On the other side: linkspan link import FILE\n");
    for root in &roots {
        let _infallible =
            writeln!(text, "# Root SHA-256 {}: compare it by telephone or another safe channel.", root.fingerprint);
    }
    text.push_str(&yaml(&Manifest {
        cluster: &cluster,
        trust_domain: &trust_domain,
        trust_bundle: &pem,
        addresses: &addresses,
        default_policy: DefaultPolicy::Allow,
        transport: Transport::default(),
        congestion: Congestion::default(),
    }));
    output::print(&text)?;
    Ok(Exit::Done)
}

/// The list of a Link is a set: an API server refuses one that says something twice.
fn each_once(addresses: Vec<HostPort>) -> Vec<HostPort> {
    let mut once = Vec::with_capacity(addresses.len());
    for address in addresses {
        if !once.contains(&address) {
            once.push(address);
        }
    }
    once
}

fn of_site(args: &LinkExportArgs, dir: &Path, site: &Site) -> anyhow::Result<Ours> {
    let pem_file = dir.join(&site.spec.state_dir).join("ca/root.pem");
    let pem = std::fs::read_to_string(&pem_file).with_context(|| {
        format!("cannot read the site's root certificate {}; restore state/ca from a copy", pem_file.display())
    })?;
    let wanted: Vec<HostPort> = if args.no_address {
        Vec::new()
    } else if args.address.is_empty() {
        site.spec.gateway.advertise.clone()
    } else {
        args.address.clone()
    };
    let addresses =
        wanted.iter().map(|address| resolve(address, || bound_link(dir))).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Ours {
        cluster: site.cluster().clone(),
        trust_domain: site.trust_domain(),
        roots: (pem, pem_file.display().to_string()),
        addresses,
    })
}

pub(super) async fn of_cluster(args: &LinkExportArgs, cluster: &Cluster, settings: &Settings) -> anyhow::Result<Ours> {
    let pem = cluster.root().await?.with_context(|| {
        format!(
            "there is no ConfigMap linkspan-root with root.pem in the namespace {}; `linkspan ca create --cluster-name {}` \
             makes a root for a new cluster",
            cluster.namespace(),
            settings.cluster()
        )
    })?;
    let advertised = &settings.spec.gateway.advertise;
    let addresses = match (args.no_address, args.address.is_empty(), advertised.is_empty()) {
        (true, ..) => Vec::new(),
        (false, false, _) => args.address.clone(),
        (false, true, false) => advertised.clone(),
        (false, true, true) => service_addresses(cluster, settings).await?,
    };
    if let Some(address) = addresses.iter().find(|a| a.port == 0 || a.ip().is_some_and(|ip| ip.is_unspecified())) {
        let what = if args.address.is_empty() { "spec.gateway.advertise of cluster.yaml:" } else { "--address" };
        let message = format!(
            "{what} {address} is no address that a peer can dial; name host and port, as in east.example.com:4143"
        );
        return Err(if args.address.is_empty() { anyhow!(message) } else { WrongArguments(message).into() });
    }
    Ok(Ours {
        cluster: settings.cluster().clone(),
        trust_domain: settings.trust_domain(),
        roots: (pem, "ConfigMap linkspan-root, root.pem".to_owned()),
        addresses,
    })
}

/// What the Service for the link has got.
async fn service_addresses(cluster: &Cluster, settings: &Settings) -> anyhow::Result<Vec<HostPort>> {
    let name = &settings.spec.gateway.link_service;
    let namespace = cluster.namespace();
    let otherwise = "say at which one peers reach it with --address HOST:PORT; or, if this cluster only dials its peers, \
                     --no-address";
    match cluster.reach(settings).await? {
        Some(Reach::At(addresses)) => Ok(addresses),
        Some(Reach::Inside(addresses)) => {
            output::note(
                "linkspan: the nodes have no external addresses, these are internal ones; peers outside of their network need \
                 --address HOST:PORT",
            );
            Ok(addresses)
        }
        Some(Reach::Nobody) => {
            output::note(&format!(
                "linkspan: the Service {name} is of type ClusterIP, so nobody dials this cluster: the peer needs an address of \
                 its own"
            ));
            Ok(Vec::new())
        }
        Some(Reach::Pending) => bail!(
            "the load balancer has given the Service {name} in the namespace {namespace} no address yet; wait for it \
             ({} -n {namespace} get service {name} --watch), or {otherwise}",
            cluster.kubectl()
        ),
        Some(Reach::NoNode) => {
            bail!("no ready node has an address for the node port of the Service {name}; {otherwise}")
        }
        None => bail!("there is no Service {name} in the namespace {namespace}; {otherwise}"),
    }
}

/// Writes a Link. All values are parsed ones: none can break out of its place in the text.
pub(super) fn yaml(manifest: &Manifest<'_>) -> String {
    let Manifest { cluster, trust_domain, addresses, .. } = manifest;
    let mut text = format!(
        "apiVersion: linkspan.io/v1alpha1\nkind: Link\nmetadata:\n  name: {cluster}\nspec:\n  trustDomain: {trust_domain}\n"
    );
    if addresses.is_empty() {
        let _infallible = writeln!(
            text,
            "  # {cluster} advertises no address: this side waits to be dialled by it, and needs an address of its own.\n  \
             addresses: []"
        );
    } else {
        text.push_str("  addresses:\n");
        for address in *addresses {
            let _infallible = writeln!(text, "    - \"{address}\"");
        }
    }
    match manifest.transport {
        Transport::Auto => {}
        Transport::Quic => text.push_str("  transport: quic\n"),
        Transport::Tcp => text.push_str("  transport: tcp\n"),
    }
    match manifest.congestion {
        Congestion::Auto => {}
        Congestion::Lan => text.push_str("  congestion: lan\n"),
        Congestion::Wan => text.push_str("  congestion: wan\n"),
    }
    let policy = match manifest.default_policy {
        DefaultPolicy::Allow => "Allow",
        DefaultPolicy::Deny => "Deny",
    };
    let _infallible = write!(
        text,
        "  # What exports without an ExportPolicy allow to workloads of {cluster}: Allow or Deny.\n  \
         defaultPolicy: {policy}\n  trustBundle: |\n"
    );
    for line in manifest.trust_bundle.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let _infallible = writeln!(text, "    {line}");
    }
    text
}

/// Puts the bound port (and address) in the place of port 0 and of a wildcard address.
fn resolve(address: &HostPort, bound: impl FnOnce() -> anyhow::Result<SocketAddr>) -> anyhow::Result<HostPort> {
    let wildcard = address.ip().is_some_and(|ip| ip.is_unspecified());
    if address.port != 0 && !wildcard {
        return Ok(address.clone());
    }
    let bound = bound().with_context(|| format!("{address} stands for what the gateway has bound"))?;
    let port = if address.port == 0 { bound.port() } else { address.port };
    let host = if wildcard { dialable(address, bound.ip())? } else { address.host.clone() };
    Ok(HostPort { host, port })
}

/// The bound address in place of a wildcard, if it is one that a peer can dial.
fn dialable(address: &HostPort, bound: IpAddr) -> anyhow::Result<String> {
    if bound.is_unspecified() {
        bail!(
            "{address} names no host, and the gateway listens on all addresses; say at which one peers reach it: \
             --address HOST:{}, or gateway.advertise in site.yaml",
            if address.port == 0 { 4143 } else { address.port }
        );
    }
    Ok(bound.to_string())
}

/// The address that the running gateway has bound.
fn bound_link(dir: &Path) -> anyhow::Result<SocketAddr> {
    Ok(Folder::new(dir).gateway()?.link)
}

#[cfg(test)]
mod tests;
