//! A site that exports thousands of services, for the tests of scale.

use std::fmt::Write as _;

use crate::site::Site;

/// Files of such a site; each holds as many services, and one headless service by which a change of the file is seen.
pub const FILES: usize = 50;

/// The namespaces that the services are in.
pub const NAMESPACES: usize = 10;

/// The headless services are all in the namespace of this file, in which their names are the first: where there are not enough
/// descriptors for all ports, theirs are bound.
pub const MARKED: usize = 0;

/// The site, with as many services in each file.
pub struct Bulk {
    /// The site.
    pub site: Site,
    /// Services of a file, without the headless one.
    pub services: usize,
}

impl Bulk {
    /// A site with all its files.
    pub fn new(site: Site, services: usize) -> Self {
        let bulk = Self { site, services };
        for file in 0..FILES {
            bulk.write_services(file, "blue");
            bulk.write_slices(file, true);
        }
        bulk
    }

    /// The namespace of a file's services.
    pub fn namespace(file: usize) -> String {
        format!("bulk-{}", file % NAMESPACES)
    }

    fn names(&self, file: usize) -> impl Iterator<Item = String> {
        (0..self.services).map(move |number| format!("web-{file}-{number}"))
    }

    /// The headless service of a file. Each site has its own, so that its name tells whose change it is.
    pub fn marker(&self, file: usize) -> String {
        format!("mark-{}-{file}", self.site.name())
    }

    /// Writes a file's services and exports, with a label of this value.
    pub fn write_services(&self, file: usize, color: &str) {
        let mut text = String::new();
        self.names(file).for_each(|name| service(&mut text, file, &name, color, false));
        service(&mut text, MARKED, &self.marker(file), color, true);
        self.site.apply(&format!("services-{file}.yaml"), &text);
    }

    /// Writes a file's endpoints, two of each service; the second one is ready or not.
    pub fn write_slices(&self, file: usize, ready: bool) {
        let mut text = String::new();
        self.names(file).for_each(|name| slice(&mut text, file, &name, ready, false));
        slice(&mut text, MARKED, &self.marker(file), ready, true);
        self.site.apply(&format!("slices-{file}.yaml"), &text);
    }
}

/// Service and export of `name`.
fn service(text: &mut String, file: usize, name: &str, color: &str, headless: bool) {
    let namespace = Bulk::namespace(file);
    let none = if headless { "clusterIP: None, " } else { "" };
    _ = writeln!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{color: {color}}}}}\nspec: \
         {{{none}ports: [{{name: http, port: 80}}]}}\n---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: \
         ServiceExport\nmetadata: {{name: {name}, namespace: {namespace}}}"
    );
}

/// Its slice.
fn slice(text: &mut String, file: usize, name: &str, ready: bool, headless: bool) {
    let namespace = Bulk::namespace(file);
    let host = |number: u8| if headless { format!(", hostname: {name}-{number}") } else { String::new() };
    _ = writeln!(
        text,
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, namespace: {namespace}, labels: \
         {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nports: [{{name: http, port: 80}}]\nendpoints: [{{addresses: \
         [127.0.0.1], conditions: {{ready: true}}{}}}, {{addresses: [127.0.0.2], conditions: {{ready: {ready}}}{}}}]",
        host(0),
        host(1)
    );
}
