use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use linkspan_runtime::task;

use super::*;
use crate::catalog::Snapshot;
use crate::exchange::{Entries, Freshness, Peers};
use crate::mirror::{Addresses, State};
use crate::testkit::{cluster, entries, entry, headless, peer, peer_state};

struct Mirrors(State);

impl Mirrors {
    fn new() -> Self {
        Self(State::new(cluster("east"), Addresses::new("127.80.0.0/12".parse().unwrap())))
    }

    fn of(&mut self, all: Entries) -> MirrorSet {
        let snapshot =
            Snapshot { peers: Arc::new(BTreeMap::from([(cluster("west"), peer("west"))])), ..Snapshot::default() };
        self.0.update(snapshot, Arc::new(Peers::from([(cluster("west"), peer_state(all, Freshness::Fresh))])));
        self.0.set()
    }
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come about");
}

#[tokio::test]
async fn the_folder_follows_what_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    fs::write(folder.join("shop.other.yaml"), "metadata: {name: other, namespace: shop}\n").unwrap();
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    fs::write(folder.join(".shop.web.yaml.1.2.linkspan-tmp"), "half").unwrap();
    let mut mirrors = Mirrors::new();
    let set = mirrors.of(entries([entry("shop/web", &["http:80"], 1), headless("shop/db", &["db-0"])]));
    let sets = watch::Sender::new(set);
    let told = task::spawn(
        "test",
        run(DirectorySink::new(folder.to_owned()), sets.subscribe(), Applied::default(), Saving::default()),
    );
    let expected = [
        "notes.txt",
        "shop.db-west.yaml",
        "shop.db.clusterset.yaml",
        "shop.other.yaml",
        "shop.web-west.yaml",
        "shop.web.clusterset.yaml",
    ];
    until("all files", || files(folder) == expected).await;

    let text = fs::read_to_string(folder.join("shop.web-west.yaml")).unwrap();
    for line in [
        "kind: Service",
        "kind: EndpointSlice",
        "name: web-west",
        "clusterIP: \"127.",
        "mirror.linkspan.io/cluster-name: west",
        "port: 80",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    let import = fs::read_to_string(folder.join("shop.web.clusterset.yaml")).unwrap();
    for line in ["kind: ServiceImport", "type: ClusterSetIP", "- cluster: west", "ips:"] {
        assert!(import.contains(line), "{line} in\n{import}");
    }
    let import = fs::read_to_string(folder.join("shop.db.clusterset.yaml")).unwrap();
    for line in
        ["type: Headless", "kind: EndpointSlice", "multicluster.kubernetes.io/source-cluster: west", "hostname: db-0"]
    {
        assert!(import.contains(line), "{line} in\n{import}");
    }

    sets.send_replace(mirrors.of(entries([entry("shop/web", &["http:8080"], 1)])));
    until("the change", || {
        files(folder).len() == 4 && fs::read_to_string(folder.join("shop.web-west.yaml")).unwrap().contains("8080")
    })
    .await;
    sets.send_replace(mirrors.of(Entries::new()));
    until("the end", || files(folder) == ["notes.txt", "shop.other.yaml"]).await;
    drop(sets);
    told.await.unwrap();
}

#[tokio::test]
async fn a_restart_adopts_what_the_last_run_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let mut mirrors = Mirrors::new();
    let sets = watch::Sender::new(mirrors.of(entries([entry("shop/web", &["80"], 1), entry("shop/api", &["80"], 1)])));
    let first = task::spawn(
        "test",
        run(DirectorySink::new(dir.path().to_owned()), sets.subscribe(), Applied::default(), Saving::default()),
    );
    until("all files", || files(dir.path()).len() == 4).await;
    first.abort();
    let before = fs::metadata(dir.path().join("shop.web-west.yaml")).unwrap().modified().unwrap();
    let mut sink = DirectorySink::new(dir.path().to_owned());
    let present = sink.list().await.unwrap();
    assert!(present.values().all(|present| matches!(present, Present::Found { .. })), "{present:?}");
    sets.send_replace(mirrors.of(entries([entry("shop/web", &["80"], 1)])));
    let second = task::spawn("test", run(sink, sets.subscribe(), Applied::default(), Saving::default()));
    until("the unexported to go", || files(dir.path()) == ["shop.web-west.yaml", "shop.web.clusterset.yaml"]).await;
    assert_eq!(fs::metadata(dir.path().join("shop.web-west.yaml")).unwrap().modified().unwrap(), before);
    second.abort();
}

/// Fails every other write.
struct Flaky {
    inner: DirectorySink,
    tries: Arc<AtomicUsize>,
}

impl Sink for Flaky {
    async fn list(&mut self) -> io::Result<BTreeMap<Place, Present>> {
        if self.tries.fetch_add(1, Ordering::Relaxed) == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.inner.list().await
    }

    async fn write(&mut self, items: Vec<Item>) -> (usize, io::Result<()>) {
        if self.tries.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) || items.is_empty() {
            return self.inner.write(items).await;
        }
        let (done, _) = self.inner.write(items.into_iter().take(1).collect()).await;
        (done, Err(io::ErrorKind::TimedOut.into()))
    }
}

#[tokio::test]
async fn a_sink_that_fails_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut mirrors = Mirrors::new();
    let services = (0..5).map(|index| entry(&format!("shop/s{index}"), &["80"], 1));
    let sets = watch::Sender::new(mirrors.of(entries(services)));
    let sink = Flaky { inner: DirectorySink::new(dir.path().to_owned()), tries: Arc::default() };
    let told = task::spawn("test", run(sink, sets.subscribe(), Applied::default(), Saving::default()));
    until("all files in spite of failures", || files(dir.path()).len() == 10).await;
    told.abort();
}
