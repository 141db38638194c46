//! One probe through each port of each mirrored service: the path that a client's byte takes.

use std::collections::BTreeMap;

use futures::StreamExt;
use futures::stream;
use linkspan_proto::configuration::{Mirror, MirrorPort};
use linkspan_proto::names::ServiceKey;

use super::cause::Cause;
use super::dns::covers;
use super::report::Group;
use super::{AT_ONCE, Checks};
use crate::client::facts::{PortHealth, State};
use crate::client::http;
use crate::client::probe::{ANSWER, Found, Language, probe};
use crate::commands::services::ByHostname;
use crate::output::counted;

const GROUP: Group = Group::Services;

/// The gateway's word for an address that is taken.
const ADDRESS_IN_USE: &str = "AddressInUse";

/// A mirrored port that is to be probed.
struct Target {
    mirror: Mirror,
    port: MirrorPort,
    health: PortHealth,
}

impl Target {
    fn name(&self) -> String {
        let udp = if self.port.transport.is_tcp() { "" } else { "/udp" };
        format!("{} port {}{udp} works", self.mirror.name, self.port.port)
    }
}

/// What came of a probe: good, worth a look, or not working; with reason and remedy.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Good(String),
    Look(String, String),
    Bad(String, String),
}

/// The checks that need no probe: from here a Kubernetes cluster's own addresses cannot be reached. Only what is not well is
/// told of one by one.
pub(super) fn look(checks: &mut Checks<'_>) {
    let targets = targets(checks);
    let count = targets.len();
    let mut bad = false;
    // A name without a Service is judged with the mirrors' objects.
    for target in targets.into_iter().filter(|target| target.health.state != State::NoService) {
        let (health, service) = (&target.health, &target.mirror.service);
        let found = if health.state.serves() { Found::Works("ready".to_owned()) } else { Found::Cut };
        match judge(health, &found, None, service) {
            Judgement::Good(_) => continue,
            Judgement::Look(reason, remedy) => checks.warn(GROUP, target.name(), reason, remedy),
            Judgement::Bad(reason, remedy) => checks.fail(GROUP, target.name(), reason, remedy),
        }
        checks.because(cause(health, &found, None));
        bad = true;
    }
    if count > 0 && !bad {
        checks.ok(GROUP, "every mirrored port has ready endpoints behind a link that is alive", counted(count, "port"));
    }
}

/// What the probes of this group found, and what the gateway counted before and after them.
#[derive(Default)]
pub(super) struct Probed {
    found: Vec<(Target, Found)>,
    before: Closes,
    after: Closes,
}

/// Probes every mirrored port.
pub(super) async fn ask(checks: &Checks<'_>) -> Probed {
    let targets = targets(checks);
    if targets.is_empty() {
        return Probed::default();
    }
    let admin = checks.gateway.as_ref().map(|run| run.admin);
    let before = closes(admin).await;
    let found: Vec<(Target, Found)> = stream::iter(targets.into_iter().map(|target| async move {
        let language = Language::of(target.port.app_protocol.as_deref());
        // What cannot work is not probed: the reason is known, and the probe would only wait for it.
        let found = match target.health.state {
            // No datagram is an answer to every service: one that is ready is taken for one that works.
            State::Healthy | State::Degraded if !target.port.transport.is_tcp() => Found::Works("ready".to_owned()),
            State::Healthy | State::Degraded => probe(target.port.listen, &target.mirror.name, language).await,
            State::NotListening => Found::NotListening,
            State::LinkDown | State::NotExported | State::NoReadyEndpoints | State::NoService | State::Refused => {
                Found::Cut
            }
        };
        (target, found)
    }))
    .buffer_unordered(AT_ONCE)
    .collect()
    .await;
    let after = closes(admin).await;
    Probed { found, before, after }
}

