//! Who listens in the way of a mirror: the kernel's socket tables, and the processes that hold the sockets.
//!
//! - **In**: `/proc/PID/net/tcp` and `tcp6` of the gateway (its network namespace may not be ours), `/proc/*/fd`.
//! - **Out**: an `Occupant`: the address it listens on, and the process as far as this user may see it.
//! - **Never does**: fail. Where `/proc` tells nothing there is no occupant, and the gateway's own words stand.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use serde::Serialize;

/// The state LISTEN in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// A listener of another program that takes a mirror's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Occupant {
    /// Where it listens: the mirror's own address, or the wildcard address with its port.
    pub(crate) listen: SocketAddr,
    /// The user who made the socket.
    pub(crate) uid: u32,
    /// Its process; absent where this user may not look into it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) process: Option<Process>,
}

/// A process by number and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Process {
    /// Its number.
    pub(crate) pid: u32,
    /// Its program, as the kernel names it.
    pub(crate) program: String,
}

impl Occupant {
    /// What is in the way, in words.
    pub(crate) fn sentence(&self) -> String {
        let listen = self.listen;
        let whole = if self.listen.ip().is_unspecified() { ", which takes that port at every address" } else { "" };
        match &self.process {
            Some(Process { pid, program }) => {
                format!("{program} (process {pid}) listens on {listen}{whole}, and answers in its place")
            }
            None => format!(
                "a program of the user with number {} listens on {listen}{whole}, and answers in its place",
                self.uid
            ),
        }
    }

    /// How to clear the way.
    pub(crate) fn remedy(&self) -> String {
        let port = self.listen.port();
        let (find, who) = match &self.process {
            Some(process) => (String::new(), process.program.clone()),
            None => (format!("find the program with `sudo ss -ltnp 'sport = :{port}'`, then "), "it".to_owned()),
        };
        let clear = if self.listen.ip().is_unspecified() {
            format!(
                "let {who} listen on one address of this machine (127.0.0.1:{port}) in place of {}, or stop it",
                self.listen
            )
        } else {
            format!("stop {who}, or give it another address or port")
        };
        format!(
            "{find}{clear}; the gateway tries again by itself, and DNS withholds the name's address until it listens"
        )
    }
}

/// Finds who listens in the way at each of `wanted`, as seen from the network namespace of process `pid`.
pub(crate) fn find(pid: u32, wanted: &[SocketAddr]) -> BTreeMap<SocketAddr, Occupant> {
    if wanted.is_empty() {
        return BTreeMap::new();
    }
    let table = |name: &str| {
        let of = |net: &str| fs::read_to_string(Path::new(net).join(name)).ok();
        of(&format!("/proc/{pid}/net")).or_else(|| of("/proc/net")).unwrap_or_default()
    };
    let sockets: Vec<Socket> = [table("tcp"), table("tcp6")].iter().flat_map(|table| read(table)).collect();
    let in_the_way: BTreeMap<SocketAddr, &Socket> =
        wanted.iter().filter_map(|&address| Some((address, in_the_way(&sockets, address)?))).collect();
    let inodes = in_the_way.values().map(|socket| socket.inode).collect::<Vec<_>>();
    let processes = holders(&inodes);
    let occupant = |socket: &Socket| Occupant {
        listen: socket.listen,
        uid: socket.uid,
        process: processes.get(&socket.inode).cloned(),
    };
    in_the_way
        .into_iter()
        .map(|(address, socket)| (address, occupant(socket)))
        // What the gateway has bound meanwhile is no stranger.
        .filter(|(_, occupant)| occupant.process.as_ref().is_none_or(|process| process.pid != pid))
        .collect()
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Socket {
    listen: SocketAddr,
    uid: u32,
    inode: u64,
}

/// The listening sockets of a table.
fn read(table: &str) -> Vec<Socket> {
    table.lines().skip(1).filter_map(socket).collect()
}

/// One line: `sl local remote state queues timer retransmits uid timeout inode ...` (proc(5), `/proc/net/tcp`).
fn socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let uid = fields.nth(3)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    Some(Socket { listen: address(local)?, uid, inode })
}

/// `0100007F:1F90`: words of 32 bits in the byte order of this machine, the port as it is read.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words = ip.as_bytes().chunks(8).map(|word| {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        Some(word.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<[u8; 4]>>>()?.concat();
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// The socket that keeps others from `wanted`: one at the address itself before one at a wildcard address. A wildcard of
/// IPv6 takes the port of IPv4, too, unless its program asked otherwise, which no table says.
fn in_the_way(sockets: &[Socket], wanted: SocketAddr) -> Option<&Socket> {
    let rank = |socket: &&Socket| {
        let ip = socket.listen.ip();
        if ip.to_canonical() == wanted.ip() {
            0
        } else if ip.is_unspecified() && ip.is_ipv4() == wanted.is_ipv4() {
            1
        } else {
            2
        }
    };
    let covers =
        |ip: IpAddr| ip.to_canonical() == wanted.ip() || (ip.is_unspecified() && (ip.is_ipv6() || wanted.is_ipv4()));
    let same_port = sockets.iter().filter(|socket| socket.listen.port() == wanted.port());
    same_port.filter(|socket| covers(socket.listen.ip())).min_by_key(rank)
}

/// The processes that hold these sockets, as far as this user may look.
fn holders(inodes: &[u64]) -> BTreeMap<u64, Process> {
    let mut found = BTreeMap::new();
    if inodes.is_empty() {
        return found;
    }
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Some(inode) = fs::read_link(descriptor.path()).ok().and_then(|target| socket_inode(target.to_str()?))
            else {
                continue;
            };
            if inodes.contains(&inode) {
                // A server and its workers hold the same socket; the first of them is the one to stop.
                found.entry(inode).or_insert_with(|| {
                    let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                    Process { pid, program: program.trim_end().to_owned() }
                });
            }
        }
    }
    found
}

/// `socket:[4711]`.
fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests;
