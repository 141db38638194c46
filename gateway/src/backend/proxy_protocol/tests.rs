use super::*;

/// A reader written from the specification, not from the writer.
#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    command: u8,
    addresses: Option<(SocketAddr, SocketAddr)>,
    tlvs: Vec<(u8, Vec<u8>)>,
}

fn parse(bytes: &[u8]) -> Parsed {
    assert_eq!(&bytes[..12], b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A");
    assert_eq!(bytes[12] >> 4, 2, "version");
    let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    assert_eq!(bytes.len(), 16 + length, "the length is of the rest");
    let rest = &bytes[16..];
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let (addresses, skip) = match bytes[13] {
        0x00 => (None, 0),
        0x11 => {
            let ip = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&rest[at..at + 4]).expect("4"));
            (Some((SocketAddr::new(ip(0), port(8)), SocketAddr::new(ip(4), port(10)))), 12)
        }
        0x21 => {
            let ip = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&rest[at..at + 16]).expect("16"));
            (Some((SocketAddr::new(ip(0), port(32)), SocketAddr::new(ip(16), port(34)))), 36)
        }
        other => panic!("family {other:#x}"),
    };
    let mut tlvs = Vec::new();
    let mut rest = &rest[skip..];
    while !rest.is_empty() {
        let length = usize::from(u16::from_be_bytes([rest[1], rest[2]]));
        tlvs.push((rest[0], rest[3..3 + length].to_vec()));
        rest = &rest[3 + length..];
    }
    Parsed { command: bytes[12] & 0xF, addresses, tlvs }
}

/// CRC32C bit by bit.
fn slow_crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    !crc
}

fn at(address: &str) -> SocketAddr {
    address.parse().expect("address")
}

fn checked(client: Option<&str>, backend: &str, tlvs: &[(u8, &[u8])]) -> Parsed {
    let bytes = encode(client.map(at), at(backend), tlvs);
    let parsed = parse(&bytes);
    let (kind, checksum) = parsed.tlvs.last().expect("crc");
    assert_eq!((*kind, checksum.len()), (0x03, 4));
    let mut zeroed = bytes.to_vec();
    let end = zeroed.len();
    zeroed[end - 4..].fill(0);
    assert_eq!(checksum[..], slow_crc32c(&zeroed).to_be_bytes());
    assert_eq!(parsed.command, 1, "PROXY");
    parsed
}

#[test]
fn checksums_are_those_of_the_rfc() {
    // RFC 3720 appendix B.4, and the usual check value.
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
}

#[test]
fn families() {
    let v4 = checked(Some("10.0.0.9:4000"), "10.0.1.1:5432", &[]);
    assert_eq!(v4.addresses, Some((at("10.0.0.9:4000"), at("10.0.1.1:5432"))));
    let v6 = checked(Some("[2001:db8::9]:4000"), "[2001:db8::1]:5432", &[]);
    assert_eq!(v6.addresses, Some((at("[2001:db8::9]:4000"), at("[2001:db8::1]:5432"))));
    let mixed = checked(Some("10.0.0.9:4000"), "[2001:db8::1]:5432", &[]);
    assert_eq!(mixed.addresses, Some((at("[::ffff:10.0.0.9]:4000"), at("[2001:db8::1]:5432"))));
    let mapped = checked(Some("[::ffff:10.0.0.9]:4000"), "10.0.1.1:5432", &[]);
    assert_eq!(mapped.addresses, Some((at("10.0.0.9:4000"), at("10.0.1.1:5432"))));
    let unknown = checked(None, "10.0.1.1:5432", &[(TLV_IDENTITY, b"spiffe://a/b")]);
    assert_eq!(unknown.addresses, None);
    assert_eq!(unknown.tlvs[0], (0xE0, b"spiffe://a/b".to_vec()));
}

#[test]
fn tells_who_calls() {
    let admitted = crate::remote::tests::admitted();
    let bytes =
        header(&admitted, Some(at("10.0.0.9:4000")), at("10.0.1.1:5432"), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
    let parsed = parse(&bytes);
    let text = |kind: u8| {
        let value = parsed.tlvs.iter().find(|(tlv, _)| *tlv == kind).map(|(_, value)| value.clone());
        value.map(|value| String::from_utf8(value).expect("text"))
    };
    assert_eq!(text(0x02).as_deref(), Some("web.shop.svc.cluster.local"));
    assert_eq!(text(0x05).as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
    assert_eq!(text(0xE0).as_deref(), Some("spiffe://west.linkspan.internal/ns/shop/sa/cart"));
    assert_eq!(text(0xE1).as_deref(), Some("west"));
    assert_eq!(text(0xE2).as_deref(), Some("network"));
    assert_eq!(parsed.tlvs.iter().filter(|(kind, _)| *kind == 0xE0).count(), 1);
    let untraced = parse(&header(&admitted, None, at("10.0.1.1:5432"), None));
    assert!(untraced.tlvs.iter().all(|(kind, _)| *kind != 0x05));
}

#[test]
fn a_certificate_is_told_as_tls_is() {
    let der = [0x30; linkspan_proto::identity::MAX_CERTIFICATE];
    let value = ssl(&Certificate::new(&der).expect("within the cap"));
    let parsed = checked(Some("10.0.0.9:4000"), "10.0.1.1:5432", &[(TLV_SSL, &value)]);
    let (kind, value) = &parsed.tlvs[0];
    assert_eq!((*kind, value[0], &value[1..5]), (0x20, 0x07, &[0; 4][..]), "shown, and verified");
    let (version, rest) = value[5..].split_at(3 + 7);
    assert_eq!(version, b"\x21\x00\x07TLSv1.3");
    assert_eq!((rest[0], u16::from_be_bytes([rest[1], rest[2]])), (0x28, 3_500));
    assert_eq!(rest[3..], der);
}

#[test]
fn the_longest_identity_fits() {
    let identity = vec![b'a'; 2048];
    let parsed = checked(Some("10.0.0.9:4000"), "10.0.1.1:5432", &[(TLV_IDENTITY, &identity)]);
    assert_eq!(parsed.tlvs[0].1, identity);
}
