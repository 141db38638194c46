//! `linkspan identity`: certificates for workloads of a site.
//!
//! In: the site's CA, a namespace and a service account. Out: `tls.crt`, `tls.key` (mode 0600), `ca.crt`. Refuses when:
//! a file is there already and `--replace` is not given. Never does: print a key; leave one readable to others, not even
//! for a moment.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use linkspan_mirror_controller::ca::Ca;
use serde_json::json;

use crate::args::{ActionFormat, IdentityCommand, IdentityIssueArgs};
use crate::commands::{Exit, site};
use crate::output;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOT: &str = "ca.crt";

/// Runs the command.
pub(crate) fn run(command: IdentityCommand) -> anyhow::Result<Exit> {
    match command {
        IdentityCommand::Issue(args) => issue(&args),
    }
}

/// Issues a certificate into files.
fn issue(args: &IdentityIssueArgs) -> anyhow::Result<Exit> {
    let dir = &args.site.dir;
    let site = site::load(dir)?;
    let ca = Ca::load(&dir.join(&site.spec.state_dir).join("ca"), &site.trust_domain())
        .context("the site's certificate authority cannot be used; restore state/ca from a copy")?;
    let life = Duration::from_secs(u64::from(args.hours) * 3600);
    if !args.replace {
        for name in [CERTIFICATE, KEY, ROOT] {
            let path = args.out.join(name);
            if path.symlink_metadata().is_ok() {
                bail!("{} exists already; --replace writes new ones in their place", path.display());
            }
        }
    }
    let issued = ca.issue_workload(&args.namespace, &args.service_account, life)?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    write(&args.out, KEY, &issued.key_pem, 0o600)?;
    write(&args.out, CERTIFICATE, &issued.certificate_pem, 0o644)?;
    write(&args.out, ROOT, &issued.trust_bundle_pem, 0o644)?;

    let not_after = Timestamp::try_from(issued.not_after)?;
    if args.output.output == ActionFormat::Json {
        let path = |name: &str| args.out.join(name).display().to_string();
        output::json::print(&json!({
            "identity": issued.identity.to_string(),
            "notAfter": not_after.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "certificate": path(CERTIFICATE),
            "key": path(KEY),
            "ca": path(ROOT),
        }))?;
        return Ok(Exit::Done);
    }
    let out = output::shell_word(&args.out.display().to_string());
    let mtls = site
        .spec
        .gateway
        .mtls_listen
        .map_or_else(|| "nowhere: gateway.mtlsListen is off in site.yaml".to_owned(), |address| address.to_string());
    output::print(&output::safe_lines(&format!(
        "{}\n\
         valid until {}\n\
         \x20 {out}/{CERTIFICATE}   certificate\n\
         \x20 {out}/{KEY}   key, mode 0600\n\
         \x20 {out}/{ROOT}    the site's root, to verify the gateway\n\
         Show it at the gateway's mTLS port ({mtls}) with the mirrored name as server name:\n\
         \x20 curl --cert {out}/{CERTIFICATE} --key {out}/{KEY} --cacert {out}/{ROOT} --connect-to ::{mtls} https://NAME-CLUSTER.NAMESPACE.svc.cluster.local:PORT/\n",
        issued.identity,
        not_after.strftime("%Y-%m-%d %H:%M UTC"),
    )))?;
    Ok(Exit::Done)
}

/// Writes a file in one step, with its mode from the first byte.
fn write(folder: &Path, name: &str, text: &str, mode: u32) -> anyhow::Result<()> {
    let path = folder.join(name);
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, &path));
    if written.is_err() {
        // The first error is the one to report.
        drop(std::fs::remove_file(&temporary));
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests;
