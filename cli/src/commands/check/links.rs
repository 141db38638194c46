//! Addresses, UDP, and the state of the link to each peer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use futures::StreamExt;
use futures::stream;
use linkspan_proto::configuration::{Carrier, LinkPhase, LinkReport, Peer, Transport, TransportReason};
use linkspan_proto::names::ClusterName;

use super::report::Group;
use super::site::IN_FORCE;
use super::{AT_ONCE, Checks};
use crate::client::quic::{Echo, echo};

const GROUP: Group = Group::Links;

/// Loss above this share is felt by users; below it QUIC repairs it unnoticed.
const LOSS_NOTICE: f64 = 0.02;

/// Runs the checks of this group.
pub(super) async fn check(checks: &mut Checks<'_>) {
    refused_links(checks);
    late_links(checks);
    own_addresses(checks).await;
    for peer in peers(checks) {
        checks.progress.say(&format!("{}: UDP", peer.cluster));
        let alive = checks.facts.links.get(&peer.cluster).is_some_and(|link| link.alive);
        // Over TCP alone nobody needs UDP.
        let over_tcp = peer.transport == Transport::Tcp;
        let echoes = if over_tcp { BTreeMap::new() } else { addresses(checks, &peer, alive).await };
        state(checks, &peer, &echoes);
    }
}

/// The checks that need no packet of our own: from here nobody knows whether UDP passes between gateways elsewhere.
pub(super) fn judge(checks: &mut Checks<'_>) {
    refused_links(checks);
    for peer in peers(checks) {
        state(checks, &peer, &BTreeMap::new());
    }
}

/// The peers that are checked. None at all is worth a word.
fn peers(checks: &mut Checks<'_>) -> Vec<Peer> {
    let peers: Vec<Peer> =
        checks.facts.peers.values().filter(|peer| checks.scope.covers_cluster(&peer.cluster)).cloned().collect();
    // What lies in the manifests needs no import.
    if peers.is_empty() && checks.late.is_empty() {
        let wanted = checks.scope.cluster.clone();
        let reason = match wanted {
            Some(cluster) => format!("no Link for {cluster} is in force"),
            None => "no Link is in force".to_owned(),
        };
        let remedy = format!(
            "on the peer run `linkspan link export > peer.yaml`, here `linkspan link import peer.yaml {}`, and the same the other \
             way round",
            checks.flags
        );
        match checks.scope.cluster {
            Some(_) => checks.fail(GROUP, "a peer is linked", reason, remedy),
            None => checks.warn(GROUP, "a peer is linked", reason, remedy),
        }
    }
    peers
}

/// Links that the controller did not accept never reach the gateway.
fn refused_links(checks: &mut Checks<'_>) {
    for link in checks.links.clone() {
        let covered = checks.scope.cluster.as_deref().is_none_or(|wanted| wanted == link.metadata.name);
        let complaint =
            link.conditions().iter().find(|condition| condition.kind == "Accepted" && condition.complains());
        if let Some(complaint) = complaint.filter(|_| covered) {
            let name = &link.metadata.name;
            let place = format!(
                "on {name} run `linkspan link export > {name}.yaml`, here `linkspan link import {name}.yaml --replace {}`",
                checks.flags
            );
            let remedy = match complaint.reason.as_str() {
                "InvalidTrustBundle" => format!("the trust bundle in this Link is not that of {name}: {place}"),
                // `link import` refuses the same Link for the same reason: there is nothing to import.
                "SelfLink" => format!(
                    "remove it, nobody links to himself: `linkspan link remove {name} {0}`; if {name} is another cluster, give it a \
                     trust domain of its own and export its Link anew",
                    checks.flags
                ),
                "TrustDomainInUse" => format!(
                    "of the two Links remove the one that is not meant: `linkspan link remove NAME {}`; if they are two clusters, \
                     each needs a trust domain of its own",
                    checks.flags
                ),
                "InvalidName" | "ReservedName" => {
                    "remove it, and write it anew under the name that the peer has itself".to_owned()
                }
                _ => format!("correct the Link; or {place}"),
            };
            checks.fail(GROUP, format!("{name}: the Link is accepted"), complaint.sentence(), remedy);
        }
    }
}

/// Links that lie in the manifests and that nobody has refused, and that are not in force all the same.
fn late_links(checks: &mut Checks<'_>) {
    for cluster in checks.late.clone() {
        checks.fail(
            GROUP,
            format!("{cluster}: its Link is in force"),
            format!("it lies in the manifests, and the gateway does not have it {} s later", IN_FORCE.as_secs()),
            "see that the controller runs and that its log says nothing of this Link; then check again",
        );
    }
}

