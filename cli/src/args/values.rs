//! Readers of single values. What they refuse is a wrong argument: clap names the option and ends with exit code 2.

use std::net::SocketAddr;

use ipnet::IpNet;
use linkspan_proto::names::{Namespace, ServiceAccountName};

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
