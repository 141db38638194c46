//! One cluster: its components, from nothing to a cluster that resolves names and reaches its own API server.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::kubelet::Container;
use super::linkspan::Replica;
use super::pods::Pod;
use super::{PATIENCE, network};
use crate::process::{Process, eventually, succeed};
use crate::world::Host;

/// The clusters and the addresses of their nodes.
const CLUSTERS: [(&str, &str); 5] =
    [("a", "192.0.2.2"), ("b", "198.51.100.2"), ("c", "203.0.113.2"), ("east", "198.18.0.2"), ("west", "198.19.0.2")];
/// The controllers that a bed needs: those whose objects Linkspan and the tests use.
const CONTROLLERS: &str = "serviceaccount-token-controller,serviceaccount-controller,\
                           root-ca-certificate-publisher-controller,namespace-controller,garbage-collector-controller,\
                           endpointslice-controller";
/// The configuration of the cluster's DNS, where its administrator edits it.
pub const DNS_MAP: &str = "/api/v1/namespaces/kube-system/configmaps/coredns";
/// A cluster without anything beside its API server, for thousands of objects: kube-proxy, DNS and the cluster's controllers
/// would follow each of them on the same two cores. Its addresses are of the range for measurements (RFC 2544),
/// and nobody else's: it stays while others come.
const BARE: (&str, &str, u16) = ("s", "198.18.3.2", 30446);
/// The files of the test bed that are not made by a test.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes/manifests");

/// A Kubernetes cluster of one node.
pub struct Cluster {
    name: &'static str,
    prefix: String,
    dir: PathBuf,
    bin: PathBuf,
    node: Host,
    address: &'static str,
    link_port: u16,
    /// Nothing but an API server.
    is_bare: bool,
    next_pod: AtomicU32,
    next_replica: AtomicU32,
    processes: Mutex<BTreeMap<String, Process>>,
    linkspan: Mutex<Vec<Replica>>,
    dns: Mutex<Option<(Pod, Container)>>,
}

impl Cluster {
    /// Starts the components; returns when DNS answers at its ClusterIP. Its state is new where `folder` is.
    pub(super) fn start(prefix: &str, bed: &Path, index: usize, folder: &str) -> Self {
        let (name, address) = CLUSTERS[index];
        let link_port = network::LINK_PORTS.clone().nth(index).expect("a port for each cluster");
        let cluster = Self::with_api_server(prefix, bed, folder, (name, address, link_port), false);
        cluster.start_controllers();
        cluster.start_proxy();
        cluster.create_dns();
        cluster
    }

    /// Starts an API server alone. Pods reach it at its ClusterIP; nothing else of a cluster is played: EndpointSlices of
    /// Services are written by whoever needs them.
    pub(super) fn start_bare(prefix: &str, bed: &Path) -> Self {
        let cluster = Self::with_api_server(prefix, bed, BARE.0, BARE, true);
        cluster.node.sh(&format!(
            "nft 'table ip api {{ chain pods {{ type nat hook prerouting priority dstnat; ip daddr {} tcp dport 443 dnat to \
             {}:6443; }}; }}'",
            network::API_IP,
            cluster.address
        ));
        cluster
    }

    /// In a folder of its own.
    fn with_api_server(
        prefix: &str,
        bed: &Path,
        folder: &str,
        (name, address, link_port): (&'static str, &'static str, u16),
        is_bare: bool,
    ) -> Self {
        let dir = bed.join(folder);
        fs::create_dir_all(&dir).expect("folder of the cluster");
        network::node(prefix, name, address);
        let cluster = Self {
            name,
            prefix: prefix.to_owned(),
            bin: bed.join("bin"),
            node: Host::in_namespace(name, &format!("{prefix}-{name}"), address, &dir),
            dir,
            address,
            link_port,
            is_bare,
            next_pod: AtomicU32::new(10),
            next_replica: AtomicU32::new(0),
            processes: Mutex::default(),
            linkspan: Mutex::default(),
            dns: Mutex::default(),
        };
        succeed(std::process::Command::new(cluster.bin.join("certs")).args(["--dir"]).arg(&cluster.dir).args([
            "--server",
            &format!("https://{address}:6443"),
            "--names",
            network::API_IP,
        ]));
        cluster.write_admin_credentials();
        cluster.start_api_server();
        cluster.wait_api_server();
        cluster.create(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: node, labels: {{kubernetes.io/hostname: node, kubernetes.io/os: \
             linux}}}}\nspec: {{podCIDR: 10.244.0.0/24, podCIDRs: [10.244.0.0/24]}}\nstatus:\n  addresses: [{{type: InternalIP, \
             address: {address}}}, {{type: Hostname, address: node}}]\n  conditions: [{{type: Ready, status: \"True\", \
             reason: KubeletReady}}]\n"
        ));
        cluster
    }

