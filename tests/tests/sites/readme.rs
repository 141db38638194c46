//! Every command of the README that is about sites, as written, on two hosts that are called as the README calls them. Those of
//! the section about Kubernetes run in `kubernetes::readme`.

use std::collections::BTreeSet;
use std::fs;

use linkspan_tests::process::{Process, eventually, program};
use linkspan_tests::readme::{CLUSTERS, commands};
use linkspan_tests::servers;
use linkspan_tests::site::PATIENCE;
use linkspan_tests::world::{Host, World};

use super::kit::needs_namespaces;

/// Runs commands on the host they belong to and remembers which were run.
struct Reader {
    east: Host,
    west: Host,
    left: BTreeSet<String>,
}

impl Reader {
    /// Runs the README's command that starts with `start`, with `replace` done to it first; it must succeed.
    fn run(&mut self, start: &str, replace: &[(&str, &str)]) -> String {
        let (host, line) = self.take(start, replace);
        host.sh(&line)
    }

    fn take(&mut self, start: &str, replace: &[(&str, &str)]) -> (Host, String) {
        let command = self
            .left
            .iter()
            .find(|c| c.starts_with(start))
            .cloned()
            .unwrap_or_else(|| panic!("the README has no command `{start}...`: {:?}", self.left));
        self.left.remove(&command);
        let host = if command.contains("--dir west") { &self.west } else { &self.east };
        let mut line = command;
        for (from, to) in replace {
            assert!(line.contains(from), "{line} has no {from}");
            line = line.replace(from, to);
        }
        (host.clone(), with_path(&line))
    }
}

/// `linkspan` stands for the built program, as the README says.
fn with_path(line: &str) -> String {
    let folder = program("linkspan").parent().expect("a folder").display().to_string();
    format!("export PATH={folder}:$PATH; {line}")
}

#[test]
fn every_command_of_the_readme_works_as_written() {
    needs_namespaces!();
    let all = commands(|section| section != CLUSTERS);
    assert!(all.iter().any(|c| c == "cargo run --release -p linkspan -- demo"), "the first command: {all:?}");
    assert!(all.iter().any(|c| c == "tests/run"), "the second command: {all:?}");
    let world = World::new(&["east", "west"]);
    world.name_hosts(&[("east.example.com", "east"), ("west.example.com", "west")]);
    let (east, west) = (world.host("east"), world.host("west"));
    // The demo has a test of its own, and `tests/run` is what runs this one.
    let left = all.into_iter().filter(|c| c != "tests/run" && !c.starts_with("cargo run")).collect();
    let mut readme = Reader { east: east.clone(), west: west.clone(), left };

    readme.run("linkspan site init east", &[]);
    readme.run("linkspan site init west", &[]);
    let (_, run) = readme.take("linkspan site run --dir east", &[]);
    let _east: Process = east.start("run", "bash", &["-c", &run.replace("linkspan site", "exec linkspan site")]);
    let run = run.replace("--dir east", "--dir west").replace("linkspan site", "exec linkspan site");
    let _west: Process = west.start("run", "bash", &["-c", &run]);
    for (host, dir) in [(&east, "east"), (&west, "west")] {
        eventually(&format!("{dir} runs"), PATIENCE, || host.dir().join(dir).join("state/run/gateway.json").exists());
    }

    readme.run("linkspan link export --dir east", &[]);
    fs::copy(east.dir().join("east-link.yaml"), west.dir().join("east-link.yaml")).expect("carried over");
    readme.run("linkspan link import east-link.yaml --dir west", &[]);
    west.sh(&with_path("linkspan link export --dir west > west-link.yaml"));
    fs::copy(west.dir().join("west-link.yaml"), east.dir().join("west-link.yaml")).expect("carried over");
    east.sh(&with_path("linkspan link import west-link.yaml --dir east"));

    // The backends of the example manifest.
    let mut servers: Vec<Process> = Vec::new();
    for address in ["10.0.0.11", "10.0.0.12"] {
        west.sh(&format!("ip addr add {address}/32 dev lo"));
        servers.push(west.start(address, "python3", &["-m", "http.server", "--bind", address, "8080"]));
    }
    servers::wait_listening(&west, 8080);
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/web-exported.yaml");
    fs::copy(example, west.dir().join("west/manifests/web-exported.yaml")).expect("the example");

    let (host, dig) = readme.take("dig @127.0.0.1 -p 5353 +short web-west.shop.svc.cluster.local", &[]);
    let mut address = String::new();
    eventually("the mirrored name resolves", PATIENCE, || {
        address = host.try_sh(&dig).1.trim().to_owned();
        address.parse::<std::net::IpAddr>().is_ok()
    });
    let listing = |host: &Host, line: &str| host.try_sh(line);
    eventually("curl reaches the service", PATIENCE, || {
        let line = format!("curl -fsS -H 'Host: web-west.shop.svc.cluster.local' http://{address}:8080/");
        listing(&host, &line).0
    });
    assert!(readme.run("linkspan services --dir east", &[]).contains(&address));
    readme.run("curl -H 'Host: web-west.shop.svc.cluster.local'", &[("ADDRESS", &address)]);
    readme.run("linkspan check --dir west", &[]);
    readme.run("linkspan check --dir east", &[]);
    assert!(readme.run("linkspan gateways --dir east", &[]).contains("west"));
    assert!(readme.run("linkspan stat --dir east", &[]).contains("web"));

    readme.run("linkspan identity issue --dir east", &[]);
    let (host, curl) = readme.take("curl --cert web-identity/tls.crt", &[]);
    eventually("the mTLS port serves the mirrored name", PATIENCE, || host.try_sh(&curl).0);

    // Last: it ends the link.
    let (host, remove) = readme.take("linkspan link remove west --dir east", &[]);
    host.sh(&remove);
    assert!(readme.left.is_empty(), "commands of the README that no test runs: {:?}", readme.left);
}
