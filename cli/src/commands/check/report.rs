//! What the checks found, and how it is printed.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::cause::Cause;
use crate::output::safe;

/// The groups, in the order in which they are run and shown. A later group builds on the earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Group {
    /// site.yaml, manifests, processes.
    Site,
    /// The API server, definitions, rights.
    Cluster,
    /// Controllers and gateways in a cluster.
    Programs,
    /// Certificates, trust, clock.
    Trust,
    /// UDP and the state of each link.
    Links,
    /// What the peers export against what is mirrored here.
    Catalogue,
    /// Names.
    Dns,
    /// One probe through each mirrored service.
    Services,
    /// What is exported here.
    Exports,
}

impl Group {
    const fn title(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Cluster => "Kubernetes cluster",
            Self::Programs => "controllers and gateways",
            Self::Trust => "certificates and trust",
            Self::Links => "links",
            Self::Catalogue => "catalogue",
            Self::Dns => "DNS",
            Self::Services => "mirrored services",
            Self::Exports => "exports",
        }
    }
}

/// Passed checks of one group that are shown line by line; with more of them only their number is shown, so that a failure
/// among thousands is not lost. JSON has them all.
const LINES: usize = 30;

/// Checks that did not pass for one and the same reason that are named. A link that is down is the reason for thousands.
const ALIKE: usize = 5;

/// Reasons of one group that are told, of failures and of warnings each: more than anybody mends before checking again.
const REASONS: usize = 50;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Works, and somebody should look at it. Does not change the exit code.
    Warning,
    /// Does not work. Exit code 1.
    Failure,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Check {
    /// Its group.
    pub(crate) group: Group,
    /// What is checked, as a sentence that is true when it is well: `west: the link is connected`.
    pub(crate) name: String,
    /// How it ended.
    pub(crate) verdict: Verdict,
    /// Why it did not pass, in one word for programs; where it is one of the known causes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<Cause>,
    /// What was found.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    /// What to do; on every warning and failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

/// All checks of one run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Whether nothing failed.
    ok: bool,
    /// How many ended how.
    passed: usize,
    warnings: usize,
    failures: usize,
    checks: Vec<Check>,
}

impl Report {
    /// A report without checks.
    pub(crate) fn new() -> Self {
        Self { ok: true, ..Self::default() }
    }

    /// As it should be; `found` says what that is, and may be empty.
    pub(crate) fn ok(&mut self, group: Group, name: impl Into<String>, found: impl Into<String>) {
        self.add(group, name.into(), Verdict::Ok, found.into(), None);
    }

    /// Works, but look at it.
    pub(crate) fn warn(
        &mut self,
        group: Group,
        name: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(group, name.into(), Verdict::Warning, reason.into(), Some(remedy.into()));
    }

    /// Does not work.
    pub(crate) fn fail(
        &mut self,
        group: Group,
        name: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(group, name.into(), Verdict::Failure, reason.into(), Some(remedy.into()));
    }

    /// Says why the last check did not pass. Says nothing about one that passed.
    pub(crate) fn because(&mut self, cause: impl Into<Option<Cause>>) {
        if let Some(check) = self.checks.last_mut().filter(|check| check.verdict != Verdict::Ok) {
            check.cause = cause.into();
        }
    }

    fn add(&mut self, group: Group, name: String, verdict: Verdict, reason: String, remedy: Option<String>) {
        match verdict {
            Verdict::Ok => self.passed += 1,
            Verdict::Warning => self.warnings += 1,
            Verdict::Failure => {
                self.failures += 1;
                self.ok = false;
            }
        }
        self.checks.push(Check { group, name, verdict, cause: None, reason, remedy });
    }

    /// Whether nothing failed.
    pub(crate) fn passed(&self) -> bool {
        self.ok
    }

    /// How many checks failed.
    pub(crate) fn failures(&self) -> usize {
        self.failures
    }

