//! What lies in the site's folder.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::http;

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

    /// `site.yaml`.
    pub(crate) fn site_yaml(&self) -> PathBuf {
        self.dir.join("site.yaml")
    }
}
