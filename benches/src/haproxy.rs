//! Pairs of haproxy: HTTP/2 over mutual TLS with connections shared by all clients, and TCP over mutual TLS.

use std::fs;
use std::net::SocketAddr;

use anyhow::Context;

use crate::certificates::Certificates;
use crate::paths::{Name, PATIENCE, Path, Setting, Targets};
use crate::process::{self, Process};

/// Descriptors that haproxy needs beside its connections, with room.
const SPARE_DESCRIPTORS: u64 = 400;

/// What one port of a pair carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Port {
    name: &'static str,
    /// The near end, on east's loopback.
    near: SocketAddr,
    /// The far end, on the wire.
    far: SocketAddr,
    backend: SocketAddr,
    /// The client and the backend speak HTTP/2 from the first byte.
    h2: bool,
}

/// Starts both.
pub(crate) fn start(name: Name, setting: &Setting) -> anyhow::Result<Path> {
    let program = process::find("haproxy").context("haproxy is not installed (Debian: haproxy)")?;
    let ports = ports(name, setting)?;
    let maximum = setting.descriptors.saturating_sub(SPARE_DESCRIPTORS) / 2;
    let mut gateways = Vec::new();
    // The far one first: the near one must find it.
    for (host, near) in [(&setting.west, false), (&setting.east, true)] {
        let file = setting.root.join(format!("{}-{}.cfg", name.label(), host.name));
        fs::write(&file, config(name, &ports, near, &setting.certificates, maximum))?;
        let mut command = host.command(&program);
        // No daemon and no master: one process.
        command.arg("-db").arg("-f").arg(&file);
        let mut process = Process::start(command, &file.with_extension("log"))?;
        for port in &ports {
            let address = if near { port.near } else { port.far };
            process.wait_for_port(name.label(), address.port(), PATIENCE)?;
        }
        gateways.push((host.name, process));
    }
    gateways.reverse();
    let near = |wanted: &str| ports.iter().find(|port| port.name == wanted).map(|port| port.near);
    let targets = Targets { http: near("http").context("there is an HTTP port")?, h2: near("h2"), tcp: near("tcp") };
    Ok(Path { name, targets, gateways, controllers: Vec::new() })
}

fn ports(name: Name, setting: &Setting) -> anyhow::Result<Vec<Port>> {
    let backends = &setting.backends;
    let mut wanted = vec![("http", Some(backends.http), false), ("h2", backends.h2, true)];
    if name == Name::HaproxyTcp {
        wanted.push(("tcp", backends.tcp, false));
    }
    wanted
        .into_iter()
        .filter_map(|(name, backend, h2)| Some((name, backend?, h2)))
        .map(|(name, backend, h2)| {
            let near = SocketAddr::from(([127, 0, 0, 1], setting.east.free_port()?));
            let far = SocketAddr::from((setting.west.address, setting.west.free_port()?));
            Ok(Port { name, near, far, backend, h2 })
        })
        .collect()
}

fn config(name: Name, ports: &[Port], near: bool, certificates: &Certificates, maximum: u64) -> String {
    let http = name == Name::HaproxyH2;
    // What came over HTTP/2 has no reason phrase, and h2load takes an answer without one for none.
    let reason = "http-response set-status 200 reason OK if { status 200 }";
    let mode = if http { "http\n  http-reuse always" } else { "tcp" };
    let alpn = if http { " alpn h2" } else { "" };
    let authority = certificates.authority().display().to_string();
    let tls = |site: &str| {
        let both = certificates.both(site).display().to_string();
        format!("ssl crt {both} ca-file {authority} verify required ssl-min-ver TLSv1.3{alpn}")
    };
    let mut text = format!(
        "global\n  nbthread 1\n  maxconn {maximum}\ndefaults\n  mode {mode}\n  timeout connect 10s\n  timeout client 10m\n  \
         timeout server 10m\n"
    );
    for port in ports {
        let Port { name, near: client, far, backend, h2 } = port;
        let h2 = if *h2 && http { " proto h2" } else { "" };
        let (bind, server) = if near {
            let host = Certificates::host("west");
            (format!("{client}{h2}"), format!("{far} {} verifyhost {host} sni str({host})", tls("east")))
        } else {
            (format!("{far} {}", tls("west")), format!("{backend}{h2}"))
        };
        text.push_str(&format!("listen {name}\n  bind {bind}\n  server next {server}\n"));
        if near && http {
            text.push_str(&format!("  {reason}\n"));
        }
    }
    text
}
