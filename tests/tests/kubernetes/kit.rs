//! What several modules need: a namespace in both clusters with an exported web server in b and a client in a.

use std::time::{Duration, Instant};

use linkspan_tests::bed::api::path;
use linkspan_tests::bed::{Bed, Cluster, PATIENCE, Pod};
use linkspan_tests::process::{Process, eventually};
use linkspan_tests::servers;
use serde_json::Value;

/// How fast an edited or deleted object of ours is as it was.
pub(crate) const REPAIR: Duration = Duration::from_secs(2);

/// Skips a test with a loud word where there is no Kubernetes.
macro_rules! needs_kubernetes {
    () => {
        if !linkspan_tests::bed::available() {
            return;
        }
    };
}
pub(crate) use needs_kubernetes;

/// A namespace of the test's own in both clusters.
pub(crate) struct Shop<'a> {
    pub(crate) a: &'a Cluster,
    pub(crate) b: &'a Cluster,
    pub(crate) namespace: String,
    /// In a, under the ServiceAccount `client`.
    pub(crate) client: Pod,
    servers: Vec<Process>,
}

impl<'a> Shop<'a> {
    /// The namespace in both clusters, and the client.
    pub(crate) fn new(bed: &'a Bed, namespace: &str) -> Self {
        let (a, b) = bed.pair();
        a.namespace(namespace);
        b.namespace(namespace);
        a.kubectl(&["-n", namespace, "create", "serviceaccount", "client"]);
        let client = a.pod(namespace, "client", "app: client", "client");
        Self { a, b, namespace: namespace.to_owned(), client, servers: Vec::new() }
    }

    /// The same with Service `web` in b: port 80 is an HTTP server that answers with the request that it saw, port 9000 says
    /// where it is and echoes.
    pub(crate) fn with_web(bed: &'a Bed, namespace: &str) -> Self {
        let mut shop = Self::new(bed, namespace);
        let b = shop.b;
        shop.serve(b, "web", "web-0");
        shop
    }

    /// Service `name` in a cluster with one pod.
    pub(crate) fn serve(&mut self, cluster: &Cluster, name: &str, pod: &str) -> Pod {
        cluster.apply(&web_service(&self.namespace, name, ""));
        self.serve_pod(cluster, name, pod)
    }

    /// One more pod of service `name`.
    pub(crate) fn serve_pod(&mut self, cluster: &Cluster, name: &str, pod: &str) -> Pod {
        let pod = cluster.starting_pod(&self.namespace, pod, &format!("app: {name}"), "default");
        self.servers.push(servers::python(&pod.host, "headers_server.py", 8080));
        self.servers.push(servers::python(&pod.host, "where_server.py", 9000));
        cluster.set_ready(&pod, true);
        pod
    }

    /// Exports a service, waits until it is mirrored in a and a call gets an answer; returns the mirror's name in DNS.
    pub(crate) fn export(&self, name: &str) -> String {
        self.b.apply(&service_export(&self.namespace, name, ""));
        let host = self.mirror_name(name);
        self.wait_answer(&format!("http://{host}/"));
        host
    }

    /// The name of the mirror of b's service in a.
    pub(crate) fn mirror_name(&self, name: &str) -> String {
        format!("{name}-b.{}.svc.cluster.local", self.namespace)
    }

    /// The name of a service in the clusterset.
    pub(crate) fn clusterset_name(&self, name: &str) -> String {
        format!("{name}.{}.svc.clusterset.local", self.namespace)
    }

    /// What the client gets.
    pub(crate) fn curl(&self, arguments: &str) -> (bool, String) {
        self.client.host.try_sh(&format!("curl -fsS --max-time 5 {arguments}"))
    }

    /// Waits until the client gets an answer.
    pub(crate) fn wait_answer(&self, url: &str) -> String {
        wait_answer(&self.client, url, PATIENCE)
    }

