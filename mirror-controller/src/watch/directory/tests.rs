use std::collections::BTreeSet;

use linkspan_runtime::task;

use super::*;

const WEB: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n";

fn named(name: &str) -> String {
    WEB.replace("web", name)
}

struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("manifests")).unwrap();
        fs::create_dir(dir.path().join("good")).unwrap();
        Self { dir }
    }

    fn directory(&self) -> Directory {
        Directory::new(self.dir.path().join("manifests"), self.dir.path().join("good"))
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join("manifests").join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.dir.path().join("manifests").join(name)).unwrap();
    }
}

/// Looks until nothing is unsettled, in a time of its own; returns what was told.
fn settle(directory: &mut Directory, now: &mut Instant) -> Look {
    let mut events = Vec::new();
    loop {
        let look = directory.look(*now);
        events.extend(look.events);
        match look.again {
            Some(again) => *now = again.max(*now + Duration::from_millis(1)),
            None => return Look { events, problems: look.problems, again: None },
        }
    }
}

fn names(events: &[Event]) -> BTreeSet<String> {
    events
        .iter()
        .map(|event| match event {
            Event::Apply(object) => format!("+{}", object.name()),
            Event::Delete(key) => format!("-{}", key.name),
            Event::Unreadable(key) => format!("?{key}"),
            other => format!("{other:?}"),
        })
        .collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn files_are_read_when_they_are_at_rest() {
    let site = Site::new();
    let mut directory = site.directory();
    let mut now = Instant::now();
    site.write("a.yaml", &named("web"));
    let look = directory.look(now);
    assert!(look.events.is_empty());
    assert_eq!(look.again, Some(now + QUIET));
    assert_eq!(names(&settle(&mut directory, &mut now).events), set(&["+web"]));
    site.write("a.yaml", &format!("{}---\n{}", named("web"), named("api")));
    site.write(".a.yaml.swp", &named("swap"));
    site.write("a.yaml~", &named("backup"));
    site.write("#a.yaml", &named("lock"));
    site.write("notes.txt", &named("notes"));
    assert_eq!(names(&settle(&mut directory, &mut now).events), set(&["+api"]));
    site.remove("a.yaml");
    assert_eq!(names(&settle(&mut directory, &mut now).events), set(&["-web", "-api"]));
}

#[test]
fn a_file_that_is_written_in_steps_is_read_when_it_is_whole() {
    let site = Site::new();
    let mut directory = site.directory();
    let mut now = Instant::now();
    site.write("a.yaml", &format!("{}---\n{}", named("web"), named("api")));
    settle(&mut directory, &mut now);
    for step in ["", "apiVersion: v1\nkind: Serv", &named("web")] {
        site.write("a.yaml", step);
        now += QUIET / 4;
        assert!(directory.look(now).events.is_empty(), "{step}");
    }
    site.write("a.yaml", &format!("{}---\n{}", named("web"), named("api")));
    let look = settle(&mut directory, &mut now);
    assert!(look.events.is_empty() && look.problems.is_empty(), "{look:?}");
}

#[test]
fn a_file_that_never_rests_is_read_all_the_same() {
    let site = Site::new();
    let mut directory = site.directory();
    let mut now = Instant::now();
    let mut events = Vec::new();
    for step in 0..200 {
        site.write("a.yaml", &format!("{}# {}\n", WEB, "x".repeat(step)));
        now += QUIET / 4;
        events.extend(directory.look(now).events);
    }
    assert_eq!(names(&events), set(&["+web"]));
}

#[test]
fn a_broken_document_is_reported_and_everything_else_goes_on() {
    let site = Site::new();
    let mut directory = site.directory();
    let mut now = Instant::now();
    site.write("a.yaml", &format!("{}---\n{}", named("web"), named("api")));
    settle(&mut directory, &mut now);
    site.write("a.yaml", &format!("{}---\n{}", named("new"), named("api").replace("port: 80", "port: eighty")));
    let look = settle(&mut directory, &mut now);
    assert_eq!(names(&look.events), set(&["+new"]), "web may be the broken one, so it stays");
    let [problem] = look.problems.as_slice() else { panic!("{:?}", look.problems) };
    assert_eq!((problem.file.as_str(), problem.field.as_str()), ("a.yaml", "spec.ports[0].port"));
    assert!(problem.line >= 6, "{problem}");
    site.write("a.yaml", &format!("{}---\n{}", named("new"), named("api")));
    let look = settle(&mut directory, &mut now);
    assert_eq!(names(&look.events), set(&["-web"]));
    assert!(look.problems.is_empty());
}

#[test]
fn a_restart_with_a_broken_file_finds_its_last_good_objects() {
    let site = Site::new();
    let mut now = Instant::now();
    site.write("a.yaml", &named("web"));
    settle(&mut site.directory(), &mut now);
    site.write("a.yaml", "kind: [");
    let mut directory = site.directory();
    let look = settle(&mut directory, &mut now);
    assert_eq!(names(&look.events), set(&["+web"]));
    assert_eq!(look.problems.len(), 1);
    site.remove("a.yaml");
    assert_eq!(names(&settle(&mut directory, &mut now).events), set(&["-web"]));
    site.write("a.yaml", "kind: [");
    assert!(settle(&mut site.directory(), &mut now).events.is_empty(), "a deleted file is forgotten");
}

#[test]
fn a_folder_that_cannot_be_read_deletes_nothing() {
    let site = Site::new();
    let mut directory = site.directory();
    let mut now = Instant::now();
    site.write("a.yaml", WEB);
    settle(&mut directory, &mut now);
    let (from, to) = (site.dir.path().join("manifests"), site.dir.path().join("away"));
    fs::rename(&from, &to).unwrap();
    let look = settle(&mut directory, &mut now);
    assert!(look.events.is_empty());
    assert_eq!(look.problems.len(), 1);
    fs::rename(&to, &from).unwrap();
    let look = settle(&mut directory, &mut now);
    assert!(look.events.is_empty() && look.problems.is_empty());
}

#[test]
fn the_object_of_a_broken_document_is_guessed() {
    let policy = "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata:\n  name: closed\n  namespace: shop\nspec: {alow: []}\n";
    let site = Site::new();
    let mut now = Instant::now();
    for text in [
        policy.to_owned(),
        format!("{}---\n{}", WEB.replace("web", "other"), policy),
        policy.replace("metadata:\n  name: closed\n  namespace: shop", "metadata: {name: closed, namespace: \"shop\"}"),
        policy.replace("spec: {alow: []}", "spec: {allow: ["),
    ] {
        site.write("a.yaml", &text);
        let look = settle(&mut site.directory(), &mut now);
        assert!(names(&look.events).contains("?ExportPolicy shop/closed"), "{text}\n{:?}", look);
    }
}

#[tokio::test]
async fn a_change_is_told_within_half_a_second() {
    let site = Site::new();
    site.write("a.yaml", WEB);
    let (sender, mut events) = mpsc::channel(16);
    let problems = watch::Sender::new(Arc::default());
    let told = task::spawn("test", run(site.directory(), sender, problems.clone()));
    assert_eq!(events.recv().await, Some(Event::Init));
    assert!(matches!(events.recv().await, Some(Event::Apply(_))));
    assert_eq!(events.recv().await, Some(Event::InitDone));
    for (name, text) in [("b.yaml", named("api")), ("c.yaml", named("c")), ("b.yaml", named("api").replace("80", "81"))]
    {
        let written = Instant::now();
        site.write(name, &text);
        assert!(matches!(events.recv().await, Some(Event::Apply(_))));
        assert!(written.elapsed() < Duration::from_millis(500), "{:?}", written.elapsed());
    }
    site.remove("a.yaml");
    assert!(matches!(events.recv().await, Some(Event::Delete(_))));
    site.write("b.yaml", "kind: {");
    let mut seen = problems.subscribe();
    seen.wait_for(|problems| !problems.is_empty()).await.unwrap();
    drop(events);
    told.await.unwrap();
}
