use linkspan_proto::configuration::{Congestion, DefaultPolicy, Transport};
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::names::ClusterName;
use linkspan_proto::resources::HostPort;

use super::super::manifests::one_link;
use super::{Manifest, each_once, resolve, yaml};

#[test]
fn what_is_written_reads_back() {
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (addresses, policy, transport, congestion) in [
        (vec!["east.example.com:4143", "[2001:db8::1]:4143"], DefaultPolicy::Allow, Transport::Auto, Congestion::Wan),
        (vec![], DefaultPolicy::Deny, Transport::Tcp, Congestion::Auto),
        (vec![], DefaultPolicy::Allow, Transport::Quic, Congestion::Lan),
    ] {
        let addresses: Vec<HostPort> = addresses.into_iter().map(|text| HostPort::parse(text).unwrap()).collect();
        let text = yaml(&Manifest {
            cluster: &ClusterName::parse("east").unwrap(),
            trust_domain: &TrustDomain::parse("east.example").unwrap(),
            trust_bundle: pem,
            addresses: &addresses,
            default_policy: policy,
            transport,
            congestion,
        });
        assert_eq!(text.contains("waits to be dialled"), addresses.is_empty());
        let (cluster, link) = one_link(&text, "test").unwrap();
        assert_eq!(cluster, "east");
        assert_eq!(link.spec.trust_domain.as_str(), "east.example");
        assert_eq!(link.spec.trust_bundle, pem);
        assert_eq!(link.spec.addresses, addresses);
        assert_eq!(link.spec.default_policy, policy);
        assert_eq!((link.spec.transport, link.spec.congestion), (transport, congestion));
    }
}

#[test]
fn an_address_is_written_once() {
    let parsed = |all: &[&str]| all.iter().map(|text| HostPort::parse(text).unwrap()).collect::<Vec<_>>();
    assert_eq!(each_once(parsed(&["foo:1", "bar:1", "FOO.:1", "foo:2"])), parsed(&["foo:1", "bar:1", "foo:2"]));
}

#[test]
fn port_zero_and_wildcards_become_what_is_bound() {
    let resolved = |address: &str, bound: &str| {
        resolve(&HostPort::parse(address).unwrap(), || Ok(bound.parse()?))
            .map(|address| address.to_string())
            .map_err(|error| format!("{error:#}"))
    };
    assert_eq!(resolved("east.example:4143", "0.0.0.0:1").unwrap(), "east.example:4143");
    assert_eq!(resolved("east.example:0", "0.0.0.0:40000").unwrap(), "east.example:40000");
    assert_eq!(resolved("0.0.0.0:0", "10.0.0.1:40000").unwrap(), "10.0.0.1:40000");
    assert_eq!(resolved("[::]:4143", "[2001:db8::1]:40000").unwrap(), "[2001:db8::1]:4143");
    assert!(resolved("0.0.0.0:0", "0.0.0.0:40000").unwrap_err().contains("--address HOST:4143"));
    assert!(resolved("east.example:0", "gone").unwrap_err().contains("stands for what the gateway has bound"));
}
