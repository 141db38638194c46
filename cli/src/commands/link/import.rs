//! `linkspan link import`: a peer's Link manifest, checked and placed.
//!
//! In: the manifest that the peer's `link export` printed. Out: `manifests/link-<name>.yaml` in one step, or the object in the
//! API server; and the fingerprint of the root to compare. Refuses when: the file holds anything but one valid Link; the bundle is not made
//! of CA certificates of that trust domain; it is our own; another Link has the name or the trust domain.
//! Never does: leave half a file; take over comments or fields that it does not know.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use jiff::Timestamp;
use linkspan_proto::names::ClusterName;
use linkspan_proto::resources::Link;
use serde_json::json;

use super::bundle::{self, Root};
use super::export::{Manifest, yaml};
use super::home::{Home, Placed};
use super::manifests::{self, Manifests};
use crate::args::{ActionFormat, LinkImportArgs};
use crate::client::folder::read_manifest;
use crate::commands::Exit;
use crate::output;

/// A Link with 16 roots of 4 KiB stays below this.
const MANIFEST_BYTES: u64 = 256 * 1024;

/// Checks, places, and says what comes next.
pub(super) async fn run(args: &LinkImportArgs) -> anyhow::Result<Exit> {
    let home = Home::open(&args.place).await?;
    let (text, source) = read(&args.file)?;
    let (cluster, link) = manifests::one_link(&text, &source)?;
    let present = home.declared().await?;
    let roots = check(&home, &cluster, &link, &present)?;
    let (stands, placed) = home.place(&cluster, &link, &present, args.replace).await?;
    match args.output.output {
        ActionFormat::Text => report(&home, &cluster, &link, &roots, &stands, placed)?,
        ActionFormat::Json => output::json::print(&json!({
            "cluster": cluster,
            "trustDomain": link.spec.trust_domain,
            "addresses": link.spec.addresses,
            "rootSha256": roots.iter().map(|root| root.fingerprint.as_str()).collect::<Vec<_>>(),
            "file": stands,
            "placed": placed,
        }))?,
    }
    Ok(Exit::Done)
}

/// Reads the file, or standard input for `-`.
fn read(file: &Path) -> anyhow::Result<(String, String)> {
    let mut text = String::new();
    let name = if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() };
    let read = if file == Path::new("-") {
        if std::io::stdin().is_terminal() {
            output::note("paste what the peer's `linkspan link export` printed, then press Ctrl-D");
        }
        std::io::stdin().lock().take(MANIFEST_BYTES + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|opened| opened.take(MANIFEST_BYTES + 1).read_to_string(&mut text))
    };
    let length = read.with_context(|| format!("cannot read {name}"))?;
    if u64::try_from(length)? > MANIFEST_BYTES {
        bail!("{name} is larger than {} KiB; a Link is not", MANIFEST_BYTES / 1024);
    }
    Ok((text, name))
}

/// Everything that speaks against this Link.
pub(super) fn check(home: &Home, cluster: &ClusterName, link: &Link, present: &Manifests) -> anyhow::Result<Vec<Root>> {
    let (spec, noun) = (&link.spec, home.noun());
    if cluster == home.own() {
        bail!("this is the Link of {cluster}, which is this {noun} itself; import it at the peer");
    }
    if spec.trust_domain == home.trust_domain() {
        bail!(
            "{cluster} has the trust domain {}, which is this {noun}'s own; two that trust each other need two trust domains \
             (--trust-domain of site init and install)",
            spec.trust_domain
        );
    }
    let roots = bundle::check(&spec.trust_bundle, &spec.trust_domain)?;
    spec.validate()?;
    if let Some(address) = spec.addresses.iter().find(|address| address.ip().is_some_and(|ip| ip.is_unspecified())) {
        bail!("{address} is no address that can be dialled; on {cluster}: linkspan link export --address HOST:PORT");
    }
    for other in &present.links {
        if other.cluster == *cluster && other.stands != home.stand_of(cluster) {
            bail!("a Link {cluster} stands in {} already; remove it there first", other.stands);
        }
        if other.cluster != *cluster && other.link.spec.trust_domain == spec.trust_domain {
            bail!(
                "the Link {} has the trust domain {} already ({}); each peer speaks for a trust domain of its own",
                other.cluster,
                spec.trust_domain,
                other.stands
            );
        }
    }
    Ok(roots)
}

