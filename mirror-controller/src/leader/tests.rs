use std::sync::{Arc, Mutex};

use linkspan_runtime::drain::Drain;

use super::*;
use candidate::Record;

/// A lease in memory that can be taken away from its holder, or made silent.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<(Option<Record>, u64, bool)>>);

impl Store for Memory {
    async fn call(&self, call: Call) -> Answer {
        let silent = self.0.lock().unwrap().2;
        if silent {
            tokio::time::sleep(lease::CALL).await;
            return Answer::Failed;
        }
        let (record, version, _) = &mut *self.0.lock().unwrap();
        match (call, &record) {
            (Call::Look, Some(record)) => Answer::Found(record.clone(), version.to_string()),
            (Call::Look | Call::Replace(..), None) => Answer::Missing,
            (Call::Create(_), Some(_)) => Answer::Conflict,
            (Call::Replace(_, named), Some(_)) if named != version.to_string() => Answer::Conflict,
            (Call::Create(new) | Call::Replace(new, _), _) => {
                *record = Some(new);
                *version += 1;
                Answer::Written(version.to_string())
            }
        }
    }
}

impl Memory {
    fn holder(&self) -> String {
        self.0.lock().unwrap().0.as_ref().map(|record| record.holder.clone()).unwrap_or_default()
    }
}

fn stand(store: &Memory, name: &str, signal: &Signal) -> (Leading, tokio::task::JoinHandle<()>) {
    let (office, leading) = Office::new();
    let running = run(store.clone(), name.to_owned(), office, signal.clone());
    (leading, linkspan_runtime::task::spawn("candidate", running))
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_writes_and_gives_the_lease_back() {
    let store = Memory::default();
    let (drain, signal) = Drain::new();
    let (other_drain, other_signal) = Drain::new();
    let (mut first, running) = stand(&store, "first", &signal);
    first.won().await;
    assert!(first.write().is_some());
    let (mut second, _) = stand(&store, "second", &other_signal);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!second.holds() && second.write().is_none());
    assert_eq!(second.holder().as_deref(), Some("first"));

    let write = first.write().unwrap();
    let draining = linkspan_runtime::task::spawn("drain", async move { drain.drain(Duration::from_secs(5)).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!first.holds() && first.write().is_none(), "nothing new");
    assert_eq!(store.holder(), "first", "not while a write is under way");
    drop(write);
    let released = Instant::now();
    second.won().await;
    assert!(released.elapsed() <= candidate::RETRY + Duration::from_millis(100), "{:?}", released.elapsed());
    assert!(draining.await.unwrap());
    running.await.unwrap();
    drop(other_drain);
}

#[tokio::test(start_paused = true)]
async fn leadership_lapses_on_time_even_while_a_call_hangs_and_comes_back() {
    let store = Memory::default();
    let (_drain, signal) = Drain::new();
    let (mut leading, _) = stand(&store, "only", &signal);
    leading.won().await;
    store.0.lock().unwrap().2 = true;
    let since = Instant::now();
    leading.changed().await;
    assert!(!leading.holds());
    assert!(since.elapsed() <= candidate::RENEW_DEADLINE, "{:?}", since.elapsed());
    store.0.lock().unwrap().2 = false;
    leading.won().await;
    assert_eq!(store.holder(), "only");
}

#[tokio::test(start_paused = true)]
async fn who_finds_another_one_leading_ends() {
    let store = Memory::default();
    let (_drain, signal) = Drain::new();
    let (mut leading, running) = stand(&store, "old", &signal);
    leading.won().await;
    {
        let (record, version, _) = &mut *store.0.lock().unwrap();
        record.as_mut().unwrap().holder = "new".to_owned();
        *version += 1;
    }
    running.await.unwrap();
    assert!(!leading.holds());
    assert_eq!(leading.holder().as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn a_site_has_no_rival() {
    let mut leading = Leading::always();
    leading.won().await;
    assert!(leading.holds() && leading.write().is_some());
    assert!(tokio::time::timeout(Duration::from_secs(3600), leading.changed()).await.is_err());
}
