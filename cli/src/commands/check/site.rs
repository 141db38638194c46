//! `site.yaml`, the manifests, the processes and their versions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use linkspan_proto::manifest;
use linkspan_proto::names::ClusterName;
use linkspan_proto::resources::Object;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::Checks;
use super::report::Group;
use crate::client::folder::{Folder, read_manifest};
use crate::client::source::Of;
use crate::client::{http, site, status};
use crate::commands::site::SITE_FILE;
use crate::output::counted;

const GROUP: Group = Group::Site;

/// How long a Link that lies in the manifests may take to come into force. It takes well under a second; `link import`
/// returns before that.
pub(super) const IN_FORCE: Duration = Duration::from_secs(3);

/// Between two looks whether it is in force.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the checks of this group, and learns what the later groups need.
pub(super) async fn check(checks: &mut Checks<'_>, folder: &Folder) {
    checks.progress.say("reading the site's folder");
    let flags = checks.flags.clone();
    match folder.site() {
        Ok(site) => {
            let found = format!("{}, trust domain {}", site.metadata.name, site.trust_domain());
            checks.site = Some(site);
            checks.ok(GROUP, "site.yaml is valid", found);
        }
        Err(error) => {
            let file = folder.dir().join(SITE_FILE);
            let remedy = if file.exists() {
                format!("correct {}; a running site goes on with what it read at its start", file.display())
            } else {
                "name the folder that holds site.yaml with --dir; `linkspan site init NAME --dir DIR` makes a site"
                    .to_owned()
            };
            checks.fail(GROUP, "site.yaml is valid", format!("{error:#}"), remedy);
        }
    }
    if checks.site.is_none() && !folder.dir().join(SITE_FILE).exists() {
        // In a wrong folder everything else would fail, too, and hide the reason.
        return;
    }
    gateway(checks, folder, &flags).await;
    controller(checks, folder, &flags).await;
    versions(checks);
    links_in_force(checks, folder).await;
    manifests(checks, folder).await;
    saved(checks, folder).await;
}

/// What the later groups judge.
pub(super) async fn gather(checks: &mut Checks<'_>, folder: &Folder) {
    checks.links = status::read(folder, Of::Links);
    checks.exports = status::read(folder, Of::Exports);
    checks.mirrors = status::read(folder, Of::Mirrors);
    for object in objects(folder) {
        match object {
            Object::ClusterTrafficPolicy(policy) => checks.policies.push(policy),
            Object::ExportPolicy(policy) => checks.export_policies.push(policy),
            _ => {}
        }
    }
    if let Some(admin) = checks.controller.as_ref().and_then(|run| run.admin) {
        checks.peers = Some(http::json(admin, "/peers").await.map_err(|error| format!("{error:#}")));
    }
}

/// All objects in the manifests. Files that do not parse are named by another check.
fn objects(folder: &Folder) -> impl Iterator<Item = Object> {
    let texts = yaml_files(folder.manifests())
        .into_iter()
        .filter_map(|file| Some((read_manifest(&file).ok()?, file.display().to_string())));
    texts.flat_map(|(text, file)| manifest::parse(&text, &file)).filter_map(|object| Some(object.ok()?.0))
}

/// Whether the next start will know what is in force now. The controller knows what it could not write.
async fn saved(checks: &mut Checks<'_>, folder: &Folder) {
    let Some(admin) = checks.controller.as_ref().and_then(|run| run.admin) else { return };
    // A controller of another version does not say; `the versions agree` tells that.
    if let Ok(failures) = http::json::<BTreeMap<String, String>>(admin, "/unsaved").await {
        report_saved(checks, &folder.state(), &failures);
    }
}

pub(super) fn report_saved(checks: &mut Checks<'_>, state: &Path, failures: &BTreeMap<String, String>) {
    let name = "the state can be saved";
    if failures.is_empty() {
        return checks.ok(GROUP, name, state.display().to_string());
    }
    let reasons: Vec<_> =
        failures.iter().map(|(what, error)| format!("{}: {error}", state.join(what).display())).collect();
    checks.fail(
        GROUP,
        name,
        reasons.join("; "),
        format!(
            "make {} writable for the controller's user and free some space there (`df -h`, `mount`); it is tried again by itself \
             within seconds. What runs is not affected; a restart before that forgets what is new, and closes exports whose \
             policies are broken then",
            state.display()
        ),
    );
}

