//! What this cluster exports, as the data path looks it up.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use linkspan_proto::configuration::{self, ExportRule, PortTransport};
use linkspan_proto::names::{EndpointName, PortName, ServiceKey};
use tokio::time::Instant;

use super::load::Load;

/// A service of this cluster that peers may reach.
#[derive(Debug)]
pub struct Export {
    /// Namespace and name.
    pub service: ServiceKey,
    /// Who may call; see [`configuration::Export::rules`].
    pub rules: Option<Vec<ExportRule>>,
    /// Whether TCP backends get a PROXY protocol v2 header.
    pub proxy_protocol: bool,
    /// The exported ports.
    pub ports: Vec<Arc<ExportPort>>,
}

/// One port of an [`Export`].
#[derive(Debug)]
pub struct ExportPort {
    /// The service's port number.
    pub port: u16,
    /// What it is reached by.
    pub transport: PortTransport,
    /// Its name.
    pub name: Option<PortName>,
    /// The declared protocol.
    pub app_protocol: Option<String>,
    /// Everything that may be dialled for it, the ready ones first. Nothing else is ever dialled.
    pub(super) backends: Vec<Backend>,
    /// How many of them are ready.
    pub(super) ready: usize,
}

/// One endpoint of an [`ExportPort`].
#[derive(Clone, Debug)]
pub struct Backend {
    /// Address and port to dial.
    pub address: SocketAddr,
    /// Its host name inside a headless service.
    pub name: Option<EndpointName>,
    /// Whether it takes new traffic.
    pub ready: bool,
    /// Outlives the snapshots that name it.
    pub load: Arc<Load>,
}

impl Export {
    /// The exported port of this number and transport.
    #[must_use]
    pub fn port(&self, transport: PortTransport, port: u16) -> Option<&Arc<ExportPort>> {
        self.ports.iter().find(|exported| (exported.transport, exported.port) == (transport, port))
    }

    pub(super) fn build(config: &configuration::Export, previous: Option<&Self>, now: Instant) -> Self {
        let ports = config
            .ports
            .iter()
            .map(|port| {
                let old = previous.and_then(|export| export.port(port.transport, port.port));
                let loads: HashMap<_, _> =
                    old.iter().flat_map(|old| &old.backends).map(|backend| (backend.address, &backend.load)).collect();
                let backend = |endpoint: &configuration::Endpoint| Backend {
                    address: endpoint.address,
                    name: endpoint.name.clone(),
                    ready: endpoint.ready,
                    load: loads
                        .get(&endpoint.address)
                        .map_or_else(|| Arc::new(Load::new(now)), |load| Arc::clone(load)),
                };
                let mut backends: Vec<_> = port.endpoints.iter().map(backend).collect();
                backends.sort_by_key(|backend| !backend.ready);
                Arc::new(ExportPort {
                    port: port.port,
                    transport: port.transport,
                    name: port.name.clone(),
                    app_protocol: port.app_protocol.clone(),
                    ready: backends.iter().filter(|backend| backend.ready).count(),
                    backends,
                })
            })
            .collect();
        Self {
            service: config.service.clone(),
            rules: config.rules.clone(),
            proxy_protocol: config.proxy_protocol,
            ports,
        }
    }
}

impl ExportPort {
    /// Everything that may be dialled for it, ready or not.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The backends that take new traffic.
    #[must_use]
    pub fn all_ready(&self) -> &[Backend] {
        &self.backends[..self.ready]
    }

    /// The backends that take new traffic, of the whole port or of one endpoint.
    pub fn ready<'a>(&'a self, endpoint: Option<&'a EndpointName>) -> impl Iterator<Item = &'a Backend> {
        self.all_ready().iter().filter(move |backend| endpoint.is_none_or(|name| backend.name.as_ref() == Some(name)))
    }

    /// Whether an endpoint of this name exists, ready or not.
    #[must_use]
    pub fn has(&self, endpoint: &EndpointName) -> bool {
        self.backends.iter().any(|backend| backend.name.as_ref() == Some(endpoint))
    }
}
