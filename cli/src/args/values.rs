//! Readers of single values. What they refuse is a wrong argument: clap names the option and ends with exit code 2.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::metadata;
use linkspan_proto::names::{ClusterName, Namespace, ServiceAccountName};
use linkspan_proto::resources::HostPort;

/// The namespaces into which nothing is mirrored, besides our own: they belong to Kubernetes, and `default` holds the API
/// server's own Service. Nothing is installed into them either.
pub(crate) const RESERVED_NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// The longest tag of an image (OCI distribution specification, "Pulling manifests").
const MAX_TAG: usize = 128;

/// Reads `30` and `30s`.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    text.strip_suffix('s').unwrap_or(text).parse().map_err(|_| "a number of seconds, as in 30 or 30s".to_owned())
}

/// Reads the window of `stat`: the gateway keeps one minute.
pub(super) fn window(text: &str) -> Result<u64, String> {
    match seconds(text)? {
        window @ 1..=60 => Ok(window),
        _ => Err("between 1 and 60 seconds: the gateway keeps the figures of one minute".to_owned()),
    }
}

/// Reads an address to listen on.
pub(super) fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "not IP:PORT, such as 127.0.0.1:4143 or [::1]:4143".to_owned())
}

/// Reads an address range; bits behind the prefix are dropped.
pub(super) fn range(text: &str) -> Result<IpNet, String> {
    let range: IpNet = text.parse().map_err(|_| format!("{text} is not a CIDR, such as 127.80.0.0/12"))?;
    Ok(range.trunc())
}

/// Clients at these addresses are this workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    /// Where they call from.
    pub(crate) cidr: IpNet,
    /// The workload's namespace.
    pub(crate) namespace: Namespace,
    /// The workload's service account.
    pub(crate) account: ServiceAccountName,
}

/// Reads `CIDR=NAMESPACE/ACCOUNT`.
pub(super) fn workload(text: &str) -> Result<Workload, String> {
    let parts = text.split_once('=').and_then(|(cidr, who)| Some((cidr, who.split_once('/')?)));
    let Some((cidr, (namespace, account))) = parts else {
        return Err("not CIDR=NAMESPACE/ACCOUNT, such as 10.0.0.0/24=shop/web".to_owned());
    };
    Ok(Workload {
        cidr: range(cidr)?,
        namespace: Namespace::parse(namespace).map_err(|error| error.to_string())?,
        account: ServiceAccountName::parse(account).map_err(|error| error.to_string())?,
    })
}

/// Reads the name of a cluster that can be linked with others.
pub(super) fn cluster(text: &str) -> Result<ClusterName, String> {
    let name = ClusterName::parse(text).map_err(|error| error.to_string())?;
    name.reserved().map_or(Ok(name), Err)
}

/// Reads a trust domain that a certificate can carry: a name has no empty part.
pub(super) fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    let domain = TrustDomain::parse(text).map_err(|error| error.to_string())?;
    if text.split('.').any(str::is_empty) {
        return Err("it has an empty part between its dots: write it as in east.example.com".to_owned());
    }
    Ok(domain)
}

/// Reads a namespace that is not one of Kubernetes itself.
pub(super) fn namespace(text: &str) -> Result<Namespace, String> {
    if RESERVED_NAMESPACES.contains(&text) {
        return Err("it belongs to Kubernetes: nothing is installed or mirrored there; name another one".to_owned());
    }
    Namespace::parse(text).map_err(|error| error.to_string())
}

/// Reads an address that peers can dial.
pub(super) fn dialled(text: &str) -> Result<HostPort, String> {
    let address = HostPort::parse(text).map_err(|error| error.to_string())?;
    if address.port == 0 || address.ip().is_some_and(|ip| ip.is_unspecified()) {
        return Err("nothing that a peer can dial: write its host and port, as in east.example.com:4143".to_owned());
    }
    Ok(address)
}

/// Reads the address on which pods listen. Any one of theirs is not known before they run, and another one is no pod's.
pub(super) fn everywhere(text: &str) -> Result<IpAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() => Ok(address),
        _ => Err("pods listen on all their addresses: write 0.0.0.0, or :: on clusters with IPv6".to_owned()),
    }
}

/// Reads an address that a Service can have.
pub(super) fn service_address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| "not an IP address, such as 10.96.0.53".to_owned())?;
    let local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if local || address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(
            "no Service can have it: write a free one of the cluster's service range, such as 10.96.0.53".to_owned()
        );
    }
    Ok(address)
}

/// Reads where images are, without their last part and tag: a registry with an optional port, and a path.
pub(super) fn image(text: &str) -> Result<String, String> {
    let place = text.trim_end_matches('/');
    let plain = |part: &str, more: fn(u8) -> bool| {
        !part.is_empty() && part.bytes().all(|byte| more(byte) || byte.is_ascii_digit() || b"._-".contains(&byte))
    };
    let mut parts = place.split('/');
    let first = parts.next().unwrap_or_default();
    let (host, port) = first.split_once(':').map_or((first, None), |(host, port)| (host, Some(port)));
    let fits = plain(host, |byte| byte.is_ascii_alphabetic())
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
        && parts.all(|part| plain(part, |byte| byte.is_ascii_lowercase()));
    if fits {
        return Ok(place.to_owned());
    }
    Err("not the place of images: write registry and path without scheme and tag, as in registry.example.com/linkspan; \
         /gateway and /mirror-controller are appended, the tag is --image-tag"
        .to_owned())
}

/// Reads the tag of an image.
pub(super) fn image_tag(text: &str) -> Result<String, String> {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if begins && text.len() <= MAX_TAG && text.bytes().all(inside) {
        return Ok(text.to_owned());
    }
    Err(format!("no tag of an image: write {MAX_TAG} letters, digits, '.', '_' and '-' at most, as in 0.1.0"))
}

/// Reads `key=value`, an annotation that an API server takes.
pub(super) fn annotation(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if metadata::is_annotation(key, value) => Ok((key.to_owned(), value.to_owned())),
        Some((key, _)) if !metadata::is_key(key) => Err(format!(
            "`{key}` is no key of an annotation: write NAME or DOMAIN/NAME, as in \
             service.beta.kubernetes.io/aws-load-balancer-type=nlb"
        )),
        Some(_) => Err("the value is too long for an annotation, or has control characters".to_owned()),
        None => Err("write KEY=VALUE, as in service.beta.kubernetes.io/aws-load-balancer-type=nlb".to_owned()),
    }
}
