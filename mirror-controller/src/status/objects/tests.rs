use std::sync::Arc;

use super::*;
use crate::catalog::{ExportReport, LinkReport, Snapshot, Traffic};
use crate::configuration::Reports;
use crate::mirror::MirrorSet;
use crate::testkit::{cluster, key, peer};

const POLICY: &str = r#"{"service": "web", "tiers": [{"clusters": {"west": 1}}]}"#;

fn object(kind: Kind, namespace: &str, name: &str, uid: &str, version: u64) -> Value {
    let spec = match kind {
        Kind::Link => {
            json!({ "trustDomain": "west.linkspan.internal", "trustBundle": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----" })
        }
        Kind::ClusterTrafficPolicy => serde_json::from_str(POLICY).unwrap(),
        Kind::ExportPolicy => json!({ "services": ["web"], "allow": [] }),
        _ => json!({}),
    };
    let mut object = json!({
        "apiVersion": kind.api_versions()[0], "kind": kind.as_str(),
        "metadata": { "name": name, "uid": uid, "resourceVersion": version.to_string(), "generation": 1 },
        "spec": spec,
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

fn inputs(message: &str) -> Inputs {
    let verdict = Verdict::new("Accepted", true, "Accepted", "the Link is in force");
    let link = LinkReport { generation: Some(1), verdict, in_force: true };
    let export = ExportReport {
        generation: Some(1),
        by_label: false,
        verdicts: vec![Verdict::new("Valid", true, "Valid", ""), Verdict::new("Ready", true, "Exported", message)],
    };
    let snapshot = Snapshot {
        peers: Arc::new([(cluster("west"), peer("west"))].into()),
        links: Arc::new([("west".to_owned(), Arc::new(link))].into()),
        exports: Arc::new([(key("shop/web"), Arc::new(export))].into()),
        ..Snapshot::default()
    };
    Inputs {
        own: cluster("east"),
        snapshot,
        peers: Arc::default(),
        mirrors: MirrorSet::default(),
        held: crate::mirror::kubernetes::Held::default(),
        reports: Reports::new(),
    }
}

/// A ledger over objects in memory that take what is written, as an API server does.
struct World {
    ledger: Ledger,
    objects: BTreeMap<ObjectKey, Value>,
    version: u64,
    start: Instant,
    now: Instant,
}

impl World {
    fn new(objects: impl IntoIterator<Item = Value>) -> Self {
        let mut ledger = Ledger::default();
        let mut kept = BTreeMap::new();
        for kind in KINDS {
            ledger.take(kind, Seen::Start);
        }
        for object in objects {
            let kind = *KINDS.iter().find(|kind| object["kind"] == kind.as_str()).unwrap();
            let key = key_of(kind, &object);
            // A Link whose bundle is not one is another test.
            ledger.take(kind, Seen::Object(object.clone()));
            if let (Kind::Link, Some(observed)) = (kind, ledger.observed.get_mut(&key)) {
                observed.read = Ok(None);
            }
            kept.insert(key, object);
        }
        assert!(!ledger.is_complete());
        for kind in KINDS {
            ledger.take(kind, Seen::Complete);
        }
        assert!(ledger.is_complete());
        let start = Instant::now();
        Self { ledger, objects: kept, version: 100, start, now: start }
    }

    fn usual() -> Self {
        Self::new([object(Kind::Link, "", "west", "u1", 1), object(Kind::ServiceExport, "shop", "web", "u2", 2)])
    }

    /// Does what is due; returns whose status was written.
    fn pass(&mut self, inputs: &Inputs) -> Vec<String> {
        let wanted = self.ledger.wanted(inputs);
        let (writes, _) = self.ledger.due(&wanted, self.now, Timestamp::UNIX_EPOCH);
        writes.iter().for_each(|write| self.succeed(write));
        writes.iter().map(|write| write.object.key.to_string()).collect()
    }

    fn succeed(&mut self, write: &Write) {
        self.version += 1;
        let object = self.objects.get_mut(&write.object.key).unwrap();
        object["status"] = write.status.clone();
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let is_link = write.object.key.kind == Kind::Link;
        self.ledger.done(write, Some(object.clone()), self.now);
        if is_link {
            self.ledger.observed.get_mut(&write.object.key).unwrap().read = Ok(None);
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        assert!(self.now > self.start);
    }
}

fn conditions_of(world: &World, key: &ObjectKey) -> BTreeMap<String, String> {
    let conditions = world.objects[key]["status"]["conditions"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    conditions
        .iter()
        .map(|condition| {
            (text(&condition["type"]), format!("{}:{}", text(&condition["status"]), text(&condition["reason"])))
        })
        .collect()
}

#[test]
fn only_differences_are_written_and_links_come_first() {
    let mut world = World::usual();
    assert_eq!(world.pass(&inputs("1 of 1")), ["Link west", "ServiceExport shop/web"]);
    let link = ObjectKey { kind: Kind::Link, namespace: String::new(), name: "west".to_owned() };
    assert_eq!(conditions_of(&world, &link)["Accepted"], "True:Accepted");
    assert_eq!(world.objects[&link]["status"]["services"], json!(0));
    assert_eq!(world.objects[&link]["status"]["conditions"][0]["observedGeneration"], json!(1));
    world.wait(Duration::from_secs(60));
    assert!(world.pass(&inputs("1 of 1")).is_empty());

    // The next leader finds everything as it should be.
    let mut next = World::new(world.objects.values().cloned());
    assert!(next.pass(&inputs("1 of 1")).is_empty());
}

/// An API server that serves the older version alone knows nothing of the preferred one.
#[test]
fn a_status_is_written_in_the_version_that_is_served() {
    for served in ["multicluster.x-k8s.io/v1alpha1", "multicluster.x-k8s.io/v1beta1"] {
        let mut export = object(Kind::ServiceExport, "shop", "web", "u2", 2);
        export["apiVersion"] = json!(served);
        let world = World::new([export]);
        let wanted = world.ledger.wanted(&inputs("1 of 1"));
        let (writes, _) = world.ledger.due(&wanted, world.now, Timestamp::UNIX_EPOCH);
        let versions: Vec<_> = writes.iter().map(|write| write.object.api_version.as_str()).collect();
        assert_eq!(versions, [served]);
        let resource = crate::watch::kubernetes::resource(Kind::ServiceExport, served);
        assert_eq!((resource.api_version.as_str(), resource.plural.as_str()), (served, "serviceexports"));
    }
}

#[test]
fn figures_in_messages_are_not_written_each_time_and_news_are() {
    let mut world = World::usual();
    world.pass(&inputs("1 of 1"));
    world.wait(CHANGE);
    assert!(world.pass(&inputs("1 of 2")).is_empty(), "only words");
    let mut news = inputs("0 of 2");
    let mut report = news.snapshot.exports[&key("shop/web")].as_ref().clone();
    report.verdicts[1] = Verdict::new("Ready", false, "Pending", "0 of 2");
    news.snapshot.exports = Arc::new([(key("shop/web"), Arc::new(report))].into());
    assert_eq!(world.pass(&news), ["ServiceExport shop/web"]);
    assert!(world.pass(&inputs("1 of 2")).is_empty(), "not twice in a moment");
    world.wait(CHANGE);
    assert_eq!(world.pass(&inputs("1 of 2")), ["ServiceExport shop/web"]);
    world.wait(WORDING);
    assert_eq!(world.pass(&inputs("2 of 2")), ["ServiceExport shop/web"]);
}

#[test]
fn the_time_of_a_condition_moves_with_its_status_only() {
    let mut world = World::usual();
    world.pass(&inputs("1 of 1"));
    world.wait(WORDING);
    let wanted = world.ledger.wanted(&inputs("2 of 2"));
    let (writes, _) = world.ledger.due(&wanted, world.now, Timestamp::from_second(9).unwrap());
    let times: Vec<_> =
        writes[0].status["conditions"].as_array().unwrap().iter().map(|it| &it["lastTransitionTime"]).collect();
    assert_eq!(times, [&json!("1970-01-01T00:00:00Z"), &json!("1970-01-01T00:00:00Z")]);
}

#[test]
fn what_fails_is_tried_ever_more_rarely_and_holds_up_nobody() {
    let mut world = World::usual();
    let wanted = world.ledger.wanted(&inputs("1 of 1"));
    let mut tries = 0;
    while world.now < world.start + Duration::from_secs(120) {
        let (writes, _) = world.ledger.due(&wanted, world.now, Timestamp::UNIX_EPOCH);
        for write in writes {
            if write.object.key.kind == Kind::Link {
                tries += 1;
                world.ledger.done(&write, None, world.now);
            } else {
                world.succeed(&write);
            }
        }
        world.wait(Duration::from_millis(250));
    }
    assert!((6..=9).contains(&tries), "{tries}");
    let (_, next) = world.ledger.due(&wanted, world.now, Timestamp::UNIX_EPOCH);
    assert!(next.is_some_and(|next| next <= world.now + RETRY.1));
}

#[test]
fn an_object_that_was_made_anew_gets_its_status_and_one_that_is_gone_gets_none() {
    let mut world = World::usual();
    world.pass(&inputs("1 of 1"));
    let export = ObjectKey { kind: Kind::ServiceExport, namespace: "shop".to_owned(), name: "web".to_owned() };
    // Deleted and made anew between two looks: the same name, another object.
    let anew = object(Kind::ServiceExport, "shop", "web", "u9", 500);
    world.objects.insert(export.clone(), anew.clone());
    world.ledger.take(Kind::ServiceExport, Seen::Object(anew));
    world.wait(CHANGE);
    let wanted = world.ledger.wanted(&inputs("1 of 1"));
    let (writes, _) = world.ledger.due(&wanted, world.now, Timestamp::UNIX_EPOCH);
    assert_eq!(writes.iter().map(|write| write.object.uid.as_str()).collect::<Vec<_>>(), ["u9"]);

    world.ledger.take(Kind::ServiceExport, Seen::Gone(export.clone()));
    assert!(world.pass(&inputs("1 of 1")).is_empty());
    world.ledger.done(&writes[0], None, world.now);
    assert!(world.ledger.history.is_empty() || !world.ledger.history.contains_key(&export));
    world.ledger.take(Kind::Link, Seen::Start);
    world.ledger.take(Kind::Link, Seen::Complete);
    assert!(world.ledger.wanted(&inputs("1 of 1")).is_empty(), "a list without it says that it is gone");
}

#[test]
fn a_status_that_somebody_else_overwrites_is_put_right_without_a_fight() {
    let mut world = World::usual();
    world.pass(&inputs("1 of 1"));
    let export = ObjectKey { kind: Kind::ServiceExport, namespace: "shop".to_owned(), name: "web".to_owned() };
    let mut writes = 0;
    while world.now < world.start + Duration::from_secs(600) {
        world.version += 1;
        let mut spoilt = world.objects[&export].clone();
        spoilt["status"]["conditions"][0]["reason"] = json!("Mine");
        spoilt["metadata"]["resourceVersion"] = json!(world.version.to_string());
        world.ledger.take(Kind::ServiceExport, Seen::Object(spoilt));
        world.wait(Duration::from_millis(250));
        writes += world.pass(&inputs("1 of 1")).len();
    }
    assert!((8..20).contains(&writes), "{writes}");
    // What others add is theirs, and what the watch says late of an earlier version is no news.
    world.wait(RETRY.1);
    world.pass(&inputs("1 of 1"));
    let mut more = world.objects[&export].clone();
    more["status"]["conditions"].as_array_mut().unwrap().push(json!({
        "type": "example.com/Seen", "status": "True", "reason": "Seen", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"
    }));
    world.ledger.take(Kind::ServiceExport, Seen::Object(more));
    world.ledger.take(Kind::ServiceExport, Seen::Object(object(Kind::ServiceExport, "shop", "web", "u2", 3)));
    world.wait(RETRY.1);
    assert!(world.pass(&inputs("1 of 1")).is_empty());
}

#[test]
fn conditions_that_no_longer_apply_go() {
    let mut world = World::usual();
    world.pass(&inputs("1 of 1"));
    let link = ObjectKey { kind: Kind::Link, namespace: String::new(), name: "west".to_owned() };
    assert!(conditions_of(&world, &link).contains_key("Connected"));
    let mut refused = inputs("1 of 1");
    let verdict = Verdict::new("Accepted", false, "SelfLink", "west is this cluster");
    refused.snapshot.links =
        Arc::new([("west".to_owned(), Arc::new(LinkReport { generation: Some(1), verdict, in_force: false }))].into());
    refused.snapshot.peers = Arc::default();
    world.wait(CHANGE);
    assert_eq!(world.pass(&refused), ["Link west"]);
    assert_eq!(
        conditions_of(&world, &link).into_iter().collect::<Vec<_>>(),
        [("Accepted".to_owned(), "False:SelfLink".to_owned())]
    );
    assert!(world.objects[&link]["status"].get("services").is_none());
}

#[test]
fn policies_say_whether_they_are_in_force() {
    let policy = |name: &str| object(Kind::ClusterTrafficPolicy, "shop", name, name, 1);
    let mut broken = policy("broken");
    broken["spec"]["tiers"] = json!([]);
    broken["metadata"]["generation"] = json!(7);
    let mut world = World::new([policy("a"), policy("b"), broken, object(Kind::ExportPolicy, "shop", "who", "w", 1)]);
    let mut inputs = inputs("");
    let of = |world: &World, kind: Kind, name: &str| {
        let key = ObjectKey { kind, namespace: "shop".to_owned(), name: name.to_owned() };
        conditions_of(world, &key)["Accepted"].clone()
    };
    world.pass(&inputs);
    assert_eq!(of(&world, Kind::ClusterTrafficPolicy, "a"), "Unknown:Pending");
    assert_eq!(of(&world, Kind::ClusterTrafficPolicy, "broken"), "False:Invalid");
    assert_eq!(of(&world, Kind::ExportPolicy, "who"), "True:Accepted");
    let key_of_broken =
        ObjectKey { kind: Kind::ClusterTrafficPolicy, namespace: "shop".to_owned(), name: "broken".to_owned() };
    assert_eq!(world.objects[&key_of_broken]["status"]["conditions"][0]["observedGeneration"], json!(7));
    let traffic = Traffic {
        policy: "a".to_owned(),
        tiers: Vec::new(),
        verdict: Verdict::new("Accepted", false, "PolicyConflict", "policy a is in force; b is not"),
    };
    inputs.snapshot.traffic = Arc::new([(key("shop/web"), Arc::new(traffic))].into());
    world.wait(CHANGE);
    world.pass(&inputs);
    assert_eq!(of(&world, Kind::ClusterTrafficPolicy, "a"), "True:Accepted");
    assert_eq!(of(&world, Kind::ClusterTrafficPolicy, "b"), "False:PolicyConflict");
}

#[test]
fn a_link_that_cannot_be_read_says_so() {
    let mut link = object(Kind::Link, "", "west", "u1", 1);
    link["spec"]["trustBundle"] = json!("nothing");
    link["metadata"]["generation"] = json!(4);
    let mut ledger = Ledger::default();
    ledger.take(Kind::Link, Seen::Object(link));
    let wanted = ledger.wanted(&inputs(""));
    let (_, wanted) = wanted.first_key_value().unwrap();
    let accepted = wanted.verdicts.iter().find(|verdict| verdict.kind == "Accepted").unwrap();
    assert_eq!((accepted.reason.as_str(), wanted.generation), ("Invalid", Some(4)));
    assert!(
        accepted.message.contains("spec.trustBundle") && accepted.message.contains("stays in force"),
        "{}",
        accepted.message
    );
}

#[test]
fn a_crowd_is_written_in_batches() {
    let names: Vec<String> = (0..100).map(|number| format!("web-{number}")).collect();
    let mut world = World::new(names.iter().map(|name| object(Kind::ExportPolicy, "shop", name, name, 1)));
    let inputs = inputs("");
    let mut sizes = Vec::new();
    for _ in 0..5 {
        sizes.push(world.pass(&inputs).len());
    }
    assert_eq!(sizes, [BATCH, BATCH, BATCH, 100 - 3 * BATCH, 0]);
}
