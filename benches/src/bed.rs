//! A network with both backends and all paths.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::certificates::Certificates;
use crate::network::Network;
use crate::paths::{Name, PATIENCE, Path, Setting, Targets};
use crate::process::{self, Process};
use crate::{Transport, cleanup, http, idle, nginx};

/// Calls through a path before anything is measured: connections that a pair keeps are there then.
const WARM_UP_CALLS: usize = 20;

/// What a bed is made of.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The program; else the one beside this one.
    pub(crate) linkspan: Option<PathBuf>,
    /// Threads of each gateway's data path.
    pub(crate) workers: u16,
    /// What carries the link.
    pub(crate) transport: Transport,
    /// The paths wanted.
    pub(crate) paths: Vec<Name>,
}

/// The running set-up. Dropping it ends every process and removes network and folder.
pub(crate) struct Bed {
    /// In the order of [`Name::ALL`].
    pub(crate) paths: Vec<Path>,
    /// For paths that are started again.
    pub(crate) setting: Setting,
    /// What answers HTTP.
    pub(crate) http_backend: &'static str,
    backends: Vec<(&'static str, Process)>,
    /// After the processes in it.
    pub(crate) network: Network,
    folder: Folder,
}

impl Bed {
    /// Starts everything and waits until a call crosses each path.
    pub(crate) fn start(network: Network, options: &Options) -> anyhow::Result<Self> {
        let linkspan = program(options)?;
        let folder = Folder::new()?;
        let root = folder.path.clone();
        let mut backends = Vec::new();
        let (local, http_backend) = start_backends(&network, &root, &mut backends)?;
        let west = network.west.address;
        let seen = |address: SocketAddr| SocketAddr::from((west, address.port()));
        let direct = Targets { http: seen(local.http), h2: local.h2.map(seen), tcp: local.tcp.map(seen) };
        let setting = Setting {
            certificates: Certificates::make(&root.join("certificates"), &["east", "west"])?,
            east: network.east.clone(),
            west: network.west.clone(),
            root,
            backends: local,
            direct,
            linkspan,
            workers: options.workers,
            transport: options.transport,
            descriptors: rlimit::Resource::NOFILE.get().map_or(1024, |(soft, _)| soft),
        };
        let mut bed = Self { paths: Vec::new(), setting, http_backend, backends, network, folder };
        for name in Name::ALL.into_iter().filter(|name| options.paths.contains(name)) {
            bed.start_path(name).with_context(|| format!("logs are in {}", bed.folder.keep().display()))?;
        }
        Ok(bed)
    }

    fn start_path(&mut self, name: Name) -> anyhow::Result<()> {
        let path = Path::start(name, &self.setting).with_context(|| format!("{} does not start", name.label()))?;
        warm_up(&path).with_context(|| format!("no call crosses {}", name.label()))?;
        self.paths.push(path);
        Ok(())
    }

    /// Ends a path's gateways and starts them again; nothing has gone through them yet.
    pub(crate) fn restart(&mut self, name: Name) -> anyhow::Result<()> {
        let Some(path) = self.paths.iter_mut().find(|path| path.name == name) else { return Ok(()) };
        path.gateways.clear();
        path.controllers.clear();
        *path = Path::start(name, &self.setting).with_context(|| format!("{} does not start again", name.label()))?;
        Ok(())
    }

    /// Fails when a process has ended.
    pub(crate) fn must_run(&mut self) -> anyhow::Result<()> {
        self.backends.iter_mut().try_for_each(|(name, process)| process.must_run(name))?;
        self.paths.iter_mut().try_for_each(Path::must_run)
    }

    /// Leaves the folder where it is.
    pub(crate) fn keep(&mut self) -> PathBuf {
        self.folder.keep()
    }
}

/// Calls through all that a path carries.
pub(crate) fn warm_up(path: &Path) -> anyhow::Result<()> {
    // The first calls of a mirror that was just made may be refused for a moment.
    process::wait_for("an HTTP call crosses", PATIENCE, || Ok(http::probe(path.targets.http).ok()))?;
    for _ in 0..WARM_UP_CALLS {
        http::probe(path.targets.http)?;
    }
    if let Some(tcp) = path.targets.tcp {
        process::wait_for("a TCP connection crosses", PATIENCE, || Ok(idle::first_byte(tcp).ok()))?;
        for _ in 0..WARM_UP_CALLS {
            idle::first_byte(tcp)?;
        }
    }
    Ok(())
}

/// The program to be measured.
pub(crate) fn program(options: &Options) -> anyhow::Result<PathBuf> {
    let file = match &options.linkspan {
        // A namespace's command runs where this program does; a path from the user is from here.
        Some(file) => fs::canonicalize(file).with_context(|| format!("there is no {}", file.display()))?,
        None => std::env::current_exe()?.with_file_name("linkspan"),
    };
    anyhow::ensure!(
        file.is_file(),
        "{} is not built: run benches/run, or `cargo build --release -p linkspan` first",
        file.display()
    );
    Ok(file)
}

/// nginx for HTTP where it is installed, ours for the rest. Addresses as west sees them.
fn start_backends(
    network: &Network,
    root: &FilePath,
    children: &mut Vec<(&'static str, Process)>,
) -> anyhow::Result<(Targets, &'static str)> {
    let west = &network.west;
    let log = root.join("backend.log");
    let mut command = west.command(std::env::current_exe()?);
    command.args(["--serve", &west.any().to_string()]);
    children.push(("backend", Process::start(command, &log)?));
    let port: u16 = process::wait_for("backend listens", PATIENCE, || {
        Ok(fs::read_to_string(&log)?.strip_suffix('\n').and_then(|line| line.parse().ok()))
    })?;
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let tcp = Some(at(port));
    let Some(program) = process::find("nginx") else {
        return Ok((Targets { http: at(port), h2: None, tcp }, "built in"));
    };
    let (process, [http, h2]) = nginx::backend(&program, west, root)?;
    children.push(("nginx", process));
    Ok((Targets { http: at(http), h2: Some(at(h2)), tcp }, "nginx"))
}

/// A temporary folder that an interruption removes too.
struct Folder {
    path: PathBuf,
    kept: bool,
}

impl Folder {
    fn new() -> anyhow::Result<Self> {
        // Short: paths of sockets hold 107 bytes.
        let path = tempfile::Builder::new().prefix("lsb-").tempdir()?.keep();
        cleanup::left().folders.insert(path.clone());
        Ok(Self { path, kept: false })
    }

    fn keep(&mut self) -> PathBuf {
        self.kept = true;
        cleanup::left().folders.remove(&self.path);
        self.path.clone()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.kept {
            fs::remove_dir_all(&self.path).ok();
            cleanup::left().folders.remove(&self.path);
        }
    }
}

/// What a program says that it is.
pub(crate) fn version(program: &FilePath) -> String {
    process::output(Command::new(program).arg("--version")).map(|text| text.trim().to_owned()).unwrap_or_default()
}
