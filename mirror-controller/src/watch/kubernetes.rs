//! An API server as the source of objects.
//!
//! - **In**: one watch for each kind, over all namespaces.
//! - **Out**: events and problems, as [`super`] says; what they come to is decided in [`super::intake`].
//! - **Refuses when**: an object does not decode; see there. A kind that is not served is reported and waited for: an API
//!   server that has just started does not serve its CRDs for a moment, and that must not look like a cluster without Links.
//! - **Never does**: watch what this controller made itself; delete because a list broke off; hurry an API server that is
//!   in trouble.
//! - **Numbers**: [`WATCH_SECONDS`], [`PAGE`], [`PAUSE`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::client::Body;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use linkspan_runtime::text::Clean;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::intake::{Intake, Seen};
use super::{Event, Kind, ObjectKey, Problem};
use crate::labels;

/// A watch is opened anew after this time, and counts as dead 5 s later (the client's margin): a connection that went
/// silent is noticed in 30 s (F-12), not in the 295 s of the default.
pub const WATCH_SECONDS: u32 = 25;
/// Objects in one page of a list.
pub const PAGE: u32 = 500;
/// What an API server says of a kind, or of a version of one, that it does not serve.
pub const NOT_FOUND: u16 = 404;
/// Between two tries of a watch that fails: first and longest. The longest keeps an API server that comes back unhurried and
/// has everything caught up in 10 s (F-13).
pub const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(6));

/// What an API server calls a kind: the version that is preferred, and those that may be served instead. Never empty.
#[must_use]
pub fn resources(kind: Kind) -> Vec<ApiResource> {
    let (group, versions, plural): (_, &[&str], _) = match kind {
        Kind::Service => ("", &["v1"], "services"),
        Kind::EndpointSlice => ("discovery.k8s.io", &["v1"], "endpointslices"),
        Kind::ServiceExport => ("multicluster.x-k8s.io", &["v1beta1", "v1alpha1"], "serviceexports"),
        Kind::Link => ("linkspan.io", &["v1alpha1"], "links"),
        Kind::ClusterTrafficPolicy => ("linkspan.io", &["v1alpha1"], "clustertrafficpolicies"),
        Kind::ExportPolicy => ("linkspan.io", &["v1alpha1"], "exportpolicies"),
    };
    in_versions(group, versions, kind.as_str(), plural)
}

/// The same for ServiceImports, which are written and read but never exported.
#[must_use]
pub fn service_imports() -> Vec<ApiResource> {
    in_versions("multicluster.x-k8s.io", &["v1beta1", "v1alpha1"], "ServiceImport", "serviceimports")
}

fn in_versions(group: &str, versions: &[&str], kind: &str, plural: &str) -> Vec<ApiResource> {
    let of = |version: &&str| ApiResource {
        group: group.to_owned(),
        version: (*version).to_owned(),
        api_version: if group.is_empty() { (*version).to_owned() } else { format!("{group}/{version}") },
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    };
    versions.iter().map(of).collect()
}

/// What an API server calls a kind in the version in which its objects came, or in the preferred one where that says nothing.
#[must_use]
pub fn resource(kind: Kind, api_version: &str) -> ApiResource {
    let mut all = resources(kind);
    let at = all.iter().position(|resource| resource.api_version == api_version).unwrap_or_default();
    all.swap_remove(at)
}

/// A watch of one resource, kept up for ever, in whichever of its `versions` is served: each is tried in turn while the API
/// server says that there is no such thing, and only when none is does that come through as an error.
pub fn versioned(
    client: Client,
    config: watcher::Config,
    versions: Vec<ApiResource>,
) -> BoxStream<'static, (ApiResource, Result<watcher::Event<DynamicObject>, watcher::Error>)> {
    let open = move |version: &ApiResource| {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), version);
        watcher(api, config.clone()).backoff(Pause::default()).boxed()
    };
    let state = (open, Turns::new(versions.len()), None);
    stream::unfold(state, move |(open, mut turns, mut running)| {
        let versions = versions.clone();
        async move {
            loop {
                let version = versions.get(turns.at)?;
                let mut events = running.take().unwrap_or_else(|| open(version));
                let event = events.next().await?;
                let missing = event.as_ref().is_err_and(|error| code(error) == NOT_FOUND);
                // A list begins before it is known whether there is such a thing.
                match turns.heard(missing, matches!(event, Ok(watcher::Event::Init))) {
                    Turn::Stay => running = Some(events),
                    Turn::Next => continue,
                    Turn::Rest(pause) => tokio::time::sleep(pause).await,
                }
                return Some(((version.clone(), event), (open, turns, running)));
            }
        }
    })
    .boxed()
}

