//! The test bed: whole Kubernetes clusters side by side, of real components (tests/kubernetes), with Linkspan installed.
//!
//! ```text
//! Bed           -- the network between, etcd; forwards the UDP ports of links and nothing else
//!   Cluster     -- API server, controllers, kube-proxy, CoreDNS; pods 10.244.0.0/16, services 10.96.0.0/16 in every one
//!     Pod       -- a network namespace, its Pod object, what a kubelet says of it
//!     Linkspan  -- installed by the commands that users type; replicas are pods
//! ```
//!
//! One bed serves all tests of a program. A test works in Kubernetes namespaces of its own, beside others; one that takes a part
//! away, or measures time, takes the bed [`alone`]. Whatever becomes of the test program, a process that outlives it
//! removes all: every process of the bed runs in a network namespace whose name begins with the bed's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, Once, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use crate::process::{Process, eventually, program};

pub mod cluster;

pub mod api;

pub mod pods;

pub mod linkspan;

pub mod audit;

mod fresh;

pub mod gate;

mod kubelet;

mod network;

pub use cluster::Cluster;
pub use fresh::Fresh;
pub use pods::Pod;

/// How long a part may take until it works, and a change until it is seen everywhere: twice what the suite's slowest
/// machine needs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The programs of the clusters, with what they need of the machine: program and Debian package.
const NEEDED: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("sysctl", "procps"),
    ("dig", "dnsutils"),
    ("curl", "curl"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
];

/// Several clusters and the network between them.
pub struct Bed {
    dir: PathBuf,
    prefix: String,
    etcd: Mutex<Process>,
    clusters: [OnceLock<Cluster>; 3],
    bare: OnceLock<Cluster>,
}

/// The bed beside other tests.
pub struct Shared(RwLockReadGuard<'static, ()>);

/// The bed without other tests.
pub struct Alone(RwLockWriteGuard<'static, ()>);

/// Whether a Kubernetes is there to test against. `LINKSPAN_REQUIRE_KUBERNETES=1` (CI) makes a missing one a failure.
///
/// # Panics
/// When it is required and cannot be had.
pub fn available() -> bool {
    let required = std::env::var_os("LINKSPAN_REQUIRE_KUBERNETES").is_some_and(|v| v == "1");
    if !crate::world::available() {
        assert!(!required, "LINKSPAN_REQUIRE_KUBERNETES=1, and clusters need root for their network namespaces");
        return false;
    }
    match testbed() {
        Ok(_) => true,
        Err(missing) => {
            assert!(!required, "LINKSPAN_REQUIRE_KUBERNETES=1, and there is no Kubernetes to test against: {missing}");
            eprintln!("SKIPPED: no test against a real Kubernetes: {missing}");
            false
        }
    }
}

/// The path of the components, or what is missing.
fn testbed() -> &'static Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(|| {
        for (tool, package) in NEEDED {
            let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output();
            if !found.is_ok_and(|output| output.status.success()) {
                return Err(format!("no {tool}; install it: apt-get install {package}"));
            }
        }
        let build = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes/build");
        // Building takes minutes; that is `tests/run`'s business, or that of whoever types it.
        let check = Command::new(build).arg("--check").output().map_err(|error| format!("{build}: {error}"))?;
        if check.status.success() {
            return Ok(PathBuf::from(String::from_utf8_lossy(&check.stdout).trim()));
        }
        let why = String::from_utf8_lossy(&check.stderr).trim().to_owned();
        Err(format!("{why}; tests/kubernetes/build builds it where Go is{}", assets()))
    })
}

/// What a folder of prebuilt binaries has of the components, for those who have no Go.
fn assets() -> String {
    let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) else {
        return " (KUBEBUILDER_ASSETS is not set either)".to_owned();
    };
    let all = ["etcd", "kube-apiserver", "kubectl", "kube-controller-manager", "kube-proxy", "coredns"];
    let missing: Vec<&str> = all.into_iter().filter(|name| !folder.join(name).exists()).collect();
    format!(
        "; KUBEBUILDER_ASSETS={} gives etcd, kube-apiserver and kubectl to that build and is no cluster by itself (not there: {})",
        folder.display(),
        missing.join(", ")
    )
}

/// Serializes those that disturb with those that are disturbed.
static USE: RwLock<()> = RwLock::new(());

static BED: OnceLock<Result<Bed, String>> = OnceLock::new();

