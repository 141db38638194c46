//! What a kubelet and a container runtime do for a pod with volumes: files, mounts, the user, the arguments.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::api::{Body, JSON};
use super::cluster::Cluster;
use super::network;
use super::pods::Pod;
use crate::clock;
use crate::process::{Process, succeed};

/// Where programs in a pod look for the token and the CA of their API server.
pub(super) const API_MOUNT: &str = "/run/secrets/kubernetes.io/serviceaccount";
/// The user of Linkspan's pods, and their group.
const USER: &str = "65532";

/// What is run in a pod: enough to run it again after a crash.
#[derive(Clone)]
pub(super) struct Container {
    /// Folders on this machine, and where the program sees them.
    pub(super) mounts: Vec<(PathBuf, String)>,
    /// Program and arguments.
    pub(super) argv: Vec<String>,
    /// Whether it runs under the user of the pod and not under root.
    pub(super) restricted: bool,
}

impl Container {
    /// Puts the program's clock ahead; see [`crate::clock`].
    pub(super) fn put_ahead(&mut self, library: &Path, seconds: u32) {
        let environment = clock::environment(library, seconds.into());
        let environment = environment.map(|(name, value)| format!("{name}={value}"));
        let argv = std::mem::take(&mut self.argv);
        self.argv = std::iter::once("env".to_owned()).chain(environment).chain(argv).collect();
    }
}

/// Mounts pairs of folders, then becomes the program. `/run` is the pod's own.
const ENTER: &str = r#"
    mount -t tmpfs tmpfs /run
    while [ "$1" != -- ]; do mkdir -p "$2"; mount --bind "$1" "$2"; shift 2; done
    shift
    exec "$@"
"#;

impl Cluster {
    /// Starts what runs in a pod. The process is known by `POD`, or `NAMESPACE/POD`.
    pub(super) fn run_container(&self, pod: &Pod, container: &Container) {
        let mut command = network::exec(&pod.netns, "unshare");
        command.args(["--mount", "sh", "-ec", ENTER, "sh"]);
        for (from, to) in &container.mounts {
            command.arg(from).arg(to);
        }
        command.arg("--");
        if container.restricted {
            command.args(["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups"]);
            command.args(["--bounding-set=-all", "--no-new-privs"]);
        }
        command.args(&container.argv);
        command.env_clear().env("PATH", std::env::var("PATH").unwrap_or_default());
        command.env("KUBERNETES_SERVICE_HOST", network::API_IP).env("KUBERNETES_SERVICE_PORT", "443");
        let log = self.dir().join(format!("{}.log", pod.name));
        let process = Process::start(&format!("{}/{}", self.name(), pod.name), command, &log);
        self.processes().insert(pod.name.clone(), process);
    }

    /// The library that puts clocks ahead.
    pub(super) fn clock(&self) -> PathBuf {
        clock::library(self.dir())
    }

