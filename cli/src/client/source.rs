//! Where a command's facts come from: the folder of a standalone site, or the API server of a Kubernetes cluster. The same
//! facts come from both, so that the commands are one.
//!
//! ```text
//! --dir D      site.yaml, state/run, state/status, manifests;  admin listeners on this machine
//! --context C  ConfigMaps, Services, Links, exports, imports;   admin pages of the pods, through the API server
//! ```

use std::path::PathBuf;

use linkspan_gateway::stat::Stat;

use super::facts::Facts;
use super::folder::Folder;
use super::kubernetes::{Cluster, connect};
use super::status::Status;
use super::{site, status};
use crate::args::Place;
use crate::commands::site::SITE_FILE;
use crate::output;

/// A place that can be asked.
#[derive(Debug)]
pub(crate) enum Source {
    /// A standalone site.
    Site(Folder),
    /// A Kubernetes cluster.
    Cluster(Box<Cluster>),
}

/// Whose conditions are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// Links.
    Links,
    /// ServiceExports.
    Exports,
    /// Mirrored names.
    Mirrors,
}

impl Source {
    /// The place that was named; without a name the site in this folder, without one the current context.
    pub(crate) async fn open(place: &Place) -> anyhow::Result<Self> {
        match Self::site_of(place)? {
            Some(dir) => Ok(Self::Site(Folder::new(&dir))),
            None => Ok(Self::Cluster(Box::new(Cluster::open(place).await?))),
        }
    }

    /// The folder, if a site is meant.
    fn site_of(place: &Place) -> anyhow::Result<Option<PathBuf>> {
        if let Some(dir) = &place.dir {
            return Ok(Some(dir.clone()));
        }
        if place.context.is_some() || place.kubeconfig.is_some() || place.linkspan_namespace.is_some() {
            return Ok(None);
        }
        let here = PathBuf::from(".");
        if here.join(SITE_FILE).exists() {
            return Ok(Some(here));
        }
        if connect::possible() {
            return Ok(None);
        }
        anyhow::bail!(
            "there is no site in this folder (no {SITE_FILE}), and no kubeconfig with a current context; name a site with --dir \
             DIR or a Kubernetes cluster with --context NAME. `linkspan site init NAME --dir DIR` makes a site"
        )
    }

    /// How a remedy names this place: `--dir east`, `--context east`.
    pub(crate) fn flags(&self) -> String {
        match self {
            Self::Site(folder) => format!("--dir {}", output::shell_word(&folder.dir().display().to_string())),
            Self::Cluster(cluster) => cluster.flags().to_owned(),
        }
    }

    /// `site` or `cluster`, for sentences.
    pub(crate) const fn noun(&self) -> &'static str {
        match self {
            Self::Site(_) => "site",
            Self::Cluster(_) => "cluster",
        }
    }

    /// What the gateways know. What could not be asked is noted on standard error.
    pub(crate) async fn facts(&self) -> anyhow::Result<Facts> {
        match self {
            Self::Site(folder) => site::facts(folder).await,
            Self::Cluster(cluster) => {
                let (facts, silent) = cluster.facts().await?;
                silent.iter().for_each(|error| output::note(&format!("linkspan: left out: {error:#}")));
                Ok(facts)
            }
        }
    }

    /// The same, with the address of each mirrored name.
    pub(crate) async fn facts_with_addresses(&self) -> anyhow::Result<Facts> {
        let mut facts = self.facts().await?;
        if let Self::Cluster(cluster) = self {
            facts.fronts = Some(cluster.fronts().await?);
        }
        Ok(facts)
    }

    /// Conditions of objects, in order of name.
    pub(crate) async fn statuses(&self, of: Of) -> anyhow::Result<Vec<Status>> {
        match self {
            Self::Site(folder) => Ok(status::read(folder, of)),
            Self::Cluster(cluster) => cluster.statuses(of).await,
        }
    }

    /// The gateways' figures of the last `window` seconds.
    pub(crate) async fn stat(&self, window: u64) -> anyhow::Result<Stat> {
        match self {
            Self::Site(folder) => site::stat(folder, window).await,
            Self::Cluster(cluster) => {
                let (stat, silent) = cluster.stat(window).await?;
                silent.iter().for_each(|error| output::note(&format!("linkspan: left out: {error:#}")));
                Ok(stat)
            }
        }
    }

    /// Where an object of a user's belongs, for a person: a folder, or the API server.
    pub(crate) fn manifests(&self) -> String {
        match self {
            Self::Site(folder) => format!("in a file in {}", folder.manifests().display()),
            Self::Cluster(_) => "applied with kubectl".to_owned(),
        }
    }
}
