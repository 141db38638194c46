//! The direction between the modules of this crate, checked by reading the sources.
//!
//! `main -> app -> stages`. A stage may use what stands before it in [`ORDER`], and `proto` and `runtime`; never what stands
//! behind it. That leaves no room for a cycle. The pure files know no socket and no runtime.

use std::fs;
use std::path::{Path, PathBuf};

/// All modules, each after everything that it may use.
const ORDER: [&str; 21] = [
    // Words and tools that every stage may use.
    "diff",
    "files",
    "labels",
    "pressure",
    "reserved",
    "saving",
    "verdict",
    // Leaves.
    "ca",
    "dns",
    "leader",
    // Where gateways come in; the exchange takes pipes from it.
    "door",
    // The stages, in the order of the path.
    "watch",
    "catalog",
    "exchange",
    "mirror",
    // What the gateways and people are told.
    "configuration",
    "status",
    // Our own cluster, on Kubernetes.
    "cluster",
    // Wiring.
    "config",
    "app",
    "main",
];

/// Files and folders that decide and never talk.
const PURE: [&str; 25] = [
    "watch/folder.rs",
    "watch/folder/",
    "catalog.rs",
    "catalog/",
    "leader/candidate.rs",
    "exchange/session.rs",
    "exchange/session/",
    "mirror/addresses.rs",
    "mirror/collect.rs",
    "mirror/conflicts.rs",
    "mirror/desired.rs",
    "mirror/faces.rs",
    "mirror/kubernetes/import.rs",
    "mirror/kubernetes/objects.rs",
    "mirror/kubernetes/place.rs",
    "mirror/object.rs",
    "mirror/plan.rs",
    "mirror/seniority.rs",
    "mirror/state.rs",
    "status/findings.rs",
    "status/events.rs",
    "status/objects.rs",
    "watch/intake.rs",
    "dns/message.rs",
    "dns/zone.rs",
];

/// The longest file, tests and comments left out.
const LINES_MAX: usize = 500;

/// The longest function.
const FUNCTION_MAX: usize = 80;

struct Source {
    /// Below `src`, with slashes.
    path: String,
    /// Without tests and comments.
    lines: Vec<String>,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.extend(source(&root, &path));
            }
        }
    }
    found
}

fn source(root: &Path, path: &PathBuf) -> Option<Source> {
    let inside = path.strip_prefix(root).expect("below src").to_string_lossy().into_owned();
    let is_test = inside.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "testkit.rs"));
    if is_test || inside == "lib.rs" {
        return None;
    }
    let text = fs::read_to_string(path).expect("readable");
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//")).map(str::to_owned).collect();
    Some(Source { path: inside, lines })
}

/// The top-level modules that a line names as `crate::x`.
fn used(line: &str) -> Vec<String> {
    let word = |text: &str| text.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    line.split("crate::")
        .skip(1)
        .flat_map(|part| match part.strip_prefix('{') {
            Some(group) => group.split(',').map(word).collect::<Vec<String>>(),
            None => vec![word(part)],
        })
        .collect()
}

#[test]
fn every_module_uses_only_what_stands_before_it() {
    let place = |module: &str| ORDER.iter().position(|known| *known == module);
    for source in sources() {
        let module = source.path.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned();
        let own = place(&module).unwrap_or_else(|| panic!("{module} is missing in ORDER"));
        for line in &source.lines {
            for name in used(line) {
                // Anything else that follows `crate::` is an item of the root, of which there are none.
                let other = place(&name).unwrap_or_else(|| panic!("{}: crate::{name} is no module", source.path));
                assert!(other <= own, "{} uses {name}, which stands behind it", source.path);
            }
        }
    }
}

#[test]
fn pure_files_do_not_talk() {
    for source in sources() {
        if !PURE.iter().any(|pure| source.path == *pure || (pure.ends_with('/') && source.path.starts_with(pure))) {
            continue;
        }
        for line in &source.lines {
            for talk in
                ["tokio::", "std::fs", "std::net::Tcp", "std::net::Udp", "Instant::now", "SystemTime::now", "kube::"]
            {
                assert!(!line.contains(talk), "{}: {line}", source.path);
            }
        }
    }
}

#[test]
fn files_and_functions_stay_readable() {
    for source in sources() {
        assert!(source.lines.len() <= LINES_MAX, "{} has {} lines", source.path, source.lines.len());
        for (start, line) in source.lines.iter().enumerate() {
            let trimmed = line.trim_start();
            if !trimmed.split_whitespace().take(5).any(|word| word == "fn") {
                continue;
            }
            // rustfmt closes a function in the column where it began.
            let indent = line.len() - trimmed.len();
            let closing = format!("{}}}", " ".repeat(indent));
            let ends =
                |line: &String| *line == closing || (line.ends_with(';') && line.find(|c| c != ' ') == Some(indent));
            let length = source.lines[start..].iter().position(ends).unwrap_or_default() + 1;
            assert!(length <= FUNCTION_MAX, "{}: {trimmed} has {length} lines", source.path);
        }
    }
}
