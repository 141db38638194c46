//! A standalone site on a host: its folder, its process, its CLI.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::clock;
use crate::process::{self, Process, eventually, program, run, succeed};
use crate::world::Host;

/// How long a site may take until it is ready, and a change until it is visible everywhere.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A site and its processes.
pub struct Site {
    /// The host it runs on.
    pub host: Host,
    name: String,
    dir: PathBuf,
    processes: Vec<Process>,
}

/// What differs from the defaults of [`Site::init`].
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The site does not say where it can be dialled (it sits behind NAT).
    pub hidden: bool,
    /// The site's name, where it is not the host's.
    pub name: Option<String>,
    /// Where the site says it can be dialled, where that is not port 4143 of its host.
    pub advertise: Option<String>,
    /// The range of mirrored addresses, where it is not the default.
    pub mirrors: Option<String>,
    /// Where a site on the machine itself listens for links, where it has to be known beforehand: peers dial it.
    pub link: Option<String>,
}

impl Site {
    /// Makes the site's folder with `linkspan site init` and fits `site.yaml` to the host: the link on 4143, DNS on
    /// port 53 so that programs of the host resolve by it, two ranges of client addresses with workloads of their own.
    ///
    /// # Panics
    /// When the command fails.
    pub fn init(host: Host, options: &Options) -> Self {
        let name = options.name.clone().unwrap_or_else(|| host.name().to_owned());
        let dir = host.dir().join("site");
        let site = Self { host, name, dir, processes: Vec::new() };
        let dir_text = site.dir.display().to_string();
        succeed(site.cli().args(["site", "init", &site.name, "--dir", &dir_text]));
        let own = options.link.clone().unwrap_or_else(|| format!("{}:4143", site.host.address()));
        let advertise = options.advertise.as_ref().unwrap_or(&own);
        let advertise = if options.hidden { "[]".to_owned() } else { format!("[\"{advertise}\"]") };
        let name = &site.name;
        let (link, mtls, dns, admin, controller, mirrors) = if site.host.is_local() {
            // Ports come from the kernel; the range of mirrored addresses is the test's own by its process id.
            let range = format!("127.{}.{}.0/24", 96 + (std::process::id() >> 8) % 16, std::process::id() % 256);
            ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", range)
        } else {
            let range = "127.80.0.0/12".to_owned();
            ("0.0.0.0:4143", "127.0.0.1:4193", "127.0.0.1:53", "127.0.0.1:4191", "127.0.0.1:4194", range)
        };
        let mirrors = options.mirrors.clone().unwrap_or(mirrors);
        let link = options.link.as_deref().unwrap_or(link);
        let yaml = format!(
            "apiVersion: linkspan.io/v1alpha1\nkind: Site\nmetadata: {{name: {name}}}\nspec:\n  gateway:\n    \
             listen: {link}\n    advertise: {advertise}\n    mtlsListen: {mtls}\n  \
             dns: {{listen: \"{dns}\"}}\n  admin: {{listen: \"{admin}\", controllerListen: \"{controller}\"}}\n  mirrorAddresses: \"{mirrors}\"\n  \
             workloads:\n    - {{cidr: 127.0.1.0/24, namespace: shop, serviceAccount: frontend}}\n    \
             - {{cidr: 127.0.2.0/24, namespace: ops, serviceAccount: robot}}\n"
        );
        fs::write(site.dir.join("site.yaml"), yaml).expect("site.yaml is written");
        site
    }

    /// The site's (and cluster's) name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The site's folder.
    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    fn cli(&self) -> Command {
        self.host.command(program("linkspan"))
    }

    /// Runs `linkspan ARGS --dir D` on the host; it must succeed. Returns its standard output.
    pub fn linkspan(&self, args: &[&str]) -> String {
        succeed(self.cli().args(args).arg("--dir").arg(&self.dir))
    }

