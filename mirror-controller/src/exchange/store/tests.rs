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

/// What this controller saved days ago is not all: others led meanwhile, and mirrored what came then.
#[test]
fn what_mirrors_tell_stands_once_for_what_was_not_heard() {
    let dir = tempfile::tempdir().unwrap();
    let standing = || Standing::from([(cluster("west"), entries(&["a"])), (cluster("north"), entries(&["b"]))]);
    let store = Store::new(dir.path().to_owned(), Saving::default()).with_standing(standing());
    store.retain([&cluster("west")]);
    let (known, _) = store.load(&cluster("west"));
    assert_eq!(known.map(|known| known.entries.as_ref().clone()), Some(entries(&["a"])));
    assert_eq!(store.load(&cluster("west")).0, None, "linked anew it is a new peer");
    assert_eq!(store.load(&cluster("north")).0, None, "nobody is linked to it");

    let saved = Catalogue::new(7, 9, Arc::new(entries(&["a", "c"])));
    let kept = Kept { catalogue: saved.clone(), withheld: Entries::new() };
    assert!(store.save(&cluster("west"), &kept));
    let again = |all: &[&str]| {
        let standing = Standing::from([(cluster("west"), entries(all))]);
        Store::new(dir.path().to_owned(), Saving::default()).with_standing(standing).load(&cluster("west")).0.unwrap()
    };
    assert_eq!(again(&["a"]), saved, "what the peer said says more");
    assert_eq!(*again(&["a", "b"]).entries, entries(&["a", "b", "c"]));
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
