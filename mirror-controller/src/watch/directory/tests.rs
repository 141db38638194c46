use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

use linkspan_runtime::task;

use super::super::{Doubt, Object};
use super::*;

const WEB: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n";

const POLICY: &str = "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata: {name: closed, namespace: shop}\nspec: {allow: []}\n";

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
        Directory::open(self.dir.path().join("manifests"), self.dir.path().join("good")).unwrap()
    }

    /// A run that ends in good order.
    fn run(&self, now: &mut Instant) -> Look {
        let mut directory = self.directory();
        let look = settle(&mut directory, now);
        directory.close();
        look
    }

    /// A run that does not.
    fn crash(&self, now: &mut Instant) -> Look {
        settle(&mut self.directory(), now)
    }

    fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.manifests().join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.dir.path().join("manifests").join(name)).unwrap();
    }

    /// The file system of the copies is away until [`Away::back`]: nothing can be written or removed there.
    fn without_copies(&self) -> Away {
        let (at, kept) = (self.dir.path().join("good"), self.dir.path().join("away"));
        fs::rename(&at, &kept).unwrap();
        fs::write(&at, "").unwrap();
        Away { at, kept }
    }
}

struct Away {
    at: PathBuf,
    kept: PathBuf,
}

impl Away {
    fn back(self) {
        fs::remove_file(&self.at).unwrap();
        fs::rename(&self.kept, &self.at).unwrap();
    }
}

/// Looks until nothing is unsettled, in a time of its own; returns what was told.
fn settle(directory: &mut Directory, now: &mut Instant) -> Look {
    let mut events = Vec::new();
    loop {
        let mut look = directory.look(*now);
        events.append(&mut look.events);
        match look.again {
            Some(again) => *now = again.max(*now + Duration::from_millis(1)),
            None => return Look { events, ..look },
        }
    }
}

