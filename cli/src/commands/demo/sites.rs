//! The two sites of the demo: made, linked and started by the commands that a user would type.
//!
//! ```text
//! east: one process (site run), its service          west: gateway and controller as two processes, its service
//! ```
//!
//! West is split because the story kills its gateway: what a crashed gateway leaves behind is a running controller.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use linkspan_proto::configuration::LinkReport;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;

use super::addresses::{Addresses, SiteAddresses};
use super::folder::Folder;
use super::manifests;
use super::process::Process;
use crate::client::dns::Transport;
use crate::client::{dns, http};

/// Time for all processes to be ready and linked. On a laptop it takes two seconds.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause between two looks at something that is about to change.
const LOOK: Duration = Duration::from_millis(50);

/// Thousands of requests run here; a line for each would hide the lines that tell what happened.
const LOG_FILTER: &str = "info,access=off";

/// The mirrored name of west's service in east.
pub(super) const MIRROR: &str = "web-west.shop.svc.cluster.local";

/// The name of the service wherever it runs.
pub(super) const CLUSTERSET: &str = "web.shop.svc.clusterset.local";

/// Both sites with their processes. Dropping it kills them and removes the folder.
#[derive(Debug)]
pub(super) struct Sites {
    /// All addresses.
    pub(super) addresses: Addresses,
    program: PathBuf,
    east: Process,
    west_controller: Process,
    west_gateway: Process,
    services: Vec<Process>,
    // Last: the folder goes after the processes that write into it.
    folder: Folder,
}

/// How long the parts of the start took.
#[derive(Clone, Copy, Debug)]
pub(super) struct StartTimes {
    /// Until every process was ready.
    pub(super) ready: Duration,
    /// From the two imports until both sides saw the link alive.
    pub(super) linked: Duration,
}