fn targets(checks: &Checks<'_>) -> Vec<Target> {
    let statuses = ByHostname::new(&checks.mirrors);
    // What a peer removed with many others keeps its name for a while; the check of its catalogue says so, once.
    let removed = |mirror: &Mirror| statuses.of(&mirror.name).is_some_and(|status| status.removal_delayed().is_some());
    let mirrors = checks
        .facts
        .mirrors
        .iter()
        .filter(|mirror| checks.scope.covers_service(&mirror.service) && covers(checks, mirror))
        .filter(|mirror| !removed(mirror));
    mirrors
        .flat_map(|mirror| mirror.ports.iter().map(move |port| (mirror, port)))
        .map(|(mirror, port)| Target {
            mirror: mirror.clone(),
            port: port.clone(),
            health: checks.facts.health(mirror, port),
        })
        // An endpoint that is not ready has no name: nobody can ask for it.
        .filter(|target| target.mirror.endpoint.is_none() || target.health.state != State::NoReadyEndpoints)
        .collect()
}

/// Runs the checks of this group on what was found.
pub(super) fn check(checks: &mut Checks<'_>, probed: Probed) {
    let Probed { mut found, before, after } = probed;
    found.sort_by(|(a, _), (b, _)| (&a.mirror.name, a.port.port).cmp(&(&b.mirror.name, b.port.port)));
    for (target, found) in found {
        let counted = new_failure(&before, &after, &target.mirror.service, target.port.port);
        match judge(&target.health, &found, counted.as_deref(), &target.mirror.service) {
            Judgement::Good(found) => checks.ok(GROUP, target.name(), found),
            Judgement::Look(reason, remedy) => checks.warn(GROUP, target.name(), reason, remedy),
            Judgement::Bad(reason, remedy) => checks.fail(GROUP, target.name(), reason, remedy),
        }
        checks.because(cause(&target.health, &found, counted.as_deref()));
    }
}

/// What it comes down to, where that is one of the known causes.
fn cause(health: &PortHealth, found: &Found, counted: Option<&str>) -> Option<Cause> {
    match (health.state, found) {
        (State::NotListening, _) => {
            (health.occupant.is_some() || health.unbound == ADDRESS_IN_USE).then_some(Cause::PortTaken)
        }
        (State::NotExported, _) => Some(Cause::NotExported),
        // Without a cluster behind it that has a weight, nobody is meant to serve it.
        (State::NoReadyEndpoints, _) => {
            health.backings.iter().any(|backing| backing.weight > 0).then_some(Cause::NoReadyEndpoint)
        }
        (State::LinkDown | State::NoService | State::Refused, _) => None,
        (_, Found::Refused(reason)) => Cause::of_refusal(reason),
        (_, Found::Cut) => counted.and_then(Cause::of_refusal),
        _ => None,
    }
}