fn names(events: &[Event]) -> BTreeSet<String> {
    events
        .iter()
        .map(|event| match event {
            Event::Apply(object) => format!("+{}", object.name()),
            Event::Delete(key) => format!("-{}", key.name),
            Event::Doubt(doubt) if doubt.site => "?".to_owned(),
            Event::Doubt(doubt) => doubt.namespaces.iter().map(|namespace| format!("?{namespace}")).collect(),
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
    assert_eq!(names(&events), set(&["?", "+web"]), "what more will be in it nobody knows");
    let look = settle(&mut directory, &mut now);
    assert_eq!(look.events, [Event::Doubt(Doubt::default())], "at rest it is whole");
    assert!(look.problems.is_empty());
}

/// A file that is rewritten without end may be read between two documents: nothing is gone because of that.
#[test]
fn a_file_that_never_rests_loses_nothing() {
    let site = Site::new();
    let mut directory = site.directory();
    let mut now = Instant::now();
    site.write("a.yaml", &format!("{}---\n{}", named("web"), named("api")));
    settle(&mut directory, &mut now);
    for step in 0..200 {
        site.write("a.yaml", &format!("{}# {}\n", named("web"), "x".repeat(step)));
        now += QUIET / 4;
        assert!(directory.look(now).events.is_empty());
    }
    assert_eq!(names(&settle(&mut directory, &mut now).events), set(&["-api"]));
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
    site.run(&mut now);
    site.write("a.yaml", "kind: [");
    let mut directory = site.directory();
    let look = settle(&mut directory, &mut now);
    assert_eq!(names(&look.events), set(&["+web"]));
    assert_eq!(look.problems.len(), 1);
    site.remove("a.yaml");
    assert_eq!(names(&settle(&mut directory, &mut now).events), set(&["-web"]));
    site.write("a.yaml", "kind: [");
    let look = site.run(&mut now);
    assert_eq!(names(&look.events), set(&["?"]), "a deleted file is forgotten");
}

/// The last state that was in force, not the last file without a mistake.
#[test]
fn a_restart_finds_the_objects_of_a_file_that_was_never_whole() {
    let site = Site::new();
    let mut now = Instant::now();
    let policy = |allow: &str| POLICY.replace("allow: []", allow);
    site.write("a.yaml", &policy("allow: [{}]"));
    site.run(&mut now);
    site.write("a.yaml", &format!("{}---\n{}", policy("allow: []"), WEB.replace("port: 80", "port: eighty")));
    site.run(&mut now);
    site.write("a.yaml", "kind: [");
    let look = site.run(&mut now);
    let [Event::Apply(object)] = look.events.as_slice() else { panic!("{look:?}") };
    let Object::ExportPolicy(found) = object.as_ref() else { panic!("{object:?}") };
    assert!(found.spec.allow.is_empty(), "the version before the last would let everybody in");
}

/// The rules of the only policy that is told; `None` where none is.
fn rules(look: &Look) -> Option<usize> {
    look.events.iter().find_map(|event| match event {
        Event::Apply(object) => match object.as_ref() {
            Object::ExportPolicy(policy) => Some(policy.spec.allow.len()),
            _ => None,
        },
        _ => None,
    })
}

/// A disk that is full takes no new copy, and the old one can be removed. Here the name is what is too long.
#[test]
fn a_copy_that_cannot_be_replaced_does_not_count() {
    let site = Site::new();
    let mut now = Instant::now();
    let open = POLICY.replace("allow: []", "allow: [{}]");
    let name = format!("{}.yaml", "a".repeat(240));
    site.write("a.yaml", &open);
    let mut directory = site.directory();
    settle(&mut directory, &mut now);
    directory.close();
    let good = site.dir.path().join("good");
    for folder in [good.clone(), site.manifests()] {
        fs::rename(folder.join("a.yaml"), folder.join(&name)).unwrap();
    }
    let mut directory = site.directory();
    settle(&mut directory, &mut now);
    site.write(&name, POLICY);
    assert_eq!(rules(&settle(&mut directory, &mut now)), Some(0), "it is in force although it cannot be saved");
    site.write(&name, "kind: [");
    assert!(settle(&mut directory, &mut now).events.is_empty());
    directory.close();
    let look = site.crash(&mut now);
    assert_eq!(
        look.events,
        [Event::Doubt(Doubt { site: true, ..Doubt::default() })],
        "the old version would let all in"
    );
}

/// A file system that is read-only for a while keeps the old copy. Here it is away for a while.
#[test]
fn an_old_copy_that_could_not_be_removed_does_not_count() {
    let open = POLICY.replace("allow: []", "allow: [{}]");
    for orderly in [true, false] {
        let site = Site::new();
        let mut now = Instant::now();
        site.write("a.yaml", &open);
        let mut directory = site.directory();
        settle(&mut directory, &mut now);
        let disk = site.without_copies();
        site.write("a.yaml", POLICY);
        assert_eq!(rules(&settle(&mut directory, &mut now)), Some(0));
        site.write("a.yaml", "kind: [");
        settle(&mut directory, &mut now);
        if orderly {
            directory.close();
        }
        disk.back();
        for _ in 0..2 {
            let mut restarted = site.directory();
            let look = settle(&mut restarted, &mut now);
            assert_eq!(names(&look.events), set(&["?"]), "{orderly}: also at the start after");
            restarted.close();
        }
        // An empty one says no more than a broken one.
        site.write("a.yaml", &open);
        site.crash(&mut now);
        site.write("a.yaml", "");
        for _ in 0..2 {
            let mut restarted = site.directory();
            assert_eq!(names(&settle(&mut restarted, &mut now).events), set(&["?"]), "{orderly}: empty");
            // Written anew, it is known again what it holds.
            restarted.close();
        }
        // Nor does one that shows a Service, broken, and nothing of what stood behind it.
        site.write("a.yaml", &open);
        site.crash(&mut now);
        site.write("a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: [}\n");
        for _ in 0..2 {
            assert!(names(&site.crash(&mut now).events).contains("?"), "{orderly}: a broken Service");
        }
        site.write("a.yaml", POLICY);
        assert!(!names(&site.crash(&mut now).events).contains("?"), "{orderly}: whole again");
        site.remove("a.yaml");
    }
}

/// A doubt stands while the file that raised it is written anew.
#[test]
fn emptying_a_broken_file_lifts_no_doubt() {
    let site = Site::new();
    let mut now = Instant::now();
    site.write("a.yaml", "kind: [");
    let mut directory = site.directory();
    assert_eq!(names(&settle(&mut directory, &mut now).events), set(&["?"]));
    site.write("a.yaml", "");
    let events = settle(&mut directory, &mut now).events;
    assert!(!events.contains(&Event::Doubt(Doubt::default())), "{events:?}");
}

/// What broke a file is not what keeps its copy from counting: only that nobody knows what was in between.
#[test]
fn a_copy_counts_if_its_file_was_seen_as_it_is_or_the_run_ended_in_good_order() {
    let site = Site::new();
    let mut now = Instant::now();
    site.write("a.yaml", POLICY);
    let mut directory = site.directory();
    settle(&mut directory, &mut now);
    directory.close();
    site.write("a.yaml", "kind: [");
    let mut directory = site.directory();
    assert_eq!(names(&settle(&mut directory, &mut now).events), set(&["+closed"]), "broken while nobody looked");
    // A crash: the next run finds the file as this one saw it.
    drop(directory);
    assert_eq!(names(&site.crash(&mut now).events), set(&["+closed"]));
    assert_eq!(names(&site.crash(&mut now).events), set(&["+closed"]));
}

/// What is saved late is saved.
#[test]
fn a_copy_that_could_not_be_written_is_tried_again() {
    let site = Site::new();
    let mut now = Instant::now();
    let mut directory = site.directory();
    settle(&mut directory, &mut now);
    let disk = site.without_copies();
    site.write("a.yaml", POLICY);
    assert!(settle(&mut directory, &mut now).unsaved.is_some());
    disk.back();
    now += SAVE_AGAIN;
    directory.look(now);
    assert_eq!(directory.look(now).unsaved, None);
    site.write("a.yaml", "kind: [");
    settle(&mut directory, &mut now);
    drop(directory);
    assert_eq!(names(&site.crash(&mut now).events), set(&["+closed"]));
}

/// After a crash it is not certain which of two was first, unless its file is as it was.
#[test]
fn who_held_a_policy_first_is_known_while_its_file_is_as_it_was() {
    for changed in [false, true] {
        let site = Site::new();
        let mut now = Instant::now();
        site.write("z.yaml", &POLICY.replace("allow: []", "allow: [{peers: [east]}]"));
        site.crash(&mut now);
        site.write("a.yaml", &POLICY.replace("allow: []", "allow: [{}, {}]"));
        if changed {
            site.write("z.yaml", &POLICY.replace("allow: []", "allow: [{peers: [west]}]"));
        }
        let look = site.crash(&mut now);
        assert_eq!(rules(&look), Some(usize::from(!changed)), "{look:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_at_all_keeps_what_it_held_over_a_restart() {
    let site = Site::new();
    let mut now = Instant::now();
    site.write("a.yaml", &named("web"));
    site.run(&mut now);
    fs::write(site.manifests().join("a.yaml"), b"kind: \xff\xfe").unwrap();
    let look = site.run(&mut now);
    assert_eq!(names(&look.events), set(&["+web"]));
    assert_eq!(look.problems.len(), 1, "{:?}", look.problems);
}

/// A copy outlives its file only while nobody looks.
#[test]
fn what_was_removed_while_nobody_looked_does_not_come_back() {
    let site = Site::new();
    let mut now = Instant::now();
    site.write("a.yaml", &named("web"));
    site.run(&mut now);
    site.remove("a.yaml");
    let mut directory = site.directory();
    let look = settle(&mut directory, &mut now);
    assert!(look.complete && look.events.is_empty());
    site.write("a.yaml", "kind: [");
    assert_eq!(names(&settle(&mut directory, &mut now).events), set(&["?"]));
}

/// What is being written at the start is not absent: nothing is told, so nothing is collected, before it is known.
#[test]
fn the_first_view_waits_for_what_is_being_written() {
    let site = Site::new();
    site.write("b.yaml", &named("api"));
    site.write("a.yaml", "");
    let mut directory = site.directory();
    let mut now = Instant::now();
    for step in 0..20 {
        site.write("a.yaml", &format!("{}# {}", named("web"), "x".repeat(step)));
        let look = directory.look(now);
        assert!(!look.complete && look.events.is_empty() && look.again.is_some(), "{look:?}");
        now += QUIET / 2;
    }
    let look = settle(&mut directory, &mut now);
    assert!(look.complete);
    assert_eq!(names(&look.events), set(&["+web", "+api"]), "and then it is told as one");

    let mut endless = site.directory();
    let started = now;
    for step in 0.. {
        site.write("a.yaml", &format!("{}# {}", named("web"), "y".repeat(step)));
        let look = endless.look(now);
        if look.complete {
            break;
        }
        now += QUIET;
    }
    assert!(now < started + Duration::from_secs(2), "but not for ever");
}

#[test]
fn the_first_view_waits_for_an_editor_between_two_steps() {
    let site = Site::new();
    let mut now = Instant::now();
    site.write("a.yaml", &named("web"));
    site.run(&mut now);
    site.remove("a.yaml");
    let mut directory = site.directory();
    assert!(!directory.look(now).complete);
    now += GRACE / 2;
    site.write("a.yaml", &named("web"));
    assert_eq!(names(&settle(&mut directory, &mut now).events), set(&["+web"]));
}

/// Whatever is done to its file between a policy and the same policy, at no moment it is not there: nor over a restart.
#[test]
fn a_policy_is_in_force_all_the_time_while_its_file_is_written_anew() {
    let site = Site::new();
    let mut now = Instant::now();
    let both = format!("{POLICY}---\n{WEB}");
    site.write("a.yaml", &both);
    let mut directory = site.directory();
    settle(&mut directory, &mut now);
    for half in [Some(""), Some("\n"), Some(WEB), Some("# to be written\n"), None] {
        match half {
            Some(text) => site.write("a.yaml", text),
            None => site.remove("a.yaml"),
        }
        let mut told = Vec::new();
        let mut restarted = site.directory();
        let mut anew = Vec::new();
        for _ in 0..20 {
            told.extend(directory.look(now).events);
            anew.extend(restarted.look(now).events);
            now += QUIET;
        }
        assert!(!names(&told).contains("-closed"), "{half:?}: {told:?}");
        assert!(!names(&anew).contains("-closed"), "{half:?}: {anew:?}");
        assert!(names(&anew).contains("+closed"), "{half:?}: {anew:?}");
        site.write("a.yaml", &both);
        settle(&mut directory, &mut now);
    }
    site.write("a.yaml", WEB);
    assert!(names(&settle(&mut directory, &mut now).events).contains("-closed"), "and in the end it goes");
    site.write("a.yaml", &both);
    settle(&mut directory, &mut now);
    site.write("a.yaml", "");
    let look = settle(&mut directory, &mut now);
    assert!(look.problems[0].message.contains("is empty"), "{look:?}");
    let look = site.run(&mut now);
    assert_eq!(names(&look.events), set(&["+closed"]));
    site.remove("a.yaml");
    assert!(names(&settle(&mut directory, &mut now).events).contains("-closed"));
}

#[test]
fn a_folder_that_cannot_be_read_at_the_start_is_not_an_empty_one() {
    let site = Site::new();
    let mut now = Instant::now();
    site.write("a.yaml", WEB);
    let (from, to) = (site.manifests(), site.dir.path().join("away"));
    fs::rename(&from, &to).unwrap();
    let mut directory = site.directory();
    let look = settle(&mut directory, &mut now);
    assert!(!look.complete && look.events.is_empty());
    assert_eq!(look.problems.len(), 1);
    fs::rename(&to, &from).unwrap();
    let look = settle(&mut directory, &mut now);
    assert!(look.complete);
    assert_eq!(names(&look.events), set(&["+web"]));
}

#[test]
fn what_is_no_regular_file_is_reported_and_never_waited_for() {
    let site = Site::new();
    let mut now = Instant::now();
    site.write("web.yaml", WEB);
    let at = |name: &str| site.manifests().join(name);
    fs::create_dir(at("folder.yaml")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo.yaml"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket.yaml")).unwrap();
    symlink("nowhere", at("dangling.yaml")).unwrap();
    symlink("loop.yaml", at("loop.yaml")).unwrap();
    symlink("/dev/null", at("device.yml")).unwrap();
    fs::write(at(".hidden.yaml"), "x").unwrap();
    let mut directory = site.directory();
    let look = settle(&mut directory, &mut now);
    assert_eq!(names(&look.events), set(&["?", "+web"]), "any of them may have been meant as a policy");
    for (name, what) in [
        ("folder.yaml", "is a folder"),
        ("fifo.yaml", "FIFO"),
        ("socket.yaml", "socket"),
        ("dangling.yaml", "leads nowhere"),
        ("loop.yaml", "cannot be followed"),
        ("device.yml", "device"),
    ] {
        let problems: Vec<_> = look.problems.iter().filter(|problem| problem.file == name).collect();
        assert!(problems.iter().any(|problem| problem.message.contains(what)), "{name}: {problems:?}");
    }
    for name in ["folder.yaml", "fifo.yaml", "socket.yaml", "dangling.yaml", "loop.yaml", "device.yml"] {
        let path = at(name);
        if path.is_dir() { fs::remove_dir(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    let look = settle(&mut directory, &mut now);
    assert_eq!(look.events, [Event::Doubt(Doubt::default())]);
    assert!(look.problems.is_empty());
    // What was a manifest and is none now keeps what it held.
    site.remove("web.yaml");
    symlink("nowhere", at("web.yaml")).unwrap();
    let look = settle(&mut directory, &mut now);
    assert!(look.events.is_empty(), "{look:?}");
    assert_eq!(look.problems.len(), 1);
}

/// A policy that is moved into a subfolder may be meant to stay in force.
#[test]
fn manifests_in_subfolders_are_reported_and_in_doubt() {
    let site = Site::new();
    let mut now = Instant::now();
    let at = |name: &str| site.manifests().join(name);
    site.write("pol.yaml", POLICY);
    for folder in ["notes", ".git", "policies", "deep"] {
        fs::create_dir_all(at(folder).join("x/y")).unwrap();
    }
    fs::write(at("notes/readme.txt"), "").unwrap();
    fs::write(at(".git/a.yaml"), POLICY).unwrap();
    let mut directory = site.directory();
    let look = settle(&mut directory, &mut now);
    assert!(look.problems.is_empty(), "{:?}", look.problems);
    fs::rename(at("pol.yaml"), at("policies/pol.yaml")).unwrap();
    fs::write(at("deep/x/y/a.yml"), WEB).unwrap();
    let look = settle(&mut directory, &mut now);
    let told: Vec<_> = look.events.iter().map(|event| names(std::slice::from_ref(event))).collect();
    assert_eq!(told, [set(&["?"]), set(&["-closed"])], "who keeps the policies knows of the doubt first");
    for folder in ["policies", "deep"] {
        let mut of_it = look.problems.iter().filter(|problem| problem.file == folder);
        assert!(of_it.any(|problem| problem.message.contains("move them up")), "{:?}", look.problems);
    }
    assert_eq!(look.problems.len(), 4, "with what each of them means: {:?}", look.problems);
    assert_eq!(names(&site.run(&mut now).events), set(&["?"]), "and over a restart");
    fs::rename(at("policies/pol.yaml"), at("pol.yaml")).unwrap();
    fs::remove_file(at("deep/x/y/a.yml")).unwrap();
    let look = settle(&mut directory, &mut now);
    assert_eq!(names(&look.events), set(&["+closed", ""]), "the doubt is over");
    assert!(look.problems.is_empty());
    // In circles, and without end.
    symlink(".", at("notes/circle")).unwrap();
    assert!(settle(&mut directory, &mut now).problems[0].message.contains("cannot be looked through"));
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

/// S-51: whatever hides a policy, the namespace that it names is in doubt.
#[test]
fn a_broken_policy_puts_its_namespace_in_doubt() {
    let site = Site::new();
    let mut now = Instant::now();
    let broken = POLICY.replace("allow", "alow");
    let listed: String = broken.lines().map(|line| format!("  {line}\n")).collect();
    for (text, expected) in [
        (broken.clone(), "?shop"),
        (format!("{}---\n{}", named("other"), broken), "?shop"),
        (POLICY.replace("spec: {allow: []}", "spec: {allow: ["), "?shop"),
        (format!("apiVersion: v1\nkind: List\nitems:\n- {}", listed.trim_start()), "?shop"),
        (POLICY.replace("kind: ExportPolicy", "kind: ExportPolcy"), "?shop"),
        (POLICY.replace("linkspan.io/v1alpha1", "linkspan.io/v1"), "?shop"),
        (POLICY.replace("namespace", "namepsace"), "?"),
        ("apiVersion: linkspan".to_owned(), "?"),
    ] {
        site.write("a.yaml", &text);
        let look = site.run(&mut now);
        assert!(names(&look.events).contains(expected), "{text}\n{look:?}");
        assert!(look.problems.iter().any(|problem| problem.message.contains("closed to everybody")));
        site.remove("a.yaml");
        site.run(&mut now);
    }
}

#[tokio::test]
async fn a_change_is_told_within_half_a_second() {
    let site = Site::new();
    site.write("a.yaml", WEB);
    let (sender, mut events) = mpsc::channel(16);
    let problems = watch::Sender::new(Arc::default());
    let told = task::spawn("test", run(site.directory(), sender, problems.clone(), Saving::default()));
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
