//! Network namespaces: the network between, nodes, pods.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::process::succeed;
use crate::world::Host;

/// The pods of every cluster.
pub(super) const POD_CIDR: &str = "10.244.0.0/16";
/// The services of every cluster.
pub(super) const SERVICE_CIDR: &str = "10.96.0.0/16";
/// Pods' way out, on the node's end of their interface.
const POD_GATEWAY: &str = "10.244.0.1";
/// The cluster's DNS.
pub(super) const DNS_IP: &str = "10.96.0.10";
/// The API server's ClusterIP.
pub(super) const API_IP: &str = "10.96.0.1";
/// The UDP NodePorts by which clusters are linked, each of its own: kube-proxy takes a flow to the same number of another
/// cluster for one of its own, and forgets it when its gateways change.
pub(super) const LINK_PORTS: std::ops::RangeInclusive<u16> = 30441..=30445;
/// The port of links behind a load balancer.
const LINK_PORT: u16 = 4143;

/// A command that will run in a network namespace.
pub(super) fn exec(netns: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns]).arg(program);
    // Everything is local; a proxy of the surroundings would be asked for the API server.
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command
}

/// Many changes of interfaces and routes at once.
fn batch(netns: &str, lines: &str) {
    let mut child = Command::new("ip")
        .args(["-n", netns, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("ip starts");
    child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("ip reads");
    assert!(child.wait().is_ok_and(|status| status.success()), "ip -n {netns}:\n{lines}");
}

fn nft(netns: &str, rules: &str) {
    succeed(exec(netns, "sh").args(["-c", "printf %s \"$1\" | nft -f -", "sh", rules]));
}

/// A fresh namespace.
pub(super) fn namespace(name: &str) {
    succeed(Command::new("ip").args(["netns", "add", name]));
    succeed(Command::new("ip").args(["-n", name, "link", "set", "lo", "up"]));
}

/// The host that a namespace is.
pub(super) fn host(prefix: &str, name: &str, address: &str, dir: &Path) -> Host {
    Host::in_namespace(name, &format!("{prefix}-{name}"), address, dir)
}

/// The network between the clusters: forwards the links' UDP ports and nothing else, and has no route to any pod.
pub(super) fn between(prefix: &str) {
    let net = format!("{prefix}-net");
    namespace(&net);
    succeed(exec(&net, "sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    nft(
        &net,
        &format!(
            "table inet between {{\n chain forward {{\n  type filter hook forward priority filter; policy drop;\n  \
             ct state established,related accept\n  udp dport {{ {LINK_PORT}, {first}-{last} }} accept\n }}\n}}\n",
            first = LINK_PORTS.start(),
            last = LINK_PORTS.end()
        ),
    );
}

/// The namespace of a cluster's only node, joined to the network between.
pub(super) fn node(prefix: &str, cluster: &str, address: &str) {
    let (net, node) = (format!("{prefix}-net"), format!("{prefix}-{cluster}"));
    let gateway = format!("{}.1", address.rsplit_once('.').expect("an IPv4 address").0);
    namespace(&node);
    batch(
        &net,
        &format!(
            "link add name to-{cluster} type veth peer name eth0 netns {node}\naddr add {gateway}/24 dev to-{cluster}\n\
             link set to-{cluster} up\n"
        ),
    );
    batch(&node, &format!("addr add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"));
    succeed(exec(&node, "sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    // What a network plugin does: pods leave the node under its address.
    nft(
        &node,
        &format!(
            "table ip pods {{\n chain leaving {{\n  type nat hook postrouting priority srcnat; policy accept;\n  \
             ip saddr {POD_CIDR} ip daddr != {POD_CIDR} oifname \"eth0\" masquerade\n }}\n}}\n"
        ),
    );
}

/// A pod's namespace, routed by its own veth (as the ptp network plugin does it). No bridge: across one, the answer of a pod
/// on the same node would not pass the node's address translation.
pub(super) fn pod(node: &str, pod: &str, address: &str, search: &str) {
    namespace(pod);
    // Interfaces have 15 letters at most; the last two parts of the address are unlike any other's in the cluster.
    let port = format!("p{}", address.trim_start_matches("10.244.").replace('.', "-"));
    batch(
        node,
        &format!(
            "link add name {port} type veth peer name eth0 netns {pod}\naddr add {POD_GATEWAY}/32 dev {port}\n\
             link set {port} up\nroute add {address}/32 dev {port}\n"
        ),
    );
    batch(
        pod,
        &format!(
            "addr add {address}/32 dev eth0\nlink set eth0 up\nroute add {POD_GATEWAY}/32 dev eth0 scope link\n\
             route add default via {POD_GATEWAY}\n"
        ),
    );
    let etc = Path::new("/etc/netns").join(pod);
    fs::create_dir_all(&etc).expect("/etc/netns is writable");
    let resolver = format!(
        "nameserver {DNS_IP}\nsearch {search}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    );
    fs::write(etc.join("resolv.conf"), resolver).expect("resolv.conf of the pod");
}

/// Lets programs that are started in a pod from now on know an address by a name without DNS.
pub(super) fn name_address(pod: &str, name: &str, address: &str) {
    let file = Path::new("/etc/netns").join(pod).join("hosts");
    fs::write(file, format!("127.0.0.1 localhost\n{address} {name}\n")).expect("hosts file of the pod");
}

/// Removes a pod's namespace.
pub(super) fn remove(netns: &str) {
    let _: std::io::Result<_> = Command::new("ip").args(["netns", "delete", netns]).status();
    let _: std::io::Result<()> = fs::remove_dir_all(Path::new("/etc/netns").join(netns));
}

/// Removes the namespaces of a cluster, its node's and its pods', with all that runs in them.
pub(super) fn clear(prefix: &str, cluster: &str) {
    let node = format!("{prefix}-{cluster}");
    let list = Command::new("ip").args(["netns", "list"]).output().expect("ip runs");
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    let names: Vec<&str> = names.filter(|name| *name == node || name.starts_with(&format!("{node}-"))).collect();
    for name in &names {
        let pids = Command::new("ip").args(["netns", "pids", name]).output().expect("ip runs");
        for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
            let _: std::io::Result<_> = Command::new("kill").args(["-KILL", pid]).stderr(Stdio::null()).status();
        }
    }
    names.into_iter().for_each(remove);
}
