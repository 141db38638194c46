use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::mirror::{MirrorSet, Refused};
use crate::testkit::{cluster, key, wanted};

fn condition(kind: &str, status: &str, reason: &str) -> Condition {
    Condition {
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
        message: "before".to_owned(),
        observed_generation: None,
        reason: reason.to_owned(),
        status: status.to_owned(),
        type_: kind.to_owned(),
    }
}

fn verdict(kind: &'static str, status: impl Into<ConditionStatus>, reason: &str) -> Verdict {
    Verdict::new(kind, status, reason, "because")
}

fn reasons(kind: Kind, before: &[Condition], after: &[Verdict]) -> Vec<String> {
    let sign = |told: &Told| if told.is_warning { '!' } else { '+' };
    of(kind, before, after).iter().map(|told| format!("{}{}", sign(told), told.reason)).collect()
}

#[test]
fn a_link_tells_when_it_comes_goes_or_is_refused() {
    let up = verdict("Connected", true, "Connected");
    let down = verdict("Connected", false, "Unreachable");
    let was_up = condition("Connected", "True", "Connected");
    let was_down = condition("Connected", "False", "Unreachable");
    let tell = |before: &[Condition], after: &[&Verdict]| {
        reasons(Kind::Link, before, &after.iter().map(|verdict| (*verdict).clone()).collect::<Vec<_>>())
    };
    assert_eq!(tell(&[], &[&up]), ["+Connected"]);
    assert_eq!(tell(std::slice::from_ref(&was_up), &[&up]), Vec::<String>::new(), "a new leader repeats nothing");
    assert_eq!(tell(std::slice::from_ref(&was_up), &[&down]), ["!Disconnected"]);
    assert_eq!(tell(&[], &[&down]), ["!NotConnected"]);
    assert_eq!(tell(std::slice::from_ref(&was_down), &[&down]), Vec::<String>::new());
    assert_eq!(tell(std::slice::from_ref(&was_down), &[&up]), ["+Connected"]);
    let mismatch = verdict("Connected", false, "TrustBundleMismatch");
    let untrusted = verdict("TrustValid", false, "TrustBundleMismatch");
    assert_eq!(tell(&[was_down], &[&mismatch, &untrusted]), ["!Refused"]);
    let unknown = verdict("Connected", ConditionStatus::Unknown, "NoGateway");
    assert_eq!(tell(&[was_up], &[&unknown]), Vec::<String>::new(), "nobody knows: nothing to tell");
    assert_eq!(tell(&[], &[&verdict("Accepted", false, "SelfLink")]), ["!NotAccepted"]);
    let told = of(Kind::Link, &[], &[verdict("Connected", false, "Unreachable")]);
    assert_eq!(told[0].note, "Unreachable: because");
}

#[test]
fn an_export_tells_what_is_wrong_and_that_it_is_right_again() {
    let tell = |before: &[Condition], after: Verdict| reasons(Kind::ServiceExport, before, &[after]);
    assert!(tell(&[], verdict("Valid", true, "Valid")).is_empty(), "all is well: nothing to tell");
    assert_eq!(tell(&[], verdict("Valid", false, "NoService")), ["!InvalidExport"]);
    let was_invalid = [condition("Valid", "False", "NoService")];
    assert!(tell(&was_invalid, verdict("Valid", false, "NoService")).is_empty());
    assert_eq!(tell(&was_invalid, verdict("Valid", false, "InvalidServiceType")), ["!InvalidExport"]);
    assert_eq!(tell(&was_invalid, verdict("Valid", true, "Valid")), ["+Exported"]);
    let was_fine = [condition("Conflict", "False", "NoConflicts")];
    assert_eq!(tell(&was_fine, verdict("Conflict", true, "PortConflict")), ["!ExportConflict"]);
    let was_in_conflict = [condition("Conflict", "True", "PortConflict")];
    assert_eq!(tell(&was_in_conflict, verdict("Conflict", true, "PortConflict,TypeConflict")), ["!ExportConflict"]);
    assert_eq!(tell(&was_in_conflict, verdict("Conflict", false, "NoConflicts")), ["+ConflictSolved"]);
    let refused = verdict("Accepted", false, "PolicyConflict");
    assert_eq!(reasons(Kind::ClusterTrafficPolicy, &[], &[refused]), ["!NotAccepted"]);
}

#[test]
fn notes_fit_and_hold_no_control_characters() {
    let long = Verdict::new("Connected", false, "Unreachable", format!("\u{1b}[2J{}", "ä".repeat(3000)));
    let told = of(Kind::Link, &[], &[long]);
    assert!(told[0].note.len() <= NOTE_MAX && !told[0].note.contains('\u{1b}'));
}

fn link(name: &str) -> ObjectKey {
    ObjectKey { kind: Kind::Link, namespace: String::new(), name: name.to_owned() }
}

