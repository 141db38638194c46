//! Addresses, UDP, and the state of the link to each peer.

use std::net::SocketAddr;
use std::time::Duration;

use linkspan_proto::configuration::{LinkPhase, LinkReport, Peer, Transport, TransportReason};

use super::Checks;
use super::cause::Cause;
use super::reach::{self, Reached};
use super::report::Group;
use super::site::IN_FORCE;
use super::trust::span;
use crate::client::quic::{Reach, SMALL};

const GROUP: Group = Group::Links;

/// The gateway's word for no answer at all.
const UNREACHABLE: &str = "Unreachable";

/// Loss above this share is felt by users; below it QUIC repairs it unnoticed.
const LOSS_NOTICE: f64 = 0.02;

/// The clocks of two gateways that differ by more are worth a word: the hello that tells it is under way for less, and from 15
/// minutes on the certificates of one side are not valid yet for the other.
const CLOCKS_NOTICE: u64 = 60;

/// Runs the checks of this group on what `reach` has found.
pub(super) fn check(checks: &mut Checks<'_>, reached: &Reached) {
    refused_links(checks);
    late_links(checks);
    reach::own(checks, reached);
    for peer in peers(checks) {
        let alive = checks.facts.links.get(&peer.cluster).is_some_and(|link| link.alive);
        let found = reach::judge(checks, reached, &peer, alive);
        state(checks, &peer, &found);
    }
}

/// The checks that need no packet of our own: from here nobody knows whether UDP passes between gateways elsewhere.
pub(super) fn judge(checks: &mut Checks<'_>) {
    refused_links(checks);
    for peer in peers(checks) {
        state(checks, &peer, &[]);
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
        checks.because(Cause::LinkMissing);
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
            checks.because((complaint.reason == "InvalidTrustBundle").then_some(Cause::TrustBundle));
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

fn state(checks: &mut Checks<'_>, peer: &Peer, found: &[(SocketAddr, Reach)]) {
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
        let remedy = remedy_for(&link, peer, found, &checks.flags);
        checks.fail(GROUP, name, reason, remedy);
        return checks.because(cause_of(&link, found));
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
        checks.because(Cause::UdpBlocked);
    }
    clocks(checks, &link);
    black_hole(checks, &link);
    if link.loss > LOSS_NOTICE {
        checks.warn(
            GROUP,
            format!("{cluster}: few packets are lost"),
            format!("{:.1} % of the last minute's packets were lost", link.loss * 100.0),
            "look for a full uplink or a rate limit on UDP between the sites; `linkspan gateways` shows the figure live",
        );
    }
}

/// Whether the peer's clock says what ours does, by its last hello.
fn clocks(checks: &mut Checks<'_>, link: &LinkReport) {
    let Some(ahead) = link.clock_ahead_seconds else { return };
    let name = format!("{}: the clocks agree", link.cluster);
    if ahead.unsigned_abs() <= CLOCKS_NOTICE {
        return checks.ok(GROUP, name, "");
    }
    let direction = if ahead > 0 { "ahead of" } else { "behind" };
    let span = span(Duration::from_secs(ahead.unsigned_abs()));
    checks.warn(
        GROUP,
        name,
        format!("the clock of {} is {span} {direction} ours", link.cluster),
        "set the one that is wrong (chronyd, systemd-timesyncd): from 15 min on one side takes the other's new certificates for not \
         yet valid, and the link cannot connect",
    );
    checks.because(Cause::ClockSkew);
}

/// Whether the path has stopped carrying packets that it carried before, which the gateway finds out by itself.
fn black_hole(checks: &mut Checks<'_>, link: &LinkReport) {
    let Some(mtu) = link.mtu.filter(|mtu| link.black_holes > 0 && usize::from(*mtu) <= SMALL) else { return };
    checks.warn(
        GROUP,
        format!("{}: the path carries what it carried before", link.cluster),
        format!("packets that got through before vanish now: the link has gone back to {mtu} bytes"),
        reach::remedy_for_size("the link goes on with small packets"),
    );
    checks.because(Cause::MtuBlackHole);
}

/// What a link that is not alive suffers from: what the gateway says, else what packets say.
fn cause_of(link: &LinkReport, found: &[(SocketAddr, Reach)]) -> Option<Cause> {
    let silent = !found.is_empty() && found.iter().all(|(_, reach)| !reach.udp.is_answer());
    match Cause::of_link(&link.reason) {
        None if silent => Some(reach::cause_of_silence(found)),
        None if is_cut_short(link, found) => Some(Cause::MtuBlackHole),
        known => known,
    }
}

/// Whether a gateway answers a question in a small packet and none in a large one: no handshake gets through.
fn is_cut_short(link: &LinkReport, found: &[(SocketAddr, Reach)]) -> bool {
    let cut = |reach: &Reach| reach.udp.is_answer() && !reach.large.is_answer();
    link.reason == UNREACHABLE && found.iter().any(|(_, reach)| cut(reach))
}

/// Where UDP has to get through.
fn udp_ports(peer: &Peer) -> String {
    if peer.addresses.is_empty() {
        return "our own link port".to_owned();
    }
    peer.addresses.iter().map(|address| format!("{address}/udp")).collect::<Vec<_>>().join(", ")
}

/// What to do about a link that is not alive, by the gateway's reason for it.
fn remedy_for(link: &LinkReport, peer: &Peer, found: &[(SocketAddr, Reach)], flags: &str) -> String {
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
        _ if is_cut_short(link, found) => reach::remedy_for_size(
            "check again in a few seconds; if it is still so, the answers to a handshake, which are large, do not come back",
        ),
        _ if found.iter().any(|(_, reach)| reach.udp.is_answer()) => format!(
            "a QUIC server answers there, so UDP passes: see that both sides have each other's Link ({export}), then look at \
             both logs"
        ),
        _ if peer.addresses.is_empty() => format!("put an address of {cluster} into its Link, or let it dial us"),
        _ if found.is_empty() => format!(
            "see that {cluster} runs (`linkspan check` there) and that {} to {} passes every firewall between; or correct the \
             address in the Link: {import}",
            if peer.transport == Transport::Tcp { "TCP" } else { "UDP" },
            peer.addresses.join(", ")
        ),
        _ => reach::remedy_for_silence(found, cluster),
    }
}

