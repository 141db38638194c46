//! Linkspan in a cluster: installed by the commands that users type, its replicas made from the Deployments as they were applied.

use std::fs;

use serde_json::{Value, json};

use super::PATIENCE;
use super::api::path;
use super::cluster::Cluster;
use super::pods::Pod;
use crate::process::eventually;

/// Linkspan's namespace.
pub const NAMESPACE: &str = "linkspan";
/// Where Linkspan's DNS answers, in every cluster.
pub const DNS_IP: &str = "10.96.0.53";
/// How many of each Deployment run.
pub const REPLICAS: usize = 2;

/// The two Deployments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// The data plane.
    Gateway,
    /// The control plane.
    Controller,
}

/// A replica of Linkspan.
pub struct Replica {
    /// Its pod.
    pub pod: Pod,
    component: Component,
    container: super::kubelet::Container,
}

impl Component {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Controller => "controller",
        }
    }
}

/// Installs Linkspan and starts all replicas; returns when they are ready.
pub(super) fn install(cluster: &Cluster) {
    let (name, link) = (cluster.name(), cluster.link_address());
    cluster.sh(&format!(
        "linkspan install --cluster-name {name} --service-type NodePort --node-port {port} --address {link} \
         --dns-cluster-ip {DNS_IP} | kubectl apply -f -",
        port = cluster.link_port()
    ));
    let components = [Component::Controller, Component::Gateway];
    for component in components {
        for _ in 0..component.count() {
            cluster.add_replica(component);
        }
    }
    for component in components {
        cluster.wait_replicas(component);
    }
    forward_clusterset(cluster);
}

/// The same with one replica of each, in a cluster of an API server alone: what its controllers and DNS would say of them is
/// said here.
pub(super) fn install_bare(cluster: &Cluster) {
    let link = cluster.link_address();
    cluster.sh(&format!(
        "linkspan install --cluster-name {} --service-type NodePort --node-port {} --address {link} --dns-cluster-ip {DNS_IP} | \
         kubectl apply -f -",
        cluster.name(),
        cluster.link_port()
    ));
    cluster.add_replica(Component::Controller);
    let gateway = cluster.add_replica(Component::Gateway);
    for component in [Component::Controller, Component::Gateway] {
        cluster.wait_replicas(component);
    }
    cluster.apply(&format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: linkspan-gateway-1, namespace: {NAMESPACE}, \
         labels: {{kubernetes.io/service-name: linkspan-gateway}}}}\naddressType: IPv4\nendpoints: [{{addresses: [{}], \
         conditions: {{ready: true}}}}]\nports: []\n",
        gateway.host.address()
    ));
}

/// The lines that the installation page tells an administrator to add to CoreDNS's configuration.
pub fn documented_dns_lines() -> String {
    let page =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes.md")).expect("kubernetes.md");
    let lines: Vec<&str> = page
        .lines()
        .skip_while(|line| line.trim() != "clusterset.local:53 {")
        .take_while(|line| !line.is_empty())
        .map(|line| line.strip_prefix("    ").unwrap_or(line))
        .collect();
    assert!(!lines.is_empty(), "deploy/kubernetes.md shows the lines for CoreDNS");
    lines.join("\n")
}

fn forward_clusterset(cluster: &Cluster) {
    let address =
        cluster.kubectl(&["-n", NAMESPACE, "get", "service", "linkspan-dns", "-o", "jsonpath={.spec.clusterIP}"]);
    let corefile = fs::read_to_string(cluster.corefile()).expect("Corefile");
    let lines = documented_dns_lines().replace("ADDRESS", address.trim());
    fs::write(cluster.corefile(), format!("{corefile}\n{lines}\n")).expect("Corefile is written");
}