/// Writes the Link into a site's manifests, in one step.
pub(super) fn write(
    folder: &Path,
    cluster: &ClusterName,
    link: &Link,
    replace: bool,
) -> anyhow::Result<(PathBuf, Placed)> {
    let spec = &link.spec;
    // Written anew from what was understood: nothing else of the peer's text gets in.
    let text = yaml(&Manifest {
        cluster,
        trust_domain: &spec.trust_domain,
        trust_bundle: &spec.trust_bundle,
        addresses: &spec.addresses,
        default_policy: spec.default_policy,
        transport: spec.transport,
        congestion: spec.congestion,
    });
    let file = manifests::file_of(folder, cluster);
    let placed = match read_manifest(&file) {
        Ok(present) if present == text => return Ok((file, Placed::Unchanged)),
        Ok(_) if replace => Placed::Replaced,
        Ok(_) => bail!(
            "{} is there already and says something else; --replace puts this one in its place (the old trust ends at once)",
            file.display()
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Placed::New,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut temporary = tempfile::Builder::new()
        .prefix(".link-")
        .tempfile_in(folder)
        .with_context(|| format!("cannot write into {}", folder.display()))?;
    temporary.write_all(text.as_bytes())?;
    temporary.as_file().sync_all()?;
    // A temporary file is private; a manifest holds no secret, and the controller may run as another user.
    std::fs::set_permissions(temporary.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    temporary.persist(&file).with_context(|| format!("cannot write {}", file.display()))?;
    Ok((file, placed))
}

/// Says what was done and what comes next.
fn report(
    home: &Home,
    cluster: &ClusterName,
    link: &Link,
    roots: &[Root],
    stands: &str,
    placed: Placed,
) -> anyhow::Result<()> {
    let own = home.own();
    let did = match placed {
        Placed::New => "Wrote",
        Placed::Replaced => "Replaced",
        Placed::Unchanged => "Nothing changed in",
    };
    let mut text = format!("{did} {stands}\n  {own} -> {cluster}, trust domain {}\n", link.spec.trust_domain);
    for root in roots {
        let until = Timestamp::from_second(root.not_after_unix)?.strftime("%Y-%m-%d").to_string();
        text.push_str(&format!("  root SHA-256 {}, valid until {until}\n", root.fingerprint));
    }
    if link.spec.addresses.is_empty() {
        text.push_str(&format!("  no address: {own} waits until {cluster} dials it\n"));
    } else {
        let addresses: Vec<String> = link.spec.addresses.iter().map(ToString::to_string).collect();
        text.push_str(&format!("  {own} dials {}\n", addresses.join(", ")));
    }
    if link.spec.addresses.is_empty() && home.hidden() {
        text.push_str(&format!(
            "  WARNING: neither side has an address, so nobody can dial; set gateway.advertise in site.yaml of {own} or {cluster}\n"
        ));
    }
    let flags = home.flags();
    text.push_str(&format!(
        "Compare the fingerprint with the people of {cluster} (first lines of their `linkspan link export`).\n\n\
         Next:\n\
         \x20 linkspan link export {flags} > {own}-link.yaml\n\
         \x20     for {cluster}, unless it has it: linkspan link import {own}-link.yaml\n\
         \x20 linkspan check {flags}\n\
         \x20     says whether the link works\n"
    ));
    output::print(&output::safe_lines(&text))?;
    Ok(())
}

#[cfg(test)]
mod tests;
