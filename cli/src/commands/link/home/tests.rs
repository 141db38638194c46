//! Links of a Kubernetes cluster, over recorded answers of an API server.

use std::sync::Arc;

use clap::Parser;
use serde_json::json;

use super::super::{export, import, manifests};
use super::{Home, Placed};
use crate::args::{Cli, Command, LinkCommand, LinkExportArgs};
use crate::client::kubernetes::tests::{Recorded, healthy, root};
use crate::commands;

const LINK_SERVICE: &str = "GET /api/v1/namespaces/linkspan/services/linkspan-link";

async fn home(recorded: Recorded) -> Home {
    let cluster = Box::new(recorded.serve().await);
    let settings = Box::new(cluster.installed().await.expect("installed"));
    Home::Cluster { cluster, settings }
}

fn export_args(line: &str) -> LinkExportArgs {
    let words = ["linkspan", "link", "export"].into_iter().chain(line.split_whitespace());
    let Command::Link(LinkCommand::Export(args)) = Cli::parse_from(words).command else { panic!("link export") };
    args
}

async fn exported(recorded: Recorded, line: &str) -> Result<Vec<String>, String> {
    let Home::Cluster { cluster, settings } = home(recorded).await else { unreachable!("a cluster") };
    let ours =
        export::of_cluster(&export_args(line), &cluster, &settings).await.map_err(|error| format!("{error:#}"))?;
    assert_eq!(ours.cluster, "east");
    assert_eq!(ours.trust_domain.as_str(), "east.linkspan.internal");
    assert!(ours.roots.0.contains("BEGIN CERTIFICATE"));
    Ok(ours.addresses.iter().map(ToString::to_string).collect())
}

#[tokio::test]
async fn a_cluster_is_exported_with_the_address_of_its_service() {
    assert_eq!(exported(healthy(), "").await.expect("exported"), ["192.0.2.1:4143"]);
    assert_eq!(exported(healthy(), "--address east.example:443").await.expect("exported"), ["east.example:443"]);
    assert!(exported(healthy(), "--no-address").await.expect("exported").is_empty());

    let mut configured = healthy();
    let text = "apiVersion: linkspan.io/v1alpha1\nkind: Cluster\nmetadata: {name: east}\nspec: {gateway: {advertise: \
                [\"east.example.com:4143\"]}}\n";
    configured.set(
        "GET /api/v1/namespaces/linkspan/configmaps/linkspan-cluster",
        json!({ "data": { "cluster.yaml": text } }),
    );
    assert_eq!(exported(configured, "").await.expect("exported"), ["east.example.com:4143"]);
}

#[tokio::test]
async fn without_an_address_the_export_says_what_to_do() {
    let mut recorded = healthy();
    recorded.set(LINK_SERVICE, json!({ "spec": { "type": "LoadBalancer", "ports": [{ "port": 4143 }] } }));
    let error = exported(recorded, "").await.expect_err("pending");
    assert!(error.contains("no address yet") && error.contains("--address HOST:PORT"), "{error}");
    let mut recorded = healthy();
    recorded.set(LINK_SERVICE, json!({ "spec": { "type": "ClusterIP", "ports": [{ "port": 4143 }] } }));
    assert!(exported(recorded, "").await.expect("it only dials").is_empty());
    let mut recorded = healthy();
    recorded.remove("GET /api/v1/namespaces/linkspan/configmaps/linkspan-root");
    assert!(exported(recorded, "").await.expect_err("no root").contains("linkspan ca create"));
    let error = exported(healthy(), "--address 0.0.0.0:4143").await.expect_err("nobody can dial it");
    assert!(error.contains("no address that a peer can dial"), "{error}");
}

fn link(name: &str, domain: &str, pem: &str) -> String {
    let pem: String = pem.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: linkspan.io/v1alpha1\nkind: Link\nmetadata: {{name: {name}}}\nspec:\n  trustDomain: {domain}\n  trustBundle: \
         |\n{pem}"
    )
}

async fn import(home: &Home, text: &str, replace: bool) -> Result<(String, Placed), String> {
    let told = |error: anyhow::Error| format!("{error:#}");
    let (peer, link) = manifests::one_link(text, "test").map_err(told)?;
    let present = home.declared().await.map_err(told)?;
    import::check(home, &peer, &link, &present).map_err(told)?;
    home.place(&peer, &link, &present, replace).await.map_err(told)
}

