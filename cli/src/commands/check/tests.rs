//! Rounds of checks over folders and servers that a test makes.

use super::*;
use crate::client::facts::tests::{facts, service};

const SITE: &str = "apiVersion: linkspan.io/v1alpha1\nkind: Site\nmetadata: {name: east}\nspec: {}\n";

fn checks<'a>(folder: &std::path::Path, progress: &'a Progress) -> Checks<'a> {
    Checks {
        folder: Folder::new(folder),
        scope: Scope::default(),
        progress,
        report: Report::new(),
        site: None,
        gateway: None,
        controller: None,
        facts: facts(),
    }
}

fn failures(checks: &Checks<'_>) -> Vec<String> {
    let failed = checks.report.checks().iter().filter(|check| check.verdict == report::Verdict::Failure);
    failed
        .map(|check| format!("{}: {} | {}", check.name, check.reason, check.remedy.as_deref().unwrap_or_default()))
        .collect()
}

#[tokio::test]
async fn a_folder_without_a_site_names_the_next_step() {
    let dir = tempfile::tempdir().expect("folder");
    let progress = Progress::silent();
    let mut checks = checks(dir.path(), &progress);
    site::check(&mut checks).await;
    let found = failures(&checks).join("\n");
    assert!(found.contains("linkspan site init") && !found.contains("linkspan site run"), "{found}");
    assert!(!checks.report.passed());

    std::fs::write(dir.path().join("site.yaml"), SITE).expect("written");
    checks.report = Report::new();
    site::check(&mut checks).await;
    let found = failures(&checks).join("\n");
    assert!(found.contains("linkspan site run"), "{found}");
}

#[test]
fn a_state_folder_that_takes_nothing_is_a_failure() {
    let dir = tempfile::tempdir().expect("folder");
    let progress = Progress::silent();
    let mut checks = checks(dir.path(), &progress);
    site::report_saved(&mut checks, &[].into());
    assert!(checks.report.passed());
    let failed = [("addresses.json", "No space left on device"), ("status", "Read-only file system")];
    site::report_saved(&mut checks, &failed.map(|(what, why)| (what.to_owned(), why.to_owned())).into());
    let [found] = failures(&checks).try_into().expect("one failure");
    assert!(
        found.contains("the state can be saved") && found.contains("state/addresses.json: No space left"),
        "{found}"
    );
    assert!(found.contains("Read-only file system") && found.contains("df -h"), "{found}");
}

#[tokio::test]
async fn a_broken_manifest_is_named_by_place_and_field() {
    let dir = tempfile::tempdir().expect("folder");
    std::fs::create_dir(dir.path().join("manifests")).expect("folder");
    let text = "apiVersion: linkspan.io/v1alpha1\nkind: ClusterTrafficPolicy\nmetadata: {name: a, namespace: shop}\nspec:\n  \
                service: web\n  tires: []\n";
    std::fs::write(dir.path().join("manifests/split.yaml"), text).expect("written");
    std::fs::write(dir.path().join("site.yaml"), SITE).expect("written");
    let progress = Progress::silent();
    let mut checks = checks(dir.path(), &progress);
    site::check(&mut checks).await;
    let failures = failures(&checks).join("\n");
    assert!(failures.contains("manifests/split.yaml:") && failures.contains("tires"), "{failures}");
}

#[tokio::test]
async fn a_service_that_nobody_exports_is_told_in_words_with_the_manifest() {
    let dir = tempfile::tempdir().expect("folder");
    let progress = Progress::silent();
    let mut checks = checks(dir.path(), &progress);
    checks.scope.service = Some(service("shop/api"));
    catalogue::check(&mut checks).await;
    let failures = failures(&checks);
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].contains("shop/api is not exported by any linked cluster"), "{failures:?}");
    assert!(failures[0].contains("kind: ServiceExport") && failures[0].contains("name: api"), "{failures:?}");
}

#[tokio::test]
async fn a_policy_for_a_service_that_nobody_exports_fails() {
    let dir = tempfile::tempdir().expect("folder");
    std::fs::create_dir(dir.path().join("manifests")).expect("folder");
    let policy = |name: &str, service: &str, cluster: &str| {
        format!(
            "apiVersion: linkspan.io/v1alpha1\nkind: ClusterTrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             service: {service}\n  tiers: [{{clusters: {{{cluster}: 1}}}}]\n---\n"
        )
    };
    let text =
        policy("good", "web", "west") + &policy("unexported", "api", "west") + &policy("unlinked", "web", "south");
    std::fs::write(dir.path().join("manifests/split.yaml"), text).expect("written");
    let progress = Progress::silent();
    let mut checks = checks(dir.path(), &progress);
    catalogue::check(&mut checks).await;
    let failures = failures(&checks);
    assert_eq!(failures.len(), 2, "{failures:?}");
    assert!(failures[0].contains("shop/unexported") && failures[0].contains("ServiceExport"), "{failures:?}");
    assert!(failures[1].contains("shop/unlinked") && failures[1].contains("south"), "{failures:?}");
}

#[tokio::test]
async fn an_export_needs_a_ready_endpoint_that_listens() {
    let dir = tempfile::tempdir().expect("folder");
    let progress = Progress::silent();
    let mut checks = checks(dir.path(), &progress);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let export = checks.facts.exports.get_mut(&service("shop/web")).expect("export");
    export.ports[0].endpoints[0].address = listener.local_addr().expect("bound");
    exports::check(&mut checks).await;
    assert!(checks.report.passed(), "{:?}", failures(&checks));

    drop(listener);
    exports::check(&mut checks).await;
    assert!(failures(&checks).join("\n").contains("ready endpoints accept connections"), "{:?}", failures(&checks));

    checks.report = Report::new();
    let export = checks.facts.exports.get_mut(&service("shop/web")).expect("export");
    export.ports[0].endpoints.iter_mut().for_each(|endpoint| endpoint.ready = false);
    exports::check(&mut checks).await;
    assert!(failures(&checks).join("\n").contains("port 80 has none"), "{:?}", failures(&checks));
}

#[test]
fn checks_can_be_narrowed() {
    let scope = Scope { cluster: Some("west".to_owned()), service: Some(service("shop/web")) };
    assert!(scope.covers_service(&service("shop/web")) && !scope.covers_service(&service("shop/api")));
    let west = crate::client::facts::tests::cluster("west");
    assert!(scope.covers_cluster(&west) && Scope::default().covers_cluster(&west));
    assert!(!scope.covers_cluster(&crate::client::facts::tests::cluster("north")));
}

#[tokio::test]
async fn a_wrong_folder_is_one_failure_and_not_five() {
    let dir = tempfile::tempdir().expect("folder");
    let words = ["linkspan", "check", "--dir", dir.path().to_str().expect("text")];
    let crate::args::Command::Check(args) = <crate::args::Cli as clap::Parser>::parse_from(words).command else {
        panic!("check")
    };
    let report = round(&args, &Progress::silent()).await;
    assert_eq!(report.failures(), 1, "{}", report.render(false));
    assert!(report.render(false).contains("there is no site in"), "{}", report.render(false));
}
