//! Announcements of the system that something in a folder changed.

use std::path::Path;
use std::sync::Arc;

use notify::{RecursiveMode, Watcher};
use tokio::sync::Notify;

/// Asks the system to announce changes. `None`: it cannot, and looking often must do.
pub(super) fn announce(path: &Path, announced: Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let handler = move |event: notify::Result<notify::Event>| {
        if event.as_ref().map_or(true, changes) {
            announced.notify_one();
        }
    };
    let watcher = notify::recommended_watcher(handler).and_then(|mut watcher| {
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    match watcher {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, "the system announces no changes of the manifests; looking every 200 ms instead");
            None
        }
    }
}

/// Whether a file may hold something else since. Somebody only looked otherwise, most often we: an announcement of that would
/// make us look again, without end.
fn changes(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    match event.kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A site with a thousand services used half a core: its own look at the folder was announced as news of the folder.
    #[tokio::test]
    async fn looking_is_no_news_and_writing_is() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("web.yaml"), "").unwrap();
        let announced = Arc::new(Notify::new());
        let Some(_watcher) = announce(folder.path(), Arc::clone(&announced)) else { return };
        let news =
            async |wait: u64| tokio::time::timeout(Duration::from_millis(wait), announced.notified()).await.is_ok();
        for _ in 0..2 {
            std::fs::read_dir(folder.path()).unwrap().for_each(drop);
            std::fs::read(folder.path().join("web.yaml")).unwrap();
            assert!(!news(100).await, "nothing changed");
            std::fs::write(folder.path().join("web.yaml"), "a").unwrap();
            assert!(news(5_000).await, "a file was written");
            while news(100).await {}
        }
    }
}
