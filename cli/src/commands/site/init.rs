//! `linkspan site init`: a new site's folder.
//!
//! In: a name and what differs from the defaults. Out: `site.yaml`, `state/` (mode 0700) with a CA of its own, an empty
//! `manifests/`. Refuses when: a value is malformed; any of these exists already. Never does: overwrite anything.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use ipnet::IpNet;
use linkspan_mirror_controller::ca;
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::manifest::site_from_yaml;
use linkspan_proto::names::{ClusterName, Namespace, ServiceAccountName};
use linkspan_proto::resources::HostPort;

use super::SITE_FILE;
use super::template::{Fields, site_yaml};
use crate::args::SiteInitArgs;
use crate::commands::{Exit, link};
use crate::output;

/// Makes the site and says what comes next.
pub(crate) fn run(args: &SiteInitArgs) -> anyhow::Result<Exit> {
    let fingerprint = init(args)?;
    let dir = output::shell_word(&args.dir.display().to_string());
    let name = &args.name;
    let nobody = if args.advertise.is_empty() {
        "\nNobody can dial this site, since it advertises no address: it dials its peers (right behind NAT). To change\n\
         that, set gateway.advertise in site.yaml.\n"
    } else {
        ""
    };
    output::print(&format!(
        "Made site {name} in {}\n\
         \x20 site.yaml     every field explained; read at start\n\
         \x20 state/        its own certificate authority (SHA-256 {fingerprint}), mode 0700\n\
         \x20 manifests/    Services, EndpointSlices, ServiceExports, Links; watched while the site runs\n\
         {nobody}\n\
         Next:\n\
         \x20 linkspan site run --dir {dir}\n\
         \x20     runs it\n\
         \x20 linkspan link export --dir {dir} > {name}-link.yaml\n\
         \x20     prints what a peer imports, there: linkspan link import {name}-link.yaml --dir DIR\n\
         \x20 linkspan check --dir {dir}\n\
         \x20     says whether all is well\n",
        output::safe(&args.dir.display().to_string()),
    ))?;
    Ok(Exit::Done)
}

/// Makes the site; returns the fingerprint of its root.
fn init(args: &SiteInitArgs) -> anyhow::Result<String> {
    let (fields, trust_domain) = fields(args)?;
    let text = site_yaml(&fields);
    // What `site run` will read is checked now, by the same code.
    site_from_yaml(&text, SITE_FILE).context("these values do not fit together")?;

    let dir = &args.dir;
    for taken in [SITE_FILE, "state", "manifests"] {
        let path = dir.join(taken);
        if path.symlink_metadata().is_ok() {
            bail!("{} exists already; nothing was changed. Choose another --dir", path.display());
        }
    }
    make_dir(dir, 0o755, true)?;
    let state = dir.join("state");
    make_dir(&state, 0o700, false)?;
    make_dir(&dir.join("manifests"), 0o755, false)?;
    let ca = ca::create(&state.join("ca"), &trust_domain).context("cannot make the site's certificate authority")?;
    // Last: a folder without site.yaml is no site, so a failure before this line leaves nothing that looks like one.
    let file = dir.join(SITE_FILE);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&file)
        .and_then(|mut opened| opened.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(link::bundle::fingerprint(ca.root()))
}

/// Checks every argument.
fn fields(args: &SiteInitArgs) -> anyhow::Result<(Fields, TrustDomain)> {
    let name = ClusterName::parse(&args.name).context("NAME")?;
    let trust_domain = args.trust_domain.clone().unwrap_or_else(|| format!("{name}.linkspan.internal"));
    let trust_domain = TrustDomain::parse(&trust_domain).context("--trust-domain")?;
    let advertise = args.advertise.iter().map(|text| HostPort::parse(text).map(|address| address.to_string()));
    let socket = |option: &str, text: &str| -> anyhow::Result<String> {
        let address: SocketAddr =
            text.parse().with_context(|| format!("{option} {text} is not IP:PORT, such as 127.0.0.1:4143"))?;
        Ok(address.to_string())
    };
    let mirror_addresses: IpNet = args.mirror_addresses.parse().with_context(|| {
        format!("--mirror-addresses {} is not a CIDR, such as 127.80.0.0/12", args.mirror_addresses)
    })?;
    let fields = Fields {
        name: name.to_string(),
        trust_domain: trust_domain.to_string(),
        listen: socket("--listen", &args.listen)?,
        advertise: advertise.collect::<Result<_, _>>().context("--advertise")?,
        mtls_listen: socket("--mtls-listen", &args.mtls_listen)?,
        workers: args.workers,
        dns_listen: socket("--dns-listen", &args.dns_listen)?,
        admin_listen: socket("--admin-listen", &args.admin_listen)?,
        controller_admin_listen: args
            .controller_admin_listen
            .as_deref()
            .map(|text| socket("--controller-admin-listen", text).map(|address| format!("\"{address}\"")))
            .transpose()?,
        mirror_addresses: mirror_addresses.trunc().to_string(),
        workloads: args.workload.iter().map(|text| workload(text)).collect::<anyhow::Result<_>>()?,
    };
    Ok((fields, trust_domain))
}

/// Reads `CIDR=NAMESPACE/ACCOUNT`.
fn workload(text: &str) -> anyhow::Result<(String, String, String)> {
    let parts = text.split_once('=').and_then(|(cidr, who)| Some((cidr, who.split_once('/')?)));
    let Some((cidr, (namespace, account))) = parts else {
        bail!("--workload {text} is not CIDR=NAMESPACE/ACCOUNT, such as 10.0.0.0/24=shop/web");
    };
    let cidr: IpNet = cidr.parse().with_context(|| format!("--workload {text}: {cidr} is not a CIDR"))?;
    let namespace = Namespace::parse(namespace).with_context(|| format!("--workload {text}"))?;
    let account = ServiceAccountName::parse(account).with_context(|| format!("--workload {text}"))?;
    Ok((cidr.trunc().to_string(), namespace.to_string(), account.to_string()))
}

/// Makes a folder with this mode.
fn make_dir(path: &Path, mode: u32, may_exist: bool) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(may_exist)
        .mode(mode)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))
}

#[cfg(test)]
mod tests;
