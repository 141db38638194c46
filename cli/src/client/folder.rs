//! What lies in the site's folder.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use linkspan_proto::resources::Site;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::commands::site;

/// A running gateway, as it says in `state/run/gateway.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct GatewayRun {
    /// Its process.
    pub(crate) pid: u32,
    /// Its version.
    pub(crate) version: String,
    /// UDP address of the link.
    pub(crate) link: SocketAddr,
    /// Admin listener.
    pub(crate) admin: SocketAddr,
    /// TCP address for clients with a certificate of their own.
    #[serde(default)]
    pub(crate) mtls: Option<SocketAddr>,
    /// Threads of the data path.
    pub(crate) workers: u32,
}

/// A running controller, as it says in `state/run/controller.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct ControllerRun {
    /// Its process.
    pub(crate) pid: u32,
    /// Its version.
    pub(crate) version: String,
    /// UDP and TCP address of the DNS server.
    pub(crate) dns: SocketAddr,
    /// Admin listener; none when it is a process of its own without one.
    #[serde(default)]
    pub(crate) admin: Option<SocketAddr>,
}

/// The folder of a site.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    dir: PathBuf,
}

impl Folder {
    /// The folder that `--dir` names. Whether a site is in it shows when something is read.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The folder itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// `site.yaml`, read and validated.
    pub(crate) fn site(&self) -> anyhow::Result<Site> {
        site::load(&self.dir)
    }

    /// The folder with what the processes keep. Where `site.yaml` cannot be read, its default: what a running site says
    /// must not depend on a file that somebody is editing.
    pub(crate) fn state(&self) -> PathBuf {
        let state = self.site().map_or_else(|_| PathBuf::from("state"), |site| site.spec.state_dir);
        self.dir.join(state)
    }

    /// The folder with the operator's objects.
    pub(crate) fn manifests(&self) -> PathBuf {
        let manifests = self.site().map_or_else(|_| PathBuf::from("manifests"), |site| site.spec.manifests);
        self.dir.join(manifests)
    }

    /// The gateway that runs, or ran and did not end cleanly.
    pub(crate) fn gateway(&self) -> anyhow::Result<GatewayRun> {
        self.run("gateway")
    }

    /// The controller that runs, or ran and did not end cleanly.
    pub(crate) fn controller(&self) -> anyhow::Result<ControllerRun> {
        self.run("controller")
    }

    fn run<T: DeserializeOwned>(&self, half: &str) -> anyhow::Result<T> {
        let file = self.state().join("run").join(format!("{half}.json"));
        let dir = self.dir.display();
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!(
                    "the {half} of the site in {dir} does not run; start the site with `linkspan site run --dir {dir}`"
                )
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is not what this version writes; restart the site with `linkspan site run --dir {dir}`",
                file.display()
            )
        })
    }
}

/// Explains an admin listener that does not answer: the file says that the process runs.
pub(crate) fn gone(error: anyhow::Error, half: &str, pid: u32, dir: &Path) -> anyhow::Error {
    let dir = dir.display();
    error.context(format!(
        "the {half} does not answer, although state/run/{half}.json says that it runs as process {pid}; look at its log, or \
         start the site again with `linkspan site run --dir {dir}`"
    ))
}
