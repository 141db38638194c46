//! `linkspan check`: named checks over the whole path, each with a verdict, a reason and a remedy.
//!
//! ```text
//! a site      site -> trust -> links -> catalogue -> dns -> services -> exports
//! Kubernetes  api server -> definitions -> rights -> controllers, gateways -> trust -> links -> catalogue -> dns -> ...
//! ```
//!
//! What has to be asked differs and is gathered first; what is judged from the same facts is judged by the same check.
//!
//! - **In**: the site's folder, its running processes, and what answers at the addresses that they name; or the API server.
//! - **Out**: a [`Report`]; exit code 1 when a check failed.
//! - **Never does**: change anything. What it sends: DNS queries, QUIC packets of two sizes to each address of a peer, and over TCP
//!   where none is answered, one TCP connection through each mirrored port (one `HEAD` request where the service speaks HTTP) and to each local endpoint
//!   that is exported. On Kubernetes: requests to the API server, and access reviews, which are questions.
//! - **Numbers**: [`AT_ONCE`] probes at a time; [`LONGEST`], the longest wait of a round.

mod catalogue;
mod cause;
mod dns;
mod exports;
mod kubernetes;
mod links;
mod reach;
mod report;
mod services;
mod site;
mod trust;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use linkspan_proto::names::{ClusterName, ServiceKey};
use linkspan_proto::resources::{ClusterTrafficPolicy, ExportPolicy, Site};

use crate::args::{CheckArgs, Format};
use crate::client::catalogues::PeerCatalogue;
use crate::client::facts::Facts;
use crate::client::folder::{ControllerRun, Folder, GatewayRun};
use crate::client::source::Source;
use crate::client::status::Status;
use crate::client::{http, probe, quic};
use crate::commands::Exit;
use crate::output;
use cause::Cause;
use report::{Group, Report};

/// Probes under way at the same time. A probe of a silent TCP service takes 1.5 s, so 10,000 of them take four minutes
/// and a hundred of them three seconds; 64 connections are nothing to a gateway.
const AT_ONCE: usize = 64;

/// The longest wait of one round at a site, while there is no more to ask than [`AT_ONCE`] of a kind: for one program that gives
/// no answer, for new Links, then for everything that is asked at the same time. Whoever runs a check waits before it.
const LONGEST: Duration = http::PATIENCE.saturating_add(longer(http::PATIENCE, site::IN_FORCE)).saturating_add(longer(
    longer(reach::RESOLVE.saturating_add(quic::PATIENCE), dns::PATIENCE),
    longer(probe::PATIENCE, exports::CONNECT),
));

/// What a check may take.
const TEN_SECONDS: Duration = Duration::from_secs(10);

const _: () = assert!(LONGEST.as_millis() < TEN_SECONDS.as_millis());

const fn longer(one: Duration, other: Duration) -> Duration {
    if one.as_nanos() > other.as_nanos() { one } else { other }
}

/// The pause between two rounds of `--wait`.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs the command.
pub(crate) async fn run(args: &CheckArgs) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let patience = Duration::from_secs(args.wait);
    let progress = Progress::new();
    let report = loop {
        let report = round(args, &progress).await;
        if report.passed() || started.elapsed() + PAUSE >= patience {
            break report;
        }
        let left = patience.saturating_sub(started.elapsed()).as_secs();
        progress.wait(&format!("{} failed, trying again for up to {left} s", report.failures()));
        tokio::time::sleep(PAUSE).await;
    };
    progress.end();
    match args.output.output {
        Format::Json => output::json::print(&report)?,
        Format::Table | Format::Wide => output::print(&report.render(output::colour()))?,
    }
    Ok(if report.passed() { Exit::Done } else { Exit::NotPassed })
}

/// Runs every check once.
async fn round(args: &CheckArgs, progress: &Progress) -> Report {
    let scope = Scope { cluster: args.cluster.as_ref().map(ToString::to_string), service: args.service.clone() };
    let mut report = Report::new();
    let source = match Source::open(&args.place).await {
        Ok(source) => source,
        Err(error) => {
            let place = &args.place;
            let is_cluster =
                place.context.is_some() || place.kubeconfig.is_some() || place.linkspan_namespace.is_some();
            let (group, remedy) = if is_cluster {
                (Group::Cluster, "`kubectl config get-contexts` shows what --context takes; another file: --kubeconfig")
            } else {
                (Group::Site, "a site is named by --dir, a Kubernetes cluster by --context")
            };
            report.fail(group, "there is something to check", format!("{error:#}"), remedy);
            return report;
        }
    };
    let mut checks = Checks::new(source.flags(), scope, progress);
    match &source {
        Source::Site(folder) => of_site(&mut checks, folder).await,
        Source::Cluster(cluster) => kubernetes::check(&mut checks, cluster).await,
    }
    checks.report
}

