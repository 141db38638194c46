//! Manifests in the shape users write them.

use std::fmt::Write as _;

/// A Service with its EndpointSlice, and a ServiceExport unless [`Service::hidden`].
#[derive(Clone, Debug)]
pub struct Service {
    namespace: String,
    name: String,
    ports: Vec<Port>,
    endpoints: Vec<(String, bool)>,
    exported: bool,
    proxy_protocol: bool,
    headless: bool,
}

#[derive(Clone, Debug)]
struct Port {
    name: String,
    number: u16,
    app_protocol: Option<String>,
    udp: bool,
}

impl Service {
    /// A service `namespace/name` whose one endpoint is 127.0.0.1.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ports: Vec::new(),
            endpoints: vec![("127.0.0.1".to_owned(), true)],
            exported: true,
            proxy_protocol: false,
            headless: false,
        }
    }

    /// Adds a port whose number is the same at service and backend.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16, app_protocol: Option<&str>) -> Self {
        let app_protocol = app_protocol.map(str::to_owned);
        self.ports.push(Port { name: name.to_owned(), number: port, app_protocol, udp: false });
        self
    }

    /// The same for datagrams.
    #[must_use]
    pub fn udp_port(mut self, name: &str, port: u16) -> Self {
        self.ports.push(Port { name: name.to_owned(), number: port, app_protocol: None, udp: true });
        self
    }

    /// Replaces the endpoints: address and readiness.
    #[must_use]
    pub fn endpoints(mut self, endpoints: &[(&str, bool)]) -> Self {
        self.endpoints = endpoints.iter().map(|(a, r)| ((*a).to_owned(), *r)).collect();
        self
    }

    /// Not exported.
    #[must_use]
    pub fn hidden(mut self) -> Self {
        self.exported = false;
        self
    }

    /// Backends get a PROXY v2 header.
    #[must_use]
    pub fn proxy_protocol(mut self) -> Self {
        self.proxy_protocol = true;
        self
    }

    /// A headless service; its endpoints are named `<name>-0`, `<name>-1`, ...
    #[must_use]
    pub fn headless(mut self) -> Self {
        self.headless = true;
        self
    }

    /// The YAML documents.
    pub fn yaml(&self) -> String {
        let (namespace, name) = (&self.namespace, &self.name);
        let mut text =
            format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n");
        if self.headless {
            text.push_str("  clusterIP: None\n");
        }
        text.push_str("  ports:\n");
        let protocol = |port: &Port| if port.udp { ", protocol: UDP" } else { "" };
        for port in &self.ports {
            let app_protocol = port.app_protocol.as_ref().map(|p| format!(", appProtocol: {p}")).unwrap_or_default();
            let (port_name, number, protocol) = (&port.name, port.number, protocol(port));
            _ = writeln!(text, "    - {{name: {port_name}, port: {number}{protocol}{app_protocol}}}");
        }
        _ = write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  \
             namespace: {namespace}\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\nendpoints:\n"
        );
        for (index, (address, ready)) in self.endpoints.iter().enumerate() {
            let hostname = if self.headless { format!(", hostname: {name}-{index}") } else { String::new() };
            _ = writeln!(text, "  - {{addresses: [\"{address}\"], conditions: {{ready: {ready}}}{hostname}}}");
        }
        text.push_str("ports:\n");
        for port in &self.ports {
            let (port_name, number, protocol) = (&port.name, port.number, protocol(port));
            _ = writeln!(text, "  - {{name: {port_name}, port: {number}{protocol}}}");
        }
        if self.exported {
            let annotations = if self.proxy_protocol { ", annotations: {linkspan.io/proxy-protocol: v2}" } else { "" };
            _ = write!(
                text,
                "---\napiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\n\
                 metadata: {{name: {name}, namespace: {namespace}{annotations}}}\n"
            );
        }
        text
    }
}

/// A ClusterTrafficPolicy: tiers of (cluster, weight) and the healthy percentage each needs.
pub fn traffic_policy(namespace: &str, service: &str, tiers: &[(&[(&str, u32)], u8)]) -> String {
    let mut text = format!(
        "apiVersion: linkspan.io/v1alpha1\nkind: ClusterTrafficPolicy\n\
         metadata: {{name: {service}, namespace: {namespace}}}\nspec:\n  service: {service}\n  tiers:\n"
    );
    for (clusters, minimum) in tiers {
        let weights: Vec<String> = clusters.iter().map(|(c, w)| format!("{c}: {w}")).collect();
        _ = writeln!(text, "    - {{clusters: {{{}}}, minHealthyPercent: {minimum}}}", weights.join(", "));
    }
    text
}
