//! Certificates, the roots of the peers, and the clock that decides about them.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Checks;
use super::cause::Cause;
use super::report::Group;
use crate::client::folder::Folder;
use crate::client::http;

const GROUP: Group = Group::Trust;

/// How long before the end of a root one hears of it. Exchanging a root takes people on both sides.
const ROOT_NOTICE: Duration = Duration::from_secs(30 * 86_400);

/// A leaf lives 24 h and is renewed at half; one with less than this left was not renewed when it should have been.
const LEAF_NOTICE: Duration = Duration::from_secs(6 * 3600);

/// Files from the future by more than this mean that the clock went back. File systems round to two seconds at worst.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// Runs the checks of this group.
pub(super) async fn check(checks: &mut Checks<'_>, folder: &Folder) {
    checks.progress.say("reading certificates");
    let now = SystemTime::now();
    clock(checks, folder, now);
    own_root(checks, folder, now);
    if let Some(run) = &checks.gateway {
        let page = http::get(run.admin, "/metrics").await.unwrap_or_default();
        gateway_certificates(checks, "the gateway", &String::from_utf8_lossy(&page), now);
    }
    bundles(checks, now);
}

/// A certificate's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    from: SystemTime,
    until: SystemTime,
}

impl Life {
    fn of(certificate: &CertificateDer<'_>) -> anyhow::Result<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).context("not a certificate")?;
        let moment = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let validity = certificate.validity();
        Ok(Self { from: moment(validity.not_before.timestamp()), until: moment(validity.not_after.timestamp()) })
    }
}

/// How a certificate stands at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Good(String),
    EndsSoon(String),
    Expired(String),
    NotYet(String),
}

impl Standing {
    fn cause(&self) -> Option<Cause> {
        match self {
            Self::Good(_) | Self::EndsSoon(_) => None,
            Self::Expired(_) => Some(Cause::CertificateExpired),
            Self::NotYet(_) => Some(Cause::CertificateNotYetValid),
        }
    }
}

fn standing(life: Life, now: SystemTime, notice: Duration) -> Standing {
    if let Ok(ahead) = life.from.duration_since(now)
        && ahead > Duration::ZERO
    {
        return Standing::NotYet(format!("begins in {}", span(ahead)));
    }
    match life.until.duration_since(now) {
        Ok(left) if left > notice => Standing::Good(format!("ends in {}", span(left))),
        Ok(left) => Standing::EndsSoon(format!("ends in {}", span(left))),
        Err(past) => Standing::Expired(format!("ended {} ago", span(past.duration()))),
    }
}

/// A span in its largest unit.
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn clock(checks: &mut Checks<'_>, folder: &Folder, now: SystemTime) {
    let name = "the clock is sane";
    let state = folder.state();
    let files = ["run/gateway.json", "run/controller.json", "addresses.json", "ca/root.pem"];
    let newest = files.iter().filter_map(|file| fs::metadata(state.join(file)).ok()?.modified().ok()).max();
    match newest.and_then(|newest| newest.duration_since(now).ok()) {
        Some(ahead) if ahead > CLOCK_SLACK => checks.fail(
            GROUP,
            name,
            format!("a file in {} is {} newer than now: the clock has gone back", state.display(), span(ahead)),
            "set the clock (chronyd, systemd-timesyncd); certificates are valid by the clock",
        ),
        _ => return checks.ok(GROUP, name, ""),
    }
    checks.because(Cause::ClockSkew);
}

/// The root of the site's own certificate authority.
fn own_root(checks: &mut Checks<'_>, folder: &Folder, now: SystemTime) {
    let file = folder.state().join("ca/root.pem");
    let pem = fs::read(&file).with_context(|| format!("cannot read {}", file.display()));
    let restore = format!(
        "restore {}/state/ca from a copy; without one make a new site (`linkspan site init`) and link its peers anew",
        folder.dir().display()
    );
    root(checks, "the site's root certificate is valid", pem, &restore, now);
}

/// Judges our own root; `restore` says what to do where there is none that can be read.
pub(super) fn root(checks: &mut Checks<'_>, name: &str, pem: anyhow::Result<Vec<u8>>, restore: &str, now: SystemTime) {
    let read = pem
        .and_then(|pem| CertificateDer::from_pem_slice(&pem).context("no certificate in it"))
        .and_then(|root| Life::of(&root));
    let life = match read {
        Ok(life) => life,
        Err(error) => return checks.fail(GROUP, name, format!("{error:#}"), restore),
    };
    let renew = "make a new root, export the Link anew (`linkspan link export`) and import it at every peer";
    let standing = standing(life, now, ROOT_NOTICE);
    let cause = standing.cause();
    match standing {
        Standing::Good(found) => checks.ok(GROUP, name, found),
        Standing::EndsSoon(reason) => checks.warn(GROUP, name, reason, renew),
        Standing::Expired(reason) => checks.fail(GROUP, name, reason, renew),
        Standing::NotYet(reason) => {
            checks.fail(GROUP, name, reason, "set the clock: it is behind the one that made the root");
        }
    }
    checks.because(cause);
}

