//! Two hosts: network namespaces with a wire between them, or one machine's loopback where there are no rights for more.
//!
//! ```text
//! lan   east 10.78.0.1 --- veth ------------------- 10.78.0.2 west
//! wan   east 10.78.0.1 --- TUN [ crate::relay ] TUN 10.78.0.2 west
//! ```

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Context;
use clap::ValueEnum;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cleanup;
use crate::process;
use crate::relay::Relay;

/// Ports in a namespace, where all are free: below the kernel's own choices for outgoing connections, which start at 32,768.
const FIRST_PORT: u16 = 20_000;

/// Packets that may wait for the relay to read them. The kernel's 500 are 6 ms at 1 Gbit/s, less than a busy machine lets a
/// thread wait; what is lost here is not lost by the relay's settings.
const RELAY_QUEUE: &str = "20000";

/// Congestion control of the kernel's TCP in both namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Congestion {
    /// What most machines run.
    Cubic,
    /// Where the kernel has it.
    Bbr,
}

impl Congestion {
    /// The kernel's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
        }
    }
}

/// What lies between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Nothing: both are this machine.
    Loopback,
    /// A veth pair.
    Veth,
    /// The relay.
    Relay,
}

/// One host.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// `east` or `west`.
    pub(crate) name: &'static str,
    /// Where the other host reaches it.
    pub(crate) address: Ipv4Addr,
    namespace: Option<String>,
    next_port: Arc<AtomicU16>,
}

impl Host {
    fn new(name: &'static str, address: Ipv4Addr, namespace: Option<String>) -> Self {
        Self { name, address, namespace, next_port: Arc::new(AtomicU16::new(FIRST_PORT)) }
    }

    /// A command that will run there, as the process that is started: its id is the program's own. It ends with the thread
    /// that starts it, where setpriv(1) is installed.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut words = Vec::new();
        if process::find("setpriv").is_some() {
            words.extend(["setpriv", "--pdeathsig", "KILL"]);
        }
        if let Some(namespace) = &self.namespace {
            words.extend(["ip", "netns", "exec", namespace]);
        }
        let Some((first, rest)) = words.split_first() else { return Command::new(program) };
        let mut command = Command::new(first);
        command.args(rest).arg(program);
        command
    }

    /// A port that nobody listens on. Most programs here take no port 0.
    pub(crate) fn free_port(&self) -> anyhow::Result<u16> {
        if self.namespace.is_some() {
            return Ok(self.next_port.fetch_add(1, Ordering::Relaxed));
        }
        Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
    }

    /// The address on which its servers listen for both hosts.
    pub(crate) fn any(&self) -> Ipv4Addr {
        if self.namespace.is_some() { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST }
    }
}

/// Both hosts and the wire. Dropping it removes the namespaces.
pub(crate) struct Network {
    /// The client's and the first gateway's.
    pub(crate) east: Host,
    /// The second gateway's and the backend's.
    pub(crate) west: Host,
    /// What lies between.
    pub(crate) wire: Wire,
    /// The relay, where it is the wire.
    pub(crate) relay: Option<Relay>,
    /// This thread's namespace, for the way back.
    home: Option<File>,
}