fn judge(health: &PortHealth, found: &Found, counted: Option<&str>, service: &ServiceKey) -> Judgement {
    let clusters: Vec<&str> = health.backings.iter().filter(|b| b.weight > 0).map(|b| b.cluster.as_str()).collect();
    let there = clusters.join(" or ");
    match (health.state, found) {
        (State::NotListening, _) => Judgement::Bad(
            format!("not listening: {}", health.message),
            match &health.occupant {
                Some(occupant) => occupant.remedy(),
                None if matches!(health.unbound.as_str(), "SocketShareUsedUp" | "TooManyFiles") => {
                    "raise the gateway's limit of open files (LimitNOFILE= in its unit, `ulimit -Hn` in its shell) and start it \
                     again, or export fewer ports to it"
                        .to_owned()
                }
                None => "give the address or port free, or let the gateway bind it (ports below 1024 need \
                         CAP_NET_BIND_SERVICE); it tries again by itself"
                    .to_owned(),
            },
        ),
        (State::LinkDown, _) if !health.backings.iter().any(|backing| backing.weight > 0 && backing.linked) => Judgement::Bad(
            health.message.clone(),
            format!("link {there} (`linkspan link import`), or take it out of the ClusterTrafficPolicy of {service}"),
        ),
        (State::LinkDown, _) => {
            Judgement::Bad(health.message.clone(), "mend the link: the checks of the group `links` say how".to_owned())
        }
        (State::NoService, _) => Judgement::Bad(
            health.message.clone(),
            format!(
                "create the namespace {} if it is meant to have this service; the controller then makes the mirror by itself",
                service.namespace
            ),
        ),
        (State::Refused, _) => {
            Judgement::Bad(health.message.clone(), "its conditions say what is in its way".to_owned())
        }
        (State::NotExported, _) => Judgement::Bad(
            health.message.clone(),
            format!("in {there} export {service} with a ServiceExport, or add the port to its Service"),
        ),
        (State::NoReadyEndpoints, _) if clusters.is_empty() => Judgement::Bad(
            health.message.clone(),
            format!("give a cluster a weight above 0 in the ClusterTrafficPolicy of {service}, or remove the policy"),
        ),
        (State::NoReadyEndpoints, _) => Judgement::Bad(
            format!("no ready endpoint: {}", health.message),
            format!(
                "in {there} start the service, or set `ready` in its EndpointSlice; `linkspan exports` there shows the count"
            ),
        ),
        (State::Degraded, Found::Works(seen)) => Judgement::Look(
            format!("{seen}, but not every cluster behind it can serve: {}", health.message),
            "clients are served by the others; the checks of the group `links`, and `linkspan exports` there, say more"
                .to_owned(),
        ),
        (State::Healthy, Found::Works(seen)) => Judgement::Good(seen.clone()),
        (_, Found::NotListening) => Judgement::Bad(
            "not listening: the connection was refused by this machine, although the gateway says that it listens"
                .to_owned(),
            "look for a local firewall, and whether the gateway runs in another network namespace".to_owned(),
        ),
        (_, Found::Refused(reason)) => refused(reason, &there, service),
        (_, Found::Cut) => match counted {
            Some(reason) => refused(reason, &there, service),
            None => Judgement::Bad(
                "the connection was cut, and the gateway counted no reason".to_owned(),
                format!("the access logs of both gateways name it: look for {service}"),
            ),
        },
        (_, Found::Silence) => Judgement::Bad(
            format!("connected, but no HTTP answer in {} s", ANSWER.as_secs()),
            format!(
                "the service hangs, or does not speak the protocol that its appProtocol declares: look at it in {there}"
            ),
        ),
        (_, Found::Impossible(why)) => Judgement::Bad(
            format!("the probe could not be made: {why}"),
            "see `ulimit -n`, and run the check on the machine of the gateway".to_owned(),
        ),
    }
}

/// A refusal of one of the gateways, by its reason.
fn refused(reason: &str, there: &str, service: &ServiceKey) -> Judgement {
    let bad = |what: &str, remedy: String| Judgement::Bad(format!("{what} ({reason})"), remedy);
    match reason {
        // The check calls without an identity of its own: a policy that refuses it may be just what is wanted.
        "denied" | "identity_mismatch" => Judgement::Look(
            format!("refused by policy in {there}: callers like this check may not call it ({reason})"),
            format!(
                "if they should: add an ExportPolicy there that allows them; the check calls from 127.0.0.1, with the identity \
                 that `workloads` in site.yaml gives it, and a policy on {service} may ask for more"
            ),
        ),
        "no_backend" => bad(
            "no ready endpoint",
            format!(
                "in {there} start the service, or set `ready` in its EndpointSlice; `linkspan exports` there shows the count"
            ),
        ),
        "connect_refused" => bad(
            "the endpoint refuses connections",
            format!(
                "in {there} nothing listens at an endpoint that the EndpointSlice calls ready: start the service, or correct the address"
            ),
        ),
        "connect_timeout" => bad(
            "the endpoint does not answer",
            format!("in {there} see whether the gateway can reach the endpoint: address, port, firewall"),
        ),
        "unknown_export" => bad(
            "the exporting gateway does not know the export",
            format!(
                "in {there} `linkspan exports` must show {service}; if it does, its gateway has an old configuration: see `linkspan check` there"
            ),
        ),
        "no_target" | "link_lost" | "draining" => bad(
            "no cluster behind it can be reached",
            "mend the link: the checks of the group `links` say how".to_owned(),
        ),
        "loop" => bad(
            "the request came back to a cluster that it had passed",
            format!(
                "in {there} an endpoint of {service} is itself a mirror: point its EndpointSlice at the real service"
            ),
        ),
        "overloaded" | "flow_limit" => {
            bad("overloaded", format!("see the load with `linkspan stat` here and in {there}"))
        }
        _ => bad("refused", format!("the access logs of both gateways say more: look for {service}")),
    }
}

