//! Two linked sites, as a user would set them up.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::network::Host;
use crate::paths::{Name, PATIENCE, Path, Setting, Targets};
use crate::process::{self, Process};
use crate::{Transport, lookup};

/// The name under which east sees the service of west.
const NAME: &str = "web-west.bench.svc.cluster.local";

/// The two halves of a site, beside the `linkspan` that was given.
const GATEWAY: &str = "linkspan-gateway";
const CONTROLLER: &str = "linkspan-mirror-controller";

/// Port numbers of the service; a mirror keeps them, on an address of its own.
const HTTP_PORT: u16 = 8080;
const H2_PORT: u16 = 8081;
const TCP_PORT: u16 = 9000;

/// Starts both sites, links them, and waits until the service is mirrored. That needs the link and the catalogue, and no
/// call through them.
pub(crate) fn start(setting: &Setting) -> anyhow::Result<Path> {
    // A folder for each start: sites keep their state.
    let folder = tempfile::Builder::new().prefix("sites-").tempdir_in(&setting.root)?.keep();
    start_in(&folder, setting).with_context(|| {
        let tail = |name: &str| process::tail(&folder.join(name)).map(|tail| format!("\n--- {name}\n{tail}"));
        let logs = ["east", "west"].map(|site| [GATEWAY, CONTROLLER].map(|half| format!("{site}-{half}.log")));
        let logs: String = logs.iter().flatten().filter_map(|name| tail(name)).collect();
        format!("the sites do not start{logs}")
    })
}

fn start_in(folder: &std::path::Path, setting: &Setting) -> anyhow::Result<Path> {
    let sites = [&setting.east, &setting.west].map(|host| Site {
        linkspan: setting.linkspan.clone(),
        host: host.clone(),
        dir: folder.join(host.name),
    });
    let [east, west] = &sites;
    for (number, site) in sites.iter().enumerate() {
        site.init(number, setting.workers)?;
    }
    fs::write(west.dir.join("manifests/web.yaml"), manifest(setting.backends))?;
    let (mut gateways, mut controllers) = (Vec::new(), Vec::new());
    for site in &sites {
        let name = site.host.name;
        let run = |half: &str| {
            let mut command = site.host.command(site.linkspan.with_file_name(half));
            command.arg("--dir").arg(&site.dir).args(["--log-filter", "info,access=off"]);
            Process::start(command, &folder.join(format!("{name}-{half}.log")))
        };
        let (mut controller, mut gateway) = (run(CONTROLLER)?, run(GATEWAY)?);
        process::wait_for(&format!("site {name} is up"), PATIENCE, || {
            controller.must_run(CONTROLLER)?;
            gateway.must_run(GATEWAY)?;
            Ok(site.bound("gateway", "link").zip(site.bound("controller", "dns")))
        })?;
        gateways.push((name, gateway));
        controllers.push(controller);
    }
    east.import(west, setting.transport)?;
    west.import(east, setting.transport)?;
    let targets = wait_until_mirrored(east, &mut gateways, setting)?;
    Ok(Path { name: Name::Linkspan, targets, gateways, controllers })
}

