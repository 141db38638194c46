//! A gate between a controller and its API server: the controller can be killed at an exact write.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::cluster::Cluster;
use super::pods::Pod;
use super::{PATIENCE, network};
use crate::process::{Process, eventually, program};

/// Where the gate listens on the node.
const PORT: u16 = 6444;

/// When the gate shuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shut {
    /// Before the next write has got to the API server.
    Before,
    /// When the API server has done it, and before the controller hears of that.
    After,
}

/// The gate of one controller. Dropping it takes it away; the controller must be started anew then, as after it was put up.
pub struct Gate<'a> {
    cluster: &'a Cluster,
    /// The controller.
    pub pod: Pod,
    control: BufReader<UnixStream>,
    _process: Process,
}

impl Cluster {
    /// Puts a gate in the way of new connections of a pod to the API server. It is open.
    ///
    /// # Panics
    /// When it cannot be put up.
    pub fn gate(&self, pod: &Pod) -> Gate<'_> {
        let control = self.dir().join("gate");
        let _: std::io::Result<()> = std::fs::remove_file(&control);
        let (listen, to) = (format!("{}:{PORT}", self.address()), format!("{}:6443", self.address()));
        let (folder, path) = (self.dir().display().to_string(), control.display().to_string());
        let arguments = ["--listen", &listen, "--to", &to, "--credentials", &folder, "--control", &path];
        let process = self.node().start("gate", program("linkspan-gate"), &arguments);
        let mut stream = None;
        eventually("the gate listens to the test", PATIENCE, || {
            stream = UnixStream::connect(&control).ok();
            stream.is_some()
        });
        let stream = stream.expect("the condition above holds");
        pod.host.nft(&format!(
            "chain out {{ type nat hook output priority -100; ip daddr {} tcp dport 443 dnat ip to {listen}; }}",
            network::API_IP
        ));
        Gate { cluster: self, pod: pod.clone(), control: BufReader::new(stream), _process: process }
    }
}

impl Gate<'_> {
    /// Everything passes.
    pub fn open(&mut self) {
        self.say("open");
    }

    /// Everything passes up to the next write of a mirror.
    pub fn shut_at_write(&mut self, when: Shut) {
        self.say(match when {
            Shut::Before => "before",
            Shut::After => "after",
        });
    }

    /// Waits for that write.
    ///
    /// # Panics
    /// When there is none within `limit`.
    pub fn wait_write(&mut self, limit: Duration) {
        self.hear("hit", limit);
    }

    /// Starts the controller again.
    pub fn start(&self) {
        self.cluster.start_replica(&self.pod);
    }

    /// Kills the controller.
    pub fn kill(&self) {
        self.cluster.crash_replica(&self.pod);
    }

    fn say(&mut self, word: &str) {
        self.control.get_mut().write_all(format!("{word}\n").as_bytes()).expect("the gate listens");
        self.hear("set", PATIENCE);
    }

    fn hear(&mut self, word: &str, limit: Duration) {
        self.control.get_ref().set_read_timeout(Some(limit)).expect("a timeout can be set");
        let mut said = String::new();
        let heard = self.control.read_line(&mut said);
        assert!(
            heard.is_ok() && said.trim() == word,
            "the gate said {said:?} and not {word} within {limit:?}: {heard:?}"
        );
    }
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        self.pod.host.nft_clear();
    }
}