    /// Runs `linkspan ARGS --dir D`; returns exit code and both outputs.
    pub fn try_linkspan(&self, args: &[&str]) -> (i32, String) {
        let output = run(self.cli().args(args).arg("--dir").arg(&self.dir));
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap_or(-1), text)
    }

    /// The JSON that `linkspan ARGS -o json` prints, whatever its exit code.
    ///
    /// # Panics
    /// When it is not JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let output = run(self.cli().args(args).arg("--dir").arg(&self.dir).args(["-o", "json"]));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!(
                "linkspan {args:?}: {error}\n{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        })
    }

    /// Starts `linkspan site run` and waits until it is ready.
    pub fn start(&mut self) {
        let dir = self.dir.display().to_string();
        self.processes.push(self.host.start("site", program("linkspan"), &["site", "run", "--dir", &dir]));
        self.wait_ready();
    }

    /// Starts `linkspan site run` with a clock that is so many seconds ahead, and waits until it is ready.
    pub fn start_ahead(&mut self, seconds: i64) {
        let clock = clock::environment(&clock::library(self.host.dir()), seconds);
        let clock = clock.map(|(name, value)| format!("{name}={value}"));
        self.start_by(&["env", &clock[0], &clock[1]]);
    }

    /// Starts `linkspan site run` by another program (`prlimit`, `env`), which becomes it, and waits until it is ready.
    pub fn start_by(&mut self, program: &[&str]) {
        let dir = self.dir.display().to_string();
        let mut command = self.host.command(program[0]);
        command.args(&program[1..]).arg(process::program("linkspan"));
        command.args(["site", "run", "--dir", &dir]).current_dir(self.host.dir());
        self.processes.push(Process::start(&format!("{}/site", self.name), command, &self.host.dir().join("site.log")));
        self.wait_ready();
    }

    /// Starts gateway and controller as processes of their own; index 0 is the controller, 1 the gateway.
    pub fn start_split(&mut self) {
        let dir = self.dir.display().to_string();
        self.processes.push(self.host.start("controller", program("linkspan-mirror-controller"), &["--dir", &dir]));
        self.processes.push(self.host.start("gateway", program("linkspan-gateway"), &["--dir", &dir]));
        self.wait_ready();
    }

    /// Starts the gateway process again after [`Self::process`] was killed.
    pub fn restart_split(&mut self, index: usize) {
        let dir = self.dir.display().to_string();
        let (name, binary) = [("controller", "linkspan-mirror-controller"), ("gateway", "linkspan-gateway")][index];
        self.processes[index] = self.host.start(name, program(binary), &["--dir", &dir]);
    }

    /// Waits until the site's admin port says ready.
    pub fn wait_ready(&self) {
        eventually(&format!("site {} is ready", self.name), PATIENCE, || {
            self.bound("gateway", "admin")
                .is_some_and(|a| self.host.try_sh(&format!("curl -fsS -m 2 http://{a}/ready")).0)
        });
    }

    /// An address that a half of the site has bound, from its run file: `bound("gateway", "link")`.
    pub fn bound(&self, half: &str, what: &str) -> Option<String> {
        let text = fs::read_to_string(self.dir.join(format!("state/run/{half}.json"))).ok()?;
        serde_json::from_str::<Value>(&text).ok()?[what].as_str().map(str::to_owned)
    }

    /// What a half of the site says of itself: the sum of all samples of a metric whose labels hold `label`.
    ///
    /// # Panics
    /// When its admin port does not answer.
    pub fn metric(&self, half: &str, family: &str, label: &str) -> f64 {
        let admin = self.bound(half, "admin").expect("an admin port");
        let text = self.host.sh(&format!("curl -fsS -m 10 http://{admin}/metrics"));
        let samples = text.lines().filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            (name == family && labels.contains(label)).then(|| value.parse::<f64>().expect("a number"))
        });
        samples.sum()
    }

    /// Waits until the site's own DNS server has an address for `name`.
    pub fn wait_answers(&self, name: &str) -> std::net::Ipv4Addr {
        let mut found = None;
        eventually(&format!("{} has an address for {name}", self.name), PATIENCE, || {
            let server = self.bound("controller", "dns").and_then(|server| server.parse().ok());
            found = server.and_then(|server| crate::dns::address(server, name));
            found.is_some()
        });
        found.expect("the condition above holds")
    }

    /// One of the site's processes.
    pub fn process(&mut self, index: usize) -> &mut Process {
        &mut self.processes[index]
    }

    /// Stops all processes of the site with SIGTERM and waits for their end.
    pub fn stop(&mut self) {
        for process in &mut self.processes {
            process.signal("TERM");
            process.wait(PATIENCE);
        }
        self.processes.clear();
    }

    /// Kills all processes of the site at once.
    pub fn kill(&mut self) {
        self.processes.clear();
    }

    /// Writes `manifests/FILE`, whole, as an editor would: a new file in its place.
    ///
    /// # Panics
    /// When the folder is not writable.
    pub fn apply(&self, file: &str, yaml: &str) {
        let target = self.dir.join("manifests").join(file);
        let temporary = self.dir.join(format!(".{file}.new"));
        fs::write(&temporary, yaml).expect("manifest is written");
        fs::rename(&temporary, &target).expect("manifest is placed");
    }

    /// Removes `manifests/FILE`.
    ///
    /// # Panics
    /// When it is not there.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.dir.join("manifests").join(file)).expect("manifest is removed");
    }

    /// Tells `self` about `peer` by the two commands a user types.
    pub fn import(&self, peer: &Self) {
        let link = peer.linkspan(&["link", "export"]);
        let file = self.host.dir().join(format!("{}.link.yaml", peer.name));
        fs::write(&file, link).expect("link manifest is written");
        self.linkspan(&["link", "import", &file.display().to_string()]);
    }

    /// Waits until this site's link to `peer` is alive.
    pub fn wait_alive(&self, peer: &str) {
        eventually(&format!("{} sees {peer} alive", self.name), PATIENCE, || self.alive(peer) == Some(true));
    }

    /// What `linkspan gateways` says of `peer`: whether it is alive.
    pub fn alive(&self, peer: &str) -> Option<bool> {
        self.gateway(peer)?["alive"].as_bool()
    }

    /// All that `linkspan gateways` says of `peer`.
    pub fn gateway(&self, peer: &str) -> Option<Value> {
        let rows = self.json(&["gateways"]);
        rows.as_array()?.iter().find(|row| row["cluster"] == peer).cloned()
    }

    /// Waits until `name` resolves on the host, and returns the address.
    pub fn wait_resolves(&self, name: &str) -> String {
        let mut address = String::new();
        eventually(&format!("{name} resolves on {}", self.name), PATIENCE, || {
            let (ok, text) = self.host.try_sh(&format!("dig +short +time=1 +tries=1 {name} A"));
            address = text.trim().to_owned();
            ok && !address.is_empty() && address.parse::<std::net::IpAddr>().is_ok()
        });
        address
    }
}

/// Links every site with every other, and waits until all links are alive.
pub fn link_all(sites: &[&Site]) {
    for site in sites {
        for peer in sites {
            if site.name != peer.name {
                site.import(peer);
            }
        }
    }
    for site in sites {
        for peer in sites {
            if site.name != peer.name {
                site.wait_alive(&peer.name);
            }
        }
    }
}
