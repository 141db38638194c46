//! Where Links are kept: in a site's manifests, or in the API server of a Kubernetes cluster.

use std::path::PathBuf;

use anyhow::bail;
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::names::ClusterName;
use linkspan_proto::resources::{Cluster as Settings, Link, Site};
use serde::Serialize;
use serde_json::{Value, json};

use super::manifests::{self, Declared, Manifests};
use crate::args::Place;
use crate::client::kubernetes::{Cluster, uninstalled};
use crate::client::source::Source;
use crate::commands::site;
use crate::output;

/// The path of all Links.
pub(super) const LINKS: &str = "/apis/linkspan.io/v1alpha1/links";

/// One of the two.
pub(super) enum Home {
    /// A site.
    Site {
        /// Its folder.
        dir: PathBuf,
        /// Its site.yaml.
        site: Box<Site>,
    },
    /// A Kubernetes cluster, where something is installed.
    Cluster {
        /// The cluster.
        cluster: Box<Cluster>,
        /// What both programs read.
        settings: Box<Settings>,
    },
}

/// What was done with a Link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Placed {
    /// A new one.
    New,
    /// In place of another.
    Replaced,
    /// It was there already.
    Unchanged,
}

impl Home {
    /// The place that the arguments name.
    pub(super) async fn open(place: &Place) -> anyhow::Result<Self> {
        match Source::open(place).await? {
            Source::Site(folder) => {
                let site = Box::new(site::load(folder.dir())?);
                Ok(Self::Site { dir: folder.dir().to_owned(), site })
            }
            Source::Cluster(cluster) => {
                let settings = Box::new(cluster.installed().await?);
                Ok(Self::Cluster { cluster, settings })
            }
        }
    }

    /// Our own name.
    pub(super) fn own(&self) -> &ClusterName {
        match self {
            Self::Site { site, .. } => site.cluster(),
            Self::Cluster { settings, .. } => settings.cluster(),
        }
    }

    /// Our own trust domain.
    pub(super) fn trust_domain(&self) -> TrustDomain {
        match self {
            Self::Site { site, .. } => site.trust_domain(),
            Self::Cluster { settings, .. } => settings.trust_domain(),
        }
    }

    /// `site` or `cluster`, for sentences.
    pub(super) const fn noun(&self) -> &'static str {
        match self {
            Self::Site { .. } => "site",
            Self::Cluster { .. } => "cluster",
        }
    }

    /// How the next command names this place.
    pub(super) fn flags(&self) -> String {
        match self {
            Self::Site { dir, .. } => format!("--dir {}", output::shell_word(&dir.display().to_string())),
            Self::Cluster { cluster, .. } => cluster.flags().to_owned(),
        }
    }

    /// Whether it is certain that nobody can dial us.
    pub(super) fn hidden(&self) -> bool {
        match self {
            Self::Site { site, .. } => site.spec.gateway.advertise.is_empty(),
            // The Service may have an address that the configuration does not name.
            Self::Cluster { .. } => false,
        }
    }

    /// The Links that are declared here.
    pub(super) async fn declared(&self) -> anyhow::Result<Manifests> {
        match self {
            Self::Site { dir, site } => manifests::read(&manifests::folder(dir, site)),
            Self::Cluster { cluster, .. } => {
                let objects = cluster.api().list(LINKS, "").await.map_err(|error| uninstalled(error, cluster))?;
                let mut found = Manifests::default();
                for mut object in objects {
                    // What the controller found out about it is another command's matter.
                    object["status"].take();
                    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                    match (ClusterName::parse(&name), serde_json::from_value::<Link>(object)) {
                        (Ok(peer), Ok(link)) => {
                            found.links.push(Declared { cluster: peer, link, stands: format!("Link {name}") });
                        }
                        (Err(error), _) => found.broken.push(format!("Link {name}: {error}")),
                        (_, Err(error)) => found.broken.push(format!("Link {name}: {error}")),
                    }
                }
                Ok(found)
            }
        }
    }

    /// How [`Declared::stands`] names the Link that [`Home::place`] would write.
    pub(super) fn stand_of(&self, peer: &ClusterName) -> String {
        match self {
            Self::Site { dir, site } => manifests::file_of(&manifests::folder(dir, site), peer).display().to_string(),
            Self::Cluster { .. } => format!("Link {peer}"),
        }
    }

    /// Puts a Link in force. Says where it stands.
    pub(super) async fn place(
        &self,
        peer: &ClusterName,
        link: &Link,
        present: &Manifests,
        replace: bool,
    ) -> anyhow::Result<(String, Placed)> {
        match self {
            Self::Site { dir, site } => {
                let (file, placed) = super::import::write(&manifests::folder(dir, site), peer, link, replace)?;
                Ok((file.display().to_string(), placed))
            }
            Self::Cluster { cluster, .. } => {
                let stands = self.stand_of(peer);
                let before = present.links.iter().find(|declared| declared.cluster == *peer);
                let placed = match before {
                    Some(before) if before.link.spec == link.spec => return Ok((stands, Placed::Unchanged)),
                    Some(_) if replace => Placed::Replaced,
                    Some(_) => bail!(
                        "a Link {peer} is there already and says something else; --replace puts this one in its place (the old \
                         trust ends at once)"
                    ),
                    None => Placed::New,
                };
                let path = format!("{LINKS}/{peer}");
                let applied = cluster.api().apply(&path, &object(peer, link), replace).await;
                applied.map_err(|error| uninstalled(error, cluster))?;
                Ok((stands, placed))
            }
        }
    }
}

/// The object to apply, written anew from what was understood. What is empty is said too: it replaces what was there.
fn object(peer: &ClusterName, link: &Link) -> Value {
    let spec = &link.spec;
    json!({
        "apiVersion": "linkspan.io/v1alpha1",
        "kind": "Link",
        "metadata": { "name": peer },
        "spec": {
            "trustDomain": spec.trust_domain,
            "trustBundle": spec.trust_bundle,
            "addresses": spec.addresses,
            "defaultPolicy": spec.default_policy,
            "transport": spec.transport,
            "congestion": spec.congestion,
        },
    })
}

#[cfg(test)]
mod tests;
