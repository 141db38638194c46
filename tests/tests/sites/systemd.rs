//! The systemd units and their README: what they install was built, what they start exists and takes those arguments.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use linkspan_tests::process::{Process, eventually, program, run};
use linkspan_tests::site::PATIENCE;
use linkspan_tests::world::World;

use super::kit::needs_namespaces;

/// Where the units keep the site.
const DIR: &str = "/var/lib/linkspan";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd")
}

fn units() -> Vec<(String, String)> {
    let mut units: Vec<(String, String)> = fs::read_dir(folder())
        .expect("deploy/systemd")
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .filter(|(name, _)| name.ends_with(".service"))
        .map(|(name, path)| (name, fs::read_to_string(path).expect("a unit")))
        .collect();
    units.sort();
    assert_eq!(units.len(), 2, "gateway and controller");
    units
}

fn value<'a>(unit: &'a str, key: &str) -> &'a str {
    unit.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .unwrap_or_else(|| panic!("no {key}: {unit}"))
}

/// The lines of the README's blocks in this language.
fn block(language: &str) -> Vec<String> {
    let text = fs::read_to_string(folder().join("README.md")).expect("README of the units");
    let mut inside = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            inside = line == format!("```{language}");
        } else if inside {
            lines.push(line.to_owned());
        }
    }
    lines
}

#[test]
fn what_is_installed_was_built_before_and_is_what_the_units_start() {
    let commands = block("sh");
    let place = |start: &str| {
        let found = commands.iter().position(|command| command.starts_with(start));
        found.unwrap_or_else(|| panic!("no command `{start}...`: {commands:#?}"))
    };
    let build = place("cargo build --release");
    let install = place("install -m 0755");
    assert!(build < install, "built first: {commands:#?}");
    assert!(place("useradd") < place("chown"));
    assert!(place("linkspan site init") < place("chown"), "what is made as root is given away afterwards");
    assert!(place("install -m 0644") < place("systemctl daemon-reload"));
    assert!(place("systemctl daemon-reload") < place("systemctl enable"));
    let sources: Vec<&str> =
        commands[install].split_whitespace().filter_map(|word| word.strip_prefix("target/release/")).collect();
    for source in &sources {
        // In this workspace every program is called like its package.
        assert!(
            commands[build].contains(&format!("-p {source}")),
            "{source} is installed and not built: {}",
            commands[build]
        );
        assert!(program(source).exists());
    }
    let enabled = &commands[place("systemctl enable")];
    for (name, unit) in units() {
        let start = value(&unit, "ExecStart");
        let name = name.trim_end_matches(".service");
        assert_eq!(start, format!("/usr/bin/{name} --dir {DIR}"), "one program, one name");
        assert!(sources.contains(&name) && enabled.split_whitespace().any(|word| word == name), "{enabled}");
        let account = format!(" {}", value(&unit, "User"));
        assert!(commands[place("useradd")].ends_with(&account), "the account that is made runs {name}");
        let seconds: u64 = value(&unit, "TimeoutStopSec").parse().expect("seconds");
        assert!(seconds > 12, "above the drain time of the gateway");
    }
    // Both zones of the DNS server (mirror-controller/src/dns/zone.rs), whole.
    let resolved = block("ini");
    let domains = resolved.iter().find_map(|line| line.strip_prefix("Domains=")).expect("Domains");
    assert_eq!(domains.split_whitespace().collect::<Vec<_>>(), ["~svc.cluster.local", "~clusterset.local"]);
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("SKIPPED: systemd-analyze is not installed");
        return;
    }
    let scratch = tempfile::tempdir().expect("folder");
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]);
    for (name, unit) in units() {
        let file = scratch.path().join(&name);
        let built = program(name.trim_end_matches(".service"));
        fs::write(
            &file,
            unit.replace("/usr/bin/linkspan-", &format!("{}/linkspan-", built.parent().expect("a folder").display())),
        )
        .expect("a copy that starts the built program");
        verify.arg(file);
    }
    let output = run(&mut verify);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours: Vec<&str> = text.lines().filter(|line| line.contains("linkspan")).collect();
    assert!(output.status.success() && ours.is_empty(), "{text}");
}

/// The commands that need no systemd, and the two that systemd would start, with the site in another folder.
#[test]
fn the_commands_of_the_units_make_a_site_that_passes_its_checks() {
    needs_namespaces!();
    let world = World::new(&["east"]);
    let host = world.host("east");
    let dir = host.dir().join("linkspan").display().to_string();
    let bin = program("linkspan").parent().expect("a folder").display().to_string();
    let here = |command: &str| {
        assert!(command.contains(DIR), "{command}");
        format!("export PATH={bin}:$PATH; {}", command.replace(DIR, &dir).replace("/usr/bin/", ""))
    };
    let commands = block("sh");
    let find = |start: &str| here(commands.iter().find(|command| command.starts_with(start)).expect("the command"));
    host.sh(&find("linkspan site init"));
    let mut running: Vec<Process> = Vec::new();
    for (name, unit) in units().iter().rev() {
        let line = here(value(unit, "ExecStart")).replace("linkspan-", "exec linkspan-");
        running.push(host.start(name, "bash", &["-c", &line]));
    }
    for half in ["gateway", "controller"] {
        let file = Path::new(&dir).join(format!("state/run/{half}.json"));
        eventually(&format!("the {half} runs"), PATIENCE, || file.exists());
    }
    let check = find("linkspan check");
    let mut text = String::new();
    eventually("its own check passes", PATIENCE, || {
        let (ok, output) = host.try_sh(&check);
        text = output;
        ok || running.iter_mut().any(|process| !process.running())
    });
    assert!(running.iter_mut().all(Process::running), "{text}");
}
