//! The calls to the API server. The only file that writes mirrored objects there.
//!
//! Writes are server-side applies: what we say is ours, what others add beside it stays theirs, and saying the same again
//! changes nothing. Before an object is made, one of its name is looked for: a patch would make somebody else's ours.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GetParams, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api as KubeApi, Client};
use linkspan_runtime::text::Clean;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::desired::{Shape, Wanted};
use super::super::plan::Place;
use super::objects::{self, Gateways, Given, Reference, Rendered, Resource};
use super::{WRITE, import, place};
use crate::labels;
use crate::leader::Leading;
use crate::pressure::Pressure;
use crate::watch::kubernetes::{NOT_FOUND, PAGE, WATCH_SECONDS, code, complaint, service_imports, versioned};

/// Endpoints of one headless mirror that are written at the same time: it is one of several mirrors.
const CARRIERS_AT_ONCE: usize = 4;

/// What an API server says when it has too much to do.
const TOO_MANY_REQUESTS: u16 = 429;

/// Why no import is written, where that is so.
const NO_IMPORTS: &str =
    "it does not serve serviceimports: apply the CRDs (linkspan install --stage cluster | kubectl apply -f -)";

/// What it says of a watch from so long ago that it does not know any more what happened since.
const GONE: u16 = 410;

/// Other refusals that pass by themselves: a token that is not known yet, a namespace or a kind that is not there yet, somebody
/// who was faster.
const PASSING: [u16; 4] = [401, 404, 408, 409];

/// Whose fields these are, in `managedFields`.
const MANAGER: &str = "linkspan-mirror-controller";

/// What a watch says.
pub(super) enum Said {
    /// A list begins: what it does not name is gone when it is complete.
    Listing,
    /// An object is there.
    Object(Value),
    /// An object is gone.
    Gone(Value),
    /// A list is complete.
    Listed,
    /// The API server has no such thing, so far.
    NotServed,
}

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// Something of that name is there and has not our label.
    #[error("an object of this name is there and is not ours")]
    Foreign(Reference),
    /// This controller is not the one that writes (any more).
    #[error("this controller does not lead")]
    NotLeading,
    /// The API server wants to be left alone for a while.
    #[error("the API server has too much to do")]
    Busy,
    /// The API server did not answer in time.
    #[error("no answer within {} s", WRITE.as_secs())]
    Slow,
    /// A Service that was deleted to be made anew is there still.
    #[error("the Service that was deleted to make it anew, with or without an address, is still there")]
    Left,
    /// The API server says no, and will until somebody does something.
    #[error("{0}")]
    Refused(String),
    /// It went wrong this time.
    #[error("{0}")]
    Failed(String),
}

impl WriteError {
    /// Whether an object does not fit the definition of its kind: a field that it has not, or too many of something.
    fn is_of_schema(&self) -> bool {
        // An API server has no code of its own for the first, not even a reason.
        matches!(self, Self::Refused(why) | Self::Failed(why)
            if why.contains("field not declared in schema") || why.contains("must have at most"))
    }
}

/// Calls with their types.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    leading: Leading,
    pressure: Pressure,
    /// Only the older version of ServiceImport is served.
    older_imports: Arc<AtomicBool>,
    /// None is.
    pub(super) no_imports: Arc<AtomicBool>,
    /// The definition of ServiceImport that is served is not ours and has fewer fields ([`import::plain`]).
    plain_imports: Arc<AtomicBool>,
}

impl Api {
    pub(super) fn new(client: Client, leading: Leading, pressure: Pressure) -> Self {
        Self {
            client,
            leading,
            pressure,
            older_imports: Arc::default(),
            no_imports: Arc::default(),
            plain_imports: Arc::default(),
        }
    }

    /// Until when the API server wants to be left alone, if it does.
    pub(super) fn busy_until(&self) -> Option<Instant> {
        self.pressure.until()
    }

    /// Whether imports are written without the fields that not every definition of them has.
    pub(super) fn plain_imports(&self) -> bool {
        self.plain_imports.load(Ordering::Relaxed)
    }

