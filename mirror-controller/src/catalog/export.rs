//! One wish to export: from the objects about one service to what peers are told and may reach. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use linkspan_proto::configuration::{Endpoint, Export, ExportPort, ExportRule};
use linkspan_proto::exchange::{CatalogueEntry, CataloguePort, MAX_ENDPOINTS, Protocol};
use linkspan_proto::generated::exchange as wire;
use linkspan_proto::metadata::{Exclusions, is_key};
use linkspan_proto::names::{EndpointName, Namespace, PortName, ServiceKey};
use linkspan_proto::resources::{ConditionStatus, PROXY_PROTOCOL_ANNOTATION, ServiceExport};
use linkspan_runtime::text::Clean;
use sha2::{Digest, Sha256};

use super::details::{self, OPAQUE, OpaquePorts};
use super::snapshot::ExportReport;
use crate::labels;
use crate::reserved;
use crate::verdict::Verdict;

/// The objects about one service.
pub(super) struct Wish<'a> {
    pub(super) key: &'a ServiceKey,
    /// `None`: exported by Linkerd's label on the Service.
    pub(super) export: Option<&'a ServiceExport>,
    pub(super) service: Option<&'a Service>,
    pub(super) slices: Vec<&'a EndpointSlice>,
    /// Rules of the policies that select it; `None` when no policy does.
    pub(super) rules: Option<Vec<ExportRule>>,
    /// Endpoints in here are mirrors of other clusters' services.
    pub(super) mirror_addresses: IpNet,
    /// Labels and annotations that stay at home.
    pub(super) exclusions: &'a Exclusions,
    /// Where Linkspan is, in a Kubernetes cluster.
    pub(super) namespace: Option<&'a Namespace>,
}

/// What came of it.
pub(super) struct Outcome {
    pub(super) report: ExportReport,
    pub(super) exported: Option<(CatalogueEntry, Export)>,
}

/// Why a service is not exported: `Valid` is false, or `Ready` is.
enum Refusal {
    Invalid(&'static str, String),
    Failed(String),
}

impl Wish<'_> {
    /// Decides.
    pub(super) fn decide(self) -> Outcome {
        let generation = self.export.and_then(|export| export.metadata.generation);
        let by_label = self.export.is_none();
        let valid = || Verdict::new("Valid", true, "Valid", "the Service can be exported");
        let (verdicts, exported) = match self.build() {
            Ok((entry, export, message)) => {
                let ready = Verdict::new("Ready", true, "Exported", message);
                (vec![valid(), ready], Some((entry, export)))
            }
            Err(Refusal::Invalid(reason, message)) => {
                let pending = Verdict::new("Ready", false, "Pending", "not exported: see Valid");
                (vec![Verdict::new("Valid", false, reason, message), pending], None)
            }
            Err(Refusal::Failed(message)) => (vec![valid(), Verdict::new("Ready", false, "Failed", message)], None),
        };
        Outcome { report: ExportReport { generation, by_label, verdicts }, exported }
    }

    fn build(self) -> Result<(CatalogueEntry, Export, String), Refusal> {
        let service = self.service.ok_or_else(|| {
            let what = "mirrors of other clusters' services do not count: they are never exported again";
            let message = format!("there is no Service {} ({what}); create it, or remove the export", self.key);
            Refusal::Invalid("NoService", message)
        })?;
        let spec = service.spec.clone().unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            return Err(Refusal::Invalid(
                "InvalidServiceType",
                "a Service of type ExternalName has no endpoints to export".to_owned(),
            ));
        }
        if service.metadata.labels.iter().flatten().any(|(label, _)| labels::marks_a_mirror(label)) {
            return Err(Refusal::Invalid(
                "InvalidServiceType",
                "a mirror of another cluster's service is never exported again".to_owned(),
            ));
        }
        if let Some(refusal) = reserved::refusal(self.key, self.namespace) {
            return Err(Refusal::Failed(refusal));
        }
        let proxy_protocol = self.proxy_protocol(service)?;
        let headless = spec.cluster_ip.as_deref() == Some("None");
        let opaque = OpaquePorts::of(service);
        let ports = ports(spec.ports.as_deref().unwrap_or_default(), &opaque)?;
        let backends = Backends::find(&ports, &self.slices, self.mirror_addresses, headless);
        let mut message = backends.message(&ports);
        let carried = details::carried(service, &spec, self.export, self.exclusions);
        message.extend(opaque.complaint().into_iter().chain(carried.complaint()));
        let entry = CatalogueEntry {
            service: self.key.clone(),
            headless,
            ports: ports
                .iter()
                .map(|port| CataloguePort {
                    port: port.number,
                    name: port.name.clone(),
                    protocol: port.protocol,
                    app_protocol: port.app_protocol.clone(),
                    ready: backends.ready(port),
                    total: Some(backends.total(port)),
                })
                .collect(),
            endpoints: if headless { backends.names() } else { Vec::new() },
            labels: carried.labels,
            details: carried.details,
        };
        // What we send must pass the checks of whoever receives it: one entry that does not would cost the peer all others.
        CatalogueEntry::try_from(wire::Entry::from(entry.clone()))
            .map_err(|error| Refusal::Failed(format!("peers would refuse it: {error}")))?;
        let export = Export {
            service: self.key.clone(),
            ports: ports
                .into_iter()
                .filter_map(|port| {
                    Some(ExportPort {
                        transport: port.protocol.transport()?,
                        port: port.number,
                        endpoints: backends.of(&port),
                        name: port.name,
                        app_protocol: port.app_protocol,
                    })
                })
                .collect(),
            rules: self.rules,
            proxy_protocol,
        };
        Ok((entry, export, message))
    }

    fn proxy_protocol(&self, service: &Service) -> Result<bool, Refusal> {
        let metadata = self.export.map_or(&service.metadata, |export| &export.metadata);
        match metadata.annotations.as_ref().and_then(|all| all.get(PROXY_PROTOCOL_ANNOTATION)).map(String::as_str) {
            None => Ok(false),
            Some("v2") => Ok(true),
            // A backend that waits for the header must not get connections without it.
            Some(other) => Err(Refusal::Failed(format!(
                "annotation {PROXY_PROTOCOL_ANNOTATION}: `{}` is not known; write v2, or remove it",
                Clean(other)
            ))),
        }
    }
}

