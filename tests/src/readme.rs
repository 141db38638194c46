//! The commands of the README, for tests that run them as written.

use std::fs;

/// The section that links two Kubernetes clusters; all others are about sites.
pub const CLUSTERS: &str = "Link two clusters";

/// The commands of the README's `sh` blocks in the sections whose title `wanted` takes: comments cut off, continued lines joined.
///
/// # Panics
/// When there is no README.
pub fn commands(wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut commands = Vec::new();
    let (mut section, mut inside) = (String::new(), false);
    let mut open = String::new();
    for line in text().lines() {
        if let Some(title) = line.strip_prefix("## ").filter(|_| !inside) {
            title.clone_into(&mut section);
        }
        if line.starts_with("```") {
            inside = line == "```sh";
            continue;
        }
        if !inside || !wanted(&section) {
            continue;
        }
        let line = line.split(" # ").next().unwrap_or(line).trim();
        if let Some(first) = line.strip_suffix('\\') {
            open.push_str(first);
            continue;
        }
        open.push_str(line);
        let command = std::mem::take(&mut open);
        if !command.is_empty() {
            commands.push(command);
        }
    }
    commands
}

/// The lines that the README tells an administrator to add to CoreDNS's configuration.
///
/// # Panics
/// When it shows none.
pub fn dns_lines() -> String {
    let text = text();
    let lines: Vec<&str> =
        text.lines().skip_while(|line| *line != "clusterset.local:53 {").take_while(|line| *line != "```").collect();
    assert!(!lines.is_empty(), "the README shows the lines for CoreDNS");
    lines.join("\n")
}

fn text() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).expect("README.md")
}
