//! Hosts on one machine: network namespaces on a bridge, with addresses and a resolver of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::{Process, run, succeed};

/// Distinguishes the worlds of one test process.
static NEXT: AtomicU32 = AtomicU32::new(0);

const LOOPBACK: &str = "127.0.0.1";

/// A network of hosts. Dropping it removes every namespace.
pub struct World {
    id: String,
    dir: tempfile::TempDir,
    hosts: Vec<Host>,
}

/// One host: a network namespace.
#[derive(Clone)]
pub struct Host {
    name: String,
    /// `None`: the machine itself.
    netns: Option<String>,
    address: String,
    /// Where its servers listen: loopback on a site's host, which only a gateway there reaches; a pod's own address in a pod.
    listen: String,
    dir: PathBuf,
}

/// Whether this process may make network namespaces. `LINKSPAN_REQUIRE_ROOT=1` (CI) makes a missing right a failure.
///
/// # Panics
/// When namespaces are required and cannot be made.
pub fn available() -> bool {
    static ROOT: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let root = *ROOT.get_or_init(|| {
        Command::new("ip").args(["netns", "list"]).output().is_ok_and(|o| o.status.success())
            && Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.starts_with(b"0\n"))
    });
    let required = std::env::var_os("LINKSPAN_REQUIRE_ROOT").is_some_and(|v| v == "1");
    assert!(root || !required, "this test needs root for network namespaces");
    if !root {
        eprintln!("SKIPPED: needs root for network namespaces (iproute2)");
    }
    root
}

/// Whether `LINKSPAN_LONG_TESTS=1` asks for the long forms: acceptance figures instead of daily ones.
pub fn long() -> bool {
    std::env::var_os("LINKSPAN_LONG_TESTS").is_some_and(|value| value == "1")
}

/// In which network a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// One of its own: every connection in it is the test's.
    Own,
    /// The machine's.
    Shared,
    /// It has run in one of its own, and passed: nothing is left to do.
    Done,
}

/// Runs the calling test, whose full name is `test`, once more in a network namespace of its own, where that is possible:
/// loopback only, with the link-local address of cloud metadata services on it too.
///
/// # Panics
/// When the test fails there.
pub fn own_network(test: &str) -> Network {
    const MARK: &str = "LINKSPAN_OWN_NETWORK";
    if std::env::var_os(MARK).is_some() {
        return Network::Own;
    }
    if !available() {
        return Network::Shared;
    }
    let set_up = "ip link set lo up && ip addr add 169.254.169.254/32 dev lo && exec \"$@\"";
    let exe = std::env::current_exe().expect("the test program has a path");
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--", "sh", "-c", set_up, "sh"])
        .arg(exe)
        .args(["--exact", test, "--nocapture"])
        .env(MARK, "1");
    let output = run(&mut command);
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Figures and reasons, as if it had run here.
    eprint!("{told}");
    assert!(output.status.success(), "{test} failed in a network of its own");
    assert!(said.contains("1 passed"), "there is no test called {test}: {said}");
    Network::Done
}

