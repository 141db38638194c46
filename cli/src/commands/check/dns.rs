//! The site's DNS server, asked as a stub resolver would ask it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use hickory_proto::op::ResponseCode;
use linkspan_proto::configuration::{Mirror, MirrorPort};

use super::Checks;
use super::cause::Cause;
use super::report::Group;
use crate::client::dns::{self, Answer, Transport, addresses};
use crate::output::counted;

const GROUP: Group = Group::Dns;

/// Questions under way at the same time. Each takes well under a millisecond; far below the connections that the server
/// grants one address, which the programs of this machine share.
const AT_ONCE: usize = 16;

/// Names that are asked over TCP, too. Both ways lead to the same answers: a few show that the other one is open.
const OVER_TCP: usize = 8;

/// A name that can never be ours (RFC 6761).
const FOREIGN: &str = "linkspan-check.invalid";

/// How long the questions may take, while there are no more than are under way at the same time: the foreign one, then one over
/// UDP and one over TCP. A server that gives no answer to the first is asked nothing else.
pub(super) const PATIENCE: Duration = dns::OVER_UDP.saturating_mul(2).saturating_add(dns::OVER_TCP);

/// What the server said.
pub(super) struct Answers {
    server: SocketAddr,
    foreign: anyhow::Result<Answer>,
    /// Of how many names, and how many of them are withheld.
    names: usize,
    withheld: usize,
    wrong: Vec<(String, Wrong)>,
}

/// Why the answer for a name is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Wrong {
    reason: String,
    /// There was none.
    silent: bool,
}

/// Asks the server that the controller runs, or said that it runs before it stopped answering.
pub(super) async fn ask(checks: &Checks<'_>) -> Option<Answers> {
    let server = checks.controller.as_ref().map(|run| run.dns).or(checks.silent_dns)?;
    let foreign = addresses(server, FOREIGN, IpAddr::from([127, 0, 0, 1]), Transport::Udp).await;
    let questions = if foreign.is_ok() { questions(checks) } else { Vec::new() };
    let names = questions.len();
    let withheld = questions.iter().filter(|question| question.withheld).count();
    let asked = questions.into_iter().enumerate().map(|(index, question)| async move {
        let verdict = ask_for(server, &question, index < OVER_TCP).await;
        (question.name, verdict)
    });
    let asked: Vec<(String, Result<(), Wrong>)> = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
    let mut wrong: Vec<_> = asked.into_iter().filter_map(|(name, verdict)| Some((name, verdict.err()?))).collect();
    wrong.sort();
    Some(Answers { server, foreign, names, withheld, wrong })
}

/// Runs the checks of this group on what it said.
pub(super) fn check(checks: &mut Checks<'_>, answers: Option<Answers>) {
    let Some(Answers { server, foreign, names, withheld, wrong }) = answers else { return };
    report_foreign(checks, server, foreign);
    if names == 0 {
        return;
    }
    if wrong.is_empty() {
        let kept = if withheld > 0 { format!(", {withheld} of them withheld") } else { String::new() };
        let over =
            if names > OVER_TCP { format!("UDP, {OVER_TCP} of them over TCP too") } else { "UDP and TCP".to_owned() };
        let found = format!("{}{kept}, over {over}, at {server}", counted(names, "name"));
        return checks.ok(GROUP, "every mirrored name resolves to its mirror", found);
    }
    for (name, wrong) in wrong {
        checks.fail(
            GROUP,
            format!("{name} resolves to its mirror"),
            wrong.reason,
            format!(
                "see it yourself with `dig @{} -p {} {name}`; the controller's log says what it mirrors",
                server.ip(),
                server.port()
            ),
        );
        checks.because(wrong.silent.then_some(Cause::DnsSilent));
    }
}

/// Asks over UDP; over TCP where the answer is cut, as a stub resolver does, or where it shall be asked both ways.
async fn ask_for(server: SocketAddr, question: &Question, both: bool) -> Result<(), Wrong> {
    let answer = addresses(server, &question.name, question.address, Transport::Udp).await;
    let truncated = answer.as_ref().is_ok_and(|answer| answer.truncated);
    judge(question, Transport::Udp, answer)?;
    if both || truncated {
        let answer = addresses(server, &question.name, question.address, Transport::Tcp).await;
        judge(question, Transport::Tcp, answer)?;
    }
    Ok(())
}

/// A name and what DNS must say of it.
struct Question {
    name: String,
    address: IpAddr,
    /// Whether the gateway cannot listen there, so that DNS keeps the address to itself.
    withheld: bool,
}

