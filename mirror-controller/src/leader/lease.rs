//! The Lease in the API server. Thin: what is asked and what an answer means is decided in [`super::candidate`].

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use linkspan_runtime::text::Clean;
use serde_json::json;

use super::Store;
use super::candidate::{Answer, Call, Record};

/// The lease, in the controllers' own namespace. Their Role grants exactly this name.
pub const NAME: &str = "linkspan-controller";
/// For one answer. Two that do not come, with the pauses before them, fit between a renewal and its deadline.
pub const CALL: Duration = Duration::from_secs(2);

/// The lease of one namespace.
#[derive(Clone)]
pub struct Lease {
    api: Api<Object>,
}

impl Lease {
    /// The lease in `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace) }
    }

    async fn ask(&self, call: Call) -> kube::Result<Answer> {
        let object = match call {
            Call::Look => {
                return Ok(match self.api.get_opt(NAME).await? {
                    Some(object) => Answer::Found(record(&object), object.resource_version().unwrap_or_default()),
                    None => Answer::Missing,
                });
            }
            Call::Create(record) => {
                let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
                let object = Object { metadata, spec: Some(spec(record)) };
                self.api.create(&PostParams::default(), &object).await?
            }
            Call::Replace(record, version) => {
                // The version makes a merge patch a guarded one: 409 when it is another.
                let patch = json!({ "metadata": { "resourceVersion": version }, "spec": spec(record) });
                self.api.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await?
            }
        };
        Ok(Answer::Written(object.resource_version().unwrap_or_default()))
    }
}

impl Store for Lease {
    async fn call(&self, call: Call) -> Answer {
        match tokio::time::timeout(CALL, self.ask(call)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Answer::Conflict,
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Answer::Missing,
            Ok(Err(error)) => {
                tracing::debug!(error = %Clean(&error.to_string()), "the lease cannot be read or written; trying again");
                Answer::Failed
            }
            Err(_) => {
                tracing::debug!("no answer about the lease in time; trying again");
                Answer::Failed
            }
        }
    }
}

fn record(object: &Object) -> Record {
    let spec = object.spec.clone().unwrap_or_default();
    let time = |time: Option<MicroTime>| time.map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let number = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok());
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        lease_seconds: number(spec.lease_duration_seconds).unwrap_or(15),
        acquired: time(spec.acquire_time),
        renewed: time(spec.renew_time),
        transitions: number(spec.lease_transitions).unwrap_or_default(),
    }
}

fn spec(record: Record) -> LeaseSpec {
    let number = |number: u32| Some(i32::try_from(number).unwrap_or(i32::MAX));
    LeaseSpec {
        holder_identity: Some(record.holder),
        lease_duration_seconds: number(record.lease_seconds),
        acquire_time: Some(MicroTime(record.acquired)),
        renew_time: Some(MicroTime(record.renewed)),
        lease_transitions: number(record.transitions),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    type Asked = Arc<Mutex<Vec<(String, String, String)>>>;

    /// A lease behind an API server that answers with these statuses, one after the other.
    fn lease(statuses: &[u16]) -> (Lease, Asked) {
        let asked = Asked::default();
        let statuses = Arc::new(Mutex::new(statuses.to_vec()));
        let log = Arc::clone(&asked);
        let service = tower::service_fn(move |request: Request<Body>| {
            let (log, statuses) = (Arc::clone(&log), Arc::clone(&statuses));
            async move {
                let (parts, body) = request.into_parts();
                let body = String::from_utf8(body.collect_bytes().await.unwrap().to_vec()).unwrap();
                let kind = parts.headers.get("content-type").map_or("", |kind| kind.to_str().unwrap());
                log.lock().unwrap().push((format!("{} {}", parts.method, parts.uri.path()), kind.to_owned(), body));
                let status = statuses.lock().unwrap().remove(0);
                let answer = if status < 300 {
                    json!({
                        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                        "metadata": { "name": NAME, "resourceVersion": "7" },
                        "spec": { "holderIdentity": "a", "leaseDurationSeconds": 15 },
                    })
                } else {
                    json!({ "kind": "Status", "status": "Failure", "code": status, "reason": "x", "message": "x" })
                };
                let answer = Body::from(answer.to_string().into_bytes());
                Ok::<_, std::convert::Infallible>(Response::builder().status(status).body(answer).unwrap())
            }
        });
        (Lease::new(Client::new(service, "default"), "linkspan"), asked)
    }

    fn ours() -> Record {
        let time = Timestamp::from_second(2).unwrap();
        Record { holder: "b".to_owned(), lease_seconds: 15, acquired: time, renewed: time, transitions: 1 }
    }

    #[tokio::test]
    async fn it_asks_for_no_more_than_its_role_grants_and_replaces_only_what_it_saw() {
        let (lease, asked) = lease(&[200, 404, 201, 200]);
        assert!(
            matches!(lease.call(Call::Look).await, Answer::Found(record, version) if record.holder == "a" && version == "7")
        );
        assert_eq!(lease.call(Call::Look).await, Answer::Missing);
        assert_eq!(lease.call(Call::Create(ours())).await, Answer::Written("7".to_owned()));
        assert_eq!(lease.call(Call::Replace(ours(), "6".to_owned())).await, Answer::Written("7".to_owned()));
        let asked = asked.lock().unwrap();
        let path = "/apis/coordination.k8s.io/v1/namespaces/linkspan/leases";
        let calls: Vec<_> = asked.iter().map(|(call, ..)| call.clone()).collect();
        let get = format!("GET {path}/{NAME}");
        assert_eq!(calls, [get.clone(), get, format!("POST {path}"), format!("PATCH {path}/{NAME}")]);
        let (_, kind, body) = asked.last().unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(kind, "application/merge-patch+json");
        assert_eq!((&body["metadata"]["resourceVersion"], &body["spec"]["holderIdentity"]), (&json!("6"), &json!("b")));
    }

    #[tokio::test]
    async fn refusals_say_what_they_mean() {
        let (lease, _) = lease(&[409, 409, 404, 403, 500]);
        assert_eq!(lease.call(Call::Create(ours())).await, Answer::Conflict);
        assert_eq!(lease.call(Call::Replace(ours(), "6".to_owned())).await, Answer::Conflict);
        assert_eq!(lease.call(Call::Replace(ours(), "6".to_owned())).await, Answer::Missing);
        assert_eq!(lease.call(Call::Look).await, Answer::Failed);
        assert_eq!(lease.call(Call::Look).await, Answer::Failed);
    }

    #[test]
    fn a_record_survives_the_way_through_an_object() {
        let there = Record {
            holder: "linkspan-controller-7d9f-x2x5k".to_owned(),
            lease_seconds: 15,
            acquired: Timestamp::from_second(1).unwrap(),
            renewed: Timestamp::from_second(2).unwrap(),
            transitions: 3,
        };
        let object = Object { spec: Some(spec(there.clone())), ..Object::default() };
        assert_eq!(record(&object), there);
        let empty = record(&Object::default());
        assert_eq!((empty.holder.as_str(), empty.lease_seconds, empty.transitions), ("", 15, 0));
        let sent = serde_json::to_value(spec(there)).unwrap();
        assert_eq!(sent["renewTime"], json!("1970-01-01T00:00:02.000000Z"), "six digits, as the API server wants them");
    }
}