/// Waits for Links that lie in the manifests and are not in force yet; a Link for which that was worth it may take the rest
/// of the time to connect.
pub(super) async fn links_in_force(checks: &mut Checks<'_>, folder: &Folder) {
    let Some(run) = checks.gateway.clone().filter(|_| checks.controller.is_some()) else { return };
    let deadline = Instant::now() + IN_FORCE;
    checks.late = not_in_force(checks, folder);
    let awaited = checks.late.clone();
    while !checks.late.is_empty() || awaited.iter().any(|cluster| !is_alive(checks, cluster)) {
        if Instant::now() >= deadline {
            return;
        }
        let names: Vec<&str> = awaited.iter().map(ClusterName::as_str).collect();
        let names = names.join(" and ");
        checks.progress.wait(&format!("waiting up to {} s for the new Link to {names}", IN_FORCE.as_secs()));
        sleep(LOOK).await;
        if let Ok(facts) = site::ask(&run).await {
            checks.facts = facts;
        }
        checks.late = not_in_force(checks, folder);
    }
}

fn is_alive(checks: &Checks<'_>, cluster: &ClusterName) -> bool {
    checks.facts.links.get(cluster).is_some_and(|link| link.alive)
}

/// Links in the manifests that the gateway does not have. What the controller or the gateway refuses is told elsewhere.
fn not_in_force(checks: &Checks<'_>, folder: &Folder) -> BTreeSet<ClusterName> {
    let refused: BTreeSet<String> = status::read(folder, Of::Links)
        .into_iter()
        .filter(|link| ["Accepted", "TrustValid"].iter().any(|kind| link.complaint(kind).is_some()))
        .map(|link| link.metadata.name)
        .collect();
    let links = objects(folder).filter_map(|object| match object {
        Object::Link(link) => ClusterName::parse(link.metadata.name.as_deref()?).ok(),
        _ => None,
    });
    links
        .filter(|link| checks.scope.covers_cluster(link) && !refused.contains(link.as_str()))
        .filter(|link| !checks.facts.peers.contains_key(link))
        .collect()
}

/// What is wrong in the manifests: as the controller sees it, who knows all files together; read here while it does not
/// answer.
async fn manifests(checks: &mut Checks<'_>, site: &Folder) {
    checks.progress.say("reading manifests");
    let dir = site.manifests();
    let folder = dir.strip_prefix(site.dir()).unwrap_or(&dir).display().to_string();
    let (mut objects, mut files) = (0, 0);
    let mut errors = Vec::new();
    for file in yaml_files(dir.clone()) {
        files += 1;
        let shown = file.strip_prefix(site.dir()).unwrap_or(&file).display().to_string();
        match read_manifest(&file) {
            Ok(text) => {
                for document in manifest::parse(&text, &shown) {
                    match document {
                        Ok(_) => objects += 1,
                        Err(error) => errors.push(error.to_string()),
                    }
                }
            }
            Err(error) => errors.push(format!("{shown}: {error}")),
        }
    }
    if let Some(admin) = checks.controller.as_ref().and_then(|run| run.admin)
        && let Ok(problems) = http::json::<Vec<Problem>>(admin, "/manifests").await
    {
        errors = problems.iter().map(|problem| problem.sentence(&folder)).collect();
    }
    if errors.is_empty() {
        let found = format!("{} in {}", counted(objects, "object"), counted(files, "file"));
        return checks.ok(GROUP, "the manifests are valid", found);
    }
    for error in errors {
        checks.fail(
            GROUP,
            "the manifests are valid",
            error,
            "correct it at this place; until then the last good state of this object stays in force; if it may be an \
             ExportPolicy and has none, new exports that it may concern are closed",
        );
    }
}

/// Something that the controller cannot use, as `/manifests` shows it.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    /// Relative to the manifests folder.
    file: String,
    #[serde(default)]
    line: usize,
    #[serde(default)]
    column: usize,
    #[serde(default)]
    field: String,
    message: String,
}

impl Problem {
    /// `manifests/web.yaml:5:12: spec.ports[0].port: ...`
    fn sentence(&self, folder: &str) -> String {
        self.told(&format!("{folder}/{}", self.file))
    }

    /// The same of an object in an API server.
    pub(super) fn of_object(&self) -> String {
        self.told(&self.file)
    }

