//! nginx: the HTTP backend, and a pair of the stream module with mutual TLS between the two.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path as FilePath, PathBuf};

use anyhow::Context;

use crate::backend;
use crate::certificates::Certificates;
use crate::network::Host;
use crate::paths::{Name, PATIENCE, Path, Setting, Targets};
use crate::process::{self, Process};

/// Where distributions put the stream module when it is one of its own.
const MODULES: [&str; 3] = [
    "/usr/lib/nginx/modules/ngx_stream_module.so",
    "/usr/lib64/nginx/modules/ngx_stream_module.so",
    "/usr/share/nginx/modules/ngx_stream_module.so",
];

/// Descriptors that nginx needs beside its connections, with room.
const SPARE_DESCRIPTORS: u64 = 400;

/// How the stream module gets in.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stream {
    BuiltIn,
    Module(PathBuf),
}

/// Why the pair cannot run.
pub(crate) fn missing() -> Option<&'static str> {
    match process::find("nginx") {
        None => Some("nginx is not installed (Debian: nginx-light)"),
        Some(program) if stream(&program).is_none() => Some("nginx has no stream module (Debian: libnginx-mod-stream)"),
        Some(_) => None,
    }
}

fn stream(program: &FilePath) -> Option<Stream> {
    let output = std::process::Command::new(program).arg("-V").output().ok()?;
    let options = String::from_utf8_lossy(&output.stderr).into_owned();
    if options.split_whitespace().any(|option| option == "--with-stream") {
        return Some(Stream::BuiltIn);
    }
    MODULES.iter().map(PathBuf::from).find(|file| file.is_file()).map(Stream::Module)
}

/// Starts the HTTP backend on `host`, with a port for either version: before 1.25 nginx speaks one on a plain-text port, not
/// both.
pub(crate) fn backend(program: &FilePath, host: &Host, root: &FilePath) -> anyhow::Result<(Process, [u16; 2])> {
    let ports = [host.free_port()?, host.free_port()?];
    let folder = root.join("nginx-backend");
    fs::create_dir_all(&folder)?;
    let [http, h2] = ports.map(|port| SocketAddr::from((host.any(), port)));
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("  {name}_temp_path {}/{name};\n", folder.display()))
        .collect();
    // `listen ... http2` and not `http2 on`: older releases know only the former, and newer ones still take it.
    let text = format!(
        "{}events {{ worker_connections 16384; }}\nhttp {{\n{temporary}  access_log off;\n  keepalive_requests \
         100000000;\n  keepalive_timeout 1h;\n  default_type application/json;\n  server {{ listen {http} backlog=4096; \
         listen {h2} http2 backlog=4096; location / {{ return 200 '{body}'; }} }}\n}}\n",
        head(&folder),
        body = backend::BODY.replace('\n', "\\n"),
    );
    let process = run(program, host, &folder, &text, &ports)?;
    Ok((process, ports))
}

/// Starts both gateways.
pub(crate) fn start(setting: &Setting) -> anyhow::Result<Path> {
    let program = process::find("nginx").context("nginx is not installed")?;
    let stream = stream(&program).context("nginx has no stream module")?;
    let backends = setting.backends;
    // The port of each kind at the near end and at the far end.
    let mut kinds = Vec::new();
    for backend in [Some(backends.http), backends.h2, backends.tcp].into_iter().flatten() {
        let near = SocketAddr::from(([127, 0, 0, 1], setting.east.free_port()?));
        let far = SocketAddr::from((setting.west.address, setting.west.free_port()?));
        kinds.push((backend, near, far));
    }
    let mut gateways = Vec::new();
    for (host, near) in [(&setting.west, false), (&setting.east, true)] {
        let folder = setting.root.join(format!("nginx-{}", host.name));
        fs::create_dir_all(&folder)?;
        let servers: String = kinds
            .iter()
            .map(
                |(backend, client, far)| {
                    if near { near_server(*client, *far, setting) } else { far_server(*far, *backend, setting) }
                },
            )
            .collect();
        let connections = setting.descriptors.saturating_sub(SPARE_DESCRIPTORS);
        let mut text = head(&folder);
        if let Stream::Module(file) = &stream {
            text = format!("load_module {};\n{text}", file.display());
        }
        text.push_str(&format!(
            "events {{ worker_connections {connections}; }}\nstream {{\n  proxy_connect_timeout 10s;\n  proxy_timeout 1h;\n  \
             tcp_nodelay on;\n{servers}}}\n"
        ));
        let ports: Vec<u16> =
            kinds.iter().map(|(_, client, far)| if near { client.port() } else { far.port() }).collect();
        gateways.push((host.name, run(&program, host, &folder, &text, &ports)?));
    }
    gateways.reverse();
    let near = |backend: SocketAddr| kinds.iter().find(|kind| kind.0 == backend).map(|kind| kind.1);
    let targets = Targets {
        http: near(backends.http).context("there is an HTTP port")?,
        h2: backends.h2.and_then(near),
        tcp: backends.tcp.and_then(near),
    };
    Ok(Path { name: Name::Nginx, targets, gateways, controllers: Vec::new() })
}

/// One process, which is the worker: a worker of its own would outlive a master that is killed.
fn head(folder: &FilePath) -> String {
    let folder = folder.display();
    format!("daemon off;\nmaster_process off;\nworker_processes 1;\npid {folder}/pid;\nerror_log {folder}/error.log;\n")
}

fn near_server(client: SocketAddr, far: SocketAddr, setting: &Setting) -> String {
    let files = &setting.certificates;
    let host = Certificates::host("west");
    format!(
        "  server {{ listen {client} backlog=4096; proxy_pass {far}; proxy_ssl on; proxy_ssl_protocols TLSv1.3; \
         proxy_ssl_certificate {}; proxy_ssl_certificate_key {}; proxy_ssl_trusted_certificate {}; proxy_ssl_verify on; \
         proxy_ssl_name {host}; proxy_ssl_server_name on; }}\n",
        files.certificate("east").display(),
        files.key("east").display(),
        files.authority().display(),
    )
}

fn far_server(far: SocketAddr, backend: SocketAddr, setting: &Setting) -> String {
    let files = &setting.certificates;
    format!(
        "  server {{ listen {far} ssl backlog=4096; ssl_protocols TLSv1.3; ssl_certificate {}; ssl_certificate_key {}; \
         ssl_client_certificate {}; ssl_verify_client on; proxy_pass {backend}; }}\n",
        files.certificate("west").display(),
        files.key("west").display(),
        files.authority().display(),
    )
}

fn run(program: &FilePath, host: &Host, folder: &FilePath, text: &str, ports: &[u16]) -> anyhow::Result<Process> {
    let file = folder.join("nginx.conf");
    fs::write(&file, text)?;
    let mut command = host.command(program);
    command.arg("-e").arg(folder.join("error.log")).arg("-c").arg(&file);
    let mut process = Process::start(command, &folder.with_extension("log"))?;
    for port in ports {
        process.wait_for_port("nginx", *port, PATIENCE)?;
    }
    Ok(process)
}
