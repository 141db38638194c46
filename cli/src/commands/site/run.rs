//! `linkspan site run`: the gateway and the controller of a site in one process.
//!
//! ```text
//! one admin listener, one registry, one readiness
//!   controller  <- sockets in state/ ->  gateway         (they share nothing else)
//! ```
//!
//! In: site.yaml. Out: a running site, and its addresses on standard output once everything is ready. Refuses when: an
//! address is taken, with the field that names it and the remedy. Never does: anything on the path of a request.
//! Numbers: the two drain one after the other, the gateway first (gateway.drainSeconds), then the controller (5 s).

use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use linkspan_gateway::app as gateway;
use linkspan_mirror_controller::app as controller;
use linkspan_proto::resources::{HostPort, Site};
use linkspan_runtime::admin::Admin;
use linkspan_runtime::drain::{Drain, Signal};
use linkspan_runtime::metrics::Registry;
use linkspan_runtime::readiness::{Readiness, State};
use linkspan_runtime::{signal, task, telemetry};
use tokio::net::TcpListener;

use crate::args::{Half, SiteRunArgs};
use crate::client::folder::Folder;
use crate::commands::{Exit, WrongArguments, stdin_ended};
use crate::output;

/// Threads of the controller, the DNS server and the admin server. The gateway brings its own.
const THREADS: usize = 2;

/// A site is ready in less than a second. After this time it says what it waits for, again and again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the site until a signal.
pub(super) fn run(args: &SiteRunArgs) -> anyhow::Result<Exit> {
    let site = super::load(&args.site.dir)?;
    // Held to the end: dropping it writes out the last lines.
    let _logs = telemetry::init(args.log_format, &args.log_filter).map_err(|error| match error {
        telemetry::InitError::Filter(_) => {
            let filter = &args.log_filter;
            WrongArguments(format!("--log-filter {filter}: {error}; write info, or info,linkspan_gateway=debug")).into()
        }
        other => anyhow::Error::from(other),
    })?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("site")
        .enable_all()
        .build()
        .context("cannot start the async runtime")?
        .block_on(serve(args, &site))?;
    Ok(Exit::Done)
}

/// The halves that run here.
#[derive(Debug, Default)]
struct Running {
    controller: Option<controller::App>,
    gateway: Option<gateway::App>,
}

/// Starts what was asked for, waits for the end, drains.
async fn serve(args: &SiteRunArgs, site: &Site) -> anyhow::Result<()> {
    let dir = args.site.dir.as_path();
    // The admin server ends when this is dropped, after everything else: `/metrics` and `/live` answer during the drain.
    let (admin_drain, admin_signal) = Drain::new();
    let admin = Admin::new(Registry::new(), Readiness::new());
    let admin_address = serve_admin(args, site, &admin, &admin_signal).await?;
    let running = Running::start(args, site, dir, &admin, admin_address).await?;
    drop(task::spawn("announce", announce(admin.readiness().clone(), running.addresses(site, dir, admin_address))));

    let failed = tokio::select! {
        signal = signal::shutdown() => {
            signal.context("cannot listen for signals")?;
            None
        }
        () = async { stdin_ended().await }, if args.until_stdin_ends => {
            tracing::info!("standard input ended; shutting down");
            None
        }
        part = running.failed() => Some(part),
        part = admin_drain.vital_ended() => Some(part),
    };
    running.drain().await;
    match failed {
        None => Ok(()),
        Some(part) => bail!("the part `{part}` ended by itself, so the site cannot go on; the log says why"),
    }
}

/// Binds the admin listener and starts its server. A controller alone may have none.
async fn serve_admin(
    args: &SiteRunArgs,
    site: &Site,
    admin: &Admin,
    signal: &Signal,
) -> anyhow::Result<Option<SocketAddr>> {
    let (field, listen) = match args.only {
        Some(Half::Controller) => ("admin.controllerListen", site.spec.admin.controller_listen),
        Some(Half::Gateway) | None => ("admin.listen", Some(site.spec.admin.listen)),
    };
    let Some(listen) = listen else { return Ok(None) };
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}/tcp"));
    let listener = listener.map_err(|error| with_remedy(error, &args.site.dir, field))?;
    let address = listener.local_addr()?;
    drop(task::vital("admin", signal, admin.clone().serve(listener, signal.clone())));
    Ok(Some(address))
}

impl Running {
    /// Starts the controller, then the gateway, which dials the controller's sockets.
    async fn start(
        args: &SiteRunArgs,
        site: &Site,
        dir: &Path,
        admin: &Admin,
        admin_address: Option<SocketAddr>,
    ) -> anyhow::Result<Self> {
        let mut running = Self::default();
        if args.only != Some(Half::Gateway) {
            let config = linkspan_mirror_controller::config::Config::resolve(site, dir);
            let process = controller::Process { admin: admin.clone(), admin_address };
            let started = controller::App::start(config, &process).await;
            running.controller = Some(started.map_err(|error| with_remedy(error.into(), dir, "dns.listen"))?);
        }
        if args.only != Some(Half::Controller) {
            let config = linkspan_gateway::config::Config::resolve(site, dir);
            let address = admin_address.context("a gateway has an admin address")?;
            let process = gateway::Process { admin: admin.clone(), admin_address: address };
            running.gateway = match gateway::App::start(config, &process).await {
                Ok(started) => Some(started),
                Err(error) => {
                    let field = match error {
                        gateway::StartError::Mtls { .. } => "gateway.mtlsListen",
                        _ => "gateway.listen",
                    };
                    // Its run file and sockets must not stay behind.
                    running.drain().await;
                    return Err(with_remedy(error.into(), dir, field));
                }
            };
        }
        Ok(running)
    }

