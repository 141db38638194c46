//! Linkspan in a cluster: installed by the commands that users type, its replicas made from the Deployments as they were applied.

use std::fs;

use serde_json::{Value, json};

use super::PATIENCE;
use super::api::{MERGE, path};
use super::cluster::{Cluster, DNS_MAP};
use super::pods::Pod;
use crate::process::eventually;

/// Linkspan's namespace.
pub const NAMESPACE: &str = "linkspan";
/// Where Linkspan's DNS answers, in every cluster.
pub const DNS_IP: &str = "10.96.0.53";

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
    const ALL: [Self; 2] = [Self::Controller, Self::Gateway];

    fn deployment(self) -> String {
        format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/linkspan-{}", self.as_str())
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Controller => "controller",
        }
    }
}

/// A replica whose program stands still.
pub struct Frozen<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Some(process) = self.cluster.processes().get(&self.name) {
            process.signal("CONT");
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
    cluster.start_replicas();
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

/// Adds them, as a person would.
///
/// # Panics
/// When the Corefile cannot be read.
pub fn forward_clusterset(cluster: &Cluster) {
    let address =
        cluster.kubectl(&["-n", NAMESPACE, "get", "service", "linkspan-dns", "-o", "jsonpath={.spec.clusterIP}"]);
    let corefile = fs::read_to_string(cluster.corefile()).expect("Corefile");
    let lines = documented_dns_lines().replace("ADDRESS", address.trim());
    let map = json!({ "data": { "Corefile": format!("{corefile}\n{lines}\n") } });
    cluster.patch(MERGE, DNS_MAP, &map.to_string());
    cluster.sync_dns();
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

impl Cluster {
    /// Starts as many replicas as the Deployments say; returns when they are ready.
    ///
    /// # Panics
    /// When a Deployment is not there, or a replica does not become ready.
    pub fn start_replicas(&self) {
        for component in Component::ALL {
            let target = component.deployment();
            let deployment = self.get(&target).unwrap_or_else(|| panic!("{} has no {target}", self.name()));
            for _ in 0..deployment["spec"]["replicas"].as_u64().expect("a number of replicas") {
                self.add_replica(component);
            }
        }
        Component::ALL.into_iter().for_each(|component| self.wait_replicas(component));
    }

    /// Gives the Service for the link the address of the node, as a load balancer's controller does.
    pub fn balance(&self) {
        let status = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": self.address() }] } } });
        let service = format!("{}/status", path::service(NAMESPACE, "linkspan-link"));
        self.patch(MERGE, &service, &status.to_string());
    }

    /// Waits until both Deployments are gone and ends their replicas, as the garbage collector and a kubelet do.
    pub fn end_with_deployments(&self) {
        for component in Component::ALL {
            self.wait_absent(&component.deployment(), 2 * PATIENCE);
        }
        let pods: Vec<Pod> = self.linkspan().drain(..).map(|replica| replica.pod).collect();
        for pod in &pods {
            if let Some(process) = self.processes().get(&pod.name) {
                process.signal("TERM");
            }
        }
        for pod in &pods {
            let process = self.processes().remove(&pod.name);
            if let Some(mut process) = process {
                process.wait(PATIENCE);
            }
            self.delete_pod(pod);
        }
    }

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
        let target = component.deployment();
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

    /// Stops a replica's program where it is, as on a machine without time for it, until what is returned is dropped: its
    /// connections stay, and nobody is told.
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze_replica(&self, pod: &Pod) -> Frozen<'_> {
        self.processes().get(&pod.name).unwrap_or_else(|| panic!("{} runs", pod.name)).signal("STOP");
        Frozen { cluster: self, name: pod.name.clone() }
    }

    /// What a replica has printed, over all its starts.
    ///
    /// # Panics
    /// When it never started.
    pub fn printed(&self, pod: &Pod) -> String {
        fs::read_to_string(self.dir().join(format!("{}.log", pod.name))).expect("a replica has a log")
    }

    /// Starts the program of a killed replica again in its pod, as a kubelet does, and waits until it is ready.
    pub fn restart_replica(&self, pod: &Pod) {
        self.start_replica(pod);
        self.wait_ready(pod);
    }

    /// The same on a node whose clock is so many seconds ahead.
    pub fn restart_replica_ahead(&self, pod: &Pod, seconds: u32) {
        let mut container = self.container_of(pod);
        container.put_ahead(&self.clock(), seconds);
        self.run_container(pod, &container);
        self.wait_ready(pod);
    }

    /// Starts the program of a killed replica again; it is not ready yet.
    ///
    /// # Panics
    /// When there is no such replica.
    pub fn start_replica(&self, pod: &Pod) {
        self.run_container(pod, &self.container_of(pod));
    }

    fn container_of(&self, pod: &Pod) -> super::kubelet::Container {
        let replicas = self.linkspan();
        let replica = replicas.iter().find(|replica| replica.pod.name == pod.name);
        replica.map(|replica| replica.container.clone()).unwrap_or_else(|| panic!("{} is a replica", pod.name))
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

    /// The Services in all namespaces that Linkspan's controller made.
    pub fn made_services(&self) -> Vec<String> {
        let services = self.list("/api/v1/services?labelSelector=mirror.linkspan.io%2Fmanaged-by");
        let name = |service: &Value| service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        services.iter().map(name).collect()
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