/// The Link by which `from` trusts `to` and dials it.
pub fn link_manifest(to: &Cluster) -> String {
    let root =
        to.get(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps/linkspan-root")).expect("the root of a cluster");
    let link = json!({
        "apiVersion": "linkspan.io/v1alpha1",
        "kind": "Link",
        "metadata": { "name": to.name() },
        "spec": {
            "trustDomain": format!("{}.linkspan.internal", to.name()),
            "addresses": [to.link_address()],
            "trustBundle": root["data"]["root.pem"]
        }
    });
    link.to_string()
}

/// Links two clusters with each other, and waits until a gateway of each knows the other alive.
pub fn link(a: &Cluster, b: &Cluster) {
    a.apply(&link_manifest(b));
    b.apply(&link_manifest(a));
    for (from, to) in [(a, b), (b, a)] {
        eventually(&format!("every gateway of {} sees {} alive", from.name(), to.name()), 2 * PATIENCE, || {
            from.replicas(Component::Gateway).iter().all(|pod| from.sees(pod, to.name()) == Some(true))
        });
    }
}

impl Component {
    const fn count(self) -> usize {
        match self {
            Self::Gateway => REPLICAS,
            Self::Controller => CONTROLLERS,
        }
    }
}

/// Controllers that run. More than one needs that they agree who writes.
const CONTROLLERS: usize = 2;

impl Cluster {
    /// The pods of a component, oldest first.
    pub fn replicas(&self, component: Component) -> Vec<Pod> {
        self.linkspan()
            .iter()
            .filter(|replica| replica.component == component)
            .map(|replica| replica.pod.clone())
            .collect()
    }

    /// What a gateway says of a peer: whether it is alive.
    pub fn sees(&self, gateway: &Pod, peer: &str) -> Option<bool> {
        let links = self.admin(gateway, "/links")?;
        let rows = links.as_array().cloned().or_else(|| links["links"].as_array().cloned())?;
        rows.iter().find(|row| row["cluster"] == peer)?["alive"].as_bool()
    }

    /// What the admin port of a replica answers.
    pub fn admin(&self, pod: &Pod, route: &str) -> Option<Value> {
        let (ok, text) =
            self.node().try_sh(&format!("curl -fsS --max-time 2 http://{}:4191{route}", pod.host.address()));
        ok.then(|| serde_json::from_str(&text).ok()).flatten()
    }

    /// The sum of a replica's counters called `name` whose labels contain `label`; 0 while there are none.
    ///
    /// # Panics
    /// When the replica does not answer.
    pub fn counted(&self, pod: &Pod, name: &str, label: &str) -> u64 {
        let page = self.node().sh(&format!("curl -fsS --max-time 5 http://{}:4191/metrics", pod.host.address()));
        let lines =
            page.lines().filter(|line| line.split(['{', ' ']).next().is_some_and(|start| start.ends_with(name)));
        let values =
            lines.filter(|line| line.contains(label)).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.map(|value| value as u64).sum()
    }

    fn probe(&self, pod: &Pod) -> bool {
        self.node().try_sh(&format!("curl -fsS --max-time 1 http://{}:4191/ready", pod.host.address())).0
    }

    /// Starts one more replica, as a ReplicaSet would; it is not ready yet.
    pub fn add_replica(&self, component: Component) -> Pod {
        let word = component.as_str();
        let target = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/linkspan-{word}");
        let deployment = self.get(&target).unwrap_or_else(|| panic!("{} has no {target}", self.name()));
        let template = &deployment["spec"]["template"];
        let mut object =
            json!({ "apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"] });
        object["metadata"]["name"] = json!(format!("linkspan-{word}-{}", self.next_replica()));
        object["metadata"]["namespace"] = json!(NAMESPACE);
        object["spec"]["nodeName"] = json!("node");
        let pod = self.create_pod(&object);
        if self.is_bare()
            && let Some(controller) = self.replicas(Component::Controller).first()
        {
            let name = format!("linkspan-controller.{NAMESPACE}.svc");
            super::network::name_address(&pod.netns, &name, controller.host.address());
        }
        let container = self.container(&pod, &template["spec"]);
        self.run_container(&pod, &container);
        self.linkspan().push(Replica { pod: pod.clone(), component, container });
        pod
    }

    /// Waits until all replicas of a component answer their readiness probe, and says so to the API server.
    pub fn wait_replicas(&self, component: Component) {
        for pod in self.replicas(component) {
            self.wait_ready(&pod);
        }
    }

    fn wait_ready(&self, pod: &Pod) {
        eventually(&format!("{} of {} is ready", pod.name, self.name()), 2 * PATIENCE, || self.probe(pod));
        self.set_ready(pod, true);
    }

    /// Kills a replica's program at once; its pod stays, not ready.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill_replica(&self, pod: &Pod) {
        let mut process = self.processes().remove(&pod.name).unwrap_or_else(|| panic!("{} runs", pod.name));
        process.kill();
        self.set_ready(pod, false);
    }

    /// Kills a replica's program at once; its pod stays as it is, as before anybody has looked.
    ///
    /// # Panics
    /// When it does not run.
    pub fn crash_replica(&self, pod: &Pod) {
        let mut process = self.processes().remove(&pod.name).unwrap_or_else(|| panic!("{} runs", pod.name));
        process.kill();
    }

    /// Starts the program of a killed replica again in its pod, as a kubelet does, and waits until it is ready.
    pub fn restart_replica(&self, pod: &Pod) {
        self.start_replica(pod);
        self.wait_ready(pod);
    }

    /// Starts the program of a killed replica again; it is not ready yet.
    ///
    /// # Panics
    /// When there is no such replica.
    pub fn start_replica(&self, pod: &Pod) {
        let container = self
            .linkspan()
            .iter()
            .find(|replica| replica.pod.name == pod.name)
            .map(|replica| replica.container.clone());
        self.run_container(pod, &container.unwrap_or_else(|| panic!("{} is a replica", pod.name)));
    }

    /// Starts replicas again whose programs ended by themselves. Those that a test killed or ended are no more among the
    /// processes.
    pub(super) fn restart_ended(&self) {
        let mut ended = Vec::new();
        self.processes().retain(|name, process| {
            let runs = !name.starts_with("linkspan-") || process.running();
            if !runs {
                ended.push(name.clone());
            }
            runs
        });
        let pods: Vec<Pod> = self.linkspan().iter().map(|replica| replica.pod.clone()).collect();
        for pod in pods.into_iter().filter(|pod| ended.contains(&pod.name)) {
            eprintln!("{} of {} ended by itself and is started again", pod.name, self.name());
            self.start_replica(&pod);
        }
    }

    /// Replaces every replica of a component, one after the other, as a Deployment with `maxSurge: 1` and
    /// `maxUnavailable: 0` does it.
    ///
    /// # Panics
    /// When a new one does not become ready, or an old one does not end in its grace period.
    pub fn roll(&self, component: Component) {
        for old in self.replicas(component) {
            let new = self.add_replica(component);
            self.wait_ready(&new);
            self.end_replica(&old);
        }
    }

    /// Ends a replica in good order.
    ///
    /// # Panics
    /// When it does not end in its grace period.
    pub fn end_replica(&self, pod: &Pod) {
        self.terminate_pod(pod);
        let mut process = self.processes().remove(&pod.name).unwrap_or_else(|| panic!("{} runs", pod.name));
        process.signal("TERM");
        process.wait(PATIENCE);
        self.linkspan().retain(|replica| replica.pod.name != pod.name);
        self.delete_pod(pod);
    }

    /// Everything in all namespaces that Linkspan's controller made: kind and name.
    pub fn made(&self) -> Vec<String> {
        let label = "labelSelector=mirror.linkspan.io%2Fmanaged-by";
        [
            "/api/v1/services",
            "/apis/discovery.k8s.io/v1/endpointslices",
            "/apis/multicluster.x-k8s.io/v1beta1/serviceimports",
        ]
        .iter()
        .flat_map(|resource| {
            self.list(&format!("{resource}?{label}")).into_iter().map(move |object| {
                let meta = &object["metadata"];
                format!(
                    "{} {}/{} {}",
                    resource.rsplit('/').next().unwrap_or_default(),
                    meta["namespace"].as_str().unwrap_or_default(),
                    meta["name"].as_str().unwrap_or_default(),
                    meta["labels"]["mirror.linkspan.io/cluster-name"].as_str().unwrap_or_default()
                )
            })
        })
        .collect()
    }

    /// Names and versions of the objects that the controller made in a namespace: equal before and after when nothing was
    /// written.
    pub fn versions(&self, namespace: &str) -> Vec<(String, String)> {
        let label = "labelSelector=mirror.linkspan.io%2Fmanaged-by";
        let mut versions: Vec<(String, String)> = [
            format!("/api/v1/namespaces/{namespace}/services?{label}"),
            format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?{label}"),
            format!("/apis/multicluster.x-k8s.io/v1beta1/namespaces/{namespace}/serviceimports?{label}"),
        ]
        .iter()
        .flat_map(|resource| self.list(resource))
        .map(|object| {
            let meta = &object["metadata"];
            let text = |field: &str| meta[field].as_str().unwrap_or_default().to_owned();
            (text("name"), text("resourceVersion"))
        })
        .collect();
        versions.sort();
        versions
    }

    /// Waits until a Link is gone with all that it made here.
    pub fn unlink(&self, peer: &str) {
        self.kubectl(&["delete", "link", peer]);
        self.wait_absent(&path::link(peer), PATIENCE);
    }
}