impl Sites {
    /// Makes and starts everything up to the link.
    pub(super) async fn start() -> anyhow::Result<(Self, StartTimes)> {
        let addresses = Addresses::pick()?;
        let folder = Folder::make()?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let begun = Instant::now();
        let (east_dir, west_dir) = (folder.path().join("east"), folder.path().join("west"));
        init(&program, &addresses, &addresses.east, &east_dir).await?;
        init(&program, &addresses, &addresses.west, &west_dir).await?;
        for (site, dir) in [(&addresses.east, &east_dir), (&addresses.west, &west_dir)] {
            manifests::write_service(dir, site.service)?;
        }

        let log = |name: &str| folder.path().join(format!("{name}.log"));
        let services = [&addresses.east, &addresses.west]
            .into_iter()
            .map(|site| {
                let args = ["demo", "--serve", site.name, "--listen", &site.service.to_string()].map(str::to_owned);
                let name = if site.name == "east" { "east-service" } else { "west-service" };
                Process::start(name, &program, &args, &log(name))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let east = Process::start("east", &program, &run_args(&east_dir, None), &log("east"))?;
        let west_controller = Process::start(
            "west-controller",
            &program,
            &run_args(&west_dir, Some("controller")),
            &log("west-controller"),
        )?;
        let west_gateway =
            Process::start("west-gateway", &program, &run_args(&west_dir, Some("gateway")), &log("west-gateway"))?;
        let mut sites = Self { addresses, program, east, west_controller, west_gateway, services, folder };
        sites.wait_ready().await?;
        let ready = begun.elapsed();

        let begun = Instant::now();
        sites.link(&east_dir, &west_dir).await?;
        sites.link(&west_dir, &east_dir).await?;
        sites.wait_linked().await?;
        Ok((sites, StartTimes { ready, linked: begun.elapsed() }))
    }

    /// Where everything lies.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of a site.
    pub(super) fn dir(&self, site: &str) -> PathBuf {
        self.folder.path().join(site)
    }

    /// This program's own file, for commands that the user can type.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Processes by name.
    pub(super) fn pids(&self) -> Vec<(&'static str, u32)> {
        self.processes().map(|process| (process.name(), process.pid())).collect()
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        [&self.east, &self.west_controller, &self.west_gateway].into_iter().chain(&self.services)
    }

    fn processes_mut(&mut self) -> impl Iterator<Item = &mut Process> {
        [&mut self.east, &mut self.west_controller, &mut self.west_gateway].into_iter().chain(&mut self.services)
    }

    /// The end of the logs of both sites, for an error that the reader must understand.
    pub(super) fn logs(&self) -> String {
        self.processes().map(|process| format!("{}:\n{}", process.name(), process.log_end())).collect()
    }

    /// The SIGKILL of the story.
    pub(super) async fn kill_west_gateway(&mut self) -> anyhow::Result<()> {
        self.west_gateway.kill().await
    }

    /// Starts west's gateway again.
    pub(super) fn restart_west_gateway(&mut self) -> anyhow::Result<()> {
        self.west_gateway = Process::start(
            "west-gateway",
            &self.program,
            &run_args(&self.folder.path().join("west"), Some("gateway")),
            &self.folder.path().join("west-gateway.log"),
        )?;
        Ok(())
    }

    /// Resolves when a process ends by itself; says which.
    pub(super) async fn one_ended(&mut self) -> &'static str {
        let ends: Vec<_> = self
            .processes_mut()
            .map(|process| {
                let name = process.name();
                Box::pin(async move {
                    drop(process.ended().await);
                    name
                })
            })
            .collect();
        futures::future::select_all(ends).await.0
    }

    /// The links as a site's gateway reports them.
    pub(super) async fn links(&self, site: &SiteAddresses) -> anyhow::Result<Vec<LinkReport>> {
        http::json(site.admin, "/links").await
    }

    /// The address that a site's DNS server gives for `name`.
    pub(super) async fn resolve(&self, site: &SiteAddresses, name: &str) -> anyhow::Result<IpAddr> {
        let answer = dns::addresses(site.dns, name, site.dns.ip(), Transport::Udp).await?;
        answer.addresses.first().copied().with_context(|| format!("{name} does not resolve: {}", answer.code))
    }

    /// Ends all processes in order and removes the folder, or keeps it.
    pub(super) async fn end(self, keep: bool) -> anyhow::Result<Option<PathBuf>> {
        let Self { east, west_controller, west_gateway, services, folder, .. } = self;
        futures::future::join_all([east, west_controller, west_gateway].into_iter().chain(services).map(Process::end))
            .await;
        if keep {
            return Ok(Some(folder.keep()));
        }
        folder.close().context("cannot remove the temporary folder")?;
        Ok(None)
    }

    /// Waits until both sites say that they are ready and both services answer.
    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let admins = [self.addresses.east.admin, self.addresses.west.admin, self.addresses.west.controller_admin];
        let services = [self.addresses.east.service, self.addresses.west.service];
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            for process in self.processes_mut() {
                process.still_runs()?;
            }
            let mut ready = true;
            for address in services {
                ready &= TcpStream::connect(address).await.is_ok();
            }
            for admin in admins {
                ready &= http::get(admin, "/ready").await.is_ok();
            }
            if ready {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the sites are not ready after {START_TIMEOUT:?}\n{}", self.logs());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// `linkspan link export --dir from | linkspan link import - --dir to`
    async fn link(&self, from: &Path, to: &Path) -> anyhow::Result<()> {
        let manifest = command(&self.program, &["link", "export", "--dir", &from.display().to_string()], b"").await?;
        command(&self.program, &["link", "import", "-", "--dir", &to.display().to_string()], &manifest).await?;
        Ok(())
    }

    /// Waits until both sides see the link alive and both names resolve in east.
    async fn wait_linked(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            for process in self.processes_mut() {
                process.still_runs()?;
            }
            if self.is_linked().await {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the sites are not linked after {START_TIMEOUT:?}\n{}", self.logs());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn is_linked(&self) -> bool {
        let (east, west) = (&self.addresses.east, &self.addresses.west);
        for site in [east, west] {
            if !self.links(site).await.is_ok_and(|links| links.iter().any(|link| link.alive)) {
                return false;
            }
        }
        for name in [MIRROR, CLUSTERSET] {
            let Ok(address) = self.resolve(east, name).await else { return false };
            if TcpStream::connect((address, self.addresses.port)).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// `linkspan site init`
async fn init(program: &Path, addresses: &Addresses, site: &SiteAddresses, dir: &Path) -> anyhow::Result<()> {
    let link = site.link.to_string();
    let web = format!("{}=shop/web", addresses.web_clients);
    let robot = format!("{}=ops/robot", addresses.robot_clients);
    command(
        program,
        &[
            "site",
            "init",
            site.name,
            "--dir",
            &dir.display().to_string(),
            "--listen",
            &link,
            "--advertise",
            &link,
            "--mtls-listen",
            &site.mtls.to_string(),
            "--dns-listen",
            &site.dns.to_string(),
            "--admin-listen",
            &site.admin.to_string(),
            "--controller-admin-listen",
            &site.controller_admin.to_string(),
            "--mirror-addresses",
            &site.mirrors,
            "--workload",
            &web,
            "--workload",
            &robot,
            // What your own curl is: Linux gives it this source address.
            "--workload",
            "127.0.0.1/32=shop/terminal",
        ],
        b"",
    )
    .await?;
    Ok(())
}

/// Arguments of `linkspan site run`.
fn run_args(dir: &Path, only: Option<&str>) -> Vec<String> {
    let mut args: Vec<String> =
        ["site", "run", "--until-stdin-ends", "--log-filter", LOG_FILTER, "--dir", &dir.display().to_string()]
            .map(str::to_owned)
            .to_vec();
    if let Some(half) = only {
        args.extend(["--only".to_owned(), half.to_owned()]);
    }
    args
}

/// Runs this program as a user would; returns its standard output.
async fn command(program: &Path, args: &[&str], input: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input closes it; its exit code says what is wrong.
        drop(stdin.write_all(input).await);
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("linkspan {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}
