//! Pods: network namespaces whose objects, and their status, the test bed writes as a kubelet would.

use serde_json::{Value, json};

use super::api::{Body, JSON, MERGE, path};
use super::cluster::Cluster;
use super::{PATIENCE, network};
use crate::world::Host;

/// A pod, as a kubelet would have started it. It goes with the bed, or by [`Cluster::delete_pod`].
#[derive(Clone)]
pub struct Pod {
    /// Its namespace in the cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The host that it is: what runs in it is started here.
    pub host: Host,
    pub(super) netns: String,
    pub(super) uid: String,
}

impl Cluster {
    /// A running and ready pod with nothing in it yet. Labels as YAML has them: `app: web`.
    pub fn pod(&self, namespace: &str, name: &str, labels: &str, account: &str) -> Pod {
        let pod = self.starting_pod(namespace, name, labels, account);
        self.set_ready(&pod, true);
        pod
    }

    /// A running pod that is not ready.
    pub fn starting_pod(&self, namespace: &str, name: &str, labels: &str, account: &str) -> Pod {
        let labels: Value = serde_saphyr::from_str(&format!("{{{labels}}}")).expect("labels as YAML has them");
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": namespace, "labels": labels },
            "spec": {
                "nodeName": "node",
                "serviceAccountName": account,
                "containers": [{ "name": "main", "image": "none" }]
            }
        });
        self.create_pod(&object)
    }

    /// A pod of a headless service with a name of its own in it, as a StatefulSet makes them.
    pub fn stateful_pod(&self, namespace: &str, name: &str, labels: &str, service: &str) -> Pod {
        let labels: Value = serde_saphyr::from_str(&format!("{{{labels}}}")).expect("labels as YAML has them");
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": namespace, "labels": labels },
            "spec": {
                "nodeName": "node",
                "hostname": name,
                "subdomain": service,
                "containers": [{ "name": "main", "image": "none" }]
            }
        });
        let pod = self.create_pod(&object);
        self.set_ready(&pod, true);
        pod
    }

    /// Writes the Pod, makes its namespace, and says that it runs.
    pub(super) fn create_pod(&self, object: &Value) -> Pod {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("default").to_owned();
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let account = text("/spec/serviceAccountName");
        // The API server takes no pod before its account is there, and accounts follow namespaces.
        self.wait(&format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}"), PATIENCE, |_| true);
        let body = object.to_string();
        let (code, answer) = self.request(
            "POST",
            &format!("/api/v1/namespaces/{namespace}/pods"),
            Some(Body { kind: JSON, text: &body }),
        );
        assert_eq!(code, 201, "{} takes no pod {namespace}/{name}: {answer}", self.name());
        let created: Value = serde_json::from_str(&answer).expect("the API server answers JSON");

        let address = self.pod_address();
        let netns = format!("{}-{}-{namespace}-{name}", self.prefix(), self.name());
        network::pod(&format!("{}-{}", self.prefix(), self.name()), &netns, &address, &namespace);
        let dir = self.dir().join(format!("{namespace}-{name}"));
        std::fs::create_dir_all(&dir).expect("folder of the pod");
        let pod = Pod {
            host: Host::in_namespace(self.name(), &netns, &address, &dir),
            netns,
            uid: created["metadata"]["uid"].as_str().expect("a pod has a uid").to_owned(),
            namespace,
            name,
        };
        self.set_ready(&pod, false);
        pod
    }

    /// Says whether a pod is ready; EndpointSlices follow.
    pub fn set_ready(&self, pod: &Pod, ready: bool) {
        let word = if ready { "True" } else { "False" };
        let address = pod.host.address();
        let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status });
        let status = json!({ "status": {
            "phase": "Running",
            "hostIP": self.address(),
            "podIP": address,
            "podIPs": [{ "ip": address }],
            "conditions": [
                condition("PodScheduled", "True"),
                condition("Initialized", "True"),
                condition("ContainersReady", word),
                condition("Ready", word)
            ]
        }});
        self.patch(MERGE, &format!("{}/status", path::pod(&pod.namespace, &pod.name)), &status.to_string());
    }

    /// Asks for the end of a pod, as a rollout does. It is terminating until [`Self::delete_pod`].
    pub fn terminate_pod(&self, pod: &Pod) {
        let text = r#"{"gracePeriodSeconds": 30}"#;
        let target = path::pod(&pod.namespace, &pod.name);
        let (code, answer) = self.request("DELETE", &target, Some(Body { kind: JSON, text }));
        assert_eq!(code, 200, "{} does not end {target}: {answer}", self.name());
    }

    /// Says that nothing of a pod is left: its object goes, and its network with all that runs in it.
    pub fn delete_pod(&self, pod: &Pod) {
        let text = r#"{"gracePeriodSeconds": 0}"#;
        let target = path::pod(&pod.namespace, &pod.name);
        let (code, answer) = self.request("DELETE", &target, Some(Body { kind: JSON, text }));
        assert!(code == 200 || code == 404, "{} does not delete {target}: {answer}", self.name());
        network::remove(&pod.netns);
    }
}