    /// A token bound to a pod, for an audience; the API server's own without one.
    fn pod_token(&self, pod: &Pod, account: &str, audience: Option<&str>) -> String {
        let mut request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "expirationSeconds": 7200,
                "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid }
            }
        });
        if let Some(audience) = audience {
            request["spec"]["audiences"] = json!([audience]);
        }
        let target = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", pod.namespace);
        let text = request.to_string();
        let (code, answer) = self.request("POST", &target, Some(Body { kind: JSON, text: &text }));
        assert_eq!(code, 201, "{} gives no token to {account}: {answer}", self.name());
        let answer: Value = serde_json::from_str(&answer).expect("the API server answers JSON");
        answer["status"]["token"].as_str().expect("a token").to_owned()
    }

    /// The folder that a kubelet mounts for programs that talk to the API server.
    pub(super) fn api_volume(&self, pod: &Pod, account: &str) -> (PathBuf, String) {
        let folder = self.volume(pod, "kube-api-access");
        write(&folder.join("token"), self.pod_token(pod, account, None).as_bytes());
        write(&folder.join("ca.crt"), &fs::read(self.dir().join("ca.crt")).expect("the cluster's CA"));
        write(&folder.join("namespace"), pod.namespace.as_bytes());
        (folder, API_MOUNT.to_owned())
    }

    fn volume(&self, pod: &Pod, name: &str) -> PathBuf {
        let folder = self.dir().join("volumes").join(&pod.name).join(name);
        fs::create_dir_all(&folder).expect("folder of a volume");
        own(&folder, "0755");
        folder
    }

    /// The container that a pod template describes: its first one, with all volumes that it mounts.
    pub(super) fn container(&self, pod: &Pod, spec: &Value) -> Container {
        let main = &spec["containers"][0];
        let mut mounts = Vec::new();
        for mount in items(main, "volumeMounts") {
            let name = text(mount, "name");
            let volume = items(spec, "volumes").find(|volume| volume["name"] == name.as_str());
            let volume = volume.unwrap_or_else(|| panic!("{} mounts a volume {name} that is not there", pod.name));
            let path = text(mount, "mountPath").replace("/var/run/", "/run/");
            mounts.push((self.fill(pod, spec, volume), path));
        }
        if spec["automountServiceAccountToken"] == true {
            mounts.push(self.api_volume(pod, &text(spec, "serviceAccountName")));
        }
        let image = text(main, "image");
        let image = image.rsplit('/').next().and_then(|last| last.split(':').next()).unwrap_or_default();
        let program = self.bin(&format!("linkspan-{image}")).display().to_string();
        let args = items(main, "args").map(|argument| {
            let argument = argument.as_str().expect("arguments are text");
            argument.replace("$(POD_NAME)", &pod.name).replace("$(POD_IP)", pod.host.address())
        });
        assert_eq!(main["securityContext"]["capabilities"]["drop"], json!(["ALL"]), "the pod drops its rights");
        Container { mounts, argv: std::iter::once(program).chain(args).collect(), restricted: true }
    }

    /// Writes a volume's files.
    fn fill(&self, pod: &Pod, spec: &Value, volume: &Value) -> PathBuf {
        let folder = self.volume(pod, &text(volume, "name"));
        for source in items(&volume["projected"], "sources") {
            let object = |plural: &str, source: &Value| {
                let path = format!("/api/v1/namespaces/{}/{plural}/{}", pod.namespace, text(source, "name"));
                self.get(&path).unwrap_or_else(|| panic!("{} has no {path}", self.name()))
            };
            if let Some(source) = source.get("configMap") {
                let map = object("configmaps", source);
                for item in items(source, "items") {
                    write(&folder.join(text(item, "path")), text(&map["data"], &text(item, "key")).as_bytes());
                }
            } else if let Some(source) = source.get("secret") {
                let secret = object("secrets", source);
                for item in items(source, "items") {
                    let data = secret["data"][text(item, "key")].clone();
                    let ByteString(data) = serde_json::from_value(data).expect("a Secret holds base64");
                    write(&folder.join(text(item, "path")), &data);
                }
            } else if let Some(source) = source.get("serviceAccountToken") {
                let token = self.pod_token(pod, &text(spec, "serviceAccountName"), source["audience"].as_str());
                write(&folder.join(text(source, "path")), token.as_bytes());
            }
        }
        folder
    }
}

/// A file that only the pod's user reads.
fn write(path: &Path, data: &[u8]) {
    let folder = path.parent().expect("a file lies in a folder");
    fs::create_dir_all(folder).expect("folder of a file");
    own(folder, "0755");
    fs::write(path, data).expect("file of a volume");
    fs::set_permissions(path, fs::Permissions::from_mode(0o400)).expect("rights of a file");
    own(path, "0400");
}

fn own(path: &Path, mode: &str) {
    succeed(Command::new("chown").arg(format!("{USER}:{USER}")).arg(path));
    succeed(Command::new("chmod").arg(mode).arg(path));
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value[field].as_array().into_iter().flatten()
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}")).to_owned()
}
