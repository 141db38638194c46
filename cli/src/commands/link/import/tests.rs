use std::path::{Path, PathBuf};

use clap::Parser;
use linkspan_mirror_controller::ca;
use linkspan_proto::identity::TrustDomain;

use super::super::{manage, manifests};
use super::run;
use crate::args::{ActionArgs, ActionFormat, Cli, Command, LinkCommand, LinkRemoveArgs, Place};
use crate::commands::{self, site};

/// A site `east` in a folder of its own.
fn east() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("east");
    commands::run(Cli::parse_from(["linkspan", "site", "init", "east", "--dir", dir.to_str().unwrap()]).command)
        .unwrap();
    (folder, dir)
}

/// A root certificate of a trust domain.
fn root(domain: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    ca::create(folder.path(), &TrustDomain::parse(domain).unwrap()).unwrap().trust_bundle_pem().to_owned()
}

fn link(name: &str, domain: &str, pem: &str, more: &str) -> String {
    let pem: String = pem.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: linkspan.io/v1alpha1\nkind: Link\nmetadata: {{name: {name}}}\nspec:\n  trustDomain: {domain}\n{more}  \
         trustBundle: |\n{pem}"
    )
}

fn import(dir: &Path, text: &str, replace: bool) -> Result<(), String> {
    let file = dir.join("incoming.yaml");
    std::fs::write(&file, text).unwrap();
    let mut line = vec!["linkspan", "link", "import", file.to_str().unwrap(), "--dir", dir.to_str().unwrap()];
    line.extend(replace.then_some("--replace"));
    let Command::Link(LinkCommand::Import(args)) = Cli::parse_from(line).command else { panic!("link import") };
    commands::block_on(run(&args)).map(drop).map_err(|error| format!("{error:#}"))
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir.join("manifests"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_link_is_placed_once_replaced_on_demand_and_removed() {
    let (_folder, dir) = east();
    let first = link("west", "west.example", &root("west.example"), "  addresses: [\"west.example:4143\"]\n");
    import(&dir, &first, false).unwrap();
    assert_eq!(files(&dir), ["link-west.yaml"], "no temporary file stays");
    import(&dir, &first, false).unwrap();

    let second = link("west", "west.example", &root("west.example"), "");
    assert!(import(&dir, &second, false).unwrap_err().contains("--replace"));
    import(&dir, &second, true).unwrap();
    let read = manifests::read(&manifests::folder(&dir, &site::load(&dir).unwrap())).unwrap();
    assert!(read.broken.is_empty());
    assert_eq!(read.links.len(), 1);
    assert!(read.links[0].link.spec.addresses.is_empty());

    let remove = |name: &str| {
        commands::block_on(manage::remove(&LinkRemoveArgs {
            name: name.parse().unwrap(),
            place: Place { dir: Some(dir.clone()), ..Place::default() },
            output: ActionArgs { output: ActionFormat::Text },
        }))
        .map_err(|error| format!("{error:#}"))
    };
    assert!(remove("north").unwrap_err().contains("no Link north"));
    remove("west").unwrap();
    assert!(files(&dir).is_empty());
}

#[test]
fn what_must_not_be_trusted_is_refused() {
    let (_folder, dir) = east();
    import(&dir, &link("west", "west.example", &root("west.example"), ""), false).unwrap();
    let north = root("north.example");
    for (text, says) in [
        (String::new(), "holds no Link"),
        ("kind: Secret\n".to_owned(), "incoming.yaml:1"),
        (link("east", "north.example", &north, ""), "this site itself"),
        (link("north", "east.linkspan.internal", &root("east.linkspan.internal"), ""), "this site's own"),
        (link("north", "west.example", &root("west.example"), ""), "has the trust domain west.example already"),
        (link("north", "north.example", &root("other.example"), ""), "not of spiffe://north.example"),
        (link("north", "north.example", "no certificate", ""), "certificate"),
        (link("North", "north.example", &north, ""), "incoming.yaml"),
        (link("north", "NORTH", &north, ""), "incoming.yaml"),
        (link("north", "north.example", &north, "  insecure: true\n"), "incoming.yaml"),
        (link("north", "north.example", &north, "  addresses: [\"0.0.0.0:4143\"]\n"), "no address that can be dialled"),
        (link("north", "north.example", &north, "  addresses: [\"north.example:0\"]\n"), "port"),
        (
            format!(
                "{}---\n{}",
                link("north", "north.example", &north, ""),
                link("south", "south.example", &north, "")
            ),
            "a second Link",
        ),
        (
            format!(
                "{}---\napiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\nmetadata: {{name: db, namespace: a}}\n",
                link("north", "north.example", &north, "")
            ),
            "nothing else may hide",
        ),
        ("#".repeat(300 * 1024), "larger than"),
    ] {
        let error = import(&dir, &text, true).unwrap_err();
        assert!(error.contains(says), "expected {says:?}: {error}");
        assert_eq!(files(&dir), ["link-west.yaml"]);
    }
    std::fs::write(dir.join("manifests/mine.yaml"), link("south", "south.example", &root("south.example"), ""))
        .unwrap();
    let again = link("south", "south2.example", &root("south2.example"), "");
    assert!(import(&dir, &again, true).unwrap_err().contains("stands in"));
}