impl Network {
    /// Whether this process may make namespaces; else why not.
    pub(crate) fn possible() -> Result<(), &'static str> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root");
        }
        process::find("ip").map(drop).ok_or("ip is not installed (Debian: iproute2)")
    }

    /// One machine, everything on loopback.
    pub(crate) fn loopback() -> Self {
        let host = |name| Host::new(name, Ipv4Addr::LOCALHOST, None);
        Self { east: host("east"), west: host("west"), wire: Wire::Loopback, relay: None, home: None }
    }

    /// Two namespaces; from here on the calling thread and the threads that it starts are in east's.
    pub(crate) fn namespaces(wire: Wire, mtu: u16, congestion: Congestion) -> anyhow::Result<Self> {
        remove_stale();
        let id = std::process::id();
        let host = |name, last| Host::new(name, Ipv4Addr::new(10, 78, 0, last), Some(format!("lsb{id}-{name}")));
        let mut network = Self { east: host("east", 1), west: host("west", 2), wire, relay: None, home: None };
        for namespace in network.names() {
            cleanup::left().namespaces.insert(namespace.clone());
            ip(&["netns", "add", namespace])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        }
        // A route's remembered window and threshold would carry one measurement's losses into the next.
        network.set("/proc/sys/net/ipv4/tcp_no_metrics_save", "1")?;
        network.connect(mtu)?;
        network.set_congestion(congestion)?;
        network.home = Some(File::open("/proc/thread-self/ns/net")?);
        enter(&File::open(format!("/run/netns/lsb{id}-east"))?)?;
        Ok(network)
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        [&self.east, &self.west].into_iter().filter_map(|host| host.namespace.as_ref())
    }

    fn connect(&mut self, mtu: u16) -> anyhow::Result<()> {
        let (Some(east), Some(west)) = (self.east.namespace.clone(), self.west.namespace.clone()) else {
            return Ok(());
        };
        let mtu = mtu.to_string();
        if self.wire == Wire::Veth {
            ip(&["-n", &east, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", &west])?;
        } else {
            let (relay, devices) = Relay::open()?;
            for (device, namespace) in devices.iter().zip([&east, &west]) {
                ip(&["link", "set", device, "netns", namespace])?;
                ip(&["-n", namespace, "link", "set", device, "name", "wire", "txqueuelen", RELAY_QUEUE])?;
            }
            self.relay = Some(relay);
        }
        for host in [&self.east, &self.west] {
            let namespace = host.namespace.as_deref().unwrap_or_default();
            ip(&["-n", namespace, "addr", "add", &format!("{}/24", host.address), "dev", "wire"])?;
            ip(&["-n", namespace, "link", "set", "wire", "mtu", &mtu, "up"])?;
        }
        if let Some(relay) = &mut self.relay {
            relay.start()?;
        }
        Ok(())
    }

    /// By route: the setting for all sockets takes only what the machine allows to those who are not root on it, and that
    /// list is not a namespace's own.
    fn set_congestion(&self, congestion: Congestion) -> anyhow::Result<()> {
        let name = congestion.name();
        for host in [&self.east, &self.west] {
            let Some(namespace) = &host.namespace else { continue };
            let own = host.address.to_string();
            let wire = ["10.78.0.0/24", "dev", "wire", "proto", "kernel", "scope", "link", "src", &own];
            ip(&[&["-n", namespace, "route", "replace"], wire.as_slice(), &["congctl", name]].concat())
                .with_context(|| format!("the kernel has no congestion control {name}"))?;
            for loopback in ["127.0.0.0/8", "127.0.0.1"] {
                let route = ["local", loopback, "dev", "lo", "table", "local", "proto", "kernel", "scope", "host"];
                let rest = ["src", "127.0.0.1", "congctl", name];
                ip(&[&["-n", namespace, "route", "replace"], route.as_slice(), rest.as_slice()].concat())?;
            }
        }
        Ok(())
    }

    /// Runs `body` while the kernel's TCP may have so many bytes in flight in both namespaces. A direct transfer must be
    /// able to fill a long path before another can take its share of it; 4 MB in the sender, as is usual, hold it at less
    /// than half of 1 Gbit/s at 50 ms.
    pub(crate) fn with_tcp_buffers<T>(
        &self,
        largest: u64,
        body: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        const FILES: [&str; 2] = ["/proc/sys/net/ipv4/tcp_rmem", "/proc/sys/net/ipv4/tcp_wmem"];
        // This thread's namespace is east's, and west's was made alike.
        let before = FILES.map(std::fs::read_to_string);
        for file in FILES {
            self.set(file, &format!("4096 131072 {largest}"))?;
        }
        let result = body();
        for (file, before) in FILES.into_iter().zip(before) {
            self.set(file, before?.trim())?;
        }
        result
    }

    fn set(&self, file: &str, value: &str) -> anyhow::Result<()> {
        let command = format!("echo {value} > {file}");
        self.names().try_for_each(|namespace| ip(&["netns", "exec", namespace, "sh", "-ec", &command]))
    }

    /// Packets that the kernel dropped before the relay saw them, in both directions.
    pub(crate) fn dropped_before_relay(&self) -> anyhow::Result<u64> {
        let mut dropped = 0;
        for namespace in self.names() {
            let text = process::output(Command::new("ip").args(["-n", namespace, "-s", "-j", "link", "show", "wire"]))?;
            let json: serde_json::Value = serde_json::from_str(&text)?;
            let count = json.pointer("/0/stats64/tx/dropped").and_then(serde_json::Value::as_u64);
            dropped += count.context("ip prints no count of dropped packets")?;
        }
        Ok(dropped)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            // Nothing is run in the old namespace any more but the removal below, which works from everywhere.
            enter(home).ok();
        }
        self.relay = None;
        let names: Vec<String> = self.names().cloned().collect();
        for namespace in names {
            cleanup::delete_namespace(&namespace);
            cleanup::left().namespaces.remove(&namespace);
        }
    }
}

/// Removes what runs left behind that were killed and could not clean up.
fn remove_stale() {
    let Ok(text) = process::output(Command::new("ip").args(["netns", "list"])) else { return };
    for (name, process) in ours(&text) {
        if !std::path::Path::new(&format!("/proc/{process}")).exists() {
            cleanup::delete_namespace(name);
        }
    }
}

/// Namespaces of this program in the output of `ip netns list`, with the process that made each.
fn ours(text: &str) -> Vec<(&str, u32)> {
    let parse = |line| {
        let name: &str = str::split_whitespace(line).next()?;
        let (process, host) = name.strip_prefix("lsb")?.split_once('-')?;
        matches!(host, "east" | "west").then_some((name, process.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

/// Moves this thread, and the threads that it starts, to a network namespace.
fn enter(namespace: &File) -> anyhow::Result<()> {
    use std::os::fd::AsFd;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).context("cannot enter a namespace")
}

fn ip(words: &[&str]) -> anyhow::Result<()> {
    process::output(Command::new("ip").args(words)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_namespaces_and_no_others() {
        let text = "lsb17-east (id: 3)\nlsb18-west\nlsb18-wan\nls17x0-east\nlsbx-east\nother\n";
        assert_eq!(ours(text), [("lsb17-east", 17), ("lsb18-west", 18)]);
    }
}