/// Which version's turn it is.
struct Turns {
    at: usize,
    versions: usize,
    /// Versions in a row that are not served.
    missing: usize,
    pause: Pause,
}

#[derive(Debug, PartialEq)]
enum Turn {
    /// It is served, or that is not known.
    Stay,
    /// The next one at once.
    Next,
    /// The next one, and none is served: after a pause.
    Rest(Duration),
}

impl Turns {
    fn new(versions: usize) -> Self {
        Self { at: 0, versions, missing: 0, pause: Pause::default() }
    }

    fn heard(&mut self, missing: bool, beginning: bool) -> Turn {
        if !missing {
            if !beginning {
                self.missing = 0;
                self.pause.reset();
            }
            return Turn::Stay;
        }
        self.missing += 1;
        self.at = (self.at + 1) % self.versions.max(1);
        if self.missing < self.versions {
            return Turn::Next;
        }
        self.missing = 0;
        Turn::Rest(self.pause.0.next())
    }
}

/// Watches until `events` is closed.
pub async fn run(client: Client, events: mpsc::Sender<Event>, problems: watch::Sender<Arc<Vec<Problem>>>) {
    let mut intake = Intake::new(Kind::ALL);
    let mut seen = stream::select_all(Kind::ALL.map(|kind| watched(&client, kind)));
    let mut failing: BTreeMap<Kind, Problem> = BTreeMap::new();
    while let Some((kind, said)) = seen.next().await {
        let said = match said {
            Ok(seen) => {
                // A list begins before it is known whether it can be read. A watch that works again says so, or what failed for
                // a moment would stand until an object changes.
                if seen != Seen::Start {
                    failing.remove(&kind);
                }
                intake.take(kind, seen)
            }
            Err(error) => {
                // Retried below this stream, with pauses.
                tracing::debug!(%kind, error = %Clean(&error.to_string()), "a watch of the API server failed; trying again");
                failing.insert(kind, problem(kind, &error));
                Vec::new()
            }
        };
        report(&problems, intake.problems().into_iter().chain(failing.values().cloned()).collect());
        for event in said {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// One kind's watch, kept up for ever. What fails is tried again with pauses, and said.
pub fn watched(client: &Client, kind: Kind) -> BoxStream<'static, (Kind, Result<Seen, watcher::Error>)> {
    let mut config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    if matches!(kind, Kind::Service | Kind::EndpointSlice) {
        config = config.labels(&format!("{}!={}", labels::MANAGED_BY, labels::MANAGED_BY_VALUE));
    }
    // One that waits to be told is as good as many.
    let (opened, watching) = mpsc::channel(1);
    let events = versioned(telling(client.clone(), opened), config, resources(kind))
        .map(move |(_, event)| (kind, event.map(|event| seen(kind, event))));
    let watching = ReceiverStream::new(watching).map(move |()| (kind, Ok(Seen::Watching)));
    stream::select(events, watching).boxed()
}

/// A client that says when the API server has granted a watch: the library tells only what a watch brings, and that it failed.
fn telling(client: Client, opened: mpsc::Sender<()>) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (client, opened) = (client.clone(), opened.clone());
        async move {
            let is_watch = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
            let response = client.send(request).await?;
            if is_watch && response.status().is_success() {
                // Full: it is said already. Closed: nobody listens any more.
                opened.try_send(()).ok();
            }
            Ok::<_, kube::Error>(response)
        }
    });
    Client::new(service, namespace)
}

fn seen(kind: Kind, event: watcher::Event<DynamicObject>) -> Seen {
    match event {
        watcher::Event::Init => Seen::Start,
        watcher::Event::InitApply(object) | watcher::Event::Apply(object) => Seen::Object(value(object)),
        watcher::Event::Delete(object) => {
            Seen::Gone(ObjectKey { kind, namespace: object.namespace().unwrap_or_default(), name: object.name_any() })
        }
        watcher::Event::InitDone => Seen::Complete,
    }
}

/// An object as it came, without the bookkeeping that nobody here reads.
fn value(mut object: DynamicObject) -> Value {
    object.metadata.managed_fields = None;
    // Kept by kubectl for itself, and as large as the object.
    object.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
    serde_json::to_value(object).unwrap_or_default()
}

/// The HTTP status of an error, or 0.
#[must_use]
pub fn code(error: &watcher::Error) -> u16 {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code,
        watcher::Error::WatchError(status) => status.code,
        _ => 0,
    }
}

