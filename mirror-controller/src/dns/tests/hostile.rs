//! Requests that no resolver sends.

use proptest::prelude::*;

use super::*;

const NAME: &str = "web-west.shop.svc.cluster.local.";

fn bytes(name: &str) -> Vec<u8> {
    query(name, RecordType::A).to_vec().expect("encodes")
}

/// A request with this raw name and nothing else.
fn raw(name: &[u8]) -> Vec<u8> {
    let mut request = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    request.extend_from_slice(name);
    request.extend_from_slice(&[0, 1, 0, 1]);
    request
}

fn labels(labels: &[&[u8]]) -> Vec<u8> {
    let mut name = Vec::new();
    for label in labels {
        name.push(u8::try_from(label.len()).expect("label"));
        name.extend_from_slice(label);
    }
    name.push(0);
    name
}

/// The rcode in a reply's header.
fn code(reply: &[u8]) -> u8 {
    reply[3] & 0x0f
}

#[test]
fn responses_and_fragments_get_no_reply() {
    let zone = shop();
    let mut response = bytes(NAME);
    response[2] |= 0x80;
    assert_eq!(send(&zone, &response, Transport::Udp), None);
    // Malformed as well: still no reply, or two servers could go on for ever about each other's errors.
    response.truncate(20);
    assert_eq!(send(&zone, &response, Transport::Udp), None);
    for length in 0..12 {
        assert_eq!(send(&zone, &bytes(NAME)[..length], Transport::Udp), None);
    }
    assert_eq!(send(&zone, &vec![0; 5000], Transport::Tcp), None);
}

#[test]
fn cut_requests_are_form_errors() {
    let zone = shop();
    let whole = bytes(NAME);
    for length in 12..whole.len() {
        let reply = send(&zone, &whole[..length], Transport::Udp).expect("a reply");
        assert_eq!((code(&reply), reply.len()), (1, 12), "cut at {length}");
        assert_eq!(reply[..2], whole[..2], "the id comes back");
    }
}

#[test]
fn other_opcodes_are_not_implemented() {
    let zone = shop();
    for opcode in 1..16_u8 {
        let mut request = bytes(NAME);
        request[2] = request[2] & 0x87 | opcode << 3;
        let reply = send(&zone, &request, Transport::Udp).expect("a reply");
        assert_eq!((code(&reply), reply.len(), reply[2] >> 3 & 0x0f), (4, 12, opcode));
        assert_eq!(reply[2] & 0x80, 0x80);
    }
}

#[test]
fn forged_counts_are_form_errors() {
    let zone = shop();
    for (position, count) in
        [(4, 0_u16), (4, 2), (4, 0xffff), (6, 1), (6, 0xffff), (8, 1), (8, 0xffff), (10, 5), (10, 0xffff)]
    {
        let mut request = bytes(NAME);
        request[position..position + 2].copy_from_slice(&count.to_be_bytes());
        let reply = send(&zone, &request, Transport::Udp).expect("a reply");
        assert_eq!((code(&reply), reply.len()), (1, 12), "count {count} at {position}");
    }
}

#[test]
fn compression_in_the_question_is_a_form_error() {
    let zone = shop();
    for name in [&[0xc0, 0x0c][..], &[1, b'a', 0xc0, 0x0c], &[0xc0, 0x00], &[0xff, 0xff], &[0x40, 0], &[0x80, 0]] {
        let reply = send(&zone, &raw(name), Transport::Udp).expect("a reply");
        assert_eq!(code(&reply), 1, "{name:?}");
    }
}

