use super::*;
use crate::catalog::Snapshot;
use crate::exchange::{Entries, Freshness, Peers};
use crate::mirror::{Addresses, Front, State, object};
use crate::testkit::{cluster, entries, entry, headless, key, peer, peer_state};

fn set(all: Entries) -> MirrorSet {
    let mut state = State::new(cluster("east"), Addresses::new("127.80.0.0/12".parse().unwrap()));
    let snapshot =
        Snapshot { peers: Arc::new(BTreeMap::from([(cluster("west"), peer("west"))])), ..Snapshot::default() };
    state.update(snapshot, Arc::new(Peers::from([(cluster("west"), peer_state(all, Freshness::Fresh))])));
    state.set()
}

fn render(wanted: &Wanted) -> String {
    object::yaml(&object::objects(wanted)).unwrap()
}

fn written(set: &MirrorSet) -> BTreeMap<Place, Present> {
    set.wanted.values().map(|wanted| (Place::of(wanted), Present::Written(Arc::clone(wanted)))).collect()
}

fn shown(planned: &Plan) -> Vec<String> {
    let action = |action: &Action| match action {
        Action::Create(_) => "create",
        Action::Patch(_) => "patch",
        Action::Delete => "delete",
    };
    planned
        .items
        .iter()
        .map(|item| format!("{} {} {:?}", action(&item.action), item.place.object, item.reason))
        .collect()
}

#[test]
fn what_is_missing_is_made_and_what_is_there_is_left() {
    let web = set(entries([entry("shop/web", &["80"], 1)]));
    let planned = plan(&web, &BTreeMap::new(), render);
    assert_eq!(shown(&planned), ["create shop/web Exported", "create shop/web-west Exported"]);
    assert!(plan(&web, &written(&web), render).items.is_empty());
}

#[test]
fn each_change_has_its_reason() {
    let before = set(entries([entry("shop/web", &["80"], 1), headless("shop/db", &["a"])]));
    let mut labelled = entry("shop/web", &["80"], 1).as_ref().clone();
    labelled.labels.insert("app.kubernetes.io/name".to_owned(), "web".to_owned());
    labelled.details.exported_annotations.insert("owner".to_owned(), "shop".to_owned());
    for (after, expected) in [
        (entries([entry("shop/web", &["81"], 1), headless("shop/db", &["a"])]), "patch shop/web-west Ports"),
        (entries([Arc::new(labelled), headless("shop/db", &["a"])]), "patch shop/web-west Labels"),
        (entries([entry("shop/web", &["80"], 1), headless("shop/db", &["!a"])]), "patch shop/db-west Endpoints"),
        (entries([headless("shop/db", &["a"])]), "delete shop/web-west Gone(Unexported)"),
    ] {
        let planned = plan(&set(after), &written(&before), render);
        assert!(shown(&planned).contains(&expected.to_owned()), "{expected} in {:?}", shown(&planned));
        assert_eq!(planned.items.len(), 2, "the mirror and the import: {:?}", shown(&planned));
    }
}

#[test]
fn an_address_that_moved_is_a_reason() {
    let before = set(entries([entry("shop/web", &["80"], 1)]));
    let mut after = before.clone();
    for wanted in Arc::make_mut(&mut after.wanted).values_mut() {
        let Shape::Single { front, .. } = &mut Arc::make_mut(wanted).shape else { panic!() };
        *front = Front::Address("127.80.9.9".parse().unwrap());
    }
    let planned = plan(&after, &written(&before), render);
    assert_eq!(shown(&planned), ["patch shop/web Address", "patch shop/web-west Address"]);
}

#[test]
fn what_an_earlier_run_left_is_adopted_or_collected() {
    let web = set(entries([entry("shop/web", &["80"], 1)]));
    let found = |text: String, wanted: &Arc<Wanted>| Present::Found { id: wanted.id.clone(), text };
    let same: BTreeMap<_, _> =
        web.wanted.values().map(|wanted| (Place::of(wanted), found(render(wanted), wanted))).collect();
    let planned = plan(&web, &same, render);
    assert!(planned.items.is_empty());
    assert_eq!(planned.adopted.len(), 2);
    let other: BTreeMap<_, _> =
        web.wanted.values().map(|wanted| (Place::of(wanted), found("old".to_owned(), wanted))).collect();
    assert_eq!(shown(&plan(&web, &other, render)), ["patch shop/web Adopted", "patch shop/web-west Adopted"]);
    let gone = |cluster_name: &str, name: &str| {
        let id = MirrorId::Cluster { cluster: cluster(cluster_name), service: key("shop/old") };
        (Place { object: key(name), import: false }, Present::Found { id, text: String::new() })
    };
    let old = BTreeMap::from([gone("west", "shop/old-west"), gone("north", "shop/old-north")]);
    assert_eq!(
        shown(&plan(&MirrorSet { wanted: Arc::default(), ..web.clone() }, &old, render)),
        ["delete shop/old-north Gone(Unlinked)", "delete shop/old-west Gone(Unexported)"]
    );
}

#[test]
fn nothing_goes_while_a_catalogue_is_missing() {
    let web = set(entries([entry("shop/web", &["80"], 1)]));
    let nothing = MirrorSet { known: Arc::new(BTreeMap::from([(cluster("west"), false)])), ..MirrorSet::default() };
    let planned = plan(&nothing, &written(&web), render);
    assert!(planned.items.is_empty());
    assert_eq!(planned.left.iter().map(|left| left.why).collect::<Vec<_>>(), [Stays::Uncertain, Stays::Uncertain]);
}

/// A new leader that finds a Link refused knows no version before: what an earlier leader made stays.
#[test]
fn a_link_that_is_not_in_force_keeps_the_mirrors_of_its_peer() {
    let web = set(entries([entry("shop/web", &["80"], 1)]));
    let refused = MirrorSet { unsettled: Arc::new([cluster("west")].into()), ..MirrorSet::default() };
    let found = written(&web).into_iter().map(|(place, present)| match present {
        Present::Written(wanted) => (place, Present::Found { id: wanted.id.clone(), text: String::new() }),
        other => (place, other),
    });
    let planned = plan(&refused, &found.collect(), render);
    assert_eq!(shown(&planned), [""; 0]);
    assert_eq!(planned.left.iter().map(|left| left.why).collect::<Vec<_>>(), [Stays::Uncertain, Stays::Uncertain]);
    assert_eq!(shown(&plan(&MirrorSet::default(), &written(&web), render)).len(), 2, "without the Link they go");
}

#[test]
fn what_is_not_ours_is_never_touched() {
    let web = set(entries([entry("shop/web", &["80"], 1)]));
    let foreign = BTreeMap::from([
        (Place { object: key("shop/web-west"), import: false }, Present::Foreign),
        (Place { object: key("shop/other"), import: false }, Present::Foreign),
    ]);
    let planned = plan(&web, &foreign, render);
    assert_eq!(shown(&planned), ["create shop/web Exported"]);
    assert_eq!(planned.left.len(), 1, "only a place that we want is worth a word");
    assert_eq!(planned.left[0].why, Stays::Foreign);
}