#[tokio::test]
async fn a_link_is_applied_with_the_fields_that_were_understood() {
    let mut recorded = healthy();
    recorded.set("PATCH /apis/linkspan.io/v1alpha1/links/north", json!({}));
    recorded.set("PATCH /apis/linkspan.io/v1alpha1/links/west", json!({}));
    let seen = Arc::clone(&recorded.seen);
    let home = home(recorded).await;
    let north = link("north", "north.example", &root("north.example"));
    assert_eq!(import(&home, &north, false).await.expect("applied"), ("Link north".to_owned(), Placed::New));
    let (line, body) = seen.lock().expect("lock").last().cloned().expect("a request");
    assert!(line.contains("fieldManager=linkspan-cli") && line.contains("force=false"), "{line}");
    let body: serde_json::Value = serde_json::from_str(&body).expect("an object");
    assert_eq!(body["spec"]["addresses"], json!([]), "what is empty replaces what was there");
    assert_eq!((&body["metadata"], &body["spec"]["defaultPolicy"]), (&json!({ "name": "north" }), &json!("Allow")));

    let other = link("west", "west.linkspan.internal", &root("west.linkspan.internal"));
    assert!(import(&home, &other, false).await.expect_err("another root").contains("--replace"));
    assert_eq!(import(&home, &other, true).await.expect("replaced").1, Placed::Replaced);
    assert!(seen.lock().expect("lock").last().expect("a request").0.contains("force=true"));
}

#[tokio::test]
async fn what_must_not_be_trusted_is_refused_here_too() {
    let home = home(healthy()).await;
    for (text, says) in [
        (link("east", "other.example", &root("other.example")), "this cluster itself"),
        (link("north", "east.linkspan.internal", &root("east.linkspan.internal")), "this cluster's own"),
        (link("north", "west.linkspan.internal", &root("west.linkspan.internal")), "has the trust domain"),
        (link("north", "north.example", &root("other.example")), "not of spiffe://north.example"),
    ] {
        let error = import(&home, &text, true).await.expect_err(says);
        assert!(error.contains(says), "expected {says:?}: {error}");
    }
}

/// From the words that are typed to the API server and back: kubeconfig, context, namespace.
#[tokio::test]
async fn commands_find_the_cluster_by_the_kubeconfig() {
    let mut recorded = healthy();
    recorded.set("DELETE /apis/linkspan.io/v1alpha1/links/west", json!({ "kind": "Status", "status": "Success" }));
    recorded.list("GET /api/v1/namespaces/mesh/pods", json!([]));
    let seen = Arc::clone(&recorded.seen);
    let cluster = recorded.serve().await;
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("config");
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {{server: '{}'}}\nusers:\n- name: u\n  user: {{token: \
         secret}}\ncontexts:\n- name: east\n  context: {{cluster: c, user: u}}\n",
        cluster.api().server()
    );
    std::fs::write(&file, text).expect("written");
    let run = async |line: &str| {
        let line = format!("linkspan {line} --kubeconfig {} --context east", file.display());
        let command = Cli::parse_from(line.split(' ')).command;
        let ran = tokio::task::spawn_blocking(move || commands::run(command).map_err(|error| format!("{error:#}")));
        ran.await.expect("no panic")
    };
    for line in ["gateways", "services -o json", "exports", "stat", "link list", "link export", "link remove west"] {
        run(line).await.unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    assert!(run("link remove north").await.expect_err("absent").contains("there is no Link north"));
    assert_eq!(run("check -o json").await.expect("checked"), commands::Exit::Done);
    let lines: Vec<String> = seen.lock().expect("lock").iter().map(|(line, _)| line.clone()).collect();
    assert!(lines.contains(&"DELETE /apis/linkspan.io/v1alpha1/links/west".to_owned()), "{lines:?}");
    let error = run("gateways --linkspan-namespace mesh").await.expect_err("not there");
    assert!(error.contains("namespace mesh") && error.contains("--linkspan-namespace"), "{error}");
}