fn wait_until_mirrored(
    east: &Site,
    gateways: &mut [(&'static str, Process)],
    setting: &Setting,
) -> anyhow::Result<Targets> {
    let dns = east.bound("controller", "dns").context("east has no DNS address")?;
    let address = process::wait_for(&format!("{NAME} resolves"), PATIENCE, || {
        gateways.iter_mut().try_for_each(|(name, process)| process.must_run(name))?;
        lookup::address(dns, NAME)
    })?;
    let at = |port: u16| SocketAddr::from((address, port));
    // The name is there a moment before its listeners are.
    let (_, gateway) = gateways.first_mut().context("east runs")?;
    for port in [HTTP_PORT, H2_PORT, TCP_PORT] {
        gateway.wait_for_port("east", port, PATIENCE)?;
    }
    Ok(Targets { http: at(HTTP_PORT), h2: setting.backends.h2.map(|_| at(H2_PORT)), tcp: Some(at(TCP_PORT)) })
}

/// The service of west: HTTP and raw TCP, both declared, so that nothing is guessed from bytes.
fn manifest(backends: Targets) -> String {
    let port = |address: Option<SocketAddr>| address.unwrap_or(backends.http).port();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: bench}}\nspec:\n  ports:\n    \
         - {{name: http, port: {HTTP_PORT}, appProtocol: http}}\n    \
         - {{name: h2, port: {H2_PORT}, appProtocol: kubernetes.io/h2c}}\n    - {{name: raw, port: {TCP_PORT}, appProtocol: tcp}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  namespace: bench\n  \
         labels: {{kubernetes.io/service-name: web}}\naddressType: IPv4\nendpoints:\n  \
         - {{addresses: [\"{address}\"], conditions: {{ready: true}}}}\nports:\n  - {{name: http, port: {http}}}\n  - {{name: h2, port: {h2}}}\n  \
         - {{name: raw, port: {tcp}}}\n---\napiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\n\
         metadata: {{name: web, namespace: bench}}\n",
        address = backends.http.ip(),
        http = backends.http.port(),
        h2 = port(backends.h2),
        tcp = port(backends.tcp),
    )
}

/// A site whose ports the kernel chooses. The mirrored addresses are this run's own, so that two runs do not meet.
fn site_yaml(name: &str, address: Ipv4Addr, run: u32, number: usize, workers: u16) -> String {
    let mirrors = format!("127.{}.{}.0/24", 112 + run / 128 % 16, run % 128 * 2 + u32::from(number > 0));
    format!(
        "apiVersion: linkspan.io/v1alpha1\nkind: Site\nmetadata: {{name: {name}}}\nspec:\n  gateway: \
         {{listen: \"{address}:0\", advertise: [\"{address}:0\"], mtlsListen: \"127.0.0.1:0\", workers: {workers}}}\n  \
         dns: {{listen: \"127.0.0.1:0\"}}\n  admin: {{listen: \"127.0.0.1:0\"}}\n  mirrorAddresses: {mirrors}\n"
    )
}

/// One site's folder and its commands.
#[derive(Debug)]
struct Site {
    linkspan: PathBuf,
    host: Host,
    dir: PathBuf,
}

impl Site {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.linkspan);
        command.stdin(Stdio::null());
        command
    }

    /// `linkspan site init`, then a site.yaml whose ports the kernel chooses and whose mirrored addresses are this
    /// run's own.
    fn init(&self, number: usize, workers: u16) -> anyhow::Result<()> {
        process::output(self.command().args(["site", "init", self.host.name, "--dir"]).arg(&self.dir))?;
        let yaml = site_yaml(self.host.name, self.host.address, std::process::id(), number, workers);
        fs::write(self.dir.join("site.yaml"), yaml).context("cannot write site.yaml")
    }

    /// An address from `state/run/<half>.json`, once the site has written it.
    fn bound(&self, half: &str, what: &str) -> Option<SocketAddr> {
        let text = fs::read_to_string(self.dir.join(format!("state/run/{half}.json"))).ok()?;
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        json.get(what)?.as_str()?.parse().ok()
    }

    /// Tells this site about `peer`, by the two commands that a user types.
    fn import(&self, peer: &Self, transport: Transport) -> anyhow::Result<()> {
        let link = process::output(peer.command().args(["link", "export", "--dir"]).arg(&peer.dir))?;
        let link = link.replace("\nspec:\n", &format!("\nspec:\n  transport: {}\n", transport.name()));
        let file = self.dir.with_file_name(format!("{}-to-{}.yaml", peer.host.name, self.host.name));
        fs::write(&file, link)?;
        process::output(self.command().args(["link", "import"]).arg(&file).arg("--dir").arg(&self.dir))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use linkspan_proto::manifest;

    use super::*;

    #[test]
    fn the_set_up_is_valid() {
        let backend: SocketAddr = "127.0.0.1:4711".parse().expect("an address");
        let targets = Targets { http: backend, h2: Some(backend), tcp: Some(backend) };
        let parsed = manifest::parse(&manifest(targets), "web.yaml");
        assert_eq!(parsed.len(), 3);
        for document in parsed {
            document.expect("valid");
        }
        for (run, address) in [(1, Ipv4Addr::LOCALHOST), (u32::MAX, Ipv4Addr::new(10, 78, 0, 2))] {
            let text = site_yaml("east", address, run, 1, 2);
            let site = manifest::site_from_yaml(&text, "site.yaml").expect("valid");
            assert_eq!(site.spec.gateway.workers, Some(2));
        }
    }
}