    /// The cluster's name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The address of its node.
    pub const fn address(&self) -> &'static str {
        self.address
    }

    /// Where peers dial its gateways.
    pub fn link_address(&self) -> String {
        format!("{}:{}", self.address, self.link_port)
    }

    /// The NodePort of its link.
    pub const fn link_port(&self) -> u16 {
        self.link_port
    }

    /// Its only node, where its administrator types commands too.
    pub const fn node(&self) -> &Host {
        &self.node
    }

    /// A folder of its own.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn bin(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Whether it is an API server alone.
    pub(super) const fn is_bare(&self) -> bool {
        self.is_bare
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// An address for a pod, never given twice.
    pub(super) fn pod_address(&self) -> String {
        let number = self.next_pod.fetch_add(1, Ordering::Relaxed);
        format!("10.244.{}.{}", number / 250, 1 + number % 250)
    }

    pub(super) fn next_replica(&self) -> u32 {
        self.next_replica.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn linkspan(&self) -> MutexGuard<'_, Vec<Replica>> {
        self.linkspan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn processes(&self) -> MutexGuard<'_, BTreeMap<String, Process>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn component(&self, name: &str, args: &[&str]) {
        let mut command = network::exec(&format!("{}-{}", self.prefix, self.name), self.bin(name));
        command.args(args).current_dir(&self.dir);
        let log = self.dir.join(format!("{name}.log"));
        let process = Process::start(&format!("{}/{name}", self.name), command, &log);
        self.processes().insert(name.to_owned(), process);
    }

    fn start_api_server(&self) {
        let folder = self.dir.file_name().unwrap_or_default().display();
        let prefix = format!("--etcd-prefix=/{folder}");
        let etcd = format!("--etcd-servers=unix://{}", self.dir.with_file_name("etcd.sock").display());
        let address = format!("--advertise-address={}", self.address);
        let services = format!("--service-cluster-ip-range={}", network::SERVICE_CIDR);
        // Bodies of tens of thousands of objects would cost more than the objects.
        let policy = if self.is_bare { "audit-brief.yaml" } else { "audit.yaml" };
        let policy = format!("--audit-policy-file={MANIFESTS}/{policy}");
        // Since 1.33 the API server counts all addresses in use at each one that it gives: the hundredth part of a second for
        // each of ten thousand Services, whoever makes them. Of the clusters with few Services this is measured, too.
        let allocator = ["--emulated-version=1.33", "--feature-gates=MultiCIDRServiceAllocator=false"];
        let allocator = if self.is_bare { allocator.as_slice() } else { &[] };
        self.component(
            "kube-apiserver",
            &[
                allocator,
                &[
                    &etcd,
                    &prefix,
                    &address,
                    &services,
                    &policy,
                    "--bind-address=0.0.0.0",
                    "--secure-port=6443",
                    "--tls-cert-file=apiserver.crt",
                    "--tls-private-key-file=apiserver.key",
                    "--cert-dir=.",
                    "--client-ca-file=ca.crt",
                    "--authorization-mode=Node,RBAC",
                    "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                    "--service-account-key-file=sa.pub",
                    "--service-account-signing-key-file=sa.key",
                    "--requestheader-client-ca-file=front-proxy-ca.crt",
                    "--requestheader-allowed-names=front-proxy-client",
                    "--requestheader-username-headers=X-Remote-User",
                    "--requestheader-group-headers=X-Remote-Group",
                    "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                    "--proxy-client-cert-file=front-proxy-client.crt",
                    "--proxy-client-key-file=front-proxy-client.key",
                    "--audit-log-path=audit.log",
                    // One file: at 100 MB, its default, another one begins, and what is read here has a hole.
                    "--audit-log-maxsize=100000",
                ],
            ]
            .concat(),
        );
    }

    /// Takes the API server away at once, as a crash does.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill_api_server(&self) {
        let mut process = self.processes().remove("kube-apiserver").expect("the API server runs");
        process.kill();
    }

    /// Starts the API server again and waits until it is ready.
    pub fn restore_api_server(&self) {
        self.start_api_server();
        self.wait_api_server();
    }

    /// Lets the cluster's own components find the API server again at once: by themselves they return with a pause that grows with
    /// the outage.
    pub fn hurry_components(&self) {
        for name in ["kube-controller-manager", "kube-proxy", "coredns"] {
            drop(self.processes().remove(name));
        }
        self.start_controllers();
        self.start_proxy();
        self.start_dns();
    }

    fn wait_api_server(&self) {
        let what = format!("the API server of {} is ready", self.name);
        eventually(&what, 2 * PATIENCE, || self.request("GET", "/readyz", None).0 == 200);
    }

    fn start_controllers(&self) {
        let controllers = format!("--controllers={CONTROLLERS}");
        self.component(
            "kube-controller-manager",
            &[
                "--kubeconfig=controller-manager.conf",
                "--authentication-kubeconfig=controller-manager.conf",
                "--authorization-kubeconfig=controller-manager.conf",
                "--bind-address=127.0.0.1",
                "--cert-dir=.",
                "--leader-elect=false",
                "--use-service-account-credentials=true",
                "--service-account-private-key-file=sa.key",
                "--root-ca-file=ca.crt",
                &controllers,
            ],
        );
    }

    fn start_proxy(&self) {
        let pods = format!("--cluster-cidr={}", network::POD_CIDR);
        self.component(
            "kube-proxy",
            &[
                "--kubeconfig=kube-proxy.conf",
                "--hostname-override=node",
                "--proxy-mode=nftables",
                &pods,
                "--nodeport-addresses=primary",
                "--healthz-bind-address=127.0.0.1:10256",
                "--metrics-bind-address=127.0.0.1:10249",
                "--conntrack-max-per-core=0",
                "--conntrack-min=0",
                "--conntrack-tcp-timeout-established=0s",
                "--conntrack-tcp-timeout-close-wait=0s",
            ],
        );
    }

    fn create_dns(&self) {
        self.kubectl(&["apply", "-f", &format!("{MANIFESTS}/coredns.yaml")]);
        let from = format!("--from-file={MANIFESTS}/Corefile");
        self.kubectl(&["-n", "kube-system", "create", "configmap", "coredns", &from]);
        self.sync_dns();
        let pod = self.starting_pod("kube-system", "coredns", "k8s-app: kube-dns", "coredns");
        let mounts = vec![self.api_volume(&pod, "coredns")];
        let argv = [self.bin("coredns"), "-conf".into(), self.corefile()].map(|part| part.display().to_string());
        let container = Container { mounts, argv: argv.to_vec(), restricted: false };
        self.set_ready(&pod, true);
        *self.dns.lock().unwrap_or_else(PoisonError::into_inner) = Some((pod, container));
        self.start_dns();
    }

    fn start_dns(&self) {
        let dns = self.dns.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (pod, container) = dns.expect("DNS was created");
        self.run_container(&pod, &container);
        let name = "kubernetes.default.svc.cluster.local";
        eventually(&format!("DNS of {} answers", self.name), PATIENCE, || {
            pod.host.try_sh(&format!("dig +short +time=1 +tries=1 {name}")).1.trim() == network::API_IP
        });
    }

    /// The configuration of the cluster's DNS, which it reads again when it changes.
    pub fn corefile(&self) -> PathBuf {
        self.dir.join("Corefile")
    }

    /// Brings the ConfigMap of the cluster's DNS into its pod, as a kubelet does within a minute.
    ///
    /// # Panics
    /// When the ConfigMap is not there.
    pub fn sync_dns(&self) {
        let map = self.get(DNS_MAP).expect("the ConfigMap of CoreDNS");
        let text = map["data"]["Corefile"].as_str().expect("a Corefile");
        // Never half of it: CoreDNS may look at any moment.
        let new = self.dir.join("Corefile.new");
        fs::write(&new, text).expect("Corefile is written");
        fs::rename(&new, self.corefile()).expect("Corefile is replaced");
    }

    /// Ends the cluster: every process in it, and its network.
    pub(super) fn stop(&self) {
        network::clear(&self.prefix, self.name);
        let processes = std::mem::take(&mut *self.processes());
        if std::thread::panicking() {
            // Each would print the end of its log; what matters has been printed.
            processes.into_values().for_each(std::mem::forget);
        }
        self.linkspan().clear();
    }

    /// Prints the end of what Linkspan's pods logged.
    pub(super) fn print_logs(&self) {
        for (name, process) in self.processes().iter().filter(|(name, _)| name.starts_with("linkspan-")) {
            let output = process.output();
            let access = "\"message\":\"request\"";
            let lines: Vec<&str> = output.lines().rev().filter(|line| !line.contains(access)).take(15).collect();
            eprintln!("--- {}/{name} ---", self.name);
            lines.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }

    /// Memory that a component holds, MiB.
    pub fn resident(&self, process: &str) -> Option<u64> {
        self.status(process, "VmRSS:").map(|kib| kib / 1024)
    }

    /// The most that a component ever held, MiB.
    pub fn peak(&self, process: &str) -> Option<u64> {
        self.status(process, "VmHWM:").map(|kib| kib / 1024)
    }

    fn status(&self, process: &str, field: &str) -> Option<u64> {
        let id = self.processes().get(process)?.id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// Time that a component has spent on processors.
    pub fn processor_time(&self, process: &str) -> Option<Duration> {
        let id = self.processes().get(process)?.id();
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // After the name in brackets: the 12th and 13th field, in hundredths of a second.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: u64 = fields.get(11..13)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
        Some(Duration::from_millis(10 * ticks))
    }
}

/// How often a condition in the API server is looked at: each look is a process and a TLS handshake.
pub(super) const LOOK: Duration = Duration::from_millis(100);
