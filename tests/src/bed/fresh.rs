//! Two clusters that start with nothing installed, and the machine of somebody who administers both.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::cluster::Cluster;
use super::network;
use crate::process::{run, succeed};
use crate::world::Host;

/// The clusters `east` and `west`, and a machine from which the API servers of both are reached. Dropped, they end.
pub struct Fresh {
    /// The first.
    pub east: Cluster,
    /// The second.
    pub west: Cluster,
    machine: Host,
    bin: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

/// Their networks have one name each: one pair at a time.
static ONE: Mutex<()> = Mutex::new(());
/// Each pair has folders, and places in etcd, of its own.
static PAIRS: AtomicU32 = AtomicU32::new(0);

impl Fresh {
    pub(super) fn start(prefix: &str, bed: &Path) -> Self {
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = PAIRS.fetch_add(1, Ordering::Relaxed);
        let (east, west) = std::thread::scope(|scope| {
            let west = scope.spawn(|| Cluster::start(prefix, bed, 4, &format!("west-{pair}")));
            (Cluster::start(prefix, bed, 3, &format!("east-{pair}")), west.join().expect("cluster west starts"))
        });
        let dir = bed.join(format!("machine-{pair}"));
        fs::create_dir_all(&dir).expect("folder of the machine");
        fs::write(dir.join("kubeconfig"), kubeconfig(&[&east, &west])).expect("the kubeconfig is written");
        // Where commands name files of a checkout.
        symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy"), dir.join("deploy")).expect("link to deploy/");
        // The network between has an interface to each node, and lets nothing through but links.
        let machine = network::host(prefix, "net", "", &dir);
        Self { east, west, machine, bin: bed.join("bin"), _alone: alone }
    }

    /// The clusters.
    pub const fn both(&self) -> [&Cluster; 2] {
        [&self.east, &self.west]
    }

    /// A file on the machine.
    pub fn file(&self, name: &str) -> PathBuf {
        self.machine.dir().join(name)
    }

    fn command(&self, options: &str, line: &str) -> Command {
        let mut command = self.machine.command("bash");
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .args([options, "pipefail", "-c", line])
            .env("KUBECONFIG", self.file("kubeconfig"))
            .env("HOME", self.machine.dir())
            .env("PATH", format!("{}:{path}", self.bin.display()))
            .current_dir(self.machine.dir());
        for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs a shell line with the contexts `east` and `west` in the kubeconfig, and `kubectl` and `linkspan` on the path; it
    /// must succeed.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        succeed(&mut self.command("-euo", line))
    }

    /// The same; returns success and both outputs.
    pub fn try_sh(&self, line: &str) -> (bool, String) {
        let output = run(&mut self.command("-uo", line));
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        for cluster in self.both() {
            if std::thread::panicking() {
                cluster.print_logs();
            }
            cluster.stop();
        }
    }
}

/// One kubeconfig with a context for each cluster, called as the cluster is; the first is the current one.
fn kubeconfig(clusters: &[&Cluster]) -> String {
    let part = |cluster: &Cluster, list: &str, field: &str| {
        let text = fs::read_to_string(cluster.dir().join("admin.conf")).expect("admin.conf");
        let config: Value = serde_saphyr::from_str(&text).expect("admin.conf is YAML");
        json!({ "name": cluster.name(), field: config[list][0][field] })
    };
    let parts = |list: &str, field: &str| clusters.iter().map(|one| part(one, list, field)).collect::<Vec<_>>();
    let context =
        |one: &&Cluster| json!({ "name": one.name(), "context": { "cluster": one.name(), "user": one.name() } });
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": parts("clusters", "cluster"),
        "users": parts("users", "user"),
        "contexts": clusters.iter().map(context).collect::<Vec<_>>(),
        "current-context": clusters[0].name()
    })
    .to_string()
}
