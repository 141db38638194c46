use super::*;

fn resources() -> Vec<Resource> {
    let east = ClusterName::parse("east").unwrap();
    vec![
        Resource::Peer(Peer {
            cluster: east.clone(),
            trust_domain: TrustDomain::parse("east.linkspan.internal").unwrap(),
            trust_bundle: "-----BEGIN CERTIFICATE-----\n".into(),
            addresses: vec!["east.example.com:4143".into()],
            default_policy: DefaultPolicy::Deny,
            transport: Transport::Tcp,
            congestion: Default::default(),
        }),
        Resource::Mirror(Mirror {
            name: "web-east.shop.svc.cluster.local".into(),
            service: ServiceKey::parse("shop/web").unwrap(),
            endpoint: None,
            ports: vec![MirrorPort {
                listen: "127.80.0.1:80".parse().unwrap(),
                port: 80,
                transport: Default::default(),
                name: None,
                app_protocol: Some("http".into()),
            }],
            tiers: vec![Tier { clusters: BTreeMap::from([(east.clone(), 100)]), min_healthy_percent: 1 }],
        }),
        Resource::Export(Export {
            service: ServiceKey::parse("shop/web").unwrap(),
            ports: Vec::new(),
            rules: Some(vec![ExportRule {
                identity_prefixes: vec![SpiffeId::parse("spiffe://east.linkspan.internal/ns/shop").unwrap()],
                minimum_assurance: Assurance::Network,
                ..ExportRule::default()
            }]),
            proxy_protocol: true,
        }),
        Resource::Capacity(Capacity {
            cluster: east,
            service: ServiceKey::parse("shop/web").unwrap(),
            ready: BTreeMap::from([(80, 3)]),
            total: BTreeMap::new(),
            ready_udp: Default::default(),
            total_udp: Default::default(),
            ready_endpoints: Vec::new(),
        }),
        Resource::Workload(Workload {
            namespace: Namespace::parse("shop").unwrap(),
            service_account: ServiceAccountName::parse("web").unwrap(),
            ranges: vec!["10.0.0.0/24".parse().unwrap()],
        }),
    ]
}

#[test]
fn keys_name_their_resources() {
    let keys: Vec<_> = resources().iter().map(|resource| resource.key().name).collect();
    assert_eq!(keys, ["east", "web-east.shop.svc.cluster.local", "shop/web", "east/shop/web", "shop/web"]);
}

#[test]
fn a_small_change_is_one_message() {
    let removals = vec![resources()[0].key()];
    let messages = encode_updates(7, true, &resources(), &removals).unwrap();
    assert_eq!(messages.len(), 1);
    let update = decode_update(&messages[0]);
    assert_eq!((update.generation, update.reset, update.last), (7, true, true));
    assert_eq!((update.upserts, update.removals, update.unreadable), (resources(), removals, vec![]));
}

#[test]
fn an_empty_configuration_is_still_said() {
    let messages = encode_updates(1, true, &[], &[]).unwrap();
    assert_eq!(messages.len(), 1);
    assert!(messages[0].reset && messages[0].last);
}

#[test]
fn a_large_change_is_cut_with_one_beginning_and_one_end() {
    let many: Vec<_> = (0..20_000_u32).map(|_| resources()[1].clone()).collect();
    let messages = encode_updates(7, true, &many, &[]).unwrap();
    assert!(messages.len() > 2);
    assert!(
        messages
            .iter()
            .all(|message| message.generation == 7 && prost::Message::encoded_len(message) < 2 * 1024 * 1024)
    );
    assert_eq!(messages.iter().filter(|message| message.reset).count(), 1);
    assert_eq!(messages.iter().filter(|message| message.last).count(), 1);
    assert!(messages[0].reset && messages.last().unwrap().last);
    let read: Vec<_> = messages.iter().flat_map(|message| decode_update(message).upserts).collect();
    assert!(read == many);
}

#[test]
fn what_cannot_be_read_costs_only_itself() {
    let mut message = encode_updates(7, false, &resources(), &[]).unwrap().remove(0);
    message.upserts.insert(1, bytes::Bytes::from_static(b"{\"kind\":\"later\",\"name\":\"x\"}"));
    message.removals.push(bytes::Bytes::from_static(b"nonsense"));
    let update = decode_update(&message);
    assert_eq!(update.upserts, resources());
    assert_eq!(update.unreadable.len(), 2);
}

#[test]
fn reports_come_back() {
    let link = LinkReport {
        cluster: ClusterName::parse("west").unwrap(),
        alive: true,
        state: LinkPhase::Connected,
        message: String::new(),
        reason: "Connected".into(),
        connections: 2,
        version: Some("0.1.0".into()),
        rtt_micros: Some(300),
        probe_micros: None,
        loss: 0.25,
        since_unix: 1,
        remote: Some("10.0.0.1:4143".parse().unwrap()),
        transport: Some(Carrier::Tcp),
        transport_reason: Some(TransportReason::UdpBlocked),
        clock_ahead_seconds: Some(-600),
        mtu: Some(1452),
        black_holes: 1,
    };
    let rejection = Rejection {
        resource: resources()[1].key(),
        reason: "AddressInUse".into(),
        message: "taken".into(),
        ports: vec![80],
    };
    for report in [
        Report::Hello { boot_id: "a".into(), version: "0.1.0".into() },
        Report::Acknowledged { generation: 9 },
        Report::Rejected { reasons: vec![rejection] },
        Report::Links { links: vec![link] },
    ] {
        assert_eq!(decode_report(&encode_report(&report).unwrap()).unwrap(), report);
    }
    let unknown =
        crate::generated::configuration::GatewayReport { body: bytes::Bytes::from_static(b"{\"report\":\"later\"}") };
    assert!(decode_report(&unknown).is_err());
}