/// Whether our own gateway answers, and whether what we tell our peers leads to it.
async fn own_addresses(checks: &mut Checks<'_>) {
    let Some(run) = checks.gateway.clone() else { return };
    checks.progress.say("the gateway's own UDP port");
    let here = reachable_here(run.link);
    let name = "the gateway answers QUIC on its link port";
    match echo(here).await {
        Echo::Answered(_) => checks.ok(GROUP, name, format!("{}/udp", run.link)),
        other => checks.fail(
            GROUP,
            name,
            format!("{here}/udp: {}", told(&other)),
            "the process runs and its UDP socket does not answer: look for a local firewall (nft list ruleset), then at its log",
        ),
    }
    let advertised = checks.site.as_ref().map(|site| site.spec.gateway.advertise.clone()).unwrap_or_default();
    for address in advertised {
        // Port 0 stands for the bound port.
        let text = address.to_string();
        let text = text.strip_suffix(":0").map_or_else(|| text.clone(), |host| format!("{host}:{}", run.link.port()));
        let name = format!("the advertised address {text} leads here");
        let resolved = match resolve(&text).await {
            Ok(resolved) => resolved,
            Err(error) => {
                checks.warn(
                    GROUP,
                    name,
                    format!("it does not resolve here: {error}"),
                    "correct gateway.advertise in site.yaml, or the DNS entry; peers that resolve it may still get through",
                );
                continue;
            }
        };
        let mut found = Vec::new();
        for address in &resolved {
            found.push((*address, echo(*address).await));
        }
        if found.iter().any(|(_, echo)| matches!(echo, Echo::Answered(_))) {
            checks.ok(
                GROUP,
                name,
                if resolved.iter().all(|address| address.ip().is_loopback()) { "on this machine only" } else { "" },
            );
        } else {
            checks.warn(
                GROUP,
                name,
                summary(&found),
                "from inside its own network a public address may not lead back here, and peers still reach it: check from \
                 a peer; otherwise let UDP to the link port pass the firewall, or correct gateway.advertise",
            );
        }
    }
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

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, std::io::Error> {
    let mut all: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
    all.dedup();
    Ok(all)
}

/// Resolves the peer's addresses and asks each for a sign of life, beside the link.
async fn addresses(checks: &mut Checks<'_>, peer: &Peer, alive: bool) -> BTreeMap<SocketAddr, Echo> {
    let cluster = &peer.cluster;
    let mut resolved = Vec::new();
    for address in &peer.addresses {
        match resolve(address).await {
            Ok(found) => resolved.extend(found),
            Err(error) => {
                let name = format!("{cluster}: the address {address} resolves");
                let remedy =
                    "correct the address in the Link, or the DNS entry; the gateway tries again every few seconds";
                if alive {
                    checks.warn(GROUP, name, error.to_string(), remedy);
                } else {
                    checks.fail(GROUP, name, error.to_string(), remedy);
                }
            }
        }
    }
    resolved.dedup();
    let found: Vec<(SocketAddr, Echo)> =
        stream::iter(resolved.into_iter().map(|address| async move { (address, echo(address).await) }))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
    let silent: Vec<_> = found.iter().filter(|(_, echo)| !matches!(echo, Echo::Answered(_))).cloned().collect();
    if found.is_empty() {
        return BTreeMap::new();
    }
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
    } else {
        checks.fail(GROUP, name, summary(&silent), remedy_for_silence(&silent, cluster));
    }
    found.into_iter().collect()
}

fn remedy_for_silence(silent: &[(SocketAddr, Echo)], cluster: &ClusterName) -> String {
    let ports: Vec<String> = silent.iter().map(|(address, _)| format!("{address}/udp")).collect();
    let to = ports.join(", ");
    if silent.iter().all(|(_, echo)| *echo == Echo::NothingListens) {
        format!("start {cluster}, or correct the address in the Link: its host answers that nothing listens at {to}")
    } else {
        format!(
            "start {cluster} if it is down; let UDP to {to} pass every firewall between; or correct the address in \
             the Link. If nobody can reach {cluster} (NAT), remove the addresses from its Link and give {cluster} ours: then \
             it dials us"
        )
    }
}

fn summary(found: &[(SocketAddr, Echo)]) -> String {
    found.iter().map(|(address, echo)| format!("{address}/udp: {}", told(echo))).collect::<Vec<_>>().join("; ")
}

fn told(echo: &Echo) -> String {
    match echo {
        Echo::Answered(after) => format!("answered after {:.1} ms", after.as_secs_f64() * 1e3),
        Echo::NothingListens => "nothing listens there".to_owned(),
        Echo::Silence => "no answer".to_owned(),
        Echo::Unsendable(why) => format!("cannot be sent to: {why}"),
    }
}