/// Failed probes by service, port and outcome, from the gateway's counters. A cut TCP connection carries no
/// reason; the counter that moved meanwhile does.
type Closes = BTreeMap<(String, String, u16, String), u64>;

async fn closes(admin: Option<std::net::SocketAddr>) -> Closes {
    let Some(admin) = admin else { return Closes::new() };
    http::get(admin, "/metrics").await.map(|page| read_closes(&String::from_utf8_lossy(&page))).unwrap_or_default()
}

fn read_closes(page: &str) -> Closes {
    let mut closes = Closes::new();
    // Where a probe could not be marked (IPv6) it is counted as a client's connection.
    let families = ["service_probe_total{", "tcp_close_total{"];
    for line in page.lines().filter(|line| families.iter().any(|family| line.starts_with(family))) {
        let label = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}=\""))?;
            Some(rest.split_once('"')?.0.to_owned())
        };
        if label("direction").as_deref() != Some("outbound") || label("classification").as_deref() != Some("failure") {
            continue;
        }
        let count: Option<u64> = line.rsplit(' ').next().and_then(|count| count.parse().ok());
        let port = label("dst_port").and_then(|port| port.parse().ok());
        if let (Some(namespace), Some(service), Some(port), Some(outcome), Some(count)) =
            (label("dst_namespace"), label("dst_service"), port, label("outcome"), count)
        {
            *closes.entry((namespace, service, port, outcome)).or_default() += count;
        }
    }
    closes
}

