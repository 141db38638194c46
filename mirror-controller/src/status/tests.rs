use std::collections::{BTreeMap, BTreeSet};

use linkspan_proto::configuration::{LinkPhase, LinkReport, Rejection, ResourceKey, ResourceKind};
use linkspan_proto::names::ClusterName;

use super::*;
use crate::catalog::{ExportReport, LinkReport as CatalogLink};
use crate::configuration::GatewayState;
use crate::exchange::{Entries, Freshness, PeerState};
use crate::mirror::{Addresses, State};
use crate::testkit::{cluster, entries, entry, key, peer, view};
use crate::verdict::Verdict;

fn accepted() -> Verdict {
    Verdict::new("Accepted", true, "Accepted", "the Link is in force")
}

struct World {
    snapshot: Snapshot,
    peer: PeerState,
    reports: Reports,
}

impl World {
    fn new() -> Self {
        let link = CatalogLink { generation: Some(3), verdict: accepted(), in_force: true };
        let report = ExportReport {
            generation: None,
            by_label: false,
            verdicts: vec![
                Verdict::new("Valid", true, "Valid", ""),
                Verdict::new("Ready", true, "Exported", "1 of 1 endpoints are ready"),
            ],
        };
        let snapshot = Snapshot {
            peers: Arc::new(BTreeMap::from([(cluster("west"), peer("west"))])),
            links: Arc::new(BTreeMap::from([("west".to_owned(), Arc::new(link))])),
            exported: Arc::new(entries([entry("shop/web", &["http:80"], 1)])),
            exports: Arc::new(BTreeMap::from([(key("shop/web"), Arc::new(report))])),
            ..Snapshot::default()
        };
        let peer = PeerState {
            view: view(
                entries([entry("shop/web", &["http:81"], 1), entry("kube-system/x", &["80"], 1)]),
                Freshness::Fresh,
            ),
            connected: true,
            confirmed_unix: Some(1),
            trouble: None,
        };
        Self { snapshot, peer, reports: Reports::new() }
    }

    fn report(&mut self, alive: bool, reason: &str, message: &str) {
        let link = LinkReport {
            cluster: cluster("west"),
            alive,
            state: LinkPhase::Connected,
            message: message.to_owned(),
            reason: reason.to_owned(),
            connections: 1,
            version: Some("0.1.0".to_owned()),
            rtt_micros: Some(1),
            probe_micros: None,
            loss: 0.0,
            since_unix: 0,
            remote: None,
            transport: None,
            transport_reason: None,
            clock_ahead_seconds: None,
            mtu: None,
            black_holes: 0,
        };
        let gateway = GatewayState { acknowledged: 1, links: Some(vec![link]), ..GatewayState::default() };
        self.reports = Reports::from([("boot".to_owned(), Arc::new(gateway))]);
    }

    fn inputs(&self) -> Inputs {
        let peers: Arc<Peers> = Arc::new(Peers::from([(cluster("west"), Arc::new(self.peer.clone()))]));
        let mut state = State::new(cluster("east"), Addresses::new("127.80.0.0/12".parse().unwrap()));
        state.update(self.snapshot.clone(), Arc::clone(&peers));
        Inputs {
            own: cluster("east"),
            snapshot: self.snapshot.clone(),
            peers,
            mirrors: state.set(),
            held: Held::default(),
            reports: self.reports.clone(),
        }
    }

    fn conditions(&self, file: &str) -> BTreeMap<&'static str, String> {
        let findings = findings::all(&self.inputs());
        let finding =
            findings.iter().find(|finding| finding.file == file).unwrap_or_else(|| panic!("{file} in {findings:?}"));
        finding
            .verdicts
            .iter()
            .map(|verdict| (verdict.kind, format!("{}:{}", verdict.status.as_str(), verdict.reason)))
            .collect()
    }
}

