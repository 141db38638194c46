//! Files under `deploy/` that say what `linkspan install` prints, or build what it runs.

use std::path::{Path, PathBuf};
use std::process::Command as Process;

use super::super::{CONFIGURATION, cluster_stage, namespaced_stage, yaml};
use super::{EAST, documents, options};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

#[test]
fn the_kustomize_base_is_fresh() {
    let options = options(EAST).unwrap();
    // Kustomize makes this one from a file, so that the pods follow its content.
    let run: Vec<_> = namespaced_stage(&options)
        .into_iter()
        .filter(|item| item.object["metadata"]["name"] != CONFIGURATION)
        .collect();
    for (file, text) in [
        ("cluster.yaml", yaml(&cluster_stage(&options).unwrap()).unwrap()),
        ("namespaced.yaml", yaml(&run).unwrap()),
        ("configuration.yaml", options.configuration),
    ] {
        let text = format!("# Made by `linkspan install`; see cli/src/commands/install/tests/files.rs.\n{text}");
        let path = deploy().join("kustomize/base").join(file);
        if std::env::var_os("LINKSPAN_REGENERATE").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(&path).unwrap_or_default() == text,
            "deploy/kustomize/base/{file} is stale: run `LINKSPAN_REGENERATE=1 cargo test -p linkspan --bins kustomize`"
        );
    }
}

/// The example overlay renames the cluster, and the pods follow.
#[test]
fn kustomize_builds_the_example() {
    let Ok(output) = Process::new("kubectl").arg("kustomize").arg(deploy().join("kustomize/example")).output() else {
        assert!(
            std::env::var_os("LINKSPAN_REQUIRE_KUBERNETES").is_none_or(|value| value != "1"),
            "no kubectl: the Kustomize example is not built"
        );
        eprintln!("NOT RUN: no kubectl, the Kustomize example is not built");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let objects = documents(&String::from_utf8(output.stdout).unwrap());
    let map = objects
        .iter()
        .find(|object| object["kind"] == "ConfigMap" && object["data"].get("cluster.yaml").is_some())
        .expect("the configuration");
    let name = map["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("linkspan-cluster-"), "{name}: a name of its own for each content");
    let cluster = map["data"]["cluster.yaml"].as_str().unwrap();
    let cluster = linkspan_proto::manifest::cluster_from_yaml(cluster, "cluster.yaml").unwrap();
    assert_eq!(cluster.cluster().as_str(), "west");
    let deployments: Vec<_> = objects.iter().filter(|object| object["kind"] == "Deployment").collect();
    assert_eq!(deployments.len(), 2);
    for deployment in deployments {
        assert!(deployment.to_string().contains(name), "the pods mount {name}");
    }
}

/// Nothing here can run a build of images: what can be checked by reading is checked.
#[test]
fn the_dockerfile_keeps_its_promises() {
    let text = std::fs::read_to_string(deploy().join("docker/Dockerfile")).unwrap();
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let stages: Vec<_> = lines.iter().filter(|line| line.starts_with("FROM ")).collect();
    let named = |name: &str| stages.iter().position(|line| line.ends_with(&format!(" AS {name}"))).expect("a stage");
    for (target, program) in
        [("gateway", "linkspan-gateway"), ("mirror-controller", "linkspan-mirror-controller"), ("linkspan", "linkspan")]
    {
        assert!(stages[named(target)].starts_with("FROM runtime AS "), "{target}");
        let copied = format!("COPY --from=build --chown=0:0 --chmod=0555 /out/{program} /usr/local/bin/{program}");
        assert!(lines.contains(&copied.as_str()), "{copied}");
        assert!(lines.contains(&format!("ENTRYPOINT [\"/usr/local/bin/{program}\"]").as_str()), "{program}");
    }
    let runtime = stages[named("runtime")];
    assert!(runtime.contains("gcr.io/distroless/cc-debian") && runtime.contains(":nonroot"), "{runtime}");
    assert!(lines.contains(&"USER 65532:65532"));
    // After the build no command runs, no address is fetched, no name of an environment carries a secret.
    let after = lines.iter().position(|line| line == runtime).unwrap();
    for line in &lines[after..] {
        assert!(!line.starts_with("RUN ") && !line.starts_with("ADD ") && !line.starts_with("EXPOSE "), "{line}");
    }
    for line in &lines {
        assert!(!line.contains(":latest") && !line.contains("curl ") && !line.contains("ENV SECRET"), "{line}");
    }
    let toolchain = std::fs::read_to_string(deploy().join("../rust-toolchain.toml")).unwrap();
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = \"")).unwrap().trim_end_matches('"');
    assert!(
        text.contains(&format!("RUST={channel}")),
        "the Dockerfile builds with the toolchain of rust-toolchain.toml"
    );
    assert!(text.contains("--locked"));
}
