//! The calls to the API server. The only file that writes mirrored objects there.
//!
//! Writes are server-side applies: what we say is ours, what others add beside it stays theirs, and saying the same again
//! changes nothing. Before an object is made, one of its name is looked for: a patch would make somebody else's ours.

use std::net::IpAddr;

use futures::stream::{BoxStream, StreamExt};
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api as KubeApi, Client};
use linkspan_proto::names::ServiceKey;
use linkspan_runtime::text::Clean;
use serde_json::Value;

use super::super::desired::Wanted;
use super::super::plan::Place;
use super::objects::{self, Gateways, Reference, Rendered, Resource};
use super::{WRITE, place};
use crate::labels;
use crate::leader::Leading;
use crate::watch::kubernetes::{PAGE, Pause, WATCH_SECONDS};

/// Whose fields these are, in `managedFields`.
const MANAGER: &str = "linkspan-mirror-controller";

/// What a watch says.
pub(super) enum Said {
    /// An object is there.
    Object {
        /// The object.
        value: Value,
        /// Whether it came in a list.
        listed: bool,
    },
    /// An object is gone.
    Gone(Value),
    /// A list is complete.
    Listed,
}

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// Something of that name is there and has not our label.
    #[error("an object of this name is there and is not ours")]
    Foreign,
    /// This controller is not the one that writes (any more).
    #[error("this controller does not lead")]
    NotLeading,
    /// The API server did not answer in time.
    #[error("no answer within {} s", WRITE.as_secs())]
    Slow,
    /// The API server said no.
    #[error("{0}")]
    Refused(String),
}

/// Calls with their types.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    leading: Leading,
}

impl Api {
    pub(super) const fn new(client: Client, leading: Leading) -> Self {
        Self { client, leading }
    }

