//! Fails when `src/gen/` is not what `proto/*.proto` generates. `LINKSPAN_REGENERATE=1` writes it instead.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FILES: [&str; 3] = ["stream.proto", "exchange.proto", "configuration.proto"];

#[test]
fn generated_code_is_fresh() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/gen");
    let fresh = generate(&root.join("proto"));
    if std::env::var_os("LINKSPAN_REGENERATE").is_some() {
        for (name, text) in &fresh {
            std::fs::write(committed.join(name), text).expect("writing generated code");
        }
        return;
    }
    assert_eq!(
        fresh.keys().collect::<Vec<_>>(),
        read_folder(&committed).keys().collect::<Vec<_>>(),
        "files in src/gen; run `LINKSPAN_REGENERATE=1 cargo test -p linkspan-proto --test freshness`"
    );
    for (name, text) in read_folder(&committed) {
        assert!(
            fresh[&name] == text,
            "src/gen/{name} is stale: run `LINKSPAN_REGENERATE=1 cargo test -p linkspan-proto --test freshness`"
        );
    }
}

/// File name to text, as the generator makes them now.
fn generate(include: &Path) -> BTreeMap<String, String> {
    let descriptors = protox::compile(FILES, [include]).expect("the .proto files compile");
    let folder = tempfile::tempdir().expect("a temporary folder");
    tonic_prost_build::configure()
        .out_dir(folder.path())
        .bytes(".")
        .btree_map(".")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .expect("the generator accepts the descriptors");
    read_folder(folder.path())
}

fn read_folder(folder: &Path) -> BTreeMap<String, String> {
    std::fs::read_dir(folder)
        .expect("a readable folder")
        .map(|entry| {
            let entry = entry.expect("a readable entry");
            let name = entry.file_name().into_string().expect("a UTF-8 file name");
            (name, std::fs::read_to_string(entry.path()).expect("a readable file"))
        })
        .collect()
}