/// A gateway's own certificates, by the end that it reports for each on `/metrics`.
pub(super) fn gateway_certificates(checks: &mut Checks<'_>, who: &str, metrics: &str, now: SystemTime) {
    let ends = ends(metrics);
    for (purpose, what) in [("link", "the link"), ("local_server", "local clients")] {
        let name = format!("{who}'s certificate for {what} is valid");
        let remedy = "the gateway asks the controller for a new one at half its life: see that the controller runs, and the \
                      gateway's log";
        let Some(until) = ends.get(purpose) else {
            if purpose == "link" {
                checks.fail(GROUP, name, "it has none yet", remedy);
            }
            continue;
        };
        let standing = standing(Life { from: UNIX_EPOCH, until: *until }, now, LEAF_NOTICE);
        let cause = standing.cause();
        match standing {
            Standing::Good(found) => checks.ok(GROUP, name, found),
            Standing::EndsSoon(reason) => {
                checks.warn(GROUP, name, format!("{reason}, and has not been renewed"), remedy)
            }
            Standing::Expired(reason) | Standing::NotYet(reason) => checks.fail(GROUP, name, reason, remedy),
        }
        checks.because(cause);
    }
}

/// The ends of certificates by purpose, from the metric `certificate_expiry_seconds`.
fn ends(page: &str) -> BTreeMap<String, SystemTime> {
    let read = |line: &str| {
        let rest = line.strip_prefix("certificate_expiry_seconds{purpose=\"")?;
        let (purpose, rest) = rest.split_once('"')?;
        let seconds: f64 = rest.rsplit(' ').next()?.parse().ok()?;
        let until = Duration::try_from_secs_f64(seconds).ok()?;
        Some((purpose.to_owned(), UNIX_EPOCH + until))
    };
    // 0 stands for "none yet".
    page.lines().filter_map(read).filter(|(_, until)| *until > UNIX_EPOCH).collect()
}

pub(super) fn bundles(checks: &mut Checks<'_>, now: SystemTime) {
    let peers: Vec<_> =
        checks.facts.peers.values().filter(|peer| checks.scope.covers_cluster(&peer.cluster)).cloned().collect();
    for peer in peers {
        let name = format!("{}: the trust bundle is valid", peer.cluster);
        let import = format!(
            "on {0} run `linkspan link export`, here `linkspan link import FILE --replace {1}`",
            peer.cluster, checks.flags
        );
        let mut lives = Vec::new();
        let mut broken = None;
        for certificate in CertificateDer::pem_slice_iter(peer.trust_bundle.as_bytes()) {
            match certificate.map_err(anyhow::Error::from).and_then(|certificate| Life::of(&certificate)) {
                Ok(life) => lives.push(life),
                Err(error) => broken = Some(error),
            }
        }
        // One root that is good is enough: during an exchange of roots the old one may already have ended.
        let best = lives.iter().max_by_key(|life| life.until);
        let standing = best.map(|life| standing(*life, now, ROOT_NOTICE));
        let cause = if broken.is_some() || standing.is_none() {
            Some(Cause::TrustBundle)
        } else {
            standing.as_ref().and_then(Standing::cause)
        };
        match (broken, standing) {
            (Some(error), _) => checks.fail(GROUP, name, format!("{error:#}"), import),
            (None, None) => checks.fail(GROUP, name, "it holds no certificate", import),
            (None, Some(Standing::Good(found))) => checks.ok(GROUP, name, format!("{}, {found}", peer.trust_domain)),
            (None, Some(Standing::EndsSoon(reason))) => checks.warn(GROUP, name, reason, import),
            (None, Some(Standing::Expired(reason))) => checks.fail(GROUP, name, reason, import),
            (None, Some(Standing::NotYet(reason))) => {
                checks.fail(GROUP, name, reason, "compare the clocks of both sides");
            }
        }
        checks.because(cause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(from: i64, until: i64, now: SystemTime) -> Life {
        let shift = |days: i64| {
            let span = Duration::from_secs(days.unsigned_abs() * 86_400);
            if days < 0 { now - span } else { now + span }
        };
        Life { from: shift(from), until: shift(until) }
    }

    #[test]
    fn the_end_of_a_certificate_is_announced() {
        let now = SystemTime::now();
        let at = |from, until| standing(life(from, until, now), now, ROOT_NOTICE);
        assert_eq!(at(-1, 100), Standing::Good("ends in 100 days".to_owned()));
        assert_eq!(at(-1, 29), Standing::EndsSoon("ends in 29 days".to_owned()));
        assert_eq!(at(-9, -3), Standing::Expired("ended 3 days ago".to_owned()));
        assert_eq!(at(3, 100), Standing::NotYet("begins in 3 days".to_owned()));
    }

    #[test]
    fn a_life_is_read_from_the_certificate() {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2027, 1, 1);
        let certificate = parameters.self_signed(&key).expect("certificate");
        let life = Life::of(certificate.der()).expect("a life");
        assert_eq!(life.until.duration_since(life.from).expect("forwards"), Duration::from_secs(365 * 86_400));
        assert!(Life::of(&CertificateDer::from(vec![1, 2, 3])).is_err());
    }

    #[test]
    fn the_ends_are_read_from_the_metrics() {
        let page = "# TYPE certificate_expiry_seconds gauge\ncertificate_expiry_seconds{purpose=\"link\"} 1795539977.0\n\
                    certificate_expiry_seconds{purpose=\"local_server\"} 0.0\nother 1\n";
        let ends = ends(page);
        assert_eq!(ends.len(), 1);
        assert_eq!(ends["link"], UNIX_EPOCH + Duration::from_secs(1_795_539_977));
    }

    #[test]
    fn spans_have_one_unit() {
        for (seconds, text) in [(5, "5 s"), (600, "10 min"), (90_000, "25 h"), (864_000, "10 days")] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}
