use std::time::Instant;

use linkspan_proto::names::ClusterName;

use super::*;

fn cluster(name: &str) -> ClusterName {
    ClusterName::parse(name).unwrap()
}

fn entries(names: &[&str]) -> Entries {
    names
        .iter()
        .map(|name| {
            let service = ServiceKey::parse(&format!("shop/{name}")).unwrap();
            let entry = CatalogueEntry {
                service: service.clone(),
                headless: true,
                ports: vec![CataloguePort {
                    port: 80,
                    name: Some(PortName::parse("http").unwrap()),
                    protocol: Protocol::Tcp,
                    app_protocol: Some("kubernetes.io/h2c".to_owned()),
                    ready: 2,
                    total: Some(3),
                }],
                endpoints: vec![
                    (EndpointName::parse("a-0").unwrap(), true),
                    (EndpointName::parse("a-1").unwrap(), false),
                ],
                labels: BTreeMap::from([("app.kubernetes.io/name".to_owned(), "web".to_owned())]),
                details: Default::default(),
            };
            (service, Arc::new(entry))
        })
        .collect()
}

/// In a cluster with mirrors of these services of west, and no others.
fn in_cluster(dir: &tempfile::TempDir, mirrored: Entries) -> Store {
    let standing = Standing::from([(cluster("west"), mirrored)]);
    let standing = standing.into_iter().filter(|(_, entries)| !entries.is_empty()).collect();
    Store::new(dir.path().to_owned(), Saving::default()).with_standing(standing)
}

#[test]
fn what_mirrors_tell_stands_once_and_for_linked_peers() {
    let dir = tempfile::tempdir().unwrap();
    let standing = Standing::from([(cluster("west"), entries(&["a"])), (cluster("north"), entries(&["b"]))]);
    let store = Store::new(dir.path().to_owned(), Saving::default()).with_standing(standing);
    store.retain([&cluster("west")]);
    let (known, withheld) = store.load(&cluster("west"));
    assert_eq!((known.map(|known| known.entries.as_ref().clone()), withheld), (Some(entries(&["a"])), Entries::new()));
    assert_eq!(store.load(&cluster("west")).0, None, "linked anew it is a new peer");
    assert_eq!(store.load(&cluster("north")).0, None, "nobody is linked to it");
}

/// What this controller saved on Monday is old: another one led until Thursday, and wrote what came meanwhile.
#[test]
fn an_old_copy_wins_over_no_mirror_and_brings_none_back() {
    let dir = tempfile::tempdir().unwrap();
    let west = cluster("west");
    let saved = Catalogue::new(7, 9, Arc::new(entries(&["moved", "same", "withdrawn"])));
    let kept = Kept { catalogue: saved.clone(), withheld: entries(&["held"]) };
    assert!(in_cluster(&dir, Entries::new()).save(&west, &kept));

    let mut standing = entries(&["moved", "new", "same"]);
    // As the mirrors tell: somebody is there.
    for entry in standing.values_mut() {
        let port = &mut Arc::make_mut(entry).ports[0];
        (port.ready, port.total) = (1, None);
    }
    let moved = ServiceKey::parse("shop/moved").unwrap();
    let entry = Arc::make_mut(standing.get_mut(&moved).unwrap());
    entry.ports[0].port = 8080;
    entry.labels.clear();
    let (known, withheld) = in_cluster(&dir, standing.clone()).load(&west);
    let known = known.unwrap();
    assert_eq!((known.epoch, known.version), (0, 0), "no version of the peer's, who sends all of it then");
    assert!(withheld.is_empty(), "what was held back on Monday is long gone, or has its mirror");
    let names: Vec<_> = known.entries.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["shop/moved", "shop/new", "shop/same"]);
    assert_eq!(known.entries[&moved], standing[&moved]);
    let same = ServiceKey::parse("shop/same").unwrap();
    assert_eq!(known.entries[&same], saved.entries[&same], "how many there are no mirror tells");

    assert_eq!(in_cluster(&dir, Entries::new()).load(&west), (None, Entries::new()), "all of it was withdrawn");
    assert_eq!(Store::new(dir.path().to_owned(), Saving::default()).load(&west), (Some(saved), entries(&["held"])));
}

#[test]
fn a_service_without_endpoints_in_an_old_copy_is_not_taken_for_empty() {
    let dir = tempfile::tempdir().unwrap();
    let mut empty = entries(&["a"]);
    Arc::make_mut(empty.values_mut().next().unwrap()).ports[0].ready = 0;
    let kept = Kept { catalogue: Catalogue::new(7, 9, Arc::new(empty)), withheld: Entries::new() };
    let store = in_cluster(&dir, entries(&["a"]));
    assert!(store.save(&cluster("west"), &kept));
    assert_eq!(*store.load(&cluster("west")).0.unwrap().entries, entries(&["a"]));
}

#[tokio::test]
async fn what_was_saved_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().to_owned(), Saving::default());
    let west = cluster("west");
    assert_eq!(store.load(&west), (None, Entries::new()));
    let nothing = Subscriber::new(cluster("east"), None, Entries::new(), Instant::now());
    let saver = store.saver(&west, &nothing);
    let catalogue = Catalogue::new(7, 9, Arc::new(entries(&["a", "b"])));
    let held = Subscriber::new(cluster("east"), Some(catalogue.clone()), entries(&["gone"]), Instant::now());
    saver.finish(&held).await;
    assert_eq!(store.load(&west), (Some(catalogue), entries(&["gone"])));
    store.retain([&west]);
    assert!(store.load(&west).0.is_some());
    store.retain([&cluster("other")]);
    assert!(store.load(&west).0.is_none());
}

#[tokio::test]
async fn what_cannot_be_saved_is_told_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let saving = Saving::default();
    let folder = dir.path().join("catalogues");
    let store = Store::new(folder.clone(), saving.clone());
    let west = cluster("west");
    let nothing = Subscriber::new(cluster("east"), None, Entries::new(), Instant::now());
    let mut saver = store.saver(&west, &nothing);
    let catalogue = Catalogue::new(7, 9, Arc::new(entries(&["a"])));
    let held = Subscriber::new(cluster("east"), Some(catalogue.clone()), Entries::new(), Instant::now());
    let mut now = Instant::now();
    for failing in [true, false] {
        saver.offer(&held, now);
        now += SAVE_AGAIN;
        saver.offer(&held, now);
        saver.running.take().expect("it is saved").await.unwrap();
        assert_eq!(saving.failures().contains_key("catalogues/west.json"), failing);
        fs::create_dir_all(&folder).unwrap();
    }
    assert_eq!(store.load(&west).0, Some(catalogue));
    saver.offer(&held, now);
    assert!(saver.running.is_none() && saver.deadline().is_none());
}

#[test]
fn a_damaged_file_counts_as_absent() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().to_owned(), Saving::default());
    let good = r#"{"cluster":"west","epoch":1,"version":2,"entries":[{"service":"shop/a","ports":[{"port":80,"protocol":"TCP","ready":1}]}]}"#;
    let west = cluster("west");
    for (text, good) in [
        (good.to_owned(), true),
        (good.replace("west", "north"), false),
        (good.replace("shop/a", "Shop/a"), false),
        (good.replace("\"port\":80", "\"port\":0"), false),
        (good.replace("TCP", "ICMP"), false),
        (good.replace("}]}]}", ""), false),
        (good.replace("\"epoch\"", "\"age\""), false),
    ] {
        fs::write(dir.path().join("west.json"), &text).unwrap();
        assert_eq!(store.load(&west).0.is_some(), good, "{text}");
    }
}
