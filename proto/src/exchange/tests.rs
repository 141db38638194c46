use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::generated::exchange as wire;

fn entry(name: &str) -> CatalogueEntry {
    CatalogueEntry {
        service: ServiceKey::parse(name).unwrap(),
        headless: false,
        ports: vec![CataloguePort {
            port: 80,
            name: Some(PortName::parse("http").unwrap()),
            protocol: Protocol::Tcp,
            app_protocol: Some("kubernetes.io/h2c".into()),
            ready: 3,
            total: Some(5),
        }],
        endpoints: Vec::new(),
        labels: BTreeMap::from([("app.kubernetes.io/name".into(), "web".into())]),
        details: Details::default(),
    }
}

fn headless(name: &str) -> CatalogueEntry {
    let endpoint = |name: &str, ready| (EndpointName::parse(name).unwrap(), ready);
    CatalogueEntry { headless: true, endpoints: vec![endpoint("db-0", true), endpoint("db-1", false)], ..entry(name) }
}

fn detailed(name: &str) -> CatalogueEntry {
    let map = |key: &str| BTreeMap::from([(key.to_owned(), "x".to_owned())]);
    let details = Details {
        annotations: map("a"),
        exported_labels: map("b"),
        exported_annotations: map("c"),
        affinity_seconds: Some(10),
        local_traffic: true,
        traffic_distribution: Some("PreferClose".to_owned()),
    };
    CatalogueEntry { details, ..entry(name) }
}

fn through_the_wire(message: Message) -> Result<Message, ExchangeError> {
    let bytes = wire::CatalogueMessage::from(message).encode_to_vec();
    wire::CatalogueMessage::decode(&bytes[..]).unwrap().try_into()
}

fn entries(entries: Vec<wire::Entry>) -> Result<Message, ExchangeError> {
    wire::CatalogueMessage { body: Some(wire::catalogue_message::Body::Entries(wire::Entries { entries })) }.try_into()
}

#[test]
fn messages_come_back() {
    for message in [
        Message::SnapshotBegin { epoch: 7, version: 9, count: 2 },
        Message::Entries(vec![entry("shop/web"), headless("shop/db"), detailed("shop/api")]),
        Message::SnapshotEnd { version: 9, hash: [5; 32] },
        Message::Delta {
            from: 9,
            to: 10,
            upserts: vec![entry("shop/web")],
            removals: vec![ServiceKey::parse("shop/db").unwrap()],
            hash: [6; 32],
        },
    ] {
        assert_eq!(through_the_wire(message.clone()).unwrap(), message);
        let encoded = wire::CatalogueMessage::from(message.clone()).encode_to_vec();
        assert_eq!(message.encoded_len(), encoded.len());
    }
    for message in [
        SubscriberMessage::Hello {
            cluster: ClusterName::parse("east").unwrap(),
            version: 1,
            known: Some((7, 9, [5; 32])),
        },
        SubscriberMessage::Hello { cluster: ClusterName::parse("east").unwrap(), version: 1, known: None },
        SubscriberMessage::Ack { version: 10 },
        SubscriberMessage::Resync { reason: "hash".into() },
    ] {
        let encoded = wire::SubscriberMessage::from(message.clone()).encode_to_vec();
        let decoded = wire::SubscriberMessage::decode(&encoded[..]).unwrap();
        assert_eq!(SubscriberMessage::try_from(decoded).unwrap(), message);
    }
}

