use std::net::{TcpListener, UdpSocket};
use std::path::Path;

use clap::Parser;
use linkspan_proto::resources::Site;
use linkspan_runtime::admin::Admin;
use linkspan_runtime::metrics::Registry;
use linkspan_runtime::readiness::Readiness;

use super::{Running, serve_admin};
use crate::args::{Cli, Command, SiteCommand, SiteRunArgs};
use crate::client::http;
use crate::commands;

fn args(dir: &Path, more: &[&str]) -> SiteRunArgs {
    let line = ["linkspan", "site", "run", "--dir", dir.to_str().unwrap()];
    let Command::Site(SiteCommand::Run(args)) = Cli::parse_from(line.iter().chain(more)).command else { panic!("run") };
    args
}

fn made(dir: &Path, more: &[&str]) -> Site {
    let line = [
        "linkspan",
        "site",
        "init",
        "east",
        "--dir",
        dir.to_str().unwrap(),
        "--workers=1",
        "--listen=127.0.0.1:0",
        "--mtls-listen=127.0.0.1:0",
        "--dns-listen=127.0.0.1:0",
        "--admin-listen=127.0.0.1:0",
    ];
    commands::run(Cli::parse_from(line.iter().chain(more)).command).unwrap();
    super::super::load(dir).unwrap()
}

/// Starts a site; gives it and the address of its admin server.
async fn started(dir: &Path, site: &Site, more: &[&str]) -> anyhow::Result<(Running, Admin)> {
    let args = args(dir, more);
    let (drain, signal) = linkspan_runtime::drain::Drain::new();
    let admin = Admin::new(Registry::new(), Readiness::new());
    let address = serve_admin(&args, site, &admin, &signal).await?;
    let running = Running::start(&args, site, dir, &admin, address).await?;
    // The admin server of a test lives to the end of its runtime.
    std::mem::forget(drain);
    Ok((running, admin))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_halves_become_ready_on_one_admin_listener_and_clean_up() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("east");
    let site = made(&dir, &[]);
    let (running, admin) = started(&dir, &site, &[]).await.unwrap();
    admin.readiness().wait().await.unwrap();
    let address = running.gateway.as_ref().unwrap().addresses.admin;
    http::get(address, "/ready").await.unwrap();
    let metrics = String::from_utf8(http::get(address, "/metrics").await.unwrap().to_vec()).unwrap();
    assert!(metrics.contains("build_info"));
    let text = running.addresses(&site, &dir, Some(address));
    assert!(text.contains("site east is ready") && text.contains("/udp") && text.contains("dns"), "{text}");
    let run = |name: &str| dir.join("state/run").join(name);
    for name in ["gateway.json", "controller.json"] {
        for _ in 0..100 {
            if run(name).exists() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(run(name).exists(), "{name} is written");
    }
    running.drain().await;
    assert!(!run("gateway.json").exists() && !run("controller.json").exists());
    assert!(!dir.join("state/controller.sock").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_address_is_named_with_field_and_remedy() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    for (option, taken, field) in [
        ("--listen", udp.local_addr().unwrap(), "gateway.listen"),
        ("--mtls-listen", tcp.local_addr().unwrap(), "gateway.mtlsListen"),
        ("--dns-listen", tcp.local_addr().unwrap(), "dns.listen"),
        ("--admin-listen", tcp.local_addr().unwrap(), "admin.listen"),
        ("--listen", "192.0.2.1:0".parse().unwrap(), "gateway.listen"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("east");
        let listen = format!("{option}={taken}");
        // The last one wins.
        let line = ["linkspan", "site", "init", "east", "--dir", dir.to_str().unwrap(), "--workers=1"];
        let others = ["--listen", "--mtls-listen", "--dns-listen", "--admin-listen"].into_iter();
        let others: Vec<String> =
            others.filter(|other| *other != option).map(|other| format!("{other}=127.0.0.1:0")).collect();
        let line = line.iter().copied().chain(others.iter().map(String::as_str)).chain([listen.as_str()]);
        commands::run(Cli::parse_from(line).command).unwrap();
        let site = super::super::load(&dir).unwrap();
        let error = format!("{:#}", started(&dir, &site, &[]).await.expect_err("the address is taken"));
        assert!(error.contains(&taken.to_string()) && error.contains(&format!("{field} in site.yaml: ")), "{error}");
        assert!(!dir.join("state/run/controller.json").exists(), "nothing stays behind");
    }
}