fn bed() -> &'static Bed {
    let bed = BED.get_or_init(|| {
        std::panic::catch_unwind(Bed::start).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.unwrap_or_else(|| "see the first failed test".to_owned())
        })
    });
    match bed {
        Ok(bed) => {
            static KUBELET: Once = Once::new();
            KUBELET.call_once(|| drop(std::thread::spawn(restart_ended)));
            bed
        }
        Err(error) => panic!("the test bed did not start: {error}"),
    }
}

/// What a kubelet does for a container that ended by itself: it starts it again.
fn restart_ended() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let Some(Ok(bed)) = BED.get() else { return };
        bed.started().for_each(Cluster::restart_ended);
    }
}

/// The bed, with other tests at work in it.
pub fn shared() -> Shared {
    Shared(USE.read().unwrap_or_else(PoisonError::into_inner))
}

/// The bed, with no other test at work in it.
pub fn alone() -> Alone {
    Alone(USE.write().unwrap_or_else(PoisonError::into_inner))
}

impl std::ops::Deref for Shared {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        let () = *self.0;
        bed()
    }
}

impl std::ops::Deref for Alone {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        let () = *self.0;
        bed()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        tell_if_failed();
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        tell_if_failed();
    }
}

/// After a failure the logs stay, and the end of those of Linkspan is printed: CI keeps nothing else.
fn tell_if_failed() {
    if !std::thread::panicking() {
        return;
    }
    // A bed that never started has told already.
    let Some(Ok(bed)) = BED.get() else { return };
    let _: std::io::Result<()> = fs::write(bed.dir.join("failed"), "");
    eprintln!("logs of the clusters: {}", bed.dir.display());
    bed.started().for_each(Cluster::print_logs);
}

impl Bed {
    fn start() -> Self {
        let testbed = testbed().as_ref().expect("asked before");
        // Names of network interfaces and paths of sockets are short.
        let prefix = format!("lk{}", std::process::id());
        let dir = PathBuf::from(format!("/tmp/{prefix}"));
        fs::create_dir_all(dir.join("bin")).expect("folder of the bed");
        watch_over(&prefix, &dir);
        // Pods run under a user who need not be able to read the place where the programs were built.
        for name in ["linkspan", "linkspan-gateway", "linkspan-mirror-controller"] {
            fs::copy(program(name), dir.join("bin").join(name)).expect("program is copied");
        }
        for name in ["etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "coredns", "kubectl", "certs"] {
            std::os::unix::fs::symlink(testbed, dir.join("bin").join(name)).expect("name of a component");
        }
        network::between(&prefix);
        let etcd = etcd(&prefix, &dir);
        Self { dir, prefix, etcd: Mutex::new(etcd), clusters: [const { OnceLock::new() }; 3], bare: OnceLock::new() }
    }

    fn started(&self) -> impl Iterator<Item = &Cluster> {
        self.clusters.iter().chain([&self.bare]).filter_map(OnceLock::get)
    }

    /// The first cluster, linked with the second.
    pub fn a(&self) -> &Cluster {
        self.pair().0
    }

    /// The second cluster, linked with the first.
    pub fn b(&self) -> &Cluster {
        self.pair().1
    }

    /// The first two clusters: Linkspan is installed, and each has a Link to the other.
    pub fn pair(&self) -> (&Cluster, &Cluster) {
        static LINKED: OnceLock<()> = OnceLock::new();
        let (a, b) = std::thread::scope(|scope| {
            let b = scope.spawn(|| self.cluster(1));
            (self.cluster(0), b.join().expect("cluster b starts"))
        });
        LINKED.get_or_init(|| linkspan::link(a, b));
        (a, b)
    }

    /// A third cluster with Linkspan installed and no Link. Whoever links it takes the Links away again.
    pub fn c(&self) -> &Cluster {
        self.cluster(2)
    }

    /// An API server with one controller and one gateway of Linkspan and nothing else, for thousands of objects. Links go
    /// out from it only.
    pub fn bare(&self) -> &Cluster {
        self.bare.get_or_init(|| {
            let cluster = Cluster::start_bare(&self.prefix, &self.dir);
            linkspan::install_bare(&cluster);
            cluster
        })
    }