/// S-37.
#[test]
fn counts_over_the_caps_are_refused() {
    let begin = |count| through_the_wire(Message::SnapshotBegin { epoch: 1, version: 1, count });
    assert!(begin(10_000).is_ok());
    assert!(matches!(begin(10_001), Err(ExchangeError::TooMany { max: MAX_SERVICES, .. })));
    assert!(matches!(begin(u32::MAX), Err(ExchangeError::TooMany { .. })));

    let good = wire::Entry::from(entry("shop/web"));
    assert!(matches!(entries(vec![good.clone(); MAX_SERVICES + 1]), Err(ExchangeError::TooMany { .. })));

    let port = |port: u32| wire::Port { port, protocol: 1, ..wire::Port::default() };
    let ports = |count: u32| entries(vec![wire::Entry { ports: (1..=count).map(port).collect(), ..good.clone() }]);
    assert!(ports(64).is_ok());
    assert!(matches!(ports(65), Err(ExchangeError::TooMany { max: MAX_PORTS, .. })));

    let endpoint = |index: usize| wire::Endpoint { name: format!("db-{index}"), ready: true };
    let endpoints = |count: usize| {
        let endpoints = (0..count).map(endpoint).collect();
        entries(vec![wire::Entry { headless: true, endpoints, ..good.clone() }])
    };
    assert!(endpoints(1_000).is_ok());
    assert!(matches!(endpoints(1_001), Err(ExchangeError::TooMany { max: MAX_ENDPOINTS, .. })));

    let labels = |count: usize| {
        let labels = (0..count).map(|index| (format!("l{index}"), String::new())).collect();
        entries(vec![wire::Entry { labels, ..good.clone() }])
    };
    assert!(labels(MAX_LABELS).is_ok());
    assert!(matches!(labels(MAX_LABELS + 1), Err(ExchangeError::TooMany { .. })));

    let removal = wire::ServiceName { namespace: "shop".into(), name: "web".into() };
    let delta = wire::Delta {
        from: 1,
        to: 2,
        removals: vec![removal; MAX_SERVICES + 1],
        hash: vec![0; 32].into(),
        ..wire::Delta::default()
    };
    let delta = wire::CatalogueMessage { body: Some(wire::catalogue_message::Body::Delta(delta)) };
    assert!(matches!(Message::try_from(delta), Err(ExchangeError::TooMany { .. })));
}

#[test]
fn what_is_no_name_is_refused() {
    type Change = fn(&mut wire::Entry);
    let changes: [Change; 21] = [
        |entry| entry.service = None,
        |entry| entry.service.as_mut().unwrap().name = "a".repeat(64 * 1024),
        |entry| entry.service.as_mut().unwrap().namespace = "10.0.0.1".into(),
        |entry| entry.service.as_mut().unwrap().name = "../etc".into(),
        |entry| entry.ports[0].port = 0,
        |entry| entry.ports[0].port = 65536,
        |entry| entry.ports[0].name = "HTTP".into(),
        |entry| entry.ports[0].protocol = 0,
        |entry| entry.ports[0].protocol = 4,
        |entry| entry.ports[0].app_protocol = "a b".into(),
        |entry| entry.ports[0].app_protocol = "a".repeat(MAX_NAME_LEN + 1),
        |entry| entry.ports.push(entry.ports[0].clone()),
        |entry| entry.endpoints.push(wire::Endpoint { name: "db-0".into(), ready: true }),
        |entry| drop(entry.labels.insert(String::new(), "x".into())),
        |entry| drop(entry.labels.insert("a".repeat(254), "x".into())),
        |entry| drop(entry.labels.insert("a".into(), "x\n".into())),
        |entry| drop(entry.exported_labels.insert("a/b/c".into(), "x".into())),
        |entry| drop(entry.annotations.insert("a b".into(), "x".into())),
        |entry| drop(entry.exported_annotations.insert("a".into(), "\0".into())),
        |entry| entry.affinity_seconds = MAX_AFFINITY_SECONDS + 1,
        |entry| entry.traffic_distribution = "Prefer Close".into(),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut bad = wire::Entry::from(entry("shop/web"));
        change(&mut bad);
        assert!(entries(vec![bad]).is_err(), "change {index}");
    }
    let good = || wire::Entry::from(entry("shop/web"));
    assert_eq!(entries(vec![good(), good()]), Err(ExchangeError::Twice("a service")));
}

#[test]
fn deltas_go_forward_and_name_a_service_once() {
    let delta = |from, to, removals: Vec<ServiceKey>| {
        through_the_wire(Message::Delta { from, to, upserts: vec![entry("shop/web")], removals, hash: [0; 32] })
    };
    assert!(delta(1, 2, vec![]).is_ok());
    assert!(delta(2, 2, vec![]).is_err());
    assert!(delta(3, 2, vec![]).is_err());
    assert!(delta(1, 2, vec![ServiceKey::parse("shop/web").unwrap()]).is_err());
    // A heartbeat stays where it is and changes nothing.
    let heartbeat = Message::Delta { from: 2, to: 2, upserts: vec![], removals: vec![], hash: [0; 32] };
    assert_eq!(through_the_wire(heartbeat.clone()), Ok(heartbeat));
}

