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

fn policy(name: &str) -> Document {
    let text = format!(
        "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{allow: []}}\n"
    );
    let (object, line) = manifest::parse(&text, "a").remove(0).unwrap();
    Document { object, line }
}

/// The same policy with a rule that lets every peer in.
fn allowing(mut policy: Document) -> Document {
    if let Object::ExportPolicy(policy) = &mut policy.object {
        policy.spec.allow.push(linkspan_proto::resources::AllowRule::default());
    }
    policy
}

fn link(address: &str) -> Document {
    let spec = linkspan_proto::resources::LinkSpec {
        trust_domain: linkspan_proto::identity::TrustDomain::parse("west.linkspan.internal").unwrap(),
        trust_bundle: String::new(),
        addresses: vec![address.parse().unwrap()],
        default_policy: linkspan_proto::configuration::DefaultPolicy::Allow,
        transport: linkspan_proto::configuration::Transport::Auto,
        congestion: Default::default(),
    };
    Document { object: Object::Link(linkspan_proto::resources::Link::new("west", spec)), line: 1 }
}

/// What a broken document says of itself; an empty text is what cannot be told.
fn about(kind: &str, namespace: &str, name: &str) -> Subject {
    let told = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Subject { kind: told(kind), api_version: None, namespace: told(namespace), name: told(name), several: false }
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
            Event::Doubt(doubt) if doubt.site => "?".to_owned(),
            Event::Doubt(doubt) => format!("?{}", doubt.namespaces.iter().cloned().collect::<Vec<_>>().join(",")),
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
    folder.gone("a.yaml", now);
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
    folder.read("a.yaml", vec![service("web", 81)], broken(), vec![about("Service", "shop", "api")]);
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
fn one_object_in_two_files_is_a_conflict_and_the_first_by_name_holds_if_both_are_new() {
    let now = Instant::now();
    let mut folder = Folder::default();
    folder.read("b.yaml", vec![service("web", 2)], vec![], vec![]);
    folder.read("a.yaml", vec![service("web", 1), service("web", 3)], vec![], vec![]);
    assert_eq!(folder.settle(now).0, [Event::Apply(Box::new(service("web", 1).object))]);
    let problems = folder.problems();
    assert_eq!(problems.len(), 2);
    assert!(problems[0].message.contains("defined twice"), "{problems:?}");
    assert_eq!(problems[1].file, "b.yaml");
    assert!(problems[1].message.contains("defined in a.yaml:1 too; that one holds"), "{problems:?}");
    folder.gone("a.yaml", now);
    assert!(folder.settle(now).0.is_empty(), "it may come back");
    assert_eq!(folder.settle(now + GRACE).0, [Event::Apply(Box::new(service("web", 2).object))]);
    assert!(folder.problems().is_empty());
}

/// Whatever a second file is named, what is in force stays: a policy that forbids is not displaced by one that allows.
#[test]
fn an_object_stays_with_the_file_that_held_it_first() {
    let now = Instant::now();
    let open = allowing(policy("closed"));
    for (held, other) in
        [(policy("closed"), open), (service("web", 1), service("web", 2)), (link("one:1"), link("two:2"))]
    {
        let mut folder = Folder::default();
        folder.read("held.yaml", vec![held.clone()], vec![], vec![]);
        folder.settle(now);
        for name in ["a.yaml", "z.yaml"] {
            folder.read(name, vec![other.clone()], vec![], vec![]);
            assert_eq!(folder.settle(now), (vec![], None));
            let problems = folder.problems();
            assert!(problems.iter().any(|problem| problem.file == name), "{problems:?}");
            assert!(
                problems.iter().all(|problem| problem.file != "held.yaml"),
                "the newcomer is to blame: {problems:?}"
            );
        }
        let mut restarted = Folder::new(folder.holders().clone());
        for (name, document) in [("a.yaml", &other), ("held.yaml", &held), ("z.yaml", &other)] {
            restarted.read(name, vec![document.clone()], vec![], vec![]);
        }
        assert_eq!(restarted.settle(now).0, [Event::Apply(Box::new(held.object.clone()))], "and over a restart");
        // Between two steps of an editor nobody takes its place.
        restarted.gone("held.yaml", now);
        assert!(restarted.settle(now).0.is_empty());
        restarted.read("held.yaml", vec![held.clone()], vec![], vec![]);
        assert_eq!(restarted.settle(now + GRACE / 2), (vec![], None));
    }
}

/// Nothing tells which of them was first, and one of them may allow what the other forbids.
#[test]
fn two_new_policies_of_one_name_close_what_they_select() {
    let now = Instant::now();
    let mut folder = Folder::default();
    folder.read("a.yaml", vec![allowing(policy("closed"))], vec![], vec![]);
    folder.read("b.yaml", vec![policy("closed")], vec![], vec![]);
    let closed = [Event::Apply(Box::new(policy("closed").object))];
    assert_eq!(folder.settle(now).0, closed, "no rule is left");
    let problems = folder.problems();
    assert_eq!(problems.iter().map(|problem| problem.file.as_str()).collect::<Vec<_>>(), ["a.yaml", "b.yaml"]);
    assert!(problems[0].message.contains("defined in b.yaml:1 too"), "{problems:?}");
    let mut restarted = Folder::new(folder.holders().clone());
    restarted.read("a.yaml", vec![allowing(policy("closed"))], vec![], vec![]);
    restarted.read("b.yaml", vec![policy("closed")], vec![], vec![]);
    assert_eq!(restarted.settle(now).0, closed);
    restarted.gone("b.yaml", now);
    assert!(restarted.settle(now).0.is_empty(), "it may come back");
    let later = now + GRACE * 99;
    assert_eq!(restarted.settle(later).0, [Event::Apply(Box::new(allowing(policy("closed")).object))]);
    assert!(restarted.problems().is_empty());
    // Two that say the same are no question.
    let mut same = Folder::default();
    for name in ["a.yaml", "b.yaml"] {
        same.read(name, vec![allowing(policy("closed"))], vec![], vec![]);
    }
    assert_eq!(same.settle(now).0, [Event::Apply(Box::new(allowing(policy("closed")).object))]);
    assert_eq!(same.problems().len(), 1);
}

#[test]
fn what_may_be_a_policy_puts_its_namespace_in_doubt_or_the_site() {
    let now = Instant::now();
    for (subjects, expected) in [
        (vec![about("ExportPolicy", "shop", "closed")], "?shop"),
        (vec![about("ExportPolcy", "shop", "")], "?shop"),
        (vec![about("ExportPolicy", "", "closed")], "?"),
        (vec![about("", "shop", "")], "?shop"),
        (vec![about("", "", "")], "?"),
        (vec![about("", "shop", ""), about("ExportPolicy", "bank", "a")], "?bank,shop"),
    ] {
        let mut folder = Folder::default();
        folder.read("a.yaml", vec![service("web", 80)], broken(), subjects.clone());
        assert_eq!(applied(&folder.settle(now).0), [expected, "+web"], "{subjects:?}");
        assert_eq!(applied(&folder.settle(now).0), Vec::<String>::new());
        assert!(folder.problems().iter().any(|problem| problem.message.contains("closed to everybody")));
        folder.read("a.yaml", vec![service("web", 80), policy("closed")], vec![], vec![]);
        let events = applied(&folder.settle(now).0);
        assert_eq!(events, ["+closed", "?"], "the doubt ends behind what settles it");
        assert!(folder.problems().is_empty());
    }
    let mut folder = Folder::default();
    let foreign = Subject { api_version: Some("apps/v1".to_owned()), ..about("Deployment", "", "") };
    folder.read("a.yaml", vec![], broken(), vec![about("Service", "shop", "web"), foreign]);
    folder.unreadable("b.yaml", broken().remove(0));
    assert_eq!(applied(&folder.settle(now).0), ["?"], "a file that cannot be read may hold anything");
    folder.gone("b.yaml", now);
    assert_eq!(folder.settle(now).0, [Event::Doubt(Doubt::default())]);
}

#[test]
fn what_was_in_force_stands_for_one_object_and_not_for_two() {
    let now = Instant::now();
    for (several, expected) in [(false, Vec::new()), (true, vec!["?".to_owned()])] {
        let mut folder = Folder::default();
        folder.read("a.yaml", vec![policy("closed")], vec![], vec![]);
        folder.settle(now);
        let glued = Subject { several, ..about("ExportPolicy", "", "") };
        folder.read("a.yaml", vec![], broken(), vec![glued]);
        assert_eq!(applied(&folder.settle(now).0), expected, "{several}");
    }
}

#[test]
fn what_was_in_force_stands_for_what_cannot_be_read() {
    let now = Instant::now();
    let held = || {
        let mut folder = Folder::default();
        folder.read("a.yaml", vec![service("web", 80), policy("closed")], vec![], vec![]);
        folder.settle(now);
        folder
    };
    for subject in [about("ExportPolicy", "shop", "closed"), about("ExportPolcy", "", ""), about("", "", "")] {
        let mut folder = held();
        folder.read("a.yaml", vec![service("web", 80)], broken(), vec![subject.clone()]);
        assert_eq!(folder.settle(now), (vec![], None), "{subject:?}");
    }
    // One object stands for one document, and not for one that names another.
    for subjects in [
        vec![about("", "", ""), about("", "", "")],
        vec![about("ExportPolicy", "shop", "closed"), about("", "", "")],
        vec![about("ExportPolicy", "", "other")],
    ] {
        let mut folder = held();
        folder.read("a.yaml", vec![service("web", 80)], broken(), subjects.clone());
        assert_eq!(applied(&folder.settle(now).0), ["?"], "{subjects:?}");
    }
    let mut folder = held();
    folder.unreadable("a.yaml", broken().remove(0));
    assert_eq!(folder.settle(now), (vec![], None));
}

/// Renaming a file and breaking it at once must not lift a policy.
#[test]
fn what_a_broken_document_names_is_not_deleted() {
    let now = Instant::now();
    let mut folder = Folder::default();
    folder.read("a.yaml", vec![policy("closed")], vec![], vec![]);
    folder.settle(now);
    folder.gone("a.yaml", now);
    folder.read("b.yaml", vec![], broken(), vec![about("ExportPolicy", "shop", "closed")]);
    folder.settle(now);
    assert_eq!(folder.settle(now + SETTLE), (vec![], None));
    folder.gone("b.yaml", now + SETTLE);
    folder.settle(now + SETTLE);
    assert_eq!(applied(&folder.settle(now + SETTLE * 2).0), ["-closed"]);
}

/// `generator > file` empties the file first; `mv` and `cat` leave a moment without it.
#[test]
fn a_policy_stands_while_its_file_is_written_anew() {
    let now = Instant::now();
    let before = |late: Duration| now + SETTLE + late - Duration::from_millis(1);
    let mut folder = Folder::default();
    folder.read("a.yaml", vec![service("web", 80), policy("closed")], vec![], vec![]);
    folder.settle(now);
    folder.read("a.yaml", vec![service("api", 80)], vec![], vec![]);
    assert_eq!(applied(&folder.settle(now).0), ["+api"]);
    assert_eq!(applied(&folder.settle(now + GRACE).0), ["-web"], "what closes does not wait");
    let late = SETTLE / 2;
    folder.read("a.yaml", vec![service("api", 81)], vec![], vec![]);
    assert_eq!(applied(&folder.settle(now + late).0), ["+api"]);
    assert_eq!(folder.settle(before(late)), (vec![], Some(now + late + SETTLE)), "since the last change of the file");
    assert_eq!(applied(&folder.settle(now + late + SETTLE).0), ["-closed"]);

    let mut folder = Folder::default();
    folder.read("a.yaml", vec![service("web", 80), policy("closed")], vec![], vec![]);
    folder.settle(now);
    folder.gone("a.yaml", now);
    folder.settle(now);
    assert_eq!(applied(&folder.settle(before(Duration::ZERO)).0), ["-web"]);
    folder.read("a.yaml", vec![], broken(), vec![about("", "", "")]);
    assert_eq!(folder.settle(now + SETTLE * 2), (vec![], None), "it came back broken, and what was deleted stays so");
    folder.gone("a.yaml", now);
    folder.settle(now);
    assert_eq!(applied(&folder.settle(now + SETTLE).0), ["-closed"]);
    assert_eq!(folder.take_forgotten(), ["a.yaml"]);
}

#[test]
fn a_policy_stands_while_its_file_is_empty() {
    let now = Instant::now();
    let empty = || Problem::at_line("a.yaml", 0, "is empty".to_owned());
    let mut folder = Folder::default();
    folder.read("a.yaml", vec![service("web", 80), policy("closed")], vec![], vec![]);
    folder.settle(now);
    folder.emptied("a.yaml", empty());
    folder.settle(now);
    assert_eq!(applied(&folder.settle(now + GRACE).0), ["-web"]);
    assert_eq!(folder.settle(now + SETTLE * 99), (vec![], None), "however long it takes");
    assert_eq!(folder.problems(), [empty()]);
    folder.read("a.yaml", vec![policy("closed")], vec![], vec![]);
    assert_eq!(folder.settle(now), (vec![], None));
    folder.emptied("a.yaml", empty());
    folder.settle(now);
    folder.gone("a.yaml", now);
    folder.settle(now);
    assert_eq!(applied(&folder.settle(now + SETTLE).0), ["-closed"]);
    folder.emptied("a.yaml", empty());
    assert!(folder.settle(now).0.is_empty() && folder.problems().is_empty(), "nothing is lost by a new empty file");
}

/// Writing a Link anew keeps the link; removing its file ends the trust at once.
#[test]
fn a_link_stands_while_its_file_is_written_anew() {
    let now = Instant::now();
    let mut folder = Folder::default();
    folder.read("a.yaml", vec![link("one:1")], vec![], vec![]);
    folder.settle(now);
    folder.emptied("a.yaml", Problem::at_line("a.yaml", 0, String::new()));
    assert_eq!(folder.settle(now), (vec![], Some(now + SETTLE)));
    folder.read("a.yaml", vec![link("one:1")], vec![], vec![]);
    assert_eq!(folder.settle(now + SETTLE), (vec![], None));
    folder.emptied("a.yaml", Problem::at_line("a.yaml", 0, String::new()));
    folder.settle(now);
    assert_eq!(applied(&folder.settle(now + SETTLE).0), ["-west"]);
    folder.read("a.yaml", vec![link("one:1")], vec![], vec![]);
    folder.settle(now);
    folder.gone("a.yaml", now);
    folder.settle(now);
    assert_eq!(applied(&folder.settle(now + GRACE).0), ["-west"]);
}

#[test]
fn a_file_that_comes_back_broken_keeps_what_it_held() {
    let now = Instant::now();
    let mut folder = Folder::default();
    folder.read("a.yaml", vec![service("web", 80)], vec![], vec![]);
    folder.settle(now);
    folder.gone("a.yaml", now);
    assert_eq!(folder.settle(now), (vec![], Some(now + GRACE)));
    folder.read("a.yaml", vec![], broken(), vec![about("", "", "")]);
    assert_eq!(folder.settle(now + GRACE * 2), (vec![], None));
    assert!(folder.take_forgotten().is_empty());
    folder.gone("a.yaml", now);
    folder.settle(now);
    folder.settle(now + GRACE);
    assert_eq!(folder.take_forgotten(), ["a.yaml"]);
    folder.read("a.yaml", vec![], broken(), vec![about("", "", "")]);
    assert_eq!(applied(&folder.settle(now + GRACE * 2).0), ["?"], "after that it is a new file");
}

proptest! {
    /// Whatever happens to the files, the events lead to what a start with the same files would tell.
    #[test]
    fn events_add_up_to_the_files(ops in prop::collection::vec((0..4_u8, prop::collection::btree_map(0..6_u8, 1..4_u16, 0..4), 0..5_u8), 1..40)) {
        let mut now = Instant::now();
        let mut folder = Folder::default();
        let mut told: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        let mut files: BTreeMap<String, Vec<Document>> = BTreeMap::new();
        for (file, services, op) in ops {
            let name = format!("{file}.yaml");
            if op == 0 {
                folder.gone(&name, now);
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
        let mut fresh = Folder::new(folder.holders().clone());
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

/// Each file is asked for what it holds: with all policies looked through for each, this many take minutes.
#[test]
fn thousands_of_policies_in_files_of_their_own_are_no_trouble() {
    const FILES: usize = 20_000;
    let start = Instant::now();
    let mut folder = Folder::default();
    let template = policy("policy");
    for number in 0..FILES {
        let mut document = template.clone();
        if let Object::ExportPolicy(policy) = &mut document.object {
            policy.metadata.name = Some(format!("policy-{number}"));
        }
        folder.read(&format!("{number}.yaml"), vec![document], Vec::new(), Vec::new());
    }
    folder.settle(start);
    for number in 0..FILES {
        let name = format!("{number}.yaml");
        assert_eq!(folder.objects(&name).count(), 1);
        folder.gone(&name, start);
    }
    folder.settle(start);
    for number in 0..FILES {
        assert_eq!(folder.awaited(&format!("{number}.yaml")).count(), 1, "it stays for a while");
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