    /// Everything with our label, kept up for ever.
    pub(super) fn watch(&self, resource: Resource) -> BoxStream<'static, (Resource, Said)> {
        let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE).labels(&format!(
            "{}={}",
            labels::MANAGED_BY,
            labels::MANAGED_BY_VALUE
        ));
        let (older, absent) = (Arc::clone(&self.older_imports), Arc::clone(&self.no_imports));
        let plain = Arc::clone(&self.plain_imports);
        let mut fails = false;
        versioned(self.client.clone(), config, versions(resource))
            .filter_map(move |(version, event)| {
                // A list begins before it is known whether the version is served, or whether it can be read.
                if !matches!(event, Ok(watcher::Event::Init) | Err(_)) {
                    fails = false;
                    if resource == Resource::ServiceImport {
                        older.store(version.version != "v1beta1", Ordering::Relaxed);
                        absent.store(false, Ordering::Relaxed);
                        // Where the definition was replaced, the list begins anew.
                        plain.fetch_and(!matches!(event, Ok(watcher::Event::InitDone)), Ordering::Relaxed);
                    }
                }
                let said = match event {
                    Ok(watcher::Event::Init) => Some(Said::Listing),
                    Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                        Some(Said::Object(value(object)))
                    }
                    Ok(watcher::Event::Delete(object)) => Some(Said::Gone(value(object))),
                    Ok(watcher::Event::InitDone) => Some(Said::Listed),
                    Err(error) => {
                        fails = failed(&version.plural, &error, fails);
                        let is_absent = resource == Resource::ServiceImport && code(&error) == NOT_FOUND;
                        absent.fetch_or(is_absent, Ordering::Relaxed);
                        is_absent.then_some(Said::NotServed)
                    }
                };
                async move { Some((resource, said?)) }
            })
            .boxed()
    }

    /// Brings a mirror's objects to what is wanted, without those that `skip` names as being so already; returns the
    /// ClusterIPs of its Services. Objects that are not among `ours` are looked for first: a patch would make somebody else's
    /// ours. An endpoint of a headless mirror that cannot be written keeps no other from it.
    pub(super) async fn apply(
        &self,
        wanted: &Wanted,
        gateways: &Gateways,
        given: &Given,
        ours: &BTreeSet<Reference>,
        skip: impl Fn(&Rendered) -> bool + Sync,
    ) -> Result<Given, WriteError> {
        let known = objects::services(wanted).filter_map(|service| given.get_key_value(&service));
        let mut ips: Given = known.map(|(service, ips)| (service.clone(), ips.clone())).collect();
        let skip = &skip;
        let carriers = objects::carriers(wanted, gateways).into_iter().map(|carrier| async move {
            let mut ips = None;
            for rendered in carrier.iter().filter(|rendered| !skip(rendered)) {
                let answer = self.write(rendered, ours).await?;
                if let Some(service) = place::service(&rendered.reference) {
                    ips = Some((service, place::cluster_ips(&answer)));
                }
            }
            Ok::<_, WriteError>(ips)
        });
        // Of a headless mirror each endpoint has one; they do not wait for each other.
        let mut written = stream::iter(carriers).buffer_unordered(CARRIERS_AT_ONCE);
        let mut failed = None;
        while let Some(result) = written.next().await {
            match result {
                Ok(given) => ips.extend(given),
                Err(error @ (WriteError::NotLeading | WriteError::Busy)) => return Err(error),
                Err(error) if matches!(wanted.shape, Shape::Single { .. }) => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        for rendered in objects::derived(wanted, gateways, &ips).iter().filter(|rendered| !skip(rendered)) {
            if rendered.reference.resource == Resource::ServiceImport {
                let own = ips.get(&objects::service_of(wanted)).map_or(&[][..], Vec::as_slice);
                self.write_import(wanted, rendered, own, ours).await?;
            } else {
                self.write(rendered, ours).await?;
            }
        }
        failed.map_or(Ok(ips), Err)
    }

    /// Writes a ServiceImport, and its status, which is written apart.
    async fn write_import(
        &self,
        wanted: &Wanted,
        rendered: &Rendered,
        ips: &[IpAddr],
        ours: &BTreeSet<Reference>,
    ) -> Result<(), WriteError> {
        if self.no_imports.load(Ordering::Relaxed) {
            return Err(WriteError::Refused(NO_IMPORTS.to_owned()));
        }
        let is_plain = self.plain_imports();
        match self.write_import_as(wanted, rendered, ips, ours, is_plain).await {
            Err(error) if !is_plain && error.is_of_schema() => {
                // If that does not fit either, the first refusal says more.
                let plain = self.write_import_as(wanted, rendered, ips, ours, true).await;
                plain.map_err(|second| if second.is_of_schema() { error } else { second })?;
                if !self.plain_imports.swap(true, Ordering::Relaxed) {
                    tracing::info!(
                        "the ServiceImport that is served is not Linkspan's: imports have the fields that any has"
                    );
                }
                Ok(())
            }
            result => result,
        }
    }

    async fn write_import_as(
        &self,
        wanted: &Wanted,
        rendered: &Rendered,
        ips: &[IpAddr],
        ours: &BTreeSet<Reference>,
        is_plain: bool,
    ) -> Result<(), WriteError> {
        let form = |full: &Rendered| if is_plain { import::plain(full) } else { full.clone() };
        let answer = self.write(&form(rendered), ours).await?;
        if let Some(status) = import::status(wanted, ips, &answer, Timestamp::now()) {
            self.patch(&form(&status), Some("status")).await?;
        }
        Ok(())
    }

    fn may_ask(&self) -> Result<(), WriteError> {
        self.busy_until().map_or(Ok(()), |_| Err(WriteError::Busy))
    }

    async fn write(&self, rendered: &Rendered, ours: &BTreeSet<Reference>) -> Result<Value, WriteError> {
        let reference = &rendered.reference;
        // A Service is looked at each time: whether it has an address, or none, no patch changes.
        let found = match (ours.contains(reference), reference.resource) {
            (true, Resource::Service) => self.get(reference).await?,
            (true, _) => None,
            // Of thousands that are made, each would ask etcd. What the API server remembers is some milliseconds older, as it is
            // when the write comes anyway.
            (false, _) => self.remembered(reference).await?,
        };
        if let Some(found) = found {
            if !place::is_ours(&found) {
                return Err(WriteError::Foreign(reference.clone()));
            }
            if is_of_another_kind(rendered, &found) {
                self.discard(reference, &found).await?;
            }
        }
        let answer = self.patch(rendered, None).await?;
        // Something holds it back, a finalizer say, or put it there again.
        let is_left = is_of_another_kind(rendered, &answer);
        if is_left { Err(WriteError::Left) } else { Ok(answer) }
    }

    /// Deletes a Service of ours, to make it anew. Its slices go with it: what they say is meant for a Service of the other kind,
    /// and would count for the new one until they are written.
    async fn discard(&self, service: &Reference, found: &Value) -> Result<(), WriteError> {
        tracing::info!(
            object = %format_args!("{}/{}", service.namespace, service.name),
            headless = objects::is_headless(found),
            "a Service is deleted and made anew: whether it has an address cannot be changed"
        );
        self.delete_exactly(service, found).await?;
        for slice in objects::slices_of(service) {
            if let Some(found) = self.get(&slice).await?
                && place::is_ours(&found)
            {
                self.delete_exactly(&slice, &found).await?;
            }
        }
        Ok(())
    }

    /// Deletes these objects. A Service comes before its slices, which mean nothing without it.
    pub(super) async fn delete(&self, place: &Place, all: &BTreeSet<Reference>) -> Result<(), WriteError> {
        for reference in all {
            self.remove(place, reference).await?;
        }
        Ok(())
    }

    /// Deletes one object of a mirror unless it is somebody else's by now, another mirror's included: a name may pass on.
    pub(super) async fn remove(&self, place: &Place, reference: &Reference) -> Result<(), WriteError> {
        let Some(found) = self.get(reference).await? else { return Ok(()) };
        if place::identify(reference.resource, &found).is_none_or(|(_, its)| its != *place) {
            return Ok(());
        }
        self.delete_exactly(reference, &found).await
    }

    /// Deletes what was looked at and nothing else: somebody may put another in its place in between.
    async fn delete_exactly(&self, reference: &Reference, found: &Value) -> Result<(), WriteError> {
        let text =
            |field: &str| found.pointer(&format!("/metadata/{field}")).and_then(Value::as_str).map(str::to_owned);
        let params = DeleteParams {
            preconditions: Some(kube::api::Preconditions { uid: text("uid"), resource_version: None }),
            ..DeleteParams::default()
        };
        match self.send(self.of(reference).delete(&reference.name, &params)).await {
            Ok(_) => Ok(()),
            Err(Failure::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn get(&self, reference: &Reference) -> Result<Option<Value>, WriteError> {
        self.may_ask()?;
        let found = in_time(self.of(reference).get_opt(&reference.name)).await?;
        Ok(found.map(value))
    }

    /// The same from the API server's watch cache.
    async fn remembered(&self, reference: &Reference) -> Result<Option<Value>, WriteError> {
        self.may_ask()?;
        let api = self.of(reference);
        let asked = async {
            match api.get_with(&reference.name, &GetParams::any()).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
                found => found.map(Some),
            }
        };
        Ok(in_time(asked).await?.map(value))
    }

    async fn patch(&self, rendered: &Rendered, subresource: Option<&str>) -> Result<Value, WriteError> {
        self.may_ask()?;
        let api = self.of(&rendered.reference);
        let mut object = rendered.value.clone();
        object["apiVersion"] = json!(self.resource(rendered.reference.resource).api_version);
        // Ours by label, as was seen: a field that somebody else took is taken back.
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&object);
        let name = rendered.reference.name.as_str();
        if subresource.is_some() {
            return Ok(value(self.send(api.patch_status(name, &params, &patch)).await?));
        }
        let refused = match self.send(api.patch(name, &params, &patch)).await.map(value) {
            Ok(answer) if objects::is_as(&rendered.value, &answer) => return Ok(answer),
            Ok(_) => None,
            // A port that somebody renumbered is one more port to an apply, of the same name; and a selector that somebody added
            // stays in, which admission refuses.
            Err(Failure::Api(status)) if matches!(status.code, 403 | 422) => Some(Failure::Api(status)),
            Err(failure) => return Err(failure.into()),
        };
        let ours = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match (self.send(api.patch(name, &ours, &Patch::Merge(objects::overwriting(rendered)))).await, refused) {
            (Ok(_), _) => Ok(value(self.send(api.patch(name, &params, &patch)).await?)),
            (Err(Failure::NotLeading), _) => Err(WriteError::NotLeading),
            (Err(_), Some(first)) => Err(first.into()),
            (Err(failure), None) => Err(failure.into()),
        }
    }

    /// One write, with a permission of its own: what is left of the lease is enough for one, not for three.
    async fn send<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
        let _writing = self.leading.write().ok_or(Failure::NotLeading)?;
        in_time(call).await
    }

    fn of(&self, reference: &Reference) -> KubeApi<DynamicObject> {
        KubeApi::namespaced_with(self.client.clone(), &reference.namespace, &self.resource(reference.resource))
    }

    /// With the version that is served.
    fn resource(&self, resource: Resource) -> ApiResource {
        let mut versions = versions(resource);
        if self.older_imports.load(Ordering::Relaxed) && versions.len() > 1 {
            versions.remove(1)
        } else {
            versions.remove(0)
        }
    }
}

/// Logs that a watch failed, loud when it worked before; says whether it counts as failing now.
fn failed(plural: &str, error: &watcher::Error, before: bool) -> bool {
    let detail = error.to_string();
    // A watch from too long ago: it begins anew with a list.
    if before || code(error) == GONE {
        tracing::debug!(error = %Clean(&detail), "a watch of mirrored objects failed; trying again");
        return before;
    }
    let complaint = complaint(plural, error);
    tracing::warn!(error = %Clean(&detail), "mirrored objects are not kept up: {complaint}; trying again");
    true
}

/// Whether a Service is there that has an address where it should have none, or the other way round.
fn is_of_another_kind(rendered: &Rendered, found: &Value) -> bool {
    rendered.reference.resource == Resource::Service
        && objects::is_headless(&rendered.value) != objects::is_headless(found)
}

/// A failed call.
enum Failure {
    NotLeading,
    Slow,
    Api(Box<kube::core::Status>),
    Other(String),
}

impl From<Failure> for WriteError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotLeading => Self::NotLeading,
            Failure::Slow => Self::Slow,
            Failure::Api(status) if status.code == TOO_MANY_REQUESTS => Self::Busy,
            Failure::Api(status) => {
                let message = Clean(&status.message).to_string();
                let lasts = matches!(status.code, 400..=499) && !PASSING.contains(&status.code);
                if lasts { Self::Refused(message) } else { Self::Failed(message) }
            }
            Failure::Other(error) => Self::Failed(error),
        }
    }
}

async fn in_time<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(WRITE, call).await {
        Err(_) => Err(Failure::Slow),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(Failure::Api(status)),
        Ok(Err(error)) => Err(Failure::Other(Clean(&error.to_string()).to_string())),
    }
}

/// What the API server calls a resource: the version that is preferred, and what may be served instead. Never empty.
fn versions(resource: Resource) -> Vec<ApiResource> {
    let (api_version, kind) = resource.type_meta();
    if resource == Resource::ServiceImport {
        return service_imports();
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    vec![ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural: format!("{}s", kind.to_lowercase()),
    }]
}

/// An object as it came, without the bookkeeping that nobody here reads.
fn value(mut object: DynamicObject) -> Value {
    object.metadata.managed_fields = None;
    serde_json::to_value(object).unwrap_or_default()
}