#[test]
fn hashes_have_32_bytes_and_messages_a_body() {
    for length in [0, 31, 33] {
        let end = wire::SnapshotEnd { version: 1, hash: vec![0; length].into() };
        let message = wire::CatalogueMessage { body: Some(wire::catalogue_message::Body::End(end)) };
        assert_eq!(Message::try_from(message), Err(ExchangeError::Field("the hash")));
    }
    assert!(Message::try_from(wire::CatalogueMessage::default()).is_err());
    assert!(SubscriberMessage::try_from(wire::SubscriberMessage::default()).is_err());
}

#[test]
fn labels_and_annotations_are_capped_together() {
    let with = |count: usize, length: usize| {
        let annotations = (0..count).map(|index| (format!("a{index:03}"), "x".repeat(length))).collect();
        entries(vec![wire::Entry { annotations, ..wire::Entry::from(entry("shop/web")) }])
    };
    assert!(with(MAX_ANNOTATIONS, 100).is_ok());
    assert!(matches!(with(MAX_ANNOTATIONS + 1, 1), Err(ExchangeError::TooMany { .. })));
    assert!(matches!(with(4, 1024), Err(ExchangeError::TooMany { .. })), "4 KiB and the labels");
    assert!(matches!(with(1, 1025), Err(ExchangeError::Field("an annotation"))));
}

#[test]
fn snapshots_are_cut_into_messages_within_the_cap() {
    assert_eq!(batches([]), []);
    let endpoints = (0..1_000)
        .map(|index| (EndpointName::parse(&format!("a-rather-long-endpoint-name-{index:04}")).unwrap(), true));
    let large = CatalogueEntry { headless: true, endpoints: endpoints.collect(), ..entry("shop/web") };
    let all: Vec<_> = (0..200)
        .map(|index| CatalogueEntry {
            service: ServiceKey::parse(&format!("shop/web-{index}")).unwrap(),
            ..large.clone()
        })
        .collect();
    let messages = batches(all.clone());
    assert!(messages.len() > 1);
    let mut joined = Vec::new();
    for message in messages {
        assert!(message.encoded_len() <= MAX_MESSAGE_LEN);
        match through_the_wire(message).unwrap() {
            Message::Entries(entries) => joined.extend(entries),
            other => panic!("{other:?}"),
        }
    }
    assert!(joined == all);
}

#[test]
fn the_hash_does_not_change_between_builds() {
    let hex = |hash: [u8; 32]| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(catalogue_hash(&[])), "1e283f2fcf4f657cb21c2b03a85cf11de13b9342e95de6fb7b0d73a9ed89eb52");
    assert_eq!(
        hex(catalogue_hash(&[entry("shop/web"), headless("shop/db")])),
        "6371a3ed8ede605528d3a2bf81d3ec9cf95c3247ac7bf377817bdd25660f44fe"
    );
}

#[test]
fn the_hash_sees_every_field() {
    type Change = fn(&mut CatalogueEntry);
    let changes: [Change; 18] = [
        |entry| entry.service = ServiceKey::parse("shop/other").unwrap(),
        |entry| entry.service = ServiceKey::parse("other/db").unwrap(),
        |entry| entry.headless = false,
        |entry| entry.ports[0].port = 81,
        |entry| entry.ports[0].name = None,
        |entry| entry.ports[0].protocol = Protocol::Udp,
        |entry| entry.ports[0].app_protocol = None,
        |entry| entry.ports[0].ready = 4,
        |entry| entry.ports.clear(),
        |entry| entry.endpoints[0].1 = false,
        |entry| drop(entry.endpoints.pop()),
        |entry| entry.labels.clear(),
        |entry| drop(entry.details.annotations.insert("a".into(), "b".into())),
        |entry| drop(entry.details.exported_labels.insert("a".into(), "b".into())),
        |entry| drop(entry.details.exported_annotations.insert("a".into(), "b".into())),
        |entry| entry.details.affinity_seconds = Some(10),
        |entry| entry.details.local_traffic = true,
        |entry| entry.details.traffic_distribution = Some("PreferClose".into()),
    ];
    let base = headless("shop/db");
    let mut seen = std::collections::BTreeSet::from([catalogue_hash([&base])]);
    for (index, change) in changes.into_iter().enumerate() {
        let mut changed = base.clone();
        change(&mut changed);
        assert!(seen.insert(catalogue_hash([&changed])), "change {index}");
    }
}

