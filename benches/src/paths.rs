//! The ways from the client to the backend that are measured beside each other.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::certificates::Certificates;
use crate::network::Host;
use crate::process::{CpuTime, Memory, Process};
use crate::{Transport, haproxy, linkspan, nginx, process};

/// How long a start or a link may take before the run is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A way to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    /// No gateway.
    Direct,
    /// Two haproxy, HTTP/2 over mutual TLS between them.
    HaproxyH2,
    /// Two haproxy, a TLS connection for each client connection.
    HaproxyTcp,
    /// Two nginx with the stream module, a TLS connection for each client connection.
    Nginx,
    /// Two sites, gateway and controller each a process of its own.
    Linkspan,
}

impl Name {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 5] = [Self::Direct, Self::HaproxyH2, Self::HaproxyTcp, Self::Nginx, Self::Linkspan];

    /// As the user reads and types it.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::HaproxyH2 => "haproxy-h2",
            Self::HaproxyTcp => "haproxy-tcp",
            Self::Nginx => "nginx",
            Self::Linkspan => "linkspan",
        }
    }

    /// Whether it is a pair that Linkspan is compared with.
    pub(crate) const fn is_other_pair(self) -> bool {
        matches!(self, Self::HaproxyH2 | Self::HaproxyTcp | Self::Nginx)
    }

    /// Whether it is one of those that carry connections one by one.
    pub(crate) const fn is_tcp_pair(self) -> bool {
        matches!(self, Self::HaproxyTcp | Self::Nginx)
    }

    /// Why it cannot run on this machine, and how to change that.
    pub(crate) fn missing(self) -> Option<&'static str> {
        match self {
            Self::HaproxyH2 | Self::HaproxyTcp if process::find("haproxy").is_none() => {
                Some("haproxy is not installed (Debian: haproxy)")
            }
            Self::Nginx => nginx::missing(),
            _ => None,
        }
    }
}

/// Where a load generator sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Targets {
    /// HTTP/1.1.
    pub(crate) http: SocketAddr,
    /// HTTP/2 with prior knowledge, where there is a backend for it.
    pub(crate) h2: Option<SocketAddr>,
    /// Raw TCP, where the path carries it.
    pub(crate) tcp: Option<SocketAddr>,
}

/// What every path needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// The run's folder.
    pub(crate) root: PathBuf,
    /// The client's host, with the first gateway.
    pub(crate) east: Host,
    /// The backend's host, with the second gateway.
    pub(crate) west: Host,
    /// The backends as west sees them.
    pub(crate) backends: Targets,
    /// The backends as east sees them.
    pub(crate) direct: Targets,
    /// For haproxy and nginx.
    pub(crate) certificates: Certificates,
    /// The program measured.
    pub(crate) linkspan: PathBuf,
    /// What carries its link.
    pub(crate) transport: Transport,
    /// Threads of each gateway's data path.
    pub(crate) workers: u16,
    /// Descriptors that a process may have.
    pub(crate) descriptors: u64,
}

/// A running path; dropping it ends its gateways.
#[derive(Debug)]
pub(crate) struct Path {
    /// Which.
    pub(crate) name: Name,
    /// Its near end.
    pub(crate) targets: Targets,
    /// By site: `east` and `west`, or none.
    pub(crate) gateways: Vec<(&'static str, Process)>,
    /// What gives the gateways their configuration and carries nothing itself: not measured.
    pub(crate) controllers: Vec<Process>,
}

impl Path {
    /// Starts the gateways; nothing has gone through them yet.
    pub(crate) fn start(name: Name, setting: &Setting) -> anyhow::Result<Self> {
        match name {
            Name::Direct => Ok(Self { name, targets: setting.direct, gateways: Vec::new(), controllers: Vec::new() }),
            Name::HaproxyH2 | Name::HaproxyTcp => haproxy::start(name, setting),
            Name::Nginx => nginx::start(setting),
            Name::Linkspan => linkspan::start(setting),
        }
    }

    /// Fails when a gateway has ended.
    pub(crate) fn must_run(&mut self) -> anyhow::Result<()> {
        let label = self.name.label();
        self.controllers.iter_mut().try_for_each(|process| process.must_run("a controller"))?;
        self.gateways.iter_mut().try_for_each(|(site, process)| process.must_run(&format!("{label} in {site}")))
    }

    /// CPU time of each gateway so far.
    pub(crate) fn cpu(&self) -> Vec<(&'static str, CpuTime)> {
        self.gateways.iter().map(|(site, process)| (*site, CpuTime::of(process.id()))).collect()
    }

    /// Memory of each gateway.
    pub(crate) fn memory(&self) -> Vec<Memory> {
        self.gateways.iter().filter_map(|(_, process)| process::memory(process.id())).collect()
    }
}