/// All checks of a site.
async fn of_site(checks: &mut Checks<'_>, folder: &Folder) {
    site::check(checks, folder).await;
    if checks.site.is_none() && checks.gateway.is_none() && checks.controller.is_none() {
        return;
    }
    trust::check(checks, folder).await;
    if checks.gateway.is_some() {
        site::gather(checks, folder).await;
        checks.progress.say("asking peers, DNS, mirrored services and exported endpoints");
        // All at the same time, so that what is silent costs its time once: see `LONGEST`.
        let (reached, answers, probed, refused) =
            tokio::join!(reach::ask(checks), dns::ask(checks), services::ask(checks), exports::ask(checks));
        links::check(checks, &reached);
        catalogue::check(checks);
        dns::check(checks, answers);
        services::check(checks, probed);
        exports::check(checks);
        exports::endpoints(checks, refused);
    } else {
        let answers = dns::ask(checks).await;
        dns::check(checks, answers);
    }
}

/// One round: what was asked for, what is known so far, what was found.
struct Checks<'a> {
    /// How a remedy names the site or cluster.
    flags: String,
    scope: Scope,
    progress: &'a Progress,
    report: Report,
    /// Of a site: known once `site` has read it.
    site: Option<Site>,
    /// Of a site: known once `site` has found it running and answering.
    gateway: Option<GatewayRun>,
    /// Of a site: known once `site` has found it running.
    controller: Option<ControllerRun>,
    /// What the gateways say; empty while none answers.
    facts: Facts,
    /// Of a site: where the DNS server of a controller was that gives no answer.
    silent_dns: Option<SocketAddr>,
    /// Links in the manifests of a site that have not come into force, although `site` waited for them.
    late: BTreeSet<ClusterName>,
    /// Conditions of Links, exports and mirrors.
    links: Vec<Status>,
    exports: Vec<Status>,
    mirrors: Vec<Status>,
    /// What the controller knows of the peers, or why it does not say; `None` where it cannot be asked at all.
    peers: Option<Result<Vec<PeerCatalogue>, String>>,
    /// What users wish for traffic.
    policies: Vec<ClusterTrafficPolicy>,
    /// Who may call what is exported here.
    export_policies: Vec<ExportPolicy>,
}

/// What the user narrowed the checks to.
#[derive(Debug, Default)]
struct Scope {
    cluster: Option<String>,
    service: Option<ServiceKey>,
}

impl Scope {
    fn covers_cluster(&self, cluster: &ClusterName) -> bool {
        self.cluster.as_deref().is_none_or(|wanted| wanted == cluster.as_str())
    }

    fn covers_service(&self, service: &ServiceKey) -> bool {
        self.service.as_ref().is_none_or(|wanted| wanted == service)
    }
}

impl<'a> Checks<'a> {
    fn new(flags: String, scope: Scope, progress: &'a Progress) -> Self {
        Self {
            flags,
            scope,
            progress,
            report: Report::new(),
            site: None,
            gateway: None,
            controller: None,
            facts: Facts::default(),
            silent_dns: None,
            late: BTreeSet::new(),
            links: Vec::new(),
            exports: Vec::new(),
            mirrors: Vec::new(),
            peers: None,
            policies: Vec::new(),
            export_policies: Vec::new(),
        }
    }

    /// Why the check that was told last did not pass.
    fn because(&mut self, cause: impl Into<Option<Cause>>) {
        self.report.because(cause);
    }

    fn ok(&mut self, group: Group, name: impl Into<String>, found: impl Into<String>) {
        self.report.ok(group, name, found);
    }

    fn warn(&mut self, group: Group, name: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) {
        self.report.warn(group, name, reason, remedy);
    }

    fn fail(&mut self, group: Group, name: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) {
        self.report.fail(group, name, reason, remedy);
    }
}

/// What is being done, on standard error: live on a terminal; elsewhere one line when the check begins to wait.
struct Progress {
    bar: Option<ProgressBar>,
    told: Cell<bool>,
}

impl Progress {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::silent();
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar: Some(bar), told: Cell::new(false) }
    }

    fn silent() -> Self {
        Self { bar: None, told: Cell::new(false) }
    }

    fn say(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(output::safe(what));
        }
    }

    /// Says that it waits, which can take long.
    fn wait(&self, what: &str) {
        self.say(what);
        if self.bar.is_none() && !self.told.replace(true) {
            output::note(what);
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests;