    /// The checks, in the order in which they ran.
    #[cfg(test)]
    pub(crate) fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// For people: grouped, the reason below what is not well, the remedy below the reason.
    pub(crate) fn render(&self, colour: bool) -> String {
        let mut page = String::new();
        // What is gathered late belongs to an early group now and then.
        let mut checks: Vec<&Check> = self.checks.iter().collect();
        checks.sort_by_key(|check| check.group);
        for checks in checks.chunk_by(|one, next| one.group == next.group) {
            let gap = if page.is_empty() { "" } else { "\n" };
            let _infallible = writeln!(page, "{gap}{}", checks[0].group.title());
            let passed = checks.iter().filter(|check| check.verdict == Verdict::Ok).count();
            let short = passed > LINES;
            for alike in alike(checks, short) {
                render_alike(&alike, &mut page, colour);
            }
            if short {
                let others = if passed < checks.len() { " others" } else { "" };
                let summary = Check::summary(checks[0].group, format!("{passed}{others} passed"));
                render_alike(&[&summary], &mut page, colour);
            }
        }
        let verdict = if self.ok { "all checks passed" } else { "not all checks passed" };
        let _infallible = writeln!(
            page,
            "\n{verdict}: {} ok, {} with a warning, {} failed",
            self.passed, self.warnings, self.failures
        );
        page
    }
}

/// The checks of one group that are shown: each that passed by itself (none if `short`), those that did not by what they have
/// in common, in the order of the first of them.
fn alike<'a>(checks: &[&'a Check], short: bool) -> Vec<Vec<&'a Check>> {
    let mut all: Vec<Vec<&Check>> = Vec::new();
    let mut places: HashMap<(Verdict, &str, Option<&str>), usize> = HashMap::new();
    for check in checks.iter().filter(|check| !short || check.verdict != Verdict::Ok) {
        if check.verdict == Verdict::Ok {
            all.push(vec![check]);
            continue;
        }
        let place = *places.entry((check.verdict, &check.reason, check.remedy.as_deref())).or_insert(all.len());
        match all.get_mut(place) {
            Some(others) => others.push(check),
            None => all.push(vec![check]),
        }
    }
    for verdict in [Verdict::Failure, Verdict::Warning] {
        let mut told = 0;
        let mut left_out = Vec::new();
        all.retain(|alike| {
            let is_it = alike.first().is_some_and(|check| check.verdict == verdict);
            told += usize::from(is_it);
            let keep = !is_it || told <= REASONS;
            if !keep {
                left_out.extend(alike.iter().copied());
            }
            keep
        });
        // Shown by their number alone, see `render_alike`.
        all.extend((!left_out.is_empty()).then_some(left_out));
    }
    all
}

/// Checks with one verdict: names first, then what all of them have in common.
fn render_alike(alike: &[&Check], page: &mut String, colour: bool) {
    let Some(first) = alike.first() else { return };
    let same = alike.iter().all(|check| check.reason == first.reason && check.remedy == first.remedy);
    if !same {
        let count = alike.len();
        let _infallible =
            writeln!(page, "  {}  {count} more, for other reasons (-o json has them all)", first.word(colour));
        return;
    }
    // One name takes no more room than the line that would leave it out.
    let named = if alike.len() == ALIKE + 1 { alike.len() } else { alike.len().min(ALIKE) };
    for check in alike.iter().take(named) {
        let (word, name, reason) = (check.word(colour), safe(&check.name), safe(&check.reason));
        let _infallible = match check.verdict {
            Verdict::Ok if !reason.is_empty() => writeln!(page, "  {word}  {name} ({reason})"),
            _ => writeln!(page, "  {word}  {name}"),
        };
    }
    if named < alike.len() {
        let more = alike.len() - named;
        let _infallible =
            writeln!(page, "  {}  {more} more for the same reason (-o json has them all)", first.word(colour));
    }
    if first.verdict != Verdict::Ok {
        let _infallible = writeln!(page, "           {}", safe(&first.reason));
    }
    first.render_remedy(page);
}

impl Check {
    /// One line for many checks that passed.
    fn summary(group: Group, name: String) -> Self {
        Self { group, name, verdict: Verdict::Ok, cause: None, reason: String::new(), remedy: None }
    }

    fn word(&self, colour: bool) -> String {
        let (word, escape) = match self.verdict {
            Verdict::Ok => ("ok     ", "\x1b[32m"),
            Verdict::Warning => ("warning", "\x1b[33m"),
            Verdict::Failure => ("FAILED ", "\x1b[31m"),
        };
        if colour { format!("{escape}{word}\x1b[0m") } else { word.to_owned() }
    }