fn new_failure(before: &Closes, after: &Closes, service: &ServiceKey, port: u16) -> Option<String> {
    after
        .iter()
        .filter(|((namespace, name, number, _), _)| {
            namespace == service.namespace.as_str() && name == service.name.as_str() && *number == port
        })
        .find(|(key, count)| **count > before.get(*key).copied().unwrap_or(0))
        .map(|((_, _, _, outcome), _)| outcome.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::facts::tests::{facts, service};
    use crate::client::occupant::{Occupant, Process};

    fn health(name: &str) -> PortHealth {
        let facts = facts();
        let mirror = facts.mirrors.iter().find(|mirror| mirror.name == name).expect("mirror");
        facts.health(mirror, &mirror.ports[0])
    }

    fn judged(name: &str, found: &Found, counted: Option<&str>) -> Judgement {
        judge(&health(name), found, counted, &service("shop/web"))
    }

    const WEST: &str = "web-west.shop.svc.cluster.local";

    #[test]
    fn what_works_is_good_and_half_of_it_worth_a_look() {
        let works = Found::Works("HTTP 200".to_owned());
        assert_eq!(judged(WEST, &works, None), Judgement::Good("HTTP 200".to_owned()));
        let Judgement::Look(reason, _) = judged("web.shop.svc.clusterset.local", &works, None) else {
            panic!("a look")
        };
        assert!(reason.contains("the link to north is down"), "{reason}");
    }

    #[test]
    fn the_four_great_faults_are_told_apart() {
        let bad = |judgement| match judgement {
            Judgement::Bad(reason, remedy) => format!("{reason} | {remedy}"),
            other => panic!("{other:?}"),
        };
        let down = bad(judged("web-north.shop.svc.cluster.local", &Found::Cut, None));
        assert!(down.starts_with("the link to north is down"), "{down}");
        let closed = bad(judged(WEST, &Found::NotListening, None));
        assert!(closed.starts_with("not listening"), "{closed}");
        let empty = bad(judged(WEST, &Found::Refused("no_backend".to_owned()), None));
        assert!(empty.starts_with("no ready endpoint") && empty.contains("in west"), "{empty}");
        let Judgement::Look(denied, _) = judged(WEST, &Found::Refused("denied".to_owned()), None) else {
            panic!("a look")
        };
        assert!(denied.starts_with("refused by policy in west"), "{denied}");
    }

    #[test]
    fn a_listener_in_the_way_is_named_with_its_remedy() {
        let process = Process { pid: 4711, program: "nginx".to_owned() };
        let occupant = Occupant { listen: "0.0.0.0:80".parse().expect("address"), uid: 0, process: Some(process) };
        let health = PortHealth {
            state: State::NotListening,
            message: occupant.sentence(),
            occupant: Some(occupant),
            ..health(WEST)
        };
        let judged = judge(&health, &Found::NotListening, None, &service("shop/web"));
        let Judgement::Bad(reason, remedy) = judged else { panic!("bad") };
        assert!(reason.contains("nginx (process 4711) listens on 0.0.0.0:80"), "{reason}");
        assert!(remedy.starts_with("let nginx listen on one address"), "{remedy}");
    }

    #[test]
    fn a_port_above_the_share_of_sockets_needs_a_higher_limit_and_no_right() {
        let unbound = "SocketShareUsedUp".to_owned();
        let health = PortHealth { state: State::NotListening, unbound, ..health(WEST) };
        let judged = judge(&health, &Found::NotListening, None, &service("shop/web"));
        let Judgement::Bad(_, remedy) = judged else { panic!("bad") };
        assert!(remedy.contains("LimitNOFILE") && !remedy.contains("CAP_NET_BIND_SERVICE"), "{remedy}");
    }

    #[test]
    fn a_cut_connection_is_explained_by_the_counter_that_moved() {
        let line = |outcome: &str, count: u64| {
            format!(
                "service_probe_total{{direction=\"outbound\",peer=\"west\",dst_namespace=\"shop\",dst_service=\"web\",dst_port=\"80\",\
                 classification=\"failure\",outcome=\"{outcome}\"}} {count}\n"
            )
        };
        let before = read_closes(&(line("denied", 3) + &line("connect_refused", 1)));
        let after = read_closes(&(line("denied", 3) + &line("connect_refused", 2)));
        let counted = new_failure(&before, &after, &service("shop/web"), 80);
        assert_eq!(counted.as_deref(), Some("connect_refused"));
        assert_eq!(new_failure(&before, &after, &service("shop/web"), 81), None);
        assert_eq!(new_failure(&before, &after, &service("shop/api"), 80), None);
        let Judgement::Bad(reason, _) = judged(WEST, &Found::Cut, counted.as_deref()) else { panic!("bad") };
        assert!(reason.contains("refuses connections"), "{reason}");
    }

    #[test]
    fn successes_and_inbound_connections_explain_nothing() {
        let page = "service_probe_total{direction=\"inbound\",dst_namespace=\"a\",dst_service=\"b\",dst_port=\"1\",classification=\"failure\",outcome=\"x\"} 1\n\
                    service_probe_total{direction=\"outbound\",dst_namespace=\"a\",dst_service=\"b\",dst_port=\"1\",classification=\"success\",outcome=\"ok\"} 1\n\
                    # TYPE service_probe counter\n";
        assert!(read_closes(page).is_empty());
    }
}
