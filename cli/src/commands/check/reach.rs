//! What gets through to the peers' gateways, and to our own: every address is asked at once, beside the links.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream;
use linkspan_proto::configuration::{Carrier, Peer, Transport};
use linkspan_proto::names::ClusterName;
use tokio::time::timeout;

use super::cause::Cause;
use super::report::Group;
use super::{AT_ONCE, Checks};
use crate::client::quic::{self, Echo, LARGE, OverTcp, Reach, SMALL, echo};

const GROUP: Group = Group::Links;

/// How long a host name may take to resolve: a resolver that has not answered by then has lost a datagram, or is not there.
pub(super) const RESOLVE: Duration = Duration::from_millis(1500);

/// An address as it is written, and what it leads to, or why it does not resolve.
pub(super) type Address = (String, Result<Vec<(SocketAddr, Reach)>, String>);

/// What was found. Nothing is judged here.
#[derive(Default)]
pub(super) struct Reached {
    /// Our own gateway's port, asked from this machine.
    own: Option<(SocketAddr, Echo)>,
    /// What we tell our peers.
    advertised: Vec<Address>,
    /// What the Links say.
    peers: BTreeMap<ClusterName, Vec<Address>>,
}

/// Asks all of them. What a peer that is linked over TCP alone has on UDP is nobody's business.
pub(super) async fn ask(checks: &Checks<'_>) -> Reached {
    let own = async {
        let here = reachable_here(checks.gateway.as_ref()?.link);
        Some((here, echo(here).await))
    };
    let peers = checks.facts.peers.values();
    let peers: Vec<&Peer> =
        peers.filter(|peer| checks.scope.covers_cluster(&peer.cluster) && peer.transport != Transport::Tcp).collect();
    let advertised = advertised(checks);
    let texts: Vec<&String> = advertised.iter().chain(peers.iter().flat_map(|peer| &peer.addresses)).collect();
    let (own, resolved) = tokio::join!(own, join_all(texts.iter().map(|text| resolve(text))));
    let addresses: Vec<SocketAddr> = resolved.iter().flatten().flatten().copied().collect();
    let reached: BTreeMap<SocketAddr, Reach> =
        stream::iter(addresses.into_iter().map(|address| async move { (address, quic::reach(address).await) }))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
    let all: BTreeMap<&String, _> = texts.into_iter().zip(resolved).collect();
    let found = |text: &String| -> Address {
        let of = |address: &SocketAddr| Some((*address, reached.get(address)?.clone()));
        let found = match all.get(text) {
            Some(Ok(resolved)) => Ok(resolved.iter().filter_map(of).collect()),
            Some(Err(error)) => Err(error.clone()),
            None => Ok(Vec::new()),
        };
        (text.clone(), found)
    };
    Reached {
        own,
        advertised: advertised.iter().map(found).collect(),
        peers: peers.iter().map(|peer| (peer.cluster.clone(), peer.addresses.iter().map(found).collect())).collect(),
    }
}