/// A port of the Service, checked.
struct Port {
    number: u16,
    protocol: Protocol,
    name: Option<PortName>,
    app_protocol: Option<String>,
    /// Where a slice without port numbers of its own is reached. `None`: at a port that pods name, which such a slice has not.
    target: Option<u16>,
}

fn ports(ports: &[ServicePort], opaque: &OpaquePorts) -> Result<Vec<Port>, Refusal> {
    let mut checked = Vec::with_capacity(ports.len());
    for (index, port) in ports.iter().enumerate() {
        let failed = |field: &str, what: String| Refusal::Failed(format!("spec.ports[{index}].{field}: {what}"));
        let number = positive(port.port).ok_or_else(|| failed("port", format!("{} is not a port", port.port)))?;
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let protocol = Protocol::from_kubernetes(protocol)
            .ok_or_else(|| failed("protocol", format!("`{}` is neither TCP, UDP nor SCTP", Clean(protocol))))?;
        let name = port
            .name
            .as_deref()
            .filter(|name| !name.is_empty())
            .map(PortName::parse)
            .transpose()
            .map_err(|error| failed("name", error.to_string()))?;
        let target = match &port.target_port {
            Some(IntOrString::Int(target)) => Some(positive(*target).unwrap_or(number)),
            Some(IntOrString::String(_)) => None,
            None => Some(number),
        };
        // Whoever says both means "do not look into it" more than the protocol that nobody then looks for.
        let app_protocol = if opaque.contains(number) {
            Some(OPAQUE.to_owned())
        } else {
            port.app_protocol.clone().filter(|it| is_key(it))
        };
        checked.push(Port { number, protocol, name, app_protocol, target });
    }
    if checked.is_empty() {
        return Err(Refusal::Failed("spec.ports: the Service has no ports".to_owned()));
    }
    checked.sort_by_key(|port| (port.number, port.protocol));
    Ok(checked)
}

