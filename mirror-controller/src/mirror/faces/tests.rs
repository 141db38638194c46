use super::*;
use crate::catalog::Traffic;
use crate::mirror::Addresses;
use crate::mirror::Fronts;
use crate::mirror::desired::{Ground, Member, Taken, cluster, clusterset};
use crate::testkit::{cluster as name, entry};

const NAME: &str = "web-west.shop.svc.cluster.local";

fn ground() -> Ground {
    Ground::new(name("east"), [name("west"), name("north")].into())
}

fn fronts() -> Fronts {
    Addresses::new("127.80.0.0/12".parse().expect("a range")).into()
}

/// A mirror of west with two ports and one that nobody listens for.
fn mirror() -> Wanted {
    let entry = entry("shop/web", &["http:80", "443/UDP", "calls:2905/SCTP"], 1);
    let taken = Taken { locally: &|_| false, by_peer: &|_| false };
    cluster(&ground(), Member { cluster: &name("west"), entry: &entry }, taken, &mut fronts()).expect("wanted")
}

/// The import of what west and north export.
fn import() -> Wanted {
    let (west, north) = (entry("shop/web", &["80"], 1), entry("shop/web", &["80", "443"], 1));
    let (west_name, north_name) = (name("west"), name("north"));
    let members = [Member { cluster: &west_name, entry: &west }, Member { cluster: &north_name, entry: &north }];
    clusterset(&ground(), &members, None::<&Traffic>, &mut fronts()).expect("wanted").0
}

/// Whether the name keeps its address while nothing listens at `ports` of it.
fn answered(wanted: &Wanted, ports: &[u16], is_share: bool) -> bool {
    let silence = Silence { ports: ports.iter().copied().collect(), is_share };
    let service = dns_with(wanted, &[(wanted.name.clone(), silence)].into(), &BTreeMap::new());
    assert_eq!(service.name, wanted.object.name, "the name stays");
    !service.addresses.is_empty()
}

#[test]
fn the_mirror_of_one_peer_is_withheld_for_any_port() {
    let mirror = mirror();
    assert_eq!(mirror.name, NAME);
    assert!(!answered(&mirror, &[80], false), "another program may answer at that port");
    assert!(!answered(&mirror, &[80, 443], false));
    assert!(!answered(&mirror, &[], false), "all of them");
}

#[test]
fn ports_that_the_gateway_left_out_by_itself_withhold_nothing_until_it_is_all() {
    let mirror = mirror();
    assert!(answered(&mirror, &[80], true));
    assert!(!answered(&mirror, &[80, 443], true), "no port is left; SCTP is no port of a gateway");
}

#[test]
fn an_import_is_withheld_when_no_port_is_left_and_not_before() {
    let import = import();
    assert!(answered(&import, &[443], false), "north took a port more; west's clients must not lose the name");
    assert!(!answered(&import, &[80, 443], false));
    assert!(!answered(&import, &[], false));
}

#[test]
fn a_complaint_about_another_name_is_none() {
    let silence = Silence { ports: BTreeSet::new(), is_share: false };
    let silent = [("db-west.shop.svc.cluster.local".to_owned(), silence)].into();
    let service = dns_with(&mirror(), &silent, &BTreeMap::new());
    assert!(!service.addresses.is_empty());
}

#[test]
fn what_two_gateways_both_do_not_listen_at_is_silent() {
    let silence = |ports: &[u16]| Silence { ports: ports.iter().copied().collect(), is_share: false };
    for (one, other, both) in [
        (&[80][..], &[80, 443][..], Some(&[80][..])),
        (&[80], &[443], None),
        (&[], &[443], Some(&[443])),
        (&[443], &[], Some(&[443])),
        (&[], &[], Some(&[])),
    ] {
        let mut silent = silence(one);
        let any = silent.both(&silence(other));
        assert_eq!(any.then_some(silent), both.map(silence), "{one:?} and {other:?}");
    }
}

#[test]
fn dns_has_its_two_transports_on_one_number() {
    let entry = entry("shop/dns", &["dns:53/UDP", "dns-tcp:53"], 3);
    let taken = Taken { locally: &|_| false, by_peer: &|_| false };
    let west = name("west");
    let wanted = cluster(&ground(), Member { cluster: &west, entry: &entry }, taken, &mut fronts()).expect("wanted");
    let ports = &listeners(&wanted)[0].ports;
    assert_eq!(ports.iter().map(|port| port.transport.as_str()).collect::<Vec<_>>(), ["udp", "tcp"]);
    assert_eq!(ports[0].listen, ports[1].listen);
    let capacity = capacity(&west, &entry);
    assert_eq!((capacity.ready.len(), capacity.ready_udp.len()), (1, 1));
}
