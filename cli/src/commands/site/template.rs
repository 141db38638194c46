//! The text of `site.yaml`: every field with its default, its unit and what follows from it.

use std::fmt::Write as _;

/// What differs between one site.yaml and another; all of it checked by the caller.
#[derive(Debug)]
pub(super) struct Fields {
    /// The cluster's name.
    pub(super) name: String,
    /// The trust domain.
    pub(super) trust_domain: String,
    /// The link's UDP address.
    pub(super) listen: String,
    /// Where peers dial.
    pub(super) advertise: Vec<String>,
    /// The mTLS port.
    pub(super) mtls_listen: String,
    /// Threads; `None` writes the default as a comment.
    pub(super) workers: Option<u16>,
    /// The DNS server.
    pub(super) dns_listen: String,
    /// The admin listener.
    pub(super) admin_listen: String,
    /// The controller's own admin listener.
    pub(super) controller_admin_listen: Option<String>,
    /// The range of mirrored addresses.
    pub(super) mirror_addresses: String,
    /// Ranges of client addresses: CIDR, namespace, service account.
    pub(super) workloads: Vec<(String, String, String)>,
}

/// Writes the file.
pub(super) fn site_yaml(fields: &Fields) -> String {
    let advertise = flow_list(&fields.advertise);
    let workers = fields.workers.map_or_else(|| "# workers: 2".to_owned(), |workers| format!("workers: {workers}"));
    let controller = fields.controller_admin_listen.as_ref().map_or_else(
        || "# controllerListen: 127.0.0.1:4194".to_owned(),
        |listen| format!("controllerListen: {listen}"),
    );
    let mut workloads = String::new();
    if fields.workloads.is_empty() {
        workloads.push_str(" []\n  # workloads:\n  #   - {cidr: 10.0.0.0/24, namespace: shop, serviceAccount: web}");
    } else {
        for (cidr, namespace, account) in &fields.workloads {
            let _infallible =
                write!(workloads, "\n    - {{cidr: {cidr}, namespace: {namespace}, serviceAccount: {account}}}");
        }
    }
    let Fields { name, trust_domain, listen, mtls_listen, dns_listen, admin_listen, mirror_addresses, .. } = fields;
    format!(
        r#"# A standalone Linkspan site. A field that is not known here is an error, so a slip of the pen cannot go unseen.
# This file is read at start: after a change restart the site. What lies in manifests/ is taken up while it runs.
apiVersion: linkspan.io/v1alpha1
kind: Site
metadata:
  # The cluster's name: lower-case letters, digits and '-', 63 at most. Peers see it, and mirrored names end in it over
  # there. To change it means to link anew with every peer.
  name: {name}
spec:
  # The trust domain of this site's identities: spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
  # Default: <name>.linkspan.internal. The CA in state/ca is made for it: to change it means a new CA and new links.
  trustDomain: {trust_domain}

  gateway:
    # UDP address of the link; the one port that a firewall must let in, and only if peers dial this site.
    # Default: 0.0.0.0:4143. Port 0: chosen by the kernel at each start.
    listen: "{listen}"
    # Serve the link over TCP too, on the same port, for peers whose network lets no UDP pass. Default: true.
    tcp: true
    # host:port at which peers dial this site; host names are resolved again and again, all addresses are tried. Port 0
    # stands for the bound link port. Default: [] = nobody dials this site, it dials its peers (a site behind NAT).
    advertise: {advertise}
    # TCP address for local clients that show a certificate of their own (`linkspan identity issue`); the server name
    # (SNI) says which mirrored service they want. Default: 127.0.0.1:4193; null turns it off.
    mtlsListen: "{mtls_listen}"
    # Threads of the data path; each has its own sockets and its own connection to each peer. Default: one per core.
    {workers}
    # Seconds, default 10. On SIGTERM the gateway stops accepting and gives what is under way this long; what is left
    # then is cut off.
    drainSeconds: 10

  dns:
    # UDP and TCP address of the DNS server for mirrored names (svc.cluster.local, svc.clusterset.local); it refuses all
    # others, so let your resolver forward just these two zones. Default: 127.0.0.1:5353.
    listen: "{dns_listen}"

  admin:
    # TCP address of /metrics /ready /live /config, and of what `linkspan gateways`, `check` and `stat` read. Read-only,
    # without authentication: keep it on loopback or in a network that you trust. Default: 127.0.0.1:4191.
    listen: "{admin_listen}"
    # The same for linkspan-mirror-controller when it runs as a process of its own; `linkspan site run` needs only the
    # one above. Default: none.
    {controller}

  # Every mirrored service gets an address of its own from this range and keeps its port numbers; the address stays the
  # same across restarts. Default: 127.80.0.0/12, about a million loopback addresses that Linux answers without set-up.
  # Other ranges have to be local to this machine: ip route add local RANGE dev lo; for IPv6, ip -6 route add local
  # RANGE dev lo, and sysctl -w net.ipv6.ip_nonlocal_bind=1.
  mirrorAddresses: {mirror_addresses}

  # Which workload a client is, by its address: the identity that backends in linked clusters see, with assurance
  # `network`. The longest prefix decides. A client in no range is known by its gateway only (assurance `gateway`).
  # Default: [].
  workloads:{workloads}

  # Folder of the CA, sockets, stable addresses, mirrors and status, relative to this file. Mode 0700: it holds the
  # site's private key. Default: state.
  stateDir: state
  # Folder of the manifests, relative to this file; watched: a change takes effect in under a second.
  # Default: manifests.
  manifests: manifests
"#
    )
}

/// `["a", "b"]`
fn flow_list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
    format!("[{}]", quoted.join(", "))
}