fn positive(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

/// The endpoints behind each port.
struct Backends {
    by_port: BTreeMap<(u16, Protocol), BTreeSet<Endpoint>>,
    /// Addresses that were left out because they are mirrors.
    mirrors: usize,
    /// Endpoints that were left out because their service has too many.
    surplus: usize,
}

impl Backends {
    fn find(ports: &[Port], slices: &[&EndpointSlice], mirror_addresses: IpNet, headless: bool) -> Self {
        let mut found = Self { by_port: BTreeMap::new(), mirrors: 0, surplus: 0 };
        let mut names = BTreeSet::new();
        for slice in slices {
            let none = Vec::new();
            let slice_ports = slice.ports.as_ref().unwrap_or(&none);
            for endpoint in &slice.endpoints {
                // Consumers look at the first address only (EndpointSlice's own documentation). Other than IP addresses
                // exist too (`addressType: FQDN`); they are nowhere to connect to.
                let Some(address) = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok()) else {
                    continue;
                };
                if mirror_addresses.contains(&address) {
                    found.mirrors += 1;
                    continue;
                }
                let name = headless.then(|| endpoint_name(endpoint, address));
                if let Some(name) = &name
                    && !names.contains(name)
                {
                    if names.len() >= MAX_ENDPOINTS {
                        found.surplus += 1;
                        continue;
                    }
                    names.insert(name.clone());
                }
                // `ready: null` means ready (EndpointSlice's own documentation).
                let conditions = endpoint.conditions.as_ref();
                let ready = conditions.is_none_or(|conditions| conditions.ready != Some(false));
                // An endpoint that is shutting down is no capacity that is missing: a rolling update must not look like an
                // outage. By its name it is still known.
                if !ready && !headless && conditions.is_some_and(|conditions| conditions.terminating == Some(true)) {
                    continue;
                }
                for port in ports {
                    for number in numbers(port, slice_ports) {
                        let endpoint =
                            Endpoint { address: SocketAddr::new(address, number), name: name.clone(), ready };
                        found.by_port.entry((port.number, port.protocol)).or_default().insert(endpoint);
                    }
                }
            }
        }
        found
    }

    fn of(&self, port: &Port) -> Vec<Endpoint> {
        self.by_port.get(&(port.number, port.protocol)).into_iter().flatten().cloned().collect()
    }

    fn ready(&self, port: &Port) -> u32 {
        let ready =
            self.by_port.get(&(port.number, port.protocol)).into_iter().flatten().filter(|endpoint| endpoint.ready);
        u32::try_from(ready.count()).unwrap_or(u32::MAX)
    }

    fn total(&self, port: &Port) -> u32 {
        let all = self.by_port.get(&(port.number, port.protocol)).map_or(0, BTreeSet::len);
        u32::try_from(all).unwrap_or(u32::MAX)
    }

    /// Names of the endpoints of a headless service; one that several addresses share is ready when any of them is.
    fn names(&self) -> Vec<(EndpointName, bool)> {
        let mut names: BTreeMap<EndpointName, bool> = BTreeMap::new();
        for endpoint in self.by_port.values().flatten() {
            if let Some(name) = &endpoint.name {
                *names.entry(name.clone()).or_default() |= endpoint.ready;
            }
        }
        names.into_iter().collect()
    }

    fn message(&self, ports: &[Port]) -> String {
        let all: BTreeSet<_> = self.by_port.values().flatten().map(|endpoint| endpoint.address.ip()).collect();
        let ready: BTreeSet<_> = self
            .by_port
            .values()
            .flatten()
            .filter(|endpoint| endpoint.ready)
            .map(|endpoint| endpoint.address.ip())
            .collect();
        let mut message = format!("{} of {} endpoints are ready", ready.len(), all.len());
        let without: Vec<_> = ports
            .iter()
            .filter(|port| !self.by_port.contains_key(&(port.number, port.protocol)))
            .map(|port| port.name.as_ref().map_or_else(|| port.number.to_string(), ToString::to_string))
            .collect();
        if !without.is_empty() {
            message += &format!("; no EndpointSlice has an endpoint for port {}", without.join(", "));
        }
        if self.mirrors > 0 {
            message += &format!("; {} endpoints are mirrors of other clusters' services and left out", self.mirrors);
        }
        if self.surplus > 0 {
            message += &format!("; {} endpoints beyond {MAX_ENDPOINTS} are left out", self.surplus);
        }
        if ports.iter().any(|port| port.protocol.transport().is_none()) {
            message += "; only the TCP and UDP ports can be reached";
        }
        message
    }
}

/// The port numbers at which a slice's endpoints serve `port`: slices name the port as the Service does.
fn numbers(port: &Port, slice_ports: &[EndpointPort]) -> Vec<u16> {
    if slice_ports.is_empty() {
        return port.target.into_iter().collect();
    }
    let wanted = port.name.as_ref().map_or("", |name| name.as_str());
    slice_ports
        .iter()
        .filter(|slice_port| {
            slice_port.name.as_deref().unwrap_or_default() == wanted
                && slice_port.protocol.as_deref().unwrap_or("TCP") == port.protocol.as_str()
        })
        // A port without a number means all ports (EndpointSlice's own documentation).
        .filter_map(|slice_port| slice_port.port.map_or(port.target, positive))
        .collect()
}

/// The name by which one endpoint of a headless service is called. Never made of its address: a catalogue carries none.
fn endpoint_name(endpoint: &SliceEndpoint, address: IpAddr) -> EndpointName {
    let target = endpoint.target_ref.as_ref().and_then(|target| target.name.as_deref());
    let given = endpoint.hostname.as_deref().into_iter().chain(target).find_map(|name| EndpointName::parse(name).ok());
    given.unwrap_or_else(|| {
        let digest = Sha256::digest(format!("linkspan endpoint {address}"));
        let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        EndpointName::parse(&format!("e-{hex}")).expect("a letter, a hyphen and hex digits are a label")
    })
}

/// Not known yet; for exports that wait for something.
pub(super) fn waiting(generation: Option<i64>, by_label: bool, message: &str) -> ExportReport {
    ExportReport {
        generation,
        by_label,
        verdicts: vec![
            Verdict::new("Valid", true, "Valid", "the Service can be exported"),
            Verdict::new("Ready", ConditionStatus::False, "Failed", message),
        ],
    }
}
