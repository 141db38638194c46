//! The same findings as conditions and events in an API server.
//!
//! - **In**: as [`super`], and watches of the objects themselves.
//! - **Out**: the `status` of Links, ServiceExports, traffic and export policies, by server-side apply under a name of its own
//!   ([`MANAGER`]); events on them (`events.k8s.io/v1`). Everything that decides is in [`super::objects`] and [`super::events`].
//! - **Refuses when**: never.
//! - **Never does**: write without leading; make an object: a status goes to the object with the uid that was seen, or nowhere.
//! - **Numbers**: [`PACE`], [`SHARE`], [`AT_ONCE`], [`CALL`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams};
use linkspan_proto::names::ClusterName;
use linkspan_runtime::drain::Signal;
use linkspan_runtime::text::Clean;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::events::{self, Book, Entry, Told, Unmade};
use super::findings::Inputs;
use super::objects::{KINDS, Ledger, Subject, Write};
use super::{PACE, SHARE, Sources};
use crate::leader::Leading;
use crate::watch::intake::Seen;
use crate::watch::kubernetes::{resource, watched};

/// Whose fields these are, in `managedFields`: mirrors have another, so that the two never take fields from each other.
const MANAGER: &str = "linkspan-status";
/// Who tells events.
const REPORTER: &str = "linkspan.io/mirror-controller";
/// Writes at the same time: beside those of mirrors, which are more pressing.
pub const AT_ONCE: usize = 4;
/// For one answer. As short as that of mirrors, for the same reason.
pub const CALL: Duration = crate::mirror::kubernetes::WRITE;
/// Where events of objects without a namespace lie.
const DEFAULT_NAMESPACE: &str = "default";

/// What is needed beside [`Sources`].
#[derive(Clone)]
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Whether this controller writes.
    pub leading: Leading,
    /// Who this controller is: the `reportingInstance` of its events.
    pub identity: String,
}

/// Keeps statuses up to date until the drain. Start it when the first mirrors are known: before that it would say what is
/// not so.
pub async fn run(context: Context, own: ClusterName, mut sources: Sources, signal: Signal) {
    let Context { client, mut leading, identity } = context;
    // That a watch stands is no reason to look at everything.
    let mut watches = stream::select_all(KINDS.map(|kind| watched(&client, kind)))
        .filter(|(_, said)| std::future::ready(!matches!(said, Ok(Seen::Watching))));
    let mut ledger = Ledger::default();
    let mut writer = Writer { client, leading: leading.clone(), identity, book: Book::new(Instant::now()) };
    let mut unmade = Unmade::default();
    let mut next: Option<Instant> = None;
    loop {
        let again = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some((kind, said)) = watches.next() => {
                let mut news = Some((kind, said));
                // A list comes as thousands of single objects: all of them before anything is decided.
                while let Some((kind, said)) = news {
                    // What failed is reported by the watch that feeds the catalog, and tried again below this stream.
                    if let Ok(seen) = said {
                        ledger.take(kind, seen);
                    }
                    news = futures::FutureExt::now_or_never(watches.next()).flatten();
                }
            }
            changed = sources.changed() => if changed.is_err() { return },
            () = leading.changed() => {}
            () = again => {}
            () = signal.draining() => return,
        }
        let started = Instant::now();
        next = None;
        if leading.holds() && ledger.is_complete() {
            let inputs = sources.inputs(&own);
            let wanted = ledger.wanted(&inputs);
            let (writes, later) = ledger.due(&wanted, Instant::now(), Timestamp::now());
            next = later;
            for (link, told) in unmade.update(&inputs) {
                if let Some(link) = ledger.subject(&link) {
                    writer.tell(&link, &told).await;
                }
            }
            writer.write(&mut ledger, writes).await;
        }
        tokio::select! {
            () = tokio::time::sleep(PACE.max(started.elapsed() * (SHARE - 1).min(4))) => {}
            () = signal.draining() => return,
        }
    }
}

/// The calls.
struct Writer {
    client: Client,
    leading: Leading,
    identity: String,
    book: Book,
}

impl Writer {
    /// Writes statuses, and tells what they change.
    async fn write(&mut self, ledger: &mut Ledger, writes: Vec<Write>) {
        let results: Vec<_> = stream::iter(writes.into_iter().map(|write| {
            let writer = &*self;
            async move {
                let result = writer.apply(&write).await;
                (write, result)
            }
        }))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
        for (write, result) in results {
            let Some(result) = result else { continue };
            let is_written = result.is_ok();
            if let Err(error) = &result {
                tracing::warn!(object = %Clean(&write.object.key.to_string()), %error, "a status cannot be written; trying again");
            }
            ledger.done(&write, result.ok(), Instant::now());
            if is_written {
                for told in events::of(write.object.key.kind, &write.before, &write.verdicts) {
                    self.tell(&write.object, &told).await;
                }
            }
        }
    }