fn told(note: &str) -> Told {
    Told { is_warning: true, reason: "Disconnected", action: "Connect", note: note.to_owned() }
}

#[test]
fn what_happens_again_counts_in_one_series() {
    let start = Instant::now();
    let mut book = Book::new(start);
    let (west, lost) = (link("west"), told("Unreachable"));
    assert_eq!(book.enter(&west, &lost, start), Some(Entry::New));
    assert_eq!(book.enter(&west, &lost, start), None, "not there yet");
    book.made(&west, &lost, Some("west.1".to_owned()));
    assert_eq!(book.enter(&west, &lost, start + Duration::from_secs(5)), None, "not so often");
    let later = start + SERIES;
    assert_eq!(book.enter(&west, &lost, later), Some(Entry::Again { name: "west.1".to_owned(), count: 4 }));
    assert_eq!(book.enter(&west, &told("Timeout"), later), Some(Entry::New), "another reason is another event");
    assert_eq!(book.enter(&link("north"), &lost, later), Some(Entry::New));
    assert_eq!(book.enter(&west, &lost, later + AGAIN), Some(Entry::New), "long ago");
    book.made(&west, &lost, None);
    assert_eq!(book.enter(&west, &lost, later + AGAIN), Some(Entry::New), "could not be written");
}

#[test]
fn no_object_and_no_crowd_of_objects_floods_the_api_server() {
    let start = Instant::now();
    let mut book = Book::new(start);
    let many = (0..100).filter(|number| book.enter(&link("west"), &told(&number.to_string()), start).is_some()).count();
    assert_eq!(many, BURST as usize);
    assert!(book.enter(&link("west"), &told("later"), start + REFILL).is_some());
    assert!(book.enter(&link("west"), &told("and more"), start + REFILL).is_none());
    let mut book = Book::new(start);
    let crowd =
        (0..1000).filter(|number| book.enter(&link(&number.to_string()), &told("lost"), start).is_some()).count();
    assert_eq!(crowd, BURST_ALL as usize);
}

#[test]
fn names_that_others_have_are_told_once_at_the_link() {
    let mut inputs = Inputs {
        own: cluster("east"),
        snapshot: crate::catalog::Snapshot::default(),
        peers: std::sync::Arc::default(),
        mirrors: MirrorSet::default(),
        held: crate::mirror::kubernetes::Held::default(),
        reports: crate::configuration::Reports::new(),
    };
    let id = MirrorId::Cluster { cluster: cluster("west"), service: key("shop/web") };
    let refused = Refused {
        id: id.clone(),
        object: key("shop/web-west"),
        name: String::new(),
        verdicts: vec![Verdict::new("Accepted", false, "NameInUse", "")],
        wants_front: false,
    };
    inputs.mirrors.refused = std::sync::Arc::new([(id.clone(), std::sync::Arc::new(refused))].into());
    let mut unmade = Unmade::default();
    let told = unmade.update(&inputs);
    assert_eq!(told[0].0, link("west"));
    assert!(told[0].1.note.starts_with("shop/web-west cannot be mirrored:"), "{}", told[0].1.note);
    assert!(unmade.update(&inputs).is_empty());
    let db = wanted("shop/db");
    let taken = Verdict::new("Accepted", false, "NameInUse", "");
    inputs.held = std::sync::Arc::new([(db.id.clone(), taken)].into());
    inputs.mirrors.wanted = std::sync::Arc::new([(db.id.clone(), std::sync::Arc::new(db))].into());
    assert_eq!(unmade.update(&inputs).len(), 1, "what the API server has counts as well");
    assert!(unmade.update(&inputs).is_empty());
    // A namespace that is not there is no name that somebody has, and is told of once for all that would be in it.
    let (web, db) = (wanted("shop/web"), wanted("shop/db"));
    let absent = || Verdict::new("Accepted", false, "NamespaceAbsent", "");
    inputs.held = std::sync::Arc::new([(web.id.clone(), absent()), (db.id.clone(), absent())].into());
    let both = [web, db].map(|one| (one.id.clone(), std::sync::Arc::new(one)));
    inputs.mirrors.wanted = std::sync::Arc::new(both.into());
    let told = unmade.update(&inputs);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0].0, told[0].1.reason, told[0].1.is_warning), (&link("west"), "NamespaceAbsent", false));
    assert!(told[0].1.note.starts_with("nothing is mirrored into shop:"), "{}", told[0].1.note);
    assert!(unmade.update(&inputs).is_empty());
    let id = inputs.mirrors.wanted.keys().next().unwrap().clone();
    inputs.held = std::sync::Arc::new([(id, Verdict::new("Accepted", false, "Refused", "quota"))].into());
    let told = unmade.update(&inputs);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0].0, told[0].1.reason, told[0].1.is_warning), (&link("west"), "MirrorNotMade", true));
    assert!(told[0].1.note.contains("the API server refuses"), "{}", told[0].1.note);
    assert!(unmade.update(&inputs).is_empty());
}