#[test]
fn compression_loops_in_additional_records_end() {
    let zone = shop();
    let mut request = bytes(NAME);
    request[11] = 1;
    let here = u8::try_from(request.len()).expect("short");
    for pointer in [here, here + 2, 12, 0] {
        let mut request = request.clone();
        request.extend_from_slice(&[0xc0, pointer, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        assert!(send(&zone, &request, Transport::Udp).is_some());
    }
}

#[test]
fn labels_and_names_have_their_limits() {
    let zone = shop();
    let label = [b'a'; 63];
    let longest = labels(&[&label, &label, &label, &label[..61]]);
    assert_eq!(longest.len(), 255);
    assert_eq!(code(&send(&zone, &raw(&longest), Transport::Udp).expect("a reply")), 5);
    let longer = labels(&[&label, &label, &label, &label[..62]]);
    assert_eq!(code(&send(&zone, &raw(&longer), Transport::Udp).expect("a reply")), 1);
    let mut wide = vec![64];
    wide.extend_from_slice(&[b'a'; 64]);
    wide.push(0);
    assert_eq!(code(&send(&zone, &raw(&wide), Transport::Udp).expect("a reply")), 1);
}

#[test]
fn bytes_that_no_host_name_holds_are_refused() {
    let zone = shop();
    let tail: [&[u8]; 4] = [b"shop", b"svc", b"cluster", b"local"];
    for label in [&b"web\0west"[..], b"web west", b"web.west", b"\x1b[31m", b"w\xc3\xa9b", b"\xff", b"web\x7f"] {
        let mut all = vec![label];
        all.extend_from_slice(&tail);
        let reply = send(&zone, &raw(&labels(&all)), Transport::Udp).expect("a reply");
        assert_eq!(code(&reply), 5, "{label:?}");
    }
    // One label with dots inside is not the name that it looks like.
    let reply = send(&zone, &raw(&labels(&[b"web-west.shop", b"svc", b"cluster", b"local"])), Transport::Udp);
    assert_eq!(code(&reply.expect("a reply")), 5);
}

#[test]
fn two_opt_records_are_a_form_error() {
    let zone = shop();
    let mut request = bytes(NAME);
    request[11] = 2;
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    request.extend_from_slice(&opt);
    request.extend_from_slice(&opt);
    assert_eq!(code(&send(&zone, &request, Transport::Udp).expect("a reply")), 1);
}

#[test]
fn unknown_names_do_not_amplify() {
    let zone = shop();
    for name in ["a.svc.cluster.local.", "a.clusterset.local.", "a.b.svc.clusterset.local.", "a.", ".", "example.com."]
    {
        for edns in [false, true] {
            for qtype in [RecordType::A, RecordType::ANY, RecordType::TXT] {
                let plain = query(name, qtype);
                let request = if edns { with_edns(plain, 4096) } else { plain }.to_vec().expect("encodes");
                let reply = send(&zone, &request, Transport::Udp).expect("a reply");
                assert!(reply.len() <= 3 * request.len(), "{name}: {} for {}", reply.len(), request.len());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, the reply is a response with the same id, within the limit, that we would not answer ourselves.
    #[test]
    fn any_bytes(request in prop::collection::vec(any::<u8>(), 0..600), tcp in any::<bool>()) {
        check(&request, tcp)?;
    }

    /// A valid request with a few bytes changed reaches deeper.
    #[test]
    fn almost_valid(
        name in "[a-z_]{1,12}(\\.[a-z_]{1,12}){0,3}\\.(svc\\.cluster\\.local|svc\\.clusterset\\.local|example)\\.",
        qtype in any::<u16>(),
        payload in any::<u16>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        tcp in any::<bool>(),
    ) {
        let mut request = with_edns(query(&name, RecordType::from(qtype)), payload).to_vec().expect("encodes");
        for (index, byte) in changes {
            let index = index.index(request.len());
            request[index] = byte;
        }
        check(&request, tcp)?;
    }

    /// Every service answers under its name, in any letter case, and with its address alone.
    #[test]
    fn every_service_is_found(
        names in prop::collection::btree_set(("[a-z]([a-z0-9-]{0,20}[a-z0-9])?", "[a-z]([a-z0-9-]{0,20}[a-z0-9])?"), 1..20),
        upper in any::<bool>(),
    ) {
        let services: Vec<_> = names.iter().enumerate().map(|(i, (namespace, name))| {
            service(ZoneName::Clusterset, namespace, name, &[&format!("127.90.0.{}", i + 1)], &[])
        }).collect();
        let zone = Zone::build(services, 1);
        for (i, (namespace, name)) in names.iter().enumerate() {
            let mut full = format!("{name}.{namespace}.svc.clusterset.local.");
            if upper {
                full.make_ascii_uppercase();
            }
            let reply = ask(&zone, &full, RecordType::A);
            prop_assert_eq!(addresses(&reply), ips(&[&format!("127.90.0.{}", i + 1)]));
        }
    }
}

fn check(request: &[u8], tcp: bool) -> Result<(), TestCaseError> {
    let zone = shop();
    let transport = if tcp { Transport::Tcp } else { Transport::Udp };
    let Some(reply) = send(&zone, request, transport) else { return Ok(()) };
    prop_assert!(reply.len() >= 12 && (tcp || reply.len() <= 1232));
    prop_assert_eq!(&reply[..2], &request[..2]);
    prop_assert!(reply[2] & 0x80 != 0);
    prop_assert!(Message::from_vec(&reply).is_ok());
    prop_assert!(send(&zone, &reply, transport).is_none(), "a reply is never answered");
    Ok(())
}