    /// `None` when this controller does not lead (any more).
    async fn apply(&self, write: &Write) -> Option<Result<Value, String>> {
        let Subject { key, uid, api_version } = &write.object;
        let resource = resource(key.kind, api_version);
        let mut body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            // The uid: for the object that was seen, and for no other of its name.
            "metadata": { "name": key.name, "uid": uid },
            "status": write.status,
        });
        let api: Api<DynamicObject> = if key.namespace.is_empty() {
            Api::all_with(self.client.clone(), &resource)
        } else {
            body["metadata"]["namespace"] = json!(key.namespace);
            Api::namespaced_with(self.client.clone(), &key.namespace, &resource)
        };
        let _writing = self.leading.write()?;
        let (params, patch) = (PatchParams::apply(MANAGER).force(), Patch::Apply(&body));
        let call = api.patch_status(&key.name, &params, &patch);
        Some(match tokio::time::timeout(CALL, call).await {
            Ok(Ok(object)) => serde_json::to_value(object).map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(Clean(&error.to_string()).to_string()),
            Err(_) => Err(format!("no answer within {} s", CALL.as_secs())),
        })
    }

    /// One event, if it is worth one. An event that cannot be written is not written: the conditions stand.
    async fn tell(&mut self, object: &Subject, told: &Told) {
        let key = &object.key;
        let Some(entry) = self.book.enter(key, told, Instant::now()) else { return };
        let Some(_writing) = self.leading.write() else { return };
        let namespace = if key.namespace.is_empty() { DEFAULT_NAMESPACE } else { &key.namespace };
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let now = MicroTime(Timestamp::now());
        let (name, is_new, result) = match entry {
            Entry::New => {
                let event = event(object, told, &self.identity, now);
                let name = event.metadata.name.clone().unwrap_or_default();
                (name, true, tokio::time::timeout(CALL, api.create(&PostParams::default(), &event)).await)
            }
            Entry::Again { name, count } => {
                let series = EventSeries { count: i32::try_from(count).unwrap_or(i32::MAX), last_observed_time: now };
                let patch = Patch::Merge(json!({ "series": series }));
                let params = PatchParams::default();
                let result = tokio::time::timeout(CALL, api.patch(&name, &params, &patch)).await;
                (name, false, result)
            }
        };
        match result {
            Ok(Ok(_)) if is_new => self.book.made(key, told, Some(name)),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                self.book.made(key, told, None);
                let error = error.to_string();
                tracing::debug!(object = %Clean(&key.to_string()), error = %Clean(&error), "an event cannot be written");
            }
            Err(_) => self.book.made(key, told, None),
        }
    }
}

fn event(object: &Subject, told: &Told, identity: &str, now: MicroTime) -> Event {
    let Subject { key, uid, api_version } = object;
    let resource = resource(key.kind, api_version);
    let namespace = Some(key.namespace.clone()).filter(|namespace| !namespace.is_empty());
    Event {
        metadata: ObjectMeta {
            // As Kubernetes' own components name them.
            name: Some(format!("{}.{:x}", key.name, now.0.as_nanosecond())),
            namespace: Some(namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())),
            ..ObjectMeta::default()
        },
        event_time: Some(now),
        action: Some(told.action.to_owned()),
        reason: Some(told.reason.to_owned()),
        note: Some(told.note.clone()),
        type_: Some(if told.is_warning { "Warning" } else { "Normal" }.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(resource.api_version),
            kind: Some(resource.kind),
            name: Some(key.name.clone()),
            namespace,
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(identity.chars().take(128).collect()),
        ..Event::default()
    }
}

impl Sources {
    /// Everything at this moment.
    fn inputs(&mut self, own: &ClusterName) -> Inputs {
        Inputs {
            own: own.clone(),
            snapshot: self.snapshots.borrow_and_update().clone(),
            peers: Arc::clone(&self.peers.borrow_and_update()),
            mirrors: self.mirrors.borrow_and_update().clone(),
            held: Arc::clone(&self.held.borrow_and_update()),
            reports: self.reports.borrow_and_update().clone(),
        }
    }

    /// Resolves when any of them changed.
    async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        tokio::select! {
            changed = self.snapshots.changed() => changed,
            changed = self.peers.changed() => changed,
            changed = self.held.changed() => changed,
            changed = self.mirrors.changed() => changed,
            changed = self.reports.changed() => changed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::{Kind, ObjectKey};

    #[test]
    fn an_event_names_its_object_and_lies_where_that_is() {
        let told = Told {
            is_warning: true,
            reason: "Disconnected",
            action: "Connect",
            note: "Unreachable: no answer".to_owned(),
        };
        let now = MicroTime(Timestamp::from_second(1).unwrap());
        let subject = |kind, namespace: &str, uid: &str, api_version: &str| Subject {
            key: ObjectKey { kind, namespace: namespace.to_owned(), name: "west".to_owned() },
            uid: uid.to_owned(),
            api_version: api_version.to_owned(),
        };
        let link = subject(Kind::Link, "", "u1", "linkspan.io/v1alpha1");
        let of_link = event(&link, &told, "pod-0", now.clone());
        assert_eq!(of_link.metadata.namespace.as_deref(), Some("default"));
        let regarding = of_link.regarding.unwrap();
        assert_eq!((regarding.namespace, regarding.uid.as_deref()), (None, Some("u1")));
        assert_eq!(regarding.api_version.as_deref(), Some("linkspan.io/v1alpha1"));
        let export = subject(Kind::ServiceExport, "shop", "u2", "multicluster.x-k8s.io/v1alpha1");
        let of_export = event(&export, &told, "pod-0", now);
        let regarding = of_export.regarding.as_ref().unwrap();
        assert_eq!(regarding.api_version.as_deref(), Some("multicluster.x-k8s.io/v1alpha1"), "the one that is served");
        assert_eq!(of_export.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!(of_export.metadata.name.as_deref(), Some("west.3b9aca00"));
        assert_eq!(of_export.type_.as_deref(), Some("Warning"));
    }
}
