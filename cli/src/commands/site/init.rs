//! `linkspan site init`: a new site's folder.
//!
//! In: a name and what differs from the defaults. Out: `site.yaml`, `state/` (mode 0700) with a CA of its own, an empty
//! `manifests/`. Refuses when: a value is malformed; any of these exists already. Never does: overwrite anything.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use linkspan_mirror_controller::ca;
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::manifest::site_from_yaml;
use serde_json::json;

use super::SITE_FILE;
use super::template::{Fields, site_yaml};
use crate::args::{ActionFormat, SiteInitArgs, Workload};
use crate::commands::{Exit, WrongArguments, link};
use crate::output;

/// Makes the site and says what comes next.
pub(crate) fn run(args: &SiteInitArgs) -> anyhow::Result<Exit> {
    let (trust_domain, fingerprint) = init(args)?;
    if args.output.output == ActionFormat::Json {
        output::json::print(&json!({
            "cluster": args.name,
            "trustDomain": trust_domain,
            "dir": args.dir.display().to_string(),
            "rootSha256": fingerprint,
        }))?;
        return Ok(Exit::Done);
    }
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

/// Makes the site; returns its trust domain and the fingerprint of its root.
fn init(args: &SiteInitArgs) -> anyhow::Result<(TrustDomain, String)> {
    let (fields, trust_domain) = fields(args)?;
    let text = site_yaml(&fields);
    // What `site run` will read is checked now, by the same code.
    site_from_yaml(&text, SITE_FILE)
        .map_err(|error| WrongArguments(format!("these values do not fit together: {error}")))?;

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
    let fingerprint = link::bundle::fingerprint(ca.root());
    Ok((trust_domain, fingerprint))
}

/// What site.yaml says.
fn fields(args: &SiteInitArgs) -> anyhow::Result<(Fields, TrustDomain)> {
    let name = &args.name;
    let trust_domain = match &args.trust_domain {
        Some(trust_domain) => trust_domain.clone(),
        None => TrustDomain::parse(&format!("{name}.linkspan.internal"))?,
    };
    let fields = Fields {
        name: name.to_string(),
        trust_domain: trust_domain.to_string(),
        listen: args.listen.to_string(),
        advertise: args.advertise.iter().map(ToString::to_string).collect(),
        mtls_listen: args.mtls_listen.to_string(),
        workers: args.workers,
        dns_listen: args.dns_listen.to_string(),
        admin_listen: args.admin_listen.to_string(),
        controller_admin_listen: args.controller_admin_listen.map(|address| format!("\"{address}\"")),
        mirror_addresses: args.mirror_addresses.to_string(),
        workloads: args.workload.iter().map(workload).collect(),
    };
    Ok((fields, trust_domain))
}

fn workload(workload: &Workload) -> (String, String, String) {
    (workload.cidr.to_string(), workload.namespace.to_string(), workload.account.to_string())
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