    fn render_remedy(&self, page: &mut String) {
        if let Some(remedy) = &self.remedy {
            // A remedy may show a manifest: its lines stay lines.
            let mut lines = remedy.lines();
            let first = lines.next().unwrap_or_default();
            let _infallible = writeln!(page, "           remedy: {}", safe(first));
            for line in lines {
                let _infallible = writeln!(page, "             {}", safe(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new();
        report.ok(Group::Site, "site.yaml is valid", "east");
        report.ok(Group::Site, "the gateway runs", "");
        report.warn(Group::Trust, "certificates are valid", "the root ends in 3 days", "renew it");
        report.fail(Group::Links, "west: connected", "no answer", "start it:\nkind: Link\n  x: \x1b[2J");
        report
    }

    #[test]
    fn people_read_groups_reasons_and_remedies() {
        assert_eq!(
            report().render(false),
            "site\n  ok       site.yaml is valid (east)\n  ok       the gateway runs\n\ncertificates and trust\n  \
             warning  certificates are valid\n           the root ends in 3 days\n           remedy: renew it\n\nlinks\n  \
             FAILED   west: connected\n           no answer\n           remedy: start it:\n             kind: Link\n               \
             x: \\u001b[2J\n\nnot all checks passed: 2 ok, 1 with a warning, 1 failed\n"
        );
        assert!(report().render(true).contains("\x1b[31mFAILED \x1b[0m"));
    }

    #[test]
    fn thousands_of_good_checks_do_not_hide_the_bad_one() {
        let mut report = Report::new();
        for number in 0..10_000 {
            report.ok(Group::Services, format!("service {number} works"), "");
        }
        report.fail(Group::Services, "service x works", "no", "yes");
        let page = report.render(false);
        assert!(page.starts_with("mirrored services\n  FAILED   service x works\n"), "{page}");
        assert!(page.contains("  ok       10000 others passed\n") && page.lines().count() < 10, "{page}");
    }

    #[test]
    fn one_reason_for_many_checks_is_told_once() {
        let mut report = Report::new();
        for number in 0..5_000 {
            report.fail(
                Group::Services,
                format!("web-{number} port 80 works"),
                "the link to west is down",
                "mend the link",
            );
        }
        report.fail(Group::Services, "db port 5432 works", "not listening", "give the port free");
        let page = report.render(false);
        let lines: Vec<&str> = page.lines().collect();
        assert_eq!(
            lines[5..],
            [
                "  FAILED   web-4 port 80 works",
                "  FAILED   4995 more for the same reason (-o json has them all)",
                "           the link to west is down",
                "           remedy: mend the link",
                "  FAILED   db port 5432 works",
                "           not listening",
                "           remedy: give the port free",
                "",
                "not all checks passed: 0 ok, 0 with a warning, 5001 failed",
            ]
        );
        assert_eq!(report.checks().len(), 5_001, "programs see each");
    }

    #[test]
    fn thousands_of_reasons_are_cut_and_counted() {
        let mut report = Report::new();
        for number in 0..5_000 {
            report.warn(Group::Exports, format!("web-{number} is well"), format!("reason {number}"), "mend it");
        }
        report.fail(Group::Exports, "the last", "no", "yes");
        let page = report.render(false);
        assert!(page.contains("  FAILED   the last\n"), "warnings hide no failure: {page}");
        assert!(page.contains("  warning  4950 more, for other reasons (-o json has them all)\n"), "{page}");
        assert!(page.lines().count() < 160, "{page}");
    }

    #[test]
    fn programs_read_json() {
        let json = serde_json::to_value(report()).expect("serialises");
        assert_eq!(json["ok"], false);
        assert_eq!(json["failures"], 1);
        assert_eq!(json["checks"][3]["verdict"], "failure");
        assert_eq!(json["checks"][0]["group"], "site");
        assert!(json["checks"][1].get("remedy").is_none());
    }

    #[test]
    fn a_cause_belongs_to_the_last_check_and_to_none_that_passed() {
        let mut report = report();
        report.because(Cause::PeerAddress);
        report.ok(Group::Dns, "DNS answers", "");
        report.because(Cause::DnsSilent);
        let json = serde_json::to_value(report).expect("serialises");
        assert_eq!(json["checks"][3]["cause"], "peerAddress");
        assert!(json["checks"][2].get("cause").is_none() && json["checks"][4].get("cause").is_none());
    }

    #[test]
    fn a_warning_is_no_failure() {
        let mut report = Report::new();
        assert!(report.passed());
        report.warn(Group::Site, "x", "y", "z");
        assert!(report.passed());
        report.fail(Group::Site, "x", "y", "z");
        assert!(!report.passed());
    }
}