impl World {
    /// A bridge with one host per name, at 10.77.0.1, 10.77.0.2, ... in the order given.
    ///
    /// # Panics
    /// When namespaces cannot be made.
    pub fn new(names: &[&str]) -> Self {
        let id = format!("ls{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // Unix socket paths hold 107 bytes: keep the folder short.
        let dir = tempfile::Builder::new().prefix("ls").tempdir().expect("temporary folder");
        let mut world = Self { id, dir, hosts: Vec::new() };
        let wan = world.wan();
        ip(&["netns", "add", &wan]);
        ip(&["-n", &wan, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &wan, "link", "set", "br0", "up"]);
        for name in names {
            world.add(name);
        }
        world
    }

    fn add(&mut self, name: &str) {
        let index = self.hosts.len() + 1;
        let netns = format!("{}-{name}", self.id);
        let address = format!("10.77.0.{index}");
        let wan = self.wan();
        ip(&["netns", "add", &netns]);
        ip(&["-n", &netns, "link", "set", "lo", "up"]);
        let port = format!("v{index}");
        ip(&["-n", &wan, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &netns]);
        ip(&["-n", &wan, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &netns, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", &netns, "link", "set", "eth0", "up"]);
        let etc = PathBuf::from("/etc/netns").join(&netns);
        fs::create_dir_all(&etc).expect("/etc/netns is writable");
        fs::write(etc.join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:2 attempts:2\n")
            .expect("resolv.conf of the host");
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).expect("folder of the host");
        self.hosts.push(Host {
            name: (*name).to_owned(),
            netns: Some(netns),
            address,
            listen: LOOPBACK.to_owned(),
            dir,
        });
    }

    fn wan(&self) -> String {
        format!("{}-wan", self.id)
    }

    /// The host called `name`.
    ///
    /// # Panics
    /// When there is none.
    pub fn host(&self, name: &str) -> Host {
        self.hosts.iter().find(|h| h.name == name).cloned().unwrap_or_else(|| panic!("no host {name}"))
    }

    /// Lets every host resolve these names (its `/etc/hosts`): pairs of name and host.
    ///
    /// # Panics
    /// When a host is not there.
    pub fn name_hosts(&self, names: &[(&str, &str)]) {
        let hosts: Vec<Host> = names.iter().map(|(_, host)| self.host(host)).collect();
        let names: Vec<(&str, &str)> =
            names.iter().zip(&hosts).map(|((name, _), host)| (*name, host.address())).collect();
        self.name_addresses(&names);
    }

    /// The same with pairs of name and address; running programs see the change.
    ///
    /// # Panics
    /// When a hosts file cannot be written.
    pub fn name_addresses(&self, names: &[(&str, &str)]) {
        let lines: String = names.iter().map(|(name, address)| format!("{address} {name}\n")).collect();
        for netns in self.hosts.iter().filter_map(|host| host.netns.as_ref()) {
            let file = PathBuf::from("/etc/netns").join(netns).join("hosts");
            fs::write(file, format!("127.0.0.1 localhost\n{lines}")).expect("hosts file of the host");
        }
    }

    /// Lets the programs of `host` resolve by the DNS server at `server`, from the next program on.
    ///
    /// # Panics
    /// When there is no such host.
    pub fn resolve_by(&self, host: &str, server: &str) {
        let host = self.host(host);
        let file = PathBuf::from("/etc/netns").join(host.netns.as_ref().expect("a namespace")).join("resolv.conf");
        fs::write(file, format!("nameserver {server}\noptions timeout:2 attempts:2\n"))
            .expect("resolv.conf of the host");
    }

    /// Lets nothing larger than `mtu` bytes reach `host` or leave it, without a word to whoever sent it: a black hole for large
    /// packets. The hosts know nothing of it; they cut what they send in pieces themselves, for what a network card would have
    /// cut passes a bridge whole.
    pub fn narrow(&self, host: &str, mtu: u32) {
        let index = self.hosts.iter().position(|known| known.name == host).unwrap_or_else(|| panic!("no host {host}"));
        for netns in self.hosts.iter().filter_map(|host| host.netns.as_ref()) {
            ip(&["-n", netns, "link", "set", "dev", "eth0", "gso_max_segs", "1"]);
        }
        ip(&["-n", &self.wan(), "link", "set", "dev", &format!("v{}", index + 1), "mtu", &mtu.to_string()]);
    }

    /// A folder of the world's own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for netns in self.hosts.iter().filter_map(|host| host.netns.as_ref()) {
            // Whatever still runs on the host goes with it.
            if let Ok(pids) = Command::new("ip").args(["netns", "pids", netns]).output() {
                for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
                    let _: std::io::Result<_> = Command::new("kill").args(["-KILL", pid]).status();
                }
            }
            let _: std::io::Result<_> = Command::new("ip").args(["netns", "del", netns]).status();
            let _: std::io::Result<()> = fs::remove_dir_all(PathBuf::from("/etc/netns").join(netns));
        }
        let _: std::io::Result<_> = Command::new("ip").args(["netns", "del", &self.wan()]).status();
        if std::thread::panicking() {
            // The folder with all logs and states stays for whoever looks into the failure.
            let kept = std::mem::replace(
                &mut self.dir,
                tempfile::Builder::new().prefix("ls").tempdir().expect("temporary folder"),
            );
            eprintln!("kept for a look: {}", kept.keep().display());
        }
    }
}

impl Host {
    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the bridge.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The address at which its servers listen.
    pub fn listen(&self) -> &str {
        &self.listen
    }

    /// A folder of its own.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The machine itself, for tests that need no root: loopback, and ports from the kernel.
    pub fn local(name: &str, dir: &Path) -> Self {
        Self {
            name: name.to_owned(),
            netns: None,
            address: LOOPBACK.to_owned(),
            listen: LOOPBACK.to_owned(),
            dir: dir.to_owned(),
        }
    }

    /// A network namespace that is there already; its servers listen on `address`.
    pub fn in_namespace(name: &str, netns: &str, address: &str, dir: &Path) -> Self {
        Self {
            name: name.to_owned(),
            netns: Some(netns.to_owned()),
            address: address.to_owned(),
            listen: address.to_owned(),
            dir: dir.to_owned(),
        }
    }

    /// Whether this is the machine itself and not a namespace.
    pub fn is_local(&self) -> bool {
        self.netns.is_none()
    }

    /// A command that will run on this host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let Some(netns) = &self.netns else {
            return Command::new(program);
        };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns]).arg(program);
        command
    }

    /// Runs a shell line on this host that must succeed; returns its standard output.
    pub fn sh(&self, line: &str) -> String {
        let mut command = self.command("bash");
        command.args(["-euo", "pipefail", "-c", line]).current_dir(&self.dir);
        succeed(&mut command)
    }

    /// Runs a shell line on this host; returns success and both outputs.
    pub fn try_sh(&self, line: &str) -> (bool, String) {
        let mut command = self.command("bash");
        command.args(["-uo", "pipefail", "-c", line]).current_dir(&self.dir);
        let output = run(&mut command);
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// Starts a program on this host. `ip netns exec` execs it, so the process is the program itself.
    pub fn start(&self, name: &str, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Process {
        let mut command = self.command(program);
        command.args(args).current_dir(&self.dir);
        Process::start(&format!("{}/{name}", self.name), command, &self.dir.join(format!("{name}.log")))
    }

    /// Loads nft rules on this host, in a table of their own called `test`.
    pub fn nft(&self, rules: &str) {
        self.sh(&format!(
            "nft -f - <<'RULES'\ntable inet test {{}}\ndelete table inet test\ntable inet test {{\n{rules}\n}}\nRULES"
        ));
    }

    /// Removes what [`Self::nft`] loaded.
    pub fn nft_clear(&self) {
        self.sh("nft delete table inet test");
    }
}

fn ip(args: &[&str]) {
    succeed(Command::new("ip").args(args));
}
