//! Manifests of the demo, as a user would write them.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;

/// The service of a site and its export.
pub(super) fn write_service(dir: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let (ip, port) = (address.ip(), address.port());
    write(
        dir,
        "web.yaml",
        &format!(
            r#"# What runs here: one HTTP server.
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop}}
spec:
  ports:
    - {{name: http, port: {port}, appProtocol: http}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: shop
  labels: {{kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
  - {{addresses: ["{ip}"], conditions: {{ready: true}}}}
ports:
  - {{name: http, port: {port}}}
---
# Linked sites may reach it.
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceExport
metadata: {{name: web, namespace: shop}}
"#
        ),
    )
}

/// The weights of `web.shop.svc.clusterset.local`.
pub(super) fn write_weights(dir: &Path, east: u32, west: u32) -> anyhow::Result<()> {
    write(
        dir,
        "web-traffic.yaml",
        &format!(
            r#"# Who answers web.shop.svc.clusterset.local. A change takes effect when this file is saved.
apiVersion: linkspan.io/v1alpha1
kind: ClusterTrafficPolicy
metadata: {{name: web, namespace: shop}}
spec:
  service: web
  tiers:
    - clusters: {{east: {east}, west: {west}}}
"#
        ),
    )
}

/// Writes a manifest in one step, as a careful editor does.
fn write(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = dir.join("manifests").join(name);
    let temporary = dir.join(format!(".{name}.new"));
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use linkspan_proto::manifest;

    #[test]
    fn what_is_written_is_valid() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("manifests")).unwrap();
        super::write_service(folder.path(), "127.80.0.11:8080".parse().unwrap()).unwrap();
        super::write_weights(folder.path(), 90, 10).unwrap();
        super::write_weights(folder.path(), 0, 100).unwrap();
        let files: Vec<_> =
            std::fs::read_dir(folder.path().join("manifests")).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len(), 2);
        let mut objects = 0;
        for file in files {
            for document in manifest::parse(&std::fs::read_to_string(file).unwrap(), "test") {
                document.unwrap();
                objects += 1;
            }
        }
        assert_eq!(objects, 4);
    }
}