    /// A mirror's path in a.
    pub(crate) fn mirror(&self, name: &str) -> String {
        path::service(&self.namespace, &format!("{name}-b"))
    }
}

/// Waits until a client gets a good answer; returns it.
pub(crate) fn wait_answer(client: &Pod, url: &str, limit: Duration) -> String {
    let mut answer = String::new();
    let start = Instant::now();
    loop {
        let (ok, text) = client.host.try_sh(&format!("curl -fsS --max-time 2 {url}"));
        answer.clone_from(&text);
        if ok {
            return answer;
        }
        assert!(start.elapsed() < limit, "no good answer from {url} within {limit:?}: {answer}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A line that a client sends over TCP, and what comes back: where it got to, then the line.
pub(crate) fn tcp(client: &Pod, host: &str, port: u16) -> String {
    // An address that was a Service's before does not answer at all: whoever asks again has to give up first.
    let talk = "exec 3<>/dev/tcp/$0/$1; printf \"ping\\n\" >&3; timeout 3 head -n 2 <&3";
    client.host.try_sh(&format!("timeout 4 bash -c '{talk}' {host} {port}")).1
}

/// A Service of the server programs, with more of its spec as YAML in braces has it: `sessionAffinity: ClientIP`.
pub(crate) fn web_service(namespace: &str, name: &str, more: &str) -> String {
    let more = if more.is_empty() { String::new() } else { format!("{more}, ") };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{more}selector: {{app: \
         {name}}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}, {{name: echo, port: 9000}}]}}\n"
    )
}

/// A ServiceExport, with more of its spec.
pub(crate) fn service_export(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {{name: {name}, namespace: \
         {namespace}}}\nspec: {{{spec}}}\n"
    )
}

/// The addresses in the slices of a Service that are ready, sorted.
pub(crate) fn ready_addresses(cluster: &Cluster, namespace: &str, service: &str) -> Vec<String> {
    let slices = cluster.list(&path::slices(namespace, service));
    let mut addresses: Vec<String> = slices
        .iter()
        .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
        .filter(|endpoint| endpoint["conditions"]["ready"] != false)
        .flat_map(|endpoint| endpoint["addresses"].as_array().cloned().unwrap_or_default())
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    addresses.sort();
    addresses
}

/// All values of a header in what `headers_server.py` answered.
pub(crate) fn header(answer: &str, name: &str) -> Vec<String> {
    let answer: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    answer["headers"]
        .as_array()
        .expect("header list")
        .iter()
        .filter(|pair| pair[0].as_str().is_some_and(|found| found.eq_ignore_ascii_case(name)))
        .map(|pair| pair[1].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// The status of a condition, and its reason.
pub(crate) fn condition(object: &Value, kind: &str) -> Option<(String, String)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    Some((found["status"].as_str()?.to_owned(), found["reason"].as_str()?.to_owned()))
}

/// Waits until an export has a condition with this status.
pub(crate) fn wait_condition(cluster: &Cluster, path: &str, kind: &str, status: &str) -> Value {
    cluster.wait(path, PATIENCE, |object| condition(object, kind).is_some_and(|(found, _)| found == status))
}

/// Resolves a name in a pod.
pub(crate) fn dig(pod: &Pod, name: &str, kind: &str) -> String {
    pod.host.try_sh(&format!("dig +short +time=2 +tries=1 {name} {kind}")).1.trim().to_owned()
}

/// The response code of DNS for a name.
pub(crate) fn dns_code(pod: &Pod, name: &str) -> String {
    let (_, text) = pod.host.try_sh(&format!("dig +time=2 +tries=1 {name} A"));
    let code = text.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
    code.unwrap_or("no answer").to_owned()
}

/// Waits until a name has this answer.
pub(crate) fn wait_dns(pod: &Pod, name: &str, kind: &str, answer: &str) {
    let mut last = String::new();
    eventually(&format!("{name} {kind} is {answer}"), PATIENCE, || {
        last = dig(pod, name, kind);
        last == answer
    });
}