    /// Resolves with the name of a vital part that ended by itself.
    async fn failed(&self) -> &'static str {
        let gateway = async {
            match &self.gateway {
                Some(gateway) => gateway.failed().await,
                None => std::future::pending().await,
            }
        };
        let controller = async {
            match &self.controller {
                Some(controller) => controller.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            part = gateway => part,
            part = controller => part,
        }
    }

    /// The gateway first: it still needs the controller's sockets while streams end.
    async fn drain(self) {
        if let Some(gateway) = self.gateway {
            gateway.drain().await;
        }
        if let Some(controller) = self.controller {
            controller.drain().await;
        }
    }

    /// What is bound, in words.
    fn addresses(&self, site: &Site, dir: &Path, admin: Option<SocketAddr>) -> String {
        let half = match (&self.gateway, &self.controller) {
            (Some(_), None) => " (gateway only)",
            (None, Some(_)) => " (controller only)",
            _ => "",
        };
        let mut text = format!("site {}{half} is ready, process {}\n", site.cluster(), std::process::id());
        let mut line = |what: &str, where_: String| {
            let _infallible = writeln!(text, "  {what:<6} {where_}");
        };
        if let Some(gateway) = &self.gateway {
            let bound = gateway.addresses.link.port();
            let port = |port: u16| if port == 0 { bound } else { port };
            let advertise = site.spec.gateway.advertise.iter();
            let advertise: Vec<String> = advertise
                .map(|address| HostPort { host: address.host.clone(), port: port(address.port) }.to_string())
                .collect();
            let dialled = if advertise.is_empty() {
                "advertised nowhere: this site dials its peers".to_owned()
            } else {
                format!("advertised as {}", advertise.join(", "))
            };
            line("link", format!("{}/udp, {dialled}", gateway.addresses.link));
            if let Some(mtls) = gateway.addresses.mtls {
                line("mtls", format!("{mtls}/tcp"));
            }
        }
        if let Some(controller) = &self.controller {
            line("dns", format!("{}/udp and tcp", controller.addresses.dns));
        }
        if let Some(admin) = admin {
            line("admin", format!("http://{admin}/  (/metrics /ready /live /config)"));
        }
        let dir = output::shell_word(&dir.display().to_string());
        let _infallible = writeln!(text, "manifests are watched; next: linkspan check --dir {dir}");
        text
    }
}

/// Prints the addresses when everything is ready, and says what is missing while it is not.
async fn announce(readiness: Readiness, addresses: String) {
    loop {
        match tokio::time::timeout(PATIENCE, readiness.wait()).await {
            Ok(Ok(())) => break,
            Ok(Err(failed)) => {
                tracing::warn!(%failed, "not ready");
                tokio::time::sleep(PATIENCE).await;
            }
            Err(_) => {
                let missing: Vec<_> = readiness
                    .snapshot()
                    .into_iter()
                    .filter(|(_, state)| *state != State::Ready)
                    .map(|(name, _)| name)
                    .collect();
                tracing::warn!(waiting_for = missing.join(", "), "not ready yet");
            }
        }
    }
    // A closed standard output is no reason to end the site.
    drop(output::print(&output::safe_lines(&addresses)));
}

/// Adds what to do about an address that is not to be had.
fn with_remedy(error: anyhow::Error, dir: &Path, field: &str) -> anyhow::Error {
    let said = output::causes(&error);
    // Some errors hold the system's error as their source, some as a part of their own.
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    let cause = cause.or_else(|| match error.downcast_ref::<gateway::StartError>() {
        Some(
            gateway::StartError::Link { error, .. }
            | gateway::StartError::LinkTcp { error, .. }
            | gateway::StartError::Mtls { error, .. },
        ) => Some(error.kind()),
        _ => None,
    });
    let state = matches!(error.downcast_ref::<controller::StartError>(), Some(controller::StartError::State(_)));
    if let (true, Some(process)) = (state, running_process(dir)) {
        return anyhow::anyhow!("{said}\n  state/run says that it is process {process}");
    }
    let cause = cause.or_else(|| match error.downcast_ref::<controller::StartError>() {
        Some(controller::StartError::Dns { error, .. }) => Some(error.kind()),
        _ => None,
    });
    if let (Some(ErrorKind::AddrInUse), Some(process)) = (cause, running_process(dir)) {
        return anyhow::anyhow!("{said}\n  this site seems to run already, as process {process}; end that first");
    }
    let remedy = match cause {
        Some(ErrorKind::AddrInUse) => {
            "another process listens there (ss -lntup shows which); end it, or give this field another address"
        }
        Some(ErrorKind::AddrNotAvailable) => {
            "no interface of this machine has that address (ip addr shows what there is)"
        }
        Some(ErrorKind::PermissionDenied) => {
            "ports below 1024 need root or the capability CAP_NET_BIND_SERVICE; or give this field a higher port"
        }
        _ => return error,
    };
    anyhow::anyhow!("{said}\n  {field} in site.yaml: {remedy}")
}

/// The process that says in the state folder that it runs this site, if there is such a process.
fn running_process(dir: &Path) -> Option<u32> {
    let folder = Folder::new(dir);
    let gateway = folder.gateway().map(|run| run.pid);
    let process = gateway.or_else(|_| folder.controller().map(|run| run.pid)).ok()?;
    Path::new(&format!("/proc/{process}")).exists().then_some(process)
}

#[cfg(test)]
mod tests;
