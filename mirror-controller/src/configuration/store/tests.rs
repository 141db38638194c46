use linkspan_proto::configuration::{Capacity, ResourceKind};
use linkspan_proto::names::{ClusterName, ServiceKey};
use proptest::prelude::*;

use super::*;

fn resource(name: u8, ready: u32) -> Resource {
    Resource::Capacity(Capacity {
        cluster: ClusterName::parse("west").unwrap(),
        service: ServiceKey::parse(&format!("shop/s{name}")).unwrap(),
        ready: BTreeMap::from([(80, ready)]),
        total: BTreeMap::new(),
        ready_udp: Default::default(),
        total_udp: Default::default(),
        ready_endpoints: Vec::new(),
    })
}

fn changes(items: &[(u8, Option<u32>)]) -> Changes {
    items.iter().map(|(name, ready)| (resource(*name, 0).key(), ready.map(|ready| resource(*name, ready)))).collect()
}

/// What a gateway holds after an update.
fn follow(held: &mut BTreeMap<ResourceKey, Resource>, update: Update) -> u64 {
    if update.reset {
        held.clear();
    }
    held.extend(update.upserts.into_iter().map(|resource| (resource.key(), resource)));
    for key in update.removals {
        held.remove(&key);
    }
    update.generation
}

#[test]
fn everything_first_then_changes() {
    let store = Store::default();
    assert_eq!(*store.subscribe().borrow(), 0);
    store.apply(Changes::new());
    assert_eq!(*store.subscribe().borrow(), 1, "an empty first state is a state");
    store.apply(Changes::new());
    assert_eq!(*store.subscribe().borrow(), 1);
    store.apply(changes(&[(1, Some(1)), (2, Some(2))]));
    let all = store.since(None);
    assert!(all.reset);
    assert_eq!((all.generation, all.upserts.len()), (2, 2));
    store.apply(changes(&[(1, None)]));
    store.apply(changes(&[(2, Some(3)), (3, Some(1))]));
    store.apply(changes(&[(3, None)]));
    let update = store.since(Some(2));
    assert!(!update.reset);
    assert_eq!(update.generation, 5);
    assert_eq!(update.upserts, [resource(2, 3)]);
    assert_eq!(update.removals, [resource(1, 0).key(), resource(3, 0).key()]);
    assert_eq!(store.since(Some(5)).upserts, []);
    assert!(store.since(Some(99)).reset, "a generation from another life");
}

#[test]
fn who_is_too_far_behind_gets_everything() {
    let store = Store::default();
    store.apply(changes(&[(0, Some(0))]));
    let many: Vec<_> = (0..200_u8).map(|name| (name, Some(1))).collect();
    for _ in 0..LOG_MAX / 200 + 2 {
        store.apply(changes(&many));
    }
    assert!(store.since(Some(1)).reset);
    let newest = store.since(None).generation;
    assert!(!store.since(Some(newest - 1)).reset);
    assert_eq!(store.resources().len(), 200);
    assert_eq!(store.resources()[0].key().kind, ResourceKind::Capacity);
}

proptest! {
    /// Whenever a gateway asks, it ends with what the store holds.
    #[test]
    fn updates_add_up(steps in prop::collection::vec((prop::collection::btree_map(0..9_u8, prop::option::of(0..3_u32), 0..5), prop::bool::ANY), 1..40)) {
        let store = Store::default();
        let mut held = BTreeMap::new();
        let mut known = None;
        for (items, ask) in steps {
            store.apply(changes(&items.into_iter().collect::<Vec<_>>()));
            if ask {
                known = Some(follow(&mut held, store.since(known)));
                let expected: Vec<_> = store.resources().iter().map(|resource| resource.as_ref().clone()).collect();
                prop_assert_eq!(held.values().cloned().collect::<Vec<_>>(), expected);
            }
        }
    }
}
