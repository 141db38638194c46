//! The direction between the modules of this crate, checked by reading the sources.
//!
//! `main -> app -> path -> stages`. A stage may use what stands before it in [`ORDER`], and `proto` and `runtime`; never what
//! stands behind it. That leaves no room for a cycle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// All modules, each after everything that it may use. `crate::x` in a module is allowed if `x` stands before it.
const ORDER: [&[&str]; 13] = [
    // Words that every stage speaks.
    &["discovery", "outcome"],
    // The stages, in the order of the path.
    &["listener"],
    &["detect"],
    &["route"],
    &["link", "identity"],
    &["mtls", "remote"],
    &["backend", "metrics", "access_log", "stat"],
    // What both ends use.
    &["error", "relay"],
    &["context"],
    &["tcp"],
    &["udp"],
    &["http"],
    &["path"],
];

/// Wiring: may use everything, and nobody uses it.
const WIRING: [&str; 3] = ["config", "app", "main"];

/// Modules within one line of [`ORDER`] that use each other in one direction only, as given: user, used.
const WITHIN: [(&str, &str); 4] =
    [("stat", "metrics"), ("access_log", "metrics"), ("identity", "link"), ("app", "config")];

/// Lines of a file without its tests.
const LONGEST: usize = 500;

/// Files and folders that decide and never talk: events and the time go in, decisions come out.
const PURE: [&str; 13] = [
    "detect/http.rs",
    "detect/tls.rs",
    "link/datagrams/flows.rs",
    "link/datagrams/gate.rs",
    "link/health.rs",
    "link/state.rs",
    "link/state/",
    "remote/authorize.rs",
    "route.rs",
    "route/",
    "http/trace.rs",
    "http/via.rs",
    "udp/table.rs",
];

/// What pure files do not name. `tokio::time::Instant`, a type that can be paused, is none of it.
const TALK: [&str; 10] = [
    "Instant::now",
    "SystemTime::now",
    "tokio::net",
    "tokio::spawn",
    "tokio::time::sleep",
    "task::spawn",
    "quinn::",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Top-level module by file, and what each names as `crate::x`, tests left out.
fn uses() -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        let inside = file.strip_prefix(&root).expect("below src");
        let first = inside.iter().next().expect("a name").to_string_lossy();
        let module = first.trim_end_matches(".rs").to_owned();
        let is_test = inside.iter().any(|part| part == "tests.rs" || part == "tests");
        if module == "lib" || is_test {
            continue;
        }
        let text = fs::read_to_string(&file).expect("readable");
        // Unit tests at the end of a file may reach for helpers of later stages.
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let used = uses.entry(module).or_default();
        for line in text.lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
            for part in line.split("crate::").skip(1) {
                let names = part.strip_prefix('{').map_or_else(|| vec![part], |group| group.split(',').collect());
                used.extend(
                    names.into_iter().map(|name| {
                        name.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
                    }),
                );
            }
        }
    }
    uses
}

fn rank(module: &str) -> Option<usize> {
    let wiring = WIRING.contains(&module).then_some(ORDER.len());
    ORDER.iter().position(|line| line.contains(&module)).or(wiring)
}

#[test]
fn no_module_uses_a_later_one() {
    let mut wrong = Vec::new();
    for (module, used) in uses() {
        let Some(own) = rank(&module) else {
            wrong.push(format!("{module} has no place in the order: add it to tests/arch.rs"));
            continue;
        };
        for other in used.iter().filter(|other| **other != module) {
            // Anything else behind `crate::` is a macro or an item of the crate root, of which there are none.
            let allowed = WITHIN.contains(&(&module, other)) || rank(other).is_some_and(|other| other < own);
            if !allowed {
                wrong.push(format!("{module} uses {other}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn nobody_uses_path_or_wiring_but_wiring() {
    for (module, used) in uses() {
        if !WIRING.contains(&module.as_str()) {
            for other in ["path", "app", "config", "main"] {
                assert!(!used.contains(other) || module == other, "{module} uses {other}");
            }
        }
    }
}

#[test]
fn the_exceptions_are_no_cycle() {
    for (user, used) in WITHIN {
        assert!(!WITHIN.contains(&(used, user)), "{user} and {used} use each other");
    }
}

#[test]
fn lib_lists_every_module() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = fs::read_to_string(root.join("lib.rs")).expect("readable");
    for module in uses().keys().filter(|module| *module != "main") {
        assert!(lib.contains(&format!("pub mod {module};")), "{module} is not in lib.rs");
    }
}

#[test]
fn pure_files_do_not_talk_and_have_no_clock() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut met = BTreeSet::new();
    let mut wrong = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&root).expect("below src").to_string_lossy().into_owned();
        let pure = PURE.iter().find(|pure| inside == **pure || (pure.ends_with('/') && inside.starts_with(**pure)));
        let Some(pure) = pure.filter(|_| !inside.split('/').any(|part| matches!(part, "tests" | "tests.rs"))) else {
            continue;
        };
        met.insert(*pure);
        let text = fs::read_to_string(&file).expect("readable");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            wrong
                .extend(TALK.iter().filter(|talk| line.contains(**talk)).map(|_| format!("{inside}: {}", line.trim())));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert_eq!(met.len(), PURE.len(), "a pure file was renamed: {met:?}");
}

#[test]
fn files_and_functions_stay_readable() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        if file.ends_with("tests.rs") || file.components().any(|part| part.as_os_str() == "tests") {
            continue;
        }
        let text = fs::read_to_string(&file).expect("readable");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let lines = code.lines().count();
        if lines > LONGEST {
            wrong.push(format!("{} has {lines} lines ({LONGEST})", file.display()));
        }
        for (name, length) in functions(code) {
            if length > 80 {
                wrong.push(format!("{}: fn {name} has {length} lines (80)", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Names and lengths of functions, by indentation: rustfmt closes a function where it began.
fn functions(code: &str) -> Vec<(String, usize)> {
    let lines: Vec<_> = code.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let is_function = trimmed.split_whitespace().take(5).any(|word| word == "fn") && !trimmed.starts_with("//");
        if !is_function {
            continue;
        }
        let indent = line.len() - trimmed.len();
        let closing = format!("{}}}", " ".repeat(indent));
        let Some(length) = lines[index..].iter().position(|line| {
            **line == closing || line.trim_end().ends_with(';') && line.len() - line.trim_start().len() == indent
        }) else {
            continue;
        };
        let name = trimmed.split("fn ").nth(1).unwrap_or_default();
        found.push((name.split(['(', '<']).next().unwrap_or_default().to_owned(), length + 1));
    }
    found
}