#[test]
fn the_number_of_endpoints_is_optional_and_no_part_of_the_hash() {
    let with = |total| {
        let mut entry = entry("shop/web");
        entry.ports[0].total = total;
        entry
    };
    for total in [None, Some(3), Some(u32::MAX)] {
        let message = Message::Entries(vec![with(total)]);
        assert_eq!(through_the_wire(message.clone()), Ok(message));
        assert_eq!(
            catalogue_hash([&with(total)]),
            catalogue_hash([&with(None)]),
            "as a peer without the field finds it"
        );
    }
    let fewer_than_ready = Message::Entries(vec![with(Some(2))]);
    assert_eq!(through_the_wire(fewer_than_ready), Err(ExchangeError::Field("a port's number of endpoints")));
}

fn any_entry() -> impl Strategy<Value = CatalogueEntry> {
    let label = "[a-z]([a-z0-9-]{0,8}[a-z0-9])?";
    let port = (
        1..=u16::MAX,
        0..3_usize,
        proptest::option::of("[a-z./-]{1,12}"),
        any::<u32>(),
        proptest::option::of(any::<u32>()),
    );
    let ports = proptest::collection::vec(port, 0..5);
    let endpoints = proptest::collection::btree_map(label, any::<bool>(), 0..5);
    let labels = proptest::collection::btree_map("[a-z]{1,8}(/[a-z]{1,8})?", "([a-z0-9]{1,9}[._-]?[a-z]{1,9})?", 0..5);
    (label, label, any::<bool>(), ports, endpoints, labels).prop_map(
        |(namespace, name, headless, ports, endpoints, labels)| {
            let mut seen = std::collections::BTreeSet::new();
            let mut ports: Vec<_> = ports
                .into_iter()
                .map(|(port, protocol, app_protocol, ready, total)| CataloguePort {
                    port,
                    name: None,
                    protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][protocol],
                    app_protocol,
                    ready,
                    total: total.map(|total| total.max(ready)),
                })
                .filter(|port| seen.insert((port.port, port.protocol)))
                .collect();
            ports.sort_by_key(|port| (port.port, port.protocol));
            let endpoints: Vec<_> =
                endpoints.into_iter().map(|(name, ready)| (EndpointName::parse(&name).unwrap(), ready)).collect();
            CatalogueEntry {
                service: ServiceKey::parse(&format!("{namespace}/{name}")).unwrap(),
                headless,
                ports,
                endpoints: if headless { endpoints } else { Vec::new() },
                labels,
                details: Details::default(),
            }
        },
    )
}

proptest! {
    #[test]
    fn any_entries_come_back(entries in proptest::collection::vec(any_entry(), 0..10)) {
        let mut seen = std::collections::BTreeSet::new();
        let entries: Vec<_> = entries.into_iter().filter(|entry| seen.insert(entry.service.clone())).collect();
        prop_assert_eq!(through_the_wire(Message::Entries(entries.clone())).unwrap(), Message::Entries(entries));
    }

    #[test]
    fn the_hash_does_not_see_order(mut entries in proptest::collection::vec(any_entry(), 0..8), turns in 0..8_usize) {
        let before = catalogue_hash(&entries);
        for entry in &mut entries {
            entry.ports.reverse();
            entry.endpoints.reverse();
        }
        if !entries.is_empty() {
            let turns = turns % entries.len();
            entries.rotate_left(turns);
        }
        prop_assert_eq!(catalogue_hash(&entries), before);
        entries.reverse();
        prop_assert_eq!(catalogue_hash(&entries), before);
    }

    #[test]
    fn a_damaged_message_is_read_or_refused(entries in proptest::collection::vec(any_entry(), 1..4), place in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut bytes = wire::CatalogueMessage::from(Message::Entries(entries)).encode_to_vec();
        let place = place.index(bytes.len());
        bytes[place] = value;
        if let Ok(message) = wire::CatalogueMessage::decode(&bytes[..]) {
            drop(Message::try_from(message));
        }
        drop(wire::CatalogueMessage::decode(&bytes[..place]).map(Message::try_from));
    }
}