/// What the site tells its peers. Port 0 stands for the bound port.
fn advertised(checks: &Checks<'_>) -> Vec<String> {
    let Some((site, run)) = checks.site.as_ref().zip(checks.gateway.as_ref()) else { return Vec::new() };
    let texts = site.spec.gateway.advertise.iter().map(ToString::to_string);
    texts
        .map(|text| text.strip_suffix(":0").map_or_else(|| text.clone(), |host| format!("{host}:{}", run.link.port())))
        .collect()
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, String> {
    let looked_up = timeout(RESOLVE, tokio::net::lookup_host(address)).await;
    let found = looked_up.map_err(|_| format!("the resolver gives no answer within {} ms", RESOLVE.as_millis()))?;
    let mut all: Vec<SocketAddr> = found.map_err(|error| error.to_string())?.collect();
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// Where this machine reaches a listening address: an unspecified one by loopback.
fn reachable_here(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Whether our own gateway answers, and whether what we tell our peers leads to it.
pub(super) fn own(checks: &mut Checks<'_>, reached: &Reached) {
    if let Some((here, found)) = &reached.own {
        let name = "the gateway answers QUIC on its link port";
        if found.is_answer() {
            checks.ok(GROUP, name, format!("{here}/udp"));
        } else {
            checks.fail(
                GROUP,
                name,
                format!("{here}/udp: {}", told(found)),
                "the process runs and its UDP socket does not answer: look for a local firewall (nft list ruleset), then at its log",
            );
            checks.because(Cause::UdpBlocked);
        }
    }
    for (text, found) in &reached.advertised {
        let name = format!("the advertised address {text} leads here");
        match found {
            Err(error) => checks.warn(
                GROUP,
                name,
                format!("it does not resolve here: {error}"),
                "correct gateway.advertise in site.yaml, or the DNS entry; peers that resolve it may still get through",
            ),
            Ok(found) if found.iter().any(|(_, reach)| reach.udp.is_answer()) => {
                let here = found.iter().all(|(address, _)| address.ip().is_loopback());
                checks.ok(GROUP, name, if here { "on this machine only" } else { "" });
            }
            Ok(found) => checks.warn(
                GROUP,
                name,
                summary(found),
                "from inside its own network a public address may not lead back here, and peers still reach it: check from \
                 a peer; otherwise let UDP to the link port pass the firewall, or correct gateway.advertise",
            ),
        }
    }
}

/// Judges what gets through to a peer; what was found is handed on, with what it comes down to.
pub(super) fn judge(checks: &mut Checks<'_>, reached: &Reached, peer: &Peer, alive: bool) -> Vec<(SocketAddr, Reach)> {
    let cluster = &peer.cluster;
    let mut found = Vec::new();
    for (text, resolved) in reached.peers.get(cluster).into_iter().flatten() {
        match resolved {
            Ok(addresses) => found.extend(addresses.iter().cloned()),
            Err(error) => {
                let name = format!("{cluster}: the address {text} resolves");
                let remedy =
                    "correct the address in the Link, or the DNS entry; the gateway tries again every few seconds";
                if alive {
                    checks.warn(GROUP, name, error.clone(), remedy);
                } else {
                    checks.fail(GROUP, name, error.clone(), remedy);
                }
                checks.because(Cause::PeerAddress);
            }
        }
    }
    found.sort_unstable_by_key(|(address, _)| *address);
    found.dedup_by_key(|(address, _)| *address);
    if found.is_empty() {
        return found;
    }
    let silent: Vec<_> = found.iter().filter(|(_, reach)| !reach.udp.is_answer()).cloned().collect();
    let name = format!("{cluster}: UDP reaches its gateway");
    if silent.is_empty() {
        checks.ok(GROUP, name, summary(&found));
    } else if alive || silent.len() < found.len() {
        let over_tcp =
            checks.facts.links.get(cluster).is_some_and(|link| alive && link.transport == Some(Carrier::Tcp));
        let remedy = if over_tcp {
            "TCP carries the link meanwhile; let UDP to these ports pass every firewall between"
        } else {
            "the link works by another way; an address that never answers belongs out of the Link"
        };
        checks.warn(GROUP, name, summary(&silent), remedy);
        checks.because(cause_of_silence(&silent));
    } else {
        checks.fail(GROUP, name, summary(&silent), remedy_for_silence(&silent, cluster));
        checks.because(cause_of_silence(&silent));
    }
    size(checks, cluster, &found);
    found
}

/// Whether packets that an Ethernet carries get through where small ones do.
fn size(checks: &mut Checks<'_>, cluster: &ClusterName, found: &[(SocketAddr, Reach)]) {
    let name = format!("{cluster}: large packets reach its gateway");
    let mut answering = found.iter().filter(|(_, reach)| reach.udp.is_answer()).peekable();
    if answering.peek().is_none() {
        return;
    }
    let cut: Vec<String> = answering
        .filter(|(_, reach)| !reach.large.is_answer())
        .map(|(address, reach)| format!("{address}/udp: {}", told(&reach.large)))
        .collect();
    if cut.is_empty() {
        return checks.ok(GROUP, name, format!("of {LARGE} bytes"));
    }
    let reason = format!("packets of {LARGE} bytes vanish, those of {SMALL} get through: {}", cut.join("; "));
    checks.warn(
        GROUP,
        name,
        reason,
        remedy_for_size("the link has found out and sends smaller ones; over TCP it would hang"),
    );
    checks.because(Cause::MtuBlackHole);
}

/// What to do about a path on which large packets vanish.
pub(super) fn remedy_for_size(meanwhile: &str) -> String {
    format!(
        "{meanwhile}. Find the hop with a smaller MTU (`tracepath`; tunnels and VPNs are the usual ones) and let it send ICMP \
         \"fragmentation needed\" (type 3 code 4; ICMPv6 type 2), which every firewall between must let pass; or give all \
         interfaces on the way the same MTU"
    )
}

/// What it comes down to that no address answers over UDP.
pub(super) fn cause_of_silence(silent: &[(SocketAddr, Reach)]) -> Cause {
    let over_tcp = || silent.iter().filter_map(|(_, reach)| reach.tcp.as_ref());
    if over_tcp().any(|tcp| tcp.whole.is_answer()) {
        Cause::UdpBlocked
    } else if over_tcp().any(|tcp| tcp.pieces.is_answer()) {
        Cause::MtuBlackHole
    } else {
        Cause::PeerAddress
    }
}

/// Whether a host is there and no gateway on it, as far as one can tell: how often it says so over UDP is limited.
fn nothing_listens(reach: &Reach) -> bool {
    let over_tcp = || reach.tcp.as_ref().is_some_and(|tcp| tcp.whole == Echo::NothingListens);
    reach.udp == Echo::NothingListens || (reach.udp == Echo::Silence && over_tcp())
}

/// What to do about it.
pub(super) fn remedy_for_silence(silent: &[(SocketAddr, Reach)], cluster: &ClusterName) -> String {
    let ports: Vec<String> = silent.iter().map(|(address, _)| format!("{address}/udp")).collect();
    let to = ports.join(", ");
    match cause_of_silence(silent) {
        Cause::UdpBlocked => format!(
            "its gateway answers over TCP, and UDP to it is blocked: let UDP to {to} pass every firewall between; until then \
             TCP carries the link, unless a Link says `transport: quic`"
        ),
        Cause::MtuBlackHole => remedy_for_size(&format!(
            "small packets get through and those of {SMALL} bytes vanish, which is the least that QUIC needs"
        )),
        _ if silent.iter().all(|(_, reach)| nothing_listens(reach)) => {
            format!(
                "start {cluster}, or correct the address in the Link: its host answers, and nothing listens at {to}"
            )
        }
        _ => format!(
            "correct the address in the Link if it is not that of {cluster}; start {cluster} if it is down; let UDP to {to} pass \
             every firewall between. If nobody can reach {cluster} (NAT), remove the addresses from its Link and give {cluster} \
             ours: then it dials us"
        ),
    }
}

fn summary(found: &[(SocketAddr, Reach)]) -> String {
    let one = |(address, reach): &(SocketAddr, Reach)| {
        let udp = format!("{address}/udp: {}", told(&reach.udp));
        match &reach.tcp {
            Some(tcp) => format!("{udp}, {}", told_over_tcp(tcp)),
            None => udp,
        }
    };
    found.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn told(echo: &Echo) -> String {
    match echo {
        Echo::Answered(after) => format!("answered after {:.1} ms", after.as_secs_f64() * 1e3),
        Echo::NothingListens => "nothing listens there".to_owned(),
        Echo::Silence => "no answer".to_owned(),
        Echo::Stranger => "what answers is no gateway".to_owned(),
        Echo::Unsendable(why) => format!("cannot be sent to: {why}"),
    }
}

fn told_over_tcp(tcp: &OverTcp) -> String {
    if !tcp.whole.is_answer() && tcp.pieces.is_answer() {
        return format!("over TCP small segments are answered, and none of {SMALL} bytes");
    }
    format!("over TCP: {}", told(&tcp.whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent(udp: Echo, whole: Echo, pieces: Echo) -> Vec<(SocketAddr, Reach)> {
        let reach = Reach { udp, large: Echo::Silence, tcp: Some(OverTcp { whole, pieces }) };
        vec![("10.77.0.2:4143".parse().expect("address"), reach)]
    }

    #[test]
    fn an_unspecified_address_is_reached_by_loopback() {
        assert_eq!(reachable_here("0.0.0.0:4143".parse().expect("address")).to_string(), "127.0.0.1:4143");
        assert_eq!(reachable_here("[::]:4143".parse().expect("address")).to_string(), "[::1]:4143");
        assert_eq!(reachable_here("10.0.0.1:4143".parse().expect("address")).to_string(), "10.0.0.1:4143");
    }

    #[test]
    fn silence_has_a_cause_and_a_remedy_by_what_tcp_says() {
        let cluster = ClusterName::parse("west").expect("name");
        let answer = || Echo::Answered(Duration::from_millis(2));
        let of = |silent: Vec<_>| (cause_of_silence(&silent), remedy_for_silence(&silent, &cluster), summary(&silent));
        let (cause, remedy, summary) = of(silent(Echo::Silence, answer(), answer()));
        assert_eq!(cause, Cause::UdpBlocked);
        assert!(
            remedy.contains("let UDP to 10.77.0.2:4143/udp pass") && summary.contains("over TCP: answered"),
            "{remedy}"
        );
        let (cause, remedy, summary) = of(silent(Echo::Silence, Echo::Silence, answer()));
        assert_eq!(cause, Cause::MtuBlackHole);
        assert!(remedy.contains("smaller MTU") && summary.contains("small segments are answered"), "{summary}");
        let (cause, remedy, _) = of(silent(Echo::NothingListens, Echo::NothingListens, Echo::NothingListens));
        assert_eq!(cause, Cause::PeerAddress);
        assert!(remedy.contains("start west, or correct the address"), "{remedy}");
        let (cause, remedy, _) = of(silent(Echo::Silence, Echo::Silence, Echo::Silence));
        assert_eq!(cause, Cause::PeerAddress);
        assert!(remedy.contains("correct the address") && remedy.contains("firewall"), "{remedy}");
    }
}