#[cfg(test)]
mod tests {
    use linkspan_proto::configuration::{Carrier, Resource};

    use super::*;
    use crate::client::facts::tests::{link, peer};
    use crate::client::quic::Echo;

    fn west() -> Peer {
        match peer("west", &["10.77.0.2:4143"]) {
            Resource::Peer(peer) => peer,
            _ => unreachable!("a peer"),
        }
    }

    fn down(reason: &str, message: &str) -> LinkReport {
        LinkReport { reason: reason.to_owned(), message: message.to_owned(), ..link("west", false) }
    }

    fn found(udp: Option<Echo>) -> Vec<(SocketAddr, Reach)> {
        let address = "10.77.0.2:4143".parse().expect("address");
        let reach = |udp: Echo| Reach { large: udp.clone(), udp, tcp: None };
        udp.map(|udp| (address, reach(udp))).into_iter().collect()
    }

    fn remedy(link: &LinkReport, echo: Option<Echo>) -> String {
        remedy_for(link, &west(), &found(echo), "--dir east")
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
        let answered = || Some(Echo::Answered(Duration::from_millis(2)));
        let mut cut = found(answered());
        cut[0].1.large = Echo::Silence;
        assert!(remedy_for(&unreachable, &west(), &cut, "").contains("large"), "a handshake that is not answered");
        assert!(remedy(&down("HandshakeFailed", "x"), answered()).contains("UDP passes"));
        let waiting = LinkReport { state: LinkPhase::Waiting, ..unreachable };
        assert!(remedy(&waiting, None).contains("west must dial us"));
    }

    #[test]
    fn a_link_without_a_connection_is_not_well_before_probes_say_so() {
        let lost = LinkReport { alive: true, connections: 0, ..down("LinkRemoved", "the peer has removed its Link") };
        let progress = crate::commands::check::Progress::silent();
        let mut checks = crate::commands::check::tests::checks(&progress);
        checks.facts.links.insert(lost.cluster.clone(), lost);
        state(&mut checks, &west(), &[]);
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
        state(&mut checks, &west(), &[]);
        let report = checks.report.render(false);
        assert!(report.contains("over tcp") && report.contains("UDP blocked, TCP is in use"), "{report}");
        assert!(report.contains("10.77.0.2:4143/udp") && report.contains("transport: tcp"), "{report}");

        let mut checks = crate::commands::check::tests::checks(&progress);
        let wished = LinkReport { transport_reason: Some(TransportReason::Configured), ..over_tcp };
        checks.facts.links.insert(wished.cluster.clone(), wished);
        state(&mut checks, &west(), &[]);
        assert!(!checks.report.render(false).contains("UDP blocked"), "as the Link says");
    }

    #[test]
    fn a_dead_link_has_the_gateways_cause_or_that_of_the_packets() {
        let cause = |reason: &str, echo| cause_of(&down(reason, "x"), &found(echo));
        assert_eq!(cause("UnknownPeer", Some(Echo::Silence)), Some(Cause::LinkMissing));
        assert_eq!(cause("CertificateExpired", None), Some(Cause::CertificateExpired));
        assert_eq!(cause("Unreachable", Some(Echo::Silence)), Some(Cause::PeerAddress));
        let answered = || Some(Echo::Answered(Duration::from_millis(2)));
        assert_eq!(cause("Unreachable", answered()), None, "it was away, and has come back");
        let mut cut = found(answered());
        cut[0].1.large = Echo::Silence;
        assert_eq!(cause_of(&down("Unreachable", "x"), &cut), Some(Cause::MtuBlackHole));
        assert_eq!(cause("HandshakeFailed", answered()), None);
        assert_eq!(cause("WaitingForPeer", None), None);
    }

    #[test]
    fn clocks_and_packets_that_are_worth_a_word_have_their_causes() {
        let progress = crate::commands::check::Progress::silent();
        let told = |report: LinkReport| {
            let mut checks = crate::commands::check::tests::checks(&progress);
            checks.facts.links.insert(report.cluster.clone(), report);
            state(&mut checks, &west(), &[]);
            let found = checks.report.checks().iter().filter_map(|check| check.cause).collect::<Vec<_>>();
            (found, checks.report.render(false))
        };
        let well = LinkReport { clock_ahead_seconds: Some(-59), mtu: Some(1452), black_holes: 3, ..link("west", true) };
        assert_eq!(told(well.clone()).0, []);
        let (causes, page) = told(LinkReport { clock_ahead_seconds: Some(-600), ..well.clone() });
        assert!(causes == [Cause::ClockSkew] && page.contains("the clock of west is 10 min behind ours"), "{page}");
        let (causes, page) = told(LinkReport { mtu: Some(1200), ..well });
        assert!(causes == [Cause::MtuBlackHole] && page.contains("gone back to 1200 bytes"), "{page}");
    }
}
