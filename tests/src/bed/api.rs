//! Talking to a cluster's API server: kubectl as users do, and plain requests where a test looks often or as somebody else.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cluster::{Cluster, LOOK};
use crate::process::{run, succeed};

/// What a change sends.
pub const MERGE: &str = "application/merge-patch+json";
/// A list of changes.
pub const JSON_PATCH: &str = "application/json-patch+json";
/// A whole object.
pub const JSON: &str = "application/json";

/// A body and what it is.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a> {
    /// Its media type.
    pub kind: &'a str,
    /// The text.
    pub text: &'a str,
}

impl Cluster {
    /// Client certificate and key of the administrator as files, for curl.
    pub(super) fn write_admin_credentials(&self) {
        let text = std::fs::read_to_string(self.dir().join("admin.conf")).expect("admin.conf");
        let config: Value = serde_saphyr::from_str(&text).expect("admin.conf is YAML");
        for (field, file) in [("client-certificate-data", "admin.crt"), ("client-key-data", "admin.key")] {
            let data = config["users"][0]["user"][field].as_str().expect("credentials in admin.conf").to_owned();
            let script = format!("printf %s '{data}' | base64 -d > {file}");
            self.node().sh(&script);
        }
    }

    fn environment(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("KUBECONFIG", self.dir().join("admin.conf"))
            .env("HOME", self.dir())
            .env("PATH", format!("{}:{path}", self.bin("").display()))
            .current_dir(self.dir());
        for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(name);
        }
    }

    /// Runs a shell line as the cluster's administrator, with `kubectl` and `linkspan` on the path; it must succeed.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        let mut command = self.node().command("bash");
        command.args(["-euo", "pipefail", "-c", line]);
        self.environment(&mut command);
        succeed(&mut command)
    }

    /// The same; returns success and both outputs.
    pub fn try_sh(&self, line: &str) -> (bool, String) {
        let mut command = self.node().command("bash");
        command.args(["-uo", "pipefail", "-c", line]);
        self.environment(&mut command);
        let output = run(&mut command);
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// Runs `kubectl ARGS`, which must succeed; returns its standard output.
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        let mut command = self.node().command(self.bin("kubectl"));
        command.args(args);
        self.environment(&mut command);
        succeed(&mut command)
    }

    /// Runs `kubectl ARGS`; returns success and both outputs.
    pub fn try_kubectl(&self, args: &[&str]) -> (bool, String) {
        let mut command = self.node().command(self.bin("kubectl"));
        command.args(args);
        self.environment(&mut command);
        let output = run(&mut command);
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// `kubectl apply -f -`, which must succeed.
    #[track_caller]
    pub fn apply(&self, yaml: &str) {
        let (ok, said) = self.try_stdin(&["apply", "-f", "-"], yaml);
        assert!(ok, "kubectl apply: {said}\n{yaml}");
    }

    /// `kubectl create -f -`, which must succeed.
    #[track_caller]
    pub fn create(&self, yaml: &str) {
        let (ok, said) = self.try_stdin(&["create", "-f", "-"], yaml);
        assert!(ok, "kubectl create: {said}\n{yaml}");
    }

    /// `kubectl apply -f -`; returns success and both outputs.
    pub fn try_apply(&self, yaml: &str) -> (bool, String) {
        self.try_stdin(&["apply", "-f", "-"], yaml)
    }

    fn try_stdin(&self, args: &[&str], input: &str) -> (bool, String) {
        let mut command = self.node().command(self.bin("kubectl"));
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.environment(&mut command);
        let mut child = command.spawn().expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("piped");
        // kubectl that fails early reads no more; what it says tells why.
        let _: std::io::Result<()> = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("kubectl ends");
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// One request as the administrator: HTTP status (0: no answer) and answer.
    pub fn request(&self, method: &str, path: &str, body: Option<Body<'_>>) -> (u16, String) {
        let credentials = ["--cert".to_owned(), "admin.crt".to_owned(), "--key".to_owned(), "admin.key".to_owned()];
        self.curl(method, path, body, &credentials)
    }

    /// One request with a ServiceAccount's token.
    pub fn request_as(&self, token: &str, method: &str, path: &str, body: Option<Body<'_>>) -> (u16, String) {
        self.curl(method, path, body, &["-H".to_owned(), format!("Authorization: Bearer {token}")])
    }

    fn curl(&self, method: &str, path: &str, body: Option<Body<'_>>, credentials: &[String]) -> (u16, String) {
        let mut command = self.node().command("curl");
        command.args(["-sS", "--max-time", "10", "--cacert", "ca.crt", "-X", method, "-w", "\n%{http_code}"]);
        command.args(credentials);
        if let Some(body) = body {
            command.args(["-H", &format!("Content-Type: {}", body.kind), "--data-binary", body.text]);
        }
        command.arg(format!("https://{}:6443{path}", self.address()));
        self.environment(&mut command);
        let output = run(&mut command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (answer, code) = text.rsplit_once('\n').unwrap_or(("", "0"));
        (code.parse().unwrap_or(0), answer.to_owned())
    }

    /// The object or list at `path`, if it is there.
    pub fn get(&self, path: &str) -> Option<Value> {
        let (code, answer) = self.request("GET", path, None);
        if code == 200 { serde_json::from_str(&answer).ok() } else { None }
    }

    /// Whether the API server says that nothing is at `path`. No answer is no such word.
    pub fn absent(&self, path: &str) -> bool {
        self.request("GET", path, None).0 == 404
    }

    /// The objects in the list at `path`.
    ///
    /// # Panics
    /// When the list cannot be read.
    #[track_caller]
    pub fn list(&self, path: &str) -> Vec<Value> {
        let list = self.get(path).unwrap_or_else(|| panic!("{} does not list {path}", self.name()));
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Changes the object at `path`; it must be taken.
    #[track_caller]
    pub fn patch(&self, kind: &str, path: &str, text: &str) {
        let (code, answer) = self.request("PATCH", path, Some(Body { kind, text }));
        assert!((200..300).contains(&code), "{} refuses a change of {path} with {code}: {answer}", self.name());
    }

    /// Waits until the object at `path` is there and as `condition` says; returns it.
    ///
    /// # Panics
    /// When it is not within `limit`; the message holds the object as it was last.
    #[track_caller]
    pub fn wait(&self, path: &str, limit: Duration, condition: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let object = self.get(path);
            if let Some(object) = object.as_ref().filter(|object| condition(object)) {
                return object.clone();
            }
            assert!(start.elapsed() < limit, "{} not as expected after {limit:?}: {path} is {object:?}", self.name());
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the API server says that nothing is at `path`.
    ///
    /// # Panics
    /// When something still is after `limit`.
    #[track_caller]
    pub fn wait_absent(&self, path: &str, limit: Duration) {
        let start = Instant::now();
        while !self.absent(path) {
            assert!(start.elapsed() < limit, "{}: {path} is still there after {limit:?}", self.name());
            std::thread::sleep(LOOK);
        }
    }

    /// A token of a ServiceAccount.
    pub fn token(&self, namespace: &str, account: &str) -> String {
        self.kubectl(&["-n", namespace, "create", "token", account]).trim().to_owned()
    }

    /// A namespace, with the ServiceAccount that pods have by default.
    pub fn namespace(&self, name: &str) {
        self.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"));
    }
}

/// The paths of objects that tests look at most.
pub mod path {
    /// A Service.
    pub fn service(namespace: &str, name: &str) -> String {
        format!("/api/v1/namespaces/{namespace}/services/{name}")
    }

    /// The EndpointSlices of a Service.
    pub fn slices(namespace: &str, service: &str) -> String {
        format!(
            "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io/service-name%3D{service}"
        )
    }

    /// A ServiceImport.
    pub fn import(namespace: &str, name: &str) -> String {
        format!("/apis/multicluster.x-k8s.io/v1beta1/namespaces/{namespace}/serviceimports/{name}")
    }

    /// A ServiceExport.
    pub fn export(namespace: &str, name: &str) -> String {
        format!("/apis/multicluster.x-k8s.io/v1beta1/namespaces/{namespace}/serviceexports/{name}")
    }

    /// A Link.
    pub fn link(name: &str) -> String {
        format!("/apis/linkspan.io/v1alpha1/links/{name}")
    }

    /// A Pod.
    pub fn pod(namespace: &str, name: &str) -> String {
        format!("/api/v1/namespaces/{namespace}/pods/{name}")
    }
}