/// Why objects cannot be read, and what to do about it. No figures of the moment in it: it is told once.
#[must_use]
pub fn complaint(plural: &str, error: &watcher::Error) -> String {
    match code(error) {
        NOT_FOUND => format!(
            "the API server does not serve {plural}: apply the CRDs (linkspan install --stage cluster | kubectl apply -f -)"
        ),
        401 => "the API server does not know this controller: its ServiceAccount token is not accepted".to_owned(),
        403 => format!(
            "this controller may not watch {plural}: apply the roles (linkspan install --stage cluster | kubectl apply -f -)"
        ),
        _ => format!("{plural} cannot be watched at the moment; what was known stays in force"),
    }
}

fn problem(kind: Kind, error: &watcher::Error) -> Problem {
    let message = complaint(&resources(kind).swap_remove(0).plural, error);
    Problem { file: kind.as_str().to_owned(), line: 0, column: 0, field: String::new(), message }
}

/// Publishes the problems if they differ, and logs each new one once.
fn report(sender: &watch::Sender<Arc<Vec<Problem>>>, problems: Vec<Problem>) {
    sender.send_if_modified(|current| {
        if **current == problems {
            return false;
        }
        for problem in problems.iter().filter(|problem| !current.contains(problem)) {
            tracing::warn!(object = %Clean(&problem.file), field = %Clean(&problem.field), "{}", Clean(&problem.message));
        }
        *current = Arc::new(problems);
        true
    });
}

/// Our pauses ([`PAUSE`]) in the client's shape.
pub struct Pause(linkspan_runtime::backoff::Backoff);

impl Default for Pause {
    fn default() -> Self {
        Self(linkspan_runtime::backoff::Backoff::new(PAUSE.0, PAUSE.1))
    }
}

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0.next())
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use serde_json::json;

    use super::*;
    use crate::testkit::api_server;

    #[test]
    fn the_version_that_is_served_is_found_and_kept() {
        let mut turns = Turns::new(2);
        assert_eq!(turns.heard(false, true), Turn::Stay);
        assert_eq!((turns.heard(true, false), turns.at), (Turn::Next, 1), "only v1alpha1 is served");
        assert_eq!(turns.heard(false, true), Turn::Stay, "its list begins");
        assert_eq!((turns.heard(false, false), turns.at), (Turn::Stay, 1));
        // Its definition was replaced by one that serves the newer version alone.
        assert_eq!((turns.heard(true, false), turns.at), (Turn::Next, 0));
        assert_eq!(turns.heard(false, true), Turn::Stay);
        assert!(matches!(turns.heard(true, false), Turn::Rest(_)), "neither: told, and tried again after a pause");
        assert_eq!((turns.heard(true, false), turns.at), (Turn::Next, 0));
    }

    #[test]
    fn a_kind_of_one_version_rests_each_time() {
        let mut turns = Turns::new(1);
        assert!(matches!(turns.heard(true, false), Turn::Rest(_)));
        assert_eq!(turns.at, 0);
        assert_eq!(resources(Kind::ServiceExport)[0].api_version, "multicluster.x-k8s.io/v1beta1");
        assert_eq!(resources(Kind::Service)[0].api_version, "v1");
    }

    /// What failed for a moment is no problem once it works again, whether or not any object changes then.
    #[tokio::test(start_paused = true)]
    async fn a_problem_of_a_watch_goes_when_the_watch_stands_again() {
        let failing = Arc::new(AtomicBool::new(false));
        let fails = Arc::clone(&failing);
        let client = api_server(move |path, watches| match (watches, path.ends_with("/links")) {
            (true, true) if fails.load(Ordering::Relaxed) => (500, json!({"message": "in trouble"})),
            _ => (200, json!({"metadata": {"resourceVersion": "1"}, "items": []})),
        });
        let (events, mut told) = mpsc::channel(16);
        let (sender, mut problems) = watch::channel(Arc::default());
        drop(linkspan_runtime::task::spawn("test", run(client, events, sender)));
        while told.recv().await != Some(Event::InitDone) {}
        assert!(problems.borrow().is_empty());
        failing.store(true, Ordering::Relaxed);
        let said = problems.wait_for(|all| !all.is_empty()).await.unwrap().clone();
        assert!(said[0].message.contains("links cannot be watched"), "{said:?}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(problems.borrow().len(), 1, "it stands as long as it fails: {:?}", problems.borrow());
        failing.store(false, Ordering::Relaxed);
        let gone = tokio::time::timeout(PAUSE.1 * 2, problems.wait_for(|all| all.is_empty())).await.is_ok();
        assert!(gone, "{:?}", problems.borrow());
    }
}