fn expect(found: BTreeMap<&'static str, String>, expected: &[(&str, &str)]) {
    let found: Vec<_> = found.iter().map(|(kind, reason)| (*kind, reason.as_str())).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_link_says_what_holds_and_why_not() {
    let mut world = World::new();
    let of = |world: &World| world.conditions("links/west.yaml");
    expect(
        of(&world),
        &[
            ("Accepted", "True:Accepted"),
            ("CatalogueSynced", "True:Synced"),
            ("Connected", "Unknown:NoGateway"),
            ("Stale", "False:Fresh"),
            ("TrustValid", "Unknown:NoGateway"),
        ],
    );
    world.report(true, "Connected", "");
    assert_eq!(of(&world)["Connected"], "True:Connected");
    assert_eq!(of(&world)["TrustValid"], "True:Verified");
    world.report(false, "TrustBundleMismatch", "the peer's certificate is not signed by the bundle");
    assert_eq!(of(&world)["Connected"], "False:TrustBundleMismatch");
    assert_eq!(of(&world)["TrustValid"], "False:TrustBundleMismatch");
    world.report(false, "Unreachable", "no answer");
    assert_eq!(of(&world)["TrustValid"], "Unknown:NotConnected");
    world.report(false, "evil reason\u{1b}[2J", "no answer");
    assert_eq!(of(&world)["Connected"], "False:Other");

    let (none, some) = (BTreeSet::new(), BTreeSet::from([key("shop/web")]));
    for (freshness, synchronised, withheld, synced, stale) in [
        (Freshness::Fresh, false, &none, "Unknown:Closed", "False:Fresh"),
        (Freshness::Fresh, true, &some, "False:MassRemovalDelayed", "False:Fresh"),
        (Freshness::Stale, false, &none, "False:Closed", "True:NotConfirmed"),
        (Freshness::Drained, false, &none, "False:Closed", "True:Drained"),
        (Freshness::Unknown, false, &none, "False:Closed", "False:NoCatalogue"),
    ] {
        world.peer.trouble = Some(("Closed", "the pipe closed".to_owned()));
        (world.peer.view.freshness, world.peer.view.synchronised, world.peer.view.withheld) =
            (freshness, synchronised, Arc::new(withheld.clone()));
        assert_eq!(of(&world)["CatalogueSynced"], synced);
        assert_eq!(of(&world)["Stale"], stale);
    }
}

#[test]
fn exports_and_mirrors_say_what_holds_and_why_not() {
    let mut world = World::new();
    expect(
        world.conditions("exports/shop.web.yaml"),
        &[("Conflict", "True:PortConflict"), ("Ready", "True:Exported"), ("Valid", "True:Valid")],
    );
    expect(
        world.conditions("mirrors/shop.web-west.yaml"),
        &[
            ("Accepted", "True:Accepted"),
            ("Conflict", "False:NoConflicts"),
            ("Listening", "Unknown:NoGateway"),
            ("Ready", "True:Ready"),
            ("Stale", "False:Fresh"),
        ],
    );
    assert_eq!(world.conditions("mirrors/shop.web.clusterset.yaml")["Conflict"], "True:PortConflict");
    expect(
        world.conditions("mirrors/kube-system.x-west.yaml"),
        &[("Accepted", "False:ReservedName"), ("Conflict", "True:ReservedName")],
    );
    world.report(true, "Connected", "");
    assert_eq!(world.conditions("mirrors/shop.web-west.yaml")["Listening"], "True:Listening");
    let mut gateway = world.reports["boot"].as_ref().clone();
    gateway.rejections = vec![Rejection {
        resource: ResourceKey { kind: ResourceKind::Mirror, name: "web-west.shop.svc.cluster.local".to_owned() },
        reason: "AddressInUse".to_owned(),
        message: "127.80.0.1:80 is in use".to_owned(),
        ports: vec![80],
    }];
    world.reports.insert("boot".to_owned(), Arc::new(gateway));
    assert_eq!(world.conditions("mirrors/shop.web-west.yaml")["Listening"], "False:AddressInUse");
    world.peer.view = view(entries([entry("shop/web", &["http:80"], 0)]), Freshness::Stale);
    let found = world.conditions("mirrors/shop.web-west.yaml");
    assert_eq!((found["Ready"].as_str(), found["Stale"].as_str()), ("False:NoReadyEndpoints", "True:NotConfirmed"));
    world.peer.view = view(entries([entry("shop/web", &["http:80"], 1)]), Freshness::Fresh);
    world.peer.view.withheld = Arc::new(BTreeSet::from([key("shop/web")]));
    assert_eq!(world.conditions("mirrors/shop.web-west.yaml")["Ready"], "False:RemovalDelayed");
    assert_eq!(world.conditions("mirrors/shop.web.clusterset.yaml")["Ready"], "True:Ready", "east serves it, too");
    world.peer.view = view(Entries::new(), Freshness::Fresh);
    assert_eq!(world.conditions("exports/shop.web.yaml")["Conflict"], "False:NoConflicts");
}

#[test]
fn files_change_only_when_something_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new();
    let path = dir.path().join("links/west.yaml");
    fs::create_dir_all(dir.path().join("exports")).unwrap();
    fs::write(dir.path().join("exports/shop.gone.yaml"), "old").unwrap();
    let mut writer = Writer::new(dir.path().to_owned());
    writer.pass(&findings::all(&world.inputs()), &[]).unwrap();
    assert!(!dir.path().join("exports/shop.gone.yaml").exists());
    let text = fs::read_to_string(&path).unwrap();
    for line in ["kind: Link", "name: west", "observedGeneration: 3", "reason: NoGateway", "services: 1"] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    let written = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let before = written(&path);
    writer.pass(&findings::all(&world.inputs()), &[]).unwrap();
    assert_eq!(written(&path), before);

    // A restart keeps the times of what did not change.
    let mut writer = Writer::new(dir.path().to_owned());
    writer.pass(&findings::all(&world.inputs()), &[]).unwrap();
    assert_eq!(written(&path), before);
    world.report(true, "Connected", "");
    writer.pass(&findings::all(&world.inputs()), &[]).unwrap();
    let changed = fs::read_to_string(&path).unwrap();
    assert!(changed.contains("reason: Verified") && changed.contains("0.1.0"), "{changed}");

    world.snapshot.links = Arc::default();
    world.snapshot.peers = Arc::default();
    let problem = Problem {
        file: "a.yaml".to_owned(),
        line: 3,
        column: 1,
        field: "spec".to_owned(),
        message: "bad \u{1b}[2J".to_owned(),
    };
    writer.pass(&findings::all(&world.inputs()), &[problem]).unwrap();
    assert!(!path.exists());
    let text = fs::read_to_string(dir.path().join("manifests.yaml")).unwrap();
    assert!(text.contains("file: a.yaml") && text.contains("line: 3") && !text.contains('\u{1b}'), "{text}");
    assert!(ClusterName::parse("west").is_ok());

    // What cannot be written is told, and is due again.
    fs::remove_file(dir.path().join("manifests.yaml")).unwrap();
    fs::create_dir(dir.path().join("manifests.yaml")).unwrap();
    assert!(writer.pass(&[], &[]).is_err());
    fs::remove_dir(dir.path().join("manifests.yaml")).unwrap();
    writer.pass(&[], &[]).unwrap();
}
