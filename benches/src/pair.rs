//! Two linked sites, as a user would set them up, and the backend.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::process::{self, Process};
use crate::{Transport, backend, http, lookup};

/// How long a start or a link may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// The name under which east sees the service of west.
const NAME: &str = "web-west.bench.svc.cluster.local";

/// Port numbers of the service; a mirror keeps them, on an address of its own.
const HTTP_PORT: u16 = 8080;
const H2_PORT: u16 = 8081;
const TCP_PORT: u16 = 9000;

/// What may differ from the defaults.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// The program; else the one beside this one.
    pub(crate) linkspan: Option<PathBuf>,
    /// Threads of each gateway.
    pub(crate) workers: Option<u16>,
    /// What the link is carried by.
    pub(crate) transport: Transport,
}

/// Where a load generator sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Targets {
    /// HTTP/1.1.
    pub(crate) http: SocketAddr,
    /// HTTP/2 with prior knowledge, where there is a backend for it.
    pub(crate) h2: Option<SocketAddr>,
    /// Raw TCP.
    pub(crate) tcp: SocketAddr,
}

/// The running set-up; dropping it ends every process and removes the folder.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The program measured.
    pub(crate) linkspan: PathBuf,
    /// Straight to the backend.
    pub(crate) direct: Targets,
    /// Through both gateways.
    pub(crate) mirrored: Targets,
    /// What answers HTTP.
    pub(crate) http_backend: &'static str,
    /// Named processes, for CPU and memory.
    pub(crate) processes: Vec<(&'static str, u32)>,
    children: Vec<(&'static str, Process)>,
    folder: Option<tempfile::TempDir>,
}

impl Pair {
    /// Starts everything and waits until a call crosses.
    pub(crate) fn start(options: &Options) -> anyhow::Result<Self> {
        let linkspan = match &options.linkspan {
            Some(file) => file.clone(),
            None => std::env::current_exe()?.with_file_name("linkspan"),
        };
        anyhow::ensure!(
            linkspan.is_file(),
            "{} is not built: run benches/run, or `cargo build --release -p linkspan` first",
            linkspan.display()
        );
        let folder = tempfile::Builder::new().prefix("linkspan-bench-").tempdir()?;
        let root = folder.path().to_owned();
        Self::start_in(folder, linkspan, options).with_context(|| format!("the sites do not start{}", logs(&root)))
    }

    fn start_in(folder: tempfile::TempDir, linkspan: PathBuf, options: &Options) -> anyhow::Result<Self> {
        let root = folder.path().to_owned();
        let mut children = Vec::new();
        let (direct, http_backend) = start_backends(&root, &mut children)?;

        let sites = ["east", "west"].map(|name| Site { linkspan: linkspan.clone(), name, dir: root.join(name) });
        let [east, west] = &sites;
        for (number, site) in sites.iter().enumerate() {
            site.init(number, options.workers)?;
        }
        fs::write(west.dir.join("manifests/web.yaml"), manifest(direct))?;
        for site in &sites {
            let mut command = site.command();
            command.args(["site", "run", "--dir"]).arg(&site.dir).args(["--log-filter", "info,access=off"]);
            children.push((site.name, Process::start(command, &root.join(format!("{}.log", site.name)))?));
            let (name, process) = children.last_mut().context("just pushed")?;
            process::wait_for(&format!("site {name} is up"), PATIENCE, || {
                process.must_run(name)?;
                Ok(site.bound("gateway", "link").zip(site.bound("controller", "dns")))
            })?;
        }
        east.import(west, options.transport)?;
        west.import(east, options.transport)?;
        let mut mirrored = wait_until_mirrored(east, &mut children)?;
        mirrored.h2 = direct.h2.and(mirrored.h2);
        let processes = children.iter().map(|(name, process)| (*name, process.id())).collect();
        Ok(Self { linkspan, direct, mirrored, http_backend, processes, children, folder: Some(folder) })
    }

    /// Fails when a process has ended.
    pub(crate) fn must_run(&mut self) -> anyhow::Result<()> {
        self.children.iter_mut().try_for_each(|(name, process)| process.must_run(name))
    }

    /// Leaves the folder where it is.
    pub(crate) fn keep(&mut self) -> PathBuf {
        self.folder.take().map(tempfile::TempDir::keep).unwrap_or_default()
    }
}

/// What the sites logged last, for somebody who must find out why they do not start.
fn logs(root: &Path) -> String {
    let tail = |name: &str| process::tail(&root.join(name)).map(|tail| format!("\n--- {name}\n{tail}"));
    ["east.log", "west.log", "nginx.log"].into_iter().filter_map(tail).collect()
}

/// nginx for HTTP where it is installed, ours for the rest.
fn start_backends(root: &Path, children: &mut Vec<(&'static str, Process)>) -> anyhow::Result<(Targets, &'static str)> {
    let log = root.join("backend.log");
    let mut command = Command::new(std::env::current_exe()?);
    children.push((
        "backend",
        Process::start(
            {
                command.arg("--serve");
                command
            },
            &log,
        )?,
    ));
    let port: u16 = process::wait_for("backend listens", PATIENCE, || {
        Ok(fs::read_to_string(&log)?.strip_suffix('\n').and_then(|line| line.parse().ok()))
    })?;
    let tcp = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Some(nginx) = process::find("nginx") else { return Ok((Targets { http: tcp, h2: None, tcp }, "built in")) };
    // Two ports: before 1.25 nginx speaks either version on a plain-text port, not both.
    let [http, h2] = free_addresses()?;
    let folder = root.join("nginx");
    fs::create_dir(&folder)?;
    fs::write(folder.join("nginx.conf"), nginx_config(&folder, http, h2))?;
    let mut command = Command::new(nginx);
    command.arg("-e").arg(folder.join("error.log")).arg("-c").arg(folder.join("nginx.conf"));
    children.push(("nginx", Process::start(command, &root.join("nginx.log"))?));
    process::wait_for("nginx listens", PATIENCE, || {
        children.last_mut().context("just pushed")?.1.must_run("nginx")?;
        Ok(std::net::TcpStream::connect(http).ok())
    })?;
    Ok((Targets { http, h2: Some(h2), tcp }, "nginx"))
}

fn nginx_config(folder: &Path, http: SocketAddr, h2: SocketAddr) -> String {
    let root = folder.display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("  {name}_temp_path {root}/{name};\n"))
        .collect();
    // One process, or its worker would outlive it when it is killed. `listen ... http2` and not `http2 on`: older releases know only the former, and newer ones still take it.
    format!(
        "daemon off;\nmaster_process off;\npid {root}/pid;\nevents {{ worker_connections 8192; }}\nhttp {{\n{paths}  \
         access_log off;\n  keepalive_requests 100000000;\n  default_type application/json;\n  \
         server {{ listen {http} backlog=4096; listen {h2} http2 backlog=4096; location / {{ return 200 '{body}'; }} }}\n}}\n",
        body = backend::BODY.replace('\n', "\\n"),
    )
}

/// Ports that were free a moment ago. nginx takes no port 0.
fn free_addresses() -> anyhow::Result<[SocketAddr; 2]> {
    // Both are held until both are known, or they could be the same.
    let [one, two] = [TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?];
    Ok([one.local_addr()?, two.local_addr()?])
}

/// The service of west: HTTP and raw TCP, both declared, so that nothing is guessed from bytes.
fn manifest(direct: Targets) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: bench}}\nspec:\n  ports:\n    \
         - {{name: http, port: {HTTP_PORT}, appProtocol: http}}\n    \
         - {{name: h2, port: {H2_PORT}, appProtocol: kubernetes.io/h2c}}\n    - {{name: raw, port: {TCP_PORT}, appProtocol: tcp}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  namespace: bench\n  \
         labels: {{kubernetes.io/service-name: web}}\naddressType: IPv4\nendpoints:\n  \
         - {{addresses: [\"127.0.0.1\"], conditions: {{ready: true}}}}\nports:\n  - {{name: http, port: {http}}}\n  - {{name: h2, port: {h2}}}\n  \
         - {{name: raw, port: {tcp}}}\n---\napiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\n\
         metadata: {{name: web, namespace: bench}}\n",
        http = direct.http.port(),
        h2 = direct.h2.unwrap_or(direct.http).port(),
        tcp = direct.tcp.port(),
    )
}

/// Waits for the name, then for an answer of the backend through it.
fn wait_until_mirrored(east: &Site, children: &mut [(&'static str, Process)]) -> anyhow::Result<Targets> {
    let dns = east.bound("controller", "dns").context("east has no DNS address")?;
    let address = process::wait_for(&format!("{NAME} resolves"), PATIENCE, || {
        children.iter_mut().try_for_each(|(name, process)| process.must_run(name))?;
        lookup::address(dns, NAME)
    })?;
    let at = |port: u16| SocketAddr::from((address, port));
    let targets = Targets { http: at(HTTP_PORT), h2: Some(at(H2_PORT)), tcp: at(TCP_PORT) };
    process::wait_for("a call crosses", PATIENCE, || Ok(http::probe(targets.http).ok()))?;
    Ok(targets)
}

/// A site whose ports the kernel chooses. The mirrored addresses are this run's own, so that two runs do not meet.
fn site_yaml(name: &str, run: u32, number: usize, workers: Option<u16>) -> String {
    let mirrors = format!("127.{}.{}.0/24", 112 + run / 128 % 16, run % 128 * 2 + u32::from(number > 0));
    let workers = workers.map(|workers| format!(", workers: {workers}")).unwrap_or_default();
    format!(
        "apiVersion: linkspan.io/v1alpha1\nkind: Site\nmetadata: {{name: {name}}}\nspec:\n  gateway: \
         {{listen: \"127.0.0.1:0\", advertise: [\"127.0.0.1:0\"], mtlsListen: \"127.0.0.1:0\"{workers}}}\n  \
         dns: {{listen: \"127.0.0.1:0\"}}\n  admin: {{listen: \"127.0.0.1:0\"}}\n  mirrorAddresses: {mirrors}\n"
    )
}

/// One site's folder and its commands.
#[derive(Debug)]
struct Site {
    linkspan: PathBuf,
    name: &'static str,
    dir: PathBuf,
}

impl Site {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.linkspan);
        command.stdin(Stdio::null());
        command
    }

    /// `linkspan site init`, then a site.yaml whose ports the kernel chooses and whose mirrored addresses are this
    /// run's own.
    fn init(&self, number: usize, workers: Option<u16>) -> anyhow::Result<()> {
        process::output(self.command().args(["site", "init", self.name, "--dir"]).arg(&self.dir))?;
        let yaml = site_yaml(self.name, std::process::id(), number, workers);
        fs::write(self.dir.join("site.yaml"), yaml).context("cannot write site.yaml")
    }

    /// An address from `state/run/<half>.json`, once the site has written it.
    fn bound(&self, half: &str, what: &str) -> Option<SocketAddr> {
        let text = fs::read_to_string(self.dir.join(format!("state/run/{half}.json"))).ok()?;
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        json.get(what)?.as_str()?.parse().ok()
    }

    /// Tells this site about `peer`, by the two commands that a user types.
    fn import(&self, peer: &Self, transport: Transport) -> anyhow::Result<()> {
        let link = process::output(peer.command().args(["link", "export", "--dir"]).arg(&peer.dir))?;
        let link = match transport {
            Transport::Auto => link,
            Transport::Quic => link.replace("\nspec:\n", "\nspec:\n  transport: quic\n"),
            Transport::Tcp => link.replace("\nspec:\n", "\nspec:\n  transport: tcp\n"),
        };
        let file = self.dir.with_file_name(format!("{}-to-{}.yaml", peer.name, self.name));
        fs::write(&file, link)?;
        process::output(self.command().args(["link", "import"]).arg(&file).arg("--dir").arg(&self.dir))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use linkspan_proto::manifest;

    use super::*;

    #[test]
    fn the_set_up_is_valid() {
        let direct: SocketAddr = "127.0.0.1:4711".parse().expect("an address");
        let parsed = manifest::parse(&manifest(Targets { http: direct, h2: Some(direct), tcp: direct }), "web.yaml");
        assert_eq!(parsed.len(), 3);
        for document in parsed {
            document.expect("valid");
        }
        for (run, workers) in [(1, None), (u32::MAX, Some(2))] {
            let text = site_yaml("east", run, 1, workers);
            let site = manifest::site_from_yaml(&text, "site.yaml").expect("valid");
            assert_eq!(site.spec.gateway.workers, workers);
        }
    }
}
