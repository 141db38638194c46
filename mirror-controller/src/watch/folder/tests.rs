use std::collections::BTreeMap;

use linkspan_proto::manifest;
use proptest::prelude::*;

use super::*;

fn service(name: &str, port: u16) -> Document {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    );
    let (object, line) = manifest::parse(&text, "a").remove(0).unwrap();
    Document { object, line }
}

fn key(name: &str) -> ObjectKey {
    service(name, 1).object.key()
}

fn broken() -> Vec<Problem> {
    vec![Problem { file: "a".to_owned(), line: 1, column: 0, field: String::new(), message: "broken".to_owned() }]
}

fn applied(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .map(|event| match event {
            Event::Apply(object) => format!("+{}", object.name()),
            Event::Delete(key) => format!("-{}", key.name),
            Event::Unreadable(key) => format!("?{}", key.name),
            Event::Init | Event::InitDone => unreachable!("a folder does not tell these"),
        })
        .collect()
}

#[test]
fn changes_are_told_once_and_deletions_after_a_while() {
    let now = Instant::now();
    let mut folder = Folder::default();
    folder.read("a.yaml", vec![service("web", 80), service("api", 80)], vec![], vec![]);
    let (events, next) = folder.settle(now);
    assert_eq!(applied(&events), ["+api", "+web"]);
    assert_eq!(next, None);
    assert_eq!(folder.settle(now), (vec![], None));
    folder.read("a.yaml", vec![service("web", 81)], vec![], vec![]);
    let (events, next) = folder.settle(now);
    assert_eq!(applied(&events), ["+web"]);
    assert_eq!(next, Some(now + GRACE));
    let (events, next) = folder.settle(now + GRACE);
    assert_eq!(applied(&events), ["-api"]);
    assert_eq!(next, None);
}

#[test]
fn an_object_that_moves_between_files_is_no_event() {
    let now = Instant::now();
    let mut folder = Folder::default();
    folder.read("a.yaml", vec![service("web", 80)], vec![], vec![]);
    folder.settle(now);
    folder.gone("a.yaml");
    assert_eq!(applied(&folder.settle(now).0), Vec::<String>::new());
    folder.read("b.yaml", vec![service("web", 80)], vec![], vec![]);
    assert_eq!(folder.settle(now + GRACE * 2), (vec![], None));
}

#[test]
fn a_broken_file_keeps_what_it_does_not_show() {
    let now = Instant::now();
    let mut folder = Folder::default();
    folder.read("a.yaml", vec![service("web", 80), service("api", 80)], vec![], vec![]);
    folder.settle(now);
    folder.read("a.yaml", vec![service("web", 81)], broken(), vec![key("api")]);
    let (events, next) = folder.settle(now);
    assert_eq!(applied(&events), ["+web"], "what parses takes effect");
    assert_eq!(next, None, "what is hidden is not missing");
    assert_eq!(folder.problems().len(), 1);
    folder.read("a.yaml", vec![service("web", 81)], vec![], vec![]);
    folder.settle(now);
    assert_eq!(applied(&folder.settle(now + GRACE).0), ["-api"], "once it is whole again, what is gone is gone");
    assert!(folder.problems().is_empty());
    folder.unreadable("a.yaml", broken().remove(0));
    assert_eq!(folder.settle(now + GRACE * 9), (vec![], None));
}

#[test]
fn one_object_in_two_files_is_a_conflict_and_the_first_holds() {
    let now = Instant::now();
    let mut folder = Folder::default();
    folder.read("b.yaml", vec![service("web", 2)], vec![], vec![]);
    assert_eq!(applied(&folder.settle(now).0), ["+web"]);
    folder.read("a.yaml", vec![service("web", 1), service("web", 3)], vec![], vec![]);
    let (events, _) = folder.settle(now);
    let [Event::Apply(object)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(**object, service("web", 1).object);
    let problems = folder.problems();
    assert_eq!(problems.len(), 2);
    assert!(problems[0].message.contains("defined twice"), "{problems:?}");
    assert_eq!(problems[1].file, "b.yaml");
    assert!(problems[1].message.contains("defined in a.yaml:1 too"), "{problems:?}");
    folder.gone("a.yaml");
    let (events, _) = folder.settle(now);
    assert_eq!(applied(&events), ["+web"]);
    assert!(folder.problems().is_empty());
}

#[test]
fn an_object_that_was_never_readable_is_told_so() {
    let now = Instant::now();
    let mut folder = Folder::default();
    folder.read("a.yaml", vec![], broken(), vec![key("web")]);
    assert_eq!(applied(&folder.settle(now).0), ["?web"]);
    assert_eq!(applied(&folder.settle(now).0), Vec::<String>::new());
    folder.read("a.yaml", vec![service("web", 80)], vec![], vec![]);
    assert_eq!(applied(&folder.settle(now).0), ["+web"]);
    folder.read("b.yaml", vec![], broken(), vec![key("api")]);
    assert_eq!(applied(&folder.settle(now).0), ["?api"]);
    folder.gone("b.yaml");
    assert_eq!(applied(&folder.settle(now).0), ["-api"]);
}

proptest! {
    /// Whatever happens to the files, the events lead to what a fresh look at the same files would tell.
    #[test]
    fn events_add_up_to_the_files(ops in prop::collection::vec((0..4_u8, prop::collection::btree_map(0..6_u8, 1..4_u16, 0..4), 0..5_u8), 1..40)) {
        let mut now = Instant::now();
        let mut folder = Folder::default();
        let mut told: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        let mut files: BTreeMap<String, Vec<Document>> = BTreeMap::new();
        for (file, services, op) in ops {
            let name = format!("{file}.yaml");
            if op == 0 {
                folder.gone(&name);
                files.remove(&name);
            } else {
                let documents: Vec<_> = services.iter().map(|(index, port)| service(&format!("s{index}"), *port)).collect();
                folder.read(&name, documents.clone(), vec![], vec![]);
                files.insert(name, documents);
            }
            now += GRACE / 3;
            replay(&mut told, folder.settle(now).0);
        }
        now += GRACE;
        replay(&mut told, folder.settle(now).0);
        now += GRACE;
        replay(&mut told, folder.settle(now).0);
        let mut fresh = Folder::default();
        for (name, documents) in files {
            fresh.read(&name, documents, vec![], vec![]);
        }
        let mut expected = BTreeMap::new();
        replay(&mut expected, fresh.settle(now).0);
        prop_assert_eq!(told, expected);
    }
}

fn replay(told: &mut BTreeMap<ObjectKey, Object>, events: Vec<Event>) {
    for event in events {
        match event {
            Event::Apply(object) => drop(told.insert(object.key(), *object)),
            Event::Delete(key) => drop(told.remove(&key)),
            _ => {}
        }
    }
}
