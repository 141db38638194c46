//! Any bytes as a DNS request. The first byte says how it came.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use linkspan_mirror_controller::dns::message::{Reply, Transport, respond};
use linkspan_mirror_controller::dns::zone::{Port, Service, Zone, ZoneName};
use linkspan_proto::exchange::Protocol;
use linkspan_proto::names::{Namespace, PortName, ServiceName};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// The largest UDP reply.
const UDP_MAX: usize = 1232;

static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let service = |zone, name: &str, addresses: &[&str]| Service {
        name: ServiceName::parse(name).unwrap(),
        namespace: Namespace::parse("shop").unwrap(),
        zone,
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ports: vec![Port { name: Some(PortName::parse("http").unwrap()), protocol: Protocol::Tcp, port: 80 }],
        headless: None,
    };
    let many: Vec<String> = (0..100).map(|number| format!("fd00::{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    Zone::build(
        vec![
            service(ZoneName::ClusterLocal, "web-west", &["127.80.0.1"]),
            service(ZoneName::Clusterset, "web", &["127.80.0.2", "fd00::2"]),
            service(ZoneName::Clusterset, "many", &many),
        ],
        7,
    )
});

fuzz_target!(|bytes: &[u8]| {
    let [first, request @ ..] = bytes else { return };
    let transport = if first & 1 == 0 { Transport::Udp } else { Transport::Tcp };
    match respond(&ZONE, request, transport, &mut StdRng::seed_from_u64(7)) {
        Reply::Drop(_) => {}
        Reply::Send { bytes: reply, .. } => {
            // Its own id, a response (RFC 1035 section 4.1.1), and no larger than the way back carries.
            assert_eq!(reply[..2], request[..2]);
            assert_ne!(reply[2] & 0x80, 0);
            assert!(reply.len() <= if transport == Transport::Udp { UDP_MAX } else { usize::from(u16::MAX) });
        }
    }
});