/// Every name that must resolve, with its address. An endpoint of a headless service has a name only while it is ready.
fn questions(checks: &Checks<'_>) -> Vec<Question> {
    let resolves = |mirror: &&Mirror| {
        let ready = || {
            let backings = mirror.ports.iter().flat_map(|port| checks.facts.backings(mirror, port));
            backings.into_iter().any(|backing| backing.ready.is_some_and(|ready| ready > 0))
        };
        checks.scope.covers_service(&mirror.service) && covers(checks, mirror) && (mirror.endpoint.is_none() || ready())
    };
    let mirrors = checks.facts.mirrors.iter().filter(resolves);
    let closed = |port: &MirrorPort| {
        checks.facts.listeners.get(&(port.listen, port.transport)).is_some_and(|listener| !listener.bound)
    };
    mirrors
        .filter_map(|mirror| {
            let address = mirror.ports.first()?.listen.ip();
            Some(Question { name: mirror.name.clone(), address, withheld: mirror.ports.iter().any(closed) })
        })
        .collect()
}

/// Whether a mirror comes, among others, from the cluster that the checks are narrowed to.
pub(super) fn covers(checks: &Checks<'_>, mirror: &Mirror) -> bool {
    mirror.tiers.iter().flat_map(|tier| tier.clusters.keys()).any(|cluster| checks.scope.covers_cluster(cluster))
}

fn judge(question: &Question, transport: Transport, answer: anyhow::Result<Answer>) -> Result<(), Wrong> {
    let wrong = |reason| Err(Wrong { reason, silent: false });
    let over = match transport {
        Transport::Udp => "UDP",
        Transport::Tcp => "TCP",
    };
    match answer {
        Err(error) => Err(Wrong { reason: format!("over {over}: {error:#}"), silent: true }),
        // More addresses than a datagram holds: the client comes back over TCP.
        Ok(answer) if answer.truncated && transport == Transport::Udp => Ok(()),
        Ok(answer) if answer.code != ResponseCode::NoError => {
            wrong(format!("over {over} the answer is {}", answer.code))
        }
        Ok(answer) if question.withheld && answer.addresses.is_empty() => Ok(()),
        Ok(_) if question.withheld => wrong(format!(
            "over {over} it has an address at which the gateway does not listen; others may answer there"
        )),
        Ok(answer) if answer.addresses != [question.address] => {
            let found: Vec<String> = answer.addresses.iter().map(ToString::to_string).collect();
            let found = if found.is_empty() { "no address".to_owned() } else { found.join(", ") };
            wrong(format!("over {over} it has {found}, and the mirror is at {}", question.address))
        }
        Ok(_) => Ok(()),
    }
}

/// A server that answers for names that are not its own would break the resolver that forwards to it.
fn report_foreign(checks: &mut Checks<'_>, server: SocketAddr, answer: anyhow::Result<Answer>) {
    let name = "the DNS server answers, and refuses foreign names";
    match answer {
        Ok(answer) if answer.code == ResponseCode::Refused => checks.ok(GROUP, name, server.to_string()),
        Ok(answer) => {
            checks.fail(
                GROUP,
                name,
                format!("{server} answered {} for {FOREIGN}: another DNS server has taken this address", answer.code),
                "find it with `ss -lunp`, and give one of the two another address (dns.listen in site.yaml)",
            );
            checks.because(Cause::PortTaken);
        }
        Err(error) => {
            checks.fail(
                GROUP,
                name,
                format!("{server}: {error:#}"),
                "see that the controller runs, then look for a local firewall and at the controller's log; dns.listen in site.yaml \
                 names the address",
            );
            checks.because(Cause::DnsSilent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_must_be_the_mirrors_address_and_nothing_else() {
        let question = |withheld| Question {
            name: "web-west.shop.svc.cluster.local".to_owned(),
            address: "127.80.0.1".parse().expect("address"),
            withheld,
        };
        let answer = |code, addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().expect("address")).collect();
            Ok(Answer { code, addresses, truncated: false })
        };
        let withheld = |answer| judge(&question(true), Transport::Tcp, answer);
        assert_eq!(withheld(answer(ResponseCode::NoError, &[])), Ok(()), "nothing of ours listens there");
        assert!(
            withheld(answer(ResponseCode::NoError, &["127.80.0.1"])).expect_err("wrong").reason.contains("not listen")
        );
        let judge = |answer| judge(&question(false), Transport::Tcp, answer);
        assert_eq!(judge(answer(ResponseCode::NoError, &["127.80.0.1"])), Ok(()));
        let wrong = judge(answer(ResponseCode::NoError, &["127.80.0.9"])).expect_err("wrong");
        assert_eq!(wrong.reason, "over TCP it has 127.80.0.9, and the mirror is at 127.80.0.1");
        assert!(judge(answer(ResponseCode::NoError, &[])).expect_err("wrong").reason.contains("no address"));
        assert!(judge(answer(ResponseCode::NXDomain, &[])).expect_err("wrong").reason.contains("Non-Existent"));
        assert!(judge(Err(anyhow::anyhow!("no answer"))).expect_err("wrong").reason.contains("no answer"));
    }
}
