//! Who asked the API server for what, by its audit log.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde_json::Value;

use super::cluster::Cluster;

/// One request as rights see it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, ...
    pub verb: String,
    /// The API group; empty for the core.
    pub group: String,
    /// Plural, with the subresource after a slash.
    pub resource: String,
    /// The namespace of the object; empty where there is none or the request was for all.
    pub namespace: String,
    /// The object's name, where the request names one.
    pub name: String,
    /// The HTTP status of the answer.
    pub code: u64,
    /// What the client calls itself.
    pub agent: String,
    /// The pod that its token is bound to; empty where it is bound to none.
    pub pod: String,
}

/// A place in the audit log.
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

impl Cluster {
    /// The end of the audit log as it is now.
    pub fn audit_mark(&self) -> Mark {
        Mark(self.audit_log().metadata().map_or(0, |data| data.len()))
    }

    fn audit_log(&self) -> File {
        File::open(self.dir().join("audit.log")).expect("the API server writes an audit log")
    }

    /// The requests of `user` for resources, in order, since `mark` or since the cluster's start.
    pub fn audit(&self, user: &str, mark: Option<Mark>) -> Vec<Request> {
        self.events(user, mark).iter().map(request).collect()
    }

    /// The same with the time of each answer, in microseconds since 1970.
    pub fn timed_audit(&self, user: &str, mark: Option<Mark>) -> Vec<(i64, Request)> {
        let time = |event: &Value| {
            let time: MicroTime = serde_json::from_value(event["stageTimestamp"].clone()).expect("a time");
            time.0.as_microsecond()
        };
        self.events(user, mark).iter().map(|event| (time(event), request(event))).collect()
    }

    fn events(&self, user: &str, mark: Option<Mark>) -> Vec<Value> {
        use std::io::Seek as _;
        let mut log = self.audit_log();
        log.seek(std::io::SeekFrom::Start(mark.map_or(0, |mark| mark.0))).expect("a file can be read from anywhere");
        // Most lines are of others: those are not parsed.
        let marker = format!("\"username\":\"{user}\"");
        BufReader::new(log)
            .lines()
            .map_while(Result::ok)
            .filter(|line| line.contains(&marker))
            .filter_map(|line| serde_json::from_str::<Value>(&line).ok())
            .filter(|event| event["user"]["username"] == user && event["objectRef"].is_object())
            .collect()
    }

    /// The same as a set.
    pub fn audited(&self, user: &str) -> BTreeSet<Request> {
        self.audit(user, None).into_iter().collect()
    }
}

impl Request {
    /// Whether it changes a mirror.
    pub fn writes(&self) -> bool {
        let mirror = matches!(self.resource.as_str(), "services" | "endpointslices" | "serviceimports");
        mirror && matches!(self.verb.as_str(), "create" | "patch" | "update" | "delete")
    }
}

fn request(event: &Value) -> Request {
    let object = &event["objectRef"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let resource = match object["subresource"].as_str() {
        Some(part) => format!("{}/{part}", text(&object["resource"])),
        None => text(&object["resource"]),
    };
    Request {
        verb: text(&event["verb"]),
        group: text(&object["apiGroup"]),
        resource,
        namespace: text(&object["namespace"]),
        name: text(&object["name"]),
        code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
        agent: text(&event["userAgent"]),
        pod: text(&event["user"]["extra"]["authentication.kubernetes.io/pod-name"][0]),
    }
}