fn state(checks: &mut Checks<'_>, peer: &Peer, echoes: &BTreeMap<SocketAddr, Echo>) {
    let cluster = &peer.cluster;
    let name = format!("{cluster}: the link is alive");
    let Some(link) = checks.facts.links.get(cluster).cloned() else {
        let reason = "the gateway does not report this link yet";
        return checks.fail(GROUP, name, reason, "wait a second and check again");
    };
    // Probes need a moment to find a link dead that has lost its connections; nobody can be reached over it already.
    if !link.alive || link.connections == 0 {
        let tried = if peer.addresses.is_empty() {
            "it has no address in its Link, so it must dial us".to_owned()
        } else {
            format!("tried {}", peer.addresses.join(", "))
        };
        let message = if link.message.is_empty() { "no further word from the gateway" } else { &link.message };
        let reason = format!("{}: {message} ({tried})", link.reason);
        let remedy = remedy_for(&link, peer, echoes, &checks.flags);
        return checks.fail(GROUP, name, reason, remedy);
    }
    let latency =
        link.probe_micros.map(|micros| format!(", answers in {:.1} ms", micros as f64 / 1e3)).unwrap_or_default();
    let version = link.version.as_deref().map(|version| format!(", version {version}")).unwrap_or_default();
    let transport = link.transport.map(|carrier| format!(" over {carrier}")).unwrap_or_default();
    checks.ok(GROUP, name, format!("{} connections{transport}{latency}{version}", link.connections));
    if let Some(TransportReason::UdpBlocked | TransportReason::UdpSilent) = link.transport_reason {
        checks.warn(
            GROUP,
            format!("{cluster}: QUIC carries the link"),
            format!("UDP blocked, TCP is in use: {}", link.message),
            format!(
                "let UDP to {} pass every firewall between, then the link returns to QUIC by itself; or, if it never will, set \
                 `transport: tcp` in the Link and this is no longer said",
                udp_ports(peer)
            ),
        );
    }
    if link.loss > LOSS_NOTICE {
        checks.warn(
            GROUP,
            format!("{cluster}: few packets are lost"),
            format!("{:.1} % of the last minute's packets were lost", link.loss * 100.0),
            "look for a full uplink or a rate limit on UDP between the sites; `linkspan gateways` shows the figure live",
        );
    }
}

/// Where UDP has to get through.
fn udp_ports(peer: &Peer) -> String {
    if peer.addresses.is_empty() {
        return "our own link port".to_owned();
    }
    peer.addresses.iter().map(|address| format!("{address}/udp")).collect::<Vec<_>>().join(", ")
}

/// What to do about a link that is not alive, by the gateway's reason for it.
fn remedy_for(link: &LinkReport, peer: &Peer, echoes: &BTreeMap<SocketAddr, Echo>, flags: &str) -> String {
    let cluster = &peer.cluster;
    let import = format!(
        "on {cluster} run `linkspan link export > {cluster}.yaml`, here `linkspan link import {cluster}.yaml --replace {flags}`"
    );
    let export = format!(
        "here run `linkspan link export {flags} > us.yaml`, on {cluster} `linkspan link import us.yaml --replace`"
    );
    // The gateway words its message from the side that refused: "the peer" refuses us, or we refuse it.
    let peer_refuses = link.message.starts_with("the peer has")
        || link.message.starts_with("the peer's Link")
        || link.message.starts_with("the peer says");
    match link.reason.as_str() {
        "TrustBundleMismatch" | "TrustDomainMismatch" | "UnknownPeer" if peer_refuses => {
            format!(
                "{cluster} does not trust us: the trust bundle or trust domain in its Link for us is wrong, or there is no Link; {export}"
            )
        }
        "TrustBundleMismatch" => {
            format!("the trust bundle in our Link for {cluster} is not that of its root; {import}")
        }
        "TrustDomainMismatch" => {
            format!("another cluster answers at this address, or the trust domain in our Link is wrong; {import}")
        }
        "UnknownPeer" => format!("no Link here names the trust domain of the gateway that answers; {import}"),
        "CertificateExpired" | "CertificateNotYetValid" => {
            "compare the clocks of both sides; if they agree, restart the gateway whose certificate it is".to_owned()
        }
        "InvalidIdentity" | "NotAGateway" | "CertificateUsage" | "NameConstraints" | "InvalidCertificate" => {
            format!(
                "the certificate is not that of a gateway: check that the address leads to {cluster}; then {import}"
            )
        }
        _ if link.state == LinkPhase::Waiting => {
            format!("{cluster} must dial us: {export}, with an address at which it reaches us (--address)")
        }
        _ if echoes.values().any(|echo| matches!(echo, Echo::Answered(_))) => format!(
            "a QUIC server answers there, so UDP passes: see that both sides have each other's Link ({export}), then look at \
             both logs"
        ),
        _ if peer.addresses.is_empty() => format!("put an address of {cluster} into its Link, or let it dial us"),
        _ if echoes.is_empty() => format!(
            "see that {cluster} runs (`linkspan check` there) and that {} to {} passes every firewall between; or correct the \
             address in the Link: {import}",
            if peer.transport == Transport::Tcp { "TCP" } else { "UDP" },
            peer.addresses.join(", ")
        ),
        _ => {
            let silent: Vec<_> = echoes.iter().map(|(address, echo)| (*address, echo.clone())).collect();
            remedy_for_silence(&silent, cluster)
        }
    }
}