    fn told(&self, place: &str) -> String {
        let mut place = place.to_owned();
        for number in [self.line, self.column].into_iter().take_while(|number| *number > 0) {
            place = format!("{place}:{number}");
        }
        if self.field.is_empty() {
            format!("{place}: {}", self.message)
        } else {
            format!("{place}: {}: {}", self.field, self.message)
        }
    }
}

/// What has a manifest's name in the folder that the controller watches, whether it is a file or not.
fn yaml_files(dir: PathBuf) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| {
        let hidden = file.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        !hidden && file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
    });
    files.sort();
    files
}

async fn gateway(checks: &mut Checks<'_>, folder: &Folder, flags: &str) {
    checks.progress.say("asking the gateway");
    let name = "the gateway runs";
    let run = match folder.gateway() {
        Ok(run) => run,
        Err(error) => return checks.fail(GROUP, name, without_remedy(&error), start(flags)),
    };
    match site::ask(&run).await {
        Ok(facts) => {
            checks.facts = facts;
            checks.ok(GROUP, name, format!("process {}, link on {}/udp", run.pid, run.link));
            ready(checks, "the gateway", run.admin).await;
            checks.gateway = Some(run);
        }
        Err(error) => checks.fail(
            GROUP,
            name,
            format!("state/run/gateway.json says process {}, but {error:#}", run.pid),
            format!("look at its log; {}", start(flags)),
        ),
    }
}

async fn controller(checks: &mut Checks<'_>, folder: &Folder, flags: &str) {
    checks.progress.say("asking the controller");
    let name = "the controller runs";
    let run = match folder.controller() {
        Ok(run) => run,
        Err(error) => return checks.fail(GROUP, name, without_remedy(&error), start(flags)),
    };
    let answer = match run.admin {
        Some(admin) => http::get(admin, "/live").await.map(drop),
        None => Ok(()),
    };
    match answer {
        Ok(()) => {
            checks.ok(GROUP, name, format!("process {}, DNS on {}", run.pid, run.dns));
            // In one process with the gateway both have one list, and it was asked already.
            let shared = checks.gateway.as_ref().map(|gateway| gateway.admin);
            if let Some(admin) = run.admin.filter(|admin| Some(*admin) != shared) {
                ready(checks, "the controller", admin).await;
            }
            checks.controller = Some(run);
        }
        Err(error) => {
            checks.fail(
                GROUP,
                name,
                format!("state/run/controller.json says process {}, but {error:#}", run.pid),
                format!(
                    "look at its log; {}; meanwhile the gateway serves with the last good configuration",
                    start(flags)
                ),
            );
            checks.silent_dns = Some(run.dns);
        }
    }
}

/// The error of a command, whose last part is the next step; here that stands in the remedy.
fn without_remedy(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.split("; ").next().unwrap_or_default().to_owned()
}

fn start(flags: &str) -> String {
    format!("start the site with `linkspan site run {flags}`")
}

async fn ready(checks: &mut Checks<'_>, who: &str, admin: std::net::SocketAddr) {
    let name = format!("{who} is ready");
    match http::fetch(admin, "/ready").await {
        Ok((status, _)) if status.is_success() => checks.ok(GROUP, name, ""),
        Ok((_, body)) => checks.fail(
            GROUP,
            name,
            String::from_utf8_lossy(&body).trim().to_owned(),
            "wait a moment; if it stays so, the log says what the named part is waiting for",
        ),
        Err(error) => checks.fail(GROUP, name, format!("{error:#}"), "look at its log"),
    }
}

fn versions(checks: &mut Checks<'_>) {
    let ours = env!("CARGO_PKG_VERSION");
    let gateway = checks.gateway.as_ref().map(|run| ("gateway", run.version.clone()));
    let controller = checks.controller.as_ref().map(|run| ("controller", run.version.clone()));
    let others: Vec<String> = [gateway, controller]
        .into_iter()
        .flatten()
        .filter(|(_, version)| version != ours)
        .map(|(half, version)| format!("the {half} is {version}"))
        .collect();
    if checks.gateway.is_none() && checks.controller.is_none() {
        return;
    }
    let name = "the versions agree";
    if others.is_empty() {
        checks.ok(GROUP, name, ours);
    } else {
        checks.warn(
            GROUP,
            name,
            format!("this command is {ours}, {}", others.join(", ")),
            "restart what is older after an upgrade; use the command of the same release",
        );
    }
}
