use std::collections::BTreeSet;
use std::sync::Mutex;

use super::*;

/// Notes what it hears.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Recorder for Heard {
    fn begin(&self, _entry: &Entry) {
        self.0.lock().expect("lock").push("begin".to_owned());
    }

    fn progress(&self, _entry: &Entry, received: u64, sent: u64) {
        self.0.lock().expect("lock").push(format!("progress {received} {sent}"));
    }

    fn end(&self, entry: &Entry, outcome: Outcome, elapsed: Duration) {
        let line = format!("end {outcome} {} {} {}", entry.received, entry.sent, elapsed.as_millis());
        self.0.lock().expect("lock").push(line);
    }
}

fn record(heard: &Arc<Heard>) -> Record {
    Record::open(Arc::clone(heard) as Arc<dyn Recorder>, Entry::new(Direction::Outbound, Protocol::Tcp))
}

fn heard(heard: &Heard) -> Vec<String> {
    heard.0.lock().expect("lock").clone()
}

#[tokio::test(start_paused = true)]
async fn ends_once_with_all_bytes_told() {
    let log = Arc::new(Heard::default());
    let mut record = record(&log);
    record.received(10);
    record.sent(20);
    tokio::time::advance(Duration::from_millis(7)).await;
    record.finish(Outcome::Ok);
    assert_eq!(heard(&log), ["begin", "progress 10 20", "end ok 10 20 7"]);
}

#[tokio::test(start_paused = true)]
async fn long_transfers_are_told_on_the_way() {
    let log = Arc::new(Heard::default());
    let mut record = record(&log);
    for _ in 0..3 {
        record.received(400 * 1024);
    }
    assert_eq!(heard(&log), ["begin", "progress 1228800 0"]);
    record.finish(Outcome::Ok);
    assert_eq!(heard(&log).len(), 3);
}

#[test]
fn a_dropped_record_is_abandoned() {
    let log = Arc::new(Heard::default());
    drop(record(&log));
    assert!(heard(&log)[1].starts_with("end abandoned"));
}

#[test]
fn the_first_outcome_is_the_cause() {
    let log = Arc::new(Heard::default());
    let mut record = record(&log);
    record.ended(Outcome::LinkLost);
    record.ended(Outcome::ClientGone);
    record.finish(Outcome::Ok);
    assert!(heard(&log)[1].starts_with("end link_lost"));
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_counts() {
    let log = Arc::new(Heard::default());
    let mut record = record(&log);
    tokio::time::advance(Duration::from_millis(3)).await;
    record.answered();
    tokio::time::advance(Duration::from_millis(3)).await;
    record.answered();
    assert_eq!(record.entry().first_byte, Some(Duration::from_millis(3)));
}

fn all() -> impl Iterator<Item = Outcome> {
    [
        Outcome::Ok,
        Outcome::ClientGone,
        Outcome::ClientInvalid,
        Outcome::ClientUntrusted,
        Outcome::NoRoute,
        Outcome::NoTarget,
        Outcome::LinkLost,
        Outcome::Drained,
        Outcome::Abandoned,
    ]
    .into_iter()
    .chain(Refusal::ALL.into_iter().map(Outcome::Refused))
}

#[test]
fn labels_are_distinct_words() {
    let labels: BTreeSet<_> = all().map(Outcome::label).collect();
    assert_eq!(labels.len(), all().count());
    assert!(labels.iter().all(|label| label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')));
    // The same word for the same thing: our own idle limit and the peer's.
    assert_eq!(Outcome::Idle.label(), Refusal::Idle.reason());
}

#[test]
fn every_failure_has_an_origin_and_a_status() {
    for outcome in all().filter(|outcome| !outcome.is_success()) {
        for direction in [Direction::Outbound, Direction::Inbound] {
            assert!(outcome.origin(direction).is_some(), "{outcome}");
        }
        if outcome != Outcome::Abandoned {
            assert!(outcome.http_status().is_some_and(|status| (400..600).contains(&status)), "{outcome}");
        }
    }
}

#[test]
fn a_dead_backend_is_the_backends_fault_on_both_sides() {
    for direction in [Direction::Outbound, Direction::Inbound] {
        assert_eq!(Outcome::Refused(Refusal::ConnectRefused).origin(direction), Some(Origin::Backend));
    }
    assert_eq!(Outcome::Refused(Refusal::Denied).origin(Direction::Outbound), Some(Origin::Remote));
    assert_eq!(Outcome::Refused(Refusal::Draining).origin(Direction::Inbound), Some(Origin::Us));
}