#[cfg(test)]
mod tests {
    use linkspan_proto::configuration::Resource;

    use super::*;
    use crate::client::facts::tests::{link, peer};

    fn west() -> Peer {
        match peer("west", &["10.77.0.2:4143"]) {
            Resource::Peer(peer) => peer,
            _ => unreachable!("a peer"),
        }
    }

    fn down(reason: &str, message: &str) -> LinkReport {
        LinkReport { reason: reason.to_owned(), message: message.to_owned(), ..link("west", false) }
    }

    fn remedy(link: &LinkReport, echo: Option<Echo>) -> String {
        let address = "10.77.0.2:4143".parse().expect("address");
        remedy_for(link, &west(), &echo.map(|echo| (address, echo)).into_iter().collect(), "--dir east")
    }

    #[test]
    fn a_wrong_trust_bundle_is_named_with_the_side_that_has_it() {
        let ours = remedy(
            &down("TrustBundleMismatch", "the peer's certificate is not signed by the Link's trustBundle"),
            None,
        );
        assert!(
            ours.contains("trust bundle in our Link for west") && ours.contains("on west run `linkspan link export"),
            "{ours}"
        );
        let theirs =
            remedy(&down("TrustBundleMismatch", "the peer's Link for this cluster carries another trustBundle"), None);
        assert!(
            theirs.contains("west does not trust us") && theirs.contains("here run `linkspan link export"),
            "{theirs}"
        );
    }

    #[test]
    fn silence_refusal_and_an_answer_have_remedies_of_their_own() {
        let unreachable = down("Unreachable", "no answer");
        assert!(remedy(&unreachable, Some(Echo::Silence)).contains("firewall"));
        assert!(remedy(&unreachable, Some(Echo::NothingListens)).contains("start west"));
        assert!(remedy(&unreachable, Some(Echo::Answered(std::time::Duration::from_millis(2)))).contains("UDP passes"));
        let waiting = LinkReport { state: LinkPhase::Waiting, ..unreachable };
        assert!(remedy(&waiting, None).contains("west must dial us"));
    }

    #[test]
    fn a_link_without_a_connection_is_not_well_before_probes_say_so() {
        let lost = LinkReport { alive: true, connections: 0, ..down("LinkRemoved", "the peer has removed its Link") };
        let progress = crate::commands::check::Progress::silent();
        let mut checks = crate::commands::check::tests::checks(&progress);
        checks.facts.links.insert(lost.cluster.clone(), lost);
        state(&mut checks, &west(), &BTreeMap::new());
        let report = checks.report.render(false);
        assert!(report.contains("FAILED") && report.contains("LinkRemoved: the peer has removed its Link"), "{report}");
    }

    #[test]
    fn a_link_that_tcp_carries_for_want_of_udp_is_worth_a_warning() {
        let over_tcp = LinkReport {
            transport: Some(Carrier::Tcp),
            transport_reason: Some(TransportReason::UdpBlocked),
            message: "UDP to the peer seems blocked".to_owned(),
            ..link("west", true)
        };
        let progress = crate::commands::check::Progress::silent();
        let mut checks = crate::commands::check::tests::checks(&progress);
        checks.facts.links.insert(over_tcp.cluster.clone(), over_tcp.clone());
        state(&mut checks, &west(), &BTreeMap::new());
        let report = checks.report.render(false);
        assert!(report.contains("over tcp") && report.contains("UDP blocked, TCP is in use"), "{report}");
        assert!(report.contains("10.77.0.2:4143/udp") && report.contains("transport: tcp"), "{report}");

        let mut checks = crate::commands::check::tests::checks(&progress);
        let wished = LinkReport { transport_reason: Some(TransportReason::Configured), ..over_tcp };
        checks.facts.links.insert(wished.cluster.clone(), wished);
        state(&mut checks, &west(), &BTreeMap::new());
        assert!(!checks.report.render(false).contains("UDP blocked"), "as the Link says");
    }

    #[test]
    fn an_unspecified_address_is_reached_by_loopback() {
        assert_eq!(reachable_here("0.0.0.0:4143".parse().expect("address")).to_string(), "127.0.0.1:4143");
        assert_eq!(reachable_here("[::]:4143".parse().expect("address")).to_string(), "[::1]:4143");
        assert_eq!(reachable_here("10.0.0.1:4143".parse().expect("address")).to_string(), "10.0.0.1:4143");
    }
}