    /// A host on the network between, for a standalone site that clusters dial at port 4143.
    pub fn site_host(&self, name: &str, address: &str) -> crate::world::Host {
        network::node(&self.prefix, name, address);
        self.between().sh("nft add rule inet between forward udp dport 4143 accept");
        // Paths of sockets are short.
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).expect("folder of the site");
        network::host(&self.prefix, name, address, &dir)
    }

    fn cluster(&self, index: usize) -> &Cluster {
        self.clusters[index].get_or_init(|| {
            let cluster = Cluster::start(&self.prefix, &self.dir, index, ["a", "b", "c"][index]);
            linkspan::install(&cluster);
            cluster
        })
    }

    /// Two more clusters, `east` and `west`, without Linkspan and for the caller alone. They end with what is returned.
    pub fn fresh(&self) -> Fresh {
        Fresh::start(&self.prefix, &self.dir)
    }

    /// The network between the clusters, for faults on the way.
    pub fn between(&self) -> crate::world::Host {
        network::host(&self.prefix, "net", "", &self.dir)
    }

    /// Lets etcd forget all revisions before now, as it does by itself every five minutes: watches from before end with 410.
    ///
    /// # Panics
    /// When etcd does not answer.
    pub fn compact(&self) {
        assert!(self.etcd.lock().unwrap_or_else(PoisonError::into_inner).running(), "etcd has ended");
        let socket = self.dir.join("etcd.sock");
        let call = |path: &str, body: &str| {
            let url = format!("http://localhost/v3/kv/{path}");
            let mut curl = Command::new("curl");
            curl.args(["-fsS", "--unix-socket"]).arg(&socket).args(["-d", body]).arg(url);
            serde_json::from_str::<serde_json::Value>(&crate::process::succeed(&mut curl)).expect("etcd answers JSON")
        };
        let state = call("range", r#"{"key": "AA=="}"#);
        let revision = state["header"]["revision"].as_str().expect("a revision").to_owned();
        call("compaction", &format!(r#"{{"revision": "{revision}", "physical": true}}"#));
    }
}

/// One etcd carries all clusters, each under a prefix of its own. It listens on unix sockets, which API servers reach from any
/// network namespace; the advertised addresses must have a host and a port and are used by nobody.
fn etcd(prefix: &str, dir: &Path) -> Process {
    network::namespace(&format!("{prefix}-etcd"));
    let unix = |name: &str| format!("unix://{}", dir.join(name).display());
    let mut command = network::exec(&format!("{prefix}-etcd"), dir.join("bin/etcd"));
    command.args(["--name", "etcd", "--unsafe-no-fsync", "--log-level", "warn", "--data-dir"]).arg(dir.join("etcd"));
    command.args(["--listen-client-urls", &unix("etcd.sock"), "--advertise-client-urls", "http://localhost:2379"]);
    command.args(["--listen-peer-urls", &unix("etcd-peer.sock")]);
    command.args(["--initial-advertise-peer-urls", "http://localhost:2380"]);
    command.args(["--initial-cluster", "etcd=http://localhost:2380"]);
    let process = Process::start("etcd", command, &dir.join("etcd.log"));
    eventually("etcd listens", PATIENCE, || dir.join("etcd.sock").exists());
    process
}

/// Starts what cleans up when this program has ended, however it ended: it reads from a pipe that nobody writes to.
fn watch_over(prefix: &str, dir: &Path) {
    const SCRIPT: &str = r#"
        cat > /dev/null
        names="$(ip netns list | awk '{print $1}' | grep "^$1-")"
        for name in $names; do ip netns pids "$name" | xargs -r kill -KILL; done
        for name in $names; do ip netns delete "$name"; rm -rf "/etc/netns/$name"; done
        rmdir /etc/netns
        while read -r folder; do rmdir "$folder"; done < "$2/made"
        if [ -e "$2/failed" ] || [ -n "$LINKSPAN_KEEP" ]; then rm -rf "$2/bin" "$2/etcd"; else rm -rf "$2"; fi
    "#;
    // Where pods mount their volumes; the machine may run Linkspan itself, whose folders stay.
    let made: String = ["/etc/linkspan", "/var/lib/linkspan"]
        .iter()
        .filter(|path| fs::create_dir(path).is_ok())
        .map(|path| format!("{path}\n"))
        .collect();
    fs::write(dir.join("made"), made).expect("folder of the bed is writable");
    let mut command = Command::new("setsid");
    command.args(["sh", "-c", SCRIPT, "sh", prefix]).arg(dir);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("what cleans up starts");
    // The pipe stays open until this program ends.
    std::mem::forget(child);
}