    /// Everything with our label, kept up for ever.
    pub(super) fn watch(&self, resource: Resource) -> BoxStream<'static, (Resource, Said)> {
        let api: KubeApi<DynamicObject> = KubeApi::all_with(self.client.clone(), &api_resource(resource));
        let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE).labels(&format!(
            "{}={}",
            labels::MANAGED_BY,
            labels::MANAGED_BY_VALUE
        ));
        watcher(api, config)
            .backoff(Pause::default())
            .filter_map(move |event| async move {
                let said = match event {
                    Ok(watcher::Event::Init) => return None,
                    Ok(watcher::Event::InitApply(object)) => Said::Object { value: value(object), listed: true },
                    Ok(watcher::Event::Apply(object)) => Said::Object { value: value(object), listed: false },
                    Ok(watcher::Event::Delete(object)) => Said::Gone(value(object)),
                    Ok(watcher::Event::InitDone) => Said::Listed,
                    Err(error) => {
                        tracing::debug!(?resource, error = %Clean(&error.to_string()), "a watch of mirrored objects failed; trying again");
                        return None;
                    }
                };
                Some((resource, said))
            })
            .boxed()
    }

    /// Makes a mirror whose objects are not there; returns the ClusterIPs of its Service.
    pub(super) async fn create(&self, wanted: &Wanted, gateways: &Gateways) -> Result<Vec<IpAddr>, WriteError> {
        let mut mains: Vec<Reference> = objects::objects(wanted, gateways).into_iter().map(|it| it.reference).collect();
        mains.extend(objects::import(wanted, &[]).map(|import| import.reference));
        for reference in mains.iter().filter(|reference| reference.resource != Resource::EndpointSlice) {
            if let Some(found) = self.get(reference).await? {
                place::identify(reference.resource, &found).ok_or(WriteError::Foreign)?;
            }
        }
        self.apply(wanted, gateways).await
    }

    /// Brings a mirror's objects to what is wanted; returns the ClusterIPs of its Service.
    pub(super) async fn apply(&self, wanted: &Wanted, gateways: &Gateways) -> Result<Vec<IpAddr>, WriteError> {
        let mut ips = Vec::new();
        for rendered in objects::objects(wanted, gateways) {
            let answer = self.patch(&rendered, None).await?;
            if rendered.reference.resource == Resource::Service {
                ips = place::cluster_ips(&answer);
            }
        }
        if let Some(import) = objects::import(wanted, &ips) {
            self.patch(&import, None).await?;
        }
        if let Some(status) = objects::import_status(wanted) {
            self.patch(&status, Some("status")).await?;
        }
        Ok(ips)
    }

    /// Deletes what is in a place. The Service first: its slices mean nothing without it.
    pub(super) async fn delete(&self, place: &Place, service: ServiceKey) -> Result<(), WriteError> {
        let reference =
            |resource, name: String| Reference { resource, namespace: place.object.namespace.to_string(), name };
        let mut all = vec![reference(Resource::Service, service.name.to_string())];
        for family in ["ipv4", "ipv6"] {
            all.push(reference(Resource::EndpointSlice, format!("{}-linkspan-{family}", service.name)));
        }
        if place.import {
            all.push(reference(Resource::ServiceImport, place.object.name.to_string()));
        }
        for reference in all {
            self.remove(&reference).await?;
        }
        Ok(())
    }

    /// Deletes one object unless it is somebody else's.
    pub(super) async fn remove(&self, reference: &Reference) -> Result<(), WriteError> {
        let Some(found) = self.get(reference).await? else { return Ok(()) };
        if place::identify(reference.resource, &found).is_none() {
            return Ok(());
        }
        let _writing = self.leading.write().ok_or(WriteError::NotLeading)?;
        // Of exactly what was looked at: somebody may put another in its place in between.
        let text =
            |field: &str| found.pointer(&format!("/metadata/{field}")).and_then(Value::as_str).map(str::to_owned);
        let params = DeleteParams {
            preconditions: Some(kube::api::Preconditions { uid: text("uid"), resource_version: None }),
            ..DeleteParams::default()
        };
        match in_time(self.of(reference).delete(&reference.name, &params)).await {
            Ok(_) => Ok(()),
            Err(Failure::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn get(&self, reference: &Reference) -> Result<Option<Value>, WriteError> {
        let found = in_time(self.of(reference).get_opt(&reference.name)).await?;
        Ok(found.map(value))
    }

    async fn patch(&self, rendered: &Rendered, subresource: Option<&str>) -> Result<Value, WriteError> {
        let _writing = self.leading.write().ok_or(WriteError::NotLeading)?;
        let api = self.of(&rendered.reference);
        // Ours by label, as was seen: a field that somebody else took is taken back.
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&rendered.value);
        let name = rendered.reference.name.as_str();
        if subresource.is_some() {
            return Ok(value(in_time(api.patch_status(name, &params, &patch)).await?));
        }
        let refused = match in_time(api.patch(name, &params, &patch)).await.map(value) {
            Ok(answer) if objects::is_as(&rendered.value, &answer) => return Ok(answer),
            Ok(_) => None,
            // A port that somebody renumbered is one more port to an apply, of the same name; and a selector that somebody added
            // stays in, which admission refuses.
            Err(Failure::Api(status)) if matches!(status.code, 403 | 422) => Some(Failure::Api(status)),
            Err(failure) => return Err(failure.into()),
        };
        let ours = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match (in_time(api.patch(name, &ours, &Patch::Merge(objects::overwriting(rendered)))).await, refused) {
            (Ok(_), _) => Ok(value(in_time(api.patch(name, &params, &patch)).await?)),
            (Err(_), Some(first)) => Err(first.into()),
            (Err(failure), None) => Err(failure.into()),
        }
    }

    fn of(&self, reference: &Reference) -> KubeApi<DynamicObject> {
        KubeApi::namespaced_with(self.client.clone(), &reference.namespace, &api_resource(reference.resource))
    }
}

/// A failed call.
enum Failure {
    Slow,
    Api(Box<kube::core::Status>),
    Other(String),
}

impl From<Failure> for WriteError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Slow => Self::Slow,
            Failure::Api(status) => Self::Refused(Clean(&status.message).to_string()),
            Failure::Other(error) => Self::Refused(error),
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

fn api_resource(resource: Resource) -> ApiResource {
    let (api_version, kind) = resource.type_meta();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural: format!("{}s", kind.to_lowercase()),
    }
}

/// An object as it came, without the bookkeeping that nobody here reads.
fn value(mut object: DynamicObject) -> Value {
    object.metadata.managed_fields = None;
    serde_json::to_value(object).unwrap_or_default()
}
