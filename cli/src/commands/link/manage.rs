//! `linkspan link list` and `link remove`.

use std::path::Path;

use anyhow::{Context, bail};
use jiff::Timestamp;
use linkspan_proto::names::ClusterName;
use serde::Serialize;

use super::home::{Home, LINKS};
use super::{bundle, manifests};
use crate::args::{ActionFormat, Format, LinkListArgs, LinkRemoveArgs};
use crate::client::folder::read_manifest;
use crate::client::kubernetes::api::ApiError;
use crate::commands::Exit;
use crate::output::table::{Cell, Table};
use crate::output::{self, json};

/// One declared link, for JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    cluster: String,
    trust_domain: String,
    addresses: Vec<String>,
    default_policy: String,
    roots: Vec<RootRow>,
    /// Why the bundle would be refused, if it would.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    file: String,
}

/// One root, for JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RootRow {
    sha256: String,
    not_after: String,
}

/// What `link list -o json` prints.
#[derive(Debug, Serialize)]
struct List {
    links: Vec<Row>,
    broken: Vec<String>,
}

/// Shows the declared links. Whether they are up is what `linkspan gateways` shows.
pub(super) async fn list(args: &LinkListArgs) -> anyhow::Result<Exit> {
    let home = Home::open(&args.place).await?;
    let found = home.declared().await?;
    let links = found.links.iter().map(row).collect::<anyhow::Result<Vec<_>>>()?;
    let list = List { links, broken: found.broken };
    if args.output.output == Format::Json {
        json::print(&list)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(["CLUSTER", "TRUST DOMAIN", "ADDRESSES", "DEFAULT", "ROOT SHA-256", "UNTIL", "FILE"]);
    for row in &list.links {
        let addresses = if row.addresses.is_empty() {
            Cell::text("(waits to be dialled)").faint()
        } else {
            Cell::text(row.addresses.join(","))
        };
        let (root, until) = match (&row.problem, row.roots.first()) {
            (Some(problem), _) => (Cell::text(problem).bad(), Cell::none()),
            // The first 8 bytes tell two roots apart; the whole is in the JSON.
            (None, Some(root)) => {
                (Cell::text(root.sha256.get(..23).unwrap_or(&root.sha256)), Cell::text(&root.not_after))
            }
            (None, None) => (Cell::none(), Cell::none()),
        };
        let file = Path::new(&row.file).file_name().map(|name| name.to_string_lossy().into_owned());
        table.row([
            Cell::text(&row.cluster),
            Cell::text(&row.trust_domain),
            addresses,
            Cell::text(&row.default_policy),
            root,
            until,
            Cell::text(file.unwrap_or_default()),
        ]);
    }
    if table.is_empty() {
        let flags = home.flags();
        output::print(&format!(
            "No links. On a peer: linkspan link export; here: linkspan link import FILE {flags}\n"
        ))?;
    } else {
        table.print()?;
    }
    for broken in &list.broken {
        output::print(&format!("not read: {}\n", output::safe(broken)))?;
    }
    Ok(Exit::Done)
}

/// One row.
fn row(declared: &manifests::Declared) -> anyhow::Result<Row> {
    let spec = &declared.link.spec;
    let (roots, problem) = match bundle::check(&spec.trust_bundle, &spec.trust_domain) {
        Ok(roots) => (roots, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let roots = roots
        .into_iter()
        .map(|root| {
            let not_after = Timestamp::from_second(root.not_after_unix)?.strftime("%Y-%m-%d").to_string();
            Ok(RootRow { sha256: root.fingerprint, not_after })
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(Row {
        cluster: declared.cluster.to_string(),
        trust_domain: spec.trust_domain.to_string(),
        addresses: spec.addresses.iter().map(ToString::to_string).collect(),
        default_policy: format!("{:?}", spec.default_policy),
        roots,
        problem,
        file: declared.stands.clone(),
    })
}

/// Removes what `link import` placed.
pub(super) async fn remove(args: &LinkRemoveArgs) -> anyhow::Result<Exit> {
    let home = Home::open(&args.place).await?;
    let peer = &args.name;
    let removed = match &home {
        Home::Site { dir, site } => remove_file(&manifests::folder(dir, site), peer, &home.flags())?,
        Home::Cluster { cluster, .. } => match cluster.api().delete(&format!("{LINKS}/{peer}")).await {
            Ok(()) => home.stand_of(peer),
            Err(ApiError::NotFound(_)) => {
                bail!(
                    "there is no Link {peer} in this cluster; linkspan link list {} shows what there is",
                    home.flags()
                )
            }
            Err(error) => return Err(error.into()),
        },
    };
    if args.output.output == ActionFormat::Json {
        json::print(&serde_json::json!({ "cluster": peer, "removed": removed }))?;
        return Ok(Exit::Done);
    }
    output::print(&output::safe_lines(&format!(
        "Removed {removed}\n\
         What runs closes the link and removes what it mirrored from {peer}; new connections of {peer} are refused.\n\
         On {peer}, remove the other half: linkspan link remove {}\n",
        home.own()
    )))?;
    Ok(Exit::Done)
}

/// Removes the file that an import wrote.
fn remove_file(folder: &Path, peer: &ClusterName, flags: &str) -> anyhow::Result<String> {
    let file = manifests::file_of(folder, peer);
    if !file.is_file() {
        let elsewhere = manifests::read(folder)?.links.into_iter().find(|link| link.cluster == *peer);
        match elsewhere {
            Some(link) => bail!("the Link {peer} stands in {}; remove it there by hand", link.stands),
            None => {
                bail!("there is no Link {peer} in {}; linkspan link list {flags} shows what there is", folder.display())
            }
        }
    }
    // The file might have been edited since the import.
    let text = read_manifest(&file).with_context(|| format!("cannot read {}", file.display()))?;
    manifests::one_link(&text, &file.display().to_string())
        .context("this file is not as `link import` wrote it; remove the Link by hand")?;
    std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    Ok(file.display().to_string())
}
