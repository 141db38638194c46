//! What the user can do with the two sites: addresses and commands that work as they are.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::addresses::SiteAddresses;
use super::sites::{CLUSTERSET, MIRROR, Sites};
use super::voice::Voice;
use crate::output;

/// A command and what it shows.
#[derive(Debug)]
struct Command {
    name: &'static str,
    shows: &'static str,
    line: String,
}

/// The addresses behind both names in east.
#[derive(Debug)]
struct Names {
    mirror: IpAddr,
    clusterset: IpAddr,
}

impl Names {
    async fn ask(sites: &Sites) -> anyhow::Result<Self> {
        let east = &sites.addresses.east;
        Ok(Self { mirror: sites.resolve(east, MIRROR).await?, clusterset: sites.resolve(east, CLUSTERSET).await? })
    }
}

/// The commands.
fn commands(sites: &Sites, names: &Names) -> Vec<Command> {
    let addresses = &sites.addresses;
    let (east, port) = (&addresses.east, addresses.port);
    let (mirror, clusterset) = (names.mirror, names.clusterset);
    let program = output::shell_word(&sites.program().display().to_string());
    let dir = |site: &str| output::shell_word(&sites.dir(site).display().to_string());
    let (east_dir, west_dir) = (dir("east"), dir("west"));
    let gateway = sites.pids().into_iter().find(|(name, _)| *name == "west-gateway").map_or(0, |(_, pid)| pid);
    vec![
        Command {
            name: "resolve",
            shows: "the mirrored name in DNS",
            line: format!("dig @{} -p {} +short {MIRROR}", east.dns.ip(), east.dns.port()),
        },
        Command {
            name: "call",
            shows: "west's service, called in east",
            line: format!("curl --resolve {MIRROR}:{port}:{mirror} http://{MIRROR}:{port}/hello"),
        },
        Command {
            name: "callAsWorkload",
            shows: "the same as another workload: see linkspan-source in the answer",
            line: format!("curl --interface {} -H 'Host: {MIRROR}' http://{mirror}:{port}/hello", addresses.robot),
        },
        Command {
            name: "callBoth",
            shows: "the name of the service wherever it runs, ten times",
            line: format!(
                "for i in $(seq 10); do curl -s -H 'Host: {CLUSTERSET}' http://{clusterset}:{port}/ | grep '\"cluster\"'; done"
            ),
        },
        Command { name: "links", shows: "the link", line: format!("{program} gateways --dir {east_dir}") },
        Command { name: "services", shows: "what is mirrored", line: format!("{program} services --dir {east_dir}") },
        Command {
            name: "stat",
            shows: "success rate, requests per second, latency",
            line: format!("{program} stat --dir {east_dir}"),
        },
        Command {
            name: "check",
            shows: "the whole path, by named checks",
            line: format!("{program} check --dir {east_dir}"),
        },
        Command {
            name: "weights",
            shows: "new weights: save the file, and they are in force",
            line: format!("${{EDITOR:-vi}} {east_dir}/manifests/web-traffic.yaml"),
        },
        Command { name: "kill", shows: "west's gateway dies", line: format!("kill -9 {gateway}") },
        Command {
            name: "restart",
            shows: "and returns (in another terminal)",
            line: format!("{program} site run --only gateway --dir {west_dir}"),
        },
    ]
}

/// The text at the end of the story.
pub(super) async fn text(sites: &Sites, voice: &Voice) -> anyhow::Result<String> {
    let names = Names::ask(sites).await?;
    let mut text = format!("\n{}", voice.bold("Both sites stay up for you until Ctrl-C. Try:"));
    for command in commands(sites, &names) {
        let _infallible = write!(text, "\n   # {}\n   {}", command.shows, command.line);
    }
    Ok(text)
}

/// The JSON object of `-o json`.
pub(super) async fn document(sites: &Sites) -> anyhow::Result<Value> {
    let names = Names::ask(sites).await?;
    let addresses = &sites.addresses;
    let (pids, port) = (sites.pids(), addresses.port);
    let pid = |name: &str| pids.iter().find(|(known, _)| *known == name).map(|(_, pid)| *pid);
    let site = |site: &SiteAddresses, processes: Value| {
        json!({
            "dir": sites.dir(site.name),
            "trustDomain": format!("{}.linkspan.internal", site.name),
            "link": site.link, "mtls": site.mtls, "dns": site.dns, "admin": site.admin,
            "mirrorAddresses": site.mirrors,
            "service": { "address": site.service, "pid": pid(&format!("{}-service", site.name)) },
            "pids": processes,
        })
    };
    let mut west =
        site(&addresses.west, json!({ "gateway": pid("west-gateway"), "controller": pid("west-controller") }));
    west["controllerAdmin"] = json!(addresses.west.controller_admin);
    let commands: serde_json::Map<String, Value> =
        commands(sites, &names).into_iter().map(|command| (command.name.to_owned(), command.line.into())).collect();
    Ok(json!({
        "ready": true,
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "dir": sites.folder(),
        "program": sites.program(),
        "sites": { "east": site(&addresses.east, json!({ "site": pid("east") })), "west": west },
        "names": {
            MIRROR: { "site": "east", "address": names.mirror, "port": port },
            CLUSTERSET: { "site": "east", "address": names.clusterset, "port": port },
        },
        "clients": {
            addresses.web.to_string(): "spiffe://east.linkspan.internal/ns/shop/sa/web",
            addresses.robot.to_string(): "spiffe://east.linkspan.internal/ns/ops/sa/robot",
            "127.0.0.1": "spiffe://east.linkspan.internal/ns/shop/sa/terminal",
        },
        "commands": commands,
    }))
}
