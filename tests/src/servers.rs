//! Real servers on a host: nginx, Redis, PostgreSQL, and small Python programs over well-known libraries.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::process::{Process, eventually};
use crate::world::Host;

/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(20);

/// Waits until a server listens on `port` of `host`; the gateway's own listeners at mirrored addresses do not count.
pub fn wait_listening(host: &Host, port: u16) {
    let listens = format!("ss -Htln 'sport = :{port}' | awk '{{print $4}}' | grep -qvE '^127[.](8[0-9]|9[0-5])[.]'");
    eventually(&format!("port {port} of {} listens", host.name()), START, || host.try_sh(&listens).0);
}

/// nginx that answers `/` with the host's name (also as header `x-cluster`), serves and takes files under `/files/`
/// (WebDAV PUT), answers `/empty` with 204, `/slow` in trickles, and logs one line a request to `access.log`.
pub struct Nginx {
    process: Process,
    dir: PathBuf,
}

impl Nginx {
    /// HTTP/1.1 on `port`, HTTP/2 with prior knowledge on `port + 1`, TLS with a certificate of its own on `port + 2`.
    ///
    /// # Panics
    /// When nginx does not start.
    pub fn start(host: &Host, port: u16) -> Self {
        let dir = host.dir().join(format!("nginx-{port}"));
        fs::create_dir_all(dir.join("files")).expect("folder of nginx");
        let key = rcgen::generate_simple_self_signed(vec!["backend.example".to_owned()]).expect("certificate");
        fs::write(dir.join("cert.pem"), key.cert.pem()).expect("certificate is written");
        fs::write(dir.join("key.pem"), key.signing_key.serialize_pem()).expect("key is written");
        let (name, root) = (host.name(), dir.display());
        let config = format!(
            "daemon off;\nuser root;\nworker_processes 1;\npid {root}/pid;\nerror_log {root}/error.log;\n\
             events {{ worker_connections 4096; }}\nhttp {{\n  access_log {root}/access.log;\n  client_max_body_size 0;\n  \
             client_body_temp_path {root}/tmp;\n  proxy_temp_path {root}/p;\n  fastcgi_temp_path {root}/f;\n  \
             uwsgi_temp_path {root}/u;\n  scgi_temp_path {root}/s;\n  keepalive_requests 1000000;\n  server {{\n    \
             listen {listen}:{port};\n    listen {listen}:{h2} http2;\n    listen {listen}:{tls} ssl http2;\n    \
             ssl_certificate {root}/cert.pem;\n    ssl_certificate_key {root}/key.pem;\n    add_header x-cluster {name} always;\n    \
             location = / {{ default_type text/plain; return 200 \"{name}\\n\"; }}\n    \
             location = /empty {{ return 204; }}\n    \
             location /files/ {{ alias {root}/files/; dav_methods PUT DELETE; create_full_put_path on; }}\n  }}\n}}\n",
            listen = host.listen(),
            h2 = port + 1,
            tls = port + 2,
        );
        fs::write(dir.join("nginx.conf"), config).expect("configuration is written");
        let process =
            host.start(&format!("nginx-{port}"), "nginx", &["-c", &dir.join("nginx.conf").display().to_string()]);
        wait_listening(host, port);
        Self { process, dir }
    }

    /// nginx's folder; `files/` in it is served.
    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// How many requests it has logged.
    pub fn requests(&self) -> usize {
        fs::read_to_string(self.dir.join("access.log")).map_or(0, |text| text.lines().count())
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

/// Starts one of the Python programs of `tests/programs` and waits until it listens on `port`.
pub fn python(host: &Host, script: &str, port: u16) -> Process {
    let process = host.start(
        &script.replace(".py", &format!("-{port}")),
        interpreter(),
        &["-u", &script_path(script), &port.to_string(), host.listen()],
    );
    wait_listening(host, port);
    process
}

/// The interpreter of the test environment: `LINKSPAN_PYTHON`, which `tests/run` sets, or `python3`.
pub fn interpreter() -> String {
    std::env::var("LINKSPAN_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

/// The path of a program in `tests/programs`.
pub fn script_path(script: &str) -> String {
    format!("{}/programs/{script}", env!("CARGO_MANIFEST_DIR"))
}

/// Redis on `port`.
pub fn redis(host: &Host, port: u16) -> Process {
    let process = host.start(
        "redis",
        "redis-server",
        &[
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--protected-mode",
            "no",
            "--daemonize",
            "no",
        ],
    );
    wait_listening(host, port);
    process
}

/// unbound on `port`, UDP and TCP: `h1.example` to `h<hosts>.example` have addresses from 10.9.0.1 on, `large.example`
/// a text that no datagram holds.
///
/// # Panics
/// When unbound does not start.
pub fn unbound(host: &Host, port: u16, hosts: u32) -> Process {
    let root = host.dir().join("unbound");
    fs::create_dir_all(&root).expect("folder of unbound");
    let mut config = format!(
        "server:\n  interface: {listen}\n  port: {port}\n  username: \"\"\n  chroot: \"\"\n  directory: \"{root}\"\n  \
         pidfile: \"{root}/pid\"\n  use-syslog: no\n  do-daemonize: no\n  num-threads: 1\n  so-rcvbuf: 4m\n  \
         access-control: 0.0.0.0/0 allow\n  module-config: \"iterator\"\n  local-zone: \"example.\" static\n",
        root = root.display(),
        listen = host.listen()
    );
    for index in 1..=hosts {
        let address = std::net::Ipv4Addr::from(u32::from(std::net::Ipv4Addr::new(10, 9, 0, 0)) + index);
        config.push_str(&format!("  local-data: \"h{index}.example. A {address}\"\n"));
    }
    for index in 0..10 {
        let text = format!("{index}").repeat(240);
        config.push_str(&format!("  local-data: 'large.example. TXT \"{text}\"'\n"));
    }
    config.push_str("remote-control:\n  control-enable: no\n");
    fs::write(root.join("unbound.conf"), config).expect("configuration is written");
    let process = host.start("unbound", "unbound", &["-d", "-c", &root.join("unbound.conf").display().to_string()]);
    wait_listening(host, port);
    process
}

/// PostgreSQL on `port` with a database `postgres` and a user `postgres` that needs no password.
///
/// # Panics
/// When Debian's PostgreSQL is not installed or does not start.
pub fn postgres(host: &Host, port: u16) -> Process {
    let data = host.dir().join("pg");
    let data = data.display();
    let bin = host.sh("ls -d /usr/lib/postgresql/*/bin | tail -1");
    let bin = bin.trim();
    // PostgreSQL refuses to run as root.
    host.sh(&format!(
        "chmod o+x $(dirname $(dirname $(pwd))) $(dirname $(pwd)) . && install -d -o postgres -m 700 {data} && \
         setpriv --reuid=postgres --regid=postgres --clear-groups \
         {bin}/initdb -D {data} -A trust -U postgres --no-sync >/dev/null"
    ));
    let process = host.start(
        "postgres",
        "setpriv",
        &[
            "--reuid=postgres",
            "--regid=postgres",
            "--clear-groups",
            &format!("{bin}/postgres"),
            "-D",
            &data.to_string(),
            "-p",
            &port.to_string(),
            "-h",
            "127.0.0.1",
            "-k",
            "",
            "-c",
            "fsync=off",
        ],
    );
    wait_listening(host, port);
    process
}
